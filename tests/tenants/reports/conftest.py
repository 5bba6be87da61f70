"""Two apps, so that every report can be seen to keep to its own."""

from collections.abc import Callable

import pytest
from stored_hits import Shop

from server.event_store import EventStore


@pytest.fixture
def make_shop(event_store: EventStore) -> Callable[[str], Shop]:
    return lambda timezone: Shop(event_store, timezone)


@pytest.fixture
def shop(make_shop: Callable[[str], Shop]) -> Shop:
    return make_shop("Europe/Berlin")


@pytest.fixture
def other(make_shop: Callable[[str], Shop]) -> Shop:
    return make_shop("Europe/Berlin")
