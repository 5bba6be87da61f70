import re

import pytest

from server.database import Database
from tenants import apps, tokens
from tenants.errors import InvalidValue, NotFound
from tenants.tables import App, Tenant


async def test_a_new_app_takes_hits(database: Database, alice: Tenant) -> None:
    await apps.create_app(alice, "First")
    app, token = await apps.create_app(alice, " Shop ", "eur")
    assert re.fullmatch("[0-9a-f]{24}", token)
    stored = await apps.app_by_token(alice, token)
    assert (stored.id, stored.name, stored.currency) == (app.id, "Shop", "EUR")
    assert (stored.timezone, stored.honour_privacy_signals) == ("UTC", True)
    assert [app.name for app in await apps.list_apps(alice)] == ["First", "Shop"]


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
    assert await tokens.unscoped_routes(route.revision) == []


async def test_an_app_whose_tokens_nobody_heard_the_end_of_cannot_be_deleted(database: Database, alice: Tenant) -> None:
    app, token = await apps.create_app(alice, "Shop")
    # sqlite3.IntegrityError or asyncpg.ForeignKeyViolationError.
    with pytest.raises(Exception, match=r"(?i)foreign key"):
        await App.delete().where(App.id == app.id)
    assert (await apps.app_by_token(alice, token)).id == app.id


@pytest.mark.parametrize("currency", ["", "US", "XYZ", "usd1", "US\0"])
async def test_currencies_that_are_none(database: Database, alice: Tenant, currency: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        await apps.create_app(alice, "Shop", currency)
    assert refused.value.field == "currency"
    assert await App.count() == 0


@pytest.mark.parametrize("timezone", ["", "Mars/Olympus", "../etc/passwd", "UTC\0"])
async def test_time_zones_that_are_none(database: Database, alice: Tenant, timezone: str) -> None:
    app, token = await apps.create_app(alice, "Shop")
    with pytest.raises(InvalidValue) as refused:
        await apps.change_app(app, name="Store", timezone=timezone)
    assert refused.value.field == "timezone"
    assert (await apps.app_by_token(alice, token)).name == "Shop"
