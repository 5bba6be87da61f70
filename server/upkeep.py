"""What `onepx serve` does now and then beside its work: deleted apps are erased, raw queries forgotten."""

import asyncio
import time
from datetime import UTC, datetime

import structlog

from server.event_store import EventStore
from tenants.erasures import unscoped_erase_apps, unscoped_forget_queries

log = structlog.get_logger()

_ERASE_SECONDS = 10.0
# Each time looks through the sizes of all raw queries there are.
_FORGET_SECONDS = 6 * 3600.0
# What a restart needs the machine for comes first.
_FIRST_SECONDS = 60.0


async def keep_up(store: EventStore) -> None:
    """Do it for ever. What fails is logged, once, and tried again."""
    failing = False
    forget_at = time.monotonic() + _FIRST_SECONDS
    while True:
        await asyncio.sleep(_ERASE_SECONDS)
        try:
            if done := await unscoped_erase_apps(store, datetime.now(UTC)):
                log.info("deleted apps erased", apps=done)
            if time.monotonic() >= forget_at:
                await unscoped_forget_queries(store, datetime.now(UTC))
                forget_at = time.monotonic() + _FORGET_SECONDS
        except Exception as error:  # a store that is away, or a bug: neither may end this
            if not failing:
                log.warning("deleted apps and old queries wait to be erased", error=type(error).__name__)
            failing = True
        else:
            failing = False
