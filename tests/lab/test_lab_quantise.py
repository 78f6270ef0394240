"""int8 that stays close, cannot saturate where the processor would let it, and has a named grid."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
import torch
from lab_worlds import HELDOUT, TRAIN, image_net, images, motion_net, stir_, teacher
from torch import Tensor, nn

from edgestill.core.errors import ModelError
from edgestill.core.hardware import HardwareClass
from edgestill.infer.confidence import softmax
from edgestill.infer.engine import OnnxEngine
from edgestill.lab.measure import run_model
from edgestill.lab.packing.export import export_onnx
from edgestill.lab.packing.grid import Grid, grid_id, saturates
from edgestill.lab.packing.quantise import quantise

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


def test_the_scaling_of_inputs_and_the_logits_stay_in_floats() -> None:
    """No code stands between the sensor and the first layer's own, nor between the last layer and who reads its logits."""
    model = export_onnx(stir_(motion_net(4, 4, 6)), torch.from_numpy(TRAIN.inputs[:2]))
    proto = onnx.load_from_string(quantise(model, TRAIN.inputs, VNNI))
    made = {name: node for node in proto.graph.node for name in node.output}
    first = next(node for node in proto.graph.node if node.op_type == "QuantizeLinear")
    assert made[first.input[0]].op_type == "Mul"
    assert made["logits"].op_type == "Gemm"
    assert not any(one.name.startswith("logits") for one in proto.graph.initializer)


class Mixed(nn.Module):
    """Layers whose channels stand on other axes: a table, a bare matrix, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 6)
        self.matrix = nn.Parameter(torch.randn(6, 5))
        self.wider = nn.ConvTranspose1d(5, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        """`[N, L]` to logits."""
        x = (self.table(ids) @ self.matrix).transpose(1, 2)
        logits: Tensor = self.head(torch.relu(self.wider(x)).mean(2))
        return logits


@cache
def mixed() -> tuple[bytes, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """Its file, and token ids."""
    torch.manual_seed(0)
    ids = torch.randint(0, 40, (48, 7))
    return export_onnx(Mixed(), ids[:2]), ids.numpy()


def moved(model: bytes, by: float) -> bytes:
    """The float model with every weight and bias a little elsewhere."""
    proto, random = onnx.load_from_string(model), np.random.default_rng(3)
    for one in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(one)
        if array.dtype == np.float32 and array.ndim:
            noise = random.normal(size=array.shape).astype(np.float32)
            one.CopyFrom(onnx.numpy_helper.from_array(array + by * noise, one.name))
    return bytes(proto.SerializeToString())


def test_the_next_version_can_stay_on_its_parents_grid() -> None:
    """Other weights, the same scales and zero points, also where channels stand on other axes; and it still answers."""
    for model, inputs in ((fp32(), TRAIN.inputs), mixed()):
        parent = quantise(model, inputs, VNNI)
        grid, later = Grid.of(parent), moved(model, 0.01)
        kept, own = quantise(later, inputs, VNNI, grid=grid), quantise(later, inputs, VNNI)
        assert Grid.of(kept).id == grid.id
        assert Grid.of(own).id != grid.id
        assert kept != parent
        wanted = run_model(OnnxEngine(later), inputs)[0]
        for ours in (kept, own):
            assert (
                np.abs(run_model(OnnxEngine(ours), inputs)[0] - wanted).mean() < 0.03 * np.abs(wanted).max()
            )


def test_a_layer_of_one_channel_is_on_the_grid_as_well() -> None:
    """Its bias has one scale, which stands in an array without an axis."""
    model = export_onnx(stir_(motion_net(1, 1, 3)), torch.from_numpy(TRAIN.inputs[:2]))
    parent = quantise(model, TRAIN.inputs, VNNI)
    grid = Grid.of(parent)
    assert any(step.scale.shape == (1,) for step in grid.steps.values())
    later = quantise(moved(model, 0.01), TRAIN.inputs, VNNI, grid=grid)
    assert Grid.of(later).id == grid.id


def test_the_same_model_on_its_own_grid_is_the_same_file() -> None:
    """Nothing of a grid is lost when it is read from a file."""
    for model, inputs in ((fp32(), TRAIN.inputs), mixed()):
        file = quantise(model, inputs, VNNI)
        assert quantise(model, inputs, VNNI, grid=Grid.of(file)) == file


def test_weights_that_have_outgrown_the_grid_are_counted() -> None:
    """None of the file that made it; of one whose weights are twice as large, the larger half of each channel."""
    grid = Grid.of(int8(VNNI))
    assert grid.clipped(fp32(), VNNI) == 0
    proto = onnx.load_from_string(fp32())
    for one in proto.graph.initializer:
        if one.name in grid.steps:
            one.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(one), one.name))
    share = grid.clipped(proto.SerializeToString(), VNNI)
    weights = [onnx.numpy_helper.to_array(one) for one in onnx.load_from_string(fp32()).graph.initializer]
    wanted = [
        np.abs(one) > 0.5 * (127.5 / 127) * np.abs(one).max(axis=tuple(range(1, one.ndim)), keepdims=True)
        for one in weights
        if one.ndim > 1 and len(one) != 1
    ]
    assert share == pytest.approx(
        sum(one.sum() for one in wanted) / sum(one.size for one in wanted), abs=0.02
    )


@pytest.mark.parametrize("where", [VNNI, AVX2])
def test_a_table_that_is_looked_up_is_cut_where_its_own_codes_end(where: HardwareClass) -> None:
    """Its codes are uint8 around a zero point: none of the file that made the grid, and of one far to one side a part."""
    model, inputs = mixed()
    proto = onnx.load_from_string(model)
    (table,) = (one for one in proto.graph.initializer if "table" in one.name)
    positive = np.abs(onnx.numpy_helper.to_array(table)) + 1
    table.CopyFrom(onnx.numpy_helper.from_array(positive, table.name))
    model = bytes(proto.SerializeToString())
    grid = Grid.of(quantise(model, inputs, where))
    assert grid.clipped(model, where) < 0.001
    table.CopyFrom(onnx.numpy_helper.from_array(-positive, table.name))
    assert grid.clipped(proto.SerializeToString(), where) > 0.3


def test_weights_that_have_outgrown_a_grid_of_7_bits_do_not_get_8() -> None:
    """Where products can saturate, a next version keeps to codes that cannot, however large its weights have become."""
    grid, proto = Grid.of(int8(AVX2)), onnx.load_from_string(fp32())
    for one in proto.graph.initializer:
        if one.name in grid.steps:
            one.CopyFrom(onnx.numpy_helper.from_array(3 * onnx.numpy_helper.to_array(one), one.name))
    later = proto.SerializeToString()
    kept = codes(quantise(later, TRAIN.inputs, AVX2, grid=grid))
    assert max(int(np.abs(one.astype(np.int16)).max()) for one in kept) == 64
    assert grid.clipped(later, AVX2) > 0.3


def test_the_grid_of_another_network_is_refused() -> None:
    """A layer of another width: the error names it, and both numbers."""
    other = export_onnx(image_net(3, 4, 5), torch.from_numpy(images(2)))
    narrow = Grid.of(quantise(other, images(8), VNNI))
    with pytest.raises(
        ModelError,
        match=r"the grid is of another network; at head\.weight; expected 10 channels \(the grid's\); got \[3, 12\]",
    ):
        quantise(fp32(), TRAIN.inputs, VNNI, grid=narrow)


def test_named_nodes_stay_in_floats() -> None:
    """A layer that int8 would spoil keeps its weights, and the others do not."""
    node = next(one for one in onnx.load_from_string(fp32()).graph.node if one.op_type == "Conv")
    kept = quantise(fp32(), TRAIN.inputs, VNNI, in_floats=[node.name])
    assert len(codes(kept)) == len(codes(int8(VNNI))) - 1
    floats = {one.name for one in onnx.load_from_string(kept).graph.initializer if one.data_type == 1}
    assert node.input[1] in floats


def test_what_cannot_be_quantised_is_said() -> None:
    """Bytes that are no model end in one error."""
    with pytest.raises(
        ModelError, match=r"\[model-unsupported\] the model cannot be quantised; at model.onnx; .*got \w+"
    ):
        quantise(b"no model", TRAIN.inputs, VNNI)
