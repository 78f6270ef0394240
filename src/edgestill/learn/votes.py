"""Votes on a shared set of unlabelled samples, by networks of any kind: a class a sample, or nothing where it is not one's domain.

Sums (`learn.statistics`) need one frozen network everywhere. A vote needs none: whatever a device runs, it names a class for each
sample of a *proxy set* that everybody has, and a hub that knows nothing of its network distils from what came together
(hard labels of a public set: Li and Wang, "FedMD", 2019; a vote over teachers: Papernot et al., "PATE", 2017).

- **Abstain.** A device that has seen two classes calls everything one of these. So it votes only where the leverage
  `phi^T (A + ridge I)^-1 phi` of its own sums is at most `limit` times what is typical of its own samples: no labels are needed to know
  that a sample is not of one's domain. Scores that are not finite abstain too.
- **Small.** Both sides know the question, so a ballot does not repeat it: 8 bytes that tell question from question, 8 that tell student from
  student, and the votes as one whole number. Voter and reader count how often each answer was given so far, and an answer costs as many bits
  as it surprises (adaptive counts of Krichevsky and Trofimov 1981; a number for a sequence, Duda's asymmetric numeral systems, 2009,
  without renormalisation, since a ballot is short). Every sequence of votes has exactly one spelling.
- **One voice each.** The newest ballot of a voter counts, whatever comes twice or late, in whatever order: the outcome is a function of the
  set of what was cast.
- **Bounded influence.** A voter adds at most its weight, at most 1, to a sample. So where the others and the teacher weigh W, a lying voter of
  weight w moves the label by at most w / (W + w) in total variation, and cannot change which class is first where it leads by more than w.
- **The teacher votes too**, with its probabilities and a weight of its own. So a sample of which no device knows anything has its label.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError, MessageError
from edgestill.core.jsonio import canonical
from edgestill.learn.leverage import Leverage
from edgestill.learn.statistics import usual_ridge

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject
    from edgestill.learn.statistics import Statistics

ABSTAIN: Final = -1
LIMIT: Final = 2.0
"""Times the typical leverage."""
RIDGE_SHARE: Final = 0.1
"""Of the mean square of a feature. Few samples fill few directions: with less ridge every new sample is a stranger."""
MAX_SAMPLES: Final = 10_000
MAX_CLASSES: Final = 4_096
MAX_CELLS: Final = 2**23
"""Samples times classes: the outcome is held as a whole."""
MAX_BYTES: Final = 32_768
"""Of a ballot, whatever the question."""

_MAGIC: Final = b"ESV1"
_NAME_BYTES: Final = 8
_START: Final = len(_MAGIC) + 2 * _NAME_BYTES
_WHERE: Final = "votes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is voted on.

    Attributes:
        proxy: digest of the shared samples, in their order.
        samples: N, 1 to 10,000.
        classes: C, 2 to 4,096; N times C at most 2^23.

    Raises:
        EvidenceError: a count out of range.
    """

    proxy: Digest
    samples: int
    classes: int

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("samples", self.samples, 1, MAX_SAMPLES),
            ("classes", self.classes, 2, MAX_CLASSES),
            ("samples times classes", self.samples * self.classes, 1, MAX_CELLS),
        ):
            if not least <= value <= most:
                raise EvidenceError(
                    f"{name} out of range",
                    where=_WHERE,
                    expected=f"{least} to {most}",
                    got=value,
                    fix="ask about as many as that",
                )

    @classmethod
    def about(cls, inputs: NDArray[np.generic], classes: int) -> Self:
        """The question about these inputs `[N, ...]`, as whoever has them names it: a digest of element type, shape and values.

        Raises:
            EvidenceError: as the class.
        """
        kind = f"{inputs.dtype.str} {inputs.shape} ".encode()
        proxy = Digest.of(kind + np.ascontiguousarray(inputs).tobytes())
        return cls(proxy=proxy, samples=len(inputs) if inputs.ndim else 0, classes=classes)

    @property
    def name(self) -> bytes:
        """8 bytes that tell this question from others: of the digest of all that it is."""
        whole: JsonObject = {"classes": self.classes, "proxy": str(self.proxy), "samples": self.samples}
        return _short(Digest.of(canonical(whole)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ballot:
    """One voter's votes.

    Attributes:
        question: what was asked.
        student: 16 hex digits: the first 8 bytes of the digest of the bundle or overlay that voted.
        labels: `[N]`, classes or `ABSTAIN`.
    """

    question: Question
    student: str
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, question: Question, *, student: Digest, labels: NDArray[np.integer]) -> Self:
        """A ballot.

        Raises:
            EvidenceError: labels of another number, or that are no classes.
        """
        if labels.shape != (question.samples,) or labels.dtype.kind not in "iu":
            raise EvidenceError(
                "votes on another set",
                where=_WHERE,
                expected=f"whole numbers [{question.samples}], one a sample",
                got=f"{labels.dtype} {list(labels.shape)}",
                fix="vote on every sample of the proxy set, in its order",
            )
        if labels.min() < ABSTAIN or labels.max() >= question.classes:
            raise EvidenceError(
                "a vote for no class",
                where=_WHERE,
                expected=f"0 to {question.classes - 1}, or {ABSTAIN} to abstain",
                got=f"{labels.min()} to {labels.max()}",
                fix="compare the classes of the student with those of the question",
            )
        kept = labels.astype(np.int64)
        kept.flags.writeable = False
        return cls(question=question, student=_short(student).hex(), labels=kept)

    @property
    def votes(self) -> int:
        """Samples on which it does not abstain."""
        return int((self.labels != ABSTAIN).sum())

    def to_bytes(self) -> bytes:
        """The message: magic, question, student, votes."""
        number = _number(self.labels.tolist(), self.question.classes)
        body = number.to_bytes((number.bit_length() + 7) // 8, "little")
        return _MAGIC + self.question.name + bytes.fromhex(self.student) + body

    @classmethod
    def from_bytes(cls, data: bytes, question: Question) -> Self:
        """Reads a ballot.

        Args:
            data: from outside.
            question: that was asked.

        Raises:
            MessageError: not a ballot, or votes that no `to_bytes` spells so.
            EvidenceError: on another question.
        """
        if len(data) < _START or data[: len(_MAGIC)] != _MAGIC:
            raise MessageError(
                "not a ballot", where=_WHERE, expected=repr(_MAGIC), got=repr(bytes(data[: len(_MAGIC)]))
            )
        asked, student = data[len(_MAGIC) : _START - _NAME_BYTES], data[_START - _NAME_BYTES : _START]
        if asked != question.name:
            raise EvidenceError(
                "votes on another question", where=_WHERE, expected=question.name.hex(), got=asked.hex()
            )
        labels = _sequence(data[_START:], question)
        labels.flags.writeable = False
        return cls(question=question, student=student.hex(), labels=labels)


def domain(sums: Statistics) -> Leverage:
    """What a device's own sums know, with the ridge that `LIMIT` goes with; EvidenceError where they are of nothing."""
    return Leverage.fit(sums, usual_ridge(sums, RIDGE_SHARE))


def cast(
    scores: NDArray[np.floating],
    features: NDArray[np.floating],
    known: Leverage,
    *,
    limit: float = LIMIT,
) -> NDArray[np.int64]:
    """The votes `[N]` of a device: the class with the highest score, or `ABSTAIN` outside of its domain.

    Args:
        scores: `[N, C]`, of its student with or without an overlay.
        features: `[N, D]` of the same samples.
        known: `domain` of its own sums.
        limit: times the typical leverage, from which on a sample is not of its domain; infinity never abstains so.

    Raises:
        EvidenceError: shapes that do not fit, or a limit that is not positive.
    """
    if not limit > 0:
        raise EvidenceError(
            "a limit is out of range", where=_WHERE, expected="positive", got=limit, fix="choose 1 to 10"
        )
    if scores.ndim != 2 or len(scores) != len(features):  # [N, C]
        raise EvidenceError(
            "scores and features of different samples",
            where=_WHERE,
            expected=f"scores [{len(features)}, C]",
            got=list(scores.shape),
            fix="give both of the same samples",
        )
    finite = np.isfinite(scores).all(axis=1)
    best = np.where(np.isfinite(scores), scores, -np.inf).argmax(axis=1)
    at_home = known.of(features) <= limit * known.typical
    return np.where(at_home & finite, best, ABSTAIN).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """A ballot as it came in.

    Attributes:
        voter: who, as the hub knows it: never what a message says of itself.
        sequence: of the voter's messages; a higher one is newer.
        ballot: read, and bounded.
    """

    voter: str
    sequence: int
    ballot: Ballot


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What came together.

    Attributes:
        question: what was asked.
        soft: `[N, C]`, each row a distribution: shares of the weights; even where nobody voted.
        voted: `[N]`, voters who did not abstain; the teacher is none of them.
        weight: `[N]`, what was put in, the teacher's weight included.
        voters: that are counted.
        students: different ones among theirs.
    """

    question: Question
    soft: NDArray[np.float64]
    voted: NDArray[np.int64]
    weight: NDArray[np.float64]
    voters: int
    students: int

    def with_teacher(self, teacher: NDArray[np.floating], weight: float = 1.0) -> Self:
        """The same with the teacher's voice added: as if `tally` had been given it.

        Args:
            teacher: its probabilities `[N, C]`.
            weight: what it counts for on each sample; not negative.

        Raises:
            EvidenceError: a weight out of range, or answers that are none.
        """
        shares = self.soft * self.weight[:, None] + _of_teacher(self.question, teacher, weight)
        total = shares.sum(axis=1)
        return replace(self, soft=_distributions(shares, total), weight=total)

    def with_others(self, other: Outcome, *, students: int) -> Self:
        """The same with what others have cast on the same question: as if `tally` had been given all of them.

        Args:
            other: of other voters, without a teacher.
            students: different ones among those of both.

        Raises:
            EvidenceError: on another question.
        """
        if other.question != self.question:
            raise EvidenceError(
                "votes on another question",
                where=_WHERE,
                expected=self.question.name.hex(),
                got=other.question.name.hex(),
            )
        shares = self.soft * self.weight[:, None] + other.soft * other.weight[:, None]
        weight = self.weight + other.weight
        return replace(
            self,
            soft=_distributions(shares, weight),
            voted=self.voted + other.voted,
            weight=weight,
            voters=self.voters + other.voters,
            students=students,
        )

    def learned_by(
        self, sums: Statistics, features: NDArray[np.floating], *, at_least: int = 1, weight: float = 1.0
    ) -> Statistics:
        """Sums with the samples of the outcome added: distilling it into the head of a frozen network.

        Args:
            sums: of that network, whose `solve` gives the head; empty ones, or those of the devices that run it.
            features: `[N, D]`, that network's of the proxy set.
            at_least: voters a sample needs to be learned from; 0 takes the teacher's word alone too.
            weight: that a sample counts for.

        Raises:
            EvidenceError: as `Statistics.add`, or features of another number of samples.
        """
        if len(features) != self.question.samples:
            raise EvidenceError(
                "features of another set",
                where=_WHERE,
                expected=f"[{self.question.samples}, D]",
                got=list(features.shape),
                fix="give the features of the whole proxy set, in its order",
            )
        chosen = (self.voted >= at_least) & (self.weight > 0)
        weights = np.full(int(chosen.sum()), weight)
        return sums.add(features[chosen], self.soft[chosen], weights)


def tally(
    question: Question,
    ballots: Iterable[Cast],
    *,
    weights: Mapping[str, float] | None = None,
    teacher: NDArray[np.floating] | None = None,
    teacher_weight: float = 1.0,
) -> Outcome:
    """Puts votes together.

    Args:
        question: which all ballots are on.
        ballots: in any order, any of them several times; of each voter the newest counts.
        weights: of voters, each in [0, 1]; 1 where none is given. One of weight 0 is not heard, and does not count as having voted.
        teacher: its probabilities `[N, C]`.
        teacher_weight: what it counts for on each sample; not negative.

    Raises:
        EvidenceError: a ballot on another question, a weight out of range, or a teacher's answers that are none.
    """
    newest = _newest(question, ballots)
    heard = {voter: weight for voter in sorted(newest) if (weight := _weight(weights, voter)) > 0}
    soft = _of_teacher(question, teacher, teacher_weight)
    voted = np.zeros(question.samples, dtype=np.int64)
    for voter, mine in heard.items():  # in one order: floating-point sums depend on theirs, and this must not
        labels = newest[voter].ballot.labels
        rows = np.flatnonzero(labels != ABSTAIN)
        soft[rows, labels[rows]] += mine
        voted[rows] += 1
    weight = soft.sum(axis=1)
    return Outcome(
        question=question,
        soft=_distributions(soft, weight),
        voted=voted,
        weight=weight,
        voters=len(heard),
        students=len({newest[voter].ballot.student for voter in heard}),
    )


def _distributions(shares: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row over its sum; even where that is 0."""
    even = np.full_like(shares, 1 / shares.shape[1])
    found: NDArray[np.float64] = np.divide(shares, weight[:, None], out=even, where=weight[:, None] > 0)
    return found


def _newest(question: Question, ballots: Iterable[Cast]) -> dict[str, Cast]:
    """The one that counts of each voter; of two that claim the same place, always the same one."""
    newest: dict[str, Cast] = {}
    for one in ballots:
        if one.ballot.question != question:
            raise EvidenceError(
                "votes on another question",
                where=_WHERE,
                expected=question.name.hex(),
                got=one.ballot.question.name.hex(),
            )
        last = newest.get(one.voter)
        if last is None or _place(one) > _place(last):
            newest[one.voter] = one
    return newest


def _place(one: Cast) -> tuple[int, str, bytes]:
    return one.sequence, one.ballot.student, one.ballot.labels.tobytes()


def _weight(weights: Mapping[str, float] | None, voter: str) -> float:
    weight = 1.0 if weights is None else weights.get(voter, 1.0)
    if not 0 <= weight <= 1:
        raise EvidenceError("a voter's weight is out of range", where=_WHERE, expected="0 to 1", got=weight)
    return weight


def _of_teacher(
    question: Question, teacher: NDArray[np.floating] | None, weight: float
) -> NDArray[np.float64]:
    """The teacher's share of the sum `[N, C]`; nothing where it does not vote."""
    shape = question.samples, question.classes
    if teacher is None:
        return np.zeros(shape)
    if not 0 <= weight < np.inf:
        raise EvidenceError(
            "the teacher's weight is out of range", where=_WHERE, expected="finite, not negative", got=weight
        )
    said = np.asarray(teacher, dtype=np.float64)
    if said.shape != shape or not (said >= 0).all() or not np.allclose(said.sum(axis=1), 1, atol=1e-3):
        raise EvidenceError(
            "no probabilities of the proxy set",
            where=_WHERE,
            expected=f"{list(shape)}, each row not negative with the sum 1",
            got=f"{list(said.shape)}, sums {_span(said)}",
            fix="give the teacher's softmax, at a temperature of its own",
        )
    shares: NDArray[np.float64] = said * (weight / said.sum(axis=1, keepdims=True))
    return shares


def _span(rows: NDArray[np.float64]) -> str:
    sums = rows.sum(axis=-1)
    return f"{sums.min():g} to {sums.max():g}" if sums.size else "of nothing"


def _short(digest: Digest) -> bytes:
    return bytes.fromhex(digest.hex)[:_NAME_BYTES]


class _Counts:
    """How often each answer was given: 0 abstains, 1 + c is class c. A frequency is twice that and 1, so none is ever 0."""

    def __init__(self, classes: int) -> None:
        self._twice = np.ones(classes + 1, dtype=np.int64)
        self.total = classes + 1

    def of(self, answer: int) -> tuple[int, int]:
        """Frequency of the answer, and of all those before it."""
        return int(self._twice[answer]), int(self._twice[:answer].sum())

    def at(self, place: int) -> int:
        """The answer whose frequencies hold this place, 0 to `total` - 1."""
        return int(np.searchsorted(np.cumsum(self._twice), place, side="right"))

    def add(self, answer: int) -> None:
        """One more."""
        self._twice[answer] += 2
        self.total += 2


def _number(labels: list[int], classes: int) -> int:
    """The votes as one number: what the reader takes off first is put on last."""
    counts, seen = _Counts(classes), []
    for label in labels:
        seen.append((*counts.of(label + 1), counts.total))
        counts.add(label + 1)
    number = 0
    for frequency, before, total in reversed(seen):
        number = (number // frequency) * total + before + number % frequency
    return number


def _sequence(body: bytes, question: Question) -> NDArray[np.int64]:
    """The votes `[N]` of a number that `_number` made, and of no other."""
    # a vote multiplies the number by at most what all frequencies then are together
    most = (question.samples * (question.classes + 1 + 2 * question.samples).bit_length() + 7) // 8
    if len(body) > most or body[-1:] == b"\0":
        raise MessageError(
            "votes are spelled in another way",
            where=_WHERE,
            expected=f"at most {most} bytes, the last not 0",
            got=f"{len(body)} bytes",
        )
    number, counts = int.from_bytes(body, "little"), _Counts(question.classes)
    labels = np.empty(question.samples, dtype=np.int64)
    for index in range(question.samples):
        whole, place = divmod(number, counts.total)
        answer = counts.at(place)
        frequency, before = counts.of(answer)
        number = whole * frequency + place - before
        counts.add(answer)
        labels[index] = answer - 1
    if number:
        raise MessageError(
            "more bytes than votes", where=_WHERE, expected=f"{question.samples} votes", got="a rest"
        )
    return labels
