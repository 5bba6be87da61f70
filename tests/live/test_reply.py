"""What a pixel answers: pixel protocol sections 1, 3 and 4, byte for byte."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen
from uuid import UUID

import pytest
from machine import SOON, App, Client, Machine, Reply, Tenant, wait_until

GIF = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")
PIXEL_HEADERS = {
    "content-type": "image/gif",
    "content-length": "43",
    "cache-control": "no-cache, no-store, must-revalidate, private, max-age=0",
    "pragma": "no-cache",
    "expires": "0",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "cross-origin",
    "access-control-allow-origin": "*",
}
# The HTTP server's own, on every reply.
SERVER_HEADERS = {"server", "date"}


def pixel_headers(reply: Reply) -> dict[str, str]:
    """Its headers without the HTTP server's own; none may come twice."""
    names = [name.lower() for name, _ in reply.headers]
    assert len(names) == len(set(names)), names
    return {name.lower(): value for name, value in reply.headers if name.lower() not in SERVER_HEADERS}


def visitor(reply: Reply) -> str:
    """The visitor id a reply gives."""
    (cookie,) = reply.all("set-cookie")
    return cookie.partition(";")[0].removeprefix("vid=")


def with_visitor(reply: Reply) -> dict[str, str]:
    return {"Cookie": f"vid={visitor(reply)}"}


def only_event(app: App) -> dict[str, Any]:
    (event,) = wait_until(app.events, SOON)
    return event


# Stories


def test_a_hit_is_readable_within_two_seconds_of_its_reply(app: App) -> None:
    params: dict[str, Any] = {
        "plan": "pro",
        "n": 1,
        "price": 1.50,
        "yes": True,
        "none": None,
        "list": [1, {"a": []}],
        "sub": {},
    }
    reply = app.hit(f"event_token=signup&params={quote(json.dumps(params))}")
    answered = time.monotonic()
    event = only_event(app)
    assert time.monotonic() - answered < SOON
    assert event == {
        "id": event["id"],
        "received_at": event["received_at"],
        "category": "event",
        "event_token": "signup",
        "amount": None,
        "currency": None,
        "event_id": None,
        "params": params,
        "person_id": visitor(reply),
        "warnings": [],
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["received_at"])


def test_revenue_and_a_rejection_are_readable_within_two_seconds(alice: Tenant) -> None:
    app = alice.app(currency="EUR")
    app.hit("event_token=buy&amount=-2500&event_id=order-1", "revenue")
    app.hit("event_token=buy&amount=25.00", "revenue")
    event = only_event(app)
    assert (event["amount"], event["currency"], event["event_id"]) == (-2500, "EUR", "order-1")
    (rejection,) = wait_until(app.rejections, SOON)
    assert (rejection["category"], rejection["reason"]) == ("revenue", "invalid_amount")
    assert rejection["query"] == "event_token=buy&amount=25.00"
    assert rejection["detail"]


def test_pages_of_events_are_newest_first_and_hold_each_event_once(app: App) -> None:
    for number in range(25):
        app.hit(f"event_token=e{number}")
    wait_until(lambda: len(app.events()) == 25, SOON)
    assert [event["event_token"] for event in app.events(limit=7)] == [f"e{n}" for n in reversed(range(25))]
    assert [event["event_token"] for event in app.events("event_token=e3")] == ["e3"]


def test_the_reply_to_a_recorded_hit_is_exact(any_app: App) -> None:
    first = any_app.hit("event_token=signup")
    assert (first.status, first.body) == (200, GIF)
    headers = pixel_headers(first)
    del headers["set-cookie"]
    assert headers == PIXEL_HEADERS
    known = any_app.hit("event_token=signup", headers=with_visitor(first))
    assert (known.status, known.body, pixel_headers(known)) == (200, GIF, PIXEL_HEADERS)


def test_a_rejected_hit_gets_the_same_reply(app: App) -> None:
    reply = app.hit("", headers=with_visitor(app.hit("event_token=a")))
    assert (reply.status, reply.body, pixel_headers(reply)) == (200, GIF, PIXEL_HEADERS)
    (rejection,) = wait_until(app.rejections, SOON)
    assert rejection["reason"] == "missing_event_token"


def test_a_new_visitor_gets_a_cookie_of_the_app(any_app: App) -> None:
    (cookie,) = any_app.hit("event_token=a").all("set-cookie")
    value, _, attributes = cookie.partition("; ")
    name, _, number = value.partition("=")
    assert name == "vid"
    assert (UUID(number).version, str(UUID(number))) == (4, number)
    assert attributes == (f"Path=/{any_app.token}; Max-Age=31536000; Secure; HttpOnly; SameSite=None; Partitioned")


@pytest.mark.parametrize(
    "template",
    ["vid={}", "a=b; vid={}", "vid={}; a=b", "a=b;vid={};c=d", "x=vid; vid={}"],
)
def test_a_known_visitor_keeps_the_id_and_gets_no_cookie(app: App, template: str) -> None:
    known = visitor(app.hit("event_token=first"))
    reply = app.hit("event_token=second", headers={"Cookie": template.format(known)})
    assert reply.all("set-cookie") == []
    events = wait_until(lambda: app.events("event_token=second"), SOON)
    assert [event["person_id"] for event in events] == [known]


def test_the_cookie_may_stand_in_either_of_two_headers(app: App) -> None:
    """As proxies that speak HTTP/2 hand them on."""
    known = visitor(app.hit("event_token=first"))
    for headers in ({"Cookie": f"vid={known}", "cookie": "a=b"}, {"Cookie": "a=b", "cookie": f"vid={known}"}):
        assert app.hit("event_token=second", headers=headers).all("set-cookie") == []
    wait_until(lambda: len(app.events("event_token=second")) == 2, SOON)
    assert {event["person_id"] for event in app.events("event_token=second")} == {known}


@pytest.mark.parametrize(
    "made_up",
    [
        "vid=",
        "vid=1",
        "vid=00000000-0000-0000-0000-000000000000",
        "vid=11111111-1111-1111-1111-111111111111",
        "vid=C23365E5-81FE-4BB7-8DEB-87AD4E1DBCB7",
        "vid=c23365e5-81fe-4bb7-8deb-87ad4e1dbcb7x",
        "xvid=c23365e5-81fe-4bb7-8deb-87ad4e1dbcb7",
        "a=vid=c23365e5-81fe-4bb7-8deb-87ad4e1dbcb7",
        'vid="c23365e5-81fe-4bb7-8deb-87ad4e1dbcb7"',
    ],
)
def test_a_cookie_that_is_not_ours_is_replaced(app: App, made_up: str) -> None:
    new = visitor(app.hit("event_token=a", headers={"Cookie": made_up}))
    assert new not in made_up
    assert only_event(app)["person_id"] == new


def test_two_apps_never_share_a_visitor(alice: Tenant) -> None:
    one, other = alice.app(), alice.app()
    first, second = one.hit("event_token=a"), other.hit("event_token=a")
    assert visitor(first) != visitor(second)
    # A browser sends a cookie back only below its path, so never to the other app.
    for reply, app in ((first, one), (second, other)):
        assert f"Path=/{app.token};" in reply.all("set-cookie")[0]


@pytest.mark.parametrize(
    "signal", [{"Sec-GPC": "1"}, {"DNT": "1"}, {"DNT": "1", "Sec-GPC": "0"}, {"Sec-GPC": "0", "DNT": "1"}]
)
def test_with_a_privacy_signal_no_cookie_is_set_or_read(app: App, signal: dict[str, str]) -> None:
    known = with_visitor(app.hit("event_token=before"))
    params = quote('{"email": "ann@example.org", "plan": "pro"}')
    for headers in (signal, signal | known):
        reply = app.hit(f"event_token=private&params={params}&debug=1", headers=headers)
        assert reply.all("set-cookie") == []
        assert reply.all("x-onepx-warnings") == ["privacy_signal"]
    wait_until(lambda: len(app.events("event_token=private")) == 2, SOON)
    for event in app.events("event_token=private"):
        assert (event["person_id"], event["params"]) == (None, {"plan": "pro"})


@pytest.mark.parametrize("signal", [{"Sec-GPC": "0"}, {"DNT": "0"}, {"DNT": "unspecified"}])
def test_no_privacy_signal_no_difference(any_app: App, signal: dict[str, str]) -> None:
    assert any_app.hit("event_token=a", headers=signal).all("set-cookie") != []


def test_what_came_with_the_request_is_stored_but_not_with_a_privacy_signal(machine: Machine, shop: App) -> None:
    machine.start()
    sent = {
        "User-Agent": "Mozilla/5.0 (test)",
        "Referer": "https://Shop.example:8443/basket?user=ann@example.org",
        "Sec-Purpose": "prefetch",
    }
    shop.hit("event_token=open", headers=sent)
    shop.hit("event_token=private", headers=sent | {"Sec-GPC": "1"})
    wait_until(lambda: len(shop.events()) == 2, SOON)
    assert machine.process.stop() == 0
    rows = machine.stored(
        "SELECT event_token, network, user_agent, referrer_host, sec_purpose, toString(visitor_id) LIKE '00000000-%' "
        "FROM events ORDER BY event_token"
    )
    assert rows == [
        ["open", "127.0.0.0/24", "Mozilla/5.0 (test)", "shop.example", "prefetch", 0],
        ["private", "", "", "shop.example", "prefetch", 1],
    ]


def test_head_answers_like_get_without_a_body_and_records_nothing(app: App) -> None:
    known = with_visitor(app.hit("event_token=get"))
    reply = app.hit("event_token=head", method="HEAD", headers=known)
    assert (reply.status, reply.body, pixel_headers(reply)) == (200, b"", PIXEL_HEADERS)
    client = app.tenant.machine.process.client
    # The connection is still in step: no body followed.
    assert client.unread == b""
    app.hit("event_token=after")
    wait_until(lambda: len(app.events()) == 2, SOON)
    assert {event["event_token"] for event in app.events()} == {"get", "after"}


def test_head_of_an_export_is_answered_without_reading_it(app: App) -> None:
    app.hit("event_token=a&params=%7B%22email%22%3A%22ann%40example.org%22%7D")
    people = f"/api/v1/apps/{app.token}/people"
    wait_until(lambda: app.tenant.get(people).json()["people"], SOON)
    path = f"{people}/{app.tenant.get(people).json()['people'][0]['id']}/export"
    client = app.tenant.machine.process.client
    # More often than exports may run at once.
    for _ in range(6):
        head = client.send(path, "HEAD", {"Authorization": f"Bearer {app.tenant.key}"})
        assert (head.status, head.body, client.unread) == (200, b"", b"")
    key = {"Authorization": f"Bearer {app.tenant.key}"}
    with urlopen(Request(f"http://127.0.0.1:{app.tenant.machine.process.port}{path}", headers=key)) as reply:
        assert json.load(reply)["person"]["emails"] == ["ann@example.org"]


def test_head_on_a_page_answers_like_get_without_a_body(shared: Machine) -> None:
    client = shared.process.client
    for path, status in (("/login", 200), ("/apps", 303), ("/nothing-here", 404), ("/api/docs/openapi.json", 200)):
        got, head = client.send(path), client.send(path, "HEAD")
        assert (got.status, head.status, head.body, client.unread) == (status, status, b"", b"")
        assert pixel_headers(head) == pixel_headers(got)


@pytest.mark.parametrize(("target", "status"), [("?" + "a&" * 1_000, 414), ("%00", 404), ("/" + 1_000 * "a", 404)])
def test_what_no_page_is_asked_is_refused_in_the_words_of_whoever_asks(
    shared: Machine, target: str, status: int
) -> None:
    page, api = shared.process.get(f"/apps{target}"), shared.process.get(f"/api/v1/apps{target}")
    assert (page.status, api.status) == (status, status)
    assert page.all("content-type") == ["text/plain; charset=utf-8"]
    assert api.all("content-type") == ["application/json"]
    assert api.json() == {"status_code": status, "detail": page.body.decode().strip()}
    assert page.all("cache-control") == api.all("cache-control") == ["no-store"]


def test_options_answers_cors(any_app: App) -> None:
    reply = any_app.hit("event_token=a", method="OPTIONS", headers={"Origin": "https://shop.example"})
    assert (reply.status, reply.body) == (204, b"")
    assert reply.all("access-control-allow-origin") == ["*"]
    assert reply.all("access-control-allow-methods") == ["GET, HEAD, OPTIONS"]
    assert reply.all("set-cookie") == []


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"])
def test_other_methods_are_405_with_allow(any_app: App, method: str) -> None:
    reply = any_app.hit("event_token=a", method=method)
    assert reply.status == 405
    assert reply.all("allow") == ["GET, HEAD, OPTIONS"]
    assert reply.all("content-type")[0].startswith("text/plain")
    assert reply.all("set-cookie") == []
    assert reply.all("access-control-allow-origin") == ["*"]


def is_plain_404(reply: Reply) -> bool:
    """404, no image, one sentence, which scripts on other sites may read."""
    if reply.status != 404 or reply.all("set-cookie") or not reply.all("content-type")[0].startswith("text/plain"):
        return False
    if reply.all("access-control-allow-origin") != ["*"]:
        return False
    return re.fullmatch(r"[A-Z][^\n]{20,}\.\n", reply.body.decode()) is not None


@pytest.mark.parametrize("category", ["events", "Event", "page", "", "event.gif"])
def test_an_unknown_category_is_404_without_an_image(any_app: App, category: str) -> None:
    assert is_plain_404(any_app.hit("event_token=a", category))


@pytest.mark.parametrize(
    "token",
    [
        *("000000000000000000000000", "abc", "0" * 23, "0" * 25, "G" * 24, "ABCDEF012345678901234567", "%00" * 24),
        *("é" * 24, "ab/cd", "ab%2Fcd", ""),
    ],
)
def test_an_unknown_or_malformed_token_is_404_without_an_image(shared: Machine, token: str) -> None:
    assert is_plain_404(shared.process.get(f"/{token}/event.gif?event_token=a"))
    assert is_plain_404(shared.process.get(f"/{token}/revenue.gif"))


def test_a_revoked_token_is_404_without_an_image(alice: Tenant) -> None:
    app = alice.app()
    assert app.hit("event_token=a").status == 200
    alice.revoke(app)
    wait_until(lambda: is_plain_404(app.hit("event_token=a")), SOON)


def test_debug_tells_what_became_of_the_hit(app: App) -> None:
    def told(query: str, category: str = "event") -> tuple[list[str], list[str]]:
        reply = app.hit(query + "&debug=1", category)
        assert (reply.status, reply.body) == (200, GIF)
        return reply.all("x-onepx-result"), reply.all("x-onepx-warnings")

    assert told("event_token=a") == (["recorded"], [])
    assert told("event_token=") == (["rejected; reason=missing_event_token"], [])
    assert told("event_token=" + "x" * 20_000) == (["rejected; reason=query_too_long"], [])
    assert told("event_token=a", "revenue") == (["rejected; reason=missing_amount"], [])
    # Immediately one after the other.
    assert told("event_token=a&amount=1&event_id=order-1", "revenue") == (["recorded"], [])
    assert told("event_token=a&amount=1&event_id=order-1", "revenue") == (["duplicate"], [])
    assert told("event_token=a&event_id=order-1") == (["recorded"], []), "another category"
    assert told("event_token=a&params=nonsense") == (["recorded"], ["invalid_params"])
    ignored = quote('{"$a": 1, "email": "no address"}')
    assert told(f"event_token=a&params={ignored}") == (["recorded"], ["ignored_fields,invalid_email"])
    # The hits count all the same.
    wait_until(lambda: (len(app.events()), len(app.rejections())) == (5, 3), SOON)


def test_without_debug_nothing_is_told(any_app: App) -> None:
    for query in ("event_token=a", "event_token=a&debug=0", "event_token=a&debug=", "event_token=debug=1"):
        assert any_app.hit(query).all("x-onepx-result") == []


def test_of_many_debugging_hits_at_once_each_hears_of_its_own(app: App) -> None:
    def told(query: str) -> str:
        client = Client(app.tenant.machine.process.port)
        try:
            return client.send(app.target(query + "&debug=1")).all("x-onepx-result")[0]
        finally:
            client.close()

    with ThreadPoolExecutor(20) as senders:
        results = list(senders.map(told, ["event_token=a&event_id=same", "event_token="] * 10))
    assert sorted(results[0::2]) == ["duplicate"] * 9 + ["recorded"]
    assert results[1::2] == ["rejected; reason=missing_event_token"] * 10
