"""The live view: every hit once, however late it appears; and what a test hit became."""

import base64
import itertools
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, quote
from uuid import UUID, uuid4

import pytest

from server.event_store import EventStore
from server.journal import hit_id
from tenants import event_ids
from tenants.apps import create_app
from tenants.errors import InvalidValue
from tenants.event_ids import Claim
from tenants.events import event_row, rejection_row
from tenants.hits import WARNING_ADVICE, WARNINGS, Category, Rejection, decode
from tenants.live import LiveHits, hits_with, newest, outcome_of_test
from tenants.reports.filters import filters_of
from tenants.tables import App, Tenant

NONCE = "k7dfh2_-9x"


class Site:
    """An app whose hits appear when a test says so."""

    def __init__(self, store: EventStore, app: App | None = None) -> None:
        self.app = app or App(id=uuid4(), tenant=1, name="Site", currency="USD")
        self.store = store
        self.now = int(time.time() * 1000)
        self._place = 0

    async def digest(self, *queries: str, ago: int = 0, category: Category = "event", visitor: int = 0) -> list[UUID]:
        """Hits that came `ago` ms ago appear; their ids."""
        rows: dict[str, list[Any]] = {"events": [], "rejections": []}
        ids: list[int] = []
        for query in queries:
            found = decode(category, query.encode(), "USD", privacy=False)
            self._place += 1
            at = self.now - ago
            ids.append(hit_id(self._place, 0, at))
            if isinstance(found, Rejection):
                rows["rejections"].append(rejection_row(found, self.app.id.int, at, ids[-1], category))
            else:
                rows["events"].append(
                    event_row(found, self.app.id.int, at, ids[-1], category, visitor, "", b"UA", b"", b"")
                )
        for table, those in rows.items():
            await self.store.insert(table, those, uuid4().hex)
        return [UUID(int=number) for number in ids]

    async def newest(self, **options: Any) -> LiveHits:
        return await newest(self.app, self.store, **options)


@pytest.fixture
def site(event_store: EventStore) -> Site:
    return Site(event_store)


def tokens(found: LiveHits) -> list[str]:
    return [hit.event_token for hit in found.hits]


async def test_a_hit_shows_decoded_beside_its_query(site: Site) -> None:
    visitor = uuid4()
    query = 'event_token=buy&amount=2500&event_id=o-1&params={"email":"Ann@x.org","plan":"pro","_x":1}'
    (named,) = await site.digest(query, category="revenue", visitor=visitor.int)
    (hit,) = (await site.newest()).hits
    assert (hit.id, hit.kind, hit.category, hit.event_token) == (named, "recorded", "revenue", "buy")
    assert (hit.amount, hit.currency, hit.event_id, hit.params) == (2500, "USD", "o-1", '{"plan":"pro"}')
    assert (hit.email, hit.uuid, hit.fbid, hit.person_id, hit.visitor_id) == ("ann@x.org", None, None, visitor, visitor)
    assert hit.received_at == datetime.fromtimestamp(site.now // 1000, UTC) + timedelta(milliseconds=site.now % 1000)
    assert (hit.query, hit.reason, hit.detail) == (query, None, None)
    assert hit.warnings == ("ignored_fields",)
    assert hit.advice == [WARNING_ADVICE["ignored_fields"]]


async def test_a_rejection_shows_its_reason_and_what_to_change(site: Site) -> None:
    await site.digest("event_token=buy", category="revenue")
    (hit,) = (await site.newest()).hits
    assert (hit.kind, hit.category, hit.reason, hit.query) == (
        "rejected",
        "revenue",
        "missing_amount",
        "event_token=buy",
    )
    assert hit.advice == [hit.detail]
    assert (hit.amount, hit.currency, hit.person_id, hit.params) == (None, None, None, "{}")


async def test_events_and_rejections_come_together_newest_first(site: Site) -> None:
    first = await site.digest("event_token=a", ago=3)
    second = await site.digest("nothing", ago=2)
    third = await site.digest("event_token=b", ago=1)
    found = await site.newest()
    assert [hit.id for hit in found.hits] == third + second + first
    found = await site.newest(limit=2)
    assert ([hit.id for hit in found.hits], found.more) == (third + second, True)
    assert not (await site.newest(limit=3)).more


async def test_nobody_sees_another_apps_hits(site: Site, event_store: EventStore) -> None:
    other = Site(event_store)
    await other.digest("event_token=theirs", f"event_token=theirs&cb={NONCE}", "theirs")
    assert (await site.newest()).hits == []
    theirs = await other.newest()
    assert len(theirs.hits) == 3
    assert (await site.newest(after=theirs.cursor)).hits == []
    assert await hits_with(site.app, event_store, NONCE) == []


async def test_who_asks_again_and_again_sees_each_hit_once(site: Site) -> None:
    found = await site.newest()
    seen: list[UUID] = []
    expected: list[UUID] = []
    # Some appear after hits that came later than they did.
    for ago in (30_000, 20_000, 25_000, 25_000, 20_000, 0, 59_000, 0, 1):
        expected += await site.digest("event_token=a", "rejected", "event_token=b", ago=ago)
        found = await site.newest(after=found.cursor)
        assert len(found.hits) == 3
        seen += [hit.id for hit in found.hits]
        assert (await site.newest(after=found.cursor)).hits == []
    assert sorted(seen) == sorted(expected)


async def test_hits_that_waited_for_the_store_are_not_missed(site: Site) -> None:
    await site.digest("event_token=before", ago=7_200_000)
    found = await site.newest()
    for _ in range(3):
        found = await site.newest(after=found.cursor)
        assert not found.hits
    await site.digest("event_token=after", ago=3_600_000)
    assert tokens(await site.newest(after=found.cursor)) == ["after"]


async def test_a_clock_that_is_ahead_hides_nobodys_hits(site: Site) -> None:
    await site.digest("event_token=tomorrow", ago=-86_400_000 * 60)
    found = await site.newest()
    await site.digest("event_token=today")
    found = await site.newest(after=found.cursor)
    assert tokens(found) == ["today"]
    assert tokens(await site.newest(after=found.cursor)) == []


async def test_of_a_flood_the_newest_are_shown_and_none_twice(site: Site) -> None:
    cursor = (await site.newest()).cursor
    seen: list[UUID] = []
    for round_ in range(4):
        ids: list[UUID] = []
        for ago in range(80):
            ids += await site.digest(*["event_token=a"] * 2, ago=4_000 - 1_000 * round_ - ago)
        found = await site.newest(after=cursor, limit=60)
        assert found.more
        assert {hit.id for hit in found.hits} <= set(ids)
        assert len(found.hits) == 60
        assert len(found.cursor) < 1_500
        seen += [hit.id for hit in found.hits]
        cursor = found.cursor
    assert len(set(seen)) == 240
    again = await site.newest(after=cursor, limit=60)
    assert again.hits == []


async def test_more_than_a_cursor_carries_are_not_shown_twice(site: Site) -> None:
    cursor = (await site.newest()).cursor
    for _ in range(6):
        await site.digest(*["event_token=a"] * 50)
        found = await site.newest(after=cursor, limit=200)
        cursor = found.cursor
    assert [hit.id for hit in (await site.newest(after=cursor)).hits] == []


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"kind": "recorded"}, ["Ännchen", "buy", "signup"]),
        ({"kind": "rejected"}, ["", ""]),
        ({"filters": "category=revenue"}, ["", "buy"]),
        ({"filters": "category!=revenue", "kind": "rejected"}, [""]),
        ({"filters": "event_token=signup"}, ["signup"]),
        ({"filters": "event_token=signup&event_token=buy"}, ["buy", "signup"]),
        ({"filters": "event_token!=signup"}, ["Ännchen", "buy"]),
        ({"filters": "event_token=signup&category=revenue"}, []),
        ({"filters": "event_token=signup", "kind": "rejected"}, []),
        ({"filters": "params.plan=pro"}, ["buy"]),
        ({"filters": "params.plan=pro&currency=EUR"}, []),
        ({"filters": "params.plan=pro", "text": "ann@x"}, ["buy"]),
        ({"text": "utm_x"}, ["", "signup"]),
        ({"text": "UTM_X", "kind": "recorded"}, ["signup"]),
        ({"text": "PRO"}, ["buy"]),
        ({"text": "ann@x"}, ["buy"]),
        ({"text": "änn"}, ["Ännchen"]),
        ({"text": "%' OR 1=1 --\\"}, []),
    ],
)
async def test_filters(site: Site, filters: dict[str, Any], expected: list[str]) -> None:
    await site.digest("event_token=signup&utm_x=1", ago=5)
    # In Base64: {"plan":"pro","email":"ann@x.org"}
    values = "eyJwbGFuIjoicHJvIiwiZW1haWwiOiJhbm5AeC5vcmcifQ"
    await site.digest(f"event_token=buy&amount=1&params={values}", ago=4, category="revenue")
    await site.digest("event_token=&UTM_X", ago=3)
    await site.digest("event_token=buy", ago=2, category="revenue")
    await site.digest("event_token=Ännchen", ago=1)
    asked = filters | {"filters": filters_of(parse_qsl(filters.get("filters", "")))}
    found = await site.newest(**asked)
    assert tokens(found) == expected
    assert tokens(await site.newest(after=found.cursor, **asked)) == []
    await site.digest("event_token=signup&utm_x=1")
    wanted = filters.get("kind") != "rejected" and filters.get("text", "utm_x") in ("utm_x", "UTM_X")
    wanted = wanted and filters.get("filters", "event_token=signup") in (
        "event_token=signup",
        "event_token=signup&event_token=buy",
    )
    assert tokens(await site.newest(after=found.cursor, **asked)) == (["signup"] if wanted else [])


async def test_values_are_found_by_what_json_escapes(site: Site) -> None:
    values = base64.b64encode(rb'{"size": "18\" \\ 20\"\u2028"}').decode()
    await site.digest(f"event_token=buy&params={quote(values)}")
    for text, masked in itertools.product(('18" \\ 20"', "\u2028", '"size":"18'), (False, True)):
        assert tokens(await site.newest(text=text, masked=masked)) == ["buy"]


@pytest.mark.parametrize("cursor", ["x", "!!!!", "AAAA", "A" * 9, "A" * 5_000, "é", "' OR 1"])
async def test_a_made_up_cursor_is_refused(site: Site, cursor: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        await site.newest(after=cursor)
    assert refused.value.field == "after"


@pytest.mark.parametrize("cursor", ["A" * 8, "_" * 8, "_" * 22])
async def test_a_cursor_of_any_time_does_no_harm(site: Site, cursor: str) -> None:
    await site.digest("event_token=a")
    assert len((await site.newest(after=cursor)).hits) <= 1


def test_every_warning_says_what_to_change() -> None:
    assert list(WARNING_ADVICE) == list(WARNINGS)
    assert all(advice.endswith(".") for advice in WARNING_ADVICE.values())


# Test hits


async def test_a_test_hit_is_found_by_its_number(site: Site) -> None:
    await site.digest("event_token=a&cb=other", f"event_token=a&cb={NONCE}x", f"event_token=a&xcb={NONCE}")
    assert await hits_with(site.app, site.store, NONCE) == []
    (named,) = await site.digest(f"event_token=a&cb={NONCE}&x=1")
    assert [hit.id for hit in await hits_with(site.app, site.store, NONCE)] == [named]
    for nonce in ("", "a", "%", f"{NONCE}&", NONCE * 9, "é" * 9):
        assert await hits_with(site.app, site.store, nonce) == []


@pytest.fixture
async def shop(alice: Tenant, event_store: EventStore) -> Site:
    return Site(event_store, (await create_app(alice, "Shop"))[0])


async def became(shop: Site, event_id: str | None = None, sent_ago: int = 0) -> tuple[str, str | None]:
    sent_at = datetime.fromtimestamp((shop.now - sent_ago) / 1000, UTC)
    outcome = await outcome_of_test(shop.app, shop.store, NONCE, event_id, "event", sent_at)
    return outcome.result, outcome.hit and outcome.hit.reason


async def count_duplicate(shop: Site) -> None:
    row = (shop.app.id.int, shop.now // 60_000 * 60, 0, 0, 1, 0)
    await shop.store.insert("traffic", [row], uuid4().hex)


async def test_what_a_test_hit_became(shop: Site) -> None:
    assert await became(shop) == ("waiting", None)
    await shop.digest(f"cb={NONCE}")
    assert await became(shop) == ("rejected", "missing_event_token")


async def test_a_test_hit_with_an_event_id_is_recorded_once(shop: Site) -> None:
    async def claim(named: UUID, at: int) -> set[bytes]:
        return await event_ids.claim([Claim(shop.app.id, "event", "o-1", named.bytes, at)])

    (first,) = await shop.digest("event_token=a&event_id=o-1", ago=90_000)
    await claim(first, shop.now - 90_000)
    # Owned by another; but nothing says yet that the test hit was digested.
    assert await became(shop, "o-1") == ("waiting", None)
    await count_duplicate(shop)
    assert await became(shop, " o-1 ") == ("duplicate", None)
    assert await became(shop, "o-2") == ("waiting", None)
    assert await became(shop) == ("waiting", None)
    # The owner came after it was sent: it is the test hit itself, of which the row is not visible yet.
    assert await became(shop, "o-1", sent_ago=90_001) == ("waiting", None)
    await shop.digest(f"event_token=a&event_id=o-1&cb={NONCE}", ago=90_000)
    assert await became(shop, "o-1", sent_ago=90_001) == ("recorded", None)
