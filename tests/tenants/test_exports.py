"""Exports: every event once, as it was sent; a CSV that no spreadsheet takes for formulas; nothing left behind."""

# pyright: reportPrivateUsage=false

import asyncio
import csv
import errno
import gc
import io
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote
from uuid import UUID, uuid4

import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]
import pytest

from server import event_store as module
from server.event_store import EventStore, EventStoreRefused
from server.journal import hit_id
from server.streams import ByteStream
from tenants.errors import Busy
from tenants.events import event_row, timestamp
from tenants.exports import Format, export
from tenants.hits import Category, Event, decode
from tenants.tables import App

NOW = int(time.time() * 1000)
HEADER = [
    *("received_at", "id", "category", "event_token", "amount", "amount_decimal", "currency", "event_id", "params"),
    *("person_id", "email", "uuid", "fbid", "warnings", "referrer_host", "user_agent"),
]
# More than a row group of Parquet, and far more than a pipe holds.
ROWS = 150_000


def app(tenant: int = 1) -> App:
    return App(id=uuid4(), tenant=tenant, name="Site", currency="USD")


async def insert(
    store: EventStore, of: App, query: str, number: int = 0, at: int = NOW, category: Category = "event", **more: Any
) -> UUID:
    found = decode(category, query.encode(), "USD", privacy=False)
    assert isinstance(found, Event)
    named = hit_id(number, 0, at)
    headers: dict[str, Any] = {"visitor_id": 0, "network": "", "user_agent": b"", "referrer": b"", "sec_purpose": b""}
    row = event_row(found, of.id.int, at, named, category, **headers | more)
    await store.insert("events", [row], uuid4().hex)
    return UUID(int=named)


async def insert_many(store: EventStore, of: App, rows: int) -> None:
    await store.change(
        "INSERT INTO events (app_id, received_at, id, category, event_token, params_text) SELECT {app:UUID}, "
        "now64(3) - number % 86400, generateUUIDv4(number), 'event', concat('t', toString(number)), '{}' "
        f"FROM numbers({rows})",
        {"app": str(of.id)},
    )


async def start(
    store: EventStore, of: App, format: Format = "csv", condition: str = "", **parameters: Any
) -> AsyncIterator[bytes]:
    moment = datetime.fromtimestamp(NOW / 1000, UTC)
    day = timedelta(days=2)
    return await export(of, store, moment - day, moment + day, condition, parameters, format)


async def everything(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def as_csv(store: EventStore, of: App, condition: str = "", **parameters: Any) -> list[dict[str, str]]:
    text = (await everything(await start(store, of, "csv", condition, **parameters))).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


async def as_parquet(store: EventStore, of: App) -> list[dict[str, Any]]:
    data = await everything(await start(store, of, "parquet"))
    table = table_of(data)
    assert str(table["received_at"].type) == "timestamp[ms, tz=UTC]"
    # As a number: to make a datetime pyarrow asks for pandas, which the server keeps from being loaded.
    return table.set_column(0, "received_at", table["received_at"].cast("int64")).to_pylist()


def table_of(data: bytes) -> Any:
    return cast("Any", pyarrow.parquet).ParquetFile(io.BytesIO(data)).read()


VALUES = '{"email":"Ann@x.org","uuid":7,"fbid":"42","a":"é,\\n\\"","_":1}'
SENT = f"event_token=buy&amount=-2550&currency=eur&event_id=o-1&params={VALUES}"


async def test_an_event_with_everything(event_store: EventStore) -> None:
    shop, visitor = app(), uuid4()
    headers: dict[str, Any] = {
        "visitor_id": visitor.int,
        "referrer": b"https://shop.example/x",
        "user_agent": b'Mozilla "5", x',
    }
    named = await insert(event_store, shop, SENT, category="revenue", **headers)
    (row,) = await as_csv(event_store, shop)
    assert list(row) == HEADER
    assert row == {
        "received_at": timestamp(NOW),
        "id": str(named),
        "category": "revenue",
        "event_token": "buy",
        "amount": "-2550",
        "amount_decimal": "-25.50",
        "currency": "EUR",
        "event_id": "o-1",
        "params": '{"a":"é,\\n\\""}',
        "person_id": str(visitor),
        "email": "ann@x.org",
        "uuid": "7",
        "fbid": "42",
        "warnings": "ignored_fields",
        "referrer_host": "shop.example",
        "user_agent": 'Mozilla "5", x',
    }
    (typed,) = await as_parquet(event_store, shop)
    assert list(typed) == HEADER
    assert typed == row | {
        "received_at": NOW,
        "amount": -2550,
        "amount_decimal": "-25.50",
    }


async def test_an_event_with_nothing(event_store: EventStore) -> None:
    shop = app()
    await insert(event_store, shop, "event_token=e")
    (row,) = await as_csv(event_store, shop)
    (typed,) = await as_parquet(event_store, shop)
    given = {"received_at", "id", "category", "event_token", "params", "warnings"}
    assert {name for name, value in row.items() if value} == given - {"warnings"}
    assert {name for name, value in typed.items() if value is not None} == given


async def test_an_app_without_events_has_a_file_with_names_alone(event_store: EventStore) -> None:
    assert (
        await everything(await start(event_store, app())) == (",".join(f'"{name}"' for name in HEADER) + "\n").encode()
    )
    assert await as_parquet(event_store, app()) == []


@pytest.mark.parametrize(
    ("currency", "amount", "shown"),
    [
        ("usd", "5", "0.05"),
        ("jpy", "500", "500"),
        ("kwd", "-1", "-0.001"),
        ("clf", "1000000000000001", None),
        ("clf", "1000000000000000", "100000000000.0000"),
        ("usd", "999999999999999", "9999999999999.99"),
    ],
)
async def test_amounts_are_exact(event_store: EventStore, currency: str, amount: str, shown: str | None) -> None:
    shop = app()
    if shown is None:
        assert not isinstance(decode("revenue", f"event_token=e&amount={amount}".encode(), "USD", False), Event)
        return
    await insert(event_store, shop, f"event_token=e&amount={amount}&currency={currency}", category="revenue")
    (row,) = await as_csv(event_store, shop)
    assert (row["amount"], row["amount_decimal"], row["currency"]) == (amount, shown, currency.upper())
    (typed,) = await as_parquet(event_store, shop)
    assert (typed["amount"], typed["amount_decimal"]) == (int(amount), shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\u00a0 =1", "'\u00a0 =1"),
        ("\ufeff=1", "'\ufeff=1"),
        ("\u200b\u200b@x", "'\u200b\u200b@x"),
        ("＝1", "'＝1"),
        ("'=1", "'=1"),
        ("a=1", "a=1"),
        ("1-2", "1-2"),
        ('"=1', '"=1'),
        ("é", "é"),
        ("\\N", "\\N"),
        ('a",=1', 'a",=1'),
        ("a\\", "a\\"),
        ("$a", "$a"),
    ],
)
async def test_no_cell_of_text_is_a_formula(event_store: EventStore, text: str, shown: str) -> None:
    shop = app()
    sent = f"event_token={quote(text)}&event_id={quote(text)}&params={quote(json.dumps({'uuid': text}))}"
    await insert(event_store, shop, sent, user_agent=text.encode())
    (row,) = await as_csv(event_store, shop)
    # Spaces at both ends are not kept of any but the user agent.
    stripped = shown if shown != f"'{text}" else f"'{text.strip()}"
    assert (row["event_token"], row["event_id"], row["uuid"]) == (stripped, stripped, stripped)
    assert row["user_agent"] == shown
    (typed,) = await as_parquet(event_store, shop)
    assert (typed["event_token"], typed["user_agent"]) == (text.strip(), text)


@pytest.mark.parametrize("text", ["\t=1", "\r=1", "\n=1", "\tx", "\rx", "\nx", "  \t@x", "\0=1"])
async def test_control_characters_hide_no_formula(event_store: EventStore, text: str) -> None:
    shop = app()
    await insert(event_store, shop, "event_token=e", user_agent=text.encode())
    (row,) = await as_csv(event_store, shop)
    assert row["user_agent"] == f"'{text}"


async def test_only_the_apps_events_of_the_period_in_their_order(event_store: EventStore) -> None:
    shop, other = app(), app()
    for number, at in enumerate((NOW, NOW - 5, NOW - 5, NOW - 3 * 86_400_000, NOW + 2 * 86_400_000 - 1)):
        await insert(event_store, shop, f"event_token=t{number}", number, at)
    await insert(event_store, shop, "event_token=beyond", 9, NOW + 2 * 86_400_000)
    await insert(event_store, other, "event_token=theirs", 9)
    assert [row["event_token"] for row in await as_csv(event_store, shop)] == ["t1", "t2", "t0", "t4"]


async def test_a_condition_is_about_what_is_stored(event_store: EventStore) -> None:
    shop = app()
    for number, token in enumerate(("%3Da", "b", "c")):
        await insert(event_store, shop, f"event_token={token}&amount={number}00", number, category="revenue")
    found = await as_csv(event_store, shop, " AND event_token IN {t:Array(String)}", t=["=a", "b", "it's\\\n"])
    assert [row["event_token"] for row in found] == ["'=a", "b"]
    assert len(await as_csv(event_store, shop, " AND amount = {n:Int64} AND params.x.:String IS NULL", n=200)) == 1
    with pytest.raises(EventStoreRefused):
        await start(event_store, shop, "csv", " AND toUUID({t:String}) = id", t="x")


@pytest.mark.parametrize("format", ["csv", "parquet"])
async def test_a_large_export_is_whole(event_store: EventStore, format: Format) -> None:
    shop = app()
    await insert_many(event_store, shop, ROWS)
    data = await everything(await start(event_store, shop, format))
    if format == "csv":
        tokens = [row["event_token"] for row in csv.DictReader(io.StringIO(data.decode()))]
    else:
        tokens = table_of(data)["event_token"].to_pylist()
    assert len(tokens) == ROWS
    assert set(tokens) == {f"t{number}" for number in range(ROWS)}


# Ended before its end


async def idle(store: EventStore) -> bool:
    """Whether nothing of any export is left: no place taken, no query, no pipe."""
    queries = await store.query("SELECT query FROM system.processes WHERE position(query, concat('OUT', 'FILE')) > 0")
    return not (store._streaming or queries or list(store._tmp_dir.glob("*.export")))


async def until_idle(store: EventStore) -> None:
    end = time.monotonic() + 20
    while not await idle(store):
        assert time.monotonic() < end, "an export goes on that nobody reads"
        await asyncio.sleep(0.05)


async def read_some(stream: AsyncIterator[bytes]) -> None:
    async for _ in stream:
        await asyncio.sleep(3600)


async def close(stream: AsyncIterator[bytes]) -> None:
    cast("ByteStream", stream).close()


async def drop(_stream: AsyncIterator[bytes]) -> None:
    """Do nothing: the caller forgets it too."""


async def close_while_it_reads(stream: AsyncIterator[bytes]) -> None:
    reading = asyncio.create_task(everything(stream))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def close_between_reads(stream: AsyncIterator[bytes]) -> None:
    reading = asyncio.create_task(read_some(stream))
    await asyncio.sleep(0.05)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


@pytest.mark.parametrize("format", ["csv", "parquet"])
@pytest.mark.parametrize("leave", [close, drop, close_while_it_reads, close_between_reads])
async def test_who_goes_away_leaves_nothing_behind(
    event_store: EventStore, leave: Callable[[AsyncIterator[bytes]], Any], format: Format
) -> None:
    shop = app()
    await insert_many(event_store, shop, ROWS)
    errors = event_store.errors
    for _ in range(2):
        await leave(await start(event_store, shop, format))
        gc.collect()
        await until_idle(event_store)
    assert event_store.errors == errors
    # And the places are free again.
    assert len(await as_csv(event_store, app())) == 0


async def test_who_goes_away_from_a_machine_with_many_connections_leaves_nothing_behind(
    event_store: EventStore,
) -> None:
    """select() takes no descriptor above 1,023: the pipe of an export was never emptied, its place never free again."""
    shop = app()
    await insert_many(event_store, shop, ROWS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    connections = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        await close(await start(event_store, shop))
    finally:
        for connection in connections:
            os.close(connection)
    await until_idle(event_store)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_who_goes_away_before_the_first_bytes_leaves_nothing_behind(event_store: EventStore) -> None:
    shop = app()
    await insert_many(event_store, shop, ROWS)
    for delay in (0, 0.001, 0.01, 0.03):
        starting = asyncio.create_task(start(event_store, shop, "parquet", " AND NOT ignore(sleepEachRow(0.0001))"))
        await asyncio.sleep(delay)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        del starting
        gc.collect()
        await until_idle(event_store)


_ONE_DESCRIPTOR_LEFT = """
import os, resource, sys
from pathlib import Path
from server.streams import ByteStream

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    os.close(taken.pop())
try:
    ByteStream(Path(sys.argv[1], "x.export"), print)
except OSError as error:
    print(error.strerror)
os.dup(0)
"""


def test_a_stream_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    """Each one asked for while descriptors run out would take one more."""
    done = subprocess.run(
        [sys.executable, "-c", _ONE_DESCRIPTOR_LEFT, tmp_path], check=True, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout.strip() == os.strerror(errno.EMFILE)
    assert list(tmp_path.iterdir()) == []


async def test_an_export_whose_pipe_was_cleared_away_ends(event_store: EventStore) -> None:
    """As what killed processes left is: by its age, which is that of the last bytes."""
    shop = app()
    await insert_many(event_store, shop, ROWS)
    stream = await start(event_store, shop)
    cast("ByteStream", stream).path.unlink()
    async with asyncio.timeout(30):
        assert len((await everything(stream)).splitlines()) == ROWS + 1
    await until_idle(event_store)


async def test_what_nobody_begins_to_read_loses_the_place(
    event_store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for with HEAD, say."""
    monkeypatch.setattr("server.streams._BEGIN_SECONDS", 0.1)
    shop = app()
    await insert_many(event_store, shop, ROWS)
    stream = await start(event_store, shop)
    await until_idle(event_store)
    with pytest.raises(ConnectionAbortedError):
        await everything(stream)


async def test_who_goes_away_while_waiting_for_more_loses_the_place(event_store: EventStore) -> None:
    shop = app()
    await insert_many(event_store, shop, ROWS)
    stream = await start(event_store, shop, "csv", " AND NOT ignore(sleepEachRow(0.0001))")
    await anext(stream)

    async def rest() -> None:
        async for _ in stream:
            pass

    reading = asyncio.create_task(rest())
    await asyncio.sleep(0.05)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until_idle(event_store)
    assert stream is not None


async def test_who_reads_nothing_for_long_loses_the_place(
    event_store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.streams._STALLED_SECONDS", 0.1)
    shop = app()
    await insert_many(event_store, shop, ROWS)
    stream = await start(event_store, shop)
    await anext(stream)
    await until_idle(event_store)
    with pytest.raises(ConnectionAbortedError):
        await everything(stream)


@pytest.mark.parametrize("least", [1, 1024**3])
async def test_who_takes_little_for_long_loses_the_place(
    event_store: EventStore, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    """A place may be held for a day, and there are few."""
    monkeypatch.setattr("server.streams._STALLED_SECONDS", 0.3)
    monkeypatch.setattr("server.streams._LEAST_BYTES", least)
    shop = app()
    await insert_many(event_store, shop, ROWS)
    stream = await start(event_store, shop)

    async def slowly() -> int:
        read = 0
        async for chunk in stream:
            read += len(chunk)
            await asyncio.sleep(0.11)
        return read

    if least == 1:
        assert await slowly() > 5 * 256 * 1024
    else:
        with pytest.raises(ConnectionAbortedError):
            await slowly()
    await until_idle(event_store)


async def test_nobody_has_all_places(event_store: EventStore) -> None:
    mine, theirs, third = app(101), app(102), app(103)
    for of in (mine, theirs):
        await insert_many(event_store, of, ROWS)
    streams = [await start(event_store, mine), await start(event_store, mine, "parquet")]
    with pytest.raises(Busy):
        await start(event_store, app(101))
    streams += [await start(event_store, theirs), await start(event_store, theirs)]
    with pytest.raises(Busy):
        await start(event_store, third)
    # Reports go on.
    assert await event_store.query("SELECT 1 AS x") == [{"x": 1}]
    await everything(streams[0])
    assert await as_csv(event_store, third) == []
    for stream in streams:
        await close(stream)
    await until_idle(event_store)


async def test_an_export_that_fails_half_way_is_no_whole_file(event_store: EventStore) -> None:
    shop = app()
    await insert_many(event_store, shop, ROWS)
    stream = await start(event_store, shop, "csv", " AND NOT ignore(throwIf(received_at > now() - 3600, 'late')) ")
    with pytest.raises(module.EventStoreUnavailable):
        await everything(stream)
    await until_idle(event_store)


def test_pipes_are_for_the_owner_alone(tmp_path: Path) -> None:
    stream = ByteStream(tmp_path / "x.export", lambda: None)
    assert stream.path.stat().st_mode & 0o777 == 0o600
    os.close(stream.writer)
