"""How to train and distil: frozen, versioned, readable from TOML.

An unknown key is an error that names the nearest known one: a misspelt `lr` must never be a silent default.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self, get_args

from edgestill.core.digest import Digest
from edgestill.core.errors import SettingError
from edgestill.core.jsonio import JsonObject, canonical
from edgestill.lab.loss.hint import Channels, Hint
from edgestill.lab.loss.objective import Method, Objective
from edgestill.lab.settings import check_types, from_table, read_toml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgestill.lab.data.source import Task

Optimiser = Literal["sgd", "adamw"]
Schedule = Literal["constant", "cosine", "one-cycle"]
Selection = Literal["random", "uniform", "first", "magnitude"]

VERSION: Final = 1
"""Of the recipe's keys and what they mean; a file that names another one is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training run.

    Attributes:
        epochs: passes over the data.
        batch: samples a step.
        optimiser: `sgd` (plain, with `momentum`) or `adamw`.
        lr: the learning rate; the peak one where a schedule varies it.
        momentum: of SGD.
        weight_decay: of either optimiser.
        schedule: of the learning rate over the steps.
        average_tail: share of the last steps whose weights are averaged into the result (Polyak and Juditsky 1992);
            0 takes the last step's. Needs a network without BatchNorm, whose statistics belong to one set of weights, or frozen ones.
        frozen_statistics: whether BatchNorm keeps the statistics it has and normalises by them, as it will when it serves. A student that
            is trained on wants it, since statistics that go on to move change every weight of the file a little.
        clip: largest norm of the gradient (Pascanu et al. 2013); 0 leaves it as it is.
        label_smoothing: of the hard labels.
        method: how the student follows the teacher; see `lab.loss.objective`.
        tau: the distillation temperature.
        soft_weight: weight of the soft labels in the loss, in [0, 1]; 0 is plain training, 1 needs no labels.
        dkd_alpha, dkd_beta: weights of the target and the other classes, of method `dkd`.
        dist_beta, dist_gamma: weights of the relations between and within classes, of method `dist`.
        hint: `TEACHER_LAYER=STUDENT_LAYER`, layers whose outputs shall agree; empty for none.
        hint_channels: where these layers keep their channels, `first` or `last`.
        hint_weight: of that hint in the loss.
        huber: for regression, the difference from which on an error counts in proportion; 0 for squared errors.
        views: different augmented views of the data the teacher answers; epochs go round them, so that a teacher whose
            answers are kept is asked less. 0 gives every epoch a view of its own. Few views overfit.
        top_k: of the teacher's logits that a cache keeps of each sample; 0 keeps all.
        inherit: how the student's first weights are chosen from the teacher's.
        seed: of everything random, from 0 to 2^32 - 1.
    """

    epochs: int = 10
    batch: int = 64
    optimiser: Optimiser = "adamw"
    lr: float = 2e-3
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Schedule = "one-cycle"
    average_tail: float = 0.0
    frozen_statistics: bool = False
    clip: float = 0.0
    label_smoothing: float = 0.0
    method: Method = "kd"
    tau: float = 2.0
    soft_weight: float = 0.0
    dkd_alpha: float = 1.0
    dkd_beta: float = 8.0
    dist_beta: float = 1.0
    dist_gamma: float = 1.0
    hint: str = ""
    hint_channels: Channels = "first"
    hint_weight: float = 0.0
    huber: float = 0.0
    views: int = 0
    top_k: int = 0
    inherit: Selection = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self, what="a recipe")
        for name, holds, expected in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch", self.batch >= 1, "at least 1"),
            ("lr", 0 < self.lr < inf, "more than 0, finite"),
            ("momentum", 0 <= self.momentum < 1, "at least 0, less than 1"),
            ("weight_decay", 0 <= self.weight_decay < inf, "at least 0, finite"),
            ("average_tail", 0 <= self.average_tail <= 1, "0 to 1"),
            ("clip", 0 <= self.clip < inf, "at least 0, finite"),
            ("hint", not self.hint or _is_pair(self.hint), "TEACHER_LAYER=STUDENT_LAYER, or empty"),
            ("hint_weight", not self.hint or self.hint_weight > 0, "more than 0, where there is a hint"),
            ("views", self.views >= 0, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("seed", 0 <= self.seed < 2**32, "0 to 2^32 - 1"),
            ("optimiser", self.optimiser in get_args(Optimiser), ", ".join(get_args(Optimiser))),
            ("schedule", self.schedule in get_args(Schedule), ", ".join(get_args(Schedule))),
            ("inherit", self.inherit in get_args(Selection), ", ".join(get_args(Selection))),
            ("hint_channels", self.hint_channels in get_args(Channels), ", ".join(get_args(Channels))),
        ):
            if not holds:
                raise SettingError(
                    "a recipe's value is out of range",
                    where=name,
                    expected=expected,
                    got=getattr(self, name),
                    fix="leave it out where you are unsure",
                )
        self.objective("regression" if self.huber else "classes")  # which checks the values of the loss

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """Reads the `[recipe]` table of a TOML file.

        Raises:
            PathError: it cannot be read. SettingError: not TOML, no such table, an unknown key, or a value out of range.
        """
        table = read_toml(path).get("recipe")
        if not isinstance(table, dict):  # a file without the table would otherwise be the defaults, unasked
            raise SettingError(
                "no recipe in this file",
                where=path,
                expected="a [recipe] table",
                got="none",
                fix="add [recipe]",
            )
        return cls.from_mapping(table, where=str(path))

    @classmethod
    def from_mapping(cls, table: Mapping[str, object], *, where: str) -> Self:
        """Reads names and values; errors as `from_toml`."""
        version = table.get("version", VERSION)
        if version != VERSION:
            raise SettingError(
                "a recipe of another version",
                where=f"{where}: version",
                expected=f"{VERSION} (this edgestill's)",
                got=repr(version),
                fix="write the recipe for this version, or update edgestill",
            )
        named = {name: value for name, value in table.items() if name != "version"}
        return from_table(cls, named, where=where, what="a recipe", folder=Path())

    def as_json(self) -> JsonObject:
        """For the lineage."""
        return {"version": VERSION, **asdict(self)}

    def objective(self, task: Task) -> Objective:
        """What a run of this recipe minimises for data of this task.

        Raises:
            SettingError: a method or a smoothing of the labels that this task does not have.
        """
        return Objective(
            task=task,
            method=self.method,
            tau=self.tau,
            soft_weight=self.soft_weight,
            label_smoothing=self.label_smoothing,
            dkd_alpha=self.dkd_alpha,
            dkd_beta=self.dkd_beta,
            dist_beta=self.dist_beta,
            dist_gamma=self.dist_gamma,
            huber=self.huber,
            hint_weight=self.hint_weight,
        )

    @property
    def distils(self) -> bool:
        """Whether a teacher is asked at all."""
        return self.soft_weight > 0 or self.hinted is not None

    @property
    def hinted(self) -> Hint | None:
        """The hint, where there is one and it weighs something."""
        if not self.hint or self.hint_weight == 0:
            return None
        theirs, ours = self.hint.split("=")
        return Hint(teacher_layer=theirs, student_layer=ours, channels=self.hint_channels)

    @property
    def digest(self) -> Digest:
        """Of the canonical JSON."""
        return Digest.of(canonical(self.as_json()))


def _is_pair(hint: str) -> bool:
    return all(hint.split("=")) and hint.count("=") == 1
