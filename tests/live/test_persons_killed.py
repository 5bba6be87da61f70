"""Who events belong to, on a running machine: told apart while it is killed again and again."""

import random
import signal
import subprocess
import sys
import threading
import time
from urllib.parse import quote
from uuid import UUID

from machine import App, Machine, wait_until

ROUNDS = 8
DIGEST_SECONDS = 20.0

# What a customer does: browser, what it tells, category. In the end all of it is one person's.
LIFE = [
    ("a", '"', "event"),
    ("a", '","email":"EMAIL"', "event"),
    ("b", '"', "event"),
    ("b", '","email":"EMAIL"', "event"),
    ("c", '","uuid":"UUID"', "event"),
    ("c", '","uuid":"UUID","email":"EMAIL"', "event"),
    ("c", '"', "revenue"),
    ("a", '"', "revenue"),
]
# Of each customer the persons, with aliases seen through.
PERSONS = (
    "SELECT JSONExtractString(params_text, 'who') AS who, "
    "groupUniqArray(if(a.version > 0, a.survivor, person_id)) AS persons FROM events LEFT JOIN "
    "(SELECT alias, person AS survivor, version FROM person_aliases FINAL) AS a ON person_id = a.alias GROUP BY who"
)
# What the upkeep does after some minutes, an hour later, until nothing is left to do.
REWRITING = """
import asyncio
from datetime import UTC, datetime, timedelta
from server.database import Database
from server.event_store import EventStore
from server.settings import Settings
from tenants.rewriting import unscoped_collect, unscoped_rewrite
from tenants.tables import Person

async def rewrite():
    settings = Settings.from_environment().prepare_data_dir()
    database = Database(settings.database_url)
    await database.start()
    store = EventStore(settings.events_url, settings.data_dir / "tmp")
    print("begins", flush=True)
    while await Person.count().where(Person.todo > 0):
        now = datetime.now(UTC) + timedelta(hours=1)
        await unscoped_collect(store, now)
        await unscoped_rewrite(store, now)
    store.close()
    await database.close()

asyncio.run(rewrite())
"""


class Customers:
    """Customers who come one after the other, each hit sent until it is answered 200."""

    def __init__(self, machine: Machine, app: App) -> None:
        self._machine = machine
        self._app = app
        self._draw = random.Random(4)
        self._ending = threading.Event()
        self.count = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        """After the customer who is here now."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.is_set():
            browsers = {name: UUID(int=self._draw.getrandbits(128), version=4) for name in "abc"}
            for browser, told, category in LIFE:
                params = f'{{"who":"{self.count}{told}}}'
                params = params.replace("EMAIL", f"c{self.count}@example.org").replace("UUID", f"c{self.count}")
                query = f"event_token=step&amount=100&params={quote(params)}"
                self._send(self._app.target(query, category), f"vid={browsers[browser]}")
            self.count += 1

    def _send(self, target: str, cookie: str) -> None:
        while True:
            try:
                if self._machine.process.get(target, {"Cookie": cookie}).status == 200:
                    return
            except (OSError, StopIteration):  # killed, or not started yet
                pass
            time.sleep(0.02)


def test_killed_again_and_again_the_same_persons_come_out(machine: Machine, shop: App) -> None:
    moments = random.Random(7)
    process = machine.start()
    customers = Customers(machine, shop)
    for _ in range(ROUNDS):
        time.sleep(moments.uniform(0.1, 0.6))
        process.kill()
        process = machine.start()
    customers.end()
    wait_until(machine.digested, DIGEST_SECONDS)
    assert process.stop() == 0
    persons = dict(machine.stored(PERSONS))
    assert customers.count > 20
    assert persons.keys() == {str(number) for number in range(customers.count)}
    assert {len(ids) for ids in persons.values()} == {1}, "one person a customer"
    assert len({ids[0] for ids in persons.values()}) == customers.count, "and a customer a person"


def test_rewriting_is_killed_again_and_again(machine: Machine, shop: App) -> None:
    """Events of merged persons become the survivor's for good, and nobody loses a property."""
    process = machine.start()
    customers = Customers(machine, shop)
    time.sleep(1.5)
    customers.end()
    wait_until(machine.digested, DIGEST_SECONDS)
    assert process.stop() == 0
    persons = dict(machine.stored(PERSONS))
    assert machine.stored("SELECT count() FROM person_aliases FINAL")[0][0] > customers.count

    def rewrite() -> "subprocess.Popen[bytes]":
        child = subprocess.Popen(
            [sys.executable, "-c", REWRITING],
            env=machine._environ({}),  # pyright: ignore[reportPrivateUsage]
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"begins\n"
        return child

    moments, killed = random.Random(3), 0
    for _ in range(4):
        child = rewrite()
        time.sleep(moments.uniform(0.0, 0.3))
        child.kill()
        killed += child.wait() == -signal.SIGKILL
    assert killed >= 2, "it was at work"
    assert rewrite().wait(60) == 0
    assert machine.stored("SELECT count() FROM person_aliases FINAL") == [[0]]
    assert dict(machine.stored(PERSONS)) == persons
    assert machine.stored("SELECT count() FROM events") == [[customers.count * len(LIFE)]]
    owners = (
        "SELECT person_id, groupUniqArray(value) FROM person_properties FINAL WHERE field = 'who' GROUP BY person_id"
    )
    assert dict(machine.stored(owners)) == {ids[0]: [f'"{who}"'] for who, ids in persons.items()}
