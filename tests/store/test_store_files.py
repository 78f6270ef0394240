"""Blobs in files survive damage, leftovers, full disks and being killed anywhere."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import StoreError
from edgestill.store.files import INCOMING, FileBlobs

DATA = b"some bytes"
HEX = Digest.of(DATA).hex


def _file(folder: Path) -> Path:
    return folder / HEX[:2] / HEX[2:4] / HEX


def test_a_blob_lies_under_its_digest(tmp_path: Path) -> None:
    """In two levels of folders, so that no folder grows without bound."""
    store = FileBlobs.open(tmp_path)
    digest = store.put(DATA)
    assert _file(tmp_path).read_bytes() == DATA
    assert store.path(digest) == _file(tmp_path)
    assert list((tmp_path / INCOMING).iterdir()) == []


def test_the_path_of_a_missing_blob_is_an_error(tmp_path: Path) -> None:
    """A server must not open what is not there."""
    with pytest.raises(StoreError, match=f"no such blob; at {tmp_path}; expected .*; got sha256:{HEX}"):
        FileBlobs.open(tmp_path).path(Digest(HEX))


@pytest.mark.parametrize("damage", [b"some bytez", b"some", b"", b"some bytes and more"])
def test_damage_is_found_and_mended(tmp_path: Path, damage: bytes) -> None:
    """Altered, cut or lengthened: never returned, and the next put writes the blob again."""
    store = FileBlobs.open(tmp_path)
    digest = store.put(DATA)
    _file(tmp_path).write_bytes(damage)
    with pytest.raises(StoreError, match=rf"a damaged blob; at .*; expected {digest}; got sha256"):
        store.get(digest)
    store.put(DATA)
    assert store.get(digest) == DATA


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    """Neither listed nor removed."""
    store = FileBlobs.open(tmp_path)
    digest = store.put(DATA)
    strangers = [tmp_path / "README", _file(tmp_path).with_name("note"), _file(tmp_path).with_name("0" * 64)]
    (tmp_path / "zz").mkdir()
    for stranger in strangers:
        stranger.write_bytes(b"mine")
    assert list(FileBlobs.open(tmp_path).list()) == [digest]
    assert all(stranger.exists() for stranger in strangers)


def test_opening_clears_what_dead_writers_left_and_nothing_else(tmp_path: Path) -> None:
    """Writers that live hold a lock: nothing is thrown away while there is one."""
    FileBlobs.open(tmp_path)
    unfinished = tmp_path / INCOMING / "unfinished"
    unfinished.write_bytes(b"half")
    handle = os.open(tmp_path / INCOMING, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    FileBlobs.open(tmp_path).put(DATA)
    assert unfinished.exists()
    os.close(handle)
    FileBlobs.open(tmp_path)
    assert not unfinished.exists()


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blob is not there, and neither is a part of it."""
    store = FileBlobs.open(tmp_path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        StoreError, match=r"cannot keep a blob; at .*; got No space left on device; check the disk"
    ):
        store.put(DATA)
    assert not store.has(Digest(HEX))
    assert list((tmp_path / INCOMING).iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """Such as one below a file."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        StoreError, match=r"cannot open a blob store; at .*file/blobs; expected .*; got Not a directory"
    ):
        FileBlobs.open(tmp_path / "file" / "blobs")


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    """A folder in a blob's place is an error of each call, never a wrong answer."""
    store = FileBlobs.open(tmp_path)
    _file(tmp_path).mkdir(parents=True)
    with pytest.raises(StoreError, match=r"cannot read a blob; at .*; got Is a directory"):
        store.get(Digest(HEX))
    with pytest.raises(StoreError, match="cannot forget a blob"):
        store.delete(Digest(HEX))
    with pytest.raises(StoreError, match="cannot keep a blob"):
        store.put(DATA)
    assert not store.has(Digest(HEX))


def test_put_syncs_the_bytes_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power may fail after any step: a name never stands for bytes that are not on the disk."""
    store, log = FileBlobs.open(tmp_path), []
    fsync, replace = os.fsync, Path.replace

    def told_fsync(handle: int) -> None:
        log.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")  # noqa: PTH112  # a handle
        fsync(handle)

    def told_replace(self: Path, target: Path) -> Path:
        log.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", told_fsync)
    monkeypatch.setattr(Path, "replace", told_replace)
    store.put(DATA)
    assert log == ["file", "folder", "folder", "rename", "folder"]
    log.clear()
    store.put(DATA)
    assert log == ["folder"]


@given(pieces=st.lists(st.binary(max_size=40), max_size=8))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_blob_in_pieces_is_the_blob(tmp_path: Path, pieces: list[bytes]) -> None:
    """However it is cut: the same name, the same bytes, and nothing left beside it."""
    store = FileBlobs.open(tmp_path)
    with store.incoming() as coming:
        for piece in pieces:
            coming.write(piece)
        coming.sync()
        assert coming.path.read_bytes() == b"".join(pieces)
        digest = coming.keep()
    assert digest == Digest.of(b"".join(pieces))
    assert store.get(digest) == b"".join(pieces)
    assert list((tmp_path / INCOMING).iterdir()) == []


def test_a_blob_that_was_not_kept_is_gone(tmp_path: Path) -> None:
    """Given up, or broken off by an error: neither a name nor a file is left."""
    store = FileBlobs.open(tmp_path)
    with store.incoming() as coming:
        coming.write(DATA)
    with pytest.raises(TypeError), store.incoming() as coming:
        coming.write("no bytes")  # type: ignore[arg-type]  # as a bug would
    assert list(store.list()) == []
    assert list((tmp_path / INCOMING).iterdir()) == []


def test_a_blob_in_pieces_mends_a_damaged_one(tmp_path: Path) -> None:
    """It takes the place of whatever stands under its name."""
    store = FileBlobs.open(tmp_path)
    store.put(DATA)
    _file(tmp_path).write_bytes(b"rotten")
    with store.incoming() as coming:
        coming.write(DATA)
        coming.keep()
    assert store.get(Digest(HEX)) == DATA


def test_opening_a_store_leaves_a_blob_that_is_coming_alone(tmp_path: Path) -> None:
    """Its writer lives; a second process looks into the folder meanwhile."""
    store = FileBlobs.open(tmp_path)
    with store.incoming() as coming:
        coming.write(DATA)
        FileBlobs.open(tmp_path)
        assert coming.path.exists()
        coming.keep()
    assert store.get(Digest(HEX)) == DATA


def written(store: FileBlobs, data: bytes) -> Digest:
    """Keeps a blob in one piece."""
    with store.incoming() as coming:
        coming.write(data)
        return coming.keep()


@pytest.mark.parametrize("step", ["begin", "write", "keep"])
def test_a_disk_that_refuses_a_blob_in_pieces_is_told(tmp_path: Path, step: str) -> None:
    """Really, by a limit on the size of files and by a folder that is gone: a StoreError, and no part left."""
    store = FileBlobs.open(tmp_path)
    if step == "begin":
        (tmp_path / INCOMING).rmdir()
        with pytest.raises(StoreError, match="cannot keep a blob"), store.incoming():
            pass
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = 1_000_000 if step == "write" else 2_000  # the second waits in a buffer until it is synced
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
        with pytest.raises(StoreError, match=r"cannot keep a blob; at .*; got File too large"):
            written(store, b"x" * size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list((tmp_path / INCOMING).iterdir()) == []
    assert list(store.list()) == []


KILL_ANYWHERE = """
import os, sys
from pathlib import Path
from edgestill.core import bundle
from edgestill.core.digest import Digest
from edgestill.store import files

root, data = Path(sys.argv[1]), b"x" * 100_000
ours = {files.__file__, bundle.__file__}

def dies_at(step, work):
    # whether the child was killed before `work` was done
    child = os.fork()
    if child == 0:
        left = step
        def trace(frame, event, _):
            nonlocal left
            if frame.f_code.co_filename not in ours:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os._exit(9)
            return trace
        sys.settrace(trace)
        work()
        sys.settrace(None)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

def put():
    files.FileBlobs.open(folder).put(data)

step, absent, present = 0, 0, 0
while True:
    step += 1
    folder = root / str(step)
    killed = dies_at(step, put)
    store = files.FileBlobs.open(folder)
    there = list(store.list())
    assert not list((folder / files.INCOMING).iterdir())
    assert there in ([], [Digest.of(data)]), there
    if there:
        assert store.get(there[0]) == data
        present += 1
    else:
        absent += 1
    assert store.get(store.put(data)) == data
    if not killed:
        break
print(absent, present)
"""


def test_kill_anywhere_leaves_the_whole_blob_or_none(tmp_path: Path) -> None:
    """A writer killed at any line: the store opens, holds nothing or all of it, and takes the blob again."""
    told = subprocess.run(
        [sys.executable, "-c", KILL_ANYWHERE, str(tmp_path)], check=True, capture_output=True, text=True
    )
    absent, present = map(int, told.stdout.split())
    assert absent > 20
    assert present > 5
