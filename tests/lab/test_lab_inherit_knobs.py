"""What a search may turn: each width once, and the blocks that nobody would miss the shape of."""

from __future__ import annotations

import copy

import pytest
import torch
from inherit_worlds import Recurrent, ResNet, ViT, answer, tensor
from lab_worlds import branches, image_net, images, motion_net, same_weights
from torch import Tensor, nn

from edgestill.core.errors import SettingError
from edgestill.lab.inherit import carve
from edgestill.lab.inherit.knobs import Knob, droppable, knobs, without_blocks


def widths(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter."""
    return {name: tuple(one.shape) for name, one in network.named_parameters()}


def test_a_chain_has_a_knob_a_layer() -> None:
    """All but the head, whose width is the classes; an image's pixels and channels are none."""
    found = knobs(image_net(6, 4, 5), torch.from_numpy(images(1)))
    assert found == (Knob(name="conv1", units=6), Knob(name="conv2", units=4), Knob(name="fc1", units=5))
    found = knobs(motion_net(4, 6, 8), torch.zeros(1, 16, 6))
    assert [(one.name, one.units) for one in found] == [("conv1", 4), ("conv2", 6), ("conv3", 8)]


def test_a_residual_stream_is_one_knob() -> None:
    """Of each stage the stream, and of each block what is within it."""
    network = ResNet(first=8, inner=6, second=12, blocks=2)
    found = knobs(network, tensor(1, 3, 8, 8))
    assert sorted(one.units for one in found) == [6, 6, 6, 6, 8, 12]
    assert len({one.name for one in found}) == len(found)


def test_concatenated_branches_are_two_knobs_and_their_sum_is_none() -> None:
    """What follows a concatenation turns with its parts, and is not told again."""
    found = knobs(branches(4, 3, 5, 6), torch.zeros(1, 2, 8, 8))
    assert [(one.name, one.units) for one in found] == [("stem", 4), ("left", 3), ("right", 5), ("point", 6)]


@pytest.mark.parametrize(
    ("network", "example"),
    [
        (image_net(6, 4, 8), torch.from_numpy(images(1))),
        (ResNet(), tensor(1, 3, 8, 8)),
        (branches(4, 4, 6, 6), torch.zeros(1, 2, 8, 8)),
    ],
)
def test_each_knob_turns_by_itself_and_all_together_are_the_uniform_student(
    network: nn.Module, example: Tensor
) -> None:
    """None changes only what another one changes too; half of each is `carve(ratio=0.5)`."""
    found = knobs(network, example)
    whole = widths(network)
    changed = []
    for one in found:
        narrower = widths(carve(network, example, ratio=1.0, widths={one.name: 0.5})[0])
        changed.append(
            {
                (name, at)
                for name in whole
                for at in range(len(whole[name]))
                if narrower[name][at] < whole[name][at]
            }
        )
        assert changed[-1]
    assert not any(one < other for one in changed for other in changed)
    together = carve(network, example, ratio=1.0, widths={one.name: 0.5 for one in found})[0]
    assert widths(together) == widths(carve(network, example, ratio=0.5)[0])


def test_heads_and_gates_are_counted_in_units_that_can_be_dropped() -> None:
    """A recurrent module's hidden units are one knob for all its gates; attention turns by whole heads."""
    words = torch.randint(0, 20, (1, 5))
    assert [(one.name, one.units) for one in knobs(Recurrent(), words)] == [("words", 6), ("rnn", 8)]
    for network, example in ((Recurrent(), words), (ViT(), tensor(1, 3, 8, 8))):
        for one in knobs(network, example):
            student = carve(network, example, ratio=1.0, widths={one.name: 0.5})[0]
            assert answer(student, example).isfinite().all()


def test_looking_for_knobs_leaves_the_teacher_as_it_was() -> None:
    """Weights, mode and hooks."""
    network = ResNet().train()
    before = copy.deepcopy(network)
    knobs(network, tensor(1, 3, 8, 8))
    droppable(network, tensor(1, 3, 8, 8))
    assert same_weights(network, before)
    assert network.training
    assert not any(one._forward_hooks for one in network.modules())


def row(*shapes: tuple[int, int]) -> nn.Sequential:
    """Blocks of one class, each a linear layer of these widths and what follows it."""
    return nn.Sequential(*(nn.Sequential(nn.Linear(*one), nn.ReLU()) for one in shapes))


class Rows(nn.Module):
    """A row in a Sequential, one in a list, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = row((4, 6), (6, 6), (6, 6))
        self.second = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 5), nn.Linear(5, 5)])
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 4]` to logits."""
        x = self.first(x)
        for layer in self.second:
            x = torch.relu(layer(x))
        logits: Tensor = self.head(x)
        return logits


def test_blocks_that_keep_the_shape_can_be_left_out() -> None:
    """Not those that change it, nor activations and layers that stand alone."""
    assert droppable(Rows(), torch.zeros(1, 4)) == {"first": (1, 2), "second": (0, 2)}
    assert droppable(image_net(3, 4, 5), torch.from_numpy(images(1))) == {}


def test_all_that_can_be_left_out_can_be_left_out_at_once() -> None:
    """One block of each row stays, also where all of them keep the shape."""
    network, example = ResNet(blocks=3), tensor(1, 3, 8, 8)
    found = droppable(network, example)
    assert all(len(places) == 2 for places in found.values())
    assert answer(without_blocks(network, found), example).isfinite().all()


def test_what_remains_has_the_teachers_weights() -> None:
    """Renumbered; the answer is that of the blocks that are left."""
    torch.manual_seed(0)
    teacher = Rows()
    student = without_blocks(teacher, {"first": (1,), "second": (0, 2)})
    theirs, ours = teacher.state_dict(), student.state_dict()
    assert (len(student.first), len(student.second)) == (2, 1)
    assert torch.equal(ours["first.1.0.weight"], theirs["first.2.0.weight"])
    assert torch.equal(ours["second.0.weight"], theirs["second.1.weight"])
    x = torch.randn(5, 4)
    wanted = teacher.head(torch.relu(teacher.second[1](teacher.first[2](teacher.first[0](x)))))
    torch.testing.assert_close(student(x), wanted)
    assert len(teacher.first) == 3


def test_blocks_and_widths_go_together() -> None:
    """A shallower network is carved like any other."""
    network, example = ResNet(blocks=3), tensor(1, 3, 8, 8)
    rows = droppable(network, example)
    assert rows
    shallower = without_blocks(network, {name: places[:1] for name, places in rows.items()})
    student, _ = carve(shallower, example, ratio=0.5)
    assert answer(student, example).shape == answer(network, example).shape
    assert (
        sum(one.numel() for one in student.parameters())
        < sum(one.numel() for one in network.parameters()) / 3
    )


@pytest.mark.parametrize(
    "left_out", [{"nowhere": (0,)}, {"first": (3,)}, {"first": (0, 1, 2)}, {"head": (0,)}]
)
def test_blocks_that_are_not_there_are_refused(left_out: dict[str, tuple[int, ...]]) -> None:
    """Or all of a row: then nothing of it would be left."""
    with pytest.raises(
        SettingError, match=r"no such blocks to leave out; at .*; take rows and places from droppable"
    ):
        without_blocks(Rows(), left_out)
