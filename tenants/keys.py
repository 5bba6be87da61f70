"""API keys: shown once, stored as a hash."""
# Piccolo's annotations leave type arguments open.
# pyright: reportUnknownMemberType=false

import hashlib
import secrets
from datetime import UTC, datetime, timedelta

from piccolo.columns.combination import And

from tenants.errors import InvalidValue, NotFound
from tenants.tables import ApiKey, App, Role, Tenant, User, as_key, check_role, clean_name, fresh_id, lock, transaction

# What people recognise a key by: `onepx_` and six more.
PREFIX_LENGTH = 12
# Often enough to see whether a key is still in use, without a write for each of its requests.
LAST_USED_EVERY = timedelta(minutes=1)
# Whoever wonders why a program is refused finds the key that ended; years later it would only be in the way.
REVOKED_SHOWN_FOR = timedelta(days=30)
# One page shows all of them.
MAX_KEYS = 200


async def create_key(
    tenant: Tenant, name: str, *, app: App | None = None, may_delete: bool = False, by: User | None = None
) -> tuple[ApiKey, str]:
    """A new key and its text, which cannot be had again. It reads all apps, or `app` of the tenant's.

    Raises InvalidValue for the name or where there are too many, or NotFound when the tenant is gone, or `by` may not
    change it any more.
    """
    plaintext = "onepx_" + secrets.token_urlsafe(32)
    name = clean_name(name)
    async with transaction():
        await lock(tenant)
        await check_role(tenant, by, Role.OWNER, Role.MEMBER)
        if await ApiKey.count().where(_shown(tenant, datetime.now(UTC))) >= MAX_KEYS:
            raise InvalidValue("name", f"An account has {MAX_KEYS} keys at most, those revoked this month included.")
        key = ApiKey(
            tenant=tenant.id,
            name=name,
            key_hash=_hash(plaintext),
            prefix=plaintext[:PREFIX_LENGTH],
            app=app and app.id,
            may_delete=may_delete,
            **await fresh_id(),
        )
        await key.save()
    return key, plaintext


async def find_key(plaintext: str) -> ApiKey | None:
    """The key, with its tenant; None for an unknown or revoked one."""
    key = (
        await ApiKey.objects(ApiKey.tenant)
        .where(ApiKey.key_hash == _hash(plaintext), ApiKey.revoked_at.is_null())
        .first()
    )
    if key is None:
        return None
    now = datetime.now(UTC)
    if not key.last_used_at or key.last_used_at <= now - LAST_USED_EVERY:
        await ApiKey.update({ApiKey.last_used_at: now}).where(ApiKey.id == key.id)
    return key


async def list_keys(tenant: Tenant, now: datetime) -> list[ApiKey]:
    """The tenant's keys with their apps, newest first; a revoked one for 30 more days."""
    return await ApiKey.objects(ApiKey.app).where(_shown(tenant, now)).order_by(ApiKey.id, ascending=False)


def _shown(tenant: Tenant, now: datetime) -> And:
    shown = ApiKey.revoked_at.is_null() | (ApiKey.revoked_at > now - REVOKED_SHOWN_FOR)
    return And(ApiKey.tenant == tenant.id, shown)


async def revoke_key(tenant: Tenant, key_id: int) -> None:
    """End the key now; one revoked before stays as it is. Raises NotFound unless it is this tenant's."""
    key = await ApiKey.objects().where(ApiKey.id == as_key(key_id), ApiKey.tenant == tenant.id).first()
    if key is None:
        raise NotFound
    await ApiKey.update({ApiKey.revoked_at: datetime.now(UTC)}).where(ApiKey.id == key_id, ApiKey.revoked_at.is_null())


def _hash(plaintext: str) -> str:
    # A fast hash is enough: 256 random bits cannot be guessed, however fast.
    return hashlib.sha256(plaintext.encode(errors="replace")).hexdigest()
