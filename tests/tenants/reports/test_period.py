"""Periods: what people choose, in days that are 23, 24 or 25 hours long, or not there at all."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants.errors import InvalidValue
from tenants.reports.period import MAX_BUCKETS, NAMES, Period, period_of, start_of_day

# A Tuesday, 10:30 in Berlin.
NOW = datetime(2026, 11, 24, 9, 30, 12, 345_678, tzinfo=UTC)


def at(text: str, zone: str = "Europe/Berlin") -> datetime:
    text = "2026-11-24 10:30:12" if text == "now" else text
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


def asked(values: str, zone: str = "Europe/Berlin", now: datetime = NOW) -> Period:
    return period_of(dict(pair.split("=") for pair in values.split("&") if pair), zone, now)


@pytest.mark.parametrize(
    ("values", "start", "end", "interval", "buckets", "before", "before_end"),
    [
        ("period=today", "2026-11-24", "now", "hour", 11, "2026-11-23", "2026-11-23 10:30:12"),
        ("period=24h", "2026-11-23 11:00", "now", "hour", 24, "2026-11-22 11:00", "2026-11-23 10:30:12"),
        ("period=7d", "2026-11-18", "now", "day", 7, "2026-11-11", "2026-11-17 10:30:12"),
        ("", "2026-10-26", "now", "day", 30, "2026-09-26", "2026-10-25 10:30:12"),
        ("period=90d", "2026-08-27", "now", "day", 90, "2026-05-29", "2026-08-26 10:30:12"),
        ("period=month", "2026-11-01", "now", "day", 24, "2026-10-01", "2026-10-24 10:30:12"),
        ("period=yesterday", "2026-11-23", "2026-11-24", "hour", 24, "2026-11-22", "2026-11-23"),
        ("period=365d", "2025-11-25", "now", "week", 53, "2024-11-25", "2025-11-24 10:30:12"),
        ("period=last_month", "2026-10-01", "2026-11-01", "day", 31, "2026-09-01", "2026-10-01"),
        ("from=2026-11-01&to=2026-11-02", "2026-11-01", "2026-11-03", "hour", 48, "2026-10-30", "2026-11-01"),
        ("from=2026-11-10", "2026-11-10", "now", "day", 15, "2026-10-26", "2026-11-09 10:30:12"),
        ("from=2026-11-10&to=2030-01-01", "2026-11-10", "now", "day", 15, "2026-10-26", "2026-11-09 10:30:12"),
        ("from=2026-01-01&to=2026-06-30", "2026-01-01", "2026-07-01", "week", 27, "2025-07-04", "2026-01-01"),
        ("from=2024-01-15&to=2025-12-31", "2024-01-15", "2026-01-01", "month", 24, "2022-01-28", "2024-01-15"),
        ("period=7d&interval=hour", "2026-11-18", "now", "hour", 155, "2026-11-11", "2026-11-17 10:30:12"),
        ("period=7d&interval=month", "2026-11-18", "now", "month", 1, "2026-11-11", "2026-11-17 10:30:12"),
        ("period=7d&from=2020-01-01", "2026-11-18", "now", "day", 7, "2026-11-11", "2026-11-17 10:30:12"),
        ("period=&from=&to=&interval=", "2026-10-26", "now", "day", 30, "2026-09-26", "2026-10-25 10:30:12"),
    ],
)  # fmt: skip
def test_what_people_ask_for(
    values: str, start: str, end: str, interval: str, buckets: int, before: str, before_end: str
) -> None:
    found = asked(values)
    assert (found.start, found.end, found.interval) == (at(start), at(end), interval)
    assert len(found.buckets) == buckets
    assert found.buckets[0] == found.start
    assert (found.before.start, found.before.end) == (at(before), at(before_end))
    assert asked("&".join(f"{name}={value}" for name, value in found.query().items())) == found


@pytest.mark.parametrize(
    ("now", "before", "before_end"),
    [
        # The month before has no such day: all of it.
        ("2026-03-31 12:00", "2026-02-01", "2026-03-01"),
        ("2026-03-29 12:00", "2026-02-01", "2026-03-01"),
        ("2026-03-28 12:00", "2026-02-01", "2026-02-28 12:00"),
        ("2028-03-29 12:00", "2028-02-01", "2028-02-29 12:00"),
        ("2026-01-01 00:00", "2025-12-01", "2025-12-01 00:00:01"),
    ],
)
def test_a_month_is_compared_with_the_one_before_it_up_to_the_same_day(now: str, before: str, before_end: str) -> None:
    found = asked("period=month", now=at(now))
    assert (found.before.start, found.before.end) == (at(before), at(before_end))


@pytest.mark.parametrize("name", ["today", "24h", "7d", "30d", "90d", "365d", "month", "custom"])
def test_at_midnight_the_day_has_begun(name: str) -> None:
    midnight = at("2026-11-24")
    found = asked(f"period={name}&from=2026-11-20", now=midnight)
    assert found.last == date(2026, 11, 24)
    assert found.before.end - found.before.start == found.end - found.start


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ("period=year", "period"),
        ("period=30D", "period"),
        ("interval=minute", "interval"),
        ("period=custom", "from"),
        ("to=2026-11-01", "from"),
        ("from=yesterday", "from"),
        ("from=20261101", "from"),
        ("from=2026-W01-1", "from"),
        ("from=2026-02-29", "from"),
        ("from=٢٠٢٦-١١-٠١", "from"),
        ("from=1999-12-31", "from"),
        ("from=0001-01-01", "from"),
        ("from=2026-11-25", "from"),
        ("from=9999-12-31", "from"),
        ("from=2026-11-20&to=2026-11-19", "to"),
        ("from=2026-11-20&to=x", "to"),
        ("from=2015-11-24&to=2026-11-24", "from"),
    ],
)
def test_what_cannot_be_asked_for(values: str, field: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        asked(values)
    assert refused.value.field == field
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2025-10-26", 25),
        ("Europe/Berlin", "2026-11-01", 24),
        ("America/New_York", "2026-03-08", 23),
        ("America/New_York", "2026-11-01", 25),
        # Clocks skip midnight, or show the hour before it twice.
        ("America/Asuncion", "2023-10-01", 23),
        ("America/Asuncion", "2024-03-23", 25),
        ("Asia/Beirut", "2022-03-27", 23),
        ("Asia/Beirut", "2022-10-29", 25),
        ("Africa/Cairo", "2024-04-26", 23),
        ("America/Havana", "2024-03-10", 23),
        ("Atlantic/Azores", "2024-03-31", 23),
        # Half an hour, three quarters, and 13:45 ahead.
        ("Asia/Kathmandu", "2026-03-29", 24),
        ("Asia/Kolkata", "2026-03-29", 24),
        ("Australia/Eucla", "2026-03-29", 24),
        ("Pacific/Chatham", "2025-09-28", 23),
        ("Pacific/Chatham", "2026-04-05", 25),
        # By half an hour: 23.5 and 24.5 hours, of which one is half as long.
        ("Australia/Lord_Howe", "2025-10-05", 24),
        ("Australia/Lord_Howe", "2026-04-05", 25),
        # A minute past midnight, then a day that begins twice.
        ("America/St_Johns", "2010-11-07", 25),
    ],
)
def test_a_day_has_as_many_hours_as_it_has(zone: str, day: str, hours: int) -> None:
    found = asked(f"from={day}&to={day}", zone)
    assert len(found.buckets) == hours
    starts = [bucket.astimezone(UTC) for bucket in [*found.buckets, found.end]]
    lengths = {after - before for before, after in pairwise(starts)}
    assert lengths <= {timedelta(hours=1), timedelta(minutes=30)}
    assert {bucket.date() for bucket in found.buckets} == {date.fromisoformat(day)} or zone == "America/St_Johns"
    # The day before and the day after join without gap.
    assert found.before.end.astimezone(UTC) == found.start.astimezone(UTC)


@pytest.mark.parametrize(("second", "minute"), [(0, 0), (1, 0), (59, 59)])
def test_the_last_24_hours_are_24(second: int, minute: int) -> None:
    period = asked("period=24h", "UTC", datetime(2026, 3, 3, 12, minute, second, tzinfo=UTC))
    assert len(period.buckets) == 24
    assert period.buckets[-1] < period.end


def test_a_day_whose_end_is_not_called_midnight_is_one_day() -> None:
    """In Santiago clocks went from 23:59 on the 5th to 1:00 on the 6th."""
    now = datetime(2026, 10, 1, tzinfo=UTC)
    assert asked("from=2026-09-04&to=2026-09-05", "America/Santiago", now).interval == "hour"
    assert asked("from=2026-06-06&to=2026-09-05", "America/Santiago", now).interval == "day"


def test_a_day_that_clocks_skip_is_none() -> None:
    found = asked("from=2011-12-28&to=2012-01-01&interval=day", "Pacific/Apia")
    assert [bucket.day for bucket in found.buckets] == [28, 29, 31, 1]
    assert [str(bucket) for bucket in found.buckets[1:3]] == ["2011-12-29 00:00:00-10:00", "2011-12-31 00:00:00+14:00"]
    skipped = asked("from=2011-12-30&to=2011-12-30", "Pacific/Apia")
    assert skipped.buckets == (skipped.start,)
    assert skipped.start.astimezone(UTC) == skipped.end.astimezone(UTC)


def test_yesterday_is_the_day_before_it_that_there_was() -> None:
    found = asked("period=yesterday", "Pacific/Apia", at("2011-12-31 08:00", "Pacific/Apia"))
    assert (found.first, found.last) == (date(2011, 12, 29), date(2011, 12, 29))


def test_last_month_is_whole_whatever_the_day() -> None:
    found = asked("period=last_month", now=at("2027-01-31 23:00"))
    assert (found.first, found.last) == (date(2026, 12, 1), date(2026, 12, 31))
    assert (found.before.first, found.before.last) == (date(2026, 11, 1), date(2026, 11, 30))


def test_weeks_begin_on_monday_and_the_first_one_with_the_period() -> None:
    found = asked("from=2026-11-05&to=2026-11-24&interval=week")
    assert [f"{bucket:%a %d %H}" for bucket in found.buckets] == ["Thu 05 00", "Mon 09 00", "Mon 16 00", "Mon 23 00"]


def test_months_begin_on_the_first() -> None:
    found = asked("from=2025-12-31&to=2026-03-01&interval=month")
    assert [f"{bucket:%Y-%m-%d}" for bucket in found.buckets] == [
        "2025-12-31",
        "2026-01-01",
        "2026-02-01",
        "2026-03-01",
    ]


def test_the_comparison_of_today_ends_at_the_same_time_on_a_day_of_25_hours() -> None:
    found = asked("period=today", now=at("2026-10-26 10:30"))
    assert found.before.start == at("2026-10-25")
    assert found.before.end == at("2026-10-25 10:30")
    assert found.before.end.astimezone(UTC) - found.before.start.astimezone(UTC) == timedelta(hours=11, minutes=30)


@pytest.mark.parametrize("interval", ["hour", "day", "week", "month"])
def test_a_finer_interval_than_can_be_shown_becomes_a_coarser_one(interval: str) -> None:
    for days in (1, 39, 40, 41, 1_000, 1_001, 3_659):
        found = asked(f"from={date(2026, 11, 24) - timedelta(days)}&interval={interval}", "UTC")
        assert len(found.buckets) <= MAX_BUCKETS
        assert found.query()["interval"] == interval
    assert asked(f"from=2026-11-01&interval={interval}").interval == interval


@given(
    zone=st.sampled_from(sorted(available_timezones())),
    now=st.integers(978_307_200, 2_145_830_400).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    name=st.sampled_from(NAMES),
    days=st.integers(0, 60),
    interval=st.sampled_from(["", "hour", "day", "week", "month"]),
)
def test_buckets_cover_any_period_in_any_zone(zone: str, now: datetime, name: str, days: int, interval: str) -> None:
    today = now.astimezone(ZoneInfo(zone)).date()
    first = today - timedelta(days)
    values = {"period": name, "from": first.isoformat(), "to": today.isoformat(), "interval": interval}
    found = period_of(values, zone, now)
    for period in (found, found.before):
        starts = [bucket.astimezone(UTC) for bucket in period.buckets]
        assert starts[0] == period.start.astimezone(UTC)
        assert starts == sorted(set(starts))
        assert starts[-1] <= period.end.astimezone(UTC)
        assert len(starts) <= MAX_BUCKETS
    assert found.before.end.astimezone(UTC) <= found.start.astimezone(UTC) or name == "24h"
    assert found.end.astimezone(UTC) <= now + timedelta(seconds=1)


@given(zone=st.sampled_from(sorted(available_timezones())), day=st.dates(date(1990, 1, 1), date(2037, 12, 31)))
def test_a_day_starts_where_the_clock_first_shows_it(zone: str, day: date) -> None:
    start = start_of_day(day, ZoneInfo(zone))
    assert start.date() >= day
    before = (start.astimezone(UTC) - timedelta(seconds=1)).astimezone(ZoneInfo(zone))
    assert before.date() < day
    assert start_of_day(day + timedelta(days=1), ZoneInfo(zone)).astimezone(UTC) >= start.astimezone(UTC)
