"""Audiences and the Facebook app on their pages: what is entered counts, secrets never come back."""

import csv
import html
import io
import re
import time
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from application import SECRET_KEY
from known import did, know

from server.event_store import EventStore, EventStoreUnavailable
from tenants import audiences, facebook
from tenants.access_tokens import WaitingToken, keep, pause
from tenants.audience_members import email_hash
from tenants.facebook import facebook_key
from tenants.identifiers import EMAIL_KIND, identifier_key, person_key
from tenants.reports.segments import segment_of
from tenants.tables import App, Audience, FacebookApp, GraphPause, Identifier, Person

KEY = facebook_key(SECRET_KEY)
SECRET = "0123456789abcdef0123456789abcdef"
TOKEN = "EAABsystemtoken1234567890"
NOW = datetime.now(UTC)
NOW_MS = int(NOW.timestamp() * 1000)


async def save(browser: httpx.AsyncClient, app: App, **form: str) -> httpx.Response:
    return await browser.post(f"/apps/{app.id}/facebook", data=form)


async def test_a_facebook_app_is_connected_and_its_secret_never_shown(member: httpx.AsyncClient, shop: App) -> None:
    page = await member.get(f"/apps/{shop.id}/settings")
    assert "not connected" in page.text
    reply = await save(member, shop, facebook_app_id=" 4711 ", facebook_secret=SECRET)
    assert (reply.status_code, reply.headers["location"]) == (303, f"/apps/{shop.id}/settings#facebook")
    page = await member.get(f"/apps/{shop.id}/settings")
    assert "4711" in page.text
    assert ">connected<" in page.text
    assert SECRET not in page.text
    assert await facebook.credentials(shop.id, KEY) == ("4711", SECRET)
    assert SECRET.encode() not in (await FacebookApp.select().first())["sealed_secret"]  # pyright: ignore[reportOptionalSubscript]
    # Saved again without the secret it stays.
    await save(member, shop, facebook_app_id="4711", facebook_secret="")
    assert await facebook.credentials(shop.id, KEY) == ("4711", SECRET)
    await member.post(f"/apps/{shop.id}/facebook/disconnect")
    assert await facebook.credentials(shop.id, KEY) is None


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"facebook_app_id": "fb4711", "facebook_secret": SECRET}, "An app ID is a number"),
        ({"facebook_app_id": "", "facebook_secret": SECRET}, "An app ID is a number"),
        ({"facebook_app_id": "1/../me", "facebook_secret": SECRET}, "An app ID is a number"),
        ({"facebook_app_id": "4711", "facebook_secret": ""}, "Enter the app secret, too."),
        ({"facebook_app_id": "4711", "facebook_secret": "short-secret"}, "This is no app secret"),
        ({"facebook_app_id": "4711", "facebook_secret": SECRET[:20] + " " + SECRET}, "This is no app secret"),
    ],
)
async def test_what_is_no_facebook_app_is_refused(
    member: httpx.AsyncClient, shop: App, form: dict[str, str], says: str
) -> None:
    reply = await save(member, shop, **form)
    assert reply.status_code == 422
    assert says in reply.text
    assert not form["facebook_secret"] or form["facebook_secret"] not in reply.text
    assert not await FacebookApp.exists()


async def test_a_secret_that_another_key_hides_is_asked_for_again(member: httpx.AsyncClient, shop: App) -> None:
    await facebook.connect(shop, facebook_key("another secret of 32 characters or more"), "4711", SECRET)
    page = await member.get(f"/apps/{shop.id}/settings")
    assert "4711" in page.text
    assert ">connected<" not in page.text
    assert "the server has another secret key: enter it again" in page.text
    assert "Leave it empty" not in page.text
    reply = await save(member, shop, facebook_app_id="4711", facebook_secret="")
    assert reply.status_code == 422
    assert "Enter the app secret, too." in reply.text
    await save(member, shop, facebook_app_id="4711", facebook_secret=SECRET)
    assert await facebook.credentials(shop.id, KEY) == ("4711", SECRET)
    assert ">connected<" in (await member.get(f"/apps/{shop.id}/settings")).text


async def test_another_app_needs_its_own_secret(member: httpx.AsyncClient, shop: App) -> None:
    await save(member, shop, facebook_app_id="4711", facebook_secret=SECRET)
    reply = await save(member, shop, facebook_app_id="4712", facebook_secret="")
    assert (reply.status_code, "Another app has another secret" in reply.text) == (422, True)
    assert await facebook.credentials(shop.id, KEY) == ("4711", SECRET)


async def test_what_waits_and_what_facebook_says_is_shown(member: httpx.AsyncClient, shop: App) -> None:
    await keep(KEY, [WaitingToken(shop.id, "EAABtoken", b"h" * 16, NOW_MS, b"a" * 16)], NOW_MS)
    await pause(shop.id, int(time.time() * 1000) + 600_000, 4)
    page = await member.get(f"/apps/{shop.id}/settings")
    assert "1</span> token waiting" in page.text
    assert "(error 4)" in page.text
    assert "It is asked again at" in page.text
    assert "EAABtoken" not in page.text
    await save(member, shop, facebook_app_id="4711", facebook_secret=SECRET)
    assert not await GraphPause.exists()


FORM = {"name": "Buyers", "audience_id": "123", "audience_token": TOKEN, "daily": "1"}
CONDITIONS: dict[str, Any] = {
    # The last one was taken away: its fields are hidden then, and sent all the same.
    "kind": ["did", "revenue", "person", "person", "", ""],
    "what": ["purchase", "eur", "plan", "address.city", "", "signup"],
    "value": ["3", "25.00", "pro", "Berlin", "", "1"],
}


async def test_an_audience_is_made_shown_changed_and_removed(
    member: httpx.AsyncClient, viewer: httpx.AsyncClient, shop: App
) -> None:
    at = f"/apps/{shop.id}/audiences"
    assert "New audience" in (await member.get(at)).text
    assert 'name="audience_token"' in (await member.get(f"{at}/new")).text
    reply = await member.post(f"{at}/new", data=FORM | CONDITIONS)
    assert reply.status_code == 303
    (audience,) = await Audience.objects()
    asked = [("did.3", "purchase"), ("revenue.EUR", "2500"), ("person.plan", "pro"), ("person.address.city", "Berlin")]
    assert audiences.segment_kept(audience) == segment_of(asked)
    own = reply.headers["location"]
    for address in (own, at):
        for browser in (member, viewer):
            page = (await browser.get(address)).text
            for words in ("did purchase 3 times or more", "brought more than 25.00 EUR", "plan is pro", "daily"):
                assert words in page
            assert TOKEN not in page
    assert "Pushes leave out whoever has no e-mail address" in (await member.get(own)).text
    form = (await member.get(f"{own}/change")).text
    assert TOKEN not in form
    for value in ("purchase", "25.00", "EUR", "Berlin", "address.city"):
        assert f'value="{value}"' in form
    reply = await member.post(f"{own}/change", data=FORM | {"name": "All", "audience_token": "", "daily": ""})
    assert reply.status_code == 303
    (changed,) = await Audience.objects()
    assert (changed.name, changed.segment, changed.daily_at) == ("All", "", None)
    assert changed.sealed_token == audience.sealed_token
    assert "everybody known" in (await member.get(own)).text
    reply = await member.post(f"{own}/remove")
    assert reply.headers["location"] == at
    assert not await Audience.exists()
    assert (await member.get(own)).status_code == 404


async def test_the_people_of_a_list_become_an_audience(
    member: httpx.AsyncClient, viewer: httpx.AsyncClient, shop: App
) -> None:
    at = f"/apps/{shop.id}/people?did.2=purchase&person.plan=pro"
    address = f"/apps/{shop.id}/audiences/new?did.2=purchase&amp;person.plan=pro"
    assert address in (await member.get(at)).text
    assert "audiences/new" not in (await viewer.get(at)).text
    form = (await member.get(address.replace("&amp;", "&"))).text
    for value in ("purchase", "2", "plan", "pro"):
        assert f'value="{value}"' in form


@pytest.mark.parametrize("state", ["resolved", "expired", "refused", "unresolved"])
async def test_a_person_says_what_became_of_their_token(
    viewer: httpx.AsyncClient, event_store: EventStore, shop: App, state: str
) -> None:
    person = UUID(int=7)
    await know(shop, person, email="ann@example.org")
    values = {"facebook_state": state, "facebook_email": "ann@facebook.example"}
    rows = [(shop.id.int, field, person.int, f'"{value}"', NOW_MS, 1) for field, value in values.items()]
    await event_store.insert("person_properties", rows, state)
    page = (await viewer.get(f"/apps/{shop.id}/people/{person}")).text
    assert f">{state}<" in page
    assert "ann@facebook" not in page


async def test_whoever_only_sent_a_token_is_told_of_too(
    viewer: httpx.AsyncClient, event_store: EventStore, shop: App
) -> None:
    visitor = UUID(int=8)
    await did(event_store, shop, visitor, "view", identified=False)
    address = f"/apps/{shop.id}/people/{visitor}"
    assert "Facebook" not in (await viewer.get(address)).text
    await keep(KEY, [WaitingToken(shop.id, TOKEN, uuid4().bytes, NOW_MS, visitor.bytes, None, None, None)], NOW_MS)
    page = (await viewer.get(address)).text
    assert ">waiting<" in page
    assert TOKEN not in page
    row = (shop.id.int, "facebook_state", visitor.int, '"expired"', NOW_MS, 1)
    await event_store.insert("person_properties", [row], "expired")
    page = (await viewer.get(address)).text
    assert ">expired<" in page


async def test_the_people_of_a_list_are_downloaded_without_an_audience(
    member: httpx.AsyncClient, viewer: httpx.AsyncClient, event_store: EventStore, shop: App
) -> None:
    for number in (1, 2):
        person = UUID(int=number)
        await know(shop, person, email=f"n{number}@example.org")
        await did(event_store, shop, person, *["purchase"] * number)
    address = f"/apps/{shop.id}/audiences/download?did.2=purchase"
    assert f'href="{address}"' in (await member.get(f"/apps/{shop.id}/people?did.2=purchase")).text
    assert "download" not in (await viewer.get(f"/apps/{shop.id}/people?did.2=purchase")).text
    assert "Download" not in (await member.get(f"/apps/{shop.id}/people?search=n1@example.org")).text
    reply = await member.get(address)
    assert list(csv.reader(io.StringIO(reply.text)))[1:] == [[email_hash("n2@example.org"), "", ""]]
    assert reply.headers["content-disposition"].endswith('.csv"')
    assert (await viewer.get(address)).status_code == 403
    assert (await member.get(f"/apps/{shop.id}/audiences/download?did.0=x")).status_code == 400


async def test_how_many_people_an_audience_has_is_said_before_it_is_pushed(
    member: httpx.AsyncClient, event_store: EventStore, shop: App
) -> None:
    for number in (1, 2, 3):
        person = UUID(int=number)
        await know(shop, person, email=f"n{number}@example.org")
        await did(event_store, shop, person, *["purchase"] * number)

    async def counted(**conditions: str) -> str:
        made = await member.post(f"/apps/{shop.id}/audiences/new", data=FORM | conditions)
        address = f"{made.headers['location']}/count"
        assert address in (await member.get(made.headers["location"])).text
        return " ".join(re.sub("<[^>]*>", "", (await member.get(address)).text).split())

    assert await counted() == "3 known people now"
    assert await counted(kind="did", what="purchase", value="2") == "2 known people now"
    assert await counted(kind="did", what="purchase", value="3") == "1 known person now"
    assert await counted(kind="did", what="purchse", value="1") == (
        "0 known people now: check the names in the conditions"
    )


@pytest.mark.parametrize(
    ("currency", "above"), [("EUR", 2500), ("JPY", 5), ("JPY", 5_000), ("KWD", 5_000), ("KWD", 1_234), ("CLF", 12_345)]
)
async def test_an_amount_is_saved_again_as_the_form_shows_it(
    member: httpx.AsyncClient, shop: App, currency: str, above: int
) -> None:
    segment = segment_of([(f"revenue.{currency}", str(above))])
    audience = await audiences.create(shop, KEY, "Buyers", "1", TOKEN, segment, False, NOW)
    address = f"/apps/{shop.id}/audiences/{audience.id}/change"
    shown = re.search('id="value-1" name="value" value="([^"]*)"', (await member.get(address)).text)
    assert shown
    form = {"kind": "revenue", "what": currency, "value": shown[1], "name": "Others", "audience_id": "1"}
    assert (await member.post(address, data=form)).status_code == 303
    assert audiences.segment_kept(await audiences.find(shop, audience.id)) == segment


async def test_two_people_change_an_audience_at_once(
    owner: httpx.AsyncClient, member: httpx.AsyncClient, shop: App
) -> None:
    buyers = {"kind": "did", "what": "purchase", "value": "1"}
    made = await member.post(f"/apps/{shop.id}/audiences/new", data=FORM | buyers)
    address = f"{made.headers['location']}/change"

    async def opened(browser: httpx.AsyncClient) -> dict[str, str]:
        found = re.search('name="shown" value="([^"]*)"', (await browser.get(address)).text)
        assert found
        return FORM | buyers | {"shown": html.unescape(found[1]), "audience_token": ""}

    async def kept() -> tuple[str, str]:
        found = await Audience.objects().first()
        assert found is not None
        return found.name, found.segment

    first, second = await opened(owner), await opened(member)
    assert (await owner.post(address, data=first | {"what": "signup"})).status_code == 303
    assert (await member.post(address, data=second | {"name": "Guests"})).status_code == 303
    assert await kept() == ("Guests", "did=signup")
    # What is wrong is not taken for what was shown.
    wrong = await member.post(address, data=second | {"audience_id": "x"})
    assert wrong.status_code == 422
    assert f'name="shown" value="{html.escape(second["shown"])}"' in wrong.text
    clash = await member.post(address, data=second | {"what": "login", "name": "Guests"})
    assert clash.status_code == 422
    assert "Somebody else changed this to “did signup” meanwhile." in clash.text
    assert 'name="what" value="login"' in clash.text
    assert await kept() == ("Guests", "did=signup")


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"name": ""}, "A name has 1 to 100 characters."),
        ({"audience_id": "act_1"}, "An audience ID is a number"),
        ({"audience_token": "short"}, "An access token has letters and digits"),
        ({"kind": "did", "what": "", "value": "3"}, "Condition 1: Name the event."),
        # Half a condition is none that can be left out: of everybody else nobody spoke.
        ({"kind": "did", "what": "", "value": ""}, "Condition 1: Name the event."),
        ({"kind": ["did", "person"], "what": ["x", " "], "value": ["1", ""]}, "Condition 2: Name the property."),
        ({"kind": "person", "what": "plan", "value": ""}, "Condition 1: Say what the property is."),
        ({"kind": "revenue", "what": "", "value": ""}, "Condition 1: Name the currency"),
        ({"kind": "revenue", "what": "EUR", "value": ""}, "Condition 1: Say more than how much"),
        ({"kind": "did", "what": "x", "value": "often"}, "Condition 1: How often"),
        ({"kind": "revenue", "what": "XYZ", "value": "1"}, "Condition 1: A currency is"),
        ({"kind": "revenue", "what": "EUR", "value": "-1"}, "Condition 1: An amount is 0 or more. In an address it"),
        ({"kind": "revenue", "what": "EUR", "value": "much"}, "Condition 1: Write the amount in digits"),
        ({"kind": "evil", "what": "EUR", "value": "much"}, "Condition 1: Choose what it is about."),
        ({"kind": ["did", "person"], "what": ["x", "a..b"], "value": ["", "y"]}, "Condition 2: "),
    ],
)
async def test_what_is_no_audience_comes_back_with_what_is_wrong(
    member: httpx.AsyncClient, shop: App, form: dict[str, Any], says: str
) -> None:
    kinds = form.get("kind", "")
    kind = kinds if isinstance(kinds, str) else kinds[-1]
    reply = await member.post(f"/apps/{shop.id}/audiences/new", data=FORM | form)
    assert reply.status_code == 422
    assert says in reply.text
    if numbered := re.match("Condition ([0-9])", says):
        assert f'id="kind-{numbered[1]}" name="kind" autofocus>' in reply.text
    # What was chosen is still there.
    assert kind == "evil" or f'<option value="{kind}" selected>' in reply.text
    assert TOKEN not in reply.text
    assert not await Audience.exists()


async def test_hostile_conditions_are_text(member: httpx.AsyncClient, shop: App) -> None:
    evil = "<script>alert(1)</script>`'\"{{7*7}}"
    reply = await member.post(
        f"/apps/{shop.id}/audiences/new", data=FORM | {"kind": "did", "what": evil, "value": "1", "name": evil}
    )
    assert reply.status_code == 303
    for address in (reply.headers["location"], reply.headers["location"] + "/change", f"/apps/{shop.id}/audiences"):
        page = (await member.get(address)).text
        assert "<script>alert" not in page
        assert "{{7*7}}" in page


async def test_a_push_is_asked_for_once_and_shown(member: httpx.AsyncClient, shop: App) -> None:
    audience = await audiences.create(shop, KEY, "Buyers", "1", TOKEN, segment_of([]), False, NOW)
    own = f"/apps/{shop.id}/audiences/{audience.id}"
    assert "Not pushed yet." in (await member.get(own)).text
    for _ in range(2):
        assert (await member.post(f"{own}/push")).headers["location"] == own
    assert len(await audiences.runs(audience)) == 1
    page = (await member.get(own)).text
    assert ">queued<" in page
    assert 'hx-trigger="every 3s"' in page
    taken = await audiences.unscoped_take_run(KEY, datetime.now(UTC))
    assert taken is not None
    taken = await audiences.sent(taken, b"a" * 16, 1234, 1300, 1299, 7)
    assert taken is not None
    await audiences.finish(taken, "Meta does not answer.")
    panel = (await member.get(f"{own}/runs", headers={"HX-Request": "true"})).text
    assert "<html" not in panel
    for shown in (">failed<", "Meta does not answer.", ">1,234<", ">1,300<", ">1,299<", ">7<"):
        assert shown in panel
    assert "every 3s" not in panel
    assert ">failed<" in (await member.get(f"/apps/{shop.id}/audiences")).text


async def test_the_upload_form_is_a_file_of_hashes(
    member: httpx.AsyncClient, event_store: EventStore, shop: App
) -> None:
    for number in (1, 2):
        key = person_key(shop.id, UUID(int=number))
        await Person.insert(Person(key=key, size=1, known_at=1))
        await Identifier.insert(
            Identifier(key=identifier_key(shop.id, EMAIL_KIND, f"n{number}@example.org"), person=key)
        )
    audience = await audiences.create(shop, KEY, "Büyers & Co/..", "1", TOKEN, segment_of([]), False, NOW)
    before = datetime.now(UTC)
    reply = await member.get(f"/apps/{shop.id}/audiences/{audience.id}/download")
    assert reply.headers["content-disposition"] in {
        f'attachment; filename="buyers-co-{at:%Y-%m-%d}.csv"' for at in (before, datetime.now(UTC))
    }
    assert "example.org" not in reply.text
    assert list(csv.reader(io.StringIO(reply.text))) == [
        ["email", "uid", "extern_id"],
        [email_hash("n1@example.org"), "", ""],
        [email_hash("n2@example.org"), "", ""],
    ]
    nobody = await audiences.create(shop, KEY, "None", "1", TOKEN, segment_of([("did", "nothing")]), False, NOW)
    reply = await member.get(f"/apps/{shop.id}/audiences/{nobody.id}/download")
    assert reply.text == "email,uid,extern_id\r\n"


async def test_an_upload_form_that_cannot_be_begun_is_no_file(
    member: httpx.AsyncClient, event_store: EventStore, shop: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody's is not looked for in the event store, which is asked only while the file is written."""

    async def away(*_: Any) -> list[dict[str, Any]]:
        raise EventStoreUnavailable("away")

    monkeypatch.setattr(event_store, "query", away)
    reply = await member.get(f"/apps/{shop.id}/audiences/download")
    assert (reply.status_code, reply.headers["content-type"]) == (503, "text/html; charset=utf-8")
