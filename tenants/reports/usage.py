"""How much of its limit a tenant uses."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from tenants.events import Queries
from tenants.reports.sql import seconds
from tenants.tables import App, Tenant

_MINUTE = 60


class Usage(msgspec.Struct, frozen=True):
    """`busiest` is the most hits a second that any minute had on average, limited ones not counted; 0 without hits."""

    busiest: float
    busiest_minute: datetime | None
    limited: int


async def usage(tenant: Tenant, apps: Sequence[App], store: Queries, now: datetime) -> tuple[Usage, Usage]:
    """Of the last hour and of the last 24 hours, over all the tenant's apps. Its limit is `tenant.rate`."""
    hour, day = (now - timedelta(hours=hours) for hours in (1, 24))
    rows = await store.query(
        "SELECT toUnixTimestamp(minute) AS at, sum(recorded + rejected + duplicate) AS admitted, "
        "sum(limited) AS beyond FROM traffic WHERE app_id IN {apps:Array(UUID)} "
        f"AND minute > toDateTime({seconds(day) - _MINUTE}) AND minute <= toDateTime({seconds(now)}) GROUP BY minute",
        {"apps": [str(app.id) for app in apps if app.tenant == tenant.id]},
        tenant.id,
    )
    minutes = [(row["admitted"], row["at"], row["beyond"]) for row in rows]
    recent = [minute for minute in minutes if minute[1] > seconds(hour) - _MINUTE]
    return _usage(recent), _usage(minutes)


def _usage(minutes: list[tuple[int, int, int]]) -> Usage:
    admitted, at, _ = max(minutes, default=(0, 0, 0))
    minute = datetime.fromtimestamp(at, UTC) if admitted else None
    return Usage(round(admitted / _MINUTE, 1), minute, sum(beyond for _, _, beyond in minutes))
