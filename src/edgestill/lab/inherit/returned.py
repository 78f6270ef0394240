"""The tensors within what a module takes or returns, however they are wrapped.

- Tensors come bare, in tuples and mappings (a library's own kinds of them too), and in the fields of objects, such as an
  answer with `logits`.
- The order is that of the entries or fields, so that two networks of one family give theirs in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator


def tensors_within(value: object) -> list[Tensor]:
    """Every tensor, in the order of its place; one that stands twice comes twice, what holds it is opened once."""
    return list(_found(value, set()))


def _found(value: object, opened: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif id(value) not in opened:
        opened.add(id(value))
        for part in _parts(value):
            yield from _found(part, opened)


def _parts(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, int | float | str | type | nn.Module | None) or callable(value):
        return []
    slots = [name for kind in type(value).__mro__ for name in _names(kind)]
    return [*getattr(value, "__dict__", {}).values(), *[getattr(value, name, None) for name in slots]]


def _names(kind: type) -> list[str]:
    """Of the slots that a class declares; those of Python's own classes hold no tensors."""
    if kind.__module__ == "builtins":
        return []
    slots = kind.__dict__.get("__slots__", ())
    return [slots] if isinstance(slots, str) else [name for name in slots if not name.startswith("__")]
