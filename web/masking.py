"""Whose e-mail addresses a page shows: members and owners see them whole, viewers enough to tell them apart.

The API's keys are given out by members: it shows all.
"""

import re
from urllib.parse import unquote

from jinja2 import pass_context
from jinja2.runtime import Context

from web.guards import Me

# Anything that reads as an address in other text, percent-encoded however often: better too much than too little.
_ADDRESS = re.compile(r"""[^\s"<>(),;:@\\]+(?:@|%(?:25)*40)[^\s"'<>(),;:&=@\\]+""")
# Of a query only the one value.
_ADDRESS_IN_QUERY = re.compile(r"""[^\s"<>(),;:&=@\\]+(?:@|%(?:25)*40)[^\s"'<>(),;:&=@\\]+""")
_AT = re.compile("@|%(?:25)*40")


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
    return text if _whole(context) else _ADDRESS.sub(lambda found: masked(found[0]), text)


@pass_context
def private_query(context: Context, query: str) -> str:
    """A query as it was sent, for whoever sees the page; viewers see that there were `params`, not which."""
    if _whole(context):
        return query
    parts = (part.partition("=") for part in query.split("&"))
    # The values may be Base64, in which no address can be found.
    shown = "&".join(f"{name}=…" if _is_params(name) else f"{name}{equals}{value}" for name, equals, value in parts)
    return _ADDRESS_IN_QUERY.sub(lambda found: masked(found[0]), shown)


def _is_params(name: str) -> bool:
    """Whether a parameter of this name is read as `params`, however it is encoded."""
    return re.fullmatch("(?:amp;)*params", unquote(name).strip(), re.IGNORECASE) is not None


FILTERS = {"email": email, "private": private, "private_query": private_query}
