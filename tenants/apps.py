"""A tenant's apps."""
# Piccolo's annotations leave type arguments open.
# pyright: reportUnknownMemberType=false

from datetime import UTC, datetime
from functools import cache
from uuid import UUID
from zoneinfo import available_timezones

from tenants import tokens
from tenants.currencies import MINOR_UNITS
from tenants.errors import InvalidValue, NotFound
from tenants.tables import App, AppToken, Tenant, clean_name, transaction


async def create_app(tenant: Tenant, name: str, currency: str = "USD") -> tuple[App, str]:
    """A new app and its first token; raises InvalidValue for the name or the currency."""
    app = App(tenant=tenant.id, name=clean_name(name), currency=_clean_currency(currency))
    async with transaction():
        revision = await tokens.next_revision()
        await app.save()
        return app, await tokens.add_token(app, revision)


async def list_apps(tenant: Tenant) -> list[App]:
    """The tenant's apps, oldest first."""
    return await App.objects().where(App.tenant == tenant.id).order_by(App.created_at)


async def find_app(tenant: Tenant, app_id: str) -> App:
    """The tenant's app with this id as a page's address has it; raises NotFound."""
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
) -> None:
    """Set what is given and keep the rest; raises InvalidValue, or NotFound when the app is gone.

    The new currency counts for hits from now on; what was recorded keeps its own.
    """
    if name is not None:
        app.name = clean_name(name)
    if currency is not None:
        app.currency = _clean_currency(currency)
    if timezone is not None:
        if timezone not in _timezones():
            raise InvalidValue("timezone", "A time zone is a name such as Europe/Berlin.")
        app.timezone = timezone
    if honour_privacy_signals is not None:
        app.honour_privacy_signals = honour_privacy_signals
    async with transaction():
        await tokens.stamp_app(app)
        changed = await (
            App.update(
                {
                    App.name: app.name,
                    App.currency: app.currency,
                    App.timezone: app.timezone,
                    App.honour_privacy_signals: app.honour_privacy_signals,
                }
            )
            .where(App.id == app.id)
            .returning(App.id)
        )
        if not changed:
            raise NotFound


async def delete_app(app: App) -> None:
    """Remove the app and revoke its tokens for good; deleting it again changes nothing.

    Its rows in the event store are not touched.
    """
    async with transaction():
        await tokens.stamp_app(app)
        await AppToken.update({AppToken.app: None, AppToken.revoked_at: datetime.now(UTC)}).where(
            AppToken.app == app.id
        )
        await App.delete().where(App.id == app.id)


def _clean_currency(currency: str) -> str:
    currency = currency.strip().upper()
    if currency not in MINOR_UNITS:
        raise InvalidValue("currency", "A currency is an ISO 4217 code such as EUR.")
    return currency


@cache
def _timezones() -> set[str]:
    # Reading the folder of time zones takes milliseconds.
    return available_timezones()
