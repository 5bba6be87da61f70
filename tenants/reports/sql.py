"""What the queries of all reports share: whose rows and of when, their buckets, and the values of a field.

Everything that people or visitors wrote is a parameter, but for names of fields: the engine reads a field of the JSON
column by itself only where its name stands in the query. A name is quoted, and one with a backtick is not used so at
all: within a path the engine takes backticks for its own (`` a.:`Int64` `` is "a as a number"), and made-up ones end
its process. Such fields are read from the text of the values, in twenty times the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

# The columns of `events` that people filter and break down by, besides the fields of params.
COLUMNS = ("category", "event_token", "currency")

# Persons are counted exactly, by a hash of their id: a set of 8 bytes each is built twice as fast as one of 16.
# All zeros is nobody.
PERSONS_IF = "uniqExactIf(cityHash64(person_id), {} AND person_id != toUUID('00000000-0000-0000-0000-000000000000'))"
PERSONS = PERSONS_IF.format("1")

Parameters = dict[str, Any]


@dataclass(frozen=True)
class Value:
    """Expressions for the value of a field in a row, and the parameters they need.

    `text` is '' where `missing`. Where `listed` the row has several, in `elements`; once each; an empty list is `[]`.
    """

    text: str
    missing: str
    listed: str
    elements: str
    parameters: Parameters

    @property
    def each(self) -> str:
        """An expression that makes a row of each of the values."""
        return self.text if self.listed == "0" else f"arrayJoin(if({self.listed}, {self.elements}, [{self.text}]))"


def value_of(field: str, prefix: str) -> Value:
    """How to read a field (`event_token`, `params.address.city`); `prefix` keeps its parameters from others'."""
    if field in COLUMNS:
        return Value(field, f"{field} = ''", "0", "[]", {})
    path = field.removeprefix("params.").split(".")
    if "`" not in field:
        value = "params." + ".".join("`" + name.replace("\\", "\\\\") + "`" for name in path)
        listed = f"startsWith(toString({value}), '[') AND startsWith(dynamicType({value}), 'Array')"
        text = f"assumeNotNull(toJSONString({value}))"
        return Value(f"toString({value})", f"{value} IS NULL", f"({listed})", _elements(text), {})
    parameters = {f"{prefix}_{level}": name for level, name in enumerate(path)}
    keys = ", ".join(f"{{{name}:String}}" for name in parameters)
    raw = f"JSONExtractRaw(params_text, {keys})"
    # Null and an object, whose fields are fields of their own, are missing in the JSON column, too.
    missing = f"({raw} IN ('', 'null') OR startsWith({raw}, '{{'))"
    text = f"multiIf({missing}, '', startsWith({raw}, '\"'), JSONExtractString(params_text, {keys}), {raw})"
    return Value(text, missing, f"startsWith({raw}, '[')", _elements(raw), parameters)


def _elements(text: str) -> str:
    elements = f"JSONExtractArrayRaw({text})"
    texts = f"arrayMap(e -> if(startsWith(e, '\"'), JSONExtractString(e), e), {elements})"
    return f"if(empty({elements}), ['[]'], arrayDistinct({texts}))"


def rows_of(start: datetime, end: datetime, table: str = "events") -> str:
    """The rows of `{app:UUID}` from `start` until before `end`: FROM and WHERE, to be followed by AND."""
    return f"FROM {table} WHERE app_id = {{app:UUID}} AND {within(start, end, table)}"


def within(start: datetime, end: datetime, table: str = "events") -> str:
    """The condition that a row is from `start` until before `end`."""
    if table == "traffic":
        return f"minute >= toDateTime({seconds(start)}) AND minute < toDateTime({seconds(end)})"
    # In the type of the column: asked for times before a full second as DateTime, the engine's index leaves out the
    # last second (chDB 26.5).
    first, after = (f"fromUnixTimestamp64Milli({seconds(at)}000)" for at in (start, end))
    return f"received_at >= {first} AND received_at < {after}"


def seconds(at: datetime) -> int:
    """Seconds since 1970."""
    return int(at.timestamp())


def bucket(time: str) -> str:
    """The start of the bucket that a row is in, in seconds; needs the parameter `starts` of `starts_of`."""
    return f"roundDown(toUInt32(toUnixTimestamp({time})), {{starts:Array(UInt32)}})"


def starts_of(buckets: Sequence[datetime]) -> list[int]:
    """The parameter that `bucket` needs."""
    return [seconds(at) for at in buckets]


def share_of(part: int, whole: int) -> float:
    """0 to 1; 0 of nothing."""
    return round(part / whole, 6) if whole else 0.0
