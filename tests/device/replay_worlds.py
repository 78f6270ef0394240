"""What the tests of the replay buffer share: samples that are told apart, and disks that fail, tear and forget."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from device_worlds import Killed

from edgestill.device.holding import Holding
from edgestill.device.replay import Replay
from edgestill.device.replay_format import Plan
from edgestill.device.replay_samples import Samples

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.device.blocks import Blocks, PlainFile

KEY = bytes(range(32))
HOLDING = Holding(stretch=100.0, every=4, gap=10.0)
PLAN = Plan(dtype="int64", shape=(2,), classes=3, size=6_400, holding=HOLDING)
SECTOR = 512


def target(label: int, classes: int = PLAN.classes) -> NDArray[np.float32]:
    """As one-hot, `[1, C]`."""
    return np.eye(classes, dtype=np.float32)[[label]]


def offer(replay: Replay, number: int, *, label: int | None = None, at: float | None = None) -> bool:
    """Offers the sample of a number, which its input tells, too; one comes in 7 seconds."""
    inputs = np.array([[number, -number]])
    chosen = number % PLAN.classes if label is None else label
    when = 7.0 * number if at is None else at
    return replay.add(inputs, target(chosen), source="teacher", at=when) == 1


def numbers(samples: Samples) -> set[int]:
    """Which samples are there, as they are read back from the disk."""
    slots = [*samples.train.slots(), *samples.held_back.slots()]
    found = [sample for slot in slots if (sample := samples.read(slot)) is not None]
    for one in found:
        assert one.input.tolist()[1] == -one.input.tolist()[0]
        assert one.about.at == 7.0 * one.input.tolist()[0]
    return {int(one.input[0]) for one in found}


def kept(replay: Replay) -> set[int]:
    """Which samples a buffer has."""
    return numbers(replay._samples)


def on_disk(path: Path, key: bytes | None = None, plan: Plan = PLAN) -> set[int]:
    """Which samples somebody else reads."""
    samples = Samples.open(path, plan, key=key)
    try:
        return numbers(samples)
    finally:
        samples.close()


@dataclass
class Faulty:
    """A file that counts its writes and syncs, and fails at one of them.

    Attributes:
        inner: the real one.
        at: number of the operation that fails; None never.
        fault: `before`, `after` or `torn`: the process dies there; `ENOSPC` or `EIO`: the kernel refuses, and half was written.
        lasting: whether a refusal lasts.
        synced: called after each sync that was done.
        operations: names of all so far.
    """

    inner: PlainFile
    at: int | None = None
    fault: str = "before"
    lasting: bool = False
    synced: Callable[[], None] = field(default=lambda: None)
    operations: list[str] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Of the file."""
        return self.inner.length

    def read(self, offset: int, size: int) -> bytes:
        """As it is now."""
        return self.inner.read(offset, size)

    def write(self, offset: int, data: bytes) -> None:
        """Replaces bytes, or fails."""
        self._act("write", lambda: self.inner.write(offset, data))
        half = data[: len(data) // 2]
        if self._is_hit(len(self.operations) - 1) and self.fault in {"torn", "ENOSPC", "EIO"}:
            self.inner.write(offset, half)
            self._fail()

    def sync(self) -> None:
        """Makes durable, or fails."""
        self._act(
            "sync", lambda: None
        )  # a process that dies takes nothing from the system's memory; `Cut` is for power
        if self._is_hit(len(self.operations) - 1) and self.fault in {"torn", "ENOSPC", "EIO"}:
            self._fail()
        self.synced()

    def close(self) -> None:
        """Lets go of the file."""
        self.inner.close()

    def _is_hit(self, number: int) -> bool:
        return self.at is not None and (number == self.at or (self.lasting and number > self.at))

    def _act(self, name: str, act: Callable[[], None]) -> None:
        self.operations.append(name)
        if not self._is_hit(len(self.operations) - 1):
            act()
        elif self.fault == "before":
            raise Killed(name)
        elif self.fault == "after":
            act()
            if name == "sync":
                self.synced()
            raise Killed(name)

    def _fail(self) -> None:
        if self.fault == "torn":
            raise Killed
        number = getattr(errno, self.fault)
        raise OSError(number, os.strerror(number))


@dataclass
class Cut:
    """A file whose power may fail: of what was not synced, any sectors reach the disk, in any order.

    Attributes:
        durable: what the disk holds for certain.
        now: what the running process reads.
        pending: writes since the last sync.
        synced: called after each sync.
        left: operations until the power fails; None never.
    """

    durable: bytearray
    now: bytearray
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    synced: Callable[[], None] = field(default=lambda: None)
    left: int | None = None

    @classmethod
    def of(cls, path: Path) -> Cut:
        """The file as it is."""
        return cls(bytearray(path.read_bytes()), bytearray(path.read_bytes()))

    @property
    def length(self) -> int:
        """Of the file."""
        return len(self.now)

    def read(self, offset: int, size: int) -> bytes:
        """As it is now."""
        return bytes(self.now[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Replaces bytes, or fails."""
        self._count()
        self.now[offset : offset + len(data)] = data
        self.pending.append((offset, data))

    def sync(self) -> None:
        """Makes durable, or fails."""
        self._count()
        self.durable[:] = self.now
        self.pending.clear()
        self.synced()

    def close(self) -> None:
        """Nothing: it is in memory."""

    def after_the_cut(self, coin: Random) -> bytes:
        """What the disk holds when the power is back."""
        image = bytearray(self.durable)
        for offset, data in self.pending:
            at = offset
            while at < offset + len(data):
                end = min(offset + len(data), (at // SECTOR + 1) * SECTOR)
                if coin.random() < 0.5:
                    image[at:end] = data[at - offset : end - offset]
                at = end
        return bytes(image)

    def _count(self) -> None:
        if self.left is not None:
            if self.left == 0:
                raise Killed
            self.left -= 1


def over(blocks: Blocks, path: Path, key: bytes | None = None, coin: int = 5) -> Replay:
    """A buffer on these blocks."""
    return Replay.over(blocks, path, PLAN, random=Random(coin), key=key)
