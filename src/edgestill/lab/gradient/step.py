"""`train.onnx`: one training step as an ordinary inference graph.

    inputs     what the model takes; `targets` [N, C]; `weights` [N]; `learning_rate` []; each parameter, under its own name; each
               state of the optimiser, as `SLOT.PARAMETER`; `step` [] where the optimiser counts
    outputs    `loss` []; for each parameter and state, `next.NAME`

- The gradients are those of the file that the device runs, before int8: what an export folds into weights is folded here too,
  so that what was learned can be rounded onto the grid of the int8 file, weight by weight.
- Parameters stand in the file as the defaults of their inputs: whoever gives none trains from where the lab ended. A step with
  learning rate 0 gives them back.
- The loss is the mean over the batch of `weights * cross entropy(targets, softmax(logits))`; targets are probabilities, such as a
  teacher's, or labels as ones and zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, final, get_args

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, version_converter
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import (
    IdentityEliminationPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
)

from edgestill.core.errors import ModelError, SettingError
from edgestill.lab.gradient.checking import check_learning, check_names, check_runs, part_figures
from edgestill.lab.gradient.optimisers import Optimiser, Sgd, clipped
from edgestill.lab.gradient.parameters import Parameter, chosen, parameters_of
from edgestill.lab.gradient.rules import RULES
from edgestill.lab.gradient.statistics import follow_the_batch
from edgestill.lab.gradient.sweep import gradients
from edgestill.lab.gradient.tape import Tape, seen_values, unsupported
from edgestill.lab.packing.export import LOGITS, OPSET
from edgestill.lab.packing.graph import constant, free_name, read, written
from edgestill.learn.stepfile import COUNT, NEXT, StepFile, Tensor
from edgestill.learn.trainer import LOSS, RATE, TARGETS, WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

Statistics = Literal["frozen", "batch"]
OLDEST: Final = 18
"""Operator set; sums have their axes as an input from there on."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What a device may train, and how.

    Attributes:
        trainable: which parameters; see `parameters.chosen`.
        optimiser: what the gradients do.
        clip: the largest common norm of the gradients; None does not shorten them.
        statistics: of batch normalisation: `frozen`, or the `batch`'s own while running figures follow, which wants an
            export with `folded=False` and batches of more than a few.
        rate: learning rate that whoever trains begins with.
        batch: samples of a batch.
    """

    trainable: str = "all"
    optimiser: Optimiser = field(default_factory=Sgd)
    clip: float | None = None
    statistics: Statistics = "frozen"
    rate: float = 0.01
    batch: int = 16

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("clip", self.clip is None or 0 < self.clip < np.inf, "a positive number, or none"),
            ("statistics", self.statistics in get_args(Statistics), ", ".join(get_args(Statistics))),
            ("rate", 0 < self.rate < np.inf, "a positive number"),
            ("batch", self.batch >= 1, "at least 1"),
        ):
            if not good:
                raise SettingError(
                    "a setting of the training step is out of range",
                    where=name,
                    expected=expected,
                    got=getattr(self, name),
                    fix="leave it out for the default",
                )


@final
@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A training step, ready to run.

    Attributes:
        model: `train.onnx`.
        file: what it is; the tensors have no places yet (`places.placed`).
    """

    model: bytes
    file: StepFile


def training_step(
    model: bytes,
    training: Training,
    *,
    named: Collection[str] = (),
    fixed: Collection[str] = (),
) -> Step:
    """The step of a model.

    Args:
        model: fp32 ONNX with an output `logits` `[N, C]`.
        training: what learns, and how.
        named: parameters that do not stand where an operator has its weights; see `parameters_of`.
        fixed: what is no parameter, wherever it stands.

    Raises:
        ModelError: an operator that gradients cannot go through, named with its place; no logits; nothing that may learn.
        SettingError: `trainable` names nothing.
    """
    model = _modern(model)
    whole = read(model)
    graph = whole.graph
    part_figures(graph)
    learning = chosen(parameters_of(graph, named=named, fixed=fixed), training.trainable)
    check_learning(graph, learning, fixed, everything=training.trainable == "all")
    check_names(graph, learning)
    tape = Tape(graph, *seen_values(written(whole)))
    rate = _given(tape, RATE, [])
    moved = follow_the_batch(tape, rate) if training.statistics == "batch" else []
    logits = _logits(tape)
    loss, slope = _loss(tape, logits)
    found = gradients(tape, logits, [one.value for one in learning], seed=slope, rules=RULES)
    if lost := [one for one in learning if one.value not in found]:
        raise unsupported(
            lost[0].layer,
            f"{lost[0].name}, which the logits do not depend on",
            ["parameters that they depend on"],
        )
    outputs = [loss, *_stepped(tape, training, learning, [found[one.value] for one in learning], rate)]
    outputs += [_output(tape, str(figure.name), after, _shape(figure)) for figure, after in moved]
    for value in [*(one.value for one in learning), *(figure for figure, _ in moved)]:
        graph.inputs.append(_told_as(value, _shape(value)))  # its numbers stay in the file, as the default
    graph.outputs[:] = outputs
    RemoveUnusedNodesPass()(whole)
    classes = tape.shape(logits)[1] or 0
    step = Step(written(whole), _file(training, learning, [figure for figure, _ in moved], classes))
    check_runs(step.model, step.file, model, learning)
    return step


def _modern(model: bytes) -> bytes:
    """The model at the operator set that gradients are written in, its constants lifted, its functions opened, without detours."""
    proto = onnx.load_from_string(model)
    version = max((one.version for one in proto.opset_import if one.domain in {"", "ai.onnx"}), default=1)
    try:
        known = ir.from_proto(proto if version >= OLDEST else version_converter.convert_version(proto, OPSET))
    except Exception as error:  # its C++ raises what it likes
        raise ModelError(
            "the model is too old to be trained",
            where="model.onnx",
            expected=f"operator set {OLDEST} or later, or a model that can be converted",
            got=f"{version}: {' '.join(str(error).split())[:200]}",
            fix=f"export it again at operator set {OPSET}",
        ) from error
    for step in (
        InlinePass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        IdentityEliminationPass(),
    ):
        step(known)
    _fold_counts(known.graph)
    return written(known)


def _fold_counts(graph: ir.Graph) -> None:
    """Works out what is made of constant whole numbers alone, such as axes, and bounds that are cast to what they bound.

    Other floats stay: weights must keep their names.
    """
    for node in list(graph):
        bound = constant(node.inputs[0]) if node.op_type == "CastLike" else None
        if bound is not None and bound.size == 1:
            _stand(graph, node.outputs[0], bound.astype(np.float32))
            continue
        numbers = {str(value.name): constant(value) for value in node.inputs if value is not None}
        if not numbers or any(one is None or one.dtype.kind not in "iub" for one in numbers.values()):
            continue
        alone = helper.make_graph(
            [ir.serde.serialize_node(node)],
            "alone",
            [],
            [helper.make_empty_tensor_value_info(str(value.name)) for value in node.outputs],
            [onnx.numpy_helper.from_array(one, name) for name, one in numbers.items() if one is not None],
        )
        made = helper.make_model(alone, opset_imports=[helper.make_opsetid("", OPSET)])
        for value, array in zip(node.outputs, ReferenceEvaluator(made).run(None, {}), strict=True):
            _stand(graph, value, np.asarray(array))


def _stand(graph: ir.Graph, value: ir.Value, numbers: NDArray[Any]) -> None:
    """Lets numbers stand in the place of a value that was computed."""
    name = str(value.name)
    stands = ir.Value(name=name, const_value=ir.Tensor(numbers, name=name))
    value.name = free_name(graph, f"{name}_computed")
    graph.register_initializer(stands)
    value.replace_all_uses_with(stands)


def _logits(tape: Tape) -> ir.Value:
    for value in tape.graph.outputs:
        if value.name == LOGITS and len(tape.shape(value)) == 2:  # [N, C]
            return value
    raise ModelError(
        "a model without logits to train",
        where="model.onnx",
        expected=f"an output {LOGITS!r} of the shape [N, classes]",
        got=", ".join(f"{value.name}{list(tape.shape(value))}" for value in tape.graph.outputs),
        fix="export it with edgestill, or name its output so",
    )


def _loss(tape: Tape, logits: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The mean of the weighted cross entropies, and its gradient by the logits: `w (sum(t) softmax(z) - t) / N`."""
    targets = _given(tape, TARGETS, ["batch", tape.shape(logits)[1]])
    weights = _given(tape, WEIGHTS, ["batch"])
    logs = tape.op("LogSoftmax", logits, axis=-1)
    told = tape.summed(tape.op("Mul", targets, logs), [1])
    weighted = tape.op("Mul", tape.op("Neg", told), weights)
    loss = tape.op("ReduceMean", weighted, tape.whole(0), keepdims=0, name=LOSS)
    loss.type, loss.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    count = tape.op("Cast", tape.op("Size", weights), to=int(ir.DataType.FLOAT))
    share = tape.op("Unsqueeze", tape.op("Div", weights, count), tape.whole(1))
    expected = tape.op("Mul", tape.op("Exp", logs), tape.summed(targets, [1], keep=True))
    return loss, tape.op("Mul", tape.op("Sub", expected, targets), share)


def _given(tape: Tape, name: str, dims: Sequence[int | str | None]) -> ir.Value:
    """One more input of the graph, of floats."""
    value = ir.Value(name=tape.name(name), shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.FLOAT))
    tape.graph.inputs.append(value)
    return value


def _stepped(
    tape: Tape, training: Training, learning: Sequence[Parameter], grads: list[ir.Value], rate: ir.Value
) -> list[ir.Value]:
    """All parameters and states after the step."""
    optimiser, outputs = training.optimiser, []
    count = None
    if optimiser.counts:
        count = tape.op("Add", _given(tape, COUNT, []), tape.constant(1.0), name=f"{NEXT}{COUNT}")
        outputs.append(_told_as(count, ()))
    if training.clip is not None:
        grads = clipped(tape, grads, training.clip)
    for one, grad in zip(learning, grads, strict=True):
        states = [_given(tape, f"{slot}.{one.name}", one.shape) for slot in optimiser.slots]
        moved, after = optimiser.step(tape, one.value, grad, states, rate=rate, count=count)
        for name, value in zip(
            (one.name, *(str(state.name) for state in states)), (moved, *after), strict=True
        ):
            outputs.append(_output(tape, name, value, one.shape))
    return outputs


def _output(tape: Tape, name: str, value: ir.Value, shape: Sequence[int]) -> ir.Value:
    return _told_as(tape.op("Identity", value, name=f"{NEXT}{name}"), shape)


def _shape(value: ir.Value) -> tuple[int, ...]:
    """Of numbers that stand in the file."""
    assert value.const_value is not None
    return tuple(value.const_value.numpy().shape)


def _told_as(value: ir.Value, shape: Sequence[int]) -> ir.Value:
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    return value


def _file(
    training: Training, learning: Sequence[Parameter], running: Sequence[ir.Value], classes: int
) -> StepFile:
    """What `train.json` tells."""
    optimiser = training.optimiser
    return StepFile(
        optimiser=type(optimiser).__name__.lower(),
        slots=optimiser.slots,
        counts=optimiser.counts,
        classes=classes,
        rate=training.rate,
        batch=training.batch,
        tensors=(
            *(Tensor(name=one.name, shape=one.shape, role=one.role) for one in learning),
            *(Tensor(name=str(one.name), shape=_shape(one), role="running") for one in running),
        ),
    )
