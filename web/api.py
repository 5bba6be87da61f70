"""The JSON API, /api/v1: what a tenant's own programs read with an API key."""

from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import Request, Router, get
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.exceptions import NotAuthorizedException, NotFoundException, ValidationException
from litestar.openapi.spec import Example
from litestar.params import Parameter, SkipValidation
from litestar.types import ASGIApp, Receive, Scope, Send

from tenants.apps import app_by_token
from tenants.events import Queries, recent_events, recent_rejections
from tenants.keys import tenant_by_key
from tenants.tables import App, Tenant

RAISES = [ValidationException, NotAuthorizedException, NotFoundException]
# Made by this module's own functions: nothing to validate.
GivenTenant = NamedDependency[SkipValidation[Tenant]]
GivenApp = NamedDependency[SkipValidation[App]]
GivenStore = NamedDependency[SkipValidation[Queries]]
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


class Event(msgspec.Struct):
    """A recorded event. `amount` is in minor units of `currency`; both are null on category `event`."""

    id: UUID
    received_at: str
    category: Literal["event", "revenue"]
    event_token: str
    amount: int | None
    currency: str | None
    event_id: str | None
    params: dict[str, Any]
    person_id: UUID | None
    warnings: list[str]


class Events(msgspec.Struct):
    """Events, newest first. `next` is null on the last page."""

    events: list[Event]
    next: str | None


class Rejection(msgspec.Struct):
    """A hit that was not recorded: why, and what to change. `query` is as it was sent, without `access_token`."""

    id: UUID
    received_at: str
    category: Literal["event", "revenue"]
    reason: str
    detail: str
    query: str


class Rejections(msgspec.Struct):
    """Rejections of the last 30 days, newest first. `next` is null on the last page."""

    rejections: list[Rejection]
    next: str | None


async def provide_tenant(request: Request[Any, Any, State]) -> Tenant:
    """The tenant whose API key the request carries; 401 without one that is valid."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    tenant = await tenant_by_key(key.strip()) if scheme.lower() == "bearer" and key else None
    if tenant is None:
        raise NotAuthorizedException(
            "Send a valid API key as `Authorization: Bearer …`.", headers={"WWW-Authenticate": "Bearer"}
        )
    return tenant


async def provide_app(tenant: GivenTenant, app_token: AppToken) -> App:
    """The tenant's app with this token; for another tenant's it raises NotFound, as for one that does not exist."""
    return await app_by_token(tenant, app_token)


class SkipEmptyParameters:
    """Middleware: `?category=&limit=` asks for what `?` asks for. A form that is not filled in sends that."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if query := scope.get("query_string"):
            scope["query_string"] = b"&".join(part for part in query.split(b"&") if part.partition(b"=")[2])
        await self._app(scope, receive, send)


def provide_store(state: State) -> Queries:
    """The event store this process reads."""
    return state.event_store


@get("/apps/{app_token:str}/events", summary="Events of an app", operation_id="events", raises=RAISES)
async def events(
    app: GivenApp,
    store: GivenStore,
    event_token: Annotated[str | None, Parameter(description="Only events with this token.")] = None,
    category: Annotated[
        Literal["event", "revenue"] | None, Parameter(description="Only events of this category.")
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Events:
    """Recorded events, newest first. A hit can be read here within two seconds of its reply."""
    page = await recent_events(app, store, event_token=event_token, category=category, limit=limit, cursor=cursor)
    return Events([Event(**row) for row in page.rows], page.next)


@get("/apps/{app_token:str}/rejections", summary="Rejected hits", operation_id="rejections", raises=RAISES)
async def rejections(app: GivenApp, store: GivenStore, limit: Limit = 100, cursor: Cursor = None) -> Rejections:
    """Hits that were not recorded, newest first, each with its reason and what to change."""
    page = await recent_rejections(app, store, limit=limit, cursor=cursor)
    return Rejections([Rejection(**row) for row in page.rows], page.next)


api = Router(
    "/api/v1",
    route_handlers=[events, rejections],
    middleware=[SkipEmptyParameters],
    dependencies={
        "tenant": Provide(provide_tenant),
        "app": Provide(provide_app),
        "store": Provide(provide_store, sync_to_thread=False),
    },
    security=[{"API key": []}],
    tags=["Reading back"],
)
