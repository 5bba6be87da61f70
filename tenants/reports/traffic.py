"""What became of all hits over the period."""

from datetime import datetime

import msgspec

from tenants.events import Queries
from tenants.reports.period import Interval, Period
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
    raise NotImplementedError


class LimitedMinute(msgspec.Struct, frozen=True):
    """A minute in which hits were limited, and how many were let in."""

    minute: datetime
    limited: int
    admitted: int


async def limited_minutes(app: App, store: Queries, period: Period, limit: int = 20) -> list[LimitedMinute]:
    """The newest minutes in which hits of the app were limited."""
    raise NotImplementedError
