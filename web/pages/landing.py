"""What somebody sees who does not know onepx yet: what it is, a snippet that works, and what became of it.

Everybody may send hits with its token, so of what was sent nothing is shown but hits that read exactly as ours do: no
stranger can put words on this page.
"""

import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import msgspec
from litestar import Response, get, post
from litestar.params import FromPath

from tenants.hits import Event, Rejection, decode
from tenants.live import hits_with
from tenants.showcase import Showcase, showcase
from tenants.snippets import img_tag, pixel
from web.guards import AnyRequest, maybe_me
from web.rendering import go, is_htmx, render

_PURCHASE = pixel(
    "", "", "revenue", "purchase", params={"plan": "pro"}, encoding="url", amount=2500, currency="EUR"
).query
# The query of each, by name: one as it should be, and what people do wrong most.
_EXAMPLES = {"purchase": _PURCHASE, "mistake": "event_token=purchase&amount=25.00"}

# Its token changes when an operator deletes or revokes it: rarely, and a page may be open for longer.
_REMEMBERED_SECONDS = 60.0
_PATIENCE = timedelta(seconds=10)


class _Remembered(msgspec.Struct, frozen=True):
    showcase: Showcase
    until: float


async def _showcase(request: AnyRequest) -> Showcase:
    """The app whose snippet is shown, asked for once a minute: this page has to stand a rush of visitors."""
    state = request.app.state
    remembered: _Remembered | None = state.get("showcase")
    if remembered is None or remembered.until < time.monotonic():
        state.showcase = remembered = _Remembered(await showcase(), time.monotonic() + _REMEMBERED_SECONDS)
    return remembered.showcase


def _address(request: AnyRequest, token: str, query: str) -> str:
    return f"{request.app.state.pixel_url.rstrip('/')}/{token}/revenue.gif?{query}"


def _foretold(query: str) -> Event | Rejection:
    """What a hit with this query becomes."""
    return decode("revenue", query.encode(), "EUR", privacy=False)


def _example(name: str | None) -> str:
    return name if name in _EXAMPLES else "purchase"


@get("/")
async def landing(request: AnyRequest) -> Response[bytes]:
    """What onepx is and what its snippet does; whoever is logged in goes on to their apps."""
    if await maybe_me(request):
        return go("/apps")
    token = (await _showcase(request)).token
    return await render(
        request,
        "landing/landing.html",
        snippet=img_tag(_address(request, token, _PURCHASE)),
        mistake=_EXAMPLES["mistake"],
        examples={name: {"hit": _foretold(query)} for name, query in _EXAMPLES.items()},
    )


@post("/try", status_code=200)
async def send_example(request: AnyRequest) -> Response[bytes]:
    """Load the pixel for real, in the browser of whoever asks, marked so that it can be found again."""
    name = _example((await request.form()).get("example"))
    nonce = secrets.token_urlsafe(12)
    image = _address(request, (await _showcase(request)).token, f"{_EXAMPLES[name]}&cb={nonce}")
    asked = {"example": name, "sent": int(datetime.now(UTC).timestamp() * 1000)}
    return await _show(request, image=image, outcome_address=f"/try/{nonce}?{urlencode(asked)}")


@get("/try/{nonce:str}")
async def example_outcome(request: AnyRequest, nonce: FromPath[str]) -> Response[bytes]:
    """What an example that was sent became; asked again and again until it is known."""
    asked = request.query_params
    now = datetime.now(UTC)
    try:
        sent_at = datetime.fromtimestamp(int(asked.get("sent", "")) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        sent_at = now
    query = f"{_EXAMPLES[_example(asked.get('example'))]}&cb={nonce}"
    app = (await _showcase(request)).app
    hits = await hits_with(app, request.app.state.event_store, nonce)
    return await _show(
        request,
        hit=next((hit for hit in hits if hit.query == query), None),
        late=now - sent_at > _PATIENCE,
        outcome_address=f"{request.url.path}?{request.url.query}",
    )


async def _show(request: AnyRequest, **context: Any) -> Response[bytes]:
    context = {"image": None, "hit": None, "late": False, **context}
    return await render(request, f"landing/{'_became' if is_htmx(request) else 'try'}.html", **context)


handlers = [landing, send_example, example_outcome]
