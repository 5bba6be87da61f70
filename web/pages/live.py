"""An app's hits as they are digested, each beside the query it came with."""

from collections.abc import Mapping
from typing import Any, cast, get_args

import msgspec
from litestar import Response, get

from tenants.errors import InvalidValue
from tenants.hits import Category
from tenants.live import Kind, LiveHits, newest
from tenants.tables import App
from web.guards import AnyRequest, OurApp
from web.rendering import render

_FIRST = 50


class Asked(msgspec.Struct, frozen=True):
    """Which hits: all, where nothing is given."""

    kind: Kind | None = None
    category: Category | None = None
    event_token: str | None = None
    text: str | None = None

    def query(self) -> dict[str, str]:
        """The parameters that ask for the same."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value}


def _asked(values: Mapping[str, str]) -> Asked:
    """What cannot be meant is left out: the form offers nothing of the kind."""
    kind, category = values.get("kind"), values.get("category")
    return Asked(
        cast("Kind", kind) if kind in get_args(Kind) else None,
        cast("Category", category) if category in get_args(Category) else None,
        values.get("event_token", "").strip()[:255] or None,
        values.get("text", "").strip()[:255] or None,
    )


async def _hits(request: AnyRequest, app: App, asked: Asked, after: str | None) -> LiveHits:
    return await newest(
        app,
        request.app.state.event_store,
        after=after,
        kind=asked.kind,
        category=asked.category,
        event_token=asked.event_token,
        text=asked.text,
        limit=_FIRST,
    )


async def _show(request: AnyRequest, app: App, template: str, after: str | None) -> Response[bytes]:
    asked = _asked(dict(request.query_params.multi_items()))
    found = await _hits(request, app, asked, after)
    context: dict[str, Any] = {"app": app, "tab": "live", "asked": asked, "found": found, "pretty": pretty}
    return await render(request, template, **context)


def pretty(params: str) -> str:
    """JSON text, a field a line."""
    return msgspec.json.format(params, indent=2)


@get("/apps/{app_id:str}/live")
async def live_page(request: AnyRequest, app: OurApp) -> Response[bytes]:
    """The newest hits, and the place where newer ones appear."""
    return await _show(request, app, "app/live.html", None)


@get("/apps/{app_id:str}/live/newer")
async def newer(request: AnyRequest, app: OurApp) -> Response[bytes]:
    """Hits that appeared since the cursor `after`: asked every second."""
    after = request.query_params.get("after")
    if not after:
        raise InvalidValue("after", "Load the page again: this address is for pages that are open.")
    return await _show(request, app, "app/_newer.html", after)


handlers = [live_page, newer]
