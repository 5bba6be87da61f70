"""Files that browsers and programs save."""

import re
import unicodedata
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from litestar.response import Stream

from tenants.exports import MEDIA_TYPES, Format, Streams, export
from tenants.reports.filters import Filters
from tenants.reports.period import Period
from tenants.tables import App

# Hits are received at times within these.
_ALL_TIMES = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC))


async def events_file(
    app: App, store: Streams, period: Period | None, filters: Filters, format: Format, *, masked: bool = False
) -> Stream:
    """The events that the filters leave, of the period or, None, of all times, sent while they are read.

    Raises Busy, Unavailable.
    """
    condition, parameters = filters.sql()
    start, end = (period.start, period.end) if period else _ALL_TIMES
    rows = await export(app, store, start, end, condition, parameters, format, masked)
    days = f"-{period.first}-{period.last}" if period else ""
    name = f"{plain(app.name) or 'events'}{days}.{format}"
    return Stream(
        _sent(rows),
        media_type=MEDIA_TYPES[format],
        headers={"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"},
    )


async def _sent(rows: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    # Litestar wants an iterator of its own making; the rows end with it, whoever goes away.
    async for chunk in rows:
        yield chunk


def plain(title: str) -> str:
    """A title as part of a file's name: plain letters only, so that none can break the header."""
    letters = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", letters).strip("-")[:60]
