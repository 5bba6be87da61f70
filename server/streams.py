"""A query's result as bytes of any size, in constant memory: the engine writes to a pipe, who downloads reads from it.

So a slow reader has the engine wait, and neither memory nor disk keeps what is on its way.
"""

import asyncio
import contextlib
import fcntl
import os
import select
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

# What one turn of the event loop may be spent on; a pipe holds no more.
_CHUNK_BYTES = 256 * 1024
# Who reads nothing for so long has gone away, or holds a place that others wait for.
_STALLED_SECONDS = 120.0
# Who takes less in as long, 17 kB a second, holds one as well.
_LEAST_BYTES = 2 * 1024**2
# Its first bytes wait for so long to be asked for: the answer to HEAD is none, and who asked may be gone by then.
_BEGIN_SECONDS = 15.0
_END_SECONDS = 0.5


class ByteStream:
    """Read it once, with `async for`. Closed, dropped or not read for two minutes, it has its writer end.

    The writer opens `path`, or writes to the descriptor `writer`; when it is done it removes the one and closes the
    other. It looks at `ended`, and the function `end` is called until it is done. No writer may hold the stream itself.
    """

    def __init__(self, path: Path, end: Callable[[], None]) -> None:
        self.path = path
        self.ended = threading.Event()
        # Where there is no descriptor left for the writer, the reader's must not stay taken as well.
        with contextlib.ExitStack() as undone:
            os.mkfifo(path, 0o600)
            undone.callback(path.unlink)
            self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            undone.callback(os.close, self._reader)
            self.writer = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            undone.pop_all()
        # Where the system allows less, chunks are smaller.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, _CHUNK_BYTES)
        self._end = end
        self._done: Future[None] | None = None
        self._first = b""
        self._stalled: asyncio.TimerHandle | None = None
        # What was taken lately, and in what time of the reader's own.
        self._taken_bytes, self._taken_seconds, self._handed_at = 0, 0.0, 0.0

    async def begin(self, done: "Future[None]") -> None:
        """Wait for the first bytes. What the writer, which is `done` then, raises is raised here or at the end."""
        self._done = done
        try:
            self._first = await self._next()
        except BaseException:
            self.close()
            raise
        self._close_in(_BEGIN_SECONDS)

    def _close_in(self, seconds: float) -> None:
        # Not a method of ours: a timer that held us would keep us from being dropped.
        dropped: weakref.ref[ByteStream] = weakref.ref(self)
        self._stalled = asyncio.get_running_loop().call_later(seconds, _close, dropped)
        self._handed_at = time.monotonic()

    def __aiter__(self) -> "ByteStream":
        return self

    async def __anext__(self) -> bytes:
        if self._stalled is not None:
            self._stalled.cancel()
            self._taken_seconds += time.monotonic() - self._handed_at
        if self._taken_seconds > _STALLED_SECONDS:
            if self._taken_bytes < _LEAST_BYTES:
                self.close()
            self._taken_bytes, self._taken_seconds = 0, 0.0
        chunk, self._first = self._first, b""
        try:
            chunk = chunk or await self._next()
        except BaseException:  # who downloads went away, say: nobody asks once more
            self.close()
            raise
        if not chunk:
            self.close()
            raise StopAsyncIteration
        self._close_in(_STALLED_SECONDS)
        self._taken_bytes += len(chunk)
        return chunk

    async def _next(self) -> bytes:
        """More bytes; none at the end."""
        while not self.ended.is_set():
            try:
                chunk = os.read(self._reader, _CHUNK_BYTES)
            except BlockingIOError:
                await _readable(self._reader)
                continue
            if not chunk and self._done is not None:
                await asyncio.wrap_future(self._done)
            return chunk
        raise ConnectionAbortedError("the stream was ended before all was read")

    def close(self) -> None:
        """End it, whatever was not read yet. Done again it changes nothing."""
        if self.ended.is_set():
            return
        self.ended.set()
        if self._stalled is not None:
            self._stalled.cancel()
        threading.Thread(target=_drain, args=(self._reader, self._end), name="drain", daemon=True).start()

    def __del__(self) -> None:
        if hasattr(self, "_end"):  # else it could not be made
            self.close()


def _close(stream: "weakref.ref[ByteStream]") -> None:
    if (found := stream()) is not None:
        found.close()


def _drain(reader: int, end: Callable[[], None]) -> None:
    """Read until the writer is done, which may be about to open the pipe, or wait for room in it, for ever."""
    # Not select(): it takes no descriptor above 1,023.
    readable = select.poll()
    readable.register(reader, select.POLLIN)
    asked_at = 0.0
    while True:
        if readable.poll(1000 * _END_SECONDS):
            with contextlib.suppress(BlockingIOError):
                if not os.read(reader, _CHUNK_BYTES):
                    break
        if time.monotonic() - asked_at > _END_SECONDS:
            end()
            asked_at = time.monotonic()
    os.close(reader)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, _set, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
