"""What a client of a federation has: a student, samples of its own, and what follows from both. No Flower, no torch.

- The network stays as it was shipped; what is learned is a last layer on its features, in closed form
  (`learn.statistics`), from the client's own samples and, where there is one, from a lesson: what all clients said
  together about a shared set.
- A client that has seen three classes names one of the three whatever it is shown. So it abstains about inputs that are
  not of its domain, by the rule of `learn.votes`: their leverage is some times what is typical of what it has learned.
- Scores of a head are near the targets and no logits; a temperature is fitted for them on the client's own samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Self, final

import numpy as np

from edgestill.core.bundle import Bundle
from edgestill.core.errors import BundleError, DataError, EvidenceError, ModelError, SettingError, within
from edgestill.core.manifest import REFERENCE
from edgestill.federated.answers import TOLERANCE, Answers
from edgestill.infer.calibration import fit_temperature
from edgestill.infer.confidence import softmax
from edgestill.infer.student import FEATURES, load
from edgestill.learn import votes
from edgestill.learn.statistics import Head, Statistics, solve, usual_ridge

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.infer.student import Student
    from edgestill.learn.votes import Question

LIMIT: Final = 1.5
"""Times the typical leverage. Less than `votes.LIMIT`: with four clients of four digits each it taught a student 3 to 6 points better
(docs/federated.md)."""
_CHUNK: Final = 256

Lesson = tuple["NDArray[np.generic]", Answers]
"""Shared inputs, and what all clients said of them together."""


class Samples(NamedTuple):
    """Inputs and what they are.

    Attributes:
        inputs: `[N, ...]`, as the student takes them.
        targets: `[N]` class numbers, or `[N, C]` distributions such as a teacher's probabilities.
    """

    inputs: NDArray[np.generic]
    targets: NDArray[np.generic]


class Score(NamedTuple):
    """How a head did on samples.

    Attributes:
        n: samples.
        right: that were named as their target.
    """

    n: int
    right: int


@final
class Node:
    """One client's side of the sums.

    Args:
        student: of a bundle, with features.
        reference: the bundle's statistics: they name the backbone, the features and the classes.
        samples: to learn from, at least one.
        heldout: to try heads on; not learned from.
        limit: times the typical leverage, from which on an input is not known; infinity never abstains so.

    Raises:
        DataError: no samples, or targets that do not fit.
        SettingError: a limit that is not positive.
        Those of `Student.predict`; ModelError: a student without features.
    """

    def __init__(
        self,
        student: Student,
        reference: Statistics,
        samples: Samples,
        *,
        heldout: Samples | None = None,
        limit: float = LIMIT,
    ) -> None:
        if not limit > 0:
            raise SettingError(
                "a limit is out of range",
                where="limit",
                expected="above 0",
                got=limit,
                fix=f"choose {LIMIT:g}, or more to abstain less",
            )
        self._student = student
        self._like = reference
        self._limit = limit
        self._own = self._seen(samples, "samples")
        self._heldout = None if heldout is None else self._seen(heldout, "heldout")

    @classmethod
    def open(
        cls,
        bundle: Path | str,
        samples: Samples,
        *,
        heldout: Samples | None = None,
        limit: float = LIMIT,
    ) -> Self:
        """The node of a bundle (`NAME.esb`, or its folder).

        Raises:
            BundleError: it has no `reference.stats`. Those of `infer.load` and of the class.
        """
        opened = Bundle.open(bundle)
        if REFERENCE not in opened.manifest.blobs:
            raise BundleError(
                "a bundle that cannot learn",
                where=bundle,
                expected=f"a blob {REFERENCE}",
                got=sorted(opened.manifest.blobs),
                fix="pack it with its calibration data",
            )
        with within(f"{bundle}: {REFERENCE}"):
            reference = Statistics.from_bytes(opened.read(REFERENCE))
        return cls(load(bundle), reference, samples, heldout=heldout, limit=limit)

    @property
    def like(self) -> Statistics:
        """Sums over nothing, of the kind that this node's are."""
        like = self._like
        return Statistics.empty(
            backbone=like.backbone, window=0, classes=like.classes, features=like.features
        )

    def statistics(self) -> Statistics:
        """The sums over the node's own samples."""
        return self.like.add(*self._own)

    def features(self, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        """Of inputs `[N, ...]`: `[N, D]`.

        Raises:
            Those of `Student.predict`; ModelError: the student gives none, or of another width.
        """
        found = [
            self._student.predict(inputs[start : start + _CHUNK]).features
            for start in range(0, max(len(inputs), 1), _CHUNK)
        ]
        if any(one is None or one.shape[1:] != (self._like.features,) for one in found):
            raise ModelError(
                "the student does not give the features that its bundle names",
                where=FEATURES,
                expected=f"[N, {self._like.features}]",
                got=[None if one is None else list(one.shape) for one in found[:1]],
                fix="pack the bundle again",
            )
        return np.concatenate([one for one in found if one is not None])

    def learned(self, lesson: Lesson | None = None) -> Head:
        """The head that follows from the own samples, and from the inputs of a lesson about which something is said."""
        return _head_of(self._with(lesson))

    def answers(
        self, proxy: NDArray[np.generic], about: Question, *, lesson: Lesson | None = None
    ) -> Answers:
        """What this node says about the proxy inputs `[N, ...]`, having learned the lesson.

        Raises:
            EvidenceError: asked about other classes than the student's. Those of `features`.
        """
        head, scores, labels = self._named(proxy, about, lesson)
        own, targets = self._own
        temperature = fit_temperature(own @ head.weight + head.bias, targets, units=len(own))
        said = softmax(scores, temperature).astype(np.float64)
        said[labels == votes.ABSTAIN] = 0.0
        return Answers(about, said)

    def ballot(
        self, proxy: NDArray[np.generic], about: Question, *, lesson: Lesson | None = None
    ) -> votes.Ballot:
        """The classes that this node names for the proxy inputs, abstaining where `answers` says nothing.

        Raises:
            As `answers`.
        """
        _, _, labels = self._named(proxy, about, lesson)
        return votes.Ballot.of(about, student=self._like.backbone, labels=labels)

    def _named(
        self, proxy: NDArray[np.generic], about: Question, lesson: Lesson | None
    ) -> tuple[Head, NDArray[np.float32], NDArray[np.int64]]:
        """The head, its scores `[N, C]`, and the classes `[N]` or `ABSTAIN`."""
        if about.classes != self._like.classes:
            raise EvidenceError(
                "asked about other classes",
                where="proxy",
                expected=f"{self._like.classes} classes",
                got=about.classes,
            )
        statistics = self._with(lesson)
        head, features = _head_of(statistics), self.features(proxy)
        scores = features @ head.weight + head.bias
        return head, scores, votes.cast(scores, features, votes.domain(statistics), limit=self._limit)

    def score(self, head: Head) -> Score:
        """How this head does on what was held out.

        Raises:
            DataError: nothing was. EvidenceError: a head of another shape.
        """
        if self._heldout is None:
            raise DataError(
                "nothing was held out",
                where="heldout",
                expected="samples that are not learned from",
                got="none",
                fix="give the node some with heldout=",
            )
        check_head(head, self._like)
        features, targets = self._heldout
        named = (features @ head.weight + head.bias).argmax(axis=1)
        return Score(len(named), int((named == targets.argmax(axis=1)).sum()))

    def _with(self, lesson: Lesson | None) -> Statistics:
        own = self.statistics()
        if lesson is None or not (known := lesson[1].known).any():
            return own
        inputs, said = lesson
        return own.add(self.features(inputs)[known], said.targets[known])

    def _seen(self, samples: Samples, where: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        targets = _distributions(samples.targets, self._like.classes, where)
        if len(targets) != len(samples.inputs) or not len(targets):
            raise DataError(
                "inputs and targets do not fit",
                where=where,
                expected="as many targets as inputs, at least one",
                got=f"{len(samples.inputs)} inputs, {len(targets)} targets",
                fix="give one target for each input",
            )
        return self.features(samples.inputs), targets


def check_head(head: Head, like: Statistics) -> None:
    """Refuses a head that is not of these statistics' shape, or not finite.

    Raises:
        EvidenceError: such a head.
    """
    shapes = (head.weight.shape, head.bias.shape)
    wanted = ((like.features, like.classes), (like.classes,))
    if shapes != wanted or not (np.isfinite(head.weight).all() and np.isfinite(head.bias).all()):
        raise EvidenceError(
            "a head that cannot be used",
            where="head",
            expected="finite, weight {} and bias {}".format(*wanted),
            got="weight {} and bias {}".format(*shapes),
        )


def _head_of(statistics: Statistics) -> Head:
    return solve(statistics, ridge=usual_ridge(statistics))


def _distributions(targets: NDArray[np.generic], classes: int, where: str) -> NDArray[np.float64]:
    if targets.ndim == 1 and targets.dtype.kind in "iu":
        if len(targets) and not 0 <= targets.min() <= targets.max() < classes:
            raise DataError(
                "a class number is out of range",
                where=where,
                expected=f"0 to {classes - 1}",
                got=f"{targets.min()} to {targets.max()}",
                fix="count classes from 0, in the order of the bundle's labels",
            )
        return np.asarray(np.eye(classes)[targets])
    if targets.ndim != 2 or targets.shape[1] != classes:  # [N, C]
        raise DataError(
            "targets of another shape",
            where=where,
            expected=f"[N] whole numbers or [N, {classes}]",
            got=f"{targets.dtype} {list(targets.shape)}",
            fix="give class numbers, or probabilities of all classes",
        )
    return _whole(targets.astype(np.float64), where)


def _whole(targets: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    """Distributions that are 1 together in doubles: sums over single or half precision would fail `learn.screens`."""
    with np.errstate(invalid="ignore", over="ignore"):
        sums = targets.sum(axis=1, keepdims=True)
        good = (np.abs(sums - 1) <= TOLERANCE).all() and (targets >= 0).all()
    if not good:
        raise DataError(
            "targets that are no distributions",
            where=where,
            expected="rows that are not negative and sum to 1",
            got=f"sums {sums.min():g} to {sums.max():g}, least {targets.min():g}",
            fix="give probabilities, not scores: softmax them",
        )
    return np.asarray(targets / sums)
