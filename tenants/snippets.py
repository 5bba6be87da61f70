"""What a customer copies: the address of a pixel, and the tag that loads it."""

import base64
import html
import json
from collections.abc import Mapping
from typing import Literal
from urllib.parse import quote, urlencode

from tenants.hits import Category, Event, Rejection, decode


def encode_params(values: Mapping[str, object], encoding: Literal["base64", "url"]) -> str:
    """Custom values as the `params` parameter's value, not yet escaped for a query string.

    `base64` is padded and of the standard alphabet; `url` is the JSON text itself, for the escaping alone to
    encode. Raises TypeError or ValueError for values that JSON in UTF-8 cannot hold (NaN, lone surrogates).
    """
    text = json.dumps(dict(values), ensure_ascii=False, allow_nan=False)
    data = text.encode()
    return base64.b64encode(data).decode() if encoding == "base64" else text


def pixel_url(
    base_url: str,
    app_token: str,
    category: Category,
    event_token: str,
    *,
    params: Mapping[str, object] | None = None,
    encoding: Literal["base64", "url"] = "base64",
    amount: int | None = None,
    currency: str | None = None,
    event_id: str | None = None,
) -> str:
    """The address of a pixel; `amount` is in the currency's minor unit.

    Raises ValueError, with the sentence for people, where a hit on that address would be rejected.
    """
    sent = {
        "event_token": event_token,
        "amount": amount,
        "currency": currency,
        "event_id": event_id,
        "params": encode_params(params, encoding) if params else None,
    }
    query = urlencode({name: value for name, value in sent.items() if value is not None}, quote_via=quote)
    # Any listed currency serves: the app's own is not known here, and cannot be wrong.
    match decode(category, query.encode(), "USD", privacy=False):
        case Rejection(detail=detail):
            raise ValueError(detail)
        case Event():
            pass
    return f"{base_url.rstrip('/')}/{app_token}/{category}.gif?{query}"


def img_tag(url: str) -> str:
    """The HTML of an image that loads `url`, takes no place on the page, and is silent in screen readers."""
    # Not display:none, loading="lazy" or an offset: with each of them some client never loads it.
    style = "position:absolute;border:0;opacity:0"
    return f'<img src="{html.escape(url)}" width="1" height="1" alt="" style="{style}">'
