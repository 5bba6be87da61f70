"""A stand-in for Facebook's Graph API: the calls, errors and limits that onepx knows, on a port of this machine.

As Graph, it repeats in its errors what was sent: a token that gets into a log or a page is found by the tests.
"""

import contextlib
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

VERSION = "v24.0"


@dataclass
class Asked:
    """A request as it came."""

    method: str
    path: str
    sent: dict[str, str]
    token: str
    at: float = field(default_factory=time.monotonic)

    @property
    def payload(self) -> Any:
        return json.loads(self.sent["payload"])

    @property
    def session(self) -> Any:
        return json.loads(self.sent["session"])


@dataclass
class Answer:
    """What one request is answered instead of what it asked for. Status 0: the connection ends without a reply."""

    status: int = 200
    code: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes | None = None
    seconds: float = 0.0


class GraphStandIn:
    """Answers until `close`. `users`: by token, what /me says. `answers` come first, one a request, by what it asks."""

    def __init__(self) -> None:
        self.users: dict[str, dict[str, str]] = {}
        # Of Facebook apps that want a proof.
        self.secret: str | None = None
        self.asked: list[Asked] = []
        self.answers: dict[str, list[Answer]] = {}
        self.audiences: dict[str, list[list[str]]] = {}
        self.invalid = 0
        self.headers: dict[str, str] = {}
        # While it is clear, whoever asks waits.
        self.going = threading.Event()
        self.going.set()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                stand_in.answer(self, dict(parse_qsl(urlsplit(self.path).query)))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                stand_in.answer(self, dict(parse_qsl(body.decode())))

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.going.set()
        self._server.shutdown()
        self._server.server_close()

    def user(self, token: str, fbid: str, **about: str) -> None:
        """From now on the token is this user's."""
        self.users[token] = {"id": fbid, **about}

    def next(self, what: str, *answers: Answer) -> None:
        """What the next requests for `me`, `custom_audience_third_party_id` or `users` are answered."""
        self.answers.setdefault(what, []).extend(answers)

    def count(self, what: str, token: str | None = None) -> int:
        """How often this was asked for, with this token."""
        return sum(each.path.endswith("/" + what) and token in (None, each.token) for each in list(self.asked))

    def answer(self, handler: BaseHTTPRequestHandler, sent: dict[str, str]) -> None:
        path = urlsplit(handler.path).path
        token = handler.headers.get("authorization", "").removeprefix("Bearer ")
        asked = Asked(handler.command, path, sent, token)
        self.asked.append(asked)
        self.going.wait(30)
        what = path.rpartition("/")[2]
        planned = self.answers.get(what)
        answer = planned.pop(0) if planned else Answer()
        time.sleep(answer.seconds)
        if answer.status == 0:
            handler.close_connection = True
            return
        status, body = answer.status, answer.body
        if body is None:
            if answer.code is not None:
                body = self._error(answer.code, token)
                status = status if status != 200 else 400
            else:
                status, body = self._reply(asked, status)
        with contextlib.suppress(ConnectionError):  # of who was killed meanwhile
            self._send(handler, status, {**self.headers, **answer.headers}, body)

    def _send(self, handler: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str], body: bytes) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _error(self, code: int, token: str) -> bytes:
        about = {"message": f"Something about {token}", "type": "OAuthException", "code": code, "fbtrace_id": "A1"}
        return json.dumps({"error": about}).encode()

    def _reply(self, asked: Asked, status: int) -> tuple[int, bytes]:
        if status != 200:
            return status, self._error(2, asked.token) if status < 500 else b"<html>Sorry</html>"
        if self.secret is not None:
            proof = hmac.new(self.secret.encode(), asked.token.encode(), hashlib.sha256).hexdigest()
            if asked.sent.get("appsecret_proof") != proof:
                return 400, self._error(100, asked.token)
        version, _, path = asked.path.lstrip("/").partition("/")
        if version != VERSION:
            return 400, self._error(2635, asked.token)
        user = self.users.get(asked.token)
        if user is None:
            return 400, self._error(190, asked.token)
        if path == "me":
            wanted = asked.sent["fields"].split(",")
            return 200, json.dumps({name: user[name] for name in wanted if name in user}).encode()
        thing, _, what = path.partition("/")
        if what == "custom_audience_third_party_id":
            return 200, json.dumps({what: f"XG{thing}-{user['id']}"}).encode()
        if what == "users" and asked.method == "POST":
            rows = asked.payload["data"]
            self.audiences.setdefault(thing, []).extend(rows)
            done: dict[str, Any] = {
                "audience_id": thing,
                "session_id": str(asked.session["session_id"]),
                "num_received": len(rows),
                "num_invalid_entries": self.invalid,
                "invalid_entry_samples": {},
            }
            return 200, json.dumps(done).encode()
        return 404, self._error(803, asked.token)
