"""Cohorts of known stories, beside another app with the same ones; and any story, against sets of persons."""
# pyright: reportPrivateUsage=false

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stored_hits import NOW, Shop

from server.event_store import EventStore
from tenants.errors import InvalidValue
from tenants.reports.filters import Filters, filters_of
from tenants.reports.period import NAMES, Interval, period_of
from tenants.reports.retention import Retention, _interval, in_intervals, retention

ANN, BO, CEM = uuid4(), uuid4(), uuid4()
EVERYTHING = Filters()
BERLIN = ZoneInfo("Europe/Berlin")


def noon(day: int, month: int = 3) -> datetime:
    return datetime(2026, month, day, 12, tzinfo=BERLIN)


async def ask(shop: Shop, first: str | None = None, back: str | None = None, **asked: str) -> Retention:
    asked = asked or {"from": "2026-03-02", "to": "2026-03-05"}
    return await retention(shop.app, shop.events, shop.period(**asked), EVERYTHING, first, back)


def table(found: Retention) -> list[tuple[int, list[int]]]:
    return [(cohort.size, cohort.returned) for cohort in found.cohorts]


@pytest.fixture
async def visited(shop: Shop, other: Shop) -> Shop:
    for each in (shop, other):
        for person, days in ((ANN, (2, 2, 3, 5)), (BO, (2, 4)), (CEM, (3, 5)), (None, (2, 3, 4, 5))):
            for day in days:
                each.hit("view", noon(day), person=person)
        each.hit("signup", noon(3), person=ANN)
        each.hit("signup", noon(4), person=BO)
        each.hit("buy", noon(3), person=ANN, params={"plan": "pro"}, amount=100)
        each.hit("buy", noon(5), person=ANN, amount=100)
        each.hit("buy", noon(2), person=CEM, amount=100)
        await each.store()
    return shop


# (first, return) and, of each of four days, how many began on it and were there on it and on each after.
TABLES: list[tuple[str | None, str | None, list[tuple[int, list[int]]]]] = [
    (None, None, [(3, [3, 2, 1, 2]), (0, [0, 0, 0]), (0, [0, 0]), (0, [0])]),
    ("view", "view", [(2, [2, 1, 1, 1]), (1, [1, 0, 1]), (0, [0, 0]), (0, [0])]),
    ("signup", None, [(0, [0, 0, 0, 0]), (1, [1, 0, 1]), (1, [1, 0]), (0, [0])]),
    # Cem bought before he signed up for nothing: he is in no cohort.
    ("signup", "buy", [(0, [0, 0, 0, 0]), (1, [1, 0, 1]), (1, [0, 0]), (0, [0])]),
    (None, "buy", [(3, [1, 1, 0, 1]), (0, [0, 0, 0]), (0, [0, 0]), (0, [0])]),
    ("nothing", None, [(0, [0] * 4), (0, [0] * 3), (0, [0] * 2), (0, [0])]),
    (None, "nothing", [(3, [0] * 4), (0, [0] * 3), (0, [0] * 2), (0, [0])]),
]


@pytest.mark.parametrize(("first", "back", "expected"), TABLES)
async def test_cohorts(
    visited: Shop, first: str | None, back: str | None, expected: list[tuple[int, list[int]]]
) -> None:
    found = await ask(visited, first, back)
    assert table(found) == expected
    assert (found.interval, found.first, found.back, found.running) == ("day", first, back, False)
    assert [cohort.start.day for cohort in found.cohorts] == [2, 3, 4, 5]


async def test_only_who_is_new(visited: Shop) -> None:
    """Whoever did it before the period is in no cohort, under whichever id."""
    days = {"from": "2026-03-03", "to": "2026-03-05"}

    async def new(first: str | None, *filters: tuple[str, str]) -> list[tuple[int, list[int]]]:
        found = await retention(
            visited.app, visited.events, visited.period(**days), filters_of(filters), first, new=True
        )
        assert found.new
        return table(found)

    # All three were here on the 2nd; Cem bought then, but viewed nothing.
    assert await new(None) == [(0, [0] * 3), (0, [0] * 2), (0, [0])]
    assert await new("view") == [(1, [1, 0, 1]), (0, [0] * 2), (0, [0])]
    assert await new("buy") == [(1, [1, 0, 1]), (0, [0] * 2), (0, [0])]
    assert await new("signup") == [(1, [1, 0, 1]), (1, [1, 0]), (0, [0])]
    assert await new(None, ("category", "revenue")) == [(1, [1, 0, 1]), (0, [0] * 2), (0, [0])]
    await visited.events.change(
        "INSERT INTO person_aliases SELECT {app:UUID}, {alias:UUID}, {person:UUID}, 1",
        {"app": str(visited.app.id), "alias": str(CEM), "person": str(ANN)},
    )
    assert await new("view") == [(0, [0] * 3), (0, [0] * 2), (0, [0])]


async def test_shares(visited: Shop) -> None:
    found = await ask(visited, "view", "view")
    assert found.cohorts[0].shares == [1.0, 0.5, 0.5, 0.5]
    assert found.cohorts[3].shares == [0.0]
    # Of all who are old enough: after a day Ann, Bo and Cem, after three days only those of the first day.
    assert found.shares == [1.0, 0.333333, 0.666667, 0.5]
    # Nobody is three days old; and whoever began in the week that is not over is not even one week old.
    assert (await ask(visited, "signup", "buy")).shares == [0.5, 0.0, 1.0, None]
    weeks = await ask(visited, **{"from": "2026-02-23", "to": "2026-03-05", "interval": "week"})
    assert (weeks.running, weeks.shares) == (True, [None, None])


async def test_filters(visited: Shop) -> None:
    period = visited.period(**{"from": "2026-03-02", "to": "2026-03-05"})
    pro = filters_of([("params.plan", "pro")])
    assert table(await retention(visited.app, visited.events, period, pro))[:2] == [(0, [0] * 4), (1, [1, 0, 0])]
    revenue = filters_of([("category", "revenue")])
    assert table(await retention(visited.app, visited.events, period, revenue))[:2] == [
        (1, [1, 0, 0, 0]),
        (1, [1, 0, 1]),
    ]


async def test_merged_persons_are_one(visited: Shop) -> None:
    await visited.events.change(
        "INSERT INTO person_aliases SELECT {app:UUID}, {alias:UUID}, {person:UUID}, 1",
        {"app": str(visited.app.id), "alias": str(BO), "person": str(ANN)},
    )
    assert table(await ask(visited)) == [(2, [2, 2, 1, 2]), (0, [0] * 3), (0, [0] * 2), (0, [0])]


async def test_weeks_and_months(shop: Shop) -> None:
    # 2026-03-01 is a Sunday: a week of one day begins the period.
    for person, days in ((ANN, (1, 2, 31)), (BO, (8, 9))):
        for day in days:
            shop.hit(at=noon(day), person=person)
    shop.hit(at=noon(30, 4), person=ANN)
    await shop.store()
    weeks = await ask(shop, **{"from": "2026-03-01", "to": "2026-03-31", "interval": "week"})
    assert [cohort.start.day for cohort in weeks.cohorts] == [1, 2, 9, 16, 23, 30]
    assert table(weeks)[:3] == [(1, [1, 1, 0, 0, 0, 1]), (1, [1, 1, 0, 0, 0]), (0, [0] * 4)]
    assert (weeks.running, weeks.shares) == (True, [1.0, 1.0, 0.0, 0.0, 0.0, None])
    months = await ask(shop, **{"from": "2026-03-01", "to": "2026-04-30", "interval": "month"})
    assert table(months) == [(2, [2, 1]), (0, [0])]
    assert not months.running


# (zone, first day, last day, the moments that days begin at in UTC: of 23, 25 or 24 h)
CHANGES = [
    ("Europe/Berlin", "2026-03-28", "2026-03-30", ["03-27T23:00", "03-28T23:00", "03-29T22:00"]),
    ("Europe/Berlin", "2025-10-25", "2025-10-27", ["10-24T22:00", "10-25T22:00", "10-26T23:00"]),
    ("Australia/Lord_Howe", "2026-04-04", "2026-04-06", ["04-03T13:00", "04-04T13:00", "04-05T13:30"]),
    ("Asia/Kathmandu", "2026-03-01", "2026-03-03", ["02-28T18:15", "03-01T18:15", "03-02T18:15"]),
    ("America/St_Johns", "2026-03-07", "2026-03-09", ["03-07T03:30", "03-08T03:30", "03-09T02:30"]),
    ("Africa/Cairo", "2026-04-23", "2026-04-25", ["04-22T22:00", "04-23T22:00", "04-24T21:00"]),
]


@pytest.mark.parametrize(("zone", "first", "last", "begins"), CHANGES)
async def test_days_of_every_length(
    make_shop: Callable[[str], Shop], zone: str, first: str, last: str, begins: list[str]
) -> None:
    """Ann comes in the first moment of the first and the last of the second day, Bo right after each."""
    shop = make_shop(zone)
    starts = [datetime.fromisoformat(f"{first[:4]}-{begin}+00:00") for begin in begins]
    millisecond = timedelta(milliseconds=1)
    for moment in (starts[0], starts[2] - millisecond):
        shop.hit(at=moment, person=ANN)
    for moment in (starts[1], starts[2]):
        shop.hit(at=moment, person=BO)
    for moment in (starts[0] - millisecond, starts[1] - millisecond):
        shop.hit(at=moment, person=CEM)
    await shop.store()
    found = await ask(shop, **{"from": first, "to": last})
    assert table(found) == [(2, [2, 1, 0]), (1, [1, 1]), (0, [0])]
    assert [cohort.start.astimezone(UTC) for cohort in found.cohorts] == starts
    # The same without the last day: the second one, whatever its length, is the last.
    until = str(date.fromisoformat(last) - timedelta(days=1))
    assert table(await ask(shop, **{"from": first, "to": until})) == [(2, [2, 1]), (1, [1])]


@pytest.mark.parametrize("hour", [0, 11, 12, 23])
async def test_two_days_at_any_hour(shop: Shop, hour: int) -> None:
    """Of the last 24 hours the first day is a part, which may be shorter than what there is of the second."""
    now = datetime(2026, 3, 3, hour, 59, tzinfo=BERLIN)
    period = period_of({"period": "24h"}, "Europe/Berlin", now)
    shop.hit(at=period.start, person=ANN)
    shop.hit(at=now - timedelta(seconds=1), person=BO)
    await shop.store()
    found = await retention(shop.app, shop.events, period, EVERYTHING)
    days = {day.date() for day in (period.start, now)}
    assert table(found) == ([(1, [1, 0]), (1, [1])] if len(days) == 2 else [(2, [2])])


async def test_the_running_day(shop: Shop) -> None:
    # A minute ago it may have been yesterday.
    shop.hit(at=NOW.replace(microsecond=0) - timedelta(milliseconds=1), person=ANN)
    await shop.store()
    for period in ("today", "24h", "7d", "30d", "90d", "month"):
        found = await ask(shop, period=period)
        assert sum(cohort.size for cohort in found.cohorts) == 1
        assert found.running


@pytest.mark.parametrize(
    ("asked", "interval", "count"),
    [
        ({"from": "2026-03-01", "to": "2026-03-01"}, "day", 1),
        ({"from": "2026-03-01", "to": "2026-03-31"}, "day", 31),
        ({"from": "2026-03-01", "to": "2026-04-01"}, "week", 6),
        ({"from": "2026-03-01", "to": "2026-03-01", "interval": "hour"}, "day", 1),
        ({"from": "2025-01-01", "to": "2025-03-05", "interval": "day"}, "day", 64),
        ({"from": "2025-01-01", "to": "2025-03-06", "interval": "day"}, "week", 10),
        ({"from": "2021-01-01", "to": "2026-04-30", "interval": "day"}, "month", 64),
    ],
)
def test_intervals(shop: Shop, asked: dict[str, str], interval: Interval, count: int) -> None:
    found = in_intervals(shop.period(**asked))
    assert (found.interval, len(found.buckets)) == (interval, count)


async def test_as_many_intervals_as_there_can_be(shop: Shop) -> None:
    months = [datetime(2021 + number // 12, number % 12 + 1, 15, tzinfo=UTC) for number in range(64)]
    for month in (months[0], months[62], months[63]):
        shop.hit(at=month, person=ANN)
    shop.hit(at=months[63], person=BO)
    await shop.store()
    found = await ask(shop, **{"from": "2021-01-01", "to": "2026-04-30"})
    assert table(found)[0] == (1, [1] + [0] * 61 + [1, 1])
    assert table(found)[63] == (1, [1])


async def test_what_cannot_be_is_refused(shop: Shop) -> None:
    for first, back, asked, field in (
        ("", None, {"period": "7d"}, "first"),
        (None, "a" * 256, {"period": "7d"}, "return"),
        (None, "\ud800", {"period": "7d"}, "return"),
        (None, None, {"from": "2020-12-31", "to": "2026-04-30"}, "from"),
    ):
        with pytest.raises(InvalidValue) as refused:
            await ask(shop, first, back, **asked)
        assert refused.value.field == field


@pytest.mark.parametrize("token", ["' OR 1=1 --", "\\", "{app:UUID}", "1", "`", "雨", "a" * 255])
async def test_hostile_tokens(shop: Shop, token: str) -> None:
    shop.hit(token, noon(2), person=ANN)
    shop.hit("view", noon(2), person=BO)
    await shop.store()
    assert table(await ask(shop, token, token))[0] == (1, [1, 0, 0, 0])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hits=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["a", "b", "c"]), st.integers(0, 24 * 9 - 2)), max_size=30
    ),
    first=st.sampled_from([None, "a", "b"]),
    back=st.sampled_from([None, "a", "b"]),
)
async def test_as_sets_of_persons_say(
    make_shop: Callable[[str], Shop], hits: list[tuple[int, str, int]], first: str | None, back: str | None
) -> None:
    shop = make_shop("Europe/Berlin")
    start = datetime(2026, 3, 25, tzinfo=BERLIN).astimezone(UTC)
    for person, token, hour in hits:
        shop.hit(token, start + timedelta(hours=hour), person=UUID(int=person + 1))
    await shop.store()
    found = await ask(shop, first, back, **{"from": "2026-03-25", "to": "2026-04-02"})
    days = [cohort.start.date() for cohort in found.cohorts]
    began: dict[int, int] = {}
    there: set[tuple[int, int]] = set()
    for person, token, hour in sorted(hits, key=lambda hit: hit[2]):
        day = days.index((start + timedelta(hours=hour)).astimezone(BERLIN).date())
        if first in (None, token):
            began.setdefault(person, day)
        if back in (None, token):
            there.add((person, day))
    expected: list[tuple[int, list[int]]] = []
    for day in range(9):
        cohort = {person for person, on in began.items() if on == day}
        expected.append((len(cohort), [sum((person, on) in there for person in cohort) for on in range(day, 9)]))
    assert table(found) == expected


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    zone=st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/Santiago", "Asia/Kathmandu"]),
    # 2024 to 2026
    at=st.builds(datetime.fromtimestamp, st.integers(1_704_067_200, 1_798_675_200), st.just(UTC)),
    days=st.one_of(st.sampled_from([name for name in NAMES if name != "custom"]), st.integers(1, 400)),
    interval=st.sampled_from(["", "day", "week", "month"]),
)
@example(zone="UTC", at=datetime(2026, 11, 27, 12, tzinfo=UTC), days="90d", interval="month")
@example(zone="UTC", at=datetime(2026, 3, 1, 12, tzinfo=UTC), days="30d", interval="month")
@example(zone="UTC", at=datetime(2026, 11, 16, 12, tzinfo=UTC), days=9, interval="week")
@example(zone="Europe/Berlin", at=datetime(2025, 10, 26, 12, tzinfo=UTC), days="90d", interval="")
async def test_every_moment_is_in_its_interval(
    event_store: EventStore, zone: str, at: datetime, days: str | int, interval: str
) -> None:
    """Of each the first and the last millisecond, and two in between. The engine computes them; nothing is stored."""
    asked = {"period": days} if isinstance(days, str) else {"from": str((at - timedelta(days=days)).date())}
    period = in_intervals(period_of(asked | {"interval": interval}, zone, at))
    moments = [int(start.timestamp() * 1000) for start in (*period.buckets, period.end)]
    times = [start + (end - 1 - start) * part // 3 for start, end in pairwise(moments) for part in range(4)]
    number, parameters = _interval(period)
    found = await event_store.query(
        f"SELECT groupArray({number}) AS numbers FROM "
        "(SELECT fromUnixTimestamp64Milli(arrayJoin({times:Array(Int64)})) AS received_at)",
        parameters | {"times": times},
    )
    assert found[0]["numbers"] == [number for number in range(len(period.buckets)) for _ in range(4)]
