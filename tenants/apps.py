"""A tenant's apps."""
# Piccolo's annotations leave type arguments open.
# pyright: reportUnknownMemberType=false

from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal
from uuid import UUID
from zoneinfo import available_timezones

from piccolo.columns import Column

from tenants import tokens
from tenants.currencies import MINOR_UNITS
from tenants.errors import InvalidValue, NotFound
from tenants.tables import App, AppToken, Erasure, Tenant, clean_name, transaction

# A hundred years; longer is for ever.
MAX_RETENTION_DAYS = 36_500
# Their list shows all of them, with numbers.
MAX_APPS = 200


async def create_app(tenant: Tenant, name: str, currency: str = "USD", timezone: str = "UTC") -> tuple[App, str]:
    """A new app and its first token; two apps may have one name.

    Raises InvalidValue for the name, the currency or the time zone, or NotFound when the tenant is gone.
    """
    app = App(
        tenant=tenant.id,
        name=clean_name(name),
        currency=_clean_currency(currency),
        timezone=_clean_timezone(timezone),
    )
    async with transaction():
        revision = await tokens.next_revision()
        if not await Tenant.exists().where(Tenant.id == tenant.id):
            raise NotFound
        if await App.count().where(App.tenant == tenant.id) >= MAX_APPS:
            raise InvalidValue("name", f"An account has {MAX_APPS} apps at most. Delete one first.")
        return app, await add_app(app, revision)


async def add_app(app: App, revision: int) -> str:
    """Store the app with its first token, inside a transaction that took `revision`; returns the token."""
    await app.save()
    return await tokens.add_token(app, revision)


async def list_apps(tenant: Tenant) -> list[App]:
    """The tenant's apps, oldest first."""
    return await App.objects().where(App.tenant == tenant.id).order_by(App.created_at)


async def find_app(tenant: Tenant, app_id: str) -> App:
    """The tenant's app with this id, written as in its addresses; raises NotFound."""
    try:
        number = UUID(app_id)
    except ValueError:
        raise NotFound from None
    # Python reads braces and missing hyphens too; an app has one address.
    found = await App.objects().where(App.id == number, App.tenant == tenant.id).first()
    if found is None or str(number) != app_id:
        raise NotFound
    return found


async def app_by_token(tenant: Tenant, token: str) -> App:
    """The tenant's app with this token; raises NotFound.

    A token that no longer takes hits still leads its owner to what it collected.
    """
    return (await tokens.find(tenant, token)).app


async def change_app(
    app: App,
    *,
    name: str | None = None,
    currency: str | None = None,
    timezone: str | None = None,
    honour_privacy_signals: bool | None = None,
    retention_days: int | Literal["ever"] | None = None,
) -> None:
    """Set what is given and keep the rest; raises InvalidValue, or NotFound when the app is gone.

    The new currency counts for hits from now on; what was recorded keeps its own. What is older than `retention_days`
    goes within an hour: see erasures.py.
    """
    changes: dict[Column | str, Any] = {}
    if name is not None:
        changes[App.name] = app.name = clean_name(name)
    if currency is not None:
        changes[App.currency] = app.currency = _clean_currency(currency)
    if timezone is not None:
        changes[App.timezone] = app.timezone = _clean_timezone(timezone)
    if honour_privacy_signals is not None:
        changes[App.honour_privacy_signals] = app.honour_privacy_signals = honour_privacy_signals
    if retention_days is not None:
        app.retention_days = None if retention_days == "ever" else _clean_retention(retention_days)
        changes[App.retention_days] = app.retention_days
    if not changes:
        return
    async with transaction():
        await tokens.stamp_app(app)
        if not await App.update(changes).where(App.id == app.id).returning(App.id):
            raise NotFound


async def delete_app(app: App) -> None:
    """Remove the app and revoke its tokens for good; deleting it again changes nothing.

    Its rows in the event store go soon after: see erasures.py.
    """
    async with transaction():
        await tokens.stamp_app(app)
        await remove_app(app.id)


async def remove_app(app_id: UUID) -> None:
    """Remove the app, inside a transaction that stamped its tokens."""
    now = datetime.now(UTC)
    await AppToken.update({AppToken.app: None, AppToken.revoked_at: now}).where(AppToken.app == app_id)
    if await App.delete().where(App.id == app_id).returning(App.id):
        await Erasure(app_id=app_id, requested_at=now).save()


def timezones() -> list[str]:
    """The time zones to choose from: UTC, then every place, some by an older name, too; other names are understood."""
    return ["UTC", *sorted(zone for zone in _timezones() if "/" in zone and not zone.startswith("Etc/"))]


def _clean_currency(currency: str) -> str:
    currency = currency.strip().upper()
    if currency not in MINOR_UNITS:
        raise InvalidValue("currency", "A currency is an ISO 4217 code such as EUR.")
    return currency


def retention_of(text: str) -> int | Literal["ever"]:
    """What somebody typed for how many days events are kept; nothing is for ever. Raises InvalidValue."""
    text = text.strip()
    if not text:
        return "ever"
    return _clean_retention(int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0)


def _clean_retention(days: int) -> int:
    if not 1 <= days <= MAX_RETENTION_DAYS:
        raise InvalidValue("retention_days", f"Days are a whole number from 1 to {MAX_RETENTION_DAYS:,}.")
    return days


def is_timezone(name: str) -> bool:
    """Whether an app can have this time zone."""
    return name in _timezones()


def _clean_timezone(timezone: str) -> str:
    if not is_timezone(timezone):
        raise InvalidValue("timezone", "A time zone is a name such as Europe/Berlin.")
    return timezone


@cache
def _timezones() -> frozenset[str]:
    # Reading the folder of time zones takes milliseconds. "Factory" means "not set", "localtime" the machine's own.
    return frozenset(available_timezones() - {"Factory", "localtime"})
