"""Teachers that count, sources that are small, and caches of them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from edgestill.lab.augment import MotionJitter
from edgestill.lab.cache import CachedGuide
from edgestill.lab.guide import LiveGuide
from edgestill.lab.seeds import view_seeds
from edgestill.lab.source import ArraySource, Ask

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from edgestill.core.digest import Digest
    from edgestill.lab.guide import Answer
    from edgestill.lab.source import Batch, Inputs, Source, Task

torch.set_num_threads(1)

SAMPLES, CLASSES, SHARD, SEED = 30, 5, 8, 7


def inputs_of(samples: int = SAMPLES, seed: int = 0) -> Tensor:
    """`[samples, 4, 3]`, the same for the same seed."""
    return torch.randn((samples, 4, 3), generator=torch.Generator().manual_seed(seed))


def array_source(
    samples: int = SAMPLES,
    *,
    data: int = 0,
    noise: float = 0.1,
    augmented: bool = True,
    task: Task = "classes",
    outputs: int = CLASSES,
) -> ArraySource:
    """Unlabelled windows with noise for an augmentation."""
    augment = MotionJitter(noise=noise) if augmented else None
    return ArraySource(inputs_of(samples, data), None, task, outputs, augment)


class Net(nn.Module):
    """A hidden layer with BatchNorm and dropout, so that modes matter, and a head."""

    def __init__(self, outputs: int = CLASSES, *, scale: float = 3.0) -> None:
        super().__init__()
        self.hidden = nn.Linear(12, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, outputs)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 4, 3]` -> `[N, outputs]`."""
        logits: Tensor = self.head(self.drop(torch.relu(self.norm(self.hidden(x.flatten(1))))))
        return logits * self.scale


def net(outputs: int = CLASSES, *, seed: int = 1, scale: float = 3.0) -> Net:
    """A Net in training mode whose weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(outputs, scale=scale).train()


class Counting:
    """A guide that remembers which samples it was asked about, and may fail."""

    views = None

    def __init__(self, teacher: nn.Module | None = None, *, hint: str | None = None) -> None:
        self.inner = LiveGuide(net() if teacher is None else teacher, hint=hint)
        self.asked: list[tuple[int, int]] = []

    @property
    def digest(self) -> Digest:
        """The teacher's."""
        return self.inner.digest

    def answer(self, ask: Ask, inputs: Inputs) -> Answer:
        """The teacher's answers."""
        self.asked += [(ask.view, int(one)) for one in ask.index]
        return self.inner.answer(ask, inputs)


class Relabelled:
    """A source that is another's, but for what is overridden."""

    def __init__(self, inner: Source, **changes: Any) -> None:
        self._inner, self._changes = inner, changes

    def __getattr__(self, name: str) -> Any:
        return self._changes[name] if name in self._changes else getattr(self._inner, name)

    def __len__(self) -> int:
        return len(self._inner)

    def batches(self, asks: Sequence[Ask]) -> Iterator[Batch]:
        """The inner one's."""
        return self._inner.batches(asks)


class Rows(Dataset[object]):
    """Items drawn from all three generators, so that every one of them must be seeded."""

    def __init__(self, samples: int = 12, *, labelled: bool = True) -> None:
        self.samples, self.labelled = samples, labelled

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> object:
        drawn = torch.tensor([index, random.random(), np.random.rand(), float(torch.rand(()))])  # noqa: NPY002
        return (drawn, index % 3) if self.labelled else drawn


def ask_of(index: list[int] | np.ndarray[Any, Any], view: int = 0, *, seed: int = SEED) -> Ask:
    """These samples in this view."""
    places = np.asarray(index, np.int64)
    return Ask(places, view_seeds(seed, view, places), view)


def open_cache(folder: Path, **changes: Any) -> CachedGuide:
    """A cache of two views in shards of 8, with whatever is wanted otherwise."""
    settings: dict[str, Any] = {
        "teacher": Counting(),
        "source": array_source(),
        "seed": SEED,
        "views": 2,
        "batch": 4,
        "shard": SHARD,
    }
    return CachedGuide.open(folder, **{**settings, **changes})


def first_batch(source: Source, ask: Ask) -> Batch:
    """The batch that answers one ask."""
    return next(iter(source.batches([ask])))


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name there."""
    return {
        str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()
    }
