"""Composition: settings become a running process, and a signal ends it without losing anything."""

import asyncio
import contextlib
import fcntl
import gc
import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import msgspec
import structlog
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from server.database import Database
from server.digest import CATEGORIES
from server.digest_process import DigestProcess
from server.event_store import EventStore, release_code
from server.facebook import work_with_facebook
from server.journal import Hit, Journal
from server.limits import Limiter
from server.operations import OPERATIONS, Operations
from server.pixel import Pixel, Receive, Scope, Send, client_address
from server.routes import Routes
from server.settings import Settings
from server.upkeep import keep_up
from server.workers import stop_on_signals
from tenants import event_ids
from tenants.hits import Event, decode
from tenants.tokens import Route, unscoped_used

log = structlog.get_logger()

ASGIApp = Callable[[Scope, Receive, Send], Any]

# The event loop and other threads take turns: Python's default of 5 ms would be what hits wait for.
_SWITCH_SECONDS = 0.001
# A hit leaves no cycles behind: the default of 700 would have the collector look a hundred times a second.
_GC_ALLOCATIONS = 50_000
# Connections, idle ones too, not requests: more than any one machine's pixels hold open behind a proxy.
_CONNECTIONS = 16_384
# Files the process needs beside its connections: of the event store, above all.
_OTHER_FILES = 1_024
_MOST_FILES = 1_048_576
# A debugging hit waits so long for its outcome; the digest usually needs a fifth of a second.
_OUTCOME_SECONDS = 1.5
# Of the 5 s a stop may take: for requests that came before it, and for the digest's current batch. When everything
# together takes longer, the process ends all the same: what was answered is on disk, and a batch is done again.
_ANSWER_SECONDS = 1.5
_DRAIN_SECONDS = 1.5
_STOP_SECONDS = 4.5
# `check` holds the folder for less than that.
_LOCK_SECONDS = 2.0
# Soon enough for people who look whether an old snippet is still loaded somewhere.
_LAST_USED_SECONDS = 30.0
# Longer than any address of ours, shorter than what file systems refuse with an error.
_PATH_MOST = 1_000
# Of an address: the largest form that stands in one is a snippet's (web/guards.py). What the framework read of the
# API's last 1,024 addresses it keeps, whoever sent them; there the most are 30 filters and 8 steps.
_PARAMETERS_MOST = 1_000
_API_PARAMETERS_MOST = 200
_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})
# What nobody asked for is read up to here: a browser's sendBeacon sends as much at most.
_BODY_MOST = 64 * 1024
_BODY_SECONDS = 5.0
# Of a request's line and headers: an address as long as there may be, 64 kB, and what proxies let through. Granian's
# default is four times that.
_HEAD_BYTES = 96 * 1024


class CannotStart(Exception):
    """The process cannot start; the message is one line that says why and what to do."""


class _Outcomes:
    """What became of a hit that carries debug=1: told by the digest where it runs here, else foretold."""

    def __init__(self, digest: DigestProcess | None) -> None:
        self._digest = digest

    def watch(self) -> int:
        """See pixel.Outcomes."""
        return self._digest.watch() if self._digest is not None else 0

    def forget(self, watch: int) -> None:
        """See pixel.Outcomes."""
        if self._digest is not None:
            self._digest.forget(watch)

    async def outcome(self, hit: Hit, route: Route) -> tuple[str, tuple[str, ...]]:
        """See pixel.Outcomes."""
        if hit.watch and self._digest is not None:
            told = await self._digest.outcome(hit.watch, _OUTCOME_SECONDS)
            if told is not None:
                return told.result, told.warnings
        category = CATEGORIES[hit.category]
        meaning = decode(category, hit.query, route.currency, hit.privacy)
        if not isinstance(meaning, Event):
            return f"rejected; reason={meaning.reason}", ()
        if meaning.event_id is not None:
            try:
                async with asyncio.timeout(1.0):
                    owner = await event_ids.owner(route.app_id, category, meaning.event_id)
            except Exception as error:
                log.warning("whether a hit is a duplicate cannot be foretold", error=type(error).__name__)
                owner = None
            # An id begins with the ms its hit came: an owner as young as this hit is this hit, digested meanwhile.
            if owner is not None and int.from_bytes(owner[:6], "big") < hit.received_at:
                return "duplicate", meaning.warnings
        return "recorded", meaning.warnings


async def _head(pages: ASGIApp, scope: Scope, send: Send) -> None:
    """Answer a HEAD as the pages would a GET, but for the body: an export is not read for it."""
    begun = asyncio.Event()

    async def gone() -> dict[str, Any]:
        await begun.wait()
        return {"type": "http.disconnect"}

    async def headers(message: Any) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            begun.set()

    await pages({**scope, "method": "GET"}, gone, headers)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _reading_all(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Both so that an answer begins when the request's body was read, by whoever answers or else here.

    Granian ends a connection where it was not, and the answer says nothing of it: a proxy sends the next hit on it, and
    whoever still sends the body gets no answer at all.
    """
    whole = False

    async def read() -> Mapping[str, Any]:
        nonlocal whole
        message = await receive()
        whole = not message.get("more_body", False)
        return message

    async def answer(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start" and not whole:
            left = _BODY_MOST
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BODY_SECONDS):
                    while not whole and left > 0:
                        left -= len((await read()).get("body", b""))
            if not whole:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)

    return read, answer


def dispatch(pixel: Pixel, operations: Operations, pages: ASGIApp) -> ASGIApp:
    """Pixels first, before any router or middleware of the pages sees them."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await pages(scope, receive, send)
            return
        if scope["method"] not in _WITHOUT_BODY:
            receive, send = _reading_all(receive, send)
        path: str = scope["path"]
        if path.endswith(".gif") and not path.startswith("/static/"):
            try:
                await pixel(scope, receive, send)
            except Exception:
                log.exception("pixel failed")
                await pixel.failed(send)
        elif path in OPERATIONS:
            await operations(scope, receive, send)
        elif "\0" in path or len(path) > _PATH_MOST:
            # No file system takes such a name, and no route of ours has one.
            await _refuse(path, send, 404, "There is nothing here.")
        elif scope["query_string"].count(b"&") >= (
            _API_PARAMETERS_MOST if path.startswith("/api/") else _PARAMETERS_MOST
        ):
            await _refuse(path, send, 414, "There are more parameters in this address than any page has.")
        elif scope["method"] == "HEAD":
            await _head(pages, scope, send)
        else:
            await pages(scope, receive, send)

    return application


async def _refuse(path: str, send: Send, status: int, sentence: str) -> None:
    """Say why the pages are not asked; to the API's programs in JSON, as the API itself would."""
    kind, body = b"text/plain; charset=utf-8", f"{sentence}\n".encode()
    if path.startswith("/api/"):
        kind, body = b"application/json", msgspec.json.encode({"status_code": status, "detail": sentence})
    headers = [
        (b"content-type", kind),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _no_pages(scope: Scope, receive: Receive, send: Send) -> None:
    """In `collect`: nothing but pixels."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    sentence = "This process only takes pixels: /{app token}/event.gif or /{app token}/revenue.gif."
    await _refuse(scope["path"], send, 404, sentence)


async def _keep_last_used(pixel: Pixel) -> None:
    """Write down now and then when tokens were last used. What is lost with the process is half a minute's."""
    failing = False
    while True:
        await asyncio.sleep(_LAST_USED_SECONDS)
        failing = not await _write_last_used(pixel, failing)


async def _write_last_used(pixel: Pixel, failing: bool = False) -> bool:
    """Whether it could; logged unless it was `failing` before."""
    used, pixel.used = pixel.used, {}
    try:
        await unscoped_used(used)
    except Exception as error:
        # The control database is away: what is newer wins when it is tried again.
        pixel.used = used | pixel.used
        if not failing:
            log.warning("when tokens were last used is not written down", error=type(error).__name__)
        return False
    return True


async def _each(seconds: float, work: Callable[[], None]) -> None:
    failing = False
    while True:
        await asyncio.sleep(seconds)
        try:
            work()
            failing = False
        except Exception as error:  # a disk that fails for a moment: the next time may do
            if not failing:
                log.warning("work of each moment failed", what=work.__qualname__, error=type(error).__name__)
            failing = True


def _tell_end(task: asyncio.Task[Any]) -> None:
    """A job for ever that ended would be missed by nobody."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("background job ended", job=task.get_name(), exc_info=error)


@contextlib.asynccontextmanager
async def _background(*jobs: Any) -> AsyncGenerator[None]:
    """Run coroutines beside the block, cancelled at its end."""
    tasks = [asyncio.create_task(job, name=job.__qualname__) for job in jobs]
    for task in tasks:
        task.add_done_callback(_tell_end)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True)
class Role:
    """What a process does beside taking pixels. `serve` digests and shows pages; `collect` does neither."""

    pages: bool
    # Of one of several on the port, the process id of its parent, which made sure that the port is free. Else 0.
    parent: int = 0


async def run(settings: Settings, role: Role) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP. Raises CannotStart, DatabaseUnavailable or EventStoreUnavailable."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    connections = _allow_connections()
    if not role.parent:
        check_port(settings)
    database = Database(settings.database_url)
    await database.start()
    for name in await database.migrate():
        log.info("control database migrated", migration=name)
    routes = Routes()
    await routes.refresh()
    store = digest = None
    if role.pages:
        store = EventStore(settings.events_url, settings.data_dir / "tmp")
        if store.embedded:
            await asyncio.to_thread(store.migrate)
            if damaged := await asyncio.to_thread(store.damaged):
                log.error("pieces of the event store could not be read and are kept aside", pieces=damaged)
            release_code()
        digest = DigestProcess(store)
    try:
        limiter = Limiter(settings.run_dir)
    except OSError as error:
        raise CannotStart(f"{settings.run_dir} cannot be used: {error.strerror or error}.") from None
    journal = Journal(settings.journal_dir, settings.journal_max_bytes)
    pixel = Pixel(routes, limiter, journal, _Outcomes(digest), settings.trusted_proxies)
    operations = Operations(settings, database, journal, pixel, store, digest)
    pages: ASGIApp = _no_pages
    if store is not None:
        from web.app import create_app  # not in `collect`: it would cost its start half a second and 40 MB

        pages = cast(
            "ASGIApp",
            create_app(
                store,
                public_url=settings.public_url,
                signup=settings.signup == "open",
                pixel_url=settings.pixel_url,
                version=version("onepx"),
                secret_key=settings.secret_key,
                client_address=lambda scope: client_address(scope, settings.trusted_proxies),
            ),
        )

    server = Server(
        dispatch(pixel, operations, pages),
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=15_000, max_buffer_size=_HEAD_BYTES),
        websockets=False,
        backlog=4096,
        backpressure=connections,
        log_enabled=False,
    )
    # What is loaded by now stays: spare the collector looking through it again and again while hits wait.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_ALLOCATIONS)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_exception)
    stopping = asyncio.Event()
    stop_on_signals(stopping)
    jobs = [routes.keep_fresh(), _keep_last_used(pixel), _each(0.1, limiter.sync), _each(1.0, journal.flush_limited)]
    if digest is not None:
        jobs.append(digest.run())
    if store is not None:
        jobs.append(keep_up(store, settings.journal_dir, operations.failing))
        jobs.append(work_with_facebook(settings, store))
    jobs.append(_parent_lives(role.parent, stopping) if role.parent else announce(settings, role.pages))
    async with _background(*jobs):
        serving = asyncio.create_task(server.serve())
        await asyncio.wait((serving, asyncio.create_task(stopping.wait())), return_when=asyncio.FIRST_COMPLETED)
        log.info("stopping")
        _end_within(_STOP_SECONDS)
        # It stops accepting, and waits for every connection: those that are only half a request get no longer.
        server.stop()
        await asyncio.wait((serving,), timeout=_ANSWER_SECONDS)
        await journal.close()
        if digest is not None:
            await digest.stop(_DRAIN_SECONDS)
    await _write_last_used(pixel)
    log.info("stopped")
    limiter.close()
    await database.close()
    if store is not None:
        await asyncio.to_thread(store.close)
    if serving.done():
        serving.result()
    # The deadline stands: Python waits for threads, and one of them may wait for a store that does not answer.


def _end_within(seconds: float) -> None:
    """End the process then, successfully, whatever still runs."""
    deadline = threading.Timer(seconds, os._exit, (0,))
    deadline.daemon = True
    deadline.start()


def _allow_connections() -> int:
    """Raise the limit of open files as far as it goes; returns how many connections it leaves room for."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _MOST_FILES if most == resource.RLIM_INFINITY else min(_MOST_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    # The engine opens some thousand for one merge of wide parts.
    return max(64, min(_CONNECTIONS, files - _OTHER_FILES))


async def _parent_lives(parent: int, stopping: asyncio.Event) -> None:
    """End a worker whose parent was killed: nobody would end it, and it would hold the port."""
    while os.getppid() == parent:  # noqa: ASYNC110 (nothing tells)
        await asyncio.sleep(1.0)
    stopping.set()


def _log_exception(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What asyncio could not tell anybody: without the message, which may repeat what was sent."""
    log.error(str(context.get("message", "")).partition(":")[0], exc_info=context.get("exception"))


async def announce(settings: Settings, pages: bool) -> None:
    """Say once, when connections are taken, where and what to do next."""
    # Nothing tells when Granian listens.
    while not await asyncio.to_thread(_accepts, settings):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    if pages:
        hint = f"sign up at {settings.public_url}/signup, or look around with `onepx demo`"
        print(f"onepx serves {settings.public_url} — next: {hint}; Ctrl-C stops.", flush=True)  # noqa: T201
    else:
        print(f"onepx collects pixels on http://{settings.host}:{settings.port}; Ctrl-C stops.", flush=True)  # noqa: T201


def _accepts(settings: Settings) -> bool:
    try:
        socket.create_connection((settings.host, settings.port), timeout=1).close()
    except OSError:
        return False
    return True


def check_port(settings: Settings) -> None:
    """Raises CannotStart when the port is taken.

    Granian would share it with whoever has it (SO_REUSEPORT): two servers would each get half of the hits.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise CannotStart(
                f"Port {settings.port} on {settings.host} cannot be had ({error.strerror}); "
                "choose another with --port or ONEPX_PORT."
            ) from None


@contextlib.contextmanager
def own_data_dir(settings: Settings) -> Any:
    """Hold the data folder as its one `onepx serve` with the embedded event store. Raises CannotStart."""
    path = settings.run_dir / "serve.lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotStart(f"{path} cannot be used: {error.strerror}.") from None
    try:
        if not _lock_soon(fd):
            other = running_server(settings) or {}
            raise CannotStart(
                f"Another onepx serve (process {other.get('pid', '?')}) uses the data folder {settings.data_dir}; "
                "its event store is for one process. Stop it, or give this one another ONEPX_DATA_DIR."
            )
        about = {"pid": os.getpid(), "host": settings.host, "port": settings.port, "since": time.time()}
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(about).encode(), 0)
        except OSError as error:
            raise CannotStart(f"{path}: {error.strerror}") from None
        yield
    finally:
        os.close(fd)


def _lock_soon(fd: int) -> bool:
    """Lock it, waiting a moment for another verb that only looks."""
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        else:
            return True


def running_server(settings: Settings) -> dict[str, Any] | None:
    """What the `onepx serve` that owns the data folder wrote about itself; None when none runs."""
    path: Path = settings.run_dir / "serve.lock"
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return json.loads(file.read() or b"{}")
    except FileNotFoundError:
        pass
    return None
