"""What is done now and then: a step that fails is told once and tried again, and holds up no other."""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from server import upkeep
from server.database import Database
from server.event_store import EventStore

STEPS = {
    "unscoped_erase_apps": "erasing deleted apps",
    "unscoped_collect": "collecting properties",
    "unscoped_reattribute": "moving events",
    "unscoped_forget_sections": "forgetting the order of hits",
    "unscoped_rewrite": "rewriting persons",
    "unscoped_newest_pending": "deleting persons",
    "unscoped_forget_queries": "emptying raw queries",
    "unscoped_expire": "expiring events",
    "unscoped_purge_forgotten": "forgetting who was deleted",
    "unscoped_purge_sessions": "forgetting ended sessions",
    "unscoped_purge_invitations": "forgetting ended invitations",
    "unscoped_put_right": "putting times right",
    "unscoped_expire_people": "expiring people",
}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("broken", STEPS)
async def test_a_step_that_fails_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch, database: Database, event_store: EventStore, tmp_path: Path, broken: str
) -> None:
    del database
    done: Counter[str] = Counter()

    def step(name: str) -> Callable[..., object]:
        real = getattr(upkeep, name)

        async def counted(*arguments: object) -> object:
            done[name] += 1
            if name == broken:
                raise RuntimeError("broken")
            return await real(*arguments)

        return counted

    for name in STEPS:
        monkeypatch.setattr(upkeep, name, step(name))
    for name in ("ROUND", "FIRST", "EXPIRE", "AGAIN", "REWRITE", "FORGET"):
        monkeypatch.setattr(upkeep, f"_{name}_SECONDS", 0.001)
    expected = dict.fromkeys(STEPS, 3)
    if broken != "unscoped_expire_people":
        expected["unscoped_expire_people"] = 1
    with capture_logs() as logs:
        keeping = asyncio.create_task(upkeep.keep_up(event_store, tmp_path, failing := {}))
        async with asyncio.timeout(30):
            # Expired people are looked for once a day, unless it fails.
            while any(done[name] < often for name, often in expected.items()):
                await asyncio.sleep(0.01)
                assert not keeping.done()
        keeping.cancel()
    assert list(failing) == [STEPS[broken]]
    told = [(line["what"], line["error"]) for line in logs if line["event"] == "upkeep waits"]
    assert told == [(STEPS[broken], "RuntimeError")], "once, however often it fails"


@pytest.mark.parametrize(("share", "often"), [(0.001, False), (1.0, True)])
async def test_collecting_that_takes_long_is_done_less_often(
    monkeypatch: pytest.MonkeyPatch, event_store: EventStore, tmp_path: Path, share: float, often: bool
) -> None:
    done: Counter[str] = Counter()
    five_rounds = asyncio.Event()

    def step(name: str) -> Callable[..., object]:
        async def counted(*arguments: object) -> None:
            del arguments
            done[name] += 1
            if name == "unscoped_collect":
                await asyncio.sleep(0.1)
            # The last of a round that is always done.
            if done["unscoped_newest_pending"] == 5:
                five_rounds.set()

        return counted

    for name in STEPS:
        monkeypatch.setattr(upkeep, name, step(name))
    monkeypatch.setattr(upkeep, "_ROUND_SECONDS", 0.001)
    monkeypatch.setattr(upkeep, "_COLLECTING_SHARE", share)
    keeping = asyncio.create_task(upkeep.keep_up(event_store, tmp_path, {}))
    async with asyncio.timeout(30):
        await five_rounds.wait()
    keeping.cancel()
    assert (done["unscoped_collect"] > 1) is often
