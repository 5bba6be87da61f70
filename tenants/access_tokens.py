"""Facebook access tokens that came with hits, from the digest until whose they are is told to their persons.

    keep -> AccessToken (encrypted, one row however often it was sent) and TokenSender (who sent it)
    take -> asked of Graph -> resolved, given_up or later
    take_senders -> the person learns of it -> told

Right with any number of processes, killed anywhere: a row is taken by moving on when it is due, so whoever takes it has
it for `LEASE_MS`, and after that it is anybody's again. What is told twice changes nothing.
"""
# Piccolo keeps a table's engine in `_meta`, and its annotations leave type arguments open.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from tenants import bulk
from tenants.secrets import SecretKey
from tenants.tables import AccessToken, App, GraphPause, Reattribution, TokenSender, TokenState, transaction

# A token is erased then, resolved or not.
TOKEN_MS = 7 * 86_400_000
# Longer than Facebook's own live (60 days): until then, one that is sent again is not asked about again.
KEPT_MS = 90 * 86_400_000
# One that Graph refused, or that nobody could ask about, is asked about again when it is sent this long after.
_AGAIN_MS = 86_400_000
# Longer than all that is done with what was taken, calls that time out included.
LEASE_MS = 120_000

# Of a day Graph says itself, and half as much again.
_LONGEST_PAUSE_MS = 2 * 86_400_000
# Clocks of machines differ by less.
_SKEW_MS = 300_000

# Rows removed in a transaction, after which others get their turn to write.
_PURGE_ROWS = 10_000
# Values a statement; SQLite takes 32,766.
_NAMED_AT_ONCE = 5_000


class WaitingToken(NamedTuple):
    """A hit with an access token, and the identifiers that came with it. Ids have 16 bytes.

    `person` is whose event it is; that of an anonymous visitor is their cookie's.
    """

    app_id: UUID
    token: str
    hit_id: bytes
    received_at_ms: int
    visitor: bytes
    uuid: str | None = None
    email: str | None = None
    fbid: str | None = None
    person: bytes = b""

    def __repr__(self) -> str:
        return f"WaitingToken({self.app_id}, {self.hit_id.hex()})"


class Profile(msgspec.Struct, frozen=True, array_like=True):
    """What Facebook says of a token's user, beside the fbid; None is what it does not tell."""

    name: str | None = None
    email: str | None = None
    audience_id: str | None = None

    def __repr__(self) -> str:
        return "Profile(…)"


class TakenToken(NamedTuple):
    """A token to ask Graph about, until `until` (ms). `token` is None where the key no longer fits.

    `fbid` and `profile` are there when only the Custom Audience id is missing.
    """

    key: bytes
    app_id: UUID
    token: str | None
    received_at_ms: int
    attempts: int
    until: int
    fbid: str | None
    profile: Profile

    def __repr__(self) -> str:
        return f"TakenToken({self.key.hex()})"


class Sender(NamedTuple):
    """A person who is to learn what became of a token they sent; has it until `until` (ms).

    While the token is WAITING that is only whose it is: there is more to come.
    """

    key: bytes
    app_id: UUID
    hit_id: bytes
    received_at_ms: int
    visitor: bytes
    uuid: str | None
    email: str | None
    fbid: str | None
    person: bytes
    until: int
    state: TokenState
    resolved_fbid: str | None
    profile: Profile

    def __repr__(self) -> str:
        return f"Sender({self.key.hex()})"


async def keep(key: SecretKey, entries: Sequence[WaitingToken], now_ms: int) -> None:
    """Have the tokens resolved. All or nothing; the same entries again change nothing.

    One that came more than seven days ago is past its time, and is not kept.
    """
    tokens: dict[bytes, WaitingToken] = {}
    senders: dict[bytes, tuple[bytes, WaitingToken]] = {}
    for entry in entries:
        if entry.received_at_ms <= now_ms - TOKEN_MS:
            continue
        token = entry.app_id.bytes + key.hash(entry.token.encode(errors="surrogatepass"))
        tokens.setdefault(token, entry)
        entry = entry._replace(person=entry.person or entry.visitor)
        who = (token, entry.visitor, entry.uuid, entry.email, entry.fbid, entry.person)
        hashed = key.hash(msgspec.msgpack.encode(who))
        senders.setdefault(entry.app_id.bytes + hashed, (token, entry))
    if not senders:
        return
    async with transaction():
        # Nearly always a page sends the same token again, and all is known.
        known = {named for (named,) in await bulk.find(TokenSender, ("key",), "key", list(senders))}
        again = {
            named
            for named, state, received_at in await bulk.find(
                AccessToken, ("key", "state", "received_at"), "key", list(tokens)
            )
            if state in _UNANSWERED and tokens[named].received_at_ms > received_at + _AGAIN_MS
        }
        new = sorted((named, *sender) for named, sender in senders.items() if named not in known or sender[0] in again)
        # In the order of their keys: everybody locks rows in that order, so nobody waits in a circle. An update that
        # changes nothing makes a conflict lock the row, so that it is not resolved before its senders are in.
        rows = [
            (
                named,
                tokens[named].app_id,
                TokenState.WAITING.value,
                key.encrypt(tokens[named].token, named),
                tokens[named].received_at_ms,
                now_ms,
                0,
            )
            for named in sorted({token for _, token, _ in new})
        ]
        await bulk.run(
            AccessToken,
            "INSERT INTO access_token (key, app_id, state, sealed, received_at, due_at, attempts) "
            f"VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET {_ASK_AGAIN}",
            rows,
        )
        found = await bulk.find(AccessToken, ("key", "state", "fbid"), "key", [row[0] for row in rows])
        # Whose a token is may be known while there is more to ask.
        unknown = {named for named, state, fbid in found if state == TokenState.WAITING and fbid is None}
        # Who was put right since: another machine digested an earlier hit.
        hits = [entry.hit_id for _, _, entry in new]
        moved = dict(await bulk.find(Reattribution, ("hit_id", "person"), "hit_id", hits))
        # Whoever was told before is told again, of what becomes of it now.
        told_again = ", ".join(f"{name} = excluded.{name}" for name in _SENDER_COLUMNS[2:])
        await bulk.run(
            TokenSender,
            f"INSERT INTO token_sender ({', '.join(_SENDER_COLUMNS)}) VALUES ({', '.join('?' * len(_SENDER_COLUMNS))}) "
            f"ON CONFLICT (key) DO UPDATE SET {told_again} WHERE token_sender.told",
            [
                (
                    named,
                    entry.app_id,
                    token,
                    entry.hit_id,
                    entry.received_at_ms,
                    entry.visitor,
                    entry.uuid,
                    entry.email,
                    entry.fbid,
                    moved[entry.hit_id][16:] if entry.hit_id in moved else entry.person,
                    False,
                    None if token in unknown else now_ms,
                )
                for named, token, entry in new
            ],
        )


_UNANSWERED = (TokenState.REFUSED, TokenState.UNRESOLVED)
_IS_ASKED_AGAIN = (
    f"access_token.state IN ('{_UNANSWERED[0].value}', '{_UNANSWERED[1].value}') "
    f"AND excluded.received_at > access_token.received_at + {_AGAIN_MS}"
)
_ASK_AGAIN = ", ".join(
    f"{name} = CASE WHEN {_IS_ASKED_AGAIN} THEN excluded.{name} ELSE access_token.{name} END"
    for name in ("state", "sealed", "received_at", "due_at", "attempts")
)
_SENDER_COLUMNS = (
    "key",
    "app_id",
    "token",
    "hit_id",
    "received_at",
    "visitor",
    "uuid",
    "email",
    "fbid",
    "person",
    "told",
    "due_at",
)


def _skip_held() -> str:
    """On PostgreSQL a row that another process takes at this moment is left to it.

    What is taken is found first, MATERIALIZED: PostgreSQL may look for it once for each row of the table, passing over
    what it holds itself by then, and take any number.
    """
    return "FOR UPDATE SKIP LOCKED" if AccessToken._meta.db.engine_type == "postgres" else ""


async def unscoped_next_app(after: UUID, now_ms: int) -> UUID | None:
    """An app with tokens that are due: the first one after this id, else the first; None when nothing is due.

    Apps take turns, so that one's million tokens do not keep another's ten waiting.
    """
    for first in (after, UUID(int=0)):
        found = await AccessToken.raw(
            "SELECT app_id FROM access_token WHERE app_id > {} AND due_at <= {} AND NOT EXISTS (SELECT 1 FROM "
            "graph_pause WHERE graph_pause.app_id = access_token.app_id AND until > {}) ORDER BY app_id LIMIT 1",
            first,
            now_ms,
            now_ms,
        )
        if found:
            return _uuid(found[0]["app_id"])
    return None


def _uuid(value: UUID | str) -> UUID:
    return value if isinstance(value, UUID) else UUID(value)


async def take(app_id: UUID, key: SecretKey, now_ms: int, limit: int) -> list[TakenToken]:
    """Tokens of the app that are due, for whoever takes them alone, for as long as the lease is."""
    until = now_ms + LEASE_MS
    async with transaction():
        rows = await AccessToken.raw(
            "WITH due AS MATERIALIZED (SELECT key FROM access_token WHERE app_id = {} AND due_at <= {} "
            f"ORDER BY due_at LIMIT {limit} {_skip_held()}) "
            "UPDATE access_token SET due_at = {}, attempts = attempts + 1 WHERE key IN (SELECT key FROM due) "
            "RETURNING *",
            app_id,
            now_ms,
            until,
        )
    return [
        TakenToken(
            row["key"],
            app_id,
            _read(key, row["sealed"], row["key"]),
            row["received_at"],
            row["attempts"],
            until,
            row["fbid"],
            _profile(key, row),
        )
        for row in rows
    ]


def _read(key: SecretKey, sealed: bytes | None, place: bytes) -> str | None:
    return None if sealed is None else key.try_decrypt(sealed, place)


def _profile(key: SecretKey, row: dict[str, Any]) -> Profile:
    text = _profile_text(key, row)
    return Profile() if text is None else msgspec.json.decode(text, type=Profile)


def _profile_text(key: SecretKey, row: dict[str, Any]) -> str | None:
    return _read(key, row["sealed_profile"], b"profile" + row["key"])


def _can_read_profile(key: SecretKey, row: dict[str, Any]) -> bool:
    """Whether there is none, or one of this key: of another machine's its senders learn there."""
    return row["sealed_profile"] is None or _profile_text(key, row) is not None


async def resolved(
    taken: TakenToken,
    key: SecretKey,
    fbid: str,
    profile: Profile,
    now_ms: int,
    state: TokenState = TokenState.RESOLVED,
) -> bool:
    """The token's user is known; the token is erased, and all who sent it are due. False: no longer ours to say.

    `state` is EXPIRED where it was good for no more than that.
    """
    return await _settle(taken, state, now_ms, fbid, _sealed(key, taken, profile))


async def give_up(taken: TakenToken, state: TokenState, now_ms: int) -> bool:
    """Graph will never tell whose it is; the token is erased, and all who sent it are due."""
    return await _settle(taken, state, now_ms, None, None)


def _sealed(key: SecretKey, taken: TakenToken, profile: Profile) -> bytes:
    return key.encrypt(msgspec.json.encode(profile).decode(), b"profile" + taken.key)


async def _settle(
    taken: TakenToken, state: TokenState, now_ms: int, fbid: str | None, sealed_profile: bytes | None
) -> bool:
    settled = {AccessToken.state: state, AccessToken.sealed: None, AccessToken.due_at: None}
    return await _write_down(taken, now_ms, True, settled | _found(fbid, sealed_profile))


async def later(
    taken: TakenToken, key: SecretKey, due_at: int, fbid: str | None, profile: Profile, now_ms: int
) -> None:
    """Ask again at `due_at` (ms); what is known by now stays known. Whose it is its senders learn at once."""
    sealed = _sealed(key, taken, profile) if fbid else None
    news = fbid is not None and taken.fbid is None
    await _write_down(taken, now_ms, news, {AccessToken.due_at: due_at} | _found(fbid, sealed))


async def leave(taken: TakenToken, due_at: int) -> None:
    """Leave it to whoever has the key it is sealed with, or to be given up: it was not tried."""
    await _write_down(taken, 0, False, {AccessToken.due_at: due_at, AccessToken.attempts: taken.attempts - 1})


def _found(fbid: str | None, sealed_profile: bytes | None) -> dict[Any, Any]:
    return {AccessToken.fbid: fbid, AccessToken.sealed_profile: sealed_profile}


async def _write_down(taken: TakenToken, now_ms: int, news: bool, values: dict[Any, Any]) -> bool:
    """What was found out, unless it is no longer ours to say; with `news` all who sent the token are due."""
    async with transaction():
        ours = await (
            AccessToken.update(values)
            .where(AccessToken.key == taken.key, AccessToken.due_at == taken.until)
            .returning(AccessToken.key)
        )
        if ours and news:
            await _senders_due([taken.key], now_ms)
    return bool(ours)


async def _senders_due(tokens: list[bytes], now_ms: int) -> None:
    await TokenSender.update({TokenSender.due_at: now_ms}).where(
        TokenSender.token.is_in(tokens), TokenSender.told.eq(False)
    )


async def unscoped_put_right(now_ms: int) -> None:
    """Have begin now what a clock that was ahead put off: it would be asked about, and given up, only then."""
    for column, longest in (
        (AccessToken.received_at, 0),
        (AccessToken.due_at, TOKEN_MS),
        (TokenSender.received_at, 0),
        (TokenSender.due_at, LEASE_MS),
        (GraphPause.until, _LONGEST_PAUSE_MS),
    ):
        table = column._meta.table
        await table.update({column: now_ms}).where(column > now_ms + longest + _SKEW_MS)


async def unscoped_give_up_old(now_ms: int) -> None:
    """Give up the tokens that came more than seven days ago, asked about lately or not."""
    while True:
        async with transaction():
            rows = await AccessToken.raw(
                "WITH old AS MATERIALIZED (SELECT key FROM access_token WHERE due_at IS NOT NULL AND received_at <= {} "
                f"LIMIT {_NAMED_AT_ONCE} {_skip_held()}) "
                "UPDATE access_token SET sealed = NULL, due_at = NULL, state = CASE WHEN fbid IS NULL THEN {} ELSE {} "
                "END WHERE key IN (SELECT key FROM old) RETURNING key",
                now_ms - TOKEN_MS,
                TokenState.UNRESOLVED.value,
                TokenState.RESOLVED.value,
            )
            if rows:
                await _senders_due([row["key"] for row in rows], now_ms)
        if len(rows) < _NAMED_AT_ONCE:
            return


async def pause(app_id: UUID, until_ms: int, code: int) -> None:
    """Ask Graph nothing of this app until then, or longer if it is to rest longer; `code` is its error, 0 for none."""
    await GraphPause.raw(
        "INSERT INTO graph_pause (app_id, until, code) VALUES ({}, {}, {}) ON CONFLICT (app_id) DO UPDATE SET "
        "code = excluded.code, until = CASE WHEN excluded.until > graph_pause.until THEN excluded.until "
        "ELSE graph_pause.until END",
        app_id,
        until_ms,
        code,
    )


async def all_well(app_id: UUID, now_ms: int) -> None:
    """Graph answers again: forget the error it gave, unless it is still to rest."""
    await GraphPause.delete().where(GraphPause.app_id == app_id, GraphPause.until <= now_ms)


async def unscoped_take_senders(
    after: UUID, key: SecretKey, now_ms: int, limit: int
) -> tuple[UUID | None, list[Sender]]:
    """(an app, persons of it who are to learn of a token), for whoever takes them alone, for as long as the lease is.

    It is the first app after this id that has any, else the first, since apps take turns; None where nothing is due.
    """
    # Most times there is nobody: no need to have others wait for a transaction that writes.
    for first in (after, UUID(int=0)):
        due = "SELECT app_id FROM token_sender WHERE app_id > {} AND due_at <= {} ORDER BY app_id LIMIT 1"
        if found := await TokenSender.raw(due, first, now_ms):
            break
    else:
        return None, []
    app_id = _uuid(found[0]["app_id"])
    until = now_ms + LEASE_MS
    async with transaction():
        rows = await TokenSender.raw(
            "WITH due AS MATERIALIZED (SELECT key FROM token_sender WHERE app_id = {} AND due_at <= {} "
            f"ORDER BY due_at LIMIT {limit} {_skip_held()}) "
            "UPDATE token_sender SET due_at = {} WHERE key IN (SELECT key FROM due) RETURNING *",
            app_id,
            now_ms,
            until,
        )
        names = sorted({row["token"] for row in rows})
        of_names = await AccessToken.select().where(AccessToken.key.is_in(names)) if names else []
    tokens = {row["key"]: row for row in of_names}
    senders = [
        Sender(
            row["key"],
            _uuid(row["app_id"]),
            row["hit_id"],
            row["received_at"],
            row["visitor"],
            row["uuid"],
            row["email"],
            row["fbid"],
            row["person"],
            until,
            TokenState(token["state"]),
            token["fbid"],
            _profile(key, token),
        )
        for row in rows
        if (token := tokens.get(row["token"])) is not None
        and (row["received_at"] <= now_ms - TOKEN_MS or _can_read_profile(key, token))
    ]
    return app_id, sorted(senders, key=lambda each: (each.received_at_ms, each.hit_id))


async def told(senders: Collection[Sender]) -> None:
    """They learnt of it: forget who they were, unless there is more to come."""
    who = (TokenSender.visitor, TokenSender.uuid, TokenSender.email, TokenSender.fbid, TokenSender.person)
    for last in (True, False):
        keys = [each.key for each in senders if (each.state != TokenState.WAITING) == last]
        if keys:
            gone = dict.fromkeys(who) if last else {}
            # What was found out meanwhile made them due once more.
            await TokenSender.update({TokenSender.told: last, TokenSender.due_at: None, **gone}).where(
                TokenSender.key.is_in(keys), TokenSender.due_at == next(each.until for each in senders)
            )


async def unscoped_any() -> bool:
    """Whether there are tokens, waiting or done with."""
    return await AccessToken.exists()


async def waiting(app: App) -> int:
    """How many of the app's tokens are not resolved yet."""
    return await AccessToken.count().where(AccessToken.app_id == app.id, AccessToken.due_at.is_not_null())


async def retry_now(app: App, now_ms: int) -> None:
    """Ask Graph about the app's tokens at once, whatever it said before."""
    async with transaction():
        await GraphPause.delete().where(GraphPause.app_id == app.id)
        # Not those that somebody asks about at this moment: they are due within the lease.
        await AccessToken.update({AccessToken.due_at: now_ms}).where(
            AccessToken.app_id == app.id, AccessToken.due_at > now_ms + LEASE_MS
        )


async def forget(
    app_id: UUID,
    before_ms: int,
    *,
    persons: Collection[bytes] = (),
    visitors: Collection[bytes] = (),
    hit_ids: Collection[bytes] = (),
    uuids: Collection[str] = (),
    emails: Collection[str] = (),
    fbids: Collection[str] = (),
) -> int:
    """Remove the tokens that anybody with one of these sent before then, or whose user this is; returns how many.

    A token that several people sent goes for all of them.
    """
    # Somebody may have been a hundred thousand visitors, and have sent none: hardly any app has tokens.
    of_app = (AccessToken.key > app_id.bytes) & (AccessToken.key < (app_id.int + 1).to_bytes(16, "big"))
    if not await AccessToken.exists().where(of_app):
        return 0
    async with transaction():
        sent = (TokenSender.app_id == app_id) & (TokenSender.received_at < before_ms)
        keys: set[bytes] = set()
        for mentions in _sent_by(persons, visitors, hit_ids, uuids, emails, fbids):
            rows = await TokenSender.select(TokenSender.token).where(sent, mentions)
            keys |= {row["token"] for row in rows}
        if fbids:
            theirs = AccessToken.fbid.is_in(list(fbids))
            came = (AccessToken.app_id == app_id) & (AccessToken.received_at < before_ms)
            rows = await AccessToken.select(AccessToken.key).where(came, theirs)
            keys |= {row["key"] for row in rows}
        # In the order in which others lock them.
        ordered = sorted(keys)
        for start in range(0, len(ordered), _NAMED_AT_ONCE):
            some = ordered[start : start + _NAMED_AT_ONCE]
            await AccessToken.delete().where(AccessToken.key.is_in(some))
            await TokenSender.delete().where(TokenSender.token.is_in(some))
    return len(keys)


def _sent_by(
    persons: Collection[bytes],
    visitors: Collection[bytes],
    hit_ids: Collection[bytes],
    uuids: Collection[str],
    emails: Collection[str],
    fbids: Collection[str],
) -> Iterator[Any]:
    """Conditions of which one holds if a sender is one of these; each names a part, since they may be many."""
    for column, values in (
        (TokenSender.person, list(persons)),
        (TokenSender.visitor, list(visitors)),
        (TokenSender.hit_id, list(hit_ids)),
        (TokenSender.uuid, list(uuids)),
        (TokenSender.email, list(emails)),
        (TokenSender.fbid, list(fbids)),
    ):
        for start in range(0, len(values), _NAMED_AT_ONCE):
            yield column.is_in(values[start : start + _NAMED_AT_ONCE])


async def waiting_since(app_id: UUID, persons: Collection[UUID]) -> list[int]:
    """When the tokens came, in ms, that somebody sent who is all these persons, and whose state is yet to be told."""
    found: list[int] = []
    for mine in _sent_by([each.bytes for each in persons], (), (), (), (), ()):
        rows = await TokenSender.select(TokenSender.received_at).where(
            TokenSender.app_id == app_id, TokenSender.told.eq(False), mine
        )
        found += [row["received_at"] for row in rows]
    return sorted(found)


async def forget_app(app_id: UUID) -> None:
    """Remove all of a deleted app's."""
    for table in ("token_sender", "access_token"):
        await _purge(table, "app_id", "=", app_id)
    await GraphPause.delete().where(GraphPause.app_id == app_id)


async def unscoped_purge(now_ms: int) -> None:
    """Remove what is done with and too old to be sent again."""
    await _purge("token_sender", "told AND received_at", "<", now_ms - KEPT_MS)
    await _purge("access_token", "due_at IS NULL AND received_at", "<", now_ms - KEPT_MS)


async def _purge(table: str, column: str, compared: str, value: object) -> None:
    while True:
        async with transaction():
            gone = await AccessToken.raw(
                f"WITH gone AS MATERIALIZED (SELECT key FROM {table} WHERE {column} {compared} {{}} "
                f"LIMIT {_PURGE_ROWS} {_skip_held()}) "
                f"DELETE FROM {table} WHERE key IN (SELECT key FROM gone) RETURNING 1",
                value,
            )
        if len(gone) < _PURGE_ROWS:
            return
