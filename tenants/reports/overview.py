"""All apps of a tenant at a glance: today, and the last two weeks."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from tenants.events import Queries
from tenants.tables import App, Tenant

DAYS = 14


class Glance(msgspec.Struct, frozen=True):
    """Today's numbers in the app's time zone; `days` are the events of the last 14 days, today last.

    `net` is minor units by currency.
    """

    events: int
    persons: int
    net: dict[str, int]
    days: list[int]


async def overview(tenant: Tenant, apps: Sequence[App], store: Queries, now: datetime) -> dict[UUID, Glance]:
    """One for each of the tenant's apps, by id."""
    raise NotImplementedError
