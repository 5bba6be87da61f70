"""Who is in a Custom Audience: known people of a segment, in the order of their ids, as rows that Meta can match.

A row is an e-mail address (SHA-256), a Facebook id and a Custom Audience id of one person; who has several has several
rows. https://developers.facebook.com/docs/marketing-api/audiences/guides/custom-audiences/
"""
# Piccolo's annotations leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import asyncio
import csv
import hashlib
import io
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import msgspec

from tenants.events import Queries
from tenants.identifiers import Known, known
from tenants.reports.segments import Segment
from tenants.reports.sql import ONE_APP, PERSON, PERSON_ID, SOMEBODY
from tenants.tables import App, Person

# What is known of so many is asked for at once: hits that come meanwhile wait some milliseconds.
_PEOPLE_AT_ONCE = 500
# Of one person: somebody with more addresses is a test, or no person.
_MOST_ROWS = 100
_ID_BYTES = 16
# Of Facebook's making; a hit may say anything in a value of this name.
_AUDIENCE_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
COLUMNS = ("email", "uid", "extern_id")


class Row(NamedTuple):
    """Empty is what there is none of."""

    email_sha256: str
    fbid: str
    audience_id: str


class Member(NamedTuple):
    """A person's id (16 bytes) and rows, one at least."""

    id: bytes
    rows: list[Row]


class Store(Protocol):
    """The event store, as far as finding people needs it."""

    async def query(self, sql: str, parameters: Mapping[str, Any], whose: int) -> list[dict[str, Any]]:
        """See events.Queries."""
        ...

    async def stream(
        self, sql: str, parameters: Mapping[str, Any], form: str, settings: Mapping[str, Any], whose: int
    ) -> AsyncIterator[bytes]:
        """See exports.Streams."""
        ...


async def people_of(app: App, store: Store, segment: Segment) -> bytes | None:
    """The ids of a segment's people, sorted, 16 bytes each; None for everybody. Raises Busy, Unavailable.

    Of a million people 16 MB. They may be merged into others by the time they are looked at.
    """
    if not segment:
        return None
    sql, parameters = _matching(app, segment)
    stream = await store.stream(sql, parameters, "RowBinary", {}, app.tenant)
    data = b"".join([chunk async for chunk in stream])
    # In a thread: of a million it takes a second.
    return await asyncio.to_thread(_sorted_ids, data)


def _matching(app: App, segment: Segment) -> tuple[str, dict[str, Any]]:
    """A query of the ids of a segment's known people, and its parameters."""
    query, parameters = segment.sql("s")
    # Who they are by now, so that a run that goes on later finds them in the same place.
    sql = f"SELECT any({PERSON_ID}) AS id FROM events WHERE {ONE_APP} AND {SOMEBODY} AND {PERSON} IN ({query})"
    # Of anonymous visitors there may be a hundred for each, and nothing that Meta can match.
    return f"{sql} GROUP BY {PERSON} HAVING max(identified)", {"app": str(app.id), **parameters}


def _sorted_ids(data: bytes) -> bytes:
    """UUIDs as RowBinary has them: two numbers of 8 bytes each, the lowest byte first."""
    ids = [data[at + 7 : at - 1 if at else None : -1] + data[at + 15 : at + 7 : -1] for at in range(0, len(data), 16)]
    return b"".join(sorted(ids))


async def count_people(app: App, people: bytes | None) -> int:
    """About how many there are to look at."""
    if people is not None:
        return len(people) // _ID_BYTES
    return await Person.count().where(
        Person.key > app.id.bytes, Person.key < _end(app), Person.merged_into.is_null(), Person.size > 0
    )


async def count_matching(app: App, store: Queries, segment: Segment) -> int:
    """How many known people a segment has; Meta may be able to match fewer. Raises Busy, Unavailable."""
    if not segment:
        return await count_people(app, None)
    sql, parameters = _matching(app, segment)
    (row,) = await store.query(f"SELECT count() AS people FROM ({sql})", parameters, app.tenant)
    return row["people"]


async def members(app: App, store: Store, people: bytes | None, after: bytes = b"") -> AsyncIterator[Member]:
    """Those of `people_of` whose id is beyond `after` and who have something that Meta can match."""
    with_audience_ids = await _any_audience_id(app, store)
    while ids := await _next_ids(app, people, after):
        after = ids[-1]
        found = await known(app, [UUID(bytes=each) for each in ids])
        audience_ids = await _audience_ids(app, store, list(found.values())) if with_audience_ids else {}
        for each in ids:
            person = found.get(UUID(bytes=each))
            rows = _rows(person, audience_ids.get(person.id, "")) if person is not None else []
            if rows:
                yield Member(each, rows)


async def _next_ids(app: App, people: bytes | None, after: bytes) -> list[bytes]:
    if people is not None:
        first = _place_after(people, after)
        ends = range(first + _ID_BYTES, len(people) + 1, _ID_BYTES)
        return [people[end - _ID_BYTES : end] for end in islice(ends, _PEOPLE_AT_ONCE)]
    rows = (
        await Person.select(Person.key)
        .where(Person.key > app.id.bytes + after, Person.key < _end(app))
        .where(Person.merged_into.is_null(), Person.size > 0)
        .order_by(Person.key)
        .limit(_PEOPLE_AT_ONCE)
    )
    return [row["key"][_ID_BYTES:] for row in rows]


def _place_after(people: bytes, after: bytes) -> int:
    """Where the first id beyond `after` begins."""
    low, high = 0, len(people) // _ID_BYTES
    while low < high:
        middle = (low + high) // 2
        if people[middle * _ID_BYTES : (middle + 1) * _ID_BYTES] <= after:
            low = middle + 1
        else:
            high = middle
    return low * _ID_BYTES


def _end(app: App) -> bytes:
    """Beyond all of the app's keys."""
    return app.id.bytes + b"\xff" * (_ID_BYTES + 1)


def _rows(person: Known, audience_id: str) -> list[Row]:
    pairs = zip_longest(person.emails[:_MOST_ROWS], person.fbids[:_MOST_ROWS], fillvalue="")
    rows = [Row(email_hash(email) if email else "", fbid, "") for email, fbid in pairs]
    if audience_id:
        rows[:1] = [rows[0]._replace(audience_id=audience_id) if rows else Row("", "", audience_id)]
    return rows


def email_hash(email: str) -> str:
    """The SHA-256 of an address as Meta normalises it."""
    return hashlib.sha256(email.strip().lower().encode(errors="replace")).hexdigest()


_AUDIENCE_IDS = f"FROM person_properties WHERE {ONE_APP} AND field = 'custom_audience_id'"


async def _any_audience_id(app: App, store: Store) -> bool:
    return bool(await store.query(f"SELECT 1 AS x {_AUDIENCE_IDS} LIMIT 1", {"app": str(app.id)}, app.tenant))


async def _audience_ids(app: App, store: Store, people: Sequence[Known]) -> dict[UUID, str]:
    """By the surviving person's id, the newest of all they were."""
    survivor = {each: person.id for person in people for each in (person.id, *person.merged)}
    if not survivor:
        return {}
    ids = ", ".join(f"'{each}'" for each in survivor)
    rows = await store.query(
        f"SELECT person_id, argMax(value, version) AS newest, max(version) AS at {_AUDIENCE_IDS} "
        f"AND person_id IN ({ids}) GROUP BY person_id ORDER BY at",
        {"app": str(app.id)},
        app.tenant,
    )
    found: dict[UUID, str] = {}
    for row in rows:
        value = msgspec.json.decode(row["newest"])
        if isinstance(value, str) and _AUDIENCE_ID.fullmatch(value):
            found[survivor[row["person_id"]]] = value
    return found


async def upload_form(found: AsyncIterator[Member]) -> AsyncIterator[bytes]:
    """The members as the CSV that Meta's page for customer lists takes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    async for member in found:
        writer.writerows(member.rows)
        if text.tell() > 64 * 1024:
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode()
