"""A table of latencies: what it was made from it gives back, and it says how well it knows what it has not seen."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.core.errors import DataError, MessageError
from edgestill.lab.searching.latency import LEAST, LatencyTable
from edgestill.lab.searching.work import Work


def family(random: np.random.Generator, count: int) -> list[list[Work]]:
    """Models of a convolution, a matrix and an activation, of many widths."""
    found = []
    for _ in range(count):
        wide, deep = (int(one) for one in random.integers(4, 64, 2))
        found.append(
            [
                Work(kind="Conv", products=wide * 27 * 576, weights=wide * 27, outputs=wide * 576),
                Work(kind="Relu", products=0, weights=0, outputs=wide * 576),
                Work(kind="Gemm", products=wide * 36 * deep, weights=wide * 36 * deep, outputs=deep),
            ]
        )
    return found


def true_seconds(model: list[Work]) -> float:
    """5 us an answer; figures of each kind."""
    costs = {
        "Conv": (2e-6, 1e-11, 0.0, 1e-10),
        "Relu": (1e-6, 0.0, 0.0, 2e-10),
        "Gemm": (1e-6, 0.0, 5e-11, 0.0),
    }
    return 5e-6 + sum(
        float(np.dot(costs[one.kind], (1, one.products, one.weights, one.outputs))) for one in model
    )


def test_what_is_a_sum_of_costs_is_found_exactly() -> None:
    """Also of models that it has not seen."""
    random = np.random.default_rng(0)
    seen, others = family(random, 20), family(random, 10)
    table = LatencyTable.fitted(seen, [true_seconds(one) for one in seen])
    assert table.worst < 0.01
    for one in others:
        assert table.seconds(one) == pytest.approx(true_seconds(one), rel=0.01)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 0.2))
def test_no_cost_is_below_zero_and_the_error_is_that_of_the_noise(seed: int, noise: float) -> None:
    """A law: times that are off by a tenth give predictions that are off by about a tenth."""
    random = np.random.default_rng(seed)
    models = family(random, 24)
    times = [true_seconds(one) * (1 + noise * random.uniform(-1, 1)) for one in models]
    table = LatencyTable.fitted(models, times)
    assert table.base >= 0
    assert all(one >= 0 for cost in table.costs.values() for one in cost)
    assert table.error <= noise + 0.01
    assert table.error <= table.worst


def test_the_error_is_of_models_that_were_left_out() -> None:
    """Times that have nothing to do with the work are fitted, and not believed."""
    random = np.random.default_rng(1)
    models = family(random, 8)
    table = LatencyTable.fitted(models, list(random.uniform(1e-5, 1e-3, 8)))
    assert table.error > 0.2


def test_an_operator_of_an_unknown_kind_counts_nothing() -> None:
    """Rather than stopping a search."""
    models = family(np.random.default_rng(0), 8)
    table = LatencyTable.fitted(models, [true_seconds(one) for one in models])
    more = [*models[0], Work(kind="Odd", products=10**9, weights=1, outputs=1)]
    assert table.seconds(more) == table.seconds(models[0])


@pytest.mark.parametrize("seconds", [[1e-4] * (LEAST - 1), [0.0] * LEAST, [float("nan")] * LEAST])
def test_too_little_to_fit_from_is_refused(seconds: list[float]) -> None:
    """Few models, or times that are none."""
    with pytest.raises(DataError, match="too little to fit a table of latencies from"):
        LatencyTable.fitted(family(np.random.default_rng(0), len(seconds)), seconds)


def test_a_table_comes_back_from_json() -> None:
    """Bit for bit."""
    models = family(np.random.default_rng(0), 8)
    table = LatencyTable.fitted(models, [true_seconds(one) for one in models])
    assert LatencyTable.from_json(json.loads(json.dumps(table.as_json()))) == table


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"seconds": 1},
        {"seconds": {"an answer": "x"}, "median_error": 0, "worst_error": 0, "models": 1},
        {"seconds": {"an answer": -1}, "median_error": 0, "worst_error": 0, "models": 1},
        {"seconds": {"an answer": 0, "Conv": {"each": 1}}, "median_error": 0, "worst_error": 0, "models": 1},
        {"seconds": {"an answer": float("inf")}, "median_error": 0, "worst_error": 0, "models": 1},
    ],
)
def test_what_is_no_table_is_refused(told: dict[str, Any]) -> None:
    """It comes from a file that a device has written."""
    with pytest.raises(MessageError, match="table of latencies"):
        LatencyTable.from_json(told)
