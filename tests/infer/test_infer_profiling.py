"""A family of models goes to a device as a folder, and comes back as latencies; neither is trusted before it is looked at."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgestill.core.errors import BundleAlteredError, EngineError, MessageError, PathError
from edgestill.core.family import INPUTS, SHAPES, Family, family_bytes
from edgestill.core.hardware import HardwareClass
from edgestill.infer.outlines import check_family, outlines_of, profile_bytes
from edgestill.infer.profiling import (
    Subject,
    pack_shapes,
    read_shapes,
    time_shapes,
    write_shapes,
)
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

WORK: list[Any] = [{"kind": "Relu", "products": 0, "weights": 0, "outputs": 4}]


def model(kind: str = "Relu") -> bytes:
    """One operator on `[N, 4]`."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4]) for name in ("input", "logits")]
    graph = helper.make_graph([helper.make_node(kind, ["input"], ["logits"])], "g", ends[:1], ends[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(made.SerializeToString())


def family(folder: Path, *models: bytes) -> Path:
    """A folder of these."""
    subjects = [
        Subject(precision="floats", work=WORK, model=one) for one in models or (model(), model("Abs"))
    ]
    write_shapes(folder / "family", subjects, np.zeros((3, 4), np.float32))
    return folder / "family"


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    """Models, what they have to do, and what they are shown."""
    subjects, inputs = read_shapes(family(tmp_path))
    assert [one.model for one in subjects] == [model(), model("Abs")]
    assert all(list(one.work) == WORK for one in subjects)
    assert inputs.shape == (3, 4)


def test_every_model_is_timed_and_says_what_it_had_to_do(tmp_path: Path) -> None:
    """On this machine's class and one thread."""
    clock, told = FakeClock(), []
    data, refused = time_shapes(family(tmp_path), Ticking(clock), progress=lambda *now: told.append(now))
    found = json.loads(data)
    assert refused == []
    assert told == [(1, 2), (2, 2)]
    assert found["hardware_class"] == HardwareClass.here().name
    assert found["threads"] == 1
    assert [one["work"] for one in found["models"]] == [WORK, WORK]
    assert all(one["p50"] == pytest.approx(0.001) for one in found["models"])


class Ticking:
    """A clock that goes on by a millisecond whenever it is read."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    def now(self) -> float:
        """The same."""
        return self._clock.now()

    def monotonic(self) -> float:
        """A millisecond later."""
        self._clock.advance(0.001)
        return self._clock.monotonic()


def test_a_model_that_the_engine_refuses_is_left_out_and_named(tmp_path: Path) -> None:
    """The others are timed; where none is left, that is an error."""
    data, refused = time_shapes(family(tmp_path, model(), model("NoSuchOperator")), Ticking(FakeClock()))
    assert len(json.loads(data)["models"]) == 1
    assert len(refused) == 1
    assert refused[0].startswith("1.onnx was left out: [")
    with pytest.raises(EngineError, match="no model of the family runs here"):
        time_shapes(family(tmp_path / "none", model("NoSuchOperator")), FakeClock())


@pytest.mark.parametrize("name", ["0.onnx", INPUTS])
def test_a_file_that_was_changed_or_lost_is_not_run(tmp_path: Path, name: str) -> None:
    """Every byte is checked before an engine sees it."""
    folder = family(tmp_path)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleAlteredError, match="a part of a family is not what was written"):
        time_shapes(folder, FakeClock())
    (folder / name).unlink()
    with pytest.raises(PathError):
        time_shapes(folder, FakeClock())


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"models": None},
        {"models": [{}]},
        {"models": [{"precision": "int4", "digest": "sha256:" + "0" * 64, "work": []}]},
        {"models": [{"precision": "int8", "digest": "../../etc/passwd", "work": []}]},
        {"models": [{"precision": "int8", "digest": "sha256:" + "0" * 64, "work": 3}]},
        {"inputs": None},
    ],
)
def test_shapes_that_are_none_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """With a code, whatever is wrong."""
    folder = family(tmp_path)
    told = json.loads((folder / SHAPES).read_text()) | change
    (folder / SHAPES).write_text(json.dumps(told))
    with pytest.raises(MessageError):
        time_shapes(folder, FakeClock())


def test_a_real_model_is_checked_by_onnx() -> None:
    """The tiny model of these tests is one."""
    onnx.checker.check_model(onnx.load_from_string(model()))


def packed(*models: bytes) -> bytes:
    """An archive of these."""
    subjects = [Subject(precision="floats", work=WORK, model=one) for one in models]
    return pack_shapes(
        subjects,
        np.zeros((3, 4), np.float32),
        name="watch",
        version="1.0.0",
        hardware_class=HardwareClass.here().name,
    )


def test_an_archive_holds_what_a_folder_does(tmp_path: Path) -> None:
    """The same parts byte for byte, so that one can be made of the other."""
    folder = family(tmp_path)
    path = tmp_path / "x.est"
    path.write_bytes(packed(model(), model("Abs")))
    archive = Family.open(path)
    for name in (SHAPES, INPUTS, "0.onnx", "1.onnx"):
        assert archive.read(name) == (folder / name).read_bytes()
    check_family(path)
    assert [one.digest for one in outlines_of(archive)] == [one.digest for one in archive.head.models]


def test_a_profile_is_of_those_models_that_were_timed(tmp_path: Path) -> None:
    """In their order, with what each has to do; what is said besides changes nothing for who reads it."""
    path = tmp_path / "x.est"
    path.write_bytes(packed(model(), model("Abs"), model("Neg")))
    outlines = outlines_of(Family.open(path))
    data = profile_bytes(outlines, {2: (0.1, 0.2), 0: (0.3, 0.4)}, "a-b-c", {"threads": 9, "timing": {}})
    told = json.loads(data)
    assert told["threads"] == 1
    assert [(one["p50"], one["p95"], one["work"]) for one in told["models"]] == [
        (0.3, 0.4, WORK),
        (0.1, 0.2, WORK),
    ]


def test_attack_outlines_of_other_models_are_refused(tmp_path: Path) -> None:
    """What a model has to do must not be told of another one."""
    path = tmp_path / "x.est"
    family(tmp_path)
    path.write_bytes(
        family_bytes(
            name="watch",
            version="1.0.0",
            hardware_class="a-b-c",
            shapes=(tmp_path / "family" / SHAPES).read_bytes(),
            inputs=(tmp_path / "family" / INPUTS).read_bytes(),
            models=[model("Abs"), model()],
        )
    )
    with pytest.raises(BundleAlteredError, match="not of its models"):
        check_family(path)
