"""What a client says about a set of inputs that all share, and what all say together: the message of federated distillation.

- A client answers each input with a distribution over the classes, with one class, or with nothing: it abstains where
  the input is foreign to what it has seen. In memory all three are one row of numbers; a row of zeros is nothing.
- Only answers leave a client, so that clients may have networks of different kinds (FedMD, Li and Wang 2019; as labels
  for one student, FedDF, Lin et al. 2020).
- The set is named by a digest of its inputs, and so answers about another set are refused.
- What all say is the mean over those who did not abstain. Halves add exactly in doubles, and so do votes: the same
  answers give the same bits, in whatever order they came.
- An answer moves the mean of K by at most 1 / K: a message must hold distributions, and counts once.
- The reader says how many inputs and classes there are, and nothing larger is made of a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self, get_args

import numpy as np

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError, MessageError, SettingError
from edgestill.learn import framing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgestill.core.jsonio import Fields, JsonObject

MAX_NUMBERS: Final = 8_000_000
MAX_BYTES: Final = 2 * MAX_NUMBERS + framing.MAX_FRAME_BYTES
"""Of a message: what may be asked about can be answered, in halves."""
ABSTAIN: Final = -1

Form = Literal["soft", "votes"]
"""Distributions as halves `[N, C]`, or one class number for each input `[N]`, `ABSTAIN` where there is none."""

TOLERANCE: Final = 1e-2
"""Of the sum of a distribution in halves."""

_MAGIC: Final = b"ESTANSW1"
_WHERE: Final = "answers"
_DTYPE: Final = {"soft": "float16", "votes": "int32"}


class Asked(NamedTuple):
    """What answers must be about.

    Attributes:
        proxy: digest of the inputs.
        inputs: N.
        classes: C.
    """

    proxy: Digest
    inputs: int
    classes: int

    @classmethod
    def about(cls, inputs: NDArray[np.generic], classes: int) -> Self:
        """These inputs `[N, ...]`.

        Raises:
            SettingError: none, or more than 8 million numbers would come back.
        """
        count = len(inputs) if inputs.ndim else 0
        if not 0 < count * classes <= MAX_NUMBERS:
            raise SettingError(
                "a set of that size cannot be asked about",
                where="proxy",
                expected=f"1 to {MAX_NUMBERS} numbers (inputs times classes)",
                got=count * classes,
                fix="choose some of the inputs",
            )
        kind = f"{inputs.dtype.str} {inputs.shape} ".encode()
        return cls(Digest.of(kind + np.ascontiguousarray(inputs).tobytes()), count, classes)


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What is said about the inputs of a proxy set.

    Attributes:
        about: the set.
        targets: float64 `[N, C]`: distributions by row, or zeros where nothing is said.
    """

    about: Asked
    targets: NDArray[np.float64]

    def __post_init__(self) -> None:
        _check(self.about, self.targets)

    @property
    def known(self) -> NDArray[np.bool_]:
        """`[N]`: where something is said."""
        return np.asarray(self.targets.any(axis=1))

    def to_bytes(self, form: Form = "soft") -> bytes:
        """The message."""
        values: NDArray[np.number] = self.targets.astype(np.float16)
        if form == "votes":
            values = np.where(self.known, self.targets.argmax(axis=1), ABSTAIN).astype(np.int32)
        head: JsonObject = {
            "proxy": str(self.about.proxy),
            "inputs": self.about.inputs,
            "classes": self.about.classes,
            "form": form,
        }
        return framing.pack(_MAGIC, head, (values.ravel(),))

    @classmethod
    def from_bytes(cls, data: bytes, *, about: Asked) -> Self:
        """Reads a message from outside.

        Raises:
            MessageError: not a message, over a bound, or sizes that do not add up.
            EvidenceError: about another set, or no distributions or classes.
        """
        fields, rest = framing.unpack(data, magic=_MAGIC, where=_WHERE, max_bytes=MAX_BYTES)
        form = fields.text("form", at_most=10)
        if form not in get_args(Form):
            raise MessageError(
                "an unknown form of answers", where=_WHERE, expected=" or ".join(get_args(Form)), got=form
            )
        _check_about(fields, about)
        count = about.inputs * (about.classes if form == "soft" else 1)
        (values,) = framing.cut(rest, (count,), _DTYPE[form], where=_WHERE)
        if form == "votes":
            return cls(about, _one_hot(values, about.classes))
        return cls(about, values.reshape(about.inputs, about.classes))


def agreed(answers: Sequence[Answers], *, quorum: int = 1) -> Answers:
    """The mean of what is said about each input, by those who say something; nothing where fewer than `quorum` do.

    Raises:
        EvidenceError: no answers, or answers about different sets.
        SettingError: a quorum below 1.
    """
    if quorum < 1:
        raise SettingError(
            "a quorum is out of range", where="quorum", expected="at least 1", got=quorum, fix="raise it"
        )
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


def _check_about(fields: Fields, about: Asked) -> None:
    said = Asked(
        fields.digest("proxy"),
        fields.integer("inputs", least=1, most=MAX_NUMBERS),
        fields.integer("classes", least=1, most=MAX_NUMBERS),
    )
    if said != about:
        raise EvidenceError(
            "answers about another set",
            where=_WHERE,
            expected="{}, {} inputs, {} classes".format(*about),
            got="{}, {} inputs, {} classes".format(*said),
        )


def _one_hot(votes: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
    if votes.min() < ABSTAIN or votes.max() >= classes:
        raise EvidenceError(
            "a vote for no class",
            where=_WHERE,
            expected=f"{ABSTAIN} to {classes - 1}",
            got=f"{votes.min():.0f} to {votes.max():.0f}",
        )
    targets = np.zeros((len(votes), classes))
    voted = np.flatnonzero(votes != ABSTAIN)
    targets[voted, votes[voted].astype(np.int64)] = 1.0
    return targets


def _check(about: Asked, targets: NDArray[np.float64]) -> None:
    if targets.shape != (about.inputs, about.classes):
        raise EvidenceError(
            "answers of another shape",
            where=_WHERE,
            expected=[about.inputs, about.classes],
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
