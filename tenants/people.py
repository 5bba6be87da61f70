"""Whose event it is: pixel protocol section 3, for a digest's batches, on any number of machines at once.

`_Persons.place` is the protocol: it takes one hit after the other, in the order they came, and says whose each is. All
else here is for hits that are digested in another order than they came, by two machines say, and for batches that are
done again.

    the app's clock is locked -> later hits are taken back -> all are placed in their order -> what changed is written

Every hit is kept for a while (`IdentitySection`) with what it changed. A batch with an earlier one takes these changes
back, newest first, and places them again behind it. So the same hits give the same persons, whoever digests them, as
long as they are digested within `WINDOW_MS` of each other; what comes later is placed last.

What is written down (`IdentifiedBatch`) with a batch is whose its hits are: done again after a crash it gets the same
answer, whatever happened since. What was stored as somebody else's meanwhile is put right by persons_upkeep.py.
"""
# Piccolo keeps a table's engine in `_meta`, and its annotations leave type arguments open.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from operator import itemgetter
from typing import Any
from uuid import UUID

import msgspec

from tenants import bulk
from tenants.identifiers import EMAIL_KIND, FBID_KIND, UUID_KIND, merged_with, unscoped_roots
from tenants.tables import (
    IdentifiedBatch,
    Identifier,
    IdentityClock,
    IdentitySection,
    Person,
    Reattribution,
    Visitor,
    transaction,
)

# How much later than a newer hit one may be digested and still be put in its place: twice what the protocol promises.
WINDOW_MS = 2_000

# What the event store has yet to do about a person: to hear that they are another one; to collect the properties of
# what they did before anything was known of them; to give their events to the one they are.
TELL, COLLECT, REWRITE = 1, 2, 4

_COOKIE_KIND = 4
# Bits of the kinds that are stronger than one.
_STRONGER = {
    UUID_KIND: 0,
    EMAIL_KIND: 1 << UUID_KIND,
    FBID_KIND: 1 << UUID_KIND | 1 << EMAIL_KIND,
    _COOKIE_KIND: 1 << UUID_KIND | 1 << EMAIL_KIND | 1 << FBID_KIND,
}
_PERSON_COLUMNS = ("key", "kinds", "size", "known_at", "merged_into", "merged_at", "todo", "revision")


# (kind, key) of a hit's identifiers, strongest first; without the cookie.
Keys = list[tuple[int, bytes]]


class Sighting(msgspec.Struct, array_like=True, gc=False):
    """What an event says of who it was. Ids have 16 bytes, `at` is when it came, in ms, `email` is lower case.

    `new_visitor`: the cookie was made for this hit.
    """

    hit_id: bytes
    at: int
    app: bytes
    visitor: bytes | None
    new_visitor: bool = False
    uuid: str | None = None
    email: str | None = None
    fbid: str | None = None


class _Entry(msgspec.Struct, array_like=True, gc=False):
    """A hit, whose it is, as whose it was stored, and what was before it, by the keys it changed.

    Persons are keys; empty for an anonymous visitor's.
    """

    hit: Sighting
    person: bytes
    stored: bytes = b""
    identifiers: dict[bytes, bytes | None] = {}
    visitors: dict[bytes, bytes | None] = {}
    persons: dict[bytes, tuple[int, int, int, bytes | None] | None] = {}


_encode = msgspec.msgpack.Encoder().encode
_decode_entries = msgspec.msgpack.Decoder(list[_Entry]).decode


class _Person:
    """A row of `person`, as far as placing needs it."""

    __slots__ = ("kinds", "known_at", "merged_into", "size")

    def __init__(self, kinds: int = 0, size: int = 0, known_at: int = 0, merged_into: bytes | None = None) -> None:
        self.kinds = kinds
        self.size = size
        self.known_at = known_at
        self.merged_into = merged_into

    def state(self) -> tuple[int, int, int, bytes | None]:
        """All of it, to be remembered."""
        return (self.kinds, self.size, self.known_at, self.merged_into)


class _Persons:
    """The persons and identifiers that some hits are about. Keys are those of the tables."""

    def __init__(self) -> None:
        self.identifiers: dict[bytes, bytes] = {}
        self.visitors: dict[bytes, bytes] = {}
        self.persons: dict[bytes, _Person] = {}
        # By app: when its newest hit came that was digested before.
        self.newest: dict[bytes, int] = {}
        # Persons who had a cookie before anything was known of them, and may have done something with it.
        self.began_as_visitors: set[bytes] = set()
        # Keys of what is not as it was loaded.
        self.changed_identifiers: set[bytes] = set()
        self.changed_visitors: set[bytes] = set()
        self.changed_persons: set[bytes] = set()

    def root(self, key: bytes) -> bytes:
        """The person that this one is in the end."""
        persons = self.persons
        while (person := persons.get(key)) is not None and person.merged_into is not None:
            key = person.merged_into
        return key

    def place(self, hit: Sighting, keys: Keys) -> _Entry:
        """Whose the hit is. Call it in the order the hits came."""
        visitor = hit.app + hit.visitor if hit.visitor is not None else None
        held = self.visitors.get(visitor) if visitor is not None else None
        if not keys:
            return _Entry(hit, self.root(held) if held is not None else b"")
        if held is not None and self.persons[held].merged_into is None:
            # Nearly always: everything is theirs already.
            for _, identifier in keys:
                if self.identifiers.get(identifier) != held:
                    break
            else:
                return _Entry(hit, held)
        entry = _Entry(hit, b"")
        before = _Before()
        key = self._decide(hit, keys, visitor)
        person = self.persons.get(key)
        if person is None or not person.size:
            before.persons[key] = None
            self.persons[key] = _Person(known_at=hit.at)
            if key == visitor and (not hit.new_visitor or hit.at < self.newest[hit.app]):
                self.began_as_visitors.add(key)
        for kind, identifier in keys:
            owned = self.identifiers.get(identifier)
            if owned is None:
                before.identifiers[identifier] = None
                self.identifiers[identifier] = key
                person = self._changing(key, before)
                person.kinds |= 1 << kind
                person.size += 1
                continue
            owned = self.root(owned)
            if owned != key and not self._differ(owned, key, kind):
                key = self._merge(owned, key, before)
        if visitor is not None:
            key = self._place_visitor(hit, visitor, key, before)
        self.changed_identifiers.update(before.identifiers)
        self.changed_visitors.update(before.visitors)
        self.changed_persons.update(before.persons)
        entry.person = key
        entry.identifiers, entry.visitors, entry.persons = before.identifiers, before.visitors, before.persons
        return entry

    def take_back(self, entry: _Entry) -> None:
        """Undo what placing it changed; newest entries first."""
        _restore(self.identifiers, entry.identifiers)
        _restore(self.visitors, entry.visitors)
        for key, state in entry.persons.items():
            # Nobody, rather than no row: the event store may have heard of them.
            self.persons[key] = _Person(*state) if state is not None else _Person()
        self.changed_identifiers.update(entry.identifiers)
        self.changed_visitors.update(entry.visitors)
        self.changed_persons.update(entry.persons)

    def _decide(self, hit: Sighting, keys: Keys, visitor: bytes | None) -> bytes:
        """Rule 1: the strongest identifier whose owner does not disagree with the hit; else somebody new."""
        for kind, identifier in keys:
            owned = self.identifiers.get(identifier)
            if owned is not None and not self._disagrees(owned := self.root(owned), keys, kind):
                return owned
        if visitor is not None:
            owned = self.visitors.get(visitor)
            if owned is None:
                # An anonymous visitor is a person too, with the cookie for an id.
                anonymous = self.persons.get(visitor)
                if anonymous is None or not (anonymous.size or anonymous.merged_into):
                    return visitor
            elif not self._disagrees(owned := self.root(owned), keys, _COOKIE_KIND):
                return owned
        return hit.app + hit.hit_id

    def _place_visitor(self, hit: Sighting, visitor: bytes, key: bytes, before: "_Before") -> bytes:
        """Rule 2 for the cookie, which alone moves from one person to another."""
        owned = self.visitors.get(visitor)
        if owned is None:
            before.visitors[visitor] = None
            self.visitors[visitor] = key
            self._changing(key, before).size += 1
            # Whatever the visitor did before is this person's. A cookie that is new has done nothing, but where a later
            # hit of it may have been digested already.
            if visitor != key and (not hit.new_visitor or hit.at < self.newest[hit.app]):
                self._changing(visitor, before).merged_into = key
            return key
        owned = self.root(owned)
        if owned == key:
            return key
        if not self._differ(owned, key, _COOKIE_KIND):
            return self._merge(owned, key, before)
        before.visitors[visitor] = self.visitors[visitor]
        self.visitors[visitor] = key
        self._changing(owned, before).size -= 1
        self._changing(key, before).size += 1
        return key

    def _disagrees(self, key: bytes, keys: Keys, above: int) -> bool:
        """Whether person and hit have identifiers of a kind that is stronger, and do not share one of it."""
        kinds = self.persons[key].kinds
        for kind, identifier in keys:
            if kind >= above:
                return False
            if kinds >> kind & 1:
                owned = self.identifiers.get(identifier)
                if owned is None or self.root(owned) != key:
                    return True
        return False

    def _differ(self, one: bytes, other: bytes, above: int) -> bool:
        """Whether two persons disagree: what one has of a kind is never the other's."""
        return bool(self.persons[one].kinds & self.persons[other].kinds & _STRONGER[above])

    def _merge(self, one: bytes, other: bytes, before: "_Before") -> bytes:
        """They were one all along; returns which of them it is: who has more identifiers, or else is known longer."""
        persons = self.persons
        kept, gone = sorted((one, other), key=lambda key: (-persons[key].size, persons[key].known_at, key))
        survivor, merged = self._changing(kept, before), self._changing(gone, before)
        survivor.kinds |= merged.kinds
        survivor.size += merged.size
        survivor.known_at = min(survivor.known_at, merged.known_at)
        merged.merged_into = kept
        return kept

    def _changing(self, key: bytes, before: "_Before") -> _Person:
        """The person, about to be changed."""
        person = self.persons.get(key)
        if key not in before.persons:
            before.persons[key] = person.state() if person is not None else None
        if person is None:
            person = self.persons[key] = _Person()
        return person


class _Before:
    """What a hit's changes replaced: None where there was nothing."""

    __slots__ = ("identifiers", "persons", "visitors")

    def __init__(self) -> None:
        self.identifiers: dict[bytes, bytes | None] = {}
        self.visitors: dict[bytes, bytes | None] = {}
        self.persons: dict[bytes, tuple[int, int, int, bytes | None] | None] = {}


def _restore(owners: dict[bytes, bytes], before: dict[bytes, bytes | None]) -> None:
    for key, owner in before.items():
        if owner is None:
            owners.pop(key, None)
        else:
            owners[key] = owner


def keys_of(hit: Sighting) -> Keys:
    """The hit's identifiers."""
    keys: Keys = []
    if hit.uuid is not None:
        keys.append((UUID_KIND, b"%b\x01%b" % (hit.app, hit.uuid.encode(errors="surrogatepass"))))
    if hit.email is not None:
        keys.append((EMAIL_KIND, b"%b\x02%b" % (hit.app, hit.email.encode(errors="surrogatepass"))))
    if hit.fbid is not None:
        keys.append((FBID_KIND, b"%b\x03%b" % (hit.app, hit.fbid.encode())))
    return keys


async def identify(hits: Sequence[Sighting], journal: str, batch: str, again: bool, now_ms: int) -> dict[bytes, bytes]:
    """The person (16 bytes) of each hit, by hit id; anonymous visitors' hits are left out.

    All or nothing. A batch that is done `again` (by its name, within its journal) has the persons it had.
    """
    if not hits:
        return {}
    async with transaction():
        if again and (persons := await _persons_of_batch(journal, batch)) is not None:
            return persons
        clocks = await _lock_clocks({hit.app for hit in hits})
        placed = await _place_all(hits, clocks, now_ms)
        if journal:
            pairs = b"".join(hit_id + person for hit_id, person in placed.items())
            columns = ("journal", "batch", "persons", "identified_at")
            await bulk.put(IdentifiedBatch, columns, [(journal, batch, pairs, now_ms)])
    return {hit_id: person[16:] for hit_id, person in placed.items()}


async def learn(hit: Sighting, now_ms: int) -> UUID | None:
    """Place what was found out of a hit's person afterwards, as the newest there is; returns the person's id."""
    return next((UUID(bytes=person) for person in (await identify([hit], "", "", False, now_ms)).values()), None)


async def unscoped_untold(limit: int = 5_000) -> list[bulk.Row]:
    """Rows of `person_aliases` that the event store has yet to hear of, and then `told`; ids are numbers."""
    rows = await Person.raw(f"SELECT key, revision FROM person WHERE todo > 0 AND (todo & {TELL}) > 0 LIMIT {limit}")
    roots = await unscoped_roots([row["key"] for row in rows])
    return [_alias(row["key"], roots[row["key"]], row["revision"]) for row in rows]


def _alias(key: bytes, root: bytes, revision: int) -> bulk.Row:
    app, person, survivor = (int.from_bytes(part, "big") for part in (key[:16], key[16:], root[16:]))
    return (app, person, survivor, revision)


async def told(rows: Sequence[bulk.Row]) -> None:
    """The event store has heard of them; whoever changed again since is told again."""
    keys = [(revision, app.to_bytes(16, "big") + alias.to_bytes(16, "big")) for app, alias, _, revision in rows]
    async with transaction():
        statement = f"UPDATE person SET todo = todo - {TELL} WHERE revision = ? AND key = ? AND (todo & {TELL}) > 0"
        await bulk.run(Person, statement, keys)


async def _persons_of_batch(journal: str, batch: str) -> dict[bytes, bytes] | None:
    row = await IdentifiedBatch.objects().where(IdentifiedBatch.journal == journal).first()
    if row is None or row.batch != batch:
        return None
    pairs: bytes = row.persons
    persons = {pairs[at : at + 16]: pairs[at + 16 : at + 48] for at in range(0, len(pairs), 48)}
    # Whose events were rewritten since must not get any more of them.
    now = {person: person for person in persons.values()}
    while moved := await _rewritten(list(set(now.values()))):
        now = {person: moved.get(current, current) for person, current in now.items()}
    return {hit_id: now[person][16:] for hit_id, person in persons.items()}


async def _rewritten(keys: list[bytes]) -> dict[bytes, bytes]:
    """Into whom those of these persons were merged whose events are no longer theirs."""
    rows = await bulk.find(Person, ("key", "merged_into", "todo"), "key", keys)
    return {key: merged_into for key, merged_into, todo in rows if merged_into is not None and not todo & REWRITE}


async def _lock_clocks(apps: set[bytes]) -> dict[bytes, tuple[int, int]]:
    """(newest, revision) of each app, whose persons nobody else changes until the transaction ends."""
    ordered = sorted(apps)
    if IdentityClock._meta.db.engine_type == "postgres":
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


async def _place_all(hits: Sequence[Sighting], clocks: dict[bytes, tuple[int, int]], now_ms: int) -> dict[bytes, bytes]:
    """The key of each hit's person, by hit id."""
    state = _Persons()
    state.newest = {app: newest for app, (newest, _) in clocks.items()}
    newest = dict(state.newest)
    # (time, hit id, hit, its keys)
    placing: list[tuple[int, bytes, Sighting, Keys]] = []
    earliest: dict[bytes, tuple[int, bytes]] = {}
    for hit in hits:
        app, at = hit.app, hit.at
        if at > newest[app]:
            newest[app] = at
        keys = keys_of(hit)
        if hit.new_visitor and not keys:
            continue  # nobody can know them
        if at < state.newest[app] - WINDOW_MS:
            # Too late to be put in its place.
            at = state.newest[app] + 1
            hit = msgspec.structs.replace(hit, at=at)
        placing.append((at, hit.hit_id, hit, keys))
        if app not in earliest or (at, hit.hit_id) < earliest[app]:
            earliest[app] = (at, hit.hit_id)
    own = {hit_id for _, hit_id, _, _ in placing}
    undone, sections = await _later(earliest)
    placing += [(entry.hit.at, entry.hit.hit_id, entry.hit, keys_of(entry.hit)) for entry in undone]
    placing.sort(key=itemgetter(0, 1))
    rows = await _load(state, placing, undone)
    for entry in reversed(undone):
        state.take_back(entry)
    stored = {entry.hit.hit_id: entry.stored for entry in undone}
    placed: dict[bytes, bytes] = {}
    moving: list[_Entry] = []
    for _, hit_id, hit, keys in placing:
        entry = state.place(hit, keys)
        entry.stored = stored.get(hit_id, entry.person)
        if entry.stored != entry.person:
            moving.append(entry)
        sections.setdefault(hit.app, []).append(entry)
        if entry.person:
            placed[hit_id] = entry.person
    await _write(state, rows, {app: revision + 1 for app, (_, revision) in clocks.items()}, newest, now_ms)
    moved: list[bulk.Row] = []
    for entry in moving:
        hit = entry.hit
        anonymous = hit.app + (hit.visitor or b"")
        # Of persons who are one by now the event store knows that. Should it be taken back, this is asked again.
        if state.root(entry.stored or anonymous) != state.root(entry.person or anonymous):
            # A hit's id begins with when it came.
            at = int.from_bytes(hit.hit_id[:6], "big")
            moved.append((hit.hit_id, at, entry.stored or anonymous, entry.person or anonymous, now_ms))
            entry.stored = entry.person
    await _write_sections(sections, newest)
    await bulk.put(Reattribution, ("hit_id", "received_at", "was", "person", "since"), moved)
    # Not whom they are merged into: that may be taken back, and aliases tell it.
    return {hit_id: person for hit_id, person in placed.items() if hit_id in own}


async def _later(earliest: dict[bytes, tuple[int, bytes]]) -> tuple[list[_Entry], dict[bytes, list[_Entry]]]:
    """What was placed after these hits of each app, in its order; and of the sections with such entries the rest.

    These sections are removed: what is left of them is to be written again.
    """
    undone: list[_Entry] = []
    kept: dict[bytes, list[_Entry]] = {}
    found = await bulk.find(IdentitySection, ("id", "app", "last"), "app", list(earliest))
    later = [number for number, app, last in found if last >= earliest[app][0]]
    if not later:
        return undone, kept
    sections = await IdentitySection.objects().where(IdentitySection.id.is_in(later))
    for section in sorted(sections, key=lambda section: section.first):
        for entry in _decode_entries(section.entries):
            app = entry.hit.app
            if (entry.hit.at, entry.hit.hit_id) < earliest[app]:
                kept.setdefault(app, []).append(entry)
            else:
                undone.append(entry)
    await IdentitySection.delete().where(IdentitySection.id.is_in(later))
    undone.sort(key=lambda entry: (entry.hit.at, entry.hit.hit_id))
    return undone, kept


async def _load(
    state: _Persons, placing: list[tuple[int, bytes, Sighting, Keys]], undone: list[_Entry]
) -> dict[bytes, bulk.Row]:
    """Fill `state` with all that these hits are about; returns the persons' rows by key."""
    visitors = {hit.app + hit.visitor for _, _, hit, _ in placing if hit.visitor is not None}
    identifiers = {key for _, _, _, keys in placing for _, key in keys}
    state.identifiers = dict(await bulk.find(Identifier, ("key", "person"), "key", list(identifiers)))
    state.visitors = dict(await bulk.find(Visitor, ("key", "person"), "key", list(visitors)))
    wanted = {*state.identifiers.values(), *state.visitors.values()}
    # Of visitors who become known: hardly any has a row.
    wanted |= {
        hit.app + hit.visitor
        for _, _, hit, keys in placing
        if keys and hit.visitor is not None and hit.app + hit.visitor not in state.visitors
    }
    for entry in undone:
        wanted.update(entry.persons)
        wanted.update(key for key in (*entry.identifiers.values(), *entry.visitors.values()) if key is not None)
        wanted.update(before[3] for before in entry.persons.values() if before is not None and before[3] is not None)
    rows: dict[bytes, bulk.Row] = {}
    while wanted:
        found = await bulk.find(Person, _PERSON_COLUMNS, "key", list(wanted))
        rows |= {row[0]: row for row in found}
        wanted = {row[4] for row in found if row[4] is not None} - rows.keys()
    for key, kinds, size, known_at, merged_into, *_ in rows.values():
        state.persons[key] = _Person(kinds, size, known_at, merged_into)
    return rows


async def _write(
    state: _Persons, rows: dict[bytes, bulk.Row], revisions: dict[bytes, int], newest: dict[bytes, int], now_ms: int
) -> None:
    """Write what changed, and what the event store has to do about it."""
    persons: list[bulk.Row] = []
    elsewhere: list[bytes] = []
    for key in state.changed_persons:
        person = state.persons[key]
        _, _, _, _, was_merged_into, merged_at, todo, revision = rows.get(key) or (key, 0, 0, 0, None, 0, 0, 0)
        if person.merged_into != was_merged_into:
            todo, merged_at = (todo | TELL | REWRITE, now_ms) if person.merged_into else (todo & ~REWRITE | TELL, 0)
            if person.merged_into and not person.kinds:
                todo |= COLLECT
            elsewhere.append(key)
        if key in state.began_as_visitors:
            todo |= COLLECT
        if todo:
            revision = revisions[key[:16]]
        persons.append((key, *person.state(), merged_at, todo, revision))
    await bulk.put(Person, _PERSON_COLUMNS, persons)
    # Those who were merged into one who is now merged elsewhere, as far as their events are still their own.
    again = [(revisions[key[:16]], key) for others in (await merged_with(elsewhere)).values() for key in others]
    tell_again = f"UPDATE person SET todo = todo | {TELL}, revision = ? WHERE key = ? AND (todo & {REWRITE}) > 0"
    await bulk.run(Person, tell_again, again)
    for table, owners, changed in (
        (Identifier, state.identifiers, state.changed_identifiers),
        (Visitor, state.visitors, state.changed_visitors),
    ):
        await bulk.put(table, ("key", "person"), [(key, owners[key]) for key in changed if key in owners])
        name = table._meta.tablename
        await bulk.run(table, f"DELETE FROM {name} WHERE key = ?", [(key,) for key in changed if key not in owners])
    clocks = [(app, newest[app], revisions[app]) for app in revisions]
    await bulk.put(IdentityClock, ("app", "newest", "revision"), clocks)


async def _write_sections(sections: dict[bytes, list[_Entry]], newest: dict[bytes, int]) -> None:
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
