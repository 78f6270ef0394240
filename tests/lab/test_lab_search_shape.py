"""Shapes of students: directions that can be scaled until they fit, the uniform one among them."""

from __future__ import annotations

import pytest
import torch
from inherit_worlds import ResNet, answer, tensor
from lab_worlds import image_net, images
from torch import nn

from edgestill.core.errors import SettingError
from edgestill.lab.inherit import carve
from edgestill.lab.searching.shape import UNIFORM, CarvedSpace, Direction

IMAGE = torch.from_numpy(images(1))


def size(network: nn.Module) -> int:
    """Parameters."""
    return sum(one.numel() for one in network.parameters())


def space() -> CarvedSpace:
    """Of a chain of two convolutions and two matrices."""
    return CarvedSpace(image_net(8, 6, 10), IMAGE)


def test_the_uniform_direction_is_the_uniform_student() -> None:
    """Every width at the scale, and the weights that `carve` keeps."""
    ours = space().built(UNIFORM, 0.5)
    theirs = carve(image_net(8, 6, 10), IMAGE, ratio=0.5, selection="magnitude")[0]
    assert all(
        torch.equal(one, other) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True)
    )


def test_a_direction_says_how_widths_stand_to_each_other() -> None:
    """At scale 1 the widest has all its units; each has one at least."""
    found, direction = space(), Direction(shares={"conv1": 0.25, "fc1": 0.5})
    assert found.widths(direction, 1.0) == {"conv1": 2, "conv2": 6, "fc1": 5}
    assert found.widths(direction, 0.5) == {"conv1": 1, "conv2": 3, "fc1": 2}
    assert found.widths(direction, 0.01) == {"conv1": 1, "conv2": 1, "fc1": 1}
    student = found.built(direction, 0.5)
    assert isinstance(student.conv1, nn.Conv2d)
    assert student.conv1.out_channels == 1


def test_blocks_are_left_out_from_the_last_on() -> None:
    """And the widths of blocks that are gone are gone with them."""
    network, example = ResNet(blocks=3), tensor(1, 3, 8, 8)
    found = CarvedSpace(network, example)
    sizes = [
        size(found.built(Direction(left_out=dict.fromkeys(found.rows, count)), 1.0)) for count in range(3)
    ]
    assert sizes[0] == size(network) > sizes[1] > sizes[2]
    student = found.built(
        Direction(left_out=dict.fromkeys(found.rows, 1), shares={found.knobs[0].name: 0.5}), 0.5
    )
    assert answer(student, example).isfinite().all()


def test_a_space_without_widths_is_refused() -> None:
    """Where all of them are kept."""
    with pytest.raises(SettingError, match="nothing to search among; at keep"):
        CarvedSpace(image_net(3, 4, 5), IMAGE, keep=("conv1", "conv2", "fc1"))


def test_a_direction_of_another_teacher_is_refused() -> None:
    """A width that is not there, a row that is not, or more blocks than can be left out: nothing is taken for something else."""
    network, example = ResNet(blocks=3), tensor(1, 3, 8, 8)
    found = CarvedSpace(network, example)
    row = next(iter(found.rows))
    for direction in (
        Direction(shares={"nowhere": 0.5}),
        Direction(left_out={"nowhere": 1}),
        Direction(left_out={row: len(found.rows[row]) + 1}),
        Direction(left_out={row: -1}),
    ):
        for ask in (found.widths, found.built):
            with pytest.raises(SettingError, match="a direction of another teacher"):
                ask(direction, 1.0)


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0])
def test_a_share_is_of_the_teachers_units(share: float) -> None:
    """More than none and at most all."""
    with pytest.raises(SettingError, match="a share is out of range; at conv1"):
        Direction(shares={"conv1": share})
