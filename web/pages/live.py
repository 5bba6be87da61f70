"""An app's hits as they are digested, each beside the query it came with."""

from typing import Any, cast, get_args

import msgspec
from litestar import Response, get

from tenants.errors import Busy, InvalidValue, Unavailable
from tenants.identifiers import known
from tenants.live import Kind, newest
from tenants.tables import App
from web.guards import AnyRequest, OurApp, Viewer
from web.rendering import go, render
from web.view import View, adding, address_of_whole, pairs_of, view_of

_FIRST = 50


def _view(request: AnyRequest, app: App) -> View:
    """The filters of all views; and which kind of hits, and what they contain. What cannot be meant is left out."""
    values = dict(request.query_params.multi_items())
    kind, text = values.get("kind", ""), values.get("text", "").strip()[:255]
    own = (("kind", kind if kind in get_args(Kind) else ""), ("text", text))
    return view_of(request, app, f"/apps/{app.id}/live", tuple(pair for pair in own if pair[1]))


async def _context(request: AnyRequest, view: View, after: str | None, masked: bool) -> dict[str, Any]:
    own = dict(view.own)
    kind, text = cast("Kind | None", own.get("kind")), own.get("text")
    store = request.app.state.event_store
    found = await newest(
        view.app, store, after=after, kind=kind, filters=view.filters, text=text, masked=masked, limit=_FIRST
    )
    return {
        "app": view.app,
        "view": view,
        "own": own,
        "found": found,
        "names": await known(view.app, {hit.person_id for hit in found.hits if hit.person_id}),
        "pretty": pretty,
        "failed": "",
        "after": found.cursor,
    }


def pretty(params: str) -> str:
    """JSON text, a field a line."""
    return msgspec.json.format(params, indent=2)


@get("/apps/{app_id:str}/live")
async def live_page(request: AnyRequest, app: OurApp, viewer: Viewer) -> Response[bytes]:
    """The place for the newest hits; they come with it where there is no script."""
    pairs = pairs_of(request)
    view, filters = adding(_view(request, app), pairs)
    if filters is not None:
        return go(view.link(filters))
    context: dict[str, Any] = {"app": app, "view": view, "own": dict(view.own)}
    if view.whole:
        try:
            context = await _context(request, view, None, not viewer.may_change)
        except Unavailable:
            context["failed"] = "Hits cannot be read right now. They are kept meanwhile; reload in a minute."
    return await render(request, "app/live.html", tab="live", whole_address=address_of_whole(view, pairs), **context)


@get("/apps/{app_id:str}/live/hits")
async def hits(request: AnyRequest, app: OurApp, viewer: Viewer) -> Response[bytes]:
    """The newest hits, and what asks for newer ones."""
    context = await _context(request, _view(request, app), None, not viewer.may_change)
    return await render(request, "app/_live.html", **context)


@get("/apps/{app_id:str}/live/newer")
async def newer(request: AnyRequest, app: OurApp, viewer: Viewer) -> Response[bytes]:
    """Hits that appeared since the cursor `after`: asked every second."""
    after = request.query_params.get("after")
    if not after:
        raise InvalidValue("after", "Load the page again: this address is for pages that are open.")
    view = _view(request, app)
    try:
        context = await _context(request, view, after, not viewer.may_change)
    except (Busy, Unavailable):
        # It goes on asking.
        return await render(request, "app/_newer.html", app=app, view=view, own=dict(view.own), found=None, after=after)
    return await render(request, "app/_newer.html", **context)


handlers = [live_page, hits, newer]
