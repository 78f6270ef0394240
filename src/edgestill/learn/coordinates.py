"""Coordinates in which the features of a backbone are nearly uncorrelated: sums survive coarse codes there, and fewer will do.

Every device with a bundle has the bundle's reference statistics. With their mean mu and covariance S, features become

    z = (phi - mu) T,   a constant 1 appended as ever.

- All of them (`kept` = D): `T = S^(-1/2)`, the symmetric root (ZCA; Kessy, Lewin and Strimmer 2018). It is a continuous function of S:
  two machines whose rounding differs have the same coordinates up to rounding, with no sign or order to agree on. It can be undone.
- Fewer: the leading eigenvectors of S, each scaled to a deviation of 1, its largest element positive (principal components; Jolliffe
  2002). What the sums say about these directions is exact; of the others they say nothing. Where two eigenvalues are so close that
  machines could turn their vectors differently, they are refused.
- Variances below `FLOOR` of the largest are taken for that: what the reference hardly has must not be blown up.

Sums go there and back without the samples: `A' = P^T A P`, `B' = P^T B` with `P [D+1, d+1]`, which holds mu and T. They add as all
sums do, for they belong to a backbone of their own: its digest names the backbone, the reference and `kept`. So a hub needs to know
nothing of this, and never adds what does not add.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError, SettingError
from edgestill.core.jsonio import canonical
from edgestill.learn.encodings import triangle

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject
    from edgestill.learn.statistics import Statistics

FLOOR: Final = 1e-4
_CLOSEST: Final = 1e-10
"""Of two eigenvalues, as a share of the largest: rounding of 1e-15 turns their vectors by 1e-5 at most."""
_WHERE: Final = "coordinates"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coordinates:
    """The coordinates of one backbone, reference and `kept`.

    Attributes:
        original: digest of the backbone whose features come in.
        backbone: digest that sums in these coordinates belong to.
        mean: float64 `[D]`, mu.
        to: float64 `[D, d]`, T.
        back: float64 `[d, D]`, the way back; T's inverse where all are kept.
    """

    original: Digest
    backbone: Digest
    mean: NDArray[np.float64]
    to: NDArray[np.float64]
    back: NDArray[np.float64]

    @classmethod
    def of(cls, reference: Statistics, kept: int) -> Self:
        """The coordinates that these statistics define.

        Args:
            reference: a bundle's own.
            kept: d, at least 1; D where it is more.

        Raises:
            SettingError: keeps nothing.
            EvidenceError: no samples, features that never change, or eigenvectors that are not determined.
        """
        if kept < 1:
            raise SettingError(
                "keeps no coordinate",
                where=_WHERE,
                expected="at least 1",
                got=kept,
                fix="keep some, or send the features' own sums",
            )
        reference.require(1)
        matrix, features = reference.matrix, reference.features
        kept = min(kept, features)
        mean = matrix[:-1, -1] / reference.weight
        covariance = matrix[:-1, :-1] / reference.weight - np.outer(mean, mean)
        to, back = _root(covariance) if kept == features else _leading(covariance, kept)
        named: JsonObject = {
            "backbone": str(reference.backbone),
            "reference": str(Digest.of(reference.to_bytes("float64"))),
            "kept": kept,
        }
        return cls(
            original=reference.backbone,
            backbone=Digest.of(b"coordinates" + canonical(named)),
            mean=mean,
            to=to,
            back=back,
        )

    @property
    def kept(self) -> int:
        """How many there are, d."""
        return len(self.back)

    def project(self, statistics: Statistics) -> Statistics:
        """Sums of the features as sums of these coordinates.

        Raises:
            EvidenceError: of another backbone or width, or with noise: noise is added after this.
        """
        self._check(statistics, self.original, len(self.mean))
        change = np.zeros((len(self.mean) + 1, self.kept + 1))
        change[:-1, :-1] = self.to
        change[-1] = np.append(-self.mean @ self.to, 1.0)
        return _changed(statistics, change, self.backbone)

    def lift(self, statistics: Statistics) -> Statistics:
        """Sums in these coordinates as sums of features: their own where all were kept, else those of their projections.

        Raises:
            EvidenceError: of other coordinates. Noise becomes part of the sums, and its size is told no more.
        """
        self._check(replace(statistics, noise=(0.0, 0.0)), self.backbone, self.kept)
        change = np.zeros((self.kept + 1, len(self.mean) + 1))
        change[:-1, :-1] = self.back
        change[-1] = np.append(self.mean, 1.0)
        return _changed(statistics, change, self.original)

    def clipped(self, features: NDArray[np.floating], norm: float) -> NDArray[np.float64]:
        """Features `[N, D]`, moved towards the mean so far that the coordinates are no longer than `norm`.

        Raises:
            EvidenceError: a norm that is not positive.
        """
        if not norm > 0:
            raise EvidenceError(
                "a clipping norm is out of range",
                where=_WHERE,
                expected="positive",
                got=norm,
                fix="choose a positive number",
            )
        away = np.asarray(features, dtype=np.float64) - self.mean
        lengths = np.linalg.norm(away @ self.to, axis=1, keepdims=True)
        shares: NDArray[np.float64] = np.minimum(1.0, norm / np.maximum(lengths, np.finfo(np.float64).tiny))
        return self.mean + away * shares

    def _check(self, statistics: Statistics, backbone: Digest, features: int) -> None:
        found = (statistics.backbone, statistics.features, any(statistics.noise))
        if found != (backbone, features, False):
            raise EvidenceError(
                "statistics that these coordinates are not for",
                where=_WHERE,
                expected=f"backbone {backbone}, {features} features, no noise",
                got=f"backbone {found[0]}, {found[1]} features, {'with' if found[2] else 'no'} noise",
                fix="use the reference of the bundle that the device runs",
            )


def _root(covariance: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, vectors = np.linalg.eigh(covariance)
    roots = np.sqrt(np.maximum(values, _floor(values)))
    return (vectors / roots) @ vectors.T, (vectors * roots) @ vectors.T


def _leading(covariance: NDArray[np.float64], kept: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    floor, gaps = _floor(values), values[:kept] - values[1 : kept + 1]
    if gaps.min() < _CLOSEST * values[0]:
        raise EvidenceError(
            "directions that two machines could choose differently",
            where=_WHERE,
            expected=f"eigenvalues that differ by {_CLOSEST:g} of the largest",
            got=f"{gaps.min():.3g} between two of the first {kept + 1}",
            fix="keep fewer, or all",
        )
    values, vectors = values[:kept], vectors[:, :kept]
    signs = np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0))
    roots = np.sqrt(np.maximum(values, floor))
    return vectors * signs / roots, (vectors * signs * roots).T


def _floor(values: NDArray[np.float64]) -> float:
    largest = float(values.max())
    if not largest > np.finfo(np.float32).tiny:
        raise EvidenceError(
            "features that never change have no coordinates",
            where=_WHERE,
            expected="a reference over different samples",
            got=f"a largest variance of {largest:g}",
            fix="send the features' own sums",
        )
    return FLOOR * largest


def _changed(statistics: Statistics, change: NDArray[np.float64], backbone: Digest) -> Statistics:
    matrix = change.T @ statistics.matrix @ change
    # the weight is what it was, to the last bit
    matrix[-1, -1] = statistics.weight
    return replace(
        statistics,
        backbone=backbone,
        features=change.shape[1] - 1,
        a=triangle((matrix + matrix.T) / 2),
        b=change.T @ statistics.b,
        noise=(0.0, 0.0),
    )
