"""A student from what a fleet has voted, whatever networks the voters run and whatever network the student is.

The shares of a round's outcome (`learn.votes.Outcome`) stand for a teacher's soft labels: a guide like any other (`lab.teacher.guide`), which knows one
answer for each sample, in whatever view it is shown. Labelled samples of old join as samples on which everybody agrees, so that what no device
has seen is not forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import numpy as np
import torch

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError
from edgestill.lab.data.samples import Samples
from edgestill.lab.teacher.guide import Answer
from edgestill.lab.training.train import Lesson, train_

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from edgestill.lab.data.augment import Augment
    from edgestill.lab.data.source import Ask, Inputs
    from edgestill.lab.recipe import Recipe
    from edgestill.learn.votes import Outcome

FLOOR: Final = 1e-4
"""The least share of a class: the logarithm of nothing is no logit."""


@final
class VotedGuide:
    """Answers with the shares of votes.

    Args:
        soft: `[N, C]`, each row a distribution, in the order of the source's samples.
    """

    views: Final = None

    def __init__(self, soft: NDArray[np.floating]) -> None:
        shares = np.maximum(soft, FLOOR)
        self._logits = np.log(shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)

    @property
    def digest(self) -> Digest:
        """Of all shares."""
        return Digest.of(b"votes|" + self._logits.tobytes())

    def answer(self, ask: Ask, inputs: Inputs) -> Answer:
        """What was voted on these samples, whatever view of them is shown."""
        del inputs
        return Answer(torch.from_numpy(self._logits[ask.index]))


def lesson_of(
    samples: NDArray[np.generic],
    outcome: Outcome,
    *,
    old: Samples | None = None,
    at_least: int = 1,
    augment: Augment | None = None,
) -> Lesson:
    """What a student is shown of an outcome.

    Args:
        samples: `[N, ...]` of the proxy set, all of them in their order.
        outcome: of the round about it.
        old: labelled samples that join; None for none.
        at_least: voters that a sample needs; 0 takes the teacher's word alone too.
        augment: makes views.

    Raises:
        EvidenceError: another number of samples, no sample with so many voters, or old samples of another input or other classes.
    """
    if len(samples) != outcome.question.samples:
        raise EvidenceError(
            "an outcome about other samples",
            where="samples",
            expected=f"{outcome.question.samples} samples, as were voted on",
            got=len(samples),
            fix="give the whole proxy set, in its order",
        )
    chosen = (outcome.voted >= at_least) & (outcome.weight > 0)
    if not chosen.any():
        raise EvidenceError(
            "no sample with so many voters",
            where="outcome",
            expected=f"a sample that {at_least} devices have voted on",
            got=f"at most {int(outcome.voted.max())}",
            fix="ask for fewer, or wait for more votes",
        )
    soft = outcome.soft[chosen]
    found = Samples(
        samples[chosen], soft.argmax(axis=1).astype(np.int64), np.arange(len(soft)), outcome.question.classes
    )
    if old is not None:
        _check(old, found)
        found, soft = found + old, np.concatenate([soft, np.eye(old.classes)[old.labels]])
    return Lesson.of(found, augment, VotedGuide(soft))


def distil_votes(
    student: nn.Module,
    samples: NDArray[np.generic],
    outcome: Outcome,
    recipe: Recipe,
    *,
    old: Samples | None = None,
    at_least: int = 1,
    augment: Augment | None = None,
) -> nn.Module:
    """Trains a student in place on an outcome and returns it; arguments and errors as `lesson_of` and `lab.training.train.train_`.

    With `soft_weight` 1 the shares alone are followed, with less also the class that leads.
    """
    lesson = lesson_of(samples, outcome, old=old, at_least=at_least, augment=augment)
    return train_(student, lesson, recipe)


def _check(old: Samples, voted: Samples) -> None:
    kinds = [(one.inputs.dtype, one.inputs.shape[1:], one.classes) for one in (old, voted)]
    if kinds[0] != kinds[1]:
        raise EvidenceError(
            "old samples of another kind",
            where="old",
            expected=f"{kinds[1][0]} {list(kinds[1][1])}, {kinds[1][2]} classes, as were voted on",
            got=f"{kinds[0][0]} {list(kinds[0][1])}, {kinds[0][2]} classes",
            fix="give samples as the sensor of the proxy set does, with its labels",
        )
