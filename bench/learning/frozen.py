"""Features of frozen networks: what the closed form learns on.

- `digits`: the 1,797 digits that scikit-learn carries, through the hidden layer (`relu`) of a perceptron that was trained on the first third.
- `cifar10`: JPEG images through a published ResNet-20 that was trained on the original pixels (64 features); wider ones are a random
  layer with `relu` behind it.

A third of the samples is the reference: what a bundle's own statistics are of. Devices share a third, and the last one tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.digest import Digest
from edgestill.learn.statistics import Statistics

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.learn.statistics import Head

CLASSES: Final = 10
BACKBONE: Final = Digest.of(b"bench")
CIFAR_IMAGES: Final = 6_000


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Samples: features float64 `[N, D]`, labels `[N]`."""

    features: NDArray[np.float64]
    labels: NDArray[np.int64]

    def where(self, chosen: NDArray[np.int64]) -> Part:
        """Those of these numbers."""
        return Part(self.features[chosen], self.labels[chosen])

    def sums(self, window: int = 0) -> Statistics:
        """Their statistics, with one-hot targets."""
        empty = Statistics.empty(
            backbone=BACKBONE, window=window, classes=CLASSES, features=self.features.shape[1]
        )
        return empty.add(self.features, np.eye(CLASSES)[self.labels])

    def right(self, head: Head) -> float:
        """Share of them that a head names rightly, in percent."""
        scores = self.features @ head.weight + head.bias
        return 100 * float((scores.argmax(axis=1) == self.labels).mean())


@dataclass(frozen=True, slots=True, eq=False)
class Frozen:
    """Three thirds: the bundle's, the devices', and what tells."""

    reference: Part
    devices: Part
    test: Part

    def dealt(self, *, devices: int, skew: float, seed: int) -> list[Part]:
        """The devices' samples by device, as `holders_of` deals them."""
        rng = np.random.default_rng([seed, round(1000 * skew)])
        holders = holders_of(self.devices.labels, devices=devices, skew=skew, rng=rng)
        return [self.devices.where(np.flatnonzero(holders == device)) for device in range(devices)]


def holders_of(
    labels: NDArray[np.int64], *, devices: int, skew: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Which device holds each sample: of a class, shares from a symmetric Dirichlet distribution (Hsu, Qi and Brown 2019)."""
    holders = np.empty(len(labels), dtype=np.int64)
    for label in range(CLASSES):
        mine = rng.permutation(np.flatnonzero(labels == label))
        ends = np.round(np.cumsum(rng.dirichlet(np.full(devices, skew)))[:-1] * len(mine)).astype(int)
        for device, chosen in enumerate(np.split(mine, ends)):
            holders[chosen] = device
    return holders


def digits(width: int) -> Frozen:
    """Digits through a hidden layer of this width."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels / 16
    order = np.random.default_rng(2_026).permutation(len(labels))
    first = order[: len(order) // 3]
    network = MLPClassifier(
        (width,), max_iter=60, random_state=0, learning_rate_init=3e-3, n_iter_no_change=60
    )
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.fit(pixels[first], labels[first])
    features = np.maximum(pixels @ network.coefs_[0] + network.intercepts_[0], 0)
    return _thirds(Part(features, labels.astype(np.int64)).where(order))


def cifar10(data: Path, width: int, *, quick: bool = False) -> Frozen:
    """JPEG images of CIFAR-10 through ResNet-20; 64 features, or more by a random layer."""
    import torch
    from searching.teachers import images, resnet20

    found = images(data, "test", 10_000 // (600 if quick else CIFAR_IMAGES) or 1)
    network = resnet20(data)
    kept: list[NDArray[np.float64]] = []
    handle = network.network.linear.register_forward_pre_hook(
        lambda _layer, args: kept.append(args[0].numpy())
    )
    with torch.no_grad():
        for part in torch.as_tensor(np.asarray(found.inputs)).split(256):
            network(part)
    handle.remove()
    features = np.concatenate(kept).astype(np.float64)
    if width > features.shape[1]:
        rng = np.random.default_rng(0)
        weight = rng.normal(size=(features.shape[1], width)) / np.sqrt(features.shape[1])
        features = np.maximum(features / features.std() @ weight + rng.uniform(-1, 1, width), 0)
    return _thirds(Part(features, np.asarray(found.labels)))


def _thirds(whole: Part) -> Frozen:
    parts = np.array_split(np.arange(len(whole.labels)), 3)
    return Frozen(*(whole.where(part) for part in parts))
