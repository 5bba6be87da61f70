"""A hit's query string becomes an event or a rejection: pixel protocol sections 1, 2 and 4, purely.

`decode` runs once for every hit, 25,000 a second on a shared core, and its input is whatever anybody sends:
it never raises, and no query of an accepted length takes it a millisecond, or a flood of them would delay every
tenant's events. Hence C code does what is done to each byte, and Python takes few steps a parameter or JSON value.
The common shapes (no percent escape, Base64 as an encoder writes it) come first at every step.
"""

import re
from binascii import Error as Base64Error
from binascii import a2b_base64, a2b_qp
from typing import Any, Literal, cast
from urllib.parse import quote

import msgspec

from tenants.currencies import MINOR_UNITS

Category = Literal["event", "revenue"]

MAX_QUERY = 8_000
# Enough of a longer one to show, too little to fill the disk with.
KEPT_QUERY = 16_384
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

WARNING_ADVICE = {
    "invalid_params": "Send params as one JSON object, in Base64 or percent-encoded; what came could not be read.",
    "ignored_fields": "Rename the fields of params that begin with $ or _, have a dot in their name or no name at all.",
    "too_many_fields": f"Send at most {MAX_FIELDS} fields in params; those after the first {MAX_FIELDS} were left out.",
    "too_deep": f"Nest fields of params at most {MAX_LEVELS} levels deep; what lies deeper was left out.",
    "privacy_signal": "Nothing to change: the visitor asks not to be tracked, so email, uuid, fbid and access_token "
    "were left out.",
    "invalid_email": "Send one e-mail address in email; what came is none, and was left out.",
    "invalid_uuid": f"Send a text or a whole number of 1 to {MAX_UUID} characters in uuid, and no unfilled merge tag; "
    "what came was left out.",
    "invalid_fbid": "Send a Facebook id of 1 to 20 digits in fbid; what came is none, and was left out.",
}
"""For each warning a sentence that says what to change."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """A hit that counts.

    `amount` is in minor units of `currency` (upper case); both are None on category `event`. `params` is the
    JSON text of the custom values, `{}` when there are none; `email` (lower case), `uuid`, `fbid` and
    `access_token` were taken out of it. `warnings` are in the order of `WARNINGS`. `query` is the query string
    as sent, without what a rejection's is without. The access token must never be stored with the event or
    shown; the repr leaves out all that is personal.
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
    query: str

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
        more = " or more" if len(query) >= KEPT_QUERY else ""
        detail = f"Shorten the query string to {MAX_QUERY:,} characters; it has {len(query):,}{more}."
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
        # A space is the sign `+` that was not escaped, unless it is one that was.
        amount = _amount(raw_amount) if raw_amount[0] != ord(" ") or sent[b"amount"].startswith(b"+") else None
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
    plain = query
    if raw_params := sent.get(b"params"):
        text = _unquoted(raw_params)
        if len(text) != len(raw_params):
            plain = query.replace(raw_params, text)
        fields = _object(text)
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
    return Event(
        event_token,
        amount,
        currency,
        event_id or None,
        params,
        listed,
        email,
        uuid,
        fbid,
        access_token,
        query.decode("utf-8", "replace") if not privacy and _hides_nothing(query, plain) else _scrubbed(query, privacy),
    )


def identifiers_in(query: bytes) -> tuple[str | None, str | None, str | None]:
    """(email, uuid, fbid) in a query string, whether it makes an event or not."""
    fields = _object(_unquoted(_parameters(query).get(b"params", b""))) if len(query) <= MAX_QUERY else None
    return _special(fields, False, set())[:3] if fields else (None, None, None)


def wants_debug(query: bytes) -> bool:
    """Whether the hit asks, with `debug=1`, what became of it."""
    if b"debug" not in query and b"%" not in query:
        return False
    return _unquoted(_parameters(query).get(b"debug", b"")) == b"1"


# --- The query string

_PARAMETER = re.compile(rb"&([^=&]*)=([^&]+)")
_AMPS = re.compile(rb"&(?:amp;)+")


def _parameters(query: bytes) -> dict[bytes, bytes]:
    """The first non-empty value of each name, still encoded; names are decoded (none of ours has a space)."""
    pairs: list[tuple[bytes, bytes]] = _PARAMETER.findall(b"&" + query)
    pairs.reverse()  # of all values put into a dict under one name the last stays
    if b"%" not in query and b"amp;" not in query:
        return dict(pairs)
    names = b"&".join([name for name, _ in pairs])
    values = [value for _, value in pairs]
    if b"%" in names:
        names = _unquoted(names.replace(b"%26", b"%00"))  # an escaped & is in no name of ours
    sent = dict(zip(names.split(b"&"), values, strict=False))
    if b"amp;" in names:
        sent = dict(zip(_AMPS.sub(b"&", b"&" + names)[1:].split(b"&"), values, strict=False)) | sent
    return sent


# One costs as much as a dozen whole ones. Encoders write none, but JavaScript's old escape() may write a `%u` for
# each of 1,300 letters.
MAX_BROKEN_ESCAPES = 1_500

_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def _unquoted(value: bytes) -> bytes:
    """`value` percent-decoded, broken escapes left as they are; unchanged where it has too many of them."""
    if b"+" in value:
        value = value.replace(b"+", b" ")
    if b"%" not in value:
        return value
    escaped, broken = _BROKEN_ESCAPE.subn(b"%25", value, MAX_BROKEN_ESCAPES)
    if broken == MAX_BROKEN_ESCAPES:
        return value
    # Quoted-printable differs in the sign only, and its decoder is in C; urllib's takes 5 times as long.
    return a2b_qp(escaped.replace(b"=", b"%3D").replace(b"%", b"="))


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
_AMOUNT = re.compile(rb"([-+ ]?)([0-9]+)")


def _amount(value: bytes) -> int | None:
    match = _AMOUNT.fullmatch(value)
    if match is None:
        return None
    digits = match[2].lstrip(b"0") or b"0"
    if len(digits) > len(str(MAX_AMOUNT)) or (amount := int(digits)) > MAX_AMOUNT:
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
_MAX_RUNS = 2_100  # 1,000 levels of `{"a":`, what a query has room for in Base64; each takes 0.2 microseconds
_BRACKETS = re.compile(
    rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{][^"\[\]{}]*[\]}]|([\[{]+)|([\]}]+)',  # text, innermost container, runs
    re.DOTALL,
)


def _finite(number: str) -> float:
    value = float(number)
    if value - value:  # not 0 for an infinity
        raise ValueError
    return value


# The decoder's own way to read a float takes 10 microseconds for each 1e308.
_decode_json = msgspec.json.Decoder(dict[str, Any], float_hook=_finite).decode
_encode_json = msgspec.json.Encoder().encode


def _object(text: bytes) -> dict[str, Any] | None:
    """The JSON object that `text` is in one of the accepted forms, or None.

    The first character tells the form: an object's JSON text begins with a brace, and neither brace nor
    percent sign is in Base64's alphabet. What encodes twice does it alike each time: `+` is always a space.
    """
    for further in range(3):
        text = text.strip().removeprefix(_BOM).strip()
        encoded = b"%" in text
        if not encoded and not text.startswith(b"{"):
            text = _from_base64(text).removeprefix(_BOM) if further < 2 else b""
        try:
            return _decode_json(text)
        except RecursionError:
            return _shallow_object(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if not encoded or (decoded := _unquoted(text)) == text:
                return None
            text = decoded
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


def _shallow_object(text: bytes) -> dict[str, Any] | None:
    """The object that a JSON text is when null stands for what is nested beyond `_NESTING`, too deep to count.

    For text on which the JSON decoder ran out of stack: how deep it can go depends on who calls it, and an
    object must read the same everywhere. None where it is none, or has too many pieces to go through.
    """
    pieces: list[bytes] = []
    depth = start = 0
    for seen, run in enumerate(_BRACKETS.finditer(text)):
        if seen == _MAX_RUNS:
            return None
        before = depth
        if run.lastindex == 1:
            depth += run.end() - run.start()
            if before <= _NESTING < depth:
                pieces.append(text[start : run.start() + _NESTING - before])
        elif run.lastindex == 2:
            depth -= run.end() - run.start()
            if depth <= _NESTING < before:
                pieces.append(b"null")
                start = run.start() + before - _NESTING
    if depth > _NESTING:
        return None  # the deep part never ends
    try:
        return _decode_json(b"".join(pieces) + text[start:])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


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
        elif kind is int and not -(2**63) <= cast("int", value) < 2**64:
            value = float(cast("int", value))
        kept[name] = value
    return kept


def _kept_list(values: list[object], level: int, lists: int, warnings: set[str]) -> list[object]:
    if lists == MAX_LISTS and list in map(type, values):
        warnings.add("too_deep")
        values = [value for value in values if type(value) is not list]
    for index, value in enumerate(values):
        kind = type(value)
        if kind is dict:
            values[index] = _kept(cast("dict[str, object]", value), level + 1, lists, warnings)
        elif kind is list:
            values[index] = _kept_list(cast("list[object]", value), level, lists + 1, warnings)
        elif kind is int and not -(2**63) <= cast("int", value) < 2**64:
            values[index] = float(cast("int", value))
    return values


# --- Special fields

SPECIAL_FIELDS = frozenset({"email", "uuid", "fbid", "access_token"})
_ABSENT = object()  # JSON's null is None

# One run of characters for each part, none of which can hold the separator that follows it: no backtracking.
_ADDRESS_PART = r"[^\s@.,;:<>()\[\]\"\\\x00-\x1f\x7f-\x9f]++"
_EMAIL = re.compile(rf"[^\s@,;:<>()\[\]\"\\\x00-\x1f\x7f-\x9f]++@{_ADDRESS_PART}(?:\.{_ADDRESS_PART})++")
_FBID = re.compile(r"[0-9]{1,20}")
# What stands where an id should when there was none: a merge tag, or how a program writes nothing. It is nobody's own,
# and all who come with it would become one person for good.
_NOT_FILLED_IN = re.compile(r"\{\{.*\}\}|\*\|.*\|\*|%%.*%%|\$\{.*\}|undefined|null|None|NaN|\[object Object\]")


def _special(
    fields: dict[str, Any], privacy: bool, warnings: set[str]
) -> tuple[str | None, str | None, str | None, str | None]:
    """Take email, uuid, fbid and access_token out of `fields`; each is None where absent or wrong."""
    sent_email = fields.pop("email", _ABSENT)
    sent_uuid = fields.pop("uuid", _ABSENT)
    sent_fbid = fields.pop("fbid", _ABSENT)
    sent_token = fields.pop("access_token", _ABSENT)
    if privacy:
        warnings.add("privacy_signal")
        return None, None, None, None

    email = uuid = fbid = access_token = None
    if sent_email is not _ABSENT:
        email = _stripped(sent_email).lower()
        if len(email) > MAX_EMAIL or _EMAIL.fullmatch(email) is None:
            email = None
            warnings.add("invalid_email")
    if sent_uuid is not _ABSENT:
        uuid = _identifier(sent_uuid)
        if not 1 <= len(uuid) <= MAX_UUID or _CONTROL.search(uuid) or _NOT_FILLED_IN.fullmatch(uuid):
            uuid = None
            warnings.add("invalid_uuid")
    if sent_fbid is not _ABSENT:
        fbid = _identifier(sent_fbid)
        if _FBID.fullmatch(fbid) is None or not fbid.strip("0"):
            fbid = None
            warnings.add("invalid_fbid")
    if sent_token is not _ABSENT:
        access_token = _stripped(sent_token) or None
    return email, uuid, fbid, access_token


def _stripped(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _identifier(value: object) -> str:
    """The text of a string, or of an integer not too long for any identifier; empty for all else."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**MAX_UUID:
        return str(value)
    return _stripped(value)


# --- What is shown of a query

# What is longer is removed where it has a secret: it is not worth the time to take it out.
MAX_SCRUBBED_PARAMETERS = 32
MAX_SCRUBBED_VALUE = 2_000

_SECRET_FIELDS = (b"access_token",)
_PERSONAL_FIELDS = tuple(name.encode() for name in SPECIAL_FIELDS)
_ASSIGNMENT = {name: re.compile(name + rb"\W*[=:]") for name in _PERSONAL_FIELDS}
_REMOVED = b"(removed)"
_NOT_BASE64 = re.sub(rb"[A-Za-z0-9+/\-_ ]", b"", bytes(range(256)))


def _scrubbed(query: bytes, privacy: bool) -> str:
    """The query string as sent, less every access token; with `privacy`, less all special fields."""
    hidden = _PERSONAL_FIELDS if privacy else _SECRET_FIELDS
    readings = _readings(query)
    if any(reading.count(b"%") >= MAX_BROKEN_ESCAPES for reading in readings[1:]):
        return _REMOVED.decode()  # not decoded, so nobody knows
    if _mentions(readings, hidden):
        pairs = query.split(b"&")
        if len(pairs) > MAX_SCRUBBED_PARAMETERS:
            return _REMOVED.decode()
        query = b"&".join([kept for pair in pairs if (kept := _scrubbed_pair(pair, hidden)) is not None])
    return query.decode("utf-8", "replace")


def holds_access_token(query: bytes) -> bool:
    """Whether an access token may be in the query."""
    return _scrubbed(query, privacy=False) != query.decode("utf-8", "replace")


# Base64 says "access_token", whatever its letters' case, in one of three ways: by where it begins among the groups of
# three bytes. Of each a few characters around the underscore tell, once those that only differ by case are made one:
# `_FOLDED` does that. The next three say `\u00`. Text has none of them by chance but once in thousands of hits.
_FOLDED = _URL_SAFE.translate(bytes.maketrans(b"z3c0d", b"T1UUV"))
_HINTS = ("NTX1", "U19U", "1NfV", "XHUwM", "x1MD", "UVTAw")


def _hides_nothing(query: bytes, plain: bytes) -> bool:
    """Whether `_scrubbed(query, privacy=False)` is sure to be all of the query; False where that is to be seen.

    A tenth of its time: nearly every event passes. `plain` is the query or the same with its params percent-decoded.
    Searches are `find` and not `in`, which takes three times as long on bytes.
    """
    # Shorter ones have no room for too many broken escapes.
    if len(query) >= MAX_BROKEN_ESCAPES or query.lower().find(b"access_token") >= 0:
        return False
    if plain.find(b"%") >= 0:
        plain = _unescaped(query)
    if plain.find(b"\\u00") >= 0 or plain.lower().find(b"access_token") >= 0:
        return False
    letters = plain.translate(_FOLDED, _NOT_BASE64).decode()
    return not any(map(letters.__contains__, _HINTS))


def _scrubbed_pair(pair: bytes, hidden: tuple[bytes, ...]) -> bytes | None:
    mentions = _mentions(_readings(pair), hidden)
    if not mentions:
        return pair
    raw_name, _, value = pair.partition(b"=")
    if _unquoted(raw_name).strip().lower().rpartition(b"amp;")[2] != b"params":
        # Whatever its name: JSON whose "&" was not escaped falls into several pairs.
        return None if _assigned(mentions) else pair
    fields = _object(_unquoted(value)) if len(value) <= MAX_SCRUBBED_VALUE else None
    if fields is None:
        return raw_name + b"=" + _REMOVED
    rest = {name: part for name, part in fields.items() if name.strip().lower().encode() not in hidden}
    return pair if len(rest) == len(fields) else raw_name + b"=" + quote(_encode_json(rest)).encode()


def _mentions(readings: list[bytes], names: tuple[bytes, ...]) -> list[tuple[bytes, bytes]]:
    """Each of `names` that is somewhere in `readings`, with the reading."""
    return [(name, reading) for reading in readings for name in names if name in reading]


def _assigned(mentions: list[tuple[bytes, bytes]]) -> bool:
    return any(_ASSIGNMENT[name].search(reading) for name, reading in mentions)


def _readings(text: bytes) -> list[bytes]:
    """All that damaged text can be read as, in lower case. A letter lost in Base64 shifts the rest."""
    readings = [text]
    text = _unescaped(text)
    readings.append(_json_unescaped(text))
    letters = text.translate(_URL_SAFE, _NOT_BASE64)
    for skipped in range(4):
        whole = (len(letters) - skipped) // 4 * 4
        readings.append(_json_unescaped(a2b_base64(letters[skipped : skipped + whole])))
    return [reading.lower() for reading in readings]


def _unescaped(text: bytes) -> bytes:
    """Percent-decoded as often as it may have been encoded."""
    for _ in range(3):
        text = text.replace(b"%25", b"%")
    return _unquoted(text)


def _json_unescaped(text: bytes) -> bytes:
    r"""JSON's `\u00` and percent sign are alike: two digits follow."""
    return _unquoted(text.replace(b"\\u00", b"%")) if b"\\u00" in text else text


def _shown(raw: bytes) -> str:
    """A value for a sentence: quoted, escaped, shortened; not at all where it holds a special field."""
    raw = raw[:500]  # enough for 41 characters of 4 bytes, each escaped
    if _assigned(_mentions(_readings(raw), _PERSONAL_FIELDS)):
        return "a text that is not shown"
    text = _unquoted(raw).decode("utf-8", "replace")
    return repr(text if len(text) <= 40 else text[:40] + "…")
