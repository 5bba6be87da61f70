"""How much there was: events, persons, and hits that did not become events."""

import msgspec

from tenants.events import Queries
from tenants.reports.compared import Compared
from tenants.reports.filters import Filters
from tenants.reports.period import Period
from tenants.tables import App


class Totals(msgspec.Struct, frozen=True):
    """`persons` are those told apart; a hit without any identifier counts as event only. The last three know no filters."""

    events: Compared
    persons: Compared
    rejected: Compared
    duplicates: Compared
    limited: Compared


async def totals(app: App, store: Queries, period: Period, filters: Filters) -> Totals:
    """What happened in the period and in the one before."""
    raise NotImplementedError
