"""What goes by itself: all rows of deleted apps, events older than their app keeps them, raw queries after two days.

The control database says which apps are to be erased (`Erasure`, written in the transaction that deletes the app), so
nothing is forgotten while the event store is away or the process is stopped. Every process that shows pages looks
again and again; two that do so at once do no harm.

Rows go by mutations (ALTER … DELETE), which rewrite the parts they are in: a lightweight DELETE only hides them, and
what they hold stays on disk until some merge. The engine removes the old parts some minutes later. What inserts are
known by stays, so a batch that is done again is still told from a new one.
"""
# Piccolo's annotations leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from tenants import access_tokens
from tenants.events import Queries
from tenants.reports.sql import ONE_APP
from tenants.tables import (
    App,
    Deletion,
    Erasure,
    Identifier,
    IdentityClock,
    IdentitySection,
    Person,
    Reattribution,
    Visitor,
    transaction,
)

# A batch that was decoded before its process heard of the deletion is stored, or given up, long before.
_SETTLED = timedelta(minutes=15)
_QUERY_KEPT = timedelta(days=2)
# So many in a transaction take some tens of milliseconds.
_KEYS_AT_ONCE = 5_000
# 45 bytes each, of the 256 kB that a query may have.
_APPS_AT_ONCE = 2_000
_EMPTY_QUERY = "UPDATE query = ''"
# All that have rows of apps.
TABLES = ("events", "rejections", "traffic", "person_aliases", "person_properties")


Before = Callable[[int], Awaitable[None]]


class Found(NamedTuple):
    """How many rows there were to be changed, and whether that was begun now, or had been before."""

    rows: int
    begun: bool


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
        await access_tokens.forget_app(app_id)
        left = [await mutate(store, table, "DELETE", f"app_id = '{app_id}'", str(app_id)) for table in TABLES]
        await _erase_persons(app_id)
        if any(found.rows for found in left) or now - erasure["requested_at"] < _SETTLED:
            continue
        async with transaction():
            await Erasure.delete().where(Erasure.app_id == app_id)
        done += 1
    return done


async def _erase_persons(app_id: UUID) -> None:
    """Remove all that the control database knows of the app's persons, and the receipts of those deleted before."""
    first, after = app_id.bytes, (app_id.int + 1).to_bytes(16, "big")
    for table in (Identifier, Visitor, Person):
        while keys := await table.select(table.key).where(table.key >= first, table.key < after).limit(_KEYS_AT_ONCE):
            await table.delete().where(table.key.is_in([row["key"] for row in keys]))
    await IdentitySection.delete().where(IdentitySection.app == first)
    await IdentityClock.delete().where(IdentityClock.app == first)
    await Reattribution.delete().where(Reattribution.person >= first, Reattribution.person < after)
    await Deletion.delete().where(Deletion.app_id == app_id)


async def unscoped_forget_queries(store: Store, now: datetime) -> None:
    """Begin to empty the raw queries of events that are older than two days."""
    before = int((now - _QUERY_KEPT).timestamp() * 1000)
    old = f"query != '' AND received_at < fromUnixTimestamp64Milli({before}, 'UTC')"
    await mutate(store, "events", _EMPTY_QUERY, old, _EMPTY_QUERY)


def kept_since(days: int, now: datetime) -> datetime:
    """From when on events are there that are kept for so many days: from a midnight of UTC."""
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days)


async def unscoped_kept_since(now: datetime) -> dict[bytes, int]:
    """From when on (ms) apps (16 bytes) keep their events, of those that do not keep them for ever."""
    apps = await App.select(App.id, App.retention_days).where(App.retention_days.is_not_null())
    return {app["id"].bytes: int(kept_since(app["retention_days"], now).timestamp() * 1000) for app in apps}


class TooOld(NamedTuple):
    """Events of before `since`, which an app would not keep any more; of none `first` is 1970."""

    events: int
    first: datetime
    since: datetime


async def too_old(app: App, store: Queries, days: int, now: datetime) -> TooOld:
    """What would go, were the app's events kept for so many days. Raises Busy, Unavailable."""
    since = kept_since(days, now)
    (row,) = await store.query(
        f"SELECT count() AS events, min(received_at) AS first FROM events WHERE {ONE_APP} "
        f"AND received_at < fromUnixTimestamp64Milli({int(since.timestamp())}000, 'UTC')",
        {"app": str(app.id)},
        app.tenant,
    )
    return TooOld(row["events"], row["first"], since)


async def unscoped_expire(store: Store, now: datetime) -> None:
    """Begin to delete events and rejections that are older than their app keeps them.

    By whole days of UTC, so that asking again the same day finds nothing to do: an app's rows live up to a day longer.
    All apps share a mutation, since they share the parts that it reads.
    """
    apps = await App.select(App.id, App.retention_days).where(App.retention_days.is_not_null()).order_by(App.id)
    for start in range(0, len(apps), _APPS_AT_ONCE):
        by_days: dict[int, list[UUID]] = {}
        for app in apps[start : start + _APPS_AT_ONCE]:
            by_days.setdefault(app["retention_days"], []).append(app["id"])
        for days, ids in by_days.items():
            # Before it begins: kept for longer from tomorrow on, they are not there again.
            since = kept_since(days, now)
            later = App.expired_before.is_null() | (App.expired_before < since)
            await App.update({App.expired_before: since}).where(App.id.is_in(ids), later)
        old = " OR ".join(
            "app_id IN ('" + "', '".join(map(str, ids)) + "') AND received_at < "
            f"fromUnixTimestamp64Milli({int(kept_since(days, now).timestamp())}000, 'UTC')"
            for days, ids in sorted(by_days.items())
        )
        for table in ("events", "rejections"):
            # Marked by itself: an app's id stands in other mutations, too, which this one does not wait for.
            mark = f"'expiry {start}'"
            await mutate(store, table, "DELETE", f"(({old}) AND {mark} != '')", mark)


async def mutate(
    store: Store,
    table: str,
    verb: str,
    rows: str,
    mark: str,
    counted: str = "count()",
    before: Before | None = None,
) -> Found:
    """Begin to do this to the `rows` where there are any; `before` is told of how many.

    Not while a mutation with `mark` in its text has not ended. By partition, since a mutation makes a copy of every
    part it is asked about, if only of links. The text stays on the disk for long: nothing personal may be in it.
    """
    # Not as `id`: the name would be taken for the column's in the condition.
    found = await store.query(
        f"SELECT _partition_id AS partition, {counted} AS n FROM {table} WHERE {rows} GROUP BY partition", {}
    )
    there_are = sum(each["n"] for each in found)
    if not found or await _running(store, table, mark):
        return Found(there_are, begun=False)
    if before is not None:
        await before(there_are)
    for each in found:
        await store.change(f"ALTER TABLE {table} {verb} IN PARTITION ID '{each['partition']}' WHERE {rows}")
    return Found(there_are, begun=True)


async def _running(store: Store, table: str, mark: str) -> bool:
    found = await store.query(
        "SELECT 1 AS x FROM system.mutations WHERE database = currentDatabase() AND table = {table:String} "
        "AND NOT is_done AND position(command, {mark:String}) > 0 LIMIT 1",
        {"table": table, "mark": mark},
    )
    return bool(found)
