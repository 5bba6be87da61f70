"""Funnels of known stories, beside another app with the same ones; and any story, against a search of all attempts."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stored_hits import Shop

from tenants.errors import InvalidValue
from tenants.reports import funnel as module
from tenants.reports.filters import Filters, filters_of
from tenants.reports.funnel import Funnel, Step, Unit, funnel, steps_of, window_of

DAY = datetime(2026, 3, 10, tzinfo=UTC)
ANN, BO, CEM = uuid4(), uuid4(), uuid4()
HOUR = timedelta(hours=1)
VIEW, SIGNUP, BUY = Step("view"), Step("signup"), Step("buy")


def at(hour: float, milliseconds: int = 0) -> datetime:
    return DAY + timedelta(hours=hour, milliseconds=milliseconds)


async def ask(
    shop: Shop,
    *steps: Step,
    window: timedelta = 6 * HOUR,
    by: str | None = None,
    filters: Filters | None = None,
) -> Funnel:
    period = shop.period(**{"from": "2026-03-09", "to": "2026-03-12"})
    return await funnel(shop.app, shop.events, period, filters or Filters(), steps, window, by)


def counts(found: Funnel) -> list[int]:
    return [step.persons for step in found.steps]


# (name, hits of one person as (event token, hour), persons at view, signup, buy, seconds to signup, to buy)
STORIES: list[tuple[str, list[tuple[str, float]], list[int], list[float | None]]] = [
    ("nothing", [], [0, 0, 0], [None, None]),
    ("only the last", [("buy", 1)], [0, 0, 0], [None, None]),
    ("only the first", [("view", 1), ("view", 2)], [1, 0, 0], [None, None]),
    ("all in order", [("view", 1), ("signup", 2), ("buy", 4)], [1, 1, 1], [3600, 7200]),
    ("others between", [("view", 1), ("x", 1.5), ("signup", 2), ("x", 3), ("buy", 4)], [1, 1, 1], [3600, 7200]),
    ("backwards", [("buy", 1), ("signup", 2), ("view", 3)], [1, 0, 0], [None, None]),
    ("the second is left out", [("view", 1), ("buy", 2)], [1, 0, 0], [None, None]),
    ("the third before the second", [("view", 1), ("buy", 2), ("signup", 3)], [1, 1, 0], [7200, None]),
    ("on the last moment", [("view", 1), ("signup", 2), ("buy", 7)], [1, 1, 1], [3600, 18000]),
    ("too late", [("view", 1), ("signup", 2), ("buy", 7.001)], [1, 1, 0], [3600, None]),
    ("a later attempt", [("view", 1), ("view", 10), ("signup", 11), ("buy", 12)], [1, 1, 1], [3600, 3600]),
    (
        "a later attempt gets further",
        [("view", 1), ("signup", 2), ("view", 20), ("signup", 22), ("buy", 23)],
        [1, 1, 1],
        [7200, 3600],
    ),
    (
        "the first of two that get as far",
        [("view", 1), ("signup", 2), ("buy", 4), ("view", 20), ("signup", 25), ("buy", 26)],
        [1, 1, 1],
        [3600, 7200],
    ),
    ("the last view before it began it", [("view", 1), ("view", 2), ("signup", 3)], [1, 1, 0], [3600, None]),
    (
        "a view between does not begin anew",
        [("view", 1), ("signup", 2), ("view", 3), ("buy", 4)],
        [1, 1, 1],
        [3600, 7200],
    ),
    (
        "an old attempt that is still in time",
        [("view", 1), ("signup", 2), ("view", 6), ("buy", 6.5)],
        [1, 1, 1],
        [3600, 16200],
    ),
    ("a second signup", [("view", 1), ("signup", 2), ("signup", 3), ("buy", 4)], [1, 1, 1], [3600, 7200]),
]


@pytest.mark.parametrize(("hits", "persons", "seconds"), [story[1:] for story in STORIES], ids=[s[0] for s in STORIES])
async def test_stories(
    shop: Shop,
    other: Shop,
    hits: list[tuple[str, float]],
    persons: list[int],
    seconds: list[float | None],
) -> None:
    for token, hour in hits:
        shop.hit(token, at(hour), person=ANN)
    for app in (shop, other):
        for token, hour in (("view", 1), ("signup", 1), ("buy", 1)):
            other.hit(token, at(hour), person=ANN)
            app.hit(token, at(hour))  # nobody's
    await shop.store()
    await other.store()
    found = await ask(shop, VIEW, SIGNUP, BUY)
    assert counts(found) == persons
    assert [step.median_seconds for step in found.steps] == [None, *seconds]


async def test_shares_and_medians_of_several(shop: Shop) -> None:
    for person, hours in ((ANN, (1, 2, 3)), (BO, (1, 4, 4.5)), (CEM, (2, 2.5)), (uuid4(), (5,)), (uuid4(), (6,))):
        for token, hour in zip(("view", "signup", "buy"), hours, strict=False):
            shop.hit(token, at(hour), person=person)
    await shop.store()
    found = await ask(shop, VIEW, SIGNUP, BUY)
    assert [(step.event_token, step.persons, step.from_before, step.from_first) for step in found.steps] == [
        ("view", 5, 1.0, 1.0),
        ("signup", 3, 0.6, 0.6),
        ("buy", 2, 0.666667, 0.4),
    ]
    assert [step.median_seconds for step in found.steps] == [None, 3600, 3600]
    assert (found.window_seconds, found.field, found.values, found.others) == (21_600, None, [], None)


async def test_the_same_step_twice_needs_two_events(shop: Shop) -> None:
    shop.hit("view", at(1), person=ANN)
    for hour in (1, 2, 3):
        shop.hit("view", at(hour), person=BO)
    await shop.store()
    assert counts(await ask(shop, VIEW, VIEW)) == [2, 1]
    assert counts(await ask(shop, *[VIEW] * 3)) == [2, 1, 1]
    assert counts(await ask(shop, *[VIEW] * 8)) == [2, 1, 1, 0, 0, 0, 0, 0]


async def test_steps_in_one_millisecond_are_in_their_order(shop: Shop) -> None:
    for token in ("buy", "signup", "view"):
        shop.hit(token, at(1), person=ANN)
    shop.hit("signup", at(1), person=BO)
    shop.hit("view", at(1, 1), person=BO)
    await shop.store()
    assert counts(await ask(shop, VIEW, SIGNUP, BUY)) == [2, 1, 1]


async def test_filters_of_steps_and_of_all(shop: Shop) -> None:
    shop.hit("view", at(1), person=ANN, params={"plan": "pro", "lang": "de"})
    shop.hit("view", at(1), person=BO, params={"plan": "team", "lang": "de"})
    shop.hit("view", at(1), person=CEM, params={"plan": "pro", "lang": "en"})
    for person, amount in ((ANN, 500), (BO, 500), (CEM, 500)):
        shop.hit("buy", at(2), person=person, params={"lang": "de"}, amount=amount, currency="USD")
    await shop.store()
    pro = Step("view", filters_of([("params.plan", "pro")]))
    assert counts(await ask(shop, pro, BUY)) == [2, 2]
    assert counts(await ask(shop, pro, Step("buy", filters_of([("currency!", "USD")])))) == [2, 0]
    assert counts(await ask(shop, pro, BUY, filters=filters_of([("params.lang", "de")]))) == [1, 1]
    slow = filters_of([("params.a`b", "x")])
    assert counts(await ask(shop, VIEW, Step("buy", slow), filters=filters_of([("missing", "params.a`b")]))) == [3, 0]
    not_pro = Step("view", filters_of([("params.plan!", "pro")]))
    assert counts(await ask(shop, not_pro, pro)) == [1, 0]


async def test_merged_persons_are_one(shop: Shop) -> None:
    shop.hit("view", at(1), person=ANN)
    shop.hit("buy", at(2), person=BO)
    await shop.store()
    assert counts(await ask(shop, VIEW, BUY)) == [1, 0]
    await shop.events.change(
        "INSERT INTO person_aliases SELECT {app:UUID}, {alias:UUID}, {person:UUID}, 1",
        {"app": str(shop.app.id), "alias": str(BO), "person": str(ANN)},
    )
    assert counts(await ask(shop, VIEW, BUY)) == [1, 1]


async def test_only_the_period_counts(shop: Shop) -> None:
    for person, start in ((ANN, -48), (BO, 72), (CEM, 71.9)):
        shop.hit("view", at(start), person=person)
        shop.hit("buy", at(start, 1), person=person)
    await shop.store()
    period = shop.period(**{"from": "2026-03-10", "to": "2026-03-12"})  # until 23:00 UTC of the last day
    found = await funnel(shop.app, shop.events, period, Filters(), [VIEW, BUY], HOUR)
    assert counts(found) == [0, 0]
    period = shop.period(**{"from": "2026-03-10", "to": "2026-03-13"})
    assert counts(await funnel(shop.app, shop.events, period, Filters(), [VIEW, BUY], HOUR)) == [2, 2]


async def test_broken_down_by_a_field_of_the_event_that_began_it(shop: Shop) -> None:
    for person, source, hour in ((ANN, "ads", 1), (BO, "ads", 1), (CEM, None, 1), (uuid4(), "", 1), (BO, "mail", 20)):
        shop.hit("view", at(hour), person=person, params={"source": source})
    shop.hit("signup", at(3), person=ANN, params={"source": "mail"})
    shop.hit("signup", at(21), person=BO, params={"source": "ads"})
    await shop.store()
    found = await ask(shop, VIEW, SIGNUP, by="params.source")
    by = {value.value: [(step.persons, step.median_seconds) for step in value.steps] for value in found.values}
    # Bo's attempt that got further began with the mail.
    assert by == {
        "ads": [(1, None), (1, 7200)],
        "mail": [(1, None), (1, 3600)],
        None: [(1, None), (0, None)],
        "": [(1, None), (0, None)],
    }
    assert (counts(found), found.field, found.others) == ([4, 2], "params.source", None)
    by_token = await ask(shop, VIEW, SIGNUP, by="event_token")
    assert [(value.value, value.steps[0].persons) for value in by_token.values] == [("view", 4)]
    by_slow = await ask(shop, VIEW, SIGNUP, by="params.a`b")
    assert [(value.value, value.steps[0].persons) for value in by_slow.values] == [(None, 4)]


@pytest.mark.parametrize("field", ["v", "a`b"])
async def test_a_list_is_one_value(shop: Shop, field: str) -> None:
    """As JSON, however it is read."""
    shop.hit("view", at(1), person=ANN, params={field: ["it's", 2, None, "a/b"]})
    await shop.store()
    (value,) = (await ask(shop, VIEW, BUY, by=f"params.{field}")).values
    assert (value.value, value.steps[0].persons) == ('["it\'s",2,null,"a/b"]', 1)


async def test_beyond_ten_values_are_the_others(shop: Shop) -> None:
    for number in range(13):
        for _ in range(2 if number < 10 else 1):
            shop.hit("view", at(1 + number / 100), person=UUID(int=number + 1), params={"v": number})
        shop.hit("buy", at(3), person=UUID(int=number + 1))
    await shop.store()
    found = await ask(shop, VIEW, BUY, by="params.v")
    assert {value.value for value in found.values} == {str(number) for number in range(10)}
    assert {value.steps[1].persons for value in found.values} == {1}
    assert found.others is not None
    assert [step.persons for step in found.others] == [3, 3]
    assert counts(found) == [13, 13]


@pytest.mark.parametrize("kinds", [1, 3, 10, 11, 14])
async def test_values_that_a_sample_has_not_count_as_well(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, kinds: int
) -> None:
    """Of each quarter of the period one event is looked at first: those are of at most four values."""
    for person in range(60):
        # The first of them are the most frequent ones.
        value = min(person % 20, person % kinds)
        for hour in (1, 30, 50):
            shop.hit("view", at(hour, person), person=UUID(int=person + 1), params={"v": value})
        if person % 3 == 0:
            shop.hit("buy", at(51), person=UUID(int=person + 1))
    await shop.store()
    whole = await ask(shop, VIEW, BUY, by="params.v")
    monkeypatch.setattr(module, "_SAMPLED", 1)
    assert await ask(shop, VIEW, BUY, by="params.v") == whole
    assert len(whole.values) == min(kinds, 10)
    assert (whole.others is None) == (kinds <= 10)
    persons = [value.steps[0].persons for value in whole.values]
    assert persons == sorted(persons, reverse=True)
    assert sum(persons) + (whole.others[0].persons if whole.others else 0) == counts(whole)[0] == 60


async def test_those_of_most_people_come_first(shop: Shop) -> None:
    for _ in range(5):
        shop.hit("view", at(1), person=ANN, params={"v": "often"})
    for person in (BO, CEM):
        shop.hit("view", at(1), person=person, params={"v": "by many"})
    await shop.store()
    assert [value.value for value in (await ask(shop, VIEW, BUY, by="params.v")).values] == ["by many", "often"]


async def test_a_funnel_of_nothing(shop: Shop) -> None:
    found = await ask(shop, VIEW, BUY, by="params.plan")
    assert [(step.persons, step.from_before, step.median_seconds) for step in found.steps] == [(0, 0.0, None)] * 2
    assert (found.values, found.others) == ([], None)


HOSTILE = ["' OR 1=1 --", "\\", "{app:UUID}", "<script>", "`", "\u202e雨", "a" * 255, '"', "%", "NULL", "a=b&c"]


@pytest.mark.parametrize("text", HOSTILE)
async def test_hostile_tokens_and_fields(shop: Shop, text: str) -> None:
    field = "params." + text.replace(".", "")
    shop.hit(text, at(1), person=ANN, params={text: text})
    shop.hit("view", at(2), person=ANN, params={text: text})
    await shop.store()
    sent = Filters().with_(field, text)
    found = await ask(shop, Step(text, sent), Step("view", sent), filters=sent, by=field)
    assert counts(found) == [1, 1]
    assert [value.value for value in found.values] == [text]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(hits=[(0, "a", 0, 0), (0, "a", 0, 1), (0, "a", 0, 1)], steps=["a", "a"], window=1)
@given(
    hits=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["a", "b", "c", "ab"]), st.integers(0, 12), st.integers(0, 1)),
        max_size=24,
    ),
    steps=st.lists(st.sampled_from(["a", "b", "c"]), min_size=2, max_size=4),
    window=st.integers(1, 8),
)
async def test_as_a_search_of_all_attempts_finds(
    make_shop: Callable[[str], Shop],
    hits: list[tuple[int, str, int, int]],
    steps: list[str],
    window: int,
) -> None:
    """A token "ab" is two events at once: steps ask for the field `kinds`, which is a list."""
    shop = make_shop("Asia/Kathmandu")
    people = [uuid4() for _ in range(3)]
    for person, kinds, minute, value in hits:
        params = {"kinds": list(kinds), "v": value}
        shop.hit("x", at(minute / 60), person=people[person], params=params)
    await shop.store()
    asked = [Step("x", filters_of([("params.kinds", kind)])) for kind in steps]
    found = await ask(shop, *asked, window=timedelta(minutes=window), by="params.v")
    # Events of one moment are taken in the order of their values' numbers: the most frequent one's is the first.
    begun = Counter(value for _, kinds, _, value in hits if steps[0] in kinds)
    ranks = {value: rank for rank, value in enumerate(sorted(begun, key=lambda value: (-begun[value], value)))}
    expected = [
        best
        for number in range(3)
        if (best := _best([hit[1:] for hit in hits if hit[0] == number], steps, window, ranks)) is not None
    ]
    assert counts(found) == [sum(len(times) > step for times, _ in expected) for step in range(len(steps))]
    for step in range(1, len(steps)):
        took = sorted(times[step] - times[step - 1] for times, _ in expected if len(times) > step)
        assert found.steps[step].median_seconds == (took[len(took) // 2] * 60 if took else None)
    for value in found.values:
        began = [times for times, first in expected if str(first) == value.value]
        assert [each.persons for each in value.steps] == [
            sum(len(times) > step for times in began) for step in range(len(steps))
        ]
    assert sum(value.steps[0].persons for value in found.values) == len(expected)


def _best(
    hits: Sequence[tuple[str, int, int]], steps: Sequence[str], window: int, ranks: Mapping[int, int]
) -> tuple[list[int], int] | None:
    """(minute of each step reached, the value it began with) of the attempt that counts."""

    def order(hit: tuple[str, int, int]) -> Any:
        kinds, minute, value = hit
        bits = sum(2**number for number, step in enumerate(steps) if step in kinds)
        return minute, bits, ranks[value] if steps[0] in kinds else 0

    events = [hit for hit in sorted({order(hit): hit for hit in hits}.values(), key=order) if order(hit)[1]]
    attempts: list[tuple[int, int, int, list[int], int]] = []
    for first, (kinds, began, value) in enumerate(events):
        if steps[0] not in kinds:
            continue
        times, last = [began], first
        for place in range(first + 1, len(events)):
            if len(times) < len(steps) and steps[len(times)] in events[place][0] and events[place][1] - began <= window:
                times.append(events[place][1])
                last = place
        # The furthest; of several the first to get there; of those the one that began last.
        attempts.append((-len(times), last, -first, times, value))
    if not attempts:
        return None
    best = min(attempts)
    return best[3], best[4]


def test_steps_of_an_address() -> None:
    pairs = [
        ("period", "7d"),
        ("step3", "buy"),
        ("step1", " signup "),
        ("step1.params.plan!", "pro"),
        ("step1.missing", "params.x"),
        ("step3.currency", "eur"),
        ("step5", ""),
        ("params.plan", "no step's"),
        ("step", "x"),
        ("steps1", "x"),
    ]
    first, second, third = steps_of(pairs)
    assert (first.event_token, second.event_token, third.event_token) == ("signup", "buy", "")
    assert first.filters.pairs() == [("params.plan!", "pro"), ("missing", "params.x")]
    assert second.filters.pairs() == [("currency", "EUR")]
    again = [pair for number, step in enumerate((first, second, third), 1) for pair in step.pairs(number)]
    assert steps_of(again) == (first, second, third)


@pytest.mark.parametrize(
    ("pairs", "field"),
    [
        ([("step9", "x")], "step9"),
        ([("step123456789012345678901234567890", "x")], "step123456789012345678901234567890"),
        ([("step1", "a" * 256)], "step1"),
        ([("step1", "\ud800")], "step1"),
        ([("step2.currency", "EURO")], "step2.currency"),
        ([("step2.params..x", "1")], "step2.params..x"),
        ([("step1.missing", "email")], "step1.missing"),
    ],
)
def test_steps_that_cannot_be_are_refused(pairs: list[tuple[str, str]], field: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        steps_of(pairs)
    assert refused.value.field == field


async def test_funnels_that_cannot_be_are_refused(shop: Shop) -> None:
    slow = [Step("a", filters_of([(f"params.`{number}", "x")])) for number in range(3)]
    many = Step("a", filters_of([("params.x", str(number)) for number in range(16)]))
    for steps, by, field in (
        ([], None, "step1"),
        ([VIEW, Step()], None, "step2"),
        ([VIEW] * 9, None, "step9"),
        (slow, None, "step1"),
        ([many, many], None, "step1"),
        ([VIEW, BUY], "plan", "by"),
    ):
        with pytest.raises(InvalidValue) as refused:
            await ask(shop, *steps, by=by)
        assert refused.value.field == field


@pytest.mark.parametrize(
    ("within", "unit", "window"),
    [
        ("", "", timedelta(days=7)),
        ("30", "minutes", timedelta(minutes=30)),
        ("2", "hours", timedelta(hours=2)),
        ("366", "", timedelta(days=366)),
    ],
)
def test_windows(within: str, unit: Unit, window: timedelta) -> None:
    assert window_of(within, unit) == window


@pytest.mark.parametrize(
    ("within", "unit"),
    [("0", "days"), ("367", "days"), ("-1", "hours"), ("1.5", "days"), ("1", "weeks"), ("9" * 30, "days"), ("²", "")],
)
def test_windows_that_cannot_be(within: str, unit: str) -> None:
    with pytest.raises(InvalidValue):
        window_of(within, unit)
