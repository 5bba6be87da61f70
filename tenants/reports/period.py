"""Which time a report is about: chosen by people in days of the app's time zone, asked in UTC.

All arithmetic on days is done here, with Python's time zones, and the event store gets finished boundaries: a day is as
long as it was there, and what a page calls a day is what the query counted as one.
"""

import bisect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from typing import Literal, cast, get_args
from zoneinfo import ZoneInfo

from tenants.errors import InvalidValue

Name = Literal["today", "yesterday", "24h", "7d", "30d", "90d", "365d", "month", "last_month", "custom"]
Interval = Literal["hour", "day", "week", "month"]
NAMES: tuple[Name, ...] = get_args(Name)
INTERVALS: tuple[Interval, ...] = get_args(Interval)

# What a chart can show and a reader can take in.
MAX_BUCKETS = 1_000
MAX_DAYS = 3_660
# Before pixels of ours; far from where the store's times begin.
EARLIEST = date(2000, 1, 1)

# How many days, today included.
_DAYS = {"today": 1, "7d": 7, "30d": 30, "90d": 90, "365d": 365}
_HOURS = 24
# The finest interval with a readable number of points: hours for two days, days for a quarter, weeks for a year.
_FINEST: tuple[tuple[int, Interval], ...] = ((2, "hour"), (92, "day"), (400, "week"))
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Period:
    """From `start` until before `end`, both in the app's time zone; a running period ends now.

    "7d" is today and the 6 days before it, "24h" the running hour and the 23 before it, "month" the running one.
    `asked` is the interval that was asked for, None where it was left to us.
    """

    name: Name
    start: datetime
    end: datetime
    interval: Interval
    asked: Interval | None = None

    @cached_property
    def buckets(self) -> tuple[datetime, ...]:
        """The start of each bucket, in the app's time zone. The first one is `start`, wherever in its week that is."""
        return tuple(_starts(self.start, self.end, self.interval))

    @property
    def zone(self) -> ZoneInfo:
        """The app's time zone."""
        return cast("ZoneInfo", self.start.tzinfo)

    @property
    def first(self) -> date:
        """The first day, as the app's time zone counts them."""
        return self.start.date()

    @property
    def last(self) -> date:
        """The last day, itself included."""
        return max(self.first, _last_day(self.end))

    @cached_property
    def before(self) -> "Period":
        """What to compare with: as many days earlier, up to the same time of day; for a month, the month before."""
        if self.name == "24h":
            return self._moved(
                *(_local(at.astimezone(UTC) - _HOURS * _HOUR, self.zone) for at in (self.start, self.end))
            )
        first, end = self.start.date(), self.end.replace(tzinfo=None)
        if self.name in ("month", "last_month"):
            earlier = (first - _DAY).replace(day=1)
            wall = datetime.combine(first, time())
            if self.name == "month":
                wall = min(datetime.combine(earlier, time()) + (end - wall), wall)
        else:
            days = (self.last - first).days + 1
            earlier = first - days * _DAY
            wall = end - days * _DAY
        zone = self.zone
        start = start_of_day(earlier, zone)
        # Midnight is where a day starts, even where clocks skip it.
        stop = start_of_day(wall.date(), zone) if wall.time() == time() else _at(wall, zone)
        return self._moved(start, max(start, min(stop, self.start, key=datetime.timestamp), key=datetime.timestamp))

    def _moved(self, start: datetime, end: datetime) -> "Period":
        return replace(self, start=start, end=end)

    def query(self) -> dict[str, str]:
        """The parameters that ask for it again, for links."""
        values: dict[str, str] = {"period": self.name}
        if self.name == "custom":
            values |= {"from": self.first.isoformat(), "to": self.last.isoformat()}
        if self.asked:
            values["interval"] = self.asked
        return values


def period_of(values: Mapping[str, str], timezone: str, now: datetime) -> Period:
    """The period that the parameters `period`, `from`, `to` and `interval` ask for; 30 days where there are none.

    `from` and `to` are ISO dates, both included, and mean a custom period where none is named. `timezone` is the
    app's, `now` is aware. Raises InvalidValue for the parameter that cannot be used.
    """
    zone = ZoneInfo(timezone)
    now = now.astimezone(zone).replace(microsecond=0)
    today = now.date()
    # In the second of midnight today would have no length, and the days of a period could not be counted back.
    now = max(
        now, _local(start_of_day(today, zone).astimezone(UTC) + timedelta(seconds=1), zone), key=datetime.timestamp
    )
    name = values.get("period") or ("custom" if values.get("from") or values.get("to") else "30d")
    asked = values.get("interval") or None
    if name not in NAMES:
        raise InvalidValue("period", f"Choose one of these periods: {', '.join(NAMES)}.")
    if asked is not None and asked not in INTERVALS:
        raise InvalidValue("interval", f"Choose one of these intervals: {', '.join(INTERVALS)}.")
    if name == "custom":
        first, last = _custom(values, today)
        start, end = start_of_day(first, zone), min(start_of_day(last + _DAY, zone), now, key=datetime.timestamp)
    elif name == "24h":
        hour = _hour(now).astimezone(UTC)
        # In its first second this hour would have no length, and be none of the 24.
        start, end = (
            _local(hour - (_HOURS - 1) * _HOUR, zone),
            max(now, _local(hour + timedelta(seconds=1), zone), key=datetime.timestamp),
        )
    elif name == "month":
        start, end = start_of_day(today.replace(day=1), zone), now
    elif name == "last_month":
        first = today.replace(day=1)
        start, end = start_of_day((first - _DAY).replace(day=1), zone), start_of_day(first, zone)
    elif name == "yesterday":
        end = start_of_day(today, zone)
        # Not the day before by its number, which clocks may have skipped.
        start = start_of_day(_last_day(end), zone)
    else:
        start, end = start_of_day(today - (_DAYS[name] - 1) * _DAY, zone), now
    return Period(name, start, end, _interval(start, end, asked), asked)


def _custom(values: Mapping[str, str], today: date) -> tuple[date, date]:
    if not values.get("from"):
        raise InvalidValue("from", "Choose the first day.")
    first = _date("from", values["from"])
    last = _date("to", values["to"]) if values.get("to") else today
    if first < EARLIEST:
        raise InvalidValue("from", f"Choose a day from {EARLIEST} on.")
    if first > today:
        raise InvalidValue("from", "This day is still to come.")
    if last < first:
        raise InvalidValue("to", "The last day is before the first.")
    last = min(last, today)
    if (last - first).days >= MAX_DAYS:
        raise InvalidValue("from", "Choose ten years at most.")
    return first, last


def _date(field: str, text: str) -> date:
    try:
        # Python takes week dates and dates without hyphens, too.
        if _DATE.fullmatch(text.strip()):
            return date.fromisoformat(text.strip())
    except ValueError:
        pass
    raise InvalidValue(field, "Write the day as year-month-day, for example 2026-03-31.")


def _interval(start: datetime, end: datetime, asked: Interval | None) -> Interval:
    days = (_last_day(end) - start.date()).days + 1
    interval = asked or _finest(days)
    if interval == "hour" and days * 25 > MAX_BUCKETS:
        interval = "day"
    if interval == "day" and days > MAX_BUCKETS:
        interval = "week"
    return interval


def _last_day(end: datetime) -> date:
    """The day of the last moment before `end`: midnight is not the end of a day where clocks skip it."""
    return _local(end.astimezone(UTC) - timedelta(microseconds=1), cast("ZoneInfo", end.tzinfo)).date()


def _finest(days: int) -> Interval:
    for most, interval in _FINEST:
        if days <= most:
            return interval
    return "month"


def start_of_day(day: date, zone: ZoneInfo) -> datetime:
    """The first moment of a day in a zone: after midnight where clocks skip it, the next day's where they skip both."""
    midnight = _at(datetime.combine(day, time()), zone)
    if midnight.replace(tzinfo=None) == datetime.combine(day, time()):
        return midnight
    # Clocks went forward over it. The first second with that date, or a later one, is where they did.
    earliest = int(midnight.timestamp()) - 172_800
    seconds = bisect.bisect_left(
        range(172_801), day, key=lambda second: datetime.fromtimestamp(earliest + second, zone).date()
    )
    return datetime.fromtimestamp(earliest + seconds, zone)


def _at(wall: datetime, zone: ZoneInfo) -> datetime:
    """When clocks show this, the first time; where they skip it, as much later as they skip."""
    return _local(wall.replace(tzinfo=zone).astimezone(UTC), zone)


def _local(at: datetime, zone: ZoneInfo) -> datetime:
    return at.astimezone(zone)


def _hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def _starts(start: datetime, end: datetime, interval: Interval) -> list[datetime]:
    """Ascending, without two that are the same moment. Compared in UTC: in one zone Python compares clock faces."""
    zone = cast("ZoneInfo", start.tzinfo)
    found = [start]
    stop = end.astimezone(UTC)
    if interval == "hour":
        at = start.astimezone(UTC)
        while True:
            clock = at.astimezone(zone)
            # To the next full hour on the clock; a shift that ends elsewhere starts an hour of its own.
            at += _HOUR - timedelta(minutes=clock.minute, seconds=clock.second)
            if at >= stop:
                return found
            found.append(at.astimezone(zone))
    day = start.date()
    while True:
        if interval == "day":
            day += _DAY
        elif interval == "week":
            day += (7 - day.weekday()) * _DAY
        else:
            day = (day.replace(day=1) + 32 * _DAY).replace(day=1)
        at = start_of_day(day, zone)
        if at.astimezone(UTC) >= stop:
            return found
        if at.astimezone(UTC) > found[-1].astimezone(UTC):
            found.append(at)
