"""The event store: one ClickHouse dialect, in this process (chDB) or on a server.

Reading and digesting use clients of their own, each bound to a thread: queries on one client run one after another.
"""

import asyncio
import contextlib
import ctypes
import mmap
import os
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import resources
from io import IOBase
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast
from urllib.parse import unquote, urlsplit
from uuid import UUID
from weakref import WeakSet

import clickhouse_connect
import structlog
from clickhouse_connect.datatypes.registry import get_from_name
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DataError, OperationalError
from clickhouse_connect.driver.insert import InsertContext
from clickhouse_connect.driver.transform import NativeTransform

from server.settings import redact
from server.streams import ByteStream
from tenants.errors import Busy, NewerSchema, Unavailable
from tenants.events import COLUMNS
from tenants.rewriting import PROPERTIES

log = structlog.get_logger()

_P = ParamSpec("_P")
T = TypeVar("T")

# Reports of two tenants at once; more would only compete for the same cores.
_READERS = 3
# Reports compute on all cores, and a hit that comes meanwhile waits for one. The engine's threads give way to it where
# it may lower their priority (as root); and whoever it runs as, while some hundred hits a second come in, reports take
# turns and one core.
_GIVING_WAY = {"os_thread_priority": 19}
_BUSY_BYTES = 20_000  # of a batch of the digest's, a fifth of a second
_BUSY_SECONDS = 2.0
# Each report is a query of its own, so compiling its expressions to machine code takes longer than it spares.
_INTERPRETED = {"compile_expressions": 0, "compile_aggregate_expressions": 0}
# Queries of one tenant that may wait for each other: a dozen dashboards that are opened at once.
_WAITING_OF_ONE = 120
# A query that takes longer holds a reader from everybody.
_QUERY_SECONDS = 30
# The embedded engine's memory is that of the process that takes hits. At half of it groups go to the disk.
_QUERY_BYTES = 1024**3
# Somebody may have been a hundred thousand visitors, all of whom a statement that deletes them names.
_STATEMENT_BYTES = 64 * 1024**2
# Exports at once, and of one tenant: each computes on one core for as long as its reader takes.
_STREAMS = 4
_STREAMS_OF_ONE = 2
_STREAM_SECONDS = 86_400
_COPIED_BYTES = 65_536
_CONNECT_SECONDS = 3
# What was stored is gone through, however much it is.
_MIGRATION_SECONDS = 86_400
# The first whose projections have a granularity of their own (migrations/events/0006_lookup.sql).
_OLDEST = (25, 12)
# Values are of the types they were sent as. Left alone, the engine takes a text for a time where it reads like one, and
# true for 1 or "true" in a list with others; and it does so or not by what else is in the batch.
_AS_SENT = {
    "input_format_try_infer_dates": 0,
    "input_format_try_infer_datetimes": 0,
    "input_format_json_read_bools_as_numbers": 0,
    "input_format_json_read_bools_as_strings": 0,
}
# clickhouse-connect loads pandas only to see that what we hand it is none of it, and chDB pyarrow for kinds of results
# that we do not ask for: 100 MB. None makes an import fail.
for _unused in ("pandas", "pyarrow"):
    sys.modules.setdefault(_unused, None)  # pyright: ignore[reportArgumentType]

# ClickHouse error codes (src/Common/ErrorCodes.cpp) that say a value in the batch is at fault. All others are the
# store's trouble: they pass, or an operator ends them, and the batch is tried again as it is.
_DATA_CODES = frozenset(
    {
        6,  # CANNOT_PARSE_TEXT
        26,  # CANNOT_PARSE_QUOTED_STRING
        27,  # CANNOT_PARSE_INPUT_ASSERTION_FAILED
        33,  # CANNOT_READ_ALL_DATA
        38,  # CANNOT_PARSE_DATE
        41,  # CANNOT_PARSE_DATETIME
        53,  # TYPE_MISMATCH
        69,  # ARGUMENT_OUT_OF_BOUND
        70,  # CANNOT_CONVERT_TYPE
        72,  # CANNOT_PARSE_NUMBER
        117,  # INCORRECT_DATA
        131,  # TOO_LARGE_STRING_SIZE
        306,  # TOO_DEEP_RECURSION
        349,  # CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
        376,  # CANNOT_PARSE_UUID
    }
)


class EventStoreUnavailable(Unavailable):
    """The event store did not do what was asked, for a reason that is not in the data."""


class EventStoreRefused(Exception):
    """The event store, or its client, cannot take a value of this batch."""


class _Turn:
    """A tenant's share of the readers: all but one, so that its slow reports leave another tenant's one."""

    def __init__(self) -> None:
        self.readers = asyncio.Semaphore(_READERS - 1)
        self.one = asyncio.Lock()
        self.waiting = 0


class _Threads(ThreadPoolExecutor):
    """Threads that raise EventStoreUnavailable once they were shut down: a slow page may outlive the store it reads."""

    def submit(self, fn: Callable[_P, T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[T]:
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError as error:
            raise EventStoreUnavailable("the event store is closed: this process ends") from error


class EventStore:
    """The client of a store at `url`; it connects when first used, and again after it was away."""

    def __init__(self, url: str, tmp_dir: Path) -> None:
        self.url = url
        self.embedded = url.startswith("chdb:")
        self.errors = 0
        self._local = threading.local()
        self._tmp_dir = tmp_dir
        self._readers = _Threads(_READERS, thread_name_prefix="report")
        self._taking_turns = threading.Lock()
        self._busy_until = 0.0
        self._writer = _Threads(1, thread_name_prefix="insert")
        self._changes = _Threads(1, thread_name_prefix="change")
        self._exports = _Threads(_STREAMS, thread_name_prefix="export")
        # By tenant, while it asks.
        self._turns: dict[int, _Turn] = {}
        # Who has a stream that is being written.
        self._streaming: list[int] = []
        self._streams = WeakSet[ByteStream]()
        self._clients: list[Client] = []

    def _connect(self, seconds: int) -> Client:
        parts = urlsplit(self.url)
        settings: dict[str, Any] = {
            "max_execution_time": seconds,
            "max_query_size": _STATEMENT_BYTES,
            # JSON as we write it: the engine would escape each slash.
            "output_format_json_escape_forward_slashes": 0,
        }
        if self.embedded:
            settings |= _INTERPRETED
            folder = os.path.realpath(unquote(parts.path))
            _check_links(Path(folder))
            # Not as a DSN, which ends at a # in the folder's name.
            return clickhouse_connect.get_client(interface="chdb", path=folder, settings=settings)
        secure = parts.scheme == "clickhouses"
        return clickhouse_connect.get_client(
            host=parts.hostname or "",
            port=parts.port or (8443 if secure else 8123),
            username=unquote(parts.username or "default"),
            password=unquote(parts.password or ""),
            database=unquote(parts.path.strip("/")) or "default",
            secure=secure,
            connect_timeout=_CONNECT_SECONDS,
            send_receive_timeout=seconds + 5,
            autogenerate_session_id=False,
            settings=settings,
        )

    def _run(self, work: Callable[[Client], T], seconds: int = _QUERY_SECONDS) -> T:
        """`work` with this thread's client. Raises EventStoreUnavailable or EventStoreRefused."""
        try:
            client: Client | None = getattr(self._local, "client", None)
            if client is None:
                client = self._local.client = self._connect(seconds)
                self._clients.append(client)
            return work(client)
        except DataError as error:
            raise EventStoreRefused(_reason(error)) from error
        except (ClickHouseError, OSError) as error:
            if getattr(error, "code", None) in _DATA_CODES:
                raise EventStoreRefused(_reason(error)) from error
            self.errors += 1
            raise EventStoreUnavailable(_reason(error)) from error

    async def query(
        self, sql: str, parameters: Mapping[str, Any] | None = None, whose: int | None = None
    ) -> list[dict[str, Any]]:
        """Rows of a query with `{name:Type}` parameters, for a tenant or, None, for ourselves.

        Raises EventStoreUnavailable, EventStoreRefused, or Busy when the tenant asks for too much at once.
        """

        def read(client: Client) -> list[dict[str, Any]]:
            settings: dict[str, Any] = {"max_memory_usage": _QUERY_BYTES} | (_GIVING_WAY if self.embedded else {})
            turn: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
            if time.monotonic() < self._busy_until:
                settings["max_threads"] = 1
                turn = self._taking_turns
            with turn:
                found: Any = client.query(sql, parameters=dict(parameters or {}), settings=settings)
            return list(found.named_results())

        if whose is None:
            return await asyncio.get_running_loop().run_in_executor(self._readers, self._run, read)
        turn = self._turns.setdefault(whose, _Turn())
        if turn.waiting >= _WAITING_OF_ONE:
            raise Busy("too many reports of this tenant are asked for at once")
        turn.waiting += 1
        try:
            # One at a time while hits come in: reports take turns then, and a reader that waits is one less for others.
            one = turn.one if time.monotonic() < self._busy_until else contextlib.nullcontext()
            async with turn.readers, one:
                return await asyncio.get_running_loop().run_in_executor(self._readers, self._run, read)
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                self._turns.pop(whose, None)

    async def stream(
        self, sql: str, parameters: Mapping[str, Any], form: str, settings: Mapping[str, Any], whose: int
    ) -> ByteStream:
        """The result of a SELECT in a ClickHouse format, of any size, once its first bytes are there.

        Raises Busy when too many are being read, in all or by `whose`; EventStoreUnavailable, EventStoreRefused.
        """
        if len(self._streaming) >= _STREAMS or self._streaming.count(whose) >= _STREAMS_OF_ONE:
            raise Busy("too many exports run at once")
        # In the name of the pipe, or in a comment, it tells the query to be ended.
        mark = secrets.token_hex(16)
        # Small blocks, since the engine holds one of every part of the table.
        all_settings = {"max_threads": 1, "max_block_size": 8192, "max_execution_time": 0, **settings}
        try:
            stream = ByteStream(self._tmp_dir / f"{mark}.export", lambda: self._end(mark))
        except OSError as error:
            raise EventStoreUnavailable(f"{self._tmp_dir}: {error.strerror}") from error
        # For the writer, which must not hold the stream.
        path, writer, ended = stream.path, stream.writer, stream.ended

        def write(client: Client) -> None:
            if self.embedded:
                options = ", ".join(f"{name} = '{value}'" for name, value in all_settings.items())
                into = f"INTO OUTFILE {_quoted(str(path))} TRUNCATE FORMAT {form}"
                client.command(f"{sql} SETTINGS {options} {into}", parameters=dict(parameters))
                return
            result = client.raw_stream(
                f"{sql} /* {mark} */", parameters=dict(parameters), settings=all_settings, fmt=form
            )
            with contextlib.closing(cast("IOBase", result)) as result:
                while not ended.is_set() and (chunk := memoryview(result.read(_COPIED_BYTES))):
                    while chunk:
                        chunk = chunk[os.write(writer, chunk) :]

        def write_unless_ended(client: Client) -> None:
            try:
                write(client)
            except ClickHouseError:
                # The embedded engine lets go of a query that failed with the connection's next one.
                if self.embedded:
                    client.command("SELECT 1")
                if not ended.is_set():
                    raise

        def write_and_close() -> None:
            try:
                self._run(write_unless_ended, _STREAM_SECONDS)
            finally:
                self._streaming.remove(whose)
                os.close(writer)
                # What nothing was written to for long is cleared away.
                path.unlink(missing_ok=True)

        self._streaming.append(whose)
        self._streams.add(stream)
        await stream.begin(self._exports.submit(write_and_close))
        return stream

    def _end(self, mark: str) -> None:
        """Have the engine end the query with this mark, soon."""
        kill = f"KILL QUERY WHERE position(query, '{mark}') > 0 AND query_kind = 'Select' ASYNC"
        with contextlib.suppress(EventStoreUnavailable):  # of a store that was closed: it ends with the process
            self._readers.submit(self._run, lambda client: client.command(kill))

    async def change(self, sql: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Run a statement that changes what is stored. Raises EventStoreUnavailable or EventStoreRefused.

        A server only begins a mutation (ALTER … UPDATE or DELETE), the embedded engine is through with it; what is left
        of it goes on by itself, after a restart too.
        """

        def run(client: Client) -> None:
            client.command(sql, parameters=dict(parameters or {}))

        await asyncio.get_running_loop().run_in_executor(self._changes, self._run, run)

    async def insert(self, table: str, rows: Sequence[Sequence[Any]], token: str) -> None:
        """Insert rows of `COLUMNS[table]`, synced, once for each `token`.

        Raises EventStoreRefused when a row is at fault, EventStoreUnavailable when it is not.
        """
        if rows:
            path = await asyncio.to_thread(write_native, table, rows, self._tmp_dir)
            await self.insert_file(table, path, token)

    async def insert_file(self, table: str, path: Path, token: str) -> None:
        """`insert` of a file that `write_native` wrote, which is removed."""

        def send(client: Client) -> None:
            names = [name for name, _ in COLUMNS[table]]
            settings = {
                "insert_deduplicate": 1,
                "insert_deduplication_token": token,
                "async_insert": 0,
                # A row of a key is as good as several: they become one when parts are merged, and reports know.
                "optimize_on_insert": 0,
                **_AS_SENT,
            }
            if self.embedded:
                if path.stat().st_size > _BUSY_BYTES:
                    self._busy_until = time.monotonic() + _BUSY_SECONDS
                # Read by the engine itself: the client's own way would copy the file once more.
                options = ", ".join(f"{name} = '{value}'" for name, value in settings.items() if name != "async_insert")
                source = _quoted(str(path))
                client.command(
                    f"INSERT INTO {table} ({', '.join(names)}) FROM INFILE {source} SETTINGS {options} FORMAT Native"
                )
            else:
                with path.open("rb") as block:
                    client.raw_insert(table, names, block, settings=settings, fmt="Native")

        def send_and_remove() -> None:
            try:
                self._run(send)
            finally:
                path.unlink(missing_ok=True)

        await asyncio.get_running_loop().run_in_executor(self._writer, send_and_remove)

    async def stored(self, table: str, rows: Sequence[tuple[int, int, int]]) -> set[int]:
        """Which of these rows (app id, received at in ms, id) are stored, by id. Raises EventStoreUnavailable.

        Apps and times are what the table is sorted by: the ids alone would have it read whole. Of events the properties
        are collected once more: the insert that stored them may not have come to the view.
        """
        # Written into the query, since a server bounds a parameter's length more tightly; all are numbers of ours.
        apps = ", ".join(f"'{UUID(int=app)}'" for app in {app for app, _, _ in rows})
        times = [at for _, at, _ in rows]
        ids = ", ".join(f"'{UUID(int=named)}'" for _, _, named in rows)
        where = (
            f"app_id IN ({apps}) AND id IN ({ids}) AND received_at BETWEEN "
            f"fromUnixTimestamp64Milli({min(times)}, 'UTC') AND fromUnixTimestamp64Milli({max(times)}, 'UTC')"
        )
        found = await self.query(f"SELECT id FROM {table} WHERE {where}")
        if found and table == "events":
            again = PROPERTIES.format(rows=f"{where} AND identified")
            await self.change(f"INSERT INTO person_properties {again}")
        return {row["id"].int for row in found}

    def migrate(self) -> list[str]:
        """Apply what migrations/events holds and the store has not had yet; returns the names. Raises NewerSchema."""
        return self._run(_migrate, _MIGRATION_SECONDS)

    def pending(self) -> list[str]:
        """Names of migrations not applied yet. Raises NewerSchema."""

        def compare(client: Client) -> list[str]:
            applied = _applied(client) if client.command("EXISTS TABLE migrations") else set[str]()
            return [name for name, _ in migrations() if name not in applied]

        return self._run(compare)

    def damaged(self) -> list[str]:
        """Pieces that the engine could not read at a start and put aside: their rows are missing."""
        sql = (
            "SELECT concat(table, '/detached/', name) FROM system.detached_parts "
            "WHERE database = currentDatabase() AND reason LIKE 'broken%' ORDER BY 1 LIMIT 100"
        )
        return self._run(lambda client: [str(row[0]) for row in client.query(sql).result_rows])

    def wrong(self) -> list[str]:
        """What is wrong with it and what to do, a sentence each. Raises EventStoreUnavailable, or NewerSchema."""
        found: list[str] = []
        if behind := self.pending():
            found.append(f"the event store's schema is behind ({', '.join(behind)}); run `onepx migrate`")
        # A server's is for its own watchers, and may take long to look for.
        if self.embedded and (damaged := self.damaged()):
            found.append(
                f"pieces of the event store could not be read and are kept aside: {', '.join(damaged)}. "
                "Their rows are missing; look at the disk, put back a backup, or remove the pieces"
            )
        return found

    async def ask_what_is_wrong(self) -> list[str]:
        """`wrong`, from the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.wrong)

    def close(self) -> None:
        """Close all clients; the embedded engine flushes and lets go of its folder."""
        for stream in list(self._streams):
            stream.close()
        self._exports.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)
        self._writer.shutdown(cancel_futures=True)
        self._changes.shutdown(cancel_futures=True)
        for client in self._clients:
            client.close()


def _check_links(folder: Path) -> None:
    """The engine finds its tables by a symbolic link. Without it, it would begin with none, and remove what it misses.

    Raises EventStoreUnavailable.
    """
    link = folder / "metadata" / "default"
    if not link.is_symlink() and any(folder.glob("store/*/*/*.sql")):
        raise EventStoreUnavailable(
            f"Event store {folder}: metadata/default is no symbolic link, as in a copy that was made without them; "
            "put it back from one made with cp -a, tar or rsync -a"
        )


def release_code() -> None:
    """Give back the pages of the embedded engine's code that its start went through: 100 MB on Linux.

    They are the file's, unchanged; what is called again is mapped again from the kernel's cache.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in maps.read_text().splitlines():
        addresses, rights, *_, file = line.split(maxsplit=5)
        if rights == "r-xp" and Path(file).name.startswith("_chdb."):
            first, after = (int(address, 16) for address in addresses.split("-"))
            advise(first, after - first, mmap.MADV_DONTNEED)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def write_native(table: str, rows: Sequence[Sequence[Any]], folder: Path) -> Path:
    """Write rows of `COLUMNS[table]` to a new file in ClickHouse's Native format.

    Raises EventStoreRefused for a value that its column cannot take, EventStoreUnavailable when the disk is full.
    """
    columns = COLUMNS[table]
    # Transposed by zip in C; column-oriented data spares the encoder doing it row by row.
    context = InsertContext(
        table,
        [name for name, _ in columns],
        [get_from_name(kind) for _, kind in columns],
        list(zip(*rows, strict=True)),
        column_oriented=True,
    )
    statement = True
    path: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".native", delete=False) as file:
            path = Path(file.name)
            for chunk in NativeTransform.build_insert(context):
                # The first begins with the INSERT statement, on a line of its own.
                file.write(chunk.partition(b"\n")[2] if statement else chunk)
                statement = False
    except OSError as error:
        if path is not None:
            path.unlink()  # what was written of it takes the room that is missing
        raise EventStoreUnavailable(f"{folder}: {error.strerror}") from error
    error = context.insert_exception
    # It refers to itself, and would keep all rows until garbage is collected.
    vars(context).clear()
    if error is not None:
        path.unlink()
        raise EventStoreRefused(_reason(error)) from error
    return path


def migrations() -> list[tuple[str, str]]:
    """(name, SQL) of every migration, in their order."""
    folder = resources.files("migrations") / "events"
    files = [file for file in folder.iterdir() if file.name.endswith(".sql")]
    return sorted((file.name.removesuffix(".sql"), file.read_text()) for file in files)


def statements(sql: str) -> list[str]:
    """The statements of a migration: each ends with a semicolon at the end of a line."""
    found: list[str] = []
    lines: list[str] = []
    for line in sql.splitlines():
        if line.lstrip().startswith("--"):
            continue
        lines.append(line)
        if line.rstrip().endswith(";"):
            found.append("\n".join(lines).strip().removesuffix(";"))
            lines = []
    if "".join(lines).strip():
        raise ValueError("a migration's last statement lacks its semicolon")
    return found


def _applied(client: Client) -> set[str]:
    """Names of the migrations the store has had. Raises NewerSchema."""
    applied = {str(row[0]) for row in client.query("SELECT name FROM migrations").result_rows}
    if newer := applied - {name for name, _ in migrations()}:
        raise NewerSchema("Event store", newer)
    return applied


def _migrate(client: Client) -> list[str]:
    version = str(client.command("SELECT version()"))
    if tuple(map(int, version.split(".")[:2])) < _OLDEST:
        raise EventStoreUnavailable(f"ClickHouse {version} is too old; it takes {'.'.join(map(str, _OLDEST))} or newer")
    # Statements are written to be repeatable (IF NOT EXISTS), since ClickHouse has no transaction around them: two
    # starters, or one that was killed between statement and record, do no harm.
    client.command(
        "CREATE TABLE IF NOT EXISTS migrations (name String, applied_at DateTime('UTC') DEFAULT now()) "
        "ENGINE = ReplacingMergeTree ORDER BY name"
    )
    applied = _applied(client)
    done: list[str] = []
    for name, sql in migrations():
        if name in applied:
            continue
        began = time.monotonic()
        for statement in statements(sql):
            client.command(statement)
        client.command("INSERT INTO migrations (name) SELECT {name:String}", parameters={"name": name})
        log.info("event store migrated", migration=name, seconds=round(time.monotonic() - began, 2))
        done.append(name)
    return done


def _reason(error: Exception) -> str:
    """What went wrong, without the message of an engine or encoder, which may repeat what a visitor sent."""
    code = getattr(error, "code", None)
    if code is not None:
        return f"ClickHouse error {code} {getattr(error, 'name', None) or ''}".strip()
    if isinstance(error, OSError | OperationalError):
        # Of the connection: it names the address, which the operator needs.
        return redact(str(error).strip().partition("\n")[0])[:300] or type(error).__name__
    return type(error).__name__
