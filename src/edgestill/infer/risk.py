"""Choosing the escalation threshold with a promise.

The risk of a threshold is the probability that the system's answer to a fresh input is a loss: 1 where the teacher was
right and the answer served is wrong. Learn-then-Test (Angelopoulos, Bates, Candes, Jordan and Lei, "Learn then Test:
calibrating predictive algorithms to achieve risk control", 2021) turns the choice into tests:

- For every threshold of a grid that was fixed before the data was seen: the hypothesis "its risk exceeds epsilon".
- Its p-value is the exact binomial tail `P(Bin(n, epsilon) <= losses)`; the losses are 0 or 1 (section 2.1 there uses
  Hoeffding-Bentkus for losses in between; for 0/1 losses the tail itself is exact).
- Fixed sequence testing (their section 2.3): from the safest threshold, which escalates everything, downwards, each
  tested at delta, until one is not rejected. Every threshold before it is safe, with probability at least 1 - delta
  over the calibration data, at all of them at once. The last of them escalates least.

If the samples are too few to reject even the first, nothing is promised, and the promise says so. The samples must be
exchangeable with what comes later; windows of one recording are not independent, so thin them or pass one per unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.errors import DataError, SettingError
from edgestill.infer.decision import FLOOR
from edgestill.infer.policy import ALWAYS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject

GRID_SIZE: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """With probability at least 1 - delta, the risk at `threshold` is at most epsilon; or nothing, if not `promised`.

    Attributes:
        threshold: inputs with a confidence below it are escalated; `policy.ALWAYS` where nothing is promised.
        promised: whether the statement is made.
        epsilon: bound of the risk.
        delta: bound of the chance that the statement is wrong.
        n: samples it rests on.
        losses: at the threshold.
        escalated: share of the samples below the threshold.
        why: one sentence where nothing is promised, otherwise empty.
    """

    threshold: float
    promised: bool
    epsilon: float
    delta: float
    n: int
    losses: int
    escalated: float
    why: str = ""

    def as_json(self) -> JsonObject:
        """For the evidence in `policy.json`."""
        return {
            "promised": self.promised,
            "threshold": self.threshold,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "n": self.n,
            "losses": self.losses,
            "escalated": self.escalated,
            "why": self.why,
        }


def choose_threshold(
    confidence: NDArray[np.floating],
    loss: NDArray[np.generic],
    *,
    epsilon: float,
    delta: float,
    escalated_loss: NDArray[np.generic] | None = None,
) -> Promise:
    """The lowest threshold that fixed sequence testing reaches.

    Args:
        confidence: of the student, `[N]`, in [0, 1].
        loss: `[N]` of 0 and 1, of the student's answer: the teacher is right and the student is wrong.
        epsilon: bound of the risk, in (0, 1).
        delta: bound of the chance of a wrong promise, in (0, 1).
        escalated_loss: `[N]` of 0 and 1, of the fused answer; all 0 where None, which is right for alpha = 1 only.

    Raises:
        SettingError: epsilon or delta out of range.
        DataError: arrays of different lengths, losses other than 0 and 1, or a confidence outside [0, 1].
    """
    for name, value in (("epsilon", epsilon), ("delta", delta)):
        if not 0 < value < 1:
            raise SettingError(
                f"{name} is out of range",
                expected="more than 0, less than 1",
                got=value,
                where=name,
                fix="give a probability, such as 0.05",
            )
    sure, alone = np.asarray(confidence, dtype=np.float64), _zero_or_one(loss, "loss")
    asked = np.zeros_like(alone) if escalated_loss is None else _zero_or_one(escalated_loss, "escalated_loss")
    _check(sure, alone, asked)
    n, grid = len(sure), thresholds()
    losses = _losses(sure, alone, asked, grid)
    tails = binomial_tails(n, epsilon)[losses]
    safe = int(np.argmax(tails > delta)) if (tails > delta).any() else len(grid)
    chosen = max(safe - 1, 0)
    return Promise(
        threshold=float(grid[chosen]),
        promised=safe > 0,
        epsilon=epsilon,
        delta=delta,
        n=n,
        losses=int(losses[chosen]),
        escalated=float((sure < grid[chosen]).mean()) if n else 0.0,
        why="" if safe else _why(n, int(losses[0]), epsilon, delta),
    )


def thresholds() -> NDArray[np.float64]:
    """The grid: from `ALWAYS` down to 0, finer towards 1, where confidences crowd. It does not depend on data."""
    levels = np.linspace(-math.log(FLOOR), 0.0, GRID_SIZE - 2)
    between = np.clip(1 + FLOOR - np.exp(-levels), 0.0, 1.0)
    return np.array([ALWAYS, *between, 0.0])


def binomial_tails(n: int, p: float) -> NDArray[np.float64]:
    """`P(Bin(n, p) <= k)` for k = 0 .. n."""
    k = np.arange(1, n + 1, dtype=np.float64)
    steps = np.log((n - k + 1) / k) + math.log(p) - math.log1p(-p)
    logs = np.concatenate([[0.0], np.cumsum(steps)]) + n * math.log1p(-p)
    tails: NDArray[np.float64] = np.minimum(np.cumsum(np.exp(logs)), 1.0)
    return tails


def least_samples(epsilon: float, delta: float) -> int:
    """The fewest samples, all without a loss, that can make a promise: `(1 - epsilon)^n <= delta`."""
    return math.ceil(math.log(delta) / math.log1p(-epsilon))


def threshold_for_share(confidence: NDArray[np.floating], share: float) -> float:
    """The threshold in [0, 2] below which about `share` of these confidences lie. It promises nothing.

    Raises:
        SettingError: a share outside [0, 1].
        DataError: no confidences, or some outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise SettingError(
            "a share is out of range",
            expected="0 to 1",
            got=share,
            where="share",
            fix="give a share, such as 0.2",
        )
    sure = np.sort(np.asarray(confidence, dtype=np.float64))
    if not len(sure):
        raise DataError(
            "no confidences",
            expected="at least one",
            got=0,
            where="confidence",
            fix="give at least one sample",
        )
    _check(sure, sure, sure)
    below = round(share * len(sure))
    return ALWAYS if below == len(sure) else float(sure[below])


def _losses(
    sure: NDArray[np.float64], alone: NDArray[np.int64], asked: NDArray[np.int64], grid: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Losses at each threshold: fused ones below it, the student's own from it on."""
    order = np.argsort(sure, kind="stable")
    below = np.searchsorted(sure[order], grid, side="left")
    fused = np.concatenate([[0], np.cumsum(asked[order])])
    own = np.concatenate([[0], np.cumsum(alone[order])])
    losses: NDArray[np.int64] = fused[below] + own[-1] - own[below]
    return losses


def _zero_or_one(values: NDArray[np.generic], what: str) -> NDArray[np.int64]:
    given = np.asarray(values)
    if given.dtype.kind not in "biuf" or not np.isin(given, (0, 1)).all():
        raise DataError(
            f"{what} must be 0 or 1",
            where=what,
            expected="a 0/1 loss per sample",
            fix="give 1 for each sample that is lost, 0 for the others",
            got="other values",
        )
    return given.astype(np.int64)


def _check(sure: NDArray[np.float64], alone: NDArray[np.generic], asked: NDArray[np.generic]) -> None:
    if sure.ndim != 1 or alone.shape != sure.shape or asked.shape != sure.shape:
        raise DataError(
            "confidences and losses do not fit",
            expected="one of each per sample",
            got=f"{list(sure.shape)}, {list(alone.shape)}, {list(asked.shape)}",
            where="confidence",
            fix="give one of each a sample",
        )
    if not ((sure >= 0) & (sure <= 1)).all():
        raise DataError(
            "a confidence is out of range",
            where="confidence",
            expected="0 to 1",
            fix="give probabilities",
            got=f"{sure.min()} to {sure.max()}",
        )


def _why(n: int, losses: int, epsilon: float, delta: float) -> str:
    least = least_samples(epsilon, delta)
    if n < least:
        return f"{n} samples are too few: epsilon={epsilon:g} and delta={delta:g} need at least {least}"
    return f"even with every input escalated, {losses} losses in {n} samples do not show a risk below {epsilon:g}"
