"""The same file on several engines: do they answer alike, and which is the fastest here?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from edgestill.core.errors import EdgestillError
from edgestill.infer.engines import engine_of, installed
from edgestill.infer.golden import probe
from edgestill.infer.timing import time_engines

if TYPE_CHECKING:
    from edgestill.core.footprint import Latency
    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Clock, Engine
    from edgestill.infer.golden import Golden


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How one engine ran a bundle's model.

    Attributes:
        name: of the engine.
        difference: of its probabilities from the golden ones, at most; infinite where it gave none.
        tolerance: what that may be.
        latency: of one answer; None where it could not be had.
        refused: why it did not run, or empty.
    """

    name: str
    difference: float
    tolerance: float
    latency: Latency | None
    refused: str = ""

    @property
    def agrees(self) -> bool:
        """Whether it answers the golden questions as the bundle says."""
        return not self.refused and self.difference <= self.tolerance

    def as_json(self) -> JsonObject:
        """For `--json`."""
        latency = self.latency
        return {
            "engine": self.name,
            "agrees": self.agrees,
            "difference": None if self.refused else self.difference,
            "tolerance": self.tolerance,
            "p50": None if latency is None else latency.p50.value,
            "p95": None if latency is None else latency.p95.value,
            "refused": self.refused or None,
        }


def compared(model: bytes, golden: Golden, clock: Clock, *, threads: int = 1) -> list[Ran]:
    """What each installed engine makes of a model: those that agree first, the fastest before the others.

    Args:
        model: the ONNX file.
        golden: its questions and answers.
        clock: read before and after each answer.
        threads: that share one operator.
    """
    found: dict[str, Ran] = {}
    engines: dict[str, Engine] = {}
    for name in installed():
        try:
            engine = engine_of(model, name, threads=threads)
            asked = probe(engine, golden, clock)
        except EdgestillError as error:
            found[name] = Ran(
                name=name,
                difference=inf,
                tolerance=golden.tolerance,
                latency=None,
                refused=str(error),
            )
            continue
        engines[name] = engine
        found[name] = Ran(name=name, difference=asked.difference, tolerance=asked.tolerance, latency=None)
    times = time_engines(engines, golden.input, clock=clock, threads=threads) if engines else {}
    ran = [replace(one, latency=times.get(name)) for name, one in found.items()]
    return sorted(ran, key=lambda one: (not one.agrees, one.latency.p50.value if one.latency else inf))
