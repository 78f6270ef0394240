"""A teacher that answers through onnxruntime says what the module says, or is refused."""

from __future__ import annotations

import copy
from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch
from cache_worlds import ask_of
from lab_worlds import TRAIN, motions, same_weights, teacher
from torch import Tensor, nn

from edgestill.core.errors import DataError, ModelError, SettingError
from edgestill.lab.teacher.guide import LiveGuide
from edgestill.lab.teacher.onnxguide import Agreement, OnnxGuide

if TYPE_CHECKING:
    from edgestill.lab.networks import MotionNet

SAMPLE = torch.from_numpy(TRAIN.inputs)
FRESH = torch.from_numpy(motions(40, seed=9).inputs)
ASK = ask_of(list(range(40)))


class Bare(nn.Module):
    """A linear network whose hidden layer is what its head takes."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 4)
        self.act = nn.ReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 6]` -> `[N, 3]`."""
        logits: Tensor = self.head(self.act(self.hidden(x)))
        return logits


def bare() -> Bare:
    """With the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Bare()


POINTS = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


@cache
def small() -> tuple[MotionNet, OnnxGuide]:
    """A trained teacher that was left in training mode, and its int8 export."""
    model = copy.deepcopy(teacher()).train()
    return model, OnnxGuide.export(model, SAMPLE)


@cache
def plain() -> tuple[Bare, OnnxGuide]:
    """A bare network and its float32 export with a hint."""
    model = bare()
    return model, OnnxGuide.export(model, POINTS, hint="act", int8=False)


def test_the_int8_teacher_says_nearly_what_the_module_says() -> None:
    """Nearly always the same class, and the kept figures say how nearly."""
    guide = small()[1]
    found, wanted = guide.answer(ASK, FRESH), LiveGuide(teacher()).answer(ASK, FRESH).logits
    assert found.logits.dtype == torch.float32
    assert found.features is None
    assert float((found.logits.argmax(1) == wanted.argmax(1)).float().mean()) >= 0.95
    assert guide.agreement.n == len(SAMPLE) // 2
    assert guide.agreement.same >= 0.95
    assert 0 < guide.agreement.error < guide.agreement.spread


def test_the_float32_teacher_is_the_module_but_for_rounding() -> None:
    """Logits, and the hint where it is what the head takes."""
    model, guide = plain()
    found, wanted = guide.answer(ASK, POINTS), LiveGuide(model, hint="act").answer(ASK, POINTS)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.features, wanted.features, rtol=1e-4, atol=1e-5)
    assert guide.agreement.same == 1
    assert guide.digest not in {LiveGuide(model).digest, LiveGuide(model, hint="act").digest}


def test_exporting_leaves_the_teacher_as_it_was() -> None:
    """Weights, statistics and mode, and no hook stays."""
    model = small()[0]
    assert all(one.training for one in model.modules())
    assert same_weights(model, teacher())
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


def test_a_teacher_that_int8_spoils_is_refused() -> None:
    """One of whose hidden units is so large that all others are less than a step: the text says to leave out int8."""
    model = bare()
    with torch.no_grad():
        model.hidden.weight[0] *= 1e4
        model.head.weight[:, 0] = 0
        model.head.bias.zero_()
    with pytest.raises(
        ModelError,
        match=r"the int8 teacher does not say what the module says; at Bare; expected an agreement",
    ) as caught:
        OnnxGuide.export(model, POINTS)
    assert caught.value.fix == "use int8=False, or calibrate on more samples"


def test_agreement_is_worked_out_by_hand() -> None:
    """Two of three same largest outputs; differences of 0.5 and 2 among six; values are judged by their spread."""
    said = torch.tensor([[1.0, 0.0], [0.5, 0.0], [2.0, 0.0]])
    wanted = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]) + torch.tensor(
        [[0.0, 0.0], [0.0, 0.0], [0.0, 0.1]]
    )
    found = Agreement.of(said, wanted)
    assert found.same == pytest.approx(2 / 3)
    assert found.error == pytest.approx((0.5 + 2 + 0.1) / 6)
    assert found.spread == pytest.approx((2 / 3 + 1 / 3 + 1 / 3 + 0.1 / 3 + 0.1 / 3 + 0.2 / 3) / 6, rel=1e-5)
    assert found.figure("classes") == found.same
    assert found.figure("regression") == pytest.approx(1 - found.error / found.spread)
    assert Agreement.of(wanted[:1], wanted[:1]).figure("regression") == 1.0


def test_a_hint_that_is_not_exported_is_refused() -> None:
    """Only what the head takes is in the file; the text says what to use instead."""
    model = bare()
    with pytest.raises(
        SettingError, match=r"an exported teacher gives no such features; at hint: hidden"
    ) as caught:
        OnnxGuide.export(model, POINTS, hint="hidden", int8=False)
    assert caught.value.fix == "use LiveGuide, or keep its answers in a cache"
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


def test_several_inputs_and_too_few_samples_are_refused() -> None:
    """What cannot be exported or compared is said before any work."""
    with pytest.raises(
        ModelError,
        match=r"an exported teacher takes one tensor; at inputs; expected one tensor; got tuple; use LiveGuide",
    ):
        plain()[1].answer(ASK, (POINTS, POINTS))
    with pytest.raises(DataError, match=r"too few samples to compare; at shown; expected at least 4; got 3"):
        OnnxGuide.export(teacher(), SAMPLE[:3])


@pytest.mark.slow
def test_the_digest_is_that_of_the_file() -> None:
    """Exporting again gives the same file, so that a cache of its answers can be opened again."""
    again = OnnxGuide.export(teacher(), SAMPLE)
    assert again.digest == small()[1].digest
    assert torch.equal(again.answer(ASK, FRESH).logits, small()[1].answer(ASK, FRESH).logits)
