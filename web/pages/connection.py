"""How an app is connected with Facebook, in words."""

from datetime import UTC, datetime

import msgspec

from tenants import access_tokens, facebook
from tenants.secrets import SecretKey
from tenants.tables import App


class Connection(msgspec.Struct):
    """`app_id` stands in the form, `waiting` are tokens not resolved yet, `trouble` is what is wrong, if anything."""

    app_id: str
    connected: bool
    waiting: int
    trouble: str
    until: datetime | None


_LIMITS = frozenset({4, 17, 32, 341, 613, *range(80_000, 80_015)})
_WRONG = 100


async def connection(app: App, key: SecretKey, now: datetime, typed: str | None = None) -> Connection:
    """`typed` is what somebody entered as the app ID, which comes back."""
    kept = await facebook.credentials(app.id, key)
    until_ms, code = await facebook.graph_state(app)
    until = datetime.fromtimestamp(until_ms / 1000, UTC)
    trouble = ""
    if kept is not None and kept.secret is None:
        trouble = "The app secret cannot be read any more, the server has another secret key: enter it again."
    elif code in _LIMITS:
        trouble = f"Facebook limits how often this app may ask (error {code})."
    elif code == _WRONG:
        trouble = "Facebook refuses to answer (error 100): the app secret is missing, or not this app's."
    elif code:
        trouble = f"Facebook's last answer was error {code}."
    return Connection(
        typed if typed is not None else kept.facebook_app_id if kept is not None else "",
        kept is not None and kept.secret is not None,
        await access_tokens.waiting(app),
        trouble,
        until if until > now else None,
    )
