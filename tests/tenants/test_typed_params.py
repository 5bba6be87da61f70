"""Rows and JSON are views of each other; a mistake is shown where it is, with what was expected."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants.errors import InvalidValue
from tenants.typed_params import InvalidJson, Row, read_json, read_row, rows_of, write_json

_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)))
)
_TEXT = st.text(st.characters(exclude_categories=("Cs",)))
_VALUES = st.dictionaries(
    _TEXT,
    st.recursive(_LEAVES, lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner), max_leaves=8),
)


@given(_VALUES)
def test_rows_lose_nothing(values: dict[str, Any]) -> None:
    rows = rows_of(values)
    assert not any(row.is_blank for row in rows)
    # A one-line field of a browser drops line breaks.
    assert not any(set("\r\n\x00") & set(row.value) for row in rows)
    back = {row.name: read_row(row) for row in rows}
    assert json.dumps(back) == json.dumps(values)


@given(_VALUES)
def test_json_text_loses_nothing(values: dict[str, Any]) -> None:
    back, repeated = read_json(write_json(values))
    assert json.dumps(back) == json.dumps(values)
    assert repeated == []


@pytest.mark.parametrize(
    ("value", "row"),
    [
        ("a", Row("n", "text", "a")),
        (" a ", Row("n", "text", " a ")),
        ("5", Row("n", "text", "5")),
        ("true", Row("n", "text", "true")),
        ("", Row("n", "text", "")),
        ("a\nb", Row("n", "json", r'"a\nb"')),
        ("\u00a0", Row("n", "json", r'"\u00a0"')),
        (5, Row("n", "number", "5")),
        (1.0, Row("n", "number", "1.0")),
        (True, Row("n", "boolean", "true")),
        (None, Row("n", "null", "")),
        ([1, "é"], Row("n", "json", '[1, "é"]')),
        ({}, Row("n", "json", "{}")),
    ],
)
def test_a_value_has_a_row_of_its_kind(value: object, row: Row) -> None:
    assert rows_of({"n": value}) == [row]
    assert read_row(row) == value
    assert type(read_row(row)) is type(value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (Row("n", "number", ""), "Write a number"),
        (Row("n", "number", "1,5"), "Write a number as 1.5"),
        (Row("n", "number", "abc"), "Write a number as 12.5"),
        (Row("n", "number", "1e999"), "too large"),
        (Row("n", "number", "9" * 5_000), "too large"),
        (Row("n", "number", "NaN"), "Write a number"),
        (Row("n", "number", "١"), "Write a number"),
        (Row("n", "boolean", "1"), "true or false"),
        (Row("n", "json", ""), "a list or an object"),
        (Row("n", "json", "[1"), "Line 1, column 3"),
        (Row("n", "json", '{"a": 1, "a": 2}'), "'a' is there twice"),
    ],
)
def test_a_row_says_what_to_type(row: Row, says: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        read_row(row)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        (" \n", {}),
        ("{}", {}),
        ("\ufeff{}", {}),
        (
            ' {"a": [1, -0.5, 1e3, true, null, {"b": "\\u00e9\\ud83d\\ude00"}]} ',
            {"a": [1, -0.5, 1e3, True, None, {"b": "é😀"}]},
        ),
        ('{"a": 12345678901234567890123}', {"a": 12345678901234567890123}),
    ],
)
def test_json_is_read(text: str, values: dict[str, Any]) -> None:
    assert read_json(text) == (values, [])


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ('{"a": 1,}', 1, 8, "a comma too many before }"),
        ('{"a": [1,\n]}', 1, 9, "a comma too many before ]"),
        ('{"a": [,]}', 1, 8, "expected a value"),
        ("{,}", 1, 2, "a name in double quotes, or }"),
        ("{a: 1}", 1, 2, 'Text stands in double quotes: "a"'),
        ("{'a': 1}", 1, 2, "no single quotes"),
        ("{\"a\": 'x'}", 1, 7, "no single quotes"),
        ("{“a”: 1}", 1, 2, "straight double quotes"),
        ('{"a": hello}', 1, 7, 'Text stands in double quotes: "hello"'),
        ('{"a" 1}', 1, 6, "a colon between name and value"),
        ('{"a" = 1}', 1, 6, "A colon stands between"),
        ('{\n  "a": 1\n  "b": 2\n}', 3, 3, "Is a comma missing before it"),
        ('{\r\n  "a": 1\r\n  "b": 2\r\n}', 3, 3, "expected a comma or }"),
        ('{"a": [1 2]}', 1, 10, "expected a comma or ]"),
        ('{"a": 1; "b": 2}', 1, 8, "Commas stand between"),
        ('{"a": "say "hi""}', 1, 13, 'Is a " inside a text'),
        ('{"a": "x\ny"}', 1, 9, r"a line break inside a text; expected it written as \n"),
        ('{"a": "x\ty"}', 1, 9, "a tab"),
        ('{"a": "\x00"}', 1, 8, r"\u0000"),
        ('{"a": "x}', 1, 7, "this text never ends"),
        ('{"a": "\\x"}', 1, 8, "this escape is unknown"),
        ('{"a": "\\u12"}', 1, 9, "this escape is unknown"),
        ("// a\n{}", 1, 1, "no comments"),
        ('{"a": 1 /* b */}', 1, 9, "no comments"),
        ('{"a": 1} # b', 1, 10, "expected nothing after the end"),
        ('{"a": 1}{', 1, 9, "expected nothing after the end"),
        ('{"a": 01}', 1, 8, "does not begin with 0"),
        ('{"a": .5}', 1, 7, "begins with a digit"),
        ('{"a": +1}', 1, 7, "no plus sign"),
        ('{"a": NaN}', 1, 7, "JSON has no NaN"),
        ('{"NaN": "NaN", "a":\n -Infinity}', 2, 2, "JSON has no -Infinity"),
        ('{"a": 1, "b": 1e999}', 1, 15, "too large"),
        ('{"a": ' + "9" * 400 + "}", 1, 7, "too large"),
        ('{"a": undefined}', 1, 7, "JSON has no undefined"),
        ('{"a": True}', 1, 7, "lower case"),
        ('{"a": None}', 1, 7, "written as null"),
        ('{\u00a0"a": 1}', 1, 2, "no-break space"),
        ('{\u200b"a": 1}', 1, 2, "U+200B"),
        ("{", 1, 2, "ends too early; expected a name in double quotes, or }"),
        ('{"a"', 1, 5, "ends too early; expected a colon"),
        ('{"a":', 1, 6, "ends too early; expected a value"),
        ('{"a": {"b": 1', 1, 14, "ends too early; expected a comma or }"),
        ('{"a": "]", "b": [1', 1, 19, "ends too early; expected a comma or ]"),
        ("[1]", 1, 1, "expected an object"),
        (" 5", 1, 2, "expected an object"),
        ('"a"', 1, 1, "expected an object"),
        ('{"a": "x\\ud800"}', 1, 9, "half of a character"),
        ('{"a": "\\ud83d\\ude00\\udc00"}', 1, 20, "half of a character"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", 1, 70, "nested too deeply; expected at most 5 levels"),
        ("[" * 100_000, 1, 65, "nested too deeply"),
    ],
)
def test_a_mistake_is_shown_where_it_is(text: str, line: int, column: int, says: str) -> None:
    with pytest.raises(InvalidJson) as refused:
        read_json(text)
    error = refused.value
    assert (error.line, error.column) == (line, column), str(error)
    assert str(error).startswith(f"Line {line}, column {column}: ")
    assert says in str(error)
    assert error.field == "params"


def test_the_excerpt_shows_the_mistake() -> None:
    with pytest.raises(InvalidJson) as refused:
        read_json('{\n"a": "' + "x" * 200 + '",}\n')
    error = refused.value
    assert len(error.excerpt) <= 80
    assert error.excerpt[error.caret - 1] == ","


@pytest.mark.parametrize(("again", "end"), [('\\"', ""), ('"', ""), ('\\"', "\\"), ('"\\\n', "")])
def test_a_long_text_with_a_mistake_is_read_in_no_time(again: str, end: str) -> None:
    """Pixels wait meanwhile; to look for the end of a text from each quote would take minutes."""
    with pytest.raises(InvalidJson) as refused:
        read_json('[1e999,"' + 500_000 * again + end)
    assert "too large" in str(refused.value)


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 3}', '{"b": {"a": 1, "a": 1}}', '[{"a": 1, "a": 1}]'])
def test_names_that_occur_twice_are_told(text: str) -> None:
    assert read_json(f'{{"x": {text}}}')[1] == ["a"]


@given(st.text() | st.text("{}[]\",:\\ \n0e-.truefalsnu'/", max_size=30))
def test_no_text_breaks_the_reader(text: str) -> None:
    error = None
    try:
        values, _ = read_json(text)
    except InvalidJson as refused:
        values, error = {}, refused
    json.dumps(values, allow_nan=False).encode()
    if error is not None:
        assert 1 <= error.line <= text.count("\n") + text.count("\r") + 1
        assert 1 <= error.column <= len(text) + 1
