"""What was earned: each currency by itself, since amounts of two currencies have no sum."""

from datetime import datetime

import msgspec

from tenants.events import Queries
from tenants.reports.compared import Compared
from tenants.reports.filters import Filters
from tenants.reports.period import Interval, Period
from tenants.tables import App


class Revenue(msgspec.Struct, frozen=True):
    """One currency's, in its minor units. `net` is gross less refunded; `orders` are the positive amounts.

    `average_order` is gross by orders and `per_person` net by the persons with an order; both are rounded half away
    from zero, and 0 without any.
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
    raise NotImplementedError


class RevenueLine(msgspec.Struct, frozen=True):
    """One currency's minor units in each bucket."""

    currency: str
    gross: list[int]
    refunded: list[int]
    net: list[int]
    orders: list[int]


class RevenueSeries(msgspec.Struct, frozen=True):
    """One number for each bucket, 0 where nothing was sold."""

    interval: Interval
    buckets: list[datetime]
    lines: list[RevenueLine]


async def revenue_series(app: App, store: Queries, period: Period, filters: Filters) -> RevenueSeries:
    """A line for each currency, most orders first."""
    raise NotImplementedError


class RevenueValue(msgspec.Struct, frozen=True):
    """What one value of a field brought, in minor units; `value` is None where the field was not sent."""

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
    raise NotImplementedError


class Order(msgspec.Struct, frozen=True):
    """An event of category revenue with a positive amount. `params` is JSON text; `person_id` None for nobody known."""

    id: str
    received_at: datetime
    event_token: str
    amount: int
    currency: str
    event_id: str | None
    params: str
    person_id: str | None


async def largest_orders(
    app: App, store: Queries, period: Period, filters: Filters, currency: str, limit: int = 10
) -> list[Order]:
    """One currency's largest orders."""
    raise NotImplementedError


async def latest_orders(
    app: App, store: Queries, period: Period, filters: Filters, currency: str | None = None, limit: int = 10
) -> list[Order]:
    """The newest orders, of one currency or of all."""
    raise NotImplementedError
