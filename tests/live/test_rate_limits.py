"""Each tenant has a rate and a burst, however many processes share its hits; others notice nothing."""

import time

import pytest
from machine import SOON, App, Load, Machine, wait_until

RATE, BURST = 500, 1000


def flood(machine: Machine, shop: App, seconds: float) -> tuple[list[Load], float]:
    """Five times the rate for so long, spread over the machine's processes; the loads and the seconds it took."""
    share = 5 * RATE / len(machine.processes)
    began = time.monotonic()
    loads = [
        Load(process, lambda c, n, p=process.port: shop.target(f"event_token=e{p}-{c}-{n}"), rate=share)
        for process in machine.processes
    ]
    time.sleep(seconds)
    for load in loads:
        load.end()
    return loads, time.monotonic() - began


@pytest.mark.parametrize(
    ("verbs", "seconds", "tolerance"), [(["serve"], 10.0, 0.02), (["serve", "collect"], 5.0, 0.03)], ids=str
)
def test_a_flood_is_cut_to_rate_and_burst_and_slows_nobody_else(
    machine: Machine, shop: App, verbs: list[str], seconds: float, tolerance: float
) -> None:
    shop.tenant.limit(RATE, BURST)
    bob = machine.tenant().app()
    for verb in verbs:
        machine.start(verb)
    # Another tenant's hits, meanwhile.
    others = [
        Load(process, lambda c, n, p=process.port: bob.target(f"event_token=b{p}-{c}-{n}"), connections=1, rate=50)
        for process in machine.processes
    ]
    loads, took = flood(machine, shop, seconds)
    for load in others:
        load.end()
        assert set(load.answered.values()) == {200}
        assert load.slowest < 0.5

    statuses = [status for load in loads for status in load.answered.values()]
    assert set(statuses) == {200, 429}
    sent, recorded = len(statuses), statuses.count(200)
    assert sent > 2 * RATE * seconds, "too little load to say anything"
    assert recorded == pytest.approx(RATE * took + BURST, rel=tolerance)

    theirs = sum(len(load.answered) for load in others)
    wait_until(machine.digested, SOON)
    # Limited hits that no frame took along are written once a second.
    time.sleep(1.5)
    machine.stop()
    ((stored, limited),) = machine.stored("SELECT sum(recorded), sum(limited) FROM traffic")
    assert stored == recorded + theirs
    assert stored + limited == sent + theirs
    assert machine.stored("SELECT count() FROM events") == [[recorded + theirs]]


def test_a_limited_hit_gets_the_image_and_hears_when_to_come_again(machine: Machine, shop: App) -> None:
    shop.tenant.limit(1, 1)
    machine.start()
    assert shop.hit("event_token=a").status == 200
    reply = shop.hit("event_token=a")
    assert reply.status == 429
    assert reply.all("content-type") == ["image/gif"]
    assert len(reply.body) == 43
    assert reply.all("set-cookie") == []
    (seconds,) = reply.all("retry-after")
    time.sleep(int(seconds))
    assert shop.hit("event_token=a").status == 200
    assert shop.hit("event_token=a&debug=1").all("x-onepx-result") == []


def test_a_changed_limit_counts_within_two_seconds_in_serve_and_collect(machine: Machine, shop: App) -> None:
    processes = [machine.start(), machine.start("collect")]

    def status(index: int) -> int:
        return processes[index].client.send(shop.target("event_token=a")).status

    assert [status(0), status(1)] == [200, 200]
    shop.tenant.limit(1, 1)
    wait_until(lambda: (status(0), status(1)) == (429, 429), SOON)
    shop.tenant.limit(100_000, 100_000)
    changed = time.monotonic()
    wait_until(lambda: status(0) == status(1) == 200, SOON)
    # Both know, and the bucket fills within moments.
    time.sleep(max(0.0, changed + SOON - time.monotonic()))
    assert {status(index) for index in (0, 1) for _ in range(200)} == {200}


def test_a_restart_grants_no_fresh_burst(machine: Machine, shop: App) -> None:
    shop.tenant.limit(1, 100)
    machine.start()
    first = [shop.hit("event_token=a").status for _ in range(150)]
    assert 100 <= first.count(200) <= 102
    machine.stop()
    began = time.monotonic()
    machine.start()
    again = [shop.hit("event_token=a").status for _ in range(150)]
    assert again.count(200) <= time.monotonic() - began + 2
