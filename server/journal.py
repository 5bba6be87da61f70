"""The journal: hits on this machine's disk, synced, until they are digested.

Each process that ingests appends to a segment file of its own, so processes never wait for each other's locks; a
segment whose hits are all digested is removed, so nothing has to be compacted. A *frame* is one group commit: all hits
that waited together, written at once, synced once.

    frame    magic 4 · body length u32 · CRC-32 of the body u32 · hits u32 · first hit's time in ms u64 · body
    body     MessagePack [hits, limited]: `Hit` tuples, and (app id, minute, count) of hits refused by a limit

A writer holds `flock` on its segment. A segment without that lock belongs to nobody any more: what follows its last
whole frame was never acknowledged. Why files and not SQLite: docs/decisions.md, "The journal is files".
"""

import asyncio
import bisect
import contextlib
import errno
import fcntl
import os
import queue
import re
import secrets
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
import structlog

log = structlog.get_logger()

HEADER = struct.Struct("<4sIIIQ")
MAGIC = b"1px\x01"
# A segment is removed whole, so its size is what stays on disk after all is digested. A hit's id has 26 bits for where
# its frame begins: segments must not begin a frame beyond 64 MiB.
SEGMENT_BYTES = 64 * 1024**2
# What hits leave of a disk (or a fiftieth of a small one): the digest needs some to make more.
RESERVE_BYTES = 256 * 1024**2
# A hit's id has 14 bits for its place in the frame.
FRAME_HITS = 16_000
# How a hit's place makes up the 74 free bits of its id: segment, offset of the frame, index in it.
SEED_BITS, OFFSET_BITS, INDEX_BITS = 34, 26, 14


class Hit(msgspec.Struct, array_like=True, gc=False):
    """A hit as it came. `received_at` in ms since 1970; `category` 0 event, 1 revenue; ids are 16 bytes.

    With a privacy signal honoured, `visitor_id` is None and `network` and `user_agent` are empty.
    """

    received_at: int
    app_id: bytes
    category: int
    query: bytes
    visitor_id: bytes | None
    privacy: bool
    network: str
    user_agent: bytes
    referrer: bytes
    sec_purpose: bytes
    # Names the hit to the request that waits for what it became (debug=1); 0 for all others.
    watch: int = 0
    # Whether the visitor came without a cookie: nothing can have happened under this id before.
    new_visitor: bool = False
    # The app's when the hit came; of hits that an older version wrote it is empty.
    currency: str = ""


class Body(msgspec.Struct, array_like=True):
    """What a frame holds. `limited`: (app id, minute in s since 1970, count)."""

    hits: list[Hit]
    limited: list[tuple[bytes, int, int]]


# The file whose change asks every writer to let go of its segment, so that hits do not stay when they are digested.
_LET_GO = "let-go"
HitTuple = tuple[int, bytes, int, bytes, bytes | None, bool, str, bytes, bytes, bytes, int, bool, str]
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Body)

# Upper bounds, in seconds, of the ingest latency histogram.
LATENCY_BOUNDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.008, 0.012, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


@dataclass
class JournalFigures:
    """What this process appended since it started, for /metrics."""

    hits: int = 0
    frames: int = 0
    refused: int = 0
    latency_seconds: float = 0.0
    latency_counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))


def encode_frame(hits: list[HitTuple], limited: list[tuple[bytes, int, int]]) -> bytes:
    """One frame, ready to be appended to a segment."""
    body = _encoder.encode((hits, limited))
    first = hits[0][0] if hits else int(time.time() * 1000)
    return HEADER.pack(MAGIC, len(body), zlib.crc32(body), len(hits), first) + body


class Segment:
    """A segment this process writes. Raises OSError when it cannot: then nothing of the frame counts."""

    def __init__(self, folder: Path) -> None:
        # Named only once it is locked: a reader that sees it unlocked would take it for a dead writer's and remove it.
        draft = folder / f"{secrets.token_hex(8)}.new"
        self._fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            self.path = folder / f"{time.time_ns() // 1_000_000:014d}-{secrets.randbits(SEED_BITS):09x}.journal"
            draft.rename(self.path)
            sync_folder(folder)
        except OSError:
            os.close(self._fd)
            draft.unlink(missing_ok=True)
            raise
        self.size = 0
        self.usable = True

    def append(self, frame: bytes) -> None:
        """Write and sync. After a failed sync the segment is given up, since what is on disk is unknown then."""
        try:
            written = os.write(self._fd, frame)
            while written < len(frame):
                written += os.write(self._fd, frame[written:])
        except OSError:
            try:
                os.ftruncate(self._fd, self.size)
            except OSError:
                self.usable = False
            raise
        try:
            os.fdatasync(self._fd)
        except OSError:
            self.usable = False
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
            raise
        self.size += len(frame)

    def close(self) -> None:
        os.close(self._fd)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power cut. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass
class _Group:
    """Hits that wait for one commit. `began`: when the first of them came, by perf_counter."""

    durable: "asyncio.Future[bool]"
    began: float
    hits: list[HitTuple] = field(default_factory=list[HitTuple])


# A frame's group and counts, or what to do to the segment.
_Work = tuple[_Group | None, dict[tuple[bytes, int], int]] | Literal["let go", "end"]


class Journal:
    """Appending side, one a process. `append` and `count_limited` are for the event loop; a thread writes and syncs."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.figures = JournalFigures()
        # Why the last frame could not be kept; None while all is well.
        self.trouble: str | None = None
        self._folder = folder
        self._max_bytes = max_bytes
        self._loop = asyncio.get_running_loop()
        self._groups: deque[_Group] = deque()
        self._limited: dict[tuple[bytes, int], int] = {}
        self._writing = False
        self._work: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._segment: Segment | None = None
        # Small against the limit, so that what is digested makes room.
        self._segment_bytes = min(SEGMENT_BYTES, max_bytes // 8)
        # As last looked up, at `_looked_at`: bytes of segments that are not ours, of the disk, of it what stays free.
        self._looked_at = 0.0
        self._others = self._free = self._reserve = 0
        self._let_go_asked = _let_go_asked(folder)
        _remove_drafts(folder)
        self._thread = threading.Thread(target=self._write_frames, name="journal", daemon=True)
        self._thread.start()

    def append(self, hit: HitTuple) -> "asyncio.Future[bool]":
        """A future that is True once the hit is on disk, False when it could not be kept."""
        groups = self._groups
        if groups and len(groups[-1].hits) < FRAME_HITS:
            group = groups[-1]
        else:
            group = _Group(self._loop.create_future(), time.perf_counter())
            groups.append(group)
            if not self._writing:
                # Not at once: the other requests that are ready in this turn of the loop join the same frame.
                self._loop.call_soon(self._start_frame)
        group.hits.append(hit)
        return group.durable

    def count_limited(self, app_id: bytes, minute: int) -> None:
        """Count a hit that a limit refused; written with the next frame, or by `flush_limited`."""
        key = (app_id, minute)
        self._limited[key] = self._limited.get(key, 0) + 1

    def flush_limited(self) -> None:
        """Have the counted limited hits written even if no hit comes along. Call it about once a second.

        And let go of the segment where somebody asked for it.

        While there is trouble it writes a frame in any case: nobody else may find out that the trouble is over, since a
        machine that reports it is sent no hits.
        """
        if self._limited or self.trouble is not None:
            self._start_frame()
        if (asked := _let_go_asked(self._folder)) != self._let_go_asked:
            self._let_go_asked = asked
            self._work.put("let go")

    def _start_frame(self) -> None:
        if self._writing or not (self._groups or self._limited or self.trouble is not None):
            return
        self._writing = True
        limited, self._limited = self._limited, {}
        self._work.put((self._groups.popleft() if self._groups else None, limited))

    def _frame_done(self, group: _Group | None, limited: dict[tuple[bytes, int], int], error: Exception | None) -> None:
        self._writing = False
        if error is not None:
            for key, count in limited.items():
                self._limited[key] = self._limited.get(key, 0) + count
        trouble = None
        if error is not None:
            trouble = (isinstance(error, OSError) and error.strerror) or type(error).__name__
        if trouble != self.trouble:
            if trouble:
                log.error("journal cannot keep hits; pixels answer 503 until it can", reason=trouble)
            else:
                log.info("journal keeps hits again")
            self.trouble = trouble
        if group is not None:
            self._count(group, kept=error is None)
            if not group.durable.done():  # one cancelled waiter cancels what all of the group wait for
                group.durable.set_result(error is None)
        if self._groups:
            # Again not at once: hits that are ready in this turn join, which makes a tenth more of them a second.
            self._loop.call_soon(self._start_frame)

    def _count(self, group: _Group, kept: bool) -> None:
        count, figures = len(group.hits), self.figures
        if not kept:
            figures.refused += count
            return
        seconds = time.perf_counter() - group.began
        figures.hits += count
        figures.frames += 1
        # The first hit of a frame waits longest; its wait is taken for all of them, so the figure errs upwards.
        figures.latency_seconds += seconds * count
        figures.latency_counts[bisect.bisect_left(LATENCY_BOUNDS, seconds)] += count

    def _write_frames(self) -> None:
        while (work := self._work.get()) != "end":
            if work == "let go":
                with contextlib.suppress(OSError):  # of closing: the segment is no longer used in any case
                    if self._segment is not None:
                        self._let_go(self._segment)
                continue
            group, limited = work
            counts = [(app_id, minute, count) for (app_id, minute), count in limited.items()]
            error: Exception | None = None
            try:
                self._write(encode_frame(group.hits if group else [], counts))
            except Exception as failure:  # a thread that ended would have every hit wait for ever
                error = failure
            self._loop.call_soon_threadsafe(self._frame_done, group, limited, error)
        if self._segment is not None:
            self._segment.close()

    def _write(self, frame: bytes) -> None:
        segment = self._segment
        if segment is not None and (not segment.usable or segment.size >= self._segment_bytes):
            self._let_go(segment)
        self._make_sure_of_room(len(frame))
        if self._segment is None:
            self._segment = Segment(self._folder)
        self._segment.append(frame)

    def _let_go(self, segment: Segment) -> None:
        """Close the segment: once digested it can be removed."""
        # Before: a descriptor whose closing failed is closed all the same, and its number may be another file's.
        self._segment = None
        self._looked_at = 0.0
        segment.close()

    def _make_sure_of_room(self, more: int) -> None:
        """Raises OSError when the journal, or the disk, has none for `more` bytes. Looks four times a second."""
        own = self._segment
        if time.monotonic() - self._looked_at > 0.25:
            sizes = dict(segment_sizes(self._folder))
            if own is not None and sizes.pop(own.path, None) is None:
                # Whatever is still written to it nobody reads.
                log.error("journal segment was removed while it was written; a new one is begun", segment=own.path.name)
                self._let_go(own)
                own = None
            self._others = sum(sizes.values())
            disk = os.statvfs(self._folder)
            self._free = disk.f_bavail * disk.f_frsize
            self._reserve = min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize // 50)
            self._looked_at = time.monotonic()
        if self._others + (own.size if own else 0) + more > self._max_bytes:
            if own is not None and own.size:
                self._let_go(own)
            raise OSError(errno.EDQUOT, "the journal has reached ONEPX_JOURNAL_MAX_BYTES")
        if self._free < self._reserve:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def close(self) -> None:
        """Write what waits, then end. Nothing may be appended any more."""
        while self._writing or self._groups or (self._limited and self.trouble is None):
            self._start_frame()
            await asyncio.sleep(0.002)
        self._work.put("end")
        await asyncio.to_thread(self._thread.join)


def ask_to_let_go(folder: Path) -> None:
    """Have every process that writes to this journal end its segment within seconds, so that the digest removes it."""
    (folder / _LET_GO).touch(0o600)


def _let_go_asked(folder: Path) -> int:
    try:
        return (folder / _LET_GO).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def oldest_segment(folder: Path) -> int | None:
    """When the oldest segment was begun, in ms: of hits that came before, digested or not, nothing is left."""
    return min((int(path.name.partition("-")[0]) for path, _ in segment_sizes(folder)), default=None)


def _remove_drafts(folder: Path) -> None:
    """Remove segments that killed processes never came to name. By age: another process may be making one."""
    for draft in folder.glob("*.new"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - draft.stat().st_mtime > 600:
                draft.unlink()


_SEGMENT = re.compile(r"[0-9]{14}-[0-9a-f]{9}\.journal")


def segment_sizes(folder: Path) -> list[tuple[Path, int]]:
    """(path, bytes) of every segment, oldest first."""
    found: list[tuple[Path, int]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            # A copy that somebody made has another name, and would be counted twice.
            if _SEGMENT.fullmatch(entry.name) and entry.is_file():
                with contextlib.suppress(FileNotFoundError):  # just removed: digested
                    found.append((Path(entry.path), entry.stat().st_size))
    return sorted(found)


def written_in_turn(folder: Path) -> bool:
    """Whether each segment was begun when the ones before it were finished: then all frames are in order of time.

    Those of one process are, and those of one that was started when the other had ended.
    """
    finished = 0
    for path, _ in segment_sizes(folder):
        if int(path.name.partition("-")[0]) < finished:
            return False
        with contextlib.suppress(FileNotFoundError):  # just removed: digested
            finished = max(finished, path.stat().st_mtime_ns // 1_000_000)
    return True


@dataclass(frozen=True)
class Frame:
    """A whole frame found in a segment. Offsets in bytes; `first` is when its first hit came, in ms."""

    segment: str
    start: int
    end: int
    body: bytes
    first: int

    def read(self) -> Body:
        """Its hits. Raises msgspec.DecodeError when this version cannot read them."""
        return _decoder.decode(self.body)

    @property
    def id_base(self) -> int:
        """What the hits' ids have in common: add a hit's index. 74 bits: segment seed, offset, index."""
        seed = int(self.segment.partition("-")[2].partition(".")[0], 16)
        return (seed << OFFSET_BITS | self.start) << INDEX_BITS


def hit_id(base: int, index: int, received_at: int) -> int:
    """The hit's id as the number of a UUID, version 7: ordered by time, and the same whenever its frame is read."""
    place = base + index
    return (received_at << 80) | 7 << 76 | (place >> 62) << 64 | 0b10 << 62 | (place & 0x3FFF_FFFF_FFFF_FFFF)


@dataclass(frozen=True)
class Damage:
    """Bytes that are no frame, where frames follow: the disk lost or changed what was acknowledged."""

    segment: str
    start: int
    end: int
    # Nobody knows when its hits came, and it holds up nobody.
    first = 0


def read_frames(
    path: Path, start: int, end: int | None = None, most_bytes: int = 8 * 1024**2
) -> Iterator[Frame | Damage]:
    """The frames from offset `start` on, up to `end` or about `most_bytes`; and the damage between them.

    Stops before what is no whole frame when no frame follows it: that is being written, or was never acknowledged.
    """
    with path.open("rb") as segment:
        size = os.fstat(segment.fileno()).st_size if end is None else end
        offset = start
        while offset < size and offset - start < most_bytes:
            frame = _frame_at(segment, path.name, offset, size)
            if frame is not None:
                yield frame
                offset = frame.end
                continue
            following = _next_frame(segment, path.name, offset + 1, size)
            if following is None:
                return
            yield Damage(path.name, offset, following)
            offset = following


def _frame_at(segment: BinaryIO, name: str, offset: int, size: int) -> Frame | None:
    segment.seek(offset)
    header = segment.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    magic, length, crc, _hits, first = HEADER.unpack(header)
    end = offset + HEADER.size + length
    if magic != MAGIC or end > size:
        return None
    body = segment.read(length)
    return Frame(name, offset, end, body, first) if zlib.crc32(body) == crc else None


def _next_frame(segment: BinaryIO, name: str, offset: int, size: int) -> int | None:
    """Where the first whole frame from `offset` on begins."""
    segment.seek(offset)
    rest = segment.read(size - offset)
    found = rest.find(MAGIC)
    while found >= 0:
        if _frame_at(segment, name, offset + found, size) is not None:
            return offset + found
        found = rest.find(MAGIC, found + 1)
    return None


def keep_damage(folder: Path, damage: Damage) -> None:
    """Copy the damaged bytes to a file of their own, for a person to look at; done again it changes nothing."""
    with (folder / damage.segment).open("rb") as segment:
        segment.seek(damage.start)
        copy = folder / f"{damage.segment.removesuffix('.journal')}-{damage.start}.damaged"
        copy.write_bytes(segment.read(damage.end - damage.start))
    log.error("journal segment is damaged; the rest of it goes on", segment=damage.segment, kept=copy.name)


def remove_if_done(path: Path, position: int) -> bool:
    """Remove the segment if its writer is gone and all frames in it, up to `position`, are digested."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # With the lock held nobody appends: what follows the last whole frame was most likely never acknowledged.
        if next(read_frames(path, position), None) is not None:
            return False
        size = os.fstat(fd).st_size
        if _is_torn(os.pread(fd, HEADER.size, position), size - position):
            if size > position:
                log.info(
                    "journal segment ended in a frame never acknowledged", segment=path.name, bytes=size - position
                )
        else:
            keep_damage(path.parent, Damage(path.name, position, size))
        path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _is_torn(header: bytes, left: int) -> bool:
    """Whether the `left` bytes that begin so are a frame cut off in writing, or the zeros a power cut leaves."""
    if len(header) < HEADER.size or not any(header):
        return True
    magic, length, *_ = HEADER.unpack(header)
    return magic == MAGIC and HEADER.size + length > left


@dataclass
class Backlog:
    """Counts hits not yet digested, remembering how far it counted in each segment: (from, to, hits between)."""

    folder: Path
    _counted: dict[str, tuple[int, int, int]] = field(default_factory=dict[str, tuple[int, int, int]])

    def measure(self, positions: Mapping[str, int]) -> tuple[int, int, float]:
        """(hits, bytes on disk, age of the oldest hit in s) with `positions` digested in each segment."""
        hits = size_on_disk = 0
        oldest: int | None = None
        counted: dict[str, tuple[int, int, int]] = {}
        for path, size in segment_sizes(self.folder):
            size_on_disk += size
            digested = positions.get(path.name, 0)
            low, high, between = self._counted.get(path.name, (digested, digested, 0))
            with contextlib.suppress(FileNotFoundError), path.open("rb") as segment:
                if digested >= high:
                    low = high = digested
                    between = 0
                else:
                    between -= _count_hits(segment, low, digested)[1]
                    low = digested
                high, more = _count_hits(segment, high, size)
                between += more
                if between and (first := _first_received(segment, low)) is not None:
                    oldest = first if oldest is None else min(oldest, first)
            counted[path.name] = (low, high, between)
            hits += between
        self._counted = counted
        return hits, size_on_disk, max(0.0, time.time() - oldest / 1000) if oldest is not None else 0.0


def _count_hits(segment: BinaryIO, start: int, stop: int) -> tuple[int, int]:
    """(where the last whole frame before `stop` ends, hits in the frames from `start` to there)."""
    hits = 0
    while start + HEADER.size <= stop:
        segment.seek(start)
        header = segment.read(HEADER.size)
        if len(header) < HEADER.size:
            break  # cut off by its writer meanwhile: the disk was full
        magic, length, _crc, count, _first = HEADER.unpack(header)
        if magic != MAGIC or start + HEADER.size + length > stop:
            break
        hits += count
        start += HEADER.size + length
    return start, hits


def _first_received(segment: BinaryIO, start: int) -> int | None:
    segment.seek(start)
    header = segment.read(HEADER.size)
    return HEADER.unpack(header)[4] if len(header) == HEADER.size else None
