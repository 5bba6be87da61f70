"""Every report on events of known numbers, beside another app with the same ones: only its own are counted."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from stored_hits import NOW, Shop

from tenants.errors import InvalidValue
from tenants.reports.breakdown import Value, breakdown
from tenants.reports.compared import Compared
from tenants.reports.fields import fields, properties_of_people
from tenants.reports.filters import Filters, filters_of
from tenants.reports.first_hit import has_hits
from tenants.reports.money import divided
from tenants.reports.overview import Glance, overview
from tenants.reports.period import MAX_DAYS, period_of
from tenants.reports.rejected import rejected
from tenants.reports.revenue import (
    RevenueValue,
    largest_orders,
    latest_orders,
    revenue,
    revenue_by,
    revenue_series,
)
from tenants.reports.series import series
from tenants.reports.tokens import tokens
from tenants.reports.totals import totals
from tenants.reports.traffic import limited_minutes, traffic
from tenants.reports.usage import usage
from tenants.tables import Tenant

ANN, BO, CEM = uuid4(), uuid4(), uuid4()
EVERYTHING = Filters()
YESTERDAY = NOW - timedelta(days=1)
BERLIN = ZoneInfo("Europe/Berlin")


def only(*pairs: tuple[str, str]) -> Filters:
    return filters_of(pairs)


def days_ago(days: int) -> datetime:
    """Noon of a day in Berlin."""
    return datetime.combine(NOW.astimezone(BERLIN).date() - timedelta(days=days), datetime.min.time(), BERLIN).replace(
        hour=12
    )


async def visits(shop: Shop) -> None:
    """In the last 7 days 6 events of 3 persons and 1 nobody; 2 events of 1 person in the 7 days before."""
    shop.hit("view", days_ago(1), person=ANN, params={"plan": "pro", "n": 1})
    shop.hit("view", days_ago(1), person=ANN, params={"plan": "pro"})
    shop.hit("view", days_ago(2), person=BO, params={"plan": "team"})
    shop.hit("signup", days_ago(2), person=BO, params={"plan": None})
    shop.hit("signup", days_ago(6), person=CEM, params={})
    shop.hit("login", days_ago(6), params={"plan": "team"})
    shop.hit("view", days_ago(8), person=ANN, params={"plan": "pro"})
    shop.hit("login", days_ago(13), person=ANN)
    shop.hit("old", days_ago(14), person=CEM)
    shop.traffic(days_ago(1), 2, 3, 4, 5)
    shop.traffic(days_ago(1), 0, 1, 0, 0)
    shop.traffic(days_ago(6), 4, 0, 1, 1)
    shop.traffic(days_ago(8), 1, 7, 8, 9)
    shop.traffic(days_ago(14), 1, 100, 100, 100)


@pytest.fixture
async def visited(shop: Shop, other: Shop) -> Shop:
    await visits(shop)
    await visits(other)
    await shop.store()
    await other.store()
    return shop


async def test_totals(visited: Shop) -> None:
    found = await totals(visited.app, visited.events, visited.period(period="7d"), EVERYTHING)
    assert found.events == Compared(6, 2)
    assert found.persons == Compared(3, 1)
    assert (found.rejected, found.duplicates, found.limited) == (Compared(4, 7), Compared(5, 8), Compared(6, 9))
    found = await totals(visited.app, visited.events, visited.period(period="7d"), only(("params.plan", "pro")))
    assert (found.events, found.persons) == (Compared(2, 1), Compared(1, 1))
    assert found.rejected == Compared(4, 7), "what did not become an event has no fields"


async def test_an_app_without_hits_has_reports_of_nothing(shop: Shop) -> None:
    app, store, period = shop.app, shop.events, shop.period(period="7d")
    found = await totals(app, store, period, EVERYTHING)
    assert {found.events, found.persons, found.rejected, found.duplicates, found.limited} == {Compared(0, 0)}
    over_time = await series(app, store, period, EVERYTHING)
    assert (over_time.events, over_time.persons, over_time.lines) == ([0] * 7, [0] * 7, [])
    assert (await tokens(app, store, period, EVERYTHING)).tokens == []
    by_plan = await breakdown(app, store, period, EVERYTHING, "params.plan")
    assert (by_plan.values, by_plan.more, by_plan.events) == ([], 0, 0)
    assert (await fields(app, store, period, EVERYTHING)).looked_at == 0
    assert await revenue(app, store, period, EVERYTHING) == []
    assert (await revenue_series(app, store, period, EVERYTHING)).lines == []
    assert (await revenue_by(app, store, period, EVERYTHING, "event_token", "EUR")).values == []
    assert await largest_orders(app, store, period, EVERYTHING, "EUR") == []
    assert await latest_orders(app, store, period, EVERYTHING) == []
    assert (await traffic(app, store, period)).recorded == [0] * 7
    assert await limited_minutes(app, store, period) == []
    assert await rejected(app, store, period, EVERYTHING) == []
    assert await overview(Tenant(id=1), [app], store, NOW) == {app.id: Glance(0, 0, {}, [0] * 14)}
    assert await overview(Tenant(id=1), [], store, NOW) == {}
    assert [each.busiest_minute for each in await usage(Tenant(id=1), [app], store, NOW)] == [None, None]
    assert [each.busiest_minute for each in await usage(Tenant(id=1), [], store, NOW)] == [None, None]
    assert not await has_hits(app, store)


async def test_what_may_be_an_address_has_no_place_that_tells_of_it(shop: Shop) -> None:
    """Viewers see addresses masked, and may send guesses."""
    addresses = [f"a{letter}@example.org" for letter in "bcdefghijk"] + [f"a{letter}%40example.org" for letter in "bcd"]
    for each in (*addresses, "zoe", "abe"):
        shop.hit("view", days_ago(1), person=ANN, params={"who": each})
    await shop.store()
    found = await breakdown(shop.app, shop.events, shop.period(), EVERYTHING, "params.who")
    values = [value.value or "" for value in found.values]
    assert sorted(values) == sorted([*addresses, "zoe", "abe"])
    assert [value for value in values if value in ("zoe", "abe")] == ["abe", "zoe"]
    placed = [value for value in values if value in addresses]
    assert placed != sorted(placed)
    again = await breakdown(shop.app, shop.events, shop.period(), EVERYTHING, "params.who")
    assert [value.value for value in again.values] == values
    for each in (*addresses, "zoe", "abe"):
        shop.hit(each, days_ago(1), person=ANN)
    await shop.store()
    lines = (await series(shop.app, shop.events, shop.period(), EVERYTHING, lines=20)).lines
    columns = [line.event_token or "" for line in lines if line.event_token != "view"]
    assert sorted(columns) == sorted([*addresses, "zoe", "abe"])
    assert [value for value in columns if value in ("zoe", "abe")] == ["abe", "zoe"]
    placed = [value for value in columns if value in addresses]
    assert placed != sorted(placed)


async def test_series_have_a_number_for_every_bucket(visited: Shop) -> None:
    found = await series(visited.app, visited.events, visited.period(period="7d"), EVERYTHING)
    assert [bucket.hour for bucket in found.buckets] == [0] * 7
    assert found.events == [2, 0, 0, 0, 2, 2, 0]
    assert found.persons == [1, 0, 0, 0, 1, 1, 0]
    assert {line.event_token: line.events for line in found.lines} == {
        "view": [0, 0, 0, 0, 1, 2, 0],
        "signup": [1, 0, 0, 0, 1, 0, 0],
        "login": [1, 0, 0, 0, 0, 0, 0],
    }
    assert [line.event_token for line in found.lines] == ["view", "signup", "login"]
    two = await series(visited.app, visited.events, visited.period(period="7d"), EVERYTHING, lines=1)
    assert [(line.event_token, sum(line.events)) for line in two.lines] == [("view", 3), (None, 3)]
    assert two.events == found.events


async def test_a_day_of_25_hours_has_25_numbers(make_shop: Callable[[str], Shop]) -> None:
    """Both hours called two are told apart; what happens at midnight belongs to the day that begins."""
    new_york = make_shop("America/New_York")
    first = datetime(2025, 11, 2, 4, tzinfo=UTC)
    for hours, times in ((-1, 7), (0, 1), (1, 2), (2, 3), (24, 4), (25, 5)):
        for _ in range(times):
            new_york.hit(at=first + timedelta(hours=hours))
        new_york.traffic(first + timedelta(hours=hours), times, 0, 0, 0)
    await new_york.store()
    period = new_york.period(**{"from": "2025-11-02", "to": "2025-11-02"})
    found = await series(new_york.app, new_york.events, period, EVERYTHING)
    assert found.events == [1, 2, 3, *[0] * 21, 4]
    assert [bucket.strftime("%H %z") for bucket in found.buckets[1:3]] == ["01 -0400", "01 -0500"]
    assert (await traffic(new_york.app, new_york.events, period)).recorded == found.events
    days = new_york.period(**{"from": "2025-11-01", "to": "2025-11-03", "interval": "day"})
    assert (await series(new_york.app, new_york.events, days, EVERYTHING)).events == [7, 10, 5]


@pytest.mark.parametrize("zone", ["Asia/Kathmandu", "Pacific/Chatham", "Australia/Lord_Howe", "America/St_Johns"])
async def test_buckets_of_zones_off_the_hour(make_shop: Callable[[str], Shop], zone: str) -> None:
    shop = make_shop(zone)
    period = shop.period(period="24h")
    # An hour in which clocks change may be one and a half.
    for number, (start, end) in enumerate(pairwise(at.astimezone(UTC) for at in period.buckets)):
        for moment in [start] * number + [end - timedelta(milliseconds=1)]:
            shop.hit(at=moment)
    await shop.store()
    found = await series(shop.app, shop.events, period, EVERYTHING)
    assert found.events == [*range(1, len(period.buckets)), 0]


async def test_tokens(visited: Shop) -> None:
    period = visited.period(period="7d")
    found = await tokens(visited.app, visited.events, period, EVERYTHING)
    assert [(token.event_token, token.events, token.persons, token.share) for token in found.tokens] == [
        ("view", Compared(3, 1), 2, 0.5),
        ("signup", Compared(2, 0), 2, round(1 / 3, 6)),
        ("login", Compared(1, 1), 0, round(1 / 6, 6)),
    ]
    assert found.more == 0
    found = await tokens(visited.app, visited.events, period, only(("params.plan", "team")), limit=1)
    assert [(token.event_token, token.events, token.share) for token in found.tokens] == [
        ("login", Compared(1, 0), 0.5)
    ]
    assert found.more == 1


async def test_breakdown(visited: Shop) -> None:
    found = await breakdown(visited.app, visited.events, visited.period(period="7d"), EVERYTHING, "params.plan")
    third = round(1 / 3, 6)
    assert found.values == [
        Value(None, 2, 2, third, {}),
        Value("pro", 2, 1, third, {}),
        Value("team", 2, 1, third, {}),
    ]
    assert (found.field, found.more, found.events) == ("params.plan", 0, 6)
    found = await breakdown(visited.app, visited.events, visited.period(period="7d"), EVERYTHING, "params.plan", 1)
    assert (len(found.values), found.more, found.events) == (1, 2, 6)


async def test_values_of_a_breakdown_are_texts(shop: Shop) -> None:
    person = uuid4()
    for value in (2, "2", 2.0, True, "true", "", "", "", None, 2.5, "[2]", 1e21, 2**64 - 1, "2026-11-23T19:00:00Z"):
        shop.hit(params={"v": value, "o": {"v": value}}, person=person)
    shop.hit(params={})
    await shop.store()
    for field in ("params.v", "params.o.v"):
        found = await breakdown(shop.app, shop.events, shop.period(), EVERYTHING, field)
        assert {value.value: value.events for value in found.values} == {
            None: 2,
            "": 3,
            "2": 3,
            "true": 2,
            "2.5": 1,
            "[2]": 1,
            "1e21": 1,
            "18446744073709551615": 1,
            "2026-11-23T19:00:00Z": 1,
        }
        assert found.events == 15
        assert {value.persons for value in found.values} == {1}


async def test_every_element_of_a_list_counts(shop: Shop) -> None:
    shop.hit(params={"tags": ["a", "b", "b"]}, person=ANN)
    shop.hit(params={"tags": ["b", 7, None, {"k": 1}, ["c"]]}, person=BO)
    shop.hit(params={"tags": "b"}, person=BO)
    shop.hit(params={"tags": []})
    shop.hit(params={})
    await shop.store()
    found = await breakdown(shop.app, shop.events, shop.period(), EVERYTHING, "params.tags")
    assert {value.value: (value.events, value.persons) for value in found.values} == {
        "a": (1, 1),
        "b": (3, 2),
        "7": (1, 1),
        "null": (1, 1),
        '{"k":1}': (1, 1),
        '["c"]': (1, 1),
        "[]": (1, 0),
        None: (1, 0),
    }
    assert found.events == 5


async def test_what_thousands_of_people_are(shop: Shop) -> None:
    """More of them than values of which one query tells all."""
    for part in range(3):
        for number in range(1_500):
            person, plan = UUID(int=1_500 * part + number + 1), ("pro", "team", "start")[number % 3]
            shop.hit("signup", person=person, identified=True, params={"plan": plan, "name": f"n-{part}-{number}"})
        await shop.store()
    for _ in range(2):
        shop.hit("view", person=BO)
    await shop.store()
    found = await breakdown(shop.app, shop.events, shop.period(), EVERYTHING, "person.plan")
    assert {value.value: (value.events, value.persons) for value in found.values} == {
        "pro": (1_500, 1_500),
        "team": (1_500, 1_500),
        "start": (1_500, 1_500),
        None: (2, 1),
    }
    assert (found.more, found.events) == (0, 4_502)
    pro = filters_of([("person.plan", "pro")])
    found = await breakdown(shop.app, shop.events, shop.period(), pro, "params.plan")
    assert [(value.value, value.events) for value in found.values] == [("pro", 1_500)]
    found = await breakdown(shop.app, shop.events, shop.period(), EVERYTHING, "person.name", limit=3)
    assert (len(found.values), found.more, found.values[0].value) == (3, 4_498, None)


async def test_a_field_of_more_values_than_are_counted_at_once(shop: Shop) -> None:
    for number in range(1_500):
        shop.hit(params={"order": f"o-{number}", "tags": [f"t-{number}", "all"]}, person=UUID(int=number + 1))
    for _ in range(3):
        shop.hit(params={"order": "o-7"}, person=ANN, amount=100)
    for _ in range(2):
        shop.hit(params={}, person=BO)
    shop.hit(params={"order": ""}, person=BO)
    await shop.store()
    found = await breakdown(shop.app, shop.events, shop.period(), EVERYTHING, "params.order", limit=2)
    assert found.values[0] == Value("o-7", 4, 2, round(4 / 1506, 6), {"EUR": 300})
    assert (found.values[1].value, found.values[1].events, found.values[1].persons) == (None, 2, 1)
    assert (found.more, found.events) == (1_500, 1_506)
    lists = await breakdown(shop.app, shop.events, shop.period(), EVERYTHING, "params.tags", limit=2)
    assert [(value.value, value.events, value.persons) for value in lists.values] == [
        ("all", 1_500, 1_500),
        (None, 6, 2),
    ]
    assert (lists.more, lists.events) == (1_500, 1_506)


async def test_a_breakdown_by_a_column(shop: Shop) -> None:
    shop.hit("buy", amount=500)
    shop.hit("buy", amount=-200, currency="USD")
    shop.hit("view")
    await shop.store()

    async def values(field: str) -> list[tuple[str | None, int, dict[str, int]]]:
        found = await breakdown(shop.app, shop.events, shop.period(), EVERYTHING, field)
        return [(value.value, value.events, value.net) for value in found.values]

    assert await values("event_token") == [("buy", 2, {"EUR": 500, "USD": -200}), ("view", 1, {})]
    assert await values("category") == [("revenue", 2, {"EUR": 500, "USD": -200}), ("event", 1, {})]
    assert await values("currency") == [(None, 1, {}), ("EUR", 1, {"EUR": 500}), ("USD", 1, {"USD": -200})]


@pytest.mark.parametrize(
    "field", ["", "plan", "params", "params.", "email", "app_id", "person_id", "params.a.b.c.d.e.f"]
)
async def test_what_cannot_be_broken_down_by(shop: Shop, field: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        await breakdown(shop.app, shop.events, shop.period(), EVERYTHING, field)
    assert refused.value.field == "field"


async def test_fields(visited: Shop, other: Shop) -> None:
    visited.hit("view", params={"plan": "x", "address": {"city": "B", "geo": {"lat": 1.5}}, "a`b": [1], "e": {}})
    other.hit("view", params={"theirs": 1})
    await visited.store()
    await other.store()
    found = await fields(visited.app, visited.events, visited.period(period="7d"), EVERYTHING)
    assert found.looked_at == 7
    assert {field.field: round(field.share * 7) for field in found.fields} == {
        "params.plan": 5,
        "params.n": 1,
        "params.address.city": 1,
        "params.address.geo.lat": 1,
        "params.a`b": 1,
    }
    assert found.fields[0].field == "params.plan"
    found = await fields(visited.app, visited.events, visited.period(period="7d"), only(("params.n", "1")))
    assert [field.field for field in found.fields] == ["params.n", "params.plan"]


async def test_properties_are_those_of_the_apps_own_people(shop: Shop, other: Shop) -> None:
    shop.hit("signup", person=ANN, identified=True, params={"plan": "pro"})
    other.hit("signup", person=ANN, identified=True, params={"theirs": 1})
    await shop.store()
    await other.store()
    for each, own in ((shop, ["person.plan"]), (other, ["person.theirs"])):
        assert await properties_of_people(each.app, each.events) == own
        assert (await fields(each.app, each.events, each.period(period="7d"), EVERYTHING)).properties == own


async def sales(shop: Shop) -> None:
    shop.hit("buy", days_ago(1), person=ANN, amount=1000, params={"plan": "pro", "tags": ["a", "b"]}, event_id="o-1")
    shop.hit("buy", days_ago(1), person=ANN, amount=501, params={"plan": "team"})
    shop.hit("refund", days_ago(2), person=ANN, amount=-300, params={"plan": "pro"})
    shop.hit("buy", days_ago(2), person=BO, amount=500)
    shop.hit("buy", days_ago(2), person=CEM, amount=0)
    shop.hit("buy", days_ago(3), amount=200, currency="JPY")
    shop.hit("refund", days_ago(3), person=CEM, amount=-900, currency="USD")
    shop.hit("view", days_ago(3), person=CEM)
    shop.hit("buy", days_ago(8), person=BO, amount=700)
    shop.hit("buy", days_ago(8), person=BO, amount=50, currency="CHF")


@pytest.fixture
async def sold(shop: Shop, other: Shop) -> Shop:
    await sales(shop)
    await sales(other)
    await shop.store()
    await other.store()
    return shop


async def test_revenue_never_mixes_currencies(sold: Shop) -> None:
    found = await revenue(sold.app, sold.events, sold.period(period="7d"), EVERYTHING)
    assert [row.currency for row in found] == ["EUR", "JPY", "CHF", "USD"]
    euro, yen, franc, dollar = found
    assert euro.gross == Compared(2001, 700)
    assert euro.refunded == Compared(300, 0)
    assert euro.net == Compared(1701, 700)
    assert euro.orders == Compared(3, 1)
    assert euro.persons == Compared(2, 1)
    assert euro.average_order == Compared(667, 700)
    assert euro.per_person == Compared(851, 700)
    assert (yen.net, yen.persons, yen.per_person) == (Compared(200, 0), Compared(0, 0), Compared(0, 0))
    assert (franc.net, franc.orders) == (Compared(0, 50), Compared(0, 1))
    assert (dollar.gross, dollar.refunded, dollar.net) == (Compared(0, 0), Compared(900, 0), Compared(-900, 0))
    found = await revenue(sold.app, sold.events, sold.period(period="7d"), only(("params.plan", "pro")))
    assert [(row.currency, row.net, row.orders) for row in found] == [("EUR", Compared(700, 0), Compared(1, 0))]


async def test_revenue_over_time(sold: Shop) -> None:
    found = await revenue_series(sold.app, sold.events, sold.period(period="7d"), EVERYTHING)
    euro, yen, dollar = found.lines
    assert (euro.currency, yen.currency, dollar.currency) == ("EUR", "JPY", "USD")
    assert euro.gross == [0, 0, 0, 0, 500, 1501, 0]
    assert euro.refunded == [0, 0, 0, 0, 300, 0, 0]
    assert euro.net == [0, 0, 0, 0, 200, 1501, 0]
    assert euro.orders == [0, 0, 0, 0, 1, 2, 0]
    assert dollar.net == [0, 0, 0, -900, 0, 0, 0]
    assert len(found.buckets) == 7


async def test_revenue_by_field(sold: Shop) -> None:
    period = sold.period(period="7d")
    found = await revenue_by(sold.app, sold.events, period, EVERYTHING, "params.plan", "eur")
    assert found.values == [
        RevenueValue("pro", 1000, 300, 700, 1, 1),
        RevenueValue("team", 501, 0, 501, 1, 1),
        RevenueValue(None, 500, 0, 500, 1, 1),
    ]
    assert (found.field, found.currency, found.more) == ("params.plan", "EUR", 0)
    found = await revenue_by(sold.app, sold.events, period, EVERYTHING, "event_token", "EUR", limit=1)
    assert ([value.value for value in found.values], found.more) == (["buy"], 1)
    found = await revenue_by(sold.app, sold.events, period, EVERYTHING, "params.tags", "EUR")
    assert [(value.value, value.net) for value in found.values] == [("a", 1000), ("b", 1000), (None, 701)]
    for field, currency in (("params.plan", "EURO"), ("plan", "EUR")):
        with pytest.raises(InvalidValue):
            await revenue_by(sold.app, sold.events, period, EVERYTHING, field, currency)


async def test_orders(sold: Shop) -> None:
    period = sold.period(period="7d")
    found = await largest_orders(sold.app, sold.events, period, EVERYTHING, "EUR", limit=2)
    assert [order.amount for order in found] == [1000, 501]
    first = found[0]
    assert (first.event_token, first.event_id, first.person_id) == ("buy", "o-1", ANN)
    assert first.received_at == days_ago(1)
    assert first.params == '{"plan":"pro","tags":["a","b"]}'
    found = await latest_orders(sold.app, sold.events, period, EVERYTHING)
    assert sorted(order.amount for order in found[:2]) == [501, 1000]
    assert [(order.amount, order.currency, order.person_id) for order in found[2:]] == [
        (500, "EUR", BO),
        (200, "JPY", None),
    ]
    assert [order.amount for order in await latest_orders(sold.app, sold.events, period, EVERYTHING, "jpy")] == [200]


@pytest.mark.parametrize(
    ("amount", "by", "average"),
    [
        (0, 0, 0),
        (5, 0, 0),
        (7, 2, 4),
        (-7, 2, -4),
        (5, 3, 2),
        (4, 3, 1),
        (-4, 3, -1),
        (-5, 3, -2),
        (10**15, 3, 333_333_333_333_333),
        # More than a float holds exactly.
        (3 * 10**18 + 1, 2, 15 * 10**17 + 1),
    ],
)
def test_averages_are_rounded_half_away_from_zero(amount: int, by: int, average: int) -> None:
    assert divided(amount, by) == average


async def test_traffic(visited: Shop) -> None:
    found = await traffic(visited.app, visited.events, visited.period(period="7d"))
    assert found.recorded == [4, 0, 0, 0, 0, 2, 0]
    assert found.rejected == [0, 0, 0, 0, 0, 4, 0]
    assert found.duplicate == [1, 0, 0, 0, 0, 4, 0]
    assert found.limited == [1, 0, 0, 0, 0, 5, 0]
    minutes = await limited_minutes(visited.app, visited.events, visited.period(period="7d"))
    assert [(each.minute, each.limited, each.admitted) for each in minutes] == [
        (days_ago(1), 5, 10),
        (days_ago(6), 1, 5),
    ]
    assert len(await limited_minutes(visited.app, visited.events, visited.period(period="7d"), limit=1)) == 1


async def test_rejected(shop: Shop, other: Shop) -> None:
    for app in (shop, other):
        for number in range(5):
            app.hit("buy", NOW - timedelta(minutes=10 - number), amount=f"2{number}.00")
        app.hit("", NOW - timedelta(minutes=3))
        app.hit("", NOW - timedelta(days=8))
        await app.store()
    found = await rejected(shop.app, shop.events, shop.period(period="7d"), EVERYTHING)
    assert [(reason.reason, reason.hits, reason.before) for reason in found] == [
        ("invalid_amount", 5, 0),
        ("missing_event_token", 1, 1),
    ]
    assert ["amount=24.00" in example.query for example in found[0].examples] == [True, False, False]
    assert "24.00" in found[0].examples[0].detail
    assert found[0].examples[0].category == "revenue"
    assert found[0].examples[0].received_at > found[0].examples[1].received_at
    month = await rejected(shop.app, shop.events, shop.period(), EVERYTHING)
    assert [reason.before for reason in month] == [None, None], "the days before were not kept"


async def test_overview_shows_each_app_in_its_own_zone(make_shop: Callable[[str], Shop], other: Shop) -> None:
    midnight = datetime.now(UTC).replace(hour=10, minute=0, second=0, microsecond=0) - timedelta(days=1)
    here, there = make_shop("Europe/London"), make_shop("Pacific/Kiritimati")
    now = midnight + timedelta(minutes=30)
    for shop in (here, there):
        # 30 minutes ago it was midnight on Kiritimati, 14 hours ahead.
        shop.hit(at=midnight - timedelta(minutes=10), person=ANN)
        shop.traffic(midnight - timedelta(minutes=10), 1, 0, 0, 0)
        shop.hit(at=midnight + timedelta(minutes=10), person=BO, amount=100)
        # This very second.
        shop.hit(at=now, person=BO, amount=-50, currency="USD")
        shop.traffic(midnight + timedelta(minutes=10), 2, 0, 0, 0)
        shop.traffic(midnight - timedelta(days=13), 9, 0, 0, 0)
        await shop.store()
    other.app.tenant = 2
    found = await overview(Tenant(id=1), [here.app, there.app, other.app], here.events, now)
    assert found == {
        here.app.id: Glance(3, 2, {"EUR": 100, "USD": -50}, [9, *[0] * 12, 3]),
        there.app.id: Glance(2, 1, {"EUR": 100, "USD": -50}, [9, *[0] * 11, 1, 2]),
    }


async def test_usage_adds_up_the_apps_of_the_tenant(shop: Shop, make_shop: Callable[[str], Shop], other: Shop) -> None:
    second = make_shop("UTC")
    other.app.tenant = 2
    for app in (shop, second, other):
        app.traffic(NOW - timedelta(minutes=5), 60, 30, 30, 7)
        app.traffic(NOW - timedelta(hours=2), 600, 0, 0, 11)
        app.traffic(NOW - timedelta(hours=30), 6_000, 0, 0, 13)
        await app.store()
    hour, day = await usage(Tenant(id=1), [shop.app, second.app, other.app], shop.events, NOW)
    assert (hour.busiest, hour.limited) == (4.0, 14)
    assert hour.busiest_minute == (NOW - timedelta(minutes=5)).replace(second=0, microsecond=0)
    assert (day.busiest, day.limited) == (20.0, 36)


async def test_an_app_was_hit_whatever_became_of_it(shop: Shop, other: Shop) -> None:
    other.traffic(NOW, 1, 0, 0, 0)
    await other.store()
    assert not await has_hits(shop.app, shop.events)
    shop.traffic(NOW, 0, 1, 0, 0)
    await shop.store()
    assert await has_hits(shop.app, shop.events)


async def test_the_smallest_and_largest_periods_are_answered(visited: Shop) -> None:
    earliest = str((visited.period(period="today").end - timedelta(days=MAX_DAYS - 1)).date())
    for values in (
        {"from": earliest},
        {"from": earliest, "interval": "week"},
        {"from": "2000-01-01", "to": "2000-01-01"},
        {"period": "30d", "interval": "hour"},
    ):
        period = visited.period(**values)
        found = await series(visited.app, visited.events, period, EVERYTHING)
        assert len(found.events) == len(period.buckets) <= 1_000
        assert sum(found.events) == (0 if period.first.year == 2000 else 9)
        counted = await totals(visited.app, visited.events, period, EVERYTHING)
        assert counted.events.now == sum(found.events)


async def test_the_newest_hits_are_in_a_period_that_ends_now(shop: Shop) -> None:
    shop.hit(at=NOW.replace(microsecond=0) - timedelta(milliseconds=1))
    await shop.store()
    for name in ("today", "24h", "7d", "month"):
        found = await totals(shop.app, shop.events, shop.period(period=name), EVERYTHING)
        assert found.events.now + (found.events.before or 0) == 1, name
        period = period_of({"period": name}, "UTC", NOW.replace(microsecond=0))
        assert period.end == NOW.replace(microsecond=0)
