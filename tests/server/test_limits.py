"""Token buckets: a tenant's rate and burst, in one process and in several."""
# pyright: reportPrivateUsage=false

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from server.limits import _CELL, PROCESSES, Limiter

TENANT = 3


class Clock:
    """Time as the limiter sees it, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("server.limits.time", SimpleNamespace(monotonic=clock))
    return clock


def admitted(limiter: Limiter, tries: int, rate: int, burst: int, tenant: int = TENANT) -> int:
    return sum(limiter.take(tenant, rate, burst) for _ in range(tries))


# One process


def test_a_burst_is_admitted_at_once_and_then_the_rate(tmp_path: Path, clock: Clock) -> None:
    limiter = Limiter(tmp_path)
    assert admitted(limiter, 200, rate=8, burst=100) == 100
    clock.now += 1.0
    assert admitted(limiter, 200, rate=8, burst=100) == 8
    clock.now += 0.0625
    assert admitted(limiter, 200, rate=8, burst=100) == 0
    clock.now += 0.0625
    assert admitted(limiter, 200, rate=8, burst=100) == 1
    limiter.close()


def test_what_is_saved_up_never_exceeds_the_burst(tmp_path: Path, clock: Clock) -> None:
    limiter = Limiter(tmp_path)
    assert admitted(limiter, 500, rate=10, burst=100) == 100
    clock.now += 3600
    assert admitted(limiter, 500, rate=10, burst=100) == 100
    limiter.close()


def test_ten_seconds_at_five_times_the_rate(tmp_path: Path, clock: Clock) -> None:
    limiter = Limiter(tmp_path)
    count = 0
    for step in range(50_000):
        clock.now = 1000.0 + step / 5000
        if step % 500 == 0:
            limiter.sync()
        count += limiter.take(TENANT, 1000, 5000)
    assert count == pytest.approx(1000 * 10 + 5000, rel=0.001)
    limiter.close()


@pytest.mark.parametrize(
    ("rate", "burst", "waits", "expected"),
    [
        (10, 5, [0.0], [5]),
        (16, 5, [0.0, 1 / 32, 1 / 32], [5, 0, 1]),
        # Fractions add up: 3 a second, looked at every quarter.
        (3, 1, [0.0, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25], [1, 0, 1, 0, 1, 0, 1]),
        (4, 3, [0.0, 0.5, 10.0, 0.25], [3, 2, 3, 1]),
        (1, 1, [0.0, 63 / 64, 1 / 64, 63 / 64, 1 / 64], [1, 0, 1, 0, 1]),
        # A burst below one hit is no burst at all.
        (100, 0, [0.0, 60.0], [0, 0]),
        (0, 2, [0.0, 3600.0], [2, 0]),
        (1_024_000, 1_000, [0.0, 1 / 2048], [1_000, 500]),
    ],
)
def test_the_bucket_is_exact(
    tmp_path: Path, clock: Clock, rate: int, burst: int, waits: list[float], expected: list[int]
) -> None:
    limiter = Limiter(tmp_path)
    found: list[int] = []
    for wait in waits:
        clock.now += wait
        found.append(admitted(limiter, burst + 10, rate, burst))
        limiter.sync()
    limiter.close()
    assert found == expected


def test_a_changed_limit_counts_with_the_next_hit(tmp_path: Path, clock: Clock) -> None:
    limiter = Limiter(tmp_path)
    assert admitted(limiter, 50, rate=10, burst=100) == 50
    assert admitted(limiter, 50, rate=10, burst=5) == 5
    clock.now += 1.0
    assert admitted(limiter, 500, rate=200, burst=1000) == 200
    limiter.close()


def test_tenants_do_not_share_a_bucket(tmp_path: Path, clock: Clock) -> None:
    limiter = Limiter(tmp_path)
    assert admitted(limiter, 500, rate=1, burst=100, tenant=1) == 100
    assert admitted(limiter, 500, rate=1, burst=100, tenant=2) == 100
    limiter.close()


def test_a_bucket_long_unused_is_forgotten_but_not_what_it_held(tmp_path: Path, clock: Clock) -> None:
    limiter = Limiter(tmp_path)
    assert admitted(limiter, 200, rate=1, burst=100) == 100
    limiter.sync()
    clock.now += 61
    limiter.sync()
    assert admitted(limiter, 200, rate=1, burst=100) == 61
    limiter.close()


def test_a_restart_goes_on_with_the_bucket(tmp_path: Path, clock: Clock) -> None:
    limiter = Limiter(tmp_path)
    assert admitted(limiter, 200, rate=1, burst=100) == 100
    limiter.close()
    clock.now += 7
    limiter = Limiter(tmp_path)
    assert admitted(limiter, 200, rate=1, burst=100) == 7
    limiter.close()


def test_after_the_machine_was_restarted_the_bucket_is_full(tmp_path: Path, clock: Clock) -> None:
    limiter = Limiter(tmp_path)
    assert admitted(limiter, 200, rate=1, burst=100) == 100
    limiter.close()
    clock.now = 5.0  # monotonic time begins with the machine
    limiter = Limiter(tmp_path)
    assert admitted(limiter, 200, rate=1, burst=100) == 100
    limiter.close()


def test_a_view_from_before_the_restart_empties_the_bucket_at_worst(tmp_path: Path, clock: Clock) -> None:
    """Of a process that did not come back: once the machine has run as long again, its view is the newest one."""
    limiter = Limiter(tmp_path)
    assert admitted(limiter, 200, rate=1, burst=100) == 100
    clock.now += 1_000_000
    assert admitted(limiter, 200_000, rate=1, burst=200_000) == 200_000
    limiter.close()
    with (tmp_path / "limits").open("r+b") as file:
        file.seek((TENANT * PROCESSES + 1) * _CELL.size)
        file.write(_CELL.pack(0, 0, 100.0, clock.now + 1))
    clock.now += 11
    limiter = Limiter(tmp_path)
    assert admitted(limiter, 200, rate=1, burst=100) == 0
    clock.now += 5
    assert admitted(limiter, 200, rate=1, burst=100) == 5
    limiter.close()


def test_the_file_grows_with_the_tenants_and_stays_sparse(tmp_path: Path, clock: Clock) -> None:
    limiter = Limiter(tmp_path)
    assert admitted(limiter, 20, rate=1, burst=10, tenant=1) == 10
    for tenant in (1023, 1024, 5000, 1_000_000):
        assert admitted(limiter, 20, rate=1, burst=10, tenant=tenant) == 10
    assert admitted(limiter, 20, rate=1, burst=10, tenant=1) == 0
    about = (tmp_path / "limits").stat()
    assert about.st_size > 1_000_000 * 512
    assert about.st_blocks * 512 < 1024**2
    limiter.close()


def test_on_a_full_disk_a_tenant_never_met_is_an_error_and_no_death(tmp_path: Path) -> None:
    """Writing to a hole of a mapped file on a full disk would kill the process: SIGBUS."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _FILL_AND_TAKE, tmp_path], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        # The tenant met before, the one met now, and both again with room.
        assert json.loads(done.stdout) == [True, errno.ENOSPC, True, True]
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


_FILL_AND_TAKE = """
import json, os, sys
from pathlib import Path
from server.limits import _CELL, PROCESSES, Limiter

def take(tenant):
    try:
        return limiter.take(tenant, 1, 10)
    except OSError as error:
        return error.errno

folder = Path(sys.argv[1])
limiter = Limiter(folder)
take(1)
# As far as it will ever be mapped, with a hole before the end.
take(5000)
filling = os.open(folder / "filling", os.O_CREAT | os.O_WRONLY)
room = os.statvfs(folder)
os.posix_fallocate(filling, 0, room.f_bavail * room.f_frsize)
answers = [take(1), take(2500)]
os.ftruncate(filling, 0)
print(json.dumps([*answers, take(1), take(2500)]))
limiter.close()
"""


# Several processes

_HOLD_CELLS = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
for cell in range(int(sys.argv[2])):
    fcntl.lockf(fd, fcntl.LOCK_EX, 1, (1 << 60) + cell)
print("held", flush=True)
sys.stdin.read()
"""


def test_more_processes_than_there_are_cells_are_refused(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD_CELLS, tmp_path / "limits", str(PROCESSES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(OSError, match="processes use this data folder"):
            Limiter(tmp_path)
        holder.communicate()
    # Freed by the kernel with the process.
    Limiter(tmp_path).close()


_WORK = """
import json, sys, time
from pathlib import Path
from server.limits import _CELL, PROCESSES, Limiter

limiter = Limiter(Path(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    seconds, rate, burst, tenant = json.loads(line)
    count, synced, end = 0, 0.0, time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        if now - synced > 0.1:
            limiter.sync()
            synced = now
        count += limiter.take(tenant, rate, burst)
    print(count, flush=True)
limiter.close()
"""


class Worker:
    """A process with a limiter of its own."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORK, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def begin(self, seconds: float, rate: int, burst: int) -> None:
        """Take hits as fast as it can for so long."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps((seconds, rate, burst, TENANT))}\n")
        self._process.stdin.flush()

    def admitted(self) -> int:
        """How many of them were admitted."""
        return int(self._line())

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def end(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    """Starts workers on one folder; all are ended."""
    started: list[Worker] = []

    def start() -> Worker:
        started.append(Worker(tmp_path))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


def test_two_processes_share_one_bucket(workers: Callable[[], Worker]) -> None:
    pair = [workers(), workers()]
    for worker in pair:
        worker.begin(2.0, rate=500, burst=1000)
    each = [worker.admitted() for worker in pair]
    assert sum(each) == pytest.approx(500 * 2.0 + 1000, abs=0.02 * 2000)
    for worker in pair:
        worker.end()


def test_a_process_that_comes_later_grants_no_second_burst(workers: Callable[[], Worker]) -> None:
    first = workers()
    first.begin(0.5, rate=1, burst=1000)
    assert first.admitted() == pytest.approx(1000, abs=2)
    late = workers()
    late.begin(0.5, rate=1, burst=1000)
    assert late.admitted() <= 5
    first.end()
    late.end()


def test_what_was_earned_unseen_above_the_burst_is_not_paid_out(tmp_path: Path, workers: Callable[[], Worker]) -> None:
    other = workers()
    limiter = Limiter(tmp_path)
    assert limiter.take(TENANT, 100, 50)
    for _ in range(3):
        limiter.sync()
        time.sleep(0.4)
    other.begin(0.02, rate=100, burst=50)
    assert other.admitted() == pytest.approx(52, abs=3)
    # A bucket kept meanwhile would have saved up 120 and taken off 52.
    assert admitted(limiter, 100, rate=100, burst=50) <= 10
    limiter.close()
    other.end()


def test_a_killed_process_takes_nothing_back(workers: Callable[[], Worker]) -> None:
    killed = workers()
    killed.begin(0.5, rate=1, burst=1000)
    assert killed.admitted() == pytest.approx(1000, abs=2)
    # Its view is at most a tenth of a second old when it dies, and its counter is exact.
    killed.kill()
    heir = workers()
    heir.begin(0.5, rate=1, burst=1000)
    assert heir.admitted() <= 5
    heir.end()


def test_a_tenant_that_makes_the_file_grow_is_shared_all_the_same(
    tmp_path: Path, workers: Callable[[], Worker]
) -> None:
    pair = [workers(), workers()]
    limiter = Limiter(tmp_path)
    # Grown by this process, after the others mapped it.
    assert admitted(limiter, 20, rate=1, burst=10, tenant=1_000_000) == 10
    for worker in pair:
        worker.begin(0.3, rate=1, burst=500)
    assert sum(worker.admitted() for worker in pair) == pytest.approx(500, abs=5)
    limiter.close()
    for worker in pair:
        worker.end()


_ARRIVE_MEANWHILE = """
import sys, time
from pathlib import Path
from server import limits

real = time.monotonic

class Interrupted:
    # The process loses its core just as it looked at the clock, for the time the other takes all there is.
    first = True

    def monotonic(self):
        now = real()
        if self.first:
            self.first = False
            print("met", flush=True)
            sys.stdin.readline()
        return now

limiter = limits.Limiter(Path(sys.argv[1]))
limits.time = Interrupted()
print("ready", flush=True)
sys.stdin.readline()
limiter.sync()
print(sum(limiter.take(3, 1, 500) for _ in range(2000)), flush=True)
"""


def _say_and_hear(process: "subprocess.Popen[str]", word: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    if word:
        process.stdin.write(word + "\n")
        process.stdin.flush()
    return process.stdout.readline().strip()


def test_two_processes_that_meet_a_tenant_at_once_grant_one_burst(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _ARRIVE_MEANWHILE, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as slow:
        assert _say_and_hear(slow, "") == "ready"
        limiter = Limiter(tmp_path)
        assert _say_and_hear(slow, "go") == "met"
        assert admitted(limiter, 2000, rate=1, burst=500) == 500
        assert int(_say_and_hear(slow, "on")) <= 3
        limiter.close()


_STREAM = """
import json, os, sys, time
from pathlib import Path
from server.limits import _CELL, PROCESSES, Limiter

folder, rate, burst, speed = json.loads(sys.argv[1])
tally = os.open(Path(folder) / "tally", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
limiter = Limiter(Path(folder))
print("ready", flush=True)
begin, end = json.loads(sys.stdin.readline())
time.sleep(max(0.0, begin - time.monotonic()))
began = synced = time.monotonic()
hits = 0
while (now := time.monotonic()) < end:
    if now - synced > 0.1:
        limiter.sync()
        synced = now
    while hits < (now - began) * speed:
        hits += 1
        # In the kernel's hands before the next: a kill takes back no more than one.
        if limiter.take(3, rate, burst):
            os.write(tally, b".")
    time.sleep(0.002)
limiter.close()
"""


@pytest.mark.parametrize(
    ("second", "killed_and_again"),
    [
        pytest.param(1.0, [], id="one comes later"),
        pytest.param(0.0, [0, 1], id="one after the other is killed"),
    ],
)
def test_over_three_seconds_at_five_times_the_rate(tmp_path: Path, second: float, killed_and_again: list[int]) -> None:
    rate, burst, seconds = 500, 400, 3.0
    running: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        # Each process alone brings more than the limit.
        given = json.dumps((str(tmp_path), rate, burst, 2.5 * rate))
        process = subprocess.Popen(
            [sys.executable, "-c", _STREAM, given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        assert _say_and_hear(process, "") == "ready"
        return process

    def send_hits(process: "subprocess.Popen[str]", begin: float) -> None:
        assert process.stdin is not None
        process.stdin.write(f"{json.dumps((begin, end))}\n")
        process.stdin.flush()

    try:
        pair = [start(), start()]
        begin = time.monotonic() + 0.1
        end = begin + seconds
        send_hits(pair[0], begin)
        send_hits(pair[1], begin + second)
        for turn, index in enumerate(killed_and_again, 1):
            time.sleep(max(0.0, begin + turn * 0.8 - time.monotonic()))
            pair[index].kill()
            assert pair[index].wait() == -signal.SIGKILL
            pair[index] = start()
            send_hits(pair[index], begin)
        for process in pair:
            assert process.wait(timeout=20) == 0
    finally:
        for process in running:
            process.kill()
            process.communicate()
    total, limit = (tmp_path / "tally").stat().st_size, rate * seconds + burst
    assert total == pytest.approx(limit, abs=0.02 * limit + 2)


_GROW = """
import random, sys
from pathlib import Path
from server.limits import _CELL, PROCESSES, Limiter

limiter = Limiter(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
chance = random.Random(int(sys.argv[2]))
for count in range(1500):
    # Upwards as a whole, but back and forth, so that each meets rows before and behind what the other reserved.
    limiter.take(chance.randrange(1, 40 * (count + 2)), 1, 10)
    if count % 100 == 0:
        limiter.sync()
print(sum(limiter.take(7, 1, 10) for _ in range(20)), flush=True)
"""


def test_two_processes_make_the_file_grow_at_once(tmp_path: Path) -> None:
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", _GROW, tmp_path, seed], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for seed in "12"
    ]
    try:
        assert [_say_and_hear(process, "") for process in pair] == ["ready"] * 2
        for process in pair:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        admitted_by = [int(_say_and_hear(process, "")) for process in pair]
        assert [process.wait(timeout=20) for process in pair] == [0, 0]
    finally:
        for process in pair:
            process.kill()
            process.communicate()
    # Whatever the two drew of it before.
    assert sum(admitted_by) <= 10 + 3
    assert (tmp_path / "limits").stat().st_size >= 512 * 40_000
