"""Who is asking, and what they may do: the dependencies `viewer`, `member`, `owner` and `app` of every page.

Rights are decided here and nowhere else: a handler says by a parameter whom it serves, a template only what it looks
like. What belongs to another tenant is not found, as what does not exist.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, quote

import msgspec
from litestar import Request, Response
from litestar.datastructures import URL, Cookie, FormMultiDict, State
from litestar.di import NamedDependency, Provide
from litestar.enums import RequestEncodingType
from litestar.exceptions import ClientException, InternalServerException
from litestar.params import FromPath, SkipValidation
from litestar.types import Empty, Receive, Scope, Send

from tenants import sessions
from tenants.apps import find_app
from tenants.known_browsers import LIFETIME, known_browser, token_of
from tenants.tables import App, Role, Session, Tenant, User

# A form of ours is a kilobyte.
_FORM_SECONDS = 20.0
# The largest is a snippet's, with 300 values of three fields. More in an address are refused before: server/app.py.
MOST_PARAMETERS = 1_000
# nginx makes a 502 of an answer whose head is longer than 4,096 bytes, unless told otherwise. An address in it leaves
# room for cookies and what every page carries.
LONGEST_IN_HEAD = 3_000

AnyRequest = Request[None, None, State]

# What never comes back, by the name of its field.
SECRETS = {
    "current_password": "Current password",
    "email_password": "Current password",
    "password": "Password",
    "facebook_secret": "Facebook app secret",
    "audience_token": "System access token",
}


class FormRequest(Request[Any, Any, Any]):
    """A request that is taken apart here, since anybody can send one.

    Litestar keeps what it took apart for the next 1,024 requests: gigabytes of what strangers sent, and passwords. Its
    reader of cookies unquotes them in quadratic time (CVE-2024-7592, mended in Python 3.11.10): minutes on the loop
    that takes hits. And it asks which host was named, which may be none.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        # Dependencies that Litestar makes of parameters look here, and only then for what it keeps.
        self._parsed_query = tuple(_pairs(scope["query_string"]))

    @property
    def url(self) -> URL:
        """Path and query, which is all that is asked of it."""
        query = self.scope["query_string"].decode("utf-8", "replace")
        return URL.from_components(path=self.scope["path"], query=query)

    @property
    def cookies(self) -> dict[str, str]:
        """As they were sent: those of ours need no quotes."""
        if self._cookies is Empty:
            parts = (part.partition("=") for part in self.headers.get("cookie", "").split(";"))
            self._cookies = {name.strip(): value.strip() for name, _, value in parts}
        return self._cookies

    async def form(self) -> FormMultiDict:
        """As of Request. Raises ClientException for what cannot be read, and where it does not come in time."""
        # Dependencies are asked for at once, and what has come is handed to one reader only.
        if (lock := self.state.get("reading")) is None:
            lock = self.state.reading = asyncio.Lock()
        try:
            async with asyncio.timeout(_FORM_SECONDS), lock:
                if self.content_type[0] != RequestEncodingType.URL_ENCODED:
                    return await super().form()
                if self._form is Empty:
                    body = await self.body()
                    if body.count(b"&") >= MOST_PARAMETERS:
                        raise ClientException(f"A form has {MOST_PARAMETERS:,} fields at most.")
                    self._form = self.state.form = FormMultiDict(_pairs(body))
                return self._form
        except TimeoutError:
            raise ClientException("This form took too long to be sent.", status_code=408) from None
        except (LookupError, UnicodeError):
            raise ClientException("This form is in an encoding that cannot be read.") from None
        except InternalServerException:
            # So Litestar says that its sender went away, which is no mistake of ours to be logged.
            raise ClientException("This form ended too early.") from None


def _pairs(sent: bytes) -> list[tuple[str, str]]:
    """The parameters of an address or a form, as many as any of ours may have."""
    few = b"&".join(sent.split(b"&", MOST_PARAMETERS)[:MOST_PARAMETERS])
    # Programs send letters without escapes, too (curl does): in UTF-8, as escaped ones are.
    return parse_qsl(few.decode("utf-8", "replace"), keep_blank_values=True)


class LoginNeeded(Exception):
    """Nobody is logged in, and the page is not for everybody."""


class Forbidden(Exception):
    """The role of whoever asks does not allow this; the message is a sentence for them."""


class OtherAccount(Exception):
    """A form of another account than the one that is shown by now, in all tabs; the message is a sentence."""


class Me(msgspec.Struct, frozen=True):
    """Somebody logged in, and the tenant their session shows."""

    user: User
    tenant: Tenant
    role: Role
    session: Session

    @property
    def may_change(self) -> bool:
        """Whether they may change what belongs to the tenant; a viewer only looks."""
        return self.role in (Role.OWNER, Role.MEMBER)

    @property
    def is_owner(self) -> bool:
        """Whether they may change who belongs to the tenant, and end it."""
        return self.role == Role.OWNER


Viewer = NamedDependency[SkipValidation[Me]]
Member = NamedDependency[SkipValidation[Me]]
Owner = NamedDependency[SkipValidation[Me]]
OurApp = NamedDependency[SkipValidation[App]]


_SESSION, _KNOWN_BROWSER = "session", "browser"


def _cookie_name(request: AnyRequest, name: str) -> str:
    # The prefix has browsers refuse the cookie from a subdomain or over plain HTTP; without TLS they refuse the prefix.
    return f"__Host-{name}" if request.app.state.secure else name


def session_token(request: AnyRequest) -> str | None:
    """What the session's cookie holds, whether it is worth anything or not."""
    return request.cookies.get(_cookie_name(request, _SESSION))


def browser_known_to(request: AnyRequest, email: str) -> str | None:
    """The id of the browser, where this mailbox's password was right in it before."""
    token = request.cookies.get(_cookie_name(request, _KNOWN_BROWSER), "")
    return known_browser(request.app.state.known_browser_key, email, token)


async def maybe_me(request: AnyRequest) -> Me | None:
    """Who is logged in, if anybody; asked of the database once a request."""
    if "me" not in request.state:
        if request.method == "POST":
            # Who asks is looked up once all is there: whoever holds the end of a form back would keep rights that were
            # taken from them meanwhile.
            await request.form()
        token = session_token(request)
        found = await sessions.find(token, datetime.now(UTC)) if token else None
        request.state.me = found and Me(found.user, found.tenant, found.role, found.session)
    return request.state.me


def set_login_cookies(request: AnyRequest, response: Response[bytes], user: User, token: str) -> None:
    """Log this browser in, and know it from now on."""
    response.set_cookie(_cookie(request, _SESSION, token, sessions.LIFETIME))
    if browser_known_to(request, user.email) is None:
        known = token_of(request.app.state.known_browser_key, user.email)
        response.set_cookie(_cookie(request, _KNOWN_BROWSER, known, LIFETIME))


def clear_session_cookie(request: AnyRequest, response: Response[bytes]) -> None:
    """Log this browser out."""
    response.set_cookie(_cookie(request, _SESSION, "", timedelta(0)))


def _cookie(request: AnyRequest, name: str, value: str, lifetime: timedelta) -> Cookie:
    return Cookie(
        key=_cookie_name(request, name),
        value=value,
        path="/",
        max_age=int(lifetime.total_seconds()),
        secure=request.app.state.secure,
        httponly=True,
        # A link in a mail opens our pages logged in; a form on another site does not: see origin.py.
        samesite="lax",
    )


def asked_for(request: AnyRequest) -> str:
    """Path and query that were asked for."""
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def login_address(request: AnyRequest) -> str:
    """The login page, which leads back to what was asked for where a header can say that."""
    asked = asked_for(request)
    to = f"/login?next={quote(asked, safe='')}"
    # What a form sends to cannot be opened again.
    return to if request.method == "GET" and asked != "/" and len(to) <= LONGEST_IN_HEAD else "/login"


def sent_again(request: AnyRequest) -> list[tuple[str, str]]:
    """What somebody typed into the form that was sent, but for secrets: those are typed again."""
    form: FormMultiDict | None = request.state.get("form") if request.method == "POST" else None
    pairs = [(name, str(value)) for name, value in form.multi_items()] if form is not None else []
    return [(name, value) for name, value in pairs if not value or name not in SECRETS]


def secrets_again(request: AnyRequest) -> dict[str, str]:
    """The secrets among that, by the names of their fields, as people call them."""
    form: FormMultiDict | None = request.state.get("form")
    return {name: said for name, said in SECRETS.items() if form is not None and form.get(name)}


async def provide_viewer(request: AnyRequest) -> Me:
    """Anybody logged in. Raises LoginNeeded, or OtherAccount for a form that says which account it is of."""
    me = await maybe_me(request)
    if me is None:
        raise LoginNeeded
    if request.method == "POST" and request.query_params.get("account", str(me.tenant.id)) != str(me.tenant.id):
        raise OtherAccount(
            f"You see {me.tenant.name} since another tab switched to it, and this form was another account's. "
            "Nothing was changed. Switch back at Account, in a new tab to keep what you typed here."
        )
    return me


async def provide_member(request: AnyRequest) -> Me:
    """Somebody who may change things. Raises LoginNeeded or Forbidden."""
    me = await provide_viewer(request)
    if not me.may_change:
        raise Forbidden(f"You may look at everything of {me.tenant.name}, but not change it. Ask one of its owners.")
    return me


async def provide_owner(request: AnyRequest) -> Me:
    """An owner of the tenant. Raises LoginNeeded or Forbidden."""
    me = await provide_viewer(request)
    if not me.is_owner:
        raise Forbidden(f"Only owners of {me.tenant.name} may do this.")
    return me


async def provide_app(request: AnyRequest, app_id: FromPath[str]) -> App:
    """The app in the path, within the tenant of whoever asks. Raises LoginNeeded or NotFound."""
    me = await provide_viewer(request)
    return await find_app(me.tenant, app_id)


DEPENDENCIES = {
    "viewer": Provide(provide_viewer),
    "member": Provide(provide_member),
    "owner": Provide(provide_owner),
    "app": Provide(provide_app),
}
