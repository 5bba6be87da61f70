"""The people of an app: those of whom something is known, in an order, page by page.

A page is found in two steps, so that a million people are quick: who is on it, by what it is sorted by alone, and then
the details of those. Who was seen last, or for the first time, is nearly always in the newest events; only if not, all
people are looked at.
"""
# Piccolo's annotations leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import asyncio
import base64
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from tenants.events import Queries, cursor_bytes, no_cursor
from tenants.identifiers import Known, known, owner_of, person_key, search
from tenants.people import COLLECT
from tenants.reports.filters import currency_of, text_for
from tenants.reports.segments import Segment
from tenants.reports.sql import ONE_APP, PERSON, SOMEBODY, Parameters, containing, masked
from tenants.rewriting import PROPERTIES
from tenants.tables import App, Person

Sort = Literal["last_seen", "first_seen", "events", "revenue"]

# The newest events hold some thousand people, a hundred pages of them.
_NEWEST = 20_000
_SAMPLE = 2_000
# And these some hundred who came for the first time.
_NEWEST_OF_NEW = 100_000
# Whoever finds more searches for more.
_FOUND = 1_000
# Hits may make somebody of any number of visitors; until their events are rewritten, a page counts those of so many.
_IDS = 1_000


class Summary(msgspec.Struct, frozen=True):
    """Somebody known. `revenue` is net minor units by currency; `properties` JSON text by field, if asked for."""

    known: Known
    first_seen: datetime
    last_seen: datetime
    events: int
    revenue: dict[str, int]
    properties: dict[str, str]


class People(msgspec.Struct, frozen=True):
    """A page of people, and the cursor of the next one, None on the last.

    `cut`: more were found by the text than are looked at, so others may be missing.
    """

    people: list[Summary]
    next: str | None
    cut: bool = False


class _Asked(msgspec.Struct, frozen=True):
    """What a page is asked for: conditions on events, of which `beyond` is one on `key` and `who`."""

    sort: Sort
    segment: str
    scope: str
    beyond: str
    parameters: Parameters
    limit: int


async def people(
    app: App,
    store: Queries,
    *,
    sort: Sort = "last_seen",
    currency: str | None = None,
    segment: Segment | None = None,
    uuid: str | None = None,
    email: str | None = None,
    fbid: str | None = None,
    text: str | None = None,
    exactly: bool = False,
    properties: bool = False,
    limit: int = 50,
    cursor: str | None = None,
) -> People:
    """Those in the segment who have all these identifiers: the last seen first, or the newest, or with most events.

    By revenue, those who had any in the currency, the app's own if none is given. `text` finds people with an
    identifier that begins with it, and those with a property that contains it; with `exactly` an identifier that is it,
    and in properties nothing of the addresses that are masked for whoever looks. Raises InvalidValue for the currency,
    the text or a made-up cursor.
    """
    parameters: Parameters = {"app": str(app.id), "currency": currency_of(currency or app.currency)}
    in_scope, in_segment, beyond, cut = "", "", "", False
    if uuid or email or fbid or text:
        found: list[set[UUID]] = []
        if text:
            with_text, cut = await _with_text(app, store, text, exactly)
            found.append(with_text)
        if uuid or email or fbid:
            owner = await owner_of(app, uuid=uuid, email=email, fbid=fbid)
            found.append({owner} if owner else set[UUID]())
        if len(found) > 1:
            # A property may still be under the id of somebody they turned out to be.
            roots = await known(app, set[UUID]().union(*found))
            found = [{roots[id].id for id in some if id in roots} for some in found]
        of = await known(app, found[0].intersection(*found))
        in_scope = " AND person_id IN {scope:Array(UUID)}"
        parameters["scope"] = sorted({str(id) for each in of.values() for id in (each.id, *each.merged)})
        if not of:
            return People([], None, cut)
    if segment:
        sql, more = segment.sql("segment")
        in_segment, parameters = f" AND {PERSON} IN ({sql})", parameters | more
    if cursor:
        key, who = _place(cursor)
        beyond, parameters = " AND (key, who) < ({key:Int64}, {who:UInt64})", parameters | {"key": key, "who": who}
    page = await _page(app, store, _Asked(sort, in_segment, in_scope, beyond, parameters, limit), properties)
    return msgspec.structs.replace(page, cut=cut)


async def _with_text(app: App, store: Queries, text: str, exactly: bool) -> tuple[set[UUID], bool]:
    """Who has it, and whether there are more, of whom an arbitrary thousand is taken."""
    text_for("search", text)
    if exactly:
        owners = await asyncio.gather(owner_of(app, uuid=text), owner_of(app, email=text), owner_of(app, fbid=text))
        found = {owner for owner in owners if owner}
    else:
        found = set(await search(app, text, _FOUND + 1))
    contains, parameters = containing((masked("value") if exactly else "value",), text)
    parameters |= {"app": str(app.id)}
    had = await store.query(
        f"SELECT DISTINCT field, person_id FROM person_properties WHERE {ONE_APP} AND ({contains}) LIMIT {_FOUND + 1}",
        parameters,
        app.tenant,
    )
    # Those that have it, or had it until it was replaced: the newest value decides, of all that they were.
    of = await known(app, {row["person_id"] for row in had})
    parameters["fields"] = sorted({row["field"] for row in had})
    parameters["ids"] = sorted({str(id) for each in of.values() for id in (each.id, *each.merged)})
    rows = await store.query(
        f"SELECT id FROM (SELECT any(person_id) AS id, argMax(value, version) AS value FROM person_properties "
        f"WHERE {ONE_APP} AND field IN {{fields:Array(String)}} AND person_id IN {{ids:Array(UUID)}} "
        f"GROUP BY field, {PERSON}) WHERE {contains}",
        parameters,
        app.tenant,
    )
    cut = len(found) > _FOUND or len(had) > _FOUND
    return found | {row["id"] for row in rows}, cut


async def _page(app: App, store: Queries, asked: _Asked, properties: bool) -> People:
    shown: list[tuple[int, int, _Listed]] = []
    after = None
    for each in _tries(asked, asked.sort == "events" and await _mostly_known(app, store)):
        found = await store.query(
            f"{each.query} LIMIT {{most:UInt32}}", asked.parameters | {"most": each.most}, app.tenant
        )
        listed = await _listed(app, store, found)
        shown = [(row["key"], row["who"], listed[row["who"]]) for row in found if row["who"] in listed]
        if len(shown) > asked.limit:
            shown = shown[: asked.limit]
            after = _cursor(*shown[-1][:2])
            break
        # Who is in the events but not known any more is not shown; the next page begins after them.
        after = _cursor(found[-1]["key"], found[-1]["who"]) if len(found) == each.most else None
        if each.of_all and after is None:
            break
    persons = [person for _, _, person in shown]
    details, values = await asyncio.gather(_details(app, store, persons), _properties(app, store, persons, properties))
    # Whose events went meanwhile is left out.
    return People(
        [
            Summary(each.known, *details[each.known.id], values.get(each.known.id, {}))
            for each in persons
            if each.known.id in details
        ],
        after,
    )


_KEYS: dict[Sort, str] = {
    "last_seen": "toUnixTimestamp64Milli(max(received_at))",
    "first_seen": "toUnixTimestamp64Milli(min(received_at))",
    "events": "toInt64(count())",
    "revenue": "sum(amount)",
}
_KNOWN = "max(identified)"


class _Try(msgspec.Struct, frozen=True):
    """A query of a page's `who` and `key`, how many to ask for, and whether it looks at all that there is.

    Where it costs nothing, there is also one `id` of each, by which their details are found in less time.
    """

    query: str
    most: int
    of_all: bool


async def _mostly_known(app: App, store: Queries) -> bool:
    """Whether most of the newest events are of people who are known; so are then those with most events."""
    newest = f"SELECT identified FROM events WHERE {ONE_APP} AND {SOMEBODY} ORDER BY received_at DESC LIMIT {_SAMPLE}"
    (found,) = await store.query(
        f"SELECT countIf(identified) * 2 > count() AS mostly FROM ({newest})", {"app": str(app.id)}, app.tenant
    )
    return bool(found["mostly"])


def _tries(asked: _Asked, mostly_known: bool) -> Iterator[_Try]:
    """Quick ones first; the last one is sure."""
    most = asked.limit + 1
    columns = f"{PERSON} AS who, {_KEYS[asked.sort]} AS key"
    rows = f"FROM events WHERE {ONE_APP} AND {SOMEBODY}"
    of_all = f"SELECT {columns} {rows}{asked.scope}{asked.segment}"
    order = f"{asked.beyond} ORDER BY key DESC, who DESC"
    if asked.sort == "revenue":
        paid = f"{of_all} AND currency = {{currency:String}}"
        # What they bought before anything was known of them is theirs, too: so whether they are known is asked later.
        yield _Try(f"{paid} GROUP BY who HAVING 1{order}", most * 4, True)
        everybody = f"SELECT {PERSON} AS who {rows} GROUP BY who HAVING {_KNOWN}"
        yield _Try(f"{paid} AND {PERSON} IN ({everybody}) GROUP BY who HAVING 1{order}", most, True)
        return
    known_only = f"GROUP BY who HAVING {_KNOWN}{order}"
    if mostly_known and not asked.scope:
        # A second aggregate function takes a quarter of the time.
        yield _Try(f"{of_all} GROUP BY who HAVING 1{order}", most * 4, True)
    if asked.sort == "last_seen" and not asked.scope:
        newest = f"SELECT person_id, received_at, identified {rows} ORDER BY received_at DESC LIMIT {_NEWEST}"
        window = f"SELECT {columns}, any(person_id) AS id FROM ({newest}) WHERE 1{asked.segment} {known_only}"
        yield _Try(window, most, False)
    if asked.sort == "first_seen" and not asked.scope:
        since = f"(SELECT received_at {rows} ORDER BY received_at DESC LIMIT 1 OFFSET {_NEWEST_OF_NEW})"
        lately = f"{PERSON} IN (SELECT {PERSON} {rows} AND received_at >= {since})"
        new = f"GROUP BY who HAVING min(received_at) >= {since} AND {_KNOWN}{order}"
        yield _Try(f"{of_all} AND {lately} {new}", most, False)
    yield _Try(f"{of_all} {known_only}", most, True)


class _Listed(msgspec.Struct, frozen=True):
    """Somebody on a page; `ids` are all that their events may have."""

    known: Known
    ids: list[UUID]


async def _listed(app: App, store: Queries, found: Sequence[dict[str, Any]]) -> dict[int, _Listed]:
    """Of those of the rows of a try who are known, by `who`."""
    if not found:
        return {}
    if "id" in found[0]:
        of = await known(app, [row["id"] for row in found])
        rows = [(row["who"], person) for row in found if (person := of.get(row["id"]))]
        return {who: _Listed(person, [person.id, *person.merged]) for who, person in rows}
    ids = await store.query(
        f"SELECT DISTINCT person_id, {PERSON} AS who FROM events WHERE {ONE_APP} AND {PERSON} IN {{who:Array(UInt64)}} "
        f"LIMIT {_IDS} BY who",
        {"app": str(app.id), "who": [row["who"] for row in found]},
        app.tenant,
    )
    of = await known(app, [row["person_id"] for row in ids])
    listed: dict[int, _Listed] = {}
    for row in ids:
        if person := of.get(row["person_id"]):
            listed.setdefault(row["who"], _Listed(person, [])).ids.append(row["person_id"])
    return listed


async def _details(
    app: App, store: Queries, persons: Sequence[_Listed]
) -> dict[UUID, tuple[datetime, datetime, int, dict[str, int]]]:
    """First and last seen, events and revenue by currency, by the person's id, of those who have events."""
    owner = {id: each.known.id for each in persons for id in each.ids}
    if not owner:
        return {}
    # Nothing but what the projection `by_person` holds.
    rows = await store.query(
        "SELECT person_id, currency, toUnixTimestamp64Milli(min(received_at)) AS first, "
        "toUnixTimestamp64Milli(max(received_at)) AS last, count() AS events, sum(amount) AS net FROM events "
        f"WHERE {ONE_APP} AND person_id IN {{persons:Array(UUID)}} GROUP BY person_id, currency ORDER BY currency",
        {"app": str(app.id), "persons": [str(id) for id in owner]},
        app.tenant,
    )
    of: dict[UUID, list[dict[str, Any]]] = {}
    for row in rows:
        of.setdefault(owner[row["person_id"]], []).append(row)
    details: dict[UUID, tuple[datetime, datetime, int, dict[str, int]]] = {}
    for id, theirs in of.items():
        first, last = min(row["first"] for row in theirs), max(row["last"] for row in theirs)
        revenue: dict[str, int] = {}
        for row in theirs:
            if row["currency"]:
                revenue[row["currency"]] = revenue.get(row["currency"], 0) + row["net"]
        seen, lately = (datetime.fromtimestamp(at / 1000, UTC) for at in (first, last))
        details[id] = (seen, lately, sum(row["events"] for row in theirs), revenue)
    return details


async def _properties(app: App, store: Queries, persons: Sequence[_Listed], wanted: bool) -> dict[UUID, dict[str, str]]:
    if not wanted:
        return {}
    ids = {each.known.id: [each.known.id, *each.known.merged] for each in persons}
    found = await properties(app, store, ids)
    return {person: {each.field: each.value for each in values} for person, values in found.items()}


class Property(msgspec.Struct, frozen=True):
    """A custom value of a person, JSON text, and when it was received."""

    field: str
    value: str
    received_at: datetime


# Hits may bring a person any number of fields; a page of people reads so many of all of theirs.
SHOWN_PROPERTIES = 500
_MAX_ROWS = 100_000
_ASKED_AT_ONCE = 5_000


async def properties(app: App, store: Queries, persons: Mapping[UUID, Sequence[UUID]]) -> dict[UUID, list[Property]]:
    """The newest properties of each of these, who have had these ids, by id, in the order of their names."""
    owner = {id: person for person, ids in persons.items() for id in ids}
    if not owner:
        return {}
    rows_of_all, parameters = await property_rows(app, list(owner))
    rows = await store.query(
        "SELECT field, person_id, argMax(value, version) AS value, max(version) AS newest, "
        f"toUnixTimestamp64Milli(max(received_at)) AS at FROM ({rows_of_all}) GROUP BY field, person_id "
        # What became of an access token is looked for among them.
        f"ORDER BY startsWith(field, 'facebook_') DESC, newest DESC LIMIT {SHOWN_PROPERTIES} BY person_id "
        f"LIMIT {_MAX_ROWS}",
        parameters,
        app.tenant,
    )
    found: dict[UUID, dict[str, Property]] = {}
    for row in rows:
        of_person = found.setdefault(owner[row["person_id"]], {})
        if len(of_person) < SHOWN_PROPERTIES:
            at = datetime.fromtimestamp(row["at"] / 1000, UTC)
            of_person.setdefault(row["field"], Property(row["field"], row["value"], at))
    return {person: [fields[name] for name in sorted(fields)] for person, fields in found.items()}


async def property_rows(app: App, ids: Sequence[UUID]) -> tuple[str, Parameters]:
    """A query of all that is kept of these ids' properties, what is yet to be collected included; its parameters.

    Its columns are field, person_id, value (JSON text), received_at and version, of which the newest counts.
    """
    columns = "field, person_id, value, received_at, version"
    stored = f"SELECT {columns} FROM person_properties WHERE {ONE_APP} AND person_id IN {{persons:Array(UUID)}}"
    waiting = await _waiting(app, ids)
    if waiting:
        brought = PROPERTIES.format(rows=f"{ONE_APP} AND person_id IN {{waiting:Array(UUID)}} AND NOT identified")
        stored = f"{stored} UNION ALL SELECT {columns} FROM ({brought})"
    listed = {"persons": await texts_of(ids), "waiting": await texts_of(waiting)}
    return stored, {"app": str(app.id), **listed}


async def texts_of(ids: Sequence[UUID]) -> list[str]:
    """The ids as queries take them; not on the loop that takes hits where somebody has had very many."""
    if len(ids) > _ASKED_AT_ONCE:
        return await asyncio.to_thread(lambda: list(map(str, ids)))
    return list(map(str, ids))


async def _waiting(app: App, ids: Sequence[UUID]) -> list[UUID]:
    """Those of whom what they did as anonymous visitors is not collected yet: seconds ago they were."""
    keys = [person_key(app.id, id) for id in ids[:_ASKED_AT_ONCE]]
    rows = await Person.raw(
        f"SELECT key FROM person WHERE (todo & {COLLECT}) > 0 AND key IN ({', '.join(['{}'] * len(keys))})", *keys
    )
    return [UUID(bytes=row["key"][16:]) for row in rows]


def _cursor(key: int, who: int) -> str:
    data = key.to_bytes(8, "big", signed=True) + who.to_bytes(8, "big")
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _place(cursor: str) -> tuple[int, int]:
    data = cursor_bytes(cursor)
    if len(data) != 16:
        raise no_cursor()
    return int.from_bytes(data[:8], "big", signed=True), int.from_bytes(data[8:], "big")
