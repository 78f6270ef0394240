"""A shipped file gives calibrated probabilities itself, and says with which temperature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_worlds import POLICY, motions, run
from onnx import TensorProto, helper

from edgestill.core.errors import ModelError
from edgestill.core.manifest import MODEL
from edgestill.infer.confidence import softmax
from edgestill.infer.engine import OnnxEngine
from edgestill.lab.packing.assemble import reweighted
from edgestill.lab.packing.grid import Grid
from edgestill.lab.packing.probabilities import Probabilities, shippable

if TYPE_CHECKING:
    from numpy.typing import NDArray

HELD = motions(150)


def scores_model(opset: int = 18, *outputs: str) -> bytes:
    """Logits are twice the input `[N, 3]`, under each name of an output."""
    ends = [helper.make_tensor_value_info(one, TensorProto.FLOAT, ["N", 3]) for one in ("input", *outputs)]
    nodes = [helper.make_node("Add", ["input", "input"], [one]) for one in outputs]
    graph = helper.make_graph(nodes, "scores", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def outputs_of(model: bytes, inputs: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
    """All of them."""
    found = OnnxEngine(model).run({"input": inputs})
    return {name: one.astype(np.float32) for name, one in found.items()}


def answer(model: bytes, logits: NDArray[np.floating]) -> dict[str, NDArray[np.float32]]:
    """Of `scores_model`, for wanted logits."""
    return outputs_of(model, (logits / 2).astype(np.float32))


ROWS = st.lists(st.lists(st.floats(-200, 200, width=32), min_size=3, max_size=3), min_size=1, max_size=5)


@given(rows=ROWS, temperature=st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=60)
def test_the_graph_has_the_softmax_of_its_logits(rows: list[list[float]], temperature: float) -> None:
    """A law: whatever the logits and the temperature, both ways of working it out agree, and the temperature is told."""
    found = answer(shippable(scores_model(18, "logits"), temperature), np.array(rows))
    used = np.float32(temperature)
    assert found["temperature"].tolist() == [used]
    np.testing.assert_allclose(
        found["probabilities"], softmax(found["logits"], float(used)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 18, 20])
def test_it_works_on_files_of_any_age(opset: int) -> None:
    """The softmax had another meaning in old operator sets; of `[N, C]` both are the same."""
    found = answer(shippable(scores_model(opset, "logits"), 2.0), np.array([[1, 2, 3], [0, 0, 0]]))
    np.testing.assert_allclose(found["probabilities"], softmax(found["logits"], 2.0), atol=1e-6)


def test_another_temperature_changes_one_number() -> None:
    """A second one replaces the first: the size stays, and nothing but the number differs."""
    first = shippable(scores_model(18, "logits"), 1.5)
    second = shippable(first, 0.25)
    assert len(first) == len(second)
    assert sum(a != b for a, b in zip(first, second, strict=True)) <= 4
    assert answer(second, np.ones((1, 3)))["temperature"].tolist() == [0.25]
    assert shippable(second, 1.5) == first


@pytest.mark.parametrize("own", ["probabilities", "temperature"])
def test_a_model_with_outputs_of_those_names_is_refused(own: str) -> None:
    """What they mean there is not known, so they are not overwritten."""
    with pytest.raises(
        ModelError, match=rf"outputs of its own; at give probabilities.*\['logits', '{own}'\]"
    ):
        shippable(scores_model(18, "logits", own))


def test_a_model_without_logits_is_refused() -> None:
    """Its outputs are named."""
    with pytest.raises(ModelError, match=r"the model gives no logits.*got \['scores'\]"):
        shippable(scores_model(18, "scores"))


def test_a_broken_promise_is_found() -> None:
    """A file whose temperature was changed by somebody else is none that the pass would have made."""
    before = scores_model(18, "logits")
    proto = onnx.load_from_string(shippable(before, 2.0))
    (number,) = proto.graph.initializer
    number.CopyFrom(onnx.numpy_helper.from_array(np.array([3], np.float32), number.name))
    with pytest.raises(ModelError, match="changed the answers"):
        Probabilities(2.0).ensures(before, proto.SerializeToString())


def test_a_bundle_gives_its_policys_probabilities() -> None:
    """The graph of a packed student has the fitted temperature, so what the student says is what the file says."""
    packed = run().pack(POLICY)
    found = outputs_of(packed.blobs[MODEL], HELD.inputs[:9])
    assert found["temperature"].tolist() == [np.float32(packed.policy.temperature)]
    np.testing.assert_allclose(
        found["probabilities"], softmax(found["logits"], packed.policy.temperature), rtol=1e-5, atol=1e-6
    )


def test_another_policy_brings_its_temperature_into_the_file() -> None:
    """`reweighted` changes both places."""
    found = reweighted(run().pack(POLICY), temperature=0.5)
    assert outputs_of(found.blobs[MODEL], HELD.inputs[:1])["temperature"].tolist() == [0.5]


def test_the_grid_does_not_know_of_it() -> None:
    """Scales and zero points are those of the layers."""
    packed = run().pack(POLICY)
    assert Grid.of(packed.blobs[MODEL]).id == Grid.of(shippable(packed.blobs[MODEL], 7.0)).id


def test_floats_and_int8_are_both_shipped_so() -> None:
    """Whatever way the gate chose, all outputs are there."""
    for model in (run().pack(POLICY).blobs[MODEL], shippable(run().pack(POLICY).model_fp32)):
        assert set(OnnxEngine(model).outputs) == {"logits", "features", "probabilities", "temperature"}
