"""Which hit owns a customer's `event_id`, so that an order sent twice counts once.

The first hit to claim (app, category, event_id) owns it. Another hit received less than 30 days from it is a
duplicate; one received later owns it from then on. "Less than 30 days from" counts in both directions: of two
machines the one with the later hit may digest first, and a batch digested again after a crash meets owners
that are newer than its own hits. So a batch gets the same answer however often it claims, provided that its
hits were received within 30 days: in a longer one an owner could be replaced twice, and the first forgotten.
"""
# Piccolo keeps a table's engine in `_meta`, and its annotations leave type arguments open.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from tenants.tables import EventId, transaction

WINDOW_MS = 30 * 24 * 60 * 60 * 1000

# SQLite takes 32,766 values a statement, three of them a row here; shorter ones are parsed as fast.
ROWS_A_STATEMENT = 1_000
# Rows purged in a transaction: some tens of milliseconds, after which others get their turn to write.
PURGE_ROWS = 10_000


class Claim(NamedTuple):
    """A hit that carries an `event_id`. `hit_id` has 16 bytes."""

    app_id: UUID
    category: str
    event_id: str
    hit_id: bytes
    received_at_ms: int


class _Owner(NamedTuple):
    hit_id: bytes
    received_at: int


async def claim(entries: Sequence[Claim]) -> set[bytes]:
    """Claim for all the hits, earlier entries first; returns the hit ids of those that are duplicates.

    All or nothing, and the same again for the same entries. Right with any number of processes at once.
    """
    if not entries:
        return set()
    keyed = [(_key(entry.app_id, entry.category, entry.event_id), entry) for entry in entries]
    first: dict[bytes, _Owner] = {}
    for key, entry in keyed:
        first.setdefault(key, _Owner(entry.hit_id, entry.received_at_ms))
    # In the order of their keys: everybody locks rows in that order, so nobody waits in a circle.
    ordered = sorted(first.items())
    duplicates: set[bytes] = set()
    async with transaction():
        # An update that changes nothing is what makes a conflict lock the row and return its owner.
        owners = await _upsert(ordered, "hit_id = event_id.hit_id")
        changed: dict[bytes, _Owner] = {}
        for key, entry in keyed:
            owner = owners[key]
            if owner.hit_id == entry.hit_id:
                continue
            if abs(entry.received_at_ms - owner.received_at) < WINDOW_MS:
                duplicates.add(entry.hit_id)
            elif entry.received_at_ms > owner.received_at:
                owners[key] = changed[key] = _Owner(entry.hit_id, entry.received_at_ms)
        await _upsert(list(changed.items()), "hit_id = excluded.hit_id, received_at = excluded.received_at")
    return duplicates


async def owner(app_id: UUID, category: str, event_id: str) -> bytes | None:
    """The id of the hit that owns this `event_id`, if there is one."""
    found = await EventId.objects().where(EventId.key == _key(app_id, category, event_id)).first()
    return found and found.hit_id


async def unscoped_purge_event_ids(before_ms: int) -> int:
    """Forget the owners received before `before_ms` (Unix milliseconds); returns how many."""
    # On PostgreSQL a row that a claim holds is left for the next time: waiting for it could be a deadlock.
    skip_held = "FOR UPDATE SKIP LOCKED" if EventId._meta.db.engine_type == "postgres" else ""
    total = 0
    while True:
        async with transaction():
            purged = await EventId.raw(
                # Found once: PostgreSQL may look for them for each row of the table.
                "WITH old AS MATERIALIZED (SELECT key FROM event_id WHERE received_at < {} "
                f"ORDER BY received_at LIMIT {PURGE_ROWS} {skip_held}) "
                "DELETE FROM event_id WHERE key IN (SELECT key FROM old) RETURNING 1",
                before_ms,
            )
        total += len(purged)
        if len(purged) < PURGE_ROWS:
            return total


async def _upsert(owners: list[tuple[bytes, _Owner]], on_conflict: str) -> dict[bytes, _Owner]:
    """Insert the keys with their owners, or do `on_conflict` to rows there are; returns each key's owner."""
    ending = (
        f"ON CONFLICT (key) DO UPDATE SET {on_conflict} "
        "RETURNING event_id.key AS key, event_id.hit_id AS hit_id, event_id.received_at AS received_at"
    )
    rows: list[dict[str, Any]] = []
    if EventId._meta.db.engine_type == "postgres":
        rows = await EventId.raw(
            "INSERT INTO event_id (key, hit_id, received_at) "
            f"SELECT * FROM unnest({{}}::bytea[], {{}}::bytea[], {{}}::bigint[]) {ending}",
            [key for key, _ in owners],
            [owner.hit_id for _, owner in owners],
            [owner.received_at for _, owner in owners],
        )
    else:
        for start in range(0, len(owners), ROWS_A_STATEMENT):
            chunk = owners[start : start + ROWS_A_STATEMENT]
            rows += await EventId.raw(
                "INSERT INTO event_id (key, hit_id, received_at) VALUES "
                + ", ".join(["({}, {}, {})"] * len(chunk))
                + ending,
                *(value for key, owner in chunk for value in (key, *owner)),
            )
    return {row["key"]: _Owner(row["hit_id"], row["received_at"]) for row in rows}


def _key(app_id: UUID, category: str, event_id: str) -> bytes:
    # 16 bytes however long the customer's id is, as unlikely to meet another as a UUID. The NUL keeps the
    # parts apart: no category has one.
    text = f"{category}\0{event_id}".encode(errors="surrogatepass")
    return hashlib.blake2b(app_id.bytes + text, digest_size=16).digest()
