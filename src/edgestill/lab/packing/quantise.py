"""int8 for the device: static, per channel, in QDQ form, on a grid that can stay.

- Weights become int8 and activations uint8 ("u8s8"), which on x86 is two to four times faster than int8 with int8.
- On x86 without VNNI the instruction that adds two u8s8 products saturates at 16 bits: sums are silently cut, and with
  a scale per channel, which uses the whole int8 range, a model can fall from 79 % to 34 %. There the weights keep to
  7 bits, which cannot saturate. This is one reason why a bundle belongs to a hardware class.
- The ranges of the activations come from calibration inputs; which ones is part of the lineage.
- What comes before the first layer (the scaling of the sensor's numbers) stays in floats: to quantise each step of it
  costs time and digits, and gains nothing. So do the logits, which nothing reads on the device but a softmax.
- A next version may stay on its parent's grid (`lab.packing.grid`).
"""

from __future__ import annotations

import logging
import tempfile
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import onnx_ir as ir
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgestill.core.errors import ModelError
from edgestill.lab.measure import in_batches
from edgestill.lab.packing.export import INPUT, LOGITS
from edgestill.lab.packing.graph import read, written
from edgestill.lab.packing.grid import Grid, saturates

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from edgestill.core.hardware import HardwareClass

LAYERS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "LSTM", "GRU"})
"""Operators with weights, which int8 makes smaller and faster; the others only pass codes on."""
_BATCH: Final = 32


def quantise(
    model: bytes,
    calibration: NDArray[np.generic],
    hardware_class: HardwareClass,
    *,
    grid: Grid | None = None,
    coarse: int = 1,
    in_floats: Iterable[str] = (),
) -> bytes:
    """The model in int8.

    Args:
        model: fp32 ONNX with one input `input`.
        calibration: `[N, ...]`, inputs as the sensor gives them; a few hundred suffice.
        hardware_class: where it will run.
        grid: of the version that it follows; by default its own.
        coarse: codes from its parent's by whose multiples a weight moves on that grid (`Grid.settle_`).
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
                grid.settle_(graph, hardware_class, coarse=coarse)
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


@final
class _Batches(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, inputs: NDArray[np.generic]) -> None:
        self._batches = in_batches(inputs, most=_BATCH)

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}
