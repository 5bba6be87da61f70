"""Why hits were not recorded. Rejections are kept for 30 days."""

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec

from tenants.events import Queries
from tenants.reports.period import Period
from tenants.reports.sql import rows_of
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


async def rejected(app: App, store: Queries, period: Period, examples: int = 3) -> list[Reason]:
    """The reasons, most frequent first."""
    counts, counts_before, newest = await asyncio.gather(
        _counts(app, store, period),
        _counts(app, store, period.before),
        store.query(
            "SELECT id, toUnixTimestamp64Milli(received_at) AS at, category, reason, query, detail "
            f"{rows_of(period.start, period.end, 'rejections')} "
            "ORDER BY received_at DESC, id DESC LIMIT {examples:UInt32} BY reason",
            {"app": str(app.id), "examples": examples},
            app.tenant,
        ),
    )
    kept = datetime.now(UTC) - period.before.start.astimezone(UTC) < _KEPT
    found: dict[str, list[Example]] = {}
    for row in newest:
        at = datetime.fromtimestamp(row["at"] / 1000, UTC)
        example = Example(str(row["id"]), at, row["category"], row["query"], row["detail"])
        found.setdefault(row["reason"], []).append(example)
    return [
        Reason(reason, hits, counts_before.get(reason, 0) if kept else None, found.get(reason, []))
        for reason, hits in sorted(counts.items(), key=lambda counted: (-counted[1], counted[0]))
    ]


async def _counts(app: App, store: Queries, period: Period) -> dict[str, int]:
    rows = rows_of(period.start, period.end, "rejections")
    found = await store.query(
        f"SELECT reason, count() AS hits {rows} GROUP BY reason", {"app": str(app.id)}, app.tenant
    )
    return {row["reason"]: row["hits"] for row in found}
