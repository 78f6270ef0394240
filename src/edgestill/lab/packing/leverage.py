"""The model tells how far an input lies from what its student was shown: the measure of confidence `leverage`.

It needs the inverse factor of the reference statistics, (D + 1)^2 numbers, which go into the graph; so the pass is only
taken where that measure was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from edgestill.core.errors import ModelError
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.student import FEATURES, LEVERAGE
from edgestill.lab.packing.graph import free_name, inputs_for, read, values_of, written
from edgestill.learn.leverage import Leverage
from edgestill.learn.statistics import usual_ridge

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.learn.statistics import Statistics

_TOLERANCE: Final = 1e-3
_NODES: Final = 420
"""Bytes of the graph's part beside the matrix."""
_SHARE: Final = 20


def room_for(width: int, size: int) -> int:
    """Bytes that telling it adds to a file; 0 where its matrix would be more than a twentieth of the file, and it is not told.

    Args:
        width: features.
        size: bytes of the file without it.
    """
    matrix = 4 * (width + 1) ** 2
    return matrix + _NODES if matrix <= size // _SHARE else 0


def relative_leverage(reference: Statistics) -> Leverage:
    """The leverage in units of what the reference samples have in the mean, as `TellLeverage` puts it into the graph.

    Raises:
        EvidenceError: as `learn.leverage.Leverage.fit`.
    """
    fitted = Leverage.fit(reference, usual_ridge(reference))
    return Leverage(fitted.factor / np.sqrt(max(fitted.typical, 1e-12)), 1.0)


@final
@dataclass(frozen=True, slots=True, eq=False)
class TellLeverage:
    """A `Pass`: the output `leverage` `[N, 1]`, 1 in the mean of the reference samples, not negative.

    Attributes:
        reference: of `relative_leverage`.
    """

    reference: Leverage
    name: ClassVar[str] = "tell leverage"

    def requires(self, model: bytes) -> None:
        """Looks whether there are features of the reference's width, and whether the name is free.

        Raises:
            ModelError: there are none, or an output of that name.
        """
        graph = read(model).graph
        outputs = {one.name: one for one in graph.outputs}
        width = len(self.reference.factor) - 1
        shape = None if FEATURES not in outputs else outputs[FEATURES].shape
        if shape is None or len(shape) != 2 or shape[1] != width:
            raise _wrong("the model has no such features", f"{FEATURES} [N, {width}]", shape)
        if LEVERAGE in outputs:
            raise _wrong(
                "the model has such an output already", "no output leverage", sorted(map(str, outputs))
            )

    def apply(self, model: bytes) -> bytes:
        """The model with the output."""
        known = read(model)
        graph = known.graph
        for value in values_of(graph):
            if value.name == LEVERAGE:
                value.name = free_name(graph, f"{LEVERAGE}_before")
        features = next(one for one in graph.outputs if one.name == FEATURES)
        factor = self.reference.factor.astype(np.float32)
        matrix, shift, ones = (
            _constant(graph, name, numbers)
            for name, numbers in (
                ("leverage_factor", np.ascontiguousarray(factor[:, :-1].T)),
                ("leverage_shift", factor[:, -1]),
                ("leverage_ones", np.ones((len(factor), 1), np.float32)),
            )
        )
        turned = ir.node("MatMul", [features, matrix])
        moved = ir.node("Add", [turned.outputs[0], shift])
        squared = ir.node("Mul", [moved.outputs[0], moved.outputs[0]])
        summed = ir.node("MatMul", [squared.outputs[0], ones])
        for node, name in ((turned, "turned"), (moved, "moved"), (squared, "squared")):
            node.outputs[0].name = free_name(graph, f"leverage_{name}")
        made, batch = summed.outputs[0], features.shape[0] if features.shape is not None else None
        made.name, made.shape, made.type = LEVERAGE, ir.Shape([batch, 1]), ir.TensorType(ir.DataType.FLOAT)
        graph.extend([turned, moved, squared, summed])
        graph.outputs.append(made)
        return written(known)

    def ensures(self, before: bytes, after: bytes) -> None:
        """The other outputs are as they were, and the new one is the leverage of the features, for some inputs.

        Raises:
            ModelError: they are not.
        """
        inputs = inputs_for(before)
        was, found = OnnxEngine(before).run(inputs), OnnxEngine(after).run(inputs)
        wanted = dict(was) | {LEVERAGE: self.reference.of(was[FEATURES].astype(np.float32))[:, None]}
        for name, one in wanted.items():
            if not np.allclose(found[name], one, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
                raise _wrong(
                    "the new output changed the answers, or is another", f"{name} as before", "others"
                )


def _constant(graph: ir.Graph, name: str, numbers: NDArray[np.float32]) -> ir.Value:
    free = free_name(graph, name)
    value = ir.Value(name=free, const_value=ir.tensor(numbers, name=free))
    graph.register_initializer(value)
    return value


def _wrong(what: str, expected: str, got: object) -> ModelError:
    return ModelError(
        what, where="model.onnx", expected=expected, got=got, fix="choose another measure of confidence"
    )
