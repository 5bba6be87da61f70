"""All events of a view as a file, streamed."""

import re
import unicodedata
from collections.abc import AsyncIterator

from litestar import Response, get
from litestar.response import Stream

from tenants.errors import Busy
from tenants.exports import MEDIA_TYPES, Format, export
from tenants.tables import App
from web.guards import AnyRequest, OurApp, Viewer
from web.rendering import render
from web.view import View, view_of


@get("/apps/{app_id:str}/export")
async def download(request: AnyRequest, app: OurApp, viewer: Viewer) -> Response[bytes] | Stream:
    """The events of the period that the filters leave, as CSV or Parquet."""
    view = view_of(request, app, f"/apps/{app.id}")
    wanted = request.query_params.get("format", "csv")
    if view.problem or wanted not in MEDIA_TYPES:
        # Never a file of other events than were asked for.
        return await _refused(request, 400, view.problem or "Choose csv or parquet as the format.")
    condition, parameters = view.filters.sql()
    store = request.app.state.event_store
    try:
        rows = await export(
            app, store, view.period.start, view.period.end, condition, parameters, wanted, not viewer.may_change
        )
    except Busy:
        return await _refused(request, 429, "Other exports are running. Wait until one is done, then try again.")
    return Stream(
        _sent(rows),
        media_type=MEDIA_TYPES[wanted],
        headers={
            "Content-Disposition": f'attachment; filename="{file_name(app, view, wanted)}"',
            "Cache-Control": "no-store",
        },
    )


async def _sent(rows: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    # Litestar wants an iterator of its own making; the rows end with it, whoever goes away.
    async for chunk in rows:
        yield chunk


async def _refused(request: AnyRequest, status: int, detail: str) -> Response[bytes]:
    return await render(request, "error.html", status, title="No export", detail=detail)


def file_name(app: App, view: View, format: Format) -> str:
    """`shop-2026-11-01-2026-11-24.csv`."""
    return f"{plain(app.name) or 'events'}-{view.period.first}-{view.period.last}.{format}"


def plain(title: str) -> str:
    """A title as part of a file's name: plain letters only, so that none can break the header."""
    letters = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", letters).strip("-")[:60]


handlers = [download]
