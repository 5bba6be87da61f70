"""A real browser in front of a real server: Debian's Chromium, with JavaScript and without."""

import shutil
from collections.abc import Iterator

import pytest
from machine import Machine
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

# Milliseconds: no story promises a pace by it, and a machine with fewer cores than browsers stalls for seconds.
_PATIENCE = 30_000
expect.set_options(timeout=_PATIENCE)


@pytest.fixture(scope="session")
def running_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("site"))
    machine.start()
    yield machine
    machine.close()


@pytest.fixture
def machine(running_site: Machine) -> Iterator[Machine]:
    """A machine with `onepx serve`, shared by all stories: make a tenant of your own."""
    yield running_site
    running_site.check_logs()


# Not for the session: while it runs, so does Playwright's event loop, and no other test could have one of its own.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A running Chromium; where none is installed, tests that need it are skipped."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not installed (Debian and Ubuntu: the package chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            # As root, which tests in a container are, Chromium runs only without its sandbox; pages are our own.
            args=[
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--disable-gpu",  # there is none, and its stand-in takes a process that may crash a page's
                "--disable-quic",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture(params=[True, False], ids=["script", "no-script"])
def javascript(request: pytest.FixtureRequest) -> bool:
    """Whether the browser of `page` runs scripts; a test that takes it is told with and without."""
    return request.param


@pytest.fixture
def context(request: pytest.FixtureRequest, chromium: Browser, machine: Machine) -> Iterator[BrowserContext]:
    """A browser of somebody's own: no cookies yet."""
    script: bool = request.getfixturevalue("javascript") if "javascript" in request.fixturenames else True
    context = chromium.new_context(
        base_url=f"http://127.0.0.1:{machine.process.port}", java_script_enabled=script, locale="en-GB"
    )
    context.set_default_timeout(_PATIENCE)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A tab. Whatever a page's script says is wrong, and whatever the content policy refuses, fails the test."""
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def heard(message: ConsoleMessage) -> None:
        # A status above 399 is told here too, and is what some stories are about.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            wrong.append(message.text)

    page.on("console", heard)
    yield page
    assert not wrong, wrong
