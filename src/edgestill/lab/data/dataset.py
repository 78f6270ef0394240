"""Samples of a torch dataset, whose own random transforms make the views.

- Before sample i is fetched in view s, the generators of Python, numpy and torch are seeded with s, in whatever process
  fetches it; so a transform may draw from any of them, and the view is the same with any number of workers. What draws
  from a generator of its own, or reads a clock, is not repeatable; `views_digest` cannot be relied on to notice it.
- The caller's generators are as they were after every fetch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from edgestill.core.digest import Digest
from edgestill.core.errors import DataError, SettingError
from edgestill.lab.data.seeds import seeded
from edgestill.lab.data.source import Batch, canary_chunks, check_targets

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgestill.lab.data.source import Ask, Inputs, Task

_PLAIN: Final = 0


@final
class DatasetSource:
    """A map-style torch dataset.

    Args:
        dataset: gives `(inputs, target)`, or inputs alone; what `default_collate` can join.
        task: what the outputs are.
        outputs: how many.
        labelled: whether items are `(inputs, target)`. One value a sample may come without its axis.
        name: of data and transform, with a version: they are too large to be digested whole.
        workers: processes that fetch ahead; 0 fetches here.
        random: whether its transforms draw anything; by default some samples are looked at in two views.

    Raises:
        DataError: no samples, or a stream of them. SettingError: fewer than 0 workers.
    """

    def __init__(
        self,
        dataset: Dataset[object],
        *,
        task: Task = "classes",
        outputs: int,
        labelled: bool = True,
        name: str,
        workers: int = 0,
        random: bool | None = None,
    ) -> None:
        self.dataset, self.task, self.outputs = dataset, task, outputs
        self._random = random
        self.labelled, self.name, self.workers = labelled, name, workers
        if isinstance(dataset, IterableDataset):
            raise DataError(
                "a dataset that cannot be asked for a sample by its place",
                where=name,
                expected="a map-style dataset",
                got=type(dataset).__name__,
                fix="give it __getitem__ and __len__",
            )
        if len(self) == 0:
            raise DataError(
                "no samples",
                where=name,
                expected="at least one",
                got="none",
                fix="look at what the dataset was filtered by",
            )
        if workers < 0:
            raise SettingError(
                "a source cannot be read so",
                where="workers",
                expected="at least 0",
                got=workers,
                fix="give the number of processes that read ahead",
            )

    @property
    def augmented(self) -> bool:
        """Whether a sample looks otherwise under another seed."""
        if self._random is None:
            one, other = (Digest.of_chunks(canary_chunks(self, seed)) for seed in (1, 2))
            self._random = one != other
        return self._random

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # a map-style dataset has a length, though its type does not say so

    def batches(self, asks: Sequence[Ask]) -> Iterator[Batch]:
        """One batch an ask, fetched ahead by the workers; without seeds, the view of seed 0.

        Raises:
            DataError: a sample cannot be fetched or joined with others; the text names it.
            ShapeError, ClassCountError, NotFiniteError: targets that do not fit the task.
        """
        loader = DataLoader(
            _Seeded(self.dataset),
            batch_sampler=_Places(asks),
            num_workers=self.workers if len(asks) > 1 else 0,
            collate_fn=_joined,
            generator=torch.Generator(),  # else the loader draws from the caller's
        )
        for got in loader:
            yield self._batch(got)

    def _batch(self, got: object) -> Batch:
        if isinstance(got, _Failure):
            raise DataError(
                got.what,
                where=f"{self.name}: {got.where}",
                got=got.got,
                fix="try dataset[i] by hand for this sample",
                expected="a sample that can be fetched, and joined with others",
            )
        if not self.labelled:
            return Batch(_as_inputs(got), None)
        if not isinstance(got, list | tuple) or len(got) != 2 or not isinstance(got[1], Tensor):
            raise DataError(
                "a labelled dataset whose items are no pairs",
                where=self.name,
                expected="(inputs, target), or labelled=False",
                got=type(got).__name__,
                fix="return (inputs, target) from __getitem__, or say labelled=False",
            )
        inputs, targets = got
        targets = targets if self.task == "classes" else targets.float()
        if self.task != "classes" and targets.ndim == 1 and self.outputs == 1:
            targets = targets[:, None]
        check_targets(targets, self.task, self.outputs)
        return Batch(_as_inputs(inputs), targets.long() if self.task == "classes" else targets)

    @property
    def digest(self) -> Digest:
        """Of the declared name, the task and the length."""
        return Digest.of(f"{self.name}|{self.task}|{self.outputs}|{self.labelled}|{len(self)}".encode())

    @property
    def views_digest(self) -> Digest:
        """Of some samples in one view."""
        return Digest.of_chunks(canary_chunks(self))


class _Seeded(Dataset[object]):
    def __init__(self, dataset: Dataset[object]) -> None:
        self.dataset = dataset

    def __getitem__(self, place: tuple[int, int]) -> object:
        index, seed = place
        with seeded(seed):
            try:
                return self.dataset[index]
            except Exception as error:  # noqa: BLE001  # whatever it is, it is told where the batch is asked for
                return _Failure(
                    "a sample cannot be fetched", f"sample {index}", f"{type(error).__name__}: {error}"
                )


class _Places:
    """A batch sampler: place and seed of each sample of each ask."""

    def __init__(self, asks: Sequence[Ask]) -> None:
        self.asks = asks

    def __len__(self) -> int:
        return len(self.asks)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for ask in self.asks:
            seeds = [_PLAIN] * len(ask.index) if ask.seeds is None else ask.seeds.tolist()
            yield list(zip(ask.index.tolist(), seeds, strict=True))


@dataclass(frozen=True, slots=True)
class _Failure:
    """What went wrong in whatever process: raised there, its text would be buried in a traceback."""

    what: str
    where: str
    got: str


def _joined(items: list[object]) -> object:
    failure = next((one for one in items if isinstance(one, _Failure)), None)
    if failure is not None:
        return failure
    try:
        return default_collate(items)
    except Exception as error:  # noqa: BLE001
        return _Failure(
            "samples cannot be joined to a batch", "the dataset", f"{type(error).__name__}: {error}"
        )


def _as_inputs(got: object) -> Inputs:
    if isinstance(got, Tensor):
        return got
    if isinstance(got, dict) and all(isinstance(one, Tensor) for one in got.values()):
        return got
    if isinstance(got, list | tuple) and got and all(isinstance(one, Tensor) for one in got):
        return tuple(got)
    raise DataError(
        "a dataset whose items are no tensors",
        expected="a tensor, a tuple or a dictionary of tensors",
        got=type(got).__name__,
        where="an item",
        fix="convert the items in __getitem__, for example with torch.as_tensor",
    )
