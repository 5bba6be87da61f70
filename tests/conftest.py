"""A control database for each test, on SQLite and on PostgreSQL; and three people."""
# pyright: reportPrivateUsage=false

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow.parquet  # pyright: ignore  # noqa: F401 (loaded before the server keeps it away)
import pytest
from argon2 import PasswordHasher
from xdist.scheduler.loadscope import LoadScopeScheduling  # pyright: ignore[reportMissingTypeStubs]

from server.database import Database
from server.event_store import EventStore
from tenants import accounts, erasures
from tenants.accounts import create_tenant
from tenants.tables import TABLES, Tenant


def _postgres_programs() -> Path | None:
    """The folder of PostgreSQL's programs; Debian keeps those of the server out of PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


# They start servers, load them and look at the clock: one worker tells these stories, one after another. A machine
# that stalls for a second fails what promises to take two: such a story is told once more, and the summary says so.
_ALONE = {"live", "browser"}
# Only looks at pages, however long they take.
_NO_HURRY = "test_looks.py"


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.path.parent.name in _ALONE:
        item.add_marker(pytest.mark.flaky(reruns=1))


class _Scheduling(LoadScopeScheduling):
    """A file's tests are one worker's, and those of some folders, too."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0])
        return "alone" if file.parent.name in _ALONE and file.name != _NO_HURRY else str(file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _Scheduling(config, log)


class Postgres:
    """A PostgreSQL cluster of this run's own, in `folder`, which is removed with it."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        # PostgreSQL refuses to run as root.
        self._user = "postgres" if os.geteuid() == 0 else None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]

    def start(self) -> None:
        if self._user:
            shutil.chown(self._folder, self._user)
        self._run("initdb", "--pgdata=data", "--auth=trust", "--username=onepx", "--encoding=UTF8", "--no-sync")
        # Lost with the run anyway: nothing has to reach the disk.
        options = f"-h 127.0.0.1 -p {self._port} -k {self._folder} -c fsync=off"
        self._run("pg_ctl", "--pgdata=data", "--log=log", f"--options={options}", "--wait", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "--pgdata=data", "--mode=immediate", "stop")

    def create_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"onepx_{uuid4().hex[:12]}"
        self._run("createdb", "--host=127.0.0.1", f"--port={self._port}", "--username=onepx", name)
        return f"postgres://onepx@127.0.0.1:{self._port}/{name}"

    def execute(self, url: str, statement: str) -> None:
        self._run("psql", "--quiet", "--set=ON_ERROR_STOP=1", f"--command={statement}", url)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments],
            user=self._user,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            check=True,
        )


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL cluster; where PostgreSQL is not installed, tests that need it are skipped."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian and Ubuntu: the package postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="onepx-postgres-"))
    try:
        cluster = Postgres(programs, folder)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder)


async def _migrate(url: str) -> None:
    database = Database(url)
    await database.start()
    await database.migrate()
    await database.close()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "control.sqlite3"
    asyncio.run(_migrate(f"sqlite://{path}"))
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres: Postgres) -> str:
    """The URL of a migrated PostgreSQL database, to be emptied."""
    url = postgres.create_database()
    asyncio.run(_migrate(url))
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a migrated, empty control database."""
    if request.param == "postgres":
        url: str = request.getfixturevalue("migrated_postgres")
        cluster: Postgres = request.getfixturevalue("postgres")
        # In a quarter of the time of TRUNCATE, which makes new files; as a replica, references are not looked at.
        emptied = "; ".join(f"DELETE FROM {table._meta.tablename}" for table in TABLES)
        cluster.execute(url, f"SET session_replication_role = replica; {emptied}")
        return url
    path = tmp_path / "control.sqlite3"
    shutil.copy(request.getfixturevalue("migrated_sqlite"), path)
    return f"sqlite://{path}"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated, empty control database, started."""
    database = Database(database_url)
    await database.start()
    yield database
    await database.close()


@pytest.fixture(autouse=True)
def quick_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hashing of passwords costs what RFC 9106 says; a thousand of them would take a minute of every run."""
    monkeypatch.setattr(accounts, "_hasher", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))


@pytest.fixture
async def alice(database: Database) -> Tenant:
    return (await create_tenant("Alice", "alice@example.org", None))[0]


@pytest.fixture
async def bob(database: Database) -> Tenant:
    return (await create_tenant("Bob", "bob@example.org", None))[0]


@pytest.fixture
async def charlie(database: Database) -> Tenant:
    return (await create_tenant("Charlie", "charlie@example.org", None))[0]


@pytest.fixture(scope="session")
def migrated_event_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EventStore]:
    """A migrated event store on the embedded engine, which takes one folder a process; to be emptied."""
    folder = tmp_path_factory.mktemp("events")
    store = EventStore(f"chdb://{folder}/store", folder)
    store.migrate()
    yield store
    store.close()


@pytest.fixture
async def event_store(migrated_event_store: EventStore) -> EventStore:
    """A migrated, empty event store: a mutation goes through all that others left there."""
    for table in erasures.TABLES:
        await migrated_event_store.change(f"TRUNCATE TABLE {table}")
    return migrated_event_store
