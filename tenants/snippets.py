"""What a customer copies: the address of a pixel, and the tag that loads it."""

import base64
import html
import json
from collections.abc import Mapping
from typing import Literal
from urllib.parse import quote, urlencode

import msgspec

from tenants.hits import Category, Event, Rejection, decode

Encoding = Literal["base64", "url"]


class Pixel(msgspec.Struct, frozen=True):
    """What a pixel sends, ready to be written down.

    `address` is without a query; `sent` holds the parameters but `params`, in their order; `encoded` is the value of
    `params`, if any, as `encoding` says. Merge tags stand in all of it as marks, the keys of `tags`: letters and
    digits only, which no language escapes. `currency` is that of the amount.
    """

    address: str
    sent: Mapping[str, str | int]
    params: Mapping[str, object]
    encoded: str | None
    encoding: Encoding
    currency: str
    tags: Mapping[str, str] = {}

    @property
    def query(self) -> str:
        """The query string that a browser sends."""
        everything = {**self.sent, **({} if self.encoded is None else {"params": self.encoded})}
        return urlencode(everything, quote_via=quote)

    @property
    def url(self) -> str:
        """The address that a browser loads."""
        return f"{self.address}?{self.query}"


def encode_params(values: Mapping[str, object], encoding: Encoding) -> str:
    """Custom values as the `params` parameter's value, not yet escaped for a query string.

    `base64` is padded and of the standard alphabet; `url` is the JSON text itself, for the escaping alone to
    encode. Raises TypeError or ValueError for values that JSON in UTF-8 cannot hold (NaN, lone surrogates).
    """
    text = json.dumps(dict(values), ensure_ascii=False, allow_nan=False)
    data = text.encode()
    return base64.b64encode(data).decode() if encoding == "base64" else text


def pixel(
    base_url: str,
    app_token: str,
    category: Category,
    event_token: str,
    *,
    params: Mapping[str, object] | None = None,
    encoding: Encoding = "base64",
    amount: int | str | None = None,
    currency: str | None = None,
    event_id: str | None = None,
    app_currency: str = "USD",
    tags: Mapping[str, str] | None = None,
) -> Pixel:
    """The pixel that sends these values, not checked; `amount` is in the currency's minor unit, or a mark of `tags`.

    Without a `currency` the app's counts.
    """
    sent = {"event_token": event_token, "amount": amount, "currency": currency, "event_id": event_id}
    return Pixel(
        address=f"{base_url.rstrip('/')}/{app_token}/{category}.gif",
        sent={name: value for name, value in sent.items() if value is not None},
        params=params or {},
        encoded=encode_params(params, encoding) if params else None,
        encoding=encoding,
        currency=currency or app_currency,
        tags=tags or {},
    )


def pixel_url(
    base_url: str,
    app_token: str,
    category: Category,
    event_token: str,
    *,
    params: Mapping[str, object] | None = None,
    encoding: Encoding = "base64",
    amount: int | None = None,
    currency: str | None = None,
    event_id: str | None = None,
) -> str:
    """The address of a pixel; `amount` is in the currency's minor unit.

    Raises ValueError, with the sentence for people, where a hit on that address would be rejected.
    """
    made = pixel(
        base_url,
        app_token,
        category,
        event_token,
        params=params,
        encoding=encoding,
        amount=amount,
        currency=currency,
        event_id=event_id,
    )
    # Any listed currency serves: the app's own is not known here, and cannot be wrong.
    match decode(category, made.query.encode(), "USD", privacy=False):
        case Rejection(detail=detail):
            raise ValueError(detail)
        case Event():
            return made.url


def img_tag(url: str) -> str:
    """The HTML of an image that loads `url`, takes no place on the page, and is silent in screen readers."""
    # Not display:none, loading="lazy" or an offset: with each of them some client never loads it.
    style = "position:absolute;border:0;opacity:0"
    return f'<img src="{html.escape(url)}" width="1" height="1" alt="" style="{style}">'
