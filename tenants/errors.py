"""What the domain refuses, and why: the callers turn these into HTTP answers or command line errors."""

from collections.abc import Collection
from datetime import datetime


class NotFound(Exception):
    """It does not exist, or it is another tenant's: the caller cannot tell the two apart."""


class InvalidValue(Exception):
    """What somebody entered cannot be used: `field` is the parameter, the message a sentence for people."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class TooManyTries(Exception):
    """Refused, whatever was entered, until the time in `until` (UTC)."""

    def __init__(self, until: datetime) -> None:
        super().__init__(f"too many tries until {until:%H:%M:%S} UTC")
        self.until = until


class EmailTaken(InvalidValue):
    """Another user has this e-mail address."""


class SeveralTenants(Exception):
    """Somebody owns several; the message lists what names one of them."""


class Unavailable(Exception):
    """A store does not answer for now: try again later."""


class NewerSchema(Unavailable):
    """A newer version changed a store; what this one would make of it nobody knows. The message says what to do."""

    def __init__(self, store: str, newer: Collection[str]) -> None:
        super().__init__(
            f"{store}: a newer version of onepx changed it ({', '.join(sorted(newer))}); "
            "run that version, or put back a backup of before"
        )


class Busy(Unavailable):
    """As much of this is being done as may be at once: try again in a minute."""
