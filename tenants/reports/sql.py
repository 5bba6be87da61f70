"""What the queries of all reports share: whose rows and of when, their buckets, and the values of a field.

Everything that people or visitors wrote is a parameter, but for names of fields: the engine reads a field of the JSON
column by itself only where its name stands in the query. A name is quoted, and one with a backtick is not used so at
all: within a path the engine takes backticks for its own (`` a.:`Int64` `` is "a as a number"), and made-up ones end
its process. Such fields are read from the text of the values, in twenty times the time. Of a quoted name all but
letters and digits is escaped: the engine's client looks for comments in quoted names, too, and for the end of one that
has none again and again, a minute for a long address, in which no hit is taken.
"""

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

# The columns of `events` that people filter and break down by, besides the fields of params.
COLUMNS = ("category", "event_token", "currency", "referrer_host", "event_id")

ONE_APP = "app_id = {app:UUID}"
# All zeros is nobody: a hit that came without anything to tell whose it is. By the hash, which reports compute anyway:
# to compare ids takes as long as to hash them.
SOMEBODY = "xxHash64(person_id) != xxHash64(toUUID('00000000-0000-0000-0000-000000000000'))"


def person_of(apps: str = ONE_APP) -> str:
    """The person of a row of `events`, a UInt64: the hash of their id, once merged persons are the one they are.

    Of the aliases whose events are not rewritten yet there are some thousands at most. A hash, since `transform` knows
    no UUIDs, and a set of 8 bytes each is built twice as fast as one of 16. This one takes half of `cityHash64`'s time.
    """
    # The engine computes the same subquery once.
    both = "(groupArray(xxHash64(alias)), groupArray(xxHash64(person)))"
    aliases = f"(SELECT {both} FROM person_aliases FINAL WHERE {apps})"
    return f"transform(xxHash64(person_id), {aliases}.1, {aliases}.2, xxHash64(person_id))"


def persons_if(condition: str, apps: str = ONE_APP) -> str:
    """How many persons there are in rows with this condition, exactly."""
    return f"uniqExactIf({person_of(apps)}, {condition} AND {SOMEBODY})"


_PENDING = f"(SELECT (groupArray(alias), groupArray(person)) FROM person_aliases FINAL WHERE {ONE_APP})"
# The id of a row's person, once merged persons are the one they are. For few rows: it searches a list.
PERSON_ID = (
    f"if(person_id IN (SELECT alias FROM person_aliases FINAL WHERE {ONE_APP}), "
    f"{_PENDING}.2[indexOf({_PENDING}.1, person_id)], person_id)"
)

PERSON = person_of()
PERSONS = persons_if("1")

Parameters = dict[str, Any]

# Anything that reads as an e-mail address, percent-encoded however often: first letter, rest of the name, the @.
_ADDRESS = r"([^\\s\"<>(),;:@\\\\])[^\\s\"<>(),;:@\\\\]*(@|%(?:25)*40)"


def masked(text: str) -> str:
    """An expression's text with e-mail addresses as viewers see them: `a…@example.org`."""
    return f"replaceRegexpAll({text}, '{_ADDRESS}', '\\\\1…\\\\2')"


def containing(columns: Sequence[str], text: str) -> tuple[str, Parameters]:
    """A condition that any of these texts contains this one, whatever the letter case, and its parameters.

    In JSON quotes, backslashes and the like are escaped; the engine escapes two line ends that we do not.
    """
    escaped = json.dumps(text, ensure_ascii=False)[1:-1]
    forms = (text, escaped, escaped.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))
    parameters = {f"text{number}": form for number, form in enumerate(dict.fromkeys(forms))}
    found = [f"positionCaseInsensitiveUTF8({each}, {{{name}:String}}) > 0" for each in columns for name in parameters]
    return " OR ".join(found), parameters


# Of this process: whoever could compute the order could compare what they see masked with what they guess.
_SALT = secrets.token_hex(16)


def in_order(text: str) -> str:
    """What values are ordered by that came as often as each other: by themselves, but for what may be an address.

    Else viewers, for whom addresses are masked, could send guesses and see on which side of them an address stands.
    """
    return f"if(match({text}, '@|%(?:25)*40'), hex(sipHash64({text}, '{_SALT}')), {text})"


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
    # Of a list, where `text` is not JSON.
    json: str = ""

    @property
    def whole(self) -> str:
        """An expression for what is shown of it where a list is one value: JSON."""
        return f"if({self.listed}, {self.json}, {self.text})" if self.json else self.text

    @property
    def each(self) -> str:
        """An expression that makes a row of each of the values."""
        return self.text if self.listed == "0" else f"arrayJoin(if({self.listed}, {self.elements}, [{self.text}]))"


def value_of(field: str, prefix: str) -> Value:
    """How to read a field (`event_token`, `params.address.city`, `person.plan`).

    `prefix` keeps its parameters from others'.
    """
    if field in COLUMNS:
        return Value(field, f"{field} = ''", "0", "[]", {})
    kind, *path = field.split(".")
    if kind == "person":
        query, parameters = properties_of(path[0], prefix)
        # The engine computes the same subquery once.
        all_values = f"(SELECT (groupArray(who), groupArray(value)) FROM ({query}))"
        own = f"transform({PERSON}, {all_values}.1, {all_values}.2, 'null')"
        value = json_value(own, path[1:], prefix)
        return Value(value.text, value.missing, value.listed, value.elements, value.parameters | parameters)
    if "`" not in field:
        value = "params." + ".".join(f"`{_quoted(name)}`" for name in path)
        listed = f"startsWith(toString({value}), '[') AND startsWith(dynamicType({value}), 'Array')"
        text = f"assumeNotNull(toJSONString({value}))"
        return Value(f"toString({value})", f"{value} IS NULL", f"({listed})", _elements(text), {}, text)
    return json_value("params_text", path, prefix)


_MEANING = re.compile(r"[^A-Za-z0-9_\x80-\U0010ffff]")


def _quoted(name: str) -> str:
    """The name as it may stand between backticks."""
    return _MEANING.sub(lambda found: f"\\x{ord(found[0]):02X}", name)


def json_value(text: str, path: Sequence[str], prefix: str) -> Value:
    """How to read what lies at a path in the JSON text of an expression; in the text itself where there is no path."""
    parameters = {f"{prefix}_{level}": name for level, name in enumerate(path)}
    keys = "".join(f", {{{name}:String}}" for name in parameters)
    raw = f"JSONExtractRaw({text}{keys})" if path else text
    # Null and an object, whose fields are fields of their own, are missing in the JSON column, too.
    missing = f"({raw} IN ('', 'null') OR startsWith({raw}, '{{'))"
    shown = f"multiIf({missing}, '', startsWith({raw}, '\"'), JSONExtractString({text}{keys}), {raw})"
    return Value(shown, missing, f"startsWith({raw}, '[')", _elements(raw), parameters)


def _elements(text: str) -> str:
    elements = f"JSONExtractArrayRaw({text})"
    texts = f"arrayMap(e -> if(startsWith(e, '\"'), JSONExtractString(e), e), {elements})"
    return f"if(empty({elements}), ['[]'], arrayDistinct({texts}))"


def properties_of(field: str, prefix: str) -> tuple[str, Parameters]:
    """A query of persons (`who`, as PERSON) and the newest `value` of a property, JSON text, of all who have it.

    `field` is the top-level one; persons who were merged have one value, the newest of all theirs.
    """
    query = (
        f"SELECT {PERSON} AS who, argMax(value, version) AS value FROM person_properties "
        f"WHERE {ONE_APP} AND field = {{{prefix}_field:String}} GROUP BY who"
    )
    return query, {f"{prefix}_field": field}


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
