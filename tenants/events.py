"""What is stored of a hit, and how it is read back."""

import base64
import binascii
import functools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import UUID

import msgspec

from tenants.errors import InvalidValue
from tenants.hits import Category, Event, Rejection
from tenants.reports.filters import Filters
from tenants.reports.period import Period
from tenants.reports.sql import PERSON_ID, seconds, within
from tenants.tables import App

# (column, type) of each table as inserted; the tables are made by migrations/events.
EVENT_COLUMNS = (
    ("app_id", "UUID"),
    ("received_at", "DateTime64(3, 'UTC')"),
    ("id", "UUID"),
    ("category", "LowCardinality(String)"),
    ("event_token", "LowCardinality(String)"),
    ("amount", "Int64"),
    ("currency", "LowCardinality(String)"),
    ("event_id", "String"),
    ("params_text", "String"),
    ("warnings", "Array(LowCardinality(String))"),
    ("visitor_id", "UUID"),
    ("email", "String"),
    ("uuid", "String"),
    ("fbid", "String"),
    ("network", "LowCardinality(String)"),
    ("user_agent", "LowCardinality(String)"),
    ("referrer_host", "LowCardinality(String)"),
    ("sec_purpose", "LowCardinality(String)"),
    ("query", "String"),
    ("person_id", "UUID"),
    ("identified", "Bool"),
)
REJECTION_COLUMNS = (
    ("app_id", "UUID"),
    ("received_at", "DateTime64(3, 'UTC')"),
    ("id", "UUID"),
    ("category", "LowCardinality(String)"),
    ("reason", "LowCardinality(String)"),
    ("detail", "String"),
    ("query", "String"),
)
TRAFFIC_COLUMNS = (
    ("app_id", "UUID"),
    ("minute", "DateTime('UTC')"),
    ("recorded", "UInt64"),
    ("rejected", "UInt64"),
    ("duplicate", "UInt64"),
    ("limited", "UInt64"),
)
PROPERTY_COLUMNS = (
    ("app_id", "UUID"),
    ("field", "String"),
    ("person_id", "UUID"),
    ("value", "String"),
    ("received_at", "DateTime64(3, 'UTC')"),
    ("version", "UInt64"),
)
ALIAS_COLUMNS = (
    ("app_id", "UUID"),
    ("alias", "UUID"),
    ("person", "UUID"),
    ("version", "UInt64"),
)
COLUMNS = {
    "events": EVENT_COLUMNS,
    "rejections": REJECTION_COLUMNS,
    "traffic": TRAFFIC_COLUMNS,
    "person_properties": PROPERTY_COLUMNS,
    "person_aliases": ALIAS_COLUMNS,
}

# What became of a hit, and the columns of `traffic`, in their order.
OUTCOMES = ("recorded", "rejected", "duplicate", "limited")

Row = Sequence[Any]


class Queries(Protocol):
    """The event store, as far as reading needs it."""

    async def query(self, sql: str, parameters: Mapping[str, Any], whose: int) -> list[dict[str, Any]]:
        """The rows of a query with ClickHouse's `{name:Type}` parameters. `whose`, a tenant, waits for its turn.

        Raises Busy when that tenant asks for too much at once.
        """
        ...


def event_row(
    event: Event,
    app_id: int,
    received_at: int,
    hit_id: int,
    category: Category,
    visitor_id: int,
    network: str,
    user_agent: bytes,
    referrer: bytes,
    sec_purpose: bytes,
) -> list[Any]:
    """A row of `events`. Ids are the numbers of UUIDs, `received_at` is in ms, `visitor_id` is 0 without a cookie.

    The visitor is the person, of whom nothing is known: people.py finds out more.
    """
    return [
        app_id,
        received_at,
        hit_id,
        category,
        event.event_token,
        event.amount or 0,
        event.currency or "",
        event.event_id or "",
        event.params,
        event.warnings,
        visitor_id,
        event.email or "",
        event.uuid or "",
        event.fbid or "",
        network,
        text_of(user_agent),
        referrer_host(referrer),
        text_of(sec_purpose),
        event.query,
        visitor_id,
        False,
    ]


def rejection_row(rejection: Rejection, app_id: int, received_at: int, hit_id: int, category: Category) -> Row:
    """A row of `rejections`; ids and time as in `event_row`."""
    return (app_id, received_at, hit_id, category, rejection.reason, rejection.detail, rejection.query)


# The same few thousand headers come again and again; an entry takes some 300 bytes.
@functools.lru_cache(maxsize=16_384)
def text_of(header: bytes) -> str:
    """A header's value as text; bytes that are no UTF-8 show as U+FFFD."""
    return header.decode("utf-8", "replace")


@functools.lru_cache(maxsize=16_384)
def referrer_host(referrer: bytes) -> str:
    """The host of a Referer header, lower-case, '' when there is none. The path may hold anything and is not kept."""
    try:
        return (urlsplit(referrer.decode("utf-8", "replace")).hostname or "")[:253]
    except ValueError:  # e.g. an unclosed IPv6 bracket
        return ""


class Page(msgspec.Struct):
    """Some rows, newest first, and the cursor of the next ones, None on the last page.

    `newer` is the cursor to ask for newer ones with, None on the page of the newest.
    """

    rows: list[dict[str, Any]]
    next: str | None
    newer: str | None = None


def cursor_bytes(cursor: str) -> bytes:
    """What a cursor says; empty for one that nobody gave."""
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return b""


def no_cursor() -> InvalidValue:
    """What to raise for a cursor that nobody gave."""
    return InvalidValue("cursor", "This cursor is not one we gave: pass the value of `next` back as it came.")


def _cursor(received_at: int, row_id: UUID) -> str:
    return base64.urlsafe_b64encode(received_at.to_bytes(8, "big") + row_id.bytes).decode().rstrip("=")


def _after(cursor: str | None, newer: bool = False) -> tuple[str, dict[str, Any]]:
    """The condition for rows older than the cursor's, or newer ones. Raises InvalidValue for a made-up cursor."""
    if not cursor:
        return "", {}
    data = cursor_bytes(cursor)
    if len(data) != 24 or data[:2] != b"\0\0":
        raise no_cursor()
    at = int.from_bytes(data[:8], "big")
    which = ">" if newer else "<"
    condition = f" AND (received_at, id) {which} (fromUnixTimestamp64Milli({{at:Int64}}, 'UTC'), {{id:UUID}})"
    return condition, {"at": at, "id": str(UUID(bytes=data[8:]))}


def timestamp(milliseconds: int) -> str:
    """RFC 3339 in UTC with milliseconds."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"


async def _newest(
    app: App,
    store: Queries,
    table: str,
    columns: Sequence[str],
    where: str,
    values: dict[str, Any],
    period: Period | None,
    limit: int,
    cursor: str | None,
    newer: bool = False,
) -> Page:
    after, after_values = _after(cursor, newer)
    if period:
        where += f" AND {within(period.start, period.end, table)}"
        if after_values and not newer and after_values["at"] < 1000 * seconds(period.start):
            # Answered as the last page, it would look as if all had been read.
            raise InvalidValue(
                "cursor", "The period has moved on from this cursor, as at midnight. With from and to it stays."
            )
    order = "ASC" if newer else "DESC"
    rows = await store.query(
        f"SELECT {', '.join(columns)}, toUnixTimestamp64Milli(received_at) AS at FROM {table} "
        f"WHERE app_id = {{app:UUID}}{where}{after} ORDER BY received_at {order}, id {order} LIMIT {{most:UInt32}}",
        {"app": str(app.id), "most": limit + 1, **values, **after_values},
        app.tenant,
    )
    more = len(rows) > limit
    rows = rows[:limit]
    if not rows:
        return Page([], None)
    if newer:
        rows.reverse()
    first, last = (_cursor(row["at"], row["id"]) for row in (rows[0], rows[-1]))
    # Where somebody came from there is something, on both sides.
    return Page(rows, last if more or newer else None, first if (more if newer else cursor) else None)


NOBODY = UUID(int=0)


async def recent_events(
    app: App,
    store: Queries,
    *,
    persons: Sequence[UUID] = (),
    period: Period | None = None,
    filters: Filters = Filters(),  # noqa: B008 (frozen)
    limit: int = 100,
    cursor: str | None = None,
    newer: bool = False,
) -> Page:
    """The app's events as the API shows them; `persons` are the ids that somebody has had, for theirs alone.

    The page of a `cursor` has what is older, or with `newer` what is newer. Raises InvalidValue for a made-up
    cursor, or one of an earlier period.
    """
    where, values = filters.sql()
    if persons:
        where += " AND person_id IN {persons:Array(UUID)}"
        values["persons"] = [str(person) for person in persons]
    columns = (
        "id",
        "category",
        "event_token",
        "amount",
        "currency",
        "event_id",
        "params_text",
        f"{PERSON_ID} AS person",
        "warnings",
    )
    page = await _newest(app, store, "events", columns, where, values, period, limit, cursor, newer)
    page.rows = [
        {
            "id": row["id"],
            "received_at": timestamp(row["at"]),
            "category": row["category"],
            "event_token": row["event_token"],
            "amount": row["amount"] if row["category"] == "revenue" else None,
            "currency": row["currency"] or None,
            "event_id": row["event_id"] or None,
            # As stored, not parsed: every value reads back just as it was sent.
            "params": msgspec.Raw(row["params_text"].encode()),
            "person_id": row["person"] if row["person"] != NOBODY else None,
            "warnings": row["warnings"],
        }
        for row in page.rows
    ]
    return page


async def recent_rejections(
    app: App, store: Queries, *, period: Period | None = None, limit: int = 100, cursor: str | None = None
) -> Page:
    """The app's rejections as the API shows them. Raises InvalidValue as `recent_events`."""
    columns = ("id", "category", "reason", "detail", "query")
    page = await _newest(app, store, "rejections", columns, "", {}, period, limit, cursor)
    page.rows = [
        {
            "id": row["id"],
            "received_at": timestamp(row["at"]),
            "category": row["category"],
            "reason": row["reason"],
            "detail": row["detail"],
            "query": row["query"],
        }
        for row in page.rows
    ]
    return page
