"""Real architectures: every kept weight is the teacher's, and the student answers as the silenced teacher does."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inherit_worlds import PICTURES, WORLDS, ResNet, ViT, World, answer, made, silenced, tensor
from lab_worlds import same_weights, stir_
from torch import nn

from edgestill.core.errors import ModelError
from edgestill.lab.inherit import IndexMap, carve, fuse_parameters_, inherit_
from edgestill.lab.recipe import Selection

SELECTIONS = get_args(Selection)
EXACT = sorted(name for name, world in WORLDS.items() if world.exact)
names, seeds = st.sampled_from(sorted(WORLDS)), st.integers(0, 2**32 - 1)


def check_weights(student: nn.Module, teacher: nn.Module, index_map: IndexMap) -> None:
    """Every tensor of the student is bit-equal to the teacher's at the mapped indices, which ascend."""
    ours, theirs = student.state_dict(), teacher.state_dict()
    assert index_map.kept.keys() == ours.keys()
    for name, own in ours.items():
        part = theirs[index_map.source(name)]
        for dim, index in enumerate(index_map.kept[name]):
            if index is not None:
                assert (index.diff() > 0).all()
                part = part.index_select(dim, index)
        assert torch.equal(own, part), name


def check_answers(world: World, student: nn.Module, teacher: nn.Module, index_map: IndexMap) -> None:
    """Both ends of every connection agree: silencing what was dropped changes nothing for the student."""
    ours, theirs = answer(student, world.example), answer(silenced(teacher, index_map), world.example)
    if world.exact:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    else:
        assert ours.isfinite().all()


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("name", sorted(WORLDS))
def test_a_student_inherits(name: str, selection: Selection) -> None:
    """Each architecture, into a given student."""
    world = WORLDS[name]
    teacher, student = stir_(made(world, world.wide)), made(world, world.narrow, 9)
    before = copy.deepcopy(teacher)
    index_map = inherit_(student, teacher, world.example, selection=selection, seed=3)
    assert same_weights(teacher, before)
    check_weights(student, teacher, index_map)
    check_answers(world, student, teacher, index_map)


@settings(max_examples=30)
@given(names, st.sampled_from(SELECTIONS), seeds, st.floats(0.05, 1))
def test_a_carved_student_is_a_part_of_its_teacher(
    name: str, selection: Selection, seed: int, ratio: float
) -> None:
    """Each architecture, cut to any ratio: it runs, its weights are the teacher's, and it answers consistently."""
    world = WORLDS[name]
    teacher = stir_(made(world, world.wide))
    student, index_map = carve(teacher, world.example, ratio=ratio, selection=selection, seed=seed)
    check_weights(student, teacher, index_map)
    check_answers(world, student, teacher, index_map)


@settings(max_examples=15)
@given(names, seeds, st.floats(0.01, 1))
def test_a_student_carved_by_coin_is_a_part_of_its_teacher(name: str, seed: int, probability: float) -> None:
    """Every width differs, and each keeps at least one unit."""
    world = WORLDS[name]
    teacher = stir_(made(world, world.wide))
    student, index_map = carve(teacher, world.example, probability=probability, seed=seed)
    check_weights(student, teacher, index_map)
    check_answers(world, student, teacher, index_map)


@settings(max_examples=15)
@given(names, seeds, st.sampled_from([0.0, 0.25, 1.0]))
def test_fusing_goes_the_way_back(name: str, seed: int, alpha: float) -> None:
    """At the map's places stands `alpha S + (1 - alpha) T`, elsewhere the teacher's own bits."""
    world = WORLDS[name]
    teacher, student = stir_(made(world, world.wide)), made(world, world.narrow)
    index_map = inherit_(student, teacher, world.example, seed=seed)
    stir_(student, seed=8)
    before = copy.deepcopy(teacher).state_dict()
    fuse_parameters_(teacher, student, index_map, alpha=alpha)
    for tensor_name, after in teacher.state_dict().items():
        if not after.is_floating_point():
            continue
        mapped = torch.zeros_like(after, dtype=torch.bool)
        mapped[index_map.grid(tensor_name, after)] = True
        expected = before[tensor_name].clone()
        expected[mapped] = (alpha * student.state_dict()[tensor_name]).flatten() + (1 - alpha) * expected[
            mapped
        ]
        assert torch.equal(after, expected), tensor_name


@pytest.mark.parametrize("name", EXACT)
def test_an_inconsistent_selection_answers_something_else(name: str) -> None:
    """The control: the same test fails when one layer reads other units than the layer before it kept."""
    world = WORLDS[name]
    teacher = stir_(made(world, world.wide))
    student, index_map = carve(teacher, world.example, ratio=0.6, selection="first")
    weights = {one: own for one, own in student.state_dict().items() if own.ndim > 1}
    broken = next(one for one in reversed(weights) if index_map.kept[one][1] is not None)
    index = index_map.kept[broken][1]
    assert index is not None
    size = teacher.state_dict()[broken].shape[1]
    moved = torch.arange(size - len(index), size)
    index_map.kept[broken] = (index_map.kept[broken][0], moved, *index_map.kept[broken][2:])
    student.state_dict()[broken].copy_(index_map.select(broken, teacher.state_dict()[broken]))
    ours, theirs = answer(student, world.example), answer(silenced(teacher, index_map), world.example)
    assert not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("blocks", "sources"), [("first", ["0", "1"]), ("uniform", ["0", "2"])])
def test_a_shallower_student_takes_the_first_or_evenly_spaced_blocks(blocks: str, sources: list[str]) -> None:
    """Of five blocks of each stage, two; each keeps what it has been in the teacher."""
    teacher, student = stir_(ResNet(8, 6, 12, 5)), ResNet(5, 3, 7, 2)
    index_map = inherit_(student, teacher, PICTURES, blocks=blocks)  # type: ignore[arg-type]  # the parameters are the two words
    check_weights(student, teacher, index_map)
    assert [index_map.source(f"layer2.{at}.conv1.weight") for at in range(2)] == [
        f"layer2.{at}.conv1.weight" for at in sources
    ]
    fuse_parameters_(teacher, stir_(student, seed=5), index_map, alpha=1)
    check_weights(student, teacher, index_map)


def test_a_shallower_transformer_inherits() -> None:
    """Blocks of a list, with heads dropped."""
    teacher, student = stir_(ViT(12, 3, 4, 10, depth=5)), ViT(8, 2, 4, 5, depth=2)
    check_weights(student, teacher, inherit_(student, teacher, PICTURES, blocks="uniform"))


def test_a_deeper_student_is_refused() -> None:
    """There is nothing its further blocks could come from."""
    with pytest.raises(ModelError, match=r"not of one family; at layer1.2.bn1.bias"):
        inherit_(ResNet(blocks=3), ResNet(blocks=2), PICTURES)


def test_double_precision_stays() -> None:
    """A float64 teacher gives float64 parts."""
    teacher = stir_(ResNet().double())
    student, index_map = carve(teacher, PICTURES.double())
    check_weights(student, teacher, index_map)
    assert {one.dtype for one in student.parameters()} == {torch.float64}


def test_a_head_size_that_shrinks_keeps_the_same_places_in_every_head() -> None:
    """A student with as many heads, each smaller."""
    teacher, student = stir_(ViT(12, 3, 4, 10)), ViT(9, 3, 3, 10)
    index_map = inherit_(student, teacher, PICTURES)
    check_weights(student, teacher, index_map)
    rows = index_map.kept["blocks.0.attn.qkv.weight"][0]
    assert rows is not None
    places = rows.reshape(9, 3) % 4
    assert (places == places[0]).all()


def test_inputs_may_come_as_a_tuple() -> None:
    """Two inputs by position."""

    class Two(nn.Module):
        def __init__(self, hidden: int) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(3, hidden), nn.Linear(2, hidden), nn.Linear(hidden, 3)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            """Logits."""
            return self.head(torch.relu(self.one(x) + self.two(y)))  # type: ignore[no-any-return]  # untyped call

    teacher, student = Two(6), Two(4)
    index_map = inherit_(student, teacher, (tensor(2, 3), tensor(2, 2)))
    rows, others = index_map.kept["one.weight"][0], index_map.kept["two.weight"][0]
    assert rows is not None
    assert others is not None
    assert rows.tolist() == others.tolist()
