"""Makes and applies patches.

- A patch is a header and a payload. The header names the base and the result by their digests, the result's size, and
  the codec of the payload. `diff` tries every codec that it knows and keeps the shortest result; one of them is the
  whole new file compressed, so that a patch is never larger than that and `HEADER_BYTES`.
- Nobody signs a patch, so nothing in it is believed. `apply` refuses another base than the one named, another result
  than the caller expects, and a result over the caller's bound, before it unpacks a byte; what it unpacks is counted
  as it comes, and its digest decides at the end.
- Memory while applying: the base (at most `frames.MAX_BASE_BYTES`) where the codec needs it, a window of at most
  `frames.MAX_WINDOW_BYTES`, and one chunk; the patch, with codec 2. While making: both files, and the compressor's tables.

What is compared are whole files; of bundles, the `.esb` archives, which are not compressed themselves.

Sources: RFC 8878 (Zstandard); the compressor's `--patch-from` is the same idea as codec 1. Codec 2 is `delta.elements`.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final, Self

import zstandard

from edgestill.core.digest import Digest
from edgestill.core.errors import PatchError
from edgestill.delta import elements
from edgestill.delta.frames import REFETCH, base_size, chunks, compressed, opened, suits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAGIC: Final = b"esdelta1"
_LAYOUT: Final = struct.Struct(">8s32s32sQB")
HEADER_BYTES: Final = _LAYOUT.size


@dataclass(frozen=True, slots=True)
class Header:
    """What a patch says of itself.

    Attributes:
        base: of the file that it is applied to.
        new: of the file that comes out.
        size: bytes of the file that comes out.
        codec: of the payload, a number of the table in `docs/delta.md`.
    """

    base: Digest
    new: Digest
    size: int
    codec: int

    @classmethod
    def read(cls, patch: BinaryIO) -> Self:
        """Reads the header from the beginning of a patch.

        Raises:
            PatchError: too short, or no patch.
        """
        data = patch.read(HEADER_BYTES)
        if len(data) < HEADER_BYTES:
            raise PatchError(
                "a patch that ends too early",
                expected=f"a header of {HEADER_BYTES} bytes",
                got=len(data),
                fix=REFETCH,
                where="header",
            )
        magic, base, new, size, codec = _LAYOUT.unpack(data)
        if magic != MAGIC:
            raise PatchError("not a patch", expected=MAGIC, got=magic, fix=REFETCH, where="header")
        return cls(Digest(base.hex()), Digest(new.hex()), size, codec)

    def to_bytes(self) -> bytes:
        """The header as it stands in a patch."""
        return _LAYOUT.pack(
            MAGIC, bytes.fromhex(self.base.hex), bytes.fromhex(self.new.hex), self.size, self.codec
        )


@dataclass(frozen=True, slots=True)
class _Codec:
    """One way to write a payload.

    Attributes:
        makes: the payload for an old and a new file, or None where it does not suit them.
        reads: the new file in pieces, of an old file, a payload and the size of what comes out.
    """

    makes: Callable[[bytes, bytes], bytes | None]
    reads: Callable[[BinaryIO, BinaryIO, int], Iterator[bytes]]


def diff(old: bytes, new: bytes) -> bytes:
    """A patch that leads from `old` to `new`.

    Its time is that of compressing `new` a few times at level 19, some seconds per megabyte, and of coding twice what
    has changed in tensors that codec 2 suits, two to ten seconds for a million numbers.
    """
    best: tuple[int, bytes] | None = None
    for number, codec in _CODECS.items():
        payload = codec.makes(old, new)
        if payload is not None and (best is None or len(payload) < len(best[1])):
            best = number, payload
    assert best is not None  # the whole file suits any
    return Header(Digest.of(old), Digest.of(new), len(new), best[0]).to_bytes() + best[1]


def apply(old: BinaryIO, patch: BinaryIO, out: BinaryIO, *, expected: Digest, max_size: int) -> None:
    """Writes the new file.

    Args:
        old: the base, at its beginning; can be sought.
        patch: at its beginning.
        out: takes the new file. After an error it holds rubbish, to be thrown away.
        expected: digest of the new file, from somebody who is trusted.
        max_size: bytes of the new file, from somebody who is trusted.

    Raises:
        PatchError: for anything that is wrong with the patch, its base or its result.
    """
    header = Header.read(patch)
    codec = _checked(header, old, expected, max_size)
    state, size = hashlib.sha256(), 0
    try:
        for chunk in codec.reads(old, patch, header.size):
            size += len(chunk)
            if size > header.size:
                raise PatchError(
                    "a patch that yields too much",
                    expected=f"{header.size} bytes",
                    fix=REFETCH,
                    where="result",
                    got="more",
                )
            state.update(chunk)
            out.write(chunk)
    except (zstandard.ZstdError, MemoryError, ValueError, ArithmeticError, struct.error) as error:
        # a device takes the whole file then, whatever a payload has found to be wrong in
        raise PatchError(
            "a damaged patch", got=error, fix=REFETCH, where="payload", expected="what its codec writes"
        ) from error
    if size != header.size or state.hexdigest() != expected.hex:
        raise PatchError(
            "a patch whose result is another file",
            expected=f"{header.size} bytes of {expected}",
            got=f"{size} bytes of sha256:{state.hexdigest()}",
            fix=REFETCH,
            where="result",
        )


def _checked(header: Header, old: BinaryIO, expected: Digest, max_size: int) -> _Codec:
    if header.new != expected:
        raise PatchError(
            "a patch for another file", expected=expected, got=header.new, fix=REFETCH, where="header: new"
        )
    if header.size > max_size:
        raise PatchError(
            "a patch that yields too much",
            expected=f"at most {max_size} bytes",
            got=header.size,
            fix=REFETCH,
            where="result",
        )
    codec = _CODECS.get(header.codec)
    if codec is None:
        raise PatchError(
            "a patch in an unknown codec",
            expected=f"one of {list(_CODECS)}",
            got=header.codec,
            fix="update edgestill, or fetch the whole file",
            where="header: codec",
        )
    base = Digest.of_chunks(chunks(old))
    old.seek(0)
    if base != header.base:
        raise PatchError(
            "a patch for another base", expected=header.base, got=base, fix=REFETCH, where="header: base"
        )
    return codec


def _make_whole(_: bytes, new: bytes) -> bytes:
    return compressed(new)


def _read_whole(_: BinaryIO, payload: BinaryIO, _size: int) -> Iterator[bytes]:
    return chunks(opened(payload))


def _make_from_base(old: bytes, new: bytes) -> bytes | None:
    return compressed(new, old) if suits(old, len(new)) else None


def _read_from_base(old: BinaryIO, payload: BinaryIO, _size: int) -> Iterator[bytes]:
    return chunks(opened(payload, old.read(base_size(old))))


# Codecs to come take the next numbers; a number never changes its meaning.
_CODECS: Final[dict[int, _Codec]] = {
    0: _Codec(_make_whole, _read_whole),
    1: _Codec(_make_from_base, _read_from_base),
    2: _Codec(elements.make, elements.read),
}
