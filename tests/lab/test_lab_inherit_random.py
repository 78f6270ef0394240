"""Random networks in which units meet only through weights: the student answers exactly as its part of the teacher does."""

from __future__ import annotations

from typing import get_args

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from inherit_random import Random
from inherit_worlds import answer, silenced
from lab_worlds import stir_
from torch import nn

from edgestill.core.errors import ModelError
from edgestill.lab.inherit import IndexMap, carve, inherit_
from edgestill.lab.recipe import Selection

seeds, selections = st.integers(0, 2**32 - 1), st.sampled_from(get_args(Selection))


def check(student: nn.Module, teacher: Random, index_map: IndexMap) -> None:
    """Up to rounding, the student answers as its teacher does with every other weight 0."""
    expected = answer(silenced(teacher, index_map), teacher.example())
    most = float(expected.abs().max())
    torch.testing.assert_close(
        answer(student, teacher.example()), expected, rtol=1e-3, atol=1e-4 * (1 + most)
    )


def carved(teacher: Random, ratio: float, selection: Selection, seed: int) -> tuple[nn.Module, IndexMap]:
    """A student; another example where halves of halves, all tied, leave nothing to cut."""
    try:
        return carve(teacher, teacher.example(), ratio=ratio, selection=selection, seed=seed)
    except ModelError as error:
        assume("nothing of the teacher can be cut" not in str(error))
        raise


@settings(max_examples=40)
@given(seeds, st.floats(0.1, 0.9), selections)
def test_any_network_of_such_layers_is_carved_exactly(seed: int, ratio: float, selection: Selection) -> None:
    """Whatever the layers, their order and widths; and the numbers that only happen to be a width stay."""
    torch.manual_seed(seed)
    teacher = stir_(Random(seed))
    assert isinstance(teacher, Random)
    student, index_map = carved(teacher, ratio, selection, seed)
    check(student, teacher, index_map)


@settings(max_examples=40)
@given(seeds, st.floats(0.1, 0.9), selections)
def test_any_network_of_such_layers_is_inherited_exactly(
    seed: int, ratio: float, selection: Selection
) -> None:
    """A student of any of the widths that carving gives takes over another part of its teacher."""
    torch.manual_seed(seed)
    teacher = stir_(Random(seed))
    assert isinstance(teacher, Random)
    narrow, _ = carved(teacher, ratio, "random", seed)
    student = stir_(narrow, seed=5)
    index_map = inherit_(student, teacher, teacher.example(), selection=selection, seed=seed)
    check(student, teacher, index_map)
