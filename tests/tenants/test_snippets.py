"""The snippet a customer copies makes the hit it promises."""

import base64
import json
from html.parser import HTMLParser
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import pytest

from tenants.hits import Category, Event, decode
from tenants.snippets import encode_params, img_tag, pixel_url

TOKEN = "0123456789abcdef01234567"
SIGNUP = {"method": "email", "page": "signup.html", "email": "john.doe@example.com"}
SIGNUP_BASE64 = "eyJtZXRob2QiOiAiZW1haWwiLCAicGFnZSI6ICJzaWdudXAuaHRtbCIsICJlbWFpbCI6ICJqb2huLmRvZUBleGFtcGxlLmNvbSJ9"


def test_the_signup_pixel_gives_its_values_and_its_person() -> None:
    url = pixel_url("https://px.example/", TOKEN, "event", "signup", params=SIGNUP)
    assert url == f"https://px.example/{TOKEN}/event.gif?event_token=signup&params={SIGNUP_BASE64}"
    event = decode("event", urlsplit(url).query.encode(), "USD", privacy=False)
    assert isinstance(event, Event)
    assert json.loads(event.params) == {"method": "email", "page": "signup.html"}
    assert event.email == "john.doe@example.com"


def test_base64_is_padded_and_of_the_standard_alphabet() -> None:
    assert encode_params(SIGNUP, "base64") == SIGNUP_BASE64
    assert encode_params({"t": "ÿÿÿ>>>???"}, "base64") == base64.b64encode('{"t": "ÿÿÿ>>>???"}'.encode()).decode()


def test_url_is_the_json_text() -> None:
    assert encode_params({"név": "a & b"}, "url") == '{"név": "a & b"}'


@pytest.mark.parametrize("encoding", ["base64", "url"])
def test_a_purchase_pixel_carries_all_it_was_given(encoding: Literal["base64", "url"]) -> None:
    url = pixel_url(
        "http://127.0.0.1:8000",
        TOKEN,
        "revenue",
        "check out",
        params={"t": "ÿÿÿ>>>???", "q": 'a&b="c"+%41'},
        encoding=encoding,
        amount=-2500,
        currency="eur",
        event_id="order&1",
    )
    assert parse_qs(urlsplit(url).query)["event_id"] == ["order&1"]
    event = decode("revenue", urlsplit(url).query.encode(), "USD", privacy=False)
    assert isinstance(event, Event)
    assert json.loads(event.params) == {"t": "ÿÿÿ>>>???", "q": 'a&b="c"+%41'}
    assert (event.event_token, event.amount, event.currency) == ("check out", -2500, "EUR")
    assert (event.event_id, event.warnings) == ("order&1", ())


@pytest.mark.parametrize(
    ("category", "given", "names"),
    [
        ("event", {"event_token": " "}, "event_token"),
        ("revenue", {}, "amount"),
        ("revenue", {"amount": 10**16}, "amount"),
        ("revenue", {"amount": 1, "currency": "ZZZ"}, "ZZZ"),
        ("event", {"event_id": "x" * 129}, "event_id"),
        ("event", {"params": {"a": "x" * 8_000}}, "8,000"),
        ("event", {"params": {"a": float("nan")}}, "JSON"),
        ("event", {"params": {"a": "\ud800"}}, "surrogates"),
    ],
)
def test_no_pixel_is_made_that_would_be_rejected(category: Category, given: dict[str, Any], names: str) -> None:
    sent: dict[str, Any] = {"event_token": "t"}
    with pytest.raises(ValueError, match=names):
        pixel_url("https://px.example", TOKEN, category, **{**sent, **given})


def test_the_tag_loads_the_url_and_shows_nothing() -> None:
    url = pixel_url("https://px.example", TOKEN, "event", "t", event_id="1") + "&x=\"'<>"
    tag = img_tag(url)
    images: list[dict[str, str | None]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            images.append({"tag": tag, **dict(attrs)})

    Reader().feed(tag)
    (image,) = images
    assert (image["tag"], image["src"]) == ("img", url)
    assert (image["width"], image["height"], image["alt"]) == ("1", "1", "")
    assert "event_token=t&amp;event_id=1" in tag
    # A client that does not lay an image out may not load it.
    assert "display" not in tag
    assert "loading" not in tag
