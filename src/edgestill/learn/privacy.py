"""Noise that makes sums differentially private, and the account of what was spent.

What is hidden. Two worlds are neighbours if they differ in one unit, which is there in one of them and not in the other:

- `message`: all that a device sends about one window. Whatever it saw then, the message does not tell whether it saw anything; that there is one does (see below).
- `sample`: one sample of a window. Its weight counts: an audit stands for many inputs, and moves the sums as far.

(Neighbours that differ in *replacing* a unit are twice as far apart: their epsilon is that of half the multiplier.)

How far a unit moves the sums. A sample is features phi (a constant 1 appended) no longer than `c' = sqrt(c^2 + 1)` after clipping, a
target y that is a probability (no longer than 1), and a weight of at most w. It moves A by `w phi phi^T`, whose Frobenius norm is
at most `w c'^2`, and B by `w phi y^T`, at most `w c'`. A message of at most m samples' worth moves them by m times that; its sums
are scaled down where they are longer.

The mechanism (Dwork and Roth 2014, appendix A; for symmetric matrices Dwork, Talwar, Thakurta and Zhang 2014). A is written as its
diagonal and sqrt(2) times its upper triangle, a vector as long as A's Frobenius norm. Normal noise of deviation
`s = multiplier * sqrt(2) * norm` is added to A so written, and likewise to B: each half costs half of the budget. So the
diagonal of A gets deviation s, the rest s / sqrt(2). n is not sent: it is made of the noisy total weight.

The account. Such a message is rho-zCDP with `rho = 1 / (2 multiplier^2)` (Bun and Steinke 2016, proposition 1.6), and rho adds up
over messages, also where what is sent next depends on what was sent (their lemma 2.3). Since all of them are normal, k messages are
together as private as *one* with `mu = sqrt(2 rho)` (Dong, Roth and Su 2022, corollary 3.3), for which delta is exact (Balle and
Wang 2018, theorem 8):

    delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu).

What is not hidden: that a message was sent, when, its window and size. The noise is drawn as float64, against whose last bits there
are attacks (Mironov 2012); rounding the message to float32 blunts them, and proves nothing. Whether a window has the least number of
samples is decided on the true one. So epsilon holds of what messages say, given that they exist.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, Self, final, get_args

import numpy as np

from edgestill.core.errors import EvidenceError, SettingError
from edgestill.learn.encodings import square, triangle
from edgestill.learn.statistics import MOST_NOISE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.jsonio import Fields, JsonObject
    from edgestill.learn.statistics import Statistics

Unit = Literal["message", "sample"]

MOST_EPSILON: Final = 1e6
MOST_MESSAGES: Final = 2**53 - 1
_MOST: Final = 1e9
_STEPS: Final = 200
_FAR: Final = 30.0
"""Deviations beyond which erfc is small enough that its first term tells the logarithm."""


@final
class SystemNormals:
    """Normal numbers of the system's own randomness: who has seen any number of them knows nothing of the next (Box and Muller 1958)."""

    def normal(self, mean: float, deviation: float, size: int | tuple[int, ...]) -> NDArray[np.float64]:
        """Independent numbers of this shape, as `numpy.random.Generator.normal` gives them."""
        wanted = int(np.prod(size))
        pairs = (wanted + 1) // 2
        bits = np.frombuffer(os.urandom(16 * pairs), dtype=np.uint64) >> np.uint64(11)
        # in (0, 1]: the logarithm of 0 is none
        radius, turn = np.split((bits.astype(np.float64) + 1.0) / 2.0**53, 2)
        length, angle = np.sqrt(-2.0 * np.log(radius)), 2.0 * np.pi * turn
        both = np.concatenate([length * np.cos(angle), length * np.sin(angle)])[:wanted]
        found: NDArray[np.float64] = (mean + deviation * both).reshape(size)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """How noise is added to one message.

    Attributes:
        unit: what is hidden.
        norm: c, of a sample's features without the constant; whoever sums clips to it.
        multiplier: deviations of the noise per norm of a unit, positive.
        weight: w, the largest of one sample.
        most: m, samples' worth of weight w that a message may hold.
    """

    unit: Unit
    norm: float
    multiplier: float
    weight: float = 1.0
    most: float = 1.0

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise _out_of_range("unit", ", ".join(get_args(Unit)), self.unit)
        for name in ("norm", "multiplier", "weight", "most"):
            if not 0 < getattr(self, name) <= _MOST:
                raise _out_of_range(name, f"above 0, at most {_MOST:g}", getattr(self, name))

    @property
    def sensitivity(self) -> tuple[float, float]:
        """The farthest that one unit moves A (Frobenius norm) and B."""
        length = math.sqrt(self.norm**2 + 1)
        times = self.weight * (self.most if self.unit == "message" else 1.0)
        return times * length**2, times * length

    @property
    def rho(self) -> float:
        """What a message costs (zero-concentrated differential privacy)."""
        return 0.5 / self.multiplier**2

    def bounded(self, statistics: Statistics) -> Statistics:
        """Sums of a message no longer than the sensitivity; for samples they are bounded one by one, before they are summed."""
        if self.unit == "sample":
            return statistics
        matrix = statistics.matrix
        lengths = (float(np.linalg.norm(matrix)), float(np.linalg.norm(statistics.b)))
        over = max(found / most for found, most in zip(lengths, self.sensitivity, strict=True))
        return statistics.scaled(1 / over) if over > 1 else statistics

    def noisy(self, statistics: Statistics, rng: np.random.Generator | SystemNormals) -> Statistics:
        """The message, with noise: what may be sent, once.

        Args:
            statistics: over samples that were clipped to `norm` and weigh at most `weight`.
            rng: where the noise comes from; `SystemNormals` for privacy; a seeded generator is for tests and measurements.

        Raises:
            EvidenceError: they have noise already.
        """
        if any(statistics.noise):
            raise EvidenceError(
                "sums that have noise already",
                where="privacy",
                expected="sums of samples",
                got="noise",
                fix="add noise once, to a device's own sums",
            )
        bounded = self.bounded(statistics)
        deviations = [math.sqrt(2) * self.multiplier * one for one in self.sensitivity]
        size = statistics.features + 1
        upper = rng.normal(0.0, deviations[0] / math.sqrt(2), size * (size + 1) // 2)
        matrix = square(upper, size)
        np.fill_diagonal(matrix, matrix.diagonal() * math.sqrt(2))
        a = bounded.a + triangle(matrix)
        return replace(
            bounded,
            a=a,
            b=bounded.b + rng.normal(0.0, deviations[1], bounded.b.shape),
            n=max(1, round(float(a[-1]))),
            noise=(deviations[0], deviations[1]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What was spent, by all messages so far.

    Attributes:
        rho: the sum of what each cost.
        messages: how many there were.
    """

    rho: float = 0.0
    messages: int = 0

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads what `as_json` wrote; MessageError where it is something else."""
        return cls(rho=fields.number("rho", least=0, most=_MOST), messages=fields.integer("messages"))

    def as_json(self) -> JsonObject:
        """The account as JSON, to be kept over restarts."""
        return {"rho": self.rho, "messages": self.messages}

    def after(self, mechanism: Mechanism) -> Self:
        """The account with one message more."""
        return replace(self, rho=self.rho + mechanism.rho, messages=min(self.messages + 1, MOST_MESSAGES))

    def epsilon(self, delta: float) -> float:
        """The smallest epsilon for which all messages together are (epsilon, delta)-differentially private; 0 for none.

        Raises:
            SettingError: a delta that is not between 0 and 1.
        """
        if not 0 < delta < 1:
            raise _out_of_range("delta", "between 0 and 1", delta)
        mu = math.sqrt(2 * self.rho)
        if mu == 0 or delta_of(mu, 0.0) <= delta:
            return 0.0
        # Bun and Steinke 2016, proposition 1.3: surely enough
        low, high = 0.0, self.rho + 2 * math.sqrt(self.rho * math.log(1 / delta))
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if delta_of(mu, middle) <= delta else (middle, high)
        return high


def delta_of(mu: float, epsilon: float) -> float:
    """The smallest delta of normal noise of deviation 1 / mu per norm of a unit (Balle and Wang 2018, theorem 8).

    Args:
        mu: positive.
        epsilon: not negative.
    """
    near, far = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    return max(0.0, math.exp(_log_normal(near)) - math.exp(min(epsilon + _log_normal(far), 0.0)))


def multiplier_for(epsilon: float, delta: float, *, messages: int = 1) -> float:
    """The smallest multiplier with which so many messages are together (epsilon, delta)-differentially private.

    Raises:
        SettingError: out of range.
    """
    if not 0 < epsilon <= MOST_EPSILON:
        raise _out_of_range("epsilon", f"above 0, at most {MOST_EPSILON:g}", epsilon)
    if not 0 < delta < 1:
        raise _out_of_range("delta", "between 0 and 1", delta)
    if not 1 <= messages <= MOST_MESSAGES:
        raise _out_of_range("messages", "at least 1", messages)
    low, high = 0.0, 2 * math.sqrt(2 * epsilon) + 1.0
    while delta_of(high, epsilon) <= delta:
        high *= 2
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle, epsilon) <= delta else (low, middle)
    return math.sqrt(messages) / low


def possible(statistics: Statistics, *, least: float = 0.0) -> Statistics:
    """Noisy sums, made such as samples could have: A's negative eigenvalues become 0, the nearest such matrix (Higham 1988).

    With `least` below 0 only those that are lower still, and they become that.

    Whatever is computed from noisy sums is as private as they are. Sum first, then call this: what is cut off each message would
    not cancel out in the sum.
    """
    values, vectors = np.linalg.eigh(statistics.matrix)
    if values.min() >= least:
        return statistics
    return replace(statistics, a=triangle((vectors * np.maximum(values, least)) @ vectors.T))


def noise_ridge(statistics: Statistics) -> float:
    """A ridge as large as the noise in A: about its largest eigenvalue, `deviation * sqrt(2 (D + 1))`; 0 without noise.

    (A symmetric matrix of that noise; Wigner's semicircle, Anderson, Guionnet and Zeitouni 2010, theorem 2.1.22.)
    """
    return statistics.noise[0] * math.sqrt(2 * (statistics.features + 1))


def noise_reach(statistics: Statistics) -> float:
    """By how much noise lowers an eigenvalue of A at most: `noise_ridge` bounds the mean, seven deviations more what any message has.

    (Concentration: the largest eigenvalue changes by at most the noise's own length; Boucheron, Lugosi and Massart 2013, theorem 5.6.)
    """
    return noise_ridge(statistics) + MOST_NOISE * statistics.noise[0]


def _log_normal(value: float) -> float:
    """Logarithm of the normal distribution function."""
    if value > -_FAR:
        return math.log(0.5 * math.erfc(-value / math.sqrt(2)))
    return -0.5 * value**2 - math.log(-value) - 0.5 * math.log(2 * math.pi) + math.log1p(-1 / value**2)


def _out_of_range(name: str, expected: str, got: object) -> SettingError:
    return SettingError(
        "a value of the noise is out of range",
        where=f"privacy: {name}",
        expected=expected,
        got=got,
        fix="correct it",
    )
