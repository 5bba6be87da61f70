"""Who comes back: people by the interval of their first event, and how many of them return in each one after.

Intervals are those of the calendar, in the app's time zone. A person's rows become one number: a bit for each interval
they were there in.
"""

import math
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import mode

import msgspec

from tenants.errors import InvalidValue
from tenants.events import Queries
from tenants.hits import MAX_EVENT_TOKEN
from tenants.reports.filters import Filters
from tenants.reports.period import Interval, Period
from tenants.reports.sql import ONE_APP, PERSON, SOMEBODY, Parameters, rows_of, seconds, share_of
from tenants.tables import App

# As many as a number has bits.
MAX_INTERVALS = 64
# Clocks change twice a year; with more, as with months, a list is as fast.
_MAX_RUNS = 4
# The finest interval with a table that can be read: days for a month, weeks for half a year.
_FINEST: tuple[tuple[int, Interval], ...] = ((31, "day"), (183, "week"))
_LONGER: dict[Interval, Interval] = {"hour": "day", "day": "week", "week": "month"}


class Cohort(msgspec.Struct, frozen=True):
    """People whose first event was in the interval that begins at `start`.

    `returned` is how many of them there were in that interval and in each one after, `shares` the same of `size`.
    """

    start: datetime
    size: int
    returned: list[int]
    shares: list[float]


class Retention(msgspec.Struct, frozen=True):
    """A cohort for each interval of the period, empty ones too. `first` and `back` are event tokens, None for any.

    `new` says that those who began before the period are left out.

    `shares` is of all people of the cohorts that are old enough, 0 to 1, from the interval of the first event on; None
    where none is. `running` says that the last interval is not over in the period, so that its numbers still grow.
    """

    interval: Interval
    first: str | None
    back: str | None
    new: bool
    cohorts: list[Cohort]
    shares: list[float | None]
    running: bool


async def retention(
    app: App,
    store: Queries,
    period: Period,
    filters: Filters,
    first: str | None = None,
    back: str | None = None,
    new: bool = False,
) -> Retention:
    """Cohorts by the first event `first` within the period, and who of them did `back` later; None is any event.

    With `new` only of those who had no such event before the period, which takes about twice the time. In the interval
    of the first event everybody counts who did `back` in it, before or after. The intervals are days, weeks or months:
    what `period` asks for, else what suits its length. Raises InvalidValue.
    """
    for name, event_token in (("first", first), ("return", back)):
        if event_token is not None:
            checked_token(name, event_token)
    period = in_intervals(period)
    buckets = period.buckets
    where, parameters = filters.sql()
    interval, more = _interval(period)
    parameters |= more | {"app": str(app.id)}
    begins, returns = "1", "1"
    if first is not None:
        begins, parameters["first"] = "event_token = {first:String}", first
    if back == first:
        returns = begins
    elif back is not None:
        returns, parameters["back"] = "event_token = {back:String}", back
    counted = f" AND ({begins} OR {returns})" if "1" not in (begins, returns) else ""
    rows = f"{rows_of(period.start, period.end)} AND {SOMEBODY}{where}{counted}"
    bit = f"intExp2({interval})"
    if begins == returns:
        bits = f"groupBitOr({bit}) AS there, bitAnd(there, bitXor(there, there - 1)) AS begun"
    else:
        there = f"groupBitOr({bit})" if returns == "1" else f"groupBitOrIf({bit}, {returns})"
        bits = f"{there} AS there, minIf({bit}, {begins}) AS begun"
    people = f"SELECT {bits} {rows} GROUP BY {PERSON}"
    if new:
        before = f"FROM events WHERE {ONE_APP} AND received_at < fromUnixTimestamp64Milli({seconds(period.start)}000)"
        before = f"SELECT {PERSON} {before} AND {SOMEBODY}{where} AND {begins}"
        people = f"{people} HAVING {PERSON} NOT IN ({before})"
    counts = ", ".join(f"countIf(bitTest(there, {number}))" for number in range(len(buckets)))
    found = await store.query(
        f"SELECT begun, count() AS size, [{counts}] AS returned FROM ({people}) WHERE begun != 0 GROUP BY begun",
        parameters,
        app.tenant,
    )
    rows = {int(row["begun"]).bit_length() - 1: row for row in found}
    cohorts: list[Cohort] = []
    for number, start in enumerate(buckets):
        row = rows.get(number)
        size: int = row["size"] if row else 0
        returned: list[int] = list(row["returned"][number:]) if row else [0] * (len(buckets) - number)
        cohorts.append(Cohort(start, size, returned, [share_of(each, size) for each in returned]))
    running = _running(period)
    return Retention(period.interval, first, back, new, cohorts, _shares(cohorts, running), running)


def in_intervals(period: Period) -> Period:
    """The period in days, weeks or months, 64 at most. Raises InvalidValue."""
    days = (period.last - period.first).days + 1
    interval = period.asked or next((interval for most, interval in _FINEST if days <= most), "month")
    if interval == "hour":
        interval = "day"
    found = replace(period, interval=interval)
    while len(found.buckets) > MAX_INTERVALS:
        if found.interval == "month":
            raise InvalidValue("from", f"Choose {MAX_INTERVALS} months at most.")
        found = replace(period, interval=_LONGER[found.interval])
    return found


def checked_token(parameter: str, event_token: str) -> str:
    """An event token that can be asked for. Raises InvalidValue for `parameter`."""
    if not event_token or len(event_token) > MAX_EVENT_TOKEN:
        raise InvalidValue(parameter, f"An event token has 1 to {MAX_EVENT_TOKEN} characters.")
    try:
        event_token.encode()
    except UnicodeEncodeError:
        raise InvalidValue(parameter, "This is no text.") from None
    return event_token


def _interval(period: Period) -> tuple[str, Parameters]:
    """The number of the interval that a row is in, and the parameters it needs.

    Days and weeks are of one length but for those in which clocks change, and are divided by it from there on. Months
    are looked up in a list by the slot of time: all slots are of one length, the longest that all are made of, a day
    or, where clocks change, an hour or a part of one. `roundDown` would search a list for each row.
    """
    starts = [seconds(at) for at in period.buckets]
    lengths = [end - start for start, end in pairwise(starts)]
    # The first interval may be the rest of one.
    usual = mode(lengths[1:] or lengths) if lengths else max(1, seconds(period.end) - starts[0])
    # Where intervals of the usual length begin, and begin again after one of another length.
    runs = [0, *(number for number, length in enumerate(lengths, 1) if length != usual)]
    if len(runs) <= _MAX_RUNS:
        # When the first interval of all would have begun, were all before these of the usual length.
        since = f"{starts[0]}000"
        for before, first in pairwise(runs):
            # The longer day before clocks are put back is one day, too: its last hour counts from the next one on.
            begins = min(starts[first], starts[before] + (first - before) * usual)
            later = f"received_at >= fromUnixTimestamp64Milli({begins}000)"
            since = f"if({later}, {starts[first] - first * usual}000, {since})"
        number = f"toUInt8(intDiv(toUnixTimestamp64Milli(received_at) - {since}, {usual}000))"
        # Nothing comes after the last one, however long it is: a day after the rest of one, a day of 25 hours.
        longer = seconds(period.end) - starts[-1] > usual
        return (f"least({number}, toUInt8({len(starts) - 1}))" if longer else number), {}
    slot = math.gcd(*(at - starts[0] for at in starts[1:])) or max(1, seconds(period.end) - starts[0])
    ends = [*starts[1:], seconds(period.end)]
    slots = [max(1, math.ceil((end - start) / slot)) for start, end in zip(starts, ends, strict=True)]
    listed = "arrayFlatten(arrayMap((n, interval) -> arrayWithConstant(n, interval), {slots:Array(UInt32)}, "
    listed += "{intervals:Array(UInt8)}))"
    at = f"intDiv(toUnixTimestamp64Milli(received_at) - {starts[0]}000, {slot}000)"
    return f"{listed}[{at} + 1]", {"slots": slots, "intervals": list(range(len(starts)))}


def _shares(cohorts: list[Cohort], running: bool) -> list[float | None]:
    shares: list[float | None] = []
    for distance in range(len(cohorts)):
        old = [cohort for cohort in cohorts if cohort.size and distance < len(cohort.returned) - running]
        people = sum(cohort.size for cohort in old)
        shares.append(share_of(sum(cohort.returned[distance] for cohort in old), people) if people else None)
    return shares


def _running(period: Period) -> bool:
    """Whether the last interval goes on after the period."""
    return len(replace(period, end=period.end + timedelta(seconds=1)).buckets) == len(period.buckets)
