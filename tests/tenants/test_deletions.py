"""A deleted person is gone from every store, and comes back from nowhere; nobody else loses anything."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportPrivateUsage=false

import asyncio
import base64
import contextlib
import contextvars
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import msgspec
import pytest

from server.event_store import EventStore
from server.journal import hit_id
from tenants import access_tokens, deletions, people
from tenants.access_tokens import WaitingToken
from tenants.apps import change_app, create_app, delete_app
from tenants.deletions import (
    delete_person,
    find_person,
    list_deletions,
    mentions,
    unscoped_expire_people,
    unscoped_last_deletions,
    unscoped_newest_pending,
    unscoped_work_off,
)
from tenants.erasures import Store, unscoped_erase_apps, unscoped_expire
from tenants.errors import NotFound, Unavailable
from tenants.events import NOBODY, event_row, rejection_row
from tenants.forgotten import ForgottenKeys, unscoped_forgotten, unscoped_purge_forgotten
from tenants.hits import Event, Rejection, decode, identifiers_in
from tenants.identifiers import known, owner_of
from tenants.identities import Sighting
from tenants.people import identify
from tenants.secrets import SecretKey
from tenants.tables import (
    AccessToken,
    App,
    Deletion,
    Forgotten,
    IdentifiedBatch,
    Identifier,
    IdentityClock,
    IdentitySection,
    Person,
    Reattribution,
    Tenant,
    TokenSender,
    Visitor,
    transaction,
)

NOW = int(time.time() * 1000)
ANN, BOB = "ann@example.org", "bob@example.org"
BASE64 = "eyJlbWFpbCI6ICJhbm5AZXhhbXBsZS5vcmcifQ=="  # {"email": "ann@example.org"}
MENTIONS = [
    'params={"email":"ann@example.org"}',
    'params={"email":"ANN@Example.org"}',
    "params=%7B%22email%22%3A%22ann%40example.org%22%7D",
    "params=%257B%2522email%2522%253A%2522ann%2540example.org%2522%257D",
    f"params={BASE64}",
    f"params={quote(BASE64)}",
    "params=" + "eyJhIjoxLCJlbWFpbCI6ImFubkBleGFtcGxlLm9yZyJ9",
    "params=" + "eyJhYiI6MSwiZW1haWwiOiJhbm5AZXhhbXBsZS5vcmcifQ",
    "mail=ann@example.org",
]


class Hits:
    """An app's hits, digested one by one. They come a second apart, the first a minute ago."""

    def __init__(self, app: App, store: EventStore) -> None:
        self.app = app
        self.store = store
        self.at = NOW - 60_000

    async def __call__(
        self, cookie: UUID | None = None, rejected: bool = False, query: str = "", **params: Any
    ) -> UUID:
        """A hit with these values; returns the person's id, or the hit's if it is rejected."""
        self.at += 1_000
        named = hit_id(int.from_bytes(uuid4().bytes[:8], "big"), 0, self.at)
        sent = query or f"event_token={'' if rejected else 'e'}&params={quote(msgspec.json.encode(params).decode())}"
        found = decode("event", sent.encode(), "USD", privacy=False)
        app, visitor = self.app.id.int, cookie.int if cookie else 0
        if isinstance(found, Rejection):
            await self.store.insert("rejections", [rejection_row(found, app, self.at, named, "event")], uuid4().hex)
            return UUID(int=named)
        row = event_row(found, app, self.at, named, "event", visitor, "", b"", b"", b"")
        told = found.uuid, found.email, found.fbid
        sighting = Sighting(
            named.to_bytes(16, "big"), self.at, self.app.id.bytes, visitor.to_bytes(16, "big"), False, *told
        )
        (person,) = await identify([sighting], "journal", uuid4().hex, False, self.at)
        if person:
            row = (*row[:-2], int.from_bytes(person, "big"), True)
        await self.store.insert("events", [row], uuid4().hex)
        if rows := await people.unscoped_untold():
            await self.store.insert("person_aliases", rows, uuid4().hex)
            await people.told(rows)
        return UUID(int=row[-2])

    async def count(self, table: str, condition: str = "1") -> int:
        rows = await self.store.query(
            f"SELECT count() AS n FROM {table} WHERE app_id = {{app:UUID}} AND {condition}", {"app": str(self.app.id)}
        )
        return rows[0]["n"]


@pytest.fixture
async def shop(alice: Tenant, event_store: EventStore) -> Hits:
    return Hits((await create_app(alice, "Shop"))[0], event_store)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    end = time.monotonic() + 60
    while not await condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def work_off(store: EventStore, minutes: float = 0) -> int:
    now = datetime.now(UTC) + timedelta(minutes=minutes)
    return await unscoped_work_off(store, now, now)


async def removed(shop: Hits, deletion: Deletion, minutes: float = 0) -> Deletion:
    """The receipt, once nothing is left in the event store (whose files the engine keeps for a while)."""

    async def is_gone() -> bool:
        await work_off(shop.store, minutes)
        (found,) = await Deletion.objects().where(Deletion.id == deletion.id)
        return not found.work or msgspec.msgpack.decode(found.work, type=deletions._Work).gone_at is not None

    await until(is_gone)
    return await Deletion.objects().get(Deletion.id == deletion.id) or deletion


async def test_everything_of_a_person_goes_and_nobody_elses(shop: Hits, bob: Tenant) -> None:
    theirs, others = uuid4(), uuid4()
    elsewhere = Hits((await create_app(bob, "Shop"))[0], shop.store)
    await shop(theirs)
    ann = await shop(theirs, email=ANN, plan="pro")
    await shop(theirs, uuid="7", plan="free")
    await shop(uuid4(), email=ANN, fbid="12345")
    kept = [await shop(others, email=BOB, plan="pro"), await shop(uuid4()), await elsewhere(theirs, email=ANN)]
    assert ann == theirs
    deletion = await delete_person(shop.app, ann, "Alice", datetime.now(UTC))
    # At once
    assert await owner_of(shop.app, email=ANN) is None
    assert await known(shop.app, [ann]) == {}
    with pytest.raises(NotFound):
        await find_person(shop.app, shop.store, str(uuid4()))
    # Soon
    receipt = await removed(shop, deletion)
    assert (receipt.persons, receipt.identifiers, receipt.visitors) == (2, 3, 2)
    assert (receipt.events, receipt.properties, receipt.rejections) == (4, 1, 0)
    assert await shop.count("events") == 2
    assert await shop.count("person_properties") == 1
    assert await elsewhere.count("events") == await elsewhere.count("events", f"email = '{ANN}'") == 1
    assert await owner_of(shop.app, email=BOB) == kept[0]
    assert await owner_of(elsewhere.app, email=ANN) == kept[2]
    assert {row.key[:16] for row in await Visitor.objects()} == {shop.app.id.bytes, elsewhere.app.id.bytes}
    assert await IdentitySection.exists().where(IdentitySection.app == shop.app.id.bytes) is False


async def test_all_who_were_merged_into_a_person_go_too(shop: Hits) -> None:
    first, second = uuid4(), uuid4()
    await shop(first, uuid="1", a=1)
    await shop(second, email=ANN, b=2)
    await shop(uuid4(), uuid="1", email=ANN)
    person = await owner_of(shop.app, email=ANN)
    assert person is not None
    assert person in (first, second)
    assert await shop.count("person_aliases") > 0
    # By the id of the one that was merged, too.
    gone = second if person == first else first
    assert await find_person(shop.app, shop.store, str(gone)) == person
    receipt = await removed(shop, await delete_person(shop.app, person, "Alice", datetime.now(UTC)))
    assert receipt.persons >= 2
    for table in ("events", "person_aliases", "person_properties"):
        assert await shop.count(table) == 0
    prefix = shop.app.id.bytes
    assert [row.key for table in (Person, Identifier, Visitor) for row in await table.objects()
            if row.key.startswith(prefix)] == []  # fmt: skip


async def test_who_comes_back_with_their_cookie_and_logs_in_as_somebody_is_them(shop: Hits) -> None:
    """What is left of who they were is looked for under that cookie, again and again for minutes."""
    cookie = uuid4()
    assert await shop(cookie, email=ANN) == cookie
    deletion = await delete_person(shop.app, cookie, "Alice", datetime.now(UTC))
    shop.at = int(deletion.requested_at.timestamp() * 1000)
    await shop(cookie)
    bob = await shop(uuid4(), email=BOB)
    assert await shop(cookie, email=BOB) == bob
    await removed(shop, deletion)
    assert await shop.count("events") == 3
    assert await shop.count("person_aliases", f"alias = '{cookie}' AND person = '{bob}'") == 1


async def test_a_receipt_has_nothing_of_the_person_when_it_is_done(shop: Hits, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = await shop(uuid4(), email=ANN)
    deletion = await delete_person(shop.app, ann, "Alice", datetime.now(UTC))
    assert await unscoped_newest_pending() == deletion.requested_at

    async def no_old_parts(*_: object) -> bool:
        return False

    with monkeypatch.context() as patched:
        patched.setattr(deletions, "_old_parts", no_old_parts)

        async def nobody() -> bool:
            # A hit that came before may still be on its way.
            before = deletion.requested_at - timedelta(seconds=1)
            assert await unscoped_work_off(shop.store, before, datetime.now(UTC)) == 0
            return not await shop.count("events")

        await until(nobody)
        await nobody()
    await removed(shop, deletion)
    # The engine still has the files.
    assert await work_off(shop.store) == 0
    monkeypatch.setattr(deletions, "_old_parts", no_old_parts)
    assert await work_off(shop.store) == 1
    assert await work_off(shop.store) == 0
    assert await unscoped_newest_pending() is None
    (row,) = await Deletion.select(*Deletion.all_columns(), exclude_secrets=False)
    assert row["work"] is None
    assert row["done_at"] is not None
    shown = repr(row)
    assert ANN not in shown
    assert ann.hex not in shown.replace("-", "")
    assert [each.id for each in await list_deletions(shop.app)] == [deletion.id]


async def test_what_a_batch_under_way_stores_goes_as_well(shop: Hits) -> None:
    cookie = uuid4()
    ann = await shop(cookie, email=ANN)
    deletion = await delete_person(shop.app, ann, "Alice", datetime.now(UTC))
    await removed(shop, deletion)
    found = decode("event", b"event_token=late", "USD", privacy=False)
    assert isinstance(found, Event)
    row = event_row(found, shop.app.id.int, NOW - 30_000, uuid4().int, "event", cookie.int, "", b"", b"", b"")
    await shop.store.insert("events", [(*row[:-2], ann.int, True)], uuid4().hex)
    assert await work_off(shop.store, 99) == 0

    async def is_gone() -> bool:
        return await shop.count("events") == 0

    await until(is_gone)


async def test_the_browser_goes_on_as_somebody_new(shop: Hits) -> None:
    cookie = uuid4()
    assert await shop(cookie, email=ANN, plan="pro") == cookie
    now = datetime.now(UTC)
    deletion = await delete_person(shop.app, cookie, "Alice", now)
    shop.at = int(now.timestamp() * 1000)
    # Anonymous, under the same cookie; and whoever has the address then has no past.
    assert await shop(cookie) == cookie
    assert await shop.count("events", "NOT identified") == 1
    assert await shop(cookie, email=ANN, plan="free") == cookie
    await removed(shop, deletion)
    assert await shop.count("events") == 2
    assert [row["value"] for row in await shop.store.query(
        "SELECT value FROM person_properties FINAL WHERE app_id = {app:UUID}", {"app": str(shop.app.id)}
    )] == ['"free"']  # fmt: skip
    # And they can be deleted again.
    again = await removed(shop, await delete_person(shop.app, cookie, "Alice", now + timedelta(seconds=9)), minutes=1)
    assert again.events == 2
    assert await shop.count("events") == 0


async def test_hits_that_came_before_bring_nobody_back(shop: Hits) -> None:
    cookie = uuid4()
    ann = await shop(cookie, email=ANN, uuid="7")
    deletion = await delete_person(shop.app, ann, "Alice", datetime.now(UTC))
    before = int(deletion.requested_at.timestamp() * 1000)
    late = before - 1
    for visitor, told in (
        (None, {"email": ANN}),
        (None, {"uuid": "7"}),
        (cookie.bytes, dict[str, str]()),
        (uuid4().bytes, {"email": ANN, "uuid": "8"}),
    ):
        for at, forgotten in ((late, True), (before, False)):
            keys = await unscoped_forgotten(at)
            assert keys.covers(shop.app.id.bytes, at, visitor, **told) == forgotten, told
    before_that = await Identifier.count()
    hit = Sighting(uuid4().bytes, late, shop.app.id.bytes, cookie.bytes, False, None, ANN)
    assert await identify([hit], "journal", "late", False, before) == [b""]
    assert await Identifier.count() == before_that
    assert not await unscoped_forgotten(before)
    assert await unscoped_last_deletions(late) == {shop.app.id.bytes: before}


async def test_what_comes_while_a_deletion_waits_for_a_digest_is_from_before_it(shop: Hits) -> None:
    ann = await shop(uuid4(), email=ANN)
    asked_at = datetime.now(UTC)
    async with transaction():
        await deletions._lock_clock(shop.app.id)
        # A context of its own: not in this transaction.
        deleting = asyncio.create_task(delete_person(shop.app, ann, "Alice", asked_at), context=contextvars.Context())
        await asyncio.sleep(0.3)
        assert not deleting.done()
    assert (await deleting).requested_at > asked_at + timedelta(seconds=0.2)


async def test_another_apps_hits_are_not_forgotten(shop: Hits, bob: Tenant) -> None:
    other, _ = await create_app(bob, "Shop")
    ann = await shop(uuid4(), email=ANN)
    await delete_person(shop.app, ann, "Alice", datetime.now(UTC))
    keys = await unscoped_forgotten(0)
    assert keys.covers(shop.app.id.bytes, NOW - 1, None, email=ANN)
    assert not keys.covers(other.id.bytes, NOW - 1, None, email=ANN)
    assert not ForgottenKeys({})


async def test_a_shared_browser_is_the_later_logins(shop: Hits) -> None:
    cookie = uuid4()
    ann = await shop(cookie, email=ANN)
    bob = await shop(cookie, email=BOB)
    await shop(cookie)
    await removed(shop, await delete_person(shop.app, ann, "Alice", datetime.now(UTC)))
    assert ann == cookie != bob
    assert await shop.count("events") == 2
    keys = await unscoped_forgotten(0)
    assert not keys.covers(shop.app.id.bytes, NOW - 1, cookie.bytes)
    # Known by their address still.
    assert await shop(cookie) == bob


async def test_the_next_login_of_a_shared_browser_is_not_its_first_ones(shop: Hits) -> None:
    """Whoever is named after the cookie stays who they are when its later owner is deleted."""
    cookie = uuid4()
    ann = await shop(cookie, email=ANN)
    bob = await shop(cookie, email=BOB)
    await removed(shop, await delete_person(shop.app, bob, "Alice", datetime.now(UTC)))
    shop.at = int(time.time() * 1000) + 1_000
    carl = await shop(cookie, email="carl@example.org")
    assert len({ann, bob, carl}) == 3
    assert await owner_of(shop.app, email=ANN) == ann
    assert await owner_of(shop.app, email="carl@example.org") == carl
    assert await shop(cookie) == carl
    assert await shop(uuid4(), email=ANN) == ann


async def test_who_goes_on_with_a_shared_browser_is_not_its_first_one(shop: Hits) -> None:
    """The person who is named after the cookie gets nothing of what comes after its later owner."""
    cookie = uuid4()
    ann = await shop(cookie, email=ANN)
    bob = await shop(cookie, email=BOB)
    assert ann == cookie
    await removed(shop, await delete_person(shop.app, bob, "Alice", datetime.now(UTC)))
    shop.at = int(time.time() * 1000) + 1_000
    visitor = await shop(cookie)
    assert visitor not in (ann, bob)
    assert await shop(cookie) == visitor
    assert await known(shop.app, [visitor]) == {}
    assert await shop(cookie, email="carl@example.org") == visitor, "what a visitor did before signing up is theirs"
    assert await shop(cookie) == visitor == await owner_of(shop.app, email="carl@example.org")
    assert await shop(uuid4(), email=ANN) == ann
    later = datetime.now(UTC) + timedelta(minutes=1)
    await removed(shop, await delete_person(shop.app, visitor, "Alice", later), minutes=2)
    assert await shop.count("events", f"person_id = '{ann}'") == await shop.count("events") == 2


async def test_what_others_sent_with_an_address_that_ends_alike_stays(shop: Hits) -> None:
    ann = await shop(uuid4(), email=ANN)
    theirs = [await shop(uuid4(), email=f"{name}{ANN}{more}") for name, more in (("jo", ""), ("x.", ""), ("", ".au"))]
    mentioned = await shop(uuid4(), note=f"met {ANN}, twice")
    await removed(shop, await delete_person(shop.app, ann, "Alice", datetime.now(UTC)))
    rows = await shop.store.query(
        "SELECT person_id AS person, email, query FROM events WHERE app_id = {app:UUID} ORDER BY received_at",
        {"app": str(shop.app.id)},
    )
    assert [row["person"] for row in rows] == [*theirs, mentioned]
    assert [row["email"] for row in rows] == [f"jo{ANN}", f"x.{ANN}", f"{ANN}.au", ""]
    assert [bool(row["query"]) for row in rows] == [True, True, True, False]


async def test_somebody_with_many_addresses_goes_altogether(shop: Hits) -> None:
    addresses = [f"ann.{number}@example.org" for number in range(45)]
    person = NOBODY
    for address in addresses:
        person = await shop(uuid4(), uuid="1", email=address)
    for address in (addresses[0], addresses[25], addresses[44]):
        await shop(rejected=True, query=f"event_token=&note={address}")
    kept = await shop(rejected=True, query="event_token=&note=joann.0@example.org")
    await removed(shop, await delete_person(shop.app, person, "Alice", datetime.now(UTC)))
    rows = await shop.store.query("SELECT id FROM rejections WHERE app_id = {app:UUID}", {"app": str(shop.app.id)})
    assert [row["id"] for row in rows] == [kept]


async def test_a_deletion_that_fails_holds_up_no_other(shop: Hits, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, bob = await shop(uuid4(), email=ANN), await shop(uuid4(), email=BOB)
    receipts = [await delete_person(shop.app, each, "Alice", datetime.now(UTC)) for each in (ann, bob)]
    forget = access_tokens.forget

    async def failing(*args: Any, **known: Any) -> int:
        if known["emails"] == [ANN]:
            raise RuntimeError("of ann")
        return await forget(*args, **known)

    monkeypatch.setattr(access_tokens, "forget", failing)

    async def gone() -> bool:
        with pytest.raises(RuntimeError, match="of ann"):
            await work_off(shop.store, 20)
        return await shop.count("events") == 1

    await until(gone)
    assert receipts[0].id != receipts[1].id
    monkeypatch.undo()
    await removed(shop, receipts[0])


@pytest.mark.parametrize(
    ("query", "found"),
    [
        *((query, True) for query in MENTIONS),
        ("mail=joann@example.org", False),
        ("mail=ann@example.org.au", False),
        ("mail=ann@example.orga", False),
        ("mail=x.ann%40example.org", False),
        ("params=" + base64.b64encode(b'{"to": "joann@example.org"}').decode(), False),
        ("to=%22ann%40example.org%22.", True),
        ("to=ann@example.org.", True),
        ("", False),
        ("A" * 10_001, False),
    ],
)
def test_which_queries_have_an_address(query: str, found: bool) -> None:
    assert mentions(query, ["zoe@example.org", ANN]) is found


async def test_events_of_others_that_were_sent_with_the_address_lose_it(shop: Hits) -> None:
    ann = await shop(uuid4(), email=ANN, uuid="1")
    # The customer's own id is stronger: this is another person's, and the address stays ann's.
    other = await shop(uuid4(), email=ANN, uuid="2")
    assert other != ann
    await removed(shop, await delete_person(shop.app, ann, "Alice", datetime.now(UTC)))
    rows = await shop.store.query(
        "SELECT person_id, email, uuid, query FROM events WHERE app_id = {app:UUID}", {"app": str(shop.app.id)}
    )
    assert [tuple(row.values()) for row in rows] == [(other, "", "2", "")]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_rejected_hits_with_the_address_go(shop: Hits) -> None:
    ann = await shop(uuid4(), email=ANN)
    for query in MENTIONS:
        await shop(rejected=True, query=query)
    kept = [
        await shop(rejected=True, query=query) for query in ("", "params=%7B%22email%22%3A%22joann%40example.com%22")
    ]
    receipt = await removed(shop, await delete_person(shop.app, ann, "Alice", datetime.now(UTC)))
    rows = await shop.store.query("SELECT id FROM rejections WHERE app_id = {app:UUID}", {"app": str(shop.app.id)})
    assert {row["id"] for row in rows} == set(kept)
    assert receipt.rejections == len(MENTIONS)


def test_identifiers_are_found_in_hits_that_are_rejected() -> None:
    for query in MENTIONS[:-1]:
        assert identifiers_in(query.encode())[0] == ANN, query
    assert identifiers_in(b"event_token=&params=x") == (None, None, None)
    assert identifiers_in(b"params=" + b"a" * 9_000) == (None, None, None)


async def test_an_event_that_is_somebody_elses_after_all_stays(shop: Hits) -> None:
    cookie, other = uuid4(), uuid4()
    ann = await shop(cookie, email=ANN, plan="pro")
    await shop(other, uuid="b", plan="basic")
    bob = await shop(other, uuid="b", email=BOB, plan="start")
    rows = await shop.store.query("SELECT id, email FROM events WHERE app_id = {app:UUID}", {"app": str(shop.app.id)})
    of = {row["email"]: row["id"] for row in rows}
    app = shop.app.id.bytes
    await Reattribution.insert(
        Reattribution(hit_id=of[ANN].bytes, received_at=NOW, was=app + ann.bytes, person=app + bob.bytes, since=NOW),
        Reattribution(hit_id=of[BOB].bytes, received_at=NOW, was=app + bob.bytes, person=app + ann.bytes, since=NOW),
    )
    await removed(shop, await delete_person(shop.app, ann, "Alice", datetime.now(UTC)))
    rows = await shop.store.query("SELECT id, email FROM events WHERE app_id = {app:UUID}", {"app": str(shop.app.id)})
    # It is to become bob's, but it was sent with ann's address.
    assert {row["id"]: row["email"] for row in rows} == {of[ANN]: "", of[""]: ""}
    assert [row.hit_id for row in await Reattribution.objects()] == [of[ANN].bytes]
    # Nor does bob keep what ann's event brought him; what it had replaced is his again.
    rows = await shop.store.query(
        "SELECT person_id, value FROM person_properties FINAL WHERE app_id = {app:UUID}", {"app": str(shop.app.id)}
    )
    assert [(row["person_id"], row["value"]) for row in rows] == [(bob, '"basic"')]


async def test_an_anonymous_visitor_can_be_deleted(shop: Hits) -> None:
    cookie = uuid4()
    await shop(cookie)
    await shop(uuid4())
    assert await find_person(shop.app, shop.store, str(cookie)) == cookie
    receipt = await removed(shop, await delete_person(shop.app, cookie, "Alice", datetime.now(UTC)))
    assert (receipt.persons, receipt.identifiers, receipt.events) == (1, 0, 1)
    assert await shop.count("events") == 1
    for other in (str(cookie), cookie.hex, "{" + str(cookie) + "}", str(UUID(int=0)), "x", ""):
        with pytest.raises(NotFound):
            await find_person(shop.app, shop.store, other)


async def test_an_access_token_that_waits_goes_at_once(shop: Hits) -> None:
    """Of an anonymous visitor, too, and of nobody else, whoever has the browser now."""
    key, cookie, other = SecretKey("a secret of at least 32 characters", "facebook"), uuid4(), uuid4()
    await shop(cookie)
    await shop(other)
    for token, visitor, person in (("T", cookie, b""), ("U", other, b""), ("V", cookie, b"bob".ljust(16, b"-"))):
        entry = WaitingToken(shop.app.id, token, uuid4().bytes, NOW, visitor.bytes, person=person)
        await access_tokens.keep(key, [entry], NOW)
    deleted = await delete_person(shop.app, cookie, "Alice", datetime.now(UTC))
    assert sorted(await senders()) == sorted([other.bytes, b"bob".ljust(16, b"-")])
    assert await AccessToken.count() == 2
    await removed(shop, deleted)
    assert len(await senders()) == 2


async def senders() -> list[bytes]:
    return [row["person"] for row in await TokenSender.select(TokenSender.person)]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_killed_while_removing_the_receipt_counts_once(
    shop: Hits, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    cookie = uuid4()
    await shop(cookie)
    ann = await shop(cookie, email=ANN, plan="pro")
    await shop(rejected=True, email=ANN)
    deletion = await delete_person(shop.app, ann, "Alice", datetime.now(UTC))
    change = shop.store.change
    left = 0

    async def dying(sql: str, *more: Any) -> None:
        nonlocal left
        left -= 1
        if not left and when == "before":
            raise RuntimeError("killed")
        await change(sql, *more)
        if not left:
            raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(shop.store, "change", dying)
        for left in range(1, 4):  # noqa: B007 (counted down by what is patched)
            with contextlib.suppress(RuntimeError):
                await work_off(shop.store)
    receipt = await removed(shop, deletion)
    assert (receipt.events, receipt.properties, receipt.rejections) == (2, 1, 1)


async def test_killed_in_each_of_two_months_the_receipt_counts_both_and_what_is_stored_late(
    shop: Hits, monkeypatch: pytest.MonkeyPatch
) -> None:
    cookie, month = uuid4(), 40 * 86_400_000
    shop.at -= month
    await shop(cookie, email=ANN)
    shop.at += month
    await shop(cookie)
    deletion = await delete_person(shop.app, cookie, "Alice", datetime.now(UTC))
    change = shop.store.change

    async def dying(sql: str, *more: Any) -> None:
        await change(sql, *more)
        raise RuntimeError("killed")

    for left in (1, 0):
        with monkeypatch.context() as patched:
            patched.setattr(shop.store, "change", dying)
            with pytest.raises(RuntimeError):
                await work_off(shop.store)
        assert await shop.count("events") == left
    await work_off(shop.store)
    await shop(cookie)
    assert (await removed(shop, deletion)).events == 3


async def test_apps_take_turns_with_their_deletions(shop: Hits, bob: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of one app keep another's one waiting for a round at most; of one app those not begun come first."""
    monkeypatch.setattr(deletions, "_AT_ONCE", 2)
    elsewhere = Hits((await create_app(bob, "Shop"))[0], shop.store)
    for _ in range(5):
        await delete_person(shop.app, await shop(uuid4()), "Alice", datetime.now(UTC))
    theirs = await elsewhere(uuid4())
    await delete_person(elsewhere.app, theirs, "Bob", datetime.now(UTC))

    async def left() -> tuple[int, int]:
        return await shop.count("events"), await elsewhere.count("events")

    await work_off(shop.store)

    async def one_each() -> bool:
        return await left() == (4, 0)

    await until(one_each)
    for _ in range(4):
        await work_off(shop.store)

    async def all_of_them() -> bool:
        return await left() == (0, 0)

    await until(all_of_them)


async def test_of_a_deleted_app_nobody_is_deleted_and_no_receipt_stays(shop: Hits) -> None:
    ann = await shop(uuid4(), email=ANN)
    await delete_person(shop.app, ann, "Alice", datetime.now(UTC))
    app = App(id=shop.app.id, tenant=shop.app.tenant, name="Shop")
    await shop(uuid4(), email=BOB)
    await delete_app(shop.app)
    with pytest.raises(NotFound):
        await delete_person(app, ann, "Alice", datetime.now(UTC))
    await unscoped_erase_apps(shop.store, datetime.now(UTC))
    assert await unscoped_newest_pending() is None
    assert [await table.count() for table in (Person, Identifier, Visitor, IdentityClock, Deletion)] == [0] * 5


async def test_what_was_forgotten_is_forgotten_after_90_days(shop: Hits) -> None:
    now = datetime.now(UTC)
    ann, bob = await shop(uuid4(), email=ANN), await shop(uuid4(), email=BOB)
    await delete_person(shop.app, ann, "Alice", now - timedelta(days=90, seconds=1))
    await delete_person(shop.app, bob, "Alice", now - timedelta(days=89))
    assert await Forgotten.count() == 4
    await unscoped_purge_forgotten(now)
    assert await Forgotten.count() == 2


async def test_who_turned_out_to_be_somebody_else_meanwhile_is_deleted_as_who_they_are(shop: Hits) -> None:
    """Between the page that asks to be sure and the deletion, a digest may merge them."""
    first, second = await shop(uuid4(), email=ANN), await shop(uuid4(), uuid="1")
    await shop(uuid4(), uuid="1", email=ANN)
    root = await owner_of(shop.app, email=ANN)
    deletion = await delete_person(shop.app, second if root == first else first, "Alice", datetime.now(UTC))
    assert deletion.persons == 3  # the browser that told, too
    assert await owner_of(shop.app, email=ANN) is None
    assert await owner_of(shop.app, uuid="1") is None
    assert not await Person.exists().where(
        Person.key >= shop.app.id.bytes, Person.key < (shop.app.id.int + 1).to_bytes(16)
    )


async def test_what_was_deleted_by_a_clock_that_was_ahead_is_forgotten_until_now_only(shop: Hits) -> None:
    del shop
    now = datetime.now(UTC)
    now_ms = int(now.timestamp() * 1000)
    rows = {b"ahead": now_ms + 3_600_000, b"before": now_ms - 1_000, b"long ago": now_ms - 91 * 86_400_000}
    await Forgotten.insert(*(Forgotten(key=key, before=before) for key, before in rows.items()))
    await unscoped_purge_forgotten(now)
    found = {row["key"]: row["before"] for row in await Forgotten.select() if row["key"] in rows}
    assert found == {b"ahead": now_ms, b"before": now_ms - 1_000}


async def test_a_deletion_by_a_clock_that_was_ahead_ends_and_takes_nothing_that_comes_later(shop: Hits) -> None:
    cookie = uuid4()
    ann = await shop(cookie, email=ANN)
    deletion = await delete_person(shop.app, ann, "alice", datetime.now(UTC) + timedelta(days=400))
    await unscoped_purge_forgotten(datetime.now(UTC))
    receipt = await removed(shop, deletion)
    assert receipt.requested_at <= datetime.now(UTC)
    assert await shop.count("events") == 0
    shop.at = int(time.time() * 1000)
    assert await shop(cookie) == cookie
    await work_off(shop.store, 1)
    await asyncio.sleep(0.5)
    assert await shop.count("events") == 1


async def test_the_order_of_hits_of_a_quiet_app_is_forgotten(shop: Hits) -> None:
    await shop(uuid4(), email=ANN)
    mine = IdentitySection.app == shop.app.id.bytes
    now = datetime.fromtimestamp(shop.at / 1000, UTC)
    await people.unscoped_forget_sections(now + timedelta(hours=47))
    assert await IdentitySection.exists().where(mine)
    await people.unscoped_forget_sections(now + timedelta(hours=49))
    assert not await IdentitySection.exists().where(mine)


async def test_what_became_of_a_strangers_token_goes_with_their_events(
    shop: Hits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "_PEOPLE_AT_ONCE", 2)
    known_one = await shop(uuid4(), email=ANN)
    version = shop.at * 1_048_576
    rows = [
        (shop.app.id.int, "facebook_state", each.int, '"expired"', shop.at, version)
        for each in (*(uuid4() for _ in range(5)), known_one)
    ]
    await shop.store.insert("person_properties", rows, uuid4().hex)
    await change_app(shop.app, retention_days=30)
    await unscoped_expire_people(shop.store, datetime.now(UTC))

    async def is_gone() -> bool:
        found = await shop.store.query(
            "SELECT DISTINCT person_id AS id FROM person_properties "
            "WHERE app_id = {app:UUID} AND field = 'facebook_state'",
            {"app": str(shop.app.id)},
        )
        return [row["id"] for row in found] == [known_one]

    await until(is_gone)


async def test_an_app_whose_people_cannot_be_looked_for_holds_up_no_other(
    shop: Hits, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[UUID] = []

    async def broken(store: Store, app_id: UUID, now: datetime, before: datetime) -> int:
        asked.append(app_id)
        if len(asked) == 1:
            raise Unavailable("too much for one query")
        return 2

    monkeypatch.setattr(deletions, "_expire_app", broken)
    tenant = await Tenant.objects().get(Tenant.id == shop.app.tenant)
    assert tenant is not None
    other, _ = await create_app(tenant, "Another shop")
    for app in (shop.app, other):
        await change_app(app, retention_days=30)
    with pytest.raises(Unavailable):
        await unscoped_expire_people(shop.store, datetime.now(UTC))
    assert sorted(asked) == sorted((shop.app.id, other.id))


async def test_people_go_when_no_event_of_theirs_is_left(shop: Hits) -> None:
    day = timedelta(days=1)
    now = datetime.now(UTC)
    shop.at = NOW - 40 * 86_400_000
    first, second = uuid4(), uuid4()
    old = await shop(first, email=ANN, plan="pro")
    await shop(second, uuid="1")
    await shop(uuid4(), uuid="1", email=ANN)
    returning = uuid4()
    kept = await shop(returning, email=BOB, plan="free")
    shop.at = NOW - 86_400_000
    await shop(returning)
    under_way = await shop(uuid4(), email="carol@example.org")
    # Not of apps that keep them for ever.
    assert await unscoped_expire_people(shop.store, now + 900 * day) == 0
    await change_app(shop.app, retention_days=30)
    assert await unscoped_expire_people(shop.store, now) == 0
    await unscoped_expire(shop.store, now)

    async def is_gone() -> bool:
        return await shop.count("events") == 2

    await until(is_gone)
    assert await unscoped_expire_people(shop.store, now) == 1
    assert await owner_of(shop.app, email=ANN) is None
    assert await owner_of(shop.app, email=BOB) == kept
    assert await owner_of(shop.app, email="carol@example.org") == under_way

    async def are_gone() -> bool:
        return (await shop.count("person_properties"), await shop.count("person_aliases")) == (1, 0)

    await until(are_gone)
    assert old in (first, second)
    # Whose newest event may not be stored yet is left alone.
    await unscoped_expire(shop.store, now + 40 * day)

    async def none_is_left() -> bool:
        return await shop.count("events") == 0

    await until(none_is_left)
    last = int((now + 39 * day).timestamp() * 1000)
    await IdentifiedBatch.update({IdentifiedBatch.identified_at: last}, force=True)
    assert await unscoped_expire_people(shop.store, now + 40 * day) == 1
    assert await owner_of(shop.app, email=BOB) is None
    assert await owner_of(shop.app, email="carol@example.org") == under_way
    # A batch stays written down until its machine's next one; by then it is stored.
    assert await unscoped_expire_people(shop.store, now + 42 * day) == 1
    assert await owner_of(shop.app, email="carol@example.org") is None


@pytest.mark.parametrize("by", ["token", "event"])
async def test_who_is_heard_of_while_they_expire_keeps_what_is_theirs(
    shop: Hits, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """A token says that somebody else is them, of which no event is to be seen; or they came back."""
    now, theirs, cookie = datetime.now(UTC), uuid4(), uuid4()
    shop.at = NOW - 40 * 86_400_000
    ann = await shop(theirs, email=ANN, fbid="7")
    shop.at = NOW - 60_000
    young = await shop(cookie, uuid="1")
    await change_app(shop.app, retention_days=30)
    await unscoped_expire(shop.store, now)

    async def is_gone() -> bool:
        return await shop.count("events") == 1

    await until(is_gone)
    asked = deletions._with_events

    async def meanwhile(*arguments: Any) -> set[bytes]:
        found = await asked(*arguments)
        monkeypatch.setattr(deletions, "_with_events", asked)
        if by == "token":
            app, hit = shop.app.id.bytes, uuid4().bytes
            told = Sighting(hit, shop.at, app, cookie.bytes, uuid="1", fbid="7", of=young.bytes)
            assert await people.learn(told, NOW) == ann
        else:
            await shop(theirs)
            await shop(cookie)  # in the machine's next batch: of the one before nothing is written down
        return found

    monkeypatch.setattr(deletions, "_with_events", meanwhile)
    assert await unscoped_expire_people(shop.store, now) == 0
    assert await owner_of(shop.app, email=ANN) == ann
    assert (await owner_of(shop.app, uuid="1") == ann) == (by == "token")
    assert await unscoped_expire_people(shop.store, now) == 0


async def test_people_of_another_app_are_not_expired(shop: Hits, bob: Tenant) -> None:
    """The persons of all apps stand in one order, and have no events in the app that is looked at."""
    other, _ = await create_app(bob, "Shop")
    low, high = sorted((shop.app, other), key=lambda app: app.id.bytes)
    shop.app, shop.at = high, NOW - 40 * 86_400_000
    kept = await shop(uuid4(), email=ANN)
    await change_app(low, retention_days=30)
    assert await unscoped_expire_people(shop.store, datetime.now(UTC)) == 0
    assert await owner_of(high, email=ANN) == kept


async def test_those_who_ask_not_to_be_tracked_are_no_person_to_delete(shop: Hits) -> None:
    found = decode("event", b"event_token=e", "USD", privacy=True)
    assert isinstance(found, Event)
    row = event_row(found, shop.app.id.int, NOW - 60_000, uuid4().int, "event", 0, "", b"", b"", b"")
    await shop.store.insert("events", [row], uuid4().hex)
    assert await shop.count("events", f"person_id = '{NOBODY}'") == 1
    with pytest.raises(NotFound):
        await find_person(shop.app, shop.store, str(NOBODY))
