# pyright: reportUnknownMemberType=false

import asyncio
import time

import pytest

from server.database import Database
from tenants import accounts, tokens
from tenants.apps import create_app
from tenants.errors import EmailTaken, InvalidValue, NotFound
from tenants.tables import Membership, Tenant, User

PASSWORD = "correct horse battery"


async def test_a_new_tenant_has_one_owner_and_the_default_limit(database: Database) -> None:
    tenant, user = await accounts.create_tenant("  Alice & Co ", " Alice@Example.ORG ", None)
    stored = await Tenant.objects().get(Tenant.id == tenant.id)
    assert stored is not None
    assert (stored.name, stored.rate, stored.burst) == ("Alice & Co", 1000, 5000)
    assert stored.created_at.utcoffset() is not None
    assert user.email == "alice@example.org"
    rows = await Membership.select(Membership.tenant, Membership.user, Membership.role)
    assert rows == [{"tenant": tenant.id, "user": user.id, "role": "owner"}]


async def test_a_taken_email_makes_nothing(database: Database, alice: Tenant) -> None:
    with pytest.raises(EmailTaken):
        await accounts.create_tenant("Other", "ALICE@example.org", None)
    assert (await Tenant.count(), await User.count(), await Membership.count()) == (1, 1, 1)


async def test_two_sign_ups_at_once_with_one_email(database: Database) -> None:
    both = [accounts.create_tenant(name, "alice@example.org", None) for name in ("One", "Two")]
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["EmailTaken", "tuple"]
    assert await Tenant.count() == 1


async def test_tenant_by_email(database: Database, alice: Tenant, bob: Tenant) -> None:
    assert (await accounts.tenant_by_email(" Alice@example.org")).id == alice.id
    assert (await accounts.tenant_by_email("bob@example.org")).id == bob.id
    for unknown in ("nobody@example.org", "no address", "a\0@example.org"):
        with pytest.raises(NotFound):
            await accounts.tenant_by_email(unknown)


async def test_a_viewer_is_not_found_as_the_owner(database: Database, alice: Tenant, bob: Tenant) -> None:
    bobs = await User.objects().get(User.email == "bob@example.org")
    assert bobs is not None
    await Membership(tenant=alice.id, user=bobs.id, role="viewer").save()
    assert (await accounts.tenant_by_email("bob@example.org")).id == bob.id


async def test_a_limit_is_stamped_on_the_tenants_tokens_alone(database: Database, alice: Tenant, bob: Tenant) -> None:
    _, token = await create_app(alice, "Shop")
    await create_app(bob, "Blog")
    last = max(route.revision for route in await tokens.unscoped_routes(0))
    await accounts.set_limit(alice, 7, 11)
    assert (alice.rate, alice.burst) == (7, 11)
    (route,) = await tokens.unscoped_routes(last)
    assert (route.token, route.rate, route.burst) == (token, 7, 11)


async def test_log_in(database: Database) -> None:
    _, user = await accounts.create_tenant("Alice", "alice@example.org", PASSWORD)
    assert user.password_hash.startswith("$argon2id$")
    found = await accounts.authenticate(" ALICE@example.org", PASSWORD)
    assert found is not None
    assert found.id == user.id
    assert await accounts.authenticate("alice@example.org", PASSWORD + "!") is None
    assert await accounts.authenticate("nobody@example.org", PASSWORD) is None
    assert await accounts.authenticate("no address", PASSWORD) is None
    assert await accounts.authenticate("alice@example.org", "x" * 2000) is None


async def test_no_log_in_before_a_password_is_set(database: Database, alice: Tenant) -> None:
    user = await User.objects().get(User.email == "alice@example.org")
    assert user is not None
    assert await accounts.authenticate("alice@example.org", "") is None
    await accounts.set_password(user, PASSWORD)
    assert await accounts.authenticate("alice@example.org", PASSWORD) is not None


async def test_an_unknown_user_takes_as_long(database: Database) -> None:
    await accounts.create_tenant("Alice", "alice@example.org", PASSWORD)

    async def fastest(email: str) -> float:
        times: list[float] = []
        for _ in range(5):
            start = time.perf_counter()
            await accounts.authenticate(email, "wrong password")
            times.append(time.perf_counter() - start)
        return min(times)

    # The work of a hash is tens of milliseconds, all else is one or two.
    assert await fastest("nobody@example.org") > 0.5 * await fastest("alice@example.org")


async def test_hashing_leaves_the_event_loop_free(database: Database) -> None:
    hashing = asyncio.gather(*(accounts.hash_password(PASSWORD) for _ in range(4)))
    turns = 0
    while not hashing.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert len(set(await hashing)) == 4
    assert turns > 10


@pytest.mark.parametrize(
    ("name", "email", "password", "field"),
    [
        ("", "a@example.org", None, "name"),
        ("  ", "a@example.org", None, "name"),
        ("x" * 101, "a@example.org", None, "name"),
        ("a\0b", "a@example.org", None, "name"),
        ("a\ud800", "a@example.org", None, "name"),
        ("A", "", None, "email"),
        ("A", "a", None, "email"),
        ("A", "a@b", None, "email"),
        ("A", "a@b@example.org", None, "email"),
        ("A", "a b@example.org", None, "email"),
        ("A", "a\0@example.org", None, "email"),
        ("A", "a@example..org", None, "email"),
        ("A", "a" * 250 + "@example.org", None, "email"),
        ("A", "a@example.org", "123456789", "password"),
        ("A", "a@example.org", "x" * 1025, "password"),
        ("A", "a@example.org", "ä" * 513, "password"),
    ],
)
async def test_what_cannot_be_used(database: Database, name: str, email: str, password: str | None, field: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        await accounts.create_tenant(name, email, password)
    assert refused.value.field == field
    assert await User.count() == 0


@pytest.mark.parametrize(
    ("rate", "burst", "field"),
    [(0, 1, "rate"), (1_000_001, 1, "rate"), (1, 0, "burst"), (1, 10_000_001, "burst")],
)
async def test_limits_out_of_range(database: Database, alice: Tenant, rate: int, burst: int, field: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        await accounts.set_limit(alice, rate, burst)
    assert refused.value.field == field
