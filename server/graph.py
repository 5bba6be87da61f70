"""Facebook's Graph API, as far as we ask it: https://developers.facebook.com/docs/graph-api/guides/error-handling/

Access tokens travel in the Authorization header, never in an address. Nothing of a reply's text and nothing of httpx's
exceptions leaves this module: both may repeat the token.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx
import msgspec

# Each wait on the connection, and a whole call: ten times what Graph usually takes.
_WAIT_SECONDS = 10.0
_CALL_SECONDS = 20.0
# Graph takes a while over ten thousand users.
_UPLOAD_SECONDS = 90.0
_REPLY_BYTES = 256 * 1024
_LONGEST_REST = 86_400.0
# Per cent of what is allowed: from here on calls are spread, at a hundred Graph refuses them.
_NEARLY_USED_UP = 90
_NEARLY_REST = 60.0

_EXPIRED = frozenset({102, 190})
# Of these the app, or the ad account, has to rest: https://developers.facebook.com/docs/graph-api/overview/rate-limiting/
_OF_THE_APP = frozenset({4, 341, *range(80_000, 80_015)})
_LATER = frozenset({1, 2, 17, 32, 368, 613}) | _OF_THE_APP


class GraphError(Exception):
    """Graph did not do what was asked; `code` is its error's, 0 where it gave none.

    `rest`: for how many seconds it wants to be left alone by the app, whatever became of this.
    """

    def __init__(self, code: int, rest: float = 0.0) -> None:
        super().__init__(f"Graph error {code}")
        self.code = code
        self.rest = rest


class Expired(GraphError):
    """The access token is not, or no longer, good for anything."""


class Refused(GraphError):
    """Graph will not do this, however often it is asked."""


class Later(GraphError):
    """Graph will do this another time: in `seconds`, where it says when; `of_the_app`: and nothing else before."""

    def __init__(self, code: int, seconds: float | None, of_the_app: bool, rest: float = 0.0) -> None:
        super().__init__(code, rest)
        self.seconds = seconds
        self.of_the_app = of_the_app


class User(NamedTuple):
    """Whose a token is."""

    fbid: str
    name: str | None
    email: str | None

    def __repr__(self) -> str:
        return "User(…)"


class Uploaded(NamedTuple):
    """What Meta took of a batch."""

    received: int
    invalid: int


@dataclass
class Session:
    """The upload that a batch belongs to."""

    id: int
    batch: int
    last: bool
    people: int


class _Me(msgspec.Struct):
    id: str
    name: str | None = None
    email: str | None = None


class _ThirdParty(msgspec.Struct):
    custom_audience_third_party_id: str | None = None


class _Users(msgspec.Struct):
    num_received: int
    num_invalid_entries: int = 0


class _Error(msgspec.Struct):
    code: int = 0
    is_transient: bool = False


class _Failure(msgspec.Struct):
    error: _Error


class _Usage(msgspec.Struct):
    call_count: float = 0
    total_time: float = 0
    total_cputime: float = 0
    # Minutes.
    estimated_time_to_regain_access: float = 0


class Graph:
    """A client of one pinned version of the API at `url`."""

    def __init__(self, url: str, version: str) -> None:
        self._client = httpx.AsyncClient(
            base_url=f"{url}/{version}",
            timeout=_WAIT_SECONDS,
            # A redirect would carry the token to wherever it leads.
            follow_redirects=False,
            headers={"User-Agent": "onepx"},
        )

    async def close(self) -> None:
        """End its connections."""
        await self._client.aclose()

    async def me(self, token: str, secret: str | None) -> tuple[User, float]:
        """The token's user, and for how many seconds Graph wants to be left alone. Raises GraphError."""
        me, rest = await self._ask("/me", token, secret, _Me, {"fields": "id,name,email"})
        if not (me.id.isascii() and me.id.isdecimal() and len(me.id) <= 20):
            raise Later(0, None, False, rest)
        return User(me.id, me.name, me.email), rest

    async def audience_id(self, facebook_app_id: str, token: str, secret: str | None) -> tuple[str | None, float]:
        """The user's Custom Audience id, and as `me`. Raises GraphError."""
        path = f"/{facebook_app_id}/custom_audience_third_party_id"
        found, rest = await self._ask(path, token, secret, _ThirdParty, {})
        return found.custom_audience_third_party_id, rest

    async def add_users(
        self,
        audience_id: str,
        token: str,
        secret: str | None,
        payload: Mapping[str, Any],
        session: Session,
    ) -> tuple[Uploaded, float]:
        """Add a batch to a Custom Audience; adding it again changes nothing. And as `me`. Raises GraphError."""
        about = {
            "session_id": session.id,
            "batch_seq": session.batch,
            "last_batch_flag": session.last,
            "estimated_num_total": session.people,
        }
        # In threads, here and below: of ten thousand rows it takes a tenth of a second, and hits would wait.
        encoded = await asyncio.to_thread(msgspec.json.encode, payload)
        form = {"payload": encoded.decode(), "session": msgspec.json.encode(about).decode()}
        users, rest = await self._ask(f"/{audience_id}/users", token, secret, _Users, form, upload=True)
        return Uploaded(users.num_received, users.num_invalid_entries), rest

    async def _ask(
        self,
        path: str,
        token: str,
        secret: str | None,
        kind: type[Any],
        parameters: dict[str, str],
        upload: bool = False,
    ) -> tuple[Any, float]:
        if secret is not None:
            parameters["appsecret_proof"] = hmac.new(secret.encode(), token.encode(), hashlib.sha256).hexdigest()
        if not token or not all("!" <= letter <= "~" for letter in token):
            raise Expired(0)  # none of Facebook's, and no header
        headers = {"Authorization": f"Bearer {token}"}
        try:
            async with asyncio.timeout(_UPLOAD_SECONDS if upload else _CALL_SECONDS):
                status, sent, body = await self._send(path, headers, parameters, upload)
        except (httpx.HTTPError, TimeoutError, OSError):
            # `from None`: their texts name addresses and headers.
            raise Later(0, None, of_the_app=False) from None
        rest = _rest(sent)
        if status == 200:
            try:
                return msgspec.json.decode(body, type=kind), rest
            except msgspec.MsgspecError:
                raise Later(0, None, False, rest) from None
        raise _failure(status, sent, body, rest)

    async def _send(
        self, path: str, headers: dict[str, str], parameters: dict[str, str], upload: bool
    ) -> tuple[int, httpx.Headers, bytes]:
        build = self._client.build_request
        if upload:
            request = await asyncio.to_thread(
                build, "POST", path, headers=headers, data=parameters, timeout=_UPLOAD_SECONDS
            )
        else:
            request = build("GET", path, headers=headers, params=parameters)
        response = await self._client.send(request, stream=True)
        try:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _REPLY_BYTES:
                    raise httpx.TransportError("too long")
            return response.status_code, response.headers, bytes(body)
        finally:
            await response.aclose()


def _failure(status: int, headers: httpx.Headers, body: bytes, rest: float) -> GraphError:
    try:
        error = msgspec.json.decode(body, type=_Failure).error
    except msgspec.MsgspecError:
        error = _Error()
    if error.code in _EXPIRED:
        return Expired(error.code, rest)
    # A redirect, too: something in between answers, and will not for ever.
    if error.code in _LATER or error.is_transient or status in (408, 429) or not 400 <= status < 500:
        told = headers.get("retry-after", "")
        seconds = min(float(told), _LONGEST_REST) if told.isdecimal() and told.isascii() else rest or None
        return Later(error.code, seconds, error.code in _OF_THE_APP or status == 429, rest)
    return Refused(error.code, rest)


def _rest(headers: httpx.Headers) -> float:
    """For how many seconds the usage headers want us to leave Graph alone."""
    usages: list[_Usage] = []
    try:
        if of_app := headers.get("x-app-usage"):
            usages.append(msgspec.json.decode(of_app, type=_Usage))
        if of_business := headers.get("x-business-use-case-usage"):
            for each in msgspec.json.decode(of_business, type=dict[str, Sequence[_Usage]]).values():
                usages += each
    except msgspec.MsgspecError:
        return 0.0  # they advise only
    longest = 0.0
    for usage in usages:
        if usage.estimated_time_to_regain_access > 0:
            longest = max(longest, usage.estimated_time_to_regain_access * 60)
        elif max(usage.call_count, usage.total_time, usage.total_cputime) >= _NEARLY_USED_UP:
            longest = max(longest, _NEARLY_REST)
    return min(longest, _LONGEST_REST)
