"""A stand-in for a ClickHouse server: its HTTP interface as far as clickhouse-connect uses it, over a real chDB engine.

Run as `python clickhouse_stand_in.py FOLDER PORT`. So SQL, schema and deduplication are the engine's own; only the
transport is made here. `PUT /behaviour` with one of these as its body changes how it treats what follows:

    well              as a ClickHouse server does
    slow SECONDS      waits before each statement
    broken            every statement fails with NOT_ENOUGH_SPACE
    drop TABLE        inserts into TABLE are executed, and their connection cut before the answer
"""
# chDB comes without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
# pyright: reportMissingTypeArgument=false, reportUnknownArgumentType=false

import gzip
import json
import re
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import chdb
import lz4.frame

# Consumed by the transport, never seen by the engine (ClickHouse: HTTPHandler).
TRANSPORT = {
    "query",
    "database",
    "default_format",
    "session_id",
    "query_id",
    "wait_end_of_query",
    "enable_http_compression",
    "send_progress_in_http_headers",
    "http_headers_progress_interval_ms",
    "client_protocol_version",
    "cancel_http_readonly_queries_on_client_close",
    "compress",
    "decompress",
}
INSERT = re.compile(rb"\s*(INSERT INTO\s+`?(\w+)`?.*?)\s+FORMAT\s+(\w+)[ \t]*\n", re.IGNORECASE | re.DOTALL)
FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*$", re.IGNORECASE)
BROKEN = "Code: 243. DB::Exception: Cannot reserve 1.00 MiB, not enough space. (NOT_ENOUGH_SPACE)"


def quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


class Engine:
    """One chDB connection: statements run one after another."""

    def __init__(self, folder: Path) -> None:
        self.behaviour = "well"
        self._folder = folder
        self._turn = threading.Lock()
        self._connection: Any = chdb.connect(str(folder / "events"))

    def run(self, statement: bytes, sent: dict[str, str]) -> tuple[bytes, str, dict[str, str]]:
        """(result, its format, summary). Raises RuntimeError with ClickHouse's message."""
        settings = {k: v for k, v in sent.items() if k not in TRANSPORT and not k.startswith("param_")}
        options = ", ".join(f"{name} = {quoted(value)}" for name, value in settings.items())
        with self._turn:
            if insert := INSERT.match(statement):
                head, form, data = insert[1].decode(), insert[3].decode(), statement[insert.end() :]
                with tempfile.NamedTemporaryFile(dir=self._folder) as file:
                    file.write(data)
                    file.flush()
                    source = f"{head} FROM INFILE {quoted(file.name)}"
                    done = self._connection.query(f"{source} SETTINGS {options or 'async_insert = 0'} FORMAT {form}")
                return b"", form, {"written_rows": str(done.rows_read()), "written_bytes": str(done.bytes_read())}
            text = statement.decode().rstrip().removesuffix(";")
            found = FORMAT.search(text)
            form = found[1] if found else sent.get("default_format", "TabSeparated")
            if options and re.match(r"\s*(SELECT|WITH)\b", text, re.IGNORECASE):
                text = f"{text[: found.start()] if found else text}\nSETTINGS {options}\nFORMAT {form}"
            parameters = {k.removeprefix("param_"): v for k, v in sent.items() if k.startswith("param_")}
            done = self._connection.query(text, form, params=parameters)
            return done.bytes() or b"", form, {"read_rows": str(done.rows_read())}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Engine

    def do_GET(self) -> None:
        if urlsplit(self.path).path == "/ping":
            self._answer(200, b"Ok.\n")
        else:
            self._execute()

    def do_POST(self) -> None:
        self._execute()

    def do_PUT(self) -> None:
        self.engine.behaviour = self._body().decode()
        self._answer(200, b"")

    def _execute(self) -> None:
        sent = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        body = self._body()
        statement = sent["query"].encode() + b"\n" + body if "query" in sent else body
        behaviour, _, detail = self.engine.behaviour.partition(" ")
        if behaviour == "slow":
            time.sleep(float(detail))
        try:
            if behaviour == "broken":
                raise RuntimeError(BROKEN)
            result, form, summary = self.engine.run(statement, sent)
        except RuntimeError as error:
            text = str(error)
            code = re.search(r"Code: (\d+)", text)
            number = code[1] if code else "1001"
            status = 404 if number == "60" else 400 if number in ("27", "33", "62", "117") else 500
            self._answer(status, text.encode(), {"X-ClickHouse-Exception-Code": number})
            return
        insert = INSERT.match(statement)
        if behaviour == "drop" and insert and insert[2].decode() == detail:
            self.close_connection = True
            self.connection.close()
            return
        headers = {"X-ClickHouse-Summary": json.dumps(summary), "X-ClickHouse-Timezone": "UTC"}
        self._answer(200, result, headers | ({"X-ClickHouse-Format": form} if result else {}))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        match self.headers.get("Content-Encoding"):
            case "lz4":
                return lz4.frame.decompress(body)
            case "gzip":
                return gzip.decompress(body)
            case _:
                return body

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        accepted = self.headers.get("Accept-Encoding", "")
        headers = dict(headers or {})
        if body and "lz4" in accepted:
            body, headers["Content-Encoding"] = lz4.frame.compress(body), "lz4"
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: errors reach the client."""


class StandIn(ThreadingHTTPServer):
    daemon_threads = True
    # A stopped server's port is taken again at once.
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError | ValueError):
            super().handle_error(request, client_address)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    Handler.engine = Engine(Path(sys.argv[1]))
    StandIn(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
