"""The pages over real databases, and browsers: of alice's tenant an owner, a member and a viewer; and bob's."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest
from application import ADDRESS, SECRET_KEY, Site
from litestar import Litestar

from server.database import Database
from server.event_store import EventStore
from tenants import apps
from tenants.tables import App, Membership, Role, Tenant, User
from web.app import create_app


@pytest.fixture(scope="session")
def application(migrated_event_store: EventStore) -> Litestar:
    """Made once, which takes a fifth of a second."""
    return create_app(migrated_event_store, public_url=ADDRESS, version="test", secret_key=SECRET_KEY)


@pytest.fixture
async def site(
    database: Database, event_store: EventStore, application: Litestar, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    """The application, which remembers nothing of earlier tests."""
    monkeypatch.setattr(application, "state", application.state.copy())
    async with AsyncExitStack() as browsers:
        yield Site(application, browsers)


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


# Pages ask the domain, whose own tests run on both databases. Of the pages, those that tell stories of writing do too;
# the others take minutes and ask the control database nothing that the stories do not.
_ON_ONE_DATABASE = {
    f"test_{name}.py"
    for name in (
        *("rights", "frame", "dashboards", "event_list", "journeys"),
        *("snippet", "people_pages", "audiences", "landing", "api"),
    )
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if item.path.name in _ON_ONE_DATABASE and "postgres" in item.name]
    config.hook.pytest_deselected(items=left_out)
    out = set(left_out)
    items[:] = [item for item in items if item not in out]
