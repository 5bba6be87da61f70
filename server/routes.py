"""Which app a token belongs to, in memory: a hit, of a known token or an unknown one, never costs a database query.

All tokens are held, and brought up to date twice a second by one query that is usually empty (`unscoped_routes`). A
token that is not there may have been issued within the last half second, so its hit waits for an update that begins
after it came: at most one every `_MISS_SECONDS`, shared by all that wait. Tokens found unknown are remembered briefly,
so that a flood of them is answered at once.
"""

import asyncio
import time

import structlog

from tenants.tokens import Route, unscoped_routes

log = structlog.get_logger()

# Half the time the protocol allows for a change to count everywhere, less a slow query's.
_REFRESH_SECONDS = 0.5
_MISS_SECONDS = 0.1
# How long a hit with a token we do not know waits to be told so.
_WAIT_SECONDS = 2.0
# A database that hangs is a database that is away: whoever waits for the answer is told so.
_QUERY_SECONDS = 5.0
_UNKNOWN_SECONDS = 1.0
# About 10 MB of remembered unknown tokens at most; a flood of ever new ones starts the memory over.
_UNKNOWN_MOST = 50_000


class Routes:
    """The tokens of all tenants. For one event loop."""

    def __init__(self) -> None:
        self.by_token: dict[str, Route] = {}
        self.by_app: dict[bytes, Route] = {}
        # Of the newest change that is in here.
        self.revision = 0
        # App of every token, ended ones too: the row of a deleted app no longer says which it was.
        self._app_of: dict[str, bytes] = {}
        self._unknown: dict[str, float] = {}
        self._next: asyncio.Task[None] | None = None
        self._missed_at = 0.0
        # One update at a time: an older answer must never overwrite a newer one.
        self._one = asyncio.Lock()
        self._failing = False

    async def find(self, token: str) -> Route | None:
        """The route of a token that is not in memory, or None.

        Raises TimeoutError, or whatever the control database raises, when that does not answer in time.
        """
        if self._unknown.get(token, 0.0) > time.monotonic():
            return None
        if self._next is None:
            self._next = asyncio.create_task(self._refresh_soon())
            # Looked at here too, in case all who wait give up before it fails.
            self._next.add_done_callback(lambda task: task.cancelled() or task.exception())
        async with asyncio.timeout(_WAIT_SECONDS):
            await asyncio.shield(self._next)
        route = self.by_token.get(token)
        if route is None:
            if len(self._unknown) >= _UNKNOWN_MOST:
                self._unknown.clear()
            self._unknown[token] = time.monotonic() + _UNKNOWN_SECONDS
        return route

    async def _refresh_soon(self) -> None:
        await asyncio.sleep(self._missed_at + _MISS_SECONDS - time.monotonic())
        async with self._one:
            self._missed_at = time.monotonic()
            self._next = None  # whoever comes from here on needs a later update
            await self._update()

    async def refresh(self) -> None:
        """Bring the tokens up to date."""
        async with self._one:
            await self._update()

    async def _update(self) -> None:
        async with asyncio.timeout(_QUERY_SECONDS):
            changed = await unscoped_routes(self.revision)
        if changed and changed[0].revision <= self.revision:
            # A database that lost its newest changes, as in a failover to a copy that was behind, gives these numbers
            # once more: what is new would not be heard of.
            log.warning("control database is one from before; all tokens are read again")
            self.revision = 0
            for known in (self.by_token, self.by_app, self._app_of):
                known.clear()
        for route in changed:
            self.revision = max(self.revision, route.revision)
            self.by_token.pop(route.token, None)
            if not route.app_id.int:  # the app was deleted: hits of it that still wait go nowhere
                self.by_app.pop(self._app_of.pop(route.token, b""), None)
                continue
            self._app_of[route.token] = route.app_id.bytes
            self.by_app[route.app_id.bytes] = route
            if not route.revoked:
                self.by_token[route.token] = route
            self._unknown.pop(route.token, None)

    async def keep_fresh(self) -> None:
        """Refresh for ever. While the control database is away, what is known goes on being used."""
        while True:
            try:
                await self.refresh()
            except Exception as error:
                if not self._failing:
                    log.warning(
                        "control database does not answer; known tokens go on working",
                        error=type(error).__name__,
                    )
                self._failing = True
            else:
                if self._failing:
                    log.info("control database answers again")
                self._failing = False
            await asyncio.sleep(_REFRESH_SECONDS)
