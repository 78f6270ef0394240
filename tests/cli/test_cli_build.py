"""`edgestill bundle build`: from a finished ONNX file and data to a bundle that answers raw pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgestill.core.bundle import Bundle
from edgestill.infer.policy import Policy

if TYPE_CHECKING:
    from pathlib import Path

COLOURS = ("blue", "green", "red")
SENSOR = "kind=uint8,layout=channels-last,scale=1/255,mean=0.5,deviation=0.5"


def edgestill(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The program, run to its end."""
    command = [sys.executable, "-m", "edgestill.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def colour_model() -> bytes:
    """`[1, 3, 6, 6]`, normalised, to probabilities of blue, green and red, by the mean of each channel."""
    weight = np.array([[0, 0, 5], [0, 5, 0], [5, 0, 0]], dtype=np.float32)
    kernel = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["picture", "kernel"], ["maps"]),
            helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        ],
        "colours",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, 6, 6])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(kernel, "kernel")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The model, and pictures in a folder for each class: 14 of each, of that colour with noise."""
    (tmp_path / "colours.onnx").write_bytes(colour_model())
    random = np.random.default_rng(0)
    for at, name in enumerate(COLOURS):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(14):
            pixels = random.integers(0, 120, (6, 6, 3))
            pixels[:, :, 2 - at] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path


def test_a_finished_model_and_pictures_become_a_bundle(folder: Path) -> None:
    """Every picture is told right by the bundle, as the camera wrote it; the report says what int8 cost."""
    path = folder / "camera.esb"
    made = edgestill(
        "bundle", "build", folder / "colours.onnx", "--calibration", folder / "pictures", "--sensor", SENSOR,
        "--out", path, "--json",
    )  # fmt: skip
    assert (made.returncode, made.stderr) == (0, "")
    report = json.loads(made.stdout)
    assert report["of"] == "accuracy"
    assert report["figures"]["floats"] == report["figures"]["file"]
    assert report["figures"]["file"]["value"] == 1.0
    assert report["bytes"] == Bundle.open(path).manifest.size
    assert report["written"][-1]["way"] == "int8"
    for name in COLOURS:
        picture = folder / "pictures" / name / "3.png"
        told = json.loads(edgestill("predict", path, picture, "--json").stdout)
        assert told["answers"][0]["label"] == name


def test_engines_are_compared_on_a_bundle(folder: Path) -> None:
    """All answer the golden questions of this small model alike; each is timed, for scripts and for people."""
    path = folder / "camera.esb"
    edgestill(
        "bundle", "build", folder / "colours.onnx", "--calibration", folder / "pictures", "--sensor", SENSOR,
        "--out", path,
    )  # fmt: skip
    told = json.loads(edgestill("device", "engines", path, "--json").stdout)
    assert {one["engine"] for one in told["engines"]} == {"onnxruntime", "openvino", "litert"}
    assert all(one["agrees"] and one["p50"] > 0 for one in told["engines"])
    said = edgestill("device", "engines", path)
    assert said.returncode == 0
    assert said.stdout.count("agrees") == 3
    path.write_bytes(path.read_bytes()[:-600])
    assert edgestill("device", "engines", path).returncode == 1


def test_without_out_the_bundle_is_called_as_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder one stands in; people get sentences."""
    monkeypatch.chdir(folder)
    (folder / "colours.onnx").rename(folder / "My Colours_v2.onnx")
    (folder / "names.txt").write_bytes(b"\xef\xbb\xbfblue\r\ngreen\r\nred\r\n")
    np.savez(folder / "data.npz", x=np.random.default_rng(1).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8))
    made = edgestill(
        "bundle", "build", "My Colours_v2.onnx", "--calibration", "data.npz", "--sensor", SENSOR,
        "--labels", "names.txt", "--floats", "--version", "2.0.1",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "agreement with the file in floats, as shipped: 1.000" in made.stdout
    assert "model: floats" in made.stdout
    bundle = Bundle.open(folder / "My Colours_v2.esb")
    assert (bundle.manifest.name, bundle.manifest.version) == ("my-colours-v2", "2.0.1")
    assert Policy.from_bytes(bundle.read("policy.json")).labels == COLOURS


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--sensor", "uint8"), "expected NAME=VALUE"),
        (("--sensor", SENSOR, "--budget", "size=1kB"), "larger than its budget"),
        (("--sensor", SENSOR, "--loss", "2"), "a share lies between 0 and 1"),
        (("--sensor", SENSOR, "--labels", "red,green"), "a folder of no class"),
        (("--sensor", SENSOR, "--teacher", "nothing.onnx"), "nothing.onnx"),
        (("--logits", "nothing"), "no such output"),
        (("--sensor", "scale=1/255"), "add kind=uint8"),
        (("--sensor", SENSOR, "--labels", "x" * 5000), "a folder of no class"),
    ],
)
def test_what_does_not_fit_is_one_line_with_what_to_do(
    folder: Path, more: tuple[str, ...], said: str
) -> None:
    """Exit status 1, nothing written."""
    out = folder / "My Model v2.esb"
    made = edgestill(
        "bundle", "build", folder / "colours.onnx", "--calibration", folder / "pictures", "--out", out, *more
    )
    assert made.returncode == 1, made.stdout
    assert said in made.stderr
    assert len(made.stderr.strip().splitlines()) == 1
    assert not out.exists()
