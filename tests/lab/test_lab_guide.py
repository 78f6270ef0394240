"""The teacher is asked, never trained: in evaluation mode, without gradients, and left as it was."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from cache_worlds import Net, ask_of, inputs_of, net
from lab_worlds import branches, same_weights
from torch import Tensor, nn

from edgestill.core.errors import ModelError
from edgestill.lab.forward import forward
from edgestill.lab.teacher.guide import LiveGuide

if TYPE_CHECKING:
    from edgestill.lab.data.source import Inputs

ASK = ask_of(list(range(30)))
INPUTS = inputs_of()


def test_a_teacher_in_training_mode_does_not_drift() -> None:
    """Asked a hundred times, every weight and every BatchNorm statistic is bit-equal, and so is each module's mode."""
    teacher = net()
    teacher.drop.eval()
    before, modes = copy.deepcopy(teacher), [one.training for one in teacher.modules()]
    guide = LiveGuide(teacher)
    first = guide.answer(ASK, INPUTS).logits
    for _ in range(100):
        assert torch.equal(guide.answer(ASK, INPUTS).logits, first)
    assert same_weights(teacher, before)
    assert [one.training for one in teacher.modules()] == modes
    assert all(one.grad is None for one in teacher.parameters())


def test_answers_are_those_of_evaluation_mode() -> None:
    """Not those of a batch's own statistics, nor of dropout."""
    teacher = net()
    found = LiveGuide(teacher).answer(ASK, INPUTS)
    with torch.no_grad():
        torch.testing.assert_close(found.logits, forward(net().eval(), INPUTS))
    assert found.features is None


def test_answers_may_take_part_in_a_loss() -> None:
    """Logits and features are no inference tensors."""
    answer = LiveGuide(net(), hint="hidden").answer(ASK, INPUTS)
    for values in (answer.logits, answer.features):
        assert values is not None
        student = torch.ones_like(values, requires_grad=True)
        (student * values).sum().backward()  # type: ignore[no-untyped-call]  # torch has no type for it
        assert student.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_answers_are_float32_whatever_the_teacher_computes_in(dtype: torch.dtype) -> None:
    """A half-precision teacher does not make a half-precision loss."""
    answer = LiveGuide(net().to(dtype), hint="hidden").answer(ASK, INPUTS.to(dtype))
    assert answer.logits.dtype == torch.float32
    assert answer.features is not None
    assert answer.features.dtype == torch.float32


def test_a_hint_is_the_layers_output_and_leaves_no_hook() -> None:
    """Exactly what the layer gave, and nothing watches it afterwards, also when the teacher failed."""
    teacher = net()
    found = LiveGuide(teacher, hint="hidden").answer(ASK, INPUTS).features
    assert found is not None
    with torch.no_grad():
        torch.testing.assert_close(found, teacher.hidden(INPUTS.flatten(1)))
    with pytest.raises(RuntimeError):
        LiveGuide(teacher, hint="hidden").answer(ASK, INPUTS[:, :2])
    assert not any(one._forward_hooks for one in teacher.modules())


def test_a_hint_at_no_layer_is_refused_before_any_work() -> None:
    """The text names the layer and the network."""
    with pytest.raises(
        ModelError, match=r"no such layer in this network; at hiden; .*; got Net; did you mean 'hidden'"
    ):
        LiveGuide(net(), hint="hiden")


class Wide(nn.Module):
    """Two inputs by name or place, answered as an object with `logits`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, str]:
        """Scaled logits."""
        return self.inner(x) * scale[:, None], "and more"


@pytest.mark.parametrize(
    "inputs", [(INPUTS, torch.full((30,), 2.0)), {"scale": torch.full((30,), 2.0), "x": INPUTS}]
)
def test_a_teacher_with_several_inputs_is_asked_as_it_wants(inputs: Inputs) -> None:
    """A tuple by place, a dictionary by keyword."""
    wanted = 2 * LiveGuide(net()).answer(ASK, INPUTS).logits
    torch.testing.assert_close(LiveGuide(Wide()).answer(ASK, inputs).logits, wanted)


def test_the_digest_tells_teachers_apart() -> None:
    """Weights, statistics, a layer's settings, the hint and the class make a difference; mode and memory order do not."""
    drifted, dropped = net(), net()
    drifted.norm.running_var = torch.full((6,), 2.0)
    dropped.drop.p = 0.1
    named = type("Net", (Net,), {"__module__": "elsewhere"})()
    named.load_state_dict(net().state_dict())
    digests = [
        LiveGuide(net()).digest,
        LiveGuide(net(seed=2)).digest,
        LiveGuide(drifted).digest,
        LiveGuide(dropped).digest,
        LiveGuide(named).digest,
        LiveGuide(net(), hint="hidden").digest,
        LiveGuide(net(), hint="norm").digest,
    ]
    assert len(set(digests)) == len(digests)
    assert LiveGuide(net().eval()).digest == digests[0]
    conv = branches(4, 3, 3, 4)
    assert (
        LiveGuide(conv, channels_last=True).digest
        == LiveGuide(copy.deepcopy(conv), channels_last=False).digest
    )


def test_the_digest_does_not_know_addresses() -> None:
    """Where a setting is an object, its place in memory is not part of it: another process has the same digest."""

    class Odd(nn.Module):
        def extra_repr(self) -> str:
            return f"act={object()!r}"

    odd = Odd()
    assert LiveGuide(odd).digest == LiveGuide(odd).digest


def test_convolutions_are_laid_out_channels_last_where_it_pays() -> None:
    """Same values, same answers but for rounding; networks without such layers are left alone."""
    conv = branches(4, 3, 3, 4)
    before, images = copy.deepcopy(conv), torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = LiveGuide(copy.deepcopy(conv), channels_last=False).answer(ASK, images)
    found = LiveGuide(conv).answer(ASK, images)
    assert conv.branch.weight.is_contiguous(memory_format=torch.channels_last)
    assert not conv.branch.weight.is_contiguous()
    assert same_weights(conv, before)
    torch.testing.assert_close(found.logits, plain.logits)
