"""The digest: each hit exactly once, whatever fails or is killed; a hit that cannot be digested holds up no other."""
# pyright: reportPrivateUsage=false

import asyncio
import contextlib
import inspect
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from server import digest as module
from server.database import Database
from server.digest import (
    Batch,
    Digester,
    DigestFigures,
    Inserts,
    Outcome,
    State,
    Understood,
    drop_duplicates,
    measure_journal,
    traffic_rows,
    understand,
)
from server.event_store import EventStore, EventStoreRefused, EventStoreUnavailable
from server.journal import Backlog, Hit, HitTuple, Segment, encode_frame, segment_sizes
from server.routes import Routes
from tenants import access_tokens, apps, event_ids, people
from tenants.deletions import delete_person
from tenants.event_ids import Claim
from tenants.events import COLUMNS, OUTCOMES, Row
from tenants.hits import Category, Event, Rejection, decode
from tenants.identifiers import owner_of
from tenants.secrets import SecretKey
from tenants.showcase import showcase
from tenants.tables import AccessToken, AppToken, Tenant, TokenSender
from tenants.tokens import Route

KEY = SecretKey("a secret of at least 32 characters", "facebook")


class Crash(BaseException):
    """The process is killed here: nothing of ours catches it."""


@dataclass
class Store:
    """An event store that remembers tokens as ClickHouse does, is away, refuses rows, or dies with its caller."""

    tables: dict[str, list[Row]] = field(
        default_factory=lambda: {"events": [], "rejections": [], "traffic": [], "person_aliases": []}
    )
    # (table, token) -> rows
    tokens: dict[tuple[str, str], list[Row]] = field(default_factory=dict[tuple[str, str], list[Row]])
    refuse: Callable[[str, Row], bool] = lambda _table, _row: False
    # Called before and after each insert is done.
    before: Callable[[str], None] = lambda _table: None
    after: Callable[[str], None] = lambda _table: None

    async def insert(self, table: str, rows: Sequence[Row], token: str) -> None:
        if not rows:
            return
        self.before(table)
        if any(self.refuse(table, row) for row in rows):
            raise EventStoreRefused("a value cannot be taken")
        if (table, token) not in self.tokens:
            self.tokens[table, token] = list(rows)
            self.tables[table] += rows
        else:
            # Silently left out by a real one: so it must be the same.
            assert self.tokens[table, token] == list(rows)
        self.after(table)

    async def stored(self, table: str, rows: Sequence[tuple[int, int, int]]) -> set[int]:
        return {row[2] for row in self.tables[table]} & {named for _, _, named in rows}

    def forget_tokens(self) -> None:
        """What a power cut does: rows are synced, the list of tokens is not."""
        self.tokens.clear()

    def events(self) -> list[str]:
        """The event tokens stored, sorted."""
        return sorted(row[4] for row in self.tables["events"])

    def traffic(self) -> dict[str, int]:
        """What was counted over all minutes, without zeros."""
        sums = Counter[str]()
        for row in self.tables["traffic"]:
            for outcome, count in zip(OUTCOMES, row[2:], strict=True):
                sums[outcome] += count
        return {outcome: count for outcome, count in sums.items() if count}


@dataclass
class Heard:
    """Hears how the digest goes."""

    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    troubles: list[str | None] = field(default_factory=list[str | None])

    active: list[bool] = field(default_factory=list[bool])

    async def progressed(self, figures: DigestFigures) -> None:
        self.troubles.append(figures.trouble)
        self.active.append(figures.active)

    async def became(self, outcomes: list[Outcome]) -> None:
        self.outcomes += outcomes


class Engine:
    """The embedded engine, which can be killed with its caller, or lose its newest tokens in a power cut."""

    def __init__(self, store: EventStore, app_id: bytes) -> None:
        self.before: Callable[[str], None] = lambda _table: None
        self.after: Callable[[str], None] = lambda _table: None
        self._store = store
        self._app = {"app": str(UUID(bytes=app_id))}
        self._power_cuts = 0

    async def insert(self, table: str, rows: Sequence[Row], token: str) -> None:
        self.before(table)
        # A token that is another after each cut is as good as forgotten.
        await self._store.insert(table, rows, f"{token}-{self._power_cuts}")
        self.after(table)

    async def stored(self, table: str, rows: Sequence[tuple[int, int, int]]) -> set[int]:
        return await self._store.stored(table, rows)

    def forget_tokens(self) -> None:
        self._power_cuts += 1

    async def column(self, table: str, column: str) -> list[Any]:
        """A column of the app's rows, sorted."""
        rows = await self._store.query(f"SELECT {column} AS x FROM {table} WHERE app_id = {{app:UUID}}", self._app)
        return sorted(row["x"] for row in rows)

    async def traffic(self) -> dict[str, int]:
        """What was counted over all minutes, without zeros."""
        sums = ", ".join(f"toInt64(sum({outcome})) AS {outcome}" for outcome in OUTCOMES)
        (row,) = await self._store.query(f"SELECT {sums} FROM traffic WHERE app_id = {{app:UUID}}", self._app)
        return {outcome: count for outcome, count in row.items() if count}


class Shop:
    """An app whose hits stand in a journal."""

    def __init__(self, folder: Path, routes: Routes, app_id: bytes) -> None:
        self.folder = folder
        self.routes = routes
        self.app_id = app_id
        self.store = Store()
        # Where the digest puts its rows; some tests have the engine's here.
        self.inserts: Inserts = self.store
        self.heard = Heard()
        # Now: rejections and event ids of another year expire while they are digested.
        self.received_at = int(time.time() * 1000)

    def hit(self, query: str, category: int = 0, watch: int = 0) -> HitTuple:
        return (
            self.received_at,
            self.app_id,
            category,
            query.encode(),
            b"v" * 16,
            False,
            "",
            b"",
            b"",
            b"",
            watch,
            False,
            "USD",
        )

    def journal(self, *queries: str, limited: int = 0) -> Path:
        """Hits in one frame of a segment whose writer is gone."""
        return self.segment([self.hit(query) for query in queries], limited=limited)

    def segment(self, *frames: list[HitTuple], limited: int = 0) -> Path:
        segment = self.growing_segment(*frames, limited=limited)
        segment.close()
        return segment.path

    def growing_segment(self, *frames: list[HitTuple], limited: int = 0) -> Segment:
        """Each list of hits as a frame of a segment whose writer goes on; `limited` is counted in every frame."""
        segment = Segment(self.folder)
        counts = [(self.app_id, self.received_at // 60_000 * 60, limited)] if limited else []
        for hits in frames:
            segment.append(encode_frame(hits, counts))
        return segment

    @contextlib.asynccontextmanager
    async def digesting(self, decode: module.Decode = decode) -> AsyncGenerator[Digester]:
        """A digest at work. What it raises is raised at the end."""
        digester = Digester(self.folder, self.inserts, self.routes, self.heard, KEY, decode)
        running = asyncio.create_task(digester.run())
        try:
            yield digester
        finally:
            digester.stop()
            async with asyncio.timeout(5):
                await running

    async def digest(self, decode: module.Decode = decode) -> Digester:
        """Digest all there is."""
        async with self.digesting(decode) as digester:
            await until(self.empty)
        return digester

    def empty(self) -> bool:
        return not segment_sizes(self.folder)

    async def crash(self, decode: module.Decode = decode) -> None:
        """Digest until the crash."""
        digester = Digester(self.folder, self.inserts, self.routes, self.heard, KEY, decode)
        before = descriptors()
        async with asyncio.timeout(5):
            with pytest.raises(Crash):
                await digester.run()
        # As the kernel does it: the lock goes with the process.
        for fd, path in descriptors().items():
            if fd not in before and path.endswith("digest.lock"):
                os.close(fd)

    def aside(self) -> list[tuple[int, str, int]]:
        """(number, error, attempts) of the hits set aside."""
        with contextlib.closing(State(self.folder)) as state:
            return state.set_aside()

    def retry(self) -> int:
        """What `onepx digest retry` does."""
        with contextlib.closing(State(self.folder)) as state:
            return state.retry_all()

    def positions(self) -> dict[str, int]:
        """How far each segment is digested, as remembered on disk."""
        with contextlib.closing(State(self.folder)) as state:
            return state.positions()


def descriptors() -> dict[int, str]:
    """This process's open files, by number."""
    found: dict[int, str] = {}
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found[int(link.name)] = str(link.readlink())
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.01)


@pytest.fixture
def database_url(tmp_path: Path, migrated_sqlite: Path) -> str:
    """SQLite alone: what differs between the databases is tested with event_ids and tokens."""
    path = tmp_path / "control.sqlite3"
    shutil.copy(migrated_sqlite, path)
    return f"sqlite://{path}"


@pytest.fixture
async def shop(tmp_path: Path, database: Database, alice: Tenant) -> Shop:
    folder = tmp_path / "journal"
    folder.mkdir()
    app, _ = await apps.create_app(alice, "Shop")
    routes = Routes()
    await routes.refresh()
    return Shop(folder, routes, app.id.bytes)


@pytest.fixture
def engine(event_store: EventStore, shop: Shop) -> Engine:
    """The real engine, where the shop's hits go."""
    engine = Engine(event_store, shop.app_id)
    shop.inserts = engine
    return engine


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", (0.02,))
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.02)


# What is digested


async def test_hits_become_rows_and_their_segment_goes(shop: Shop) -> None:
    shop.segment(
        [shop.hit("event_token=a"), shop.hit("event_token=b&amount=5", 1)],
        [shop.hit("event_token="), shop.hit("event_token=c")],
        limited=3,
    )
    digester = await shop.digest()
    assert shop.store.events() == ["a", "b", "c"]
    assert [row[4] for row in shop.store.tables["rejections"]] == ["missing_event_token"]
    assert shop.store.traffic() == {"recorded": 3, "rejected": 1, "limited": 6}
    figures = digester.figures
    assert (figures.recorded, figures.rejected, figures.duplicate, figures.set_aside) == (3, 1, 0, 0)
    assert measure_journal(shop.folder, Backlog(shop.folder)).hits == 0
    assert shop.positions() == {}, "of a segment that is gone nothing is remembered"


async def test_a_segment_is_forgotten_once_its_end_is_on_disk(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut that brought it back would have it digested once more."""
    path = shop.journal("event_token=a")
    size = path.stat().st_size
    synced: list[tuple[bool, dict[str, int]]] = []
    sync = module.sync_folder

    def recording(folder: Path) -> None:
        synced.append((path.exists(), shop.positions()))
        sync(folder)

    monkeypatch.setattr(module, "sync_folder", recording)
    await shop.digest()
    assert synced == [(False, {path.name: size})]


async def test_a_hits_row_and_id_are_the_same_whenever_it_is_digested(shop: Shop, tmp_path: Path) -> None:
    shop.segment([shop.hit("event_token=a"), shop.hit("event_token=a")], [shop.hit("event_token=b&event_id=1")])
    shop.journal("event_token=b&event_id=1", "")
    copy = Shop(tmp_path / "copy", shop.routes, shop.app_id)
    shutil.copytree(shop.folder, copy.folder)
    await shop.digest()
    await copy.digest()
    assert copy.store.tables == shop.store.tables
    assert copy.store.tokens == shop.store.tokens
    assert len(shop.store.tables["events"]) == 3


async def test_identical_hits_in_one_batch_are_all_kept(shop: Shop) -> None:
    shop.segment([shop.hit("event_token=open")] * 5, [shop.hit("event_token=open")] * 5)
    shop.journal(*["event_token=open"] * 5)
    await shop.digest()
    assert shop.store.events() == ["open"] * 15
    assert len({row[2] for row in shop.store.tables["events"]}) == 15


async def test_an_event_id_counts_once_in_a_batch_and_over_batches(shop: Shop) -> None:
    shop.journal("event_token=first&event_id=1", "event_token=second&event_id=1", "event_token=other&event_id=2")
    await shop.digest()
    shop.journal("event_token=third&event_id=1")
    await shop.digest()
    assert shop.store.events() == ["first", "other"]
    assert shop.store.traffic() == {"recorded": 2, "duplicate": 2}


async def test_an_event_id_is_the_apps_and_the_categorys_own(shop: Shop, alice: Tenant) -> None:
    other, _ = await apps.create_app(alice, "Other")
    query = "event_token=e&amount=1&event_id=1"
    ours = [shop.hit(query), shop.hit(query, 1)]
    shop.app_id = other.id.bytes
    shop.segment([*ours, shop.hit(query), shop.hit(query, 1), shop.hit(query)])
    await shop.digest()
    assert shop.store.traffic() == {"recorded": 4, "duplicate": 1}
    assert {(row[0], row[3]) for row in shop.store.tables["events"]} == {
        (int.from_bytes(hit[1], "big"), category)
        for hit in (ours[0], shop.hit(""))
        for category in ("event", "revenue")
    }


async def test_event_ids_that_make_no_duplicates_any_more_are_forgotten(shop: Shop) -> None:
    app, days_ms = UUID(bytes=shop.app_id), 86_400_000
    old = Claim(app, "event", "old", b"o" * 16, shop.received_at - 31 * days_ms)
    young = Claim(app, "event", "young", b"y" * 16, shop.received_at - 29 * days_ms)
    await event_ids.claim([old, young])
    digester = Digester(shop.folder, shop.inserts, shop.routes, shop.heard, KEY)
    # As on a machine that is up for an hour.
    digester._purged = -1e9
    running = asyncio.create_task(digester.run())
    await until(lambda: digester._purged > 0)
    digester.stop()
    await running
    assert await event_ids.owner(app, "event", "old") is None
    assert await event_ids.owner(app, "event", "young") == b"y" * 16


@pytest.mark.parametrize("later_first", [False, True])
async def test_an_event_id_counts_once_whichever_machine_digests_first(
    shop: Shop, tmp_path: Path, later_first: bool
) -> None:
    other = Shop(tmp_path / "other", shop.routes, shop.app_id)
    other.folder.mkdir()
    other.received_at += 1000
    for machine in (shop, other):
        machine.journal("event_token=e&event_id=1")
    for machine in (other, shop) if later_first else (shop, other):
        await machine.digest()
    first, second = (other, shop) if later_first else (shop, other)
    assert first.store.traffic() == {"recorded": 1}
    assert second.store.traffic() == {"duplicate": 1}
    assert second.store.events() == []


async def test_batches_are_cut_and_all_are_digested(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_HITS", 10)
    for segment in range(3):
        shop.segment(*[[shop.hit(f"event_token={segment}-{frame}-{n}") for n in range(4)] for frame in range(5)])
    digester = await shop.digest()
    assert len(set(shop.store.events())) == len(shop.store.events()) == 60
    assert digester.figures.batches == 5


@pytest.mark.parametrize(("limit", "most"), [("_BATCH_HITS", 2), ("_BATCH_BYTES", 100)])
async def test_a_batch_is_read_ahead_while_the_one_before_it_is_stored(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(module, limit, most)
    seen: list[str] = []

    def watched(category: Category, query: bytes, currency: str, private: bool) -> Event | Rejection:
        seen.append(query.decode())
        return decode(category, query, currency, private)

    stored: list[int] = []
    done: list[int] = []
    shop.store.after = lambda table: stored.append(len(seen)) if table == "traffic" else None

    class Counting(Heard):
        async def progressed(self, figures: DigestFigures) -> None:
            await super().progressed(figures)
            if figures.batches > len(done):
                done.append(len(seen))

    shop.heard = Counting()
    shop.segment(*[[shop.hit(f"event_token={frame}-{n}") for n in range(2)] for frame in range(3)])
    await shop.digest(watched)
    assert stored == [2, 4, 6], "a store that is quick does not wait for the next one to be read"
    assert done == [4, 6, 6], "when a batch was done the next one was understood"
    assert len(seen) == len(set(seen)) == 6, "each hit once"
    assert shop.store.traffic() == {"recorded": 6}


async def test_what_was_read_ahead_waits_for_hits_that_are_retried(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_HITS", 2)
    shop.journal("event_token=poison")
    await shop.digest(poisoned)

    def ask(table: str) -> None:
        # The first batch is nearly stored, the second one read.
        if table == "traffic":
            shop.retry()

    shop.store.after = ask
    shop.segment(*[[shop.hit(f"event_token={frame}-{n}") for n in range(2)] for frame in range(2)])
    async with shop.digesting():
        await until(lambda: shop.empty() and not shop.aside())
    assert shop.store.events() == ["0-0", "0-1", "1-0", "1-1", "poison"]
    assert shop.store.traffic() == {"recorded": 5}


async def test_an_app_deleted_after_its_hits_were_read_ahead_gets_none_of_them(
    shop: Shop, alice: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH_HITS", 2)
    app, _ = await apps.create_app(alice, "Gone")
    await shop.routes.refresh()
    kept = [shop.hit(f"event_token=kept-{n}") for n in range(2)]
    shop.app_id = app.id.bytes
    shop.segment(kept, [shop.hit(f"event_token=gone-{n}") for n in range(2)])

    class Deleting(Heard):
        async def progressed(self, figures: DigestFigures) -> None:
            await super().progressed(figures)
            if figures.batches == 1:
                await apps.delete_app(app)
                await shop.routes.refresh()

    shop.heard = Deleting()
    await shop.digest()
    assert shop.store.events() == ["kept-0", "kept-1"]


async def test_what_cannot_be_read_ahead_is_told_of_in_its_turn(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_HITS", 2)
    read, fails = Digester._read, [False, True, True, False]

    def failing(self: Digester, batch: Batch, positions: Mapping[str, int]) -> None:
        if fails and fails.pop(0):
            raise OSError("the disk hiccups")
        read(self, batch, positions)

    monkeypatch.setattr(Digester, "_read", failing)
    shop.segment(*[[shop.hit(f"event_token={frame}-{n}") for n in range(2)] for frame in range(2)])
    await shop.digest()
    assert shop.store.events() == ["0-0", "0-1", "1-0", "1-1"]
    assert "OSError" in shop.heard.troubles
    assert not fails


async def test_whatever_a_hit_with_an_access_token_becomes_its_segment_is_let_go(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(module, "ask_to_let_go", asked.append)
    monkeypatch.setattr(module, "_EMPTY_SECONDS", 0.0)
    secret = quote('{"access_token": "EAABsecret"}')
    event = f"event_token=a&params={secret}&event_id=1"
    queries = [f"params={secret}", event, f"params={secret}", event, f"event_token=poison&params={secret}"]
    async with shop.digesting(poisoned):
        shop.journal("event_token=a")
        await until(lambda: len(asked) == 1)  # a digest before may have left some
        shop.journal("event_token=b&params=%7B%7D", "", "event_token=caf\u00e9")
        await until(shop.empty)
        await asyncio.sleep(0.1)
        assert len(asked) == 1
        for number, query in enumerate(queries, 2):
            shop.journal(query)
            await until(lambda number=number: len(asked) == number)
        shop.app_id = b"x" * 16  # of an app that is gone
        shop.journal(event)
        await until(lambda: len(asked) == len(queries) + 2)


async def test_whoever_watches_a_hit_hears_what_it_became(shop: Shop) -> None:
    shop.segment(
        [
            shop.hit("event_token=a&params=x&event_id=1", watch=1),
            shop.hit("event_token=a&event_id=1", watch=2),
            shop.hit("", watch=3),
            shop.hit("event_token=b"),
        ]
    )
    await shop.digest()
    assert sorted(shop.heard.outcomes, key=lambda outcome: outcome.watch) == [
        Outcome(1, "recorded", ("invalid_params",)),
        Outcome(2, "duplicate"),
        Outcome(3, "rejected; reason=missing_event_token"),
    ]


async def test_a_hit_of_an_app_made_after_the_last_look_is_digested(shop: Shop, alice: Tenant) -> None:
    app, _ = await apps.create_app(alice, "New")
    shop.app_id = app.id.bytes
    shop.journal("event_token=a")
    await shop.digest()
    assert shop.store.events() == ["a"]


async def test_hits_of_a_deleted_app_are_dropped_and_hold_up_nothing(shop: Shop, alice: Tenant) -> None:
    app, _ = await apps.create_app(alice, "Gone")
    kept, shop.app_id = shop.app_id, app.id.bytes
    shop.journal("event_token=gone")
    shop.app_id = kept
    shop.journal("event_token=kept")
    await apps.delete_app(app)
    await shop.digest()
    assert shop.store.events() == ["kept"]


async def test_hits_of_the_only_app_are_dropped_when_it_is_deleted(shop: Shop, alice: Tenant) -> None:
    shop.journal("event_token=gone")
    for app in await apps.list_apps(alice):
        await apps.delete_app(app)
    await shop.routes.refresh()
    await shop.digest()
    assert shop.store.events() == []
    assert not any(shop.heard.troubles)


async def test_two_digests_of_one_journal_take_turns(shop: Shop) -> None:
    shop.journal("event_token=a")
    async with shop.digesting() as first:
        await until(shop.empty)
        async with shop.digesting() as second:
            shop.journal("event_token=b")
            await until(shop.empty)
            assert (first.figures.active, second.figures.active) == (True, False)
            first.stop()
            await until(lambda: second.figures.active)
            shop.journal("event_token=c")
            await until(shop.empty)
            assert second.figures.recorded == 1
    assert shop.store.events() == ["a", "b", "c"]


async def test_a_digest_takes_over_from_a_process_that_is_killed(shop: Shop) -> None:
    # Holds the journal's lock, says so, and waits to be killed.
    program = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    other = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(shop.folder / "digest.lock")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert other.stdout is not None
        await other.stdout.readline()
        path = shop.journal("event_token=a")
        async with shop.digesting() as digester:
            await asyncio.sleep(0.1)
            assert (path.exists(), digester.figures.active, shop.store.events()) == (True, False, [])
            other.kill()
            await until(shop.empty)
            assert digester.figures.active
    finally:
        with contextlib.suppress(ProcessLookupError):
            other.kill()
        await other.wait()
    assert shop.store.events() == ["a"]


async def test_a_digest_stopped_while_it_stands_by_never_says_that_it_digests(shop: Shop) -> None:
    async with shop.digesting() as first:
        await until(lambda: first.figures.active)
        second = Digester(shop.folder, shop.store, shop.routes, heard := Heard(), KEY)
        running = asyncio.create_task(second.run())
        await asyncio.sleep(0.05)
        second.stop()
        await running
    assert True not in heard.active


# What fails


def poisoned(category: Category, query: bytes, currency: str, privacy: bool) -> Event | Rejection:
    """Decoding with a bug that some hits meet."""
    if b"poison" in query:
        raise ZeroDivisionError(query.decode())
    return decode(category, query, currency, privacy)


async def test_a_hit_that_cannot_be_decoded_is_set_aside_and_holds_up_no_other(shop: Shop) -> None:
    shop.journal("event_token=a", "event_token=poison", "event_token=b")
    digester = await shop.digest(poisoned)
    assert shop.store.events() == ["a", "b"]
    assert shop.store.traffic() == {"recorded": 2}
    ((_, error, attempts),) = shop.aside()
    assert "ZeroDivisionError" in error
    assert "event_token" not in error, "what was sent is shown nowhere"
    assert attempts == 1
    assert digester.figures.set_aside == 1
    assert measure_journal(shop.folder, Backlog(shop.folder)).set_aside == 1


async def test_hits_set_aside_are_digested_when_they_are_retried(shop: Shop) -> None:
    shop.journal("event_token=poison&event_id=1", "event_token=b")
    await shop.digest(poisoned)
    async with shop.digesting(poisoned):
        assert shop.retry() == 1
        await until(lambda: [attempts for _, _, attempts in shop.aside()] == [2])
        await asyncio.sleep(0.3)
    assert [attempts for _, _, attempts in shop.aside()] == [2], "tried once for each retry"
    async with shop.digesting():
        await asyncio.sleep(0.3)
        assert shop.store.events() == ["b"], "not before it is asked for"
        assert shop.retry() == 1
        await until(lambda: not shop.aside())
    assert shop.store.events() == ["b", "poison"]
    assert shop.store.traffic() == {"recorded": 2}
    assert shop.retry() == 0


async def test_some_of_the_retried_hits_may_fail_again(shop: Shop) -> None:
    def half_mended(category: Category, query: bytes, currency: str, privacy: bool) -> Event | Rejection:
        return poisoned(
            category, query if query.endswith(b"3") else query.replace(b"poison", b"mended"), currency, privacy
        )

    shop.journal(*(f"event_token=poison{n}" for n in range(4)))
    await shop.digest(poisoned)
    async with shop.digesting(half_mended):
        assert shop.retry() == 4
        await until(lambda: len(shop.aside()) == 1)
    assert shop.store.events() == ["mended0", "mended1", "mended2"]
    assert shop.store.traffic() == {"recorded": 3}
    async with shop.digesting():
        assert shop.retry() == 1
        await until(lambda: not shop.aside())
    assert shop.store.events() == ["mended0", "mended1", "mended2", "poison3"]
    assert shop.store.traffic() == {"recorded": 4}


async def test_set_aside_hits_of_a_deleted_app_go_and_nobody_elses(shop: Shop, alice: Tenant) -> None:
    other, _ = await apps.create_app(alice, "Other")
    theirs = Shop(shop.folder, shop.routes, other.id.bytes)
    secret = "poison-" + uuid4().hex
    shop.journal(f"event_token=poison&x={secret}")
    theirs.journal("event_token=poison")
    await shop.digest(poisoned)
    assert len(shop.aside()) == 2
    assert any(secret.encode() in path.read_bytes() for path in shop.folder.glob("digest.sqlite3*"))
    app = await apps.find_app(alice, str(UUID(bytes=shop.app_id)))
    await apps.delete_app(app)
    async with shop.digesting():
        await until(lambda: len(shop.aside()) == 1)
    assert not any(secret.encode() in path.read_bytes() for path in shop.folder.glob("digest.sqlite3*"))
    assert shop.retry() == 1
    await shop.digest()
    async with shop.digesting():
        await until(lambda: not shop.aside())
    assert shop.store.events() == ["poison"]


async def test_set_aside_hits_go_when_their_app_would_not_keep_their_events_any_more(shop: Shop, alice: Tenant) -> None:
    app = await apps.find_app(alice, str(UUID(bytes=shop.app_id)))
    other, _ = await apps.create_app(alice, "Other")
    theirs = Shop(shop.folder, shop.routes, other.id.bytes)
    shop.journal("event_token=poison-new")
    for each in (shop, theirs):
        each.received_at -= 40 * 86_400_000
        each.journal("event_token=poison")
    await shop.digest(poisoned)
    assert len(shop.aside()) == 3
    await apps.change_app(app, retention_days=30)
    async with shop.digesting():
        await until(lambda: len(shop.aside()) == 2)
        assert shop.retry() == 2
        await until(lambda: not shop.aside())
    stored = {(row[0], row[4]) for row in shop.store.tables["events"]}
    assert stored == {(app.id.int, "poison-new"), (other.id.int, "poison")}


async def test_hits_of_a_deleted_person_are_dropped_and_count_for_nothing(shop: Shop, alice: Tenant) -> None:
    app = await apps.find_app(alice, str(UUID(bytes=shop.app_id)))
    ann = quote('{"email":"ann@example.org"}')
    shop.journal(f"event_token=signup&params={ann}")
    await shop.digest()
    assert shop.store.events() == ["signup"]
    person = await owner_of(app, email="ann@example.org")
    assert person is not None
    # They have the cookie of all the shop's hits.
    await delete_person(app, person, "Alice", datetime.now(UTC) + timedelta(seconds=1))
    shop.journal(
        "event_token=by_cookie&params=" + quote('{"access_token": "EAABsecret"}'),
        f"event_token=by_address&params={ann}&event_id=1",
        f"event_token=&params={ann}",
    )
    shop.received_at += 1_000 * 60
    shop.journal("event_token=later&event_id=1")
    await shop.digest()
    assert shop.store.events() == ["later", "signup"]
    assert shop.store.tables["rejections"] == []
    assert shop.store.traffic() == {"recorded": 2}
    assert await owner_of(app, email="ann@example.org") is None
    assert (await AccessToken.count(), await TokenSender.count()) == (0, 0)


async def test_hits_of_who_is_deleted_just_before_they_are_told_apart_are_dropped(
    shop: Shop, alice: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await apps.find_app(alice, str(UUID(bytes=shop.app_id)))
    ann = quote('{"email":"ann@example.org"}')
    shop.journal(f"event_token=signup&params={ann}")
    await shop.digest()
    person = await owner_of(app, email="ann@example.org")
    assert person is not None
    identify = people.identify

    async def late(*args: Any, **options: Any) -> list[bytes]:
        await delete_person(app, person, "Alice", datetime.now(UTC) + timedelta(seconds=1))
        return await identify(*args, **options)

    monkeypatch.setattr(people, "identify", late)
    shop.journal("event_token=by_cookie", f"event_token=by_address&params={ann}", f"event_token=&params={ann}")
    await shop.digest()
    assert shop.store.events() == ["signup"]
    assert shop.store.tables["rejections"] == []
    assert shop.store.traffic() == {"recorded": 1}
    assert await owner_of(app, email="ann@example.org") is None


async def test_a_deletion_between_two_tries_of_a_batch_counts(shop: Shop, alice: Tenant) -> None:
    app = await apps.find_app(alice, str(UUID(bytes=shop.app_id)))
    other = shop.hit("event_token=other")
    ann = shop.hit("event_token=signup&params=" + quote('{"email":"ann@example.org"}'))
    shop.segment([(*other[:4], b"w" * 16, *other[5:]), ann])

    def die(table: str) -> None:
        if table == "traffic":
            raise Crash

    shop.store.before = die
    await shop.crash()
    assert shop.store.events() == ["other", "signup"]
    person = await owner_of(app, email="ann@example.org")
    assert person is not None
    await delete_person(app, person, "Alice", datetime.now(UTC) + timedelta(seconds=1))
    shop.store.before = lambda _table: None
    await shop.digest()
    # What was stored is for deletions.py; nothing is stored twice, and it does not count.
    assert shop.store.events() == ["other", "signup"]
    assert shop.store.traffic() == {"recorded": 1}


async def test_set_aside_hits_of_a_deleted_person_go(shop: Shop, alice: Tenant) -> None:
    other, _ = await apps.create_app(alice, "Other")
    theirs = Shop(shop.folder, shop.routes, other.id.bytes)
    app = await apps.find_app(alice, str(UUID(bytes=shop.app_id)))
    secret = f"{uuid4().hex}@example.org"
    params = quote(json.dumps({"email": secret}))
    shop.journal(f"event_token=poison&params={params}")
    theirs.journal("event_token=poison")
    await shop.digest(poisoned)
    assert len(shop.aside()) == 2
    assert any(secret.encode() in path.read_bytes() for path in shop.folder.glob("digest.sqlite3*")) is False
    assert any(params.encode() in path.read_bytes() for path in shop.folder.glob("digest.sqlite3*"))
    await delete_person(app, uuid4(), "Alice", datetime.now(UTC) + timedelta(seconds=1))
    # Decoded now, it is seen to be somebody else's; not decoded, it may be whoever was deleted.
    async with shop.digesting() as digester:
        await until(lambda: digester._looked_aside > 0)
    assert len(shop.aside()) == 2
    async with shop.digesting(poisoned):
        await until(lambda: len(shop.aside()) == 1)
    assert not any(params.encode() in path.read_bytes() for path in shop.folder.glob("digest.sqlite3*"))
    assert [number for number, _, _ in shop.aside()] == [2]


async def test_an_event_id_taken_while_its_first_hit_was_set_aside_stays_counted_once(shop: Shop) -> None:
    shop.journal("event_token=poison&event_id=1")
    await shop.digest(poisoned)
    shop.journal("event_token=again&event_id=1")
    await shop.digest()
    async with shop.digesting():
        shop.retry()
        await until(lambda: not shop.aside())
    assert shop.store.events() == ["again"]
    assert shop.store.traffic() == {"recorded": 1, "duplicate": 1}


@pytest.mark.parametrize("step", ["before finish", "after finish"])
async def test_a_hit_is_set_aside_once_though_the_digest_is_killed_then(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    shop.journal("event_token=poison", "event_token=a")
    crash_on(shop, monkeypatch, step)
    await shop.crash(poisoned)
    await shop.digest(poisoned)
    assert [attempts for _, _, attempts in shop.aside()] == [1]
    assert shop.store.traffic() == {"recorded": 1}


def refuses(table: str, row: Row) -> bool:
    """A store that cannot take some values."""
    return "poison" in (row[4] if table == "events" else row[6] if table == "rejections" else "")


async def test_whoever_watches_a_hit_that_is_set_aside_hears_nothing(shop: Shop) -> None:
    shop.store.refuse = refuses
    shop.segment([shop.hit("event_token=poison", watch=1), shop.hit("event_token=a", watch=2)])
    await shop.digest()
    assert shop.heard.outcomes == [Outcome(2, "recorded")]


async def test_rows_the_store_refuses_are_set_aside_alone(shop: Shop) -> None:
    shop.store.refuse = refuses
    hits = [shop.hit(f"event_token={'poison' if n in (3, 11) else 'e'}{n}") for n in range(16)]
    shop.segment([*hits, shop.hit("event_token=poison", 1), shop.hit("event_token=fine", 1)])
    digester = await shop.digest()
    assert shop.store.events() == sorted(f"e{n}" for n in range(16) if n not in (3, 11))
    assert [row[6] for row in shop.store.tables["rejections"]] == ["event_token=fine"]
    assert shop.store.traffic() == {"recorded": 14, "rejected": 1}
    assert len(shop.aside()) == 3
    assert (digester.figures.recorded, digester.figures.rejected, digester.figures.set_aside) == (14, 1, 3)
    shop.store.refuse = lambda _table, _row: False
    async with shop.digesting():
        shop.retry()
        await until(lambda: not shop.aside())
    assert len(shop.store.events()) == 16
    assert shop.store.traffic() == {"recorded": 16, "rejected": 2}


async def test_while_the_store_is_away_the_batch_waits_and_one_warning_is_logged(shop: Shop) -> None:
    tries: list[str] = []

    def away(table: str) -> None:
        tries.append(table)
        raise EventStoreUnavailable("connection refused")

    shop.store.before = away
    shop.journal("event_token=a")
    with capture_logs() as logged:
        async with shop.digesting() as digester:
            await until(lambda: len(tries) >= 5)
            assert digester.figures.trouble == "connection refused"
            # More comes meanwhile.
            shop.journal("event_token=b")
            shop.store.before = lambda _table: None
            await until(shop.empty)
            await until(lambda: digester.figures.trouble is None)
    assert shop.store.events() == ["a", "b"]
    assert shop.store.traffic() == {"recorded": 2}
    assert [line["event"].partition(";")[0] for line in logged] == ["digestion waits", "digestion goes on"]
    assert "connection refused" in shop.heard.troubles
    assert shop.heard.troubles[-1] is None


async def test_each_outage_is_told_once_and_tries_grow_apart_up_to_a_limit(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays = (0.001, 0.002, 0.003)
    monkeypatch.setattr(module, "_RETRY_SECONDS", delays)
    slept: list[float] = []
    sleep = Digester._sleep

    async def sleep_and_note(digester: Digester, seconds: float) -> None:
        slept.append(seconds)
        await sleep(digester, seconds)

    monkeypatch.setattr(Digester, "_sleep", sleep_and_note)
    tries: list[str] = []

    def away_for_a_while(table: str) -> None:
        tries.append(table)
        if len(tries) <= 5:
            raise EventStoreUnavailable("connection refused")

    shop.store.before = away_for_a_while
    with capture_logs() as logged:
        async with shop.digesting() as digester:
            for outage in range(2):
                tries.clear()
                shop.journal(f"event_token={outage}")
                await until(lambda outage=outage: len(logged) == 2 * (outage + 1))
            await until(shop.empty)
    assert digester.figures.failures == 10
    assert shop.store.events() == ["0", "1"]
    assert shop.store.traffic() == {"recorded": 2}
    assert [line["log_level"] for line in logged] == ["warning", "info"] * 2
    # The second outage begins anew.
    assert [seconds for seconds in slept if seconds in delays] == [0.001, 0.002, 0.003, 0.003, 0.003] * 2


async def test_a_control_database_that_hangs_is_away(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(_claims: Sequence[Claim]) -> set[bytes]:
        return await asyncio.Future[set[bytes]]()

    monkeypatch.setattr(module, "_CLAIM_SECONDS", 0.01)
    shop.journal("event_token=a&event_id=1")
    with capture_logs() as logged, monkeypatch.context() as hanging:
        hanging.setattr(event_ids, "claim", hang)
        async with shop.digesting() as digester:
            await until(lambda: len(shop.heard.troubles) >= 4)
            assert digester.figures.trouble == "TimeoutError"
            assert shop.store.events() == []
            hanging.undo()
            monkeypatch.setattr(module, "_CLAIM_SECONDS", 5.0)
            await until(shop.empty)
    assert shop.store.traffic() == {"recorded": 1}
    assert [line["log_level"] for line in logged] == ["warning", "info"]


async def test_an_emptied_control_database_makes_hits_wait(shop: Shop, alice: Tenant) -> None:
    path = shop.journal("event_token=a")
    tokens = await AppToken.select()
    await AppToken.delete(force=True)
    shop.routes.by_app.clear()
    shop.routes.revision = 0
    async with shop.digesting() as digester:
        await until(lambda: len(shop.heard.troubles) >= 4)
        assert "had no app yet" in (digester.figures.trouble or "")
        assert path.exists()
        # The database is back.
        await AppToken.insert(*(AppToken(**token) for token in tokens))
        await until(shop.empty)
    assert shop.store.events() == ["a"]


async def test_a_control_database_that_comes_back_while_it_is_read_costs_no_hit(
    shop: Shop, alice: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.journal("event_token=a")
    tokens = await AppToken.select()
    await AppToken.delete(force=True)
    shop.routes.by_app.clear()
    shop.routes.revision = 0
    refresh = shop.routes.refresh

    async def refresh_just_before() -> None:
        await refresh()
        if tokens:
            await AppToken.insert(*(AppToken(**tokens.pop()) for _ in range(len(tokens))))
            shop.routes.revision = 0

    monkeypatch.setattr(shop.routes, "refresh", refresh_just_before)
    async with shop.digesting():
        await until(shop.empty)
    assert shop.store.events() == ["a"]


async def test_a_control_database_begun_anew_makes_hits_wait(shop: Shop, alice: Tenant) -> None:
    shop.journal("event_token=poison")
    await shop.digest(poisoned)
    tokens = await AppToken.select()
    await AppToken.delete(force=True)
    shop.routes.by_app.clear()
    # Somebody opens the first page, which makes the app of its snippet.
    await showcase()
    async with shop.digesting():
        await asyncio.sleep(0.3)
    assert len(shop.aside()) == 1
    path = shop.journal("event_token=a")
    # Written before.
    path = path.rename(path.with_name(f"{shop.received_at:014d}{path.name[14:]}"))
    async with shop.digesting() as digester:
        await until(lambda: len(list(filter(None, shop.heard.troubles))) >= 2)
        assert "had no app yet" in (digester.figures.trouble or "")
        assert path.exists()
        # The database is back.
        await AppToken.delete(force=True)
        await AppToken.insert(*(AppToken(**token) for token in tokens))
        shop.routes.revision = 0
        await until(shop.empty)
        assert shop.retry() == 1
        await until(lambda: not shop.aside())
    assert shop.store.events() == ["a", "poison"]


@pytest.mark.parametrize("table", ["events", "rejections", "traffic"])
async def test_an_insert_done_whose_answer_is_lost_is_not_done_twice(shop: Shop, table: str) -> None:
    lost: list[str] = []

    def lose_the_answer(inserted: str) -> None:
        if inserted == table and len(lost) < 2:
            lost.append(inserted)
            raise EventStoreUnavailable("connection lost")

    shop.store.after = lose_the_answer
    shop.journal("event_token=a", "event_token=", "event_token=b&event_id=1")
    await shop.digest()
    assert lost
    assert shop.store.events() == ["a", "b"]
    assert len(shop.store.tables["rejections"]) == 1
    assert shop.store.traffic() == {"recorded": 2, "rejected": 1}


@pytest.mark.parametrize("table", ["events", "rejections"])
async def test_a_token_without_its_rows_loses_no_hit(shop: Shop, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    """The engine notes a token a millisecond before it has the rows, and may be killed in between."""
    insert, noted = shop.store.insert, set[str]()

    async def killed_in_between(inserted: str, rows: Sequence[Row], token: str) -> None:
        if inserted == table and not noted:
            noted.add(token)
            raise Crash
        if inserted != table or token not in noted:
            await insert(inserted, rows, token)

    monkeypatch.setattr(shop.store, "insert", killed_in_between)
    shop.journal("event_token=a", "event_token=", "event_token=b")
    await shop.crash()
    await shop.digest()
    assert noted
    assert shop.store.events() == ["a", "b"]
    assert len(shop.store.tables["rejections"]) == 1
    assert shop.store.traffic() == {"recorded": 2, "rejected": 1}


async def test_a_bug_on_the_way_is_logged_once_and_tried_again(shop: Shop) -> None:
    tries: list[str] = []

    def fail(table: str) -> None:
        tries.append(table)
        raise KeyError("event_token=secret")

    shop.store.before = fail
    shop.journal("event_token=a")
    with capture_logs() as logged:
        async with shop.digesting() as digester:
            await until(lambda: len(tries) >= 5)
            assert digester.figures.trouble == "KeyError"
            shop.store.before = lambda _table: None
            await until(shop.empty)
    assert shop.store.events() == ["a"]
    assert [line["event"].partition(";")[0] for line in logged] == ["digestion waits", "digestion goes on"]


# Killed between any two steps


def crash_on(shop: Shop, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Have the digest killed at this step, once."""
    when, _, what = step.partition(" ")
    crashed: list[str] = []

    def die(met: str) -> None:
        if met == what and not crashed:
            crashed.append(met)
            raise Crash

    if what in COLUMNS:
        setattr(shop.inserts, when, die)
        return
    owner, name = {
        "begin": (State, "begin"),
        "finish": (State, "finish"),
        "forget": (State, "forget"),
        "claim": (event_ids, "claim"),
        "keep": (access_tokens, "keep"),
        "identify": (people, "identify"),
        "told": (people, "told"),
        "remove": (module, "remove_if_done"),
    }[what]
    real: Any = getattr(owner, name)

    def dying(*arguments: Any, **named: Any) -> Any:
        if when == "before":
            die(what)
        result = real(*arguments, **named)
        die(what)
        return result

    async def dying_later(*arguments: Any, **named: Any) -> Any:
        if when == "before":
            die(what)
        result = await real(*arguments, **named)
        die(what)
        return result

    monkeypatch.setattr(owner, name, dying_later if inspect.iscoroutinefunction(real) else dying)


STEPS = [
    f"{when} {what}"
    for what in ("begin", "claim", "keep", "events", "rejections", "traffic", "finish", "remove", "forget")
    for when in ("before", "after")
]


@pytest.mark.parametrize("step", STEPS)
async def test_killed_at_any_step_an_access_token_is_kept_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    token = "event_token=a&params=" + quote('{"access_token": "EAABsecret", "plan": "pro"}')
    shop.segment(
        [shop.hit(token), shop.hit(f"{token}&event_id=1"), shop.hit(""), shop.hit("event_token=b&amount=7", 1)]
    )
    crash_on(shop, monkeypatch, step)
    await shop.crash()
    shop.journal(token.replace("secret", "other") + "&event_id=1", token)
    await shop.digest()
    # The other one's hit is a duplicate, which counts for nothing.
    (kept,) = await AccessToken.select()
    (taken,) = await access_tokens.take(UUID(bytes=shop.app_id), KEY, 2 * kept["due_at"], 10)
    assert taken.token == "EAABsecret"
    assert await TokenSender.count() == 1
    assert "EAAB" not in repr(shop.store.tables)


@pytest.mark.parametrize(
    "step",
    [
        f"{when} {what}"
        for what in ("begin", "identify", "person_aliases", "told", "events", "finish")
        for when in ("before", "after")
    ],
)
async def test_killed_at_any_step_of_a_merge_persons_are_the_same(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A visitor logs in as somebody who is known: what they did before is that person's, exactly once."""
    ann = "&params=" + quote('{"email": "ann@example.org"}')

    def of(visitor: bytes, query: str) -> HitTuple:
        hit = shop.hit(query)
        return (*hit[:4], visitor * 16, *hit[5:])

    shop.segment([of(b"v", "event_token=view"), of(b"x", "event_token=other")])
    await shop.digest()
    shop.segment(
        [of(b"w", f"event_token=signup{ann}"), of(b"v", f"event_token=login{ann}"), of(b"v", "event_token=buy")]
    )
    crash_on(shop, monkeypatch, step)
    await shop.crash()
    shop.segment([of(b"w", "event_token=later")])
    await shop.digest()
    assert shop.store.events() == ["buy", "later", "login", "other", "signup", "view"]
    assert await people.unscoped_untold() == []
    into = {row[1]: row[2] for row in sorted(shop.store.tables["person_aliases"], key=lambda row: row[3])}
    persons = {row[4]: row[-2] for row in shop.store.tables["events"]}
    assert into.keys() == {persons["view"]}
    assert len({into.get(person, person) for token, person in persons.items() if token != "other"}) == 1
    assert persons["other"] == int.from_bytes(b"x" * 16)


@pytest.mark.parametrize("writer", ["gone", "going on"])
@pytest.mark.parametrize("step", STEPS)
async def test_killed_at_any_step_a_batch_is_stored_exactly_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, step: str, writer: str
) -> None:
    segment = shop.growing_segment(
        [shop.hit("event_token=a"), shop.hit("event_token=a"), shop.hit("event_token=o1&event_id=1")],
        [shop.hit("event_token=o1again&event_id=1"), shop.hit(""), shop.hit("event_token=b&amount=7", 1)],
        limited=2,
    )
    if writer == "gone":
        segment.close()
    crash_on(shop, monkeypatch, step)
    await shop.crash()
    # What comes in between must not change what the batch was.
    later = [shop.hit("event_token=later&event_id=1"), shop.hit("event_token=later")]
    if writer == "gone":
        shop.segment(later)
    else:
        segment.append(encode_frame(later, []))
        segment.close()
    await shop.digest()
    assert shop.store.events() == ["a", "a", "b", "later", "o1"]
    assert len(shop.store.tables["rejections"]) == 1
    assert shop.store.traffic() == {"recorded": 5, "rejected": 1, "duplicate": 2, "limited": 4}
    ids = [row[2] for table in ("events", "rejections") for row in shop.store.tables[table]]
    assert len(ids) == len(set(ids))
    batches = [{row[4] for row in rows} for (table, _), rows in shop.store.tokens.items() if table == "events"]
    assert ({"later"} in batches) == (step != "before begin"), "a batch grew after it was begun"
    assert shop.positions() == {}


@pytest.mark.parametrize("step", STEPS)
async def test_after_a_power_cut_only_counters_may_count_twice(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(module, "_ASKED_AT_ONCE", 2)
    shop.journal("event_token=a", "event_token=a", "event_token=b&event_id=1", "event_token=c&event_id=1", "")
    crash_on(shop, monkeypatch, step)
    await shop.crash()
    shop.store.forget_tokens()
    await shop.digest()
    assert shop.store.events() == ["a", "a", "b"]
    assert len(shop.store.tables["rejections"]) == 1
    times = 2 if step in ("after traffic", "before finish") else 1
    assert shop.store.traffic() == {"recorded": 3 * times, "rejected": times, "duplicate": times}


@pytest.mark.parametrize("step", ["after begin", "after claim", "after events", "before finish"])
async def test_whoever_watches_a_hit_is_told_the_same_after_a_crash(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    query = "event_token=a&event_id=1"
    shop.segment([shop.hit(query, watch=1), shop.hit(query, watch=2)])
    crash_on(shop, monkeypatch, step)
    await shop.crash()
    assert shop.heard.outcomes == []
    await shop.digest()
    assert shop.heard.outcomes == [Outcome(1, "recorded"), Outcome(2, "duplicate")]


@pytest.mark.parametrize("step", ["after events", "after traffic", "before finish", "after finish"])
async def test_killed_while_retrying_set_aside_hits_are_stored_exactly_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    shop.journal("event_token=poison1", "event_token=poison2", "event_token=a")
    await shop.digest(poisoned)
    crash_on(shop, monkeypatch, step)
    shop.retry()
    await shop.crash()
    async with shop.digesting():
        await until(lambda: not shop.aside())
        # A batch that was finished before the crash is not begun again.
        await asyncio.sleep(0.1)
    assert shop.store.events() == ["a", "poison1", "poison2"]
    assert shop.store.traffic() == {"recorded": 3}


# The search takes eight inserts, the last of them into traffic.
@pytest.mark.parametrize("inserts", range(1, 9))
async def test_killed_amid_the_search_for_a_refused_row_nothing_is_lost(shop: Shop, inserts: int) -> None:
    """Tried again, the halves are others: a token used for one must not be used for another."""
    shop.store.refuse = refuses
    shop.journal(*(f"event_token={'poison' if n == 6 else f'e{n}'}" for n in range(8)))
    calls: list[str] = []

    def die(table: str) -> None:
        calls.append(table)
        if len(calls) == inserts:
            raise Crash

    shop.store.before = die
    await shop.crash()
    await shop.digest()
    assert shop.store.events() == sorted(f"e{n}" for n in range(8) if n != 6)
    assert shop.store.traffic() == {"recorded": 7}
    assert len(shop.aside()) == 1


async def test_one_row_of_a_thousand_that_the_store_refuses_is_found_in_few_inserts(shop: Shop) -> None:
    shop.store.refuse = refuses
    shop.journal(*(f"event_token={'poison' if n == 618 else f'e{n}'}&event_id={n}" for n in range(1000)))
    inserts: list[str] = []

    def die_amid(table: str) -> None:
        inserts.append(table)
        if len(inserts) == 11:
            raise Crash

    shop.store.before = die_amid
    await shop.crash()
    stored = len(shop.store.events())
    assert 0 < stored < 999
    inserts.clear()
    shop.store.before = inserts.append
    await shop.digest()
    assert shop.store.events() == sorted(f"e{n}" for n in range(1000) if n != 618)
    assert shop.store.traffic() == {"recorded": 999}
    assert len(shop.aside()) == 1
    # Ten halvings, two inserts each, and traffic.
    assert len(inserts) <= 22


# On the real engine


@pytest.mark.parametrize("power_cut", [False, True])
@pytest.mark.parametrize("step", ["before events", "after events", "after rejections"])
async def test_the_engine_holds_each_hit_once_after_a_crash(
    shop: Shop, engine: Engine, monkeypatch: pytest.MonkeyPatch, step: str, power_cut: bool
) -> None:
    shop.segment(
        [shop.hit("event_token=a"), shop.hit("event_token=a"), shop.hit("event_token=b&event_id=1")],
        [shop.hit("event_token=c&event_id=1"), shop.hit("event_token=d&amount=7", 1), shop.hit("event_token=x", 1)],
        limited=2,
    )
    crash_on(shop, monkeypatch, step)
    await shop.crash()
    if power_cut:
        engine.forget_tokens()
    await shop.digest()
    assert await engine.column("events", "event_token") == ["a", "a", "b", "d"]
    assert await engine.column("rejections", "reason") == ["missing_amount"]
    assert await engine.traffic() == {"recorded": 4, "rejected": 1, "duplicate": 1, "limited": 4}


@pytest.mark.parametrize("step", ["after traffic", "before finish"])
async def test_the_engine_counts_each_hit_once_after_a_crash(
    shop: Shop, engine: Engine, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    shop.journal("event_token=a", "event_token=b&event_id=1", "event_token=b&event_id=1", "")
    crash_on(shop, monkeypatch, step)
    await shop.crash()
    await shop.digest()
    assert await engine.column("events", "event_token") == ["a", "b"]
    assert await engine.traffic() == {"recorded": 2, "rejected": 1, "duplicate": 1}


async def test_a_value_the_engine_cannot_take_sets_its_hit_aside_until_it_can(shop: Shop, engine: Engine) -> None:
    def too_large(category: Category, query: bytes, currency: str, privacy: bool) -> Event | Rejection:
        found = decode(category, query, currency, privacy)
        if isinstance(found, Event) and found.event_token == "e11":
            return msgspec.structs.replace(found, amount=2**63)
        return found

    shop.segment([shop.hit(f"event_token=e{n:02}&amount=5", 1) for n in range(20)])
    await shop.digest(too_large)
    everything = [f"e{n:02}" for n in range(20)]
    assert await engine.column("events", "event_token") == [token for token in everything if token != "e11"]
    assert await engine.traffic() == {"recorded": 19}
    assert len(shop.aside()) == 1
    async with shop.digesting():
        shop.retry()
        await until(lambda: not shop.aside())
    assert await engine.column("events", "event_token") == everything
    assert await engine.traffic() == {"recorded": 20}


# The disk


@pytest.mark.parametrize("damaged", range(3))
async def test_damage_is_kept_aside_and_costs_no_other_hit(shop: Shop, damaged: int) -> None:
    path = shop.segment(*[[shop.hit(f"event_token=e{n}")] for n in range(3)])
    frame = path.stat().st_size // 3
    with path.open("r+b") as file:
        file.seek(damaged * frame + 30)
        file.write(b"\xff\xff")
    shop.journal("event_token=other")
    with capture_logs() as logged:
        await shop.digest()
    assert shop.store.events() == [*(f"e{n}" for n in range(3) if n != damaged), "other"]
    assert [line["event"] for line in logged if line["log_level"] == "error"] == [
        "journal segment is damaged; the rest of it goes on"
    ]
    assert measure_journal(shop.folder, Backlog(shop.folder)).damaged == 1


async def test_a_frame_of_another_version_is_kept_aside(shop: Shop) -> None:
    segment = Segment(shop.folder)
    segment.append(encode_frame([shop.hit("event_token=a")], []))
    segment.append(encode_frame([(*shop.hit("event_token=c")[:3], "no bytes", *shop.hit("")[4:])], []))  # pyright: ignore[reportArgumentType]
    segment.append(encode_frame([shop.hit("event_token=b")], []))
    segment.close()
    await shop.digest()
    assert shop.store.events() == ["a", "b"]
    assert len(list(shop.folder.glob("*.damaged"))) == 1


async def test_a_torn_end_goes_with_its_segment(shop: Shop) -> None:
    path = shop.segment([shop.hit("event_token=a")], [shop.hit("event_token=torn")])
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 3)
    await shop.digest()
    assert shop.store.events() == ["a"]
    assert list(shop.folder.glob("*.damaged")) == []


async def test_hits_are_digested_while_their_writer_goes_on(shop: Shop) -> None:
    segment = Segment(shop.folder)
    async with shop.digesting():
        for number in range(3):
            segment.append(encode_frame([shop.hit(f"event_token=e{number}")], []))
            await until(lambda number=number: len(shop.store.tables["events"]) == number + 1)
            assert segment.path.exists()
        segment.close()
        await until(shop.empty)
    assert shop.store.events() == ["e0", "e1", "e2"]


# However they are cut


# (category, event token, amount, event id)
HITS = st.tuples(
    st.integers(0, 1),
    st.sampled_from(["a", "b", ""]),
    st.sampled_from(["5", "-3", "x"]),
    st.sampled_from(["", "1", "2"]),
)
SEGMENTS = st.lists(st.lists(st.lists(HITS, max_size=6), max_size=4), max_size=4)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(segments=SEGMENTS, most=st.integers(1, 12), stops=st.lists(st.booleans(), min_size=4, max_size=4))
async def test_however_hits_are_cut_into_batches_the_totals_are_the_same(
    shop: Shop,
    monkeypatch: pytest.MonkeyPatch,
    segments: list[list[list[tuple[int, str, str, str]]]],
    most: int,
    stops: list[bool],
) -> None:
    monkeypatch.setattr(module, "_BATCH_HITS", most)
    # An app of its own: event ids are remembered from one example to the next.
    app_id = uuid4().bytes
    routes = Routes()
    routes.by_app[app_id] = EUROS
    site = Shop(shop.folder, routes, app_id)
    for frames, stop in zip(segments, stops, strict=False):
        site.segment(
            *[[site.hit(f"event_token={t}&amount={a}&event_id={i}", c) for c, t, a, i in hits] for hits in frames]
        )
        if stop:
            await site.digest()
    await site.digest()

    sent = [hit for frames in segments for hits in frames for hit in hits]
    valid = [(c, t, i) for c, t, a, i in sent if t and (c == 0 or a != "x")]
    anonymous = [(("event", "revenue")[c], t) for c, t, i in valid if not i]
    identified = {(("event", "revenue")[c], i) for c, _, i in valid if i}
    stored = site.store.tables["events"]
    assert Counter((row[3], row[4]) for row in stored if not row[7]) == Counter(anonymous)
    assert Counter((row[3], row[7]) for row in stored if row[7]) == Counter(identified)
    totals = {
        "recorded": len(anonymous) + len(identified),
        "rejected": len(sent) - len(valid),
        "duplicate": len(valid) - len(anonymous) - len(identified),
    }
    assert site.store.traffic() == {outcome: count for outcome, count in totals.items() if count}
    assert len(site.store.tables["rejections"]) == totals["rejected"]


# Pure functions


RECEIVED = 1_700_000_000_000
APP = 7
APP_ID = APP.to_bytes(16, "big")
MINUTE = RECEIVED // 60_000 * 60
EUROS = Route("a" * 24, UUID(bytes=APP_ID), 1, 1000, 5000, "EUR", True, None, False, 1)


def plain(query: bytes, category: int = 0, app_id: bytes = APP_ID, visitor_id: bytes | None = None) -> Hit:
    return Hit(RECEIVED, app_id, category, query, visitor_id, False, "192.0.2.0/24", b"UA", b"https://x.example/1", b"")


@pytest.mark.parametrize(
    ("hit", "traffic", "claims"),
    [
        (plain(b"event_token=a"), {"recorded": 1}, []),
        (plain(b"event_token=a&amount=1", 1), {"recorded": 1}, []),
        (plain(b"event_token=a&params=x"), {"recorded": 1}, []),
        (plain(b"event_token=a&event_id=o"), {"recorded": 1}, [("event", "o")]),
        (plain(b"event_token=a&event_id=o&amount=1", 1), {"recorded": 1}, [("revenue", "o")]),
        (plain(b""), {"rejected": 1}, []),
        (plain(b"event_token=a&event_id=o", 1), {"rejected": 1}, []),
        (plain(b"event_token=a&event_id=o", app_id=b"?" * 16), {}, []),
    ],
)
def test_what_a_hit_counts_as_and_claims(hit: Hit, traffic: dict[str, int], claims: list[tuple[str, str]]) -> None:
    found = understand([(5, hit)], {APP_ID: EUROS})
    assert found.traffic == {(APP, MINUTE, outcome): count for outcome, count in traffic.items()}
    assert len(found.events) == traffic.get("recorded", 0)
    assert len(found.rejections) == traffic.get("rejected", 0)
    named = (5).to_bytes(16, "big")
    assert found.claims == [Claim(UUID(int=APP), category, event_id, named, RECEIVED) for category, event_id in claims]
    assert (found.failed, found.watched) == ({}, {})


@pytest.mark.parametrize(
    ("hit", "error"),
    [
        (plain(b"event_token=poison"), "ZeroDivisionError in poisoned, line "),
        (plain(b"event_token=a", category=2), "IndexError in understand, line "),
    ],
)
def test_a_hit_that_fails_counts_as_nothing(hit: Hit, error: str) -> None:
    found = understand([(5, hit), (6, plain(b"event_token=a"))], {APP_ID: EUROS}, poisoned)
    assert list(found.failed) == [5]
    assert found.failed[5].startswith(error)
    assert [row[2] for row in found.events] == [6]
    assert found.traffic == {(APP, MINUTE, "recorded"): 1}


@pytest.mark.parametrize(
    ("category", "visitor_id", "expected"),
    [
        (0, None, {"amount": 0, "currency": "", "visitor_id": 0, "person_id": 0}),
        (1, b"v" * 16, {"amount": 9, "currency": "EUR", "visitor_id": int.from_bytes(b"v" * 16, "big")}),
    ],
)
def test_an_event_keeps_what_came_with_its_hit(
    category: int, visitor_id: bytes | None, expected: dict[str, int | str]
) -> None:
    hit = plain(b"event_token=a&amount=9", category, visitor_id=visitor_id)
    (row,) = understand([(5, hit)], {APP_ID: EUROS}).events
    stored = dict(zip((name for name, _ in COLUMNS["events"]), row, strict=True))
    expected |= {"app_id": APP, "id": 5, "received_at": RECEIVED, "network": "192.0.2.0/24", "user_agent": "UA"}
    expected |= {"referrer_host": "x.example"}
    assert {name: stored[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("duplicates", "kept", "traffic"),
    [
        ([], [1, 2, 3], {(APP, MINUTE, "recorded"): 2, (APP, MINUTE + 60, "recorded"): 1}),
        (
            [2],
            [1, 3],
            {(APP, MINUTE, "recorded"): 1, (APP, MINUTE, "duplicate"): 1, (APP, MINUTE + 60, "recorded"): 1},
        ),
        (
            [1, 2, 3],
            [],
            {
                (APP, MINUTE, "recorded"): 0,
                (APP, MINUTE, "duplicate"): 2,
                (APP, MINUTE + 60, "recorded"): 0,
                (APP, MINUTE + 60, "duplicate"): 1,
            },
        ),
    ],
)
def test_duplicates_are_counted_where_they_were_recorded(
    duplicates: list[int], kept: list[int], traffic: dict[tuple[int, int, str], int]
) -> None:
    hits = [plain(b"event_token=a&event_id=1") for _ in range(3)]
    hits[2].received_at += 60_000
    for number, hit in enumerate(hits):
        hit.watch = number + 1
    found = understand(list(enumerate(hits, 1)), {APP_ID: EUROS})
    drop_duplicates(found, {named.to_bytes(16, "big") for named in duplicates})
    assert [row[2] for row in found.events] == kept
    assert dict(found.traffic) == traffic
    assert found.duplicates == len(duplicates)
    told = {named: outcome.result for named, outcome in found.watched.items()}
    assert told == {named: "duplicate" if named in duplicates else "recorded" for named in (1, 2, 3)}


def test_nothing_understood_has_no_duplicates() -> None:
    found = Understood()
    drop_duplicates(found, {b"?" * 16})
    assert found == Understood()


@pytest.mark.parametrize(
    ("traffic", "limited", "rows"),
    [
        ({}, [], []),
        ({(7, 60, "recorded"): 2}, [], [(7, 60, 2, 0, 0, 0)]),
        ({(7, 60, "recorded"): 0}, [], []),
        ({(7, 60, "recorded"): 0, (7, 60, "duplicate"): 1}, [], [(7, 60, 0, 0, 1, 0)]),
        ({}, [(APP_ID, 60, 4), (APP_ID, 60, 5)], [(7, 60, 0, 0, 0, 9)]),
        (
            {(8, 0, "rejected"): 1, (7, 120, "recorded"): 2, (7, 60, "duplicate"): 3},
            [(APP_ID, 60, 4)],
            [(7, 60, 0, 0, 3, 4), (7, 120, 2, 0, 0, 0), (8, 0, 0, 1, 0, 0)],
        ),
    ],
)
def test_counts_become_a_row_an_app_and_minute(
    traffic: Mapping[tuple[int, int, str], int], limited: list[tuple[bytes, int, int]], rows: list[Row]
) -> None:
    assert traffic_rows(traffic, limited) == rows


def test_every_piece_of_work_has_a_token_of_its_own() -> None:
    hit = plain(b"")
    work = [
        Batch([("a", 0, 10)]),
        Batch([("a", 0, 11)]),
        Batch([("a", 10, 11)]),
        Batch([("b", 0, 10)]),
        Batch([("a", 0, 10), ("b", 0, 10)]),
        Batch(retried=[1], hits=[(5, hit)]),
        # The number of a hit no longer set aside is given again.
        Batch(retried=[1], hits=[(6, hit)]),
        Batch(retried=[2], hits=[(5, hit)]),
    ]
    assert len({batch.token for batch in work}) == len(work)
    assert Batch([("a", 0, 10)], again=True).token == work[0].token


@pytest.mark.parametrize(("minutes", "sightings"), [(0, 0), (6, 1)])
def test_the_first_hit_of_a_cookie_is_placed_where_others_may_have_been_before(minutes: int, sightings: int) -> None:
    """Of a machine that was away, or set aside: whoever has the cookie may be known by now."""
    first = plain(b"event_token=a")
    at = int(time.time() * 1000) - 60_000 * minutes
    first = msgspec.structs.replace(first, received_at=at, visitor_id=bytes([7]) * 16, new_visitor=True)
    assert len(understand([(5, first)], {APP_ID: EUROS}).sightings) == sightings
