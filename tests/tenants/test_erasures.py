"""What is deleted goes from the disk, too, and stays gone; raw queries go after two days."""
# pyright: reportPrivateUsage=false

import asyncio
import contextlib
import os
import secrets
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from server.event_store import EventStore
from server.journal import hit_id
from tenants import access_tokens
from tenants.access_tokens import WaitingToken
from tenants.apps import change_app, create_app, delete_app
from tenants.erasures import Found, mutate, unscoped_erase_apps, unscoped_expire, unscoped_forget_queries
from tenants.events import event_row, rejection_row
from tenants.hits import Event, Rejection, decode
from tenants.secrets import SecretKey
from tenants.tables import AccessToken, App, Erasure, GraphPause, Tenant, TokenSender

NOW = int(time.time() * 1000)
TABLES = ("events", "rejections", "traffic")


async def hit(store: EventStore, of: App, text: str, at: int = NOW) -> None:
    """An event, a rejection and a count, with `text` in whatever people sent."""
    event = decode("event", f'event_token={text}&params={{"email":"{text}@x.org","a":"{text}"}}'.encode(), "USD", False)
    rejected = decode("event", f"cb={text}".encode(), "USD", False)
    assert isinstance(event, Event)
    assert isinstance(rejected, Rejection)
    app, named = of.id.int, hit_id(secrets.randbits(20), 0, at)
    row = event_row(event, app, at, named, "event", 0, "", text.encode(), f"https://{text}/".encode(), b"")
    await store.insert("events", [row], f"e{named}")
    await store.insert("rejections", [rejection_row(rejected, app, at, named, "event")], f"r{named}")
    await store.insert("traffic", [(app, at // 60_000 * 60, 1, 1, 0, 0)], f"t{named}")


async def left(store: EventStore, of: App | UUID) -> int:
    """How many rows of the app there are."""
    app = of if isinstance(of, UUID) else of.id
    counts = [
        await store.query(f"SELECT count() AS n FROM {table} WHERE app_id = {{app:UUID}}", {"app": str(app)})
        for table in TABLES
    ]
    return sum(rows[0]["n"] for rows in counts)


async def until_gone(store: EventStore, of: App | UUID) -> None:
    end = time.monotonic() + 60
    while await left(store, of):
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


def now(minutes: float = 0) -> datetime:
    return datetime.now(UTC) + timedelta(minutes=minutes)


async def waiting() -> set[UUID]:
    return {erasure.app_id for erasure in await Erasure.objects()}


async def test_a_deleted_apps_rows_go_and_nobody_elses(alice: Tenant, bob: Tenant, event_store: EventStore) -> None:
    shop, _ = await create_app(alice, "Shop")
    others = [(await create_app(tenant, "Other"))[0] for tenant in (alice, bob)]
    for app in (shop, *others):
        # In two months, mostly.
        await hit(event_store, app, "a")
        await hit(event_store, app, "b", NOW - 29 * 86_400_000)
    named = shop.id
    await delete_app(shop)
    assert await unscoped_erase_apps(event_store, now()) == 0
    await until_gone(event_store, named)
    assert [await left(event_store, app) for app in others] == [6, 6]


async def test_an_app_is_done_with_once_nothing_more_can_come(alice: Tenant, event_store: EventStore) -> None:
    shop, _ = await create_app(alice, "Shop")
    named = shop.id
    await hit(event_store, shop, "a")
    await delete_app(shop)
    await unscoped_erase_apps(event_store, now())
    await until_gone(event_store, named)
    # A batch that was under way is stored after all.
    await hit(event_store, App(id=named, tenant=alice.id, name="Shop"), "late")
    assert await unscoped_erase_apps(event_store, now(5)) == 0
    await until_gone(event_store, named)
    assert await unscoped_erase_apps(event_store, now(5)) == 0
    assert await waiting() == {named}
    assert await unscoped_erase_apps(event_store, now(16)) == 1
    assert await waiting() == set()
    assert await unscoped_erase_apps(event_store, now(17)) == 0


async def test_rows_that_are_still_there_keep_an_app_waiting(alice: Tenant, event_store: EventStore) -> None:
    """It was deleted while the process, or the store, was away."""
    shop, _ = await create_app(alice, "Shop")
    named = shop.id
    await hit(event_store, shop, "a")
    await delete_app(shop)
    assert await unscoped_erase_apps(event_store, now(99_999)) == 0
    await until_gone(event_store, named)
    assert await unscoped_erase_apps(event_store, now(99_999)) == 1


async def test_two_processes_erase_at_once(alice: Tenant, event_store: EventStore) -> None:
    gone: list[UUID] = []
    for _ in range(3):
        shop, _ = await create_app(alice, "Shop")
        await hit(event_store, shop, "a")
        gone.append(shop.id)
        await delete_app(shop)
    done = await asyncio.gather(*[unscoped_erase_apps(event_store, now(60)) for _ in range(3)])
    for named in gone:
        await until_gone(event_store, named)
    done += [await unscoped_erase_apps(event_store, now(60))]
    assert sum(done) == 3
    assert await waiting() == set()


async def test_what_is_under_way_is_not_begun_again(event_store: EventStore) -> None:
    """An engine that takes its time would be given the same to do every five seconds."""
    app = uuid4()
    await event_store.insert("traffic", [(app.int, NOW // 1000, 1, 1, 0, 0)], uuid4().hex)
    held = "SELECT 1 AS x FROM system.mutations WHERE position(command, {app:String}) > 0 AND NOT is_done"

    def run(statement: str) -> None:
        event_store._run(lambda client: client.command(statement))

    def erase() -> "asyncio.Task[Found]":
        return asyncio.create_task(mutate(event_store, "traffic", "DELETE", f"app_id = '{app}'", str(app)))

    await asyncio.to_thread(run, "SYSTEM STOP MERGES traffic")
    try:
        first = erase()
        while not await event_store.query(held, {"app": str(app)}):  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.01)
        second = erase()
        # The embedded engine would be waited for.
        await asyncio.wait((second,), timeout=10)
        assert second.done()
    finally:
        await asyncio.to_thread(run, "SYSTEM START MERGES traffic")
    assert (await first, await second) == (Found(1, begun=True), Found(1, begun=False))
    assert await erase() == Found(0, begun=False)


# An old part goes after a second, by an engine that looks for some as soon as there is one.
AT_ONCE = {
    "old_parts_lifetime": 1,
    "cleanup_thread_preferred_points_per_iteration": 1,
    "cleanup_delay_period": 1,
    "max_cleanup_delay_period": 1,
    "cleanup_delay_period_random_add": 0,
}


def files_with(folder: Path, text: bytes) -> list[Path]:
    found: list[Path] = []
    for parent, _, names in os.walk(folder):  # which, unlike rglob, takes it well that folders go meanwhile
        for path in (Path(parent, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                found += [path] if text in path.read_bytes() else []
    return found


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_nothing_of_a_deleted_app_stays_on_disk(alice: Tenant, event_store: EventStore) -> None:
    folder = Path(event_store.url.removeprefix("chdb://"))
    settings = ", ".join(f"{name} = {value}" for name, value in AT_ONCE.items())
    for table in TABLES:
        # Minutes otherwise: an old part is kept as long as its successor may not be on disk yet.
        await event_store.change(f"ALTER TABLE {table} MODIFY SETTING {settings}")
    kept, _ = await create_app(alice, "Kept")
    shop, _ = await create_app(alice, "Shop")
    # Random, so that no compression can hide it: found while it is there.
    secret, mine = secrets.token_hex(24), secrets.token_hex(24)
    await hit(event_store, shop, secret)
    await hit(event_store, kept, mine)
    named = shop.id
    assert await asyncio.to_thread(files_with, folder, secret.encode())
    await delete_app(shop)
    await unscoped_erase_apps(event_store, now())
    await until_gone(event_store, named)
    end = time.monotonic() + 400
    while found := await asyncio.to_thread(files_with, folder, secret.encode()):
        assert time.monotonic() < end, found
        # The engine looks for old parts when it has had something to do.
        await hit(event_store, kept, "more")
        await asyncio.sleep(0.5)
    assert await asyncio.to_thread(files_with, folder, mine.encode())
    for table in TABLES:
        await event_store.change(f"ALTER TABLE {table} RESET SETTING {', '.join(AT_ONCE)}")


async def test_a_batch_done_again_is_known_after_rows_went(alice: Tenant, event_store: EventStore) -> None:
    shop, _ = await create_app(alice, "Shop")
    # Somebody else's in the same batch: of a part that lost all its rows the engine forgets the token with the part.
    kept, _ = await create_app(alice, "Kept")
    found = decode("event", b"event_token=a", "USD", privacy=False)
    assert isinstance(found, Event)
    rows = [
        event_row(found, app.id.int, NOW, hit_id(7, number, NOW), "event", 0, "", b"", b"", b"")
        for number, app in enumerate((shop, kept))
    ]
    token = uuid4().hex
    await event_store.insert("events", rows, token)
    named = shop.id
    await delete_app(shop)
    await unscoped_erase_apps(event_store, now())
    await until_gone(event_store, named)
    await event_store.insert("events", rows, token)
    assert await left(event_store, named) == 0
    assert await left(event_store, kept.id) == 1


async def test_raw_queries_go_after_two_days(event_store: EventStore) -> None:
    shop = App(id=uuid4(), tenant=1, name="Shop", currency="USD")
    day = 86_400_000
    for text, age in (("new", 0), ("younger", 2 * day - 3_600_000), ("older", 2 * day + 1_000), ("old", 33 * day)):
        await hit(event_store, shop, text, NOW - age)

    async def queries() -> list[dict[str, Any]]:
        return await event_store.query(
            "SELECT event_token AS t, query != '' AS q, params_text != '{}' AS p FROM events "
            "WHERE app_id = {app:UUID} ORDER BY received_at DESC",
            {"app": str(shop.id)},
        )

    await unscoped_forget_queries(event_store, now())
    end = time.monotonic() + 60
    while sum(row["q"] for row in await queries()) > 2:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    assert [(row["t"], row["q"], row["p"]) for row in await queries()] == [
        ("new", 1, 1),
        ("younger", 1, 1),
        ("older", 0, 1),
        ("old", 0, 1),
    ]
    await unscoped_forget_queries(event_store, now())
    assert (await queries())[0]["q"] == 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_an_app_keeps_its_events_as_long_as_it_says(alice: Tenant, event_store: EventStore) -> None:
    day = 86_400_000
    made = [(await create_app(alice, name))[0] for name in ("ever", "30", "7", "7 too")]
    for app, days in zip(made, ("ever", 30, 7, 7), strict=True):
        await change_app(app, retention_days=days)
        for age in (0, 6, 9, 29, 32, 400):
            await hit(event_store, app, "a", NOW - age * day)

    async def counts(table: str) -> list[int]:
        rows = [
            await event_store.query(
                f"SELECT count() AS n FROM {table} WHERE app_id = {{app:UUID}}", {"app": str(app.id)}
            )
            for app in made
        ]
        return [found[0]["n"] for found in rows]

    await unscoped_expire(event_store, now())
    end = time.monotonic() + 60
    while await counts("events") != [6, 4, 2, 2] or (await counts("rejections"))[1:] != [4, 2, 2]:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    # What was counted stays. (Its rows of 400 days are there, too.)
    assert await counts("traffic") == [6, 6, 6, 6]
    changes = "SELECT count() AS n FROM system.mutations WHERE table = 'events'"
    before = await event_store.query(changes, {})
    # Nothing goes twice a day, however often it is asked for.
    await unscoped_expire(event_store, now().replace(hour=23, minute=59))
    assert await event_store.query(changes, {}) == before
    await unscoped_expire(event_store, now(3 * 24 * 60))
    while await counts("events") != [6, 3, 1, 1]:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def test_a_deleted_apps_access_tokens_go_and_nobody_elses(
    alice: Tenant, bob: Tenant, event_store: EventStore
) -> None:
    key = SecretKey("a secret of at least 32 characters", "facebook")
    shop, other = [(await create_app(tenant, "Shop"))[0] for tenant in (alice, bob)]
    for app in (shop, other):
        await access_tokens.keep(key, [WaitingToken(app.id, "T", uuid4().bytes, NOW, b"v" * 16)], NOW)
        await access_tokens.pause(app.id, NOW + 60_000, 4)
    await delete_app(shop)
    await unscoped_erase_apps(event_store, now())
    for table in (AccessToken, TokenSender, GraphPause):
        assert [row["app_id"] for row in await table.select(table.app_id)] == [other.id]
