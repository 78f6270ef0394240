"""A part of a source is a source: numbered anew, and otherwise the whole's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from lab_worlds import points

from edgestill.core.errors import DataError
from edgestill.lab.data.part import PartSource
from edgestill.lab.data.source import ArraySource, Ask

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Shift:
    """Adds the seed."""

    version = 1

    def __call__(self, inputs: torch.Tensor, seeds: NDArray[np.uint32]) -> torch.Tensor:
        """Every sample moved by its own seed."""
        return inputs + torch.from_numpy(seeds.astype(np.float32))[:, None]


WHOLE = ArraySource.of(points(9), Shift())
PART = PartSource(WHOLE, np.array([7, 2, 5]))


def test_its_samples_are_those_of_the_places() -> None:
    """Sample 0 of the part is sample 7 of the whole, with its label and its view."""
    seeds = np.array([3, 1], np.uint32)
    (ours,) = PART.batches([Ask(np.array([0, 2]), seeds)])
    (theirs,) = WHOLE.batches([Ask(np.array([7, 5]), seeds)])
    assert isinstance(ours.inputs, torch.Tensor)
    assert isinstance(theirs.inputs, torch.Tensor)
    assert torch.equal(ours.inputs, theirs.inputs)
    assert ours.targets is not None
    assert ours.targets.tolist() == [7 % 3, 5 % 3]


def test_it_is_of_the_wholes_kind() -> None:
    """Task, outputs, labels, views."""
    assert (len(PART), PART.task, PART.outputs, PART.labelled) == (3, "classes", 3, True)
    assert (PART.augmented, PART.views_digest) == (True, WHOLE.views_digest)


def test_its_digest_is_its_own() -> None:
    """It differs from the whole's and from another part's, and repeats."""
    others = {
        WHOLE.digest,
        PartSource(WHOLE, np.array([7, 2])).digest,
        PartSource(WHOLE, np.array([2, 7, 5])).digest,
    }
    assert PART.digest not in others
    assert len(others) == 3
    assert PART.digest == PartSource(WHOLE, np.array([7, 2, 5])).digest


def test_no_samples_are_refused() -> None:
    """As everywhere."""
    with pytest.raises(DataError, match="no samples"):
        PartSource(WHOLE, np.zeros(0, np.int64))
