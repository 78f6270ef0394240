"""How many bytes of a bundle are not its model: found by packing one, since that is what will be done."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.digest import Digest
from edgestill.core.manifest import MODEL
from edgestill.lab.data.samples import Samples
from edgestill.lab.packing.assemble import REFERENCE, Origin
from edgestill.lab.packing.calibrate import FEWEST
from edgestill.lab.packing.gate import Gate
from edgestill.lab.packing.material import labelled, shown_inputs
from edgestill.lab.packing.pack import pack
from edgestill.learn.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from edgestill.core.hardware import HardwareClass
    from edgestill.infer.policy import Policy
    from edgestill.lab.data.source import Source
    from edgestill.lab.recipe import Recipe

_SAMPLES: Final = 64
_ROOM: Final = 512
"""Figures are written with more or fewer digits, and each way to write the student down that was tried takes a line."""
_ADAPTER_ROOM: Final = 512
"""The name of an adapter, its accuracy with an interval, and its row in the card."""


def wrapping_of(
    student: nn.Module,
    teacher: nn.Module,
    *,
    train: Samples | Source,
    heldout: Samples | Source,
    policy: Policy,
    recipe: Recipe,
    hardware_class: HardwareClass,
) -> Callable[[int], int]:
    """Features of a student -> bytes of its bundle beside `model.onnx`.

    Args:
        student: any of them, untrained.
        teacher: as for `pack`.
        train: as for `pack`.
        heldout: as for `pack`; a few of these are looked at.
        policy: as for `pack`.
        recipe: for the lineage.
        hardware_class: where it will run.

    Raises:
        SettingError: there are no bundles for this kind of model. DataError: too few held-out samples.
    """
    few = _few(labelled(heldout, "validation"))
    shown = shown_inputs(train, "train")[: len(few)]
    packed = pack(
        student,
        teacher,
        train=Samples.of(shown, np.arange(len(shown)) % few.classes, classes=few.classes),
        heldout=few,
        # an adapter is no part of the bundle
        policy=replace(policy, leaves="nothing") if policy.leaves == "features" else policy,
        origin=Origin(name="student", version="1.0.0", recipe=recipe.as_json(), seed=recipe.seed),
        hardware_class=hardware_class,
        gate=Gate(allowed=1.0),
    )
    features = Statistics.from_bytes(packed.blobs[REFERENCE]).features
    fixed = packed.manifest.size - len(packed.blobs[MODEL]) - _statistics(features, few.classes) + _ROOM
    fixed += _ADAPTER_ROOM if policy.leaves == "features" else 0
    return lambda wanted: fixed + _statistics(wanted, few.classes)


def _few(heldout: Samples) -> Samples:
    keep = np.unique(
        np.linspace(0, len(heldout) - 1, min(len(heldout), max(_SAMPLES, FEWEST))).astype(np.int64)
    )
    return heldout.where(np.isin(np.arange(len(heldout)), keep))


def _statistics(features: int, classes: int) -> int:
    empty = Statistics.empty(backbone=Digest.of(b""), window=0, classes=classes, features=features)
    return len(empty.to_bytes())
