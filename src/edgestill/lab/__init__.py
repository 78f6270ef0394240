"""The laboratory: from a teacher to a student in a bundle. The only room that loads torch.

What most users need is here by name, and loaded when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from edgestill.core.budget import Budget
    from edgestill.lab.compare import Slice
    from edgestill.lab.data.dataset import DatasetSource
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.data.source import ArraySource
    from edgestill.lab.distil import distill
    from edgestill.lab.inherit import IndexMap, carve, fuse_parameters_, inherit_
    from edgestill.lab.packing.finished import pack_onnx
    from edgestill.lab.packing.sensor import Sensor
    from edgestill.lab.recipe import Recipe
    from edgestill.lab.run import Run
    from edgestill.lab.searching.search import search
    from edgestill.lab.searching.settings import Search
    from edgestill.lab.training.runtime import Runtime
    from edgestill.lab.training.train import Lesson, train_

__all__ = [
    "ArraySource",
    "Budget",
    "DatasetSource",
    "IndexMap",
    "Lesson",
    "Recipe",
    "Run",
    "Runtime",
    "Samples",
    "Search",
    "Sensor",
    "Slice",
    "carve",
    "distill",
    "fuse_parameters_",
    "inherit_",
    "pack_onnx",
    "search",
    "train_",
]

_PLACES: Final = {
    "ArraySource": "edgestill.lab.data.source",
    "Budget": "edgestill.core.budget",
    "DatasetSource": "edgestill.lab.data.dataset",
    "IndexMap": "edgestill.lab.inherit",
    "Lesson": "edgestill.lab.training.train",
    "Recipe": "edgestill.lab.recipe",
    "Run": "edgestill.lab.run",
    "Runtime": "edgestill.lab.training.runtime",
    "Samples": "edgestill.lab.data.samples",
    "Search": "edgestill.lab.searching.settings",
    "Sensor": "edgestill.lab.packing.sensor",
    "Slice": "edgestill.lab.compare",
    "carve": "edgestill.lab.inherit",
    "distill": "edgestill.lab.distil",
    "fuse_parameters_": "edgestill.lab.inherit",
    "inherit_": "edgestill.lab.inherit",
    "pack_onnx": "edgestill.lab.packing.finished",
    "search": "edgestill.lab.searching.search",
    "train_": "edgestill.lab.training.train",
}


def __getattr__(name: str) -> object:
    """Loads torch only when somebody asks for what needs it."""
    if name not in _PLACES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    if name != "Budget":
        from edgestill.core.extras import require

        require("torch", extra="lab", purpose="to train and distil models")
    return getattr(importlib.import_module(_PLACES[name]), name)
