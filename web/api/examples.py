"""An answer of each address of the API, for the reference."""

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


def _reached(first: int, second: int, median: float) -> list[dict[str, Any]]:
    share = round(second / first, 6)
    return [
        {"event_token": "page_view", "persons": first, "from_before": 1.0, "from_first": 1.0, "median_seconds": None},
        {
            "event_token": "signup",
            "persons": second,
            "from_before": share,
            "from_first": share,
            "median_seconds": median,
        },
    ]


EXAMPLES: dict[str, Any] = {
    "apps": {
        "apps": [
            {
                "id": "2f0c6c0e-6a53-4a7e-9a55-0d3c9b1e7f42",
                "name": "Boots & Blooms",
                "currency": "EUR",
                "timezone": "Europe/Berlin",
                "retention_days": None,
                "created_at": "2026-08-25T09:14:03.112408Z",
                "tokens": ["0f8a6d5c4b3e2a1908f7e6d5"],
            }
        ]
    },
    "events": {
        "events": [
            {
                "id": "01a1fe33-54ae-7c41-9a10-2f6b8d0c4e71",
                "received_at": "2026-11-21T13:02:19.310Z",
                "category": "revenue",
                "event_token": "purchase",
                "amount": 2500,
                "currency": "EUR",
                "event_id": "order-3571",
                "params": {"plan": "pro", "items": 2},
                "person_id": "6b1f0c52-93a7-4f0e-8d4c-1c2e7f9a5b38",
                "warnings": [],
            },
            {
                "id": "01a1fe32-d824-7d18-8c55-7a90b3e1f264",
                "received_at": "2026-11-21T13:01:47.428Z",
                "category": "event",
                "event_token": "signup",
                "amount": None,
                "currency": None,
                "event_id": None,
                "params": {"plan": "pro"},
                "person_id": "6b1f0c52-93a7-4f0e-8d4c-1c2e7f9a5b38",
                "warnings": ["ignored_fields"],
            },
        ],
        "next": "AAABof4y2CQBof4y2CR9GIxVepCz4fJk",
    },
    "export_events": (
        '"received_at","id","category","event_token","amount","amount_decimal","currency","event_id","params","person_id",'
        '"email","uuid","fbid","warnings","referrer_host","user_agent"\n'
        '"2026-11-21T13:02:19.310Z","01a1fe33-54ae-7c41-9a10-2f6b8d0c4e71","revenue","purchase",2500,"25.00","EUR",'
        '"order-3571","{""plan"":""pro"",""items"":2}","6b1f0c52-93a7-4f0e-8d4c-1c2e7f9a5b38",,,,"","shop.example",'
        '"Mozilla/5.0 (X11; Linux x86_64)"\n'
    ),
    "rejections": {
        "rejections": [
            {
                "id": "01a1fe31-38c7-7e02-b3d9-5e8f17a6c0b4",
                "received_at": "2026-11-21T13:00:01.095Z",
                "category": "revenue",
                "reason": "missing_amount",
                "detail": "Add amount, a whole number in the currency's minor unit: amount=2500 for 25.00 USD.",
                "query": "event_token=purchase",
            }
        ],
        "next": None,
    },
    "people": {
        "people": [
            {
                "id": "6b1f0c52-93a7-4f0e-8d4c-1c2e7f9a5b38",
                "email": "ann@example.org",
                "fbid": None,
                "uuids": ["4711"],
                "properties": {"plan": "pro", "items": 2},
                "first_seen": "2026-11-21T13:01:47.428Z",
                "last_seen": "2026-11-21T13:02:19.310Z",
                "event_count": 2,
                "revenue": {"EUR": 2500},
            }
        ],
        "next": "AAABmr_85B4f3lhD1xQ5Kg",
        "cut": False,
    },
    "person": {
        "id": "6b1f0c52-93a7-4f0e-8d4c-1c2e7f9a5b38",
        "emails": ["ann@example.org"],
        "fbids": [],
        "uuids": ["4711"],
        "known_at": "2026-11-21T13:01:47.428Z",
        "merged": ["0c9e5a74-2d61-4b8f-a3d7-8f1b6e42c590"],
        "properties": {
            "items": {"value": 2, "received_at": "2026-11-21T13:02:19.310Z"},
            "plan": {"value": "pro", "received_at": "2026-11-21T13:02:19.310Z"},
        },
        "first_seen": "2026-11-21T13:01:47.428Z",
        "last_seen": "2026-11-21T13:02:19.310Z",
        "event_count": 2,
        "lifetime": [
            {"currency": "EUR", "gross": 2500, "refunded": 0, "net": 2500, "orders": 1, "average_order": 2500}
        ],
    },
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
    "retention": {
        "period": _PERIOD,
        "retention": {
            "interval": "day",
            "first": "signup",
            "back": None,
            "new": False,
            "cohorts": [
                {"start": _BUCKETS[0], "size": 412, "returned": [412, 103], "shares": [1.0, 0.25]},
                {"start": _BUCKETS[1], "size": 388, "returned": [388], "shares": [1.0]},
            ],
            "shares": [1.0, 0.25],
            "running": False,
        },
    },
    "funnel": {
        "period": _PERIOD,
        "funnel": {
            "steps": _reached(800, 200, 5400.0),
            "window_seconds": 604800,
            "field": "params.source",
            "values": [
                {"value": "search", "steps": _reached(500, 150, 4980.5)},
                {"value": None, "steps": _reached(300, 50, 7200.0)},
            ],
            "others": None,
        },
    },
}
_RECEIPT = {
    "id": "3f0d8f5e-7a0b-4c64-9c1d-5b6e2a9f4d17",
    "requested_at": "2026-11-21T14:00:00Z",
    "asked_by": "API key onepx_3kQ7vd…",
    "removed": {"persons": 2, "identifiers": 2, "visitors": 1, "properties": 0, "events": 0, "rejections": 0},
    "done_at": None,
}
EXAMPLES["delete_person"] = _RECEIPT
EXAMPLES["deletions"] = {
    "deletions": [
        _RECEIPT
        | {
            "removed": {"persons": 2, "identifiers": 2, "visitors": 1, "properties": 2, "events": 2, "rejections": 1},
            "done_at": "2026-11-21T14:04:31Z",
        }
    ]
}
EXAMPLES["export_person"] = {
    "app": "Boots & Blooms",
    "exported_at": "2026-11-21T14:00:00Z",
    "person": {
        "id": "6b1f0c52-93a7-4f0e-8d4c-1c2e7f9a5b38",
        "known_at": "2026-11-21T13:01:47.428Z",
        "emails": ["ann@example.org"],
        "uuids": ["4711"],
        "fbids": [],
        "visitors": ["6b1f0c52-93a7-4f0e-8d4c-1c2e7f9a5b38"],
        "merged": ["0c9e5a74-2d61-4b8f-a3d7-8f1b6e42c590"],
        "access_tokens_waiting_since": [],
    },
    "properties": [{"field": "plan", "value": "pro", "received_at": "2026-11-21T13:02:19.310Z"}],
    "events": [
        {
            "app_id": "b7a1f5de-3c02-4d89-8d5e-64f0a1c2e938",
            "received_at": "2026-11-21T13:02:19.310Z",
            "id": "01a1fe33-54ae-7c41-9a10-2f6b8d0c4e71",
            "category": "revenue",
            "event_token": "purchase",
            "amount": 2500,
            "currency": "EUR",
            "event_id": "order-3571",
            "params": {"plan": "pro", "items": 2},
            "query": "event_token=purchase&amount=2500&event_id=order-3571&params=eyJwbGFuIjoicHJvIiwiaXRlbXMiOjJ9",
            "warnings": [],
            "visitor_id": "6b1f0c52-93a7-4f0e-8d4c-1c2e7f9a5b38",
            "person_id": "6b1f0c52-93a7-4f0e-8d4c-1c2e7f9a5b38",
            "identified": True,
            "email": "",
            "uuid": "",
            "fbid": "",
            "network": "203.0.113.0/24",
            "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
            "referrer_host": "shop.example.org",
            "sec_purpose": "",
            "browser": "",
            "os": "",
            "device": "",
            "bot": "",
            "mail_proxy": "",
            "country": "",
        }
    ],
}
# The two events there are one person's.
EXAMPLES["person_events"] = EXAMPLES["events"] | {"next": None}
