"""What a device learned goes back into the int8 file on the lab's own codes."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from test_lab_gradient_rules import Attention
from torch import Tensor, nn
from training_worlds import named, stirred, trainer_of

from edgestill.core.errors import ModelError
from edgestill.core.hardware import HardwareClass
from edgestill.infer.engine import OnnxEngine
from edgestill.lab.gradient.places import placed
from edgestill.lab.gradient.step import Step, Training, training_step
from edgestill.lab.networks import ImageNet24, MotionNet
from edgestill.lab.packing.export import export_onnx
from edgestill.lab.packing.probabilities import shippable
from edgestill.lab.packing.quantise import quantise
from edgestill.learn.codes import read_from, written_into

VNNI, PLAIN = HardwareClass("x86_64-vnni-onnxruntime"), HardwareClass("x86_64-avx2-onnxruntime")
RANDOM = torch.Generator().manual_seed(11)
KINDS = torch.arange(40) % 3
"""What the inputs show: one colour is brighter than the others."""
MODELS: dict[str, tuple[type[nn.Module], tuple[int, ...], Tensor]] = {
    "images": (
        ImageNet24,
        (8, 12, 16),
        (
            torch.randint(0, 140, (40, 24, 24, 3), generator=RANDOM) + 90 * torch.eye(3)[KINDS][:, None, None]
        ).byte(),
    ),
    "motion": (MotionNet, (6, 8, 8), torch.randn(40, 40, 6, generator=RANDOM)),
    "words": (Attention, (), torch.randint(0, 50, (40, 12), generator=RANDOM)),
}


@lru_cache(maxsize=8)
def made(name: str, where: HardwareClass) -> tuple[bytes, Step]:
    """The int8 file and the step of its floats."""
    torch.manual_seed(0)
    kind, arguments, inputs = MODELS[name]
    model = stirred(kind(*arguments))
    if name == "images":
        taught(model, inputs)
    floats = export_onnx(model.eval(), inputs[:2])
    step = training_step(floats, Training(rate=0.02), named=named(model))
    shipped = shippable(quantise(floats, inputs.numpy(), where), 1.0, None)
    return shipped, replace(step, file=placed(step.file, shipped, where))


def taught(model: nn.Module, inputs: Tensor) -> None:
    """Knows which colour is which: codes reach as far as what a network computes, and an untaught one computes next to nothing."""
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs), KINDS).backward()  # type: ignore[no-untyped-call]  # torch has no types there
        optimiser.step()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("where", [VNNI, PLAIN], ids=["vnni", "saturating"])
def test_what_the_lab_ended_with_gives_the_shipped_file_byte_by_byte(name: str, where: HardwareClass) -> None:
    """Rounding on the device is the quantiser's own: nothing learned is nothing changed."""
    shipped, step = made(name, where)
    start = trainer_of(step).start(MODELS[name][2][:2].numpy())
    assert written_into(shipped, step.file.tensors, start.values) == (shipped, 0.0)


@pytest.mark.parametrize("name", MODELS)
def test_the_places_hold_the_parameters(name: str) -> None:
    """Within half a step of every weight."""
    shipped, step = made(name, VNNI)
    start = trainer_of(step).start(MODELS[name][2][:2].numpy())
    found = read_from(shipped, step.file.tensors)
    assert found.keys() == {one.name for one in step.file.tensors}
    for tensor, numbers in found.items():
        wanted = start.values[tensor]
        assert np.abs(numbers - wanted).max() <= np.abs(wanted).max() / 60


@pytest.mark.parametrize("name", ["images", "words"])
def test_the_int8_file_learns_with_its_parameters(name: str) -> None:
    """Labels that mean other things than before are answered by the file itself after training."""
    shipped, step = made(name, VNNI)
    inputs = MODELS[name][2].numpy()
    labels = (KINDS.numpy() + 1) % 3
    targets = np.eye(step.file.classes, dtype=np.float32)[labels]
    trainer = trainer_of(step)
    state = trainer.start(inputs)
    for _ in range(80):
        state, _ = trainer.step(state, inputs, targets, rate=0.02)
    learned, cut = written_into(shipped, step.file.tensors, state.values)

    def right(model: bytes) -> float:
        return float((OnnxEngine(model).run({"input": inputs})["logits"].argmax(1) == labels).mean())

    assert right(learned) > right(shipped) + 0.2
    assert cut < 0.2


def test_codes_keep_to_seven_bits_where_products_saturate() -> None:
    """Training may push a weight further than it may be written there."""
    shipped, step = made("images", PLAIN)
    start = trainer_of(step).start(MODELS["images"][2][:2].numpy())
    grown = {name: value * 8 for name, value in start.values.items()}
    learned, cut = written_into(shipped, step.file.tensors, grown)
    assert cut > 0.1
    for tensor in step.file.tensors:
        assert tensor.place is not None
        if tensor.place.kind == "int8":
            codes = np.frombuffer(learned, np.int8, tensor.size, tensor.place.start)
            assert np.abs(codes.astype(int)).max() == 64


def test_a_model_in_floats_takes_floats() -> None:
    """Places of four bytes a number, and the numbers themselves."""
    kind, arguments, inputs = MODELS["motion"]
    model = stirred(kind(*arguments)).eval()
    floats = shippable(export_onnx(model, inputs[:2]), 1.0, None)
    step = training_step(floats, Training())
    file = placed(step.file, floats, VNNI)
    start = trainer_of(step).start(inputs[:2].numpy())
    grown = {name: value + 1 for name, value in start.values.items()}
    learned, _ = written_into(floats, file.tensors, grown)
    for name, numbers in read_from(learned, file.tensors).items():
        assert np.array_equal(numbers, grown[name])


def test_a_tensor_that_the_shipped_file_does_not_have_is_refused() -> None:
    """It would be trained for nothing."""
    _, step = made("motion", VNNI)
    other, _ = made("images", VNNI)
    with pytest.raises(ModelError, match=r"no place in the shipped model; at model\.conv1\.weight"):
        placed(step.file, other, VNNI)
