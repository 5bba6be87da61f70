"""Exports from a ClickHouse server, over its HTTP interface."""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]
import pytest
from test_store_away import ClickHouse

from server.event_store import EventStore, EventStoreUnavailable
from server.streams import ByteStream
from tenants.exports import Format, export
from tenants.tables import App

ROWS = 150_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EventStore]:
    """The client of a server with onepx's schema."""
    server = ClickHouse(tmp_path)
    server.start()
    store = EventStore(f"clickhouse://127.0.0.1:{server.port}", tmp_path)
    store.migrate()
    yield store
    store.close()
    server.close()


@pytest.fixture
async def shop(store: EventStore) -> App:
    """An app with events."""
    shop = App(id=uuid4(), tenant=1, name="Shop", currency="USD")
    await store.change(
        "INSERT INTO events (app_id, received_at, id, category, event_token, params_text) SELECT {app:UUID}, "
        "now64(3) - number % 86400, generateUUIDv4(number), 'event', concat('=', toString(number)), '{}' "
        f"FROM numbers({ROWS})",
        {"app": str(shop.id)},
    )
    return shop


async def start(store: EventStore, shop: App, format: Format, condition: str = "") -> AsyncIterator[bytes]:
    now = datetime.now(UTC)
    return await export(shop, store, now - timedelta(days=2), now + timedelta(days=1), condition, {}, format)


async def test_a_server_exports_what_is_asked_for(store: EventStore, shop: App) -> None:
    text = b"".join([chunk async for chunk in await start(store, shop, "csv")]).decode()
    assert text.startswith('"received_at","id","category","event_token"')
    assert text.count("\n") == ROWS + 1
    assert text.count(",\"'=") == ROWS
    data = b"".join([chunk async for chunk in await start(store, shop, "parquet", " AND event_token != '=7'")])
    table = cast("Any", pyarrow.parquet).ParquetFile(io.BytesIO(data)).read()
    assert table.num_rows == ROWS - 1


async def test_who_goes_away_lets_a_server_off(store: EventStore, shop: App) -> None:
    for _ in range(3):
        cast("ByteStream", await start(store, shop, "csv")).close()
    end = time.monotonic() + 20
    while store._streaming:  # pyright: ignore[reportPrivateUsage]
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


def pipes(folder: Path) -> list[Path]:
    return list(folder.glob("*.export"))


async def test_a_server_that_is_away_has_no_export(tmp_path: Path) -> None:
    store = EventStore("clickhouse://127.0.0.1:1", tmp_path)
    with pytest.raises(EventStoreUnavailable):
        await start(store, App(id=uuid4(), tenant=1, name="Shop"), "csv")
    assert pipes(tmp_path) == []
    store.close()
