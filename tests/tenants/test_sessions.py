# pyright: reportUnknownMemberType=false

from datetime import UTC, datetime, timedelta

import pytest

from server.database import Database
from tenants import sessions
from tenants.accounts import create_tenant
from tenants.errors import NotFound
from tenants.tables import Membership, Role, Session, User

NOW = datetime(2027, 3, 1, 12, 0, 0, 5, UTC)


@pytest.fixture
async def user(database: Database) -> User:
    return (await create_tenant("Alice", "alice@example.org", None))[1]


async def login(token: str) -> sessions.Login:
    found = await sessions.find(token, NOW)
    assert found is not None
    return found


async def session_of(token: str) -> Session:
    return (await login(token)).session


async def test_a_session_leads_to_its_user(user: User) -> None:
    token = await sessions.create(user, "Browser/1.0", NOW)
    found = await sessions.find(token, NOW)
    assert found is not None
    assert (found.user.id, found.user.email) == (user.id, "alice@example.org")
    assert (found.session.created_at, found.session.user_agent) == (NOW, "Browser/1.0")
    assert (found.tenant.name, found.role) == ("Alice", Role.OWNER)
    for unknown in ("", token[:-1], token + "x", "\0", "\ud800"):
        assert await sessions.find(unknown, NOW) is None


async def test_only_a_hash_is_stored(user: User) -> None:
    token = await sessions.create(user, "Browser/1.0", NOW)
    (row,) = await Session.select()
    assert token not in repr(row)


async def test_a_session_ends_by_itself(user: User) -> None:
    token = await sessions.create(user, "Browser/1.0", NOW)
    assert await sessions.find(token, NOW + sessions.LIFETIME - timedelta(microseconds=1)) is not None
    assert await sessions.find(token, NOW + sessions.LIFETIME) is None
    await sessions.create(user, "Browser/1.0", NOW + sessions.LIFETIME)
    assert await Session.count() == 1


async def test_of_who_never_comes_back_nothing_stays(user: User) -> None:
    await sessions.create(user, "Old/1.0", NOW)
    await sessions.create(user, "New/1.0", NOW + timedelta(seconds=1))
    await sessions.unscoped_purge_sessions(NOW + sessions.LIFETIME)
    assert [row["user_agent"] for row in await Session.select()] == ["New/1.0"]


async def test_log_out_here_and_everywhere(user: User) -> None:
    _, bob = await create_tenant("Bob", "bob@example.org", None)
    bobs = await sessions.create(bob, "", NOW)
    here, there, elsewhere = [await sessions.create(user, "", NOW) for _ in range(3)]
    await sessions.end(user, (await session_of(there)).id)
    assert await sessions.find(there, NOW) is None

    await sessions.end_all(user, await session_of(here))
    assert await sessions.find(elsewhere, NOW) is None
    assert await sessions.find(here, NOW) is not None
    await sessions.end_all(user)
    assert await sessions.find(here, NOW) is None
    assert await sessions.find(bobs, NOW) is not None


async def test_bob_cannot_end_alices_session(user: User) -> None:
    _, bob = await create_tenant("Bob", "bob@example.org", None)
    token = await sessions.create(user, "", NOW)
    its_id = (await session_of(token)).id
    for whose, session_id in ((bob, its_id), (user, its_id + 1), (user, 0), (user, -1), (user, 2**70)):
        with pytest.raises(NotFound):
            await sessions.end(whose, session_id)
    assert await sessions.find(token, NOW) is not None
    assert await sessions.list_sessions(bob, NOW) == []


async def test_ones_sessions_last_seen_first(user: User) -> None:
    first = await sessions.create(user, "First", NOW)
    await sessions.create(user, "Second", NOW + timedelta(hours=1))
    assert [each.user_agent for each in await sessions.list_sessions(user, NOW)] == ["Second", "First"]
    await sessions.find(first, NOW + timedelta(hours=2))
    assert [each.user_agent for each in await sessions.list_sessions(user, NOW)] == ["First", "Second"]
    later = NOW + sessions.LIFETIME
    assert [each.user_agent for each in await sessions.list_sessions(user, later)] == ["Second"]


async def test_a_login_replaces_the_session_of_the_cookie_before(user: User) -> None:
    before = await sessions.create(user, "", NOW)
    other = await sessions.create(user, "", NOW)
    after = await sessions.create(user, "", NOW, replaces=before)
    assert await sessions.find(before, NOW) is None
    assert await sessions.find(other, NOW) is not None
    assert await sessions.find(after, NOW) is not None


async def test_no_session_for_a_password_that_was_changed_meanwhile(user: User) -> None:
    """Somebody logs in with the old password while it is being changed: that ends all sessions, so theirs too."""
    await User.update({User.password_hash: "another"}).where(User.id == user.id)
    with pytest.raises(NotFound):
        await sessions.create(user, "", NOW)
    assert await Session.count() == 0


async def test_a_session_shows_the_tenant_it_was_switched_to(user: User) -> None:
    second, bob = await create_tenant("Bob", "bob@example.org", None)
    third, _ = await create_tenant("Charlie", "charlie@example.org", None)
    await Membership(tenant=second.id, user=user.id, role=Role.VIEWER).save()
    token = await sessions.create(user, "", NOW)
    assert (await login(token)).tenant.name == "Alice"
    await sessions.switch(await session_of(token), second.id)
    assert ((await login(token)).tenant.name, (await login(token)).role) == ("Bob", Role.VIEWER)
    for foreign in (third.id, third.id + 1, 0, -1, 2**70):
        with pytest.raises(NotFound):
            await sessions.switch(await session_of(token), foreign)
    assert (await login(token)).tenant.name == "Bob"
    assert (await login(await sessions.create(bob, "", NOW))).tenant.name == "Bob"
    assert (await login(await sessions.create(user, "", NOW, second))).tenant.name == "Bob"


async def test_a_session_of_a_membership_that_ended_shows_another_tenant(user: User) -> None:
    second, _ = await create_tenant("Bob", "bob@example.org", None)
    await Membership(tenant=second.id, user=user.id, role=Role.MEMBER).save()
    token = await sessions.create(user, "", NOW, second)
    await Membership.delete().where(Membership.tenant == second.id, Membership.user == user.id)
    assert (await login(token)).tenant.name == "Alice"
    await Membership.delete().where(Membership.user == user.id)
    assert await sessions.find(token, NOW) is None


async def test_last_seen_is_written_once_a_minute(user: User) -> None:
    token = await sessions.create(user, "", NOW)
    for seconds, seen in ((59, NOW), (60, NOW + timedelta(seconds=60)), (61, NOW + timedelta(seconds=60))):
        assert await sessions.find(token, NOW + timedelta(seconds=seconds)) is not None
        (row,) = await Session.select(Session.last_seen_at)
        assert row["last_seen_at"] == seen


async def test_any_user_agent_can_be_stored(user: User) -> None:
    await sessions.create(user, "a\0b\ud800c" + "d" * 300, NOW)
    (row,) = await Session.select(Session.user_agent)
    assert row["user_agent"] == "abc" + "d" * 252


async def test_logins_without_end_do_not_fill_the_database(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 3)
    bob = (await create_tenant("Bob", "bob@example.org", None))[1]
    other = await sessions.create(bob, "", NOW)
    tokens = [await sessions.create(user, "", NOW) for _ in range(5)]
    assert [await sessions.find(token, NOW) is not None for token in tokens] == [False, False, True, True, True]
    assert await sessions.find(other, NOW) is not None
