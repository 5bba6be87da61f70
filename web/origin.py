"""No other site may act for somebody who is logged in here: unsafe methods are refused unless they come from our pages.

Browsers say where a request comes from (`Sec-Fetch-Site`; older ones at least `Origin`, on every POST), and a page
cannot forge either. So no form needs a token, with script and without. What says neither is no browser's form.
"""

from urllib.parse import urlsplit

from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_REFUSAL = (
    b"This form was sent from another site, so nothing was changed. Open the page here and send it again.\n"
    b"If it was a form of this site, ONEPX_PUBLIC_URL is not the address in your browser: tell whoever runs it.\n"
)


class SameOrigin:
    """Middleware that answers 403 to unsafe methods from elsewhere."""

    def __init__(self, app: ASGIApp, public_url: str) -> None:
        self._app = app
        self._public_origin = public_url.rstrip("/").lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._needs_no_origin(scope) or self._is_ours(dict(scope["headers"])):
            await self._app(scope, receive, send)
            return
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(_REFUSAL)).encode())]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": _REFUSAL, "more_body": False})

    def _needs_no_origin(self, scope: HTTPScope) -> bool:
        # The API takes a key, which no browser sends by itself, and no cookie.
        return scope["method"] in _SAFE or scope["path"].startswith("/api/")

    def _is_ours(self, headers: dict[bytes, bytes]) -> bool:
        site = headers.get(b"sec-fetch-site")
        if site is not None:
            return site == b"same-origin"
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin == self._public_origin:
            return True
        # Reached by another name than the public one (a port forwarded, an address typed): the same host will do. By
        # the public one it will not: anybody on the way can make a page of that host without TLS.
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if f"https://{host}" == self._public_origin:
            return False
        return bool(host) and origin in (f"http://{host}", f"https://{host}") and urlsplit(origin).netloc == host
