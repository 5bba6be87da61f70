"""The apps, and their single events and rejections, newest first."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Parameter
from litestar.response import Stream

from tenants.apps import list_apps
from tenants.events import recent_events, recent_rejections
from tenants.exports import Format
from tenants.tokens import live_tokens
from web.api.access import Cursor, GivenApp, GivenKey, GivenStore, Limit
from web.api.reports import GivenFilters, GivenSpan
from web.downloads import events_file


class App(msgspec.Struct):
    """An app of the account. `tokens` are those that take hits, newest first; any of them names the app here."""

    id: UUID
    name: str
    currency: str
    timezone: str
    retention_days: int | None
    created_at: datetime
    tokens: list[str]


class Apps(msgspec.Struct):
    """All apps that the key reads, oldest first."""

    apps: list[App]


class Event(msgspec.Struct):
    """A recorded event. `amount` is in minor units of `currency`; both are null on category `event`.

    `person_id` is who it is now. Where two turn out to be one person, a copy may have a former id: asked for that,
    the API answers with the person.
    """

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


@get("/apps", summary="Apps", operation_id="apps")
async def listed(key: GivenKey) -> Apps:
    """The account's apps, or the one that the key is of. `retention_days` is null where events are kept for ever."""
    found = [app for app in await list_apps(key.tenant) if key.app in (None, app.id)]
    tokens = await live_tokens(found, datetime.now(UTC))
    return Apps(
        [
            App(app.id, app.name, app.currency, app.timezone, app.retention_days, app.created_at, tokens[app.id])
            for app in found
        ]
    )


@get("/apps/{app_token:str}/events", summary="Events of an app", operation_id="events")
async def events(
    app: GivenApp,
    store: GivenStore,
    during: GivenSpan,
    which: GivenFilters,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Events:
    """Recorded events, newest first. A hit can be read here within two seconds of its reply."""
    page = await recent_events(app, store, period=during, filters=which, limit=limit, cursor=cursor)
    return Events([Event(**row) for row in page.rows], page.next)


@get("/apps/{app_token:str}/rejections", summary="Rejected hits", operation_id="rejections")
async def rejections(
    app: GivenApp, store: GivenStore, during: GivenSpan, limit: Limit = 100, cursor: Cursor = None
) -> Rejections:
    """Hits that were not recorded, newest first, each with its reason and what to change."""
    page = await recent_rejections(app, store, period=during, limit=limit, cursor=cursor)
    return Rejections([Rejection(**row) for row in page.rows], page.next)


@get(
    "/apps/{app_token:str}/export",
    summary="Export events",
    operation_id="export_events",
    responses={200: ResponseSpec(str, description="The file", media_type="text/csv", generate_examples=False)},
)
async def export(
    app: GivenApp,
    store: GivenStore,
    during: GivenSpan,
    which: GivenFilters,
    format: Annotated[Format, Parameter(description="Of the file.")] = "csv",
) -> Stream:
    """Events as a CSV or Parquet file of any size, oldest first, sent while it is read.

    `amount` is in minor units of the currency and `amount_decimal` in its main one, `params` is JSON text, `warnings`
    are separated by commas; what is not there is empty in CSV and null in Parquet. In CSV a text that a spreadsheet
    would take for a formula has an apostrophe before it. A connection that ends before its last chunk means that the
    file is not whole. An account has two on their way at once, more are answered 429. What was on its way through an
    outage of ours comes later, with the time it was received at: copy those days once more.
    """
    return await events_file(app, store, during, which, format)


handlers = [listed, events, rejections, export]
ANSWERS = (Apps, Events, Rejections)
