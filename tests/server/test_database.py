# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import asyncio
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from piccolo.apps.migrations.tables import Migration
from piccolo.engine.exceptions import TransactionError

from server import database as module
from server.database import Database, DatabaseUnavailable
from tenants.accounts import create_tenant
from tenants.errors import NewerSchema
from tenants.tables import INDEXES, TABLES, Revision, Tenant, transaction

if TYPE_CHECKING:
    from tests.conftest import Postgres

CHECKOUT = Path(__file__).parent.parent.parent


@pytest.fixture(params=["sqlite", "postgres"])
def empty_urls(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Two databases without a table."""
    if request.param == "postgres":
        cluster: Postgres = request.getfixturevalue("postgres")
        return cluster.create_database(), cluster.create_database()
    return f"sqlite://{tmp_path}/one.sqlite3", f"sqlite://{tmp_path}/two.sqlite3"


SQLITE_SCHEMA = """
SELECT m.name AS "table", 'column' AS kind, t.name, t.type, t."notnull", t.dflt_value, t.pk
FROM sqlite_master m, pragma_table_info(m.name) t WHERE m.type = 'table'
UNION ALL
SELECT m.name, 'foreign key', f."from", f."table", f."to", f.on_delete, f.on_update
FROM sqlite_master m, pragma_foreign_key_list(m.name) f WHERE m.type = 'table'
UNION ALL
SELECT m.name, 'index', l.name, l."unique", l.origin, i.seqno, i.name
FROM sqlite_master m, pragma_index_list(m.name) l, pragma_index_info(l.name) i WHERE m.type = 'table'
"""

POSTGRES_SCHEMA = """
SELECT table_name::text AS "table", 'column' AS kind, column_name::text AS name, data_type::text AS type,
    is_nullable::text AS a, character_maximum_length::text AS b, column_default::text AS c
FROM information_schema.columns WHERE table_schema = 'public'
UNION ALL
SELECT conrelid::regclass::text, 'constraint', conname::text, pg_get_constraintdef(oid), NULL, NULL, NULL
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT tablename::text, 'index', indexname::text, indexdef, NULL, NULL, NULL
FROM pg_indexes WHERE schemaname = 'public'
"""


async def schema(url: str) -> list[str]:
    rows = await Tenant.raw(SQLITE_SCHEMA if url.startswith("sqlite") else POSTGRES_SCHEMA)
    return sorted(repr(list(row.values())) for row in rows if row["table"] not in ("migration", "sqlite_sequence"))


async def test_migrating_from_empty_equals_creating_the_tables(empty_urls: tuple[str, str]) -> None:
    created = Database(empty_urls[1])
    await created.start()
    for table in TABLES:
        await table.create_table()
    for statement in INDEXES:
        await Tenant.raw(statement)
    wanted = await schema(empty_urls[1])
    await created.close()

    migrated = Database(empty_urls[0])
    await migrated.start()
    await migrated.migrate()
    found = await schema(empty_urls[0])
    await migrated.close()
    assert found == wanted
    text = "\n".join(found)
    for table in TABLES:
        assert f"['{table._meta.tablename}', 'column'," in text
    assert "membership_tenant_user" in text


async def test_migrating_tells_what_it_did(empty_urls: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    database = Database(empty_urls[0])
    await database.start()
    pending = await database.pending()
    assert len(pending) == len(list(module.MIGRATIONS.glob("control_*.py")))
    assert pending == sorted(pending)
    assert await database.migrate() == pending
    assert await database.pending() == await database.migrate() == []
    await create_tenant("Alice", "alice@example.org", None)
    await database.close()
    assert capsys.readouterr().out == ""


async def test_what_a_newer_version_changed_is_left_alone(empty_urls: tuple[str, str]) -> None:
    database = Database(empty_urls[0])
    await database.start()
    await database.migrate()
    await Migration(name="2999-01-01", app_name="control").save()
    for asked in (database.pending, database.migrate):
        with pytest.raises(NewerSchema, match=r"newer version of onepx changed it \(2999-01-01\)"):
            await asked()
    await database.close()


async def test_a_migration_that_fails_leaves_nothing(
    empty_urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    database = Database(empty_urls[0])
    await database.start()
    # The second migration first: its table is not there yet.
    _, later, *_ = sorted(module.MIGRATIONS.glob("control_*.py"))
    monkeypatch.setattr(module, "_migration_modules", lambda: {"9": later.stem})
    with pytest.raises(DatabaseUnavailable, match="membership"):
        await database.migrate()
    monkeypatch.undo()
    assert await schema(empty_urls[0]) == []
    assert len(await database.migrate()) > 1
    await database.close()


MIGRATE = """
import asyncio, sys
from server.database import Database

async def main():
    database = Database(sys.argv[1])
    await database.start()
    print(len(await database.migrate()), "black" in sys.modules)
    await database.close()

asyncio.run(main())
"""


def test_processes_that_start_at_once_migrate_once(empty_urls: tuple[str, str]) -> None:
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATE, empty_urls[0]], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    said = [start.communicate(timeout=60)[0].split() for start in starts]
    assert [start.returncode for start in starts] == [0, 0, 0]
    assert sorted(applied != "0" for applied, _ in said) == [False, False, True]


def test_a_start_with_nothing_to_migrate_imports_no_code_formatter(database_url: str) -> None:
    said = subprocess.run(
        [sys.executable, "-c", MIGRATE, database_url],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == ["0", "False"]


async def test_every_sqlite_connection_is_durable_and_checks_foreign_keys(
    migrated_sqlite: Path, tmp_path: Path
) -> None:
    shutil.copy(migrated_sqlite, tmp_path / "control.sqlite3")
    database = Database(f"sqlite://{tmp_path}/control.sqlite3")
    await database.start()

    async def pragmas() -> list[Any]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        rows = [(await Tenant.raw(f"PRAGMA {name}"))[0] for name in names]
        return [value for row in rows for value in row.values()]

    assert await pragmas() == ["wal", 2, 1, 10_000]
    async with transaction():
        assert await pragmas() == ["wal", 2, 1, 10_000]


async def test_a_transaction_inside_another_is_refused(database: Database) -> None:
    with pytest.raises(TransactionError):
        async with transaction(), transaction():
            raise AssertionError("not reached")
    await database.ping()


async def test_a_failed_transaction_changes_nothing_and_keeps_nothing(database: Database) -> None:
    async def fail(error: Exception) -> None:
        async with transaction():
            await Revision(n=1).save()
            raise error

    # More often than there are connections in the pool.
    threads = threading.active_count()
    for _ in range(15):
        with pytest.raises(ZeroDivisionError):
            await fail(ZeroDivisionError())
    assert await Revision.count() == 0
    # The last ones may still be on their way out.
    assert threading.active_count() < threads + 5


async def test_a_cancelled_transaction_lets_the_next_one_write(database: Database) -> None:
    inside = asyncio.Event()

    async def linger() -> None:
        async with transaction():
            await Tenant.insert(Tenant(name="Nobody"))
            inside.set()
            await asyncio.sleep(60)

    for _ in range(15):
        inside.clear()
        lingering = asyncio.create_task(linger())
        await inside.wait()
        waiting = asyncio.create_task(create_tenant("Waiting", "waiting@example.org", None))
        await asyncio.sleep(0.005)
        for task in (waiting, lingering):
            task.cancel()
        await asyncio.wait([waiting, lingering])
        await Tenant.delete(force=True)
        await Tenant.raw("DELETE FROM users")
    await asyncio.wait_for(create_tenant("Alice", "alice@example.org", None), 5)
    assert [row["name"] for row in await Tenant.select(Tenant.name)] == ["Alice"]


async def test_a_writer_that_waits_too_long_leaves_no_thread(
    migrated_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
    path = tmp_path / "control.sqlite3"
    shutil.copy(migrated_sqlite, path)
    database = Database(f"sqlite://{path}")
    await database.start()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    threads = threading.active_count()
    for _ in range(15):
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await create_tenant("Alice", "alice@example.org", None)
    assert threading.active_count() < threads + 5
    other.execute("ROLLBACK")
    other.close()
    await create_tenant("Alice", "alice@example.org", None)


async def test_postgres_comes_back(migrated_postgres: str) -> None:
    database = Database(migrated_postgres)
    await database.start()
    killer = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    with pytest.raises(Exception, match=r"(?i)terminat|closed"):
        async with transaction():
            await Tenant.raw(killer)
    await database.ping()
    async with transaction():
        await Tenant.count()
    await database.close()


async def test_no_statement_and_no_silent_machine_holds_others_for_ever(
    migrated_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STATEMENT_SECONDS", 1.0)
    monkeypatch.setitem(module._LIVELY, "idle_in_transaction_session_timeout", "500ms")
    database = Database(migrated_postgres)
    await database.start()
    with pytest.raises(TimeoutError):
        await Tenant.raw("SELECT pg_sleep(20)")

    async def stand_still() -> None:
        async with transaction():
            await Tenant.count()
            await asyncio.sleep(1.5)
            await Tenant.count()

    with pytest.raises(Exception, match=r"(?i)idle-in-transaction|closed"):
        await stand_still()
    # But for migrations, which take as long as they take.
    with database._patiently():
        async with transaction():
            await Tenant.raw("SELECT pg_sleep(1.5)")
    await database.ping()
    await database.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://me:S3cret@host/db", "postgres://"),
        ("sqlite:///nowhere/at/all.sqlite3", "sqlite:///nowhere/at/all.sqlite3: "),
        ("postgres://me:S3cret@127.0.0.1:1/db", "postgres://127.0.0.1:1/db: .*Connect call failed"),
        ("postgres://127.0.0.1:1/db?user=me&password=S3cret", "postgres://127.0.0.1:1/db: "),
        ("postgres://127.0.0.1:1/db?user=me&password=a@S3cret", "postgres://…: "),
        ("postgres://me:S3cret@127.0.0.1:port/db", "cannot be understood"),
        ("postgres://me:S3cret@127.0.0.1:1/db?sslmode=S3cret", "cannot be understood"),
        ("postgres://me:S3cret/x@127.0.0.1/db", "cannot be understood"),
        ("postgres://me:S3cret#x@127.0.0.1/db", "cannot be understood"),
        ("postgres://me:S3cret?x@127.0.0.1/db", "cannot be understood"),
    ],
)
async def test_errors_are_one_line_without_the_password(url: str, words: str) -> None:
    with pytest.raises(DatabaseUnavailable, match=words) as refused:
        await Database(url).start()
    assert "S3cret" not in str(refused.value)
    assert "\n" not in str(refused.value)


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "control.sqlite3"
    path.write_text("not a database " * 100)
    with pytest.raises(DatabaseUnavailable, match=r"control\.sqlite3: file is not a database"):
        await Database(f"sqlite://{path}").start()


async def test_a_postgres_database_that_does_not_exist(migrated_postgres: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="does not exist"):
        await Database(migrated_postgres + "_not").start()


async def test_queries_of_sqlite_share_a_few_connections(tmp_path: Path) -> None:
    database = Database(f"sqlite://{tmp_path}/control.sqlite3")
    await database.start()
    await database.migrate()

    def threads() -> int:
        return sum("_connection_worker_thread" in thread.name for thread in threading.enumerate())

    for _ in range(20):
        await Tenant.count()
    assert threads() == 1
    await asyncio.gather(*(Tenant.count() for _ in range(20)))
    # A connection that is closed lets its thread end a moment later.
    async with asyncio.timeout(5):
        while threads() > module.IDLE_CONNECTIONS:  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.01)
    # A statement that fails leaves nothing half-done behind for the next.
    with pytest.raises(sqlite3.OperationalError):
        await Tenant.raw("SELECT no_such_column FROM tenant")
    assert await Tenant.count() == 0
    # What is written is seen at once, by whatever connection.
    await Tenant(name="Alice").save()
    assert await asyncio.gather(*(Tenant.count() for _ in range(8))) == [1] * 8
    await database.close()
    async with asyncio.timeout(5):
        while threads():  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.01)
