"""Every page, light and wide, dark and phone-narrow: axe finds nothing against WCAG AA, nothing sticks out, and a
screenshot of it is written to `screenshots/` for people to look at."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from machine import Machine
from playwright.sync_api import Browser, BrowserContext, Page, expect
from shop import Shop, join_as_viewer, open_shop

AXE = Path(__file__).parent / "vendor/axe.js"
SCREENSHOTS = Path(__file__).parent / "screenshots"
WCAG_AA = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]

# (name of the screenshot, address; APP is the app with hits, NEW the one without, TOKEN the first one's token)
PUBLIC = [
    ("landing", "/"),
    ("landing-lost", "/try/nothing-was-sent?sent=1"),
    ("signup", "/signup"),
    ("login", "/login"),
    ("not-found", "/nothing-here"),
    ("no-invitation", "/join/nobody-was-invited"),
    ("api", "/api/docs"),
]
# Pages that are no success.
FAILURES = ("not-found", "no-invitation", "viewer-refused")
INSIDE = [
    ("apps", "/apps"),
    ("new-app", "/apps/new"),
    ("delete-app", "APP/delete"),
    ("revoke-token", "APP/tokens/TOKEN/revoke"),
    ("events", "APP"),
    ("events-filtered", "APP?period=7d&event_token=signup&params.plan=pro"),
    ("events-empty", "APP?event_token=nothing"),
    ("events-hours", "APP?period=today&interval=hour"),
    ("events-list", "APP/events"),
    ("events-list-none", "NEW/events"),
    ("revenue", "APP/revenue"),
    ("retention", "APP/retention"),
    ("retention-weeks", "APP/retention?period=90d&first=page_view&return=purchase"),
    ("retention-none", "APP/retention?first=nothing"),
    (
        "funnel",
        "APP/funnel?step1=page_view&step1.params.source!=mail&step2=page_view&step3=purchase"
        "&within=30&unit=minutes&by=params.page",
    ),
    ("funnel-new", "APP/funnel"),
    ("funnel-wrong", "APP/funnel?step1=page_view&step1.currency=EURO&step2=signup"),
    ("live", "APP/live"),
    ("live-none", "APP/live?text=nothing-like-this"),
    ("people-of-app", "APP/people"),
    ("people-segment", "APP/people?did=purchase&revenue.EUR=500&person.plan=pro&sort=revenue"),
    ("people-nobody", "APP/people?search=nobody-like-this"),
    ("people-none", "NEW/people"),
    ("rejected", "APP/rejected"),
    ("settings", "APP/settings"),
    ("audiences", "APP/audiences"),
    ("audiences-none", "NEW/audiences"),
    ("audience", "APP/audiences/AUDIENCE"),
    ("audience-change", "APP/audiences/AUDIENCE/change"),
    ("audience-new", "APP/audiences/new?did=purchase&times=2&person.plan=pro"),
    ("delete-person", "APP/people/PERSON/delete"),
    ("waiting", "NEW"),
    ("snippet", "APP/snippet"),
    (
        "snippet-revenue",
        "APP/snippet?category=revenue&event_token=purchase&amount=25.00&as=json"
        "&json=%7B%22plan%22%3A%22pro%22%2C%22email%22%3A%22a%40example.com%22%7D&target=python",
    ),
    ("snippet-wrong", "APP/snippet?event_token=&as=json&json=%7B%22plan%22%3A+%7D"),
    ("revenue-none", "NEW/revenue"),
    ("rejected-none", "NEW/rejected"),
    ("test-hit-lost", "APP/snippet/test/nothing-was-sent?sent=1"),
    ("account", "/account"),
    ("usage", "/account/usage"),
    ("profile", "/account/profile"),
    ("people", "/account/people"),
    ("keys", "/account/keys"),
    ("delete-account", "/account/delete"),
]
# What viewers see otherwise than members do, in the colours that the pages have anyhow.
VIEWED = [
    ("viewer-apps", "/apps"),
    ("viewer-events", "APP"),
    ("viewer-events-list", "APP/events"),
    ("viewer-live", "APP/live"),
    ("viewer-people", "APP/people"),
    ("viewer-person", "APP/people/PERSON"),
    ("viewer-audience", "APP/audiences/AUDIENCE"),
    ("viewer-settings", "APP/settings"),
    ("viewer-refused", "APP/delete"),
    ("viewer-account", "/account"),
    ("viewer-team", "/account/people"),
    ("viewer-keys", "/account/keys"),
]
# What browsers without script get: all panels with the page, each chart's table.
WHOLE = [
    ("whole-apps", "/apps?whole=1"),
    ("whole-events", "APP?whole=1"),
    ("whole-revenue", "APP/revenue?whole=1"),
    ("whole-rejected", "APP/rejected?whole=1"),
    ("whole-retention", "APP/retention?whole=1"),
    ("whole-funnel", "APP/funnel?whole=1&step1=page_view&step2=signup&add_field=currency&add_value=EURO"),
    ("whole-live", "APP/live?whole=1"),
]
# Forms sent without anything in their fields: (name, address, the button that sends it).
MISTAKES = [
    ("signup-wrong", "/signup", "Sign up"),
    ("login-wrong", "/login", "Log in"),
    ("new-app-wrong", "/apps/new", "Make the app"),
    ("settings-wrong", "APP/settings", "Save"),
    ("facebook-wrong", "APP/settings", "Connect"),
    ("delete-app-wrong", "APP/delete", "Delete it for good"),
    ("delete-person-wrong", "APP/people/PERSON/delete", "Delete them for good"),
    ("audience-wrong", "APP/audiences/new", "Make the audience"),
    ("team-wrong", "/account/people", "Make the link"),
    ("keys-wrong", "/account/keys", "Make the key"),
    ("profile-wrong", "/account/profile", "Change the e-mail address"),
    ("password-wrong", "/account/profile", "Change the password"),
    ("delete-account-wrong", "/account/delete", "Delete it for good"),
]


@pytest.fixture(scope="module")
def shop(running_site: Machine) -> Shop:
    return open_shop(running_site)


@pytest.fixture(scope="module")
def new_app(shop: Shop) -> str:
    """The id of an app that was never hit."""
    made = shop.machine.run("app", "create", "--tenant", shop.owner, "--name", "Newsletter")
    return str(made["app"])


@pytest.fixture(scope="module")
def person(shop: Shop) -> str:
    """Somebody known; and there is a receipt of another, who was deleted."""
    where = ("--tenant", shop.owner, "--app", shop.token)
    shop.machine.run("person", "delete", *where, "--email", "reader1@example.com")
    events = shop.tenant.get(f"/api/v1/apps/{shop.token}/events?event_token=signup").json()["events"]
    return next(event["person_id"] for event in events if not event["warnings"])


@pytest.fixture(scope="module", params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> Literal["light", "dark"]:
    return request.param


@pytest.fixture(scope="module")
def outside(chromium: Browser, shop: Shop, scheme: Literal["light", "dark"]) -> Iterator[BrowserContext]:
    """Nobody's browser."""
    context = chromium.new_context(base_url=origin(shop), color_scheme=scheme, reduced_motion="reduce")
    context.set_default_timeout(20_000)
    yield context
    context.close()


@pytest.fixture(scope="module")
def inside(outside: BrowserContext, shop: Shop, scheme: str) -> BrowserContext:
    """The owner's: the same, once logged in."""
    page = outside.new_page()
    shop.log_in(page)
    page.close()
    return outside


@pytest.fixture(scope="module")
def audience(chromium: Browser, shop: Shop) -> str:
    """The id of an audience that was pushed, as far as nobody answers."""
    page = chromium.new_page(base_url=origin(shop))
    shop.log_in(page)
    page.goto(shop.path("/audiences/new"))
    page.get_by_label("Name").fill("Buyers on the pro plan")
    for number, row in enumerate((("did", "signup", "1"), ("person", "plan", "pro"))):
        condition = page.get_by_role("group", name=f"Condition {number + 1}")
        condition.get_by_label("Condition", exact=True).select_option(row[0])
        for field, value in zip(condition.get_by_role("textbox").all(), row[1:], strict=True):
            field.fill(value)
    page.get_by_label("Custom Audience ID").fill("6012345678901")
    page.get_by_label("System access token").fill("EAAB" + "x" * 40)
    page.get_by_role("button", name="Make the audience").click()
    page.get_by_role("button", name="Push now").click()
    expect(page.get_by_text("Meta does not answer.")).to_be_visible()
    address = page.url
    page.close()
    return address.rpartition("/")[2]


@pytest.mark.parametrize(("name", "address"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_public_pages(outside: BrowserContext, scheme: str, name: str, address: str) -> None:
    look_at(outside, scheme, name, address)


@pytest.mark.parametrize(("name", "address"), INSIDE + WHOLE, ids=[name for name, _ in INSIDE + WHOLE])
def test_pages_behind_the_login(
    inside: BrowserContext,
    shop: Shop,
    new_app: str,
    audience: str,
    person: str,
    scheme: str,
    name: str,
    address: str,
) -> None:
    meanings = {"APP": shop.path(), "NEW": f"/apps/{new_app}", "TOKEN": shop.token}
    meanings |= {"AUDIENCE": audience, "PERSON": person}
    for word, meant in meanings.items():
        address = address.replace(word, meant)
    look_at(inside, scheme, name, address)


@pytest.mark.parametrize(
    ("name", "listed", "link"),
    [
        ("person", "/people?sort=revenue", "tbody th a"),
        ("person-hostile", "/people?search=%3Cscript", "tbody th a"),
        ("visitor", "/live?event_token=page_view", ".hit a"),
    ],
)
def test_a_person(inside: BrowserContext, shop: Shop, scheme: str, name: str, listed: str, link: str) -> None:
    page = inside.new_page()
    page.goto(shop.path(listed))
    address = page.locator(link).first.get_attribute("href")
    page.close()
    assert address is not None
    look_at(inside, scheme, name, address)


@pytest.mark.parametrize("scheme", ["dark"], indirect=True)
@pytest.mark.parametrize(("name", "address", "button"), MISTAKES, ids=[name for name, _, _ in MISTAKES])
def test_forms_with_mistakes(
    inside: BrowserContext, shop: Shop, person: str, scheme: str, name: str, address: str, button: str
) -> None:
    browser, context = inside.browser, inside
    assert browser is not None
    if address in ("/signup", "/login"):
        context = browser.new_context(base_url=origin(shop), color_scheme="dark" if scheme == "dark" else "light")
    page = context.new_page()
    page.goto(address.replace("APP", shop.path()).replace("PERSON", person))
    sends = page.get_by_role("button", name=button, exact=True)
    sent = page.locator("main form[method=post]", has=sends)
    # As from a browser that checks nothing itself.
    sent.evaluate("form => { form.noValidate = true }")
    for box in sent.locator("input:not([type=hidden], [type=radio], [type=checkbox]), textarea").all():
        if box.is_visible():
            box.fill("")
    sends.click()
    expect(page.locator("main :is(.error, [role=alert]):visible").first).to_be_visible()
    looked_at(page, scheme, name)
    page.close()
    if context is not inside:
        context.close()


def test_what_a_field_may_hold_is_as_legible_as_a_hint(inside: BrowserContext, shop: Shop) -> None:
    """axe does not look at placeholders."""
    page = inside.new_page()
    page.goto(shop.path("/people"))
    colours: list[str] = page.evaluate(
        "[[document.querySelector('#search'), '::placeholder'], [document.querySelector('.bottom'), null]]"
        ".map(place => getComputedStyle(...place).color)"
    )
    page.close()
    assert colours[0] == colours[1]


@pytest.mark.parametrize("javascript", [True, False], ids=["script", "no-script"])
def test_a_test_hit(inside: BrowserContext, shop: Shop, scheme: str, javascript: bool) -> None:
    browser = inside.browser
    assert browser is not None
    context = browser.new_context(
        base_url=origin(shop),
        color_scheme="dark" if scheme == "dark" else "light",
        storage_state=inside.storage_state(),
        java_script_enabled=javascript,
    )
    page = context.new_page()
    page.goto(shop.path("/snippet?event_token=signup&as=json&json=%7B%22plan%22%3A%22pro%22%7D"))
    page.get_by_role("button", name="Send a test hit").click()
    if javascript:
        expect(page.get_by_text("Recorded").first).to_be_visible()
        looked_at(page, scheme, "test-hit")
    else:
        # axe is a script, and never ends where scripts do not run.
        expect(page.get_by_role("main").get_by_role("link", name=re.compile("[Ss]ee|[Ll]ook")).first).to_be_visible()
        page.screenshot(path=SCREENSHOTS / f"test-hit-sent-{scheme}.png", full_page=True)
    context.close()


@pytest.fixture(scope="module")
def viewer(inside: BrowserContext, shop: Shop, scheme: Literal["light", "dark"]) -> Iterator[BrowserContext]:
    """The browser of somebody who may only look."""
    browser = inside.browser
    assert browser is not None
    context = browser.new_context(base_url=origin(shop), color_scheme=scheme, reduced_motion="reduce")
    owner, theirs = inside.new_page(), context.new_page()
    join_as_viewer(owner, theirs)
    owner.close()
    theirs.close()
    yield context
    context.close()


@pytest.mark.parametrize("scheme", ["light"], indirect=True)
@pytest.mark.parametrize(("name", "address"), VIEWED, ids=[name for name, _ in VIEWED])
def test_pages_of_a_viewer(
    viewer: BrowserContext, shop: Shop, audience: str, person: str, scheme: str, name: str, address: str
) -> None:
    for word, meant in {"APP": shop.path(), "AUDIENCE": audience, "PERSON": person}.items():
        address = address.replace(word, meant)
    look_at(viewer, scheme, name, address)


def test_an_invitation(inside: BrowserContext, outside: BrowserContext, scheme: str) -> None:
    page = inside.new_page()
    page.goto("/account/people")
    page.get_by_label("E-mail").fill("somebody@example.org")
    page.get_by_role("button", name="Make the link").click()
    link = page.locator("#link").inner_text()
    page.close()
    look_at(outside, scheme, "join", link[link.index("/join/") :])


def look_at(browser: BrowserContext, scheme: str, name: str, address: str) -> None:
    """Open it and look."""
    page = browser.new_page()
    looked_at(page, scheme, name, address)
    page.close()


def looked_at(page: Page, scheme: str, name: str, address: str | None = None) -> None:
    """The page that is open, or is opened: wide in light colours, phone-narrow in dark ones. axe takes seconds each."""
    SCREENSHOTS.mkdir(exist_ok=True)
    width = 320 if scheme == "dark" else 1280
    page.set_viewport_size({"width": width, "height": 900})
    if address is not None:
        reply = page.goto(address)
        assert reply is not None
        assert reply.ok or name in FAILURES
    settled(page)
    page.screenshot(path=SCREENSHOTS / f"{name}-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    assert violations(page) == []


def origin(shop: Shop) -> str:
    """Where the shop's machine answers."""
    return f"http://127.0.0.1:{shop.machine.process.port}"


def settled(page: Page) -> None:
    """Wait until no panel is being fetched."""
    # Not wait_for_function: it evaluates text in the page, which the content policy refuses.
    expect(page.locator(".loading")).to_have_count(0)
    expect(page.locator(".htmx-request:not([data-poll])")).to_have_count(0)


def violations(page: Page) -> list[str]:
    """What axe finds against WCAG AA: rule, and the elements."""
    page.evaluate(AXE.read_text())
    found: dict[str, Any] = page.evaluate(
        "tags => axe.run(document, {runOnly: tags, resultTypes: ['violations']})", WCAG_AA
    )
    return [
        f"{each['id']}: {each['help']}: " + "; ".join(node["html"][:200] for node in each["nodes"][:4])
        for each in found["violations"]
    ]
