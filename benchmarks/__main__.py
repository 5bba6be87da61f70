"""`python -m benchmarks`: measure, print a table and write it to benchmarks/results.md."""

import argparse
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType

from benchmarks.parts import CONNECTION_COUNTS, FULL, PARTS, QUICK, STEADY_RATE, Bench, Figure, Plan, prepared
from benchmarks.processes import CHECKOUT, Failed, program
from benchmarks.steady import CONNECTIONS

# On the disk of the checkout: /tmp may be memory, where a sync costs nothing.
WORK = CHECKOUT / "benchmarks" / ".work"
RESULTS = CHECKOUT / "benchmarks" / "results.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure onepx against nginx.")
    parser.add_argument("--quick", action="store_true", help="a few seconds a part: whether it runs, not how fast")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part alone; may be given more than once")
    parser.add_argument("--output", type=Path, help="where to write the table (a full run: benchmarks/results.md)")
    arguments = parser.parse_args()
    # As Ctrl-C: every process that was started is stopped on the way out.
    signal.signal(signal.SIGTERM, _end)
    try:
        text, wrong = measure(QUICK if arguments.quick else FULL, arguments.only or list(PARTS))
    except Failed as error:
        sys.exit(f"benchmarks: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(text)
    output = arguments.output or (None if arguments.quick or arguments.only else RESULTS)
    if output is not None:
        output.write_text(text)
    sys.exit(1 if wrong else 0)


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def measure(plan: Plan, parts: list[str]) -> tuple[str, list[str]]:
    """(the results as Markdown, what did not add up). Raises Failed."""
    with prepared(plan, WORK) as bench:
        machine = describe_machine(bench.folder)
        # A machine's speed drifts: the ceiling is measured on both sides of what is compared with it.
        for name in [*parts, "nginx"] if "nginx" in parts and len(parts) > 1 else parts:
            print(f"{datetime.now(UTC):%H:%M:%S} {name}", file=sys.stderr, flush=True)
            bench.run(name)
        return report(bench, machine), bench.wrong


def describe_machine(folder: Path) -> list[str]:
    """What the figures depend on, a line each."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)
    tools = [
        subprocess.run([program(name), "-v"], capture_output=True, check=False, text=True) for name in ("nginx", "wrk")
    ]
    nginx, wrk = (re.search(r"nginx/\S+|wrk \S+", done.stdout + done.stderr) for done in tools)
    packages = ("granian", "uvloop", "msgspec", "chdb-core", "clickhouse-connect", "litestar", "piccolo")
    return [
        f"{os.cpu_count()} cores, {cpu[1] if cpu else platform.machine()}, "
        f"{int(memory[1]) / 1024**2 if memory else 0:.0f} GiB memory, Linux {platform.release()}; "
        f"disk: 32 KiB appended and synced in {1000 * sync_seconds(folder):.2f} ms (median)",
        f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in packages)}",
        f"{nginx[0] if nginx else 'nginx'} with as many workers as cores, {wrk[0] if wrk else 'wrk'} with 2 threads, "
        "on the same machine",
    ]


def sync_seconds(folder: Path) -> float:
    """Median time to append a group commit's worth of bytes and have it on disk."""
    times: list[float] = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(200):
            began = time.perf_counter()
            file.write(b"\x01" * 32_768)
            file.flush()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def report(bench: Bench, machine: list[str]) -> str:
    """The table with what it needs to be understood, as Markdown."""
    plan = bench.plan
    rows = ["| figure | value | of nginx | goal | |", "|---|---:|---:|---|---|"]
    for connections, rate in sorted(bench.ceilings.items()):
        rows.append(f"| nginx empty_gif with access log, {connections} connections | {rate:,.0f} hits/s | 1 | | |")
    rows += [_row(figure, bench.ceilings) for figure in bench.figures]
    lines = [
        "# Benchmark results",
        "",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `make bench`.",
        "",
        *(f"- {line}" for line in machine),
        f"- {plan.burst_seconds} s a burst, {plan.sustained_seconds} s sustained, {plan.steady_seconds} s steady at "
        f"{STEADY_RATE:,} hits/s over {CONNECTIONS} connections; {' and '.join(map(str, CONNECTION_COUNTS))} "
        f"connections of wrk; idle memory after {plan.settle_seconds:g} s; "
        f"{plan.journal_hits:,} hits digested alone, without and with addresses {plan.digest_turns} times in turns: "
        "the median, of memory the most. Load and server share the cores.",
        "- The hit: a signup with Base64 params, without a cookie, so that each makes a new visitor. Default settings, "
        "the tenant's limit lifted, one process (`collect`, or `serve` and the digest it starts).",
        "- Dashboards: of an app with a tenth of the events in its last 30 days, compared with the 30 days before; "
        f"{plan.dashboard_runs} times each. A page is a query of each of its panels at once, the default ones over "
        "30 days. Months that are over are one part each, as they become after some hours.",
        f"- People: one app's, {plan.people[1]:,} of them in {plan.people[0]:,} events, all known by an address; 50 a "
        "page where nothing else is said. The page of one is all that it shows, of somebody else each time.",
        f"- Retention and funnels: of an app with {plan.journey_events:,} events in 90 days of a tenth as many people.",
        "- nginx: the better of two measurements, first and last thing in the run. Latency at the steady rate "
        "counts from the time a hit was due. Rss is the sum over processes, shared pages counted in each; Pss counts "
        "them once.",
        "",
        *rows,
        "",
        "Every hit answered 200 was accepted, recorded and stored once." if not bench.wrong else "**What is wrong**",
        *(f"- {line}" for line in bench.wrong),
        *(["", *(f"- {note}" for note in bench.notes)] if bench.notes else []),
        "",
    ]
    return "\n".join(lines)


def _row(figure: Figure, ceilings: dict[int, float]) -> str:
    digits = 0 if figure.unit in ("hits/s", "rows/s", "hits", "MB") else 2
    value = f"{figure.value:,.{digits}f} {figure.unit}"
    ratio = goal = met = ""
    if figure.connections is None:
        if figure.goal is not None:
            goal = f"under {figure.goal:g} {figure.unit}"
            met = "met" if figure.value < figure.goal else "**missed**"
    elif figure.connections in ceilings:
        share = figure.value / ceilings[figure.connections]
        ratio = f"{share:.3f}"
        if figure.goal is not None and figure.aim is not None:
            goal = f"at least {figure.goal:g}, aim for {figure.aim:g}"
            met = "aim met" if share >= figure.aim else "met" if share >= figure.goal else "**missed**"
    return f"| {figure.name} | {value} | {ratio} | {goal} | {met} |"


if __name__ == "__main__":
    main()
