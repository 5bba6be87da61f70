"""Where a snippet is pasted, and the code for each place.

Every place has its own way to end a text early: an attribute's quote, a shell's, a `</script>`. So a value is written
by the literal rules of the language it stands in, never by putting quotes around it. Merge tags are the exception: the
mailer or tag manager replaces them, so they stand as they are, with its own filter that makes the value safe in an
address where it has one (docs/snippets.md says which).
"""

import html
import json
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Literal, cast, get_args

import msgspec

from tenants.currencies import MINOR_UNITS
from tenants.snippets import Pixel, img_tag

Target = Literal[
    "html",
    "noscript",
    "mailchimp",
    "sendgrid",
    "klaviyo",
    "email",
    "gtm",
    "amp",
    "url",
    "javascript",
    "curl",
    "python",
    "php",
    "node",
]
TARGETS: tuple[Target, ...] = get_args(Target)
# Pasted once and loaded by everybody alike: whatever is fixed in it is the same for all.
STATIC: frozenset[Target] = frozenset({"html", "noscript", "email", "amp", "url"})
MAILERS: frozenset[Target] = frozenset({"mailchimp", "sendgrid", "klaviyo"})
# Whoever gets the page or the mail can read its source.
PUBLIC: frozenset[Target] = frozenset({*STATIC, *MAILERS, "gtm", "javascript"})


class Block(msgspec.Struct, frozen=True):
    """One piece of code to copy, and when to use it (empty where there is only one)."""

    code: str
    title: str = ""


class MergeTag(msgspec.Struct, frozen=True):
    """A placeholder that the target fills in; `field` is the custom field, or part of the form, it is meant for."""

    label: str
    tag: str
    field: str


class Merging(msgspec.Struct, frozen=True):
    """How a target's merge tags look, which are offered, and how one is written where it ends up in an address."""

    pattern: re.Pattern[str]
    offered: tuple[MergeTag, ...]
    in_address: Callable[[str], str]


def _mailchimp(tag: str) -> str:
    return tag if tag.startswith("*|URL:") else f"*|URL:{tag[2:]}"


def _klaviyo(tag: str) -> str:
    inside = tag[2:-2].strip()
    return tag if re.search(r"\|\s*urlencode$", inside) else f"{{{{ {inside}|urlencode }}}}"


# No quote, bracket or ampersand in any: a tag stands unescaped in an attribute.
MERGING: dict[Target, Merging] = {
    "mailchimp": Merging(
        re.compile(r"\*\|[A-Za-z0-9_:]{1,60}\|\*"),
        (
            MergeTag("Reader's e-mail", "*|EMAIL|*", "email"),
            MergeTag("First name", "*|FNAME|*", "first_name"),
            MergeTag("Reader's id in Mailchimp", "*|UNIQID|*", "uuid"),
            MergeTag("Campaign", "*|CAMPAIGN_UID|*", "campaign"),
        ),
        _mailchimp,
    ),
    "sendgrid": Merging(
        re.compile(r"\{\{ ?[A-Za-z_][A-Za-z0-9_.]{0,60} ?\}\}"),
        (
            MergeTag("Reader's e-mail", "{{email}}", "email"),
            MergeTag("First name", "{{first_name}}", "first_name"),
        ),
        str,
    ),
    "klaviyo": Merging(
        re.compile(r"\{\{[ \w.|:',-]{1,100}\}\}"),
        (
            MergeTag("Reader's e-mail", "{{ email }}", "email"),
            MergeTag("First name", "{{ first_name }}", "first_name"),
            MergeTag("Reader's id in Klaviyo", "{{ person.KlaviyoID }}", "uuid"),
        ),
        _klaviyo,
    ),
    "gtm": Merging(
        re.compile(r"\{\{[ \w.:/()|-]{1,100}\}\}"),
        (
            MergeTag("Page path", "{{Page Path}}", "page"),
            MergeTag("Referrer", "{{Referrer}}", "referrer"),
            MergeTag("Order value", "{{DLV - ecommerce.value}}", "amount"),
            MergeTag("Order number", "{{DLV - ecommerce.transaction_id}}", "event_id"),
        ),
        str,
    ),
}


def blocks(target: Target, pixel: Pixel) -> tuple[Block, ...]:
    """What to paste, for one target."""
    url = pixel.url
    match target:
        case "html" | "email":
            return (Block(img_tag(url)),)
        case "noscript":
            return (Block(f"<noscript>{img_tag(url)}</noscript>"),)
        case "mailchimp" | "sendgrid" | "klaviyo":
            return (Block(_merged(pixel, img_tag(url), MERGING[target].in_address)),)
        case "gtm":
            return _tag_manager(pixel)
        case "amp":
            source = html.escape(_without_amp_variables(url))
            return (Block(f'<amp-pixel src="{source}&amp;cb=RANDOM" layout="nodisplay"></amp-pixel>'),)
        case "url":
            return (Block(url),)
        case "javascript":
            return _javascript(pixel)
        case "node":
            return (Block(_node(pixel)),)
        case "curl":
            return _curl(url)
        case "python":
            return (Block(_python(pixel)),)
        case "php":
            return (Block(_php(pixel)),)


# AMP replaces the names of its variables wherever they stand in an address, also inside other words. All are of capital
# letters; with no three of them in a row there is none.
_AMP_VARIABLE = re.compile(r"([A-Z_]{2})([A-Z_])")


def _without_amp_variables(url: str) -> str:
    return _AMP_VARIABLE.sub(lambda found: f"{found[1]}%{ord(found[2]):02x}", url)


def _merged(pixel: Pixel, code: str, written: Callable[[str], str]) -> str:
    """`code` with each mark replaced by its merge tag, as `written` writes it."""
    for mark, tag in pixel.tags.items():
        code = code.replace(mark, written(tag))
    return code


def _tag_manager(pixel: Pixel) -> tuple[Block, ...]:
    hit = _hit(_SCRIPT, pixel, 4, cb="Math.random()")
    # GTM reads {{ }} anywhere as one of its variables, and refuses to save a tag with one that it does not know.
    hit = re.sub(r"\{(?=\{)", r"\\u007b", hit)
    digits = MINOR_UNITS[pixel.currency]
    for mark, tag in pixel.tags.items():
        if pixel.sent.get("amount") == mark:
            # Data layers hold money as 25.00; rounding mends what binary fractions break.
            hit = hit.replace(f'"amount": "{mark}"', f'"amount": Math.round({tag} * {10**digits})')
        hit = hit.replace(f'"{mark}"', tag)
        # In values that travel as JSON text: in a list, so that a variable without a value is null, as JSON knows it.
        hit = hit.replace(f'\\"{mark}\\"', f'" + JSON.stringify([{tag}]).slice(1, -1) + "')
    code = f"""<script>
  (function () {{
    var hit = {hit};
    var query = Object.keys(hit).map(function (name) {{
      return name + "=" + encodeURIComponent(hit[name]);
    }}).join("&");
    new Image().src = {_script_text(pixel.address + "?")} + query;
  }})();
</script>"""
    address = _merged(pixel, pixel.url, str)
    if pixel.sent.get("amount") in pixel.tags:
        return (
            Block(code, "Tag type Custom HTML"),
            Block(address, "Or Custom Image, for whole amounts: its Image URL"),
        )
    return (
        Block(address, "Tag type Custom Image: its Image URL"),
        Block(code, "Or tag type Custom HTML"),
    )


def _javascript(pixel: Pixel) -> tuple[Block, ...]:
    address = _script_text(pixel.address + "?")
    hit = f"new URLSearchParams({_hit(_SCRIPT, pixel, cb='Math.random()')})"
    options = '{ mode: "no-cors", credentials: "include", keepalive: true }'
    return (
        Block(f"new Image().src = {address} + {hit};", "When something happens on the page"),
        Block(f"fetch({address} + {hit}, {options});", "On a click that leaves the page: the hit is sent all the same"),
    )


def _node(pixel: Pixel) -> str:
    return (
        f"const hit = new URLSearchParams({_hit(_SCRIPT, pixel)});\n"
        f"fetch({_script_text(pixel.address + '?')} + hit).catch(console.error);"
    )


def _curl(url: str) -> tuple[Block, ...]:
    quiet = "curl --silent --show-error --output /dev/null"
    return (
        Block(f"{quiet} {shlex.quote(url)}", "Send it"),
        Block(f"{quiet} --dump-header - {shlex.quote(url + '&debug=1')}", "Send it, and see what it becomes"),
    )


def _python(pixel: Pixel) -> str:
    needs_json = "import json\n" if "json.dumps(" in (hit := _hit(_PYTHON, pixel)) else ""
    # It also raises for a reply that is no success: a limit of ours must not end a program of theirs.
    return (
        f"{needs_json}import logging\nfrom urllib.parse import urlencode\nfrom urllib.request import urlopen\n\n"
        f"hit = {hit}\ntry:\n    urlopen({pixel.address + '?'!r} + urlencode(hit), timeout=5).close()\n"
        'except Exception as error:\n    logging.warning("pixel: %s", error)'
    )


def _php(pixel: Pixel) -> str:
    return (
        f"$hit = {_hit(_PHP, pixel)};\n"
        f"$context = stream_context_create(['http' => ['timeout' => 5, 'ignore_errors' => true]]);\n"
        f"@file_get_contents({_php_scalar(pixel.address + '?')} . http_build_query($hit), false, $context);"
    )


# --- Literals

# Beyond it JavaScript's integers lose digits (PHP's a little later): such values travel as JSON text.
_LARGEST_INTEGER = 2**53


class _Language(msgspec.Struct, frozen=True):
    """How a language writes values down, and which function of it makes JSON of them."""

    scalar: Callable[[object], str]
    arrow: str
    object_brackets: str
    to_json: str


def _script_text(text: str) -> str:
    return "".join(
        # A `</script>` ends the script also inside a text. What is not seen shows as an escape.
        r"\u003C" if letter == "<" else letter if letter.isprintable() else json.dumps(letter)[1:-1]
        for letter in json.dumps(text, ensure_ascii=False)
    )


def _script_scalar(value: object) -> str:
    return _script_text(value) if isinstance(value, str) else json.dumps(value)


def _php_scalar(value: object) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    if value.isprintable():
        return "'" + value.replace("\\", r"\\").replace("'", r"\'") + "'"
    return (
        '"'
        + "".join(
            f"\\{letter}" if letter in '\\"$' else letter if letter.isprintable() else f"\\u{{{ord(letter):x}}}"
            for letter in value
        )
        + '"'
    )


_SCRIPT = _Language(_script_scalar, ": ", "{}", "JSON.stringify")
_PYTHON = _Language(repr, ": ", "{}", "json.dumps")
_PHP = _Language(_php_scalar, " => ", "[]", "json_encode")


def _hit(language: _Language, pixel: Pixel, indent: int = 0, cb: str = "") -> str:
    """The literal of all parameters by name; `cb` is an expression that no cache has seen."""
    items = [_field(language, name, language.scalar(value)) for name, value in pixel.sent.items()]
    if pixel.encoded is not None:
        if pixel.encoding == "base64" or _has_large_integer(pixel.params):
            written = language.scalar(pixel.encoded)
        else:
            written = f"{language.to_json}({_literal(language, pixel.params, indent + 2)})"
        items.append(_field(language, "params", written))
    if cb:
        items.append(_field(language, "cb", cb))
    return _bracketed(items, language.object_brackets, indent)


def _literal(language: _Language, value: object, indent: int) -> str:
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, object]", value)
        items = [_field(language, name, _literal(language, part, indent + 2)) for name, part in fields.items()]
        written = _bracketed(items, language.object_brackets, indent)
        # PHP makes numbers of such names, and json_encode() a list of an array with names 0, 1, 2, or with none.
        if language is _PHP and (not items or any(re.fullmatch("-?[0-9]+", name) for name in fields)):
            written = f"(object) {written}"
        return written
    if isinstance(value, list):
        return _bracketed([_literal(language, part, indent + 2) for part in cast("list[object]", value)], "[]", indent)
    return language.scalar(value)


def _field(language: _Language, name: str, written: str) -> str:
    return f"{language.scalar(name)}{language.arrow}{written}"


def _bracketed(items: list[str], brackets: str, indent: int) -> str:
    if not items:
        return brackets
    inner = ",".join(f"\n{' ' * (indent + 2)}{item}" for item in items)
    return f"{brackets[0]}{inner}\n{' ' * indent}{brackets[1]}"


def _has_large_integer(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_large_integer, cast("Mapping[str, object]", value).values()))
    if isinstance(value, list):
        return any(map(_has_large_integer, cast("list[object]", value)))
    return isinstance(value, int) and abs(value) > _LARGEST_INTEGER
