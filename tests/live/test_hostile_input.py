"""Whatever bytes arrive: never a 5xx, never a traceback, and the next visitor is served."""

import random
import re
import socket
import time
from collections.abc import Iterator

import pytest
from machine import SOON, App, Client, Machine, wait_until

ROUNDS = 4000
SEED = 7
VISITOR = "c23365e5-81fe-4bb7-8deb-87ad4e1dbcb7"

# What parsers trip over: separators, escapes, brackets, invalid and overlong UTF-8, a BOM, surrogates.
PIECES = [
    *(bytes([number]) for number in range(256) if number not in b"\r\n"),
    *(b"%", b"%%", b"%0", b"%00", b"%zz", b"%25" * 40, b"%u0041", b"&amp;" * 9, b"&", b"=", b"+", b";"),
    *(b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", "é😀\u202e".encode()),
    *(b"event_token=", b"params=", b"amount=", b"currency=", b"event_id=", b"debug=1", b"access_token="),
    *(b"[" * 300, b"{" * 300, b'{"a":' * 80, b'"', b"\\u0000", b"\\ud800", b"eyJhIjoxfQ==", b"1e999", b"9" * 400),
    *(b"../", b"//", b"..;/", b".gif", b"?", b"#", b"\t", b"' OR 1=1 --", b"{{7*7}}", b"vid=", VISITOR.encode()),
]


def exchange(port: int, request: bytes) -> bytes:
    """All that a connection of its own gets for these bytes, until the server ends it.

    Where the server waits for more, it hears after a while that nothing will come.
    """
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
        try:
            connection.sendall(request)
            while True:
                try:
                    data = connection.recv(65_536)
                except TimeoutError:
                    connection.settimeout(5.0)
                    connection.shutdown(socket.SHUT_WR)
                    continue
                if not data:
                    return received
                received += data
        except ConnectionError:  # refused in the middle of the request: it may
            return received


def statuses(received: bytes) -> list[int]:
    """The status of each reply."""
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] ([0-9]{3})\b", received)]


def random_request(dice: random.Random, token: str) -> bytes:
    # Most are HTTP, so that they get past the parser: what may not stand raw in a target or a header is escaped there.
    valid = dice.random() < 0.85

    def noise(most: int) -> bytes:
        text = b"".join(dice.choices(PIECES, k=dice.randrange(most)))
        return re.sub(rb"[^!-\"$-~]", lambda raw: b"%%%02X" % raw[0][0], text) if valid else text

    def header(most: int) -> bytes:
        text = b"".join(dice.choices(PIECES, k=dice.randrange(most)))
        return re.sub(rb"[\x00-\x08\x0a-\x1f\x7f]", b"", text) if valid else text

    pixels = [f"/{token}/{category}.gif".encode() for category in ("event", "revenue")]
    path = dice.choice([*pixels, b"/" + noise(8), b"/" + noise(4) + b"/event.gif"])
    query = b"?" + noise(20) if dice.random() < 0.9 else b""
    method = dice.choices([b"GET", b"HEAD", b"POST", b"OPTIONS", b"BREW"], [80, 5, 5, 5, 5])[0]
    lines = [b" ".join([method, path + query, b"HTTP/1.1"]), b"Host: a", b"Connection: close"]
    names = (b"Cookie", b"User-Agent", b"Referer", b"X-Forwarded-For", b"DNT", b"Sec-Purpose", b"X-" + b"n" * 50)
    lines += [name + b": " + header(10) for name in names if dice.random() < 0.4]
    return b"\r\n".join([*lines, b"", b""])


def assert_well(machine: Machine, app: App) -> None:
    """The server serves, and digested everything it kept."""
    assert app.hit("event_token=after", headers={"Cookie": f"vid={VISITOR}"}).status == 200
    wait_until(lambda: app.events("event_token=after"), SOON)
    status, report = machine.process.health()
    assert (status, report["status"]) == (200, "ok")
    assert report["checks"]["backlog"]["set_aside"] == 0


def test_random_bytes_in_path_query_cookie_and_headers(shared: Machine, app: App) -> None:
    dice = random.Random(SEED)
    seen: dict[int, int] = {}
    for _ in range(ROUNDS):
        request = random_request(dice, app.token)
        received = exchange(shared.process.port, request)
        for status in statuses(received):
            assert status < 500, request
            seen[status] = seen.get(status, 0) + 1
        assert received == b"" or received.startswith(b"HTTP/1."), request
    # It was no test of the HTTP parser alone.
    assert seen[200] > ROUNDS / 4
    assert seen[404] > ROUNDS / 10
    assert_well(shared, app)
    stored = len(app.events()) + len(app.rejections())
    assert stored > ROUNDS / 5


def nasties(token: str) -> Iterator[tuple[str, bytes, set[int]]]:
    """(name, request, statuses it may get). An empty set: the connection may just be closed."""
    pixel = f"/{token}/event.gif".encode()
    host = b"Host: a\r\n"

    def get(target: bytes, headers: bytes = b"", version: bytes = b"1.1") -> bytes:
        return b"GET " + target + b" HTTP/" + version + b"\r\n" + host + headers + b"\r\n"

    close = b"Connection: close\r\n"
    # What the pixel itself has to cope with is answered; what is no HTTP may be refused by ending the connection.
    yield "60 kB of query", get(pixel + b"?event_token=" + b"a" * 60_000, close), {200}
    yield "a percent tower", get(pixel + b"?event_token=a&params=" + b"%25" * 2500 + b"7B", close), {200}
    yield "2 MB of query", get(pixel + b"?event_token=" + b"a" * 2_000_000, close), {400, 414, 431}
    yield "a huge header", get(pixel + b"?event_token=a", b"X-A: " + b"a" * 1_000_000 + b"\r\n"), {400, 431}
    yield "2,000 headers", get(pixel + b"?event_token=a", b"X-A: b\r\n" * 2000), {400, 431}
    yield "5,000 cookies", get(pixel + b"?event_token=a", b"Cookie: " + b"vid=; " * 5000 + b"\r\n" + close), {200, 431}
    yield "90 cookie headers", get(pixel + b"?event_token=a", b"Cookie: vid=x\r\n" * 90 + close), {200}
    yield "NUL in the target", get(pixel + b"?event_token=a\0b", close), {400}
    yield "NUL in a header", get(pixel + b"?event_token=a", b"Cookie: a\0b\r\n" + close), {400}
    yield "a line feed in a header", get(pixel + b"?event_token=a", b"Cookie: a\n b\r\n" + close), {200, 400}
    yield "CR in a header", get(pixel + b"?event_token=a", b"Cookie: a\rSet-Cookie: b\r\n" + close), {400}
    yield "escaped CRLF", get(pixel + b"?event_token=a%0d%0aSet-Cookie:%20x=y", close), {200}
    yield "invalid UTF-8 escaped", get(pixel + b"?event_token=%ff%fe%c0%80", close), {200}
    yield "invalid UTF-8 raw", get(pixel + b"?event_token=\xff\xfe", close), {200, 400}
    yield "invalid UTF-8 in the path", get(b"/\xff\xfe/event.gif", close), {400, 404}
    yield "escaped invalid UTF-8 in the path", get(b"/%ff%fe/event.gif", close), {400, 404}
    yield (
        "invalid UTF-8 in headers",
        get(pixel + b"?event_token=a", b"User-Agent: \xff\r\nReferer: \xfe\r\n" + close),
        {200},
    )
    yield "a broken referrer", get(pixel + b"?event_token=a", b"Referer: http://[::1/\r\n" + close), {200}
    yield "HTTP/1.0", get(pixel + b"?event_token=a", version=b"1.0"), {200}
    yield "HTTP/1.0 without Host", b"GET " + pixel + b"?event_token=a HTTP/1.0\r\n\r\n", {200}
    yield "HTTP/1.1 without Host", b"GET " + pixel + b"?event_token=a HTTP/1.1\r\nConnection: close\r\n\r\n", {200, 400}
    yield "HTTP/9.9", get(pixel, version=b"9.9"), {400}
    yield "HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", set()
    yield "an absolute target", get(b"http://other.example" + pixel + b"?event_token=a", close), {200, 400, 404}
    yield "an asterisk target", b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", {200, 204, 400, 404, 405}
    yield "CONNECT", b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", {400, 404, 405}
    yield "an empty target", b"GET  HTTP/1.1\r\nHost: a\r\n\r\n", {400}
    yield "no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400}
    yield "nothing", b"", set()
    yield "half a request", b"GET " + pixel + b"?event_token=a HTTP/1.1\r\nHo", set()
    chunked = b"Transfer-Encoding: chunked\r\n" + close
    yield "a chunked body on GET", get(pixel + b"?event_token=a", chunked) + b"3\r\nabc\r\n0\r\n\r\n", {200}
    yield "a broken chunk", get(pixel + b"?event_token=a", chunked) + b"zz\r\n", {200, 400}
    yield "a body on GET", get(pixel + b"?event_token=a", b"Content-Length: 3\r\n" + close) + b"abc", {200}
    yield "two lengths", get(pixel, b"Content-Length: 3\r\nContent-Length: 4\r\n" + close) + b"abcd", {400}
    yield (
        "length and chunks",
        get(pixel + b"?event_token=a", b"Content-Length: 3\r\n" + chunked) + b"0\r\n\r\n",
        {200, 400},
    )
    yield "a million dots", get(b"/" + b"../" * 10_000 + b"etc/passwd", close), {400, 404}
    yield "a made-up app's API", get(b"/api/v1/apps/%00/events", close), {400, 401, 404}
    yield "a strange limit", get(b"/api/v1/apps/" + token.encode() + b"/events?limit=%ff", close), {400, 401}
    # Pages are made on the loop that takes hits, and some of what strangers send took minutes.
    backslashes = b'Cookie: session="' + b"\\" * 60_000 + b'"\r\n'
    yield "a cookie of backslashes", get(b"/login", backslashes + close), {200}
    yield "a cookie of backslashes where nothing is", get(b"/nothing", backslashes + close), {404}
    yield "200 kB of cookies", get(b"/login", b"Cookie: " + b"a=b;" * 50_000 + b"\r\n" + close), {400, 431}
    yield "thousands of parameters", get(b"/login?" + b"a&" * 30_000, close), {414}
    yield "hundreds of parameters of the API", get(b"/api/v1/apps?" + b"a&" * 300, close), {414}
    yield "a host that is none", b"GET /nothing HTTP/1.1\r\nHost: a:b:c\r\nConnection: close\r\n\r\n", {400, 404}
    yield "invalid UTF-8 raw in a page's query", get(b"/login?next=\xff", close), {200, 400}
    yield "a static file above", get(b"/static/..%2f..%2fapp.py", close), {400, 404}
    yield "a static file with NUL", get(b"/static/%00", close), {400, 404}


NAMES = [name for name, _, _ in nasties("")]


@pytest.mark.parametrize("name", NAMES)
def test_a_nasty_request_is_answered_or_refused(shared: Machine, any_app: App, name: str) -> None:
    ((request, allowed),) = [(r, a) for n, r, a in nasties(any_app.token) if n == name]
    received = exchange(shared.process.port, request)
    found = statuses(received)
    assert len(found) == bool(allowed), received[:300]
    assert set(found) <= allowed, received[:300]
    assert b"x=y" not in received, "what was sent became a header"


def test_pipelined_requests_are_answered_in_their_order(shared: Machine, app: App) -> None:
    targets = [app.target("event_token=a"), "/nothing.gif", app.target("event_token=b"), "/0/event.gif"] * 25
    requests = [f"GET {target} HTTP/1.1\r\nHost: a\r\n" for target in targets]
    last = requests.pop() + "Connection: close\r\n"
    received = exchange(shared.process.port, "\r\n".join([*requests, last, ""]).encode())
    assert statuses(received) == [200, 404, 200, 404] * 25
    wait_until(lambda: len(app.events()) == 50, SOON)


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        ("{pixel}", "", 405),
        ("/nothing", "Sec-Fetch-Site: same-origin\r\n", 404),
        ("/apps", "Sec-Fetch-Site: same-origin\r\n", 405),
        ("/login", "", 403),
        ("/api/v1/apps", "", 405),
        ("/healthz", "", 200),
    ],
)
def test_after_a_body_that_nobody_wanted_the_connection_goes_on_or_says_that_it_ends(
    shared: Machine, any_app: App, target: str, headers: str, status: int
) -> None:
    """A proxy sends somebody else's hit on it."""
    pixel = any_app.target("event_token=a")
    for length, goes_on in ((60_000, True), (70_000, False)):
        request = f"POST {target.format(pixel=pixel)} HTTP/1.1\r\nHost: a\r\n{headers}Content-Length: {length}\r\n\r\n"
        client = Client(shared.process.port)
        client.write(request.encode())
        time.sleep(0.05)
        client.write(b"x" * (length - 1))
        if goes_on:
            time.sleep(0.05)
            client.write(b"x")
        reply = client.finish()
        assert (reply.status, reply.all("connection")) == (status, [] if goes_on else ["close"])
        if goes_on:
            assert client.send(pixel).status == 200
        client.close()


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_whoever_goes_away_in_the_middle_of_a_form_is_no_mistake_of_ours(shared: Machine, kind: str) -> None:
    """Else anybody could fill the log with errors; that it has none is seen at the end."""
    client = Client(shared.process.port)
    client.write(
        f"POST /login HTTP/1.1\r\nHost: a\r\nSec-Fetch-Site: same-origin\r\nContent-Type: {kind}\r\n"
        "Content-Length: 50\r\n\r\nemail=a".encode()
    )
    time.sleep(0.1)
    client.close()
    time.sleep(0.5)


def test_the_server_is_well_after_all_this(shared: Machine, app: App) -> None:
    assert_well(shared, app)
