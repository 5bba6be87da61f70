"""On PostgreSQL, who changes an account waits for who is changing it, and sees what they did. SQLite has one writer."""
# pyright: reportUnknownMemberType=false

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from datetime import UTC, datetime

import pytest

from server.database import Database
from tenants import keys, members
from tenants.errors import InvalidValue, NotFound
from tenants.keys import create_key
from tenants.members import invite, join
from tenants.tables import ApiKey, Invitation, Membership, Role, Tenant, User, lock, lock_user, transaction

pytestmark = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
NOW = datetime(2027, 3, 1, 12, 0, 0, 5, UTC)

Step = Callable[[], Awaitable[object]]


async def outcome_after(begun: Step, asked: Step, finished: Step) -> object:
    """What becomes of `asked` in between: `begun` and `finished` are one transaction."""

    async def started() -> object:
        return await asked()

    async with transaction():
        await begun()
        # Of another transaction.
        task = asyncio.create_task(started(), context=Context())
        waiting = "SELECT count(*) AS n FROM pg_locks WHERE NOT granted"
        while not task.done() and not (await Tenant.raw(waiting))[0]["n"]:  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.01)
        await finished()
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    return outcome


async def nothing() -> None:
    pass


@pytest.fixture
async def bobs(alice: Tenant, bob: Tenant) -> User:
    """Bob, an owner of alice's too."""
    user = (await members.list_members(bob))[0].user
    await Membership(tenant=alice.id, user=user.id, role=Role.OWNER).save()
    return user


async def test_the_last_key_there_is_room_for_is_made_once(
    database: Database, alice: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "MAX_KEYS", 1)

    async def make() -> None:
        await lock(alice)
        await ApiKey(tenant=alice.id, name="First", key_hash="1", prefix="1").save()

    outcome = await outcome_after(make, lambda: create_key(alice, "Second"), nothing)
    assert isinstance(outcome, InvalidValue)
    assert await ApiKey.count() == 1


async def test_the_last_invitation_there_is_room_for_is_made_once(
    database: Database, alice: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "MAX_PEOPLE", 2)

    async def make() -> None:
        await lock(alice)
        await Invitation(
            tenant=alice.id, email="one@example.org", role="viewer", token_hash="1", created_at=NOW, expires_at=NOW
        ).save()

    outcome = await outcome_after(make, lambda: invite(alice, "two@example.org", "viewer", NOW.replace(2026)), nothing)
    assert isinstance(outcome, InvalidValue)
    assert await Invitation.count() == 1


@pytest.mark.parametrize("goes", [True, False])
async def test_of_two_owners_who_let_each_other_go_one_stays(
    database: Database, alice: Tenant, bobs: User, goes: bool
) -> None:
    owner = (await members.list_members(alice))[0].user

    async def let_bob_go() -> None:
        await lock(alice)
        await Membership.delete().where(Membership.tenant == alice.id, Membership.user == bobs.id)

    async def let_the_other_go() -> None:
        await (members.remove(alice, owner.id) if goes else members.change_role(alice, owner.id, "viewer"))

    assert isinstance(await outcome_after(let_bob_go, let_the_other_go, nothing), InvalidValue)
    assert [each.role for each in await members.list_members(alice)] == [Role.OWNER]


async def test_who_joins_while_they_are_removed_is_told_so(
    database: Database, alice: Tenant, bob: Tenant, bobs: User
) -> None:
    _, token = await invite(alice, "carol@example.org", "viewer", NOW)
    _, carol = await members.join_as_new(token, "Carol", "correct horse battery", NOW)
    _, token = await invite(bob, "carol@example.org", "viewer", NOW)

    async def remove() -> None:
        await lock_user(carol.id)
        await Membership.delete().where(Membership.user == carol.id)
        await User.delete().where(User.id == carol.id)

    outcome = await outcome_after(remove, lambda: join(token, carol, NOW), nothing)
    assert isinstance(outcome, NotFound)


async def test_a_member_is_removed_while_the_account_is_deleted(database: Database, alice: Tenant, bobs: User) -> None:
    """Whoever locks a user before their membership must not meet somebody who does it the other way round."""

    async def begin_to_delete() -> None:
        await lock_user(bobs.id)

    async def delete() -> None:
        await Membership.delete().where(Membership.tenant == alice.id)

    outcome = await outcome_after(begin_to_delete, lambda: members.remove(alice, bobs.id), delete)
    assert outcome is None
    assert await User.exists().where(User.id == bobs.id)
