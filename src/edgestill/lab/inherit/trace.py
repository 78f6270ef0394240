"""What a network's forward pass says about its dimensions.

- The network runs once, on the example, in evaluation mode and without gradients; every tensor operation is seen on its
  way and tells the axes (`axes`) what meets what. So any control flow, any layer and any hand-written attention is read,
  as long as its operations are known (`rules`); an unknown operation keeps what it touches whole.
- Composite operations (attention, recurrent layers, einsum) are seen as the small ones they are made of: the fast paths
  that hide them are switched off meanwhile. Attention that scales by the width of its queries, unless told otherwise, is
  seen before that, and holds this width.
- Every tensor that the network returns keeps its size, whatever it is wrapped in.
- Modes, flags, weights and statistics of the network are as before afterwards.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from edgestill.core.errors import ModelError
from edgestill.lab.forward import keeping_mode, one_by_one
from edgestill.lab.inherit.axes import Axis, Dim, axes, freeze, fresh, hold, size
from edgestill.lab.inherit.calls import Context, NotReadableError
from edgestill.lab.inherit.returned import tensors_within
from edgestill.lab.inherit.rules import rule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch._ops import OpOverload

Example: TypeAlias = "Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]"

OUTPUT: Final = "it is the network's output"
UNUSED: Final = "the forward pass on the example does not use it"


@dataclass(slots=True)
class Frame:
    """One call of a module.

    Attributes:
        module: its name; empty for the network itself.
        steps: the operations it ran itself, not those of its parts: name, and the dimensions of each tensor that came out.
        made: the dimensions of each tensor that it returned.
        values: those tensors, where they were asked for.
    """

    module: str
    steps: list[tuple[str, list[tuple[Dim, ...]]]] = field(default_factory=list)
    made: list[tuple[Dim, ...]] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


@dataclass(slots=True)
class Trace:
    """The dimensions of one network.

    Attributes:
        tensors: parameter or buffer, by every name it has -> its dimensions.
        groups: convolution or group norm -> the dimension that counts its groups.
        seen: module -> dimensions of the tensors that passed while it ran itself (not a part of it).
        alike: dimensions that an operation wants of one size.
        frames: the calls of all modules, in the order in which they ended.
        outputs: dimensions of each tensor that the network returned.
    """

    tensors: dict[str, tuple[Dim, ...]] = field(default_factory=dict)
    groups: dict[str, Dim] = field(default_factory=dict)
    seen: dict[str, list[Dim]] = field(default_factory=dict)
    alike: list[list[Dim]] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    outputs: list[tuple[Dim, ...]] = field(default_factory=list)

    def made(self, module: str) -> list[Dim]:
        """The dimensions of all tensors that a module returned."""
        return [dim for frame in self.frames if frame.module == module for dims in frame.made for dim in dims]

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
    watch = Watch(model)
    watch.finish(ran(watch, model, example, who=who))
    return watch.trace


def ran(watch: Watch, model: nn.Module, example: Example, *, who: str) -> object:
    """What the network returns for the example, with `watch` looking on.

    Raises:
        ModelError: it does not run, as `traced` says.
    """
    try:
        with quiet(model), watched(model, watch.enter, watch.leave), _ScaledAttention(watch), watch:
            return called(model, example)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"the {who}'s layers cannot be coupled",
            where=place(model, watch.running),
            got=f"{type(error).__name__}: {error}",
            fix="it must run on the example, in evaluation mode",
            expected="a model that runs on the example",
        ) from error


def place(model: nn.Module, module: str) -> str:
    """A module as errors name it."""
    return ".".join(filter(None, [type(model).__name__, module]))


def called(model: nn.Module, example: Example) -> object:
    """What the network returns for the example."""
    if isinstance(example, Tensor):
        return model(example)
    return model(*example) if isinstance(example, tuple) else model(**example)


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's own hooks are untyped
    """Sees every operation and applies its rule."""

    def __init__(self, model: nn.Module, known: Mapping[str, tuple[Dim, ...]] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in PyTorch
        self.trace = Trace()
        self._stack: list[Frame] = []
        self._dims: dict[int, tuple[Dim, ...]] = {}
        self._alive: list[Tensor] = []  # a tensor that died could lend its id to another
        self._used: set[int] = set()
        self._named: dict[int, Tensor] = {}
        for name, tensor in named_tensors(model):
            if id(tensor) not in self._dims:
                dims = known[name] if known else [fresh(length) for length in tensor.shape]
                self.put(tensor, list(dims))
            self._named[id(tensor)] = tensor
            self.trace.tensors[name] = self._dims[id(tensor)]
        self._weights = set(self._named)

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
        return self.see(func, args, kwargs or {}).out

    def see(self, func: OpOverload, args: tuple[object, ...], kwargs: dict[str, object]) -> Context:
        """One operation, run and read."""
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        op = Context(self, func, (args, kwargs), out, f"{name} in {self.running or 'the network itself'}")
        try:
            rule_of(name)(op)
        except (NotReadableError, IndexError, ValueError):  # a form of the call that its rule does not know
            op.keep_whole()
        self._note((args, kwargs, out))
        self._note_step(op)
        return op

    @property
    def running(self) -> str:
        """The innermost module that runs, or ran when an error came."""
        return self._stack[-1].module if self._stack else ""

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
        if self._stack:
            self.trace.groups[self.running] = dim

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether it is made of the network's own tensors only."""
        return id(tensor) in self._weights

    def finish(self, returned: object) -> None:
        """Freezes what the network returns, and what it never used.

        Raises:
            ModelError: no tensor is found in what it returns, so that nobody could say what has to stay.
        """
        self.trace.outputs = [self.dims(tensor) for tensor in tensors_within(returned)]
        if not self.trace.outputs:
            raise ModelError(
                "a network's answer holds no tensor that could be found",
                where="the output",
                expected="a tensor, or a tuple, mapping or object that holds tensors",
                got=type(returned).__name__,
                fix="let forward return the logits",
            )
        for dims in self.trace.outputs:
            for dim in dims:
                freeze(dim, OUTPUT)
        for key in self._named.keys() - self._used:
            for dim in self._dims[key]:
                freeze(dim, UNUSED)

    def keep_values(self, frame: Frame, returned: list[Tensor]) -> None:
        """What to remember of the tensors that a module returned, besides their dimensions: nothing."""

    def enter(self, name: str, given: object) -> None:
        """A module begins."""
        self._stack.append(Frame(name))
        self._note(given)

    def leave(self, returned: object) -> None:
        """A module ends."""
        tensors = tensors_within(returned)
        self._stack[-1].made = [self.dims(tensor) for tensor in tensors]
        self.keep_values(self._stack[-1], tensors)
        self.trace.frames.append(self._stack.pop())

    def _note(self, tree: object) -> None:
        """Adds the dimensions of these tensors to those that the running module saw."""
        here = self.trace.seen.setdefault(self.running, [])
        here += [dim for tensor in tensors_within(tree) for dim in self.dims(tensor) if dim]

    def _note_step(self, op: Context) -> None:
        if self._stack:
            self._stack[-1].steps.append((op.name, [self.dims(tensor) for tensor in op.outs()]))
        given = op.tensors()
        if given and all(map(self.is_weight, given)):
            self._weights.update(map(id, op.outs()))


class _ScaledAttention(TorchFunctionMode):
    """Sees attention before it is taken apart: without a scale of its own it divides by the root of its queries' width."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(
        self,
        func: object,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Calls the function, and holds the width that decides on a scale."""
        named = kwargs or {}
        query = named.get("query", args[0] if args else None)
        if (
            func is F.scaled_dot_product_attention
            and named.get("scale") is None
            and isinstance(query, Tensor)
        ):
            hold(self._watch.dims(query)[-1], f"attention in {self._watch.running} scales by it")
        assert callable(func)
        return func(*args, **named)


@contextmanager
def watched(
    model: nn.Module, enter: Callable[[str, object], None], leave: Callable[[object], None]
) -> Iterator[None]:
    """Tells when a module begins, with its name and what it takes, and when it ends, with what it returns."""
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(
                module.register_forward_pre_hook(
                    lambda _, args, kwargs, name=name: enter(name, (args, kwargs)), with_kwargs=True
                )
            )
            hooks.enter_context(module.register_forward_hook(lambda *call: leave(call[-1])))
        yield


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer by every name it has, those too that `state_dict` leaves out."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, no fast path; afterwards all is as it was."""
    with (
        keeping_mode(model),
        one_by_one(),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        torch.random.fork_rng(devices=[]),
    ):
        model.eval()
        yield
