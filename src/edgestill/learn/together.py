"""One head from a fleet's sums, for the bundle whose devices sent them.

A device sends sums of its features, or of coordinates that the bundle's reference defines (`learn.coordinates`), as its policy says. Both
kinds are of one backbone: what came in coordinates is lifted, and the two are added.
"""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.errors import EvidenceError, NotFoundError
from edgestill.learn.coordinates import Coordinates
from edgestill.learn.discriminant import SHRINKS, discriminant
from edgestill.learn.privacy import noise_ridge, possible
from edgestill.learn.statistics import Head, Statistics, solve, usual_ridge

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.core.digest import Digest

LEAST_SQUARES: Final = "least squares"


def gathered(reference: Statistics, kept: int, ask: Callable[[Digest], bytes]) -> Statistics:
    """All sums of the reference's backbone, as sums of its features.

    Args:
        reference: the bundle's own statistics.
        kept: coordinates in which the bundle's devices send; 0 for none.
        ask: gives the sum of a backbone as a message; NotFoundError where there is none.

    Raises:
        NotFoundError: there are none of either kind.
        MessageError, EvidenceError: what was given is no such sum.
    """
    found = []
    if kept:
        coordinates = Coordinates.of(reference, kept)
        if (one := _asked(ask, coordinates.backbone)) is not None:
            found.append(coordinates.lift(possible(one)))
    if (one := _asked(ask, reference.backbone)) is not None:
        found.append(one)
    if not found:
        raise NotFoundError(
            "no statistics of this bundle",
            where=reference.backbone,
            expected="sums that its devices have sent",
            got="none",
            fix="wait until devices have learned from enough samples, or look at: edgestill learn status",
        )
    return found[0] if len(found) == 1 else found[0] + found[1]


def in_coordinates(reference: Statistics, kept: int) -> Statistics:
    """The reference as the bundle's devices send their sums."""
    return reference if kept == 0 else Coordinates.of(reference, kept).project(reference)


def lifted(statistics: Statistics, reference: Statistics, kept: int) -> Statistics:
    """Sums as the bundle's devices send them, as sums of features; those with noise are made possible first."""
    return statistics if kept == 0 else Coordinates.of(reference, kept).lift(possible(statistics))


def head_of(statistics: Statistics, *, ridge: float = 1e-3) -> Head:
    """The head of sums, noisy or not: the ridge is at least as large as the noise.

    Args:
        statistics: of features.
        ridge: as a share, for `usual_ridge`.

    Raises:
        EvidenceError: as `solve`.
    """
    able = possible(statistics)
    return solve(able, ridge=max(usual_ridge(able, ridge), noise_ridge(statistics)))


def heads_of(statistics: Statistics, *, ridge: float = 1e-3) -> dict[str, Head]:
    """Heads of the same sums, by how they are made; which one is best is for data to say.

    Args:
        statistics: of features.
        ridge: as for `head_of`.

    Raises:
        EvidenceError: as `solve`; a discriminant that has no solution is left out.
    """
    found, able = {LEAST_SQUARES: head_of(statistics, ridge=ridge)}, possible(statistics)
    for shrink in SHRINKS:
        with suppress(EvidenceError):
            found[f"discriminant, shrunk by {shrink:g}"] = discriminant(able, shrink=shrink)
    return found


def head_file(head: Head) -> bytes:
    """A head as an `.npz` file: `weight` float32 `[D, C]` and `bias` float32 `[C]`."""
    buffer = BytesIO()
    np.savez(buffer, weight=head.weight, bias=head.bias)
    return buffer.getvalue()


def _asked(ask: Callable[[Digest], bytes], backbone: Digest) -> Statistics | None:
    try:
        return Statistics.from_bytes(ask(backbone), backbone=backbone)
    except NotFoundError:
        return None
