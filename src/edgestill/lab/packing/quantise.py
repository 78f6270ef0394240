"""int8 for the device: static, per channel, in QDQ form.

- Weights become int8 and activations uint8 ("u8s8"), which on x86 is two to four times faster than int8 with int8.
- On x86 without VNNI the instruction that adds two u8s8 products saturates at 16 bits: sums are silently cut, and with
  a scale per channel, which uses the whole int8 range, a model can fall from 79 % to 34 %. There the weights keep to
  7 bits, which cannot saturate. This is one reason why a bundle belongs to a hardware class.
- The ranges of the activations come from calibration inputs; which ones is part of the lineage.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgestill.core.digest import Digest
from edgestill.core.errors import ModelError
from edgestill.lab.packing.export import INPUT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.hardware import HardwareClass

_BATCH: Final = 32


def saturates(hardware_class: HardwareClass) -> bool:
    """Whether u8s8 products can saturate there: x86 without VNNI."""
    architecture, instructions, _ = hardware_class.name.split("-")
    return architecture == "x86_64" and instructions != "vnni"


def quantise(model: bytes, calibration: NDArray[np.generic], hardware_class: HardwareClass) -> bytes:
    """The model in int8.

    Args:
        model: fp32 ONNX with one input `input`.
        calibration: `[N, ...]`, inputs as the sensor gives them; a few hundred suffice.
        hardware_class: where it will run.

    Raises:
        ModelError: the quantiser refused.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, prepared, target = folder / "fp32.onnx", folder / "prepared.onnx", folder / "int8.onnx"
        source.write_bytes(model)
        quiet = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)  # its advice to pre-process appears although we do
        try:
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(target),
                _Batches(calibration),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                reduce_range=saturates(hardware_class),
            )
        except Exception as error:
            raise ModelError(
                "the model cannot be quantised",
                got=f"{type(error).__name__}: {error}",
                where="model.onnx",
                expected="operators that onnxruntime quantises",
                fix="replace the layer that the text names, or report it",
            ) from error
        finally:
            logging.getLogger().setLevel(quiet)
        return target.read_bytes()


def grid_id(model: bytes) -> Digest:
    """Names the quantisation grid: the digest of all scales and zero points, by name.

    Two versions with the same grid differ in integer codes only, so that patches between them are small.
    """
    proto = onnx.load_from_string(model)
    grids = sorted(
        (one.name, onnx.numpy_helper.to_array(one).tobytes())
        for one in proto.graph.initializer
        if one.name.endswith(("_scale", "_zero_point"))
    )
    return Digest.of_chunks(part for name, data in grids for part in (name.encode(), data))


@final
class _Batches(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, inputs: NDArray[np.generic]) -> None:
        self._batches = iter(np.array_split(inputs, max(1, len(inputs) // _BATCH)))

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}
