"""An app whose hits are stored as the digest stores them."""

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

import msgspec

from server.event_store import EventStore
from tenants.events import event_row, rejection_row
from tenants.hits import Category, Rejection, decode
from tenants.identifiers import EMAIL_KIND, FBID_KIND, UUID_KIND, identifier_key, person_key
from tenants.reports.period import Period, period_of
from tenants.tables import App, Identifier, Person

NOW = datetime.now(UTC)


class Shop:
    """An app; what it was sent is stored when `store` is called."""

    def __init__(self, event_store: EventStore, timezone: str) -> None:
        self.app = App(id=uuid4(), tenant=1, name="Shop", currency="EUR", timezone=timezone)
        self.events = event_store
        self._rows: dict[str, list[Any]] = {"events": [], "rejections": [], "traffic": []}

    def hit(
        self,
        event_token: str = "view",
        at: datetime | None = None,
        *,
        person: UUID | None = None,
        visitor: UUID | None = None,
        identified: bool = False,
        params: dict[str, Any] | None = None,
        **query: Any,
    ) -> None:
        """One hit, a minute ago if no time is given; of category revenue where it has an `amount`.

        `identified`: something was known of the person, whose properties the values then are. The visitor's id is the
        person's if no other is given.
        """
        at = at or NOW - timedelta(minutes=1)
        category: Category = "revenue" if "amount" in query else "event"
        sent = {"event_token": event_token, "params": msgspec.json.encode(params or {}), **query}
        found = decode(category, urlencode(sent).encode(), "EUR", privacy=False)
        milliseconds, hit_id = int(at.timestamp() * 1000), int.from_bytes(secrets.token_bytes(16), "big")
        if isinstance(found, Rejection):
            row = rejection_row(found, self.app.id.int, milliseconds, hit_id, category)
            self._rows["rejections"].append(row)
            return
        whose, cookie = (each.int if each else 0 for each in (person, visitor or person))
        row = event_row(found, self.app.id.int, milliseconds, hit_id, category, cookie, "", b"", b"", b"")
        self._rows["events"].append((*row[:-2], whose, identified))

    async def know(self, person: UUID, *, email: str = "", uuid: str = "", fbid: str = "") -> None:
        """What the control database has of somebody known."""
        given = ((UUID_KIND, uuid), (EMAIL_KIND, email), (FBID_KIND, fbid))
        keys = [identifier_key(self.app.id, kind, value) for kind, value in given if value]
        key = person_key(self.app.id, person)
        await Person(key=key, size=len(keys), known_at=int(NOW.timestamp() * 1000)).save()
        for each in keys:
            await Identifier(key=each, person=key).save()

    async def merge(self, alias: UUID, person: UUID) -> None:
        """One person turned out to be another; the events are not rewritten yet."""
        await self.merge_events(alias, person)
        key = person_key(self.app.id, alias)
        if (
            not await Person.update({Person.merged_into: person_key(self.app.id, person)})
            .where(Person.key == key)
            .returning(Person.key)
        ):
            await Person(key=key, merged_into=person_key(self.app.id, person)).save()

    async def merge_events(self, alias: UUID, person: UUID) -> None:
        """As the event store hears of it."""
        await self.events.change(
            "INSERT INTO person_aliases VALUES ({app:UUID}, {alias:UUID}, {person:UUID}, 1)",
            {"app": str(self.app.id), "alias": str(alias), "person": str(person)},
        )

    def traffic(self, at: datetime, *counts: int) -> None:
        """Recorded, rejected, duplicate, limited hits of a minute."""
        self._rows["traffic"].append((self.app.id.int, at.replace(second=0, microsecond=0), *counts))

    async def store(self) -> None:
        for table, rows in self._rows.items():
            await self.events.insert(table, rows, uuid4().hex)
            rows.clear()

    def period(self, **values: str) -> Period:
        return period_of(values, self.app.timezone, NOW)
