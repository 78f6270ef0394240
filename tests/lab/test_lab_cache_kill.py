"""A fill that is killed, out of room, or shared by many ends in the same cache, and computes nothing twice."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cache_worlds import SAMPLES, Counting, files_of, open_cache

from edgestill.core.errors import DataError, PathError

HERE = Path(__file__).parent

KILL_ANYWHERE = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from cache_worlds import Counting, array_source, files_of, open_cache
from edgestill.core import bundle
from edgestill.lab.teacher import head, records

root, source = Path(sys.argv[1]), array_source(4)
writers = {head.__file__, records.__file__, bundle.__file__}
names = {"write", "_create", "_make_folder", "sync_folder"}

def fill(folder, teacher=None):
    return open_cache(folder, source=source, shard=4, batch=4, teacher=teacher or Counting())

def dies_at(step, work):
    # whether the child was killed at a line that writes, before `work` was done
    child = os.fork()
    if child == 0:
        left = step
        def trace(frame, event, _):
            nonlocal left
            if frame.f_code.co_filename not in writers or frame.f_code.co_name not in names:
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

fill(root / "whole")
whole = files_of(root / "whole")
step, found = 0, set()
while True:
    step += 1
    folder = root / str(step)
    killed = dies_at(step, lambda: fill(folder))
    there = {name: data for name, data in files_of(folder).items() if not name.endswith(".part")}
    assert all(whole[name] == data for name, data in there.items()), there.keys()
    kept = sum(name.endswith(".rec") for name in there)
    teacher = Counting()
    cost = fill(folder, teacher).cost()
    assert cost.found == 4 * kept, (cost, kept)
    assert len(teacher.asked) == 4 + 8 - 4 * kept
    assert files_of(folder) == whole, files_of(folder).keys()
    found.add(kept)
    if not killed:
        break
print(step, *sorted(found))
"""


def test_killed_at_any_line_that_writes_a_cache_is_whole_or_goes_on(tmp_path: Path) -> None:
    """Every file is there whole or not at all; opened again only the missing shards are asked for, nothing is left over."""
    told = subprocess.run(
        [sys.executable, "-c", KILL_ANYWHERE, str(tmp_path), str(HERE)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    steps, *kept = map(int, told.stdout.split())
    assert steps > 40
    assert kept == [0, 1, 2]


FILL_SLOWLY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from cache_worlds import open_cache

def progress(done, total):
    print(done, flush=True)
    sys.stdin.readline()

open_cache(Path(sys.argv[1]), batch=8, progress=progress)
"""


def test_kill_9_loses_at_most_the_shard_at_work(tmp_path: Path) -> None:
    """A real SIGKILL while the sixth shard is at work: five are found, the rest is filled, as if never killed."""
    child = subprocess.Popen(
        [sys.executable, "-c", FILL_SLOWLY, str(tmp_path / "killed"), str(HERE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        for _ in range(5):
            child.stdout.readline()
            child.stdin.write("\n")
            child.stdin.flush()
        assert child.stdout.readline() == "46\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    cost = open_cache(tmp_path / "killed", batch=8).cost()
    assert (cost.found, cost.filled) == (38, 2 * SAMPLES - 38)
    open_cache(tmp_path / "whole", batch=8)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


FILL_TOGETHER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from cache_worlds import open_cache

ready, go = os.pipe(), os.pipe()
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        os.write(ready[1], b".")
        os.read(go[0], 1)
        open_cache(Path(sys.argv[1]))
        os._exit(0)
    children.append(child)
for _ in children:
    os.read(ready[0], 1)
os.write(go[1], b"...")
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
"""


def test_processes_that_know_nothing_of_each_other_do_no_harm(tmp_path: Path) -> None:
    """Three fill one folder at the same time: each succeeds, and the cache is the one that one process makes."""
    told = subprocess.run(
        [sys.executable, "-c", FILL_TOGETHER, str(tmp_path / "shared"), str(HERE)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    open_cache(tmp_path / "alone")
    assert files_of(tmp_path / "shared") == files_of(tmp_path / "alone")


def test_ranks_share_the_shards(tmp_path: Path) -> None:
    """Each is asked about its own shards only, all wait once, and together they are everything."""
    teachers, waits = [Counting() for _ in range(3)], []

    def rank(number: int) -> None:
        def barrier() -> None:
            waits.append(number)
            if number < 2:
                rank(number + 1)

        cost = open_cache(
            tmp_path / "shared", teacher=teachers[number], rank=number, world=3, barrier=barrier
        ).cost()
        costs[number] = cost.filled

    costs: dict[int, int] = {}
    rank(0)
    asked = [set(teacher.asked[8:]) for teacher in teachers]
    assert sorted(one for part in asked for one in part) == [
        (view, at) for view in (0, 1) for at in range(SAMPLES)
    ]
    assert all(len(part) == costs[number] > 0 for number, part in enumerate(asked))
    assert waits == [0, 1, 2]
    open_cache(tmp_path / "alone")
    assert files_of(tmp_path / "shared") == files_of(tmp_path / "alone")


def test_a_rank_that_died_is_noticed(tmp_path: Path) -> None:
    """After the barrier a shard is still missing: the text says which, and a later opening fills it."""
    with pytest.raises(
        DataError,
        match=r"a shard is missing; at .*shard-0001.rec; expected .*; got 4 missing; see what became",
    ):
        open_cache(tmp_path, rank=0, world=2)
    assert open_cache(tmp_path).cost().found == 8 * 4


def test_all_ranks_wait_also_where_nothing_is_missing(tmp_path: Path) -> None:
    """Else the others would wait for ever."""
    open_cache(tmp_path)
    waits: list[int] = []
    open_cache(tmp_path, rank=1, world=2, barrier=lambda: waits.append(1))
    assert waits == [1]


def test_too_little_room_is_told_before_the_teacher_is_asked(tmp_path: Path) -> None:
    """With the bytes that are needed and those that are free; enough room to the byte is enough."""
    size = open_cache(tmp_path / "whole").cost().size
    teacher = Counting()
    with pytest.raises(PathError) as caught:
        open_cache(tmp_path / "new", teacher=teacher, free=lambda _: size - 1)
    assert caught.value.what == "no room for the teacher's answers"
    assert re.match(rf"{size} bytes free \(\S+ k?B\)", str(caught.value.expected))
    assert str(caught.value.got).startswith(f"{size - 1} bytes")
    assert len(teacher.asked) == 8
    assert list(files_of(tmp_path / "new")) == ["cache.json"]
    open_cache(tmp_path / "new", free=lambda _: size)


def test_a_full_cache_needs_no_room(tmp_path: Path) -> None:
    """Nor does it ask how much there is; half a cache needs the other half."""
    size = open_cache(tmp_path).cost().size
    open_cache(tmp_path, free=lambda _: 0)
    path = tmp_path / "view-0000" / "shard-0001.rec"
    missing = path.stat().st_size
    path.unlink()
    assert missing < size / 7
    with pytest.raises(PathError, match=f"expected {missing} bytes free"):
        open_cache(tmp_path, free=lambda _: missing - 1)
    open_cache(tmp_path, free=lambda _: missing)


@pytest.mark.parametrize("call", range(1, 14))
def test_a_disk_that_fills_up_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """At whichever sync: a coded error that says how much is missing, no half file, and the fill goes on from there."""
    open_cache(tmp_path / "whole")
    fsync, left = os.fsync, call

    def full(handle: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(PathError, match=r"\[path-unusable\] .*got No space left on device") as caught:
            open_cache(tmp_path / "new")
    there = files_of(tmp_path / "new")
    assert all(files_of(tmp_path / "whole")[name] == data for name, data in there.items())
    if call > 2:
        assert re.match(r"\d+ bytes more", str(caught.value.expected))
        assert "what is kept already stays" in str(caught.value.fix)
    kept = sum(name.endswith(".rec") for name in there)
    cost = open_cache(tmp_path / "new").cost()
    assert cost.found == sum((8, 8, 8, 6, 8, 8, 8, 6)[:kept])
    assert files_of(tmp_path / "new") == files_of(tmp_path / "whole")


def test_the_bytes_that_are_missing_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the shard that could not be written and of all behind it."""
    sizes = {name: len(data) for name, data in files_of_whole(tmp_path).items() if name.endswith(".rec")}
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == "shard-0002.rec":
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(
        PathError, match=r"at .*view-0000/shard-0002.rec; .*got Disk quota exceeded"
    ) as caught:
        open_cache(tmp_path / "new")
    written = sizes["view-0000/shard-0000.rec"] + sizes["view-0000/shard-0001.rec"]
    assert str(caught.value.expected).startswith(f"{sum(sizes.values()) - written} bytes more")


def files_of_whole(folder: Path) -> dict[str, bytes]:
    """Of an undisturbed cache."""
    open_cache(folder / "whole")
    return files_of(folder / "whole")


def test_a_disk_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every failure is want of room."""

    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    open_cache(tmp_path, views=1)
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(PathError, match=r"cannot keep the teacher's answers; at .*got Input/output error"):
        open_cache(tmp_path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """Such as one below a file; the path is named."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        PathError, match=r"cannot use a folder for a cache; at .*file/cache; .*got Not a directory"
    ):
        open_cache(tmp_path / "file" / "cache")


def test_each_shard_is_synced_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power may fail after any step: a name never stands for bytes that are not on the disk."""
    log: list[str] = []
    fsync, replace, link = os.fsync, Path.replace, Path.hardlink_to

    def told_fsync(handle: int) -> None:
        log.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")  # noqa: PTH112  # a handle
        fsync(handle)

    def told_replace(self: Path, target: Path) -> Path:
        log.append("rename")
        return replace(self, target)

    def told_link(self: Path, target: Path) -> None:
        log.append("link")
        link(self, target)

    monkeypatch.setattr(os, "fsync", told_fsync)
    monkeypatch.setattr(Path, "replace", told_replace)
    monkeypatch.setattr(Path, "hardlink_to", told_link)
    open_cache(tmp_path, views=1, shard=15)
    assert log == ["file", "link", "folder", "folder", *["file", "rename", "folder"] * 2]


def test_a_disk_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is renamed there."""

    def refuses(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", refuses)
    open_cache(tmp_path)
    assert (tmp_path / "cache.json").is_file()
    assert open_cache(tmp_path).cost().filled == 0


def test_of_two_runs_that_begin_together_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack on a race: another teacher's head appears between the look and the writing."""
    link = Path.hardlink_to

    def raced(self: Path, target: Path) -> None:
        monkeypatch.setattr(Path, "hardlink_to", link)
        open_cache(tmp_path, teacher=Counting(hint="hidden"))
        link(self, target)

    monkeypatch.setattr(Path, "hardlink_to", raced)
    with pytest.raises(DataError, match="to something else: another teacher, another record"):
        open_cache(tmp_path)


def test_what_a_dead_writer_left_is_thrown_away_and_a_living_ones_is_not(tmp_path: Path) -> None:
    """Writers hold a lock; foreign files are never touched."""
    open_cache(tmp_path)
    left = [tmp_path / ".cache.json.1.part", tmp_path / "view-0001" / ".shard-0000.rec.2.part"]
    foreign = [tmp_path / "notes.part", tmp_path / "view-0001" / ".hidden", tmp_path / "other" / ".x.part"]
    foreign[2].parent.mkdir()
    for one in (*left, *foreign):
        one.write_bytes(b"half")
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    open_cache(tmp_path)
    assert all(one.exists() for one in left)
    os.close(handle)
    open_cache(tmp_path)
    assert not any(one.exists() for one in left)
    assert all(one.exists() for one in foreign)


def test_a_disk_without_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems have none: leftovers may stay there, the answers are the same."""

    def refuses(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuses)
    open_cache(tmp_path / "new")
    monkeypatch.undo()
    assert files_of(tmp_path / "new") == files_of_whole(tmp_path)
