"""Does distilling help? Asked on a slice of the data before the whole is spent, and answered with its noise.

Two students begin with the same weights. One is trained plainly, one is distilled, at equal cost: the plain one gets as
many more epochs as the teacher's answers would have paid for. It is repeated over seeds. A difference is called one only
where two intervals leave out zero: one over seeds (Student's t), one over the held-out samples' groups (bootstrap). What
is within the noise is said to be so.

A slice is not the whole: distilling tends to help more where data is scarce. The verdict is a warning, no guarantee.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from edgestill.core.errors import SettingError
from edgestill.lab.data.part import PartSource
from edgestill.lab.data.source import Ask
from edgestill.lab.forward import evaluating, forward
from edgestill.lab.measure import mean_figure
from edgestill.lab.score import scores
from edgestill.lab.teacher.guide import LiveGuide
from edgestill.lab.training.train import Lesson, train_

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import nn

    from edgestill.core.jsonio import JsonObject
    from edgestill.lab.data.source import Source
    from edgestill.lab.recipe import Recipe

Verdict = Literal["helps", "hurts", "no difference shown"]

_MOST_EPOCHS: Final = 10  # times the recipe's, for the plain student
_BACKWARD: Final = 3  # a training step costs about three forward passes
# Two-sided 95 % quantiles of Student's t for 1 to 10 degrees of freedom (Student 1908; any table).
_T: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """How much is spent on the question.

    Attributes:
        samples: of the training data, at most.
        epochs: of the distilled student; 0 for the recipe's.
        seeds: pairs of students; at least 2, since one pair has no spread.
    """

    samples: int = 2000
    epochs: int = 0
    seeds: int = 3

    def __post_init__(self) -> None:
        if self.samples < 2 or self.epochs < 0 or not 2 <= self.seeds <= len(_T) + 1:
            raise SettingError(
                "a slice to compare on is out of range",
                expected=f"samples >= 2, epochs >= 0, seeds 2 to {len(_T) + 1}",
                got=f"samples {self.samples}, epochs {self.epochs}, seeds {self.seeds}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A difference of two ways to train, with what is known of its noise.

    Attributes:
        value: mean over seeds and samples.
        spread: standard deviation over seeds.
        seeds: 95 % interval over seeds.
        samples: 95 % interval over the held-out groups.
    """

    value: float
    spread: float
    seeds: tuple[float, float]
    samples: tuple[float, float]

    @property
    def verdict(self) -> Verdict:
        """Which way it goes, if both intervals agree."""
        if self.seeds[0] > 0 and self.samples[0] > 0:
            return "helps"
        if self.seeds[1] < 0 and self.samples[1] < 0:
            return "hurts"
        return "no difference shown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came of asking.

    Attributes:
        plain: mean score of each plain student.
        distilled: of each distilled one.
        plain_epochs: how many epochs the plain ones got, for equal cost.
        distilled_epochs: the distilled ones.
        samples: of training data.
        gain: distilled minus plain.
    """

    plain: tuple[float, ...]
    distilled: tuple[float, ...]
    plain_epochs: int
    distilled_epochs: int
    samples: int
    gain: Gain

    @property
    def sentence(self) -> str:
        """What it means, for a person."""
        figures = (
            f"{self.gain.value:+.4f} (over seeds {self.gain.seeds[0]:+.4f} to {self.gain.seeds[1]:+.4f}, over samples "
            f"{self.gain.samples[0]:+.4f} to {self.gain.samples[1]:+.4f})"
        )
        told: dict[Verdict, str] = {
            "helps": f"distilling helps on a slice of {self.samples} samples: {figures}",
            "hurts": f"distilling HURTS on a slice of {self.samples} samples: {figures}; try a smaller soft_weight",
            "no difference shown": f"no difference shown between distilling and plain training at equal cost: {figures}",
        }
        return told[self.gain.verdict]

    def as_json(self) -> JsonObject:
        """For reports."""
        return {
            "plain": list(self.plain),
            "distilled": list(self.distilled),
            "plain_epochs": self.plain_epochs,
            "distilled_epochs": self.distilled_epochs,
            "samples": self.samples,
            "gain": self.gain.value,
            "gain_spread": self.gain.spread,
            "gain_ci95_seeds": list(self.gain.seeds),
            "gain_ci95_samples": list(self.gain.samples),
            "verdict": self.gain.verdict,
            "sentence": self.sentence,
        }


def compare(
    teacher: nn.Module,
    student: nn.Module,
    train: Source,
    heldout: Source,
    *,
    recipe: Recipe,
    size: Slice | None = None,
    groups: NDArray[np.int64] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Trains pairs of copies of the student and compares them.

    Args:
        teacher: asked live; left as it is.
        student: copied; left as it is.
        train: what a slice is taken from.
        heldout: labelled data neither is trained on.
        recipe: of the distilled ones.
        size: how much is spent.
        groups: `[len(heldout)]`, which held-out samples belong together; by default each is its own group.
        progress: called after each training with (done, of).

    Raises:
        SettingError: the recipe does not distil, or the data has no labels to train plainly with.
    """
    size = size or Slice()
    if recipe.soft_weight == 0:
        raise SettingError("nothing to compare", where="soft_weight", expected="more than 0", got=0)
    if not train.labelled:
        raise SettingError("plain training needs labels", expected="labelled data to compare on")
    random = np.random.default_rng(recipe.seed)
    part = PartSource(train, np.sort(random.permutation(len(train))[: size.samples]))
    distilled = replace(recipe, epochs=size.epochs or recipe.epochs)
    plain = replace(
        distilled,
        soft_weight=0.0,
        hint_weight=0.0,
        epochs=_equal_cost(teacher, student, part, distilled),
    )
    found: dict[float, list[NDArray[np.float64]]] = {0.0: [], recipe.soft_weight: []}
    for at in range(size.seeds):
        for one in (plain, distilled):
            own = replace(one, seed=(one.seed + at) % 2**32)
            hint = None if one.hinted is None else one.hinted.teacher_layer
            guide = LiveGuide(teacher, hint=hint) if one.soft_weight else None
            model = train_(copy.deepcopy(student), Lesson(source=part, guide=guide), own)
            found[one.soft_weight].append(scores(model, heldout))
            if progress is not None:
                progress(sum(map(len, found.values())), 2 * size.seeds)
    ours, theirs = np.stack(found[recipe.soft_weight]), np.stack(found[0.0])
    return Comparison(
        plain=tuple(theirs.mean(1).tolist()),
        distilled=tuple(ours.mean(1).tolist()),
        plain_epochs=plain.epochs,
        distilled_epochs=distilled.epochs,
        samples=len(part),
        gain=gain_of(ours, theirs, groups=groups),
    )


def gain_of(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], *, groups: NDArray[np.int64] | None = None
) -> Gain:
    """The difference of two ways, paired by seed and by sample.

    Args:
        ours: scores `[seeds, N]`; at least two seeds.
        theirs: the same seeds and samples.
        groups: `[N]`, which samples belong together; by default each is its own group.
    """
    difference = ours - theirs
    each = difference.mean(1)
    value, spread = float(each.mean()), float(each.std(ddof=1))
    over = mean_figure(difference.mean(0), np.arange(difference.shape[1]) if groups is None else groups)
    half = _T[min(len(each) - 1, len(_T)) - 1] * spread / np.sqrt(len(each))
    return Gain(
        value=value,
        spread=spread,
        seeds=(value - float(half), value + float(half)),
        samples=(over.low, over.high),
    )


def _equal_cost(teacher: nn.Module, student: nn.Module, source: Source, recipe: Recipe) -> int:
    """Epochs of plain training for the arithmetic of this distillation with a cache."""
    theirs, ours = _flops(teacher, source), _flops(student, source)
    views = min(recipe.views or recipe.epochs, recipe.epochs) if source.augmented else 1
    more = views * theirs / (_BACKWARD * max(ours, 1))
    return min(round(recipe.epochs + more), _MOST_EPOCHS * recipe.epochs)


def _flops(model: nn.Module, source: Source) -> int:
    """Of one sample's forward pass, counted, not timed: the same on every machine."""
    batch = next(iter(source.batches([Ask(np.zeros(1, np.int64))])))
    with evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward(model, batch.inputs)
    return int(counter.get_total_flops())
