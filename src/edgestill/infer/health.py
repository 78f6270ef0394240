"""How a cascade serves, counted between two health reports.

- Agreement is counted on audits alone: they are chosen whatever the confidence, escalated inputs are the hard ones.
- An audit that was not answered is counted as lost, not left out: losses are not random.
- Latencies are those of batches answered without the teacher, per batch; of many, the last 512 are kept.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Final, Self

from edgestill.core.wire import Health

LATENCIES: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Sums over the inputs of one batch, or of many; the names are those of `core.wire.Health`.

    Attributes:
        confidence: sum of the student's confidences.
    """

    answers: int = 0
    escalated: int = 0
    audits: int = 0
    agreed: int = 0
    audits_lost: int = 0
    errors: int = 0
    bytes_up: int = 0
    confidence: float = 0.0

    def __add__(self, other: Self) -> Self:
        """Both together."""
        return replace(
            self,
            answers=self.answers + other.answers,
            escalated=self.escalated + other.escalated,
            audits=self.audits + other.audits,
            agreed=self.agreed + other.agreed,
            audits_lost=self.audits_lost + other.audits_lost,
            errors=self.errors + other.errors,
            bytes_up=self.bytes_up + other.bytes_up,
            confidence=self.confidence + other.confidence,
        )


class HealthCounter:
    """Adds up what happened until somebody takes the figures. Not thread-safe: its owner locks."""

    def __init__(self) -> None:
        self._counts = Counts()
        self._answers, self._confidence = 0, 0.0
        self._latencies: deque[float] = deque(maxlen=LATENCIES)

    def add_alone(self, answers: int, confidence: float, latency: float) -> None:
        """Counts one batch that nobody was asked about, without making anything: most are such.

        Args:
            answers: inputs.
            confidence: sum of the student's.
            latency: seconds.
        """
        self._answers += answers
        self._confidence += confidence
        self._latencies.append(latency)

    def add(self, counts: Counts, *, latency: float | None = None) -> None:
        """Counts one batch; `latency` in seconds where it was answered alone."""
        self._counts += counts
        if latency is not None:
            self._latencies.append(latency)

    def take(self, *, drift: str = "none", leverage: float = 0.0) -> Health:
        """The figures since the last time, and starts again.

        Args:
            drift: what a detector says: `none`, `suspected` or `confirmed`.
            leverage: mean leverage of the features, 0 where not measured.
        """
        counts = self._counts + Counts(answers=self._answers, confidence=self._confidence)
        latencies = sorted(self._latencies)
        self._counts = Counts()
        self._answers, self._confidence = 0, 0.0
        self._latencies.clear()
        return Health(
            answers=counts.answers,
            escalated=counts.escalated,
            audits=counts.audits,
            agreed=counts.agreed,
            audits_lost=counts.audits_lost,
            errors=counts.errors,
            latency_p50=_quantile(latencies, 50),
            latency_p95=_quantile(latencies, 95),
            bytes_up=counts.bytes_up,
            drift=drift,
            confidence=counts.confidence / counts.answers if counts.answers else 0.0,
            leverage=leverage,
        )


def _quantile(ordered: list[float], percent: int) -> float:
    """The smallest value that `percent` of them do not exceed (nearest rank); 0 of none."""
    return ordered[-(-len(ordered) * percent // 100) - 1] if ordered else 0.0
