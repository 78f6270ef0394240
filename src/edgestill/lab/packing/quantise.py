"""int8 for the device: static, per channel, in QDQ form, on a grid that can stay.

- Weights become int8 and activations uint8 ("u8s8"), which on x86 is two to four times faster than int8 with int8.
- On x86 without VNNI the instruction that adds two u8s8 products saturates at 16 bits: sums are silently cut, and with
  a scale per channel, which uses the whole int8 range, a model can fall from 79 % to 34 %. There the weights keep to
  7 bits, which cannot saturate. This is one reason why a bundle belongs to a hardware class.
- The ranges of the activations come from calibration inputs; which ones is part of the lineage.
- What comes before the first layer (the scaling of the sensor's numbers) stays in floats: to quantise each step of it
  costs time and digits, and gains nothing. So do the logits, which nothing reads on the device but a softmax.
- A `Grid` is all scales and zero points of a file. A next version quantised on its parent's grid differs from it in
  integer codes only, so that patches between them are small; weights that have outgrown it are cut, and counted.
"""

from __future__ import annotations

import logging
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, final

import numpy as np
import onnx
import onnx_ir as ir
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgestill.core.digest import Digest
from edgestill.core.errors import ModelError
from edgestill.lab.packing.export import INPUT, LOGITS
from edgestill.lab.packing.graph import constant, read, written

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from edgestill.core.hardware import HardwareClass

LAYERS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "LSTM", "GRU"})
"""Operators with weights, which int8 makes smaller and faster; the others only pass codes on."""
LIMITS: Final = {False: 127, True: 64}
"""The largest code of a weight, where products cannot saturate and where they can."""
_BATCH: Final = 32


def saturates(hardware_class: HardwareClass) -> bool:
    """Whether u8s8 products can saturate there: x86 without VNNI."""
    architecture, instructions, _ = hardware_class.name.split("-")
    return architecture == "x86_64" and instructions != "vnni"


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """How one tensor's numbers become codes: `round(x / scale) + zero`.

    Attributes:
        scale: one number, or `[C]`.
        zero: of the same shape.
        axis: of the channels; None where there is one number for all.
    """

    scale: NDArray[np.float32]
    zero: NDArray[np.integer]
    axis: int | None

    def along(self, tensor: NDArray[np.generic]) -> NDArray[np.float32]:
        """The scale, to be broadcast over the tensor."""
        if self.axis is None:
            return self.scale
        shape = [1] * tensor.ndim
        shape[self.axis] = -1
        return self.scale.reshape(shape)

    @property
    def overrides(self) -> list[dict[str, Any]]:
        """As onnxruntime's quantiser wants to be told."""
        kind = _TYPES[self.zero.dtype.name]
        channels = {} if self.axis is None else {"axis": self.axis}
        return [
            {"quant_type": kind, "scale": np.array(scale), "zero_point": np.array(zero)} | channels
            for scale, zero in zip(np.atleast_1d(self.scale), np.atleast_1d(self.zero), strict=True)
        ]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The scales and zero points of an int8 file, by the name of the tensor that they are of."""

    steps: Mapping[str, Step]

    @classmethod
    def of(cls, model: bytes) -> Self:
        """Of a file that `quantise` made; empty for one in floats."""
        graph = read(model).graph
        found: dict[str, Step] = {}
        for node in graph:
            if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
                continue
            scale = _numbers(node.inputs[1])
            zero = _numbers(node.inputs[2]) if len(node.inputs) > 2 else _no_zero(node, scale)
            told = node.attributes.get(
                "axis"
            )  # which may be left out where it is 1, or where there is one number only
            axis = told.as_int() if told is not None and scale.ndim else 1 if scale.size > 1 else None
            if zero.dtype != np.int32:  # a bias, whose scale is that of its input by that of its weight
                found[str(node.inputs[1].name).removesuffix("_scale")] = Step(scale, zero, axis)  # type: ignore[union-attr]  # it was read above
        return cls(found)

    @property
    def id(self) -> Digest:
        """The digest of all scales and zero points, by name."""
        return Digest.of_chunks(
            part
            for name, step in sorted(self.steps.items())
            for part in (name.encode(), step.scale.tobytes(), step.zero.tobytes())
        )

    def clipped(self, model: bytes, hardware_class: HardwareClass) -> float:
        """The share of a float file's weights that lie beyond this grid and are cut; 0 where it has none of them."""
        limit = LIMITS[saturates(hardware_class)] + 0.5
        beyond = total = 0
        for one in onnx.load_from_string(model).graph.initializer:
            step = self.steps.get(one.name)
            if step is not None:
                weight = onnx.numpy_helper.to_array(one)
                beyond += int((np.abs(weight) > step.along(weight) * limit).sum())
                total += weight.size
        return beyond / total if total else 0.0

    def within_(self, graph: ir.Graph, hardware_class: HardwareClass) -> None:
        """Cuts a graph's weights to this grid.

        Of a scale that it is given the quantiser uses every code: where products can saturate, weights that have outgrown the
        grid would get codes of eight bits.
        """
        limit = LIMITS[saturates(hardware_class)]
        for name, value in graph.initializers.items():
            step, weight = self.steps.get(name), constant(value)
            if step is not None and weight is not None and step.zero.dtype == np.int8:
                most = step.along(weight) * np.float32(limit)
                value.const_value = ir.tensor(np.clip(weight, -most, most), name=name)


_TYPES: Final = {"int8": quantization.QuantType.QInt8, "uint8": quantization.QuantType.QUInt8}


def quantise(
    model: bytes,
    calibration: NDArray[np.generic],
    hardware_class: HardwareClass,
    *,
    grid: Grid | None = None,
    in_floats: Iterable[str] = (),
) -> bytes:
    """The model in int8.

    Args:
        model: fp32 ONNX with one input `input`.
        calibration: `[N, ...]`, inputs as the sensor gives them; a few hundred suffice.
        hardware_class: where it will run.
        grid: of the version that it follows; by default its own.
        in_floats: names of nodes that stay as they are.

    Raises:
        ModelError: the quantiser refused, or the grid is of another network.
    """
    with _quantising() as folder:
        prepared, target = folder / "prepared.onnx", folder / "int8.onnx"
        try:
            prepared.write_bytes(_prepared(model))
            whole = ir.load(prepared)
            graph, overrides = whole.graph, {}
            if grid is not None:
                overrides = _overrides(grid, graph)
                grid.within_(graph, hardware_class)
                ir.save(whole, prepared)
            quantization.quantize_static(
                str(prepared),
                str(target),
                _Batches(calibration),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                reduce_range=saturates(hardware_class),
                nodes_to_exclude=[*in_floats, *_before_layers(graph)],
                extra_options={"TensorQuantOverrides": overrides},
            )
        except ModelError:
            raise
        except Exception as error:
            raise _not_quantised(error) from error
        return _finished(ir.load(target))


def layers_of(model: bytes) -> list[str]:
    """The names of the nodes whose weights `quantise` would round, in their order; what `in_floats` may name.

    Raises:
        ModelError: the quantiser cannot read the model.
    """
    return [str(node.name) for node in read(_prepared(model)).graph if node.op_type in LAYERS]


def grid_id(model: bytes) -> Digest:
    """Names the quantisation grid. Two versions with the same grid differ in integer codes only."""
    return Grid.of(model).id


@lru_cache(maxsize=4)
def _prepared(model: bytes) -> bytes:
    """With what can be folded folded, as onnxruntime's quantiser wants it."""
    with _quantising() as folder:
        source, target = folder / "fp32.onnx", folder / "prepared.onnx"
        source.write_bytes(model)
        try:
            quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
        except Exception as error:
            raise _not_quantised(error) from error
        return target.read_bytes()


@contextmanager
def _quantising() -> Iterator[Path]:
    """A folder, and silence: the quantiser advises to pre-process although we do."""
    quiet = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
    finally:
        logging.getLogger().setLevel(quiet)


def _not_quantised(error: Exception) -> ModelError:
    return ModelError(
        "the model cannot be quantised",
        got=f"{type(error).__name__}: {error}",
        where="model.onnx",
        expected="operators that onnxruntime quantises",
        fix="replace the layer that the text names, or report it",
    )


def _before_layers(graph: ir.Graph) -> list[str]:
    """The nodes that no layer comes before."""
    after: set[int] = set()
    for node in graph:
        if node.op_type in LAYERS or any(id(value) in after for value in node.inputs):
            after.update(id(value) for value in node.outputs)
    return [str(node.name) for node in graph if not any(id(value) in after for value in node.outputs)]


def _finished(model: ir.Model) -> bytes:
    """With the logits as the last layer computes them, not rounded to codes and back, and without names of nodes."""
    outputs = model.graph.outputs
    for at, output in enumerate(outputs):
        codes = _taken_by("DequantizeLinear", output)
        floats = _taken_by("QuantizeLinear", codes)
        if output.name == LOGITS and floats is not None and not output.uses():
            output.name, floats.name = f"{LOGITS}_rounded", LOGITS
            floats.shape, floats.type = output.shape, output.type
            outputs[at] = floats
            model.graph.remove([one for one in (output.producer(), codes and codes.producer()) if one])
    for node in model.graph:
        node.name = None  # nobody asks for it, and names are a tenth of a small file
    return written(model)


def _taken_by(kind: str, made: ir.Value | None) -> ir.Value | None:
    """What an operator of this kind made the value of; None where another made it."""
    node = None if made is None else made.producer()
    return node.inputs[0] if node is not None and node.op_type == kind else None


def _overrides(grid: Grid, graph: ir.Graph) -> dict[str, list[dict[str, Any]]]:
    """The grid, after a look whether every weight has as many channels as it has scales."""
    for name, step in grid.steps.items():
        value = graph.initializers.get(name)
        shape = () if value is None or value.shape is None else value.shape.numpy()
        if step.axis is not None and shape[step.axis : step.axis + 1] != (len(step.scale),):
            raise ModelError(
                "the grid is of another network",
                where=name,
                expected=f"{len(step.scale)} channels (the grid's)",
                got=list(shape) if value is not None else "no such weight",
                fix="quantise it on a grid of its own",
            )
    return {name: step.overrides for name, step in grid.steps.items()}


def _no_zero(node: ir.Node, scale: NDArray[Any]) -> NDArray[Any]:
    """Zeros, where a file leaves them out: of the codes' type, which is uint8 for what is computed."""
    codes = constant(node.inputs[0])
    return np.zeros(scale.shape, dtype=np.uint8 if codes is None or codes.dtype.kind == "f" else codes.dtype)


def _numbers(value: ir.Value | None) -> NDArray[Any]:
    found = constant(value)
    if found is None:
        raise ModelError(
            "a scale is no constant",
            where="model.onnx",
            expected="static quantisation",
            got="a scale that is computed",
            fix="quantise it with edgestill",
        )
    return found


@final
class _Batches(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, inputs: NDArray[np.generic]) -> None:
        self._batches = iter(np.array_split(inputs, max(1, len(inputs) // _BATCH)))

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}
