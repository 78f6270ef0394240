"""Our sums: one message a device, one head back, and how far it is from the head of all samples in one place.

Messages are those that devices send (`learn.statistics`), read as the hub reads them. The ridge is a share of the mean square of a feature;
the share is chosen on validation samples, as the settings of the others are. A hub can do that without a byte: the sums are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError
from edgestill.learn.statistics import Statistics, solve, usual_ridge
from learning.federated import head_bytes, right

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from learning.fleets import Fleet, Part

BACKBONE: Final = Digest.of(b"the backbone of the benchmark")
SHARES: Final = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """A way to write sums as a message.

    Attributes:
        to_bytes: of a device.
        from_bytes: at the hub.
        head: element type of the head that comes back, which is also that of the others who are compared with it.
    """

    to_bytes: Callable[[Statistics], bytes]
    from_bytes: Callable[[bytes], Statistics]
    head: str


ENCODINGS: Final = {
    dtype: Encoding(
        to_bytes=partial(Statistics.to_bytes, dtype=dtype), from_bytes=Statistics.from_bytes, head=dtype
    )
    for dtype in ("float64", "float32", "float16")
}
"""Name in results and plots -> encoding; whatever else a message may be is a row of its own."""


def sums(part: Part, classes: int) -> Statistics:
    """Of these samples."""
    empty = Statistics.empty(backbone=BACKBONE, window=0, classes=classes, features=part.features.shape[1])
    return empty.add(part.features, part.one_hot(classes))


def head(total: Statistics, share: float) -> NDArray[np.float32] | None:
    """As `[D + 1, C]`; None where the sums are too rough for so little ridge."""
    try:
        weight, bias = solve(total, ridge=usual_ridge(total, share))
    except EvidenceError:
        return None
    return np.vstack([weight, bias])


def measured(fleets: Sequence[Fleet], encoding: Encoding) -> dict[str, Any]:
    """One message a device, on the fleets of all seeds."""
    sent = [[encoding.to_bytes(sums(one, fleet.classes)) for one in fleet.devices] for fleet in fleets]
    totals = [_added(messages, encoding) for messages in sent]
    share = best_share(totals, fleets)
    together = [_accuracy(total, share, fleet) for total, fleet in zip(totals, fleets, strict=True)]
    alone = [_accuracy(sums(fleet.central, fleet.classes), share, fleet) for fleet in fleets]
    features, classes = totals[0].features, totals[0].classes
    return {
        "accuracy": together,
        "central": alone,
        "gap_points": [100 * (one - other) for one, other in zip(alone, together, strict=True)],
        "ridge_share": share,
        "up": max(len(message) for messages in sent for message in messages),
        "down": head_bytes(features, classes, encoding.head),
    }


def best_share(totals: Sequence[Statistics], fleets: Sequence[Fleet]) -> float:
    """The share of `SHARES` with the best mean accuracy on validation samples."""

    def chosen_by(share: float) -> float:
        heads = [head(total, share) for total in totals]
        return float(
            np.mean(
                [
                    0.0 if one is None else right(one, fleet.validation)
                    for one, fleet in zip(heads, fleets, strict=True)
                ]
            )
        )

    return max(SHARES, key=chosen_by)


def _accuracy(total: Statistics, share: float, fleet: Fleet) -> float:
    found = head(total, share)
    return 0.0 if found is None else right(found, fleet.test)


def _added(messages: Sequence[bytes], encoding: Encoding) -> Statistics:
    first, *others = (encoding.from_bytes(one) for one in messages)
    for one in others:
        first = first + one
    return first
