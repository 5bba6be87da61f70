"""Who asks the API, and for what: the tenant of the key, its app, the page of a list."""

from typing import Annotated, Any

from litestar import Request
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.exceptions import NotAuthorizedException
from litestar.openapi.spec import Example
from litestar.params import Parameter, SkipValidation
from litestar.types import ASGIApp, Receive, Scope, Send

from tenants.apps import app_by_token
from tenants.errors import NotFound
from tenants.keys import find_key
from tenants.person_exports import Store
from tenants.tables import ApiKey, App

# Made by this module's own functions: nothing to validate.
GivenApp = NamedDependency[SkipValidation[App]]
GivenKey = NamedDependency[SkipValidation[ApiKey]]
GivenStore = NamedDependency[SkipValidation[Store]]
Limit = Annotated[
    int, Parameter(ge=1, le=1000, description="How many to return at most.", examples=[Example(value=100)])
]
Cursor = Annotated[
    str | None,
    Parameter(max_length=64, description="What the page before gave as next; without it the newest are returned."),
]
AppToken = Annotated[
    str, Parameter(description="A token of the app.", examples=[Example(value="0f8a6d5c4b3e2a1908f7e6d5")])
]


async def provide_key(request: Request[Any, Any, State]) -> ApiKey:
    """The API key that the request carries; 401 without one that is valid."""
    scheme, _, plaintext = request.headers.get("authorization", "").partition(" ")
    key = await find_key(plaintext.strip()) if scheme.lower() == "bearer" and plaintext else None
    if key is None:
        raise NotAuthorizedException(
            "Send a valid API key as `Authorization: Bearer …`.", headers={"WWW-Authenticate": "Bearer"}
        )
    return key


async def provide_app(key: GivenKey, app_token: AppToken) -> App:
    """The tenant's app with this token.

    For another tenant's, or another one than the key is of, it raises NotFound, as for one that does not exist.
    """
    app = await app_by_token(key.tenant, app_token)
    if key.app not in (None, app.id):
        raise NotFound
    return app


class SkipEmptyParameters:
    """Middleware: `?category=&limit=` asks for what `?` asks for. A form that is not filled in sends that."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if query := scope.get("query_string"):
            scope["query_string"] = b"&".join(part for part in query.split(b"&") if part.partition(b"=")[2])
        await self._app(scope, receive, send)


def provide_store(state: State) -> Store:
    """The event store this process reads."""
    return state.event_store
