"""What fits a budget, and what is said where nothing does."""

from __future__ import annotations

from typing import Any

import pytest
from inherit_worlds import ResNet, tensor
from search_worlds import HERE, WRAPPING, drafts, profile

from edgestill.core.budget import Budget
from edgestill.core.errors import SettingError
from edgestill.lab.searching.bounds import Fitting
from edgestill.lab.searching.draft import LEAST_SCALE, Drafts, Shape
from edgestill.lab.searching.shape import UNIFORM, CarvedSpace, Direction
from edgestill.lab.searching.workshop import Workshop


def fitting(**bounds: Any) -> Fitting:
    """Of the tiny world."""
    return Fitting(drafts(), profile(), Budget(**bounds))


def test_a_draft_is_as_large_as_its_file_and_its_bundle() -> None:
    """The wrapping counts, by the student's own features."""
    draft = drafts().of(Shape(direction=UNIFORM, scale=0.5, precision="int8"))
    assert draft.size == len(draft.model) + WRAPPING + 10 * draft.widths["conv3"]
    floats = drafts().of(Shape(direction=UNIFORM, scale=0.5, precision="floats"))
    assert floats.widths == draft.widths
    assert floats.model != draft.model


def test_the_largest_student_of_a_size_is_found() -> None:
    """It keeps the bound, and the next wider one would not."""
    bound = 14_000
    found = fitting(size=bound).largest(UNIFORM, "floats")
    assert found is not None
    assert 0.9 * bound < found.size <= bound
    shape = Shape(direction=UNIFORM, scale=found.shape.scale * 1.15, precision="floats")
    assert drafts().of(shape).size > bound


def test_every_bound_is_kept() -> None:
    """The tightest of them decides."""
    wide = fitting(size="1 MB", latency="1 s").largest(UNIFORM, "floats")
    slow = fitting(size="1 MB", latency=2e-5).largest(UNIFORM, "floats")
    assert wide is not None
    assert slow is not None
    assert wide.shape.scale == 1.0
    assert slow.shape.scale < 1.0
    assert profile().seconds(slow) <= 2e-5


def test_the_precision_is_that_in_which_more_fits() -> None:
    """int8 where bytes are bound; floats where only the latency is, which here is half of int8's."""
    assert fitting(size=14_000).precision([UNIFORM]) == "int8"
    assert fitting(latency=2e-5).precision([UNIFORM]) == "floats"


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    """Where it is bound: a model that takes no more than a gigabyte fits, one within a byte does not."""
    draft = drafts().of(Shape(direction=UNIFORM, scale=0.2, precision="floats"))
    assert fitting(memory="1 GB").share(draft) < 1
    assert fitting(memory=1).share(draft) > 1


def test_an_impossible_budget_names_the_bound_and_what_is_nearest() -> None:
    """The smallest student there is, of which the bound in the way is told first."""
    with pytest.raises(SettingError, match=r"the bound on size is too tight; at budget: size") as caught:
        fitting(size=4_000, latency="1 s").precision([UNIFORM])
    assert "expected at least size " in str(caught.value)
    assert "latency" in str(caught.value)
    assert "got 4 kB" in str(caught.value)


def test_a_direction_that_cannot_be_small_enough_is_passed_over() -> None:
    """Blocks take room however narrow they are: the precision is decided by the first direction of which something fits."""
    example = tensor(4, 3, 8, 8)
    space = CarvedSpace(ResNet(blocks=3), example)
    found = Drafts(space, example.numpy(), HERE, lambda _: 0)
    shallow = Direction(left_out={name: len(places) for name, places in space.rows.items()})
    deep, low = (
        found.of(Shape(direction=one, scale=LEAST_SCALE, precision="floats")).size
        for one in (UNIFORM, shallow)
    )
    tight = Fitting(found, None, Budget(size=(deep + low) // 2))
    with pytest.raises(SettingError, match="no student fits"):
        Fitting(found, None, Budget(size=low - 1)).precision([UNIFORM, shallow])
    assert tight.largest(UNIFORM, "floats") is None
    assert tight.precision([UNIFORM, shallow]) == "floats"


def test_what_is_measured_to_be_slower_is_made_narrower() -> None:
    """The profile promises a microsecond an operator, which no machine keeps: the fit goes by what is measured here."""
    shop = Workshop(drafts=drafts(), profile=profile(), measures=True)
    draft = drafts().of(Shape(direction=UNIFORM, scale=1.0, precision="floats"))
    measured = shop.measured([draft])[0]
    tight = shop.corrected(Budget(latency=measured / 2), draft)
    assert tight is not None
    assert tight.latency is not None
    assert tight.latency < profile().seconds(draft)
    assert shop.corrected(Budget(size="1 MB"), draft) is None  # nothing to measure
    loose = shop.corrected(Budget(latency=measured * 10), draft)
    assert loose is not None
    assert loose.latency is not None
    assert loose.latency > profile().seconds(draft)
