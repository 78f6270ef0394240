"""Whether teacher, student and data belong together, found before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgestill.core.errors import ClassCountError, EdgestillError, ModelError, SettingError
from edgestill.lab.data.samples import Samples
from edgestill.lab.data.source import ArraySource, Ask
from edgestill.lab.forward import evaluating, forward

if TYPE_CHECKING:
    from torch import nn

    from edgestill.lab.data.augment import Augment
    from edgestill.lab.data.source import Inputs, Source


def as_source(data: Samples | Source, where: str, augment: Augment | None = None) -> Source:
    """Samples as a source; any other source itself.

    Raises:
        SettingError: neither, or an augmentation beside a source, which has its own.
    """
    if isinstance(data, Samples):
        return ArraySource.of(data, augment)
    if augment is not None:
        raise SettingError(
            "two places for an augmentation",
            where=where,
            expected="augment= for Samples, or a source that makes its own views",
            got=type(data).__name__,
            fix="make the views in the source, and leave augment= out",
        )
    if not hasattr(data, "batches"):
        raise SettingError(
            "data of a kind that is not known",
            where=where,
            expected="Samples or a Source",
            got=type(data).__name__,
            fix="make Samples.of(inputs, labels), or DatasetSource of a torch Dataset",
        )
    return data


def first_inputs(source: Source, count: int) -> Inputs:
    """Of some samples, to look at shapes and types."""
    return next(iter(source.batches([Ask(np.arange(min(count, len(source))))]))).inputs


def check_data(train: Source, heldout: Source) -> None:
    """Raises ClassCountError where the two are of different tasks or outputs."""
    if (heldout.outputs, heldout.task) != (train.outputs, train.task):
        raise ClassCountError(
            "training and held-out data disagree on the classes",
            where="validation",
            expected=f"{train.outputs} ({train.task}, the training data's)",
            got=f"{heldout.outputs} ({heldout.task})",
            fix="say `classes=` when reading the data",
        )


def check_model(name: str, model: nn.Module, train: Source, heldout: Source) -> None:
    """Raises ModelError where a model does not take the data, ClassCountError where it has other outputs.

    Args:
        name: `teacher` or `student`.
        model: left as it is.
        train: its training data.
        heldout: its held-out data, whose inputs may have another shape.
    """
    width = _width(model, first_inputs(train, 2), name, "training")
    _width(model, first_inputs(heldout, 2), name, "held-out")
    if width != train.outputs:
        raise ClassCountError(
            f"the {name} and the data disagree on the classes",
            where=name,
            expected=f"{train.outputs} (the data's)",
            got=width,
            fix=f"give the {name} a head of {train.outputs} outputs, number the labels from 0, or say `classes=` when "
            "reading the data",
        )


def _width(model: nn.Module, example: Inputs, name: str, data: str) -> int:
    try:
        with evaluating(model):
            return forward(model, example).shape[-1]
    except EdgestillError:
        raise
    except Exception as error:
        raise ModelError(
            f"the {name} does not take the {data} data",
            where=name,
            expected="a model that runs on a batch of it",
            got=f"{type(error).__name__}: {error}",
            fix=f"try {name}(batch) by hand with what the data gives; dtype, shape and order of the axes are the usual causes",
        ) from error
