"""App tokens, and how every process hears within moments that one changed.

Whatever changes a hit's treatment (a token issued, rotated, revoked; a tenant's limit; an app's settings or
end) stamps the token rows it touches with the next revision, in the same transaction. Counting up locks the
one row of `revision` until the commit, so revisions become visible in their order: a reader that remembers
the highest one it saw and asks for those after it misses none. That query is one look at an index, which
usually finds nothing.

Take the revision first in a transaction: two that lock rows in different order could wait for each other.
"""
# Piccolo's annotations leave type arguments open.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

import msgspec
from piccolo.columns.combination import WhereRaw

from tenants.errors import InvalidValue, NotFound
from tenants.tables import App, AppToken, Revision, Tenant, transaction

State = Literal["live", "ends", "ended", "revoked"]


# Ended ones too: every process holds all tokens in memory. A rotation a week for four years.
MAX_TOKENS = 200
# SQLite takes 32,766 values a statement.
_TOKENS_A_STATEMENT = 1_000


class Route(msgspec.Struct, frozen=True):
    """Where a token leads: all that ingest needs to know about it.

    `expires_at` is in Unix seconds. A deleted app's token is `revoked`, its `app_id` and numbers are zero.
    """

    token: str
    app_id: UUID
    tenant_id: int
    rate: int
    burst: int
    currency: str
    honour_privacy: bool
    expires_at: float | None
    revoked: bool
    revision: int


async def issue(app: App) -> str:
    """One more token for the app; raises NotFound when the app is gone."""
    async with transaction():
        return await add_token(app, await next_revision())


async def rotate(app: App, overlap: timedelta) -> str:
    """A new token; every other live one ends after `overlap`, or earlier where that was settled before.

    Raises NotFound when the app is gone, InvalidValue for a negative overlap.
    """
    if overlap < timedelta(0):
        raise InvalidValue("overlap", "An overlap is zero or longer.")
    async with transaction():
        revision = await next_revision()
        end = datetime.now(UTC) + overlap
        await AppToken.update({AppToken.expires_at: end, AppToken.revision: revision}).where(
            AppToken.app == app.id,
            AppToken.revoked_at.is_null(),
            AppToken.expires_at.is_null() | (AppToken.expires_at > end),
        )
        return await add_token(app, revision)


async def revoke(tenant: Tenant, token: str) -> None:
    """End the token now; one revoked before stays as it is. Raises NotFound unless it is this tenant's."""
    async with transaction():
        revision = await next_revision()
        found = await find(tenant, token)
        await AppToken.update({AppToken.revoked_at: datetime.now(UTC), AppToken.revision: revision}).where(
            AppToken.id == found.id, AppToken.revoked_at.is_null()
        )


async def list_tokens(app: App) -> list[AppToken]:
    """The app's tokens, ended and revoked ones too, newest first; `state` says how each one is."""
    return await AppToken.objects().where(AppToken.app == app.id).order_by(AppToken.id, ascending=False)


async def live_tokens(apps: Sequence[App], now: datetime) -> dict[UUID, list[str]]:
    """The tokens of each of these that take hits, newest first, by the app's id."""
    found: dict[UUID, list[str]] = {app.id: [] for app in apps}
    if found:
        takes = AppToken.expires_at.is_null() | (AppToken.expires_at > now)
        rows = AppToken.select(AppToken.app, AppToken.token).where(
            AppToken.app.is_in(list(found)), AppToken.revoked_at.is_null(), takes
        )
        for row in await rows.order_by(AppToken.id, ascending=False):
            found[row["app"]].append(row["token"])
    return found


def state(token: AppToken, now: datetime) -> State:
    """Whether the token takes hits: for good, until `expires_at`, or no longer (since `expires_at`, `revoked_at`)."""
    if token.revoked_at:
        return "revoked"
    if not token.expires_at:
        return "live"
    return "ends" if token.expires_at > now else "ended"


async def find(tenant: Tenant, token: str) -> AppToken:
    """The token with its app in `app`, ended or not; raises NotFound unless it is this tenant's."""
    # Anything else cannot be one of ours, and PostgreSQL refuses some of it (a NUL) as text.
    if not re.fullmatch(r"[0-9a-f]{24}", token):
        raise NotFound
    found = (
        await AppToken.objects(AppToken.app).where(AppToken.token == token, AppToken.app._.tenant == tenant.id).first()
    )
    if found is None:
        raise NotFound
    return found


async def find_of_app(app: App, token: str) -> AppToken:
    """The app's token, ended or not; raises NotFound unless it is this app's."""
    if not re.fullmatch(r"[0-9a-f]{24}", token):
        raise NotFound
    found = await AppToken.objects().where(AppToken.token == token, AppToken.app == app.id).first()
    if found is None:
        raise NotFound
    return found


async def unscoped_routes(after_revision: int) -> list[Route]:
    """Every token stamped after `after_revision` (0: all), in the order of their revisions.

    All there are where none was ever stamped so late: this is not the database, as it was, that the number is from.
    """
    after = "(SELECT CASE WHEN max(n) < {} THEN 0 ELSE CAST({} AS BIGINT) END FROM revision)"
    rows = (
        await AppToken.select(
            AppToken.token,
            AppToken.expires_at,
            AppToken.revoked_at,
            AppToken.revision,
            AppToken.app.as_alias("app_id"),
            AppToken.app._.currency.as_alias("currency"),
            AppToken.app._.honour_privacy_signals.as_alias("honour_privacy"),
            AppToken.app._.tenant.as_alias("tenant_id"),
            AppToken.app._.tenant._.rate.as_alias("rate"),
            AppToken.app._.tenant._.burst.as_alias("burst"),
        )
        .where(WhereRaw(f"app_token.revision > {after}", after_revision, after_revision))
        .order_by(AppToken.revision)
    )
    return [
        Route(
            token=row["token"],
            app_id=row["app_id"] or UUID(int=0),
            tenant_id=row["tenant_id"] or 0,
            rate=row["rate"] or 0,
            burst=row["burst"] or 0,
            currency=row["currency"] or "",
            honour_privacy=bool(row["honour_privacy"]),
            expires_at=row["expires_at"] and row["expires_at"].timestamp(),
            revoked=row["revoked_at"] is not None or row["app_id"] is None,
            revision=row["revision"],
        )
        for row in rows
    ]


async def unscoped_first_issued() -> datetime | None:
    """When the first token was issued that there ever was, None for none: their rows are kept for good."""
    first = await AppToken.select(AppToken.created_at).order_by(AppToken.created_at).first()
    return first["created_at"] if first else None


async def unscoped_used(used: Mapping[str, float]) -> None:
    """Remember when tokens were last used (Unix seconds), of whatever tenants. Time only goes forward."""
    # A statement a second of use: after a quiet minute with many tokens that is as many as there were seconds.
    by_second: dict[int, list[str]] = {}
    for token, at in used.items():
        by_second.setdefault(int(at), []).append(token)
    # Two that wait for each other's rows would wait in a circle; who has one changes the token, or its last use.
    skip_held = "FOR NO KEY UPDATE SKIP LOCKED" if AppToken._meta.db.engine_type == "postgres" else ""
    for second, names in by_second.items():
        at = datetime.fromtimestamp(second, UTC)
        for start in range(0, len(names), _TOKENS_A_STATEMENT):
            some = names[start : start + _TOKENS_A_STATEMENT]
            await AppToken.raw(
                f"WITH used AS MATERIALIZED (SELECT id FROM app_token WHERE token IN ({', '.join(['{}'] * len(some))}) "
                f"AND (last_used_at IS NULL OR last_used_at < {{}}) {skip_held}) "
                "UPDATE app_token SET last_used_at = {} WHERE id IN (SELECT id FROM used)",
                *some,
                at,
                at,
            )


async def next_revision() -> int:
    """Count up, inside a transaction: the others that want to wait here until it commits."""
    rows = await Revision.raw(
        "INSERT INTO revision (id, n) VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET n = revision.n + 1 RETURNING n"
    )
    return rows[0]["n"]


async def add_token(app: App, revision: int) -> str:
    """A new token, inside a transaction that took `revision`; raises NotFound when the app is gone."""
    if not await App.exists().where(App.id == app.id):
        raise NotFound
    if await AppToken.count().where(AppToken.app == app.id) >= MAX_TOKENS:
        raise InvalidValue(
            "token", f"An app has had {MAX_TOKENS} tokens at most: make a new app, or use one that is live."
        )
    token = secrets.token_hex(12)
    await AppToken(app=app.id, token=token, revision=revision).save()
    return token


async def stamp_app(app: App) -> None:
    """Make every process read the app's routes again, inside the transaction that changes it."""
    await AppToken.update({AppToken.revision: await next_revision()}).where(AppToken.app == app.id)


async def stamp_tenant(tenant: Tenant) -> None:
    """Make every process read the tenant's routes again, inside the transaction that changes it."""
    revision = await next_revision()
    apps = App.select(App.id).where(App.tenant == tenant.id)
    await AppToken.update({AppToken.revision: revision}).where(AppToken.app.is_in(apps))
