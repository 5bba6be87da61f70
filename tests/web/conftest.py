"""The pages over real databases, and browsers: of alice's tenant an owner, a member and a viewer; and bob's."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import httpx
import pytest
from litestar import Litestar

from server.database import Database
from server.event_store import EventStore
from tenants import apps, sessions
from tenants.tables import App, Membership, Role, Tenant, User
from web.app import create_app

ADDRESS = "http://onepx.test"


class Site:
    """The application, and a way to look at it."""

    def __init__(self, app: Litestar, browsers: AsyncExitStack) -> None:
        self.app = app
        self._browsers = browsers

    async def browser(self, user: User | None = None, tenant: Tenant | None = None) -> httpx.AsyncClient:
        """A browser, logged in if a user is given. It follows no redirects and keeps cookies."""
        browser = await self._browsers.enter_async_context(
            httpx.AsyncClient(
                # Errors are answered as pages: a test must not see more than a browser does.
                transport=httpx.ASGITransport(self.app, raise_app_exceptions=False, client=("192.0.2.7", 40_000)),
                base_url=ADDRESS,
                headers={"Sec-Fetch-Site": "same-origin", "Origin": ADDRESS},
            )
        )
        if user is not None:
            assert tenant is not None
            browser.cookies.set("session", await sessions.create(user, "Test browser", datetime.now(UTC), tenant))
        return browser


@pytest.fixture
async def site(database: Database, event_store: EventStore) -> AsyncIterator[Site]:
    async with AsyncExitStack() as browsers:
        yield Site(create_app(event_store, public_url=ADDRESS, version="test"), browsers)


async def _person(tenant: Tenant, email: str, role: Role) -> User:
    user = User(email=email, name=email.partition("@")[0].title(), password_hash=None)
    await user.save()
    await Membership(tenant=tenant.id, user=user.id, role=role).save()
    return user


@pytest.fixture
async def anonymous(site: Site) -> httpx.AsyncClient:
    return await site.browser()


@pytest.fixture
async def owner(site: Site, alice: Tenant) -> httpx.AsyncClient:
    """alice@example.org, who owns the tenant alice."""
    return await site.browser(await _user("alice@example.org"), alice)


@pytest.fixture
async def member(site: Site, alice: Tenant) -> httpx.AsyncClient:
    return await site.browser(await _person(alice, "member@example.org", Role.MEMBER), alice)


@pytest.fixture
async def viewer(site: Site, alice: Tenant) -> httpx.AsyncClient:
    return await site.browser(await _person(alice, "viewer@example.org", Role.VIEWER), alice)


@pytest.fixture
async def stranger(site: Site, bob: Tenant) -> httpx.AsyncClient:
    """bob@example.org, who owns another tenant."""
    return await site.browser(await _user("bob@example.org"), bob)


@pytest.fixture
async def shop(alice: Tenant) -> App:
    """An app of alice's."""
    return (await apps.create_app(alice, "Shop", "EUR"))[0]


async def _user(email: str) -> User:
    found = await User.objects().where(User.email == email).first()
    assert found is not None
    return found
