"""What a bundle is made with, taken out of whatever a student was trained and measured on.

A bundle needs held-out samples with their classes (all of them, in memory), and training inputs to look at (some thousands
are enough). Both come from `Samples`, or from any source of classes whose model takes one input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from torch import Tensor

from edgestill.core.errors import DataError, SettingError
from edgestill.lab.data.samples import Samples
from edgestill.lab.data.source import Ask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.lab.data.source import Source

_MOST: Final = 8192
_BATCH: Final = 256


def check_packable(data: Samples | Source, where: str) -> None:
    """Looks whether a student of this data becomes a bundle.

    Raises:
        SettingError: the task is another one than classes, or a model takes several inputs.
    """
    if isinstance(data, Samples):
        return
    one = next(iter(data.batches([Ask(np.zeros(1, np.int64))]))).inputs
    if data.task != "classes" or not isinstance(one, Tensor):
        raise SettingError(
            "no bundle for this kind of model yet",
            where=where,
            expected="classes, told from one input",
            got=data.task if data.task != "classes" else f"{len(one)} inputs",
            fix="take the student's weights, or export it by edgestill.lab.packing.export",
        )


def labelled(data: Samples | Source, where: str) -> Samples:
    """All samples that have a class, in memory.

    Raises:
        SettingError: as `check_packable`. DataError: none has.
    """
    if isinstance(data, Samples):
        return data
    check_packable(data, where)
    inputs, targets = _read(data, np.arange(len(data)))
    known = targets >= 0
    if not known.any():
        raise DataError(
            "a bundle is calibrated on held-out data with labels",
            where=where,
            expected="labelled samples",
            got="no label",
            fix="bring labels for the held-out data",
        )
    return Samples.of(inputs[known], targets[known], classes=data.outputs)


def shown_inputs(data: Samples | Source, where: str) -> NDArray[np.generic]:
    """`[N, ...]`: all inputs of samples; of a source some thousand, spread over it.

    Raises:
        SettingError: as `check_packable`.
    """
    if isinstance(data, Samples):
        return data.inputs
    check_packable(data, where)
    places = np.unique(np.linspace(0, len(data) - 1, min(_MOST, len(data))).astype(np.int64))
    return _read(data, places)[0]


def spread(inputs: NDArray[np.generic], most: int) -> NDArray[np.generic]:
    """Some of `[N, ...]`, evenly spread over them."""
    places = np.unique(np.linspace(0, len(inputs) - 1, min(most, len(inputs))).astype(np.int64))
    return inputs[places]


def _read(source: Source, places: NDArray[np.int64]) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """Inputs, and classes with -1 for none."""
    inputs, targets = [], []
    for batch in source.batches([Ask(places[at : at + _BATCH]) for at in range(0, len(places), _BATCH)]):
        assert isinstance(batch.inputs, Tensor)
        inputs.append(batch.inputs.numpy())
        targets.append(np.full(len(batch.inputs), -1) if batch.targets is None else batch.targets.numpy())
    return np.concatenate(inputs), np.concatenate(targets)
