"""A fleet on one data set: who holds which samples, what everybody sees of them, and what nobody trains on.

Everyone trains on the same samples of the same devices with the same features: a method gets a `Fleet`, and nothing else. A
fleet has labels for its devices, a shared set without labels (`proxy`), labelled samples on which methods are tuned (`validation`) and
samples that are only told by (`test`). The test samples are the same for all seeds; a seed deals out the others.

Labels are spread as is usual (Hsu, Qi and Brown 2019): for each class, the shares of the devices are drawn from a symmetric Dirichlet
distribution; 100 is nearly even, 0.02 leaves most classes to one or two devices. A device without samples is kept: it has nothing to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

DEVICES: Final = 10
SKEWS: Final = (100.0, 0.5, 0.1, 0.02)
SEEDS: Final = (0, 1, 2)
_STILL: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Samples.

    Attributes:
        features: float32 `[N, D]`.
        labels: `[N]`.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, chosen: NDArray[np.int64]) -> Part:
        """Those of these numbers."""
        return Part(features=self.features[chosen], labels=self.labels[chosen])

    def scaled_by(self, reference: NDArray[np.float32]) -> Part:
        """The same samples; each feature that varies over `reference` `[M, D]` has mean 0 and deviation 1 there."""
        deviation = reference.std(axis=0)
        even = (self.features - reference.mean(axis=0)) / np.where(deviation > _STILL, deviation, 1)
        return Part(features=even.astype(np.float32), labels=self.labels)

    def one_hot(self, classes: int) -> NDArray[np.float32]:
        """Labels as targets `[N, C]`."""
        return np.eye(classes, dtype=np.float32)[self.labels]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fleet:
    """Devices, and what methods are tuned and told on.

    Attributes:
        devices: what each holds.
        proxy: whose labels only a teacher may look at.
        validation: for tuning.
        test: for telling.
        classes: C.
    """

    devices: tuple[Part, ...]
    proxy: Part
    validation: Part
    test: Part
    classes: int

    @property
    def central(self) -> Part:
        """All training samples in one place."""
        return Part(
            features=np.concatenate([one.features for one in self.devices]),
            labels=np.concatenate([one.labels for one in self.devices]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many samples are set aside; the rest is the devices'.

    Attributes:
        test: to tell by.
        proxy: shared, without labels.
        validation: to tune on.
    """

    test: int
    proxy: int
    validation: int


def fleet(whole: Part, sizes: Sizes, *, classes: int, skew: float, seed: int, scaled: bool = True) -> Fleet:
    """The fleet of a seed: who holds which sample depends on nothing else, so that other features of the same samples are dealt alike.

    Where they are `scaled`, features are put to mean 0 and deviation 1 by those of the proxy set, which everybody has: SGD needs it.
    """
    rest = np.random.default_rng(2_026).permutation(len(whole))
    test, rest = rest[: sizes.test], rest[sizes.test :]
    rng = np.random.default_rng([seed, round(1000 * skew)])
    rest = rng.permutation(rest)
    proxy, validation, train = np.split(rest, [sizes.proxy, sizes.proxy + sizes.validation])
    holders = dealt(whole.labels[train], skew=skew, classes=classes, rng=rng)
    even = whole.scaled_by(whole.features[proxy]) if scaled else whole
    return Fleet(
        devices=tuple(even.where(train[holders == device]) for device in range(DEVICES)),
        proxy=even.where(proxy),
        validation=even.where(validation),
        test=even.where(test),
        classes=classes,
    )


def fleets(
    whole: Part,
    sizes: Sizes,
    *,
    classes: int,
    skew: float,
    seeds: Sequence[int] = SEEDS,
    scaled: bool = True,
) -> tuple[Fleet, ...]:
    """One a seed."""
    return tuple(fleet(whole, sizes, classes=classes, skew=skew, seed=seed, scaled=scaled) for seed in seeds)


def dealt(
    labels: NDArray[np.int64], *, skew: float, classes: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Number of the device that holds each sample `[N]`."""
    holders = np.empty(len(labels), dtype=np.int64)
    for label in range(classes):
        mine = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(DEVICES, skew))
        ends = np.round(np.cumsum(shares)[:-1] * len(mine)).astype(int)
        for device, chosen in enumerate(np.split(mine, ends)):
            holders[chosen] = device
    return holders


def random_features(inputs: NDArray[np.float32], width: int, *, seed: int) -> NDArray[np.float32]:
    """A frozen layer `relu(W x + b)` `[N, width]` with random W and b, which a seed of 8 bytes tells.

    Args:
        inputs: `[N, K]`, of mean 0 and deviation 1 or so.
        width: D.
        seed: of the weights.
    """
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(inputs.shape[1], width)) / np.sqrt(inputs.shape[1])
    bias = rng.uniform(-1, 1, width)
    found: NDArray[np.float32] = np.maximum(inputs @ weight + bias, 0).astype(np.float32)
    return found
