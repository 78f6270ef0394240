"""What a client says about a set of inputs that all share, and what all say together: the message of federated distillation.

- A client answers each input with a distribution over the classes, or with nothing: it abstains where the input is
  foreign to what it has seen. A row of zeros is nothing. Who names one class and no more sends a ballot instead
  (`learn.votes`); what came together of ballots is such rows again.
- Only answers leave a client, so that clients may have networks of different kinds (FedMD, Li and Wang 2019; as labels
  for one student, FedDF, Lin et al. 2020).
- The set is a `learn.votes.Question`, named by a digest of its inputs, and so answers about another set are refused.
- What all say is the mean over those who did not abstain. Halves add exactly in doubles: the same answers give the same
  bits, in whatever order they came.
- An answer moves the mean of K by at most 1 / K: a message must hold distributions, and counts once.
- The reader says how many inputs and classes there are, and nothing larger is made of a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self

import numpy as np

from edgestill.core.errors import EvidenceError, SettingError
from edgestill.learn import framing
from edgestill.learn.votes import MAX_CELLS, MAX_CLASSES, MAX_SAMPLES, Question

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgestill.core.jsonio import Fields, JsonObject
    from edgestill.learn.votes import Outcome

MAX_BYTES: Final = 2 * MAX_CELLS + framing.MAX_FRAME_BYTES
"""Of a message: what may be asked about can be answered, in halves."""

Form = Literal["soft", "votes"]
"""What a client sends: distributions as halves `[N, C]` (`Answers`), or one class or none an input (`learn.votes.Ballot`)."""

TOLERANCE: Final = 1e-2
"""Of the sum of a distribution in halves."""

_MAGIC: Final = b"ESTANSW1"
_WHERE: Final = "answers"


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What is said about the inputs of a proxy set.

    Attributes:
        about: the set.
        targets: float64 `[N, C]`: distributions by row, or zeros where nothing is said.
    """

    about: Question
    targets: NDArray[np.float64]

    def __post_init__(self) -> None:
        _check(self.about, self.targets)

    @property
    def known(self) -> NDArray[np.bool_]:
        """`[N]`: where something is said."""
        return np.asarray(self.targets.any(axis=1))

    def to_bytes(self) -> bytes:
        """The message."""
        head: JsonObject = {
            "proxy": str(self.about.proxy),
            "inputs": self.about.samples,
            "classes": self.about.classes,
        }
        return framing.pack(_MAGIC, head, (self.targets.astype(np.float16).ravel(),))

    @classmethod
    def from_bytes(cls, data: bytes, *, about: Question) -> Self:
        """Reads a message from outside.

        Raises:
            MessageError: not a message, over a bound, or sizes that do not add up.
            EvidenceError: about another set, or no distributions.
        """
        fields, rest = framing.unpack(data, magic=_MAGIC, where=_WHERE, max_bytes=MAX_BYTES)
        _check_about(fields, about)
        (values,) = framing.cut(rest, (about.samples * about.classes,), "float16", where=_WHERE)
        return cls(about, values.reshape(about.samples, about.classes))

    @classmethod
    def elected(cls, outcome: Outcome, *, quorum: int = 1) -> Self:
        """What ballots came to: shares of the votes, and nothing where fewer than `quorum` voted.

        Raises:
            SettingError: a quorum below 1.
        """
        check_quorum(quorum)
        return cls(outcome.question, np.where((outcome.voted >= quorum)[:, None], outcome.soft, 0.0))


def check_quorum(quorum: int) -> None:
    """Refuses a quorum of none.

    Raises:
        SettingError: such a quorum.
    """
    if quorum < 1:
        raise SettingError(
            "a quorum is out of range", where="quorum", expected="at least 1", got=quorum, fix="raise it"
        )


def agreed(answers: Sequence[Answers], *, quorum: int = 1) -> Answers:
    """The mean of what is said about each input, by those who say something; nothing where fewer than `quorum` do.

    Raises:
        EvidenceError: no answers, or answers about different sets.
        SettingError: a quorum below 1.
    """
    check_quorum(quorum)
    about = {one.about for one in answers}
    if len(about) != 1:
        raise EvidenceError(
            "answers that do not belong together",
            where=_WHERE,
            expected="answers about one set",
            got=f"answers about {len(about)}",
        )
    total = np.sum([one.targets for one in answers], axis=0)
    voices = np.sum([one.known for one in answers], axis=0)
    mean = total / np.maximum(voices, 1)[:, None]
    return Answers(about.pop(), np.where((voices >= quorum)[:, None], mean, 0.0))


def _check_about(fields: Fields, about: Question) -> None:
    said = (
        fields.digest("proxy"),
        fields.integer("inputs", least=1, most=MAX_SAMPLES),
        fields.integer("classes", least=1, most=MAX_CLASSES),
    )
    wanted = (about.proxy, about.samples, about.classes)
    if said != wanted:
        raise EvidenceError(
            "answers about another set",
            where=_WHERE,
            expected="{}, {} inputs, {} classes".format(*wanted),
            got="{}, {} inputs, {} classes".format(*said),
        )


def _check(about: Question, targets: NDArray[np.float64]) -> None:
    if targets.shape != (about.samples, about.classes):
        raise EvidenceError(
            "answers of another shape",
            where=_WHERE,
            expected=[about.samples, about.classes],
            got=list(targets.shape),
        )
    with np.errstate(invalid="ignore", over="ignore"):
        sums = targets.sum(axis=1)
        good = (np.abs(sums - 1) <= TOLERANCE) | ~targets.any(axis=1)
    if not (good.all() and (targets >= 0).all()):
        raise EvidenceError(
            "answers that are no distributions",
            where=_WHERE,
            expected="rows that are not negative and sum to 1, or are zeros",
            got=f"{int((~good).sum())} rows of another sum, least {targets.min():g}",
        )
