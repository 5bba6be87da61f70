"""Every page, in the order of the menu."""

from collections.abc import Sequence

from litestar.types import ControllerRouterHandler

from web.pages import (
    account,
    accounts,
    apps,
    audiences,
    dashboards,
    events,
    exports,
    facebook,
    landing,
    live,
    people,
    personal_data,
    snippet,
)

PAGES: Sequence[ControllerRouterHandler] = [
    *landing.handlers,
    *accounts.handlers,
    *apps.handlers,
    *facebook.handlers,
    *audiences.handlers,
    *dashboards.handlers,
    *events.handlers,
    *live.handlers,
    *people.handlers,
    *snippet.handlers,
    *exports.handlers,
    *personal_data.handlers,
    *account.handlers,
]
