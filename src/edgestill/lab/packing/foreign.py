"""ONNX files from elsewhere, made into what a bundle's model is: one input `input`, outputs `logits` and `features`, any batch.

Four passes, each with its check: `Modernise` (versions, notes, old habits), `NameEnds` (which output, and what the last layer is
given), `FreeBatch` (rows that do not know of each other). What a sensor gives comes after them: `lab.packing.sensor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, final

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants

from edgestill.core.errors import EngineError, ModelError, PathError
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.student import FEATURES, LOGITS, PROBABILITIES, TEMPERATURE
from edgestill.lab.packing.export import INPUT
from edgestill.lab.packing.graph import constant, free_name, inputs_for, read, values_of, written

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

OLDEST: Final = 13
"""The first operator set in which a scale may be had for each channel."""
MAX_BYTES: Final = 2**31 - 1
"""Of any ONNX file: protobuf's own bound."""
_LINEAR: Final = frozenset({"Gemm", "MatMul"})
_NORMAL: Final = frozenset({"Softmax", "LogSoftmax"})
"""What turns logits into probabilities; a softmax of either one's input gives them again."""
_PASSING: Final = frozenset({"Identity", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze"})
"""What may stand between a softmax and the output."""
_RESERVED: Final = (INPUT, LOGITS, FEATURES, PROBABILITIES, TEMPERATURE)
_FOLDED: Final = 2**28
_TOLERANCE: Final = 1e-4
_LEAST: Final = 1e-12
_SUM: Final = 1e-3


def read_file(path: Path) -> bytes:
    """An ONNX file as bytes, with weights that stand in files beside it.

    Raises:
        PathError: there is no such file. ModelError: it cannot be read, or is more than one file of 2 GiB can hold.
    """
    if not path.is_file():
        raise PathError(
            "no such model", where=path, expected="an ONNX file", got="nothing", fix="look at the path"
        )
    try:
        model = onnx.load(path)
        data: bytes = model.SerializeToString()
    except Exception as error:  # protobuf's and onnx's classes share no other base
        raise ModelError(
            "the model cannot be read",
            where=path,
            expected="an ONNX file, with its weights in it or beside it",
            got=f"{type(error).__name__}: {str(error)[:200]}",
            fix="export it again",
        ) from error
    return data


@final
@dataclass(frozen=True, slots=True)
class Modernise:
    """A `Pass`: constants are constants, functions are opened, and the operator set is one that can be quantised."""

    name: ClassVar[str] = "modernise"

    def requires(self, model: bytes) -> None:
        """One input that is a tensor.

        Raises:
            ModelError: several, or none.
        """
        graph = read(model).graph
        inputs = [one for one in graph.inputs if one.name not in graph.initializers]
        if len(inputs) != 1 or not graph.outputs or inputs[0].shape is None or not inputs[0].shape:
            raise _unfit("a student takes one input, batch first", "one input [N, ...]", _named(inputs))

    def apply(self, model: bytes) -> bytes:
        """The model, at operator set 13 or later."""
        proto = onnx.load_from_string(model)
        version = max((one.version for one in proto.opset_import if one.domain in {"", "ai.onnx"}), default=1)
        if version < OLDEST:
            try:
                proto = onnx.version_converter.convert_version(proto, OLDEST)
            except Exception as error:  # its C++ raises what it likes
                raise _unfit(
                    "the model is too old",
                    f"operator set {OLDEST} or later",
                    f"{version}: {str(error)[:200]}",
                ) from error
        known = ir.from_proto(proto)
        for step in (
            common.InlinePass(),
            common.RemoveInitializersFromInputsPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.ClearMetadataAndDocStringPass(),
        ):
            step(known)
        fold_constants(known, input_size_limit=_FOLDED, output_size_limit=_FOLDED)
        return written(known)

    def ensures(self, before: bytes, after: bytes) -> None:
        """Both give the same.

        Raises:
            ModelError: they do not.
        """
        inputs = inputs_for(after)
        was, found = OnnxEngine(before).run(inputs), OnnxEngine(after).run(inputs)
        for name, wanted in was.items():
            check_close(found[name], wanted, name)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NameEnds:
    """A `Pass`: the input is `input`, the outputs are `logits` and `features`, both float32, and there is nothing else.

    Attributes:
        logits: the output that tells the classes; by default the only one, or the one of that name. Where it is a softmax, that is
            left out; where it is probabilities in another way, their logarithm is taken.
        features: any value `[N, D]` inside; by default the output `features`, or what the last linear layer is given;
            None for no such output.
    """

    logits: str = ""
    features: str | None = ""
    name: ClassVar[str] = "name the ends"

    def requires(self, model: bytes) -> None:
        """Looks for both ends.

        Raises:
            ModelError: not one of them to be found.
        """
        graph = read(model).graph
        self._ends(graph)

    def apply(self, model: bytes) -> bytes:
        """The model with its ends named, and nothing behind them."""
        known = read(model)
        graph = known.graph
        common.ShapeInferencePass()(known)  # half floats are to be told from floats
        ends = self._ends(graph)
        ends[LOGITS], bare = _without_softmax(ends[LOGITS])
        (taken,) = graph.inputs
        graph.outputs.clear()
        for value in values_of(graph):  # whoever has one of the names already makes room
            if value.name in _RESERVED and value is not taken:
                value.name = free_name(graph, f"{value.name}_before")
        taken.name = INPUT
        for name, value in ends.items():
            graph.outputs.append(_as_floats(graph, value, name))
        common.RemoveUnusedNodesPass()(known)
        found = written(known)
        return found if bare or not _are_probabilities(found) else _with_logarithm(found)

    def ensures(self, before: bytes, after: bytes) -> None:
        """The classes are told as before, and both ends have a row for each input.

        Raises:
            ModelError: they do not.
        """
        inputs = inputs_for(before)
        ((_, batch),) = inputs.items()
        found = OnnxEngine(after).run({INPUT: batch})
        for name, one in found.items():
            if (
                one.ndim != 2 or len(one) != len(batch) or (name == LOGITS and one.shape[1] < 2)
            ):  # [N, C], [N, D]
                raise _unfit(f"{name} of another shape", f"[{len(batch)}, 2 or more]", list(one.shape))
        output = self.logits or _default_output(read(before).graph).name
        wanted = OnnxEngine(before).run(inputs)[str(output)]
        if not np.array_equal(wanted.argmax(-1), found[LOGITS].argmax(-1)):
            raise _unfit("naming the ends changed the answers", "the same classes", "others")

    def _ends(self, graph: ir.Graph) -> dict[str, ir.Value]:
        logits = self._logits(graph)
        return {LOGITS: logits} | (
            {} if self.features is None else {FEATURES: self._features(graph, logits, self.features)}
        )

    def _logits(self, graph: ir.Graph) -> ir.Value:
        named = [one for one in graph.outputs if one.name == self.logits]
        if self.logits and not named:
            raise _unfit("no such output", _named(graph.outputs), self.logits, "--logits NAME")
        return named[0] if named else _default_output(graph)

    @staticmethod
    def _features(graph: ir.Graph, logits: ir.Value, wanted: str) -> ir.Value:
        if wanted:
            found = next((one for one in _values(graph) if one.name == wanted), None)
            if found is None:
                raise _unfit("no such value", "a value inside the model", wanted, "--features NAME")
            return found
        told = next((one for one in graph.outputs if one.name == FEATURES and one is not logits), None)
        if told is not None:
            return told
        last = _back(logits, _PASSING | _NORMAL)[-1]
        node = _without_codes(last).producer()
        if node is not None and node.op_type == "Add":  # of the bias
            computed = [one for one in node.inputs if one is not None and not _is_stored(one)]
            node = _without_codes(computed[0]).producer() if len(computed) == 1 else None
        linear = node is not None and node.op_type in _LINEAR and _is_stored(node.inputs[1])
        if node is None or not linear or node.inputs[0] is None:
            raise _unfit(
                "the last layer is not a linear one",
                "Gemm, or MatMul and Add, with constant weights",
                end.op_type if (end := last.producer()) else "none",
                "--features NAME: a value [N, D] that the logits are worked out from",
            )
        return node.inputs[0]


@final
@dataclass(frozen=True, slots=True)
class FreeBatch:
    """A `Pass`: any number of rows, each answered as if it were alone."""

    name: ClassVar[str] = "free the batch"

    def requires(self, model: bytes) -> None:
        """Nothing: whether rows are free shows when they are asked."""

    def apply(self, model: bytes) -> bytes:
        """The model with its first axis open."""
        known = read(model)
        (taken,) = known.graph.inputs
        assert taken.shape is not None
        if isinstance(fixed := taken.shape[0], int):
            _free_reshapes(known.graph, fixed)
        taken.shape = ir.Shape(["N", *taken.shape[1:]])
        for one in known.graph.outputs:
            width = None if one.shape is None or len(one.shape) != 2 else one.shape[1]  # [N, C]
            one.shape = ir.Shape(["N", width])
        return written(known)

    def ensures(self, before: bytes, after: bytes) -> None:  # noqa: ARG002  # which answered a batch of its own size only
        """A batch is answered as its rows are.

        Raises:
            ModelError: it is not, or the engine refuses it.
        """
        engine = OnnxEngine(after)
        ((name, rows),) = inputs_for(after).items()
        try:
            alone = [engine.run({name: rows[at : at + 1]}) for at in range(len(rows))]
            together = engine.run({name: rows})
        except EngineError as error:
            raise _unfit(
                "the model answers one size of batch only", "any number of rows", error.got
            ) from error
        for output, found in together.items():
            wanted = np.concatenate([one[output] for one in alone])
            check_close(found, wanted, output, "rows of a batch know of each other")


def _free_reshapes(graph: ir.Graph, fixed: int) -> None:
    """Shapes that begin with the exported batch keep their input's first axis instead."""
    for node in graph:
        shape = constant(node.inputs[1]) if node.op_type == "Reshape" else None
        if shape is not None and len(shape) > 1 and shape[0] == fixed and 0 not in shape:
            node.attributes.pop("allowzero", None)  # with it, 0 would not mean the input's
            free = ir.tensor(np.array([0, *shape[1:]], dtype=np.int64))
            value = ir.Value(name=f"{node.outputs[0].name}_free", const_value=free)
            graph.register_initializer(value)
            node.replace_input_with(1, value)


def _default_output(graph: ir.Graph) -> ir.Value:
    named = [one for one in graph.outputs if one.name == LOGITS]
    if not named and len(graph.outputs) != 1:
        raise _unfit(
            "which output tells the classes?", "one output, or one named logits", _named(graph.outputs)
        )
    value: ir.Value = (named or list(graph.outputs))[0]
    return value


def _back(value: ir.Value, kinds: frozenset[str]) -> list[ir.Value]:
    """From a value back through operators of these kinds, itself first."""
    found = [value]
    while (node := found[-1].producer()) is not None and node.op_type in kinds and node.inputs[0] is not None:
        found.append(node.inputs[0])
    return found


def _without_softmax(value: ir.Value) -> tuple[ir.Value, bool]:
    """The output without the softmax that stands before it, and whether one did."""
    value = _back(value, frozenset({"Identity"}))[-1]
    path = _back(value, _PASSING)
    node = path[-1].producer()
    if node is None or node.op_type not in _NORMAL or node.inputs[0] is None:
        return value, False
    reader = path[-2].producer() if len(path) > 1 else None
    if reader is None:
        return node.inputs[0], True
    reader.replace_input_with(0, node.inputs[0])
    return value, True


def _without_codes(value: ir.Value) -> ir.Value:
    """What was rounded to codes and back, where it was."""
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        node = value.producer()
        if node is None or node.op_type != kind or node.inputs[0] is None:
            return value
        value = node.inputs[0]
    return value


def _are_probabilities(model: bytes) -> bool:
    """Whether the logits of some inputs are shares of one."""
    found = OnnxEngine(model).run(inputs_for(model))[LOGITS].astype(np.float64)
    return found.ndim == 2 and bool((found >= 0).all() and np.abs(found.sum(1) - 1).max() < _SUM)  # [N, C]


def _with_logarithm(model: bytes) -> bytes:
    """With the logarithm of the probabilities as logits: a softmax gives the probabilities again."""
    known = read(model)
    graph = known.graph
    at = next(place for place, one in enumerate(graph.outputs) if one.name == LOGITS)
    shares = graph.outputs[at]
    shares.name = free_name(graph, "shares")
    least = ir.Value(
        name=free_name(graph, "least_share"), const_value=ir.tensor(np.array(_LEAST, dtype=np.float32))
    )
    graph.register_initializer(least)
    bounded = ir.node("Max", [shares, least])
    logarithm = ir.node("Log", bounded.outputs)
    bounded.outputs[0].name = free_name(graph, "shares_bounded")
    made = logarithm.outputs[0]
    made.name, made.shape, made.type = LOGITS, shares.shape, ir.TensorType(ir.DataType.FLOAT)
    graph.extend([bounded, logarithm])
    graph.outputs[at] = made
    return written(known)


def _as_floats(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    """An output of this name: the value itself where it can be, else a copy in float32."""
    shape = value.shape
    if value.producer() is None or value.is_graph_output() or value.dtype != ir.DataType.FLOAT:
        node = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
        graph.append(node)
        value = node.outputs[0]
    value.name, value.shape, value.type = name, shape, ir.TensorType(ir.DataType.FLOAT)
    return value


def _is_stored(value: ir.Value | None) -> bool:
    """Whether it stands in the file, as it is or as codes."""
    node = None if value is None else value.producer()
    coded = node is not None and node.op_type == "DequantizeLinear" and constant(node.inputs[0]) is not None
    return coded or constant(value) is not None


def _values(graph: ir.Graph) -> list[ir.Value]:
    """All that are given or computed; not those that stand in the file."""
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]


def check_close(
    found: NDArray[np.generic],
    wanted: NDArray[np.generic],
    name: str,
    what: str = "the answers are others than before",
) -> None:
    """Raises ModelError where two arrays are not nearly the same."""
    room = _TOLERANCE * float(np.abs(wanted[np.isfinite(wanted)]).max(initial=1.0))
    if found.shape != wanted.shape or not np.allclose(
        found.astype(np.float64), wanted.astype(np.float64), rtol=0, atol=room, equal_nan=True
    ):
        raise _unfit(what, f"{name} within {room:.2g}", list(found.shape))


def _named(values: Iterable[ir.Value]) -> str:
    return ", ".join(str(one.name) for one in values) or "none"


def _unfit(what: str, expected: object, got: object, fix: str = "") -> ModelError:
    return ModelError(
        what,
        where="model.onnx",
        expected=expected,
        got=got,
        fix=fix or "export it with one input, the batch first and free, and one output of logits",
    )
