"""All events of a period, raw, as a file: CSV for people and spreadsheets, Parquet for programs.

    received_at     ISO 8601 in UTC with milliseconds; in Parquet a timestamp
    id              of the hit
    category        event, revenue
    event_token
    amount          in minor units of the currency; none on category event, as the next two
    amount_decimal  the same in the currency's main unit, as text: 25.50
    currency
    event_id
    params          the custom values, JSON text
    person_id
    email, uuid, fbid
    warnings        comma-separated
    referrer_host
    user_agent

What is not there is empty in CSV and null in Parquet. Left out: the raw query, which is kept for two days only and says
nothing that is not in the other columns; and the network, which is kept to tell countries and is shown nowhere.

A spreadsheet takes a cell for a formula that begins with one of `=+-@`, and an event token may be `=HYPERLINK(…)`. So a
cell of text that begins so, also after spaces and invisible characters, or with a tab or a line break, begins with an
apostrophe in CSV. Numbers are written by us and stay numbers; Parquet has types, and texts as they are.
"""

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from tenants.currencies import MINOR_UNITS
from tenants.reports.sql import PERSON_ID, SOMEBODY
from tenants.reports.sql import masked as masked_text
from tenants.tables import App

Format = Literal["csv", "parquet"]

MEDIA_TYPES: dict[Format, str] = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet"}


class Streams(Protocol):
    """The event store, as far as exporting needs it."""

    async def stream(
        self, sql: str, parameters: Mapping[str, Any], form: str, settings: Mapping[str, Any], whose: int
    ) -> AsyncIterator[bytes]:
        """The result in one of ClickHouse's formats. Raises Busy when `whose` streams, or all, are too many."""
        ...


# (name, expression, whether it is text that somebody sent)
_COLUMNS = (
    ("received_at", "received_at", False),
    ("id", "toString(id)", False),
    ("category", "category", False),
    ("event_token", "event_token", True),
    ("amount", "if(category = 'revenue', amount, NULL)", False),
    ("amount_decimal", "if(category = 'revenue', {decimal}, NULL)", False),
    ("currency", "nullIf(currency, '')", False),
    ("event_id", "nullIf(event_id, '')", True),
    ("params", "params_text", True),
    ("person_id", f"if({SOMEBODY}, toString({PERSON_ID}), NULL)", False),
    ("email", "nullIf(email, '')", True),
    ("uuid", "nullIf(uuid, '')", True),
    ("fbid", "nullIf(fbid, '')", True),
    ("warnings", "arrayStringConcat(warnings, ',')", False),
    ("referrer_host", "nullIf(referrer_host, '')", True),
    ("user_agent", "nullIf(user_agent, '')", True),
)
# Full-width forms count in some locales. \p{C} are characters nobody sees, a byte order mark for one.
_FORMULA = r"^(?:[\\t\\r\\n]|[\\s\\p{Z}\\p{C}]*[=+\\-@＝＋－＠])"
# Small blocks and row groups, since one of each is held in memory.
_SETTINGS: dict[Format, dict[str, Any]] = {
    "csv": {"date_time_output_format": "iso", "format_csv_null_representation": ""},
    "parquet": {"output_format_parquet_row_group_size": 100_000},
}
_FORMS: dict[Format, str] = {"csv": "CSVWithNames", "parquet": "Parquet"}


def _select(format: Format, masked: bool) -> str:
    other = {code: 10**digits for code, digits in MINOR_UNITS.items() if digits != 2}
    # Units in a main one: as many zeros as the fraction has digits. The engine in use may know no decimals.
    units = f"transform(currency, {list(other)}, {list(other.values())}, 100)"
    fraction = f"concat('.', leftPad(toString(abs(amount) % {units}), length(toString({units})) - 1, '0'))"
    decimal = (
        f"concat(if(amount < 0, '-', ''), toString(intDiv(abs(amount), {units})), if({units} = 1, '', {fraction}))"
    )
    columns: list[str] = []
    for name, expression, sent in _COLUMNS:
        expression = expression.replace("{decimal}", decimal)
        if sent and masked:
            expression = masked_text(expression)
        if sent and format == "csv":
            expression = f"if(match({expression}, '{_FORMULA}'), concat('\\'', {expression}), {expression})"
        columns.append(f"{expression} AS {name}")
    return ", ".join(columns)


_SELECTS = {(format, masked): _select(format, masked) for format in MEDIA_TYPES for masked in (False, True)}


async def export(
    app: App,
    store: Streams,
    period_start: datetime,
    period_end: datetime,
    condition: str,
    parameters: Mapping[str, Any],
    format: Format,
    masked: bool = False,
) -> AsyncIterator[bytes]:
    """The app's events from `period_start` until before `period_end` that meet `condition`, oldest first.

    `condition` begins with AND and has its values in `parameters`; `masked` leaves of e-mail addresses what tells them
    apart. The first bytes are there when this returns; the
    rest may be of any size, and is read as fast as it is taken. Raises Busy when too many exports run, Unavailable.
    """
    return await store.stream(
        f"SELECT {_SELECTS[format, masked]} FROM events WHERE app_id = {{app:UUID}} "
        "AND received_at >= fromUnixTimestamp64Milli({start:Int64}, 'UTC') "
        f"AND received_at < fromUnixTimestamp64Milli({{end:Int64}}, 'UTC'){condition} ORDER BY received_at, id",
        {"app": str(app.id), "start": _milliseconds(period_start), "end": _milliseconds(period_end), **parameters},
        _FORMS[format],
        # The condition is about what is stored, not about the columns of the file of the same names.
        {**_SETTINGS[format], "prefer_column_name_to_alias": 1},
        app.tenant,
    )


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _milliseconds(moment: datetime) -> int:
    """Rounded up: nothing is received between two milliseconds."""
    passed = moment - _EPOCH
    return -(-(passed.days * 86_400_000_000 + passed.seconds * 1_000_000 + passed.microseconds) // 1000)
