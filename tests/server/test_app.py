# pyright: reportPrivateUsage=false

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from server import app as module


async def test_an_outage_is_one_warning_however_long(monkeypatch: pytest.MonkeyPatch) -> None:
    pixel: Any = SimpleNamespace(used={"a": 1.0})
    answers = iter(["away", "away", "back", "away", "away"])
    written: list[Mapping[str, float]] = []
    ended = asyncio.Event()

    async def write(used: Mapping[str, float]) -> None:
        answer = next(answers, None)
        if answer is None:
            ended.set()
        elif answer == "away":
            raise ConnectionRefusedError
        else:
            written.append(used)

    monkeypatch.setattr(module, "_LAST_USED_SECONDS", 0.0)
    monkeypatch.setattr(module, "unscoped_used", write)
    with capture_logs() as logged:
        keeping = asyncio.create_task(module._keep_last_used(pixel))
        await ended.wait()
        keeping.cancel()
    assert [line["event"] for line in logged] == ["when tokens were last used is not written down"] * 2
    assert written == [{"a": 1.0}]
