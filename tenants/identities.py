"""The rules of pixel protocol section 3, for the hits of one app, purely: whose is a hit, and who turns out to be one.

`Persons` takes one hit after the other, in the order they came: first `place_known`, since nearly always everything
that a hit tells of belongs to the same person already; else `place`, whose changes can be taken back. Persons are ids
of 16 bytes.
"""

from collections.abc import Iterable

import msgspec

from tenants.identifiers import EMAIL_KIND, FBID_KIND, KINDS, UUID_KIND

_COOKIE_KIND = 4
# Bits of the kinds that are stronger than one.
_STRONGER = {
    UUID_KIND: 0,
    EMAIL_KIND: 1 << UUID_KIND,
    FBID_KIND: 1 << UUID_KIND | 1 << EMAIL_KIND,
    _COOKIE_KIND: 1 << UUID_KIND | 1 << EMAIL_KIND | 1 << FBID_KIND,
}

# (kind, value) of a hit's identifiers, strongest first; without the cookie.
Identifiers = list[tuple[int, str]]
# Kinds, size, known_at and merged_into of a person; None where there was none.
PersonState = tuple[int, int, int, bytes | None] | None


class Sighting(msgspec.Struct, array_like=True, gc=False):
    """What an event says of who it was. Ids have 16 bytes, `at` is when it came, in ms, `email` is lower case.

    `new_visitor`: the cookie was made for this hit. `of` is whose event it was, where `fbid` was only learnt later.
    """

    hit_id: bytes
    at: int
    app: bytes
    visitor: bytes
    new_visitor: bool = False
    uuid: str | None = None
    email: str | None = None
    fbid: str | None = None
    of: bytes | None = None

    def identifiers(self) -> Identifiers:
        """What it tells of, without the cookie."""
        told = ((UUID_KIND, self.uuid), (EMAIL_KIND, self.email), (FBID_KIND, self.fbid))
        return [(kind, value) for kind, value in told if value is not None]


class Entry(msgspec.Struct, array_like=True, gc=False):
    """A hit, whose it is, as whose it was stored, and what was before it: owners and persons that it changed.

    Persons are empty for an anonymous visitor's hit.
    """

    hit: Sighting
    person: bytes
    stored: bytes
    identifiers: Identifiers = []
    visitor_moved: bool = False
    visitor_of: bytes | None = None
    persons: dict[bytes, PersonState] = {}


class Person:
    """Its identifiers' kinds, a bit each, and how many there are.

    `was_merged_into` is as written down; `todo` and `found_at` are for the event store: people.py.
    """

    __slots__ = ("found_at", "kinds", "known_at", "size", "todo", "was_merged_into")

    def __init__(self, kinds: int = 0, size: int = 0, known_at: int = 0) -> None:
        self.kinds = kinds
        self.size = size
        self.known_at = known_at
        self.was_merged_into: bytes | None = None
        self.found_at = self.todo = 0


class Persons:
    """An app's persons and who owns what, as far as they are loaded; an owner None says that nobody does.

    `newest`: when the newest hit came that was digested before, in ms. `revision`: of the app's clock when all this was
    true. `keep`: whether hits may have to be taken back.
    """

    def __init__(self) -> None:
        self.newest = 0
        self.revision = -1
        self.keep = True
        self.owners: dict[int, dict[str, bytes | None]] = {kind: {} for kind in KINDS}
        self.visitors: dict[bytes, bytes | None] = {}
        self.persons: dict[bytes, Person] = {}
        # Into whom persons were merged. Few were, so most hits' persons are not looked for among all.
        self.merged: dict[bytes, bytes] = {}
        # Persons who had a cookie before anything was known of them, and may have done something with it.
        self.began_as_visitors: set[bytes] = set()
        # What is not as it is written down.
        self.changed_identifiers: set[tuple[int, str]] = set()
        self.changed_visitors: set[bytes] = set()
        self.changed_persons: set[bytes] = set()

    def __len__(self) -> int:
        return len(self.visitors) + len(self.persons) + sum(map(len, self.owners.values()))

    def written(self, revision: int, newest: int) -> None:
        """All is written down."""
        self.revision, self.newest = revision, newest
        for key in self.changed_persons:
            self.persons[key].was_merged_into = self.merged.get(key)
        for changed in (
            self.changed_identifiers,
            self.changed_visitors,
            self.changed_persons,
            self.began_as_visitors,
        ):
            changed.clear()

    def root(self, key: bytes) -> bytes:
        """The person that this one is in the end."""
        while (into := self.merged.get(key)) is not None:
            key = into
        return key

    def state(self, key: bytes) -> PersonState:
        """What placing changes of a person."""
        person = self.persons.get(key)
        return None if person is None else (person.kinds, person.size, person.known_at, self.merged.get(key))

    def _restore(self, key: bytes, state: PersonState) -> None:
        """As it was; nobody where there was no such person: the event store may have heard of them."""
        person = self.persons[key]
        person.kinds, person.size, person.known_at, into = state or (0, 0, 0, None)
        if into is None:
            self.merged.pop(key, None)
        else:
            self.merged[key] = into

    def place_known(self, hit: Sighting) -> bytes | None:
        """Whose the hit is, if that is plain and changes nothing to be taken back; else None, and `place` it.

        Empty for an anonymous visitor.
        """
        held = self.visitors.get(hit.visitor)
        if hit.email is hit.uuid is hit.fbid is None:
            return self.root(held) if held is not None else b""
        key: bytes | None = None
        if hit.email is not None:
            key = self.owners[EMAIL_KIND].get(hit.email)
            if key is None:
                return None
        if hit.uuid is not None:
            owned = self.owners[UUID_KIND].get(hit.uuid)
            if owned is None or (key is not None and owned != key):
                return None
            key = owned
        if hit.fbid is not None:
            owned = self.owners[FBID_KIND].get(hit.fbid)
            if owned is None or hit.of is not None or (key is not None and owned != key):
                return None
            key = owned
        assert key is not None
        if key in self.merged:
            return None
        if held != key:
            if held is not None or self.keep or self.may_have_past(hit):
                return None
            self.visitors[hit.visitor] = key
            self.changed_visitors.add(hit.visitor)
        return key

    def place_all(self, hits: Iterable[Sighting]) -> list[bytes]:
        """The person of each hit, empty for an anonymous visitor's; in their order, and none is ever taken back.

        As `place_known` and `place` would, but nearly all are told by two look-ups, and most who become known had no
        more than a cookie.
        """
        visitors, emails, merged = self.visitors, self.owners[EMAIL_KIND], self.merged
        persons: list[bytes] = []
        for hit in hits:
            key, email = visitors.get(hit.visitor), hit.email
            owner = key if email is None else emails.get(email)
            plain = hit.uuid is hit.fbid is None and owner == key and owner not in merged
            if plain and owner is None and email is not None:
                owner = self._introduce(hit, email)
                plain = owner is not None
            if not plain:
                owner = self.place_known(hit)
                if owner is None:
                    owner = self.place(hit).person
            persons.append(owner or b"")
        return persons

    def _introduce(self, hit: Sighting, email: str) -> bytes | None:
        """As `place` for a visitor of whom nothing is known, with an address that is nobody's; None where it is not so.

        Owners of both are known to be nobody.
        """
        key = hit.visitor
        if not self._is_anonymous(key):
            return None
        person = self.persons.get(key)
        if person is None:
            person = self.persons[key] = Person()
        person.kinds |= 1 << EMAIL_KIND
        person.size = 1
        person.known_at = hit.at
        if self.may_have_past(hit):
            self.began_as_visitors.add(key)
        self.owners[EMAIL_KIND][email] = self.visitors[key] = key
        self.changed_identifiers.add((EMAIL_KIND, email))
        self.changed_visitors.add(key)
        self.changed_persons.add(key)
        return key

    def place(self, hit: Sighting) -> Entry:
        """Whose the hit is. Call it in the order the hits came."""
        if hit.of is not None:
            return self._place_learnt(hit, hit.of)
        told = hit.identifiers()
        if not told:
            held = self.visitors.get(hit.visitor)
            key = self.root(held) if held is not None else b""
            return Entry(hit, key, key)
        entry = Entry(hit, b"", b"", [], persons={})
        key = self._decide(hit, told)
        person = self.persons.get(key)
        if person is None or not person.size:
            self._changing(key, entry).known_at = hit.at
            if key == hit.visitor and self.may_have_past(hit):
                self.began_as_visitors.add(key)
        for kind, value in told:
            owned = self.owners[kind].get(value)
            if owned is None:
                entry.identifiers.append((kind, value))
                self.owners[kind][value] = key
                person = self._changing(key, entry)
                person.kinds |= 1 << kind
                person.size += 1
                continue
            owned = self.root(owned)
            if owned != key and not self._differ(owned, key, kind):
                key = self._merge(owned, key, entry)
        entry.person = entry.stored = self._place_visitor(hit, key, entry)
        self.changed_identifiers.update(entry.identifiers)
        self.changed_persons.update(entry.persons)
        return entry

    def _place_learnt(self, hit: Sighting, of: bytes) -> Entry:
        """As `place` where the event is somebody's already, and only the fbid is news.

        Whoever logged in with the cookie meanwhile keeps it, and what they do is theirs.
        """
        assert hit.fbid is not None
        entry = Entry(hit, b"", b"", [], persons={})
        key = before = self.root(of)
        held = self.visitors.get(hit.visitor)
        if held is not None and key not in self.persons:
            # Who was here is somebody, so this is nobody any more: deleted, and named after a cookie that is another's.
            return entry
        owned = self.owners[FBID_KIND].get(hit.fbid)
        if owned is None:
            person = self._changing(key, entry)
            if not person.size:  # an anonymous visitor
                person.known_at = hit.at
                self.began_as_visitors.add(key)
            entry.identifiers.append((FBID_KIND, hit.fbid))
            self.owners[FBID_KIND][hit.fbid] = key
            person.kinds |= 1 << FBID_KIND
            person.size += 1
        elif (owned := self.root(owned)) != key:
            if key not in self.persons or not self._differ(owned, key, FBID_KIND):
                person = self._changing(key, entry)
                if not person.size:
                    person.known_at = hit.at
                key = self._merge(owned, key, entry)
            elif hit.uuid is None and hit.email is None:
                # The event itself told of nobody, so it is the other one's.
                key = owned
        if (of == hit.visitor) if held is None else (key != before == self.root(held)):
            entry.visitor_moved, entry.visitor_of = True, held
            self.visitors[hit.visitor] = key
            self.changed_visitors.add(hit.visitor)
        entry.person = entry.stored = key
        self.changed_identifiers.update(entry.identifiers)
        self.changed_persons.update(entry.persons)
        return entry

    def take_back(self, entry: Entry) -> None:
        """Undo what placing it changed; newest entries first."""
        for kind, value in entry.identifiers:
            self.owners[kind][value] = None
        if entry.visitor_moved:
            self.visitors[entry.hit.visitor] = entry.visitor_of
            self.changed_visitors.add(entry.hit.visitor)
        for key, state in entry.persons.items():
            self._restore(key, state)
        self.changed_identifiers.update(entry.identifiers)
        self.changed_persons.update(entry.persons)

    def _decide(self, hit: Sighting, told: Identifiers) -> bytes:
        """Rule 1: the strongest identifier whose owner does not disagree with the hit; else somebody new."""
        for kind, value in told:
            owned = self.owners[kind].get(value)
            if owned is not None and not self._disagrees(owned := self.root(owned), told, kind):
                return owned
        held = self.visitors.get(hit.visitor)
        if held is None:
            # An anonymous visitor is a person too, with the cookie for an id.
            if self._is_anonymous(hit.visitor):
                return hit.visitor
        elif not self._disagrees(held := self.root(held), told, _COOKIE_KIND):
            return held
        return hit.hit_id

    def _place_visitor(self, hit: Sighting, key: bytes, entry: Entry) -> bytes:
        """Rule 2 for the cookie, which alone moves from one person to another."""
        held = self.visitors.get(hit.visitor)
        if held is not None:
            owned = self.root(held)
            if owned == key:
                return key
            if not self._differ(owned, key, _COOKIE_KIND):
                return self._merge(owned, key, entry)
        elif hit.visitor != key and self.may_have_past(hit) and self._is_anonymous(hit.visitor):
            # Whatever the visitor did before is this person's.
            self._changing(hit.visitor, entry)
            self.merged[hit.visitor] = key
        entry.visitor_moved, entry.visitor_of = True, held
        self.visitors[hit.visitor] = key
        self.changed_visitors.add(hit.visitor)
        return key

    def _is_anonymous(self, visitor: bytes) -> bool:
        """Whether nobody is named after the cookie: somebody known is when its later owner was deleted."""
        person = self.persons.get(visitor)
        return person is None or not (person.size or visitor in self.merged)

    def may_have_past(self, hit: Sighting) -> bool:
        """Whether events of the hit's cookie may be stored: it is not new, or later hits were digested before."""
        return not hit.new_visitor or hit.at < self.newest

    def _disagrees(self, key: bytes, told: Identifiers, above: int) -> bool:
        """Whether person and hit have identifiers of a kind that is stronger, and do not share one of it."""
        kinds = self.persons[key].kinds
        for kind, value in told:
            if kind >= above:
                return False
            if kinds >> kind & 1:
                owned = self.owners[kind].get(value)
                if owned is None or self.root(owned) != key:
                    return True
        return False

    def _differ(self, one: bytes, other: bytes, above: int) -> bool:
        """Whether two persons disagree: what one has of a kind is never the other's."""
        return bool(self.persons[one].kinds & self.persons[other].kinds & _STRONGER[above])

    def _merge(self, one: bytes, other: bytes, entry: Entry) -> bytes:
        """They were one all along; returns which of them it is: who has more identifiers, or else is known longer."""
        persons = self.persons
        kept, gone = sorted((one, other), key=lambda key: (-persons[key].size, persons[key].known_at, key))
        survivor, merged = self._changing(kept, entry), self._changing(gone, entry)
        survivor.kinds |= merged.kinds
        survivor.size += merged.size
        survivor.known_at = min(survivor.known_at, merged.known_at)
        self.merged[gone] = kept
        return kept

    def _changing(self, key: bytes, entry: Entry) -> Person:
        """The person, about to be changed."""
        if key not in entry.persons:
            entry.persons[key] = self.state(key)
        person = self.persons.get(key)
        if person is None:
            person = self.persons[key] = Person()
        return person
