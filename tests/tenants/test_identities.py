"""Many hits at once are placed as one after the other: identities.py."""

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tenants.identities import Persons, Sighting

_APP = bytes(16)


def some(*values: str) -> st.SearchStrategy[str | None]:
    return st.none() | st.sampled_from(values)


# Cookie, whether it is new, uuid, email, fbid.
Told = tuple[int, bool, str | None, str | None, str | None]
told: st.SearchStrategy[Told] = st.tuples(
    st.integers(1, 4), st.booleans(), some("u", "v"), some("a@x.example", "b@x.example", "c@x.example"), some("1", "2")
)


def hits(of: list[Told], first: int) -> list[Sighting]:
    return [
        Sighting(
            (first + number).to_bytes(16, "big"),
            first + number,
            _APP,
            cookie.to_bytes(16, "big"),
            new,
            uuid,
            email,
            fbid,
        )
        for number, (cookie, new, uuid, email, fbid) in enumerate(of)
    ]


def one_by_one(known: Persons, hits: list[Sighting]) -> list[bytes]:
    persons: list[bytes] = []
    for hit in hits:
        person = known.place_known(hit)
        persons.append(known.place(hit).person if person is None else person)
    return persons


def state(known: Persons) -> dict[str, Any]:
    """All that is known, without owners that are nobody: who was asked about is no matter."""
    persons = {
        key: (person.kinds, person.size, person.known_at, person.was_merged_into)
        for key, person in known.persons.items()
    }
    owners = {kind: {value: owner for value, owner in of.items() if owner} for kind, of in known.owners.items()}
    visitors = {cookie: owner for cookie, owner in known.visitors.items() if owner}
    changed = known.changed_identifiers, known.changed_visitors, known.changed_persons
    return vars(known) | {"persons": persons, "owners": owners, "visitors": visitors, "changed": changed}


@given(st.lists(told, max_size=12), st.sets(st.integers(1, 4)), st.lists(told, max_size=12), st.booleans())
def test_many_at_once_are_placed_as_one_after_the_other(
    before: list[Told], let_go: set[int], now: list[Told], later: bool
) -> None:
    known = Persons()
    known.keep = False
    one_by_one(known, hits(before, 1_000))
    known.written(1, 1_000 + len(before))
    for number in let_go:
        # As when whom the cookie came to was deleted.
        known.visitors[number.to_bytes(16, "big")] = None
    other = copy.deepcopy(known)
    new = hits(now, 2_000 if later else 500)
    assert known.place_all(new) == one_by_one(other, new)
    assert state(known) == state(other)


ANONYMOUS: Told = (1, False, None, None, None)
ANN: Told = (1, False, None, "a@x.example", None)
BOB: Told = (1, False, None, "b@x.example", None)
COOKIE = (1).to_bytes(16, "big")


def test_a_visitor_with_a_new_address_is_somebody_from_then_on() -> None:
    known = Persons()
    known.keep = False
    assert known.place_all(hits([ANONYMOUS, ANN, ANONYMOUS], 1_000)) == [b"", COOKIE, COOKIE]
    assert known.began_as_visitors == {COOKIE}
    assert known.changed_persons == known.changed_visitors == {COOKIE}
    assert known.persons[COOKIE].known_at == 1_001


def test_a_new_address_is_not_of_somebody_who_had_the_cookie_once() -> None:
    known = Persons()
    known.keep = False
    known.place_all(hits([ANN], 1_000))
    # Whom it came to later was deleted.
    known.visitors[COOKIE] = None
    (bob,) = hits([BOB], 2_000)
    assert known.place_all([bob]) == [bob.hit_id]
