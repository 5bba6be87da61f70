"""Audiences are pushed to a Graph of our own: batches, sessions, errors, restarts, and who is in them."""
# pyright: reportPrivateUsage=false

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from graph_stand_in import VERSION, Answer, GraphStandIn

from server.audience_pushes import AudiencePusher
from server.event_store import EventStore, EventStoreUnavailable
from server.graph import Graph
from tenants import audience_members, audiences, facebook
from tenants.apps import create_app, delete_app
from tenants.audience_members import count_people, email_hash, members, people_of, upload_form
from tenants.errors import InvalidValue, NotFound
from tenants.events import event_row
from tenants.hits import Event, decode
from tenants.identifiers import EMAIL_KIND, FBID_KIND, UUID_KIND, identifier_key, person_key
from tenants.reports.segments import Segment, segment_of
from tenants.secrets import SecretKey
from tenants.tables import App, Audience, AudienceRun, Identifier, Person, Tenant

KEY = SecretKey("a secret of at least 32 characters", "facebook")
SECRET = "0123456789abcdef0123456789abcdef"
TOKEN = "EAABsystemtoken1234567890"
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
EVERYBODY = Segment()


@pytest.fixture
def graph() -> Iterator[GraphStandIn]:
    stand_in = GraphStandIn()
    stand_in.user(TOKEN, "1")
    yield stand_in
    stand_in.close()


@pytest.fixture
async def client(graph: GraphStandIn) -> AsyncIterator[Graph]:
    client = Graph(graph.url, VERSION)
    yield client
    await client.close()


@pytest.fixture
def pusher(event_store: EventStore, client: Graph) -> AudiencePusher:
    return AudiencePusher(event_store, client, KEY, batch_rows=10)


@pytest.fixture
async def shop(alice: Tenant) -> App:
    app = (await create_app(alice, "Shop"))[0]
    await facebook.connect(app, KEY, "4711", SECRET)
    return app


async def known_person(
    app: App, emails: list[str], fbids: list[str] | None = None, uuids: list[str] | None = None, number: int = 0
) -> UUID:
    person = UUID(int=number) if number else uuid4()
    key = person_key(app.id, person)
    values = [(EMAIL_KIND, each) for each in emails]
    values += [(FBID_KIND, each) for each in fbids or []] + [(UUID_KIND, each) for each in uuids or []]
    await Person.insert(Person(key=key, size=len(values), known_at=1))
    for kind, value in values:
        await Identifier.insert(Identifier(key=identifier_key(app.id, kind, value), person=key))
    return person


async def hit(
    store: EventStore,
    app: App,
    person: UUID,
    token: str,
    times: int = 1,
    amount: int | None = None,
    identified: bool = True,
) -> None:
    query = f"event_token={token}" + (f"&amount={amount}&currency=EUR" if amount is not None else "")
    category = "event" if amount is None else "revenue"
    event = decode(category, query.encode(), "EUR", False)
    assert isinstance(event, Event)
    at = int(NOW.timestamp() * 1000)
    rows = [
        event_row(event, app.id.int, at, uuid4().int, category, person.int, "", b"", b"", b"") for _ in range(times)
    ]
    await store.insert("events", [(*row[:-1], identified) for row in rows], uuid4().hex)


async def has(store: EventStore, app: App, person: UUID, field: str, value: Any, version: int = 1) -> None:
    row = (app.id.int, field, person.int, json.dumps(value), 1, version)
    await store.insert("person_properties", [row], uuid4().hex)


async def audience_of(app: App, segment: Segment = EVERYBODY, daily: bool = False) -> Audience:
    return await audiences.create(app, KEY, "Buyers", "123456", TOKEN, segment, daily, NOW)


async def push(pusher: AudiencePusher, audience: Audience, now: datetime = NOW) -> AudienceRun:
    """Push it now, as far as it goes; its newest run."""
    await audiences.request_run(audience, now)
    return await go_on(pusher, audience, now)


async def go_on(pusher: AudiencePusher, audience: Audience, now: datetime) -> AudienceRun:
    for _ in range(20):
        if not await pusher.work(now):
            return (await audiences.runs(audience))[0]
    raise AssertionError("there is always something to push")


async def people(app: App, count: int) -> list[str]:
    """So many people with an address; the hashes in the order of the people's ids."""
    for n in range(count):
        await known_person(app, [f"n{n}@example.org"], number=n + 1)
    return [email_hash(f"n{n}@example.org") for n in range(count)]


async def test_people_are_pushed_in_batches_of_one_session(
    graph: GraphStandIn, pusher: AudiencePusher, shop: App
) -> None:
    graph.secret = SECRET
    graph.invalid = 1
    wanted = await people(shop, 25)
    run = await push(pusher, await audience_of(shop))
    assert [row[0] for row in graph.audiences["123456"]] == wanted
    assert [len(each.payload["data"]) for each in graph.asked] == [10, 10, 5]
    assert {json.dumps([each.payload["schema"], each.payload["app_ids"]]) for each in graph.asked} == {
        '[["EMAIL", "APPUID", "EXTERN_ID"], ["4711"]]'
    }
    assert [each.session for each in graph.asked] == [
        {"session_id": run.session, "batch_seq": n, "last_batch_flag": n == 3, "estimated_num_total": 25}
        for n in (1, 2, 3)
    ]
    assert {(each.method, each.path, each.token) for each in graph.asked} == {
        ("POST", f"/{VERSION}/123456/users", TOKEN)
    }
    assert (run.people, run.sent, run.received, run.invalid, run.batches, run.error) == (25, 25, 25, 3, 3, "")
    assert run.finished_at


async def test_an_address_is_hashed_as_meta_normalises_it() -> None:
    wanted = hashlib.sha256(b"ann@example.org").hexdigest()
    assert email_hash("ann@example.org") == email_hash(" Ann@Example.ORG ") == wanted


async def test_who_is_in_it(event_store: EventStore, shop: App, bob: Tenant) -> None:
    other = (await create_app(bob, "Other"))[0]
    await known_person(other, ["theirs@example.org"])
    await known_person(shop, ["a@example.org", "b@example.org"], ["77"], number=1)
    await known_person(shop, [], ["88"], ["u-1"], number=2)
    await known_person(shop, [], [], ["u-2"], number=3)
    with_id = await known_person(shop, [], [], ["u-3"], number=4)
    await has(event_store, shop, with_id, "custom_audience_id", "OLD", 1)
    await has(event_store, shop, with_id, "custom_audience_id", "XG1", 2)
    # Hits may carry a value of that name.
    for number, value in enumerate(['=cmd|"x"', 17, {"a": 1}, None, "x" * 200, "a b"], 5):
        person = await known_person(shop, [f"n{number}@example.org"], number=number)
        await has(event_store, shop, person, "custom_audience_id", value)
    found = [each async for each in members(shop, event_store, None)]
    assert [each.id for each in found] == [UUID(int=n).bytes for n in (1, 2, 4, 5, 6, 7, 8, 9, 10)]
    a, b = email_hash("a@example.org"), email_hash("b@example.org")
    assert [tuple(row) for each in found[:3] for row in each.rows] == [
        (a, "77", ""),
        (b, "", ""),
        ("", "88", ""),
        ("", "", "XG1"),
    ]
    assert {row.audience_id for each in found[3:] for row in each.rows} == {""}


async def test_a_merged_person_is_in_it_once_with_all_they_have(event_store: EventStore, shop: App) -> None:
    ann = await known_person(shop, ["ann@example.org"], number=1)
    was = await known_person(shop, [], ["77"], number=2)
    await Person.update({Person.merged_into: person_key(shop.id, ann)}).where(Person.key == person_key(shop.id, was))
    await has(event_store, shop, was, "custom_audience_id", "XG1", 5)
    await has(event_store, shop, ann, "custom_audience_id", "XG0", 4)
    (member,) = [each async for each in members(shop, event_store, None)]
    assert [tuple(row) for row in member.rows] == [(email_hash("ann@example.org"), "77", "XG1")]
    # By a segment that found them under their old id, too.
    await hit(event_store, shop, was, "purchase")
    segment = segment_of([("did", "purchase")])
    found = await people_of(shop, event_store, segment)
    (member,) = [each async for each in members(shop, event_store, found)]
    assert member.rows[0].fbid == "77"


@pytest.mark.parametrize(
    ("pairs", "numbers"),
    [
        ([("did.3", "purchase")], [1]),
        ([("did", "purchase")], [1, 2]),
        ([("revenue.EUR", "2500")], [2]),
        ([("person.plan", "pro")], [2, 3]),
        ([("did", "purchase"), ("person.plan", "pro")], [2]),
        ([("did", "nothing")], []),
        ([], [1, 2, 3]),
    ],
)
async def test_a_segment_says_who_is_in_it(
    event_store: EventStore, shop: App, pairs: list[tuple[str, str]], numbers: list[int]
) -> None:
    one, two, three = [await known_person(shop, [f"n{n}@example.org"], number=n) for n in (1, 2, 3)]
    await hit(event_store, shop, one, "purchase", times=3)
    await hit(event_store, shop, two, "purchase", amount=2501)
    await hit(event_store, shop, three, "view", amount=2500)
    # Nobody known, and nobody at all.
    await hit(event_store, shop, uuid4(), "purchase", times=5, amount=9000)
    await hit(event_store, shop, UUID(int=0), "purchase", times=5, amount=9000)
    for person in (two, three):
        await has(event_store, shop, person, "plan", "pro")
    segment = segment_of(pairs)
    found = await people_of(shop, event_store, segment)
    assert await count_people(shop, found) >= len(numbers)
    members_found = [each.id async for each in members(shop, event_store, found)]
    assert members_found == [UUID(int=n).bytes for n in numbers]


async def test_ids_are_read_as_they_are(event_store: EventStore, shop: App) -> None:
    persons = [await known_person(shop, [f"{n}@example.org"]) for n in range(5)]
    for person in persons:
        # Before they were known, too; nobody else is in it.
        await hit(event_store, shop, person, "purchase", identified=False)
        await hit(event_store, shop, person, "purchase")
        await hit(event_store, shop, uuid4(), "purchase", identified=False)
    found = await people_of(shop, event_store, segment_of([("did", "purchase")]))
    assert found == b"".join(sorted(person.bytes for person in persons))
    for n in range(6):
        after = sorted(person.bytes for person in persons)[n - 1] if n else b""
        rest = [each async for each in members(shop, event_store, found, after)]
        assert len(rest) == 5 - n


async def test_the_upload_form_has_metas_columns(event_store: EventStore, shop: App) -> None:
    person = await known_person(shop, ["ann@example.org"], ["77"])
    await has(event_store, shop, person, "custom_audience_id", "XG1")
    form = b"".join([chunk async for chunk in upload_form(members(shop, event_store, None))])
    assert form.decode() == f"email,uid,extern_id\r\n{email_hash('ann@example.org')},77,XG1\r\n"


async def test_a_long_upload_form_comes_in_pieces(event_store: EventStore, shop: App) -> None:
    keys = [person_key(shop.id, UUID(int=n + 1)) for n in range(2_500)]
    await Person.insert(*(Person(key=key, size=1, known_at=1) for key in keys))
    rows = [
        Identifier(key=identifier_key(shop.id, EMAIL_KIND, f"n{n}@x.org"), person=key) for n, key in enumerate(keys)
    ]
    await Identifier.insert(*rows)
    chunks = [chunk async for chunk in upload_form(members(shop, event_store, None))]
    assert len(chunks) > 2
    assert b"".join(chunks).count(b"\r\n") == 2_501


async def test_without_a_facebook_app_only_addresses_are_pushed(
    graph: GraphStandIn, pusher: AudiencePusher, alice: Tenant
) -> None:
    app = (await create_app(alice, "Plain"))[0]
    await known_person(app, ["ann@example.org"], ["77"], number=1)
    await known_person(app, [], ["88"], number=2)
    run = await push(pusher, await audience_of(app))
    assert [each.payload for each in graph.asked] == [{"schema": ["EMAIL"], "data": [[email_hash("ann@example.org")]]}]
    assert (run.people, run.sent) == (1, 1)


async def test_nobody_is_pushed_in_no_batch(graph: GraphStandIn, pusher: AudiencePusher, shop: App) -> None:
    run = await push(pusher, await audience_of(shop))
    assert (run.people, run.error, bool(run.finished_at), graph.asked) == (0, "", True, [])


async def test_a_persons_rows_are_not_torn_apart(graph: GraphStandIn, pusher: AudiencePusher, shop: App) -> None:
    for number in range(1, 5):
        await known_person(shop, [f"n{number}-{n}@example.org" for n in range(4)], number=number)
    run = await push(pusher, await audience_of(shop))
    assert [len(each.payload["data"]) for each in graph.asked] == [8, 8]
    assert (run.people, run.sent) == (4, 16)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer(code=190), "not valid any more"),
        (Answer(code=200), "Meta refused it (error 200)"),
        (Answer(code=100), "Meta refused it (error 100)"),
    ],
)
async def test_what_meta_refuses_ends_the_run(
    graph: GraphStandIn, pusher: AudiencePusher, shop: App, answer: Answer, says: str
) -> None:
    await people(shop, 15)
    graph.next("users", Answer(), answer)
    run = await push(pusher, await audience_of(shop))
    assert says in run.error
    assert run.finished_at
    assert (run.sent, graph.count("users")) == (10, 2)


@pytest.mark.parametrize(
    ("answer", "least", "says"),
    [
        (Answer(code=17), 30, "error 17"),
        (Answer(code=613, headers={"Retry-After": "900"}), 900, "error 613"),
        (
            Answer(
                code=80_003, headers={"X-Business-Use-Case-Usage": '{"1": [{"estimated_time_to_regain_access": 7}]}'}
            ),
            420,
            "error 80003",
        ),
        (Answer(status=500), 30, "does not answer"),
        (Answer(status=0), 30, "does not answer"),
    ],
)
async def test_a_run_waits_and_goes_on_where_it_was(
    graph: GraphStandIn, pusher: AudiencePusher, shop: App, answer: Answer, least: int, says: str
) -> None:
    wanted = await people(shop, 25)
    graph.next("users", Answer(), answer)
    audience = await audience_of(shop)
    run = await push(pusher, audience)
    assert says in run.error
    assert not run.finished_at
    assert run.due_at is not None
    waited = run.due_at / 1000 - NOW.timestamp()
    # From when the answer came, which is a moment after the run was taken.
    assert least <= waited <= least * 1.5 + 5
    assert graph.count("users") == 2
    run = await go_on(pusher, audience, NOW + timedelta(seconds=waited + 1))
    assert [row[0] for row in graph.audiences["123456"]] == wanted
    assert [each.session["batch_seq"] for each in graph.asked] == [1, 2, 2, 3]
    assert (run.people, run.sent, run.error, bool(run.finished_at)) == (25, 25, "", True)


@pytest.mark.parametrize("segment", [EVERYBODY, segment_of([("did", "purchase")])])
async def test_a_run_that_waits_begins_anew_where_its_audience_is_another_by_then(
    graph: GraphStandIn, pusher: AudiencePusher, event_store: EventStore, shop: App, segment: Segment
) -> None:
    wanted = await people(shop, 25)
    for n in range(25):
        await hit(event_store, shop, UUID(int=n + 1), "purchase")
    graph.next("users", Answer(), Answer(status=500))
    audience = await audience_of(shop)
    run = await push(pusher, audience)
    assert (run.sent, bool(run.finished_at)) == (10, False)
    changed: dict[str, Any] = {"name": "VIP", "token": "", "daily": False, "now": NOW}
    assert not await audiences.change(shop, KEY, audience, audience_id="123456", segment=EVERYBODY, **changed)
    assert (await audiences.runs(audience))[0].sent == 10
    to = "123456" if segment else "99"
    assert await audiences.change(shop, KEY, audience, audience_id=to, segment=segment, **changed)
    graph.audiences.clear()
    run = await go_on(pusher, audience, NOW + timedelta(minutes=1))
    assert [row[0] for row in graph.audiences[to]] == wanted
    assert (run.people, run.sent, run.batches, run.error, bool(run.finished_at)) == (25, 25, 3, "", True)
    assert [each.session["batch_seq"] for each in graph.asked] == [1, 2, 1, 2, 3]
    assert len({each.session["session_id"] for each in graph.asked}) == 2


async def test_a_run_under_way_begins_anew_where_its_audience_is_another_by_then(
    graph: GraphStandIn, pusher: AudiencePusher, shop: App
) -> None:
    wanted = await people(shop, 25)
    audience = await audience_of(shop)
    await audiences.request_run(audience, NOW)
    graph.going.clear()
    working = asyncio.create_task(pusher.work(NOW))
    while not graph.count("users"):  # noqa: ASYNC110 (nothing tells)
        await asyncio.sleep(0.005)
    await audiences.change(
        shop, KEY, audience, name="VIP", audience_id="99", token="", segment=EVERYBODY, daily=False, now=NOW
    )
    graph.going.set()
    await working
    assert len(graph.audiences["123456"]) == 10
    run = await go_on(pusher, audience, NOW)
    assert [row[0] for row in graph.audiences["99"]] == wanted
    assert (run.people, run.sent, run.batches, bool(run.finished_at)) == (25, 25, 3, True)


async def test_a_wait_is_counted_from_the_answer_of_a_long_run(
    graph: GraphStandIn, pusher: AudiencePusher, shop: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await people(shop, 25)

    def least(low: float, _high: float) -> float:
        return low

    monkeypatch.setattr(random, "uniform", least)
    graph.next("users", Answer(seconds=0.6), Answer(code=17, seconds=0.6))
    run = await push(pusher, await audience_of(shop))
    assert run.due_at is not None
    assert run.due_at / 1000 - NOW.timestamp() >= 30 + 1.2


async def test_nearly_used_up_a_run_rests_between_batches(
    graph: GraphStandIn, pusher: AudiencePusher, shop: App
) -> None:
    await people(shop, 15)
    graph.headers = {"X-App-Usage": '{"call_count": 95}'}
    audience = await audience_of(shop)
    run = await push(pusher, audience)
    assert (run.sent, bool(run.finished_at)) == (10, False)
    run = await go_on(pusher, audience, NOW + timedelta(minutes=2))
    assert (run.sent, bool(run.finished_at)) == (15, True)


async def test_after_a_day_of_waiting_a_run_ends(graph: GraphStandIn, pusher: AudiencePusher, shop: App) -> None:
    await people(shop, 1)
    graph.next("users", *[Answer(status=500)] * 2)
    audience = await audience_of(shop)
    await push(pusher, audience)
    run = await go_on(pusher, audience, NOW + timedelta(days=1))
    assert run.error == "Given up after a day. Meta does not answer."
    assert run.finished_at


async def test_killed_in_the_middle_a_run_goes_on_after_a_restart(
    graph: GraphStandIn, event_store: EventStore, client: Graph, shop: App
) -> None:
    wanted = await people(shop, 25)
    audience = await audience_of(shop)
    await audiences.request_run(audience, NOW)
    killed = asyncio.create_task(AudiencePusher(event_store, client, KEY, 10).work(NOW))
    while graph.count("users") < 2:
        if graph.count("users") == 1:
            graph.going.clear()
        await asyncio.sleep(0.005)
    killed.cancel()
    await asyncio.gather(killed, return_exceptions=True)
    graph.going.set()
    again = AudiencePusher(event_store, client, KEY, 10)
    # Nobody else takes it while it may go on.
    assert not await again.work(NOW)
    run = await go_on(again, audience, datetime.now(UTC) + timedelta(milliseconds=audiences.LEASE_MS))
    # What was under way may come twice, which changes nothing at Meta; nothing is left out.
    assert {row[0] for row in graph.audiences["123456"]} == set(wanted)
    assert (run.people, run.sent, run.batches, bool(run.finished_at)) == (25, 25, 3, True)


async def test_no_two_runs_of_an_audience_at_once(graph: GraphStandIn, pusher: AudiencePusher, shop: App) -> None:
    await people(shop, 1)
    audience, other = await audience_of(shop), await audience_of(shop)
    asked = await asyncio.gather(*(audiences.request_run(audience, NOW) for _ in range(5)))
    assert sorted(asked) == [False] * 4 + [True]
    assert await audiences.request_run(other, NOW)
    assert sum(await asyncio.gather(*(pusher.work(NOW) for _ in range(4)))) == 2
    assert graph.count("users") == 2
    assert await audiences.request_run(audience, NOW)


async def test_one_run_is_taken_at_a_time(shop: App) -> None:
    """Most of the time none is due, and that is what PostgreSQL knows of them: it looks row by row then."""
    await AudienceRun.raw("ANALYZE")
    asked = [await audience_of(shop) for _ in range(3)]
    for audience in asked:
        await audiences.request_run(audience, NOW)
    taken = [await audiences.unscoped_take_run(KEY, NOW) for _ in range(4)]
    assert sorted(each.audience.id for each in taken if each) == sorted(audience.id for audience in asked)


async def test_who_lost_a_run_writes_nothing_down_any_more(shop: App) -> None:
    audience = await audience_of(shop)
    await audiences.request_run(audience, NOW)
    slow = await audiences.unscoped_take_run(KEY, NOW)
    assert slow is not None
    assert await audiences.unscoped_take_run(KEY, NOW) is None
    quick = await audiences.unscoped_take_run(KEY, NOW + timedelta(milliseconds=audiences.LEASE_MS))
    assert quick is not None
    await audiences.finish(slow, "too late")
    await audiences.wait(slow, NOW, "too late")
    assert await audiences.sent(slow, b"z" * 16, 9, 9, 9, 9) is None
    (run,) = await audiences.runs(audience)
    assert (run.error, run.sent, bool(run.finished_at)) == ("", 0, False)
    assert await audiences.sent(quick, b"a" * 16, 1, 1, 1, 0) is not None


async def test_a_daily_audience_is_pushed_every_day(graph: GraphStandIn, pusher: AudiencePusher, shop: App) -> None:
    await people(shop, 1)
    audience = await audience_of(shop, daily=True)
    by_hand = await audience_of(shop)
    for days in (0, 0.5, 0.99, 1, 1.5, 2, 7, 7.5):
        await go_on(pusher, audience, NOW + timedelta(days=days)) if days != 0.5 else await pusher.work(NOW)
    assert [run.requested_at for run in reversed(await audiences.runs(audience))] == [
        NOW + timedelta(days=days) for days in (0, 1, 2, 7)
    ]
    assert await audiences.runs(by_hand) == []
    # When a run ended the clock on the wall says.
    await go_on(pusher, audience, datetime.now(UTC) + timedelta(days=100))
    assert len(await audiences.runs(audience)) == 1


async def test_the_time_of_day_stays(graph: GraphStandIn, pusher: AudiencePusher, shop: App) -> None:
    await people(shop, 1)
    audience = await audience_of(shop, daily=True)
    hours = (0, 24.1, 47.9, 48, 100, 119, 120)
    for each in hours:
        await go_on(pusher, audience, NOW + timedelta(hours=each))
    assert [run.requested_at for run in reversed(await audiences.runs(audience))] == [
        NOW + timedelta(hours=each) for each in (0, 24.1, 48, 100, 120)
    ]


async def test_a_clock_that_was_ahead_puts_off_no_push(graph: GraphStandIn, pusher: AudiencePusher, shop: App) -> None:
    await people(shop, 1)
    daily = await audience_of(shop, daily=True)
    ahead = NOW + timedelta(days=400)
    await go_on(pusher, daily, ahead)
    by_hand = await audience_of(shop)
    graph.next("users", Answer(status=500))
    assert not (await push(pusher, by_hand, ahead)).finished_at
    # It is put right, three hours past the usual time.
    now = NOW + timedelta(hours=3)
    assert (await go_on(pusher, by_hand, now)).finished_at
    # That day's, and the next one's at its usual time.
    for hours in (0, 20, 21, 22):
        await pusher.work(now + timedelta(hours=hours))
    assert [run.requested_at for run in await audiences.runs(daily)][:2] == [now + timedelta(hours=21), now]


async def test_while_the_event_store_is_away_a_run_waits(
    pusher: AudiencePusher, event_store: EventStore, shop: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await people(shop, 1)
    audience = await audience_of(shop)

    async def away(*_: Any) -> list[dict[str, Any]]:
        raise EventStoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(event_store, "query", away)
        run = await push(pusher, audience)
    assert run.error == "Our event store does not answer."
    run = await go_on(pusher, audience, NOW + timedelta(minutes=1))
    assert (run.sent, run.error) == (1, "")


async def test_a_run_waits_when_the_event_store_goes_away_in_the_middle_of_it(
    graph: GraphStandIn, pusher: AudiencePusher, event_store: EventStore, shop: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it sent before had begun its lease anew, and the wait was written down for the old one: nowhere."""
    monkeypatch.setattr(audience_members, "_PEOPLE_AT_ONCE", 10)
    wanted = await people(shop, 45)
    await has(event_store, shop, UUID(int=1), "custom_audience_id", "XG1")
    audience = await audience_of(shop)
    query = event_store.query

    async def away(*arguments: Any) -> list[dict[str, Any]]:
        if graph.asked:
            raise EventStoreUnavailable("away")
        return await query(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(event_store, "query", away)
        run = await push(pusher, audience)
    assert (run.batches, run.error) == (1, "Our event store does not answer.")
    run = await go_on(pusher, audience, NOW + timedelta(minutes=1))
    assert (run.sent, run.error) == (45, "")
    assert [row[0] for row in graph.audiences["123456"]] == wanted


async def test_with_another_secret_key_a_run_says_so(
    graph: GraphStandIn, client: Graph, event_store: EventStore, shop: App
) -> None:
    other = SecretKey("another secret of some 32 characters", "facebook")
    run = await push(AudiencePusher(event_store, client, other), await audience_of(shop))
    assert "enter it again" in run.error
    assert graph.asked == []


async def test_a_removed_audience_is_pushed_no_more(graph: GraphStandIn, pusher: AudiencePusher, shop: App) -> None:
    audience = await audience_of(shop)
    await audiences.request_run(audience, NOW)
    await audiences.remove(shop, audience)
    assert not await pusher.work(NOW)
    audience = await audience_of(shop)
    await audiences.request_run(audience, NOW)
    await delete_app(shop)
    assert not await pusher.work(NOW)
    assert not await AudienceRun.exists()


async def test_a_removed_audiences_number_is_given_to_no_other(shop: App) -> None:
    was = await audience_of(shop)
    await audiences.remove(shop, was)
    another = await audience_of(shop)
    # A page that still shows the one would push the other, or change it.
    with pytest.raises(NotFound):
        await audiences.find(shop, was.id)
    assert another.id > was.id


async def test_an_audience_is_its_apps_alone(shop: App, bob: Tenant) -> None:
    other = (await create_app(bob, "Other"))[0]
    audience = await audience_of(shop)
    with pytest.raises(NotFound):
        await audiences.find(other, audience.id)
    await audiences.remove(other, audience)
    with pytest.raises(NotFound):
        await audiences.change(
            other, KEY, audience, name="x", audience_id="1", token="", segment=EVERYBODY, daily=False, now=NOW
        )
    assert (await audiences.find(shop, audience.id)).name == "Buyers"


async def test_what_is_changed_counts_and_an_empty_token_keeps_the_old_one(
    graph: GraphStandIn, pusher: AudiencePusher, event_store: EventStore, shop: App
) -> None:
    await people(shop, 1)
    audience = await audience_of(shop)
    segment = segment_of([("did.2", "purchase"), ("person.plan", "a&b=c")])
    await audiences.change(
        shop, KEY, audience, name="VIP", audience_id="99", token="", segment=segment, daily=True, now=NOW
    )
    changed = await audiences.find(shop, audience.id)
    assert (changed.name, changed.audience_id, bool(changed.daily_at)) == ("VIP", "99", True)
    assert audiences.segment_kept(changed) == segment
    await pusher.work(NOW)
    assert (await audiences.runs(changed))[0].error == ""
    assert TOKEN not in repr(await Audience.select())


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("name", {"name": " "}),
        ("audience_id", {"audience_id": ""}),
        ("audience_id", {"audience_id": "act_123"}),
        ("audience_id", {"audience_id": "../me"}),
        ("audience_id", {"audience_id": "1" * 31}),
        ("audience_token", {"token": ""}),
        ("audience_token", {"token": "EAAB with a space in it"}),
        ("audience_token", {"token": "EAAB\r\nX-Evil: 1234567"}),
    ],
)
async def test_what_cannot_be_an_audience_is_refused(shop: App, field: str, values: dict[str, str]) -> None:
    entered = {"name": "Buyers", "audience_id": "1", "token": TOKEN, **values}
    with pytest.raises(InvalidValue) as refused:
        await audiences.create(shop, KEY, segment=EVERYBODY, daily=False, now=NOW, **entered)
    assert refused.value.field == field
    assert not await Audience.exists()


async def test_each_app_has_so_many_audiences(shop: App, bob: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audiences, "MAX_AUDIENCES", 1)
    other, _ = await create_app(bob, "Shop")
    for app in (other, shop):
        await audience_of(app)
        with pytest.raises(InvalidValue, match="1 audiences at most"):
            await audience_of(app)
    assert await Audience.count() == 2
