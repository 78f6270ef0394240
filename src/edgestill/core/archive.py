"""Archives whose first file says what every other byte must be: bundles, families of models that are timed, and sets of samples that are voted on.

- Written: files in the order given, as a POSIX ustar (`core.ustar`), so that packing twice gives the same bytes.
- Read: only the first file's size is parsed, and bounded. What it says must follow is made anew and compared: links,
  foreign names, paths that lead elsewhere, second copies, odd sizes and trailing bytes have no way in.
- Nothing is ever unpacked: whoever reads asks for a span of the file.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, BinaryIO, Final

from edgestill.core import ustar
from edgestill.core.digest import Digest
from edgestill.core.errors import BundleAlteredError, BundleError, BundleTruncatedError, PathError
from edgestill.core.files import open_plain

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from edgestill.core.manifest import BlobRef

_REFETCH: Final = "fetch or build it again"


def packed(files: Iterable[tuple[str, bytes]]) -> bytes:
    """The archive of these files (name, bytes), in this order."""
    pieces = []
    for name, data in files:
        pieces += [ustar.header(name, len(data)), data, ustar.padding(len(data))]
    written = sum(map(len, pieces))
    return b"".join([*pieces, bytes(ustar.total(written) - written)])


def head(file: BinaryIO, path: Path, *, name: str, at_most: int, what: str) -> bytes:
    """The bytes of the first file.

    Args:
        file: at its beginning.
        path: of it, for errors.
        name: that the first file has.
        at_most: bytes of it.
        what: the archive should be, such as `a bundle`.

    Raises:
        BundleError: another first file, or a longer one. BundleTruncatedError: it ends too early.
    """
    block = file.read(ustar.BLOCK)
    first = ustar.header(name, 0)[: ustar.SIZE_FIELD.start]
    if block[: len(first)] != first[: len(block)]:
        raise BundleError(
            f"not {what}",
            where=path,
            expected=f"an archive with {name} as its first file",
            got=f"a file that begins with {block[:16]!r}",
            fix=_REFETCH,
        )
    if len(block) < ustar.BLOCK:
        raise _too_short(path, ustar.BLOCK, len(block))
    size = re.fullmatch(rb"([0-7]{11})\0", block[ustar.SIZE_FIELD])
    if size is None or int(size[1], 8) > at_most:
        raise BundleError(
            "the manifest is too long",
            where=path,
            expected=f"at most {at_most} bytes",
            got=block[ustar.SIZE_FIELD],
            fix=_REFETCH,
        )
    data = file.read(int(size[1], 8))
    if len(data) < int(size[1], 8):
        raise _too_short(path, ustar.BLOCK + int(size[1], 8), ustar.BLOCK + len(data))
    return data


def offsets(file: BinaryIO, path: Path, members: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Where each file (name, size) begins, once everything between them was compared.

    Raises:
        BundleError: the archive is not made of these. BundleTruncatedError: it ends too early.
    """
    found: dict[str, int] = {}
    end = 0
    for name, size in members:
        _compare(file, end, ustar.header(name, size), path)
        found[name] = end + ustar.BLOCK
        end += ustar.BLOCK + size
        _compare(file, end, ustar.padding(size), path)
        end += len(ustar.padding(size))
    _compare(file, end, bytes(ustar.total(end) - end), path)
    actual = os.fstat(file.fileno()).st_size
    if actual > ustar.total(end):
        raise BundleError(
            "bytes after the archive's end",
            where=path,
            expected=f"{ustar.total(end)} bytes",
            got=actual,
            fix=_REFETCH,
        )
    return found


def span(path: Path, offset: int, known: BlobRef, *, name: str) -> bytes:
    """The bytes of one file, checked.

    Args:
        path: of the archive.
        offset: as `offsets` has found it.
        known: what the first file says.
        name: of the file, for errors.

    Raises:
        BundleAlteredError: the bytes are others. PathError: the archive is gone.
    """
    try:
        with open_plain(path) as file:
            file.seek(offset)
            data = file.read(known.size)
    except OSError as error:
        raise PathError(
            f"cannot read {name}",
            where=path,
            expected="a file that can be read",
            got=error.strerror or error,
            fix="check the path",
        ) from error
    if Digest.of(data) != known.digest:
        raise BundleAlteredError(
            f"{name} was altered",
            where=path,
            expected=known.digest,
            got=Digest.of(data),
            fix="fetch or make it again",
        )
    return data


def _compare(file: BinaryIO, offset: int, wanted: bytes, path: Path) -> None:
    """Refuses an archive that does not hold at `offset` what its manifest asks for there."""
    file.seek(offset)
    got = file.read(len(wanted))
    if wanted.startswith(got) and len(got) < len(wanted):
        raise _too_short(path, offset + len(wanted), os.fstat(file.fileno()).st_size)
    if got != wanted:
        raise BundleError(
            "the archive is not the one its manifest describes",
            where=f"{path}, bytes {offset} to {offset + len(wanted)}",
            expected="the header of the manifest's next blob" if any(wanted) else "zeros",
            got="other bytes",
            fix=_REFETCH,
        )


def _too_short(path: Path, least: int, size: int) -> BundleTruncatedError:
    return BundleTruncatedError(
        "the archive ends too early",
        where=path,
        expected=f"{least} bytes or more",
        got=f"{size} bytes",
        fix=_REFETCH,
    )
