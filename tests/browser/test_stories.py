"""What people come for, told in a real browser: with script, and without where the story says so."""

import base64
import http.server
import re
import secrets
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlencode

import pytest
from machine import Machine, wait_until
from playwright.sync_api import BrowserContext, Dialog, Locator, Page, Route, expect
from shop import HOSTILE, PASSWORD, Shop, join_as_viewer, open_shop

from tenants.snippets import img_tag, pixel_url
from web.pages.snippet import WHERE_TO


@pytest.fixture(scope="module")
def shop(running_site: Machine) -> Shop:
    """Hits of every kind; stories only look at it."""
    return open_shop(running_site)


@pytest.fixture
def own_site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and where a web server of the customer's own shows it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # pyright: ignore[reportArgumentType]

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_sign_up_copy_the_snippet_load_it_see_it(
    page: Page, javascript: bool, own_site: tuple[Path, str], context: BrowserContext
) -> None:
    folder, address = own_site
    page.goto("/")
    page.get_by_role("link", name="Sign up").first.click()
    page.get_by_label("Name").fill("Ann's boots")
    page.get_by_label("E-mail").fill(f"ann-{secrets.token_hex(4)}@example.org")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign up").click()
    expect(page.get_by_text("Waiting for the first hit")).to_be_visible()
    snippet = page.locator("#snippet").inner_text()
    if javascript:
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.get_by_role("button", name="Copy").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == snippet
    else:
        # Nothing could press it.
        expect(page.get_by_role("button", name="Copy")).to_have_count(0)
    (folder / "index.html").write_text(f"<!doctype html><title>Boots</title><p>Boots.</p>{snippet}")
    theirs = context.new_page()
    with theirs.expect_response(re.compile(r"/event\.gif\?")) as replied:
        theirs.goto(address)
    assert replied.value.status == 200
    # It takes no place on the customer's page.
    assert theirs.evaluate("document.body.scrollHeight <= innerHeight && document.body.scrollWidth <= innerWidth")
    theirs.close()
    if not javascript:
        page.wait_for_timeout(1500)
        page.get_by_role("link", name="Look again").click()
    row = page.get_by_role("row", name=re.compile("page_view"))
    expect(row.first).to_be_visible()
    expect(page.get_by_text("Waiting for the first hit")).not_to_be_visible()


def test_who_signs_up_by_one_pixel_and_buys_by_another_is_one_person(
    page: Page, machine: Machine, own_site: tuple[Path, str], context: BrowserContext
) -> None:
    folder, address = own_site
    mine = open_shop(machine, hits=False)
    pixel = f"http://127.0.0.1:{machine.process.port}"
    signup = pixel_url(pixel, mine.token, "event", "signup", params={"email": "ann@example.org", "plan": "pro"})
    order = pixel_url(pixel, mine.token, "revenue", "purchase", params={"items": 2}, amount=2500)
    (folder / "welcome.html").write_text(f"<!doctype html><title>Welcome</title>{img_tag(signup)}")
    (folder / "thanks.html").write_text(f"<!doctype html><title>Thank you</title>{img_tag(order)}")
    theirs = context.new_page()
    for name in ("welcome", "thanks"):
        with theirs.expect_response(re.compile(r"\.gif\?")) as replied:
            theirs.goto(f"{address}/{name}.html")
        assert replied.value.status == 200
    theirs.close()
    wait_until(machine.digested, 5.0)
    mine.log_in(page)
    page.goto(mine.path("/people"))
    people = page.get_by_role("table").get_by_role("row").filter(has_text="ann@example.org")
    expect(people).to_have_count(1)
    expect(people).to_contain_text("25.00")
    people.get_by_role("link").first.click()
    expect(page.get_by_role("heading", name="ann@example.org")).to_be_visible()
    expect(page.get_by_role("region", name="Lifetime value")).to_contain_text("25.00")
    timeline = page.get_by_role("region", name="What happened")
    expect(timeline).to_contain_text("signup")
    expect(timeline).to_contain_text("purchase")


def test_whoever_comes_tries_the_landing_pages_hits(page: Page, javascript: bool, context: BrowserContext) -> None:
    page.goto("/")
    if javascript:
        snippet = page.locator("#snippet").inner_text()
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.get_by_role("button", name="Copy").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == snippet
    else:
        expect(page.get_by_role("button", name="Copy")).to_have_count(0)
    for button, example, told in (("Send this hit", "#purchase", "25.00 EUR"), ("Send this one", "#mistake", "minor")):
        with page.expect_response(re.compile(r"/revenue\.gif\?")) as replied:
            page.get_by_role("button", name=button).click()
        assert replied.value.status == 200
        became = page.locator(f"{example} .hit" if javascript else ".hit").filter(has=page.locator("time"))
        # Without script people ask by hand, and again where it is not known yet.
        for _ in range(0 if javascript else 8):
            page.wait_for_timeout(500)
            if became.is_visible():
                break
            page.get_by_role("link", name="See what became of it").click()
        expect(became).to_contain_text(told)
        if not javascript:
            page.get_by_role("link", name="Back").click()
    with context.new_page() as other:
        other.goto("/")
        expect(other.locator(".hit")).to_have_count(2)
        expect(other.locator(".hit time")).to_have_count(0)


def test_what_a_hit_became_shows_by_itself(page: Page, machine: Machine) -> None:
    mine = open_shop(machine, hits=False)
    mine.log_in(page)
    page.goto(mine.path("/live"))
    mine.hit("revenue", event_token="purchase", amount="2500", params={"plan": "pro"})
    recorded = page.locator(".hit", has_text="purchase")
    expect(recorded).to_contain_text("25.00 EUR")
    expect(recorded).to_contain_text("revenue.gif?event_token=purchase&amount=2500")
    page.get_by_role("button", name="Pause").click()
    mine.hit("revenue", event_token="purchase", amount="25.00")
    page.wait_for_timeout(2_500)
    expect(page.locator(".hit")).to_have_count(1)
    page.get_by_role("button", name="Go on").click()
    rejected = page.locator(".hit.rejected")
    expect(rejected).to_contain_text("invalid_amount")
    expect(rejected).to_contain_text("minor unit")


def test_live_keeps_the_newest_hits_only(page: Page, machine: Machine) -> None:
    mine = open_shop(machine, hits=False)
    mine.log_in(page)
    page.goto(mine.path("/live"))
    expect(page.get_by_text("No hits yet.")).to_be_visible()
    hits = page.locator("#hits")
    assert hits.get_attribute("data-most") == "200"
    hits.evaluate("list => { list.dataset.most = 12 }")
    for burst in range(3):
        for _ in range(8):
            mine.hit(event_token=f"burst{burst}")
        expect(page.locator(".hit", has_text=f"burst{burst}")).to_have_count(8)
    expect(page.locator(".hit")).to_have_count(12)
    expect(page.locator(".hit").first).to_contain_text("burst2")


def test_live_without_script_is_read_by_hand(page: Page, javascript: bool, shop: Shop) -> None:
    if javascript:
        pytest.skip("told above")
    shop.log_in(page)
    page.goto(shop.path("/live?kind=rejected"))
    expect(page.locator(".hit.rejected").first).to_contain_text("invalid_amount")
    expect(page.locator(".hit:not(.rejected)")).to_have_count(0)
    expect(page.get_by_role("link", name="Show newer")).to_be_visible()


def test_a_funnel_is_built_by_hand(page: Page, javascript: bool, shop: Shop) -> None:
    """Each change is an address: it can be sent to somebody, and the back button undoes it."""

    def typed(step: int, token: str) -> None:
        page.get_by_label(f"Event token of step {step}").fill(token)
        page.keyboard.press("Enter")

    def tokens(*expected: str) -> None:
        for number, token in enumerate(expected, 1):
            expect(page.get_by_label(f"Event token of step {number}")).to_have_value(token)
        expect(page.get_by_label(re.compile("Event token of step"))).to_have_count(len(expected))

    shop.log_in(page)
    page.goto(shop.path())
    page.get_by_role("link", name="Funnel").click()
    page.get_by_role("link", name="page_view", exact=True).click()
    tokens("page_view", "")
    typed(2, "signup")
    table = page.get_by_role("region", name="From step to step")
    expect(table.get_by_role("row").nth(1)).to_contain_text("1. page_view")
    expect(table.get_by_role("row").nth(2)).to_contain_text("2. signup")
    page.wait_for_url(re.compile("step1=page_view&step2=signup(&whole=1)?$"))
    page.get_by_role("button", name="Add a step").click()
    tokens("page_view", "signup", "")
    if javascript:
        expect(page.get_by_label("Event token of step 3")).to_be_focused()
    typed(3, "purchase")
    tokens("page_view", "signup", "purchase")
    expect(table.get_by_role("row")).to_have_count(4)
    page.get_by_role("button", name="Move step 3 up").click()
    tokens("page_view", "purchase", "signup")
    if javascript:
        expect(page.get_by_role("button", name="Move step 3 up")).to_be_focused()
    page.wait_for_url(re.compile("step2=purchase&step3=signup(&whole=1)?$"))
    page.get_by_role("button", name="Remove step 1").click()
    tokens("purchase", "signup")
    first = page.get_by_role("group", name="Step 1")
    first.get_by_text("Add a filter").click()
    # However slowly somebody types: only the button sends it.
    for label, value in (("Field", "plan"), ("Value", "pro")):
        first.get_by_label(label).fill(value)
        page.keyboard.press("Tab")
        page.wait_for_timeout(500)
    first.get_by_role("button", name="Add").click()
    expect(page.get_by_text("plan is pro")).to_be_visible()
    page.wait_for_url(re.compile(r"step1=purchase&step1\.params\.plan=pro&step2=signup(&whole=1)?$"))
    expect(table.get_by_role("row").nth(1)).to_contain_text("12")
    if javascript:
        first.get_by_label("Event token").focus()
        expect(page.locator('#known-tokens option[value="signup"]')).to_have_count(1)
        page.get_by_label("Unit").select_option("minutes")
        page.wait_for_url(re.compile("within=7&unit=minutes(&whole=1)?$"))
        page.go_back()
        page.wait_for_url(re.compile("step2=signup(&whole=1)?$"))
        expect(page.get_by_label("Unit")).to_have_value("days")
    page.go_back()
    expect(page.get_by_text("plan is pro")).not_to_be_visible()
    tokens("purchase", "signup")


def test_filters_are_in_the_address_and_the_back_button_works(page: Page, javascript: bool, shop: Shop) -> None:
    shop.log_in(page)
    page.goto(shop.path())
    page.get_by_role("link", name="signup", exact=True).first.click()
    expect(page.get_by_text("event token is signup")).to_be_visible()
    assert "event_token=signup" in page.url
    page.get_by_text("Add a filter").click()
    page.get_by_label("Field", exact=True).first.fill("plan")
    page.get_by_label("Value").fill("pro")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_text("plan is pro")).to_be_visible()
    assert "params.plan=pro" in page.url
    expect(page.locator("#totals dd").first).to_have_text("12")
    if javascript:
        page.get_by_label("Period", exact=True).select_option("7d")
    else:
        page.get_by_label("Period", exact=True).select_option("7d")
        page.get_by_role("button", name="Show", exact=True).first.click()
    page.wait_for_url(re.compile("period=7d"))
    expect(page.get_by_text("plan is pro")).to_be_visible()
    # The views share them.
    page.get_by_role("link", name="Revenue", exact=True).click()
    expect(page.get_by_text("plan is pro")).to_be_visible()
    page.go_back()
    page.go_back()
    expect(page.get_by_label("Period", exact=True)).to_have_value("30d")
    page.get_by_role("link", name="Remove the filter plan is pro").click()
    expect(page.get_by_text("plan is pro")).not_to_be_visible()
    expect(page.get_by_text("event token is signup")).to_be_visible()


def test_days_are_typed_in_peace(page: Page, shop: Shop) -> None:
    first, typed = (datetime.now(UTC).date() - timedelta(days=ago) for ago in (20, 5))
    shop.log_in(page)
    page.goto(shop.path(f"?period=custom&from={first}"))
    page.get_by_label("First day").fill(str(typed))
    page.get_by_label("Last day").fill(str(typed))
    page.wait_for_timeout(500)
    expect(page).to_have_url(re.compile(f"from={first}$"))
    page.get_by_role("button", name="Show these days").click()
    page.wait_for_url(re.compile(f"from={typed}&to={typed}"))


def test_what_a_breakdown_is_about_stays(page: Page, javascript: bool, shop: Shop) -> None:
    field = page.locator("#breakdown-field")

    def choose(name: str) -> None:
        # A panel answers to choices once it has settled, a moment after it is there.
        expect(page.locator(".loading, .htmx-added, .htmx-settling")).to_have_count(0)
        field.select_option(name)
        if not javascript:
            page.locator("#breakdown").get_by_role("button", name="Show").click()
        page.wait_for_url(re.compile(f"field={name}"))

    shop.log_in(page)
    page.goto(shop.path())
    choose("params.method")
    page.locator("#breakdown").get_by_role("link", name="email").click()
    expect(page.get_by_text("method is email")).to_be_visible()
    expect(field).to_have_value("params.method")
    page.go_back()
    expect(field).to_have_value("params.method")
    choose("params.page")
    page.get_by_label("Period", exact=True).select_option("7d")
    if not javascript:
        page.get_by_role("button", name="Show", exact=True).first.click()
    page.wait_for_url(re.compile("period=7d"))
    expect(field).to_have_value("params.page")
    choose("params.method")
    # A link of another panel, drawn before the choice.
    page.locator("#tokens").get_by_role("link", name="signup").click()
    expect(page.get_by_text("event token is signup")).to_be_visible()
    expect(field).to_have_value("params.method")


def test_the_currency_is_the_pages(page: Page, shop: Shop) -> None:
    shop.log_in(page)
    page.goto(shop.path("/revenue"))
    chosen = page.locator('main select[name="in"]')
    expect(chosen).to_have_count(3)
    expect(page.locator(".loading, .htmx-added, .htmx-settling")).to_have_count(0)
    chosen.nth(0).select_option("USD")
    page.wait_for_url(re.compile("in=USD"))
    for number in range(3):
        expect(chosen.nth(number)).to_have_value("USD")
    expect(page.get_by_role("heading", name="Largest in USD")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Largest in USD")).to_be_visible()


def test_a_field_that_few_events_have_is_typed(page: Page, javascript: bool, shop: Shop) -> None:
    shop.log_in(page)
    page.goto(shop.path())
    panel = page.locator("#breakdown")
    expect(page.locator(".loading, .htmx-added, .htmx-settling")).to_have_count(0)
    panel.get_by_label("Field").select_option("another field…")
    if not javascript:
        panel.get_by_role("button", name="Show").click()
    panel.get_by_placeholder("coupon").fill("plan")
    panel.get_by_role("button", name="Show").click()
    expect(panel.get_by_role("link", name="pro", exact=True)).to_be_visible()
    expect(panel.get_by_label("Field")).to_have_value("params.plan")
    page.wait_for_url(re.compile("field=plan"))


def test_a_panel_that_failed_is_tried_again(page: Page, shop: Shop) -> None:
    shop.log_in(page)
    wrong = """<div class="notice bad" role="alert"><p>Not right now.</p><p><button type="button" hx-get="ADDRESS"
        hx-target="closest .notice" hx-swap="outerHTML">Try again</button></p></div>"""

    def fail(route: Route) -> None:
        body = wrong.replace("ADDRESS", route.request.url.replace("&", "&amp;"))
        route.fulfill(status=503, content_type="text/html", headers={"Vary": "HX-Request"}, body=body)

    page.route("**/panels/chart*", fail, times=1)
    page.goto(shop.path())
    chart = page.locator("#chart")
    expect(chart.get_by_text("Not right now.")).to_be_visible()
    chart.get_by_role("button", name="Try again").click()
    expect(chart.locator("canvas")).to_be_visible()
    expect(chart.get_by_text("Not right now.")).to_have_count(0)


def proxy_error(route: Route) -> None:
    """What a proxy answers while the server behind it is started anew."""
    route.fulfill(
        status=502, content_type="text/html", headers={"Vary": "Accept-Encoding"}, body="<h1>Bad Gateway</h1>"
    )


def test_live_goes_on_after_a_proxys_error(page: Page, machine: Machine) -> None:
    mine = open_shop(machine, hits=False)
    mine.log_in(page)
    page.goto(mine.path("/live"))
    expect(page.locator("#poller")).to_be_attached()
    page.route("**/live/newer*", proxy_error)
    expect(page.get_by_text("No answer from the server.")).to_be_visible()
    expect(page.get_by_text("Bad Gateway")).to_have_count(0)
    page.unroute("**/live/newer*")
    mine.hit(event_token="signup")
    expect(page.locator(".hit", has_text="signup")).to_be_visible()
    expect(page.get_by_text("No answer from the server.")).to_have_count(0)


def test_a_proxys_error_takes_nothing_away(page: Page, shop: Shop) -> None:
    """Neither a page that is asked for anew, nor is it what a panel shows; and nothing seems to be on its way still."""
    shop.log_in(page)
    page.route("**/panels/totals*", proxy_error)
    page.goto(shop.path())
    expect(page.locator("#totals")).to_contain_text("No answer from the server.")
    expect(page.locator("#totals .spin")).to_be_hidden()
    page.goto(shop.path("/funnel?step1=page_view"))
    expect(page.locator(".loading")).to_have_count(0)
    page.route("**/funnel?*", proxy_error)
    page.get_by_label("Unit").select_option("minutes")
    expect(page.get_by_text("No answer from the server.")).to_be_visible()
    expect(page.get_by_label("Event token of step 1")).to_have_value("page_view")
    page.unroute("**/funnel?*")
    page.get_by_label("Unit").select_option("hours")
    page.wait_for_url(re.compile("unit=hours"))
    expect(page.get_by_text("No answer from the server.")).to_have_count(0)


def test_a_period_is_chosen_with_the_keyboard(page: Page, shop: Shop) -> None:
    """An arrow key chooses; it leads nowhere until Enter, or the button, says so."""
    shop.log_in(page)
    page.goto(shop.path())
    period = page.get_by_label("Period", exact=True)
    period.focus()
    before = page.url
    for _ in range(2):
        page.keyboard.press("ArrowUp")
    expect(period).to_have_value("24h")
    expect(period).to_be_focused()
    page.wait_for_timeout(300)
    assert page.url == before
    expect(page.get_by_role("button", name="Show", exact=True).first).to_be_visible()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("period=24h"))
    # Nor in a panel's menu, where what is chosen fetches the panel.
    field = page.locator("#breakdown-field")
    field.focus()
    chosen = field.input_value()
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    wanted = field.input_value()
    assert wanted != chosen
    page.wait_for_timeout(300)
    expect(field).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(f"field={re.escape(wanted)}"))
    expect(field).to_have_value(wanted)


def test_revenue_is_never_mixed(page: Page, javascript: bool, shop: Shop) -> None:
    shop.log_in(page)
    page.goto(shop.path("/revenue"))
    table = page.get_by_role("region", name="Revenue by currency")
    # 9.00 to 20.00, twelve orders; one refund; the thirteenth hit was a duplicate.
    expect(table.get_by_role("row", name=re.compile("EUR"))).to_contain_text("174.00 EUR")
    expect(table.get_by_role("row", name=re.compile("EUR"))).to_contain_text("165.00 EUR")
    expect(table.get_by_role("row", name=re.compile("USD"))).to_contain_text("12.50 USD")
    expect(page.get_by_text("186.50")).to_have_count(0)


def test_rejected_hits_say_what_to_change(page: Page, javascript: bool, shop: Shop) -> None:
    shop.log_in(page)
    page.goto(shop.path("/rejected"))
    expect(page.get_by_text("invalid_amount").first).to_be_visible()
    expect(page.locator("#rejected")).to_contain_text("amount=29.00")
    expect(page.locator("#rejected")).to_contain_text("minor unit")


@pytest.mark.parametrize(
    "tail",
    [
        "",
        "/events",
        "/revenue",
        "/live",
        "/rejected",
        "/snippet",
        "/settings",
        "/people",
        "/retention",
        "/funnel",
        "/audiences/new",
    ],
)
def test_hostile_text_stays_text(page: Page, javascript: bool, shop: Shop, tail: str) -> None:
    shop.log_in(page)
    dialogs: list[str] = []

    def shown(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", shown)
    shown_there = {"": HOSTILE, "/events": HOSTILE, "/live": HOSTILE, "/rejected": "29.00", "/people": HOSTILE}
    steps = {"step1": HOSTILE, "step1.params.plan": HOSTILE, "step2": "signup", "by": "params.plan"}
    queries: list[dict[str, str]] = [
        {},
        {"params.plan": HOSTILE},
        {"event_token": HOSTILE},
        *({"/people": [{"search": HOSTILE}, {"did": HOSTILE, "person.plan": HOSTILE}]}.get(tail, [])),
        *({"/retention": [{"first": HOSTILE, "return": HOSTILE}], "/funnel": [steps]}.get(tail, [])),
    ]
    for query in queries:
        page.goto(shop.path(f"{tail}?{urlencode(query)}"))
        page.wait_for_timeout(300)
        if text := shown_there.get(tail):
            expect(page.locator("main").get_by_text(text).first).to_be_visible()
        assert not dialogs
        assert page.locator("img[src='x']").count() == 0
        assert "onerror=alert(2)>49" not in page.content()
    if tail == "/people":
        page.goto(shop.path(f"/people?{urlencode({'search': HOSTILE})}"))
        page.get_by_role("table").get_by_role("link").first.click()
        expect(page.get_by_role("region", name="What happened").get_by_text(HOSTILE).first).to_be_visible()
        expect(page.get_by_role("region", name="Properties").get_by_text(HOSTILE).first).to_be_visible()
        assert not dialogs
        assert page.locator("img[src='x']").count() == 0


def test_an_export_is_taken_on_a_phone(page: Page, javascript: bool, shop: Shop) -> None:
    page.set_viewport_size({"width": 320, "height": 800})
    shop.log_in(page)
    page.goto(shop.path("?params.plan=pro"))
    page.get_by_text("Export", exact=True).click()
    csv = page.get_by_role("link", name="CSV")
    expect(csv).to_be_in_viewport(ratio=1)
    with page.expect_download() as started:
        csv.click()
    rows = started.value.path().read_text().splitlines()
    # Twelve sign-ups, twelve purchases and a refund, below the names of the columns.
    assert len(rows) == 26
    assert "event_token" in rows[0]


def test_a_menu_closes_on_escape_and_on_a_click_elsewhere(page: Page, shop: Shop) -> None:
    shop.log_in(page)
    page.goto(shop.path())
    menu, csv = page.get_by_text("Export", exact=True), page.get_by_role("link", name="CSV")
    menu.click()
    page.keyboard.press("Tab")
    expect(csv).to_be_focused()
    page.keyboard.press("Escape")
    expect(csv).to_be_hidden()
    expect(menu).to_be_focused()
    menu.click()
    expect(csv).to_be_visible()
    page.get_by_text("All events of this view").click()
    expect(csv).to_be_visible()
    page.get_by_role("heading", level=1).click()
    expect(csv).to_be_hidden()


def test_a_form_that_was_sent_is_not_sent_again(page: Page, machine: Machine) -> None:
    mine = open_shop(machine, hits=False)
    mine.log_in(page)
    page.goto("/account/keys")
    page.get_by_label("Name").fill("Once")
    sent: list[Route] = []
    page.route("**/account/keys?account=*", lambda route: sent.append(route))
    place = page.get_by_role("button", name="Make the key").bounding_box()
    assert place is not None
    for _ in range(3):
        page.mouse.click(place["x"] + 5, place["y"] + 5)
        page.wait_for_timeout(100)
    assert len(sent) == 1
    sent[0].continue_()
    expect(page.get_by_role("heading", name="The key Once")).to_be_visible()
    page.goto("/account/keys")
    expect(page.get_by_role("listitem").filter(has_text="Once")).to_have_count(1)


def test_the_list_of_apps_has_todays_counts(page: Page, javascript: bool, shop: Shop) -> None:
    shop.log_in(page)
    card = page.get_by_role("article").filter(has_text="Boots & Blooms")
    expect(card.get_by_text("Events today")).to_be_visible()
    expect(card.get_by_role("img", name=re.compile("Events of the last 14 days"))).to_be_visible()


SEED = '{"method": "email", "page": "signup.html", "email": "john.doe@example.com"}'


def test_the_generator_gives_the_pixel_that_was_asked_for(page: Page, javascript: bool, shop: Shop) -> None:
    shop.log_in(page)
    page.goto(shop.path("/snippet"))
    page.get_by_role("button", name="JSON", exact=True).click()
    page.locator("textarea[name=json]").fill(SEED)
    page.get_by_label("Event token").fill("signup")
    if not javascript:
        page.get_by_role("button", name="Build").last.click()
    code = page.locator("#code-1")
    expect(code).to_contain_text("event_token=signup&amp;params=")
    encoded = re.search(r"params=([A-Za-z0-9%+/=]+)", code.inner_text())
    assert encoded is not None
    assert base64.b64decode(unquote(encoded[1])).decode() == SEED
    # The address is the form: whoever opens it sees the same.
    page.goto(page.get_by_role("link", name="Link to this snippet").get_attribute("href") or "")
    expect(page.locator("textarea[name=json]")).to_have_value(SEED)
    expect(page.locator("#code-1")).to_contain_text(encoded[0])


def test_what_is_too_long_to_be_sent_is_told_from_a_server_that_is_away(page: Page, machine: Machine) -> None:
    mine = open_shop(machine, hits=False)
    mine.log_in(page)
    page.goto(mine.path("/snippet?as=json&event_token=x"))
    values = page.get_by_label("Values as JSON")
    for length in (70_000, 100_000):
        values.fill("x" * length)
        expect(page.get_by_text("This is too long to be sent.")).to_be_visible()
        values.fill('{"a": 1}')
        expect(page.get_by_text("This is too long to be sent.")).to_be_hidden()
    values.fill("x" * 100_000)
    page.get_by_role("button", name="Send a test hit").click()
    expect(page.locator("#test").get_by_text("This is longer than anything that can be kept.")).to_be_visible()


def test_the_generator_in_every_tab(page: Page, javascript: bool, shop: Shop) -> None:
    shop.log_in(page)
    page.goto(shop.path("/snippet?event_token=signup&target=node&as=json&json=%7B%22plan%22%3A%22pro%22%7D"))
    targets = page.locator("input[name=target]").evaluate_all("tabs => tabs.map(tab => tab.value)")
    assert len(set(targets)) == 14
    shown: set[str] = set()
    for target in targets:
        # As a finger does: on the label, since the radio button itself is not drawn.
        page.locator(".targets label", has=page.locator(f"[value={target}]")).click()
        if not javascript:
            page.get_by_role("button", name="Build").last.click()
        page.wait_for_url(re.compile(f"target={target}$"))
        expect(page.locator("#result")).to_contain_text(WHERE_TO[target])
        text = page.locator("#code-1").inner_text()
        assert shop.token in text
        assert "signup" in text
        shown.add(text)
    # Mailers take plain HTML until a value is one of their merge tags.
    assert len(shown) >= 9


def test_a_test_hit_tells_what_it_became(page: Page, javascript: bool, machine: Machine) -> None:
    mine = open_shop(machine, hits=False)
    mine.log_in(page)
    page.goto(mine.path("/snippet?event_token=signup"))
    page.get_by_role("button", name="Send a test hit").click()
    recorded = page.get_by_text("Recorded").first
    # Without script people ask by hand, and again where it is not known yet.
    for _ in range(0 if javascript else 8):
        page.wait_for_timeout(500)
        if recorded.is_visible():
            break
        page.get_by_role("main").get_by_role("link", name=re.compile("[Ss]ee|[Ll]ook")).first.click()
    expect(recorded).to_be_visible()


def test_a_viewer_looks_and_changes_nothing(
    page: Page, javascript: bool, context: BrowserContext, machine: Machine
) -> None:
    mine = open_shop(machine)
    mine.log_in(page)
    browser = context.browser
    assert browser is not None
    theirs = browser.new_context(
        base_url=f"http://127.0.0.1:{machine.process.port}", java_script_enabled=javascript, locale="en-GB"
    )
    theirs.set_default_timeout(10_000)
    tab = theirs.new_page()
    join_as_viewer(page, tab)
    expect(tab.get_by_role("link", name="New app")).to_have_count(0)
    # All that others see, but for whole addresses.
    tab.goto(mine.path())
    expect(tab.locator("#totals dd").first).to_have_text("41")
    for name in ("Revenue", "Live", "Rejected", "Retention", "Funnel", "People", "Snippet"):
        tab.get_by_role("navigation").get_by_role("link", name=name, exact=True).click()
        expect(tab.get_by_role("heading", level=1)).to_contain_text("Boots & Blooms")
        expect(tab.locator(".loading")).to_have_count(0)
        assert not re.search(r"reader\d+(@|%40)example", tab.content())
    tab.goto(mine.path("/people"))
    tab.get_by_role("table").get_by_role("link", name="r…@example.com").first.click()
    expect(tab.get_by_role("heading", name="r…@example.com")).to_be_visible()
    for name in ("Export all that is known", "Delete this person"):
        expect(tab.get_by_role("link", name=name)).to_have_count(0)
    assert "reader" not in tab.get_by_role("main").inner_text()
    with tab.expect_download() as started:
        tab.goto(mine.path())
        tab.get_by_text("Export", exact=True).click()
        tab.get_by_role("link", name="CSV").click()
    exported = started.value.path().read_text()
    assert "r…@example.com" in exported
    assert "reader" not in exported
    # Nothing that changes anything.
    tab.goto(mine.path("/settings"))
    expect(tab.get_by_label("Name")).to_be_disabled()
    for name in ("Save", "Rotate", "Issue"):
        expect(tab.get_by_role("main").get_by_role("button", name=name)).to_have_count(0)
    for path in (mine.path("/delete"), mine.path("/audiences/new"), "/apps/new"):
        tab.goto(path)
        expect(tab.get_by_text("Ask one of its owners")).to_be_visible()
    theirs.close()


def test_the_chart_is_read_with_the_keyboard(page: Page, shop: Shop) -> None:
    shop.log_in(page)
    page.goto(shop.path("?period=24h&interval=hour"))
    chart = page.locator("#chart .plot")
    chart.focus()
    page.keyboard.press("End")
    expect(chart.locator(".tip")).to_be_visible()
    shown = chart.locator(".tip strong").inner_text()
    expect(page.locator("#said")).to_contain_text(shown)
    page.keyboard.press("ArrowLeft")
    expect(chart.locator(".tip strong")).not_to_have_text(shown)


def test_the_chart_follows_the_window_and_the_colour_scheme(page: Page, shop: Shop) -> None:
    shop.log_in(page)
    page.goto(shop.path("/revenue"))
    canvas = page.locator("#revenue .plot canvas")
    expect(canvas).to_be_visible()
    page.set_viewport_size({"width": 320, "height": 800})
    page.wait_for_timeout(400)
    # Asked in a way that ends: a page that hangs never evaluates anything.
    box = canvas.bounding_box()
    assert box is not None
    assert box["width"] <= 320
    page.emulate_media(color_scheme="dark")
    expect(canvas).to_have_count(1)


def style(element: Locator, name: str) -> str:
    """A property as the browser computed it."""
    return element.evaluate("(element, name) => getComputedStyle(element)[name]", name)


def test_what_is_chosen_shows_in_peoples_own_colours(page: Page, shop: Shop) -> None:
    """Where people's own colours replace those of pages, as in Windows' contrast themes."""
    page.emulate_media(forced_colors="active", color_scheme="dark")
    shop.log_in(page)
    page.goto(shop.path("/snippet"))
    targets = page.locator(".targets label")
    chosen = targets.filter(has=page.locator(":checked"))
    other = targets.filter(has=page.locator(":not(:checked)")).last
    ways = page.locator(".switch button")
    for one, another in ((chosen, other), (ways.first, ways.last)):
        assert style(one, "backgroundColor") != style(another, "backgroundColor")
        assert style(one, "color") != style(one, "backgroundColor")
    tabs = page.get_by_role("navigation", name="Boots & Blooms").get_by_role("link")
    current = tabs.filter(has_text="Snippet")
    assert style(current, "borderBottomColor") != style(tabs.first, "borderBottomColor")
    # Nor does each line of a chart have the same one.
    page.goto(shop.path("/revenue"))
    expect(page.locator("#revenue canvas")).to_be_visible()
    legend = page.locator("#revenue .legend .swatch")
    colours = {style(swatch, "backgroundColor") for swatch in legend.all()}
    assert len(colours) == 3
    drawn: list[str] = page.locator("#revenue figure").evaluate(
        "figure => figure.chart.series.slice(1).map(line => line.stroke())"
    )
    assert set(drawn) == colours


def test_large_amounts_are_read_on_a_phone(page: Page, machine: Machine) -> None:
    mine = open_shop(machine, hits=False)
    for currency in ("EUR", "USD", "KWD"):
        order = {"event_token": "purchase", "amount": "99999999999", "currency": currency}
        # The server hears of a new token within moments.
        wait_until(lambda order=order: mine.hit("revenue", {"email": "rich@example.org"}, **order) == 200, 5.0)
    wait_until(machine.digested, 5.0)
    page.set_viewport_size({"width": 320, "height": 900})
    mine.log_in(page)
    lines = """element => {
        const all = document.createRange();
        all.selectNodeContents(element);
        return new Set([...all.getClientRects()].map(line => line.top)).size;
    }"""
    card = page.get_by_role("article").filter(has_text="Boots & Blooms")
    amounts = card.locator("dd").filter(has_text="999,999,999.99")
    expect(amounts).to_have_count(2)
    assert [each.evaluate(lines) for each in amounts.all()] == [1, 1]
    page.goto(mine.path("/people"))
    seen = page.locator("tbody time").first.bounding_box()
    earned = page.locator("tbody td.under").bounding_box()
    assert seen
    assert earned
    assert seen["x"] + seen["width"] <= earned["x"]
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    page.get_by_role("link", name="rich@example.org").click()
    value = page.get_by_role("region", name="Lifetime value").locator("dd:not(.change)")
    expect(value).to_have_count(3)
    assert [each.evaluate(lines) for each in value.all()] == [1, 1, 1]
    assert page.evaluate("document.documentElement.scrollWidth") == 320


@pytest.mark.parametrize("tail", ["/events", "/people", "/revenue"])
def test_lists_are_read_at_200_percent(page: Page, shop: Shop, tail: str) -> None:
    """Of a window of 1,280 pixels 640 are left; no list has to be moved to and fro, nor is it folded on paper."""
    page.set_viewport_size({"width": 640, "height": 450})
    shop.log_in(page)
    page.goto(shop.path(tail))
    table = page.locator(".wide:has(.folded)").first
    expect(table).to_be_visible()
    assert table.evaluate("element => element.scrollWidth <= element.clientWidth")
    expect(table.locator("thead")).to_have_css("position", "absolute")
    page.emulate_media(media="print")
    expect(table.locator("thead")).to_have_css("position", "static")


def tab_to(page: Page, target: Locator) -> None:
    """Press the key until the target has the focus, as people without a mouse do."""
    for _ in range(120):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"never reached with the keyboard: {target}")


def test_all_of_it_with_the_keyboard_alone(page: Page, javascript: bool, machine: Machine) -> None:
    """Log in, open the app, build a snippet, filter what came, rename the app and delete it: no mouse."""
    mine = open_shop(machine, "Keys only")
    page.goto("/login")
    # The first field has the focus, which the browser gives with the first picture: what is typed before is lost.
    expect(page.get_by_label("E-mail")).to_be_focused()
    page.keyboard.type(mine.owner)
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")

    def arrive(address: str) -> None:
        # Without script the page goes on to another with all numbers, where the focus begins anew.
        page.wait_for_url(re.compile(address + ("$" if javascript else r".whole=1$")))

    arrive("/apps")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_role("article").filter(has_text="Keys only").get_by_role("link").first)
    page.keyboard.press("Enter")
    arrive(mine.path())

    # A filter.
    tab_to(page, page.locator("summary", has_text="Add a filter"))
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_label("Field", exact=True).first)
    page.keyboard.type("plan")
    tab_to(page, page.get_by_label("Value"))
    page.keyboard.type("pro")
    page.keyboard.press("Enter")
    arrive(r"params\.plan=pro")
    tab_to(page, page.get_by_role("link", name="Remove the filter plan is pro"))
    page.keyboard.press("Enter")
    arrive(mine.path())
    expect(page.get_by_text("plan is pro")).not_to_be_visible()

    # A snippet.
    tab_to(page, page.get_by_role("navigation").get_by_role("link", name="Snippet", exact=True))
    page.keyboard.press("Enter")
    page.wait_for_url("**/snippet")
    tab_to(page, page.get_by_label("Event token"))
    page.keyboard.press("Control+A")
    page.keyboard.type("signup")
    page.keyboard.press("Enter")
    expect(page.locator("#code-1")).to_contain_text("event_token=signup")

    # Settings, and the end.
    tab_to(page, page.get_by_role("navigation").get_by_role("link", name="Settings", exact=True))
    page.keyboard.press("Enter")
    page.wait_for_url("**/settings")
    tab_to(page, page.get_by_label("Name", exact=True).first)
    page.keyboard.press("Control+A")
    page.keyboard.type("No mouse")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Saved.")
    tab_to(page, page.get_by_role("link", name=re.compile("Delete")))
    page.keyboard.press("Enter")
    page.wait_for_url("**/delete")
    tab_to(page, page.get_by_role("main").get_by_role("textbox"))
    page.keyboard.type("No mouse")
    page.keyboard.press("Enter")
    page.wait_for_url("**/apps")
    expect(page.get_by_text("No mouse")).to_have_count(0)


def test_a_first_load_weighs_less_than_150_kilobytes(page: Page, shop: Shop) -> None:
    shop.log_in(page)
    fresh = page.context.browser
    assert fresh is not None
    context = fresh.new_context(base_url=page.url.partition("/apps")[0], storage_state=page.context.storage_state())
    tab = context.new_page()
    sizes: list[int] = []
    tab.on("requestfinished", lambda request: sizes.append(request.sizes()["responseBodySize"]))
    tab.goto(shop.path())
    expect(tab.locator("#chart .plot canvas")).to_be_visible()
    tab.wait_for_load_state("networkidle")
    context.close()
    # The page, its style, four scripts and its panels.
    assert len(sizes) >= 10
    assert sum(sizes) < 150_000
