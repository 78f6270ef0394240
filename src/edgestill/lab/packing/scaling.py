"""What a network does to the sensor's numbers before its first layer, as few operations as it takes.

Networks normalise their own input, and a chain of elementwise operations on the whole input costs a small student as much
as one of its layers, above all in the sensor's layout, where a figure for each channel meets every third number. Whatever the chain, it
is `(x - centre) * scale` for each channel, so `MergeScaling` writes it as that, after a transposition that moves the
sensor's bytes rather than floats.

The centre is subtracted first, as it was when the network was trained: `x * scale + shift` would lose the last digits of
readings that are large beside their spread, such as an air pressure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, final

import numpy as np
import onnx_ir as ir

from edgestill.core.errors import ModelError
from edgestill.infer.engine import OnnxEngine
from edgestill.lab.packing.graph import constant, inputs_for, read, written

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ARITHMETIC: Final = frozenset({"Add", "Sub", "Mul", "Div"})
_TOLERANCE: Final = 1e-3
"""Of the largest output; the two ways round differently."""


@final
class MergeScaling:
    """A `Pass`: the elementwise operations on each input become one subtraction and one multiplication."""

    name: Final = "merge the scaling of inputs"

    def requires(self, model: bytes) -> None:
        """Nothing: a model without such operations stays as it is."""

    def apply(self, model: bytes) -> bytes:
        """The model with each input's chain merged."""
        known = read(model)
        changed = [_merge(known.graph, taken) for taken in known.graph.inputs if taken.dtype is not None]
        return written(known) if any(changed) else model

    def ensures(self, before: bytes, after: bytes) -> None:
        """Both give the same for some inputs.

        Raises:
            ModelError: they do not.
        """
        if before == after:
            return
        inputs = inputs_for(before)
        ours, theirs = OnnxEngine(after).run(inputs), OnnxEngine(before).run(inputs)
        for name, wanted in theirs.items():
            room = _TOLERANCE * float(np.abs(wanted[np.isfinite(wanted)]).max(initial=1.0))
            if not np.allclose(ours[name], wanted, rtol=0, atol=room, equal_nan=True):
                raise ModelError(
                    "merging changed the answers",
                    where=name,
                    expected=f"within {room:.2g}",
                    got=f"{np.abs(np.subtract(ours[name], wanted, dtype=np.float64)).max():.2g}",
                    fix="report it, with the model",
                )


@dataclass(slots=True)
class _Chain:
    """What has been read so far: `(x - centre) * scale`, both in the layout of the newest value."""

    value: ir.Value
    scale: NDArray[np.float64]
    centre: NDArray[np.float64]
    perm: list[int]
    cast: bool = False
    arithmetic: int = 0
    nodes: list[ir.Node] = field(default_factory=list)

    def take(self, node: ir.Node) -> bool:
        """Whether the node goes on with the chain; then it is part of it."""
        known = {"Cast": self._take_cast, "Transpose": self._take_transpose}.get(node.op_type)
        if known is None:
            known = self._take_arithmetic if node.op_type in _ARITHMETIC else None
        if node.domain not in {"", "ai.onnx"} or known is None or not known(node):
            return False
        self.value = node.outputs[0]
        self.nodes.append(node)
        return True

    def _take_cast(self, node: ir.Node) -> bool:
        wide = node.attributes["to"].as_int() == ir.DataType.FLOAT
        self.cast = self.cast or wide
        return wide

    def _take_transpose(self, node: ir.Node) -> bool:
        given = node.attributes.get("perm")
        order = given.as_ints() if given is not None else range(len(self.perm))[::-1]
        self.perm = [self.perm[axis] for axis in order]
        self.scale, self.centre = (np.transpose(one, order) for one in (self.scale, self.centre))
        return True

    def _take_arithmetic(self, node: ir.Node) -> bool:
        one, other = node.inputs
        swapped = other is self.value
        if swapped and node.op_type not in {"Add", "Mul"}:
            return False
        number = _number(one if swapped else other, len(self.perm))
        if number is None or not np.isfinite(number).all():
            return False
        if node.op_type in {"Mul", "Div"}:
            if not (number != 0).all():
                return False
            self.scale = self.scale * number if node.op_type == "Mul" else self.scale / number
        else:
            shift: NDArray[np.float64] = number / self.scale
            self.centre = self.centre + (shift if node.op_type == "Sub" else -shift)
        self.arithmetic += 1
        return True


def _merge(graph: ir.Graph, taken: ir.Value) -> bool:
    """Whether the input has a chain that is worth merging; then it has been."""
    rank = None if taken.shape is None else len(taken.shape)
    if not rank:
        return False
    one = np.ones((1,) * rank)
    chain = _Chain(taken, scale=one, centre=np.zeros_like(one), perm=list(range(rank)))
    while (following := _only_user(chain.value)) is not None and chain.take(following):
        pass
    moved = chain.perm != sorted(chain.perm)
    floats = chain.cast or taken.dtype == ir.DataType.FLOAT
    if not floats or not chain.arithmetic or (chain.arithmetic == 1 and not moved):
        return False
    nodes = _written(graph, chain, taken)
    graph.insert_before(chain.nodes[0], nodes)
    last = nodes[-1].outputs[0] if nodes else taken  # steps that undo each other leave nothing
    ir.convenience.replace_all_uses_with(chain.value, last)
    graph.remove(chain.nodes[::-1], safe=True)
    return True


def _written(graph: ir.Graph, chain: _Chain, taken: ir.Value) -> list[ir.Node]:
    """The operations that stand for the chain."""
    nodes: list[ir.Node] = []
    taken_names = _names(graph)

    def add(kind: str, *inputs: ir.Value, **attributes: int | list[int]) -> None:
        name = _fresh(f"{taken.name}_{kind.lower()}", taken_names)
        node = ir.node(kind, [nodes[-1].outputs[0] if nodes else taken, *inputs], attributes, name=name)
        node.outputs[0].name = name
        nodes.append(node)

    if chain.perm != sorted(chain.perm):
        add("Transpose", perm=chain.perm)
    if chain.cast:
        add("Cast", to=ir.DataType.FLOAT)
    for kind, number, idle in (("Sub", chain.centre, 0.0), ("Mul", chain.scale, 1.0)):
        if (number != idle).any():
            narrow = number.reshape(-1)[0] if (number == number.flat[0]).all() else number
            name = _fresh(f"{taken.name}_{kind.lower()}_by", taken_names)
            add(kind, _initializer(graph, name, narrow))
    return nodes


def _names(graph: ir.Graph) -> set[str]:
    values = [*graph.inputs, *(value for node in graph.all_nodes() for value in node.outputs)]
    return {str(one.name) for one in values} | set(graph.initializers)


def _fresh(name: str, taken: set[str]) -> str:
    """The name, with as many underscores as nobody else has; from now on taken."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _only_user(value: ir.Value) -> ir.Node | None:
    uses = value.uses()
    return None if len(uses) != 1 or value.is_graph_output() else next(iter(uses)).node


def _number(value: ir.Value | None, rank: int) -> NDArray[np.float64] | None:
    """The number or numbers that stand in the file, with as many axes as the input; None where there are none."""
    found = constant(value)
    if found is None or found.ndim > rank or found.dtype.kind != "f":
        return None
    shape = (1,) * (rank - found.ndim) + found.shape
    wide: NDArray[np.float64] = found.astype(np.float64).reshape(shape)
    return wide


def _initializer(graph: ir.Graph, name: str, number: NDArray[np.float64] | np.float64) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(np.asarray(number, dtype=np.float32), name=name))
    graph.register_initializer(value)
    return value
