"""Whose events are: identities.py for a digest's batches, on any number of machines at once.

    the app's clock is locked -> later hits are taken back -> all are placed in their order -> what changed is written

Every hit is kept for a while (`IdentitySection`) with what it changed. A batch with an earlier one takes these changes
back, newest first, and places them again behind it. So the same hits give the same persons, whoever digests them, as
long as they are digested within `WINDOW_MS` of each other; what comes later is placed last.

What is written down (`IdentifiedBatch`) with a batch is whose its hits are: done again after a crash it gets the same
answer, whatever happened since. What was stored as somebody else's meanwhile (`Reattribution`), and what the event
store has yet to hear of persons (`Person.todo`), is for who keeps up the store: rewriting.py.
"""
# Piccolo keeps a table's engine in `_meta`, and its annotations leave type arguments open.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import chain, compress
from operator import attrgetter
from typing import Any
from uuid import UUID

import msgspec
from piccolo.table import Table

from tenants import bulk, tables
from tenants.forgotten import ForgottenKeys, unscoped_forgotten
from tenants.identifiers import EMAIL_KIND, FBID_KIND, UUID_KIND, merged_with, unscoped_roots
from tenants.identities import Entry, Person, Persons, Sighting
from tenants.tables import (
    IdentifiedBatch,
    Identifier,
    IdentityClock,
    IdentitySection,
    Reattribution,
    Visitor,
    transaction,
)

# How much later than a newer hit one may be digested and still be put in its place: twice what the protocol promises.
WINDOW_MS = 2_000
# By when the hits came: longer than any backlog that several machines work off.
_KEPT = timedelta(days=2)

# What the event store has yet to do about a person: to hear that they are another one; to collect the properties of
# what they did before anything was known of them; to give their events to the one they are.
TELL, COLLECT, REWRITE = 1, 2, 4

_PERSON_COLUMNS = ("key", "kinds", "size", "known_at", "merged_into", "found_at", "todo", "revision")
_MOVED_COLUMNS = ("hit_id", "received_at", "was", "person", "since")
# Some 200 bytes each: 60 MB.
_REMEMBERED = 300_000

_encode = msgspec.msgpack.Encoder().encode
_decode_entries = msgspec.msgpack.Decoder(list[Entry]).decode
_ID, _PLACE = attrgetter("hit_id"), attrgetter("at", "hit_id")


class Memory:
    """What a digest remembers of persons from batch to batch, as long as nobody else changed those of the app."""

    def __init__(self) -> None:
        self._apps: dict[bytes, Persons] = {}

    def take(self, clocks: Mapping[bytes, tuple[int, int]]) -> dict[bytes, Persons]:
        """What is remembered of these apps, whose clocks say (newest, revision); to be put back when it is written."""
        taken: dict[bytes, Persons] = {}
        for app, (newest, revision) in clocks.items():
            persons = self._apps.pop(app, None)
            if persons is None or persons.revision != revision:
                persons = Persons()
            persons.newest = newest
            taken[app] = persons
        return taken

    def put_back(self, apps: dict[bytes, Persons]) -> None:
        """Remember them; those that were of use last are forgotten last."""
        self._apps |= apps
        size = sum(map(len, self._apps.values()))
        while size > _REMEMBERED:
            size -= len(self._apps.pop(next(iter(self._apps))))


async def identify(
    hits: Sequence[Sighting],
    journal: str,
    batch: str,
    again: bool,
    now_ms: int,
    *,
    memory: Memory | None = None,
    in_order: bool = False,
) -> list[bytes]:
    """The person (16 bytes) of each hit, in their order; empty for an anonymous visitor's, or who was deleted since.

    All or nothing. A batch that is done `again` (by its name, within its journal) has the persons it had. `in_order`:
    no hit that came earlier can be digested later, so nothing has to be kept to be taken back.
    """
    if not hits:
        return []
    memory = memory or Memory()
    # What a clock that was ahead stamped comes now: all that comes before that time would be late.
    hits = [msgspec.structs.replace(hit, at=now_ms) if hit.at > now_ms else hit for hit in hits]
    async with transaction():
        if again and (known := await _persons_of_batch(journal, batch, hits)) is not None:
            return known
        clocks = await lock_clocks({hit.app for hit in hits})
        clocks = {app: (min(newest, now_ms), revision) for app, (newest, revision) in clocks.items()}
        apps = memory.take(clocks)
        # Nobody can be deleted between here and the end of the transaction.
        forgotten = await unscoped_forgotten(min(hit.at for hit in hits))
        kept = [hit for hit in hits if not _is_forgotten(hit, forgotten)] if forgotten else hits
        persons, newest = await _place_all(kept, apps, in_order, now_ms)
        if kept is not hits:
            placed = dict(zip(map(_ID, kept), persons, strict=True))
            persons = [placed.get(hit.hit_id, b"") for hit in hits]
        if journal:
            pairs = b"".join(chain.from_iterable(compress(zip(map(_ID, hits), persons, strict=True), persons)))
            columns = ("journal", "batch", "persons", "identified_at")
            await bulk.put(IdentifiedBatch, columns, [(journal, batch, pairs, now_ms)])
        revisions = {app: revision + 1 for app, (_, revision) in clocks.items()}
        await _write(apps, revisions, now_ms)
        columns = ("app", "newest", "revision")
        await bulk.put(IdentityClock, columns, [(app, newest[app], revisions[app]) for app in apps])
    for app, known in apps.items():
        known.written(revisions[app], newest[app])
    memory.put_back(apps)
    return persons


def _is_forgotten(hit: Sighting, forgotten: ForgottenKeys) -> bool:
    told = hit.uuid, hit.email, hit.fbid
    return any(forgotten.covers(hit.app, hit.at, id, *told) for id in (hit.visitor, hit.of) if id is not None)


def shared() -> bool:
    """Whether other machines may digest hits of the same apps."""
    return IdentityClock._meta.db.engine_type == "postgres"


async def learn(hit: Sighting, now_ms: int) -> UUID | None:
    """Place the fbid that was found out afterwards of the person `hit.of`; returns who they are in the end.

    None where they were deleted since.
    """
    assert hit.of is not None
    (person,) = await identify([hit], "", "", False, now_ms)
    if not person:
        return None
    if hit.uuid is None and hit.email is None and (hit.of == hit.visitor or hit.of != person):
        # The event itself told of nobody: it is to say now that somebody is known, or they would be in no list.
        at = int.from_bytes(hit.hit_id[:6], "big")
        row = (hit.hit_id, at, hit.app + hit.of, hit.app + person, now_ms)
        async with transaction():
            # Whoever is deleted from here on takes it along; whoever was meanwhile has no events any more.
            await lock_clocks({hit.app})
            if not await bulk.find(tables.Person, ("key",), "key", [hit.app + person]):
                return None
            await bulk.put(Reattribution, _MOVED_COLUMNS, [row], keep="was")
    return UUID(bytes=person)


async def unscoped_tell(insert: Callable[[str, Sequence[bulk.Row], str], Awaitable[None]]) -> None:
    """Tell the event store, by `insert` of a table's rows under a token, which persons turned out to be others.

    Told twice it is the same, so every token is new: the engine may have noted one, and been killed before it had the
    rows.
    """
    while rows := await unscoped_untold():
        await insert("person_aliases", rows, secrets.token_hex(16))
        await told(rows)


async def unscoped_untold(limit: int = 5_000) -> list[bulk.Row]:
    """Rows of `person_aliases` that the event store has yet to hear of, and then `told`; ids are numbers."""
    # TELL as the index `person_to_tell` says it.
    rows = await tables.Person.raw(f"SELECT key, revision FROM person WHERE todo % 2 = 1 LIMIT {limit}")
    roots = await unscoped_roots([row["key"] for row in rows])
    return [_alias(row["key"], roots[row["key"]], row["revision"]) for row in rows]


def _alias(key: bytes, root: bytes, revision: int) -> bulk.Row:
    app, person, survivor = (int.from_bytes(part, "big") for part in (key[:16], key[16:], root[16:]))
    return (app, person, survivor, revision)


async def told(rows: Sequence[bulk.Row]) -> None:
    """The event store has heard of them; whoever changed again since is told again."""
    keys = [(revision, app.to_bytes(16, "big") + alias.to_bytes(16, "big")) for app, alias, _, revision in rows]
    # Everybody locks rows in the order of their keys, so nobody waits in a circle.
    keys.sort(key=lambda pair: pair[1])
    async with transaction():
        # Whoever deletes persons locks them in no order.
        await lock_clocks({key[:16] for _, key in keys})
        statement = f"UPDATE person SET todo = todo - {TELL} WHERE revision = ? AND key = ? AND (todo & {TELL}) > 0"
        await bulk.run(tables.Person, statement, keys)


async def _persons_of_batch(journal: str, batch: str, hits: Sequence[Sighting]) -> list[bytes] | None:
    """Whose the hits were when the batch was done before."""
    row = await IdentifiedBatch.objects().where(IdentifiedBatch.journal == journal).first()
    if row is None or row.batch != batch:
        return None
    pairs: bytes = row.persons
    persons = {pairs[at : at + 16]: pairs[at + 16 : at + 32] for at in range(0, len(pairs), 32)}
    told = [persons.get(hit.hit_id) or b"" for hit in hits]
    # Whose events were rewritten since must not get any more of them, be it a visitor who was nobody yet.
    before = [hit.app + id if (id := person or hit.visitor) else b"" for hit, person in zip(hits, told, strict=True)]
    keys = before
    while moved := await _rewritten(list({key for key in keys if key})):
        keys = [moved.get(key, key) for key in keys]
    found = zip(told, before, keys, strict=True)
    return [person if key == stored else key[16:] for person, stored, key in found]


async def _rewritten(keys: list[bytes]) -> dict[bytes, bytes]:
    """Into whom those of these persons were merged whose events are no longer theirs."""
    rows = await bulk.find(tables.Person, ("key", "merged_into", "todo"), "key", keys)
    return {key: merged_into for key, merged_into, todo in rows if merged_into is not None and not todo & REWRITE}


async def lock_clocks(apps: set[bytes]) -> dict[bytes, tuple[int, int]]:
    """(newest, revision) of each app, whose persons nobody else changes until the transaction ends."""
    ordered = sorted(apps)
    if shared():
        rows: list[dict[str, Any]] = await IdentityClock.raw(
            "INSERT INTO identity_clock (app, newest, revision) SELECT app, 0, 0 FROM unnest({}::bytea[]) AS app "
            "ON CONFLICT (app) DO UPDATE SET revision = identity_clock.revision RETURNING app, newest, revision",
            ordered,
        )
        return {row["app"]: (row["newest"], row["revision"]) for row in rows}
    clocks: dict[bytes, tuple[int, int]] = dict.fromkeys(ordered, (0, 0))
    for app, newest, revision in await bulk.find(IdentityClock, ("app", "newest", "revision"), "app", ordered):
        clocks[app] = (newest, revision)
    return clocks


async def _place_all(
    hits: list[Sighting], apps: dict[bytes, Persons], in_order: bool, now_ms: int
) -> tuple[list[bytes], dict[bytes, int]]:
    """Each hit's person, empty for an anonymous visitor's; and when the newest hit of each app came."""
    # Ids begin with when the hit came.
    placing = sorted(hits, key=_ID)
    newest = {app: known.newest for app, known in apps.items()}
    of_app = _of_app(placing)
    if any(of_one[0].at < newest[app] - WINDOW_MS for app, of_one in of_app.items()):
        placing = [_last(hit, newest[hit.app]) if hit.at < newest[hit.app] - WINDOW_MS else hit for hit in placing]
        placing.sort(key=_PLACE)
        of_app = _of_app(placing)
    for app, of_one in of_app.items():
        newest[app] = max(newest[app], of_one[-1].at)
    # What is learnt comes alone: a digest's hits are not looked through for it.
    learnt = {hit.app + hit.of for hit in hits if hit.of is not None} if len(hits) == 1 else set[bytes]()
    undone, sections = await _later({app: of_one[0] for app, of_one in of_app.items()})
    if undone:
        # First, since what is learnt of a hit comes after the hit itself.
        placing = [entry.hit for entry in undone] + placing
        placing.sort(key=_PLACE)
        of_app = _of_app(placing)
    await _load(apps, of_app, undone, learnt)
    for entry in reversed(undone):
        apps[entry.hit.app].take_back(entry)
    stored = {entry.hit.hit_id: entry.stored for entry in undone}
    placed: dict[bytes, bytes] = {}
    moving: dict[bytes, Entry] = {}
    for known in apps.values():
        known.keep = not in_order
    if in_order and not undone:
        persons = [person for app, of_one in of_app.items() for person in apps[app].place_all(of_one)]
        of_all = list(chain.from_iterable(of_app.values()))
        if of_all != hits:
            placed = dict(zip(map(_ID, of_all), persons, strict=True))
            persons = [placed[hit.hit_id] for hit in hits]
        await _write_sections(sections, newest)
        return persons, newest
    for hit in placing:
        known = apps[hit.app]
        key = known.place_known(hit)
        if key is None:
            if hit.of is not None and (now := placed.get(hit.hit_id)) is not None:
                # The hit itself was placed anew just now.
                hit = msgspec.structs.replace(hit, of=now or hit.visitor)
            entry = known.place(hit)
            key = entry.person
        elif in_order and hit.hit_id not in stored:
            # Not whom they are merged into later: that may be taken back, and aliases tell it.
            placed[hit.hit_id] = key
            continue
        else:
            entry = Entry(hit, key, key)
        placed[hit.hit_id] = key
        if stored and (was := stored.get(hit.hit_id)) is not None:
            # Of what was learnt of a hit later there are two entries: the last one says whose it is.
            moving.pop(hit.hit_id, None)
            if was != key:
                entry.stored = was
                moving[hit.hit_id] = entry
        if not in_order:
            sections.setdefault(hit.app, []).append(entry)
    moved: list[bulk.Row] = []
    for entry in moving.values():
        hit = entry.hit
        was, person = (key or hit.visitor for key in (entry.stored, entry.person))
        # Also where they are one by now: that may be taken back by a hit that comes after this one.
        if was != person:
            # A hit's id begins with when it came.
            at = int.from_bytes(hit.hit_id[:6], "big")
            moved.append((hit.hit_id, at, hit.app + was, hit.app + person, now_ms))
        entry.stored = entry.person
    await bulk.put(Reattribution, _MOVED_COLUMNS, moved, keep="was")
    # Whoever sent an access token with it is whose it is now.
    whose = [(person[16:], was[16:], hit_id) for hit_id, _, was, person, _ in moved]
    await bulk.run(
        tables.TokenSender, "UPDATE token_sender SET person = ? WHERE person = ? AND hit_id = ?", sorted(whose)
    )
    await _write_sections(sections, newest)
    return [placed[hit.hit_id] for hit in hits], newest


def _last(hit: Sighting, newest: int) -> Sighting:
    """A hit that is digested too late to be put in its place; its cookie may be known from later ones."""
    return msgspec.structs.replace(hit, at=newest + 1, new_visitor=False)


def _of_app(placing: list[Sighting]) -> dict[bytes, list[Sighting]]:
    """Each app's hits, in their order."""
    of_app: dict[bytes, list[Sighting]] = {}
    for hit in placing:
        of_one = of_app.get(hit.app)
        if of_one is None:
            of_app[hit.app] = [hit]
        else:
            of_one.append(hit)
    return of_app


async def _later(earliest: dict[bytes, Sighting]) -> tuple[list[Entry], dict[bytes, list[Entry]]]:
    """What was placed after these hits of each app, in its order; and of the sections with such entries the rest.

    These sections are removed: what is left of them is to be written again.
    """
    undone: list[Entry] = []
    kept: dict[bytes, list[Entry]] = {}
    found = await bulk.find(IdentitySection, ("id", "app", "last"), "app", list(earliest))
    later = [number for number, app, last in found if last >= earliest[app].at]
    if not later:
        return undone, kept
    sections = await IdentitySection.objects().where(IdentitySection.id.is_in(later))
    for section in sorted(sections, key=attrgetter("first", "id")):
        for entry in _decode_entries(section.entries):
            app = entry.hit.app
            if _PLACE(entry.hit) < _PLACE(earliest[app]):
                kept.setdefault(app, []).append(entry)
            else:
                undone.append(entry)
    await IdentitySection.delete().where(IdentitySection.id.is_in(later))
    undone.sort(key=lambda entry: _PLACE(entry.hit))
    return undone, kept


async def _load(
    apps: dict[bytes, Persons], of_app: dict[bytes, list[Sighting]], undone: list[Entry], learnt: set[bytes]
) -> None:
    """Have `apps` know all that these hits are about, and the persons of whom something is learnt."""
    identifiers: list[bytes] = []
    visitors: set[bytes] = set()
    for app, hits in of_app.items():
        known = apps[app]
        # Nearly all is remembered: sets find out what is not in a third of the time that looking at each hit takes.
        for kind, told in (
            (EMAIL_KIND, {hit.email for hit in hits}),
            (UUID_KIND, {hit.uuid for hit in hits}),
            (FBID_KIND, {hit.fbid for hit in hits}),
        ):
            owners = known.owners[kind]
            for value in told.difference(owners):
                if value is not None:
                    owners[value] = None
                    identifiers.append(_identifier_key(app, kind, value))
        if strangers := {hit.visitor for hit in hits}.difference(known.visitors):
            # Nobody can own a cookie that was never seen.
            strangers = {hit.visitor for hit in hits if hit.visitor in strangers and known.may_have_past(hit)}
            known.visitors |= dict.fromkeys(strangers)
            visitors.update([app + visitor for visitor in strangers])
    for entry in undone:
        if entry.visitor_moved and entry.hit.visitor not in (known := apps[entry.hit.app]).visitors:
            known.visitors[entry.hit.visitor] = None
            visitors.add(entry.hit.app + entry.hit.visitor)
    wanted = set(learnt)
    for key, person in await bulk.find(Identifier, ("key", "person"), "key", identifiers):
        apps[key[:16]].owners[key[16]][key[17:].decode(errors="surrogatepass")] = person[16:]
        wanted.add(person)
    for key, person in await bulk.find(Visitor, ("key", "person"), "key", list(visitors)):
        apps[key[:16]].visitors[key[16:]] = person[16:]
        wanted.add(person)
    # Of visitors who become known: hardly any has a row.
    wanted.update(key for key in visitors if apps[key[:16]].visitors[key[16:]] is None)
    for entry in undone:
        app = entry.hit.app
        states = [state[3] for state in entry.persons.values() if state is not None]
        others = (*entry.persons, *states, entry.visitor_of, entry.hit.of)
        wanted.update(app + key for key in others if key is not None)
    while wanted := {key for key in wanted if key[16:] not in apps[key[:16]].persons}:
        found = await bulk.find(tables.Person, _PERSON_COLUMNS, "key", list(wanted))
        wanted = set[bytes]()
        for key, kinds, size, known_at, merged_into, found_at, todo, _ in found:
            known = apps[key[:16]]
            person = known.persons[key[16:]] = Person(kinds, size, known_at)
            person.found_at, person.todo = found_at, todo
            if merged_into is not None:
                person.was_merged_into = known.merged[key[16:]] = merged_into[16:]
                wanted.add(merged_into)


async def _write(apps: dict[bytes, Persons], revisions: dict[bytes, int], now_ms: int) -> None:
    """Write what changed, and what the event store has to do about it."""
    persons: list[bulk.Row] = []
    merged: list[bytes] = []
    for app, known in apps.items():
        for key in known.changed_persons:
            person, into = known.persons[key], known.merged.get(key)
            if into != person.was_merged_into:
                if into is not None:
                    # Of an anonymous visitor nothing was collected yet.
                    person.todo |= TELL | REWRITE | (0 if person.kinds else COLLECT)
                else:
                    person.todo = person.todo & ~REWRITE | TELL
                person.found_at = now_ms
                merged.append(app + key)
            if key in known.began_as_visitors:
                person.todo |= COLLECT
                person.found_at = now_ms
            row = (app + key, person.kinds, person.size, person.known_at, into and app + into, person.found_at)
            persons.append((*row, person.todo, revisions[app]))
    await bulk.put(tables.Person, _PERSON_COLUMNS, persons)
    # Those who were merged into one who is now merged elsewhere, as far as their events are still their own.
    again = [(revisions[key[:16]], key) for others in (await merged_with(merged)).values() for key in others]
    tell_again = f"UPDATE person SET todo = todo | {TELL}, revision = ? WHERE key = ? AND (todo & {REWRITE}) > 0"
    await bulk.run(tables.Person, tell_again, again)
    identifiers: list[tuple[bytes, bytes | None]] = []
    visitors: list[tuple[bytes, bytes | None]] = []
    for app, known in apps.items():
        for kind, value in known.changed_identifiers:
            owner = known.owners[kind][value]
            identifiers.append((_identifier_key(app, kind, value), owner and app + owner))
        for visitor in known.changed_visitors:
            owner = known.visitors[visitor]
            visitors.append((app + visitor, owner and app + owner))
    await _write_owners(Identifier, identifiers)
    await _write_owners(Visitor, visitors)


async def _write_owners(table: type[Table], owners: list[tuple[bytes, bytes | None]]) -> None:
    await bulk.put(table, ("key", "person"), [row for row in owners if row[1] is not None])
    statement = f"DELETE FROM {table._meta.tablename} WHERE key = ?"
    await bulk.run(table, statement, [(key,) for key, owner in owners if owner is None])


def _identifier_key(app: bytes, kind: int, value: str) -> bytes:
    return b"%b%c%b" % (app, kind, value.encode(errors="surrogatepass"))


async def unscoped_forget_sections(now: datetime) -> None:
    """Remove what is too old for an earlier hit to be put before it, of apps that had none since."""
    await IdentitySection.delete().where(IdentitySection.last < int((now - _KEPT).timestamp() * 1000))


async def _write_sections(sections: dict[bytes, list[Entry]], newest: dict[bytes, int]) -> None:
    """Keep the entries that an earlier hit may still be put before."""
    out = [(app, at - WINDOW_MS) for app, at in newest.items()]
    await bulk.run(IdentitySection, "DELETE FROM identity_section WHERE app = ? AND last < ?", out)
    rows: list[bulk.Row] = []
    for app, entries in sections.items():
        recent = [entry for entry in entries if entry.hit.at >= newest[app] - WINDOW_MS]
        if recent:
            rows.append((app, recent[0].hit.at, recent[-1].hit.at, _encode(recent)))
    await bulk.run(
        IdentitySection, "INSERT INTO identity_section (app, first, last, entries) VALUES (?, ?, ?, ?)", rows
    )
