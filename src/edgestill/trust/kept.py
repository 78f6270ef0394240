"""Accepted metadata on disk, and the floor under the clock.

- A device keeps every root, so that the chain is checked again from its anchor; other clients of TUF keep the newest.
- A file is replaced whole or not at all, and is durable before the next one is touched.
- What is missing, damaged or too long is as good as not there: it is fetched again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, final

from tuf.api.metadata import TOP_LEVEL_ROLE_NAMES, Root  # type: ignore[attr-defined]  # re-exported there without saying so

from edgestill.core.bundle import replace
from edgestill.core.errors import MessageError, PathError
from edgestill.core.files import read_plain
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.trust.metadata import bound_of, file_of

if TYPE_CHECKING:
    from pathlib import Path

_FLOOR: Final = "clock.json"
_MAX_FLOOR_BYTES: Final = 1000


class Kept(Protocol):
    """Where a client keeps what it has accepted."""

    def prepare(self) -> None:
        """Makes the place, and removes what a kill left half-written."""
        ...

    def read(self, role: str, version: int | None = None) -> bytes | None:
        """The bytes kept for a role, or None; a version is given of roots only."""
        ...

    def write(self, role: str, data: bytes, version: int | None = None) -> None:
        """Keeps bytes that were accepted."""
        ...

    def floor(self) -> float:
        """Seconds since 1970 before which it cannot be; 0 where nothing is known."""
        ...

    def write_floor(self, seconds: float) -> None:
        """Keeps the floor."""
        ...


@final
class KeptMetadata:
    """The files of one device: `3.root.json`, `targets.json`, `role.NAME.json` of a delegated role, `clock.json`.

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
        return _read(self._path / _file(role, version), bound_of(role))

    def write(self, role: str, data: bytes, version: int | None = None) -> None:
        """Keeps bytes that were accepted.

        Raises:
            PathError: the folder cannot be written.
        """
        replace(self._path / _file(role, version), data)

    def floor(self) -> float:
        """Seconds since 1970 before which it cannot be; 0 where nothing is known."""
        data = _read(self._path / _FLOOR, _MAX_FLOOR_BYTES)
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


@final
class KeptNewest:
    """The newest of each role under its bare name, as other clients of TUF keep it: `root.json` replaces the one before.

    The root that is there is the anchor of the next start. There is no floor under the clock.

    Args:
        path: a folder of our own.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def root(self) -> bytes:
        """The anchor.

        Raises:
            PathError: there is none that can be read, or it is too long.
        """
        return read_plain(
            self._path / file_of(Root.type, None), what="the trusted root", at_most=bound_of(Root.type)
        )

    def prepare(self) -> None:
        """Makes the folder, and removes what a kill left half-written.

        Raises:
            PathError: not a folder, or not writable.
        """
        KeptMetadata(self._path).prepare()

    def read(self, role: str, version: int | None = None) -> bytes | None:
        """The bytes kept for a role, or None; no root but the anchor is kept.

        Raises:
            PathError: there, but not readable.
        """
        return None if version is not None else _read(self._path / file_of(role, None), bound_of(role))

    def write(self, role: str, data: bytes, version: int | None = None) -> None:  # noqa: ARG002  # of a root: the newest is kept
        """Keeps bytes that were accepted.

        Raises:
            PathError: the folder cannot be written.
        """
        replace(self._path / file_of(role, None), data)

    def floor(self) -> float:
        """None."""
        return 0.0

    def write_floor(self, seconds: float) -> None:
        """There is none."""


def _file(role: str, version: int | None) -> str:
    """Apart from each other: a delegated role may be called `clock`, or `7.root`."""
    file = file_of(role, version)
    return file if role in TOP_LEVEL_ROLE_NAMES else f"role.{file}"


def _read(path: Path, at_most: int) -> bytes | None:
    try:
        with path.open("rb") as opened:
            data = opened.read(at_most + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error) from error
    return data if len(data) <= at_most else None


def _unusable(path: Path, error: OSError) -> PathError:
    return PathError(
        "cannot keep metadata here",
        where=path,
        expected="a folder of ours",
        got=error.strerror,
        fix="check its owner, and the room on the disk",
    )
