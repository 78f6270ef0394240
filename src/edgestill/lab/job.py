"""A whole distillation as one TOML file, and what comes of it as one folder.

    [teacher]                     a model by name (`lab.models`), with its weights
    [student]                     the same; or `carve = 0.25`, to be cut out of the teacher
    [data]                        an npz file, or a callable
    [recipe]                      how (`lab.recipe`)
    [runtime]                     where (`lab.training.runtime`); optional
    [compare]                     with plain training on a slice first (`lab.compare`); optional
    [budget]                      what the bundle must keep (`core.budget`); optional

The folder holds `student.safetensors`, the bundle where the data are labelled classes, `report.json`, `log.csv`, the
teacher's answers and the newest checkpoint. The same job in the same folder goes on where it was stopped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path  # noqa: TC003  # `from_table` reads the annotations
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import numpy as np

from edgestill.core.budget import Budget
from edgestill.core.bundle import replace as write_whole
from edgestill.core.clock import SystemClock
from edgestill.core.errors import PathError, SettingError
from edgestill.core.extras import require
from edgestill.lab.compare import Slice
from edgestill.lab.data.samples import Samples
from edgestill.lab.data.source import ArraySource, Ask
from edgestill.lab.distil import Run, distill
from edgestill.lab.inherit import carve
from edgestill.lab.jobdata import DataName
from edgestill.lab.measure import mean_figure
from edgestill.lab.models import ModelName
from edgestill.lab.recipe import Recipe
from edgestill.lab.score import scores
from edgestill.lab.settings import Table, from_table, nearest, read_toml
from edgestill.lab.training.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from edgestill.core.jsonio import JsonObject
    from edgestill.lab.data.source import Inputs, Source
    from edgestill.lab.measure import Figure

T = TypeVar("T")

_TABLES: Final = ("teacher", "student", "data", "recipe", "runtime", "compare", "budget")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentName:
    """Which student.

    Attributes:
        model: as the teacher's; empty where it is carved.
        arguments: what the callable is given.
        weights: file with its first weights.
        inherit: whether it begins as a part of the teacher.
        carve: share of each layer's units that it keeps of the teacher; 0 where `model` names one.
    """

    model: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    inherit: bool = True
    carve: float = 0.0

    def __post_init__(self) -> None:
        if bool(self.model) == (self.carve != 0) or not 0 <= self.carve < 1:
            raise SettingError(
                "a student is named or carved",
                where="student",
                expected="model = NAME, or carve = a share of more than 0 and less than 1",
                got=f"model {self.model!r}, carve {self.carve:g}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything a distillation needs.

    Attributes:
        folder: of the file; what paths in it are relative to.
        teacher: the large model.
        student: the small one.
        data: what it is taught on.
        recipe: how.
        runtime: where.
        compare: how much is spent on comparing with plain training; None for nothing.
        budget: what the bundle must keep, or None.
    """

    folder: Path
    teacher: ModelName
    student: StudentName
    data: DataName
    recipe: Recipe
    runtime: Runtime
    compare: Slice | None
    budget: Budget | None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file.

        Raises:
            PathError: it cannot be read. SettingError: not TOML, or a table or key that is unknown, missing or wrong.
        """
        tables, where = read_toml(path), str(path)
        for name in tables:
            if name not in _TABLES:
                raise SettingError(
                    "unknown table in a job",
                    where=f"{where}: {name}",
                    fix=nearest(name, dict.fromkeys(_TABLES)),
                )
        folder = path.resolve().parent
        budget = _table(tables, "budget", where, wanted=False)
        compare = _table(tables, "compare", where, wanted=False)
        return cls(
            folder=folder,
            teacher=_read(ModelName, tables, "teacher", where=where, folder=folder),
            student=_read(StudentName, tables, "student", where=where, folder=folder),
            data=_read(DataName, tables, "data", where=where, folder=folder),
            recipe=Recipe.from_mapping(_table(tables, "recipe", where) or {}, where=where),
            runtime=from_table(
                Runtime,
                _table(tables, "runtime", where, wanted=False) or {},
                where=where,
                what="a runtime",
                folder=folder,
            ),
            compare=None
            if compare is None
            else from_table(Slice, compare, where=where, what="a comparison", folder=folder),
            budget=None
            if budget is None
            else Budget.parse(",".join(f"{name}={value}" for name, value in budget.items())),
        )

    def run(self, out: Path, *, progress: Callable[[int, int, float], None] | None = None) -> JsonObject:
        """Does it, and returns the report.

        Args:
            out: the folder for everything that comes of it.
            progress: as `distill`'s.

        Raises:
            PathError: the folder cannot be written. Whatever `distill` and `Run.pack` raise.
        """
        _make(out)
        clock, start = SystemClock(), SystemClock().monotonic()
        teacher = self.teacher.load(self.folder)
        train, heldout = self.data.load(self.folder, self.recipe.seed)
        student, inherit = self._student(teacher, train)
        runtime = replace(
            self.runtime,
            checkpoint=self.runtime.checkpoint or out / "checkpoint",
            log=self.runtime.log or out / "log.csv",
        )
        run = distill(
            teacher,
            train,
            validation=heldout,
            student=student,
            recipe=self.recipe,
            budget=self.budget,
            inherit=inherit,
            ask=self.data.ask,
            cache=out / "cache",
            against=self.compare,
            runtime=runtime,
            progress=progress,
        )
        save = require("safetensors.torch", extra="lab", purpose="to write weights").save
        weights = {name: one.contiguous() for name, one in run.student.state_dict().items()}
        write_whole(out / "student.safetensors", save(weights))
        packable = isinstance(run.train, Samples) and isinstance(run.validation, Samples)
        bundle = run.save_bundle(out / "student.esb") if packable else None
        report = _report(run, bundle, seconds=clock.monotonic() - start)
        write_whole(out / "report.json", json.dumps(report, indent=1).encode())
        return report

    def _student(self, teacher: nn.Module, train: Samples | Source) -> tuple[nn.Module, bool]:
        """The student, and whether it has yet to inherit."""
        name = self.student
        if name.model:
            return ModelName(model=name.model, arguments=name.arguments, weights=name.weights).load(
                self.folder
            ), name.inherit
        student, _ = carve(
            teacher,
            _one(train),
            ratio=name.carve,
            selection=self.recipe.inherit,
            seed=self.recipe.seed,
        )
        return student, False


def _table(tables: Table, name: str, where: str, *, wanted: bool = True) -> Table | None:
    found = tables.get(name)
    if found is None and not wanted:
        return None
    if not isinstance(found, dict):
        raise SettingError("a table is missing in a job", where=where, expected=f"[{name}]", got=found)
    return found


def _read(kind: type[T], tables: Table, name: str, *, where: str, folder: Path) -> T:
    table = _table(tables, name, where) or {}
    return from_table(kind, table, where=f"{where}: {name}", what=f"a {name}", folder=folder)


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PathError(
            "cannot make the folder for the results", where=out, got=error.strerror, fix="give another one"
        ) from error


def _one(train: Samples | Source) -> Inputs:
    source = ArraySource.of(train) if isinstance(train, Samples) else train
    return next(iter(source.batches([Ask(np.zeros(1, np.int64))]))).inputs


def _report(run: Run, bundle: Path | None, *, seconds: float) -> JsonObject:
    """What was measured, with intervals over groups."""
    held = run.validation
    groups = held.groups if isinstance(held, Samples) else np.arange(len(held))
    source = ArraySource.of(held) if isinstance(held, Samples) else held
    figures: JsonObject = {}
    if source.labelled:
        for name, model in (("teacher", run.teacher), ("student", run.student)):
            figures |= _figure(name, mean_figure(scores(model, source), groups))
    sizes = {
        name: sum(one.numel() for one in model.parameters())
        for name, model in (("teacher", run.teacher), ("student", run.student))
    }
    return {
        "task": source.task,
        "figures": figures,
        "parameters": {**sizes, "ratio": sizes["teacher"] / max(1, sizes["student"])},
        "comparison": None if run.comparison is None else run.comparison.as_json(),
        "recipe": run.recipe.as_json(),
        "bundle": None if bundle is None else {"file": bundle.name, "bytes": bundle.stat().st_size},
        "seconds": round(seconds, 1),
    }


def _figure(name: str, one: Figure) -> JsonObject:
    return {
        f"{name}_score": one.value,
        f"{name}_score_n": one.n,
        f"{name}_score_ci95": [one.low, one.high],
    }
