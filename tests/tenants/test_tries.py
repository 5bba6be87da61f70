# pyright: reportUnknownMemberType=false

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from server.database import Database
from tenants import tries
from tenants.errors import TooManyTries
from tenants.tables import Tries

NOW = datetime(2027, 3, 1, 12, 0, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


async def fill(email: str, *, now: datetime = NOW, times: int = 10) -> None:
    """Try a mailbox, each time from another address."""
    for n in range(times):
        await tries.begin_login(email, f"198.51.100.{n}", now)


async def test_the_eleventh_try_of_a_mailbox_waits_for_the_first_to_be_over(database: Database) -> None:
    await tries.begin_login("alice@example.org", "192.0.2.1", NOW)
    await fill("alice@example.org", now=NOW + 14 * MINUTE, times=9)
    for later in (14, 14.9):
        with pytest.raises(TooManyTries) as refused:
            await tries.begin_login(" Alice@Example.ORG", "192.0.2.1", NOW + later * MINUTE)
        assert refused.value.until == NOW + 15 * MINUTE
    await tries.begin_login("bob@example.org", "192.0.2.1", NOW + 14 * MINUTE)
    await fill("alice@example.org", now=NOW + 15 * MINUTE)
    with pytest.raises(TooManyTries) as refused:
        await tries.begin_login("alice@example.org", "192.0.2.1", NOW + 15 * MINUTE)
    assert refused.value.until == NOW + 30 * MINUTE


async def test_a_clock_that_was_ahead_locks_nobody_out(database: Database) -> None:
    ahead = NOW + timedelta(days=400)
    await fill("alice@example.org", now=ahead)
    for _ in range(20):
        await tries.begin_sign_up("192.0.2.1", ahead)
    # Clocks of two machines that differ a little begin no new window.
    for behind in (MINUTE, 14 * MINUTE):
        with pytest.raises(TooManyTries):
            await tries.begin_login("alice@example.org", "192.0.2.1", ahead - behind)
    await tries.begin_sign_up("192.0.2.1", NOW)
    await fill("alice@example.org")
    with pytest.raises(TooManyTries) as refused:
        await tries.begin_login("alice@example.org", "192.0.2.1", NOW)
    assert refused.value.until == NOW + 15 * MINUTE


async def test_guesses_sent_at_once_cannot_slip_through(database: Database) -> None:
    outcomes = await asyncio.gather(
        *(tries.begin_login("alice@example.org", f"198.51.100.{n}", NOW) for n in range(25)), return_exceptions=True
    )
    assert outcomes.count(None) == 10
    assert sum(isinstance(outcome, TooManyTries) for outcome in outcomes) == 15


async def test_an_address_has_thirty_tries_and_then_locks_nobodys_mailbox(database: Database) -> None:
    for n in range(30):
        await tries.begin_login(f"{n}@example.org", "192.0.2.1", NOW)
    for _ in range(15):
        with pytest.raises(TooManyTries):
            await tries.begin_login("alice@example.org", "192.0.2.1", NOW)
    await tries.begin_login("alice@example.org", "192.0.2.2", NOW)


async def test_the_right_password_frees_the_mailbox_and_gives_the_address_its_try_back(database: Database) -> None:
    await fill("alice@example.org", times=9)
    for _ in range(35):
        await tries.begin_login("alice@example.org", "192.0.2.1", NOW)
        await tries.login_succeeded("alice@example.org", "192.0.2.1")
    await fill("alice@example.org")


async def test_strangers_do_not_lock_out_who_is_known(database: Database) -> None:
    await fill("alice@example.org")
    with pytest.raises(TooManyTries):
        await tries.begin_login("alice@example.org", "192.0.2.1", NOW)
    for _ in range(10):
        await tries.begin_login("alice@example.org", "192.0.2.1", NOW, "her laptop")
    with pytest.raises(TooManyTries):
        await tries.begin_login("alice@example.org", "192.0.2.1", NOW, "her laptop")
    await tries.begin_login("alice@example.org", "192.0.2.1", NOW, "her phone")
    await tries.login_succeeded("alice@example.org", "192.0.2.1", "her laptop")
    await tries.begin_login("alice@example.org", "192.0.2.1", NOW, "her laptop")
    with pytest.raises(TooManyTries):
        await tries.begin_login("alice@example.org", "192.0.2.3", NOW)


async def test_sign_ups_are_counted_by_address_and_apart_from_logins(database: Database) -> None:
    for _ in range(20):
        await tries.begin_sign_up("192.0.2.1", NOW)
    with pytest.raises(TooManyTries) as refused:
        await tries.begin_sign_up("192.0.2.1", NOW + 59 * MINUTE)
    assert refused.value.until == NOW + 60 * MINUTE
    await tries.begin_sign_up("192.0.2.2", NOW)
    await tries.begin_login("alice@example.org", "192.0.2.1", NOW)
    await tries.begin_sign_up("192.0.2.1", NOW + 60 * MINUTE)


async def test_what_is_over_is_cleared_away(database: Database) -> None:
    await fill("alice@example.org")
    await tries.begin_login("bob@example.org", "192.0.2.1", NOW + 30 * MINUTE)
    assert len(await Tries.select()) == 13
    await tries.begin_login("charlie@example.org", "192.0.2.2", NOW + 61 * MINUTE)
    assert len(await Tries.select()) == 4


async def test_nothing_that_tells_who_is_stored(database: Database) -> None:
    await tries.begin_login("alice@example.org", "192.0.2.1", NOW)
    stored = repr(await Tries.select())
    assert "alice" not in stored
    assert "192" not in stored


async def test_any_mailbox_and_any_address_can_be_counted(database: Database) -> None:
    for email in ("", "\0", "\ud800", "x" * 100_000):
        for address in ("", "nonsense", "\0", "fe80::1%eth0"):
            await tries.begin_login(email, address, NOW)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("", "", True),
    ],
)
async def test_addresses_that_count_together(database: Database, one: str, other: str, together: bool) -> None:
    for _ in range(20):
        await tries.begin_sign_up(one, NOW)
    if together:
        with pytest.raises(TooManyTries):
            await tries.begin_sign_up(other, NOW)
    else:
        await tries.begin_sign_up(other, NOW)
