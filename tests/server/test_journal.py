"""The journal: what was acknowledged is read back, whatever became of the file's end or of the disk."""
# pyright: reportPrivateUsage=false

import asyncio
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from server import journal as module
from server.journal import (
    HEADER,
    MAGIC,
    Backlog,
    Damage,
    Frame,
    Hit,
    HitTuple,
    Journal,
    Segment,
    ask_to_let_go,
    encode_frame,
    hit_id,
    keep_damage,
    oldest_segment,
    read_frames,
    remove_if_done,
    segment_sizes,
    written_in_turn,
)

APP = b"a" * 16
MUCH = 1024**3


def hit(number: int, received_at: int = 1_700_000_000_000) -> HitTuple:
    return (received_at, APP, 0, b"event_token=e%d" % number, None, False, "", b"", b"", b"", 0, False, "USD")


def frames(path: Path, start: int = 0) -> list[Frame]:
    """The whole frames from there on, of a segment without damage."""
    found: list[Frame] = []
    for frame in read_frames(path, start):
        assert isinstance(frame, Frame), frame
        found.append(frame)
    return found


def queries(folder: Path) -> list[bytes]:
    """The query strings of all hits in all segments, in their order."""
    return [hit.query for path, _ in segment_sizes(folder) for frame in frames(path) for hit in frame.read().hits]


def sent(*numbers: int) -> list[bytes]:
    return [hit(number)[3] for number in numbers]


@pytest.fixture
async def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path, MUCH)


def segment_of(folder: Path, *frames: bytes) -> Path:
    """A segment with these frames that nobody writes any more."""
    segment = Segment(folder)
    for frame in frames:
        segment.append(frame)
    segment.close()
    return segment.path


# Appending


async def test_a_hit_is_on_disk_when_its_future_is_done(journal: Journal, tmp_path: Path) -> None:
    for number in range(3):
        assert await journal.append(hit(number)) is True
        assert queries(tmp_path) == sent(*range(number + 1))
    await journal.close()


async def test_hits_that_wait_together_share_one_commit(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    sync = os.fdatasync

    def counting(fd: int) -> None:
        syncs.append(fd)
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", counting)
    assert all(await asyncio.gather(*(journal.append(hit(number)) for number in range(500))))
    assert len(syncs) == 1
    assert queries(tmp_path) == sent(*range(500))
    assert (journal.figures.hits, journal.figures.frames) == (500, 1)
    await journal.close()


async def test_nothing_is_acknowledged_before_the_sync_returns(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)
    sync = os.fdatasync

    def slow(fd: int) -> None:
        begun.release()
        assert go_on.acquire(timeout=10)
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    first = journal.append(hit(0))
    assert await asyncio.to_thread(begun.acquire, timeout=10)
    assert queries(tmp_path) == sent(0), "written, not yet synced"
    # These come while the disk is busy, one by one, and wait for the next commit together.
    others: list[asyncio.Future[bool]] = []
    for number in range(1, 101):
        others.append(journal.append(hit(number)))
        await asyncio.sleep(0)
    assert not any(future.done() for future in [first, *others])
    go_on.release()
    assert await first is True
    assert await asyncio.to_thread(begun.acquire, timeout=10)
    assert not any(future.done() for future in others)
    go_on.release()
    assert await others[0] is True
    assert all(future.done() and future.result() for future in others), "answered together"
    await journal.close()
    ((path, _),) = segment_sizes(tmp_path)
    assert [len(frame.read().hits) for frame in frames(path)] == [1, 100]


async def test_one_that_no_longer_waits_does_not_stop_the_journal(journal: Journal, tmp_path: Path) -> None:
    given_up = journal.append(hit(0))
    await asyncio.sleep(0)  # its frame is begun
    given_up.cancel()
    async with asyncio.timeout(5):
        assert await journal.append(hit(1)) is True
    await journal.close()
    assert queries(tmp_path) == sent(0, 1)


async def test_a_hit_that_cannot_be_written_down_is_refused_and_stops_nothing(journal: Journal, tmp_path: Path) -> None:
    async with asyncio.timeout(5):
        assert await journal.append(hit(0, received_at=2**64)) is False
        assert journal.trouble == "OverflowError"
        assert await journal.append(hit(1)) is True
    await journal.close()
    assert queries(tmp_path) == sent(1)


async def test_a_frame_takes_only_as_many_hits_as_an_id_can_tell_apart(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRAME_HITS", 10)
    assert all(await asyncio.gather(*(journal.append(hit(number)) for number in range(25))))
    (path,) = [path for path, _ in segment_sizes(tmp_path)]
    assert [len(frame.read().hits) for frame in frames(path)] == [10, 10, 5]
    await journal.close()


async def test_closing_writes_what_waits(journal: Journal, tmp_path: Path) -> None:
    waiting = [journal.append(hit(number)) for number in range(5)]
    journal.count_limited(APP, 60)
    await journal.close()
    assert [future.result() for future in waiting] == [True] * 5
    assert queries(tmp_path) == sent(*range(5))
    (path,) = [path for path, _ in segment_sizes(tmp_path)]
    assert [limited for frame in frames(path) for limited in frame.read().limited] == [(APP, 60, 1)]


async def test_limited_hits_are_counted_without_any_hit_coming_along(journal: Journal, tmp_path: Path) -> None:
    journal.flush_limited()
    assert segment_sizes(tmp_path) == []
    for _ in range(3):
        journal.count_limited(APP, 60)
    journal.count_limited(APP, 120)
    journal.flush_limited()
    await journal.close()
    ((path, _),) = segment_sizes(tmp_path)
    (frame,) = frames(path)
    assert frame.read().hits == []
    assert sorted(frame.read().limited) == [(APP, 60, 3), (APP, 120, 1)]


async def test_a_full_segment_is_followed_by_another(tmp_path: Path) -> None:
    # An eighth of the limit, so that what is digested makes room.
    journal = Journal(tmp_path, 8 * 400)
    for number in range(20):
        assert await journal.append(hit(number))
        await asyncio.sleep(0.002)  # segments are named by the ms
    await journal.close()
    assert len(segment_sizes(tmp_path)) > 3
    assert queries(tmp_path) == sent(*range(20))


async def test_ids_of_hits_are_different_and_the_same_whenever_read(journal: Journal, tmp_path: Path) -> None:
    for _ in range(3):
        await asyncio.gather(*(journal.append(hit(number)) for number in range(100)))
    await journal.close()

    def ids() -> list[int]:
        return [
            hit_id(frame.id_base, index, hit.received_at)
            for path, _ in segment_sizes(tmp_path)
            for frame in frames(path)
            for index, hit in enumerate(frame.read().hits)
        ]

    found = ids()
    assert len(set(found)) == 300
    assert ids() == found
    for number in found:
        made = UUID(int=number)
        assert (made.version, made.variant) == (7, "specified in RFC 4122")
        assert number >> 80 == 1_700_000_000_000


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**34 - 1), st.integers(0, 2**26 - 1), st.integers(0, 2**14 - 1))
def test_an_id_holds_the_time_and_then_the_place(received_at: int, seed: int, offset: int, index: int) -> None:
    frame = Frame(f"00000000000000-{seed:09x}.journal", offset, offset + 1, b"", 0)
    made = UUID(int=hit_id(frame.id_base, index, received_at))
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    # Without version and variant the rest is in order: time, segment, offset, index.
    bits = f"{made.int:0128b}"
    assert bits[:48] + bits[52:64] + bits[66:] == f"{received_at:048b}{seed:034b}{offset:026b}{index:014b}"


def test_the_bits_of_an_id_suffice() -> None:
    assert module.SEGMENT_BYTES <= 2**module.OFFSET_BITS
    assert module.FRAME_HITS <= 2**module.INDEX_BITS
    assert module.SEED_BITS + module.OFFSET_BITS + module.INDEX_BITS == 128 - 48 - 4 - 2


# The disk


class Disk:
    """Makes writes or syncs fail on demand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room: int | None = None
        self.syncs = True
        self._write, self._sync = os.write, os.fdatasync
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "fdatasync", self.sync)

    def write(self, fd: int, data: bytes) -> int:
        if self.room is None:
            return self._write(fd, data)
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # As a file system does: what fits is written, the next write fails.
        written = self._write(fd, data[: self.room])
        self.room -= written
        return written

    def sync(self, fd: int) -> None:
        if not self.syncs:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._sync(fd)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("room", [0, 1, HEADER.size - 1, HEADER.size, HEADER.size + 5])
async def test_on_a_full_disk_nothing_of_the_frame_counts(
    journal: Journal, tmp_path: Path, disk: Disk, room: int
) -> None:
    assert await journal.append(hit(1))
    disk.room = room
    assert await journal.append(hit(2)) is False
    assert journal.trouble == os.strerror(errno.ENOSPC)
    assert journal.figures.refused == 1
    disk.room = None
    assert await journal.append(hit(3)) is True
    assert journal.trouble is None
    await journal.close()
    assert queries(tmp_path) == sent(1, 3)


async def test_a_segment_that_keeps_part_of_a_frame_is_given_up(
    journal: Journal, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes after such a part would be read as damage."""

    def broken(fd: int, length: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    assert await journal.append(hit(1))
    disk.room = HEADER.size
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", broken)
        assert await journal.append(hit(2)) is False
    disk.room = None
    assert await journal.append(hit(3)) is True
    await journal.close()
    assert len(segment_sizes(tmp_path)) == 2
    assert sorted(queries(tmp_path)) == sent(1, 3)


async def test_limited_hits_counted_while_the_disk_is_full_are_written_later(
    journal: Journal, tmp_path: Path, disk: Disk
) -> None:
    disk.room = 0
    journal.count_limited(APP, 60)
    assert await journal.append(hit(1)) is False
    journal.count_limited(APP, 60)
    disk.room = None
    assert await journal.append(hit(2)) is True
    await journal.close()
    limited = [row for path, _ in segment_sizes(tmp_path) for f in frames(path) for row in f.read().limited]
    assert sum(count for _, _, count in limited) == 2


async def test_closing_on_a_full_disk_ends(journal: Journal, disk: Disk) -> None:
    disk.room = 0
    waiting = journal.append(hit(1))
    journal.count_limited(APP, 60)
    async with asyncio.timeout(5):
        await journal.close()
    assert waiting.result() is False


async def test_after_a_failed_sync_the_segment_is_given_up(journal: Journal, tmp_path: Path, disk: Disk) -> None:
    assert await journal.append(hit(1))
    disk.syncs = False
    assert await journal.append(hit(2)) is False
    disk.syncs = True
    assert await journal.append(hit(3)) is True
    await journal.close()
    assert len(segment_sizes(tmp_path)) == 2
    # What was answered with 503 may be sent again. (Segments that began in the same ms are in no order.)
    assert sorted(queries(tmp_path)) == sent(1, 3)


async def test_trouble_is_over_without_a_hit_finding_out(journal: Journal, disk: Disk) -> None:
    disk.room = 0
    assert await journal.append(hit(1)) is False
    journal.flush_limited()
    await asyncio.sleep(0.05)
    assert journal.trouble is not None
    disk.room = None
    journal.flush_limited()
    await asyncio.sleep(0.05)
    assert journal.trouble is None
    await journal.close()


async def test_at_its_size_limit_the_journal_refuses_until_segments_are_gone(tmp_path: Path) -> None:
    # Left behind by a process that is gone.
    old = segment_of(tmp_path, encode_frame([hit(0)] * 1000, []))
    limit = old.stat().st_size + 1000
    journal = Journal(tmp_path, limit)
    assert await journal.append(hit(1)) is True
    while await journal.append(hit(2)):
        assert sum(size for _, size in segment_sizes(tmp_path)) <= limit
    assert journal.trouble == "the journal has reached ONEPX_JOURNAL_MAX_BYTES"
    old.unlink()
    await asyncio.sleep(0.3)  # sizes of others are looked up four times a second
    assert await journal.append(hit(3)) is True
    assert journal.trouble is None
    await journal.close()


async def test_at_its_size_limit_the_journal_lets_go_of_what_it_wrote(tmp_path: Path) -> None:
    """Hits that are digested would keep the room that new ones wait for: nobody writes any more, so it never fills."""
    old = segment_of(tmp_path, encode_frame([hit(0)] * 1000, []))
    journal = Journal(tmp_path, old.stat().st_size + 10 * len(encode_frame([hit(1)], [])))
    taken = 0
    while await journal.append(hit(1)):
        taken += 1
        journal._looked_at = 0.0
    assert taken == 10
    # Nothing went yet, and what was let go of counts.
    assert await journal.append(hit(2)) is False
    (own,) = [(path, size) for path, size in segment_sizes(tmp_path) if path != old]
    assert remove_if_done(*own)
    await asyncio.sleep(0.3)
    assert await journal.append(hit(3)) is True
    await journal.close()


async def test_a_journal_full_of_its_own_digested_hits_takes_hits_again(tmp_path: Path) -> None:
    limit = 4000
    journal = Journal(tmp_path, limit)
    for _ in range(3):
        count = 0
        while await journal.append(hit(1)):
            count += 1
            assert count < 1000
        assert count > 20
        await asyncio.sleep(0.3)
        # All is digested; what is still being written cannot go.
        for path, size in segment_sizes(tmp_path):
            remove_if_done(path, size)
        assert sum(size for _, size in segment_sizes(tmp_path)) <= limit / 4
    await journal.close()


async def test_a_disk_nearly_full_is_left_its_reserve(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statvfs = os.statvfs

    def nearly_full(path: Path) -> SimpleNamespace:
        real = statvfs(path)
        return SimpleNamespace(f_frsize=1, f_bavail=free, f_blocks=real.f_blocks * real.f_frsize)

    monkeypatch.setattr(os, "statvfs", nearly_full)
    free = module.RESERVE_BYTES - 1
    assert await journal.append(hit(1)) is False
    assert journal.trouble == os.strerror(errno.ENOSPC)
    free = module.RESERVE_BYTES * 2
    await asyncio.sleep(0.3)
    assert await journal.append(hit(2)) is True
    await journal.close()
    assert queries(tmp_path) == sent(2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


async def test_a_disk_full_for_real_costs_no_acknowledged_hit(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn: list[int] = []
    write = os.write

    def watched(fd: int, data: bytes) -> int:
        written = write(fd, data)
        if written < len(data):
            torn.append(written)
        return written

    # The reserve would hold the journal back from the last byte of the disk.
    monkeypatch.setattr(module, "RESERVE_BYTES", 0)
    monkeypatch.setattr(os, "write", watched)
    journal = Journal(small_disk, MUCH)
    kept: list[int] = []
    refused: list[int] = []

    async def send() -> bool:
        """A frame of several pages, so that the disk's end lies within one."""
        first = len(kept) + len(refused)
        numbers = range(first, first + 40)
        hits = [(*hit(number)[:7], b"f" * 1000, b"", b"", 0, False, "USD") for number in numbers]
        (answer,) = set(await asyncio.gather(*map(journal.append, hits)))
        (kept if answer else refused).extend(numbers)
        return answer

    for _ in range(2):
        filling = small_disk / "filling"
        room = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        filling.write_bytes(bytes(room - 400_000))
        while await send():
            assert len(kept) < 10_000
        for _ in range(3):
            assert await send() is False
            assert journal.trouble == os.strerror(errno.ENOSPC)
        # Nothing torn is left behind: each segment ends with a whole frame.
        ends = {path: max((frame.end for frame in frames(path)), default=0) for path, _ in segment_sizes(small_disk)}
        assert ends == dict(segment_sizes(small_disk))
        filling.unlink()
        assert await send() is True
        assert journal.trouble is None
    await journal.close()
    assert torn, "the disk was never full in the middle of a frame"
    assert Counter(queries(small_disk)) == Counter(sent(*kept))
    assert len(refused) >= 8 * 40
    assert journal.figures.refused == len(refused)


# Reading


FRAMES = [encode_frame([hit(number), hit(number + 100)], [(APP, 60, number)]) for number in range(3)]
WHOLE = sum(map(len, FRAMES))
LAST = WHOLE - len(FRAMES[2])


def kept_damage(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.glob("*.damaged")]


def damage(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("kept", range(len(FRAMES[2])))
def test_a_torn_last_frame_was_never_acknowledged(tmp_path: Path, kept: int) -> None:
    path = segment_of(tmp_path, *FRAMES)
    os.truncate(path, LAST + kept)
    assert queries(tmp_path) == sent(0, 100, 1, 101)
    assert remove_if_done(path, LAST)
    assert (segment_sizes(tmp_path), kept_damage(tmp_path)) == ([], [])


@pytest.mark.parametrize("zeros", [1, 19, HEADER.size, 4096])
def test_zeros_after_the_last_frame_are_no_damage(tmp_path: Path, zeros: int) -> None:
    path = segment_of(tmp_path, *FRAMES)
    with path.open("ab") as file:
        file.write(bytes(zeros))
    assert len(queries(tmp_path)) == 6
    assert remove_if_done(path, WHOLE)
    assert (segment_sizes(tmp_path), kept_damage(tmp_path)) == ([], [])


def test_a_last_frame_of_the_right_length_with_wrong_bytes_is_kept_for_a_person(tmp_path: Path) -> None:
    path = segment_of(tmp_path, *FRAMES)
    # A power cut between the file's length and its data reaching the disk; or damage. Nobody can tell.
    damage(path, WHOLE - 10, bytes(10))
    assert queries(tmp_path) == sent(0, 100, 1, 101)
    assert remove_if_done(path, LAST)
    assert kept_damage(tmp_path) == [FRAMES[2][:-10] + bytes(10)]


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        pytest.param(0, b"\0", id="magic"),
        pytest.param(4, b"\0", id="shorter length"),
        pytest.param(6, b"\x7f", id="longer length"),
        pytest.param(8, bytes(4), id="checksum"),
        pytest.param(HEADER.size + 5, b"\xff", id="body"),
        pytest.param(HEADER.size + 5, MAGIC, id="what looks like a frame"),
        pytest.param(0, bytes(len(FRAMES[1])), id="a hole"),
    ],
)
def test_damage_costs_no_hit_before_or_after_it(tmp_path: Path, offset: int, data: bytes) -> None:
    path = segment_of(tmp_path, *FRAMES)
    damage(path, len(FRAMES[0]) + offset, data)
    first, damaged, third = read_frames(path, 0)
    assert isinstance(first, Frame)
    assert isinstance(third, Frame)
    assert [hit.query for frame in (first, third) for hit in frame.read().hits] == sent(0, 100, 2, 102)
    assert damaged == Damage(path.name, first.end, third.start)
    assert isinstance(damaged, Damage)
    for _ in range(2):
        keep_damage(tmp_path, damaged)
        assert kept_damage(tmp_path) == [path.read_bytes()[first.end : third.start]]
    assert len(segment_sizes(tmp_path)) == 1, "the segment stays as it is"


def test_what_a_living_writer_has_not_finished_is_waited_for(tmp_path: Path) -> None:
    segment = Segment(tmp_path)
    segment.append(FRAMES[0])
    with segment.path.open("ab") as writer:
        writer.write(FRAMES[1][:-1])
        writer.flush()
        assert queries(tmp_path) == sent(0, 100)
        assert remove_if_done(segment.path, len(FRAMES[0])) is False
        writer.write(FRAMES[1][-1:])
    assert queries(tmp_path) == sent(0, 100, 1, 101)
    segment.close()


def test_reading_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = segment_of(tmp_path, *FRAMES)
    first, second, third = frames(path)
    assert (first.start, first.end, second.end, third.end) == (0, len(FRAMES[0]), third.start, WHOLE)
    assert list(read_frames(path, first.end)) == [second, third]
    assert list(read_frames(path, first.end, second.end)) == [second]
    assert list(read_frames(path, WHOLE)) == []
    assert list(read_frames(path, 0, most_bytes=1)) == [first]


PIECES = st.binary(max_size=60) | st.sampled_from([*FRAMES, FRAMES[0][:-1], FRAMES[1][1:], MAGIC, bytes(HEADER.size)])


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=6), st.integers(0, 400))
def test_any_bytes_are_read_as_frames_damage_and_an_unfinished_end(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], start: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "0-000000001.journal"
    content = b"".join(pieces)
    path.write_bytes(content)
    found = list(read_frames(path, start))
    for one in found:
        assert start == one.start < one.end <= len(content), "nothing is left out, nothing is read twice"
        start = one.end
        if isinstance(one, Frame):
            assert content[one.start :].startswith(MAGIC)
            assert content[one.start + HEADER.size : one.end] == one.body
    assert all(isinstance(found[index + 1], Frame) for index, one in enumerate(found) if isinstance(one, Damage))
    assert not any(frame in content[start:] for frame in FRAMES), "the rest holds no frame"


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**47),
            st.binary(min_size=16, max_size=16),
            st.sampled_from([0, 1]),
            st.binary(max_size=300),
            st.none() | st.binary(min_size=16, max_size=16),
            st.booleans(),
            st.text(max_size=20),
            st.binary(max_size=50),
            st.binary(max_size=50),
            st.binary(max_size=50),
            st.integers(0, 2**63 - 1),
        ),
        max_size=5,
    ),
    st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 2**40), st.integers(1, 2**40)), max_size=5),
)
def test_a_frame_gives_back_what_was_put_in(
    tmp_path_factory: pytest.TempPathFactory, hits: list[HitTuple], limited: list[tuple[bytes, int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "0-000000000.journal"
    frame = encode_frame(hits, limited)
    path.write_bytes(frame)
    (found,) = frames(path)
    assert found.read().hits == [Hit(*hit) for hit in hits]
    assert found.read().limited == limited
    assert HEADER.unpack_from(frame)[0] == MAGIC
    assert HEADER.unpack_from(frame)[3] == len(hits)


# Removing


def test_a_segment_goes_only_when_its_writer_is_gone_and_all_of_it_is_digested(tmp_path: Path) -> None:
    segment = Segment(tmp_path)
    for frame in FRAMES:
        segment.append(frame)
    assert remove_if_done(segment.path, WHOLE) is False, "its writer lives"
    segment.close()
    assert remove_if_done(segment.path, WHOLE - len(FRAMES[2])) is False, "a frame is not digested"
    assert queries(tmp_path) != []
    assert remove_if_done(segment.path, WHOLE) is True
    assert segment_sizes(tmp_path) == []
    assert remove_if_done(segment.path, WHOLE) is True, "gone already"


_WRITE_AND_WAIT = """
import sys
from pathlib import Path
from server.journal import Segment

segment = Segment(Path(sys.argv[1]))
segment.append(sys.stdin.buffer.read(int(sys.argv[2])))
print(segment.path, flush=True)
sys.stdin.buffer.read()
"""


def test_a_segment_stays_while_the_process_that_writes_it_lives(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WRITE_AND_WAIT, tmp_path, str(len(FRAMES[0]))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write(FRAMES[0])
        writer.stdin.flush()
        path = Path(writer.stdout.readline().decode().strip())
        assert remove_if_done(path, len(FRAMES[0])) is False
        assert queries(tmp_path) == sent(0, 100)
        writer.kill()
    assert remove_if_done(path, 0) is False, "its hits are not digested"
    assert queries(tmp_path) == sent(0, 100)
    assert remove_if_done(path, len(FRAMES[0])) is True
    assert not path.exists()


_TRY_TO_LOCK = """
import fcntl, json, os, sys, threading
from server.journal import segment_sizes

ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set())).start()
print("looking", flush=True)
seen, locked = set(), set()
while not ended.is_set():
    for path, _ in segment_sizes(sys.argv[1]):
        seen.add(path.name)
        fd = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked.add(path.name)
        except BlockingIOError:
            pass
        os.close(fd)
print(json.dumps([len(seen), len(locked)]))
"""


def test_no_process_ever_sees_a_new_segment_without_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = fcntl.flock

    def slow(fd: int, operation: int) -> None:
        time.sleep(0.01)  # time enough to be seen
        lock(fd, operation)
        time.sleep(0.01)

    monkeypatch.setattr(fcntl, "flock", slow)
    with subprocess.Popen(
        [sys.executable, "-c", _TRY_TO_LOCK, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "looking\n"
        segments = [Segment(tmp_path) for _ in range(30)]
        time.sleep(0.05)
        seen, locked = json.loads(other.communicate()[0])
    assert (seen, locked) == (30, 0)
    for segment in segments:
        segment.close()


def test_the_name_of_a_new_segment_is_on_disk_before_any_hit_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut could take the whole file with it, with all that was synced into it."""
    synced: list[tuple[int, list[Path]]] = []
    sync = os.fsync

    def recording(fd: int) -> None:
        synced.append((os.fstat(fd).st_ino, [path for path, _ in segment_sizes(tmp_path)]))
        sync(fd)

    monkeypatch.setattr(os, "fsync", recording)
    segment = Segment(tmp_path)
    assert synced == [(tmp_path.stat().st_ino, [segment.path])]
    segment.close()


async def test_what_a_killed_process_never_came_to_name_is_cleared_away(tmp_path: Path) -> None:
    young, old = tmp_path / "0000000000000001.new", tmp_path / "0000000000000002.new"
    for draft, age in ((young, 0), (old, 3600)):
        draft.touch()
        os.utime(draft, (time.time() - age, time.time() - age))
    await Journal(tmp_path, MUCH).close()
    assert [path for path in (young, old) if path.exists()] == [young]


def test_a_segment_nobody_has_locked_yet_is_not_seen(tmp_path: Path) -> None:
    (tmp_path / "0123456789abcdef.new").touch()
    assert segment_sizes(tmp_path) == []


def test_an_empty_segment_of_a_dead_writer_goes(tmp_path: Path) -> None:
    path = segment_of(tmp_path)
    assert remove_if_done(path, 0) is True
    assert not path.exists()


@pytest.mark.parametrize(
    ("written", "in_turn"),
    [
        ([], True),
        ([(100, 900)], True),
        ([(100, 200), (200, 300), (350, 900)], True),  # one process's, or of one started after the other
        ([(100, 300), (200, 400)], False),  # two at once
        ([(100, 900), (200, 300), (400, 500)], False),
    ],
)
def test_segments_written_one_after_the_other_are_told_from_those_of_two_processes(
    tmp_path: Path, written: list[tuple[int, int]], in_turn: bool
) -> None:
    for begun, finished in written:
        path = tmp_path / f"{begun:014d}-{begun:09x}.journal"
        path.touch()
        os.utime(path, ns=(finished * 1_000_000, finished * 1_000_000))
    assert written_in_turn(tmp_path) is in_turn


def test_the_segments_of_one_process_are_written_in_turn(tmp_path: Path) -> None:
    now = int(time.time() * 1000)
    for _ in range(5):
        segment = Segment(tmp_path)
        segment.append(encode_frame([hit(1, now)], []))
        segment.close()
        time.sleep(0.002)  # those of one millisecond have no order
    assert written_in_turn(tmp_path)
    first, second = Segment(tmp_path), Segment(tmp_path)
    time.sleep(0.05)
    for segment in (first, second):
        segment.append(encode_frame([hit(1, now)], []))
    assert not written_in_turn(tmp_path)
    first.close()
    second.close()


# Backlog


def test_the_backlog_is_what_stands_after_the_positions(tmp_path: Path) -> None:
    backlog = Backlog(tmp_path)
    assert backlog.measure({}) == (0, 0, 0.0)
    now = int(time.time() * 1000)
    ages = (60_000, 40_000, 20_000)
    written = [encode_frame([hit(n, now - age)] * (n + 1), []) for n, age in enumerate(ages)]
    segment = Segment(tmp_path)
    for frame in written[:2]:
        segment.append(frame)
    size = len(written[0]) + len(written[1])
    hits, on_disk, age = backlog.measure({})
    assert (hits, on_disk) == (1 + 2, size)
    assert age == pytest.approx(60, abs=1)
    # It goes on from where it counted, and what is digested counts no more.
    segment.append(written[2])
    hits, on_disk, age = backlog.measure({segment.path.name: len(written[0])})
    assert (hits, on_disk) == (2 + 3, size + len(written[2]))
    assert age == pytest.approx(40, abs=1)
    assert backlog.measure({segment.path.name: on_disk}) == (0, on_disk, 0.0)
    # Two processes' segments count together; half a frame does not count yet.
    other = segment_of(tmp_path, written[0], written[1][:-1])
    hits, _, age = backlog.measure({segment.path.name: on_disk})
    assert hits == 1
    assert age == pytest.approx(60, abs=1)
    segment.close()
    other.unlink()
    assert backlog.measure({segment.path.name: on_disk})[0] == 0


def test_the_backlog_of_a_segment_cut_off_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk a writer takes back what it wrote of a frame, at any moment."""
    path = segment_of(tmp_path, FRAMES[0])

    def seen_before(folder: Path) -> list[tuple[Path, int]]:
        return [(path, len(FRAMES[0]) + HEADER.size)]

    monkeypatch.setattr(module, "segment_sizes", seen_before)
    assert Backlog(tmp_path).measure({})[0] == 2


async def test_a_segment_is_let_go_when_somebody_asks(tmp_path: Path, journal: Journal) -> None:
    """So that hits do not stay on the disk once they are digested."""
    assert await journal.append(hit(1))
    ((first, size),) = segment_sizes(tmp_path)
    began = oldest_segment(tmp_path)
    assert began is not None
    assert not remove_if_done(first, size)
    journal.flush_limited()
    ask_to_let_go(tmp_path)
    # Nobody hits any more: it is let go all the same, and once only.
    journal.flush_limited()
    assert await journal.append(hit(2))
    assert await journal.append(hit(3))
    journal.flush_limited()
    assert await journal.append(hit(4))
    # Those of one millisecond are in no order.
    assert sorted(len(frames(path)) for path, _ in segment_sizes(tmp_path)) == [1, 3]
    assert sorted(queries(tmp_path)) == sent(1, 2, 3, 4)
    assert remove_if_done(first, size)
    assert (oldest_segment(tmp_path) or 0) >= began
    await journal.close()


async def test_a_segment_that_somebody_removed_is_written_no_more(tmp_path: Path, journal: Journal) -> None:
    assert await journal.append(hit(0))
    ((removed, _),) = segment_sizes(tmp_path)
    removed.unlink()
    # It is looked four times a second.
    await asyncio.sleep(0.3)
    with capture_logs() as logged:
        assert await journal.append(hit(1))
        assert await journal.append(hit(2))
    assert queries(tmp_path) == sent(1, 2)
    assert [line["segment"] for line in logged] == [removed.name]


async def test_who_has_no_segment_lets_none_go(tmp_path: Path, journal: Journal) -> None:
    ask_to_let_go(tmp_path)
    journal.flush_limited()
    assert await journal.append(hit(1))
    await journal.close()
    assert queries(tmp_path) == sent(1)
    # A writer that starts later has heard of it.
    later = Journal(tmp_path, MUCH)
    assert await later.append(hit(2))
    later.flush_limited()
    assert await later.append(hit(3))
    await later.close()
    assert sorted(len(frames(path)) for path, _ in segment_sizes(tmp_path)) == [1, 2]
    for path, size in segment_sizes(tmp_path):
        assert remove_if_done(path, size)
    assert oldest_segment(tmp_path) is None


def test_what_is_no_segment_is_left_alone(tmp_path: Path) -> None:
    """A copy that somebody made would be counted twice."""
    segment = Segment(tmp_path)
    segment.append(encode_frame([], []))
    segment.close()
    for name in ("readme.journal", f"{segment.path.stem}.copy.journal", f"copy-of-{segment.path.name}"):
        shutil.copy(segment.path, tmp_path / name)
    (tmp_path / "00000000000001-000000000.journal").mkdir()
    assert [path for path, _ in segment_sizes(tmp_path)] == [segment.path]
