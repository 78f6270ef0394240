"""What came of a job, in figures with their intervals, and a word where a model has learned nothing."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from edgestill.core.bundle import Bundle
from edgestill.lab.data.samples import Samples
from edgestill.lab.fits import as_source
from edgestill.lab.measure import mean_figure, share_figure
from edgestill.lab.notices import NothingLearnedWarning
from edgestill.lab.packing.assemble import adapter_path
from edgestill.lab.score import plain_batches, scores

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from edgestill.core.jsonio import JsonObject
    from edgestill.lab.data.source import Source
    from edgestill.lab.run import Run


def report_of(run: Run, *, seconds: float) -> JsonObject:
    """Scores of teacher and student on the held-out data, their sizes, and how it was made.

    Args:
        run: that has ended.
        seconds: it took.

    Warns:
        NothingLearnedWarning: a model is right no more often than who always names the most common class.
    """
    heldout = as_source(run.validation, "validation")
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


def bundle_of(path: Path) -> JsonObject:
    """What was written: the bundle's file, its size, the bytes of the file, and the adapter's file where there is one."""
    size = Bundle.open(path).manifest.size
    told: JsonObject = {"file": path.name, "size": size, "bytes": path.stat().st_size}
    return told | ({"adapter": adapter_path(path).name} if adapter_path(path).is_file() else {})


def _figures(
    name: str, model: nn.Module, heldout: Source, groups: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> JsonObject:
    """Mean score, how many samples and groups it is of, and its interval; null where one group has none."""
    each = scores(model, heldout)
    known = ~np.isnan(each)
    figure = share_figure if heldout.task == "classes" else mean_figure
    one = figure(each[known], groups[known])
    if heldout.task == "classes":
        _warn_at_chance(name, one.value, heldout)
    return {
        f"{name}_score": one.value,
        f"{name}_score_n": one.n,
        f"{name}_score_groups": one.groups,
        f"{name}_score_ci95": [one.low, one.high] if one.bounded else None,
    }


def _warn_at_chance(name: str, share: float, heldout: Source) -> None:
    labels = np.concatenate(
        [one.targets.numpy() for one in plain_batches(heldout) if one.targets is not None]
    )
    common = np.bincount(labels[labels >= 0]).max() / (labels >= 0).sum()
    if share <= common:
        text = (
            f"the {name} is right about {share:.1%} of the held-out samples, and {common:.1%} are of one class: look at its "
            f"{'weights and its input' if name == 'teacher' else 'learning rate and epochs'}"
        )
        warnings.warn(NothingLearnedWarning(text), stacklevel=4)
