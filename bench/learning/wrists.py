"""People with a watch: students of the right wrist, and what each person's left wrist gives a device to learn from, and to be told by.

- Students are those of the demonstration (`demo.watch`): teacher and student never saw the two people who are measured in a fold, and five folds
  measure all ten. The student learned from the right wrist alone; the teacher knows both.
- Every person did each of seven exercises once on either wrist. The first 60 % of a recording are there to be learned from; what tells lies behind it, one
  window (2.56 s) later, so that no reading is on both sides.
- A minute is the first 8.6 s of each of the person's seven recordings: windows of 2.56 s that begin every 0.48 s. What tells begins every 0.64 s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from edgestill.core.digest import Digest
from edgestill.demo.watch import LENGTH, watch
from edgestill.demo.watchdata import LABELS, LEFT, RIGHT, Recording, load_recordings, windows
from edgestill.demo.workshop import learn, teach
from edgestill.infer.policy import ALWAYS
from edgestill.lab.gradient.step import Training
from edgestill.lab.packing.assemble import reweighted
from edgestill.lab.packing.trainable import fixed_of_module, parameters_of_module, trainable

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.demo.scenario import Scenario

RATE: Final = 50
"""Readings a second."""
HOP: Final = 32
"""Readings from one window that tells to the next."""
CLOSER: Final = 24
"""The same of windows that are learned from."""
EARLY: Final = 0.6
TRAINED: Final = {"head": "head", "last block": "last=2", "all": "all"}


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """What a device sees, in the order in which it sees it.

    Attributes:
        inputs: float32 `[N, 128, 6]`.
        labels: int64 `[N]`.
        turns: int64 `[N]`: windows of one stay with one exercise have one number.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    turns: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def then(self, later: Self) -> Self:
        """These, and others after them."""
        joined = (
            np.concatenate(pair)
            for pair in (
                (self.inputs, later.inputs),
                (self.labels, later.labels),
                (self.turns, later.turns + self.turns.max(initial=-1) + 1),
            )
        )
        return type(self)(*joined)


@dataclass(frozen=True, slots=True, eq=False)
class Person:
    """One of the ten.

    Attributes:
        number: 1 to 10.
        recordings: this person's 14.
    """

    number: int
    recordings: tuple[Recording, ...]

    @classmethod
    def of(cls, number: int) -> Self:
        """The person with this number."""
        return cls(number, tuple(one for one in load_recordings() if one.person == number))

    def early(self, *, seconds: float | None, rounds: int, side: int = LEFT) -> Windows:
        """What there is to learn from.

        Args:
            seconds: of all recordings of the wrist together, as far as their early parts go; None takes all of these.
            rounds: how often each exercise comes, the exercises taking turns; each time there is the next part of its recording.
            side: the wrist.
        """
        mine = [one for one in self.recordings if one.side == side]
        parts = [
            windows(
                _cut(one, 0, _until(one, None if seconds is None else seconds / len(mine))),
                length=LENGTH,
                hop=CLOSER,
            )
            for one in mine
        ]
        labels = np.repeat([one.exercise for one in mine], [len(one) for one in parts])
        in_round = np.concatenate([np.arange(len(one)) * rounds // max(1, len(one)) for one in parts])
        order = np.lexsort((labels, in_round))
        turns = np.unique(in_round * len(LABELS) + labels, return_inverse=True)[1]
        return Windows(np.concatenate(parts)[order], labels[order].astype(np.int64), turns[order])

    def later(self, side: int) -> Windows:
        """What tells, of one wrist."""
        mine = [one for one in self.recordings if one.side == side]
        parts = [
            windows(_cut(one, _until(one, None) + LENGTH, len(one.motion)), length=LENGTH, hop=HOP)
            for one in mine
        ]
        labels = np.repeat([one.exercise for one in mine], [len(one) for one in parts]).astype(np.int64)
        return Windows(np.concatenate(parts), labels, np.arange(len(labels)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """Of one fold.

    Attributes:
        folder: of its files.
        people: who is measured with it.
        seed: that it was made with.
    """

    folder: Path
    people: tuple[int, ...]
    seed: int

    @property
    def shipped(self) -> Path:
        """The bundle as the lab packs it."""
        return self.folder / "watch.esb"

    @property
    def asking(self) -> Path:
        """The same, with a policy that asks the teacher about every input."""
        return self.folder / "asking.esb"

    @property
    def teacher(self) -> bytes:
        """The teacher's ONNX."""
        return (self.folder / "teacher.onnx").read_bytes()

    def training(self, what: str) -> Path:
        """The bundle with a step that trains this much of it."""
        return self.folder / f"{Digest.of(what.encode()).hex[:8]}.esb"

    @classmethod
    def of(cls, kept: Path, *, seed: int, fold: int, quick: bool = False) -> Self:
        """The student of a fold; made where `kept` does not have it."""
        scenario = watch(seed=seed, fold=fold)
        people = tuple(int(one.before.groups[0]) for one in scenario.streams if not one.shares)
        one = cls(folder=kept / f"watch-{seed}-{fold}", people=people, seed=seed)
        if not one.shipped.exists():
            one.folder.mkdir(parents=True, exist_ok=True)
            one._make(_hurried(scenario) if quick else scenario)
        return one

    def _make(self, scenario: Scenario) -> None:
        made = learn(scenario, teach(scenario))
        student = made.run.student
        for name, what in TRAINED.items():
            trainable(
                made.packed,
                Training(trainable=what),
                named=parameters_of_module(student),
                fixed=fixed_of_module(student),
            ).save(self.training(name))
        reweighted(made.packed, threshold=ALWAYS, escalation_share=1.0, audit_share=0.0).save(self.asking)
        (self.folder / "teacher.onnx").write_bytes(made.teacher_onnx)
        made.packed.save(self.shipped)


def _hurried(scenario: Scenario) -> Scenario:
    return replace(
        scenario,
        teacher_recipe=replace(scenario.teacher_recipe, epochs=1),
        student_recipe=replace(scenario.student_recipe, epochs=4, views=1),
    )


def _until(recording: Recording, seconds: float | None) -> int:
    """Readings of the early part, of these seconds at most."""
    early = round(EARLY * len(recording.motion))
    return early if seconds is None else min(early, round(RATE * seconds))


def _cut(recording: Recording, start: int, stop: int) -> Recording:
    return replace(recording, motion=recording.motion[start:stop])


HOME, AWAY = RIGHT, LEFT
"""The wrist that the student knows, and the other."""
