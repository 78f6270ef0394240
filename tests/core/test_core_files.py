"""Plain files: whatever else a path leads to is refused at once, and nobody reads further than is sensible."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from edgestill.core.bundle import replace
from edgestill.core.errors import PathError
from edgestill.core.files import read_plain


def test_a_plain_file_is_read(tmp_path: Path) -> None:
    """Through a link, too."""
    (tmp_path / "file").write_bytes(b"123")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_plain(tmp_path / "file", what="a file", at_most=3) == b"123"
    assert read_plain(tmp_path / "link", what="a file", at_most=3) == b"123"


def test_a_file_that_is_too_long_is_not_read_to_its_end(tmp_path: Path) -> None:
    """The error says how long it may be."""
    (tmp_path / "file").write_bytes(b"1234")
    with pytest.raises(
        PathError, match=r"the patch is too long; at .*file; expected at most 3 bytes; got more"
    ):
        read_plain(tmp_path / "file", what="the patch", at_most=3)


def test_attack_a_path_to_something_endless_is_refused_at_once(tmp_path: Path) -> None:
    """A device never ends, a pipe without a writer never begins, and a folder or a socket is no file."""
    os.mkfifo(tmp_path / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.close()
    for path, got in (
        (Path("/dev/zero"), "a device or a pipe"),
        (tmp_path / "pipe", "a device or a pipe"),
        (tmp_path, "a folder"),
        (tmp_path / "socket", "No such device or address"),
        (tmp_path / "nothing", "No such file"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(PathError, match=f"cannot read the patch; .*; got {got}.*; check the path"):
            read_plain(path, what="the patch", at_most=3)


def test_attack_nothing_takes_the_place_of_a_device_or_a_pipe(tmp_path: Path) -> None:
    """Whoever writes a result into `/dev/null`, as root, still has one afterwards; a link is replaced, not followed."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        PathError, match=r"cannot write; at .*pipe; expected a new or a plain file.*; got a device or a pipe"
    ):
        replace(tmp_path / "pipe", b"result")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    replace(tmp_path / "link", b"result")
    assert (tmp_path / "link").read_bytes() == b"result"
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link", "pipe"]
