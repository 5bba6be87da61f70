"""An app's Custom Audiences: who is in them, pushing them to Meta, and the file for Meta's upload form."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import UTC, datetime
from urllib.parse import urlencode

import msgspec
from litestar import Response, get, post
from litestar.datastructures import FormMultiDict
from litestar.params import FromPath
from litestar.response import Stream

from tenants import audiences
from tenants.audience_members import count_matching, members, people_of, upload_form
from tenants.currencies import MINOR_UNITS
from tenants.errors import Busy, InvalidValue
from tenants.facebook import facebook_app_id
from tenants.reports.segments import MAX_CONDITIONS, Condition, Did, Earned, Is, Segment, did, earned, is_, segment_of
from tenants.tables import App, Audience
from tenants.typed_money import read_money
from web.downloads import plain, streamed
from web.forms import merged, shown_again, text
from web.guards import AnyRequest, Member, OurApp, Viewer
from web.pages.people import in_words
from web.rendering import NOTICES, go, plain_money, render

NOTICES.update(
    {
        "audience-made": "The audience is there. Push it, or download it.",
        "audience-saved": "Saved. It counts from the next push on.",
        "audience-anew": "Saved. The push that was going on begins anew with it.",
        "audience-removed": "The audience is removed here. Who is in it at Meta stays there.",
        "audience-pushed": "It is being pushed.",
        "audience-running": "It is being pushed already.",
    }
)

KINDS = (
    ("", "no condition"),
    ("did", "did the event"),
    ("revenue", "brought more than"),
    ("person", "has the property"),
)
_NAMED = {"did": "Name the event.", "revenue": "Name the currency, such as EUR.", "person": "Name the property."}
# Empty rows of a form, for conditions to come.
_MORE_ROWS = 2


class ConditionRow(msgspec.Struct):
    """A line of the form: `what` is an event token, a currency or a property, `value` how often, how much, which."""

    kind: str = ""
    what: str = ""
    value: str = ""


def _rows(segment: Segment) -> list[ConditionRow]:
    rows: list[ConditionRow] = []
    for condition in segment.conditions:
        match condition:
            case Did(token, times):
                rows.append(ConditionRow("did", token, str(times)))
            case Earned(currency, above):
                # Of three decimals `5.000` could be five thousand: one more says what it is.
                more = "0" if MINOR_UNITS.get(currency) == 3 else ""
                rows.append(ConditionRow("revenue", currency, plain_money(above, currency).replace(",", "") + more))
            case Is(field, value):
                rows.append(ConditionRow("person", field.removeprefix("person."), value))
    return rows


def _typed_rows(form: FormMultiDict) -> list[ConditionRow]:
    columns = [[str(value) for value in form.getall(name, [])] for name in ("kind", "what", "value")]
    rows = [ConditionRow(*(value.strip() for value in row)) for row in zip(*columns, strict=False)]
    # One without a kind was taken away: what its hidden fields still hold does not count.
    return [row for row in rows if row.kind][:MAX_CONDITIONS]


def _segment(rows: Sequence[ConditionRow]) -> Segment:
    """Raises InvalidValue for the first row that cannot be used, as `segment`."""
    segment = Segment()
    for number, row in enumerate(rows, 1):
        try:
            segment = segment.with_(_condition(row))
        except InvalidValue as error:
            raise InvalidValue("segment", f"Condition {number}: {error}") from None
    return segment


def _condition(row: ConditionRow) -> Condition:
    # Half a condition left out would be an audience of everybody, or of many more than were meant.
    if not row.what and row.kind in _NAMED:
        raise InvalidValue("what", _NAMED[row.kind])
    if row.kind == "did":
        return did(row.what, row.value or "1")
    if row.kind == "revenue":
        currency = row.what.upper()
        if currency not in MINOR_UNITS:
            raise InvalidValue("currency", "A currency is an ISO 4217 code such as EUR.")
        if not row.value:
            raise InvalidValue("value", "Say more than how much; 0 is everybody who brought anything.")
        return earned(currency, str(read_money(row.value, currency)))
    if row.kind == "person":
        if not row.value:
            raise InvalidValue("value", "Say what the property is.")
        return is_(f"person.{row.what}{'.' * row.what.endswith('!')}", row.value)
    raise InvalidValue("kind", "Choose what it is about.")


@get("/apps/{app_id:str}/audiences")
async def list_page(request: AnyRequest, viewer: Viewer, app: OurApp) -> Response[bytes]:
    """All of the app's audiences, with how the last push went."""
    del viewer
    listed = await audiences.list_audiences(app)
    last = await audiences.last_runs(listed)
    return await render(
        request,
        "audiences/list.html",
        app=app,
        tab="audiences",
        audiences=[(each, _words(each), last.get(each.id)) for each in listed],
    )


def _words(audience: Audience) -> list[str]:
    return [in_words(condition) for condition in audiences.segment_kept(audience).conditions]


def _kept(audience: Audience) -> dict[str, str]:
    """What the audience is, as its form sends it; its conditions in words."""
    return {
        "name": audience.name,
        "audience_id": audience.audience_id,
        "daily": "1" if audience.daily_at else "",
        "segment": _in_one(audiences.segment_kept(audience)),
    }


def _in_one(segment: Segment) -> str:
    # In the order of an address, which is that of what is kept.
    return ", ".join(map(in_words, segment_of(segment.pairs()).conditions)) or "everybody known"


async def _form(
    request: AnyRequest,
    app: App,
    audience: Audience | None,
    form: dict[str, str],
    rows: Sequence[ConditionRow],
    error: InvalidValue | None = None,
    shown: str = "",
) -> Response[bytes]:
    empty = [ConditionRow() for _ in range(min(_MORE_ROWS, MAX_CONDITIONS - len(rows)))]
    return await render(
        request,
        "audiences/form.html",
        422 if error else 200,
        app=app,
        tab="audiences",
        audience=audience,
        form=form,
        rows=[*rows, *empty],
        kinds=KINDS,
        shown=shown,
        errors={error.field: str(error)} if error else {},
    )


def _typed(form: FormMultiDict) -> dict[str, str]:
    """What comes back when something is wrong: not the token."""
    return {name: text(form, name) for name in ("name", "audience_id", "daily")}


@get("/apps/{app_id:str}/audiences/new")
async def new_page(request: AnyRequest, member: Member, app: OurApp) -> Response[bytes]:
    """The form of a new audience, of the segment that the address asks for."""
    del member
    form = {"name": "", "audience_id": "", "daily": ""}
    return await _form(request, app, None, form, _rows(segment_of(list(request.query_params.multi_items()))))


@post("/apps/{app_id:str}/audiences/new")
async def create(request: AnyRequest, member: Member, app: OurApp) -> Response[bytes]:
    """Make it; nothing is pushed yet unless it is daily."""
    del member
    form = await request.form()
    typed, rows = _typed(form), _typed_rows(form)
    key = request.app.state.facebook_key
    now = datetime.now(UTC)
    try:
        audience = await audiences.create(
            app,
            key,
            typed["name"],
            typed["audience_id"],
            text(form, "audience_token"),
            _segment(rows),
            typed["daily"] == "1",
            now,
        )
    except InvalidValue as error:
        return await _form(request, app, None, typed, rows, error)
    return go(f"/apps/{app.id}/audiences/{audience.id}", "audience-made")


@get("/apps/{app_id:str}/audiences/{audience_id:int}")
async def page(request: AnyRequest, viewer: Viewer, app: OurApp, audience_id: FromPath[int]) -> Response[bytes]:
    """One audience and its runs."""
    del viewer
    return await _page(request, app, audience_id, "audiences/page.html")


@get("/apps/{app_id:str}/audiences/{audience_id:int}/count")
async def count_panel(request: AnyRequest, viewer: Viewer, app: OurApp, audience_id: FromPath[int]) -> Response[bytes]:
    """How many people it has by now: to be seen before a push, and too slow for the page itself."""
    del viewer
    audience = await audiences.find(app, audience_id)
    counted = await count_matching(app, request.app.state.event_store, audiences.segment_kept(audience))
    return await render(request, "audiences/_count.html", app=app, audience=audience, counted=counted)


@get("/apps/{app_id:str}/audiences/{audience_id:int}/runs")
async def runs_panel(request: AnyRequest, viewer: Viewer, app: OurApp, audience_id: FromPath[int]) -> Response[bytes]:
    """Its runs alone, fetched again while one goes on."""
    del viewer
    return await _page(request, app, audience_id, "audiences/_runs.html")


async def _page(request: AnyRequest, app: App, audience_id: int, template: str) -> Response[bytes]:
    audience = await audiences.find(app, audience_id)
    runs = await audiences.runs(audience)
    due_at = runs[0].due_at if runs else None
    return await render(
        request,
        template,
        app=app,
        tab="audiences",
        audience=audience,
        conditions=_words(audience),
        runs=runs,
        connected=await facebook_app_id(app) is not None,
        goes_on=due_at and datetime.fromtimestamp(due_at / 1000, UTC),
    )


@get("/apps/{app_id:str}/audiences/{audience_id:int}/change")
async def change_page(request: AnyRequest, member: Member, app: OurApp, audience_id: FromPath[int]) -> Response[bytes]:
    """The form with what it is now."""
    del member
    audience = await audiences.find(app, audience_id)
    kept = _kept(audience)
    return await _form(request, app, audience, kept, _rows(audiences.segment_kept(audience)), shown=urlencode(kept))


@post("/apps/{app_id:str}/audiences/{audience_id:int}/change")
async def change(request: AnyRequest, member: Member, app: OurApp, audience_id: FromPath[int]) -> Response[bytes]:
    """Keep what the form says; an empty token leaves the one there is."""
    del member
    audience = await audiences.find(app, audience_id)
    form = await request.form()
    typed, rows = _typed(form), _typed_rows(form)
    key = request.app.state.facebook_key
    token = text(form, "audience_token")
    now = datetime.now(UTC)
    try:
        segment, kept = _segment(rows), _kept(audience)
        values = merged(form, typed | {"segment": _in_one(segment)}, kept)
        anew = await audiences.change(
            app,
            key,
            audience,
            name=values["name"],
            audience_id=values["audience_id"],
            token=token,
            segment=audiences.segment_kept(audience) if values["segment"] == kept["segment"] else segment,
            daily=values["daily"] == "1",
            now=now,
        )
    except InvalidValue as error:
        return await _form(request, app, audience, typed, rows, error, shown_again(form, error))
    return go(f"/apps/{app.id}/audiences/{audience.id}", "audience-anew" if anew else "audience-saved")


@post("/apps/{app_id:str}/audiences/{audience_id:int}/push")
async def push(member: Member, app: OurApp, audience_id: FromPath[int]) -> Response[bytes]:
    """Have it pushed in the background; pressed twice, it is pushed once."""
    del member
    audience = await audiences.find(app, audience_id)
    begun = await audiences.request_run(audience, datetime.now(UTC))
    return go(f"/apps/{app.id}/audiences/{audience.id}", "audience-pushed" if begun else "audience-running")


@post("/apps/{app_id:str}/audiences/{audience_id:int}/remove")
async def remove(member: Member, app: OurApp, audience_id: FromPath[int]) -> Response[bytes]:
    """Forget it, its token and its runs."""
    del member
    await audiences.remove(app, await audiences.find(app, audience_id))
    return go(f"/apps/{app.id}/audiences", "audience-removed")


@get("/apps/{app_id:str}/audiences/{audience_id:int}/download")
async def download(
    request: AnyRequest, member: Member, app: OurApp, audience_id: FromPath[int]
) -> Response[bytes] | Stream:
    """Its people as the CSV that Meta's upload form takes."""
    del member
    audience = await audiences.find(app, audience_id)
    return await _download(request, app, audiences.segment_kept(audience), audience.name)


@get("/apps/{app_id:str}/audiences/download")
async def download_segment(request: AnyRequest, member: Member, app: OurApp) -> Response[bytes] | Stream:
    """The people of a segment as the same file, for whoever has made no audience of them."""
    del member
    return await _download(request, app, segment_of(list(request.query_params.multi_items())), f"{app.name} people")


async def _download(request: AnyRequest, app: App, segment: Segment, name: str) -> Response[bytes] | Stream:
    store = request.app.state.event_store
    try:
        form = upload_form(members(app, store, await people_of(app, store, segment)))
        # Begun before anything is sent: what fails then can still be told.
        first = await anext(form)
    except Busy:
        detail = "Other exports are running. Wait until one is done, then try again."
        return await render(request, "error.html", 429, title="No download", detail=detail)
    file = f"{plain(name) or 'audience'}-{datetime.now(UTC):%Y-%m-%d}.csv"
    return streamed(_sent(first, form), "text/csv", file)


async def _sent(first: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


handlers = [
    list_page,
    new_page,
    create,
    page,
    count_panel,
    runs_panel,
    change_page,
    change,
    push,
    remove,
    download,
    download_segment,
]
