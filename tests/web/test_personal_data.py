"""A person exported and deleted, by page and API: for members and owners, of their own tenant's app, with a receipt."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from application import Site

from server.event_store import EventStore
from tenants import apps, audiences, keys
from tenants.access_tokens import WaitingToken, keep
from tenants.deletions import delete_person, list_deletions
from tenants.events import event_row
from tenants.hits import Event, decode
from tenants.identifiers import known, person_key
from tenants.identities import Sighting
from tenants.people import identify
from tenants.reports.segments import Segment
from tenants.secrets import SecretKey
from tenants.tables import App, Deletion, Person, Tenant
from web.api.examples import EXAMPLES
from web.rendering import NOTICES

ANN = "ann+news@example.org"


@pytest.fixture
async def ann(shop: App, event_store: EventStore) -> UUID:
    """Somebody with an address, an id, and three events, one of them from before."""
    cookie = uuid4()
    at = int((datetime.now(UTC) - timedelta(minutes=1)).timestamp() * 1000)
    rows: list[Any] = []
    sent: list[tuple[str, dict[str, Any]]] = [
        ('event_token=view&params={"page":"/"}', {}),
        ('event_token=signup&params={"email":"ann%2Bnews@example.org","n":[1,{"a":"\\u00e9\\n"}]}', {"email": ANN}),
        ('event_token=buy&amount=2500&params={"uuid":7,"n":12345678901234567}', {"uuid": "7"}),
    ]
    for number, (query, told) in enumerate(sent):
        category = "revenue" if "amount" in query else "event"
        found = decode(category, query.encode(), "EUR", privacy=False)
        assert isinstance(found, Event)
        named = uuid4()
        hit = Sighting(named.bytes, at + number, shop.id.bytes, cookie.bytes, False, **told)
        (person,) = await identify([hit], "journal", str(number), False, at)
        row = event_row(found, shop.id.int, at + number, named.int, category, cookie.int, "192.0.2.0/24", b"", b"", b"")
        rows.append((*row[:-2], cookie.int, bool(person)))
    await event_store.insert("events", rows, uuid4().hex)
    return cookie


async def test_the_export_has_all_that_is_known(owner: httpx.AsyncClient, shop: App, ann: UUID) -> None:
    reply = await owner.get(f"/apps/{shop.id}/people/{ann}/export")
    assert reply.status_code == 200
    assert reply.headers["content-disposition"] == f'attachment; filename="person-{ann}.json"'
    assert reply.headers["cache-control"] == "no-store"
    found = reply.json()
    assert list(found) == ["app", "exported_at", "person", "properties", "events"]
    assert found["person"] == {
        "id": str(ann),
        "known_at": found["person"]["known_at"],
        "emails": [ANN],
        "uuids": ["7"],
        "fbids": [],
        "visitors": [str(ann)],
        "merged": [],
        "access_tokens_waiting_since": [],
    }
    assert found["properties"] == [
        {"field": "n", "value": 12345678901234567, "received_at": found["events"][2]["received_at"]},
        # Of before they were known, and not collected yet.
        {"field": "page", "value": "/", "received_at": found["events"][0]["received_at"]},
    ]
    view, signup, buy = found["events"]
    assert [view["params"], signup["params"]] == [{"page": "/"}, {"n": [1, {"a": "é\n"}]}]
    assert (buy["amount"], buy["currency"], buy["uuid"]) == (2500, "EUR", "7")
    assert signup["email"] == ANN
    assert signup["network"] == "192.0.2.0/24"
    assert "email" in signup["query"]
    columns = {
        *("app_id", "received_at", "id", "category", "event_token", "event_id", "warnings", "visitor_id", "person_id"),
        *("identified", "fbid", "user_agent", "referrer_host", "sec_purpose", "browser", "os", "device", "bot"),
        *("mail_proxy", "country"),
    }
    assert columns <= view.keys()
    example = EXAMPLES["export_person"]
    assert list(example) == list(found)
    assert list(example["person"]) == list(found["person"])
    assert list(example["events"][0]) == list(view)
    assert list(example["properties"][0]) == list(found["properties"][0])


async def test_the_export_tells_of_tokens_that_wait_and_not_what_they_are(
    owner: httpx.AsyncClient, alice: Tenant, shop: App, ann: UUID
) -> None:
    other_shop, _ = await apps.create_app(alice, "Another shop")
    at = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp() * 1000)
    bob = uuid4()
    for app, email, visitor, person in (
        (shop, ANN, uuid4(), ann),
        (shop, None, uuid4(), ann),
        (shop, None, ann, ann),
        # Of hers the browser alone.
        (shop, "bob@example.org", ann, bob),
        (other_shop, ANN, ann, ann),
    ):
        token = WaitingToken(app.id, f"EAAB{at}", uuid4().bytes, at, visitor.bytes, email=email, person=person.bytes)
        await keep(SecretKey("a secret of at least 32 characters", "facebook"), [token], at)
        at += 60_000
    reply = await owner.get(f"/apps/{shop.id}/people/{ann}/export")
    assert reply.json()["person"]["access_tokens_waiting_since"] == [f"2026-03-01T00:0{n}:00Z" for n in range(3)]
    assert "EAAB" not in reply.text


async def test_an_export_of_many_events_is_whole(owner: httpx.AsyncClient, shop: App, event_store: EventStore) -> None:
    cookie, count = uuid4(), 30_000
    await event_store.change(
        "INSERT INTO events (app_id, received_at, id, category, event_token, params_text, visitor_id, person_id) "
        "SELECT {app:UUID}, now64(3) - number, generateUUIDv4(number), 'event', toString(number), "
        '\'{"a":"\\\\n},{"}\', {person:UUID}, {person:UUID} FROM numbers({count:UInt32})',
        {"app": str(shop.id), "person": str(cookie), "count": count},
    )
    reply = await owner.get(f"/apps/{shop.id}/people/{cookie}/export")
    found = json.loads(reply.content)
    assert found["person"]["known_at"] is None
    assert [event["event_token"] for event in found["events"]] == [str(n) for n in reversed(range(count))]
    assert {event["params"]["a"] for event in found["events"]} == {"\n},{"}


async def test_who_is_in_audiences_at_meta_is_to_be_taken_out_there(
    member: httpx.AsyncClient, shop: App, ann: UUID
) -> None:
    address, says = f"/apps/{shop.id}/people/{ann}/delete", "take them out of your Custom Audience there"
    assert says not in (await member.get(address)).text
    await audiences.create(shop, SecretKey("s" * 32, "t"), "All", "12", "EAAB" * 8, Segment(), False, datetime.now(UTC))
    assert says in (await member.get(address)).text
    assert says not in (await member.get(f"/apps/{shop.id}/people/{uuid4()}/delete")).text


async def test_a_person_is_deleted_once_it_was_typed_who(
    member: httpx.AsyncClient, viewer: httpx.AsyncClient, shop: App, ann: UUID
) -> None:
    address = f"/apps/{shop.id}/people/{ann}/delete"
    page = await member.get(address)
    assert f"Type this to delete them: {ANN}" in page.text
    for typed in ("", "delete", "Shop", ANN + "x"):
        reply = await member.post(address, data={"sure": typed})
        assert reply.status_code == 422
        assert "Type it as it stands above." in reply.text
    assert await Deletion.count() == 0
    assert (await viewer.get(address)).status_code == 403
    assert (await viewer.get(f"/apps/{shop.id}/people/{ann}/export")).status_code == 403
    assert (await viewer.post(address, data={"sure": ANN})).status_code == 403
    assert await known(shop, [ann])
    reply = await member.post(address, data={"sure": f" {ANN} "})
    assert (reply.status_code, reply.headers["location"]) == (303, f"/apps/{shop.id}/settings")
    assert await known(shop, [ann]) == {}
    (deletion,) = await list_deletions(shop)
    assert NOTICES["person-deleted"] in (await member.get(f"/apps/{shop.id}/settings")).text
    for browser in (member, viewer):
        settings = await browser.get(f"/apps/{shop.id}/settings")
        assert str(deletion.id) in settings.text
        assert "being removed" in settings.text
        assert ">Member</td>" in settings.text
        assert ANN not in settings.text
        assert str(ann) not in settings.text


async def test_a_visitor_of_whom_nothing_is_known(owner: httpx.AsyncClient, shop: App, event_store: EventStore) -> None:
    found = decode("event", b"event_token=view", "EUR", privacy=False)
    assert isinstance(found, Event)
    cookie, at = uuid4(), int(datetime.now(UTC).timestamp() * 1000) - 5_000
    row = event_row(found, shop.id.int, at, uuid4().int, "event", cookie.int, "", b"", b"", b"")
    await event_store.insert("events", [row], uuid4().hex)
    address = f"/apps/{shop.id}/people/{cookie}/delete"
    assert "Type this to delete them: delete" in (await owner.get(address)).text
    for _ in range(2):  # pressed twice
        reply = await owner.post(address, data={"sure": "delete"})
        assert (reply.status_code, reply.headers["location"]) == (303, f"/apps/{shop.id}/settings")
        assert await Deletion.count() == 1
    page = (await owner.get(f"/apps/{shop.id}/people/{cookie}")).text
    assert "What is still shown here from before goes within minutes" in page
    # Whoever comes again with that cookie is deleted again.
    await Deletion.update({Deletion.requested_at: datetime.now(UTC) - timedelta(minutes=2)}, force=True)
    assert (await owner.post(address, data={"sure": "delete"})).status_code == 303
    assert await Deletion.count() == 2


async def test_another_tenants_person_is_as_one_that_does_not_exist(
    stranger: httpx.AsyncClient, owner: httpx.AsyncClient, shop: App, bob: Tenant, ann: UUID
) -> None:
    theirs, _ = await apps.create_app(bob, "Theirs")
    await Person(key=person_key(theirs.id, uuid4()), kinds=2, size=1, known_at=1).save()
    for browser, app, person in (
        (stranger, shop.id, ann),
        (stranger, theirs.id, ann),
        (owner, theirs.id, ann),
        (owner, shop.id, uuid4()),
        (owner, shop.id, str(ann).upper()),
        (owner, shop.id, "x"),
        (owner, shop.id, UUID(int=0)),
    ):
        for tail in ("export", "delete"):
            assert (await browser.get(f"/apps/{app}/people/{person}/{tail}")).status_code == 404
        assert (await browser.post(f"/apps/{app}/people/{person}/delete", data={"sure": ANN})).status_code == 404
    assert await Deletion.count() == 0
    assert await known(shop, [ann])


async def test_the_api(site: Site, alice: Tenant, bob: Tenant, shop: App, ann: UUID) -> None:
    client = await site.browser()
    # As a program sends it.
    client.headers = httpx.Headers()
    (token,) = [each.token for each in await apps.tokens.list_tokens(shop)]
    ours, theirs = [(await keys.create_key(tenant, "Program", may_delete=True))[1] for tenant in (alice, bob)]
    _, reader = await keys.create_key(alice, "Reader", app=shop)
    other, _ = await apps.create_app(alice, "Other")
    _, others = await keys.create_key(alice, "Of another app", app=other, may_delete=True)
    base = f"/api/v1/apps/{token}"

    async def ask(method: str, path: str, key: str) -> httpx.Response:
        return await client.request(method, base + path, headers={"Authorization": f"Bearer {key}"} if key else {})

    for method, path in (
        ("GET", f"/people/{ann}/export"),
        ("DELETE", f"/people/{ann}"),
        ("GET", "/deletions"),
    ):
        assert (await ask(method, path, "")).status_code == 401
        assert (await ask(method, path, "onepx_wrong")).status_code == 401
        assert (await ask(method, path, theirs)).status_code == 404
        assert (await ask(method, path, others)).status_code == 404
    refused = await ask("DELETE", f"/people/{ann}", reader)
    assert (refused.status_code, refused.json()) == (
        403,
        {"status_code": 403, "detail": "This API key only reads. Make one that may delete people, too."},
    )
    assert (await ask("GET", f"/people/{ann}/export", reader)).json()["person"]["emails"] == [ANN]
    assert await Deletion.count() == 0
    exported = (await ask("GET", f"/people/{ann}/export", ours)).json()
    assert exported["person"]["emails"] == [ANN]
    assert len(exported["events"]) == 3
    for nobody in (uuid4(), "x"):
        assert (await ask("GET", f"/people/{nobody}/export", ours)).status_code == 404
        assert (await ask("DELETE", f"/people/{nobody}", ours)).status_code == 404
    reply = await ask("DELETE", f"/people/{ann}", ours)
    assert reply.status_code == 202
    receipt = reply.json()
    assert receipt["asked_by"] == f"API key {ours[:12]}…"
    assert receipt["done_at"] is None
    assert receipt["removed"] | {"identifiers": 2, "visitors": 1, "events": 0} == receipt["removed"]
    assert (await ask("GET", "/deletions", ours)).json() == {"deletions": [receipt]}
    assert ANN not in reply.text


async def test_an_app_keeps_its_events_for_so_many_days(owner: httpx.AsyncClient, shop: App, alice: Tenant) -> None:
    address = f"/apps/{shop.id}/settings"
    sent = {"name": "Shop", "currency": "EUR", "timezone": "UTC"}

    async def kept() -> int | None:
        return (await apps.find_app(alice, str(shop.id))).retention_days

    for typed in ("0", "-1", "1.5", "x", "36501", "9" * 30, "１"):
        reply = await owner.post(address, data={**sent, "retention_days": typed})
        assert reply.status_code == 422
        assert "Days are a whole number from 1 to 36,500." in reply.text
        assert await kept() is None
    for typed, days in (("1", 1), (" 400 ", 400), ("", None), ("36500", 36_500)):
        assert (await owner.post(address, data={**sent, "retention_days": typed})).status_code == 303
        assert await kept() == days
    assert 'name="retention_days" type="text" value="36500"' in (await owner.get(address)).text


async def test_receipts_are_of_the_app(owner: httpx.AsyncClient, shop: App, bob: Tenant) -> None:
    theirs, _ = await apps.create_app(bob, "Theirs")
    deletion = await delete_person(theirs, uuid4(), "Bob", datetime.now(UTC))
    page = await owner.get(f"/apps/{shop.id}/settings")
    assert str(deletion.id) not in page.text
    assert "Deleted people" not in page.text
