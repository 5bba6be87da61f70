"""How much there was: events, persons, and hits that did not become events."""

import asyncio

import msgspec

from tenants.events import Queries
from tenants.reports.compared import Compared, has_before
from tenants.reports.filters import Filters
from tenants.reports.period import Period
from tenants.reports.sql import PERSONS, rows_of
from tenants.reports.traffic import outcomes
from tenants.tables import App


class Totals(msgspec.Struct, frozen=True):
    """`persons` are those told apart: a hit without any identifier counts as event only.

    `rejected`, `duplicates` and `limited` are those of the whole app: only events have fields to filter by.
    """

    events: Compared
    persons: Compared
    rejected: Compared
    duplicates: Compared
    limited: Compared


async def totals(app: App, store: Queries, period: Period, filters: Filters) -> Totals:
    """What happened in the period and in the one before."""
    (events, persons), (events_before, persons_before), others, others_before = await asyncio.gather(
        _events(app, store, period, filters),
        _events(app, store, period.before, filters),
        outcomes(app, store, period),
        outcomes(app, store, period.before),
    )
    # Counters of hits are kept for ever, events as long as the app says.
    kept = has_before(app, period)
    return Totals(
        Compared(events, events_before if kept else None),
        Compared(persons, persons_before if kept else None),
        *(Compared(others[name], others_before[name]) for name in ("rejected", "duplicate", "limited")),
    )


async def _events(app: App, store: Queries, period: Period, filters: Filters) -> tuple[int, int]:
    where, parameters = filters.sql()
    (row,) = await store.query(
        f"SELECT count() AS events, {PERSONS} AS persons {rows_of(period.start, period.end)}{where}",
        {"app": str(app.id), **parameters},
        app.tenant,
    )
    return row["events"], row["persons"]
