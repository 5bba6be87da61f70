"""Which event tokens there were."""

import msgspec

from tenants.events import Queries
from tenants.reports.compared import Compared
from tenants.reports.filters import Filters
from tenants.reports.period import Period
from tenants.tables import App


class Token(msgspec.Struct, frozen=True):
    """`share` is of all events of the period, 0 to 1."""

    event_token: str
    events: Compared
    persons: int
    share: float


class Tokens(msgspec.Struct, frozen=True):
    """Those with most events first; `more` is how many others there are."""

    tokens: list[Token]
    more: int


async def tokens(app: App, store: Queries, period: Period, filters: Filters, limit: int = 50) -> Tokens:
    """The event tokens of the period, each with its count in the period before."""
    raise NotImplementedError
