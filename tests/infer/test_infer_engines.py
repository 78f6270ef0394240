"""Three engines, one law: the same file, the same answers, the same refusals; and which of them is the faster is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from infer_models import LABELS, expected_logits, model_bytes, tiny_model
from onnx import TensorProto, helper, numpy_helper

from edgestill.core.bundle import build, write_archive
from edgestill.core.clock import SystemClock
from edgestill.core.errors import EngineError, MissingExtraError, ModelError, SettingError
from edgestill.core.hardware import ENGINES, HardwareClass
from edgestill.infer import engines as engines_module
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.engines import engine_name, engine_of, installed, runs_here
from edgestill.infer.golden import Golden
from edgestill.infer.litert.engine import LiteRtEngine
from edgestill.infer.openvino import OpenVinoEngine
from edgestill.infer.parity import Ran, compared
from edgestill.infer.policy import Policy
from edgestill.infer.student import load

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.infer.engines import AnyEngine

BATCH = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
all_of_them = pytest.mark.parametrize("name", ENGINES)


def logits(engine: AnyEngine, batch: NDArray[np.generic]) -> NDArray[np.float32]:
    """Of the tiny model."""
    return engine.run({"input": batch})["logits"].astype(np.float32)


@all_of_them
def test_it_computes_what_numpy_computes(name: str) -> None:
    """Logits and features of any batch, by name."""
    engine = engine_of(tiny_model(), name)
    assert set(engine.run({"input": BATCH})) == {"logits", "features"}
    for rows in (1, 6, 2, 1):
        np.testing.assert_allclose(
            logits(engine, BATCH[:rows]), expected_logits(BATCH[:rows]), rtol=1e-4, atol=1e-5
        )


@all_of_them
def test_it_says_what_it_takes_and_gives(name: str) -> None:
    """Names, element types by the protocol, and shapes with what is free."""
    engine = engine_of(tiny_model(kind=TensorProto.UINT8), name)
    assert engine.inputs == {"input": ("UINT8", (None, 4))}
    assert engine.outputs == {"logits": ("FP32", (None, 3)), "features": ("FP32", (None, 5))}


@all_of_them
@pytest.mark.parametrize(
    ("kind", "datatype"),
    [
        (TensorProto.UINT8, "UINT8"),
        (TensorProto.INT16, "INT16"),
        (TensorProto.INT32, "INT32"),
        (TensorProto.INT64, "INT64"),
        (TensorProto.FLOAT16, "FP16"),
        (TensorProto.DOUBLE, "FP64"),
    ],
)
def test_element_types_have_the_protocols_names(name: str, kind: int, datatype: str) -> None:
    """Whatever the sensor's numbers are, the answer is to them."""
    engine = engine_of(tiny_model(kind=kind), name)
    assert engine.inputs["input"][0] == datatype
    batch = np.arange(8).reshape(2, 4).astype(helper.tensor_dtype_to_np_dtype(kind))
    np.testing.assert_allclose(logits(engine, batch), expected_logits(batch), rtol=1e-3, atol=1e-3)


@all_of_them
@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"other": BATCH},
        {"input": BATCH, "other": BATCH},
        {"input": BATCH.astype(np.float64)},
        {"input": BATCH[:, :3]},
        {"input": BATCH[0]},
    ],
    ids=["none", "another name", "one too many", "another type", "another width", "another rank"],
)
def test_what_the_model_does_not_take_is_refused(name: str, inputs: dict[str, NDArray[np.generic]]) -> None:
    """In one line; nothing is converted in silence, and no earlier input is answered again."""
    engine = engine_of(tiny_model(), name)
    engine.run({"input": BATCH})
    with pytest.raises(EngineError, match="could not run") as caught:
        engine.run(inputs)
    assert "\n" not in str(caught.value)
    np.testing.assert_allclose(logits(engine, BATCH), expected_logits(BATCH), rtol=1e-4, atol=1e-5)


@all_of_them
def test_an_answer_is_not_changed_by_the_next(name: str) -> None:
    """What it gave belongs to the caller."""
    engine = engine_of(tiny_model(), name)
    first = engine.run({"input": BATCH[:1]})["logits"]
    kept = first.copy()
    engine.run({"input": BATCH[1:2]})
    np.testing.assert_array_equal(first, kept)


@all_of_them
def test_rows_that_do_not_lie_side_by_side_are_read_right(name: str) -> None:
    """Every other row, and columns of a wider table."""
    engine = engine_of(tiny_model(), name)
    wide = np.random.default_rng(2).normal(size=(6, 9)).astype(np.float32)
    for batch in (BATCH[::2], BATCH[::-1], wide[:, 3:7], np.asfortranarray(BATCH)):
        np.testing.assert_allclose(logits(engine, batch), expected_logits(batch), rtol=1e-4, atol=1e-5)


@all_of_them
def test_many_threads_may_ask_at_once(name: str) -> None:
    """Each gets the answer to its own question."""
    engine = engine_of(tiny_model(), name)
    wanted = expected_logits(BATCH)

    def ask(at: int) -> float:
        row = at % len(BATCH)
        return float(np.abs(logits(engine, BATCH[row : row + 1]) - wanted[row : row + 1]).max())

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(ask, range(400))) < 1e-4


@all_of_them
@pytest.mark.parametrize("threads", [0, -1, 257])
def test_threads_out_of_range_are_refused(name: str, threads: int) -> None:
    """As the setting they are."""
    with pytest.raises(SettingError, match="threads out of range"):
        engine_of(tiny_model(), name, threads=threads)


@all_of_them
def test_attack_more_than_data_is_refused(name: str) -> None:
    """Whatever the engine could do with it: weights in other files, operators of a plug-in, no model at all."""
    outside = numpy_helper.from_array(np.zeros(2, np.float32), "w")
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="/etc/passwd")
    ends = [helper.make_tensor_value_info(one, TensorProto.FLOAT, [2]) for one in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [outside]
    )
    for model in (model_bytes(graph), tiny_model(domain="com.example"), b"nothing", b""):
        with pytest.raises(ModelError):
            engine_of(model, name)


@pytest.mark.parametrize("name", ENGINES)
def test_engines_say_nothing_of_themselves(name: str) -> None:
    """Neither on standard output nor on standard error, where the caller's words stay."""
    code = (
        f"import sys; from edgestill.infer.engines import engine_of; from infer_models import tiny_model\n"
        f"sys.stderr.write('before ')\n"
        f"try: engine_of(tiny_model().replace(b'Relu', b'Rexu'), {name!r})\n"
        f"except Exception: pass\n"
        f"engine_of(tiny_model(), {name!r}); sys.stderr.write('after')"
    )
    where = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": where},
    )
    assert (done.stdout, done.stderr) == ("", "before after")


@all_of_them
def test_a_model_that_the_engine_does_not_know_is_refused_in_one_line(name: str) -> None:
    """An operator that exists nowhere."""
    ends = [helper.make_tensor_value_info(one, TensorProto.FLOAT, [2]) for one in ("x", "y")]
    graph = helper.make_graph([helper.make_node("NoSuchOperator", ["x"], ["y"])], "g", ends[:1], ends[1:])
    with pytest.raises(EngineError, match="cannot load the model") as caught:
        engine_of(model_bytes(graph), name)
    assert "\n" not in str(caught.value)


def test_importing_the_engines_is_cheap() -> None:
    """A runtime is loaded when an engine is made."""
    names = "{'openvino', 'onnxruntime', 'ai_edge_litert', 'flatbuffers'}"
    code = f"import edgestill.infer.engines, sys; print({names} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_class_names_its_engine() -> None:
    """The last part of a hardware class; `any` is run by the usual one."""
    assert engine_name("x86_64-vnni-openvino") == "openvino"
    assert engine_name("aarch64-dotprod-onnxruntime") == engine_name("any") == "onnxruntime"
    assert isinstance(engine_of(tiny_model(), "x86_64-avx2-openvino"), OpenVinoEngine)
    assert isinstance(engine_of(tiny_model(), "aarch64-dotprod-litert"), LiteRtEngine)
    assert isinstance(engine_of(tiny_model(), "any"), OnnxEngine)
    with pytest.raises(SettingError, match="no such engine; at hardware class x86_64-vnni-ncnn; expected"):
        engine_of(tiny_model(), "x86_64-vnni-ncnn")


def test_an_engine_that_is_not_installed_is_named_with_what_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bundle of its class is not run by another one in silence."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r'pip install "edgestill\[openvino\]"'):
        engine_of(tiny_model(), "openvino")


def test_a_class_runs_here_where_instructions_and_engine_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another architecture it does not, nor where the engine is missing."""
    for name in ENGINES:
        assert runs_here(HardwareClass.here(name).name)
    assert not runs_here("riscv64-base-onnxruntime")
    monkeypatch.setattr(engines_module, "installed", lambda: ("onnxruntime",))
    assert not runs_here(HardwareClass.here("openvino").name)


def bundle_for(path: Path, hardware_class: str) -> Path:
    """A bundle of the tiny model."""
    golden = Golden(input=BATCH, logits=expected_logits(BATCH), tolerance=0.01)
    manifest, blobs = build(
        name="tiny",
        version="1.0.0",
        hardware_class=hardware_class,
        blobs={
            "model.onnx": tiny_model(),
            "policy.json": Policy(labels=LABELS).to_bytes(),
            "golden.npz": golden.to_bytes(),
            "lineage.json": b"{}",
            "card.md": b"# tiny\n",
        },
    )
    write_archive(path, manifest, blobs)
    return path


def test_a_bundle_is_loaded_by_the_engine_of_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or by the one that is asked for; both answer alike."""
    path = bundle_for(tmp_path / "tiny.esb", HardwareClass.here("openvino").name)
    made = [load(path).predict(BATCH), load(path, engine="onnxruntime").predict(BATCH)]
    np.testing.assert_allclose(made[0].probabilities, made[1].probabilities, atol=1e-5)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match="openvino"):
        load(path)


def golden(tolerance: float = 0.01, *, shift: float = 0.0) -> Golden:
    """Of the tiny model, perhaps a little beside the truth."""
    wanted = expected_logits(BATCH)
    wanted[:, 0] += shift
    return Golden(input=BATCH, logits=wanted, tolerance=tolerance)


def test_engines_that_agree_are_compared_by_their_time() -> None:
    """Each is timed; the fastest comes first."""
    found = compared(tiny_model(), golden(), SystemClock())
    assert {one.name for one in found} == set(installed()) == set(ENGINES)
    assert all(one.agrees and one.latency is not None for one in found)
    times = [one.latency.p50.value for one in found if one.latency is not None]
    assert times == sorted(times)
    told: dict[str, Any] = dict(found[0].as_json())
    assert told["agrees"]
    assert 0 < told["p50"] <= told["p95"]


def test_an_engine_that_differs_is_not_said_to_agree() -> None:
    """By how much, and what would be allowed."""
    found = compared(tiny_model(), golden(0.001, shift=0.5), SystemClock())
    assert not any(one.agrees for one in found)
    assert min(one.difference for one in found) > 0.001


def test_an_engine_that_refuses_comes_last_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison goes on with the others."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr("edgestill.infer.parity.installed", lambda: ("openvino", "onnxruntime"))
    first, last = compared(tiny_model(), golden(), SystemClock())
    assert (first.name, last.name) == ("onnxruntime", "openvino")
    assert "openvino is not installed" in last.refused
    assert last.as_json()["difference"] is None
    assert not Ran(name="x", difference=0.0, tolerance=1.0, latency=None, refused="no").agrees


def test_a_model_that_nothing_runs_is_told_without_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """All refused: no figure is made up."""
    monkeypatch.setattr("edgestill.infer.parity.installed", lambda: ("onnxruntime",))
    (only,) = compared(b"nothing", golden(), SystemClock())
    assert only.latency is None
    assert only.refused
