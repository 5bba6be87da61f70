"""The pixel's small pure parts; the whole of it is tested over a socket in tests/live."""

import re
import uuid

import pytest

from server.pixel import _VISITOR, GIF, client_address, network_of, new_visitor  # pyright: ignore[reportPrivateUsage]

TOKEN = "0123456789abcdef01234567"


def test_the_gif_is_one_transparent_pixel_of_43_bytes() -> None:
    assert len(GIF) == 43
    assert GIF[:6] == b"GIF89a"
    assert GIF[6:10] == b"\x01\x00\x01\x00"
    # The graphic control extension says that colour 0 is transparent, and the one pixel has it.
    assert b"!\xf9\x04\x01\x00\x00\x00\x00" in GIF


def test_a_new_visitor_gets_a_version_4_uuid_in_a_cookie_of_the_app_alone() -> None:
    number, cookie = new_visitor(TOKEN)
    made = uuid.UUID(bytes=number)
    assert made.version == 4
    assert cookie.decode() == (
        f"vid={made}; Path=/{TOKEN}; Max-Age=31536000; Secure; HttpOnly; SameSite=None; Partitioned"
    )


def test_visitors_are_never_the_same() -> None:
    assert len({new_visitor(TOKEN)[0] for _ in range(2_000)}) == 2_000


GOOD = "0f8a6d5c-4b3e-4a19-88f7-e6d50f8a6d5c"


@pytest.mark.parametrize(
    ("cookie", "ours"),
    [
        (f"vid={GOOD}", True),
        (f"a=1; vid={GOOD}; b=2", True),
        (f"a=1;vid={GOOD}", True),
        (f"xvid={GOOD}", False),
        (f"a=vid={GOOD}", False),
        (f"vid={GOOD.upper()}", False),
        ("vid=0f8a6d5c-4b3e-1a19-88f7-e6d50f8a6d5c", False),  # version 1
        ("vid=0f8a6d5c-4b3e-4a19-08f7-e6d50f8a6d5c", False),  # another variant
        (f"vid={GOOD}0", False),
        (f'vid="{GOOD}"', False),
        ("vid=", False),
        ("vid=me", False),
    ],
)
def test_only_a_cookie_as_we_write_it_is_one_of_ours(cookie: str, ours: bool) -> None:
    assert bool(_VISITOR.search(cookie.encode())) is ours


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.77", "203.0.113.0/24"),
        ("203.0.113.77:4711", "203.0.113.0/24"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::/48"),
        ("[2001:db8:1:2::5]:443", "2001:db8:1::/48"),
        ("[2001:db8:1:2::5]", "2001:db8:1::/48"),
        ("fe80::1%eth0", "fe80::/48"),
        ("::ffff:203.0.113.77", "203.0.113.0/24"),
        ("unknown", ""),
        ("_hidden", ""),
        ("", ""),
        ("300.1.1.1", ""),
        ("1.2.3.4.5", ""),
        ("[", ""),
        ("\x00", ""),
    ],
)
def test_addresses_are_cut(address: str, network: str) -> None:
    assert network_of(address) == network
    assert not re.search(r"77|:5|4711", network_of(address))


@pytest.mark.parametrize(
    ("client", "forwarded", "proxies", "address"),
    [
        (("192.0.2.7", 4711), [], 0, "192.0.2.7"),
        (("192.0.2.7", 4711), [b"198.51.100.1"], 0, "192.0.2.7"),
        (("10.0.0.1", 4711), [b"203.0.113.9, 198.51.100.1"], 1, "198.51.100.1"),
        (("10.0.0.1", 4711), [b"203.0.113.9", b"198.51.100.1"], 2, "203.0.113.9"),
        (("10.0.0.1", 4711), [b"[2001:db8::7]:4711"], 1, "2001:db8::7"),
        (("10.0.0.1", 4711), [b"::ffff:203.0.113.9"], 1, "203.0.113.9"),
        # The request came around the proxies: nothing in the header can be believed.
        (("10.0.0.1", 4711), [b"203.0.113.9"], 2, "10.0.0.1"),
        (("10.0.0.1", 4711), [b"unknown"], 1, ""),
        (("10.0.0.1", 4711), [b"198.51.100.1" + 400_000 * b" x"], 1, ""),
        (None, [], 0, ""),
    ],
)
def test_who_asks_for_a_page_is_told_through_trusted_proxies_alone(
    client: tuple[str, int] | None, forwarded: list[bytes], proxies: int, address: str
) -> None:
    headers = [(b"host", b"onepx"), *((b"x-forwarded-for", value) for value in forwarded)]
    assert client_address({"client": client, "headers": headers}, proxies) == address
