# pyright: reportUnknownMemberType=false, reportPrivateUsage=false

import asyncio
import re
import unicodedata
from datetime import UTC, datetime
from typing import Any

import pytest
from argon2 import Type

from server.database import Database
from tenants import accounts, members, sessions, tokens
from tenants.apps import create_app, list_apps
from tenants.errors import Busy, EmailTaken, InvalidValue, NotFound, SeveralTenants, TooManyTries
from tenants.keys import create_key, find_key
from tenants.tables import App, AppToken, Erasure, Membership, Role, Session, Tenant, Tries, User

PASSWORD = "correct horse battery"
OTHER = "staple and a half"
NOW = datetime(2027, 3, 1, 12, 0, 0, 5, UTC)
HERE = "192.0.2.1"
# As it is outside of tests.
HASHER = accounts._hasher


async def sign_up(name: str = "Alice", email: str = "alice@example.org") -> tuple[Tenant, User]:
    tenant, user, _, _ = await accounts.sign_up(name, email, PASSWORD, address=HERE, now=NOW)
    return tenant, user


async def test_signing_up_makes_tenant_owner_app_and_token(database: Database) -> None:
    tenant, user, app, token = await accounts.sign_up(
        " Alice ", "Alice@Example.org", PASSWORD, address=HERE, now=NOW, timezone="Asia/Kolkata"
    )
    (route,) = await tokens.unscoped_routes(0)
    assert (route.token, route.app_id, route.tenant_id, route.rate) == (token, app.id, tenant.id, 1000)
    assert (app.name, app.currency, app.timezone) == ("My site", "USD", "Asia/Kolkata")
    assert [(each.user.id, each.role) for each in await members.list_members(tenant)] == [(user.id, Role.OWNER)]
    assert (tenant.name, user.name, user.email) == ("Alice", "Alice", "alice@example.org")
    assert await accounts.authenticate("alice@example.org", PASSWORD) is not None


@pytest.mark.parametrize("timezone", ["", "Mars/Olympus", "Factory", "\0", "x" * 1000])
async def test_a_browsers_time_zone_that_is_none_is_ignored(database: Database, timezone: str) -> None:
    _, _, app, _ = await accounts.sign_up("A", "a@example.org", PASSWORD, address=HERE, now=NOW, timezone=timezone)
    assert app.timezone == "UTC"


async def test_a_sign_up_that_fails_leaves_nothing(database: Database) -> None:
    await sign_up()
    with pytest.raises(EmailTaken) as refused:
        await sign_up("Other", " ALICE@example.org")
    assert refused.value.field == "email"
    assert [await table.count() for table in (Tenant, User, Membership, App)] == [1, 1, 1, 1]


async def test_two_sign_ups_at_once_with_one_email_and_all_that_comes_with_it(database: Database) -> None:
    outcomes = await asyncio.gather(*(sign_up(name) for name in ("One", "Two")), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["EmailTaken", "tuple"]
    assert [await table.count() for table in (Tenant, User, Membership, App, AppToken)] == [1, 1, 1, 1, 1]


async def test_sign_ups_of_an_address_are_limited_before_the_work_of_hashing(database: Database) -> None:
    for n in range(20):
        with pytest.raises(InvalidValue):
            await accounts.sign_up("A", f"a{n}@example.org", "too short", address=HERE, now=NOW)
    assert await Tries.raw("SELECT * FROM tries") == []
    await sign_up()
    for _ in range(19):
        with pytest.raises(EmailTaken):
            await sign_up()
    with pytest.raises(TooManyTries):
        await sign_up("Bob", "bob@example.org")
    await accounts.sign_up("Bob", "bob@example.org", PASSWORD, address="192.0.2.2", now=NOW)


async def test_guessing_a_password_ends_after_ten_tries(database: Database) -> None:
    await sign_up()
    for _ in range(10):
        assert await accounts.log_in("alice@example.org", "wrong password", address=HERE, now=NOW) is None
    for email in ("alice@example.org", " ALICE@example.org ", "alice@ex\u200bample.org", "alice@ｅｘａｍｐｌｅ。org"):
        with pytest.raises(TooManyTries):
            await accounts.log_in(email, PASSWORD, address="192.0.2.2", now=NOW)


async def test_the_right_password_begins_the_count_again(database: Database) -> None:
    await sign_up()
    for _ in range(3):
        for _ in range(9):
            assert await accounts.log_in("alice@example.org", "wrong password", address=HERE, now=NOW) is None
        assert await accounts.log_in("alice@example.org", PASSWORD, address=HERE, now=NOW) is not None
    # 27 wrong ones of the address are left of its 30; the right ones do not count.
    for n in range(3):
        assert await accounts.log_in(f"{n}@example.org", PASSWORD, address=HERE, now=NOW) is None
    with pytest.raises(TooManyTries):
        await accounts.log_in("alice@example.org", PASSWORD, address=HERE, now=NOW)


async def test_an_unknown_mailbox_is_limited_as_a_known_one(database: Database) -> None:
    for email in ("nobody@example.org", "no address"):
        for _ in range(10):
            assert await accounts.log_in(email, PASSWORD, address=HERE, now=NOW) is None
        with pytest.raises(TooManyTries):
            await accounts.log_in(email, PASSWORD, address="192.0.2.2", now=NOW)


async def test_change_email(database: Database) -> None:
    _, user = await sign_up()
    await sign_up("Bob", "bob@example.org")
    token = await sessions.create(user, "", NOW)
    for email, password, field in (
        ("new@example.org", "wrong password", "current_password"),
        ("no address", PASSWORD, "email"),
        (" BOB@example.org", PASSWORD, "email"),
    ):
        with pytest.raises(InvalidValue) as refused:
            await accounts.change_email(user, email, password, address=HERE, now=NOW)
        assert refused.value.field == field
    await accounts.change_email(user, " New@Example.org ", PASSWORD, address=HERE, now=NOW)
    assert await accounts.authenticate("new@example.org", PASSWORD) is not None
    assert await accounts.authenticate("alice@example.org", PASSWORD) is None
    found = await sessions.find(token, NOW)
    assert found is not None
    assert found.user.email == user.email == "new@example.org"
    await accounts.change_email(user, "new@example.org", PASSWORD, address=HERE, now=NOW)


async def test_a_changed_password_ends_all_other_sessions(database: Database) -> None:
    _, user = await sign_up()
    here, there = [await sessions.create(user, "", NOW) for _ in range(2)]
    found = await sessions.find(here, NOW)
    assert found is not None
    for password, current, field in ((OTHER, "wrong password", "current_password"), ("short", PASSWORD, "password")):
        with pytest.raises(InvalidValue) as refused:
            await accounts.change_password(user, password, current, found.session, address=HERE, now=NOW)
        assert refused.value.field == field
    assert await sessions.find(there, NOW) is not None
    await accounts.change_password(user, OTHER, PASSWORD, found.session, address=HERE, now=NOW)
    assert await sessions.find(there, NOW) is None
    assert await sessions.find(here, NOW) is not None
    assert await accounts.authenticate("alice@example.org", PASSWORD) is None
    assert await accounts.authenticate("alice@example.org", OTHER) is not None


async def test_the_current_password_cannot_be_guessed_in_an_open_browser(database: Database) -> None:
    _, user = await sign_up()
    for _ in range(10):
        with pytest.raises(InvalidValue):
            await accounts.change_email(user, "new@example.org", "wrong password", address=HERE, now=NOW)
    with pytest.raises(TooManyTries):
        await accounts.change_email(user, "new@example.org", PASSWORD, address=HERE, now=NOW)


async def test_names_are_changed(database: Database) -> None:
    tenant, user = await sign_up()
    await accounts.rename_tenant(tenant, " Alice & Co ")
    await accounts.rename_user(user, "Alice A.")
    (member,) = await members.list_members(tenant)
    assert ((await members.list_tenants(user))[0].name, member.user.name) == ("Alice & Co", "Alice A.")
    for name in ("", "x" * 101, "a\0b"):
        with pytest.raises(InvalidValue):
            await accounts.rename_tenant(tenant, name)
        with pytest.raises(InvalidValue):
            await accounts.rename_user(user, name)


async def test_a_deleted_tenant_takes_all_that_is_its_own(database: Database, bob: Tenant) -> None:
    tenant, alice = await sign_up()
    _, bobs_token = await create_app(bob, "Blog")
    shop, shop_token = await create_app(tenant, "Shop")
    _, key = await create_key(tenant, "Reports")
    _, bobs_key = await create_key(bob, "Reports")
    bobs = await User.objects().get(User.email == "bob@example.org")
    assert bobs is not None
    await Membership(tenant=tenant.id, user=bobs.id, role=Role.VIEWER).save()
    _, invited = await members.invite(tenant, "new@example.org", "viewer", NOW)
    alices_session = await sessions.create(alice, "", NOW, tenant)
    bobs_session = await sessions.create(bobs, "", NOW, tenant)
    app_ids = {app.id for app in await list_apps(tenant)}

    await accounts.delete_tenant(tenant)

    routes = {route.token: route for route in await tokens.unscoped_routes(0)}
    assert routes[shop_token].revoked
    assert not routes[bobs_token].revoked
    assert {each.app_id for each in await Erasure.objects()} == app_ids
    assert shop.id in app_ids
    assert await find_key(key) is None
    assert await find_key(bobs_key) is not None
    assert await sessions.find(alices_session, NOW) is None
    left = await sessions.find(bobs_session, NOW)
    assert left is not None
    assert left.tenant.id == bob.id
    with pytest.raises(NotFound):
        await members.find_invitation(invited, NOW)
    assert [each.email for each in await User.objects()] == ["bob@example.org"]
    assert (await Tenant.count(), await Session.count()) == (1, 1)

    await accounts.delete_tenant(tenant)
    await sign_up()


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


async def test_of_several_tenants_of_one_owner_one_is_named(database: Database, alice: Tenant, bob: Tenant) -> None:
    her = await User.objects().get(User.email == "alice@example.org")
    assert her is not None
    await Membership(tenant=bob.id, user=her.id, role="owner").save()
    with pytest.raises(SeveralTenants, match=re.escape("alice@example.org/Alice, alice@example.org/Bob")):
        await accounts.tenant_by_email("alice@example.org")
    assert (await accounts.tenant_by_email("alice@example.org/Bob")).id == bob.id
    assert (await accounts.tenant_by_email("alice@example.org/Alice")).id == alice.id
    with pytest.raises(NotFound):
        await accounts.tenant_by_email("alice@example.org/Carol")
    # Of one name they have numbers.
    await accounts.rename_tenant(bob, "Alice")
    with pytest.raises(SeveralTenants, match=re.escape(f"alice@example.org/{alice.id}, alice@example.org/{bob.id}")):
        await accounts.tenant_by_email("alice@example.org/Alice")
    assert (await accounts.tenant_by_email(f"alice@example.org/{bob.id}")).id == bob.id
    assert (await accounts.tenant_by_email("bob@example.org")).id == bob.id


async def test_no_number_of_a_tenant_or_user_is_given_twice(database: Database) -> None:
    """Whatever names one that is gone would else be the next one's."""
    tenants, users = set[int](), set[int]()
    for number in range(3):
        tenant, user = await accounts.create_tenant("Shop", f"shop{number}@example.org", None)
        tenants.add(tenant.id)
        users.add(user.id)
        await accounts.delete_tenant(tenant)
    assert (len(tenants), len(users)) == (3, 3)
    assert not await User.exists()


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


def test_guessing_a_password_costs_64_mib_and_tens_of_milliseconds_each() -> None:
    assert (HASHER.type, HASHER.memory_cost, HASHER.time_cost) == (Type.ID, 64 * 1024, 3)


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


async def test_a_password_is_the_same_on_every_keyboard(database: Database) -> None:
    as_typed = "Tiếng Việt của tôi"
    one, several = (unicodedata.normalize(form, as_typed) for form in ("NFC", "NFD"))
    assert one != several
    await accounts.create_tenant("Alice", "alice@example.org", several)
    await accounts.create_tenant("Bob", "bob@example.org", one)
    for email in ("alice@example.org", "bob@example.org"):
        for password in (one, several):
            assert await accounts.authenticate(email, password) is not None
        assert await accounts.authenticate(email, as_typed.replace("ế", "é")) is None


@pytest.mark.parametrize(
    ("typed", "other"),
    [
        ("ann@bücher.example", "ann@xn--bcher-kva.example"),
        ("ann@Straße.example", "ANN@xn--strae-oqa.example"),
        ("ann@ｂｏｏｋｓ。example", "ann@books.example"),
        ("ann@bo\u200boks.example", "ann@books.example"),
        ("ann@\u0661.example", "ann@\u0661.example"),
    ],
)
async def test_a_domain_is_the_same_in_every_browser(database: Database, typed: str, other: str) -> None:
    await accounts.create_tenant("Alice", typed, PASSWORD)
    for email in (typed, other):
        assert await accounts.authenticate(email, PASSWORD) is not None


async def test_no_log_in_before_a_password_is_set(database: Database, alice: Tenant) -> None:
    user = await User.objects().get(User.email == "alice@example.org")
    assert user is not None
    assert await accounts.authenticate("alice@example.org", "") is None
    await accounts.set_password(user, PASSWORD)
    assert await accounts.authenticate("alice@example.org", PASSWORD) is not None


@pytest.mark.parametrize("email", ["alice@example.org", "nobody@example.org", "no address"])
async def test_an_unknown_user_takes_as_long(database: Database, monkeypatch: pytest.MonkeyPatch, email: str) -> None:
    """A hash is computed either way, which is tens of milliseconds; all else is one or two."""
    await accounts.create_tenant("Alice", "alice@example.org", PASSWORD)
    computed: list[str] = []
    off_the_loop: Any = vars(accounts)["_off_the_loop"]

    async def counted(work: Any, address: str) -> Any:
        computed.append(email)
        return await off_the_loop(work, address)

    monkeypatch.setattr(accounts, "_off_the_loop", counted)
    assert await accounts.authenticate(email, "wrong password") is None
    assert computed == [email]


async def test_an_address_that_logs_in_without_pause_keeps_only_itself_waiting() -> None:
    known = await accounts.hash_password(PASSWORD)
    of_one = [
        asyncio.create_task(accounts.verify_password(known, PASSWORD, f"2001:db8::{number}")) for number in range(31)
    ]
    await asyncio.sleep(0)
    assert await accounts.verify_password(known, PASSWORD, HERE)
    assert sum(task.done() for task in of_one) < 10
    done = await asyncio.gather(*of_one, return_exceptions=True)
    assert done[:30] == [True] * 30
    assert isinstance(done[30], Busy)
    assert await accounts.verify_password(known, PASSWORD, "2001:db8::1")


async def test_so_many_passwords_wait_to_be_checked_and_no_more() -> None:
    known = await accounts.hash_password(PASSWORD)
    rush = [accounts.verify_password(known, PASSWORD, f"192.0.2.{number}") for number in range(41)]
    done = await asyncio.gather(*rush, return_exceptions=True)
    assert done[:40] == [True] * 40
    assert isinstance(done[40], Busy)
    assert await accounts.verify_password(known, PASSWORD, "192.0.2.40")


async def test_hashing_leaves_the_event_loop_free(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "_hasher", HASHER)
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
