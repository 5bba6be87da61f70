"""The landing page: a snippet that works, tried by whoever comes, and nothing of strangers shown to others."""

import html
import re
import time
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import httpx
import pytest
from application import Site

from server.event_store import EventStore
from server.journal import hit_id
from tenants import accounts, tokens
from tenants.events import event_row, rejection_row
from tenants.hits import Event, decode
from tenants.showcase import EMAIL, showcase

HTMX = {"HX-Request": "true"}


async def sent(browser: httpx.AsyncClient, example: str, **headers: str) -> tuple[str, str]:
    """The addresses of the pixel that an example loads, and of what becomes of it."""
    reply = await browser.post("/try", data={"example": example}, headers=headers)
    assert reply.status_code == 200
    (image,) = re.findall(r'<img src="([^"]+)"', reply.text)
    (outcome,) = set(re.findall(r'(?:hx-get|href)="(/try/[^"]+)"', reply.text))
    return html.unescape(image), html.unescape(outcome)


async def arrive(store: EventStore, query: str) -> None:
    """Digest a hit with this query, of the app that everybody may send to."""
    app = (await showcase()).app
    became = decode("revenue", query.encode(), "EUR", privacy=False)
    now = int(time.time() * 1000)
    number = hit_id(1, 0, now)
    if isinstance(became, Event):
        row = event_row(became, app.id.int, now, number, "revenue", 0, "", b"UA", b"", b"")
        await store.insert("events", [row], uuid4().hex)
    else:
        await store.insert("rejections", [rejection_row(became, app.id.int, now, number, "revenue")], uuid4().hex)


async def test_the_snippet_has_a_token_that_takes_hits(anonymous: httpx.AsyncClient, owner: httpx.AsyncClient) -> None:
    page = await anonymous.get("/")
    assert page.status_code == 200
    (shown,) = re.findall(r'<code id="snippet">(.*?)</code>', page.text)
    snippet = re.match(r'<img src="http://onepx\.test/([0-9a-f]{24})/revenue\.gif\?', html.unescape(shown))
    assert snippet is not None
    assert snippet[1] in [route.token for route in await tokens.unscoped_routes(0) if not route.revoked]
    assert 'href="/signup"' in page.text
    assert 'href="/login"' in page.text
    home = await owner.get("/")
    assert (home.status_code, home.headers["location"]) == (303, "/apps")


@pytest.mark.parametrize("headers", [{}, HTMX])
async def test_an_example_is_loaded_and_what_it_became_is_shown(
    anonymous: httpx.AsyncClient, event_store: EventStore, headers: dict[str, str]
) -> None:
    image, outcome = await sent(anonymous, "purchase", **headers)
    asked = dict(parse_qsl(urlsplit(image).query))
    assert set(asked) == {"event_token", "amount", "currency", "params", "cb"}
    assert asked["params"] == '{"plan": "pro"}'
    assert "Waiting for what becomes of it" in (await anonymous.get(outcome, headers=headers)).text
    await arrive(event_store, urlsplit(image).query)
    became = (await anonymous.get(outcome, headers=headers)).text
    assert "recorded" in became
    assert "25.00 EUR" in became
    assert " UTC" in became
    assert "hx-trigger" not in became
    assert ("<html" in became) is not bool(headers)


async def test_a_mistake_says_what_to_change(anonymous: httpx.AsyncClient, event_store: EventStore) -> None:
    image, outcome = await sent(anonymous, "mistake", **HTMX)
    await arrive(event_store, urlsplit(image).query)
    became = (await anonymous.get(outcome, headers=HTMX)).text
    assert "invalid_amount" in became
    assert "minor unit" in became


async def test_nothing_of_strangers_is_shown(anonymous: httpx.AsyncClient, event_store: EventStore) -> None:
    nonce = uuid4().hex
    for query in (
        f"event_token=BUY-AT-EVIL&amount=1&cb={nonce}",
        f"event_token=purchase&amount=BUY-AT-EVIL&cb={nonce}",
        f"event_token=purchase&amount=25.00&note=BUY-AT-EVIL&cb={nonce}",
        f"event_token=purchase&amount=25.00&cb={nonce}&cb=BUY-AT-EVIL",
    ):
        await arrive(event_store, query)
    for example in ("purchase", "mistake", "BUY-AT-EVIL"):
        for headers in ({}, HTMX):
            now = int(time.time() * 1000)
            page = await anonymous.get(f"/try/{nonce}?example={example}&sent={now}", headers=headers)
            assert "Waiting for what becomes of it" in page.text
            # In the address it stands as it was asked for.
            assert "BUY-AT-EVIL" not in re.sub(r'"/try/[^"]*"', "", page.text)


async def test_what_does_not_arrive_is_said_to_be_lost(anonymous: httpx.AsyncClient) -> None:
    _, outcome = await sent(anonymous, "purchase")
    late = re.sub(r"sent=\d+", "sent=1700000000000", outcome)
    assert "Nothing has arrived" in (await anonymous.get(late)).text
    for wrong in ("x", "9" * 40, "-5"):
        assert (await anonymous.get(re.sub(r"sent=\d+", f"sent={wrong}", outcome))).status_code == 200
    for nonce in ("x", "%22%3E%3Cscript%3E", "a" * 900):
        page = await anonymous.get(f"/try/{nonce}?example=%22%3E%3Cscript%3E&sent=1")
        assert page.status_code == 200
        assert "><script>" not in page.text


async def test_forms_that_no_page_sends_try_the_first_example(anonymous: httpx.AsyncClient) -> None:
    for form in ({}, {"example": "nonsense"}):
        reply = await anonymous.post("/try", data=form)
        assert "plan%22" in reply.text
    file = {"example": ("mistake", b"mistake", "text/plain")}
    assert (await anonymous.post("/try", files=file)).status_code == 200
    other_site = {"Sec-Fetch-Site": "cross-site"}
    assert (await anonymous.post("/try", headers=other_site)).status_code == 403


async def test_a_token_that_was_revoked_is_shown_no_longer(
    site: Site, anonymous: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = (await showcase()).token
    assert first in (await anonymous.get("/")).text
    await accounts.delete_tenant(await accounts.tenant_by_email(EMAIL))
    # It is asked for once a minute.
    assert first in (await anonymous.get("/")).text
    later = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: later)
    page = (await anonymous.get("/")).text
    monkeypatch.undo()
    assert first not in page
    assert (await showcase()).token in page
