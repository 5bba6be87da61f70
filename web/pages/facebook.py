"""An app's Facebook app: the form for it stands on the app's settings."""

import time

from litestar import Response, post

from tenants import access_tokens, facebook
from tenants.errors import InvalidValue
from web.forms import text
from web.guards import AnyRequest, Member, OurApp
from web.pages.apps import settings_of
from web.rendering import NOTICES, go

NOTICES.update(
    {
        "facebook-connected": "Saved. Access tokens that wait are tried now.",
        "facebook-disconnected": "The Facebook app is forgotten, with its secret.",
    }
)


@post("/apps/{app_id:str}/facebook")
async def connect(request: AnyRequest, member: Member, app: OurApp) -> Response[bytes]:
    """Keep id and secret; the secret does not come back, not even when something is wrong."""
    del member
    form = await request.form()
    typed = text(form, "facebook_app_id")
    try:
        await facebook.connect(app, request.app.state.facebook_key, typed, text(form, "facebook_secret"))
    except InvalidValue as error:
        return await settings_of(request, app, None, error, facebook_app_id=typed)
    await access_tokens.retry_now(app, time.time_ns() // 1_000_000)
    return go(f"/apps/{app.id}/settings#facebook", "facebook-connected")


@post("/apps/{app_id:str}/facebook/disconnect")
async def disconnect(member: Member, app: OurApp) -> Response[bytes]:
    """Forget both."""
    del member
    await facebook.disconnect(app)
    return go(f"/apps/{app.id}/settings#facebook", "facebook-disconnected")


handlers = [connect, disconnect]
