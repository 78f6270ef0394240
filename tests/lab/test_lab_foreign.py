"""Files from elsewhere become what a bundle's model is, or are refused with what is wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from foreign_models import CLASSES, WIDTH, answer, exported, image_logits, image_model
from onnx import TensorProto, helper, numpy_helper

from edgestill.core.errors import ModelError, PathError
from edgestill.infer.confidence import softmax
from edgestill.infer.engine import OnnxEngine
from edgestill.lab.packing.finished import standardised
from edgestill.lab.packing.foreign import NameEnds, read_file
from edgestill.lab.packing.probabilities import shippable
from edgestill.lab.packing.sensor import Sensor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


PICTURES = np.random.default_rng(1).normal(size=(7, 3, 8, 8)).astype(np.float32)


def standard(model: bytes, **ends: Any) -> bytes:
    """As a bundle wants it, with no preprocessing."""
    return standardised(model, Sensor(), NameEnds(**ends))


HABITS: list[dict[str, Any]] = [
    {},
    {"head": "Gemm"},
    {"opset": 9},
    {"opset": 11, "end": ["Softmax"]},
    {"opset": 20},
    {"batch": 1},
    {"batch": 2},
    {"batch": 1, "end": ["Softmax"]},
    {"end": ["Softmax"]},
    {"end": ["LogSoftmax"]},
    {"end": ["Identity", "Softmax"]},
    {"output": "features"},
    {"output": "input"},
    {"output": "logits", "more": ["pooled", "flattened"]},
    {"initializers_as_inputs": True, "opset": 9},
]


@pytest.mark.parametrize("habit", HABITS, ids=str)
def test_whatever_the_exporters_habit_the_ends_are_the_same(habit: dict[str, Any]) -> None:
    """One input of any number of rows, logits and features in float32, and the answers are what they were."""
    model = standard(image_model(**habit))
    engine = OnnxEngine(model)
    assert engine.inputs == {"input": ("FP32", (None, 3, 8, 8))}
    assert set(engine.outputs) == {"logits", "features"}
    found = answer(model, PICTURES)
    np.testing.assert_allclose(softmax(found["logits"]), softmax(image_logits(PICTURES)), atol=1e-5)
    assert found["features"].shape == (7, WIDTH)
    for rows in (PICTURES[:1], PICTURES[:2]):
        np.testing.assert_allclose(
            answer(model, rows)["logits"], found["logits"][: len(rows)], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("habit", [{}, {"end": ["Softmax"]}, {"output": "logits"}], ids=str)
def test_nothing_is_added_that_need_not_be(habit: dict[str, Any]) -> None:
    """The operators are those between input and logits, and a second time nothing changes at all."""
    once = standard(image_model(**habit))
    kinds = [node.op_type for node in onnx.load_from_string(once).graph.node]
    assert kinds == ["Conv", "Relu", "GlobalAveragePool", "Reshape", "MatMul", "Add"]
    assert standard(once) == once


@pytest.mark.parametrize("legacy", [False, True], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("free", [False, True], ids=["one row", "any rows"])
@pytest.mark.filterwarnings("ignore")
def test_both_exporters_of_torch_are_understood(*, free: bool, legacy: bool) -> None:
    """With a batch of one as with a free one; the softmax at the end is left out, and a learned head fits its features."""
    network, model = exported(free=free, legacy=legacy)
    found = answer(standard(model), PICTURES)
    with torch.inference_mode():
        wanted = network(torch.from_numpy(PICTURES)).numpy()
    np.testing.assert_allclose(softmax(found["logits"]), wanted, atol=1e-5)
    assert found["logits"].min() < 0 or found["logits"].max() > 1
    last = network[6]
    assert isinstance(last, torch.nn.Linear)
    again = found["features"] @ last.weight.detach().numpy().T + last.bias.detach().numpy()
    np.testing.assert_allclose(found["logits"], again, rtol=1e-3, atol=1e-4)


def test_features_may_be_named() -> None:
    """Any value `[N, D]`, for a model whose last layer is none that is known."""
    model = image_model(end=["Sigmoid"])
    with pytest.raises(ModelError, match=r"last layer is not a linear one.*got Sigmoid; --features NAME"):
        standard(model)
    found = answer(standard(model, features="flattened"), PICTURES)
    assert found["features"].shape == (7, WIDTH)
    np.testing.assert_allclose(found["logits"], 1 / (1 + np.exp(-image_logits(PICTURES))), atol=1e-5)


def test_a_teacher_needs_no_features() -> None:
    """Then the logits are all there is."""
    assert set(answer(standard(image_model(end=["Sigmoid"]), features=None), PICTURES)) == {"logits"}


def test_the_output_may_be_named() -> None:
    """Where there are several, and none is called logits."""
    model = image_model(more=["pooled"])
    with pytest.raises(ModelError, match=r"which output tells the classes.*got scores, pooled"):
        standard(model)
    np.testing.assert_allclose(
        answer(standard(model, logits="scores"), PICTURES)["logits"],
        image_logits(PICTURES),
        rtol=1e-3,
        atol=1e-4,
    )
    with pytest.raises(ModelError, match=r"no such output.*expected scores, pooled; got nothing"):
        standard(model, logits="nothing")
    with pytest.raises(ModelError, match=r"no such value.*got nowhere"):
        standard(model, logits="scores", features="nowhere")


def test_features_that_have_no_row_an_input_are_refused() -> None:
    """Maps are `[N, C, H, W]`."""
    with pytest.raises(ModelError, match=r"features of another shape.*got \[4, 6, 6, 6\]"):
        standard(image_model(), features="maps")


def linear_model(kind: int = TensorProto.FLOAT, *, classes: int = CLASSES) -> bytes:
    """A linear layer and nothing else, in floats of this kind."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weight = np.random.default_rng(0).normal(size=(5, classes)).astype(dtype)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", kind, ["N", 5])],
        [helper.make_tensor_value_info("y", kind, ["N", classes])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def test_the_features_of_a_linear_model_are_its_input() -> None:
    """Which is no output of anything: it is copied."""
    rows = np.random.default_rng(2).normal(size=(3, 5)).astype(np.float32)
    found = answer(standard(linear_model()), rows)
    np.testing.assert_array_equal(found["features"], rows)
    assert found["logits"].shape == (3, CLASSES)


def test_half_floats_come_out_as_floats() -> None:
    """Logits and features are float32, whatever the network computes in."""
    model = standard(linear_model(TensorProto.FLOAT16))
    engine = OnnxEngine(model)
    assert engine.inputs["input"][0] == "FP16"
    assert {kind for kind, _ in engine.outputs.values()} == {"FP32"}


def test_one_class_is_none() -> None:
    """A single score is a regression, or a probability of something; there are no bundles for it."""
    with pytest.raises(ModelError, match=r"logits of another shape.*2 or more.*got \[4, 1\]"):
        standard(linear_model(classes=1))


def mixing_model() -> bytes:
    """Each row's scores have those of the other rows in them."""
    model = onnx.load_from_string(linear_model())
    (node,) = model.graph.node
    node.output[0] = "own"
    model.graph.node.extend(
        [
            helper.make_node("ReduceSum", ["own"], ["all"], keepdims=1, noop_with_empty_axes=0),
            helper.make_node("Add", ["own", "all"], ["y"]),
        ]
    )
    data: bytes = model.SerializeToString()
    return data


def test_rows_that_know_of_each_other_are_refused() -> None:
    """A batch would be answered otherwise than its rows: on a device, which asks one at a time, it would be wrong."""
    with pytest.raises(ModelError, match=r"rows of a batch know of each other; at free the batch"):
        standard(mixing_model(), features="own")


def test_a_shape_that_holds_the_batch_is_refused_where_it_cannot_be_freed() -> None:
    """A batch of two folded into the rest has no row an input."""
    model = onnx.load_from_string(image_model(batch=2))
    flat = next(one for one in model.graph.initializer if one.name == "flat")
    flat.CopyFrom(numpy_helper.from_array(np.array([1, 2 * WIDTH], dtype=np.int64), "flat"))
    weight = next(one for one in model.graph.initializer if one.name == "weight")
    weight.CopyFrom(numpy_helper.from_array(np.ones((2 * WIDTH, CLASSES), dtype=np.float32), "weight"))
    with pytest.raises(ModelError):
        standard(model.SerializeToString())


def test_several_inputs_are_refused() -> None:
    """They are named."""
    model = onnx.load_from_string(linear_model())
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N", 2]))
    with pytest.raises(ModelError, match=r"modernise.*one input \[N, ...\]; got x, other"):
        standard(model.SerializeToString())


def test_operators_of_ones_own_are_refused_before_anything_else() -> None:
    """They are code that the device does not have."""
    model = onnx.load_from_string(linear_model())
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(ModelError, match="operators of its own"):
        standard(model.SerializeToString())


def test_weights_beside_the_file_are_taken_in(tmp_path: Path) -> None:
    """A bundle's model holds its weights itself."""
    model = onnx.load_from_string(image_model())
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    assert (tmp_path / "m.bin").stat().st_size > 0
    found = answer(standard(read_file(tmp_path / "m.onnx")), PICTURES)
    np.testing.assert_allclose(found["logits"], image_logits(PICTURES), rtol=1e-3, atol=1e-4)


def test_weights_elsewhere_are_not_fetched(tmp_path: Path) -> None:
    """A file that names a path outside its folder is not followed."""
    model = onnx.load_from_string(image_model())
    (tmp_path / "inner").mkdir()
    path = tmp_path / "inner" / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    (tmp_path / "inner" / "m.bin").rename(tmp_path / "m.bin")
    proto = onnx.load(path, load_external_data=False)
    for one in proto.graph.initializer:
        for entry in one.external_data:
            entry.value = "../m.bin" if entry.key == "location" else entry.value
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"cannot be read; at .*m\.onnx"):
        read_file(path)


@pytest.mark.parametrize("data", [b"", b"nothing", b"\x00" * 64])
def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes) -> None:
    """Whichever step finds it."""
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ModelError):
        standard(read_file(tmp_path / "m.onnx"))
    with pytest.raises(PathError, match="no such model"):
        read_file(tmp_path / "none.onnx")


# what a reviewer found: each was a bundle that answered otherwise than its model, or an error that said nothing


def with_end(*nodes: Any, constants: Sequence[Any] = (), output: str = "y") -> bytes:
    """`linear_model`, whose scores go on through these operators, which begin at `scores`."""
    model = onnx.load_from_string(linear_model())
    model.graph.node[0].output[0] = "scores"
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
    model.graph.output[0].name = output
    data: bytes = model.SerializeToString()
    return data


ENDS: dict[str, list[Any]] = {
    "a cast": [
        helper.make_node("Softmax", ["scores"], ["p"], axis=1),
        helper.make_node("Cast", ["p"], ["y"], to=1),
    ],
    "a shape": [
        helper.make_node("Softmax", ["scores"], ["p"], axis=1),
        helper.make_node("Flatten", ["p"], ["y"]),
    ],
    "by hand": [
        helper.make_node("Exp", ["scores"], ["e"]),
        helper.make_node("ReduceSum", ["e", "one"], ["s"], keepdims=1),
        helper.make_node("Div", ["e", "s"], ["y"]),
    ],
    "two": [
        helper.make_node("Softmax", ["scores"], ["p"], axis=1),
        helper.make_node("Softmax", ["p"], ["y"], axis=1),
    ],
}


@pytest.mark.parametrize("end", sorted(ENDS))
def test_probabilities_are_never_taken_for_logits(end: str) -> None:
    """However they were made, a softmax of what the bundle calls logits gives what the model gave."""
    one = numpy_helper.from_array(np.array([1], dtype=np.int64), "one")
    model = with_end(*ENDS[end], constants=[one])
    rows = np.random.default_rng(2).normal(size=(6, 5)).astype(np.float32)
    wanted = answer(model, rows, "x")["y"]
    found = answer(standard(model, features="x"), rows)
    np.testing.assert_allclose(softmax(found["logits"]), wanted, atol=1e-5)


def test_names_inside_make_room() -> None:
    """Weights and values that are called as the ends are keep what they are for."""
    model = onnx.load_from_string(image_model())
    names = {
        "kernel": "logits",
        "weight": "features",
        "bias": "temperature",
        "maps": "probabilities",
        "positive": "input",
    }
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = names.get(name, name)
        for at, name in enumerate(node.output):
            node.output[at] = names.get(name, name)
    for one in model.graph.initializer:
        one.name = names.get(one.name, one.name)
    found = answer(shippable(standard(model.SerializeToString()), 2.0), PICTURES)
    np.testing.assert_allclose(found["probabilities"], softmax(image_logits(PICTURES), 2.0), atol=1e-5)


def test_weights_that_are_computed_from_constants_are_constants() -> None:
    """Behind a transposition, as exporters write tied and transposed weights."""
    model = onnx.load_from_string(linear_model())
    (weight,) = model.graph.initializer
    turned = numpy_helper.to_array(weight).T.copy()
    weight.CopyFrom(numpy_helper.from_array(turned, "w_turned"))
    model.graph.node.insert(0, helper.make_node("Transpose", ["w_turned"], ["w"], perm=[1, 0]))
    rows = np.ones((2, 5), dtype=np.float32)
    np.testing.assert_allclose(
        answer(standard(model.SerializeToString()), rows)["logits"], rows @ turned.T, rtol=1e-4
    )


@pytest.mark.filterwarnings("ignore")
def test_a_network_in_half_floats_is_understood() -> None:
    """With layers behind each other, whose values have no type in the file."""
    network = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).half().eval()
    program = torch.onnx.export(network, (torch.zeros(2, 5).half(),), dynamo=True, verbose=False)
    assert program is not None
    rows = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float16)
    model = standard(program.model_proto.SerializeToString())
    engine = OnnxEngine(model)
    assert {kind for kind, _ in engine.outputs.values()} == {"FP32"}
    with torch.inference_mode():
        wanted = network(torch.from_numpy(rows)).float().numpy()
    np.testing.assert_allclose(answer(model, rows)["logits"], wanted, atol=0.02)


def test_free_height_and_width_are_looked_at_with_room() -> None:
    """Two convolutions of 5 by 5 without padding need more than a few places."""
    random = np.random.default_rng(0)
    kernels = [random.normal(size=shape).astype(np.float32) for shape in ((4, 3, 5, 5), (4, 4, 5, 5), (4, 3))]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "a"], ["u"]),
            helper.make_node("Conv", ["u", "b"], ["v"]),
            helper.make_node("GlobalAveragePool", ["v"], ["w"]),
            helper.make_node("Flatten", ["w"], ["f"]),
            helper.make_node("Gemm", ["f", "c"], ["y"]),
        ],
        "free",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(one, name) for one, name in zip(kernels, "abc", strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    engine = OnnxEngine(standard(model.SerializeToString()))
    assert engine.inputs == {"input": ("FP32", (None, 3, None, None))}
