"""The digest in a process of its own: decoding would otherwise hold the interpreter while pixels wait.

The child reads the journal, decodes and keeps the digest's state. The embedded event store belongs to its parent, the
`onepx serve` process, so the child writes each insert to a file and asks the parent to have the engine read it; to a
ClickHouse server it inserts by itself. They talk over the child's standard input and output: MessagePack, each message
after its length as a u32.

The child ends by itself when its input does: a parent that was killed leaves nothing behind.
"""

import asyncio
import contextlib
import gc
import os
import secrets
import signal
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from server import logs
from server.database import Database, DatabaseUnavailable
from server.digest import Digester, DigestFigures, Inserts, Outcome
from server.event_store import EventStore, EventStoreRefused, EventStoreUnavailable, write_native
from server.routes import Routes
from server.settings import Settings
from tenants.events import Row
from tenants.facebook import facebook_key

log = structlog.get_logger()

_LENGTH = struct.Struct("<I")
# A child that dies is started again after this long, so that a bug that kills it cannot take the machine's time.
_RESTART_SECONDS = 1.0
_LEFT_SECONDS = 600.0
_GC_ALLOCATIONS = 1_000_000


class Insert(msgspec.Struct, tag=True):
    """Child: insert this file."""

    table: str
    path: str
    token: str
    number: int = 0


class Inserted(msgspec.Struct, tag=True):
    """Parent: done, or why not; with the question's number."""

    refused: str | None = None
    unavailable: str | None = None
    number: int = 0


class AskStored(msgspec.Struct, tag=True):
    """Child: which of these rows (app id, ms, id; ids of 16 bytes) of this table are stored?"""

    table: str
    rows: list[tuple[bytes, int, bytes]]
    number: int = 0


class Stored(msgspec.Struct, tag=True):
    """Parent: these, 16 bytes an id; or why it cannot tell. With the question's number."""

    ids: list[bytes] = []
    unavailable: str | None = None
    number: int = 0


class Progress(msgspec.Struct, tag=True):
    """Child: how it goes."""

    figures: DigestFigures


class Became(msgspec.Struct, tag=True):
    """Child: what watched hits became."""

    outcomes: list[Outcome]


class Stop(msgspec.Struct, tag=True):
    """Parent: end after the current batch."""


_encode = msgspec.msgpack.Encoder().encode
_from_child: msgspec.msgpack.Decoder[Insert | AskStored | Progress | Became] = msgspec.msgpack.Decoder(
    Insert | AskStored | Progress | Became
)
_from_parent: msgspec.msgpack.Decoder[Inserted | Stored | Stop] = msgspec.msgpack.Decoder(Inserted | Stored | Stop)


def _framed(message: msgspec.Struct) -> bytes:
    body = _encode(message)
    return _LENGTH.pack(len(body)) + body


async def _read(stream: asyncio.StreamReader) -> bytes | None:
    """The next message, or None at the end."""
    try:
        return await stream.readexactly(_LENGTH.unpack(await stream.readexactly(_LENGTH.size))[0])
    except asyncio.IncompleteReadError:
        return None


# The parent's side


class DigestProcess:
    """The child, as its parent sees it: kept running, its inserts done, its news passed on."""

    def __init__(self, store: EventStore) -> None:
        self.figures = DigestFigures()
        self._store = store
        self._watches: dict[int, asyncio.Future[Outcome]] = {}
        self._child: asyncio.subprocess.Process | None = None
        self._stopping = False

    def watch(self) -> int:
        """A number that marks a hit whose outcome is waited for; 0 when another process digests."""
        if not self.figures.active:
            return 0
        number = secrets.randbits(63) | 1
        self._watches[number] = asyncio.get_running_loop().create_future()
        return number

    async def outcome(self, watch: int, seconds: float) -> Outcome | None:
        """What the watched hit became, or None when it is not digested within `seconds`."""
        try:
            return await asyncio.wait_for(self._watches[watch], seconds)
        except TimeoutError:
            return None
        finally:
            del self._watches[watch]

    def forget(self, watch: int) -> None:
        """The watched hit was not kept after all."""
        self._watches.pop(watch, None)

    async def run(self) -> None:
        """Keep a child running until `stop`."""
        while not self._stopping:
            before = self.figures
            try:
                reason = await self._run_child(before)
            except Exception as error:  # whatever it is, digestion must go on
                log.exception("digest process cannot be kept")
                reason = type(error).__name__
            self.figures = msgspec.structs.replace(self.figures, active=False)
            if self._stopping:
                return
            self.figures.trouble = f"the digest's process ended ({reason}) and is started again"
            log.error("digest process ended and is started again", reason=reason)
            await asyncio.sleep(_RESTART_SECONDS)

    async def _run_child(self, before: DigestFigures) -> str:
        """Run a child to its end; returns how it ended."""
        # -P: a folder called `server` where onepx was started must not be taken for ours.
        child = self._child = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", __name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        try:
            await self._listen(child, before)
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()  # it ended its output, or we cannot go on with it
            status = await child.wait()
        return f"status {status}"

    async def _listen(self, child: asyncio.subprocess.Process, before: DigestFigures) -> None:
        assert child.stdout is not None
        while (message := await _read(child.stdout)) is not None:
            match _from_child.decode(message):
                case Insert() as insert:
                    await self._tell(child, await self._insert(insert))
                case AskStored() as question:
                    await self._tell(child, await self._stored(question))
                case Progress(figures):
                    self.figures = figures.after(before)
                case Became(outcomes):
                    for outcome in outcomes:
                        waiting = self._watches.get(outcome.watch)
                        if waiting is not None and not waiting.done():
                            waiting.set_result(outcome)

    async def _insert(self, insert: Insert) -> Inserted:
        try:
            await self._store.insert_file(insert.table, Path(insert.path), insert.token)
        except EventStoreRefused as error:
            return Inserted(refused=str(error), number=insert.number)
        except EventStoreUnavailable as error:
            return Inserted(unavailable=str(error), number=insert.number)
        return Inserted(number=insert.number)

    async def _stored(self, question: AskStored) -> Stored:
        try:
            rows = [(int.from_bytes(app, "big"), at, int.from_bytes(named, "big")) for app, at, named in question.rows]
            ids = await self._store.stored(question.table, rows)
        except EventStoreUnavailable as error:
            return Stored(unavailable=str(error), number=question.number)
        return Stored([id.to_bytes(16, "big") for id in ids], number=question.number)

    async def _tell(self, child: asyncio.subprocess.Process, message: msgspec.Struct) -> None:
        assert child.stdin is not None
        # It died, and `run` finds out. (Of a pipe that is closed already uvloop raises RuntimeError.)
        with contextlib.suppress(ConnectionError, RuntimeError):
            child.stdin.write(_framed(message))
            await child.stdin.drain()

    async def stop(self, seconds: float) -> None:
        """Let the child finish its batch; after `seconds` kill it: what it did is remembered, and done again."""
        self._stopping = True
        child = self._child
        if child is None or child.returncode is not None:
            return
        await self._tell(child, Stop())
        try:
            await asyncio.wait_for(child.wait(), seconds)
        except TimeoutError:
            child.kill()
            await child.wait()


# The child's side


@dataclass
class _Parent:
    """The parent, as the child sees it: where inserts go, and who hears the news."""

    output: int
    tmp_dir: Path
    _asked: int = 0
    _reply: asyncio.Future[Inserted | Stored] | None = None

    def _tell(self, message: msgspec.Struct) -> None:
        data = _framed(message)
        try:
            while data:
                data = data[os.write(self.output, data) :]
        except BrokenPipeError:  # the parent was killed
            os._exit(1)

    async def insert(self, table: str, rows: Sequence[Row], token: str) -> None:
        """See digest.Inserts."""
        if not rows:
            return
        path = write_native(table, rows, self.tmp_dir)
        done = await self._ask(Insert(table, str(path), token, self._next_number()))
        if isinstance(done, Inserted) and done.refused is not None:
            raise EventStoreRefused(done.refused)

    async def stored(self, table: str, rows: Sequence[tuple[int, int, int]]) -> set[int]:
        """See digest.Inserts."""
        asked = [(app.to_bytes(16, "big"), at, named.to_bytes(16, "big")) for app, at, named in rows]
        told = await self._ask(AskStored(table, asked, self._next_number()))
        return {int.from_bytes(id, "big") for id in told.ids} if isinstance(told, Stored) else set()

    def _next_number(self) -> int:
        self._asked += 1
        return self._asked

    async def _ask(self, question: Insert | AskStored) -> Inserted | Stored:
        """The parent's answer; the digest asks one thing after the other. Raises EventStoreUnavailable."""
        self._reply = asyncio.get_running_loop().create_future()
        self._tell(question)
        answer = await self._reply
        if answer.unavailable is not None:
            raise EventStoreUnavailable(answer.unavailable)
        return answer

    def replied(self, answer: Inserted | Stored) -> None:
        """The parent's answer came; to a question that was given up (a timeout) it is not looked at."""
        if self._reply is not None and answer.number == self._asked and not self._reply.done():
            self._reply.set_result(answer)

    async def progressed(self, figures: DigestFigures) -> None:
        """See digest.Listener."""
        self._tell(Progress(figures))

    async def became(self, outcomes: list[Outcome]) -> None:
        """See digest.Listener."""
        self._tell(Became(outcomes))


def _remove_leftovers(tmp_dir: Path) -> None:
    """Remove what killed digests left there. By age, since another process may be digesting right now."""
    for path in (*tmp_dir.glob("*.native"), *tmp_dir.glob("*.export")):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LEFT_SECONDS:
                path.unlink()


async def _digest(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    tmp_dir = settings.data_dir / "tmp"
    _remove_leftovers(tmp_dir)
    # The messages get a descriptor of their own: whatever prints to standard output must not get between them.
    parent = _Parent(os.dup(sys.stdout.fileno()), tmp_dir)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    inserts: Inserts = parent if settings.embedded_events else EventStore(settings.events_url, tmp_dir)
    database = Database(settings.database_url)
    await database.start()
    routes = Routes()
    digester = Digester(
        settings.journal_dir,
        inserts,
        routes,
        parent,
        facebook_key(settings.secret_key),
        one_store=settings.embedded_events,
    )

    async def listen() -> None:
        while (message := await _read(stdin)) is not None:
            match _from_parent.decode(message):
                case Inserted() | Stored() as answer:
                    parent.replied(answer)
                case Stop():
                    digester.stop()
        # The parent is gone, and with it the one that would answer. The batch is remembered.
        os._exit(1)

    async def tidy_up() -> None:
        while True:
            await asyncio.sleep(_LEFT_SECONDS / 2)
            _remove_leftovers(tmp_dir)

    listening = asyncio.create_task(listen())
    tidying = asyncio.create_task(tidy_up())
    fresh = asyncio.create_task(routes.keep_fresh())
    await digester.run()
    for task in (listening, tidying, fresh):
        task.cancel()
    await database.close()


def main() -> None:
    """The child: its settings are its environment's."""
    # The parent decides when it ends: a signal to the whole group (Ctrl-C, a closed terminal, systemd) must not cut off
    # a batch.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    settings = Settings.from_environment().prepare_data_dir()
    logs.set_up(settings.log_level, settings.log_format)
    # What is remembered of persons would be looked through again and again, a quarter of the time of a batch. Batches
    # leave nothing behind that has to be looked for.
    gc.freeze()
    gc.set_threshold(_GC_ALLOCATIONS)
    try:
        asyncio.run(_digest(settings))
    except DatabaseUnavailable as error:
        log.error("digestion cannot start", reason=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
