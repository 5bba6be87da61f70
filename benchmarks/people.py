"""An app with many people, and how long its list of them and a page of one of them take.

The rows are made by the engine itself; digesting so many would take half an hour. All events are the one app's, over
60 days. Everybody is known by an e-mail address; they come back, a few of them often. A tenth of the events is revenue
in two currencies, and another tenth tells two custom values.
"""

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from benchmarks.dashboards import merged, times_of
from server.database import Database
from server.event_store import EventStore
from tenants import bulk
from tenants.events import EVENT_COLUMNS, recent_events
from tenants.identifiers import EMAIL_KIND, identifier_key, person_key
from tenants.reports.filters import Filters
from tenants.reports.people import people
from tenants.reports.person import person
from tenants.reports.segments import segment_of
from tenants.tables import App, Identifier, Person, transaction

_DAYS = 60
_CHUNK = 250_000

_PERSON = """reinterpretAsUUID(concat(reinterpretAsFixedString(cityHash64({number})),
                                 reinterpretAsFixedString(cityHash64({number}, 1))))"""
_ROWS = f"""
WITH cityHash64(number) AS h, cityHash64(number, 1) AS g, cityHash64(number, 2) AS k,
    toUInt64(pow(g % 4294967291 / 4294967291, 2) * {{people}}) AS p
SELECT toUUID('{{app_id}}'),
    fromUnixTimestamp64Milli({{end}} - toInt64(number * ({_DAYS} * 86400000.0 / {{events}}))),
    generateUUIDv4(number),
    if(h % 10 = 0, 'revenue', 'event'),
    multiIf(h % 10 = 0, 'purchase', h % 10 = 1, 'signup', ['page_view', 'search', 'download'][1 + k % 3]),
    if(h % 10 = 0, if(k % 20 = 0, -1, 1) * toInt64(900 + k % 9000), 0),
    multiIf(h % 10 != 0, '', k % 4 = 0, 'USD', 'EUR'),
    '',
    if(h % 10 != 1, '{{{{}}}}', concat(
        '{{{{"plan":"', ['starter', 'team', 'pro'][1 + k % 3], '","city":"City ', toString(p % 200), '"}}}}')),
    [], {_PERSON.format(number="p")}, '', '', '', concat('10.', toString(p % 250), '.0.0/24'),
    concat('Mozilla/5.0 ', toString(p % 100)), 'shop.example.com', '', '', {_PERSON.format(number="p")}, true
FROM numbers({{first}}, {{rows}})
"""


def main() -> None:
    """`python -m benchmarks.people FOLDER APP EVENTS PEOPLE RUNS`: fill up, measure, print JSON: ms by what was asked.

    The folder is one that `onepx serve` made.
    """
    folder, app, events, count, runs = Path(sys.argv[1]), UUID(sys.argv[2]), *map(int, sys.argv[3:6])
    store = EventStore(f"chdb://{folder / 'events'}", folder / "tmp")
    try:
        sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(_measure(folder, store, app, events, count, runs))))
    finally:
        store.close()


async def _measure(
    folder: Path, store: EventStore, app_id: UUID, events: int, count: int, runs: int
) -> dict[str, list[float]]:
    database = Database(f"sqlite://{folder / 'control.sqlite3'}")
    await database.start()
    app = App(id=app_id, tenant=1, name="Benchmark", currency="EUR")
    try:
        await _fill(store, app, events, count)
        ids = await _know(store, app)
        return {name: await times_of(work, runs) for name, work in _questions(app, store, ids).items()}
    finally:
        await database.close()


async def _fill(store: EventStore, app: App, events: int, count: int) -> None:
    names = ", ".join(name for name, _ in EVENT_COLUMNS)
    end = int(time.time()) * 1000
    for first in range(0, events, _CHUNK):
        rows = min(_CHUNK, events - first)
        values = {"app_id": app.id, "people": count, "end": end, "events": events, "first": first, "rows": rows}
        await store.change(f"INSERT INTO events ({names}) {_ROWS.format(**values)}")
    await merged(store)


async def _know(store: EventStore, app: App) -> list[UUID]:
    """An e-mail address of everybody; returns their ids."""
    rows = await store.query("SELECT DISTINCT person_id FROM events WHERE app_id = {app:UUID}", {"app": str(app.id)}, 1)
    ids = [row["person_id"] for row in rows]
    async with transaction():
        known = [(person_key(app.id, id), 1 << EMAIL_KIND, 1, 1) for id in ids]
        await bulk.put(Person, ("key", "kinds", "size", "known_at"), known)
        addresses = [
            (identifier_key(app.id, EMAIL_KIND, f"reader{number}@example.org"), person_key(app.id, id))
            for number, id in enumerate(ids)
        ]
        await bulk.put(Identifier, ("key", "person"), addresses)
    return ids


def _questions(app: App, store: EventStore, ids: list[UUID]) -> dict[str, Callable[[], Awaitable[Any]]]:
    listed = partial(people, app, store)
    cursors: dict[str, str | None] = {}
    revenue = Filters().with_("category", "revenue")

    async def next_page() -> None:
        """A page further on each time."""
        page = await listed(cursor=cursors.get("last_seen"))
        cursors["last_seen"] = page.next

    async def page_of_one() -> None:
        one = await person(app, store, random.choice(ids))
        await recent_events(app, store, persons=one.ids, limit=50)
        await recent_events(app, store, persons=one.ids, filters=revenue, limit=10)

    async def found_by_address() -> None:
        await listed(text=f"reader{random.randrange(len(ids))}@")

    return {
        "last seen": listed,
        "last seen, next page": next_page,
        "first seen": partial(listed, sort="first_seen"),
        "most events": partial(listed, sort="events"),
        "most revenue": partial(listed, sort="revenue"),
        "100 with properties, as the API reads them": partial(listed, properties=True, limit=100),
        "with a property": partial(listed, segment=segment_of([("person.plan", "pro")])),
        "who did something often": partial(listed, segment=segment_of([("did.3", "purchase")])),
        "found by e-mail address": found_by_address,
        "found by a property": partial(listed, text="City 17"),
        "page of one": page_of_one,
    }


if __name__ == "__main__":
    main()
