"""The reports of the app's pages, as JSON: the same questions, periods and filters."""

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from litestar import Request, get
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.openapi.spec import Example
from litestar.params import Parameter, QueryParameter, SkipValidation

from tenants.reports.breakdown import Breakdown, breakdown
from tenants.reports.fields import Fields, fields
from tenants.reports.filters import Filters, filters_of
from tenants.reports.funnel import UNITS, Funnel, funnel, steps_of, window_of
from tenants.reports.period import INTERVALS, NAMES, Interval, Name, Period, period_of
from tenants.reports.retention import Retention, in_intervals, retention
from tenants.reports.revenue import Revenue, RevenueSeries, revenue, revenue_series
from tenants.reports.series import Series, series
from tenants.reports.totals import Totals, totals
from tenants.reports.traffic import Traffic, traffic
from tenants.tables import App
from web.api.access import GivenApp, GivenStore

GivenPeriod = NamedDependency[SkipValidation[Period]]
GivenSpan = NamedDependency[SkipValidation[Period | None]]
GivenFilters = NamedDependency[SkipValidation[Filters]]


class Span(msgspec.Struct):
    """From `start` until before `end`."""

    start: datetime
    end: datetime


class About(msgspec.Struct):
    """The period that was asked about and `before`, the one it is compared with, in the app's time zone."""

    name: Name
    timezone: str
    start: datetime
    end: datetime
    interval: Interval
    before: Span


def about(period: Period) -> About:
    """What an answer says of its period."""
    before = Span(period.before.start, period.before.end)
    return About(period.name, str(period.zone), period.start, period.end, period.interval, before)


_FROM = QueryParameter(name="from", description="The first day, year-month-day in the app's time zone; from 2000 on.")
_TO = Parameter(description="The last day, itself included. Today if it is left out. Ten years at most.")
_PERIODS = (
    "24h is the running hour and the 23 before it; 7d, 30d, 90d and 365d are today and the days before; month is this "
    "calendar month so far, last_month the one before; custom goes by from and to. Without any of them it is "
)


def provide_period(
    app: GivenApp,
    period: Annotated[str | None, Parameter(description=f"{_PERIODS}30d.", schema_extra={"enum": NAMES})] = None,
    from_: Annotated[str | None, _FROM] = None,
    to: Annotated[str | None, _TO] = None,
    interval: Annotated[
        str | None,
        Parameter(
            description="How long each bucket of a series is; left out, hours for two days, days for a quarter, weeks "
            "for a year, else months. More than 1,000 buckets become longer ones.",
            schema_extra={"enum": INTERVALS},
        ),
    ] = None,
) -> Period:
    """The period that the query asks for."""
    return _period(app, period=period, to=to, interval=interval, **{"from": from_})


def provide_span(
    app: GivenApp,
    period: Annotated[
        str | None,
        Parameter(
            description=f"{_PERIODS}all that is kept. A page goes by the time it is asked for: for days that are read "
            "past midnight give from and to.",
            schema_extra={"enum": NAMES},
        ),
    ] = None,
    from_: Annotated[str | None, _FROM] = None,
    to: Annotated[str | None, _TO] = None,
) -> Period | None:
    """The period that the query asks for, None for no end to it."""
    return _period(app, period=period, to=to, **{"from": from_}) if period or from_ or to else None


def _period(app: App, **asked: str | None) -> Period:
    return period_of(
        {name: value for name, value in asked.items() if value is not None}, app.timezone, datetime.now(UTC)
    )


_ANY = "Given more than once, with any of them."


# All are declared for the reference, and read together with those that nobody can list.
def provide_filters(
    request: Request[Any, Any, State],
    category: Annotated[  # noqa: ARG001
        list[str] | None, Parameter(description="Only events of this category, event or revenue.")
    ] = None,
    event_token: Annotated[  # noqa: ARG001
        list[str] | None, Parameter(description=f"Only events with this token. {_ANY}")
    ] = None,
    currency: Annotated[  # noqa: ARG001
        list[str] | None, Parameter(description=f"Only revenue in this currency, an ISO 4217 code. {_ANY}")
    ] = None,
    event_id: Annotated[  # noqa: ARG001
        list[str] | None, Parameter(description=f"Only the event with this id of your own. {_ANY}")
    ] = None,
    referrer_host: Annotated[  # noqa: ARG001
        list[str] | None, Parameter(description=f"Only events of pages on this host, such as shop.example. {_ANY}")
    ] = None,
    params: Annotated[  # noqa: ARG001
        list[str] | None,
        QueryParameter(
            name="params.{field}",
            description="Only events with this custom value: params.plan=pro, or params.address.city=Berlin for a "
            f"field of an object. {_ANY} Values compare as text: params.items=2 finds the number 2 and the text 2, and "
            "every list with one of them. Filters on different fields must all hold. A name that ends in an "
            "exclamation mark turns any filter round: event_token!=signup, params.plan!=pro.",
        ),
    ] = None,
    person: Annotated[  # noqa: ARG001
        list[str] | None,
        QueryParameter(
            name="person.{field}",
            description="Only events of people with this property, as it is now: person.plan=pro.",
        ),
    ] = None,
    missing: Annotated[  # noqa: ARG001
        list[str] | None,
        Parameter(description="Only events without this field: missing=params.plan where it was not sent, or is null."),
    ] = None,
    empty: Annotated[  # noqa: ARG001
        list[str] | None, Parameter(description="Only events in which this field is the empty text.")
    ] = None,
) -> Filters:
    """The filters in the query."""
    return filters_of(list(request.query_params.multi_items()))


class TotalsAnswer(msgspec.Struct):
    """How much there was."""

    period: About
    totals: Totals


@get("/apps/{app_token:str}/totals", summary="Totals", operation_id="totals")
async def totals_report(app: GivenApp, store: GivenStore, when: GivenPeriod, which: GivenFilters) -> TotalsAnswer:
    """Events, unique persons and hits that did not become events, in the period and in the one before."""
    return TotalsAnswer(about(when), await totals(app, store, when, which))


class SeriesAnswer(msgspec.Struct):
    """Events over time."""

    period: About
    series: Series


@get("/apps/{app_token:str}/series", summary="Events over time", operation_id="series")
async def series_report(
    app: GivenApp,
    store: GivenStore,
    when: GivenPeriod,
    which: GivenFilters,
    lines: Annotated[
        int, Parameter(ge=1, le=20, description="How many event tokens get a line of their own; the rest shares one.")
    ] = 6,
) -> SeriesAnswer:
    """Events and persons in each hour, day, week or month, by event token. Where nothing happened is a 0."""
    return SeriesAnswer(about(when), await series(app, store, when, which, lines))


class BreakdownAnswer(msgspec.Struct):
    """The values of a field."""

    period: About
    breakdown: Breakdown


@get("/apps/{app_token:str}/breakdown", summary="Values of a field", operation_id="breakdown")
async def breakdown_report(
    app: GivenApp,
    store: GivenStore,
    when: GivenPeriod,
    which: GivenFilters,
    field: Annotated[
        str | None,
        Parameter(
            description="Which field: a custom value such as params.plan or params.address.city, a property of the "
            "person such as person.plan, or a column, which is event_token, category, currency, referrer_host or "
            "event_id. It has to be given.",
            examples=[Example(value="params.plan")],
        ),
    ] = None,
    limit: Annotated[int, Parameter(ge=1, le=1000, description="How many values to return at most.")] = 20,
) -> BreakdownAnswer:
    """How many events, persons and how much revenue each value of a field has; `null` is where it was not sent.

    Numbers and other values come as text. An event with a list counts for each of its elements.
    """
    return BreakdownAnswer(about(when), await breakdown(app, store, when, which, field or "", limit))


class RevenueAnswer(msgspec.Struct):
    """What was earned, each currency by itself."""

    period: About
    revenue: list[Revenue]
    series: RevenueSeries


@get("/apps/{app_token:str}/revenue", summary="Revenue", operation_id="revenue")
async def revenue_report(app: GivenApp, store: GivenStore, when: GivenPeriod, which: GivenFilters) -> RevenueAnswer:
    """Gross, refunded, net, orders and averages of each currency, and over time, in whole minor units.

    Amounts of different currencies are never added together.
    """
    return RevenueAnswer(
        about(when), await revenue(app, store, when, which), await revenue_series(app, store, when, which)
    )


class TrafficAnswer(msgspec.Struct):
    """What became of all hits."""

    period: About
    traffic: Traffic


@get("/apps/{app_token:str}/traffic", summary="What became of all hits", operation_id="traffic")
async def traffic_report(app: GivenApp, store: GivenStore, when: GivenPeriod) -> TrafficAnswer:
    """Recorded, rejected, duplicate and limited hits over time. There are no filters: only events have fields."""
    return TrafficAnswer(about(when), await traffic(app, store, when))


@get("/apps/{app_token:str}/fields", summary="Fields to break down by", operation_id="fields")
async def fields_report(app: GivenApp, store: GivenStore, when: GivenPeriod, which: GivenFilters) -> Fields:
    """The custom values that the newest 10,000 events of the period have, most frequent first."""
    return await fields(app, store, when, which)


class RetentionAnswer(msgspec.Struct):
    """Who comes back."""

    period: About
    retention: Retention


@get("/apps/{app_token:str}/retention", summary="Retention", operation_id="retention")
async def retention_report(
    app: GivenApp,
    store: GivenStore,
    when: GivenPeriod,
    which: GivenFilters,
    first: Annotated[
        str | None,
        Parameter(
            description="The event token that begins: a person is of the interval of their first such event in the "
            "period. Any event if it is left out."
        ),
    ] = None,
    back: Annotated[
        str | None, QueryParameter(name="return", description="The event token that counts as return. Else any event.")
    ] = None,
    new: Annotated[
        bool, Parameter(description="Leave out people who had such a first event before the period already.")
    ] = False,
) -> RetentionAnswer:
    """People by the day, week or month of their first event, and how many of them came back in each one after.

    Intervals are the calendar's in the app's time zone, 64 at most. `returned` and `shares` begin with the interval of
    the first event itself. Without an interval it is days for a month, weeks for half a year, else months.
    """
    found = await retention(app, store, when, which, first, back, new)
    return RetentionAnswer(about(in_intervals(when)), found)


class FunnelAnswer(msgspec.Struct):
    """From step to step."""

    period: About
    funnel: Funnel


_STEP = "An event token; steps are in the order of their numbers, 2 to 8 of them."


# Steps beyond the second cannot be listed one by one: they are read from the query, as filters are.
@get("/apps/{app_token:str}/funnel", summary="Funnel", operation_id="funnel")
async def funnel_report(
    request: Request[Any, Any, State],
    app: GivenApp,
    store: GivenStore,
    when: GivenPeriod,
    which: GivenFilters,
    step1: Annotated[  # noqa: ARG001
        str | None, Parameter(description=f"What begins. {_STEP}", examples=[Example(value="page_view")])
    ] = None,
    step2: Annotated[  # noqa: ARG001
        str | None, Parameter(description=f"What comes next. {_STEP}", examples=[Example(value="signup")])
    ] = None,
    more: Annotated[  # noqa: ARG001
        str | None, QueryParameter(name="step{n}", description="Further steps: step3, step4 and so on.")
    ] = None,
    only: Annotated[  # noqa: ARG001
        list[str] | None,
        QueryParameter(
            name="step{n}.{filter}",
            description="A filter for the events of one step: step1.params.plan=pro, step2.currency=EUR, "
            "step2.params.plan!=pro, step3.missing=params.coupon.",
        ),
    ] = None,
    within: Annotated[
        str | None, Parameter(description="How long the way from the first step to the last may take. Default 7.")
    ] = None,
    unit: Annotated[
        str | None,
        Parameter(description="What `within` counts. Default days, of 24 hours.", schema_extra={"enum": UNITS}),
    ] = None,
    by: Annotated[
        str | None,
        Parameter(description="Break down by this field of the event of the first step, such as params.source."),
    ] = None,
) -> FunnelAnswer:
    """How many people go from step to step, in this order and in time, and the median time it takes them.

    Of a person's attempts the one that gets furthest counts, of several the first. All steps are within the period.
    """
    steps = steps_of(list(request.query_params.multi_items()))
    window = window_of(within or "", unit or "")
    return FunnelAnswer(about(when), await funnel(app, store, when, which, steps, window, by))


handlers = [
    totals_report,
    series_report,
    breakdown_report,
    revenue_report,
    traffic_report,
    fields_report,
    retention_report,
    funnel_report,
]
ANSWERS = (
    TotalsAnswer,
    SeriesAnswer,
    BreakdownAnswer,
    RevenueAnswer,
    TrafficAnswer,
    Fields,
    RetentionAnswer,
    FunnelAnswer,
)
