"""What somebody sent with a form."""

import unicodedata
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode

from litestar.datastructures import FormMultiDict

from tenants.errors import InvalidValue


def text(form: FormMultiDict, name: str) -> str:
    """A field as text; a file, which no form of ours sends, is none."""
    value = form.get(name)
    return value if isinstance(value, str) else ""


def is_name(typed: str, name: str) -> bool:
    """Whether somebody typed the name that a page asked for, as it looks: several spaces are one, é is one or two."""
    return _as_seen(typed) == _as_seen(name)


def _as_seen(text: str) -> list[str]:
    # No name is longer, and composing takes quadratic time.
    return unicodedata.normalize("NFC", text[:1_000]).split()


class Clash(InvalidValue):
    """Somebody else changed the field since the form was opened; it is opened again with `shown`."""

    def __init__(self, field: str, now: str, shown: str) -> None:
        other = f"changed this to “{now}”" if now else "emptied this"
        super().__init__(field, f"Somebody else {other} meanwhile. Save again to have it as you typed it.")
        self.shown = shown


def merged(form: FormMultiDict, typed: Mapping[str, str], kept: Mapping[str, str]) -> dict[str, str]:
    """What was typed, but where nothing was what is `kept` by now: two people may have one form open.

    The form says in `shown` what it was opened with; one that does not is taken as it is. Raises Clash for a field that
    both changed, unless to the same.
    """
    shown = dict(parse_qsl(text(form, "shown"), keep_blank_values=True))
    values = dict(typed)
    for name, value in typed.items():
        if shown.get(name, kept[name]) == kept[name]:
            continue
        if value not in (shown[name], kept[name]):
            raise Clash(name, kept[name], urlencode({**shown, name: kept[name]}))
        values[name] = kept[name]
    return values


def shown_again(form: FormMultiDict, error: InvalidValue | None) -> str:
    """What a form was opened with that comes back because of an error."""
    return error.shown if isinstance(error, Clash) else text(form, "shown")
