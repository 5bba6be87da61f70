"""Averages of amounts: whole minor units, never fractions."""


def divided(amount: int, by: int) -> int:
    """The average in whole minor units, rounded half away from zero; 0 by nobody."""
    if not by:
        return 0
    rounded = (2 * abs(amount) + by) // (2 * by)
    return rounded if amount >= 0 else -rounded
