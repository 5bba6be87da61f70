"""Who was deleted must not come back: from a hit that is digested late, again, or after it was set aside.

Of each identifier and visitor cookie a hash is kept for 90 days, with when its owner was deleted. Hits that came before
with one of them are not stored; later ones are somebody new's. The hash is that of the key, which begins with the app's
id: nobody can tell whether two apps forgot the same person.
"""
# Piccolo's annotations leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from uuid import UUID

from tenants import bulk
from tenants.identifiers import EMAIL_KIND, FBID_KIND, UUID_KIND, identifier_key
from tenants.tables import Forgotten

# Longer than a journal waits to be digested, or a hit set aside to be tried again, or a backup to be put back.
_KEPT = timedelta(days=90)


class ForgottenKeys:
    """What was forgotten since some time, all apps'. Nearly always it is nothing, and false."""

    def __init__(self, before: Mapping[bytes, int]) -> None:
        self._before = before

    def __bool__(self) -> bool:
        return bool(self._before)

    def covers(
        self,
        app_id: bytes,
        received_at: int,
        visitor: bytes | None,
        uuid: str | None = None,
        email: str | None = None,
        fbid: str | None = None,
    ) -> bool:
        """Whether a hit that came at `received_at` (ms) is of somebody deleted since; ids have 16 bytes."""
        if not self._before:
            return False
        app = UUID(bytes=app_id)
        given = ((UUID_KIND, uuid), (EMAIL_KIND, email), (FBID_KIND, fbid))
        keys = [identifier_key(app, kind, value) for kind, value in given if value]
        keys += [app_id + visitor] if visitor else []
        return any(received_at < self._before.get(_hash(key), 0) for key in keys)


async def forget(keys: Iterable[bytes], before: int) -> None:
    """Remember that these identifiers and visitors (their keys) were deleted at `before` (ms), in a transaction."""
    # Deleted once more, it is the later time that counts.
    await bulk.put(Forgotten, ("key", "before"), [(hashed, before) for hashed in {_hash(key) for key in keys}])


async def unscoped_forgotten(since_ms: int) -> ForgottenKeys:
    """What was forgotten after `since_ms`, when the oldest hit came that is asked about.

    To be asked where no one can be deleted until the hits are placed: in the transaction that holds their apps' clocks.
    """
    rows = await Forgotten.select().where(Forgotten.before > since_ms)
    return ForgottenKeys({row["key"]: row["before"] for row in rows})


async def unscoped_purge_forgotten(now: datetime) -> None:
    """Forget what was forgotten more than 90 days ago; what is to be forgotten in the future ends now.

    A clock that was ahead stamped that: all that comes before that time would vanish.
    """
    now_ms = int(now.timestamp() * 1000)
    await Forgotten.delete().where(Forgotten.before < now_ms - _KEPT // timedelta(milliseconds=1))
    await Forgotten.update({Forgotten.before: now_ms}).where(Forgotten.before > now_ms)


def _hash(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=16).digest()
