"""A model is asked without being changed, whatever it takes and gives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from cache_worlds import inputs_of, net
from torch import Tensor, nn

from edgestill.core.errors import ModelError
from edgestill.lab.data.chunks import byte_chunks
from edgestill.lab.forward import answers, evaluating, forward, keeping_mode, weights_digest


class Says(nn.Module):
    """Gives what it was told to give."""

    def __init__(self, given: object) -> None:
        super().__init__()
        self.given = given
        self.asked: list[object] = []

    def forward(self, *inputs: Tensor, **named: Tensor) -> object:
        """Keeps what it was asked."""
        self.asked = [*inputs, *named.items()]
        return self.given


LOGITS = torch.ones(2, 3)


@pytest.mark.parametrize(
    "given", [LOGITS, (LOGITS, "more"), [LOGITS], SimpleNamespace(logits=LOGITS, loss=None)]
)
def test_logits_are_found_however_they_are_wrapped(given: object) -> None:
    """A tensor, a tuple or list that begins with one, or an object with `logits`."""
    assert torch.equal(forward(Says(given), torch.zeros(2, 1)), LOGITS)


@pytest.mark.parametrize("given", [None, "text", (), ("text",), {"logits": 1}, SimpleNamespace(logits=3)])
def test_outputs_that_cannot_be_told_are_refused(given: object) -> None:
    """The text says what was given."""
    with pytest.raises(ModelError, match=r"a model whose outputs cannot be told; at Says; expected a tensor"):
        forward(Says(given), torch.zeros(2, 1))


def test_inputs_are_handed_over_as_the_model_takes_them() -> None:
    """A tensor as one argument, a tuple as several, a dictionary by keyword."""
    model, one, other = Says(LOGITS), torch.zeros(2, 1), torch.ones(2, 1)
    forward(model, one)
    assert model.asked == [one]
    forward(model, (one, other))
    assert model.asked == [one, other]
    forward(model, {"ids": one, "mask": other})
    assert model.asked == [("ids", one), ("mask", other)]


def test_evaluating_puts_back_each_modules_own_mode() -> None:
    """A frozen BatchNorm within a training model stays frozen, also after an error."""
    model = net()
    model.norm.eval()

    def ask() -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            assert torch.is_inference_mode_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        ask()
    assert (model.training, model.norm.training, model.drop.training) == (True, False, True)


def test_keeping_mode_undoes_any_change_of_mode() -> None:
    """Whoever calls `eval` within leaves no trace."""
    model = net()
    with keeping_mode(model):
        model.eval()
    assert all(module.training for module in model.modules())


def test_answers_may_take_part_in_a_loss() -> None:
    """They are no inference tensors, so that a student's gradient can be formed against them."""
    inputs = inputs_of(600)
    found = answers(net(), inputs)
    assert found.shape == (600, 5)
    assert not found.is_inference()
    student = torch.ones(600, 5, requires_grad=True)
    (student * found).sum().backward()  # type: ignore[no-untyped-call]  # torch has no type for it
    assert torch.equal(student.grad if student.grad is not None else LOGITS, found)


def test_a_weights_digest_knows_names_types_shapes_and_values() -> None:
    """Equal copies agree; a changed buffer, name, type or shape is another digest."""
    first = weights_digest(net())
    assert weights_digest(net().eval()) == first
    changed = net()
    changed.norm.running_var = torch.full((6,), 2.0)
    shapes = [nn.ParameterDict({"a": torch.zeros(shape)}) for shape in ((2, 3), (3, 2), (6,))]
    names = [nn.ParameterDict({name: torch.zeros(1)}) for name in "ab"]
    types = [
        nn.ParameterDict({"a": torch.zeros(1, dtype=dtype)}) for dtype in (torch.float16, torch.bfloat16)
    ]
    others = [weights_digest(one) for one in (changed, net(seed=2), *shapes, *names, *types)]
    assert len({first, *others}) == 1 + len(others)


def test_a_weights_digest_does_not_know_the_order_of_memory() -> None:
    """Channels-last weights are the same weights."""
    plain, last = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    last.load_state_dict(plain.state_dict())
    last.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's overloads leave this one out
    assert last.weight.stride() != plain.weight.stride()
    assert weights_digest(last) == weights_digest(plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.complex64])
def test_bytes_come_in_row_major_order_whatever_the_type(dtype: torch.dtype) -> None:
    """Also of a transposed tensor, and of one that is nothing or a single number."""
    values = torch.arange(12).view(3, 4).to(dtype)
    for one in (values, values.t(), values[:0], values[0, 0]):
        whole = one.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert b"".join(byte_chunks(one)) == whole


def test_large_tensors_come_in_pieces() -> None:
    """No piece is more than some megabytes, so that large data is never copied whole."""
    values = torch.arange(5_000_000, dtype=torch.int32).view(1000, 5000)
    pieces = list(byte_chunks(values))
    assert max(map(len, pieces)) <= 4 * 2**20
    assert b"".join(pieces) == values.numpy().tobytes()
