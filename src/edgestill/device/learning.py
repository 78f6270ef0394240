"""What a device learns by itself, and when it dares to use it.

- It learns from the *teacher's* probabilities where the teacher was heard, and from labels an application tells;
  never from fused answers, which would train on themselves.
- What is escalated is a biased sample: the hard inputs. An audit of an input that would not have been escalated
  stands for 1 / audit_share inputs (Horvitz and Thompson 1952), bounded by `max_weight`.
- Every fourth sample is held back: it is never learned from, only looked at. A head is adopted when it agrees with
  the teacher on held-back samples where what serves now does not, more often than the other way round, by an exact
  one-sided sign test (McNemar 1947). Looks happen as their number doubles, the k-th at level 0.05 / 2^k: all looks
  together err with probability at most 0.05. After an adoption the samples held back so far are dropped.
- The bundle's own statistics are the prior. Two heads are tried, at half the level each: in one the prior counts for
  as many samples as the device has (it keeps what is rare here), in the other for a tenth of that (the world here is
  another). Where both pass, the one that is right more often is taken.
- Forgetting drops whole windows. Only the current one is sent, as a sum, and only after it has grown by a quarter.
- Drift is looked for in two streams, the log leverage of the features and the confidence; the worse verdict counts.

A learner is called from several threads; a lock makes its changes one after the other.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import numpy as np

from edgestill.core.errors import ClassCountError, EdgestillError
from edgestill.infer.calibration import fit_temperature
from edgestill.learn.drift import DriftState, PageHinkley
from edgestill.learn.leverage import Leverage
from edgestill.learn.overlay import Overlay
from edgestill.learn.statistics import Statistics, solve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.digest import Digest
    from edgestill.core.protocols import Clock
    from edgestill.infer.cascade import Escalation
    from edgestill.infer.policy import Policy

_PRIOR_SHARES: Final = (1.0, 0.1)
_SEVERITY: Final = ("none", "suspected", "confirmed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """How a device learns.

    Attributes:
        window: seconds of a window of statistics.
        windows: that are remembered.
        ridge: of the heads, as a share of the mean square of a feature.
        hold_back: one sample of so many is held back.
        held_back: samples kept to look at, the newest.
        first_look: held-back samples before the first look.
        level: probability that any head is adopted which is not better.
        max_weight: of one sample.
        least: samples before statistics are sent: few could expose one.
    """

    window: float = 86_400.0
    windows: int = 7
    ridge: float = 1e-3
    hold_back: int = 4
    held_back: int = 1024
    first_look: int = 16
    level: float = 0.05
    max_weight: float = 20.0
    least: int = 16


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """A sample that is only looked at: its features, the teacher's probabilities, and what served then named."""

    features: NDArray[np.float32]
    target: NDArray[np.float32]
    named: int


@final
class Learner:
    """Learns beside one bundle.

    Args:
        bundle: digest of the bundle's manifest.
        reference: the bundle's statistics of its calibration data.
        policy: the bundle's.
        clock: says which window it is.
        lessons: how.
    """

    def __init__(
        self,
        *,
        bundle: Digest,
        reference: Statistics,
        policy: Policy,
        clock: Clock,
        lessons: Lessons | None = None,
    ) -> None:
        self._bundle = bundle
        self._reference = reference
        self._policy = policy
        self._clock = clock
        self._lessons = lessons or Lessons()
        self._windows: dict[int, Statistics] = {}
        self._held: list[_Held] = []
        self._met = 0
        self._looks = 0
        self._next_look = self._lessons.first_look
        self._taken: tuple[int, int] = (0, 0)
        self._changed = False
        self._leverage = Leverage.fit(reference, self._ridge(reference))
        self._drift = _Drift()
        self._lock = threading.Lock()

    @property
    def drift(self) -> str:
        """`none`, `suspected` or `confirmed`."""
        return self._drift.verdict

    def mean_leverage(self) -> float:
        """Mean leverage of the features since the last call; 0 where there were none."""
        with self._lock:
            return self._drift.take_leverage()

    def observe(self, told: Escalation, *, threshold: float) -> None:
        """Looks at a batch, and learns from what the teacher said about it.

        Args:
            told: what became of the batch.
            threshold: below which an input is escalated now.

        Raises:
            EvidenceError: features of another width than the bundle's statistics.
        """
        features = told.answer.features
        if features is None:
            return
        with self._lock:
            self._drift.update(self._leverage.of(features), told.confidence)
            if told.answer.teacher is None or told.answer.student is None:
                return
            heard = np.flatnonzero(told.heard)
            named = told.answer.student.argmax(axis=1)
            weights = self._weights(told, threshold)
            self._learn(features[heard], told.answer.teacher[heard], weights[heard], named[heard])

    def teach(
        self, features: NDArray[np.float32], labels: NDArray[np.integer], named: NDArray[np.integer]
    ) -> None:
        """Learns from labels `[N]` for features `[N, D]`, where the student named the classes `[N]`.

        Raises:
            ClassCountError: a label that is no class. EvidenceError: shapes that do not fit.
        """
        classes = self._reference.classes
        if labels.shape != features.shape[:1] or (
            len(labels) and not 0 <= labels.min() <= labels.max() < classes
        ):
            raise ClassCountError(
                "labels that are no classes",
                where="labels",
                expected=f"[{len(features)}], 0 to {classes - 1}",
            )
        with self._lock:
            targets = np.eye(classes, dtype=np.float32)[labels]
            self._learn(features, targets, np.ones(len(labels)), named)

    def statistics(self) -> Statistics | None:
        """The sum of the current window, if it is large enough and has grown by a quarter since it was last taken."""
        with self._lock:
            window, current = self._current()
            before = self._taken[1] if self._taken[0] == window else 0
            if current.n < max(self._lessons.least, math.ceil(1.25 * before)) or current.n == before:
                return None
            self._taken = (window, current.n)
            return current

    def consider(self) -> Overlay | None:
        """A head that is better than what serves, as far as held-back samples can tell; None most of the time.

        Raises:
            EvidenceError: sums that have no solution.
        """
        with self._lock:
            if len(self._held) < self._next_look:
                return None
            held, own = list(self._held), self._own()
            self._looks += 1
            self._next_look *= 2
            level = self._lessons.level / 2**self._looks
        overlay = self._best(held, own, level)
        if overlay is not None:
            with self._lock:
                self._held = self._held[len(held) :]
                self._next_look, self._looks = self._lessons.first_look, 0
        return overlay

    def keep(self) -> list[bytes]:
        """The windows as files to be kept over restarts; empty where nothing has changed since the last time."""
        with self._lock:
            if not self._changed:
                return []
            self._changed = False
            return [one.to_bytes() for one in self._windows.values()]

    def recall(self, kept: list[bytes]) -> None:
        """Takes up what `keep` gave; what belongs to another backbone, or is damaged, is left."""
        for data in kept:
            try:
                one = Statistics.from_bytes(data, backbone=self._reference.backbone)
                self._windows[one.window] = one + self._empty(one.window)  # refuses another width
            except EdgestillError:
                continue

    def _learn(
        self,
        features: NDArray[np.float32],
        targets: NDArray[np.float32],
        weights: NDArray[np.float64],
        named: NDArray[np.integer],
    ) -> None:
        numbers = self._met + np.arange(len(features))
        self._met += len(features)
        aside = numbers % self._lessons.hold_back == self._lessons.hold_back - 1
        for index in np.flatnonzero(aside):
            self._held.append(_Held(features[index], targets[index], int(named[index])))
        self._held = self._held[-self._lessons.held_back :]
        if not aside.all():
            window, current = self._current()
            kept = ~aside
            self._windows[window] = current.add(features[kept], targets[kept], weights[kept])
            self._changed = True

    def _weights(self, told: Escalation, threshold: float) -> NDArray[np.float64]:
        """1 for what was escalated; for an audit the number of inputs it stands for."""
        share = max(self._policy.audit_share, 1 / self._lessons.max_weight)
        stands_for_many = told.audited & (told.confidence >= threshold)
        return np.where(stands_for_many, 1 / share, 1.0)

    def _current(self) -> tuple[int, Statistics]:
        window = max(0, int(self._clock.now() // self._lessons.window))
        for old in [one for one in self._windows if one <= window - self._lessons.windows]:
            del self._windows[old]
        return window, self._windows.get(window) or self._empty(window)

    def _empty(self, window: int) -> Statistics:
        reference = self._reference
        return Statistics.empty(
            backbone=reference.backbone,
            window=window,
            classes=reference.classes,
            features=reference.features,
        )

    def _own(self) -> Statistics:
        _, total = self._current()
        for window, one in self._windows.items():
            if window != total.window:
                total = total + one
        return total

    def _best(self, held: list[_Held], own: Statistics, level: float) -> Overlay | None:
        if own.n == 0:
            return None
        tried = [self._candidate(held, own, share) for share in _PRIOR_SHARES]
        passed = [overlay for overlay, p in tried if p <= level / len(tried)]
        return max(passed, key=lambda overlay: overlay.agreement_after, default=None)

    def _candidate(self, held: list[_Held], own: Statistics, share: float) -> tuple[Overlay, float]:
        """A head for which the prior counts `share` of the device's own samples, and the sign test's p-value."""
        prior = self._reference
        together = own + prior.scaled(min(1.0, share * own.weight / prior.weight))
        head = solve(together, ridge=self._ridge(together))
        targets = np.stack([one.target for one in held])
        scores = np.stack([one.features for one in held]) @ head.weight + head.bias
        right = targets.argmax(axis=1)
        before = np.array([one.named for one in held]) == right
        after = scores.argmax(axis=1) == right
        overlay = Overlay(
            bundle=self._bundle,
            head=head,
            temperature=fit_temperature(scores, targets),
            n=own.n,
            created=self._clock.now(),
            agreement_before=float(before.mean()),
            agreement_after=float(after.mean()),
        )
        return overlay, sign_test(int((after & ~before).sum()), int((before & ~after).sum()))

    def _ridge(self, statistics: Statistics) -> float:
        """The configured share of the mean square of a feature, times the weight: the same pull for any n."""
        mean = float(statistics.matrix.diagonal().mean())
        return max(self._lessons.ridge * mean, 1e-9)


def sign_test(wins: int, losses: int) -> float:
    """The probability of so many wins or more among wins + losses tosses of a fair coin; 1 for no toss."""
    n = wins + losses
    return math.fsum(math.comb(n, k) / 2**n for k in range(wins, n + 1))


class _Drift:
    """Two detectors, and the mean leverage between two reports."""

    def __init__(self) -> None:
        self._detector = PageHinkley()
        self._leverage: DriftState = self._detector.start()
        self._doubt: DriftState = self._detector.start()
        self._sum, self._n = 0.0, 0

    @property
    def verdict(self) -> str:
        verdicts = (self._detector.verdict(state) for state in (self._leverage, self._doubt))
        return max(verdicts, key=_SEVERITY.index)

    def update(self, leverage: NDArray[np.float64], confidence: NDArray[np.float32]) -> None:
        """One batch: leverage `[N]` and confidence `[N]`."""
        for value, sure in zip(leverage.tolist(), confidence.tolist(), strict=True):
            # leverages are skewed; their logarithms are fit for a test of means
            self._leverage = self._detector.update(self._leverage, math.log(max(value, 1e-12)))
            self._doubt = self._detector.update(self._doubt, 1.0 - sure)
        self._sum += float(leverage.sum())
        self._n += len(leverage)

    def take_leverage(self) -> float:
        mean = self._sum / self._n if self._n else 0.0
        self._sum, self._n = 0.0, 0
        return min(mean, 1e9)
