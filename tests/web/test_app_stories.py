"""The list of apps, and one app's settings, tokens and end."""
# pyright: reportUnknownMemberType=false

import html
import re
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl
from uuid import uuid4

import httpx
import pytest
from known import did

from server.event_store import EventStore
from tenants import apps, tokens
from tenants.tables import App, AppToken, Erasure, Tenant

SETTINGS = {"name": "Shop", "currency": "EUR", "timezone": "UTC", "honour_privacy_signals": "1"}


async def states(app: App) -> list[str]:
    now = datetime.now(UTC)
    return [tokens.state(token, now) for token in await tokens.list_tokens(app)]


async def newest(app: App) -> str:
    return (await tokens.list_tokens(app))[0].token


async def test_the_list_says_what_to_do_when_it_is_empty(
    owner: httpx.AsyncClient, viewer: httpx.AsyncClient, alice: Tenant
) -> None:
    page = await owner.get("/apps")
    assert "No apps yet." in page.text
    assert 'href="/apps/new"' in page.text
    assert 'href="/apps/new"' not in (await viewer.get("/apps")).text
    app, _ = await apps.create_app(alice, "<i>Shop</i>")
    for browser in (owner, viewer):
        page = await browser.get("/apps")
        assert f'<a href="/apps/{app.id}">&lt;i&gt;Shop&lt;/i&gt;</a>' in page.text
        assert f'<div class="overview" id="overview-{app.id}">' in page.text


@pytest.mark.parametrize("path", ["/apps/new", "/apps/{shop}/settings"])
async def test_a_form_without_its_fields_is_shown_again(owner: httpx.AsyncClient, shop: App, path: str) -> None:
    reply = await owner.post(path.format(shop=shop.id), data={"else": "x"})
    assert reply.status_code == 422
    assert "A name has 1 to 100 characters." in reply.text


async def test_a_new_app(owner: httpx.AsyncClient, alice: Tenant) -> None:
    page = await owner.get("/apps/new")
    assert '<option value="USD" selected>' in page.text
    sent = {"name": "Blog", "currency": "eur", "timezone": "Asia/Kathmandu"}
    reply = await owner.post("/apps/new", data=sent)
    assert reply.status_code == 303
    (app,) = await apps.list_apps(alice)
    assert (app.name, app.currency, app.timezone) == ("Blog", "EUR", "Asia/Kathmandu")
    assert reply.headers["location"] == f"/apps/{app.id}"
    assert await newest(app) in (await owner.get(f"/apps/{app.id}")).text
    # Another of the same name, and what the form offers now.
    assert '<option value="Asia/Kathmandu" selected>' in (await owner.get("/apps/new")).text
    assert (await owner.post("/apps/new", data=sent)).status_code == 303
    assert len(await apps.list_apps(alice)) == 2


@pytest.mark.parametrize(
    ("changed", "field", "sentence"),
    [
        ({"name": " "}, "name", "A name has 1 to 100 characters."),
        ({"name": "x" * 101}, "name", "A name has 1 to 100 characters."),
        ({"name": "a\nb"}, "name", "This name has a character that cannot be shown, such as a line break."),
        ({"currency": "XYZ"}, "currency", "A currency is an ISO 4217 code such as EUR."),
        ({"currency": "<b>"}, "currency", "A currency is an ISO 4217 code such as EUR."),
        ({"timezone": "../etc/passwd"}, "timezone", "A time zone is a name such as Europe/Berlin."),
    ],
)
async def test_settings_that_cannot_be_used_come_back(
    owner: httpx.AsyncClient, alice: Tenant, shop: App, changed: dict[str, str], field: str, sentence: str
) -> None:
    sent = {**SETTINGS, "name": "Typed", **changed}
    for address in ("/apps/new", f"/apps/{shop.id}/settings"):
        page = await owner.post(address, data=sent)
        assert page.status_code == 422
        assert f'<span class="error" id="{field}-error">{sentence}</span>' in page.text
        assert re.findall(r'id="(\w+)"[^>]* autofocus', page.text) == [field]
        assert "Typed" in page.text or field == "name"
    (app,) = await apps.list_apps(alice)
    assert (app.name, app.currency, app.timezone) == ("Shop", "EUR", "UTC")


async def test_settings_are_changed(owner: httpx.AsyncClient, alice: Tenant, shop: App) -> None:
    address = f"/apps/{shop.id}/settings"
    page = await owner.get(address)
    assert '<option value="EUR" selected>' in page.text
    assert 'name="honour_privacy_signals" value="1" checked' in page.text
    reply = await owner.post(address, data={"name": "Store", "currency": "JPY", "timezone": "Europe/Berlin"})
    assert (reply.status_code, reply.headers["location"]) == (303, address)
    (app,) = await apps.list_apps(alice)
    assert (app.name, app.currency, app.timezone, app.honour_privacy_signals) == (
        "Store",
        "JPY",
        "Europe/Berlin",
        False,
    )
    assert "Saved." in (await owner.get(address)).text


async def test_shortening_how_long_events_are_kept_says_what_goes_and_asks(
    owner: httpx.AsyncClient, event_store: EventStore, shop: App
) -> None:
    for days in (1, 70, 100):
        await did(event_store, shop, uuid4(), "view", days_ago=days)
    address = f"/apps/{shop.id}/settings"
    form = {"name": "Shop & <Co>", "currency": "USD", "timezone": "UTC", "retention_days": "30"}

    async def kept() -> int | None:
        found = await App.objects().get(App.id == shop.id)
        assert found is not None
        return found.retention_days

    page = await owner.post(address, data=form)
    assert page.status_code == 200
    assert '<strong><span class="number">2</span> events</strong>' in page.text
    assert "for ever" in page.text
    for value in ("Shop &amp; &lt;Co&gt;", "USD", "UTC", "30"):
        assert f'value="{value}"' in page.text, "sent once more"
    assert await kept() is None
    # What was confirmed is another number.
    assert (await owner.post(address, data=form | {"confirmed": "300"})).status_code == 200
    assert await kept() is None
    assert (await owner.post(address, data=form | {"confirmed": "30"})).status_code == 303
    assert await kept() == 30
    # Longer, the same, and where nothing goes, it is just saved.
    for days in (60, 60, 400, 101):
        assert (await owner.post(address, data=form | {"retention_days": str(days)})).status_code == 303
        assert await kept() == days
    assert (await owner.post(address, data=form | {"retention_days": ""})).status_code == 303
    assert await kept() is None


def form_of(page: str) -> dict[str, str]:
    """The form of the settings as it was opened."""
    found = re.search(r'name="shown" value="([^"]*)"', page)
    assert found
    shown = html.unescape(found[1])
    return {"shown": shown, **dict(parse_qsl(shown, keep_blank_values=True))}


async def test_two_people_change_the_settings_at_once(
    owner: httpx.AsyncClient, member: httpx.AsyncClient, event_store: EventStore, shop: App, alice: Tenant
) -> None:
    await did(event_store, shop, uuid4(), "view", days_ago=70)
    address = f"/apps/{shop.id}/settings"
    first, second = [form_of((await browser.get(address)).text) for browser in (owner, member)]
    assert (await owner.post(address, data=first | {"timezone": "Europe/Berlin", "name": "R&D"})).status_code == 303
    # What one of them left alone stays as the other made it, through the question, too.
    asked = await member.post(address, data=second | {"retention_days": "30"})
    assert asked.status_code == 200
    again = dict(re.findall(r'type="hidden" name="([^"]*)" value="([^"]*)"', html.unescape(asked.text)))
    assert (await owner.post(address, data=first | {"name": "R&D", "currency": "CHF"})).status_code == 303
    assert (await member.post(address, data=again)).status_code == 303
    (app,) = await apps.list_apps(alice)
    assert (app.name, app.timezone, app.currency, app.retention_days) == ("R&D", "Europe/Berlin", "CHF", 30)
    # What both changed is asked about, and keeps what was typed.
    clash = await member.post(address, data=second | {"name": "Store", "retention_days": "30"})
    assert clash.status_code == 422
    says = "Somebody else changed this to “R&amp;D” meanwhile. Save again to have it as you typed it."
    assert f'<span class="error" id="name-error">{says}</span>' in clash.text
    assert 'name="name" type="text" value="Store"' in clash.text
    now = form_of(clash.text)["shown"]
    sent = second | {"name": "Store", "retention_days": "30", "shown": now}
    assert (await member.post(address, data=sent)).status_code == 303
    (app,) = await apps.list_apps(alice)
    assert (app.name, app.timezone, app.currency, app.retention_days) == ("Store", "Europe/Berlin", "CHF", 30)


async def test_an_older_name_of_a_time_zone_is_kept(owner: httpx.AsyncClient, shop: App) -> None:
    await apps.change_app(shop, timezone="Etc/GMT+3")
    page = await owner.get(f"/apps/{shop.id}/settings")
    assert '<option value="Etc/GMT+3" selected>' in page.text
    # And offered for the next app.
    assert '<option value="Etc/GMT+3" selected>' in (await owner.get("/apps/new")).text


async def test_a_viewer_sees_the_settings_and_changes_nothing(viewer: httpx.AsyncClient, shop: App) -> None:
    page = await viewer.get(f"/apps/{shop.id}/settings")
    token = await newest(shop)
    assert page.status_code == 200
    assert token in page.text
    for hidden in ("/revoke", "/rotate", f"/apps/{shop.id}/delete", ">Save<"):
        assert hidden not in page.text
    for address in (
        "/apps/new",
        f"/apps/{shop.id}/settings",
        f"/apps/{shop.id}/tokens",
        f"/apps/{shop.id}/tokens/rotate",
        f"/apps/{shop.id}/tokens/{token}/revoke",
        f"/apps/{shop.id}/delete",
    ):
        reply = await viewer.post(address, data={**SETTINGS, "name": "Shop", "overlap": "0"})
        assert reply.status_code == 403
        assert "Ask one of its owners." in reply.text
    for address in ("/apps/new", f"/apps/{shop.id}/delete", f"/apps/{shop.id}/tokens/{token}/revoke"):
        assert (await viewer.get(address)).status_code == 403
    assert await states(shop) == ["live"]
    assert await App.count() == 1


@pytest.mark.parametrize("tail", ["settings", "delete", "tokens", "tokens/rotate", "tokens/{token}/revoke"])
async def test_another_tenants_app_is_not_found(stranger: httpx.AsyncClient, shop: App, tail: str) -> None:
    path = tail.format(token=await newest(shop))
    for app_id in (str(shop.id), str(uuid4()), "x", "%00", str(shop.id).upper()):
        address = f"/apps/{app_id}/{path}"
        replies = [await stranger.post(address, data={**SETTINGS, "overlap": "0"})]
        if path not in ("tokens", "tokens/rotate"):
            replies.append(await stranger.get(address))
        for reply in replies:
            assert reply.status_code == 404
            assert "Shop" not in reply.text
    assert await states(shop) == ["live"]


async def test_one_more_token(member: httpx.AsyncClient, shop: App) -> None:
    reply = await member.post(f"/apps/{shop.id}/tokens")
    assert reply.headers["location"] == f"/apps/{shop.id}/settings#tokens"
    assert await states(shop) == ["live", "live"]


@pytest.mark.parametrize(
    ("overlap", "before", "hours"),
    [("0", "ended", 0), ("1", "ends", 1), ("24", "ends", 24), ("168", "ends", 168), ("720", "ends", 720)],
)
async def test_tokens_are_rotated_with_an_overlap(
    member: httpx.AsyncClient, shop: App, overlap: str, before: str, hours: int
) -> None:
    reply = await member.post(f"/apps/{shop.id}/tokens/rotate", data={"overlap": overlap})
    assert reply.status_code == 303
    assert await states(shop) == ["live", before]
    old = (await tokens.list_tokens(shop))[1]
    assert abs(old.expires_at - datetime.now(UTC) - timedelta(hours=hours)) < timedelta(minutes=1)
    page = await member.get(f"/apps/{shop.id}/settings")
    assert f">{before}</span>" in page.text


@pytest.mark.parametrize("overlap", ["", "2", "-1", "x", "\u0660"])
async def test_an_overlap_that_is_not_offered(member: httpx.AsyncClient, shop: App, overlap: str) -> None:
    page = await member.post(f"/apps/{shop.id}/tokens/rotate", data={"overlap": overlap})
    assert page.status_code == 422
    assert "Choose when the other tokens end." in page.text
    assert await states(shop) == ["live"]


async def test_revoking_asks_first_and_says_when_it_is_the_last(
    member: httpx.AsyncClient, alice: Tenant, shop: App
) -> None:
    first = await newest(shop)
    second = await tokens.issue(shop)
    address = f"/apps/{shop.id}/tokens/{first}/revoke"
    assert "last live token" not in (await member.get(address)).text
    assert await states(shop) == ["live", "live"]
    assert (await member.post(address)).status_code == 303
    assert await states(shop) == ["live", "revoked"]
    address = f"/apps/{shop.id}/tokens/{second}/revoke"
    assert "last live token" in (await member.get(address)).text
    await member.post(address)
    page = await member.get(f"/apps/{shop.id}/settings")
    assert "No token takes hits: issue one." in page.text
    # A token of another app is not this one's.
    _, others = await apps.create_app(alice, "Blog")
    for token in (others, "0" * 24, "x"):
        for reply in (
            await member.get(f"/apps/{shop.id}/tokens/{token}/revoke"),
            await member.post(f"/apps/{shop.id}/tokens/{token}/revoke"),
        ):
            assert reply.status_code == 404


async def test_when_a_token_was_last_used(owner: httpx.AsyncClient, shop: App) -> None:
    address = f"/apps/{shop.id}/settings"
    assert ">never<" in (await owner.get(address)).text
    await AppToken.update({AppToken.last_used_at: datetime.now(UTC) - timedelta(hours=2)}).where(
        AppToken.app == shop.id
    )
    assert re.search(r">2 hours ago<", (await owner.get(address)).text)


async def test_an_app_is_deleted_by_its_name(owner: httpx.AsyncClient, alice: Tenant) -> None:
    app, token = await apps.create_app(alice, "Boots  & Cafe\u0301")
    address = f"/apps/{app.id}/delete"
    page = await owner.get(address)
    assert "Type the app&#39;s name to delete it: Boots  &amp; Cafe\u0301" in page.text
    export = re.search(r'href="(/apps/[^"]*/export[^"]*)"', page.text)
    assert export is not None
    assert (await owner.get(export[1].replace("&amp;", "&"))).status_code == 200
    for wrong in ("", "boots & café", "Boots & Cafe", '"><script>alert(1)</script>'):
        page = await owner.post(address, data={"name": wrong})
        assert page.status_code == 422
        assert "<script>alert" not in page.text
    assert await states(app) == ["live"]
    # A browser shows two spaces as one, and a letter with its accent as such a letter.
    reply = await owner.post(address, data={"name": "Boots & Caf\u00e9"})
    assert (reply.status_code, reply.headers["location"]) == (303, "/apps")
    assert "The app is deleted." in (await owner.get("/apps")).text
    assert await App.count() == 0
    assert [erasure.app_id for erasure in await Erasure.objects()] == [app.id]
    assert [route.revoked for route in await tokens.unscoped_routes(0) if route.token == token] == [True]
    assert (await owner.get(address)).status_code == 404
