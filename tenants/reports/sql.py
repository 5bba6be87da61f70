"""What the queries of all reports share: whose rows, of when, and a field's value as text."""

from typing import Any

# The columns of `events` that people filter and break down by, besides the fields of params.
COLUMNS = ("category", "event_token", "currency")


def text_of(field: str, parameter: str) -> tuple[str, dict[str, Any]]:
    """An expression for a field's value, and its parameters."""
    raise NotImplementedError((field, parameter))
