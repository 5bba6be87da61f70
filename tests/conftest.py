"""A control database for each test, on SQLite and on a PostgreSQL cluster of this run's own; and three people."""

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from server.database import Database
from tenants.accounts import create_tenant
from tenants.tables import TABLES, Tenant

# Makes the URL of a new, empty database.
MakeDatabase = Callable[[], str]


def _postgres_programs() -> Path | None:
    """The folder of PostgreSQL's programs; Debian keeps those of the server out of PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[MakeDatabase]:
    """A PostgreSQL cluster that is gone after the run."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian and Ubuntu: the package postgresql)")
    # PostgreSQL refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="onepx-postgres-"))
    try:
        if user:
            shutil.chown(folder, user)
        subprocess.run(
            [programs / "initdb", "--auth=trust", "--username=onepx", "--encoding=UTF8", "--no-sync", folder / "data"],
            user=user, cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        log = (folder / "log").open("wb")
        # Lost with the run anyway: nothing has to reach the disk.
        options = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": folder,
            "fsync": "off",
        }
        server = subprocess.Popen(
            [programs / "postgres", "-D", folder / "data", *(f"-c{name}={value}" for name, value in options.items())],
            user=user, cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            asyncio.run(_answers(port, server, folder / "log"))
            yield lambda: asyncio.run(_create_database(port))
        finally:
            # SIGINT: without waiting for connections that a failed test left open.
            server.send_signal(2)
            server.wait(30)
            log.close()
    finally:
        shutil.rmtree(folder)


async def _answers(port: int, server: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(200):
        try:
            await _create_database(port)
            return
        except (OSError, asyncpg.CannotConnectNowError):
            assert server.poll() is None, log.read_text()
            await asyncio.sleep(0.05)
    raise AssertionError(f"PostgreSQL did not answer in 10 s:\n{log.read_text()}")


async def _create_database(port: int) -> str:
    name = f"onepx_{uuid4().hex[:12]}"
    connection = await asyncpg.connect(f"postgres://onepx@127.0.0.1:{port}/postgres")
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return f"postgres://onepx@127.0.0.1:{port}/{name}"


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
def migrated_postgres(postgres: MakeDatabase) -> str:
    """The URL of a migrated PostgreSQL database, to be emptied."""
    url = postgres()
    asyncio.run(_migrate(url))
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a migrated, empty control database."""
    if request.param == "postgres":
        url: str = request.getfixturevalue("migrated_postgres")
        asyncio.run(_empty(url))
        return url
    path = tmp_path / "control.sqlite3"
    shutil.copy(request.getfixturevalue("migrated_sqlite"), path)
    return f"sqlite://{path}"


async def _empty(url: str) -> None:
    connection = await asyncpg.connect(url)
    tables = ", ".join(table._meta.tablename for table in TABLES)  # pyright: ignore[reportPrivateUsage]
    await connection.execute(f"TRUNCATE {tables} RESTART IDENTITY")
    await connection.close()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated, empty control database, started."""
    database = Database(database_url)
    await database.start()
    yield database
    await database.close()


@pytest.fixture
async def alice(database: Database) -> Tenant:
    return (await create_tenant("Alice", "alice@example.org", None))[0]


@pytest.fixture
async def bob(database: Database) -> Tenant:
    return (await create_tenant("Bob", "bob@example.org", None))[0]


@pytest.fixture
async def charlie(database: Database) -> Tenant:
    return (await create_tenant("Charlie", "charlie@example.org", None))[0]
