"""Access tokens that came with hits are resolved through the Graph API, and their persons learn of it."""

import asyncio
import random
import secrets
import time
from collections.abc import Sequence
from uuid import UUID

import msgspec
import structlog

from server.event_store import EventStore
from server.graph import Expired, Graph, Later, Refused
from tenants import access_tokens, facebook, people
from tenants.access_tokens import TOKEN_MS, Profile, Sender, TakenToken
from tenants.errors import NotFound
from tenants.events import Row
from tenants.facebook import Credentials
from tenants.forgotten import ForgottenKeys, unscoped_forgotten
from tenants.identifiers import unscoped_roots
from tenants.identities import Sighting
from tenants.rewriting import FACEBOOK_PROPERTIES, property_version
from tenants.secrets import SecretKey
from tenants.tables import App, TokenState

log = structlog.get_logger()

# A token is resolved within a moment of its hit; one look is two small queries.
_LOOK_SECONDS = 1.0
# Of one app before it is another's turn, asked about at once: Graph's limits are of the app.
_TOKENS_AT_ONCE = 8
# Some tens of milliseconds each.
_SENDERS_AT_ONCE = 50
_PURGE_SECONDS = 300.0
_OTHERS_MS = 600_000
_FIRST_WAIT_MS = 30_000
_LONGEST_WAIT_MS = 6 * 3_600_000
# Graph says so of a secret that is not the app's, or of one that is missing: somebody may enter the right one.
_WRONG_PARAMETER = 100


class TokenResolver:
    """Resolves the access tokens that wait; any number of processes do it side by side."""

    def __init__(self, store: EventStore, graph: Graph, key: SecretKey) -> None:
        self._store = store
        self._graph = graph
        self._key = key
        self._last_app = self._last_told = UUID(int=0)
        self._purged = 0.0
        self._failing = False

    async def run(self) -> None:
        """Do it for ever. What fails is logged, once, and tried again."""
        while True:
            worked = False
            try:
                worked = await self.work(time.time_ns() // 1_000_000)
            except Exception as error:  # a database that is away, or a bug: neither may end this
                self._failed(error)
            else:
                self._failing = False
            if not worked:
                await asyncio.sleep(_LOOK_SECONDS)

    def _failed(self, error: BaseException) -> None:
        if not self._failing:
            log.warning("access tokens wait to be resolved", error=type(error).__name__)
        self._failing = True

    async def work(self, now_ms: int) -> bool:
        """Resolve some tokens and tell some persons; whether there was anything to do."""
        if time.monotonic() - self._purged > _PURGE_SECONDS or not self._purged:
            await access_tokens.unscoped_put_right(now_ms)
            # Those of an app that Graph wants to rest, too.
            await access_tokens.unscoped_give_up_old(now_ms)
            await access_tokens.unscoped_purge(now_ms)
            self._purged = time.monotonic()
        asked = await self._resolve_some(now_ms)
        told = await self._tell_some(now_ms)
        return asked or told

    async def _resolve_some(self, now_ms: int) -> bool:
        app_id = await access_tokens.unscoped_next_app(self._last_app, now_ms)
        if app_id is None:
            return False
        self._last_app = app_id
        try:
            credentials = await facebook.credentials(app_id, self._key)
        except NotFound:
            await access_tokens.forget_app(app_id)
            return True
        taken = await access_tokens.take(app_id, self._key, now_ms, _TOKENS_AT_ONCE)
        answered = await asyncio.gather(
            *(self._resolve(each, credentials, now_ms) for each in taken), return_exceptions=True
        )
        for each in answered:
            if isinstance(each, BaseException):  # the token is taken again when the lease ends
                self._failed(each)
        if True in answered:
            await access_tokens.all_well(app_id, now_ms)
        return True

    async def _resolve(self, taken: TakenToken, credentials: Credentials | None, now_ms: int) -> bool:
        """Ask Graph about the token; whether it told everything."""
        fbid, profile = taken.fbid, taken.profile
        if taken.received_at_ms <= now_ms - TOKEN_MS:
            await self._settle(taken, TokenState.UNRESOLVED, fbid, profile, now_ms)
            return False
        if taken.token is None:
            # Under another secret key, maybe another machine's. The older it is the less that is worth asking for.
            wait = max(_OTHERS_MS, (now_ms - taken.received_at_ms) // 4)
            await access_tokens.leave(taken, min(now_ms + wait, taken.received_at_ms + TOKEN_MS))
            return False
        rest, answered = 0.0, False
        try:
            secret = credentials and credentials.secret
            if fbid is None:
                user, rest = await self._graph.me(taken.token, secret)
                fbid, profile = user.fbid, Profile(user.name, user.email)
            if credentials is not None:
                found, more = await self._graph.audience_id(credentials.facebook_app_id, taken.token, secret)
                profile = Profile(profile.name, profile.email, found)
                rest = max(rest, more)
        except Expired as error:
            await self._settle(taken, TokenState.EXPIRED, fbid, profile, now_ms)
            rest = max(rest, error.rest)
        except Refused as error:
            await access_tokens.pause(taken.app_id, now_ms + int(max(rest, error.rest) * 1000), error.code)
            if error.code == _WRONG_PARAMETER and fbid is None:
                await self._later(taken, self._next_try(taken, now_ms, 0), fbid, profile, now_ms)
            else:
                await self._settle(taken, TokenState.REFUSED, fbid, profile, now_ms)
            return False
        except Later as error:
            due_at = self._next_try(taken, now_ms, int((error.seconds or 0) * 1000))
            rests_until = now_ms + int(max(rest, error.rest) * 1000)
            if error.of_the_app:
                await access_tokens.pause(taken.app_id, max(due_at, rests_until), error.code)
            elif rests_until > now_ms:
                await access_tokens.pause(taken.app_id, rests_until, 0)
            await self._later(taken, due_at, fbid, profile, now_ms)
            return False
        else:
            await access_tokens.resolved(taken, self._key, fbid, profile, now_ms)
            answered = True
        if rest:
            await access_tokens.pause(taken.app_id, now_ms + int(rest * 1000), 0)
        return answered

    async def _later(self, taken: TakenToken, due_at: int, fbid: str | None, profile: Profile, now_ms: int) -> None:
        """Ask again then, but in time to be given up."""
        due_at = min(due_at, taken.received_at_ms + TOKEN_MS)
        await access_tokens.later(taken, self._key, due_at, fbid, profile, now_ms)

    async def _settle(
        self, taken: TakenToken, state: TokenState, fbid: str | None, profile: Profile, now_ms: int
    ) -> None:
        """There is no more to hear from Graph: what is known by now is all."""
        if fbid is None:
            await access_tokens.give_up(taken, state, now_ms)
        else:
            known = TokenState.EXPIRED if state == TokenState.EXPIRED else TokenState.RESOLVED
            await access_tokens.resolved(taken, self._key, fbid, profile, now_ms, known)

    def _next_try(self, taken: TakenToken, now_ms: int, least_ms: int) -> int:
        """Twice as late each time, but not before Graph said; never all at once."""
        wait = min(_FIRST_WAIT_MS * 2 ** min(taken.attempts - 1, 20), _LONGEST_WAIT_MS)
        spread = random.uniform(1.0, 1.5)  # noqa: S311 (no secret)
        return now_ms + int(max(wait, least_ms) * spread)

    async def _tell_some(self, now_ms: int) -> bool:
        last = self._last_told
        app_id, senders = await access_tokens.unscoped_take_senders(last, self._key, now_ms, _SENDERS_AT_ONCE)
        if app_id is None:
            return False
        self._last_told = app_id
        if not await App.exists().where(App.id == app_id):
            await access_tokens.forget_app(app_id)
            return True
        forgotten = await unscoped_forgotten(min((each.received_at_ms for each in senders), default=now_ms))
        told: list[Sender] = []
        rows: list[Row] = []
        for each in senders:
            try:
                person = None if _is_forgotten(each, forgotten) else await _learn(each, now_ms)
            except Exception as error:  # whatever it is, it must not hold up the others; it is told when the lease ends
                self._failed(error)
                continue
            told.append(each)
            if person is not None:
                rows += property_rows(each, person)
        await people.unscoped_tell(self._store.insert)
        if told:
            # Told twice they are the same, as persons are.
            await self._store.insert("person_properties", rows, secrets.token_hex(16))
            await access_tokens.told(told)
        return True


def _is_forgotten(sender: Sender, forgotten: ForgottenKeys) -> bool:
    """Whether they were deleted since: nothing is kept of them, not even under their cookie."""
    app, at = sender.app_id.bytes, sender.received_at_ms
    told = sender.uuid, sender.email, sender.resolved_fbid or sender.fbid
    return any(forgotten.covers(app, at, id, *told) for id in (sender.visitor, sender.person))


async def _learn(sender: Sender, now_ms: int) -> UUID | None:
    """Have the person learn of their fbid; who they are in the end, None where they were deleted since."""
    app = sender.app_id.bytes
    if sender.resolved_fbid is None:
        return UUID(bytes=(await unscoped_roots([app + sender.person]))[app + sender.person][16:])
    seen = Sighting(
        sender.hit_id,
        sender.received_at_ms,
        app,
        sender.visitor,
        uuid=sender.uuid,
        email=sender.email,
        fbid=sender.resolved_fbid,
        of=sender.person,
    )
    return await people.learn(seen, now_ms)


def property_rows(sender: Sender, person: UUID) -> Sequence[Row]:
    """What became of a token as rows of person_properties; told again they are the same."""
    profile = sender.profile
    state = sender.state.value if sender.state != TokenState.WAITING else None
    values = dict(zip(FACEBOOK_PROPERTIES, (state, profile.name, profile.email, profile.audience_id), strict=True))
    version = property_version(sender.hit_id)
    return [
        (
            sender.app_id.int,
            field,
            person.int,
            msgspec.json.encode(value).decode(),
            sender.received_at_ms,
            version,
        )
        for field, value in values.items()
        if value is not None
    ]
