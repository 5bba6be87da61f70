"""The command line as its users meet it: a process of its own, its output and its exit status."""

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.event_store import migrations

ONEPX = Path(sys.executable).with_name("onepx")
Environment = dict[str, str]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ONEPX_")}
    # With a # in its name, at which a URL would end.
    return kept | {"ONEPX_DATA_DIR": str(tmp_path / "data #1"), "COLUMNS": "80"}


def run(environment: Environment, *arguments: str) -> subprocess.CompletedProcess[str]:
    # In a folder that has a `server` of its own: ours must be found all the same.
    (folder := Path(environment["ONEPX_DATA_DIR"]).parent / "cwd" / "server").mkdir(parents=True, exist_ok=True)
    return subprocess.run([ONEPX, *arguments], env=environment, capture_output=True, text=True, cwd=folder.parent)


def told(environment: Environment, *arguments: str) -> dict[str, Any]:
    """The object that the verb prints with --json."""
    done = run(environment, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_from_nothing_to_a_token_and_a_key(environment: Environment) -> None:
    made = told(
        environment, "tenant", "create", "--email", "Ann@example.com", "--name", "Ann", "--password", "long enough!"
    )
    assert made == {"tenant": "Ann", "email": "ann@example.com", "rate": 1000, "burst": 5000}
    limited = told(environment, "tenant", "limit", "--tenant", "ann@example.com", "--rate", "50", "--burst", "100")
    assert (limited["rate"], limited["burst"]) == (50, 100)
    app = told(environment, "app", "create", "--tenant", "ann@example.com", "--name", "Site", "--currency", "eur")
    assert re.fullmatch(r"[0-9a-f]{24}", app["token"])
    assert app["currency"] == "EUR"
    rotated = told(environment, "app", "rotate", "--tenant", "ann@example.com", "--token", app["token"])
    assert rotated["token"] != app["token"]
    revoked = told(environment, "app", "revoke", "--tenant", "ann@example.com", "--token", app["token"])
    assert revoked == {"revoked": app["token"]}
    key = told(environment, "key", "create", "--tenant", "ann@example.com", "--name", "laptop")
    assert key["key"].startswith("onepx_")
    assert key["may_delete"] is False
    of_app = ("key", "create", "--tenant", "ann@example.com", "--name", "shop", "--may-delete", "--app")
    assert told(environment, *of_app, rotated["token"])["may_delete"] is True
    assert "none of that tenant's apps" in run(environment, *of_app, "0" * 24).stderr
    # The key itself is nowhere on disk.
    for path in Path(environment["ONEPX_DATA_DIR"]).rglob("*"):
        assert not path.is_file() or key["key"].encode() not in path.read_bytes()


def test_what_is_deleted_is_named_to_be_sure(environment: Environment) -> None:
    run(environment, "tenant", "create", "--email", "ann@example.com", "--name", "Ann")
    token = told(environment, "app", "create", "--tenant", "ann@example.com", "--name", "Site")["token"]
    delete_app = ("app", "delete", "--tenant", "ann@example.com", "--token", token, "--name")
    delete_tenant = ("tenant", "delete", "--tenant", "ann@example.com", "--name")
    for verb in (delete_app, delete_tenant):
        refused = run(environment, *verb, "Other")
        assert (refused.returncode, "nothing was deleted" in refused.stderr) == (2, True)
    assert told(environment, *delete_app, "Site") == {"deleted": "Site"}
    assert run(environment, *delete_app, "Site").returncode == 2
    assert told(environment, *delete_tenant, "Ann") == {"deleted": "Ann"}
    assert run(environment, *delete_tenant, "Ann").returncode == 2


def test_for_people_the_first_line_is_the_thing_itself(environment: Environment) -> None:
    run(environment, "tenant", "create", "--email", "ann@example.com", "--name", "Ann")
    app = run(environment, "app", "create", "--tenant", "ann@example.com", "--name", "Site")
    token, hint = app.stdout.splitlines()
    assert re.fullmatch(r"[0-9a-f]{24}", token)
    assert f"/{token}/event.gif" in hint
    assert run(environment, "key", "create", "--tenant", "ann@example.com", "--name", "k").stdout.startswith("onepx_")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "VERB"),
        (["fly"], "invalid choice"),
        (["tenant"], "VERB"),
        (["tenant", "create"], "--email"),
        (["tenant", "create", "--email", "nobody", "--name", "N"], "no e-mail address"),
        (["tenant", "create", "--email", "a@example.com", "--name", "N", "--password", "short"], "10 characters"),
        (["tenant", "create", "--email", "a@example.com", "--name", " "], "name"),
        (["tenant", "limit", "--tenant", "none@example.com", "--rate", "5", "--burst", "5"], "none@example.com"),
        (["tenant", "limit", "--tenant", "a@example.com", "--rate", "0", "--burst", "5"], "whole number above zero"),
        (["app", "create", "--tenant", "none@example.com", "--name", "x"], "none@example.com"),
        (["app", "rotate", "--tenant", "none@example.com", "--token", "x"], "none@example.com"),
        (["app", "rotate", "--tenant", "a@example.com", "--token", "x", "--overlap-hours", "-1"], "hours"),
        (["key", "create", "--tenant", "none@example.com", "--name", "x"], "none@example.com"),
        # An argument that is no UTF-8.
        (["user", "password", "--email", "\udcff@example.com", "--password", "0123456789"], "no e-mail address"),
        (["serve", "--port", "0"], "ONEPX_PORT"),
        (["serve", "--workers", "2"], "ONEPX_EVENTS_URL"),
        (["serve", "--workers", "none"], "whole number above zero"),
        (["collect", "--workers", "17"], "a data folder is for 16 processes at most"),
    ],
)
def test_an_error_is_one_clear_line_and_status_2(environment: Environment, arguments: list[str], says: str) -> None:
    done = run(environment, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("onepx: ")
    assert says in line


def test_another_tenants_token_is_as_unknown_as_any(environment: Environment) -> None:
    for name in ("alice", "bob"):
        run(environment, "tenant", "create", "--email", f"{name}@example.com", "--name", name)
    token = told(environment, "app", "create", "--tenant", "alice@example.com", "--name", "hers")["token"]
    for verb in ("rotate", "revoke"):
        hers = run(environment, "app", verb, "--tenant", "bob@example.com", "--token", token)
        nobodys = run(environment, "app", verb, "--tenant", "bob@example.com", "--token", "0" * 24)
        assert (hers.returncode, hers.stderr) == (2, nobodys.stderr)


def test_the_same_e_mail_address_twice(environment: Environment) -> None:
    run(environment, "tenant", "create", "--email", "ann@example.com", "--name", "Ann")
    again = run(environment, "tenant", "create", "--email", "ANN@example.com", "--name", "Ann")
    assert again.returncode == 2
    assert "already" in again.stderr


def test_an_output_that_takes_nothing_is_not_blamed_on_a_store(environment: Environment) -> None:
    made = run(environment, "tenant", "create", "--email", "ann@example.com", "--name", "Ann")
    assert made.returncode == 0
    receipts = [ONEPX, "app", "create", "--tenant", "ann@example.com", "--name", "Site"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(receipts, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "onepx: standard output: No space left on device\n")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(receipts, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("verb", ["migrate", "check"])
def test_a_full_output_of_verbs_that_need_no_tenant(environment: Environment, verb: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([ONEPX, verb], env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("onepx: standard output: No space left on device\n")
    assert "Traceback" not in done.stderr


def test_nothing_goes_into_a_file_that_has_the_number_of_a_closed_stream(environment: Environment) -> None:
    for arguments, status in (("tenant create --email ann@example.com --name Ann", 0), ("tenant create", 2)):
        done = subprocess.run(["/bin/sh", "-c", f"exec {ONEPX} {arguments} <&- >&- 2>&-"], env=environment)
        assert done.returncode == status
    assert told(environment, "key", "create", "--tenant", "ann@example.com", "--name", "k")["key"]


def test_a_password_that_nobody_is_there_to_type(environment: Environment) -> None:
    told(environment, "tenant", "create", "--email", "ann@example.com", "--name", "Ann")
    asked = [ONEPX, "user", "password", "--email", "ann@example.com"]
    # Without a terminal that it could ask on.
    done = subprocess.run(
        asked, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True
    )
    assert done.returncode == 2
    assert done.stderr.endswith("onepx: nobody is there to be asked for the password; give it with --password\n")
    assert "Traceback" not in done.stderr


def test_what_waits_is_shown_where_nothing_can_be_written(environment: Environment) -> None:
    assert "No hit is set aside." in run(environment, "digest", "show").stdout
    state = Path(environment["ONEPX_DATA_DIR"]) / "journal" / "digest.sqlite3"
    state.write_bytes(b"no database, but long enough to be taken for one" * 100)
    done = run(environment, "digest", "show")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "file is not a database" in done.stderr
    checked = run(environment, "check")
    assert "Traceback" not in checked.stderr
    assert "the journal's state cannot be read: file is not a database" in checked.stdout


def test_a_wrong_setting_stops_every_verb_and_names_itself(environment: Environment) -> None:
    done = run(environment | {"ONEPX_TRUSTED_PROXIES": "many"}, "check")
    assert done.returncode == 2
    assert done.stderr.startswith("onepx: ONEPX_TRUSTED_PROXIES: 'many'")


def test_migrate_and_check(environment: Environment) -> None:
    # Small enough for any disk this runs on.
    environment = environment | {"ONEPX_JOURNAL_MAX_BYTES": "1M"}
    before = run(environment, "check", "--json")
    assert before.returncode == 1
    assert any("onepx migrate" in problem for problem in json.loads(before.stdout)["problems"])
    applied = told(environment, "migrate")
    assert applied["control"]
    assert applied["events"] == [name for name, _ in migrations()]
    assert applied["events"][0] == "0001_events"
    assert Path(environment["ONEPX_DATA_DIR"], "events").is_dir()
    assert told(environment, "migrate") == {"control": [], "events": []}
    after = told(environment, "check")
    assert after["ok"]
    assert after["settings"]["ONEPX_SECRET_KEY"] == "(set)"
    assert set(after["findings"]) == {"control database", "event store", "disk", "set aside", "server"}
    piece = Path(environment["ONEPX_DATA_DIR"]) / "journal" / "1-2.damaged"
    piece.touch()
    (problem,) = json.loads(run(environment, "check", "--json").stdout)["problems"]
    assert "1-2.damaged" in problem
    assert "then remove them" in problem


def test_no_verb_uses_what_a_newer_version_changed(environment: Environment) -> None:
    told(environment, "migrate")
    with contextlib.closing(sqlite3.connect(Path(environment["ONEPX_DATA_DIR"], "control.sqlite3"))) as database:
        database.execute("INSERT INTO migration (name, app_name, ran_on) VALUES ('2999', 'control', '2999-01-01')")
        database.commit()
    for arguments in ("serve", "collect", "migrate", "tenant create --email a@b.example --name A"):
        done = run(environment, *arguments.split())
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "a newer version of onepx changed it (2999); run that version" in done.stderr
    problems = json.loads(run(environment, "check", "--json").stdout)["problems"]
    assert [problem for problem in problems if problem.endswith("put back a backup of before")]


def test_a_folder_that_nothing_can_be_written_to(environment: Environment) -> None:
    told(environment, "migrate")
    # Whoever runs the tests may write anywhere: a folder where the lock should be is in everybody's way.
    lock = Path(environment["ONEPX_DATA_DIR"], "run", "serve.lock")
    lock.unlink()
    lock.mkdir()
    done = run(environment, "serve")
    assert (done.returncode, done.stderr) == (2, f"onepx: {lock} cannot be used: Is a directory.\n")


def test_check_tells_of_what_cannot_be_reached(environment: Environment) -> None:
    away = {
        "ONEPX_EVENTS_URL": "clickhouse://u:p4ss@127.0.0.1:1/x",
        "ONEPX_DATABASE_URL": "postgres://u:p4ss@127.0.0.1:1/x",
    }
    done = run(environment | away, "check")
    assert done.returncode == 1
    assert "p4ss" not in done.stdout + done.stderr
    assert "wrong: control database" in done.stdout.lower()
    assert "wrong: event store" in done.stdout.lower()
    assert "Traceback" not in done.stderr


def test_unknown_settings_are_told(environment: Environment) -> None:
    done = run(environment | {"ONEPX_PROT": "1"}, "migrate")
    assert done.returncode == 0
    assert "ONEPX_PROT" in done.stderr


def test_the_demo_waits_in_the_journal_for_a_server(environment: Environment) -> None:
    made = told(environment, "demo")
    assert made["hits"] > 10_000
    assert "onepx serve" in run(environment, "demo").stdout
    assert list(Path(environment["ONEPX_DATA_DIR"], "journal").glob("*.journal"))


def test_a_demo_whose_owner_joined_another_tenant_says_so(environment: Environment) -> None:
    told(environment, "tenant", "create", "--email", "demo@example.com", "--name", "Demo")
    told(environment, "tenant", "create", "--email", "ann@example.com", "--name", "Ann")
    database = sqlite3.connect(Path(environment["ONEPX_DATA_DIR"], "control.sqlite3"))
    with contextlib.closing(database), database:
        database.execute(
            "INSERT INTO membership (tenant, user, role) SELECT tenant.id, users.id, 'owner' FROM tenant, users "
            "WHERE tenant.name = 'Ann' AND users.email = 'demo@example.com'"
        )
    done = run(environment, "demo")
    assert done.returncode == 2
    assert done.stderr.startswith("onepx: demo@example.com owns several tenants (demo@example.com/")
    assert len(done.stderr.splitlines()) == 1


def test_nothing_set_aside(environment: Environment) -> None:
    assert told(environment, "digest", "show") == {"set_aside": []}
    assert told(environment, "digest", "retry") == {"retried": 0}


def test_how_long_an_app_keeps_its_events(environment: Environment) -> None:
    told(environment, "tenant", "create", "--email", "ann@example.com", "--name", "Ann")
    token = told(environment, "app", "create", "--tenant", "ann@example.com", "--name", "Shop")["token"]
    retention = ("app", "retention", "--tenant", "ann@example.com", "--token", token)
    assert told(environment, *retention, "--days", "30") == {"app": "Shop", "retention_days": 30}
    assert told(environment, *retention, "--days", "ever") == {"app": "Shop", "retention_days": None}
    for days in ("0", "-1", "1.5", "36501", "x", ""):
        done = run(environment, *retention, f"--days={days}")
        assert done.returncode == 2
        assert "Days are a whole number from 1 to 36,500." in done.stderr


def test_receipts_of_nobody(environment: Environment) -> None:
    told(environment, "tenant", "create", "--email", "ann@example.com", "--name", "Ann")
    token = told(environment, "app", "create", "--tenant", "ann@example.com", "--name", "Shop")["token"]
    person = ("--tenant", "ann@example.com", "--app", token)
    assert told(environment, "person", "receipts", *person) == {"deletions": []}
    assert run(environment, "person", "receipts", *person).stdout == "Nobody was deleted.\n"
    done = run(environment, "person", "delete", *person, "--email", "nobody@example.com")
    assert (done.returncode, done.stderr) == (2, "onepx: nobody of this app is known by that\n")
    done = run(environment, "person", "delete", *person, "--id", "x")
    assert done.returncode == 2
    assert "'x' is not an id" in done.stderr
