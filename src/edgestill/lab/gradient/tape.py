"""Writing further nodes behind those of a graph: what gradients, losses and optimisers are made of.

Nothing but operators of standard ONNX is written, so that any engine of the file's opset runs the result. Shapes of the
forward values are not inferred but seen: the model runs twice, with two sizes of whatever is free, and an axis whose size
changes is free (`None`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import onnx_ir as ir

from edgestill.core.errors import ModelError
from edgestill.infer.engine import OnnxEngine
from edgestill.lab.packing.graph import inputs_for, read, values_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

Shape = tuple[int | None, ...]
_SIZES: Final = ((2, 12), (3, 20))
"""Of the first free axis and of every other one, in either run."""
_FLOW: Final = frozenset({"If", "Loop", "Scan"})


@final
@dataclass(slots=True, eq=False)
class Tape:
    """A graph that grows.

    Attributes:
        graph: the model's.
        shapes: of its forward values, by name.
        counts: names of those that are no floats, such as shapes, places and truths: no gradient goes through them.
        before: the node that new ones come before; None puts them at the end.
        of_the_batch: normalisations whose figures are those of what they normalise (`statistics`).
    """

    graph: ir.Graph
    shapes: Mapping[str, Shape]
    counts: AbstractSet[str] = frozenset()
    before: ir.Node | None = None
    of_the_batch: set[ir.Node] = field(default_factory=set)
    _constants: dict[tuple[str, Shape, bytes], ir.Value] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._taken = {str(value.name) for value in values_of(self.graph)}

    def op(self, kind: str, *inputs: ir.Value | None, name: str = "", **attributes: Any) -> ir.Value:
        """One more node with one output.

        Args:
            kind: the operator.
            inputs: of which `None` is one that is left out.
            name: of the output; by default one is made.
            attributes: as the operator has them; those that are None are left out.
        """
        (made,) = self.ops(kind, *inputs, names=(name,), **attributes)
        return made

    def ops(
        self, kind: str, *inputs: ir.Value | None, names: Sequence[str], **attributes: Any
    ) -> Sequence[ir.Value]:
        """One more node with as many outputs as names."""
        given = {key: value for key, value in attributes.items() if value is not None}
        outputs = [ir.Value(name=self.name(one or kind.lower())) for one in names]
        node = ir.node(kind, inputs, attributes=given, outputs=outputs)
        if self.before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self.before, node)
        return node.outputs

    def constant(self, numbers: Any, dtype: Any = np.float32) -> ir.Value:
        """A value that stands in the file; the same numbers stand there once."""
        array = np.asarray(numbers, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self.name("constant")
            value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def whole(self, *numbers: int) -> ir.Value:
        """A list of whole numbers, such as axes or a shape."""
        return self.constant(numbers, np.int64)

    def shape(self, value: ir.Value) -> Shape:
        """Of a forward value; an axis that may change is None."""
        return self.shapes[str(value.name)]

    def summed(self, value: ir.Value, axes: Sequence[int], *, keep: bool = False) -> ir.Value:
        """The sum over these axes."""
        return self.op("ReduceSum", value, self.whole(*axes), keepdims=int(keep)) if axes else value

    def name(self, wanted: str) -> str:
        """The name itself where it is free, or with the first number that makes it so."""
        made, number = wanted, 0
        while made in self._taken:
            number += 1
            made = f"{wanted}_{number}"
        self._taken.add(made)
        return made


def seen_values(model: bytes) -> tuple[dict[str, Shape], set[str]]:
    """The shape of every value of a model, and the names of those that are no floats.

    Raises:
        ModelError: it has loops, branches or lists of tensors. EngineError: it does not run.
    """
    for node in read(model).graph:
        if node.op_type in _FLOW or "Sequence" in node.op_type:
            raise unsupported(node, f"{node.op_type}", ["a fixed chain of operators on tensors"])
    first, second = (_seen(model, *sizes) for sizes in _SIZES)
    shapes = {
        name: tuple(a if a == b else None for a, b in zip(one.shape, second[name].shape, strict=True))
        for name, one in first.items()
    }
    return shapes, {name for name, one in first.items() if one.dtype.kind != "f"}


def _seen(model: bytes, batch: int, others: int) -> dict[str, NDArray[np.generic]]:
    """Every value, where free axes have these sizes."""
    whole = read(model)
    graph = whole.graph
    outputs = {str(value.name) for value in graph.outputs}
    for node in graph:
        graph.outputs.extend(value for value in node.outputs if value.name and value.name not in outputs)
    engine = OnnxEngine(bytes(ir.to_proto(whole).SerializeToString()))
    given = _given(model, batch, others)
    found = engine.run(given)
    found |= {
        str(value.name): value.const_value.numpy()
        for value in graph.initializers.values()
        if value.const_value is not None
    }
    return found | given


def _given(model: bytes, batch: int, others: int) -> dict[str, NDArray[np.generic]]:
    """Inputs of these sizes."""
    described = {str(value.name): tuple(value.shape or ()) for value in read(model).graph.inputs}
    given = {}
    for name, array in inputs_for(model).items():
        dims = described[name]
        shape = [dim if isinstance(dim, int) else others if at else batch for at, dim in enumerate(dims)]
        given[name] = np.resize(array, shape)
    return given


def unsupported(node: ir.Node, why: str, known: Iterable[str] = ()) -> ModelError:
    """The error of an operator that gradients cannot go through."""
    listed = ", ".join(sorted(known))
    return ModelError(
        "training cannot go through an operator",
        where=f"{node.name or 'a node without a name'} ({node.op_type})",
        expected=listed or "a form of it that has a rule (docs/training.md)",
        got=why,
        fix="train only what comes after it, or write it with operators that are known",
    )
