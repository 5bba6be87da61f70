"""What was earned: each currency by itself, since amounts of two currencies have no sum.

All amounts are whole minor units. An order is a positive amount, a refund a negative one; an amount of 0 is neither.
"""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from tenants.events import NOBODY, Queries
from tenants.reports.compared import Compared, has_before
from tenants.reports.filters import Filters, currency_of, field_of
from tenants.reports.money import divided
from tenants.reports.period import Interval, Period
from tenants.reports.sql import PERSON_ID, bucket, in_order, persons_if, rows_of, starts_of, value_of
from tenants.tables import App

_SUMS = (
    "sumIf(amount, amount > 0) AS gross, -sumIf(amount, amount < 0) AS refunded, sum(amount) AS net, "
    "countIf(amount > 0) AS orders"
)
_BUYERS = persons_if("amount > 0") + " AS persons"


class Revenue(msgspec.Struct, frozen=True):
    """One currency's. `net` is gross less refunded; `persons` are those with an order.

    `average_order` is gross by orders, `per_person` net by persons; both are rounded half away from zero, and 0 by 0.
    """

    currency: str
    gross: Compared
    refunded: Compared
    net: Compared
    orders: Compared
    persons: Compared
    average_order: Compared
    per_person: Compared


async def revenue(app: App, store: Queries, period: Period, filters: Filters) -> list[Revenue]:
    """A row for each currency that occurs in the period or the one before, most orders first."""
    now, before = await asyncio.gather(
        _by_currency(app, store, period, filters), _by_currency(app, store, period.before, filters)
    )
    kept = has_before(app, period)
    if not kept:
        before = {}
    found: list[Revenue] = []
    for currency in now.keys() | before.keys():
        pairs = zip(_figures(now.get(currency)), _figures(before.get(currency)), strict=True)
        found.append(Revenue(currency, *(Compared(each, earlier if kept else None) for each, earlier in pairs)))
    return sorted(found, key=lambda row: (-row.orders.now, -(row.orders.before or 0), row.currency))


async def _by_currency(app: App, store: Queries, period: Period, filters: Filters) -> dict[str, dict[str, int]]:
    rows, parameters = _revenue_rows(app, period, filters)
    found = await store.query(f"SELECT currency, {_SUMS}, {_BUYERS} {rows} GROUP BY currency", parameters, app.tenant)
    return {row["currency"]: row for row in found}


def _figures(row: dict[str, int] | None) -> tuple[int, ...]:
    """In the order of Revenue's fields."""
    if row is None:
        return (0,) * 7
    gross, net, orders, persons = row["gross"], row["net"], row["orders"], row["persons"]
    return gross, row["refunded"], net, orders, persons, divided(gross, orders), divided(net, persons)


class RevenueLine(msgspec.Struct, frozen=True):
    """One currency's minor units in each bucket."""

    currency: str
    gross: list[int]
    refunded: list[int]
    net: list[int]
    orders: list[int]


class RevenueSeries(msgspec.Struct, frozen=True):
    """A number for each bucket, 0 where nothing was sold."""

    interval: Interval
    buckets: list[datetime]
    lines: list[RevenueLine]


async def revenue_series(app: App, store: Queries, period: Period, filters: Filters) -> RevenueSeries:
    """A line for each currency, most orders first."""
    starts = starts_of(period.buckets)
    rows, parameters = _revenue_rows(app, period, filters)
    found = await store.query(
        f"SELECT currency, {bucket('received_at')} AS at, {_SUMS} {rows} GROUP BY currency, at",
        parameters | {"starts": starts},
        app.tenant,
    )
    place = {start: number for number, start in enumerate(starts)}
    lines: dict[str, RevenueLine] = {}
    for row in found:
        currency, at = row["currency"], place[row["at"]]
        line = lines.setdefault(currency, RevenueLine(currency, *([0] * len(starts) for _ in range(4))))
        line.gross[at], line.refunded[at] = row["gross"], row["refunded"]
        line.net[at], line.orders[at] = row["net"], row["orders"]
    ordered = sorted(lines.values(), key=lambda line: (-sum(line.orders), line.currency))
    return RevenueSeries(period.interval, list(period.buckets), ordered)


class RevenueValue(msgspec.Struct, frozen=True):
    """What one value of a field brought; `value` is None where the field was not sent. `persons` have an order."""

    value: str | None
    gross: int
    refunded: int
    net: int
    orders: int
    persons: int


class RevenueBreakdown(msgspec.Struct, frozen=True):
    """Values with most net revenue first; `more` is how many others there are."""

    field: str
    currency: str
    values: list[RevenueValue]
    more: int


async def revenue_by(
    app: App, store: Queries, period: Period, filters: Filters, field: str, currency: str, limit: int = 20
) -> RevenueBreakdown:
    """One currency's revenue by the values of a field, as in `breakdown`. Raises InvalidValue."""
    value, currency = value_of(field_of(field), "by"), currency_of(currency)
    rows, parameters = _revenue_rows(app, period, filters, currency)
    found = await store.query(
        f"SELECT *, count() OVER () AS known FROM (SELECT {value.each} AS text, {value.missing} AS missing, "
        f"{_SUMS}, {_BUYERS} {rows} GROUP BY text, missing) "
        f"ORDER BY net DESC, missing, {in_order('text')} LIMIT {{limit:UInt32}}",
        parameters | value.parameters | {"limit": limit},
        app.tenant,
    )
    values = [
        RevenueValue(
            None if row["missing"] else row["text"],
            row["gross"],
            row["refunded"],
            row["net"],
            row["orders"],
            row["persons"],
        )
        for row in found
    ]
    return RevenueBreakdown(field, currency, values, found[0]["known"] - len(values) if found else 0)


class Order(msgspec.Struct, frozen=True):
    """An event of category revenue with a positive amount. `params` is JSON text; `person_id` None for nobody known."""

    id: str
    received_at: datetime
    event_token: str
    amount: int
    currency: str
    event_id: str | None
    params: str
    person_id: UUID | None


async def largest_orders(
    app: App, store: Queries, period: Period, filters: Filters, currency: str, limit: int = 10
) -> list[Order]:
    """One currency's largest orders, of two alike the newer one first."""
    rows, parameters = _revenue_rows(app, period, filters, currency_of(currency))
    # Not by the plain column: where an id follows, chDB 26.5 compares amounts with ids and fails.
    order = "ORDER BY -amount, received_at DESC, id DESC"
    return await _orders(app, store, f"{rows} AND amount > 0 {order}", parameters, limit)


async def latest_orders(
    app: App, store: Queries, period: Period, filters: Filters, currency: str | None = None, limit: int = 10
) -> list[Order]:
    """The newest orders, of one currency or of all."""
    rows, parameters = _revenue_rows(app, period, filters, currency_of(currency) if currency else None)
    return await _orders(app, store, f"{rows} AND amount > 0 ORDER BY received_at DESC, id DESC", parameters, limit)


async def _orders(app: App, store: Queries, rows: str, parameters: dict[str, Any], limit: int) -> list[Order]:
    found = await store.query(
        "SELECT id, toUnixTimestamp64Milli(received_at) AS at, event_token, amount, currency, event_id, params_text, "
        f"{PERSON_ID} AS person {rows} LIMIT {{limit:UInt32}}",
        parameters | {"limit": limit},
        app.tenant,
    )
    return [
        Order(
            str(row["id"]),
            datetime.fromtimestamp(row["at"] / 1000, UTC),
            row["event_token"],
            row["amount"],
            row["currency"],
            row["event_id"] or None,
            row["params_text"],
            row["person"] if row["person"] != NOBODY else None,
        )
        for row in found
    ]


def _revenue_rows(
    app: App, period: Period, filters: Filters, currency: str | None = None
) -> tuple[str, dict[str, Any]]:
    where, parameters = filters.sql()
    rows = f"{rows_of(period.start, period.end)} AND category = 'revenue'"
    if currency is not None:
        rows += " AND currency = {in:String}"
        parameters["in"] = currency
    return rows + where, parameters | {"app": str(app.id)}
