"""A finished model and some data in, a bundle out that answers as the model did."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from foreign_models import CLASSES, answer, image_logits, image_model
from onnx import numpy_helper
from test_lab_foreign import linear_model

from edgestill.core.budget import Budget
from edgestill.core.clock import SystemClock
from edgestill.core.errors import (
    ClassCountError,
    DataError,
    DtypeError,
    ModelError,
    NotFiniteError,
    SettingError,
    ShapeError,
)
from edgestill.core.hardware import HardwareClass
from edgestill.core.jsonio import parse_object
from edgestill.infer import load
from edgestill.infer.confidence import softmax
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.golden import probe, read_golden
from edgestill.infer.openvino import OpenVinoEngine
from edgestill.infer.policy import Policy
from edgestill.lab.data.samples import Samples
from edgestill.lab.notices import NothingLearnedWarning
from edgestill.lab.packing.assemble import REFERENCE, reweighted
from edgestill.lab.packing.finished import backbone_of, pack_onnx, standardised
from edgestill.lab.packing.foreign import NameEnds
from edgestill.lab.packing.gate import Gate
from edgestill.lab.packing.grid import grid_id
from edgestill.lab.packing.sensor import Sensor
from edgestill.learn.statistics import Statistics, solve

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.core.digest import Digest
    from edgestill.lab.packing.assemble import Packed

CAMERA = Sensor(kind="uint8", layout="channels-last", scale=1 / 255, mean=(0.5,), deviation=(0.25,))
BYTES = np.random.default_rng(4).integers(0, 256, (160, 8, 8, 3), dtype=np.uint8)


def by_hand(pictures: NDArray[np.uint8] = BYTES) -> NDArray[np.float32]:
    """Logits of the model for what the camera gave."""
    return image_logits(CAMERA.prepared(pictures))


@cache
def data() -> Samples:
    """Labels are the model's own answers, one of ten changed."""
    labels = by_hand().argmax(1)
    labels[::10] = (labels[::10] + 1) % CLASSES
    return Samples.of(BYTES, labels, classes=CLASSES)


@cache
def packed() -> Packed:
    """With labels, and the camera's preprocessing; of 160 pictures some lie so near a border that int8 moves them."""
    return pack_onnx(image_model(end=["Softmax"]), data(), sensor=CAMERA, gate=Gate(allowed=0.04))


def test_the_bundle_answers_bytes_as_the_model_answered_floats(tmp_path: Path) -> None:
    """From the file, without torch: the same classes but where int8 rounds, by the camera's own bytes."""
    made = packed()
    student = load(made.save(tmp_path / "camera.esb"))
    assert student.input == ("input", "UINT8", (None, 8, 8, 3))
    found = student.predict(BYTES)
    assert np.mean(found.probabilities.argmax(1) == by_hand().argmax(1)) > 0.97
    wanted = softmax(by_hand(), made.policy.temperature)
    assert np.abs(found.probabilities - wanted).max() < 0.15
    assert found.features is not None


def test_labels_fit_a_temperature_and_judge_int8() -> None:
    """One of ten labels contradicts the model, so it is less sure than it says; accuracies are told on the card."""
    made = packed()
    assert made.policy.temperature != 1.0
    assert made.fp32.value == pytest.approx(0.9)
    assert abs(made.int8.value - made.fp32.value) <= 0.04
    assert made.teacher is None
    assert made.tried[-1].way.startswith("int8")  # some layers stay in floats where products saturate
    card = made.blobs["card.md"].decode()
    assert "Accuracy on the held-out data" in card
    assert f"| int8 | {made.int8} | 160 samples |" in card
    assert "| teacher |" not in card
    assert not made.policy.promised
    assert "nobody asked a teacher" in card


def test_the_threshold_keeps_the_share_that_may_be_asked() -> None:
    """Without a teacher it promises nothing, and a fifth of such inputs lies below it."""
    found = answer(packed().blobs["model.onnx"], BYTES)["probabilities"]
    assert np.mean(found.max(1) < packed().policy.threshold) == pytest.approx(0.2, abs=0.08)


def test_without_labels_the_file_in_floats_is_the_judge() -> None:
    """Nothing is fitted, and the card speaks of agreement."""
    made = pack_onnx(image_model(), BYTES, sensor=CAMERA)
    assert (made.fp32.value, made.policy.temperature) == (1.0, 1.0)
    assert made.int8.value >= 0.995
    card = made.blobs["card.md"].decode()
    assert "Agreement with the file in floats, on data without labels" in card
    assert "| model | agreement | on |" in card
    assert "the data had no labels" in card
    assert "Agreement with" in reweighted(made, escalation_share=0.5).blobs["card.md"].decode()


@pytest.mark.parametrize(
    "teacher",
    [image_model(end=["Softmax"]), standardised(image_model(), CAMERA, NameEnds())],
    ids=["prepared floats", "bytes"],
)
def test_a_teacher_is_heard(teacher: bytes) -> None:
    """Its temperature and alpha are fitted, and its accuracy told, whether it takes readings or what becomes of them."""
    made = pack_onnx(image_model(), data(), sensor=CAMERA, teacher=teacher)
    assert made.teacher is not None
    assert made.teacher.value == pytest.approx(0.9)
    assert "report" in made.policy.evidence
    assert made.policy.teacher_temperature != 1.0
    lineage = parse_object(made.blobs["lineage.json"], where="lineage", max_bytes=10**6)
    assert lineage["teacher"] is not None


def test_golden_answers_and_probe_come_with_it() -> None:
    """The device asks them before it switches."""
    golden = read_golden(packed().blobs["golden.npz"])
    probe(OnnxEngine(packed().blobs["model.onnx"]), golden, SystemClock()).check()
    assert golden.input.dtype == np.uint8


def test_statistics_of_the_data_come_with_it() -> None:
    """A head solved from them tells the labels about as well as the model does."""
    sums = Statistics.from_bytes(packed().blobs[REFERENCE])
    assert sums.n == len(BYTES)
    features = answer(packed().blobs["model.onnx"], BYTES)["features"]
    head = solve(sums, ridge=1e-3)
    found = features @ head.weight + head.bias
    assert np.mean(found.argmax(1) == data().labels) > 0.6


def test_the_backbone_is_what_comes_before_the_features() -> None:
    """Another head is the same backbone; another kernel is another one."""
    model = onnx.load_from_string(image_model())

    def changed(name: str) -> Digest:
        other = onnx.ModelProto()
        other.CopyFrom(model)
        for one in other.graph.initializer:
            if one.name == name:
                one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one) * 2, name))
        return backbone_of(standardised(other.SerializeToString(), Sensor(), NameEnds()))

    assert changed("nothing") == changed("weight") == changed("bias")
    assert changed("kernel") != changed("nothing")


def test_a_model_in_int8_already_stays_as_it_is() -> None:
    """Its codes are not rounded a second time."""
    inner = packed().blobs["model.onnx"]
    again = pack_onnx(_without_probabilities(inner), data())
    assert again.tried[-1].way == "as it came, quantised"
    assert grid_id(again.blobs["model.onnx"]) == grid_id(inner)


def _without_probabilities(model: bytes) -> bytes:
    proto = onnx.load_from_string(model)
    del proto.graph.output[2:]
    return bytes(proto.SerializeToString())


def test_who_wants_no_int8_gets_none() -> None:
    """The file in floats, with its probabilities."""
    made = pack_onnx(image_model(), data(), sensor=CAMERA, gate=Gate(int8=False))
    assert made.tried[-1].way == "floats"
    found = answer(made.blobs["model.onnx"], BYTES)["logits"]
    np.testing.assert_allclose(found, by_hand(), rtol=1e-3, atol=1e-3)


def test_a_bundle_for_another_engine_is_judged_by_it() -> None:
    """Accuracy, golden answers and latency are OpenVINO's where the hardware class says so."""
    where = HardwareClass.here("openvino")
    made = pack_onnx(image_model(), data(), sensor=CAMERA, hardware_class=where, budget=Budget(latency="1 s"))
    assert made.manifest.hardware_class == where.name
    golden = read_golden(made.blobs["golden.npz"])
    engine = OpenVinoEngine(made.blobs["model.onnx"])
    assert probe(engine, golden, SystemClock()).difference < 1e-6
    found = engine.run({"input": BYTES})["logits"].astype(np.float32)
    assert made.int8.value == pytest.approx(np.mean(found.argmax(1) == data().labels))
    assert made.footprint is not None
    assert made.footprint.latency is not None


def test_a_budget_is_held() -> None:
    """As measured; its escalation share is the policy's."""
    made = pack_onnx(image_model(), data(), sensor=CAMERA, budget=Budget(size="1 MB", escalation="5 %"))
    assert made.footprint is not None
    assert made.footprint.size == made.manifest.size
    assert made.policy.escalation_share == 0.05
    with pytest.raises(SettingError, match="larger than its budget"):
        pack_onnx(image_model(), data(), sensor=CAMERA, budget=Budget(size="1 kB"))


def test_names_go_into_policy_and_card() -> None:
    """One a class."""
    names = ("left", "right", "up", "down")
    made = pack_onnx(image_model(), data(), sensor=CAMERA, policy=Policy(labels=names))
    assert made.policy.labels == names
    assert "4 classes: left, right, up, down." in made.blobs["card.md"].decode()
    with pytest.raises(ClassCountError, match=r"at labels; expected 4 \(the model's\); got 3"):
        pack_onnx(image_model(), data(), sensor=CAMERA, policy=Policy(labels=names[:3]))


BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (BYTES[:1], {}, DataError, "too little data to calibrate on"),
    (BYTES.astype(np.float32), {}, DtypeError, "calibration: input; expected uint8; got float32"),
    (BYTES[:, :4], {}, ShapeError, r"calibration: input; expected \[N, 8, 8, 3\]"),
    (BYTES[:, :, :, :2], {}, ShapeError, "calibration: input"),
    (Samples.of(BYTES, np.arange(160) % 9), {}, ClassCountError, r"expected 4 \(the model's\); got 9"),
    (data(), {"teacher": linear_model()}, ModelError, "too few axes; at teacher"),
    (data(), {"teacher": b"nothing"}, ModelError, "teacher"),
]


@pytest.mark.parametrize(("given", "more", "error", "said"), BAD, ids=[one[3] for one in BAD])
def test_data_and_teachers_that_do_not_fit_are_refused(
    given: Any, more: dict[str, Any], error: type[Exception], said: str
) -> None:
    """With what the model takes."""
    with pytest.raises(error, match=said):
        pack_onnx(image_model(), given, sensor=CAMERA, **more)


def test_readings_that_are_not_finite_are_refused() -> None:
    """Which one is told; so are finite ones for which the model has no answer."""
    floats = np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)
    spoilt = floats.copy()
    spoilt[7, 1, 0, 0] = np.nan
    with pytest.raises(NotFiniteError, match=r"calibration: input\[7, 1, 0, 0\]"):
        pack_onnx(image_model(), spoilt)
    spoilt[7, 1, 0, 0] = 3e38
    with pytest.raises(DataError, match="no finite answer; at calibration: input 7"):
        pack_onnx(image_model(), spoilt)


def test_building_twice_gives_the_same_bytes() -> None:
    """So that a release can be built again."""
    again = pack_onnx(image_model(end=["Softmax"]), data(), sensor=CAMERA, gate=Gate(allowed=0.04))
    assert again.manifest.digest == packed().manifest.digest


# what a reviewer found


def test_settings_of_operators_are_part_of_the_backbone() -> None:
    """A leak of .01 and one of .9 give other features: their sums must not be added."""

    def leaky(alpha: float) -> Digest:
        model = onnx.load_from_string(image_model())
        node = next(one for one in model.graph.node if one.op_type == "Relu")
        node.op_type = "LeakyRelu"
        node.attribute.append(onnx.helper.make_attribute("alpha", alpha))
        return backbone_of(standardised(model.SerializeToString(), Sensor(), NameEnds()))

    assert leaky(0.01) == leaky(0.01) != leaky(0.9)


def test_a_teacher_of_floats_gets_readings_prepared() -> None:
    """Also where the sensor gives floats, which it could take as they are: and then would be wrong."""
    readings = (CAMERA.prepared(BYTES) * 50 + 100).astype(np.float32)
    sensor = Sensor(mean=(100.0,), deviation=(50.0,))
    made = pack_onnx(image_model(), Samples.of(readings, data().labels), sensor=sensor, teacher=image_model())
    assert made.teacher is not None
    assert made.teacher.value == pytest.approx(0.9)


def test_rows_that_know_of_each_other_for_real_readings_are_refused() -> None:
    """Random inputs do not show it: only what the sensor gives does."""
    model = onnx.load_from_string(image_model())
    four = numpy_helper.from_array(np.array(40, dtype=np.float32), "four")
    model.graph.node[-1].output[0] = "own"
    model.graph.node.extend(
        [
            onnx.helper.make_node("ReduceMax", ["picture"], ["most"], keepdims=0),
            onnx.helper.make_node("Greater", ["most", "four"], ["large"]),
            onnx.helper.make_node("Cast", ["large"], ["gate"], to=1),
            onnx.helper.make_node("ReduceMean", ["own"], ["shared"], axes=[0], keepdims=1),
            onnx.helper.make_node("Mul", ["shared", "gate"], ["gated"]),
            onnx.helper.make_node("Sub", ["own", "gated"], ["scores"]),
        ]
    )
    model.graph.initializer.append(four)
    floats = (CAMERA.prepared(BYTES) * 100).astype(np.float32)
    with pytest.raises(ModelError, match="rows of a batch know of each other; at calibration"):
        pack_onnx(model.SerializeToString(), floats, ends=NameEnds(features="flattened"))


def test_readings_in_the_other_byte_order_are_read_right() -> None:
    """By every step alike."""
    sensor = Sensor(kind="int16", layout="channels-last", scale=1 / 255, mean=(0.5,), deviation=(0.25,))
    here = BYTES.astype(np.int16)
    made = [pack_onnx(image_model(), one, sensor=sensor) for one in (here, here.astype(">i2"))]
    assert made[0].manifest.digest == made[1].manifest.digest
    assert made[1].int8.value > 0.99


def test_labels_in_another_order_are_remarked_on() -> None:
    """A model that is surely worse than guessing tells of its labels, not of itself."""
    turned = Samples.of(BYTES, (by_hand().argmax(1) + 1) % CLASSES, classes=CLASSES)
    with pytest.warns(
        NothingLearnedWarning, match="worse than guessing.*in the order of the model's outputs"
    ):
        pack_onnx(image_model(), turned, sensor=CAMERA)


def test_what_an_engine_refuses_is_no_way_to_write_it_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 that no engine takes costs all there is, and the file stays in floats."""

    def broken(*_: object, **__: object) -> bytes:
        model = onnx.load_from_string(standardised(image_model(), CAMERA, NameEnds()))
        model.graph.node[0].op_type = "NoSuchOperator"
        data: bytes = model.SerializeToString()
        return data

    monkeypatch.setattr("edgestill.lab.packing.gate.quantise", broken)
    monkeypatch.setattr("edgestill.lab.packing.gate.shippable", lambda one: one)
    made = pack_onnx(image_model(), data(), sensor=CAMERA)
    assert made.tried[0].way == "int8, which the engine refuses"
    assert made.tried[0].drop.value == pytest.approx(0.9)
    assert made.tried[-1].way == "floats"


@pytest.mark.parametrize("inputs", [np.float32(3), np.zeros(0), np.zeros(7)])
def test_what_is_no_batch_is_refused(inputs: Any) -> None:
    """A number, nothing, a row."""
    with pytest.raises(DataError, match="too little data"):
        pack_onnx(image_model(), np.asarray(inputs))
