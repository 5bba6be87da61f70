"""The values of one field: how many events, persons and how much revenue each has.

A value is its text: the number 2 and the text "2" are the same one. An event with a list has each of its elements, so
the shares of a field with lists may add up to more than 1. An object is no value; its fields are fields of their own.
"""

from typing import Any

import msgspec

from tenants.events import Queries
from tenants.reports.filters import Filters, field_of
from tenants.reports.period import Period
from tenants.reports.sql import PERSONS, in_order, rows_of, share_of, value_of
from tenants.tables import App


class Value(msgspec.Struct, frozen=True):
    """`value` is None where the field was not sent (or null). `net` is minor units by currency. `share` is 0 to 1."""

    value: str | None
    events: int
    persons: int
    share: float
    net: dict[str, int]


class Breakdown(msgspec.Struct, frozen=True):
    """Values with most events first; `more` is how many others there are, `events` how many events in all."""

    field: str
    values: list[Value]
    more: int
    events: int


async def breakdown(
    app: App, store: Queries, period: Period, filters: Filters, field: str, limit: int = 20
) -> Breakdown:
    """The values of `category`, `event_token`, `currency` or a field of params (`params.plan`, `params.address.city`).

    Raises InvalidValue for `field`.
    """
    value = value_of(field_of(field), "by")
    where, parameters = filters.sql()
    parameters |= value.parameters | {"app": str(app.id), "limit": limit}
    rows = f"{rows_of(period.start, period.end)}{where}"
    # Giving up at a thousand would give up reading people's properties, too.
    plain = not any(name.startswith("person.") for name in (field, *(each.field for each in filters.conditions)))
    found = await _values(app, store, rows, value.text, value.missing, parameters, plain)
    events = found[0]["whole"] if found else 0
    if found and found[0]["lists"] and value.listed != "0":
        # To look for lists takes time in every row, so it is done where a value looks like one.
        found = await _values(app, store, rows, value.each, value.missing, parameters, plain)
    values = [
        Value(
            None if row["missing"] else row["text"],
            row["events"],
            row["persons"],
            share_of(row["events"], events),
            dict(sorted(row["net"].items())),
        )
        for row in found
    ]
    return Breakdown(field, values, found[0]["known"] - len(values) if found else 0, events)


# Up to so many values, one query tells all about each of them; beyond, the first one gives up at once.
_FEW = 1_000
_GIVE_UP = f"SETTINGS max_rows_to_group_by = {_FEW}, group_by_overflow_mode = 'break'"
_TOP = f"ORDER BY events DESC, missing DESC, {in_order('text')} LIMIT {{limit:UInt32}}"
_OF_ALL = "sum(events) OVER () AS whole, count() OVER () AS known, max(startsWith(text, '[')) OVER () AS lists"
# Beyond, a value is its hash, whose lowest bit says whether it looks like a list. One number holds how often it came,
# up to 2^28 times, and the beginning of its hash.
_HASH = f"bitOr(bitAnd(cityHash64(text, missing), {2**64 - 2}), startsWith(text, '['))"
_PLACE = 2**36
_BEGINNING = f"intDiv({_HASH}, {2**28})"


async def _values(
    app: App, store: Queries, rows: str, text: str, missing: str, parameters: dict[str, Any], may_give_up: bool
) -> list[dict[str, Any]]:
    """The values with most events. Each row has figures of all: `whole` events, `known` values, whether `lists`."""
    value = f"{text} AS text, {missing} AS missing"
    # Whatever has an amount is revenue, and numbers compare faster than categories.
    counted = f"count() AS events, {PERSONS} AS persons, sumMapIf(map(currency, amount), amount != 0) AS net"
    by_value = "GROUP BY text, missing"
    if may_give_up:
        found = await store.query(
            f"SELECT *, {_OF_ALL} FROM (SELECT {value}, {counted} {rows} {by_value}) {_TOP} {_GIVE_UP}",
            parameters,
            app.tenant,
        )
        if not found or found[0]["known"] <= _FEW:
            return found
    # There may be a million: which are most frequent is found by numbers alone, and only of those the rest is asked. Of
    # values that came as often as each other it is the hash that decides.
    places = f"groupArray(least(events, {2**28 - 1}) * {_PLACE} + intDiv(hash, {2**28}))"
    (of_all,) = await store.query(
        f"SELECT sum(events) AS whole, count() AS known, max(hash % 2) AS lists, "
        f"arraySlice(arrayPartialReverseSort({{limit:UInt32}}, {places}), 1, {{limit:UInt32}}) AS places "
        f"FROM (SELECT {_HASH} AS hash, count() AS events FROM (SELECT {value} {rows}) GROUP BY hash)",
        parameters,
        app.tenant,
    )
    beginnings = [place % _PLACE for place in of_all.pop("places")]
    found = await store.query(
        f"SELECT text, missing, {counted} FROM (SELECT {value}, person_id, currency, amount {rows}) "
        f"WHERE {_BEGINNING} IN {{beginnings:Array(UInt64)}} {by_value} {_TOP}",
        parameters | {"beginnings": beginnings},
        app.tenant,
    )
    return [row | of_all for row in found]
