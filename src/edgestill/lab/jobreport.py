"""What came of a job, in figures with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgestill.lab.data.samples import Samples
from edgestill.lab.data.source import ArraySource
from edgestill.lab.measure import mean_figure
from edgestill.lab.score import scores

if TYPE_CHECKING:
    from torch import nn

    from edgestill.core.jsonio import JsonObject
    from edgestill.lab.data.source import Source
    from edgestill.lab.distil import Run


def as_source(data: Samples | Source) -> Source:
    """Samples as a source, as they are; any other source itself."""
    return ArraySource.of(data) if isinstance(data, Samples) else data


def report_of(run: Run, *, seconds: float) -> JsonObject:
    """Scores of teacher and student on the held-out data, their sizes, and how it was made.

    Args:
        run: that has ended.
        seconds: it took.
    """
    heldout = as_source(run.validation)
    groups = run.validation.groups if isinstance(run.validation, Samples) else np.arange(len(heldout))
    models = (("teacher", run.teacher), ("student", run.student))
    figures: JsonObject = {}
    for name, model in models if heldout.labelled else ():
        figures |= _figures(name, model, heldout, groups)
    sizes = {name: sum(one.numel() for one in model.parameters()) for name, model in models}
    return {
        "task": heldout.task,
        "figures": figures,
        "parameters": {**sizes, "ratio": sizes["teacher"] / max(1, sizes["student"])},
        "comparison": None if run.comparison is None else run.comparison.as_json(),
        "recipe": run.recipe.as_json(),
        "bundle": None,
        "seconds": round(seconds, 1),
    }


def _figures(
    name: str, model: nn.Module, heldout: Source, groups: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> JsonObject:
    """Mean score, how many samples and groups it is of, and its interval; null where one group has none."""
    each = scores(model, heldout)
    known = ~np.isnan(each)
    one = mean_figure(each[known], groups[known])
    return {
        f"{name}_score": one.value,
        f"{name}_score_n": one.n,
        f"{name}_score_groups": one.groups,
        f"{name}_score_ci95": [one.low, one.high] if one.bounded else None,
    }
