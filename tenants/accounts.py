"""Tenants and the people who log in to them."""
# Piccolo's annotations leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from tenants import tokens
from tenants.errors import EmailTaken, InvalidValue, NotFound
from tenants.tables import Membership, Role, Tenant, User, clean_name, transaction

# argon2id with RFC 9106's low-memory parameters: 64 MiB and tens of milliseconds a password. The work
# releases the GIL, so threads keep it off the event loop; two of them, so that a rush of logins takes
# 128 MiB and not gigabytes.
_hasher = PasswordHasher()
_hashing = ThreadPoolExecutor(2, thread_name_prefix="argon2")

T = TypeVar("T")

MIN_PASSWORD_CHARACTERS = 10
# Nobody types more; without a limit a login form is a way to send us megabytes to hash.
MAX_PASSWORD_BYTES = 1024

MAX_RATE = 1_000_000
MAX_BURST = 10_000_000


async def create_tenant(name: str, email: str, password: str | None) -> tuple[Tenant, User]:
    """A new tenant and its owner; without a password the owner cannot log in until one is set.

    Raises EmailTaken, or InvalidValue for the name, e-mail or password.
    """
    name = clean_name(name)
    email = _clean_email(email)
    password_hash = None if password is None else await hash_password(password)
    async with transaction():
        user = User(email=email, name=name, password_hash=password_hash)
        # Not an error caught after the fact: on PostgreSQL that would have ended the transaction.
        if not await User.insert(user).on_conflict(target=User.email, action="DO NOTHING").returning(User.id):
            raise EmailTaken("email", "This e-mail address has an account already.")
        tenant = Tenant(name=name)
        await tenant.save()
        await Membership(tenant=tenant.id, user=user.id, role=Role.OWNER).save()
    return tenant, user


async def tenant_by_email(email: str) -> Tenant:
    """The tenant whose owner has this e-mail address; raises NotFound."""
    try:
        email = _clean_email(email)
    except InvalidValue:
        raise NotFound from None
    owned = Membership.select(Membership.tenant).where(Membership.user._.email == email, Membership.role == Role.OWNER)
    tenant = await Tenant.objects().where(Tenant.id.is_in(owned)).order_by(Tenant.id).first()
    if tenant is None:
        raise NotFound
    return tenant


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


async def authenticate(email: str, password: str) -> User | None:
    """The user with this e-mail address and password; it takes as long to find that there is none."""
    try:
        email = _clean_email(email)
    except InvalidValue:
        return None
    user = await User.objects().where(User.email == email).first()
    right = await verify_password(user and user.password_hash, password)
    return user if right else None


async def set_password(user: User, password: str) -> None:
    """Give the user a new password; raises InvalidValue. Their sessions go on: see sessions.end_all."""
    user.password_hash = await hash_password(password)
    await User.update({User.password_hash: user.password_hash}).where(User.id == user.id)


async def hash_password(password: str) -> str:
    """The argon2id hash, made off the event loop; raises InvalidValue for a weak or an endless password."""
    if len(password) < MIN_PASSWORD_CHARACTERS:
        raise InvalidValue("password", f"A password has at least {MIN_PASSWORD_CHARACTERS} characters.")
    if len(_password_bytes(password)) > MAX_PASSWORD_BYTES:
        raise InvalidValue("password", f"A password has at most {MAX_PASSWORD_BYTES} bytes.")
    return await _off_the_loop(lambda: _hasher.hash(_password_bytes(password)))


async def verify_password(password_hash: str | None, password: str) -> bool:
    """Whether the hash is this password's; without a hash the same work is done in vain."""
    if len(_password_bytes(password)) > MAX_PASSWORD_BYTES:
        return False
    if password_hash is None:
        await _off_the_loop(lambda: _hasher.hash(_password_bytes(password)))
        return False
    try:
        return await _off_the_loop(lambda: _hasher.verify(password_hash, _password_bytes(password)))
    except VerifyMismatchError:
        return False


async def _off_the_loop(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(_hashing, work)


def _password_bytes(password: str) -> bytes:
    # A command line argument that is no UTF-8 reaches us as lone surrogates.
    return password.encode(errors="surrogatepass")


def _clean_email(email: str) -> str:
    """Stripped and lower-cased; raises InvalidValue. Whether it receives mail only a mail can tell."""
    email = email.strip().lower()
    if len(email) > 254 or not email.isprintable() or not re.fullmatch(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+", email):
        raise InvalidValue("email", "This is no e-mail address.")
    return email
