import re
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from server.database import Database
from tenants import apps, tokens
from tenants.errors import InvalidValue, NotFound
from tenants.tables import App, Erasure, Tenant


async def test_a_new_app_takes_hits(database: Database, alice: Tenant) -> None:
    await apps.create_app(alice, "First")
    app, token = await apps.create_app(alice, " Shop ", "eur")
    assert re.fullmatch("[0-9a-f]{24}", token)
    stored = await apps.app_by_token(alice, token)
    assert (stored.id, stored.name, stored.currency) == (app.id, "Shop", "EUR")
    assert (stored.timezone, stored.honour_privacy_signals) == ("UTC", True)
    assert [app.name for app in await apps.list_apps(alice)] == ["First", "Shop"]


async def test_an_app_is_found_by_its_id_within_its_tenant(database: Database, alice: Tenant, bob: Tenant) -> None:
    app, _ = await apps.create_app(alice, "Shop", "EUR", "Asia/Kolkata")
    namesake, _ = await apps.create_app(alice, "Shop")
    found = await apps.find_app(alice, str(app.id))
    assert (found.id, found.name, found.timezone) == (app.id, "Shop", "Asia/Kolkata")
    assert (await apps.find_app(alice, str(namesake.id))).id == namesake.id
    for tenant, app_id in (
        (bob, str(app.id)),
        (alice, str(uuid4())),
        (alice, str(app.id).upper()),
        (alice, app.id.hex),
        (alice, f"{{{app.id}}}"),
        (alice, "0"),
        (alice, ""),
        (alice, "\0" * 36),
    ):
        with pytest.raises(NotFound):
            await apps.find_app(tenant, app_id)


async def test_no_app_for_a_tenant_that_is_gone(database: Database, alice: Tenant) -> None:
    await Tenant.delete().where(Tenant.id == alice.id)
    with pytest.raises(NotFound):
        await apps.create_app(alice, "Shop")
    assert await tokens.unscoped_routes(0) == []


async def test_bob_cannot_reach_alices_app(database: Database, alice: Tenant, bob: Tenant) -> None:
    _, token = await apps.create_app(alice, "Shop")
    for tenant, wanted in (
        (bob, token),
        (alice, "0" * 24),
        (alice, token.upper()),
        (alice, token + "\n"),
        (alice, "\0" * 24),
        (alice, ""),
    ):
        with pytest.raises(NotFound):
            await apps.app_by_token(tenant, wanted)
    assert await apps.list_apps(bob) == []


async def test_a_revoked_token_still_leads_its_owner_to_the_app(database: Database, alice: Tenant) -> None:
    app, token = await apps.create_app(alice, "Shop")
    await tokens.revoke(alice, token)
    assert (await apps.app_by_token(alice, token)).id == app.id


async def test_a_changed_setting_is_stamped(database: Database, alice: Tenant) -> None:
    app, token = await apps.create_app(alice, "Shop")
    await apps.create_app(alice, "Blog")
    last = max(route.revision for route in await tokens.unscoped_routes(0))
    await apps.change_app(app, currency="chf", honour_privacy_signals=False)
    (route,) = await tokens.unscoped_routes(last)
    assert (route.token, route.currency, route.honour_privacy) == (token, "CHF", False)
    await apps.change_app(app, name="Store", timezone="Europe/Berlin")
    stored = await apps.app_by_token(alice, token)
    assert (stored.name, stored.timezone, stored.currency) == ("Store", "Europe/Berlin", "CHF")
    assert stored.honour_privacy_signals is False


async def test_a_deleted_app_is_gone_and_its_token_heard_of(database: Database, alice: Tenant) -> None:
    app, token = await apps.create_app(alice, "Shop")
    (last,) = await tokens.unscoped_routes(0)
    await apps.delete_app(app)
    (route,) = await tokens.unscoped_routes(last.revision)
    assert (route.token, route.revoked, route.app_id.int, route.tenant_id) == (token, True, 0, 0)
    with pytest.raises(NotFound):
        await apps.app_by_token(alice, token)
    with pytest.raises(NotFound):
        await tokens.issue(app)
    with pytest.raises(NotFound):
        await apps.change_app(app, name="Store")
    assert await App.count() == 0
    await apps.delete_app(app)
    (erasure,) = await Erasure.select()
    assert erasure["app_id"] == app.id
    assert datetime.now(UTC) - erasure["requested_at"] < timedelta(minutes=1)


async def test_an_app_whose_tokens_nobody_heard_the_end_of_cannot_be_deleted(database: Database, alice: Tenant) -> None:
    app, token = await apps.create_app(alice, "Shop")
    # sqlite3.IntegrityError or asyncpg.ForeignKeyViolationError.
    with pytest.raises(Exception, match=r"(?i)foreign key"):
        await App.delete().where(App.id == app.id)
    assert (await apps.app_by_token(alice, token)).id == app.id


async def test_each_tenant_has_so_many_apps(
    database: Database, alice: Tenant, bob: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apps, "MAX_APPS", 1)
    for tenant in (bob, alice):
        await apps.create_app(tenant, "Shop")
        with pytest.raises(InvalidValue, match="1 apps at most"):
            await apps.create_app(tenant, "Blog")
    assert await App.count() == 2


@pytest.mark.parametrize(
    "name",
    [
        "山田　太郎",
        "Chez\u00a0Paul",
        "شرکت می\u200cخواهم",
        "ශ්\u200dරී ලංකා",
        "👨\u200d👩\u200d👧 Shop",
        # Of Unicode 15, 16 and 17: Pythons of 2022 know none of them.
        "\U0001fae8 \U0001fae9 \U0001faea",
    ],
)
async def test_names_as_people_write_them(database: Database, alice: Tenant, name: str) -> None:
    _, token = await apps.create_app(alice, name)
    assert (await apps.app_by_token(alice, token)).name == name


@pytest.mark.parametrize("name", ["\u3000", "\u200d", "\u200b", "a\u202eb", "a\nb", "a\u2028b", "a\0", "a\udcff"])
async def test_names_that_nobody_can_read(database: Database, alice: Tenant, name: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        await apps.create_app(alice, name)
    assert refused.value.field == "name"


@pytest.mark.parametrize("currency", ["", "US", "XYZ", "usd1", "US\0"])
async def test_currencies_that_are_none(database: Database, alice: Tenant, currency: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        await apps.create_app(alice, "Shop", currency)
    assert refused.value.field == "currency"
    assert await App.count() == 0


@pytest.mark.parametrize("timezone", ["Factory", "localtime", "", "Mars/Olympus", "../etc/passwd", "UTC\0"])
async def test_time_zones_that_are_none(database: Database, alice: Tenant, timezone: str) -> None:
    app, token = await apps.create_app(alice, "Shop")
    with pytest.raises(InvalidValue) as refused:
        await apps.change_app(app, name="Store", timezone=timezone)
    assert refused.value.field == "timezone"
    assert (await apps.app_by_token(alice, token)).name == "Shop"
    with pytest.raises(InvalidValue):
        await apps.create_app(alice, "Other", "EUR", timezone)
    assert await App.count() == 1


def test_time_zones_to_choose_from() -> None:
    zones = apps.timezones()
    assert zones[:2] == ["UTC", "Africa/Abidjan"]
    assert {"Europe/Berlin", "Asia/Kathmandu", "America/Argentina/Buenos_Aires", "Pacific/Apia"} <= set(zones)
    assert not any(zone.startswith("Etc/") or zone == "Factory" for zone in zones)
