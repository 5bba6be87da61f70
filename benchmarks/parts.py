"""What is measured, a function each. Each server gets a fresh data folder; every hit answered is accounted for."""

import asyncio
import http.client
import json
import multiprocessing
import random
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlencode, urlsplit
from uuid import UUID

import msgspec

from benchmarks import dashboards as dashboards_of
from benchmarks.load import Load, steady, wrk
from benchmarks.processes import CHECKOUT, Failed, Running, busy_ticks, nginx, onepx, onepx_command, onepx_environment
from benchmarks.steady import percentile
from server.event_store import EventStore
from server.journal import SEGMENT_BYTES, HitTuple, Segment, encode_frame
from tenants.snippets import pixel_url

CONNECTION_COUNTS = (64, 256)
STEADY_RATE = 5_000
_DRAIN_SECONDS = 180.0
_COUNT_SECONDS = 2.0
# Share of all cores that others may use while we measure. Clock ticks tell it to within 5 %.
_CALM_SHARE = 0.08
_REPEATS = 2
_FRAME_HITS = 64
_OWNER = "bench@example.com"


@dataclass(frozen=True)
class Plan:
    """How long each measurement takes, in seconds, and how many hits are in the journal that is digested alone."""

    burst_seconds: int
    sustained_seconds: int
    steady_seconds: int
    settle_seconds: float
    journal_hits: int
    # How often in turns without and with addresses.
    digest_turns: int
    # Sizes of the event store whose dashboards are measured, and how often each panel is.
    dashboard_events: tuple[int, ...]
    dashboard_runs: int
    # Events of one app and its people, whose list is measured, as often.
    people: tuple[int, int]
    # Events of the app whose retention and funnels are measured; a tenth as many people.
    journey_events: int
    # How long to wait for other work on the machine to end before a measurement; 0 takes the machine as it is.
    calm_seconds: float


FULL = Plan(
    10, 60, 20, 10.0, 1_000_000, 4, (1_000_000, 10_000_000, 50_000_000), 40, (10_000_000, 1_000_000), 10_000_000, 120.0
)
QUICK = Plan(1, 3, 2, 0.5, 60_000, 1, (20_000,), 2, (20_000, 2_000), 20_000, 0.0)
# The size for which there are goals; hits are taken beside its dashboards.
_GOAL_EVENTS = 10_000_000
_LOAD_SECONDS = 1_800.0


@dataclass(frozen=True)
class Figure:
    """One line of the table. `connections` of the nginx figure it is compared with; `goal` to meet, `aim` beyond it."""

    name: str
    value: float
    unit: str
    connections: int | None = None
    goal: float | None = None
    aim: float | None = None


@dataclass
class Bench:
    """One run: its folder, what it found, and what did not add up."""

    plan: Plan
    folder: Path
    template: Path
    hit: str
    app_id: bytes
    token: str
    key: str
    figures: list[Figure] = field(default_factory=list[Figure])
    ceilings: dict[int, float] = field(default_factory=dict[int, float])
    wrong: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        connections: int | None = None,
        goal: float | None = None,
        aim: float | None = None,
    ) -> None:
        """Keep a figure; see Figure."""
        self.figures.append(Figure(name, value, unit, connections, goal, aim))

    def fresh(self) -> Path:
        """A data folder with one tenant without limits and one app, and no hits."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        shutil.copytree(self.template, folder, dirs_exist_ok=True)
        return folder

    @contextmanager
    def server(self, verb: str, data_dir: Path | None = None) -> Generator[tuple[Running, Path], None, None]:
        """(process, data folder) of `onepx VERB`, answering. It took one hit. The folder is removed afterwards."""
        data_dir = data_dir or self.fresh()
        try:
            with onepx(verb, data_dir) as running:
                running.wait_for_hit(self.hit)
                yield running, data_dir
        finally:
            shutil.rmtree(data_dir)

    def check(self, what: str, answered: int, slack: int, counted: dict[str, float]) -> None:
        """Note each count that is below `answered` or more than `slack` above it."""
        self.wrong += uncounted(what, answered, slack, counted)

    def run(self, part: str) -> None:
        """Run a part, each measurement again that other work on the machine disturbed; note when that did not help."""
        for measure in PARTS[part]:
            self._run_undisturbed(measure)

    def _run_undisturbed(self, measure: Callable[["Bench"], None]) -> None:
        repeats = _REPEATS if self.plan.calm_seconds else 0
        figures = len(self.figures)
        while True:
            self._wait_for_calm()
            before = busy_ticks()
            try:
                measure(self)
            except Failed as error:
                # The rest is worth measuring all the same.
                self.wrong.append(str(error))
                return
            available, used, ours = (after - then for after, then in zip(busy_ticks(), before, strict=True))
            share = (used - ours) / available
            if share <= _CALM_SHARE:
                return
            if not repeats:
                named = next((figure.name for figure in self.figures[figures:]), "nginx")
                self.notes.append(f"Other work took {share:.0%} of the machine during: {named}.")
                return
            repeats -= 1
            del self.figures[figures:]

    def _wait_for_calm(self) -> None:
        until = time.monotonic() + self.plan.calm_seconds
        while time.monotonic() < until:
            available, used, _ = busy_ticks()
            time.sleep(1)
            available_after, used_after, _ = busy_ticks()
            if used_after - used <= _CALM_SHARE * (available_after - available):
                return
            time.sleep(4)


def uncounted(what: str, answered: int, slack: int, counted: dict[str, float]) -> list[str]:
    """A sentence for each count that is not `answered`, or up to `slack` more."""
    return [
        f"{what}: {answered:,} hits were answered 200, but {name} is {count:,.0f}"
        for name, count in counted.items()
        if not answered <= count <= answered + slack
    ]


@contextmanager
def prepared(plan: Plan, work: Path) -> Generator[Bench, None, None]:
    """A run in a folder of its own under `work`, removed at the end."""
    work.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=work))
    # nginx started by root writes as another user.
    folder.chmod(0o755)
    try:
        template = folder / "template"

        def run(*arguments: str) -> dict[str, str]:
            command = onepx_command(*arguments, "--json")
            done = subprocess.run(command, capture_output=True, env=onepx_environment(template, 8000), check=False)
            if done.returncode != 0:
                raise Failed(f"onepx {arguments[0]} failed: {done.stderr.decode()}")
            found: dict[str, str] = json.loads(done.stdout)
            return found

        owner = _OWNER
        run("tenant", "create", "--email", owner, "--name", "Benchmark")
        run("tenant", "limit", "--tenant", owner, "--rate", "1000000", "--burst", "1000000")
        app = run("app", "create", "--tenant", owner, "--name", "Benchmark")
        key = run("key", "create", "--tenant", owner, "--name", "Benchmark")["key"]
        values = {"method": "email", "page": "signup.html", "email": "john.doe@example.com"}
        address = urlsplit(pixel_url("http://127.0.0.1", app["token"], "event", "signup", params=values))
        yield Bench(
            plan, folder, template, f"{address.path}?{address.query}", UUID(app["app"]).bytes, app["token"], key
        )
    finally:
        shutil.rmtree(folder)


def ceiling(bench: Bench, connections: int) -> None:
    """nginx, as fast as it gets: the better of the measurements at the start and at the end of a run."""
    folder = Path(tempfile.mkdtemp(dir=bench.folder))
    folder.chmod(0o755)
    with nginx(folder) as running:
        running.wait_for_hit(bench.hit)
        load = _load(bench, running, f"nginx, {connections} connections", connections, bench.plan.burst_seconds)
    shutil.rmtree(folder)
    bench.ceilings[connections] = max(bench.ceilings.get(connections, 0.0), load.rate)


def accepts(bench: Bench, connections: int) -> None:
    """Durable accepts alone: every hit a new visitor, the dearest kind, synced before it is answered."""
    what = f"durable accepts, {connections} connections"
    with bench.server("collect") as (running, _):
        load = _load(bench, running, what, connections, bench.plan.burst_seconds)
        metrics = running.metrics()
    bench.check(
        what,
        load.ok + 1,
        connections,
        {"accepted": metrics[_ACCEPTED], "in the journal": metrics["onepx_journal_hits"]},
    )
    bench.add(what, load.rate, "hits/s", connections=connections, goal=0.22, aim=0.35)
    bench.add(f"{what}, p50", load.p50, "ms")
    bench.add(f"{what}, p99", load.p99, "ms")


_ACCEPTED = 'onepx_pixel_requests_total{answer="accepted"}'
_RECORDED = 'onepx_hits_total{outcome="recorded"}'


def sustained(bench: Bench, connections: int) -> None:
    """Accepting and digesting at once, in `onepx serve`; then how long until the backlog is empty."""
    what = f"sustained with digestion, {connections} connections"
    most_rss = most_pss = most_hits = most_seconds = 0.0
    with bench.server("serve") as (running, data_dir):

        def look() -> None:
            nonlocal most_rss, most_pss, most_hits, most_seconds
            rss, pss = running.memory()
            metrics = running.metrics()
            most_rss, most_pss = max(most_rss, rss), max(most_pss, pss)
            most_hits = max(most_hits, metrics["onepx_journal_hits"])
            most_seconds = max(most_seconds, metrics["onepx_digest_lag_seconds"])

        load = _load(bench, running, what, connections, bench.plan.sustained_seconds, look)
        at_end = running.metrics()
        drained, metrics = wait_until_digested(running)
        look()
        stopped = running.stop()
        rows, ids = stored(data_dir)
    left = at_end["onepx_journal_hits"]
    bench.check(
        what,
        load.ok + 1,
        connections,
        {
            "accepted": metrics[_ACCEPTED],
            "recorded": metrics[_RECORDED],
            "rows in the event store": rows,
            "ids in the event store": ids,
        },
    )
    if rows != metrics[_ACCEPTED]:
        bench.wrong.append(f"{what}: {metrics[_ACCEPTED]:,.0f} hits accepted, {rows:,} rows stored")
    bench.add(what, load.rate, "hits/s", connections=connections, goal=0.12, aim=0.2)
    bench.add(f"{what}, p50", load.p50, "ms")
    bench.add(f"{what}, p99", load.p99, "ms")
    bench.add(f"{what}, backlog at the end", left, "hits")
    bench.add(f"{what}, backlog at the end, in seconds of hits", left / load.rate, "s", goal=2.0)
    bench.add(f"{what}, age of the oldest hit at the end", at_end["onepx_digest_lag_seconds"], "s")
    bench.add(f"{what}, most backlog meanwhile", most_hits, "hits")
    bench.add(f"{what}, oldest hit meanwhile", most_seconds, "s")
    bench.add(f"{what}, until the backlog was empty", drained, "s")
    bench.add(f"{what}, memory (Rss)", most_rss, "MB", goal=1000.0)
    bench.add(f"{what}, memory (Pss)", most_pss, "MB")
    bench.add(f"{what}, stop afterwards", stopped, "s", goal=5.0)


def constant(bench: Bench) -> None:
    """A steady rate well below what the server can bear: how long a visitor waits."""
    what = f"steady {STEADY_RATE:,} hits/s"
    with bench.server("serve") as (running, data_dir):
        measured = steady(running.port, bench.hit, STEADY_RATE, bench.plan.steady_seconds)
        _, metrics = wait_until_digested(running)
        running.stop()
        rows, ids = stored(data_dir)
    if measured.refused:
        bench.wrong.append(f"{what}: {measured.refused:,} hits not answered 200")
    answered = measured.answered - measured.refused + 1
    bench.check(what, answered, 0, {"recorded": metrics[_RECORDED], "rows stored": rows, "ids stored": ids})
    # The last answer comes after the last hit was due.
    if measured.rate < STEADY_RATE * 0.99:
        bench.notes.append(f"The steady load was to be {STEADY_RATE:,} hits/s and was {measured.rate:,.0f}.")
    bench.add(f"{what}, rate held", measured.rate, "hits/s")
    bench.add(f"{what}, p50", measured.p50, "ms", goal=3.0)
    bench.add(f"{what}, p99", measured.p99, "ms", goal=12.0)
    bench.add(f"{what}, p99.9", measured.p999, "ms")
    bench.add(f"{what}, of which the sender was late (p99)", measured.late_p99, "ms")
    bench.add(f"{what}, cost of the sender", measured.cores, "cores")


def idle(bench: Bench) -> None:
    """Start, memory at rest, stop: on a new data folder, then once more on what that left."""
    data_dir = bench.fresh()
    try:
        for folder in ("new", "used"):
            with onepx("serve", data_dir) as running:
                started = running.wait_for_hit(bench.hit)
                bench.add(f"start to first answered hit, {folder} data folder", started, "s", goal=3.0)
                if folder == "used":
                    time.sleep(bench.plan.settle_seconds)
                    rss, pss = running.memory()
                    bench.add("idle memory (Rss)", rss, "MB", goal=350.0)
                    bench.add("idle memory (Pss)", pss, "MB")
                    bench.add("idle, stop", running.stop(), "s", goal=5.0)
    finally:
        shutil.rmtree(data_dir)


# What half of the hits carry that are digested: an event_id to claim; an e-mail address of people who come back, or of
# somebody new each time.
Carrying = Literal["", "event_id", "e-mail", "new e-mail"]


class Digested(msgspec.Struct):
    """How a full journal was digested: rows a second, seconds from the start until it was empty, memory in MB."""

    rate: float
    empty: float
    rss: float


def digest(bench: Bench, carrying: Carrying) -> None:
    """The digest alone, from a full journal."""
    _add_digested(bench, carrying, [_digested(bench, carrying)])


def addresses(bench: Bench) -> None:
    """The digest alone, without and with addresses in turns: from one minute to the next a machine's speed differs.

    Every other turn in the other order: what comes second has a warmer machine and a fuller disk.
    """
    kinds: tuple[Carrying, Carrying] = ("", "e-mail")
    turns: dict[Carrying, list[Digested]] = {kind: [] for kind in kinds}
    for turn in range(bench.plan.digest_turns):
        for kind in kinds if turn % 2 == 0 else kinds[::-1]:
            turns[kind].append(_digested(bench, kind))
    without, with_them = turns[""], turns["e-mail"]
    _add_digested(bench, "", without)
    _add_digested(bench, "e-mail", with_them)
    times = [before.rate / after.rate for before, after in zip(without, with_them, strict=True)]
    # A fifth fewer rows a second.
    what = "digest alone, e-mail on half of the hits, compared with none: time a row"
    bench.add(what, statistics.median(times), "x", goal=1.25)


def _add_digested(bench: Bench, carrying: Carrying, turns: list[Digested]) -> None:
    what = f"digest alone, {carrying} on half of the hits" if carrying else "digest alone"
    bench.add(what, statistics.median(turn.rate for turn in turns), "rows/s")
    empty = statistics.median(turn.empty for turn in turns)
    bench.add(f"{what}, from the start until {bench.plan.journal_hits:,} hits are digested", empty, "s")
    bench.add(f"{what}, memory (Rss)", max(turn.rss for turn in turns), "MB")


def _digested(bench: Bench, carrying: Carrying) -> Digested:
    what = f"digest alone, carrying {carrying or 'nothing'}"
    hits = bench.plan.journal_hits
    data_dir = bench.fresh()
    _fill_journal(data_dir / "journal", bench, hits, carrying)
    with bench.server("serve", data_dir) as (running, _):
        samples: list[tuple[float, float]] = []
        most_rss = 0.0
        while True:
            metrics = running.metrics()
            rows = metrics["onepx_digest_rows_total"]
            samples.append((metrics["onepx_digest_seconds_total"], rows))
            if metrics["onepx_journal_hits"] == 0 and rows > hits:
                break
            if time.perf_counter() - running.started > _DRAIN_SECONDS:
                raise Failed(f"{what}: {hits - rows:,.0f} hits are left after {_DRAIN_SECONDS:.0f} s")
            most_rss = max(most_rss, running.memory()[0])
            # The digest tells the time itself: whoever looks more often takes a part of the machine from it.
            time.sleep(0.5)
        empty = time.perf_counter() - running.started
        running.stop()
        stored_rows, stored_ids = stored(data_dir)
    # One more: the hit that found out whether the server answers.
    counted = {"recorded": metrics[_RECORDED], "rows stored": stored_rows, "ids stored": stored_ids}
    bench.check(what, hits + 1, 0, counted)
    (began, first), (ended, last) = samples[0], samples[-1]
    if ended == began:
        raise Failed(f"{what}: all was digested before the first look; the journal is too short")
    return Digested((last - first) / (ended - began), empty, most_rss)


def fragment(bench: Bench) -> None:
    """The snippet generator's answer to a change in its form, over a connection that is kept."""
    values = {"method": "email", "page": "signup.html", "email": "john.doe@example.com"}
    asked = {"category": "event", "event_token": "signup", "as": "json", "json": json.dumps(values), "target": "html"}
    path = f"/apps/{UUID(bytes=bench.app_id)}/snippet?{urlencode(asked)}"
    with bench.server("serve") as (running, data_dir):
        password = secrets.token_urlsafe()
        command = onepx_command("user", "password", "--email", _OWNER, f"--password={password}")
        subprocess.run(command, capture_output=True, env=onepx_environment(data_dir, running.port), check=True)
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
        connection.request("POST", "/login", urlencode({"email": _OWNER, "password": password}), headers)
        reply = connection.getresponse()
        reply.read()
        headers = {"Cookie": (reply.headers["Set-Cookie"] or "").partition(";")[0], "HX-Request": "true"}
        times = array("d")
        for _ in range(5 * bench.plan.dashboard_runs + 1):
            began = time.perf_counter()
            connection.request("GET", path, headers=headers)
            reply = connection.getresponse()
            body = reply.read()
            times.append(1000 * (time.perf_counter() - began))
            if reply.status != 200 or b"event.gif" not in body:
                raise Failed(f"snippet fragment: answered {reply.status}")
        connection.close()
        running.stop()
    bench.add("snippet fragment, p95", percentile(array("d", sorted(times[1:])), 0.95), "ms", goal=5.0)


def dashboards(bench: Bench) -> None:
    """Reports of an app with a tenth of the store's events in its last 30 days; then with hits coming in beside."""
    data_dir = bench.fresh()
    try:
        (data_dir / "tmp").mkdir(exist_ok=True)
        with onepx("serve", data_dir) as running:
            running.wait_for_hit(bench.hit)  # it makes the tables
        before = 0
        for events in bench.plan.dashboard_events:
            _panels(bench, data_dir, events, before)
            if events == _GOAL_EVENTS or len(bench.plan.dashboard_events) == 1:
                _beside_dashboards(bench, data_dir, events)
            before = events
    finally:
        shutil.rmtree(data_dir)


def _panels(bench: Bench, data_dir: Path, events: int, before: int) -> None:
    # In a process of its own: the engine opens one folder a process.
    numbers = map(str, (events, before, bench.plan.dashboard_runs))
    command = [sys.executable, "-m", "benchmarks.dashboards", str(data_dir), str(UUID(bytes=bench.app_id)), *numbers]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, timeout=_LOAD_SECONDS, check=False)
    if done.returncode != 0:
        raise Failed(f"dashboards failed: {done.stderr.decode()[-2000:]}")
    measured = msgspec.json.decode(done.stdout, type=dashboards_of.Measured)
    what = f"dashboards, {events:,} events"
    goals = events == _GOAL_EVENTS
    for name, times in measured.panels.items():
        bench.add(f"{what}, {name}, p95", percentile(array("d", times), 0.95), "ms", goal=120.0 if goals else None)
    for name, times in (("page of events", measured.events_page), ("page of revenue", measured.revenue_page)):
        bench.add(f"{what}, {name}, p95", percentile(array("d", times), 0.95), "ms", goal=600.0 if goals else None)


def people(bench: Bench) -> None:
    """The list of an app's people, in every order and by what they did and are; and the page of one."""
    data_dir = bench.fresh()
    try:
        (data_dir / "tmp").mkdir(exist_ok=True)
        with onepx("serve", data_dir) as running:
            running.wait_for_hit(bench.hit)  # it makes the tables
        events, count = bench.plan.people
        numbers = map(str, (events, count, bench.plan.dashboard_runs))
        command = [sys.executable, "-m", "benchmarks.people", str(data_dir), str(UUID(bytes=bench.app_id)), *numbers]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, timeout=_LOAD_SECONDS, check=False)
        if done.returncode != 0:
            raise Failed(f"people failed: {done.stderr.decode()[-2000:]}")
        measured = msgspec.json.decode(done.stdout, type=dict[str, list[float]])
        for name, taken in measured.items():
            goal = 300.0 if events == _GOAL_EVENTS else None
            what = f"{count:,} people of {events:,} events, {name}, p95"
            bench.add(what, percentile(array("d", taken), 0.95), "ms", goal=goal)
    finally:
        shutil.rmtree(data_dir)


def _beside_dashboards(bench: Bench, data_dir: Path, events: int) -> None:
    what = f"steady {STEADY_RATE:,} hits/s, a dashboard of {events:,} events reloaded beside"
    with onepx("serve", data_dir) as running:
        running.wait_for_hit(bench.hit)
        headers = {"Authorization": f"Bearer {bench.key}"}
        reloading = dashboards_of.Reloading(lambda address: running.get(address, headers)[0], bench.token)
        with ThreadPoolExecutor(1) as visitor:
            visitor.submit(reloading.run)
            measured = steady(running.port, bench.hit, STEADY_RATE, bench.plan.steady_seconds)
            reloading.end()
        _, metrics = wait_until_digested(running)
        running.stop()
    answered = measured.answered - measured.refused + 1
    bench.check(what, answered, 0, {"recorded": metrics[_RECORDED]})
    if measured.refused or reloading.refused:
        bench.wrong.append(f"{what}: {measured.refused:,} hits and {reloading.refused:,} panels not answered 200")
    bench.add(f"{what}, p50", measured.p50, "ms")
    bench.add(f"{what}, p99", measured.p99, "ms", goal=25.0)
    bench.add(f"{what}, p99.9", measured.p999, "ms")
    bench.add(f"{what}, of which the sender was late (p99)", measured.late_p99, "ms")
    times = array("d", sorted(reloading.times))
    bench.add(f"{what}, a reload (p50)", percentile(times, 0.5), "ms")


def journeys(bench: Bench) -> None:
    """Retention and funnels of an app with a million people."""
    data_dir = bench.fresh()
    try:
        (data_dir / "tmp").mkdir(exist_ok=True)
        with onepx("serve", data_dir) as running:
            running.wait_for_hit(bench.hit)  # it makes the tables
        events = bench.plan.journey_events
        numbers = map(str, (events, bench.plan.dashboard_runs))
        command = [sys.executable, "-m", "benchmarks.journeys", str(data_dir), str(UUID(bytes=bench.app_id)), *numbers]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, timeout=_LOAD_SECONDS, check=False)
    finally:
        shutil.rmtree(data_dir)
    if done.returncode != 0:
        raise Failed(f"journeys failed: {done.stderr.decode()[-2000:]}")
    for name, times in msgspec.json.decode(done.stdout, type=dict[str, list[float]]).items():
        goal = 300.0 if events == _GOAL_EVENTS else None
        bench.add(f"{events:,} events, {name}, p95", percentile(array("d", times), 0.95), "ms", goal=goal)


PARTS: dict[str, list[Callable[[Bench], None]]] = {
    "nginx": [partial(ceiling, connections=count) for count in CONNECTION_COUNTS],
    "accepts": [partial(accepts, connections=count) for count in CONNECTION_COUNTS],
    "sustained": [partial(sustained, connections=count) for count in CONNECTION_COUNTS],
    "steady": [constant],
    "idle": [idle],
    "fragment": [fragment],
    "dashboards": [dashboards],
    "people": [people],
    "retention": [journeys],
    "digest": [addresses, partial(digest, carrying="event_id"), partial(digest, carrying="new e-mail")],
}


def _load(
    bench: Bench, running: Running, what: str, connections: int, seconds: int, beside: Callable[[], None] | None = None
) -> Load:
    load = wrk(bench.folder, f"http://127.0.0.1:{running.port}{bench.hit}", connections, seconds, beside)
    if load.refused or load.broken:
        bench.wrong.append(f"{what}: {load.refused:,} hits not answered 200, {load.broken:,} socket errors")
    return load


def wait_until_digested(running: Running) -> tuple[float, dict[str, float]]:
    """(seconds until the journal is empty, the metrics then). Raises Failed."""
    began = time.perf_counter()
    while (metrics := running.metrics())["onepx_journal_hits"]:
        if time.perf_counter() - began > _DRAIN_SECONDS:
            raise Failed(f"the backlog is not empty after {_DRAIN_SECONDS:.0f} s")
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    # The last batch leaves the journal a moment before it is counted.
    until = time.monotonic() + _COUNT_SECONDS
    while metrics["onepx_digest_rows_total"] < metrics[_ACCEPTED] and time.monotonic() < until:
        metrics = running.metrics()
    return seconds, metrics


def stored(data_dir: Path) -> tuple[int, int]:
    """(rows, different ids) of the events of a stopped server, asked of the event store itself."""
    # The engine opens one folder a process.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_count_stored, data_dir).result()


def _count_stored(data_dir: Path) -> tuple[int, int]:
    store = EventStore(f"chdb://{data_dir / 'events'}", data_dir / "tmp")
    counts = asyncio.run(store.query("SELECT count() AS hits, uniqExact(id) AS ids FROM events"))[0]
    store.close()
    return counts["hits"], counts["ids"]


def _query(category: int, number: int, field: str) -> bytes:
    """A hit of somebody's: `field` holds their address, and makes them known if it is `email`."""
    values = {"method": "email", "page": f"page-{number % 50}.html", field: f"john.doe.{number}@example.com"}
    if category:
        url = pixel_url("http://127.0.0.1", "0" * 24, "revenue", "checkout", params=values, amount=number * 7)
    else:
        url = pixel_url("http://127.0.0.1", "0" * 24, "event", "signup", params=values)
    return urlsplit(url).query.encode()


def _fill_journal(folder: Path, bench: Bench, count: int, carrying: Carrying) -> None:
    """Hits as a busy hour leaves them: a tenth revenue, people who come back, some hundred kinds of browsers."""
    draw = random.Random(1)
    # With as many people each comes back twenty times.
    people = max(1, count // 20)
    visitors = [UUID(int=draw.getrandbits(128), version=4).bytes for _ in range(people)]
    agents = [
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/{100 + number}.0.0.0".encode()
        for number in range(100)
    ]
    networks = [f"10.{number // 250}.{number % 250}.0/24" for number in range(1_000)]
    began = int((time.time() - 3600) * 1000)
    folder.mkdir(mode=0o700, exist_ok=True)
    segment = Segment(folder)
    frame: list[HitTuple] = []
    for number in range(count):
        category = int(draw.random() < 0.1)
        half, who = bool(number % 2), draw.randrange(people)
        new = half and carrying == "new e-mail"
        query = _query(category, number if new else who, "email" if half and "e-mail" in carrying else "about")
        if half and carrying == "event_id":
            query += b"&event_id=order-%d" % number
        frame.append(
            (
                began + number * 3_600_000 // count,
                bench.app_id,
                category,
                query,
                UUID(int=draw.getrandbits(128), version=4).bytes if new else visitors[who],
                False,
                draw.choice(networks),
                draw.choice(agents),
                b"https://shop.example.com/cart",
                b"",
                0,
                new,
                "USD",
            )
        )
        if len(frame) == _FRAME_HITS or number == count - 1:
            if segment.size >= SEGMENT_BYTES:
                segment.close()
                segment = Segment(folder)
            segment.append(encode_frame(frame, []))
            frame = []
    segment.close()
