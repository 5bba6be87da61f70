"""A hit's query string becomes an event or a rejection: pixel protocol sections 1, 2 and 4, purely.

`decode` runs once for every hit, 25,000 a second on a shared core, and its input is whatever anybody sends:
it never raises, and its time grows in step with the query's length. The common shapes (no percent escape,
Base64 as an encoder writes it) come first at every step; the rest is reached only by hits that need it.
"""

import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Iterator
from typing import Any, Literal, cast
from urllib.parse import quote, unquote_to_bytes

import msgspec

from tenants.currencies import MINOR_UNITS

Category = Literal["event", "revenue"]

MAX_QUERY = 8_000
MAX_EVENT_TOKEN = 255
MAX_EVENT_ID = 128
MAX_AMOUNT = 10**15
MAX_FIELDS = 255
MAX_LEVELS = 5
MAX_LISTS = 32  # lists inside one another: the protocol sets no limit, the event store's JSON columns need one
MAX_UUID = 128
MAX_EMAIL = 254  # RFC 5321: a path of 256 octets, less its angle brackets

WARNINGS = (
    "invalid_params",
    "ignored_fields",
    "too_many_fields",
    "too_deep",
    "privacy_signal",
    "invalid_email",
    "invalid_uuid",
    "invalid_fbid",
)
"""Every warning an event can carry, in the order in which `Event.warnings` lists them."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """A hit that counts.

    `amount` is in minor units of `currency` (upper case); both are None on category `event`. `params` is the
    JSON text of the custom values, `{}` when there are none; `email` (lower case), `uuid`, `fbid` and
    `access_token` were taken out of it. `warnings` are in the order of `WARNINGS`. The access token must
    never be stored with the event or shown; the repr leaves out all that is personal.
    """

    event_token: str
    amount: int | None
    currency: str | None
    event_id: str | None
    params: str
    warnings: tuple[str, ...]
    email: str | None
    uuid: str | None
    fbid: str | None
    access_token: str | None

    def __repr__(self) -> str:
        return f"Event({self.event_token!r}, amount={self.amount}, warnings={self.warnings})"

    # msgspec writes one with every field, and tracebacks drawn by rich print it.
    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("event_token", self.event_token), ("amount", self.amount), ("warnings", self.warnings)]


class Rejection(msgspec.Struct, frozen=True, gc=False):
    """A hit that is not recorded, and what its sender should change.

    `reason` is one of the protocol's, `detail` a sentence for people, `query` the query string as sent
    without any access token. The repr shows the reason only, since query strings do not belong in logs.
    """

    reason: str
    detail: str
    query: str

    def __repr__(self) -> str:
        return f"Rejection({self.reason!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("reason", self.reason)]


def decode(category: Category, query: bytes, default_currency: str, privacy: bool) -> Event | Rejection:
    """Read a hit's query string, without its `?`, as the protocol says.

    `default_currency` is the app's, upper case. `privacy` tells of a privacy signal that the app honours: the
    special fields are dropped, with the warning `privacy_signal` if there were any. Never raises. Where
    several rejections apply, the first of query length, event_token, amount, currency, event_id is given.
    """
    if len(query) > MAX_QUERY:
        detail = f"Shorten the query string to {MAX_QUERY:,} characters; it has {len(query):,}."
        return Rejection("query_too_long", detail, _scrubbed(query, privacy))
    sent = _parameters(query)

    raw_event_token = sent.get(b"event_token", b"")
    event_token = _text(raw_event_token)
    if event_token == "":
        detail = "Add event_token to the pixel's address and say what happened: event_token=signup."
        return Rejection("missing_event_token", detail, _scrubbed(query, privacy))
    if event_token is None or len(event_token) > MAX_EVENT_TOKEN:
        detail = (
            f"Give event_token 1 to {MAX_EVENT_TOKEN} characters of UTF-8 without control characters; "
            f"it was {_shown(raw_event_token)}."
        )
        return Rejection("invalid_event_token", detail, _scrubbed(query, privacy))

    amount = currency = None
    if category == "revenue":
        raw_amount = _unquoted(sent.get(b"amount", b""))
        if not raw_amount.strip():
            detail = "Add amount, a whole number in the currency's minor unit: amount=2500 for 25.00 USD."
            return Rejection("missing_amount", detail, _scrubbed(query, privacy))
        amount = _amount(raw_amount)
        if amount is None:
            detail = (
                "Send amount as a whole number in the currency's minor unit (2500 for 25.00 USD), "
                f"at most 10^15 either way; it was {_shown(sent[b'amount'])}."
            )
            return Rejection("invalid_amount", detail, _scrubbed(query, privacy))
        raw_currency = sent.get(b"currency", b"")
        currency = _currency(raw_currency, default_currency)
        if currency is None:
            detail = (
                f"Send currency as a code that ISO 4217 lists, or leave it out for {default_currency}; "
                f"it was {_shown(raw_currency)}."
            )
            return Rejection("invalid_currency", detail, _scrubbed(query, privacy))

    event_id = None
    if raw_event_id := sent.get(b"event_id"):
        event_id = _text(raw_event_id)
        if event_id is None or len(event_id) > MAX_EVENT_ID:
            detail = (
                f"Give event_id at most {MAX_EVENT_ID} characters of UTF-8 without control characters; "
                f"it was {_shown(raw_event_id)}."
            )
            return Rejection("invalid_event_id", detail, _scrubbed(query, privacy))

    params, email, uuid, fbid, access_token = "{}", None, None, None, None
    warnings: set[str] = set()
    if raw_params := sent.get(b"params"):
        fields = _object(_unquoted(raw_params))
        if fields is None:
            warnings.add("invalid_params")
        else:
            if not SPECIAL_FIELDS.isdisjoint(fields):
                email, uuid, fbid, access_token = _special(fields, privacy, warnings)
            try:
                params = _encode_json(_kept(fields, 1, 0, warnings)).decode()
            except OverflowError:  # like 1e999, which the JSON decoder refuses
                email = uuid = fbid = access_token = None
                warnings = {"invalid_params"}
    listed = tuple(filter(warnings.__contains__, WARNINGS)) if warnings else ()
    return Event(event_token, amount, currency, event_id or None, params, listed, email, uuid, fbid, access_token)


def wants_debug(query: bytes) -> bool:
    """Whether the hit asks, with `debug=1`, what became of it."""
    if b"debug" not in query and (b"%" not in query or _ESCAPED_NAME.search(b"&" + query) is None):
        return False
    return _unquoted(_parameters(query).get(b"debug", b"")) == b"1"


# --- The query string

_AMPS = re.compile(rb"\A(?:amp;)+")
_ESCAPED_NAME = re.compile(rb"&[^=&]*%")


def _parameters(query: bytes) -> dict[bytes, bytes]:
    """The first non-empty value of each name, still encoded; names are decoded (none of ours has a space)."""
    plain: dict[bytes, bytes] = {}
    behind_amp: dict[bytes, bytes] = {}
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if not value:
            continue
        if b"%" in name:
            name = unquote_to_bytes(name)
        if name.startswith(b"amp;"):
            behind_amp.setdefault(_AMPS.sub(b"", name), value)
        else:
            plain.setdefault(name, value)
    return behind_amp | plain if behind_amp else plain


def _unquoted(value: bytes) -> bytes:
    if b"+" in value:
        value = value.replace(b"+", b" ")
    return unquote_to_bytes(value) if b"%" in value else value


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _text(raw: bytes) -> str | None:
    """The stripped text of a value, or None where it is not UTF-8 or has a control character in it."""
    try:
        text = _unquoted(raw).decode().strip()
    except UnicodeDecodeError:
        return None
    # Printable is the quick answer; it also refuses harmless characters, an inner no-break space for one.
    return text if text.isprintable() or _CONTROL.search(text) is None else None


# A `+` that was not escaped arrives as a space: it is the sign that the protocol allows.
_AMOUNT = re.compile(rb"([-+ ]?)0*([0-9]{1,16})")


def _amount(value: bytes) -> int | None:
    match = _AMOUNT.fullmatch(value)
    if match is None:
        return None
    amount = int(match[2])  # at most 16 digits
    if amount > MAX_AMOUNT:
        return None
    return -amount if match[1] == b"-" else amount


def _currency(raw: bytes, default: str) -> str | None:
    # Bytes: upper() of a text would make codes of other alphabets' letters ("uſd").
    code = _unquoted(raw).strip().upper().decode("latin-1")
    if not code:
        return default
    return code if code in MINOR_UNITS else None


# --- params

_BOM = b"\xef\xbb\xbf"
_URL_SAFE = bytes.maketrans(b"-_ ", b"+/+")
_NESTING = 64  # more than fields and lists within their limits can reach
_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)

_decode_json = msgspec.json.Decoder(dict[str, Any]).decode
_encode_json = msgspec.json.Encoder().encode


def _object(text: bytes) -> dict[str, Any] | None:
    """The JSON object that `text` is in one of the accepted forms, or None.

    The first character tells the form: an object's JSON text begins with a brace, and neither brace nor
    percent sign is in Base64's alphabet. What encodes twice does it alike each time: `+` is always a space.
    """
    for further in range(3):
        text = text.removeprefix(_BOM).strip()
        if text.startswith(b"{"):
            fields = _json_object(text)
            if fields is not None:
                return fields
        elif further < 2 and b"%" not in text:
            return _json_object(_from_base64(text))
        if b"%" not in text:
            return None
        text = _unquoted(text)
    return None


def _from_base64(text: bytes) -> bytes:
    """The bytes behind Base64 of either alphabet; empty where it is none."""
    try:
        return a2b_base64(text + b"=="[: -len(text) % 4], strict_mode=True)
    except Base64Error:
        text = text.translate(_URL_SAFE, b"\r\n").rstrip(b"=")
    try:
        return a2b_base64(text + b"=="[: -len(text) % 4], strict_mode=True)
    except Base64Error:
        return b""


def _json_object(text: bytes) -> dict[str, Any] | None:
    text = text.removeprefix(_BOM)
    if text.count(b"{") + text.count(b"[") > _NESTING:
        text = _without_deep_containers(text)
    try:
        return _decode_json(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _without_deep_containers(text: bytes) -> bytes:
    """JSON text with null for what is nested beyond `_NESTING`, all of it too deep to count.

    The JSON decoder recurses, and how deep it can go depends on who calls it: a hit must read the same
    everywhere. Empty, which is no JSON, where the deep part never ends.
    """
    pieces: list[bytes] = []
    depth = start = 0
    for match in _BRACKET.finditer(text):
        token = match[0]
        if token in (b"{", b"["):
            depth += 1
            if depth == _NESTING + 1:
                pieces.append(text[start : match.start()])
        elif token in (b"}", b"]"):
            depth -= 1
            if depth == _NESTING:
                pieces.append(b"null")
                start = match.end()
    if depth > _NESTING:
        return b""
    return b"".join(pieces) + text[start:]


def _kept(fields: dict[str, object], level: int, lists: int, warnings: set[str]) -> dict[str, object]:
    """The fields that count, of an object whose fields are at `level` and inside that many lists.

    Raises OverflowError for an integer that no float can hold.
    """
    if level > MAX_LEVELS and fields:
        warnings.add("too_deep")
        return {}
    kept: dict[str, object] = {}
    for name, value in fields.items():
        if not name or name[0] in "$_" or "." in name:
            warnings.add("ignored_fields")
            continue
        if level == 1 and len(kept) == MAX_FIELDS:
            warnings.add("too_many_fields")
            break
        kind = type(value)
        if kind is dict:
            value = _kept(cast("dict[str, object]", value), level + 1, lists, warnings)
        elif kind is list:
            value = _kept_list(cast("list[object]", value), level, lists + 1, warnings)
        elif kind is int:
            value = _in_64_bits(cast("int", value))
        kept[name] = value
    return kept


def _kept_list(values: list[object], level: int, lists: int, warnings: set[str]) -> list[object]:
    kept: list[object] = []
    for value in values:
        kind = type(value)
        if kind is dict:
            value = _kept(cast("dict[str, object]", value), level + 1, lists, warnings)
        elif kind is list:
            if lists == MAX_LISTS:
                warnings.add("too_deep")
                continue
            value = _kept_list(cast("list[object]", value), level, lists + 1, warnings)
        elif kind is int:
            value = _in_64_bits(cast("int", value))
        kept.append(value)
    return kept


def _in_64_bits(value: int) -> int | float:
    return value if -(2**63) <= value < 2**64 else float(value)


# --- Special fields

SPECIAL_FIELDS = frozenset({"email", "uuid", "fbid", "access_token"})

# One run of characters for each part, none of which can hold the separator that follows it: no backtracking.
_ADDRESS_PART = r"[^\s@.,;:<>()\[\]\"\\\x00-\x1f\x7f-\x9f]+"
_EMAIL = re.compile(rf"[^\s@,;:<>()\[\]\"\\\x00-\x1f\x7f-\x9f]+@{_ADDRESS_PART}(?:\.{_ADDRESS_PART})+")
_FBID = re.compile(r"[0-9]{1,20}")


def _special(
    fields: dict[str, Any], privacy: bool, warnings: set[str]
) -> tuple[str | None, str | None, str | None, str | None]:
    """Take email, uuid, fbid and access_token out of `fields`; each is None where absent or wrong."""
    taken = {name: fields.pop(name) for name in SPECIAL_FIELDS if name in fields}
    if privacy:
        warnings.add("privacy_signal")
        return None, None, None, None

    email = uuid = fbid = access_token = None
    if "email" in taken:
        email = _stripped(taken["email"]).lower()
        if len(email) > MAX_EMAIL or _EMAIL.fullmatch(email) is None:
            email = None
            warnings.add("invalid_email")
    if "uuid" in taken:
        uuid = _identifier(taken["uuid"])
        if not 1 <= len(uuid) <= MAX_UUID or _CONTROL.search(uuid):
            uuid = None
            warnings.add("invalid_uuid")
    if "fbid" in taken:
        fbid = _identifier(taken["fbid"])
        if _FBID.fullmatch(fbid) is None or not fbid.strip("0"):
            fbid = None
            warnings.add("invalid_fbid")
    if "access_token" in taken:
        access_token = _stripped(taken["access_token"]) or None
    return email, uuid, fbid, access_token


def _stripped(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _identifier(value: object) -> str:
    """The text of a string, or of an integer not too long for any identifier; empty for all else."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**MAX_UUID:
        return str(value)
    return _stripped(value)


# --- What a rejection shows

MAX_SCRUBBED_PARAMS = 8  # a sender repeats `params` once or twice; reading hundreds is work for nothing

_SECRET_FIELDS = frozenset({"access_token"})
_REMOVED = b"(removed)"
_SECRET_ASSIGNMENT = re.compile(rb"access_token\W*[=:]", re.IGNORECASE)
_SPECIAL_ASSIGNMENT = re.compile(rb"(?:access_token|email|uuid|fbid)\W*[=:]", re.IGNORECASE)
_JSON_ESCAPE = re.compile(rb"\\u00([2-7][0-9a-fA-F])")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")


def _scrubbed(query: bytes, privacy: bool) -> str:
    """The query string as sent, less every access token; with `privacy`, less all special fields."""
    hidden = SPECIAL_FIELDS if privacy else _SECRET_FIELDS
    assignment = _SPECIAL_ASSIGNMENT if privacy else _SECRET_ASSIGNMENT
    hidden_names = {field.encode() for field in hidden}
    names_hidden = any(name in stage.lower() for stage in _stages(query) for name in hidden_names)
    kept: list[bytes] = []
    params_seen = 0
    for pair in query.split(b"&"):
        raw_name, _, raw_value = pair.partition(b"=")
        name = _unquoted(raw_name).strip().lower()
        if name.startswith(b"amp;"):
            name = _AMPS.sub(b"", name)
        if name == b"params" and raw_value:
            params_seen += 1
            readable = params_seen <= MAX_SCRUBBED_PARAMS
            pair = raw_name + b"=" + (_scrubbed_params(raw_value, hidden) if readable else _REMOVED)
        elif names_hidden and (name in hidden_names or _matches(assignment, pair)):
            # Inside another value too: JSON whose "&" was not escaped falls into several pairs.
            continue
        kept.append(pair)
    return b"&".join(kept).decode("utf-8", "replace")


def _scrubbed_params(raw: bytes, hidden: frozenset[str]) -> bytes:
    text = _unquoted(raw)
    fields = _object(text)
    if fields is None:
        damaged = (name.encode() in reading for reading in _readings(text) for name in hidden)
        return _REMOVED if any(damaged) else raw
    rest = {name: value for name, value in fields.items() if name.strip().lower() not in hidden}
    return raw if len(rest) == len(fields) else quote(_encode_json(rest)).encode()


def _matches(pattern: re.Pattern[bytes], text: bytes) -> bool:
    return any(pattern.search(stage) for stage in _stages(text))


def _stages(text: bytes) -> Iterator[bytes]:
    """`text`, and what it is when percent-decoded once, twice and three times."""
    yield text
    for _ in range(3):
        if b"%" not in text:
            return
        text = unquote_to_bytes(text)
        yield text


def _readings(text: bytes) -> Iterator[bytes]:
    """All that damaged params can be read as, in lower case. A letter lost in Base64 shifts the rest."""
    for stage in _stages(text):
        yield _JSON_ESCAPE.sub(_unescaped, stage).lower()
        letters = _NOT_BASE64.sub(b"", stage.translate(_URL_SAFE))
        for skipped in range(4):
            whole = (len(letters) - skipped) // 4 * 4
            reading = a2b_base64(letters[skipped : skipped + whole])
            yield _JSON_ESCAPE.sub(_unescaped, reading).lower()


def _unescaped(match: re.Match[bytes]) -> bytes:
    return bytes.fromhex(match[1].decode())


def _shown(raw: bytes) -> str:
    """A value for a sentence: quoted, escaped, shortened; not at all where it holds an access token."""
    if _matches(_SPECIAL_ASSIGNMENT, raw):
        return "a text that is not shown"
    text = _unquoted(raw).decode("utf-8", "replace")
    return repr(text if len(text) <= 40 else text[:40] + "…")
