"""Who may read /metrics; what /healthz and /metrics say is tested over a socket in tests/live."""

from pathlib import Path
from typing import Any

import pytest

from server.operations import Operations
from server.settings import Settings


@pytest.mark.parametrize(
    ("client", "headers", "allowed"),
    [
        ("127.0.0.1", {"host": "127.0.0.1:8000"}, True),
        ("127.0.0.1", {"host": "LocalHost"}, True),
        ("::1", {"host": "[::1]:8000"}, True),
        # As a socket of both families names it.
        ("::ffff:127.0.0.1", {"host": "127.0.0.1:8000"}, True),
        ("127.0.0.1", {}, True),
        ("192.0.2.7", {"host": "127.0.0.1:8000"}, False),
        ("127.0.0.1", {"host": "127.0.0.1:8000", "x-forwarded-for": "192.0.2.7"}, False),
        ("127.0.0.1", {"host": "127.0.0.1:8000", "forwarded": "for=192.0.2.7"}, False),
        # nginx with `Host $host` alone, HAProxy as it comes.
        ("127.0.0.1", {"host": "px.example.com"}, False),
        ("127.0.0.1", {"host": "127.0.0.1.example.com"}, False),
        ("127.0.0.1", {"host": ""}, False),
    ],
)
@pytest.mark.parametrize("token", ["", "a token of at least 32 characters"])
async def test_without_a_token_metrics_are_for_this_machine(
    tmp_path: Path, client: str, headers: dict[str, str], allowed: bool, token: str
) -> None:
    settings = Settings.from_environment({"ONEPX_DATA_DIR": str(tmp_path), "ONEPX_METRICS_TOKEN": token})
    nothing: Any = None
    operations = Operations(settings, nothing, nothing, nothing)
    scope: dict[str, Any] = {
        "client": (client, 4711),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    may = operations._may_read_metrics  # pyright: ignore[reportPrivateUsage]
    assert may(scope) == (allowed and not token)
    scope["headers"].append((b"authorization", f"Bearer {token}".encode()))
    assert may(scope) == (allowed or bool(token))
