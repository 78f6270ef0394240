"""How the head of a replay buffer's file is framed: magic, length, JSON, zeros, proof of the key, digest.

It stands apart from `device.replay_format` because whoever only wants to know whether a file is sealed has no numpy, such as
`edgestill-agent settings`. What the JSON says in full is read there.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final, NamedTuple

from edgestill.core.errors import MessageError
from edgestill.core.jsonio import Fields, parse_object

HEAD_BYTES: Final = 4096
PROOF_BYTES: Final = 28
WHERE: Final = "head"
_MAGIC: Final = b"ESTREPL1"
_DIGEST: Final = 16
_SAID: Final = HEAD_BYTES - PROOF_BYTES - _DIGEST
_LENGTH: Final = struct.Struct("<I")


class Parts(NamedTuple):
    """What a head is made of.

    Attributes:
        said: magic, length, JSON and zeros: what the proof is bound to.
        proof: of the key, `PROOF_BYTES` long; zeros where there is none.
    """

    said: bytes
    proof: bytes

    @classmethod
    def of(cls, data: bytes) -> Parts | None:
        """Reads a head; None where it is none, or a damaged one."""
        said, proof = data[:_SAID], data[_SAID:-_DIGEST]
        is_whole = len(data) == HEAD_BYTES and data.startswith(_MAGIC)
        return cls(said, proof) if is_whole and _digest(said + proof) == data[-_DIGEST:] else None

    @property
    def text(self) -> bytes:
        """The JSON, cut where its length says more than there is room for."""
        (length,) = _LENGTH.unpack_from(self.said, len(_MAGIC))
        return self.said[len(_MAGIC) + _LENGTH.size :][:length]

    def fields(self) -> Fields:
        """The JSON's fields; MessageError where it is none."""
        return Fields(parse_object(self.text, where=WHERE, max_bytes=_SAID), WHERE)

    def to_bytes(self) -> bytes:
        """The head, `HEAD_BYTES` long."""
        return self.said + self.proof + _digest(self.said + self.proof)


def said_of(text: bytes) -> bytes:
    """What a head says, framed."""
    return (_MAGIC + _LENGTH.pack(len(text)) + text).ljust(_SAID, b"\0")


def is_sealed(data: bytes) -> bool:
    """Whether a file with this beginning says that it is sealed; one whose head is damaged, or none, does not."""
    parts = Parts.of(data)
    try:
        return parts is not None and parts.fields().boolean("sealed")
    except MessageError:
        return False


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
