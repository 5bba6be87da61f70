"""People, in an order and one by one: whoever is known, under whichever id their events came."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from stored_hits import NOW, Shop

from server.database import Database
from tenants.errors import InvalidValue, NotFound
from tenants.events import recent_events
from tenants.identifiers import EMAIL_KIND, identifier_key, known, person_key
from tenants.reports import people as people_report
from tenants.reports.people import Sort, people
from tenants.reports.person import Lifetime, person
from tenants.reports.segments import segment_of
from tenants.tables import Identifier

ANN, BOB, CLEO, EVE, VISITOR = (uuid4() for _ in range(5))
HOSTILE = "<script>'); -- \u202e"


def days(ago: float) -> datetime:
    return NOW - timedelta(days=ago)


@pytest.fixture
async def told(database: Database, shop: Shop, other: Shop) -> Shop:
    """Ann, who was also eve, bob, and cleo; somebody unknown came last."""
    assert database
    shop.hit("visit", days(9), person=BOB)
    shop.hit("signup", days(8), person=BOB, identified=True, params={"plan": "pro", "name": "Bob B.", "n": 1.50})
    shop.hit("visit", days(7), person=EVE, identified=True, params={"plan": "start", "from": "eve"})
    shop.hit("visit", days(6), person=ANN, identified=True, params={"plan": "team"})
    shop.hit("buy", days(5), person=EVE, identified=True, amount=700)
    shop.hit("buy", days(4), person=ANN, identified=True, amount=300)
    shop.hit("refund", days(4), person=ANN, identified=True, amount=-50)
    shop.hit("buy", days(4), person=ANN, identified=True, amount=5, currency="USD")
    shop.hit("buy", days(3), person=CLEO, amount=2_000)  # before anything was known of her
    shop.hit("visit", days(2), person=CLEO, identified=True, params={HOSTILE: HOSTILE, "gone": None})
    shop.hit("buy", days(1), person=VISITOR, amount=9_000)
    shop.hit("visit", days(1))
    other.hit("buy", days(1), person=ANN, identified=True, amount=1, params={"plan": "theirs"})
    for each in (shop, other):
        await each.store()
    await shop.know(ANN, email="ann@example.org", uuid="4711")
    await shop.know(EVE, email="eve@example.org", fbid="99")
    await shop.know(BOB, email="bob@example.org")
    await shop.know(CLEO, uuid=HOSTILE)
    await shop.merge(EVE, ANN)
    return shop


NAMES = {ANN: "ann", EVE: "eve", BOB: "bob", CLEO: "cleo", VISITOR: "visitor"}


async def _names(shop: Shop, **asked: Any) -> str:
    found = await people(shop.app, shop.events, **asked)
    return " ".join(NAMES[each.known.id] for each in found.people)


@pytest.mark.parametrize(
    ("sort", "currency", "names"),
    [
        ("last_seen", None, "cleo ann bob"),
        ("first_seen", None, "cleo ann bob"),
        ("events", None, "ann cleo bob"),
        ("revenue", None, "cleo ann"),
        ("revenue", "usd", "ann"),
        ("revenue", "GBP", ""),
    ],
)
async def test_an_order(told: Shop, sort: Sort, currency: str | None, names: str) -> None:
    found = await _names(told, sort=sort, currency=currency)
    if sort == "events":  # cleo and bob have as many
        assert sorted(found.split()) == ["ann", "bob", "cleo"]
        assert found.startswith("ann ")
    else:
        assert found == names
    pages: list[str] = []
    cursor = None
    while True:
        page = await people(told.app, told.events, sort=sort, currency=currency, limit=1, cursor=cursor)
        pages += [NAMES[each.known.id] for each in page.people]
        cursor = page.next
        if cursor is None:
            break
    assert " ".join(pages) == found


async def test_what_a_list_says(told: Shop) -> None:
    _, ann, _ = (await people(told.app, told.events, properties=True)).people
    assert (ann.known.emails, ann.known.uuids, ann.known.fbids) == (
        ["ann@example.org", "eve@example.org"],
        ["4711"],
        ["99"],
    )
    assert (ann.events, ann.revenue) == (6, {"EUR": 950, "USD": 5})
    assert abs((ann.first_seen - days(7)).total_seconds()) < 0.001
    assert abs((ann.last_seen - days(4)).total_seconds()) < 0.001
    assert ann.properties == {"plan": '"team"', "from": '"eve"'}


async def test_people_are_found(told: Shop) -> None:
    assert await _names(told, email=" EVE@example.org") == "ann"
    assert await _names(told, email="eve@example.org", uuid="4711") == "ann"
    assert await _names(told, email="bob@example.org", uuid="4711") == ""
    assert await _names(told, fbid="99", sort="revenue") == "ann"
    assert await _names(told, uuid=HOSTILE) == "cleo"
    assert await _names(told, email="nobody@example.org") == ""
    assert await _names(told, text="BOB") == "bob"
    assert await _names(told, text="b.") == "bob"
    assert await _names(told, text="bob@", exactly=True) == ""
    assert await _names(told, text="bob@example.org", exactly=True) == "bob"
    assert await _names(told, text="ve") == "ann", "what eve brought is ann's"
    assert await _names(told, text=HOSTILE) == "cleo"
    assert await _names(told, text="b.", email="bob@example.org") == "bob"
    assert await _names(told, text="theirs") == ""


async def test_nobody_is_found_by_what_was_said_of_them_before(told: Shop) -> None:
    assert await _names(told, text="pro") == "bob"
    told.hit("change", days(1), person=BOB, identified=True, params={"plan": "free"})
    await told.store()
    for exactly in (False, True):
        assert await _names(told, text="pro", exactly=exactly) == ""
        assert await _names(told, text="free", exactly=exactly) == "bob"
        assert await _names(told, text="start", exactly=exactly) == "", "of eve, whose plan is ann's by now"


@pytest.mark.parametrize("text", ['18" \\ 20"', "two\nlines", "\u2028", "a/b", '"</p>"', "\x01"])
async def test_people_are_found_by_what_json_escapes(told: Shop, text: str) -> None:
    told.hit("visit", days(1), person=BOB, identified=True, params={"size": f"x{text}X"})
    await told.store()
    for exactly in (False, True):
        assert await _names(told, text=f"X{text}x", exactly=exactly) == "bob"


async def test_people_of_a_segment(told: Shop) -> None:
    segment = segment_of([("did.2", "buy"), ("revenue.EUR", "900")])
    for sort in ("last_seen", "first_seen", "events", "revenue"):
        assert await _names(told, segment=segment, sort=sort) == "ann"
    assert await _names(told, segment=segment_of([("person.plan", "team"), ("person.plan", "pro")])) == "ann bob"
    assert await _names(told, segment=segment_of([("person.plan", "pro")]), text="ann") == ""


async def test_a_page_of_people_of_whom_nothing_is_known_any_more_leads_on(told: Shop) -> None:
    """As while somebody is being deleted: the control database is first."""
    ghosts = [uuid4() for _ in range(30)]
    for ghost in ghosts:
        told.hit("visit", days(0.1), person=ghost, identified=True)
    await told.store()
    names: list[str] = []
    cursor = None
    for _ in range(20):
        page = await people(told.app, told.events, limit=5, cursor=cursor)
        names += [NAMES[each.known.id] for each in page.people]
        cursor = page.next
        if cursor is None:
            break
    assert names == ["cleo", "ann", "bob"]


async def test_buyers_are_found_behind_many_unknown_ones(told: Shop) -> None:
    for _ in range(40):
        told.hit("buy", days(0.1), person=uuid4(), amount=50_000)
    await told.store()
    assert await _names(told, sort="revenue", limit=2) == "cleo ann"


async def test_who_did_most_is_found_behind_many_unknown_ones(told: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the newest events are of people who are known; those with most events are not."""
    monkeypatch.setattr(people_report, "_SAMPLE", 3)
    for stranger in [uuid4() for _ in range(40)]:
        for hour in range(8):
            told.hit("visit", days(2 + hour / 24), person=stranger)
    told.hit("visit", days(0.2), person=BOB, identified=True)
    told.hit("visit", days(0.1), person=BOB, identified=True)
    await told.store()
    for limit in (1, 2, 50):
        assert await _names(told, sort="events", limit=limit) == " ".join(["ann", "bob", "cleo"][:limit])


@pytest.mark.parametrize("newest", [1, 3, 6, 100])
async def test_the_newest_people_are_those_however_few_events_are_looked_at_first(
    told: Shop, monkeypatch: pytest.MonkeyPatch, newest: int
) -> None:
    monkeypatch.setattr(people_report, "_NEWEST_OF_NEW", newest)
    for limit in (1, 2, 3, 50):
        assert await _names(told, sort="first_seen", limit=limit) == " ".join(["cleo", "ann", "bob"][:limit])
    page = await people(told.app, told.events, sort="first_seen", limit=1)
    page = await people(told.app, told.events, sort="first_seen", limit=1, cursor=page.next)
    assert [NAMES[each.known.id] for each in page.people] == ["ann"]


@pytest.mark.parametrize("cursor", ["x", "AAAA", "A" * 64, "=", "\ud800", "é"])
async def test_made_up_cursors_are_refused(shop: Shop, cursor: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        await people(shop.app, shop.events, cursor=cursor)
    assert refused.value.field == "cursor"


@pytest.mark.parametrize("id", [ANN, EVE])
async def test_a_person_has_one_history(told: Shop, id: UUID) -> None:
    ann = await person(told.app, told.events, id)
    assert ann.id == ANN
    assert ann.known is not None
    assert ann.known.merged == [EVE]
    assert ann.events == 6
    assert ann.lifetime == [Lifetime("EUR", 1_000, 50, 950, 2, 500), Lifetime("USD", 5, 0, 5, 1, 5)]
    assert [(each.field, each.value) for each in ann.properties] == [("from", '"eve"'), ("plan", '"team"')]
    assert abs((ann.properties[1].received_at - days(6)).total_seconds()) < 0.001
    page = await recent_events(told.app, told.events, persons=ann.ids, limit=4)
    assert sorted(row["event_token"] for row in page.rows) == ["buy", "buy", "buy", "refund"]
    rest = await recent_events(told.app, told.events, persons=ann.ids, limit=4, cursor=page.next)
    assert [row["event_token"] for row in rest.rows] == ["visit", "visit"]
    assert rest.next is None


async def test_somebody_with_very_many_properties_and_addresses(told: Shop) -> None:
    """Whoever can load the pixel can bring them any number: pages read the newest, the export everything."""
    for number in range(6):
        fields = {f"f-{number}-{each}": number for each in range(200)}
        told.hit("visit", days(1 - number / 10), person=BOB, identified=True, params=fields)
    told.hit("visit", days(8.5), person=BOB, identified=True, params={"facebook_state": "expired"})
    await told.store()
    bobs = person_key(told.app.id, BOB)
    keys = [identifier_key(told.app.id, EMAIL_KIND, f"{number:04}@example.org") for number in range(1_200)]
    await Identifier.insert(*(Identifier(key=key, person=bobs) for key in keys))
    bob = await person(told.app, told.events, BOB)
    names = [each.field for each in bob.properties]
    assert len(names) == people_report.SHOWN_PROPERTIES == 500
    assert names == sorted(names)
    assert {"facebook_state", "f-5-199", "f-4-0"} <= set(names)
    assert "f-1-0" not in names
    assert bob.known is not None
    assert len(bob.known.emails) == 1_000
    assert len((await known(told.app, [BOB], whole=True))[BOB].emails) == 1_201
    page = await people(told.app, told.events, sort="last_seen", limit=1, properties=True)
    assert (page.people[0].known.id, len(page.people[0].properties)) == (BOB, 500)


async def test_a_visitor_of_whom_nothing_is_known_is_somebody(told: Shop) -> None:
    visitor = await person(told.app, told.events, VISITOR)
    assert visitor.known is None
    assert (visitor.events, [each.net for each in visitor.lifetime], visitor.properties) == (1, [9_000], [])


@pytest.mark.parametrize("id", [uuid4(), UUID(int=0)])
async def test_who_was_never_there_is_not_found(told: Shop, id: UUID) -> None:
    with pytest.raises(NotFound):
        await person(told.app, told.events, id)


async def test_who_is_another_apps_is_not_found(told: Shop, other: Shop) -> None:
    with pytest.raises(NotFound):
        await person(other.app, told.events, BOB)
    assert (await people(other.app, told.events)).people == []
    assert (await people(other.app, told.events, email="bob@example.org")).people == []


async def test_somebody_known_without_events_has_no_times(database: Database, shop: Shop) -> None:
    assert database
    await shop.know(ANN, email="ann@example.org")
    ann = await person(shop.app, shop.events, ANN)
    assert (ann.first_seen, ann.last_seen, ann.events, ann.lifetime) == (None, None, 0, [])
    assert ann.known is not None
    assert ann.known.emails == ["ann@example.org"]
