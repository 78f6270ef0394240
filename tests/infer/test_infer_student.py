"""A student: calibrated answers to good batches, precise refusals of bad ones."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from infer_models import LABELS, expected_logits, tiny_model, weights
from onnx import TensorProto, helper

from edgestill.core.bundle import build, write_archive, write_folder
from edgestill.core.errors import (
    BundleAlteredError,
    ClassCountError,
    DtypeError,
    EngineError,
    ModelError,
    NotFiniteError,
    PathError,
    ShapeError,
)
from edgestill.infer.cascade import Cascade
from edgestill.infer.confidence import softmax
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.policy import Policy
from edgestill.infer.student import Student, load
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

POLICY = Policy(labels=LABELS, temperature=2.0)
BATCH = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)


def student(policy: Policy = POLICY, *, kind: int = TensorProto.FLOAT) -> Student:
    """Of the tiny model."""
    return Student(OnnxEngine(tiny_model(kind=kind)), policy, clock=FakeClock())


def test_probabilities_are_the_softmax_of_tempered_logits() -> None:
    """The answer is `softmax(logits / temperature)`, with features, confidence and `student` as its author."""
    answer = student().predict(BATCH)
    wanted = softmax(expected_logits(BATCH), 2.0)
    np.testing.assert_allclose(answer.probabilities, wanted, atol=1e-6)
    np.testing.assert_allclose(answer.confidence, wanted.max(axis=1), atol=1e-6)
    assert answer.decided_by == ("student",) * 6
    assert answer.features is not None
    assert answer.features.shape == (6, 5)
    assert (answer.alpha, answer.student, answer.teacher) == (None, None, None)
    assert len(answer) == 6


class Says:
    """An engine that gives these outputs."""

    inputs: Mapping[str, tuple[str, tuple[int | None, ...]]] = {"input": ("FP32", (None, 4))}

    def __init__(self, **outputs: ArrayLike) -> None:
        self._outputs = {name: np.array(one, dtype=np.float32) for name, one in outputs.items()}

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """The same, whatever is asked."""
        return dict(self._outputs)


def test_the_models_own_probabilities_are_taken() -> None:
    """A model that says it used the policy's temperature is believed: nothing is worked out again."""
    engine = Says(logits=[[0, 0, 0]], probabilities=[[0.5, 0.25, 0.25]], temperature=[2])
    answer = Student(engine, POLICY, clock=FakeClock()).predict(BATCH[:1])
    assert answer.probabilities.tolist() == [[0.5, 0.25, 0.25]]
    assert answer.confidence.tolist() == [0.5]


def test_a_temperature_that_no_float32_holds_is_the_policys_all_the_same() -> None:
    """0.7 is another number in float32; the model's and the policy's are compared there."""
    engine = Says(logits=[[0, 0, 0]], probabilities=[[0.5, 0.25, 0.25]], temperature=[0.7])
    found = Student(engine, replace(POLICY, temperature=0.7), clock=FakeClock()).predict(BATCH[:1])
    assert found.confidence.tolist() == [0.5]


@pytest.mark.parametrize(
    "told",
    [
        {"probabilities": [[0.5, 0.25, 0.25]], "temperature": [1.5]},
        {"probabilities": [[0.5, 0.25, 0.25]], "temperature": [2, 2]},
        {"probabilities": [[0.5, 0.25, 0.25]], "temperature": [float("nan")]},
        {"probabilities": [[0.5, 0.25, 0.25]]},
        {"probabilities": [[0.5, 0.5]], "temperature": [2]},
        {"probabilities": [0.5, 0.25, 0.25], "temperature": [2]},
        {"temperature": [2]},
    ],
)
def test_probabilities_of_another_temperature_are_worked_out_here(told: dict[str, ArrayLike]) -> None:
    """Another temperature, none, or another shape: then the logits decide."""
    found = Student(Says(logits=[[0, 0, 0]], **told), POLICY, clock=FakeClock()).predict(BATCH[:1])
    np.testing.assert_allclose(found.probabilities, [[1 / 3] * 3], atol=1e-6)


def test_a_learned_heads_probabilities_are_its_own() -> None:
    """The model's are those of the head that it replaces."""
    engine = Says(logits=[[0] * 3], features=[[1, 0]], probabilities=[[0.5, 0.25, 0.25]], temperature=[2])
    head = (np.array([[4, 0, 0], [0, 0, 0]], dtype=np.float32), np.zeros(3, dtype=np.float32))
    found = Student(engine, POLICY, head=head, clock=FakeClock()).predict(BATCH[:1])
    np.testing.assert_allclose(
        found.probabilities, softmax(np.array([[4, 0, 0]], dtype=np.float32), 2.0), atol=1e-6
    )


def test_logits_that_are_not_finite_are_refused_whatever_the_probabilities_are() -> None:
    """A model that overflows is told, even where its softmax looks well."""
    engine = Says(logits=[[0, 0, -np.inf]], probabilities=[[0.5, 0.5, 0]], temperature=[2])
    with pytest.raises(EngineError, match="not finite"):
        Student(engine, POLICY, clock=FakeClock()).predict(BATCH[:1])


def test_the_policys_measure_is_used() -> None:
    """Confidence is what the policy measures."""
    answer = student(Policy(labels=LABELS, measure="margin")).predict(BATCH)
    two = np.sort(answer.probabilities, axis=1)[:, -2:]
    np.testing.assert_allclose(answer.confidence, two[:, 1] - two[:, 0], atol=1e-6)


def test_latency_is_the_clocks() -> None:
    """The answer says how long the engine took, by the clock that was given."""
    clock = FakeClock()

    class Slow:
        inputs: Mapping[str, tuple[str, tuple[int | None, ...]]] = {"input": ("FP32", (None, 4))}

        def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
            clock.advance(0.25)
            return {"logits": np.zeros((len(inputs["input"]), 3), dtype=np.float32)}

    answer = Student(Slow(), POLICY, clock=clock).predict(BATCH)
    assert answer.latency == pytest.approx(0.25)
    assert answer.features is None


def test_a_learned_head_answers_instead_of_the_models_own() -> None:
    """With the model's own last layer as head the answers stay; with another they follow it."""
    _, weight, bias = weights()
    engine = OnnxEngine(tiny_model())
    same = Student(engine, POLICY, head=(weight, bias), clock=FakeClock()).predict(BATCH)
    np.testing.assert_allclose(same.probabilities, student().predict(BATCH).probabilities, atol=1e-5)
    rolled = Student(engine, POLICY, head=(np.roll(weight, 1, 1), np.roll(bias, 1)), clock=FakeClock())
    np.testing.assert_allclose(
        rolled.predict(BATCH).probabilities, np.roll(same.probabilities, 1, 1), atol=1e-5
    )


# What is refused


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        (BATCH[0], "[4]"),
        (BATCH[:, :3], "[6, 3]"),
        (BATCH[:0], "[0, 4]"),
        (BATCH[None], "[1, 6, 4]"),
        (np.float32(1).reshape(()), "[]"),
    ],
)
def test_another_shape_is_refused(batch: NDArray[np.generic], got: str) -> None:
    """Rank, dimensions and emptiness: the error says what was expected and what came."""
    with pytest.raises(ShapeError) as caught:
        student().predict(batch)
    assert str(caught.value) == (
        f"[shape-mismatch] the batch has another shape; at input; expected [N, 4]; got {got}; "
        "give inputs as the sensor does, the batch first, and at least one"
    )


@pytest.mark.parametrize(
    ("batch", "got"),
    [([[0.0] * 4], "builtins.list"), (torch.zeros(1, 4), "torch.Tensor"), (None, "builtins.NoneType")],
    ids=["list", "torch", "none"],
)
def test_what_is_no_numpy_array_is_refused(batch: Any, got: str) -> None:
    """By a student and by a cascade, with what to do; converting in silence would hide a copy or a wrong type."""
    alone = student()
    cascade = Cascade(alone, alone, Policy(labels=LABELS), clock=FakeClock(), random=lambda: 0.0)
    for model, where in ((alone, "input"), (cascade, "batch")):
        with pytest.raises(DtypeError, match=r"no numpy array; at .*numpy\.asarray") as caught:
            model.predict(batch)
        assert (caught.value.where, caught.value.got) == (where, got)


def test_a_batch_in_the_other_byte_order_is_answered_alike() -> None:
    """Big-endian float32 is float32: files from elsewhere have it."""
    other = BATCH.astype(BATCH.dtype.newbyteorder())
    assert np.array_equal(student().predict(other).probabilities, student().predict(BATCH).probabilities)


def test_another_element_type_is_refused() -> None:
    """float64 is not silently rounded, integers are not silently converted."""
    with pytest.raises(DtypeError, match=r"at input; expected float32; got float64; convert it with"):
        student().predict(BATCH.astype(np.float64))
    with pytest.raises(DtypeError, match="expected uint8; got int64"):
        student(kind=TensorProto.UINT8).predict(np.zeros((1, 4), dtype=np.int64))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    """The error names the first element that is no number."""
    batch = BATCH.copy()
    batch[2, 3] = batch[4, 1] = bad
    with pytest.raises(NotFiniteError, match=r"holds NaN or infinity; at input\[2, 3\]; expected finite"):
        student().predict(batch)


def test_bytes_need_not_be_finite() -> None:
    """Integer inputs are taken as they are."""
    answer = student(kind=TensorProto.UINT8).predict(np.array([[0, 255, 3, 4]], dtype=np.uint8))
    assert np.isfinite(answer.probabilities).all()


def test_labels_that_do_not_fit_the_model_are_refused() -> None:
    """A policy for two classes does not go with a model of three."""
    with pytest.raises(ClassCountError, match=r"expected 2 classes \(policy.json\); got 3"):
        student(Policy(labels=("a", "b"))).predict(BATCH)


def test_a_head_that_does_not_fit_is_refused() -> None:
    """Its parts, its classes, its numbers and the model's features are checked."""
    _, weight, bias = weights()
    engine = OnnxEngine(tiny_model())
    with pytest.raises(ShapeError, match=r"expected weight \[D, C\] and bias \[C\]"):
        Student(engine, POLICY, head=(weight, bias[:2]), clock=FakeClock())
    with pytest.raises(ClassCountError, match="the head and the labels disagree"):
        Student(engine, POLICY, head=(weight[:, :2], bias[:2]), clock=FakeClock())
    with pytest.raises(NotFiniteError, match="a head holds NaN"):
        Student(engine, POLICY, head=(weight * np.nan, bias), clock=FakeClock())
    with pytest.raises(ShapeError, match=r"the head belongs to other features.*got \[6, 5\]"):
        Student(engine, POLICY, head=(weight[:4], bias), clock=FakeClock()).predict(BATCH)
    blind = OnnxEngine(tiny_model(with_features=False))
    with pytest.raises(ModelError, match="the model gives no features"):
        Student(blind, POLICY, head=(weight, bias), clock=FakeClock()).predict(BATCH)


def test_a_model_with_two_inputs_is_no_student() -> None:
    """There is one batch to give."""

    class Two:
        inputs: Mapping[str, tuple[str, tuple[int | None, ...]]] = {"a": ("FP32", (1,)), "b": ("FP32", (1,))}

        def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
            return {}

    with pytest.raises(ModelError, match="a student takes one input"):
        Student(Two(), POLICY, clock=FakeClock())


def test_a_student_says_what_it_takes() -> None:
    """Name, datatype and shape, for a server to describe."""
    assert student().input == ("input", "FP32", (None, 4))


# From a bundle


def blobs() -> dict[str, bytes]:
    """The required ones, around the tiny model."""
    rest = {"golden.npz": b"g", "lineage.json": b"{}", "card.md": b"#"}
    return {"model.onnx": tiny_model(), "policy.json": POLICY.to_bytes()} | rest


def test_a_bundle_answers_from_file_and_from_folder(tmp_path: Path) -> None:
    """`load` gives the same student from both forms, with the machine's clock where none is given."""
    manifest, data = build(name="tiny", version="1.0.0", hardware_class="any", blobs=blobs())
    write_archive(tmp_path / "tiny.esb", manifest, data)
    write_folder(tmp_path / "tiny", manifest, data)
    wanted = student().predict(BATCH).probabilities
    for path in (tmp_path / "tiny.esb", str(tmp_path / "tiny")):
        answer = load(path).predict(BATCH)
        np.testing.assert_array_equal(answer.probabilities, wanted)
        assert answer.latency > 0


def test_an_altered_bundle_does_not_answer(tmp_path: Path) -> None:
    """One changed byte of the model is found before the engine sees it."""
    manifest, data = build(name="tiny", version="1.0.0", hardware_class="any", blobs=blobs())
    write_archive(tmp_path / "tiny.esb", manifest, data)
    altered = (tmp_path / "tiny.esb").read_bytes().replace(b"logits", b"logitz", 1)
    (tmp_path / "tiny.esb").write_bytes(altered)
    with pytest.raises(BundleAlteredError, match=r"model\.onnx was altered"):
        load(tmp_path / "tiny.esb")


def test_a_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The path is in the error."""
    with pytest.raises(PathError, match=r"nowhere\.esb"):
        load(tmp_path / "nowhere.esb")


def test_load_is_at_the_rooms_door() -> None:
    """`from edgestill.infer import load` works, and loads nothing before it is asked for."""
    code = (
        "import sys, edgestill.infer; assert 'numpy' not in sys.modules\n"
        "from edgestill.infer import load; assert callable(load) and 'onnxruntime' not in sys.modules\n"
        "try: edgestill.infer.nothing\n"
        "except AttributeError: print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "ok"


def test_a_batch_of_one_costs_little_beside_the_engine() -> None:
    """The path around the engine stays below 300 microseconds at batch 1, most of the time."""
    engine = Says(logits=[[0, 0, 0]], features=[[0] * 5])
    one = Student(engine, POLICY, clock=FakeClock())
    times = []
    for _ in range(300):
        start = time.perf_counter()
        one.predict(BATCH[:1])
        times.append(time.perf_counter() - start)
    assert sorted(times)[len(times) // 4] < 300e-6


def test_a_model_without_logits_is_refused() -> None:
    """The outputs that are there are named."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("input", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["input"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(ModelError, match=r"the model gives no logits.*got \['y'\]"):
        Student(OnnxEngine(model.SerializeToString()), POLICY, clock=FakeClock()).predict(BATCH)
