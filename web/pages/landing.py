"""What somebody sees who does not know onepx yet."""

from litestar import Response, get

from tenants.hits import decode
from tenants.snippets import img_tag, pixel_url
from web.guards import AnyRequest, maybe_me
from web.rendering import go, render

# Nobody's: a real token has 96 random bits.
_EXAMPLE_TOKEN = "0f8a6d5c4b3e2a1908f7e6d5"  # noqa: S105
# What people do wrong most.
_MISTAKEN = "event_token=purchase&amount=25.00"


@get("/")
async def landing(request: AnyRequest) -> Response[bytes]:
    """What onepx is and what its snippet looks like; whoever is logged in goes on to their apps."""
    if await maybe_me(request):
        return go("/apps")
    address = pixel_url(
        request.app.state.pixel_url,
        _EXAMPLE_TOKEN,
        "revenue",
        "purchase",
        params={"plan": "pro"},
        encoding="url",
        amount=2500,
        currency="EUR",
    )
    rejection = decode("revenue", _MISTAKEN.encode(), "EUR", privacy=False)
    return await render(
        request, "landing/landing.html", snippet=img_tag(address), mistaken=_MISTAKEN, rejection=rejection
    )


handlers = [landing]
