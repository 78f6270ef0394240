"""A whole distillation as one TOML file, and what comes of it as one folder.

    [teacher]                     a model by name (`lab.models`), with its weights
    [student]                     the same; or `carve = 0.25`, to be cut out of the teacher; left out, the budget says how much
    [data]                        an npz file, or a callable (`lab.jobdata`)
    [recipe]                      how (`lab.recipe`)
    [runtime]                     where (`lab.training.runtime`); optional
    [compare]                     with plain training on a slice first (`lab.compare`); optional
    [budget]                      what the bundle must keep (`core.budget`); optional
    [search]                      how hard `edgestill search` looks for the best student (`lab.searching.settings`); optional
    [bundle]                      where the bundle will run, and what may leave the device; optional
    [bundle.on_drift]             what devices do once their world has changed (`infer.reaction`); optional
    [bundle.statistics]           how they send their sums (`core.sharing`), in `[bundle.statistics.noise]` with which noise; optional

The folder holds `student.safetensors`, the bundle where the model tells classes from one input, `report.json`, `log.csv`, the
teacher's answers and the newest checkpoint. The same job in the same folder goes on where it was stopped.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path  # noqa: TC003  # `from_table` reads the annotations
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, get_args

from edgestill.core.budget import Budget
from edgestill.core.bundle import PUBLIC, Bundle
from edgestill.core.bundle import replace as write_whole
from edgestill.core.clock import SystemClock
from edgestill.core.errors import DataError, PathError, SettingError, within
from edgestill.core.hardware import HardwareClass
from edgestill.core.manifest import NAME, VERSION
from edgestill.core.sharing import Sharing
from edgestill.infer.policy import Leaves, Policy
from edgestill.infer.reaction import Reaction
from edgestill.lab.compare import Slice
from edgestill.lab.distil import distill
from edgestill.lab.fits import as_source, check_data, check_model, first_inputs
from edgestill.lab.gradient.optimisers import OPTIMISERS
from edgestill.lab.gradient.step import Training
from edgestill.lab.inherit import carve
from edgestill.lab.jobdata import DataName
from edgestill.lab.jobreport import bundle_of, report_of
from edgestill.lab.models import ModelName, save_weights
from edgestill.lab.packing.adapter import check_enough
from edgestill.lab.packing.calibrate import FEWEST
from edgestill.lab.packing.material import check_packable
from edgestill.lab.progress import shown
from edgestill.lab.recipe import Recipe
from edgestill.lab.run import FIRST
from edgestill.lab.searching.settings import Search
from edgestill.lab.searching.workshop import fitted_student, needed
from edgestill.lab.settings import Table, from_table, nearest, read_toml
from edgestill.lab.training.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from edgestill.core.jsonio import JsonObject
    from edgestill.lab.jobdata import Data
    from edgestill.lab.packing.assemble import Packed
    from edgestill.lab.packing.gate import Gate
    from edgestill.lab.progress import Show
    from edgestill.lab.run import Run

T = TypeVar("T")

_TABLES: Final = ("teacher", "student", "data", "recipe", "runtime", "compare", "budget", "search", "bundle")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentName:
    """Which student.

    Attributes:
        model: as the teacher's; empty where it is carved.
        arguments: what the callable is given.
        weights: file with its first weights.
        inherit: whether it begins as a part of the teacher; by default where it has no weights of its own.
        carve: share of each layer's units that it keeps of the teacher; 0 where `model` names one.
    """

    model: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    inherit: bool | None = None
    carve: float = 0.0

    def __post_init__(self) -> None:
        if bool(self.model) == (self.carve != 0) or not 0 <= self.carve < 1:
            raise SettingError(
                "a student is named or carved",
                expected="model = NAME, or carve = a share of more than 0 and less than 1",
                got=f"model {self.model!r}, carve {self.carve:g}",
                where="student",
                fix="keep one of the two",
            )
        own = bool(self.arguments) or self.weights is not None or self.inherit is not None
        if (self.carve and own) or (self.weights is not None and self.inherit):
            raise SettingError(
                "a student begins in one way",
                expected="carve alone; or a model with weights, or with inherit = true",
                got=", ".join(
                    one for one in ("carve", "arguments", "weights", "inherit") if getattr(self, one)
                ),
                where="student",
                fix="keep one of these",
            )

    @property
    def inherits(self) -> bool:
        """Whether it has yet to begin as a part of the teacher; a carved one has."""
        wanted = self.weights is None if self.inherit is None else self.inherit
        return bool(self.model) and wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleWish:
    """What a bundle is called and made for.

    Attributes:
        name: of the model, and of the file: `NAME.esb`. Small letters, digits, `-` and `_`.
        version: `MAJOR.MINOR.PATCH`; a hub takes each version of a name once.
        follows: the bundle of the version before, whose grid is kept so that the patch is small; the budget's `update` bounds it.
        hardware_class: where it will run, such as `aarch64-dotprod-onnxruntime`; empty for this machine's.
        leaves: what may leave the device: `nothing`, `features` (for an adapter, which is trained and goes to the hub) or `raw`.
        lossy: whether pictures may lose something on their way to the teacher, to be fewer bytes (JPEG).
        bytes_per_day: of questions that a device sends, at most; None leaves it open.
        train: what devices may train: `head`, `last=N`, `biases`, `all`, or names with wildcards; empty for nothing.
        train_with: the optimiser, `sgd` (with momentum) or `adam`.
        train_rate: learning rate that devices begin with.
        on_drift: a table: what devices do once they are sure that their world has changed.
        statistics: a table: how devices send their sums.
    """

    name: str = "student"
    version: str = FIRST
    follows: Path | None = None
    hardware_class: str = ""
    leaves: Leaves = "raw"
    lossy: bool = False
    bytes_per_day: int | None = None
    train: str = ""
    train_with: str = "sgd"
    train_rate: float = 0.01
    on_drift: Reaction = field(default_factory=Reaction)
    statistics: Sharing = field(default_factory=Sharing)

    def __post_init__(self) -> None:
        _ = self.training  # which checks
        if self.leaves not in get_args(Leaves):
            raise SettingError(
                "a bundle's value is out of range",
                where="leaves",
                expected=", ".join(get_args(Leaves)),
                got=self.leaves,
                fix="leave it out where you are unsure",
            )
        for what, value, pattern in (("name", self.name, NAME), ("version", self.version, VERSION)):
            if re.fullmatch(pattern, value) is None:
                raise SettingError(
                    "a bundle's value is out of range",
                    where=what,
                    expected=f"text that matches {pattern}",
                    got=repr(value[:80]),
                    fix="name it like camera, in version 1.0.0",
                )
        self._check_leaves()
        if self.follows is not None:
            Bundle.open(self.follows).verify()  # rather than after the training
        if self.hardware_class:
            HardwareClass(self.hardware_class)

    def _check_leaves(self) -> None:
        """Refuses what could have no effect: nobody shall believe that it had."""
        if self.leaves != "raw" and "audit" in self.on_drift.do:
            raise SettingError(
                "audits where the teacher cannot be asked",
                where="on_drift: do",
                expected='learn, report; or leaves = "raw"',
                got=f'audit, with leaves = "{self.leaves}"',
                fix="leave audit out, or let inputs leave",
            )
        if self.leaves == "nothing" and self.statistics != Sharing():
            raise SettingError(
                "how sums are sent, where none are",
                where="statistics",
                expected='no such table; or leaves = "features" or "raw"',
                got='leaves = "nothing"',
                fix="leave the table out, or let sums leave",
            )

    @property
    def file(self) -> str:
        """The bundle's."""
        return f"{self.name}.esb"

    def packed(self, run: Run, policy: Policy) -> Packed:
        """The bundle of a run; errors as `Run.pack`."""
        origin = run.origin(self.name, self.version)
        return run.pack(
            policy,
            origin=origin,
            hardware_class=self.where,
            follows=self.follows,
            training=self.training,
        )

    @property
    def training(self) -> Training | None:
        """What devices may train; SettingError where that is out of range."""
        if self.train_with not in OPTIMISERS:
            raise SettingError(
                "an optimiser of another name",
                where="train_with",
                expected=", ".join(OPTIMISERS),
                got=self.train_with,
                fix="leave it out for sgd",
            )
        wanted = Training(trainable=self.train, optimiser=OPTIMISERS[self.train_with](), rate=self.train_rate)
        return wanted if self.train else None

    @property
    def where(self) -> HardwareClass | None:
        """The class, or None for this machine's."""
        return HardwareClass(self.hardware_class) if self.hardware_class else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything a distillation needs.

    Attributes:
        folder: of the file; what paths in it are relative to.
        teacher: the large model.
        student: the small one; None for the largest part of the teacher that keeps the budget.
        data: what it is taught on.
        recipe: how.
        runtime: where.
        compare: how much is spent on comparing with plain training; None for nothing.
        budget: what the bundle must keep, or None.
        search: how hard is searched, where that is asked for.
        bundle: what it is made for.
    """

    folder: Path
    teacher: ModelName
    student: StudentName | None
    data: DataName
    recipe: Recipe
    runtime: Runtime
    compare: Slice | None
    budget: Budget | None
    search: Search
    bundle: BundleWish

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
                    expected=", ".join(_TABLES),
                    got=repr(name),
                )
        read = _Reader(tables, where, path.resolve().parent)
        recipe = read.table("recipe")
        _check_asks(recipe, where)
        return cls(
            folder=read.folder,
            teacher=read.one(ModelName, "teacher"),
            student=read.one(StudentName, "student") if "student" in tables else None,
            data=read.one(DataName, "data"),
            recipe=Recipe.from_mapping(recipe, where=f"{where}: recipe"),
            runtime=read.one(Runtime, "runtime") if "runtime" in tables else Runtime(),
            compare=read.one(Slice, "compare") if "compare" in tables else None,
            budget=read.budget() if "budget" in tables else None,
            search=read.one(Search, "search") if "search" in tables else Search(),
            bundle=read.one(BundleWish, "bundle") if "bundle" in tables else BundleWish(),
        )

    def run(self, out: Path, *, progress: Show | None = None) -> JsonObject:
        """Does it, and returns the report.

        Whatever is done stays done: weights are written before the report, the report before the bundle.

        Args:
            out: the folder for everything that comes of it.
            progress: as `distill`'s.

        Raises:
            PathError: the folder cannot be written. Whatever `distill` and `Run.pack` raise.
        """
        if self.student is None:
            needed(self.budget)
        make_folder(out)
        clock, start = SystemClock(), SystemClock().monotonic()
        teacher = self.teacher.load(self.folder, self.recipe.seed)
        data = self.data.load(self.folder, self.recipe.seed)
        missing = _missing_for_bundle(data, self.bundle.leaves)
        train, heldout = as_source(data.train, "train"), as_source(data.heldout, "validation")
        check_data(train, heldout)
        check_model("teacher", teacher, train, heldout)
        policy = self.policy_for(data, heldout.outputs)
        student, gate = self._student(teacher, data, out, policy, progress)
        run = distill(
            teacher,
            data.train,
            validation=data.heldout,
            student=student,
            recipe=self.recipe,
            budget=self.budget,
            inherit=self.student is None or self.student.inherits,
            ask=self.data.ask,
            cache=out / "cache",
            against=self.compare,
            runtime=self._runtime(out),
            progress=progress,
        )
        run = replace(run, gate=gate)
        report = report_of(run, seconds=clock.monotonic() - start)
        if not Runtime.leads():
            return report
        save_weights(run.student, out / "student.safetensors")
        write_report(out, report)
        if missing:
            report["bundle"] = {"file": None, "why": missing}
        else:
            report["bundle"] = bundle_of(self.bundle.packed(run, policy).save(out / self.bundle.file))
        report["seconds"] = round(clock.monotonic() - start, 1)
        write_report(out, report)
        return report

    def _runtime(self, out: Path) -> Runtime:
        return replace(
            self.runtime,
            checkpoint=self.runtime.checkpoint or out / "checkpoint",
            log=self.runtime.log or out / "log.csv",
        )

    def policy_for(self, data: Data, classes: int) -> Policy:
        """With names for the classes; asking as often as the budget allows."""
        labels = data.labels or tuple(f"class {one}" for one in range(classes))
        wish = self.bundle
        policy = Policy(
            labels=labels,
            leaves=wish.leaves,
            lossy=wish.lossy,
            bytes_per_day=wish.bytes_per_day,
            on_drift=wish.on_drift,
            statistics=wish.statistics,
        )
        share = None if self.budget is None else self.budget.escalation
        if share is None:
            return policy
        return replace(policy, escalation_share=share, audit_share=min(policy.audit_share, share))

    def _student(
        self, teacher: nn.Module, data: Data, out: Path, policy: Policy, progress: Show | None
    ) -> tuple[Callable[[int], nn.Module], Gate | None]:
        """The student of a seed, which may have yet to inherit; and what int8 may cost it."""
        name = self.student
        if name is None:
            return fitted_student(
                teacher,
                data.train,
                data.heldout,
                budget=self.budget,
                recipe=self.recipe,
                folder=out,
                hardware_class=self.bundle.where,
                policy=policy,
                progress=shown(progress, "profiling"),
            )
        if name.model:
            named = ModelName(model=name.model, arguments=name.arguments, weights=name.weights)
            return lambda seed: named.load(self.folder, seed), None
        example = first_inputs(as_source(data.train, "train"), 1)
        return lambda seed: carve(
            teacher, example, ratio=name.carve, selection=self.recipe.inherit, seed=seed
        )[0], None


@dataclass(frozen=True, slots=True)
class _Reader:
    """The tables of one file."""

    tables: Table
    where: str
    folder: Path

    def table(self, name: str) -> Table:
        found = self.tables.get(name)
        if not isinstance(found, dict):
            raise SettingError(
                "a table is missing in a job",
                where=self.where,
                expected=f"[{name}]",
                got="nothing" if found is None else repr(found)[:80],
                fix=f"add [{name}]; docs/job.md shows a whole job",
            )
        return found

    def one(self, kind: type[T], name: str) -> T:
        where = f"{self.where}: {name}"
        return from_table(kind, self.table(name), where=where, what=f"a {name}", folder=self.folder)

    def budget(self) -> Budget:
        texts = self.one(_BudgetTable, "budget")
        with within(self.where):  # an error names the quantity, and cannot know the file
            return Budget(**{name: value for name, value in asdict(texts).items() if value})


@dataclass(frozen=True, slots=True, kw_only=True)
class _BudgetTable:
    """The quantities of a budget as people write them, with their units."""

    size: str = ""
    latency: str = ""
    memory: str = ""
    update: str = ""
    escalation: str = ""


def make_folder(out: Path) -> None:
    """Makes the folder, and tries to write there: what is found now need not be found after the training."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise PathError(
            "cannot write into the folder for the results",
            where=out,
            got=error.strerror,
            fix="give another one",
            expected="a writable folder with room",
        ) from error


def _check_asks(recipe: Table, where: str) -> None:
    """A teacher is named, so it is asked, unless the file says that it is not."""
    if "soft_weight" not in recipe and "hint" not in recipe:
        raise SettingError(
            "a recipe that does not say how much the teacher counts",
            where=f"{where}: recipe",
            expected="soft_weight, in [0, 1]",
            got="none",
            fix="write for instance soft_weight = 0.7; 0 trains the student plainly",
        )


def _missing_for_bundle(data: Data, leaves: Leaves) -> str | None:
    """Why there will be no bundle; None where there will.

    Raises:
        DataError: too little data to calibrate one, or to train its adapter, which would be found only after the training.
    """
    try:
        for one, where in ((data.train, "train"), (data.heldout, "validation")):
            check_packable(one, where)
    except SettingError as error:
        return f"bundles are for {error.expected}; this is {error.got}"
    heldout = as_source(data.heldout, "validation")
    if not heldout.labelled:
        return "the held-out data has no labels to calibrate it with"
    if len(heldout) < FEWEST:
        raise DataError(
            "too little held-out data to calibrate a bundle",
            where="data",
            expected=f"at least {FEWEST} samples",
            got=len(heldout),
            fix="bring more as x_validation and y_validation, or raise `validation`",
        )
    if leaves == "features":
        check_enough(len(as_source(data.train, "train")))
    return None


def write_report(out: Path, report: JsonObject) -> None:
    """As `report.json`, whole or not at all."""
    write_whole(out / "report.json", json.dumps(report, indent=1).encode(), mode=PUBLIC)
