"""People of an app as the identification leaves them: rows of both databases."""

import time
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID, uuid4

from server.event_store import EventStore
from tenants.events import Row, event_row
from tenants.hits import Category, Event, decode
from tenants.identifiers import EMAIL_KIND, FBID_KIND, UUID_KIND, identifier_key, person_key
from tenants.snippets import encode_params
from tenants.tables import App, Identifier, Person


async def did(
    store: EventStore,
    app: App,
    person: UUID,
    *tokens: str,
    identified: bool = True,
    days_ago: int = 0,
    **values: object,
) -> None:
    """Events of a person with these values, the newest a few seconds ago, a second apart; `buy:2500` is revenue."""
    # Reports are about times until the second that is running.
    now = int(time.time() * 1000) - 3_000 - days_ago * 86_400_000
    rows: list[Row] = []
    for number, each in enumerate(reversed(tokens)):
        token, _, amount = each.partition(":")
        category: Category = "revenue" if amount else "event"
        sent = {"event_token": token, "params": encode_params(values, "url")} | ({"amount": amount} if amount else {})
        found = decode(category, urlencode(sent, quote_via=quote).encode(), app.currency, privacy=False)
        assert isinstance(found, Event)
        at = now - 1_000 * number
        row = event_row(found, app.id.int, at, uuid4().int, category, person.int, "192.0.2.0/24", b"", b"", b"")
        rows.append((*row[:-1], identified))
    await store.insert("events", rows, uuid4().hex)


async def know(app: App, person: UUID, *, email: str = "", uuid: str = "", fbid: str = "") -> None:
    """Identifiers that a person has; given again, one more."""
    key = person_key(app.id, person)
    if not await Person.exists().where(Person.key == key):
        await Person(key=key, size=1, known_at=int(time.time() * 1000)).save()
    for kind, value in ((UUID_KIND, uuid), (EMAIL_KIND, email), (FBID_KIND, fbid)):
        if value:
            await Identifier(key=identifier_key(app.id, kind, value), person=key).save()


async def merge(store: EventStore, app: App, alias: UUID, person: UUID) -> None:
    """Somebody turned out to be somebody else; the events are not rewritten yet."""
    await Person(key=person_key(app.id, alias), merged_into=person_key(app.id, person)).save()
    row: dict[str, Any] = {"app": str(app.id), "alias": str(alias), "person": str(person)}
    await store.change("INSERT INTO person_aliases VALUES ({app:UUID}, {alias:UUID}, {person:UUID}, 1)", row)
