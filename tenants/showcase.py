"""The installation's own app: the landing page's snippet is one of it, and works.

Its tenant is one like any other, but nobody can log in to it: no address of people ends as its owner's does, see
accounts.clean_email. The command line takes that address like a customer's.
"""
# Piccolo's annotations leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from typing import NamedTuple

from tenants import apps, tokens
from tenants.accounts import RESERVED, add_user
from tenants.tables import App, AppToken, Membership, Role, Tenant, User, fresh_id, transaction

EMAIL = f"showcase{RESERVED}"
_TENANT = "onepx"
_APP = "Landing page"
# Many people trying at once, one click each; whoever wants to fill our disk through it gets a day of five a second.
_RATE = 5
_BURST = 20
_RETENTION_DAYS = 1


class Showcase(NamedTuple):
    """The app, and a token of it that takes hits."""

    app: App
    token: str


async def showcase() -> Showcase:
    """The installation's own app; made when it is not there, in whatever process asks first."""
    found = await _find()
    if found is not None:
        return found
    async with transaction():
        # Others that make it wait here, then find it.
        revision = await tokens.next_revision()
        found = await _find()
        if found is not None:
            return found
        tenant_id = await _tenant_id()
        app = await App.objects().where(App.tenant == tenant_id, App.name == _APP).first()
        if app is not None:  # somebody revoked its tokens
            return Showcase(app, await tokens.add_token(app, revision))
        app = App(tenant=tenant_id, name=_APP, currency="EUR", retention_days=_RETENTION_DAYS)
        return Showcase(app, await apps.add_app(app, revision))


async def _find() -> Showcase | None:
    owned = Membership.select(Membership.tenant).where(Membership.user._.email == EMAIL)
    found = (
        await AppToken.objects(AppToken.app)
        .where(
            AppToken.app._.tenant.is_in(owned),
            AppToken.app._.name == _APP,
            AppToken.revoked_at.is_null(),
            AppToken.expires_at.is_null(),
        )
        .order_by(AppToken.id)
        .first()
    )
    return None if found is None else Showcase(found.app, found.token)


async def _tenant_id() -> int:
    """The tenant's id, made when it is not there, inside a transaction that nobody else makes it in."""
    membership = await Membership.objects().where(Membership.user._.email == EMAIL).first()
    if membership is not None:
        return membership.tenant
    user: User = await add_user(_TENANT, EMAIL, None)
    tenant = Tenant(name=_TENANT, rate=_RATE, burst=_BURST, **await fresh_id())
    await tenant.save()
    await Membership(tenant=tenant.id, user=user.id, role=Role.OWNER).save()
    return tenant.id
