"""What was found out about persons, put into the event store for good; `onepx serve` does it now and then.

    collect     properties of what somebody did as an anonymous visitor
    rewrite     events of merged persons become the survivor's; then their aliases and old properties go
    reattribute events that an earlier hit made somebody else's

Reports are right before: aliases tell them who is who. All can be done again, and by two processes at once. What a
batch that is still to be inserted adds is found the next time: nothing is done with before it is settled.
"""
# Piccolo keeps a table's engine in `_meta`, and its annotations leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from tenants import bulk
from tenants.erasures import Store, mutate
from tenants.identifiers import unscoped_roots
from tenants.people import COLLECT, REWRITE, TELL, lock_clocks
from tenants.tables import Person, Reattribution, transaction

# By then a batch that made them who they are is stored, usually; collected once more when it is settled.
_SOON = timedelta(seconds=2)
# A batch that was identified is stored, or given up, long before.
_SETTLED = timedelta(minutes=15)
# Rewriting reads and writes the person of every event of a month.
_TOGETHER = timedelta(minutes=5)
_GIVEN_UP = timedelta(days=7)
# Machines' clocks differ by less.
_AHEAD = timedelta(minutes=5)
# Ids in one statement, each up to four times: half a megabyte, made in some 30 ms, in which no hit is taken.
_AT_ONCE = 3_000
_MOVED_AT_ONCE = 1_000
_COLLECT_AGAIN = COLLECT << 2

# As in migrations/events/0010_properties.sql.
PROPERTIES = (
    "SELECT app_id, property.1 AS field, person_id, property.2 AS value, received_at, "
    "toUInt64(toUnixTimestamp64Milli(received_at)) * 1048576 "
    "+ toUInt64(bitShiftRight(toUInt128(id), 14) % 67108864 + toUInt128(id) % 16384) % 1048576 AS version "
    "FROM events ARRAY JOIN JSONExtractKeysAndValuesRaw(params_text) AS property WHERE {rows}"
)


# What is learnt of whoever sent an access token (server/token_resolver.py).
FACEBOOK_PROPERTIES = ("facebook_state", "facebook_name", "facebook_email", "custom_audience_id")


def property_version(hit: bytes) -> int:
    """The version of the properties that a hit brought, by its id of 16 bytes: what came later has a higher one.

    The time in ms, and 20 bits of where in the journal it is: 26 bits of the id are its frame's offset in bytes, the
    last 14 its number in the frame, which has more bytes than hits.
    """
    number = int.from_bytes(hit)
    place = (number >> 14) % 2**26 + number % 2**14
    return (number >> 80) * 2**20 + place % 2**20


async def unscoped_put_right(now: datetime) -> None:
    """Have what a clock that was ahead stamped be of now: it would not be done before that time."""
    now_ms = int(now.timestamp() * 1000)
    ahead = now_ms + _AHEAD // timedelta(milliseconds=1)
    # As the index `person_todo` says it.
    await Person.raw("UPDATE person SET found_at = {} WHERE todo > 0 AND found_at > {}", now_ms, ahead)
    await Reattribution.update({Reattribution.since: now_ms}).where(Reattribution.since > ahead)


async def unscoped_collect(store: Store, now: datetime) -> int:
    """Collect the properties of who became known; returns of how many."""
    done = 0
    for bit, age in ((COLLECT, _SOON), (_COLLECT_AGAIN, _SETTLED)):
        async for rows in _to_do(bit, now - age):
            for app, keys in _by_app(row["key"] for row in rows).items():
                ids = _listed(keys)
                where = f"app_id = '{app}' AND person_id IN ({ids}) AND NOT identified"
                await store.change(f"INSERT INTO person_properties {PROPERTIES.format(rows=where)}")
            await _done(bit, _COLLECT_AGAIN if bit == COLLECT else 0, rows)
            done += len(rows)
    return done


async def unscoped_rewrite(store: Store, now: datetime) -> int:
    """Give events of merged persons to those they are, or see that it is done; returns how many are done with."""
    # What is still to be collected is looked for by the person it was stored as.
    waits = TELL | COLLECT | _COLLECT_AGAIN
    count = 0
    async for rows in _to_do(REWRITE, now - _TOGETHER):
        done = await _rewrite(store, [row for row in rows if not row["todo"] & waits], now)
        await _done(REWRITE, 0, done)
        count += len(done)
    return count


async def _rewrite(store: Store, rows: Sequence[dict[str, Any]], now: datetime) -> list[dict[str, Any]]:
    """Those of the merged persons who are done with."""
    roots = await unscoped_roots([row["key"] for row in rows])
    settled = int((now - _SETTLED).timestamp() * 1000)
    done: list[dict[str, Any]] = []
    for app, keys in _by_app(roots).items():
        ids, mine = _listed(keys), f"app_id = '{app}'"
        survivor = _chosen("person_id", [(_id(key), _id(roots[key])) for key in keys])
        merged = f"{mine} AND person_id IN ({ids})"
        # One of them: another mutation about that person is waited for, too.
        await mutate(store, "events", f"UPDATE person_id = {survivor}", merged, str(_id(keys[0])))
        # Whatever is there by now is the survivor's, too; what is the same is one row in the end.
        await store.change(
            # Not as `person_id`: the name would be taken for the column's in the condition.
            f"INSERT INTO person_properties SELECT app_id, field, {survivor} AS survivor, value, received_at, version "
            f"FROM person_properties WHERE {merged}"
        )
        # One by one, since somebody is always merged just now.
        of_app = set(keys)
        ready = [row for row in rows if row["key"] in of_app and row["found_at"] < settled]
        left = await _with_rows(store, "events", "person_id", mine, ready)
        ready = [row for row in ready if row["key"] not in left]
        left = await _with_rows(store, "person_properties", "person_id", mine, ready)
        left |= await _with_rows(store, "person_aliases", "alias", mine, ready)
        done += [row for row in ready if row["key"] not in left]
        if left:
            ids, mark = _listed(sorted(left)), str(_id(min(left)))
            await mutate(store, "person_properties", "DELETE", f"{mine} AND person_id IN ({ids})", mark)
            await mutate(store, "person_aliases", "DELETE", f"{mine} AND alias IN ({ids})", mark)
    return done


async def _with_rows(store: Store, table: str, column: str, mine: str, rows: Sequence[dict[str, Any]]) -> set[bytes]:
    """The keys of those of the persons who are in the column."""
    if not rows:
        return set()
    ids = _listed(row["key"] for row in rows)
    found = await store.query(
        f"SELECT {column} AS id FROM {table} WHERE {mine} AND {column} IN ({ids}) GROUP BY id", {}
    )
    app: bytes = rows[0]["key"][:16]
    return {app + row["id"].bytes for row in found}


async def unscoped_reattribute(store: Store, now: datetime) -> int:
    """Give events that were stored as somebody else's to whom they belong; returns how many are done with."""
    before = int((now - _SOON).timestamp() * 1000)
    count, after = 0, b""
    # All of them: those whose events are still to come must not keep others waiting.
    while rows := (
        await Reattribution.select()
        .where(Reattribution.since < before, Reattribution.hit_id > after)
        .order_by(Reattribution.hit_id)
        .limit(_MOVED_AT_ONCE)
    ):
        count += await _reattribute(store, rows, now)
        after = rows[-1]["hit_id"]
    return count


async def _reattribute(store: Store, rows: Sequence[dict[str, Any]], now: datetime) -> int:
    # Whoever they are in the end: the event store may have forgotten by now who was merged into whom.
    roots = await unscoped_roots([row["person"] for row in rows])
    rows = [row | {"person": roots[row["person"]]} for row in rows]
    done: list[tuple[bytes, int]] = []
    for app, keys in _by_app(row["person"][:16] + row["hit_id"] for row in rows).items():
        mine = {row["hit_id"]: row for row in rows if row["person"][:16] == app.bytes}
        at = [row["received_at"] for row in mine.values()]
        ids = _listed(keys)
        # The times are what the table is sorted by.
        stored = (
            f"app_id = '{app}' AND received_at BETWEEN fromUnixTimestamp64Milli({min(at)}, 'UTC') "
            f"AND fromUnixTimestamp64Milli({max(at)}, 'UTC') AND id IN ({ids})"
        )
        found = {
            row["hit"].bytes: row["person_id"].bytes if row["identified"] else b""
            for row in await store.query(f"SELECT id AS hit, person_id, identified FROM events WHERE {stored}", {})
        }
        wrong = {hit for hit in found if found[hit] != mine[hit]["person"][16:]}
        if wrong:
            person = _chosen("id", [(_uuid(hit), _id(mine[hit]["person"])) for hit in wrong], otherwise="person_id")
            ids = ", ".join(f"'{_uuid(hit)}'" for hit in wrong)
            changed = f"UPDATE person_id = {person}, identified = true"
            await mutate(store, "events", changed, f"{stored} AND id IN ({ids})", str(_uuid(min(wrong))))
        right = [hit for hit in found if hit not in wrong]
        await _collect_again(store, app, right, mine)
        given_up = int((now - _GIVEN_UP).timestamp() * 1000)
        ended = right + [hit for hit in mine if hit not in found and mine[hit]["since"] < given_up]
        done += [(hit, mine[hit]["since"]) for hit in ended]
    async with transaction():
        # It may have been found out to be yet another's meanwhile.
        await bulk.run(Reattribution, "DELETE FROM reattribution WHERE hit_id = ? AND since = ?", sorted(done))
    return len(done)


async def _collect_again(store: Store, app: UUID, hits: Sequence[bytes], moved: dict[bytes, dict[str, Any]]) -> None:
    """Properties that these events gave to whoever they were stored as go; both persons' are collected anew."""
    if not hits:
        return
    mine = f"app_id = '{app}'"
    was = ", ".join(sorted({f"'{_id(moved[hit]['was'])}'" for hit in hits}))
    versions = ", ".join(str(property_version(hit)) for hit in hits)
    # What Facebook told comes with the same version, and from no event.
    rows = f"{mine} AND person_id IN ({was}) AND version IN ({versions}) AND field NOT IN {FACEBOOK_PROPERTIES}"
    await mutate(store, "person_properties", "DELETE", rows, versions.partition(",")[0])
    people = ", ".join(sorted({f"'{_id(moved[hit][name])}'" for hit in hits for name in ("was", "person")}))
    # Rows inserted after a mutation began are not its.
    events = f"{mine} AND person_id IN ({people})"
    await store.change(f"INSERT INTO person_properties {PROPERTIES.format(rows=events)}")


async def _to_do(bit: int, before: datetime) -> AsyncIterator[list[dict[str, Any]]]:
    """All that this is to be done for, some thousands at a time."""
    after = b""
    while rows := await Person.raw(
        f"SELECT key, todo, found_at FROM person WHERE key > {{}} AND todo > 0 AND (todo & {bit}) > 0 "
        f"AND found_at < {{}} ORDER BY key LIMIT {_AT_ONCE}",
        after,
        int(before.timestamp() * 1000),
    ):
        yield rows
        after = rows[-1]["key"]


async def _done(bit: int, instead: int, rows: Iterable[dict[str, Any]]) -> None:
    """Clear the bit, of who was not found out about again meanwhile."""
    keys = [(row["key"], row["found_at"]) for row in rows]
    left = f"UPDATE person SET todo = (todo | {instead}) - {bit} WHERE key = ? AND found_at = ? AND (todo & {bit}) > 0"
    async with transaction():
        # Whoever deletes persons locks them in no order.
        await lock_clocks({key[:16] for key, _ in keys})
        await bulk.run(Person, left, keys)


def _by_app(keys: Iterable[bytes]) -> dict[UUID, list[bytes]]:
    """Keys of persons, or of hits behind their app's id, by app."""
    found: dict[UUID, list[bytes]] = {}
    for key in keys:
        found.setdefault(UUID(bytes=key[:16]), []).append(key)
    return found


def _listed(keys: Iterable[bytes]) -> str:
    return ", ".join(f"'{_id(key)}'" for key in keys)


def _id(key: bytes) -> UUID:
    return UUID(bytes=key[16:])


def _uuid(number: bytes) -> UUID:
    return UUID(bytes=number)


def _chosen(column: str, pairs: Sequence[tuple[UUID, UUID]], otherwise: str = "") -> str:
    """An expression for the second of the pair whose first the column is; as text, which `transform` knows."""
    values, results = (", ".join(f"'{pair[n]}'" for pair in pairs) for n in (0, 1))
    return f"toUUID(transform(toString({column}), [{values}], [{results}], toString({otherwise or column})))"
