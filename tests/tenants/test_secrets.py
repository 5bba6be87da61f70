"""What is encrypted reads back in its place with its key, and nowhere else."""

import pytest

from tenants.secrets import SecretKey, Undecipherable

SECRET = "correct horse battery staple, 32"


def test_a_text_reads_back_with_the_same_secret() -> None:
    for text in ("", "EAAB-token", "schlüssel 🗝", "\ud800", "x" * 8_000):
        sealed = SecretKey(SECRET, "a").encrypt(text, b"place")
        assert SecretKey(SECRET, "a").decrypt(sealed, b"place") == text
        assert not text or text.encode(errors="surrogatepass") not in sealed


def test_equal_texts_do_not_look_equal() -> None:
    key = SecretKey(SECRET, "a")
    assert key.encrypt("token", b"") != key.encrypt("token", b"")


def test_hashes_tell_equal_texts_of_one_key() -> None:
    key = SecretKey(SECRET, "a")
    assert key.hash(b"token") == SecretKey(SECRET, "a").hash(b"token")
    others = {SecretKey(SECRET, "b").hash(b"token"), SecretKey(SECRET + "!", "a").hash(b"token"), key.hash(b"Token")}
    assert len(others | {key.hash(b"token")}) == 4


def test_no_key_shows_itself() -> None:
    key = SecretKey(SECRET, "a")
    assert SECRET not in repr(key) + str(vars(key))


SEALED = SecretKey(SECRET, "a").encrypt("token", b"place")


@pytest.mark.parametrize(
    ("secret", "purpose", "place", "sealed"),
    [
        (SECRET + "!", "a", b"place", SEALED),
        (SECRET, "b", b"place", SEALED),
        (SECRET, "a", b"another", SEALED),
        (SECRET, "a", b"place", SEALED[:-1] + bytes([SEALED[-1] ^ 1])),
        (SECRET, "a", b"place", bytes([SEALED[0] ^ 1]) + SEALED[1:]),
        (SECRET, "a", b"place", SEALED[:20]),
        (SECRET, "a", b"place", SEALED[:5]),
        (SECRET, "a", b"place", b""),
    ],
    # The sealed text is another in every process.
    ids=["secret", "purpose", "place", "last byte", "first byte", "cut", "cut short", "nothing"],
)
def test_all_else_is_undecipherable(secret: str, purpose: str, place: bytes, sealed: bytes) -> None:
    with pytest.raises(Undecipherable):
        SecretKey(secret, purpose).decrypt(sealed, place)
