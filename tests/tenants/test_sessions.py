# pyright: reportUnknownMemberType=false

from datetime import UTC, datetime, timedelta

import pytest

from server.database import Database
from tenants import sessions
from tenants.accounts import create_tenant
from tenants.tables import Session, User

NOW = datetime(2027, 3, 1, 12, 0, 0, 5, UTC)


@pytest.fixture
async def user(database: Database) -> User:
    return (await create_tenant("Alice", "alice@example.org", None))[1]


async def test_a_session_leads_to_its_user(user: User) -> None:
    token = await sessions.create(user, "Browser/1.0", NOW)
    found = await sessions.find(token, NOW)
    assert found is not None
    session, its_user = found
    assert (its_user.id, its_user.email) == (user.id, "alice@example.org")
    assert (session.created_at, session.user_agent) == (NOW, "Browser/1.0")
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


async def test_log_out_here_and_everywhere(user: User) -> None:
    _, bob = await create_tenant("Bob", "bob@example.org", None)
    bobs = await sessions.create(bob, "", NOW)
    here, there, elsewhere = [await sessions.create(user, "", NOW) for _ in range(3)]
    found = await sessions.find(there, NOW)
    assert found is not None
    await sessions.end(found[0])
    assert await sessions.find(there, NOW) is None

    kept = await sessions.find(here, NOW)
    assert kept is not None
    await sessions.end_all(user, kept[0])
    assert await sessions.find(elsewhere, NOW) is None
    assert await sessions.find(here, NOW) is not None
    await sessions.end_all(user)
    assert await sessions.find(here, NOW) is None
    assert await sessions.find(bobs, NOW) is not None


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
