"""Trains students of a search and says how good they are; the teacher is asked once for all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgestill.lab.score import scores
from edgestill.lab.training.train import Lesson, train_

if TYPE_CHECKING:
    from torch import nn

    from edgestill.lab.data.source import Source
    from edgestill.lab.recipe import Recipe
    from edgestill.lab.searching.choices import Values
    from edgestill.lab.searching.draft import Shape
    from edgestill.lab.searching.shape import Space
    from edgestill.lab.teacher.guide import Guide


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class School:
    """What students are taught, and judged by.

    Attributes:
        space: the students.
        source: training data.
        guide: who answers for the teacher; None where nobody is asked.
        judge: held-out data that students are chosen on.
        recipe: how they are trained.
    """

    space: Space
    source: Source
    guide: Guide | None
    judge: Source
    recipe: Recipe

    def recipe_of(self, epochs: int, values: Values) -> Recipe:
        """The recipe with so many epochs, and with values of its own."""
        return replace(self.recipe, epochs=epochs, **values)

    def taught(self, shape: Shape, epochs: int, values: Values) -> nn.Module:
        """A student of this shape, trained for so many epochs.

        Raises:
            TrainingError: the training diverged.
        """
        student = self.space.built(shape.direction, shape.scale, seed=self.recipe.seed)
        return train_(student, Lesson(source=self.source, guide=self.guide), self.recipe_of(epochs, values))

    def score(self, student: nn.Module) -> float:
        """The mean score on the data that students are chosen on."""
        return float(np.nanmean(scores(student, self.judge)))
