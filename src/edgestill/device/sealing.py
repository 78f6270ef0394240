"""Records at rest: a record is read back as it was written, at the place where it was written, or not at all.

- `Checked` puts a digest before a record (BLAKE2b, 128 bits). It finds what a power cut or a bad disk has torn, and
  what lies at another place than its own. It keeps nothing secret, and whoever can write the file can make records.
- `Sealed` encrypts and authenticates (ChaCha20-Poly1305, RFC 8439), with the place as associated data: a record that was
  changed, or moved to another place or another file, does not open.
- A nonce is 96 bits from the system's random source and no counter, so nothing that a crash or a restored copy brings
  back can make it repeat. Each file has a key of its own, made of the owner's key and the file's id (HKDF-SHA256, RFC
  5869): what is written into one file never counts against another. Among 2^32 records of one file, two share a nonce
  with a probability below 2^-33 (birthday bound); that is one record a second for 136 years.
- ChaCha20 and no AES: small processors without instructions for AES run it in constant time.

What neither can see: a whole record that is put back to its own place later. That takes a counter outside of the file.
"""

from __future__ import annotations

import hashlib
import os
from typing import Final, Protocol, final

from edgestill.core.errors import SettingError

KEY_BYTES: Final = 32
ID_BYTES: Final = 16
MARK_BYTES: Final = 12
"""At the beginning of a record, that no two share: zeros there are no record of either kind."""
_DIGEST: Final = 16
_NONCE: Final = 12
_TAG: Final = 16
_PURPOSE: Final = b"edgestill replay 1"


class Seal(Protocol):
    """How records are written. `Checked` and `Sealed` are the two."""

    @property
    def overhead(self) -> int:
        """Bytes by which a record is longer than what is in it."""
        ...

    def close(self, place: bytes, body: bytes) -> bytes:
        """The record of a body, for this place only."""
        ...

    def open(self, place: bytes, record: bytes) -> bytes | None:
        """The body of a record; None where it is torn, changed, or of another place."""
        ...


@final
class Checked:
    """Records with a digest.

    Args:
        identity: of the file, `ID_BYTES` bytes.
    """

    overhead: Final = _DIGEST

    def __init__(self, identity: bytes) -> None:
        self._identity = identity

    def close(self, place: bytes, body: bytes) -> bytes:
        """The record of a body."""
        return self._digest(place, body) + body

    def open(self, place: bytes, record: bytes) -> bytes | None:
        """The body of a record, or None."""
        body = record[_DIGEST:]
        return body if record[:_DIGEST] == self._digest(place, body) else None

    def _digest(self, place: bytes, body: bytes) -> bytes:
        state = hashlib.blake2b(digest_size=_DIGEST, key=self._identity)
        state.update(len(place).to_bytes(8, "little") + place)
        state.update(body)
        return state.digest()


@final
class Sealed:
    """Records that only the key opens.

    Args:
        identity: of the file, `ID_BYTES` bytes.
        key: the owner's, `KEY_BYTES` bytes.

    Raises:
        SettingError: a key of another length.
    """

    overhead: Final = _NONCE + _TAG

    def __init__(self, identity: bytes, key: bytes) -> None:
        # only where something is sealed: the library takes its time to load
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        if len(key) != KEY_BYTES:
            raise SettingError(
                "a key of another length",
                where="key",
                expected=f"{KEY_BYTES} bytes",
                got=f"{len(key)} bytes",
                fix="make one with a random source, and keep it where the device keeps its secrets",
            )
        derived = HKDF(SHA256(), length=KEY_BYTES, salt=identity, info=_PURPOSE).derive(key)
        self._cipher = ChaCha20Poly1305(derived)
        self._invalid = InvalidTag

    def close(self, place: bytes, body: bytes) -> bytes:
        """The record of a body."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, body, place)

    def open(self, place: bytes, record: bytes) -> bytes | None:
        """The body of a record, or None."""
        try:
            return self._cipher.decrypt(record[:_NONCE], record[_NONCE:], place)
        except (self._invalid, ValueError):  # too short to be a record
            return None


def seal_of(identity: bytes, key: bytes | None) -> Seal:
    """How the records of a file are written: sealed where there is a key."""
    return Checked(identity) if key is None else Sealed(identity, key)
