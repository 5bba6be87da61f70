"""What a tenant collected is nobody else's: on every route that takes an app, as if it did not exist."""
# Litestar leaves type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import re
import secrets
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import pytest
from litestar.routes import HTTPRoute
from machine import SOON, App, Client, Machine, Reply, Tenant, wait_until

from web.app import create_app

# Parameters of paths that lead to no tenant's thing. A new parameter must be thought about here.
OF_NOBODY = {"address", "path"}


class NoStore:
    async def query(self, sql: str, parameters: Mapping[str, Any], whose: int) -> list[dict[str, Any]]:
        raise AssertionError("routes are only listed")


def routes_of_apps() -> list[tuple[str, str]]:
    """(method, path with {app_token}) of every route of the application that takes an app's token."""
    found: list[tuple[str, str]] = []
    for route in create_app(NoStore(), public_url="http://127.0.0.1", version="0", secret_key="x" * 32).routes:
        if not route.path.startswith("/api/"):
            continue  # pages: tests/web/test_rights.py
        names = set(re.findall(r"{(\w+)(?::\w+)?}", route.path))
        assert names <= {"app_token", "person_id", *OF_NOBODY}, f"whose is {route.path}?"
        if "app_token" in names:
            assert isinstance(route, HTTPRoute)
            path = re.sub(r"{(\w+):\w+}", r"{\1}", route.path)
            found += [(method, path) for method in sorted(route.methods) if method != "OPTIONS"]
    return found


ROUTES = routes_of_apps()


def test_the_routes_of_the_application_are_found() -> None:
    assert {path.rpartition("/")[2] for _, path in ROUTES} >= {"events", "rejections"}


@pytest.fixture(scope="module")
def alices(running: Machine) -> App:
    """An app of alice's with an event and a rejection."""
    app = running.tenant().app()
    app.hit("event_token=secret&event_id=1")
    app.hit("event_id=secret")
    wait_until(lambda: app.events() and app.rejections(), SOON)
    return app


@pytest.fixture(scope="module")
def bob(running: Machine) -> Tenant:
    return running.tenant()


def person_of(app: App) -> str:
    """The id of somebody of the app whom nobody deleted yet."""
    token = secrets.token_hex(8)
    app.hit(f"event_token={token}")
    return wait_until(lambda: app.events(f"event_token={token}"), SOON)[0]["person_id"]


def ask(process_port: int, method: str, path: str, authorization: str | None) -> Reply:
    client = Client(process_port)
    try:
        return client.send(path, method, {"Authorization": authorization} if authorization else None)
    finally:
        client.close()


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("query", ["", "?limit=1000", "?event_token=secret&category=event", "?cursor=AAAA"])
def test_bob_cannot_tell_alices_app_from_one_that_does_not_exist(
    shared: Machine, alices: App, bob: Tenant, method: str, path: str, query: str
) -> None:
    port = shared.process.port
    key = f"Bearer {bob.key}"
    # What a breakdown and a funnel need, and the others leave alone.
    needed = "field=event_token&step1=a&step2=b"
    query += ("&" if query else "?") + needed
    person = person_of(alices) if "person_id" in path else ""
    theirs = ask(port, method, path.format(app_token=alices.token, person_id=person) + query, key)
    nobodys = ask(port, method, path.format(app_token="0" * 24, person_id=person) + query, key)
    assert (theirs.status, theirs.body) == (nobodys.status, nobodys.body)
    assert [name for name, _ in theirs.headers] == [name for name, _ in nobodys.headers]
    assert theirs.status == 404
    assert b"secret" not in theirs.body
    target = path.format(app_token=alices.token, person_id=person) + f"?{needed}"
    owner = ask(port, method, target, f"Bearer {alices.tenant.key}")
    assert owner.status == (202 if method == "DELETE" else 200), "its owner can"


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Bearer onepx_wrong", "Bearer \xe9", "Basic {key}", "{key}"]
)
def test_without_a_valid_key_it_is_401(
    shared: Machine, alices: App, method: str, path: str, authorization: str | None
) -> None:
    sent = authorization.format(key=alices.tenant.key) if authorization is not None else None
    for token in (alices.token, "0" * 24):
        reply = ask(shared.process.port, method, path.format(app_token=token, person_id=UUID(int=1)), sent)
        assert reply.status == 401
        assert reply.all("www-authenticate") == ["Bearer"]
        assert b"secret" not in reply.body


def test_a_revoked_tokens_app_stays_its_owners_alone(shared: Machine, bob: Tenant) -> None:
    alice = shared.tenant()
    app = alice.app()
    app.hit("event_token=a")
    wait_until(app.events, SOON)
    alice.revoke(app)
    assert len(app.events()) == 1
    assert bob.get(f"/api/v1/apps/{app.token}/events").status == 404
