"""What noise costs: heads of sums with differential privacy, by unit, epsilon, coordinates kept and devices.

Each device sends one message, noise on it, whose epsilon at delta 1e-5 is told; labels are spread by a Dirichlet distribution of 0.5. Samples
are clipped to the root of the number of coordinates, their mean length over the reference. `alone` is the head of the noisy sum, its
ridge as large as the noise; `prior` that of the noisy sum and the bundle's own statistics, which count as much as the noise.
`reference` is the head that the bundle's own statistics give, without any device, and `exact` that of all samples without noise.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.learn.coordinates import Coordinates
from edgestill.learn.privacy import Mechanism, multiplier_for, noise_ridge, possible
from edgestill.learn.statistics import Head, Statistics, solve, usual_ridge
from edgestill.learn.together import head_of
from learning.frozen import Frozen, Part, cifar10, digits

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.core.sharing import Unit

DELTA: Final = 1e-5
EPSILONS: Final = (1.0, 8.0)
KEPT: Final = (8, 16, 64)
DEVICES: Final = (10, 100)
SEEDS: Final = (0, 1, 2)


def measured(data: Path, _folder: Path, *, quick: bool = False) -> dict[str, Any]:
    """Data -> `reference`, `exact`, and `DEVICES/KEPT/UNIT/EPSILON` -> accuracies in percent, the mean over seeds."""
    worlds = {"digits, 64": digits(64)} | ({} if quick else {"cifar10, 64": cifar10(data, 64)})
    return {name: _world(one, SEEDS[:1] if quick else SEEDS) for name, one in worlds.items()}


def _world(one: Frozen, seeds: tuple[int, ...]) -> dict[str, Any]:
    reference, exact = one.reference.sums(), one.devices.sums()
    found: dict[str, Any] = {
        "reference": one.test.right(solve(reference, ridge=usual_ridge(reference))),
        "exact": one.test.right(solve(exact, ridge=usual_ridge(exact))),
    }
    units: tuple[Unit, ...] = ("sample", "message")
    for devices in DEVICES:
        for kept in KEPT:
            for unit in units:
                for epsilon in EPSILONS:
                    mechanism = Mechanism(
                        unit=unit,
                        norm=math.sqrt(kept),
                        multiplier=multiplier_for(epsilon, DELTA),
                        most=len(one.devices.labels) / devices,
                    )
                    told = [_once(one, mechanism, kept, devices, seed) for seed in seeds]
                    found[f"{devices}/{kept}/{unit}/{epsilon:g}"] = {
                        name: round(float(np.mean([each[name] for each in told])), 2) for name in told[0]
                    }
    return found


def _once(one: Frozen, mechanism: Mechanism, kept: int, devices: int, seed: int) -> dict[str, float]:
    coordinates, rng = Coordinates.of(one.reference.sums(), kept), np.random.default_rng(seed)
    total: Statistics | None = None
    for part in one.dealt(devices=devices, skew=0.5, seed=seed):
        clipped = Part(coordinates.clipped(part.features, mechanism.norm), part.labels)
        message = mechanism.noisy(coordinates.project(clipped.sums()), rng)
        total = message if total is None else total + message
    assert total is not None
    reference = coordinates.project(one.reference.sums())
    both = possible(total) + reference.scaled(max(1.0, noise_ridge(total) / reference.weight))
    return {
        "alone": one.test.right(_lifted(head_of(total), coordinates)),
        "prior": one.test.right(_lifted(solve(both, ridge=usual_ridge(both)), coordinates)),
    }


def _lifted(head: Head, coordinates: Coordinates) -> Head:
    weight = coordinates.to @ head.weight
    return Head(weight.astype(np.float32), (head.bias - coordinates.mean @ weight).astype(np.float32))


def figures(_part: dict[str, Any]) -> dict[str, float]:
    """None: the project is held to no accuracy under noise."""
    return {}
