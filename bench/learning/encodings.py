"""What a head loses when its sums are sent in fewer bytes: element types, coordinates of the reference, and how many of them are kept.

Ten devices with labels spread by a Dirichlet distribution of 0.5 send one message each; the sum is solved at three ridges (shares of the
mean square of a feature). The same samples in one place give the central head. Told are: accuracy on samples that nobody has, the root
mean square by which scores differ from the central head's (targets are 0 and 1), the share of answers that differ, and bytes a message.
Where the sum has no solution at a ridge, that is told.

`four bits` is no format of ours: what would come of codes of four bits instead of eight, in the same coordinates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.core.errors import EvidenceError
from edgestill.learn import encodings as codes
from edgestill.learn.coordinates import Coordinates
from edgestill.learn.statistics import Statistics, solve, usual_ridge
from learning.frozen import Frozen, cifar10, digits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

RIDGES: Final = (1e-4, 1e-3, 1e-2)
SEEDS: Final = (0, 1, 2)
DEVICES: Final = 10
SKEW: Final = 0.5


def measured(data: Path, _folder: Path, *, quick: bool = False) -> dict[str, Any]:
    """Data and width -> way -> figures, the mean over seeds."""
    worlds: dict[str, Callable[[], Frozen]] = {
        "digits, 64": lambda: digits(64),
        "digits, 256": lambda: digits(256),
        "cifar10, 64": lambda: cifar10(data, 64, quick=quick),
        "cifar10, 256": lambda: cifar10(data, 256, quick=quick),
        "cifar10, 512": lambda: cifar10(data, 512, quick=quick),
    }
    chosen = ["digits, 64"] if quick else list(worlds)
    return {name: _world(worlds[name](), SEEDS[:1] if quick else SEEDS) for name in chosen}


def _world(one: Frozen, seeds: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    reference = one.reference.sums()
    width = reference.features
    for seed in seeds:
        parts = [part.sums() for part in one.dealt(devices=DEVICES, skew=SKEW, seed=seed) if len(part.labels)]
        for name, (sent, size) in _ways(parts, reference, width).items():
            entry = found.setdefault(name, {"bytes": size, "ridges": {}})
            for ridge in RIDGES:
                entry["ridges"].setdefault(str(ridge), []).append(_compared(one, parts, sent, ridge))
    return {
        name: {
            "bytes": entry["bytes"],
            "ridges": {ridge: _mean(told) for ridge, told in entry["ridges"].items()},
        }
        for name, entry in found.items()
    }


def _ways(
    parts: Sequence[Statistics], reference: Statistics, width: int
) -> dict[str, tuple[Statistics, int]]:
    """Name of a way -> the sum as it arrives, of features, and the bytes of one message."""
    ways: dict[str, tuple[Statistics, int]] = {}
    for dtype in ("float64", "float32", "float16", "int8"):
        ways[dtype] = _sent(parts, dtype, None)
    for kept in (width, width // 2, width // 4):
        coordinates = Coordinates.of(reference, kept)
        for dtype in ("float32", "int8"):
            ways[f"{dtype}, {kept} coordinates"] = _sent(parts, dtype, coordinates)
    levels = codes._LEVELS  # noqa: SLF001  # the same code with fewer of them
    try:
        codes._LEVELS = 7  # type: ignore[misc]  # noqa: SLF001  # as above
        sent, _ = _sent(parts, "int8", Coordinates.of(reference, width))
    finally:
        codes._LEVELS = levels  # type: ignore[misc]  # noqa: SLF001  # as above
    size = (width * (width - 1) // 2 + width * reference.classes) // 2
    ways[f"four bits, {width} coordinates"] = (sent, size)
    return ways


def _sent(parts: Sequence[Statistics], dtype: Any, coordinates: Coordinates | None) -> tuple[Statistics, int]:
    total, size = None, 0
    for one in parts:
        data = (one if coordinates is None else coordinates.project(one)).to_bytes(dtype)
        size = max(size, len(data))
        arrived = Statistics.from_bytes(data)
        total = arrived if total is None else total + arrived
    assert total is not None
    return total if coordinates is None else coordinates.lift(total), size


def _compared(one: Frozen, parts: Sequence[Statistics], sent: Statistics, ridge: float) -> dict[str, float]:
    central = parts[0]
    for part in parts[1:]:
        central = central + part
    own = solve(central, ridge=usual_ridge(central, ridge))
    scores = one.test.features @ own.weight + own.bias
    told = {"central": one.test.right(own)}
    try:
        head = solve(sent, ridge=usual_ridge(central, ridge))
    except EvidenceError:
        return told | {"accuracy": float("nan"), "rms": float("nan"), "differ": float("nan")}
    other = one.test.features @ head.weight + head.bias
    return told | {
        "accuracy": one.test.right(head),
        "rms": float(np.sqrt(((other - scores) ** 2).mean())),
        "differ": 100 * float((other.argmax(axis=1) != scores.argmax(axis=1)).mean()),
    }


def _mean(told: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """The mean over seeds; None where one has no solution."""
    means = {name: float(np.mean([one[name] for one in told])) for name in told[0]}
    return {name: None if np.isnan(value) else round(value, 4) for name, value in means.items()}


def figures(part: dict[str, Any]) -> dict[str, float]:
    """What `int8` in all coordinates, which jobs write into their bundles, changes of the central head's answers: the worst of data and ridges."""
    shipped = [
        told
        for name, ways in part.items()
        for told in ways[f"int8, {name.rpartition(' ')[2]} coordinates"]["ridges"].values()
    ]
    return {
        "int8_differ_percent": round(max(one["differ"] for one in shipped), 2),
        "int8_cost_points": round(max(one["central"] - one["accuracy"] for one in shipped), 2),
    }
