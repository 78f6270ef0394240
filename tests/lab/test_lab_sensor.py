"""What a sensor gives becomes what the network was trained on, inside the file."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from foreign_models import answer, image_logits, image_model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from test_lab_foreign import linear_model

from edgestill.core.errors import ModelError, SettingError
from edgestill.infer.engine import OnnxEngine
from edgestill.lab.packing.finished import standardised
from edgestill.lab.packing.foreign import NameEnds
from edgestill.lab.packing.sensor import Sensor, TakeSensor

CAMERA = Sensor(
    kind="uint8", layout="channels-last", scale=1 / 255, mean=(0.5, 0.4, 0.3), deviation=(0.2, 0.3, 0.25)
)
BYTES = np.random.default_rng(3).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


def test_a_cameras_bytes_are_answered_as_prepared_floats_are() -> None:
    """The model takes `uint8 [N, H, W, 3]`; scaling, means and the order of axes are within."""
    model = standardised(image_model(), CAMERA, NameEnds())
    assert OnnxEngine(model).inputs == {"input": ("UINT8", (None, 8, 8, 3))}
    by_hand = ((BYTES / 255 - np.array(CAMERA.mean)) / np.array(CAMERA.deviation)).transpose(0, 3, 1, 2)
    found = answer(model, BYTES)["logits"]
    np.testing.assert_allclose(found, image_logits(by_hand), rtol=1e-3, atol=1e-3)


NUMBERS = st.floats(-100, 100, width=32)
SIZES = st.floats(0.0625, 64, width=32)


@given(
    kind=st.sampled_from(["", "uint8", "uint16", "int16", "int32", "float32"]),
    layout=st.sampled_from(["", "channels-last"]),
    scale=SIZES,
    mean=st.lists(NUMBERS, min_size=1, max_size=3).filter(lambda one: len(one) != 2),
    deviation=st.lists(SIZES, min_size=1, max_size=3).filter(lambda one: len(one) != 2),
)
@settings(deadline=None, max_examples=40)
def test_any_preprocessing_is_the_one_that_numpy_does(
    kind: Any, layout: Any, scale: float, mean: list[float], deviation: list[float]
) -> None:
    """A law, checked by the pass itself on inputs of its own, and here on others."""
    sensor = Sensor(kind=kind, layout=layout, scale=scale, mean=tuple(mean), deviation=tuple(deviation))
    model = standardised(image_model(), sensor, NameEnds())
    shape = (2, 8, 8, 3) if layout else (2, 3, 8, 8)
    readings = np.random.default_rng(0).integers(0, 100, shape).astype(kind or "float32")
    found = answer(model, readings)["logits"].astype(np.float64)
    wanted = image_logits(sensor.prepared(readings))
    assert np.abs(found - wanted).max() <= 1e-3 * max(1.0, float(np.abs(wanted).max()))


def test_a_sensor_that_gives_what_the_model_takes_changes_nothing() -> None:
    """Not a byte."""
    model = standardised(image_model(), Sensor(), NameEnds())
    assert TakeSensor(Sensor()).apply(model) == model
    assert Sensor().is_plain
    assert not CAMERA.is_plain


def test_rows_of_numbers_are_scaled_by_column() -> None:
    """`[N, D]`: a mean and a deviation for each column."""
    sensor = Sensor(kind="int16", mean=(1, 2, 3, 4, 5), deviation=(1, 2, 1, 2, 1))
    model = standardised(linear_model(), sensor, NameEnds())
    rows = np.arange(10, dtype=np.int16).reshape(2, 5)
    wanted = (rows - np.array([1, 2, 3, 4, 5])) / np.array([1, 2, 1, 2, 1])
    np.testing.assert_allclose(answer(model, rows)["features"], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("sensor", "said"),
    [
        (
            Sensor(mean=(1, 2)),
            r"a mean for each channel.*expected 3 \(the model's channels; see layout\); got 2",
        ),
        (Sensor(deviation=(1, 2, 3, 4)), r"a mean for each channel.*got 4"),
    ],
)
def test_as_many_means_as_channels(sensor: Sensor, said: str) -> None:
    """Any other number is a mistake."""
    with pytest.raises(ModelError, match=said):
        standardised(image_model(), sensor, NameEnds())


def test_a_model_on_bytes_needs_no_preprocessing() -> None:
    """It has it inside; another one before it would be wrong."""
    inside = standardised(image_model(), CAMERA, NameEnds())
    with pytest.raises(ModelError, match="has its preprocessing already"):
        standardised(inside, CAMERA, NameEnds())


def test_rows_have_no_channels_to_move() -> None:
    """`[N, D]` has one order only."""
    with pytest.raises(ModelError, match="too few axes"):
        standardised(linear_model(), Sensor(layout="channels-last"), NameEnds())


BAD: list[tuple[dict[str, Any], str]] = [
    ({"kind": "float8"}, r"sensor: kind; expected one of uint8, .*; got 'float8'"),
    ({"layout": "first"}, "sensor: layout; expected one of channels-last"),
    ({"scale": 0.0}, "sensor: scale; expected finite numbers, not 0"),
    ({"scale": float("nan")}, "sensor: scale"),
    ({"mean": ()}, "sensor: mean; expected finite numbers; got"),
    ({"mean": (float("inf"),)}, "sensor: mean"),
    ({"deviation": (1.0, 0.0)}, "sensor: deviation; expected finite numbers, not 0"),
    ({"mean": (1, 2, 3), "deviation": (1, 2)}, r"expected 1 or 3 numbers \(the means\); got 2"),
]


@pytest.mark.parametrize(("settings_", "said"), BAD, ids=[str(one) for one, _ in BAD])
def test_values_out_of_range_are_refused(settings_: dict[str, Any], said: str) -> None:
    """Each is named, with what would be right."""
    with pytest.raises(SettingError, match=said):
        Sensor(**settings_)


def test_a_sensor_is_read_from_text() -> None:
    """As the command line gives it; fractions are exact, and blanks stand between numbers."""
    text = "kind=uint8, layout=channels-last, scale=1/255, mean=0.5 0.4 0.3, deviation=0.2 0.3 1/4"
    assert Sensor.parse(text) == CAMERA
    assert Sensor.parse("") == Sensor()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("uint8", "expected NAME=VALUE, each once, of kind, layout, scale, mean, deviation; got 'uint8'"),
        ("kind=uint8,kind=int16", "got 'kind=int16'"),
        ("means=1", "got 'means=1'"),
        ("scale=", "expected numbers such as 0.5 or 1/255"),
        ("scale=1/0", "sensor: scale"),
        ("mean=0.5;0.4", "with blanks between them"),
        ("deviation=", "finite numbers"),
        ("scale=nan", "sensor: scale"),
    ],
)
def test_text_that_is_no_sensor_is_refused(text: str, said: str) -> None:
    """What is wrong is shown as it was written."""
    with pytest.raises(SettingError, match=said):
        Sensor.parse(text)


def test_networks_that_have_their_channels_last_get_means_there() -> None:
    """`[N, T, C]` in the sensor and in the network: a mean for each C; along any other axis they would be wrong."""
    weight = numpy_helper.from_array(np.ones((2, 3), dtype=np.float32), "w")
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=0),
            helper.make_node("MatMul", ["m", "w"], ["y"]),
        ],
        "motion",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [weight],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    sensor = Sensor(kind="int16", layout="both-last", mean=(10, 20), deviation=(2, 4))
    readings = np.array([[[12, 24], [14, 28]]], dtype=np.int16)
    found = answer(standardised(model, sensor, NameEnds()), readings)
    np.testing.assert_allclose(found["features"], [[1.5, 1.5]], rtol=1e-5)
    with pytest.raises(ModelError, match="a mean for each channel"):
        standardised(model, Sensor(kind="int16", mean=(10, 20)), NameEnds())


def test_a_scale_that_float32_does_not_hold_is_refused() -> None:
    """It would be 0, or infinite, in the file."""
    for scale in (1e-46, 1e39):
        with pytest.raises(SettingError, match="sensor: scale"):
            Sensor(scale=scale)
    with pytest.raises(SettingError, match="sensor: scale"):
        Sensor.parse("scale=1e400")


def test_weights_called_as_the_preprocessing_is_make_no_trouble() -> None:
    """Names are taken that nobody has."""
    model = onnx.load_from_string(image_model())
    names = {"kernel": "sensor_mul_0", "maps": "sensor_0", "weight": "input_prepared"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for one in model.graph.initializer:
        one.name = names.get(one.name, one.name)
    found = answer(standardised(model.SerializeToString(), CAMERA, NameEnds()), BYTES)["logits"]
    np.testing.assert_allclose(
        found, answer(standardised(image_model(), CAMERA, NameEnds()), BYTES)["logits"], atol=1e-5
    )
