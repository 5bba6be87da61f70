"""Tokens issued, rotated and revoked while they are hit: what was changed counts everywhere within two seconds."""

import secrets
import time
from statistics import median

import pytest
from machine import SOON, App, Client, Load, Machine, Process, Tenant, wait_until


@pytest.fixture
def collect(shared: Machine) -> Process:
    """A `collect` beside the shared machine's `serve`."""
    running = [process for process in shared.processes if process.running()]
    return running[1] if len(running) > 1 else shared.start("collect")


def everywhere(shared: Machine, collect: Process, app: App, status: int) -> bool:
    return all(
        process.client.send(app.target("event_token=a")).status == status for process in (shared.process, collect)
    )


def test_a_new_token_works_at_once(shared: Machine, collect: Process, alice: Tenant) -> None:
    for process in (shared.process, collect):
        app = alice.app()
        assert process.client.send(app.target("event_token=first")).status == 200


def test_a_token_asked_for_before_it_existed_works_once_it_does(shared: Machine, alice: Tenant) -> None:
    # Unknown tokens are remembered; that must not outlive the issue of one.
    client = shared.process.client
    for _ in range(20):
        assert client.send(f"/{secrets.token_hex(12)}/event.gif?event_token=a").status == 404
    assert client.send(alice.app().target("event_token=a")).status == 200


def test_revoking_counts_within_two_seconds_under_load(shared: Machine, collect: Process, alice: Tenant) -> None:
    app = alice.app()
    loads = [
        Load(process, lambda c, n: app.target(f"event_token=a&n={c}-{n}"), rate=200)
        for process in (shared.process, collect)
    ]
    time.sleep(0.2)
    alice.revoke(app)
    revoked = time.monotonic()
    wait_until(lambda: everywhere(shared, collect, app, 404), SOON)
    assert time.monotonic() - revoked < SOON
    time.sleep(0.2)
    for load in loads:
        load.end()
        statuses = list(load.answered.values())
        assert set(statuses) == {200, 404}
    # What was accepted before stays readable by its owner.
    accepted = sum(len(load.with_status(200)) for load in loads)
    wait_until(lambda: len(app.events()) >= accepted, SOON)


def test_rotated_tokens_overlap(shared: Machine, collect: Process, alice: Tenant) -> None:
    old = alice.app()
    new = alice.rotate(old, overlap_hours=1)
    assert everywhere(shared, collect, new, 200)
    time.sleep(SOON)
    assert everywhere(shared, collect, old, 200)
    # Both lead to the same app.
    wait_until(lambda: len(new.events()) == 4 and len(old.events()) == 4, SOON)


def test_rotated_without_overlap_the_old_token_ends_within_two_seconds(
    shared: Machine, collect: Process, alice: Tenant
) -> None:
    old = alice.app()
    assert everywhere(shared, collect, old, 200)
    new = alice.rotate(old, overlap_hours=0)
    wait_until(lambda: everywhere(shared, collect, old, 404), SOON)
    assert everywhere(shared, collect, new, 200)


def test_a_flood_of_unknown_tokens_slows_no_known_one(shared: Machine, any_app: App) -> None:
    flood = Load(shared.process, lambda c, n: f"/{secrets.token_hex(12)}/event.gif", connections=32)
    client = Client(shared.process.port)
    waits: list[float] = []
    for _ in range(100):
        began = time.monotonic()
        assert client.send(any_app.target("event_token=a")).status == 200
        waits.append(time.monotonic() - began)
    flood.end()
    assert set(flood.answered.values()) == {404}
    assert median(waits) < 0.05
