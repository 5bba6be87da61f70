"""Access tokens against a Graph of our own, story by story: what it answers, and what becomes of token and person."""
# pyright: reportPrivateUsage=false

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
import structlog
from graph_stand_in import VERSION, Answer, GraphStandIn

from server import graph as graph_module
from server.event_store import EventStore, EventStoreUnavailable
from server.graph import Graph
from server.token_resolver import TokenResolver
from tenants import facebook
from tenants import people as people_module
from tenants.access_tokens import LEASE_MS, TOKEN_MS, WaitingToken, keep, retry_now, waiting
from tenants.apps import create_app, delete_app
from tenants.deletions import delete_person
from tenants.identifiers import known
from tenants.identities import Sighting
from tenants.secrets import SecretKey
from tenants.tables import AccessToken, App, Tenant, TokenSender

KEY = SecretKey("a secret of at least 32 characters", "facebook")
SECRET = "0123456789abcdef0123456789abcdef"
TOKEN = "EAABtoken1234567890"
NOW = 1_800_000_000_000
ANN, BOB = b"a" * 16, b"b" * 16
MINUTE, HOUR = 60_000, 3_600_000


class People:
    """people.learn, which tells what persons learn of; of hits that are `broken` it cannot."""

    def __init__(self) -> None:
        self.learnt: list[tuple[bytes, str | None, str | None]] = []
        self.broken: set[bytes] = set()
        self._learn = people_module.learn

    async def learn(self, hit: Sighting, now_ms: int) -> UUID | None:
        if hit.hit_id in self.broken:
            raise RuntimeError(f"{hit.email} {hit.fbid}")
        self.learnt.append((hit.visitor, hit.email, hit.fbid))
        return await self._learn(hit, now_ms)


@pytest.fixture
def graph() -> Iterator[GraphStandIn]:
    stand_in = GraphStandIn()
    yield stand_in
    stand_in.close()


@pytest.fixture(autouse=True)
def people(monkeypatch: pytest.MonkeyPatch) -> People:
    people = People()
    monkeypatch.setattr(people_module, "learn", people.learn)
    return people


@pytest.fixture
async def client(graph: GraphStandIn) -> AsyncIterator[Graph]:
    client = Graph(graph.url, VERSION)
    yield client
    await client.close()


@pytest.fixture
def resolver(event_store: EventStore, client: Graph, people: People) -> TokenResolver:
    return TokenResolver(event_store, client, KEY)


@pytest.fixture
async def shop(alice: Tenant) -> App:
    app = (await create_app(alice, "Shop"))[0]
    await facebook.connect(app, KEY, "4711", SECRET)
    return app


async def sent(app: App, token: str = TOKEN, hit: int = 1, visitor: bytes = ANN, at: int = NOW, **who: Any) -> None:
    await keep(KEY, [WaitingToken(app.id, token, hit.to_bytes(16), at, visitor, **who)], at)


async def settle(resolver: TokenResolver, now: int = NOW) -> None:
    """Work until there is nothing to do at this moment."""
    for _ in range(50):
        if not await resolver.work(now):
            return
    raise AssertionError("there is always something to do")


async def properties(store: EventStore, app: App, person: bytes = ANN) -> dict[str, Any]:
    rows = await store.query(
        "SELECT field, value FROM person_properties FINAL WHERE app_id = {app:UUID} AND person_id = {person:UUID}",
        {"app": str(app.id), "person": str(UUID(bytes=person))},
    )
    return {row["field"]: json.loads(row["value"]) for row in rows}


async def erased() -> bool:
    return not [row for row in await AccessToken.select() if row["sealed"] is not None]


async def due_in() -> int:
    """In how many ms the one waiting token is asked about again."""
    (row,) = [row for row in await AccessToken.select() if row["due_at"] is not None]
    return row["due_at"] - NOW


async def test_a_token_gives_its_user_and_the_person_learns_of_it(
    graph: GraphStandIn, resolver: TokenResolver, people: People, event_store: EventStore, shop: App
) -> None:
    graph.secret = SECRET
    graph.user(TOKEN, "123", name="Ann Exämple", email="ann@facebook.example")
    await sent(shop, email="ann@example.org")
    await settle(resolver)
    # The e-mail address that Facebook has is a property, never an identifier.
    assert people.learnt == [(ANN, "ann@example.org", "123")]
    assert await properties(event_store, shop) == {
        "facebook_state": "resolved",
        "facebook_name": "Ann Exämple",
        "facebook_email": "ann@facebook.example",
        "custom_audience_id": "XG4711-123",
    }
    assert await erased()
    assert [each.path for each in graph.asked] == [
        f"/{VERSION}/me",
        f"/{VERSION}/4711/custom_audience_third_party_id",
    ]


async def test_the_token_is_in_no_address(graph: GraphStandIn, resolver: TokenResolver, shop: App) -> None:
    graph.user(TOKEN, "123")
    await sent(shop)
    await settle(resolver)
    assert {each.token for each in graph.asked} == {TOKEN}
    assert TOKEN not in repr([(each.path, each.sent) for each in graph.asked])
    assert SECRET not in repr(graph.asked)


async def test_one_token_is_asked_about_once_however_often_it_is_sent(
    graph: GraphStandIn, resolver: TokenResolver, people: People, shop: App
) -> None:
    graph.user(TOKEN, "123")
    await sent(shop)
    await sent(shop, hit=2)
    await sent(shop, hit=3, visitor=BOB)
    await settle(resolver)
    await sent(shop, hit=4, visitor=BOB)
    await settle(resolver)
    assert graph.count("me") == graph.count("custom_audience_third_party_id") == 1
    # Everybody who sent it is the same user, and learns so once.
    assert people.learnt == [(ANN, None, "123"), (BOB, None, "123")]


async def test_visitors_with_one_user_are_one_person_for_the_event_store_too(
    graph: GraphStandIn, resolver: TokenResolver, event_store: EventStore, shop: App
) -> None:
    graph.user(TOKEN, "123")
    await sent(shop)
    await sent(shop, hit=2, visitor=BOB)
    await settle(resolver)
    aliases = await event_store.query(
        "SELECT alias, person FROM person_aliases FINAL WHERE app_id = {app:UUID}", {"app": str(shop.id)}
    )
    assert [(row["alias"].bytes, row["person"].bytes) for row in aliases] == [(BOB, ANN)]


async def test_apps_do_not_share_what_a_token_gave(
    graph: GraphStandIn, resolver: TokenResolver, shop: App, bob: Tenant
) -> None:
    other = (await create_app(bob, "Other"))[0]
    graph.user(TOKEN, "123")
    await sent(shop)
    await sent(other)
    await settle(resolver)
    assert graph.count("me") == 2


async def test_an_expired_token_is_given_up_and_the_person_says_so(
    graph: GraphStandIn, resolver: TokenResolver, people: People, event_store: EventStore, shop: App
) -> None:
    await sent(shop, fbid="99")
    graph.next("me", Answer(code=190))
    await settle(resolver)
    assert people.learnt == []
    assert await properties(event_store, shop) == {"facebook_state": "expired"}
    assert await erased()
    await sent(shop, hit=2, visitor=BOB)
    await settle(resolver, NOW + TOKEN_MS)
    assert graph.count("me") == 1
    assert await properties(event_store, shop, BOB) == {"facebook_state": "expired"}


@pytest.mark.parametrize("token", ["no token\r\nX-Evil: 1", "schlüssel", "\x7f", "🗝" * 100, "a b"])
async def test_what_is_no_token_is_given_up_without_asking(
    graph: GraphStandIn, resolver: TokenResolver, event_store: EventStore, shop: App, token: str
) -> None:
    await sent(shop, token)
    await settle(resolver)
    assert graph.asked == []
    assert await properties(event_store, shop) == {"facebook_state": "expired"}


@pytest.mark.parametrize("code", [17, 32, 613, 2])
async def test_a_limit_of_the_user_makes_that_token_wait(
    graph: GraphStandIn, resolver: TokenResolver, people: People, shop: App, code: int
) -> None:
    graph.user(TOKEN, "123")
    graph.user("EAABother", "124")
    graph.next("me", Answer(code=code))
    await sent(shop)
    await settle(resolver)
    await sent(shop, "EAABother", 2, BOB)
    await settle(resolver, NOW + 1)
    assert people.learnt == [(BOB, None, "124")]
    assert 30_000 <= await due_in() <= 45_000
    await settle(resolver, NOW + 29_000)
    assert graph.count("me", TOKEN) == 1
    await settle(resolver, NOW + 45_000)
    assert people.learnt == [(BOB, None, "124"), (ANN, None, "123")]
    assert await erased()


@pytest.mark.parametrize("code", [4, 80_003])
async def test_a_limit_of_the_app_makes_all_its_tokens_wait_and_no_other_apps(
    graph: GraphStandIn, resolver: TokenResolver, people: People, shop: App, bob: Tenant, code: int
) -> None:
    other = (await create_app(bob, "Other"))[0]
    graph.user(TOKEN, "123")
    graph.next("me", Answer(code=code))
    await sent(shop)
    await settle(resolver)
    until, shown = await facebook.graph_state(shop)
    assert (30_000 <= until - NOW <= 45_000, shown) == (True, code)
    for n in range(3):
        await sent(shop, f"EAABmore{n}", n + 2)
    await settle(resolver, NOW + 29_000)
    assert graph.count("me") == 1
    await sent(other, visitor=BOB)
    await settle(resolver, NOW + 29_000)
    assert people.learnt == [(BOB, None, "123")]
    await settle(resolver, NOW + 45_000)
    assert (ANN, None, "123") in people.learnt


@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=500),
        Answer(status=503, body=b""),
        Answer(status=0),
        Answer(status=200, body=b"<html>"),
        Answer(status=200, body=b"[]"),
        Answer(status=200, body=b'{"id": "' + b"1" * 300_000 + b'"}'),
        Answer(status=200, body=b'{"id": "1 OR 1=1"}'),
        Answer(status=302, headers={"Location": "http://127.0.0.1:1/"}, body=b""),
        Answer(status=408, body=b"{}"),
        Answer(status=400, body=b'{"error": {"code": 5, "is_transient": true}}'),
    ],
    ids=lambda answer: f"{answer.status}-{(answer.body or b'')[:12].decode()}",
)
async def test_trouble_on_the_way_makes_a_token_wait(
    graph: GraphStandIn, resolver: TokenResolver, people: People, shop: App, answer: Answer
) -> None:
    graph.user(TOKEN, "123")
    graph.next("me", answer)
    await sent(shop)
    await settle(resolver)
    assert people.learnt == []
    assert 30_000 <= await due_in() <= 45_000
    await settle(resolver, NOW + 45_000)
    assert people.learnt == [(ANN, None, "123")]


async def test_a_redirect_leads_the_token_nowhere(graph: GraphStandIn, resolver: TokenResolver, shop: App) -> None:
    elsewhere = GraphStandIn()
    try:
        graph.next("me", Answer(status=307, headers={"Location": f"{elsewhere.url}/{VERSION}/me"}, body=b""))
        await sent(shop)
        await settle(resolver)
    finally:
        elsewhere.close()
    assert (graph.count("me"), elsewhere.asked) == (1, [])
    assert 30_000 <= await due_in() <= 45_000


async def test_a_graph_that_hangs_makes_a_token_wait(
    graph: GraphStandIn, resolver: TokenResolver, shop: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_module, "_CALL_SECONDS", 0.2)
    graph.going.clear()
    await sent(shop)
    await settle(resolver)
    assert 30_000 <= await due_in() <= 45_000


async def test_a_graph_that_is_not_there_makes_a_token_wait(
    graph: GraphStandIn, resolver: TokenResolver, shop: App
) -> None:
    graph.close()
    await sent(shop)
    await settle(resolver)
    assert 30_000 <= await due_in() <= 45_000


async def test_waits_grow_are_spread_and_stay_below_six_hours(
    graph: GraphStandIn, resolver: TokenResolver, shop: App
) -> None:
    graph.next("me", *[Answer(status=500)] * 100)
    await sent(shop)
    waits: list[int] = []
    now = NOW
    for _ in range(14):
        await settle(resolver, now)
        waits.append(await due_in() + NOW - now)
        now += waits[-1]
    for n, wait in enumerate(waits):
        least = min(30_000 * 2**n, 6 * HOUR)
        assert least <= wait <= least * 1.5
    assert len({wait % 1000 for wait in waits}) > 5


@pytest.mark.parametrize(
    ("answer", "least_ms"),
    [
        (Answer(status=503, headers={"Retry-After": "600"}, body=b""), 10 * MINUTE),
        (Answer(code=613, headers={"Retry-After": "86400"}), 24 * HOUR),
        (Answer(status=429, headers={"Retry-After": "120"}, body=b"{}"), 2 * MINUTE),
        (Answer(status=503, headers={"Retry-After": "9" * 300}, body=b""), 24 * HOUR),
        (Answer(status=503, headers={"Retry-After": "soon"}, body=b""), 30_000),
        (
            Answer(
                code=80_004,
                headers={
                    "X-Business-Use-Case-Usage": '{"1": [{"type": "custom_audience", "call_count": 100, '
                    '"total_time": 5, "estimated_time_to_regain_access": 19}]}'
                },
            ),
            19 * MINUTE,
        ),
        (Answer(code=4, headers={"X-App-Usage": '{"call_count": 101, "total_time": 3}'}), MINUTE),
        (Answer(code=4, headers={"X-App-Usage": "[nonsense", "X-Business-Use-Case-Usage": "1"}), 30_000),
    ],
)
async def test_graph_says_when(
    graph: GraphStandIn, resolver: TokenResolver, shop: App, answer: Answer, least_ms: int
) -> None:
    graph.next("me", answer)
    await sent(shop)
    await settle(resolver)
    assert least_ms <= await due_in() <= least_ms * 1.5


async def test_an_app_that_is_nearly_used_up_rests_before_it_is_refused(
    graph: GraphStandIn, resolver: TokenResolver, people: People, shop: App
) -> None:
    graph.user(TOKEN, "123")
    graph.user("EAABother", "124")
    graph.next("me", Answer(headers={"X-App-Usage": '{"call_count": 95, "total_time": 10, "total_cputime": 3}'}))
    await sent(shop)
    await settle(resolver)
    assert people.learnt == [(ANN, None, "123")]
    assert await facebook.graph_state(shop) == (NOW + MINUTE, 0)
    await sent(shop, "EAABother", 2, BOB)
    await settle(resolver, NOW + MINUTE - 1)
    assert len(people.learnt) == 1
    await settle(resolver, NOW + MINUTE)
    assert len(people.learnt) == 2


async def test_after_seven_days_a_token_is_erased_and_the_person_says_so(
    graph: GraphStandIn, resolver: TokenResolver, event_store: EventStore, shop: App
) -> None:
    graph.next("me", *[Answer(status=500)] * 100)
    await sent(shop)
    now = NOW
    while not await erased():
        await settle(resolver, now)
        rows = [row["due_at"] for row in await AccessToken.select() if row["due_at"] is not None]
        now = rows[0] if rows else now
    assert now == NOW + TOKEN_MS
    assert await properties(event_store, shop) == {"facebook_state": "unresolved"}


async def test_a_restart_asks_about_what_waits(
    graph: GraphStandIn, people: People, client: Graph, event_store: EventStore, shop: App
) -> None:
    """What a killed process had taken is taken again when its lease ends."""
    graph.user(TOKEN, "123")
    graph.going.clear()
    await sent(shop)
    killed = asyncio.create_task(TokenResolver(event_store, client, KEY).work(NOW))
    while not graph.asked:  # noqa: ASYNC110 (another thread's)
        await asyncio.sleep(0.01)
    killed.cancel()
    await asyncio.gather(killed, return_exceptions=True)
    graph.going.set()
    again = TokenResolver(event_store, client, KEY)
    await settle(again, NOW + LEASE_MS - 1)
    assert people.learnt == []
    await settle(again, NOW + LEASE_MS)
    assert people.learnt == [(ANN, None, "123")]
    assert await erased()


async def test_killed_before_it_was_told_a_person_learns_again_to_the_same_rows(
    graph: GraphStandIn,
    client: Graph,
    people: People,
    event_store: EventStore,
    shop: App,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph.user(TOKEN, "123", name="Ann")
    await sent(shop)
    resolver = TokenResolver(event_store, client, KEY)

    async def stored_and_killed(*arguments: Any) -> None:
        await EventStore.insert(event_store, *arguments)
        raise EventStoreUnavailable("killed")

    with monkeypatch.context() as patch:
        patch.setattr(event_store, "insert", stored_and_killed)
        with pytest.raises(EventStoreUnavailable):
            await settle(resolver)
    await settle(resolver, NOW + LEASE_MS)
    assert people.learnt == [(ANN, None, "123")] * 2
    assert graph.count("me") == 1
    assert (await properties(event_store, shop))["facebook_name"] == "Ann"
    rows = await event_store.query(
        "SELECT field, count() AS n FROM person_properties FINAL WHERE app_id = {app:UUID} GROUP BY field",
        {"app": str(shop.id)},
    )
    assert {row["n"] for row in rows} == {1}


async def test_two_machines_ask_about_each_token_once(
    graph: GraphStandIn, client: Graph, people: People, event_store: EventStore, shop: App
) -> None:
    for n in range(40):
        graph.user(f"EAAB{n}", str(1000 + n))
        await sent(shop, f"EAAB{n}", n, n.to_bytes(16))
    machines = [TokenResolver(event_store, client, KEY) for _ in range(3)]
    await asyncio.gather(*(settle(machine) for machine in machines))
    assert graph.count("me") == 40
    assert sorted(people.learnt) == sorted((n.to_bytes(16), None, str(1000 + n)) for n in range(40))


async def test_a_person_who_cannot_learn_holds_up_nobody(
    graph: GraphStandIn, resolver: TokenResolver, people: People, shop: App
) -> None:
    graph.user(TOKEN, "123")
    people.broken = {(1).to_bytes(16)}
    await sent(shop)
    await sent(shop, hit=2, visitor=BOB)
    await settle(resolver)
    assert people.learnt == [(BOB, None, "123")]
    people.broken.clear()
    await settle(resolver, NOW + LEASE_MS)
    assert people.learnt == [(BOB, None, "123"), (ANN, None, "123")]


async def test_without_a_facebook_app_the_user_is_found_without_proof(
    graph: GraphStandIn, resolver: TokenResolver, event_store: EventStore, alice: Tenant
) -> None:
    app = (await create_app(alice, "Plain"))[0]
    graph.user(TOKEN, "123", name="Ann")
    await sent(app)
    await settle(resolver)
    assert await properties(event_store, app) == {"facebook_state": "resolved", "facebook_name": "Ann"}
    assert [each.sent for each in graph.asked] == [{"fields": "id,name,email"}]


async def test_a_wrong_secret_is_shown_and_once_it_is_right_all_is_tried_again(
    graph: GraphStandIn, resolver: TokenResolver, people: People, shop: App
) -> None:
    graph.secret = "another secret, of thirty-two more"
    graph.user(TOKEN, "123")
    await sent(shop)
    await settle(resolver)
    assert (await facebook.graph_state(shop))[1] == 100
    assert await waiting(shop) == 1
    graph.secret = SECRET[::-1]
    await facebook.connect(shop, KEY, "4711", SECRET[::-1])
    # What is asked about at that moment is due within the lease, the rest at once.
    await retry_now(shop, NOW)
    await settle(resolver, NOW + LEASE_MS)
    assert people.learnt == [(ANN, None, "123")]
    assert await waiting(shop) == 0


@pytest.mark.parametrize("code", [200, 100])
async def test_without_the_right_to_it_the_audience_id_is_done_without(
    graph: GraphStandIn, resolver: TokenResolver, event_store: EventStore, shop: App, code: int
) -> None:
    """The secret is the right one, since it told whose the token is."""
    graph.user(TOKEN, "123")
    graph.next("custom_audience_third_party_id", Answer(code=code))
    await sent(shop)
    await settle(resolver)
    assert await properties(event_store, shop) == {"facebook_state": "resolved"}
    assert await erased()


@pytest.mark.parametrize("last", [Answer(), Answer(code=190)])
async def test_while_the_audience_id_waits_the_user_is_not_asked_for_again(
    graph: GraphStandIn, resolver: TokenResolver, people: People, event_store: EventStore, shop: App, last: Answer
) -> None:
    graph.user(TOKEN, "123", name="Ann")
    graph.next("custom_audience_third_party_id", Answer(code=613), Answer(status=500), last)
    await sent(shop)
    await settle(resolver)
    # Whose it is, the person learns at once.
    assert people.learnt == [(ANN, None, "123")]
    assert await properties(event_store, shop) == {"facebook_name": "Ann"}
    assert not await erased()
    for now in (NOW + 45_000, NOW + 45_000 + 90_000):
        await settle(resolver, now)
    assert (graph.count("me"), graph.count("custom_audience_third_party_id")) == (1, 3)
    assert people.learnt == [(ANN, None, "123")] * 2
    found = await properties(event_store, shop)
    assert found["facebook_name"] == "Ann"
    assert found["facebook_state"] == ("resolved" if last.code is None else "expired")
    assert ("custom_audience_id" in found) == (last.code is None)
    assert await erased()


async def test_what_graph_refuses_for_good_is_given_up(
    graph: GraphStandIn, resolver: TokenResolver, event_store: EventStore, shop: App
) -> None:
    graph.next("me", Answer(code=10))
    await sent(shop)
    await settle(resolver)
    assert await properties(event_store, shop) == {"facebook_state": "refused"}
    assert (await facebook.graph_state(shop))[1] == 10
    assert await erased()


async def test_a_token_under_another_secret_key_waits_for_who_has_it_and_is_given_up_in_the_end(
    graph: GraphStandIn, client: Graph, resolver: TokenResolver, people: People, event_store: EventStore, shop: App
) -> None:
    await sent(shop)
    other = TokenResolver(event_store, client, SecretKey("another secret of some 32 characters", "facebook"))
    await settle(other)
    assert graph.asked == []
    assert await properties(event_store, shop) == {}
    assert await due_in() == 600_000
    # A machine that has the key. Who sent it learns from it, too: the other one cannot read who it is.
    graph.user(TOKEN, "123", name="Ann")
    assert await resolver._resolve_some(NOW + 600_000)
    await settle(other, NOW + 600_000)
    assert people.learnt == []
    await settle(resolver, NOW + 600_000 + LEASE_MS)
    assert [who for *_, who in people.learnt] == ["123"]
    assert (await properties(event_store, shop))["facebook_name"] == "Ann"
    await sent(shop, token="EAAnother", hit=2, visitor=BOB)
    await settle(other, NOW + TOKEN_MS)
    assert await properties(event_store, shop, BOB) == {"facebook_state": "unresolved"}
    assert await erased()


async def test_a_deleted_apps_tokens_are_asked_about_no_more(
    graph: GraphStandIn, resolver: TokenResolver, people: People, shop: App
) -> None:
    graph.user(TOKEN, "123")
    await sent(shop)
    await delete_app(shop)
    await settle(resolver)
    assert graph.asked == []
    assert people.learnt == []
    assert not await AccessToken.exists()
    assert not await TokenSender.exists()


async def test_no_token_is_logged_whatever_graph_says(
    graph: GraphStandIn,
    client: Graph,
    people: People,
    event_store: EventStore,
    shop: App,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    for n, answer in enumerate(
        [Answer(code=190), Answer(code=10), Answer(code=613), Answer(status=500), Answer(status=0), Answer()]
    ):
        graph.next("me", answer)
        graph.user(f"{TOKEN}{n}", "123")
        await sent(shop, f"{TOKEN}{n}", n)
    people.broken = {n.to_bytes(16) for n in range(10)}
    with structlog.testing.capture_logs() as logged:
        await settle(TokenResolver(event_store, client, KEY))
    assert logged == [{"event": "access tokens wait to be resolved", "error": "RuntimeError", "log_level": "warning"}]
    assert "EAAB" not in caplog.text + repr(logged)


async def test_an_error_says_its_code_and_nothing_else(graph: GraphStandIn, client: Graph) -> None:
    answers = [Answer(code=190), Answer(code=10), Answer(code=613), Answer(status=500), Answer(status=0)]
    for answer in answers:
        graph.next("me", answer)
        with pytest.raises(graph_module.GraphError) as failed:
            await client.me(TOKEN, SECRET)
        error: BaseException | None = failed.value
        assert str(error) == f"Graph error {answer.code or 0}"
        assert error.__cause__ is None
        assert error.__suppress_context__ or error.__context__ is None


async def test_who_is_deleted_while_facebook_is_asked_is_not_named_again(
    graph: GraphStandIn,
    resolver: TokenResolver,
    people: People,
    event_store: EventStore,
    shop: App,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither under the identifier that the hit had nor under the browser's cookie."""
    graph.user(TOKEN, "123", name="Ann")
    graph.user(f"{TOKEN}2", "456", name="Bob")
    for n, (visitor, email) in enumerate(((ANN, "ann@example.org"), (BOB, "bob@example.org"))):
        hit = Sighting(n.to_bytes(16), NOW - HOUR, shop.id.bytes, visitor, email=email)
        assert await people_module.identify([hit], "", "", False, NOW - HOUR)
    await sent(shop, hit=7, email="ann@example.org", person=ANN)
    await sent(shop, hit=8, person=ANN)
    await sent(shop, f"{TOKEN}2", hit=9, visitor=BOB, person=BOB)
    learn, deleted = people.learn, list[bool]()

    async def late(hit: Sighting, now_ms: int) -> UUID | None:
        # After it was looked whom to tell, before they are told.
        if not deleted:
            deleted.append(True)
            await delete_person(shop, UUID(bytes=ANN), "Alice", datetime.fromtimestamp(NOW / 1000 + 1, UTC))
        return await learn(hit, now_ms)

    monkeypatch.setattr(people_module, "learn", late)
    await settle(resolver, NOW + 2_000)
    assert deleted
    assert graph.count("me") == 2
    assert await properties(event_store, shop) == {}
    assert (await properties(event_store, shop, BOB))["facebook_name"] == "Bob"
    assert (await known(shop, [UUID(bytes=ANN), UUID(bytes=BOB)])).keys() == {UUID(bytes=BOB)}


async def test_a_token_that_waits_for_a_resting_app_is_erased_after_seven_days_too(
    graph: GraphStandIn, event_store: EventStore, client: Graph, shop: App
) -> None:
    """And its last minutes do not cut the app's rest short."""
    await sent(shop, "T1", hit=1)
    await sent(shop, "T2", hit=2, visitor=BOB, at=NOW + HOUR)
    usage = {"X-Business-Use-Case-Usage": '{"1": [{"estimated_time_to_regain_access": 1440}]}'}
    graph.next("me", *[Answer(code=4, headers=usage)] * 2)
    late = NOW + TOKEN_MS - MINUTE
    await settle(TokenResolver(event_store, client, KEY), late)
    until, code = await facebook.graph_state(shop)
    assert code == 4
    assert until >= late + 24 * HOUR
    # Another process, since one looks for old ones every few minutes.
    await settle(TokenResolver(event_store, client, KEY), NOW + TOKEN_MS)
    assert graph.count("me") == 2
    assert await properties(event_store, shop) == {"facebook_state": "unresolved"}
    assert [row["sealed"] is None for row in await AccessToken.select().order_by(AccessToken.received_at)] == [
        True,
        False,
    ]


async def test_what_nobody_could_be_asked_about_is_asked_again_when_it_is_sent_again(
    graph: GraphStandIn, event_store: EventStore, client: Graph, shop: App
) -> None:
    """Once a day at most, though it comes with every hit; one that had expired is not."""
    graph.next("me", Answer(code=10), Answer(code=10))
    for hit, at in ((1, NOW), (2, NOW + HOUR), (3, NOW + 25 * HOUR), (4, NOW + 26 * HOUR)):
        await sent(shop, hit=hit, at=at)
        await settle(TokenResolver(event_store, client, KEY), at)
    assert graph.count("me") == 2
    assert await properties(event_store, shop) == {"facebook_state": "refused"}
    graph.user(TOKEN, "123", name="Ann")
    await sent(shop, hit=5, at=NOW + 51 * HOUR)
    await settle(TokenResolver(event_store, client, KEY), NOW + 51 * HOUR)
    found = await properties(event_store, shop)
    assert (found["facebook_state"], found["facebook_name"]) == ("resolved", "Ann")
    graph.next("me", Answer(code=190))
    for hit, at in ((6, NOW), (7, NOW + 70 * HOUR)):
        await sent(shop, "T2", hit=hit, visitor=BOB, at=at)
        await settle(TokenResolver(event_store, client, KEY), at)
    assert graph.count("me") == 4


@pytest.mark.parametrize("code", [190, 10, 613])
async def test_an_app_rests_whatever_became_of_the_call(
    graph: GraphStandIn, resolver: TokenResolver, shop: App, code: int
) -> None:
    graph.next("me", Answer(code=code, headers={"X-App-Usage": '{"call_count": 99}'}))
    await sent(shop)
    await settle(resolver)
    until, _ = await facebook.graph_state(shop)
    assert until >= NOW + MINUTE


async def test_an_app_rests_as_the_first_of_two_calls_said(
    graph: GraphStandIn, resolver: TokenResolver, shop: App
) -> None:
    graph.user(TOKEN, "123")
    graph.next("me", Answer(headers={"X-App-Usage": '{"call_count": 99}'}))
    graph.next("custom_audience_third_party_id", Answer(code=613))
    await sent(shop)
    await settle(resolver)
    until, _ = await facebook.graph_state(shop)
    assert until >= NOW + MINUTE
