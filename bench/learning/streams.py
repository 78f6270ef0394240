"""Streams of made-up worlds, as a device sees them: what its detectors are fed, input by input.

- `independent`: inputs do not depend on each other.
- `overlapping`: they do, as windows that overlap by three quarters, of a person who does one of seven things for about 24 windows.

A change moves all three signals by so many of their own standard deviations. Who is asked of the teacher is decided as on a device, by
the policy's tracker at a share of 0.2 with audits of 0.02: only there a contradiction can be seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from edgestill.infer.decision import PolicyState, decide
from edgestill.infer.policy import Policy

if TYPE_CHECKING:
    from numpy.typing import NDArray

ASKED: Final = Policy(labels=("one", "other"), threshold=0.7, escalation_share=0.2, audit_share=0.02)
SIGNALS: Final = ("leverage", "doubt", "surprise")
ACTIVITIES: Final = 7
BOUT: Final = 24
OVERLAP: Final = 4
_LEVELS: Final = {"leverage": (-4.0, 0.5), "doubt": (0.25, 0.08)}
"""Mean and deviation."""
_CONTRADICTION: Final = 0.4
"""The deviation of whether the teacher contradicts, near the doubts above."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """T inputs.

    Attributes:
        leverage: logarithms, `[T]`.
        doubt: one minus the student's confidence, `[T]`.
        contradicted: whether the teacher would say otherwise, `[T]`.
    """

    leverage: NDArray[np.float64]
    doubt: NDArray[np.float64]
    contradicted: NDArray[np.bool_]

    def taken(self, numbers: NDArray[np.int64]) -> Seen:
        """The inputs of these numbers."""
        return Seen(
            leverage=self.leverage[numbers],
            doubt=self.doubt[numbers],
            contradicted=self.contradicted[numbers],
        )

    def then(self, other: Seen) -> Seen:
        """These inputs, and the other's after them."""
        return Seen(
            leverage=np.concatenate([self.leverage, other.leverage]),
            doubt=np.concatenate([self.doubt, other.doubt]),
            contradicted=np.concatenate([self.contradicted, other.contradicted]),
        )

    def signals(self, seed: int) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Signal -> at which inputs there is a value, and the values (`device.noticing`)."""
        everywhere = np.arange(len(self.doubt))
        heard = self._heard(seed)
        surprise = self.contradicted[heard].astype(float) - self.doubt[heard]
        return {
            "leverage": (everywhere, self.leverage),
            "doubt": (everywhere, self.doubt),
            "surprise": (heard, surprise),
        }

    def _heard(self, seed: int) -> NDArray[np.int64]:
        coins = np.random.default_rng(seed).random(len(self.doubt))
        state, places = PolicyState.start(ASKED), []
        for place, (doubt, coin) in enumerate(zip(self.doubt.tolist(), coins.tolist(), strict=True)):
            decision, state = decide(ASKED, state, confidence=1 - doubt, coin=coin)
            if decision != "alone":
                places.append(place)
        return np.array(places, dtype=np.int64)


class World(Protocol):
    """Where streams come from."""

    @property
    def changes(self) -> tuple[str, ...]:
        """What may become of it."""
        ...

    def stream(self, seed: int, still: int, changed: int = 0, change: str = "") -> Seen:
        """So many still inputs, and then so many after a change."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeUp:
    """A made-up world.

    Attributes:
        depends: whether neighbours depend on each other.
    """

    depends: bool
    changes: tuple[str, ...] = ("0.5 deviations", "1 deviation", "2 deviations")

    def stream(self, seed: int, still: int, changed: int = 0, change: str = "") -> Seen:
        """As `World.stream`."""
        rng, n = np.random.default_rng([seed, self.depends]), still + changed
        moved = float(change.split(maxsplit=1)[0]) * (np.arange(n) >= still) if change else np.zeros(n)
        noise = self._overlapping(rng, n) if self.depends else rng.normal(size=(2, n))
        mean, deviation = _LEVELS["leverage"]
        leverage = mean + deviation * (noise[0] + moved)
        mean, deviation = _LEVELS["doubt"]
        doubt = np.clip(mean + deviation * (noise[1] + moved), 0.01, 0.99)
        chance = np.clip(doubt + _CONTRADICTION * moved, 0, 1)
        return Seen(leverage=leverage, doubt=doubt, contradicted=rng.random(n) < chance)

    @staticmethod
    def _overlapping(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        """Two rows of variance 1: half of it is of activities, half of windows that overlap."""
        levels = rng.normal(size=(2, ACTIVITIES))
        begins = rng.random(n) < 1 / BOUT
        activity = rng.integers(0, ACTIVITIES, n)[np.maximum.accumulate(np.where(begins, np.arange(n), 0))]
        each = rng.normal(size=(2, n + OVERLAP - 1))
        windows = np.lib.stride_tricks.sliding_window_view(each, OVERLAP, axis=1).sum(axis=2) / np.sqrt(
            OVERLAP
        )
        return np.sqrt(0.5) * (levels[:, activity] + windows)
