"""The account (a tenant, to its people) and one's own profile: names, passwords, sessions, people, API keys, the end.

Everybody changes what is their own; the account's is changed by those whom a handler's parameter names.
"""

import re
from datetime import UTC, datetime
from typing import Any

from litestar import Response, get, post
from litestar.datastructures import FormMultiDict
from litestar.params import FromPath

from tenants import accounts, apps, keys, members, sessions
from tenants.errors import InvalidValue, NotFound
from tenants.tables import ApiKey, Role
from web.forms import is_name, text
from web.guards import (
    AnyRequest,
    Me,
    Member,
    Owner,
    Viewer,
    clear_session_cookie,
    session_token,
    set_login_cookies,
)
from web.rendering import NOTICES, go, render

NOTICES.update(
    {
        "switched": "You see another account now.",
        "password-changed": "Your password is changed. You are logged out everywhere else.",
        "email-changed": "Your e-mail address is changed. Log in with it from now on.",
        "session-ended": "That session is ended.",
        "sessions-ended": "You are logged out everywhere else.",
        "role-changed": "The role is changed. With an owner less, open invitations are withdrawn.",
        "member-removed": "They no longer belong to this account. API keys that they know go on working: revoke those. "
        "So do daily pushes to audiences that may be theirs: look at each app's. "
        "If they were an owner, open invitations are withdrawn.",
        "withdrawn": "The invitation is withdrawn. Its link opens nothing now.",
        "key-revoked": "The key is revoked. Programs with it are answered 401 from now on.",
        "left": "You left the account.",
        "account-deleted": "The account is deleted. What its apps collected goes within minutes.",
    }
)

_ROLES = [(role.value, role.value.capitalize()) for role in (Role.VIEWER, Role.MEMBER, Role.OWNER)]


# The account


@get("/account")
async def account_page(request: AnyRequest, viewer: Viewer) -> Response[bytes]:
    """The account's name and limit; and the other accounts of whoever asks."""
    return await _account_page(request, viewer)


async def _account_page(
    request: AnyRequest, me: Me, name: str | None = None, errors: dict[str, str] | None = None
) -> Response[bytes]:
    belonging = await members.list_tenants(me.user)
    return await render(
        request,
        "account/account.html",
        422 if errors else 200,
        tab="",
        name=me.tenant.name if name is None else name,
        errors=errors or {},
        others=[tenant for tenant in belonging if tenant.id != me.tenant.id],
        alone=len(belonging) == 1,
    )


@post("/account")
async def rename(request: AnyRequest, owner: Owner) -> Response[bytes]:
    """Another name of the account."""
    typed = text(await request.form(), "tenant_name")
    try:
        await accounts.rename_tenant(owner.tenant, typed)
    except InvalidValue as error:
        return await _account_page(request, owner, typed, {"tenant_name": str(error)})
    return go("/account", "saved")


@post("/account/switch")
async def switch(request: AnyRequest, viewer: Viewer) -> Response[bytes]:
    """Show another of one's accounts."""
    await sessions.switch(viewer.session, _number(text(await request.form(), "account")))
    return go("/apps", "switched")


@post("/account/leave")
async def leave(request: AnyRequest, viewer: Viewer) -> Response[bytes]:
    """Belong to the account no more."""
    try:
        await members.remove(viewer.tenant, viewer.user.id)
    except InvalidValue as error:
        return await _account_page(request, viewer, errors={"leave": str(error)})
    return await _gone(request, viewer, "left")


async def _gone(request: AnyRequest, me: Me, notice: str) -> Response[bytes]:
    """On to another account of theirs; without one they are logged out, since they were removed with it."""
    if await members.list_tenants(me.user):
        return go("/apps", notice)
    response = go("/", notice)
    clear_session_cookie(request, response)
    return response


@get("/account/delete")
async def delete_page(request: AnyRequest, owner: Owner) -> Response[bytes]:
    """Says what goes, and asks for the account's name."""
    del owner
    return await render(request, "account/delete.html", tab="", typed="", errors={})


@post("/account/delete")
async def delete(request: AnyRequest, owner: Owner) -> Response[bytes]:
    """Delete the account and all that is its own, once its name was typed."""
    typed = text(await request.form(), "name")
    if not is_name(typed, owner.tenant.name):
        errors = {"name": "Type the name of the account as it stands above."}
        return await render(request, "account/delete.html", 422, tab="", typed=typed, errors=errors)
    await accounts.delete_tenant(owner.tenant, by=owner.user)
    return await _gone(request, owner, "account-deleted")


# One's own profile


@get("/account/profile")
async def profile_page(request: AnyRequest, viewer: Viewer) -> Response[bytes]:
    """Name, e-mail, password, and where one is logged in."""
    return await _profile_page(request, viewer)


async def _profile_page(
    request: AnyRequest, me: Me, errors: dict[str, str] | None = None, **typed: str
) -> Response[bytes]:
    return await render(
        request,
        "account/profile.html",
        422 if errors else 200,
        tab="profile",
        errors=errors or {},
        form={"user_name": me.user.name, "email": me.user.email, **typed},
        sessions=[
            (session, browser_name(session.user_agent))
            for session in await sessions.list_sessions(me.user, datetime.now(UTC))
        ],
    )


@post("/account/profile/name")
async def rename_me(request: AnyRequest, viewer: Viewer) -> Response[bytes]:
    """Another name of one's own."""
    typed = text(await request.form(), "user_name")
    try:
        await accounts.rename_user(viewer.user, typed)
    except InvalidValue as error:
        return await _profile_page(request, viewer, {"user_name": str(error)}, user_name=typed)
    return go("/account/profile", "saved")


@post("/account/profile/email")
async def change_email(request: AnyRequest, viewer: Viewer) -> Response[bytes]:
    """Another e-mail address to log in with."""
    form = await request.form()
    typed, address = text(form, "email"), request.app.state.client_address(request.scope)
    try:
        await accounts.change_email(
            viewer.user, typed, text(form, "email_password"), address=address, now=datetime.now(UTC)
        )
    except InvalidValue as error:
        # The form for the password has a field for the current one, too.
        field = "email_password" if error.field == "current_password" else error.field
        return await _profile_page(request, viewer, {field: str(error)}, email=typed)
    return go("/account/profile", "email-changed")


@post("/account/profile/password")
async def change_password(request: AnyRequest, viewer: Viewer) -> Response[bytes]:
    """Another password; all sessions end, and a new one begins here. Raises NotFound where it is another's by now."""
    form = await request.form()
    new, current = text(form, "password"), text(form, "current_password")
    address = request.app.state.client_address(request.scope)
    try:
        await accounts.change_password(
            viewer.user, new, current, viewer.session, address=address, now=datetime.now(UTC)
        )
    except InvalidValue as error:
        return await _profile_page(request, viewer, {error.field: str(error)})
    # A new session, since the cookie of this browser may be what somebody else has.
    response = go("/account/profile", "password-changed")
    agent, now = request.headers.get("user-agent", ""), datetime.now(UTC)
    token = await sessions.create(viewer.user, agent, now, viewer.tenant, replaces=session_token(request))
    set_login_cookies(request, response, viewer.user, token)
    return response


@post("/account/sessions/{session_id:int}/end")
async def end_session(request: AnyRequest, viewer: Viewer, session_id: FromPath[int]) -> Response[bytes]:
    """Log out in one browser; where that is this one, home."""
    await sessions.end(viewer.user, session_id)
    if session_id == viewer.session.id:
        response = go("/", "logged-out")
        clear_session_cookie(request, response)
        return response
    return go("/account/profile#sessions", "session-ended")


@post("/account/sessions/end-others")
async def end_other_sessions(viewer: Viewer) -> Response[bytes]:
    """Log out everywhere but here."""
    await sessions.end_all(viewer.user, viewer.session)
    return go("/account/profile#sessions", "sessions-ended")


def browser_name(user_agent: str) -> str:
    """`Firefox on Linux`: enough to recognise one's own; nothing depends on it."""
    browsers = (("Edg", "Edge"), ("OPR/", "Opera"), ("Firefox/|FxiOS/", "Firefox"), ("Chrome/|CriOS/", "Chrome"))
    systems = (
        ("Android", "Android"),
        ("iPhone", "iPhone"),
        ("iPad", "iPad"),
        ("Windows", "Windows"),
        ("Mac OS X", "macOS"),
        ("CrOS", "ChromeOS"),
        ("Linux", "Linux"),
    )
    # Each browser names those it descends from: the first that fits is the youngest.
    browser = _first((*browsers, ("Safari/", "Safari")), user_agent)
    system = _first(systems, user_agent)
    if browser and system:
        return f"{browser} on {system}"
    return browser or system or "An unknown browser"


def _first(patterns: tuple[tuple[str, str], ...], user_agent: str) -> str:
    return next((name for pattern, name in patterns if re.search(pattern, user_agent)), "")


# People


@get("/account/people")
async def people_page(request: AnyRequest, viewer: Viewer) -> Response[bytes]:
    """Who belongs to the account; owners also see who is invited."""
    return await _people_page(request, viewer)


async def _people_page(
    request: AnyRequest, me: Me, errors: dict[str, str] | None = None, status: int = 200, **context: Any
) -> Response[bytes]:
    given = {"email": "", "role": Role.MEMBER.value, "link": None, "invited": None, **context}
    return await render(
        request,
        "account/people.html",
        422 if errors else status,
        tab="people",
        errors=errors or {},
        roles=_ROLES,
        people=await members.list_members(me.tenant),
        invitations=await members.list_invitations(me.tenant, datetime.now(UTC)) if me.is_owner else [],
        **given,
    )


@post("/account/people")
async def invite(request: AnyRequest, owner: Owner) -> Response[bytes]:
    """An invitation; the page that answers shows its link, and no other does."""
    form = await request.form()
    email, role = text(form, "email"), text(form, "role")
    try:
        invitation, token = await members.invite(owner.tenant, email, role, datetime.now(UTC), by=owner.user)
    except InvalidValue as error:
        return await _people_page(request, owner, {error.field: str(error)}, email=email, role=role)
    return await _people_page(
        request, owner, status=201, link=f"{request.app.state.public_url}/join/{token}", invited=invitation
    )


@post("/account/people/{user_id:int}/role")
async def change_role(request: AnyRequest, owner: Owner, user_id: FromPath[int]) -> Response[bytes]:
    """Another role of a member."""
    try:
        await members.change_role(owner.tenant, user_id, text(await request.form(), "role"), by=owner.user)
    except InvalidValue as error:
        return await _people_page(request, owner, {"people": str(error)})
    return go("/account/people", "role-changed")


@post("/account/people/{user_id:int}/remove")
async def remove(request: AnyRequest, owner: Owner, user_id: FromPath[int]) -> Response[bytes]:
    """A member no more."""
    try:
        await members.remove(owner.tenant, user_id, by=owner.user)
    except InvalidValue as error:
        return await _people_page(request, owner, {"people": str(error)})
    return await _gone(request, owner, "left") if user_id == owner.user.id else go("/account/people", "member-removed")


@post("/account/invitations/{invitation_id:int}/withdraw")
async def withdraw(request: AnyRequest, owner: Owner, invitation_id: FromPath[int]) -> Response[bytes]:
    """An invitation no more."""
    try:
        await members.withdraw(owner.tenant, invitation_id)
    except NotFound:
        says = "This invitation was open no longer. If somebody used it, they belong to the account: see below."
        page = await _people_page(request, owner, {"people": says})
        page.status_code = 404
        return page
    return go("/account/people", "withdrawn")


# API keys


@get("/account/keys")
async def keys_page(request: AnyRequest, viewer: Viewer) -> Response[bytes]:
    """The API keys; what they are cannot be shown again."""
    return await _keys_page(request, viewer)


async def _keys_page(
    request: AnyRequest,
    me: Me,
    error: InvalidValue | None = None,
    form: FormMultiDict | None = None,
    made: tuple[ApiKey, str] | None = None,
) -> Response[bytes]:
    return await render(
        request,
        "account/keys.html",
        422 if error else 201 if made else 200,
        tab="keys",
        errors={error.field: str(error)} if error else {},
        keys=await keys.list_keys(me.tenant, datetime.now(UTC)),
        options=[(str(app.id), app.name) for app in await apps.list_apps(me.tenant)],
        form=form or {},
        made=made,
    )


@post("/account/keys")
async def create_key(request: AnyRequest, member: Member) -> Response[bytes]:
    """A new key; the page that answers shows it, and no other does."""
    form = await request.form()
    try:
        chosen = text(form, "app")
        app = await apps.find_app(member.tenant, chosen) if chosen else None
        made = await keys.create_key(
            member.tenant,
            text(form, "name"),
            app=app,
            may_delete=text(form, "may_delete") == "1",
            by=member.user,
        )
    except InvalidValue as error:
        return await _keys_page(request, member, error, form)
    return await _keys_page(request, member, made=made)


@post("/account/keys/{key_id:int}/revoke")
async def revoke_key(member: Member, key_id: FromPath[int]) -> Response[bytes]:
    """End a key now."""
    await keys.revoke_key(member.tenant, key_id)
    return go("/account/keys", "key-revoked")


def _number(typed: str) -> int:
    """The id in a form's hidden field. Raises NotFound."""
    if not re.fullmatch(r"[0-9]{1,10}", typed):
        raise NotFound
    return int(typed)


handlers = [
    account_page,
    rename,
    switch,
    leave,
    delete_page,
    delete,
    profile_page,
    rename_me,
    change_email,
    change_password,
    end_session,
    end_other_sessions,
    people_page,
    invite,
    change_role,
    remove,
    withdraw,
    keys_page,
    create_key,
    revoke_key,
]
