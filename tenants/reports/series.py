"""How the events and persons of a period are spread over it."""

import asyncio
from datetime import datetime

import msgspec

from tenants.events import Queries
from tenants.reports.filters import Filters
from tenants.reports.period import Interval, Period
from tenants.reports.sql import PERSONS, bucket, in_order, rows_of, starts_of
from tenants.tables import App


class Line(msgspec.Struct, frozen=True):
    """Events of one event token in each bucket; `event_token` is None for all the others together."""

    event_token: str | None
    events: list[int]


class Series(msgspec.Struct, frozen=True):
    """A number for each bucket, 0 where nothing happened.

    The lines add up to `events`. The persons of several buckets may be the same: they do not add up.
    """

    interval: Interval
    buckets: list[datetime]
    events: list[int]
    persons: list[int]
    lines: list[Line]


async def series(app: App, store: Queries, period: Period, filters: Filters, lines: int = 6) -> Series:
    """Events and persons in each bucket; a line for each of the event tokens with most events, then the others'."""
    starts = starts_of(period.buckets)
    where, parameters = filters.sql()
    parameters |= {"app": str(app.id), "starts": starts}
    rows = f"{rows_of(period.start, period.end)}{where}"
    at = bucket("received_at")
    # Tokens beyond the top ones are summed up there, not sent one by one: anybody can make up thousands of them.
    counted = f"SELECT {at} AS at, event_token AS token, count() AS events {rows} GROUP BY at, token"
    summed = f"SELECT *, sum(events) OVER (PARTITION BY token) AS whole FROM ({counted})"
    ranked = f"SELECT *, dense_rank() OVER (ORDER BY whole DESC, {in_order('token')}) AS place FROM ({summed})"
    by_token, by_bucket = await asyncio.gather(
        store.query(
            "SELECT at, if(place <= {lines:UInt32}, token, '') AS line, sum(events) AS events, min(place) AS first "
            f"FROM ({ranked}) GROUP BY at, line ORDER BY first",
            parameters | {"lines": lines},
            app.tenant,
        ),
        store.query(f"SELECT {at} AS at, {PERSONS} AS persons {rows} GROUP BY at", parameters, app.tenant),
    )
    place = {start: number for number, start in enumerate(starts)}
    counts: dict[str | None, list[int]] = {}
    for row in by_token:
        counts.setdefault(row["line"] or None, [0] * len(starts))[place[row["at"]]] = row["events"]
    persons = [0] * len(starts)
    for row in by_bucket:
        persons[place[row["at"]]] = row["persons"]
    # In their order; the others are last, however many they are.
    ordered = sorted(counts, key=lambda token: token is None)
    found = [Line(token, counts[token]) for token in ordered]
    events = [sum(column) for column in zip(*(line.events for line in found), strict=True)] or [0] * len(starts)
    return Series(period.interval, list(period.buckets), events, persons, found)
