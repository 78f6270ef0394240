"""int8 that stays close, cannot saturate where the processor would let it, and has a named grid."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
import torch
from lab_worlds import HELDOUT, TRAIN, teacher

from edgestill.core.errors import ModelError
from edgestill.core.hardware import HardwareClass
from edgestill.infer.confidence import softmax
from edgestill.infer.engine import OnnxEngine
from edgestill.lab.measure import run_model
from edgestill.lab.packing.export import export_onnx
from edgestill.lab.packing.quantise import grid_id, quantise, saturates

VNNI = HardwareClass("x86_64-vnni-onnxruntime")
AVX2 = HardwareClass("x86_64-avx2-onnxruntime")


@cache
def fp32() -> bytes:
    """A trained model."""
    return export_onnx(teacher(), torch.from_numpy(TRAIN.inputs[:2]))


@cache
def int8(hardware_class: HardwareClass) -> bytes:
    """The same in int8."""
    return quantise(fp32(), TRAIN.inputs, hardware_class)


def codes(model: bytes) -> list[np.ndarray[tuple[int, ...], np.dtype[np.int8]]]:
    """The integer weights of a model."""
    arrays = [onnx.numpy_helper.to_array(one) for one in onnx.load_from_string(model).graph.initializer]
    return [array for array in arrays if array.dtype == np.int8 and array.ndim > 1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x86_64-avx2-onnxruntime", True),
        ("x86_64-base-onnxruntime", True),
        ("x86_64-vnni-onnxruntime", False),
        ("aarch64-base-onnxruntime", False),
        ("aarch64-dotprod-onnxruntime", False),
        ("aarch64-i8mm-onnxruntime", False),
    ],
)
def test_only_x86_without_vnni_saturates(name: str, expected: bool) -> None:
    """The 16-bit sum of two u8s8 products is an instruction of older x86 processors."""
    assert saturates(HardwareClass(name)) is expected


@pytest.mark.parametrize("hardware_class", [VNNI, AVX2])
def test_int8_stays_close_to_fp32(hardware_class: HardwareClass) -> None:
    """Probabilities hardly move and classes hardly change, on data the ranges were not taken from."""
    before, _ = run_model(OnnxEngine(fp32()), HELDOUT.inputs)
    after, features = run_model(OnnxEngine(int8(hardware_class)), HELDOUT.inputs)
    assert np.abs(softmax(before) - softmax(after)).mean() < 0.03
    assert (before.argmax(1) == after.argmax(1)).mean() > 0.95
    assert features.shape == (len(HELDOUT), 12)
    assert features.dtype == np.float32


def test_weights_keep_to_7_bits_where_8_could_saturate() -> None:
    """Two products 255 * 64 fit 16 bits; elsewhere each channel uses the whole of int8."""
    narrow, wide = codes(int8(AVX2)), codes(int8(VNNI))
    assert len(narrow) == len(wide) == 4
    assert max(int(np.abs(one.astype(np.int16)).max()) for one in narrow) <= 64
    assert max(int(np.abs(one.astype(np.int16)).max()) for one in wide) == 127


def test_activations_are_uint8_and_scales_are_per_channel() -> None:
    """The form is QDQ: zero points of activations are unsigned, and a convolution has one scale a unit."""
    proto = onnx.load_from_string(int8(VNNI))
    kinds = {node.op_type for node in proto.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in proto.graph.initializer}
    assert any(array.dtype == np.uint8 and array.ndim == 0 for array in arrays.values())
    assert any(name.endswith("_scale") and array.shape == (8,) for name, array in arrays.items())


def test_quantising_twice_gives_the_same_bytes() -> None:
    """The same model and calibration data make the same file."""
    assert quantise(fp32(), TRAIN.inputs, VNNI) == int8(VNNI)


def changed(model: bytes, ending: str) -> bytes:
    """The model with one number of one tensor of that ending changed."""
    proto = onnx.load_from_string(model)
    one = next(one for one in proto.graph.initializer if one.name.endswith(ending))
    array = onnx.numpy_helper.to_array(one).copy()
    array.reshape(-1)[0] += 1
    one.CopyFrom(onnx.numpy_helper.from_array(array, one.name))
    return bytes(proto.SerializeToString())


def test_the_grid_is_named_by_scales_and_zero_points_only() -> None:
    """Other integer codes on the same grid keep its name; another scale or zero point does not."""
    model = int8(VNNI)
    assert grid_id(changed(model, "_quantized")) == grid_id(model)
    names = {grid_id(changed(model, ending)) for ending in ("_scale", "_zero_point")}
    assert len(names | {grid_id(model), grid_id(int8(AVX2))}) == 4


def test_what_cannot_be_quantised_is_said() -> None:
    """Bytes that are no model end in one error."""
    with pytest.raises(
        ModelError, match=r"\[model-unsupported\] the model cannot be quantised; at model.onnx; .*got \w+"
    ):
        quantise(b"no model", TRAIN.inputs, VNNI)
