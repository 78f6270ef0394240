"""The engine: it runs what numpy computes, and refuses models that are more than data."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infer_models import LABELS, expected_logits, model_bytes, tiny_model
from onnx import TensorProto, helper, numpy_helper

from edgestill.core.errors import EdgestillError, EngineError, ModelError, SettingError
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.modelfile import check_self_contained

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)


def graph_of(*nodes: Any, initializers: tuple[Any, ...] = ()) -> bytes:
    """A model from `x` to `y`, both float `[2]`."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    return model_bytes(helper.make_graph(list(nodes), "g", ends[:1], ends[1:], list(initializers)))


def floats(array: NDArray[np.generic]) -> NDArray[np.float64]:
    """The array as float64."""
    return array.astype(np.float64)


def test_the_engine_computes_what_numpy_computes() -> None:
    """Logits of a model equal those worked out by hand."""
    outputs = OnnxEngine(tiny_model()).run({"input": BATCH})
    assert np.allclose(floats(outputs["logits"]), expected_logits(BATCH), rtol=1e-5, atol=1e-5)
    assert set(outputs) == {"logits", "features"}


def test_a_batch_gives_the_rows_of_its_inputs() -> None:
    """Each input's answer does not depend on its neighbours."""
    engine = OnnxEngine(tiny_model(), threads=2)
    alone = np.concatenate([engine.run({"input": BATCH[i : i + 1]})["logits"] for i in range(len(BATCH))])
    together = engine.run({"input": BATCH})["logits"]
    assert np.allclose(floats(alone), floats(together), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "datatype"),
    [
        (TensorProto.FLOAT, "FP32"),
        (TensorProto.DOUBLE, "FP64"),
        (TensorProto.FLOAT16, "FP16"),
        (TensorProto.UINT8, "UINT8"),
        (TensorProto.INT8, "INT8"),
        (TensorProto.UINT16, "UINT16"),
        (TensorProto.INT16, "INT16"),
        (TensorProto.UINT32, "UINT32"),
        (TensorProto.INT32, "INT32"),
        (TensorProto.UINT64, "UINT64"),
        (TensorProto.INT64, "INT64"),
        (TensorProto.BOOL, "BOOL"),
    ],
)
def test_element_types_have_the_protocols_names(kind: int, datatype: str) -> None:
    """Inputs and outputs are described in the words of the Open Inference Protocol; free dimensions are None."""
    engine = OnnxEngine(tiny_model(kind=kind))
    assert engine.inputs == {"input": (datatype, (None, 4))}
    assert engine.outputs == {"logits": ("FP32", (None, len(LABELS))), "features": ("FP32", (None, 5))}


def test_what_the_runtime_raises_is_one_line() -> None:
    """A batch the model cannot take gives one `EngineError` of one line."""
    with pytest.raises(EngineError) as caught:
        OnnxEngine(tiny_model()).run({"input": BATCH[:, :3]})
    text = str(caught.value)
    assert text.startswith(
        "[engine-failed] the engine could not run the model; at onnxruntime; expected an answer; got"
    )
    assert "\n" not in text


def test_a_model_the_runtime_cannot_load_is_refused_in_one_line() -> None:
    """An operator that does not exist is named by the error."""
    with pytest.raises(EngineError, match=r"cannot load the model.*NoSuchOperator"):
        OnnxEngine(graph_of(helper.make_node("NoSuchOperator", ["x"], ["y"])))


def test_threads_out_of_range_are_refused() -> None:
    """Threads are counted from 1."""
    with pytest.raises(SettingError, match="threads out of range; at threads; expected 1 to 256; got 0"):
        OnnxEngine(tiny_model(), threads=0)


def test_a_model_of_strings_is_refused() -> None:
    """No model of ours takes text."""
    ends = [helper.make_tensor_value_info(name, TensorProto.STRING, [2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    with pytest.raises(
        EngineError,
        match=r"must be a tensor of numbers; at x; expected a tensor of numbers; got tensor\(string\)",
    ):
        OnnxEngine(model_bytes(graph))


# Attacks


def external(name: str = "secret") -> TensorProto:
    """A tensor whose numbers lie in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def test_attack_weights_in_another_file() -> None:
    """A model that names a file to read is refused before the engine sees it."""
    model = graph_of(helper.make_node("Add", ["x", "secret"], ["y"]), initializers=(external(),))
    with pytest.raises(ModelError, match=r"a model must hold its weights itself; at model\.onnx"):
        OnnxEngine(model)


def test_attack_weights_in_another_file_inside_an_attribute() -> None:
    """A constant's tensor is looked at as well as an initialiser."""
    constant = helper.make_node("Constant", [], ["c"], value=external())
    with pytest.raises(ModelError, match="expected no external data"):
        OnnxEngine(graph_of(constant, helper.make_node("Add", ["x", "c"], ["y"])))


def test_attack_weights_in_another_file_inside_a_branch() -> None:
    """Graphs within graphs are looked at."""
    end = helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])
    branch = helper.make_graph(
        [helper.make_node("Identity", ["secret"], ["z"])], "b", [], [end], [external()]
    )
    true = numpy_helper.from_array(np.array(True), "c")
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(ModelError, match="expected no external data"):
        OnnxEngine(graph_of(node, initializers=(true,)))


def test_attack_weights_in_another_file_without_the_mark() -> None:
    """A tensor with a file's name counts as external, whatever its location field says."""
    tensor = external()
    tensor.ClearField("data_location")
    with pytest.raises(ModelError, match="expected no external data"):
        OnnxEngine(graph_of(helper.make_node("Add", ["x", "secret"], ["y"]), initializers=(tensor,)))


def test_attack_operators_of_a_plug_in() -> None:
    """A domain that only custom code knows is refused and named."""
    with pytest.raises(ModelError, match=r"a model with operators of its own.*got evil\.example"):
        OnnxEngine(tiny_model(domain="evil.example"))


def test_functions_that_the_model_defines_are_data() -> None:
    """A model-local function may have a domain of its own; what it is made of is checked like the rest."""
    for inner, refused in (("", False), ("evil.example", True)):
        body = helper.make_node("Neg", ["a"], ["b"], domain=inner)
        function = helper.make_function("mine", "Twice", ["a"], ["b"], [body], [helper.make_opsetid("", 18)])
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
        node = helper.make_node("Twice", ["x"], ["y"], domain="mine")
        model = helper.make_model(
            helper.make_graph([node], "g", ends[:1], ends[1:]),
            functions=[function],
            opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)],
            ir_version=9,
        ).SerializeToString()
        if refused:
            with pytest.raises(ModelError, match=r"evil\.example"):
                OnnxEngine(model)
        else:
            x = np.array([1, -2], dtype=np.float32)
            assert OnnxEngine(model).run({"x": x})["y"].tolist() == [-1, 2]


def test_attack_graphs_nested_without_end() -> None:
    """Nesting is bounded."""

    def field(number: int, payload: bytes) -> bytes:
        size, length = len(payload), b""
        while size >= 0x80:
            length += bytes([size & 0x7F | 0x80])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + payload

    nested = b""
    for _ in range(200):
        nested = field(1, field(5, field(6, nested)))
    with pytest.raises(ModelError, match="nested too deeply"):
        check_self_contained(field(7, nested))


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"hello", b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 20, b"\x08\x09", b"1234ORTM5678"]
)
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    """Empty, cut or foreign bytes, the runtime's own format among them, give a `ModelError`."""
    with pytest.raises(ModelError, match="not an ONNX model"):
        OnnxEngine(data)


@given(st.binary(max_size=300))
def test_garbage_never_breaks_the_reader(data: bytes) -> None:
    """Bytes from anywhere are accepted or refused with our error."""
    with contextlib.suppress(ModelError):
        check_self_contained(data)


@settings(max_examples=300)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_model_gives_our_errors_only(position: int, value: int) -> None:
    """One byte changed anywhere: the model loads, or one of our errors says why not."""
    model = bytearray(tiny_model())
    model[position % len(model)] = value
    with contextlib.suppress(ModelError, EngineError):
        OnnxEngine(bytes(model))


@pytest.mark.parametrize("name", [b"features", b"input"])
def test_attack_a_name_that_is_no_text(name: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """An input or output whose name is not UTF-8 is refused with our error, and nothing is printed."""
    model = tiny_model().replace(name, b"\x80" + name[1:])
    with pytest.raises(EngineError, match=r"has a name that is no text|cannot load the model"):
        OnnxEngine(model)
    assert capsys.readouterr().out == ""


def test_a_model_cut_anywhere_is_refused() -> None:
    """No prefix of a model passes for it."""
    model = tiny_model()
    for length in range(0, len(model), 7):
        with pytest.raises(EdgestillError):
            OnnxEngine(model[:length])


def test_importing_the_engine_is_cheap() -> None:
    """The runtime is loaded when an engine is made, not when the module is."""
    code = "import sys, edgestill.infer.engine; print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
