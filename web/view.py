"""What a page of an app shows: its period and filters, which live in the address and in nothing else.

So a link, the back button and a reload all mean the same. Addresses are built here, for templates to place.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import Protocol, TypeVar
from urllib.parse import parse_qsl, urlencode

import msgspec

from tenants.errors import InvalidValue
from tenants.reports.compared import kept_from
from tenants.reports.filters import Condition, Filters, field_of, filters_of
from tenants.reports.period import INTERVALS, NAMES, Interval, Name, Period, period_of
from tenants.reports.sql import COLUMNS
from tenants.tables import App
from web.guards import AnyRequest

PERIODS: dict[Name, str] = {
    "today": "Today",
    "yesterday": "Yesterday",
    "24h": "Last 24 hours",
    "7d": "Last 7 days",
    "30d": "Last 30 days",
    "90d": "Last 90 days",
    "365d": "Last 365 days",
    "month": "This month",
    "last_month": "Last month",
    "custom": "Chosen days",
}
_EVERY: dict[Interval, str] = {"hour": "By hour", "day": "By day", "week": "By week", "month": "By month"}
# Eight steps with all filters that there may be, and the fields of their forms. What cannot be used is left out one by
# one, which takes the longer the more there is.
_MOST_PAIRS = 200
# What people call identifiers, which are no values of events.
_OF_PEOPLE = ("email", "e-mail", "uuid", "fbid")
_COLUMN_NAMES = {"event_token": "event token", "referrer_host": "referrer", "event_id": "event id"}
_NO_HOURS = ("hour", "retention")


class View(msgspec.Struct, frozen=True):
    """The app, the period and the filters of a page. `problem` says which parameter of the address could not be used.

    `path` is the page's own address; `whole` is for browsers without script: the panels are rendered with the page.
    `own` are parameters of this page alone: its own links keep them, those to other pages do not.
    """

    app: App
    period: Period
    filters: Filters
    path: str
    whole: bool
    problem: str = ""
    own: tuple[tuple[str, str], ...] = ()

    def query(self, filters: Filters | None = None, **more: str) -> str:
        """Period and filters, as other pages take them too, or other filters, and more; '' for the default view."""
        period = self.period.query()
        if period == {"period": "30d"}:
            period = {}
        pairs = [*period.items(), *(self.filters if filters is None else filters).pairs(), *more.items()]
        return urlencode(pairs)

    def link(self, filters: Filters | None = None, **more: str) -> str:
        """The address of this page, with other filters or more parameters."""
        query = self._own_query(filters, more)
        return f"{self.path}?{query}" if query else self.path

    def _own_query(self, filters: Filters | None, more: dict[str, str]) -> str:
        return "&".join(part for part in (self.query(filters), urlencode([*self.own, *more.items()])) if part)

    def with_own(self, own: Sequence[tuple[str, str]]) -> "View":
        """The same view with other parameters of the page's own."""
        return msgspec.structs.replace(self, own=tuple(own))

    def only(self, field: str, value: str | None) -> str:
        """The address of this page with one more filter."""
        return self.link(self.filters.with_(field, value))

    @property
    def without_filters(self) -> str:
        """The address of this page without filters."""
        return self.link(Filters())

    def panel(self, name: str, **more: str) -> str:
        """The address of a panel of this view."""
        return f"/apps/{self.app.id}/panels/{name}?{self._own_query(None, more)}"

    def chips(self) -> list[tuple[str, str]]:
        """Each filter in words, and the address of this page without it."""
        return [
            (in_words(each), self.link(self.filters.without(each.field, each.value, negated=each.negated)))
            for each in self.filters.conditions
        ]

    @property
    def periods(self) -> list[tuple[str, str]]:
        """What the menu of periods offers: (value, text)."""
        return [(name, PERIODS[name]) for name in NAMES]

    @property
    def intervals(self) -> list[tuple[str, str]]:
        """What the menu of intervals offers; '' leaves it to us. Empty where nothing is divided."""
        if self.page in ("funnel", "events"):
            return []
        return [
            ("", "Automatic interval"),
            *((name, _EVERY[name]) for name in INTERVALS if (name, self.page) != _NO_HOURS),
        ]

    @property
    def page(self) -> str:
        """The last part of the page's address: `revenue`; the app's id for its first page."""
        return self.path.rpartition("/")[2]

    @property
    def compares(self) -> bool:
        """Whether the page shows the period before, too."""
        return self.page not in ("retention", "funnel", "events")

    @property
    def kept_from(self) -> datetime | None:
        """From when on events are there, if the app deletes them so soon that some of the period's are gone."""
        since = kept_from(self.app)
        return since if since is not None and self.period.start < since else None

    @property
    def span(self) -> str:
        """The days it is about, in words."""
        return days(self.period.first, self.period.last)

    @property
    def span_before(self) -> str:
        """The days it is compared with, in words."""
        return days(self.period.before.first, self.period.before.last)

    def labels(self) -> list[tuple[str, str]]:
        """Each bucket in full and in short."""
        return [bucket_label(at, self.period.interval) for at in self.period.buckets]


def pairs_of(request: AnyRequest) -> list[tuple[str, str]]:
    """The parameters of the address in their order, which Litestar's own list does not keep; as many as may be used."""
    return pairs_in(request.url.query)


def pairs_in(query: str) -> list[tuple[str, str]]:
    """The first parameters of a query string."""
    return parse_qsl("&".join(query.split("&", _MOST_PAIRS)[:_MOST_PAIRS]), keep_blank_values=True)


class Pairs(Protocol):
    """What an address asks for, as its parameters."""

    def pairs(self) -> list[tuple[str, str]]: ...


Asked = TypeVar("Asked", bound=Pairs)


def usable(
    read: Callable[[Sequence[tuple[str, str]]], Asked], pairs: Sequence[tuple[str, str]], what: str
) -> tuple[Asked, str]:
    """What can be used of the parameters, and which could not be: `what` was left out."""
    found, problem = read([]), ""
    for pair in pairs:
        try:
            found = read([*found.pairs(), pair])
        except InvalidValue as error:
            problem = problem or f"{what} was left out ({error.field}): {error}"
    return found, problem


def view_of(request: AnyRequest, app: App, path: str, own: Sequence[tuple[str, str]] = ()) -> View:
    """The view an address asks for; what cannot be used is left out, and said in `problem`."""
    pairs = pairs_of(request)
    filters, problem = usable(filters_of, pairs, "A filter")
    values = dict(pairs)
    now = datetime.now(UTC)
    try:
        period = period_of(values, app.timezone, now)
    except InvalidValue as error:
        period, problem = period_of({}, app.timezone, now), f"This shows the last 30 days. {error}"
    return View(app, period, filters, path, values.get("whole") == "1", problem, tuple(own))


def address_of_whole(view: View, pairs: Sequence[tuple[str, str]]) -> str:
    """The address of the page for browsers without script; as it was asked for where that is to be complained of."""
    return f"{view.path}?{urlencode([*pairs, ('whole', '1')])}" if view.problem else view.link(whole="1")


def adding(view: View, pairs: Sequence[tuple[str, str]]) -> tuple[View, Filters | None]:
    """The filters to go on with after the form that adds one was sent; else None, and the view says what was wrong."""
    try:
        return view, added_filter(view, pairs)
    except InvalidValue as error:
        return msgspec.structs.replace(view, problem=f"The filter was not added: {error}"), None


def added_filter(view: View, pairs: Sequence[tuple[str, str]]) -> Filters | None:
    """The filters after the form that adds one was sent, None when it was not. Raises InvalidValue."""
    values = dict(pairs)
    field = values.get("add_field", "")
    if not field.strip():
        return None
    return with_typed(view.filters, field, values.get("add_how", "is"), values.get("add_value", ""))


def with_typed(filters: Filters, field: str, how: str, value: str) -> Filters:
    """These filters and the one that a form's three fields say. Raises InvalidValue."""
    field, value = filterable(field), value.strip()
    negated = how.endswith("not")
    if how.startswith("sent"):
        return filters.with_(field, None, negated=not negated)
    # Through the address's own rules: what a link may not hold cannot be added either.
    return filters_of([*filters.pairs(), *Filters((Condition(field, value, negated),)).pairs()])


def filterable(typed: str) -> str:
    """The field that people mean by `plan` (a custom value) or `person.plan` (a property). Raises InvalidValue."""
    # A name that begins or ends with a space is one all the same; by hand nobody types the whole of it.
    typed = typed if typed.startswith("params.") else typed.strip()
    if typed.lower() in _OF_PEOPLE:
        raise InvalidValue(
            "add_field", "Who somebody is cannot be filtered by here: look for them on the page of people."
        )
    known = typed in COLUMNS or typed.startswith(("params.", "person."))
    return field_of(typed if known else f"params.{typed}", "add_field")


def short(field: str) -> str:
    """The shortest that `filterable` takes for this field: `plan`, but `params.category`, which is no column.

    With a space at its beginning or end a name is whole, too.
    """
    name = field.removeprefix("params.")
    return field if name in COLUMNS or name.startswith(("params.", "person.")) or name != name.strip() else name


def named(field: str) -> str:
    """What people call a field: `plan`, `event token`, `the person's plan`."""
    if field.startswith("person."):
        return f"the person's {field.removeprefix('person.')}"
    return _COLUMN_NAMES.get(field) or short(field)


def in_words(condition: Condition) -> str:
    """A filter as people say it: `plan is pro`."""
    field = named(condition.field)
    if condition.field.startswith("person.") and condition.value is None:
        return f"{field} is {'known' if condition.negated else 'not known'}"
    if condition.value is None:
        return f"{field} was {'sent' if condition.negated else 'not sent'}"
    return f"{field} is {'not ' if condition.negated else ''}{condition.value or '(empty)'}"


def days(first: date, last: date) -> str:
    """`3 – 9 Nov 2026`, with no more of the first day than differs."""
    end = f"{last.day} {last:%b %Y}"
    if first == last:
        return end
    if first.year != last.year:
        return f"{first.day} {first:%b %Y} – {end}"
    return f"{first.day} {first:%b} – {end}" if first.month != last.month else f"{first.day} – {end}"


def bucket_label(at: datetime, interval: Interval) -> tuple[str, str]:
    """A bucket in full, for tables and tooltips, and in short, for an axis."""
    if interval == "hour":
        # The hour that clocks show twice is told apart by its distance from UTC.
        twice = at.replace(fold=0).utcoffset() != at.replace(fold=1).utcoffset()
        zone = f" UTC{at:%z}" if twice else ""
        return f"{at:%a} {at.day} {at:%b, %H:%M}{zone}", f"{at:%H:%M}" if at.hour else f"{at.day} {at:%b}"
    if interval == "day":
        return f"{at:%a} {at.day} {at:%b %Y}", f"{at.day} {at:%b}"
    if interval == "week":
        return f"Week of {at.day} {at:%b %Y}", f"{at.day} {at:%b}"
    return f"{at:%B %Y}", f"{at:%b %Y}"
