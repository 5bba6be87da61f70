"""Which fields of `params` there are to break down by."""

import msgspec

from tenants.events import Queries
from tenants.reports.filters import Filters
from tenants.reports.period import Period
from tenants.tables import App


class Field(msgspec.Struct, frozen=True):
    """`field` as reports take it (`params.address.city`); `share` of the events looked at that have it, 0 to 1."""

    field: str
    share: float


class Fields(msgspec.Struct, frozen=True):
    """Those that most events have first. `looked_at` events were asked: the newest ones."""

    fields: list[Field]
    looked_at: int


async def fields(app: App, store: Queries, period: Period, filters: Filters) -> Fields:
    """The fields that the newest events of the period have."""
    raise NotImplementedError
