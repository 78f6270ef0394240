"""How to train and distil: frozen, versioned, readable from TOML.

An unknown key is an error that names the nearest known one: a misspelt `lr` must never be a silent default.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import asdict, dataclass, fields
from math import inf
from typing import TYPE_CHECKING, Literal, Self, get_args, get_type_hints

from edgestill.core.digest import Digest
from edgestill.core.errors import PathError, SettingError
from edgestill.core.jsonio import JsonObject, canonical

if TYPE_CHECKING:
    from pathlib import Path

Optimiser = Literal["sgd", "adamw"]
Schedule = Literal["constant", "cosine", "one-cycle"]
Selection = Literal["random", "uniform", "first", "magnitude"]


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
            0 takes the last step's. Needs a network without BatchNorm, whose statistics belong to one set of weights.
        label_smoothing: of the hard labels.
        tau: the distillation temperature.
        soft_weight: weight of the soft labels in the loss, in [0, 1]; 0 is plain training, 1 needs no labels.
        views: different augmented views of the data kept for soft labels; epochs go round them.
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
    label_smoothing: float = 0.0
    tau: float = 2.0
    soft_weight: float = 0.0
    views: int = 1
    inherit: Selection = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch", self.batch >= 1, "at least 1"),
            ("lr", 0 < self.lr < inf, "more than 0, finite"),
            ("momentum", 0 <= self.momentum < 1, "at least 0, less than 1"),
            ("weight_decay", 0 <= self.weight_decay < inf, "at least 0, finite"),
            ("average_tail", 0 <= self.average_tail <= 1, "0 to 1"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "at least 0, less than 1"),
            ("tau", 0 < self.tau < inf, "more than 0, finite"),
            ("soft_weight", 0 <= self.soft_weight <= 1, "0 to 1"),
            ("views", self.views >= 1, "at least 1"),
            ("seed", 0 <= self.seed < 2**32, "0 to 2^32 - 1"),
            ("optimiser", self.optimiser in get_args(Optimiser), ", ".join(get_args(Optimiser))),
            ("schedule", self.schedule in get_args(Schedule), ", ".join(get_args(Schedule))),
            ("inherit", self.inherit in get_args(Selection), ", ".join(get_args(Selection))),
        ):
            if not holds:
                raise SettingError(
                    "a recipe's value is out of range", where=name, expected=expected, got=getattr(self, name)
                )

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """Reads the `[recipe]` table of a TOML file.

        Raises:
            PathError: it cannot be read. SettingError: not TOML, no such table, an unknown key, or a value out of range.
        """
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8")).get("recipe")
        except OSError as error:
            raise PathError("cannot read a recipe", where=path, got=error.strerror) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingError("not a TOML file", where=path, got=error) from error
        if not isinstance(table, dict):  # a file without the table would otherwise be the defaults, unasked
            raise SettingError("no recipe in this file", where=path, expected="a [recipe] table")
        return cls.from_mapping(table, where=str(path))

    @classmethod
    def from_mapping(cls, table: dict[str, object], *, where: str) -> Self:
        """Reads names and values; errors as `from_toml`."""
        known = {field.name: get_type_hints(cls)[field.name] for field in fields(cls)}
        values: dict[str, object] = {}
        for name, value in table.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                fix = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
                raise SettingError("unknown key in a recipe", where=f"{where}: {name}", fix=fix)
            values[name] = _typed(name, value, known[name], where)
        return cls(**values)  # type: ignore[arg-type]  # every value was checked against its annotation above

    def as_json(self) -> JsonObject:
        """For the lineage."""
        return asdict(self)

    @property
    def digest(self) -> Digest:
        """Of the canonical JSON."""
        return Digest.of(canonical(self.as_json()))


def _typed(name: str, value: object, hint: object, where: str) -> object:
    wanted = str if hint not in {int, float} else hint
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        kind = "text" if wanted is str else getattr(wanted, "__name__", "value")
        raise SettingError(
            "a recipe's value has the wrong type", where=f"{where}: {name}", expected=kind, got=repr(value)
        )
    return value
