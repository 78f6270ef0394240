"""Which units stay: the choice for each axis, and the index map that follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgestill.core.errors import ModelError
from edgestill.lab.inherit.axes import Axis, Dim, Run, kept, resolve, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from edgestill.lab.inherit.trace import Trace
    from edgestill.lab.recipe import Selection

Choice = dict[Axis, list[int]]


def chosen(
    model: nn.Module, trace: Trace, widths: Mapping[Axis, int], selection: Selection, seed: int
) -> Choice:
    """As many units of each axis as its width says, ascending; of what no layer makes, such as a table's places, the first.

    Args:
        model: whose weights have magnitudes.
        trace: of that model.
        widths: how many units of each axis stay.
        selection: `random` units, `uniform` spacing, the `first` ones, or those of largest `magnitude`: the L2 norm of
            all weights that make the unit, over all layers that share the axis.
        seed: of the random choice.
    """
    norms = _norms(model, trace) if selection == "magnitude" else {}
    random = torch.Generator().manual_seed(seed)
    return {
        axis: sorted(_units(axis.size, width, selection if axis.unit else "first", random, norms.get(axis)))
        for axis, width in widths.items()
    }


def indices(trace: Trace, name: str, choice: Choice) -> tuple[Tensor | None, ...]:
    """One index array for each dimension of a tensor; None where all of it stays."""
    found = [(size(dim), kept(dim, choice)) for dim in trace.tensors[name]]
    return tuple(None if len(one) == whole else torch.tensor(one) for whole, one in found)


def check_consistent(trace: Trace, kept_by_name: Mapping[str, tuple[Tensor | None, ...]]) -> None:
    """Reads the choice back from the index arrays: every tensor must say the same about every axis.

    Args:
        trace: of the teacher.
        kept_by_name: the teacher's tensor name -> one index array per dimension; None is the whole dimension.

    Raises:
        ModelError: two tensors keep other units of one axis, or one keeps units that belong to no axis' choice; the
            result would compute something else than a part of the teacher does.
    """
    said: dict[Axis, tuple[str, list[int]]] = {}
    for name, arrays in kept_by_name.items():
        for dim, array in zip(trace.tensors[name], arrays, strict=True):
            positions = list(range(size(dim))) if array is None else array.tolist()
            for axis, units in _read_back(dim, positions, name):
                first, before = said.setdefault(axis, (name, units))
                if before != units:
                    raise ModelError(
                        "two tensors keep different units of one width",
                        where=name,
                        expected=f"{before} (as in {first})",
                        got=units,
                        fix="name the layer in keep",
                    )


def _read_back(dim: Dim, positions: Sequence[int], name: str) -> Iterator[tuple[Axis, list[int]]]:
    inner, product = size(dim), 1
    for factor in resolve(dim):
        inner //= factor.size
        units = sorted({position // inner % factor.size for position in positions})
        product *= len(units)
        if isinstance(factor, Axis):
            yield factor, units
        else:
            yield from _read_back_run(factor, units, name)
    if product != len(positions):
        raise ModelError(
            "units are kept in part",
            where=name,
            expected=f"{product} positions",
            got=len(positions),
            fix="name the layer in keep",
        )


def _read_back_run(of: Run, units: Sequence[int], name: str) -> Iterator[tuple[Axis, list[int]]]:
    start = 0
    for segment in of.segments:
        end = start + size(segment)
        yield from _read_back(segment, [at - start for at in units if start <= at < end], name)
        start = end


def _units(
    units: int, wanted: int, selection: Selection, random: torch.Generator, norms: Tensor | None
) -> list[int]:
    """Which of the units stay."""
    if wanted == units or selection == "first":
        return list(range(wanted))
    if selection == "uniform":
        return [(at * units) // wanted for at in range(wanted)]
    if selection == "random" or norms is None:
        found: list[int] = torch.randperm(units, generator=random)[:wanted].tolist()
        return found
    largest: list[int] = norms.argsort(descending=True, stable=True)[:wanted].tolist()
    return largest


def _norms(model: nn.Module, trace: Trace) -> dict[Axis, Tensor]:
    """Squared L2 norm of the weights that make each unit."""
    found: dict[Axis, Tensor] = {}
    for name, tensor in model.named_parameters():
        if tensor.ndim < 2:
            continue
        layer = model.get_submodule(name.rpartition(".")[0])
        out = (
            1
            if isinstance(layer, nn.Embedding | nn.EmbeddingBag) or getattr(layer, "transposed", False)
            else 0
        )
        squares = tensor.detach().double().square().movedim(out, 0).flatten(1).sum(1)
        for axis, values in _spread(trace.tensors[name][out], squares.cpu()):
            found[axis] = found[axis] + values if axis in found else values
    return found


def _spread(dim: Dim, values: Tensor) -> Iterator[tuple[Axis, Tensor]]:
    """What each position has, summed for the units of each axis."""
    factors = resolve(dim)
    cube = values.reshape([factor.size for factor in factors])
    for at, factor in enumerate(factors):
        others = [one for one in range(len(factors)) if one != at]
        line = cube.sum(others) if others else cube
        if isinstance(factor, Axis):
            yield factor, line
        else:
            for segment, piece in zip(
                factor.segments, torch.split(line, [size(one) for one in factor.segments]), strict=True
            ):
                yield from _spread(segment, piece)
