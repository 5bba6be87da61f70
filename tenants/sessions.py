"""Logins: a random token in the browser's cookie, only its hash in the database.

A session shows one of its user's tenants. What the user may see is looked up on every request, so that a membership
that ended, or a role that changed, counts at once.
"""
# Piccolo's annotations leave type arguments open.
# Piccolo keeps a table's columns in `_meta`.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from piccolo.table import Table

from tenants.errors import NotFound
from tenants.tables import Membership, Role, Session, Tenant, User, as_key, transaction

T = TypeVar("T", bound=Table)

# A month between two logins; a stolen cookie is worth no longer.
LIFETIME = timedelta(days=30)
# Often enough to show people where they are logged in, without a write for each page.
LAST_SEEN_EVERY = timedelta(minutes=1)
# More than anybody's browsers: their list is one page, and whoever logs in without pause does not fill the database.
MAX_SESSIONS = 100


class Login(NamedTuple):
    """A session, whose it is, the tenant it shows, and what the user may do there."""

    session: Session
    user: User
    tenant: Tenant
    role: Role


def _columns(table: type[Table]) -> dict[str, str]:
    """The name of each column of a table, by what `_LOGINS` calls it."""
    name = table._meta.tablename
    return {f"{name}_{column._meta.name}": column._meta.name for column in table._meta.columns}


def _read(table: type[T], row: Mapping[str, Any]) -> T:
    return table(_exists_in_db=True, **{column: row[name] for name, column in _columns(table).items()})


# Every page asks for it. Piccolo makes the text of such a join in ten times the time that the database takes for it.
_SHOWN = ", ".join(
    f"{table._meta.tablename}.{column} AS {name}"
    for table in (Session, User, Tenant)
    for name, column in _columns(table).items()
)
_LOGINS = (
    f'SELECT {_SHOWN}, membership.role AS role FROM sessions JOIN users ON users.id = sessions."user" '
    'JOIN membership ON membership."user" = users.id JOIN tenant ON tenant.id = membership.tenant '
    "WHERE sessions.token_hash = {} AND sessions.expires_at > {} ORDER BY membership.id"
)


async def create(
    user: User, user_agent: str, now: datetime, tenant: Tenant | None = None, *, replaces: str | None = None
) -> str:
    """Log the user in, to show `tenant`, else the first one they joined; returns the token for the cookie.

    Ends the session whose token is `replaces` (a cookie from before the login is worth nothing after it) and the oldest
    beyond 100, and clears away those of the user that have ended. Raises NotFound when the user is gone or has another
    password by now.
    """
    token = secrets.token_urlsafe(32)
    async with transaction():
        # Changes nothing but locks the row: whoever changes the password meanwhile also ends this session, or comes
        # first and is seen here. A look alone would leave a gap on PostgreSQL.
        same = User.update({User.password_hash: user.password_hash}).where(
            User.id == user.id, User.password_hash == user.password_hash
        )
        if not await same.returning(User.id):
            raise NotFound
        await Session.delete().where(Session.user == user.id, Session.expires_at <= now)
        if replaces is not None:
            await Session.delete().where(Session.token_hash == _hash(replaces))
        others = Session.select(Session.id).where(Session.user == user.id).order_by(Session.id, ascending=False)
        surplus = (await others)[MAX_SESSIONS - 1 :]
        if surplus:
            await Session.delete().where(Session.id.is_in([row["id"] for row in surplus]))
        await Session(
            user=user.id,
            tenant=tenant and tenant.id,
            token_hash=_hash(token),
            created_at=now,
            expires_at=now + LIFETIME,
            last_seen_at=now,
            user_agent="".join(filter(str.isprintable, user_agent))[:255],
        ).save()
    return token


async def find(token: str, now: datetime) -> Login | None:
    """The login with this token; None when there is none, it has ended, or its user belongs to no tenant.

    Where the user no longer belongs to the session's tenant, another of theirs is shown.
    """
    rows: list[dict[str, Any]] = await Session.raw(_LOGINS, _hash(token), now)
    if not rows:
        return None
    row = next((row for row in rows if row["tenant_id"] == row["sessions_tenant"]), rows[0])
    session, user, tenant = _read(Session, row), _read(User, row), _read(Tenant, row)
    if session.last_seen_at <= now - LAST_SEEN_EVERY:
        session.last_seen_at = now
        await Session.update({Session.last_seen_at: now}).where(Session.id == session.id)
    return Login(session, user, tenant, Role(row["role"]))


async def list_sessions(user: User, now: datetime) -> list[Session]:
    """Where the user is logged in, last seen first."""
    return (
        await Session.objects()
        .where(Session.user == user.id, Session.expires_at > now)
        .order_by(Session.last_seen_at, Session.id, ascending=False)
    )


async def switch(session: Session, tenant_id: int) -> None:
    """Show another of the user's tenants from now on; raises NotFound unless they belong to it."""
    if not await Membership.exists().where(Membership.user == session.user, Membership.tenant == as_key(tenant_id)):
        raise NotFound
    await Session.update({Session.tenant: tenant_id}).where(Session.id == session.id)


async def end(user: User, session_id: int) -> None:
    """Log the user out of one session; raises NotFound unless it is theirs."""
    ended = Session.delete().where(Session.id == as_key(session_id), Session.user == user.id)
    if not await ended.returning(Session.id):
        raise NotFound


async def end_all(user: User, keep: Session | None = None) -> None:
    """Log the user out everywhere, but not of the session to keep."""
    query = Session.delete().where(Session.user == user.id)
    await (query if keep is None else query.where(Session.id != keep.id))


async def unscoped_purge_sessions(now: datetime) -> None:
    """Forget the sessions that have ended: of people who never log in again, nobody else would."""
    await Session.delete().where(Session.expires_at <= now)


def _hash(token: str) -> str:
    # A fast hash is enough: 256 random bits cannot be guessed, however fast.
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
