"""What is typed into the generator gives exactly that hit, wherever the snippet is pasted; notes say what surprises."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from typing import Any, cast
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants.drafts import Draft, Snippet, build
from tenants.hits import Event, decode
from tenants.targets import MERGING, TARGETS, Target
from tenants.typed_params import Row, rows_of

BASE = "https://px.example"
TOKEN = "0123456789abcdef01234567"
SEED = {"method": "email", "page": "signup.html", "email": "john.doe@example.com"}

# Each ends a text, a tag, a script or a command somewhere, or is something else to one of the targets.
# fmt: off
HOSTILE = [
    '\'"`\\', "</script><script>alert(1)</script>", "<!--", "-->", "]]>", "&amp;&quot;&lt;", "$HOME", "$(id)",
    "`id`", "!!", "%41", "%zz", "+a", "b+", "#x", "?y=z&w", "{{Page", "*|FNAME|*", "{$x}", "${x}", "?>", "<?php",
    "\\u0041", "\\'", '\\"', "*|URL:X|*", "{%", "RANDOM", "CLIENT_ID(x)", "TITLE", "--", "/*", "*/", "//",
    "{{Page URL}}", "'; rm -rf ~ #", "a\nb\r\n\tc", "\x00\x1b[0m\x7f", "\u2028\u2029\u202e", "ÿ 😀 név", " x ", "",
    "tag0n0z",
]
# fmt: on
VALUES: dict[str, Any] = {
    **{f"t{index}": text for index, text in enumerate(HOSTILE)},
    "'\"</script>\\": "name",
    "0": "zero",
    "1": "one",
    "numbers": [0, -1, 2**53, 2**53 + 1, 2**63 - 1, 1.5, -1e22, 1e-7],
    "others": [True, False, None, {}, [], {"0": [], "1": {"a": {}}}, "{{x"],
}


def the_event(url: str) -> Event:
    parts = urlsplit(url)
    assert f"{parts.scheme}://{parts.netloc}" == BASE
    assert parts.path == f"/{TOKEN}/{'revenue' if 'revenue' in parts.path else 'event'}.gif"
    event = decode("revenue" if "revenue" in parts.path else "event", parts.query.encode(), "USD", privacy=False)
    assert isinstance(event, Event)
    return event


def made(draft: Draft) -> Snippet:
    snippet = build(draft, BASE, TOKEN, "USD")
    assert [note for note in snippet.notes if note.is_error] == []
    return snippet


class _Tags(HTMLParser):
    def __init__(self, code: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(code)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def _image(code: str) -> str:
    tags = _Tags(code)
    ((name, attributes),) = tags.found
    assert name in ("img", "amp-pixel")
    assert tags.text == ""
    if name == "img":
        assert (attributes["width"], attributes["height"], attributes["alt"]) == ("1", "1", "")
        assert set(attributes) == {"src", "width", "height", "alt", "style"}
    return attributes.get("src") or ""


def _in_noscript(code: str) -> str:
    # html.parser reads the inside of noscript as text or as tags, by version.
    inside = re.fullmatch(r"<noscript>(.*)</noscript>", code, re.DOTALL)
    assert inside is not None
    assert "<" not in inside[1][1:]
    return _image(inside[1])


def _in_amp(code: str) -> str:
    source = _image(code)
    before, buster, after = source.rpartition("&cb=RANDOM")
    assert (buster, after) == ("&cb=RANDOM", "")
    assert re.search("[A-Z_]{3}", before) is None, "AMP would replace a variable's name"
    return source


def _in_shell(code: str) -> str:
    *options, url = shlex.split(code)
    assert options[:4] == ["curl", "--silent", "--show-error", "--output"]
    return url


def _from_python(code: str) -> str:
    ast.parse(code)
    loaded: list[str] = []

    class Answer:
        def close(self) -> None: ...

    def urlopen(url: str, timeout: int) -> Answer:
        loaded.append(url)
        return Answer()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(urllib.request, "urlopen", urlopen)
        exec(compile(code, "snippet", "exec"), {})
    return loaded[0]


def _from_scripts(codes: list[str]) -> list[str]:
    """What each script loads, in Node's own engine; `new Image()` and `fetch()` tell."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    program = """
        const vm = require("vm");
        const loaded = JSON.parse(require("fs").readFileSync(0, "utf8")).map((code) => {
          let url = "";
          class Image { set src(value) { url = value; } }
          const fetch = (value) => { url = value; return Promise.resolve(); };
          vm.runInNewContext(code, { Image, fetch, URLSearchParams, console });
          return url;
        });
        console.log(JSON.stringify(loaded));
    """
    done = subprocess.run([node, "-e", program], input=json.dumps(codes), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _inline_script(code: str) -> str:
    tags = _Tags(code)
    assert [name for name, _ in tags.found] == ["script"]
    assert code.lower().count("</script") == 1
    return tags.text


READERS: dict[Target, Callable[[str], str]] = {
    "html": _image,
    "noscript": _in_noscript,
    "mailchimp": _image,
    "sendgrid": _image,
    "klaviyo": _image,
    "email": _image,
    "amp": _in_amp,
    "url": str,
    "curl": _in_shell,
    "python": _from_python,
}


# --- Stories


def test_the_seed_example_is_exactly_that_pixel() -> None:
    typed = '{"method": "email", "page": "signup.html", "email": "john.doe@example.com"}'
    snippet = made(Draft(category="event", event_token="signup", view="json", json=typed, encoding="base64"))
    (block,) = snippet.blocks
    url = _image(block.code)
    assert url == snippet.url == snippet.test_url
    assert url == (
        f"{BASE}/{TOKEN}/event.gif?event_token=signup&params="
        "eyJtZXRob2QiOiAiZW1haWwiLCAicGFnZSI6ICJzaWdudXAuaHRtbCIsICJlbWFpbCI6ICJqb2huLmRvZUBleGFtcGxlLmNvbSJ9"
    )
    event = the_event(url)
    assert json.loads(event.params) | {"email": event.email} == SEED
    assert (event.event_token, event.warnings) == ("signup", ())


@pytest.mark.parametrize("encoding", ["base64", "url"])
@pytest.mark.parametrize("target", READERS)
def test_hostile_values_arrive_as_they_were_typed(target: Target, encoding: Any) -> None:
    for text in HOSTILE:
        if not text.strip():
            continue
        typed = Draft(
            category="revenue",
            event_token=re.sub(r"[\x00-\x1f\x7f]", "", text).replace("*|", "*").replace("{{", "{"),
            amount="-25.00",
            currency="EUR",
            event_id=re.sub(r"[\x00-\x1f\x7f]", "", text).replace("*|", "*").replace("{{", "{"),
            rows=tuple(rows_of({"value": text.replace("{{", "{").replace("*|", "*")})),
            encoding=encoding,
            target=target,
        )
        for block in made(typed).blocks:
            event = the_event(READERS[target](block.code))
            assert event.event_token == typed.event_token.strip()
            assert event.event_id == typed.event_id.strip()
            assert (event.amount, event.currency) == (-2500, "EUR")
            assert json.loads(event.params)["value"] == text.replace("{{", "{").replace("*|", "*")


@pytest.mark.parametrize("encoding", ["base64", "url"])
def test_all_hostile_values_at_once_arrive_in_python(encoding: Any) -> None:
    (block,) = made(Draft(event_token="t", rows=tuple(rows_of(VALUES)), encoding=encoding, target="python")).blocks
    assert json.loads(the_event(_from_python(block.code)).params) == VALUES


@pytest.mark.parametrize("encoding", ["base64", "url"])
@pytest.mark.parametrize("target", ["javascript", "node", "gtm"])
def test_hostile_values_arrive_from_scripts(target: Target, encoding: Any) -> None:
    wanted: list[dict[str, Any]] = [{"value": text} for text in HOSTILE if text not in ("{{Page URL}}",)]
    wanted += [{name: value} for name, value in VALUES.items()]
    wanted = [values for values in wanted if not any(_is_tag(target, value) for value in values.values())]
    codes: list[str] = []
    for values in wanted:
        blocks = made(Draft(event_token="t", rows=tuple(rows_of(values)), encoding=encoding, target=target)).blocks
        code = _inline_script(blocks[1].code) if target == "gtm" else blocks[-1].code
        if target == "gtm":
            assert "{{" not in code
        assert "</" not in code
        assert "<!--" not in code
        codes.append(code)
    for url, values in zip(_from_scripts(codes), wanted, strict=True):
        assert json.loads(the_event(url).params) == values


def _is_tag(target: Target, value: object) -> bool:
    return target in MERGING and isinstance(value, str) and MERGING[target].pattern.fullmatch(value) is not None


def test_both_scripts_for_a_page_send_the_same_hit() -> None:
    first, second = made(Draft(event_token="a b", target="javascript")).blocks
    urls = _from_scripts([first.code, second.code])
    assert [re.sub("cb=[0-9.e-]+", "cb=", url) for url in urls] == [f"{BASE}/{TOKEN}/event.gif?event_token=a+b&cb="] * 2


_PHP_TEXT = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def _php_text(literal: str) -> str:
    inside = literal[1:-1]
    if literal[0] == "'":
        return re.sub(r"\\([\\'])", r"\1", inside)
    assert re.search(r'(?<!\\)(?:\\\\)*[$"]', inside) is None, "PHP would put a variable here"
    return re.sub(r'\\u\{([0-9a-f]+)\}|\\([\\"$])', lambda at: chr(int(at[1], 16)) if at[1] else at[2], inside)


def test_every_text_in_php_is_the_text_that_was_typed() -> None:
    (block,) = made(
        Draft(event_token="t", rows=tuple(rows_of(VALUES | {"numbers": 1})), encoding="url", target="php")
    ).blocks
    texts = [_php_text(literal) for literal in _PHP_TEXT.findall(block.code)]
    for text in (*HOSTILE, *VALUES):
        assert text in texts
    # What is left between the texts is code, and none of it was typed.
    assert re.fullmatch(r"[\s\[\]()=>,;.$@\w+-]*", _PHP_TEXT.sub("", block.code))


@pytest.mark.skipif(shutil.which("php") is None, reason="PHP is not installed")
@pytest.mark.parametrize("encoding", ["base64", "url"])
def test_php_sends_the_values_that_were_typed(encoding: Any) -> None:
    for values in (
        ({"value": text} for text in HOSTILE) if encoding == "base64" else ({n: v} for n, v in VALUES.items())
    ):
        (block,) = made(Draft(event_token="t", rows=tuple(rows_of(values)), encoding=encoding, target="php")).blocks
        program = f"namespace snippet; function file_get_contents($url) {{ echo $url; }}\n{block.code}"
        done = subprocess.run(["php", "-r", program], capture_output=True, text=True, check=True)
        assert json.loads(the_event(done.stdout).params) == values


# --- Merge tags


def _mailer(code: str, merge: Mapping[str, str]) -> str:
    """The code with merge tags filled in as the mailer does it, without knowing what is around them."""
    for tag, value in merge.items():
        assert tag in code
        code = code.replace(tag, value)
    return code


READER = "o'neil+news@example.com"


@pytest.mark.parametrize(
    ("target", "tag", "written", "value"),
    [
        ("mailchimp", "*|EMAIL|*", "*|URL:EMAIL|*", quote(READER, safe="")),
        ("mailchimp", "*|URL:EMAIL|*", "*|URL:EMAIL|*", quote(READER, safe="")),
        ("klaviyo", "{{ email }}", "{{ email|urlencode }}", quote(READER)),
        ("klaviyo", "{{email|urlencode}}", "{{email|urlencode}}", quote(READER)),
        # SendGrid has none: the value is handed over encoded.
        ("sendgrid", "{{email}}", "{{email}}", quote(READER, safe="")),
        # Google Tag Manager encodes what it puts into a Custom Image's address.
        ("gtm", "{{User email}}", "{{User email}}", quote(READER, safe="")),
    ],
)
def test_a_merge_tag_reaches_the_mailer_and_the_readers_address_reaches_us(
    target: Target, tag: str, written: str, value: str
) -> None:
    draft = Draft(event_token="opened", rows=(Row("email", "text", tag), Row("n", "text", "1&2")), target=target)
    snippet = made(draft)
    assert snippet.encoding == "url"
    assert any("Base64" in note.message for note in snippet.notes_at("encoding"))
    code = snippet.blocks[0].code
    sent = _mailer(code, {written: value})
    event = the_event(sent if target == "gtm" else _image(sent))
    assert event.email == READER
    assert json.loads(event.params) == {"n": "1&2"}
    assert snippet.event is not None
    assert snippet.event.email == "reader@example.com"
    assert the_event(snippet.test_url) == snippet.event


def test_tag_manager_fills_variables_into_a_script_as_values_of_their_own_type() -> None:
    draft = Draft(
        category="revenue",
        event_token="purchase",
        amount="{{DLV - ecommerce.value}}",
        event_id="{{Order}}",
        rows=(Row("plan", "text", "{{Plan}}"), Row("fixed", "text", "{{not a variable"), Row("n", "json", '["{{N}}"]')),
        target="gtm",
    )
    snippet = made(draft)
    # The one that reads data layers' money comes first.
    script, image = snippet.blocks
    assert any("Custom HTML" in note.message for note in snippet.notes_at("amount"))
    hostile = 'a"b\\c</script>\n'
    code = _mailer(
        _inline_script(script.code),
        {"{{DLV - ecommerce.value}}": "19.99", "{{Order}}": '"o-1"', "{{Plan}}": json.dumps(hostile), "{{N}}": "7"},
    )
    assert "{{" not in code
    event = the_event(_from_scripts([code])[0])
    assert (event.amount, event.event_id) == (1999, "o-1")
    assert json.loads(event.params) == {"plan": hostile, "fixed": "{{not a variable", "n": [7]}
    assert "amount={{DLV - ecommerce.value}}&event_id={{Order}}&" in image.code


@pytest.mark.parametrize(("filled", "uuid"), [('"o\'1\\"</"', "o'1\"</"), ("7", "7"), ("undefined", None)])
def test_tag_manager_fills_variables_into_values_with_a_large_number(filled: str, uuid: str | None) -> None:
    """Which travel as JSON text, since a script's numbers lose digits."""
    rows = (Row("n", "number", "10001234567890123"), Row("uuid", "text", "{{User ID}}"), Row("a", "text", "b"))
    _, script = made(Draft(event_token="t", rows=rows, target="gtm")).blocks
    event = the_event(_from_scripts([_mailer(_inline_script(script.code), {"{{User ID}}": filled})])[0])
    assert event.uuid == uuid
    assert json.loads(event.params) == {"n": 10001234567890123, "a": "b"}


def test_text_like_another_targets_merge_tag_is_text() -> None:
    snippet = made(Draft(event_token="t", rows=(Row("a", "text", "*|EMAIL|*"),), target="html"))
    assert snippet.encoding == "base64"
    assert json.loads(the_event(snippet.url).params) == {"a": "*|EMAIL|*"}


@pytest.mark.parametrize("target", sorted(MERGING))
def test_offered_tags_are_recognised(target: Target) -> None:
    for offered in MERGING[target].offered:
        assert MERGING[target].pattern.fullmatch(offered.tag)
        assert re.search('["<>&]', offered.tag) is None


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("mailchimp", '*|A"B|*'),
        ("mailchimp", "*|A|* and *|B|*"),
        ("klaviyo", '{{ x|default:"y" }}'),
        ("klaviyo", "{{ x }}{{ y }}"),
        ("gtm", '{{a"><script>}}'),
        ("sendgrid", "{{a b}}"),
        ("sendgrid", "{{{a}}}"),
    ],
)
def test_what_only_looks_like_a_merge_tag_is_text(target: Target, text: str) -> None:
    snippet = made(Draft(event_token="t", rows=(Row("a", "text", text),), target=target))
    assert json.loads(the_event(snippet.url).params) == {"a": text}


# --- Properties

_TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXTS
)
_NAMES = _TEXTS.filter(lambda name: name[:1] not in ("", "$", "_") and "." not in name and name not in SPECIAL)
SPECIAL = ("email", "uuid", "fbid", "access_token")
_VALUES = st.dictionaries(
    _NAMES,
    st.recursive(
        _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3), max_leaves=5
    ),
    max_size=4,
)


@given(_VALUES, st.sampled_from(["base64", "url"]), st.sampled_from(["rows", "json"]))
def test_what_is_typed_is_what_is_recorded(values: dict[str, Any], encoding: Any, view: Any) -> None:
    if any(len(json.dumps(value)) > 600 for value in values.values()) or _levels(values) > 5:
        return
    draft = Draft(event_token="t", view=view, rows=tuple(rows_of(values)), json=json.dumps(values), encoding=encoding)
    assert _same(json.loads(the_event(made(draft).url).params), values)


def _levels(value: Any) -> int:
    match value:
        case {}:
            return 1 + max(map(_levels, cast("dict[str, Any]", value).values()), default=0)
        case list():
            return max(map(_levels, cast("list[Any]", value)), default=0)
        case _:
            return 0


def _same(one: Any, other: Any) -> bool:
    return one == other and json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


# --- Notes

TOO_DEEP = json.dumps({"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}})
FIXED = Draft(event_token="t", event_id="order-1", rows=(Row("email", "text", "a@example.com"),))


def _cases() -> Iterator[tuple[str, Draft, str, str]]:
    def rows(*given: tuple[str, Any, str], **more: Any) -> Draft:
        return Draft(event_token="t", rows=tuple(Row(*row) for row in given), **more)

    yield "event token missing", Draft(), "event_token", "Enter what happened"
    yield "event token blank", Draft(event_token="  "), "event_token", "Enter what happened"
    yield "event token long", Draft(event_token="x" * 256), "event_token", "255"
    yield "event token with a line break", Draft(event_token="a\nb"), "event_token", "control"
    yield "event token with spaces", Draft(event_token=" a "), "event_token", "without the spaces"
    yield "amount missing", Draft(event_token="t", category="revenue"), "amount", "refund is negative"
    yield "amount unclear", Draft(event_token="t", category="revenue", amount="1,234"), "amount", "1234 or 1.23"
    yield "amount of an event", Draft(event_token="t", amount="5"), "amount", "left out"
    yield "currency unknown", Draft(event_token="t", currency="ZZZ"), "currency", "ISO 4217"
    yield "event id long", Draft(event_token="t", event_id="x" * 129), "event_id", "128"
    yield "event id fixed", FIXED, "event_id", "only the first hit"
    yield "email fixed", FIXED, "row-0", "one person's"
    yield "name with $", rows(("a", "text", ""), ("$b", "text", "")), "row-1", "It is ignored"
    yield "name with _", rows(("_b", "text", "")), "row-0", "It is ignored"
    yield "name with dot", rows(("a.b", "text", "")), "row-0", "It is ignored"
    yield "no name", rows(("", "number", "1")), "row-0", "It is ignored"
    yield "name inside", rows(("a", "json", '[{"$b": 1}]')), "row-0", "A field in it is ignored"
    yield "name with space", rows(("a ", "text", "")), "row-0", "space"
    yield "wrong email", rows(("email", "text", "nobody")), "row-0", "Not one e-mail address"
    yield "wrong uuid", rows(("uuid", "boolean", "true")), "row-0", "this is ignored"
    yield "wrong fbid", rows(("fbid", "text", "john")), "row-0", "this is ignored"
    yield "access token", rows(("access_token", "text", "secret")), "row-0", "Everybody can read it"
    yield "too deep", rows(("x", "json", TOO_DEEP)), "row-0", "deeper than 5"
    yield "named twice", rows(("a", "text", "1"), ("a", "text", "2")), "row-0", "twice"
    yield "no number", rows(("a", "number", "1,5")), "row-0", "Write a number as 1.5"
    yield "no boolean", rows(("a", "boolean", "yes")), "row-0", "true or false"
    yield "no list", rows(("a", "json", "[1,]")), "row-0", "column 3"
    yield "empty list", rows(("a", "json", "")), "row-0", "a list or an object"
    yield "a large number", rows(("a", "number", "123456789012345678901234")), "row-0", "as text"
    yield "fields", rows(*((f"f{n}", "text", "") for n in range(256))), "params", "first 255 fields"
    yield "long", rows(("a", "text", "x" * 2_000)), "params", "URL-encoded it has 2,"
    yield "too long", rows(("a", "text", "x" * 9_000)), "params", "Shorten the query string to 8,000"
    yield "JSON", Draft(event_token="t", view="json", json='{"a": 1,}'), "json", "Line 1, column 8"
    yield "JSON named twice", Draft(event_token="t", view="json", json='{"a": 1, "a": 2}'), "json", "“a” is there twice"
    yield "JSON ignored", Draft(event_token="t", view="json", json='{"$a": 1}'), "json", "“$a”: It is ignored"
    yield (
        "tag as a mailer's amount",
        Draft(category="revenue", event_token="t", amount="*|A|*", target="mailchimp"),
        "amount",
        "whole number",
    )
    yield "SendGrid", rows(("email", "text", "{{email}}"), target="sendgrid"), "target", "no filter"
    yield "quotes", rows(("a", "text", "*|FNAME|*"), target="mailchimp"), "target", "backslash"


CASES = list(_cases())


@pytest.mark.parametrize(("draft", "place", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_note_stands_where_it_belongs(draft: Draft, place: str, message: str) -> None:
    snippet = build(draft, BASE, TOKEN, "USD")
    assert any(message in note.message for note in snippet.notes_at(place)), snippet.notes
    has_errors = any(note.is_error for note in snippet.notes)
    assert has_errors == (snippet.blocks == ()) == (snippet.event is None)


def test_of_a_person_who_is_ignored_nothing_more_is_said() -> None:
    wrong = Draft(event_token="t", rows=(Row("email", "text", "nobody"),))
    (note,) = build(wrong, BASE, TOKEN, "USD").notes_at("row-0")
    assert "so it is ignored" in note.message


def test_amp_without_https_is_said() -> None:
    snippet = build(Draft(event_token="t", target="amp"), "http://px.example", TOKEN, "USD")
    assert "https" in snippet.notes_at("target")[0].message


@pytest.mark.parametrize("target", TARGETS)
def test_a_plain_draft_has_no_notes(target: Target) -> None:
    snippet = made(
        Draft(event_token="signup", rows=(Row("plan", "text", "pro"), Row("seats", "number", "3")), target=target)
    )
    assert snippet.notes == ()


def test_rows_not_filled_in_yet_send_nothing() -> None:
    assert "params" not in made(Draft(event_token="t", rows=(Row(), Row()))).url


def test_the_currency_is_sent_only_where_it_was_chosen() -> None:
    assert "currency" not in made(Draft(category="revenue", event_token="t", amount="5")).url
    yen = made(Draft(category="revenue", event_token="t", amount="¥500", currency="JPY"))
    assert (yen.amount, yen.currency) == (500, "JPY")
    assert "amount=500&currency=JPY" in yen.url
