"""Families of tiny models, to be timed; some of which no engine runs, or none should have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from device_bundles import HERE, model
from onnx import TensorProto, helper

from edgestill.core.digest import Digest
from edgestill.infer.profiling import Subject, pack_shapes
from edgestill.trust.metadata import TargetInfo

if TYPE_CHECKING:
    from edgestill.core.jsonio import Json

WORK: list[Json] = [{"kind": "Gemm", "products": 35, "weights": 35, "outputs": 8}]
TARGET = f"timing/tiny/1.0.0/{HERE}.est"


def unknown_operator() -> bytes:
    """A model that every engine refuses."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4]) for name in ("input", "logits")]
    graph = helper.make_graph(
        [helper.make_node("NoSuchOperator", ["input"], ["logits"])], "g", ends[:1], ends[1:]
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(made.SerializeToString())


def greedy(rows: int) -> bytes:
    """A model that makes an array of `rows` rows of a million numbers: it takes 4 MB each."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4]) for name in ("input", "logits")]
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [rows, 1_000_000])
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["s"], value=shape),
            helper.make_node("ReduceMax", ["input"], ["one"], keepdims=0),
            helper.make_node("Expand", ["one", "s"], ["large"]),
            helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
            helper.make_node("Add", ["input", "sum"], ["logits"]),
        ],
        "g",
        ends[:1],
        ends[1:],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(made.SerializeToString())


def family(*models: bytes, **changes: Any) -> bytes:
    """The archive of these, by default of seven that run."""
    subjects = [
        Subject(precision="floats", work=WORK, model=one) for one in models or [model(at) for at in range(7)]
    ]
    given: dict[str, Any] = {"name": "tiny", "version": "1.0.0", "hardware_class": HERE} | changes
    return pack_shapes(subjects, np.zeros((3, 4), np.float32), **given)


def info_of(archive: bytes) -> TargetInfo:
    """What a list says of it."""
    return TargetInfo(len(archive), Digest.of(archive))
