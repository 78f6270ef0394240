"""Fair timing on a machine that is doing other things too.

- One process, one thread. Contestants take turns, round after round, so that a slow minute meets all of them.
- An epoch to warm up comes before each timed one and does not count.
- Ratios are computed within a round, between neighbours in time; what is reported is their median, with the quartiles.
- Two clocks are read: wall time, and the CPU time of the process. With one thread and all data in memory they differ
  only while another program has the core; so figures are of CPU time, and wall time is kept beside it.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

Clock = Literal["wall", "cpu"]


@dataclass(frozen=True, slots=True)
class Moment:
    """Both clocks, in seconds."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Moment:
        """Reads them."""
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, other: Moment) -> Moment:
        return Moment(self.wall - other.wall, self.cpu - other.cpu)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a contestant did.

    Attributes:
        laps: how long each epoch took.
        student: as it ended, or None where it is no torch module.
    """

    laps: list[Moment]
    student: nn.Module | None


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to train.

    Attributes:
        name: in the results.
        title: in tables.
        run: trains so many epochs; its first lap may be left out or not.
        laps: timed epochs a turn.
        turns: in a round; the quick ones take several, so that they are timed as long as the slow ones.
    """

    name: str
    title: str
    run: Callable[[int], Outcome]
    laps: int = 1
    turns: int = 1


@dataclass(slots=True)
class Times:
    """Every lap of every contestant, round by round, in seconds a sample.

    Attributes:
        samples: an epoch has.
        rounds: for each round, the laps by contestant.
    """

    samples: int
    rounds: list[dict[str, list[Moment]]] = field(default_factory=list)

    def per_sample(self, name: str, clock: Clock = "cpu") -> list[float]:
        """Seconds a sample, one figure a round: the median of its laps."""
        return [_median(one[name], clock) / self.samples for one in self.rounds if one.get(name)]

    def ratios(self, over: str, under: str, clock: Clock = "cpu") -> list[float]:
        """`over / under`, lap by lap where both have as many in a round, else of the round's medians."""
        found = []
        for one in self.rounds:
            above, below = one[over], one[under]
            if len(above) == len(below):
                found += [getattr(a, clock) / getattr(b, clock) for a, b in zip(above, below, strict=True)]
            else:
                found.append(_median(above, clock) / _median(below, clock))
        return found


def race(contestants: Sequence[Contestant], times: Times, *, rounds: tuple[int, int], seconds: float) -> None:
    """Adds rounds to `times`: at least the first number of them, then more while there is time, at most the second."""
    least, most = rounds
    start = time.perf_counter()
    for number in range(most):
        spent = time.perf_counter() - start
        if number >= least and spent + spent / number > seconds:
            break
        times.rounds.append(_round(contestants))


def _round(contestants: Sequence[Contestant]) -> dict[str, list[Moment]]:
    laps: dict[str, list[Moment]] = {one.name: [] for one in contestants}
    for turn in range(max(one.turns for one in contestants)):
        for one in contestants:
            if turn < one.turns:
                laps[one.name] += one.run(one.laps + 1).laps[-one.laps :]
    return laps


def summary(values: Sequence[float], digits: int = 3) -> dict[str, object]:
    """Median, quartiles, extremes and number."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {
        "median": round(statistics.median(values), digits),
        "quartiles": [round(low, digits), round(high, digits)],
        "range": [round(min(values), digits), round(max(values), digits)],
        "n": len(values),
    }


def _median(laps: Sequence[Moment], clock: Clock) -> float:
    return statistics.median(getattr(one, clock) for one in laps)
