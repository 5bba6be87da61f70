"""What goes from the event store: all rows of deleted apps, and raw queries after two days.

The control database says which apps are to be erased (`Erasure`, written in the transaction that deletes the app), so
nothing is forgotten while the event store is away or the process is stopped. Every process that shows pages looks
again and again; two that do so at once do no harm.

Rows go by mutations (ALTER … DELETE), which rewrite the parts they are in: a lightweight DELETE only hides them, and
what they hold stays on disk until some merge. The engine removes the old parts some minutes later. What inserts are
known by stays, so a batch that is done again is still told from a new one.
"""
# Piccolo's annotations leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from tenants.tables import Erasure, transaction

# A batch that was decoded before its process heard of the deletion is stored, or given up, long before.
_SETTLED = timedelta(minutes=15)
_QUERY_KEPT = timedelta(days=2)
_EMPTY_QUERY = "UPDATE query = ''"
_TABLES = ("events", "rejections", "traffic")


class Store(Protocol):
    """The event store, as far as erasing needs it."""

    async def query(self, sql: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See events.Queries."""
        ...

    async def change(self, sql: str) -> None:
        """Run a statement that changes what is stored; a mutation is only begun."""
        ...


async def unscoped_erase_apps(store: Store, now: datetime) -> int:
    """Begin to erase every deleted app's rows, or see that they are gone; returns how many apps are done with."""
    done = 0
    for erasure in await Erasure.select().order_by(Erasure.requested_at):
        app_id: UUID = erasure["app_id"]
        left = [await _mutate(store, table, "DELETE", f"app_id = '{app_id}'", str(app_id)) for table in _TABLES]
        if any(left) or now - erasure["requested_at"] < _SETTLED:
            continue
        async with transaction():
            await Erasure.delete().where(Erasure.app_id == app_id)
        done += 1
    return done


async def unscoped_forget_queries(store: Store, now: datetime) -> None:
    """Begin to empty the raw queries of events that are older than two days."""
    before = int((now - _QUERY_KEPT).timestamp() * 1000)
    old = f"query != '' AND received_at < fromUnixTimestamp64Milli({before}, 'UTC')"
    await _mutate(store, "events", _EMPTY_QUERY, old, _EMPTY_QUERY)


async def _mutate(store: Store, table: str, verb: str, rows: str, mark: str) -> bool:
    """Begin to do this to the `rows` where there are any; returns whether there are.

    Not while a mutation with `mark` in its text has not ended. By partition, since a mutation makes a copy of every
    part it is asked about, if only of links.
    """
    found = await store.query(f"SELECT DISTINCT _partition_id AS id FROM {table} WHERE {rows}", {})
    if not found or await _running(store, table, mark):
        return bool(found)
    for partition in found:
        await store.change(f"ALTER TABLE {table} {verb} IN PARTITION ID '{partition['id']}' WHERE {rows}")
    return True


async def _running(store: Store, table: str, mark: str) -> bool:
    found = await store.query(
        "SELECT 1 AS x FROM system.mutations WHERE database = currentDatabase() AND table = {table:String} "
        "AND NOT is_done AND position(command, {mark:String}) > 0 LIMIT 1",
        {"table": table, "mark": mark},
    )
    return bool(found)
