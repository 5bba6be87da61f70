"""How often something may be tried: logins of a mailbox, logins and sign-ups of an address, invitations of a tenant.

Where the right password was given before (a known browser, somebody logged in) tries count apart from those of
strangers, who could lock people out otherwise.

A try is counted before the password is looked at, by one statement, so that guesses sent at once, to several processes,
cannot slip through between the look and the count. A window begins with the first try in it. What may be tried again at
once (the right password was given) is taken back.
"""
# Piccolo's annotations leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import hashlib
import ipaddress
from datetime import datetime, timedelta
from typing import NamedTuple

from tenants.errors import TooManyTries
from tenants.tables import Tries


class _Limit(NamedTuple):
    what: str
    most: int
    window: timedelta


# Nobody mistypes their own password more often; guessing gets 960 tries a day.
_LOGINS_OF_MAILBOX = _Limit("logins of mailbox", 10, timedelta(minutes=15))
# The same, of a browser that is known, or of somebody who is logged in.
_LOGINS_OF_KNOWN = _Limit("logins of known", 10, timedelta(minutes=15))
# An office behind one address, on a Monday morning.
_LOGINS_OF_ADDRESS = _Limit("logins of address", 30, timedelta(minutes=15))
# A class in one room signs up; a script gets bored.
_SIGN_UPS_OF_ADDRESS = _Limit("sign-ups of address", 20, timedelta(hours=1))

# A whole company at once; whoever asks which addresses have an account gets bored.
_INVITATIONS_OF_TENANT = _Limit("invitations of tenant", 60, timedelta(hours=1))

_LIMITS = (_LOGINS_OF_MAILBOX, _LOGINS_OF_KNOWN, _LOGINS_OF_ADDRESS, _SIGN_UPS_OF_ADDRESS, _INVITATIONS_OF_TENANT)
_LONGEST_WINDOW = max(limit.window for limit in _LIMITS)


async def begin_login(email: str, address: str, now: datetime, known: str | None = None) -> None:
    """Count a try of this mailbox's password, whether the mailbox is known or not. Raises TooManyTries.

    `known` is what only whoever gave the right password before can have, or None.
    """
    # The address first: one that is refused must not go on locking other people's mailboxes.
    await _count(_LOGINS_OF_ADDRESS, network(address), now)
    await _count(*_guesses(email, known), now)


async def login_succeeded(email: str, address: str, known: str | None = None) -> None:
    """The password was right: forget the tries it was counted with, but of the address only this one."""
    await Tries.delete().where(Tries.key == _key(*_guesses(email, known)))
    await Tries.raw(
        "UPDATE tries SET count = count - 1 WHERE key = {} AND count > 0", _key(_LOGINS_OF_ADDRESS, network(address))
    )


async def begin_sign_up(address: str, now: datetime) -> None:
    """Count a sign-up from this address. Raises TooManyTries."""
    await _count(_SIGN_UPS_OF_ADDRESS, network(address), now)


async def begin_invitation(tenant_id: int, now: datetime) -> None:
    """Count an invitation, whose link says whether the address has an account. Raises TooManyTries."""
    await _count(_INVITATIONS_OF_TENANT, str(tenant_id), now)


def _guesses(email: str, known: str | None) -> tuple[_Limit, str]:
    """What a guess of a password is counted with."""
    return (_LOGINS_OF_MAILBOX, mailbox(email)) if known is None else (_LOGINS_OF_KNOWN, known)


async def _count(limit: _Limit, whose: str, now: datetime) -> None:
    key = _key(limit, whose)
    # One that begins so late was begun by a clock that was ahead, and would count until then.
    over = (now - limit.window, now + limit.window)
    (row,) = await Tries.raw(
        "INSERT INTO tries (key, count, since) VALUES ({}, 1, {}) ON CONFLICT (key) DO UPDATE SET "
        "count = CASE WHEN tries.since <= {} OR tries.since > {} THEN 1 ELSE tries.count + 1 END, "
        "since = CASE WHEN tries.since <= {} OR tries.since > {} THEN excluded.since ELSE tries.since END "
        "RETURNING count",
        key,
        now,
        *over,
        *over,
    )
    if row["count"] > limit.most:
        kept = await Tries.objects().where(Tries.key == key).first()
        raise TooManyTries((kept.since if kept else now) + limit.window)
    if row["count"] == 1:
        # A window began: a good moment to clear away those that are over.
        await Tries.delete().where(Tries.since <= now - _LONGEST_WINDOW)


def _key(limit: _Limit, whose: str) -> str:
    # Not a secret: the hash only gives every mailbox and address a key of one length.
    return hashlib.sha256(f"{limit.what}\n{whose}".encode(errors="replace")).hexdigest()


def mailbox(email: str) -> str:
    """An e-mail address as it is compared."""
    return email.strip().lower()


def network(address: str) -> str:
    """An IPv4 address itself, of IPv6 the /64: one subscriber has all the addresses in it."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        # A unix socket has none; everybody who comes that way counts together.
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(parsed), 64), strict=False))
        parsed = parsed.ipv4_mapped
    return str(parsed)
