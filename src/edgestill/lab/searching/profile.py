"""What answers take on one kind of hardware: models of a family that were timed there, and the table that is fitted from them.

A profile is taken where the students will run: here, before a search begins, or on a device of the class. It says what each of
some dozen models has to do and how long it took, so that whoever reads it needs neither the models nor the device.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Self, final

import numpy as np

from edgestill.core.errors import DataError
from edgestill.core.family import MAX_MODELS
from edgestill.core.hardware import HardwareClass
from edgestill.core.jsonio import Fields, parse_object
from edgestill.infer.engines import engine_of
from edgestill.infer.outlines import MAX_BYTES, MAX_WORK, VERSION, check_version
from edgestill.infer.profiling import Subject, timed
from edgestill.lab.searching.draft import PRECISIONS, Shape
from edgestill.lab.searching.latency import LEAST, LatencyTable
from edgestill.lab.searching.shape import UNIFORM, Direction
from edgestill.lab.searching.work import Work, work_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgestill.core.protocols import Clock
    from edgestill.lab.searching.draft import Draft, Drafts, Precision

_SHAPES: Final = 14
_NARROWEST, _WIDEST = 0.08, 0.9
_UNEVEN: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One model and its time.

    Attributes:
        precision: of its file.
        work: what it has to do for an answer.
        p50: seconds, the median.
        p95: seconds, 95 of 100 answers.
    """

    precision: Precision
    work: tuple[Work, ...]
    p50: float
    p95: float


@final
class Profile:
    """The latencies of one family of models on one kind of hardware.

    Args:
        hardware_class: where they were timed.
        threads: that shared one operator.
        models: what was timed; at least six of a precision that is to be predicted.

    Attributes:
        tables: precision -> table of the 95th percentile; without those that too few models were timed of.
    """

    def __init__(self, hardware_class: str, threads: int, models: Sequence[Timed]) -> None:
        self.hardware_class, self.threads = hardware_class, threads
        self.models = tuple(models)
        self.tables: dict[Precision, LatencyTable] = {}
        for precision in PRECISIONS:
            own = [one for one in self.models if one.precision == precision]
            if len(own) >= LEAST:
                self.tables[precision] = LatencyTable.fitted(
                    [one.work for one in own], [one.p95 for one in own]
                )
        if not self.tables:
            raise DataError(
                "too few models were timed to predict others",
                where="profile",
                expected=f"at least {LEAST} of one precision",
                got=len(self.models),
                fix="time more shapes",
            )

    def seconds(self, draft: Draft) -> float:
        """Within which 95 of 100 of its answers should come.

        Raises:
            DataError: nothing of its precision was timed.
        """
        table = self.tables.get(draft.shape.precision)
        if table is None:
            raise DataError(
                "no latencies of this precision",
                where="profile",
                expected=", ".join(self.tables),
                got=draft.shape.precision,
                fix="take the profile again",
            )
        return table.seconds(work_of(draft.model))

    @property
    def sentence(self) -> str:
        """What it is and how far it can be trusted."""
        errors = "; ".join(
            f"{name}: {table.models} models, error {table.error:.1%} in the median, {table.worst:.1%} at most"
            for name, table in self.tables.items()
        )
        return f"latencies of {self.hardware_class}, {self.threads} thread{'s' if self.threads > 1 else ''} ({errors})"

    def to_bytes(self) -> bytes:
        """As JSON."""
        told = {
            "version": VERSION,
            "hardware_class": self.hardware_class,
            "threads": self.threads,
            "models": [asdict(one) for one in self.models],
        }
        return json.dumps(told, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str = "profile") -> Self:
        """What `to_bytes`, or `edgestill device profile`, wrote.

        Raises:
            MessageError: it is not that, or of another version. DataError: too few models.
        """
        told = Fields(parse_object(data, where=where, max_bytes=MAX_BYTES), where)
        check_version(told.integer("version"), where)
        return cls(
            HardwareClass(told.text("hardware_class")).name,
            told.integer("threads", least=1, most=256),
            [_timed(one) for one in told.objects("models", at_most=MAX_MODELS)],
        )


def subjects_of(drafts: Drafts, *, seed: int, progress: Callable[[int, int], None] | None) -> list[Subject]:
    """Some shapes of the space, from narrow to wide, each in both precisions: what a profile is taken of.

    Raises:
        ModelError: one cannot be exported or quantised.
    """
    shapes, found = _shapes(drafts, seed), []
    for at, shape in enumerate(shapes):
        model = drafts.of(shape).model
        work = [asdict(one) for one in work_of(model)]
        found.append(Subject(precision=shape.precision, work=work, model=model))
        if progress is not None:
            progress(at + 1, len(shapes))
    return found


def taken_here(
    drafts: Drafts, clock: Clock, *, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> Profile:
    """Times some shapes of the space on this machine, on one thread.

    Raises:
        ModelError: as `subjects_of`.
    """
    subjects = subjects_of(drafts, seed=seed, progress=progress)
    engines = {str(at): engine_of(one.model, drafts.hardware_class.name) for at, one in enumerate(subjects)}
    return Profile.from_bytes(timed(subjects, engines, drafts.shown, clock, drafts.hardware_class))


def _shapes(drafts: Drafts, seed: int) -> list[Shape]:
    """The uniform student and others, by turns."""
    draw = np.random.default_rng(seed)
    space = drafts.space
    found: list[Shape] = []
    for at, scale in enumerate(np.geomspace(_NARROWEST, _WIDEST, _SHAPES).tolist()):
        direction = UNIFORM
        if at % 2:
            direction = Direction(
                shares={one.name: float(np.exp(draw.uniform(np.log(_UNEVEN), 0))) for one in space.knobs},
                left_out={
                    name: int(draw.integers(0, len(places) + 1)) for name, places in space.rows.items()
                },
            )
        found += [Shape(direction=direction, scale=scale, precision=precision) for precision in PRECISIONS]
    return found


def _timed(told: Fields) -> Timed:
    p50 = told.number("p50", least=1e-9, most=1e6)
    precision = told.text("precision", pattern="|".join(PRECISIONS))
    return Timed(
        precision="int8" if precision == "int8" else "floats",
        work=tuple(map(_work, told.objects("work", at_most=MAX_WORK))),
        p50=p50,
        p95=told.number("p95", least=p50, most=1e6),
    )


def _work(told: Fields) -> Work:
    return Work(
        kind=told.text("kind", at_most=80),
        products=told.integer("products"),
        weights=told.integer("weights"),
        outputs=told.integer("outputs"),
    )
