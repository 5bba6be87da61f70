# pyright: reportUnknownMemberType=false

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from server.database import Database
from tenants import accounts, keys, members, sessions
from tenants.errors import EmailTaken, InvalidValue, NotFound, TooManyTries
from tenants.tables import Invitation, Membership, Role, Tenant, User

NOW = datetime(2027, 3, 1, 12, 0, 0, 5, UTC)
PASSWORD = "correct horse battery"


async def user_of(tenant: Tenant) -> User:
    return (await members.list_members(tenant))[0].user


async def add(tenant: Tenant, user: User, role: Role) -> None:
    await Membership(tenant=tenant.id, user=user.id, role=role).save()


async def newcomer(tenant: Tenant, email: str) -> User:
    """Somebody with a new account, who looks at the tenant's."""
    _, token = await members.invite(tenant, email, "viewer", NOW)
    return (await members.join_as_new(token, "Nora", PASSWORD, NOW))[1]


async def roles(tenant: Tenant) -> dict[str, Role]:
    return {each.user.email: each.role for each in await members.list_members(tenant)}


async def test_a_new_person_joins_by_an_invitation(database: Database, alice: Tenant) -> None:
    invitation, token = await members.invite(alice, " New@Example.org ", "member", NOW)
    assert token not in repr(await Invitation.select())
    found = await members.find_invitation(token, NOW)
    assert (found.tenant.name, found.email, found.role) == ("Alice", "new@example.org", "member")
    assert not await members.has_account(found.email)
    assert [each.id for each in await members.list_invitations(alice, NOW)] == [invitation.id]

    tenant, user = await members.join_as_new(token, " Nora ", PASSWORD, NOW)
    assert (tenant.id, user.name, user.email) == (alice.id, "Nora", "new@example.org")
    assert await roles(alice) == {"alice@example.org": Role.OWNER, "new@example.org": Role.MEMBER}
    assert await accounts.authenticate("new@example.org", PASSWORD) is not None
    for use in (members.join_as_new(token, "Nora", PASSWORD, NOW), members.join(token, user, NOW)):
        with pytest.raises(NotFound):
            await use
    assert await members.list_invitations(alice, NOW) == []


async def test_somebody_with_an_account_joins_and_may_switch(database: Database, alice: Tenant, bob: Tenant) -> None:
    bobs = await user_of(bob)
    _, token = await members.invite(alice, "bob@example.org", "viewer", NOW)
    with pytest.raises(EmailTaken):
        await members.join_as_new(token, "Bob", PASSWORD, NOW)
    assert await members.has_account("bob@example.org")
    assert (await members.join(token, bobs, NOW)).name == "Alice"
    assert await roles(alice) == {"alice@example.org": Role.OWNER, "bob@example.org": Role.VIEWER}
    assert await roles(bob) == {"bob@example.org": Role.OWNER}
    assert [each.name for each in await members.list_tenants(bobs)] == ["Bob", "Alice"]


async def test_an_invitation_is_for_its_address_alone(database: Database, alice: Tenant, bob: Tenant) -> None:
    _, token = await members.invite(alice, "new@example.org", "owner", NOW)
    with pytest.raises(NotFound):
        await members.join(token, await user_of(bob), NOW)
    assert await roles(alice) == {"alice@example.org": Role.OWNER}
    # The attempt of another did not use it up.
    await members.join_as_new(token, "Nora", PASSWORD, NOW)


async def test_an_invitation_ends(database: Database, alice: Tenant, bob: Tenant) -> None:
    bobs = await user_of(bob)
    _, token = await members.invite(alice, "bob@example.org", "viewer", NOW)
    later = NOW + members.INVITED_FOR
    assert (await members.find_invitation(token, later - timedelta(microseconds=1))).email == "bob@example.org"
    assert await members.list_invitations(alice, later) == []
    for use in (
        members.find_invitation(token, later),
        members.join(token, bobs, later),
        members.join_as_new(token, "Bob", PASSWORD, later),
        members.find_invitation("", NOW),
        members.find_invitation("\0\ud800", NOW),
    ):
        with pytest.raises(NotFound):
            await use
    await members.invite(alice, "other@example.org", "viewer", later)
    assert await Invitation.count() == 1


async def test_the_address_of_who_never_came_is_forgotten(database: Database, alice: Tenant, bob: Tenant) -> None:
    await members.invite(alice, "old@example.org", "viewer", NOW)
    await members.invite(bob, "new@example.org", "viewer", NOW + timedelta(seconds=1))
    await members.unscoped_purge_invitations(NOW + members.INVITED_FOR)
    assert [row["email"] for row in await Invitation.select()] == ["new@example.org"]


async def test_a_second_invitation_replaces_the_first(database: Database, alice: Tenant, bob: Tenant) -> None:
    _, others = await members.invite(bob, "new@example.org", "viewer", NOW)
    _, first = await members.invite(alice, "new@example.org", "viewer", NOW)
    _, second = await members.invite(alice, "NEW@example.org", "owner", NOW)
    with pytest.raises(NotFound):
        await members.find_invitation(first, NOW)
    assert (await members.find_invitation(second, NOW)).role == "owner"
    assert (await members.find_invitation(others, NOW)).tenant.name == "Bob"


async def test_invitations_without_end_do_not_fill_the_page(
    database: Database, alice: Tenant, bob: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "MAX_PEOPLE", 3)
    for email in ("one@example.org", "two@example.org", "two@example.org"):
        await members.invite(alice, email, "viewer", NOW)
    with pytest.raises(InvalidValue, match="3 people at most"):
        await members.invite(alice, "three@example.org", "viewer", NOW)
    await members.invite(bob, "three@example.org", "viewer", NOW)
    (newest, _) = await members.list_invitations(alice, NOW)
    await members.withdraw(alice, newest.id)
    await members.invite(alice, "three@example.org", "viewer", NOW)


async def test_a_used_invitations_number_is_given_to_no_other(database: Database, alice: Tenant) -> None:
    used, token = await members.invite(alice, "new@example.org", "viewer", NOW)
    await members.join_as_new(token, "Nora", PASSWORD, NOW)
    await members.invite(alice, "other@example.org", "viewer", NOW)
    # A page that still shows the one would withdraw the other.
    with pytest.raises(NotFound):
        await members.withdraw(alice, used.id)


async def test_bob_cannot_withdraw_alices_invitation(database: Database, alice: Tenant, bob: Tenant) -> None:
    invitation, token = await members.invite(alice, "new@example.org", "viewer", NOW)
    for tenant, wanted in ((bob, invitation.id), (alice, invitation.id + 1), (alice, 0), (alice, 2**70)):
        with pytest.raises(NotFound):
            await members.withdraw(tenant, wanted)
    assert await members.list_invitations(bob, NOW) == []
    await members.withdraw(alice, invitation.id)
    with pytest.raises(NotFound):
        await members.find_invitation(token, NOW)


async def test_two_who_use_one_invitation_at_once(database: Database, alice: Tenant) -> None:
    _, token = await members.invite(alice, "new@example.org", "viewer", NOW)
    outcomes = await asyncio.gather(
        *(members.join_as_new(token, name, PASSWORD, NOW) for name in ("One", "Two")), return_exceptions=True
    )
    # Who is late finds the invitation gone, or was told its address just before and finds the other's new account.
    loser, winner = sorted((type(outcome).__name__ for outcome in outcomes), key=str.islower)
    assert winner == "tuple"
    assert loser in ("NotFound", "EmailTaken")
    assert len(await roles(alice)) == 2


@pytest.mark.parametrize(
    ("email", "role", "field"),
    [
        ("no address", "viewer", "email"),
        (" ALICE@example.org", "viewer", "email"),
        ("new@example.org", "", "role"),
        ("new@example.org", "Owner", "role"),
        ("new@example.org", "root\0", "role"),
    ],
)
async def test_invitations_that_cannot_be_made(
    database: Database, alice: Tenant, email: str, role: str, field: str
) -> None:
    with pytest.raises(InvalidValue) as refused:
        await members.invite(alice, email, role, NOW)
    assert refused.value.field == field
    assert await Invitation.count() == 0


async def test_a_changed_role_counts_at_once(database: Database, alice: Tenant, bob: Tenant) -> None:
    bobs = await user_of(bob)
    await add(alice, bobs, Role.VIEWER)
    token = await sessions.create(bobs, "", NOW, alice)
    await members.change_role(alice, bobs.id, "member")
    found = await sessions.find(token, NOW)
    assert found is not None
    assert (found.tenant.name, found.role) == ("Alice", Role.MEMBER)
    assert await roles(bob) == {"bob@example.org": Role.OWNER}
    with pytest.raises(InvalidValue):
        await members.change_role(alice, bobs.id, "king")


@pytest.mark.parametrize("goes", [True, False])
async def test_an_owner_who_is_none_any_more_leaves_no_invitation(
    database: Database, alice: Tenant, bob: Tenant, goes: bool
) -> None:
    """They may know the links, and be who is invited."""
    bobs = await user_of(bob)
    _, token = await members.invite(alice, "bob@example.org", "owner", NOW)
    await members.join(token, bobs, NOW)
    _, token = await members.invite(alice, "bobs.other@example.org", "owner", NOW)
    await members.invite(bob, "of@bob.example.org", "viewer", NOW)
    await (members.remove(alice, bobs.id) if goes else members.change_role(alice, bobs.id, "member"))
    with pytest.raises(NotFound):
        await members.join_as_new(token, "Bob", PASSWORD, NOW)
    assert len(await members.list_invitations(bob, NOW)) == 1
    # Whoever was no owner could not invite anybody.
    if not goes:
        await members.invite(alice, "new@example.org", "viewer", NOW)
        await members.remove(alice, bobs.id)
        assert len(await members.list_invitations(alice, NOW)) == 1


@pytest.mark.parametrize("goes", [True, False])
async def test_who_is_let_go_while_their_form_is_under_way_changes_nothing(
    database: Database, alice: Tenant, bob: Tenant, goes: bool
) -> None:
    """Their rights were looked up before; what they ask for waits for its turn behind their removal."""
    bobs, owner = await user_of(bob), await user_of(alice)
    await add(alice, bobs, Role.OWNER)
    await members.invite(alice, "friend@example.org", "owner", NOW, by=bobs)
    await keys.create_key(alice, "While they may", by=bobs)
    await (members.remove(alice, bobs.id) if goes else members.change_role(alice, bobs.id, "viewer"))
    for late in (
        members.invite(alice, "friend@example.org", "owner", NOW, by=bobs),
        members.change_role(alice, owner.id, "viewer", by=bobs),
        members.remove(alice, owner.id, by=bobs),
        keys.create_key(alice, "Too late", by=bobs),
        accounts.delete_tenant(alice, by=bobs),
    ):
        with pytest.raises(NotFound):
            await late
    assert (await roles(alice))["alice@example.org"] == Role.OWNER
    assert await members.list_invitations(alice, NOW) == []
    assert [key.name for key in await keys.list_keys(alice, NOW)] == ["While they may"]


async def test_invitations_are_so_many_an_hour(database: Database, alice: Tenant, bob: Tenant) -> None:
    """Each link says whether the address has an account."""
    for number in range(60):
        await members.invite(alice, f"somebody{number % 3}@example.org", "viewer", NOW)
    with pytest.raises(TooManyTries):
        await members.invite(alice, "one.more@example.org", "viewer", NOW)
    await members.invite(bob, "one.more@example.org", "viewer", NOW)
    await members.invite(alice, "one.more@example.org", "viewer", NOW + timedelta(hours=1, seconds=1))


async def test_the_last_owner_stays_one(database: Database, alice: Tenant, bob: Tenant) -> None:
    owner, bobs = await user_of(alice), await user_of(bob)
    await add(alice, bobs, Role.MEMBER)
    for going in (
        members.remove(alice, owner.id),
        members.change_role(alice, owner.id, "member"),
        members.change_role(alice, owner.id, "viewer"),
    ):
        with pytest.raises(InvalidValue):
            await going
    await members.change_role(alice, owner.id, "owner")
    await members.change_role(alice, bobs.id, "owner")
    await members.change_role(alice, owner.id, "viewer")
    with pytest.raises(InvalidValue):
        await members.remove(alice, bobs.id)
    assert await roles(alice) == {"alice@example.org": Role.VIEWER, "bob@example.org": Role.OWNER}


async def test_two_owners_cannot_both_go_at_once(database: Database, alice: Tenant, bob: Tenant) -> None:
    owner, bobs = await user_of(alice), await user_of(bob)
    await add(alice, bobs, Role.OWNER)
    outcomes = await asyncio.gather(
        members.remove(alice, owner.id), members.remove(alice, bobs.id), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["InvalidValue", "NoneType"]
    assert list((await roles(alice)).values()) == [Role.OWNER]


async def test_who_is_removed_keeps_what_is_theirs(database: Database, alice: Tenant, bob: Tenant) -> None:
    bobs = await user_of(bob)
    await add(alice, bobs, Role.MEMBER)
    token = await sessions.create(bobs, "", NOW, alice)
    await members.remove(alice, bobs.id)
    found = await sessions.find(token, NOW)
    assert found is not None
    assert found.tenant.name == "Bob"
    assert await roles(alice) == {"alice@example.org": Role.OWNER}


async def test_the_others_go_on_with_what_they_look_at(database: Database, alice: Tenant, bob: Tenant) -> None:
    carol = await newcomer(bob, "carol@example.org")
    await add(alice, carol, Role.MEMBER)
    token = await sessions.create(carol, "", NOW, alice)
    dave = await newcomer(alice, "dave@example.org")
    await members.remove(alice, dave.id)
    found = await sessions.find(token, NOW)
    assert found is not None
    assert (found.user.email, found.tenant.name) == ("carol@example.org", "Alice")


async def test_whom_two_tenants_remove_at_once_is_removed_altogether(
    database: Database, alice: Tenant, bob: Tenant
) -> None:
    for number in range(8):
        user = await newcomer(alice, email := f"new{number}@example.org")
        await add(bob, user, Role.MEMBER)
        await asyncio.gather(members.remove(alice, user.id), members.remove(bob, user.id))
        assert not await members.has_account(email), "they could neither log in nor sign up again"


async def test_who_joins_while_they_are_removed_elsewhere_belongs_there_or_is_told(
    database: Database, alice: Tenant, bob: Tenant
) -> None:
    for number in range(8):
        user = await newcomer(alice, email := f"new{number}@example.org")
        _, again = await members.invite(bob, email, "viewer", NOW)
        joined, _ = await asyncio.gather(
            members.join(again, user, NOW), members.remove(alice, user.id), return_exceptions=True
        )
        assert await members.has_account(email) == (email in await roles(bob)) == isinstance(joined, Tenant)


async def test_who_belongs_nowhere_else_is_removed_altogether(database: Database, alice: Tenant) -> None:
    user = await newcomer(alice, "new@example.org")
    session = await sessions.create(user, "", NOW)
    await members.remove(alice, user.id)
    assert await sessions.find(session, NOW) is None
    assert await accounts.authenticate("new@example.org", PASSWORD) is None
    _, again = await members.invite(alice, "new@example.org", "viewer", NOW)
    await members.join_as_new(again, "Nora", PASSWORD, NOW)


async def test_bob_cannot_touch_alices_members(database: Database, alice: Tenant, bob: Tenant) -> None:
    owner = await user_of(alice)
    for tenant, user_id in ((bob, owner.id), (alice, owner.id + 100), (alice, 0), (alice, 2**70)):
        with pytest.raises(NotFound):
            await members.change_role(tenant, user_id, "viewer")
        with pytest.raises(NotFound):
            await members.remove(tenant, user_id)
    assert await roles(alice) == {"alice@example.org": Role.OWNER}
