"""What is known of persons: whose an identifier is, and which ones a person has. Reading only: people.py writes them.

Keys are bytes, so that one index finds an app's identifiers, those of one kind and those that begin with a text:

    person       app id 16 · person id 16
    identifier   app id 16 · kind 1 · value in UTF-8
    visitor      app id 16 · cookie 16

What a merged person owned stays under its key; `Person.merged_into` leads on to the one it is.
"""
# Piccolo keeps a table's engine in `_meta`, and its annotations leave type arguments open.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import asyncio
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from tenants.tables import App, Identifier, Person

# Kinds by strength; each is a bit of Person.kinds (1 << kind).
UUID_KIND, EMAIL_KIND, FBID_KIND = 1, 2, 3
KINDS = (UUID_KIND, EMAIL_KIND, FBID_KIND)
# SQLite takes 32,766 values a statement.
_KEYS_A_STATEMENT = 5_000
_SHOWN = 1_000
# A page of people has far fewer merged into them: all of it is asked about at once.
_USUALLY = 5_000
_ALL = 2**31 - 1
_MERGED = (
    "WITH RECURSIVE theirs (key, root) AS (SELECT key, root FROM (SELECT key, merged_into AS root FROM person "
    "WHERE merged_into IN ({}) LIMIT {}) AS directly UNION ALL "
    "SELECT person.key, theirs.root FROM theirs JOIN person ON person.merged_into = theirs.key) "
    "SELECT key, root FROM theirs LIMIT {}"
)
_IDENTIFIERS = (
    "SELECT key, person FROM (SELECT key, person, ROW_NUMBER() OVER (PARTITION BY person, substr(key, 17, 1) "
    "ORDER BY key) AS turn FROM identifier WHERE person IN ({})) AS numbered WHERE turn <= {} ORDER BY key"
)


def person_key(app_id: UUID, person: UUID) -> bytes:
    """The key of a person."""
    return app_id.bytes + person.bytes


def identifier_key(app_id: UUID, kind: int, value: str) -> bytes:
    """The key of an identifier; e-mail addresses are lower case."""
    return b"%b%c%b" % (app_id.bytes, kind, value.encode(errors="surrogatepass"))


class Known(msgspec.Struct, frozen=True):
    """Somebody of whom something is known. `merged` are the ids of those who turned out to be this one."""

    id: UUID
    emails: list[str]
    uuids: list[str]
    fbids: list[str]
    known_at: datetime
    merged: list[UUID]


async def survivors(app: App, ids: Iterable[UUID]) -> dict[UUID, UUID]:
    """Who each of these persons is: themselves, or the one they were merged into."""
    roots = await unscoped_roots([person_key(app.id, each) for each in ids])
    return {UUID(bytes=key[16:]): UUID(bytes=root[16:]) for key, root in roots.items()}


async def unscoped_roots(keys: Sequence[bytes]) -> dict[bytes, bytes]:
    """For each person's key that of the one they are in the end."""
    into: dict[bytes, bytes | None] = {}
    asked = set(keys)
    while asked:
        into |= dict.fromkeys(asked)
        into |= await _merged_into(sorted(asked))
        asked = {key for key in into.values() if key is not None} - into.keys()
    return {key: _root(key, into) for key in keys}


def _root(key: bytes, into: dict[bytes, bytes | None]) -> bytes:
    while (merged := into[key]) is not None:
        key = merged
    return key


async def _merged_into(keys: Sequence[bytes]) -> dict[bytes, bytes | None]:
    found: dict[bytes, bytes | None] = {}
    for start in range(0, len(keys), _KEYS_A_STATEMENT):
        rows = (
            await Person.select(Person.key, Person.merged_into)
            .where(Person.key.is_in(list(keys[start : start + _KEYS_A_STATEMENT])))
            .where(Person.merged_into.is_not_null())
        )
        found |= {row["key"]: row["merged_into"] for row in rows}
    return found


async def merged_with(keys: Sequence[bytes], most: int | None = None) -> dict[bytes, list[bytes]]:
    """For each person's key the keys of all who were merged into them, directly or not; `most` of each, if given."""
    merged: dict[bytes, list[bytes]] = {key: [] for key in keys}
    for start in range(0, len(keys), _KEYS_A_STATEMENT):
        some = list(keys[start : start + _KEYS_A_STATEMENT])
        rows = await _merged(some, _ALL if most is None else _USUALLY)
        if most is not None and len(rows) == _USUALLY:
            # Whoever has thousands must not take the others' places.
            rows = [row for key in some for row in await _merged([key], most)]
        for row in rows:
            merged[row["root"]].append(row["key"])
    return merged


async def _merged(keys: Sequence[bytes], most: int) -> list[dict[str, bytes]]:
    return await Person.raw(_MERGED.format(", ".join(["{}"] * len(keys)), "{}", "{}"), *keys, most, most)


async def known(app: App, ids: Iterable[UUID], whole: bool = False) -> dict[UUID, Known]:
    """What is known of these persons, by the id that was asked for; those of whom nothing is known are left out.

    Unless `whole`, of each `_SHOWN` of those merged into them, and of each id the first `_SHOWN` identifiers of a kind:
    hits may bring any number.
    """
    of = await survivors(app, ids)
    roots = sorted({person_key(app.id, survivor) for survivor in of.values()})
    rows: list[dict[str, object]] = []
    for start in range(0, len(roots), _KEYS_A_STATEMENT):
        some = roots[start : start + _KEYS_A_STATEMENT]
        rows += await Person.select(Person.key, Person.known_at).where(Person.key.is_in(some)).where(Person.size > 0)
    since = {row["key"]: row["known_at"] for row in rows}
    merged = await merged_with([key for key in roots if key in since], None if whole else _SHOWN)
    owner = {each: key for key, others in merged.items() for each in (key, *others)}
    values: dict[bytes, dict[int, list[str]]] = {key: {kind: [] for kind in KINDS} for key in merged}
    owners = sorted(owner)
    for start in range(0, len(owners), _KEYS_A_STATEMENT):
        some = owners[start : start + _KEYS_A_STATEMENT]
        theirs = _IDENTIFIERS.format(", ".join(["{}"] * len(some)), "{}")
        for row in await Identifier.raw(theirs, *some, 2**31 - 1 if whole else _SHOWN):
            key: bytes = row["key"]
            values[owner[row["person"]]][key[16]].append(key[17:].decode(errors="surrogatepass"))

    def told(key: bytes) -> Known:
        return Known(
            UUID(bytes=key[16:]),
            values[key][EMAIL_KIND],
            values[key][UUID_KIND],
            values[key][FBID_KIND],
            datetime.fromtimestamp(int(str(since[key])) / 1000, UTC),
            [UUID(bytes=each[16:]) for each in merged[key]],
        )

    # All of somebody may be a second's work, and hits come meanwhile.
    persons = {key: await asyncio.to_thread(told, key) if whole else told(key) for key in merged}
    found = {asked: persons.get(person_key(app.id, survivor)) for asked, survivor in of.items()}
    return {asked: person for asked, person in found.items() if person is not None}


async def owner_of(
    app: App, *, uuid: str | None = None, email: str | None = None, fbid: str | None = None
) -> UUID | None:
    """The person that owns all the identifiers that are given, if there is one."""
    given = ((UUID_KIND, uuid), (EMAIL_KIND, email and email.strip().lower()), (FBID_KIND, fbid))
    keys = [identifier_key(app.id, kind, value) for kind, value in given if value]
    rows = await Identifier.select().where(Identifier.key.is_in(keys)) if keys else []
    owners = set((await unscoped_roots([row["person"] for row in rows])).values())
    return UUID(bytes=owners.pop()[16:]) if len(rows) == len(keys) and len(owners) == 1 else None


async def search(app: App, text: str, limit: int) -> list[UUID]:
    """Persons with an identifier that begins with this text, in any kind; exact ones first, `limit` at most."""
    text = text.strip()
    found: dict[bytes, bytes] = {}
    for kind in KINDS:
        first = identifier_key(app.id, kind, text.lower() if kind == EMAIL_KIND else text)
        rows = (
            await Identifier.select()
            .where(Identifier.key >= first)
            .where(Identifier.key < _after(first))
            .order_by(Identifier.key)
            .limit(limit)
        )
        found |= {row["key"]: row["person"] for row in rows}
    persons = [found[key] for key in sorted(found, key=lambda key: (len(key), key))]
    roots = await unscoped_roots(persons)
    return [UUID(bytes=key[16:]) for key in dict.fromkeys(roots[person] for person in persons)][:limit]


def _after(prefix: bytes) -> bytes:
    """The first key that does not begin with it."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1])
