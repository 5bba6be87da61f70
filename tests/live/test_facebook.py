"""Access tokens and audiences on a running machine: from the pixel to Graph and back, and no secret anywhere."""

import base64
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from graph_stand_in import Answer, GraphStandIn
from machine import App, Machine, wait_until

from tenants.audience_members import email_hash

PASSWORD = "correct horse battery"
TOKEN = "EAABlivetoken0123456789"
EXPIRED = "EAABexpiredtoken0123456789"
SYSTEM_TOKEN = "EAABsystemtoken0123456789"
SECRET = "0123456789abcdef0123456789abcdef"
SECRETS = (TOKEN, EXPIRED, SYSTEM_TOKEN, SECRET)


@pytest.fixture
def graph() -> Iterator[GraphStandIn]:
    stand_in = GraphStandIn()
    yield stand_in
    stand_in.close()


@pytest.fixture
def serving(shop: App, machine: Machine, graph: GraphStandIn) -> App:
    """The shop on a running machine whose Graph is ours; no log may tell a secret."""
    machine.environ["ONEPX_GRAPH_URL"] = graph.url
    machine.environ["ONEPX_LOG_LEVEL"] = "debug"
    machine.secrets += SECRETS
    machine.start()
    return shop


@pytest.fixture
def browser(serving: App, machine: Machine) -> Iterator[httpx.Client]:
    """The owner's."""
    machine.run("user", "password", "--email", serving.tenant.email, f"--password={PASSWORD}")
    address = f"http://127.0.0.1:{machine.process.port}"
    with httpx.Client(base_url=address, headers={"Origin": address}, follow_redirects=True, timeout=20) as browser:
        assert browser.post("/login", data={"email": serving.tenant.email, "password": PASSWORD}).status_code == 200
        yield browser


def rows(machine: Machine, query: str) -> list[tuple[Any, ...]]:
    """Of the control database."""
    with sqlite3.connect(f"file:{machine.data_dir}/control.sqlite3?mode=ro", uri=True) as database:
        return database.execute(query).fetchall()


def app_path(machine: Machine) -> str:
    return f"/apps/{rows(machine, 'SELECT id FROM app')[0][0]}"


def encodings(token: str) -> list[str]:
    """`params` with the token in every form that the protocol knows."""
    text = json.dumps({"access_token": token, "plan": "pro", "email": "Ann@Example.org"})
    encoded = base64.b64encode(text.encode()).decode()
    forms = [quote(text), quote(quote(text)), quote(encoded), encoded.replace("+", "-").replace("/", "_").rstrip("=")]
    return [*forms, quote(json.dumps({"access_token": f"  {token} "}))]


def found_in(folder: Path, needles: tuple[bytes, ...]) -> list[str]:
    return [
        f"{path.relative_to(folder)}: {needle.decode()}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for content in [path.read_bytes()]
        for needle in needles
        if needle in content
    ]


def as_stored(token: str) -> tuple[bytes, ...]:
    """What a token looks like in bytes: as it is, and in Base64 at each place it may begin at."""
    shifted = [base64.b64encode(b" " * n + token.encode())[4:-4] for n in range(3)]
    return (token.encode(), *shifted)


def test_a_token_becomes_a_person_and_shows_nowhere(
    serving: App, machine: Machine, graph: GraphStandIn, browser: httpx.Client
) -> None:
    graph.secret = SECRET
    graph.user(TOKEN, "1234567", name="Ann Other", email="ann@facebook.example")
    path = app_path(machine)
    reply = browser.post(f"{path}/facebook", data={"facebook_app_id": "4711", "facebook_secret": SECRET})
    assert reply.status_code == 200
    cookie: dict[str, str] = {}
    for params in encodings(TOKEN):
        reply = serving.hit(f"event_token=signup&params={params}&debug=1", headers=cookie)
        assert reply.status == 200
        cookie = cookie or {"Cookie": reply.all("set-cookie")[0].partition(";")[0]}
    # Not recorded, and not to be shown either.
    for params in encodings(TOKEN):
        serving.hit(f"params={params}&access_token={TOKEN}")
        serving.hit(f"event_token=sale&amount=1,5&params={params}", "revenue")
    wait_until(lambda: rows(machine, "SELECT 1 FROM token_sender WHERE told"), 10.0)
    wait_until(lambda: not rows(machine, "SELECT 1 FROM token_sender WHERE NOT told"), 10.0)
    assert graph.count("me") == graph.count("custom_audience_third_party_id") == 1
    # An e-mail address that Facebook tells is nobody's identifier.
    identifiers = {bytes(key[16:]) for (key,) in rows(machine, "SELECT key FROM identifier")}
    assert identifiers == {b"\x02ann@example.org", b"\x031234567"}
    assert rows(machine, "SELECT sealed FROM access_token") == [(None,)]

    # Whatever can be read shows no secret.
    pages = ["", "/revenue", "/live", "/rejected", "/settings", "/audiences", "/export?format=csv"]
    for page in pages:
        reply = browser.get(f"{path}{page}", params={"whole": "1"} if "?" not in page else None)
        assert reply.status_code == 200
        assert not [secret for secret in SECRETS if secret in reply.text]
    told = repr(serving.events()) + repr(serving.rejections()) + machine.process.get("/metrics").body.decode()
    assert len(serving.events()) == 5
    assert not [secret for secret in SECRETS if secret in told]
    machine.stop()
    # The next start removes what of the journal was digested before.
    machine.start()
    wait_until(machine.digested, 10.0)
    machine.stop()
    assert found_in(machine.folder, (*as_stored(TOKEN), SECRET.encode())) == []
    # Beside the person's properties, which are for everybody who may see people.
    assert {name.split("/")[0] for name in found_in(machine.data_dir, (b"Ann Other", b"ann@facebook"))} == {"events"}
    properties = machine.stored("SELECT DISTINCT field, value FROM person_properties WHERE field != 'plan'")
    assert sorted(properties) == [
        ["custom_audience_id", '"XG4711-1234567"'],
        ["facebook_email", '"ann@facebook.example"'],
        ["facebook_name", '"Ann Other"'],
        ["facebook_state", '"resolved"'],
    ]
    for table in ("events", "rejections", "person_properties"):
        assert TOKEN not in repr(machine.stored(f"SELECT * FROM {table}"))


def test_while_graph_is_away_a_token_waits_encrypted_and_survives_a_kill(
    serving: App, machine: Machine, graph: GraphStandIn
) -> None:
    graph.next("me", *[Answer(status=500)] * 2)
    serving.hit(f"event_token=signup&params={encodings(TOKEN)[0]}")
    wait_until(lambda: graph.count("me") == 1, 10.0)
    wait_until(lambda: rows(machine, "SELECT 1 FROM access_token WHERE due_at IS NOT NULL AND attempts = 1"), 5.0)
    machine.process.kill()
    assert [state for (state,) in rows(machine, "SELECT state FROM access_token")] == ["waiting"]
    # What of the journal was digested goes with the next start.
    assert {name.split("/")[0] for name in found_in(machine.data_dir, as_stored(TOKEN))} <= {"journal"}
    graph.user(TOKEN, "1234567")
    with sqlite3.connect(f"{machine.data_dir}/control.sqlite3") as database:
        # As if the wait were over.
        database.execute("UPDATE access_token SET due_at = 0")
    machine.start()
    wait_until(lambda: graph.count("me") == 2, 10.0)
    assert rows(machine, "SELECT sealed IS NULL FROM access_token") == [(0,)]
    machine.stop()
    assert found_in(machine.folder, as_stored(TOKEN)) == []


def test_an_expired_token_is_told_on_the_person(serving: App, machine: Machine, graph: GraphStandIn) -> None:
    serving.hit(f"event_token=signup&params={encodings(EXPIRED)[0]}")
    wait_until(lambda: rows(machine, "SELECT 1 FROM token_sender WHERE told"), 10.0)
    machine.stop()
    assert machine.stored("SELECT field, value FROM person_properties WHERE field LIKE 'facebook%'") == [
        ["facebook_state", '"expired"']
    ]


def test_an_audience_is_pushed_and_downloaded(
    serving: App, machine: Machine, graph: GraphStandIn, browser: httpx.Client
) -> None:
    graph.user(SYSTEM_TOKEN, "1")
    path = app_path(machine)
    for n in range(3):
        params = quote(json.dumps({"email": f"n{n}@example.org"}))
        serving.hit(f"event_token={'purchase' if n == 2 else 'signup'}&params={params}")
    wait_until(machine.digested, 10.0)
    form = {
        "name": "Buyers",
        "kind": "did",
        "what": "purchase",
        "value": "1",
        "audience_id": "99",
        "audience_token": SYSTEM_TOKEN,
    }
    page = browser.post(f"{path}/audiences/new", data=form)
    own = page.url.path
    assert (page.status_code, "did purchase" in page.text, SYSTEM_TOKEN in page.text) == (200, True, False)
    assert "It is being pushed." in browser.post(f"{own}/push").text
    wait_until(lambda: ">done<" in browser.get(f"{own}/runs").text, 15.0)
    assert graph.audiences["99"] == [[email_hash("n2@example.org")]]
    download = browser.get(f"{own}/download")
    assert download.text == f"email,uid,extern_id\r\n{email_hash('n2@example.org')},,\r\n"
    assert SYSTEM_TOKEN not in browser.get(f"{own}/change").text
    machine.stop()
    assert found_in(machine.folder, (SYSTEM_TOKEN.encode(),)) == []
