"""Custom Audiences are pushed to Meta, ten thousand rows at a time: when somebody asks, and those that are daily."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import structlog

from server.event_store import EventStore
from server.graph import Expired, Graph, Later, Refused, Session
from tenants import audiences, facebook
from tenants.audience_members import Member, Row, count_people, members, people_of
from tenants.audiences import RUN_FOR, TakenRun
from tenants.errors import NotFound, Unavailable
from tenants.facebook import Credentials
from tenants.secrets import SecretKey

log = structlog.get_logger()

# Meta takes no more in a call.
_BATCH_ROWS = 10_000
# Runs at once: one that waits for Meta must not keep the next tenant's.
_AT_ONCE = 2
_LOOK_SECONDS = 5.0
_FIRST_WAIT_SECONDS = 30.0
_LONGEST_WAIT_SECONDS = 3_600.0

_WAITS = "Meta asks to wait (error {code})."
_RESTS = "Nearly as much was sent as Meta allows: it goes on soon."
_NO_ANSWER = "Meta does not answer."
_OWN_STORE = "Our event store does not answer."
_TOO_LONG = "Given up after a day. {why}"
_EXPIRED = "The access token is not valid any more: enter a new one."
_LOST = "The access token cannot be read any more, the server has another secret key: enter it again."
_REFUSED = (
    "Meta refused it (error {code}): look whether the audience ID is right and the token may manage the ad account."
)


class _Batch(NamedTuple):
    """Rows of the people up to `last`, the `people`-th."""

    rows: list[Row]
    last: bytes
    people: int


class AudiencePusher:
    """Pushes the audiences that are due; any number of processes do it side by side."""

    def __init__(self, store: EventStore, graph: Graph, key: SecretKey, batch_rows: int = _BATCH_ROWS) -> None:
        self._store = store
        self._graph = graph
        self._key = key
        self._batch_rows = batch_rows

    async def run(self) -> None:
        """Do it for ever."""
        await asyncio.gather(*(self._one_after_another() for _ in range(_AT_ONCE)))

    async def _one_after_another(self) -> None:
        failing = False
        while True:
            worked = False
            try:
                worked = await self.work(datetime.now(UTC))
                failing = False
            except Exception as error:  # a database that is away, or a bug: the run is taken again later
                if not failing:
                    log.warning("audiences wait to be pushed", error=type(error).__name__)
                failing = True
            if not worked:
                await asyncio.sleep(_LOOK_SECONDS)

    async def work(self, now: datetime) -> bool:
        """Push one audience, or some of it; whether there was any."""
        if not await audiences.unscoped_any_due(now):
            return False
        await audiences.unscoped_plan(now)
        taken = await audiences.unscoped_take_run(self._key, now)
        if taken is None:
            return False
        began = time.monotonic()

        def clock() -> datetime:
            """A run of many batches takes a while."""
            return now + timedelta(seconds=time.monotonic() - began)

        try:
            credentials = await facebook.credentials(taken.app.id, self._key)
            await self._push(taken, credentials, clock)
        except NotFound:
            pass  # the app is gone, and the run with it
        return True

    async def _push(self, taken: TakenRun, credentials: Credentials | None, clock: Callable[[], datetime]) -> None:
        if taken.token is None:
            await audiences.finish(taken, _LOST)
            return
        batch: _Batch | None = None
        # As written down last: with each batch its lease begins anew.
        ours = taken
        try:
            people = await people_of(taken.app, self._store, taken.segment)
            about = await count_people(taken.app, people)
            found = members(taken.app, self._store, people, taken.run.after or b"")
            # One ahead, since the last one has to say that it is.
            async for following in self._batches(found, taken.run.people, credentials is not None):
                if batch is not None:
                    sent = await self._send(ours, credentials, batch, False, about, clock)
                    if sent is None:
                        return
                    ours = sent
                batch = following
        except Unavailable:
            await self._wait(ours, clock(), None, _OWN_STORE)
            return
        if batch is not None:
            sent = await self._send(ours, credentials, batch, True, about, clock)
            if sent is None:
                return
            ours = sent
        await audiences.finish(ours)

    async def _batches(self, found: AsyncIterator[Member], people: int, with_fbids: bool) -> AsyncIterator[_Batch]:
        """Never part of a person: the next batch begins after the last one's last."""
        rows: list[Row] = []
        last = b""
        async for member in found:
            theirs = [row for row in member.rows if with_fbids or row.email_sha256]
            if not theirs:
                continue
            if rows and len(rows) + len(theirs) > self._batch_rows:
                yield _Batch(rows, last, people)
                rows = []
            rows += theirs
            last = member.id
            people += 1
        if rows:
            yield _Batch(rows, last, people)

    async def _send(
        self,
        taken: TakenRun,
        credentials: Credentials | None,
        batch: _Batch,
        last: bool,
        about: int,
        clock: Callable[[], datetime],
    ) -> TakenRun | None:
        """Send a batch and write it down; None when the run ends or waits here."""
        assert taken.token is not None
        session = Session(taken.run.session, taken.run.batches + 1, last, max(about, batch.people))
        try:
            uploaded, rest = await self._graph.add_users(
                taken.audience.audience_id,
                taken.token,
                credentials and credentials.secret,
                _payload(batch.rows, credentials),
                session,
            )
        except Expired:
            await audiences.finish(taken, _EXPIRED)
            return None
        except Refused as error:
            await audiences.finish(taken, _REFUSED.format(code=error.code))
            return None
        except Later as error:
            why = _WAITS.format(code=error.code) if error.code else _NO_ANSWER
            await self._wait(taken, clock(), error.seconds, why)
            return None
        ours = await audiences.sent(
            taken, batch.last, batch.people, len(batch.rows), uploaded.received, uploaded.invalid
        )
        if ours is not None and rest and not last:
            await audiences.wait(ours, clock() + timedelta(seconds=rest), _RESTS)
            return None
        return ours

    async def _wait(self, taken: TakenRun, now: datetime, seconds: float | None, why: str) -> None:
        if now - taken.run.requested_at >= RUN_FOR:
            await audiences.finish(taken, _TOO_LONG.format(why=why))
            return
        backoff = min(_FIRST_WAIT_SECONDS * 2 ** min(taken.run.attempts - 1, 20), _LONGEST_WAIT_SECONDS)
        spread = random.uniform(1.0, 1.5)  # noqa: S311 (no secret)
        await audiences.wait(taken, now + timedelta(seconds=max(backoff, seconds or 0) * spread), why)


def _payload(rows: list[Row], credentials: Credentials | None) -> dict[str, object]:
    # Ids of Facebook's say whose they are only together with the app's they were given out for.
    if credentials is None:
        return {"schema": ["EMAIL"], "data": [[row.email_sha256] for row in rows]}
    return {
        "schema": ["EMAIL", "APPUID", "EXTERN_ID"],
        "app_ids": [credentials.facebook_app_id],
        "data": [list(row) for row in rows],
    }
