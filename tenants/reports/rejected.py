"""Why hits were not recorded. Rejections are kept for 30 days."""

from datetime import datetime

import msgspec

from tenants.events import Queries
from tenants.reports.compared import Compared
from tenants.reports.period import Period
from tenants.tables import App


class Example(msgspec.Struct, frozen=True):
    """A rejected hit: `query` as sent, `detail` what to change."""

    id: str
    received_at: datetime
    category: str
    query: str
    detail: str


class Reason(msgspec.Struct, frozen=True):
    """How often hits were rejected for a reason of the protocol, and the newest of them."""

    reason: str
    hits: Compared
    examples: list[Example]


async def rejected(app: App, store: Queries, period: Period, examples: int = 3) -> list[Reason]:
    """The reasons, most frequent first."""
    raise NotImplementedError
