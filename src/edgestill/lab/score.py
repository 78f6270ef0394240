"""How well a model does on each sample of a source, whatever its task: what comparisons are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from edgestill.core.errors import DataError, NotFiniteError
from edgestill.lab.data.source import Ask
from edgestill.lab.forward import evaluating, forward

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from edgestill.lab.data.source import Batch, Source, Task

_BATCH: Final = 256


def plain_batches(source: Source) -> Iterator[Batch]:
    """Every sample once, in order, as it is."""
    places = np.arange(len(source), dtype=np.int64)
    yield from source.batches([Ask(places[at : at + _BATCH]) for at in range(0, len(source), _BATCH)])


def scores(model: nn.Module, source: Source) -> NDArray[np.float64]:
    """One number a sample, `[N]`; larger is better, NaN is of a sample without a label.

    Classes: 1 where the largest logit is at the label, else 0. Multi-label: the share of known labels on whose side of
    one half the answer is. Regression: minus the mean squared error over known values.

    Raises:
        DataError: not one label. NotFiniteError: an answer of the model that is no number.
    """
    found: list[Tensor] = []
    with evaluating(model):
        for batch in plain_batches(source):
            if batch.targets is None:
                raise DataError(
                    "nothing to compare answers with",
                    expected="labelled data",
                    where="validation",
                    got="none",
                    fix="bring labelled held-out data",
                )
            answers = forward(model, batch.inputs).float()
            _check_finite(answers, sum(len(one) for one in found))
            found.append(_scores(source.task, answers, batch.targets))
    whole = torch.cat(found).double().numpy()
    if np.isnan(whole).all():
        raise DataError(
            "nothing to compare answers with",
            expected="labelled data",
            got="not one label",
            where="validation",
            fix="bring labelled held-out data",
        )
    return whole


def _check_finite(answers: Tensor, before: int) -> None:
    bad = ~answers.isfinite().all(1)
    if bad.any():
        raise NotFiniteError(
            "a model's answer is not finite",
            where=f"sample {before + int(bad.nonzero()[0])}",
            expected="finite numbers",
            got="NaN or infinity",
            fix="lower the learning rate, or look for bad samples",
        )


def _scores(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    if task == "classes":
        right = (outputs.argmax(1) == targets).float()
        return torch.where(targets < 0, torch.nan, right)
    known = ~targets.isnan()
    right = ((outputs > 0) == (targets > 0.5)).float()
    each = right if task == "multi-label" else -((outputs - targets) ** 2)
    return torch.where(known, each, 0.0).sum(1) / known.sum(1)  # 0 / 0 is NaN
