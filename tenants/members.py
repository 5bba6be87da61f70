"""Who belongs to a tenant, with what role, and who is invited to.

We send no mails: an owner passes the invitation's link on. It is worth one membership, for the e-mail address it names,
within a week; only its hash is stored. The last owner cannot go: somebody must be able to let others in.
"""
# Piccolo's annotations leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import hashlib
import secrets
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from tenants import tries
from tenants.accounts import add_user, clean_email, hash_password, remove_user_without_tenant
from tenants.errors import EmailTaken, InvalidValue, NotFound
from tenants.tables import (
    Invitation,
    Membership,
    Role,
    Tenant,
    User,
    as_key,
    check_role,
    clean_name,
    fresh_id,
    lock,
    lock_user,
    transaction,
)

# Long enough for a holiday's mail, short enough that a forgotten link opens nothing.
INVITED_FOR = timedelta(days=7)
# Members and invitations: one page shows all of them.
MAX_PEOPLE = 500


class Member(NamedTuple):
    """A user and their role in the tenant that was asked about."""

    user: User
    role: Role


async def list_members(tenant: Tenant) -> list[Member]:
    """Everybody who belongs to the tenant, in the order in which they joined."""
    memberships = (
        await Membership.objects(Membership.user).where(Membership.tenant == tenant.id).order_by(Membership.id)
    )
    return [Member(each.user, Role(each.role)) for each in memberships]


async def list_tenants(user: User) -> list[Tenant]:
    """The tenants that the user belongs to, in the order in which they joined."""
    memberships = await Membership.objects(Membership.tenant).where(Membership.user == user.id).order_by(Membership.id)
    return [each.tenant for each in memberships]


async def change_role(tenant: Tenant, user_id: int, role: str, *, by: User | None = None) -> None:
    """Give a member another role; raises InvalidValue for one that is none or the last owner, or NotFound.

    Also where `by`, who asks for it, is no owner any more.
    """
    new = _clean_role(role)
    async with transaction():
        # Two owners who let each other go at once would leave none.
        await lock(tenant)
        await check_role(tenant, by, Role.OWNER)
        membership = await _membership(tenant, user_id, stays_owner=new == Role.OWNER)
        await Membership.update({Membership.role: new}).where(Membership.id == membership.id)
        if new != Role.OWNER:
            await _withdraw_all(tenant, membership)


async def remove(tenant: Tenant, user_id: int, *, by: User | None = None) -> None:
    """End a membership; a user who belongs to no other tenant is removed with it.

    Raises InvalidValue for the last owner, or NotFound, also where `by` is no owner any more.
    """
    async with transaction():
        await lock(tenant)
        await check_role(tenant, by, Role.OWNER)
        membership = await _membership(tenant, user_id, stays_owner=False)
        # Before their membership, as whoever deletes the account.
        await lock_user(user_id)
        await Membership.delete().where(Membership.id == membership.id)
        await _withdraw_all(tenant, membership)
        await remove_user_without_tenant(user_id)


async def _withdraw_all(tenant: Tenant, was: Membership) -> None:
    """Withdraw the tenant's invitations where an owner is none any more: they may know the links."""
    if was.role == Role.OWNER:
        await Invitation.delete().where(Invitation.tenant == tenant.id)


async def invite(
    tenant: Tenant, email: str, role: str, now: datetime, *, by: User | None = None
) -> tuple[Invitation, str]:
    """An invitation and the token of its link, which cannot be had again; it replaces one for the same address.

    Raises InvalidValue for the e-mail, also where it is a member's or too many belong here, or the role; TooManyTries;
    NotFound where `by` is no owner any more.
    """
    email = clean_email(email)
    await tries.begin_invitation(tenant.id, now)
    clean_role, token = _clean_role(role), secrets.token_urlsafe(32)
    async with transaction():
        await lock(tenant)
        await check_role(tenant, by, Role.OWNER)
        if await Membership.exists().where(Membership.tenant == tenant.id, Membership.user._.email == email):
            raise InvalidValue("email", "They belong to this account already.")
        await Invitation.delete().where(
            Invitation.tenant == tenant.id, (Invitation.email == email) | (Invitation.expires_at <= now)
        )
        people = await Membership.count().where(Membership.tenant == tenant.id)
        if people + await Invitation.count().where(Invitation.tenant == tenant.id) >= MAX_PEOPLE:
            raise InvalidValue("email", f"An account has {MAX_PEOPLE} people at most, those invited included.")
        invitation = Invitation(
            tenant=tenant.id,
            email=email,
            role=clean_role,
            token_hash=_hash(token),
            created_at=now,
            expires_at=now + INVITED_FOR,
            **await fresh_id(),
        )
        await invitation.save()
    return invitation, token


async def list_invitations(tenant: Tenant, now: datetime) -> list[Invitation]:
    """The invitations that can still be accepted, newest first."""
    return (
        await Invitation.objects()
        .where(Invitation.tenant == tenant.id, Invitation.expires_at > now)
        .order_by(Invitation.id, ascending=False)
    )


async def unscoped_purge_invitations(now: datetime) -> None:
    """Forget the invitations that have ended, with the addresses of people who never came."""
    await Invitation.delete().where(Invitation.expires_at <= now)


async def withdraw(tenant: Tenant, invitation_id: int) -> None:
    """Make an invitation's link worthless; raises NotFound unless it is this tenant's."""
    withdrawn = Invitation.delete().where(Invitation.id == as_key(invitation_id), Invitation.tenant == tenant.id)
    if not await withdrawn.returning(Invitation.id):
        raise NotFound


async def find_invitation(token: str, now: datetime) -> Invitation:
    """The invitation with its tenant in `tenant`; raises NotFound when it was used, withdrawn or is over."""
    found = (
        await Invitation.objects(Invitation.tenant)
        .where(Invitation.token_hash == _hash(token), Invitation.expires_at > now)
        .first()
    )
    if found is None:
        raise NotFound
    return found


async def has_account(email: str) -> bool:
    """Whether somebody logs in with this (clean) e-mail address."""
    return await User.exists().where(User.email == email)


async def join(token: str, user: User, now: datetime) -> Tenant:
    """Use an invitation to the user's own e-mail address; one who is a member already keeps their role.

    Raises NotFound when it is not theirs or cannot be used any more.
    """
    async with transaction():
        used = await _use(token, now)
        if used["email"] != user.email:
            raise NotFound
        await _add_membership(used, user)
        return await _tenant(used)


async def join_as_new(token: str, name: str, password: str, now: datetime, address: str = "") -> tuple[Tenant, User]:
    """A new user with the invitation's e-mail address, as a member.

    Raises EmailTaken when they have an account (they log in and join instead), InvalidValue for the name or password,
    or NotFound.
    """
    name = clean_name(name)
    # Before the work of hashing, which is a way to keep others waiting.
    if await has_account((await find_invitation(token, now)).email):
        raise EmailTaken("email", "This e-mail address has an account already.")
    password_hash = await hash_password(password, address)
    async with transaction():
        used = await _use(token, now)
        user = await add_user(name, used["email"], password_hash)
        await _add_membership(used, user)
        return await _tenant(used), user


async def _membership(tenant: Tenant, user_id: int, *, stays_owner: bool) -> Membership:
    """The membership that is about to change, with the tenant locked; raises InvalidValue for the last owner."""
    found = await Membership.objects().where(Membership.tenant == tenant.id, Membership.user == as_key(user_id)).first()
    if found is None:
        raise NotFound
    if found.role == Role.OWNER and not stays_owner:
        owners = await Membership.count().where(Membership.tenant == tenant.id, Membership.role == Role.OWNER)
        if owners == 1:
            raise InvalidValue("role", "This is the last owner. Make somebody else an owner first.")
    return found


async def _use(token: str, now: datetime) -> dict[str, Any]:
    """Take the invitation away, inside a transaction; its columns. Raises NotFound."""
    used = (
        await Invitation.delete()
        .where(Invitation.token_hash == _hash(token), Invitation.expires_at > now)
        .returning(Invitation.tenant, Invitation.email, Invitation.role)
    )
    if not used:
        raise NotFound
    return used[0]


async def _add_membership(used: dict[str, Any], user: User) -> None:
    # Their last tenant may be removing them.
    if not await lock_user(user.id):
        raise NotFound
    membership = Membership(tenant=used["tenant"], user=user.id, role=used["role"])
    both = (Membership.tenant, Membership.user)
    await Membership.insert(membership).on_conflict(target=both, action="DO NOTHING")


async def _tenant(used: dict[str, Any]) -> Tenant:
    tenant = await Tenant.objects().get(Tenant.id == used["tenant"])
    assert tenant is not None  # its membership was just stored
    return tenant


def _clean_role(role: str) -> Role:
    try:
        return Role(role)
    except ValueError:
        raise InvalidValue("role", "A role is owner, member or viewer.") from None


def _hash(token: str) -> str:
    # A fast hash is enough: 256 random bits cannot be guessed, however fast.
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
