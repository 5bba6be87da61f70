"""Which fields of `params`, and which properties of persons, there are to break down by."""

import asyncio
import contextlib

import msgspec

from tenants.errors import InvalidValue
from tenants.events import Queries
from tenants.reports.filters import Filters, field_of
from tenants.reports.period import Period
from tenants.reports.sql import ONE_APP, in_order, rows_of, share_of
from tenants.tables import App

# Of the newest events: reading the names of all fields means reading all values.
_LOOKED_AT = 10_000
# Names are as good as anybody's to make up, 255 an event.
_FIELDS = 500


class Field(msgspec.Struct, frozen=True):
    """`field` as reports take it (`params.address.city`); `share` of the events looked at that have it, 0 to 1."""

    field: str
    share: float


class Fields(msgspec.Struct, frozen=True):
    """Those that most events have first, 500 at most. `looked_at` events were asked: the newest 10,000.

    `properties` are those of persons (`person.plan`), that most people have first, 500 at most.
    """

    fields: list[Field]
    looked_at: int
    properties: list[str]


async def fields(app: App, store: Queries, period: Period, filters: Filters) -> Fields:
    """The fields that the newest events of the period have."""
    where, parameters = filters.sql()
    properties = properties_of_people(app, store)
    of_events = store.query(
        # An event without fields is looked at, too: it has the one named ''.
        f"SELECT arrayJoin(arrayConcat([''], JSONAllPaths(params))) AS path, count() AS events "
        f"FROM (SELECT params {rows_of(period.start, period.end)}{where} "
        f"ORDER BY received_at DESC LIMIT {_LOOKED_AT}) GROUP BY path "
        f"ORDER BY events DESC, {in_order('path')} LIMIT {_FIELDS + 1}",
        {"app": str(app.id), **parameters},
        app.tenant,
    )
    found, persons = await asyncio.gather(of_events, properties)
    looked_at = next((row["events"] for row in found if not row["path"]), 0)
    listed: list[Field] = []
    for row in found:
        try:
            name = field_of(f"params.{row['path']}") if row["path"] else None
        except InvalidValue:
            continue  # too long to be asked for
        if name:
            listed.append(Field(name, share_of(row["events"], looked_at)))
    return Fields(listed, looked_at, persons)


async def properties_of_people(app: App, store: Queries) -> list[str]:
    """The properties that any of the app's people have, those of most people first."""
    found = await store.query(
        f"SELECT field FROM person_properties WHERE {ONE_APP} GROUP BY field "
        f"ORDER BY count() DESC, {in_order('field')} LIMIT {_FIELDS}",
        {"app": str(app.id)},
        app.tenant,
    )
    listed: list[str] = []
    for row in found:
        with contextlib.suppress(InvalidValue):  # too long to be asked for
            listed.append(field_of(f"person.{row['field']}"))
    return listed
