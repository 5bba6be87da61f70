"""Into onepx and out of it: sign up, log in, log out, join by an invitation."""
# pyright: reportUnknownMemberType=false

import html
import re
from datetime import UTC, datetime
from urllib.parse import quote

import httpx
import pytest
from application import HOST, Site

from tenants import accounts, members, sessions, tokens
from tenants.apps import list_apps
from tenants.tables import Membership, Session, Tenant, User
from web.pages.accounts import here_only

PASSWORD = "correct horse battery"
ALICE = {"name": "Ann & Co", "email": "Ann@Example.org", "password": PASSWORD}


async def log_in(browser: httpx.AsyncClient, password: str = PASSWORD, **more: str) -> httpx.Response:
    return await browser.post("/login", data={"email": "ann@example.org", "password": password, **more})


async def sign_up(browser: httpx.AsyncClient) -> httpx.Response:
    return await browser.post("/signup", data=ALICE)


async def test_signing_up_leads_to_a_snippet(anonymous: httpx.AsyncClient) -> None:
    reply = await anonymous.post("/signup", data={**ALICE, "timezone": "Europe/Berlin"})
    assert reply.status_code == 303
    user = await User.objects().get(User.email == "ann@example.org")
    assert user is not None
    (tenant,) = await members.list_tenants(user)
    (app,) = await list_apps(tenant)
    (token,) = await tokens.list_tokens(app)
    assert (tenant.name, app.timezone) == ("Ann & Co", "Europe/Berlin")
    assert reply.headers["location"] == f"/apps/{app.id}"
    cookie = reply.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=lax", "Path=/", "session="))
    page = await anonymous.get(reply.headers["location"])
    assert token.token in page.text
    for address in ("/signup", "/login"):
        assert (await anonymous.get(address)).headers["location"] == "/apps"


@pytest.mark.parametrize(
    ("changed", "field", "sentence"),
    [
        ({"name": " "}, "name", "A name has 1 to 100 characters."),
        ({"email": "no address"}, "email", "This is no e-mail address."),
        ({"email": "alice@example.org"}, "email", "This e-mail address has an account already."),
        ({"password": "short"}, "password", "A password has at least 10 characters."),
        ({"name": "<b>\"'x", "email": ""}, "email", "This is no e-mail address."),
    ],
)
async def test_a_sign_up_that_cannot_be_used_comes_back_with_what_was_typed(
    anonymous: httpx.AsyncClient, alice: Tenant, changed: dict[str, str], field: str, sentence: str
) -> None:
    sent = {**ALICE, **changed}
    page = await anonymous.post("/signup", data=sent)
    assert page.status_code == 422
    assert f'<span class="error" id="{field}-error">{sentence}</span>' in page.text
    for name in ("name", "email"):
        assert f'name="{name}" type="{"email" if name == "email" else "text"}" value="{html.escape(sent[name])}"' in (
            page.text.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
        )
    assert sent["password"] not in page.text
    assert "set-cookie" not in page.headers
    assert await Tenant.count() == 1


@pytest.mark.parametrize("body", [b"", b"name=%00&email=%ff&password", b"name=a&name=b", b"\x00\xff" * 100])
async def test_forms_that_no_page_sends_are_refused(anonymous: httpx.AsyncClient, body: bytes) -> None:
    for address in ("/signup", "/login"):
        for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json", ""):
            reply = await anonymous.post(address, content=body, headers={"Content-Type": kind})
            assert reply.status_code in (400, 422), (address, kind)
    assert await Tenant.count() == 0


async def test_a_form_in_an_encoding_that_is_none_is_refused(anonymous: httpx.AsyncClient) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="email"\r\n\r\n\xff\r\n--x--\r\n'
    for charset in ("nope", "utf-16", "idna", "hex"):
        kind = f"multipart/form-data; boundary=x; charset={charset}"
        reply = await anonymous.post("/login", content=body, headers={"Content-Type": kind})
        assert reply.status_code in (400, 422), charset


async def test_a_file_in_the_place_of_a_field_is_no_text(anonymous: httpx.AsyncClient) -> None:
    reply = await anonymous.post("/signup", data={"name": "A"}, files={"email": ("a.txt", b"a@example.org")})
    assert reply.status_code == 422


async def test_log_in_and_out(site: Site, anonymous: httpx.AsyncClient) -> None:
    await sign_up(await site.browser())
    reply = await log_in(anonymous)
    assert (reply.status_code, reply.headers["location"]) == (303, "/apps")
    cookie = anonymous.cookies["session"]
    assert (await anonymous.get("/apps")).status_code == 200

    reply = await anonymous.post("/logout")
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    assert "session" not in anonymous.cookies
    assert (await anonymous.get("/apps")).headers["location"] == "/login?next=%2Fapps"
    thief = await site.browser()
    thief.cookies.set("session", cookie, HOST)
    assert (await thief.get("/apps")).status_code == 303
    assert (await anonymous.post("/logout")).status_code == 303


async def test_a_session_from_before_the_login_is_worth_nothing_after_it(
    site: Site, anonymous: httpx.AsyncClient
) -> None:
    """Session fixation: a cookie somebody else planted, made up or of a session of their own."""
    await sign_up(anonymous)
    planted = anonymous.cookies["session"]
    for before in (planted, "made-up", "\x01", "x" * 3000):
        victim = await site.browser()
        victim.cookies.set("session", before, HOST)
        await log_in(victim)
        after = {cookie.value for cookie in victim.cookies.jar if cookie.name == "session"}
        assert after - {before}
        thief = await site.browser()
        thief.cookies.set("session", before, HOST)
        assert (await thief.get("/apps")).status_code == 303


async def test_a_wrong_password_and_an_unknown_mailbox_look_the_same(anonymous: httpx.AsyncClient) -> None:
    await sign_up(anonymous)
    anonymous.cookies.clear()
    known = await log_in(anonymous, "wrong password")
    unknown = await anonymous.post("/login", data={"email": "bob@example.org", "password": PASSWORD})
    assert known.status_code == unknown.status_code == 422
    assert 'value="ann@example.org"' in known.text
    assert "The e-mail address or the password is wrong." in known.text
    assert "Forgotten your password?" in known.text
    assert known.text.replace("ann@example.org", "bob@example.org") == unknown.text
    assert "wrong password" not in known.text
    assert "session" not in anonymous.cookies


@pytest.mark.parametrize("email", ["ann@example.org", "nobody@example.org"])
async def test_too_many_tries_are_told_when_to_try_again(anonymous: httpx.AsyncClient, email: str) -> None:
    await sign_up(anonymous)
    anonymous.cookies.clear()
    for _ in range(10):
        reply = await anonymous.post("/login", data={"email": email, "password": "wrong password"})
        assert reply.status_code == 422
    reply = await anonymous.post("/login", data={"email": email, "password": PASSWORD})
    assert reply.status_code == 429
    assert 0 < int(reply.headers["retry-after"]) <= 15 * 60
    assert re.search(r"Wait 1[45] minutes, until \d\d:\d\d UTC, then try again\.", reply.text)
    assert "session" not in anonymous.cookies


async def test_strangers_who_guess_do_not_lock_out_a_browser_that_logged_in_before(
    site: Site, anonymous: httpx.AsyncClient
) -> None:
    mine, stranger = anonymous, await site.browser()
    await sign_up(mine)
    for _ in range(10):
        assert (await log_in(stranger, "wrong password")).status_code == 422
    assert (await log_in(stranger)).status_code == 429
    # Who is logged in may still say who they are, and log in again.
    reply = await mine.post(
        "/account/profile/password", data={"password": "another password", "current_password": PASSWORD}
    )
    assert reply.status_code == 303
    await mine.post("/logout")
    assert (await log_in(mine, "another password")).headers["location"] == "/apps"
    # The cookie is not another mailbox's.
    mine.cookies.delete("session")
    for _ in range(10):
        assert (await mine.post("/login", data={"email": "bob@example.org", "password": PASSWORD})).status_code == 422
    assert (await mine.post("/login", data={"email": "bob@example.org", "password": PASSWORD})).status_code == 429


async def test_the_twenty_first_sign_up_of_an_address_waits(anonymous: httpx.AsyncClient, alice: Tenant) -> None:
    for _ in range(20):
        assert (await anonymous.post("/signup", data={**ALICE, "email": "alice@example.org"})).status_code == 422
    reply = await anonymous.post("/signup", data=ALICE)
    assert reply.status_code == 429
    assert int(reply.headers["retry-after"]) > 50 * 60


async def test_forms_of_another_site_change_nothing(site: Site, owner: httpx.AsyncClient) -> None:
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "", "Origin": "https://evil.example"}):
        for address in ("/signup", "/login", "/logout", "/account", "/account/delete", "/apps/new"):
            reply = await owner.post(address, data={"name": "x"}, headers=headers)
            assert reply.status_code == 403, address
    assert (await owner.get("/apps")).status_code == 200


async def test_the_login_leads_back(site: Site, anonymous: httpx.AsyncClient) -> None:
    await sign_up(await site.browser())
    wanted = "/apps?period=7d&params.x=a%26b"
    page = await anonymous.get(f"/login?next={quote(wanted, safe='')}")
    assert f'name="next" value="{html.escape(wanted)}"' in page.text
    assert (await log_in(anonymous, next=wanted)).headers["location"] == wanted


async def test_the_login_leads_to_no_other_site(site: Site, anonymous: httpx.AsyncClient) -> None:
    await sign_up(await site.browser())
    for evil in ("//evil.example", "https://evil.example", "/\\evil.example", "/a\r\nSet-Cookie: session=x"):
        page = await anonymous.get(f"/login?next={quote(evil, safe='')}")
        assert 'name="next" value="/apps"' in page.text
        reply = await log_in(await site.browser(), next=evil)
        assert (reply.status_code, reply.headers["location"]) == (303, "/apps")
        reply = await anonymous.post("/logout", data={"next": evil})
        assert reply.headers["location"] == "/apps"


async def test_an_owners_invitation_brings_somebody_new(
    owner: httpx.AsyncClient, anonymous: httpx.AsyncClient, alice: Tenant
) -> None:
    page = await owner.post("/account/people", data={"email": "Nora@example.org", "role": "viewer"})
    assert page.status_code == 201
    link = re.findall(r'<code id="link">http://onepx\.test(/join/[\w-]{43})</code>', page.text)[0]
    assert "/join/" not in (await owner.get("/account/people")).text

    page = await anonymous.get(link)
    assert "<h1>Join Alice</h1>" in page.text
    assert 'value="nora@example.org"' in page.text
    page = await anonymous.post(link, data={"name": "Nora", "password": "short"})
    assert page.status_code == 422
    assert "A password has at least 10 characters." in page.text
    assert 'value="Nora"' in page.text
    reply = await anonymous.post(link, data={"name": "Nora", "password": PASSWORD, "email": "other@example.org"})
    assert (reply.status_code, reply.headers["location"]) == (303, "/apps")
    page = await anonymous.get("/apps")
    assert "nora@example.org · Alice · viewer" in page.text
    assert "Welcome. You belong to this account now." in page.text
    assert (await anonymous.get(link)).status_code == 404


async def test_somebody_with_an_account_logs_in_and_joins(
    site: Site, stranger: httpx.AsyncClient, alice: Tenant, bob: Tenant
) -> None:
    _, token = await members.invite(alice, "bob@example.org", "member", datetime.now(UTC))
    link = f"/join/{token}"
    visitor = await site.browser()
    page = await visitor.get(link)
    assert f'href="/login?next={link}"' in page.text
    reply = await visitor.post(link, data={"name": "Bob", "password": PASSWORD})
    assert reply.status_code == 422
    assert "has an account already" in reply.text

    assert "You keep what you have" in (await stranger.get(link)).text
    assert (await stranger.post(link)).headers["location"] == "/apps"
    assert "bob@example.org · Alice · member" in (await stranger.get("/apps")).text
    reply = await stranger.post("/account/switch", data={"account": str(bob.id)})
    assert reply.headers["location"] == "/apps"
    assert "bob@example.org · Bob · owner" in (await stranger.get("/apps")).text


async def test_an_invitation_of_somebody_else_lets_nobody_in(
    stranger: httpx.AsyncClient, alice: Tenant, bob: Tenant
) -> None:
    _, token = await members.invite(alice, "nora@example.org", "owner", datetime.now(UTC))
    page = await stranger.get(f"/join/{token}")
    assert "You are logged in as bob@example.org." in page.text
    assert (await stranger.post(f"/join/{token}")).status_code == 403
    assert await Membership.count() == 2
    reply = await stranger.post("/logout", data={"next": f"/join/{token}"})
    assert reply.headers["location"] == f"/join/{token}"


@pytest.mark.parametrize("token", ["x", "%00", "%ff", "a" * 43, "%2e%2e"])
async def test_links_that_are_no_invitation(anonymous: httpx.AsyncClient, alice: Tenant, token: str) -> None:
    for reply in (await anonymous.get(f"/join/{token}"), await anonymous.post(f"/join/{token}", data={"name": "N"})):
        assert reply.status_code in (404, 405)
        assert "Alice" not in reply.text


async def test_a_password_changed_while_somebody_logs_in(
    site: Site, anonymous: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sign_up(await site.browser())
    right = accounts.log_in

    async def then_changed(*args: str, **kwargs: object) -> User | None:
        user = await right(*args, **kwargs)  # pyright: ignore[reportArgumentType]
        await User.update({User.password_hash: "another"}).where(User.email == "ann@example.org")
        await Session.delete(force=True)
        return user

    monkeypatch.setattr(accounts, "log_in", then_changed)
    assert (await log_in(anonymous)).status_code == 422
    assert await Session.count() == 0


async def test_over_https_the_cookie_is_bound_to_the_host(site: Site, anonymous: httpx.AsyncClient) -> None:
    site.app.state.secure = True
    cookie = (await sign_up(anonymous)).headers["set-cookie"]
    assert cookie.startswith("__Host-session=")
    assert "Secure" in cookie
    assert f"Max-Age={int(sessions.LIFETIME.total_seconds())}" in cookie
    assert "Domain" not in cookie


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("/", True),
        ("/apps?x=%2F%2Fevil", True),
        ("/apps/../..//evil.example", True),
        ("", False),
        ("apps", False),
        ("//evil.example", False),
        ("///evil.example", False),
        ("/\\evil.example", False),
        ("\\/evil.example", False),
        ("/\t/evil.example", False),
        ("\t//evil.example", False),
        ("/a\r\nLocation: //evil.example", False),
        ("/a b", False),
        ("/\u00e4", False),
        ("/\u2028", False),
        ("https:evil.example", False),
        ("https://evil.example", False),
        ("javascript:alert(1)", False),
        ("/" + "a" * 2_999, True),
        ("/" + "a" * 3_000, False),
    ],
)
def test_where_a_login_may_lead(address: str, allowed: bool) -> None:
    assert here_only(address) == (address if allowed else "/apps")


async def test_where_sign_up_is_closed_only_those_invited_come_in(
    site: Site, owner: httpx.AsyncClient, anonymous: httpx.AsyncClient, alice: Tenant
) -> None:
    site.app.state["signup"] = False
    for page in ("/", "/login", "/api/docs"):
        assert "/signup" not in (await anonymous.get(page)).text
    form = {"name": "Eve", "email": "eve@example.org", "password": "long enough!"}
    for reply in (await anonymous.get("/signup"), await anonymous.post("/signup", data=form)):
        assert reply.status_code == 403
        assert "Sign-up is closed here" in reply.text
    assert not await User.exists().where(User.email == "eve@example.org")
    assert (await owner.get("/apps")).status_code == 200
    _, token = await members.invite(alice, "eve@example.org", "viewer", datetime.now(UTC))
    joined = await anonymous.post(f"/join/{token}", data={"name": "Eve", "password": "long enough!"})
    assert joined.status_code == 303
    assert (await anonymous.get("/apps")).status_code == 200
