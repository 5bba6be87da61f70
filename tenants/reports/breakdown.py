"""The values of one field: how many events, persons and how much revenue each has."""

import msgspec

from tenants.events import Queries
from tenants.reports.filters import Filters
from tenants.reports.period import Period
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
    raise NotImplementedError
