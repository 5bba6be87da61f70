"""Logins: a random token in the browser's cookie, only its hash in the database.

A session shows one of its user's tenants. What the user may see is looked up on every request, so that a membership
that ended, or a role that changed, counts at once.
"""
# Piccolo's annotations leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import hashlib
import secrets
from datetime import datetime, timedelta
from typing import NamedTuple

from tenants.errors import NotFound
from tenants.tables import Membership, Role, Session, Tenant, User, as_key, transaction

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
    session = (
        await Session.objects(Session.user).where(Session.token_hash == _hash(token), Session.expires_at > now).first()
    )
    if session is None:
        return None
    memberships = (
        await Membership.objects(Membership.tenant).where(Membership.user == session.user.id).order_by(Membership.id)
    )
    if not memberships:
        return None
    shown = next((each for each in memberships if each.tenant.id == session.tenant), memberships[0])
    if session.last_seen_at <= now - LAST_SEEN_EVERY:
        session.last_seen_at = now
        await Session.update({Session.last_seen_at: now}).where(Session.id == session.id)
    return Login(session, session.user, shown.tenant, Role(shown.role))


async def list_sessions(user: User, now: datetime) -> list[Session]:
    """Where the user is logged in, last seen first."""
    return (
        await Session.objects()
        .where(Session.user == user.id, Session.expires_at > now)
        .order_by(Session.last_seen_at, Session.id, ascending=False)
    )


async def switch(session: Session, tenant_id: int) -> None:
    """Show another of the user's tenants from now on; raises NotFound unless they belong to it."""
    user = session.user.id if isinstance(session.user, User) else session.user
    if not await Membership.exists().where(Membership.user == user, Membership.tenant == as_key(tenant_id)):
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


def _hash(token: str) -> str:
    # A fast hash is enough: 256 random bits cannot be guessed, however fast.
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
