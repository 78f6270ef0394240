"""A replay buffer: labelled inputs on a device's disk, so that it can train on what it saw.

    with Replay.open(path, plan, random=random) as replay:
        replay.add(inputs, targets, source="teacher", at=clock.now())
        replay.flush()
        batch = replay.draw(32, random)         # to train on, balanced over classes
        for part in replay.held(): ...          # never trained on: to judge the result

- Bounded: one file of fixed length (`device.replay_format`). Which samples stay when it is full is decided by
  `device.reservoir`, apart for what is trained on and what is held back; which is which by `device.holding`.
- One process writes; others read it meanwhile (`device.replay_samples.Samples`).

What survives, and when:

- A sample goes into a slot that is free. The one that it replaces stays on the disk until the new one is durable, so a kill or a
  power cut at any point leaves every sample that was there at the last `flush`, or those that took their places. A
  record that was torn does not fit its digest, and counts as not there.
- Where a kill comes between writing and letting go, there are more samples than there is room for: opening lets some
  of the largest class go, at random.
- After a sync that failed nobody knows what reached the disk, and a later one that succeeds says nothing about it
  (Rebello et al. 2020, "Can Applications Recover from fsync Failures?"). So the buffer goes back to the last flush: what came
  since is given up, what it would have replaced is kept, and `PathError` says so. The buffer stays usable.
- What is forgotten (`forget`, `clear`) is overwritten with zeros, and so is what was replaced or torn before, and
  this is durable when the call returns. It is gone from the file; flash memory may keep old pages for itself for a while. Where
  that matters, give a key, and destroy the key.

Not for several threads at once.
"""

from __future__ import annotations

import math
import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final

import numpy as np

from edgestill.core.errors import (
    ClassCountError,
    DtypeError,
    EvidenceError,
    NotFiniteError,
    ShapeError,
)
from edgestill.device import replay_format as form
from edgestill.device.blocks import PlainFile
from edgestill.device.replay_format import About, Head, Layout, Sample, Tally
from edgestill.device.replay_samples import Samples, unusable
from edgestill.device.sealing import ID_BYTES, MARK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from random import Random
    from types import TracebackType

    from numpy.typing import NDArray

    from edgestill.device.blocks import Blocks
    from edgestill.device.replay_format import Plan, Source
    from edgestill.device.replay_samples import Batch, Counts
    from edgestill.device.reservoir import Reservoir

_SUM_MAY_DIFFER: Final = 0.01


@dataclass(frozen=True, slots=True)
class _Written:
    """A sample since the last flush.

    Attributes:
        slot: where it lies.
        instead_of: the slot that it replaces; None where there was room.
    """

    slot: int
    instead_of: int | None


@final
class Replay:
    """A buffer that this process writes.

    Args:
        path: of the file, for errors.
        blocks: the file.
        samples: what is in it.
        random: the coin that says which samples stay.
    """

    def __init__(self, path: Path, blocks: Blocks, samples: Samples, random: Random) -> None:
        self._path = path
        self._blocks = blocks
        self._samples = samples
        self._layout = samples.layout
        self._random = random
        self._written: list[_Written] = []
        self._counted = self._tally()
        used = {*samples.train.slots(), *samples.held_back.slots()}
        self._free = deque(slot for slot in range(self._layout.slots) if slot not in used)

    @classmethod
    def open(cls, path: Path, plan: Plan, *, random: Random, key: bytes | None = None) -> Self:
        """Opens a buffer, or makes it where there is none.

        Args:
            path: of the file, in a folder that exists.
            plan: what it is for.
            random: the coin that says which samples stay, and, of a new buffer, when samples are held back.
            key: 32 bytes, to have it encrypted; None for a plain one.

        Raises:
            PathError: it cannot be read or made.
            DataError: there is something else, a buffer that is damaged in its head, or one of another plan: `create`
                begins it anew.
            AccessError: the key is another, or one is missing.
            ConflictError: another process writes it.
        """
        try:
            blocks = PlainFile.to_write(path)
        except FileNotFoundError:
            return cls.create(path, plan, random=random, key=key)
        except OSError as error:
            raise unusable(path, error) from error
        return cls.over(blocks, path, plan, random=random, key=key)

    @classmethod
    def create(cls, path: Path, plan: Plan, *, random: Random, key: bytes | None = None) -> Self:
        """Makes an empty buffer, in place of whatever plain file has the name; arguments as of `open`.

        Raises:
            PathError: it cannot be made; what was there is there still.
            ConflictError: another process writes the one that is there.
        """
        layout = Layout(plan=plan, overhead=form.overhead_of(key))
        head = Head(
            plan=plan,
            identity=os.urandom(
                ID_BYTES
            ),  # not of the coin: one that falls the same twice must not make two files alike
            seed=random.randbytes(form.SEED_BYTES),
            sealed=key is not None,
        )
        try:
            blocks = PlainFile.create(path, head=head.to_bytes(key), length=layout.bytes)
        except OSError as error:
            raise unusable(path, error) from error
        return cls.over(blocks, path, plan, random=random, key=key)

    @classmethod
    def over(
        cls, blocks: Blocks, path: Path, plan: Plan, *, random: Random, key: bytes | None = None
    ) -> Self:
        """The buffer in an open file, which is closed where it is none; arguments and errors as of `open`."""
        try:
            replay = cls(path, blocks, Samples.of(blocks, path, plan, key), random)
            replay._let_go_of_the_surplus()
        except BaseException:
            blocks.close()
            raise
        return replay

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Flushes, and lets go of the file.

        Raises:
            PathError: what came since the last flush is lost.
        """
        try:
            self.flush()
        finally:
            self._blocks.close()

    def add(
        self,
        inputs: NDArray[np.generic],
        targets: NDArray[np.floating],
        *,
        source: Source,
        at: float,
        weights: NDArray[np.floating] | None = None,
    ) -> int:
        """Offers samples of one moment.

        Args:
            inputs: `[N, ...]`, of the plan's dtype and shape, finite.
            targets: `[N, C]`, probabilities.
            source: where the targets came from.
            at: seconds since 1970.
            weights: `[N]`, inputs that each stands for, above 0 up to 1e6; all 1 where none are given.

        Returns:
            how many were taken; durable after the next `flush`.

        Raises:
            ShapeError, DtypeError, ClassCountError, NotFiniteError, EvidenceError: they do not fit; none is taken.
            PathError: the disk failed; those before it are taken, unless the text says that the last flush counts.
        """
        counts = np.ones(len(inputs), np.float32) if weights is None else np.asarray(weights, np.float32)
        self._check(inputs, targets)
        _check_about(targets, counts, at)
        part = self._samples.part(at)
        if part is None:
            return 0
        taken = 0
        for one, target, weight in zip(inputs, targets, counts.tolist(), strict=True):
            about = About(at, weight, int(target.argmax()), source)
            taken += self._offer(part, Sample(about, target, np.asarray(one)))
        return taken

    def flush(self) -> None:
        """Makes durable all that was added, and then lets go of what it replaces.

        Raises:
            PathError: the disk failed; the buffer is as after the last flush, and can be used.
        """
        if not self._written and not self._samples.lost and self._counted == self._tally():
            return
        try:
            self._write_and_sync()
        except OSError as error:
            self._give_up()
            raise unusable(self._path, error) from error
        written, self._written = self._written, []
        self._release({one.instead_of for one in written if one.instead_of is not None} | self._samples.lost)

    def forget(self, before: float) -> int:
        """Erases all samples older than `before`, in seconds since 1970, and what is left of those that were replaced.

        Returns:
            how many samples were forgotten; it is durable when this returns.

        Raises:
            PathError: the disk failed; some may be erased, and trying again goes on with the others.
        """
        self.flush()
        samples = self._samples
        parts = (samples.train, samples.held_back)
        gone = [slot for part in parts for slot in part.forget(lambda slot: samples.at[slot] < before)]
        self._free += gone
        samples.dirty |= set(gone)
        try:
            for slot in sorted(samples.dirty):
                self._blocks.write(self._layout.offset(slot), bytes(self._layout.stride))
            self._write_and_sync()
        except OSError as error:
            raise unusable(self._path, error) from error
        samples.dirty.clear()
        return len(gone)

    def clear(self) -> int:
        """Erases all samples; as `forget`."""
        return self.forget(math.inf)

    @property
    def samples(self) -> Samples:
        """What is in it, to be read."""
        return self._samples

    def draw(self, n: int, random: Random) -> Batch:
        """A batch to train on; see `Samples.draw`."""
        return self._samples.draw(n, random)

    def held(self, size: int = 64) -> Iterator[Batch]:
        """What is held back, in batches; see `Samples.held`."""
        return self._samples.held(size)

    def counts(self) -> Counts:
        """How much there is."""
        return self._samples.counts()

    def _check(self, inputs: NDArray[np.generic], targets: NDArray[np.floating]) -> None:
        plan = self._layout.plan
        if inputs.dtype != np.dtype(plan.dtype):
            raise DtypeError(
                "inputs of another dtype",
                where="inputs",
                expected=f"{plan.dtype} (the plan)",
                got=inputs.dtype,
                fix="give the sensor's own input",
            )
        if inputs.ndim == 0 or inputs.shape[1:] != plan.shape:
            raise ShapeError(
                "inputs of another shape",
                where="inputs",
                expected=["N", *plan.shape],
                got=list(inputs.shape),
                fix="give a batch of the sensor's own inputs",
            )
        if targets.shape != (len(inputs), plan.classes):
            raise ClassCountError(
                "targets that do not fit the inputs",
                where="targets",
                expected=[len(inputs), plan.classes],
                got=list(targets.shape),
                fix="give each input a probability for each class",
            )
        if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
            raise NotFiniteError(
                "inputs that are no numbers",
                where="inputs",
                expected="finite numbers",
                got="NaN or infinity",
                fix="leave such inputs out",
            )

    def _offer(self, part: Reservoir, sample: Sample) -> bool:
        """Puts a sample to its part, and writes it where it is taken."""
        if not self._free:
            self.flush()
        admitted = part.choose(sample.about.label, self._random)
        if admitted is None:
            return False
        slot = self._free.popleft()
        record = self._samples.seal.close(form.slot_place(slot), form.encode(self._layout.plan, sample))
        self._samples.dirty.add(slot)
        try:
            self._blocks.write(self._layout.offset(slot), record)
        except OSError as error:
            self._free.append(slot)
            raise unusable(self._path, error) from error
        self._samples.dirty.discard(slot)
        instead_of = None if admitted.instead_of is None else part.take(admitted.instead_of)
        self._samples.note(slot, record, sample.about)
        self._written.append(_Written(slot, instead_of))
        return True

    def _give_up(self) -> None:
        """Goes back to the last flush, the newest sample first: it may have replaced one that was new itself."""
        for one in reversed(self._written):
            if one.slot not in self._samples.lost:
                self._samples.drop(one.slot)
            if one.instead_of is not None:
                self._samples.take_up(one.instead_of)
        slots = {one.slot for one in self._written} | self._samples.lost
        self._written = []
        self._release(slots)

    def _release(self, slots: set[int]) -> None:
        """Makes these slots free, and what is in them no record.

        Where that cannot be written, or is lost, there is a sample too much at the next start.
        """
        for slot in sorted(slots):
            self._free.append(slot)
            self._samples.dirty.add(slot)
            with suppress(OSError):
                self._blocks.write(self._layout.offset(slot), bytes(MARK_BYTES))
        self._samples.lost -= slots

    def _let_go_of_the_surplus(self) -> None:
        for part in (self._samples.train, self._samples.held_back):
            while part.is_over:
                self._release({part.take(part.of_the_largest(self._random))})

    def _tally(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return tuple(self._samples.train.seen), tuple(self._samples.held_back.seen)

    def _write_and_sync(self) -> None:
        """Counts in the older of the two pages, and makes everything durable. The newer one stays until that is done."""
        number, counted = self._samples.number + 1, self._tally()
        page = number % 2
        record = self._samples.seal.close(form.tally_place(page), Tally(number, *counted).to_bytes())
        self._blocks.write(self._layout.tally_offset(page), record)
        self._blocks.sync()
        self._samples.number, self._counted = number, counted


def _check_about(targets: NDArray[np.floating], weights: NDArray[np.float32], at: float) -> None:
    """Refuses targets that are no probabilities, and weights and times out of range."""
    inside = np.all((targets >= 0) & (targets <= 1), axis=1, keepdims=True)
    sums = np.where(inside, targets, 0).sum(axis=1, dtype=np.float64)
    wrong = int((np.abs(sums - 1) > _SUM_MAY_DIFFER).sum())
    if wrong:
        raise EvidenceError(
            "targets that are no probabilities",
            where="targets",
            expected="numbers from 0 to 1 that add up to 1",
            got=f"{wrong} of {len(sums)} that are none",
            fix="give the teacher's probabilities, or labels as one-hot",
        )
    if weights.shape != sums.shape or not ((weights > 0) & (weights <= form.MAX_WEIGHT)).all():
        raise EvidenceError(
            "weights out of range",
            where="weights",
            expected=f"{list(sums.shape)}, above 0, at most {form.MAX_WEIGHT:g}",
            got=f"{list(weights.shape)}, from {weights.min(initial=1):g} to {weights.max(initial=1):g}",
            fix="say how many inputs each sample stands for",
        )
    if not 0 <= at <= form.MAX_TIME:
        raise EvidenceError(
            "a time out of range",
            where="at",
            expected=f"seconds since 1970, at most {form.MAX_TIME:g}",
            got=at,
            fix="give the time of the sample",
        )
