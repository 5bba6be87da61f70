"""Logins: a random token in the browser's cookie, only its hash in the database."""
# Piccolo's annotations leave type arguments open.
# pyright: reportUnknownMemberType=false

import hashlib
import secrets
from datetime import datetime, timedelta

from tenants.tables import Session, User, transaction

# A month between two logins; a stolen cookie is worth no longer.
LIFETIME = timedelta(days=30)
# Often enough to show people where they are logged in, without a write for each page.
LAST_SEEN_EVERY = timedelta(minutes=1)


async def create(user: User, user_agent: str, now: datetime) -> str:
    """Log the user in; returns the token for the cookie. Clears away their sessions that have ended."""
    token = secrets.token_urlsafe(32)
    async with transaction():
        await Session.delete().where(Session.user == user.id, Session.expires_at <= now)
        await Session(
            user=user.id,
            token_hash=_hash(token),
            created_at=now,
            expires_at=now + LIFETIME,
            last_seen_at=now,
            user_agent="".join(filter(str.isprintable, user_agent))[:255],
        ).save()
    return token


async def find(token: str, now: datetime) -> tuple[Session, User] | None:
    """The session with this token and its user; None when there is none or it has ended."""
    session = (
        await Session.objects(Session.user).where(Session.token_hash == _hash(token), Session.expires_at > now).first()
    )
    if session is None:
        return None
    if session.last_seen_at <= now - LAST_SEEN_EVERY:
        session.last_seen_at = now
        await Session.update({Session.last_seen_at: now}).where(Session.id == session.id)
    return session, session.user


async def end(session: Session) -> None:
    """Log out."""
    await Session.delete().where(Session.id == session.id)


async def end_all(user: User, keep: Session | None = None) -> None:
    """Log the user out everywhere, but not of the session to keep."""
    query = Session.delete().where(Session.user == user.id)
    await (query if keep is None else query.where(Session.id != keep.id))


def _hash(token: str) -> str:
    # A fast hash is enough: 256 random bits cannot be guessed, however fast.
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
