"""Whose answers a cache keeps: `cache.json`, written once and compared at every opening."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from edgestill.core.bundle import sync_folder
from edgestill.core.digest import Digest
from edgestill.core.errors import DataError, MessageError
from edgestill.core.jsonio import canonical, parse_object
from edgestill.lab.teacher.records import PART

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.core.jsonio import Json
    from edgestill.lab.data.source import Task
    from edgestill.lab.teacher.records import Layout

NAME: Final = "cache.json"
_FORMAT: Final = 1
_MAX_BYTES: Final = 65_536
_FIX: Final = "choose another folder, or delete this one"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Everything that a kept answer depends on. How many views are kept is not among it: they can grow.

    Attributes:
        teacher: the guide's digest.
        data: the source's.
        augmentation: of what its augmentation makes of some samples, and of its declared version.
        seed: the run's, of which all views' seeds are made.
        samples: how many the source has.
        task: what the outputs are.
        layout: of a record.
        shard: samples in one file.
    """

    teacher: Digest
    data: Digest
    augmentation: Digest
    seed: int
    samples: int
    task: Task
    layout: Layout
    shard: int

    def as_json(self) -> dict[str, Json]:
        """The content of `cache.json`."""
        return {
            "format": _FORMAT,
            "teacher": str(self.teacher),
            "data": str(self.data),
            "augmentation": str(self.augmentation),
            "seed": self.seed,
            "samples": self.samples,
            "task": self.task,
            "outputs": self.layout.outputs,
            "record": dict(self.layout.as_json()),
            "shard": self.shard,
        }

    @property
    def key(self) -> Digest:
        """Of all that; every file of records carries it."""
        return Digest.of(canonical(self.as_json()))

    def claim(self, folder: Path) -> None:
        """Writes `cache.json` where there is none; otherwise compares.

        Raises:
            DataError: the folder keeps the answers to something else, or its head cannot be read.
            OSError: it cannot be read or written.
        """
        path = folder / NAME
        if not path.exists():
            _create(path, canonical(self.as_json()))
        found = _read(path)
        ours = self.as_json()
        others = [
            name for name in (*ours, *(found.keys() - ours.keys())) if ours.get(name) != found.get(name)
        ]
        if "data" in others and "augmentation" in others:
            others.remove("augmentation")  # it is told by what it makes of the data
        if others:
            raise DataError(
                f"this folder keeps a teacher's answers to something else: another {', another '.join(others)}",
                where=path,
                expected=", ".join(f"{name} {_short(ours.get(name))}" for name in others) + " (this run's)",
                got=", ".join(f"{name} {_short(found.get(name))}" for name in others),
                fix=_FIX,
            )


def _short(value: Json) -> str:
    return value if isinstance(value, str) else canonical({"": value})[4:-1].decode()


def _read(path: Path) -> dict[str, Json]:
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    try:
        return parse_object(data, where=str(path), max_bytes=_MAX_BYTES)
    except MessageError as error:
        raise DataError(
            "the head of a cache cannot be read",
            where=path,
            got=error.what,
            fix="delete this file: it is written again, and the records that belong to it are kept",
            expected="a head as this version writes it",
        ) from error


def _create(path: Path, data: bytes) -> None:
    """Writes the file unless somebody else does: of two runs that begin together, one must lose and be told so."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PART}")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(part)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)
