"""int8 only where it costs little: the exported file's own score is compared with the one in floats.

What is tried, one after the other, until the loss is within what is allowed:

1. every layer in int8;
2. the same after training that knows of the codes (`lab.packing.aware`), where the teacher can still be asked;
3. the layers that int8 harms most stay in floats, as few as it takes;
4. all of them do: the file in floats.

What counts is the task's score on held-out samples, as the hardware's engine answers: not how near the weights are. It chooses on
them as well, so that its own figure is a little too kind; whoever wants an unbiased one scores the file on other data.

A version that follows another one on its grid is tried with its changes in steps of several codes first, the coarsest first, for the sake of a small
patch. That is taken where its answers keep what the update changed: how far they are from those of the floats, beyond what int8 costs anyway, may be no
more than a small part of how far the parent's are. Accuracy alone would not tell: an update that gains less than is allowed to be lost could be
left out as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.errors import EngineError, SettingError
from edgestill.infer.confidence import softmax
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.engines import engine_of
from edgestill.lab.measure import Figure, mean_figure, run_model
from edgestill.lab.packing.probabilities import shippable
from edgestill.lab.packing.quantise import layers_of, quantise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from edgestill.core.hardware import HardwareClass
    from edgestill.core.jsonio import JsonObject
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.packing.grid import Grid

COARSE: Final = (8, 6, 4, 3, 2)
"""Codes by whose multiples a weight moves from its parent's; the coarsest first."""
_SHOWN: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What int8 may cost.

    Attributes:
        allowed: points of accuracy, as a share in [0, 1].
        int8: whether it is wanted at all; a small network may be faster in floats.
        forgone: of what an update changes in the answers, the share that may be given up for a smaller patch; 0 gives up nothing.

    Raises:
        SettingError: out of range.
    """

    allowed: float = 0.005
    int8: bool = True
    forgone: float = 0.05

    def __post_init__(self) -> None:
        for name, fix in (
            ("allowed", "0.005 is half a point of accuracy"),
            ("forgone", "0.05 keeps 95 % of what an update changes"),
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(
                    "what int8 may cost is out of range",
                    where=name,
                    expected="0 to 1",
                    got=getattr(self, name),
                    fix=fix,
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One way to write the student down.

    Attributes:
        way: what was done.
        drop: accuracy lost to the student in floats, paired by sample, with its interval over groups.
        size: bytes of the file.
        in_floats: layers that stayed in floats, where not all did.
    """

    way: str
    drop: Figure
    size: int
    in_floats: tuple[str, ...] = ()

    def as_json(self) -> JsonObject:
        """For the lineage and the report."""
        return {
            "way": self.way,
            "drop": self.drop.value,
            "drop_ci95": [self.drop.low, self.drop.high] if self.drop.bounded else None,
            "bytes": self.size,
            "in_floats": list(self.in_floats),
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Written:
    """A student as a file, and how it came to be so.

    Attributes:
        floats: the student's file in floats; another one than was given where it had to be trained on.
        model: the file, with probabilities at temperature 1.
        tried: what was tried, the last of which is the file.
        harm: layer -> mean divergence of the answers, in nats, where that layer alone is in int8; empty where nobody asked.
    """

    floats: bytes
    model: bytes
    tried: tuple[Try, ...]
    harm: dict[str, float]


def written_down(
    floats: bytes,
    heldout: Samples,
    shown: NDArray[np.generic],
    hardware_class: HardwareClass,
    *,
    gate: Gate | None = None,
    grid: Grid | None = None,
    retrain: Callable[[], bytes] | None = None,
) -> Written:
    """The student in int8, as far as that costs no more than is allowed.

    Args:
        floats: the trained student's file, with `logits` and `features`.
        heldout: what its accuracy is compared on.
        shown: `[N, ...]`, inputs that calibrate the quantiser.
        hardware_class: where it will run.
        gate: what int8 may cost; by default half a point.
        grid: of the version that it follows; by default its own. Changes are rounded coarsely where they bear it.
        retrain: gives the file of the student trained on with its numbers rounded; None where that cannot be.

    Raises:
        ModelError: it cannot be quantised.
    """
    gate = gate or Gate()
    trial = _Trial(floats, _Task(heldout, shown, hardware_class, grid), gate)
    if not gate.int8:
        trial.stay_in_floats()
        return trial.end()
    if trial.spares() or trial.passes("int8"):
        return trial.end()
    if retrain is not None:
        trial.take(retrain())
        if trial.passes("int8, trained for it"):
            return trial.end()
        trial.take(floats)
    harm = trial.harm()
    for kept in _more_and_more(sorted(harm, key=lambda one: -harm[one])):
        if trial.passes(f"int8 but for {len(kept)} of {len(harm)} layers", kept):
            return trial.end(harm)
    trial.stay_in_floats()
    return trial.end(harm)


def harm_by_layer(
    floats: bytes,
    inputs: NDArray[np.generic],
    quantised: Callable[[bytes, Iterable[str]], bytes],
) -> dict[str, float]:
    """For each layer, how far the answers move where it alone is in int8: the mean divergence, in nats.

    Args:
        floats: the file in floats.
        inputs: `[N, ...]`, of which some hundred are looked at.
        quantised: gives the file in int8 but for some layers.
    """
    shown = inputs[:_SHOWN]
    wanted = softmax(run_model(OnnxEngine(floats), shown)[0])
    layers = layers_of(floats)

    def moved(layer: str) -> float:
        model = quantised(floats, [one for one in layers if one != layer])
        try:
            return divergence(wanted, softmax(run_model(OnnxEngine(model), shown)[0]))
        except EngineError:
            return inf

    return {layer: moved(layer) for layer in layers}


def divergence(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """The mean Kullback-Leibler divergence of answers `[N, C]` from the wanted ones, in nats."""
    return float((wanted * np.log(_positive(wanted) / _positive(found))).sum(1).mean())


@dataclass(frozen=True, slots=True)
class _Task:
    """What stays the same over all tries."""

    heldout: Samples
    shown: NDArray[np.generic]
    where: HardwareClass
    grid: Grid | None

    def quantised(self, floats: bytes, in_floats: Iterable[str], coarse: int = 1) -> bytes:
        """The file in int8 but for these layers."""
        return quantise(floats, self.shown, self.where, grid=self.grid, coarse=coarse, in_floats=in_floats)

    def answers(self, model: bytes) -> NDArray[np.float32]:
        """Probabilities `[N, C]`."""
        return softmax(run_model(engine_of(model, self.where.name), self.heldout.inputs)[0])

    def right(self, model: bytes) -> NDArray[np.float64]:
        """`[N]`, 1 where the file answers right."""
        hits: NDArray[np.float64] = (self.answers(model).argmax(1) == self.heldout.labels).astype(np.float64)
        return hits


class _Trial:
    """What has been tried so far, and the last file."""

    def __init__(self, floats: bytes, task: _Task, gate: Gate) -> None:
        self._task, self._gate = task, gate
        self._tried: list[Try] = []
        self._model = b""
        self._floats = floats
        self._wanted = task.right(floats)

    def take(self, floats: bytes) -> None:
        """Goes on with this one."""
        self._floats = floats

    def passes(self, way: str, in_floats: tuple[str, ...] = ()) -> bool:
        """Whether the file that comes of it costs no more than is allowed; one that no engine takes costs all there is."""
        try:
            model = shippable(self._task.quantised(self._floats, in_floats))
            found = self._task.right(model)
        except EngineError:
            model, found = b"", np.zeros_like(self._wanted)
            way += ", which the engine refuses"
        self._model = model
        return self._note(way, in_floats, found) <= self._gate.allowed

    def spares(self) -> bool:
        """Whether the changes of an update can be told coarsely; the file is the coarsest of those that keep them."""
        grid = self._task.grid
        if grid is None or not grid.codes or not self._gate.forgone:
            return False
        try:
            return self._settles_on(grid)
        except EngineError:  # the ways that follow say so
            return False

    def _settles_on(self, grid: Grid) -> bool:
        task = self._task
        wanted = task.answers(self._floats)
        least = divergence(wanted, task.answers(shippable(task.quantised(self._floats, ()))))
        most = least + self._gate.forgone * max(0.0, divergence(wanted, task.answers(grid.file)) - least)
        for coarse in COARSE:
            model = shippable(task.quantised(self._floats, (), coarse))
            if divergence(wanted, task.answers(model)) > most:
                continue
            self._model = model
            if self._note(f"int8, changes in steps of {coarse}", (), task.right(model)) <= self._gate.allowed:
                return True
        return False

    def stay_in_floats(self) -> None:
        """All layers do."""
        self._model = shippable(self._floats)
        self._note("floats", (), self._task.right(self._model))

    def harm(self) -> dict[str, float]:
        """As `harm_by_layer`."""
        return harm_by_layer(self._floats, self._task.heldout.inputs, self._task.quantised)

    def end(self, harm: dict[str, float] | None = None) -> Written:
        """What came of it."""
        return Written(
            floats=self._floats,
            model=self._model,
            tried=tuple(self._tried),
            harm=harm or {},
        )

    def _note(self, way: str, in_floats: Iterable[str], right: NDArray[np.float64]) -> float:
        lost = mean_figure(self._wanted - right, self._task.heldout.groups)
        self._tried.append(Try(way=way, drop=lost, size=len(self._model), in_floats=tuple(in_floats)))
        return lost.value


def _more_and_more(layers: list[str]) -> Iterator[tuple[str, ...]]:
    """The first one, the first two, four, ...: all but the last at most."""
    counts = accumulate(range(len(layers)), lambda count, _: count * 2, initial=1)
    for count in counts:
        if count >= len(layers):
            return
        yield tuple(layers[:count])


def _positive(shares: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.maximum(shares, 1e-12)
