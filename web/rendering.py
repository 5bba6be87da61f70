"""Templates become replies; and how numbers, money and times read.

Numbers are for people and exact on hover; money is never rounded. Times are in the zone that the page is about.
"""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from litestar import MediaType, Response
from litestar.datastructures import Cookie
from markupsafe import Markup

from tenants.currencies import MINOR_UNITS
from web import masking
from web.guards import LONGEST_IN_HEAD, AnyRequest, maybe_me, session_token
from web.view import short

# What a page says after a form was sent and the browser redirected. The cookie carries the key: nobody can put words
# of their own on a page of ours.
NOTICES: dict[str, str] = {
    "saved": "Saved.",
}

# As a browser's Intl.NumberFormat writes them, which chart.js asks.
_UNITS = ((12, "T"), (9, "B"), (6, "M"))
_NOTICE_SECONDS = 30
_REPLACED_SECONDS = 3
_ONCE_MORE = "~"


def number(value: int) -> Markup:
    """`1234567` as `1.23M`, rounded, the exact figure on hover; up to 999,999 it is exact itself."""
    exact = f"{value:,}"
    if abs(value) < 10**6:
        return Markup('<span class="number">{}</span>').format(exact)
    # To three digits before a unit is chosen: 999,999,999 is 1.00B, not 1,000M.
    rounded = round(value, 3 - len(str(abs(value))))
    power, letter = next((power, letter) for power, letter in _UNITS if abs(rounded) >= 10**power)
    digits = max(0, power + 3 - len(str(abs(rounded))))
    shown = f"{Decimal(rounded).scaleb(-power):,.{digits}f}{letter}"
    return Markup('<span class="number" title="{}">{}</span>').format(exact, shown)


def money(amount: int, currency: str) -> str:
    """Minor units as `1,234.56 EUR`."""
    return f"{plain_money(amount, currency)} {currency}"


def plain_money(amount: int, currency: str) -> str:
    """Minor units as `1,234.56`."""
    digits = MINOR_UNITS.get(currency, 2)
    return f"{Decimal(amount).scaleb(-digits):,.{digits}f}"


def percent(part: float, digits: int = 1) -> str:
    """A share, 0 to 1, as `12.5 %`."""
    return f"{part * 100:.{digits}f}\u202f%"


def duration(seconds: float) -> str:
    """A length of time as `340 ms`, `12.4 s`, `5 min 20 s`, `3 h 5 min`, `2 d 4 h`: in the two largest units."""
    if seconds < 1:
        return f"{round(seconds * 1000)}\u202fms"
    if seconds < 60:
        return f"{seconds:.1f}".removesuffix(".0") + "\u202fs"
    for large, size, small, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            return f"{whole:,}\u202f{large}" + (f" {rest // part}\u202f{small}" if rest // part else "")
    raise ValueError(seconds)


def moment(value: datetime, timezone: str = "UTC", seconds: bool = False) -> Markup:
    """A time as `24 Nov 2026, 14:03` in the zone; UTC on hover."""
    local = value.astimezone(ZoneInfo(timezone))
    shown = f"{local.day} {local:%b %Y, %H:%M:%S}" if seconds else f"{local.day} {local:%b %Y, %H:%M}"
    in_utc = value.astimezone(UTC)
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
        in_utc.isoformat(timespec="milliseconds"), f"{in_utc:%Y-%m-%d %H:%M:%S}", shown
    )


def ago(value: datetime, now: datetime | None = None) -> Markup:
    """How long ago, `3 minutes ago`, the exact time on hover."""
    passed = ((now or datetime.now(UTC)) - value).total_seconds()
    shown = "just now"
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if passed >= size:
            count = int(passed // size)
            shown = f"{count:,} {unit}{'' if count == 1 else 's'} ago"
            break
    in_utc = value.astimezone(UTC)
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
        in_utc.isoformat(timespec="milliseconds"), f"{in_utc:%Y-%m-%d %H:%M:%S}", shown
    )


templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_filters = cast("dict[str, Any]", templates.filters)
_filters.update(number=number, money=money, plain_money=plain_money, percent=percent, moment=moment, ago=ago)
_filters.update(masking.FILTERS)
_filters.update(duration=duration, short=short)


def is_htmx(request: AnyRequest) -> bool:
    """Whether htmx asks, for a fragment to put into the page that is open."""
    return "hx-request" in request.headers and "hx-history-restore-request" not in request.headers


def common(request: AnyRequest) -> dict[str, Any]:
    """What every page has. Of whom nobody could ask the database, the cookie says whether they are `inside`."""
    me = request.state.get("me")
    return {
        "request": request,
        "me": me,
        "inside": me is not None if "me" in request.state else session_token(request) is not None,
        "asset": request.app.state.assets.address,
        "site": request.app.state.public_url,
        "signup": request.app.state.signup,
    }


def fragment(request: AnyRequest, template: str, **context: Any) -> Markup:
    """A part of a page, to be placed in another template."""
    return Markup(templates.get_template(template).render({**common(request), **context}))  # noqa: S704 (autoescaped)


async def render(request: AnyRequest, template: str, status: int = 200, **context: Any) -> Response[bytes]:
    """A page or fragment. Beside `context` a template has `notice` and what `common` has."""
    await maybe_me(request)
    return render_now(request, template, status, **context)


def render_now(request: AnyRequest, template: str, status: int = 200, **context: Any) -> Response[bytes]:
    """`render` where nothing can be awaited: `me` is whoever was asked for before, if anybody was."""
    said = request.cookies.get("notice", "")
    notice = NOTICES.get(said.removesuffix(_ONCE_MORE))
    body = templates.get_template(template).render({**common(request), "notice": notice, **context}).encode()
    # What a tenant sees is not kept by caches, nor shown again after logging out.
    headers = {"Cache-Control": "no-store", "Vary": "HX-Request"}
    response = Response(body, status_code=status, media_type=MediaType.HTML, headers=headers)
    if notice and not is_htmx(request):
        # Without script the page is replaced at once by the whole one, which is to say it, too.
        whole: bool = context.get("whole", getattr(context.get("view"), "whole", True))
        done = whole or said.endswith(_ONCE_MORE)
        key, seconds = ("", 0) if done else (said + _ONCE_MORE, _REPLACED_SECONDS)
        response.set_cookie(Cookie(key="notice", value=key, path="/", max_age=seconds, httponly=True, samesite="lax"))
    return response


def replace_address(response: Response[bytes], address: str) -> None:
    """Have htmx show this address in the browser; where no header can say it, the one before stays."""
    if len(address) <= LONGEST_IN_HEAD:
        response.headers["HX-Replace-Url"] = address


def go(to: str, notice: str | None = None) -> Response[bytes]:
    """See another page after a form was sent; it shows `NOTICES[notice]` once."""
    response = Response(b"", status_code=303, headers={"Location": to})
    if notice is not None:
        if notice not in NOTICES:
            raise KeyError(notice)
        response.set_cookie(
            Cookie(key="notice", value=notice, path="/", max_age=_NOTICE_SECONDS, httponly=True, samesite="lax")
        )
    return response
