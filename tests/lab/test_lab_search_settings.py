"""How hard is searched, and on what students are chosen and told."""

from __future__ import annotations

import numpy as np
import pytest
from lab_worlds import motions
from search_worlds import RECIPE

from edgestill.core.errors import DataError, SettingError
from edgestill.lab.data.samples import Samples
from edgestill.lab.data.source import ArraySource
from edgestill.lab.searching.halves import halves
from edgestill.lab.searching.settings import Search


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"trials": 0}, "a search's value is out of range; at trials"),
        ({"judged": 1.0}, "at judged"),
        ({"seed": -1}, "at seed"),
        ({"budgets": 0}, "at budgets"),
        ({"recipe": {"lrr": [1]}}, "unknown key of a recipe; at search: recipe: lrr"),
        ({"recipe": {"epochs": [1, 2]}}, "unknown key of a recipe"),
        ({"recipe": {"lr": 0.1}}, "no values to try"),
        ({"recipe": {"lr": []}}, "no values to try"),
        ({"recipe": {"lr": [0.1, -1.0]}}, "a recipe's value is out of range; at lr"),
    ],
)
def test_a_search_that_is_wrong_is_refused(wrong: dict[str, object], match: str) -> None:
    """With the key that is."""
    with pytest.raises(SettingError, match=match):
        Search(**wrong)  # type: ignore[arg-type]  # that is what is tested


@pytest.mark.parametrize("epochs", [1, 2, 3, 9, 30, 100])
def test_rungs_grow_to_the_recipes_epochs(epochs: int) -> None:
    """A ninth, a third, all; fewer where these are the same."""
    rungs = Search().rungs(RECIPE.__class__(epochs=epochs))
    assert rungs[-1] == epochs
    assert rungs == sorted(set(rungs))
    assert 1 <= len(rungs) <= 3


def test_groups_stay_together_in_one_part() -> None:
    """A person whose samples choose a student says nothing new about it."""
    data = motions(240, per_group=4)
    judge, unseen = halves(data, 0.5, 0)
    assert set(judge.groups).isdisjoint(unseen.groups)  # type: ignore[union-attr]  # samples give samples
    assert abs(len(judge) - len(unseen)) <= 24


def test_a_source_is_cut_by_samples_and_the_parts_are_all_of_it() -> None:
    """Each sample is in one part; the same seed cuts it the same way."""
    data = ArraySource.of(motions(120))
    first, second = halves(data, 0.25, 7)
    assert (len(first), len(second)) == (30, 90)
    again = halves(data, 0.25, 7)
    assert (first.digest, second.digest) == (again[0].digest, again[1].digest)
    assert halves(data, 0.25, 8)[0].digest != first.digest


def test_one_group_cannot_choose_and_tell() -> None:
    """All samples of one person are one group."""
    data = motions(120)
    alone = Samples.of(data.inputs, data.labels, classes=3, groups=np.zeros(120, np.int64))
    with pytest.raises(DataError, match=r"too little held-out data to choose.*of 1 groups"):
        halves(alone, 0.5, 0)
