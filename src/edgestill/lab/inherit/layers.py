"""The numbers that modules keep of their own sizes, set to those of a carved student.

- Layers of PyTorch have their sizes where PyTorch puts them; they follow from the weights.
- A module that somebody wrote has them in attributes of any name (`num_heads`, `hidden_size`). A whole number, or a tuple
  of them, that was the size of something the module looked at may have to become that thing's new size, or may mean
  something else: what the student computes decides (`settle`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Final

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from edgestill.lab.inherit.axes import Axis, Dim, Run, resolve, shrunk, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from edgestill.lab.inherit.trace import Trace

_MOST_WAYS: Final = 64
_SIZED: Final = {
    nn.Unflatten: ("unflattened_size",),
    nn.LayerNorm: ("normalized_shape",),
    nn.RMSNorm: ("normalized_shape",),
    nn.GroupNorm: ("num_channels",),
    _NormBase: ("num_features",),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """A value for an attribute of a module."""

    module: str
    name: str
    value: object

    def apply_(self, network: nn.Module) -> None:
        """Sets it, to a list of its own where it is one."""
        setattr(network.get_submodule(self.module), self.name, copy.copy(self.value))


@dataclass(frozen=True, slots=True, eq=False)
class Attribute:
    """One attribute of all modules of a class, which mean the same by it.

    Attributes:
        name: of the attribute.
        options: module -> what its value may be, the likeliest first.
    """

    name: str
    options: dict[str, list[object]]

    @property
    def ways(self) -> int:
        """How many there are to set it."""
        return max(map(len, self.options.values()))

    def settings(self, rank: int) -> Iterator[Setting]:
        """All modules' values in one of these ways."""
        for module, options in self.options.items():
            yield Setting(module, self.name, options[min(rank, len(options) - 1)])

    def belongs_to(self, modules: Sequence[str]) -> bool:
        """Whether one of these has it."""
        return any(module in self.options for module in modules)


@dataclass(frozen=True, slots=True)
class Resized:
    """How many units of each axis stay."""

    widths: dict[Axis, int]

    def sizes(self, dim: Dim) -> Iterator[tuple[int, int]]:
        """Old and new size of the dimension and of everything it is made of."""
        factors = resolve(dim)
        for start in range(len(factors)):
            for end in range(start + 1, len(factors) + 1):
                yield size(factors[start:end]), shrunk(factors[start:end], self.widths)
            one = factors[start]
            if isinstance(one, Run):
                for segment in one.segments:
                    yield from self.sizes(segment)


def resize_layers_(student: nn.Module, groups: Mapping[str, int]) -> None:
    """Sets the sizes of PyTorch's own layers to those of their weights, which are already the student's.

    Args:
        student: its parameters and buffers are cut.
        groups: name of a convolution or group norm -> how many groups it has now.
    """
    for name, module in student.named_modules():
        if isinstance(module, _ConvNd):
            _resize_convolution_(module, groups.get(name, module.groups))
        elif isinstance(module, nn.GroupNorm):
            module.num_groups = groups.get(name, module.num_groups)
            module.num_channels = len(module.weight) if module.affine else module.num_channels
        elif isinstance(module, nn.MultiheadAttention):
            _resize_attention_(module)
        elif isinstance(module, nn.RNNBase):
            _resize_recurrent_(module)
        else:
            _resize_simple_(module)


def attributes(network: nn.Module, trace: Trace, resized: Resized) -> list[Attribute]:
    """The other modules' attributes that were the size of something, and what they may become.

    Args:
        network: the teacher, or a student whose layers are resized.
        trace: of the teacher.
        resized: how many units stay.
    """
    found: dict[tuple[type, str], Attribute] = {}
    for module_name, module in network.named_modules():
        for name, options in _attributes(module, _facts(module_name, trace, resized)):
            known = found.setdefault((type(module), name), Attribute(name, {}))
            known.options[module_name] = options
    return list(found.values())


def _facts(name: str, trace: Trace, resized: Resized) -> dict[int, list[int]]:
    """Old size -> new sizes of what a module, not its parts, looked at; changed ones first."""
    prefix = f"{name}." if name else ""
    near = [
        dim
        for tensor, dims in trace.tensors.items()
        if tensor.startswith(prefix) and tensor[len(prefix) :].count(".") <= 1
        for dim in dims
    ]
    found: dict[int, set[int]] = {}
    groups = [trace.groups[name]] if name in trace.groups else []
    distinct = {tuple(map(id, resolve(dim))): dim for dim in [*trace.seen.get(name, []), *near, *groups]}
    for dim in distinct.values():
        for old, new in resized.sizes(dim):
            found.setdefault(old, set()).add(new)
    return {old: sorted(new, key=lambda one: (one == old, one)) for old, new in found.items()}


def _attributes(module: nn.Module, facts: Mapping[int, list[int]]) -> Iterator[tuple[str, list[object]]]:
    """PyTorch's own are sizes, so that a new one is likelier; of others nobody knows, and the old value is likelier."""
    for name, value in list(vars(module).items()):
        if name.startswith("_") or not _is_unknown(module, name):
            continue
        if others := [one for one in _sizes(value, facts) if one != value]:
            own = type(module).__module__.startswith("torch.")
            yield name, [*others, value] if own else [value, *others]


def _sizes(value: object, facts: Mapping[int, list[int]]) -> list[object]:
    if type(value) is int:
        return list(facts.get(value, []))
    if isinstance(value, tuple | list) and value and all(type(one) is int for one in value):
        ways = [list(dict.fromkeys([*facts.get(one, []), one])) for one in value]
        return [type(value)(way) for way in product(*ways)] if prod(map(len, ways)) <= _MOST_WAYS else []
    return []


def _is_unknown(module: nn.Module, name: str) -> bool:
    """Whether an attribute's meaning is unknown; PyTorch's own layers are known, but for those without weights."""
    if type(module).__module__.startswith("torch."):
        bare = not list(module.parameters(recurse=False)) and not list(module.buffers(recurse=False))
        return bare and any(isinstance(module, kind) and name in names for kind, names in _SIZED.items())
    return not isinstance(
        module, _ConvNd | nn.Linear | _NormBase | nn.Embedding | nn.MultiheadAttention | nn.RNNBase
    )


def _resize_simple_(module: nn.Module) -> None:
    """Layers whose weight's shape says it all."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.RNNCellBase):
        module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.elementwise_affine:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, _NormBase):
        own = module.weight if module.affine else module.running_mean
        module.num_features = module.num_features if own is None else len(own)


def _resize_convolution_(module: _ConvNd, groups: int) -> None:
    module.groups = groups
    ends = module.weight.shape[0], module.weight.shape[1] * groups
    module.in_channels, module.out_channels = ends if module.transposed else ends[::-1]


def _resize_attention_(module: nn.MultiheadAttention) -> None:
    inner = module.out_proj.weight.shape[1]
    module.num_heads = inner // module.head_dim
    module.embed_dim = module.out_proj.weight.shape[0]
    if module._qkv_same_embed_dim:  # noqa: SLF001  # PyTorch keeps no public word for it
        module.kdim = module.vdim = module.embed_dim
    else:
        module.kdim, module.vdim = module.k_proj_weight.shape[1], module.v_proj_weight.shape[1]


def _resize_recurrent_(module: nn.RNNBase) -> None:
    rows, module.input_size = module.get_parameter("weight_ih_l0").shape
    module.hidden_size = rows // {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    if module.proj_size:
        module.proj_size = len(module.get_parameter("weight_hr_l0"))
    module._init_flat_weights()  # noqa: SLF001  # it holds references to the old weights
