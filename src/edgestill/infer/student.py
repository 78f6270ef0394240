"""A student: one model on one engine, with its calibration.

- What the sensor gives is checked before the engine sees it: rank, dimensions, element type, and that floats are
  finite. A refusal says which of them.
- Probabilities are `softmax(logits / temperature)`, the temperature being the policy's. Where the model gives them itself, with
  the temperature that it used, and that is the policy's, they are taken from it; otherwise they are worked out here.
- A learned head (weight `[D, C]`, bias `[C]`) may stand in for the model's own last layer: then the logits are
  `features @ weight + bias`, and the policy must carry the temperature that was fitted for them.
- A batch of one is the common case; the path of an answer is a handful of array calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast, final

import numpy as np

from edgestill.core.answer import Answer
from edgestill.core.bundle import Bundle
from edgestill.core.clock import SystemClock
from edgestill.core.errors import (
    AnswerNotFiniteError,
    ClassCountError,
    DtypeError,
    ModelError,
    NotFiniteError,
    ShapeError,
    within,
)
from edgestill.core.manifest import MODEL, POLICY
from edgestill.core.oip import NUMPY_NAMES
from edgestill.infer.arrayfile import native
from edgestill.infer.confidence import certain_by, confidence_of, softmax
from edgestill.infer.policy import Policy

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.core.protocols import Clock, Engine

LOGITS: Final = "logits"
FEATURES: Final = "features"
PROBABILITIES: Final = "probabilities"
TEMPERATURE: Final = "temperature"
"""What the model's probabilities were made with, `[1]`."""
LEVERAGE: Final = "leverage"
"""How far the features lie from those of the training data, `[N, 1]`, not negative: for the measure of that name."""

_REBUILD: Final = "fetch or build the bundle again"

Head = tuple["NDArray[np.float32]", "NDArray[np.float32]"]
"""Weight `[D, C]` and bias `[C]`."""


@final
class Student:
    """A `Predict` that answers alone.

    Args:
        engine: runs a model with one input and an output `logits` `[N, C]`; `features` `[N, D]` if it has them, and
            `probabilities` `[N, C]` with their `temperature` `[1]`, and `leverage` `[N, 1]` where the policy measures by it.
        policy: the temperature, the measure of confidence and the labels are used.
        head: used instead of the model's logits.
        clock: for the latency in the answers.

    Raises:
        ModelError: the model has several inputs, or a head is given and the model has no features.
        ShapeError: the head's weight and bias do not fit each other.
        ClassCountError: the head and the policy's labels disagree.
    """

    def __init__(self, engine: Engine, policy: Policy, *, head: Head | None = None, clock: Clock) -> None:
        if len(engine.inputs) != 1:
            raise ModelError(
                "a student takes one input",
                where=MODEL,
                expected="one input",
                got=list(engine.inputs),
                fix="export a network of one input",
            )
        ((self._input, (datatype, shape)),) = engine.inputs.items()
        self._dtype = np.dtype(NUMPY_NAMES[datatype])
        self._shape = shape
        # what most batches are: of this shape behind the first axis, and whole numbers, which need no look at each
        self._usual = shape[1:] if self._dtype.kind not in "fc" and None not in shape[1:] else None
        self._engine = engine
        self._head = None if head is None else _checked_head(head, len(policy.labels))
        self._clock = clock
        self._temperature = float(np.float32(policy.temperature))
        self.policy = policy

    @property
    def input(self) -> tuple[str, str, tuple[int | None, ...]]:
        """Name, Open Inference Protocol datatype and shape (None where free) of what it takes."""
        return (self._input, *self._engine.inputs[self._input])

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Answer:  # noqa: ARG002  # it answers at once, or not at all
        """Answers a batch `[N, ...]`, N at least 1.

        The deadline is not looked at: there is nothing quicker to fall back to.

        Raises:
            ShapeError, DtypeError, NotFiniteError: the batch is not what the model takes.
            EngineError: the engine failed; AnswerNotFiniteError: it gave NaN or infinity.
            ModelError, ClassCountError: the model gives no logits `[N, C]` for the C labels.
        """
        start = self._clock.monotonic()
        batch = self.checked(batch)
        outputs = self._engine.run({self._input: batch})
        features = outputs.get(FEATURES)
        probabilities = self._probabilities(outputs, self._logits(outputs, len(batch)))
        return Answer(
            probabilities=probabilities,
            confidence=self._confidence(outputs, probabilities),
            decided_by=("student",) * len(batch),
            features=None if features is None else features.astype(np.float32, copy=False),
            latency=self._clock.monotonic() - start,
        )

    def checked(self, batch: NDArray[np.generic]) -> NDArray[np.generic]:
        """The batch `[N, ...]` as the engine is given it, in this machine's byte order.

        Raises:
            ShapeError, DtypeError, NotFiniteError: as `predict`.
        """
        if (
            type(batch) is np.ndarray
            and batch.shape[1:] == self._usual
            and batch.dtype == self._dtype
            and len(batch)
        ):
            return batch
        shape = self._shape
        fits = is_array(batch, self._input).ndim == len(shape) and batch.shape[0] > 0
        if not fits or any(
            want is not None and got != want for got, want in zip(batch.shape, shape, strict=True)
        ):
            raise ShapeError(
                "the batch has another shape",
                where=self._input,
                expected=_shape_text(shape),
                got=list(batch.shape),
                fix="give inputs as the sensor does, the batch first, and at least one",
            )
        batch = native(batch)
        if batch.dtype != self._dtype:
            raise DtypeError(
                "the batch has another element type",
                where=self._input,
                expected=self._dtype.name,
                got=batch.dtype.name,
                fix=f"convert it with .astype({self._dtype.name!r}) if that loses nothing",
            )
        if self._dtype.kind == "f" and not np.isfinite(cast("NDArray[np.floating]", batch)).all():
            raise NotFiniteError(
                "the batch holds NaN or infinity",
                where=self._first_bad(batch),
                expected="finite numbers",
                got=batch[~np.isfinite(cast("NDArray[np.floating]", batch))][0],
                fix="fill or drop such inputs before predicting",
            )
        return batch

    def _first_bad(self, batch: NDArray[np.generic]) -> str:
        bad = np.argwhere(~np.isfinite(cast("NDArray[np.floating]", batch)))[0]
        return f"{self._input}{[int(index) for index in bad]}"

    def _probabilities(
        self, outputs: dict[str, NDArray[np.generic]], logits: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """The model's own, where they are of these logits and this temperature."""
        given, used = outputs.get(PROBABILITIES), outputs.get(TEMPERATURE)
        if (
            self._head is None
            and given is not None
            and used is not None
            and given.shape == logits.shape
            and given.dtype == np.float32
            and used.size == 1
            and used.item() == self._temperature
        ):
            return cast("NDArray[np.float32]", given)
        return softmax(logits, self.policy.temperature)

    def _confidence(
        self, outputs: dict[str, NDArray[np.generic]], probabilities: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        measure = self.policy.measure
        if measure != "leverage":
            return confidence_of(probabilities, measure)
        given = outputs.get(LEVERAGE)
        if given is None or given.size != len(probabilities):
            raise ModelError(
                "the model does not tell its leverage",
                where=LEVERAGE,
                expected=f"[{len(probabilities)}, 1]",
                got=sorted(outputs) if given is None else list(given.shape),
                fix="pack the bundle again, or choose another measure of confidence",
            )
        return certain_by(given.astype(np.float32).reshape(-1))

    def _logits(self, outputs: dict[str, NDArray[np.generic]], n: int) -> NDArray[np.float32]:
        wanted = LOGITS if self._head is None else FEATURES
        given = outputs.get(wanted)
        if given is None or given.ndim != 2 or given.shape[0] != n:  # [N, C]
            raise ModelError(
                f"the model gives no {wanted}",
                where=wanted,
                expected=f"[{n}, ...]",
                got=sorted(outputs) if given is None else list(given.shape),
                fix="export it with the outputs `logits` and `features`, the batch first (docs/bundle.md)",
            )
        logits = given.astype(np.float32, copy=False)
        if self._head is not None:
            weight, bias = self._head
            if logits.shape[1] != weight.shape[0]:
                raise ShapeError(
                    "the head belongs to other features",
                    where=FEATURES,
                    expected=f"[{n}, {weight.shape[0]}]",
                    got=list(logits.shape),
                    fix="give the head that was learned with this bundle",
                )
            logits = logits @ weight + bias
        if logits.shape[1] != len(self.policy.labels):
            raise ClassCountError(
                "the model and the labels disagree",
                where=LOGITS,
                expected=f"{len(self.policy.labels)} classes (policy.json)",
                got=logits.shape[1],
                fix="pack the bundle again, with one label a class",
            )
        if not np.logical_and.reduce(np.isfinite(logits), axis=None):
            raise AnswerNotFiniteError(
                "the model's answer is not finite",
                where=LOGITS,
                expected="finite numbers",
                got=logits[~np.isfinite(logits)][0],
            )
        return logits


def is_array(batch: object, name: str) -> NDArray[np.generic]:
    """The batch, where it is a numpy array.

    Raises:
        DtypeError: it is a list, a tensor of another library, or anything else.
    """
    if isinstance(batch, np.ndarray | np.generic):
        return cast("NDArray[np.generic]", batch)
    raise DtypeError(
        "the batch is no numpy array",
        where=name,
        expected="numpy.ndarray",
        got=f"{type(batch).__module__}.{type(batch).__qualname__}",
        fix="convert it with numpy.asarray(batch), or a tensor with tensor.numpy(), in the type that the model takes",
    )


def load(
    path: Path | str, *, threads: int = 1, engine: str | None = None, clock: Clock | None = None
) -> Student:
    """The student of a bundle, ready to answer.

    Args:
        path: `NAME.esb`, or a bundle's folder.
        threads: that share one operator.
        engine: `onnxruntime`, `openvino` or `litert`; by default that of the bundle's hardware class.
        clock: the machine's own where none is given.

    Raises:
        PathError, BundleError, BundleTruncatedError, BundleAlteredError: as `core.bundle.Bundle`.
        MessageError, SettingError: the policy is malformed.
        ModelError, EngineError, MissingExtraError: as `infer.engine.OnnxEngine`.
    """
    from edgestill.infer.engines import engine_of

    bundle = Bundle.open(path)
    with within(f"{path}: {POLICY}", fix=_REBUILD):
        policy = Policy.from_bytes(bundle.read(POLICY))
    with within(f"{path}: {MODEL}", fix=_REBUILD):
        made = engine_of(bundle.read(MODEL), engine or bundle.manifest.hardware_class, threads=threads)
        return Student(made, policy, clock=clock or SystemClock())


def _checked_head(head: Head, classes: int) -> Head:
    weight, bias = (np.ascontiguousarray(part, dtype=np.float32) for part in head)
    if weight.ndim != 2 or bias.shape != weight.shape[1:]:  # [D, C]
        raise ShapeError(
            "a head's parts do not fit",
            where="head",
            expected="weight [D, C] and bias [C]",
            got=f"{list(weight.shape)} and {list(bias.shape)}",
            fix="learn the head again with this bundle",
        )
    if len(bias) != classes:
        raise ClassCountError(
            "the head and the labels disagree",
            where="head",
            expected=f"{classes} classes (policy.json)",
            got=len(bias),
            fix="learn the head again with this bundle",
        )
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise NotFiniteError(
            "a head holds NaN or infinity",
            where="head",
            expected="finite numbers",
            got="NaN or infinity",
            fix="learn the head again with this bundle",
        )
    return weight, bias


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("N" if dim is None else str(dim) for dim in shape) + "]"
