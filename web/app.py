"""The Litestar application: the JSON API and its documentation. (Pixels never come here: server/pixel.py.)"""

import sqlite3
from pathlib import Path
from typing import Any

import asyncpg  # pyright: ignore[reportMissingTypeStubs]
import structlog
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from litestar import Litestar, MediaType, Request, Response, get
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.response import Redirect
from litestar.static_files import create_static_files_router  # pyright: ignore[reportUnknownVariableType]

from tenants.errors import InvalidValue, NotFound, Unavailable
from tenants.events import Queries
from web.api import api

log = structlog.get_logger()

_HERE = Path(__file__).parent
_templates = Environment(
    loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)

# Everything a page needs comes from here; nothing may frame it, no script runs in it.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class _ReferencePage(OpenAPIRenderPlugin):
    """The API's reference as a plain page: no script, so it works under the strict policy and everywhere."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        page = _templates.get_template("api_reference.html")
        return page.render(schema=openapi_schema, site=request.app.state.public_url).encode()


@get("/", include_in_schema=False, status_code=302)
async def home() -> Redirect:
    """Where somebody who opens the address in a browser finds what to do next."""
    return Redirect("/api/docs")


def create_app(event_store: Queries, public_url: str, version: str) -> Litestar:
    """The application over an event store; the control database is bound to the tables already."""
    return Litestar(
        [home, api, create_static_files_router("/static", [_HERE / "static"], include_in_schema=False)],
        state=State({"event_store": event_store, "public_url": public_url}),
        exception_handlers={
            NotFound: _not_found,
            InvalidValue: _invalid,
            Unavailable: _unavailable,
            # What the drivers of the control database raise while it is away.
            sqlite3.Error: _unavailable,
            asyncpg.PostgresError: _unavailable,
            asyncpg.InterfaceError: _unavailable,
            OSError: _unavailable,
            HTTPException: _http_error,
            Exception: _failed,
        },
        openapi_config=OpenAPIConfig(
            title="onepx API",
            version=version,
            description="Read back what your pixels recorded. Every request carries an API key of your tenant.",
            path="/api/docs",
            render_plugins=[_ReferencePage(path="/"), JsonRenderPlugin(path="/openapi.json")],
            use_handler_docstrings=True,
            components=Components(
                security_schemes={"API key": SecurityScheme(type="http", scheme="bearer")},
            ),
        ),
        # A request body is never large here; forms and keys are small.
        request_max_body_size=1024**2,
        before_send=[_add_page_headers],
        logging_config=None,
    )


async def _add_page_headers(message: Any, _scope: Any) -> None:
    if message["type"] == "http.response.start":
        present = {name.lower() for name, _ in message["headers"]}
        message["headers"] = [
            *message["headers"],
            *((n.lower().encode(), v.encode()) for n, v in _PAGE_HEADERS.items() if n.lower().encode() not in present),
        ]


def _problem(status: int, detail: str, headers: dict[str, str] | None = None, **more: Any) -> Response[dict[str, Any]]:
    content = {"status_code": status, "detail": detail, **more}
    return Response(content, status_code=status, media_type=MediaType.JSON, headers=headers)


def _not_found(_request: Request[Any, Any, Any], _error: Exception) -> Response[dict[str, Any]]:
    return _problem(404, "There is nothing here, or not for this API key.")


def _invalid(_request: Request[Any, Any, Any], error: InvalidValue) -> Response[dict[str, Any]]:
    return _problem(400, str(error), field=error.field)


def _unavailable(_request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    log.warning("request cannot be answered now", error=type(error).__name__)
    return _problem(503, "A database does not answer right now; hits are kept meanwhile.", {"Retry-After": "10"})


def _http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, Any]]:
    if error.status_code == 404:
        return _not_found(request, error)
    if error.status_code >= 500:
        return _failed(request, error)
    more = {"extra": error.extra} if error.extra else {}
    return _problem(error.status_code, error.detail, dict(error.headers or {}), **more)


def _failed(_request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    log.error("request failed", exc_info=error)
    return _problem(500, "Something went wrong on our side; it was logged.")
