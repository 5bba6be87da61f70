"""A number and what it was in the period before."""

from datetime import UTC, datetime
from typing import cast

import msgspec

from tenants.erasures import kept_since
from tenants.reports.period import Period
from tenants.tables import App


class Compared(msgspec.Struct, frozen=True):
    """A number in the period and in the one before it; `before` is None where its events are no longer all kept."""

    now: int
    before: int | None


def kept_from(app: App) -> datetime | None:
    """From when on the app's events are all there; None where they are kept for ever, and always were."""
    days = cast("int | None", app.retention_days)
    expired = cast("datetime | None", app.expired_before)
    since = None if days is None else kept_since(days, datetime.now(UTC))
    return max((each for each in (since, expired) if each is not None), default=None)


def has_before(app: App, period: Period) -> bool:
    """Whether the events of the period before are all kept, so that this one can be compared with it."""
    since = kept_from(app)
    return since is None or period.before.start >= since
