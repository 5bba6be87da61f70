"""Protocol section 3, told as stories: the same hits, the same persons, however they are digested."""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.database import Database
from server.journal import hit_id
from tenants import bulk, identifiers, people
from tenants.access_tokens import WaitingToken, keep
from tenants.apps import create_app
from tenants.deletions import delete_person
from tenants.identifiers import EMAIL_KIND, UUID_KIND, identifier_key, known, unscoped_roots
from tenants.identities import Sighting
from tenants.people import WINDOW_MS, Memory, identify, learn, told, unscoped_untold
from tenants.secrets import SecretKey
from tenants.tables import (
    App,
    Identifier,
    IdentityClock,
    IdentitySection,
    Person,
    Reattribution,
    Tenant,
    TokenSender,
    Visitor,
    transaction,
)

BEGAN = 1_700_000_000_000
NOW = BEGAN + 3_600_000  # when all of it is digested

# (name, hits, whose they are in the end). A hit is what it tells: u its uuid, e its email, f its fbid, c its cookie;
# `c+` is a cookie that the browser brought from before. Hits with the same letter are the same person's.
STORIES = [
    ("an anonymous visitor is one person", "cA / cA / cA", "aaa"),
    ("two browsers are two visitors", "cA / cB / cA", "aba"),
    ("a signup by e-mail, then a purchase by cookie", "eann cA / cA", "aa"),
    ("what a visitor did before signing up is theirs", "cA / cA / eann cA", "aaa"),
    ("the same e-mail in two browsers is one person", "eann cA / eann cB", "aa"),
    ("and what both browsers do later is theirs", "eann cA / eann cB / cA / cB", "aaaa"),
    ("what a second browser did before its login is theirs", "eann cA / cB / cB / eann cB", "aaaa"),
    ("two e-mails are two persons", "eann cA / ebob cB", "ab"),
    ("a mail program sends no cookie back", "eann cA / eann cB / eann cC / eann cD", "aaaa"),
    ("mails of two readers", "eann cA / ebob cB / eann cC / ebob cD", "abab"),
    ("uuid alone", "u1 cA / u1 cB", "aa"),
    ("fbid alone", "f7 cA / f7 cB", "aa"),
    ("e-mail first, uuid by the same cookie", "eann cA / u1 cA / u1 cB", "aaa"),
    ("uuid and e-mail told together tie both", "u1 eann cA / u1 cB / eann cC", "aaa"),
    ("uuid and e-mail known apart, then told together", "u1 cA / eann cB / u1 eann cC", "aaa"),
    ("and all their cookies come along", "u1 cA / eann cB / u1 eann cC / cA / cB / cC", "aaaaaa"),
    ("two uuids are never one", "u1 cA / u2 cB / u1 cA / u2 cB", "abab"),
    ("one e-mail of two uuids stays with the first", "u1 eann cA / u2 eann cB / eann cC", "aba"),
    ("an e-mail alone goes to its owner, not to the latest uuid", "u1 eann cA / u2 eann cB / u2 cC / eann cD", "abba"),
    ("a person may have two e-mails", "u1 eann cA / u1 ebob cB / eann cC / ebob cD", "aaaa"),
    ("two e-mails of two persons are joined by a uuid of one", "u1 eann cA / ebob cB / u1 ebob cC", "aaa"),
    ("not where both have a uuid", "u1 eann cA / u2 ebob cB / u1 ebob cC / ebob cD", "abab"),
    ("fbid ties to an e-mail that was told with it", "eann f7 cA / f7 cB", "aa"),
    ("fbid of somebody with another e-mail stays theirs", "eann f7 cA / ebob f7 cB / f7 cC", "aba"),
    ("fbid known before, then told with an e-mail", "f7 cA / eann f7 cB / cA", "aaa"),
    ("e-mail and fbid known apart, then told together", "eann cA / f7 cB / eann f7 cC", "aaa"),
    ("all three told together", "u1 eann f7 cA / f7 cB / eann cC / u1 cD", "aaaa"),
    ("three known apart are joined one by one", "u1 cA / eann cB / f7 cC / eann f7 cD / u1 f7 cE", "aaaaa"),
    ("a shared browser: the later login owns what comes after", "eann cA / cA / ebob cA / cA", "aabb"),
    ("not what came before", "cA / eann cA / ebob cA", "aab"),
    ("back and forth on a shared browser", "eann cA / ebob cA / cA / eann cA / cA", "abbaa"),
    ("and what each does elsewhere stays theirs", "eann cA / ebob cA / eann cB / cB / cA", "abaab"),
    ("three people on one browser", "eann cA / ebob cA / ecat cA / cA / eann cA / cA", "abccaa"),
    ("a shared browser with uuids", "u1 cA / u2 cA / cA / u1 cB / cB", "abbaa"),
    ("a uuid on a browser of an e-mail is that person's", "eann cA / u1 cA / ebob cA / u1 cB", "aaba"),
    ("an e-mail on a browser of a uuid is that person's", "u1 cA / eann cA / eann cB", "aaa"),
    ("another e-mail on that browser is not", "u1 cA / eann cA / ebob cA / ebob cB / u1 cC", "aabba"),
    ("a login on somebody's browser does not tell who they are", "eann cA / ebob cB / ebob cA / cB / cA", "abbbb"),
    ("a cookie joins two who do not disagree", "u1 cA / eann cB / eann cA", "aaa"),
    ("a returning cookie joins its past", "cA / cA / cB / eann cB / eann cA", "aaaaa"),
    ("a cookie from before we knew it", "eann c+A / c+A / eann c+B", "aaa"),
    ("the stronger identifier decides", "u1 cA / eann cB / u1 eann cB", "aaa"),
    ("an owner who disagrees does not decide", "u1 eann cA / u2 eann cA / cA", "abb"),
    ("then a weaker one may", "u1 eann cA / u2 f7 cB / u2 eann f7 cC", "abb"),
    ("nobody decides: somebody new", "u1 cA / u2 cB / u3 cA", "abc"),
    ("a merge of two merged", "eann cA / f7 cB / eann f7 cC / u1 cD / u1 eann cE / f7 cF", "aaaaaa"),
    ("merged persons own new identifiers together", "eann cA / f7 cB / eann f7 cC / f7 u1 cD / u1 cE", "aaaaa"),
    ("the purchase comes before anybody logs in", "cA / cA / cA / u1 cA / u1 cB", "aaaaa"),
    ("two windows of one browser at once", "eann cA / eann cB / cB / cB", "aaaa"),
]


def sightings(story: str, step_ms: int = 30) -> list[Sighting]:
    """The hits of a story of an app of its own, in the order they came."""
    found: list[Sighting] = []
    app = uuid4()
    seen: set[str] = set()
    for number, hit in enumerate(story.split(" / ")):
        words = {word[0]: word[1:] for word in hit.split()}
        at = BEGAN + number * step_ms
        cookie = words["c"].lstrip("+")
        found.append(
            Sighting(
                hit_id(app.int >> 80 << 14, number, at).to_bytes(16, "big"),
                at,
                app.bytes,
                cookie.encode().ljust(16, b"-"),
                "+" not in words["c"] and cookie not in seen,
                words.get("u"),
                f"{words['e']}@example.org" if "e" in words else None,
                words.get("f"),
            )
        )
        seen.add(cookie)
    return found


def interleavings(first: list[int], second: list[int]) -> Iterator[list[int]]:
    """Every order of both lists that keeps each one's."""
    for places in itertools.combinations(range(len(first) + len(second)), len(first)):
        ones, others = iter(first), iter(second)
        yield [next(ones) if place in places else next(others) for place in range(len(first) + len(second))]


async def digest(batches: Sequence[Sequence[Sighting]]) -> list[bytes]:
    """The key of the person each hit belongs to in the end, in the order the hits came."""
    stored: dict[bytes, bytes] = {}
    for number, batch in enumerate(batches):
        stored |= await digested(batch, f"journal {number % 2}", f"batch {number}")
    return await in_the_end(stored)


async def digested(
    batch: Sequence[Sighting], journal: str, name: str, memory: Memory | None = None, in_order: bool = False
) -> dict[bytes, bytes]:
    """The key of the person as whose each hit is stored."""
    known = [hit for hit in batch if not hit.new_visitor or hit.uuid or hit.email or hit.fbid]
    placed = await identify(known, journal, name, False, NOW, memory=memory, in_order=in_order)
    persons = {hit.hit_id: person for hit, person in zip(known, placed, strict=True)}
    return {hit.hit_id: hit.app + (persons.get(hit.hit_id) or hit.visitor) for hit in batch}


async def in_the_end(stored: dict[bytes, bytes]) -> list[bytes]:
    """The same once all is put right, in the order the hits came."""
    for moved in await Reattribution.objects():
        if moved.hit_id in stored:
            stored[moved.hit_id] = moved.person
    roots = await unscoped_roots(list(set(stored.values())))
    return [roots[stored[hit]] for hit in sorted(stored)]


def told_apart(persons: Sequence[object]) -> str:
    """The persons as letters, in the order they turn up."""
    letters = {person: chr(ord("a") + number) for number, person in enumerate(dict.fromkeys(persons))}
    return "".join(letters[person] for person in persons)


@pytest.mark.parametrize(("story", "expected"), [each[1:] for each in STORIES], ids=[each[0] for each in STORIES])
async def test_a_story_however_it_is_digested(database: Database, story: str, expected: str) -> None:
    del database
    assert told_apart(await digest([sightings(story)])) == expected
    assert told_apart(await digest([[hit] for hit in sightings(story)])) == expected
    hits = sightings(story)
    assert told_apart(await digest([list(reversed(hits))])) == expected


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("story", "expected"), [each[1:] for each in STORIES], ids=[each[0] for each in STORIES])
async def test_a_story_on_one_machine(database: Database, story: str, expected: str) -> None:
    """Which remembers persons from batch to batch and mostly knows that hits are in order."""
    del database
    for size, modes in ((99, [True]), (1, [True]), (2, [True, False])):
        hits, memory = sightings(story), Memory()
        stored: dict[bytes, bytes] = {}
        for number, start in enumerate(range(0, len(hits), size)):
            in_order = modes[number % len(modes)]
            stored |= await digested(hits[start : start + size], "journal", f"{start}", memory, in_order)
        assert told_apart(await in_the_end(stored)) == expected, (size, modes)


# (name, hits before, the hit with the token, hits before Facebook told that its user is 9, hits after; whose all of
# them are in the end).
LEARNT = [
    ("a visitor is known by it", "cA", "cA", "", "cA / f9 cB", "aaaa"),
    ("it is the person's who was logged in", "eann cA", "cA", "", "cA / f9 cB", "aaaa"),
    ("also if it came with the login", "", "eann cA", "cA", "f9 cB", "aaa"),
    ("whoever logged in meanwhile keeps the browser", "", "eann cA", "ebob cA", "cA / f9 cB / ebob cC", "abbab"),
    ("and learns nothing of it", "eann cA", "cA", "ebob cA", "cA / f9 cB / eann cC", "aabbaa"),
    ("a visitor who logged in meanwhile is that person", "cA", "cA", "eann cA", "f9 cB / eann cC", "aaaaa"),
    ("also where somebody else came after them", "cA", "cA", "eann cA / ebob cA", "f9 cB / cA", "aaabab"),
    ("its user was known: they were one all along", "f9 cB", "cA", "", "cA / cB", "aaaa"),
    ("also with an e-mail", "f9 cB", "eann cA", "", "cB / eann cC", "aaaa"),
    ("its user has another e-mail: the hit is theirs", "eann cA / ebob f9 cB", "cA", "", "cA / eann cC", "abbba"),
    ("but not if the hit told another", "ebob f9 cB", "eann cA", "", "cA / f9 cC", "abba"),
]


@pytest.mark.parametrize(
    ("before", "sent", "meanwhile", "after", "expected"),
    [each[1:] for each in LEARNT],
    ids=[each[0] for each in LEARNT],
)
@pytest.mark.parametrize("step_ms", [30, 60_000])
async def test_what_facebook_tells_is_learnt_by_whose_event_it_was(
    database: Database, before: str, sent: str, meanwhile: str, after: str, expected: str, step_ms: int
) -> None:
    """However long it takes to tell."""
    del database
    parts = [part for part in (before, sent, meanwhile, after) if part]
    hits = sightings(" / ".join(parts), step_ms)
    place = len(before.split(" / ")) if before else 0
    told_at = place + 1 + (len(meanwhile.split(" / ")) if meanwhile else 0)
    memory, stored = Memory(), dict[bytes, bytes]()
    for number, hit in enumerate(hits):
        if number == told_at:
            token = hits[place]
            of = stored[token.hit_id][16:]
            assert await learn(msgspec.structs.replace(token, fbid="9", new_visitor=False, of=of), NOW)
        stored |= await digested([hit], "journal", f"{number}", memory)
    assert told_apart(await in_the_end(stored)) == expected
    assert not await Person.exists().where(Person.size > 0, Person.known_at < BEGAN), "known since a hit"


async def test_what_was_learnt_stays_where_an_earlier_hit_turns_up(database: Database) -> None:
    """All is done again, the hit with the token and what was learnt of it, too."""
    del database
    hits = sightings("eann cA / ebob f9 cB / ecat cC / cA / f9 cD / cA")
    stored: dict[bytes, bytes] = {}
    for number in (0, 1, 3):
        stored |= await digested([hits[number]], "journal 0", f"{number}")
    of = stored[hits[3].hit_id][16:]
    assert await learn(msgspec.structs.replace(hits[3], fbid="9", new_visitor=False, of=of), NOW)
    for number in (2, 4, 5):
        stored |= await digested([hits[number]], "journal 1", f"{number}")
    assert told_apart(await in_the_end(stored)) == "abcbbb"


async def test_who_is_deleted_just_after_they_learnt_of_a_token_is_given_no_event(
    database: Database, alice: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their deletion took note of all events that were to be given to them, and this was not among them yet."""
    shop, _ = await create_app(alice, "Shop")
    hits = [msgspec.structs.replace(hit, app=shop.id.bytes) for hit in sightings("eann cA / ebob f9 cB / cA")]
    stored = await digested(hits, "journal", "0")
    ann, bob = (stored[hit.hit_id][16:] for hit in hits[:2])

    async def and_deleted(*arguments: Any) -> list[bytes]:
        persons = await identify(*arguments)
        assert persons == [bob]
        await delete_person(shop, UUID(bytes=bob), "Alice", datetime.now(UTC))
        return persons

    monkeypatch.setattr(people, "identify", and_deleted)
    assert await learn(msgspec.structs.replace(hits[2], fbid="9", new_visitor=False, of=ann), NOW) is None
    assert not await Reattribution.exists()


async def test_a_token_is_whose_hit_it_is_once_an_earlier_one_turned_up(database: Database) -> None:
    """Whether it was kept before or after."""
    del database
    key = SecretKey("a secret of at least 32 characters", "facebook")
    for kept_first in (True, False):
        hits = sightings("eann cA / ebob cA / cA")
        stored = await digested([hits[0]], "journal 0", "0") | await digested([hits[2]], "journal 0", "2")
        hit = hits[2]
        token = WaitingToken(UUID(bytes=hit.app), "T", hit.hit_id, hit.at, hit.visitor, person=stored[hit.hit_id][16:])
        if kept_first:
            await keep(key, [token], NOW)
        stored |= await digested([hits[1]], "journal 1", "1")
        if not kept_first:
            await keep(key, [token], NOW)
        persons = await in_the_end(stored)
        assert told_apart(persons) == "abb"
        (sender,) = await TokenSender.select().where(TokenSender.hit_id == hit.hit_id)
        assert hit.app + sender["person"] == persons[1]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("story", "expected"), [each[1:] for each in STORIES], ids=[each[0] for each in STORIES])
async def test_a_story_split_over_two_digesters(database: Database, story: str, expected: str) -> None:
    del database
    count = len(sightings(story))
    for first in ([*range(0, count, 2)], [*range(count // 2)]):
        for order in interleavings(first, [number for number in range(count) if number not in first]):
            hits = sightings(story)
            assert told_apart(await digest([[hits[number]] for number in order])) == expected, order


async def test_who_were_one_until_it_was_taken_back_have_what_is_theirs(database: Database) -> None:
    """The second hit is another's once the first one is there: one with whose it was, until two more come."""
    del database
    hits = sightings("f7 cC / f8 cC / f7 cA / u2 cA / u1 f7 cA / u1 f8 cA")
    batches = [[hits[number] for number in batch] for batch in ((5, 1, 4), (0,), (2, 3))]
    assert told_apart(await digest(batches)) == "abaabb"


def hits_of_anything() -> st.SearchStrategy[list[str]]:
    """Stories nobody would think of: few identifiers, so that they meet."""
    one = st.tuples(
        st.sampled_from(["", "u1 ", "u2 ", "u3 "]),
        st.sampled_from(["", "eann ", "ebob ", "ecat "]),
        st.sampled_from(["", "f7 ", "f8 "]),
        st.sampled_from(["cA", "cB", "cC", "cD"]),
    )
    return st.lists(one.map("".join), min_size=1, max_size=12)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hits=hits_of_anything(), draw=st.randoms(use_true_random=False))
async def test_any_hits_in_any_order(database: Database, hits: list[str], draw: Random) -> None:
    """No identifier belongs to two, and the order and the sizes of batches make no difference."""
    del database
    story = " / ".join(hits)
    in_order = sightings(story)
    persons = await digest([in_order])
    shuffled = sightings(story)
    app = shuffled[0].app
    draw.shuffle(shuffled)
    batches = [list(batch) for _, batch in itertools.groupby(shuffled, key=lambda _: draw.random() < 0.5)]
    assert told_apart(await digest(batches)) == told_apart(persons)
    owners = await Identifier.select(Identifier.key, Identifier.person).where(Identifier.key >= app)
    of_app = {row["key"]: row["person"] for row in owners if row["key"][:16] == app}
    assert of_app.keys() == {
        identifier_key(UUID(bytes=app), kind, value) for hit in shuffled for kind, value in hit.identifiers()
    }
    roots = await unscoped_roots(list(of_app.values()))
    rows = await Person.select().where(Person.key >= app).where(Person.size > 0)
    kinds = {row["key"]: row["kinds"] for row in rows}
    assert all(kinds[roots[person]] >> key[16] & 1 for key, person in of_app.items())
    strongest: dict[bytes, set[bytes]] = {}
    for key, person in of_app.items():
        if key[16] == UUID_KIND:
            strongest.setdefault(roots[person], set()).add(key)
    assert all(len(uuids) == 1 for uuids in strongest.values()), "two uuids are two persons"


@pytest.mark.parametrize("seed", range(4))
async def test_two_machines_at_once(database: Database, seed: int) -> None:
    """Each digests its own hits as fast as it can, and remembers what it knew."""
    del database
    draw = Random(seed)
    told_of = [["", "u1 ", "u2 ", "u3 "], ["", "eann ", "ebob ", "ecat "], ["", "f7 "], ["cA", "cB", "cC", "cD", "cE"]]
    story = " / ".join("".join(draw.choice(words) for words in told_of) for _ in range(60))
    expected = told_apart(await digest([sightings(story)]))
    hits = sightings(story)
    stored: dict[bytes, bytes] = {}

    async def machine(number: int) -> None:
        mine, memory = hits[number::2], Memory()
        while mine:
            size = draw.randint(1, 6)
            batch, mine = mine[:size], mine[size:]
            stored.update(await digested(batch, f"journal {number}", f"batch {len(mine)}", memory))

    await asyncio.gather(machine(0), machine(1))
    assert told_apart(await in_the_end(stored)) == expected


async def test_a_batch_done_again_has_the_persons_it_had(database: Database) -> None:
    """Also where others went on meanwhile, and it would be placed last."""
    del database
    hits = sightings("eann cA / cA / ebob cA / cA")
    first = await identify(hits[:2], "one", "batch", False, NOW)
    await identify(hits[2:], "two", "other batch", False, NOW)
    known: int = await Person.count()  # pyright: ignore[reportUnknownVariableType]
    assert await identify(hits[:2], "one", "batch", True, NOW) == first
    others = await identify(hits[2:], "two", "other batch", True, NOW)
    assert await identify(hits[3:], "two", "other batch", True, NOW) == others[1:]
    assert await Person.count() == known
    # It was begun, but never came so far.
    hits = sightings("ecat cA / cA")
    assert len(set(await identify(hits, "one", "next batch", True, NOW))) == 1


async def test_a_batch_done_again_after_its_visitors_events_were_rewritten(database: Database) -> None:
    """What it did before it was known is no longer looked for: it is stored as whose it turned out to be."""
    del database
    first, *hits = sightings("eann cA / cB / eann cB")
    (ann,) = await identify([first], "one", "before", False, NOW)
    assert await identify(hits, "one", "batch", False, NOW) == [b"", ann]
    assert await identify(hits, "one", "batch", True, NOW) == [b"", ann]
    await Person.update({Person.todo: 0}, force=True)
    assert await identify(hits, "one", "batch", True, NOW) == [ann, ann]


async def test_what_comes_much_later_is_placed_last(database: Database) -> None:
    del database
    late = sightings("eann cA")
    at = BEGAN + WINDOW_MS + 10
    now = sightings("ebob c+A")
    now[0].app, now[0].at = late[0].app, at
    assert told_apart(await digest([now, late])) == "ab"
    cookie = await Visitor.objects().where(Visitor.key == late[0].app + late[0].visitor).first()
    ann = identifier_key(UUID(bytes=late[0].app), EMAIL_KIND, "ann@example.org")
    owner = await Identifier.objects().where(Identifier.key == ann).first()
    assert cookie is not None
    assert owner is not None
    assert cookie.person == owner.person


async def test_a_clock_that_was_ahead_makes_nothing_late(database: Database) -> None:
    del database
    hits = sightings("eann cA / ebob cB / ecat cC")
    hits[0].at = NOW + 86_400_000
    app = UUID(bytes=hits[0].app)
    known_at: list[int] = []
    for number, hit in enumerate(hits):
        (person,) = await identify([hit], "one", str(number), False, NOW)
        row = await Person.objects().where(Person.key == app.bytes + person).first()
        assert row is not None
        known_at.append(row.known_at)
    assert known_at == [NOW, NOW + 1, NOW + 1], "late ones come last"
    # An hour on, what was late then is long over.
    (later,) = sightings("edan cD")
    later.app, later.at = hits[0].app, NOW + 3_600_000
    (person,) = await identify([later], "one", "later", False, NOW + 3_600_001)
    assert await Person.exists().where(Person.key == app.bytes + person, Person.known_at == NOW + 3_600_000)
    # Also where the clock was ahead before this was looked at.
    await IdentityClock.update({IdentityClock.newest: NOW + 10**12}).where(IdentityClock.app == app.bytes)
    (last,) = sightings("eeve cE")
    last.app, last.at = hits[0].app, NOW + 7_200_000
    (person,) = await identify([last], "one", "last", False, NOW + 7_200_001)
    assert await Person.exists().where(Person.key == app.bytes + person, Person.known_at == NOW + 7_200_000)


async def test_an_event_that_moves_twice_was_stored_as_whose_it_was_first(database: Database) -> None:
    row = (b"h" * 16, 1, b"a" * 32, b"b" * 32, 1)
    columns = ("hit_id", "received_at", "was", "person", "since")
    async with transaction():
        await bulk.put(Reattribution, columns, [row], keep="was")
        await bulk.put(Reattribution, columns, [(row[0], 1, b"b" * 32, b"c" * 32, 2)], keep="was")
    (found,) = await Reattribution.select()
    assert (found["was"], found["person"], found["since"]) == (b"a" * 32, b"c" * 32, 2)


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_more_sections_than_32_bits_count(database: Database) -> None:
    await IdentitySection.raw("SELECT setval('identity_section_id_seq', 2147483646)")
    app = uuid4().bytes
    for number in range(3):
        named = hit_id(number, 0, number).to_bytes(16, "big")
        hit = Sighting(named, number, app, uuid4().bytes, False, None, "ann@example.org")
        await identify([hit], "journal", str(number), False, number)
    assert max(row["id"] for row in await IdentitySection.select(IdentitySection.id)) > 2**31


async def test_apps_share_no_person(database: Database) -> None:
    del database
    one, other = sightings("u1 eann cA / cA"), sightings("u1 eann cA / cA")
    assert told_apart(await digest([[*one, *other]])) in ("aabb", "abab")


async def test_what_the_event_store_hears(database: Database) -> None:
    """Of persons who turned out to be others, under a version that grows; until it heard it."""
    del database
    hits = sightings("c+A / eann cB / eann c+A / u1 cC / u1 eann cD")
    persons = await digest([[hit] for hit in hits[:3]])
    (alias,) = await unscoped_untold()
    app, visitor, ann = (int.from_bytes(part, "big") for part in (hits[0].app, hits[0].visitor, persons[1][16:]))
    assert alias[:3] == (app, visitor, ann)
    await told([alias])
    assert await unscoped_untold() == []
    persons = await digest([[hit] for hit in hits[3:]])
    again = {row[1]: row for row in await unscoped_untold()}
    survivor = int.from_bytes(persons[-1][16:], "big")
    if survivor != ann:
        assert again[visitor][:3] == (app, visitor, survivor), "its visitor, whose events are still its own, too"
        assert again[visitor][3] > alias[3]
    assert {row[2] for row in again.values()} == {survivor}
    # Heard of an older state: it is told again.
    await told([(*row[:3], row[3] - 1) for row in again.values()])
    assert len(await unscoped_untold()) == len(again)


async def test_of_somebody_who_was_thousands_of_visitors_pages_see_some(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identifiers, "_USUALLY", 8)
    monkeypatch.setattr(identifiers, "_SHOWN", 3)
    cookies = "ABCDEFGHIJKLMNOPQRSTUVW"
    hits = sightings(" / ".join([*(f"ebob c+{cookie}" for cookie in cookies), "eann c+Y", "eann c+Z"]))
    of = dict(zip("ABYZ", await identify([hits[0], hits[1], *hits[-2:]], "j", "b", False, NOW), strict=True))
    await identify(hits[2:-2], "j", "c", False, NOW)
    app = App(id=UUID(bytes=hits[0].app), tenant=1)
    bob, ann = UUID(bytes=of["A"]), UUID(bytes=of["Y"])
    some = await known(app, [bob, ann])
    assert (len(some[bob].merged), len(some[ann].merged)) == (3, 1)
    everything = await known(app, [bob, ann], whole=True)
    assert (len(everything[bob].merged), len(everything[ann].merged)) == (len(cookies) - 1, 1)
