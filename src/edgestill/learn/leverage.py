"""How far features lie from what was seen: "not my domain", without labels.

The leverage of features phi (a constant 1 appended) is `phi^T (A + ridge I)^-1 phi`, with A of the reference samples
(`learn.statistics`): the diagonal of the hat matrix of ridge regression (Hoaglin and Welsch 1978). Over the reference
samples it lies in [0, 1) and its mean is `typical`; it grows with the square of the distance from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from edgestill.core.errors import EvidenceError
from edgestill.learn.statistics import Statistics, regularised_inverse_factor

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Leverage:
    """A reference to measure against.

    Attributes:
        factor: `L^-1 [D+1, D+1]` with `L L^T = A + ridge I`.
        typical: mean leverage of the reference samples.
    """

    factor: NDArray[np.float64]
    typical: float

    @classmethod
    def fit(cls, statistics: Statistics, ridge: float) -> Self:
        """The reference that these statistics describe.

        Raises:
            EvidenceError: no samples, or as `learn.statistics.solve`.
        """
        statistics.require(1)
        factor = regularised_inverse_factor(statistics, ridge)
        # trace((A + ridge I)^-1 A) is the sum of the reference samples' leverages
        total = len(factor) - ridge * float((factor**2).sum())
        return cls(factor, max(total, 0.0) / statistics.n)

    def of(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Leverage `[N]`, not negative, of features `[N, D]`.

        Raises:
            EvidenceError: features of another width.
        """
        wanted = len(self.factor) - 1
        if features.ndim != 2 or features.shape[1] != wanted:  # [N, D]
            raise EvidenceError(
                "features of another width",
                where="leverage",
                expected=f"[N, {wanted}]",
                got=list(features.shape),
            )
        projected = features.astype(np.float64) @ self.factor[:, :-1].T + self.factor[:, -1]
        result: NDArray[np.float64] = np.einsum("ij,ij->i", projected, projected)
        return result
