"""The address of a page says everything about what it shows."""

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pytest

from tenants.errors import InvalidValue
from tenants.reports.filters import Condition, Filters, filters_of
from tenants.reports.period import Interval, period_of
from tenants.tables import App
from web.view import View, added_filter, bucket_label, days, in_words

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def view(filters: Filters | None = None, **asked: str) -> View:
    app = App(name="Shop", timezone="Europe/Berlin", tenant=1)
    return View(app, period_of(asked, app.timezone, NOW), filters or Filters(), "/apps/x", whole=False)


def test_the_default_view_has_a_plain_address() -> None:
    assert view().link() == "/apps/x"
    assert view(period="7d").link() == "/apps/x?period=7d"


def test_links_keep_period_and_filters() -> None:
    here = view(filters_of([("event_token", "sign up"), ("params.plan!", "a&b")]), period="today", interval="hour")
    assert here.link() == "/apps/x?period=today&interval=hour&event_token=sign+up&params.plan%21=a%26b"
    assert here.only("currency", "EUR").endswith("&currency=EUR")
    assert [words for words, _ in here.chips()] == ["event token is sign up", "plan is not a&b"]
    assert here.chips()[0][1] == "/apps/x?period=today&interval=hour&params.plan%21=a%26b"


@pytest.mark.parametrize(
    ("form", "added"),
    [
        ({"add_field": "plan", "add_how": "is", "add_value": "pro"}, Condition("params.plan", "pro")),
        (
            {"add_field": " params.plan ", "add_how": "is not", "add_value": "pro"},
            Condition("params.plan", "pro", True),
        ),
        ({"add_field": "event_token", "add_how": "is", "add_value": "signup"}, Condition("event_token", "signup")),
        ({"add_field": "plan", "add_how": "is", "add_value": ""}, Condition("params.plan", "")),
        ({"add_field": "plan", "add_how": "sent", "add_value": "x"}, Condition("params.plan", None, True)),
        ({"add_field": "plan", "add_how": "sent not", "add_value": ""}, Condition("params.plan", None)),
        ({"add_field": "currency", "add_how": "is", "add_value": "eur"}, Condition("currency", "EUR")),
    ],
)
def test_a_filter_is_added(form: dict[str, str], added: Condition) -> None:
    before = filters_of([("category", "revenue")])
    after = added_filter(view(before), list(form.items()))
    assert after is not None
    assert after.conditions == (*before.conditions, added)


def test_no_filter_is_added_without_a_field() -> None:
    assert added_filter(view(), [("add_field", "  "), ("add_value", "x")]) is None


@pytest.mark.parametrize(
    ("field", "value"), [("a..b", "x"), ("category", "purchase"), ("currency", "EURO"), ("a.b.c.d.e.f.g", "x")]
)
def test_a_filter_that_cannot_be_is_refused(field: str, value: str) -> None:
    with pytest.raises(InvalidValue):
        added_filter(view(), [("add_field", field), ("add_how", "is"), ("add_value", value)])


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (Condition("event_token", "signup"), "event token is signup"),
        (Condition("params.a.b", "x", True), "a.b is not x"),
        (Condition("params.a", None), "a was not sent"),
        (Condition("params.a", None, True), "a was sent"),
        (Condition("params.a", ""), "a is (empty)"),
    ],
)
def test_filters_read_as_words(condition: Condition, words: str) -> None:
    assert in_words(condition) == words


@pytest.mark.parametrize(
    ("first", "last", "shown"),
    [
        (date(2026, 11, 9), date(2026, 11, 9), "9 Nov 2026"),
        (date(2026, 11, 3), date(2026, 11, 9), "3 – 9 Nov 2026"),
        (date(2026, 10, 3), date(2026, 11, 9), "3 Oct – 9 Nov 2026"),
        (date(2025, 12, 31), date(2026, 1, 1), "31 Dec 2025 – 1 Jan 2026"),
    ],
)
def test_days_read_as_words(first: date, last: date, shown: str) -> None:
    assert days(first, last) == shown


@pytest.mark.parametrize(
    ("at", "interval", "shown"),
    [
        (datetime(2026, 11, 9, tzinfo=BERLIN), "hour", ("Mon 9 Nov, 00:00", "9 Nov")),
        (datetime(2026, 11, 9, 13, tzinfo=BERLIN), "hour", ("Mon 9 Nov, 13:00", "13:00")),
        # The hour that clocks show twice.
        (datetime(2026, 10, 25, 2, tzinfo=BERLIN), "hour", ("Sun 25 Oct, 02:00 UTC+0200", "02:00")),
        (datetime(2026, 10, 25, 2, fold=1, tzinfo=BERLIN), "hour", ("Sun 25 Oct, 02:00 UTC+0100", "02:00")),
        (datetime(2026, 11, 9, tzinfo=BERLIN), "day", ("Mon 9 Nov 2026", "9 Nov")),
        (datetime(2026, 11, 9, tzinfo=BERLIN), "week", ("Week of 9 Nov 2026", "9 Nov")),
        (datetime(2026, 11, 1, tzinfo=BERLIN), "month", ("November 2026", "Nov 2026")),
    ],
)
def test_buckets_have_labels(at: datetime, interval: Interval, shown: tuple[str, str]) -> None:
    assert bucket_label(at, interval) == shown
