"""Browsers in which somebody logged in before: strangers who guess at their mailbox do not lock them out.

A browser keeps a random id and a keyed hash of it and the mailbox, so that nothing is stored here. It is worth a limit
of its own and nothing more: whoever steals it may guess ten times in a quarter of an hour.
"""

import hmac
import secrets
from datetime import timedelta

from tenants.secrets import SecretKey
from tenants.tries import mailbox

# Browsers keep no cookie longer than 400 days.
LIFETIME = timedelta(days=365)
_ID_CHARACTERS = 32


def known_browser_key(secret: str) -> SecretKey:
    """The key that tokens are made with."""
    return SecretKey(secret, "known browser")


def token_of(key: SecretKey, email: str) -> str:
    """A token for a browser in which this mailbox's password was right."""
    browser = secrets.token_hex(_ID_CHARACTERS // 2)
    return browser + _proof(key, email, browser)


def known_browser(key: SecretKey, email: str, token: str) -> str | None:
    """The id of the browser that has this token; None where it is not one of ours, or another mailbox's."""
    browser, proof = token[:_ID_CHARACTERS], token[_ID_CHARACTERS:]
    right = hmac.compare_digest(_proof(key, email, browser).encode(), proof.encode(errors="replace"))
    return browser if right else None


def _proof(key: SecretKey, email: str, browser: str) -> str:
    return key.hash(f"{browser}\n{mailbox(email)}".encode(errors="replace")).hex()
