"""Who is right more often: a challenger or what serves? A bet on every sample, to be stopped at any time.

Each sample on which exactly one of both is right is a toss, or each run of samples that hang together: who alone was right more often has won it. Starting with a wealth of 1, one bets a share `stake` of it
that the challenger wins: wealth becomes wealth * (1 + stake) where it does, wealth * (1 - stake) where it does not.
Where the challenger is in truth no better, wealth does not grow on average, whatever came before; the probability that
it *ever* reaches 1 / level is then at most `level` (Ville 1939; betting as a test: Shafer 2021; Waudby-Smith and Ramdas
2024). So one may look after every sample, and stop when it is shown.

- What the challenger says of a sample must have been fixed before that sample was seen. It may change between samples.
- The right stake is not known, and the right one now may be another later: who has just begun to learn is behind, and then ahead. So the wealth
  is bet in parts, one a stake, and after the n-th toss each part gives a share of 1 / (2 n + 2) of itself into a pot that all get alike from ("fixed share",
  Herbster and Warmuth 1998, with the falling shares of Koolen and de Rooij 2013). One stake is 0: what is not bet is not lost while the challenger is
  behind, and soon in play when it is ahead. None of it changes the sum, so it is a bet like any other.
- K challengers share the level: each must reach K / level. The one with the most wealth wins.
- It rests on tosses that are fair given all that came before. Neighbours in time are not: where inputs come in runs of alike ones, one win is followed by
  more, for a challenger that is no better, too. So whoever knows of runs tells them as such (`after_run`). A gap between what a challenger learns from and
  what it is asked takes away its advantage on neighbours, and not the runs of luck.

Pure: the state goes in and comes out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from edgestill.core.errors import MessageError, SettingError
from edgestill.core.jsonio import Fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgestill.core.jsonio import JsonObject

STAKES: Final = (0.0, 0.1, 0.25, 0.5, 0.75, 0.95)
_LEAST_WEALTH: Final = 1e-300
_MOST: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How one challenger has done.

    Attributes:
        wins: samples on which it alone was right.
        losses: samples on which only what serves was right.
        tosses: that were bet on: samples, or runs of them.
        wealth: the parts, one for each of `STAKES`, positive; 1 each at the beginning.
    """

    wins: int = 0
    losses: int = 0
    tosses: int = 0
    wealth: tuple[float, ...] = (1.0,) * len(STAKES)

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads one of a contest's scores; MessageError where it is something else."""
        given = fields.items("wealth", at_most=len(STAKES))
        if len(given) != len(STAKES):
            raise MessageError("not a score", where="wealth", expected=len(STAKES), got=len(given))
        numbered = Fields({str(index): one for index, one in enumerate(given)}, "wealth")
        wealth = [
            numbered.number(str(index), least=_LEAST_WEALTH, most=1 / _LEAST_WEALTH)
            for index in range(len(STAKES))
        ]
        counts = {name: fields.integer(name) for name in ("wins", "losses", "tosses")}
        return cls(**counts, wealth=tuple(wealth))

    @property
    def mean_wealth(self) -> float:
        """The evidence that the challenger is better (an e-value)."""
        return float(np.mean(self.wealth))

    def after(self, *, wins: int, losses: int) -> Self:
        """The score after a run of samples, or one sample: on how many the challenger alone, and what serves alone was right."""
        counted = replace(self, wins=self.wins + wins, losses=self.losses + losses)
        if wins == losses:
            return counted
        sign = 1 if wins > losses else -1
        parts = [one * (1 + sign * stake) for one, stake in zip(self.wealth, STAKES, strict=True)]
        given = 1 / (2 * (self.tosses + 1) + 2)
        pot = given * sum(parts) / len(parts)
        wealth = tuple(min(max((1 - given) * one + pot, _LEAST_WEALTH), 1 / _LEAST_WEALTH) for one in parts)
        return replace(counted, tosses=self.tosses + 1, wealth=wealth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """All challengers against what serves.

    Attributes:
        scores: one a challenger.
        samples: seen so far.
        served: of them, on which what serves was right.
    """

    scores: tuple[Score, ...]
    samples: int = 0
    served: int = 0

    @classmethod
    def among(cls, challengers: int) -> Self:
        """A contest that has just begun.

        Raises:
            SettingError: no challenger.
        """
        if challengers < 1:
            raise SettingError(
                "a contest without challengers",
                expected="at least 1",
                got=challengers,
                where="challengers",
                fix="name at least one",
            )
        return cls(scores=(Score(),) * challengers)

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads what `as_json` wrote; MessageError where it is something else."""
        scores = tuple(Score.from_fields(one) for one in fields.objects("scores", at_most=_MOST))
        samples = fields.integer("samples")
        contest = cls(scores=scores, samples=samples, served=fields.integer("served", most=samples))
        if not scores:
            raise MessageError("not a contest", where="scores", expected="at least one", got=0)
        return contest

    def as_json(self) -> JsonObject:
        """The contest as JSON, to be kept over restarts."""
        return asdict(self) | {"scores": [asdict(one) | {"wealth": list(one.wealth)} for one in self.scores]}

    def after(self, challengers: tuple[bool, ...], *, serving: bool) -> Self:
        """The contest after one sample: which of the challengers were right, and whether what serves was."""
        return self.after_run([(challengers, serving)])

    def after_run(self, run: Sequence[tuple[tuple[bool, ...], bool]]) -> Self:
        """The contest after samples that hang together, and count as one toss: of each, what `after` takes."""
        scores = tuple(
            score.after(
                wins=sum(right[number] and not serving for right, serving in run),
                losses=sum(serving and not right[number] for right, serving in run),
            )
            for number, score in enumerate(self.scores)
        )
        served = self.served + sum(serving for _, serving in run)
        return replace(self, scores=scores, samples=self.samples + len(run), served=served)

    def winner(self, level: float) -> int | None:
        """Number of the challenger that is shown to be better, the clearest first; None as long as none is.

        Args:
            level: probability, in (0, 1), that one that is no better ever wins.

        Raises:
            SettingError: a level out of range.
        """
        if not 0 < level < 1:
            raise SettingError(
                "a level is out of range",
                expected="between 0 and 1",
                got=level,
                where="level",
                fix="choose a small share, such as 0.05",
            )
        wealth = [score.mean_wealth for score in self.scores]
        best = max(range(len(wealth)), key=wealth.__getitem__)
        return best if wealth[best] >= len(wealth) / level else None

    def agreement(self, challenger: int) -> float:
        """Share of the samples on which this challenger was right; 0 of none."""
        score = self.scores[challenger]
        return (self.served + score.wins - score.losses) / self.samples if self.samples else 0.0
