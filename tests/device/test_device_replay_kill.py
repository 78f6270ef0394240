"""A replay buffer whose disk fails, tears or forgets at every step: what was flushed is there, and it can be used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from device_worlds import Killed
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_worlds import KEY, PLAN, Cut, Faulty, kept, offer, on_disk, over

from edgestill.core.errors import PathError
from edgestill.device.blocks import PlainFile
from edgestill.device.replay import Replay

if TYPE_CHECKING:
    from edgestill.device.blocks import Blocks

keys = pytest.mark.parametrize(
    "key", [None, pytest.param(KEY, marks=pytest.mark.slow)], ids=["plain", "sealed"]
)
BEFORE = 250
"""Samples in the buffer before the story."""
FORGOTTEN = 120
"""Those before it are forgotten in the story."""


class Story:
    """Samples come and replace others, are flushed, forgotten, and come again.

    Attributes:
        flushed: what must be there, whatever happens: all that was durable after the last sync.
        gone: what must never be there again.
        offered: all that ever came.
        replay: the buffer.
    """

    def __init__(self, blocks: Blocks, path: Path, key: bytes | None) -> None:
        self.replay = over(blocks, path, key)
        self.offered = set(range(BEFORE))
        self.flushed = kept(self.replay)
        self.gone: set[int] = set()
        self.forgetting = False

    def synced(self) -> None:
        """What is in the buffer now is durable."""
        self.flushed = kept(self.replay)

    def tell(self) -> None:
        """All of it."""
        for number in range(BEFORE, BEFORE + 12):
            self.offer(number)
        self.replay.flush()
        self.offer(BEFORE + 12)
        self.forget()
        for number in range(BEFORE + 13, BEFORE + 40):
            self.offer(number)
            if number % 9 == 0:
                self.replay.flush()
        self.replay.flush()

    def offer(self, number: int) -> None:
        """One sample more."""
        self.offered.add(number)
        offer(self.replay, number)

    def forget(self) -> None:
        """All that is old; from the call on it may be gone, and after it it is."""
        self.replay.flush()
        self.flushed = {one for one in self.flushed if one >= FORGOTTEN}
        self.replay.forget(7.0 * FORGOTTEN)
        self.gone = set(range(FORGOTTEN))

    def check(self, path: Path, key: bytes | None) -> None:
        """What a start finds: all that was flushed, nothing that was forgotten, never too much, and a buffer that works."""
        there = on_disk(path, key)
        assert self.flushed <= there, sorted(self.flushed - there)
        assert there <= self.offered - self.gone
        with over(Faulty(PlainFile.to_write(path)), path, key) as again:
            counts = again.counts()
            assert sum(counts.train) <= counts.train_room
            assert sum(counts.held) <= counts.held_room
            assert len(kept(again)) >= len(self.flushed) - len(there - self.flushed)
            assert all(a >= b for a, b in zip(counts.train_seen, counts.train, strict=True))
            for number in range(400, 440):
                offer(again, number)
            again.flush()
            last = kept(again)
            assert last & set(range(400, 440))
            assert last == on_disk(path, key)
            again.forget(7.0 * 400)
            assert on_disk(path, key) == {one for one in last if one >= 400}


@pytest.fixture(scope="module")
def firsts(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes | None, bytes]:
    """A full buffer as bytes, plain and sealed."""
    found: dict[bytes | None, bytes] = {}
    for key in (None, KEY):
        path = tmp_path_factory.mktemp("first") / "replay"
        with Replay.create(path, PLAN, random=Random(1), key=key) as replay:
            for number in range(BEFORE):
                offer(replay, number)
        found[key] = path.read_bytes()
    return found


def told(
    path: Path, key: bytes | None, *, at: int | None, fault: str, lasting: bool = False
) -> tuple[Story, Faulty]:
    """A story whose disk fails at one operation; it was killed there, or told as far as it goes."""
    faulty = Faulty(PlainFile.to_write(path), lasting=lasting)
    story = Story(faulty, path, key)
    faulty.at, faulty.fault, faulty.synced = at, fault, story.synced
    faulty.operations.clear()
    try:
        story.tell()
    except Killed:
        assert fault in {"before", "after", "torn"}
    except PathError as error:
        assert fault in {"ENOSPC", "EIO"}
        assert "cannot use the replay buffer" in str(error)  # noqa: PT017  # a kill or this
    return story, faulty


@keys
@pytest.mark.parametrize("fault", ["before", "after", "torn"])
def test_killed_at_any_write_or_sync_what_was_flushed_is_there(
    tmp_path: Path, firsts: dict[bytes | None, bytes], fault: str, key: bytes | None
) -> None:
    """Before it, after it, or with half of it written."""
    path = tmp_path / "replay"
    path.write_bytes(firsts[key])
    story, undisturbed = told(path, key, at=None, fault=fault)
    undisturbed.close()
    story.check(path, key)
    assert undisturbed.operations.count("sync") >= 5
    assert undisturbed.operations.count("write") > 40
    for at in range(len(undisturbed.operations)):
        path.write_bytes(firsts[key])
        story, faulty = told(path, key, at=at, fault=fault)
        assert len(faulty.operations) == at + 1, "the kill was never met"
        faulty.close()
        story.check(path, key)


@keys
@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for good"])
def test_a_disk_that_refuses_leaves_a_buffer_that_can_be_used(
    tmp_path: Path, firsts: dict[bytes | None, bytes], fault: str, lasting: bool, key: bytes | None
) -> None:
    """At any write or sync, half of it done: an error of ours, or none where nothing is lost by it; the same process goes on when there is room again."""
    path = tmp_path / "replay"
    path.write_bytes(firsts[key])
    _, undisturbed = told(path, key, at=None, fault=fault)
    undisturbed.close()
    for at in range(len(undisturbed.operations)):
        path.write_bytes(firsts[key])
        story, faulty = told(path, key, at=at, fault=fault, lasting=lasting)
        assert len(faulty.operations) > at, "the refusal was never met"
        faulty.at = None
        replay = story.replay
        assert story.flushed <= on_disk(path, key)
        assert len(replay.draw(30, Random(0))) == 30
        for number in range(300, 340):
            story.offer(number)
        replay.flush()
        assert kept(replay) & set(range(300, 340))
        assert story.flushed == kept(replay) <= on_disk(path, key)
        replay.forget(7.0 * FORGOTTEN)
        assert kept(replay) == on_disk(path, key)
        story.flushed, story.gone = kept(replay), set(range(FORGOTTEN))
        faulty.close()
        story.check(path, key)


@settings(max_examples=60)
@given(left=st.integers(0, 140), coin=st.integers(0, 2**32), sealed=st.booleans())
def test_a_power_cut_that_leaves_any_sectors_of_what_was_not_synced_loses_nothing_that_was(
    tmp_path_factory: pytest.TempPathFactory,
    firsts: dict[bytes | None, bytes],
    left: int,
    coin: int,
    sealed: bool,
) -> None:
    """Writes reach the disk in any order, and in parts of a sector's size: after `flush` a sample is there, after `forget` it is not."""
    key = KEY if sealed else None
    path = tmp_path_factory.mktemp("cut") / "replay"
    path.write_bytes(firsts[key])
    cut = Cut.of(path)
    story = Story(cut, path, key)
    cut.synced, cut.left = story.synced, left
    with suppress(Killed):
        story.tell()
    path.write_bytes(cut.after_the_cut(Random(coin)))
    story.check(path, key)


def test_a_sync_that_failed_is_not_believed_when_a_later_one_succeeds(
    tmp_path: Path, firsts: dict[bytes | None, bytes]
) -> None:
    """What was added before it is given up, what it would have replaced is there; only what is added again counts."""
    path = tmp_path / "replay"
    path.write_bytes(firsts[None])
    faulty = Faulty(PlainFile.to_write(path))
    replay = over(faulty, path)
    assert sum(offer(replay, number) for number in range(300, 400))
    replay.flush()
    middle, counts = kept(replay), replay.counts()
    added = next(number for number in range(400, 500) if offer(replay, number))
    assert added in kept(replay)
    faulty.at, faulty.fault = len(faulty.operations) + 1, "EIO"  # a tally, then the sync
    with pytest.raises(PathError, match="Input/output error"):
        replay.flush()
    assert kept(replay) == middle
    replay.flush()
    assert kept(replay) == middle == on_disk(path)
    assert counts.train == replay.counts().train
    replay.close()


def test_samples_on_a_bad_part_of_the_disk_are_passed_over(
    tmp_path: Path, firsts: dict[bytes | None, bytes]
) -> None:
    """Reading them fails: others are drawn in their place, and their slots are taken again."""
    path = tmp_path / "replay"
    path.write_bytes(firsts[None])

    class Bad(Faulty):
        bad = False

        def read(self, offset: int, size: int) -> bytes:
            if self.bad and offset % 3 == 0:
                raise OSError(5, "Input/output error")
            return super().read(offset, size)

    blocks = Bad(PlainFile.to_write(path))
    replay = over(blocks, path)
    total = len(kept(replay))
    blocks.bad = True
    for seed in range(20):
        assert len(replay.draw(30, Random(seed))) == 30
    left = len(kept(replay))
    assert 10 < left < total
    blocks.bad = False
    assert sum(offer(replay, number) for number in range(300, 600)) > total - left
    replay.flush()
    assert kept(replay) == on_disk(path)
    counts = replay.counts()
    assert (sum(counts.train), sum(counts.held)) == (counts.train_room, counts.held_room)
    replay.close()


WRITES = """
import sys
from contextlib import suppress
from pathlib import Path
from random import Random
sys.path.insert(0, sys.argv[2])
from replay_worlds import KEY, PLAN, kept, offer
from edgestill.device.replay import Replay

replay = Replay.open(Path(sys.argv[1]), PLAN, random=Random(0), key=KEY)
number = 0
while True:
    for _ in range(7):
        number += 1
        offer(replay, number)
    replay.flush()
    print(number, *sorted(kept(replay)), flush=True)
"""


def test_kill_9_while_samples_are_written_loses_none_that_was_flushed(tmp_path: Path) -> None:
    """A real SIGKILL, in three places; the lock goes with the process."""
    for rounds in (3, 20, 60):
        path = tmp_path / f"replay-{rounds}"
        with subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WRITES, str(path), str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(rounds)]
            os.kill(process.pid, signal.SIGKILL)
            lines += process.stdout.read().splitlines()
        whole = [one for one in lines if one.endswith("\n")] or lines
        number, *flushed = map(int, whole[-1].split())
        there = on_disk(path, KEY)
        replaced = set(flushed) - there
        assert all(one > number for one in there - set(flushed))
        assert len(replaced) <= 7, "those that the next round replaced, and synced"
        with Replay.open(path, PLAN, random=Random(0), key=KEY) as replay:
            assert offer(replay, number + 100) in {True, False}


FULL = """
import resource, sys
from pathlib import Path
from random import Random
sys.path.insert(0, sys.argv[2])
from replay_worlds import KEY, PLAN, kept, offer, on_disk
from edgestill.core.errors import PathError
from edgestill.device.replay import Replay

path = Path(sys.argv[1])
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
def full(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
def refused(act):
    try:
        act()
    except PathError as error:
        assert "File too large" in str(error), error
        print("refused")
full(100)
refused(lambda: Replay.open(path, PLAN, random=Random(0), key=KEY))
assert list(path.parent.iterdir()) == []
full(hard)
replay = Replay.open(path, PLAN, random=Random(0), key=KEY)
for number in range(200):
    offer(replay, number)
replay.flush()
before = kept(replay)
full(0)
refused(lambda: [offer(replay, number) for number in range(200, 260)])
refused(replay.flush)
assert before == kept(replay) == on_disk(path, KEY)
full(hard)
assert any(offer(replay, number) for number in range(300, 320))
replay.close()
full(100)
refused(lambda: Replay.create(path, PLAN, random=Random(0), key=KEY))
assert [one.name for one in path.parent.iterdir()] == [path.name]
assert on_disk(path, KEY)
"""


def test_a_full_disk_is_told_and_costs_nothing_that_was_there(tmp_path: Path) -> None:
    """The kernel refuses every write: our own error; a buffer that cannot be made leaves no part, and the old one stays."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL, str(tmp_path / "replay"), str(Path(__file__).parent)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused"] * 4


def test_what_a_kill_left_of_making_a_buffer_goes_with_the_next(tmp_path: Path) -> None:
    """One name, so that parts of a buffer's size do not pile up; it is never taken for the buffer."""
    (tmp_path / ".replay.part").write_bytes(b"half")
    with Replay.open(tmp_path / "replay", PLAN, random=Random(0)) as replay:
        offer(replay, 1)
    assert [one.name for one in tmp_path.iterdir()] == ["replay"]
