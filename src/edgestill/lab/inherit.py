"""Weight inheritance: a student that begins as a part of its teacher.

- Units are chosen once for every *coupled* dimension and used at both ends of every connection. Torch-Pruning's
  dependency graph (Fang et al. 2023, "DepGraph") finds which dimensions are coupled; choosing each end by itself is
  worse than starting from random weights (11 % against 50 % on digits before any training).
- Every kept weight is bit-equal to the teacher's at the mapped indices; BatchNorm statistics come along; nothing is
  rescaled.
- The index map is kept. It allows the way back, parameter fusion:
  `theta_T[idx] = alpha * theta_S + (1 - alpha) * theta_T[idx]`.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, get_args

import torch
import torch_pruning
from torch import Tensor, nn

from edgestill.core.errors import ModelError, SettingError
from edgestill.lab.recipe import Selection

if TYPE_CHECKING:
    from collections.abc import Iterator

_OUT: Final = "out"
_IN: Final = "in"
_COUPLED: Final = (nn.Conv1d, nn.Conv2d, nn.Linear)


@dataclass(frozen=True, slots=True)
class IndexMap:
    """Where each tensor of the student came from.

    Attributes:
        kept: tensor name -> one int64 index array per dimension; None keeps the whole dimension.
    """

    kept: dict[str, tuple[Tensor | None, ...]]

    def select(self, name: str, tensor: Tensor) -> Tensor:
        """The part of a teacher's tensor that the student has."""
        for dim, index in enumerate(self.kept[name]):
            if index is not None:
                tensor = tensor.index_select(dim, index)
        return tensor

    def grid(self, name: str, tensor: Tensor) -> tuple[Tensor, ...]:
        """Index tensors that address that part within the teacher's tensor."""
        full = [
            torch.arange(size) if index is None else index
            for size, index in zip(tensor.shape, self.kept[name], strict=True)
        ]
        return torch.meshgrid(*full, indexing="ij") if full else ()


@dataclass(slots=True)
class _Group:
    """Dimensions that must be cut together: root unit -> positions in each layer's side, the root layer's first."""

    members: list[tuple[str, str, list[int], list[int]]] = field(default_factory=list)


def inherit_(
    student: nn.Module, teacher: nn.Module, example: Tensor, *, selection: Selection = "random", seed: int = 0
) -> IndexMap:
    """Overwrites the student's weights and buffers with a consistent part of the teacher's.

    Args:
        student: of the teacher's family: the same layer names, each dimension at most as wide.
        teacher: any module whose convolutions and linear layers the dependency graph can trace.
        example: one batch `[1, ...]` the teacher takes.
        selection: `random` units, `uniform` spacing, the `first` ones, or those of largest `magnitude`.
        seed: of the random choice.

    Returns:
        The index map.

    Raises:
        ModelError: not the same family, a student layer wider than the teacher's, or a coupling that does not fit.
    """
    if selection not in get_args(Selection):
        raise SettingError("unknown selection", expected=", ".join(get_args(Selection)), got=selection)
    dropped = _choose(student, teacher, example, selection, torch.Generator().manual_seed(seed))
    theirs, ours = teacher.state_dict(), student.state_dict()
    if theirs.keys() != ours.keys():
        raise ModelError(
            "teacher and student are not of one family",
            where=", ".join(sorted(theirs.keys() ^ ours.keys())[:4]),
            expected="the same layer names in both",
        )
    index_map = IndexMap({name: _axes(name, tensor, dropped) for name, tensor in theirs.items()})
    part = {}
    for name, tensor in theirs.items():
        part[name] = index_map.select(name, tensor)
        if part[name].shape != ours[name].shape:
            raise ModelError(
                "a layer does not fit its teacher's",
                where=name,
                expected=f"{tuple(ours[name].shape)} (the student's)",
                got=f"{tuple(part[name].shape)} from {tuple(tensor.shape)}",
            )
    student.load_state_dict(part)
    return index_map


def fuse_parameters_(teacher: nn.Module, student: nn.Module, index_map: IndexMap, *, alpha: float) -> None:
    """The way back: `theta_T[idx] = alpha * theta_S + (1 - alpha) * theta_T[idx]`, in place.

    Args:
        teacher: what the student was inherited from.
        student: trained since.
        index_map: of that inheritance.
        alpha: the student's weight, in [0, 1]. Keep the result only where held-out data says it helped.
    """
    if not 0 <= alpha <= 1:
        raise SettingError("alpha is out of range", expected="0 to 1", got=alpha)
    ours = student.state_dict()
    with torch.no_grad():
        for name, tensor in teacher.state_dict().items():
            if not tensor.is_floating_point():
                continue
            grid = index_map.grid(name, tensor)
            tensor[grid] = alpha * ours[name] + (1 - alpha) * tensor[grid]


def _choose(
    student: nn.Module, teacher: nn.Module, example: Tensor, selection: Selection, random: torch.Generator
) -> dict[tuple[str, str], set[int]]:
    """(layer, side) -> indices dropped there; several groups may meet in one side, behind a concatenation."""
    ours, theirs = dict(student.named_modules()), dict(teacher.named_modules())
    dropped: dict[tuple[str, str], set[int]] = defaultdict(set)
    for group in _groups(teacher, example):
        kept: set[int] = set()
        decided: set[int] = set()
        # Where a group spans a concatenation, each branch has its own width: the narrowest layers decide first.
        for layer, side, positions, roots in sorted(group.members, key=lambda member: len(member[3])):
            free = {root: at for at, root in zip(positions, roots, strict=True) if root not in decided}
            if side == _IN or not free or not isinstance(theirs[layer], _COUPLED):
                continue
            wanted = _width(ours.get(layer), layer) - len(kept & set(roots))
            if wanted > len(free):
                raise ModelError(
                    "a student layer is wider than its teacher's",
                    where=layer,
                    expected=f"<= {len(free)}",
                    got=wanted,
                )
            among = _norms(theirs[layer])[list(free.values())]
            chosen = _units(among, max(wanted, 0), selection, random)
            kept |= {list(free)[unit] for unit in chosen}
            decided |= set(roots)
        for layer, side, positions, roots in group.members:
            dropped[layer, side] |= {
                at for at, root in zip(positions, roots, strict=True) if root not in kept
            }
    return dropped


def _groups(teacher: nn.Module, example: Tensor) -> Iterator[_Group]:
    names = {module: name for name, module in teacher.named_modules()}
    try:
        with _traceable(teacher):
            graph = torch_pruning.DependencyGraph().build_dependency(teacher, example_inputs=example)
            groups = list(graph.get_all_groups(root_module_types=list(_COUPLED)))
    except Exception as error:
        raise ModelError(
            "the teacher's layers cannot be coupled",
            where=type(teacher).__name__,
            got=f"{type(error).__name__}: {error}",
        ) from error
    for found in groups:
        group = _Group()
        for item in found:
            layer = names.get(item.dep.target.module)
            if layer is not None:
                side = _IN if item.dep.handler.__name__.endswith("in_channels") else _OUT
                group.members.append((layer, side, list(item.idxs), list(item.root_idxs)))
        yield group


@contextmanager
def _traceable(model: nn.Module) -> Iterator[None]:
    """The graph is read off autograd in evaluation mode; a frozen or a training model is put back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(requires_grad=True)
        with torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _width(layer: nn.Module | None, name: str) -> int:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return layer.out_channels
    raise ModelError("the student lacks a layer of its teacher", where=name, got=type(layer).__name__)


def _norms(layer: nn.Module) -> Tensor:
    """L2 norm of each output unit's weights."""
    assert isinstance(layer.weight, Tensor)
    norms: Tensor = torch.linalg.vector_norm(layer.weight.detach().flatten(1), dim=1)
    return norms


def _units(norms: Tensor, wanted: int, selection: Selection, random: torch.Generator) -> list[int]:
    """Which of the units with these norms stay."""
    units = len(norms)
    if wanted == units or selection == "first":
        return list(range(wanted))
    if selection == "uniform":
        return [(at * units) // wanted for at in range(wanted)]
    if selection == "random":
        return torch.randperm(units, generator=random)[:wanted].tolist()
    return norms.topk(wanted).indices.tolist()


def _axes(name: str, tensor: Tensor, dropped: dict[tuple[str, str], set[int]]) -> tuple[Tensor | None, ...]:
    """Index per dimension: weights are [out, in, ...], everything else of a layer is [out]."""
    layer = name.rpartition(".")[0]

    def index(side: str, dim: int) -> Tensor | None:
        gone = dropped.get((layer, side))
        if not gone:
            return None
        return torch.tensor([at for at in range(tensor.shape[dim]) if at not in gone], dtype=torch.int64)

    if tensor.ndim == 0:
        return ()
    if tensor.ndim == 1:
        return (index(_OUT, 0),)
    return (index(_OUT, 0), index(_IN, 1), *([None] * (tensor.ndim - 2)))
