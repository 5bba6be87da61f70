"""The journal's disk is full: hits are refused honestly, and taken again as soon as there is room."""

import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import SOON, App, Machine, Process, wait_until


@pytest.fixture
def small_disk(machine: Machine) -> Iterator[Path]:
    """A file system of 4 MB under the journal of `machine`."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    journal = machine.data_dir / "journal"
    journal.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", journal], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    # SQLite's own word for a full disk, with the place where it was met.
    machine.tolerated.add("OperationalError")
    try:
        yield journal
        machine.stop()
    finally:
        subprocess.run(["umount", "--lazy", journal], check=True)


def fill(disk: Path) -> Path:
    """Take all that is free, to the last byte."""
    file = disk / "filling"
    with file.open("wb", buffering=0) as filling:
        for size in (65_536, 4096, 1):
            try:
                while filling.write(b"x" * size):
                    pass
            except OSError:
                continue
    assert os.statvfs(disk).f_bavail == 0
    return file


def hit(shop: App, number: int) -> int:
    """A hit's status; image and Retry-After are as the status asks for."""
    reply = shop.hit(f"event_token=n{number}&params=%7B%22n%22%3A{number}%7D&filling={'f' * 2000}")
    assert len(reply.body) == 43
    assert reply.all("content-type") == ["image/gif"]
    retry = reply.all("retry-after")
    assert (reply.status, bool(retry)) in ((200, False), (503, True))
    assert all(0 < int(seconds) <= 60 for seconds in retry)
    return reply.status


def readiness(process: Process) -> tuple[int, str]:
    status, report = process.health()
    return status, report["status"]


def test_full_and_free_again(small_disk: Path, machine: Machine, shop: App) -> None:
    process = machine.start()
    answers: dict[int, int] = {}

    def send(count: int) -> Counter[int]:
        numbers = range(len(answers), len(answers) + count)
        for number in numbers:
            answers[number] = hit(shop, number)
        return Counter(answers[number] for number in numbers)

    assert send(50) == {200: 50}
    wait_until(lambda: len(shop.events()) == 50, SOON)
    for _ in range(2):
        filling = fill(small_disk)
        # The segment's last page may have room for a hit or two.
        assert send(50)[503] > 40
        assert readiness(process) == (503, "failing")
        assert process.get("/healthz/live").status == 200
        assert len(shop.events()) >= 50, "what was recorded can be read"
        filling.unlink()
        wait_until(lambda: hit(shop, 10_000) == 200, SOON)
        assert send(50) == {200: 50}
        wait_until(lambda: readiness(process) == (200, "ok"), 5.0)
    kept = {number for number, status in answers.items() if status == 200}
    wait_until(machine.digested, SOON)
    assert process.stop() == 0
    stored = machine.stored("SELECT JSONExtractInt(params_text, 'n'), count() FROM events GROUP BY ALL")
    # The hits that asked whether there is room again are not counted here.
    assert {number: count for number, count in stored if number < 10_000} == dict.fromkeys(kept, 1)
    # One line when trouble begins and one when it ends, not one a hit. (The digest may make room for one hit meanwhile:
    # then trouble ends, and begins again.)
    told = [line["event"].partition(" hits")[0] for line in process.logged() if line["event"].startswith("journal ")]
    assert told == ["journal cannot keep", "journal keeps"] * (len(told) // 2)
    assert 4 <= len(told) < 20


def test_ready_again_without_a_hit_once_there_is_room(small_disk: Path, machine: Machine, shop: App) -> None:
    """A load balancer sends no hits to a server that is not ready."""
    process = machine.start()
    assert hit(shop, 1) == 200
    wait_until(machine.digested, SOON)
    filling = fill(small_disk)
    wait_until(lambda: hit(shop, 2) == 503, SOON)
    assert readiness(process) == (503, "failing")
    filling.unlink()
    wait_until(lambda: readiness(process) == (200, "ok"), 5.0)


def test_started_on_a_full_disk_it_says_so_and_recovers(small_disk: Path, machine: Machine, shop: App) -> None:
    process = machine.start()
    assert hit(shop, 1) == 200
    assert process.stop() == 0
    filling = fill(small_disk)
    process = machine.start()
    assert hit(shop, 2) == 503
    assert readiness(process) == (503, "failing")
    assert process.get("/metrics").status == 200
    filling.unlink()
    wait_until(lambda: hit(shop, 3) == 200, SOON)
    wait_until(lambda: readiness(process) == (200, "ok"), 5.0)
    wait_until(lambda: len(shop.events()) >= 2, SOON)
