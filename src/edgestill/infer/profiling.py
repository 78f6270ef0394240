"""Times a family of models where they will run, for a search that runs elsewhere: a folder goes there, one file comes back.

    shapes.json      what each model is: its file's digest, its precision, and what it has to do, which only the search reads
    0.onnx, ...      the models
    inputs.npy       what they are shown

`edgestill device shapes` makes the folder; `edgestill device profile` times it, which needs an engine and no torch. The same as one
archive (`core.family`) travels through a hub: devices say how long each model took, and the hub, which has the archive, puts the
profile together. Models take turns, so that what disturbs the device disturbs all of them alike. One that the engine refuses is left out and
named: the search goes on with the others.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.bundle import PUBLIC, replace
from edgestill.core.digest import Digest
from edgestill.core.errors import BundleAlteredError, EngineError, ModelError
from edgestill.core.family import INPUTS, SHAPES, family_bytes
from edgestill.core.files import read_plain
from edgestill.core.hardware import HardwareClass
from edgestill.infer.arrayfile import read_npy
from edgestill.infer.engines import DEFAULT, engine_name, engine_of
from edgestill.infer.outlines import MAX_BYTES, Outline, profile_bytes, read_outlines, shapes_bytes
from edgestill.infer.timing import time_engines

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.core.jsonio import Json
    from edgestill.core.protocols import Clock, Engine

ROUNDS, RUNS = 5, 40
_MAX_MODEL_BYTES: Final = 500_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One model that is timed.

    Attributes:
        precision: `int8` or `floats`.
        work: what it has to do, operator by operator; carried along and not looked at.
        model: the ONNX file.
    """

    precision: str
    work: Sequence[Json]
    model: bytes


def write_shapes(folder: Path, subjects: Sequence[Subject], inputs: NDArray[np.generic]) -> None:
    """Writes the folder.

    Args:
        folder: made where it is not there.
        subjects: the models.
        inputs: `[N, ...]`, what they are shown.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = _array(inputs)
    replace(folder / INPUTS, shown, mode=PUBLIC)
    for at, one in enumerate(subjects):
        replace(folder / f"{at}.onnx", one.model, mode=PUBLIC)
    replace(folder / SHAPES, shapes_bytes(map(_outline, subjects), Digest.of(shown)), mode=PUBLIC)


def pack_shapes(
    subjects: Sequence[Subject],
    inputs: NDArray[np.generic],
    *,
    name: str,
    version: str,
    hardware_class: str,
) -> bytes:
    """The same as one archive, which a publisher can sign and a hub assigns (`core.family`).

    Raises:
        BundleError: a name, version or class that the format does not allow, or too many bytes.
    """
    shown = _array(inputs)
    return family_bytes(
        name=name,
        version=version,
        hardware_class=hardware_class,
        shapes=shapes_bytes(map(_outline, subjects), Digest.of(shown)),
        inputs=shown,
        models=[one.model for one in subjects],
    )


def _array(inputs: NDArray[np.generic]) -> bytes:
    array = io.BytesIO()
    np.save(array, inputs, allow_pickle=False)
    return array.getvalue()


def _outline(one: Subject) -> Outline:
    return Outline(precision=one.precision, digest=Digest.of(one.model), work=list(one.work))


def time_shapes(
    folder: Path,
    clock: Clock,
    *,
    engine: str = DEFAULT,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[bytes, list[str]]:
    """Times the folder's models on this machine, on one thread.

    Args:
        folder: that `write_shapes` made.
        clock: read before and after each answer.
        engine: that runs them.
        progress: called with (models loaded, models).

    Returns:
        The profile as JSON, and a sentence for each model that was left out.

    Raises:
        PathError: a file is missing. MessageError: not such a folder. BundleAlteredError: a file is not what was written.
        EngineError: the engine refuses all of them.
    """
    subjects, inputs = read_shapes(folder)
    engines: dict[str, Engine] = {}
    refused = []
    for at, one in enumerate(subjects):
        try:
            made = engine_of(one.model, engine)
            (name,) = made.inputs
            made.run({name: inputs[:1]})
            engines[str(at)] = made
        except (EngineError, ModelError) as error:
            refused.append(f"{at}.onnx was left out: {error}")
        if progress is not None:
            progress(at + 1, len(subjects))
    if not engines:
        raise EngineError(
            "no model of the family runs here",
            where=folder,
            expected="models for this hardware's engine",
            got=refused[0] if refused else "no models",
            fix="make the shapes for this device's class",
        )
    return timed(subjects, engines, inputs, clock, HardwareClass.here(engine_name(engine))), refused


def timed(
    subjects: Sequence[Subject],
    engines: Mapping[str, Engine],
    inputs: NDArray[np.generic],
    clock: Clock,
    hardware_class: HardwareClass,
) -> bytes:
    """The profile of these engines, named by their subjects' places."""
    times = time_engines(engines, inputs, clock=clock, rounds=ROUNDS, runs=RUNS)
    taken = {int(name): (one.p50.value, one.p95.value) for name, one in times.items()}
    return profile_bytes([_outline(one) for one in subjects], taken, hardware_class.name)


def read_shapes(folder: Path) -> tuple[list[Subject], NDArray[np.generic]]:
    """What `write_shapes` wrote; errors as `time_shapes`."""
    where = str(folder / SHAPES)
    data = read_plain(folder / SHAPES, what="a family's shapes", at_most=MAX_BYTES)
    inputs, outlines = read_outlines(data, where)
    _checked(folder / INPUTS, inputs)
    subjects = [
        Subject(precision=one.precision, work=one.work, model=_checked(folder / f"{at}.onnx", one.digest))
        for at, one in enumerate(outlines)
    ]
    return subjects, read_npy(folder / INPUTS, what="the family's inputs")


def _checked(path: Path, digest: Digest) -> bytes:
    data = read_plain(path, what="a part of a family", at_most=_MAX_MODEL_BYTES)
    if Digest.of(data) != digest:
        raise BundleAlteredError(
            "a part of a family is not what was written",
            where=path,
            expected=str(digest),
            got=str(Digest.of(data)),
            fix="copy the folder again",
        )
    return data
