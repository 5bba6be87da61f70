"""Every page, in the order of the menu."""

from collections.abc import Sequence

from litestar.types import ControllerRouterHandler

from web.pages import dashboards, live, snippet

PAGES: Sequence[ControllerRouterHandler] = [*dashboards.handlers, *live.handlers, *snippet.handlers]
