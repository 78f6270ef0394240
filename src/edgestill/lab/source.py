"""What a model is trained on: samples one can ask for by number, each in a view of one's choice.

- A source gives the same answer to the same question: sample i under seed s never depends on when or beside what it is
  asked for.
- Labels are optional, since a teacher can label anything; -1 (classes) and NaN (values) mark a sample without one.
- Inputs are a tensor, a tuple of tensors or a dictionary of tensors by keyword: whatever the model's `forward` takes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, Self, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from edgestill.core.digest import Digest
from edgestill.core.errors import ClassCountError, DataError, NotFiniteError, ShapeError
from edgestill.lab.forward import byte_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from edgestill.lab.augment import Augment
    from edgestill.lab.samples import Samples
    from edgestill.lab.seeds import Seeds

Task = Literal["classes", "multi-label", "regression"]
"""What the outputs are: logits of exclusive classes, logits of independent labels, or values."""

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]

UNKNOWN: Final = -1
"""The class of a sample without a label."""

_CANARIES: Final = 8


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """Which samples, in which view.

    Attributes:
        index: int64 `[N]`, places in the source.
        seeds: uint32 `[N]`, or None for the samples as they are.
        view: which of the kept views `seeds` are of; only a cache looks at it.
    """

    index: NDArray[np.int64]
    seeds: Seeds | None = None
    view: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What comes back.

    Attributes:
        inputs: what the model's `forward` takes; each tensor `[N, ...]`.
        targets: int64 `[N]` classes, or float32 `[N, K]` labels or values; None where nothing is labelled.
    """

    inputs: Inputs
    targets: Tensor | None


class Source(Protocol):
    """Samples to train on."""

    @property
    def task(self) -> Task:
        """What the outputs are."""
        ...

    @property
    def outputs(self) -> int:
        """How many outputs a model for it has: classes, labels or values."""
        ...

    @property
    def labelled(self) -> bool:
        """Whether samples carry targets."""
        ...

    @property
    def augmented(self) -> bool:
        """Whether seeds make a difference."""
        ...

    @property
    def digest(self) -> Digest:
        """Of the data: inputs, targets and task."""
        ...

    @property
    def views_digest(self) -> Digest:
        """Of what the augmentation makes of some of it, with its declared version."""
        ...

    def __len__(self) -> int:
        """How many samples."""
        ...

    def batches(self, asks: Sequence[Ask]) -> Iterator[Batch]:
        """One batch an ask, in order."""
        ...


@final
@dataclass(frozen=True, slots=True, eq=False)
class ArraySource:
    """Samples held in memory, or memory-mapped.

    Attributes:
        inputs: tensor `[N, ...]`, a tuple or a dictionary of them.
        targets: int64 `[N]` or float32 `[N, K]` or None.
        task: what the outputs are.
        outputs: how many.
        augment: makes views of a tensor; None where samples are shown as they are.
    """

    inputs: Inputs
    targets: Tensor | None
    task: Task
    outputs: int
    augment: Augment | None = None

    @classmethod
    def of(cls, samples: Samples, augment: Augment | None = None) -> Self:
        """Labelled samples of exclusive classes."""
        return cls(
            torch.from_numpy(samples.inputs),
            torch.from_numpy(samples.labels),
            "classes",
            samples.classes,
            augment,
        )

    def __post_init__(self) -> None:
        lengths = {len(one) for one in tensors(self.inputs)} | {len(self)}
        if self.targets is not None:
            lengths.add(len(self.targets))
        if len(lengths) != 1:
            raise ShapeError(
                "inputs and targets do not belong together", expected="one length", got=sorted(lengths)
            )
        if len(self) == 0:
            raise DataError("no samples", expected="at least one")
        if self.augment is not None and not isinstance(self.inputs, Tensor):
            raise DataError(
                "an augmentation of several inputs",
                expected="one input tensor",
                got=type(self.inputs).__name__,
                fix="augment in a torch Dataset and use DatasetSource",
            )
        for one in tensors(self.inputs):
            _check_finite(one, "inputs")
        if self.targets is not None:
            check_targets(self.targets, self.task, self.outputs)

    def __len__(self) -> int:
        return len(tensors(self.inputs)[0])

    @property
    def labelled(self) -> bool:
        """Whether there are targets."""
        return self.targets is not None

    @property
    def augmented(self) -> bool:
        """Whether there is an augmentation."""
        return self.augment is not None

    def batches(self, asks: Sequence[Ask]) -> Iterator[Batch]:
        """One batch an ask."""
        for ask in asks:
            index = torch.from_numpy(ask.index)
            inputs = mapped(self.inputs, lambda one, index=index: one[index])  # type: ignore[misc]  # mypy cannot type a bound default
            if self.augment is not None and ask.seeds is not None:
                assert isinstance(inputs, Tensor)
                inputs = self.augment(inputs, ask.seeds)
            yield Batch(inputs, None if self.targets is None else self.targets[index])

    @property
    def digest(self) -> Digest:
        """Of every byte, with names, types and shapes, and the task."""
        return Digest.of_chunks(self._chunks())

    def _chunks(self) -> Iterator[bytes]:
        yield f"{self.task}|{self.outputs}".encode()
        for name, one in _named(self.inputs, self.targets):
            yield f"|{name}|{one.dtype}|{tuple(one.shape)}|".encode()
            yield from byte_chunks(one)

    @property
    def views_digest(self) -> Digest:
        """Of the augmentation's version and of some samples in one view."""
        if self.augment is None:
            return Digest.of(b"samples as they are")
        kind = type(self.augment)
        name = f"{kind.__module__}.{kind.__qualname__}|{self.augment.version}|"
        return Digest.of_chunks([name.encode(), *_canaries(self)])


@final
class DatasetSource:
    """A map-style torch dataset, whose own random transforms make the views.

    Before sample i is fetched in view s, Python's, numpy's and torch's generators are seeded with s; so a transform may
    draw from any of them. (What draws from a generator of its own is not repeatable, and the digest will say so.)

    Args:
        dataset: gives `(inputs, target)`, or inputs alone; what `default_collate` can join.
        task: what the outputs are.
        outputs: how many.
        labelled: whether items are `(inputs, target)`.
        name: of data and transform, with a version: they are too large to be digested whole.
        workers: processes that fetch ahead; 0 fetches here.
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
    ) -> None:
        self.dataset, self.task, self.outputs = dataset, task, outputs
        self.labelled, self.name, self.workers = labelled, name, workers
        if len(self) == 0:
            raise DataError("no samples", where=name, expected="at least one")

    augmented: Final = True

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # a map-style dataset has a length, though its type does not say so

    def batches(self, asks: Sequence[Ask]) -> Iterator[Batch]:
        """One batch an ask, fetched ahead by the workers."""
        loader = DataLoader(
            _Seeded(self.dataset),
            batch_sampler=_Places(asks),
            num_workers=self.workers,
            collate_fn=default_collate,
        )
        for got in loader:
            if not self.labelled:
                yield Batch(_as_inputs(got), None)
                continue
            inputs, targets = got
            targets = targets.long() if self.task == "classes" else targets.float()
            check_targets(targets, self.task, self.outputs)
            yield Batch(_as_inputs(inputs), targets)

    @property
    def digest(self) -> Digest:
        """Of the declared name, the task and the length."""
        return Digest.of(f"{self.name}|{self.task}|{self.outputs}|{self.labelled}|{len(self)}".encode())

    @property
    def views_digest(self) -> Digest:
        """Of some samples in one view."""
        return Digest.of_chunks(_canaries(self))


class _Seeded(Dataset[object]):
    def __init__(self, dataset: Dataset[object]) -> None:
        self.dataset = dataset

    def __getitem__(self, place: tuple[int, int | None]) -> object:
        index, seed = place
        if seed is None:
            return self.dataset[index]
        kept = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  # transforms of others draw from it
        try:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            return self.dataset[index]
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])  # noqa: NPY002
            torch.set_rng_state(kept[2])


class _Places:
    """A batch sampler: the places of each ask."""

    def __init__(self, asks: Sequence[Ask]) -> None:
        self.asks = asks

    def __len__(self) -> int:
        return len(self.asks)

    def __iter__(self) -> Iterator[list[tuple[int, int | None]]]:
        for ask in self.asks:
            seeds = [None] * len(ask.index) if ask.seeds is None else ask.seeds.tolist()
            yield list(zip(ask.index.tolist(), seeds, strict=True))


def tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    """The tensors of some inputs."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    return inputs if isinstance(inputs, tuple) else tuple(inputs.values())


def check_targets(targets: Tensor, task: Task, outputs: int) -> None:
    """Raises what is wrong with some targets: ShapeError, ClassCountError, NotFiniteError or DataError."""
    if task == "classes":
        if targets.ndim != 1 or targets.is_floating_point():
            raise ShapeError(
                "classes are whole numbers, one a sample",
                where="targets",
                expected="int64 [N]",
                got=f"{targets.dtype} {tuple(targets.shape)}",
            )
        low, high = int(targets.min()), int(targets.max())
        if low < UNKNOWN or high >= outputs:
            raise ClassCountError(
                "a label outside the classes",
                expected=f"0 to {outputs - 1}, or {UNKNOWN} for none",
                got=f"{low} to {high}",
            )
        return
    if targets.ndim != 2 or targets.shape[1] != outputs or not targets.is_floating_point():
        raise ShapeError(
            "one number an output",
            where="targets",
            expected=f"float32 [N, {outputs}]",
            got=f"{targets.dtype} {tuple(targets.shape)}",
        )
    known = targets[~targets.isnan()]
    if not known.isfinite().all():
        raise NotFiniteError("a target is infinite", where="targets", expected="numbers, or NaN for none")
    if task == "multi-label" and len(known) and (known.min() < 0 or known.max() > 1):
        raise DataError("a label outside [0, 1]", where="targets", got=f"{known.min():g} to {known.max():g}")


def mapped(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The inputs with each tensor changed."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, tuple):
        return tuple(change(one) for one in inputs)
    return {name: change(one) for name, one in inputs.items()}


def _named(inputs: Inputs, targets: Tensor | None) -> list[tuple[str, Tensor]]:
    names: Mapping[str, Tensor] = (
        inputs if isinstance(inputs, dict) else {str(at): one for at, one in enumerate(tensors(inputs))}
    )
    return [*names.items(), *([] if targets is None else [("targets", targets)])]


def _as_inputs(got: object) -> Inputs:
    if isinstance(got, Tensor | dict):
        return got
    if isinstance(got, list | tuple) and all(isinstance(one, Tensor) for one in got):
        return tuple(got)
    raise DataError(
        "a dataset whose items are no tensors",
        expected="a tensor, a tuple or a dictionary of tensors",
        got=type(got).__name__,
    )


def _canaries(source: Source) -> Iterator[bytes]:
    index = np.unique(np.linspace(0, len(source) - 1, _CANARIES).astype(np.int64))
    batch = next(iter(source.batches([Ask(index, index.astype(np.uint32))])))
    for one in tensors(batch.inputs):
        yield f"|{one.dtype}|{tuple(one.shape)}|".encode()
        yield from byte_chunks(one)


def _check_finite(values: Tensor, where: str) -> None:
    if not values.is_floating_point():
        return
    good = values.isfinite().flatten(1).all(1) if values.ndim > 1 else values.isfinite()
    if not good.all():
        first = int((~good).nonzero()[0])
        raise NotFiniteError(
            f"NaN or infinity in the {where}",
            where=f"sample {first} and {int((~good).sum()) - 1} more",
            expected="finite numbers",
            fix="drop or repair these samples",
        )
