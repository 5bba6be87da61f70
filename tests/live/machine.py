"""A machine under test: a data folder, the onepx processes on it, their logs, and a client that counts every byte."""

import itertools
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

T = TypeVar("T")

ONEPX = Path(sys.executable).with_name("onepx")
START_SECONDS = 15.0
# pixel-protocol: what a hit became can be read, and a token change counts, within this.
SOON = 2.0


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition: Callable[[], T], seconds: float) -> T:
    """The first true value of `condition`; fails when there is none within `seconds`."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} s; last seen: {found!r}"
        time.sleep(0.02)
    return found


@dataclass(frozen=True)
class Reply:
    """An HTTP reply as it came over the wire; header names keep their letter case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class Client:
    """One keep-alive connection at a time. Raises ConnectionError when the server ends it without a whole reply."""

    def __init__(self, port: int, timeout: float = 20.0) -> None:
        self.address = ("127.0.0.1", port)
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._unread = b""
        self._used_at = 0.0

    def send(self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Reply:
        """One request and its reply."""
        self.begin(target, method, headers)
        return self.finish(method)

    def begin(self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> None:
        """Send a request; its reply is for `finish`."""
        lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *(f"{k}: {v}" for k, v in (headers or {}).items())]
        self.write("\r\n".join([*lines, "", ""]).encode())

    def write(self, request: bytes) -> None:
        """Send whatever `request` is."""
        # Well before the server ends a connection that idles.
        if time.monotonic() - self._used_at > 5.0:
            self.close()
        self._used_at = time.monotonic()
        if self._socket is None:
            self._socket = socket.create_connection(self.address, timeout=self._timeout)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._unread = b""
        try:
            self._socket.sendall(request)
        except OSError:
            self.close()
            raise

    def finish(self, method: str = "GET") -> Reply:
        """The reply to the oldest request that has none yet."""
        try:
            reply = self._receive(method)
        except OSError:
            self.close()
            raise
        if "close" in reply.all("connection"):
            self.close()
        return reply

    def _receive(self, method: str) -> Reply:
        while b"\r\n\r\n" not in self._unread:
            self._more()
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        reply = Reply(int(first.split(" ")[1]), headers, b"")
        length = int((reply.all("content-length") or ["0"])[0])
        if method == "HEAD" or reply.status in (204, 304):
            length = 0
        while len(self._unread) < length:
            self._more()
        body, self._unread = self._unread[:length], self._unread[length:]
        return Reply(reply.status, headers, body)

    def _more(self) -> None:
        assert self._socket is not None
        data = self._socket.recv(65_536)
        if not data:
            raise ConnectionError("the server ended the connection")
        self._unread += data

    @property
    def unread(self) -> bytes:
        """What came beyond the last reply."""
        return self._unread

    def close(self) -> None:
        """End the connection; the next request makes a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def processes_below(pid: int) -> list[int]:
    """Ids of the process's living descendants."""
    found: list[int] = []
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            status = _status(int(entry.name))
            if status is not None and status[0] != "Z":
                parents.setdefault(status[1], []).append(int(entry.name))
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits to be collected does not."""
    status = _status(pid)
    return status is not None and status[0] != "Z"


def _status(pid: int) -> tuple[str, int] | None:
    """(state letter, parent's id) of a process, None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, parent = text.rpartition(")")[2].split()[:2]
    return state, int(parent)


class Process:
    """A running `onepx serve` or `onepx collect`."""

    def __init__(self, popen: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
        self.port = port
        self.log = log
        self.client = Client(port)
        self._popen = popen
        self._log_lines_read = 0

    @property
    def pid(self) -> int:
        return self._popen.pid

    def get(self, target: str, headers: Mapping[str, str] | None = None) -> Reply:
        """GET over a connection of its own."""
        client = Client(self.port)
        try:
            return client.send(target, headers=headers)
        finally:
            client.close()

    def health(self) -> tuple[int, dict[str, Any]]:
        """What /healthz says: (HTTP status, report)."""
        reply = self.get("/healthz")
        return reply.status, reply.json()

    def metric(self, name: str) -> float:
        """A figure of /metrics; labels belong to the name."""
        for line in self.get("/metrics").body.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"/metrics has no {name}")

    def digest_pid(self) -> int:
        """The id of the digest's process."""
        return wait_until(lambda: processes_below(self.pid), 5.0)[0]

    def logged(self) -> list[dict[str, Any]]:
        """Its log lines so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def unread_log(self) -> list[str]:
        """The lines it logged since this was last asked."""
        lines = self.log.read_text().splitlines()[self._log_lines_read :]
        self._log_lines_read += len(lines)
        return lines

    def running(self) -> bool:
        return self._popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Its exit status; raises TimeoutExpired."""
        return self._popen.wait(seconds)

    def stop(self, seconds: float = 8.0) -> int:
        """SIGTERM and wait; returns the exit status."""
        self.client.close()
        if self.running():
            self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def kill(self) -> None:
        """SIGKILL, and wait until nothing of it is left: what it started ends by itself."""
        below = processes_below(self.pid)
        self.client.close()
        self._popen.kill()
        self._popen.wait()
        wait_until(lambda: not any(alive(pid) for pid in below), 5.0)


@dataclass
class App:
    """An app, and what may read it."""

    token: str
    tenant: "Tenant"

    def target(self, query: str, category: str = "event") -> str:
        return f"/{self.token}/{category}.gif?{query}"

    def hit(
        self,
        query: str,
        category: str = "event",
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """A hit on the machine's first process."""
        return self.tenant.machine.process.client.send(self.target(query, category), method, headers)

    def events(self, filters: str = "", limit: int = 1000) -> list[dict[str, Any]]:
        """All events, newest first, over as many pages as they take."""
        return self._read("events", filters, limit)

    def rejections(self) -> list[dict[str, Any]]:
        """All rejections, newest first."""
        return self._read("rejections", "", 1000)

    def _read(self, what: str, filters: str, limit: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        cursor = ""
        while True:
            reply = self.tenant.get(f"/api/v1/apps/{self.token}/{what}?limit={limit}&cursor={cursor}&{filters}")
            assert reply.status == 200, reply
            page = reply.json()
            assert len(page[what]) <= limit
            rows += page[what]
            if page["next"] is None:
                return rows
            cursor = quote(page["next"])


@dataclass
class Tenant:
    """A tenant with an API key."""

    machine: "Machine"
    email: str
    key: str

    def app(self, currency: str = "USD") -> App:
        made = self.machine.run("app", "create", "--tenant", self.email, "--name", "Shop", "--currency", currency)
        self.machine.secrets.append(made["token"])
        return App(made["token"], self)

    def rotate(self, app: App, overlap_hours: float) -> App:
        """The same app under a new token."""
        made = self.machine.run(
            "app", "rotate", "--tenant", self.email, "--token", app.token, "--overlap-hours", str(overlap_hours)
        )
        self.machine.secrets.append(made["token"])
        return App(made["token"], self)

    def revoke(self, app: App) -> None:
        self.machine.run("app", "revoke", "--tenant", self.email, "--token", app.token)

    def limit(self, rate: int, burst: int) -> None:
        self.machine.run("tenant", "limit", "--tenant", self.email, "--rate", str(rate), "--burst", str(burst))

    def get(self, target: str) -> Reply:
        return self.machine.process.get(target, {"Authorization": f"Bearer {self.key}"})


@dataclass
class Machine:
    """A data folder in `folder`, and the processes started on it. `environ`: settings of all of them."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict[str, str])
    processes: list[Process] = field(default_factory=list[Process])
    # Must not show up in any log.
    secrets: list[str] = field(default_factory=lambda: ["event_token=", "params=", "amount=", "vid=", "Bearer"])
    # Exceptions its logs may name.
    tolerated: set[str] = field(default_factory=set[str])

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def process(self) -> Process:
        """The oldest process that runs."""
        return next(process for process in self.processes if process.running())

    def _environ(self, more: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return {
            **inherited,
            "HOME": str(self.folder),
            "ONEPX_DATA_DIR": str(self.data_dir),
            # Nobody there: no test may ask Facebook.
            "ONEPX_GRAPH_URL": "http://127.0.0.1:9",
            **self.environ,
            **more,
        }

    def run(self, *arguments: str) -> dict[str, Any]:
        """What `onepx … --json` prints."""
        done = subprocess.run(
            [ONEPX, *arguments, "--json"],
            cwd=self.folder,
            env=self._environ({}),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def start(self, verb: str = "serve", *arguments: str, **environ: str) -> Process:
        """Start `onepx serve` or `collect` on a free port and wait until it takes requests."""
        port = free_port()
        log = self.folder / f"{len(self.processes):02}-{verb}.log"
        with log.open("wb") as errors:
            popen = subprocess.Popen(
                [ONEPX, verb, *arguments],
                cwd=self.folder,
                env=self._environ({"ONEPX_PORT": str(port), **environ}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        process = Process(popen, port, log)
        self.processes.append(process)

        def answers() -> bool:
            assert process.running(), f"{verb} ended with status {popen.returncode}: {log.read_text()}"
            try:
                return process.get("/healthz/live").status == 200
            except OSError:
                return False

        wait_until(answers, START_SECONDS)
        return process

    def tenant(self) -> Tenant:
        """A new tenant."""
        email = f"owner-{secrets.token_hex(4)}@example.org"
        self.run("tenant", "create", "--email", email, "--name", "Alice")
        key = self.run("key", "create", "--tenant", email, "--name", "reader", "--may-delete")["key"]
        self.secrets += [email, key]
        return Tenant(self, email, key)

    def stored(self, query: str) -> list[list[Any]]:
        """Rows of the embedded event store, read from its folder: no `serve` may run. Times come as text."""
        program = (
            "import clickhouse_connect, json, sys\n"
            "client = clickhouse_connect.get_client(dsn=sys.argv[1])\n"
            "json.dump(client.query(sys.argv[2]).result_rows, sys.stdout, default=str)\n"
            "client.close()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, f"chdb://{self.data_dir}/events", query],
            cwd=self.folder,
            env=self._environ({}),
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def digested(self) -> bool:
        """Whether no hit waits in the journal."""
        return self.process.health()[1]["checks"]["backlog"]["hits"] == 0

    def stop(self) -> None:
        """Stop what still runs."""
        for process in self.processes:
            if process.running():
                try:
                    process.stop()
                except subprocess.TimeoutExpired:
                    process.kill()

    def close(self) -> None:
        """Stop what still runs; show the logs, which pytest prints when the test failed, and look through them."""
        self.stop()
        self.check_logs()

    def check_logs(self) -> None:
        """Every new log line is a JSON object, tells no exception, and repeats nothing that was sent."""
        new = [(process, process.unread_log()) for process in self.processes]
        for process, lines in new:
            print(f"--- {process.log.name}", *lines, sep="\n")
        for line in itertools.chain.from_iterable(lines for _, lines in new):
            assert not re.search(r"Traceback|panicked", line), line
            told = json.loads(line)
            assert "event" in told
            assert told.get("exception") in (None, *self.tolerated), line
            assert not [secret for secret in self.secrets if secret in line], line


class Load:
    """Keep-alive connections that send hits until `end`, or until their server is gone.

    `target(connection, number)` gives each hit's target, all different. `rate`: hits a second of all together.
    """

    def __init__(
        self, process: Process, target: Callable[[int, int], str], connections: int = 4, rate: float | None = None
    ) -> None:
        self.answered: dict[str, int] = {}
        self.unanswered: set[str] = set()
        self.slowest = 0.0
        self._port = process.port
        self._target = target
        self._pause = connections / rate if rate else 0.0
        self._ending = threading.Event()
        self._began = time.monotonic()
        self._threads = [threading.Thread(target=self._send, args=(n,), daemon=True) for n in range(connections)]
        for thread in self._threads:
            thread.start()

    def _send(self, connection: int) -> None:
        client = Client(self._port)
        number = 0
        while not self._ending.is_set():
            if self._pause:
                due = self._began + number * self._pause - time.monotonic()
                if due > 0 and self._ending.wait(due):
                    break
            target = self._target(connection, number)
            number += 1
            began = time.monotonic()
            try:
                reply = client.send(target)
            except OSError:
                self.unanswered.add(target)
                break
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.answered[target] = reply.status
        client.close()

    def end(self) -> None:
        """Send no more, and wait for what is under way."""
        self._ending.set()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads)

    def with_status(self, status: int) -> list[str]:
        """The targets that got this answer."""
        return [target for target, got in self.answered.items() if got == status]
