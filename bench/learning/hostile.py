"""What one hostile device of ten does to the shared head: to the plain sum, behind the screens, and to the robust sum.

Ten devices share the labels by a Dirichlet distribution of 0.5 and of 0.1; the one in the middle is hostile. Told is the accuracy, on samples
that nobody has, of the head of

- `plain`: all messages, summed;
- `screened`: those that the hub's screens let through;
- `prior`: these and the bundle's own statistics, with as much weight as the devices together, or as they have;
- `robust`: the weighed sum, with the same prior;
- `discriminant`: another head of the robust sum, shrunk by 0.1;
- `within`: the robust head held within a radius of the bundle's own head, `RADIUS` root mean square over the reference;
- `shipped`: as `robust`, of messages as jobs ship them, in `int8` and in all coordinates of the reference. All others are of float32.

`none` is the cost without an attack. `largest` is the influence that the robust sum tells of, `settled` whether its rounds ended.
Whether the screens refused the message is told as `refused`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.core.errors import EvidenceError
from edgestill.learn import robust, screens
from edgestill.learn.coordinates import Coordinates
from edgestill.learn.discriminant import discriminant
from edgestill.learn.encodings import triangle
from edgestill.learn.statistics import Statistics, solve, usual_ridge
from learning.frozen import BACKBONE, CLASSES, Frozen, Part, cifar10, digits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

DEVICES: Final = 10
SKEWS: Final = (0.5, 0.1)
SEEDS: Final = tuple(range(10))
RADIUS: Final = 0.1
SHRINK: Final = 0.1


def measured(data: Path, _folder: Path, *, quick: bool = False) -> dict[str, Any]:
    """Data -> skew -> attack -> accuracies in percent, mean and worst over seeds."""
    worlds: dict[str, Callable[[], Frozen]] = {
        "digits, 64": lambda: digits(64),
        "digits, 256": lambda: digits(256),
        "cifar10, 64": lambda: cifar10(data, 64),
    }
    seeds = SEEDS[:2] if quick else SEEDS
    return {
        name: {
            str(skew): {attack: _over(made, skew, attack, seeds) for attack in ("none", *ATTACKS)}
            for skew in SKEWS
        }
        for name in (["digits, 64"] if quick else worlds)
        for made in (worlds[name](),)
    }


def _over(one: Frozen, skew: float, attack: str, seeds: Sequence[int]) -> dict[str, Any]:
    told = [_once(one, skew, attack, seed) for seed in seeds]
    return {
        name: {
            "mean": round(float(np.mean([each[name] for each in told])), 3),
            "least": round(float(np.min([each[name] for each in told])), 3),
            "most": round(float(np.max([each[name] for each in told])), 3),
        }
        for name in told[0]
    }


def _once(one: Frozen, skew: float, attack: str, seed: int) -> dict[str, float]:
    parts = [part for part in one.dealt(devices=DEVICES, skew=skew, seed=seed) if len(part.labels)]
    messages = [part.sums() for part in parts]
    hostile = len(parts) // 2
    if attack != "none":
        messages[hostile] = ATTACKS[attack](parts[hostile], one)
    reference = one.reference.sums()
    passed = _passed([message.to_bytes("float32") for message in messages])
    screened = _sum(list(passed.values()))
    agreed = robust.agree(passed, reference)
    weighed = robust.with_prior(agreed.total, reference)
    way = Coordinates.of(reference, reference.features)
    coded = _passed([way.project(message).to_bytes("int8") for message in messages])
    shipped = way.lift(robust.agree(coded, way.project(reference)).total)
    return {
        "plain": _right(one, _sum(messages)),
        "screened": _right(one, screened),
        "prior": _right(one, robust.with_prior(screened, reference)),
        "robust": _right(one, weighed),
        "shipped": _right(one, robust.with_prior(shipped, reference)),
        "discriminant": one.test.right(discriminant(weighed, shrink=SHRINK)),
        "within": one.test.right(robust.within(weighed, reference, RADIUS)),
        "reference": _right(one, reference),
        "refused": float(len(messages) - len(passed)),
        "refused_shipped": float(len(messages) - len(coded)),
        "largest": agreed.largest,
        "settled": float(agreed.settled),
    }


def _passed(bodies: Sequence[bytes]) -> dict[str, Statistics]:
    """Device -> its sums, of those that the hub's screens let through."""
    passed: dict[str, Statistics] = {}
    for place, body in enumerate(bodies):
        try:
            passed[f"d{place}"] = screens.read(body)
        except EvidenceError:
            continue
    return passed


def _sum(messages: Sequence[Statistics]) -> Statistics:
    total = messages[0]
    for one in messages[1:]:
        total = total + one
    return total


def _right(one: Frozen, total: Statistics) -> float:
    try:
        return one.test.right(solve(total, ridge=usual_ridge(total)))
    except EvidenceError:
        return 0.0


def _sums(features: NDArray[np.float64], labels: NDArray[np.int64]) -> Statistics:
    empty = Statistics.empty(backbone=BACKBONE, window=0, classes=CLASSES, features=features.shape[1])
    return empty.add(features, np.eye(CLASSES)[labels])


def _turned(part: Part) -> Statistics:
    return _sums(part.features, (part.labels + 1) % CLASSES)


def _point(part: Part, one: Frozen) -> Statistics:
    """The middle of one class, again and again, under another name."""
    middle = one.reference.features[one.reference.labels == 3].mean(axis=0)  # any class
    count = max(len(part.labels), 30)
    return _sums(np.tile(middle, (count, 1)), np.full(count, 5))


def _shrunken(part: Part) -> Statistics:
    """Small squares behind honest sums of features and targets."""
    message = _turned(part)
    matrix = message.matrix
    matrix[:-1, :-1] *= 0.05
    return replace(message, a=triangle(matrix))


def _inverted(part: Part) -> Statistics:
    """As `_shrunken`, but with correlations no screen of single elements can fault, and a large weight."""
    message = _turned(part)
    matrix = message.matrix
    matrix[:-1, :-1] = np.diag(matrix.diagonal()[:-1])
    return replace(message, a=triangle(matrix)).scaled(10)


ATTACKS: Final[dict[str, Callable[[Part, Frozen], Statistics]]] = {
    "labels moved on": lambda part, _: _turned(part),
    "labels moved on, 10 times": lambda part, _: _turned(part).scaled(10),
    "labels moved on, 1000 times": lambda part, _: _turned(part).scaled(1000),
    "one class for all, 10 times": lambda part, _: _sums(part.features, 0 * part.labels).scaled(10),
    "features 30 times as long": lambda part, _: _sums(30 * part.features, (part.labels + 1) % CLASSES),
    "one input under a wrong name": _point,
    "one input under a wrong name, 10 times": lambda part, one: _point(part, one).scaled(10),
    "uncorrelated features": lambda part, _: _inverted(part),
    "A a hundredth": lambda part, _: replace(_turned(part), a=_turned(part).a * 0.01),
    "A ten thousand times": lambda part, _: replace(part.sums(), a=part.sums().a * 1e4),
    "squares a twentieth": lambda part, _: _shrunken(part),
    "B a hundred times": lambda part, _: replace(_turned(part), b=_turned(part).b * 100),
}


def figures(part: dict[str, Any]) -> dict[str, float]:
    """What one liar of ten takes from the robust head, against the robust head without a liar: the worst of data, skews, attacks and encodings, in the mean over deals."""
    return {
        "hostile_shift_points": round(
            max(
                found["none"][kind]["mean"] - one[kind]["mean"]
                for skews in part.values()
                for found in skews.values()
                for one in found.values()
                for kind in ("robust", "shipped")
            ),
            2,
        )
    }
