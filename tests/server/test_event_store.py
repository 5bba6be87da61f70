"""What the event store does beside storing: it lets hits go before reports."""
# pyright: reportPrivateUsage=false

import asyncio
import gc
import multiprocessing
import secrets
import time
import weakref
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest
from clickhouse_connect.driver.client import Client

from server import event_store as module
from server.event_store import EventStore, EventStoreUnavailable, _migrate, release_code, write_native
from tenants.errors import NewerSchema
from tenants.events import event_row, rejection_row
from tenants.hits import Event, Rejection, decode


async def threads(store: EventStore) -> str:
    return (await store.query("SELECT toString(getSetting('max_threads')) AS threads"))[0]["threads"]


@pytest.mark.parametrize(("hits", "busy"), [(1, False), (500, True)])
async def test_reports_take_one_core_while_many_hits_come_in(event_store: EventStore, hits: int, busy: bool) -> None:
    event_store._busy_until = 0.0
    usual = await threads(event_store)
    now = int(time.time() * 1000)
    rejection = Rejection("missing_event_token", "Say what happened.", secrets.token_hex(100))
    rows = [rejection_row(rejection, uuid4().int, now, number, "event") for number in range(hits)]
    await event_store.insert("rejections", rows, uuid4().hex)
    assert await threads(event_store) == ("1" if busy else usual)
    event_store._busy_until = 0.0
    assert await threads(event_store) == usual


async def test_a_file_that_was_cleared_away_is_to_be_inserted_again(event_store: EventStore, tmp_path: Path) -> None:
    """Whoever asked for it keeps the rows; it is no failure of the process that was asked."""
    with pytest.raises(EventStoreUnavailable):
        await event_store.insert_file("rejections", tmp_path / "gone.native", uuid4().hex)


async def test_properties_are_collected_once_more_of_events_that_are_stored_already(event_store: EventStore) -> None:
    """An insert that was cut off may have come to the events and not to their view."""
    app, person, named, at = uuid4(), uuid4(), uuid4(), int(time.time() * 1000)
    found = decode("event", b'event_token=a&params={"plan":"pro","at":"2024-01-01","n":1}', "EUR", privacy=False)
    assert isinstance(found, Event)
    row = event_row(found, app.int, at, named.int, "event", person.int, "", b"", b"", b"")
    await event_store.insert("events", [(*row[:-1], True)], uuid4().hex)
    properties = "SELECT field, value, version FROM person_properties WHERE app_id = {app:UUID} ORDER BY field"
    before = await event_store.query(properties, {"app": str(app)})
    assert [(each["field"], each["value"]) for each in before] == [
        ("at", '"2024-01-01"'),
        ("n", "1"),
        ("plan", '"pro"'),
    ]
    await event_store.change(f"ALTER TABLE person_properties DELETE WHERE app_id = '{app}' SETTINGS mutations_sync = 1")
    assert await event_store.query(properties, {"app": str(app)}) == []
    assert await event_store.stored("events", [(app.int, at, named.int), (app.int, at, 5)]) == {named.int}
    assert await event_store.query(properties, {"app": str(app)}) == before


async def test_a_statement_may_name_very_many(event_store: EventStore) -> None:
    ids = ", ".join(f"'{uuid4()}'" for _ in range(20_000))
    assert await event_store.query(f"SELECT count() AS n FROM events WHERE person_id IN ({ids})") == [{"n": 0}]
    await event_store.change(f"ALTER TABLE events DELETE WHERE person_id IN ({ids})")


def test_a_server_that_is_too_old_is_told_before_anything_is_changed() -> None:
    class Old:
        def command(self, sql: str) -> str:
            assert sql == "SELECT version()"
            return "25.3.14.14"

    with pytest.raises(EventStoreUnavailable, match=r"ClickHouse 25.3.14.14 is too old; it takes 25.12 or newer"):
        _migrate(cast("Client", Old()))


async def test_a_store_that_a_newer_version_changed_is_left_alone(
    event_store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    *older, (newest, _) = module.migrations()
    monkeypatch.setattr(module, "migrations", lambda: older)
    for asked in (event_store.pending, event_store.migrate):
        with pytest.raises(
            NewerSchema, match=rf"Event store: a newer version of onepx changed it \({newest}\); run that"
        ):
            asked()


async def test_what_is_read_of_a_closed_store_is_told_to_come_back(tmp_path: Path) -> None:
    """A page that takes longer than the process has to stop is no error of ours."""
    store = EventStore("http://127.0.0.1:1/onepx", tmp_path)
    store.close()
    with pytest.raises(EventStoreUnavailable):
        await store.query("SELECT 1")
    with pytest.raises(EventStoreUnavailable):
        await store.stream("SELECT 1", {}, "CSV", {}, 1)


@pytest.mark.parametrize("followed", [False, True])
def test_a_copy_without_symbolic_links_is_not_taken_for_an_empty_store(tmp_path: Path, followed: bool) -> None:
    (tables := tmp_path / "store" / "6c5" / "6c5d3854").mkdir(parents=True)
    (tables / "events.sql").touch()
    (tmp_path / "metadata" / ("default" if followed else "")).mkdir(parents=True)
    with pytest.raises(EventStoreUnavailable, match="metadata/default is no symbolic link, as in a copy"):
        EventStore(f"chdb://{tmp_path}", tmp_path).migrate()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metadata", "store"]


async def test_rows_that_were_written_are_let_go_at_once(tmp_path: Path) -> None:
    class Text(str):
        __slots__ = ("__weakref__",)

    detail = Text("Say what happened.")
    gone = weakref.ref(detail)
    rows = [[1, 1_000, 2, "event", "missing_event_token", detail, ""]]
    gc.disable()
    try:
        write_native("rejections", rows, tmp_path)
        rows.clear()
        del detail
        assert gone() is None, "not only when garbage is collected"
    finally:
        gc.enable()


async def test_a_report_does_not_take_the_memory_of_the_process_that_takes_hits(event_store: EventStore) -> None:
    # 2 GiB of values that are all different.
    values = "SELECT concat(toString(number), repeat('x', 8192)) AS value FROM numbers(262144)"
    with pytest.raises(EventStoreUnavailable, match="241"):
        await event_store.query(f"SELECT value, count() OVER () AS known FROM ({values}) ORDER BY value DESC LIMIT 20")
    assert await event_store.query("SELECT 1 AS n") == [{"n": 1}]


def resident_code() -> int:
    """kB of the engine's code that are in memory."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            ours = words[1] == "r-xp" and Path(words[-1]).name.startswith("_chdb.")
        elif words[0] == "Rss:" and ours:
            found += int(words[1])
    return found


async def test_code_that_only_the_start_needed_is_given_back(event_store: EventStore) -> None:
    before = resident_code()
    release_code()
    assert before > 0
    assert resident_code() < before / 4
    assert await event_store.query("SELECT sum(number) AS sum FROM numbers(10)") == [{"sum": 45}]


def test_a_store_from_before_ids_of_apps_were_numbers_is_taken_over(tmp_path: Path) -> None:
    """Done again while it is under way, as after a crash, and read meanwhile."""
    # The engine opens one folder a process.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        before, meanwhile, after, found = pool.submit(_taken_over, tmp_path).result()
    assert before == meanwhile == after == [3, 2]
    assert found == {"type": ["LowCardinality(UUID)"], "projections": ["by_person,seen"], "left": [0]}


def test_properties_that_an_earlier_version_spoiled_are_mended(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        before, after, later = pool.submit(_mended, tmp_path).result()
    assert before["b"] != '["x",1]'
    assert before["gone"] == after["gone"] == "[null,7]", "there is no event any more that tells"
    assert after == {"gone": "[null,7]", "b": '["x",1]', "plan": '"pro"', "o": '{"k":null}'}
    assert later == after | {"plan": '"team"', "new": '["a",1]'}


def _mended(folder: Path) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    store = EventStore(f"chdb://{folder}/store", folder)
    at = int(time.time() * 1000)

    def store_hits(first: int, *sent: str) -> None:
        rows: list[Any] = []
        for number, params in enumerate(sent, first):
            hit = decode("event", f"event_token=a&params={quote(params)}".encode(), "EUR", privacy=False)
            assert isinstance(hit, Event)
            row = event_row(hit, 1, at + number, (at + number << 80) + number, "event", 0, "", b"", b"", b"")
            rows.append((*row[:-2], 8 if '"c"' in params else 7, True))
        asyncio.run(store.insert("events", rows, str(first)))

    def properties() -> dict[str, str]:
        newest = "SELECT field, argMax(value, version) AS value FROM person_properties WHERE person_id = "
        rows = asyncio.run(store.query(f"{newest}'{UUID(int=7)}' GROUP BY field"))
        return {row["field"]: row["value"] for row in rows}

    every = module.migrations()
    module.migrations = lambda: [each for each in every if each[0] < "0010"]
    store.migrate()
    store_hits(1, '{"c":[1,2]}', '{"b":["x",1],"plan":"pro","o":{"k":null}}')
    gone = f"(toUUID('{UUID(int=1)}'), 'gone', toUUID('{UUID(int=7)}'), '[null,7]', now(), 1)"
    asyncio.run(store.change(f"INSERT INTO person_properties VALUES {gone}"))
    before = properties()
    module.migrations = lambda: every
    assert "0010_properties" in store.migrate()
    after = properties()
    store_hits(100, '{"c":[1,2]}', '{"plan":"team","new":["a",1]}')
    later = properties()
    store.close()
    return before, after, later


def _taken_over(folder: Path) -> tuple[list[int], list[int], list[int], dict[str, list[Any]]]:
    store = EventStore(f"chdb://{folder}/store", folder)
    apps = [UUID(int=number) for number in (1, 2)]

    def ask(sql: str, app: UUID | None = None) -> list[Any]:
        return [row["it"] for row in asyncio.run(store.query(sql, {"app": str(app)}))]

    def persons() -> list[int]:
        people = "SELECT person_id, max(received_at) FROM events WHERE app_id = {app:UUID} GROUP BY app_id, person_id"
        return [ask(f"SELECT count() AS it FROM ({people})", app)[0] for app in apps]

    every = module.migrations()
    module.migrations = lambda: [each for each in every if each[0] < "0009"]
    store.migrate()
    hit, at = decode("event", b"event_token=a", "EUR", privacy=False), int(time.time() * 1000)
    assert isinstance(hit, Event)
    rows = [
        event_row(hit, app.int, at + number, number + 1, "event", number % (4 - app.int) + 1, "", b"", b"", b"")
        for app in apps
        for number in range(10)
    ]
    asyncio.run(store.insert("events", rows, "1"))
    before = persons()
    asyncio.run(store.change("SYSTEM STOP MERGES events"))
    module.migrations = lambda: every
    assert store.migrate()[0] == "0009_apps"
    forget = "ALTER TABLE migrations DELETE WHERE name >= '0009' SETTINGS mutations_sync = 1"
    asyncio.run(store.change(forget))
    assert store.migrate()[0] == "0009_apps"
    meanwhile = persons()
    asyncio.run(store.change("SYSTEM START MERGES events"))
    of_events = "database = currentDatabase() AND table = 'events'"
    until = time.monotonic() + 60
    while (left := ask(f"SELECT countIf(NOT is_done) AS it FROM system.mutations WHERE {of_events}")) != [0]:
        assert time.monotonic() < until
        time.sleep(0.1)
    projections = "arrayStringConcat(arraySort(projections), ',')"
    found = {
        "type": ask(f"SELECT type AS it FROM system.columns WHERE {of_events} AND name = 'app_id'"),
        "projections": ask(f"SELECT DISTINCT {projections} AS it FROM system.parts WHERE active AND {of_events}"),
        "left": left,
    }
    after = persons()
    store.close()
    return before, meanwhile, after, found
