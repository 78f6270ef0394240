"""Parameter fusion, kept only where held-out data says it helped."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from edgestill.core.errors import DataError
from edgestill.lab.forward import answers
from edgestill.lab.inherit import fuse_parameters_

if TYPE_CHECKING:
    from torch import nn

    from edgestill.lab.data.samples import Samples
    from edgestill.lab.run import Run

ALPHAS: Final = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Absorbed:
    """A teacher that took up what its student learned.

    Attributes:
        teacher: a new module; the old one is unchanged.
        alpha: the student's weight that did best on held-out data; 0 leaves the teacher as it was.
        losses: cross-entropy on held-out data for each alpha tried.
    """

    teacher: nn.Module
    alpha: float
    losses: dict[float, float]


def absorb(run: Run, heldout: Samples) -> Absorbed:
    """Tries several alphas and keeps the best.

    Args:
        run: of a student that was inherited from its teacher.
        heldout: labelled data, none of it used in training.

    Raises:
        DataError: the student was not inherited, so that there is no index map.
    """
    if run.index_map is None:
        raise DataError(
            "no index map",
            expected="a student that was inherited from its teacher",
            where="run.index_map",
            got="none",
            fix="call distill(..., inherit=True), which is the default",
        )
    inputs, labels = torch.from_numpy(heldout.inputs), torch.from_numpy(heldout.labels)
    tried, losses = {}, {}
    for alpha in ALPHAS:
        tried[alpha] = copy.deepcopy(run.teacher)
        fuse_parameters_(tried[alpha], run.student, run.index_map, alpha=alpha)
        losses[alpha] = float(torch.nn.functional.cross_entropy(answers(tried[alpha], inputs), labels))
    best = min(losses, key=lambda alpha: losses[alpha])
    return Absorbed(teacher=tried[best], alpha=best, losses=losses)
