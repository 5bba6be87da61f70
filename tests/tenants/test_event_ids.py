import asyncio
import time
from uuid import UUID, uuid4

import pytest

from server.database import Database
from tenants.event_ids import WINDOW_MS, Claim, claim, owner, unscoped_purge_event_ids
from tenants.tables import EventId

APP = UUID(int=1)
DAY_MS = 24 * 60 * 60 * 1000


def hit(number: int) -> bytes:
    return number.to_bytes(16)


def order(hit_number: int, day: float = 0, event_id: str = "order-1", app: UUID = APP) -> Claim:
    return Claim(app, "revenue", event_id, hit(hit_number), int(1_800_000_000_000 + day * DAY_MS))


async def test_the_first_hit_owns_it(database: Database) -> None:
    assert await claim([]) == set()
    assert await claim([order(1), order(2), order(3, 1)]) == {hit(2), hit(3)}
    assert await claim([order(4, 2)]) == {hit(4)}
    assert await owner(APP, "revenue", "order-1") == hit(1)
    assert await owner(APP, "revenue", "order-2") is None


async def test_app_category_and_id_all_count(database: Database) -> None:
    first = order(1)
    others = [
        order(2, app=UUID(int=2)),
        order(3, event_id="order-2"),
        order(4)._replace(category="event"),
        order(5, event_id="Order-1"),
        order(6, event_id="order-1 "),
        order(7, event_id=""),
        order(8, event_id="\ud800"),
    ]
    assert await claim([first, *others]) == set()


@pytest.mark.parametrize(
    ("day", "duplicate", "owned_by"),
    [
        (29.9, True, 1),
        (30 - 1 / DAY_MS, True, 1),
        (30, False, 2),
        (365, False, 2),
        # Received before the owner, digested after it: another machine was slower.
        (-1, True, 1),
        (-29.9, True, 1),
        (-30, False, 1),
    ],
)
async def test_for_thirty_days(database: Database, day: float, duplicate: bool, owned_by: int) -> None:
    await claim([order(1)])
    for _ in range(2):
        assert await claim([order(2, day)]) == ({hit(2)} if duplicate else set())
        assert await owner(APP, "revenue", "order-1") == hit(owned_by)


@pytest.mark.parametrize(
    ("owned_since_day", "entries", "duplicates"),
    [
        (None, [order(1)], set[int]()),
        (None, [order(1), order(2), order(3, event_id="order-2")], {2}),
        (None, [order(1), order(2, 20), order(3, 29.9)], {2, 3}),
        (-20, [order(1, -5), order(2, 5), order(3, 12), order(4, 20)], {1, 2, 4}),
        (-20, [order(1, 15), order(2, 11), order(3, 40)], {2, 3}),
        (50, [order(1), order(2, 19), order(3, 21)], {3}),
    ],
)
async def test_the_same_answer_after_a_crash(
    database: Database, owned_since_day: float | None, entries: list[Claim], duplicates: set[int]
) -> None:
    if owned_since_day is not None:
        await claim([order(99, owned_since_day)])
    for _ in range(3):
        assert await claim(entries) == {hit(number) for number in duplicates}


async def test_a_hit_may_appear_twice(database: Database) -> None:
    assert await claim([order(1), order(1)]) == set()


async def test_a_crash_in_the_middle_claims_nothing(database: Database) -> None:
    broken = order(2, event_id="order-2")._replace(hit_id=None)  # type: ignore[arg-type]
    # Whatever the database calls a value missing.
    with pytest.raises(Exception, match=r"(?i)null"):
        await claim([order(1), broken])
    assert await EventId.count() == 0
    assert await claim([order(1)]) == set()


async def test_claims_at_once_from_many_connections(database: Database) -> None:
    """Eight digests meet on the same orders, each in an order of its own: every order has one owner."""
    orders = [f"order-{number}" for number in range(200)]
    batches = [
        [
            order(1000 * digest + position, event_id=event_id)
            for position, event_id in enumerate(orders[digest * 25 :] + orders[: digest * 25])
        ]
        for digest in range(8)
    ]
    answers = await asyncio.gather(*(claim(batch) for batch in batches))
    for event_id in orders:
        winners = {
            entry.hit_id
            for batch, duplicates in zip(batches, answers, strict=True)
            for entry in batch
            if entry.event_id == event_id and entry.hit_id not in duplicates
        }
        assert winners == {await owner(APP, "revenue", event_id)}


async def test_claims_and_purges_at_once(database: Database) -> None:
    old = [order(number, event_id=f"order-{number}") for number in range(500)]
    await claim(old)
    again = [
        entry._replace(hit_id=hit(1000 + number), received_at_ms=entry.received_at_ms + WINDOW_MS)
        for number, entry in enumerate(old)
    ]
    before = again[0].received_at_ms
    answers = await asyncio.gather(
        claim(again), unscoped_purge_event_ids(before), claim(again[::-1]), unscoped_purge_event_ids(before)
    )
    assert answers[0] == answers[2] == set()
    assert await EventId.count() == 500
    assert await owner(APP, "revenue", "order-7") == hit(1007)


async def test_purge(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenants.event_ids.PURGE_ROWS", 3)
    entries = [order(number, number, event_id=f"order-{number}") for number in range(10)]
    await claim(entries)
    assert await unscoped_purge_event_ids(entries[7].received_at_ms) == 7
    assert await unscoped_purge_event_ids(entries[7].received_at_ms) == 0
    assert await owner(APP, "revenue", "order-6") is None
    assert await owner(APP, "revenue", "order-7") == hit(7)


async def test_five_thousand_claims_are_quick(database: Database) -> None:
    apps = [uuid4() for _ in range(10)]
    entries = [
        Claim(apps[number % 10], "revenue", f"order-{number}", hit(number + 1), 1_800_000_000_000 + number)
        for number in range(5_000)
    ]
    start = time.perf_counter()
    assert await claim(entries) == set()
    # 0.06 s on a laptop; a query a row would take seconds.
    assert time.perf_counter() - start < 1
    again = [entry._replace(hit_id=hit(10_000 + number)) for number, entry in enumerate(entries)]
    assert await claim(again) == {entry.hit_id for entry in again}
