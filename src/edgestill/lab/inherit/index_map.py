"""Where each tensor of a student stands in its teacher, and the way back.

- The map names every tensor of the student's `state_dict`, with the indices kept along each dimension.
- As bytes it is a header of canonical JSON and the index arrays as little-endian uint32, each array once; nothing in it
  is executed, and every count is checked against the length before anything is allocated.
- The way back is parameter fusion: `theta_T[idx] = alpha * theta_S + (1 - alpha) * theta_T[idx]`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Final, cast

import numpy as np
import torch

from edgestill.core.errors import DataError, ModelError, SettingError
from edgestill.core.jsonio import canonical

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from edgestill.core.jsonio import JsonObject

_MAGIC: Final = b"edgestill-index-map-1\n"
MAX_BYTES: Final = 256 * 2**20
_MAX_HEADER: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class IndexMap:
    """Where each tensor of the student came from.

    Attributes:
        kept: the student's tensor name -> one int64 index array per dimension, ascending; None keeps the whole dimension.
        sources: the teacher's name of a tensor, where it differs from the student's (another block of the same kind).
    """

    kept: dict[str, tuple[Tensor | None, ...]]
    sources: dict[str, str] = field(default_factory=dict)

    def source(self, name: str) -> str:
        """The teacher's name for a tensor of the student."""
        return self.sources.get(name, name)

    def select(self, name: str, tensor: Tensor) -> Tensor:
        """The part of a teacher's tensor that the student has."""
        for dim, index in enumerate(self.kept[name]):
            if index is not None:
                tensor = tensor.index_select(dim, index.to(tensor.device))
        return tensor

    def grid(self, name: str, tensor: Tensor) -> tuple[Tensor, ...]:
        """Index tensors that address that part within the teacher's tensor."""
        full = [
            torch.arange(size) if index is None else index
            for size, index in zip(tensor.shape, self.kept[name], strict=True)
        ]
        return torch.meshgrid(*full, indexing="ij") if full else ()

    def to_bytes(self) -> bytes:
        """For a lineage; the same map gives the same bytes."""
        arrays: dict[bytes, int] = {}
        axes: dict[str, list[int | None]] = {}
        for name, indices in sorted(self.kept.items()):
            packed = [None if one is None else one.cpu().numpy().astype("<u4").tobytes() for one in indices]
            axes[name] = [None if one is None else arrays.setdefault(one, len(arrays)) for one in packed]
        header: JsonObject = {
            "arrays": [len(one) // 4 for one in arrays],
            "axes": cast("JsonObject", axes),
            "sources": cast("JsonObject", self.sources),
        }
        text = canonical(header)
        return b"".join([_MAGIC, len(text).to_bytes(8, "little"), text, *arrays])

    @classmethod
    def from_bytes(cls, data: bytes) -> IndexMap:
        """Reads what `to_bytes` wrote.

        Raises:
            DataError: not an index map, cut off, too long, or with indices that do not ascend.
        """
        if len(data) > MAX_BYTES:
            raise DataError(
                "an index map is too long",
                expected=f"<= {MAX_BYTES} bytes",
                got=len(data),
                where="index map",
                fix="write it again with IndexMap.to_bytes()",
            )
        if not data.startswith(_MAGIC):
            raise DataError(
                "not an index map",
                expected=f"the first bytes {_MAGIC!r}",
                got=data[: len(_MAGIC)],
                where="index map",
                fix="write it again with IndexMap.to_bytes()",
            )
        start = len(_MAGIC) + 8
        length = int.from_bytes(data[len(_MAGIC) : start], "little")
        if length > min(_MAX_HEADER, len(data) - start):
            raise DataError(
                "an index map is cut off",
                expected=f"{length} bytes of header",
                got=len(data) - start,
                where="index map",
                fix="write it again with IndexMap.to_bytes()",
            )
        try:
            return _read(json.loads(data[start : start + length]), data[start + length :])
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            raise DataError(
                "an index map is damaged",
                got=f"{type(error).__name__}: {error}",
                where="index map",
                expected="what IndexMap.to_bytes() writes",
                fix="write it again with IndexMap.to_bytes()",
            ) from error


def fuse_parameters_(teacher: nn.Module, student: nn.Module, index_map: IndexMap, *, alpha: float) -> None:
    """The way back: `theta_T[idx] = alpha * theta_S + (1 - alpha) * theta_T[idx]`, in place.

    Args:
        teacher: what the student was inherited from; tensors the student does not have stay as they are.
        student: trained since.
        index_map: of that inheritance.
        alpha: the student's weight, in [0, 1]. Keep the result only where held-out data says it helped.

    Raises:
        SettingError: alpha is out of range.
        ModelError: the map belongs to another teacher or student; the teacher is unchanged.
    """
    if not 0 <= alpha <= 1:
        raise SettingError(
            "alpha is out of range",
            expected="0 to 1",
            got=alpha,
            where="alpha",
            fix="give the share of the student in the sum",
        )
    ours, theirs = student.state_dict(), teacher.state_dict()
    pairs = list(_pairs(ours, theirs, index_map))
    done: set[int] = set()
    with torch.no_grad():
        for name, mine, tensor in pairs:
            if (
                not tensor.is_floating_point() or tensor.data_ptr() in done
            ):  # a shared weight is mixed in once
                continue
            done.add(tensor.data_ptr())
            grid = index_map.grid(name, tensor)
            tensor[grid] = alpha * mine + (1 - alpha) * tensor[grid]


def _pairs(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], index_map: IndexMap
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, the student's tensor and the teacher's, after a check that they fit the map."""
    for name in index_map.kept:
        mine, tensor = ours.get(name), theirs.get(index_map.source(name))
        if mine is None or tensor is None or not _fits(index_map.kept[name], mine, tensor):
            raise ModelError(
                "the index map belongs to other models",
                where=name,
                got=f"student {None if mine is None else list(mine.shape)}, "
                f"teacher {None if tensor is None else list(tensor.shape)}",
                expected="tensors of the shapes in the map",
                fix="give the teacher and the student that the map was made for",
            )
        yield name, mine, tensor


def _fits(indices: tuple[Tensor | None, ...], mine: Tensor, tensor: Tensor) -> bool:
    return len(indices) == mine.ndim == tensor.ndim and all(
        mine.shape[dim] == (tensor.shape[dim] if index is None else len(index))
        and (index is None or int(index[-1]) < tensor.shape[dim])
        for dim, index in enumerate(indices)
    )


def _read(header: dict[str, object], body: bytes) -> IndexMap:
    lengths = [_number(one, MAX_BYTES) for one in _list(header["arrays"])]
    if 0 in lengths or sum(lengths) * 4 != len(body):
        raise ValueError(f"{len(body)} bytes of indices")
    ends = list(accumulate(lengths))
    table = np.frombuffer(body, "<u4")
    arrays = [_ascending(table[end - many : end]) for many, end in zip(lengths, ends, strict=True)]
    kept = {
        name: tuple(None if one is None else arrays[_number(one, len(arrays))] for one in _list(axes))
        for name, axes in _dict(header["axes"]).items()
    }
    sources = _dict(header["sources"])
    if not sources.keys() <= kept.keys():
        raise ValueError("sources of tensors that are not there")
    return IndexMap(kept, {name: _text(source) for name, source in sources.items()})


def _ascending(array: np.ndarray[tuple[int, ...], np.dtype[np.uint32]]) -> Tensor:
    wide = array.astype(np.int64)
    if (np.diff(wide) <= 0).any():
        raise ValueError("indices that do not ascend")
    return torch.from_numpy(wide)


def _number(value: object, below: int) -> int:
    if type(value) is not int or not 0 <= value < below:
        raise ValueError("a number out of range")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError("no list")
    return value


def _dict(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError("no mapping")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value
