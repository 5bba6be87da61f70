"""The application without a server, and browsers to look at it."""

from contextlib import AsyncExitStack
from datetime import UTC, datetime

import httpx
from litestar import Litestar

from tenants import sessions
from tenants.tables import Tenant, User

HOST = "onepx.test"
ADDRESS = f"http://{HOST}"
SECRET_KEY = "a secret of at least 32 characters"


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
                transport=httpx.ASGITransport(
                    self.app,  # pyright: ignore[reportArgumentType]
                    raise_app_exceptions=False,
                    client=("192.0.2.7", 40_000),
                ),
                base_url=ADDRESS,
                headers={"Sec-Fetch-Site": "same-origin", "Origin": ADDRESS},
            )
        )
        if user is not None:
            assert tenant is not None
            token = await sessions.create(user, "Test browser", datetime.now(UTC), tenant)
            browser.cookies.set("session", token, HOST)
        return browser
