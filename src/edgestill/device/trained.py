"""A bundle's trained weights on a device: where they lie, and the model that they make.

Whoever trains writes them (`device.tuning`), whoever serves reads them (`device.model`); a file that is damaged, or of another bundle or
training step, is passed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, final

from edgestill.core import bundle as bundles
from edgestill.core.errors import EdgestillError
from edgestill.core.manifest import MODEL, STEPS, TRAIN
from edgestill.learn.codes import written_into
from edgestill.learn.stepfile import StepFile
from edgestill.learn.tuned import MAX_BYTES, Tuned

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgestill.core.bundle import Bundle
    from edgestill.core.digest import Digest


@final
class Trained:
    """Of one bundle.

    Args:
        bundle: digest of its manifest.
        model: the shipped `model.onnx`.
        step: digest of its `train.onnx`.
        steps: its `train.json`.
        folder: for what is learned.
    """

    def __init__(self, bundle: Digest, model: bytes, step: Digest, steps: StepFile, folder: Path) -> None:
        self.bundle = bundle
        self.step = step
        self.steps = steps
        self._model = model
        self._folder = folder

    @classmethod
    def of(cls, bundle: Bundle, folder: Path) -> Self | None:
        """What may have been trained of a bundle; None where it brings no training step.

        Raises:
            MessageError, BundleError: what it brings is damaged.
        """
        if not {TRAIN, STEPS} <= set(bundle.manifest.blobs):
            return None
        steps = StepFile.from_bytes(bundle.read(STEPS))
        return cls(
            bundle.manifest.digest, bundle.read(MODEL), bundle.manifest.blobs[TRAIN].digest, steps, folder
        )

    @property
    def path(self) -> Path:
        """The file."""
        return self._folder / f"{self.bundle.hex[:32]}.tuned"

    def read(self) -> Tuned | None:
        """The weights that may serve; None where there are none, or none that can be used."""
        data = read_bounded(self.path, MAX_BYTES)
        try:
            if data is None:
                return None
            return Tuned.from_bytes(data, bundle=self.bundle, step=self.step, steps=self.steps)
        except EdgestillError:
            return None

    def write(self, tuned: Tuned) -> None:
        """Keeps weights that may serve; PathError where they cannot be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        bundles.replace(self.path, tuned.to_bytes())

    def drop(self) -> None:
        """Forgets them: the shipped model serves again."""
        self.path.unlink(missing_ok=True)

    def stamp(self) -> int:
        """Changes when the file does; 0 where there is none."""
        try:
            about = self.path.stat()
        except OSError:
            return 0
        return about.st_ino ^ about.st_mtime_ns

    def model(self, weights: Mapping[str, NDArray[np.float32]] | None) -> bytes:
        """The model with these weights; as shipped without any.

        Raises:
            OverlayError: they do not fit.
        """
        return self._model if weights is None else written_into(self._model, self.steps.tensors, weights)[0]


def read_bounded(path: Path, most: int) -> bytes | None:
    """A file's bytes; None where it cannot be read, or is longer than that."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError:
        return None
    return data if len(data) <= most else None
