"""Makes and applies patches.

- A patch is a header and a payload. The header names the base and the result by their digests, the result's size, and
  the codec of the payload. `diff` tries every codec that it knows and keeps the shortest result; one of them is the
  whole new file compressed, so that a patch is never larger than that and `HEADER_BYTES`.
- Nobody signs a patch, so nothing in it is believed. `apply` refuses another base than the one named, another result
  than the caller expects, and a result over the caller's bound, before it unpacks a byte; what it unpacks is counted
  as it comes, and its digest decides at the end.
- Memory while applying: the base (at most `MAX_BASE_BYTES`) where the codec needs it, a window of at most
  `MAX_WINDOW_BYTES`, and one chunk. While making: both files, and the compressor's tables.

What is compared are whole files; of bundles, the `.esb` archives, which are not compressed themselves.

Sources: RFC 8878 (Zstandard); the compressor's `--patch-from` is the same idea as codec 1.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final, Self

import zstandard

from edgestill.core.digest import Digest
from edgestill.core.errors import PatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAGIC: Final = b"esdelta1"
LEVEL: Final = 19
CHUNK: Final = 65_536
MAX_BASE_BYTES: Final = 2**26
MAX_WINDOW_LOG: Final = 27
MAX_WINDOW_BYTES: Final = 2**MAX_WINDOW_LOG

_MIN_WINDOW_LOG: Final = 10
_LAYOUT: Final = struct.Struct(">8s32s32sQB")
HEADER_BYTES: Final = _LAYOUT.size

_REFETCH: Final = "fetch the whole file"


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
                fix=_REFETCH,
                where="header",
            )
        magic, base, new, size, codec = _LAYOUT.unpack(data)
        if magic != MAGIC:
            raise PatchError("not a patch", expected=MAGIC, got=magic, fix=_REFETCH, where="header")
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
        opens: the new file as a stream, of an old file and a payload.
    """

    makes: Callable[[bytes, bytes], bytes | None]
    opens: Callable[[BinaryIO, BinaryIO], BinaryIO]


def diff(old: bytes, new: bytes) -> bytes:
    """A patch that leads from `old` to `new`.

    Its time is that of compressing `new` twice at level 19: some seconds per megabyte.
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
        for chunk in _chunks(codec.opens(old, patch)):
            size += len(chunk)
            if size > header.size:
                raise PatchError(
                    "a patch that yields too much",
                    expected=f"{header.size} bytes",
                    fix=_REFETCH,
                    where="result",
                    got="more",
                )
            state.update(chunk)
            out.write(chunk)
    except (zstandard.ZstdError, MemoryError) as error:
        raise PatchError(
            "a damaged patch", got=error, fix=_REFETCH, where="payload", expected="whole zstd frames"
        ) from error
    if size != header.size or state.hexdigest() != expected.hex:
        raise PatchError(
            "a patch whose result is another file",
            expected=f"{header.size} bytes of {expected}",
            got=f"{size} bytes of sha256:{state.hexdigest()}",
            fix=_REFETCH,
            where="result",
        )


def _checked(header: Header, old: BinaryIO, expected: Digest, max_size: int) -> _Codec:
    if header.new != expected:
        raise PatchError(
            "a patch for another file", expected=expected, got=header.new, fix=_REFETCH, where="header: new"
        )
    if header.size > max_size:
        raise PatchError(
            "a patch that yields too much",
            expected=f"at most {max_size} bytes",
            got=header.size,
            fix=_REFETCH,
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
    base = Digest.of_chunks(_chunks(old))
    old.seek(0)
    if base != header.base:
        raise PatchError(
            "a patch for another base", expected=header.base, got=base, fix=_REFETCH, where="header: base"
        )
    return codec


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK):
        yield chunk


def _make_whole(_: bytes, new: bytes) -> bytes:
    return _compressor(len(new)).compress(new)


def _open_whole(_: BinaryIO, payload: BinaryIO) -> BinaryIO:
    return _stream(zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES), payload)


def _make_from_base(old: bytes, new: bytes) -> bytes | None:
    if not 0 < len(old) <= MAX_BASE_BYTES or len(old) + len(new) > MAX_WINDOW_BYTES:
        return None
    return _compressor(len(new), old).compress(new)


def _open_from_base(old: BinaryIO, payload: BinaryIO) -> BinaryIO:
    base = old.read(MAX_BASE_BYTES + 1)
    if not 0 < len(base) <= MAX_BASE_BYTES:
        raise PatchError(
            "a base out of bounds",
            expected=f"1 to {MAX_BASE_BYTES} bytes",
            got=len(base),
            fix=_REFETCH,
            where="base",
        )
    return _stream(
        zstandard.ZstdDecompressor(dict_data=_raw(base), max_window_size=MAX_WINDOW_BYTES), payload
    )


def _compressor(size: int, base: bytes | None = None) -> zstandard.ZstdCompressor:
    # the window spans base and new file: every byte of the base stays in reach to the end
    reach = max(size + len(base or b"") - 1, 1).bit_length()
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL,
        source_size=size,
        window_log=min(max(reach, _MIN_WINDOW_LOG), MAX_WINDOW_LOG),
        write_checksum=False,  # the digest of the result is a better one
    )
    return zstandard.ZstdCompressor(
        compression_params=parameters, dict_data=None if base is None else _raw(base)
    )


def _raw(base: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _stream(decompressor: zstandard.ZstdDecompressor, payload: BinaryIO) -> BinaryIO:
    # frames beyond the first are read, so that bytes after it are damage or too much, and never pass unseen
    return decompressor.stream_reader(payload, read_across_frames=True, closefd=False)


# Codecs to come take the next numbers; a number never changes its meaning.
_CODECS: Final[dict[int, _Codec]] = {
    0: _Codec(_make_whole, _open_whole),
    1: _Codec(_make_from_base, _open_from_base),
}
