"""Few labels or many: a student plain, inherited, distilled, and both, on CIFAR-10.

The reference pair on the middle 24 x 24 of 4,000 original images, measured on 1,000 others. The teacher (LargeModel) learns all
4,000 with shifts and mirror images; the student (SmallModel) gets 1, 5, 20 or 100 % of them and nothing else, also where it is
distilled. The same recipe, shifts and number of steps for all four; epochs shrink as the data grows. Inherited weights are
those of largest magnitude. One teacher; what a seed draws is the labelled part, the student's weights and the order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from edgestill.demo.imagedata import fit
from edgestill.lab.data.augment import ImageShift
from edgestill.lab.data.samples import Samples
from edgestill.lab.data.source import ArraySource
from edgestill.lab.inherit import inherit_
from edgestill.lab.recipe import Recipe
from edgestill.lab.score import scores
from edgestill.lab.teacher.guide import LiveGuide
from edgestill.lab.training.train import Lesson, train_
from quality.digits import LARGE, SMALL, network, some
from quality.record import Scores, gain_json

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FILE: Final = "cifar10_lossless_4000train_1000test.npz"
TEACHER: Final = Recipe(epochs=10, batch=32, lr=1e-3)
STUDENT: Final = Recipe(batch=32, lr=2e-3)
EPOCHS: Final = {1: 60, 5: 30, 20: 12, 100: 5}
SOFT: Final = {"soft_weight": 0.7, "tau": 2.0, "views": 0}
VIEWS: Final = ImageShift(2, mirror=True)
WAYS: Final = {"plain": "plain", "inherited": "inherited", "distilled": "distilled", "both": "both"}


def images(folder: Path) -> tuple[Samples, Samples]:
    """Training and test images."""
    with np.load(folder / FILE) as found:
        train, test = (
            Samples.of(fit(found[f"x_{part}"]), found[f"y_{part}"].astype(np.int64))
            for part in ("train", "test")
        )
    return train, test


def teach(folder: Path, *, quick: bool) -> torch.nn.Module:
    """The teacher."""
    train, _test = images(folder)
    recipe = replace(TEACHER, epochs=1 if quick else TEACHER.epochs)
    return train_(network(LARGE, train, 0), Lesson.of(train, VIEWS), recipe)


def run(
    folder: Path, state: dict[str, torch.Tensor], seed: int, *, quick: bool
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """The scores of every way on the test images, by share of labels, and the teacher's."""
    train, measured = images(folder)
    teacher, test = network(LARGE, train, 0), ArraySource.of(measured)
    teacher.load_state_dict(state)
    found: dict[str, dict[str, NDArray[np.float64]]] = {"teacher": {"all": scores(teacher, test)}}
    for share, epochs in EPOCHS.items():
        limited = some(train, seed, len(train) * share // 100)
        found[str(share)] = {}
        for way in WAYS:
            student = network(SMALL, train, 1000 + seed)
            if way in {"inherited", "both"}:
                inherit_(
                    student, teacher, torch.from_numpy(train.inputs[:1]), selection="magnitude", seed=seed
                )
            recipe = replace(STUDENT, seed=seed, epochs=1 if quick else epochs)
            guide = None
            if way in {"distilled", "both"}:
                recipe, guide = replace(recipe, **SOFT), LiveGuide(teacher)  # type: ignore[arg-type]  # mypy cannot see which value is whose
            train_(student, Lesson.of(limited, VIEWS, guide), recipe)
            found[str(share)][way] = scores(student, test)
    return found


def summed(seeds: list[dict[str, dict[str, NDArray[np.float64]]]]) -> dict[str, object]:
    """All seeds as JSON."""
    shares = {}
    for share, epochs in EPOCHS.items():
        ways = {way: Scores(title, [one[str(share)][way] for one in seeds]) for way, title in WAYS.items()}
        shares[str(share)] = {
            "labelled": 4000 * share // 100,
            "recipe": replace(STUDENT, epochs=epochs).as_json(),
            "ways": {way: one.as_json() for way, one in ways.items()},
            "gains": {way: gain_json(one, ways["plain"]) for way, one in ways.items() if way != "plain"},
        }
    teacher = Scores("teacher", [seeds[0]["teacher"]["all"]])
    return {"teacher": teacher.as_json(), "distilled_with": SOFT, "shares": shares}
