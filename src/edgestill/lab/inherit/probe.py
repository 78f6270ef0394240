"""Networks and examples that tell a right student from a wrong one, and the student's pass held to what is expected.

- Layers that begin at 0, norms that begin at 1 and an example of zeros hide what a network computes. So a check runs on
  copies in which every parameter and input of one figure has many; all others are as they were.
- The student passes where each module's call returns what it should and, as far as both run the same operations, makes
  tensors of the sizes it should: on one token, heads of another size give the same figures.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgestill.lab.inherit.part import Expected, steady
from edgestill.lab.inherit.returned import tensors_within
from edgestill.lab.inherit.trace import called, quiet, watched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch._ops import OpOverload

    from edgestill.lab.inherit.trace import Example

_SEED: Final = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a student came.

    Attributes:
        right: how many calls of modules ended as expected.
        running: the modules that ran when it went wrong, the outermost first; none where all was right.
        got: what went wrong.
    """

    right: int
    running: tuple[str, ...] = ()
    got: str | None = None


def telling_network(network: nn.Module) -> nn.Module:
    """A copy none of whose parameters is of one figure."""
    found = copy.deepcopy(network)
    random = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for tensor in found.parameters():
            if _is_dull(tensor):
                tensor.add_(_noise(tensor, random))
    return found


def telling_example(example: Example) -> Example:
    """The same, but that tensors of one figure have many."""
    random = torch.Generator().manual_seed(_SEED)

    def told(tensor: Tensor) -> Tensor:
        return tensor + _noise(tensor, random) if _is_dull(tensor) else tensor

    if isinstance(example, Tensor):
        return told(example)
    if isinstance(example, tuple):
        return tuple(told(one) for one in example)
    return {name: told(one) for name, one in example.items()}


def compared(student: nn.Module, example: Example, expected: Sequence[Expected]) -> Outcome:
    """Runs the student up to the first module that does not do what is expected of it."""
    replay = _Replay(expected)
    try:
        with quiet(student), watched(student, replay.enter, replay.leave), replay:
            called(student, example)
    except _DiffersError as error:
        return Outcome(replay.right, replay.running(), str(error))
    except Exception as error:  # noqa: BLE001  # a wrong size in somebody's forward pass fails in any way
        return Outcome(replay.right, replay.running(), f"{type(error).__name__}: {error}")
    return Outcome(replay.right)


class _DiffersError(Exception):
    """A module did something else; it never leaves this file."""


@dataclass(slots=True)
class _Running:
    module: str
    steps: list[tuple[str, list[list[int]]]] = field(default_factory=list)


class _Replay(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's own hooks are untyped
    """Holds each call of a module to what is expected of it."""

    def __init__(self, expected: Sequence[Expected]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in PyTorch
        self.right = 0
        self._expected = expected
        self._stack: list[_Running] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No, as for `trace.Watch`."""
        return False

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Runs the operation and notes the sizes of what came out."""
        out = func(*args, **(kwargs or {}))
        steady(func, out)
        sizes = [list(tensor.shape) for tensor in tensors_within(out)]
        if self._stack:
            self._stack[-1].steps.append((func.overloadpacket.__name__, sizes))
        return out

    def running(self) -> tuple[str, ...]:
        """The modules that run, or ran when an error came."""
        return tuple(one.module for one in self._stack)

    def enter(self, name: str, given: object) -> None:  # noqa: ARG002  # what a module takes, another one returned
        """A module begins."""
        self._stack.append(_Running(name))

    def leave(self, returned: object) -> None:
        """A module ends."""
        wanted = self._expected[self.right] if self.right < len(self._expected) else None
        if wanted is None or wanted.module != self._stack[-1].module:
            raise _DiffersError("modules run in another order")
        self._check_steps(wanted)
        self._check_values(wanted, tensors_within(returned))
        self.right += 1
        self._stack.pop()

    def _check_steps(self, wanted: Expected) -> None:
        for (name, sizes), (wanted_name, known) in zip(self._stack[-1].steps, wanted.steps, strict=False):
            if name != wanted_name:
                return  # a size of 1 may spare an operation
            for got, cut in zip(sizes, known, strict=False):
                needed = [one if two is None else two for one, two in zip(got, cut, strict=False)]
                if len(got) == len(cut) and got != needed:
                    raise _DiffersError(f"{name} gives {got} instead of {needed}")

    def _check_values(self, wanted: Expected, returned: list[Tensor]) -> None:
        if len(returned) != len(wanted.values):
            raise _DiffersError(f"{len(returned)} tensors instead of {len(wanted.values)}")
        for ours, theirs in zip(returned, wanted.values, strict=True):
            if ours.shape != theirs.shape:
                raise _DiffersError(f"it returns {list(ours.shape)} instead of {list(theirs.shape)}")
            if not _agree(ours, theirs):
                raise _DiffersError("it returns other figures than its part of the teacher")


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether they differ by rounding only: by less than the root of the type's precision, of the largest figure."""
    if ours.dtype != theirs.dtype or not (ours.is_floating_point() or ours.is_complex()):
        return torch.equal(ours, theirs)
    finite = theirs[theirs.isfinite()].abs()
    most = float(finite.max()) if finite.numel() else 0.0
    root = float(torch.finfo(ours.dtype).eps ** 0.5)
    return torch.allclose(ours, theirs, rtol=root, atol=root * most, equal_nan=True)


def _is_dull(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0 and bool((tensor == tensor.flatten()[0]).all())


def _noise(like: Tensor, random: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=random).to(like)
