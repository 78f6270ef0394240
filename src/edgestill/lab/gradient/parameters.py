"""Which numbers of a network may learn: those that stand where an operator has its weights.

Numbers that stand elsewhere, such as the means of the sensor's readings, are no parameters, whatever their type.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Literal, final

import onnx_ir as ir

from edgestill.core.errors import ModelError, SettingError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy as np
    from numpy.typing import NDArray

Role = Literal["weight", "bias", "scale", "shift", "slope"]

_PLACES: Final[dict[str, dict[int, Role]]] = {
    "Conv": {1: "weight", 2: "bias"},
    "Gemm": {0: "weight", 1: "weight", 2: "bias"},
    "MatMul": {0: "weight", 1: "weight"},
    "Gather": {0: "weight"},
    "BatchNormalization": {1: "scale", 2: "shift"},
    "LayerNormalization": {1: "scale", 2: "shift"},
    "PRelu": {1: "slope"},
}
_AFTER: Final[dict[str, dict[str, Role]]] = {
    "Add": {
        "Conv": "bias",
        "Gemm": "bias",
        "MatMul": "bias",
        "InstanceNormalization": "shift",
        "Mul": "shift",
    },
    "Mul": {"InstanceNormalization": "scale"},
}
"""What constants are that are added to, or multiplied with, what an operator gives."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Parameter:
    """One tensor that may learn.

    Attributes:
        name: as the file has it.
        role: what it is there for.
        layer: the first node that reads it.
        value: the tensor in the graph.
    """

    name: str
    role: Role
    layer: ir.Node
    value: ir.Value

    @property
    def numbers(self) -> NDArray[np.float32]:
        """As they stand in the file."""
        assert self.value.const_value is not None
        found: NDArray[np.float32] = self.value.const_value.numpy()
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return tuple(self.numbers.shape)


def parameters_of(
    graph: ir.Graph, *, named: Collection[str] = (), fixed: Collection[str] = ()
) -> list[Parameter]:
    """All of them, in the order in which the graph reads them; one that several nodes read is there once.

    Args:
        graph: of the model.
        named: further names that are known to be parameters, such as positions that are added to an embedding.
        fixed: names that are known to be none, such as a network's buffers.
    """
    found: dict[ir.Value, Parameter] = {}
    for node in graph:
        places = _places(node)
        for at, value in enumerate(node.inputs):
            if value is None or value in found or value.name in fixed or not _may_learn(graph, value):
                continue
            if at in places or value.name in named:
                found[value] = Parameter(str(value.name), places.get(at, "weight"), node, value)
    return list(found.values())


def _places(node: ir.Node) -> dict[int, Role]:
    if node.op_type not in _AFTER:
        return _PLACES.get(node.op_type, {})
    made = [_maker(value) for value in node.inputs]
    return {
        at: role
        for at in (0, 1)
        if (role := _AFTER[node.op_type].get(made[1 - at])) and (role != "bias" or _is_a_row(node.inputs[at]))
    }


def _is_a_row(value: ir.Value | None) -> bool:
    """Whether a constant differs along one axis alone: a bias does, a mask does not."""
    numbers = None if value is None or value.const_value is None else value.const_value.numpy()
    return numbers is not None and sum(dim > 1 for dim in numbers.shape) <= 1


def _maker(value: ir.Value | None) -> str:
    """What a value comes from, through changes of its shape alone. Of a product, only where it scales a normalisation."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type == "Reshape":
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    if node is None or (node.op_type == "Mul" and not _places(node)):
        return ""
    return node.op_type


def _may_learn(graph: ir.Graph, value: ir.Value) -> bool:
    return (
        str(value.name) in graph.initializers
        and not value.is_graph_input()
        and value.const_value is not None
        and value.const_value.dtype == ir.DataType.FLOAT
    )


def chosen(parameters: Sequence[Parameter], wanted: str) -> list[Parameter]:
    """Those that a choice names.

    Args:
        parameters: of the network, in its order.
        wanted: `all`; `head`, the last layer; `biases`, everything but weights (Cai et al. 2020, TinyTL) and the head; `last=N`, the
            last N layers; or names with wildcards, with commas between.

    Raises:
        ModelError: nothing may learn at all. SettingError: it names nothing.
    """
    if not parameters:
        raise ModelError(
            "a network without parameters",
            where="model.onnx",
            expected="layers whose weights stand in the file, as float32",
            got="none",
            fix="export the network in float32, with its weights in the file",
        )
    found = _chosen(parameters, wanted.strip())
    if not found:
        raise SettingError(
            "a choice of parameters that names none",
            where="trainable",
            expected=f"all, head, biases, last=N, or names such as {parameters[0].name}",
            got=wanted,
            fix="choose by the names that this model has: " + ", ".join(one.name for one in parameters[:8]),
        )
    return found


def _chosen(parameters: Sequence[Parameter], wanted: str) -> list[Parameter]:
    if wanted == "all":
        return list(parameters)
    if wanted == "biases":
        head = _last(parameters, 1)
        return [one for one in parameters if one.role != "weight" or one in head]
    word, _, number = wanted.partition("=")
    if word == "head" and not number:
        return _last(parameters, 1)
    if word == "last" and number.isascii() and number.isdigit():
        return _last(parameters, int(number))
    patterns = [one.strip() for one in wanted.split(",")]
    return [one for one in parameters if any(fnmatchcase(one.name, pattern) for pattern in patterns)]


def _last(parameters: Sequence[Parameter], layers: int) -> list[Parameter]:
    """Those from the last few weights on, with what is added to or scales what these give."""
    weights = [at for at, one in enumerate(parameters) if one.role == "weight"]
    if not layers or not weights:
        return []
    return list(parameters[weights[-min(layers, len(weights))] :])
