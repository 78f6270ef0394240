"""The exported file answers as the module does, for any batch, and tells nothing about its builder."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from lab_worlds import image_net, images, motion_net, motions, stir_
from torch import Tensor, nn

from edgestill.core.errors import ModelError
from edgestill.infer.engine import OnnxEngine
from edgestill.lab.forward import answers
from edgestill.lab.measure import run_model
from edgestill.lab.packing.export import OPSET, export_onnx, head_of


@cache
def motion() -> tuple[nn.Module, bytes]:
    """A network with BatchNorm and its file."""
    network = stir_(motion_net(4, 4, 6))
    return network, export_onnx(network, torch.from_numpy(motions(6).inputs[:2]))


@cache
def image() -> tuple[nn.Module, bytes]:
    """A network on bytes and its file."""
    network = image_net(3, 4, 5).eval()
    return network, export_onnx(network, torch.from_numpy(images(2)))


@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_engine_equals_torch_for_any_batch(n: int) -> None:
    """The engine's logits are the module's, for batches other than the exported one, one included."""
    for (network, model), inputs in ((motion(), motions(12).inputs[:n]), (image(), images(n))):
        logits = run_model(OnnxEngine(model), inputs)[0]
        expected = answers(network, torch.from_numpy(inputs)).numpy()
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n", [1, 7])
def test_features_are_what_the_head_is_given(n: int) -> None:
    """`features W + b` are the logits: a head learned on features can replace the model's own."""
    for (network, model), inputs in ((motion(), motions(12).inputs[:n]), (image(), images(n))):
        logits, features = run_model(OnnxEngine(model), inputs)
        head = head_of(network)[1]
        assert features.shape == (n, head.in_features)
        again = features @ head.weight.detach().numpy().T + head.bias.detach().numpy()
        np.testing.assert_allclose(logits, again, rtol=1e-3, atol=1e-4)


def test_inputs_are_what_the_sensor_gives() -> None:
    """Names, types and shapes are the bundle's, with the batch left open; bytes of an image go in as they are."""
    engine = OnnxEngine(image()[1])
    assert engine.inputs == {"input": ("UINT8", (None, 24, 24, 3))}
    assert engine.outputs == {"logits": ("FP32", (None, 10)), "features": ("FP32", (None, 5))}


def test_the_file_does_not_name_its_builder() -> None:
    """No path of the machine, no source line and no exporter's note stays in the file."""
    model = motion()[1]
    for trace in (str(Path.cwd()), str(Path.home()), "site-packages", ".py", "torch.nn", "lab_worlds"):
        assert trace.encode() not in model, trace
    proto = onnx.load_from_string(model)
    assert [one.version for one in proto.opset_import if not one.domain] == [OPSET]
    assert all(one.data_location == onnx.TensorProto.DEFAULT for one in proto.graph.initializer)


def test_exporting_twice_gives_the_same_bytes() -> None:
    """The same weights make the same file, so that a release can be built again."""
    network, model = motion()
    assert export_onnx(network, torch.from_numpy(motions(6).inputs[:2])) == model


def test_the_exporters_table_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours share one, and whoever exports by torch itself is given a table of his own, as before."""
    from torch.onnx._internal.exporter import _registration

    made = _registration.ONNXRegistry.from_torchlib
    network = stir_(motion_net(4, 4, 6))
    first = export_onnx(network, torch.from_numpy(motions(6).inputs[:2]))

    def never() -> list[object]:
        msg = "the table was made anew"
        raise AssertionError(msg)

    monkeypatch.setattr("torch.onnx._internal.exporter._registration.onnxscript_apis.get_torchlib_ops", never)
    assert export_onnx(network, torch.from_numpy(motions(6).inputs[:2])) == first
    monkeypatch.undo()
    assert _registration.ONNXRegistry.from_torchlib == made
    assert _registration.ONNXRegistry.from_torchlib() is not _registration.ONNXRegistry.from_torchlib()


class Headless(nn.Module):
    """Ends in a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv1d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.last(x).mean(2)
        return logits


def test_a_network_without_a_head_is_refused() -> None:
    """Features are the input of the last linear layer, so there must be one."""
    with pytest.raises(ModelError, match=r"no head found; at Headless; expected a last nn.Linear"):
        export_onnx(Headless(), torch.zeros(2, 2, 4))


class Branching(nn.Module):
    """Decides by its data, which no static graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(x if float(x.sum()) > 0 else -x)
        return logits


def test_what_cannot_be_exported_is_said() -> None:
    """The exporter's failure becomes one error that names the class and a way out."""
    with pytest.raises(ModelError, match=r"\[model-unsupported\] the model cannot be exported; at Branching"):
        export_onnx(Branching(), torch.ones(2, 2))
