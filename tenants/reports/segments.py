"""A segment of an app's people: who did something, brought something, or is something; as an address says it.

    did=purchase            did it at least once
    did.3=purchase          at least three times
    revenue.EUR=2500        brought more than 25.00 EUR, refunds taken off (minor units)
    person.plan=pro         whose property `plan` is pro
    person.address.city=Berlin   a field of an object in it

All conditions must hold; of one property any of the values will do. Values compare as text, as those of filters do.
"""

from collections.abc import Sequence

import msgspec

from tenants.errors import InvalidValue
from tenants.hits import MAX_AMOUNT, MAX_EVENT_TOKEN
from tenants.reports.filters import currency_of, field_of, text_for
from tenants.reports.sql import ONE_APP, PERSON, SOMEBODY, Parameters, json_value, properties_of

# A page can show so many at once; each property reads the property of all people once more.
MAX_CONDITIONS = 10
_MAX_TIMES = 1_000_000
_DID, _REVENUE, _PERSON = "did", "revenue", "person"


class Did(msgspec.Struct, frozen=True):
    """Events with this token, `times` or more of them."""

    event_token: str
    times: int = 1


class Earned(msgspec.Struct, frozen=True):
    """Net revenue of more than `above` minor units of a currency."""

    currency: str
    above: int


class Is(msgspec.Struct, frozen=True):
    """A property, `person.plan`, with this value."""

    field: str
    value: str


Condition = Did | Earned | Is


class Segment(msgspec.Struct, frozen=True):
    """Conditions, none of them twice; without any it is everybody."""

    conditions: tuple[Condition, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.conditions)

    def pairs(self) -> list[tuple[str, str]]:
        """The parameters of an address that ask for it again."""
        return [_pair(condition) for condition in self.conditions]

    def with_(self, condition: Condition) -> "Segment":
        """This one with one condition more; the same when it is there already. Raises InvalidValue."""
        if condition in self.conditions:
            return self
        if len(self.conditions) == MAX_CONDITIONS:
            raise InvalidValue(_pair(condition)[0], f"A segment has {MAX_CONDITIONS} conditions at most.")
        return Segment((*self.conditions, condition))

    def without(self, condition: Condition) -> "Segment":
        """This one less a condition; the same when it is not there."""
        return Segment(tuple(other for other in self.conditions if other != condition))

    def sql(self, prefix: str) -> tuple[str, Parameters]:
        """A query of its people, as `PERSON` has them, one row each, and its parameters but for `app`, the app's id.

        `prefix` keeps the parameters from others'. The people may be known or not.
        """
        parts: list[str] = []
        parameters: Parameters = {}
        rows: list[str] = []
        having: list[str] = []
        properties: dict[str, list[str]] = {}
        for number, condition in enumerate(self.conditions):
            name, least = f"{prefix}{number}", f"{prefix}{number}n"
            match condition:
                case Did():
                    done = f"event_token = {{{name}:String}}"
                    rows.append(done)
                    having.append(f"countIf({done}) >= {{{least}:UInt32}}")
                    parameters |= {name: condition.event_token, least: condition.times}
                case Earned():
                    paid = f"currency = {{{name}:String}}"
                    rows.append(paid)
                    having.append(f"sumIf(amount, {paid}) > {{{least}:Int64}}")
                    parameters |= {name: condition.currency, least: condition.above}
                case Is():
                    properties.setdefault(condition.field, []).append(condition.value)
        if rows or not properties:
            # Conditions on events are one look at those that any of them is about.
            which = f" AND ({' OR '.join(dict.fromkeys(rows))})" if rows else ""
            enough = f" HAVING {' AND '.join(having)}" if having else ""
            parts.append(
                f"SELECT {PERSON} AS who FROM events WHERE {ONE_APP} AND {SOMEBODY}{which} GROUP BY who{enough}"
            )
        for number, (field, values) in enumerate(properties.items()):
            query, more = _with_property(field, values, f"{prefix}p{number}")
            parts.append(query)
            parameters |= more
        first, *others = parts
        if not others:
            return first, parameters
        return f"SELECT who FROM ({first}) WHERE " + " AND ".join(f"who IN ({other})" for other in others), parameters


def _with_property(field: str, values: list[str], prefix: str) -> tuple[str, Parameters]:
    top, *path = field.removeprefix(f"{_PERSON}.").split(".")
    query, parameters = properties_of(top, prefix)
    value = json_value("value", path, prefix)
    wanted = f"{{{prefix}:Array(String)}}"
    listed = f"({value.listed} AND hasAny({value.elements}, {wanted}))"
    return (
        f"SELECT who FROM ({query}) WHERE NOT {value.missing} AND ({value.text} IN {wanted} OR {listed})",
        parameters | value.parameters | {prefix: values},
    )


def _pair(condition: Condition) -> tuple[str, str]:
    match condition:
        case Did(token, 1):
            return _DID, token
        case Did(token, times):
            return f"{_DID}.{times}", token
        case Earned(currency, above):
            return f"{_REVENUE}.{currency}", str(above)
        case Is(field, value):
            # As in filters: a dot says that the "!" belongs to the name.
            return field + ("." if field.endswith("!") else ""), value


def segment_of(pairs: Sequence[tuple[str, str]]) -> Segment:
    """The segment among the parameters of an address; other parameters are not looked at.

    Raises InvalidValue for the parameter that cannot be used.
    """
    segment = Segment()
    for name, value in pairs:
        kind, dot, rest = name.partition(".")
        if kind not in (_DID, _REVENUE, _PERSON) or not (dot or kind == _DID) or not value:
            continue  # another's, or a form's field that was left empty
        if kind == _DID:
            condition = did(value, rest if dot else "1", name)
        elif kind == _REVENUE:
            condition = earned(currency_of(rest, name), value, name)
        else:
            condition = is_(name, value)
        segment = segment.with_(condition)
    # Parameters of different names come in any order; conditions have one.
    return Segment(tuple(sorted(segment.conditions, key=_pair)))


def did(event_token: str, times: str, parameter: str = _DID) -> Did:
    """What a person did. Raises InvalidValue for `parameter`."""
    count = _number(times, _MAX_TIMES)
    if not count:
        raise InvalidValue(parameter, f"How often is a whole number from 1 to {_MAX_TIMES:,}.")
    if not 1 <= len(event_token) <= MAX_EVENT_TOKEN:
        raise InvalidValue(parameter, f"An event token has 1 to {MAX_EVENT_TOKEN} characters.")
    return Did(text_for(parameter, event_token), count)


def earned(currency: str, above: str, parameter: str = _REVENUE) -> Earned:
    """What a person brought. Raises InvalidValue for `parameter`, or for `currency`."""
    amount = _number(above, MAX_AMOUNT)
    if amount is None:
        raise InvalidValue(
            parameter, "An amount is 0 or more. In an address it is a whole number of minor units: 2500 is 25.00 EUR."
        )
    return Earned(currency_of(currency), amount)


def is_(name: str, value: str) -> Is:
    """What a person is: `name` is `person.plan`, as in an address. Raises InvalidValue for it."""
    if name.endswith("!"):
        raise InvalidValue(name, "A segment says what somebody is, not what they are not.")
    field = field_of(name.removesuffix(".") if name.endswith("!.") else name, name)
    return Is(field, text_for(name, value))


def _number(text: str, most: int) -> int | None:
    if not text.isascii() or not text.isdigit() or len(text) > len(str(most)):
        return None
    return number if (number := int(text)) <= most else None
