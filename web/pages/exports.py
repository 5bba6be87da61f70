"""All events of a view as a file, streamed."""

from litestar import Response, get
from litestar.response import Stream

from tenants.errors import Busy
from tenants.exports import MEDIA_TYPES
from web.downloads import events_file
from web.guards import AnyRequest, OurApp, Viewer
from web.rendering import render
from web.view import view_of


@get("/apps/{app_id:str}/export")
async def download(request: AnyRequest, app: OurApp, viewer: Viewer) -> Response[bytes] | Stream:
    """The events of the period that the filters leave, as CSV or Parquet."""
    view = view_of(request, app, f"/apps/{app.id}")
    wanted = request.query_params.get("format", "csv")
    if view.problem or wanted not in MEDIA_TYPES:
        # Never a file of other events than were asked for.
        return await _refused(request, 400, view.problem or "Choose csv or parquet as the format.")
    store = request.app.state.event_store
    try:
        return await events_file(app, store, view.period, view.filters, wanted, masked=not viewer.may_change)
    except Busy:
        return await _refused(request, 429, "Other exports are running. Wait until one is done, then try again.")


async def _refused(request: AnyRequest, status: int, detail: str) -> Response[bytes]:
    return await render(request, "error.html", status, title="No export", detail=detail)


handlers = [download]
