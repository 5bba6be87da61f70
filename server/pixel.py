"""The pixel: a raw ASGI application that accepts a hit and answers once it is on disk.

It reads top to bottom as a hit's way: whose token, who is asking, within the limit, into the journal, GIF. What the
hit means is found out later, by the digest. Only `debug=1` waits for that.
"""

import functools
import ipaddress
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from server.journal import Hit, Journal
from server.limits import Limiter
from server.routes import Routes
from tenants.hits import KEPT_QUERY, wants_debug
from tenants.tokens import Route

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

# 1x1, two colours, the first transparent: 43 bytes (GIF89a specification, sections 17 to 27).
GIF = (
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff"
    b"!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
)
GIF_HEADERS: Headers = [
    (b"content-type", b"image/gif"),
    (b"content-length", b"43"),
    (b"cache-control", b"no-cache, no-store, must-revalidate, private, max-age=0"),
    (b"pragma", b"no-cache"),
    (b"expires", b"0"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"cross-origin"),
    (b"access-control-allow-origin", b"*"),
]
_METHODS = b"GET, HEAD, OPTIONS"
# Scripts on other sites, which debug, may read no header that is not named here.
_EXPOSED = (b"access-control-expose-headers", b"X-Onepx-Result, X-Onepx-Warnings")
_RECORDED: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": GIF_HEADERS}
_GIF_BODY: dict[str, Any] = {"type": "http.response.body", "body": GIF, "more_body": False}
_NO_BODY: dict[str, Any] = {"type": "http.response.body", "body": b"", "more_body": False}

_CATEGORIES = {"/event.gif": 0, "/revenue.gif": 1}
_TOKEN = re.compile(r"[0-9a-f]{24}", re.ASCII)
# The cookie as we write it: a version 4 UUID. Anything else is replaced.
_VISITOR = re.compile(
    rb"(?:^|;)[ \t]*vid=([0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})[ \t]*(?:;|$)"
)
# Longer ones are made up; a real browser's has 100 to 300 bytes.
_USER_AGENT_BYTES = 512
_REFERRER_BYTES = 2048
# A tenant's rate is at least one a second, so within a second there is a token again.
_RETRY_LIMITED = b"1"
_RETRY_UNAVAILABLE = b"10"


class Outcomes(Protocol):
    """Tells what became of a hit that asked for it with debug=1."""

    def watch(self) -> int:
        """A number to mark the hit with, so that its outcome is told by `outcome`; 0 when it can only be foretold."""
        ...

    def forget(self, watch: int) -> None:
        """The hit was not kept: nobody will ask."""
        ...

    async def outcome(self, hit: Hit, route: Route) -> tuple[str, tuple[str, ...]]:
        """The result and the warnings of the hit."""
        ...


class PixelFigures:
    """Hits by what this process answered, for /metrics."""

    __slots__ = ("accepted", "limited", "refused", "unknown")

    def __init__(self) -> None:
        self.accepted = self.limited = self.refused = self.unknown = 0


class Pixel:
    """ASGI application for `/{app_token}/{category}.gif`."""

    def __init__(
        self, routes: Routes, limiter: Limiter, journal: Journal, outcomes: Outcomes, trusted_proxies: int
    ) -> None:
        self.figures = PixelFigures()
        # When each token was last used (Unix seconds), since somebody took what was here: `_keep_last_used` in app.py.
        self.used: dict[str, float] = {}
        self._routes = routes
        self._limiter = limiter
        self._journal = journal
        self._outcomes = outcomes
        self._trusted_proxies = trusted_proxies

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        method: str = scope["method"]
        token = path[1:25]
        category = _CATEGORIES.get(path[25:])
        if category is None or not _TOKEN.fullmatch(token):
            await self._unknown(
                send,
                b"No pixel here: a pixel's address is /{app token}/event.gif or /{app token}/revenue.gif.\n",
            )
            return
        if method == "OPTIONS":
            await _answer_options(send)
            return
        if method not in ("GET", "HEAD"):
            await _text(send, 405, b"A pixel is loaded with GET.\n", [(b"allow", _METHODS)])
            return

        route = self._routes.by_token.get(token)
        if route is None:
            try:
                route = await self._routes.find(token)
            except Exception:
                # Whether the token exists cannot be told now: the hit may be a good one. Routes logs it, once.
                self.figures.refused += 1
                await self._gif(send, method, 503, [(b"retry-after", _RETRY_UNAVAILABLE)])
                return
        now = time.time()
        if route is None or (route.expires_at is not None and route.expires_at <= now):
            await self._unknown(send, b"Unknown app token: it was never issued, or it was revoked or has expired.\n")
            return

        user_agent = referrer = cookie = purpose = forwarded = b""
        signalled = False
        for name, value in scope["headers"]:
            if name == b"user-agent":
                user_agent = value[:_USER_AGENT_BYTES]
            elif name == b"referer":
                referrer = value[:_REFERRER_BYTES]
            elif name == b"cookie":
                cookie = cookie + b"; " + value if cookie else value
            elif name == b"x-forwarded-for":
                forwarded = forwarded + b"," + value if forwarded else value
            elif name == b"sec-gpc" or name == b"dnt":
                signalled = signalled or value == b"1"
            elif name == b"sec-purpose" or name == b"purpose" or name == b"x-moz":
                purpose = purpose or value[:64]

        privacy = signalled and route.honour_privacy
        extra: Headers = []
        visitor: bytes | None = None
        is_new = False
        network = ""
        if privacy:
            user_agent = b""
        else:
            known = _VISITOR.search(cookie) if cookie else None
            if known:
                visitor = bytes.fromhex(known[1].replace(b"-", b"").decode())
            else:
                visitor, set_cookie = new_visitor(token)
                is_new = True
                extra.append((b"set-cookie", set_cookie))
            network = self._network(scope["client"], forwarded)
        query: bytes = scope["query_string"]
        debug = wants_debug(query)
        query = query[:KEPT_QUERY]

        if method == "HEAD":
            await self._gif(send, method, 200, extra)
            return
        try:
            within = self._limiter.take(route.tenant_id, route.rate, route.burst)
        except OSError:  # the disk is full, and the tenant's bucket was not on it yet
            self.figures.refused += 1
            await self._gif(send, method, 503, [(b"retry-after", _RETRY_UNAVAILABLE)])
            return
        if not within:
            self.figures.limited += 1
            self._journal.count_limited(route.app_id.bytes, int(now) // 60 * 60)
            await self._gif(send, method, 429, [(b"retry-after", _RETRY_LIMITED)])
            return
        hit = (
            int(now * 1000),
            route.app_id.bytes,
            category,
            query,
            visitor,
            privacy,
            network,
            user_agent,
            referrer,
            purpose,
            self._outcomes.watch() if debug else 0,
            is_new,
            route.currency,
        )
        if not await self._journal.append(hit):
            self.figures.refused += 1
            if debug:
                self._outcomes.forget(hit[10])
            await self._gif(send, method, 503, [(b"retry-after", _RETRY_UNAVAILABLE)])
            return
        self.figures.accepted += 1
        self.used[token] = now
        if debug:
            result, warnings = await self._outcomes.outcome(Hit(*hit), route)
            extra += ((b"x-onepx-result", result.encode()), _EXPOSED)
            if warnings:
                extra.append((b"x-onepx-warnings", ",".join(warnings).encode()))
        if extra:
            await send({"type": "http.response.start", "status": 200, "headers": GIF_HEADERS + extra})
        else:
            await send(_RECORDED)
        await send(_GIF_BODY)

    def _network(self, client: tuple[str, int] | None, forwarded: bytes) -> str:
        """The network the hit came from, as the outermost trusted proxy saw it; '' when that cannot be told."""
        return network_of(_believed(client, forwarded, self._trusted_proxies))

    async def failed(self, send: Send) -> None:
        """Answer a hit that met a bug of ours: the layout it stands in must not break."""
        self.figures.refused += 1
        await self._gif(send, "GET", 503, [(b"retry-after", _RETRY_UNAVAILABLE)])

    async def _unknown(self, send: Send, sentence: bytes) -> None:
        self.figures.unknown += 1
        await _text(send, 404, sentence)

    async def _gif(self, send: Send, method: str, status: int, extra: Headers) -> None:
        await send({"type": "http.response.start", "status": status, "headers": GIF_HEADERS + extra})
        await send(_NO_BODY if method == "HEAD" else _GIF_BODY)


_MAX_ADDRESS = 64


def _believed(client: tuple[str, int] | None, forwarded: bytes, trusted_proxies: int) -> str:
    """The address a request came from, as the outermost trusted proxy saw it."""
    if trusted_proxies:
        hops = forwarded.split(b",")
        # Fewer entries than proxies: the request came around them, and nothing in the header can be believed.
        if len(hops) >= trusted_proxies and (hop := hops[-trusted_proxies].strip()):
            # No address is as long, and what comes around the proxies is remembered by `network_of`.
            return hop.decode("latin-1") if len(hop) <= _MAX_ADDRESS else ""
    return client[0] if client else ""


def client_address(scope: Mapping[str, Any], trusted_proxies: int) -> str:
    """The whole address of who asks for a page, '' when it is not known: logins are limited by it, nothing keeps it."""
    forwarded = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
    parsed = _parsed(_believed(scope["client"], forwarded, trusted_proxies))
    return str(parsed) if parsed is not None else ""


class _Randomness:
    """Random bytes drawn in bulk: asking the kernel lets go of the interpreter's lock, too dear for each visitor."""

    def __init__(self) -> None:
        self._drawn = b""
        self._used = 0

    def take(self, count: int) -> bytes:
        """`count` bytes that were never given before."""
        if self._used + count > len(self._drawn):
            self._drawn, self._used = os.urandom(256 * count), 0
        self._used += count
        return self._drawn[self._used - count : self._used]


_randomness = _Randomness()
# A fork must not hand the same bytes to two processes.
os.register_at_fork(after_in_child=_randomness.__init__)


def new_visitor(token: str) -> tuple[bytes, bytes]:
    """A new visitor's id (16 bytes, UUID version 4) and the Set-Cookie value that gives it.

    Written by hand: http.cookies knows `Partitioned` only from Python 3.14 on.
    """
    number = bytearray(_randomness.take(16))
    number[6] = number[6] & 0x0F | 0x40
    number[8] = number[8] & 0x3F | 0x80
    text = number.hex()
    cookie = (
        f"vid={text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}; Path=/{token}; "
        "Max-Age=31536000; Secure; HttpOnly; SameSite=None; Partitioned"
    )
    return bytes(number), cookie.encode()


# Visitors come back: the cache spares the parsing. An entry takes about 200 bytes.
@functools.lru_cache(maxsize=32_768)
def network_of(address: str) -> str:
    """The address cut to /24 (IPv4) or /48 (IPv6); '' for what is no address. Ports and brackets are skipped."""
    parsed = _parsed(address)
    if parsed is None:
        return ""
    bits = 24 if parsed.version == 4 else 48
    return str(ipaddress.ip_network(f"{parsed}/{bits}", strict=False))


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if address.startswith("["):
        address = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        address = address.partition(":")[0]
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return (parsed.ipv4_mapped or parsed) if isinstance(parsed, ipaddress.IPv6Address) else parsed


async def _answer_options(send: Send) -> None:
    headers: Headers = [
        (b"access-control-allow-origin", b"*"),
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", b"*"),
        (b"access-control-max-age", b"86400"),
        (b"allow", _METHODS),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send(_NO_BODY)


async def _text(send: Send, status: int, sentence: bytes, extra: Headers | None = None) -> None:
    headers: Headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(sentence)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        # Else a script on a customer's page would hear of CORS, and not what is wrong.
        (b"access-control-allow-origin", b"*"),
        *(extra or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": sentence, "more_body": False})
