"""Health figures: sums that add up, quantiles by hand, and a fresh start after each report."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.jsonio import Fields
from edgestill.core.wire import Health
from edgestill.infer.health import LATENCIES, Counts, HealthCounter


def test_figures_add_up() -> None:
    """Two batches give their sums and the mean confidence."""
    counter = HealthCounter()
    counter.add(Counts(answers=3, escalated=2, audits=1, agreed=1, bytes_up=80, confidence=2.1))
    counter.add(Counts(answers=1, audits_lost=1, errors=1, confidence=0.5))
    health = counter.take(drift="suspected", leverage=0.25)
    assert health.confidence == pytest.approx(0.65)
    assert replace(health, confidence=0.65) == Health(
        answers=4,
        escalated=2,
        audits=1,
        agreed=1,
        audits_lost=1,
        errors=1,
        bytes_up=80,
        drift="suspected",
        confidence=0.65,
        leverage=0.25,
    )


def test_taking_starts_again() -> None:
    """What was reported once is not reported twice."""
    counter = HealthCounter()
    counter.add(Counts(answers=3, confidence=1.0), latency=0.5)
    counter.take()
    assert counter.take() == Health()


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60))
def test_quantiles_are_nearest_ranks(latencies: list[float]) -> None:
    """At least half, and at least 95 of 100, of the latencies are not above the figures, which are among them."""
    counter = HealthCounter()
    for latency in latencies:
        counter.add(Counts(answers=1), latency=latency)
    health = counter.take()
    for figure, share in ((health.latency_p50, 0.5), (health.latency_p95, 0.95)):
        assert figure in latencies
        assert sum(value <= figure for value in latencies) >= share * len(latencies)
        assert sum(value < figure for value in latencies) < share * len(latencies)


def test_latencies_are_bounded() -> None:
    """Of a long stretch the last 512 are kept."""
    counter = HealthCounter()
    for index in range(LATENCIES * 3):
        counter.add(Counts(answers=1), latency=float(index))
    assert counter.take().latency_p50 >= 2 * LATENCIES


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), max_size=9))
def test_figures_are_ones_the_wire_accepts(batches: list[tuple[int, int, int]]) -> None:
    """Whatever is counted, `core.wire` reads it back."""
    counter = HealthCounter()
    for agreed, more, rest in batches:
        audits = agreed + more
        counter.add(
            Counts(answers=audits + rest, escalated=audits, audits=audits, agreed=agreed, confidence=0.0)
        )
    health = counter.take()
    assert Health.from_fields(Fields(asdict(health), "health")) == health
