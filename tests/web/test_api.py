"""The JSON API: its reports over real events, whose they are, and what its reference says."""
# The reference is checked as the JSON it is.
# pyright: reportPrivateUsage=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import asyncio
import csv
import gc
import html
import io
import json
import re
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import uuid4
from zoneinfo import ZoneInfo

import httpx
import msgspec
import pytest
from application import HOST, Site

from server.event_store import EventStore
from tenants import apps, keys
from tenants.events import _after, event_row, rejection_row
from tenants.hits import Event, Rejection, decode
from tenants.reports.sql import COLUMNS
from tenants.tables import App, Tenant
from web.api import people, personal_data, records, reports
from web.api.examples import EXAMPLES

REPORTS = ("totals", "series", "breakdown", "revenue", "traffic", "fields", "retention", "funnel")


class Reader:
    """A program with a key of the tenant, and its app with some hits."""

    def __init__(self, client: httpx.AsyncClient, app: App, token: str, key: str) -> None:
        self.app = app
        self.token = token
        self.key = key
        self._client = client

    async def get(self, report: str, query: str = "", token: str = "", **headers: str) -> httpx.Response:
        headers = headers or {"Authorization": f"Bearer {self.key}"}
        return await self._client.get(f"/api/v1/apps/{token or self.token}/{report}?{query}", headers=headers)

    async def json(self, report: str, query: str = "") -> dict[str, Any]:
        response = await self.get(report, query)
        assert response.status_code == 200, response.text
        return response.json()


async def reader(site: Site, tenant: Tenant) -> Reader:
    app, token = await apps.create_app(tenant, "Shop", "EUR")
    await apps.change_app(app, timezone="Europe/Berlin")
    _, key = await keys.create_key(tenant, "Reader")
    return Reader(await site.browser(), app, token, key)


async def store_hits(store: EventStore, app: App, *queries: str) -> None:
    at = int((datetime.now(UTC) - timedelta(minutes=1)).timestamp() * 1000)
    rows: list[Any] = []
    for number, query in enumerate(queries):
        category = "revenue" if "amount=" in query else "event"
        found = decode(category, query.encode(), "EUR", privacy=False)
        assert isinstance(found, Event)
        rows.append(event_row(found, app.id.int, at + number, uuid4().int, category, number + 1, "", b"", b"", b""))
    await store.insert("events", rows, uuid4().hex)
    minute = datetime.fromtimestamp(at // 60_000 * 60, UTC)
    await store.insert("traffic", [(app.id.int, minute, len(rows), 3, 2, 1)], uuid4().hex)


async def test_the_apps_a_key_reads(site: Site, alice: Tenant, bob: Tenant) -> None:
    first, second, theirs = await reader(site, alice), await reader(site, alice), await reader(site, bob)
    rotated = await apps.tokens.rotate(second.app, timedelta(0))
    client = await site.browser()

    async def listed(key: str) -> list[tuple[str, list[str]]]:
        reply = await client.get("/api/v1/apps", headers={"Authorization": f"Bearer {key}"})
        return [(app["id"], app["tokens"]) for app in reply.json()["apps"]]

    mine = [(str(first.app.id), [first.token]), (str(second.app.id), [rotated])]
    assert await listed(first.key) == await listed(second.key) == mine
    assert await listed(theirs.key) == [(str(theirs.app.id), [theirs.token])]
    _, of_one = await keys.create_key(alice, "Of one", app=second.app)
    assert await listed(of_one) == mine[1:]
    for token, status in ((rotated, 200), (second.token, 200), (first.token, 404), (theirs.token, 404)):
        reply = await client.get(f"/api/v1/apps/{token}/totals", headers={"Authorization": f"Bearer {of_one}"})
        assert reply.status_code == status
    assert (await client.get("/api/v1/apps")).status_code == 401
    for app in await apps.list_apps(bob):
        await apps.delete_app(app)
    assert await listed(theirs.key) == []


@pytest.fixture
async def ours(site: Site, alice: Tenant, event_store: EventStore) -> Reader:
    found = await reader(site, alice)
    await store_hits(
        event_store,
        found.app,
        'event_token=view&params={"plan":"pro","n":2}',
        'event_token=view&params={"plan":"team"}',
        "event_token=signup",
        'event_token=buy&amount=1000&params={"plan":"pro"}',
        "event_token=buy&amount=-300&currency=USD",
    )
    return found


async def test_reports(ours: Reader) -> None:
    found = await ours.json("totals", "period=24h")
    assert found["totals"]["events"] == {"now": 5, "before": 0}
    assert found["totals"]["rejected"] == {"now": 3, "before": 0}
    assert (found["period"]["name"], found["period"]["timezone"]) == ("24h", "Europe/Berlin")
    found = await ours.json("series", "period=24h&interval=day&lines=1")
    assert sum(found["series"]["events"]) == 5
    assert [line["event_token"] for line in found["series"]["lines"]] == ["buy", None]
    assert len(found["series"]["buckets"]) == len(found["series"]["persons"])
    found = await ours.json("breakdown", "field=params.plan&period=24h")
    assert found["breakdown"]["values"] == [
        {"value": None, "events": 2, "persons": 2, "share": 0.4, "net": {"USD": -300}},
        {"value": "pro", "events": 2, "persons": 2, "share": 0.4, "net": {"EUR": 1000}},
        {"value": "team", "events": 1, "persons": 1, "share": 0.2, "net": {}},
    ]
    found = await ours.json("revenue", "period=24h")
    assert [row["currency"] for row in found["revenue"]] == ["EUR", "USD"]
    assert found["revenue"][0]["net"] == {"now": 1000, "before": 0}
    assert sum(found["series"]["lines"][1]["refunded"]) == 300
    found = await ours.json("traffic", "period=24h")
    assert [sum(found["traffic"][name]) for name in ("recorded", "rejected", "duplicate", "limited")] == [5, 3, 2, 1]
    found = await ours.json("fields", "period=24h")
    assert found == {
        "fields": [{"field": "params.plan", "share": 0.6}, {"field": "params.n", "share": 0.2}],
        "looked_at": 5,
        "properties": [],
    }


async def test_retention_and_funnel(ours: Reader, event_store: EventStore) -> None:
    found = await ours.json("retention", "period=7d&first=view")
    assert (found["period"]["interval"], found["retention"]["interval"]) == ("day", "day")
    assert sum(cohort["size"] for cohort in found["retention"]["cohorts"]) == 2
    assert (found["retention"]["first"], found["retention"]["back"]) == ("view", None)
    bought = await ours.json("retention", "period=7d&first=view&return=buy")
    assert sum(sum(cohort["returned"]) for cohort in bought["retention"]["cohorts"]) == 0
    query = "step1=view&step1.params.plan=pro&step2=buy&within=2&unit=hours&by=params.plan"
    found = (await ours.json("funnel", query))["funnel"]
    assert [(step["event_token"], step["persons"]) for step in found["steps"]] == [("view", 1), ("buy", 0)]
    assert (found["window_seconds"], [value["value"] for value in found["values"]]) == (7_200, ["pro"])
    await store_hits(event_store, ours.app, "event_token=view", "event_token=signup")
    twice = (await ours.json("funnel", "step1=view&step2=view&step3=signup"))["funnel"]
    assert [step["persons"] for step in twice["steps"]] == [2, 1, 0]


FILTERED = [
    ("", 5),
    ("category=&event_token=&params.plan=", 5),
    ("event_token=view", 2),
    ("event_token=view&event_token=signup", 3),
    ("event_token!=view", 3),
    ("event_token%21=view&event_token!=signup", 2),
    ("category=revenue&currency=eur", 1),
    ("params.plan=pro&params.plan=team", 3),
    ("params.plan=pro&category=event", 1),
    ("params.n=2", 1),
    ("missing=params.plan", 2),
    ("missing!=params.plan", 3),
    ("empty=params.plan", 0),
    ("unknown=1&cb=2", 5),
]


async def test_filters(ours: Reader) -> None:
    for query, events in FILTERED:
        assert (await ours.json("totals", query))["totals"]["events"]["now"] == events, query
        assert sum((await ours.json("series", query))["series"]["events"]) == events, query
        assert (await ours.json("breakdown", f"field=event_token&{query}"))["breakdown"]["events"] == events, query
        assert (await ours.json("fields", query))["looked_at"] == events, query
        assert len((await ours.json("events", query))["events"]) == events, query


async def test_lists_are_of_a_period_or_of_all_that_is_kept(ours: Reader, event_store: EventStore) -> None:
    """Without a period they are read on from page to page, however old what comes is."""
    now = datetime.now(UTC)
    for table, hit in (("events", b"event_token=old"), ("rejections", b"")):
        rows: list[Any] = []
        for number, days in enumerate((0, 3, 20) if table == "rejections" else (3, 20, 200)):
            at = int((now - timedelta(days=days, minutes=1)).timestamp() * 1000)
            found = decode("event", hit, "EUR", privacy=False)
            if isinstance(found, Rejection):
                rows.append(rejection_row(found, ours.app.id.int, at, uuid4().int, "event"))
            else:
                assert isinstance(found, Event)
                rows.append(event_row(found, ours.app.id.int, at, uuid4().int, "event", number + 9, "", b"", b"", b""))
        await event_store.insert(table, rows, uuid4().hex)

    async def counts(query: str) -> list[int]:
        return [len((await ours.json(name, query))[name]) for name in ("events", "rejections")]

    day = (now - timedelta(days=20)).astimezone(ZoneInfo("Europe/Berlin")).date()
    assert await counts("") == await counts("period=") == [8, 3]
    assert await counts("period=7d") == [6, 2]
    assert await counts("period=90d&limit=1000") == [7, 3]
    assert await counts(f"from={day - timedelta(days=1)}&to={day + timedelta(days=1)}") == [1, 1]
    assert len((await ours.json("events", "period=365d&event_token=old&event_token=view"))["events"]) == 5
    first = await ours.json("events", "period=90d&event_token=old&limit=1")
    second = await ours.json("events", f"period=90d&event_token=old&limit=1&cursor={first['next']}")
    assert first["events"][0]["received_at"] > second["events"][0]["received_at"]
    assert second["next"] is None

    async def exported(query: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO((await ours.get("export", query)).text)))

    assert [row["event_token"] for row in await exported("")] == ["old"] * 3 + ["view", "view", "signup", "buy", "buy"]
    assert [row["event_token"] for row in await exported("period=90d&event_token=old")] == ["old"] * 2
    assert (await exported("category=revenue&currency=EUR"))[0]["amount_decimal"] == "10.00"
    whole, month = await ours.get("export"), await ours.get("export", "period=30d&format=parquet")
    assert whole.headers["content-disposition"] == 'attachment; filename="shop.csv"'
    assert re.search(r'filename="shop-\d{4}-.*\.parquet"', month.headers["content-disposition"])
    assert month.content[:4] == month.content[-4:] == b"PAR1"


async def test_who_goes_away_ends_the_export(
    site: Site, ours: Reader, event_store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes]:
        try:
            while True:
                yield b"more"
        finally:
            ended.set()

    async def stream(*_: Any) -> AsyncGenerator[bytes]:
        return endless()

    monkeypatch.setattr(event_store, "stream", stream)
    sent = asyncio.Event()

    async def send(message: Any) -> None:
        if message.get("body"):
            sent.set()
            await asyncio.Event().wait()  # nothing is taken any more

    async def receive() -> Any:
        if sent.is_set():
            return {"type": "http.disconnect"}
        await sent.wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": f"/api/v1/apps/{ours.token}/export",
        "query_string": b"",
        "headers": [(b"host", HOST.encode()), (b"authorization", f"Bearer {ours.key}".encode())],
        "client": ("192.0.2.7", 40_000),
        "server": (HOST, 80),
        "scheme": "http",
        "http_version": "1.1",
    }
    gc.disable()
    try:
        async with asyncio.timeout(5):
            await site.app(cast("Any", scope), receive, send)
            await ended.wait()
    finally:
        gc.enable()


REFUSED = [
    ("totals", "period=year", "period"),
    ("totals", "interval=minute", "interval"),
    ("series", "from=2026-02-30", "from"),
    ("revenue", "from=2026-01-02&to=2026-01-01", "to"),
    ("traffic", "to=2026-01-01", "from"),
    ("fields", "category=x", "category"),
    ("totals", "currency=EURO", "currency"),
    ("totals", "params..a=x", "params..a"),
    ("totals", "missing=email", "missing"),
    ("breakdown", "", "field"),
    ("breakdown", "field=plan", "field"),
    ("breakdown", "field=params.a`.:`b`..c", "field"),
    ("retention", "from=2020-01-01&interval=month", "from"),
    ("retention", f"return={'a' * 256}", "return"),
    ("events", "limit=0", "limit"),
    ("events", "period=year", "period"),
    ("events", "category=x", "category"),
    ("people", "revenue.EURO=1&currency=EUR", "revenue.EURO"),
    ("rejections", "to=2026-01-01", "from"),
    ("export", "format=xlsx", "format"),
    ("export", "params..a=x", "params..a"),
    ("events", "limit=many", "limit"),
    ("people", f"cursor={'a' * 65}", "cursor"),
    ("funnel", "step1=view", "step2"),
    ("funnel", "step1=view&step2=buy&step9=x", "step9"),
    ("funnel", "step1=view&step2=buy&step2.currency=EURO", "step2.currency"),
    ("funnel", "step1=view&step2=buy&within=0", "within"),
    ("funnel", "step1=view&step2=buy&unit=weeks", "unit"),
    ("funnel", "step1=view&step2=buy&by=plan", "by"),
]


async def test_what_cannot_be_used_is_told(ours: Reader) -> None:
    for report, query, field in REFUSED:
        response = await ours.get(report, query)
        assert response.status_code == 400, query
        assert response.json()["field"] == field, query
        assert response.json().keys() == {"status_code", "detail", "field"}, query


async def test_limits_have_limits(ours: Reader) -> None:
    for query in ("limit=0", "limit=1001", "limit=x"):
        assert (await ours.get("breakdown", f"field=event_token&{query}")).status_code == 400
    assert (await ours.get("series", "lines=21")).status_code == 400


HOSTILE = [
    "field=params.%60%3A%60Int64%60",
    "field=params.%00",
    "field=params.%ff",
    "params.%22%27%5C=%22%27%5C",
    "params.a%ED%A0%80=b",
    "event_token=%27%20OR%201%3D1%20--",
    "params.x=%7Bapp%3AUUID%7D",
    "&&&=&=x&params=1&params.plan",
]


async def test_hostile_queries_are_answered(ours: Reader) -> None:
    for query in HOSTILE:
        response = await ours.get("breakdown", query if query.startswith("field") else f"field=params.plan&{query}")
        assert response.status_code in (200, 400), query


async def test_every_route_asks_whose_key_it_is(ours: Reader, site: Site, bob: Tenant) -> None:
    theirs = await reader(site, bob)
    for report in (*REPORTS, "events", "rejections", "export"):
        assert (await ours.get(report, Authorization="")).status_code == 401
        assert (await ours.get(report, Authorization="Bearer onepx_wrong")).status_code == 401
        query = "field=event_token&step1=view&step2=buy"
        assert (await ours.get(report, query, theirs.token)).status_code == 404
        assert (await ours.get(report, query, "0" * 24)).status_code == 404
        assert (await ours.get(report, query)).status_code == 200
    assert (await theirs.json("totals"))["totals"]["events"]["now"] == 0


async def test_numbers_of_an_attacker_are_answered(ours: Reader, event_store: EventStore) -> None:
    """More than 64 bits hold in sum; every answer stays valid JSON."""
    at = int(datetime.now(UTC).timestamp() * 1000) - 60_000
    found = decode("revenue", b"event_token=x&amount=1000000000000000", "EUR", privacy=False)
    assert isinstance(found, Event)
    rows = [
        event_row(found, ours.app.id.int, at, uuid4().int, "revenue", number, "", b"", b"", b"")
        for number in range(9_500)
    ]
    await event_store.insert("events", rows, uuid4().hex)
    await ours.json("revenue")
    await ours.json("breakdown", "field=event_token")


def test_examples_are_answers() -> None:
    names = ("apps", "events", "rejections", "people", "person", "person_events", *REPORTS)
    names += ("export_person", "delete_person", "deletions")
    parts = (*records.ANSWERS, *people.ANSWERS, *reports.ANSWERS, *personal_data.ANSWERS)
    answers: dict[str, Any] = dict(zip(names, parts, strict=True))
    assert EXAMPLES.keys() == {*answers, "export_events"}
    for name, answer in answers.items():
        text = json.dumps(EXAMPLES[name])
        parsed = msgspec.json.decode(text, type=answer)
        assert msgspec.to_builtins(parsed) == json.loads(text), "no field is missing, none is too many"
    assert _after(EXAMPLES["events"]["next"])[1]["id"] == EXAMPLES["events"]["events"][-1]["id"]
    (rejection,) = EXAMPLES["rejections"]["rejections"]
    meant = decode(rejection["category"], rejection["query"].encode(), "EUR", privacy=False)
    assert isinstance(meant, Rejection)
    assert (meant.reason, meant.detail) == (rejection["reason"], rejection["detail"])


async def test_the_example_of_a_file_has_the_columns_there_are(ours: Reader) -> None:
    (row,) = csv.DictReader(io.StringIO(EXAMPLES["export_events"]))
    assert list(row) == next(csv.reader(io.StringIO((await ours.get("export")).text)))
    event = EXAMPLES["events"]["events"][0]
    assert (row["id"], row["amount"], row["person_id"]) == (event["id"], str(event["amount"]), event["person_id"])


async def test_the_reference_is_made_once_for_everybody(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = await site.browser()
    addresses = ("/api/docs", "/api/docs/openapi.json")
    first = [(await browser.get(address)).text for address in addresses]

    def again(_schema: Any) -> Any:
        raise AssertionError("made again")

    monkeypatch.setattr("web.app.described", again)
    assert [(await browser.get(address)).text for address in addresses] == first


async def test_the_reference_has_every_report_with_an_example(site: Site) -> None:
    browser = await site.browser()
    document = (await browser.get("/api/docs/openapi.json")).json()
    page = (await browser.get("/api/docs")).text
    for name in REPORTS:
        operation = document["paths"][f"/api/v1/apps/{{app_token}}/{name}"]["get"]
        content = operation["responses"]["200"]["content"]["application/json"]
        assert content["example"] == EXAMPLES[name]
        named = {parameter["name"] for parameter in operation["parameters"]}
        assert {"app_token", "period", "from", "to", "interval"} <= named
        assert ("params.{field}" in named) == (name != "traffic")
        assert all(parameter["description"] for parameter in operation["parameters"])
        for parameter in operation["parameters"]:
            # Sent as it is, a name with a brace would ask for another field.
            assert ("{" in parameter["name"]) == (parameter["schema"].get("type") == "object")
        assert set(COLUMNS) <= named or name == "traffic"
        assert f'id="{name}"' in page
    person = "people/{person_id}"
    for name, tail in (
        ("events", "events"),
        ("rejections", "rejections"),
        ("people", "people"),
        ("person", person),
        ("person_events", f"{person}/events"),
    ):
        content = document["paths"][f"/api/v1/apps/{{app_token}}/{tail}"]["get"]["responses"]["200"]["content"]
        assert content["application/json"]["example"] == EXAMPLES[name]
    file = document["paths"]["/api/v1/apps/{app_token}/export"]["get"]["responses"]["200"]["content"]
    assert file["text/csv"]["example"] == EXAMPLES["export_events"]
    assert file["application/vnd.apache.parquet"]["schema"]["format"] == "binary"
    assert "with <code>text/csv</code> or <code>application/vnd.apache.parquet</code>" in page
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    shown = [operation["operationId"] for operation in operations if '"example"' in json.dumps(operation["responses"])]
    assert sorted(shown) == sorted(EXAMPLES), "every operation has one"
    assert len(shown) == len(operations)
    assert page.count("Example of an answer") == len(operations)
    assert "missing_amount" in page
    commands = [html.unescape(code) for code in re.findall(r"<code>(curl .*?)</code>", page)]
    assert len(commands) == len(operations)
    assert any(command.endswith('/$APP_TOKEN/breakdown?field=params.plan"') for command in commands)
    assert any(command.endswith('/$APP_TOKEN/funnel?step1=page_view&step2=signup"') for command in commands)
    # In single quotes the shell would leave them as they are.
    assert not any("'" in command for command in commands)
    for operation in operations:
        assert {"400", "401", "404", "429", "503"} < operation["responses"].keys()
    names = [name for kind in document["components"].values() for name in kind]
    assert [name for name in names if not re.fullmatch(r"[A-Za-z0-9._-]+", name)] == [], "no tool reads the document"
    described = document["components"]["schemas"]
    assert [name for name, schema in described.items() if not schema.get("description")] == []
    assert "null" in page
    assert not re.search(r"\bNone\b", json.dumps(described)), "a word of Python's"
    for name, field in (("Event", "received_at"), ("Person", "last_seen"), ("Receipt", "requested_at")):
        assert described[name]["properties"][field]["format"] == "date-time"
    assert described["WholePerson"]["properties"]["known_at"]["oneOf"][0]["format"] == "date-time"
    assert "Default false." in page, "as it is written in an address"
    # It is long: whoever looks for something is led there.
    assert re.findall(r'<li><a href="#(\w+)">', page) == [*(each["operationId"] for each in operations), "schemas"]
    assert "`" not in page
    assert "<code>retention_days</code> is null" in page
    assert {"Events", "Rejections"} <= {answer.__name__ for answer in records.ANSWERS}
