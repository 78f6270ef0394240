"""The bytes of tensors and of settings, for digests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from operator import itemgetter
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK: Final = 4 * 2**20
_PLAIN: Final = (str, bytes, int, float, bool, type(None))


def byte_chunks(values: Tensor) -> Iterator[bytes]:
    """The bytes of a tensor in row-major order, some megabytes at a time, so that large data is never copied whole."""
    if values.ndim == 0 or len(values) == 0:
        values = values.reshape(1, -1)
    rows = max(1, _CHUNK // max(1, values[0].numel() * values.element_size()))
    for part in torch.split(values.detach(), rows):
        flat = part.cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().tobytes()  # not every type of torch has one in numpy


def setting_chunks(value: object, above: tuple[int, ...] = ()) -> Iterator[bytes]:
    """The bytes that tell one setting from another: its kind, and all that it holds, parts of parts included.

    Of a function only the name counts: what its code does cannot be seen here.
    """
    kind = type(value)
    yield f"|{kind.__module__}.{kind.__qualname__}|".encode()
    if isinstance(value, _PLAIN):
        yield repr(value).encode()
    elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        yield from setting_chunks(torch.from_numpy(np.array(value)))
    elif isinstance(value, Tensor):
        yield f"{value.dtype}|{tuple(value.shape)}|".encode()
        yield from byte_chunks(value)
    elif id(value) not in above:  # what holds itself is told once
        for name, part in _parts(value):
            yield f"|{name}|".encode()
            yield from setting_chunks(part, (*above, id(value)))


def _parts(value: object) -> list[tuple[str, object]]:
    """What an object holds, by name, in an order that does not change."""
    if isinstance(value, type | FunctionType | BuiltinFunctionType | ModuleType):
        return [(value.__name__, None)]
    if isinstance(value, partial):
        return [("function", value.func), ("given", value.args), ("named", value.keywords)]
    if is_dataclass(value):
        return [(one.name, getattr(value, one.name)) for one in fields(value)]
    if isinstance(value, Mapping):
        return sorted(((repr(name), part) for name, part in value.items()), key=itemgetter(0))
    if isinstance(value, tuple | list):
        return [(str(at), part) for at, part in enumerate(value)]
    if isinstance(value, set | frozenset):
        return [(part, None) for part in sorted(map(repr, value))]
    return sorted(vars(value).items()) if hasattr(value, "__dict__") else []
