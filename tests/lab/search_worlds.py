"""A tiny search that several tests look at: students of a MotionNet on separable data."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from lab_worlds import motion_net, motions

from edgestill.core.hardware import HardwareClass
from edgestill.lab.recipe import Recipe
from edgestill.lab.searching.draft import PRECISIONS, Drafts, Shape
from edgestill.lab.searching.profile import Profile, Timed
from edgestill.lab.searching.search import search
from edgestill.lab.searching.settings import Search
from edgestill.lab.searching.shape import UNIFORM, CarvedSpace
from edgestill.lab.searching.work import work_of
from edgestill.lab.training.train import Lesson, train_

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from edgestill.core.budget import Budget
    from edgestill.lab.searching.found import Found

TRAIN, HELDOUT = motions(90, seed=1), motions(120, seed=2)
RECIPE = Recipe(epochs=3, batch=30, lr=1e-2, soft_weight=0.5, inherit="magnitude")
WRAPPING = 5_000
HERE = HardwareClass.here()


@cache
def teacher() -> nn.Module:
    """Trained."""
    return train_(motion_net(16, 16, 24), Lesson.of(TRAIN), Recipe(epochs=3, batch=30, lr=1e-2))


@cache
def drafts() -> Drafts:
    """Of what can be carved out of the teacher; a bundle adds a round figure and 10 bytes a feature."""
    space = CarvedSpace(teacher(), torch.from_numpy(TRAIN.inputs[:1]))
    return Drafts(space, TRAIN.inputs[:16], HERE, lambda features: WRAPPING + 10 * features)


@cache
def profile() -> Profile:
    """Made up, and exact: a microsecond for each operator, a nanosecond for each product, and twice that in int8."""
    models = []
    for scale in (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 1.0):
        for precision in PRECISIONS:
            draft = drafts().of(Shape(direction=UNIFORM, scale=scale, precision=precision))
            work = work_of(draft.model)
            seconds = sum(1e-6 + 1e-9 * one.products for one in work) * (2 if precision == "int8" else 1)
            models.append(Timed(precision=precision, work=tuple(work), p50=seconds * 0.9, p95=seconds))
    return Profile(HERE.name, 1, models)


def searched(folder: Path, *budgets: Budget, **other: Any) -> Found:
    """The tiny search; what is not told is quick."""
    told: dict[str, Any] = {
        "recipe": RECIPE,
        "settings": Search(trials=3, budgets=2),
        "profile": profile(),
    }
    return search(teacher(), TRAIN, validation=HELDOUT, folder=folder, budgets=budgets, **told | other)
