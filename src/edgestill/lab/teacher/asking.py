"""When a teacher is asked in a run, and who answers for it: one way for the run itself and for what it is compared with."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
from torch import Tensor

from edgestill.core.errors import SettingError
from edgestill.lab.data.source import Ask
from edgestill.lab.teacher.cache import CachedGuide
from edgestill.lab.teacher.guide import LiveGuide
from edgestill.lab.teacher.onnxguide import OnnxGuide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning_fabric import Fabric
    from torch import nn

    from edgestill.lab.data.source import Source
    from edgestill.lab.recipe import Recipe
    from edgestill.lab.teacher.guide import Guide

When = Literal["cached", "live", "onnx"]
"""Once for all (`cached`), at every step (`live`), or at every step as an int8 file (`onnx`)."""

_SHOWN: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asking:
    """How a teacher is asked.

    Attributes:
        teacher: the module.
        when: it is asked.
        cache: folder for its answers; None for a temporary one.

    Raises:
        SettingError: an unknown way.
    """

    teacher: nn.Module
    when: When = "cached"
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.when not in get_args(When):
            raise SettingError(
                "unknown way to ask",
                where="ask",
                expected=", ".join(get_args(When)),
                got=self.when,
                fix="leave it out where you are unsure",
            )

    @contextmanager
    def guide(
        self,
        source: Source,
        recipe: Recipe,
        *,
        fabric: Fabric | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[Guide | None]:
        """Who answers within this context; None where the recipe asks nobody.

        Args:
            source: what is asked about.
            recipe: its views, seed, hint and number of kept logits.
            fabric: the processes that share the asking; None for this one alone.
            progress: called with (samples done, samples to do) while answers are being kept.
        """
        hint = None if recipe.hinted is None else recipe.hinted.teacher_layer
        if not recipe.distils:
            yield None
        elif self.when == "onnx":
            yield OnnxGuide.export(self.teacher, _shown(source), task=source.task, hint=hint)
        elif self.when == "live":
            yield LiveGuide(self.teacher, hint=hint)
        else:
            live = LiveGuide(self.teacher, hint=hint)
            with _folder(self.cache, fabric) as folder:
                yield CachedGuide.open(
                    folder,
                    teacher=live,
                    source=source,
                    seed=recipe.seed,
                    views=self.passes(source, recipe),
                    top_k=recipe.top_k or None,
                    progress=progress,
                    **({} if fabric is None else _shared(fabric)),
                )

    def passes(self, source: Source, recipe: Recipe) -> int:
        """How often the teacher meets the data in a run of this recipe."""
        if self.when != "cached":
            return recipe.epochs
        return min(recipe.views or recipe.epochs, recipe.epochs) if source.augmented else 1


@contextmanager
def _folder(cache: Path | None, fabric: Fabric | None) -> Iterator[Path]:
    if cache is not None:
        yield Path(cache)
        return
    with tempfile.TemporaryDirectory(prefix="edgestill-") as own:
        yield Path(own if fabric is None else fabric.broadcast(own))  # all processes share the first one's


def _shared(fabric: Fabric) -> dict[str, Any]:
    return {"rank": fabric.global_rank, "world": fabric.world_size, "barrier": fabric.barrier}


def _shown(source: Source) -> Tensor:
    """Some inputs, spread over the data, to quantise and compare an exported teacher on."""
    index = np.unique(np.linspace(0, len(source) - 1, min(_SHOWN, len(source))).astype(np.int64))
    inputs = next(iter(source.batches([Ask(index)]))).inputs
    if not isinstance(inputs, Tensor):
        raise SettingError(
            "a teacher of several inputs is not exported",
            where="ask",
            expected="cached or live",
            got="onnx",
            fix='ask it live, or keep its answers: ask="cached"',
        )
    return inputs
