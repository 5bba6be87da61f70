"""Whose e-mail addresses a page shows: members and owners see them whole, viewers enough to tell them apart.

The API's keys are given out by members: it shows all.
"""

import hashlib
import re
import secrets
from collections.abc import Sequence
from urllib.parse import unquote

from jinja2 import pass_context
from jinja2.runtime import Context

from web.guards import Me

_SALT = secrets.token_bytes(32)
# Where an address may be in other text, and in a query only in the one value: better too much than too little. The text
# is taken apart in one pass, since strangers wrote it.
_RUN = re.compile(r"""[^\s"<>(),;:\\]+""")
_RUN_IN_QUERY = re.compile(r"""[^\s"<>(),;:&=\\]+""")
# Percent-encoded however often.
_AT = re.compile("(@|%(?:25)*40)")
_HOST_ENDS = re.compile("(?=['&=])")
# Parameters whose values viewers see. Others may be `params` misspelt, whose Base64 hides what they may not see.
_SHOWN = frozenset(("event_token", "event_id", "amount", "currency", "debug"))


def masked(address: str) -> str:
    """`ann@example.org` as `a…@example.org`."""
    name, at, host = _parts(address)
    return f"{name[:1]}…{at}{host}"


def _parts(address: str) -> tuple[str, str, str]:
    # The last one: all that stands before may be other addresses.
    found = next(reversed(list(_AT.finditer(address))), None)
    return (address[: found.start()], found[0], address[found.end() :]) if found else (address, "", "")


def _whole(context: Context) -> bool:
    me: Me | None = context.get("me")
    return me is not None and me.may_change


@pass_context
def email(context: Context, address: str) -> str:
    """An address, for whoever sees the page."""
    return address if _whole(context) else masked(address)


@pass_context
def private(context: Context, text: str) -> str:
    """A text that may have addresses in it, for whoever sees the page."""
    return text if _whole(context) else _RUN.sub(_hidden, text)


@pass_context
def private_query(context: Context, query: str) -> str:
    """A query as it was sent, for whoever sees the page; viewers see that there were `params`, not which."""
    if _whole(context):
        return query
    parts = (part.partition("=") for part in query.split("&"))
    shown = "&".join(
        f"{name}{equals}{value if _is_shown(name) else '…'}" if equals else name for name, equals, value in parts
    )
    return _RUN_IN_QUERY.sub(_hidden, shown)


def _hidden(run: re.Match[str]) -> str:
    """Text without spaces, with of each name before an @ only the first letter."""
    name, *rest = _AT.split(run[0])
    shown: list[str] = []
    for at, after in zip(rest[::2], rest[1::2], strict=True):
        shown += [name[:1], "…" if name else "", at]
        # What another @ follows is a name as a whole, unless something ends the host before.
        host, *more = _HOST_ENDS.split(after, maxsplit=1)
        shown += [host] if more else []
        name = more[0] if more else after
    return "".join([*shown, name])


def _is_shown(name: str) -> bool:
    """Whether a parameter of this name, however it is encoded, holds nothing that may be somebody's."""
    return unquote(name).strip().lower().rpartition("amp;")[2] in _SHOWN


@pass_context
def unordered(context: Context, texts: Sequence[str]) -> Sequence[str]:
    """The same texts, for viewers in no order that tells them apart: who can have some added could compare."""
    if _whole(context):
        return texts
    return sorted(texts, key=lambda text: hashlib.blake2b(text.encode(errors="replace"), key=_SALT).digest())


FILTERS = {"unordered": unordered, "email": email, "private": private, "private_query": private_query}
