"""The scaling of inputs becomes two operations, in whatever order it was written, and the answers stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_worlds import image_net, motion_net, stir_
from onnx import TensorProto, helper, numpy_helper

from edgestill.core.errors import ModelError
from edgestill.infer.engine import OnnxEngine
from edgestill.lab.packing.export import export_onnx
from edgestill.lab.packing.passes import through
from edgestill.lab.packing.scaling import MergeScaling

if TYPE_CHECKING:
    from numpy.typing import NDArray

Step = tuple[str, Sequence[float]]
"""An operator, with its number, its numbers one a channel, or the order of the axes."""


def chain(
    steps: Sequence[Step], *, taken: int = TensorProto.UINT8, shape: Sequence[int | str] = ("N", 4, 3)
) -> bytes:
    """A model that does these things to its input, one after the other, and then a ReLU."""
    nodes, initializers, value = [], [], "input"
    for at, (kind, number) in enumerate(steps):
        made = f"step_{at}"
        if kind == "Cast":
            nodes.append(helper.make_node(kind, [value], [made], to=TensorProto.FLOAT))
        elif kind == "Transpose":
            nodes.append(helper.make_node(kind, [value], [made], perm=list(map(int, number))))
        else:
            array = np.array(number[0] if len(number) == 1 else number, np.float32)
            initializers.append(numpy_helper.from_array(array, f"number_{at}"))
            order = [f"number_{at}", value] if kind.startswith("from ") else [value, f"number_{at}"]
            nodes.append(helper.make_node(kind.removeprefix("from "), order, [made]))
        value = made
    nodes.append(helper.make_node("Relu", [value], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("input", taken, list(shape))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def kinds(model: bytes) -> list[str]:
    """The operators in their order."""
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


def answer(model: bytes, inputs: NDArray[np.generic], name: str = "logits") -> NDArray[np.float32]:
    """What it gives."""
    return OnnxEngine(model).run({"input": inputs})[name].astype(np.float32)


BYTES = np.random.default_rng(0).integers(0, 256, (5, 4, 3)).astype(np.uint8)
PER_CHANNEL = (0.1, 0.2, 0.3)
IMAGE: list[Step] = [
    ("Cast", ()),
    ("Mul", [1 / 255]),
    ("Sub", PER_CHANNEL),
    ("Div", (0.2, 0.4, 0.6)),
    ("Transpose", [0, 2, 1]),
]


def test_a_chain_becomes_a_subtraction_and_a_multiplication_behind_the_transposition() -> None:
    """Bytes are moved before they are floats, and the four operations on them are two."""
    before = chain(IMAGE)
    after = through(before, [MergeScaling()])
    assert kinds(after) == ["Transpose", "Cast", "Sub", "Mul", "Relu"]
    np.testing.assert_allclose(answer(after, BYTES), answer(before, BYTES), atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([("Transpose", [0, 2, 1]), ("Cast", ()), ("Sub", [2.0]), ("Div", [4.0])], ["Transpose", "Cast", "Sub", "Mul"]),
        ([("Cast", ()), ("from Add", PER_CHANNEL), ("from Mul", [3.0])], ["Cast", "Sub", "Mul"]),
        ([("Cast", ()), ("Mul", [2.0]), ("Mul", [0.25])], ["Cast", "Mul"]),
        ([("Cast", ()), ("Add", [2.0]), ("Sub", [1.0])], ["Cast", "Sub"]),
        ([("Cast", ()), ("Mul", [2.0]), ("Div", [2.0])], ["Cast"]),
    ],
)  # fmt: skip
def test_no_operation_is_written_that_does_nothing(steps: list[Step], expected: list[str]) -> None:
    """Constants may stand on either side where that is the same; nothing is added and no factor of one multiplied."""
    before = chain(steps)
    after = through(before, [MergeScaling()])
    assert kinds(after) == [*expected, "Relu"]
    np.testing.assert_allclose(answer(after, BYTES), answer(before, BYTES), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "steps",
    [
        [("Cast", ()), ("Mul", [2.0])],
        [("Cast", ()), ("from Sub", [1.0]), ("Mul", [2.0])],
        [("Cast", ()), ("from Div", [1.0]), ("Mul", [2.0])],
        [("Cast", ()), ("Mul", [0.0]), ("Add", [1.0])],
        [("Cast", ()), ("Div", [np.inf]), ("Add", [1.0])],
        [("Cast", ()), ("Transpose", [0, 2, 1])],
    ],
)
def test_what_is_no_scaling_or_as_short_as_it_can_be_stays_byte_for_byte(steps: list[Step]) -> None:
    """One operation alone, a number from which the input is taken, or one that nothing leads back from."""
    before = chain(steps)
    assert through(before, [MergeScaling()]) == before


@pytest.mark.parametrize("steps", [[("Mul", (0.5,)), ("Div", (0.5,))], [("Sub", (2.0,)), ("Add", (2.0,))]])
def test_steps_that_undo_each_other_leave_nothing(steps: list[Step]) -> None:
    """On floats not even a cast is left, and what followed reads the input itself."""
    before = chain(steps, taken=TensorProto.FLOAT)
    after = through(before, [MergeScaling()])
    assert kinds(after) == ["Relu"]
    floats = BYTES.astype(np.float32) - 100
    np.testing.assert_allclose(answer(after, floats), answer(before, floats), rtol=1e-5)


def test_small_differences_of_large_readings_keep_their_digits() -> None:
    """An air pressure in pascals: `x * scale + shift` would be off by a hundredth of its spread."""
    before = chain([("Sub", [101_325.3]), ("Div", [7.0])], taken=TensorProto.FLOAT, shape=("N", 4))
    after = through(before, [MergeScaling()])
    readings = (101_325.3 + np.linspace(-20, 20, 40).reshape(10, 4)).astype(np.float32)
    exact = np.maximum((readings.astype(np.float64) - np.float32(101_325.3)) / 7, 0)
    assert np.abs(answer(after, readings) - exact).max() < 1e-3


def test_an_input_that_others_read_too_is_left_alone() -> None:
    """Where a number in the middle of the chain is used elsewhere, only what comes before is merged."""
    proto = onnx.load_from_string(chain(IMAGE))
    proto.graph.node.append(helper.make_node("Identity", ["step_2"], ["aside"]))
    proto.graph.output.append(helper.make_tensor_value_info("aside", TensorProto.FLOAT, None))
    before = proto.SerializeToString()
    after = through(before, [MergeScaling()])
    assert kinds(after)[:3] == ["Cast", "Sub", "Mul"]
    assert sorted(kinds(after)[3:]) == ["Div", "Identity", "Relu", "Transpose"]
    for name in ("logits", "aside"):
        np.testing.assert_allclose(answer(after, BYTES, name), answer(before, BYTES, name), atol=1e-5)


def test_names_that_are_taken_are_not_taken_again() -> None:
    """A model whose own values have the names that the merged operations would get."""
    proto = onnx.load_from_string(chain(IMAGE))
    for node in proto.graph.node:
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                names[at] = {"step_4": "input_sub"}.get(name, name)
    before = proto.SerializeToString()
    after = through(before, [MergeScaling()])
    np.testing.assert_allclose(answer(after, BYTES), answer(before, BYTES), atol=1e-5)


number = st.lists(st.floats(0.125, 8, width=32), min_size=1, max_size=1)
numbers = number | st.lists(st.floats(0.125, 8, width=32), min_size=3, max_size=3)
ARITHMETIC = st.sampled_from(["Mul", "Div", "Add", "Sub", "from Add", "from Mul"])


@settings(max_examples=60, deadline=None)
@given(
    first=st.lists(st.tuples(ARITHMETIC, numbers), max_size=4),
    turn=st.permutations([0, 1, 2]),
    second=st.lists(st.tuples(ARITHMETIC, number), max_size=4),
    early=st.booleans(),
)
def test_any_scaling_with_a_transposition_anywhere_gives_what_it_gave(
    first: list[Step], turn: list[int], second: list[Step], *, early: bool
) -> None:
    """A law: merged or not, the answers are the same, and no more operations than before are done."""
    turned, cast = ("Transpose", turn), ("Cast", ())
    steps = [turned, cast, *second] if early else [cast, *first, turned, *second]
    before = chain(steps)
    after = through(before, [MergeScaling()])
    assert len(kinds(after)) <= len(kinds(before))
    wanted = answer(before, BYTES)
    room = 1e-3 * max(1.0, float(wanted.max()))
    np.testing.assert_allclose(answer(after, BYTES), wanted, rtol=1e-3, atol=room)


def test_exported_networks_scale_in_two_operations() -> None:
    """The reference networks lose their chain when they are exported."""
    image = export_onnx(stir_(image_net(3, 4, 5)), torch.zeros(2, 24, 24, 3, dtype=torch.uint8))
    assert kinds(image)[:5] == ["Transpose", "Cast", "Sub", "Mul", "Conv"]
    motion = export_onnx(stir_(motion_net(4, 4, 6)), torch.zeros(2, 16, 6))
    assert kinds(motion)[:4] == ["Transpose", "Sub", "Mul", "Conv"]


class Careless:
    """A pass that forgets a factor."""

    name = "be careless"

    def requires(self, model: bytes) -> None:
        """Nothing."""

    def apply(self, model: bytes) -> bytes:
        """With one number changed."""
        proto = onnx.load_from_string(model)
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array(9, np.float32), "number_1"))
        return bytes(proto.SerializeToString())

    def ensures(self, before: bytes, after: bytes) -> None:
        """As `MergeScaling`."""
        MergeScaling().ensures(before, after)


def test_a_pass_that_breaks_its_promise_is_named() -> None:
    """The error says which step of the chain it was, and how far it is off."""
    with pytest.raises(
        ModelError,
        match=r"merging changed the answers; at be careless: logits; expected within [\d.e-]+; got [\d.e+]+",
    ):
        through(chain(IMAGE), [Careless()])


def test_what_a_library_raises_within_a_pass_is_a_coded_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, which names the pass: a stranger's model may be anything."""

    def broken(_self: object, _model: bytes) -> bytes:
        msg = "no such\n   node"
        raise KeyError(msg)

    monkeypatch.setattr(Careless, "apply", broken)
    with pytest.raises(
        ModelError, match=r"a step failed on this model; at be careless: model\.onnx; .*KeyError"
    ) as caught:
        through(chain(IMAGE), [Careless()])
    assert "\n" not in str(caught.value)
