"""Which scale of a direction fits a budget.

A cost is the share of the budget that a student takes: 1 is all of it. It grows with the scale, roughly as a power of it, so
that it is found by a line through its logarithms (the secant method, kept within a bracket). Each look at a cost is an export
of a network; four or five of them are enough.
"""

from __future__ import annotations

from math import exp, inf, isfinite, log
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOKS: Final = 8
_NEAR: Final = 0.96
_AIM: Final = 0.985
_BEGIN: Final = 0.4
_POWER: Final = 2.0  # products grow with the square of a width


def fitting_scale(
    cost: Callable[[float], float], *, least: float, most: float = 1.0, begin: float = _BEGIN
) -> float | None:
    """The largest scale that was found to cost at most 1; None where even the least costs more.

    Args:
        cost: of a scale, as a share of the budget; never falls as the scale grows.
        least: scale, more than 0.
        most: scale.
        begin: where to look first, between the two.
    """
    looked: dict[float, float] = {}
    scale = min(max(begin, least), most)
    for _ in range(_LOOKS):
        looked[scale] = cost(scale)
        if _NEAR <= looked[scale] <= 1 or (scale == most and looked[scale] <= 1):
            return scale
        if scale == least and looked[scale] > 1:
            return None
        scale = _next(looked, least, most)
        if scale in looked:
            break
    fitting = [one for one, share in looked.items() if share <= 1]
    if fitting:
        return max(fitting)
    return least if cost(least) <= 1 else None


def _next(looked: dict[float, float], least: float, most: float) -> float:
    """Where the cost should be just below 1, between the largest scale known to fit and the smallest known not to."""
    low = max((one for one, share in looked.items() if share <= 1), default=least)
    high = min((one for one, share in looked.items() if share > 1), default=most)
    known = sorted(looked, key=lambda one: abs(log(looked[one])) if looked[one] > 0 else inf)[:2]
    guess = _secant([(one, looked[one]) for one in known])
    if not low < guess < high:  # the line leads nowhere: ends first, then the middle
        ends = [one for one in (low, high) if one not in looked]
        return ends[0] if ends else (low * high) ** 0.5
    return guess


def _secant(points: list[tuple[float, float]]) -> float:
    """The scale of the cost that is aimed at, by a line through one or two points in logarithms."""
    scale, share = points[0]
    if not 0 < share < inf:
        return -inf
    power = _POWER
    if len(points) > 1:
        other, its = points[1]
        if 0 < its < inf and its != share:
            found = log(share / its) / log(scale / other)
            power = found if isfinite(found) and found > 0 else power
    return scale * exp(log(_AIM / share) / power)
