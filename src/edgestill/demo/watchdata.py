"""The smart-watch recordings that the package `seglearn` carries, read without running its code.

140 recordings of 10 people doing 7 exercises with a watch on either wrist: acceleration and rotation at 50 Hz
(Burns et al. 2018, BSD licence). The file is a pickle within an npy file; a pickle can run anything, so its digest is
checked first and only the names that plain arrays need are resolved.
"""

from __future__ import annotations

import importlib.metadata
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.lib import format as npy

from edgestill.core.digest import Digest
from edgestill.core.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIGEST: Final = "sha256:eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
LABELS: Final = (
    "pendulum",
    "abduction",
    "forward elevation",
    "internal rotation",
    "external rotation",
    "trapezius extension",
    "row",
)
RIGHT: Final = 1
LEFT: Final = 0

_ALLOWED: Final = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """One exercise of one person with the watch on one wrist.

    Attributes:
        motion: float32 `[T, 6]`: acceleration in g, rotation in rad/s, at 50 Hz.
        exercise: index into `LABELS`.
        person: 1 to 10.
        side: `RIGHT` or `LEFT`.
    """

    motion: NDArray[np.float32]
    exercise: int
    person: int
    side: int


def load_recordings() -> list[Recording]:
    """All recordings, in the order of the file.

    Raises:
        MissingExtraError: `seglearn` is not installed. DataError: its file is not the known one.
    """
    fields = _fields(_path().read_bytes())
    columns = [np.asarray(fields[name]) for name in ("y", "subject", "side")]
    return [
        Recording(np.asarray(motion, dtype=np.float32), int(exercise), int(person), int(side))
        for motion, exercise, person, side in zip(fields["X"], *columns, strict=True)
    ]


def windows(recording: Recording, *, length: int, hop: int) -> NDArray[np.float32]:
    """Windows `[N, length, 6]` that begin every `hop` samples; none of a recording shorter than one."""
    starts = range(0, len(recording.motion) - length + 1, hop)
    found = [recording.motion[start : start + length] for start in starts]
    return np.stack(found) if found else np.empty((0, length, recording.motion.shape[1]), np.float32)


def _path() -> Path:
    try:
        found = importlib.metadata.distribution("seglearn").locate_file("seglearn/data/watch_dataset.npy")
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtraError(
            "seglearn is not installed; it carries the watch data",
            where="import seglearn",
            fix='run: pip install "edgestill[demo]"',
        ) from error
    return Path(str(found))


def _fields(data: bytes) -> dict[str, list[object]]:
    if str(Digest.of(data)) != DIGEST:
        raise DataError(
            "the watch data is not the known file",
            where=_path(),
            expected=DIGEST,
            got=Digest.of(data),
            fix="install seglearn==1.2.5",
        )
    source = io.BytesIO(data)
    npy.read_magic(source)
    npy.read_array_header_1_0(source)
    whole: NDArray[np.object_] = _ArraysOnly(source, encoding="latin1").load()
    fields: dict[str, list[object]] = whole.item()
    return fields


class _ArraysOnly(pickle.Unpickler):  # noqa: S301  # of a file whose digest is known, and arrays only
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ALLOWED:
            raise DataError(
                "the watch data asks for more than arrays",
                where="watch_dataset.npy",
                got=f"{module}.{name}",
                fix="install seglearn==1.2.5",
                expected="arrays of numbers",
            )
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
