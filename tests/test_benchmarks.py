"""The benchmark runs, brings every figure, and finds out when hits are missing. How fast is no test's business."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from array import array
from pathlib import Path

import pytest

# The package is not installed with onepx, and `pytest`, unlike `python -m pytest`, does not look in the checkout.
sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.__main__ import RESULTS, WORK
from benchmarks.parts import uncounted
from benchmarks.processes import CHECKOUT, family
from benchmarks.steady import percentile, send

COMMAND = [sys.executable, "-m", "benchmarks", "--quick"]
needs_programs = pytest.mark.skipif(
    not shutil.which("wrk") or not (shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")),
    reason="nginx and wrk are not installed (`make bench` installs them)",
)

FIGURES = """
    nginx empty_gif with access log, N connections
    durable accepts, N connections
    durable accepts, N connections, p50
    durable accepts, N connections, p99
    sustained with digestion, N connections
    sustained with digestion, N connections, p50
    sustained with digestion, N connections, p99
    sustained with digestion, N connections, backlog at the end
    sustained with digestion, N connections, backlog at the end, in seconds of hits
    sustained with digestion, N connections, age of the oldest hit at the end
    sustained with digestion, N connections, most backlog meanwhile
    sustained with digestion, N connections, oldest hit meanwhile
    sustained with digestion, N connections, until the backlog was empty
    sustained with digestion, N connections, memory (Rss)
    sustained with digestion, N connections, memory (Pss)
    sustained with digestion, N connections, stop afterwards
    steady 5,000 hits/s, rate held
    steady 5,000 hits/s, p50
    steady 5,000 hits/s, p99
    steady 5,000 hits/s, p99.9
    steady 5,000 hits/s, of which the sender was late (p99)
    steady 5,000 hits/s, cost of the sender
    start to first answered hit, new data folder
    start to first answered hit, used data folder
    idle memory (Rss)
    idle memory (Pss)
    idle, stop
    dashboards, 20,000 events, totals, p95
    dashboards, 20,000 events, chart, p95
    dashboards, 20,000 events, event tokens, p95
    dashboards, 20,000 events, fields, p95
    dashboards, 20,000 events, breakdown, p95
    dashboards, 20,000 events, revenue, p95
    dashboards, 20,000 events, revenue chart, p95
    dashboards, 20,000 events, revenue by field, p95
    dashboards, 20,000 events, largest orders, p95
    dashboards, 20,000 events, latest orders, p95
    dashboards, 20,000 events, breakdown of 50 values, p95
    dashboards, 20,000 events, breakdown of as many values as events, p95
    dashboards, 20,000 events, traffic, p95
    dashboards, 20,000 events, limited, p95
    dashboards, 20,000 events, rejected, p95
    dashboards, 20,000 events, page of events, p95
    dashboards, 20,000 events, page of revenue, p95
    steady 5,000 hits/s, a dashboard of 20,000 events reloaded beside, p50
    steady 5,000 hits/s, a dashboard of 20,000 events reloaded beside, p99
    steady 5,000 hits/s, a dashboard of 20,000 events reloaded beside, p99.9
    steady 5,000 hits/s, a dashboard of 20,000 events reloaded beside, of which the sender was late (p99)
    steady 5,000 hits/s, a dashboard of 20,000 events reloaded beside, a reload (p50)
    2,000 people of 20,000 events, last seen, p95
    2,000 people of 20,000 events, last seen, next page, p95
    2,000 people of 20,000 events, first seen, p95
    2,000 people of 20,000 events, most events, p95
    2,000 people of 20,000 events, most revenue, p95
    2,000 people of 20,000 events, 100 with properties, as the API reads them, p95
    2,000 people of 20,000 events, with a property, p95
    2,000 people of 20,000 events, who did something often, p95
    2,000 people of 20,000 events, found by e-mail address, p95
    2,000 people of 20,000 events, found by a property, p95
    2,000 people of 20,000 events, page of one, p95
    20,000 events, persons counted twice, 30 days, p95
    20,000 events, retention by day, 30 days, p95
    20,000 events, retention by week, 90 days, p95
    20,000 events, retention after a signup by week, 90 days, p95
    20,000 events, funnel of 3 steps, 30 days, p95
    20,000 events, funnel with a filter and by a field, 30 days, p95
    20,000 events, funnel of 3 steps, 90 days, p95
    snippet fragment, p95
    digest alone
    digest alone, from the start until 60,000 hits are digested
    digest alone, memory (Rss)
    digest alone, event_id on half of the hits
    digest alone, event_id on half of the hits, from the start until 60,000 hits are digested
    digest alone, event_id on half of the hits, memory (Rss)
    digest alone, e-mail on half of the hits
    digest alone, e-mail on half of the hits, compared with none: time a row
    digest alone, e-mail on half of the hits, from the start until 60,000 hits are digested
    digest alone, e-mail on half of the hits, memory (Rss)
    digest alone, new e-mail on half of the hits
    digest alone, new e-mail on half of the hits, from the start until 60,000 hits are digested
    digest alone, new e-mail on half of the hits, memory (Rss)
"""


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def work_folders() -> set[Path]:
    return set(WORK.iterdir()) if WORK.exists() else set()


@needs_programs
def test_a_quick_run_brings_every_figure_and_accounts_for_every_hit(tmp_path: Path) -> None:
    output = tmp_path / "results.md"
    kept = RESULTS.read_bytes() if RESULTS.exists() else None
    folders = work_folders()
    done = subprocess.run([*COMMAND, "--output", output], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    text = output.read_text()
    assert "Every hit answered 200 was accepted, recorded and stored once." in text
    rows = re.findall(r"^\| (.+?) \| ([\d,.]+) (?:hits|rows|s|ms|MB|hits/s|rows/s|cores|x) \|", text, re.M)
    names = [name.strip() for name in FIGURES.strip().splitlines()]
    wanted = {name.replace("N", count) for name in names for count in ("64", "256")}
    assert {name for name, _ in rows} == wanted
    assert len(rows) == len(wanted)
    rates = {name: float(value.replace(",", "")) for name, value in rows if "backlog" not in name}
    assert [name for name, value in rates.items() if value <= 0] == []
    assert (RESULTS.read_bytes() if RESULTS.exists() else None) == kept
    assert work_folders() == folders


@needs_programs
def test_an_interrupted_run_leaves_nothing_behind() -> None:
    folders = work_folders()
    # The whole of it, which is not over before it is found at work; quick, which does not wait until nobody else is.
    command = [sys.executable, "-m", "benchmarks", "--quick"]
    run = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, process_group=0)
    try:
        while not any(b"/wrk" in command_of(pid) for pid in family(run.pid)):
            assert run.poll() is None
            time.sleep(0.02)
        started = family(run.pid)
        # Not as Ctrl-C does, which whatever was started in the background may have been told to ignore.
        os.kill(run.pid, signal.SIGTERM)
        assert run.wait(30) == 128 + signal.SIGTERM
        assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
        assert work_folders() == folders
    finally:
        run.kill()
        run.communicate()


async def test_a_stall_counts_for_every_hit_that_was_due_meanwhile() -> None:
    stalled = 0.7
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: 43\r\n\r\n" + b"." * 43
    loop = asyncio.get_running_loop()
    opens = 0.0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opens
        while not reader.at_eof():
            try:
                await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            opens = opens or loop.time() + stalled
            await asyncio.sleep(max(0.0, opens - loop.time()))
            writer.write(reply[:50])
            await writer.drain()
            writer.write(reply[50:])
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=128)
    async with server:
        measured = await asyncio.to_thread(send, server.sockets[0].getsockname()[1], "/", 500, 1)
    assert (measured.answered, measured.refused) == (500, 0)
    # 350 of 500 hits were due during the stall, though only 64 connections could wait in it.
    assert measured.p50 > 150
    assert measured.p999 > 600


@pytest.mark.parametrize(
    ("answered", "slack", "count", "wrong"),
    [
        (100, 0, 100, False),
        (100, 64, 164, False),
        (100, 64, 99, True),
        (100, 64, 165, True),
        (100, 0, 101, True),
    ],
)
def test_a_count_that_differs_from_the_answers_is_told(answered: int, slack: int, count: int, wrong: bool) -> None:
    found = uncounted("a run", answered, slack, {"stored": count, "accepted": answered})
    assert found == ([f"a run: {answered} hits were answered 200, but stored is {count}"] if wrong else [])


@pytest.mark.parametrize(
    ("values", "share", "value"),
    [
        ([7.0], 0.5, 7.0),
        ([1.0, 2.0], 0.5, 1.0),
        ([float(n) for n in range(1, 1001)], 0.999, 999.0),
        ([1.0, 9.0], 1, 9.0),
    ],
)
def test_a_percentile_is_a_value_that_was_measured(values: list[float], share: float, value: float) -> None:
    assert percentile(array("d", values), share) == value
