"""What a model adds to a process is measured in a process of its own, and is the model's alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgestill.core.errors import EngineError
from edgestill.core.hardware import ENGINES
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.memory import IDLE, is_measurable, memory_of

pytestmark = pytest.mark.skipif(
    not is_measurable(), reason="this system does not say what a process has had at most"
)


def matrix(size: int) -> bytes:
    """A model that multiplies by a matrix of size by size float32."""
    weight = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "weight"], ["logits"])],
        "matrix",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", size])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def test_a_larger_model_takes_more() -> None:
    """At least its weights, and the runtime itself is not counted: a model of 40 kB takes far less than that."""
    small, large = memory_of(matrix(100), repeats=2), memory_of(matrix(1500), repeats=2)
    assert large.value > 1500 * 1500 * 4
    assert large.value > small.value + 1400 * 1400 * 4
    assert small.value < 6_000_000
    assert large.low <= large.value <= large.high


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_every_engines_memory_is_measured(engine: str) -> None:
    """By the engine that is named: a larger model takes at least its weights more."""
    small, large = (memory_of(matrix(size), repeats=2, engine=engine) for size in (100, 1500))
    assert large.value > small.value + 1400 * 1400 * 4


def test_the_idle_model_does_nothing() -> None:
    """`y = x`, so that only what any first model costs is counted before."""
    onnx.checker.check_model(onnx.load_from_string(IDLE))
    one = np.array([3.0], np.float32)
    assert OnnxEngine(IDLE).run({"x": one})["y"] == one


def test_a_model_that_cannot_be_run_is_a_coded_error() -> None:
    """With the last line of what the process said."""
    with pytest.raises(EngineError, match=r"could not be run in a process of its own; .*not an ONNX model"):
        memory_of(b"no model", repeats=2)
