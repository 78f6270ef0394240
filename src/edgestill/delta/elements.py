"""Codec 2: the numbers of changed tensors as differences, one by one; everything else as codec 1 has it.

A payload is a table of tensors, a frame, and a code. The frame holds the new file without these tensors, with the base
without them as its dictionary; the code holds, number by number, what is added to the base's numbers, modulo their width. The table tells
byte ranges of both files, so that a device needs to understand neither of them.
"""

from __future__ import annotations

import io
import math
import struct
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from edgestill.core.errors import PatchError
from edgestill.delta.coder import BLOCK, Odds, Reader, Writer
from edgestill.delta.frames import (
    CHUNK,
    MAX_BASE_BYTES,
    MAX_WINDOW_BYTES,
    REFETCH,
    base_size,
    compressed,
    opened,
    suits,
)
from edgestill.delta.tensors import Span, tensors_in

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_TENSORS: Final = 4096
MAX_NUMBERS: Final = 2**22
"""Of all tensors together; see docs/delta.md for the time that they take."""
MAX_WIDE: Final = 2**16
"""Of these, such as are wider than a byte: they have many digits, each of which takes its time."""
MAX_OVERHEAD: Final = 2**16
"""Bytes by which a payload may be longer than what comes out of it."""

_PIECE: Final = 1024 * BLOCK
"""Numbers that are in memory at one time."""
_LETTERS: Final = {1: "B", 2: "H", 4: "I"}


@dataclass(frozen=True, slots=True)
class _Change:
    """One tensor in both files.

    Attributes:
        old: its first byte in the base.
        new: its place in the new file.
    """

    old: int
    new: Span


def make(old: bytes, new: bytes) -> bytes | None:
    """The payload; None where the base does not suit or no tensor is better told by differences."""
    if not suits(old, len(new)):
        return None
    changes = _chosen(old, new)
    if not changes:
        return None
    writer, odds = Writer(), _odds()
    for change in changes:
        _write(writer, odds[change.new.width], old, new, change)
    frame = compressed(_rest(new, changes, new=True), _rest(old, changes) or None)
    return b"".join([_table_bytes(changes), _varint(len(frame)), frame, writer.to_bytes()])


def read(old: BinaryIO, payload: BinaryIO, size: int) -> Iterator[bytes]:
    """The new file in pieces.

    Args:
        old: the base; is sought in.
        payload: to its end.
        size: bytes that the new file has.

    Raises:
        PatchError: for anything that is wrong with the payload. zstandard.ZstdError: with its frame.
    """
    base = base_size(old)
    stream = io.BytesIO(payload.read(size + MAX_OVERHEAD + 1))
    if stream.seek(0, io.SEEK_END) > size + MAX_OVERHEAD:
        raise _damaged("length", f"at most {size + MAX_OVERHEAD} bytes", "more")
    stream.seek(0)
    changes = list(_table(stream, base, size))
    frame = io.BytesIO(_exactly(stream, _number(stream)))
    rest = opened(frame, _rest_read(old, changes) or None)
    reader, odds, end = Reader(stream.read()), _odds(), 0
    for change in changes:
        yield from _up_to(rest, change.new.start - end)
        yield from _numbers(reader, odds[change.new.width], old, change)
        end = change.new.start + change.new.size
    reader.end()
    yield from _up_to(rest, size - end + 1)  # one byte too many is too much, which who counts will see


def _chosen(old: bytes, new: bytes) -> list[_Change]:
    """The tensors that changed, and that differences tell in fewer bytes than a frame would: what saves most for a number first."""
    before, gains = tensors_in(old), []
    wide = MAX_WIDE
    for name, span in tensors_in(new).items():
        was = before.get(name)
        if was is None or (was.size, was.width) != (span.size, span.width):
            continue
        count = span.size // span.width
        if count > (MAX_NUMBERS if span.width == 1 else wide):
            continue
        wide -= count if span.width > 1 else 0  # whether it is chosen or not: trying takes the time
        saved = _saved(old, new, _Change(was.start, span))
        if saved > 0:
            gains.append((saved / count, _Change(was.start, span)))
    chosen: list[_Change] = []
    left = MAX_NUMBERS
    for _, change in sorted(gains, key=lambda one: -one[0]):
        count = change.new.size // change.new.width
        if count <= left and len(chosen) < MAX_TENSORS:
            chosen.append(change)
            left -= count
    return _forwards(chosen)


def _forwards(changes: list[_Change]) -> list[_Change]:
    """Those that stand in the same order in both files, and apart."""
    found: list[_Change] = []
    for change in sorted(changes, key=lambda one: one.new.start):
        last = found[-1] if found else _Change(0, Span(0, 0, 1))
        if change.new.start >= last.new.start + last.new.size and change.old >= last.old + last.new.size:
            found.append(change)
    return found


def _saved(old: bytes, new: bytes, change: _Change) -> int:
    """Bytes that differences save against a frame; 0 or less where that is not tried, or too long."""
    span = change.new
    was, now = old[change.old : change.old + span.size], new[span.start : span.start + span.size]
    if was == now:
        return 0
    frame = len(compressed(now, was))
    if span.width == 1 and _entropy(was, now) >= frame:
        return 0
    writer, odds = Writer(), Odds()
    _write(writer, odds, old, new, change)
    return frame - len(writer.to_bytes())


def _entropy(was: bytes, now: bytes) -> float:
    """Bytes that the differences of two tensors would take, were each independent of the others."""
    counts = Counter((a - b) & 0xFF for a, b in zip(now, was, strict=True))
    return sum(count * math.log2(len(now) / count) for count in counts.values()) / 8


def _write(writer: Writer, odds: Odds, old: bytes, new: bytes, change: _Change) -> None:
    span = change.new
    for offset, count in _pieces(span):
        now = struct.unpack_from(f"<{count}{_LETTERS[span.width]}", new, span.start + offset)
        was = struct.unpack_from(f"<{count}{_LETTERS[span.width]}", old, change.old + offset)
        bits = 8 * span.width
        half, whole = 1 << (bits - 1), 1 << bits
        writer.numbers([(a - b + half) % whole - half for a, b in zip(now, was, strict=True)], odds, bits)


def _numbers(reader: Reader, odds: Odds, old: BinaryIO, change: _Change) -> Iterator[bytes]:
    span = change.new
    bits = 8 * span.width
    mask = (1 << bits) - 1
    for offset, count in _pieces(span):
        layout = f"<{count}{_LETTERS[span.width]}"
        old.seek(change.old + offset)
        was = struct.unpack(layout, old.read(count * span.width))
        added = reader.numbers(count, odds, bits)
        yield struct.pack(layout, *[a + b & mask for a, b in zip(was, added, strict=True)])


def _pieces(span: Span) -> Iterator[tuple[int, int]]:
    """(offset in bytes, count of numbers)."""
    count = span.size // span.width
    for at in range(0, count, _PIECE):
        yield at * span.width, min(_PIECE, count - at)


def _rest(data: bytes, changes: list[_Change], *, new: bool = False) -> bytes:
    """One of both files without the tensors."""
    kept, end = [], 0
    for change in changes:
        start = change.new.start if new else change.old
        kept.append(data[end:start])
        end = start + change.new.size
    return b"".join([*kept, data[end:]])


def _rest_read(old: BinaryIO, changes: list[_Change]) -> bytes:
    """The base without the tensors, which are not read."""
    kept = []
    for change in changes:
        kept.append(old.read(change.old - old.tell()))
        old.seek(change.old + change.new.size)
    return b"".join([*kept, old.read(MAX_BASE_BYTES)])


def _table_bytes(changes: list[_Change]) -> bytes:
    """How many; for each the gaps before it in both files, its numbers, and their width."""
    table, end, old_end = [_varint(len(changes))], 0, 0
    for change in changes:
        span = change.new
        gaps = span.start - end, change.old - old_end
        table += [*map(_varint, (*gaps, span.size // span.width)), bytes([span.width])]
        end, old_end = span.start + span.size, change.old + span.size
    return b"".join(table)


def _table(stream: BinaryIO, base: int, size: int) -> Iterator[_Change]:
    """The tensors, each within both files, and behind the one before."""
    count = _number(stream)
    if count > MAX_TENSORS:
        raise _damaged("table", f"at most {MAX_TENSORS} tensors", count)
    end = old_end = numbers = wide = 0
    for _ in range(count):
        start, was, length = end + _number(stream), old_end + _number(stream), _number(stream)
        width = _exactly(stream, 1)[0]
        numbers += length
        wide += length if width > 1 else 0
        if width not in _LETTERS or numbers > MAX_NUMBERS or wide > MAX_WIDE:
            raise _damaged(
                "table",
                f"at most {MAX_NUMBERS} numbers, {MAX_WIDE} of them of two or four bytes",
                f"{length} more, of {width} bytes",
            )
        end, old_end = start + length * width, was + length * width
        if end > size or old_end > base:
            raise _damaged("table", f"ranges within {base} and {size} bytes", f"ends at {old_end} and {end}")
        yield _Change(was, Span(start, length * width, width))


def _up_to(stream: BinaryIO, count: int) -> Iterator[bytes]:
    """The next so many bytes, or as many as there are."""
    while count and (chunk := stream.read(min(count, CHUNK))):
        count -= len(chunk)
        yield chunk


def _odds() -> dict[int, Odds]:
    return {width: Odds() for width in _LETTERS}


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first (LEB128)."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _number(stream: BinaryIO) -> int:
    number = 0
    for place in range(0, 63, 7):
        byte = _exactly(stream, 1)[0]
        number |= (byte & 0x7F) << place
        if byte < 0x80:
            return number
    raise _damaged("table", "numbers of at most 9 bytes", "a longer one")


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(min(count, MAX_BASE_BYTES + MAX_WINDOW_BYTES))
    if len(data) < count:
        raise _damaged("table", f"{count} bytes more", f"{len(data)}")
    return data


def _damaged(where: str, expected: str, got: object) -> PatchError:
    return PatchError("a damaged patch", where=f"payload: {where}", expected=expected, got=got, fix=REFETCH)
