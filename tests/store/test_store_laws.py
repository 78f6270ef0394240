"""Every blob store keeps the laws; and the law suite finds who breaks them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edgestill.core.digest import Digest
from edgestill.core.errors import StoreError
from edgestill.store.files import FileBlobs
from edgestill.store.memory import MemoryBlobs
from edgestill.testing import blob_store_laws
from edgestill.testing.blob_store_laws import LAWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgestill.core.protocols import BlobStore

_named = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)


@_named
def test_memory_keeps_the_law(law: Callable[[BlobStore], None]) -> None:
    """Each law holds in memory."""
    law(MemoryBlobs())


@_named
def test_files_keep_the_law(law: Callable[[BlobStore], None], tmp_path: Path) -> None:
    """Each law holds in files."""
    law(FileBlobs.open(tmp_path / "blobs"))


@_named
def test_files_keep_the_law_across_a_restart(law: Callable[[BlobStore], None], tmp_path: Path) -> None:
    """Each law holds where every call meets a store that was opened afresh."""

    class Reopened:
        def put(self, data: bytes) -> Digest:
            return FileBlobs.open(tmp_path).put(data)

        def get(self, digest: Digest) -> bytes:
            return FileBlobs.open(tmp_path).get(digest)

        def has(self, digest: Digest) -> bool:
            return FileBlobs.open(tmp_path).has(digest)

        def delete(self, digest: Digest) -> None:
            FileBlobs.open(tmp_path).delete(digest)

        def list(self) -> Iterator[Digest]:
            return FileBlobs.open(tmp_path).list()

    law(Reopened())


class _Forgetful:
    """Breaks the laws one at a time."""

    def __init__(self, fault: str) -> None:
        self._fault = fault
        self._inner = MemoryBlobs()
        self._gone: set[Digest] = set()

    def put(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        if not (self._fault == "once" and digest in self._gone) and not (self._fault == "empty" and not data):
            self._inner.put(data)
        return digest

    def get(self, digest: Digest) -> bytes:
        if self._fault == "none" and not self._inner.has(digest):
            return b""
        return self._inner.get(digest)

    def has(self, digest: Digest) -> bool:
        return self._fault == "boast" or self._inner.has(digest)

    def delete(self, digest: Digest) -> None:
        if self._fault == "strict" and not self._inner.has(digest):
            raise StoreError("not there")
        self._gone.add(digest)
        if self._fault != "hoard":
            self._inner.delete(digest)

    def list(self) -> Iterator[Digest]:
        digests = list(self._inner.list())
        return reversed(digests) if self._fault == "order" else iter(digests)


@pytest.mark.parametrize("fault", ["once", "empty", "none", "boast", "strict", "hoard", "order"])
def test_the_laws_find_who_breaks_them(fault: str) -> None:
    """A store with any of these faults fails at least one law."""
    broken = []
    for law in LAWS:
        try:
            law(_Forgetful(fault))
        except (AssertionError, StoreError):
            broken.append(law.__name__)
    assert broken


def test_every_law_is_run() -> None:
    """No function of the suite is left out of `LAWS`."""
    functions = {
        name
        for name, value in vars(blob_store_laws).items()
        if getattr(value, "__module__", None) == blob_store_laws.__name__ and callable(value)
    }
    assert functions == {law.__name__ for law in LAWS}
