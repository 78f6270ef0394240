"""Our sums: one message a device, one head back, and how far it is from the head of all samples in one place.

Messages are those that devices send (`learn.statistics`), read as the hub reads them. How the head is made of them, by least squares with some ridge or as
a discriminant that is shrunk so far, is chosen on validation samples, as the settings of the others are. A hub can do that without a byte: the sums are there.

What jobs write into their bundles is `int8, all coordinates`: sums in coordinates that a reference defines, which every device has with its bundle. Here the
reference is what whoever makes a bundle has: the features of the shared set and of the validation samples, without labels. How many samples a reference needs is
told by a row with a smaller one, the shared set alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError
from edgestill.learn.coordinates import Coordinates
from edgestill.learn.discriminant import SHRINKS, discriminant
from edgestill.learn.statistics import Statistics, solve, usual_ridge
from learning.federated import head_bytes, right

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from learning.fleets import Fleet, Part

Solution = tuple[str, float]

BACKBONE: Final = Digest.of(b"the backbone of the benchmark")
LEAST_SQUARES: Final = "least squares"
SOLUTIONS: Final = (
    *((LEAST_SQUARES, share) for share in (1e-4, 1e-3, 1e-2, 1e-1)),
    *(("discriminant", shrink) for shrink in SHRINKS),
)
"""Name, and its ridge as a share of the mean square of a feature, or how far it is shrunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """A way to write sums as a message.

    Attributes:
        to_bytes: of a device.
        from_bytes: at the hub.
        head: element type of the head that comes back, which is also that of the others who are compared with it.
        reference: features `[M, D]` in whose coordinates the sums of a fleet travel; None for the features' own sums.
    """

    to_bytes: Callable[[Statistics], bytes]
    from_bytes: Callable[[bytes], Statistics]
    head: str
    reference: Callable[[Fleet], NDArray[np.float32]] | None = None


def _shared(fleet: Fleet) -> NDArray[np.float32]:
    return fleet.proxy.features


def _makers(fleet: Fleet) -> NDArray[np.float32]:
    """What whoever makes a bundle has."""
    return np.concatenate([fleet.proxy.features, fleet.validation.features])


SHIPPED: Final = "int8, all coordinates"
SMALL_REFERENCE: Final = "int8, coordinates of the shared set alone"
_REFERENCES: Final = {SHIPPED: _makers, SMALL_REFERENCE: _shared}
ENCODINGS: Final = {
    dtype: Encoding(
        to_bytes=partial(Statistics.to_bytes, dtype=dtype), from_bytes=Statistics.from_bytes, head=dtype
    )
    for dtype in ("float64", "float32", "float16")
} | {
    title: Encoding(
        to_bytes=partial(Statistics.to_bytes, dtype="int8"),
        from_bytes=Statistics.from_bytes,
        head="float32",
        reference=reference,
    )
    for title, reference in _REFERENCES.items()
}
"""Name in results and plots -> encoding; whatever else a message may be is a row of its own."""


def sums(part: Part, classes: int) -> Statistics:
    """Of these samples."""
    empty = Statistics.empty(backbone=BACKBONE, window=0, classes=classes, features=part.features.shape[1])
    return empty.add(part.features, part.one_hot(classes))


def head(total: Statistics, solution: Solution) -> NDArray[np.float32] | None:
    """As `[D + 1, C]`; None where the sums are too rough for that."""
    name, much = solution
    try:
        if name == "discriminant":
            weight, bias = discriminant(total, shrink=much)
        else:
            weight, bias = solve(total, ridge=usual_ridge(total, much))
    except EvidenceError:
        return None
    return np.vstack([weight, bias])


def measured(fleets: Sequence[Fleet], encoding: Encoding) -> dict[str, Any]:
    """One message a device, on the fleets of all seeds."""
    ways = [coordinates(encoding.reference(fleet)) if encoding.reference else None for fleet in fleets]
    sent = [_sent(fleet, encoding, way) for fleet, way in zip(fleets, ways, strict=True)]
    totals = [_added(messages, encoding, way) for messages, way in zip(sent, ways, strict=True)]
    solution = best(totals, fleets)
    together = [_accuracy(total, solution, fleet) for total, fleet in zip(totals, fleets, strict=True)]
    alone = [_accuracy(sums(fleet.central, fleet.classes), solution, fleet) for fleet in fleets]
    features, classes = totals[0].features, totals[0].classes
    return {
        "accuracy": together,
        "central": alone,
        "gap_points": [100 * (one - other) for one, other in zip(alone, together, strict=True)],
        "solution": solution,
        "up": max(len(message) for messages in sent for message in messages),
        "down": head_bytes(features, classes, encoding.head),
    }


def best(totals: Sequence[Statistics], fleets: Sequence[Fleet]) -> Solution:
    """That of `SOLUTIONS` with the best mean accuracy on validation samples."""

    def chosen_by(solution: Solution) -> float:
        heads = [head(total, solution) for total in totals]
        return float(
            np.mean(
                [
                    0.0 if one is None else right(one, fleet.validation)
                    for one, fleet in zip(heads, fleets, strict=True)
                ]
            )
        )

    return max(SOLUTIONS, key=chosen_by)


def _accuracy(total: Statistics, solution: Solution, fleet: Fleet) -> float:
    found = head(total, solution)
    return 0.0 if found is None else right(found, fleet.test)


def coordinates(features: NDArray[np.float32]) -> Coordinates:
    """All coordinates of these `[M, D]`; targets have no part in them."""
    empty = Statistics.empty(backbone=BACKBONE, window=0, classes=2, features=features.shape[1])
    return Coordinates.of(empty.add(features, np.full((len(features), 2), 0.5)), features.shape[1])


def _sent(fleet: Fleet, encoding: Encoding, way: Coordinates | None) -> list[bytes]:
    """The message of each device."""
    each = (sums(one, fleet.classes) for one in fleet.devices)
    return [encoding.to_bytes(one if way is None else way.project(one)) for one in each]


def _added(messages: Sequence[bytes], encoding: Encoding, way: Coordinates | None) -> Statistics:
    first, *others = (encoding.from_bytes(one) for one in messages)
    for one in others:
        first = first + one
    return first if way is None else way.lift(first)
