"""The event store is a ClickHouse server that is stopped, slow or broken: hits go on being kept, each for one row."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest
from machine import SOON, App, Client, Load, Machine, Process, alive, free_port, processes_below, wait_until

BACK_SECONDS = 15.0
# What a hit may take while something behind the journal is slow or away: less than that takes here.
PROMPT = 0.9


class ClickHouse:
    """The stand-in as a server of its own: started, killed, and told how to behave."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = Path(__file__).with_name("clickhouse_stand_in.py")
        self._server = subprocess.Popen([sys.executable, program, self._folder, str(self.port)])
        wait_until(self._answers, 10.0)

    def _answers(self) -> bool:
        try:
            return Client(self.port).send("/ping").status == 200
        except OSError:
            return False

    def kill(self) -> None:
        assert self._server is not None
        self._server.kill()
        self._server.wait()
        self._server = None

    def close(self) -> None:
        if self._server is not None:
            self.kill()

    def behave(self, behaviour: str) -> None:
        """See clickhouse_stand_in."""
        client = Client(self.port)
        client.write(
            f"PUT /behaviour HTTP/1.1\r\nHost: a\r\nContent-Length: {len(behaviour)}\r\n\r\n{behaviour}".encode()
        )
        assert client.finish().status == 200
        client.close()

    def query(self, sql: str) -> list[Any]:
        found: Any = clickhouse_connect.get_client(host="127.0.0.1", port=self.port, compress=False).query(sql)
        return list(found.result_rows)

    def names(self) -> Counter[str]:
        """How often each hit is stored, named by its `event_token`, as an event or a rejection."""
        names = Counter[str]()
        for name, count in itertools.chain(
            self.query("SELECT event_token, count() FROM events GROUP BY ALL"),
            self.query("SELECT extract(query, 'event_token=([^&]+)'), count() FROM rejections GROUP BY ALL"),
        ):
            names[name] += count
        return names

    def counted(self) -> int:
        """How many hits the traffic table says there were."""
        ((total,),) = self.query("SELECT sum(recorded) + sum(rejected) + sum(duplicate) FROM traffic")
        return total


@pytest.fixture
def clickhouse(tmp_path: Path, machine: Machine) -> Iterator[ClickHouse]:
    """A running server with onepx's schema, which is the event store of `machine`."""
    folder = tmp_path / "clickhouse"
    folder.mkdir()
    clickhouse = ClickHouse(folder)
    clickhouse.start()
    machine.environ["ONEPX_EVENTS_URL"] = f"clickhouse://127.0.0.1:{clickhouse.port}"
    assert machine.run("migrate")["events"]
    yield clickhouse
    clickhouse.close()


def hits(shop: App, name: str) -> Any:
    """Targets named by their event_token; every fourth is a rejection."""

    def target(connection: int, number: int) -> str:
        return shop.target(f"event_token={name}-{connection}-{number}", "event" if number % 4 else "revenue")

    return target


def assert_exactly_once(clickhouse: ClickHouse, loads: list[Load]) -> None:
    stored = clickhouse.names()
    assert [name for name, count in stored.items() if count != 1] == []
    answered = {name for load in loads for name in map(name_of, load.with_status(200))}
    unanswered = {name for load in loads for name in map(name_of, load.unanswered)}
    assert len(answered) > 100
    assert answered - stored.keys() == set()
    assert stored.keys() - answered - unanswered == set()
    assert clickhouse.counted() == stored.total()


def name_of(target: str) -> str:
    return target.partition("event_token=")[2]


def well(process: Process) -> bool:
    return process.health()[1]["status"] == "ok"


def logged(process: Process, event: str) -> int:
    return sum(line["event"].startswith(event) for line in process.logged())


# Stories


def test_away_and_back_again(clickhouse: ClickHouse, machine: Machine, shop: App) -> None:
    process = machine.start()
    load = Load(process, hits(shop, "h"), rate=300)
    wait_until(lambda: len(shop.events()) > 50, SOON)
    for outage, (begin, end) in enumerate(
        ((clickhouse.kill, clickhouse.start), (lambda: clickhouse.behave("broken"), lambda: clickhouse.behave("well"))),
        1,
    ):
        begin()
        wait_until(lambda: not well(process), 5.0)
        time.sleep(1.5)
        status, report = process.health()
        assert (status, report["status"], report["ready"]) == (200, "degraded", True)
        assert report["checks"]["event_store"]["ok"] is False
        assert "digestion waits" in report["checks"]["digest"]["error"]
        assert report["checks"]["journal"]["ok"] is True
        assert report["checks"]["backlog"]["hits"] > 100
        assert process.get(f"/api/v1/apps/{shop.token}/events").status == 401, "the API asks for a key first"
        assert shop.tenant.get(f"/api/v1/apps/{shop.token}/events").status == 503
        end()
        wait_until(lambda: well(process), BACK_SECONDS)
        assert (logged(process, "digestion waits"), logged(process, "digestion goes on")) == (outage, outage)
    load.end()
    assert set(load.answered.values()) == {200}
    assert load.slowest < PROMPT
    wait_until(machine.digested, BACK_SECONDS)
    assert_exactly_once(clickhouse, [load])


def test_a_schema_that_is_behind_is_told(clickhouse: ClickHouse, machine: Machine) -> None:
    process = machine.start()
    assert well(process)
    names = [name for (name,) in clickhouse.query("SELECT name FROM migrations ORDER BY name")]
    clickhouse.query(f"ALTER TABLE migrations DELETE WHERE name = '{names[-1]}' SETTINGS mutations_sync = 1")
    status, report = process.health()
    assert (status, report["status"]) == (200, "degraded")
    assert f"schema is behind ({names[-1]}); run `onepx migrate`" in report["checks"]["event_store"]["error"]
    assert machine.run("migrate")["events"] == [names[-1]]
    assert well(process)


def test_slow_is_no_reason_to_keep_visitors_waiting(clickhouse: ClickHouse, machine: Machine, shop: App) -> None:
    process = machine.start()
    clickhouse.behave("slow 1")
    load = Load(process, hits(shop, "s"), rate=300)
    time.sleep(3)
    load.end()
    assert set(load.answered.values()) == {200}
    assert load.slowest < PROMPT
    clickhouse.behave("well")
    wait_until(lambda: well(process) and machine.digested(), BACK_SECONDS)
    assert_exactly_once(clickhouse, [load])
    assert logged(process, "digestion waits") == 0, "slow is not away"


@pytest.mark.parametrize("table", ["events", "rejections", "traffic"])
def test_an_insert_whose_answer_was_lost_is_not_done_twice(
    clickhouse: ClickHouse, machine: Machine, shop: App, table: str
) -> None:
    process = machine.start()
    clickhouse.behave(f"drop {table}")
    load = Load(process, hits(shop, table), rate=300)
    wait_until(lambda: not well(process), 5.0)
    assert clickhouse.query(f"SELECT count() FROM {table}")[0][0] > 0, "the insert was done"
    time.sleep(0.6)
    clickhouse.behave("well")
    load.end()
    wait_until(lambda: well(process) and machine.digested(), BACK_SECONDS)
    assert_exactly_once(clickhouse, [load])


def test_killed_in_the_middle_of_slow_inserts_nothing_is_lost_or_doubled(
    clickhouse: ClickHouse, machine: Machine, shop: App
) -> None:
    moments = random.Random(4)
    clickhouse.behave("slow 0.2")
    loads: list[Load] = []
    for number in range(4):
        process = machine.start()
        load = Load(process, hits(shop, f"k{number}"), rate=500)
        loads.append(load)
        time.sleep(moments.uniform(0.5, 1.5))
        process.kill()
        load.end()
    clickhouse.behave("well")
    machine.start()
    wait_until(machine.digested, BACK_SECONDS)
    assert_exactly_once(clickhouse, loads)


def test_sigterm_does_not_wait_for_a_store_that_hangs(clickhouse: ClickHouse, machine: Machine, shop: App) -> None:
    process = machine.start()
    clickhouse.behave("slow 60")
    load = Load(process, hits(shop, "x"), rate=300)
    time.sleep(1)
    process.signal(signal.SIGTERM)
    assert process.wait(5.0) == 0
    load.end()
    clickhouse.kill()
    # Nor does a start wait for one that is away.
    process = machine.start()
    assert shop.hit("event_token=x-9-1").status == 200
    clickhouse.start()
    wait_until(lambda: well(process) and machine.digested(), BACK_SECONDS)
    load.answered[shop.target("event_token=x-9-1")] = 200
    assert_exactly_once(clickhouse, [load])


def test_two_workers_share_the_port_and_one_of_them_digests(
    clickhouse: ClickHouse, machine: Machine, shop: App
) -> None:
    process = machine.start("serve", "--workers", "2")
    journal = machine.data_dir / "journal"
    wait_until(lambda: listeners(process.port) == 2, 5.0)
    # A worker that dies within its first 5 s is taken for one that cannot run.
    settled = time.monotonic() + 5.5
    loads = [Load(process, hits(shop, "w1"), connections=16, rate=400)]
    wait_until(lambda: len(list(journal.glob("*.journal"))) == 2, 5.0)
    time.sleep(max(0.0, settled - time.monotonic()))
    workers = [pid for pid in processes_below(process.pid) if parent_of(pid) == process.pid]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    wait_until(lambda: logged(process, "worker died and is started again") == 1, 5.0)
    wait_until(lambda: listeners(process.port) == 2, 5.0)
    loads[0].end()
    assert set(loads[0].answered.values()) == {200}
    loads.append(Load(process, hits(shop, "w2"), connections=16, rate=400))
    wait_until(lambda: len(loads[1].answered) > 100, 5.0)
    loads[1].end()
    wait_until(machine.digested, BACK_SECONDS)
    below = processes_below(process.pid)
    process.signal(signal.SIGTERM)
    assert process.wait(8.0) == 0
    wait_until(lambda: not any(map(alive, below)), 2.0)
    assert_exactly_once(clickhouse, loads)


def test_a_full_journal_refuses_hits_and_takes_them_again_when_it_has_drained(
    clickhouse: ClickHouse, machine: Machine, shop: App
) -> None:
    process = machine.start(ONEPX_JOURNAL_MAX_BYTES="1M")
    clickhouse.kill()
    statuses = fill(shop, "first", until=503)
    assert 100 < statuses[200] < 200
    status, report = process.health()
    assert (status, report["status"], report["ready"]) == (503, "failing", False)
    clickhouse.start()
    wait_until(machine.digested, BACK_SECONDS)
    # There is room for as much again.
    wait_until(lambda: shop.hit(large("after")).status == 200, SOON)
    assert process.health()[0] == 200
    clickhouse.kill()
    again = fill(shop, "again", until=503)
    assert 100 < again[200] < 200
    clickhouse.start()
    wait_until(machine.digested, BACK_SECONDS)
    names = clickhouse.names()
    assert set(names.values()) == {1}
    assert len(names) == statuses[200] + 1 + again[200]


def large(name: str) -> str:
    """A hit of 6 kB: few of them fill a small journal."""
    return f"event_token={name}&filling={'f' * 6000}"


def fill(shop: App, name: str, until: int) -> Counter[int]:
    """Send large hits until one is answered `until`; returns how often each status came."""
    statuses = Counter[int]()
    while not statuses[until]:
        assert statuses.total() < 1000
        reply = shop.hit(large(f"{name}{statuses.total()}"))
        assert len(reply.body) == 43, "the image comes in any case"
        assert (reply.status == 503) == bool(reply.all("retry-after"))
        statuses[reply.status] += 1
    return statuses


def listeners(port: int) -> int:
    """How many sockets listen on the port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
