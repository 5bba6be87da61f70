"""An answer of each report, for the reference."""

from typing import Any

_PERIOD = {
    "name": "custom",
    "timezone": "Europe/Berlin",
    "start": "2026-11-20T00:00:00+01:00",
    "end": "2026-11-22T00:00:00+01:00",
    "interval": "day",
    "before": {"start": "2026-11-18T00:00:00+01:00", "end": "2026-11-20T00:00:00+01:00"},
}
_BUCKETS = ["2026-11-20T00:00:00+01:00", "2026-11-21T00:00:00+01:00"]

EXAMPLES: dict[str, Any] = {
    "totals": {
        "period": _PERIOD,
        "totals": {
            "events": {"now": 3770, "before": 3312},
            "persons": {"now": 1104, "before": 987},
            "rejected": {"now": 1, "before": 40},
            "duplicates": {"now": 9, "before": 8},
            "limited": {"now": 0, "before": 0},
        },
    },
    "series": {
        "period": _PERIOD,
        "series": {
            "interval": "day",
            "buckets": _BUCKETS,
            "events": [1810, 1960],
            "persons": [612, 640],
            "lines": [
                {"event_token": "page_view", "events": [1600, 1730]},
                {"event_token": None, "events": [210, 230]},
            ],
        },
    },
    "breakdown": {
        "period": _PERIOD,
        "breakdown": {
            "field": "params.plan",
            "values": [
                {"value": "pro", "events": 420, "persons": 390, "share": 0.525, "net": {"EUR": 310800}},
                {"value": None, "events": 380, "persons": 301, "share": 0.475, "net": {}},
            ],
            "more": 0,
            "events": 800,
        },
    },
    "revenue": {
        "period": _PERIOD,
        "revenue": [
            {
                "currency": "EUR",
                "gross": {"now": 88800, "before": 82900},
                "refunded": {"now": 2900, "before": 0},
                "net": {"now": 85900, "before": 82900},
                "orders": {"now": 24, "before": 21},
                "persons": {"now": 22, "before": 21},
                "average_order": {"now": 3700, "before": 3948},
                "per_person": {"now": 3905, "before": 3948},
            }
        ],
        "series": {
            "interval": "day",
            "buckets": _BUCKETS,
            "lines": [
                {
                    "currency": "EUR",
                    "gross": [44400, 44400],
                    "refunded": [0, 2900],
                    "net": [44400, 41500],
                    "orders": [12, 12],
                }
            ],
        },
    },
    "traffic": {
        "period": _PERIOD,
        "traffic": {
            "interval": "day",
            "buckets": _BUCKETS,
            "recorded": [1810, 1960],
            "rejected": [1, 0],
            "duplicate": [4, 5],
            "limited": [0, 0],
        },
    },
    "fields": {
        "fields": [{"field": "params.plan", "share": 0.96}, {"field": "params.address.city", "share": 0.31}],
        "looked_at": 10000,
        "properties": ["person.plan"],
    },
}
