"""Arrays in files that people hand in: npy and npz, numbers and texts only.

- Nothing is unpickled: a pickle can run anything.
- numpy reads a header as a piece of Python, so that a damaged one makes it raise nearly anything. Whatever it raises is
  one coded error here, which names the file, the array, and what would have been right.
- Numbers come in this machine's byte order, whatever the file's.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, BinaryIO, Final

from numpy.lib import format as npy

from edgestill.core.errors import DataError, PathError
from edgestill.core.files import open_plain

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

_ONE: Final = (
    "not an npy file of plain numbers",
    "one array, as numpy.save writes it",
    "write it again with numpy.save(FILE, array)",
)
_SEVERAL: Final = (
    "not an npz file of plain arrays",
    "named arrays, as numpy.savez writes them",
    "write it again with numpy.savez(FILE, NAME=array, ...)",
)

_Told = tuple[str, str, str]  # what is wrong, what would be right, what to do


def read_npy(path: Path, *, what: str) -> NDArray[np.generic]:
    """The array of an npy file.

    Args:
        path: of the file.
        what: it is, for errors, such as `the input`.

    Raises:
        PathError: it cannot be read. DataError: it is no such file, is damaged, or holds Python objects.
    """
    with _opened(path, what, _ONE) as source:
        if source.read(2) == b"PK":
            raise DataError(
                "named arrays, not one array", where=path, expected=_ONE[1], got="an npz file", fix=_ONE[2]
            )
        source.seek(0)
        return _read(source)


def npy_of(data: bytes, *, what: str, where: str) -> NDArray[np.generic]:
    """The array of an npy file whose bytes are here already; of at least one dimension and one row.

    Raises:
        DataError: it is no such file, is damaged, holds Python objects, or is empty.
    """
    try:
        found = _read(io.BytesIO(data))
    except Exception as error:
        raise _damaged(where, error, _ONE) from error
    if not found.shape or not len(found):
        raise DataError(
            f"{what} are none",
            where=where,
            expected="`[N, ...]`, N at least 1",
            got=found.shape,
            fix="write at least one of them",
        )
    return found


def read_npz(
    path: Path, *, what: str, names: Collection[str] | None = None
) -> dict[str, NDArray[np.generic]]:
    """The arrays of an npz file by name.

    Args:
        path: of the file.
        what: they are, for errors, such as `the data`.
        names: of those that are wanted; by default all are read.

    Raises:
        PathError: it cannot be read. DataError: it is no such file, is damaged, or an array holds Python objects.
    """
    with _opened(path, what, _SEVERAL) as source, zipfile.ZipFile(source) as archive:
        members = [(entry.filename.removesuffix(".npy"), entry) for entry in archive.infolist()]
        return {
            name: _member(archive, entry, f"{path}: {name}")
            for name, entry in members
            if names is None or name in names
        }


def native(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """The same numbers in this machine's byte order; the same array where it has it already."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> NDArray[np.generic]:
    try:
        with archive.open(entry) as source:
            return _read(source)
    except Exception as error:
        raise _damaged(where, error, _SEVERAL) from error


def _read(source: IO[bytes]) -> NDArray[np.generic]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that numpy repairs by itself
        found: NDArray[np.generic] = npy.read_array(source, allow_pickle=False)
    return native(found)


@contextmanager
def _opened(path: Path, what: str, told: _Told) -> Iterator[BinaryIO]:
    try:
        with open_plain(path) as source:
            yield source
    except DataError:
        raise
    except OSError as error:
        raise PathError(
            f"cannot read {what}",
            where=path,
            expected="a file that can be read",
            got=error.strerror or error,
            fix="check the path",
        ) from error
    except Exception as error:
        raise _damaged(path, error, told) from error


def _damaged(where: object, error: Exception, told: _Told) -> DataError:
    text = str(error) or type(error).__name__
    if "allow_pickle" in text:  # advice that must not be followed
        text = "Python objects, which are not loaded: they could run code"
    return DataError(told[0], where=where, expected=told[1], got=text, fix=told[2])
