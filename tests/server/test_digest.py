"""The digest: each hit exactly once, whatever fails or is killed; a hit that cannot be digested holds up no other."""

import asyncio
import contextlib
import inspect
import os
import shutil
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from server import digest as module
from server.database import Database
from server.digest import Digester, DigestFigures, Outcome, State, measure_journal
from server.event_store import EventStoreRefused, EventStoreUnavailable
from server.journal import Backlog, HitTuple, Segment, encode_frame, segment_sizes
from server.routes import Routes
from tenants import apps, event_ids
from tenants.events import Row
from tenants.hits import Category, Event, Rejection, decode
from tenants.tables import Tenant

RECEIVED = 1_700_000_000_000


class Crash(BaseException):
    """The process is killed here: nothing of ours catches it."""


@dataclass
class Store:
    """An event store that remembers tokens as ClickHouse does, is away, refuses rows, or dies with its caller."""

    tables: dict[str, list[Row]] = field(default_factory=lambda: {"events": [], "rejections": [], "traffic": []})
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

    def events(self) -> list[str]:
        """The event tokens stored, sorted."""
        return sorted(row[4] for row in self.tables["events"])

    def traffic(self) -> dict[str, int]:
        """What was counted over all minutes, without zeros."""
        sums = Counter[str]()
        for row in self.tables["traffic"]:
            for outcome, count in zip(("recorded", "rejected", "duplicate", "limited"), row[2:], strict=True):
                sums[outcome] += count
        return {outcome: count for outcome, count in sums.items() if count}


@dataclass
class Heard:
    """Hears how the digest goes."""

    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    troubles: list[str | None] = field(default_factory=list[str | None])

    async def progressed(self, figures: DigestFigures) -> None:
        self.troubles.append(figures.trouble)

    async def became(self, outcomes: list[Outcome]) -> None:
        self.outcomes += outcomes


class Shop:
    """An app whose hits stand in a journal."""

    def __init__(self, folder: Path, routes: Routes, app_id: bytes) -> None:
        self.folder = folder
        self.routes = routes
        self.app_id = app_id
        self.store = Store()
        self.heard = Heard()

    def hit(self, query: str, category: int = 0, watch: int = 0) -> HitTuple:
        return (RECEIVED, self.app_id, category, query.encode(), b"v" * 16, False, "", b"", b"", b"", watch)

    def journal(self, *queries: str, limited: int = 0) -> Path:
        """Hits in one frame of a segment whose writer is gone."""
        return self.segment([self.hit(query) for query in queries], limited=limited)

    def segment(self, *frames: list[HitTuple], limited: int = 0) -> Path:
        segment = Segment(self.folder)
        counts = [(self.app_id, RECEIVED // 60_000 * 60, limited)] if limited else []
        for hits in frames:
            segment.append(encode_frame(hits, counts))
        segment.close()
        return segment.path

    @contextlib.asynccontextmanager
    async def digesting(self, decode: module.Decode = decode) -> AsyncGenerator[Digester]:
        """A digest at work. What it raises is raised at the end."""
        digester = Digester(self.folder, self.store, self.routes, self.heard, decode)
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

    async def crash(self) -> None:
        """Digest until the crash."""
        digester = Digester(self.folder, self.store, self.routes, self.heard)
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
        state = State(self.folder)
        try:
            return state.set_aside()
        finally:
            state.close()

    def retry(self) -> int:
        """What `onepx digest retry` does."""
        state = State(self.folder)
        try:
            return state.retry_all()
        finally:
            state.close()


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


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", (0.02,))


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


async def test_batches_are_cut_and_all_are_digested(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_HITS", 10)
    for segment in range(3):
        shop.segment(*[[shop.hit(f"event_token={segment}-{frame}-{n}") for n in range(4)] for frame in range(5)])
    digester = await shop.digest()
    assert len(set(shop.store.events())) == len(shop.store.events()) == 60
    assert digester.figures.batches == 5


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
    async with shop.digesting():
        assert shop.retry() == 1
        await until(lambda: not shop.aside())
    assert shop.store.events() == ["mended0", "mended1", "mended2", "poison3"]
    assert shop.store.traffic() == {"recorded": 4}


def refuses(table: str, row: Row) -> bool:
    """A store that cannot take some values."""
    return "poison" in (row[4] if table == "events" else row[6] if table == "rejections" else "")


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

    if what in shop.store.tables:
        setattr(shop.store, when, die)
        return
    owner, name = {
        "begin": (State, "begin"),
        "finish": (State, "finish"),
        "forget": (State, "forget"),
        "claim": (event_ids, "claim"),
        "remove": (module, "remove_if_done"),
    }[what]
    real: Any = getattr(owner, name)

    def dying(*arguments: Any) -> Any:
        if when == "before":
            die(what)
        result = real(*arguments)
        die(what)
        return result

    async def dying_later(*arguments: Any) -> Any:
        if when == "before":
            die(what)
        result = await real(*arguments)
        die(what)
        return result

    monkeypatch.setattr(owner, name, dying_later if inspect.iscoroutinefunction(real) else dying)


STEPS = [
    f"{when} {what}"
    for what in ("begin", "claim", "events", "rejections", "traffic", "finish", "remove", "forget")
    for when in ("before", "after")
]


@pytest.mark.parametrize("step", STEPS)
async def test_killed_at_any_step_a_batch_is_stored_exactly_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    shop.segment(
        [shop.hit("event_token=a"), shop.hit("event_token=a"), shop.hit("event_token=o1&event_id=1")],
        [shop.hit("event_token=o1again&event_id=1"), shop.hit(""), shop.hit("event_token=b&amount=7", 1)],
        limited=2,
    )
    crash_on(shop, monkeypatch, step)
    await shop.crash()
    # What comes in between must not change what the batch was.
    shop.journal("event_token=later&event_id=1", "event_token=later")
    await shop.digest()
    assert shop.store.events() == ["a", "a", "b", "later", "o1"]
    assert len(shop.store.tables["rejections"]) == 1
    assert shop.store.traffic() == {"recorded": 5, "rejected": 1, "duplicate": 2, "limited": 4}
    ids = [row[2] for table in ("events", "rejections") for row in shop.store.tables[table]]
    assert len(ids) == len(set(ids))


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


# The disk


async def test_damage_is_kept_aside_and_costs_no_other_hit(shop: Shop) -> None:
    path = shop.segment(*[[shop.hit(f"event_token=e{n}")] for n in range(3)])
    frame = path.stat().st_size // 3
    with path.open("r+b") as file:
        file.seek(frame + 30)
        file.write(b"\xff\xff")
    shop.journal("event_token=other")
    with capture_logs() as logged:
        await shop.digest()
    assert shop.store.events() == ["e0", "e2", "other"]
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
