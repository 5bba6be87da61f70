"""Every route, as whoever must not: anonymous, of another tenant, a viewer, a member. Nothing is shown or changed."""
# Litestar and Piccolo leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import httpx
import pytest
from application import SECRET_KEY, Site
from known import know
from litestar.routes import HTTPRoute

from tenants import apps, audiences, keys, members, sessions, tokens
from tenants.facebook import facebook_key
from tenants.reports.segments import Segment
from tenants.tables import TABLES, ApiKey, App, Role, Session, Tenant, User
from web.app import create_app


class NoStore:
    async def query(self, sql: str, parameters: Mapping[str, Any], whose: int) -> list[dict[str, Any]]:
        raise AssertionError("routes are only listed")


# Whom a page serves who is not logged in.
PUBLIC = {
    ("GET", "/"),
    ("POST", "/try"),
    ("GET", "/try/{nonce}"),
    ("GET", "/signup"),
    ("POST", "/signup"),
    ("GET", "/login"),
    ("POST", "/login"),
    ("POST", "/logout"),
    ("GET", "/join/{token}"),
    ("POST", "/join/{token}"),
}
# What a viewer changes: themselves.
OWN = {
    "/account/switch",
    "/account/leave",
    "/account/profile/name",
    "/account/profile/email",
    "/account/profile/password",
    "/account/sessions/{session_id}/end",
    "/account/sessions/end-others",
}
# Pages of what a viewer may not do, or take away.
FORMS = {
    "/apps/new",
    "/apps/{app_id}/delete",
    "/apps/{app_id}/people/{person_id}/delete",
    "/apps/{app_id}/people/{person_id}/export",
    "/apps/{app_id}/audiences/new",
    "/apps/{app_id}/audiences/{audience_id}/change",
    "/apps/{app_id}/audiences/{audience_id}/download",
    "/apps/{app_id}/audiences/download",
    "/account/delete",
}
OWNERS = {
    "/account",
    "/account/delete",
    "/account/people",
    "/account/people/{user_id}/role",
    "/account/people/{user_id}/remove",
    "/account/invitations/{invitation_id}/withdraw",
}


def pages() -> list[tuple[str, str]]:
    """(method, path with {names}) of every page."""
    found: list[tuple[str, str]] = []
    for route in create_app(NoStore(), public_url="http://127.0.0.1", version="0", secret_key="x" * 32).routes:
        if isinstance(route, HTTPRoute) and not route.path.startswith(("/api/", "/static/")):
            path = re.sub(r"{(\w+):\w+}", r"{\1}", route.path)
            found += [(method, path) for method in sorted(route.methods) if method not in ("OPTIONS", "HEAD")]
    return found


PAGES = pages()
PRIVATE = [page for page in PAGES if page not in PUBLIC]
CHANGES = [path for method, path in PRIVATE if method != "GET"]


@dataclass
class Things:
    """What alice's tenant has, by the name its paths have for it."""

    app: App
    values: dict[str, str]

    def fill(self, path: str) -> str:
        """The address of alice's thing. A new name in a path must be thought about here."""
        return re.sub(r"{(\w+)}", lambda found: self.values[found[1]], path)


@pytest.fixture
async def things(alice: Tenant, owner: httpx.AsyncClient, shop: App) -> Things:
    """`owner` so that they have a session."""
    user = await User.objects().where(User.email == "alice@example.org").first()
    assert user is not None
    (session,) = await sessions.list_sessions(user, datetime.now(UTC))
    (token,) = await tokens.list_tokens(shop)
    key, _ = await keys.create_key(alice, "Laptop")
    person = uuid4()
    await know(shop, person, email="reader@example.org")
    invitation, _ = await members.invite(alice, "new@example.org", Role.MEMBER, datetime.now(UTC))
    audience = await audiences.create(
        shop, facebook_key(SECRET_KEY), "Buyers", "1", "t" * 40, Segment(), False, datetime.now(UTC)
    )
    return Things(
        shop,
        {
            "app_id": str(shop.id),
            "token": token.token,
            "name": "totals",
            "person_id": str(person),
            "nonce": "a" * 16,
            "session_id": str(session.id),
            "key_id": str(key.id),
            "user_id": str(user.id),
            "invitation_id": str(invitation.id),
            "audience_id": str(audience.id),
        },
    )


# A form that every handler finds what it needs in.
FORM = {
    "name": "Evil",
    "email": "evil@example.org",
    "currency": "USD",
    "timezone": "UTC",
    "overlap": "0",
    "role": "owner",
    "event_token": "x",
    "password": "wrong wrong wrong",
    "current": "wrong wrong wrong",
    "facebook_app_id": "666",
    "facebook_secret": "e" * 32,
    "audience_id": "666",
    "audience_token": "e" * 40,
}


async def everything() -> dict[str, list[dict[str, Any]]]:
    """All rows of the control database."""
    return {
        table._meta.tablename: await table.select(*table.all_columns()).order_by(table._meta.primary_key)  # pyright: ignore[reportPrivateUsage]
        for table in TABLES
    }


async def ask(browser: httpx.AsyncClient, method: str, address: str) -> httpx.Response:
    return await browser.request(method, address, data=FORM if method != "GET" else None)


def test_the_pages_are_found() -> None:
    assert ("GET", "/apps/{app_id}/live") in PAGES
    assert ("POST", "/apps/{app_id}/delete") in PAGES
    assert set(PAGES) >= PUBLIC
    assert {*CHANGES} >= OWN | OWNERS


@pytest.mark.parametrize(("method", "path"), PRIVATE)
async def test_anonymous_visitors_are_led_to_the_login(
    anonymous: httpx.AsyncClient, things: Things, method: str, path: str
) -> None:
    before = await everything()
    reply = await ask(anonymous, method, things.fill(path))
    if method == "GET":
        assert reply.status_code == 303
        assert reply.headers["location"].startswith("/login")
        assert reply.content == b""
    else:
        # With what they sent, and nothing else.
        assert reply.status_code == 401
        assert "Your session has ended" in reply.text
        assert "Alice" not in reply.text
    assert await everything() == before


OF_APPS = [(method, path) for method, path in PRIVATE if "{app_id}" in path]


@pytest.mark.parametrize(("method", "path"), OF_APPS)
async def test_another_tenants_app_is_as_one_that_does_not_exist(
    stranger: httpx.AsyncClient, things: Things, method: str, path: str
) -> None:
    before = await everything()
    theirs = await ask(stranger, method, things.fill(path))
    things.values["app_id"] = str(uuid4())
    nobodys = await ask(stranger, method, things.fill(path))
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.content == nobodys.content
    assert await everything() == before


NESTED = [(method, path) for method, path in OF_APPS if re.search("{(token|audience_id|person_id)}", path)]


@pytest.mark.parametrize(("method", "path"), NESTED)
async def test_what_another_app_has_is_not_found_in_ones_own(
    stranger: httpx.AsyncClient, bob: Tenant, things: Things, method: str, path: str
) -> None:
    own, _ = await apps.create_app(bob, "Own")
    things.values["app_id"] = str(own.id)
    before = await everything()
    assert (await ask(stranger, method, things.fill(path))).status_code == 404
    assert await everything() == before


OF_OTHERS = [(method, path) for method, path in PRIVATE if "{" in path and "{app_id}" not in path]


@pytest.mark.parametrize(("method", "path"), OF_OTHERS)
async def test_another_tenants_things_are_not_found(
    stranger: httpx.AsyncClient, things: Things, method: str, path: str
) -> None:
    before = await everything()
    theirs = await ask(stranger, method, things.fill(path))
    for name in ("session_id", "key_id", "user_id", "invitation_id"):
        things.values[name] = "2000000000"
    nobodys = await ask(stranger, method, things.fill(path))
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.content == nobodys.content
    assert await everything() == before


@pytest.mark.parametrize("path", [path for path in CHANGES if path not in OWN])
async def test_a_viewer_changes_nothing(viewer: httpx.AsyncClient, things: Things, path: str) -> None:
    before = await everything()
    reply = await ask(viewer, "POST", things.fill(path))
    assert reply.status_code == 403
    assert "Ask one of its owners" in reply.text or "Only owners" in reply.text
    assert await everything() == before


@pytest.mark.parametrize("path", sorted(OWNERS))
async def test_a_member_changes_nothing_of_who_belongs(member: httpx.AsyncClient, things: Things, path: str) -> None:
    before = await everything()
    assert (await ask(member, "POST", things.fill(path))).status_code == 403
    assert await everything() == before


@pytest.mark.parametrize("path", [path for method, path in PRIVATE if method == "GET" and "{token}" not in path])
async def test_a_viewer_sees_every_page_that_is_no_form(viewer: httpx.AsyncClient, things: Things, path: str) -> None:
    reply = await viewer.get(things.fill(path))
    # Forms of what they may not do are refused; pages that they may see say 200, or 204 when there is nothing new.
    may_not = path in FORMS
    assert reply.status_code in ((403,) if may_not else (200, 204, 400))


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}"
SHOWN = [path for method, path in PRIVATE if method == "GET" and path != "/apps/{app_id}/export"]


async def test_hostile_names_stay_text_on_every_page(
    owner: httpx.AsyncClient, alice: Tenant, things: Things, site: Site
) -> None:
    await Tenant.update({Tenant.name: HOSTILE}).where(Tenant.id == alice.id)
    await App.update({App.name: HOSTILE}).where(App.id == things.app.id)
    for table in (User, ApiKey):
        await table.update({table.name: HOSTILE}, force=True)
    await Session.update({Session.user_agent: HOSTILE}, force=True)
    _, invited = await members.invite(alice, "else@example.org", Role.VIEWER, datetime.now(UTC))
    shown = 0
    for browser, address in [
        *((owner, things.fill(path)) for path in SHOWN),
        (await site.browser(), f"/join/{invited}"),
    ]:
        reply = await browser.get(address)
        if reply.headers.get("content-type") == "application/json":
            continue  # what is exported is a file, whole and as it was sent
        text = reply.text
        assert "<script>alert" not in text, address
        assert "<img src=x" not in text, address
        assert "onerror=alert(2)&gt;49" not in text, address
        shown += "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&gt;&lt;img" in text
    assert shown >= 18


@pytest.mark.parametrize("path", CHANGES)
async def test_no_form_of_another_site_counts(owner: httpx.AsyncClient, things: Things, path: str) -> None:
    before = await everything()
    for headers in (
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://px.onepx.test"},
        {"Sec-Fetch-Site": "", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "", "Origin": "null"},
    ):
        reply = await owner.post(things.fill(path), data=FORM, headers=headers)
        assert reply.status_code == 403
    assert await everything() == before


@pytest.mark.parametrize(
    "app_id",
    [
        "0",
        "x" * 300,
        "{id}",
        "00000000-0000-0000-0000-000000000000",
        "{upper}",
        "{bare}",
        "..%2f..%2fetc",
        "%00",
        "%F0",
    ],
)
async def test_ids_that_are_none_are_not_found(owner: httpx.AsyncClient, shop: App, app_id: str) -> None:
    number = str(shop.id)
    app_id = app_id.replace("{id}", "{" + number + "}").replace("{upper}", number.upper())
    app_id = app_id.replace("{bare}", number.replace("-", ""))
    if app_id == number:
        pytest.skip("this id has no letters")
    reply = await owner.get(f"/apps/{app_id}/settings")
    assert reply.status_code == 404


@pytest.mark.parametrize("number", ["0", "-1", "99999999999999999999", "1.5", "x"])
async def test_numbers_that_are_none_are_not_found(owner: httpx.AsyncClient, things: Things, number: str) -> None:
    before = await everything()
    for path in ("/account/keys/{}/revoke", "/account/sessions/{}/end", "/account/invitations/{}/withdraw"):
        reply = await owner.post(path.format(number), data=FORM)
        assert reply.status_code == 404
    assert await everything() == before


@pytest.mark.parametrize("path", CHANGES)
async def test_whoever_holds_the_end_of_a_form_back_keeps_no_right(
    member: httpx.AsyncClient, things: Things, alice: Tenant, path: str
) -> None:
    """The rights count that they have when all of it has come."""
    form = urlencode(FORM).encode()
    user = await User.objects().get(User.email == "member@example.org")
    assert user is not None
    before: dict[str, list[dict[str, Any]]] = {}

    async def held() -> AsyncIterator[bytes]:
        yield form[:10]
        await members.remove(alice, user.id)
        before.update(await everything())
        yield form[10:]

    headers = {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": str(len(form))}
    reply = await member.post(things.fill(path), content=held(), headers=headers)
    assert reply.status_code == 401
    assert before
    assert await everything() == before
