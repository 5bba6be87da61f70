"""People: those of whom something is known, and what one of them did."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Request, get
from litestar.datastructures import State
from litestar.params import FromPath, Parameter, QueryParameter

from tenants.events import recent_events, timestamp
from tenants.reports.people import Sort, Summary, people
from tenants.reports.person import Lifetime, person, person_id_of
from tenants.reports.segments import segment_of
from web.api.access import Cursor, GivenApp, GivenStore, Limit
from web.api.records import Event, Events


class Person(msgspec.Struct):
    """Somebody of whom an identifier is known. `revenue` is net, in minor units by currency.

    Of several e-mail addresses or Facebook ids this has the first by alphabet; the person alone has them all. Of
    properties there are the newest 500, and of a page with many such people fewer.
    """

    id: UUID
    email: str | None
    fbid: str | None
    uuids: list[str]
    properties: dict[str, Any]
    first_seen: str
    last_seen: str
    event_count: int
    revenue: dict[str, int]


class People(msgspec.Struct):
    """People, those seen last first unless sorted otherwise. `next` is null on the last page.

    `cut` tells that more than 1,000 people match `search`: only a thousand of them were looked at.
    """

    people: list[Person]
    next: str | None
    cut: bool


class Property(msgspec.Struct):
    """A property's newest value, and when it was received."""

    value: Any
    received_at: str


class WholePerson(msgspec.Struct):
    """All that is known of somebody. An anonymous visitor has no identifiers and no `known_at`, and of properties
    at most `facebook_state`.

    `known_at` is when the first identifier came, `merged` are the ids of those who turned out to be this person.
    `first_seen` and `last_seen` are null when the events are gone. Of identifiers there are a thousand of a kind, of
    `merged` as many, of properties the newest 500; the export has all.
    """

    id: UUID
    emails: list[str]
    fbids: list[str]
    uuids: list[str]
    known_at: str | None
    merged: list[UUID]
    properties: dict[str, Property]
    first_seen: str | None
    last_seen: str | None
    event_count: int
    lifetime: list[Lifetime]


PersonId = Annotated[str, Parameter(description="A person's id, also one that was merged into another since.")]


@get("/apps/{app_token:str}/people", summary="People of an app", operation_id="people")
async def people_list(
    request: Request[Any, Any, State],
    app: GivenApp,
    store: GivenStore,
    email: Annotated[str | None, Parameter(description="The person with this e-mail address.")] = None,
    uuid: Annotated[str | None, Parameter(description="The person with this id of your own.")] = None,
    fbid: Annotated[str | None, Parameter(description="The person with this Facebook id.")] = None,
    search: Annotated[
        str | None,
        Parameter(description="People with an identifier that begins with this, or a property that contains it."),
    ] = None,
    did: Annotated[  # noqa: ARG001
        list[str] | None,
        Parameter(
            description="People with an event with this token. did.3=purchase: with at least three. All must hold."
        ),
    ] = None,
    revenue: Annotated[  # noqa: ARG001
        list[str] | None,
        QueryParameter(
            name="revenue.{currency}",
            description="People who brought more than this in a currency, refunds taken off: revenue.EUR=2500 is more "
            "than 25.00 EUR.",
        ),
    ] = None,
    property: Annotated[  # noqa: ARG001
        list[str] | None,
        QueryParameter(
            name="person.{field}",
            description="People with this property: person.plan=pro, or person.address.city=Berlin for a field of an "
            "object. Given more than once, with any of them. Values compare as text.",
        ),
    ] = None,
    sort: Annotated[
        Sort,
        Parameter(
            description="Those seen last first, or those seen for the first time last, with most events, or with most "
            "net revenue in a currency, which lists only those who had any."
        ),
    ] = "last_seen",
    currency: Annotated[
        str | None, Parameter(description="The currency of sort=revenue, an ISO 4217 code; the app's if left out.")
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> People:
    """Those of whom an identifier is known. Several conditions must all hold."""
    found = await people(
        app,
        store,
        sort=sort,
        currency=currency,
        segment=segment_of(list(request.query_params.multi_items())),
        uuid=uuid,
        # An address has no space in it: one is the + that was not escaped.
        email=email and email.strip().replace(" ", "+"),
        fbid=fbid,
        text=search,
        properties=True,
        limit=limit,
        cursor=cursor,
    )
    return People([_person(each) for each in found.people], found.next, found.cut)


def _person(of: Summary) -> Person:
    known = of.known
    return Person(
        known.id,
        known.emails[0] if known.emails else None,
        known.fbids[0] if known.fbids else None,
        known.uuids,
        # As stored, not parsed: every value reads back just as it was sent.
        {field: msgspec.Raw(value.encode()) for field, value in of.properties.items()},
        _time(of.first_seen),
        _time(of.last_seen),
        of.events,
        of.revenue,
    )


@get("/apps/{app_token:str}/people/{person_id:str}", summary="A person", operation_id="person")
async def one_person(app: GivenApp, store: GivenStore, person_id: FromPath[PersonId]) -> WholePerson:
    """All that is known of a person. Asked for one who was merged into another, this is the other."""
    of = await person(app, store, person_id_of(person_id))
    known = of.known
    return WholePerson(
        of.id,
        known.emails if known else [],
        known.fbids if known else [],
        known.uuids if known else [],
        _time(known.known_at) if known else None,
        known.merged if known else [],
        {each.field: Property(msgspec.Raw(each.value.encode()), _time(each.received_at)) for each in of.properties},
        _time(of.first_seen) if of.first_seen else None,
        _time(of.last_seen) if of.last_seen else None,
        of.events,
        of.lifetime,
    )


@get(
    "/apps/{app_token:str}/people/{person_id:str}/events",
    summary="What a person did",
    operation_id="person_events",
)
async def events_of_person(
    app: GivenApp, store: GivenStore, person_id: FromPath[PersonId], limit: Limit = 100, cursor: Cursor = None
) -> Events:
    """A person's events, newest first, whichever of their ids they came under."""
    of = await person(app, store, person_id_of(person_id))
    page = await recent_events(app, store, persons=of.ids, limit=limit, cursor=cursor)
    return Events([Event(**row) for row in page.rows], page.next)


def _time(at: datetime) -> str:
    return timestamp(round(at.timestamp() * 1000))


handlers = [people_list, one_person, events_of_person]
ANSWERS = (People, WholePerson, Events)
