"""What can be served: a function from a batch to rows, with the names, datatypes and shapes of both.

- `of_engine` serves what an engine gives under one name, such as a teacher's `logits`.
- `of_predict` serves a student, a cascade or a gateway: `probabilities` `[N, C]` and `confidence` `[N]`, and `features`
  `[N, D]` where they are asked for by name. Who decided, and the teacher's weight, are told beside the rows.
- What a model gives is checked before anybody gets it: a row for every input, finite numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, cast, final

import numpy as np

from edgestill.core.errors import AnswerNotFiniteError, EngineError, ModelError, SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from edgestill.core.protocols import Predict
    from edgestill.infer.engines import AnyEngine

LOGITS: Final = "logits"
PROBABILITIES: Final = "probabilities"
CONFIDENCE: Final = "confidence"
FEATURES: Final = "features"

_NAME: Final = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}"

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An input or output.

    Attributes:
        name: as clients write it.
        datatype: of the Open Inference Protocol.
        shape: the batch first; None where a dimension is free.
        labels: names of the last dimension's places; empty where they have none.
        by_name: whether it is sent only where it is asked for by its name.
    """

    name: str
    datatype: str
    shape: Shape
    labels: tuple[str, ...] = ()
    by_name: bool = False


@final
@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What a model says about N inputs.

    Attributes:
        outputs: by name, each `[N, ...]`.
        told: by name, N values beside the outputs.
    """

    outputs: Mapping[str, NDArray[np.generic]]
    told: Mapping[str, tuple[str | float, ...]] = field(default_factory=dict)

    def cut(self, start: int, stop: int) -> Rows:
        """The rows from `start` to before `stop`."""
        return Rows(
            {name: rows[start:stop] for name, rows in self.outputs.items()},
            {name: values[start:stop] for name, values in self.told.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model with a name.

    Attributes:
        name: in the path.
        version: in the path too, where a client wants to be sure.
        platform: what runs it, as the protocol's metadata say it.
        input: the only one; its first dimension is free.
        outputs: at least one.
        run: answers a batch that was checked against `input`.
        heeds_deadlines: whether an answer may depend on the deadline; a question with one is then not joined to others.
        close: is called when nobody asks any more.
    """

    name: str
    version: str
    platform: str
    input: Port
    outputs: tuple[Port, ...]
    run: Callable[[NDArray[np.generic], float | None], Rows]
    heeds_deadlines: bool = False
    close: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        if re.fullmatch(_NAME, self.name) is None:
            raise SettingError(
                "a name that no path can hold",
                where="name",
                expected="1 to 100 of the letters A-Z, a-z, 0-9, `.`, `_` and `-`, the first no point",
                got=repr(self.name)[:80],
                fix="choose another name for the model",
            )
        if not self.input.shape or self.input.shape[0] is not None:
            raise ModelError(
                f"a {self.name} needs a free batch",
                where=self.name,
                expected="an input of shape [N, ...] with N free",
                got=list(self.input.shape),
                fix="export it with a free first dimension",
            )


def of_engine(
    engine: AnyEngine, *, name: str, version: str, output: str = LOGITS, platform: str = "onnxruntime_onnx"
) -> Served:
    """An engine whose one output is served.

    Raises:
        ModelError: not exactly one input with a free first dimension, or no such output.
    """
    shapes = [shape for _, shape in engine.inputs.values()]
    if len(shapes) != 1 or not shapes[0] or shapes[0][0] is not None:
        raise ModelError(
            f"a {name} needs one input",
            expected="shape [N, ...] with N free",
            got=shapes,
            where=name,
            fix="export it with one input and a free batch",
        )
    if output not in engine.outputs:
        raise ModelError(
            f"a {name} needs {output}",
            expected=f"an output {output}",
            got=list(engine.outputs),
            where=name,
            fix=f"name its output {output}",
        )
    ((taken, (datatype, shape)),) = engine.inputs.items()
    _, given = engine.outputs[output]

    def run(batch: NDArray[np.generic], _: float | None) -> Rows:
        found = engine.run({taken: batch})[output].astype(np.float32, copy=False)
        return Rows({output: _checked(found, len(batch), of=name, what=output, rank=2)})

    return Served(
        name=name,
        version=version,
        platform=platform,
        input=Port(name=taken, datatype=datatype, shape=shape),
        outputs=(Port(name=output, datatype="FP32", shape=given),),
        run=run,
    )


def of_predict(
    predict: Predict,
    *,
    name: str,
    version: str,
    takes: tuple[str, str, Shape],
    labels: tuple[str, ...],
    features: int | None = None,
    platform: str = "edgestill",
    alone: bool = False,
    close: Callable[[], None] = lambda: None,
) -> Served:
    """A student, a cascade or a gateway.

    Args:
        predict: answers.
        name: in the path.
        version: in the path.
        takes: name, datatype and shape of the input.
        labels: of the C classes.
        features: D, where the model gives features; None where it gives none, or nobody shall have them.
        platform: what runs it.
        alone: whether it is one model that asks nobody: its answers do not tell who decided. It may be somebody's teacher.
        close: lets go of what `predict` holds.

    Raises:
        ModelError: the first dimension is not free.
    """

    def run(batch: NDArray[np.generic], deadline: float | None) -> Rows:
        answer, n = predict.predict(batch, deadline=deadline), len(batch)
        outputs: dict[str, NDArray[np.generic]] = {
            PROBABILITIES: _checked(answer.probabilities, n, of=name, what=PROBABILITIES, rank=2),
            CONFIDENCE: _checked(answer.confidence, n, of=name, what=CONFIDENCE, rank=1),
        }
        if features is not None and answer.features is not None:
            outputs[FEATURES] = _checked(answer.features, n, of=name, what=FEATURES, rank=2)
        if alone:
            return Rows(outputs)
        told: dict[str, tuple[str | float, ...]] = {"decided_by": answer.decided_by}
        if answer.alpha is not None:
            told["alpha"] = tuple(answer.alpha.tolist())
        if answer.tiers:
            told["tiers"] = (",".join(answer.tiers),) * n
        return Rows(outputs, told)

    taken, datatype, shape = takes
    outputs = [
        Port(name=PROBABILITIES, datatype="FP32", shape=(None, len(labels)), labels=labels),
        Port(name=CONFIDENCE, datatype="FP32", shape=(None,)),
    ]
    if features is not None:
        outputs.append(Port(name=FEATURES, datatype="FP32", shape=(None, features), by_name=True))
    return Served(
        name=name,
        version=version,
        platform=platform,
        input=Port(name=taken, datatype=datatype, shape=shape),
        outputs=tuple(outputs),
        run=run,
        heeds_deadlines=True,
        close=close,
    )


def _checked(rows: NDArray[np.float32], count: int, *, of: str, what: str, rank: int) -> NDArray[np.generic]:
    if rows.ndim != rank or len(rows) != count:
        raise EngineError(
            f"the {of} gave no {what}",
            expected=f"[{count}{', C' if rank == 2 else ''}]",
            got=list(rows.shape),
            where=of,
            fix=f"look at the {of}: it must answer with one row for each input",
        )
    if not np.isfinite(rows).all():
        raise AnswerNotFiniteError(
            f"the answer of the {of} is not finite",
            expected="finite numbers",
            got="NaN or infinity",
            where=what,
        )
    return cast("NDArray[np.generic]", rows)
