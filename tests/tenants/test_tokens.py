import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from server.database import Database
from tenants import tokens
from tenants.accounts import set_limit
from tenants.apps import create_app
from tenants.errors import InvalidValue, NotFound
from tenants.tables import Tenant, transaction
from tenants.tokens import Route

HOUR = timedelta(hours=1)


async def routes(after: int = 0) -> dict[str, Route]:
    return {route.token: route for route in await tokens.unscoped_routes(after)}


async def test_a_route_has_all_that_ingest_needs(database: Database, alice: Tenant) -> None:
    await set_limit(alice, 20, 30)
    app, token = await create_app(alice, "Shop", "JPY")
    assert await tokens.unscoped_routes(0) == [
        Route(
            token=token,
            app_id=app.id,
            tenant_id=alice.id,
            rate=20,
            burst=30,
            currency="JPY",
            honour_privacy=True,
            expires_at=None,
            revoked=False,
            revision=2,
        )
    ]


async def test_rotation_overlaps(database: Database, alice: Tenant) -> None:
    app, first = await create_app(alice, "Shop")
    other_app, untouched = await create_app(alice, "Blog")
    last = max(route.revision for route in (await routes()).values())
    second = await tokens.rotate(app, HOUR)
    changed = await routes(last)
    assert changed.keys() == {first, second}
    assert changed[second].expires_at is None
    assert changed[first].expires_at == pytest.approx(time.time() + 3600, abs=60)
    assert (await routes())[untouched].app_id == other_app.id


async def test_rotation_shortens_an_overlap_but_never_extends_it(database: Database, alice: Tenant) -> None:
    app, first = await create_app(alice, "Shop")
    second = await tokens.rotate(app, HOUR)
    settled = (await routes())[first]
    third = await tokens.rotate(app, 2 * HOUR)
    assert (await routes())[first] == settled
    await tokens.rotate(app, timedelta(0))
    now = await routes()
    for ended in (first, second, third):
        assert (now[ended].expires_at or 0) == pytest.approx(time.time(), abs=60)


async def test_a_revoked_token_stays_revoked(database: Database, alice: Tenant) -> None:
    app, first = await create_app(alice, "Shop")
    second = await tokens.issue(app)
    await tokens.revoke(alice, first)
    revoked = (await routes())[first]
    assert revoked.revoked
    assert revoked.revision == 3
    await tokens.revoke(alice, first)
    await tokens.rotate(app, HOUR)
    now = await routes()
    assert now[first] == revoked
    assert not now[second].revoked


async def test_bob_cannot_revoke_alices_token(database: Database, alice: Tenant, bob: Tenant) -> None:
    _, token = await create_app(alice, "Shop")
    before = await routes()
    for wanted in (token, "0" * 24, "nonsense"):
        with pytest.raises(NotFound):
            await tokens.revoke(bob, wanted)
    assert await routes() == before


async def test_tokens_are_listed_with_their_state(database: Database, alice: Tenant) -> None:
    app, first = await create_app(alice, "Shop")
    await create_app(alice, "Blog")
    second = await tokens.rotate(app, timedelta(0))
    third = await tokens.rotate(app, HOUR)
    fourth = await tokens.issue(app)
    await tokens.revoke(alice, fourth)
    listed = await tokens.list_tokens(app)
    assert [each.token for each in listed] == [fourth, third, second, first]
    now = datetime.now(UTC)
    assert [tokens.state(each, now) for each in listed] == ["revoked", "live", "ends", "ended"]
    assert tokens.state(listed[2], now + 2 * HOUR) == "ended"
    assert [each.last_used_at for each in listed] == [None] * 4


async def test_a_negative_overlap(database: Database, alice: Tenant) -> None:
    app, _ = await create_app(alice, "Shop")
    with pytest.raises(InvalidValue):
        await tokens.rotate(app, timedelta(seconds=-1))


async def test_changes_at_once_get_revisions_of_their_own(database: Database, alice: Tenant, bob: Tenant) -> None:
    app, first = await create_app(alice, "Shop")
    others, _ = await create_app(bob, "Blog")
    made = await asyncio.gather(
        *(tokens.rotate(app, HOUR) for _ in range(4)), *(tokens.issue(others) for _ in range(4))
    )
    now = await routes()
    assert now.keys() >= {first, *made}
    assert max(route.revision for route in now.values()) == 10
    # Each token was issued in a transaction of its own; a later rotation may have stamped it again.
    issued = [now[token].revision for token in made[4:]]
    assert len(set(issued)) == 4
    # The rotation that came last saw all the others.
    assert now[first].expires_at is not None
    assert [now[token].expires_at for token in made[:4]].count(None) == 1


async def test_who_asks_for_what_came_after_the_last_revision_misses_none(database: Database, alice: Tenant) -> None:
    app, first = await create_app(alice, "Shop")
    seen = {first}
    last = 1
    issuing = asyncio.gather(*(tokens.issue(app) for _ in range(12)))
    while True:
        done = issuing.done()
        for route in await tokens.unscoped_routes(last):
            assert route.revision > last
            last = route.revision
            seen.add(route.token)
        if done:
            break
    assert seen == {first, *await issuing}


async def test_a_change_rolled_back_is_never_seen(database: Database, alice: Tenant) -> None:
    app, _ = await create_app(alice, "Shop")
    before = await routes()

    async def fail_after_issuing() -> None:
        async with transaction():
            await tokens.add_token(app, await tokens.next_revision())
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        await fail_after_issuing()
    assert await routes() == before
    await tokens.issue(app)
    assert max(route.revision for route in (await routes()).values()) == 2


async def test_when_a_token_was_last_used_only_goes_forward(alice: Tenant) -> None:
    app, first = await create_app(alice, "Shop")
    second = await tokens.issue(app)
    at = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()
    await tokens.unscoped_used({first: at + 60.7, second: at, "0" * 24: at})
    await tokens.unscoped_used({first: at + 5, second: at + 5})
    last_used = {each.token: each.last_used_at for each in await tokens.list_tokens(app)}
    assert last_used == {
        first: datetime(2026, 11, 24, 12, 1, tzinfo=UTC),
        second: datetime(2026, 11, 24, 12, 0, 5, tzinfo=UTC),
    }
    await tokens.unscoped_used({})


async def test_each_app_has_so_many_tokens(
    database: Database, alice: Tenant, bob: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MAX_TOKENS", 2)
    for tenant in (bob, alice):
        app, first = await create_app(tenant, "Shop")
        await tokens.issue(app)
        # Ended ones count, too.
        await tokens.revoke(tenant, first)
        for more in (tokens.issue(app), tokens.rotate(app, HOUR)):
            with pytest.raises(InvalidValue, match="2 tokens at most"):
                await more
    assert len(await routes()) == 4
