"""How much of its limit a tenant uses."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from tenants.events import Queries
from tenants.tables import App, Tenant


class Usage(msgspec.Struct, frozen=True):
    """`busiest` is the most hits a second that any minute had on average, limited ones not counted; 0 without hits."""

    busiest: float
    busiest_minute: datetime | None
    limited: int


async def usage(tenant: Tenant, apps: Sequence[App], store: Queries, now: datetime) -> tuple[Usage, Usage]:
    """Of the last hour and of the last 24 hours, over all the tenant's apps. Its limit is `tenant.rate`."""
    raise NotImplementedError
