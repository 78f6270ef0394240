"""Votes on a shared set, hard, with abstention, or as soft labels; the hub distils a head from what came together.

- *Ours* (`learn.votes`): each device solves a head of its own sums, votes, and abstains where its sums know nothing. `limit` is chosen on
  validation samples, one for all skews: a fleet does not know how skewed it is. Infinity is the plain hard vote.
- *Soft labels*: each device trains a softmax head on its own samples and sends its probabilities in 8 bits each; the hub takes their mean, plain
  or weighted by samples (Li and Wang, FedMD, 2019, in one round). Local epochs, rate and weighting are tuned for each skew.
- *Different students*: each device has features of its own, of a width of its own; only votes can be put together then.

Votes are cast on features as the student gives them: what a device knows is told best by these (chosen on validation samples). Soft labels are tried on
them and on even ones (mean 0, deviation 1), whichever is better.

The proxy set must be on the devices. What that takes is told apart: it is sent once, whatever is voted on later.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.learn.votes import Ballot, Cast, Outcome, Question, cast, domain, tally
from learning.federated import Settings, head_bytes, local, right, softmax
from learning.summed import BACKBONE, LEAST_SQUARES, head, sums

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from learning.fleets import Fleet

LIMITS: Final = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, math.inf)
SHARE: Final = 0.1
"""Ridge of a device's own head, which has few samples."""
LOCAL: Final = tuple(
    Settings(epochs=epochs, rate=rate, batch=16)
    for epochs, rate in product((5, 20, 60), (0.01, 0.03, 0.1, 0.3))
)
LEVELS: Final = 255


def polled(fleet: Fleet, limit: float, students: Sequence[Fleet] | None = None) -> tuple[Outcome, list[int]]:
    """The outcome, and the bytes of each ballot.

    Args:
        fleet: whose proxy set is voted on.
        limit: of leverage.
        students: for each device a fleet with the same samples and its own features; without, all have the fleet's.
    """
    question = Question(proxy=BACKBONE, samples=len(fleet.proxy), classes=fleet.classes)
    came, sizes = [], []
    for device in range(len(fleet.devices)):
        mine = fleet if students is None else students[device]
        if not len(mine.devices[device]):
            continue
        labels = _votes(mine, device, limit)
        sent = Ballot.of(question, student=BACKBONE, labels=labels).to_bytes()
        sizes.append(len(sent))
        came.append(Cast(voter=f"{device}", sequence=0, ballot=Ballot.from_bytes(sent, question)))
    return tally(question, came), sizes


def _votes(fleet: Fleet, device: int, limit: float) -> NDArray[np.int64]:
    own = sums(fleet.devices[device], fleet.classes)
    weight = head(own, (LEAST_SQUARES, SHARE))
    assert weight is not None, "float64 sums with this much ridge are positive definite"
    scores = fleet.proxy.features @ weight[:-1] + weight[-1]
    return cast(scores, fleet.proxy.features, domain(own), limit=limit)


def distilled(fleet: Fleet, outcome: Outcome) -> NDArray[np.float32]:
    """The hub's head, learned from the outcome on its own features of the proxy set."""
    empty = sums(
        replace(fleet.proxy, features=fleet.proxy.features[:0], labels=fleet.proxy.labels[:0]), fleet.classes
    )
    learned = outcome.learned_by(empty, fleet.proxy.features)
    found = head(learned, (LEAST_SQUARES, usual_share(learned.n)))
    assert found is not None, "as above"
    return found


def usual_share(n: int) -> float:
    """Ridge of a head that learns from few samples; nothing at all gives a head of zeros."""
    return SHARE if n else 1.0


def voted(
    fleets: Sequence[Fleet],
    limits: Sequence[float] = LIMITS,
    students: Sequence[Sequence[Fleet]] | None = None,
) -> dict[float, dict[str, Any]]:
    """Limit -> what it comes to, on the fleets of all seeds."""
    return {
        limit: _voted(fleets, limit, [None] * len(fleets) if students is None else students)
        for limit in limits
    }


def _voted(
    fleets: Sequence[Fleet], limit: float, students: Sequence[Sequence[Fleet] | None]
) -> dict[str, Any]:
    polls = [polled(fleet, limit, each) for fleet, each in zip(fleets, students, strict=True)]
    heads = [distilled(fleet, outcome) for fleet, (outcome, _) in zip(fleets, polls, strict=True)]
    return {
        "accuracy": [right(one, fleet.test) for one, fleet in zip(heads, fleets, strict=True)],
        "validation": [right(one, fleet.validation) for one, fleet in zip(heads, fleets, strict=True)],
        "answered": float(np.mean([(outcome.voted > 0).mean() for outcome, _ in polls])),
        "up": float(np.mean([np.mean(sizes) for _, sizes in polls])),
        "up_most": max(max(sizes) for _, sizes in polls),
        "down": head_bytes(fleets[0].test.features.shape[1], fleets[0].classes, "float32"),
    }


def soft(kinds: Mapping[str, Sequence[Fleet]], settings: Sequence[Settings] = LOCAL) -> dict[str, Any]:
    """The mean of soft labels, with the kind of features, local training and weighting that are best on validation samples."""
    trials = []
    for (kind, fleets), setting, weighted in product(kinds.items(), settings, (False, True)):
        heads = [_of_soft(fleet, setting, weighted=weighted) for fleet in fleets]
        scored = [
            [right(one, part(fleet)) for one, fleet in zip(heads, fleets, strict=True)]
            for part in (lambda fleet: fleet.validation, lambda fleet: fleet.test)
        ]
        about = setting.as_json() | {"weighted": weighted, "features": kind}
        trials.append((float(np.mean(scored[0])), scored[1], about))
    _, accuracy, about = max(trials, key=lambda one: one[0])
    one = next(iter(kinds.values()))[0]
    return {
        "accuracy": accuracy,
        "settings": about,
        "trials": len(trials),
        "up": len(one.proxy) * one.classes,
        "down": head_bytes(one.test.features.shape[1], one.classes, "float32"),
    }


def _of_soft(fleet: Fleet, settings: Settings, *, weighted: bool) -> NDArray[np.float32]:
    rng = np.random.default_rng(11)
    total = np.zeros((len(fleet.proxy), fleet.classes))
    ones = np.ones((len(fleet.proxy), 1), dtype=np.float32)
    proxy = np.concatenate([fleet.proxy.features, ones], axis=1)
    for device in fleet.devices:
        if not len(device):
            continue
        x = np.concatenate([device.features, np.ones((len(device), 1), dtype=np.float32)], axis=1)
        start = np.zeros((x.shape[1], 1, fleet.classes), dtype=np.float32)
        trained = local(start, x, device.one_hot(fleet.classes), (settings,), rng)[:, 0]
        sent = np.round(softmax(proxy @ trained) * LEVELS) / LEVELS
        total += sent * (len(device) if weighted else 1)
    mean = total / total.sum(axis=1, keepdims=True)
    empty = sums(fleet.proxy.where(np.empty(0, dtype=np.int64)), fleet.classes)
    learned = empty.add(fleet.proxy.features, mean)
    found = head(learned, (LEAST_SQUARES, SHARE))
    assert found is not None, "as above"
    return found
