"""The Litestar application: pages, the JSON API and its documentation. (Pixels never come here: server/pixel.py.)"""

import math
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg  # pyright: ignore[reportMissingTypeStubs]
import msgspec
import structlog
from litestar import Litestar, MediaType, Request, Response, Router
from litestar.config.compression import CompressionConfig
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.middleware import DefineMiddleware
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.status_codes import HTTP_405_METHOD_NOT_ALLOWED, HTTP_413_REQUEST_ENTITY_TOO_LARGE
from litestar.types import Scope

from tenants.errors import Busy, InvalidValue, NotFound, TooManyTries, Unavailable
from tenants.events import Queries
from tenants.facebook import facebook_key
from tenants.known_browsers import known_browser_key
from web.api import api, described
from web.assets import Assets, static
from web.guards import (
    DEPENDENCIES,
    AnyRequest,
    Forbidden,
    FormRequest,
    LoginNeeded,
    OtherAccount,
    asked_for,
    login_address,
    secrets_again,
    sent_again,
)
from web.origin import SameOrigin
from web.pages import PAGES
from web.rendering import common, is_htmx, render_now, templates

log = structlog.get_logger()

_AWAY = "A database does not answer right now; hits are kept meanwhile."
_BUG = "Something went wrong on our side; it was logged."
# Files have their own; an export is streamed; and a thousand hits are 8 MB, which would stop the loop that takes hits
# for a fifth of a second.
_NOT_COMPRESSED = ["^/static/", "/export$", "/download$", "^/api/v1/apps/[^/]+/(events|rejections)$"]


def create_app(
    event_store: Queries,
    *,
    public_url: str,
    version: str,
    secret_key: str,
    pixel_url: str = "",
    signup: bool = True,
    client_address: Callable[[Scope], str] = lambda scope: scope["client"][0] if scope["client"] else "",
) -> Litestar:
    """The application over an event store; the control database is bound to the tables already.

    `secret_key` encrypts what must be read again, and tells known browsers; `signup` is whether strangers may make
    accounts. `client_address` tells whose request it is, through whatever proxies are trusted.
    """
    pixel_url = pixel_url or public_url
    state = State(
        {
            "event_store": event_store,
            "public_url": public_url,
            "pixel_url": pixel_url,
            "signup": signup,
            "secure": public_url.startswith("https:"),
            "client_address": client_address,
            "facebook_key": facebook_key(secret_key),
            "known_browser_key": known_browser_key(secret_key),
            "assets": Assets(),
            # Those whose first hit was seen.
            "apps_hit": set[UUID](),
        }
    )
    pages = Router("/", route_handlers=PAGES, dependencies=DEPENDENCIES, include_in_schema=False)
    return Litestar(
        [pages, api, static],
        state=state,
        request_class=FormRequest,
        middleware=[DefineMiddleware(SameOrigin, public_url=public_url)],
        compression_config=CompressionConfig(backend="gzip", gzip_compress_level=5, exclude=_NOT_COMPRESSED),
        exception_handlers={
            LoginNeeded: _login_needed,
            Forbidden: _forbidden,
            OtherAccount: _other_account,
            NotFound: _not_found,
            InvalidValue: _invalid,
            TooManyTries: _too_many_tries,
            Busy: _busy,
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
            description="Read back what your pixels recorded, and delete people for good. "
            "Every request carries an API key of your tenant.",
            path="/api/docs",
            render_plugins=[_ReferencePage(), _ReferenceFile()],
            use_handler_docstrings=True,
            components=Components(
                security_schemes={"api_key": SecurityScheme(type="http", scheme="bearer")},
            ),
        ),
        # Forms are read on the loop that takes hits, where a megabyte is a second; ours need little more than a hit.
        request_max_body_size=64 * 1024,
        before_send=[_page_headers(pixel_url)],
        logging_config=None,
    )


class _ReferencePage(OpenAPIRenderPlugin):
    """The API's reference as a plain page: no script, so it works under the strict policy and everywhere.

    Made once for those who have a session's cookie, and once for others: it takes as long as a hundred hits.
    """

    def __init__(self) -> None:
        super().__init__(path="/")
        self._made: dict[tuple[bool, bool], bytes] = {}

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        context = common(cast("AnyRequest", request)) | {"notice": None, "indented": _indented}
        kind = bool(context["inside"]), bool(context["signup"])
        if kind not in self._made:
            page = templates.get_template("api_reference.html")
            self._made[kind] = page.render(context, schema=described(openapi_schema)).encode()
        return self._made[kind]


def _indented(example: Any) -> str:
    if isinstance(example, str):  # a file's
        return example
    return msgspec.json.format(msgspec.json.encode(example), indent=2).decode()


class _ReferenceFile(JsonRenderPlugin):
    """The same for tools."""

    def __init__(self) -> None:
        super().__init__(path="/openapi.json")
        self._made: bytes | None = None

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        if self._made is None:
            self._made = super().render(request, described(openapi_schema))
        return self._made


def _page_headers(pixel_url: str) -> Any:
    """Everything a page needs comes from here, but for pixels; nothing may frame it, no foreign script runs in it."""
    parts = urlsplit(pixel_url)
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' {parts.scheme}://{parts.netloc}; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    headers = [
        (b"content-security-policy", policy.encode()),
        (b"referrer-policy", b"same-origin"),
        (b"x-content-type-options", b"nosniff"),
        (b"cross-origin-opener-policy", b"same-origin"),
        # Where an answer says nothing else: redirections, and all that the API tells.
        (b"cache-control", b"no-store"),
    ]

    async def add(message: Any, _scope: Any) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(pair for pair in headers if pair[0] not in present)]

    return add


def _problem(
    request: Request[Any, Any, Any],
    status: int,
    detail: str,
    headers: dict[str, str] | None = None,
    title: str = "That did not work",
    **more: Any,
) -> Response[Any]:
    """JSON for the API; for people a page, or the fragment that stands where theirs would have stood."""
    if request.url.path.startswith("/api/"):
        content = {"status_code": status, "detail": detail, **more}
        return Response(content, status_code=status, media_type=MediaType.JSON, headers=headers)
    request = cast("AnyRequest", request)
    template = "_error.html" if is_htmx(request) else "error.html"
    # Where trying again helps, nobody has to type it again.
    sent = sent_again(request) if status in (401, 409, 429, 503) else []
    secret = secrets_again(request) if sent else {}
    response = render_now(
        request,
        template,
        status,
        title=title,
        detail=detail,
        sent=sent,
        secret=secret,
        address=asked_for(request),
        log_in=status == 401,
    )
    response.headers.update(headers or {})
    if request.headers.get("hx-target") == "main":
        # The form that asked would look for a new page in this, and put nothing in the old one's place.
        response.headers.update({"HX-Reselect": ".notice", "HX-Reswap": "afterbegin"})
    return response


def _login_needed(request: AnyRequest, _error: Exception) -> Response[Any]:
    if is_htmx(request):
        # The whole page has to go there, not a part of it.
        return Response(b"", status_code=401, headers={"HX-Refresh": "true"})
    if sent_again(request):
        detail = "So nothing was changed. Log in in a new tab, then send it again from here: what you typed is kept."
        return _problem(request, 401, detail, title="Your session has ended")
    return Response(b"", status_code=303, headers={"Location": login_address(request)})


def _forbidden(request: AnyRequest, error: Exception) -> Response[Any]:
    return _problem(request, 403, str(error), title="Not with your role")


def _other_account(request: AnyRequest, error: Exception) -> Response[Any]:
    return _problem(request, 409, str(error), title="Another account is shown")


def _not_found(request: Request[Any, Any, Any], _error: Exception) -> Response[Any]:
    if request.url.path.startswith("/api/"):
        return _problem(request, 404, "There is nothing here, or not for this API key.")
    title, detail = "Not found", "There is nothing at this address, or it is not yours."
    if request.method == "POST":
        # A page that was open for a while, or a second click.
        title = "Not there any more"
        detail = "What this form was about is gone: somebody removed it meanwhile, maybe you in another tab."
    if request.url.path.startswith("/apps/"):
        detail += " If you belong to several accounts, switch to the other one at Account, then open it again."
    return _problem(request, 404, detail, title=title)


def _invalid(request: Request[Any, Any, Any], error: InvalidValue) -> Response[Any]:
    return _problem(request, 400, str(error), title="That cannot be used", field=error.field)


def _busy(request: Request[Any, Any, Any], _error: Exception) -> Response[Any]:
    detail = "Too much is asked for at once. Wait a few seconds, then try again."
    return _problem(request, 429, detail, {"Retry-After": "5"}, title="One after the other")


def _too_many_tries(request: Request[Any, Any, Any], error: TooManyTries) -> Response[Any]:
    seconds = max(1, math.ceil((error.until - datetime.now(UTC)).total_seconds()))
    minutes = math.ceil(seconds / 60)
    # In the minute it names, the wait is over.
    at = error.until + timedelta(seconds=59)
    detail = f"Wait {minutes} minute{'' if minutes == 1 else 's'}, until {at:%H:%M} UTC, then try again."
    return _problem(request, 429, detail, {"Retry-After": str(seconds)}, title="Too many tries")


def _unavailable(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    log.warning("request cannot be answered now", error=type(error).__name__)
    return _problem(request, 503, _AWAY, {"Retry-After": "10"}, title="Not right now")


def _http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    if error.status_code == 404:
        return _not_found(request, error)
    if error.status_code >= 500:
        return _failed(request, error)
    detail, more = error.detail, dict[str, Any]()
    if error.status_code == HTTP_413_REQUEST_ENTITY_TOO_LARGE:
        detail = "This is longer than anything that can be kept. Go back and shorten what you typed."
    if error.status_code == HTTP_405_METHOD_NOT_ALLOWED and request.method == "GET":
        # What is wrong with a form stands at the address that it is sent to: reloaded later, that has no page.
        detail = "Forms are sent to this address; it shows nothing by itself. Go back to the page with the form."
    if isinstance(error.extra, list) and error.extra:
        # Litestar's own checks of parameters are told as ours are.
        wrong = cast("list[dict[str, str]]", error.extra)[0]
        detail, more = f"{wrong['key']}: {wrong['message']}", {"field": wrong["key"]}
    return _problem(request, error.status_code, detail, dict(error.headers or {}), **more)


def _failed(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    log.error("request failed", exc_info=error)
    return _problem(request, 500, _BUG, title="Our mistake")
