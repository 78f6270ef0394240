"""Sums from which the best linear head follows, whoever summed them, in whatever order.

On a frozen backbone with features phi `[D]`, to which a constant 1 is appended for the bias, a device keeps

    A = sum w phi phi^T   `[D+1, D+1]`,     B = sum w phi y^T   `[D+1, C]`,     n = number of samples.

- Sums add: over samples, windows and devices. So `solve` on a sum of messages gives the ridge solution that all
  samples in one place would give (up to rounding), however skewed the devices are and in whatever order they come.
- Statistics belong to a backbone, the digest of the weights up to `features`; those of another are refused.
- A window is a number that grows with time. Forgetting drops whole windows, so order never matters.
- Only the upper triangle of A is kept. Inside everything is float64; a message may be rounded to less.
- What comes from outside is bounded, finite, and must be what samples could have produced: a diagonal that is not
  negative, and no product larger than Cauchy and Schwarz allow.

Targets `y` are what the device learns from: the teacher's probabilities or one-hot labels, never fused answers, which
would train on themselves. Weights correct a biased choice of samples: an audit stands for 1 / (its chance) inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple, Self, cast, get_args

import numpy as np

from edgestill.core.errors import EvidenceError, MessageError
from edgestill.learn import framing
from edgestill.learn.encodings import (
    ROUNDING,
    Dtype,
    Pair,
    decode,
    diagonal,
    encode,
    places,
    square,
    triangle,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.digest import Digest
    from edgestill.core.jsonio import Fields, JsonObject

MAX_BYTES: Final = 4_000_000
MAX_FEATURES: Final = 2_048
MAX_CLASSES: Final = 65_536
MAX_WINDOW: Final = 2**53 - 1

_MAGIC: Final = b"ESTSTAT1"
_WHERE: Final = "statistics"
_SCALE_LIMIT: Final = 1e300
MOST_NOISE: Final = 7.0
"""Deviations by which noise is believed to move an element at most: among 10^5 elements one is further off once in 4 million messages."""


class Head(NamedTuple):
    """A linear layer: scores are `features @ weight + bias`.

    Attributes:
        weight: float32 `[D, C]`.
        bias: float32 `[C]`.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """Sums over samples; a value, never changed.

    Attributes:
        backbone: digest of the weights up to `features`.
        window: when; of a sum of several, the newest.
        classes: C.
        features: D, without the constant.
        n: samples summed, whatever their weights.
        a: float64 `[(D+1)(D+2)/2]`, the upper triangle of A by rows.
        b: float64 `[D+1, C]`.
        noise: standard deviations of the noise that was added to the diagonal of A and to B (`learn.privacy`); 0 for none.
    """

    backbone: Digest
    window: int
    classes: int
    features: int
    n: int
    a: NDArray[np.float64]
    b: NDArray[np.float64]
    noise: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def empty(cls, *, backbone: Digest, window: int, classes: int, features: int) -> Self:
        """Sums over nothing.

        Raises:
            EvidenceError: a count or the window out of range.
        """
        _check_counts(classes=classes, features=features, window=window)
        size = features + 1
        return cls(
            backbone=backbone,
            window=window,
            classes=classes,
            features=features,
            n=0,
            a=np.zeros(size * (size + 1) // 2),
            b=np.zeros((size, classes)),
        )

    def add(
        self,
        features: NDArray[np.floating],
        targets: NDArray[np.floating],
        weights: NDArray[np.floating] | None = None,
    ) -> Self:
        """These sums and N samples more.

        Args:
            features: `[N, D]`.
            targets: `[N, C]`, such as the teacher's probabilities.
            weights: `[N]`, positive; all 1 where none are given.

        Raises:
            EvidenceError: shapes that do not fit, NaN or infinity, or a weight that is not positive.
        """
        phi = np.asarray(features, dtype=np.float64)
        y = np.asarray(targets, dtype=np.float64)
        w = np.ones(len(phi)) if weights is None else np.asarray(weights, dtype=np.float64)
        _check_samples(self, phi, y, w)
        phi = np.concatenate([phi, np.ones((len(phi), 1))], axis=1)
        weighted = (phi * w[:, None]).T
        return replace(
            self,
            n=self.n + len(phi),
            a=self.a + triangle(weighted @ phi),
            b=self.b + weighted @ y,
        )

    def __add__(self, other: Statistics) -> Statistics:
        """The sum over both sets of samples; EvidenceError where they are of different kinds."""
        mine, theirs = ((one.backbone, one.features, one.classes) for one in (self, other))
        if mine != theirs:
            raise EvidenceError(
                "statistics of different kinds do not add",
                where=_WHERE,
                expected="backbone {}, {} features, {} classes".format(*mine),
                got="backbone {}, {} features, {} classes".format(*theirs),
            )
        return replace(
            self,
            window=max(self.window, other.window),
            n=self.n + other.n,
            a=self.a + other.a,
            b=self.b + other.b,
            noise=(math.hypot(self.noise[0], other.noise[0]), math.hypot(self.noise[1], other.noise[1])),
        )

    def scaled(self, factor: float) -> Self:
        """The same samples with all weights times `factor`, such as a prior that shall count for less.

        Raises:
            EvidenceError: a factor that is negative or not finite.
        """
        if not 0 <= factor < _SCALE_LIMIT:
            raise EvidenceError(
                "a weight is out of range", where=_WHERE, expected="finite, not negative", got=factor
            )
        noise = (self.noise[0] * factor, self.noise[1] * factor)
        return replace(self, a=self.a * factor, b=self.b * factor, noise=noise)

    @property
    def weight(self) -> float:
        """The sum of all weights: n where none were given."""
        return float(self.a[-1])

    @property
    def matrix(self) -> NDArray[np.float64]:
        """A, whole and symmetric: `[D+1, D+1]`."""
        return square(self.a, self.features + 1)

    def to_bytes(self, dtype: Dtype = "float32") -> bytes:
        """The message, rounded as `learn.encodings` says.

        Raises:
            EvidenceError: longer than 4 MB, too large for the element type, or codes of sums with noise, whose squares may be
                negative.
        """
        if dtype == "int8" and any(self.noise):
            raise EvidenceError(
                "sums with noise do not fit into codes",
                where=_WHERE,
                expected="float16, float32 or float64",
                got=dtype,
                fix="send floats, in fewer coordinates",
            )
        extra, arrays = encode(Pair(self.a, self.b), dtype)
        data = framing.pack(_MAGIC, self._head(dtype) | extra, arrays)
        if len(data) > MAX_BYTES:
            raise EvidenceError(
                "statistics are too large to send",
                where=_WHERE,
                expected=f"at most {MAX_BYTES} bytes",
                got=len(data),
                fix="use float16 or int8, or a narrower layer",
            )
        return data

    def _head(self, dtype: Dtype) -> JsonObject:
        head: JsonObject = {
            "backbone": str(self.backbone),
            "window": self.window,
            "classes": self.classes,
            "features": self.features,
            "n": self.n,
            "dtype": dtype,
        }
        if any(self.noise):
            head |= {"noise_a": self.noise[0], "noise_b": self.noise[1]}
        return head

    @classmethod
    def from_bytes(cls, data: bytes, *, backbone: Digest | None = None) -> Self:
        """Reads a message.

        Args:
            data: from outside.
            backbone: the one it must belong to, where the reader knows.

        Raises:
            MessageError: not a message, over a bound, or sizes that do not add up.
            EvidenceError: of another backbone, not finite, or nothing that samples could have produced.
        """
        fields, rest = framing.unpack(data, magic=_MAGIC, where=_WHERE, max_bytes=MAX_BYTES)
        dtype = _dtype(fields)
        classes = fields.integer("classes", least=1, most=MAX_CLASSES)
        features = fields.integer("features", least=1, most=MAX_FEATURES)
        pair = decode(fields, rest, dtype=dtype, features=features, classes=classes)
        statistics = cls(
            backbone=fields.digest("backbone"),
            window=fields.integer("window", most=MAX_WINDOW),
            classes=classes,
            features=features,
            n=fields.integer("n"),
            a=pair.a,
            b=pair.b,
            noise=_noise(fields),
        )
        if backbone is not None and statistics.backbone != backbone:
            raise EvidenceError(
                "statistics of another backbone", where=_WHERE, expected=backbone, got=statistics.backbone
            )
        _check_plausible(statistics, ROUNDING[dtype])
        return statistics

    def require(self, minimum: int) -> Self:
        """These statistics, if they cover enough samples to hide a single one among them.

        Raises:
            EvidenceError: fewer than `minimum` samples.
        """
        if self.n < minimum:
            raise EvidenceError("too few samples", where=_WHERE, expected=f"at least {minimum}", got=self.n)
        return self


def dtype_of(data: bytes) -> Dtype:
    """To which element type a message was rounded; MessageError where it is none."""
    return _dtype(framing.unpack(data, magic=_MAGIC, where=_WHERE, max_bytes=MAX_BYTES)[0])


def claimed_noise(data: bytes) -> tuple[float, float]:
    """The noise that a message tells of, from its beginning (`framing.MAX_HEAD_BYTES` and a few more); MessageError where it is none."""
    return _noise(framing.unpack(data, magic=_MAGIC, where=_WHERE, max_bytes=MAX_BYTES)[0])


def solve(statistics: Statistics, *, ridge: float) -> Head:
    """The head `W = (A + ridge I)^-1 B`, bias included under the ridge.

    It minimises `sum w |y - W^T phi|^2 + ridge |W|^2` (Hoerl and Kennard 1970).

    Raises:
        EvidenceError: ridge is not positive, or the sums are no sums of samples (A + ridge I is not positive
            definite): rounding can do that where ridge is small.
    """
    inverse = regularised_inverse_factor(statistics, ridge)
    solution = inverse.T @ (inverse @ statistics.b)
    if not np.isfinite(solution).all():
        raise EvidenceError(
            "no finite solution",
            where=_WHERE,
            fix="use a larger ridge",
            expected="finite weights",
            got="NaN or infinity",
        )
    return Head(solution[:-1].astype(np.float32), solution[-1].astype(np.float32))


def usual_ridge(statistics: Statistics, share: float = 1e-3) -> float:
    """A share of the mean square of a feature, times the weight: the same pull whatever the number of samples."""
    return max(share * float(statistics.matrix.diagonal().mean()), 1e-9)


def regularised_inverse_factor(statistics: Statistics, ridge: float) -> NDArray[np.float64]:
    """`L^-1 [D+1, D+1]` of the Cholesky factorisation `A + ridge I = L L^T`.

    Raises:
        EvidenceError: as `solve`.
    """
    if not 0 < ridge < _SCALE_LIMIT:
        raise EvidenceError(
            "ridge is out of range",
            where=_WHERE,
            expected="positive, finite",
            got=ridge,
            fix="choose a small positive number, relative to the diagonal of A",
        )
    size = statistics.features + 1
    try:
        factor = np.linalg.cholesky(statistics.matrix + ridge * np.eye(size))
        return np.linalg.solve(factor, np.eye(size))
    except np.linalg.LinAlgError as error:
        raise EvidenceError(
            "not the sums of any samples",
            where=_WHERE,
            expected="a positive definite A + ridge I",
            got="one that is not",
            fix="use a larger ridge, or send float64",
        ) from error


def clipped(features: NDArray[np.floating], norm: float) -> NDArray[np.float64]:
    """Features `[N, D]`, each row shortened to the Euclidean length `norm` where it is longer.

    Bounds what one sample can do to the sums.

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
    phi = np.asarray(features, dtype=np.float64)
    lengths = np.linalg.norm(phi, axis=1, keepdims=True)
    factors: NDArray[np.float64] = np.minimum(1.0, norm / np.maximum(lengths, np.finfo(np.float64).tiny))
    return phi * factors


def _dtype(fields: Fields) -> Dtype:
    dtype = fields.text("dtype", at_most=10)
    if dtype not in get_args(Dtype):
        raise MessageError(
            "unknown element type", where=_WHERE, expected=", ".join(get_args(Dtype)), got=dtype
        )
    return cast("Dtype", dtype)


def _noise(fields: Fields) -> tuple[float, float]:
    a, b = (
        fields.number(name, least=0, most=_SCALE_LIMIT) if fields.has(name) else 0.0
        for name in ("noise_a", "noise_b")
    )
    return a, b


def _check_counts(*, classes: int, features: int, window: int) -> None:
    for name, value, least, most in (
        ("classes", classes, 1, MAX_CLASSES),
        ("features", features, 1, MAX_FEATURES),
        ("window", window, 0, MAX_WINDOW),
    ):
        if not least <= value <= most:
            raise EvidenceError(
                f"{name} out of range", where=_WHERE, expected=f"{least} to {most}", got=value
            )


def _check_samples(
    statistics: Statistics, phi: NDArray[np.float64], y: NDArray[np.float64], w: NDArray[np.float64]
) -> None:
    n = len(phi)
    wanted = ((n, statistics.features), (n, statistics.classes), (n,))
    shapes = (phi.shape, y.shape, w.shape)
    if shapes != wanted:
        raise EvidenceError(
            "samples of another shape",
            where=_WHERE,
            expected="features {}, targets {}, weights {}".format(*wanted),
            got="{}, {}, {}".format(*shapes),
            fix="give one row of features and of targets, and one weight, a sample",
        )
    if not (np.isfinite(phi).all() and np.isfinite(y).all() and np.isfinite(w).all()):
        raise EvidenceError(
            "samples hold NaN or infinity",
            where=_WHERE,
            expected="finite numbers",
            got="NaN or infinity",
            fix="drop these samples",
        )
    if n and w.min() <= 0:
        raise EvidenceError(
            "a weight is not positive",
            where=_WHERE,
            expected="positive weights",
            got=w.min(),
            fix="leave out samples that shall not count",
        )


def _check_plausible(statistics: Statistics, rounding: float) -> None:
    if not (np.isfinite(statistics.a).all() and np.isfinite(statistics.b).all()):
        raise EvidenceError(
            "statistics hold NaN or infinity", where=_WHERE, expected="finite sums", got="NaN or infinity"
        )
    spread = MOST_NOISE * statistics.noise[0]
    squares = diagonal(statistics.a, statistics.features + 1) + spread
    if squares.min() < 0 or (statistics.n == 0 and (statistics.a.any() or statistics.b.any())):
        raise EvidenceError(
            "not the sums of any samples",
            where=_WHERE,
            expected="squares that are not negative, 0 for n = 0",
            got="others",
        )
    roots = np.sqrt(squares)
    rows, columns = places(statistics.features + 1)
    slack = rounding * (float(np.abs(statistics.a).max()) or 1.0) + spread
    if (np.abs(statistics.a) > roots[rows] * roots[columns] + slack).any():
        raise EvidenceError(
            "not the sums of any samples",
            where=_WHERE,
            expected="|a_ij| <= sqrt(a_ii a_jj) (Cauchy-Schwarz)",
            got="larger ones",
        )
