"""Does distilling help? Asked on a slice of the data before the whole is spent, and answered with its noise.

Two students begin with the same weights. One is trained plainly, one is distilled as the whole run would be (as many views,
answers kept as precisely), at equal cost: the plain one gets as many more epochs as the teacher's answers would have paid
for, in operations that are counted, not timed. It is repeated over seeds; a seed decides the first weights, the order and
the views. A difference is called one only where two intervals leave out zero (Student's t): one over seeds, one over the groups of the held-out
samples. What is within the noise is said to be so.

A slice is not the whole: distilling tends to help more where data is scarce. The verdict is a warning, no guarantee.
"""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgestill.core.bundle import replace as write_whole
from edgestill.core.digest import Digest
from edgestill.core.errors import DataError, SettingError
from edgestill.lab.data.part import PartSource
from edgestill.lab.data.source import Ask
from edgestill.lab.forward import evaluating, forward, model_digest, one_by_one
from edgestill.lab.gain import Gain, gain_of
from edgestill.lab.score import scores
from edgestill.lab.settings import check_types
from edgestill.lab.training.train import Lesson, train_

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject
    from edgestill.lab.data.source import Source
    from edgestill.lab.gain import Verdict
    from edgestill.lab.recipe import Recipe
    from edgestill.lab.teacher.asking import Asking

_MOST_SEEDS: Final = 100
_MOST_EPOCHS: Final = 10  # times the recipe's, for the plain student
_BACKWARD: Final = 3  # a training step costs about three forward passes


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
        check_types(self, what="a slice to compare on")
        if self.samples < 2 or self.epochs < 0 or not 2 <= self.seeds <= _MOST_SEEDS:
            raise SettingError(
                "a slice to compare on is out of range",
                expected=f"samples >= 2, epochs >= 0, seeds 2 to {_MOST_SEEDS}",
                got=f"samples {self.samples}, epochs {self.epochs}, seeds {self.seeds}",
                where="compare",
                fix="keep the defaults of Slice() where you are unsure",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came of asking.

    Attributes:
        plain: mean score of each plain student.
        distilled: of each distilled one.
        plain_epochs: how many epochs the plain ones got, for equal cost.
        distilled_epochs: the distilled ones.
        cost_ratio: operations of a plain student over those of a distilled one; 1 up to half an epoch, less where equal
            cost would have been more than ten times the recipe's epochs.
        samples: of training data.
        gain: distilled minus plain.
    """

    plain: tuple[float, ...]
    distilled: tuple[float, ...]
    plain_epochs: int
    distilled_epochs: int
    cost_ratio: float
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
            "hurts": f"distilling HURTS on a slice of {self.samples} samples: {figures}; try more epochs, a "
            "smaller soft_weight or a better teacher",
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
            "cost_ratio": self.cost_ratio,
            "samples": self.samples,
            "gain": self.gain.value,
            "gain_spread": self.gain.spread,
            "gain_ci95_seeds": list(self.gain.seeds),
            "gain_ci95_samples": list(self.gain.samples) if all(map(isfinite, self.gain.samples)) else None,
            "verdict": self.gain.verdict,
            "sentence": self.sentence,
        }


def compare(
    asking: Asking,
    student: nn.Module | Callable[[int], nn.Module],
    train: Source,
    heldout: Source,
    *,
    recipe: Recipe,
    size: Slice | None = None,
    groups: NDArray[np.int64] | None = None,
    kept: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Trains pairs of copies of the student and compares them.

    Args:
        asking: the teacher, and how it will be asked; its cache is not used.
        student: copied; left as it is. Or a function that makes the student of a seed, so that the spread over seeds is
            that of its first weights too.
        train: what a slice is taken from.
        heldout: data neither is trained on; samples without a label do not count.
        recipe: of the distilled ones.
        size: how much is spent.
        groups: `[len(heldout)]`, which held-out samples belong together; by default each is its own group.
        kept: JSON file for the scores; the same question goes on from it, or is answered by it.
        progress: called after each training with (done, of).

    Raises:
        SettingError: the recipe does not distil, or the data has no labels to train plainly with.
        DataError: the held-out data has none. TrainingError: one of the trainings diverged.
    """
    size = size or Slice()
    _check(train, heldout, recipe)
    make = _copies(student) if isinstance(student, nn.Module) else student
    random = np.random.default_rng(recipe.seed)
    part = PartSource(train, np.sort(random.permutation(len(train))[: size.samples]))
    distilled = replace(recipe, epochs=size.epochs or recipe.epochs)
    first = make(recipe.seed)
    asking = replace(asking, cache=None)  # which knows the whole, not its parts
    key = _key(asking, first, part, heldout, settings=f"{distilled.digest}|{size}|{_groups_digest(groups)}")
    epochs, ratio = _equal_cost(asking, first, part, distilled)
    plain = replace(distilled, soft_weight=0.0, hint="", hint_weight=0.0, epochs=epochs)
    pair = _Pair(asking, part, heldout, distilled, plain)
    ours, theirs = _scored(
        pair, make, size.seeds, kept=None if kept is None else _Kept(kept, key), progress=progress
    )
    return Comparison(
        plain=tuple(np.nanmean(theirs, 1).tolist()),
        distilled=tuple(np.nanmean(ours, 1).tolist()),
        plain_epochs=plain.epochs,
        distilled_epochs=distilled.epochs,
        cost_ratio=ratio,
        samples=len(part),
        gain=gain_of(ours, theirs, groups=groups),
    )


@dataclass(frozen=True, slots=True)
class _Pair:
    """What two students of one seed are trained and measured with."""

    asking: Asking
    part: Source
    heldout: Source
    distilled: Recipe
    plain: Recipe

    def scores(self, student: nn.Module, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of the distilled and of the plain one, `[N]` each."""
        return self._score(student, self.distilled, seed), self._score(student, self.plain, seed)

    def _score(self, student: nn.Module, recipe: Recipe, seed: int) -> NDArray[np.float64]:
        recipe = replace(recipe, seed=seed)
        with self.asking.guide(self.part, recipe) as guide:
            lesson = Lesson(source=self.part, guide=guide)
            return scores(train_(copy.deepcopy(student), lesson, recipe), self.heldout)


class _Kept:
    """The scores of the pairs that are done, in a file; one of another question, or damaged, is as good as none."""

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key

    def read(self) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Of the distilled and the plain ones, seed by seed."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(self._path.read_bytes())
            if found["of"] == self._key:
                return [
                    (np.array(one, np.float64), np.array(other, np.float64)) for one, other in found["pairs"]
                ]
        return []

    def write(self, pairs: list[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> None:
        """Replaces the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        told = [[one.tolist(), other.tolist()] for one, other in pairs]
        write_whole(self._path, json.dumps({"of": self._key, "pairs": told}).encode())


def _scored(
    pair: _Pair,
    make: Callable[[int], nn.Module],
    seeds: int,
    *,
    kept: _Kept | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores `[seeds, N]` of the distilled and of the plain ones; each pair that is done is kept."""
    found = [] if kept is None else kept.read()[:seeds]
    for at in range(len(found), seeds):
        seed = (pair.distilled.seed + at) % 2**32
        found.append(pair.scores(make(seed), seed))
        if kept is not None:
            kept.write(found)
        if progress is not None:
            progress(at + 1, seeds)
    ours, theirs = zip(*found, strict=True)
    return np.stack(ours), np.stack(theirs)


def _check(train: Source, heldout: Source, recipe: Recipe) -> None:
    if not recipe.distils:
        raise SettingError(
            "nothing to compare",
            where="soft_weight",
            expected="more than 0, or a hint",
            got=recipe.soft_weight,
            fix="give the recipe a soft_weight, or leave `against` out",
        )
    if not train.labelled:
        raise SettingError(
            "plain training needs labels",
            expected="labelled data to compare on",
            where="train",
            got="no labels",
            fix="bring labels, or leave `against` out",
        )
    if not heldout.labelled:
        raise DataError(
            "nothing to compare answers with",
            where="validation",
            expected="labelled data",
            got="no labels",
            fix="bring labelled held-out data, or leave `against` out",
        )


def _copies(student: nn.Module) -> Callable[[int], nn.Module]:
    return lambda _seed: copy.deepcopy(student)


def _equal_cost(asking: Asking, student: nn.Module, source: Source, recipe: Recipe) -> tuple[int, float]:
    """Epochs of plain training for the operations of this distillation, and how near they come to it."""
    theirs, ours = _flops(asking.teacher, source), max(1, _flops(student, source))
    wanted = recipe.epochs + asking.passes(source, recipe) * theirs / (_BACKWARD * ours)
    epochs = min(round(wanted), _MOST_EPOCHS * recipe.epochs)
    return epochs, epochs / wanted


def _flops(model: nn.Module, source: Source) -> int:
    """Of one sample's forward pass, counted, not timed: the same on every machine."""
    batch = next(iter(source.batches([Ask(np.zeros(1, np.int64))])))
    with one_by_one(), evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward(model, batch.inputs)
    return int(counter.get_total_flops())


def _key(asking: Asking, student: nn.Module, part: Source, heldout: Source, *, settings: str) -> str:
    """Of everything that decides the answer."""
    models = (model_digest(asking.teacher), asking.when, model_digest(student))
    parts = (*models, part.digest, part.views_digest, heldout.digest)
    return str(Digest.of("|".join([*map(str, parts), settings]).encode()))


def _groups_digest(groups: NDArray[np.int64] | None) -> str:
    return "" if groups is None else str(Digest.of(np.ascontiguousarray(groups).tobytes()))
