"""What a network's forward pass says about its dimensions.

- The network runs once, on the example, in evaluation mode and without gradients; every tensor operation is seen on its
  way and tells the axes (`axes`) what meets what. So any control flow, any layer and any hand-written attention is read,
  as long as its operations are known (`rules`); an unknown operation keeps what it touches whole.
- Composite operations (attention, recurrent layers, einsum) are seen as the small ones they are made of: the fast paths
  that hide them are switched off meanwhile.
- Modes, flags, weights and statistics of the network are as before afterwards.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgestill.core.errors import ModelError
from edgestill.lab.inherit.arithmetic import unknown
from edgestill.lab.inherit.axes import Axis, Dim, axes, freeze, fresh, size
from edgestill.lab.inherit.calls import Context, NotReadableError
from edgestill.lab.inherit.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch._ops import OpOverload

Example: TypeAlias = "Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]"

OUTPUT: Final = "it is the network's output"
UNUSED: Final = "the forward pass on the example does not use it"


@dataclass(slots=True)
class Trace:
    """The dimensions of one network.

    Attributes:
        tensors: parameter or buffer, by every name it has -> its dimensions.
        groups: convolution or group norm -> the dimension that counts its groups.
        seen: module -> dimensions of the tensors that passed while it ran itself (not a part of it).
        alike: dimensions that an operation wants of one size.
        made: module -> the last dimension of each tensor it returned.
        output: dimensions of the first tensor that the network returned.
    """

    tensors: dict[str, tuple[Dim, ...]] = field(default_factory=dict)
    groups: dict[str, Dim] = field(default_factory=dict)
    seen: dict[str, list[Dim]] = field(default_factory=dict)
    alike: list[list[Dim]] = field(default_factory=list)
    made: dict[str, list[tuple[Dim, ...]]] = field(default_factory=dict)
    output: tuple[Dim, ...] = ()

    def axes(self) -> list[Axis]:
        """Each axis once, in the order of the tensors."""
        found = (axis for dims in self.tensors.values() for dim in dims for axis in axes(dim))
        return list(dict.fromkeys(found))


def traced(model: nn.Module, example: Example, *, who: str) -> Trace:
    """Runs the network once and reads off its dimensions.

    Args:
        model: left as it was.
        example: one batch it takes: a tensor, a tuple of positional or a mapping of keyword tensors.
        who: `teacher` or `student`, for the error.

    Raises:
        ModelError: it does not run on the example; `where` is the innermost module that was running.
    """
    watch = _Watch(model)
    try:
        with _quiet(model), watch.inside_modules(model), watch:
            returned = _call(model, example)
    except Exception as error:
        inside = watch.stack[-1] if watch.stack else ""
        raise ModelError(
            f"the {who}'s layers cannot be coupled",
            where=".".join(filter(None, [type(model).__name__, inside])),
            got=f"{type(error).__name__}: {error}",
            fix="it must run on the example, in evaluation mode",
            expected="a model that runs on the example",
        ) from error
    watch.finish(returned)
    return watch.trace


def _call(model: nn.Module, example: Example) -> object:
    if isinstance(example, Tensor):
        return model(example)
    return model(*example) if isinstance(example, tuple) else model(**example)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's own hooks are untyped
    """Sees every operation and applies its rule."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in PyTorch
        self.trace = Trace()
        self.stack: list[str] = []
        self._dims: dict[int, tuple[Dim, ...]] = {}
        self._alive: list[Tensor] = []  # a tensor that died could lend its id to another
        self._used: set[int] = set()
        self._named: dict[int, Tensor] = {}
        for name, tensor in _tensors(model):
            if id(tensor) not in self._dims:
                self.put(tensor, [fresh(length) for length in tensor.shape])
            self._named[id(tensor)] = tensor
            self.trace.tensors[name] = self._dims[id(tensor)]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: skipping would load PyTorch's compiler, which takes seconds, only to leave it out."""
        return False

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Runs the operation, then reads it."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        where = self.stack[-1] if self.stack else "the network itself"
        context = Context(self, func, (args, kwargs or {}), out, f"{name} in {where}")
        try:
            (RULES.get(name) or RULES.get(name.removesuffix("_")) or unknown)(context)
        except (NotReadableError, IndexError, ValueError):  # a form of the call that its rule does not know
            context.keep_whole()
        self._note((args, kwargs, out))
        return out

    def dims(self, tensor: Tensor) -> tuple[Dim, ...]:
        """What is known of a tensor; one from nowhere is data, whose dimensions stay."""
        self._used.add(id(tensor))
        if id(tensor) not in self._dims:
            self.put(tensor, [fresh(length, frozen="it comes with the data") for length in tensor.shape])
        return self._dims[id(tensor)]

    def put(self, tensor: Tensor, dims: list[Dim]) -> None:
        """Says what a tensor's dimensions are."""
        assert [size(dim) for dim in dims] == list(tensor.shape), (dims, tensor.shape)
        self._dims[id(tensor)] = tuple(dims)
        self._alive.append(tensor)

    def alike(self, pieces: list[Dim]) -> None:
        """Notes that these stay of one size."""
        self.trace.alike.append(pieces)

    def groups(self, dim: Dim) -> None:
        """Notes how many groups the running layer has."""
        if self.stack:
            self.trace.groups[self.stack[-1]] = dim

    @contextmanager
    def inside_modules(self, model: nn.Module) -> Iterator[None]:
        """Keeps the names of the modules that are running."""
        with ExitStack() as hooks:
            for name, module in model.named_modules():
                hooks.enter_context(module.register_forward_pre_hook(self._entering(name)))
                hooks.enter_context(module.register_forward_hook(self._leaving(name)))
            yield

    def finish(self, returned: object) -> None:
        """Freezes what the network returns, and what it never used."""
        tensors = _leaves(returned)
        self.trace.output = self.dims(tensors[0]) if tensors else ()
        for dim in self.trace.output:
            freeze(dim, OUTPUT)
        for key in self._named.keys() - self._used:
            for dim in self._dims[key]:
                freeze(dim, UNUSED)

    def _entering(self, name: str) -> _Hook:
        def enter(*call: object) -> None:
            self.stack.append(name)
            self._note(call[1:])

        return enter

    def _note(self, tree: object) -> None:
        """Adds the dimensions of these tensors to those that the running module saw."""
        here = self.trace.seen.setdefault(self.stack[-1] if self.stack else "", [])
        here += [dim for tensor in _leaves(tree) for dim in self.dims(tensor) if dim]

    def _leaving(self, name: str) -> _Hook:
        def leave(*call: object) -> None:
            self.trace.made.setdefault(name, []).extend(self.dims(tensor) for tensor in _leaves(call[-1]))
            self.stack.pop()

        return leave


if TYPE_CHECKING:
    from collections.abc import Callable

    _Hook: TypeAlias = Callable[..., None]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _leaves(tree: object) -> list[Tensor]:
    values = list(tree.values()) if isinstance(tree, dict) else tree
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, no fast path; afterwards all is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()  # noqa: SLF001  # the public switch warns about another vendor's hardware
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        torch._C._set_mkldnn_enabled(False)  # noqa: SLF001
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(onednn)  # noqa: SLF001
        for module, training in modes:
            module.training = training
