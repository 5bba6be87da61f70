"""What became of all hits over the period."""

from datetime import UTC, datetime

import msgspec

from tenants.events import OUTCOMES, Queries
from tenants.reports.period import Interval, Period
from tenants.reports.sql import bucket, rows_of, starts_of
from tenants.tables import App


class Traffic(msgspec.Struct, frozen=True):
    """Hits in each bucket by what became of them."""

    interval: Interval
    buckets: list[datetime]
    recorded: list[int]
    rejected: list[int]
    duplicate: list[int]
    limited: list[int]


async def traffic(app: App, store: Queries, period: Period) -> Traffic:
    """All hits of the app; filters do not apply, since only events have fields."""
    starts = starts_of(period.buckets)
    sums = ", ".join(f"sum({name}) AS {name}" for name in OUTCOMES)
    found = await store.query(
        f"SELECT {bucket('minute')} AS at, {sums} {rows_of(period.start, period.end, 'traffic')} GROUP BY at",
        {"app": str(app.id), "starts": starts},
        app.tenant,
    )
    rows = {row["at"]: row for row in found}
    lines = {name: [rows[start][name] if start in rows else 0 for start in starts] for name in OUTCOMES}
    return Traffic(period.interval, list(period.buckets), **lines)


async def outcomes(app: App, store: Queries, period: Period) -> dict[str, int]:
    """How many hits of the period were recorded, rejected, duplicates and limited: a number for each of OUTCOMES."""
    sums = ", ".join(f"sum({name}) AS {name}" for name in OUTCOMES)
    (row,) = await store.query(
        f"SELECT {sums} {rows_of(period.start, period.end, 'traffic')}", {"app": str(app.id)}, app.tenant
    )
    return row


class LimitedMinute(msgspec.Struct, frozen=True):
    """A minute in which hits were limited, and how many were let in."""

    minute: datetime
    limited: int
    admitted: int


async def limited_minutes(app: App, store: Queries, period: Period, limit: int = 20) -> list[LimitedMinute]:
    """The newest minutes in which hits of the app were limited."""
    found = await store.query(
        "SELECT toUnixTimestamp(minute) AS at, sum(limited) AS beyond, "
        "sum(recorded + rejected + duplicate) AS admitted "
        f"{rows_of(period.start, period.end, 'traffic')} "
        "GROUP BY minute HAVING beyond > 0 ORDER BY minute DESC LIMIT {limit:UInt32}",
        {"app": str(app.id), "limit": limit},
        app.tenant,
    )
    return [LimitedMinute(datetime.fromtimestamp(row["at"], UTC), row["beyond"], row["admitted"]) for row in found]
