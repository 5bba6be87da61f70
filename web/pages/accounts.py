"""Into onepx and out of it: sign up, log in, log out, join by an invitation."""

from datetime import UTC, datetime

from litestar import Response, get, post
from litestar.datastructures import FormMultiDict
from litestar.params import FromPath

from tenants import accounts, members, sessions
from tenants.errors import EmailTaken, InvalidValue, NotFound
from tenants.tables import Tenant, User
from web.forms import text
from web.guards import (
    LONGEST_IN_HEAD,
    AnyRequest,
    browser_known_to,
    clear_session_cookie,
    maybe_me,
    session_token,
    set_login_cookies,
)
from web.rendering import NOTICES, go, render

NOTICES.update(
    {
        "logged-out": "You are logged out.",
        "joined": "Welcome. You belong to this account now.",
    }
)

_WRONG = "The e-mail address or the password is wrong."


def here_only(address: str) -> str:
    """Where to go after the login: the address when it is a page of this site, else the list of apps.

    Browsers read `//host` and `/\\host` as another site, and drop tabs and line breaks before they read.
    """
    ours = address.startswith("/") and address[1:2] not in ("/", "\\") and len(address) <= LONGEST_IN_HEAD
    return address if ours and all("!" <= character <= "~" for character in address) else "/apps"


def _address(request: AnyRequest) -> str:
    return request.app.state.client_address(request.scope)


async def _logged_in(
    request: AnyRequest, user: User, response: Response[bytes], tenant: Tenant | None = None
) -> Response[bytes]:
    """The response with a new session's cookies. Raises NotFound when the user is gone, or has another password now."""
    token = await sessions.create(
        user,
        request.headers.get("user-agent", ""),
        datetime.now(UTC),
        tenant,
        replaces=session_token(request),
    )
    set_login_cookies(request, response, user, token)
    return response


async def _closed(request: AnyRequest) -> Response[bytes]:
    detail = "Whoever runs this server makes the accounts. Somebody who has one can invite you to theirs."
    return await render(request, "error.html", 403, title="Sign-up is closed here", detail=detail)


@get("/signup")
async def sign_up_page(request: AnyRequest) -> Response[bytes]:
    """The form of a new account."""
    if await maybe_me(request):
        return go("/apps")
    if not request.app.state.signup:
        return await _closed(request)
    return await render(request, "accounts/signup.html", form=None, errors={}, taken=False)


@post("/signup")
async def sign_up(request: AnyRequest) -> Response[bytes]:
    """A new account, with an app that shows its snippet next."""
    if not request.app.state.signup:
        return await _closed(request)
    form = await request.form()
    try:
        tenant, user, app, _ = await accounts.sign_up(
            text(form, "name"),
            text(form, "email"),
            text(form, "password"),
            address=_address(request),
            now=datetime.now(UTC),
            timezone=text(form, "timezone"),
        )
    except InvalidValue as error:
        typed = {name: text(form, name) for name in ("name", "email", "timezone")}
        taken = isinstance(error, EmailTaken)
        errors = {error.field: str(error)}
        return await render(request, "accounts/signup.html", 422, form=typed, errors=errors, taken=taken)
    return await _logged_in(request, user, go(f"/apps/{app.id}"), tenant)


@get("/login")
async def log_in_page(request: AnyRequest) -> Response[bytes]:
    """The login form; it leads back to where somebody wanted to go."""
    to = here_only(request.query_params.get("next", ""))
    if await maybe_me(request):
        return go(to)
    return await render(request, "accounts/login.html", to=to, email="", wrong=None)


@post("/login")
async def log_in(request: AnyRequest) -> Response[bytes]:
    """A new session, never the one that the browser had before."""
    form = await request.form()
    to, email = here_only(text(form, "next")), text(form, "email")
    user = await accounts.log_in(
        email,
        text(form, "password"),
        address=_address(request),
        now=datetime.now(UTC),
        browser=browser_known_to(request, email),
    )
    if user is not None:
        try:
            return await _logged_in(request, user, go(to))
        except NotFound:
            pass  # the password was changed this very moment
    return await render(request, "accounts/login.html", 422, to=to, email=email, wrong=_WRONG)


@post("/logout")
async def log_out(request: AnyRequest) -> Response[bytes]:
    """End the session, here and in the database; then home, or to the page on this site that the form names."""
    me = await maybe_me(request)
    if me is not None:
        await sessions.end(me.user, me.session.id)
    to = text(await request.form(), "next")
    response = go(here_only(to) if to else "/", "logged-out")
    clear_session_cookie(request, response)
    return response


@get("/join/{token:str}")
async def join_page(request: AnyRequest, token: FromPath[str]) -> Response[bytes]:
    """What the invitation is to, and how to accept it."""
    return await _join_page(request, token)


async def _join_page(
    request: AnyRequest, token: str, form: FormMultiDict | None = None, error: InvalidValue | None = None
) -> Response[bytes]:
    me = await maybe_me(request)
    try:
        invitation = await members.find_invitation(token, datetime.now(UTC))
    except NotFound:
        return await render(request, "accounts/not_invited.html", 404)
    return await render(
        request,
        "accounts/join.html",
        422 if error else 200,
        invitation=invitation,
        ours=me is not None and me.user.email == invitation.email,
        has_account=await members.has_account(invitation.email),
        name=text(form, "name") if form is not None else "",
        errors={error.field: str(error)} if error else {},
    )


@post("/join/{token:str}")
async def join(request: AnyRequest, token: FromPath[str]) -> Response[bytes]:
    """Accept the invitation: as who is logged in, or as somebody new."""
    me = await maybe_me(request)
    form = await request.form()
    now = datetime.now(UTC)
    try:
        if me is not None:
            tenant = await members.join(token, me.user, now)
            await sessions.switch(me.session, tenant.id)
            return go("/apps", "joined")
        name, password = text(form, "name"), text(form, "password")
        tenant, user = await members.join_as_new(token, name, password, now, _address(request))
    except InvalidValue as error:
        return await _join_page(request, token, form, error)
    except NotFound:
        # Used or over (404), or not for who is logged in (403): the page says which.
        page = await _join_page(request, token)
        page.status_code = 404 if page.status_code == 404 else 403
        return page
    return await _logged_in(request, user, go("/apps", "joined"), tenant)


handlers = [
    sign_up_page,
    sign_up,
    log_in_page,
    log_in,
    log_out,
    join_page,
    join,
]
