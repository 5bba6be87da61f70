"""Events and rejections on a real engine: what was sent reads back as it was sent, to its own app alone."""

import json
import random
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from urllib.parse import quote, urlencode
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_hits_properties import OBJECTS

from server.event_store import EventStore, EventStoreRefused, migrations, statements
from server.journal import INDEX_BITS, OFFSET_BITS, SEED_BITS, hit_id
from tenants.errors import InvalidValue
from tenants.events import (
    event_row,
    recent_events,
    recent_rejections,
    referrer_host,
    rejection_row,
    text_of,
    timestamp,
)
from tenants.hits import Category, Event, Rejection, decode
from tenants.reports.filters import filters_of
from tenants.reports.period import period_of
from tenants.rewriting import PROPERTIES, property_version
from tenants.snippets import encode_params
from tenants.tables import App

NOW = 1_795_000_000_000
DEEP = {"a": {"b": {"c": {"d": {"e": [[[[1]]], {"f": None}]}}}}}


def app() -> App:
    return App(id=uuid4(), tenant=1, name="Site", currency="USD")


def params(values: dict[str, Any]) -> bytes:
    """The `params` part of a query string."""
    return urlencode({"params": encode_params(values, "base64")}).encode()


def row(
    of: App, query: bytes, number: int = 0, at: int = NOW, category: Category = "event", **more: Any
) -> tuple[str, Any]:
    """(table, row) of a hit with this query."""
    found = decode(category, query, "USD", privacy=False)
    named = hit_id(0, number, at)
    if isinstance(found, Rejection):
        return "rejections", rejection_row(found, of.id.int, at, named, category)
    headers: dict[str, Any] = {
        "visitor_id": 0,
        "network": "203.0.113.0/24",
        "user_agent": b"Mozilla/5.0",
        "referrer": b"https://shop.example/?q=1",
        "sec_purpose": b"",
    }
    return "events", event_row(found, of.id.int, at, named, category, **headers | more)


async def insert(store: EventStore, *rows: tuple[str, Any]) -> None:
    for table in ("events", "rejections"):
        await store.insert(table, [fields for name, fields in rows if name == table], uuid4().hex)


async def read(store: EventStore, of: App, **options: Any) -> list[dict[str, Any]]:
    return json.loads(msgspec.json.encode((await recent_events(of, store, **options)).rows))


async def test_an_event_reads_back_as_it_was_sent(event_store: EventStore) -> None:
    shop, visitor = app(), uuid4()
    values: dict[str, Any] = {
        "plan": "pro",
        "n": 3,
        "x": 1.0,
        "ok": True,
        "none": None,
        "list": [1, "a", None],
        "empty": {},
        "o": {"k": {}},
    }
    query = b"event_token=buy&amount=2500&currency=eur&event_id=o-1&" + params(values)
    await insert(event_store, row(shop, query, category="revenue", visitor_id=visitor.int))
    (event,) = await read(event_store, shop)
    assert event == {
        "id": str(UUID(int=hit_id(0, 0, NOW))),
        "received_at": timestamp(NOW),
        "category": "revenue",
        "event_token": "buy",
        "amount": 2500,
        "currency": "EUR",
        "event_id": "o-1",
        "params": values,
        "person_id": str(visitor),
        "warnings": [],
    }
    assert [type(value) for value in event["params"].values()] == [type(value) for value in values.values()]


async def test_custom_values_can_be_queried_by_field(event_store: EventStore) -> None:
    shop = app()
    hits = [b"event_token=e&" + params({"plan": plan, "o": {"n": n}}) for n, plan in enumerate("aab")]
    await insert(event_store, *(row(shop, query, number) for number, query in enumerate(hits)))
    rows = await event_store.query(
        "SELECT params.plan.:String AS plan, sum(params.o.n.:Int64) AS total FROM events "
        "WHERE app_id = {app:UUID} GROUP BY plan ORDER BY plan",
        {"app": str(shop.id)},
    )
    assert rows == [{"plan": "a", "total": 1}, {"plan": "b", "total": 2}]


async def test_what_came_with_the_request_is_kept(event_store: EventStore) -> None:
    shop = app()
    query = b'event_token=e&params={"email":"Ann@Example.com","uuid":7,"fbid":"100004","access_token":"EAAB-secret"}'
    await insert(event_store, row(shop, query, sec_purpose=b"prefetch", user_agent=b"caf\xe9 \x00"))
    (stored,) = await event_store.query("SELECT * FROM events WHERE app_id = {app:UUID}", {"app": str(shop.id)})
    kept = {
        name: stored[name]
        for name in ("email", "uuid", "fbid", "network", "referrer_host", "sec_purpose", "user_agent", "query")
    }
    assert kept == {
        "email": "ann@example.com",
        "uuid": "7",
        "fbid": "100004",
        "network": "203.0.113.0/24",
        "referrer_host": "shop.example",
        "sec_purpose": "prefetch",
        "user_agent": "caf\ufffd \x00",
        "query": "event_token=e&params=" + quote('{"email":"Ann@Example.com","uuid":7,"fbid":"100004"}'),
    }
    assert "EAAB-secret" not in repr(stored)


async def test_events_from_before_their_queries_were_kept_have_an_empty_one(event_store: EventStore) -> None:
    (_, first), (_, second) = migrations()[:2]
    for statement in (
        statements(first)[0].replace("events", "earlier", 1),
        "INSERT INTO earlier (event_token, params_text) SELECT 'e', '{}'",
        statements(second)[0].replace("events", "earlier", 1),
    ):
        await event_store.change(statement)
    rows = await event_store.query("SELECT event_token, query FROM earlier")
    await event_store.change("DROP TABLE earlier")
    assert rows == [{"event_token": "e", "query": ""}]


async def test_pages_follow_each_other_without_gap_or_overlap(event_store: EventStore) -> None:
    shop, other = app(), app()
    # Many in the same millisecond: the cursor must tell them apart.
    rows = [row(shop, f"event_token=e{n}".encode(), n, NOW + n // 10) for n in range(95)]
    await insert(event_store, *rows, row(other, b"event_token=theirs"))
    found: list[str] = []
    cursor = None
    for _ in range(20):
        page = await recent_events(shop, event_store, limit=10, cursor=cursor)
        found += [event["event_token"] for event in page.rows]
        cursor = page.next
        if cursor is None:
            break
    assert found == [f"e{n}" for n in reversed(range(95))]


async def test_pages_lead_back_as_they_led_on(event_store: EventStore) -> None:
    shop, other = app(), app()
    # Many in the same millisecond, again.
    rows = [row(shop, f"event_token=e{n}".encode(), n, NOW + n // 10) for n in range(25)]
    await insert(event_store, *rows, *(row(other, b"event_token=theirs", n, NOW + n) for n in range(3)))
    pages = [await recent_events(shop, event_store, limit=10)]
    while cursor := pages[-1].next:
        pages.append(await recent_events(shop, event_store, limit=10, cursor=cursor))
    assert [len(page.rows) for page in pages] == [10, 10, 5]
    assert pages[0].newer is None
    for page, before in zip(reversed(pages), reversed(pages[:-1]), strict=False):
        back = await recent_events(shop, event_store, limit=10, cursor=page.newer, newer=True)
        assert back.rows == before.rows
        assert (back.next, back.newer is None) == (before.next, before.newer is None)
    # Fewer than a page are newer: there are no others.
    few = await recent_events(shop, event_store, limit=20, cursor=pages[1].newer, newer=True)
    assert (len(few.rows), few.newer) == (10, None)
    assert few.next == pages[0].next


async def test_a_page_is_of_a_period_and_of_what_filters_leave(event_store: EventStore) -> None:
    shop, now = app(), datetime.fromtimestamp(NOW / 1000, UTC)
    plans = ("pro", "team", "pro")
    hits = (
        row(shop, b"event_token=e&" + params({"plan": plan}), n, NOW - n * 86_400_000) for n, plan in enumerate(plans)
    )
    await insert(event_store, *hits, row(shop, b"event_token=e&" + params({"plan": "pro"}), 3, NOW - 9 * 86_400_000))
    period = period_of({"period": "7d"}, "UTC", now + timedelta(seconds=1))
    filters = filters_of([("params.plan", "pro"), ("event_token", "e")])
    shown = await read(event_store, shop, period=period, filters=filters)
    assert [event["received_at"] for event in shown] == [timestamp(NOW), timestamp(NOW - 2 * 86_400_000)]


async def test_filters(event_store: EventStore) -> None:
    shop = app()
    await insert(
        event_store,
        row(shop, b"event_token=a", 1),
        row(shop, b"event_token=b", 2),
        row(shop, b"event_token=a&amount=5", 3, category="revenue"),
    )

    async def left(*pairs: tuple[str, str]) -> list[tuple[str, int | None]]:
        found = await read(event_store, shop, filters=filters_of(pairs))
        return [(event["event_token"], event["amount"]) for event in found]

    assert await left(("event_token", "a")) == [("a", 5), ("a", None)]
    assert await left(("category", "event")) == [("b", None), ("a", None)]
    assert await left(("event_token", "a' OR 1=1 --")) == []


async def test_rejections_read_back_with_their_query(event_store: EventStore) -> None:
    shop = app()
    now = int(time.time() * 1000)  # older ones would be gone: they are kept for 30 days
    await insert(event_store, row(shop, b"event_token=buy&amount=25.00&cb=1", at=now, category="revenue"))
    (rejection,) = (await recent_rejections(shop, event_store)).rows
    assert rejection["reason"] == "invalid_amount"
    assert rejection["query"] == "event_token=buy&amount=25.00&cb=1"
    assert "25.00" in rejection["detail"]
    assert rejection["received_at"] == timestamp(now)
    assert (await recent_rejections(app(), event_store)).rows == []
    today, yesterday = (period_of({"period": name}, "UTC", datetime.now(UTC)) for name in ("24h", "yesterday"))
    later = replace(today, end=today.end + timedelta(seconds=1))
    assert len((await recent_rejections(shop, event_store, period=later)).rows) == 1
    assert (await recent_rejections(shop, event_store, period=replace(yesterday, end=later.start))).rows == []


@pytest.mark.parametrize("cursor", ["x", "0", "AAAA", "é", "-" * 64, "AZAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "A" * 33])
async def test_a_made_up_cursor_is_refused(event_store: EventStore, cursor: str) -> None:
    with pytest.raises(InvalidValue):
        await recent_events(app(), event_store, cursor=cursor)


async def test_a_page_asked_for_after_midnight_is_not_a_last_one(event_store: EventStore) -> None:
    shop = app()
    await insert(event_store, *(row(shop, b"event_token=e", number) for number in range(3)))
    now = datetime.fromtimestamp(NOW / 1000, UTC) + timedelta(seconds=1)
    today, tomorrow = (period_of({"period": "7d"}, "UTC", now + timedelta(days=days)) for days in (0, 7))
    page = await recent_events(shop, event_store, period=today, limit=1)
    assert len((await recent_events(shop, event_store, period=today, limit=9, cursor=page.next)).rows) == 2
    with pytest.raises(InvalidValue, match="midnight"):
        await recent_events(shop, event_store, period=tomorrow, limit=1, cursor=page.next)


async def test_an_insert_with_a_known_token_changes_nothing(event_store: EventStore) -> None:
    shop = app()
    rows = [row(shop, b"event_token=e", number)[1] for number in range(3)]
    for _ in range(3):
        await event_store.insert("events", rows, f"token-{shop.id}")
    assert len(await read(event_store, shop)) == 3


async def test_identical_hits_of_one_batch_are_all_kept(event_store: EventStore) -> None:
    shop = app()
    await insert(event_store, *(row(shop, b"event_token=same", number) for number in range(5)))
    assert len(await read(event_store, shop)) == 5


async def test_a_row_its_column_cannot_take_is_refused_whole(event_store: EventStore) -> None:
    shop = app()
    good = row(shop, b"event_token=good")[1]
    bad = list(row(shop, b"event_token=bad", 1)[1])
    bad[5] = "no number"
    with pytest.raises(EventStoreRefused):
        await event_store.insert("events", [good, tuple(bad)], uuid4().hex)
    assert await read(event_store, shop) == []


NASTY: list[dict[str, Any]] = [
    {"a": 2**63, "b": -(2**63), "c": 2**64 - 1},
    {"a": 1.7976931348623157e308, "b": 5e-324, "c": -0.0},
    {"a": [1, "a", None, {"x": 1}, [2]], "b": [[], [[]], {}]},
    {"a": {"b": 1}, "a b": {"c`d": 2}, "`": 3, "'": 4, "\\": 5, '"': 6, "\x00": 7, "é": 8, "[]": 9, "a%2Eb": 10},
    {"date": "2026-11-23", "time": "2026-11-23T19:00:00Z", "far": "9999-99-99 99:99:99", "uuid_like": str(UUID(int=1))},
    {"": "gone", "x": ""},
    {f"field{n}": n for n in range(255)},
    DEEP,
    {"list": json.loads("[" * 30 + "1" + "]" * 30)},
]


@pytest.mark.parametrize("values", NASTY)
async def test_nothing_the_decoder_lets_through_breaks_the_store(
    event_store: EventStore, values: dict[str, Any]
) -> None:
    shop = app()
    query = b"event_token=e&" + params(values)
    await insert(event_store, row(shop, query))
    found = decode("event", query, "USD", privacy=False)
    assert isinstance(found, Event)
    (event,) = await read(event_store, shop)
    assert event["params"] == json.loads(found.params)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(OBJECTS, min_size=20, max_size=40))
async def test_any_custom_values_read_back_equal(event_store: EventStore, batch: list[dict[str, Any]]) -> None:
    shop = app()
    sent = {f"e{number}": values for number, values in enumerate(batch)}
    queries = [f"event_token={token}&".encode() + params(values) for token, values in sent.items()]
    await insert(event_store, *(row(shop, query, number) for number, query in enumerate(queries)))
    for event in await read(event_store, shop, limit=1000):
        assert event["params"] == sent[event["event_token"]]


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(OBJECTS | st.sampled_from(NASTY), min_size=20, max_size=40))
async def test_any_custom_values_are_their_persons_properties(
    event_store: EventStore, batch: list[dict[str, Any]]
) -> None:
    """Whatever others, of another app each, sent at the same time; when they are stored, and collected later."""
    shops = [app() for _ in batch]
    rows = [row(shop, b"event_token=e&" + params(values))[1] for shop, values in zip(shops, batch, strict=True)]
    # Known, under the app's id.
    await insert(event_store, *(("events", (*fields[:-2], fields[0], True)) for fields in rows))
    sent = {UUID(int=fields[0]): json.loads(fields[8]) for fields in rows}
    of_these = f"app_id IN ({', '.join(repr(str(shop.id)) for shop in shops)})"
    for again in (False, True):
        if again:
            await event_store.change("TRUNCATE TABLE person_properties")
            await event_store.change(f"INSERT INTO person_properties {PROPERTIES.format(rows=of_these)}")
        found: dict[UUID, dict[str, Any]] = {shop.id: {} for shop in shops}
        for each in await event_store.query(f"SELECT person_id, field, value FROM person_properties WHERE {of_these}"):
            found[each["person_id"]][each["field"]] = json.loads(each["value"])
        assert alike(found, sent)


def alike(found: Any, sent: Any) -> bool:
    """Equal, of the same types; the engine writes a number with a fraction of 0 without it."""
    if isinstance(sent, float):
        return type(found) in (int, float) and float(found) == sent
    if isinstance(sent, dict):
        fields = cast("dict[Any, Any]", sent)
        return found.keys() == fields.keys() and all(alike(found[key], fields[key]) for key in fields)
    if isinstance(sent, list):
        elements = cast("list[Any]", sent)
        return len(found) == len(elements) and all(map(alike, found, elements))
    return type(found) is type(sent) and found == sent


async def test_of_a_milliseconds_hits_the_later_brings_the_newer_properties(event_store: EventStore) -> None:
    shop, seed = app(), random.randrange(1 << SEED_BITS)
    # Offset of a frame and how many hits it has.
    frames = [(5_000_000, 3), (5_000_120, 40), (5_005_000, 2), (5_090_000, 900)]
    places = [(start, index) for start, count in frames for index in range(count)]
    ids = [hit_id((seed << OFFSET_BITS | start) << INDEX_BITS, index, NOW) for start, index in places]
    rows = [row(shop, b"event_token=e&" + params({"n": n}))[1] for n in range(len(ids))]
    known = [(*fields[:2], id, *fields[3:-2], fields[0], True) for fields, id in zip(rows, ids, strict=True)]
    random.shuffle(known)
    for some in (known[:300], known[300:]):
        await insert(event_store, *(("events", fields) for fields in some))
    stored = await event_store.query(f"SELECT value, version FROM person_properties WHERE app_id = '{shop.id}'")
    expected = {str(n): property_version(id.to_bytes(16)) for n, id in enumerate(ids)}
    assert {each["value"]: each["version"] for each in stored} == expected
    assert list(expected.values()) == sorted(set(expected.values()))


@pytest.mark.parametrize(
    ("referrer", "host"),
    [
        (b"https://Shop.Example/cart?email=a@b.c", "shop.example"),
        (b"http://user:pass@shop.example:8080/", "shop.example"),
        (b"android-app://com.mail", "com.mail"),
        (b"", ""),
        (b"about:blank", ""),
        (b"https://[::1", ""),
        (b"\xff\xfe", ""),
    ],
)
def test_only_the_host_of_a_referrer_is_kept(referrer: bytes, host: str) -> None:
    assert referrer_host(referrer) == host


@pytest.mark.parametrize(("header", "text"), [(b"a", "a"), (b"\xe2\x9c\x93", "✓"), (b"\xff", "\ufffd")])
def test_headers_become_text_whatever_they_are(header: bytes, text: str) -> None:
    assert text_of(header) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "1970-01-01T00:00:00.000Z"), (1_795_456_800_005, "2026-11-23T18:00:00.005Z")],
)
def test_times_are_rfc_3339_with_milliseconds(milliseconds: int, text: str) -> None:
    assert timestamp(milliseconds) == text


async def test_which_rows_are_stored(event_store: EventStore) -> None:
    shop, other = app(), app()
    rows = [row(shop, b"event_token=e", number, NOW + number)[1] for number in range(2_000)]
    await event_store.insert("events", rows[::2], uuid4().hex)
    await insert(event_store, row(other, b"event_token=e", 5))
    asked = [(fields[0], fields[1], fields[2]) for fields in rows]
    assert await event_store.stored("events", asked) == {fields[2] for fields in rows[::2]}
