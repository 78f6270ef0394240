"""What is chosen: numbers with names, the student that they stand for, and what is tried first."""

from __future__ import annotations

import optuna
import pytest
import torch
from inherit_worlds import ResNet, tensor
from lab_worlds import image_net, images
from torch import nn

from edgestill.lab.searching.choices import SMALLEST, Choices
from edgestill.lab.searching.factory import FactorySpace
from edgestill.lab.searching.shape import CarvedSpace


def chain() -> Choices:
    """Of three widths and no blocks, with two learning rates."""
    space = CarvedSpace(image_net(8, 6, 10), torch.from_numpy(images(1)))
    return Choices(space, {"lr": [0.01, 0.02]})


def residual() -> tuple[CarvedSpace, Choices]:
    """Of a row of three blocks."""
    space = CarvedSpace(ResNet(blocks=3), tensor(1, 3, 8, 8))
    return space, Choices(space)


def test_widths_within_the_blocks_of_a_row_are_one_number() -> None:
    """Named with a star for the block; every knob is in one group."""
    space, choices = residual()
    named = [name.removeprefix("width: ") for name in choices.distributions() if name.startswith("width: ")]
    assert len(named) < len(space.knobs)
    assert any("*" in name for name in named)
    (first, *_) = choices.designs()
    assert choices.direction(first).shares.keys() == {one.name for one in space.knobs}


def test_the_uniform_student_comes_first() -> None:
    """All widths alike, no block left out, the usual recipe."""
    for choices in (chain(), residual()[1]):
        first = next(choices.designs())
        direction = choices.direction(first)
        assert set(direction.shares.values()) == {1.0}
        assert not any(direction.left_out.values())
    assert chain().recipe(next(chain().designs())) == {"lr": 0.01}


def test_every_design_is_within_what_can_be_chosen() -> None:
    """And no two are the same: Optuna takes each as a trial of its own."""
    for choices in (chain(), residual()[1]):
        known, designs = choices.distributions(), list(choices.designs())
        for values in designs:
            assert values.keys() == known.keys()
            assert all(
                known[name]._contains(known[name].to_internal_repr(one)) for name, one in values.items()
            )
        assert len({tuple(values.items()) for values in designs}) == len(designs)


def test_the_widest_is_one_whatever_is_proposed() -> None:
    """The scale says how large; two proposals that differ by a factor are one direction."""
    choices = chain()
    narrow = dict.fromkeys(choices.distributions(), 0.5) | {"recipe: lr": 0.01}
    assert set(choices.direction(narrow).shares.values()) == {1.0}
    one, *_ = narrow
    assert choices.direction(narrow | {one: SMALLEST}).shares[one.removeprefix("width: ")] == 0.5


def test_what_optuna_proposes_can_be_built() -> None:
    """Any point of the space is a student."""
    space, choices = residual()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(5):
        values = study.ask(choices.distributions()).params
        student = space.built(choices.direction(values), 0.5)
        assert isinstance(student, nn.Module)


def test_arguments_of_a_callable_are_chosen_as_widths_are() -> None:
    """Within their ranges, all of them with the scale."""
    made: list[dict[str, int]] = []

    def make(*, seed: int, **chosen: int) -> nn.Module:
        made.append(chosen | {"seed": seed})
        return nn.Identity()

    space = FactorySpace(make, {"rows": (64, 4096), "width": (8, 32)}, name="net")
    choices = Choices(space)
    direction = choices.direction({"width: rows": 0.5, "width: width": 1.0})
    assert space.widths(direction, 1.0) == {"rows": 2048, "width": 32}
    assert space.widths(direction, 0.01) == {"rows": 64, "width": 8}
    space.built(direction, 0.5, seed=3)
    assert made == [{"rows": 1024, "width": 16, "seed": 3}]


@pytest.mark.parametrize("ends", [(8,), (0, 4), (8, 4), (1.0, 4), "ab", (True, 4)])
def test_a_range_has_two_ends(ends: object) -> None:
    """Whole numbers from 1 on, the smaller first."""
    from edgestill.core.errors import SettingError

    with pytest.raises(SettingError, match="not a range; at search: arguments: width"):
        FactorySpace(lambda **_: nn.Identity(), {"width": ends}, name="none")  # type: ignore[dict-item]  # that is what is tested
    with pytest.raises(SettingError, match="nothing to search among"):
        FactorySpace(lambda **_: nn.Identity(), {}, name="none")
