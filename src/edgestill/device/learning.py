"""What a device learns by itself, and when it dares to use it.

- It learns from the *teacher's* probabilities where the teacher was heard, and from labels an application tells;
  never from fused answers, which would train on themselves.
- What is escalated is a biased sample: the hard inputs. An audit of an input that would not have been escalated
  stands for 1 / audit_share inputs (Horvitz and Thompson 1952), bounded by `max_weight`; the share is the one its coin was
  tossed with, also while it is raised.
- The bundle's own statistics are the prior. Two heads are tried: in one the prior counts for as many samples as the
  device has (it keeps what is rare here), in the other for a tenth of that (the world here is another).
- First asked, then learned from: every sample is put to the heads made of *earlier* samples and to what serves, and
  only then joins the sums (prequential; Dawid 1984). None is spent on tests alone. The last `gap` samples are kept out
  of the heads, because neighbours in time resemble each other; after a restart as many come before a head is asked.
- A head is adopted when betting on it has shown that it is right more often than what serves (`learn.contest`); the
  chance that one that is no better is ever adopted is at most `level` per contest of independent tosses. Samples of one class in a row are one toss, four at
  most: windows of a sensor overlap. It must not be behind on audits,
  the fair part of the samples. After an adoption the next contest begins.
- When the world has changed (`device.noticing`), the policy says what follows (`infer.reaction`). Usually what was learned
  before is forgotten, and the contest begins anew; the samples since the change are kept where they are still at hand.
- Forgetting drops whole windows. What is sent of them, and when, `device.sending` says. Where samples are changed before they may
  be sent (clipped, for noise), there is a second set of sums, of changed samples only: heads are made of the true ones, and judged
  on the features that they will serve.

Answering must not wait for learning: a batch is noted, and looked at when figures are asked for, or when 256 inputs are
waiting. What comes out depends on the order of the inputs alone, never on when somebody looked.

A learner is called from several threads; a lock makes its changes one after the other.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, final

import numpy as np

from edgestill.core.errors import ClassCountError, EvidenceError, MessageError
from edgestill.core.jsonio import Fields
from edgestill.device.noticing import Noticing
from edgestill.device.sums import Sample, Sums
from edgestill.device.trial import Trial
from edgestill.infer.calibration import fit_temperature
from edgestill.learn.leverage import Leverage
from edgestill.learn.overlay import Overlay
from edgestill.learn.statistics import Head, Statistics, solve, usual_ridge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgestill.core.digest import Digest
    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Clock
    from edgestill.device.noticing import Change
    from edgestill.infer.cascade import Escalation
    from edgestill.infer.policy import Policy

Prepare = Callable[["NDArray[np.floating]", float], tuple["NDArray[np.floating]", float]]

PRIOR_SHARES: Final = (1.0, 0.1)
_WAITING: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """How a device learns.

    Attributes:
        window: seconds of a window of statistics.
        windows: that are remembered.
        ridge: of the heads, as a share of the mean square of a feature.
        gap: newest samples that no head has learned from when it is asked.
        young: newest samples that are kept one by one; the older ones only as sums.
        first: samples before the first head is made; again and again once they have grown by an eighth.
        level: probability per contest that a head is adopted which is not better.
        alike: newest samples of one class in a row that count as one toss, at most.
        looked: samples of a contest before its outcome counts, and that the temperature is fitted on at most 16 times.
        max_weight: of one sample.
        least: samples before statistics are sent, where nobody says another number: few could expose one.
    """

    window: float = 86_400.0
    windows: int = 7
    ridge: float = 1e-3
    gap: int = 8
    young: int = 64
    first: int = 8
    level: float = 0.05
    alike: int = 4
    looked: int = 16
    max_weight: float = 20.0
    least: int = 16


@dataclass(frozen=True, slots=True, eq=False)
class _Note:
    """A batch that nobody has looked at yet: N inputs, and what is known of H of them."""

    features: NDArray[np.float32]
    confidence: NDArray[np.float32]
    samples: list[Sample]
    probability: list[float]


@final
class Learner:
    """Learns beside one bundle.

    Args:
        bundle: digest of the bundle's manifest.
        reference: the bundle's statistics of its calibration data.
        policy: the bundle's.
        clock: says which window it is.
        lessons: how.
        raise_audits: is called where the policy answers a change so, and says whether it does; it must not call the learner.
        prepare: what a sample's features and weight become in the sums that `finished` gives; None where those are of no use.
    """

    def __init__(
        self,
        *,
        bundle: Digest,
        reference: Statistics,
        policy: Policy,
        clock: Clock,
        lessons: Lessons | None = None,
        raise_audits: Callable[[], bool] = lambda: False,
        prepare: Prepare | None = None,
    ) -> None:
        self._prepare = prepare
        self._bundle = bundle
        self._reference = reference
        self._policy = policy
        self._clock = clock
        self._raise_audits = raise_audits
        self._lessons = lessons = lessons or Lessons()
        self._leverage = Leverage.fit(reference, self._ridge(reference))
        self._leverages = (0.0, 0)
        self._noticing = Noticing()
        self._sums = Sums(reference, young=lessons.young, windows=lessons.windows)
        self._prepared = (
            None if prepare is None else Sums(reference, young=lessons.young, windows=lessons.windows)
        )
        self._trial = self._fresh_trial()
        self._renew_at = lessons.first
        self._notes: list[_Note] = []
        self._waiting = 0
        self._seen = 0
        self._taken: tuple[int, int] = (0, 0)
        self._unasked = 0
        self._changed = False
        self._lock = threading.Lock()

    @property
    def drift(self) -> str:
        """`none`, `suspected` or `confirmed`."""
        with self._lock:
            self._look()
            return self._noticing.verdict

    @property
    def change(self) -> Change | None:
        """What was noticed, when, and what followed; None where there is nothing to tell."""
        with self._lock:
            self._look()
            return self._noticing.change

    def mean_leverage(self) -> float:
        """Mean leverage of the features since the last call; 0 where there were none."""
        with self._lock:
            self._look()
            total, n = self._leverages
            self._leverages = (0.0, 0)
            return min(total / n, 1e9) if n else 0.0

    def observe(self, told: Escalation, *, threshold: float) -> None:
        """Notes a batch, and what the teacher said about it.

        Args:
            told: what became of the batch.
            threshold: below which an input is escalated now.

        Raises:
            EvidenceError: features of another width than the bundle's statistics.
        """
        features, teacher, student = told.answer.features, told.answer.teacher, told.answer.student
        if features is None:
            return
        self._check(features)
        heard = np.flatnonzero(told.heard) if teacher is not None and student is not None else ()
        with self._lock:
            samples, probability = [], []
            for index in heard:
                assert teacher is not None
                assert student is not None
                stands_for_many = told.audited[index] and told.confidence[index] >= threshold
                share = told.audit_shares[index] if told.audit_shares else self._policy.audit_share
                samples.append(
                    self._sample(
                        features[index],
                        teacher[index],
                        named=int(student[index].argmax()),
                        weight=self._audit_weight(share) if stands_for_many else 1.0,
                        audit=bool(told.audited[index]),
                        seen=self._seen + int(index) + 1,
                    )
                )
                probability.append(float(student[index].max()))
            self._note(_Note(features, told.confidence, samples, probability))

    def teach(
        self, features: NDArray[np.float32], labels: NDArray[np.integer], named: NDArray[np.integer]
    ) -> None:
        """Learns from labels `[N]` for features `[N, D]`, where what serves named the classes `[N]`.

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
                got=f"{list(labels.shape)}, from {labels.min(initial=0)} to {labels.max(initial=0)}",
                fix="give one class a sample, numbered as the labels of the policy",
            )
        self._check(features)
        targets = np.eye(classes, dtype=np.float32)[labels]
        with self._lock:
            samples = [
                self._sample(one, target, named=int(name), seen=self._seen)
                for one, target, name in zip(features, targets, named, strict=True)
            ]
            self._note(_Note(features[:0], np.empty(0, np.float32), samples, []))

    def statistics(self, *, least: int | None = None) -> Statistics | None:
        """The sum of the current window, if it is large enough and has grown by a quarter since it was last taken.

        Args:
            least: samples, instead of the lessons' own number.
        """
        with self._lock:
            self._look()
            window = self._window()
            current = self._sums.of(window)
            before = self._taken[1] if self._taken[0] == window else 0
            if (
                current.n < max(self._lessons.least if least is None else least, math.ceil(1.25 * before))
                or current.n == before
            ):
                return None
            self._taken = (window, current.n)
            return current

    def finished(self, *, after: int) -> Statistics | None:
        """The sum, over prepared samples, of the oldest window that is over and newer than `after`, however many it has.

        None where there is no such window, or nothing is prepared.
        """
        with self._lock:
            self._look()
            if self._prepared is None:
                return None
            return self._prepared.before(self._window(), after=after)

    @property
    def window(self) -> int:
        """The current window."""
        return self._window()

    def forget_future(self) -> None:
        """Drops the prepared windows that are later than the current one: the clock stood in the future."""
        with self._lock:
            self._look()
            if self._prepared is not None:
                self._prepared.forget_after(self._window())
                self._changed = True

    def consider(self) -> Overlay | None:
        """A head that is shown to be better than what serves; None most of the time.

        Raises:
            EvidenceError: sums that have no solution.
        """
        with self._lock:
            self._look()
            number = self._trial.winner(self._lessons.level, least=self._lessons.looked)
            if number is None:
                return None
            overlay = self._overlay(number)
            self._trial = self._fresh_trial()
            self._renew()
            self._noticing.begin_anew_with_another_head()
            return overlay

    def keep(self) -> list[bytes] | None:
        """The windows as files to be kept over restarts; None where nothing has changed since the last time."""
        with self._lock:
            self._look()
            if not self._changed:
                return None
            self._changed = False
            return self._sums.to_files()

    def keep_prepared(self) -> list[bytes]:
        """The windows of prepared samples as files, unrounded: rounding would move a sum by more than a sample was clipped to.

        Raises:
            EvidenceError: they do not fit into files.
        """
        with self._lock:
            self._look()
            return [] if self._prepared is None else self._prepared.to_files("float64")

    def progress(self) -> JsonObject:
        """What else is to be kept: what was noticed, and how the contest stands."""
        with self._lock:
            self._look()
            return {"noticing": self._noticing.as_json(), "trial": self._trial.as_json()}

    def recall(
        self, kept: Sequence[bytes], progress: JsonObject | None = None, *, prepared: Sequence[bytes] = ()
    ) -> None:
        """Takes up what `keep`, `progress` and `keep_prepared` gave; what belongs to another backbone, or is damaged, is left.

        Whoever gives `prepared` must know that its samples were prepared as they are now.
        """
        with self._lock:
            self._sums.recall(kept)
            if self._prepared is not None:
                self._prepared.recall(prepared)
            if progress is not None:
                self._recall_progress(Fields(progress, "progress"))
            if self._sums.older_than(self._lessons.gap) >= self._lessons.first:
                self._renew()
                # files are sums: heads of them have learned from the newest samples, whose neighbours may come now
                self._unasked = self._lessons.gap

    def _recall_progress(self, fields: Fields) -> None:
        noticing, trial = Noticing(), self._fresh_trial()
        with suppress(MessageError):
            noticing.recall(fields.inner("noticing"))
            self._noticing = noticing
        with suppress(MessageError):  # as of an earlier release, which bet otherwise
            trial.recall(fields.inner("trial"))
            self._trial = trial

    def _check(self, features: NDArray[np.float32]) -> None:
        wanted = self._reference.features
        if features.ndim != 2 or features.shape[1] != wanted:  # [N, D]
            raise EvidenceError(
                "features of another width",
                where="features",
                expected=f"[N, {wanted}]",
                got=list(features.shape),
            )

    def _sample(
        self,
        features: NDArray[np.float32],
        target: NDArray[np.float32],
        *,
        named: int,
        seen: int,
        weight: float = 1.0,
        audit: bool = False,
    ) -> Sample:
        return Sample(
            features=features,
            target=target / target.sum(),  # of a teacher in half precision, 1 only up to a thousandth
            weight=weight,
            named=named,
            audit=audit,
            seen=seen,
            window=self._window(),
        )

    def _audit_weight(self, share: float) -> float:
        """The number of inputs that an audit of a sure input stands for, where so many are audited."""
        return 1 / max(share, 1 / self._lessons.max_weight)

    def _note(self, note: _Note) -> None:
        self._notes.append(note)
        self._seen += len(note.features)
        self._waiting += len(note.features) + len(note.samples)
        if self._waiting >= _WAITING:
            self._look()

    def _look(self) -> None:
        """Looks at all that was noted, in order."""
        notes, self._notes, self._waiting = self._notes, [], 0
        seen = self._seen - sum(len(note.features) for note in notes)
        for note in notes:
            seen += len(note.features)
            self._see(note, seen)
            for index, sample in enumerate(note.samples):
                self._meet(sample, note.probability[index] if note.probability else None)

    def _see(self, note: _Note, seen: int) -> None:
        """A batch whose last input is number `seen`: only looked at."""
        leverage = self._leverage.of(note.features)
        total, n = self._leverages
        self._leverages = (total + float(leverage.sum()), n + len(leverage))
        ago = self._noticing.see(leverage.tolist(), note.confidence.tolist())
        if ago is not None:
            self._react(lambda young: [one for one in young if one.seen > seen - ago])

    def _meet(self, sample: Sample, probability: float | None) -> None:
        """One sample: it is asked about, then it begins to age."""
        if self._unasked:
            self._unasked -= 1
        else:
            self._trial.ask(sample)
        self._sums.add(sample)
        if self._prepared is not None and self._prepare is not None:
            features, weight = self._prepare(sample.features, sample.weight)
            self._prepared.add(replace(sample, features=features, weight=weight))
        self._changed = True
        if probability is not None:
            contradicted = int(sample.target.argmax()) != sample.named
            ago = self._noticing.hear(contradicted=[contradicted], probability=[probability])
            if ago is not None:
                self._react(lambda young: young[-ago:])
        if self._sums.older_than(self._lessons.gap) >= self._renew_at:
            self._renew()

    def _react(self, keep: Callable[[list[Sample]], list[Sample]]) -> None:
        """Does what the policy says about a change; `keep` as for `_begin_anew`."""
        wanted, triggered = self._policy.on_drift.do, []
        if "audit" in wanted and self._raise_audits():
            triggered.append("audit")
        if "learn" in wanted:
            self._begin_anew(keep)
            triggered.append("learn")
        if "report" in wanted:
            triggered.append("report")
        self._noticing.answered(at=self._clock.now(), triggered=triggered)

    def _begin_anew(self, keep: Callable[[list[Sample]], list[Sample]]) -> None:
        """The world has changed: only what `keep` chooses of the newest samples is of the new one."""
        self._sums.begin_anew(keep)
        if self._prepared is not None:
            self._prepared.begin_anew(keep)
        self._trial = self._fresh_trial()
        self._renew_at, self._taken, self._changed = self._lessons.first, (0, 0), True

    def _renew(self) -> None:
        """Makes the heads anew, of all samples but the newest; forgets windows that are too old."""
        gap = self._lessons.gap
        self._sums.forget(self._window())
        if self._prepared is not None:
            self._prepared.forget(self._window())
        self._renew_at = max(self._lessons.first, math.ceil(1.125 * self._sums.older_than(gap)))
        own = self._sums.total(gap=gap)
        if own.n:
            self._trial.renew([self._head(own, share) for share in PRIOR_SHARES])

    def _fresh_trial(self) -> Trial:
        return Trial(len(PRIOR_SHARES), recent=16 * self._lessons.looked, alike=self._lessons.alike)

    def _head(self, own: Statistics, share: float) -> Head:
        """A head for which the prior counts `share` of the device's own samples."""
        prior = self._reference
        together = own + prior.scaled(min(1.0, share * own.weight / prior.weight))
        return solve(together, ridge=self._ridge(together))

    def _overlay(self, number: int) -> Overlay:
        """The head that has won, made of all samples; its temperature is of answers given before learning."""
        contest, own = self._trial.contest, self._sums.total()
        scores, targets = self._trial.answers(number)
        return Overlay(
            bundle=self._bundle,
            head=self._head(own, PRIOR_SHARES[number]),
            temperature=fit_temperature(scores, targets),
            n=own.n,
            created=self._clock.now(),
            agreement_before=contest.served / contest.samples,
            agreement_after=contest.agreement(number),
        )

    def _window(self) -> int:
        return max(0, int(self._clock.now() // self._lessons.window))

    def _ridge(self, statistics: Statistics) -> float:
        return usual_ridge(statistics, self._lessons.ridge)
