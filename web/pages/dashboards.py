"""An app's numbers: events, revenue, and what was rejected or limited.

A page is its frame, with the period and the filters; its panels are fetched by themselves, so that a slow one holds up
nothing. A browser without script asks for the page once more, as a whole (`whole=1`). Both ways one function makes what
a panel shows.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
from litestar import Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from markupsafe import Markup

from tenants.apps import list_apps
from tenants.currencies import MINOR_UNITS
from tenants.errors import InvalidValue, Unavailable
from tenants.events import Queries
from tenants.identifiers import known as known_people
from tenants.reports.breakdown import breakdown
from tenants.reports.fields import fields, properties_of_people
from tenants.reports.first_hit import has_hits
from tenants.reports.funnel import UNITS
from tenants.reports.rejected import rejected, rejections_from
from tenants.reports.revenue import largest_orders, latest_orders, revenue, revenue_by, revenue_series
from tenants.reports.series import series
from tenants.reports.sql import COLUMNS
from tenants.reports.tokens import tokens
from tenants.reports.totals import totals
from tenants.reports.traffic import limited_minutes, outcomes, traffic
from tenants.reports.usage import usage
from tenants.snippets import img_tag, pixel_url
from tenants.tables import App
from tenants.tokens import list_tokens, state
from web.guards import AnyRequest, OurApp, Viewer
from web.pages import journeys
from web.rendering import fragment, go, is_htmx, plain_money, render, replace_address
from web.view import View, adding, address_of_whole, bucket_label, filterable, named, pairs_in, pairs_of, short, view_of

Context = dict[str, Any]
Pairs = Sequence[tuple[str, str]]
Panel = Callable[[View, Queries, Mapping[str, str]], Awaitable[Context]]

# What is chosen in a panel: which field it is about, in which currency. It stands in the page's address.
_CHOSEN = ("field", "in")
# Asks for a place to type the field in: one that few events have is not in the list of those that there are.
_TYPED = "?"


def _exactly(value: int) -> tuple[int, str]:
    return value, f"{value:,}"


async def _totals(view: View, store: Queries, _asked: Mapping[str, str]) -> Context:
    return {"totals": await totals(view.app, store, view.period, view.filters)}


async def _events_chart(view: View, store: Queries, _asked: Mapping[str, str]) -> Context:
    found = await series(view.app, store, view.period, view.filters)
    columns = [
        (
            line.event_token if line.event_token is not None else "all others",
            view.only("event_token", line.event_token) if line.event_token is not None else None,
            [_exactly(count) for count in line.events],
        )
        for line in found.lines
    ]
    return {"columns": columns, "labels": [bucket_label(at, found.interval) for at in found.buckets]}


async def _tokens(view: View, store: Queries, _asked: Mapping[str, str]) -> Context:
    return {"found": await tokens(view.app, store, view.period, view.filters)}


async def _breakdown(view: View, store: Queries, asked: Mapping[str, str]) -> Context:
    known = await fields(view.app, store, view.period, view.filters)
    chosen = _field(asked, known.fields[0].field if known.fields else "event_token")
    field = chosen["field"]
    found = await breakdown(view.app, store, view.period, view.filters, field) if field else None
    return {"known": known, "found": found, **chosen}


async def _revenue(view: View, store: Queries, asked: Mapping[str, str]) -> Context:
    rows = await revenue(view.app, store, view.period, view.filters)
    currency = _currency(asked, [row.currency for row in rows])
    columns: list[Any] = []
    labels: list[tuple[str, str]] = []
    if currency:
        found = await revenue_series(view.app, store, view.period, view.filters)
        line = next((line for line in found.lines if line.currency == currency), None)
        labels = [bucket_label(at, found.interval) for at in found.buckets]
        if line is not None:
            columns = [
                ("Gross", None, [(amount, plain_money(amount, currency)) for amount in line.gross]),
                ("Refunded", None, [(-amount, plain_money(amount, currency)) for amount in line.refunded]),
                ("Net", None, [(amount, plain_money(amount, currency)) for amount in line.net]),
            ]
    scale = 10 ** MINOR_UNITS.get(currency, 2)
    return {"rows": rows, "currency": currency, "columns": columns, "labels": labels, "scale": scale}


async def _revenue_by(view: View, store: Queries, asked: Mapping[str, str]) -> Context:
    currencies = [row.currency for row in await revenue(view.app, store, view.period, view.filters)]
    currency = _currency(asked, currencies)
    known = await fields(view.app, store, view.period, view.filters)
    chosen = _field(asked, "event_token")
    field = chosen["field"] if currency else ""
    found = await revenue_by(view.app, store, view.period, view.filters, field, currency) if field else None
    return {"known": known, "currencies": currencies, "currency": currency, "found": found, **chosen}


async def _orders(view: View, store: Queries, asked: Mapping[str, str]) -> Context:
    currencies = [row.currency for row in await revenue(view.app, store, view.period, view.filters)]
    currency = _currency(asked, currencies)
    largest = await largest_orders(view.app, store, view.period, view.filters, currency) if currency else []
    latest = await latest_orders(view.app, store, view.period, view.filters)
    names = await known_people(view.app, {order.person_id for order in (*largest, *latest) if order.person_id})
    return {"largest": largest, "latest": latest, "names": names, "currencies": currencies, "currency": currency}


def _field(asked: Mapping[str, str], usual: str) -> Context:
    """The `field` that a panel is about and its `name`; where it is to be typed, what was `typed` and the `problem`."""
    given = asked.get("field", "")
    given = given if given.strip() else usual
    field, typed, problem = "", None, ""
    if given == _TYPED:
        typed = ""
    elif given:
        try:
            field = filterable(given)
        except InvalidValue as error:
            typed, problem = given, str(error)
    return {"field": field, "name": named(field), "typed": typed, "problem": problem}


def _chosen(asked: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, asked[name]) for name in _CHOSEN if asked.get(name)]


def _own(page: str, pairs: Pairs, open_page: Pairs = ()) -> list[tuple[str, str]]:
    """The parameters of this page alone; what other panels of the open one were asked for stays."""
    if page in journeys.PAGES:
        return journeys.own_of(page, pairs)
    return _chosen(dict([*open_page, *pairs]))


def _currency(asked: Mapping[str, str], currencies: list[str]) -> str:
    """The currency asked for, else the one with most orders; '' when nothing was sold."""
    wanted = asked.get("in", "").upper()
    return wanted if wanted in currencies else (currencies[0] if currencies else "")


async def _rejected(view: View, store: Queries, _asked: Mapping[str, str]) -> Context:
    reasons = await rejected(view.app, store, view.period, view.filters)
    return {"reasons": reasons, "since": rejections_from(view.app)}


async def _traffic(view: View, store: Queries, _asked: Mapping[str, str]) -> Context:
    found = await traffic(view.app, store, view.period)
    lines = (("Rejected", found.rejected), ("Limited", found.limited), ("Duplicates", found.duplicate))
    columns = [(name, None, [_exactly(count) for count in counts]) for name, counts in lines]
    minutes = await limited_minutes(view.app, store, view.period)
    labels = [bucket_label(at, found.interval) for at in found.buckets]
    sums = {name: sum(counts) for name, counts in lines} | {"Recorded": sum(found.recorded)}
    earlier = await outcomes(view.app, store, view.period.before)
    before = {"Recorded": earlier["recorded"], "Rejected": earlier["rejected"]}
    before |= {"Limited": earlier["limited"], "Duplicates": earlier["duplicate"]}
    return {"columns": columns, "labels": labels, "minutes": minutes, "sums": sums, "before": before}


async def _fields(view: View, store: Queries, _asked: Mapping[str, str]) -> Context:
    found = await fields(view.app, store, view.period, view.filters)
    return {"options": [*COLUMNS, *(short(each.field) for each in found.fields), *found.properties]}


async def _values(view: View, store: Queries, asked: Mapping[str, str]) -> Context:
    """What the field that is being filtered has had; nothing while its name is not a whole one."""
    name = asked.get("add_field", "")
    if property := asked.get("add_property"):
        name = f"person.{property.removeprefix('person.')}"
    try:
        field = filterable(name)
    except InvalidValue:
        return {"options": []}
    found = await breakdown(view.app, store, view.period, view.filters, field, limit=50)
    return {"options": [each.value for each in found.values if each.value]}


async def _properties(view: View, store: Queries, _asked: Mapping[str, str]) -> Context:
    found = await properties_of_people(view.app, store)
    return {"options": [each.removeprefix("person.") for each in found]}


PANELS: dict[str, Panel] = {
    "fields": _fields,
    "values": _values,
    "properties": _properties,
    "totals": _totals,
    "chart": _events_chart,
    "tokens": _tokens,
    "breakdown": _breakdown,
    "revenue": _revenue,
    "revenue-by": _revenue_by,
    "orders": _orders,
    "rejected": _rejected,
    "traffic": _traffic,
    "retention": journeys.retention_panel,
    "funnel": journeys.funnel_panel,
}
_PAGES = ("revenue", "rejected", "retention", "funnel")


async def _panel_context(view: View, store: Queries, name: str, asked: Mapping[str, str]) -> Context:
    """What a panel's template has. What cannot be answered is said in the panel, and harms no other."""
    context: Context = {"view": view, "app": view.app, "whole": view.whole, "failed": ""}
    try:
        context |= await PANELS[name](view, store, asked)
    except InvalidValue as error:
        context["failed"] = str(error)
    except Unavailable:
        if not view.whole:
            raise  # answered as 503, with a button that tries again
        context["failed"] = "The event store does not answer right now. Hits are kept meanwhile; reload in a minute."
    return context


async def _page(
    request: AnyRequest, app: OurApp, tab: str, names: tuple[str, ...], problem: str = "", **more: Any
) -> Response[bytes]:
    """A page of panels; `problem` is what could not be used of its own part of the address."""
    pairs = pairs_of(request)
    view, filters = adding(view_of(request, app, f"/apps/{app.id}/{tab}".rstrip("/"), _own(tab, pairs)), pairs)
    if filters is not None:
        return go(view.link(filters))
    store: Queries = request.app.state.event_store
    asked = dict(pairs)
    panels: dict[str, Markup] = {}
    for name in names if view.whole else ():
        panels[name] = fragment(request, f"app/_{name}.html", **await _panel_context(view, store, name, asked))
    if problem:
        view = msgspec.structs.replace(view, problem=problem)
    whole_address = address_of_whole(view, pairs)
    context: Context = {"app": app, "tab": tab, "view": view, "panels": panels, "whole_address": whole_address}
    return await render(request, f"app/{tab or 'events'}.html", **context, **more)


@get("/apps/{app_id:str}")
async def events_page(request: AnyRequest, app: OurApp) -> Response[bytes]:
    """What happened; for an app that was never hit, its snippet and a place to wait for the first hit."""
    try:
        waiting = not await _was_hit(request, app)
    except Unavailable:
        waiting = False  # the panels say so
    if waiting:
        return await render(request, "app/waiting.html", app=app, tab="", **await _waiting(request, app))
    return await _page(request, app, "", ("totals", "chart", "tokens", "breakdown"))


async def _was_hit(request: AnyRequest, app: App) -> bool:
    """Whether it ever was: then it stays so, and no page has to wait for the event store to say it again."""
    hit: set[UUID] = request.app.state.apps_hit
    if app.id not in hit and await has_hits(app, request.app.state.event_store):
        hit.add(app.id)
    return app.id in hit


async def _waiting(request: AnyRequest, app: OurApp) -> Context:
    now = datetime.now(UTC)
    tokens = {state(each, now): each.token for each in reversed(await list_tokens(app))}
    # One that ends takes hits until then.
    token = tokens.get("live") or tokens.get("ends")
    address = pixel_url(request.app.state.pixel_url, token, "event", "page_view") if token else ""
    return {"token": token, "address": address, "snippet": img_tag(address) if token else ""}


@get("/apps/{app_id:str}/waiting")
async def waiting(request: AnyRequest, app: OurApp) -> Response[bytes]:
    """Asked again and again until the first hit is there: then the page becomes the dashboard."""
    try:
        waits = not await _was_hit(request, app)
    except Unavailable:
        waits = True  # it is asked again in a second
    if waits:
        return Response(b"", status_code=204)
    return Response(b"", status_code=200, headers={"HX-Refresh": "true"})


@get("/apps/{app_id:str}/revenue")
async def revenue_page(request: AnyRequest, app: OurApp) -> Response[bytes]:
    """What was earned, each currency by itself."""
    return await _page(request, app, "revenue", ("revenue", "revenue-by", "orders"))


@get("/apps/{app_id:str}/rejected")
async def rejected_page(request: AnyRequest, app: OurApp) -> Response[bytes]:
    """Which hits did not count, and why."""
    return await _page(request, app, "rejected", ("rejected", "traffic"))


@get("/apps/{app_id:str}/retention")
async def retention_page(request: AnyRequest, app: OurApp) -> Response[bytes]:
    """Who comes back."""
    return await _page(request, app, "retention", ("retention",))


@get("/apps/{app_id:str}/funnel")
async def funnel_page(request: AnyRequest, app: OurApp) -> Response[bytes]:
    """From step to step. A button of the form leads to the address of the form as it then is."""
    pairs = pairs_of(request)
    form = journeys.read_form(pairs)
    if journeys.was_sent(pairs) and not form.problem:
        to = view_of(request, app, f"/apps/{app.id}/funnel", form.pairs()).link()
        return go(f"{to}#step{form.focus}" if form.focus else to)
    return await _page(request, app, "funnel", ("funnel",), form.problem, form=form, units=UNITS)


@get("/apps/{app_id:str}/panels/{name:str}")
async def panel(request: AnyRequest, app: OurApp, name: FromPath[str]) -> Response[bytes]:
    """One panel of a page."""
    if name not in PANELS:
        raise NotFoundException
    pairs = pairs_of(request)
    asked = dict(pairs)
    page = asked.get("page", "")
    open_page = pairs_in(request.headers.get("hx-current-url", "").partition("?")[2].partition("#")[0])
    path = f"/apps/{app.id}/{page}" if page in _PAGES else f"/apps/{app.id}"
    view = view_of(request, app, path, _own(page, pairs, open_page))
    context = await _panel_context(view, request.app.state.event_store, name, asked)
    if name in ("fields", "values", "properties"):
        return await render(request, "app/_options.html", **context)
    response = await render(request, f"app/_{name}.html", **context)
    if is_htmx(request) and _chosen(asked):
        replace_address(response, view.link())
    return response


@get("/account/usage")
async def limit_used(request: AnyRequest, viewer: Viewer) -> Response[bytes]:
    """How much of the tenant's limit is used."""
    apps = await list_apps(viewer.tenant)
    hour, day = await usage(viewer.tenant, apps, request.app.state.event_store, datetime.now(UTC))
    template = "app/_usage.html" if is_htmx(request) else "account/usage.html"
    return await render(request, template, tab="", tenant=viewer.tenant, hour=hour, day=day)


handlers = [
    events_page,
    waiting,
    revenue_page,
    retention_page,
    funnel_page,
    rejected_page,
    panel,
    limit_used,
]
