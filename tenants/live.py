"""The live view: what hits became, newest first, decoded beside the query they came with; and what a test hit became.

A page asks once a second for what is new. Hits are digested in batches, and several machines and processes digest at
once, so a hit may appear after one that came later: a cursor that is only a time would miss it. So each answer looks
a minute back from the newest hit seen, and the cursor carries which hits of that minute were shown already. Where
there are too many to carry (over 100 a minute, more than anybody reads) it looks back less far.
"""

import base64
import hashlib
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import parse_qsl
from uuid import UUID

import msgspec

from tenants import event_ids
from tenants.errors import InvalidValue
from tenants.events import NOBODY, Queries, cursor_bytes
from tenants.hits import WARNING_ADVICE, Category
from tenants.reports.filters import Filters
from tenants.reports.sql import PERSON_ID, containing
from tenants.reports.sql import masked as masked_text
from tenants.tables import App

Kind = Literal["recorded", "rejected"]

# How much later than one that came after it a hit may appear: digests wait for each other far less than that.
_LATE_MS = 60_000
# How far back to look for the first hit; and for the next one that a filter lets pass, which may be rare.
_IDLE_MS = 600_000
# Six bytes each make 800 characters of an address.
_SHOWN_MOST = 100
_MARK = 6
# Raw queries are kept for two days, and a search of more would take longer than anybody waits.
_SEARCHED_MS = 2 * 86_400_000
# A test hit is one of the last minutes; clocks of two machines differ by less.
_TEST_MS = 900_000
_SKEW_MS = 5_000
_NONCE = re.compile(r"[A-Za-z0-9_-]{8,64}")


class LiveHit(msgspec.Struct, frozen=True):
    """A hit and what it became. `amount` is in minor units of `currency`, both None on category `event`.

    A rejected one has no event token, values or warnings, but a reason and a sentence that says what to change. Of
    events older than two days `query` is empty.
    """

    id: UUID
    received_at: datetime
    kind: Kind
    category: str
    event_token: str
    amount: int | None
    currency: str | None
    event_id: str | None
    params: str
    warnings: tuple[str, ...]
    person_id: UUID | None
    visitor_id: UUID | None
    email: str | None
    uuid: str | None
    fbid: str | None
    query: str
    reason: str | None
    detail: str | None

    @property
    def advice(self) -> list[str]:
        """What to change, a sentence each; empty where all is well."""
        return [self.detail] if self.detail else [WARNING_ADVICE[name] for name in self.warnings]


class LiveHits(msgspec.Struct, frozen=True):
    """Hits, newest first. `cursor` asks for what comes after them; `more`: there were others, left out as too many."""

    hits: list[LiveHit]
    cursor: str
    more: bool


class TestOutcome(msgspec.Struct, frozen=True):
    """What a test hit became. `hit` is there when it was recorded or rejected."""

    # Not a test of ours, whatever its name begins with.
    __test__ = False

    result: Literal["recorded", "rejected", "duplicate", "waiting"]
    hit: LiveHit | None = None


async def newest(
    app: App,
    store: Queries,
    *,
    after: str | None = None,
    kind: Kind | None = None,
    filters: Filters = Filters(),  # noqa: B008 (frozen)
    text: str | None = None,
    masked: bool = False,
    limit: int = 50,
) -> LiveHits:
    """The app's newest hits, or with `after`, a cursor, those that appeared since: each once, as far as can be.

    Of a rejected hit only the category is known, so filters on anything else leave only events. `text` is looked for in
    the query, the values and the person's e-mail address, whatever the letter case, within the last two days; for
    whoever sees addresses `masked` in the values alone, as they see them. Raises InvalidValue for a made-up cursor.
    """
    now = int(time.time() * 1000)
    shown = _shown(after) if after else _Shown(now - _SEARCHED_MS if text else 0, [])
    if text:  # a cursor may be made up
        shown.since = max(shown.since, now - _SEARCHED_MS)
    where, values = filters.sql()
    searched = (masked_text("params_text"),) if masked else _SEARCHED["recorded"]
    found: list[LiveHit] = []
    # One more than wanted tells whether there are others.
    most = limit + len(shown.hits) + 1
    if kind != "rejected":
        found += await _read(app, store, "recorded", *_with_text(where, values, text, searched), shown.since, most)
    if kind != "recorded" and filters.reach_rejected and not (masked and text):
        found += await _read(
            app, store, "rejected", *_with_text(where, values, text, _SEARCHED["rejected"]), shown.since, most
        )
    found.sort(key=lambda hit: (hit.received_at, hit.id), reverse=True)
    marks = {mark for _, mark in shown.hits}
    new = [hit for hit in found[:most] if _mark(hit) not in marks]
    hits = new[:limit]
    cut = _milliseconds(hits[-1].received_at) + 1 if len(new) > limit else 0
    filtered = bool(kind or filters or text)
    return LiveHits(hits, _cursor(shown, hits, max(cut, now - _IDLE_MS if filtered else 0), now), len(new) > limit)


async def hits_with(app: App, store: Queries, nonce: str) -> list[LiveHit]:
    """The app's hits of the last quarter of an hour whose query has `cb={nonce}`, newest first.

    `nonce` is 8 to 64 letters, digits, `-` and `_`; nothing else is found.
    """
    if not _NONCE.fullmatch(nonce):
        return []
    since = int(time.time() * 1000) - _TEST_MS
    where, values = " AND position(query, {cb:String}) > 0", {"cb": f"cb={nonce}"}
    found: list[LiveHit] = []
    for kind in ("recorded", "rejected"):
        found += await _read(app, store, kind, where, values, since, 20)
    found.sort(key=lambda hit: (hit.received_at, hit.id), reverse=True)
    return [hit for hit in found if ("cb", nonce) in parse_qsl(hit.query)]


async def outcome_of_test(
    app: App, store: Queries, nonce: str, event_id: str | None, category: Category, sent_at: datetime
) -> TestOutcome:
    """What became of the hit with `cb={nonce}` that was sent at `sent_at` or later; `waiting` when nothing yet.

    A duplicate leaves no row. So it is told from its `event_id`, which an earlier hit owns, and from the app's count
    of duplicates since.
    """
    found = await hits_with(app, store, nonce)
    if found:
        return TestOutcome(found[0].kind, found[0])
    if event_id and event_id.strip():
        owner = await event_ids.owner(app.id, category, event_id.strip())
        # An id begins with the ms its hit came.
        if owner is not None and int.from_bytes(owner[:6], "big") < _milliseconds(sent_at):
            (row,) = await store.query(
                "SELECT sum(duplicate) AS n FROM traffic WHERE app_id = {app:UUID} "
                "AND minute >= toStartOfMinute(fromUnixTimestamp64Milli({since:Int64}, 'UTC'))",
                {"app": str(app.id), "since": _milliseconds(sent_at) - _SKEW_MS},
                app.tenant,
            )
            if row["n"]:
                return TestOutcome("duplicate")
    return TestOutcome("waiting")


_EVENT = (
    "id, category, event_token, amount, currency, event_id, params_text, warnings, visitor_id, email, uuid, "
    f"fbid, query, {PERSON_ID} AS person"
)
_REJECTION = "id, category, reason, detail, query"
_SEARCHED: dict[Kind, tuple[str, ...]] = {"recorded": ("query", "params_text", "email"), "rejected": ("query",)}


def _with_text(
    where: str, values: dict[str, Any], text: str | None, columns: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    if not text:
        return where, values
    found, parameters = containing(columns, text)
    return f"{where} AND ({found})", values | parameters


async def _read(
    app: App,
    store: Queries,
    kind: Kind,
    where: str,
    values: dict[str, Any],
    since: int,
    most: int,
) -> list[LiveHit]:
    """Up to `most` of the newest since `since` (ms), newest first."""
    table, columns = ("events", _EVENT) if kind == "recorded" else ("rejections", _REJECTION)
    rows = await store.query(
        f"SELECT {columns}, toUnixTimestamp64Milli(received_at) AS at FROM {table} WHERE app_id = {{app:UUID}} "
        f"AND received_at >= fromUnixTimestamp64Milli({{since:Int64}}, 'UTC'){where} "
        "ORDER BY received_at DESC, id DESC LIMIT {most:UInt32}",
        {"app": str(app.id), "since": since, "most": most, **values},
        app.tenant,
    )
    return [_event(row) if kind == "recorded" else _rejection(row) for row in rows]


def _event(row: dict[str, Any]) -> LiveHit:
    revenue = row["category"] == "revenue"
    return LiveHit(
        id=row["id"],
        received_at=_moment(row["at"]),
        kind="recorded",
        category=row["category"],
        event_token=row["event_token"],
        amount=row["amount"] if revenue else None,
        currency=row["currency"] or None,
        event_id=row["event_id"] or None,
        params=row["params_text"],
        warnings=tuple(row["warnings"]),
        person_id=row["person"] if row["person"] != NOBODY else None,
        visitor_id=row["visitor_id"] if row["visitor_id"] != NOBODY else None,
        email=row["email"] or None,
        uuid=row["uuid"] or None,
        fbid=row["fbid"] or None,
        query=row["query"],
        reason=None,
        detail=None,
    )


def _rejection(row: dict[str, Any]) -> LiveHit:
    return LiveHit(
        id=row["id"],
        received_at=_moment(row["at"]),
        kind="rejected",
        category=row["category"],
        event_token="",
        amount=None,
        currency=None,
        event_id=None,
        params="{}",
        warnings=(),
        person_id=None,
        visitor_id=None,
        email=None,
        uuid=None,
        fbid=None,
        query=row["query"],
        reason=row["reason"],
        detail=row["detail"],
    )


def _moment(milliseconds: int) -> datetime:
    seconds, rest = divmod(milliseconds, 1000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest * 1000)


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000 + moment.microsecond // 1000


# --- The cursor


class _Shown(msgspec.Struct):
    """From when on to look again (ms), and of the hits since then, (ms, mark) of each that was shown, newest first."""

    since: int
    hits: list[tuple[int, bytes]]


def _mark(hit: LiveHit) -> bytes:
    # Not a part of the id: two journals' first hits of a millisecond differ in a few bits only.
    return hashlib.blake2b(hit.id.bytes, digest_size=_MARK).digest()


def _cursor(before: _Shown, hits: Sequence[LiveHit], since: int, now: int) -> str:
    """The cursor after `hits` were shown as well. None from before `since` (ms) is to be shown any more."""
    shown = [(_milliseconds(hit.received_at), _mark(hit)) for hit in hits] + before.hits
    shown.sort(reverse=True)
    # A machine's clock may be ahead.
    since = max(before.since, since, min(shown[0][0], now) - _LATE_MS if shown else now - _IDLE_MS)
    if len(shown) > _SHOWN_MOST:
        since = max(since, shown[_SHOWN_MOST][0] + 1)
    kept = [(at, mark) for at, mark in shown if at >= since]
    data = since.to_bytes(6, "big") + b"".join(
        min(at - since, 2**32 - 1).to_bytes(4, "big") + mark for at, mark in kept
    )
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _shown(cursor: str) -> _Shown:
    """What a cursor says. Raises InvalidValue."""
    data = cursor_bytes(cursor)
    each = 4 + _MARK
    count, rest = divmod(len(data) - 6, each)
    if rest or not 0 <= count <= _SHOWN_MOST:
        raise InvalidValue("after", "This cursor is not one we gave: load the page again.")
    since = int.from_bytes(data[:6], "big")
    parts = [data[start : start + each] for start in range(6, len(data), each)]
    return _Shown(since, [(since + int.from_bytes(part[:4], "big"), part[4:]) for part in parts])
