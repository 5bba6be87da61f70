"""The control database: one engine, on SQLite or PostgreSQL, bound to every table of `tenants.tables`."""
# Piccolo keeps a table's engine in `_meta`, and its annotations leave types open, as do asyncpg's.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

import asyncio
import fcntl
import importlib
import io
import os
import re
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import Any

import aiosqlite
import asyncpg
from piccolo.apps.migrations.tables import Migration
from piccolo.engine.postgres import PostgresEngine, PostgresTransaction
from piccolo.engine.sqlite import SQLiteEngine, SQLiteTransaction, TransactionType, dict_factory
from piccolo.table import Table

import migrations
from tenants.errors import NewerSchema, Unavailable
from tenants.tables import TABLES, transaction

MIGRATIONS = Path(migrations.__file__ or "").parent / "control"

# How long a statement waits for another process's write, or a start for the server.
PATIENCE_SECONDS = 10.0
# As many pages ask at once on one machine that they would wait for each other's.
IDLE_CONNECTIONS = 4
# A readiness check should say "no" before whoever asks gives up.
PING_SECONDS = 5.0
# A connection that went dark without a word, as in a failover, would be waited for without end, whatever times out.
STATEMENT_SECONDS = 30.0
# So would the locks of a machine that vanished in the middle of a transaction, by all others.
_LIVELY = {
    "idle_in_transaction_session_timeout": "30s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
# Any number, as long as no other program takes the same lock in the same PostgreSQL database.
MIGRATION_LOCK = 0x6F6E657078


class DatabaseUnavailable(Unavailable):
    """The control database cannot be used; the message is one line: which, without its password, and why."""


class Database:
    """The control database at `url`: `sqlite:///absolute/path`, `postgres://…` or `postgresql://…`.

    Making one binds the tables to it, for the whole process; nothing is opened before `start`. PostgreSQL's
    connections belong to the event loop that called `start`.
    """

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        self.shown = _without_password(scheme, rest)
        if scheme == "sqlite":
            self._engine = _SQLite(Path("/" + rest.lstrip("/")))
        elif scheme in ("postgres", "postgresql"):
            self._engine = _Postgres({"dsn": url, "server_settings": _LIVELY, "command_timeout": STATEMENT_SECONDS})
        else:
            raise DatabaseUnavailable("A control database is sqlite:///path or postgres://user:password@host/name.")
        for table in (*TABLES, Migration):
            table._meta.db = self._engine

    async def start(self) -> None:
        """Make it ready for queries; raises DatabaseUnavailable."""
        with self.one_line_errors():
            if isinstance(self._engine, _Postgres):
                # One connection to begin with: most processes never need a second, and PostgreSQL has few.
                try:
                    await self._engine.start_connection_pool(min_size=1, max_size=10, timeout=PATIENCE_SECONDS)
                except ValueError:
                    # Its message repeats parts of the URL, maybe of the password.
                    raise DatabaseUnavailable(
                        f"Control database {self.shown}: this address cannot be understood."
                    ) from None
            else:
                await asyncio.to_thread(_switch_to_wal, self._engine.file)

    async def close(self) -> None:
        """Let go of its connections."""
        if isinstance(self._engine, _SQLite):
            await self._engine.close()
        elif self._engine.pool:
            await self._engine.close_connection_pool()

    async def ping(self) -> None:
        """Ask it something small; raises DatabaseUnavailable."""
        with self.one_line_errors():
            async with asyncio.timeout(PING_SECONDS):
                await Migration.table_exists()

    async def pending(self) -> list[str]:
        """The ids of migrations still to be applied; raises DatabaseUnavailable, or NewerSchema."""
        with self.one_line_errors():
            applied: list[str] = []
            if await Migration.table_exists():
                applied = await Migration.get_migrations_which_ran("control")
            known = _migration_modules().keys()
            if newer := set(applied) - known:
                raise NewerSchema(f"Control database {self.shown}", newer)
            return sorted(known - set(applied))

    async def migrate(self) -> list[str]:
        """Apply what is pending, all or nothing; returns the ids. Of two that start at once the second waits.

        Raises DatabaseUnavailable, or NewerSchema.
        """
        # Piccolo's runner imports a code formatter (0.1 s): not when there is nothing to run.
        if not await self.pending():
            return []
        control = importlib.import_module("migrations.control")
        control.DB = self._engine  # pyright: ignore[reportAttributeAccessIssue]
        os.environ["PICCOLO_CONF"] = control.__name__
        # A migration's own transaction and the row that records it join this one.
        with self.one_line_errors(), self._patiently():
            async with transaction():
                if isinstance(self._engine, _Postgres):
                    await Migration.raw("SELECT pg_advisory_xact_lock({})", MIGRATION_LOCK)
                await Migration.create_table(if_not_exists=True)
                pending = await self.pending()
                modules = _migration_modules()
                for migration_id in pending:
                    module = importlib.import_module(f"{control.__name__}.{modules[migration_id]}")
                    manager = await module.forwards()
                    # It prints its progress, where a command may be printing JSON.
                    with redirect_stdout(io.StringIO()):
                        await manager.run()
                    await Migration(name=migration_id, app_name="control").save()
        return pending

    @contextmanager
    def _patiently(self) -> Generator[None]:
        """Transactions on a connection of their own, whose statements may take any time: an index of many rows does."""
        if not isinstance(self._engine, _Postgres):
            yield
            return
        pool, config = self._engine.pool, self._engine.config
        self._engine.pool, self._engine.config = None, config | {"command_timeout": None}
        try:
            yield
        finally:
            self._engine.pool, self._engine.config = pool, config

    @contextmanager
    def one_line_errors(self) -> Generator[None]:
        """Turn what the drivers raise into DatabaseUnavailable."""
        try:
            yield
        except (OSError, sqlite3.Error, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise DatabaseUnavailable(f"Control database {self.shown}: {reason}") from error


def _without_password(scheme: str, rest: str) -> str:
    """The URL without user and options, even where a password holds an unescaped `/`, `#` or `?`."""
    address, _, options = rest.partition("?")
    return f"{scheme}://" + ("…" if "@" in options else address.rpartition("@")[2])


def _migration_modules() -> dict[str, str]:
    """Module name by migration id, read without importing any."""
    modules: dict[str, str] = {}
    for path in MIGRATIONS.glob("*.py"):
        found = re.search(r'^ID = "(.+)"$', path.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            modules[found[1]] = path.stem
    return modules


def _switch_to_wal(path: Path) -> None:
    """Let readers and the writer go on side by side; the file remembers it.

    SQLite does not wait but fails when two processes switch at once (12 of 160 starts in a trial), hence
    the lock.
    """
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = sqlite3.connect(path, factory=_Connection, timeout=PATIENCE_SECONDS, isolation_level=None)
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        finally:
            connection.close()
    if mode != "wal":
        raise sqlite3.OperationalError("its disk does not allow write-ahead logging; use a local one")


class _Connection(sqlite3.Connection):
    """Piccolo opens a connection a query: this is the one place that all of them pass."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA foreign_keys = ON")
        # What was committed survives a power cut: a claimed event_id must not be claimed by a second hit.
        self.execute("PRAGMA synchronous = FULL")
        # What is deleted is written over: of a deleted person nothing may be found in the file.
        self.execute("PRAGMA secure_delete = ON")
        # Whoever becomes known changes pages all over the file, and those of the next batch many of the same. They are
        # copied into it after 32 MB of changes, not 4, and are at hand in up to 8 MB of memory, not 2.
        self.execute("PRAGMA wal_autocheckpoint = 8000")
        self.execute("PRAGMA cache_size = -8000")


class _SQLiteTransaction(SQLiteTransaction):
    """Piccolo's, but its connection (a thread, maybe the write lock) is let go whatever fails."""

    async def begin(self) -> None:
        try:
            await super().begin()
        except BaseException:
            await self.connection.close()
            raise

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._parent:
            return False
        self.engine.current_transaction.reset(self.context)
        try:
            if exception is None:
                await self.commit()
        finally:
            # Closing rolls back what is not committed.
            await self.connection.close()
        return False


class _SQLite(SQLiteEngine):
    """Piccolo's opens a connection, with a thread, for each query: 3 ms of a page's time. This one keeps some."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._idle: list[aiosqlite.Connection] = []
        super().__init__(str(file), timeout=PATIENCE_SECONDS, factory=_Connection)

    async def get_connection(self) -> aiosqlite.Connection:
        arguments: dict[str, Any] = self.connection_kwargs
        opening = aiosqlite.connect(**arguments)
        # A process that ends without having closed it must not wait for its thread.
        opening._thread.daemon = True
        connection = await opening
        connection.row_factory = dict_factory  # pyright: ignore[reportAttributeAccessIssue]
        return connection

    async def _run_in_new_connection(
        self, query: str, args: list[Any] | None = None, query_type: str = "generic", table: type[Table] | None = None
    ) -> Any:
        """A query outside of transactions: committed by itself, and read to its end before the next one."""
        del query_type, table  # for versions of SQLite without RETURNING
        connection = self._idle.pop() if self._idle else await self.get_connection()
        try:
            async with connection.execute(query, args or []) as cursor:
                rows = await cursor.fetchall()
        except BaseException:  # cancelled, too: what it is in the middle of must be nobody else's
            await connection.close()
            raise
        if len(self._idle) < IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            await connection.close()
        return rows

    async def close(self) -> None:
        """Let go of the connections kept."""
        while self._idle:
            await self._idle.pop().close()

    def transaction(
        self, transaction_type: TransactionType = TransactionType.immediate, allow_nested: bool = True
    ) -> SQLiteTransaction:
        return _SQLiteTransaction(self, transaction_type, allow_nested)


class _PostgresTransaction(PostgresTransaction):
    """Piccolo's, but its connection goes back to the pool whatever fails: after ten leaks all would wait."""

    async def begin(self) -> None:
        try:
            await super().begin()
        except BaseException:
            await self._release()
            raise

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._parent:
            return False
        self.engine.current_transaction.reset(self.context)
        try:
            if exception is None:
                await self.commit()
            elif not self.connection.is_closed():
                await self.rollback()
        finally:
            await self._release()
        return False

    async def _release(self) -> None:
        if self.engine.pool is None:
            await self.connection.close()
        else:
            await self.engine.pool.release(self.connection)


class _Postgres(PostgresEngine):
    async def check_version(self) -> None:
        """Piccolo asks the server while the engine is being made: here nothing is opened before `start`."""

    def transaction(self, allow_nested: bool = True) -> PostgresTransaction:
        return _PostgresTransaction(self, allow_nested)
