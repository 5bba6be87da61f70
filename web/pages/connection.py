"""How an app is connected with Facebook, in words."""

from datetime import UTC, datetime

import msgspec

from tenants import access_tokens, facebook
from tenants.tables import App


class Connection(msgspec.Struct):
    """`app_id` stands in the form, `waiting` are tokens not resolved yet, `trouble` is what Graph said, if anything."""

    app_id: str
    connected: bool
    waiting: int
    trouble: str
    until: datetime | None


_LIMITS = frozenset({4, 17, 32, 341, 613, *range(80_000, 80_015)})
_WRONG = 100


async def connection(app: App, now: datetime, typed: str | None = None) -> Connection:
    """`typed` is what somebody entered as the app ID, which comes back."""
    kept = await facebook.facebook_app_id(app)
    until_ms, code = await facebook.graph_state(app)
    until = datetime.fromtimestamp(until_ms / 1000, UTC)
    trouble = ""
    if code in _LIMITS:
        trouble = f"Facebook limits how often this app may ask (error {code})."
    elif code == _WRONG:
        trouble = "Facebook refuses to answer (error 100): the app secret is missing, or not this app's."
    elif code:
        trouble = f"Facebook's last answer was error {code}."
    return Connection(
        kept or "" if typed is None else typed,
        kept is not None,
        await access_tokens.waiting(app),
        trouble,
        until if until > now else None,
    )
