"""FedAvg and FedProx of a linear head, written as their papers do, with what these leave open tuned.

In each round the server sends the head to all devices; each takes some local epochs of SGD from there on the cross-entropy of its own
samples, and sends its head back; the server's next head is their mean, weighted by samples (McMahan et al. 2017, algorithm 1, with all
devices in each round). FedProx adds `mu / 2 |w - w_server|^2` to each device's loss (Li et al. 2020, eq. 2). The head begins at 0.

Settings are chosen by their mean accuracy over all seeds on validation samples that no device trains on, after as many rounds as are told
of (`Trials.best`). A head travels in the precision that is asked for, in both directions, and is counted bare, without any framing.
As `int8` it is rounded to the nearest of 255 levels, weight and bias by themselves, each by its own largest; these two scales are not counted.

What `count` rounds send is `count` heads up and `count` down: before the first round nothing goes down, as every device knows zeros; after the last
one the head goes down that devices then use, which is counted of ours as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from learning.fleets import Fleet, Part

ROUNDS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is tuned.

    Attributes:
        epochs: local ones, in each round.
        rate: of SGD.
        batch: samples a step.
        momentum: of SGD, begun anew in each round.
        mu: of FedProx; 0 is FedAvg.
    """

    epochs: int
    rate: float
    batch: int
    momentum: float = 0.0
    mu: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """As results keep it."""
        return {name: getattr(self, name) for name in ("epochs", "rate", "batch", "momentum", "mu")}


RATES: Final = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
FEDAVG: Final = tuple(
    Settings(epochs=epochs, rate=rate, batch=16, momentum=momentum)
    for epochs, rate, momentum in product((1, 3, 10, 20), RATES, (0.0, 0.9))
)
FEDPROX: Final = tuple(
    Settings(epochs=epochs, rate=rate, batch=16, mu=mu)
    for epochs, rate, mu in product((3, 10), RATES[1:], (0.001, 0.01, 0.1, 1.0))
)


def head_bytes(features: int, classes: int, precision: str) -> int:
    """Of one head, bias included."""
    return (features + 1) * classes * np.dtype(precision).itemsize


def right(head: NDArray[np.floating], part: Part) -> float:
    """Share of the samples whose class a head `[D + 1, C]` names, the last row being the bias."""
    scores = part.features @ head[:-1] + head[-1]
    return float((scores.argmax(axis=1) == part.labels).mean())


def rounds(
    fleet: Fleet, settings: Settings, *, count: int = ROUNDS, seed: int = 0, precision: str = "float32"
) -> Iterator[NDArray[np.float32]]:
    """The server's head `[D + 1, C]` after each round."""
    for heads in rounds_of_all(fleet, (settings,), count=count, seed=seed, precision=precision):
        yield heads[:, 0]


def rounds_of_all(
    fleet: Fleet, settings: Sequence[Settings], *, count: int, seed: int, precision: str
) -> Iterator[NDArray[np.float32]]:
    """The servers' heads `[D + 1, S, C]` after each round, of settings that have epochs and batch in common: one pass trains all of them."""
    rng = np.random.default_rng([seed, 7])
    servers = np.zeros((fleet.test.features.shape[1] + 1, len(settings), fleet.classes), dtype=np.float32)
    shares = np.array([len(one) for one in fleet.devices], dtype=np.float64)
    shares /= shares.sum()
    held = [(_with_one(one.features), one.one_hot(fleet.classes)) for one in fleet.devices]
    for _ in range(count):
        heads = [local(servers, x, y, settings, rng) if len(x) else servers for x, y in held]
        sent = np.stack([_rounded(head, precision) for head in heads])
        servers = _rounded(np.tensordot(shares, sent, axes=1), precision)
        yield servers


def central(fleet: Fleet, settings: Settings) -> NDArray[np.float32]:
    """The same training where all samples lie in one place: what averaging gives up is told against it."""
    whole = replace(fleet, devices=(fleet.central,))
    return list(rounds(whole, settings, count=1))[-1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trials:
    """Accuracies of settings S on fleets F after each of R rounds.

    Attributes:
        settings: S.
        validation: `[S, F, R]`.
        test: `[S, F, R]`; nothing is chosen by it.
    """

    settings: Sequence[Settings]
    validation: NDArray[np.float64]
    test: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        fleets: Sequence[Fleet],
        settings: Sequence[Settings],
        *,
        count: int = ROUNDS,
        precision: str = "float32",
    ) -> Trials:
        """Every setting on every fleet."""
        found = np.zeros((2, len(settings), len(fleets), count))
        alike: dict[tuple[int, int], list[int]] = {}
        for number, one in enumerate(settings):
            alike.setdefault((one.epochs, one.batch), []).append(number)
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # a rate that is too high is a bad trial, not an error
            for numbers, (f, fleet) in product(alike.values(), enumerate(fleets)):
                each = [settings[number] for number in numbers]
                heads = rounds_of_all(fleet, each, count=count, seed=f, precision=precision)
                for r, trained in enumerate(heads):
                    for place, number in enumerate(numbers):
                        scored = (right(trained[:, place], part) for part in (fleet.validation, fleet.test))
                        found[:, number, f, r] = tuple(scored)
        return cls(settings=settings, validation=found[0], test=found[1])

    def best(self, after: int) -> int:
        """Number of the setting that is best on validation samples after so many rounds."""
        return int(self.validation[:, :, after - 1].mean(axis=1).argmax())

    def told(self, after: int) -> dict[str, Any]:
        """What the best setting comes to, as JSON: by seed, and its curve over the rounds."""
        best = self.best(after)
        return {
            "rounds": after,
            "settings": self.settings[best].as_json(),
            "trials": len(self.settings),
            "accuracy": self.test[best, :, after - 1].tolist(),
            "curve": self.test[best].mean(axis=0).tolist(),
        }


def local(
    servers: NDArray[np.float32],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    settings: Sequence[Settings],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """One device's heads `[D + 1, S, C]` after its epochs.

    Args:
        servers: `[D + 1, S, C]`, to begin with.
        x: `[N, D + 1]`, the last feature a constant 1.
        y: `[N, C]`.
        settings: S, with epochs and batch in common.
        rng: for the order of samples.
    """
    rate, momentum, mu = (
        np.array([getattr(one, name) for one in settings], dtype=np.float32)[:, None]
        for name in ("rate", "momentum", "mu")
    )
    weight, velocity = servers.copy(), np.zeros_like(servers)
    batch = settings[0].batch
    for _ in range(settings[0].epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x), batch):
            chosen = order[start : start + batch]
            velocity *= momentum
            velocity += _gradient(weight, x[chosen], y[chosen])
            if mu.any():
                velocity += mu * (weight - servers)
            weight -= rate * velocity
    return weight


def softmax(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """Probabilities along the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: NDArray[np.floating] = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def _gradient(
    weight: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Of the mean cross-entropy `[D + 1, S, C]`."""
    scores = (x @ weight.reshape(len(weight), -1)).reshape(len(x), *weight.shape[1:])
    wrong = (softmax(scores) - y[:, None]) / np.float32(len(x))
    found: NDArray[np.float32] = (x.T @ wrong.reshape(len(x), -1)).reshape(weight.shape)
    return found


def _rounded(head: NDArray[np.floating], precision: str) -> NDArray[np.float32]:
    """Heads `[D + 1, S, C]` as they arrive."""
    if precision == "int8":
        return np.concatenate([_coded(head[:-1]), _coded(head[-1:])])
    return head.astype(precision).astype(np.float32)


def _coded(tensors: NDArray[np.floating]) -> NDArray[np.float32]:
    """`[K, S, C]`, each of the S tensors to the nearest of 255 levels between its largest element and minus that."""
    step = np.abs(tensors).max(axis=(0, 2), keepdims=True) / 127
    levels = np.rint(tensors / np.where(step > 0, step, 1))
    found: NDArray[np.float32] = (levels * step).astype(np.float32)
    return found


def _with_one(features: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([features, np.ones((len(features), 1), dtype=np.float32)], axis=1)
