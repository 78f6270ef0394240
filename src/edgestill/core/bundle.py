"""Bundles on disk: a folder of content-addressed blobs, or the same as one deterministic archive.

- A folder holds `bundle.json` and `blobs/<sha256>`; an archive (`NAME.esb`) is a POSIX ustar of the same files in a
  fixed order, with no times, owners or padding that could differ: building twice gives the same bytes.
- The reader trusts nothing: it accepts regular files under the expected names only, bounds sizes before it
  allocates, reads a blob only when asked, and checks every blob against its digest.
- There is no compression here. Links compress, and patches work on the raw bytes.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Self

from edgestill.core.digest import Digest
from edgestill.core.errors import BundleAlteredError, BundleError, BundleTruncatedError, PathError
from edgestill.core.manifest import MAX_BLOBS, MAX_MANIFEST_BYTES, BlobRef, Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgestill.core.jsonio import JsonObject

MANIFEST: Final = "bundle.json"
BLOBS: Final = "blobs"

_BLOCK: Final = tarfile.BLOCKSIZE
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
                "cannot read a bundle", where=path, got=error.strerror or error, fix="check the path"
            ) from error
        return cls(manifest, path, spans)

    def read(self, name: str) -> bytes:
        """The bytes of one blob, checked.

        Raises:
            BundleError: no blob of that name.
            BundleTruncatedError, BundleAlteredError: the bytes are not what the manifest says.
        """
        ref = self.manifest.blobs.get(name)
        if ref is None:
            raise BundleError(
                "no such blob", where=self.path, expected=f"one of {list(self.manifest.blobs)}", got=name
            )
        file, offset = self._spans[name]
        with file.open("rb") as source:
            source.seek(offset)
            data = source.read(ref.size)
        if len(data) < ref.size:
            raise BundleTruncatedError(
                f"{name} ends too early",
                where=self.path,
                expected=f"{ref.size} bytes",
                got=len(data),
                fix=_REFETCH,
            )
        if Digest.of(data) != ref.digest:
            raise BundleAlteredError(
                f"{name} was altered", where=self.path, expected=ref.digest, got=Digest.of(data), fix=_REFETCH
            )
        return data

    def verify(self) -> None:
        """Reads every blob once and checks it.

        Raises:
            BundleTruncatedError, BundleAlteredError: as `read`.
        """
        for name in self.manifest.blobs:
            self.read(name)


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
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, data in _files(manifest, blobs):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def write_archive(path: Path, manifest: Manifest, blobs: Mapping[str, bytes]) -> None:
    """Writes `NAME.esb` whole or not at all.

    Raises:
        PathError: the folder cannot be written.
    """
    replace(path, archive_bytes(manifest, blobs))


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
        replace(path / name, data)
    replace(path / MANIFEST, head)


def replace(path: Path, data: bytes) -> None:
    """Writes a file so that its name holds the old bytes or the new ones, never a part, whenever power fails.

    Raises:
        PathError: it cannot be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


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
        expected="a writable folder with room",
        got=error.strerror,
        fix="choose another path",
    )


def _files(manifest: Manifest, blobs: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Path -> bytes in the archive's order; a blob that two names share is there once."""
    yield MANIFEST, manifest.to_bytes()
    written = set()
    for name, ref in manifest.blobs.items():
        if ref.digest not in written:
            written.add(ref.digest)
            yield f"{BLOBS}/{ref.digest.hex}", blobs[name]


def _open_folder(path: Path) -> tuple[Manifest, dict[str, tuple[Path, int]]]:
    head = path / MANIFEST
    if not head.is_file():
        raise BundleError("not a bundle", where=path, expected=f"a folder with {MANIFEST}", fix=_REFETCH)
    with head.open("rb") as file:
        manifest = Manifest.from_bytes(file.read(MAX_MANIFEST_BYTES + 1))
    spans = {name: (path / BLOBS / ref.digest.hex, 0) for name, ref in manifest.blobs.items()}
    for name, (file_path, _) in spans.items():
        if not file_path.is_file():
            raise BundleTruncatedError(f"{name} is missing", where=file_path, fix=_REFETCH)
    return manifest, spans


def _open_archive(path: Path) -> tuple[Manifest, dict[str, tuple[Path, int]]]:
    with path.open("rb") as file:
        entries = _scan(file, path)
        if MANIFEST not in entries:
            raise BundleError(
                "not a bundle", where=path, expected=f"{MANIFEST} as its first file", fix=_REFETCH
            )
        offset, size = entries[MANIFEST]
        if size > MAX_MANIFEST_BYTES:
            raise BundleError(
                "the manifest is too long", where=path, expected=f"{MAX_MANIFEST_BYTES} bytes", got=size
            )
        file.seek(offset)
        manifest = Manifest.from_bytes(file.read(size))
    spans = {}
    for name, ref in manifest.blobs.items():
        entry = entries.get(f"{BLOBS}/{ref.digest.hex}")
        if entry is None:
            raise BundleTruncatedError(f"{name} is missing", where=path, fix=_REFETCH)
        if entry[1] != ref.size:
            raise BundleAlteredError(
                f"{name} has another size", where=path, expected=ref.size, got=entry[1], fix=_REFETCH
            )
        spans[name] = (path, entry[0])
    if len(entries) != 1 + len({ref.digest for ref in manifest.blobs.values()}):
        raise BundleError("files that the manifest does not name", where=path, fix=_REFETCH)
    return manifest, spans


def _scan(file: BinaryIO, path: Path) -> dict[str, tuple[int, int]]:
    """Member name -> (offset, size), read from headers only."""
    total = os.fstat(file.fileno()).st_size
    entries: dict[str, tuple[int, int]] = {}
    offset = 0
    while True:
        file.seek(offset)
        header = file.read(_BLOCK)
        if len(header) < _BLOCK:
            raise BundleTruncatedError(
                "the archive ends too early", where=path, got=f"{total} bytes", fix=_REFETCH
            )
        if not any(header):
            return entries
        entry = _member(header, path)
        end = offset + _BLOCK + entry.size
        if end > total:
            raise BundleTruncatedError(
                f"{entry.name} ends too early", where=path, expected=f"{end} bytes", got=total, fix=_REFETCH
            )
        if len(entries) > MAX_BLOBS or entry.name in entries:
            raise BundleError("too many or repeated files", where=path, got=entry.name, fix=_REFETCH)
        entries[entry.name] = (offset + _BLOCK, entry.size)
        offset = offset + _BLOCK + -(-entry.size // _BLOCK) * _BLOCK


def _member(header: bytes, path: Path) -> tarfile.TarInfo:
    try:
        entry = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise BundleError(
            "not a bundle", where=path, expected="a ustar archive", got=error, fix=_REFETCH
        ) from error
    if entry.type != tarfile.REGTYPE or entry.size < 0:
        raise BundleError("not a regular file", where=path, got=entry.name[:80], fix=_REFETCH)
    return entry
