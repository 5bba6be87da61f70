"""Which events a report is about: the same filters in every view's address and in the API.

    event_token=signup            is signup
    event_token=signup&event_token=login   is one of them
    event_token!=signup           is none of them (the name ends in "!")
    params.plan=pro               the custom value `plan`
    params.address.city=Berlin    a field of an object in it
    person.plan=pro               the person's property `plan`, as it is now
    missing=params.plan           was not sent, or is null
    missing!=params.plan          was sent
    empty=params.plan             is the empty text

Conditions on different fields must all hold. Values compare as text: `params.items=2` finds the number 2 and the text
"2"; of a list, any element.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tenants.currencies import MINOR_UNITS
from tenants.errors import InvalidValue
from tenants.hits import MAX_EVENT_TOKEN, MAX_LEVELS, MAX_QUERY
from tenants.reports.sql import COLUMNS, value_of

# A page can show so many at once, and a query stays readable for who has to debug it.
MAX_CONDITIONS = 30
# Read from the text of the values, which takes twenty times the time: see sql.py.
MAX_SLOW_FIELDS = 2
# Each is read of all people, and held in memory meanwhile.
MAX_PROPERTIES = 3
# A field of a longer name can be sent, and read back with its event, but no report is about it.
MAX_NAME = 1_000
_MISSING, _EMPTY = "missing", "empty"


@dataclass(frozen=True)
class Condition:
    """`field` is a column, `params.…` or `person.…`; `value` is None for "not sent"; negated: it is anything else."""

    field: str
    value: str | None
    negated: bool = False


@dataclass(frozen=True)
class Filters:
    """Conditions, as people put them together; none of them is there twice."""

    conditions: tuple[Condition, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.conditions)

    @property
    def reach_rejected(self) -> bool:
        """Whether a rejected hit can pass: of it only the category is known."""
        return self == self.of_rejected()

    def of_rejected(self) -> "Filters":
        """Those that can be asked of rejected hits."""
        return Filters(tuple(condition for condition in self.conditions if condition.field == "category"))

    def pairs(self) -> list[tuple[str, str]]:
        """The parameters of an address that ask for them again."""
        found: list[tuple[str, str]] = []
        for condition in self.conditions:
            mark = "!" if condition.negated else ""
            if not condition.value:
                found.append(((_MISSING if condition.value is None else _EMPTY) + mark, condition.field))
            else:
                # A name may itself end in "!": a dot, which no name holds, then says where it ends.
                end = "." if condition.field.endswith("!") else ""
                found.append((condition.field + end + mark, condition.value))
        return found

    def with_(self, field: str, value: str | None, *, negated: bool = False) -> "Filters":
        """These and one more; the same when it is there already."""
        condition = Condition(field, value, negated)
        return self if condition in self.conditions else Filters((*self.conditions, condition))

    def without(self, field: str, value: str | None, *, negated: bool = False) -> "Filters":
        """These less one; the same when it is not there."""
        condition = Condition(field, value, negated)
        return Filters(tuple(other for other in self.conditions if other != condition))

    def sql(self, prefix: str = "") -> tuple[str, dict[str, Any]]:
        """A condition on rows of `events`, beginning with AND, and its parameters; empty for no filters.

        `prefix` keeps the parameters from those of other filters in the same query.
        """
        groups: dict[tuple[str, bool], list[str | None]] = {}
        for condition in self.conditions:
            groups.setdefault((condition.field, condition.negated), []).append(condition.value)
        parts: list[str] = []
        parameters: dict[str, Any] = {}
        for number, ((field, negated), values) in enumerate(groups.items()):
            value = value_of(field, f"{prefix}f{number}")
            parameters |= value.parameters
            wanted = [text for text in values if text]
            options: list[str] = []
            if wanted:
                parameters[f"{prefix}v{number}"] = wanted
                options.append(f"{value.text} IN {{{prefix}v{number}:Array(String)}}")
            if None in values:
                options.append(value.missing)
            if "" in values:
                options.append(f"({value.text} = '' AND NOT {value.missing})")
            if value.listed != "0" and any(text is not None for text in values):
                parameters[f"{prefix}l{number}"] = [text for text in values if text is not None]
                options.append(f"({value.listed} AND hasAny({value.elements}, {{{prefix}l{number}:Array(String)}}))")
            parts.append(f"{'NOT ' if negated else ''}({' OR '.join(options)})")
        return "".join(f" AND {part}" for part in parts), parameters


def filters_of(pairs: Sequence[tuple[str, str]]) -> Filters:
    """The filters among the parameters of an address; other parameters are not looked at.

    Raises InvalidValue for the parameter that cannot be used.
    """
    filters = Filters()
    for name, value in pairs:
        plain = name.removesuffix("!")
        if plain in (_MISSING, _EMPTY):
            field, wanted = field_of(value, plain), None if plain == _MISSING else ""
        elif plain in COLUMNS or plain.startswith(("params.", "person.")):
            if not value:
                continue  # a form's field that was left empty
            field = field_of(plain.removesuffix(".") if plain.endswith("!.") else plain, name)
            wanted = _value(field, value)
        else:
            continue
        filters = filters.with_(field, wanted, negated=name.endswith("!"))
        fields = {each.field for each in filters.conditions}
        if sum(field.startswith("person.") for field in fields) > MAX_PROPERTIES:
            raise InvalidValue(name, f"Use {MAX_PROPERTIES} properties of persons at most.")
        if sum(field.startswith("params.") and "`" in field for field in fields) > MAX_SLOW_FIELDS:
            raise InvalidValue(name, f"Use {MAX_SLOW_FIELDS} fields with a backtick in their name at most.")
        if len(filters.conditions) > MAX_CONDITIONS:
            raise InvalidValue(name, f"Use {MAX_CONDITIONS} filters at most.")
    return filters


def field_of(name: str, parameter: str = "field") -> str:
    """The name of a field that reports can filter and break down by. Raises InvalidValue for `parameter`."""
    if name in COLUMNS:
        return name
    kind, _, path = name.partition(".")
    if kind not in ("params", "person") or not all(path.split(".")) or not _is_text(path):
        known = ", ".join(COLUMNS)
        raise InvalidValue(
            parameter, f"Name one of {known}, a field of params such as params.plan, or of the person: person.plan."
        )
    if len(path) > MAX_NAME:
        raise InvalidValue(parameter, f"The name of a field may have {MAX_NAME:,} characters here.")
    if path.count(".") >= MAX_LEVELS:
        raise InvalidValue(parameter, f"Fields are {MAX_LEVELS} levels deep at most.")
    return name


def text_for(parameter: str, value: str) -> str:
    """A value to compare with. Raises InvalidValue for `parameter`."""
    if not _is_text(value) or len(value) > MAX_QUERY:
        raise InvalidValue(parameter, f"Give a text of {MAX_QUERY:,} characters at most.")
    return value


def _value(field: str, value: str) -> str:
    text_for(field, value)
    if field == "category" and value not in ("event", "revenue"):
        raise InvalidValue(field, "A category is event or revenue.")
    if field == "currency":
        return currency_of(value)
    if field == "event_token" and len(value) > MAX_EVENT_TOKEN:
        raise InvalidValue(field, f"An event token has {MAX_EVENT_TOKEN} characters at most.")
    return value


def currency_of(code: str, parameter: str = "currency") -> str:
    """A currency's code in upper case. Raises InvalidValue for `parameter`."""
    if code.upper() not in MINOR_UNITS:
        raise InvalidValue(parameter, "A currency is an ISO 4217 code such as EUR.")
    return code.upper()


def _is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: half of a surrogate pair cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
