"""The next version of a bundle is the same but for the head that its devices have learned together."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_worlds import HELDOUT, POLICY, motions, packed, run
from onnx import TensorProto, helper, numpy_helper

from edgestill.core.bundle import Bundle, archive_bytes, write_archive
from edgestill.core.errors import DataError, EvidenceError, ModelError, SettingError
from edgestill.core.hardware import HardwareClass
from edgestill.core.jsonio import parse_object
from edgestill.delta.codec import diff
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.golden import read_golden
from edgestill.infer.policy import Policy
from edgestill.infer.student import load
from edgestill.lab.gradient.step import Training
from edgestill.lab.measure import run_model
from edgestill.lab.packing.assemble import REFERENCE
from edgestill.lab.packing.gate import Gate
from edgestill.lab.packing.grid import grid_id
from edgestill.lab.packing.newhead import Reheaded, ShippedHead, with_head
from edgestill.learn.codes import read_from
from edgestill.learn.statistics import Head, Statistics, solve, usual_ridge
from edgestill.learn.stepfile import StepFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edgestill.lab.data.samples import Samples
    from edgestill.lab.packing.assemble import Packed

CLASSES = 3
HERE = HardwareClass.here()
SEEN = motions(400, seed=7, noise=1.5)
LATER = motions(300, seed=8, noise=1.5)


def turned(data: Samples) -> Samples:
    """The same data in a world where every class has the next one's name."""
    return replace(data, labels=(data.labels + 1) % CLASSES)


@cache
def parent(kind: str = "int8") -> Bundle:
    """The bundle that devices run: in codes, in floats, or with a training step."""
    ways: dict[str, Callable[[], Packed]] = {
        "int8": packed,
        "floats": lambda: run().pack(POLICY, gate=Gate(int8=False)),
        "trainable": lambda: run().pack(POLICY, training=Training(trainable="head")),
        "leverage": lambda: run().pack(replace(POLICY, measure="leverage")),
    }
    return Bundle.open(ways[kind]().save(Path(mkdtemp()) / "motion.esb"))


def head(kind: str = "int8") -> Head:
    """What devices of the turned world learn together."""
    bundle, seen = parent(kind), turned(SEEN)
    _, features = run_model(OnnxEngine(bundle.read("model.onnx")), seen.inputs)
    known = Statistics.from_bytes(bundle.read(REFERENCE))
    empty = Statistics.empty(backbone=known.backbone, window=1, classes=CLASSES, features=features.shape[1])
    total = empty.add(features, np.eye(CLASSES)[seen.labels])
    return solve(total, ridge=usual_ridge(total))


@cache
def made(kind: str = "int8") -> Reheaded:
    """The next version, for the turned world."""
    return with_head(
        parent(kind),
        {"only": head(kind)},
        turned(LATER),
        version="1.0.1",
        evidence={"sums": {"samples": 400}},
    )


@pytest.mark.parametrize("kind", ["int8", "floats", "trainable", "leverage"])
def test_the_next_version_knows_what_devices_have_learned(kind: str, tmp_path: Path) -> None:
    """From its file, as a device loads it: right where the parent was wrong, and as sure as it should be."""
    found = made(kind)
    assert found.before.value < 0.1
    assert found.after.value > 0.9
    write_archive(tmp_path / "next.esb", found.manifest, found.blobs)
    answer = load(tmp_path / "next.esb").predict(LATER.inputs)
    right = answer.probabilities.argmax(1) == turned(LATER).labels
    assert abs(right.mean() - found.after.value) < 0.05
    assert abs(answer.probabilities.max(1).mean() - right.mean()) < 0.08


@pytest.mark.parametrize("kind", ["int8", "floats", "trainable"])
def test_nothing_but_the_head_and_its_temperature_changes_in_the_file(kind: str) -> None:
    """The same length, grid, backbone and reference; each byte that differs belongs to one of three tensors."""
    before, after = parent(kind).read("model.onnx"), made(kind).blobs["model.onnx"]
    assert len(before) == len(after)
    assert grid_id(before) == grid_id(after)
    one, other = ({i.name: i for i in onnx.load_from_string(m).graph.initializer} for m in (before, after))
    changed = {name for name in one if one[name] != other[name]}
    assert {name.removesuffix("_quantized") for name in changed} == {
        "head.weight",
        "head.bias",
        "temperature_value",
    }
    assert made(kind).blobs[REFERENCE] == parent(kind).read(REFERENCE)


def test_the_patch_is_hardly_more_than_the_head() -> None:
    """Two kilobytes at most, for a head of 6 features and 3 classes with its new policy, answers and lineage."""
    patch = diff(parent().path.read_bytes(), archive_bytes(made().manifest, made().blobs))
    assert len(patch) <= 2_000


def test_floats_are_written_in_the_multiple_that_is_calibrated() -> None:
    """No grid holds them back, so little temperature is left over: scores of targets themselves would need 0.14."""
    assert 0.5 < made("floats").policy.temperature < 2


def test_codes_change_few_answers() -> None:
    """What rounding the head costs is told as the share of other answers."""
    assert made().rounded <= 0.02
    assert made("floats").rounded == 0


def test_the_likeliest_head_is_chosen() -> None:
    """Of one that is right, one that is a little wrong and one that knows nothing; the lineage names it."""
    good = head()
    noise = np.random.default_rng(0).normal(0, 0.3, good.weight.shape).astype(np.float32)
    worse = Head(good.weight + noise, good.bias)
    heads = {"nothing": Head(0 * good.weight, good.bias), "worse": worse, "good": good}
    found = with_head(parent(), heads, turned(LATER), version="1.0.1", evidence={})
    assert found.chosen == "good"
    assert found.policy == made().policy
    assert parse_object(found.blobs["lineage.json"], where="lineage")["evidence"] == {
        "head": "good",
        "seed": 0,
    }


def test_what_chooses_does_not_judge() -> None:
    """The halves share no person; the accuracies are of the other half alone."""
    groups = np.arange(len(LATER)) // 30  # ten people
    found = with_head(
        parent(), {"only": head()}, replace(turned(LATER), groups=groups), version="1.0.1", evidence={}
    )
    assert (found.after.n, found.after.groups) == (150, 5)
    assert (made().after.n, made().after.groups) == (150, 150)
    alone = replace(turned(LATER), groups=np.zeros(len(LATER), np.int64))
    assert with_head(parent(), {"only": head()}, alone, version="1.0.1", evidence={}).after.n == 150


def test_golden_answers_are_the_new_heads() -> None:
    """The same inputs and tolerance; a device's probe compares with these."""
    before, after = read_golden(parent().read("golden.npz")), read_golden(made().blobs["golden.npz"])
    assert np.array_equal(before.input, after.input)
    assert before.tolerance == after.tolerance
    logits, _ = run_model(OnnxEngine(made().blobs["model.onnx"]), after.input)
    np.testing.assert_allclose(after.logits, logits, atol=1e-5)
    assert np.abs(before.logits - after.logits).max() > 0.1


def test_lineage_and_card_name_parent_and_evidence() -> None:
    """What is not of the head stays as it was."""
    before = parse_object(parent().read("lineage.json"), where="lineage")
    after = parse_object(made().blobs["lineage.json"], where="lineage")
    assert after["parent"] == str(parent().manifest.digest)
    assert after["evidence"] == {"sums": {"samples": 400}, "head": made().chosen, "seed": 0}
    assert {key: after[key] for key in ("backbone", "data", "teacher", "grid")} == {
        key: before[key] for key in ("backbone", "data", "teacher", "grid")
    }
    card = made().blobs["card.md"].decode()
    assert "student 1.0.0 with another last layer" in card
    assert str(made().after) in card


def test_training_goes_on_from_the_new_head() -> None:
    """Where a device's training step looks for the head, it finds the new one."""
    steps = StepFile.from_bytes(made("trainable").blobs["train.json"])
    assert made("trainable").blobs["train.onnx"] == parent("trainable").read("train.onnx")
    found = read_from(made("trainable").blobs["model.onnx"], steps.tensors)
    shipped = ShippedHead(made("trainable").blobs["model.onnx"], HERE).read()
    np.testing.assert_array_equal(found["head.weight"], shipped.weight.T)


def test_with_a_teacher_alpha_is_fitted_and_without_one_it_stays() -> None:
    """A teacher that is always right gets all the weight; weights by confidence of another head go."""
    truth = 8 * np.eye(CLASSES, dtype=np.float32)[turned(LATER).labels]
    heard = with_head(parent(), {"only": head()}, turned(LATER), version="1.0.1", evidence={}, teacher=truth)
    known = Policy.from_bytes(parent().read("policy.json"))
    assert heard.policy.alpha > 0.5
    assert heard.policy.evidence["report"]["teacher"]["accuracy"] == 1.0  # type: ignore[index,call-overload]
    assert (made().policy.alpha, made().policy.bands) == (known.alpha, ())
    assert made().policy.labels == known.labels
    assert made().policy.statistics == known.statistics


@settings(deadline=None)
@given(
    values=st.lists(st.floats(-3, 3, width=32), min_size=21, max_size=21),
    kind=st.sampled_from(["int8", "floats"]),
)
def test_a_head_is_read_back_as_it_was_written(values: list[float], kind: str) -> None:
    """At the largest multiple that the grid has: no weight is further off than half a step."""
    shipped = ShippedHead(parent(kind).read("model.onnx"), HERE)
    numbers = np.array(values, np.float32)
    wanted = Head(numbers[:18].reshape(6, 3), numbers[18:])
    times = min(shipped.most(wanted), 100.0)
    grown = Head(wanted.weight * times, wanted.bias * times)
    found = ShippedHead(shipped.write(grown), HERE).read()
    np.testing.assert_allclose(
        found.bias, grown.bias, rtol=1e-6, atol=1e-4
    )  # codes of 32 bits, in the file in codes
    step = _steps(parent(kind).read("model.onnx")) if kind == "int8" else np.zeros(3)
    assert (np.abs(found.weight - grown.weight) <= step / 2 + 1e-5).all()


def _steps(model: bytes) -> NDArray[np.float32]:
    found = {one.name: numpy_helper.to_array(one) for one in onnx.load_from_string(model).graph.initializer}
    return found["head.weight_scale"]


def test_a_product_and_a_sum_are_a_layer_as_well() -> None:
    """Many exporters write `features @ W + b` as two operators."""
    weight, bias = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3, np.float32)
    shipped = ShippedHead(by_hand(w=weight, b=bias), HERE)
    assert np.array_equal(shipped.read().weight, weight)
    new = Head(weight[:, ::-1], np.array([3, 2, 1], np.float32))
    answers = OnnxEngine(shipped.write(new)).run({"input": np.eye(2, dtype=np.float32)})["logits"]
    np.testing.assert_array_equal(answers, new.weight + new.bias)


def test_a_bias_may_be_a_row() -> None:
    """Of shape `[1, C]`, which means the same."""
    weight, bias = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([[1, 2, 3]], np.float32)
    shipped = ShippedHead(by_hand(w=weight, b=bias), HERE)
    assert np.array_equal(shipped.read().bias, bias[0])
    new = Head(weight, np.array([3, 2, 1], np.float32))
    assert np.array_equal(ShippedHead(shipped.write(new), HERE).read().bias, new.bias)


@pytest.mark.parametrize("axis", [1, -1, None])
def test_codes_with_a_zero_point_have_other_numbers_above_than_below(axis: int | None) -> None:
    """As other quantisers write weights: the largest multiple is told by sign, and a head beyond it is refused."""
    codes = np.full((2, 3), 20, np.uint8)
    shipped = ShippedHead(by_hand(w=codes, b=np.zeros(3, np.float32), zero=20, scale=0.01, axis=axis), HERE)
    np.testing.assert_allclose(shipped.read().weight, 0, atol=1e-7)
    below = Head(np.array([[-0.1, 0, 0], [0, 0, 0.5]], np.float32), np.zeros(3, np.float32))
    assert shipped.most(below) == pytest.approx(2.0)  # 20 steps below zero, 235 above
    above = Head(-below.weight, below.bias)
    assert shipped.most(above) == pytest.approx(0.4)
    grown = Head(2 * below.weight, below.bias)
    found = ShippedHead(shipped.write(grown), HERE).read()
    np.testing.assert_allclose(found.weight, grown.weight, atol=0.005)
    with pytest.raises(ModelError, match="a head beyond the grid"):
        shipped.write(Head(3 * below.weight, below.bias))


def by_hand(
    *,
    w: NDArray[np.generic],
    b: NDArray[np.float32] | None,
    last: str = "Add",
    zero: int | None = None,
    scale: float = 1.0,
    axis: int | None = None,
    shared: str = "",
) -> bytes:
    """`features = input (+ b)`, `logits = features @ W + b`, and a temperature; W may be codes, and something be shared."""
    nodes, parts = [], {"w": w, "t": np.ones(1, np.float32)}
    if b is not None:
        parts["b"] = b
    weight = "w"
    if zero is not None:
        count = w.shape[1] if axis is not None else 1
        shape = (count,) if axis is not None else ()
        parts |= {
            "s": np.full(shape, scale, np.float32),
            "z": np.full(shape, zero, w.dtype),
        }
        node = helper.make_node("DequantizeLinear", ["w", "s", "z"], ["decoded"])
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        nodes.append(node)
        weight = "decoded"
    first = {"": ("Identity", ["input"]), "b": ("Add", ["input", "b"]), "w": ("MatMul", ["input", weight])}
    op, given = first[shared]
    nodes += [
        helper.make_node(op, given, ["features"]),
        helper.make_node("MatMul", ["features", weight], ["product"]),
        helper.make_node("Identity", ["product"], ["logits"])
        if b is None
        else helper.make_node(last, ["product", "b"], ["logits"]),
        helper.make_node("Identity", ["t"], ["temperature"]),
    ]
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", len(w)])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", w.shape[1]]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", len(w)]),
            helper.make_tensor_value_info("temperature", TensorProto.FLOAT, [1]),
        ],
        [numpy_helper.from_array(one, name) for name, one in parts.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


# What is refused


@pytest.mark.parametrize(
    ("bias", "last", "why"),
    [(None, "Add", "Identity"), (np.ones(3, np.float32), "Mul", "Mul")],
    ids=["no bias", "no sum"],
)
def test_a_last_layer_of_another_kind_is_refused(
    bias: NDArray[np.float32] | None, last: str, why: str
) -> None:
    """What is not `features W + b` cannot become another head."""
    with pytest.raises(ModelError, match=f"the last layer cannot be replaced.*{why}"):
        ShippedHead(by_hand(w=np.ones((2, 3), np.float32), b=bias, last=last), HERE)


@pytest.mark.parametrize("shared", ["w", "b"])
def test_attack_a_head_that_is_part_of_the_backbone_is_refused(shared: str) -> None:
    """Attack: tied weights, or equal ones that a tool has merged: another head would change the features behind their name."""
    square = np.eye(3, dtype=np.float32)
    model = by_hand(w=square, b=np.ones(3, np.float32), shared=shared)
    with pytest.raises(ModelError, match=f"shares no numbers with others.*{shared} in several places"):
        ShippedHead(model, HERE)


def test_attack_features_that_changed_all_the_same_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: whatever a graph hides, features are compared bit by bit before anything is made of it."""
    written = ShippedHead.write

    def careless(shipped: ShippedHead, head: Head) -> bytes:
        model = bytearray(written(shipped, head))
        at = model.index(numpy_helper.to_array(_initializer("int8", "features_scale")).tobytes())
        model[at + 1] ^= 0x40
        return bytes(model)

    monkeypatch.setattr(ShippedHead, "write", careless)
    with pytest.raises(ModelError, match="another head changed the features"):
        with_head(parent(), {"only": head()}, turned(LATER), version="1.0.1", evidence={})


def _initializer(kind: str, name: str) -> onnx.TensorProto:
    graph = onnx.load_from_string(parent(kind).read("model.onnx")).graph
    found: onnx.TensorProto = next(one for one in graph.initializer if one.name == name)
    return found


def test_halves_of_which_one_is_a_handful_are_refused() -> None:
    """A large person beside small ones: whoever judges must be some."""
    groups = np.r_[np.zeros(290, np.int64), np.arange(1, 11)]
    with pytest.raises(DataError, match="too little held-out data"):
        with_head(
            parent(), {"only": head()}, replace(turned(LATER), groups=groups), version="1.0.1", evidence={}
        )


def test_a_head_that_forgets_what_it_is_judged_by_is_refused() -> None:
    """Of a turned world's devices nothing comes to a world that was not turned."""
    with pytest.raises(EvidenceError, match="worse than the one that it would replace") as caught:
        with_head(parent(), {"only": head()}, HELDOUT, version="1.0.1", evidence={})
    assert "--prior" in str(caught.value)


def test_a_loss_that_is_allowed_is_let_through() -> None:
    """The operator may say how much is given up."""
    found = with_head(parent(), {"only": head()}, HELDOUT, version="1.0.1", evidence={}, allowed=1.0)
    assert found.after.value < found.before.value


@pytest.mark.parametrize("version", ["1.0.0", "0.9.9"])
def test_a_version_that_is_not_above_the_parents_is_refused(version: str) -> None:
    """A hub makes patches to higher versions only."""
    with pytest.raises(SettingError, match=r"version.*more than 1\.0\.0"):
        with_head(parent(), {"only": head()}, turned(LATER), version=version, evidence={})


def test_a_head_of_other_features_is_refused() -> None:
    """Sums of another network have another width."""
    other = Head(np.zeros((7, 3), np.float32), np.zeros(3, np.float32))
    with pytest.raises(EvidenceError, match=r"a head of another kind.*\[6, 3\].*\[7, 3\]"):
        with_head(parent(), {"only": other}, turned(LATER), version="1.0.1", evidence={})


def test_too_little_data_is_refused() -> None:
    """Nothing can be fitted on a handful."""
    with pytest.raises(DataError, match=r"too little held-out data.*30 samples at least.*24 and 24"):
        with_head(parent(), {"only": head()}, turned(motions(48, seed=3)), version="1.0.1", evidence={})
