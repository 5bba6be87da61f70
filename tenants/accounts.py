"""Tenants and the people who log in to them.

Everybody belongs to a tenant: a user whose last membership ends is removed with it. Nobody is left behind who could log
in and see nothing, and their e-mail address is free to sign up or be invited again.
"""
# Piccolo's annotations leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import asyncio
import contextlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TypeVar

import idna
from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from tenants import apps, sessions, tokens, tries
from tenants.errors import Busy, EmailTaken, InvalidValue, NotFound, SeveralTenants
from tenants.tables import (
    App,
    Invitation,
    Membership,
    Role,
    Session,
    Tenant,
    User,
    check_role,
    clean_name,
    fresh_id,
    lock,
    lock_user,
    transaction,
)

# argon2id with RFC 9106's low-memory parameters: 64 MiB and tens of milliseconds a password. The work
# releases the GIL, so threads keep it off the event loop; two of them, so that a rush of logins takes
# 128 MiB and not gigabytes.
_hasher = PasswordHasher()
_hashing = ThreadPoolExecutor(2, thread_name_prefix="argon2")

# A fifth of a second each at worst, two at a time, one of an address: who logs in without pause waits for themselves.
_MAX_HASHES = 40
_MAX_HASHES_OF_ONE = 30
_hashes_waiting = 0


class _Turn:
    """An address's, while it has passwords hashed."""

    def __init__(self) -> None:
        self.hashing = asyncio.Semaphore(1)
        self.waiting = 0


_turns: dict[str, _Turn] = {}

T = TypeVar("T")

MIN_PASSWORD_CHARACTERS = 10
# Nobody types more; without a limit a login form is a way to send us megabytes to hash.
MAX_PASSWORD_BYTES = 1024

_TAKEN = "This e-mail address has an account already."
_NO_ADDRESS = "This is no e-mail address."

# The installation's own: nobody has mail there (RFC 2606), so nobody can claim such an address or log in with it.
RESERVED = "@onepx.invalid"

MAX_RATE = 1_000_000
MAX_BURST = 10_000_000


async def sign_up(
    name: str, email: str, password: str, *, address: str, now: datetime, timezone: str = "UTC"
) -> tuple[Tenant, User, App, str]:
    """A new tenant, its owner, a first app and that app's token; all of it or nothing.

    `timezone` is what the browser says; where we do not know it the app's is UTC. Raises EmailTaken, InvalidValue for
    the name, e-mail or password, or TooManyTries for the network address.
    """
    name, email = clean_name(name), clean_email(email)
    check_password(password)
    await tries.begin_sign_up(address, now)
    password_hash = await hash_password(password, address)
    async with transaction():
        revision = await tokens.next_revision()
        tenant, user = await _add_tenant(name, email, password_hash)
        app = App(tenant=tenant.id, name="My site", timezone=timezone if apps.is_timezone(timezone) else "UTC")
        token = await apps.add_app(app, revision)
    return tenant, user, app, token


async def create_tenant(name: str, email: str, password: str | None) -> tuple[Tenant, User]:
    """A new tenant and its owner; without a password the owner cannot log in until one is set.

    Raises EmailTaken, or InvalidValue for the name, e-mail or password.
    """
    name, email = clean_name(name), clean_email(email)
    password_hash = None if password is None else await hash_password(password)
    async with transaction():
        return await _add_tenant(name, email, password_hash)


async def _add_tenant(name: str, email: str, password_hash: str | None) -> tuple[Tenant, User]:
    user = await add_user(name, email, password_hash)
    tenant = Tenant(name=name, **await fresh_id())
    await tenant.save()
    await Membership(tenant=tenant.id, user=user.id, role=Role.OWNER).save()
    return tenant, user


async def add_user(name: str, email: str, password_hash: str | None) -> User:
    """A new user with a clean name and e-mail, inside a transaction that makes them a member. Raises EmailTaken."""
    user = User(email=email, name=name, password_hash=password_hash, **await fresh_id())
    # Not an error caught after the fact: on PostgreSQL that would have ended the transaction.
    if not await User.insert(user).on_conflict(target=User.email, action="DO NOTHING").returning(User.id):
        raise EmailTaken("email", _TAKEN)
    return user


async def tenant_by_email(email: str) -> Tenant:
    """The tenant whose owner has this e-mail address; of several the one that is named too: `ann@example.org/Shop`.

    Raises NotFound, or SeveralTenants.
    """
    # A domain has no slash; before the @ there may be one.
    name, _, domain = email.rpartition("@")
    domain, slash, named = domain.partition("/")
    try:
        email = _clean_address(f"{name}@{domain}")
    except InvalidValue:
        raise NotFound from None
    owned = Membership.select(Membership.tenant).where(Membership.user._.email == email, Membership.role == Role.OWNER)
    tenants = await Tenant.objects().where(Tenant.id.is_in(owned)).order_by(Tenant.id)
    if slash:
        tenants = [tenant for tenant in tenants if named in (tenant.name, str(tenant.id))]
    if not tenants:
        raise NotFound
    if len(tenants) > 1:
        names = Counter(tenant.name for tenant in tenants)
        choices = [f"{email}/{each.name if names[each.name] == 1 else each.id}" for each in tenants]
        raise SeveralTenants(", ".join(choices))
    return tenants[0]


async def set_limit(tenant: Tenant, rate: int, burst: int) -> None:
    """Limit the tenant to `rate` events a second and `burst` events at once; raises InvalidValue."""
    if not 0 < rate <= MAX_RATE:
        raise InvalidValue("rate", f"A rate is 1 to {MAX_RATE:,} events a second.")
    if not 1 <= burst <= MAX_BURST:
        raise InvalidValue("burst", f"A burst is 1 to {MAX_BURST:,} events.")
    async with transaction():
        await tokens.stamp_tenant(tenant)
        await Tenant.update({Tenant.rate: rate, Tenant.burst: burst}).where(Tenant.id == tenant.id)
    tenant.rate, tenant.burst = rate, burst


async def rename_tenant(tenant: Tenant, name: str) -> None:
    """Raises InvalidValue."""
    tenant.name = clean_name(name)
    await Tenant.update({Tenant.name: tenant.name}).where(Tenant.id == tenant.id)


async def delete_tenant(tenant: Tenant, *, by: User | None = None) -> None:
    """Remove the tenant with all that is its own: apps, tokens, keys, invitations, and users who belong to no other.

    Its rows in the event store go soon after: see erasures.py. Deleting it again changes nothing. Raises NotFound where
    `by`, who asks for it, is no owner any more.
    """
    async with transaction():
        await tokens.stamp_tenant(tenant)
        if by is not None:
            await lock(tenant)
            await check_role(tenant, by, Role.OWNER)
        # Somebody may be joining just now: their invitation is gone then, or they are among the members below.
        await Invitation.delete().where(Invitation.tenant == tenant.id)
        for app in await apps.list_apps(tenant):
            await apps.remove_app(app.id)
        members = await Membership.objects().where(Membership.tenant == tenant.id).order_by(Membership.user)
        # Before their memberships and sessions, as whoever logs in or removes one of them.
        for member in members:
            await lock_user(member.user)
        await Membership.delete().where(Membership.tenant == tenant.id)
        # Those who stay need not log in again.
        await Session.update({Session.tenant: None}).where(Session.tenant == tenant.id)
        for member in members:
            await remove_user_without_tenant(member.user)
        await Tenant.delete().where(Tenant.id == tenant.id)


async def remove_user_without_tenant(user_id: int) -> None:
    """Remove the user if they belong to no tenant any more, inside the transaction that ended a membership."""
    # Another tenant may be letting them go, too, or taking them in.
    if await lock_user(user_id) and not await Membership.exists().where(Membership.user == user_id):
        await User.delete().where(User.id == user_id)


async def log_in(email: str, password: str, *, address: str, now: datetime, browser: str | None = None) -> User | None:
    """The user with this e-mail address and password; it takes as long to find that there is none.

    `browser` is the id of one in which this mailbox's password was right before. Raises TooManyTries, for unknown
    mailboxes too, before the password is looked at.
    """
    with contextlib.suppress(InvalidValue):
        # All spellings of a mailbox share its tries: of a domain there are any number.
        email = clean_email(email)
    await tries.begin_login(email, address, now, browser)
    user = await authenticate(email, password, address)
    if user is not None:
        await tries.login_succeeded(email, address, browser)
    return user


async def authenticate(email: str, password: str, address: str = "") -> User | None:
    """As log_in, without limits: for callers that have their own."""
    try:
        email = clean_email(email)
    except InvalidValue:
        # An address that cannot be one must not answer sooner than one that is not known.
        email = ""
    user = await User.objects().where(User.email == email).first()
    right = await verify_password(user and user.password_hash, password, address)
    return user if right else None


async def rename_user(user: User, name: str) -> None:
    """Raises InvalidValue."""
    user.name = clean_name(name)
    await User.update({User.name: user.name}).where(User.id == user.id)


async def change_email(user: User, email: str, current_password: str, *, address: str, now: datetime) -> None:
    """Give the user another e-mail address; their sessions go on.

    Raises EmailTaken, InvalidValue for the e-mail or the current password, or TooManyTries.
    """
    email = clean_email(email)
    await _check_current(user, current_password, address, now)
    # As signing up it tells whether an address has an account.
    await tries.begin_sign_up(address, now)
    async with transaction():
        # Two at once on PostgreSQL: the unique index stops the second, who may try again and is told here.
        if await User.exists().where(User.email == email, User.id != user.id):
            raise EmailTaken("email", _TAKEN)
        await User.update({User.email: email}).where(User.id == user.id)
    user.email = email


async def change_password(
    user: User, password: str, current_password: str, keep: Session, *, address: str, now: datetime
) -> None:
    """Give the user another password and end all their sessions but the one to keep.

    Raises InvalidValue for either password, or TooManyTries.
    """
    check_password(password)
    await _check_current(user, current_password, address, now)
    password_hash = await hash_password(password, address)
    async with transaction():
        await User.update({User.password_hash: password_hash}).where(User.id == user.id)
        await sessions.end_all(user, keep)
    user.password_hash = password_hash


async def _check_current(user: User, password: str, address: str, now: datetime) -> None:
    """Guessing the password in a browser left open is limited as guessing it from outside, and counts apart."""
    known = f"user {user.id}"
    await tries.begin_login(user.email, address, now, known)
    if not await verify_password(user.password_hash, password, address):
        raise InvalidValue("current_password", "This is not your current password.")
    await tries.login_succeeded(user.email, address, known)


async def set_password(user: User, password: str) -> None:
    """Give the user a new password; raises InvalidValue. Their sessions go on: see sessions.end_all."""
    user.password_hash = await hash_password(password)
    await User.update({User.password_hash: user.password_hash}).where(User.id == user.id)


async def hash_password(password: str, address: str = "") -> str:
    """The argon2id hash, made off the event loop when it is the turn of the network address.

    Raises InvalidValue for a weak or an endless password, or Busy.
    """
    check_password(password)
    return await _off_the_loop(lambda: _hasher.hash(_password_bytes(password)), address)


def check_password(password: str) -> None:
    """Raises InvalidValue unless it can be somebody's password."""
    if len(password) < MIN_PASSWORD_CHARACTERS:
        raise InvalidValue("password", f"A password has at least {MIN_PASSWORD_CHARACTERS} characters.")
    if len(_password_bytes(password)) > MAX_PASSWORD_BYTES:
        raise InvalidValue("password", f"A password has at most {MAX_PASSWORD_BYTES} bytes.")


async def verify_password(password_hash: str | None, password: str, address: str = "") -> bool:
    """Whether the hash is this password's; without a hash the same work is done in vain. Raises Busy."""
    if len(_password_bytes(password)) > MAX_PASSWORD_BYTES:
        return False
    if password_hash is None:
        await _off_the_loop(lambda: _hasher.hash(_password_bytes(password)), address)
        return False
    try:
        return await _off_the_loop(lambda: _hasher.verify(password_hash, _password_bytes(password)), address)
    except VerifyMismatchError:
        return False


async def _off_the_loop(work: Callable[[], T], address: str) -> T:
    """Raises Busy when so many wait that the last would wait for seconds: logins of others wait behind them."""
    global _hashes_waiting
    network = tries.network(address)
    turn = _turns.setdefault(network, _Turn())
    if turn.waiting >= _MAX_HASHES_OF_ONE:
        raise Busy("too many passwords of this address are being checked")
    turn.waiting += 1
    try:
        async with turn.hashing:
            if _hashes_waiting >= _MAX_HASHES:
                raise Busy("too many passwords are being checked")
            _hashes_waiting += 1
            try:
                return await asyncio.get_running_loop().run_in_executor(_hashing, work)
            finally:
                _hashes_waiting -= 1
    finally:
        turn.waiting -= 1
        if not turn.waiting:
            _turns.pop(network, None)


def _password_bytes(password: str) -> bytes:
    # One keyboard gives ế as one character, another as three (RFC 8265). What is too long is refused either way, and
    # would take quadratic time.
    if len(password) <= MAX_PASSWORD_BYTES:
        password = unicodedata.normalize("NFC", password)
    # A command line argument that is no UTF-8 reaches us as lone surrogates.
    return password.encode(errors="surrogatepass")


def clean_email(email: str) -> str:
    """The address of somebody, stripped and lower-cased; raises InvalidValue.

    Whether it receives mail only a mail can tell.
    """
    email = _clean_address(email)
    if email.endswith(RESERVED):
        raise InvalidValue("email", _NO_ADDRESS)
    return email


def _clean_address(email: str) -> str:
    email = email.strip().lower()
    name, at, domain = email.rpartition("@")
    if not domain.isascii() and len(email) <= 254:
        # Some browsers send bücher.de as it is spelled for the network, others as it was typed.
        with contextlib.suppress(UnicodeError):
            email = name + at + idna.encode(domain, uts46=True).decode()
    if len(email) > 254 or not email.isprintable() or not re.fullmatch(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+", email):
        raise InvalidValue("email", _NO_ADDRESS)
    return email
