"""What the event store does beside storing: it lets hits go before reports."""
# pyright: reportPrivateUsage=false

import gc
import secrets
import time
import weakref
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest
from clickhouse_connect.driver.client import Client

from server.event_store import EventStore, EventStoreUnavailable, _migrate, release_code, write_native
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
