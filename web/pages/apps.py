"""A tenant's apps: the list, a new one, and one's settings, tokens and end."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID
from zoneinfo import ZoneInfo

from litestar import Response, get, post
from litestar.datastructures import FormMultiDict
from litestar.params import FromPath

from tenants import apps, tokens
from tenants.currencies import MINOR_UNITS
from tenants.deletions import list_deletions
from tenants.erasures import TooOld, too_old
from tenants.errors import InvalidValue, Unavailable
from tenants.reports.overview import Glance, overview
from tenants.reports.period import MAX_DAYS
from tenants.tables import App
from web.forms import is_name, merged, shown_again, text
from web.guards import AnyRequest, Me, Member, OurApp, Viewer
from web.pages.connection import connection
from web.rendering import NOTICES, go, render

OVERLAPS: dict[str, tuple[str, timedelta]] = {
    "0": ("at once", timedelta(0)),
    "1": ("in 1 hour", timedelta(hours=1)),
    "24": ("in 1 day", timedelta(days=1)),
    "168": ("in 7 days", timedelta(days=7)),
    "720": ("in 30 days", timedelta(days=30)),
}
_OVERLAP = "168"

NOTICES.update(
    {
        "app-saved": "Saved.",
        "app-deleted": "The app is deleted. What it collected goes within minutes.",
        "issued": "A new token is there. The others go on working.",
        "rotated": "A new token is there: change your snippets to it. The others end as you chose.",
        "revoked": "The token is revoked. Pixels with it are answered 404 from now on.",
    }
)


_FIELDS = ("name", "currency", "timezone", "honour_privacy_signals", "retention_days")


def _typed(form: FormMultiDict) -> dict[str, str]:
    """Every field of an app's form; what was not sent is empty."""
    return {name: text(form, name) for name in _FIELDS}


def _kept(app: App) -> dict[str, str]:
    """What the app has, as its form sends it."""
    return {
        "name": app.name,
        "currency": app.currency,
        "timezone": app.timezone,
        "honour_privacy_signals": "1" if app.honour_privacy_signals else "",
        "retention_days": str(app.retention_days or ""),
    }


def _choices(form: dict[str, str]) -> dict[str, Any]:
    """What the menus of a form offer, and what stands in its fields."""
    zones = apps.timezones()
    # A browser's own may have another name; whoever does not look at the menu keeps it.
    zones = zones if form["timezone"] in zones else [form["timezone"], *zones]
    return {
        "currencies": [(code, code) for code in sorted(MINOR_UNITS)],
        "timezones": [(zone, zone.replace("_", " ")) for zone in zones],
        "form": form,
    }


@get("/apps")
async def list_page(request: AnyRequest, viewer: Viewer) -> Response[bytes]:
    """All apps; their numbers are fetched once the page is there, or come with it where there is no script."""
    listed = await apps.list_apps(viewer.tenant)
    whole = request.query_params.get("whole") == "1"
    glances = await _glances(request, viewer, listed) if whole else {}
    return await render(request, "apps/list.html", apps=listed, glances=glances, whole=whole)


@get("/apps/counts")
async def counts(request: AnyRequest, viewer: Viewer) -> Response[bytes]:
    """Today's numbers of all apps, each put into its place in the list."""
    listed = await apps.list_apps(viewer.tenant)
    return await render(request, "app/_counts.html", apps=listed, glances=await _glances(request, viewer, listed))


async def _glances(request: AnyRequest, viewer: Me, listed: Sequence[App]) -> dict[UUID, Glance]:
    """Each app's; none while the event store does not answer."""
    try:
        return await overview(viewer.tenant, listed, request.app.state.event_store, datetime.now(UTC))
    except Unavailable:
        return {}


@get("/apps/new")
async def new_page(request: AnyRequest, member: Member) -> Response[bytes]:
    """The form of a new app, with what the newest one has."""
    known = await apps.list_apps(member.tenant)
    newest = known[-1] if known else App(tenant=member.tenant.id, name="")
    form = {"name": "", "currency": newest.currency, "timezone": newest.timezone}
    return await render(request, "apps/new.html", errors={}, **_choices(form))


@post("/apps/new")
async def create(request: AnyRequest, member: Member) -> Response[bytes]:
    """A new app, which then shows its snippet."""
    form = await request.form()
    try:
        app, _ = await apps.create_app(
            member.tenant, text(form, "name"), text(form, "currency"), text(form, "timezone")
        )
    except InvalidValue as error:
        errors = {error.field: str(error)}
        return await render(request, "apps/new.html", 422, errors=errors, **_choices(_typed(form)))
    return go(f"/apps/{app.id}")


async def settings_of(
    request: AnyRequest,
    app: App,
    form: FormMultiDict | None = None,
    error: InvalidValue | None = None,
    *,
    facebook_app_id: str | None = None,
) -> Response[bytes]:
    """The page of an app's settings, after a form of it was sent with what was typed and what is wrong with it."""
    now = datetime.now(UTC)
    listed = [(token, tokens.state(token, now)) for token in await tokens.list_tokens(app)]
    kept = _kept(app)
    return await render(
        request,
        "apps/settings.html",
        422 if error else 200,
        app=app,
        tab="settings",
        listed=listed,
        live=sum(state in ("live", "ends") for _, state in listed),
        overlaps=[(hours, when) for hours, (when, _) in OVERLAPS.items()],
        overlap=_OVERLAP,
        deletions=await list_deletions(app),
        errors={error.field: str(error)} if error else {},
        facebook=await connection(app, request.app.state.facebook_key, now, facebook_app_id),
        shown=shown_again(form, error) if form is not None else urlencode(kept),
        **_choices(_typed(form) if form is not None else kept),
    )


@get("/apps/{app_id:str}/settings")
async def settings_page(request: AnyRequest, app: OurApp) -> Response[bytes]:
    """Name, currency, time zone, privacy signals, and the tokens."""
    return await settings_of(request, app)


@post("/apps/{app_id:str}/settings")
async def change(request: AnyRequest, member: Member, app: OurApp) -> Response[bytes]:
    """Keep what the form says; asks once more where events go by it."""
    form = await request.form()
    try:
        typed = merged(form, _typed(form), _kept(app))
        days = apps.retention_of(typed["retention_days"])
        if (
            days != "ever"
            and days < (app.retention_days or apps.MAX_RETENTION_DAYS + 1)
            and text(form, "confirmed") != str(days)
            and (going := await too_old(app, request.app.state.event_store, days, datetime.now(UTC))).events
        ):
            return await _retention_page(request, app, typed, days, going)
        await apps.change_app(
            app,
            name=typed["name"],
            currency=typed["currency"],
            timezone=typed["timezone"],
            honour_privacy_signals=typed["honour_privacy_signals"] == "1",
            retention_days=days,
        )
    except InvalidValue as error:
        # With the name that the app still has.
        return await settings_of(request, await apps.find_app(member.tenant, str(app.id)), form, error)
    return go(f"/apps/{app.id}/settings", "app-saved")


async def _retention_page(
    request: AnyRequest, app: App, typed: dict[str, str], days: int, going: TooOld
) -> Response[bytes]:
    return await render(
        request,
        "apps/retention.html",
        app=app,
        tab="settings",
        typed=typed,
        shown=urlencode(_kept(app)),
        days=days,
        going=going,
    )


@post("/apps/{app_id:str}/tokens")
async def issue(member: Member, app: OurApp) -> Response[bytes]:
    """One more token; the others go on."""
    del member
    await tokens.issue(app)
    return go(f"/apps/{app.id}/settings#tokens", "issued")


@post("/apps/{app_id:str}/tokens/rotate")
async def rotate(request: AnyRequest, member: Member, app: OurApp) -> Response[bytes]:
    """A new token; the others end after the overlap chosen."""
    del member
    chosen = OVERLAPS.get(text(await request.form(), "overlap"))
    if chosen is None:
        return await settings_of(request, app, None, InvalidValue("overlap", "Choose when the other tokens end."))
    await tokens.rotate(app, chosen[1])
    return go(f"/apps/{app.id}/settings#tokens", "rotated")


@get("/apps/{app_id:str}/tokens/{token:str}/revoke")
async def revoke_page(request: AnyRequest, member: Member, app: OurApp, token: FromPath[str]) -> Response[bytes]:
    """Asks once more: pixels with the token stop."""
    del member
    found = await tokens.find_of_app(app, token)
    now = datetime.now(UTC)
    others = [
        each
        for each in await tokens.list_tokens(app)
        if each.token != found.token and tokens.state(each, now) in ("live", "ends")
    ]
    return await render(request, "apps/revoke.html", app=app, tab="settings", token=found, last=not others)


@post("/apps/{app_id:str}/tokens/{token:str}/revoke")
async def revoke(member: Member, app: OurApp, token: FromPath[str]) -> Response[bytes]:
    """End the token now."""
    found = await tokens.find_of_app(app, token)
    await tokens.revoke(member.tenant, found.token)
    return go(f"/apps/{app.id}/settings#tokens", "revoked")


@get("/apps/{app_id:str}/delete")
async def delete_page(request: AnyRequest, member: Member, app: OurApp) -> Response[bytes]:
    """Says what goes, and asks for the app's name."""
    del member
    return await _delete_page(request, app)


async def _delete_page(
    request: AnyRequest, app: App, status: int = 200, errors: Mapping[str, str] | None = None, typed: str = ""
) -> Response[bytes]:
    # As far back as a period may go that ends tomorrow: the link is followed later.
    since = (datetime.now(ZoneInfo(app.timezone)) - timedelta(days=MAX_DAYS - 2)).date()
    context = {"app": app, "tab": "settings", "errors": errors or {}, "typed": typed, "since": since}
    return await render(request, "apps/delete.html", status, **context)


@post("/apps/{app_id:str}/delete")
async def delete(request: AnyRequest, member: Member, app: OurApp) -> Response[bytes]:
    """Delete the app and all it collected, once its name was typed."""
    del member
    typed = text(await request.form(), "name")
    if not is_name(typed, app.name):
        errors = {"name": "Type the name of the app as it stands above."}
        return await _delete_page(request, app, 422, errors, typed)
    await apps.delete_app(app)
    return go("/apps", "app-deleted")


handlers = [
    list_page,
    counts,
    new_page,
    create,
    settings_page,
    change,
    issue,
    rotate,
    revoke_page,
    revoke,
    delete_page,
    delete,
]
