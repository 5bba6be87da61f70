"""An app's pages over real events: panels and whole pages, filters, live hits, export."""

import asyncio
import csv
import html
import io
import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Literal
from urllib.parse import quote, urlencode

import httpx
import pytest

from server.digest import traffic_rows
from server.event_store import EventStore, EventStoreUnavailable
from tenants.apps import change_app, create_app
from tenants.erasures import unscoped_expire
from tenants.errors import Busy
from tenants.events import Row, event_row, rejection_row
from tenants.hits import Category, Rejection, decode
from tenants.keys import create_key
from tenants.snippets import encode_params
from tenants.tables import App, Tenant
from tenants.tokens import list_tokens

HOSTILE = "<script>alert(1)</script>\"'><img src=x>{{7*7}}"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;"
URLENCODED = "application/x-www-form-urlencoded"
PANELS = (
    "totals",
    "chart",
    "tokens",
    "breakdown",
    "revenue",
    "revenue-by",
    "orders",
    "rejected",
    "traffic",
    "retention",
    "funnel",
)


async def hits(
    store: EventStore, app: App, sent: Iterable[tuple[Category, dict[str, str]]], ago: int = 60, referrer: str = ""
) -> None:
    """Digest these hits, received `ago` seconds ago and later, one a millisecond."""
    now = int((time.time() - ago) * 1000)
    events: list[Row] = []
    rejections: list[Row] = []
    counts: dict[tuple[int, int, str], int] = {}
    for number, (category, query) in enumerate(sent):
        named = (now + number << 80) | (0x7 << 76) | (app.id.int >> 60 << 4) | number
        raw = urlencode(query, quote_via=quote).encode()
        meaning = decode(category, raw, app.currency, privacy=False)
        outcome = "recorded"
        if isinstance(meaning, Rejection):
            outcome = "rejected"
            rejections.append(rejection_row(meaning, app.id.int, now + number, named, category))
        else:
            visitor = (number // 2 + 1) << 64
            row = event_row(
                meaning, app.id.int, now + number, named, category, visitor, "192.0.2.0/24", b"", referrer.encode(), b""
            )
            events.append(row)
        key = (app.id.int, (now + number) // 60_000 * 60, outcome)
        counts[key] = counts.get(key, 0) + 1
    token = f"{app.id}-{now}"
    await store.insert("events", events, token + "-e")
    await store.insert("rejections", rejections, token + "-r")
    await store.insert("traffic", traffic_rows(counts, []), token + "-t")


def sent(event_token: str, **values: object) -> tuple[Category, dict[str, str]]:
    return "event", {"event_token": event_token, "params": encode_params(values, "url")}


def sold(amount: str, currency: str = "EUR", **values: object) -> tuple[Category, dict[str, str]]:
    query = {"event_token": "purchase", "amount": amount, "currency": currency}
    return "revenue", query | {"params": encode_params(values, "url")}


@pytest.fixture
async def busy_shop(shop: App, event_store: EventStore) -> App:
    await hits(
        event_store,
        shop,
        [
            sent("signup", plan="pro", email="ann@example.org"),
            sent("signup", plan="pro"),
            sent("signup", plan="team"),
            sent("signup"),
            sent(HOSTILE, plan=HOSTILE),
            sold("2500", plan="pro"),
            sold("900", plan="team"),
            sold("-900", plan="team"),
            sold("1250", "USD"),
            sold("25.00"),
        ],
    )
    return shop


async def test_an_app_without_hits_waits_with_its_snippet(owner: httpx.AsyncClient, shop: App) -> None:
    page = await owner.get(f"/apps/{shop.id}")
    assert "Waiting for the first hit" in page.text
    assert "&lt;img src=&#34;http://onepx.test/" in page.text
    assert (await owner.get(f"/apps/{shop.id}/waiting", headers={"HX-Request": "true"})).status_code == 204


async def test_the_first_hit_turns_the_page_into_the_dashboard(
    owner: httpx.AsyncClient, shop: App, event_store: EventStore
) -> None:
    await hits(event_store, shop, [sold("25.00")])  # a rejected one counts as one
    reply = await owner.get(f"/apps/{shop.id}/waiting", headers={"HX-Request": "true"})
    assert (reply.status_code, reply.headers["hx-refresh"]) == (200, "true")
    assert "Waiting for the first hit" not in (await owner.get(f"/apps/{shop.id}")).text


async def test_a_page_fetches_its_panels_and_sends_browsers_without_script_to_the_whole(
    owner: httpx.AsyncClient, busy_shop: App
) -> None:
    page = await owner.get(f"/apps/{busy_shop.id}?period=7d")
    for name in ("totals", "chart", "tokens", "breakdown"):
        assert f'hx-get="/apps/{busy_shop.id}/panels/{name}?period=7d' in page.text
    address = f"/apps/{busy_shop.id}?period=7d&amp;whole=1"
    assert f'<noscript><meta http-equiv="refresh" content="0; url={address}">' in page.text
    whole = await owner.get(address.replace("&amp;", "&"))
    assert "http-equiv" not in whole.text
    assert "/panels/totals" not in whole.text
    panel = await owner.get(f"/apps/{busy_shop.id}/panels/totals?period=7d", headers={"HX-Request": "true"})
    assert "<html" not in panel.text
    # The same function made both.
    assert panel.text.strip() in whole.text


@pytest.mark.parametrize("name", PANELS)
@pytest.mark.parametrize("query", ["", "period=today", "period=7d&event_token=signup", "params.plan!=pro"])
async def test_every_panel_answers_for_every_view(
    owner: httpx.AsyncClient, busy_shop: App, name: str, query: str
) -> None:
    reply = await owner.get(f"/apps/{busy_shop.id}/panels/{name}?{query}")
    assert reply.status_code == 200
    assert 'role="alert"' not in reply.text
    assert "<script>alert" not in reply.text
    assert "<img src=x" not in reply.text


async def test_figures_and_filters(owner: httpx.AsyncClient, busy_shop: App) -> None:
    panels = f"/apps/{busy_shop.id}/panels"
    totals = (await owner.get(f"{panels}/totals")).text
    assert ">9</span>" in totals.partition("Events")[2].partition("Persons")[0]
    assert ">1</span>" in totals.partition("Rejected")[2].partition("Limited")[0]
    filtered = (await owner.get(f"{panels}/totals?event_token=signup&params.plan=pro")).text
    assert ">2</span>" in filtered.partition("Events")[2].partition("Persons")[0]
    revenue = (await owner.get(f"{panels}/revenue?page=revenue")).text
    for figure in ("34.00 EUR", "9.00 EUR", "25.00 EUR", "17.00 EUR", "12.50 USD"):
        assert figure in revenue
    assert "46.50" not in revenue
    breakdown = (await owner.get(f"{panels}/breakdown?field=params.plan")).text
    assert "not sent" in breakdown
    assert ESCAPED in breakdown
    rejected = (await owner.get(f"{panels}/rejected?page=rejected")).text
    assert "invalid_amount" in rejected
    assert "amount=25.00" in rejected


async def test_a_filter_is_added_by_a_form_and_stands_in_the_address(owner: httpx.AsyncClient, busy_shop: App) -> None:
    form = {"period": "7d", "event_token": "signup", "add_field": "plan", "add_how": "is not", "add_value": "pro"}
    reply = await owner.get(f"/apps/{busy_shop.id}/revenue", params=form)
    assert reply.status_code == 303
    address = reply.headers["location"]
    assert address == f"/apps/{busy_shop.id}/revenue?period=7d&event_token=signup&params.plan%21=pro"
    page = (await owner.get(address)).text
    assert "plan is not pro" in page
    assert f'href="/apps/{busy_shop.id}/revenue?period=7d&amp;event_token=signup"' in page


async def test_days_in_the_wrong_order_come_back_to_be_changed(owner: httpx.AsyncClient, shop: App) -> None:
    page = (await owner.get(f"/apps/{shop.id}/revenue?period=custom&from=2026-03-20&to=2026-03-02")).text
    assert "The last day is before the first." in page
    assert '<option value="custom" selected>' in page
    assert 'name="from" value="2026-03-20"' in page
    assert 'name="to" value="2026-03-02"' in page


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("period=fortnight", "This shows the last 30 days"),
        ("period=custom&from=2026-13-01", "This shows the last 30 days"),
        ("currency=EURO", "A filter was left out"),
        ("add_field=a..b&add_value=x", "The filter was not added"),
        ("add_field=Email&add_value=ann%40example.org", "look for them on the page of people"),
    ],
)
async def test_an_address_that_cannot_be_is_said_and_shows_something(
    owner: httpx.AsyncClient, busy_shop: App, query: str, said: str
) -> None:
    page = await owner.get(f"/apps/{busy_shop.id}?{query}")
    assert page.status_code == 200
    assert said in page.text


async def test_the_other_filters_stay_when_one_cannot_be_used(owner: httpx.AsyncClient, busy_shop: App) -> None:
    page = await owner.get(f"/apps/{busy_shop.id}?event_token=signup&currency=EURO&params.plan!=pro&category=odd")
    assert "A filter was left out (currency)" in page.text
    assert "event token is signup" in page.text
    assert "plan is not pro" in page.text


@pytest.mark.parametrize("tail", ["", "/revenue", "/retention", "/funnel", "/live"])
async def test_without_script_what_was_wrong_is_said_too_and_what_was_typed_is_there(
    owner: httpx.AsyncClient, busy_shop: App, tail: str
) -> None:
    asked = "add_field=currency&add_how=is+not&add_value=EURO"
    page = (await owner.get(f"/apps/{busy_shop.id}{tail}?{asked}")).text
    again = re.search('http-equiv="refresh" content="0; url=([^"]+)"', page)
    assert again is not None
    whole = (await owner.get(html.unescape(again[1]))).text
    assert "http-equiv" not in whole
    for shown in (page, whole):
        assert "The filter was not added" in shown
        assert 'name="add_field" value="currency"' in shown
        assert '<option value="is not" selected>' in shown
        assert 'name="add_value" value="EURO"' in shown


async def test_a_page_that_is_replaced_without_script_says_its_notice_twice(
    owner: httpx.AsyncClient, busy_shop: App
) -> None:
    session = owner.cookies["session"]
    for notice, address, then in (
        ("saved", "/apps", "notice=saved~; "),
        ("saved", f"/apps/{busy_shop.id}", "notice=saved~; "),
        ("saved~", "/apps?whole=1", 'notice=""; '),
        ("saved~", "/apps", 'notice=""; '),
        ("saved", "/account", 'notice=""; '),
    ):
        page = await owner.get(address, headers={"Cookie": f"session={session}; notice={notice}"})
        assert '<p class="notice good" role="status">Saved.</p>' in page.text
        assert page.headers["set-cookie"].startswith(then)
        assert ("Max-Age=3;" in page.headers["set-cookie"]) == ("saved~" in then)


async def test_live_goes_on_asking_while_the_store_is_away(
    owner: httpx.AsyncClient, busy_shop: App, event_store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (await owner.get(f"/apps/{busy_shop.id}/live/hits")).text
    after = page.partition("&#34;after&#34;: &#34;")[2].partition("&#34;")[0]

    async def away(*_: object) -> None:
        raise EventStoreUnavailable("away")

    address = f"/apps/{busy_shop.id}/live/newer"
    with monkeypatch.context() as patched:
        patched.setattr(event_store, "query", away)
        reply = await owner.get(address, params={"after": after})
    assert reply.status_code == 200
    assert "Hits cannot be read right now" in reply.text
    assert f"&#34;{after}&#34;" in reply.text
    assert "cannot be read" not in (await owner.get(address, params={"after": after})).text


async def test_the_interval_that_is_shown_is_the_one_that_is_chosen(owner: httpx.AsyncClient, busy_shop: App) -> None:
    page = (await owner.get(f"/apps/{busy_shop.id}?period=90d&interval=hour")).text
    assert '<option value="day" selected>By day</option>' in page
    assert '<option value="hour">By hour</option>' in page


async def test_a_panel_that_cannot_be_answered_offers_to_try_again(
    owner: httpx.AsyncClient, busy_shop: App, event_store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise EventStoreUnavailable("away")

    monkeypatch.setattr(event_store, "query", away)
    address = f"/apps/{busy_shop.id}/panels/totals"
    reply = await owner.get(address, headers={"HX-Request": "true"})
    assert reply.status_code == 503
    assert f'hx-get="{address}"' in reply.text
    assert "Try again" in reply.text
    whole = await owner.get(f"/apps/{busy_shop.id}?whole=1")
    assert whole.status_code == 200
    assert whole.text.count("does not answer right now") == 4


async def test_queries_of_rejected_hits_are_masked_for_viewers(
    owner: httpx.AsyncClient, viewer: httpx.AsyncClient, shop: App, event_store: EventStore
) -> None:
    # Of an amount that is none the reason repeats what was sent.
    await hits(
        event_store,
        shop,
        [sold("25.00", mail="ann@example.org"), sent("", mail="ann@example.org"), sold("zoe@example.org")],
    )
    for address in (
        f"/apps/{shop.id}/rejected?whole=1",
        f"/apps/{shop.id}/panels/rejected",
        f"/apps/{shop.id}/live/hits",
    ):
        assert "ann%40example.org" in (whole := (await owner.get(address)).text)
        assert "zoe@example.org" in whole
        seen = (await viewer.get(address)).text
        assert "params=…" in seen
        assert "ann%40" not in seen
        assert "zoe" not in seen


async def test_live_shows_what_is_new_once(owner: httpx.AsyncClient, busy_shop: App, event_store: EventStore) -> None:
    page = (await owner.get(f"/apps/{busy_shop.id}/live?whole=1")).text
    assert page.count('<article class="hit') == 10
    assert ESCAPED in page
    assert "<script>alert" not in page
    after = page.partition("&#34;after&#34;: &#34;")[2].partition("&#34;")[0]
    await hits(event_store, busy_shop, [sent("new_one")], ago=0)
    newer = (await owner.get(f"/apps/{busy_shop.id}/live/newer", params={"after": after})).text
    assert newer.count('<article class="hit') == 1
    assert "new_one" in newer
    after = newer.partition("&#34;after&#34;: &#34;")[2].partition("&#34;")[0]
    assert "<article" not in (await owner.get(f"/apps/{busy_shop.id}/live/newer", params={"after": after})).text
    assert (await owner.get(f"/apps/{busy_shop.id}/live/newer", params={"after": "made up"})).status_code == 400
    assert (await owner.get(f"/apps/{busy_shop.id}/live/newer")).status_code == 400
    only = (await owner.get(f"/apps/{busy_shop.id}/live?whole=1&kind=rejected&category=revenue")).text
    assert only.count('<article class="hit') == 1


async def test_what_fills_a_page_scrolls(owner: httpx.AsyncClient, shop: App, event_store: EventStore) -> None:
    await hits(event_store, shop, [sent("short", note="x"), sent("long", note="x" * 600)])
    live = f"/apps/{shop.id}/live?whole=1&event_token="
    short, long = (await owner.get(f"{live}short")).text, (await owner.get(f"{live}long")).text
    assert 'class="wrap"><code>' in short
    assert 'class="wrap" tabindex="0"' not in short
    assert 'class="wrap" tabindex="0" role="group" aria-label="Values"><code>' in long
    assert 'class="wrap" tabindex="0" role="group" aria-label="Query"><code>' in long


async def test_live_has_the_filters_of_the_other_views(
    owner: httpx.AsyncClient, busy_shop: App, event_store: EventStore
) -> None:
    address = f"/apps/{busy_shop.id}/live?period=7d&params.plan=pro"
    page = (await owner.get(f"{address}&text=signup&whole=1")).text
    assert page.count('<article class="hit') == 2
    assert "plan is pro" in page
    # Its links keep what it contains; those to the other views keep period and filters.
    assert (
        f'href="/apps/{busy_shop.id}/live?period=7d&amp;text=signup" aria-label="Remove the filter plan is pro"' in page
    )
    assert f'href="/apps/{busy_shop.id}/revenue?period=7d&amp;params.plan=pro"' in page
    assert f'hx-get="/apps/{busy_shop.id}/live/newer?period=7d&amp;params.plan=pro&amp;text=signup"' in page
    after = page.partition("&#34;after&#34;: &#34;")[2].partition("&#34;")[0]
    await hits(event_store, busy_shop, [sent("signup", plan="pro"), sent("signup", plan="team")], ago=0)
    newer = await owner.get(f"/apps/{busy_shop.id}/live/newer?params.plan=pro&text=signup&after={after}")
    assert newer.text.count('<article class="hit') == 1
    added = await owner.get(f"{address}&kind=recorded&add_field=event_token&add_how=is&add_value=signup")
    assert added.status_code == 303
    assert added.headers["location"] == f"{address}&event_token=signup&kind=recorded"
    wrong = await owner.get(f"/apps/{busy_shop.id}/live?whole=1&add_field=currency&add_value=EURO")
    assert "The filter was not added" in wrong.text


async def test_what_is_chosen_in_a_panel_stands_in_the_address(owner: httpx.AsyncClient, busy_shop: App) -> None:
    app = f"/apps/{busy_shop.id}"
    for open_page, there in (
        (
            "http://onepx.test/apps/1/revenue?field=params.plan&period=7d&next=//evil.example",
            "field=params.plan&in=USD",
        ),
        ("http://[evil?field=a%0d%0aSet-Cookie:%20b%3Dc#d", "field=a%0D%0ASet-Cookie%3A+b%3Dc&in=USD"),
        ("", "in=USD"),
    ):
        headers = {"HX-Request": "true", "HX-Current-URL": open_page}
        reply = await owner.get(f"{app}/panels/revenue?page=revenue&in=USD", headers=headers)
        assert reply.headers["hx-replace-url"] == f"{app}/revenue?{there}"
    # With the page come the panels that were chosen, and so does the page for browsers without script.
    page = (await owner.get(f"{app}/revenue?field=params.plan&in=USD")).text
    assert f'hx-get="{app}/panels/orders?field=params.plan&amp;in=USD&amp;page=revenue"' in page
    assert f"url={app}/revenue?field=params.plan&amp;in=USD&amp;whole=1" in page
    # It is of this page alone: other views have panels of their own.
    assert f'href="{app}" ' in page or f'href="{app}">' in page


async def test_an_export_is_of_the_view_and_safe_in_a_spreadsheet(
    owner: httpx.AsyncClient, shop: App, event_store: EventStore
) -> None:
    await hits(event_store, shop, [sent("=HYPERLINK(1)", plan="pro"), sent("signup", plan="=1+1"), sold("-900")])
    reply = await owner.get(f"/apps/{shop.id}/export?format=csv&period=7d")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/csv")
    disposition = reply.headers["content-disposition"]
    assert disposition.startswith('attachment; filename="shop-')
    assert disposition.endswith('.csv"')
    rows = list(csv.DictReader(io.StringIO(reply.text)))
    assert [row["event_token"] for row in rows] == ["'=HYPERLINK(1)", "signup", "purchase"]
    assert rows[2]["amount"] == "-900"
    filtered = await owner.get(f"/apps/{shop.id}/export?period=7d&params.plan=pro")
    assert len(list(csv.DictReader(io.StringIO(filtered.text)))) == 1
    parquet = await owner.get(f"/apps/{shop.id}/export?format=parquet&period=7d")
    assert parquet.content[:4] == parquet.content[-4:] == b"PAR1"


@pytest.mark.parametrize("query", ["format=xlsx", "currency=EURO", "period=custom&from=yesterday"])
async def test_an_export_of_what_cannot_be_is_refused(owner: httpx.AsyncClient, shop: App, query: str) -> None:
    reply = await owner.get(f"/apps/{shop.id}/export?{query}")
    assert reply.status_code == 400
    assert "No export" in reply.text


@pytest.mark.parametrize("name", ['Shop"; filename="evil.exe', "Shop\u202egnp.exe", "Schuhe & Blümchen", "雨"])
async def test_no_name_of_an_app_breaks_a_header(
    owner: httpx.AsyncClient, alice: Tenant, shop: App, event_store: EventStore, name: str
) -> None:
    await App.update({App.name: name}).where(App.id == shop.id)
    disposition = (await owner.get(f"/apps/{shop.id}/export")).headers["content-disposition"]
    assert disposition.isascii()
    assert disposition.count('"') == 2
    assert ".exe" not in disposition


async def test_all_apps_at_a_glance_and_the_limit_used(owner: httpx.AsyncClient, busy_shop: App) -> None:
    counts = (await owner.get("/apps/counts", headers={"HX-Request": "true"})).text
    assert f'id="overview-{busy_shop.id}" hx-swap-oob="true"' in counts
    assert "<polyline" in counts
    used = (await owner.get("/account/usage", headers={"HX-Request": "true"})).text
    assert "hits a second" in used
    assert "of 1,000" in used
    assert "<html" not in used
    # Without script it is a page of its own.
    page = (await owner.get("/account/usage")).text
    assert "<h1>" in page
    assert "hits a second" in page


async def test_one_tenant_cannot_keep_the_others_waiting(event_store: EventStore, shop: App) -> None:
    slow = "SELECT sleepEachRow(0.05) FROM numbers(40) SETTINGS max_block_size = 1"
    asked = [asyncio.create_task(event_store.query(slow, {}, shop.tenant)) for _ in range(122)]
    await asyncio.sleep(0)
    done = await asyncio.wait_for(event_store.query("SELECT 1 AS n", {}, shop.tenant + 1), 5)
    assert done == [{"n": 1}]
    assert not all(task.done() for task in asked)
    refused = [task for task in asked if task.done()]
    assert [type(task.exception()) for task in refused] == [Busy, Busy]
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_a_tenant_with_many_apps_cannot_keep_the_others_waiting(
    owner: httpx.AsyncClient,
    stranger: httpx.AsyncClient,
    event_store: EventStore,
    alice: Tenant,
    bob: Tenant,
    shop: App,
) -> None:
    other, bobs = [(await create_app(tenant, "Other"))[0] for tenant in (alice, bob)]
    slow = "SELECT sleepEachRow(0.05) FROM numbers(40) SETTINGS max_block_size = 1"
    asked = [asyncio.create_task(event_store.query(slow, {}, shop.tenant)) for _ in range(120)]
    await asyncio.sleep(0)
    for path in (f"/apps/{shop.id}/panels/totals", f"/apps/{other.id}/panels/totals", "/account/usage"):
        assert (await owner.get(path)).status_code == 429
    assert "No numbers right now" in (await owner.get("/apps/counts")).text
    for path in (f"/apps/{bobs.id}/panels/totals", "/apps/counts"):
        reply = await asyncio.wait_for(stranger.get(path), 5)
        assert reply.status_code == 200
        assert "No numbers right now" not in reply.text
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_a_thousand_hits_are_not_compressed_on_the_loop_that_takes_hits(
    owner: httpx.AsyncClient, alice: Tenant, shop: App, event_store: EventStore
) -> None:
    await hits(event_store, shop, [sent("view")] * 5 + [sold("25.00")] * 5)
    (token,) = await list_tokens(shop)
    _, key = await create_key(alice, "Reports")
    headers = {"Authorization": f"Bearer {key}", "Accept-Encoding": "gzip"}
    for name, compressed in (("events", False), ("rejections", False), ("series", True)):
        reply = await owner.get(f"/api/v1/apps/{token.token}/{name}", headers=headers)
        assert len(reply.content) > 1_000  # less is never compressed
        assert ("content-encoding" in reply.headers) == compressed


async def test_a_form_larger_than_a_hit_is_refused(anonymous: httpx.AsyncClient) -> None:
    reply = await anonymous.post("/login", content="a=&" * 30_000, headers={"Content-Type": URLENCODED})
    assert reply.status_code == 413


async def test_a_view_without_custom_values_is_broken_down_by_event_token(
    owner: httpx.AsyncClient, shop: App, event_store: EventStore
) -> None:
    await hits(event_store, shop, [sent("page_view"), sent("page_view"), sent("signup", plan="pro")])
    address = f"/apps/{shop.id}/panels/breakdown"
    chosen = '<option value="event_token" selected>'
    assert chosen not in (await owner.get(address)).text
    panel = (await owner.get(f"{address}?event_token=page_view")).text
    assert chosen in panel
    assert ">2</span>" in panel.partition("page_view</a>")[2]
    assert "No custom values yet" not in panel
    assert "No events in this time" in (await owner.get(f"{address}?event_token=nothing")).text
    other, _ = await create_app(await tenant_of(shop), "Plain")
    await hits(event_store, other, [sent("page_view")])
    assert "No custom values yet" in (await owner.get(f"/apps/{other.id}/panels/breakdown")).text


async def tenant_of(app: App) -> Tenant:
    tenant = await Tenant.objects().get(Tenant.id == app.tenant)
    assert tenant is not None
    return tenant


@pytest.mark.parametrize("panel", ["breakdown", "revenue-by"])
async def test_any_field_can_be_typed(owner: httpx.AsyncClient, busy_shop: App, panel: str) -> None:
    address = f"/apps/{busy_shop.id}/panels/{panel}?page=revenue"
    assert '<option value="?">another field…</option>' in (await owner.get(address)).text
    asked = (await owner.get(f"{address}&field=%3F")).text
    assert f'<input id="{panel}-field" name="field"' in asked
    assert "Type the name" in asked
    typed = (await owner.get(f"{address}&field=plan")).text
    assert '<option value="params.plan" selected>plan</option>' in typed
    assert "pro</a>" in typed
    rare = (await owner.get(f"{address}&field=coupon")).text
    assert '<option value="params.coupon" selected>coupon</option>' in rare
    wrong = (await owner.get(f"{address}&field=a..b")).text
    assert f'value="a..b" aria-invalid="true" aria-describedby="{panel}-problem"' in wrong
    assert "Name one of" in wrong


async def test_where_hits_come_from_and_one_order(owner: httpx.AsyncClient, shop: App, event_store: EventStore) -> None:
    for number, page in enumerate(("https://news.example.org/a?b=c", "https://blog.example.org/", "")):
        category, query = sold("2500")
        await hits(event_store, shop, [(category, query | {"event_id": f"order-{number}"})], 60 + number, page)
    panel = (await owner.get(f"/apps/{shop.id}/panels/breakdown?period=7d&field=referrer_host")).text
    assert '<option value="referrer_host" selected>referrer</option>' in panel
    for value in ("news.example.org", "blog.example.org", "<em>not sent</em>"):
        assert value in panel
    added = await owner.get(f"/apps/{shop.id}/revenue?add_field=event_id&add_how=is&add_value=order-1")
    page = (await owner.get(f"{added.headers['location']}&whole=1")).text
    assert "event id is order-1" in page
    assert page.count(">order-1<") == 2, "latest and largest"
    assert "order-0" not in page
    found = await owner.get(f"/apps/{shop.id}/panels/totals?referrer_host=news.example.org&period=7d")
    assert ">1</span>" in found.text.partition("<dt>Events</dt>")[2].partition("<dt")[0]


async def test_fields_named_like_columns_keep_their_whole_names(
    owner: httpx.AsyncClient, shop: App, event_store: EventStore
) -> None:
    await hits(event_store, shop, [sent("view", category="boots", person={"plan": "pro"}, plan="free")])
    options = (await owner.get(f"/apps/{shop.id}/panels/fields")).text
    for name in ("params.category", "params.person.plan", "plan"):
        assert f'value="{name}"' in options
    assert 'value="person.plan"' not in options
    added = await owner.get(f"/apps/{shop.id}?add_field=params.category&add_how=is&add_value=boots")
    page = (await owner.get(added.headers["location"] + "&whole=1")).text
    assert "params.category is boots" in page
    assert ">1</span>" in page.partition("<dt>Events</dt>")[2].partition("<dt")[0]
    panel = (await owner.get(f"/apps/{shop.id}/panels/breakdown")).text
    for field, name in (("params.category", "params.category"), ("category", "category"), ("params.plan", "plan")):
        assert f'<option value="{field}"' in panel
        assert f">{name}</option>" in panel


async def test_what_is_not_kept_is_not_compared(owner: httpx.AsyncClient, busy_shop: App) -> None:
    app = f"/apps/{busy_shop.id}"
    tails = ("/panels/totals", "/panels/tokens", "/panels/revenue?page=revenue")
    for tail in tails:
        assert "none before" in (await owner.get(app + tail)).text
        assert "not kept before" not in (await owner.get(app + tail)).text
    assert "events are kept from" not in (await owner.get(app)).text
    # Of the 30 days before, 15 are gone.
    await change_app(busy_shop, retention_days=45)
    for tail in tails:
        assert "not kept before" in (panel := (await owner.get(app + tail)).text)
        assert "none before" not in panel.partition("Rejected")[0]
    assert "events are kept from" not in (await owner.get(app)).text
    assert "events are kept from" in (await owner.get(f"{app}?period=90d")).text
    assert "not kept before" not in (await owner.get(f"{app}/panels/totals?period=7d")).text


@pytest.mark.parametrize("days", [60, 400, "ever"])
async def test_what_went_before_events_were_to_be_kept_longer_is_not_compared(
    owner: httpx.AsyncClient, busy_shop: App, event_store: EventStore, days: int | Literal["ever"]
) -> None:
    app = f"/apps/{busy_shop.id}"
    await change_app(busy_shop, retention_days=45)
    await unscoped_expire(event_store, datetime.now(UTC))
    await change_app(busy_shop, retention_days=days)
    assert "not kept before" in (await owner.get(f"{app}/panels/totals")).text
    assert "events are kept from" in (await owner.get(f"{app}?period=90d")).text
    assert "not kept before" not in (await owner.get(f"{app}/panels/totals?period=7d")).text
    # A clock that is behind brings nothing back.
    await unscoped_expire(event_store, datetime.now(UTC) - timedelta(days=20))
    assert "not kept before" in (await owner.get(f"{app}/panels/totals")).text


async def test_rejected_hits_of_long_ago_are_not_denied(
    owner: httpx.AsyncClient, shop: App, event_store: EventStore
) -> None:
    await hits(event_store, shop, [sold("25.00"), sold("x")], ago=50 * 86_400)
    await event_store.change("DELETE FROM rejections WHERE app_id = {app:UUID}", {"app": str(shop.id)})
    today = datetime.now(UTC).date()
    made = datetime.now(UTC) - timedelta(days=70)
    await App.update({App.created_at: made}).where(App.id == shop.id)
    panels = f"/apps/{shop.id}/panels"
    for first, last, said in (
        (90, 80, "there were no hits before"),
        (60, 40, "Rejected hits of this time are not kept any more"),
        (60, 0, "Those from before are not kept any more"),
        (5, 0, "No hit was rejected in this time"),
    ):
        days = f"period=custom&from={today - timedelta(days=first)}&to={today - timedelta(days=last)}&page=rejected"
        assert said in (await owner.get(f"{panels}/rejected?{days}")).text
        traffic = (await owner.get(f"{panels}/traffic?{days}")).text
        rejected = traffic.partition("<dt>Rejected</dt>")[2].partition("<dt")[0]
        assert f">{2 if first == 60 else 0}</span>" in rejected


async def test_rejected_hits_are_compared_and_filtered_by_category(
    owner: httpx.AsyncClient, shop: App, event_store: EventStore
) -> None:
    await hits(event_store, shop, [sold("25.00"), sent("")])
    await hits(event_store, shop, [sold("x")] * 4, ago=86_400 * 8)
    page = f"/apps/{shop.id}/rejected?period=7d&whole=1"
    text = (await owner.get(page)).text
    assert "▼" in text.partition("<dt>Rejected</dt>")[2].partition("<dt")[0]
    assert "invalid_amount" in text
    assert "missing_event_token" in text
    only = (await owner.get(f"{page}&category=revenue")).text
    assert "invalid_amount" in only
    assert "missing_event_token" not in only
    assert "Of the filters only" not in only
    both = (await owner.get(f"{page}&category=revenue&params.plan=pro")).text
    assert "missing_event_token" not in both
    assert "Of the filters only the category applies here" in both


@pytest.mark.parametrize("panel", ["chart", "tokens", "breakdown", "revenue", "revenue-by", "orders", "retention"])
async def test_filters_that_match_nothing_can_be_removed_where_it_shows(
    owner: httpx.AsyncClient, busy_shop: App, panel: str
) -> None:
    page = "revenue" if panel in ("revenue", "revenue-by", "orders") else "retention" if panel == "retention" else ""
    address = f"/apps/{busy_shop.id}/panels/{panel}?period=7d&page={page}&params.plan="
    empty = (await owner.get(f"{address}no%20such")).text
    without = f"/apps/{busy_shop.id}{'/' * bool(page)}{page}?period=7d"
    assert f'in this time with these filters. <a href="{without}">Remove the filters</a>' in empty
    assert "snippet generator" not in empty
    assert "Remove the filters" not in (await owner.get(f"{address}pro")).text


@pytest.mark.parametrize(
    ("panel", "field", "said"),
    [("breakdown", "person.plan", True), ("breakdown", "params.plan", False), ("revenue-by", "person.plan", True)],
)
async def test_what_a_property_cannot_compare_is_said(
    owner: httpx.AsyncClient, busy_shop: App, panel: str, field: str, said: bool
) -> None:
    shown = await owner.get(f"/apps/{busy_shop.id}/panels/{panel}?period=7d&field={field}")
    assert "<table" in shown.text
    assert ("Only people who told who they are have properties" in shown.text) == said


async def test_nothing_sold_in_a_currency_is_said(owner: httpx.AsyncClient, shop: App, event_store: EventStore) -> None:
    await hits(event_store, shop, [sold("-900", "USD"), sold("2500")])
    await hits(event_store, shop, [sold("700", "GBP")], ago=8 * 86_400)
    panels, days = f"/apps/{shop.id}/panels", "period=7d&page=revenue"
    assert "Nothing was sold in GBP in this time" in (await owner.get(f"{panels}/revenue?{days}&in=GBP")).text
    by = (await owner.get(f"{panels}/revenue-by?{days}&in=GBP")).text
    assert "Nothing was sold in GBP in this time" in by
    assert "<table" not in by
    largest = (await owner.get(f"{panels}/orders?{days}&in=USD")).text.partition("Largest in USD")[2]
    assert "None in this time" in largest
    assert "<table" not in largest


async def test_the_export_of_the_revenue_page_is_of_revenue(owner: httpx.AsyncClient, busy_shop: App) -> None:
    page = (await owner.get(f"/apps/{busy_shop.id}/revenue?params.plan=team")).text
    address = page.partition(f'href="/apps/{busy_shop.id}/export?')[2].partition('"')[0].replace("&amp;", "&")
    rows = list(csv.DictReader(io.StringIO((await owner.get(f"/apps/{busy_shop.id}/export?{address}")).text)))
    assert {row["category"] for row in rows} == {"revenue"}
    assert len(rows) == 2


async def test_while_the_event_store_is_away_pages_say_so(
    owner: httpx.AsyncClient, busy_shop: App, event_store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise EventStoreUnavailable("away")

    other, _ = await create_app(await tenant_of(busy_shop), "Never hit")
    assert "Waiting for the first hit" not in (await owner.get(f"/apps/{busy_shop.id}")).text
    monkeypatch.setattr(event_store, "query", away)
    # Asked again in a second, and what is there stays.
    assert (await owner.get(f"/apps/{other.id}/waiting", headers={"HX-Request": "true"})).status_code == 204
    for address in ("/apps/counts", "/apps?whole=1"):
        reply = await owner.get(address)
        assert reply.status_code == 200
        assert reply.text.count("No numbers right now") == 2
    live = await owner.get(f"/apps/{busy_shop.id}/live?whole=1")
    assert live.status_code == 200
    assert "Hits cannot be read right now" in live.text
    assert (await owner.get(f"/apps/{busy_shop.id}/live")).text.count("live/hits?") == 1
    hits_of_page = await owner.get(f"/apps/{busy_shop.id}/live/hits", headers={"HX-Request": "true"})
    assert hits_of_page.status_code == 503
    assert "Try again" in hits_of_page.text
