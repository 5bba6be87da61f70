"""Several processes on one port: a parent that starts them, starts again the one that dies, and ends them together."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable

import structlog

log = structlog.get_logger()

# A worker that ran this long can run. One that never did is not started again.
_SETTLED_SECONDS = 5.0
# How long a worker that died at once waits: for a database to come back, say.
_AGAIN_SECONDS = 2.0
# Workers need up to 5 s to end by themselves.
_END_SECONDS = 8.0


def stop_on_signals(stopping: asyncio.Event) -> None:
    """Have SIGTERM, SIGINT and SIGHUP set this event; the last, of a closed terminal, unless `nohup` had it ignored."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    for number in numbers:
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)


async def supervise(count: int, arguments: list[str], announcement: Awaitable[None]) -> int:
    """Run `count` processes of this command with `arguments` until a signal ends it; returns the exit status."""
    stopping = asyncio.Event()
    stop_on_signals(stopping)
    announcing = asyncio.ensure_future(announcement)
    results = await asyncio.gather(*(_keep_running(index, arguments, stopping) for index in range(count)))
    announcing.cancel()
    return max(results)


async def _keep_running(index: int, arguments: list[str], stopping: asyncio.Event) -> int:
    status = 0
    settled = False
    while not stopping.is_set():
        began = time.monotonic()
        # In a group of its own: Ctrl-C reaches the parent alone, which ends the workers once.
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "server.cli",
            *arguments,
            "--worker-of",
            str(os.getpid()),
            process_group=0,
        )
        ended = asyncio.create_task(process.wait())
        asked = asyncio.create_task(stopping.wait())
        await asyncio.wait((ended, asked), return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        settled = settled or time.monotonic() - began >= _SETTLED_SECONDS
        if not ended.done():
            process.terminate()
            try:
                status = await asyncio.wait_for(ended, _END_SECONDS)
            except TimeoutError:
                log.error("worker did not end and was killed", worker=index)
                process.kill()
                status = 1
            return abs(status)
        status = ended.result()
        lived = time.monotonic() - began
        if lived < _SETTLED_SECONDS and not settled:
            # None of them ever ran: it would not run the next time.
            log.error("worker cannot run", worker=index, status=status)
            stopping.set()
            return abs(status) or 1
        log.error("worker died and is started again", worker=index, status=status)
        if lived < _SETTLED_SECONDS:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _AGAIN_SECONDS)
    return abs(status)
