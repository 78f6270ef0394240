"""Small ONNX models, made here, and predictors that do as they are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgestill.core.answer import Answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from onnx import GraphProto

    from edgestill.core.errors import EdgestillError

LABELS = ("still", "walk", "run")
INPUTS, FEATURES = 4, 5


def weights(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """First layer `[4, 5]`, second layer `[5, 3]` and its bias `[3]`."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(INPUTS, FEATURES)).astype(np.float32),
        rng.normal(size=(FEATURES, len(LABELS))).astype(np.float32),
        rng.normal(size=len(LABELS)).astype(np.float32),
    )


def tiny_model(
    seed: int = 0, *, kind: int = TensorProto.FLOAT, domain: str = "", with_features: bool = True
) -> bytes:
    """`logits = relu(input @ first) @ second + bias`; the input is cast to float first."""
    first, second, bias = weights(seed)
    nodes = [
        helper.make_node("Cast", ["input"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["real", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["features"], domain=domain),
        helper.make_node("MatMul", ["features", "second"], ["scores"]),
        helper.make_node("Add", ["scores", "bias"], ["logits"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(LABELS)])]
    if with_features:
        outputs.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", FEATURES]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", kind, ["N", INPUTS])],
        outputs,
        [
            numpy_helper.from_array(value, name)
            for name, value in (("first", first), ("second", second), ("bias", bias))
        ],
    )
    return model_bytes(graph, domain)


def model_bytes(graph: GraphProto, domain: str = "") -> bytes:
    """The graph as a file that onnxruntime 1.20 and later reads."""
    opsets = [helper.make_opsetid("", 18)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def expected_logits(batch: NDArray[np.floating], seed: int = 0) -> NDArray[np.float32]:
    """What `tiny_model(seed)` computes, by numpy."""
    first, second, bias = weights(seed)
    logits: NDArray[np.float32] = np.maximum(batch.astype(np.float32) @ first, 0) @ second + bias
    return logits


class Told:
    """A `Predict` that answers row i of `probabilities` for an input whose first number is i, or fails."""

    def __init__(
        self,
        probabilities: Sequence[Sequence[float]],
        error: EdgestillError | None = None,
        *,
        deputised: bool = False,
    ) -> None:
        self.deputised = deputised
        self.probabilities = np.array(probabilities, dtype=np.float32)
        self.error = error
        self.asked: list[list[int]] = []
        self.deadlines: list[float | None] = []

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Answer:
        """The rows the batch names."""
        rows = [int(value) for value in np.asarray(batch, dtype=np.float64)[:, 0]]
        self.asked.append(rows)
        self.deadlines.append(deadline)
        if self.error is not None:
            raise self.error
        given = self.probabilities[rows]
        return Answer(
            probabilities=given,
            confidence=given.max(axis=1),
            decided_by=("student",) * len(rows),
            teacher=np.full_like(given, np.nan) if self.deputised else None,
            features=given,
        )


def rows(*numbers: int) -> NDArray[np.float32]:
    """A batch `[N, 1]` that names rows of a `Told`."""
    return np.array(numbers, dtype=np.float32)[:, None]
