"""Load: wrk for as much as a server can bear, and a constant rate whether it can bear it or not."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.processes import CHECKOUT, Failed, program
from benchmarks.steady import Measured

# Called once, after the run: the hot path stays C.
_REPORT = """
function done(summary, latency, requests)
  local e = summary.errors
  local line = '\\n{"answered": %d, "seconds": %.6f, "refused": %d, "broken": %d, "p50": %.3f, "p99": %.3f}\\n'
  io.write(string.format(line,
    summary.requests, summary.duration / 1e6, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


@dataclass(frozen=True)
class Load:
    """What wrk saw. `answered` counts every response, `refused` those above 399, `broken` socket errors; p… in ms."""

    answered: int
    seconds: float
    refused: int
    broken: int
    p50: float
    p99: float

    @property
    def ok(self) -> int:
        """Hits answered 200."""
        return self.answered - self.refused

    @property
    def rate(self) -> float:
        """Hits answered 200, a second."""
        return self.ok / self.seconds


def wrk(folder: Path, url: str, connections: int, seconds: int, beside: Callable[[], None] | None = None) -> Load:
    """Load `url` over keep-alive connections, calling `beside` about once a second meanwhile. Raises Failed.

    When wrk stops counting, each connection may have a hit under way that the server still answers.
    """
    script = folder / "report.lua"
    script.write_text(_REPORT)
    threads = min(2, connections)
    command = [program("wrk"), f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--timeout=10s", f"-s{script}", url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0)
    try:
        while True:
            try:
                output, _ = process.communicate(timeout=1.0 if beside else seconds + 30.0)
                break
            except subprocess.TimeoutExpired:
                if beside is None:
                    raise Failed("wrk does not end") from None
                beside()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode != 0:
        raise Failed(f"wrk failed: {output.decode()}")
    return Load(**json.loads(output.decode().splitlines()[-1]))


def steady(port: int, path: str, rate: int, seconds: int) -> Measured:
    """Hits at a constant rate, sent by a process of its own. Raises Failed."""
    command = [sys.executable, "-m", "benchmarks.steady", str(port), path, str(rate), str(seconds)]
    done = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, timeout=seconds * 3 + 60, check=False, process_group=0
    )
    if done.returncode != 0:
        raise Failed(f"steady load failed: {done.stderr.decode()[-2000:]}")
    return msgspec.json.decode(done.stdout, type=Measured)
