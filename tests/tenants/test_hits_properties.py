"""What holds for every query string: decoding never fails, undoes the encoder, and lets no secret through."""

import base64
import json
import re
from collections.abc import Callable
from itertools import accumulate
from typing import Any, Literal
from urllib.parse import quote, quote_plus, unquote_to_bytes

from hypothesis import given, settings
from hypothesis import strategies as st

from tenants.hits import (
    MAX_LEVELS,
    MAX_LISTS,
    MAX_QUERY,
    Category,
    Event,
    Rejection,
    _scrubbed,  # pyright: ignore[reportPrivateUsage]
    decode,
    wants_debug,
)
from tenants.snippets import encode_params, pixel_url

unhurried = settings(deadline=None)  # a busy machine is no fault of the decoder

Encoding = Literal["base64", "url"]

CATEGORIES: st.SearchStrategy[Category] = st.sampled_from(["event", "revenue"])
ENCODINGS: st.SearchStrategy[Encoding] = st.sampled_from(["base64", "url"])

# Every character but the lone surrogates, which UTF-8 cannot hold.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = TEXTS.filter(lambda name: name != "" and name[0] not in "$_" and "." not in name)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)


def values(levels: int) -> st.SearchStrategy[Any]:
    """JSON values with fields at most so many levels deep."""
    if levels == 0:
        return SCALARS | st.lists(SCALARS, max_size=3) | st.builds(dict[str, Any])
    inner = values(levels - 1)
    return SCALARS | st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3)


SPECIAL = {"email", "uuid", "fbid", "access_token"}
OBJECTS = st.dictionaries(NAMES.filter(lambda name: name not in SPECIAL), values(4), max_size=8).filter(
    lambda fields: len(quote(json.dumps(fields, ensure_ascii=False))) < MAX_QUERY // 5
)


def check(result: Event | Rejection) -> None:
    """What every result keeps to; all of its texts can be stored as UTF-8."""
    if isinstance(result, Event):
        result.event_token.encode()
        result.params.encode()
        names: list[str] = []

        def take(pairs: list[tuple[str, object]]) -> dict[str, object]:
            names.extend(name for name, _ in pairs)
            return dict(pairs)

        assert type(json.loads(result.params, object_pairs_hook=take)) is dict
        assert not any(name == "" or name[0] in "$_" or "." in name for name in names)
        brackets = re.sub(r'"(?:[^"\\]|\\.)*"', "", result.params)
        for (opening, closing), most in (("{}", 1 + MAX_LEVELS), ("[]", MAX_LISTS)):
            assert max(accumulate((mark == opening) - (mark == closing) for mark in brackets)) <= most
    else:
        assert result.reason
        assert result.detail
        result.query.encode()


@unhurried
@given(CATEGORIES, st.binary(max_size=300), st.booleans())
def test_no_bytes_make_decoding_fail(category: Category, query: bytes, privacy: bool) -> None:
    check(decode(category, query, "USD", privacy))
    wants_debug(query)


# fmt: off
PIECES = st.sampled_from([
    "event_token=", "params=", "amp;amp;params=", "amount=", "currency=", "event_id=", "debug=",
    "access_token=", "&", "&amp;", "amp;", "=", "%", "%25", "%2525", "%00", "%FF", "%ED%A0%80", "%EF%BB%BF",
    "%C2%85", "+", "%2B", " ",
    "{", '{"a":', "}", "[", "]", ",", ":", '"', "\\", "\\ud800", "\\u0000", "null", "1e999", "-0", "1.5",
    '"email":', '"access_token":"s"', '"uuid":', '"fbid":', '"_x":1', '"":1', "eyJhIjoxfQ==", "eyJ", "-_",
    "25.00", "+5", "\ufeff", "\u2028", "\udcff",
    '{"a":' * 80, "[" * 90, "]" * 90, "9" * 400, "9" * 4400, "%25" * 300, "amp;" * 300,
])
# fmt: on


@unhurried
@given(CATEGORIES, st.lists(PIECES, max_size=25), st.booleans(), st.sampled_from([0, 1, 2, 3]))
def test_no_hostile_query_makes_decoding_fail(
    category: Category, pieces: list[str], privacy: bool, encoding: int
) -> None:
    joined = "".join(pieces).encode("utf-8", "surrogatepass")
    once, twice = quote(joined), quote(quote(joined))
    params = [joined, once.encode(), twice.encode(), base64.b64encode(joined)][encoding]
    for query in (joined, b"event_token=t&amount=1&params=" + params, b"amount=x&params=" + params):
        found = decode(category, query, "USD", privacy)
        check(found)
        # An event's is scrubbed in short where that is sure to change nothing.
        assert found.query == _scrubbed(query, privacy)
        wants_debug(query)


ANY_NAMES = TEXTS | st.sampled_from(["", "$a", "_b", "c.d", "email", "uuid", "fbid", "access_token"])
ANY_VALUES = st.recursive(
    SCALARS | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_NAMES, inner, max_size=3),
    max_leaves=20,
)


@unhurried
@given(st.dictionaries(ANY_NAMES, ANY_VALUES, max_size=5), st.integers(0, 70), st.booleans())
def test_any_object_leaves_only_fields_that_count(fields: dict[str, Any], depth: int, privacy: bool) -> None:
    for level in range(depth):
        fields = {"in": fields, "list": [fields]} if level < 4 else {"in": [[fields]]}
    params = base64.b64encode(json.dumps(fields).encode())
    result = decode("event", b"event_token=t&params=" + params, "USD", privacy)
    check(result)
    if isinstance(result, Event):
        assert "invalid_params" not in result.warnings
        assert "too_deep" in result.warnings or depth <= MAX_LEVELS


def spelled(fields: object) -> str:
    # As text, 1 and 1.0 and True differ, as do 0.0 and -0.0; the order of fields counts too.
    return json.dumps(fields, ensure_ascii=False)


@unhurried
@given(OBJECTS, ENCODINGS, st.integers(0, 2))
def test_decoding_gives_back_what_the_encoder_was_given(fields: dict[str, Any], encoding: Encoding, more: int) -> None:
    text = encode_params(fields, encoding)
    # Base64 may be percent-encoded once more than the query string needs, JSON text twice more.
    for _ in range(1 + min(more, 1 if encoding == "base64" else 2)):
        text = quote(text, safe="")
    result = decode("event", f"event_token=t&params={text}".encode(), "USD", privacy=False)
    assert isinstance(result, Event)
    assert spelled(json.loads(result.params)) == spelled(fields)
    assert result.warnings == ()


EVENT_TOKENS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=99).map(str.strip).filter(bool)


@unhurried
@given(CATEGORIES, EVENT_TOKENS, OBJECTS, ENCODINGS, st.integers(-(10**15), 10**15))
def test_a_snippet_is_the_event_it_was_made_for(
    category: Category, event_token: str, fields: dict[str, Any], encoding: Encoding, amount: int
) -> None:
    url = pixel_url(
        "https://px.example", "0" * 24, category, event_token, params=fields, encoding=encoding, amount=amount
    )
    result = decode(category, url.partition("?")[2].encode(), "USD", privacy=False)
    assert isinstance(result, Event)
    assert (result.event_token, result.amount) == (event_token, amount if category == "revenue" else None)
    assert spelled(json.loads(result.params)) == spelled(fields)


SECRET = "EAAGsecret0123456789"


def encode_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def encode_url_safe(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


FORMS: st.SearchStrategy[Callable[[str], str]] = st.sampled_from(
    [
        lambda text: text.replace("&", "%26").replace("+", "%2B"),
        lambda text: quote(text, safe=""),
        lambda text: quote(quote(text)),
        lambda text: quote_plus(quote_plus(quote_plus(text))),
        lambda text: encode_base64(text),
        lambda text: quote(quote(encode_base64(text), safe=""), safe=""),
        lambda text: encode_base64(text).replace("+", "%20"),
        lambda text: encode_url_safe(text),
        lambda text: quote(encode_base64("\ufeff" + text)),
    ]
)
NAMES_OF_PARAMS = st.sampled_from(["params", "amp;params", "amp%3Bparams", "PARAMS", "par%61ms", "amp;amp;params"])
NAMES_OF_SECRETS = st.sampled_from(
    ["access_token", "amp;access_token", "ACCESS_TOKEN", "access%5Ftoken", "amp;Access_Token"]
)


def readings(data: bytes) -> list[bytes]:
    """All that can be read in a query: percent-decoded, each pair's value as Base64 of any alignment."""
    found = [data]
    for _ in range(4):
        found.append(unquote_to_bytes(found[-1]))
    for stage in list(found):
        for value in stage.replace(b"=", b"&").split(b"&"):
            letters = re.sub(rb"[^A-Za-z0-9+/]", b"", value.translate(bytes.maketrans(b" -_", b"++/")))
            for skipped in range(4):
                # A padding too long does no harm; a single letter left over is no byte.
                part = letters[skipped:] if len(letters[skipped:]) % 4 != 1 else letters[skipped:-1]
                found.append(base64.b64decode(part + b"=="))
    return found


@unhurried
@given(
    st.dictionaries(NAMES, SCALARS, max_size=4),
    st.integers(0, 4),
    FORMS,
    NAMES_OF_PARAMS,
    st.none() | NAMES_OF_SECRETS,
    st.integers(0, 2),
    st.sampled_from(
        ["", "&event_token=&cb=1", "&event_token=a%00", "&params=x", "&event_token=" + "y" * 8_000, "&event_token=t"]
    ),
    st.booleans(),
)
def test_nothing_shows_an_access_token(
    fields: dict[str, Any],
    place: int,
    form: Any,
    name: str,
    plain: str | None,
    lost: int,
    more: str,
    privacy: bool,
) -> None:
    items = [(field, value) for field, value in fields.items() if field != "access_token"]
    items.insert(place, ("access_token", SECRET))
    text = json.dumps(dict(items), ensure_ascii=False)
    value = form(text[: len(text) - lost])
    query = f"cb=0&{name}={value}" + (f"&{plain}={SECRET}" if plain else "") + more
    result = decode("event", query.encode(), "USD", privacy)
    assert isinstance(result, Event if more.endswith("=t") else Rejection)
    assert "cb=0" in result.query.split("&")
    assert not any(SECRET.encode() in reading for reading in readings(result.query.encode()))
    assert isinstance(result, Event) or SECRET not in result.detail
    # The check can see what it looks for.
    assert any(SECRET.encode() in reading for reading in readings(query.encode()))


@unhurried
@given(
    st.dictionaries(NAMES, SCALARS, max_size=3),
    FORMS,
    NAMES_OF_PARAMS,
    st.none() | NAMES_OF_SECRETS,
    st.sampled_from([0, 9_000]),
    st.booleans(),
    st.data(),
)
def test_no_rejection_of_a_cut_query_shows_the_beginning_of_an_access_token(
    fields: dict[str, Any], form: Any, name: str, plain: str | None, long: int, privacy: bool, data: st.DataObject
) -> None:
    values = {**fields, "access_token": SECRET, "more": "x"}
    query = f"cb={'0' * long}"
    if plain:
        query += f"&{plain}={SECRET}"
    query = f"{query}&{name}={form(json.dumps(values, ensure_ascii=False))}".encode()
    kept = data.draw(st.integers(long, len(query)))
    result = decode("event", query[:kept], "USD", privacy)
    assert isinstance(result, Rejection)
    beginning = SECRET[:6].encode()
    assert not any(beginning in reading for reading in readings(result.query.encode()))
    # The check can see what it looks for.
    assert any(beginning in reading for reading in readings(query))
