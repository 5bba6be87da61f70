"""All that is known of one person, as one JSON object of any size: it is written while it is read.

    {"app": …, "exported_at": …,
     "person": {"id", "known_at", "emails", "uuids", "fbids", "visitors", "merged",
                "access_tokens_waiting_since": […]},            Facebook is yet to be asked whose they are
     "properties": [{"field", "value", "received_at"}, …],     of each field the newest value
     "events": [{…}, …]}                                       every column, oldest first; the values as they were sent

Rejected hits are not in it: they were never told apart by person.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

import msgspec

from tenants.access_tokens import waiting_since
from tenants.events import NOBODY, Queries
from tenants.exports import Streams
from tenants.identifiers import known
from tenants.reports.people import property_rows, texts_of
from tenants.tables import App


class Store(Queries, Streams, Protocol):
    """The event store, as far as exporting a person needs it."""


# Numbers as numbers, though a script that reads them has 53 bits; times as everywhere else.
_SETTINGS = {"output_format_json_quote_64bit_integers": 0, "date_time_output_format": "iso"}
_EVENTS = (
    "SELECT * FROM events WHERE app_id = {app:UUID} AND person_id IN {persons:Array(UUID)} ORDER BY received_at, id"
)
_PROPERTIES = (
    "SELECT field, argMax(p.value, version) AS value, max(p.received_at) AS received_at FROM (%s) AS p "
    "GROUP BY field ORDER BY field"
)
# JSON text in a column of its own.
_JSON = {"params_text": "params", "value": "value"}

_row = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text = msgspec.json.Decoder(str)
_encode = msgspec.json.Encoder().encode


async def export_person(app: App, store: Store, person: UUID, now: datetime) -> AsyncGenerator[bytes]:
    """The object, once its first bytes are there. `person` is the survivor's id, of somebody known or not.

    Raises Busy when too many exports run, Unavailable.
    """
    found = (await known(app, [person], whole=True)).get(person)
    ids = [person, *(found.merged if found else [])]
    values: dict[str, Any] = {"app": str(app.id), "persons": await texts_of(ids)}
    visitors = await store.query(
        "SELECT DISTINCT visitor_id AS id FROM events WHERE app_id = {app:UUID} AND person_id IN {persons:Array(UUID)} "
        "AND visitor_id != {nobody:UUID} ORDER BY id",
        {**values, "nobody": str(NOBODY)},
        app.tenant,
    )
    waiting = await waiting_since(app.id, ids)
    about = {
        "id": person,
        "known_at": found and found.known_at,
        "emails": found.emails if found else [],
        "uuids": found.uuids if found else [],
        "fbids": found.fbids if found else [],
        "visitors": [row["id"] for row in visitors],
        "merged": ids[1:],
        "access_tokens_waiting_since": [datetime.fromtimestamp(at / 1000, UTC) for at in waiting],
    }
    head = {"app": app.name, "exported_at": now.astimezone(UTC), "person": about}
    # Both are begun before anything is sent: what fails then can still be told.
    rows, parameters = await property_rows(app, ids)
    properties = await _begin(app, store, _PROPERTIES % rows, parameters)
    events = await _begin(app, store, _EVENTS, values)
    return _object(_encode(head), {"properties": properties, "events": events})


async def _begin(app: App, store: Store, sql: str, values: Mapping[str, Any]) -> AsyncIterator[bytes]:
    return await store.stream(sql, values, "JSONEachRow", _SETTINGS, app.tenant)


async def _object(head: bytes, lists: Mapping[str, AsyncIterator[bytes]]) -> AsyncGenerator[bytes]:
    yield head[:-1]
    for name, rows in lists.items():
        yield b',"%b":[' % name.encode()
        between = b"\n"
        async for lines in _lines(rows):
            yield between + b",\n".join(map(_with_json, lines))
            between = b",\n"
        yield b"]"
    yield b"}\n"


async def _lines(rows: AsyncIterator[bytes]) -> AsyncGenerator[list[bytes]]:
    """The whole lines of each chunk."""
    rest = b""
    async for chunk in rows:
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield lines


def _with_json(line: bytes) -> bytes:
    """The row with the values of its JSON columns in place of their text."""
    row = _row.decode(line)
    return _encode({_JSON.get(name, name): _raw(value) if name in _JSON else value for name, value in row.items()})


def _raw(text: msgspec.Raw) -> msgspec.Raw:
    return msgspec.Raw(_text.decode(text).encode())
