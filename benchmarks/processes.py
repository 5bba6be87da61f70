"""Processes under measurement: each in a folder of its own, watched through /proc, stopped by its id."""

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent
# An onepx process ends within 5 s of SIGTERM; one that takes this long is stuck.
_STOP_SECONDS = 15.0
_START_SECONDS = 30.0


class Failed(Exception):
    """The measurement could not be made; the message says why."""


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def program(name: str) -> str:
    """The path of an installed program. Raises Failed. Debian keeps nginx out of people's PATH."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise Failed(f"{name} is not installed; `make bench` installs it")
    return found


@dataclass
class Running:
    """A started process whose output goes to `log`."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int
    started: float

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """(status, body) of a GET. Raises OSError when nobody listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path, headers=dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def wait_for_hit(self, path: str) -> float:
        """Seconds from the start of the process to its first 200 on `path`. Raises Failed."""
        while time.perf_counter() - self.started < _START_SECONDS:
            if self.process.poll() is not None:
                raise Failed(f"{self.process.args!r} ended at its start:\n{self.log.read_text()[-2000:]}")
            try:
                status, _ = self.get(path)
            except OSError:
                time.sleep(0.002)
                continue
            if status != 200:
                raise Failed(f"the first hit was answered {status}")
            return time.perf_counter() - self.started
        raise Failed(f"no answer within {_START_SECONDS:.0f} s of the start")

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, by its name with labels."""
        _, body = self.get("/metrics")
        pairs = (line.rpartition(" ") for line in body.decode().splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def memory(self) -> tuple[float, float]:
        """(Rss, Pss) of the process and its children in MB of 10^6 bytes. Rss counts what they share twice."""
        rss = pss = 0.0
        for pid in family(self.process.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a child that just ended
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    name, _, amount = line.partition(":")
                    if name == "Rss":
                        rss += int(amount.split()[0]) * 1024 / 1e6
                    elif name == "Pss":
                        pss += int(amount.split()[0]) * 1024 / 1e6
        return rss, pss

    def stop(self) -> float:
        """SIGTERM; the seconds until the process was gone. Raises Failed when it is killed or ends badly."""
        began = time.perf_counter()
        self.process.terminate()
        try:
            status = self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Failed(f"process did not end within {_STOP_SECONDS:.0f} s of SIGTERM") from None
        if status != 0:
            raise Failed(f"process ended with status {status}:\n{self.log.read_text()[-2000:]}")
        return time.perf_counter() - began


def busy_ticks() -> tuple[int, int, int]:
    """CPU time of the machine in clock ticks since it started: (available, used, used by us and all we started)."""
    with Path("/proc/stat").open() as stat:
        # user, nice, system, idle, iowait, irq, softirq, steal (proc_stat(5)); what serves interrupts counts as used,
        # since a process that was interrupted is charged for it too.
        times = [int(value) for value in stat.readline().split()[1:9]]
    ours = 0
    for pid in family(os.getpid()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # utime, stime, and both of the children it waited for (proc_pid_stat(5), fields 14 to 17).
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ours += sum(map(int, fields[11:15]))
    return sum(times), sum(times) - times[3] - times[4], ours


def family(pid: int) -> list[int]:
    """The process and everything it started, directly or not."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # The name, in parentheses, may hold anything, blanks and parentheses too.
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


@contextlib.contextmanager
def start(
    command: Sequence[str], folder: Path, port: int, env: Mapping[str, str] | None = None
) -> Generator[Running, None, None]:
    """Run a command with its output in `folder`; it is stopped at the end of the block, whatever happened in it."""
    log = folder / f"{Path(command[0]).name}.log"
    with log.open("ab") as output:
        began = time.perf_counter()
        # In a group of its own: Ctrl-C reaches us alone, and we stop it once.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=CHECKOUT, env=env, process_group=0
        )
    running = Running(process, log, port, began)
    try:
        yield running
    finally:
        if process.poll() is None:
            running.stop()


def onepx_command(*arguments: str) -> list[str]:
    """The command line `onepx ARGUMENTS` of this checkout."""
    return [sys.executable, "-P", "-m", "server.cli", *arguments]


def onepx_environment(data_dir: Path, port: int) -> dict[str, str]:
    """Default settings but for the folder and the port, whatever the environment says."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ONEPX_")}
    return inherited | {"ONEPX_DATA_DIR": str(data_dir), "ONEPX_PORT": str(port)}


@contextlib.contextmanager
def onepx(verb: str, data_dir: Path) -> Generator[Running, None, None]:
    """`onepx serve` or `onepx collect` on a free port."""
    port = free_port()
    with start(onepx_command(verb), data_dir, port, onepx_environment(data_dir, port)) as running:
        yield running


# A log line for each hit, as a pixel without a store behind it would have; connections stay open for the whole run.
_NGINX = """
daemon off;
worker_processes auto;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 2048; }}
http {{
    access_log {folder}/access.log combined;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ empty_gif; }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path) -> Generator[Running, None, None]:
    """nginx that answers every address with its built-in GIF and writes an access log; needs no root."""
    port = free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(_NGINX.format(folder=folder, port=port))
    command = [program("nginx"), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(configuration)]
    with start(command, folder, port) as running:
        yield running
