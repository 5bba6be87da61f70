"""The digest: from the journal to the event store, in batches, each exactly once.

A batch is a fixed range of the journal, remembered on disk before anything of it is inserted; the inserts carry tokens
made from its rows, and the journal moves on only after them. Killed anywhere in between, the same range is digested
again to the same rows, under the same tokens.

    range -> decode -> claim event ids -> identify -> insert events, rejections, traffic -> move on -> remove segments

What fails is told apart: the store is away or full -> the batch waits and is tried again; a hit cannot be digested (a
bug of ours) -> it alone is set aside with its error, for `onepx digest retry`.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import heapq
import math
import operator
import os
import secrets
import sqlite3
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import msgspec
import structlog

from server.event_store import EventStoreRefused
from server.journal import (
    Backlog,
    Damage,
    Frame,
    Hit,
    ask_to_let_go,
    hit_id,
    keep_damage,
    read_frames,
    remove_if_done,
    segment_sizes,
    sync_folder,
    written_in_turn,
)
from server.routes import Routes
from tenants import access_tokens, event_ids, people
from tenants.access_tokens import WaitingToken
from tenants.deletions import unscoped_last_deletions
from tenants.erasures import unscoped_kept_since
from tenants.errors import Unavailable
from tenants.event_ids import Claim
from tenants.events import COLUMNS, OUTCOMES, Row, event_row, rejection_row
from tenants.forgotten import ForgottenKeys, unscoped_forgotten
from tenants.hits import Category, Event, Rejection, decode, holds_access_token, identifiers_in
from tenants.identities import Sighting
from tenants.people import Memory
from tenants.secrets import SecretKey
from tenants.tokens import Route, unscoped_first_issued

log = structlog.get_logger()

# A batch as large as this costs the stores little more than a small one, and takes two thirds of a second.
_BATCH_HITS = 40_000
_BATCH_BYTES = 16 * 1024**2
# A few milliseconds of decoding.
_HITS_AT_ONCE = 500
# Small batches make many parts, so wait this long between them; "readable within 2 s" leaves room for it.
_PAUSE_SECONDS = 0.2
_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)
# Ids in one query: with as many apps, 160 kB of text, and servers take 256.
_ASKED_AT_ONCE = 2_000
_PURGE_SECONDS = 3600.0
_ASIDE_SECONDS = 10.0
# Each time every writer of the journal begins a new segment.
_EMPTY_SECONDS = 5.0
_EVENT_ID_DAYS = 30
# Digested so late, others may have come before. Merged persons are seen through in reports for three times as long.
_LATE_MS = 300_000
# A batch's take a fifth of a second; a control database that hangs is one that is away.
_CLAIM_SECONDS = 30.0

CATEGORIES: tuple[Category, Category] = ("event", "revenue")
Decode = Callable[[Category, bytes, str, bool], Event | Rejection]


@dataclass
class Batch:
    """A fixed piece of work: ranges of segments (name, start, end), or rows of `set_aside`, never both."""

    ranges: list[tuple[str, int, int]] = field(default_factory=list[tuple[str, int, int]])
    retried: list[int] = field(default_factory=list[int])
    # Whether it was begun before, by a process that was killed or while the store was away.
    again: bool = False
    hits: list[tuple[int, Hit]] = field(default_factory=list[tuple[int, Hit]])
    limited: list[tuple[bytes, int, int]] = field(default_factory=list[tuple[bytes, int, int]])
    # What its hits mean, if that was found out ahead, and as of which revision of the routes.
    understood: tuple[int, "Understood"] | None = None

    def is_next(self, positions: Mapping[str, int]) -> bool:
        """Whether its ranges begin where these end."""
        return all(positions.get(segment, 0) == start for segment, start, _ in self.ranges)

    @property
    def token(self) -> str:
        """What the inserts of exactly this piece of work are known by."""
        named = repr(self.ranges or [(number, f"{self.hits[i][0]:x}") for i, number in enumerate(self.retried)])
        return hashlib.blake2b(named.encode(), digest_size=16).hexdigest()


class Outcome(msgspec.Struct, array_like=True):
    """What the hit marked `watch` became."""

    watch: int
    result: str
    warnings: tuple[str, ...] = ()


@dataclass
class Understood:
    """What a batch's hits mean. `failed`: hits that could not be digested, with the error."""

    events: list[list[Any]] = field(default_factory=list[list[Any]])
    rejections: list[Row] = field(default_factory=list[Row])
    claims: list[Claim] = field(default_factory=list[Claim])
    tokens: list[WaitingToken] = field(default_factory=list[WaitingToken])
    # Of events that may be somebody's, with their places in `events`; the others are of visitors who are new, or ask
    # not to be tracked.
    sightings: list[Sighting] = field(default_factory=list[Sighting])
    places: list[int] = field(default_factory=list[int])
    duplicates: int = 0
    # Whether a hit carried an access token, of whatever it became.
    secrets: bool = False
    traffic: Counter[tuple[int, int, str]] = field(default_factory=Counter[tuple[int, int, str]])
    failed: dict[int, str] = field(default_factory=dict[int, str])
    # Apps that nobody knows, whose hits were left out.
    unknown: set[bytes] = field(default_factory=set[bytes])
    # By hit id, of the hits whose sender waits to hear.
    watched: dict[int, Outcome] = field(default_factory=dict[int, Outcome])


class State:
    """What the digest must not forget, in one SQLite file beside the segments."""

    def __init__(self, folder: Path) -> None:
        self._db = sqlite3.connect(folder / "digest.sqlite3", isolation_level=None, timeout=10, check_same_thread=False)
        self._db.executescript(
            """
            PRAGMA journal_mode = WAL;
            PRAGMA synchronous = FULL;
            PRAGMA secure_delete = ON;
            CREATE TABLE IF NOT EXISTS position (segment TEXT PRIMARY KEY, digested INTEGER NOT NULL);
            CREATE TABLE IF NOT EXISTS batch (one INTEGER PRIMARY KEY CHECK (one = 1), work TEXT NOT NULL);
            CREATE TABLE IF NOT EXISTS set_aside (
                number INTEGER PRIMARY KEY, hit_id BLOB NOT NULL UNIQUE, hit BLOB NOT NULL, error TEXT NOT NULL,
                attempts INTEGER NOT NULL DEFAULT 1, retry INTEGER NOT NULL DEFAULT 0);
            CREATE TABLE IF NOT EXISTS journal (one INTEGER PRIMARY KEY CHECK (one = 1), name TEXT NOT NULL);
            """
        )
        # What this journal's batches are known by among those of other machines. Written once: on a full disk, too,
        # it can be looked what waits.
        if not self._db.execute("SELECT 1 FROM journal").fetchone():
            self._db.execute("INSERT INTO journal VALUES (1, ?) ON CONFLICT DO NOTHING", (secrets.token_hex(16),))
        self.journal = str(self._db.execute("SELECT name FROM journal").fetchone()[0])

    def positions(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT segment, digested FROM position"))

    def begun(self) -> Batch | None:
        """The batch that was remembered and not finished, without its hits."""
        row = self._db.execute("SELECT work FROM batch").fetchone()
        if row is None:
            return None
        ranges, retried = msgspec.json.decode(row[0], type=tuple[list[tuple[str, int, int]], list[int]])
        return Batch(ranges, retried, again=True)

    def begin(self, batch: Batch) -> None:
        work = msgspec.json.encode((batch.ranges, batch.retried)).decode()
        self._db.execute("INSERT INTO batch VALUES (1, ?)", (work,))

    def finish(self, batch: Batch, failed: Mapping[int, str]) -> None:
        """Move on: all of the batch is in the store, but for `failed` (hit id -> error), which is set aside."""
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            for segment, _, end in batch.ranges:
                self._db.execute(
                    "INSERT INTO position VALUES (?, ?) "
                    "ON CONFLICT (segment) DO UPDATE SET digested = excluded.digested",
                    (segment, end),
                )
            for number, (named, _) in zip(batch.retried, batch.hits, strict=False):
                if named not in failed:
                    self._db.execute("DELETE FROM set_aside WHERE number = ?", (number,))
            hits = dict(batch.hits) if failed else {}
            for named, error in failed.items():
                self._db.execute(
                    "INSERT INTO set_aside (hit_id, hit, error) VALUES (?, ?, ?) ON CONFLICT (hit_id) DO UPDATE "
                    "SET error = excluded.error, attempts = attempts + 1, retry = 0",
                    (named.to_bytes(16, "big"), msgspec.msgpack.encode(hits[named]), error),
                )
            self._db.execute("DELETE FROM batch")

    def forget(self, segments: Iterable[str]) -> None:
        self._db.executemany("DELETE FROM position WHERE segment = ?", [(name,) for name in segments])

    def to_retry(self, numbers: list[int] | None = None) -> list[tuple[int, int, Hit]]:
        """(number, hit id, hit) of the set-aside hits to be retried now, or of exactly `numbers`."""
        where = "retry = 1 ORDER BY number LIMIT 1000"
        if numbers is not None:
            where = f"number IN ({', '.join(map(str, numbers))}) ORDER BY number"
        rows = self._db.execute(f"SELECT number, hit_id, hit FROM set_aside WHERE {where}")
        return [(n, int.from_bytes(named, "big"), msgspec.msgpack.decode(hit, type=Hit)) for n, named, hit in rows]

    def set_aside(self) -> list[tuple[int, str, int]]:
        """(number, error, attempts) of every hit set aside."""
        return self._db.execute("SELECT number, error, attempts FROM set_aside ORDER BY number").fetchall()

    def retry_all(self) -> int:
        """Have the digest try all set-aside hits again, in whatever process it runs; returns how many."""
        return self._db.execute("UPDATE set_aside SET retry = 1").rowcount

    def forget_hits(self, gone: Callable[[Hit], bool]) -> int:
        """Remove set-aside hits, from the disk too; returns how many there were. Between batches only."""
        rows = self._db.execute("SELECT number, hit FROM set_aside")
        numbers = [(number,) for number, hit in rows if gone(msgspec.msgpack.decode(hit, type=Hit))]
        if numbers:
            self._db.executemany("DELETE FROM set_aside WHERE number = ?", numbers)
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return len(numbers)

    def oldest_hit(self) -> int | None:
        """When the oldest hit came that is set aside, in ms."""
        hits = (msgspec.msgpack.decode(hit, type=Hit) for (hit,) in self._db.execute("SELECT hit FROM set_aside"))
        return min((hit.received_at for hit in hits), default=None)

    def close(self) -> None:
        self._db.close()


def understand(
    hits: Iterable[tuple[int, Hit]],
    by_app: Mapping[bytes, Route],
    decode: Decode = decode,
    found: Understood | None = None,
) -> Understood:
    """Decode hits into rows, added to what was `found`.

    A hit whose decoding raises ends in `failed`, one of an unknown app nowhere.
    """
    found = found or Understood()
    late = int(time.time() * 1000) - _LATE_MS
    events, rejections, traffic = found.events, found.rejections, found.traffic
    number_of: dict[bytes, int] = {}
    for named, hit in hits:
        try:
            route = by_app.get(hit.app_id)
            if route is None:
                found.unknown.add(hit.app_id)
                found.secrets = found.secrets or holds_access_token(hit.query)
                continue
            app = number_of.get(hit.app_id)
            if app is None:
                app = number_of[hit.app_id] = int.from_bytes(hit.app_id, "big")
            category = CATEGORIES[hit.category]
            meaning = decode(category, hit.query, hit.currency or route.currency, hit.privacy)
            minute = hit.received_at // 60_000 * 60
            if not found.secrets and meaning.query.encode(errors="replace") != hit.query:
                found.secrets = holds_access_token(hit.query)
            if isinstance(meaning, Event):
                events.append(
                    event_row(
                        meaning,
                        app,
                        hit.received_at,
                        named,
                        category,
                        int.from_bytes(hit.visitor_id, "big") if hit.visitor_id else 0,
                        hit.network,
                        hit.user_agent,
                        hit.referrer,
                        hit.sec_purpose,
                    )
                )
                if meaning.event_id is not None:
                    claim = Claim(
                        UUID(bytes=hit.app_id),
                        category,
                        meaning.event_id,
                        named.to_bytes(16, "big"),
                        hit.received_at,
                    )
                    found.claims.append(claim)
                visitor, email, uuid, fbid = hit.visitor_id, meaning.email, meaning.uuid, meaning.fbid
                told = email or uuid or fbid or not hit.new_visitor
                # The first hit of a new cookie says nothing, unless others that came after it were digested before.
                if visitor is not None and (told or hit.received_at < late):
                    found.places.append(len(events) - 1)
                    found.sightings.append(
                        Sighting(
                            named.to_bytes(16, "big"),
                            hit.received_at,
                            hit.app_id,
                            visitor,
                            hit.new_visitor,
                            uuid,
                            email,
                            fbid,
                        )
                    )
                if meaning.access_token is not None and visitor is not None:
                    token = WaitingToken(
                        UUID(bytes=hit.app_id),
                        meaning.access_token,
                        named.to_bytes(16, "big"),
                        hit.received_at,
                        visitor,
                        uuid,
                        email,
                        fbid,
                    )
                    found.tokens.append(token)
                traffic[app, minute, "recorded"] += 1
                if hit.watch:
                    found.watched[named] = Outcome(hit.watch, "recorded", meaning.warnings)
            else:
                rejections.append(rejection_row(meaning, app, hit.received_at, named, category))
                traffic[app, minute, "rejected"] += 1
                if hit.watch:
                    found.watched[named] = Outcome(hit.watch, f"rejected; reason={meaning.reason}")
        except Exception as error:  # whatever it is, it is this hit's, and must not hold up the others
            # Without its message, which may repeat what was sent.
            where = traceback.extract_tb(error.__traceback__)[-1]
            found.failed[named] = f"{type(error).__name__} in {where.name}, line {where.lineno}"
            found.secrets = found.secrets or holds_access_token(hit.query)
    return found


def drop_duplicates(found: Understood, duplicates: set[bytes]) -> None:
    """Take the events whose `event_id` another hit owns out of the rows, and count them as duplicates."""
    if not duplicates:
        return
    numbers = {int.from_bytes(named, "big") for named in duplicates}
    kept: list[list[Any]] = []
    for row in found.events:
        app, received_at, named = row[0], row[1], row[2]
        if named not in numbers:
            kept.append(row)
            continue
        minute = received_at // 60_000 * 60
        found.traffic[app, minute, "recorded"] -= 1
        found.traffic[app, minute, "duplicate"] += 1
        found.duplicates += 1
        if named in found.watched:
            found.watched[named].result = "duplicate"
    found.events = kept
    found.tokens = [token for token in found.tokens if token.hit_id not in duplicates]


def attribute(found: Understood, places: Iterable[int], persons: Iterable[bytes]) -> None:
    """Give the events at these places to their persons; empty is an anonymous visitor's."""
    events = found.events
    for place, person in zip(places, persons, strict=True):
        if person:
            row = events[place]
            # The last two columns are the person and whether anything is known of them.
            row[-2] = int.from_bytes(person)
            row[-1] = True


def drop_forgotten(found: Understood, forgotten: ForgottenKeys) -> None:
    """Take out what is of somebody who was deleted after it came. It counts for nothing, but for whoever waits."""
    if not forgotten:
        return

    columns = [name for name, _ in COLUMNS["events"]]
    who = operator.itemgetter(*map(columns.index, ("visitor_id", "email", "uuid", "fbid")))
    query = [name for name, _ in COLUMNS["rejections"]].index("query")
    dropped: set[int] = set()
    for outcome, rows in (("recorded", found.events), ("rejected", found.rejections)):
        for row in rows:
            app, at, named = row[:3]
            visitor, email, uuid, fbid = (
                who(row) if outcome == "recorded" else (0, *identifiers_in(row[query].encode(errors="replace")))
            )
            cookie = visitor.to_bytes(16, "big") if visitor else None
            if forgotten.covers(app.to_bytes(16, "big"), at, cookie, uuid, email, fbid):
                dropped.add(named)
                found.traffic[app, at // 60_000 * 60, outcome] -= 1
    kept = [place for place, row in enumerate(found.events) if row[2] not in dropped]
    found.events = [found.events[place] for place in kept]
    found.rejections = [row for row in found.rejections if row[2] not in dropped]
    found.claims = [claim for claim in found.claims if int.from_bytes(claim.hit_id, "big") not in dropped]
    found.tokens = [token for token in found.tokens if int.from_bytes(token.hit_id, "big") not in dropped]
    moved = {place: number for number, place in enumerate(kept)}
    sighted = [number for number, place in enumerate(found.places) if place in moved]
    found.sightings = [found.sightings[number] for number in sighted]
    found.places = [moved[found.places[number]] for number in sighted]


def traffic_rows(traffic: Mapping[tuple[int, int, str], int], limited: Iterable[tuple[bytes, int, int]]) -> list[Row]:
    """Rows of `traffic`: one an app and minute."""
    counts: dict[tuple[int, int], dict[str, int]] = {}
    for (app, minute, outcome), count in traffic.items():
        counts.setdefault((app, minute), dict.fromkeys(OUTCOMES, 0))[outcome] += count
    for app_id, minute, count in limited:
        counts.setdefault((int.from_bytes(app_id, "big"), minute), dict.fromkeys(OUTCOMES, 0))["limited"] += count
    return [(app, minute, *n.values()) for (app, minute), n in sorted(counts.items()) if any(n.values())]


class DigestFigures(msgspec.Struct):
    """What was digested since the process started, for /metrics, and how it goes."""

    # Whether it holds the journal's lock.
    active: bool = False
    # Why the last batch could not be digested; None while all is well.
    trouble: str | None = None

    recorded: int = 0
    rejected: int = 0
    duplicate: int = 0
    set_aside: int = 0
    batches: int = 0
    # Tries of a batch that failed, for whatever reason.
    failures: int = 0
    seconds: float = 0.0

    def after(self, before: "DigestFigures") -> "DigestFigures":
        """These figures on top of those of a process that digested before."""
        return DigestFigures(
            active=self.active,
            trouble=self.trouble,
            **{name: getattr(self, name) + getattr(before, name) for name in self.__struct_fields__[2:]},
        )


class Inserts(Protocol):
    """Where rows go: the event store, directly or through the process that owns it."""

    async def insert(self, table: str, rows: Sequence[Row], token: str) -> None:
        """Insert once for each token. Raises EventStoreRefused when a row is at fault, else EventStoreUnavailable."""
        ...

    async def stored(self, table: str, rows: Sequence[tuple[int, int, int]]) -> set[int]:
        """Which of these rows (app id, received at in ms, id) are stored, by id. Raises EventStoreUnavailable."""
        ...


class Listener(Protocol):
    """Who hears how the digest goes."""

    async def progressed(self, figures: DigestFigures) -> None:
        """After every batch, and when trouble begins or ends."""
        ...

    async def became(self, outcomes: list[Outcome]) -> None:
        """What watched hits became."""
        ...


class Digester:
    """Digests a machine's journal while it holds the journal's lock; any others stand by."""

    def __init__(
        self,
        folder: Path,
        inserts: Inserts,
        routes: Routes,
        listener: Listener,
        key: SecretKey,
        decode: Decode = decode,
        *,
        one_store: bool = True,
    ) -> None:
        self.figures = DigestFigures()
        self._folder = folder
        self._inserts = inserts
        self._routes = routes
        self._listener = listener
        # Of the access tokens that hits carry.
        self._key = key
        self._decode = decode
        # Whether what was inserted is seen by the next query: of several replicas one may be behind.
        self._one_store = one_store
        self._state: State | None = None
        self._stopping = asyncio.Event()
        self._purged = self._looked_aside = -math.inf
        # Whether the event store may have to hear of persons: a digest that was killed may have left some.
        self._untold = True
        self._memory = Memory()
        # The batch that comes next, read and understood while the one before it is stored.
        self._ahead: Batch | None = None
        # Whether segments may hold access tokens that were digested; and when they were last asked to go.
        self._holds_secrets = True
        self._emptied = -math.inf

    def stop(self) -> None:
        """End `run` after the current batch; the rest stays in the journal."""
        self._stopping.set()

    async def run(self) -> None:
        """Digest until `stop`. Never raises: what goes wrong is logged, shown by /healthz and tried again."""
        lock = os.open(self._folder / "digest.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while not self._stopping.is_set() and not _try_lock(lock):
            await self._sleep(_PAUSE_SECONDS)
        if self._stopping.is_set():
            os.close(lock)
            return
        failures = 0
        self.figures.active = True
        await self._listener.progressed(self.figures)
        while not self._stopping.is_set():
            try:
                self._state = self._state or State(self._folder)
                more = await self._digest_batch(self._state)
            except Exception as error:  # a bug here must not end digestion
                await self._in_trouble(error)
                await self._sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
                failures += 1
                continue
            if self.figures.trouble is not None:
                log.info("digestion goes on")
                self.figures.trouble = None
                await self._listener.progressed(self.figures)
            failures = 0
            if not more:
                await self._sleep(_PAUSE_SECONDS)
        self.figures.active = False
        os.close(lock)

    async def _in_trouble(self, error: Exception) -> None:
        away = isinstance(error, Unavailable | TimeoutError)
        trouble = (str(error) if away else "") or type(error).__name__
        if self.figures.trouble is None:
            log.warning(
                "digestion waits; hits go on being kept in the journal",
                reason=trouble,
                exc_info=None if away else error,
            )
        self.figures.trouble = trouble
        self.figures.failures += 1
        await self._listener.progressed(self.figures)

    async def _sleep(self, seconds: float) -> None:
        """Until then, or until `stop`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _digest_batch(self, state: State) -> bool:
        """Digest what there is, up to a batch's size; returns whether there is more than a small batch's worth."""
        began = time.perf_counter()
        batch = self._next_batch(state)
        if self._untold:
            await self._tell()
        if batch is None:
            self._empty_journal()
            await self._purge(state)
            return False
        found = await self._understand(batch)
        oldest = min((hit.received_at for _, hit in batch.hits), default=None)
        if oldest is not None:
            drop_forgotten(found, await unscoped_forgotten(oldest))
        async with asyncio.timeout(_CLAIM_SECONDS):
            duplicates = await event_ids.claim(found.claims)
        async with asyncio.timeout(_CLAIM_SECONDS):
            await self._identify(state, batch, found, duplicates)
        if oldest is not None:
            # Who was deleted before they were told apart; of whoever is deleted later, the persons are known.
            drop_forgotten(found, await unscoped_forgotten(oldest))
        drop_duplicates(found, duplicates)
        async with asyncio.timeout(_CLAIM_SECONDS):
            await access_tokens.keep(self._key, found.tokens, int(time.time() * 1000))
        await self._store_batch(state, batch, found)
        if found.secrets:
            self._holds_secrets = True
        self._empty_journal()
        if found.watched:
            await self._listener.became(list(found.watched.values()))
        figures = self.figures
        outcomes = Counter[str]()
        for (_, _, outcome), count in found.traffic.items():
            outcomes[outcome] += count
        figures.recorded += outcomes["recorded"]
        figures.rejected += outcomes["rejected"]
        figures.duplicate += found.duplicates
        figures.set_aside += len(found.failed)
        figures.batches += 1
        figures.seconds += time.perf_counter() - began
        await self._listener.progressed(figures)
        await self._purge(state)  # where hits come all the time there is a batch each time
        return _is_large(batch)

    async def _identify(self, state: State, batch: Batch, found: Understood, duplicates: set[bytes]) -> None:
        sightings, places = found.sightings, found.places
        if duplicates:  # which are no events, and tell of nobody
            counted = [number for number, hit in enumerate(sightings) if hit.hit_id not in duplicates]
            sightings, places = [sightings[number] for number in counted], [places[number] for number in counted]
        now, in_order = int(time.time() * 1000), self._in_order()
        persons = await people.identify(
            sightings, state.journal, batch.token, batch.again, now, memory=self._memory, in_order=in_order
        )
        attribute(found, places, persons)
        if found.tokens:
            whose = {hit.hit_id: person for hit, person in zip(sightings, persons, strict=True) if person}
            found.tokens = [token._replace(person=whose.get(token.hit_id, b"")) for token in found.tokens]
        await self._tell()

    def _empty_journal(self) -> None:
        """Have the segments go whose hits carried access tokens, which must not stay there once they are digested."""
        if self._holds_secrets and time.monotonic() - self._emptied > _EMPTY_SECONDS:
            ask_to_let_go(self._folder)
            self._holds_secrets = False
            self._emptied = time.monotonic()

    def _in_order(self) -> bool:
        """Whether all hits there are came after those of the batches before."""
        return not people.shared() and written_in_turn(self._folder)

    async def _tell(self) -> None:
        """Tell the event store which persons turned out to be others."""
        await people.unscoped_tell(self._inserts.insert)
        self._untold = False

    async def _understand(self, batch: Batch) -> Understood:
        revision, found = batch.understood or (-1, None)
        if found is None or revision != self._routes.revision:
            revision, found = self._routes.revision, understand(batch.hits, self._routes.by_app, self._decode)
        if found.unknown:
            # A hit accepted by another process may be of an app made since this one last looked.
            first = await self._refresh_routes()
            if revision != self._routes.revision:
                found = understand(batch.hits, self._routes.by_app, self._decode)
            if found.unknown:
                # A segment begins with a hit of some app, so this is another database, or one that was begun anew.
                if first == math.inf or any(int(segment.partition("-")[0]) < first for segment, *_ in batch.ranges):
                    raise Unavailable(
                        "the control database had no app yet when the journal was begun; is ONEPX_DATABASE_URL right?"
                    )
                log.info("hits of deleted apps dropped", apps=len(found.unknown))
        return found

    async def _refresh_routes(self) -> float:
        """Read them anew; returns when that database's first token was issued, in ms, never is infinite.

        Asked before and after, since another database may take its place just then: the younger of the two counts, as
        hits older than a database wait, where others may be dropped.
        """
        before = await _first_issued()
        await self._routes.refresh()
        return max(before, await _first_issued())

    def _next_batch(self, state: State) -> Batch | None:
        """The batch that was begun before, or a new one, remembered on disk before it is returned."""
        ahead, self._ahead = self._ahead, None
        begun = state.begun()
        if begun is not None:
            return self._read_again(begun, state)
        batch = Batch()
        for number, named, hit in state.to_retry():
            batch.retried.append(number)
            batch.hits.append((named, hit))
        if not batch.retried:
            positions = state.positions()
            if ahead is not None and ahead.is_next(positions):
                batch = ahead
            else:
                self._read(batch, positions)
        if not (batch.ranges or batch.retried):
            self._clean_up(state)
            return None
        state.begin(batch)
        return batch

    def _read(self, batch: Batch, positions: Mapping[str, int]) -> None:
        """Add what comes next. Of several segments the frames come in the order of their times."""
        starts = [
            (path, start) for path, size in segment_sizes(self._folder) if size > (start := positions.get(path.name, 0))
        ]
        ends: dict[str, int] = {}
        frames = (read_frames(path, start, most_bytes=_BATCH_BYTES) for path, start in starts)
        for frame in heapq.merge(*frames, key=lambda frame: frame.first):
            self._add(batch, frame)
            ends[frame.segment] = frame.end
            if len(batch.hits) >= _BATCH_HITS:
                break
        batch.ranges += [(path.name, start, ends[path.name]) for path, start in starts if path.name in ends]

    async def _read_ahead(self, state: State, batch: Batch) -> None:
        """Read and understand what comes after this batch. What fails is left to its own turn, which tells of it."""
        ahead, found = Batch(), Understood()
        try:
            self._read(ahead, state.positions() | {segment: end for segment, _, end in batch.ranges})
            if not ahead.ranges:
                return
            revision, by_app = self._routes.revision, self._routes.by_app
            for start in range(0, len(ahead.hits), _HITS_AT_ONCE):
                understand(ahead.hits[start : start + _HITS_AT_ONCE], by_app, self._decode, found)
                await asyncio.sleep(0)  # the store may be through, and is given what is left
            ahead.understood = revision, found
        except Exception as error:
            log.debug("not read ahead", error=type(error).__name__)
            return
        self._ahead = ahead

    def _read_again(self, begun: Batch, state: State) -> Batch:
        if begun.retried:
            for _, named, hit in state.to_retry(begun.retried):
                begun.hits.append((named, hit))
        for name, start, end in begun.ranges:
            try:
                for frame in read_frames(self._folder / name, start, end, most_bytes=sys.maxsize):
                    self._add(begun, frame)
            except FileNotFoundError:
                log.error("journal segment is gone, and hits that were not digested with it", segment=name)
        return begun

    def _add(self, batch: Batch, frame: Frame | Damage) -> None:
        if isinstance(frame, Damage):
            keep_damage(self._folder, frame)
            return
        try:
            body = frame.read()
        except msgspec.DecodeError:  # written by another version, and whole: its checksum is right
            keep_damage(self._folder, Damage(frame.segment, frame.start, frame.end))
            return
        base = frame.id_base
        batch.hits += [(hit_id(base, index, hit.received_at), hit) for index, hit in enumerate(body.hits)]
        batch.limited += body.limited

    async def _store_batch(self, state: State, batch: Batch, found: Understood) -> None:
        storing = asyncio.create_task(self._store_rows(batch, found))
        if _is_large(batch):
            await asyncio.sleep(0)  # the store has the rows, and this process nothing to do
            await self._read_ahead(state, batch)
        await storing
        state.finish(batch, found.failed)
        if found.failed:
            log.error("hits set aside; see `onepx digest show`", hits=len(found.failed))
        self._clean_up(state)

    async def _store_rows(self, batch: Batch, found: Understood) -> None:
        for table, rows in (("events", found.events), ("rejections", found.rejections)):
            if not batch.again:
                await self._insert(table, rows, found)
                continue
            missing = await self._not_stored(table, rows)
            await self._insert(table, missing, found)
            if self._one_store and missing:
                # The engine notes a token before it has the rows: killed in between, it takes them for stored. Asked
                # only now, since an insert of whoever was killed may have been under way until this one's turn.
                missing = [row for row in missing if row[2] not in found.failed]
                await self._insert(table, await self._not_stored(table, missing), found, secrets.token_bytes(16))
        # Last, since a row that had to be set aside above does not count.
        await self._inserts.insert("traffic", traffic_rows(found.traffic, batch.limited), batch.token)

    async def _not_stored(self, table: str, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows without those stored by an earlier try: a power cut may lose the store's memory of its tokens."""
        stored: set[int] = set()
        for start in range(0, len(rows), _ASKED_AT_ONCE):
            asked = rows[start : start + _ASKED_AT_ONCE]
            stored |= await self._inserts.stored(table, [(row[0], row[1], row[2]) for row in asked])
        return [row for row in rows if row[2] not in stored]

    async def _insert(self, table: str, rows: Sequence[Row], found: Understood, salt: bytes = b"") -> None:
        """Insert; when the store refuses the rows, halve them until the one at fault is found and set aside.

        With a `salt` they are inserted whatever the store remembers of them.
        """
        if not rows:
            return
        # Of exactly these rows, not of the batch: done again, a batch may be halved elsewhere.
        token = hashlib.blake2b(salt + b"".join(row[2].to_bytes(16, "big") for row in rows), digest_size=16).hexdigest()
        try:
            await self._inserts.insert(table, rows, token)
        except EventStoreRefused as error:
            if len(rows) > 1:
                half = len(rows) // 2
                await self._insert(table, rows[:half], found, salt)
                await self._insert(table, rows[half:], found, salt)
                return
            app, received_at, named = rows[0][:3]
            outcome = "recorded" if table == "events" else "rejected"
            found.traffic[app, received_at // 60_000 * 60, outcome] -= 1
            found.failed[named] = str(error)
            found.watched.pop(named, None)

    def _clean_up(self, state: State) -> None:
        """Remove segments that are digested and that nobody writes any more."""
        positions = state.positions()
        gone = positions.keys() - {path.name for path, _ in segment_sizes(self._folder)}
        for path, _ in segment_sizes(self._folder):
            if remove_if_done(path, positions.get(path.name, 0)):
                gone.add(path.name)
        if gone:
            # A segment that a power cut brings back must still be known as digested.
            sync_folder(self._folder)
        state.forget(gone)

    async def _purge(self, state: State) -> None:
        """Forget event ids that no longer make a duplicate once an hour, and set-aside hits that must not come back."""
        if time.monotonic() - self._looked_aside > _ASIDE_SECONDS:
            self._looked_aside = time.monotonic()
            await self._forget_hits(state)
        if time.monotonic() - self._purged > _PURGE_SECONDS:
            self._purged = time.monotonic()
            await event_ids.unscoped_purge_event_ids(int((time.time() - _EVENT_ID_DAYS * 86_400) * 1000))

    async def _forget_hits(self, state: State) -> None:
        """Remove the set-aside hits of deleted apps and persons, and those whose events would be too old to be kept."""
        oldest = state.oldest_hit()
        if oldest is None:
            return
        # As in _understand: it may be the wrong database.
        first = await self._refresh_routes()
        apps = self._routes.by_app
        forgotten, deletions = await unscoped_forgotten(oldest), await unscoped_last_deletions(oldest)
        kept_since = await unscoped_kept_since(datetime.now(UTC))

        def gone(hit: Hit) -> bool:
            route = apps.get(hit.app_id)
            if route is None:
                return hit.received_at >= first
            if hit.received_at < kept_since.get(hit.app_id, 0):
                return True
            try:
                found = self._decode(CATEGORIES[hit.category], hit.query, route.currency, hit.privacy)
            except Exception:
                # Nobody can tell whose it is, so it may be theirs.
                return hit.received_at < deletions.get(hit.app_id, 0)
            if isinstance(found, Event):
                who = found.uuid, found.email, found.fbid
            else:
                email, uuid, fbid = identifiers_in(hit.query)
                who = uuid, email, fbid
            return forgotten.covers(hit.app_id, hit.received_at, hit.visitor_id, *who)

        if count := state.forget_hits(gone):
            log.info("set-aside hits removed: of deleted apps and persons, or too old to be kept", hits=count)


async def _first_issued() -> float:
    """When the control database's first token was issued, in ms; never is infinite."""
    first = await unscoped_first_issued()
    return math.inf if first is None else int(first.timestamp() * 1000)


def _is_large(batch: Batch) -> bool:
    """Whether there is likely to be more."""
    size = sum(end - start for _, start, end in batch.ranges)
    return len(batch.hits) >= _BATCH_HITS // 2 or size >= _BATCH_BYTES // 2


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class JournalState:
    """How this machine's journal stands. `seconds`: age of the oldest hit that is not digested."""

    hits: int
    bytes: int
    seconds: float
    set_aside: int
    damaged: int


def measure_journal(folder: Path, backlog: Backlog) -> JournalState:
    """Look at the journal; `backlog` remembers what was counted. Raises Unavailable, on a full disk say."""
    try:
        with contextlib.closing(State(folder)) as state:
            hits, size, seconds = backlog.measure(state.positions())
            aside = len(state.set_aside())
    except (OSError, sqlite3.Error) as error:
        raise Unavailable(f"the journal's state cannot be read: {error}") from error
    return JournalState(hits, size, seconds, aside, sum(1 for _ in folder.glob("*.damaged")))
