"""The people of an app: a list to search, filter and sort, and a page of each one."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import cast, get_args
from urllib.parse import urlencode

import msgspec
from litestar import Response, get
from litestar.params import FromPath

from tenants.access_tokens import waiting_since
from tenants.audience_members import count_matching
from tenants.currencies import MINOR_UNITS
from tenants.deletions import going_since
from tenants.errors import InvalidValue
from tenants.events import recent_events
from tenants.reports.filters import Filters, currency_of
from tenants.reports.people import SHOWN_PROPERTIES, People, Sort, people
from tenants.reports.person import person, person_id_of
from tenants.reports.segments import Condition, Did, Earned, Is, Segment, did, earned, is_, segment_of
from tenants.tables import App
from tenants.typed_money import read_money
from web.guards import AnyRequest, OurApp, Viewer
from web.pages.events import shown, text_of
from web.rendering import go, money, render
from web.view import usable

SORTS: dict[Sort, str] = {
    "last_seen": "Last seen",
    "first_seen": "First seen",
    "events": "Most events",
    "revenue": "Most revenue",
}
_ORDERS = 10
_REVENUE = Filters().with_("category", "revenue")


class PeopleView(msgspec.Struct, frozen=True):
    """What the list is asked for; it lives in the address. `problem` says what of it could not be used."""

    app: App
    sort: Sort = "last_seen"
    currency: str = ""
    text: str = ""
    segment: Segment = Segment()
    cursor: str = ""
    problem: str = ""

    def pairs(self) -> list[tuple[str, str]]:
        """The parameters that ask for this list from its beginning."""
        named = [
            ("search", self.text),
            ("sort", "" if self.sort == "last_seen" else self.sort),
            ("currency", self.currency),
        ]
        return [pair for pair in named if pair[1]] + self.segment.pairs()

    def link(self, segment: Segment | None = None, **more: str) -> str:
        """The address of this list, of another segment or with more parameters."""
        view = self if segment is None else msgspec.structs.replace(self, segment=segment)
        query = urlencode([*view.pairs(), *more.items()])
        return f"/apps/{self.app.id}/people{'?' if query else ''}{query}"

    def count(self) -> str:
        """The address of how many they are."""
        query = urlencode(self.segment.pairs())
        return f"/apps/{self.app.id}/people/count{'?' if query else ''}{query}"

    def audience(self, page: str = "new") -> str:
        """The form of a Custom Audience of these people, or the `download` of it."""
        query = urlencode(self.segment.pairs())
        return f"/apps/{self.app.id}/audiences/{page}{'?' if query else ''}{query}"

    def chips(self) -> list[tuple[str, str]]:
        """Each condition in words, and the address of the list without it."""
        return [(in_words(each), self.link(self.segment.without(each))) for each in self.segment.conditions]

    def currencies(self, found: People) -> list[str]:
        """Those to sort by: the app's own and those of the people that are shown."""
        shown = {currency for each in found.people for currency in each.revenue}
        return [self.app.currency, *sorted({*shown, self.currency} - {self.app.currency, ""})]


def in_words(condition: Condition) -> str:
    """A condition as people say it: `did purchase 3 times or more`."""
    match condition:
        case Did(token, 1):
            return f"did {token}"
        case Did(token, times):
            return f"did {token} {times:,} times or more"
        case Earned(currency, above):
            return f"brought more than {money(above, currency)}"
        case Is(field, value):
            return f"{field.removeprefix('person.')} is {value}"


def _view(app: App, pairs: Sequence[tuple[str, str]]) -> PeopleView:
    values = dict(pairs)
    segment, problem = usable(segment_of, pairs, "A condition")
    sort, currency = values.get("sort", ""), values.get("currency", "").upper()
    return PeopleView(
        app,
        cast("Sort", sort) if sort in get_args(Sort) else "last_seen",
        currency if currency in MINOR_UNITS else "",
        values.get("search", "").strip()[:255],
        segment,
        values.get("cursor", ""),
        problem,
    )


def _added(app: App, values: Mapping[str, str]) -> Condition | None:
    """The condition of the form that was sent, None when none was. Raises InvalidValue."""
    if token := values.get("add_did", "").strip():
        return did(token, values.get("add_times", "").strip() or "1")
    if amount := values.get("add_above", "").strip():
        currency = values.get("add_currency", "").strip().upper() or app.currency
        # People type the main unit, 25.00.
        return earned(currency, str(read_money(amount, currency_of(currency))))
    if field := values.get("add_property", "").strip():
        # A dot says that the "!" belongs to the name.
        name = f"person.{field.removeprefix('person.')}{'.' * field.endswith('!')}"
        return is_(name, values.get("add_value", "").strip())
    return None


@get("/apps/{app_id:str}/people")
async def people_page(request: AnyRequest, app: OurApp, viewer: Viewer) -> Response[bytes]:
    """Those of whom an identifier is known."""
    pairs: list[tuple[str, str]] = list(request.query_params.multi_items())
    view, typed = _view(app, pairs), {}
    try:
        if added := _added(app, dict(pairs)):
            return go(view.link(view.segment.with_(added)))
    except InvalidValue as error:
        view, typed = msgspec.structs.replace(view, problem=f"The condition was not added: {error}"), dict(pairs)
    try:
        found = await _found(request, view, viewer.may_change)
    except InvalidValue as error:
        view = PeopleView(app, problem=f"This shows everybody. {error}")
        found = await _found(request, view, viewer.may_change)
    return await render(
        request, "app/people.html", app=app, tab="people", asked=view, found=found, sorts=SORTS, typed=typed
    )


@get("/apps/{app_id:str}/people/count")
async def count_panel(request: AnyRequest, app: OurApp) -> Response[bytes]:
    """How many are in the segment: too slow for the page itself. Raises InvalidValue."""
    segment = segment_of(list(request.query_params.multi_items()))
    counted = await count_matching(app, request.app.state.event_store, segment)
    return await render(request, "app/_people-count.html", app=app, counted=counted)


async def _found(request: AnyRequest, view: PeopleView, whole: bool) -> People:
    return await people(
        view.app,
        request.app.state.event_store,
        sort=view.sort,
        currency=view.currency or None,
        segment=view.segment,
        text=view.text or None,
        # Who sees addresses masked could else find them out letter by letter.
        exactly=not whole,
        cursor=view.cursor or None,
    )


@get("/apps/{app_id:str}/people/{person_id:str}")
async def person_page(request: AnyRequest, app: OurApp, person_id: FromPath[str]) -> Response[bytes]:
    """All that is known of one of them, and what they did; for an anonymous visitor, that."""
    store = request.app.state.event_store
    asked = person_id_of(person_id)
    of = await person(app, store, asked)
    if of.id != asked:
        return go(f"/apps/{app.id}/people/{of.id}")
    going = await going_since(app, of.id)
    cursor = request.query_params.get("cursor") or None
    timeline = await recent_events(app, store, persons=of.ids, limit=50, cursor=cursor)
    orders = await recent_events(app, store, persons=of.ids, filters=_REVENUE, limit=_ORDERS)
    waiting = await waiting_since(app.id, of.ids)
    return await render(
        request,
        "app/person.html",
        app=app,
        tab="people",
        person=of,
        going=going,
        properties=[(each.field, text_of(each.value), each.received_at) for each in of.properties],
        cut=len(of.properties) == SHOWN_PROPERTIES,
        facebook=next((text_of(each.value) for each in of.properties if each.field == "facebook_state"), ""),
        waiting=datetime.fromtimestamp(waiting[-1] / 1000, UTC) if waiting else None,
        timeline=[shown(row) for row in timeline.rows],
        older=timeline.next,
        orders=[shown(row) for row in orders.rows],
        more_orders=orders.next is not None,
        cursor=cursor,
    )


handlers = [people_page, count_panel, person_page]
