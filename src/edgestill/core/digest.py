"""Digests that never travel without their algorithm."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from edgestill.core.errors import MessageError

if TYPE_CHECKING:
    from collections.abc import Iterable

_TEXT: Final = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A SHA-256 digest, written `sha256:<64 hex digits>`."""

    hex: str

    def __post_init__(self) -> None:
        if _TEXT.fullmatch(f"sha256:{self.hex}") is None:
            raise MessageError(
                "not a digest",
                expected="64 lower-case hex digits",
                got=repr(self.hex),
                where="digest",
                fix="copy it whole, from what made it",
            )

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

    @classmethod
    def of(cls, data: bytes | memoryview) -> Self:
        """The digest of these bytes."""
        return cls(hashlib.sha256(data).hexdigest())

    @classmethod
    def of_chunks(cls, chunks: Iterable[bytes]) -> Self:
        """The digest of the chunks in their order."""
        state = hashlib.sha256()
        for chunk in chunks:
            state.update(chunk)
        return cls(state.hexdigest())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `sha256:...`.

        Raises:
            MessageError: another algorithm, or not a digest.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise MessageError(
                "not a digest",
                expected="sha256:<64 lower-case hex digits>",
                got=repr(text[:80]),
                where="digest",
                fix="copy it whole, from what made it",
            )
        return cls(match[1])
