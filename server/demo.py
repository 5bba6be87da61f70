"""A demo tenant: 90 days of a small shop's hits, put into the journal as if they had come in over time.

They take the way all hits take, so the running server digests them; without one, they wait for the next start.
"""

import asyncio
import hashlib
import random
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit
from uuid import UUID

from server.app import CannotStart, running_server
from server.database import Database
from server.journal import HitTuple, Segment, encode_frame
from server.settings import Settings
from tenants import accounts, apps, keys
from tenants.errors import NotFound, SeveralTenants
from tenants.snippets import encode_params
from tenants.tables import App, User

_DAYS = 90
_DAY = 86_400
_FRAME_HITS = 500
_EMAIL = "demo@example.com"
_CURRENCY = "EUR"

_AGENTS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Safari/605",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148",
    "Mozilla/5.0 (Linux; Android 15) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (X11; Linux x86_64; rv:143.0) Gecko/20100101 Firefox/143.0",
)
_MAIL_PROXY = "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)"
_REFERRERS = ("https://shop.example/", "https://shop.example/pricing", "https://search.example/?q=boots", "")
_FIRST = (
    "ann",
    "bo",
    "cem",
    "dana",
    "eli",
    "fay",
    "gus",
    "hana",
    "ivo",
    "june",
    "kai",
    "lou",
    "mia",
    "noor",
    "ola",
    "pia",
)
_PLANS = (("starter", 900), ("team", 2900), ("pro", 7900))
# How much of a day's traffic each hour gets, from midnight on: people sleep, work and shop in the evening.
_HOURS = (2, 1, 1, 1, 1, 2, 4, 6, 8, 9, 9, 8, 8, 9, 9, 9, 8, 8, 9, 11, 12, 10, 7, 4)


@dataclass
class _Visitor:
    number: bytes
    agent: str
    network: str
    source: str
    email: str | None = None
    plan: str | None = None


def make_demo(settings: Settings) -> tuple[dict[str, Any], str]:
    """Make the tenant (or find the one of an earlier demo) and a new app of 90 days; returns (data, text) to print."""
    password = secrets.token_urlsafe(12)
    app, token, key = asyncio.run(_make_app(settings, password))
    # The same shop at every call, but for its ids.
    luck = random.Random(90)  # noqa: S311 (make-believe)
    now = time.time()
    # Today is not over: what it would still bring would be of tomorrow.
    hits = sorted(hit for hit in _hits(app.id, luck, now) if hit[0] < now * 1000)
    try:
        segment = Segment(settings.journal_dir)
        for start in range(0, len(hits), _FRAME_HITS):
            segment.append(encode_frame(hits[start : start + _FRAME_HITS], []))
        segment.close()
    except OSError as error:
        raise CannotStart(f"The demo's hits cannot be written to {settings.journal_dir}: {error.strerror}.") from None
    server = running_server(settings)
    # Where the server listens may be no address to open, and it is not where a proxy that ends TLS is reached.
    base = settings.public_url
    if server and urlsplit(base).hostname in ("0.0.0.0", "::", "127.0.0.1"):  # noqa: S104
        base = f"http://127.0.0.1:{server['port']}"
    api = f"{base}/api/v1/apps/{token}"
    data = {
        "email": _EMAIL,
        "password": password,
        "token": token,
        "key": key,
        "hits": len(hits),
        "events": f"{api}/events",
    }
    first = "" if server else "Start `onepx serve` first: it digests them within seconds.\n"
    text = (
        f"Demo app {app.name}: {len(hits):,} hits of the last {_DAYS} days, app token {token}.\n{first}"
        f"Look at it: {base}/login\n"
        f"  e-mail    {_EMAIL}\n"
        f"  password  {password}\n"
        f"or read it by program:\n"
        f"  curl -H 'Authorization: Bearer {key}' '{api}/events?limit=5'\n"
        f"  curl -H 'Authorization: Bearer {key}' '{api}/events?category=revenue&limit=5'\n"
        f"  curl -H 'Authorization: Bearer {key}' '{api}/rejections?limit=5'"
    )
    return data, text


async def _make_app(settings: Settings, password: str) -> tuple[App, str, str]:
    database = Database(settings.database_url)
    await database.start()
    try:
        await database.migrate()
        try:
            tenant = await accounts.tenant_by_email(_EMAIL)
        except SeveralTenants as error:
            raise CannotStart(f"{_EMAIL} owns several tenants ({error}). Have it leave the others.") from None
        except NotFound:
            tenant, _ = await accounts.create_tenant("Demo", _EMAIL, None)
        owner = await User.objects().where(User.email == _EMAIL).first()
        if owner is not None:
            await accounts.set_password(owner, password)
        app, token = await apps.create_app(tenant, "Boots & Blooms", _CURRENCY)
        _, key = await keys.create_key(tenant, "Demo")
    finally:
        await database.close()
    return app, token, key


def _hits(app_id: UUID, luck: random.Random, now: float) -> Iterator[HitTuple]:
    """A shop that grows: visits, sign-ups, purchases, refunds, newsletter opens, and the mistakes people make."""
    customers: list[_Visitor] = []
    order = 1000
    for day in range(_DAYS):
        midnight = (now // _DAY - (_DAYS - 1 - day)) * _DAY
        weekend = 0.7 if time.gmtime(midnight).tm_wday >= 5 else 1.0
        for _ in range(int((180 + 2.5 * day) * weekend * luck.uniform(0.85, 1.15))):
            at = midnight + luck.choices(range(24), _HOURS)[0] * 3600 + luck.uniform(0, 3600)
            visitor = _customer(customers, luck) or _new_visitor(luck)
            for step, page in enumerate(
                luck.sample(("/", "/pricing", "/boots", "/blog", "/about"), luck.randint(1, 3))
            ):
                yield _hit(app_id, at + 40 * step, 0, "page_view", visitor, {"page": page, "source": visitor.source})
            if visitor.email is None and luck.random() < 0.12:
                visitor.email = f"{luck.choice(_FIRST)}.{luck.randrange(10_000)}@example.com"
                customers.append(visitor)
                signup = {
                    "email": visitor.email,
                    "uuid": _uuid(visitor.email),
                    "method": luck.choice(("email", "google")),
                    "source": visitor.source,
                }
                yield _hit(app_id, at + 150, 0, "signup", visitor, signup)
            if visitor.email is not None and luck.random() < 0.25:
                visitor.plan, price = luck.choices(_PLANS, (6, 3, 1))[0]
                order += 1
                paid = {
                    "plan": visitor.plan,
                    "coupon": luck.choice((None, None, None, "SPRING")),
                    "items": luck.randint(1, 4),
                }
                more = {"amount": str(price), "event_id": f"order-{order}"}
                if luck.random() < 0.15:
                    more["currency"] = "USD"
                yield _hit(app_id, at + 300, 1, "purchase", visitor, paid, more)
                if luck.random() < 0.08:  # the thank-you page, loaded again
                    yield _hit(app_id, at + 360, 1, "purchase", visitor, paid, more)
                if luck.random() < 0.05:
                    refund = more | {"amount": str(-price), "event_id": f"refund-{order}"}
                    yield _hit(
                        app_id, at + luck.uniform(1, 20) * 3600, 1, "refund", visitor, {"plan": visitor.plan}, refund
                    )
            if luck.random() < 0.012:
                wrong = luck.choice(
                    ({"amount": "29.00"}, {"amount": "free"}, {}, {"amount": "900", "currency": "EURO"})
                )
                yield _hit(app_id, at + 310, 1, "purchase", visitor, {"plan": "starter"}, wrong)
        if time.gmtime(midnight).tm_wday == 1:
            for reader in luck.sample(customers, len(customers) // 2):
                proxied = luck.random() < 0.5
                at = midnight + luck.gauss(10, 2) * 3600
                yield _hit(
                    app_id,
                    at,
                    0,
                    "newsletter_open",
                    _Visitor(_number(luck), _MAIL_PROXY if proxied else reader.agent, reader.network, "email"),
                    {"uuid": _uuid(reader.email or ""), "issue": day // 7 + 1},
                )


def _customer(customers: list[_Visitor], luck: random.Random) -> _Visitor | None:
    """Somebody who comes back, likelier who signed up of late; None for somebody new."""
    if luck.random() >= min(0.35, len(customers) / 1_000):
        return None
    return customers[-1 - int(luck.expovariate(1 / 250)) % len(customers)]


def _new_visitor(luck: random.Random) -> _Visitor:
    network = f"{luck.choice((31, 80, 91, 178, 203))}.{luck.randrange(256)}.{luck.randrange(256)}.0/24"
    source = luck.choices(("search", "direct", "newsletter", "ads"), (5, 4, 2, 1))[0]
    return _Visitor(_number(luck), luck.choice(_AGENTS), network, source)


def _uuid(email: str) -> str:
    """The shop's own id of a customer."""
    return hashlib.sha256(email.encode()).hexdigest()[:12]


def _number(luck: random.Random) -> bytes:
    number = bytearray(luck.randbytes(16))
    number[6] = number[6] & 0x0F | 0x40
    number[8] = number[8] & 0x3F | 0x80
    return bytes(number)


def _hit(
    app_id: UUID,
    at: float,
    category: int,
    event_token: str,
    visitor: _Visitor,
    values: dict[str, Any],
    more: dict[str, str] | None = None,
) -> HitTuple:
    query = urlencode({"event_token": event_token, "params": encode_params(values, "base64")} | (more or {})).encode()
    referrer = _REFERRERS[visitor.number[0] % len(_REFERRERS)].encode()
    agent = visitor.agent.encode()
    return (
        int(at * 1000),
        app_id.bytes,
        category,
        query,
        visitor.number,
        False,
        visitor.network,
        agent,
        referrer,
        b"",
        0,
        False,
        _CURRENCY,
    )
