# pyright: reportUnknownMemberType=false

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from server.database import Database
from tenants import keys
from tenants.apps import create_app, delete_app
from tenants.errors import InvalidValue, NotFound
from tenants.tables import ApiKey, Tenant


async def last_used(key: ApiKey) -> datetime | None:
    (row,) = await ApiKey.select(ApiKey.last_used_at).where(ApiKey.id == key.id)
    return row["last_used_at"]


async def test_a_key_is_its_tenants(database: Database, alice: Tenant, bob: Tenant) -> None:
    key, plaintext = await keys.create_key(alice, " Reports ")
    assert plaintext.startswith("onepx_")
    assert len(plaintext) >= 38
    assert key.name == "Reports"
    assert plaintext.startswith(key.prefix)
    assert len(key.prefix) == 12
    found = await keys.find_key(plaintext)
    assert found is not None
    assert (found.tenant.id, found.tenant.name) == (alice.id, "Alice")
    assert (found.app, found.may_delete) == (None, False)
    for unknown in ("", "onepx_", plaintext[:-1], plaintext + "x", "\0", "\ud800"):
        assert await keys.find_key(unknown) is None


async def test_a_key_of_one_app_goes_with_it(database: Database, alice: Tenant) -> None:
    app, _ = await create_app(alice, "Shop")
    _, plaintext = await keys.create_key(alice, "Shop only", app=app, may_delete=True)
    found = await keys.find_key(plaintext)
    assert found is not None
    assert (found.app, found.may_delete) == (app.id, True)
    (listed,) = await keys.list_keys(alice, datetime.now(UTC))
    assert listed.app.name == "Shop"
    await delete_app(app)
    assert await keys.find_key(plaintext) is None
    assert await keys.list_keys(alice, datetime.now(UTC)) == []
    await keys.create_key(alice, "Reports")
    # A page that still shows the one would revoke the other.
    with pytest.raises(NotFound):
        await keys.revoke_key(alice, listed.id)


async def test_only_a_hash_is_stored(database: Database, alice: Tenant) -> None:
    _, plaintext = await keys.create_key(alice, "Reports")
    (row,) = await ApiKey.select()
    assert plaintext not in repr(row)
    assert plaintext[13:] not in repr(row)


async def test_a_revoked_key_opens_nothing(database: Database, alice: Tenant) -> None:
    key, plaintext = await keys.create_key(alice, "Reports")
    _, other = await keys.create_key(alice, "Other")
    await keys.revoke_key(alice, key.id)
    assert await keys.find_key(plaintext) is None
    assert await keys.find_key(other) is not None
    (first,) = [listed.revoked_at for listed in await keys.list_keys(alice, datetime.now(UTC)) if listed.id == key.id]
    await keys.revoke_key(alice, key.id)
    assert [listed.name for listed in await keys.list_keys(alice, datetime.now(UTC))] == ["Other", "Reports"]
    assert (await keys.list_keys(alice, datetime.now(UTC)))[1].revoked_at == first


async def test_a_revoked_key_is_listed_for_a_month(database: Database, alice: Tenant) -> None:
    key, _ = await keys.create_key(alice, "Reports")
    await keys.create_key(alice, "Other")
    await keys.revoke_key(alice, key.id)
    now = datetime.now(UTC)
    for days, names in ((29, ["Other", "Reports"]), (31, ["Other"])):
        listed = await keys.list_keys(alice, now + timedelta(days=days))
        assert [each.name for each in listed] == names


async def test_bob_cannot_reach_alices_key(database: Database, alice: Tenant, bob: Tenant) -> None:
    key, plaintext = await keys.create_key(alice, "Reports")
    for tenant, key_id in ((bob, key.id), (alice, key.id + 1), (alice, 0), (alice, -1), (alice, 2**70)):
        with pytest.raises(NotFound):
            await keys.revoke_key(tenant, key_id)
    assert await keys.list_keys(bob, datetime.now(UTC)) == []
    assert await keys.find_key(plaintext) is not None


async def test_last_use_is_written_once_a_minute(database: Database, alice: Tenant) -> None:
    key, plaintext = await keys.create_key(alice, "Reports")
    assert await last_used(key) is None
    await keys.find_key(plaintext)
    first = await last_used(key)
    assert first is not None
    assert datetime.now(UTC) - first < timedelta(minutes=1)
    await keys.find_key(plaintext)
    assert await last_used(key) == first
    earlier = first - timedelta(seconds=61)
    await ApiKey.update({ApiKey.last_used_at: earlier}).where(ApiKey.id == key.id)
    await keys.find_key(plaintext)
    assert (await last_used(key) or earlier) >= first


async def test_a_key_needs_a_name(database: Database, alice: Tenant) -> None:
    with pytest.raises(InvalidValue):
        await keys.create_key(alice, " ")


async def test_keys_made_and_revoked_without_end_do_not_fill_the_page(
    database: Database, alice: Tenant, bob: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "MAX_KEYS", 3)
    first, _ = await keys.create_key(alice, "First")
    await keys.revoke_key(alice, first.id)
    made = await asyncio.gather(*(keys.create_key(alice, "More") for _ in range(4)), return_exceptions=True)
    assert sorted(type(each).__name__ for each in made) == ["InvalidValue", "InvalidValue", "tuple", "tuple"]
    assert len(await keys.list_keys(alice, datetime.now(UTC))) == 3
    await keys.create_key(bob, "Own")
    await ApiKey.update({ApiKey.revoked_at: datetime.now(UTC) - timedelta(days=31)}).where(ApiKey.id == first.id)
    await keys.create_key(alice, "Again")
