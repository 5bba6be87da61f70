"""What operators ask a running process: /healthz (does it take hits, is all well) and /metrics (Prometheus)."""

import asyncio
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from server.database import Database
from server.digest import JournalState, measure_journal
from server.digest_process import DigestProcess
from server.event_store import EventStore
from server.journal import LATENCY_BOUNDS, Backlog, Journal
from server.pixel import Pixel, Receive, Scope, Send
from server.settings import Settings
from tenants.errors import Unavailable

OPERATIONS = ("/healthz", "/healthz/live", "/metrics")

# A check that hangs is a failed check; whoever asks gives up a second after.
_CHECK_SECONDS = 3.0
# What fails as long is no restart of a store.
_UPKEEP_SECONDS = 600.0
# Hits that wait longer than this are not "readable within moments" any more.
_LATE_SECONDS = 30.0
# How a program on this machine names it.
_THIS_MACHINE = re.compile(rb"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]*)?", re.IGNORECASE)


@dataclass
class Operations:
    """The parts of a running process that /healthz and /metrics ask. `store`, `digest`: not in `collect`.

    `failing` is what of the upkeep fails, and since when (time.monotonic).
    """

    settings: Settings
    database: Database
    journal: Journal
    pixel: Pixel
    store: EventStore | None = None
    digest: DigestProcess | None = None
    failing: dict[str, float] = field(default_factory=dict[str, float])
    _backlog: Backlog | None = None
    _measuring: asyncio.Task[JournalState] | None = None

    async def journal_state(self) -> JournalState:
        """How the machine's journal stands."""
        self._backlog = self._backlog or Backlog(self.settings.journal_dir)
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.create_task(
                asyncio.to_thread(measure_journal, self.settings.journal_dir, self._backlog)
            )
        # Whoever gives up leaves it to the next: a disk that hangs holds one thread.
        return await asyncio.shield(self._measuring)

    async def health(self) -> tuple[int, dict[str, Any]]:
        """(HTTP status, what is well and what is not).

        `failing`, 503: hits cannot be kept. `degraded`, 200: hits are kept, but something behind needs a look.
        """
        checks: dict[str, Any] = {}
        trouble = self.journal.trouble
        checks["journal"] = {"ok": trouble is None} | ({"error": trouble} if trouble else {})
        asked = {"control_database": _check(self.database.ping), "backlog": _check(self._check_backlog)}
        if self.store is not None:
            asked["event_store"] = _check(self._ask_store)
            trouble = self.digest and self.digest.figures.trouble
            checks["digest"] = {"ok": not trouble} | ({"error": f"digestion waits: {trouble}"} if trouble else {})
            since = time.monotonic() - _UPKEEP_SECONDS
            stuck = sorted(what for what, began in self.failing.items() if began < since)
            checks["upkeep"] = {"ok": not stuck} | ({"error": f"failing: {', '.join(stuck)}"} if stuck else {})
        checks |= zip(asked, await asyncio.gather(*asked.values()), strict=True)
        ready = checks["journal"]["ok"]
        well = all(check["ok"] for check in checks.values())
        status = "ok" if well else "degraded" if ready else "failing"
        return (200 if ready else 503), {"status": status, "live": True, "ready": ready, "checks": checks}

    async def _check_backlog(self) -> dict[str, Any]:
        state = await self.journal_state()
        return {
            "ok": state.seconds < _LATE_SECONDS and not state.set_aside and not state.damaged,
            "hits": state.hits,
            "bytes": state.bytes,
            "seconds": round(state.seconds, 3),
            "set_aside": state.set_aside,
            "damaged": state.damaged,
        }

    async def _ask_store(self) -> None:
        assert self.store is not None
        if wrong := await self.store.ask_what_is_wrong():
            raise Unavailable(". ".join(wrong))

    async def metrics(self) -> bytes:
        """Everything measured, in Prometheus' text format."""
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        try:
            state = await self.journal_state()
        except Unavailable:
            state = None  # shown by its absence, and by /healthz
        registry.register(_Figures(self, state))
        return generate_latest(registry)

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """ASGI application for /healthz, /healthz/live and /metrics."""
        path = scope["path"]
        if path == "/healthz/live":
            await _respond(send, 200, b"application/json", b'{"live":true}\n')
        elif path == "/healthz":
            status, report = await self.health()
            await _respond(send, status, b"application/json", msgspec.json.format(msgspec.json.encode(report)) + b"\n")
        elif not self._may_read_metrics(scope):
            await _respond(
                send,
                401,
                b"text/plain",
                b"Send ONEPX_METRICS_TOKEN as Authorization: Bearer; without one only this machine may ask.\n",
            )
        else:
            await _respond(send, 200, b"text/plain; version=0.0.4; charset=utf-8", await self.metrics())

    def _may_read_metrics(self, scope: Scope) -> bool:
        """Whoever has the token; where there is none, whoever asks on this machine, and not through a proxy."""
        wanted, headers = self.settings.metrics_token, dict(scope["headers"])
        if wanted:
            return hmac.compare_digest(headers.get(b"authorization", b""), b"Bearer " + wanted.encode())
        # How many hits there are tells one tenant of another, if there are but two.
        client = (scope["client"] or ("",))[0].removeprefix("::ffff:")
        if client not in ("127.0.0.1", "::1", "") or headers.keys() & {b"x-forwarded-for", b"forwarded"}:
            return False
        # A proxy that adds neither mostly leaves the name that the world knows.
        return _THIS_MACHINE.fullmatch(headers.get(b"host", b"localhost")) is not None


async def _check(ask: Callable[[], Awaitable[dict[str, Any] | None]]) -> dict[str, Any]:
    """What it answers, or that all is well."""
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            return await ask() or {"ok": True}
    except TimeoutError:
        return {"ok": False, "error": f"no answer within {_CHECK_SECONDS:.0f} s"}
    except Unavailable as error:
        return {"ok": False, "error": str(error)}


async def _respond(send: Send, status: int, kind: bytes, body: bytes) -> None:
    headers = [
        (b"content-type", kind),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class _Figures(Collector):
    """The process's own counters, in Prometheus' words. The hot path counts in plain integers; they are read here."""

    def __init__(self, parts: Operations, state: JournalState | None) -> None:
        self._parts = parts
        self._state = state

    def collect(self) -> Iterator[Metric]:
        parts = self._parts
        pixel, journal = parts.pixel.figures, parts.journal.figures
        requests = CounterMetricFamily("onepx_pixel_requests", "Pixel requests by answer.", labels=["answer"])
        for answer in ("accepted", "limited", "refused", "unknown"):
            requests.add_metric([answer], getattr(pixel, answer))
        yield requests
        counts, buckets, total = journal.latency_counts, list[tuple[str, float]](), 0
        for bound, count in zip((*map(str, LATENCY_BOUNDS), "+Inf"), counts, strict=True):
            total += count
            buckets.append((bound, total))
        latency = HistogramMetricFamily(
            "onepx_ingest_seconds",
            "From a hit's arrival until it is on disk; the longest wait of its group commit.",
        )
        latency.add_metric([], buckets, journal.latency_seconds)
        yield latency
        yield CounterMetricFamily("onepx_journal_commits", "Group commits.", journal.frames)
        state = self._state
        if state is not None:
            yield GaugeMetricFamily("onepx_journal_hits", "Hits in the journal that are not digested.", state.hits)
            yield GaugeMetricFamily("onepx_journal_bytes", "Bytes the journal takes on disk.", state.bytes)
            yield GaugeMetricFamily(
                "onepx_digest_lag_seconds", "Age of the oldest hit that is not digested.", state.seconds
            )
            yield GaugeMetricFamily(
                "onepx_digest_set_aside_hits", "Hits set aside because digesting them failed.", state.set_aside
            )
            yield GaugeMetricFamily("onepx_journal_damaged", "Damaged pieces of the journal kept aside.", state.damaged)
        if parts.store is not None:
            yield GaugeMetricFamily("onepx_upkeep_failing", "Jobs of the upkeep that fail.", len(parts.failing))
        if parts.digest is not None:
            digest = parts.digest.figures
            outcomes = CounterMetricFamily("onepx_hits", "Digested hits by outcome.", labels=["outcome"])
            for outcome in ("recorded", "rejected", "duplicate", "set_aside"):
                outcomes.add_metric([outcome], getattr(digest, outcome))
            outcomes.add_metric(["limited"], pixel.limited)
            yield outcomes
            rows = digest.recorded + digest.rejected + digest.duplicate
            yield CounterMetricFamily("onepx_digest_rows", "Hits digested; its rate is rows a second.", rows)
            yield CounterMetricFamily("onepx_digest_batches", "Batches digested.", digest.batches)
            yield CounterMetricFamily("onepx_digest_failures", "Tries of a batch that failed.", digest.failures)
            yield CounterMetricFamily("onepx_digest_seconds", "Time spent digesting.", digest.seconds)
        if parts.store is not None:
            # Into a server the digest's own process inserts: its failures are the store's, but for a bug of ours.
            errors = parts.store.errors
            if parts.digest is not None and not parts.store.embedded:
                errors += parts.digest.figures.failures
            yield CounterMetricFamily("onepx_event_store_errors", "Failed calls of the event store.", errors)
