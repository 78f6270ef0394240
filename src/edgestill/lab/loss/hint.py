"""A feature hint: a layer of the student learns to say what a layer of the teacher says (FitNets, Romero et al. 2015).

- The student's layer is usually narrower. A linear *projector* lifts it to the teacher's width; it is trained together
  with the student and thrown away afterwards, so that the student ships without it.
- Where the two layers differ in height, width or length, the larger is averaged down to the smaller.
- The loss is relative: the squared error over the teacher's own mean square, so that `hint_weight` means the same for
  every network. 0 is a perfect copy, 1 what a projector that always answers 0 gets.
- A layer is watched by a forward hook that is gone when its `with` block ends, whatever happens inside.

    with watching(student, hint.student_layer) as ours, watching(teacher, hint.teacher_layer) as theirs:
        logits = student(x)
        with torch.no_grad():
            teacher(x)
        loss = loss + weight * hint_loss(projector(ours.tensor), theirs.tensor)
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgestill.core.errors import ModelError, SettingError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Channels = Literal["first", "last"]

# A teacher's layer whose mean square is smaller than this is dead: dividing by less would let it outshout the rest.
_SILENT: Final = 1e-8


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """Which layer follows which.

    Attributes:
        student_layer: its name among the student's `named_modules()`, such as `features.3`.
        teacher_layer: its name among the teacher's.
        channels: where both layers keep their channels: `first` for `[N, C, H, W]` and `[N, C, L]`, `last` for
            `[N, T, D]` and `[N, H, W, C]`. Shapes alone cannot tell. For `[N, D]` it is the same.

    Raises:
        SettingError: no name, or an unknown place of the channels.
    """

    student_layer: str
    teacher_layer: str
    channels: Channels = "first"

    def __post_init__(self) -> None:
        for name in ("student_layer", "teacher_layer"):
            if not getattr(self, name):
                raise SettingError(
                    "a hint names two layers",
                    where=name,
                    expected="a layer's name",
                    got="''",
                    fix="write TEACHER_LAYER=STUDENT_LAYER",
                )
        if self.channels not in get_args(Channels):
            raise SettingError(
                "a hint's value is unknown",
                where="channels",
                expected="first or last",
                got=self.channels,
                fix="say where these layers keep their channels",
            )


@final
class Features:
    """What a watched layer said in the latest forward pass."""

    def __init__(self, layer: str) -> None:
        self.layer = layer
        self._latest: Tensor | None = None

    @property
    def tensor(self) -> Tensor:
        """The layer's output, or the first tensor of it, with its graph.

        An operation in place right after the layer (`ReLU(inplace=True)`) shows in it.

        Raises:
            ModelError: no forward pass went through the layer while it was watched, or the watch is over.
        """
        if self._latest is None:
            raise ModelError(
                "no forward pass went through this layer",
                where=self.layer,
                fix="name a layer that the network uses, and read its features within the with block",
                expected="one forward pass within the with block",
                got="none",
            )
        return self._latest

    def take(self, output: object) -> None:
        """Keeps the first tensor of a layer's output; ModelError where there is none."""
        self._latest = _first_tensor(output)
        if self._latest is None:
            raise ModelError(
                "a layer for a hint must give a tensor",
                where=self.layer,
                got=type(output).__name__,
                expected="a tensor",
                fix="name a layer inside of it",
            )

    def forget(self) -> None:
        """Lets the graph go."""
        self._latest = None


@contextmanager
def watching(model: nn.Module, layer: str) -> Iterator[Features]:
    """Watches one layer's output until the block ends.

    Args:
        model: its forward pass stays as it is.
        layer: a name among its `named_modules()`.

    Raises:
        ModelError: there is no such layer; the nearest name is suggested.
    """
    features = Features(layer)
    handle = _layer_of(model, layer).register_forward_hook(
        lambda _module, _inputs, output: features.take(output)
    )
    try:
        yield features
    finally:
        handle.remove()
        features.forget()


def projector_for(
    student_shape: Sequence[int], teacher_shape: Sequence[int], *, channels: Channels = "first"
) -> nn.Module:
    """A linear map from the student's channels to the teacher's: their 'regressor', of kernel size 1.

    Its first weights come from torch's global generator; seed it.

    Args:
        student_shape: of the student's features, batch included: `[N, D]`, `[N, C, L]`, `[N, C, H, W]`, or with channels
            last `[N, T, D]`, `[N, H, W, C]`. Only the channels count.
        teacher_shape: of the teacher's; of the same rank.
        channels: as in `Hint`.

    Returns:
        `Linear` on the last axis for `[N, D]` and channels last, else a convolution of size 1.

    Raises:
        ShapeError: different ranks, or a rank that is not 2 to 4.
    """
    rank = _rank(student_shape, teacher_shape)
    axis = -1 if channels == "last" else 1
    narrow, wide = student_shape[axis], teacher_shape[axis]
    if rank == 2 or channels == "last":
        return nn.Linear(narrow, wide)
    return nn.Conv1d(narrow, wide, 1) if rank == 3 else nn.Conv2d(narrow, wide, 1)


def hint_loss(projected: Tensor, teacher: Tensor, *, channels: Channels = "first") -> Tensor:
    """`mean (r - u)^2 / mean u^2` over all elements: r the projected features, u the teacher's.

    The hint loss of Romero et al. 2015 ("Hint-based Training") without its 1/2, and divided by the teacher's mean square
    in the batch. Computed in float32 or wider. No gradient reaches the teacher.

    Args:
        projected: the student's features after the projector.
        teacher: features of as many samples and channels; other sizes may differ, the larger is averaged down.
        channels: as in `Hint`.

    Raises:
        ShapeError: different ranks, numbers of samples or of channels.
    """
    ours, theirs = _alike(projected, teacher, channels)
    return functional.mse_loss(ours, theirs) / theirs.square().mean().clamp(min=_SILENT)


def hint_energy(projected: Tensor, teacher: Tensor, *, channels: Channels = "first") -> Tensor:
    """What the losses of parts of a batch are weighted by, so that their mean is the loss of the batch: `sum u^2`, a scalar.

    Args:
        projected: as for `hint_loss`.
        teacher: as for `hint_loss`.
        channels: as for `hint_loss`.

    Raises:
        ShapeError: as `hint_loss`.
    """
    return _alike(projected, teacher, channels)[1].square().sum()


def _alike(projected: Tensor, teacher: Tensor, channels: Channels) -> tuple[Tensor, Tensor]:
    """Both with channels first, in one wide type and of the smaller size."""
    _rank(projected.shape, teacher.shape)
    ours = projected if projected.dtype == torch.float64 else projected.float()
    theirs = teacher.detach().to(ours.dtype)
    if channels == "last":
        ours, theirs = ours.movedim(-1, 1), theirs.movedim(-1, 1)
    if ours.shape[:2] != theirs.shape[:2]:
        raise ShapeError(
            "features to compare have different samples or channels",
            expected=f"{list(theirs.shape[:2])} (the teacher's)",
            got=list(ours.shape[:2]),
            fix="put projector_for(...) between them",
            where="hint",
        )
    smaller = [min(pair) for pair in zip(ours.shape[2:], theirs.shape[2:], strict=True)]
    return _shrunk(ours, smaller), _shrunk(theirs, smaller)


def _shrunk(features: Tensor, sizes: list[int]) -> Tensor:
    if list(features.shape[2:]) == sizes:
        return features
    if len(sizes) == 1:
        return functional.adaptive_avg_pool1d(features, sizes[0])
    return functional.adaptive_avg_pool2d(features, (sizes[0], sizes[1]))


def _rank(student: Sequence[int], teacher: Sequence[int]) -> int:
    if len(student) != len(teacher) or not 2 <= len(student) <= 4:
        raise ShapeError(
            "a hint needs two layers of the same kind",
            expected="both [N, D], both of rank 3, or both of rank 4",
            got=f"{list(student)} (the student's) and {list(teacher)} (the teacher's)",
            where="hint",
            fix="name two layers whose outputs have the same number of dimensions",
        )
    return len(student)


def _layer_of(model: nn.Module, layer: str) -> nn.Module:
    layers: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if name}
    if layer not in layers:
        near = difflib.get_close_matches(layer, layers, n=1)
        fix = f"did you mean {near[0]!r}?" if near else f"known layers: {', '.join(layers)}"
        raise ModelError(
            "no such layer in this network",
            where=layer,
            got=type(model).__name__,
            fix=fix,
            expected=f"the name of a layer of {type(model).__name__}",
        )
    return layers[layer]


def _first_tensor(output: object) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    parts: list[object] = []
    if isinstance(output, Mapping):
        parts = list(output.values())
    elif isinstance(output, (tuple, list)):
        parts = list(output)
    return next((found for part in parts if (found := _first_tensor(part)) is not None), None)
