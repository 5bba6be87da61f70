"""Why hits were not recorded. Rejections are kept for 30 days, or as long as the app keeps its events."""

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec

from tenants.events import Queries
from tenants.reports.compared import kept_from
from tenants.reports.filters import Filters
from tenants.reports.period import Period
from tenants.reports.sql import Parameters, rows_of
from tenants.tables import App

_KEPT = timedelta(days=30)


class Example(msgspec.Struct, frozen=True):
    """A rejected hit: `query` as sent, `detail` what to change."""

    id: str
    received_at: datetime
    category: str
    query: str
    detail: str


class Reason(msgspec.Struct, frozen=True):
    """How often hits were rejected for a reason of the protocol, and the newest of them.

    `before` is None where the period before is no longer kept.
    """

    reason: str
    hits: int
    before: int | None
    examples: list[Example]


def rejections_from(app: App) -> datetime:
    """From when on the app's rejections are all there."""
    since, ever = datetime.now(UTC) - _KEPT, kept_from(app)
    return since if ever is None else max(since, ever)


async def rejected(app: App, store: Queries, period: Period, filters: Filters, examples: int = 3) -> list[Reason]:
    """The reasons, most frequent first. Of the filters those by category count: no more is known of these hits."""
    where, parameters = filters.of_rejected().sql()
    parameters |= {"app": str(app.id)}
    counts, counts_before, newest = await asyncio.gather(
        _counts(app, store, period, where, parameters),
        _counts(app, store, period.before, where, parameters),
        store.query(
            "SELECT id, toUnixTimestamp64Milli(received_at) AS at, category, reason, query, detail "
            f"{rows_of(period.start, period.end, 'rejections')}{where} "
            "ORDER BY received_at DESC, id DESC LIMIT {examples:UInt32} BY reason",
            parameters | {"examples": examples},
            app.tenant,
        ),
    )
    kept = period.before.start >= rejections_from(app)
    found: dict[str, list[Example]] = {}
    for row in newest:
        at = datetime.fromtimestamp(row["at"] / 1000, UTC)
        example = Example(str(row["id"]), at, row["category"], row["query"], row["detail"])
        found.setdefault(row["reason"], []).append(example)
    return [
        Reason(reason, hits, counts_before.get(reason, 0) if kept else None, found.get(reason, []))
        for reason, hits in sorted(counts.items(), key=lambda counted: (-counted[1], counted[0]))
    ]


async def _counts(app: App, store: Queries, period: Period, where: str, parameters: Parameters) -> dict[str, int]:
    rows = f"{rows_of(period.start, period.end, 'rejections')}{where}"
    found = await store.query(f"SELECT reason, count() AS hits {rows} GROUP BY reason", parameters, app.tenant)
    return {row["reason"]: row["hits"] for row in found}
