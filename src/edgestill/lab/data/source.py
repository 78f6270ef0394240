"""What a model is trained on: samples one can ask for by number, each in a view of one's choice.

- A source gives the same answer to the same question: sample i under seed s never depends on when or beside what it is
  asked for.
- Labels are optional, since a teacher can label anything; -1 (classes) and NaN (values) mark a sample without one.
- Inputs are a tensor, a tuple of tensors or a dictionary of tensors by keyword: whatever the model's `forward` takes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, Self, final, get_args

import numpy as np
import torch
from torch import Tensor

from edgestill.core.digest import Digest
from edgestill.core.errors import (
    ClassCountError,
    DataError,
    DtypeError,
    NotFiniteError,
    SettingError,
    ShapeError,
)
from edgestill.lab.data.chunks import byte_chunks, setting_chunks
from edgestill.lab.data.seeds import view_seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from edgestill.lab.data.augment import Augment
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.data.seeds import Seeds

Task = Literal["classes", "multi-label", "regression"]
"""What the outputs are: logits of exclusive classes, logits of independent labels, or values."""

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]

UNKNOWN: Final = -1
"""The class of a sample without a label."""

_CANARIES: Final = 64
_PIECE: Final = 1024


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
        augment: makes views; None where samples are shown as they are. Of several inputs, a mapping says by keyword, or by
            place (`"0"`), which are changed and how; all get the sample's one seed, so that the same change moves
            inputs that belong together alike.
    """

    inputs: Inputs
    targets: Tensor | None
    task: Task
    outputs: int
    augment: Augment | Mapping[str, Augment] | None = None

    @classmethod
    def of(cls, samples: Samples, augment: Augment | None = None) -> Self:
        """Labelled samples of exclusive classes; `samples.inputs` may be memory-mapped."""
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torch warns of arrays that cannot be written; nothing here writes
            inputs, labels = torch.from_numpy(samples.inputs), torch.from_numpy(samples.labels)
        return cls(inputs, labels, "classes", samples.classes, augment)

    def __post_init__(self) -> None:
        self._check_kinds()
        parts = [one for _, one in _named(self.inputs, self.targets)]
        lengths = sorted({len(one) if one.ndim else 0 for one in parts})
        if len(lengths) > 1:
            raise ShapeError(
                "inputs and targets do not belong together",
                expected="one length",
                got=lengths,
                where="inputs and targets",
                fix="give one target a sample",
            )
        if not tensors(self.inputs) or lengths == [0]:
            raise DataError(
                "no samples",
                expected="at least one",
                where="inputs",
                got="none",
                fix="look at what the data were chosen by",
            )
        self._check_augment()
        for one in tensors(self.inputs):
            _check_finite(one, "inputs")
        if self.targets is not None:
            check_targets(self.targets, self.task, self.outputs)

    def _check_kinds(self) -> None:
        if self.task not in get_args(Task):
            raise SettingError(
                "unknown task",
                where="task",
                expected=", ".join(get_args(Task)),
                got=repr(self.task),
                fix="say what the outputs are",
            )
        parts = self.inputs.values() if isinstance(self.inputs, Mapping) else self.inputs
        whole = [self.inputs] if not isinstance(self.inputs, tuple | Mapping) else [*parts]
        for name, one in (*(("inputs", part) for part in whole), ("targets", self.targets)):
            if not isinstance(one, Tensor) and not (one is None and name == "targets"):
                raise DtypeError(
                    f"the {name} are no tensors",
                    where=name,
                    expected="torch.Tensor",
                    got=f"{type(one).__module__}.{type(one).__qualname__}",
                    fix="convert them with torch.from_numpy(array)",
                )

    def _check_augment(self) -> None:
        ways = self.augment.values() if isinstance(self.augment, Mapping) else [self.augment]
        for one in ways:
            if one is not None and not _is_augmentation(one):
                raise SettingError(
                    "an augmentation of another kind",
                    where="augment",
                    expected="a callable of (inputs, seeds) with a whole number `version`",
                    got=type(one).__name__,
                    fix="see edgestill.lab.data.augment.Augment; random transforms of others go into a DatasetSource",
                )
        names = [] if isinstance(self.inputs, Tensor) else [name for name, _ in _named(self.inputs, None)]
        if isinstance(self.augment, Mapping):
            unknown = sorted(self.augment.keys() - set(names))
            if unknown or not self.augment:
                raise DataError(
                    "augmentations of inputs that are not there",
                    where="augment",
                    expected=f"some of {', '.join(names)}" if names else "one augmentation for the one input",
                    got=", ".join(unknown) or "none",
                    fix="name the inputs as they are named in `inputs`",
                )
        elif self.augment is not None and names:
            raise DataError(
                "one augmentation for several inputs",
                where="augment",
                expected=f"a mapping from some of {', '.join(names)} to the augmentation of each",
                got=type(self.augment).__name__,
                fix="say by name or place which input is changed how",
            )

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
            yield self._batch(torch.tensor(ask.index), ask.seeds)

    def _batch(self, index: Tensor, seeds: Seeds | None) -> Batch:
        # ten times faster than indexing for small types, and no place is counted from the end by mistake
        inputs = mapped(self.inputs, lambda one: one.index_select(0, index))
        if self.augment is not None and seeds is not None:
            inputs = _changed(inputs, self.augment, seeds)
        return Batch(inputs, None if self.targets is None else self.targets.index_select(0, index))

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
        """Of the augmentations, their settings and versions, and of some samples in one view."""
        if self.augment is None:
            return Digest.of(b"samples as they are")
        named = self.augment if isinstance(self.augment, Mapping) else {"": self.augment}
        versions = "".join(f"{name}|{one.version}|" for name, one in sorted(named.items()))
        return Digest.of_chunks([versions.encode(), *setting_chunks(named), *canary_chunks(self)])


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
                got=f"{targets.dtype} {list(targets.shape)}",
                fix="give the class of each sample, with .long()",
            )
        low, high = int(targets.min()), int(targets.max())
        if low < UNKNOWN or high >= outputs:
            raise ClassCountError(
                "a label outside the classes",
                expected=f"0 to {outputs - 1}, or {UNKNOWN} for none",
                got=f"{low} to {high}",
                where="targets",
                fix="number the classes from 0, and say how many there are",
            )
        return
    if targets.ndim != 2 or targets.shape[1] != outputs or not targets.is_floating_point():
        raise ShapeError(
            "one number an output",
            where="targets",
            expected=f"float32 [N, {outputs}]",
            got=f"{targets.dtype} {list(targets.shape)}",
            fix="give targets float32 [N, outputs]",
        )
    known = targets[~targets.isnan()]
    if not known.isfinite().all():
        raise NotFiniteError(
            "a target is infinite",
            where="targets",
            expected="numbers, or NaN for none",
            got="infinity",
            fix="drop or repair these samples",
        )
    if task == "multi-label" and len(known) and (known.min() < 0 or known.max() > 1):
        raise DataError(
            "a label outside [0, 1]",
            where="targets",
            got=f"{known.min():g} to {known.max():g}",
            expected="0 to 1, or NaN for unknown",
            fix="give 1 where a label holds, 0 where it does not, NaN where nobody knows",
        )


def mapped(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The inputs with each tensor changed."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, tuple):
        return tuple(change(one) for one in inputs)
    return {name: change(one) for name, one in inputs.items()}


def _changed(inputs: Inputs, augment: Augment | Mapping[str, Augment], seeds: Seeds) -> Inputs:
    if isinstance(inputs, Tensor):
        assert not isinstance(augment, Mapping)
        return augment(inputs, seeds)
    assert isinstance(augment, Mapping)
    changed = {
        name: augment[name](one, seeds) if name in augment else one for name, one in _named(inputs, None)
    }
    return changed if isinstance(inputs, dict) else tuple(changed.values())


def _is_augmentation(given: object) -> bool:
    return callable(given) and isinstance(getattr(given, "version", None), int)


def _named(inputs: Inputs, targets: Tensor | None) -> list[tuple[str, Tensor]]:
    names: Mapping[str, Tensor] = (
        inputs if isinstance(inputs, dict) else {str(at): one for at, one in enumerate(tensors(inputs))}
    )
    return [*names.items(), *([] if targets is None else [("targets", targets)])]


def canary_chunks(source: Source, view: int = 0) -> Iterator[bytes]:
    """The bytes of some samples in one view, spread over the data: what tells one augmentation from another."""
    index = np.unique(np.linspace(0, len(source) - 1, _CANARIES).astype(np.int64))
    batch = next(iter(source.batches([Ask(index, view_seeds(0, view, index))])))
    for one in tensors(batch.inputs):
        yield f"|{one.dtype}|{tuple(one.shape)}|".encode()
        yield from byte_chunks(one)


def _check_finite(values: Tensor, where: str) -> None:
    if not values.is_floating_point():
        return
    # piece by piece: a mask of large data would be large itself
    bad = torch.cat([~part.isfinite().reshape(len(part), -1).all(1) for part in torch.split(values, _PIECE)])
    if bad.any():
        raise NotFiniteError(
            f"NaN or infinity in the {where}",
            where=f"sample {int(bad.nonzero()[0])} and {int(bad.sum()) - 1} more",
            expected="finite numbers",
            fix="drop or repair these samples",
            got="NaN or infinity",
        )
