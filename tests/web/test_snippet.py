"""The snippet generator as people use it: with and without htmx, as owner, viewer and stranger."""

import html
import json
import re
import time
from html.parser import HTMLParser
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import UUID, uuid4

import httpx
import pytest

from server.event_store import EventStore
from server.journal import hit_id
from tenants import tokens
from tenants.events import event_row
from tenants.hits import Event, decode
from tenants.tables import App, Tenant
from tenants.targets import TARGETS
from web.guards import MOST_PARAMETERS
from web.pages.snippet import TARGET_NAMES, WHERE_TO, address_of, read_form

HTMX = {"HX-Request": "true"}
SEED = '{"method": "email", "page": "signup.html", "email": "john.doe@example.com"}'


class Page(HTMLParser):
    """The form's state as a browser would send it, and the texts of elements with an id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fields: list[tuple[str, str]] = []
        self.texts: dict[str, str] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[tuple[str, str | None]] = []
        self._select: tuple[str, str | None] | None = None
        self._textarea: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        name, value = given.get("name"), given.get("value") or ""
        if tag == "input" and name and (given.get("type") != "radio" or "checked" in given):
            self.fields.append((name, value))
        elif tag == "select":
            self._select = (name or "", None)
        elif tag == "option" and self._select and ("selected" in given or self._select[1] is None):
            self._select = (self._select[0], given.get("value"))
        elif tag == "textarea":
            self._textarea = name
        if tag not in ("input", "img", "meta", "link", "br", "hr"):
            self._open.append((tag, given.get("id")))

    def handle_endtag(self, tag: str) -> None:
        if tag == "select" and self._select:
            self.fields.append((self._select[0], self._select[1] or ""))
            self._select = None
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._textarea:
            self.fields.append((self._textarea, data.removeprefix("\n")))
            self._textarea = None
        for _, name in self._open:
            if name:
                self.texts[name] = self.texts.get(name, "") + data

    def code(self, number: int = 1) -> str:
        return self.texts[f"code-{number}"]

    def image(self) -> str:
        (source,) = [given["src"] for tag, given in self.tags if tag == "img"]
        assert source is not None
        return source


def path(app: App, **asked: str) -> str:
    return f"/apps/{app.id}/snippet" + (f"?{urlencode(asked)}" if asked else "")


async def opened(browser: httpx.AsyncClient, address: str, status: int = 200, **headers: str) -> Page:
    reply = await browser.get(address, headers={key.replace("_", "-"): value for key, value in headers.items()})
    assert reply.status_code == status, reply.text
    return Page(reply.text)


def values_of(url: str) -> dict[str, Any]:
    event = decode("event", urlsplit(url).query.encode(), "USD", privacy=False)
    assert isinstance(event, Event)
    return json.loads(event.params) | ({"email": event.email} if event.email else {})


# --- Stories


async def test_the_page_opens_with_a_snippet_that_works(owner: httpx.AsyncClient, shop: App) -> None:
    page = await opened(owner, path(shop))
    (token,) = [each.token for each in await tokens.list_tokens(shop)]
    assert f"http://onepx.test/{token}/event.gif?event_token=page_view" in page.code()


async def test_the_seed_example_comes_out(owner: httpx.AsyncClient, shop: App) -> None:
    page = await opened(owner, path(shop, event_token="signup", json=SEED, **{"as": "json"}))
    source = re.search('src="([^"]*)"', page.code())
    assert source is not None
    assert values_of(html.unescape(source[1])) == json.loads(SEED)
    assert "john.doe@example.com" in page.texts["result"]


async def test_the_address_reopens_the_same_form(owner: httpx.AsyncClient, shop: App) -> None:
    asked = [
        ("category", "revenue"),
        ("event_token", " chéck & out "),
        ("amount", "1.234,56"),
        ("currency", "KWD"),
        ("event_id", "o&1"),
        ("as", "rows"),
        *[("name", "plan"), ("type", "text"), ("value", "a&b=+%41 \"'<>")],
        *[("name", "list"), ("type", "json"), ("value", '["a", {"b": null}]')],
        ("encoding", "url"),
        ("target", "python"),
    ]
    reply = await owner.get(f"{path(shop)}?{urlencode(asked)}")
    page = Page(reply.text)
    sent = [(name, value) for name, value in page.fields if name != "link"]
    assert sorted(sent) == sorted(asked)
    link = html.unescape(re.search(r'<a href="([^"]*)">Link to this snippet', reply.text)[1])  # type: ignore[index]
    assert sorted(parse_qsl(urlsplit(link).query, keep_blank_values=True)) == sorted(asked)
    assert Page((await owner.get(link)).text).code() == page.code()


async def test_what_typing_changes_is_put_in_beside_what_is_typed(owner: httpx.AsyncClient, shop: App) -> None:
    asked = {"event_token": "", "as": "rows", "name": "$a", "type": "text", "value": "1", "target": "html"}
    reply = await owner.get(path(shop, **asked), headers=HTMX)
    assert "<form" not in reply.text
    assert "<html" not in reply.text
    assert re.search(
        r'id="notes-event_token"[^>]*hx-swap-oob="innerHTML">\s*<p class="error">Enter what happened', reply.text
    )
    assert "There is no snippet yet" in reply.text
    reply = await owner.get(path(shop, **asked | {"event_token": "t"}), headers=HTMX)
    assert re.search(r'id="notes-event_token"[^>]*></div>', reply.text)
    assert re.search(r'id="notes-row-0"[^>]*>\s*<p class="warning">It is ignored', reply.text)
    assert "HX-Retarget" not in reply.headers
    replaced = urlsplit(reply.headers["HX-Replace-Url"])
    assert dict(parse_qsl(replaced.query))["name"] == "$a"


async def test_more_values_than_a_form_can_send_stay_json(owner: httpx.AsyncClient, shop: App) -> None:
    values = {f"n{number}": 1 for number in range(340)}
    asked = path(shop, event_token="t", **{"as": "json", "to": "rows"}, json=json.dumps(values), encoding="url")
    page = Page((await owner.get(asked)).text)
    sent = dict(page.fields)
    assert (json.loads(sent["json"]), "name" in sent) == (values, False)
    assert len(page.fields) < MOST_PARAMETERS


async def test_of_a_long_form_no_answer_has_a_head_that_proxies_refuse(
    owner: httpx.AsyncClient, anonymous: httpx.AsyncClient, shop: App
) -> None:
    for length in (1_000, 2_000, 2_900, 4_000, 5_500):
        asked = path(shop, event_token="t", **{"as": "json"}, json=json.dumps({"a": length * "x"}))
        typed = await owner.get(asked, headers=HTMX)
        assert "This hit will be recorded as" in typed.text
        away = await anonymous.get(asked)
        assert away.headers["location"].startswith("/login")
        login = await anonymous.post("/login", data={"next": asked, "email": "ann@example.org", "password": "wrong"})
        for reply in (typed, away, login):
            # nginx's default, without what a server adds.
            assert sum(len(name) + len(value) + 4 for name, value in reply.headers.raw) < 3_900
        # The shorter ones are where they were.
        assert ("HX-Replace-Url" in typed.headers) == (length < 2_900)
        assert ("next=" in away.headers["location"]) == (length < 2_900)


@pytest.mark.parametrize("headers", [{}, HTMX])
async def test_rows_are_added_and_removed(owner: httpx.AsyncClient, shop: App, headers: dict[str, str]) -> None:
    reply = await owner.get(
        path(shop, event_token="t", **{"as": "rows"}, name="a", type="number", value="1", add="1"), headers=headers
    )
    page = Page(reply.text)
    assert [value for name, value in page.fields if name == "name"] == ["a", ""]
    assert reply.headers.get("HX-Retarget") == ("#generator" if headers else None)
    assert ("input", True) in [(tag, given.get("id") == "name-1" and "autofocus" in given) for tag, given in page.tags]
    reply = await owner.get(f"{path(shop)}?{urlencode([*page.fields, ('drop', '0')])}", headers=headers)
    assert [value for name, value in Page(reply.text).fields if name == "name"] == [""]


async def test_rows_and_json_are_views_of_each_other(owner: httpx.AsyncClient, shop: App) -> None:
    typed = {"a": "x", "n": 1.5, "t": True, "z": None, "l": [1, {"b": "c\n"}], "m": "two\nlines"}
    page = await opened(owner, path(shop, event_token="t", json=json.dumps(typed), to="rows", **{"as": "json"}))
    assert [value for name, value in page.fields if name == "type"] == [
        "text",
        "number",
        "boolean",
        "null",
        "json",
        "json",
    ]
    page = await opened(owner, f"{path(shop)}?{urlencode([*page.fields, ('to', 'json')])}")
    assert json.loads(dict(page.fields)["json"]) == typed


async def test_no_control_takes_the_place_of_a_method_of_its_form(owner: httpx.AsyncClient, shop: App) -> None:
    # A button named "remove" was what form.remove gave, and htmx could not put the new form in.
    page = await opened(owner, path(shop, **{"as": "rows"}, name="a", type="text", value="b", target="klaviyo"))
    names = {given.get(key) for _, given in page.tags for key in ("name", "id")}
    methods = {"remove", "append", "after", "before", "closest", "contains", "matches", "submit", "reset", "children"}
    methods |= {"elements", "attributes", "dispatchEvent", "getAttribute", "parentNode", "replaceWith", "style"}
    assert not names & methods


async def test_broken_json_stays_as_it_was_typed(owner: httpx.AsyncClient, shop: App) -> None:
    broken = '{\n  "a": 1,\n}'
    page = await opened(owner, path(shop, event_token="t", json=broken, to="rows", **{"as": "json"}))
    assert dict(page.fields)["json"] == broken
    assert "Line 2, column 9: a comma too many" in page.texts["notes-json"]
    assert "^" in page.texts["notes-json"]


async def test_a_merge_tag_is_put_where_it_belongs(owner: httpx.AsyncClient, shop: App) -> None:
    asked = {"event_token": "t", "target": "mailchimp", "tag": "Reader's e-mail"}
    page = await opened(owner, path(shop, **asked, name="", type="text", value="", **{"as": "rows"}))
    assert [each for each in page.fields if each[0] in ("name", "value")] == [("name", "email"), ("value", "*|EMAIL|*")]
    assert "*|URL:EMAIL|*" in page.code()
    page = await opened(owner, path(shop, **asked, json='{"a": 1}', **{"as": "json"}))
    assert json.loads(dict(page.fields)["json"]) == {"a": 1, "email": "*|EMAIL|*"}
    page = await opened(owner, path(shop, event_token="t", target="gtm", tag="Order value"))
    assert dict(page.fields)["amount"] == "{{DLV - ecommerce.value}}"
    assert "revenue.gif" in page.code()


async def test_an_app_with_several_tokens_asks_which(owner: httpx.AsyncClient, alice: Tenant, shop: App) -> None:
    (first,) = [each.token for each in await tokens.list_tokens(shop)]
    second = await tokens.issue(shop)
    page = await opened(owner, path(shop, event_token="t", token=first, target="url"))
    assert f"/{first}/" in page.code()
    assert dict(page.fields)["token"] == first
    page = await opened(owner, path(shop, event_token="t", token="0" * 24, target="url"))
    assert f"/{second}/" in page.code()
    await tokens.revoke(alice, second)
    page = await opened(owner, path(shop, event_token="t", token=second, target="url"))
    assert f"/{first}/" in page.code()
    await tokens.revoke(alice, first)
    assert "no live token" in (await owner.get(path(shop))).text


async def test_nothing_typed_becomes_markup(owner: httpx.AsyncClient, shop: App) -> None:
    evil = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}"
    for target in TARGETS:
        for view in ("rows", "json"):
            asked = {"event_token": evil, "event_id": evil, "amount": evil, "currency": evil, "token": evil}
            asked |= {"as": view, "name": evil, "type": evil, "value": evil, "json": evil, "target": target}
            page = await opened(owner, path(shop, **asked))
            assert "script" not in [
                tag for tag, given in page.tags if not (given.get("src") or "").startswith("/static/")
            ]
            assert "img" not in [tag for tag, _ in page.tags]


# --- Test hits


async def test_a_test_hit_is_loaded_and_what_it_became_is_shown(
    owner: httpx.AsyncClient, shop: App, event_store: EventStore
) -> None:
    form = {"category": "revenue", "event_token": "buy", "amount": "25.00", "name": "a", "type": "text", "value": "<b>"}
    reply = await owner.post(f"{path(shop)}/test", data={**form, "as": "rows"}, headers=HTMX)
    assert reply.status_code == 200
    page = Page(reply.text)
    image = urlsplit(page.image())
    sent = dict(parse_qsl(image.query))
    assert (sent["amount"], sent["event_token"], image.netloc) == ("2500", "buy", "onepx.test")
    (asked,) = [given["hx-get"] for _, given in page.tags if "hx-get" in given]
    assert asked is not None
    assert f"/test/{sent['cb']}?" in asked
    waiting = await owner.get(asked, headers=HTMX)
    assert "every 1s" in waiting.text

    event = decode("revenue", image.query.encode(), "EUR", privacy=False)
    assert isinstance(event, Event)
    now = int(time.time() * 1000)
    row = event_row(event, shop.id.int, now, hit_id(1, 0, now), "revenue", 0, "", b"UA", b"", b"")
    await event_store.insert("events", [row], uuid4().hex)
    recorded = await owner.get(asked, headers=HTMX)
    assert "Recorded." in recorded.text
    assert "25.00 EUR" in recorded.text
    assert "&lt;b&gt;" in recorded.text
    assert "hx-trigger" not in recorded.text
    assert "Recorded." in (await owner.get(asked)).text


async def test_without_script_a_test_hit_has_pages_of_its_own(owner: httpx.AsyncClient, shop: App) -> None:
    reply = await owner.post(f"{path(shop)}/test", data={"event_token": "buy"})
    page = Page(reply.text)
    assert "event_token=buy&cb=" in page.image()
    (address,) = [
        given["href"] for tag, given in page.tags if tag == "a" and "/snippet/test/" in (given.get("href") or "")
    ]
    assert address is not None
    assert "Waiting for what becomes of it" in (await owner.get(address)).text
    late = re.sub(r"sent=\d+", "sent=1700000000000", address)
    assert "Nothing has arrived" in (await owner.get(late)).text
    for wrong in ("x", "9" * 40, "-5"):
        assert (await owner.get(re.sub(r"sent=\d+", f"sent={wrong}", address))).status_code == 200


@pytest.mark.parametrize("headers", [{}, HTMX])
async def test_a_draft_with_errors_sends_nothing(owner: httpx.AsyncClient, shop: App, headers: dict[str, str]) -> None:
    reply = await owner.post(f"{path(shop)}/test", data={"event_token": ""}, headers=headers)
    assert reply.status_code == 422
    assert "<img" not in reply.text


# --- Who may


async def test_a_viewer_builds_snippets_but_sends_no_hit(viewer: httpx.AsyncClient, shop: App) -> None:
    reply = await viewer.get(path(shop, event_token="t"))
    assert reply.status_code == 200
    assert "Send a test hit" not in reply.text
    assert (await viewer.post(f"{path(shop)}/test", data={"event_token": "t"})).status_code == 403


async def test_a_member_sends_a_hit(member: httpx.AsyncClient, shop: App) -> None:
    assert (await member.post(f"{path(shop)}/test", data={"event_token": "t"})).status_code == 200


async def test_another_tenants_app_is_not_found(stranger: httpx.AsyncClient, shop: App) -> None:
    for address in (path(shop), f"{path(shop)}/test/abcdefgh?sent=1"):
        assert (await stranger.get(address)).status_code == 404
    assert (await stranger.post(f"{path(shop)}/test", data={"event_token": "t"})).status_code == 404
    assert (await stranger.get(f"/apps/{uuid4()}/snippet")).status_code == 404


async def test_somebody_not_logged_in_is_asked_to(anonymous: httpx.AsyncClient, shop: App) -> None:
    reply = await anonymous.get(path(shop, event_token="t"))
    assert reply.status_code == 303
    assert reply.headers["location"].startswith("/login?next=%2Fapps%2F")


# --- Cases


def test_every_target_has_a_name_and_a_place() -> None:
    assert tuple(TARGET_NAMES) == tuple(WHERE_TO) == TARGETS


@pytest.mark.parametrize(
    "pairs",
    [
        [("category", "x"), ("target", "x"), ("encoding", "x"), ("as", "x")],
        [("name", "a")],
        [("name", "a"), ("type", "nonsense"), ("value", "v"), ("type", "text")],
        [("json", "{" * 9000), ("as", "json")],
        [("name", "x"), ("type", "text"), ("value", "")] * 500,
    ],
)
def test_any_query_is_a_form_that_its_address_reopens(pairs: list[tuple[str, str]]) -> None:
    form = read_form(pairs)
    app = App(id=UUID(int=1), tenant=1)
    again = read_form(parse_qsl(urlsplit(address_of(app, form)).query, keep_blank_values=True))
    assert again == form
