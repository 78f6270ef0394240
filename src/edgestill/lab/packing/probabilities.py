"""The end of a shipped graph: logits become calibrated probabilities there, so that no caller needs the mathematics.

A file then says with every answer which temperature its probabilities were made with. Who wants another one, because a later
policy brings it, still has the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from edgestill.core.errors import ModelError
from edgestill.infer.confidence import softmax
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.student import LOGITS, PROBABILITIES, TEMPERATURE
from edgestill.lab.packing.graph import constant, free_name, inputs_for, read, values_of, written
from edgestill.lab.packing.leverage import TellLeverage
from edgestill.lab.packing.passes import through

if TYPE_CHECKING:
    from edgestill.lab.packing.passes import Pass
    from edgestill.learn.leverage import Leverage

_TOLERANCE: Final = 1e-5


@final
@dataclass(frozen=True, slots=True)
class Probabilities:
    """A `Pass`: the outputs `probabilities`, `softmax(logits / temperature)` `[N, C]`, and `temperature`, `[1]`.

    A file that has them already gets another temperature, and keeps its size.

    Attributes:
        temperature: above 0; rounded to float32.
    """

    temperature: float = 1.0
    name: ClassVar[str] = "give probabilities"

    def requires(self, model: bytes) -> None:
        """Looks whether there are logits, and whether the names are free.

        Raises:
            ModelError: no output `logits`, or an output of one of the new names that means something else.
        """
        graph = read(model).graph
        names = [one.name for one in graph.outputs]
        if LOGITS not in names:
            raise _wrong("the model gives no logits", f"an output {LOGITS}", names)
        if _divisor(graph) is None and {PROBABILITIES, TEMPERATURE} & set(names):
            raise _wrong("the model has such outputs of its own", f"{LOGITS} and features", names)

    def apply(self, model: bytes) -> bytes:
        """The model with both outputs."""
        known = read(model)
        graph = known.graph
        known_divisor = _divisor(graph)
        name = free_name(graph, "temperature_value") if known_divisor is None else str(known_divisor.name)
        number = ir.tensor(np.array([self.temperature], dtype=np.float32), name=name)
        if known_divisor is not None:
            known_divisor.const_value = number
            return written(known)
        divisor = ir.Value(name=name, const_value=number)
        graph.register_initializer(divisor)
        for value in values_of(graph):  # whoever has one of the names inside makes room
            if value.name in {PROBABILITIES, TEMPERATURE}:
                value.name = free_name(graph, f"{value.name}_before")
        logits = next(one for one in graph.outputs if one.name == LOGITS)
        scaled = ir.node("Div", [logits, divisor])
        last = ir.node("Softmax", scaled.outputs, {"axis": 1})
        told = ir.node("Identity", [divisor])
        scaled.outputs[0].name = free_name(graph, f"{LOGITS}_scaled")
        for node, name, shape in ((last, PROBABILITIES, logits.shape), (told, TEMPERATURE, ir.Shape([1]))):
            made = node.outputs[0]
            made.name, made.shape, made.type = name, shape, ir.TensorType(ir.DataType.FLOAT)
            graph.outputs.append(made)
        graph.extend([scaled, last, told])
        return written(known)

    def ensures(self, before: bytes, after: bytes) -> None:
        """The other outputs are as they were, and the new ones as promised, for some inputs.

        Raises:
            ModelError: they are not.
        """
        inputs = inputs_for(before)
        was, found = OnnxEngine(before).run(inputs), OnnxEngine(after).run(inputs)
        used = np.float32(self.temperature)
        wanted = dict(was) | {
            PROBABILITIES: softmax(was[LOGITS].astype(np.float32), float(used)),
            TEMPERATURE: np.array([used]),
        }
        for name, one in wanted.items():
            if not np.allclose(found[name], one, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
                raise _wrong("the new end changed the answers", f"{name} as before it", "others")


def shippable(model: bytes, temperature: float = 1.0, reference: Leverage | None = None) -> bytes:
    """The file as it is shipped, of one that gives logits; with a reference it tells its leverage as well.

    Raises:
        ModelError: as `Probabilities` and `TellLeverage` say.
    """
    told: list[Pass] = [] if reference is None else [TellLeverage(reference)]
    return through(model, [*told, Probabilities(temperature)])


def _divisor(graph: ir.Graph) -> ir.Value | None:
    """The temperature of an end that this pass made; None where there is none."""
    outputs = {one.name: one.producer() for one in graph.outputs}
    told, last = outputs.get(TEMPERATURE), outputs.get(PROBABILITIES)
    if told is None or told.op_type != "Identity" or constant(told.inputs[0]) is None:
        return None
    scaled = (
        last.inputs[0].producer()
        if last is not None and last.op_type == "Softmax" and last.inputs[0]
        else None
    )
    ours = scaled is not None and scaled.op_type == "Div" and scaled.inputs[1] is told.inputs[0]
    return told.inputs[0] if ours else None


def _wrong(what: str, expected: str, got: object) -> ModelError:
    return ModelError(
        what,
        where="model.onnx",
        expected=expected,
        got=got,
        fix="name the outputs `logits` and `features` (docs/bundle.md)",
    )
