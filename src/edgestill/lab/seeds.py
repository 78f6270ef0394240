"""Randomness that belongs to a sample, not to a run.

Every augmented view is a function of one sample and one 32-bit seed. So the same view comes back whatever batch the
sample stands in, on whichever rank, before or after an interruption, and the seed is all a cache must remember of it
(Wu et al. 2022, "TinyViT", section 3.1).

Numbers come from a counter, not from a state: the n-th number of a seed is a hash of (seed, n). The hash is SplitMix64's
finaliser (Steele, Lea and Flood 2014, figure 19), computed for whole batches at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Seeds = np.ndarray[tuple[int, ...], np.dtype[np.uint32]]
"""`[N]`, one seed a sample."""

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)


def view_seeds(run: int, view: int, index: NDArray[np.int64]) -> Seeds:
    """The seeds of one view of these samples.

    Args:
        run: the recipe's seed.
        view: which view, from 0.
        index: `[N]`, the samples' places in the data.
    """
    with np.errstate(over="ignore"):
        start = _mixed(_mixed(np.array([run], np.uint64)) + np.uint64(view))
        return (_mixed(start + index.astype(np.uint64)) >> np.uint64(32)).astype(np.uint32)


def uniform(seeds: Seeds, count: int, *, stream: int = 0) -> NDArray[np.float32]:
    """Numbers in [0, 1), `[N, count]`: row i depends on `seeds[i]` and `stream` alone.

    Args:
        seeds: `[N]`.
        count: numbers a sample.
        stream: numbers of different streams of one seed have nothing to do with each other.
    """
    return (_words(seeds, count, stream) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def normal(seeds: Seeds, count: int, *, stream: int = 0) -> NDArray[np.float32]:
    """Numbers of the standard normal distribution, `[N, count]` (Box and Muller 1958); as `uniform`."""
    words = _words(seeds, (count + 1) // 2, stream)
    # (0, 1], so that the logarithm is finite
    radius = np.sqrt(-2 * np.log(((words >> np.uint64(32)) + np.uint64(1)).astype(np.float32) * 2**-32))
    angle = (words & np.uint64(0xFFFFFFFF)).astype(np.float32) * np.float32(2 * np.pi * 2**-32)
    both: NDArray[np.float32] = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return both[:, :count].astype(np.float32, copy=False)


def integers(seeds: Seeds, below: int, count: int, *, stream: int = 0) -> NDArray[np.int64]:
    """Whole numbers in `[0, below)`, `[N, count]`; as `uniform`."""
    return (_words(seeds, count, stream) % np.uint64(below)).astype(np.int64)


def _words(seeds: Seeds, count: int, stream: int) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        start = _mixed((seeds.astype(np.uint64) << np.uint64(32)) | np.uint64(stream & 0xFFFFFFFF))
        return _mixed(start[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = words + _GOLDEN
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))
