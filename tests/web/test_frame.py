"""The frame of the pages: assets, headers, other sites' forms, error pages, how numbers read."""

import gzip
import html
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from litestar._parsers import (  # pyright: ignore[reportPrivateUsage]
    parse_cookie_string,
    parse_query_string,
    parse_url_encoded_form_data,
)

from tenants.errors import Unavailable
from tenants.keys import create_key
from tenants.tables import App, Tenant
from tenants.tokens import list_tokens
from web.assets import Assets
from web.guards import MOST_PARAMETERS, FormRequest
from web.origin import SameOrigin
from web.rendering import ago, moment, money, number, percent


async def test_assets_are_kept_for_ever_under_their_hash_and_are_compressed(anonymous: httpx.AsyncClient) -> None:
    page = await anonymous.get("/login")
    address = page.text.partition('<link rel="stylesheet" href="')[2].partition('"')[0]
    reply = await anonymous.get(address)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/css")
    assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert reply.headers["content-encoding"] == "gzip"
    plain = await anonymous.get(address, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == reply.content
    assert (await anonymous.get(address.replace("/static/", "/static/0"))).status_code == 404


def test_an_asset_that_changes_has_another_address(tmp_path: Path) -> None:
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor/htmx.js").write_text("one")
    before = Assets(tmp_path)
    (tmp_path / "vendor/htmx.js").write_text("two")
    after = Assets(tmp_path)
    assert before.address("vendor/htmx.js") != after.address("vendor/htmx.js")
    found = before.find(before.address("vendor/htmx.js").removeprefix("/static/"))
    assert found is not None
    assert gzip.decompress(found.compressed) == found.body == b"one"


def test_without_the_libraries_from_npm_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="build the package"):
        Assets(tmp_path)


@pytest.mark.parametrize("path", ["/", "/login", "/api/docs", "/nothing-here", "/apps"])
async def test_every_page_carries_the_strict_policy(anonymous: httpx.AsyncClient, path: str) -> None:
    reply = await anonymous.get(path)
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "same-origin", "origin": "https://evil.example"}, True),
        ({"sec-fetch-site": "same-site", "origin": "https://px.example.com"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"origin": "https://px.example.com"}, True),
        ({"origin": "https://PX.example.com"}, True),
        ({"origin": "http://px.example.com"}, False),
        ({"origin": "http://px.example.com", "host": "px.example.com"}, False),
        ({"origin": "https://px.example.com", "host": "px.example.com"}, True),
        ({"origin": "https://px.example.com.evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://127.0.0.1:8000", "host": "127.0.0.1:8000"}, True),
        ({"origin": "http://127.0.0.1:8000", "host": "127.0.0.1:9000"}, False),
        ({"origin": "http://", "host": ""}, False),
        ({"referer": "https://px.example.com/login"}, False),
        ({}, False),
    ],
)
async def test_forms_of_other_sites_are_refused(headers: dict[str, str], allowed: bool) -> None:
    reached: list[str] = []
    sent: list[int] = []

    async def app(scope: object, receive: object, send: object) -> None:
        reached.append("app")

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            sent.append(int(str(message["status"])))

    async def receive() -> dict[str, object]:
        raise AssertionError("nothing is read")

    guard = SameOrigin(app, "https://px.example.com")  # pyright: ignore[reportArgumentType]
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        reached.clear()
        sent.clear()
        scope = {
            "type": "http",
            "method": method,
            "path": "/apps/new",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        await guard(scope, receive, send)  # pyright: ignore[reportArgumentType]
        assert (reached, sent) == ((["app"], []) if allowed else ([], [403]))
        # The API takes no cookie, so nobody's browser can be made to use it.
        reached.clear()
        await guard(scope | {"path": "/api/v1/x"}, receive, send)  # pyright: ignore[reportArgumentType]
        assert reached == ["app"]
    await guard({"type": "http", "method": "GET", "headers": []}, receive, send)  # pyright: ignore[reportArgumentType]
    assert reached[-1:] == ["app"]


async def test_a_refused_form_says_what_the_operator_may_have_forgotten(anonymous: httpx.AsyncClient) -> None:
    # A proxy without TLS, so that browsers do not say Sec-Fetch-Site, which hands on a Host of its own.
    del anonymous.headers["Sec-Fetch-Site"]
    reply = await anonymous.post("/login", headers={"Origin": "http://intranet", "Host": "127.0.0.1:8000"})
    assert (reply.status_code, "ONEPX_PUBLIC_URL" in reply.text) == (403, True)


async def test_what_strangers_send_is_not_kept_for_the_next_one(anonymous: httpx.AsyncClient) -> None:
    kept = (parse_cookie_string, parse_query_string, parse_url_encoded_form_data)
    for each in kept:
        each.cache_clear()
    anonymous.cookies.set("notice", "saved")
    page = await anonymous.get("/login?next=/account", headers={"Host": "no:host:at:all"})
    assert "Saved." in page.text
    assert 'value="/account"' in page.text
    refused = await anonymous.post("/login?a=b", data={"email": "ann@example.org", "password": "a secret of mine"})
    assert refused.status_code == 422
    assert 'value="ann@example.org"' in refused.text
    await anonymous.get("/api/v1/apps/0/events?limit=3")
    assert [each.cache_info().currsize for each in kept] == [0, 0, 0]


async def test_a_form_has_so_many_fields_at_most(anonymous: httpx.AsyncClient) -> None:
    most = {f"field{number}": "" for number in range(MOST_PARAMETERS)}
    assert (await anonymous.post("/login", data=most)).status_code == 422
    refused = await anonymous.post("/login", data=most | {"email": "ann@example.org"})
    assert (refused.status_code, "at most" in refused.text) == (400, True)


async def test_letters_that_were_not_escaped_are_utf_8(anonymous: httpx.AsyncClient) -> None:
    """As curl sends them in an address or a form."""
    scope = {"type": "http", "query_string": "a=größe&b=gr%C3%B6%C3%9Fe&c=".encode() + b"\xff"}
    asked: FormRequest = FormRequest(scope, None, None)  # pyright: ignore[reportArgumentType]
    assert dict(asked.query_params) == {"a": "größe", "b": "größe", "c": "\N{REPLACEMENT CHARACTER}"}
    refused = await anonymous.post(
        "/login",
        content="email=zoë@example.org&password=wrong".encode(),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert 'value="zoë@example.org"' in refused.text


async def test_errors_are_pages_for_people_and_json_for_programs(anonymous: httpx.AsyncClient) -> None:
    page = await anonymous.get("/nothing-here")
    assert page.status_code == 404
    assert page.headers["content-type"].startswith("text/html")
    assert "<h1>Not found</h1>" in page.text
    page = await anonymous.get("/account/profile/email")
    assert page.status_code == 405
    assert "Forms are sent to this address" in page.text
    program = await anonymous.get("/api/v1/nothing-here")
    assert program.status_code == 404
    assert program.json()["status_code"] == 404


@pytest.mark.parametrize("path", ["/apps", "/apps/nothing-here", "/nothing-here", "/api/docs"])
async def test_every_page_leads_to_the_account_and_out(
    owner: httpx.AsyncClient, anonymous: httpx.AsyncClient, path: str
) -> None:
    page = (await owner.get(path)).text
    assert '<a href="/account">Account</a>' in page
    assert '<form method="post" action="/logout">' in page
    assert "Log in" not in page
    assert "/account" not in (await anonymous.get(path)).text


async def test_whoever_is_not_logged_in_is_led_to_the_login_and_back(anonymous: httpx.AsyncClient) -> None:
    reply = await anonymous.get("/apps?period=7d&params.x=a%26b")
    assert reply.status_code == 303
    assert reply.headers["location"] == "/login?next=%2Fapps%3Fperiod%3D7d%26params.x%3Da%2526b"
    fragment = await anonymous.get("/apps/counts", headers={"HX-Request": "true"})
    assert (fragment.status_code, fragment.headers["hx-refresh"]) == (401, "true")


async def test_what_was_typed_is_kept_when_the_session_has_ended(
    owner: httpx.AsyncClient, anonymous: httpx.AsyncClient, alice: Tenant
) -> None:
    typed = {"name": "R&D <b>", "currency": "EUR", "timezone": "UTC"}
    address = f"/apps/new?account={alice.id}"
    page = await anonymous.post(address, data=typed)
    assert (page.status_code, page.headers["cache-control"]) == (401, "no-store")
    assert "Your session has ended" in page.text
    assert 'href="/login" target="_blank"' in page.text
    assert f'<form method="post" action="{address}"' in page.text
    kept = dict(re.findall(r'type="hidden" name="([^"]*)" value="([^"]*)"', page.text))
    assert {name: html.unescape(value) for name, value in kept.items()} == typed
    # Logged in meanwhile, in another tab of the same browser.
    assert (await owner.post(address, data=typed)).status_code == 303
    # Secrets never come back: they are typed again.
    reply = await anonymous.post(
        "/account/profile/email", data={"email": "me@example.org", "email_password": "of mine"}
    )
    assert reply.status_code == 401
    assert 'type="hidden" name="email" value="me@example.org"' in reply.text
    assert '<input id="email_password" name="email_password" type="password" value=""' in reply.text
    assert "of mine" not in reply.text
    # Nothing was typed.
    reply = await anonymous.post("/account/sessions/end-others")
    assert (reply.status_code, reply.headers["location"]) == (303, "/login")
    assert (await anonymous.post("/account", data=typed, headers={"HX-Request": "true"})).headers["hx-refresh"]


async def test_what_was_typed_is_kept_while_a_database_is_away(
    owner: httpx.AsyncClient, shop: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> None:
        raise Unavailable

    monkeypatch.setattr("tenants.apps.change_app", away)
    typed = {"name": "Store", "currency": "EUR", "timezone": "UTC", "retention_days": ""}
    page = await owner.post(f"/apps/{shop.id}/settings", data=typed)
    assert page.status_code == 503
    assert dict(re.findall(r'type="hidden" name="([^"]*)" value="([^"]*)"', page.text)) == typed
    assert "Send it again" in page.text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/apps", 200),
        ("/login", 303),
        ("/apps/{shop}/waiting", 204),
        ("/apps/{shop}/export", 200),
        ("/nothing", 404),
        ("/api/v1/apps/{token}/events", 200),
        ("/api/v1/apps/{token}/totals", 200),
        ("/api/v1/apps/nothing/events", 404),
    ],
)
async def test_what_a_tenant_sees_is_not_kept_by_caches(
    owner: httpx.AsyncClient, alice: Tenant, shop: App, path: str, status: int
) -> None:
    (token,) = await list_tokens(shop)
    _, key = await create_key(alice, "Reports")
    headers = {"Authorization": f"Bearer {key}"} if path.startswith("/api") else {}
    reply = await owner.get(path.format(shop=shop.id, token=token.token), headers=headers)
    assert reply.status_code == status
    assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (-7, "-7"),
        (24_980, "24,980"),
        (-999_999, "-999,999"),
        (1_000_000, "1.00M"),
        (-1_239_999, "-1.24M"),
        (12_345_678, "12.3M"),
        (999_499_999, "999M"),
        (999_999_999, "1.00B"),
        (4_500_000_000_000, "4.50T"),
        (10**15, "1,000T"),
    ],
)
def test_numbers_are_for_people_and_exact_on_hover(value: int, shown: str) -> None:
    text = str(number(value))
    assert f">{shown}<" in text
    assert (f'title="{value:,}"' in text) == (abs(value) > 999_999)


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        (2500, "USD", "25.00 USD"),
        (-5, "EUR", "-0.05 EUR"),
        (1_234_567, "JPY", "1,234,567 JPY"),
        (1_234_567, "KWD", "1,234.567 KWD"),
        (10**15, "CLF", "100,000,000,000.0000 CLF"),
    ],
)
def test_money_is_exact(amount: int, currency: str, shown: str) -> None:
    assert money(amount, currency) == shown


def test_times_are_in_the_zone_of_the_page() -> None:
    at = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    assert ">29 Mar 2026, 03:30<" in str(moment(at, "Europe/Berlin"))
    assert ">29 Mar 2026, 07:00:00<" in str(moment(at, "Asia/Kolkata", seconds=True))
    assert ">2 days ago<" in str(ago(at, at + timedelta(days=2, hours=5)))
    assert ">1 minute ago<" in str(ago(at, at + timedelta(seconds=61)))
    assert ">just now<" in str(ago(at, at + timedelta(seconds=59)))
    assert percent(0.1234) == "12.3\u202f%"
