"""Machines with onepx on them: one for a single story, and one that stories share which only send hits and read."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import App, Machine, Tenant


@pytest.fixture(scope="session")
def shop_of_all(tmp_path_factory: pytest.TempPathFactory) -> App:
    """An app of a tenant without limits to speak of, in a control database to be copied."""
    machine = Machine(tmp_path_factory.mktemp("template"))
    tenant = machine.tenant()
    tenant.limit(1_000_000, 1_000_000)
    return tenant.app()


@pytest.fixture
def shop(shop_of_all: App, tmp_path: Path) -> Iterator[App]:
    """An app nobody hit yet, whose limit no load reaches, on a machine of the test's own with nothing running."""
    template = shop_of_all.tenant.machine
    machine = Machine(tmp_path, secrets=list(template.secrets))
    machine.data_dir.mkdir()
    for path in template.data_dir.glob("control.sqlite3*"):
        shutil.copy(path, machine.data_dir)
    yield App(shop_of_all.token, Tenant(machine, shop_of_all.tenant.email, shop_of_all.tenant.key))
    machine.close()


@pytest.fixture
def machine(shop: App) -> Machine:
    """The machine of `shop`."""
    return shop.tenant.machine


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("shared"))
    machine.start()
    yield machine
    machine.close()


@pytest.fixture
def shared(running: Machine) -> Iterator[Machine]:
    """A machine with `onepx serve` running, shared by many tests: stop nothing on it."""
    yield running
    running.check_logs()


@pytest.fixture(scope="session")
def tenant_of_all(running: Machine) -> Tenant:
    return running.tenant()


@pytest.fixture
def alice(shared: Machine, tenant_of_all: Tenant) -> Tenant:
    """A tenant on the shared machine."""
    return tenant_of_all


@pytest.fixture
def app(alice: Tenant) -> App:
    """An app nobody hit yet, on the shared machine."""
    return alice.app()


@pytest.fixture(scope="session")
def app_of_all(tenant_of_all: Tenant) -> App:
    return tenant_of_all.app()


@pytest.fixture
def any_app(shared: Machine, app_of_all: App) -> App:
    """An app for looking at replies only: others hit it too."""
    return app_of_all
