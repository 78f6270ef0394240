"""A folder in place of a hub: what a stick or a share holds, under the paths that the hub serves it by.

    metadata/1.root.json, metadata/timestamp.json, ...    as the hub serves them
    targets/NAME/VERSION/SHA256.CLASS.esb                 likewise
    assignments/DEVICE.json                               what a poll of that device would have been answered

- A `Transport` like every other: what it brings is believed as little. Bounds, lengths and digests are checked where they are for a hub.
- The folder may be anybody's. Only plain files are read, and each part of a path must be a plain folder: links, devices and pipes are
  refused wherever they stand, so that nothing outside the folder is read and nothing waits for ever.
- A file that goes away while it is read is a connection that broke: what has arrived is kept, and continued from the next stick or the hub.
- Nothing is written, and nothing can be said to it.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, BinaryIO, Final, final

from edgestill.core.errors import RefusedError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from edgestill.core.protocols import Request, Response

ASSIGNMENTS: Final = "assignments"

_CHUNK: Final = 1_048_576
_PART: Final = r"(?!\.)(?:[A-Za-z0-9_.-]|%2F){1,255}"
"""Names of TUF roles are quoted, on the stick as well: `3.auto%2Fwatch.json`."""
_PATH: Final = re.compile(rf"(?:metadata|targets|patches)(?:/{_PART}){{1,6}}", re.ASCII)
_DEVICE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_RANGE: Final = re.compile(r"bytes=([0-9]{1,18})-", re.ASCII)
_POLL: Final = "v1/poll"
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@final
class FolderTransport:
    """Answers a device's requests from a folder.

    Args:
        folder: of a stick or a share.
        hub_url: the address that requests are made to, without a trailing path.
        device: whose assignment a poll is answered with.
    """

    def __init__(self, folder: Path, *, hub_url: str, device: str) -> None:
        self._folder = folder
        self._base = f"{hub_url}/"
        self._device = device

    def send(self, request: Request, *, timeout: float) -> Response:  # noqa: ARG002  # a folder has no line that could be slow
        """Opens the file that is asked for; see `core.protocols.Transport`.

        Raises:
            UnreachableError: the folder is not there (any more), or cannot be read; or something is said to it.
            RefusedError: a link, a device, a pipe or a folder stands in the place of a file.
        """
        path = self._path(request)
        if path is None:
            return _Answer(HTTPStatus.NOT_FOUND)
        where = f"{self._folder}/{path}"
        try:
            handle = _opened(self._folder, path, where)
        except FileNotFoundError:
            if self._folder.is_dir():
                return _Answer(HTTPStatus.NOT_FOUND)
            raise _gone(where, "nothing") from None
        except OSError as error:
            raise _gone(where, error.strerror or error) from error
        return _answered(os.fdopen(handle, "rb"), request.headers.get("range", ""), where)

    def _path(self, request: Request) -> str | None:
        """What is asked for, within the folder; None for what a folder never has."""
        if request.method != "GET" or not request.url.startswith(self._base):
            raise _gone(request.url, "a folder")
        path = request.url.removeprefix(self._base).partition("?")[0]
        if path == _POLL and _DEVICE.fullmatch(self._device) is not None:
            return f"{ASSIGNMENTS}/{self._device}.json"
        return path if _PATH.fullmatch(path) is not None else None


@final
@dataclass(slots=True)
class _Answer:
    """A head, and a file to be read."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    file: BinaryIO | None = None
    left: int = 0
    where: str = ""

    def chunks(self) -> Iterator[bytes]:
        """The file in pieces of a megabyte, no more of it than the head says."""
        while self.file is not None and self.left > 0:
            try:
                piece = self.file.read(min(_CHUNK, self.left))
            except OSError as error:
                raise _gone(self.where, error.strerror or error) from error
            if not piece:
                raise _gone(self.where, "a file that became shorter")
            self.left -= len(piece)
            yield piece

    def close(self) -> None:
        """Closes the file; safe to call twice."""
        if self.file is not None:
            self.file.close()
            self.file = None


def _opened(folder: Path, path: str, where: str) -> int:
    """A plain file below the folder, every part of whose path was looked at."""
    *parents, name = path.split("/")
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parents:
            _refuse_link(part, at, where)
            inner = os.open(part, _FOLDER, dir_fd=at)
            os.close(at)
            at = inner
        _refuse_link(name, at, where)
        handle = os.open(name, _FILE, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _refused(where, "no plain file")
    return handle


def _refuse_link(name: str, at: int, where: str) -> None:
    mode = os.stat(name, dir_fd=at, follow_symlinks=False).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise _refused(where, "a link" if stat.S_ISLNK(mode) else "a device or a pipe")


def _answered(file: BinaryIO, wanted: str, where: str) -> _Answer:
    size = os.fstat(file.fileno()).st_size
    found = _RANGE.fullmatch(wanted)
    if found is None:
        return _Answer(HTTPStatus.OK, {"content-length": str(size)}, file, size, where)
    start = int(found[1])
    if start >= size:
        file.close()
        return _Answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
    file.seek(start)
    headers = {"content-length": str(size - start), "content-range": f"bytes {start}-{size - 1}/{size}"}
    return _Answer(HTTPStatus.PARTIAL_CONTENT, headers, file, size - start, where)


def _gone(where: str, got: object) -> UnreachableError:
    return UnreachableError(
        "a folder in place of a hub does not answer",
        where=where,
        expected="a file that can be read",
        got=got,
        fix="is the stick still there? What has arrived is kept, and goes on with the next try",
    )


def _refused(where: str, got: str) -> RefusedError:
    return RefusedError(
        "no plain file, where one is expected",
        where=where,
        expected="a file, in plain folders",
        got=got,
        fix="do not trust this stick; make another: edgestill release export",
    )
