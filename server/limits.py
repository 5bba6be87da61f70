"""Token buckets per tenant, shared by the processes of a machine without any of them ever waiting.

Every process counts the hits it admits in a counter that only it writes, in memory they all map (run/limits), and reads
the others' counters: so each computes the same bucket, and none needs a lock. The worst that a race can do is to
admit one hit more for each process. A tenant's row also holds each process's last view of the bucket, so that a
process that meets the tenant later, or is started anew, goes on from there instead of granting a fresh burst.
"""

import fcntl
import mmap
import os
import struct
import time
from pathlib import Path

# 16 processes that ingest on one machine saturate any disk's sync rate; a row stays 512 bytes.
PROCESSES = 16
# admitted u64 (one writer) · a view of the bucket: admitted by all u64, tokens f64, time f64 (monotonic, s)
_CELL = struct.Struct("<QQdd")
_WORDS = _CELL.size // 8
_ROW = _CELL.size * PROCESSES
# Where the locks lie: bytes far beyond any row.
_LOCKS = 1 << 60
# The file is sparse: it takes disk only around tenants that were hit, 64 kB at a time.
_GROW_ROWS = 128
# A bucket not used for so long is forgotten; its view in the file remains.
_IDLE_SECONDS = 60.0


class _Bucket:
    __slots__ = ("changed", "index", "last", "others", "own", "tokens")

    def __init__(self, index: int) -> None:
        self.index = index  # of this process's counter, in 8-byte words
        self.tokens = self.last = 0.0
        self.own = self.others = 0
        self.changed = True


class Limiter:
    """The limits of one process. Raises OSError when the shared memory cannot be had."""

    def __init__(self, run_dir: Path) -> None:
        self._fd = os.open(run_dir / "limits", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._process = self._claim_process()
        self._buckets: dict[int, _Bucket] = {}
        # Highest cell in use, plus one; looked up again in `sync`. Alone, the others' counters stand still.
        self._active = self._count_processes()
        self._reserved: set[int] = set()
        self._map: mmap.mmap | None = None
        self._words = memoryview(b"").cast("Q")
        self._doubles = memoryview(b"").cast("d")
        self._reserve(0)

    def _claim_process(self) -> int:
        """The first cell no living process holds: a lock on one byte, freed by the kernel."""
        for process in range(PROCESSES):
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LOCKS + process)
            except OSError:
                continue
            return process
        raise OSError(f"more than {PROCESSES} processes use this data folder")

    def _count_processes(self) -> int:
        """One more than the highest cell held by a living process."""
        highest = self._process
        for process in range(PROCESSES - 1, self._process, -1):
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LOCKS + process)
            except OSError:
                highest = process
                break
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, _LOCKS + process)
        return highest + 1

    def _reserve(self, tenant_id: int) -> None:
        """Have the row on disk and mapped. Raises OSError on a full disk, where writing to a hole would kill."""
        block = tenant_id // _GROW_ROWS
        if block in self._reserved:
            return
        rows = (block + 1) * _GROW_ROWS
        os.posix_fallocate(self._fd, block * _GROW_ROWS * _ROW, _GROW_ROWS * _ROW)
        if len(self._words) * 8 < rows * _ROW:
            larger = mmap.mmap(self._fd, rows * _ROW)
            self._unmap()
            self._map = larger
            self._words = memoryview(self._map).cast("Q")
            self._doubles = memoryview(self._map).cast("d")
        self._reserved.add(block)

    def _unmap(self) -> None:
        self._words.release()
        self._doubles.release()
        if self._map is not None:
            self._map.close()

    def take(self, tenant_id: int, rate: int, burst: int) -> bool:
        """Whether one more hit of the tenant counts; if so it is counted. `rate` in hits a second."""
        bucket = self._buckets.get(tenant_id) or self._meet(tenant_id, rate, burst)
        now = time.monotonic()
        tokens = bucket.tokens + (now - bucket.last) * rate
        bucket.last = now
        if self._active > 1:
            others = self._others(bucket.index)
            tokens -= others - bucket.others
            bucket.others = others
        if tokens > burst:
            tokens = float(burst)
        bucket.changed = True
        if tokens < 1.0:
            bucket.tokens = tokens
            return False
        bucket.tokens = tokens - 1.0
        bucket.own += 1
        self._words[bucket.index] = bucket.own
        return True

    def _others(self, index: int) -> int:
        """What all other processes, living or gone, ever admitted for the tenant."""
        words = self._words
        first = index - self._process * _WORDS
        return sum(words[first : first + PROCESSES * _WORDS : _WORDS]) - words[index]

    def _meet(self, tenant_id: int, rate: int, burst: int) -> _Bucket:
        """A bucket that goes on from the newest view any process published; full when there is none."""
        self._reserve(tenant_id)
        words, doubles = self._words, self._doubles
        first = tenant_id * PROCESSES * _WORDS
        bucket = _Bucket(first + self._process * _WORDS)
        # In this order: counters, views, clock. Who counted a hit published a view before, so its view is seen here;
        # and no view that is seen is later than the clock, unless it is from before the machine was restarted.
        bucket.own, bucket.others = words[bucket.index], self._others(bucket.index)
        cells = range(first, first + PROCESSES * _WORDS, _WORDS)
        views = [(words[cell + 1], doubles[cell + 2], doubles[cell + 3]) for cell in cells]
        bucket.last = now = time.monotonic()
        bucket.tokens = float(burst)
        newest = 0.0
        for admitted, tokens, when in views:
            if newest < when <= now:
                newest = when
                since = bucket.own + bucket.others - admitted
                # Never far below none: a view from before the machine was restarted is taken for a new one, once it
                # has run for as long again, and all that was admitted since is no debt.
                bucket.tokens = min(float(burst), max(0.0, tokens + (now - when) * rate - since))
        self._publish(bucket)
        self._buckets[tenant_id] = bucket
        return bucket

    def _publish(self, bucket: _Bucket) -> None:
        index = bucket.index
        self._words[index + 1] = bucket.own + bucket.others
        self._doubles[index + 2] = bucket.tokens
        self._doubles[index + 3] = bucket.last
        bucket.changed = False

    def sync(self) -> None:
        """Publish this process's views and forget buckets it did not use. Call it ten times a second.

        A bucket kept unused would forgive what others took meanwhile; met again, it goes on from the newest view.
        """
        active = self._count_processes()
        if active != self._active:
            self._active = active
            self._buckets.clear()
            return
        now = time.monotonic()
        for tenant_id, bucket in list(self._buckets.items()):
            if bucket.changed:
                self._publish(bucket)
            elif active > 1 or now - bucket.last > _IDLE_SECONDS:
                del self._buckets[tenant_id]

    def close(self) -> None:
        """Publish and let go of the shared memory."""
        for bucket in self._buckets.values():
            self._publish(bucket)
        self._unmap()
        os.close(self._fd)
