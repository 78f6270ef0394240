"""Where the tensors of a bundle's models stand in its archive, or those of an ONNX file in the file.

Only who makes a patch asks this: a patch tells places in bytes, and whoever applies it needs to know neither format. What cannot be read has no
tensors; nothing here is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgestill.core import ustar
from edgestill.core.bundle import MANIFEST
from edgestill.core.errors import BundleError, MessageError, ModelError
from edgestill.core.manifest import MODEL, TRAIN, Manifest
from edgestill.core.protobuf import BYTES, spans_of

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTHS: Final = {2: 1, 3: 1, 4: 2, 5: 2, 10: 2, 16: 2, 1: 4, 6: 4, 12: 4}
"""TensorProto.DataType -> bytes of a number: (u)int8, (u)int16, both halves, float, (u)int32. For floats, whose bits are in order too."""

_GRAPH, _INITIALIZER = 7, 5
_TYPE, _NAME, _RAW = 2, 8, 9


@dataclass(frozen=True, slots=True)
class Span:
    """A tensor's numbers.

    Attributes:
        start: of its first byte.
        size: bytes, a multiple of `width`.
        width: bytes of one number, which stand lowest first.
    """

    start: int
    size: int
    width: int


def tensors_in(data: bytes) -> dict[tuple[str, str], Span]:
    """(which model, name of the tensor) -> where it stands."""
    found: dict[tuple[str, str], Span] = {}
    for model, start, end in _models(data):
        try:
            found |= {(model, name): span for name, span in _initializers(memoryview(data), start, end)}
        except ModelError:
            continue
    return found


def _models(data: bytes) -> list[tuple[str, int, int]]:
    """(name, first byte, byte after it)."""
    try:
        size = int(data[ustar.SIZE_FIELD].rstrip(b"\0"), 8)
        manifest = Manifest.from_bytes(data[ustar.BLOCK : ustar.BLOCK + size])
    except (ValueError, BundleError, MessageError):
        return [("", 0, len(data))]
    if data[: ustar.BLOCK] != ustar.header(MANIFEST, size):
        return []
    models, end = [], ustar.BLOCK + size + len(ustar.padding(size))
    placed: dict[str, int] = {}
    for ref in manifest.blobs.values():
        if ref.digest.hex not in placed:  # a blob that two names share is there once
            placed[ref.digest.hex] = end + ustar.BLOCK
            end += ustar.BLOCK + ref.size + len(ustar.padding(ref.size))
    for name in (MODEL, TRAIN):
        if name in manifest.blobs:
            start = placed[manifest.blobs[name].digest.hex]
            models.append((name, start, start + manifest.blobs[name].size))
    return [one for one in models if one[2] <= len(data)]


def _initializers(view: memoryview, start: int, end: int) -> Iterator[tuple[str, Span]]:
    """Those whose numbers stand in one piece."""
    for number, kind, _, first, last in spans_of(view, start, end):
        if (number, kind) != (_GRAPH, BYTES):
            continue
        for inner, inner_kind, _, begin, after in spans_of(view, first, last):
            if (inner, inner_kind) == (_INITIALIZER, BYTES):
                yield from _tensor(view, begin, after)


def _tensor(view: memoryview, start: int, end: int) -> Iterator[tuple[str, Span]]:
    name, width, raw = "", 0, (0, 0)
    for number, kind, value, first, last in spans_of(view, start, end):
        if number == _TYPE and value is not None:
            width = WIDTHS.get(value, 0)
        elif number == _NAME and kind == BYTES:
            name = bytes(view[first:last]).decode("utf-8", "replace")
        elif number == _RAW and kind == BYTES:
            raw = first, last - first
    if width and raw[1] and raw[1] % width == 0:
        yield name, Span(*raw, width)
