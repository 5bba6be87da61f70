"""What `onepx serve` does now and then: what is deleted or kept no longer goes, merged persons become one for good."""

import asyncio
import time
from collections.abc import Awaitable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import structlog

from server.event_store import EventStore
from server.journal import ask_to_let_go, oldest_segment
from tenants.deletions import (
    unscoped_expire_people,
    unscoped_newest_pending,
    unscoped_off_the_disk,
    unscoped_work_off,
)
from tenants.erasures import unscoped_erase_apps, unscoped_expire, unscoped_forget_queries
from tenants.errors import Unavailable
from tenants.forgotten import unscoped_purge_forgotten
from tenants.members import unscoped_purge_invitations
from tenants.people import unscoped_forget_sections
from tenants.rewriting import unscoped_collect, unscoped_put_right, unscoped_reattribute, unscoped_rewrite
from tenants.sessions import unscoped_purge_sessions

log = structlog.get_logger()

_ROUND_SECONDS = 5.0
# Each time looks through the sizes of all raw queries there are.
_FORGET_SECONDS = 6 * 3600.0
_EXPIRE_SECONDS = 3600.0
_AGAIN_SECONDS = 300.0
# Each time the persons of all events of a month are written again.
_REWRITE_SECONDS = 300.0
# Collecting looks through all events of an app, also for one who just became known: how much of the time it may take.
_COLLECTING_SHARE = 0.1
# What a restart needs the machine for comes first.
_FIRST_SECONDS = 60.0
# Other machines' digests have stored what came before, or asked again who was deleted meanwhile.
_SETTLED = timedelta(minutes=15)


async def keep_up(store: EventStore, journal_dir: Path, failing: dict[str, float]) -> None:
    """Do it for ever. What fails is logged, once, and tried again, and holds up nothing else.

    `failing` is kept up: what fails, and since when (time.monotonic).
    """

    async def attempt(what: str, work: Awaitable[object]) -> bool:
        try:
            await work
        except Exception as error:  # a store that is away, or a bug: neither may end this
            if what not in failing:
                # Another error's words may repeat what a visitor sent.
                reason = {"reason": str(error)} if isinstance(error, Unavailable) else {}
                log.warning("upkeep waits", what=what, error=type(error).__name__, **reason)
            failing.setdefault(what, time.monotonic())
            return False
        failing.pop(what, None)
        return True

    forget_at = expire_at = people_at = rewrite_at = time.monotonic() + _FIRST_SECONDS
    collect_at = 0.0
    asked: datetime | None = None
    expired_on: date | None = None
    while True:
        await asyncio.sleep(_ROUND_SECONDS)
        now = datetime.now(UTC)
        await attempt("erasing deleted apps", _erase_apps(store, now))
        if (began := time.monotonic()) >= collect_at:
            await attempt("collecting properties", unscoped_collect(store, now))
            collect_at = began + (time.monotonic() - began) / _COLLECTING_SHARE
        await attempt("moving events", unscoped_reattribute(store, now))
        await attempt("forgetting the order of hits", unscoped_forget_sections(now))
        if time.monotonic() >= rewrite_at and await attempt("rewriting persons", unscoped_rewrite(store, now)):
            rewrite_at = time.monotonic() + _REWRITE_SECONDS

        async def delete() -> None:
            nonlocal asked
            newest = await unscoped_newest_pending()
            if newest is None:
                return
            if newest != asked:
                await asyncio.to_thread(ask_to_let_go, journal_dir)
                asked = newest
            await _delete_persons(store, journal_dir)

        await attempt("deleting persons", delete())
        if time.monotonic() >= forget_at and await attempt("emptying raw queries", unscoped_forget_queries(store, now)):
            forget_at = time.monotonic() + _FORGET_SECONDS
        if time.monotonic() >= expire_at:
            done = await attempt("expiring events", unscoped_expire(store, now))
            done &= await attempt("forgetting who was deleted", unscoped_purge_forgotten(now))
            done &= await attempt("forgetting ended sessions", unscoped_purge_sessions(now))
            done &= await attempt("forgetting ended invitations", unscoped_purge_invitations(now))
            done &= await attempt("putting times right", unscoped_put_right(now))
            expire_at = time.monotonic() + (_EXPIRE_SECONDS if done else _AGAIN_SECONDS)
        if now.date() != expired_on and time.monotonic() >= people_at:
            # Whose events only begin to go is looked at tomorrow. It asks about everybody: not again at once.
            if await attempt("expiring people", unscoped_expire_people(store, now)):
                expired_on = now.date()
            people_at = time.monotonic() + _EXPIRE_SECONDS


async def _erase_apps(store: EventStore, now: datetime) -> None:
    if done := await unscoped_erase_apps(store, now):
        log.info("deleted apps erased", apps=done)


async def _delete_persons(store: EventStore, journal_dir: Path) -> None:
    now = datetime.now(UTC)
    oldest = await asyncio.to_thread(oldest_segment, journal_dir)
    digested_until = datetime.fromtimestamp(oldest / 1000, UTC) if oldest is not None else now
    if not store.embedded:
        digested_until = min(digested_until, now - _SETTLED)
    # Before, for what was deleted a moment ago; and after, for what was remembered of it.
    await unscoped_off_the_disk()
    if done := await unscoped_work_off(store, digested_until, now):
        log.info("deleted persons are gone", persons=done)
        await unscoped_off_the_disk()
