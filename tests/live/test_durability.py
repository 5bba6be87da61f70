"""200 means durable: whatever is killed, each hit answered 200 is stored, and no hit is stored twice."""

import contextlib
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from urllib.parse import parse_qs, urlsplit

import pytest
from machine import ONEPX, SOON, App, Client, Load, Machine, Process, alive, wait_until

ROUNDS = 20
DIGEST_SECONDS = 20.0


def mixed_hits(app: App, name: str) -> Callable[[int, int], str]:
    """Targets that name each hit: events, some with an event_id, and every fifth a rejection."""

    def target(connection: int, number: int) -> str:
        hit = f"{name}-{connection}-{number}"
        match number % 5:
            case 0:
                return app.target(f"event_token={hit}", "revenue")
            case 1:
                return app.target(f"event_token=order&event_id={hit}&params=%7B%22n%22%3A%22{hit}%22%7D")
            case _:
                return app.target(f"event_token=view&params=%7B%22n%22%3A%22{hit}%22%7D")

    return target


def name_of(target: str) -> str:
    """The name that `mixed_hits` gave it."""
    sent = parse_qs(urlsplit(target).query)
    return sent["params"][0][6:-2] if "params" in sent else sent["event_token"][0]


def stored_names(machine: Machine) -> Counter[str]:
    """How often each hit stands in the event store, as an event or a rejection. No `serve` may run."""
    events = machine.stored("SELECT JSONExtractString(params_text, 'n'), count() FROM events GROUP BY ALL")
    rejections = machine.stored("SELECT extract(query, 'event_token=([^&]+)'), count() FROM rejections GROUP BY ALL")
    names = Counter[str]()
    for name, count in itertools.chain(events, rejections):
        names[name] += count
    return names


def assert_exactly_once(machine: Machine, loads: Iterable[Load]) -> None:
    """Every answered hit is stored once, every unanswered one at most once, and the counters agree."""
    loads = list(loads)
    stored = stored_names(machine)
    assert [name for name, count in stored.items() if count > 1] == []
    answered = {name_of(target) for load in loads for target in load.with_status(200)}
    unanswered = {name_of(target) for load in loads for target in load.unanswered}
    assert len(answered) > 1000, "too little load to say anything"
    assert answered - stored.keys() == set()
    assert stored.keys() - answered - unanswered == set()
    ((recorded, rejected),) = machine.stored("SELECT sum(recorded), sum(rejected) FROM traffic")
    assert recorded + rejected == stored.total()


def retry_orders(app: App, client: Client, loads: Iterable[Load]) -> None:
    """Send again the unanswered hits that carry an event_id, as a careful customer does."""
    for load in loads:
        for target in load.unanswered:
            if "event_id=" in target:
                assert client.send(target).status == 200
                load.answered[target] = 200
        load.unanswered -= load.answered.keys()


def stop_when_digested(machine: Machine) -> None:
    wait_until(machine.digested, DIGEST_SECONDS)
    for process in machine.processes:
        if process.running():
            assert process.stop() == 0


def test_killed_at_random_moments_nothing_is_lost_and_nothing_doubled(machine: Machine, shop: App) -> None:
    moments = random.Random(20)
    process = machine.start()
    loads: list[Load] = []
    for number in range(ROUNDS):
        load = Load(process, mixed_hits(shop, f"r{number}"))
        loads.append(load)
        time.sleep(moments.uniform(0.05, 0.5))
        if number % 4 == 3:
            kill_digest(process)
            time.sleep(moments.uniform(0.0, 0.4))
        process.kill()
        load.end()
        assert set(load.answered.values()) <= {200}
        process = machine.start()
        retry_orders(shop, process.client, loads[-1:])
    stop_when_digested(machine)
    assert_exactly_once(machine, loads)
    assert list((machine.data_dir / "journal").glob("*.damaged")) == []


def kill_digest(process: Process) -> int:
    """SIGKILL the digest's process alone; returns its id."""
    pid = process.digest_pid()
    os.kill(pid, signal.SIGKILL)
    return pid


def test_a_killed_digest_is_started_again_and_nothing_is_lost_or_doubled(machine: Machine, shop: App) -> None:
    moments = random.Random(6)
    process = machine.start()
    load = Load(process, mixed_hits(shop, "d"))
    for _ in range(3):
        time.sleep(moments.uniform(0.1, 0.5))
        killed = kill_digest(process)
        wait_until(lambda killed=killed: not alive(killed) and process.digest_pid() != killed, 5.0)
    load.end()
    assert set(load.answered.values()) == {200}, "pixels never noticed"
    wait_until(lambda: process.health()[1]["status"] == "ok", DIGEST_SECONDS)
    deaths = [line for line in process.logged() if "digest process ended" in line["event"]]
    assert len(deaths) == 3
    stop_when_digested(machine)
    assert_exactly_once(machine, [load])


def test_sigterm_under_load_loses_nothing_and_ends_within_five_seconds(machine: Machine, shop: App) -> None:
    process = machine.start()
    loads: list[Load] = []
    for number in range(2):
        load = Load(process, mixed_hits(shop, f"t{number}"), connections=8)
        loads.append(load)
        time.sleep(0.7)
        began = time.monotonic()
        process.signal(signal.SIGTERM)
        assert process.wait(5.0) == 0
        assert time.monotonic() - began < 5.0
        load.end()
        assert set(load.answered.values()) <= {200, 503}
        process = machine.start()
    stop_when_digested(machine)
    assert_exactly_once(machine, loads)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_was_asked_before_the_end_is_answered(machine: Machine, shop: App, number: signal.Signals) -> None:
    process = machine.start()
    clients = [Client(process.port) for _ in range(50)]
    for client in clients:
        assert client.send(shop.target("event_token=first")).status == 200
    # All requests are on the server's sockets before it hears of the end.
    for n, client in enumerate(clients):
        client.begin(shop.target(f"event_token=last&params=%7B%22n%22%3A%22{n}%22%7D"))
    time.sleep(0.05)
    process.signal(number)
    assert [client.finish().status for client in clients] == [200] * len(clients)
    assert process.wait(5.0) == 0
    machine.start()
    stop_when_digested(machine)
    assert sorted(stored_names(machine)) == sorted(["", *map(str, range(len(clients)))])


def test_a_closed_terminal_does_not_end_what_nohup_started(machine: Machine, shop: App) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what is started inherits it
    try:
        process = machine.start()
    finally:
        signal.signal(signal.SIGHUP, before)
    process.signal(signal.SIGHUP)
    shop.hit("event_token=still")
    wait_until(shop.events, DIGEST_SECONDS)
    assert process.stop() == 0


def test_what_a_failing_disk_took_of_the_event_store_is_told(machine: Machine, shop: App) -> None:
    process = machine.start()
    shop.hit("event_token=gone")
    wait_until(shop.events, DIGEST_SECONDS)
    process.stop()
    (piece,) = (machine.data_dir / "events" / "data" / "default" / "events").glob("2*_*/data.bin")
    piece.write_bytes(piece.read_bytes()[:-1])
    process = machine.start()
    assert shop.events() == []
    status, report = process.health()
    assert (status, report["status"]) == (200, "degraded")
    told = report["checks"]["event_store"]["error"]
    assert f"events/detached/broken-on-start_{piece.parent.name}" in told
    assert any("kept aside" in line["event"] for line in process.logged())
    environ = os.environ | {"ONEPX_DATA_DIR": str(machine.data_dir)}
    for running in (True, False):
        done = subprocess.run([ONEPX, "check"], env=environ, capture_output=True, text=True)
        assert (running, done.returncode) == (running, 1)
        assert f"wrong: {told}" in done.stdout
        machine.stop()


def test_hits_of_collect_are_digested_by_serve(machine: Machine, shop: App) -> None:
    serve, collect = machine.start(), machine.start("collect")
    wait_until(lambda: collect.get(shop.target("event_token=seen&debug=1")).status == 200, SOON)
    answered = time.monotonic()
    wait_until(shop.events, SOON)
    assert time.monotonic() - answered < SOON
    assert collect.get("/api/v1/apps").status == 404, "collect takes pixels only"
    assert collect.health()[0] == 200
    assert serve.health()[1]["checks"]["backlog"]["hits"] == 0


def test_a_hit_keeps_the_currency_that_its_app_had_when_it_came(machine: Machine, shop: App) -> None:
    collect = machine.start("collect")
    sold = shop.target("event_token=sold&amount=2500", "revenue")
    assert collect.get(sold).status == 200
    with contextlib.closing(sqlite3.connect(machine.data_dir / "control.sqlite3")) as database:
        # As the app's settings do it.
        database.execute("UPDATE revision SET n = n + 1")
        database.execute("UPDATE app_token SET revision = (SELECT n FROM revision)")
        database.execute("UPDATE app SET currency = 'JPY'")
        database.commit()
    time.sleep(SOON)
    assert collect.get(sold).status == 200
    machine.stop()
    machine.start()
    wait_until(lambda: len(shop.events()) == 2, SOON)
    assert [event["currency"] for event in shop.events()] == ["JPY", "USD"]


def test_two_collects_killed_under_load_lose_nothing(machine: Machine, shop: App) -> None:
    serve = machine.start()
    collects = [machine.start("collect") for _ in range(2)]
    loads: list[Load] = []
    for number in range(3):
        loads += [
            Load(process, mixed_hits(shop, f"c{number}{index}"), connections=2)
            for index, process in enumerate([serve, *collects])
        ]
        time.sleep(0.5)
        killed = collects.pop(0)
        killed.kill()
        for load in loads:
            load.end()
        assert all(set(load.answered.values()) <= {200} for load in loads)
        collects.append(machine.start("collect"))
    stop_when_digested(machine)
    assert_exactly_once(machine, loads)
    machine.start()
    # Nobody writes any of the segments any more: they are gone with their hits.
    wait_until(lambda: not list((machine.data_dir / "journal").glob("*.journal")), 5.0)
    assert list((machine.data_dir / "tmp").glob("*.native")) == []
