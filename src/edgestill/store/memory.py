"""Blobs in memory: for tests, and for places that keep nothing."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, final

from edgestill.core.digest import Digest
from edgestill.core.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator


@final
class MemoryBlobs:
    """A `core.protocols.BlobStore` that forgets everything with the process. Safe for threads."""

    def __init__(self) -> None:
        self._blobs: dict[Digest, bytes] = {}
        self._lock = threading.Lock()

    def put(self, data: bytes) -> Digest:
        """Keeps the bytes; keeping them twice is keeping them once."""
        digest = Digest.of(data)
        with self._lock:
            self._blobs[digest] = bytes(data)
        return digest

    def get(self, digest: Digest) -> bytes:
        """The bytes.

        Raises:
            StoreError: not there.
        """
        with self._lock:
            data = self._blobs.get(digest)
        if data is None:
            raise StoreError(
                "no such blob",
                where="memory",
                got=digest,
                expected="a digest that is kept here",
                fix="fetch it again",
            )
        return data

    def has(self, digest: Digest) -> bool:
        """Whether the bytes are there."""
        with self._lock:
            return digest in self._blobs

    def delete(self, digest: Digest) -> None:
        """Forgets the bytes; forgetting what is not there is no error."""
        with self._lock:
            self._blobs.pop(digest, None)

    def list(self) -> Iterator[Digest]:
        """Every digest kept at this moment, in order."""
        with self._lock:
            digests = sorted(self._blobs)
        return iter(digests)
