"""Tokens in memory: a hit of a known token or of an unknown one never costs a query of its own."""
# pyright: reportPrivateUsage=false

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from uuid import UUID

import msgspec
import pytest
from structlog.testing import capture_logs

from server import routes as module
from server.database import Database
from server.routes import Routes
from tenants import accounts, apps, tokens
from tenants.tables import AppToken, Revision, Tenant
from tenants.tokens import Route

APP = UUID(int=7)


def route(token: str, revision: int, *, revoked: bool = False, app: UUID = APP) -> Route:
    return Route(token, app, 1, 1000, 5000, "USD", True, None, revoked, revision)


class Tokens:
    """A control database that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.rows: list[Route] = []
        self.slowness = 0.0
        self.error: Exception | None = None

    async def __call__(self, after_revision: int) -> list[Route]:
        self.asked.append(after_revision)
        # What is read is settled when the query begins.
        rows = [row for row in self.rows if row.revision > after_revision]
        await asyncio.sleep(self.slowness)
        if self.error is not None:
            raise self.error
        return rows


@pytest.fixture
def database_of(monkeypatch: pytest.MonkeyPatch) -> Tokens:
    tokens = Tokens()
    monkeypatch.setattr(module, "unscoped_routes", tokens)
    return tokens


def random_tokens(count: int) -> Iterable[str]:
    return (secrets.token_hex(12) for _ in range(count))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(2):
        while not condition():  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.005)


# Stories


async def test_a_flood_of_unknown_tokens_shares_ten_queries_a_second(database_of: Tokens) -> None:
    routes = Routes()
    await routes.refresh()
    began = time.monotonic()
    found: list[Route | None] = []
    while time.monotonic() - began < 0.5:
        found += await asyncio.gather(*(routes.find(token) for token in random_tokens(200)))
    took = time.monotonic() - began
    assert len(found) >= 400
    assert set(found) == {None}
    assert len(database_of.asked) <= 1 + took / module._MISS_SECONDS + 1


async def test_ten_thousand_unknown_tokens_at_once_share_their_queries(
    database_of: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long a busy machine takes for so many.
    for limit in ("_WAIT_SECONDS", "_UNKNOWN_SECONDS"):
        monkeypatch.setattr(module, limit, 60.0)
    routes = Routes()
    await routes.refresh()
    database_of.rows = [route("new", 1)]
    sought = [*random_tokens(10_000), "new"]
    found = await asyncio.gather(*(routes.find(token) for token in sought))
    assert [token for token, known in zip(sought, found, strict=True) if known] == ["new"]
    assert len(database_of.asked) == 2
    await asyncio.gather(*(routes.find(token) for token in sought[:-1]))
    assert len(database_of.asked) == 2


async def test_an_unknown_token_is_looked_for_again_after_a_while(
    database_of: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_UNKNOWN_SECONDS", 0.0)
    routes = Routes()
    assert await routes.find("a") is None
    database_of.rows = [route("a", 1)]
    assert await routes.find("a") == route("a", 1)


async def test_an_unknown_token_asked_for_again_costs_no_query_at_all(database_of: Tokens) -> None:
    routes = Routes()
    (token,) = random_tokens(1)
    assert await routes.find(token) is None
    asked = len(database_of.asked)
    for _ in range(1000):
        assert await routes.find(token) is None
    assert len(database_of.asked) == asked == 1


async def test_the_memory_of_unknown_tokens_is_bounded(database_of: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_UNKNOWN_MOST", 100)
    routes = Routes()
    for _ in range(3):
        await asyncio.gather(*(routes.find(token) for token in random_tokens(250)))
        assert len(routes._unknown) <= 100


async def test_a_token_issued_a_moment_ago_is_found_by_its_first_hit(database_of: Tokens) -> None:
    routes = Routes()
    await routes.refresh()
    database_of.rows = [route("a", 1)]
    assert await routes.find("a") == route("a", 1)


async def test_a_hit_waits_for_a_query_that_began_after_it_came(database_of: Tokens) -> None:
    routes = Routes()
    database_of.slowness = 0.05
    # This query has read the table before the token was there.
    early = asyncio.create_task(routes.find("other"))
    await until(lambda: bool(database_of.asked))
    database_of.rows = [route("a", 1)]
    assert await routes.find("a") == route("a", 1)
    assert await early is None


async def test_an_older_answer_never_overwrites_a_newer_one(database_of: Tokens) -> None:
    routes = Routes()
    database_of.rows = [route("a", 1)]
    database_of.slowness = 0.05
    slow = asyncio.create_task(routes.refresh())
    await until(lambda: bool(database_of.asked))
    # Revoked while the slow query is under way; these would overtake it.
    database_of.rows = [route("a", 2, revoked=True)]
    database_of.slowness = 0.0
    await asyncio.gather(routes.refresh(), routes.find("b"))
    await slow
    assert routes.by_token == {}
    assert await routes.find("a") is None
    assert routes.by_app[APP.bytes].revoked


async def test_a_token_remembered_as_unknown_works_as_soon_as_the_next_refresh_brings_it(
    database_of: Tokens,
) -> None:
    routes = Routes()
    assert await routes.find("a") is None
    database_of.rows = [route("a", 1)]
    await routes.refresh()
    assert routes.by_token["a"] == route("a", 1)
    assert await routes.find("a") == route("a", 1)


async def test_only_what_changed_is_asked_for(database_of: Tokens) -> None:
    routes = Routes()
    database_of.rows = [route("a", 1), route("b", 5)]
    await routes.refresh()
    await routes.refresh()
    database_of.rows.append(route("c", 6))
    await routes.refresh()
    await routes.refresh()
    assert database_of.asked == [0, 5, 5, 6]
    assert routes.by_token.keys() == {"a", "b", "c"}


async def test_a_revoked_token_goes_and_its_apps_waiting_hits_stay_readable(database_of: Tokens) -> None:
    routes = Routes()
    database_of.rows = [route("a", 1)]
    await routes.refresh()
    database_of.rows = [route("a", 2, revoked=True)]
    await routes.refresh()
    assert routes.by_token == {}
    assert routes.by_app.keys() == {APP.bytes}


async def test_a_token_that_ends_later_says_when(database_of: Tokens) -> None:
    routes = Routes()
    database_of.rows = [route("a", 1)]
    await routes.refresh()
    ending = msgspec.structs.replace(route("a", 2), expires_at=1_800_000_000.0)
    database_of.rows = [ending, route("b", 2)]
    await routes.refresh()
    assert routes.by_token == {"a": ending, "b": route("b", 2)}


async def test_a_revoked_token_is_not_found_by_a_hit(database_of: Tokens) -> None:
    routes = Routes()
    database_of.rows = [route("a", 1, revoked=True)]
    assert await routes.find("a") is None


async def test_one_apps_end_is_not_anothers(database_of: Tokens) -> None:
    other = UUID(int=8)
    routes = Routes()
    database_of.rows = [route("a", 1), route("a2", 1), route("b", 1, app=other)]
    await routes.refresh()
    gone = UUID(int=0)
    database_of.rows = [route("a", 2, revoked=True, app=gone), route("a2", 2, revoked=True, app=gone)]
    await routes.refresh()
    assert (list(routes.by_token), list(routes.by_app)) == (["b"], [other.bytes])


async def test_a_deleted_app_goes_altogether(database_of: Tokens) -> None:
    routes = Routes()
    database_of.rows = [route("a", 1)]
    await routes.refresh()
    database_of.rows = [route("a", 2, revoked=True, app=UUID(int=0))]
    await routes.refresh()
    assert (routes.by_token, routes.by_app) == ({}, {})


async def test_while_the_database_is_away_known_tokens_work_and_unknown_ones_raise(database_of: Tokens) -> None:
    routes = Routes()
    database_of.rows = [route("a", 1)]
    await routes.refresh()
    database_of.error = ConnectionError("away")
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await routes.find("b")
    assert routes.by_token["a"] == route("a", 1)
    # It was not taken for unknown: nobody could tell.
    database_of.error = None
    database_of.rows.append(route("b", 2))
    assert await routes.find("b") == route("b", 2)


async def test_keeping_fresh_outlives_an_outage(database_of: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REFRESH_SECONDS", 0.01)
    routes = Routes()
    keeping = asyncio.create_task(routes.keep_fresh())
    with capture_logs() as logged:
        for outage in (1, 2):
            database_of.error = ConnectionError("away")
            tried = len(database_of.asked)
            await until(lambda tried=tried: len(database_of.asked) >= tried + 5)
            database_of.error = None
            database_of.rows.append(route(f"token{outage}", outage))
            await until(lambda outage=outage: len(routes.by_token) == outage and len(logged) == 2 * outage)
    keeping.cancel()
    # Said once an outage, however often it was tried.
    assert [line["event"] for line in logged] == [
        "control database does not answer; known tokens go on working",
        "control database answers again",
    ] * 2


async def test_a_database_that_hangs_is_away_until_it_answers(
    database_of: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REFRESH_SECONDS", 0.01)
    monkeypatch.setattr(module, "_QUERY_SECONDS", 0.02)
    routes = Routes()
    database_of.rows = [route("a", 1)]
    await routes.refresh()
    database_of.slowness = 3600
    async with asyncio.timeout(1):
        with pytest.raises(TimeoutError):
            await routes.refresh()
        with pytest.raises(TimeoutError):
            await routes.find("b")
    assert routes.by_token == {"a": route("a", 1)}
    keeping = asyncio.create_task(routes.keep_fresh())
    tried = len(database_of.asked)
    await until(lambda: len(database_of.asked) >= tried + 3)
    database_of.slowness = 0.0
    database_of.rows.append(route("b", 2))
    await until(lambda: "b" in routes.by_token)
    keeping.cancel()


async def test_a_hit_waits_for_a_hanging_database_no_longer_than_it_must(
    database_of: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WAIT_SECONDS", 0.02)
    routes = Routes()
    database_of.slowness = 3600
    refreshing = asyncio.create_task(routes.refresh())
    await until(lambda: bool(database_of.asked))
    # The query it would share has not even begun: it stands behind the one that hangs.
    async with asyncio.timeout(1):
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await routes.find("a")
    assert len(database_of.asked) == 1
    refreshing.cancel()
    database_of.slowness = 0.0
    database_of.rows = [route("a", 1)]
    assert await routes.find("a") == route("a", 1)


async def test_changes_in_the_real_database_arrive_with_the_next_refresh(database: Database, alice: Tenant) -> None:
    routes = Routes()
    await routes.refresh()
    app, old = await apps.create_app(alice, "Shop", "EUR")
    found = await routes.find(old)
    assert found is not None
    assert (found.app_id, found.tenant_id, found.currency) == (app.id, alice.id, "EUR")

    new = await tokens.rotate(app, timedelta(0))
    await accounts.set_limit(alice, 5, 50)
    await routes.refresh()
    ended = routes.by_token[old].expires_at
    assert ended is not None
    assert ended <= time.time()
    assert (routes.by_token[new].rate, routes.by_token[new].burst, routes.by_token[new].expires_at) == (5, 50, None)

    await tokens.revoke(alice, new)
    await routes.refresh()
    assert new not in routes.by_token
    await apps.delete_app(app)
    await routes.refresh()
    assert (routes.by_token, routes.by_app) == ({}, {})


async def test_after_a_failover_that_lost_changes_all_tokens_are_read_again(database: Database, alice: Tenant) -> None:
    kept, token = await apps.create_app(alice, "Shop")
    (before,) = await Revision.select()
    _, lost = await apps.create_app(alice, "Blog")
    await accounts.set_limit(alice, 5, 50)
    routes = Routes()
    await routes.refresh()
    assert await routes.find(lost) is not None
    # What takes over is a copy from before: what was changed since never was.
    await AppToken.delete().where(AppToken.token == lost)
    await Revision.update({Revision.n: before["n"]}).where(Revision.id == 1)
    await AppToken.update({AppToken.revision: before["n"]}).where(AppToken.token == token)

    other = await tokens.issue(kept)
    assert await routes.find(other) is not None
    assert routes.by_token.keys() == {token, other}
    assert routes.by_app.keys() == {kept.id.bytes}
    await tokens.revoke(alice, other)
    await routes.refresh()
    assert routes.by_token.keys() == {token}


async def test_a_deleted_tenants_tokens_end_with_the_next_refresh(database: Database, alice: Tenant) -> None:
    routes = Routes()
    for name in ("Shop", "Blog"):
        await apps.create_app(alice, name)
    await routes.refresh()
    assert (len(routes.by_token), len(routes.by_app)) == (2, 2)
    await accounts.delete_tenant(alice)
    await routes.refresh()
    assert (routes.by_token, routes.by_app) == ({}, {})
