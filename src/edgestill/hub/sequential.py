"""Tests that may be looked at after every report: how sure it is that something happens too often.

The evidence is an e-process (Ramdas, Grünwald, Vovk and Shafer, "Game-theoretic statistics and safe anytime-valid inference", 2023): while
every trial is an event with probability at most q, whatever came before it, its expectation is at most 1 at every time. By Ville's
inequality it then ever reaches 1 / alarm with probability at most `alarm`, however often and whenever somebody looks. With k events
among n trials it is the mean over rates p above q of

    (p / q)^k * ((1 - p) / (1 - q))^(n - k),

Wald's likelihood ratios (1945), whose rates lie a twentieth to eight apart from q in log odds. Nothing is approximated: any such mean is one.

Trials of one device hang together, and one device may talk more than all others. So

- what is sure, or looks so, must stay it without any one of the devices that speak against the model, where the others have told enough to vouch for it:
  `VOUCHING / q` trials. Where no event at all is allowed, one is enough;
- for what merely looks so, a device counts as `LOUD` usual ones at most, so that a busy one does not hide the others. (Weights that change with the
  trials would break the promise of what is sure.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ALARM: Final = 0.01
"""Probability that a gate which holds is ever said to be broken."""
LOUD: Final = 4
"""Usual devices that one counts for at most."""
VOUCHING: Final = 3
"""Events that would be expected at the bound: who saw none among so many trials has a lower rate, with 95 % (the rule of three)."""
_RATES: Final = 48
_NEAREST, _FURTHEST = 0.05, 8.0
_LOUDEST: Final = 200


@dataclass(frozen=True, slots=True)
class Count:
    """What one device has told.

    Attributes:
        events: of the trials; at most as many.
        trials: in all.
    """

    events: float
    trials: float

    def __add__(self, other: Count) -> Count:
        return Count(self.events + other.events, self.trials + other.trials)

    def __sub__(self, other: Count) -> Count:
        return Count(self.events - other.events, self.trials - other.trials)

    @property
    def share(self) -> float:
        """Of events; 0 without trials."""
        return self.events / self.trials if self.trials else 0.0


def too_often(counts: Iterable[Count], most: float, *, alarm: float = ALARM) -> bool:
    """Whether it is sure that events happen more often than allowed.

    Args:
        counts: of each device.
        most: the probability of an event that is allowed, in [0, 1].
        alarm: of being sure although it is not so, ever.
    """
    told, bound = [one for one in counts if one.trials], -math.log(alarm)
    return all(log_evidence(rest, most) >= bound for rest in _without_each(told, most))


def looks_too_often(counts: Iterable[Count], most: float) -> bool:
    """Whether it looks so, and need not be sure: more than the nearest rate that evidence is looked for.

    Between that and what is allowed lies a twentieth in log odds: 89.6 % agreement where 90 % are asked for. It counts as kept, since no
    number of trials would ever make it sure.
    """
    told = _weighed(counts, most)
    nearest = most if not 0 < most < 1 else 1 / (1 + (1 - most) / most * math.exp(-_NEAREST))
    return all(rest.share > nearest for rest in _without_each(told, most))


def _weighed(counts: Iterable[Count], most: float) -> list[Count]:
    """Those that have told something, none of them louder than some usual ones."""
    told = [one for one in counts if one.trials]
    if len(told) < 2 or most <= 0:  # alone, it is as loud as it is
        return told
    loudest = LOUD * max(median(one.trials for one in told), VOUCHING / most)
    return [
        one if one.trials <= loudest else Count(one.share * loudest, loudest)  # its share, with less weight
        for one in told
    ]


def _without_each(told: list[Count], most: float) -> Iterator[Count]:
    """The sum of all, and the sums without each that speaks against, where what is left can vouch; of all only, where none may happen."""
    total = sum(told, Count(0, 0))
    yield total
    if len(told) > 1 and most > 0:
        against = (one for one in told if one.events > most * one.trials)
        loudest = sorted(against, key=lambda one: one.events - most * one.trials, reverse=True)[:_LOUDEST]
        rests = (total - one for one in loudest)
        yield from (rest for rest in rests if rest.trials >= VOUCHING / most)


def log_evidence(count: Count, most: float) -> float:
    """The logarithm of the evidence against "an event has probability at most `most`"; 0 for none, infinite for certainty."""
    if most >= 1:
        return 0.0
    if most <= 0:
        return math.inf if count.events else 0.0
    events, others = count.events, count.trials - count.events
    odds = math.log(most) - math.log1p(-most)
    terms = []
    for rate in range(_RATES):
        shift = _NEAREST * (_FURTHEST / _NEAREST) ** (rate / (_RATES - 1))
        # ln p = -ln(1 + e^-x), ln(1 - p) = -ln(1 + e^x)
        up = _log1pexp(-odds) - _log1pexp(-(odds + shift))
        down = _log1pexp(odds) - _log1pexp(odds + shift)
        terms.append(events * up + others * down)
    top = max(terms)
    return top + math.log(sum(math.exp(term - top) for term in terms) / _RATES)


def _log1pexp(x: float) -> float:
    """ln(1 + e^x) without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
