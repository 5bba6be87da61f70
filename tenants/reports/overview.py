"""All apps of a tenant at a glance: today, and the last two weeks."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from tenants.events import Queries
from tenants.reports.period import start_of_day
from tenants.reports.sql import bucket, persons_if, starts_of, within
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
    # A day is another time in another zone; nearly always there is one.
    zones: dict[str, list[App]] = {}
    for app in apps:
        if app.tenant == tenant.id:
            zones.setdefault(app.timezone, []).append(app)
    glances: dict[UUID, Glance] = {}
    # One zone after the other: all at once could be more than a tenant may ask for.
    for zone, group in zones.items():
        glances |= await _in_zone(zone, group, tenant, store, now)
    return glances


async def _in_zone(timezone: str, apps: list[App], tenant: Tenant, store: Queries, now: datetime) -> dict[UUID, Glance]:
    zone = ZoneInfo(timezone)
    today = now.astimezone(zone).date()
    days = [start_of_day(today - timedelta(days=back), zone) for back in reversed(range(DAYS))]
    starts = starts_of(days)
    parameters = {"apps": [str(app.id) for app in apps], "starts": starts}
    of_tenant = "app_id IN {apps:Array(UUID)}"
    mine = f"WHERE {of_tenant} AND"
    persons_now = persons_if("1", of_tenant)
    # Times are full seconds: this one counts, too.
    before, since = within(days[0], days[-1], "traffic"), within(days[-1], now + timedelta(seconds=1))
    counts, details, amounts = await asyncio.gather(
        store.query(
            f"SELECT app_id, {bucket('minute')} AS at, sum(recorded) AS events FROM traffic {mine} {before} "
            "GROUP BY app_id, at",
            parameters,
            tenant.id,
        ),
        store.query(
            f"SELECT app_id, count() AS events, {persons_now} AS persons FROM events {mine} {since} GROUP BY app_id",
            parameters,
            tenant.id,
        ),
        store.query(
            f"SELECT app_id, currency, sum(amount) AS net FROM events {mine} {since} "
            "AND category = 'revenue' GROUP BY app_id, currency ORDER BY currency",
            parameters,
            tenant.id,
        ),
    )
    place = {start: number for number, start in enumerate(starts)}
    lines = {app.id: [0] * DAYS for app in apps}
    for row in counts:
        lines[row["app_id"]][place[row["at"]]] = row["events"]
    nets: dict[UUID, dict[str, int]] = {app.id: {} for app in apps}
    for row in amounts:
        nets[row["app_id"]][row["currency"]] = row["net"]
    persons = {app.id: 0 for app in apps}
    for row in details:
        lines[row["app_id"]][-1] = row["events"]
        persons[row["app_id"]] = row["persons"]
    return {app.id: Glance(lines[app.id][-1], persons[app.id], nets[app.id], lines[app.id]) for app in apps}
