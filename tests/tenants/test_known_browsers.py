import pytest

from tenants.known_browsers import known_browser, known_browser_key, token_of

KEY = known_browser_key("secret")


def test_a_browser_is_known_to_the_mailbox_that_logged_in() -> None:
    token, other = token_of(KEY, "alice@example.org"), token_of(KEY, "alice@example.org")
    browser = known_browser(KEY, " Alice@Example.ORG", token)
    assert browser
    assert browser != known_browser(KEY, "alice@example.org", other)
    assert known_browser(KEY, "bob@example.org", token) is None
    assert known_browser(known_browser_key("another"), "alice@example.org", token) is None


@pytest.mark.parametrize("change", ["", "x", "x" * 64, "\ud800" * 64, "0" * 100_000])
def test_what_somebody_made_up_is_not_known(change: str) -> None:
    token = token_of(KEY, "alice@example.org")
    for made_up in (change, token + change, token[:-1] + change + "g", change + token[1:]):
        if made_up != token:
            assert known_browser(KEY, "alice@example.org", made_up) is None
