"""An app's Facebook app: whose access tokens come with its hits, and the secret that proves to Graph who asks."""
# Piccolo's annotations leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import re
from typing import NamedTuple
from uuid import UUID

from tenants.errors import InvalidValue, NotFound
from tenants.secrets import SecretKey
from tenants.tables import App, FacebookApp, GraphPause, transaction

# Facebook's own are 32 hexadecimal digits; nobody promises that they stay so.
_SECRET = re.compile(r"[!-~]{16,128}")
_NUMBER = re.compile(r"[0-9]{1,20}")


def facebook_key(secret: str) -> SecretKey:
    """The key of all that has to do with Facebook: access tokens, app secrets, profiles."""
    return SecretKey(secret, "facebook")


class Credentials(NamedTuple):
    """What Graph is asked with. `secret` is None where the key it was encrypted with is lost."""

    facebook_app_id: str
    secret: str | None

    def __repr__(self) -> str:
        return f"Credentials({self.facebook_app_id})"


async def connect(app: App, key: SecretKey, facebook_app_id: str, secret: str) -> None:
    """Keep the id and, unless it is empty, the secret, which nobody sees again. Raises InvalidValue.

    Empty leaves the one there is, if it can be read.
    """
    facebook_app_id, secret = facebook_app_id.strip(), secret.strip()
    if not _NUMBER.fullmatch(facebook_app_id):
        raise InvalidValue("facebook_app_id", "An app ID is a number of up to 20 digits.")
    if secret and not _SECRET.fullmatch(secret):
        raise InvalidValue("facebook_secret", "This is no app secret: it has 32 letters and digits, without spaces.")
    sealed = key.encrypt(secret, _place(app.id)) if secret else None
    async with transaction():
        if not await App.exists().where(App.id == app.id):
            raise NotFound
        kept = await FacebookApp.objects().where(FacebookApp.app == app.id).first()
        if sealed is None and (kept is None or key.try_decrypt(kept.sealed_secret, _place(app.id)) is None):
            raise InvalidValue("facebook_secret", "Enter the app secret, too.")
        if sealed is None and kept is not None and kept.facebook_app_id != facebook_app_id:
            raise InvalidValue("facebook_secret", "Another app has another secret: enter it, too.")
        if kept is None:
            kept = FacebookApp(app=app.id, sealed_secret=sealed)
        elif sealed is not None:
            kept.sealed_secret = sealed
        kept.facebook_app_id = facebook_app_id
        await kept.save()


async def disconnect(app: App) -> None:
    """Forget id and secret; tokens are resolved without them where Facebook allows it."""
    await FacebookApp.delete().where(FacebookApp.app == app.id)


async def facebook_app_id(app: App) -> str | None:
    """The id of the app's Facebook app, if it has one."""
    found = await FacebookApp.objects().where(FacebookApp.app == app.id).first()
    return found and found.facebook_app_id


async def credentials(app_id: UUID, key: SecretKey) -> Credentials | None:
    """What to ask Graph with for this app, None where nothing is kept. Raises NotFound when the app is gone."""
    found = await FacebookApp.objects().where(FacebookApp.app == app_id).first()
    if found is not None:
        return Credentials(found.facebook_app_id, key.try_decrypt(found.sealed_secret, _place(app_id)))
    if not await App.exists().where(App.id == app_id):
        raise NotFound
    return None


async def graph_state(app: App) -> tuple[int, int]:
    """(until when (ms) Graph is not asked, the error code it gave last); zeros when all is well."""
    found = await GraphPause.select().where(GraphPause.app_id == app.id).first()
    return (found["until"], found["code"]) if found else (0, 0)


def _place(app_id: UUID) -> bytes:
    return b"facebook app " + app_id.bytes
