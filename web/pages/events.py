"""An app's events one by one: those of a period that the filters leave, a page at a time."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec
from litestar import Response, get

from tenants.errors import InvalidValue
from tenants.events import recent_events
from tenants.identifiers import known
from web.guards import AnyRequest, OurApp
from web.rendering import go, render
from web.view import adding, pairs_of, view_of

_PAGE = 50
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


@get("/apps/{app_id:str}/events")
async def event_list(request: AnyRequest, app: OurApp) -> Response[bytes]:
    """Newest first; `older` and `newer` are cursors that an earlier page gave."""
    pairs = pairs_of(request)
    view, filters = adding(view_of(request, app, f"/apps/{app.id}/events"), pairs)
    if filters is not None:
        return go(view.link(filters))
    asked = dict(pairs)
    newer = asked.get("newer", "")
    cursor = newer or asked.get("older", "")
    try:
        page = await recent_events(
            app,
            request.app.state.event_store,
            period=view.period,
            filters=view.filters,
            limit=_PAGE,
            cursor=cursor or None,
            newer=bool(newer),
        )
    except InvalidValue as error:
        if error.field != "cursor":
            raise
        # Half of a link that somebody passed on.
        return go(view.link())
    if newer and page.newer is None:
        # So the newest ones have one address, and fill their page.
        return go(view.link())
    return await render(
        request,
        "app/event_list.html",
        app=app,
        tab="event-list",
        view=view,
        events=[shown(row) for row in page.rows],
        names=await known(app, {row["person_id"] for row in page.rows if row["person_id"]}),
        older=page.next,
        newer=page.newer,
        cursor=cursor,
    )


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """An event of the API's, with its time and its values as pages show them."""
    return row | {
        "received_at": datetime.fromisoformat(row["received_at"]),
        "values": list(_values(bytes(row["params"]), "")),
    }


def text_of(value: str) -> str:
    """A JSON text itself, anything else as JSON."""
    return msgspec.json.decode(value, type=str) if value.startswith('"') else value


def _values(params: bytes, inside: str) -> Iterator[tuple[str, str]]:
    """The custom values one by one, those within objects by their path, as fields are named (`address.city`)."""
    for name, value in _fields.decode(params).items():
        raw = bytes(value)
        if raw.startswith(b"{") and raw != b"{}":
            yield from _values(raw, f"{inside}{name}.")
        else:
            yield inside + name, text_of(raw.decode())


handlers = [event_list]
