"""Custom values as people type them: JSON text or rows, each a view of the other.

A row has a name, a kind and the value as text. Whatever a row's plain text cannot hold (a list, a line break, which a
browser drops from a one-line field) is a row of kind `json`, so that going from JSON to rows and back loses nothing.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import msgspec

from tenants.errors import InvalidValue
from tenants.hits import MAX_LEVELS

Kind = Literal["text", "number", "boolean", "null", "json"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Row(msgspec.Struct, frozen=True):
    """One custom value as typed; kind `json` is any JSON value, kind `null` has no value."""

    name: str = ""
    kind: Kind = "text"
    value: str = ""

    @property
    def is_blank(self) -> bool:
        """Whether nothing was typed yet: a row just added, which sends nothing."""
        return not self.name and not self.value and self.kind == "text"


class InvalidJson(InvalidValue):
    """JSON that cannot be read. `line` and `column` count from 1; `excerpt` is the line, `caret` the column in it."""

    def __init__(self, text: str, position: int, message: str) -> None:
        start = max(text.rfind("\n", 0, position), text.rfind("\r", 0, position)) + 1
        self.line = len(re.findall(r"\r\n?|\n", text[:start])) + 1
        self.column = position - start + 1
        line = re.split(r"[\r\n]", text[start : start + 1_000], maxsplit=1)[0]
        shown_from = max(0, self.column - 41)
        self.excerpt = line[shown_from : shown_from + 80]
        self.caret = self.column - shown_from
        super().__init__("params", f"Line {self.line}, column {self.column}: {message}")


def read_json(text: str) -> tuple[dict[str, Any], list[str]]:
    """The object that a JSON text is, and the names that occur twice in one object (the last one counts).

    No text at all is the empty object. Raises InvalidJson for all that a hit's `params` could not carry: what is no
    JSON, no object, not finite or not UTF-8.
    """
    text = text.removeprefix("\ufeff")
    if not text.strip():
        return {}, []
    value, repeated = _read(text)
    if not isinstance(value, dict):
        start = len(text) - len(text.lstrip())
        raise InvalidJson(text, start, 'expected an object, which begins with {: {"name": "value"}.')
    return cast("dict[str, Any]", value), repeated


def write_json(values: Mapping[str, object]) -> str:
    """The JSON text of custom values, for people to read and change."""
    return json.dumps(values, ensure_ascii=False, indent=2) if values else ""


def read_row(row: Row) -> Any:
    """The value of one row; raises InvalidValue with what to type for its kind."""
    match row.kind:
        case "text":
            return row.value
        case "null":
            return None
        case "boolean":
            answer = row.value.strip().lower()
            if answer not in ("true", "false"):
                raise InvalidValue("params", "Write true or false.")
            return answer == "true"
        case "number":
            typed = row.value.strip()
            if not _NUMBER.fullmatch(typed):
                example = typed.replace(",", ".") if _NUMBER.fullmatch(typed.replace(",", ".")) else "12.5"
                raise InvalidValue("params", f"Write a number as {example}: digits, a point for decimals.")
            return _read(typed)[0]
        case "json":
            if not row.value.strip():
                raise InvalidValue("params", 'Write a list or an object: ["a", "b"] or {"name": "value"}.')
            value, repeated = _read(row.value)
            if repeated:
                raise InvalidValue("params", f"{repeated[0]!r} is there twice.")
            return value


def rows_of(values: Mapping[str, object]) -> list[Row]:
    """The rows that show custom values; `read_row` gives each value back, of the same type."""
    return [_row(name, value) for name, value in values.items()]


def _row(name: str, value: object) -> Row:
    if isinstance(value, str) and value.isprintable() and (name or value):
        return Row(name, "text", value)
    if isinstance(value, bool):
        return Row(name, "boolean", "true" if value else "false")
    if isinstance(value, int | float):
        return Row(name, "number", json.dumps(value))
    if value is None:
        return Row(name, "null")
    # Control characters and the like are seen and survive as escapes only.
    return Row(name, "json", json.dumps(value, ensure_ascii=isinstance(value, str)))


# --- Reading JSON

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
# Text is passed over as a whole, up to the end where it never ends; what is found outside of it is in group 1.
_OUTSIDE_TEXT = r'"(?:[^"\\]|\\[\s\S])*+(?:"|\\?\Z)|({})'
_NOT_FINITE = re.compile(_OUTSIDE_TEXT.format(r"-?Infinity|NaN"))
_NUMBERS = re.compile(_OUTSIDE_TEXT.format(_NUMBER.pattern))
_HIGH, _LOW = r"\\u[dD][89abAB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_SURROGATE = re.compile(
    rf"(?:[^\\]|\\[^u]|\\u(?![dD][89a-fA-F])....|{_HIGH}{_LOW})*?({_HIGH}(?!{_LOW})|{_LOW})", re.DOTALL
)
_WORD = re.compile(r"[\w$.-]+")


class _Unusable(Exception):
    """A number that JSON, or what a hit can carry, has not."""


def _read(text: str) -> tuple[Any, list[str]]:
    repeated: list[str] = []

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            repeated.extend(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        return fields

    def number_of(number: str) -> float:
        value = float(number)
        if value - value:
            raise _Unusable
        return value

    def integer_of(number: str) -> int:
        if len(number) > _MAX_DIGITS:
            raise _Unusable
        return int(number)

    def constant_of(_name: str) -> None:
        raise _Unusable

    try:
        value = json.loads(
            text,
            object_pairs_hook=object_of,
            parse_float=number_of,
            parse_int=integer_of,
            parse_constant=constant_of,
        )
    except json.JSONDecodeError as error:
        position, message = _explained(text, error)
        raise InvalidJson(text, position, message) from None
    except _Unusable:
        for found in _NOT_FINITE.finditer(text):
            if found[1]:
                message = f"JSON has no {found[1]}; expected a number, null, or the field left out."
                raise InvalidJson(text, found.start(), message) from None
        for found in _NUMBERS.finditer(text):
            if found[1] and (len(found[1]) > _MAX_DIGITS or float(found[1]) in _INFINITIES):
                break
        else:
            found = None
        raise InvalidJson(text, found.start() if found else 0, "this number is too large to be kept.") from None
    except RecursionError:
        value = None
    _refuse_deep(text)
    try:
        text.encode()
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        lone = _LONE_SURROGATE.match(text)
        message = "half of a character (a lone surrogate); expected both halves, or the character itself."
        raise InvalidJson(text, lone.start(1) if lone else 0, message) from None
    return value, repeated


_MAX_NESTING = 64  # what is deeper is never recorded, and going through it takes a level of the stack each
_MAX_DIGITS = 308  # the most an integer can have and still be a float, which is what one beyond 64 bits becomes
_INFINITIES = (float("inf"), float("-inf"))

_STRAIGHT = 'Text stands in straight double quotes: ".'
_HINTS = {
    **dict.fromkeys("“”„«»‘’", _STRAIGHT),
    "'": 'JSON has no single quotes: text stands in double quotes, ".',
    "/": "JSON has no comments: remove it.",
    "#": "JSON has no comments: remove it.",
    ".": "A number begins with a digit: 0.5.",
    "+": "A number has no plus sign.",
    "=": "A colon stands between name and value.",
    ";": "Commas stand between values.",
    "\u00a0": "This is a no-break space: replace it by a plain one.",
    "\ufeff": "This is an invisible character: remove it.",
    "\u200b": "This is an invisible character: remove it.",
}
_WORDS = {
    "true": "It is written true, in lower case.",
    "false": "It is written false, in lower case.",
    "null": "It is written null, in lower case.",
    "none": "Nothing is written as null.",
    "nil": "Nothing is written as null.",
    "undefined": "JSON has no undefined: write null, or leave the field out.",
    "inf": "JSON has no infinity: write null, or leave the field out.",
}


def _explained(text: str, error: json.JSONDecodeError) -> tuple[int, str]:
    """Where the mistake is, and what was expected: the parser's own words name its rule, not the slip."""
    position, found = error.pos, error.msg
    at = text[position : position + 1]
    before = text[:position].rstrip()
    if found.startswith("Unterminated string"):
        return position, 'this text never ends; expected a closing ".'
    if found.startswith("Invalid control character"):
        shown = {"\n": ("a line break", r"\n"), "\r": ("a line break", r"\n"), "\t": ("a tab", r"\t")}
        name, escape = shown.get(at, ("a control character", rf"\u{ord(at):04x}"))
        return position, f"{name} inside a text; expected it written as {escape}."
    if found.startswith("Invalid \\"):
        return position, r"this escape is unknown; expected \\ for a backslash, or one of \" \/ \n \r \t \b \f \u0041."
    if found.startswith("Extra data"):
        return position, f"expected nothing after the end; {_seen(text, position)} follows."
    if found.startswith("Illegal trailing comma"):
        return position, "a comma too many; expected another value after it, or none."

    expected = "a value"
    if found.startswith("Expecting property name"):
        expected = "a name in double quotes, or }" if before.endswith("{") else "a name in double quotes"
    elif found.startswith("Expecting ':'"):
        expected = "a colon between name and value"
    elif found.startswith("Expecting ','"):
        expected = f"a comma or {_closing(text[:position])}"
    if not at:
        return position, f"the text ends too early; expected {expected}."
    if at in "}]" and before.endswith(","):
        return len(before) - 1, f"a comma too many before {at}; expected another value after it, or none."
    hint = _HINTS.get(at, "")
    if word := _WORD.match(text, position):
        hint = _WORDS.get(word[0].lower(), hint)
        if not hint and at.isalpha() and found.startswith(("Expecting value", "Expecting property name")):
            hint = f'Text stands in double quotes: "{word[0][:40]}".'
    if found.startswith("Expecting ','"):
        if at.isdigit() and before.endswith("0"):
            hint = "A number does not begin with 0."
        elif at == '"':
            hint = 'Is a comma missing before it, or a " inside a text not written as \\"?'
        elif before.endswith('"') and at.isalnum():
            hint = 'Is a " inside a text not written as \\"?'
    return position, f"expected {expected}, found {_seen(text, position)}. {hint}".strip()


def _seen(text: str, position: int) -> str:
    word = _WORD.match(text, position)
    seen = word[0][:20] if word else text[position]
    return f"“{seen}”" if seen.isprintable() else f"U+{ord(seen[0]):04X}"


def _refuse_deep(text: str) -> None:
    depth = 0
    for found in re.finditer(_OUTSIDE_TEXT.format(r"[\[\]{}]"), text):
        if found[1]:
            depth += 1 if found[1] in "[{" else -1
            if depth > _MAX_NESTING:
                raise InvalidJson(text, found.start(), f"nested too deeply; expected at most {MAX_LEVELS} levels.")


def _closing(text: str) -> str:
    """The bracket that would close what is open at the end of a text that was valid so far."""
    depth: list[str] = []
    for found in re.finditer(_OUTSIDE_TEXT.format(r"[\[\]{}]"), text):
        if found[1] in ("{", "["):
            depth.append("}" if found[1] == "{" else "]")
        elif found[1] and depth:
            depth.pop()
    return depth[-1] if depth else "the end"
