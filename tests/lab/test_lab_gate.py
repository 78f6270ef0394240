"""int8 passes where it costs little; where it costs much, the least is done that mends it, and all of it is told."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from lab_worlds import POLICY, TRAIN, motion_net, motions, run, same_weights, teacher
from torch import nn

from edgestill.core.errors import SettingError
from edgestill.core.hardware import HardwareClass
from edgestill.delta.codec import diff
from edgestill.infer.confidence import softmax
from edgestill.infer.engine import OnnxEngine
from edgestill.lab.data.augment import MotionJitter
from edgestill.lab.data.source import ArraySource
from edgestill.lab.forward import answers
from edgestill.lab.measure import run_model
from edgestill.lab.networks import MotionNet
from edgestill.lab.packing.aware import InputCodes, WeightCodes, trained_for_codes
from edgestill.lab.packing.export import export_onnx
from edgestill.lab.packing.gate import COARSE, Gate, divergence, written_down
from edgestill.lab.packing.grid import Grid
from edgestill.lab.packing.probabilities import shippable
from edgestill.lab.packing.quantise import layers_of, quantise
from edgestill.lab.recipe import Recipe
from edgestill.lab.teacher.asking import Asking
from edgestill.lab.training.train import Lesson, train_

if TYPE_CHECKING:
    from edgestill.lab.packing.gate import Written

VNNI = HardwareClass("x86_64-vnni-onnxruntime")
AVX2 = HardwareClass("x86_64-avx2-onnxruntime")
HELD = motions(300, seed=2, noise=1.5)


def spoilt() -> MotionNet:
    """A student whose first channel is a thousand times as large as the others, and not looked at by the next layer.

    In floats that changes nothing; in int8 all the other channels are less than one step.
    """
    network = copy.deepcopy(run().student)
    assert isinstance(network, MotionNet)
    with torch.no_grad():
        network.conv2.weight[:, 0] = 0
        network.norm1.weight[0] = 1000
        network.norm1.bias[0] = 1000
    return network


def file_of(network: nn.Module) -> bytes:
    """In floats."""
    return export_onnx(network, torch.from_numpy(HELD.inputs[:2]))


@cache
def judged(*, retrained: bool = False) -> Written:
    """The spoilt one, written down; where it may be trained on, it comes back whole."""
    return written_down(
        file_of(spoilt()),
        HELD,
        TRAIN.inputs,
        VNNI,
        retrain=(lambda: file_of(run().student)) if retrained else None,
    )


def codes(model: bytes) -> int:
    """How many weights of more than one axis are in int8."""
    arrays = [onnx.numpy_helper.to_array(one) for one in onnx.load_from_string(model).graph.initializer]
    return sum(one.dtype == np.int8 and one.ndim > 1 for one in arrays)


def test_a_student_that_int8_does_not_harm_is_int8_throughout() -> None:
    """One try, whose loss is told with its interval."""
    written = written_down(file_of(run().student), HELD, TRAIN.inputs, VNNI)
    (only,) = written.tried
    assert (only.way, only.in_floats, written.harm) == ("int8", (), {})
    assert only.drop.value <= 0.005
    assert only.drop.low <= only.drop.value <= only.drop.high
    assert only.size == len(written.model)
    assert codes(written.model) == 4
    assert written.floats == file_of(run().student)


def test_who_wants_no_int8_gets_the_file_in_floats() -> None:
    """At once: nothing is tried, and the record says so."""
    found = written_down(file_of(run().student), HELD, TRAIN.inputs, VNNI, gate=Gate(int8=False))
    assert found.model == shippable(found.floats)
    assert [one.way for one in found.tried] == ["floats"]
    assert found.tried[0].drop.value == 0
    assert found.tried[0].in_floats == ()
    packed = run().pack(POLICY, gate=Gate(int8=False))
    assert packed.int8.value == packed.fp32.value


def test_the_gate_fires_on_a_student_that_int8_spoils() -> None:
    """The layers that are harmed most stay in floats, as few as it takes, and the file answers as in floats again."""
    written = judged()
    first, *_, last = written.tried
    assert first.drop.value > 0.1
    assert last.drop.value <= 0.005
    assert 0 < len(last.in_floats) < 4
    assert codes(written.model) == 4 - len(last.in_floats)
    wanted, found = (
        run_model(OnnxEngine(one), HELD.inputs)[0].argmax(1) for one in (written.floats, written.model)
    )
    assert (wanted == found).mean() > 0.97


def test_the_layers_that_stay_in_floats_are_those_that_are_harmed_most() -> None:
    """Around the channel that is too large, and nowhere else."""
    written = judged()
    order = sorted(written.harm, key=lambda one: -written.harm[one])
    assert list(written.harm) == layers_of(written.floats)
    assert set(written.tried[-1].in_floats) == set(order[: len(written.tried[-1].in_floats)])
    assert set(order[:2]) == set(layers_of(written.floats)[:2])
    assert written.harm[order[0]] > 10 * written.harm[order[-1]]


def test_training_on_goes_before_floats() -> None:
    """Where the student that was trained on passes, it is the one that is packed, whole in int8."""
    written = judged(retrained=True)
    assert [one.way for one in written.tried] == ["int8", "int8, trained for it"]
    assert written.floats == file_of(run().student)
    assert codes(written.model) == 4


def test_training_that_does_not_help_is_forgotten() -> None:
    """The layers in floats are the first student's, not those of one that was trained on for nothing."""
    written = written_down(
        file_of(spoilt()), HELD, TRAIN.inputs, VNNI, retrain=lambda: file_of(motion_net(4, 4, 6, seed=9))
    )
    assert written.tried[1].way == "int8, trained for it"
    assert written.tried[1].drop.value > 0.005
    assert written.floats == file_of(spoilt())
    assert written.tried[-1].drop.value <= 0.005


def test_where_nothing_is_allowed_to_be_lost_the_file_may_stay_in_floats() -> None:
    """All of it then, and the loss is none."""
    network = spoilt()
    with torch.no_grad():
        network.norm2.weight[0] = network.norm3.weight[0] = 1000  # what follows is spoilt as well
        network.conv3.weight[:, 0] = 0
    found = written_down(file_of(network), HELD, TRAIN.inputs, VNNI, gate=Gate(allowed=0.0)).tried[-1]
    if found.way == "floats":
        assert found.in_floats == ()
    assert found.drop.value <= 0


@pytest.mark.parametrize("allowed", [-0.1, 1.1, float("nan")])
def test_what_int8_may_cost_is_a_share(allowed: float) -> None:
    """Points of accuracy, from 0 to 1."""
    with pytest.raises(SettingError, match="out of range; at allowed"):
        Gate(allowed=allowed)


def test_a_try_is_plain_json() -> None:
    """For lineage and report."""
    told = judged().tried[-1].as_json()
    assert list(told) == ["way", "drop", "drop_ci95", "bytes", "in_floats"]


# training with rounded numbers


def test_weights_are_rounded_as_the_quantiser_rounds_them() -> None:
    """The same scales, the same codes: with 127 steps, and with 64 where products could saturate."""
    student = run().student
    floats = judged(retrained=True).floats
    for where, limit in ((VNNI, 127), (AVX2, 64)):
        file = onnx.load_from_string(quantise(floats, TRAIN.inputs, where))
        arrays = {one.name: onnx.numpy_helper.to_array(one) for one in file.graph.initializer}
        assert isinstance(student, MotionNet)
        rounded = WeightCodes(limit, per_channel=True)(student.head.weight.detach())
        theirs = arrays["head.weight_quantized"].astype(np.float32) * arrays["head.weight_scale"][:, None]
        np.testing.assert_allclose(rounded.numpy(), theirs, rtol=1e-5, atol=1e-7)


def test_the_gradient_passes_the_rounding() -> None:
    """As if it were not there, within the range."""
    weight = torch.tensor([[0.31, -1.0], [0.2, 0.5]], requires_grad=True)
    WeightCodes(127, per_channel=True)(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones(2, 2))  # type: ignore[arg-type]  # it has one now


def test_inputs_are_rounded_within_the_range_that_was_seen() -> None:
    """255 steps from the least to the most, 0 among them; what lies beyond is cut."""
    codes = InputCodes()
    codes(torch.tensor([0.0, 5.1]))
    codes.watches = False
    codes.eval()
    found = codes(torch.tensor([0.011, 1.0, 9.0, -1.0]))
    torch.testing.assert_close(found, torch.tensor([0.02, 1.0, 5.1, 0.0]), rtol=0, atol=1e-5)


def test_a_student_trained_for_codes_is_an_ordinary_module_that_loses_less() -> None:
    """Of hardly any steps: nothing that rounds stays in the copy, the original is as it was."""
    student = copy.deepcopy(run().student)
    assert isinstance(student, MotionNet)
    with (
        torch.no_grad()
    ):  # weights of a dead channel, 50 times as large as the others, leave these a step or two
        student.norm1.weight[0], student.norm1.bias[0] = 0, -1
        student.conv2.weight[:, 0, 0] = 50 * student.conv2.weight.abs().amax((1, 2))
    before = copy.deepcopy(student)
    recipe = replace(run().recipe, epochs=60)
    found = trained_for_codes(student, Asking(teacher=teacher()), ArraySource.of(TRAIN), recipe, AVX2)
    assert same_weights(student, before)
    assert found.state_dict().keys() == student.state_dict().keys()
    assert [type(one) for one in found.modules()] == [type(one) for one in student.modules()]
    assert not any(one._forward_pre_hooks for one in found.modules())

    def lost(network: nn.Module) -> float:
        file = written_down(file_of(network), HELD, TRAIN.inputs, AVX2, gate=Gate(allowed=1.0)).model
        return float((run_model(OnnxEngine(file), HELD.inputs)[0].argmax(1) != HELD.labels).mean())

    assert lost(found) < lost(student) - 0.05
    assert answers(found, torch.from_numpy(HELD.inputs)).isfinite().all()


def test_a_grid_of_the_parent_goes_through_the_gate() -> None:
    """The next version is written on it, and judged by what it then answers."""
    grid = Grid.of(written_down(file_of(run().student), HELD, TRAIN.inputs, VNNI).model)
    later = copy.deepcopy(run().student)
    with torch.no_grad():
        for parameter in later.parameters():
            parameter.mul_(1.01)
    written = written_down(file_of(later), HELD, TRAIN.inputs, VNNI, grid=grid)
    assert Grid.of(written.model).id == grid.id


def parent() -> Grid:
    """The grid of the first version."""
    return Grid.of(written_down(file_of(run().student), HELD, TRAIN.inputs, VNNI).model)


def learned(rate: float, *, epochs: int = 1) -> bytes:
    """The next version: the first one trained on, as its users would."""
    network = copy.deepcopy(run().student)
    recipe = Recipe(epochs=epochs, batch=16, lr=rate, schedule="constant", frozen_statistics=True)
    return file_of(train_(network, Lesson.of(TRAIN, MotionJitter()), recipe))


def keeps_to(coarse: int, grid: Grid, file: bytes) -> bool:
    """Whether weights moved by multiples of so many codes from the parent's, but for those that reached the end of theirs."""
    later = Grid.of(file).codes
    return all(
        (((later[name].astype(int) - old) % coarse == 0) | (np.abs(later[name].astype(int)) == 127)).all()
        for name, old in grid.codes.items()
    )


def test_a_large_update_is_told_in_coarse_steps() -> None:
    """Weights move by multiples of some codes from their parent's; the patch is smaller, and the answers keep what was learned."""
    grid, later = parent(), learned(1e-3)
    written = written_down(later, HELD, TRAIN.inputs, VNNI, grid=grid)
    fine = written_down(later, HELD, TRAIN.inputs, VNNI, grid=grid, gate=Gate(forgone=0))
    way = written.tried[-1].way
    coarse = int(way.removeprefix("int8, changes in steps of "))
    assert coarse in COARSE
    assert [one.way for one in fine.tried] == ["int8"]
    assert keeps_to(coarse, grid, written.model)
    assert not keeps_to(coarse, grid, fine.model)
    assert len(diff(grid.file, written.model)) < 0.8 * len(diff(grid.file, fine.model))
    wanted, far, near, best = (
        softmax(run_model(OnnxEngine(one), HELD.inputs)[0])
        for one in (later, grid.file, written.model, fine.model)
    )
    lost = divergence(wanted, near) - divergence(wanted, best)
    assert lost <= 0.05 * (divergence(wanted, far) - divergence(wanted, best))


def test_a_small_update_is_not_rounded_away() -> None:
    """Steps of 8 would leave the parent's file, which costs less accuracy than is allowed; they are not taken all the same."""
    grid = parent()
    network = copy.deepcopy(run().student)
    assert isinstance(network, MotionNet)
    with torch.no_grad():
        step = torch.from_numpy(grid.steps["head.weight"].scale.copy())
        network.head.weight[0] += 3 * step[0]
        network.head.weight[1] -= 3 * step[1]
    later = file_of(network)
    written = written_down(later, HELD, TRAIN.inputs, VNNI, grid=grid)
    assert "steps of 8" not in written.tried[0].way
    assert written.model != grid.file
    given_up = written_down(later, HELD, TRAIN.inputs, VNNI, grid=grid, gate=Gate(forgone=1))
    assert [one.way for one in given_up.tried] == ["int8, changes in steps of 8"]
    assert given_up.model == grid.file


def test_nothing_learned_is_nothing_sent() -> None:
    """The same student on its own grid is the same file, to the byte, whatever the steps."""
    grid = parent()
    written = written_down(file_of(run().student), HELD, TRAIN.inputs, VNNI, grid=grid)
    assert written.model == grid.file


def test_a_whole_set_of_answers_that_coarse_steps_would_spoil_is_judged_by_accuracy_too() -> None:
    """Near answers that are wrong more often than is allowed are refused: the next finer step is tried, and each try is told."""
    grid, later = parent(), learned(1e-3)
    written = written_down(later, HELD, TRAIN.inputs, VNNI, grid=grid, gate=Gate(allowed=0, forgone=1))
    *refused, last = written.tried
    assert last.drop.value <= 0
    assert all(one.drop.value > 0 for one in refused)
    assert written.tried[0].way == "int8, changes in steps of 8"


def test_the_lineage_says_what_a_parents_grid_has_cut() -> None:
    """A share of the weights, where a grid was given, and nothing where none was."""
    parent = run().pack(POLICY)
    grid = Grid.of(parent.blobs["model.onnx"])
    later = copy.deepcopy(run().student)
    with torch.no_grad():
        for name, parameter in later.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(2)
    packed = replace(run(), student=later).pack(POLICY, grid=grid, gate=Gate(allowed=1.0))
    assert 0.2 < json.loads(packed.blobs["lineage.json"])["clipped"] < 0.9
    assert "clipped" not in json.loads(parent.blobs["lineage.json"])
