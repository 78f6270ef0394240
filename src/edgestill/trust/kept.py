"""Accepted metadata on disk, and the floor under the clock.

- A file is replaced whole or not at all, and is durable before the next one is touched.
- What is missing, damaged or too long is as good as not there: it is fetched again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from edgestill.core.bundle import replace
from edgestill.core.errors import MessageError, PathError
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.trust.metadata import MAX_BYTES, file_of

if TYPE_CHECKING:
    from pathlib import Path

_FLOOR: Final = "clock.json"
_MAX_FLOOR_BYTES: Final = 1000


@final
class KeptMetadata:
    """The files of one device.

    Args:
        path: a folder of our own; `prepare` makes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def prepare(self) -> None:
        """Makes the folder, and removes what a kill left half-written.

        Raises:
            PathError: not a folder, or not writable.
        """
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            for leftover in self._path.glob(".*.json.*"):
                leftover.unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(self._path, error) from error

    def read(self, role: str, version: int | None = None) -> bytes | None:
        """The bytes kept for a role, or None. Only roots are kept by version.

        Raises:
            PathError: there, but not readable.
        """
        return self._read(file_of(role, version), MAX_BYTES[role])

    def write(self, role: str, data: bytes, version: int | None = None) -> None:
        """Keeps bytes that were accepted.

        Raises:
            PathError: the folder cannot be written.
        """
        replace(self._path / file_of(role, version), data)

    def floor(self) -> float:
        """Seconds since 1970 before which it cannot be; 0 where nothing is known."""
        data = self._read(_FLOOR, _MAX_FLOOR_BYTES)
        try:
            return Fields(parse_object(data or b"{}", where=_FLOOR), _FLOOR).number(
                "floor", least=0, most=1e11
            )
        except MessageError:
            return 0.0

    def write_floor(self, seconds: float) -> None:
        """Keeps the floor.

        Raises:
            PathError: the folder cannot be written.
        """
        replace(self._path / _FLOOR, canonical({"floor": seconds}))

    def _read(self, file: str, at_most: int) -> bytes | None:
        try:
            with (self._path / file).open("rb") as opened:
                data = opened.read(at_most + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unusable(self._path / file, error) from error
        return data if len(data) <= at_most else None


def _unusable(path: Path, error: OSError) -> PathError:
    return PathError(
        "cannot keep metadata here",
        where=path,
        expected="a folder of ours",
        got=error.strerror,
        fix="check its owner, and the room on the disk",
    )
