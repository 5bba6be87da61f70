"""Every page, in the order of the menu."""

from collections.abc import Sequence

from litestar.types import ControllerRouterHandler

PAGES: Sequence[ControllerRouterHandler] = []
