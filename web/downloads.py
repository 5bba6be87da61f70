"""Files that browsers and programs save."""

import re
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime

from litestar.background_tasks import BackgroundTask
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
    return streamed(_sent(rows), MEDIA_TYPES[format], name)


async def _sent(rows: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    # Litestar wants an iterator of its own making; the rows end with it.
    async for chunk in rows:
        yield chunk


def streamed(parts: AsyncGenerator[bytes], media_type: str, name: str | None = None) -> Stream:
    """What is sent while it is read, with a `name` as a file to save; it ends when whoever takes it goes away."""

    async def end() -> None:
        # Whoever goes away leaves it in a cycle, which on a quiet machine is collected much later.
        await parts.aclose()

    headers = {"Cache-Control": "no-store"}
    if name:
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return Stream(parts, background=BackgroundTask(end), media_type=media_type, headers=headers)


def plain(title: str) -> str:
    """A title as part of a file's name: plain letters only, so that none can break the header."""
    letters = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", letters).strip("-")[:60]
