"""The installation's own app, which nobody owns who could log in."""
# pyright: reportUnknownMemberType=false

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from server.database import Database
from tenants import accounts, apps, members, tokens
from tenants.errors import InvalidValue, NotFound
from tenants.showcase import EMAIL, showcase
from tenants.tables import App, AppToken, Erasure, Membership, Tenant, User

PASSWORD = "correct horse battery"
NOW = datetime(2027, 3, 1, 12, 0, 0, 5, UTC)
HERE = "192.0.2.1"


async def test_it_is_made_once_and_takes_few_hits(database: Database) -> None:
    made = await showcase()
    again = await showcase()
    assert (again.app.id, again.token) == (made.app.id, made.token)
    (route,) = await tokens.unscoped_routes(0)
    assert (route.token, route.app_id, route.rate, route.burst) == (made.token, made.app.id, 5, 20)
    assert (route.honour_privacy, made.app.retention_days, made.app.currency) == (True, 1, "EUR")


async def test_of_many_who_ask_at_once_one_makes_it(database: Database) -> None:
    asked = await asyncio.gather(*(showcase() for _ in range(12)))
    assert len({(each.app.id, each.token) for each in asked}) == 1
    assert [await table.count() for table in (Tenant, User, Membership, App, AppToken)] == [1, 1, 1, 1, 1]


async def test_what_was_taken_away_of_it_is_made_again(database: Database) -> None:
    first = await showcase()
    tenant = await accounts.tenant_by_email(EMAIL)
    await accounts.set_limit(tenant, 50, 50)
    await tokens.revoke(tenant, first.token)
    second = await showcase()
    assert second.app.id == first.app.id
    rotated = await tokens.rotate(second.app, timedelta(hours=1))
    assert (await showcase()).token == rotated != second.token
    await apps.delete_app(second.app)
    third = await showcase()
    assert third.app.id != first.app.id
    assert third.app.tenant == tenant.id
    assert (await accounts.tenant_by_email(EMAIL)).rate == 50
    await accounts.delete_tenant(tenant)
    fourth = await showcase()
    assert len({fourth.token, third.token, rotated, second.token, first.token}) == 5
    assert [await table.count() for table in (Tenant, User, Membership, App)] == [1, 1, 1, 1]
    assert await Erasure.count() == 2


async def test_other_apps_of_its_tenant_are_not_shown(database: Database) -> None:
    made = await showcase()
    await apps.create_app(await accounts.tenant_by_email(EMAIL), "Status page")
    await tokens.revoke(await accounts.tenant_by_email(EMAIL), made.token)
    assert (await showcase()).app.id == made.app.id


@pytest.mark.parametrize("email", [EMAIL, " ShowCase@OnePx.Invalid ", "anybody@onepx.invalid"])
@pytest.mark.parametrize("is_there", [True, False])
async def test_nobody_gets_hold_of_it(database: Database, alice: Tenant, email: str, is_there: bool) -> None:
    if is_there:
        await showcase()
    with pytest.raises(InvalidValue):
        await accounts.sign_up("Eve", email, PASSWORD, address=HERE, now=NOW)
    with pytest.raises(InvalidValue):
        await accounts.create_tenant("Eve", email, PASSWORD)
    with pytest.raises(InvalidValue):
        await members.invite(alice, email, "owner", NOW)
    eve = await User.objects().get(User.email == "alice@example.org")
    assert eve is not None
    await accounts.set_password(eve, PASSWORD)
    with pytest.raises(InvalidValue):
        await accounts.change_email(eve, email, PASSWORD, address=HERE, now=NOW)
    made = await showcase()
    with pytest.raises(NotFound):
        await apps.find_app(alice, str(made.app.id))


async def test_not_even_a_password_opens_it(database: Database) -> None:
    await showcase()
    user = await User.objects().get(User.email == EMAIL)
    assert user is not None
    assert user.password_hash is None
    await accounts.set_password(user, PASSWORD)
    assert await accounts.log_in(EMAIL, PASSWORD, address=HERE, now=NOW) is None
