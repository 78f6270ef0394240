"""Training on a device: a `train.onnx` run step by step on an engine, its state a value.

    state = trainer.start()
    state, loss = trainer.step(state, inputs, targets, rate=0.01)

- A state holds all parameters and whatever the optimiser keeps. It goes into a step and comes out of it; none is changed. So a
  trainer that is stopped anywhere goes on exactly from the last state that was kept.
- A state belongs to one `train.onnx`, by digest, and is refused on any other.
- A step that gives NaN or infinity is refused as a whole, and the state before it stays good.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final

import numpy as np

from edgestill.core.errors import MessageError, ModelError, OverlayError, SettingError, TrainingError
from edgestill.learn import framing
from edgestill.learn.stepfile import COUNT, NEXT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgestill.core.digest import Digest
    from edgestill.core.protocols import Engine
    from edgestill.learn.stepfile import StepFile

TARGETS, WEIGHTS, RATE, LOSS = "targets", "weights", "learning_rate", "loss"
MAX_STATE_BYTES: Final = 2**31
_MAGIC: Final = b"ESTSTEP1"
_WHERE: Final = "training state"
_OWN: Final = frozenset({TARGETS, WEIGHTS, RATE, COUNT})


@final
@dataclass(frozen=True, slots=True, eq=False)
class TrainState:
    """Where training stands; a value, never changed.

    Attributes:
        step: digest of the `train.onnx` it belongs to.
        done: steps taken.
        values: float32; every parameter and state, by name.
    """

    step: Digest
    done: int
    values: Mapping[str, NDArray[np.float32]]

    def to_bytes(self) -> bytes:
        """The file: a head, the numbers, and a digest of both."""
        arrays = [np.asarray(self.values[name], np.float32) for name in sorted(self.values)]
        body = framing.pack(_MAGIC, {"step": str(self.step), "done": self.done}, arrays)
        return framing.sealed(body)

    @classmethod
    def from_bytes(cls, data: bytes, *, step: Digest, steps: StepFile) -> Self:
        """Reads a state.

        Args:
            data: of the file.
            step: digest of the `train.onnx` at hand.
            steps: of its `train.json`.

        Raises:
            OverlayError: damaged, over a bound, or of another `train.onnx`.
        """
        body = framing.opened(data, max_bytes=MAX_STATE_BYTES)
        if body is None:
            raise _refused("a whole file", "another digest, or too many bytes")
        shapes = dict(sorted(_shapes(steps).items()))
        try:
            fields, rest = framing.unpack(body, magic=_MAGIC, where=_WHERE, max_bytes=MAX_STATE_BYTES)
            if fields.digest("step") != step:
                raise _refused(step, fields.digest("step"))
            flat = np.frombuffer(rest, "<f4")
            sizes = [int(np.prod(shape)) for shape in shapes.values()]
            if len(flat) != sum(sizes):
                raise _refused(f"{sum(sizes)} numbers", len(flat))
            done = fields.integer("done")
        except (MessageError, ValueError) as error:
            raise _refused("a training state", error) from error
        parts = np.split(flat.astype(np.float32), np.cumsum(sizes)[:-1])
        if not np.isfinite(flat).all():
            raise _refused("finite numbers", "NaN or infinity")
        return cls(
            step,
            done,
            {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)},
        )


@final
class Trainer:
    """Runs one `train.onnx`.

    Args:
        engine: that runs it.
        steps: its `train.json`.
        step: its digest.

    Raises:
        ModelError: the file does not have the inputs that `train.json` tells.
    """

    def __init__(self, engine: Engine, steps: StepFile, *, step: Digest) -> None:
        self.steps = steps
        self.step_digest = step
        self._engine = engine
        given = [name for name in engine.inputs if name not in _OWN and name not in dict(steps.states)]
        if len(given) != 1:
            raise ModelError(
                "a training step takes one input beside its own",
                where="train.onnx",
                expected="one",
                got=given,
                fix="make the bundle again",
            )
        self._input = given[0]
        self._outputs = {NEXT + name: (name, shape) for name, shape in _shapes(steps).items()}

    def start(self, inputs: NDArray[np.generic]) -> TrainState:
        """Where the lab ended: the parameters that stand in the file, and an optimiser that has seen nothing.

        Args:
            inputs: `[N, ...]`, any, such as the first to be trained on: the file's numbers are got by a step of rate 0.

        Raises:
            EngineError: the engine refused. TrainingError: the file holds NaN or infinity.
        """
        states = {name: np.zeros(shape, np.float32) for name, shape in self.steps.states}
        targets = np.zeros((len(inputs), self.steps.classes), np.float32)
        found, _ = self._run(states, inputs, targets, np.zeros(len(inputs), np.float32), 0.0)
        return TrainState(self.step_digest, 0, found | states)

    def step(
        self,
        state: TrainState,
        inputs: NDArray[np.generic],
        targets: NDArray[np.floating],
        weights: NDArray[np.floating] | None = None,
        *,
        rate: float,
    ) -> tuple[TrainState, float]:
        """One step on one batch; returns the next state and the loss before it.

        Args:
            state: of this `train.onnx`.
            inputs: `[N, ...]`, what the sensor gives.
            targets: `[N, C]`, probabilities.
            weights: `[N]`, not negative; all 1 where none are given.
            rate: the learning rate; not negative.

        Raises:
            SettingError: a rate out of range. EngineError: the engine refused, as for inputs of another shape.
            TrainingError: NaN or infinity came out.
        """
        if not 0 <= rate < np.inf:
            raise SettingError(
                "a learning rate is out of range",
                where=RATE,
                expected="finite, not negative",
                got=rate,
                fix=f"{self.steps.rate:g} is what the lab found good",
            )
        counted = np.ones(len(inputs), np.float32) if weights is None else np.asarray(weights, np.float32)
        found, loss = self._run(state.values, inputs, np.asarray(targets, np.float32), counted, rate)
        return TrainState(state.step, state.done + 1, found), loss

    def _run(
        self,
        values: Mapping[str, NDArray[np.float32]],
        inputs: NDArray[np.generic],
        targets: NDArray[np.float32],
        weights: NDArray[np.float32],
        rate: float,
    ) -> tuple[dict[str, NDArray[np.float32]], float]:
        given: dict[str, NDArray[np.generic]] = {
            **values,
            self._input: inputs,
            TARGETS: targets,
            WEIGHTS: weights,
            RATE: np.array(rate, np.float32),
        }
        outputs = self._engine.run(given)
        loss = float(outputs[LOSS])
        found = {}
        for output, (name, shape) in self._outputs.items():
            found[name] = np.asarray(outputs[output], np.float32).reshape(shape)
        if not np.isfinite(loss) or not all(np.isfinite(one).all() for one in found.values()):
            raise TrainingError(
                "a training step gave NaN or infinity",
                where="train.onnx",
                expected="finite numbers",
                got=f"loss {loss:g} at learning rate {rate:g}",
                fix="begin again from the bundle with a smaller learning rate, and look at the inputs",
            )
        return found, loss


def _shapes(steps: StepFile) -> dict[str, tuple[int, ...]]:
    """Of every parameter and state."""
    return {one.name: one.shape for one in steps.tensors} | dict(steps.states)


def _refused(expected: object, got: object) -> OverlayError:
    return OverlayError("a training state that cannot be used", where=_WHERE, expected=expected, got=got)
