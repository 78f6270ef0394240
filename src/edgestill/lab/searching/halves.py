"""Held-out data in two parts: one that students are chosen on, and one that nobody sees until they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgestill.core.errors import DataError
from edgestill.lab.data.part import PartSource
from edgestill.lab.data.samples import Samples
from edgestill.lab.packing.calibrate import FEWEST

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.lab.data.source import Source


def halves(
    data: Samples | Source, share: float, seed: int
) -> tuple[Samples, Samples] | tuple[Source, Source]:
    """Two parts that have no group in common: `share` of it, and the rest.

    Args:
        data: samples, whose groups stay together; or a source, each of whose samples is a group.
        share: of the first part.
        seed: of the draw.

    Raises:
        DataError: a part would be too small to tell anything.
    """
    groups = data.groups if isinstance(data, Samples) else np.arange(len(data))
    names, counts = np.unique(groups, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    before = np.cumsum(counts[order]) - counts[order] / 2
    first = np.isin(groups, names[order[before < share * len(groups)]])
    if min(first.sum(), (~first).sum()) < FEWEST:
        raise DataError(
            "too little held-out data to choose students and to judge the chosen",
            where="validation",
            expected=f"at least {FEWEST} samples in each part, of different groups",
            got=f"{first.sum()} and {(~first).sum()}, of {len(names)} groups",
            fix="hold more samples out of training",
        )
    if isinstance(data, Samples):
        return data.where(first), data.where(~first)
    return PartSource(data, np.flatnonzero(first)), PartSource(data, np.flatnonzero(~first))


def groups_of(data: Samples | Source) -> NDArray[np.int64]:
    """`[N]`: what stands or falls together."""
    return data.groups if isinstance(data, Samples) else np.arange(len(data))
