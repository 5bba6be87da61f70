"""Retention and funnel: their pages over real events, and a form whose address is its state."""

import re
from datetime import UTC, datetime
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import httpx
import pytest
from test_dashboards import HOSTILE, hits, sent, sold

from server.event_store import EventStore
from tenants.reports.filters import filters_of
from tenants.reports.funnel import MAX_STEPS, Step
from tenants.tables import App
from web.pages.journeys import Form, heat, read_form, was_sent
from web.rendering import duration

FUNNEL = "step1=view&step2=signup&step3=purchase"


@pytest.fixture
async def busy_shop(shop: App, event_store: EventStore) -> App:
    """Hits 0 and 1 are of one person, 2 and 3 of the next, and so on."""
    await hits(
        event_store,
        shop,
        [
            sent("view", source="ads", plan="pro"),
            sent("signup"),
            sent("view", source="mail"),
            sent("view", source=HOSTILE),
            sold("900"),
            sent(HOSTILE),
        ],
    )
    return shop


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def shown_part(panel: str) -> str:
    """The panel without what it puts elsewhere."""
    return panel[panel.index('<div class="stack') :].strip()


async def test_retention(owner: httpx.AsyncClient, busy_shop: App) -> None:
    page = await owner.get(f"/apps/{busy_shop.id}/retention?period=7d&first=view&return=signup")
    assert page.status_code == 200
    assert 'id="first" name="first" list="known-tokens" value="view"' in page.text
    assert "period=7d&amp;first=view&amp;return=signup&amp;page=retention" in page.text
    panel = await owner.get(f"/apps/{busy_shop.id}/panels/retention?period=7d&page=retention&first=view&return=signup")
    shown = text_of(panel.text)
    assert "All 2 " in shown
    assert "50 % , 1 of 2" in shown
    assert 'title="1 of 2, 50.00\u202f%"' in panel.text
    assert "Persons by the day of their first view" in shown
    # Its days begin with the first one that anybody was there on.
    assert "First day Persons Same day All" in shown
    assert panel.text.count('scope="row"') == 2
    whole = await owner.get(f"/apps/{busy_shop.id}/retention?period=7d&first=view&return=signup&whole=1")
    assert shown_part(panel.text) in whole.text


async def test_retention_of_nobody(owner: httpx.AsyncClient, busy_shop: App) -> None:
    panel = await owner.get(f"/apps/{busy_shop.id}/panels/retention?page=retention&first=nothing")
    assert "Nobody did nothing in this time." in text_of(panel.text)
    since = datetime.now(UTC).year - 7
    long = await owner.get(f"/apps/{busy_shop.id}/panels/retention?page=retention&from={since}-01-01")
    assert "Choose 64 months at most." in long.text


async def test_a_funnel(owner: httpx.AsyncClient, busy_shop: App) -> None:
    address = f"/apps/{busy_shop.id}/funnel?period=7d&{FUNNEL}&by=params.source"
    page = await owner.get(address)
    assert page.status_code == 200
    assert 'value="signup"' in page.text
    panel = await owner.get(f"/apps/{busy_shop.id}/panels/funnel?period=7d&page=funnel&{FUNNEL}&by=params.source")
    shown = text_of(panel.text)
    assert "1. view 2 2. signup 1 50.0 % 50.0 % 1 ms 3. purchase 0 0.0 % 0.0 %" in shown
    assert "ads 1 1 100.0 % · 1 ms 0 0.0 %" in shown
    assert "mail 1 0 0.0 % 0 0.0 %" in shown
    assert "all within 7 days" in shown
    assert shown_part(panel.text) in (await owner.get(f"{address}&whole=1")).text


async def test_the_first_steps_are_suggested(owner: httpx.AsyncClient, busy_shop: App) -> None:
    panels = f"/apps/{busy_shop.id}/panels/funnel?page=funnel"
    panel = (await owner.get(panels)).text
    assert f'href="/apps/{busy_shop.id}/funnel?step1=view&amp;step2="' in panel
    assert "<script>" not in panel
    panel = (await owner.get(f"{panels}&step1=view&step1.params.plan=pro&step2=")).text
    assert f'href="/apps/{busy_shop.id}/funnel?step1=view&amp;step1.params.plan=pro&amp;step2=signup"' in panel


async def test_hostile_tokens_are_text(owner: httpx.AsyncClient, busy_shop: App) -> None:
    query = {"step1": HOSTILE, "step2": HOSTILE, "step2.params.x": HOSTILE, "by": f"params.{HOSTILE.replace('.', '')}"}
    for page in ("funnel", "panels/funnel"):
        reply = await owner.get(f"/apps/{busy_shop.id}/{page}", params={**query, "page": "funnel"})
        assert reply.status_code == 200
        assert "<script>alert" not in reply.text
        assert "&lt;script&gt;alert" in reply.text


async def press(owner: httpx.AsyncClient, app: App, query: str, button: str, **typed: str) -> list[tuple[str, str]]:
    """The parameters of the address that a button of the form with this address leads to."""
    steps = len(read_form(parse_qsl(query, keep_blank_values=True)).steps)
    how = [(f"step{number}.how", "is") for number in range(1, steps + 1)]
    pairs = [*parse_qsl(query, keep_blank_values=True), *how, *typed.items(), ("do", button)]
    reply = await owner.get(f"/apps/{app.id}/funnel", params=pairs)  # pyright: ignore[reportArgumentType]
    assert reply.status_code == 303, reply.text
    to = urlsplit(reply.headers["location"])
    assert to.path == f"/apps/{app.id}/funnel"
    # A step more is gone on with, without script too.
    assert to.fragment == (f"step{steps + 1}" if button == "add" and steps < MAX_STEPS else "")
    return parse_qsl(to.query, keep_blank_values=True)


BUTTONS = [
    (FUNNEL, "show", FUNNEL),
    (FUNNEL, "add", f"{FUNNEL}&step4="),
    (FUNNEL, "remove-2", "step1=view&step2=purchase"),
    (FUNNEL, "up-3", "step1=view&step2=purchase&step3=signup"),
    (FUNNEL, "down-1", "step1=signup&step2=view&step3=purchase"),
    (FUNNEL, "up-1", FUNNEL),
    (FUNNEL, "down-3", FUNNEL),
    (FUNNEL, "remove-8", FUNNEL),
    (FUNNEL, "explode-1", FUNNEL),
    ("step1=a&step2=b", "remove-1", "step1=&step2=b"),
    ("step1=&step2=", "show", ""),
    ("period=7d&params.plan=pro&step1=a&step2=b", "down-1", "period=7d&params.plan=pro&step1=b&step2=a"),
    ("step1=a&step1.params.x=1&step2=b", "down-1", "step1=b&step2=a&step2.params.x=1"),
    ("step1=a&step2=b&within=7&unit=days&by=", "show", "step1=a&step2=b"),
    ("step1=a&step2=b&within=30&unit=minutes&by=plan", "show", "step1=a&step2=b&within=30&unit=minutes&by=params.plan"),
]


@pytest.mark.parametrize(("query", "button", "then"), BUTTONS)
async def test_buttons_lead_to_an_address(
    owner: httpx.AsyncClient, shop: App, query: str, button: str, then: str
) -> None:
    assert await press(owner, shop, query, button) == parse_qsl(then, keep_blank_values=True)


async def test_no_more_than_eight_steps(owner: httpx.AsyncClient, shop: App) -> None:
    eight = "&".join(f"step{number}=x" for number in range(1, 9))
    assert await press(owner, shop, eight, "add") == parse_qsl(eight)
    assert 'value="add"' not in (await owner.get(f"/apps/{shop.id}/funnel?{eight}")).text


@pytest.mark.parametrize(
    ("typed", "added"),
    [
        ({"step2.field": "plan", "step2.value": "pro"}, ("step2.params.plan", "pro")),
        ({"step2.field": " currency ", "step2.value": "eur"}, ("step2.currency", "EUR")),
        ({"step2.field": "plan", "step2.value": ""}, ("step2.empty", "params.plan")),
    ],
)
async def test_a_filter_is_added_to_a_step(
    owner: httpx.AsyncClient, shop: App, typed: dict[str, str], added: tuple[str, str]
) -> None:
    found = await press(owner, shop, "step1=a&step2=b", "filter", **typed)
    assert found == [("step1", "a"), ("step2", "b"), added]


def test_how_a_filter_of_a_step_may_be_meant() -> None:
    for how, pair in (
        ("is not", ("step1.params.plan!", "pro")),
        ("sent", ("step1.missing!", "params.plan")),
        ("sent not", ("step1.missing", "params.plan")),
    ):
        form = read_form([("step1", "a"), ("step1.field", "plan"), ("step1.how", how), ("step1.value", "pro")])
        assert form.pairs() == [("step1", "a"), pair, ("step2", "")]


async def test_each_filter_can_be_removed(owner: httpx.AsyncClient, shop: App) -> None:
    page = (await owner.get(f"/apps/{shop.id}/funnel?{FUNNEL}&step2.params.plan=pro&step2.params.n!=1")).text
    for words, left in (("plan is pro", "step2.params.n%21=1"), ("n is not 1", "step2.params.plan=pro")):
        link = f'step2=signup&amp;{left}&amp;step3=purchase" aria-label="Remove the filter {words} from step 2"'
        assert link in page


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("step9=x", "A funnel has 8 steps at most"),
        (f"{FUNNEL}&step1.currency=EURO", "A currency is an ISO 4217 code"),
        (f"{FUNNEL}&within=0", "366 days at most"),
        (f"{FUNNEL}&within=x&do=show", "whole number"),
        (f"{FUNNEL}&within=9999999&do=show", "days are the most"),
        (f"{FUNNEL}&unit=weeks", "minutes, hours, days"),
        (f"{FUNNEL}&by=a..b", "Name one of"),
        (f"{FUNNEL}&do=filter&step1.field=a..b&step1.how=is", "Name one of"),
    ],
)
async def test_a_form_that_cannot_be_is_said(owner: httpx.AsyncClient, shop: App, query: str, said: str) -> None:
    reply = await owner.get(f"/apps/{shop.id}/funnel?{query}")
    assert reply.status_code == 200
    assert said in reply.text.partition('role="alert"')[2].partition("</p>")[0]


async def test_what_is_wrong_of_a_funnel_takes_nothing_else_with_it(owner: httpx.AsyncClient, shop: App) -> None:
    asked = f"{FUNNEL}&step1.currency!=EURO&step1.params.plan=pro&step2.category=neither"
    page = (await owner.get(f"/apps/{shop.id}/funnel?{asked}")).text
    assert "left out (step1.currency)" in page
    assert "Remove the filter plan is pro from step 1" in page
    assert 'name="step1" value="view"' in page
    assert 'name="step2" value="signup"' in page


async def test_the_periods_form_and_filters_keep_the_funnel(owner: httpx.AsyncClient, shop: App) -> None:
    page = (await owner.get(f"/apps/{shop.id}/funnel?{FUNNEL}&params.plan=pro")).text
    assert page.count('<input type="hidden" name="step2" value="signup">') == 2
    assert f'href="/apps/{shop.id}/funnel?step1=view&amp;step2=signup&amp;step3=purchase" aria-label="Remove' in page
    assert f'href="/apps/{shop.id}/revenue?params.plan=pro"' in page
    added = await owner.get(f"/apps/{shop.id}/funnel?{FUNNEL}&add_field=plan&add_how=is&add_value=pro")
    assert added.headers["location"] == f"/apps/{shop.id}/funnel?params.plan=pro&{FUNNEL}"


def test_a_funnel_of_nothing_but_faults_is_given_up() -> None:
    pairs = [("step1", "view"), *((f"step1.params.a.b.c.d.e.{number}", "1") for number in range(19)), ("step2", "buy")]
    form = read_form(pairs)
    assert [step.event_token for step in form.steps] == ["view", "buy"]
    form = read_form([*pairs, *((f"step2.params.a.b.c.d.e.{number}", "1") for number in range(100))])
    assert [step.event_token for step in form.steps] == ["", ""]
    assert "left out (step1.params.a.b.c.d.e.0)" in form.problem


async def test_an_address_without_end_is_read_in_part(owner: httpx.AsyncClient, shop: App) -> None:
    asked = "&".join(f"params.f{number}=1" for number in range(1_000))
    page = await owner.get(f"/apps/{shop.id}/funnel?{asked}&step1=view")
    assert page.status_code == 200
    assert "Use 30 filters at most." in page.text
    assert 'value="view"' not in page.text


def test_an_address_is_no_form_that_was_sent() -> None:
    assert not was_sent([("step1", "a"), ("step1.params.how", "x")])
    assert was_sent([("step1", "a"), ("step1.how", "is")])
    assert was_sent([("do", "add")])


def test_steps_are_numbered_anew() -> None:
    form = read_form([("step2", "a"), ("step7", "b"), ("step7.params.x!", "1")])
    assert form.pairs() == [("step1", "a"), ("step2", "b"), ("step2.params.x!", "1")]


def test_a_form_reads_back_as_it_was() -> None:
    steps = (Step("a", filters_of([("params.x!", "1"), ("missing", "params.y")])), Step(), Step("c"))
    form = Form(steps, "30", "minutes", "params.source")
    assert read_form(form.pairs()) == form


@pytest.mark.parametrize(("share", "shade"), [(0, 0), (0.0001, 1), (0.04, 2), (0.25, 5), (0.999, 9), (1, 10)])
def test_shades(share: float, shade: int) -> None:
    assert heat(share) == shade


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 ms"),
        (0.34, "340 ms"),
        (0.9996, "1000 ms"),
        (1, "1 s"),
        (12.44, "12.4 s"),
        (60, "1 min"),
        (320, "5 min 20 s"),
        (3_600, "1 h"),
        (11_130, "3 h 5 min"),
        (187_200, "2 d 4 h"),
        (31_622_400, "366 d"),
    ],
)
def test_lengths_of_time(seconds: float, shown: str) -> None:
    assert duration(seconds).replace("\u202f", " ") == shown


@pytest.mark.parametrize("tail", ["funnel", "retention"])
async def test_what_went_wrong_stands_above_the_form_that_is_open(owner: httpx.AsyncClient, tail: str) -> None:
    """The forms look for a new page in the reply: an error is none, and would leave an empty one."""
    asked = {"HX-Request": "true", "HX-Target": "main"}
    reply = await owner.get(f"/apps/{UUID(int=1)}/{tail}", headers=asked)
    assert reply.status_code == 404
    assert (reply.headers["HX-Reselect"], reply.headers["HX-Reswap"]) == (".notice", "afterbegin")
    assert f'<a class="button small" href="/apps/{UUID(int=1)}/{tail}">Try again</a>' in reply.text
