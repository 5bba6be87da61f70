"""A shop with a past: what the pages that tests look at are full of."""

import json
import re
import secrets
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from machine import Machine, Tenant, wait_until
from playwright.sync_api import Page, expect

PASSWORD = "correct horse battery"  # nobody's, and long enough
# Text that would do harm as anything but text.
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}"


@dataclass
class Shop:
    """An app with hits of every kind; `owner` may log in with PASSWORD."""

    machine: Machine
    tenant: Tenant
    owner: str
    token: str
    app_id: str

    def path(self, tail: str = "") -> str:
        """The address of one of the app's pages."""
        return f"/apps/{self.app_id}{tail}"

    def hit(self, category: str = "event", params: object = None, **query: str) -> int:
        """One hit; returns the status."""
        if params is not None:
            query["params"] = json.dumps(params)
        reply = self.machine.process.get(f"/{self.token}/{category}.gif?{urlencode(query, quote_via=quote)}")
        return reply.status

    def log_in(self, page: Page, email: str = "") -> None:
        """Through the page, as people do."""
        page.goto("/login")
        page.get_by_label("E-mail").fill(email or self.owner)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(re.compile("/apps"))
        # Without script the page goes on to another with all numbers: whoever leaves it before is led there yet.
        expect(page.locator(".loading")).to_have_count(0)


def join_as_viewer(owner: Page, theirs: Page) -> None:
    """Somebody is invited on the page of the owner, who is logged in, and follows the link on a page of theirs."""
    owner.goto("/account/people")
    owner.get_by_label("E-mail").fill(f"viewer-{secrets.token_hex(4)}@example.org")
    owner.get_by_label("Role").last.select_option("viewer")
    owner.get_by_role("button", name="Make the link").click()
    link = owner.locator("#link").inner_text()
    theirs.goto(link[link.index("/join/") :])
    theirs.get_by_label("Name").fill("Vera")
    theirs.get_by_label("Password").fill(PASSWORD)
    theirs.get_by_role("main").get_by_role("button").first.click()
    theirs.wait_for_url("**/apps")


def open_shop(machine: Machine, name: str = "Boots & Blooms", hits: bool = True) -> Shop:
    """A new tenant with one app."""
    tenant = machine.tenant()
    machine.run("user", "password", "--email", tenant.email, f"--password={PASSWORD}")
    made = machine.run("app", "create", "--tenant", tenant.email, "--name", name, "--currency", "EUR")
    shop = Shop(machine, tenant, tenant.email, made["token"], made["app"])
    if hits:
        _fill(shop)
    return shop


def _fill(shop: Shop) -> None:
    wait_until(lambda: shop.hit(event_token="page_view", params={"page": "/", "source": "search"}) == 200, 5.0)
    for n in range(12):
        shop.hit(event_token="page_view", params={"page": ("/", "/pricing", "/boots")[n % 3], "source": "ads"})
        shop.hit(event_token="signup", params={"method": "email", "email": f"reader{n}@example.com", "plan": "pro"})
        # Every other buyer says who it is.
        buyer = (
            {"plan": "pro", "email": f"reader{n}@example.com", "uuid": f"customer-{n}"} if n % 2 else {"plan": "pro"}
        )
        shop.hit("revenue", event_token="purchase", amount=str(900 + 100 * n), event_id=f"o-{n}", params=buyer)
    shop.hit("revenue", event_token="purchase", amount="900", event_id="o-0", params={"plan": "pro"})
    shop.hit("revenue", event_token="purchase", amount="1250", currency="USD", event_id="o-99")
    shop.hit("revenue", event_token="refund", amount="-900", event_id="r-0", params={"plan": "pro"})
    shop.hit("revenue", event_token="purchase", amount="29.00")
    shop.hit(event_token=HOSTILE, params={HOSTILE.replace(".", ""): HOSTILE, "plan": HOSTILE, "uuid": HOSTILE})
    shop.hit(event_token="signup", params={"_secret": 1, "email": "not an address"})
    wait_until(shop.machine.digested, 10.0)
