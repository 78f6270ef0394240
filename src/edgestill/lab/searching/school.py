"""Trains students of a search and says how good they are, and their files; the teacher is asked once for all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgestill.infer.engines import engine_of
from edgestill.lab.data.source import ArraySource
from edgestill.lab.measure import run_model
from edgestill.lab.packing.export import export_onnx
from edgestill.lab.packing.probabilities import shippable
from edgestill.lab.packing.quantise import quantise
from edgestill.lab.score import scores
from edgestill.lab.training.train import Lesson, train_

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from edgestill.core.hardware import HardwareClass
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.data.source import Source
    from edgestill.lab.recipe import Recipe
    from edgestill.lab.searching.choices import Values
    from edgestill.lab.searching.draft import Precision, Shape
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
        shown: `[N, ...]`, inputs to calibrate the quantiser with; a few hundred.
        hardware_class: where the students will run.
    """

    space: Space
    source: Source
    guide: Guide | None
    judge: Samples
    recipe: Recipe
    shown: NDArray[np.generic]
    hardware_class: HardwareClass

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
        """The share of the data that students are chosen on that it tells right."""
        return float(np.nanmean(scores(student, ArraySource.of(self.judge))))

    def written(self, student: nn.Module, precision: Precision) -> tuple[bytes, float]:
        """The file that would be shipped, and the share that the file tells right.

        Raises:
            ModelError: it cannot be exported or quantised.
        """
        model = export_onnx(student, torch.from_numpy(self.shown[:2]))
        if precision == "int8":
            model = quantise(model, self.shown, self.hardware_class)
        model = shippable(model)
        return model, float(right(model, self.judge, self.hardware_class).mean())


def right(model: bytes, samples: Samples, hardware_class: HardwareClass) -> NDArray[np.float64]:
    """`[N]`, 1 where the file tells a sample's class, by the engine of that hardware."""
    logits, _ = run_model(engine_of(model, hardware_class.name), samples.inputs)
    found: NDArray[np.float64] = (logits.argmax(1) == samples.labels).astype(np.float64)
    return found
