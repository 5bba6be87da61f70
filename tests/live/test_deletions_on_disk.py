"""A person's data, on a real machine: exported whole, and deleted so that no byte of their address is on the disk."""

import contextlib
import json
import os
import sqlite3
import subprocess
from base64 import b64encode
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import msgspec
from machine import ONEPX, App, Client, Machine, wait_until

from server.journal import Frame, read_frames, segment_sizes

# The engine lets go of what was replaced at once, not after minutes.
AT_ONCE = (
    "old_parts_lifetime = 1, cleanup_thread_preferred_points_per_iteration = 1, cleanup_delay_period = 1, "
    "max_cleanup_delay_period = 1, cleanup_delay_period_random_add = 0"
)
# Letters at random, which no compression makes others of.
ANN, BOB = "ann.k7w2qzx9vj4m@example.org", "bob.h3t8ylr6cd5n@example.org"
TABLES = ("events", "rejections", "traffic", "person_aliases", "person_properties")


def without_delay(machine: Machine) -> None:
    """Have the event store remove old files soon, whose default protects them from a power cut."""
    machine.run("migrate")
    program = (
        "import clickhouse_connect, sys\n"
        "client = clickhouse_connect.get_client(dsn=sys.argv[1])\n"
        "for statement in sys.argv[2:]: client.command(statement)\n"
        "client.close()\n"
    )
    statements = [f"ALTER TABLE {table} MODIFY SETTING {AT_ONCE}" for table in TABLES]
    python = ONEPX.with_name("python")
    subprocess.run([python, "-c", program, f"chdb://{machine.data_dir}/events", *statements], check=True, timeout=60)


def files_with(folder: Path, address: str) -> list[str]:
    """Files with the address in them, in any form that it was sent in."""
    user, _, host = address.partition("@")
    texts = [address, f"{user}%40{host}", f"{user}%2540{host}"]
    # Wherever in it the encoding begins, without the edges; of files in small letters.
    coded = [b64encode(b"\0" * offset + address.encode())[4:-4].decode() for offset in range(3)]
    forms = [form.lower().encode() for form in (*texts, *coded)]
    found: list[str] = []
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                data = path.read_bytes().lower()
                found += [str(path)] if any(form in data for form in forms) else []
    return found


def rows_with(machine: Machine, address: str) -> dict[str, int]:
    """How many rows of each table of both stores have it in any text, as the stores themselves read them."""
    columns = machine.stored(
        "SELECT table, name FROM system.columns WHERE database = currentDatabase() AND type LIKE '%String%'"
    )
    counts = [
        f"SELECT '{table}', count() FROM {table} WHERE position(toString(`{name}`), '{address}') > 0"
        for table, name in columns
    ]
    found: dict[str, int] = {}
    for table, count in machine.stored(" UNION ALL ".join(counts)):
        found[table] = found.get(table, 0) + count
    with contextlib.closing(sqlite3.connect(machine.data_dir / "control.sqlite3")) as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            rows = database.execute(f"SELECT * FROM {table}").fetchall()
            found[table] = sum(address.encode() in b" ".join(map(_bytes, row)) for row in rows)
    return {table: count for table, count in found.items() if count}


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def sent(**params: Any) -> str:
    return "params=" + quote(json.dumps(params))


def cookie_of(app: App, query: str, category: str = "event", cookie: str = "") -> str:
    """Send a hit with this cookie; returns the cookie that the browser has then."""
    reply = app.hit(query, category, headers={"Cookie": cookie} if cookie else {})
    assert reply.status == 200
    return cookie or reply.all("set-cookie")[0].partition(";")[0]


def person(machine: Machine, verb: str, app: App, *who: str) -> "subprocess.CompletedProcess[bytes]":
    """`onepx person …` of this app, whatever comes of it."""
    return subprocess.run(
        [ONEPX, "person", verb, "--tenant", app.tenant.email, "--app", app.token, *who],
        env=machine._environ({}),  # pyright: ignore[reportPrivateUsage]
        capture_output=True,
        timeout=60,
        check=False,
    )


def exported(machine: Machine, app: App, *who: str) -> dict[str, Any]:
    done = person(machine, "export", app, *who)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def visit(app: App) -> tuple[str, str]:
    """Ann's and Bob's hits; returns their cookies."""
    ann = cookie_of(app, "event_token=view&" + sent(page="/"))
    cookie_of(app, "event_token=signup&" + sent(email=ANN.upper(), uuid=7, plan="pro"), cookie=ann)
    cookie_of(app, "event_token=buy&amount=2500", "revenue", ann)
    coded = b64encode(json.dumps({"email": ANN}).encode()).decode()
    cookie_of(app, f"event_token=opened&params={quote(coded)}")
    # Nobody answers at Facebook, so the token waits.
    cookie_of(app, "event_token=connected&" + sent(email=ANN, access_token="EAABofann"), cookie=ann)
    # Rejected, and one of Bob's by a mail that was passed on.
    app.hit("event_token=&" + sent(email=ANN))
    bob = cookie_of(app, "event_token=signup&" + sent(email=BOB, uuid=8, plan="free"))
    cookie_of(app, "event_token=passed_on&" + sent(email=ANN, uuid=8), cookie=bob)
    return ann, bob


def test_no_byte_of_a_deleted_person_stays(shop: App, machine: Machine) -> None:
    machine.secrets += [ANN, BOB]
    without_delay(machine)
    machine.start()
    collector = machine.start("collect")
    ann, bob = visit(shop)
    client = Client(collector.port)
    assert client.send(shop.target("event_token=again&" + sent(email=ANN)), headers={"Cookie": ann}).status == 200
    wait_until(lambda: len(shop.events()) == 8, 10)
    before = files_with(machine.data_dir, ANN)
    for part in ("/journal/", "/events/", "/control.sqlite3"):
        assert any(part in path for path in before), f"nothing of {part} can be found in this way"

    # Exported, by the command line and the API alike.
    found = exported(machine, shop, "--email", ANN)
    ann_id = found["person"]["id"]
    assert found["person"]["emails"] == [ANN]
    assert found["person"]["uuids"] == ["7"]
    assert ann.removeprefix("vid=") in found["person"]["visitors"]
    assert [event["event_token"] for event in found["events"]] == [
        "view",
        "signup",
        "buy",
        "opened",
        "connected",
        "again",
    ]
    assert len(found["person"]["access_tokens_waiting_since"]) == 1
    assert {each["field"]: each["value"] for each in found["properties"]}["plan"] == "pro"
    theirs = f"/api/v1/apps/{shop.token}/people/{ann_id}"
    assert json.loads(read(shop, theirs + "/export"))["events"] == found["events"]
    stranger = machine.tenant()
    for method, path in (("GET", theirs + "/export"), ("DELETE", theirs)):
        assert ask(machine, stranger.key, path, method) == 404

    # Deleted.
    receipt = machine.run("person", "delete", "--tenant", shop.tenant.email, "--app", shop.token, "--email", ANN)

    def done() -> bool:
        # The engine looks for old files when it has something to do.
        cookie_of(shop, "event_token=tick", cookie=bob)
        receipts = machine.run("person", "receipts", "--tenant", shop.tenant.email, "--app", shop.token)["deletions"]
        assert [each["receipt"] for each in receipts] == [receipt["receipt"]]
        return receipts[0]["done_at"] is not None

    wait_until(done, 120)
    assert files_with(machine.data_dir, ANN) == []
    assert len(files_with(machine.data_dir, BOB)) > 1
    assert {event["event_token"] for event in shop.events()} == {"signup", "passed_on", "tick"}
    assert ask(machine, shop.tenant.key, theirs + "/export", "GET") == 404

    for verb in ("export", "delete"):
        for who in (("--email", ANN), ("--id", ann_id)):
            done_again = person(machine, verb, shop, *who)
            assert (done_again.returncode, done_again.stdout) == (2, b"")
            assert done_again.stderr == b"onepx: nobody of this app is known by that\n"

    # What they do from now on is a new visitor's.
    cookie_of(shop, "event_token=view", cookie=ann)
    wait_until(lambda: "view" in {event["event_token"] for event in shop.events()}, 10)
    with contextlib.closing(sqlite3.connect(machine.data_dir / "control.sqlite3")) as database:
        # The command line's key went with its question to the server.
        names = {name for (name,) in database.execute("SELECT name FROM api_key")}
        assert "onepx person" not in names
    assert person(machine, "export", shop).stderr == b"onepx: say who: --email, --uuid, --fbid or --id\n"
    # No server is needed.
    machine.stop()
    assert rows_with(machine, ANN) == {}
    assert rows_with(machine, BOB).keys() >= {"events", "identifier"}
    with contextlib.closing(sqlite3.connect(machine.data_dir / "control.sqlite3")) as database:
        for table in ("token_sender", "access_token"):
            assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    assert exported(machine, shop, "--uuid", "8")["person"]["emails"] == [BOB]


def read(app: App, path: str) -> bytes:
    """A chunked answer of any length, read by something that knows HTTP."""
    port = app.tenant.machine.process.port
    return httpx.get(f"http://127.0.0.1:{port}{path}", headers={"Authorization": f"Bearer {app.tenant.key}"}).content


def ask(machine: Machine, key: str, path: str, method: str) -> int:
    client = Client(machine.process.port)
    try:
        return client.send(path, method, {"Authorization": f"Bearer {key}"}).status
    finally:
        client.close()


def test_an_anonymous_visitor_by_the_command_line(shop: App, machine: Machine) -> None:
    """Nobody knows them but by the id of their events; with a server that runs, and without."""
    without_delay(machine)
    machine.start()
    ann, bob = (cookie_of(shop, f"event_token={token}&" + sent(page="/")) for token in ("view", "other"))
    wait_until(lambda: len(shop.events()) == 2, 10)
    (viewed, other) = (event["person_id"] for event in sorted(shop.events(), key=lambda event: event["received_at"]))
    assert [f"vid={id}" for id in (viewed, other)] == [ann, bob]
    stranger = machine.tenant().app()

    def nobody(verb: str, app: App, id: str) -> None:
        done = person(machine, verb, app, "--id", id)
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr == b"onepx: nobody of this app is known by that\n"

    def delete(id: str, token: str) -> None:
        assert [event["event_token"] for event in exported(machine, shop, "--id", id)["events"]] == [token]
        for verb in ("export", "delete"):
            nobody(verb, shop, str(uuid4()))
            nobody(verb, stranger, id)
        assert person(machine, "delete", shop, "--id", id).returncode == 0

    delete(viewed, "view")
    wait_until(lambda: [event["event_token"] for event in shop.events()] == ["other"], 60)
    machine.stop()
    delete(other, "other")
    machine.start()
    wait_until(lambda: shop.events() == [], 60)


def test_what_was_not_digested_yet_brings_nobody_back(shop: App, machine: Machine) -> None:
    """Deleted while nothing digests, with hits in the journal and set aside."""
    machine.secrets += [ANN]
    without_delay(machine)
    serve = machine.start()
    ann = cookie_of(shop, "event_token=signup&" + sent(email=ANN))
    wait_until(lambda: len(shop.events()) == 1, 10)
    serve.stop()
    collector = machine.start("collect")
    for query in ("event_token=again&" + sent(email=ANN), "event_token=later"):
        cookie_of(shop, query, cookie=ann)
    cookie_of(shop, "event_token=other")
    machine.run("person", "delete", "--tenant", shop.tenant.email, "--app", shop.token, "--email", ANN)
    set_aside(machine)
    machine.start()
    collector.stop()

    def done() -> bool:
        receipts = machine.run("person", "receipts", "--tenant", shop.tenant.email, "--app", shop.token)["deletions"]
        cookie_of(shop, "event_token=tick")
        return receipts[0]["done_at"] is not None

    wait_until(done, 120)
    wait_until(lambda: files_with(machine.data_dir, ANN) == [], 30)
    assert {event["event_token"] for event in shop.events()} == {"other", "tick"}
    machine.stop()


def set_aside(machine: Machine) -> None:
    """The journal's hits with an address, once more, as if they had not been digestible before."""
    folder = machine.data_dir / "journal"
    with contextlib.closing(sqlite3.connect(folder / "digest.sqlite3")) as database, database:
        for path, _ in segment_sizes(folder):
            for frame in read_frames(path, 0):
                assert isinstance(frame, Frame)
                for hit in frame.read().hits:
                    if b"email" in hit.query:
                        row = (os.urandom(16), msgspec.msgpack.encode(hit))
                        database.execute("INSERT INTO set_aside (hit_id, hit, error) VALUES (?, ?, 'Bug')", row)
