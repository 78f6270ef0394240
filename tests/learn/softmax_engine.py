"""A training step that needs no file: softmax regression with momentum, in numpy, behind the protocol of an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgestill.core.digest import Digest
from edgestill.learn.stepfile import StepFile, Tensor
from edgestill.learn.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

WIDTH, CLASSES = 4, 3
STEP = Digest.of(b"a step")
FIRST = np.linspace(-1, 1, WIDTH * CLASSES, dtype=np.float32).reshape(WIDTH, CLASSES)
FILE = StepFile(
    optimiser="sgd",
    slots=("velocity",),
    counts=True,
    classes=CLASSES,
    rate=0.1,
    batch=8,
    tensors=(Tensor(name="weight", shape=(WIDTH, CLASSES), role="weight"),),
)


class SoftmaxEngine:
    """Weight `[4, 3]`, no bias."""

    @property
    def inputs(self) -> Mapping[str, tuple[str, tuple[int | None, ...]]]:
        """As a `train.onnx` has them; parameters have defaults and are not listed."""
        return {
            "input": ("FP32", (None, WIDTH)),
            "targets": ("FP32", (None, CLASSES)),
            "weights": ("FP32", (None,)),
            "learning_rate": ("FP32", ()),
            "velocity.weight": ("FP32", (WIDTH, CLASSES)),
            "step": ("FP32", ()),
        }

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """One step."""
        with np.errstate(all="ignore"):
            found = self._step({name: np.asarray(value, np.float64) for name, value in inputs.items()})
            return {name: np.asarray(value, np.float32) for name, value in found.items()}

    @staticmethod
    def _step(given: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
        weight = given.get("weight", FIRST.astype(np.float64))
        scores = given["input"] @ weight
        logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        slope = (np.exp(logs) * given["targets"].sum(1, keepdims=True) - given["targets"]) * given["weights"][
            :, None
        ]
        velocity = 0.9 * given["velocity.weight"] + given["input"].T @ slope / len(scores)
        moved = weight - given["learning_rate"] * velocity
        return {
            "loss": -((given["targets"] * logs).sum(1) * given["weights"]).mean(),
            "next.weight": moved,
            "next.velocity.weight": velocity,
            "next.step": given["step"] + 1,
        }


def trainer() -> Trainer:
    """What runs it."""
    return Trainer(SoftmaxEngine(), FILE, step=STEP)


def batch(seed: int, n: int = 8) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Inputs and soft targets."""
    random = np.random.default_rng(seed)
    return random.normal(size=(n, WIDTH)).astype(np.float32), random.dirichlet(np.ones(CLASSES), n).astype(
        np.float32
    )
