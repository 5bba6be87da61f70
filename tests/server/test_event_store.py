"""What the event store does beside storing: it lets hits go before reports."""
# pyright: reportPrivateUsage=false

import secrets
import time
from uuid import uuid4

import pytest

from server.event_store import EventStore
from tenants.events import rejection_row
from tenants.hits import Rejection


async def threads(store: EventStore) -> str:
    return (await store.query("SELECT toString(getSetting('max_threads')) AS threads"))[0]["threads"]


@pytest.mark.parametrize(("hits", "busy"), [(1, False), (500, True)])
async def test_reports_take_one_core_while_many_hits_come_in(event_store: EventStore, hits: int, busy: bool) -> None:
    event_store._busy_until = 0.0
    usual = await threads(event_store)
    now = int(time.time() * 1000)
    rejection = Rejection("missing_event_token", "Say what happened.", secrets.token_hex(100))
    rows = [rejection_row(rejection, uuid4().int, now, number, "event") for number in range(hits)]
    await event_store.insert("rejections", rows, uuid4().hex)
    assert await threads(event_store) == ("1" if busy else usual)
    event_store._busy_until = 0.0
    assert await threads(event_store) == usual
