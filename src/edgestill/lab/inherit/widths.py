"""How narrow a carved student becomes: a number of units for each axis.

- Only what a layer makes is cut: not what is frozen, not padding, not rows of a table.
- Of a product (heads by their size, groups by their width, channels by pixels) only the outermost axis is cut, so that
  heads and groups are dropped or kept whole.
- Widths that a layer wants equal stay equal in size, though their units are chosen for themselves: all layers and
  directions of a recurrent module, and the heads of attention with the width around them.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from math import gcd, lcm, prod
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from edgestill.core.errors import ModelError, SettingError
from edgestill.lab.inherit.axes import Axis, Dim, Run, axes, freeze, resolve, shrunk, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from edgestill.lab.inherit.trace import Trace

_MOST_REASONS: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What `carve` was asked for; the fields are its arguments."""

    ratio: float
    probability: float | None
    keep: tuple[str, ...]
    widths: Mapping[str, float]
    multiple_of: int

    @property
    def is_for_less(self) -> bool:
        """Whether something is to be dropped."""
        return (self.ratio if self.probability is None else self.probability) < 1 or bool(self.widths)

    def __post_init__(self) -> None:
        for name, share in (("ratio", self.ratio), ("probability", self.probability)):
            if share is not None and not 0 < share <= 1:
                raise SettingError(
                    "a share is out of range",
                    where=name,
                    expected="more than 0, at most 1",
                    got=share,
                    fix="0.25 keeps a quarter of the units",
                )
        for name, width in self.widths.items():
            if not (0 < width <= 1 or (type(width) is int and width >= 1)):
                raise SettingError(
                    "a width is out of range",
                    where=name,
                    expected="a share in (0, 1] or a whole number of units",
                    got=width,
                    fix="0.5 keeps half of the units, 16 keeps sixteen",
                )
        if self.multiple_of < 1:
            raise SettingError(
                "multiple_of is out of range",
                expected="at least 1",
                got=self.multiple_of,
                where="multiple_of",
                fix="give 1, or a power of two such as 8",
            )


@dataclass(slots=True)
class _Plan:
    """What is decided so far.

    Attributes:
        widths: units that stay; an axis that is not there stays whole.
        inner: a cut axis -> how many channels each of its units is (the size of a head, the width of a group).
        asked: axes whose width the caller named.
    """

    widths: dict[Axis, int] = field(default_factory=dict)
    inner: dict[Axis, int] = field(default_factory=dict)
    asked: set[Axis] = field(default_factory=set)


def decided(model: nn.Module, trace: Trace, wish: Wish, seed: int) -> dict[Axis, int]:
    """The number of units that stay, for every axis.

    Raises:
        SettingError: a module nobody knows, or a width it cannot have.
        ModelError: less is wanted, and nothing can be cut.
    """
    for name in wish.keep:
        for dim in _output(model, trace, name):
            freeze(dim, _kept(name))
    _hold_fixed_attention(model, trace)
    plan = _Plan()
    everything = [*_everything(trace), *trace.groups.values()]
    _find_cuttable(everything, plan)
    random = torch.Generator().manual_seed(seed)
    for axis in trace.axes():
        if axis in plan.inner:
            plan.widths[axis] = _width(axis, wish, plan.inner[axis], random)
    for name, width in wish.widths.items():
        _ask(name, width, _output(model, trace, name), plan)
    for alike in [*_recurrent(model, trace), *trace.alike]:
        _make_equal(alike, plan)
    _couple_heads(model, trace, plan)
    if wish.is_for_less:
        _check_something_is_cut(model, trace, wish, plan)
    for name, width in wish.widths.items():
        _check_granted(name, width, _output(model, trace, name), plan)
    return {axis: plan.widths.get(axis, axis.size) for axis in trace.axes()} | {
        axis: plan.widths.get(axis, axis.size) for dim in everything for axis in axes(dim)
    }


def _everything(trace: Trace) -> Iterator[Dim]:
    for dims in (*trace.tensors.values(), *trace.seen.values()):
        yield from dims


def _output(model: nn.Module, trace: Trace, name: str) -> list[Dim]:
    """The dimensions of what a module returned."""
    known = [one for one, _ in model.named_modules()]
    if name not in {frame.module for frame in trace.frames}:
        near = difflib.get_close_matches(name, known, n=1)
        raise SettingError(
            "no module of this name runs",
            where=name,
            fix=f"did you mean {near[0]!r}?" if near and near[0] != name else None,
            expected="the name of a module that the forward pass reaches",
            got=repr(name),
        )
    return trace.made(name)


def _is_free(axis: Axis) -> bool:
    return axis.unit and axis.frozen is None and axis.held is None


def _find_cuttable(dims: Iterable[Dim], plan: _Plan) -> None:
    """Holds the inner factors of every product; what then remains is cut."""
    known = {tuple(map(id, resolve(dim))): resolve(dim) for dim in dims}
    products = [product for dim in known.values() for product in _products(dim)]
    for product in products:
        free = [factor for factor in product if any(map(_is_free, axes((factor,))))]
        for factor in free[1:]:
            for axis in axes((factor,)):
                axis.held = axis.held or "only whole heads and groups are cut"
    for product in products:
        for at, factor in enumerate(product):
            if isinstance(factor, Axis) and _is_free(factor):
                inner = prod(one.size for one in product[at + 1 :] if isinstance(one, Axis) and one.unit)
                plan.inner[factor] = max(plan.inner.get(factor, 1), inner)


def _products(dim: Dim) -> Iterator[Dim]:
    yield dim
    for factor in dim:
        if isinstance(factor, Run):
            for segment in factor.segments:
                yield from _products(resolve(segment))


def _width(axis: Axis, wish: Wish, inner: int, random: torch.Generator) -> int:
    """Rounded to whole steps, at least one unit; independent tosses of a coin, counted, where there is a probability."""
    if wish.probability is None:
        wanted = axis.size * wish.ratio
    else:
        wanted = float((torch.rand(axis.size, generator=random) < wish.probability).sum())
    step = _step(wish, inner)
    if step > axis.size:
        return axis.size
    return min(max(round(wanted / step), 1) * step, axis.size)


def _step(wish: Wish, inner: int) -> int:
    """How many units make a multiple of what was wished for."""
    return wish.multiple_of // gcd(wish.multiple_of, inner)


def _check_something_is_cut(model: nn.Module, trace: Trace, wish: Wish, plan: _Plan) -> None:
    """A student as large as its teacher is no answer to a wish for less; whoever wished is told what stands in the way."""
    if any(_step(wish, plan.inner[axis]) <= axis.size for axis in plan.widths):
        return
    found = list(_reasons(model, trace, wish, plan))
    if {why for _, why in found} & set(map(_kept, wish.keep)):
        return  # whoever asked for that has it
    reasons = [f"{name}: {why}" for name, why in found]
    more = f"; and {len(reasons) - _MOST_REASONS} more" if len(reasons) > _MOST_REASONS else ""
    raise ModelError(
        "nothing of the teacher can be cut",
        where=type(model).__name__,
        expected="a layer whose units can be taken away",
        got="; ".join(reasons[:_MOST_REASONS]) + more if reasons else "no layer with a width",
        fix="leave layers out of keep, or build the student yourself and give it to inherit_",
    )


def _kept(name: str) -> str:
    return f"{name} was to keep its width"


def _reasons(model: nn.Module, trace: Trace, wish: Wish, plan: _Plan) -> Iterator[tuple[str, str]]:
    """For each layer with weights why its output keeps its width."""
    for name, tensor in model.named_parameters():
        layer = name.rpartition(".")[0] or name
        if tensor.ndim > 1:
            dims = trace.tensors[name]
            out = (
                dims[-1]
                if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding)
                else dims[0]
            )
            yield (
                layer,
                next(
                    (_reason(axis, wish, plan) for axis in axes(out)), "each of its units stands for itself"
                ),
            )


def _reason(axis: Axis, wish: Wish, plan: _Plan) -> str:
    if axis in plan.widths:
        return f"{axis.size} units are no multiple of {wish.multiple_of}"
    if axis.frozen or axis.held:
        return axis.frozen or axis.held or ""
    return "it is tied to widths of other sizes" if axis.unit else "no layer makes its units"


def _ask(name: str, width: float, dims: list[Dim], plan: _Plan) -> None:
    free = [dim for dim in dims if any(axis in plan.widths for axis in axes(dim))]
    if not free:
        raise SettingError(
            "a module's output has no width that can be cut",
            where=name,
            expected="a layer whose units can be taken away",
            got="none that can",
            fix="leave it out of widths, or name a layer before it",
        )
    dim = free[-1]
    share = width / size(dim) if type(width) is int else width
    for axis in axes(dim):
        if axis in plan.widths:
            plan.widths[axis] = min(max(round(axis.size * share), 1), axis.size)
            plan.asked.add(axis)
    found = shrunk(dim, {axis: plan.widths.get(axis, axis.size) for axis in axes(dim)})
    if type(width) is int and found != width:
        raise SettingError(
            "a module cannot have this width",
            where=name,
            expected=f"for instance {found}",
            got=width,
            fix="ask for that width, or for a share",
        )


def _check_granted(name: str, width: float, dims: list[Dim], plan: _Plan) -> None:
    """A number of units is had exactly, or refused."""
    sizes = [shrunk(dim, {axis: plan.widths.get(axis, axis.size) for axis in axes(dim)}) for dim in dims]
    if type(width) is int and width not in sizes:
        near = min(sizes, key=lambda one: abs(one - width))
        raise SettingError(
            "a module cannot have this width",
            where=name,
            expected=f"for instance {near}",
            got=width,
            fix="ask for that width, or for a share",
        )


def _recurrent(model: nn.Module, trace: Trace) -> Iterator[list[Dim]]:
    """Hidden widths, and projected ones, of all layers and directions of each recurrent module."""
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            own = {
                one.rpartition(".")[2]: dims
                for one, dims in trace.tensors.items()
                if one.rpartition(".")[0] == name
            }
            yield [dims[0] for one, dims in own.items() if one.startswith("weight_hr")]
            yield [_gate(dims[0]) for one, dims in own.items() if one.startswith("weight_hh")]


def _gate(dim: Dim) -> Dim:
    """One of the gates that stand one after the other."""
    known = resolve(dim)
    return known[0].segments[0] if len(known) == 1 and isinstance(known[0], Run) else known


def _make_equal(dims: list[Dim], plan: _Plan) -> None:
    """One size for all; they stay whole where they differ and are not cut in one axis each."""
    group = [axis for dim in dims for axis in axes(dim)]
    now = {axis: plan.widths.get(axis, axis.size) for axis in group}
    if len({shrunk(dim, now) for dim in dims}) <= 1:
        return
    cuts = [[axis for axis in axes(dim) if axis in plan.widths] for dim in dims]
    alone = all(len(cut) == 1 and cut[0] is resolve(dim)[0] for cut, dim in zip(cuts, dims, strict=True))
    if not alone or len({cut[0].size for cut in cuts}) > 1:
        for axis in group:
            plan.widths.pop(axis, None)
        return
    asked = [cut[0] for cut in cuts if cut[0] in plan.asked] or cuts[0]
    for cut in cuts:
        plan.widths[cut[0]] = plan.widths[asked[0]]


def _couple_heads(model: nn.Module, trace: Trace, plan: _Plan) -> None:
    """Where a matrix leads from heads to a width as large as all heads together, it stays so large.

    Heads whose number the caller named go their own way, but for PyTorch's attention, which could not run.
    """
    rigid = {
        f"{name}.out_proj.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    }
    found: dict[Axis, dict[Axis, int]] = {}
    for name, dims in trace.tensors.items():
        for heads, around in (dims, dims[::-1]) if len(dims) == 2 else ():
            product, single = resolve(heads), resolve(around)
            if len(product) < 2 or len(single) != 1 or size(heads) != size(around):
                continue
            first, width = product[0], single[0]
            if not isinstance(first, Axis) or not isinstance(width, Axis):
                continue
            if {first, width} <= plan.widths.keys() and (name in rigid or first not in plan.asked):
                found.setdefault(width, {})[first] = size(product[1:])
    for width, inner in found.items():
        _make_as_wide(width, inner, plan)


def _make_as_wide(around: Axis, inner: dict[Axis, int], plan: _Plan) -> None:
    """The heads of every layer together are as wide as what is around them; `inner` gives the sizes of the heads."""
    step = lcm(*inner.values())
    heads = next((axis for axis in inner if axis in plan.asked), next(iter(inner)))
    wanted = plan.widths[around] if around in plan.asked else plan.widths[heads] * inner[heads]
    plan.widths[around] = min(max(round(wanted / step), 1) * step, around.size)
    for axis, each in inner.items():
        plan.widths[axis] = plan.widths[around] // each


def _hold_fixed_attention(model: nn.Module, trace: Trace) -> None:
    """`nn.MultiheadAttention` wants its heads together as wide as what it takes: where that or its only head stays, both do."""
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            around, heads = trace.tensors[f"{name}.out_proj.weight"]
            if module.num_heads == 1 or len(resolve(around)) != 1 or not all(map(_is_free, axes(around))):
                freeze(heads, f"{name} works in a width that stays")
                freeze(around, f"{name} works in a width that stays")
