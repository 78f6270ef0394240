"""What a training step is looked at for, before it is made and after: nothing that was to learn is passed over, and the file runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from edgestill.core.digest import Digest
from edgestill.core.errors import ModelError
from edgestill.infer.engine import OnnxEngine
from edgestill.lab.gradient.rules import RULES
from edgestill.lab.gradient.tape import unsupported
from edgestill.lab.packing.graph import constant, free_name, inputs_for, values_of
from edgestill.learn.stepfile import COUNT, NEXT, StepFile
from edgestill.learn.trainer import LOSS, RATE, TARGETS, WEIGHTS, Trainer

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from edgestill.lab.gradient.parameters import Parameter

_FIGURES: Final = (3, 4)
"""Inputs of a batch normalisation: mean and variance."""
_QUIET: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "Constant"})
_OWN: Final = frozenset({TARGETS, WEIGHTS, RATE, COUNT, LOSS})


def part_figures(graph: ir.Graph) -> None:
    """Gives every batch normalisation figures of its own: an export joins tensors that are equal, such as a scale and a variance of ones."""
    seen: set[ir.Value] = {
        value
        for node in graph
        for at, value in enumerate(node.inputs)
        if value is not None and not (node.op_type == "BatchNormalization" and at in _FIGURES)
    }
    for node in graph:
        if node.op_type != "BatchNormalization":
            continue
        for at in _FIGURES:
            value = node.inputs[at]
            if value is None or value.const_value is None:
                continue
            if value in seen:
                name = free_name(graph, f"{value.name}_of_its_own")
                value = ir.Value(name=name, const_value=ir.Tensor(value.const_value.numpy(), name=name))
                graph.register_initializer(value)
                node.replace_input_with(at, value)
            seen.add(value)


def check_learning(
    graph: ir.Graph, learning: Sequence[Parameter], fixed: Collection[str], *, everything: bool
) -> None:
    """Nothing that was to learn is passed over in silence, or learns twice."""
    if everything:
        known = {one.value for one in learning}
        for node in graph:
            if node.op_type in RULES or node.op_type in _QUIET:
                continue
            _check_weights_of(node, known, fixed)
    tensors = {one.name: one.numbers for one in learning}
    for name, mine in tensors.items():
        if not np.isfinite(mine).all():
            raise ModelError(
                "a parameter that is no number",
                where=name,
                expected="finite numbers",
                got="NaN or infinity",
                fix="leave it out of what is trainable, or name it as fixed",
            )
        for other, theirs in tensors.items():
            twins = name < other and mine.ndim == theirs.ndim == 2  # matrices
            if twins and mine.std() and np.array_equal(mine, theirs.T):
                raise ModelError(
                    "weights that were tied have come apart",
                    where=f"{name}, {other}",
                    expected="one tensor that both layers read",
                    got="two, of which one is the other transposed: each would learn by itself",
                    fix="train only one of them, by name, or untie them in the lab",
                )


def _check_weights_of(node: ir.Node, known: Collection[ir.Value], fixed: Collection[str]) -> None:
    """An operator without a rule, such as a recurrent layer, may have no weights that were to learn."""
    for value in node.inputs:
        numbers = constant(value)
        matrix = numbers is not None and numbers.dtype.kind == "f" and numbers.ndim > 1
        if matrix and value is not None and value not in known and value.name not in fixed:
            raise unsupported(node, f"{value.name}, weights of {node.op_type}", RULES)


def check_names(graph: ir.Graph, learning: Sequence[Parameter]) -> None:
    """Makes room for the names of the step's own inputs and outputs; ModelError where an input or a parameter has one of them."""
    for value in values_of(graph):  # whoever has one of the names inside makes room
        inner = value.producer() is not None and not value.is_graph_output()
        if inner and (value.name in _OWN or str(value.name).startswith(NEXT)):
            value.name = free_name(graph, f"{value.name}_inside")
    taken = {str(value.name) for value in graph.inputs} | {one.name for one in learning}
    clash = sorted(taken & _OWN) + sorted(name for name in taken if name.startswith(f"{NEXT}"))
    if clash:
        raise ModelError(
            "a name that the training step needs itself",
            where="model.onnx",
            expected=f"no input or parameter named {', '.join(sorted(_OWN))} or {NEXT}*",
            got=clash[0],
            fix="rename it and export again",
        )


def check_runs(step: bytes, file: StepFile, model: bytes, learning: Sequence[Parameter]) -> None:
    """The file loads, runs, and gives back what it begins with; its description is one that a device takes."""
    StepFile.from_bytes(file.to_bytes())
    trainer = Trainer(OnnxEngine(step), file, step=Digest.of(step))
    ((_, inputs),) = inputs_for(model).items()
    state = trainer.start(inputs)
    for one in learning:
        if not np.array_equal(state.values[one.name], one.numbers):
            raise ModelError(
                "a training step that does not give back what it begins with",
                where=one.name,
                expected="the file's own numbers",
                got="others",
                fix="report it, with the model",
            )
