"""One person of an app: what is known of them and what they brought."""

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from tenants.errors import NotFound
from tenants.events import NOBODY, Queries
from tenants.identifiers import Known, known, survivors
from tenants.reports.money import divided
from tenants.reports.people import Property, properties
from tenants.reports.sql import ONE_APP
from tenants.tables import App


class Lifetime(msgspec.Struct, frozen=True):
    """What somebody brought in one currency, ever; as in `revenue`. `average_order` is gross by orders."""

    currency: str
    gross: int
    refunded: int
    net: int
    orders: int
    average_order: int


class Person(msgspec.Struct, frozen=True):
    """`known` is None for an anonymous visitor. `ids` are all that their events may have, the own one first.

    Of an anonymous visitor the only property is what became of an access token.

    Without events, which go after a time, there is no `first_seen` and `last_seen`.
    """

    id: UUID
    known: Known | None
    ids: list[UUID]
    first_seen: datetime | None
    last_seen: datetime | None
    events: int
    lifetime: list[Lifetime]
    properties: list[Property]


def person_id_of(text: str) -> UUID:
    """The person's id in an address. Raises NotFound for what is none."""
    try:
        id = UUID(text)
    except ValueError:
        raise NotFound from None
    # Python reads braces and missing hyphens too; a person has one address.
    if str(id) != text:
        raise NotFound
    return id


async def person(app: App, store: Queries, id: UUID) -> Person:
    """The person with this id, or the one whom they turned out to be. Raises NotFound when there is neither."""
    (survivor,) = (await survivors(app, [id])).values()
    of = (await known(app, [survivor])).get(survivor)
    ids = [survivor, *(of.merged if of else [])]
    values, (seen, lifetime) = await asyncio.gather(properties(app, store, {survivor: ids}), _events(app, store, ids))
    if id == NOBODY or (of is None and seen is None):
        raise NotFound
    first, last, events = seen or (None, None, 0)
    return Person(survivor, of, ids, first, last, events, lifetime, values.get(survivor, []))


async def _events(
    app: App, store: Queries, ids: list[UUID]
) -> tuple[tuple[datetime, datetime, int] | None, list[Lifetime]]:
    rows = await store.query(
        "SELECT currency, toUnixTimestamp64Milli(min(received_at)) AS first, "
        "toUnixTimestamp64Milli(max(received_at)) AS last, count() AS events, "
        "sumIf(amount, amount > 0) AS gross, -sumIf(amount, amount < 0) AS refunded, sum(amount) AS net, "
        f"countIf(amount > 0) AS orders FROM events WHERE {ONE_APP} AND person_id IN {{persons:Array(UUID)}} "
        "GROUP BY currency ORDER BY orders DESC, currency",
        {"app": str(app.id), "persons": [str(id) for id in ids]},
        app.tenant,
    )
    if not rows:
        return None, []
    first, last = min(row["first"] for row in rows), max(row["last"] for row in rows)
    lifetime = [
        Lifetime(
            row["currency"],
            row["gross"],
            row["refunded"],
            row["net"],
            row["orders"],
            divided(row["gross"], row["orders"]),
        )
        for row in rows
        if row["currency"]
    ]
    events = sum(row["events"] for row in rows)
    return (datetime.fromtimestamp(first / 1000, UTC), datetime.fromtimestamp(last / 1000, UTC), events), lifetime
