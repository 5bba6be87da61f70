"""A number and what it was in the period before."""

import msgspec


class Compared(msgspec.Struct, frozen=True):
    """A number in the period and in the one before it."""

    now: int
    before: int
