"""The list of an app's events: which they are, whose, and how one page leads to the next."""

import html
import re
from uuid import UUID, uuid4

import httpx
import pytest
from known import did, know
from test_dashboards import ESCAPED, HOSTILE, hits, sent

from server.event_store import EventStore, EventStoreUnavailable
from tenants.tables import App

ANN, VISITOR = (UUID(f"{number}b1f0c52-93a7-4f0e-8d4c-1c2e7f9a5b38") for number in "ab")


def tokens(page: httpx.Response) -> list[str]:
    """Of which events a page is, in its order."""
    assert page.status_code == 200, page.text
    return re.findall(r'<th scope="row" class="long whole"><a href="[^"]+">([^<]+)</a>', page.text)


def link(page: httpx.Response, rel: str) -> str | None:
    """The address of the page after this one (`next`), or before (`prev`)."""
    found = re.search(rf'href="([^"]+)" rel="{rel}"', page.text)
    return html.unescape(found[1]) if found else None


async def test_each_event_is_told_with_whose_it_is(
    owner: httpx.AsyncClient, shop: App, event_store: EventStore
) -> None:
    await did(event_store, shop, ANN, "signup", "purchase:2500", plan="pro", address={"city": "Köln"})
    await did(event_store, shop, VISITOR, HOSTILE, identified=False, plan=HOSTILE)
    await did(event_store, shop, UUID(int=0), "untracked", identified=False)
    await know(shop, ANN, email="ann@example.org")
    page = await owner.get(f"/apps/{shop.id}/events")
    assert sorted(map(html.unescape, tokens(page))) == sorted(["purchase", "signup", HOSTILE, "untracked"])
    people = f"/apps/{shop.id}/people"
    assert page.text.count(f'<a href="{people}/{ANN}">ann@example.org</a>') == 2
    assert f'<a href="{people}/{VISITOR}">Visitor {str(VISITOR)[:8]}</a>' in page.text
    assert "nobody known" in page.text
    assert "25.00 EUR" in page.text
    assert "<bdi>plan: pro</bdi> · <bdi>address.city: Köln</bdi>" in page.text
    assert ESCAPED in page.text
    assert "<script>alert" not in page.text
    # It belongs to the page of all events, which leads here with its period and filters.
    assert f'href="/apps/{shop.id}" aria-current="true">Events</a>' in page.text
    await hits(event_store, shop, [sent("signup")])
    events = await owner.get(f"/apps/{shop.id}?period=7d&params.plan=pro")
    assert f'href="/apps/{shop.id}/events?period=7d&amp;params.plan=pro"' in events.text


async def test_the_list_is_of_the_period_and_of_what_filters_leave(
    owner: httpx.AsyncClient, shop: App, event_store: EventStore
) -> None:
    await did(event_store, shop, ANN, "signup", "visit", plan="pro")
    await did(event_store, shop, ANN, "earlier", days_ago=9, plan="pro")
    await did(event_store, shop, VISITOR, "other", plan="team")
    address = f"/apps/{shop.id}/events"
    for query, found in (
        ("", ["other", "visit", "signup", "earlier"]),
        ("?period=7d", ["other", "visit", "signup"]),
        ("?params.plan=pro", ["visit", "signup", "earlier"]),
        ("?event_token!=visit&person.plan=x", []),
        ("?event_token=visit&event_token=earlier", ["visit", "earlier"]),
        ("?period=yesterday", []),
    ):
        assert sorted(tokens(await owner.get(address + query))) == sorted(found), query
    form = await owner.get(f"{address}?period=7d&add_field=plan&add_how=is&add_value=pro")
    assert (form.status_code, form.headers["location"]) == (303, f"{address}?period=7d&params.plan=pro")
    wrong = await owner.get(f"{address}?add_field=currency&add_value=EURO")
    assert "The filter was not added" in wrong.text


async def test_pages_of_the_list_lead_to_older_and_newer_ones(
    owner: httpx.AsyncClient, shop: App, event_store: EventStore
) -> None:
    await did(event_store, shop, ANN, *(f"step{number}" for number in range(120)), plan="pro")
    await did(event_store, shop, ANN, "left out")
    address = f"/apps/{shop.id}/events?period=90d&params.plan=pro"
    pages = [await owner.get(address)]
    while older := link(pages[-1], "next"):
        assert "period=90d&params.plan=pro&older=" in older
        pages.append(await owner.get(older))
    assert [len(tokens(page)) for page in pages] == [50, 50, 20]
    assert [each for page in pages for each in tokens(page)] == [f"step{number}" for number in reversed(range(120))]
    newer = link(pages[2], "prev")
    assert newer
    assert tokens(await owner.get(newer)) == tokens(pages[1])
    # The newest have one address.
    assert link(pages[0], "prev") is None
    first = await owner.get(link(pages[1], "prev") or "")
    assert (first.status_code, first.headers["location"]) == (303, address)
    assert f'<a href="{html.escape(address)}">Newest</a>' in pages[1].text
    # As where the rest of a link was lost.
    lost = await owner.get(f"{address}&older=made-up")
    assert (lost.status_code, lost.headers["location"]) == (303, address)


async def test_an_empty_list_says_why(owner: httpx.AsyncClient, shop: App, event_store: EventStore) -> None:
    address = f"/apps/{shop.id}/events"
    empty = (await owner.get(address)).text
    assert "No events in this time." in empty
    assert f'href="/apps/{shop.id}/snippet"' in empty
    filtered = (await owner.get(f"{address}?event_token=nothing")).text
    assert f'<a href="{address}">Remove the filters</a>' in filtered
    # The last page when its events are deleted.
    await did(event_store, shop, ANN, *("signup",) * 51)
    older = link(await owner.get(address), "next")
    assert older
    last = await owner.get(older.replace("?", "?event_token=nothing&"))
    assert "There are no older events in this time" in last.text
    assert "Newest" in last.text


async def test_addresses_are_masked_before_values_are_cut(
    viewer: httpx.AsyncClient, owner: httpx.AsyncClient, shop: App, event_store: EventStore
) -> None:
    """Cut first, the beginning of an address would no longer be one, and stand there in full."""
    said = {f"to{length}": "x" * length + " ann.of.boots@example.org" for length in range(40, 80)}
    await did(event_store, shop, ANN, "bob@example.org", said={"bob@example.org": "first"} | said)
    for length in range(40, 80):
        await did(event_store, shop, ANN, "wrote", to="x" * length + " ann.of.boots@example.org")
    await know(shop, ANN, email="ann@example.org")
    seen = (await viewer.get(f"/apps/{shop.id}/events")).text
    assert "a…@example.org" in seen
    assert "b…@example.org" in seen
    assert not re.search("bob|ann", seen)
    assert "ann.of.boots@example.org" in (await owner.get(f"/apps/{shop.id}/events")).text


async def test_other_tenants_find_no_list(stranger: httpx.AsyncClient, shop: App, event_store: EventStore) -> None:
    await did(event_store, shop, ANN, "signup")
    reply = await stranger.get(f"/apps/{shop.id}/events")
    assert reply.status_code == 404
    assert "signup" not in reply.text
    assert (await stranger.get(f"/apps/{uuid4()}/events")).status_code == 404


async def test_the_list_says_when_the_store_is_away(
    owner: httpx.AsyncClient, shop: App, event_store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_arguments: object) -> None:
        raise EventStoreUnavailable("away")

    monkeypatch.setattr(event_store, "query", away)
    reply = await owner.get(f"/apps/{shop.id}/events")
    assert reply.status_code == 503
    assert "Not right now" in reply.text
