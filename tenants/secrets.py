"""What is encrypted at rest, and what is looked for without being kept: AES-256-GCM and keyed hashes.

Each purpose has keys of its own, derived (HKDF) from the one secret that the operator keeps. What something belongs to
(an app, a row) is authenticated with it: moved to another place in the database it cannot be decrypted.
"""

import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

# NIST SP 800-38D: 96 bits, random for up to 2^32 texts a key.
_NONCE_BYTES = 12
_HASH_BYTES = 16


class Undecipherable(Exception):
    """It was encrypted with another key or for another place, or it is damaged."""


class SecretKey:
    """The keys of one purpose."""

    def __init__(self, secret: str, purpose: str) -> None:
        self._cipher = AESGCM(_derived(secret, f"onepx {purpose} encryption"))
        self._hash_key = _derived(secret, f"onepx {purpose} hash")

    def encrypt(self, text: str, place: bytes) -> bytes:
        """The text, to be decrypted at the same `place` only; another ciphertext each time."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, text.encode(errors="surrogatepass"), place)

    def decrypt(self, sealed: bytes, place: bytes) -> str:
        """What `encrypt` was given. Raises Undecipherable."""
        try:
            text = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place)
        except (InvalidTag, ValueError):
            raise Undecipherable from None
        return text.decode(errors="surrogatepass")

    def try_decrypt(self, sealed: bytes, place: bytes) -> str | None:
        """The same, or None where the operator lost or changed the secret."""
        try:
            return self.decrypt(sealed, place)
        except Undecipherable:
            return None

    def hash(self, data: bytes) -> bytes:
        """16 bytes that tell equal data; without the key nobody can try what they may be of."""
        return hashlib.blake2b(data, key=self._hash_key, digest_size=_HASH_BYTES).digest()


def _derived(secret: str, info: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info.encode()).derive(secret.encode())
