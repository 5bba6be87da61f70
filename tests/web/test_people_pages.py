"""People in pages and in the API: who is found, what of them is shown to whom, and where one page leads to the next."""

import base64
import html
import json
import re
import time
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import urlencode
from uuid import UUID, uuid4

import httpx
import pytest
from application import SECRET_KEY
from jinja2.runtime import Context
from known import did, know, merge
from test_dashboards import ESCAPED, HOSTILE

from server.event_store import EventStore
from tenants import audiences, keys, tokens
from tenants.events import event_row
from tenants.facebook import facebook_key
from tenants.hits import Event, decode
from tenants.reports.segments import segment_of
from tenants.tables import App, Tenant
from web.masking import masked, private, private_query

# The same in every process that collects the tests.
ANN, BOB, EVE, VISITOR, NOBODY = (UUID(f"{number}b1f0c52-93a7-4f0e-8d4c-1c2e7f9a5b38") for number in "abcde")


@pytest.fixture
async def told(shop: App, event_store: EventStore) -> App:
    """Of alice's shop: ann, who was eve, too; bob, whose everything is hostile; somebody unknown."""
    await did(event_store, shop, VISITOR, "view", "buy:900", identified=False)
    await did(event_store, shop, BOB, HOSTILE, plan=HOSTILE)
    await did(event_store, shop, EVE, "signup", "buy:700", plan="start", since=2020)
    await did(event_store, shop, ANN, "signup", "buy:2500", "refund:-200", plan="pro", address={"city": "Köln"})
    await know(shop, ANN, email="ann@example.org", uuid="4711")
    await know(shop, BOB, uuid=HOSTILE)
    await know(shop, BOB, uuid="007", fbid="99")
    await merge(event_store, shop, EVE, ANN)
    return shop


def names(page: httpx.Response) -> list[str]:
    """Whom a list shows, in its order."""
    assert page.status_code == 200
    known = {ANN: "ann", BOB: "bob", EVE: "eve", VISITOR: "visitor"}
    return [
        known[UUID(id)]
        for id in re.findall(r'<th scope="row" class="long whole"><a href="/apps/[^/]+/people/([^"]+)"', page.text)
    ]


async def test_the_list_is_searched_filtered_and_sorted(owner: httpx.AsyncClient, told: App) -> None:
    people = f"/apps/{told.id}/people"
    page = await owner.get(people)
    assert names(page) == ["ann", "bob"]
    assert "ann@example.org" in page.text
    assert "30.00 EUR" in page.text
    for query, found in (
        ("sort=revenue", ["ann"]),
        ("sort=revenue&currency=gbp", []),
        ("sort=events&currency=nonsense", ["ann", "bob"]),
        ("search=ANN@ex", ["ann"]),
        ("search=99", ["bob"]),
        ("search=Pro", ["ann"]),
        ("search=nobody", []),
        ("did.2=signup", ["ann"]),
        ("revenue.EUR=2999", ["ann"]),
        ("revenue.EUR=3000", []),
        ("person.address.city=K%C3%B6ln", ["ann"]),
        ("person.plan=pro&search=007", []),
    ):
        assert names(await owner.get(f"{people}?{query}")) == found, query


async def test_conditions_are_added_by_form_and_taken_away_by_link(owner: httpx.AsyncClient, told: App) -> None:
    people = f"/apps/{told.id}/people"
    address = people
    for form in (
        {"sort": "events", "add_did": "signup", "add_times": "2"},
        {"add_above": "29.99", "add_currency": "eur"},
        {"add_property": "plan", "add_value": "pro"},
    ):
        reply = await owner.get(f"{address}{'&' if '?' in address else '?'}{urlencode(form)}")
        assert reply.status_code == 303
        address = reply.headers["location"]
    assert address == f"{people}?sort=events&did.2=signup&revenue.EUR=2999&person.plan=pro"
    page = await owner.get(address)
    assert names(page) == ["ann"]
    for words in ("did signup 2 times or more", "brought more than 29.99 EUR", "plan is pro"):
        assert f'aria-label="Remove the condition {words}"' in page.text
    assert f'href="{people}?sort=events&amp;person.plan=pro&amp;revenue.EUR=2999"' in page.text


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("add_did=x&add_times=0", "How often is a whole number"),
        ("add_above=much", "Write the amount in digits"),
        ("add_above=1&add_currency=EURO", "ISO 4217"),
        ("add_property=a..b&add_value=x", "Name one of"),
        ("did.0=x", "A condition was left out (did.0)"),
        ("person.a!=x", "A condition was left out"),
        ("cursor=made-up", "This shows everybody."),
        ("search=%ed%a0%80&sort=x&currency=%00", ""),
    ],
)
async def test_what_cannot_be_asked_is_told(owner: httpx.AsyncClient, told: App, query: str, said: str) -> None:
    page = await owner.get(f"/apps/{told.id}/people?{query}")
    assert page.status_code == 200
    assert said in page.text


async def test_the_other_conditions_stay_when_one_cannot_be_used(owner: httpx.AsyncClient, told: App) -> None:
    page = (await owner.get(f"/apps/{told.id}/people?did.0=x&did.2=signup&person.plan=pro")).text
    assert "A condition was left out (did.0)" in page
    assert "did signup 2 times or more" in page
    assert "plan is pro" in page


async def test_a_condition_that_is_refused_stays_in_its_form(owner: httpx.AsyncClient, told: App) -> None:
    form = '<details class="add" open>'
    page = (await owner.get(f"/apps/{told.id}/people?did=signup&add_above=much&add_currency=USD")).text
    assert form in page
    assert 'value="much"' in page
    assert 'name="add_currency" value="USD"' in page
    assert form not in (await owner.get(f"/apps/{told.id}/people?did=signup")).text


async def test_pages_of_people_lead_on(owner: httpx.AsyncClient, shop: App, event_store: EventStore) -> None:
    ids = [uuid4() for _ in range(51)]
    for number, id in enumerate(ids):
        await did(event_store, shop, id, "signup")
        await know(shop, id, email=f"reader{number}@example.org")
    first = await owner.get(f"/apps/{shop.id}/people?sort=first_seen")
    (address,) = re.findall(r'href="([^"]+)" rel="next"', first.text)
    second = await owner.get(address.replace("&amp;", "&"))
    shown = [re.findall(r"reader\d+@", page.text) for page in (first, second)]
    assert [len(each) for each in shown] == [50, 1]
    assert len({*shown[0], *shown[1]}) == 51
    assert 'rel="next"' not in second.text
    assert "First page" in second.text
    for page in (first, second):
        (counted,) = re.findall(r'hx-get="([^"]+/people/count)"', page.text)
        assert re.sub("<[^>]+>", "", (await owner.get(counted)).text).strip() == "51 people"


async def test_how_many_people_there_are(owner: httpx.AsyncClient, told: App) -> None:
    people = f"/apps/{told.id}/people"
    for query, shown in (
        ("", "2 people"),
        ("?person.plan=pro", "1 person"),
        ("?sort=revenue", ""),
        ("?search=ann", ""),
    ):
        page = (await owner.get(people + query)).text
        said = re.findall(r'<p class="quiet">(.*)\n?</p>', page)
        # By revenue and by text not all are listed that the conditions ask for.
        assert [re.sub("<[^>]+>", "", each) for each in said] == ([shown] if shown else []), query
    counted = await owner.get(f"{people}/count?person.plan=pro")
    assert re.sub("<[^>]+>", "", counted.text).strip() == "1 person"
    reply = await owner.get(f"{people}/count?revenue.EUR=much")
    assert reply.status_code == 400
    assert "That cannot be used" in reply.text


async def test_a_person_has_a_page(owner: httpx.AsyncClient, told: App) -> None:
    page = (await owner.get(f"/apps/{told.id}/people/{ANN}")).text
    for shown in (
        "ann@example.org",
        "4711",
        "<dd>30.00</dd>",
        "32.00 less 2.00 refunded",
        "1 other id of this person",
        str(EVE),
        "since",
        "2020",
    ):
        assert shown in page
    assert page.count('<li class="hit">') == 5
    assert "Köln" in page
    merged = await owner.get(f"/apps/{told.id}/people/{EVE}")
    assert (merged.status_code, merged.headers["location"]) == (303, f"/apps/{told.id}/people/{ANN}")
    visitor = (await owner.get(f"/apps/{told.id}/people/{VISITOR}")).text
    assert "Anonymous visitor" in visitor
    assert "<dd>9.00</dd>" in visitor
    hostile = (await owner.get(f"/apps/{told.id}/people/{BOB}")).text
    assert ESCAPED in hostile
    assert "<script>alert" not in hostile


@pytest.mark.parametrize("id", [str(NOBODY), str(UUID(int=0)), "x", "{" + str(ANN) + "}", str(ANN).upper(), ANN.hex])
async def test_there_is_one_address_of_a_person(
    owner: httpx.AsyncClient, told: App, event_store: EventStore, id: str
) -> None:
    # Whoever asks not to be tracked is nobody in particular.
    await did(event_store, told, UUID(int=0), "view", identified=False)
    assert (await owner.get(f"/apps/{told.id}/people/{id}")).status_code == 404


async def test_a_long_timeline_is_paged(owner: httpx.AsyncClient, shop: App, event_store: EventStore) -> None:
    await did(event_store, shop, ANN, *(f"step{number}" for number in range(53)))
    address = f"/apps/{shop.id}/people/{ANN}"
    first = (await owner.get(address)).text
    (older,) = re.findall(r'href="([^"]+)#timeline" rel="next"', first)
    second = (await owner.get(older)).text
    assert re.findall(r"step\d+", second) == ["step2", "step1", "step0"]
    assert (await owner.get(f"{address}?cursor=made-up")).status_code == 400


async def test_many_properties_do_not_push_away_what_happened(
    owner: httpx.AsyncClient, shop: App, event_store: EventStore
) -> None:
    values: dict[str, Any] = {f"p{number:02}": number for number in range(40)}
    fields = list(values)
    await know(shop, ANN, email="ann@example.org")
    await did(event_store, shop, ANN, "signup", **{name: values[name] for name in fields[:29]})
    assert " more</summary>" not in (await owner.get(f"/apps/{shop.id}/people/{ANN}")).text
    await did(event_store, shop, ANN, "signup", **values)
    page = (await owner.get(f"/apps/{shop.id}/people/{ANN}")).text
    shown, _, more = page.partition("<summary>10 more</summary>")
    assert re.findall(r"<dt>(p\d+)</dt>", shown) == fields[:30]
    assert re.findall(r"<dt>(p\d+)</dt>", more.partition("</details>")[0]) == fields[30:]


async def test_every_event_leads_to_its_person_by_name(owner: httpx.AsyncClient, told: App) -> None:
    live = (await owner.get(f"/apps/{told.id}/live?whole=1")).text
    orders = (await owner.get(f"/apps/{told.id}/panels/orders")).text
    for id, name in ((ANN, "ann@example.org"), (VISITOR, f"Visitor {str(VISITOR)[:8]}")):
        for page in (live, orders):
            assert f'href="/apps/{told.id}/people/{id}">{name}</a>' in page


async def test_addresses_are_masked_for_viewers(
    owner: httpx.AsyncClient, member: httpx.AsyncClient, viewer: httpx.AsyncClient, told: App, event_store: EventStore
) -> None:
    await know(told, BOB, email="bob@example.org")
    await did(event_store, told, BOB, "signup", email="bob@example.org", contact="bob@example.org")
    await did(event_store, told, BOB, "signup", email="only@example.org")
    for tail in ("/people", f"/people/{BOB}", "/events", "/live?whole=1", "/export?format=csv"):
        address = f"/apps/{told.id}{tail}"
        for whole in (owner, member):
            assert "bob@example.org" in (await whole.get(address)).text
        seen = (await viewer.get(address)).text
        assert "b…@example.org" in seen
        assert "bob@example.org" not in seen
        assert "bob%40" not in seen
    panels = f"/apps/{told.id}/panels"
    for address, suggests in (
        (f"{panels}/breakdown?field=params.contact", False),
        (f"{panels}/values?add_field=contact", True),
    ):
        assert "bob@example.org" in (await member.get(address)).text
        seen = (await viewer.get(address)).text
        assert ("b…@example.org" in seen) != suggests
        assert "bob@" not in seen
        assert "bob%40" not in seen
    # Nor are they found out letter by letter.
    for text, anybody in (("bob@ex", owner), ("contact", viewer)):
        assert "<article" in (await anybody.get(f"/apps/{told.id}/live?whole=1&text={text}")).text
    assert "<article" not in (await viewer.get(f"/apps/{told.id}/live?whole=1&text=only@ex")).text
    people = f"/apps/{told.id}/people"
    assert names(await owner.get(f"{people}?search=ann@")) == ["ann"]
    assert names(await viewer.get(f"{people}?search=ann@")) == []
    assert names(await viewer.get(f"{people}?search=ann@example.org")) == ["ann"]
    assert names(await owner.get(f"{people}?search=bob@ex")) == ["bob"]
    assert names(await viewer.get(f"{people}?search=bob@ex")) == []
    assert "<article" in (await owner.get(f"/apps/{told.id}/live?whole=1&text=bob@ex")).text
    assert "<article" not in (await viewer.get(f"/apps/{told.id}/live?whole=1&text=bob@ex")).text


async def test_addresses_with_other_letters_are_masked_whole(
    owner: httpx.AsyncClient, viewer: httpx.AsyncClient, told: App, event_store: EventStore
) -> None:
    """An apostrophe, an ampersand and an equals sign may stand before the @."""
    for address in ("rosa.o'connor@example.org", "rosa&bob@example.org", "prvs=rosa@example.org"):
        await did(event_store, told, VISITOR, "view", email=address, contact=address)
    breakdown = "/panels/breakdown?field=params.contact"
    for tail in (f"/people/{VISITOR}", "/events", "/live?whole=1", "/export?format=csv", breakdown):
        assert "rosa" in (await owner.get(f"/apps/{told.id}{tail}")).text, tail
        seen = (await viewer.get(f"/apps/{told.id}{tail}")).text
        assert "…@example.org" in seen, tail
        assert "rosa" not in seen, tail
        assert "connor" not in seen, tail


def test_two_addresses_in_one_text_are_both_masked() -> None:
    nobody = cast("Context", {})
    for text in (
        "https://x.example/?from=ann%40e.org&to=bob%40e.org",
        "a=ann%40e.org&b=bob@e.org",
        "ann@e.org;bob@e.org",
    ):
        shown = private(nobody, text)
        assert "e.org" in shown
        assert "ann" not in shown
        assert "bob" not in shown
    assert private(nobody, "a@b@c, @mention, ann@e.org&q=1") == "a…@b…@c, @mention, a…@e.org&q=1"


def test_a_long_text_is_masked_in_no_time() -> None:
    """Strangers write it, and pixels wait meanwhile; one try from each place would take minutes."""
    nobody = cast("Context", {})
    for text in ("x" * 1_000_000, "%25" * 300_000, "a%" * 300_000, "@" * 300_000):
        assert private(nobody, text) == text
    assert private(nobody, "x" * 1_000_000 + "@e.org") == "x…@e.org"
    assert private_query(nobody, "cb=" + "x" * 1_000_000) == "cb=…"


def test_values_of_a_query_are_hidden_however_their_name_is_written() -> None:
    query = "event_token=a&%70arams=eyJ9&amp;PARAMS=e30&email=ann@example.org&paramsx=1&ann"
    shown = private_query(cast("Context", {}), query)
    assert shown == "event_token=a&%70arams=…&amp;PARAMS=…&email=…&paramsx=…&ann"
    query = "event_token=ann%40example.org&amp;Event%5Fid=4&amount=1&currency=EUR&debug=1&x"
    assert private_query(cast("Context", {}), query) == query.replace("ann", "a…")


async def test_addresses_are_masked_however_often_they_are_encoded(
    owner: httpx.AsyncClient, viewer: httpx.AsyncClient, told: App, event_store: EventStore
) -> None:
    await did(event_store, told, VISITOR, "view", page="https://example.org/?next=%2Fhi%3Fto%3Dzoe%2540example.org")
    for tail in (f"/people/{VISITOR}", "/live?whole=1", "/export?format=csv", "/panels/breakdown?field=params.page"):
        assert "zoe%2540example.org" in (await owner.get(f"/apps/{told.id}{tail}")).text, tail
        seen = (await viewer.get(f"/apps/{told.id}{tail}")).text
        assert "%2540example.org" in seen, tail
        assert "zoe" not in seen, tail


async def test_addresses_in_other_places_are_masked_for_viewers(
    owner: httpx.AsyncClient, viewer: httpx.AsyncClient, told: App, event_store: EventStore
) -> None:
    """A customer may take addresses for ids of their own, or for event tokens."""
    await know(told, VISITOR, uuid="vic@example.org")
    await did(event_store, told, VISITOR, "mail to vic@example.org", "buy:100", uuid="vic@example.org")
    panels = ("/panels/tokens", "/panels/chart", "/panels/orders?page=revenue", "/panels/funnel?page=funnel")
    for tail in ("/people", f"/people/{VISITOR}", "/live?whole=1", *panels):
        address = f"/apps/{told.id}{tail}"
        assert "vic@" not in (seen := (await viewer.get(address)).text), tail
        assert "vic%40" not in seen, tail
        assert "v…@example.org" in seen, tail
        assert "vic@example.org" in (await owner.get(address)).text, tail


async def test_addresses_where_names_stand_are_masked_for_viewers(
    owner: httpx.AsyncClient, viewer: httpx.AsyncClient, told: App, event_store: EventStore
) -> None:
    """As an event's id, the name of a value, a step, a condition, or hidden in Base64."""
    address = "vic@example.org"
    await know(told, VISITOR, email=address, uuid=f"u-{address}")
    values: dict[str, Any] = {f"of {address}": 1}
    await did(event_store, told, VISITOR, f"view {address}", f"buy {address}", **values)
    encoded = base64.b64encode(f'{{"to":"{address}"}}'.encode()).decode()
    sent = f"event_token=buy&amount=500&event_id={address}&params={encoded}"
    found = decode("revenue", sent.encode(), "EUR", privacy=False)
    assert isinstance(found, Event)
    at = int(time.time() * 1000) - 2_000
    row = event_row(found, told.id.int, at, uuid4().int, "revenue", VISITOR.int, "192.0.2.0/24", b"", b"", b"")
    await event_store.insert("events", [(*row[:-1], True)], uuid4().hex)
    version = at * 1_048_576
    await event_store.insert(
        "person_properties", [(told.id.int, f"p {address}", VISITOR.int, f'"{address}"', at, version)], uuid4().hex
    )
    await audiences.create(
        told,
        facebook_key(SECRET_KEY),
        "Vic",
        "1",
        "t" * 40,
        segment_of([("person.contact", address)]),
        False,
        datetime.now(UTC),
    )
    await did(event_store, told, VISITOR, "look", "take", to=address)
    for tail in (
        f"/people/{VISITOR}",
        "/people",
        "/panels/orders?page=revenue",
        "/panels/funnel?page=funnel&step1=look&step2=take&by=params.to",
        "/audiences",
        "/live/hits",
    ):
        page = f"/apps/{told.id}{tail}"
        seen = (await viewer.get(page)).text
        for form in ("vic@", "vic%40", encoded):
            assert form not in seen, (tail, form)
        assert "v…@example.org" in seen, tail
        assert "vic@" in (await owner.get(page)).text, tail


async def test_viewers_find_no_address_among_live_hits(
    owner: httpx.AsyncClient, viewer: httpx.AsyncClient, told: App, event_store: EventStore
) -> None:
    live = f"/apps/{told.id}/live"
    first = (await owner.get(f"{live}/hits")).text
    cursor = json.loads(html.unescape(re.findall(r"hx-vals='([^']+)'|hx-vals=\"([^\"]+)\"", first)[0][1]))["after"]
    await did(event_store, told, VISITOR, "later", email="only@example.org")
    for address in (f"{live}/hits?text=only%40ex", f"{live}/newer?after={cursor}&text=only%40ex"):
        assert "<article" in (await owner.get(address)).text
        assert "<article" not in (await viewer.get(address)).text


async def test_what_a_test_hit_became_is_masked_for_viewers(
    owner: httpx.AsyncClient, viewer: httpx.AsyncClient, told: App, event_store: EventStore
) -> None:
    params = '{"email":"zoe@example.org","to":"zoe@example.org"}'
    query = f"event_token=a&cb=0123456789&event_id=zoe@example.org&params={params}"
    found = decode("event", query.encode(), "EUR", privacy=False)
    assert isinstance(found, Event)
    at = int(time.time() * 1000)
    row = event_row(found, told.id.int, at, uuid4().int, "event", VISITOR.int, "192.0.2.0/24", b"", b"", b"")
    await event_store.insert("events", [row], uuid4().hex)
    address = f"/apps/{told.id}/snippet/test/0123456789"
    assert (await owner.get(address)).text.count("zoe@example.org") == 3
    seen = (await viewer.get(address)).text
    assert seen.count("z…@example.org") == 3
    assert "zoe" not in seen


async def test_a_search_that_finds_too_many_says_so(
    owner: httpx.AsyncClient, told: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = f"/apps/{told.id}/people"
    assert "Only a thousand of them" not in (await owner.get(f"{people}?search=pro")).text
    monkeypatch.setattr("tenants.reports.people._FOUND", 0)
    assert "Only a thousand of them" in (await owner.get(f"{people}?search=pro")).text
    assert "Only a thousand of them" in (await owner.get(f"{people}?search=007")).text


async def test_rows_are_of_the_person_somebody_turned_out_to_be(owner: httpx.AsyncClient, told: App) -> None:
    """Eve was ann all along, and her events are not rewritten yet."""
    for tail in ("/live?whole=1", "/panels/orders?page=revenue"):
        page = (await owner.get(f"/apps/{told.id}{tail}")).text
        assert f"/people/{ANN}" in page
        assert f"/people/{EVE}" not in page
    rows = (await owner.get(f"/apps/{told.id}/export?format=csv")).text
    assert str(ANN) in rows
    assert str(EVE) not in rows


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("ann@example.org", "a…@example.org"),
        ("a@b", "a…@b"),
        ("ann%40example.org", "a…%40example.org"),
        ("ünn@example.org", "ü…@example.org"),
        ("none", "n…"),
        ("", "…"),
    ],
)
def test_a_masked_address(address: str, shown: str) -> None:
    assert masked(address) == shown


async def test_empty_lists_say_what_to_do(owner: httpx.AsyncClient, shop: App) -> None:
    assert "Nobody is known yet" in (await owner.get(f"/apps/{shop.id}/people")).text
    assert "Nobody like that" in (await owner.get(f"/apps/{shop.id}/people?search=x")).text
    assert "in GBP" in (await owner.get(f"/apps/{shop.id}/people?sort=revenue&currency=GBP")).text


async def test_events_are_filtered_and_broken_down_by_property(owner: httpx.AsyncClient, told: App) -> None:
    panels = f"/apps/{told.id}/panels"
    for name in ("breakdown?", "revenue-by?page=revenue&"):
        found = (await owner.get(f"{panels}/{name}field=person.plan")).text
        assert '<option value="person.plan" selected>' in found
        # Eve was ann all along: her events are those of somebody whose plan is pro.
        assert "person.plan=pro" in found
        assert "person.plan=start" not in found
        assert "not known" in found
    page = (await owner.get(f"/apps/{told.id}/revenue?person.plan=pro&whole=1")).text
    assert "the person&#39;s plan is pro" in page
    added = await owner.get(f"/apps/{told.id}/revenue?add_field=person.plan&add_how=is&add_value=pro")
    assert added.headers["location"] == f"/apps/{told.id}/revenue?person.plan=pro"
    options = (await owner.get(f"{panels}/fields")).text
    assert '<option value="person.plan">' in options
    assert '<option value="plan">' in (await owner.get(f"{panels}/properties")).text
    assert '<option value="pro">' in (await owner.get(f"{panels}/values?add_property=plan")).text


# --- The API


class Reader:
    """A program with a key of alice's."""

    def __init__(self, client: httpx.AsyncClient, token: str, key: str) -> None:
        self._client = client
        self._token = token
        self._key = key

    async def get(self, path: str, token: str = "") -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._key}"}
        return await self._client.get(f"/api/v1/apps/{token or self._token}/{path}", headers=headers)

    async def json(self, path: str) -> dict[str, Any]:
        reply = await self.get(path)
        assert reply.status_code == 200, reply.text
        return reply.json()


@pytest.fixture
async def reader(anonymous: httpx.AsyncClient, alice: Tenant, told: App) -> Reader:
    (token,) = await tokens.list_tokens(told)
    _, key = await keys.create_key(alice, "Reader")
    return Reader(anonymous, token.token, key)


async def test_a_plus_in_an_address_needs_no_escape(reader: Reader, told: App) -> None:
    await know(told, BOB, email="bob+shop@example.org")
    for sent in ("bob+shop@example.org", "bob%2Bshop@example.org", "%20BOB+shop@example.org%20"):
        found = await reader.json(f"people?email={sent}")
        assert [each["id"] for each in found["people"]] == [str(BOB)], sent


async def test_people_are_read_back(reader: Reader) -> None:
    found = await reader.json("people?email=ANN@example.org&uuid=4711")
    (ann,) = found["people"]
    times = [ann.pop(name) for name in ("first_seen", "last_seen")]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time) for time in times)
    assert ann == {
        "id": str(ANN),
        "email": "ann@example.org",
        "fbid": None,
        "uuids": ["4711"],
        "properties": {"address": {"city": "Köln"}, "plan": "pro", "since": 2020},
        "event_count": 5,
        "revenue": {"EUR": 3_000},
    }
    assert found["next"] is None
    assert (await reader.json("people?fbid=98"))["people"] == []
    first = await reader.json("people?limit=1")
    second = await reader.json(f"people?limit=1&cursor={first['next']}")
    assert [each["people"][0]["id"] for each in (first, second)] == [str(ANN), str(BOB)]
    assert second["next"] is None
    for query in ("sort=revenue&currency=EUR", "did.2=signup", "revenue.EUR=1", "person.plan=pro", "search=ann"):
        assert [each["id"] for each in (await reader.json(f"people?{query}"))["people"]] == [str(ANN)], query


async def test_one_person_is_read_back(reader: Reader) -> None:
    ann = await reader.json(f"people/{EVE}")
    assert (ann["id"], ann["merged"], ann["emails"], ann["event_count"]) == (
        str(ANN),
        [str(EVE)],
        ["ann@example.org"],
        5,
    )
    assert ann["properties"]["plan"]["value"] == "pro"
    assert ann["lifetime"] == [
        {"currency": "EUR", "gross": 3_200, "refunded": 200, "net": 3_000, "orders": 2, "average_order": 1_600}
    ]
    page = await reader.json(f"people/{ANN}/events?limit=3")
    rest = await reader.json(f"people/{ANN}/events?limit=3&cursor={page['next']}")
    assert [each["event_token"] for each in page["events"] + rest["events"]].count("signup") == 2
    assert len(page["events"] + rest["events"]) == 5
    visitor = await reader.json(f"people/{VISITOR}")
    assert (visitor["known_at"], visitor["properties"], visitor["event_count"]) == (None, {}, 2)
    for id in (uuid4(), "x", UUID(int=0)):
        for tail in ("", "/events"):
            assert (await reader.get(f"people/{id}{tail}")).status_code == 404


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("sort=revenue&currency=EURO", "currency"),
        ("cursor=x", "cursor"),
        ("did.0=x", "did.0"),
        ("person.=x", "person."),
    ],
)
async def test_what_cannot_be_used_is_named(reader: Reader, query: str, field: str) -> None:
    reply = await reader.get(f"people?{query}")
    assert (reply.status_code, reply.json()["field"]) == (400, field)


async def test_an_api_key_reads_its_own_tenants_people(
    anonymous: httpx.AsyncClient, reader: Reader, bob: Tenant
) -> None:
    _, key = await keys.create_key(bob, "Reader")
    (token,) = {reader._token}  # pyright: ignore[reportPrivateUsage]
    for path in ("people", f"people/{ANN}", f"people/{ANN}/events"):
        address = f"/api/v1/apps/{token}/{path}"
        assert (await anonymous.get(address)).status_code == 401
        assert (await anonymous.get(address, headers={"Authorization": f"Bearer {key}"})).status_code == 404
        assert (await reader.get(path)).status_code == 200


async def test_reports_take_properties(reader: Reader) -> None:
    found = await reader.json("breakdown?field=person.plan&event_token=signup")
    assert [(each["value"], each["events"]) for each in found["breakdown"]["values"]] == [("pro", 2)]
    assert (await reader.json("totals?person.plan=pro"))["totals"]["events"]["now"] == 5
    assert (await reader.json("totals?missing=person.plan"))["totals"]["events"]["now"] == 2
    assert "person.plan" in (await reader.json("fields"))["properties"]
