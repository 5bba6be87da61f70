"""What was typed into the snippet generator becomes a snippet, with a note wherever something would surprise.

What a hit becomes is asked of `decode`, the code that reads real hits, never judged a second time here: for the whole
pixel, and for each custom value alone, which tells at which one to show a warning.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, cast
from urllib.parse import quote, urlencode

import msgspec

from tenants.currencies import MINOR_UNITS
from tenants.errors import InvalidValue
from tenants.hits import MAX_FIELDS, MAX_LEVELS, MAX_UUID, SPECIAL_FIELDS, Category, Event, Rejection, decode
from tenants.snippets import Encoding, Pixel, encode_params, pixel
from tenants.targets import MAILERS, MERGING, PUBLIC, STATIC, Block, Target, blocks
from tenants.typed_money import read_money
from tenants.typed_params import InvalidJson, Row, read_json, read_row

# Some mail clients, proxies and old servers cut longer addresses off.
LONG_URL = 2_000


class Draft(msgspec.Struct, frozen=True):
    """The generator's form as typed. Without a `currency` the app's counts; `view` says which of rows and JSON does."""

    category: Category = "event"
    event_token: str = ""
    amount: str = ""
    currency: str = ""
    event_id: str = ""
    view: Literal["rows", "json"] = "rows"
    rows: tuple[Row, ...] = ()
    json: str = ""
    encoding: Encoding = "base64"
    target: Target = "html"


class Note(msgspec.Struct, frozen=True):
    """A sentence for one place of the form: the name of a field, `row-3`, `json`, `params` or `target`.

    Where `is_error`, there is no snippet until it is changed.
    """

    place: str
    message: str
    is_error: bool = False


class Snippet(msgspec.Struct, frozen=True):
    """What a draft gives. Without `blocks` it has errors, and `notes` says which.

    `url` is what the snippet loads, with merge tags as they stand in it, and `test_url` an address to try out, with an
    example for each merge tag; `event` is what a hit on that becomes. `encoding` is the one used, `amount` the minor
    units read, where there are any. `json_error` is the mistake in the JSON text.
    """

    notes: tuple[Note, ...]
    encoding: Encoding
    currency: str
    amount: int | None = None
    values: Mapping[str, Any] | None = None
    blocks: tuple[Block, ...] = ()
    url: str = ""
    test_url: str = ""
    event: Event | None = None
    json_error: InvalidJson | None = None

    def notes_at(self, place: str) -> list[Note]:
        """The notes to show at one place."""
        return [note for note in self.notes if note.place == place]


def build(draft: Draft, base_url: str, app_token: str, app_currency: str) -> Snippet:
    """The snippet for a draft; never raises for what was typed."""
    notes: list[Note] = []
    currency = draft.currency.strip().upper() or app_currency
    if currency not in MINOR_UNITS:
        notes.append(Note("currency", "Choose a currency that ISO 4217 lists.", is_error=True))
        currency = app_currency
    values, places, json_error = _values(draft, notes)

    tags = _MergeTags(draft)
    event_token = tags.marked(draft.event_token, "event_token")
    event_id = tags.marked(draft.event_id.strip(), "event_id")
    amount = _amount(draft, currency, tags, notes)
    before = len(tags.by_mark)
    params = {name: tags.marked(value, name) for name, value in (values or {}).items()}
    has_tagged_values = len(tags.by_mark) > before
    encoding = draft.encoding
    if encoding == "base64" and has_tagged_values:
        encoding = "url"
        notes.append(Note("encoding", "Base64 cannot hold merge tags, so the values are URL-encoded."))
    made = pixel(
        base_url,
        app_token,
        draft.category,
        event_token,
        params=params,
        encoding=encoding,
        amount=amount,
        currency=currency if draft.currency and draft.category == "revenue" else None,
        event_id=event_id or None,
        app_currency=app_currency,
        tags=tags.by_mark,
    )
    test_query = tags.fill_in_query(made.query)
    became = decode(draft.category, test_query.encode(), app_currency, privacy=False)
    if isinstance(became, Rejection):
        place = _PLACES[became.reason]
        if not any(note.is_error and note.place == place for note in notes):
            missing = became.reason == "missing_event_token"
            message = "Enter what happened, such as signup." if missing else became.detail
            notes.append(Note(place, message, is_error=True))
    if any(note.is_error for note in notes) or not isinstance(became, Event):
        return Snippet(tuple(notes), encoding, currency, values=values, json_error=json_error)

    url = tags.written(made.url)
    for name, message in _notes_on_values(draft, values or {}, tags, params):
        place = places[name]
        notes.append(Note(place, f"“{name}”: {message}" if place == "json" else message))
    notes += _notes_on_the_whole(draft, became, made, url, tags)
    if has_tagged_values and draft.target == "sendgrid":
        notes.append(Note("target", _SENDGRID))
    if any(sent != (values or {})[name] for name, sent in params.items() if name not in SPECIAL_FIELDS):
        notes.append(Note("target", _QUOTES + " Custom HTML has no such trouble." * (draft.target == "gtm")))
    return Snippet(
        notes=tuple(notes),
        encoding=encoding,
        currency=currency,
        amount=amount if isinstance(amount, int) else None,
        values=values,
        blocks=blocks(draft.target, made),
        url=url,
        test_url=f"{made.address}?{test_query}",
        event=became,
    )


_SENDGRID = (
    "SendGrid has no filter that makes a value safe in an address: a + in an e-mail address arrives as a space. "
    "Hand such values over URL-encoded."
)
_QUOTES = (
    'If what stands in an address for a tag has a " or a backslash in it, the hit is recorded without your own values.'
)

_PLACES = {
    "missing_event_token": "event_token",
    "invalid_event_token": "event_token",
    "missing_amount": "amount",
    "invalid_amount": "amount",
    "invalid_currency": "currency",
    "invalid_event_id": "event_id",
    "query_too_long": "params",
}
"""Where in the form the reason for a rejection is."""


def _values(draft: Draft, notes: list[Note]) -> tuple[dict[str, Any] | None, dict[str, str], InvalidJson | None]:
    """The custom values, or None where they cannot be read; and at which place of the form each stands."""
    if draft.view == "json":
        try:
            values, repeated = read_json(draft.json)
        except InvalidJson as error:
            notes.append(Note("json", str(error), is_error=True))
            return None, {}, error
        notes += [Note("json", f"“{name}” is there twice: the last one counts.") for name in repeated]
        return values, dict.fromkeys(values, "json"), None

    values, places, readable = dict[str, Any](), dict[str, str](), True
    for index, row in enumerate(draft.rows):
        if row.is_blank:
            continue
        place = f"row-{index}"
        try:
            value = read_row(row)
        except InvalidValue as error:
            notes.append(Note(place, str(error), is_error=True))
            readable = False
            continue
        if row.name in places:
            notes.append(Note(places[row.name], f"“{row.name}” is there twice: the last one counts."))
        values[row.name], places[row.name] = value, place
    return values if readable else None, places, None


def _amount(draft: Draft, currency: str, tags: "_MergeTags", notes: list[Note]) -> int | str | None:
    """Minor units, or the mark of a merge tag; None where there are none."""
    typed = draft.amount.strip()
    if draft.category == "event":
        if typed:
            notes.append(Note("amount", "Only category revenue records an amount; this one is left out."))
        return None
    if not typed:
        notes.append(Note("amount", "Enter the amount, such as 25.00; a refund is negative.", is_error=True))
        return None
    marked = tags.marked(typed, "amount")
    if marked != typed:
        minor = f"in {currency}'s smallest unit, without decimals" if MINOR_UNITS[currency] else "without decimals"
        if draft.target in MAILERS:
            notes.append(Note("amount", f"What the tag becomes must be a whole number {minor}, or hits are rejected."))
        elif MINOR_UNITS[currency]:
            fix = f"Custom HTML takes the variable as money, such as 25.00; for Custom Image it must be one {minor}."
            notes.append(Note("amount", fix))
        return marked
    try:
        return read_money(typed, currency)
    except InvalidValue as error:
        notes.append(Note("amount", str(error), is_error=True))
        return None


def _notes_on_values(
    draft: Draft, values: Mapping[str, Any], tags: "_MergeTags", params: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """What to say about each custom value, by name."""
    found: list[tuple[str, str]] = []
    for name, sent in params.items():
        lost = _lost(name, tags.filled_in(sent))
        found += [(name, message) for message in lost]
        if name == "access_token" and draft.target in PUBLIC:
            found.append((name, "Everybody can read it in the source. Send it from your own server instead."))
        elif name in SPECIAL_FIELDS and not lost and sent == values[name] and draft.target in STATIC | MAILERS:
            fix = "Choose a merge tag" if draft.target in MAILERS else "Let your template fill in each one's own"
            found.append((name, f"It is the same for everybody, so all hits count as one person's. {fix}."))
    return found


def _lost(name: str, value: object) -> list[str]:
    """What of one custom value is not recorded, or not as it was typed."""
    query = urlencode({"event_token": "t", "params": encode_params({name: value}, "url")}, quote_via=quote)
    event = decode("event", query.encode(), "USD", privacy=False)
    if isinstance(event, Rejection):
        return []  # too long; said of the whole
    messages = [_LOST[warning] for warning in event.warnings if warning in _LOST]
    if "ignored_fields" in event.warnings:
        where = "A field in it is" if name in json.loads(event.params) else "It is"
        messages.append(f"{where} ignored: names that are empty, begin with $ or _ or have a dot are not recorded.")
    if not event.warnings and name not in SPECIAL_FIELDS and (kept := json.loads(event.params)[name]) != value:
        messages.append(f"It is recorded as {json.dumps(kept, ensure_ascii=False)}: send such large numbers as text.")
    if name != name.strip():
        messages.append("Its name begins or ends with a space.")
    return messages


_LOST = {
    "too_deep": f"What is nested deeper than {MAX_LEVELS} levels is ignored.",
    "invalid_email": "Not one e-mail address, so it is ignored.",
    "invalid_uuid": f"uuid is your own id of the user, 1 to {MAX_UUID} characters or a whole number; this is ignored.",
    "invalid_fbid": "fbid is a Facebook user's number, 1 to 20 digits; this is ignored.",
}


def _notes_on_the_whole(draft: Draft, event: Event, made: Pixel, url: str, tags: "_MergeTags") -> list[Note]:
    notes: list[Note] = []
    if event.event_token != draft.event_token and not tags.by_mark:
        notes.append(Note("event_token", f"Recorded as “{event.event_token}”, without the spaces around it."))
    if event.event_id and made.sent["event_id"] not in tags.by_mark and draft.target in PUBLIC:
        notes.append(
            Note(
                "event_id",
                "It is the same on every load, so only the first hit in 30 days is counted. "
                "Leave it out, or let your template fill in the number of each order.",
            )
        )
    if "too_many_fields" in event.warnings:
        notes.append(Note("params", f"Only the first {MAX_FIELDS} fields are recorded; there are {len(made.params)}."))
    if len(url) > LONG_URL:
        notes.append(Note("params", _long(made, url)))
    if draft.target == "amp" and not url.startswith("https:"):
        notes.append(Note("target", "AMP loads https addresses only; this server's is not."))
    return notes


def _long(made: Pixel, url: str) -> str:
    message = f"The address has {len(url):,} characters; some mail clients and proxies cut addresses at {LONG_URL:,}."
    if not made.tags:
        other: Encoding = "url" if made.encoding == "base64" else "base64"
        length = len(msgspec.structs.replace(made, encoded=encode_params(made.params, other)).url)
        if length < len(url) * 0.95:
            name = "URL-encoded" if other == "url" else "as Base64"
            return f"{message} {name[0].upper()}{name[1:]} it has {length:,}."
    return f"{message} Send fewer or shorter values."


class _MergeTags:
    """The merge tags of a draft's target among what was typed; each is a mark until the snippet is written down."""

    def __init__(self, draft: Draft) -> None:
        merging = MERGING.get(draft.target)
        self._pattern = merging and merging.pattern
        self._in_address = merging.in_address if merging else str
        # A mark must not be anything that was typed.
        typed = msgspec.json.encode(draft).decode("utf-8", "replace")
        taken = set(re.findall("tag([0-9]+)n", typed))
        self._salt = next(f"tag{number}n" for number in range(len(taken) + 1) if str(number) not in taken)
        self.by_mark: dict[str, str] = {}
        self._examples: dict[str, str] = {}

    def marked(self, value: Any, field: str) -> Any:
        """`value` with each text in it that is a merge tag replaced by a mark."""
        if isinstance(value, str):
            if self._pattern is None or not self._pattern.fullmatch(value):
                return value
            mark = f"{self._salt}{len(self.by_mark)}z"
            self.by_mark[mark] = value
            self._examples[mark] = _EXAMPLES.get(field) or re.sub(r"[^A-Za-z0-9]+", " ", value).strip() or "x"
            return mark
        if isinstance(value, dict):
            return {name: self.marked(part, field) for name, part in cast("dict[str, Any]", value).items()}
        if isinstance(value, list):
            return [self.marked(part, field) for part in cast("list[Any]", value)]
        return value

    def filled_in(self, value: Any) -> Any:
        """`value` with an example for each mark."""
        if isinstance(value, str):
            return self._examples.get(value, value)
        if isinstance(value, dict):
            return {name: self.filled_in(part) for name, part in cast("dict[str, Any]", value).items()}
        if isinstance(value, list):
            return [self.filled_in(part) for part in cast("list[Any]", value)]
        return value

    def fill_in_query(self, query: str) -> str:
        """A query string with an example for each mark."""
        for mark, example in self._examples.items():
            query = query.replace(mark, quote(example))
        return query

    def written(self, url: str) -> str:
        """A URL with each mark as the snippet has it."""
        for mark, tag in self.by_mark.items():
            url = url.replace(mark, self._in_address(tag))
        return url


_EXAMPLES = {"email": "reader@example.com", "uuid": "12345", "fbid": "12345", "amount": "2500", "event_id": "12345"}
