"""Scenario `images`: the reference pair of the original description; then the camera is mounted a quarter turn round.

LargeModel conv(3-64)-pool-conv(64-128)-pool-fc(4608-512)-fc(512-10) and SmallModel
conv(3-32)-pool-conv(32-64)-pool-fc(2304-32)-fc(32-10) on 24 x 24 x 3; the teacher by SGD at 0.01, batch 16,
cross-entropy, 10 epochs, on all training images, upright and turned; the student begins as a random, consistent
selection of the teacher's weights and sees a third of its images, upright. At a constant rate the last step's accuracy
jumps by some points, so that the weights of the last fifth of the steps are averaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from edgestill.core.errors import ClassCountError, DataError, within
from edgestill.demo.imagedata import load_digits, load_file, turned
from edgestill.demo.scenario import Scenario, Stream
from edgestill.infer.policy import Policy
from edgestill.lab.data.augment import ImageShift
from edgestill.lab.data.samples import Samples
from edgestill.lab.networks import ImageNet24
from edgestill.lab.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LARGE: Final = (64, 128, 512)
SMALL: Final = (32, 64, 32)
LEAST: Final = 1000
LEAST_EACH: Final = 20
"""Images of a class: the student sees a ninth of them, and every part of the route needs some."""
_FLEET: Final = 2
_MEASURED: Final = 2
_SHARES: Final = {"teach": 0.38, "heldout": 0.1, "fleet": 0.24}
_LIMITED: Final = 0.3


def images(*, seed: int = 0, data: Path | None = None) -> Scenario:
    """The scenario.

    Args:
        seed: of the split and of all training.
        data: an npz file (see `demo.imagedata.load_file`); by default 5,000 digits.

    Raises:
        DataError: fewer than 1,000 images, or one class only. ClassCountError: fewer than 20 of a class. Any error of `demo.imagedata.load_file`.
    """
    x, y = load_digits() if data is None else load_file(data)
    with within(data or "the digits"):
        _enough(y)
    whole = Samples.of(x, y)
    names = tuple(f"class {index}" for index in range(whole.classes))
    order = np.random.default_rng(seed).permutation(len(x))
    cuts = np.cumsum([round(share * len(x)) for share in _SHARES.values()])
    teaching, tuning, fleet, measured = np.split(order, cuts)
    limited = teaching[: round(_LIMITED * len(teaching))]
    teach = _both_ways(whole, teaching)
    return Scenario(
        name="images",
        model="images",
        story=f"{len(x)} images of {whole.classes} classes, 24 x 24 x 3; every camera is a device",
        change="the cameras are mounted a quarter turn round",
        unit=("image", "images"),
        teach=teach,
        limited=_part(whole, limited),
        heldout=_part(whole, tuning),
        streams=tuple(_streams(whole, fleet, measured)),
        make_teacher=lambda: _network(teach, LARGE, seed),
        make_student=lambda: _network(teach, SMALL, seed),
        teacher_recipe=_recipe(epochs=10, seed=seed),
        student_recipe=_recipe(epochs=24, seed=seed, soft_weight=0.7, tau=4.0, views=5),
        next_recipe=_recipe(epochs=12, seed=seed + 1, soft_weight=0.7, tau=4.0, views=3),
        augment=ImageShift(1),
        policy=Policy(labels=names, escalation_share=0.25, audit_share=0.05),
    )


def _enough(labels: NDArray[np.int64]) -> None:
    """A thousand images, and two classes or more, numbered without gaps, each with some images."""
    if len(labels) < LEAST:
        raise DataError(
            "too few images",
            where="labels",
            expected=f"at least {LEAST}",
            got=len(labels),
            fix="bring more, or leave --data out for the digits",
        )
    counts = np.bincount(labels)
    if len(np.unique(labels)) < 2:
        raise DataError(
            "only one class",
            where="labels",
            expected="two classes or more",
            got=f"{len(labels)} images of class {labels[0]}",
            fix="take images of another class in; one alone teaches nothing",
        )
    if counts.min() < LEAST_EACH:
        scarce = int(counts.argmin())
        raise ClassCountError(
            "too few images of a class",
            where=f"labels: class {scarce}",
            expected=f"at least {LEAST_EACH} images of each class from 0 to {len(counts) - 1}",
            got=int(counts[scarce]),
            fix="bring more of it, or leave it out and number the others from 0 without gaps",
        )


def _recipe(*, epochs: int, seed: int, soft_weight: float = 0.0, tau: float = 2.0, views: int = 1) -> Recipe:
    return Recipe(
        epochs=epochs,
        batch=16,
        optimiser="sgd",
        lr=0.01,
        schedule="constant",
        average_tail=0.2,
        soft_weight=soft_weight,
        tau=tau,
        views=views,
        seed=seed,
    )


def _network(teach: Samples, widths: tuple[int, int, int], seed: int) -> ImageNet24:
    torch.manual_seed(seed)
    network = ImageNet24(*widths, classes=teach.classes)
    network.standardise.fit_(teach.inputs)
    return network


def _both_ways(whole: Samples, chosen: NDArray[np.int64]) -> Samples:
    """Each image upright and turned: all the worlds the teacher will be asked about."""
    return _part(whole, chosen) + _turned_part(whole, chosen)


def _streams(whole: Samples, fleet: NDArray[np.int64], measured: NDArray[np.int64]) -> list[Stream]:
    """Each device its own images; no image is met twice, neither by two devices nor before and after."""
    streams = []
    for index, own in enumerate(np.array_split(fleet, _FLEET)):
        before, after, later = np.split(own, [round(0.38 * len(own)), round(0.9 * len(own))])
        streams.append(
            Stream(
                device=f"camera-{index + 1}",
                shares=True,
                before=_part(whole, before),
                after=_turned_part(whole, after),
                later=_turned_part(whole, later),
            )
        )
    for index, own in enumerate(np.array_split(measured, _MEASURED)):
        name = f"camera-{_FLEET + index + 1}"
        streams.append(
            Stream(device=name, shares=False, before=_part(whole, own), after=_turned_part(whole, own))
        )
    return streams


def _part(whole: Samples, chosen: NDArray[np.int64]) -> Samples:
    return Samples(whole.inputs[chosen], whole.labels[chosen], whole.groups[chosen], whole.classes)


def _turned_part(whole: Samples, chosen: NDArray[np.int64]) -> Samples:
    part = _part(whole, chosen)
    return Samples(turned(part.inputs.astype(np.uint8)), part.labels, part.groups, part.classes)
