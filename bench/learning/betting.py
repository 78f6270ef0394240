"""How soon betting sees that a challenger is better (`learn.contest`): one that is better from the first toss on, and one that was behind at first.

Tosses are made up, independent, and each says who alone was right: the challenger with probability `before` for so many of them, and with `after` from then on.
Told is the median over 400 contests of the tosses after that until one challenger of two would be adopted at level 0.05, of our bet and of a plain one: the mean
over the same stakes without 0, whose parts stay where they are. `fair` is the share of equal opponents that ever win within 1,000 tosses, which may be 1 in 40.

`runs` is what becomes of the promise where inputs hang together: what serves is right on four of five *runs* of inputs, two challengers are on as many (`equal`), or on seven of ten
(`worse`), and all inputs of a run have one outcome. Told is the share of contests of 400 inputs in which one is adopted all the same, by the length of a run: with each
input as a toss (`plain`), and with so many alike ones as one toss as a device takes them together (`ours`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.device.learning import Lessons
from edgestill.learn.contest import STAKES, Contest, Score

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

CASES: Final = (
    *((0, 0.0, after) for after in (1.0, 0.9, 0.8, 0.7, 0.6, 0.55)),
    (10, 0.2, 0.9),
    (30, 0.2, 0.9),
    (100, 0.2, 0.9),
    (100, 0.3, 0.7),
    (300, 0.4, 0.6),
)
"""(tosses, `before`, `after`)."""
LEVEL: Final = 0.05
GOAL: Final = 2 / LEVEL
_CONTESTS: Final = 400
_MOST: Final = 4_000
_FAIR: Final = 1_000
RUNS: Final = (1, 2, 4, 8)
INPUTS: Final = 400
SERVING: Final = 0.8
CHALLENGERS: Final = {"equal": 0.8, "worse": 0.7}
"""How often they are right."""
_LARGEST: Final = 600.0


def measured(_data: Path, _folder: Path, *, quick: bool = False) -> dict[str, Any]:
    """What each bet came to in each case."""
    contests = 20 if quick else _CONTESTS
    cases = []
    for number, before, after in CASES[-3:-2] if quick else CASES:
        rng = np.random.default_rng([number, round(100 * before), round(100 * after)])
        tosses = [
            np.concatenate([rng.random(number) < before, rng.random(_MOST) < after]) for _ in range(contests)
        ]
        cases.append(
            {"tosses": number, "before": before, "after": after}
            | {name: _median([_until(bet(one)[number:]) for one in tosses]) for name, bet in BETS.items()}
        )
    rng = np.random.default_rng(1)
    fair = [rng.random(_FAIR) < 0.5 for _ in range(contests)]
    return {
        "runs": {
            name: {
                str(length): {
                    "plain": _adopted(length, right, contests, alike=1),
                    "ours": _adopted(length, right, contests, alike=Lessons().alike),
                }
                for length in RUNS
            }
            for name, right in CHALLENGERS.items()
        },
        "contests": contests,
        "cases": cases,
        "fair": {
            name: round(float(np.mean([(bet(one) >= GOAL).any() for one in fair])), 4)
            for name, bet in BETS.items()
        },
    }


def _adopted(length: int, right: float, contests: int, *, alike: int) -> float:
    """The share of contests in which a challenger that is no better is adopted, where inputs come in runs of this length."""
    chances = np.array([right, right, SERVING])
    rng, adopted = np.random.default_rng([2, length]), 0
    for _ in range(contests):
        contest = Contest.among(2)
        for _ in range(INPUTS // length):
            first, second, serving = (rng.random(3) < chances).tolist()
            for begin in range(0, length, alike):
                contest = contest.after_run([((first, second), serving)] * min(alike, length - begin))
            if contest.winner(LEVEL) is not None:
                adopted += 1
                break
    return round(adopted / contests, 4)


def _ours(wins: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The wealth after each toss, until it has reached the goal."""
    score, found = Score(), np.full(len(wins), np.inf)
    for place, won in enumerate(wins.tolist()):
        score = score.after(wins=int(won), losses=int(not won))
        found[place] = score.mean_wealth
        if found[place] >= GOAL:
            break
    return found


def _plain(wins: NDArray[np.bool_]) -> NDArray[np.float64]:
    signs, stakes = np.where(wins, 1, -1)[:, None], np.array([one for one in STAKES if one])
    logs = np.minimum(np.cumsum(np.log1p(signs * stakes), axis=0), _LARGEST)
    found: NDArray[np.float64] = np.exp(logs).mean(axis=1)
    return found


BETS: Final[dict[str, Callable[[NDArray[np.bool_]], NDArray[np.float64]]]] = {"ours": _ours, "plain": _plain}


def _until(wealth: NDArray[np.float64]) -> int:
    """Tosses until the goal is reached; as many as there are where it never is."""
    there = np.flatnonzero(wealth >= GOAL)
    return int(there[0]) + 1 if len(there) else len(wealth)


def _median(each: list[int]) -> int:
    return round(float(np.median(each)))


def figures(part: dict[str, Any]) -> dict[str, float]:
    """How much sooner a challenger is seen that was behind for a hundred tosses, and nine in ten of which it wins now."""
    found = {(one["tosses"], one["after"]): one["plain"] / one["ours"] for one in part["cases"]}
    return {"contest_sooner_after_losses": round(found[100, 0.9], 2)} if (100, 0.9) in found else {}
