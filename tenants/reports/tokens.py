"""Which event tokens there were."""

import msgspec

from tenants.events import Queries
from tenants.reports.compared import Compared, has_before
from tenants.reports.filters import Filters
from tenants.reports.period import Period
from tenants.reports.sql import PERSONS, in_order, rows_of, share_of
from tenants.tables import App


class Token(msgspec.Struct, frozen=True):
    """`share` is of all events of the period, 0 to 1."""

    event_token: str
    events: Compared
    persons: int
    share: float


class Tokens(msgspec.Struct, frozen=True):
    """Those with most events first; `more` is how many others there are."""

    tokens: list[Token]
    more: int


async def tokens(app: App, store: Queries, period: Period, filters: Filters, limit: int = 50) -> Tokens:
    """The event tokens of the period, each with its count in the period before."""
    where, parameters = filters.sql()
    parameters |= {"app": str(app.id), "limit": limit}
    rows = f"{rows_of(period.start, period.end)}{where}"
    counted = f"SELECT event_token, count() AS events, {PERSONS} AS persons {rows} GROUP BY event_token"
    found = await store.query(
        f"SELECT *, sum(events) OVER () AS whole, count() OVER () AS known FROM ({counted}) "
        f"ORDER BY events DESC, {in_order('event_token')} LIMIT {{limit:UInt32}}",
        parameters,
        app.tenant,
    )
    kept = has_before(app, period)
    # Of those that are shown: there may have been thousands.
    before = f"{rows_of(period.before.start, period.before.end)}{where} AND event_token IN {{shown:Array(String)}}"
    shown = parameters | {"shown": [row["event_token"] for row in found]}
    counted = f"SELECT event_token, count() AS events {before} GROUP BY event_token"
    found_before = await store.query(counted, shown, app.tenant) if kept else []
    earlier = {row["event_token"]: row["events"] for row in found_before}
    listed = [
        Token(
            row["event_token"],
            Compared(row["events"], earlier.get(row["event_token"], 0) if kept else None),
            row["persons"],
            share_of(row["events"], row["whole"]),
        )
        for row in found
    ]
    return Tokens(listed, found[0]["known"] - len(found) if found else 0)
