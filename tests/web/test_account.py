"""The account's pages and one's own profile."""
# pyright: reportUnknownMemberType=false

import re
from datetime import UTC, datetime

import httpx
import pytest
from application import HOST, Site

from tenants import accounts, keys, members, sessions, tries
from tenants.apps import create_app, list_apps
from tenants.errors import NotFound
from tenants.tables import App, Erasure, Membership, Role, Tenant, User
from web.pages.account import browser_name

PASSWORD = "correct horse battery"
OTHER = "staple and a half"
PAGES = ["/account", "/account/people", "/account/keys", "/account/profile", "/account/usage"]


async def user(email: str) -> User:
    found = await User.objects().where(User.email == email).first()
    assert found is not None
    return found


async def with_password(site: Site, email: str, tenant: Tenant) -> httpx.AsyncClient:
    found = await user(email)
    await accounts.set_password(found, PASSWORD)
    return await site.browser(found, tenant)


@pytest.mark.parametrize("address", PAGES)
async def test_every_role_sees_the_pages(
    owner: httpx.AsyncClient,
    member: httpx.AsyncClient,
    viewer: httpx.AsyncClient,
    anonymous: httpx.AsyncClient,
    address: str,
) -> None:
    for browser in (owner, member, viewer):
        assert (await browser.get(address)).status_code == 200
    assert (await anonymous.get(address)).headers["location"].startswith("/login?next=")


@pytest.mark.parametrize(
    ("address", "member_may"),
    [
        ("/account", False),
        ("/account/delete", False),
        ("/account/people", False),
        ("/account/people/1/role", False),
        ("/account/people/1/remove", False),
        ("/account/invitations/1/withdraw", False),
        ("/account/keys", True),
        ("/account/keys/1/revoke", True),
    ],
)
async def test_who_may_change_the_account(
    member: httpx.AsyncClient,
    viewer: httpx.AsyncClient,
    anonymous: httpx.AsyncClient,
    alice: Tenant,
    address: str,
    member_may: bool,
) -> None:
    sent = {"name": "Alice", "tenant_name": "Mine", "email": "x@example.org", "role": "owner"}
    assert (await viewer.post(address, data=sent)).status_code == 403
    assert ((await member.post(address, data=sent)).status_code != 403) == member_may
    assert (await anonymous.post(address, data=sent)).status_code == 401
    assert [tenant.name for tenant in await Tenant.objects()] == ["Alice"]
    assert await members.list_invitations(alice, datetime.now(UTC)) == []
    assert len(await members.list_members(alice)) == 3


async def test_only_owners_see_the_end(
    owner: httpx.AsyncClient, member: httpx.AsyncClient, viewer: httpx.AsyncClient
) -> None:
    assert (await owner.get("/account/delete")).status_code == 200
    for browser in (member, viewer):
        assert (await browser.get("/account/delete")).status_code == 403
        assert "/account/delete" not in (await browser.get("/account")).text


async def test_the_account_is_renamed(owner: httpx.AsyncClient) -> None:
    page = await owner.post("/account", data={"tenant_name": "x" * 101})
    assert page.status_code == 422
    assert 'id="tenant_name-error">A name has 1 to 100 characters.' in page.text
    assert f'value="{"x" * 101}"' in page.text
    reply = await owner.post("/account", data={"tenant_name": "<b>Alice</b>"})
    assert (reply.status_code, reply.headers["location"]) == (303, "/account")
    page = await owner.get("/account")
    assert "<h1>&lt;b&gt;Alice&lt;/b&gt;</h1>" in page.text
    assert "Saved." in page.text
    assert "Saved." not in (await owner.get("/account")).text


async def test_somebody_switches_only_to_their_own_accounts(
    viewer: httpx.AsyncClient, alice: Tenant, bob: Tenant
) -> None:
    for foreign in (str(bob.id), "0", "-1", "x", "", "9" * 30, "\u0661"):
        assert (await viewer.post("/account/switch", data={"account": foreign})).status_code == 404
    await Membership(tenant=bob.id, user=(await user("viewer@example.org")).id, role=Role.MEMBER).save()
    assert "Switch to Bob" in (await viewer.get("/account")).text
    await viewer.post("/account/switch", data={"account": str(bob.id)})
    assert "viewer@example.org · Bob · member" in (await viewer.get("/account")).text


async def test_a_form_of_another_account_than_is_shown_by_now_changes_nothing(
    owner: httpx.AsyncClient, alice: Tenant, bob: Tenant
) -> None:
    """Two tabs: one shows alice's account, the other switched to bob's."""
    forms = {
        address: re.findall(rf'action="([^"]+[?]account={alice.id})"', (await owner.get(address)).text)
        for address in ("/account", "/account/delete", "/account/people", "/account/keys", "/apps/new")
    }
    assert {address: len(found) for address, found in forms.items()} == {
        "/account": 2,
        "/account/delete": 1,
        "/account/people": 3,
        "/account/keys": 1,
        "/apps/new": 1,
    }
    await Membership(tenant=bob.id, user=(await user("alice@example.org")).id, role=Role.OWNER).save()
    await owner.post("/account/switch", data={"account": str(bob.id)})
    typed = {"tenant_name": "Changed", "name": "Changed", "email": "new@example.org", "role": "viewer"}
    for action in (action for found in forms.values() for action in found):
        reply = await owner.post(action, data=typed)
        assert reply.status_code == 409, action
        assert "You see Bob since another tab switched to it" in reply.text
        # Once it was switched back.
        assert f'<form method="post" action="{action}"' in reply.text
        assert 'type="hidden" name="name" value="Changed"' in reply.text
    assert await list_apps(bob) == []
    assert await keys.list_keys(bob, datetime.now(UTC)) == []
    assert len(await members.list_members(bob)) == 2
    assert (await owner.post(f"/account/keys?account={bob.id}", data={"name": "Mine"})).status_code == 201


async def test_the_account_is_deleted_by_its_name(
    site: Site, owner: httpx.AsyncClient, viewer: httpx.AsyncClient, alice: Tenant, shop: App
) -> None:
    for wrong in ("", "alice", "Alice!"):
        page = await owner.post("/account/delete", data={"name": wrong})
        assert page.status_code == 422
        assert "Type the name of the account as it stands above." in page.text
    assert len(await list_apps(alice)) == 1
    reply = await owner.post("/account/delete", data={"name": " Alice "})
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    assert "session" not in owner.cookies
    assert "The account is deleted." in (await owner.get("/")).text
    assert (await viewer.get("/apps")).status_code == 303
    # The showcase's are there since somebody looked at the landing page.
    assert not await Tenant.exists().where(Tenant.name == "Alice")
    assert not await App.exists().where(App.name == "Shop")
    assert not await User.exists().where(User.email.is_in(["alice@example.org", "viewer@example.org"]))
    assert [erasure.app_id for erasure in await Erasure.objects()] == [shop.id]


async def test_leaving(owner: httpx.AsyncClient, viewer: httpx.AsyncClient, alice: Tenant, bob: Tenant) -> None:
    page = await owner.post("/account/leave")
    assert page.status_code == 422
    assert "This is the last owner." in page.text
    leaving = await user("viewer@example.org")
    await Membership(tenant=bob.id, user=leaving.id, role=Role.MEMBER).save()
    assert (await viewer.post("/account/leave")).headers["location"] == "/apps"
    assert "viewer@example.org · Bob · member" in (await viewer.get("/apps")).text
    assert "your profile and your login go, too" in (await viewer.get("/account")).text
    assert (await viewer.post("/account/leave")).headers["location"] == "/"
    assert "session" not in viewer.cookies
    assert len(await members.list_members(alice)) == 1


async def test_a_viewer_changes_their_own_name_email_and_password(
    site: Site, viewer: httpx.AsyncClient, alice: Tenant
) -> None:
    browser = await with_password(site, "viewer@example.org", alice)
    page = await browser.post("/account/profile/name", data={"user_name": ""})
    assert page.status_code == 422
    assert 'id="user_name-error"' in page.text
    await browser.post("/account/profile/name", data={"user_name": "<i>Vi</i>"})
    assert 'value="&lt;i&gt;Vi&lt;/i&gt;"' in (await browser.get("/account/profile")).text

    for email, password, field in (
        ("no address", PASSWORD, "email"),
        ("alice@example.org", PASSWORD, "email"),
        ("vi@example.org", "wrong password", "email_password"),
    ):
        page = await browser.post("/account/profile/email", data={"email": email, "email_password": password})
        assert page.status_code == 422
        assert f'id="{field}-error"' in page.text
        assert f'value="{email}"' in page.text
    reply = await browser.post("/account/profile/email", data={"email": "Vi@example.org", "email_password": PASSWORD})
    assert reply.headers["location"] == "/account/profile"
    assert "vi@example.org · Alice · viewer" in (await browser.get("/account/profile")).text

    for password, current, field in ((OTHER, "wrong password", "current_password"), ("short", PASSWORD, "password")):
        sent = {"password": password, "current_password": current}
        page = await browser.post("/account/profile/password", data=sent)
        assert page.status_code == 422
        assert f'id="{field}-error"' in page.text
        assert password not in page.text
    assert (await viewer.get("/apps")).status_code == 200
    stolen = await site.browser()
    stolen.cookies.set("session", browser.cookies["session"], HOST)
    assert (await stolen.get("/apps")).status_code == 200
    reply = await browser.post("/account/profile/password", data={"password": OTHER, "current_password": PASSWORD})
    assert reply.headers["location"] == "/account/profile"
    # Whoever had copied the cookie of this very browser.
    assert (await stolen.get("/apps")).status_code == 303
    assert "Your password is changed." in (await browser.get("/account/profile")).text
    # The other session of the same user.
    assert (await viewer.get("/apps")).status_code == 303
    assert await accounts.authenticate("vi@example.org", OTHER) is not None


async def test_sessions_are_ended(site: Site, owner: httpx.AsyncClient, alice: Tenant, bob: Tenant) -> None:
    me = await user("alice@example.org")
    phone = await site.browser(me, alice)
    tablet = await site.browser(me, alice)
    page = await owner.get("/account/profile")
    assert page.text.count("this one") == 1
    assert page.text.count(">Test browser<") == 0
    ends = {int(number) for number in re.findall(r"/account/sessions/(\d+)/end", page.text)}
    assert len(ends) == 3
    found = await sessions.find(phone.cookies["session"], datetime.now(UTC))
    assert found is not None
    bobs = await site.browser(await user("bob@example.org"), bob)
    assert (await bobs.post(f"/account/sessions/{found.session.id}/end")).status_code == 404
    assert (await owner.post(f"/account/sessions/{found.session.id}/end")).status_code == 303
    assert (await phone.get("/apps")).status_code == 303
    assert (await tablet.get("/apps")).status_code == 200
    assert (await owner.post("/account/sessions/end-others")).status_code == 303
    assert (await tablet.get("/apps")).status_code == 303
    assert (await owner.get("/apps")).status_code == 200
    assert (await bobs.get("/apps")).status_code == 200
    found = await sessions.find(owner.cookies["session"], datetime.now(UTC))
    assert found is not None
    assert (await owner.post(f"/account/sessions/{found.session.id}/end")).headers["location"] == "/"
    assert (await owner.get("/apps")).status_code == 303


async def test_owners_decide_who_belongs(
    owner: httpx.AsyncClient, viewer: httpx.AsyncClient, stranger: httpx.AsyncClient, alice: Tenant
) -> None:
    theirs, mine = (await user("viewer@example.org")).id, (await user("alice@example.org")).id
    for address in (f"/account/people/{theirs}/role", f"/account/people/{theirs}/remove"):
        assert (await stranger.post(address, data={"role": "owner"})).status_code == 404
    assert (await owner.post(f"/account/people/{theirs}/role", data={"role": "king"})).status_code == 422
    page = await owner.post(f"/account/people/{mine}/role", data={"role": "viewer"})
    assert page.status_code == 422
    assert "This is the last owner." in page.text
    assert (await owner.post(f"/account/people/{theirs}/role", data={"role": "member"})).status_code == 303
    assert "viewer@example.org · Alice · member" in (await viewer.get("/account/people")).text
    assert (await owner.post(f"/account/people/{theirs}/remove")).status_code == 303
    assert (await viewer.get("/apps")).status_code == 303
    assert len(await members.list_members(alice)) == 1


async def test_who_is_removed_while_they_invite_gets_no_link(
    site: Site, alice: Tenant, bob: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    bobs = await user("bob@example.org")
    await Membership(tenant=alice.id, user=bobs.id, role=Role.OWNER).save()
    browser = await site.browser(bobs, alice)

    async def removed_meanwhile(*_: object) -> None:
        await members.remove(alice, bobs.id)

    monkeypatch.setattr(tries, "begin_invitation", removed_meanwhile)
    reply = await browser.post("/account/people", data={"email": "friend@example.org", "role": "owner"})
    assert (reply.status_code, "/join/" in reply.text) == (404, False)
    assert await members.list_invitations(alice, datetime.now(UTC)) == []


async def test_invitations_are_made_and_withdrawn(owner: httpx.AsyncClient, stranger: httpx.AsyncClient) -> None:
    page = await owner.post("/account/people", data={"email": "alice@example.org", "role": "viewer"})
    assert page.status_code == 422
    assert "They belong to this account already." in page.text
    assert 'value="alice@example.org"' in page.text
    page = await owner.post("/account/people", data={"email": "nora@example.org", "role": "viewer"})
    token = re.findall(r"/join/([\w-]{43})", page.text)[0]
    invitation = await members.find_invitation(token, datetime.now(UTC))
    address = f"/account/invitations/{invitation.id}/withdraw"
    assert (await stranger.post(address)).status_code == 404
    assert (await owner.post(address)).status_code == 303
    with pytest.raises(NotFound):
        await members.find_invitation(token, datetime.now(UTC))


async def test_a_form_about_what_is_gone_says_so(site: Site, owner: httpx.AsyncClient, alice: Tenant) -> None:
    page = await owner.post("/account/people", data={"email": "nora@example.org", "role": "viewer"})
    token = re.findall(r"/join/([\w-]{43})", page.text)[0]
    open_page = re.findall(r'action="(/account/invitations/\d+/withdraw)"', page.text)[0]
    await members.join_as_new(token, "Nora", "a password of hers", datetime.now(UTC))
    # Not that the link opens nothing: she is in.
    page = await owner.post(open_page)
    assert page.status_code == 404
    assert (
        "This invitation was open no longer. If somebody used it, they belong to the account: see below." in page.text
    )
    assert "nora@example.org" in page.text
    remove = f"/account/people/{(await user('nora@example.org')).id}/remove"
    assert (await owner.post(remove)).status_code == 303
    page = await owner.post(remove)
    assert page.status_code == 404
    assert "somebody removed it meanwhile" in page.text


async def test_a_key_is_shown_once_and_revoked(
    member: httpx.AsyncClient, viewer: httpx.AsyncClient, stranger: httpx.AsyncClient
) -> None:
    page = await member.post("/account/keys", data={"name": ""})
    assert page.status_code == 422
    assert 'id="name-error"' in page.text
    page = await member.post("/account/keys", data={"name": "<b>Reports</b>"})
    assert page.status_code == 201
    key = re.findall(r'<code id="key">(onepx_[\w-]{43})</code>', page.text)[0]
    assert await keys.find_key(key) is not None
    for browser in (member, viewer):
        listed = await browser.get("/account/keys")
        assert key not in listed.text
        assert key[:12] in listed.text
        assert "&lt;b&gt;Reports&lt;/b&gt;" in listed.text
    assert "/revoke" not in (await viewer.get("/account/keys")).text
    address = re.findall(r'action="(/account/keys/\d+/revoke)"', page.text)[0]
    assert (await stranger.post(address)).status_code == 404
    assert await keys.find_key(key) is not None
    assert (await member.post(address)).status_code == 303
    assert await keys.find_key(key) is None
    assert "revoked" in (await member.get("/account/keys")).text


@pytest.mark.parametrize(
    "address",
    [
        "/account/keys/{}/revoke",
        "/account/people/{}/remove",
        "/account/invitations/{}/withdraw",
        "/account/sessions/{}/end",
    ],
)
async def test_numbers_that_are_nobodys(owner: httpx.AsyncClient, address: str) -> None:
    for number in ("0", "-1", "999999", str(2**40), "9" * 40, "x", "1.5", "%00"):
        assert (await owner.post(address.format(number))).status_code == 404, number


async def test_people_see_nothing_of_another_tenant(
    stranger: httpx.AsyncClient, owner: httpx.AsyncClient, alice: Tenant
) -> None:
    await create_app(alice, "Secret shop")
    await keys.create_key(alice, "Secret key")
    await members.invite(alice, "secret@example.org", "viewer", datetime.now(UTC))
    for address in (*PAGES, "/account/delete", "/apps"):
        page = await stranger.get(address)
        assert page.status_code == 200
        assert "ecret" not in page.text
        assert "alice" not in page.text.lower()


async def test_a_key_of_one_app_and_one_that_may_delete(
    member: httpx.AsyncClient, viewer: httpx.AsyncClient, alice: Tenant, bob: Tenant
) -> None:
    app, _ = await create_app(alice, "Shop <1>")
    theirs, _ = await create_app(bob, "Theirs")
    page = await member.post("/account/keys", data={"name": "", "app": str(app.id), "may_delete": "1"})
    assert page.status_code == 422
    assert f'<option value="{app.id}" selected>Shop &lt;1&gt;</option>' in page.text
    assert 'name="may_delete" value="1" checked' in page.text
    assert "Theirs" not in page.text
    for wrong in (str(theirs.id), "x", "0"):
        assert (await member.post("/account/keys", data={"name": "Key", "app": wrong})).status_code == 404
    assert await keys.list_keys(alice, datetime.now(UTC)) == []
    for form in ({"app": str(app.id), "may_delete": "1"}, {"app": ""}):
        assert (await member.post("/account/keys", data={"name": "Key"} | form)).status_code == 201
    listed = (await viewer.get("/account/keys")).text
    assert "<small>Shop &lt;1&gt;, may delete people ·" in listed
    assert "<small>all apps ·" in listed


@pytest.mark.parametrize(
    ("user_agent", "shown"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox on Linux"),
        (
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/139.0.0.0 "
            "Safari/537.36 Edg/139.0.0.0",
            "Edge on Windows",
        ),
        (
            "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 "
            "Safari/605.1.15",
            "Safari on macOS",
        ),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
            "CriOS/139.0 Mobile/15E148 Safari/604.1",
            "Chrome on iPhone",
        ),
        ("Mozilla/5.0 (Linux; Android 15) AppleWebKit/537.36 Chrome/139.0 Mobile Safari/537.36", "Chrome on Android"),
        ("curl/8.14.1", "An unknown browser"),
        ("", "An unknown browser"),
    ],
)
def test_browsers_are_named(user_agent: str, shown: str) -> None:
    assert browser_name(user_agent) == shown
