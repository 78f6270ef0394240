"""The samples of a replay buffer, as whoever trains on them reads them.

- What is known of a sample (slot, class, time, the beginning of its record) is in memory, about 60 bytes each; targets and
  inputs stay on the disk until a batch is drawn.
- Opening reads each record once, one at a time: what is torn, damaged, or no sample at all is left out.
- A reader in another process sees the buffer as it was when it opened it. Where the writer has replaced a sample since,
  its record begins otherwise: the reader leaves it out and draws another, so no batch holds half of anything.
- What is held back is told by time (`device.holding`), never by a field that could be wrong.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final

import numpy as np

from edgestill.core.errors import DataError, PathError, within
from edgestill.device import replay_format as form
from edgestill.device.blocks import PlainFile
from edgestill.device.replay_format import Head, Layout, Tally
from edgestill.device.replay_head import HEAD_BYTES
from edgestill.device.reservoir import Reservoir
from edgestill.device.sealing import MARK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from random import Random

    from numpy.typing import NDArray

    from edgestill.device.blocks import Blocks
    from edgestill.device.replay_format import About, Plan, Sample, Source
    from edgestill.device.sealing import Seal

_MARK: Final = 8
"""Bytes of a record's beginning that tell it from what was in its slot before."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Samples, N of them; N is 0 where there are none.

    Attributes:
        inputs: `[N, ...]`, of the plan's dtype and shape.
        targets: float32 `[N, C]`, each adding up to 1.
        weights: float32 `[N]`, inputs that each stands for.
        at: float64 `[N]`, seconds since 1970.
        sources: N words.
    """

    inputs: NDArray[np.generic]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]
    at: NDArray[np.float64]
    sources: tuple[Source, ...]

    def __len__(self) -> int:
        return len(self.targets)

    @classmethod
    def of(cls, plan: Plan, samples: Sequence[Sample]) -> Self:
        """These samples together."""
        n = len(samples)
        inputs = np.empty((n, *plan.shape), plan.dtype)
        targets = np.empty((n, plan.classes), np.float32)
        for index, one in enumerate(samples):
            inputs[index], targets[index] = one.input, one.target
        return cls(
            inputs=inputs,
            targets=targets,
            weights=np.array([one.about.weight for one in samples], np.float32),
            at=np.array([one.about.at for one in samples], np.float64),
            sources=tuple(one.about.source for one in samples),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much there is, by class. What is judged on what is held back is that of the stream where each sample counts `seen / kept`.

    Attributes:
        train: samples kept to be trained on.
        train_seen: that they were chosen from.
        train_room: how many there may be.
        held: samples held back.
        held_seen: that they were chosen from.
        held_room: how many there may be.
    """

    train: tuple[int, ...]
    train_seen: tuple[int, ...]
    train_room: int
    held: tuple[int, ...]
    held_seen: tuple[int, ...]
    held_room: int


@final
class Samples:
    """What is in a buffer.

    Args:
        blocks: its file.
        head: of the file.
        layout: of the file.
        seal: of its records.

    Attributes:
        train: slots of the samples to be trained on.
        held_back: slots of those that are held back.
        number: of the tally that counts.
        dirty: slots without a sample that are not known to hold zeros only.
        lost: slots whose samples turned out to be another, or damaged, when they were read.
    """

    def __init__(self, blocks: Blocks, head: Head, layout: Layout, seal: Seal) -> None:
        self.layout = layout
        self.seal = seal
        self.train = Reservoir(layout.train_room, layout.plan.classes)
        self.held_back = Reservoir(layout.held_room, layout.plan.classes)
        self.number = 0
        self.dirty: set[int] = set()
        self.lost: set[int] = set()
        self.at = array("d", bytes(8 * layout.slots))
        self._labels = array("I", bytes(array("I").itemsize * layout.slots))
        self._marks = array("Q", bytes(8 * layout.slots))
        self._blocks = blocks
        self._seed = head.seed

    @classmethod
    def open(cls, path: Path, plan: Plan, *, key: bytes | None = None) -> Self:
        """Opens a buffer to read it, whoever writes it meanwhile.

        Args:
            path: of the file.
            plan: that it was made with.
            key: that it was made with, 32 bytes; None for a plain one.

        Raises:
            PathError: it cannot be read.
            DataError: it is no buffer, damaged in its head, or of another plan.
            AccessError: the key is another, or one is missing.
        """
        try:
            blocks = PlainFile.to_read(path)
        except OSError as error:
            raise unusable(path, error) from error
        try:
            return cls.of(blocks, path, plan, key)
        except BaseException:
            blocks.close()
            raise

    @classmethod
    def of(cls, blocks: Blocks, path: Path, plan: Plan, key: bytes | None) -> Self:
        """The samples of an open file; errors as of `open`."""
        layout = Layout(plan=plan, overhead=form.overhead_of(key))
        with within(path):
            try:
                head = Head.from_bytes(blocks.read(0, HEAD_BYTES), plan=plan, key=key)
            except OSError as error:
                raise unusable(path, error) from error
            if blocks.length != layout.bytes:
                raise DataError(
                    "a replay buffer of another length",
                    where="length",
                    expected=f"{layout.bytes} bytes (its head)",
                    got=blocks.length,
                    fix="begin it anew with Replay.create; what it holds is lost then",
                )
        samples = cls(blocks, head, layout, head.seal(key))
        samples._scan()
        return samples

    def close(self) -> None:
        """Lets go of the file."""
        self._blocks.close()

    def draw(self, n: int, random: Random) -> Batch:
        """A batch to train on, balanced over the classes that there are samples of: their numbers differ by 1 at most.

        Within a class none comes twice before all have come once. Where some turn out to be lost, others that are drawn alike take their places.

        Args:
            n: samples, at least 0.
            random: the coin.

        Returns:
            n samples in random order; none where there are none.
        """
        drawn: list[Sample] = []
        while len(drawn) < n and len(self.train):
            lost = set()
            for slot in self._dealt(n - len(drawn), random):
                sample = self.read(slot)
                if sample is None:
                    lost.add(slot)
                else:
                    drawn.append(sample)
            for slot in lost:
                self._lose(slot)
        random.shuffle(drawn)
        return Batch.of(self.layout.plan, drawn)

    def held(self, size: int = 64) -> Iterator[Batch]:
        """All samples that are held back, in batches of `size` and a smaller last one, the oldest first."""
        slots = sorted(self.held_back.slots(), key=lambda slot: (self.at[slot], slot))
        for start in range(0, len(slots), size):
            found = []
            for slot in slots[start : start + size]:
                sample = self.read(slot)
                if sample is not None:
                    found.append(sample)
                else:
                    self._lose(slot)
            if found:
                yield Batch.of(self.layout.plan, found)

    def counts(self) -> Counts:
        """How much there is."""
        return Counts(
            train=self.train.kept(),
            train_seen=tuple(self.train.seen),
            train_room=self.layout.train_room,
            held=self.held_back.kept(),
            held_seen=tuple(self.held_back.seen),
            held_room=self.layout.held_room,
        )

    def read(self, slot: int) -> Sample | None:
        """The sample of a slot; None where it is another by now, damaged, or on a part of the disk that cannot be read."""
        record = self._record(slot)
        if record is None or _mark(record) != self._marks[slot]:
            return None
        body = self.seal.open(form.slot_place(slot), record)
        return None if body is None else form.decode(self.layout.plan, body)

    def part(self, at: float) -> Reservoir | None:
        """Where samples of this time belong; None in a gap."""
        role = self.layout.plan.holding.role(at, self._seed)
        return {"train": self.train, "held": self.held_back}.get(role)

    def note(self, slot: int, record: bytes, about: About) -> None:
        """A sample lies in this slot now."""
        part = self.part(about.at)
        assert part is not None
        self.at[slot], self._labels[slot], self._marks[slot] = about.at, about.label, _mark(record)
        part.put(slot, about.label)

    def take_up(self, slot: int) -> None:
        """A sample that was let go is there after all."""
        part = self.part(self.at[slot])
        assert part is not None
        part.put(slot, self._labels[slot])

    def drop(self, slot: int) -> None:
        """Lets the sample of a slot go."""
        part = self.part(self.at[slot])
        assert part is not None
        part.drop(slot, self._labels[slot])

    def _scan(self) -> None:
        """Reads every record, and knows what is there."""
        tally = form.newest([self._tally(page) for page in (0, 1)], self.layout.plan.classes)
        self.number = tally.number
        self.train.seen[:], self.held_back.seen[:] = tally.train, tally.held
        zeros = bytes(self.layout.stride)
        for slot in range(self.layout.slots):
            record = self._record(slot)
            about = self._about(slot, record or b"")
            if record is not None and about is not None:
                self.note(slot, record, about)
            elif record != zeros:
                self.dirty.add(slot)

    def _about(self, slot: int, record: bytes) -> About | None:
        """What is known of the sample in a slot; None where there is none."""
        if not any(record[:MARK_BYTES]):
            return None
        body = self.seal.open(form.slot_place(slot), record)
        sample = None if body is None else form.decode(self.layout.plan, body)
        return None if sample is None or self.part(sample.about.at) is None else sample.about

    def _tally(self, page: int) -> Tally | None:
        """What is counted on a page; None where that is damaged."""
        try:
            record = self._blocks.read(self.layout.tally_offset(page), self.layout.tally)
        except OSError:
            return None
        body = self.seal.open(form.tally_place(page), record) if len(record) == self.layout.tally else None
        return None if body is None else Tally.from_bytes(body, self.layout.plan.classes)

    def _lose(self, slot: int) -> None:
        self.drop(slot)
        self.lost.add(slot)

    def _record(self, slot: int) -> bytes | None:
        """The bytes of a slot; None where they cannot be read."""
        try:
            record = self._blocks.read(self.layout.offset(slot), self.layout.stride)
        except OSError:
            return None
        return record if len(record) == self.layout.stride else None

    def _dealt(self, n: int, random: Random) -> list[int]:
        """Slots of n samples, as evenly over the classes as can be."""
        labels = [label for label, kept in enumerate(self.train.kept()) if kept]
        random.shuffle(labels)
        slots: list[int] = []
        for place, label in enumerate(labels):
            members, wanted = self.train.members(label), (n - place + len(labels) - 1) // len(labels)
            while wanted > 0:
                chosen = random.sample(members, min(wanted, len(members)))
                slots += chosen
                wanted -= len(chosen)
        return slots


def unusable(path: Path, error: OSError) -> PathError:
    """What a disk that fails is told as."""
    return PathError(
        "cannot use the replay buffer",
        where=path,
        expected="a file of ours on a disk with room",
        got=error.strerror or error,
        fix="check its owner, and the room on the disk",
    )


def _mark(record: bytes) -> int:
    return int.from_bytes(record[:_MARK], "little")
