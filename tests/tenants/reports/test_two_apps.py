"""One id may be somebody's in two apps, as by a cookie somebody copied: what the other app has changes no answer."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from stored_hits import NOW, Shop

from server.database import Database
from tenants.access_tokens import WaitingToken, keep, waiting_since
from tenants.audience_members import count_matching, count_people, members, people_of
from tenants.events import recent_events
from tenants.exports import export
from tenants.person_exports import export_person
from tenants.reports.breakdown import breakdown
from tenants.reports.fields import properties_of_people
from tenants.reports.filters import filters_of
from tenants.reports.funnel import Step, funnel
from tenants.reports.people import people
from tenants.reports.person import person
from tenants.reports.retention import retention
from tenants.reports.revenue import revenue
from tenants.reports.segments import segment_of
from tenants.reports.totals import totals
from tenants.secrets import SecretKey

# In both apps, but dave is known in the second one only, where cleo bought, too, and turned out to be ann; and eve, who
# is ann in the first one, to be bob.
ANN, BOB, CLEO, DAVE, EVE = (uuid4() for _ in range(5))
ALL = filters_of([])
PRO = segment_of([("person.plan", "pro")])
BUYERS = segment_of([("did", "buy"), ("revenue.EUR", "1")])
KEY = SecretKey("a secret of at least 32 characters", "facebook")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Ask = Callable[[Shop], Awaitable[object]]


async def fill(shop: Shop, plan: str, amount: int) -> None:
    for number, (id, name) in enumerate(((ANN, "ann"), (BOB, "bob"), (CLEO, "cleo"))):
        about = {f"{plan} {name}": 1, "plan": plan, "custom_audience_id": f"{plan}-{name}"}
        shop.hit("visit", NOW - timedelta(days=9 - 3 * number), person=id, visitor=uuid4())
        shop.hit("signup", NOW - timedelta(days=6 - number), person=id, identified=True, params=about)
        await shop.know(id, email=f"{name}@{plan}.example", fbid=f"{amount}{number}")
    for number, id in enumerate((ANN, BOB, EVE, DAVE)):
        shop.hit("buy", NOW - timedelta(days=3), person=id, identified=id != DAVE, amount=amount + number)
    await shop.store()
    token = WaitingToken(shop.app.id, plan, uuid4().bytes, amount, ANN.bytes, person=ANN.bytes)
    await keep(KEY, [token], amount)


async def whole(chunks: AsyncIterator[Any]) -> list[Any]:
    return [chunk async for chunk in chunks]


async def exported(shop: Shop) -> list[bytes]:
    return await whole(await export(shop.app, shop.events, EPOCH, NOW + timedelta(days=1), "", {}, "csv"))


async def exported_person(shop: Shop) -> list[bytes]:
    return await whole(await export_person(shop.app, shop.events, ANN, NOW))


async def in_audience(shop: Shop) -> list[Any]:
    return await whole(members(shop.app, shop.events, await people_of(shop.app, shop.events, BUYERS)))


ASKED: dict[str, Ask] = {
    "person": lambda shop: person(shop.app, shop.events, ANN),
    "their events": lambda shop: recent_events(shop.app, shop.events, persons=[ANN]),
    "people": lambda shop: people(shop.app, shop.events, properties=True),
    "people by first seen": lambda shop: people(shop.app, shop.events, sort="first_seen"),
    "people by events": lambda shop: people(shop.app, shop.events, sort="events"),
    "people by revenue": lambda shop: people(shop.app, shop.events, sort="revenue"),
    "people with a text": lambda shop: people(shop.app, shop.events, text="bob"),
    "people with exactly a text": lambda shop: people(shop.app, shop.events, text="pro", exactly=True),
    "people of a segment": lambda shop: people(shop.app, shop.events, segment=PRO),
    "people who bought": lambda shop: people(shop.app, shop.events, segment=BUYERS),
    "properties": lambda shop: properties_of_people(shop.app, shop.events),
    "breakdown": lambda shop: breakdown(shop.app, shop.events, shop.period(period="30d"), ALL, "person.plan"),
    "totals": lambda shop: totals(shop.app, shop.events, shop.period(period="30d"), ALL),
    "revenue": lambda shop: revenue(shop.app, shop.events, shop.period(period="30d"), ALL),
    "retention": lambda shop: retention(shop.app, shop.events, shop.period(period="7d"), ALL),
    "retention of new people": lambda shop: retention(shop.app, shop.events, shop.period(period="7d"), ALL, new=True),
    "funnel": lambda shop: funnel(
        shop.app,
        shop.events,
        shop.period(period="30d"),
        ALL,
        [Step("signup"), Step("buy")],
        timedelta(days=30),
        "person.plan",
    ),
    "audience": in_audience,
    "everybody's audience": lambda shop: whole(members(shop.app, shop.events, None)),
    "size of an audience": lambda shop: count_matching(shop.app, shop.events, BUYERS),
    "size of everybody's": lambda shop: count_people(shop.app, None),
    "export": exported,
    "export of a person": exported_person,
    "tokens that wait": lambda shop: waiting_since(shop.app.id, [ANN]),
}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_what_another_app_has_of_the_same_ids_changes_no_answer(
    database: Database, shop: Shop, other: Shop
) -> None:
    await fill(shop, "pro", 500)
    await shop.merge(EVE, ANN)
    before = {name: await ask(shop) for name, ask in ASKED.items()}
    other.app.id = UUID(int=1)
    await fill(other, "free", 7)
    await other.merge(EVE, BOB)
    await other.merge(CLEO, ANN)
    for id, name in ((DAVE, "dave"), (uuid4(), "eve")):
        await other.know(id, email=f"{name}@free.example")
    other.hit("buy", NOW - timedelta(days=20), person=CLEO, identified=True, amount=99)
    other.hit("buy", NOW - timedelta(days=20), person=DAVE, identified=True, amount=99)
    other.hit("visit", NOW - timedelta(days=20), person=BOB)
    await other.store()
    # In one part rows come in the order of their apps' ids.
    await other.events.change("OPTIMIZE TABLE person_aliases FINAL")
    for name, ask in ASKED.items():
        assert await ask(shop) == before[name], name
        assert await ask(other) != before[name], f"{name}: nothing would be seen of it"
