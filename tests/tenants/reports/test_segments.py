"""Segments: what an address says, and which people they are."""

from datetime import timedelta
from uuid import uuid4

import pytest
from stored_hits import NOW, Shop

from tenants.errors import InvalidValue
from tenants.reports.segments import MAX_CONDITIONS, Condition, Did, Earned, Is, Segment, segment_of

Pairs = list[tuple[str, str]]

ANN, BOB, CLEO, DAN, EVE = (uuid4() for _ in range(5))
NAMES = {ANN: "ann", BOB: "bob", CLEO: "cleo", DAN: "dan", EVE: "eve"}


async def _who(shop: Shop, **conditions: str) -> str:
    return await _who_of(shop, [(name.replace("__", "."), value) for name, value in conditions.items()])


async def _who_of(shop: Shop, pairs: Pairs) -> str:
    sql, parameters = segment_of(pairs).sql("s")
    found = await shop.events.query(f"SELECT who FROM ({sql})", {"app": str(shop.app.id), **parameters})
    ids = await shop.events.query(
        "SELECT xxHash64(toUUID(arrayJoin({ids:Array(String)}))) AS who", {"ids": [*map(str, NAMES)]}
    )
    names = dict(zip((row["who"] for row in ids), NAMES.values(), strict=True))
    return " ".join(sorted(names[row["who"]] for row in found))


@pytest.fixture
async def told(shop: Shop, other: Shop) -> Shop:
    """What five people did; eve turned out to be ann."""
    minutes = 10
    for person, plan, amounts in (
        (ANN, "pro", [2_000]),
        (BOB, "team", [3_000, 100, -600]),
        (CLEO, "pro", []),
        (EVE, "start", [501]),
    ):
        minutes -= 1
        shop.hit(
            "signup",
            NOW - timedelta(minutes=minutes),
            person=person,
            identified=True,
            params={"plan": plan, "tags": [plan, "x"]},
        )
        for amount in amounts:
            shop.hit("purchase", person=person, identified=True, amount=amount)
    shop.hit("signup", person=DAN, params={"plan": "pro"})  # nobody knows who that is
    shop.hit("signup")  # nor whether it is the same one
    shop.hit("purchase", person=CLEO, identified=True, amount=9_999, currency="USD")
    shop.hit("move", person=CLEO, identified=True, params={"address": {"city": "Köln"}, "n": 2, "plan": None})
    other.hit("purchase", person=CLEO, identified=True, amount=9_999, params={"plan": "pro"})
    await shop.store()
    await other.store()
    await shop.merge_events(EVE, ANN)
    return shop


async def test_people_are_told_by_what_they_did_brought_and_are(told: Shop) -> None:
    assert await _who(told) == "ann bob cleo dan"
    assert await _who(told, did="signup") == "ann bob cleo dan"
    assert await _who(told, did__2="purchase") == "ann bob"
    assert await _who(told, did__3="purchase") == "bob"
    assert await _who(told, did="nothing") == ""
    assert await _who(told, revenue__EUR="2500") == "ann"
    assert await _who(told, revenue__EUR="2499") == "ann bob"
    assert await _who(told, revenue__usd="0") == "cleo"
    assert await _who(told, revenue__GBP="0") == ""
    assert await _who(told, did="move", revenue__USD="1", person__n="2") == "cleo"
    assert await _who(told, did="move", revenue__EUR="1") == ""


async def test_properties_are_those_of_now(told: Shop) -> None:
    # Ann's plan is the later one, sent while she was eve; cleo's was taken back; dan's is nobody's.
    assert await _who(told, person__plan="pro") == ""
    assert await _who(told, person__plan="start") == "ann"
    assert await _who(told, person__tags="x") == "ann bob cleo"
    assert await _who(told, person__address__city="Köln") == "cleo"
    assert await _who(told, person__address="Köln") == ""
    assert await _who_of(told, [("person.plan", "team"), ("person.plan", "start")]) == "ann bob"
    assert await _who_of(told, [("person.plan", "team"), ("person.tags", "start")]) == ""
    assert await _who_of(told, [("person.plan", "team"), ("person.tags", "team")]) == "bob"


async def test_of_two_values_the_later_received_counts(shop: Shop) -> None:
    shop.hit("b", person=ANN, identified=True, params={"plan": "new", "`a` ' \\": "x'); --"})
    await shop.store()
    shop.hit("a", shop.period().start, person=ANN, identified=True, params={"plan": "old"})
    await shop.store()
    assert (await _who(shop, person__plan="new"), await _who(shop, person__plan="old")) == ("ann", "")
    assert await _who_of(shop, [("person.`a` ' \\", "x'); --")]) == "ann"


@pytest.mark.parametrize(
    ("pairs", "conditions"),
    [
        ([], []),
        ([("did", ""), ("revenue.EUR", ""), ("person.plan", ""), ("email", "x"), ("revenue", "5")], []),
        ([("did", "a"), ("did", "a"), ("did.1", "a")], [Did("a")]),
        ([("did.3", "a.b"), ("did", "a.b")], [Did("a.b"), Did("a.b", 3)]),
        ([("revenue.eur", "0")], [Earned("EUR", 0)]),
        ([("person.a.b", "x"), ("person.a.b", "y")], [Is("person.a.b", "x"), Is("person.a.b", "y")]),
        ([("person.a!.", "x")], [Is("person.a!", "x")]),
    ],
)  # fmt: skip
def test_what_an_address_says(pairs: Pairs, conditions: list[Condition]) -> None:
    segment = segment_of(pairs)
    assert list(segment.conditions) == conditions
    assert segment_of(segment.pairs()) == segment
    assert bool(segment) == bool(conditions)


@pytest.mark.parametrize(
    ("pairs", "field"),
    [
        ([("did.0", "a")], "did.0"),
        ([("did.", "a")], "did."),
        ([("did.-1", "a")], "did.-1"),
        ([("did.٣", "a")], "did.٣"),
        ([("did.1000001", "a")], "did.1000001"),
        ([("did." + "9" * 9_000, "a")], "did." + "9" * 9_000),
        ([("did", "a" * 256)], "did"),
        ([("did", "\ud800")], "did"),
        ([("revenue.EUR", "-1")], "revenue.EUR"),
        ([("revenue.EUR", "25.00")], "revenue.EUR"),
        ([("revenue.EUR", str(10**15 + 1))], "revenue.EUR"),
        ([("revenue.EURO", "1")], "revenue.EURO"),
        ([("person.", "x")], "person."),
        ([("person.a!", "x")], "person.a!"),
        ([("person.a", "x" * 8_001)], "person.a"),
        ([(f"did.{times}", "a") for times in range(1, MAX_CONDITIONS + 2)], f"did.{MAX_CONDITIONS + 1}"),
    ],
)
def test_what_is_no_segment(pairs: Pairs, field: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        segment_of(pairs)
    assert refused.value.field == field


def test_conditions_are_put_together_and_taken_apart() -> None:
    one = Segment().with_(Did("a"))
    two = one.with_(Earned("EUR", 5)).with_(Is("person.plan", "pro"))
    assert two.pairs() == [("did", "a"), ("revenue.EUR", "5"), ("person.plan", "pro")]
    assert two.with_(Did("a")) == two
    assert two.without(Earned("EUR", 5)).without(Is("person.plan", "pro")) == one
