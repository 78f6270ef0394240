"""Bundles on disk: a folder of content-addressed blobs, or the same as one deterministic archive.

- A folder holds `bundle.json` and `blobs/<sha256>`; an archive (`NAME.esb`) is a POSIX ustar of the same files in a
  fixed order, with no times, owners or padding that could differ: building twice gives the same bytes, anywhere.
- The reader trusts nothing. The manifest says what every byte of the archive outside the blobs must be, so these are
  compared, not parsed: links, foreign names, second copies, odd sizes and trailing bytes have no way in.
- A blob is read only when asked, bounded by its size in the manifest, and checked against its digest.
- There is no compression here. Links compress, and patches work on the raw bytes.

The layout, byte by byte, stands in `docs/bundle.md`.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from edgestill.core import archive
from edgestill.core.digest import Digest
from edgestill.core.errors import (
    BundleAlteredError,
    BundleError,
    BundleTruncatedError,
    PathError,
    within,
)
from edgestill.core.files import open_plain, refuse_special
from edgestill.core.manifest import MAX_MANIFEST_BYTES, BlobRef, Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgestill.core.jsonio import JsonObject

MANIFEST: Final = "bundle.json"
BLOBS: Final = "blobs"
PUBLIC: Final = 0o666
"""Mode of a file for others to read, before the umask; without it a file is its owner's alone."""

_CHUNK: Final = 1 << 20
_NUMBERS: Final = itertools.count()
_REFETCH: Final = "fetch or build it again"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle and where its blobs are.

    Attributes:
        manifest: what it is made of.
        path: the folder or archive.
    """

    manifest: Manifest
    path: Path
    _spans: Mapping[str, tuple[Path, int]]

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Reads the manifest and finds the blobs; their bytes are read and checked by `read`.

        Raises:
            PathError: nothing there, or not readable.
            BundleError: not a bundle. BundleTruncatedError: it ends too early.
        """
        path = Path(path)
        try:
            manifest, spans = _open_folder(path) if path.is_dir() else _open_archive(path)
        except OSError as error:
            raise PathError(
                "cannot read a bundle",
                where=path,
                got=error.strerror or error,
                fix="check the path",
                expected=f"NAME.esb, or a folder with {MANIFEST}",
            ) from error
        return cls(manifest, path, spans)

    def read(self, name: str) -> bytes:
        """The bytes of one blob, checked.

        Raises:
            BundleError: no blob of that name.
            BundleTruncatedError, BundleAlteredError: the bytes are not what the manifest says.
            PathError: the file is gone.
        """
        ref = self.manifest.blobs.get(name)
        if ref is None:
            raise BundleError(
                "no such blob",
                where=self.path,
                expected=f"one of {list(self.manifest.blobs)}",
                got=name,
                fix="build the bundle with it",
            )
        return b"".join(self._checked(name, ref.size))

    def verify(self) -> None:
        """Reads every blob once, a megabyte at a time, and checks it.

        Raises:
            BundleTruncatedError, BundleAlteredError, PathError: as `read`.
        """
        for name in self.manifest.blobs:
            for _ in self._checked(name, _CHUNK):
                pass

    def _checked(self, name: str, chunk: int) -> Iterator[bytes]:
        """The bytes of a blob in pieces of this size; whether they are the right ones shows only at their end."""
        ref = self.manifest.blobs[name]
        file, offset = self._spans[name]
        state, left = hashlib.sha256(), ref.size
        try:
            with file.open("rb") as source:
                source.seek(offset)
                while left and (data := source.read(min(chunk, left))):
                    state.update(data)
                    left -= len(data)
                    yield data
        except OSError as error:
            raise PathError(
                f"cannot read {name}",
                where=file,
                got=error.strerror or error,
                fix="check the path",
                expected="a file that can be read",
            ) from error
        if left:
            raise BundleTruncatedError(
                f"{name} ends too early",
                where=self.path,
                expected=f"{ref.size} bytes",
                got=f"{ref.size - left} bytes",
                fix=_REFETCH,
            )
        found = Digest(state.hexdigest())
        if found != ref.digest:
            raise BundleAlteredError(
                f"{name} was altered", where=self.path, expected=ref.digest, got=found, fix=_REFETCH
            )


def build(
    *,
    name: str,
    version: str,
    hardware_class: str,
    blobs: Mapping[str, bytes],
    unknown: JsonObject | None = None,
) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest for these blobs, checked by reading it back, and the blobs in order.

    Raises:
        BundleError: a name, version or set of blobs that the format does not allow.
    """
    ordered = dict(sorted(blobs.items()))
    manifest = Manifest(
        name=name,
        version=version,
        hardware_class=hardware_class,
        blobs={key: BlobRef(Digest.of(data), len(data)) for key, data in ordered.items()},
        unknown=unknown or {},
    )
    return Manifest.from_bytes(manifest.to_bytes()), ordered


def archive_bytes(manifest: Manifest, blobs: Mapping[str, bytes]) -> bytes:
    """The deterministic archive of a bundle."""
    return archive.packed(_files(manifest, blobs))


def write_archive(path: Path, manifest: Manifest, blobs: Mapping[str, bytes]) -> None:
    """Writes `NAME.esb` whole or not at all.

    Raises:
        PathError: the folder cannot be written.
    """
    replace(path, archive_bytes(manifest, blobs), mode=PUBLIC)


def write_folder(path: Path, manifest: Manifest, blobs: Mapping[str, bytes]) -> None:
    """Writes the folder form; the manifest comes last, so that a folder with a manifest is complete.

    Raises:
        PathError: the folder cannot be written.
    """
    try:
        (path / BLOBS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    files = dict(_files(manifest, blobs))
    head = files.pop(MANIFEST)
    for name, data in files.items():
        replace(path / name, data, mode=PUBLIC)
    replace(path / MANIFEST, head, mode=PUBLIC)


def replace(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Writes a file so that its name holds the old bytes or the new ones, never a part, whenever power fails.

    Args:
        path: in a folder that exists.
        data: all of it.
        mode: permissions of the file, from which the process's umask is taken.

    Raises:
        PathError: it cannot be written.
    """
    try:
        refuse_special(path)
        handle, temporary = _beside(path, mode)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


def _beside(path: Path, mode: int) -> tuple[int, Path]:
    """A new file in the same folder; its name is this process's, or the next that nobody has left there."""
    while True:
        temporary = path.parent / f".{path.name[:40]}.{os.getpid()}-{next(_NUMBERS)}"
        try:
            return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), temporary
        except FileExistsError:  # of a process that was killed, and had the same number
            continue


def sync_folder(path: Path) -> None:
    """Makes renames within a folder durable (POSIX keeps a name only once its folder is synced)."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(path: Path, error: OSError) -> PathError:
    return PathError(
        "cannot write",
        where=path,
        expected="a new or a plain file, in a writable folder with room",
        got=error.strerror,
        fix="choose another path",
    )


def _files(manifest: Manifest, blobs: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Path -> bytes in the archive's order; a blob that two names share is there once."""
    yield MANIFEST, manifest.to_bytes()
    by_digest = {ref.digest.hex: blobs[name] for name, ref in manifest.blobs.items()}
    for digest, data in by_digest.items():
        yield f"{BLOBS}/{digest}", data


def _open_folder(path: Path) -> tuple[Manifest, dict[str, tuple[Path, int]]]:
    head = path / MANIFEST
    if not head.is_file():
        raise BundleError(
            "not a bundle",
            where=path,
            expected=f"a folder with {MANIFEST}",
            got=f"none of that name among {len(list(path.iterdir()))} files",
            fix=_REFETCH,
        )
    with open_plain(head) as file, within(path):
        manifest = Manifest.from_bytes(file.read(MAX_MANIFEST_BYTES + 1))
    spans = {name: (path / BLOBS / ref.digest.hex, 0) for name, ref in manifest.blobs.items()}
    for name, (file_path, _) in spans.items():
        if not file_path.is_file():
            raise BundleTruncatedError(
                f"{name} is missing",
                where=file_path,
                fix=_REFETCH,
                expected="a file",
                got="nothing, or no plain file",
            )
        size = manifest.blobs[name].size
        if file_path.stat().st_size > size:
            raise BundleAlteredError(
                f"{name} is too long",
                where=file_path,
                expected=f"{size} bytes",
                fix=_REFETCH,
                got=f"{file_path.stat().st_size} bytes",
            )
    return manifest, spans


def _open_archive(path: Path) -> tuple[Manifest, dict[str, tuple[Path, int]]]:
    with open_plain(path) as file:
        data = archive.head(file, path, name=MANIFEST, at_most=MAX_MANIFEST_BYTES, what="a bundle")
        with within(path):
            manifest = Manifest.from_bytes(data)
        offsets = archive.offsets(file, path, _members(manifest))
    return manifest, {
        name: (path, offsets[f"{BLOBS}/{ref.digest.hex}"]) for name, ref in manifest.blobs.items()
    }


def _members(manifest: Manifest) -> Iterator[tuple[str, int]]:
    """Path and size of every file, in the archive's order; a blob that two names share is there once."""
    yield MANIFEST, len(manifest.to_bytes())
    sizes = {ref.digest.hex: ref.size for ref in manifest.blobs.values()}
    for digest, size in sizes.items():
        yield f"{BLOBS}/{digest}", size
