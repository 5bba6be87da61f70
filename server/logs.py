"""Structured logs on standard error: text on a terminal, else one JSON object a line.

No query string, e-mail address or token may ever be logged. So log what happened and to how many, never what was
sent; and an exception is logged as its type and where it was raised, since its message may repeat what was sent.
"""

import logging
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any, cast

import structlog

# Libraries that put SQL, parameters or request targets into their messages; asyncpg's pool tells once a minute that the
# server is away, which whoever asked has told.
_TALKATIVE = (
    "clickhouse_connect",
    "urllib3",
    "granian",
    "_granian",
    "aiosqlite",
    "piccolo",
    "httpx",
    "httpcore",
    "asyncpg.pool",
)


def set_up(level: str, how: str) -> None:
    """Have structlog and the standard library's loggers write alike. `how`: auto, json or text."""
    as_text = how == "text" or (how == "auto" and sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _where_it_failed,
            structlog.dev.ConsoleRenderer() if as_text else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _where_it_failed(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace `exc_info` by the exception's type and the lines it passed."""
    error: Any = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, tuple):
        error = cast("tuple[Any, ...]", error)[1]
    if isinstance(error, BaseException):
        frames = traceback.extract_tb(error.__traceback__)
        cause = error.__cause__ or error.__context__
        event["exception"] = type(error).__name__ + (f" from {type(cause).__name__}" if cause else "")
        event["at"] = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
    return event


class _Forward(logging.Handler):
    """Passes the standard library's records on to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        # The message unformatted: its arguments are what may hold something sent.
        structlog.get_logger().log(
            record.levelno, str(record.msg).partition("\n")[0], logger=record.name, exc_info=record.exc_info
        )
