"""Access tokens wait encrypted, are resolved once, told to everybody who sent them, and forgotten."""
# pyright: reportPrivateUsage=false

import asyncio
import random
from typing import Any
from uuid import UUID

import pytest

from server.database import Database
from tenants.access_tokens import (
    KEPT_MS,
    LEASE_MS,
    TOKEN_MS,
    Profile,
    Sender,
    TakenToken,
    WaitingToken,
    forget,
    forget_app,
    give_up,
    keep,
    later,
    pause,
    resolved,
    retry_now,
    take,
    told,
    unscoped_give_up_old,
    unscoped_next_app,
    unscoped_purge,
    unscoped_put_right,
    unscoped_take_senders,
    waiting,
)
from tenants.apps import create_app
from tenants.secrets import SecretKey
from tenants.tables import AccessToken, GraphPause, Tenant, TokenSender, TokenState

KEY = SecretKey("a secret of at least 32 characters", "facebook")
SHOP, OTHER = UUID(int=1 << 100), UUID(int=2 << 100)
NOW = 1_800_000_000_000
ANN, BOB = b"a" * 16, b"b" * 16


def sent(token: str, hit: int, app: UUID = SHOP, visitor: bytes = ANN, at: int = NOW, **who: Any) -> WaitingToken:
    return WaitingToken(app, token, hit.to_bytes(16), at, visitor, **who)


async def rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return (
        await AccessToken.select().order_by(AccessToken.key),
        await TokenSender.select().order_by(TokenSender.key),
    )


async def take_one(app: UUID = SHOP, now: int = NOW) -> TakenToken:
    (taken,) = await take(app, KEY, now, 10)
    return taken


async def senders(now: int = NOW) -> list[Sender]:
    found: list[Sender] = []
    app: UUID | None = UUID(int=0)
    while app is not None:
        app, some = await unscoped_take_senders(app, KEY, now, 100)
        found += some
    return found


async def test_a_token_sent_often_is_asked_about_once(database: Database) -> None:
    await keep(KEY, [], NOW)
    await keep(KEY, [sent("T", 1), sent("T", 2)], NOW)
    await keep(KEY, [sent("T", 3, email="ann@example.org"), sent("T", 4, visitor=BOB)], NOW)
    taken = await take_one()
    assert (taken.token, taken.received_at_ms, taken.attempts) == ("T", NOW, 1)
    assert await resolved(taken, KEY, "123", Profile("Ann", "a@example.org", "X1"), NOW)
    assert await take(SHOP, KEY, NOW + TOKEN_MS, 10) == []
    # Each visitor, and with each of their identifiers, once.
    told_of = await senders()
    assert [(each.visitor, each.email, int.from_bytes(each.hit_id)) for each in told_of] == [
        (ANN, None, 1),
        (ANN, "ann@example.org", 3),
        (BOB, None, 4),
    ]
    assert {(each.resolved_fbid, each.profile) for each in told_of} == {("123", Profile("Ann", "a@example.org", "X1"))}


async def test_one_sent_again_later_is_told_without_asking(database: Database) -> None:
    await keep(KEY, [sent("T", 1)], NOW)
    assert await resolved(await take_one(), KEY, "123", Profile(), NOW)
    await told(await senders())
    await keep(KEY, [sent("T", 2), sent("T", 3, visitor=BOB)], NOW + 5)
    assert await take(SHOP, KEY, NOW + LEASE_MS, 10) == []
    (again,) = await senders(NOW + 5)
    assert (again.visitor, again.resolved_fbid, again.state) == (BOB, "123", TokenState.RESOLVED)


async def test_kept_again_after_a_crash_nothing_changes(database: Database) -> None:
    entries = [sent(f"T{n % 7}", n, visitor=bytes([n % 3]) * 16, at=NOW + n) for n in range(50)]
    await keep(KEY, entries, NOW)
    before = await rows()
    await keep(KEY, entries, NOW + 1)
    assert await rows() == before
    await keep(KEY, entries[10:20], NOW + 2)
    assert await rows() == before


async def test_a_token_is_only_readable_with_the_key_and_gone_when_done(database: Database) -> None:
    await keep(KEY, [sent("EAABsecret", 1, email="ann@example.org")], NOW)
    tokens, told_of = await rows()
    assert "EAABsecret" not in repr(tokens) + repr(told_of)
    assert b"EAABsecret" not in b"".join(v for row in tokens + told_of for v in row.values() if isinstance(v, bytes))
    other = SecretKey("another secret of some 32 characters", "facebook")
    (lost,) = await take(SHOP, other, NOW, 10)
    assert lost.token is None
    taken = await take_one(now=NOW + LEASE_MS)
    assert taken.token == "EAABsecret"
    assert "EAABsecret" not in repr(taken) + repr(sent("EAABsecret", 1))
    await resolved(taken, KEY, "123", Profile("Ann Other", "ann@facebook.example"), NOW)
    (row,) = (await rows())[0]
    assert (row["sealed"], row["due_at"]) == (None, None)
    assert "Ann Other" not in repr(row)
    assert "Ann" not in repr(await senders())
    await told(await senders(NOW + LEASE_MS))
    (row,) = (await rows())[1]
    assert (row["visitor"], row["email"], row["told"]) == (None, None, True)


async def test_who_takes_one_has_it_until_the_lease_ends(database: Database) -> None:
    await keep(KEY, [sent("T", 1)], NOW)
    slow = await take_one()
    assert await take(SHOP, KEY, NOW + LEASE_MS - 1, 10) == []
    quick = await take_one(now=NOW + LEASE_MS)
    assert quick.attempts == 2
    # The slow one's answer counts no more: who has it now may say otherwise.
    assert not await give_up(slow, TokenState.EXPIRED, NOW)
    await later(slow, KEY, NOW, None, Profile(), NOW)
    assert await resolved(quick, KEY, "123", Profile(), NOW)
    assert not await resolved(quick, KEY, "124", Profile(), NOW)
    assert (await senders())[0].resolved_fbid == "123"
    assert await senders(NOW + LEASE_MS - 1) == []
    assert len(await senders(NOW + LEASE_MS)) == 1


async def test_later_keeps_what_is_known(database: Database) -> None:
    await keep(KEY, [sent("T", 1)], NOW)
    await later(await take_one(), KEY, NOW + 500, "123", Profile("Ann"), NOW)
    assert await take(SHOP, KEY, NOW + 499, 10) == []
    taken = await take_one(now=NOW + 500)
    assert (taken.token, taken.fbid, taken.profile) == ("T", "123", Profile("Ann"))


async def test_after_seven_days_none_is_kept(database: Database) -> None:
    await keep(KEY, [sent("T", 1, at=NOW - TOKEN_MS), sent("U", 2, at=NOW - TOKEN_MS + 1)], NOW)
    assert [taken.token for taken in await take(SHOP, KEY, NOW, 10)] == ["U"]


async def test_apps_take_turns_and_a_paused_one_waits(database: Database) -> None:
    assert await unscoped_next_app(SHOP, NOW) is None
    await keep(KEY, [sent(f"T{n}", n) for n in range(20)] + [sent("T1", 30, app=OTHER)], NOW)
    assert await unscoped_next_app(UUID(int=0), NOW) == SHOP
    assert await unscoped_next_app(SHOP, NOW) == OTHER
    assert await unscoped_next_app(OTHER, NOW) == SHOP
    assert await unscoped_next_app(SHOP, NOW - 1) is None
    await pause(SHOP, NOW + 10, 4)
    await pause(SHOP, NOW + 100, 17)
    assert await unscoped_next_app(OTHER, NOW + 99) == OTHER
    assert await unscoped_next_app(OTHER, NOW + 100) == SHOP
    assert len(await take(SHOP, KEY, NOW, 10)) == 10


async def test_apps_take_turns_in_learning_what_became_of_tokens(database: Database) -> None:
    """Somebody who sends a resolved token with ever new names keeps nobody of another app waiting."""
    await keep(KEY, [sent("T", n, uuid=f"u{n}") for n in range(20)] + [sent("T", 30, app=OTHER)], NOW)
    for app in (SHOP, OTHER):
        await resolved(await take_one(app), KEY, "123", Profile(), NOW)
    last: UUID | None = UUID(int=0)
    told_of: list[tuple[UUID | None, int]] = []
    for _ in range(4):
        assert last is not None
        last, some = await unscoped_take_senders(last, KEY, NOW, 5)
        assert {each.app_id for each in some} == {last}
        told_of.append((last, len(some)))
    assert told_of == [(SHOP, 5), (OTHER, 1), (SHOP, 5), (SHOP, 5)]


async def test_no_more_are_taken_than_were_asked_for(database: Database) -> None:
    """Queues are empty most of the time, and that is what PostgreSQL knows of them: it looks row by row then."""
    await AccessToken.raw("ANALYZE")
    await keep(KEY, [sent(f"T{n}", n) for n in range(20)], NOW)
    assert len(await take(SHOP, KEY, NOW, 5)) == 5
    assert len(await take(SHOP, KEY, NOW, 20)) == 15
    for token in await take(SHOP, KEY, NOW + LEASE_MS, 20):
        await resolved(token, KEY, "123", Profile(), NOW)
    _, some = await unscoped_take_senders(OTHER, KEY, NOW, 5)
    assert len(some) == 5


async def test_many_takers_share_and_none_is_taken_twice(database: Database) -> None:
    await keep(KEY, [sent(f"T{n}", n) for n in range(60)], NOW)
    taken = await asyncio.gather(*(take(SHOP, KEY, NOW, 10) for _ in range(8)))
    names = [each.token for some in taken for each in some]
    assert len(names) == len(set(names)) == 60


async def test_many_machines_keep_the_same_tokens_at_once(database: Database) -> None:
    entries = [sent(f"T{n % 200}", n, visitor=bytes([n % 9]) * 16) for n in range(1_500)]
    await asyncio.gather(*(keep(KEY, random.Random(n).sample(entries, len(entries)), NOW) for n in range(4)))
    tokens, told_of = await rows()
    assert (len(tokens), len(told_of)) == (200, len({(e.token, e.visitor) for e in entries}))


async def test_a_sighting_kept_while_its_token_is_resolved_is_told(database: Database) -> None:
    for n in range(10):
        await keep(KEY, [sent(f"T{n}", 1)], NOW)
        (taken,) = [each for each in await take(SHOP, KEY, NOW, 100) if each.token == f"T{n}"]
        await asyncio.gather(
            resolved(taken, KEY, "123", Profile(), NOW), keep(KEY, [sent(f"T{n}", 2, visitor=BOB)], NOW)
        )
        assert {each.visitor for each in await senders()} == {ANN, BOB}


async def test_what_an_app_waits_for_is_counted_and_tried_at_once_when_asked(alice: Tenant, bob: Tenant) -> None:
    shop, other = (await create_app(alice, "Shop"))[0], (await create_app(bob, "Other"))[0]
    await keep(KEY, [sent("T", 1, app=shop.id), sent("U", 2, app=shop.id), sent("T", 3, app=other.id)], NOW)
    for app in (shop, other):
        for taken in await take(app.id, KEY, NOW, 10):
            await later(taken, KEY, NOW + 10 * LEASE_MS, None, Profile(), NOW)
        await pause(app.id, NOW + 10 * LEASE_MS, 4)
    assert (await waiting(shop), await waiting(other)) == (2, 1)
    await retry_now(shop, NOW)
    assert await unscoped_next_app(UUID(int=0), NOW) == shop.id
    assert len(await take(shop.id, KEY, NOW, 10)) == 2
    assert await take(other.id, KEY, NOW, 10) == []
    await retry_now(shop, NOW)
    assert await take(shop.id, KEY, NOW, 10) == []


@pytest.mark.parametrize(
    "by",
    [
        {"visitors": [ANN]},
        {"hit_ids": [(1).to_bytes(16)]},
        {"uuids": ["u-1"]},
        {"emails": ["ann@example.org"]},
        {"fbids": ["77"]},
        {"fbids": ["123"]},
    ],
)
async def test_a_deleted_persons_tokens_go_and_nobody_elses(alice: Tenant, by: dict[str, Any]) -> None:
    shop = (await create_app(alice, "Shop"))[0]
    theirs = sent("T", 1, app=shop.id, uuid="u-1", email="ann@example.org", fbid="77")
    await keep(KEY, [theirs, sent("U", 2, app=shop.id, visitor=BOB), theirs._replace(app_id=OTHER)], NOW)
    if by == {"fbids": ["123"]}:
        (taken,) = [each for each in await take(shop.id, KEY, NOW, 10) if each.token == "T"]
        await resolved(taken, KEY, "123", Profile(), NOW)
        await told([each for each in await senders() if each.app_id == shop.id])
    assert await forget(shop.id, NOW + 1) == 0
    assert await forget(shop.id, NOW + 1, emails=["nobody@example.org"], fbids=["1"]) == 0
    assert await forget(shop.id, NOW + 1, **by) == 1
    tokens, told_of = await rows()
    assert len(tokens) == len(told_of) == 2
    assert {UUID(str(row["app_id"])) for row in tokens} == {shop.id, OTHER}
    assert [row["visitor"] for row in told_of if UUID(str(row["app_id"])) == shop.id] == [BOB]


async def test_a_token_of_the_same_user_in_another_app_stays(database: Database) -> None:
    await keep(KEY, [sent("T", 1), sent("T", 2, app=OTHER)], NOW)
    for app in (SHOP, OTHER):
        await resolved(await take_one(app), KEY, "123", Profile(), NOW)
    assert await forget(SHOP, NOW + 1, fbids=["123"]) == 1
    tokens, told_of = await rows()
    assert [UUID(str(row["app_id"])) for row in tokens + told_of] == [OTHER, OTHER]


async def test_a_deleted_apps_go_all(database: Database) -> None:
    await keep(KEY, [sent("T", 1), sent("T", 2, app=OTHER)], NOW)
    await pause(SHOP, NOW, 4)
    await forget_app(SHOP)
    tokens, told_of = await rows()
    assert [UUID(str(row["app_id"])) for row in tokens + told_of] == [OTHER, OTHER]
    assert not await GraphPause.exists()


async def test_what_is_done_with_is_forgotten_after_ninety_days(database: Database) -> None:
    await keep(KEY, [sent("T", 1), sent("U", 2)], NOW)
    (taken,) = [each for each in await take(SHOP, KEY, NOW, 10) if each.token == "T"]
    await resolved(taken, KEY, "123", Profile(), NOW)
    await told(await senders())
    await unscoped_purge(NOW + KEPT_MS)
    assert [len(found) for found in await rows()] == [2, 2]
    await unscoped_purge(NOW + KEPT_MS + 1)
    tokens, told_of = await rows()
    assert [row["state"] for row in tokens] == ["waiting"]
    assert len(told_of) == 1


async def test_tokens_that_came_while_a_clock_was_ahead_are_asked_about_and_given_up(database: Database) -> None:
    ahead = NOW + 400 * 86_400_000
    await keep(KEY, [sent("T", 1, at=ahead)], ahead)
    await keep(KEY, [sent("Taken", 2, at=NOW)], NOW)
    assert len(await take(SHOP, KEY, ahead, 10)) == 2
    await pause(SHOP, ahead, 4)
    later = NOW + 3_600_000
    await unscoped_put_right(later)
    assert await unscoped_next_app(UUID(int=0), later) == SHOP
    assert {each.token for each in await take(SHOP, KEY, later, 10)} == {"T", "Taken"}
    await unscoped_give_up_old(later + TOKEN_MS)
    assert {row["sealed"] for row in await AccessToken.select()} == {None}
    assert len(await senders(later + TOKEN_MS)) == 2


async def test_a_large_batch_is_kept_whole(database: Database) -> None:
    entries = [sent(f"{'EAAB' * 40}{n}", n, visitor=n.to_bytes(16), email=f"n{n}@example.org") for n in range(2_500)]
    await keep(KEY, entries, NOW)
    assert [len(found) for found in await rows()] == [2_500, 2_500]
