"""What `onepx serve` does with Facebook in the background: access tokens are resolved, audiences pushed.

Most installations never do either: what it takes (an HTTP client: 10 MB, a fifth of a second) is loaded once there is
something to do.
"""

import asyncio
import importlib
from typing import Any

import structlog

from server.event_store import EventStore
from server.settings import Settings
from tenants import access_tokens, audiences
from tenants.facebook import facebook_key

log = structlog.get_logger()

_LOOK_SECONDS = 1.0


async def work_with_facebook(settings: Settings, store: EventStore) -> None:
    """Do it for ever, beside any number of processes that do the same."""
    await _something_to_do()
    graph_module, resolver, pusher = [
        # Any: they are loaded by name, in a thread, so that hits need not wait.
        await asyncio.to_thread(_loaded, f"server.{name}")
        for name in ("graph", "token_resolver", "audience_pushes")
    ]
    graph = graph_module.Graph(settings.graph_url, settings.graph_version)
    key = facebook_key(settings.secret_key)
    try:
        await asyncio.gather(
            resolver.TokenResolver(store, graph, key).run(), pusher.AudiencePusher(store, graph, key).run()
        )
    finally:
        await graph.close()


def _loaded(name: str) -> Any:
    return importlib.import_module(name)


async def _something_to_do() -> None:
    failing = False
    while True:
        try:
            if await access_tokens.unscoped_any() or await audiences.unscoped_any():
                return
            failing = False
        except Exception as error:  # the control database is away
            if not failing:
                log.warning("whether there is work with Facebook is not known", error=type(error).__name__)
            failing = True
        await asyncio.sleep(_LOOK_SECONDS)
