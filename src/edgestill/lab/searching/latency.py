"""A small table of what operators take on one kind of hardware, fitted from whole models that were timed there.

An operator takes a fixed time, and more for each product, each number read of the file and each number written; what it takes of
each is a figure of its kind. All figures are found at once from the models' times by least squares of the relative errors,
none below zero (Lawson and Hanson 1974): a model's time is a sum, and its parts cannot be told apart more finely. How well
the table knows a model that it has not seen is told by leaving each out in turn.

The table is of one engine, precision and number of threads, and is meant for models of one family: candidates that were
carved out of the same teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from scipy.optimize import nnls

from edgestill.core.errors import DataError, MessageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject
    from edgestill.lab.searching.work import Work

LEAST: Final = 6
"""Models that a table can be fitted from."""
_COSTS: Final = ("each", "product", "weight", "output")
_BASE: Final = "an answer"


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Seconds by kind of operator.

    Attributes:
        base: of an answer, whatever the model.
        costs: kind -> seconds for each operator, product, weight and output.
        error: median relative error on models that were left out.
        worst: the largest.
        models: that it was fitted from.
    """

    base: float
    costs: Mapping[str, tuple[float, float, float, float]]
    error: float
    worst: float
    models: int

    @classmethod
    def fitted(cls, models: Sequence[Sequence[Work]], seconds: Sequence[float]) -> Self:
        """From what models have to do and the time they take.

        Raises:
            DataError: fewer than `LEAST` models, or a time that is not more than 0.
        """
        if len(models) != len(seconds) or len(models) < LEAST or not all(0 < one < np.inf for one in seconds):
            raise DataError(
                "too little to fit a table of latencies from",
                where="latency",
                expected=f"at least {LEAST} models with a time each",
                got=f"{len(models)} models, {len(seconds)} times",
                fix="time more models of the family",
            )
        kinds = sorted({one.kind for model in models for one in model})
        features = np.array([_features(model, kinds) for model in models])
        times = np.array(seconds)
        errors = []
        for left in range(len(models)):
            others = np.arange(len(models)) != left
            predicted = float(features[left] @ _solved(features[others], times[others]))
            errors.append(abs(predicted / times[left] - 1))
        found = _solved(features, times)
        costs = {kind: tuple(found[1 + 4 * at : 5 + 4 * at].tolist()) for at, kind in enumerate(kinds)}
        return cls(float(found[0]), costs, median(errors), max(errors), len(models))

    def seconds(self, model: Sequence[Work]) -> float:
        """What a model is predicted to take; operators of kinds that the table has not met count nothing."""
        return self.base + sum(
            float(np.dot(self.costs.get(one.kind, (0.0,) * 4), (1, one.products, one.weights, one.outputs)))
            for one in model
        )

    def as_json(self) -> JsonObject:
        """As JSON."""
        told: dict[str, Any] = {
            "models": self.models,
            "median_error": self.error,
            "worst_error": self.worst,
            "seconds": {_BASE: self.base}
            | {kind: dict(zip(_COSTS, one, strict=True)) for kind, one in self.costs.items()},
        }
        return told

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """From `as_json`.

        Raises:
            MessageError: it is not that.
        """
        try:
            seconds = dict(told["seconds"])
            base = float(seconds.pop(_BASE))
            costs = {
                str(kind): (
                    float(one["each"]),
                    float(one["product"]),
                    float(one["weight"]),
                    float(one["output"]),
                )
                for kind, one in seconds.items()
            }
            found = cls(
                base, costs, float(told["median_error"]), float(told["worst_error"]), int(told["models"])
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MessageError(
                "not a table of latencies",
                where="latency",
                expected="what a search or a profile has written",
                got=f"{type(error).__name__}: {error}",
                fix="take the device's profile again",
            ) from error
        if not all(0 <= one < np.inf for one in (base, *(each for cost in costs.values() for each in cost))):
            raise MessageError(
                "a table of latencies with a figure that cannot be",
                where="latency",
                expected="seconds, at least 0",
                got="a negative or infinite one",
                fix="take the device's profile again",
            )
        return found


def _features(model: Sequence[Work], kinds: Sequence[str]) -> NDArray[np.float64]:
    """`[1 + 4 K]`: one, and of each kind how many operators, products, weights and outputs."""
    found = np.zeros((len(kinds), 4))
    for one in model:
        found[kinds.index(one.kind)] += (1, one.products, one.weights, one.outputs)
    return np.concatenate([[1.0], found.reshape(-1)])


def _solved(features: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The costs; columns are brought to one size first, since products are millions and operators a handful."""
    size = np.maximum(features.max(0), 1e-30)
    found, _ = nnls(features / size / times[:, None], np.ones(len(times)))
    costs: NDArray[np.float64] = found / size
    return costs
