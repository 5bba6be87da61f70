"""An event store of a size, and how long the reports of one app in it take.

The rows are made by the engine itself; digesting so many would take half an hour. The app has a tenth of the store's
events in the last 30 days, and as many in the 30 days before, which every panel is compared with; the others are nine
neighbours'. A tenth is revenue in two currencies; people come back, a few of them often; one of the six custom values
differs on every event.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from server.event_store import EventStore, EventStoreUnavailable
from tenants.events import EVENT_COLUMNS
from tenants.reports.breakdown import breakdown
from tenants.reports.fields import fields
from tenants.reports.filters import Filters
from tenants.reports.period import period_of
from tenants.reports.rejected import rejected
from tenants.reports.revenue import largest_orders, latest_orders, revenue, revenue_by, revenue_series
from tenants.reports.series import series
from tenants.reports.tokens import tokens
from tenants.reports.totals import totals
from tenants.reports.traffic import limited_minutes, traffic
from tenants.tables import App

_NEIGHBOURS = 8
_DAYS = 60
_CHUNK = 250_000
_MERGED_SECONDS = 120.0

_ROWS = """
WITH cityHash64(number, {seed}) AS h, cityHash64(number, {seed}, 1) AS g, cityHash64(number, {seed}, 2) AS k,
    h % 10 = 0 AS paid,
    toUInt64(pow(g % 1000003 / 1000003, 2) * {persons}) AS p,
    reinterpretAsUUID(concat(reinterpretAsFixedString(cityHash64(p, {app})),
                             reinterpretAsFixedString(cityHash64(p, {app}, 1)))) AS person
SELECT toUUID('{app_id}'),
    fromUnixTimestamp64Milli({end} - toInt64(number * ({days} * 86400000.0 / {count}))),
    generateUUIDv4(number),
    if(paid, 'revenue', 'event'),
    if(paid, multiIf(g % 20 = 0, 'refund', g % 5 = 1, 'renewal', 'purchase'),
       ['page_view', 'signup', 'newsletter_open', 'login', 'add_to_cart', 'search', 'share', 'download', 'page_view',
        'page_view', 'page_view'][1 + g % 11]),
    if(paid, if(g % 20 = 0, -1, 1) * toInt64(900 + k % 9000), 0),
    if(paid, if(k % 4 = 0, 'USD', 'EUR'), ''),
    if(paid, concat('order-', toString(number)), ''),
    concat('{{"plan":"', ['starter', 'team', 'pro'][1 + k % 3],
           '","page":"/page/', toString(k % 50), '.html","items":', toString(1 + g % 7),
           ',"source":"', ['search', 'direct', 'newsletter', 'ads'][1 + p % 4], '"',
           if(k % 3 = 0, ',"coupon":"SPRING"', ''),
           ',"visit":"v-', toString(number), '","address":{{"city":"City ', toString(p % 200), '"}}}}'),
    [], person, '', '', '', concat('10.', toString(p % 250), '.0.0/24'),
    concat('Mozilla/5.0 ', toString(p % 100)), 'shop.example.com', '', '', person, false
FROM numbers({first}, {rows})
"""


class Measured(msgspec.Struct):
    """Times in ms of each panel, and of all panels of the page of events and of that of revenue at once."""

    panels: dict[str, list[float]]
    events_page: list[float]
    revenue_page: list[float]


def main() -> None:
    """`python -m benchmarks.dashboards FOLDER APP EVENTS BEFORE RUNS`: fill up, measure, print JSON."""
    folder, app, events, before, runs = Path(sys.argv[1]), UUID(sys.argv[2]), *map(int, sys.argv[3:6])
    store = EventStore(f"chdb://{folder / 'events'}", folder / "tmp")
    try:
        sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(_measure(store, app, events, before, runs))))
    finally:
        store.close()


async def _measure(store: EventStore, app_id: UUID, events: int, before: int, runs: int) -> Measured:
    await _fill(store, app_id, events - before)
    app = App(id=app_id, tenant=1, name="Benchmark", timezone="Europe/Berlin")
    return await _panels(app, store, runs)


async def _fill(store: EventStore, app_id: UUID, events: int) -> None:
    end = int(time.time()) * 1000
    apps = [(app_id, events // 5)] + [(UUID(int=number + 1), events // 10) for number in range(_NEIGHBOURS)]
    for number, (owner, count) in enumerate(apps):
        await fill_app(store, owner, count, max(1, count // 5), _DAYS, seed=events + number)
    await store.change(
        "INSERT INTO traffic SELECT {app:UUID}, toDateTime({end:UInt32}) - number * 60, 20, 1, 1, number % 97 = 0 "
        f"FROM numbers({_DAYS * 1440})",
        {"app": str(app_id), "end": end // 60_000 * 60},
    )
    await merged(store)


async def fill_app(store: EventStore, owner: UUID, count: int, persons: int, days: int, seed: int) -> None:
    """Events of one app, until now; three quarters of `persons` are drawn."""
    names = ", ".join(name for name, _ in EVENT_COLUMNS)
    end = int(time.time()) * 1000
    for first in range(0, count, _CHUNK):
        rows = _ROWS.format(
            seed=seed,
            app=owner.int % 2**32,
            app_id=owner,
            persons=persons,
            end=end,
            days=days,
            count=count,
            first=first,
            rows=min(_CHUNK, count - first),
        )
        await store.change(f"INSERT INTO events ({names}) {rows}")


async def merged(store: EventStore) -> None:
    """As on a server that has been up for a while: small parts are large ones, and months that are over one each."""
    parts = "system.parts WHERE active AND database = currentDatabase() AND table = 'events'"
    for month in (await store.query(f"SELECT DISTINCT partition_id AS id FROM {parts} ORDER BY id"))[:-1]:
        # The engine does it by itself after some hours (migrations/events/0007_past_months.sql).
        await store.change(f"OPTIMIZE TABLE events PARTITION ID '{month['id']}' FINAL SETTINGS max_execution_time = 0")
    until = time.monotonic() + _MERGED_SECONDS
    while (await store.query("SELECT count() AS running FROM system.merges"))[0]["running"]:
        if time.monotonic() > until:
            break
        await asyncio.sleep(1)


async def _panels(app: App, store: EventStore, runs: int) -> Measured:
    period, every = period_of({}, app.timezone, datetime.now(UTC)), Filters()
    events: dict[str, Callable[[], Awaitable[Any]]] = {
        "totals": lambda: totals(app, store, period, every),
        "chart": lambda: series(app, store, period, every),
        "event tokens": lambda: tokens(app, store, period, every),
        "fields": lambda: fields(app, store, period, every),
        "breakdown": lambda: breakdown(app, store, period, every, "params.source"),
    }
    sales: dict[str, Callable[[], Awaitable[Any]]] = {
        "revenue": lambda: revenue(app, store, period, every),
        "revenue chart": lambda: revenue_series(app, store, period, every),
        "revenue by field": lambda: revenue_by(app, store, period, every, "params.source", "EUR"),
        "largest orders": lambda: largest_orders(app, store, period, every, "EUR"),
        "latest orders": lambda: latest_orders(app, store, period, every),
    }
    others: dict[str, Callable[[], Awaitable[Any]]] = {
        "breakdown of 50 values": lambda: breakdown(app, store, period, every, "params.page"),
        "breakdown of as many values as events": lambda: breakdown(app, store, period, every, "params.visit"),
        "traffic": lambda: traffic(app, store, period),
        "limited": lambda: limited_minutes(app, store, period),
        "rejected": lambda: rejected(app, store, period, every),
    }
    panels: dict[str, list[float]] = {}
    for name, panel in (events | sales | others).items():
        # Beyond what a query may take of memory (as many values as events, of five million) there is no time to tell.
        with contextlib.suppress(EventStoreUnavailable):
            panels[name] = await times_of(panel, runs)

    async def page(of: Mapping[str, Callable[[], Awaitable[Any]]]) -> None:
        await asyncio.gather(*(panel() for panel in of.values()))

    return Measured(panels, await times_of(lambda: page(events), runs), await times_of(lambda: page(sales), runs))


async def times_of(work: Callable[[], Awaitable[Any]], runs: int) -> list[float]:
    """In ms, sorted; the first one, which reads from the disk, is not counted."""
    taken: list[float] = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        await work()
        taken.append(1000 * (time.perf_counter() - began))
    return sorted(taken[1:])


class Reloading:
    """Somebody who reloads a dashboard of the API's without pause, all its panels at once."""

    PANELS = ("totals", "series", "breakdown?field=params.source", "fields", "revenue")

    def __init__(self, get: Callable[[str], int], token: str) -> None:
        self._get = get
        self._addresses = [f"/api/v1/apps/{token}/{panel}" for panel in self.PANELS]
        self._ending = False
        self.times: list[float] = []
        self.refused = 0

    def run(self) -> None:
        """Until `end`, from a thread of its own."""
        with ThreadPoolExecutor(len(self._addresses)) as panels:
            while not self._ending:
                began = time.perf_counter()
                self.refused += sum(status != 200 for status in panels.map(self._get, self._addresses))
                self.times.append(1000 * (time.perf_counter() - began))

    def end(self) -> None:
        self._ending = True


if __name__ == "__main__":
    main()
