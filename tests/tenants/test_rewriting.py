"""What was found out about persons is put into the event store for good, on the real engine."""

import asyncio
import json
import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from server.database import Database
from server.event_store import EventStore
from server.journal import hit_id
from tenants import rewriting
from tenants.events import Row, event_row
from tenants.hits import Event, decode
from tenants.identities import Sighting
from tenants.people import identify, learn, told, unscoped_untold
from tenants.person_exports import export_person
from tenants.reports.people import properties
from tenants.rewriting import (
    property_version,
    unscoped_collect,
    unscoped_put_right,
    unscoped_reattribute,
    unscoped_rewrite,
)
from tenants.tables import App, Person, Reattribution

NOW = int(time.time() * 1000)
A, B = uuid4().bytes, uuid4().bytes


def later(minutes: float) -> datetime:
    return datetime.now(UTC) + timedelta(minutes=minutes)


class Site:
    """An app whose hits are digested one by one."""

    def __init__(self, store: EventStore) -> None:
        self.store = store
        self.app = uuid4()
        self._count = 0
        self._seed = secrets.randbits(30)
        self._late: list[tuple[Row, str]] = []

    async def hit(
        self, visitor: bytes, params: str = "{}", at: int | None = None, new: bool = False, late: bool = False
    ) -> bytes:
        """Identify and store it, as the digest does; returns its id. What is late, `store_late` stores."""
        self._count += 1
        at = NOW + 10 * self._count if at is None else at
        named = hit_id(self._seed << 40, self._count, at)
        event = decode("event", f"event_token=e&params={params}".encode(), "USD", False)
        assert isinstance(event, Event)
        sighting = Sighting(
            named.to_bytes(16, "big"), at, self.app.bytes, visitor, new, event.uuid, event.email, event.fbid
        )
        (person,) = await identify([sighting], "journal", secrets.token_hex(8), False, int(time.time() * 1000))
        row = event_row(event, self.app.int, at, named, "event", int.from_bytes(visitor, "big"), "", b"", b"", b"")
        if person:
            row = (*row[:-2], int.from_bytes(person, "big"), True)
        if late:
            self._late.append((row, str(named)))
        else:
            await self.store.insert("events", [row], str(named))
        if aliases := await unscoped_untold():
            await self.store.insert("person_aliases", aliases, secrets.token_hex(8))
            await told(aliases)
        return sighting.hit_id

    async def store_late(self) -> None:
        for row, token in self._late:
            await self.store.insert("events", [row], token)

    async def persons(self) -> list[UUID]:
        """The person each stored event has, in the order they came."""
        rows = await self.store.query(
            "SELECT person_id AS person FROM events WHERE app_id = {app:UUID} ORDER BY received_at, id",
            {"app": str(self.app)},
        )
        return [row["person"] for row in rows]

    async def properties(self) -> dict[UUID, dict[str, str]]:
        """Of each person, as JSON text."""
        rows = await self.store.query(
            "SELECT person_id AS person, field, value FROM person_properties FINAL WHERE app_id = {app:UUID}",
            {"app": str(self.app)},
        )
        found: dict[UUID, dict[str, str]] = {}
        for row in rows:
            found.setdefault(row["person"], {})[row["field"]] = row["value"]
        return found

    async def aliases(self) -> int:
        rows = await self.store.query(
            "SELECT count() AS n FROM person_aliases FINAL WHERE app_id = {app:UUID}", {"app": str(self.app)}
        )
        return rows[0]["n"]

    async def to_do(self) -> int:
        """How many of the app's persons the event store has something to do about."""
        rows = await Person.select(Person.key).where(Person.todo > 0, Person.key >= self.app.bytes)
        return sum(row["key"][:16] == self.app.bytes for row in rows)


@pytest.fixture
def site(database: Database, event_store: EventStore) -> Site:
    del database
    return Site(event_store)


async def settled(site: Site) -> None:
    """Do it again until the store has done what was begun."""
    end = time.monotonic() + 30
    while await site.to_do() or await Reattribution.exists().where(Reattribution.person >= site.app.bytes):
        assert time.monotonic() < end
        await unscoped_collect(site.store, later(60))
        await unscoped_rewrite(site.store, later(60))
        await unscoped_reattribute(site.store, later(60))
        await asyncio.sleep(0.05)


async def test_what_a_visitor_did_before_is_collected(site: Site) -> None:
    await site.hit(A, '{"source":"ads","at":"2024-01-01T00:00:00Z","n":null}')
    await site.hit(A, '{"email":"ann@example.org","plan":"pro"}')
    ann = UUID(bytes=A)
    assert await site.properties() == {ann: {"plan": '"pro"'}}
    everything = {"plan": '"pro"', "source": '"ads"', "at": '"2024-01-01T00:00:00Z"', "n": "null"}
    # Who asks for the person is told at once.
    app = App(id=site.app, tenant=1, name="Site")
    for _ in range(2):
        shown = (await properties(app, site.store, {ann: [ann]}))[ann]
        assert {each.field: each.value for each in shown} == everything
        parts = [part async for part in await export_person(app, site.store, ann, later(0))]
        exported = {each["field"]: json.dumps(each["value"]) for each in json.loads(b"".join(parts))["properties"]}
        assert exported == everything
        await unscoped_collect(site.store, later(1))
    assert await site.properties() == {ann: everything}
    # Once more when it is settled, for batches that were stored late; then there is nothing left to do.
    assert await site.to_do() == 1
    await unscoped_collect(site.store, later(16))
    assert await site.to_do() == 0
    assert await site.properties() == {ann: everything}


async def test_what_was_found_out_while_a_clock_was_ahead_is_done_all_the_same(site: Site) -> None:
    await site.hit(A, '{"source":"ads"}')
    await site.hit(A, '{"email":"ann@example.org"}')
    await Person.update({Person.found_at: NOW + 400 * 86_400_000}).where(Person.key == site.app.bytes + A)
    await unscoped_collect(site.store, later(60))
    assert await site.properties() == {}
    await unscoped_put_right(later(0))
    await settled(site)
    assert await site.properties() == {UUID(bytes=A): {"source": '"ads"'}}


async def test_what_is_stored_late_is_collected_before_it_is_rewritten(site: Site) -> None:
    """The digest was killed between identifying and storing, and other machines went on."""
    await site.hit(A, '{"email":"ann@example.org","plan":"pro"}', new=True)
    await site.hit(B, '{"source":"ads"}', late=True)
    await site.hit(B, '{"email":"ann@example.org"}')
    await unscoped_collect(site.store, later(1))
    await unscoped_rewrite(site.store, later(6))
    await site.store_late()
    assert await unscoped_rewrite(site.store, later(11)) == 0
    assert UUID(bytes=B) in await site.persons()
    await settled(site)
    ann = UUID(bytes=A)
    assert await site.persons() == [ann] * 3
    assert await site.properties() == {ann: {"plan": '"pro"', "source": '"ads"'}}


async def test_the_newer_value_counts_however_late_it_is_collected(site: Site) -> None:
    await site.hit(A, '{"plan":"free","source":"ads"}')
    await site.hit(A, '{"email":"ann@example.org","plan":"pro"}')
    await unscoped_collect(site.store, later(1))
    assert (await site.properties())[UUID(bytes=A)]["plan"] == '"pro"'


async def test_events_of_merged_persons_become_the_survivors(site: Site) -> None:
    await site.hit(A, '{"email":"ann@example.org","plan":"pro"}', new=True)
    await site.hit(B, '{"source":"ads"}')
    await site.hit(B, '{"email":"ann@example.org"}')
    ann = UUID(bytes=A)
    assert await site.persons() == [ann, UUID(bytes=B), ann]
    assert await site.aliases() == 1
    # Not at once: it may be taken back, and others may join.
    assert await unscoped_rewrite(site.store, later(0)) == 0
    await settled(site)
    assert await site.persons() == [ann] * 3
    assert await site.properties() == {ann: {"plan": '"pro"', "source": '"ads"'}}
    assert await site.aliases() == 0


async def test_two_known_persons_become_one(site: Site) -> None:
    await site.hit(A, '{"email":"ann@example.org","plan":"free"}', new=True)
    await site.hit(B, '{"uuid":"1","plan":"pro"}', new=True)
    await site.hit(B, '{"uuid":"1","email":"ann@example.org"}')
    await settled(site)
    (person,) = set(await site.persons())
    assert await site.properties() == {person: {"plan": '"pro"'}}


async def test_nobody_is_done_with_before_their_last_batch_is_stored(site: Site) -> None:
    """What was identified as theirs may be stored after their other events moved, by a store that was away."""
    await site.hit(A, '{"email":"ann@example.org","plan":"free"}', new=True)
    await site.hit(B, '{"uuid":"1","source":"ads"}', new=True, late=True)
    await site.hit(B, '{"uuid":"1","email":"ann@example.org"}')
    for _ in range(3):
        assert await unscoped_rewrite(site.store, later(14)) == 0
    assert await site.to_do() == 1
    await site.store_late()
    await settled(site)
    assert len(set(await site.persons())) == 1
    assert await site.aliases() == 0


async def test_an_earlier_hit_makes_events_somebody_elses(site: Site) -> None:
    """Of two logins on one browser the first one was digested last."""
    await site.hit(A, '{"email":"ann@example.org"}', new=True)
    late = await site.hit(A, '{"page":"/","plan":"pro"}', at=NOW + 100)
    await site.hit(A, '{"email":"bob@example.org"}', at=NOW + 50)
    assert [row["hit_id"] for row in await Reattribution.select(Reattribution.hit_id)] == [late]
    ann = UUID(bytes=A)
    assert await site.persons() == [ann, (await site.persons())[1], ann]
    await settled(site)
    persons = await site.persons()
    assert persons[0] == ann
    assert persons[1] == persons[2] != ann
    assert await site.properties() == {persons[1]: {"page": '"/"', "plan": '"pro"'}}


async def test_whoever_becomes_known_by_what_was_found_out_is_known_to_the_store(site: Site) -> None:
    """As when Facebook tells whose an access token is that was all a hit had."""
    hit = await site.hit(A)
    other = await site.hit(A)

    async def identified() -> list[bool]:
        query = "SELECT identified FROM events WHERE app_id = {app:UUID} ORDER BY received_at, id"
        return [row["identified"] for row in await site.store.query(query, {"app": str(site.app)})]

    person = await learn(Sighting(hit, NOW + 1, site.app.bytes, A, fbid="99", of=A), NOW)
    assert person == UUID(bytes=A)
    assert await identified() == [False, False]
    await settled(site)
    assert await identified() == [True, False]
    assert await site.persons() == [person, person]
    # Told again, and of an event that told of somebody itself: nothing to do.
    await learn(Sighting(hit, NOW + 1, site.app.bytes, A, fbid="99", of=A), NOW)
    await learn(Sighting(other, NOW + 2, site.app.bytes, A, email="ann@example.org", fbid="99", of=A), NOW)
    await settled(site)
    assert await identified() == [True, False]


async def test_others_are_left_alone(site: Site, event_store: EventStore) -> None:
    other = Site(event_store)
    for each in (site, other):
        await each.hit(A, '{"email":"ann@example.org"}', new=True)
        await each.hit(B, '{"email":"ann@example.org","a":1}')
    before = await other.persons()
    await settled(site)
    await settled(other)
    assert await other.persons() == before
    assert len(set(await site.persons())) == 1


async def test_what_is_found_out_while_an_event_moves_is_not_forgotten(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    hit = await site.hit(A)
    app, at, third = site.app.bytes, int.from_bytes(hit[:6], "big"), uuid4().bytes
    await Reattribution(hit_id=hit, received_at=at, was=app + A, person=app + B, since=NOW).save()
    collect = rewriting._collect_again  # pyright: ignore[reportPrivateUsage]

    async def meanwhile(*arguments: Any) -> None:
        await collect(*arguments)
        if arguments[2]:
            await Reattribution.update({Reattribution.person: app + third, Reattribution.since: NOW + 1}).where(
                Reattribution.hit_id == hit
            )

    monkeypatch.setattr(rewriting, "_collect_again", meanwhile)
    end = time.monotonic() + 30
    while await site.persons() != [UUID(bytes=third)]:
        assert time.monotonic() < end
        await unscoped_reattribute(site.store, later(60))
        await asyncio.sleep(0.05)


async def test_what_facebook_told_stays_when_the_event_moves_that_brought_the_token(site: Site) -> None:
    hit = await site.hit(A, '{"plan":"pro"}')
    app, at, ann = site.app.bytes, int.from_bytes(hit[:6], "big"), UUID(bytes=A)
    row = (site.app.int, "facebook_name", ann.int, '"Ann"', at, property_version(hit))
    await site.store.insert("person_properties", [row], secrets.token_hex(8))
    # As when an anonymous visitor's token has told who they are.
    await Reattribution(hit_id=hit, received_at=at, was=app + A, person=app + A, since=NOW).save()
    await settled(site)
    assert await site.properties() == {ann: {"facebook_name": '"Ann"', "plan": '"pro"'}}


async def test_events_that_are_still_to_come_keep_no_others_waiting(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewriting, "_MOVED_AT_ONCE", 2)
    hit = await site.hit(A)
    app = site.app.bytes
    for missing in (bytes(15) + bytes([number]) for number in range(1, 6)):
        await Reattribution(hit_id=missing, received_at=NOW, was=app + A, person=app + A, since=NOW).save()
    await Reattribution(
        hit_id=hit, received_at=int.from_bytes(hit[:6], "big"), was=app + A, person=app + B, since=NOW
    ).save()
    end = time.monotonic() + 30
    while await Reattribution.exists().where(Reattribution.hit_id == hit):
        assert time.monotonic() < end
        await unscoped_reattribute(site.store, later(60))
        await asyncio.sleep(0.05)
    assert await site.persons() == [UUID(bytes=B)]
    assert await Reattribution.count().where(Reattribution.person == app + A) == 5
