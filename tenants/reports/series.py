"""How the events and persons of a period are spread over it."""

from datetime import datetime

import msgspec

from tenants.events import Queries
from tenants.reports.filters import Filters
from tenants.reports.period import Interval, Period
from tenants.tables import App


class Line(msgspec.Struct, frozen=True):
    """Events of one event token in each bucket; `event_token` is None for all the others together."""

    event_token: str | None
    events: list[int]


class Series(msgspec.Struct, frozen=True):
    """One number for each bucket, 0 where nothing happened. The lines add up to `events`; persons of buckets do not add up."""

    interval: Interval
    buckets: list[datetime]
    events: list[int]
    persons: list[int]
    lines: list[Line]


async def series(app: App, store: Queries, period: Period, filters: Filters, lines: int = 6) -> Series:
    """Events and persons in each bucket; a line for each of the event tokens with most events, then the others'."""
    raise NotImplementedError
