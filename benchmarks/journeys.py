"""How long retention and funnels take in an app with many people.

All events are the app's own, spread evenly over the last 90 days, so that the default view of 30 days is about a third
of them. People come whenever they like: the dearest case, since hardly any two events share a person and a week.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from benchmarks.dashboards import fill_app, merged, times_of
from server.event_store import EventStore
from tenants.reports.filters import Filters, filters_of
from tenants.reports.funnel import Step, funnel
from tenants.reports.period import period_of
from tenants.reports.retention import retention
from tenants.reports.totals import totals
from tenants.tables import App

_DAYS = 89
# People with ten events each; of those asked for, a quarter is never drawn.
_EVENTS_OF_ONE = 7.5


def main() -> None:
    """`python -m benchmarks.journeys FOLDER APP EVENTS RUNS`: fill up, measure, print times in ms by name as JSON."""
    folder, app, events, runs = Path(sys.argv[1]), UUID(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    store = EventStore(f"chdb://{folder / 'events'}", folder / "tmp")
    try:
        sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(_measure(store, app, events, runs))))
    finally:
        store.close()


async def _measure(store: EventStore, app_id: UUID, events: int, runs: int) -> dict[str, list[float]]:
    await fill_app(store, app_id, events, max(1, int(events / _EVENTS_OF_ONE)), _DAYS, seed=events)
    await merged(store)
    app = App(id=app_id, tenant=1, name="Benchmark", timezone="Europe/Berlin")
    month, quarter = (period_of({"period": name}, app.timezone, datetime.now(UTC)) for name in ("30d", "90d"))
    every = Filters()
    steps = [Step("page_view"), Step("signup"), Step("purchase")]
    pro = [steps[0], Step("signup", filters_of([("params.plan", "pro")])), steps[2]]
    week = timedelta(days=7)
    reports: dict[str, Callable[[], Awaitable[Any]]] = {
        "persons counted twice, 30 days": lambda: totals(app, store, month, every),
        "retention by day, 30 days": lambda: retention(app, store, month, every),
        "retention by week, 90 days": lambda: retention(app, store, quarter, every),
        "retention after a signup by week, 90 days": lambda: retention(app, store, quarter, every, "signup"),
        "funnel of 3 steps, 30 days": lambda: funnel(app, store, month, every, steps, week),
        "funnel with a filter and by a field, 30 days": lambda: funnel(
            app, store, month, every, pro, week, "params.source"
        ),
        "funnel of 3 steps, 90 days": lambda: funnel(app, store, quarter, every, steps, week),
    }
    return {name: await times_of(report, runs) for name, report in reports.items()}


if __name__ == "__main__":
    main()
