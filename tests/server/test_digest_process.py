"""The digest's process as its parent sees it, and the parent as the digest sees it: what they say, and who dies when.

The children here are a few words of shell in its place; the real one runs in the tests of a live server.
"""
# pyright: reportPrivateUsage=false

import asyncio
import contextlib
import functools
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, cast

import msgspec
import pytest
import uvloop
from structlog.testing import capture_logs

from server import digest_process as module
from server.digest import DigestFigures, Outcome
from server.digest_process import (
    AskStored,
    Became,
    DigestProcess,
    Insert,
    Inserted,
    Progress,
    Stop,
    Stored,
    _framed,
    _from_child,
    _from_parent,
    _Parent,
    _read,
    _remove_leftovers,
)
from server.event_store import EventStore, EventStoreRefused, EventStoreUnavailable
from tenants.events import Row

P = ParamSpec("P")
APP, HIT = b"a" * 16, b"h" * 16
ACTIVE = Progress(DigestFigures(active=True, recorded=2, batches=1, seconds=0.5))


@dataclass
class Store:
    """What the parent does a child's work with; `failure` is raised by all of it."""

    inserted: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    asked: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    failure: Exception | None = None

    async def insert_file(self, table: str, path: Path, token: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.inserted.append((table, str(path), token))

    async def stored(self, table: str, rows: Sequence[tuple[int, int, int]]) -> set[int]:
        if self.failure is not None:
            raise self.failure
        self.asked += rows
        return {named for _, _, named in rows}


def on_uvloop(story: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test with children runs on the loop of `onepx serve`: asyncio's own treats them and their pipes otherwise."""

    @functools.wraps(story)
    def run(*arguments: P.args, **fixtures: P.kwargs) -> None:
        uvloop.run(story(*arguments, **fixtures))

    return run


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def process(store: Store) -> DigestProcess:
    return DigestProcess(cast(EventStore, store))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def shell(*words: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    """A shell in place of the digest, ended with the block."""
    child = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", *words), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


@contextlib.asynccontextmanager
async def running(process: DigestProcess) -> AsyncGenerator[asyncio.Task[None]]:
    """The process kept running, and no child left behind."""
    task = asyncio.create_task(process.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def in_place_of_the_child(monkeypatch: pytest.MonkeyPatch, path: Path, script: str) -> None:
    """Have this script started where the digest's process would be."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(path))


async def listen(process: DigestProcess, said: bytes, path: Path) -> None:
    """Have the parent listen to a child that says this and dies."""
    path.write_bytes(said)  # noqa: ASYNC240
    async with shell('cat "$0"', str(path)) as child, asyncio.timeout(5):
        await process._listen(child, DigestFigures())


# What they say to each other


FROM_CHILD = [
    Insert("events", "/data/tmp/x.native", "t" * 32),
    AskStored("rejections", []),
    AskStored("events", [(APP, 1_700_000_000_000, HIT), (bytes(16), 0, b"\xff" * 16)]),
    Progress(DigestFigures()),
    Progress(DigestFigures(True, "away", recorded=1, rejected=2, duplicate=3, set_aside=4, batches=5, seconds=6.5)),
    Became([]),
    Became([Outcome(2**63 - 1, "recorded", ("invalid_params", "too_deep")), Outcome(1, "rejected; reason=x")]),
]
FROM_PARENT = [
    Inserted(),
    Inserted(refused="ClickHouse error 53"),
    Inserted(unavailable="away"),
    Stored(),
    Stored([HIT, bytes(16)]),
    Stored(unavailable="away"),
    Stop(),
]


def stream(data: bytes) -> asyncio.StreamReader:
    """A pipe whose writer wrote this and ended."""
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


@pytest.mark.parametrize(
    ("decoder", "messages"), [(_from_child, FROM_CHILD), (_from_parent, FROM_PARENT)], ids=["child", "parent"]
)
async def test_messages_arrive_as_they_were_sent(
    decoder: msgspec.msgpack.Decoder[msgspec.Struct], messages: list[msgspec.Struct]
) -> None:
    pipe = stream(b"".join(map(_framed, messages)))
    for message in messages:
        body = await _read(pipe)
        assert body is not None
        assert decoder.decode(body) == message
    assert await _read(pipe) is None


async def test_a_message_longer_than_the_pipe_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    # A signal may cut a write short.
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:50_000]))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    rows = [(APP, number, number.to_bytes(16, "big")) for number in range(20_000)]
    reading, writing = os.pipe()
    pipe = asyncio.StreamReader()
    parent = _Parent(writing, Path("unused"))
    with open(reading, "rb") as source:  # noqa: ASYNC230, PTH123 (a pipe)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(pipe), source
        )
        sending = asyncio.create_task(asyncio.to_thread(parent._tell, AskStored("events", rows)))
        async with asyncio.timeout(5):
            body = await _read(pipe)
        await sending
        transport.close()
    os.close(writing)
    assert body is not None
    assert _from_child.decode(body) == AskStored("events", rows)


async def test_a_message_cut_off_anywhere_is_the_end() -> None:
    whole = _framed(FROM_CHILD[0])
    for length in range(len(whole)):
        assert await _read(stream(whole[:length])) is None
    assert await _read(stream(whole)) is not None


# The parent's side


@on_uvloop
async def test_a_child_that_dies_in_mid_message_leaves_what_it_said_before(
    process: DigestProcess, store: Store, tmp_path: Path
) -> None:
    cut_off = _framed(Insert("events", "never", "whole"))[:-1]
    await listen(process, _framed(ACTIVE) + cut_off, tmp_path / "said")
    assert process.figures == ACTIVE.figures
    assert store.inserted == []


@on_uvloop
async def test_an_insert_of_a_child_that_is_dead_already_is_done(
    process: DigestProcess, store: Store, tmp_path: Path
) -> None:
    inserts = [Insert("events", f"{number}.native", "t") for number in range(50)]
    await listen(process, b"".join(map(_framed, inserts)), tmp_path / "said")
    assert [path for _, path, _ in store.inserted] == [insert.path for insert in inserts]


ASK = AskStored("events", [(APP, 5, HIT)])


@pytest.mark.parametrize(
    ("question", "failure", "answer"),
    [
        (FROM_CHILD[0], None, Inserted()),
        (FROM_CHILD[0], EventStoreRefused("a value"), Inserted(refused="a value")),
        (FROM_CHILD[0], EventStoreUnavailable("away"), Inserted(unavailable="away")),
        (ASK, None, Stored([HIT])),
        (ASK, EventStoreUnavailable("away"), Stored(unavailable="away")),
    ],
)
@on_uvloop
async def test_the_parent_answers(
    process: DigestProcess,
    store: Store,
    tmp_path: Path,
    question: msgspec.Struct,
    failure: Exception | None,
    answer: msgspec.Struct,
) -> None:
    store.failure = failure
    said, heard = tmp_path / "said", tmp_path / "heard"
    said.write_bytes(_framed(question))
    expected = _framed(answer)
    # Ends its output once it was answered: the answer is heard, or the test waits in vain.
    async with shell(f'cat "$0"; head -c {len(expected)} >"$1"', str(said), str(heard)) as child, asyncio.timeout(5):
        await process._listen(child, DigestFigures())
    assert heard.read_bytes() == expected
    if failure is None and question is ASK:
        assert store.asked == [(int.from_bytes(APP, "big"), 5, int.from_bytes(HIT, "big"))]


@on_uvloop
async def test_a_digest_that_dies_is_started_again_and_its_figures_go_on(
    process: DigestProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_RESTART_SECONDS", 0.01)
    said = tmp_path / "said"
    said.write_bytes(_framed(ACTIVE) + _framed(ACTIVE)[:7])
    in_place_of_the_child(monkeypatch, tmp_path / "child", f"cat '{said}'; exit 3")
    with capture_logs() as logged:
        async with running(process):
            await until(lambda: process.figures.recorded >= 6)
            await until(lambda: not process.figures.active)
            assert "ended" in (process.figures.trouble or "")
    assert process.figures.batches * 2 == process.figures.recorded
    assert {line["event"] for line in logged} == {"digest process ended and is started again"}


@on_uvloop
async def test_a_child_that_talks_nonsense_is_replaced(
    process: DigestProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_RESTART_SECONDS", 0.01)
    said, met = tmp_path / "said", tmp_path / "met"
    said.write_bytes(b"\x03\0\0\0abc")
    # The second one talks sense, and stays.
    fine = tmp_path / "fine"
    fine.write_bytes(_framed(ACTIVE))
    script = f"if mkdir '{met}'; then cat '{said}'; else cat '{fine}'; fi; exec sleep 60"
    in_place_of_the_child(monkeypatch, tmp_path / "child", script)
    with capture_logs() as logged:
        async with running(process):
            await until(lambda: process.figures.active)
            assert process.figures.trouble is None
    assert [line["event"] for line in logged] == [
        "digest process cannot be kept",
        "digest process ended and is started again",
    ]


@pytest.mark.parametrize(
    ("script", "seconds", "status"),
    [
        # Reads what it is told, and ends.
        (f"head -c {len(_framed(Stop()))} >/dev/null", 5.0, 0),
        # Does not hear.
        ("exec sleep 60", 0.05, -9),
    ],
)
@on_uvloop
async def test_a_digest_is_asked_to_stop_and_killed_when_it_does_not(
    process: DigestProcess,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    script: str,
    seconds: float,
    status: int,
) -> None:
    in_place_of_the_child(monkeypatch, tmp_path / "child", script)
    with capture_logs() as logged:
        async with running(process) as task:
            await until(lambda: process._child is not None)
            child = process._child
            assert child is not None
            await process.stop(seconds)
            assert child.returncode == status
            async with asyncio.timeout(5):
                await task
    assert process._child is child, "it was not started again"
    assert logged == []


# Who waits for an outcome


@on_uvloop
async def test_an_outcome_reaches_the_one_who_waits_for_it(process: DigestProcess, tmp_path: Path) -> None:
    process.figures.active = True
    first, second = process.watch(), process.watch()
    assert first != second
    told = Outcome(first, "recorded", ("too_deep",))
    waiting = asyncio.create_task(process.outcome(first, 5))
    # One that is told twice, and one that nobody waits for.
    await listen(process, _framed(Became([told, Outcome(99, "recorded"), told])), tmp_path / "said")
    assert await waiting == told
    # An outcome told before it is asked for.
    await listen(process, _framed(Became([Outcome(second, "duplicate")])), tmp_path / "said")
    assert await process.outcome(second, 5) == Outcome(second, "duplicate")
    assert process._watches == {}


@on_uvloop
async def test_an_outcome_that_does_not_come_is_none_and_forgotten(process: DigestProcess, tmp_path: Path) -> None:
    process.figures.active = True
    watch = process.watch()
    assert await process.outcome(watch, 0.01) is None
    assert process._watches == {}
    await listen(process, _framed(Became([Outcome(watch, "recorded")])), tmp_path / "said")
    assert process._watches == {}


async def test_a_hit_that_was_not_kept_is_forgotten(process: DigestProcess) -> None:
    process.figures.active = True
    watch = process.watch()
    process.forget(watch)
    process.forget(watch)
    process.forget(0)
    assert process._watches == {}


async def test_nobody_waits_for_what_another_process_digests(process: DigestProcess) -> None:
    assert process.watch() == 0
    assert process._watches == {}


# The child's side


ROW: Row = (7, 60, 1, 2, 3, 4)


@pytest.fixture
def parent(tmp_path: Path) -> _Parent:
    return _Parent(os.open(tmp_path / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND), tmp_path)


async def ask(parent: _Parent, question: Any, *answers: msgspec.Struct) -> tuple[Any, list[msgspec.Struct]]:
    """What comes of asking, the answers coming one by one; and what was told."""
    told = parent.tmp_dir / "told"
    asking = asyncio.create_task(question)
    for answer in answers:
        size = told.stat().st_size
        await until(lambda size=size: told.stat().st_size > size)
        parent.replied(cast(Inserted | Stored, msgspec.structs.replace(answer, number=parent._asked)))
    try:
        async with asyncio.timeout(5):
            result = await asking
    except (EventStoreRefused, EventStoreUnavailable) as error:
        result = error
    pipe = stream(told.read_bytes())
    messages: list[msgspec.Struct] = []
    while (body := await _read(pipe)) is not None:
        messages.append(_from_child.decode(body))
    return result, messages


async def test_the_child_hands_its_rows_over_in_a_file(parent: _Parent) -> None:
    result, (message,) = await ask(parent, parent.insert("traffic", [ROW], "token"), Inserted())
    assert result is None
    assert isinstance(message, Insert)
    assert (message.table, message.token) == ("traffic", "token")
    (path,) = parent.tmp_dir.glob("*.native")
    assert (message.path, path.stat().st_size > 0) == (str(path), True)


async def test_no_rows_are_no_insert(parent: _Parent) -> None:
    assert await ask(parent, parent.insert("traffic", [], "token")) == (None, [])


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Inserted(refused="a value"), EventStoreRefused("a value")),
        (Inserted(unavailable="away"), EventStoreUnavailable("away")),
    ],
)
async def test_the_child_hears_why_an_insert_failed(parent: _Parent, answer: Inserted, error: Exception) -> None:
    result, _ = await ask(parent, parent.insert("traffic", [ROW], "token"), answer)
    assert (type(result), str(result)) == (type(error), str(error))


async def test_a_value_no_column_takes_is_refused_before_the_parent_is_asked(parent: _Parent) -> None:
    result, messages = await ask(parent, parent.insert("traffic", [(*ROW[:5], "four")], "token"))
    assert isinstance(result, EventStoreRefused)
    assert messages == []
    assert list(parent.tmp_dir.glob("*.native")) == []


async def test_the_child_asks_which_rows_are_stored(parent: _Parent) -> None:
    question = parent.stored("events", [(1, 5, 2), (1, 6, 3)])
    result, messages = await ask(parent, question, Stored([(3).to_bytes(16, "big")]))
    assert result == {3}
    one, two, three = (number.to_bytes(16, "big") for number in (1, 2, 3))
    assert messages == [AskStored("events", [(one, 5, two), (one, 6, three)], 1)]


async def test_the_child_does_not_take_no_answer_for_nothing_stored(parent: _Parent) -> None:
    result, _ = await ask(parent, parent.stored("events", [(1, 5, 2)]), Stored(unavailable="away"))
    assert isinstance(result, EventStoreUnavailable)


async def test_an_answer_that_comes_too_late_is_not_taken_for_another_questions(parent: _Parent) -> None:
    told = parent.tmp_dir / "told"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await parent.insert("traffic", [ROW], "token")
    parent.replied(Inserted(refused="nobody waits", number=1))
    size = told.stat().st_size
    asking = asyncio.create_task(parent.stored("events", [(1, 5, 2)]))
    await until(lambda: told.stat().st_size > size)
    parent.replied(Inserted(number=1))
    await asyncio.sleep(0.05)
    assert not asking.done()
    parent.replied(Stored([(2).to_bytes(16, "big")], number=2))
    parent.replied(Stored([], number=2))
    assert await asking == {2}


async def test_the_child_tells_its_news(parent: _Parent) -> None:
    async def news() -> None:
        await parent.progressed(ACTIVE.figures)
        await parent.became([Outcome(1, "duplicate")])

    assert await ask(parent, news()) == (None, [ACTIVE, Became([Outcome(1, "duplicate")])])


def test_what_a_killed_digest_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    for name, age in (("old.native", 601), ("young.native", 5), ("old.other", 601)):
        (tmp_path / name).touch()
        changed = time.time() - age
        os.utime(tmp_path / name, (changed, changed))
    module._remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.other", "young.native"]


@pytest.mark.parametrize(
    ("now", "before", "sum_of_both"),
    [
        (DigestFigures(), DigestFigures(), DigestFigures()),
        (DigestFigures(True, recorded=1), DigestFigures(), DigestFigures(True, recorded=1)),
        (DigestFigures(False, "away"), DigestFigures(True, None, 1), DigestFigures(False, "away", 1)),
        (DigestFigures(True), DigestFigures(False, "ended"), DigestFigures(True)),
        (
            DigestFigures(recorded=1, rejected=2, duplicate=3, set_aside=4, batches=5, failures=6, seconds=0.5),
            DigestFigures(recorded=10, rejected=20, duplicate=30, set_aside=40, batches=50, failures=60, seconds=5),
            DigestFigures(recorded=11, rejected=22, duplicate=33, set_aside=44, batches=55, failures=66, seconds=5.5),
        ),
    ],
)
def test_figures_after_those_of_an_earlier_process(
    now: DigestFigures, before: DigestFigures, sum_of_both: DigestFigures
) -> None:
    assert now.after(before) == sum_of_both


def test_what_killed_digests_left_is_removed_once_nobody_writes_it(tmp_path: Path) -> None:
    old = time.time() - module._LEFT_SECONDS - 1
    for name, age in (("1.native", old), ("2.native", time.time()), ("report.csv", old)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    _remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.native", "report.csv"]
