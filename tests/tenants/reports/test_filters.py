"""Filters: what an address says, and which events it means, whatever fields and values are called."""

import re
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored_hits import NOW, Shop

from server.event_store import EventStore
from tenants.errors import InvalidValue
from tenants.reports.breakdown import breakdown
from tenants.reports.filters import (
    MAX_CONDITIONS,
    MAX_PROPERTIES,
    MAX_SLOW_FIELDS,
    Condition,
    Filters,
    field_of,
    filters_of,
)
from tenants.reports.totals import totals

Pairs = list[tuple[str, str]]


@pytest.mark.parametrize(
    ("pairs", "conditions"),
    [
        ([], []),
        ([("period", "7d"), ("cursor", "x"), ("params", "x"), ("Category", "event")], []),
        ([("event_token", "a")], [Condition("event_token", "a")]),
        ([("event_token", "a"), ("event_token", "a")], [Condition("event_token", "a")]),
        ([("event_token!", "a")], [Condition("event_token", "a", negated=True)]),
        ([("currency", "eur")], [Condition("currency", "EUR")]),
        ([("params.a.b", "x")], [Condition("params.a.b", "x")]),
        ([("params.a!", "x")], [Condition("params.a", "x", negated=True)]),
        ([("params.a!.", "x")], [Condition("params.a!", "x")]),
        ([("params.a!.!", "x")], [Condition("params.a!", "x", negated=True)]),
        ([("missing", "params.a")], [Condition("params.a", None)]),
        (
            [("person.a.b", "x"), ("person.a!.!", "y")],
            [Condition("person.a.b", "x"), Condition("person.a!", "y", True)],
        ),
        ([("missing!", "person.a`b")], [Condition("person.a`b", None, negated=True)]),
        ([("missing!", "params.a!")], [Condition("params.a!", None, negated=True)]),
        ([("empty", "params.a")], [Condition("params.a", "")]),
        ([("missing", "currency")], [Condition("currency", None)]),
        # A form's fields that were left empty.
        ([("event_token", ""), ("params.a", ""), ("category!", "")], []),
    ],
)
def test_what_an_address_says(pairs: Pairs, conditions: list[Condition]) -> None:
    found = filters_of(pairs)
    assert list(found.conditions) == conditions
    assert filters_of(found.pairs()) == found


@pytest.mark.parametrize(
    ("pairs", "field"),
    [
        ([("category", "Revenue")], "category"),
        ([("category!", "x")], "category"),
        ([("currency", "EURO")], "currency"),
        ([("event_token", "x" * 256)], "event_token"),
        ([("params.", "x")], "params."),
        ([("params.a..b", "x")], "params.a..b"),
        ([("params..", "x")], "params.."),
        ([("params.a.b.c.d.e.f", "x")], "params.a.b.c.d.e.f"),
        ([("params." + "x" * 1_001, "x")], "params." + "x" * 1_001),
        ([("params.a", "x" * 8_001)], "params.a"),
        ([("params.a", "\ud800")], "params.a"),
        ([("params.\ud800", "a")], "params.\ud800"),
        ([("missing", "")], "missing"),
        ([(f"person.{number}", "x") for number in range(MAX_PROPERTIES + 1)], f"person.{MAX_PROPERTIES}"),
        ([("person.", "x")], "person."),
        ([("missing", "person")], "missing"),
        ([("missing", "email")], "missing"),
        ([("missing", "params")], "missing"),
        ([("empty!", "app_id")], "empty"),
        ([("event_token", str(number)) for number in range(MAX_CONDITIONS + 1)], "event_token"),
    ],
)
def test_what_is_no_filter(pairs: Pairs, field: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        filters_of(pairs)
    assert refused.value.field == field


def test_filters_are_put_together_and_taken_apart() -> None:
    one = Filters().with_("event_token", "a")
    two = one.with_("params.plan", None).with_("params.plan", "pro", negated=True)
    assert two.pairs() == [("event_token", "a"), ("missing", "params.plan"), ("params.plan!", "pro")]
    assert two.with_("event_token", "a") == two
    assert two.without("params.plan", None).without("params.plan", "pro", negated=True) == one
    assert two.without("params.plan", "pro") == two
    assert bool(one)
    assert not one.without("event_token", "a")


@given(
    st.lists(
        st.tuples(
            st.one_of(st.just("event_token"), st.text(min_size=1).map("params.{}".format)),
            st.one_of(st.none(), st.text(max_size=20)),
            st.booleans(),
        ),
        max_size=5,
    )
)
def test_any_filters_survive_an_address(conditions: list[tuple[str, str | None, bool]]) -> None:
    filters = Filters()
    for field, value, negated in conditions:
        try:
            filters = filters.with_(field_of(field), value, negated=negated)
        except InvalidValue:
            continue
    assert filters_of(filters.pairs()) == filters


async def matching(shop: Shop, *pairs: tuple[str, str]) -> set[str]:
    found = await breakdown(shop.app, shop.events, shop.period(), filters_of(pairs), "event_token")
    return {value.value for value in found.values if value.value}


# Each event is named after what is special about it.
SENT: dict[str, dict[str, Any]] = {
    "number": {"n": 2},
    "text": {"n": "2"},
    "float": {"n": 2.0},
    "half": {"n": 2.5},
    "true": {"n": True},
    "true-text": {"n": "true"},
    "empty": {"n": ""},
    "null": {"n": None},
    "none": {},
    "list": {"n": ["2", "x"]},
    "mixed": {"n": [2, None, {"k": 1}, ["y"]]},
    "empty-list": {"n": []},
    "list-text": {"n": "[2]"},
    "object": {"n": {"k": "2"}},
    "date": {"n": "2026-11-23T19:00:00Z"},
    "long": {"n": "x" * 2_000},
}


@pytest.mark.parametrize(
    ("pairs", "found"),
    [
        ([("params.n", "2")], {"number", "text", "float", "list", "mixed"}),
        ([("params.n", "2.0")], set[str]()),
        ([("params.n", "2.5")], {"half"}),
        ([("params.n", "true")], {"true", "true-text"}),
        ([("params.n", "x")], {"list"}),
        ([("params.n", "null")], {"mixed"}),
        ([("params.n", '{"k":1}')], {"mixed"}),
        ([("params.n", '["y"]')], {"mixed"}),
        ([("params.n", "[]")], {"empty-list"}),
        ([("params.n", "[2]")], {"list-text"}),
        ([("params.n.k", "2")], {"object"}),
        ([("params.n", "2026-11-23T19:00:00Z")], {"date"}),
        ([("params.n", "x" * 2_000)], {"long"}),
        ([("params.N", "2")], set[str]()),
        ([("empty", "params.n")], {"empty"}),
        ([("missing", "params.n")], {"none", "null", "object"}),
        ([("missing!", "params.n")], SENT.keys() - {"none", "null", "object"}),
        ([("missing", "params.n"), ("params.n", "2.5")], {"none", "null", "object", "half"}),
        ([("params.n!", "2")], SENT.keys() - {"number", "text", "float", "list", "mixed"}),
        ([("params.n!", "2"), ("missing!", "params.n"), ("empty!", "params.n"), ("params.n!", "2.5")],
         {"true", "true-text", "empty-list", "list-text", "date", "long"}),
        ([("event_token", "text"), ("event_token", "half")], {"text", "half"}),
        ([("event_token", "text"), ("params.n", "2.5")], set[str]()),
        ([("event_token!", "text"), ("params.n", "2"), ("event_token!", "list")], {"number", "float", "mixed"}),
        ([("category", "revenue")], set[str]()),
        ([("category!", "revenue"), ("missing", "currency"), ("event_token", "null")], {"null"}),
        ([("event_token", "' OR 1=1 --")], set[str]()),
        ([("params.n", "' OR 1=1 --")], set[str]()),
        ([("params.n", "\\")], set[str]()),
    ],
)  # fmt: skip
async def test_which_events_filters_mean(kinds: Shop, pairs: Pairs, found: set[str]) -> None:
    assert await matching(kinds, *pairs) == found


@pytest.fixture
async def kinds(event_store: EventStore) -> Shop:
    shop = Shop(event_store, "Europe/Berlin")
    for name, params in SENT.items():
        shop.hit(name, params=params)
    await shop.store()
    return shop


# What each value reads as, one for each element of a list.
AS_SENT: list[tuple[Any, list[str]]] = [
    ("2026-03-01", ["2026-03-01"]),
    ("2026-03-01 10:00:00", ["2026-03-01 10:00:00"]),
    ("2026-03-01T10:00:00Z", ["2026-03-01T10:00:00Z"]),
    ("2026-03-01T10:00:00.5+02:00", ["2026-03-01T10:00:00.5+02:00"]),
    (["2026-03-02T10:00:00Z", "2026-03-02"], ["2026-03-02T10:00:00Z", "2026-03-02"]),
    ([True, 1, 2.5, ["y", True]], ["true", "1", "2.5", '["y",true]']),
    ([{"at": "2026-03-03T10:00:00Z"}, ["a/b"]], ['{"at":"2026-03-03T10:00:00Z"}', '["a/b"]']),
    ("x", ["x"]),
]


@pytest.mark.parametrize("alone", [True, False])
async def test_values_are_what_was_sent_whatever_came_with_them(shop: Shop, alone: bool) -> None:
    for value, _ in AS_SENT:
        shop.hit("sent", params={"n": value})
        if alone:
            await shop.store()
    await shop.store()
    texts = [text for _, each in AS_SENT for text in each]
    found = await breakdown(shop.app, shop.events, shop.period(), Filters(), "params.n")
    assert sorted(str(value.value) for value in found.values) == sorted(texts)
    for text in texts:
        assert await matching(shop, ("params.n", text)) == {"sent"}, text


NAMES = [
    "a`b", "`", "``", "a\\", "\\", "\\\\`", "\\n", "'", '"', "🎉", "a b", " a ", "Plan", "plan", "PLAN", "é",
    "e\u0301", "Int64", "String", "Array(Int64)", "Tuple(a Int64)", "null", "size0", "dynamicType", "params",
    "params_text", "app_id", "^x", "^`x`", "^`x", "^", ":", ":Int64", ":`Int64`", ":`Bogus`", ":`Array(JSON)`",
    "`:`Int64`", "a:`Int64`", "[]", "x[]", "a%2Eb", "%s", "%(x)s", "{app:UUID}", "{x:String}", "{", "}", "12",
    "-1", "\n\t", "\x00", "\u2028", "\ufeff", "--", "/*", "*/", ";", "x$", "x!", "!", "!!", "?", "=", "&",
    "#", "x" * 998, "0", "NaN", "SELECT", "text", "missing", "events",
]  # fmt: skip


async def test_any_name_of_a_field_is_only_a_name(shop: Shop, other: Shop) -> None:
    """Some of these end chDB's process when they are handed to it as they are."""
    names = list(dict.fromkeys(NAMES))
    for number, name in enumerate(names):
        shop.hit(f"top-{number}", params={name: f"v{number}"})
        shop.hit(f"in-{number}", params={"o": {name: [number, "x"]}})
        other.hit("theirs", params={name: "theirs"})
    await shop.store()
    await other.store()
    for number, name in enumerate(names):
        condition = Filters().with_(field_of(f"params.{name}"), f"v{number}").pairs()
        assert await matching(shop, *condition) == {f"top-{number}"}, name
        assert await matching(shop, ("missing!", f"params.{name}")) == {f"top-{number}"}, name
        found = await breakdown(shop.app, shop.events, shop.period(), Filters(), f"params.{name}")
        assert [(value.value, value.events) for value in found.values] == [
            (None, 2 * len(names) - 1),
            (f"v{number}", 1),
        ]
        inner = await breakdown(shop.app, shop.events, shop.period(), Filters(), f"params.o.{name}")
        assert [value.value for value in inner.values] == [None, str(number), "x"], name


async def test_255_fields_can_be_told_apart(shop: Shop) -> None:
    shop.hit("wide", params={f"field {number}": number for number in range(255)})
    await shop.store()
    for number in (0, 100, 254):
        assert await matching(shop, (f"params.field {number}", str(number))) == {"wide"}
        assert await matching(shop, (f"params.field {number}", str(number + 1))) == set()


async def test_as_many_conditions_as_there_may_be_on_the_longest_names(shop: Shop) -> None:
    shop.hit("deep", params={"a": {"b": {"c": {"d": {"e": "x"}}}}})
    await shop.store()
    pairs = [("params.a.b.c.d.e", "x")]
    pairs += [(f"params.{'x' * 990}{number}!", "`" * 100) for number in range(10)]
    # What the engine's client reads a comment of, which takes quadratic time where it does not end: minutes.
    pairs += [(f"params.{'/*x' * 330}{number}!", "x" * 100) for number in range(15)]
    pairs += [(f"params.{'`' * 990}{number}!", "x" * 100) for number in range(MAX_SLOW_FIELDS)]
    assert await matching(shop, *pairs) == {"deep"}


def test_a_name_in_a_query_is_nothing_else() -> None:
    name = "".join(map(chr, (*range(0x60), *range(0x61, 0x80)))).replace(".", "")
    sql, _ = filters_of([(f"params.{name}", "x")]).sql()
    (quoted,) = set(re.findall(r"`(.*?)`", sql))
    assert re.fullmatch(r"(\w|\\x[0-9A-F]{2})+", quoted)


def test_slow_fields_are_few() -> None:
    pairs = [(f"params.`{number}!", "x") for number in range(MAX_SLOW_FIELDS + 1)]
    assert len(filters_of(pairs[1:]).conditions) == MAX_SLOW_FIELDS
    with pytest.raises(InvalidValue, match="backtick"):
        filters_of(pairs)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="."), min_size=1, max_size=8),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
async def test_any_field_and_any_value_is_found(event_store: EventStore, name: str, value: str) -> None:
    shop = Shop(event_store, "UTC")
    shop.hit("sent", params={name: value, "sure": 1})
    await shop.store()
    ignored = name[0] in "$_" or name in ("email", "uuid", "fbid", "access_token")
    filters = Filters().with_(field_of(f"params.{name}"), None if ignored else value)
    found = await totals(shop.app, event_store, shop.period(), filters)
    assert found.events.now == 1


async def test_events_of_people_who_are_something(shop: Shop, other: Shop) -> None:
    """Properties are those of now, whenever the event came; of merged persons the newest."""
    ann, bob, eve, visitor = (uuid4() for _ in range(4))
    for number, (person, params) in enumerate(
        (
            (ann, {"plan": "start", "n": 2, "tags": ["a", "b"], "address": {"city": "Köln"}, "`x`": "'"}),
            (bob, {"plan": "", "n": "2", "tags": "a"}),
            (eve, {"plan": "pro"}),
        )
    ):
        shop.hit("signup", NOW - timedelta(minutes=9 - number), person=person, identified=True, params=params)
    shop.hit("view", NOW - timedelta(hours=1), person=ann)
    shop.hit("view", person=visitor, params={"plan": "pro"})
    shop.hit("view")
    other.hit("signup", person=visitor, identified=True, params={"plan": "theirs"})
    for each in (shop, other):
        await each.store()
    await shop.merge_events(eve, ann)
    for pairs, events in (
        ([("person.plan", "pro")], 3),
        ([("person.plan", "start")], 0),
        ([("person.plan!", "pro")], 3),
        ([("empty", "person.plan")], 1),
        ([("missing", "person.plan")], 2),
        ([("missing!", "person.plan")], 4),
        ([("person.n", "2")], 4),
        ([("person.tags", "a")], 4),
        ([("person.tags", "b"), ("person.address.city", "Köln")], 3),
        ([("person.`x`", "'")], 3),
        ([("person.plan", "pro"), ("event_token", "view")], 1),
        ([("person.plan", "theirs")], 0),
    ):
        found = await totals(shop.app, shop.events, shop.period(), filters_of(pairs))
        assert found.events.now == events, pairs
    values = (await breakdown(shop.app, shop.events, shop.period(), Filters(), "person.tags")).values
    assert [(each.value, each.events, each.persons) for each in values] == [("a", 4, 2), ("b", 3, 1), (None, 2, 1)]
