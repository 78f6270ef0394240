"""Adapters at the hub: models that answer from features, each under its own digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hub_worlds import adapter_model, answer, question, teacher_model, world
from onnx import TensorProto

from edgestill.core.digest import Digest
from edgestill.core.errors import ModelError
from edgestill.core.oip import InferRequest, Tensor
from edgestill.hub.settings import Settings
from edgestill.hub.teacher import endpoint_of
from edgestill.infer.adapter import as_sent, model_name
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

    from hub_worlds import Device, Reply

ADAPTER = adapter_model()
PATH = f"/v2/models/{model_name(Digest.of(ADAPTER))}"
FEATURES = np.arange(8, dtype=np.float32).reshape(2, 4)
LOGITS = np.array([[6, 12, 18], [22, 44, 66]], dtype=np.float32)


def ask(device: Device, **parameters: object) -> Reply:
    """Sends features as a device does."""
    sent = as_sent(FEATURES)
    tensor = Tensor("features", "FP16", sent.shape, sent.tobytes())
    request = InferRequest(inputs=(tensor,), outputs=("logits",), parameters=parameters, binary=True)  # type: ignore[arg-type]
    body, length = request.encode(binary=True)
    headers = {} if length is None else {"inference_header_content_length": str(length)}
    return device.call("POST", f"{PATH}/infer", body, **headers)


def test_features_are_answered_with_logits(tmp_path: Path) -> None:
    """By a hub that has no teacher as well; it is ready, and tells what it takes."""
    with world(tmp_path / "hub", adapters=[ADAPTER]) as there:
        there.give_root()
        found = answer(ask(there.enrol("d0"), purpose="escalation"))
        np.testing.assert_array_equal(
            np.frombuffer(found.outputs[0].data, "<f4").reshape(found.outputs[0].shape), LOGITS
        )
        assert there.call("GET", "/v2/health/ready").status == 200
        (taken,) = there.call("GET", PATH).json["inputs"]
        assert (taken["name"], taken["datatype"], taken["shape"]) == ("features", "FP16", [-1, 4])


def test_an_adapter_stands_beside_the_teacher(tmp_path: Path) -> None:
    """Each is asked by its name, with what it takes."""
    with world(tmp_path / "hub", teacher=teacher_model(), adapters=[ADAPTER, ADAPTER]) as there:
        there.give_root()
        device = there.enrol("d0")
        body, headers = question(FEATURES)
        for path, datatype in (("/v2/models/teacher/infer", "FP32"), (f"{PATH}/infer", "FP16")):
            reply = device.call("POST", path, body, **headers)
            assert reply.status == (200 if datatype == "FP32" else 400)
        assert answer(ask(device)).outputs[0].shape == (2, 3)


def test_attack_features_never_become_evidence(tmp_path: Path) -> None:
    """They are no inputs, and what an adapter says is no word of the teacher: the next student must not learn from it."""
    with world(tmp_path / "hub", teacher=teacher_model(), adapters=[ADAPTER]) as there:
        there.give_root()
        found = answer(ask(there.enrol("d0"), purpose="audit", retain=True))
        assert found.parameters["retained"] == 0
        assert there.admin("GET", "evidence").json["samples"]["total"] == 0


def test_who_does_not_belong_to_the_fleet_may_not_ask(tmp_path: Path) -> None:
    """As with the teacher."""
    with world(tmp_path / "hub", adapters=[ADAPTER]) as there:
        assert there.call("POST", f"{PATH}/infer", b"{}").status == 401


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (teacher_model(), r"not an adapter; at two.onnx; .*got {'input': 'FP32, 2 axes'}"),
        (adapter_model(TensorProto.FLOAT), r"not an adapter; .*got {'features': 'FP32, 2 axes'}"),
        (adapter_model(name="pixels"), "not an adapter"),
        (adapter_model(output="scores"), "not an adapter; .*an output logits"),
        (b"no model", "at two.onnx"),
    ],
)
def test_what_is_no_adapter_is_refused_at_the_start(file: bytes, text: str) -> None:
    """A teacher in its place would be asked with features; of several files, the wrong one is named."""
    with pytest.raises(ModelError, match=text):
        endpoint_of(None, Settings(), clock=FakeClock(), adapters={"one.onnx": ADAPTER, "two.onnx": file})
