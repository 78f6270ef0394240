"""One call of a tensor operation, as the rules of `arithmetic` and `reshaping` look at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

from torch import Tensor
from torch.utils._pytree import tree_leaves

from edgestill.lab.inherit.axes import Dim, cut, freeze, fresh, size, split, unify

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch._ops import OpOverload

    Rule: TypeAlias = "Callable[[Context], None]"


class NotReadableError(Exception):
    """A call that a rule does not understand; it never leaves the package."""


class Book(Protocol):
    """Where the dimensions of tensors are kept."""

    def dims(self, tensor: Tensor) -> tuple[Dim, ...]:
        """What is known of a tensor."""
        ...

    def put(self, tensor: Tensor, dims: list[Dim]) -> None:
        """Says what a tensor's dimensions are."""
        ...

    def alike(self, pieces: list[Dim]) -> None:
        """Notes that these stay of one size."""
        ...

    def groups(self, dim: Dim) -> None:
        """Notes how many groups the running layer has."""
        ...

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether it is made of the network's own tensors only."""
        ...


class Context:
    """One call of an operation: its arguments by their names (`given`), what came out, and where."""

    def __init__(
        self,
        book: Book,
        func: OpOverload,
        call: tuple[tuple[object, ...], Mapping[str, object]],
        out: object,
        why: str,
    ) -> None:
        self.book, self.func, self.out, self.why = book, func, out, why
        names = [argument.name for argument in func._schema.arguments]  # noqa: SLF001  # the only place of an operation's names
        self.given = {**dict(zip(names, call[0], strict=False)), **call[1]}
        self._tree = call

    def number(self, name: str, default: int) -> int:
        """A whole number among the arguments."""
        value = self.given.get(name)
        return value if isinstance(value, int) else default

    def numbers(self, name: str, default: Sequence[int]) -> list[int]:
        """Whole numbers, given as a list or as one."""
        value = self.given.get(name)
        if isinstance(value, int):
            return [value]
        return list(value) if isinstance(value, list | tuple) and value else list(default)

    def flag(self, name: str) -> bool:
        """Whether an argument that is no by default was yes."""
        return bool(self.given.get(name))

    def chosen(self, name: str) -> list[bool]:
        """For each entry of a list of tensors whether it is there."""
        value = self.given.get(name)
        return [one is not None for one in value] if isinstance(value, list | tuple) else []

    def dims(self, name: str) -> list[Dim]:
        """The dimensions of a tensor argument; none where it was left out."""
        value = self.given.get(name)
        return list(self.book.dims(value)) if isinstance(value, Tensor) else []

    def tensors(self) -> list[Tensor]:
        """All tensor arguments, those in lists too."""
        return [leaf for leaf in tree_leaves(self._tree) if isinstance(leaf, Tensor)]

    def outs(self) -> list[Tensor]:
        """All tensors that came out."""
        return [leaf for leaf in tree_leaves(self.out) if isinstance(leaf, Tensor)]

    def is_weight(self, name: str) -> bool:
        """Whether a tensor argument is made of the network's own tensors only."""
        value = self.given.get(name)
        return isinstance(value, Tensor) and self.book.is_weight(value)

    def equal(self, one: Dim, other: Dim) -> None:
        """Two dimensions meet."""
        unify(one, other, self.why)

    def freeze(self, dim: Dim) -> None:
        """The operation looks at this dimension by position."""
        freeze(dim, self.why)

    def position(self, length: int) -> Dim:
        """A place in space or time."""
        return fresh(length, frozen=f"positions of {self.why}")

    def put(self, *dims: Dim) -> None:
        """What the tensor that came out is; what came out beside it, of another shape, is unknown."""
        for at, tensor in enumerate(self.outs()):
            if list(tensor.shape) == [size(dim) for dim in dims]:
                self.book.put(tensor, list(dims))
            elif at:
                self.book.put(tensor, [self.position(length) for length in tensor.shape])
            else:
                raise NotReadableError(self.why)

    def keep_whole(self) -> None:
        """Nothing is known of the call: whatever it touches stays."""
        for tensor in self.tensors():
            for dim in self.book.dims(tensor):
                self.freeze(dim)
        for tensor in self.outs():
            self.book.put(tensor, [fresh(length, frozen=self.why) for length in tensor.shape])

    def axis(self, name: str, rank: int) -> int:
        """An argument that counts dimensions, from the left."""
        return self.number(name, 0) % rank

    @property
    def name(self) -> str:
        """Of the operation, without its overload."""
        return str(self.func.overloadpacket.__name__)

    def has(self, name: str) -> bool:
        """Whether an argument was given."""
        return self.given.get(name) is not None

    def split(self, dim: Dim, outer: int) -> tuple[Dim, Dim]:
        """A dimension as a product, the outer size given."""
        one, other = split(dim, [outer, size(dim) // outer], self.why)
        return one, other

    def cut(self, dim: Dim, at: int) -> tuple[Dim, Dim]:
        """A dimension as two, one after the other."""
        return cut(dim, at, self.why)
