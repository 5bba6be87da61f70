"""What people may ask of a tenant about themselves: all that is known of them as a file, and its deletion."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from litestar import Response, get, post
from litestar.params import FromPath
from litestar.response import Stream

from tenants.audiences import list_audiences
from tenants.deletions import delete_person, find_person, going_since
from tenants.errors import Busy
from tenants.identifiers import Known, known
from tenants.person_exports import export_person
from tenants.tables import App
from web.downloads import streamed
from web.forms import is_name, text
from web.guards import AnyRequest, Member, OurApp
from web.rendering import NOTICES, go, render

NOTICES["person-deleted"] = "The person is deleted. What they did goes within minutes: see the receipt below."


_PRESSED_TWICE = timedelta(minutes=1)


@get("/apps/{app_id:str}/people/{person_id:str}/export")
async def export(
    request: AnyRequest, member: Member, app: OurApp, person_id: FromPath[str]
) -> Response[bytes] | Stream:
    """All that is known of the person, as JSON."""
    del member
    store = request.app.state.event_store
    person = await find_person(app, store, person_id)
    try:
        parts = await export_person(app, store, person, datetime.now(UTC))
    except Busy:
        detail = "Other exports are running. Wait until one is done, then try again."
        return await render(request, "error.html", 429, title="No export", detail=detail)
    return streamed(parts, "application/json", f"person-{person}.json")


async def _ask(request: AnyRequest, app: App, person: UUID, status: int = 200, typed: str = "") -> Response[bytes]:
    found = (await known(app, [person])).get(person)
    errors = {"sure": "Type it as it stands above."} if status != 200 else {}
    return await render(
        request,
        "people/delete.html",
        status,
        app=app,
        tab="people",
        person=person,
        known=found,
        audiences=await list_audiences(app) if found else [],
        sure=_to_type(found),
        typed=typed,
        errors=errors,
    )


def _to_type(found: Known | None) -> str:
    """What somebody types to be sure: who it is, where that is known."""
    named = [*found.emails, *found.uuids, *found.fbids] if found else []
    return named[0] if named else "delete"


@get("/apps/{app_id:str}/people/{person_id:str}/delete")
async def delete_page(request: AnyRequest, member: Member, app: OurApp, person_id: FromPath[str]) -> Response[bytes]:
    """Says what goes, and asks to be sure."""
    del member
    person = await find_person(app, request.app.state.event_store, person_id)
    return await _ask(request, app, person)


@post("/apps/{app_id:str}/people/{person_id:str}/delete")
async def delete(request: AnyRequest, member: Member, app: OurApp, person_id: FromPath[str]) -> Response[bytes]:
    """Delete the person, once it was typed who."""
    person = await find_person(app, request.app.state.event_store, person_id)
    now = datetime.now(UTC)
    if (since := await going_since(app, person)) is not None and now - since < _PRESSED_TWICE:
        return _deleted(app)
    typed = text(await request.form(), "sure")
    if not is_name(typed, _to_type((await known(app, [person])).get(person))):
        return await _ask(request, app, person, 422, typed)
    await delete_person(app, person, member.user.name, now)
    return _deleted(app)


def _deleted(app: App) -> Response[bytes]:
    # Not to the receipt itself: what is said here stands at the top of the page.
    return go(f"/apps/{app.id}/settings", "person-deleted")


handlers = [export, delete_page, delete]
