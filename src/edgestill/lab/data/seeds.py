"""Randomness that belongs to a sample, not to a run.

Every augmented view is a function of one sample and one 32-bit seed. So the same view comes back whatever batch the
sample stands in, on whichever rank, before or after an interruption, and the seed is all a cache must remember of it
(Wu et al. 2022, "TinyViT: Fast Pretraining Distillation for Small Vision Transformers").

Numbers come from a counter, not from a state: the n-th number of a seed is a hash of (seed, n), computed for whole
batches at once. The hash is SplitMix64 (Steele, Lea and Flood 2014) with the constants of Vigna's `splitmix64.c`. There
is no logarithm or cosine in it whose last bit another library rounds otherwise: every machine gets the same numbers.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Seeds = np.ndarray[tuple[int, ...], np.dtype[np.uint32]]
"""`[N]`, one seed a sample."""

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, the three generators start from the seed; afterwards they are as they were."""
    torchs = torch.default_generator  # not `manual_seed`, which would seed the accelerators' as well
    kept = random.getstate(), np.random.get_state(), torchs.get_state()  # noqa: NPY002  # transforms of others draw from it
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torchs.manual_seed(seed)
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        torchs.set_state(kept[2])


def view_seeds(run: int, view: int, index: NDArray[np.int64]) -> Seeds:
    """The seeds of one view of these samples.

    Args:
        run: the recipe's seed, from 0 to 2^64 - 1.
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
    """Numbers of the standard normal distribution, `[N, count]`; as `uniform`.

    Each is one of 2^16 equally likely ones, the largest 4.32: enough for noise, not for the far tails. Looking them up
    takes a tenth of the time of Box and Muller's formula.
    """
    words = _words(seeds, (count + 3) // 4, stream).astype("<u8", copy=False)
    found: NDArray[np.float32] = _quantiles()[words.view("<u2")[:, :count]]
    return found


@cache
def _quantiles() -> NDArray[np.float32]:
    """`[2^16]`, the normal quantiles at the middles of 2^16 equal shares (Wichura 1988, AS 241, as in `statistics`)."""
    at = NormalDist().inv_cdf
    upper = np.array([at(0.5 + (step + 0.5) / 2**16) for step in range(2**15)], np.float32)
    return np.concatenate([-upper[::-1], upper])


def integers(seeds: Seeds, below: int, count: int, *, stream: int = 0) -> NDArray[np.int64]:
    """Whole numbers in `[0, below)`, `[N, count]`; as `uniform`.

    They are remainders of 64-bit numbers: small ones are likelier by less than `below` in 2^64, which nobody can see.

    Args:
        seeds: `[N]`.
        below: from 1 to 2^32.
        count: numbers a sample.
        stream: as for `uniform`.
    """
    return (_words(seeds, count, stream) % np.uint64(below)).astype(np.int64)


def _words(seeds: Seeds, count: int, stream: int) -> NDArray[np.uint64]:
    """`[N, count]`: the outputs of SplitMix64 from a start of each seed's and stream's own."""
    with np.errstate(over="ignore"):
        start = _mixed((seeds.astype(np.uint64) << np.uint64(32)) | np.uint64(stream & 0xFFFFFFFF))
        return _mixed(start[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The first output of SplitMix64 whose state is each word."""
    words = words + _GOLDEN
    words ^= words >> np.uint64(30)
    words *= _FIRST
    words ^= words >> np.uint64(27)
    words *= _SECOND
    words ^= words >> np.uint64(31)
    return words
