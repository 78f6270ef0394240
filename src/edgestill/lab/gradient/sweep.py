"""Reverse mode: from the gradient of one value to those of all that it was computed from (Linnainmaa 1976).

Each operator has a rule (`rules`): given the gradients of a node's outputs, it writes those of its inputs. The sweep visits the nodes
from the last to the first, adds up what several readers of one value contribute, and looks only at nodes between what is wanted and
what is differentiated: what lies before the first trainable parameter costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from edgestill.lab.gradient.tape import unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    import onnx_ir as ir

    from edgestill.lab.gradient.tape import Shape, Tape


@final
@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A node, and what is known about it when its turn has come.

    Attributes:
        tape: to write on.
        node: of the forward graph.
        grads: of its outputs; None where nothing depends on one.
        wanted: of each input, whether anybody asks for its gradient.
    """

    tape: Tape
    node: ir.Node
    grads: tuple[ir.Value | None, ...]
    wanted: tuple[bool, ...]

    @property
    def grad(self) -> ir.Value:
        """Of the only output."""
        (grad, *_) = self.grads
        assert grad is not None
        return grad

    @property
    def y(self) -> ir.Value:
        """The first output."""
        return self.node.outputs[0]

    def x(self, at: int = 0) -> ir.Value:
        """An input that is there."""
        found = self.node.inputs[at]
        assert found is not None
        return found

    def shape(self, at: int = 0) -> Shape:
        """Of an input."""
        return self.tape.shape(self.x(at))

    def number(self, name: str, usual: float) -> float:
        """An attribute that is one number."""
        found = self.node.attributes.get(name)
        return usual if found is None else found.value

    def whole(self, name: str, usual: int) -> int:
        """An attribute that is one whole number."""
        return int(self.number(name, usual))

    def numbers(self, name: str, usual: Sequence[int]) -> list[int]:
        """An attribute that is a list of whole numbers."""
        found = self.node.attributes.get(name)
        return [int(one) for one in (usual if found is None else found.value)]

    def text(self, name: str, usual: str) -> str:
        """An attribute that is a word."""
        found = self.node.attributes.get(name)
        return usual if found is None else str(found.value)


def gradients(
    tape: Tape,
    of: ir.Value,
    wanted: Iterable[ir.Value],
    *,
    seed: ir.Value,
    rules: Mapping[str, Callable[[Site], Sequence[ir.Value | None]]],
) -> dict[ir.Value, ir.Value]:
    """The gradients of one value by others.

    Args:
        tape: of the graph; gradients are written behind what is there.
        of: what is differentiated.
        wanted: by what.
        seed: the gradient of `of`, which is 1 unless it stands for more.
        rules: by operator.

    Returns:
        For each wanted value that `of` depends on, the value that holds its gradient, of the same shape.

    Raises:
        ModelError: an operator without a rule on the way; `where` names the node.
    """
    wanted = list(wanted)
    nodes = list(tape.graph)
    depends = _depending(nodes, wanted, tape.counts)
    parts: dict[ir.Value, list[ir.Value]] = {of: [seed]}
    for node in reversed(nodes):
        asked = tuple(value in depends for value in node.inputs)
        if not any(asked) or not any(value in parts for value in node.outputs):
            continue
        if node.op_type not in rules or node.domain not in {"", "ai.onnx"}:
            raise unsupported(node, f"no rule for {node.op_type}", rules)
        grads = tuple(_added(tape, parts.pop(value, [])) for value in node.outputs)
        made = rules[node.op_type](Site(tape, node, grads, asked))
        for at, (value, is_asked, grad) in enumerate(zip(node.inputs, asked, made, strict=False)):
            if value is None or not is_asked:
                continue
            if grad is not None:
                parts.setdefault(value, []).append(grad)
            elif node not in tape.of_the_batch:
                raise unsupported(node, f"a gradient of its input {at}", ["what a rule says of it"])
    found = {value: _added(tape, parts[value]) for value in wanted if value in parts}
    return {value: grad for value, grad in found.items() if grad is not None}


def _depending(
    nodes: Iterable[ir.Node], wanted: Iterable[ir.Value], counts: AbstractSet[str]
) -> set[ir.Value]:
    """All floats that are computed from what is wanted, itself among it."""
    depends = set(wanted)
    for node in nodes:
        if any(value in depends for value in node.inputs):
            depends.update(value for value in node.outputs if value.name not in counts)
    return depends


def _added(tape: Tape, parts: Sequence[ir.Value]) -> ir.Value | None:
    if not parts:
        return None
    if len(parts) == 1:
        return parts[0]
    return tape.op("Sum", *parts)
