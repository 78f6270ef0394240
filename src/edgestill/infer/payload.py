"""Inputs as few bytes, on their way to a teacher: the sensor's own numbers, coded where that is smaller.

| codec | of | lossless |
|---|---|---|
| `deflate` | anything: the bytes of each place in a number are put together first, then RFC 1951 | yes |
| `webp` | pictures, uint8 `[N, H, W, 3]` | yes |
| `png` | pictures, uint8 `[N, H, W]`, `[N, H, W, 1]` or `[N, H, W, 3]` | yes |
| `flac` | sound, int16 `[N, T]` or `[N, T, C]` of at most 8 channels | yes |
| `jpeg` | pictures, as `png` | no |
| `webp-lossy` | pictures, as `webp` | no |

Each input is coded by itself, so that each can be kept, compared and decoded by itself. What comes from a stranger is
looked at before it is decoded: a picture that says it is of another size is never unpacked, and no more is inflated than
the input has bytes. Pictures are coded with Pillow, sound with soundfile (both `pip install "edgestill[codecs]"`); what is
not installed, or does not work, is not offered.
"""

from __future__ import annotations

import io
import logging
import math
import zlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol, final

import numpy as np

from edgestill.core.errors import MessageError, SettingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgestill.core.protocols import Clock
    from edgestill.infer.policy import Policy

log = logging.getLogger(__name__)

MAX_BYTES: Final = 256_000_000
"""Of a batch, decoded."""
LOOK_AGAIN: Final = 64
QUALITY: Final = 90
"""Of the lossy codecs."""
_KINDS: Final = 16
_COLOURS: Final = 3
_CHANNELS: Final = 8
_RATE: Final = 16_000  # a FLAC file wants one; nobody reads it


class Codec(Protocol):
    """A way to write one input as bytes, and back."""

    @property
    def lossless(self) -> bool:
        """Whether every number comes back."""
        ...

    def takes(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
        """Whether it codes inputs of this type and shape, the batch's axis left out."""
        ...

    def encode(self, sample: NDArray[np.generic]) -> bytes:
        """One input, contiguous and little-endian."""
        ...

    def decode(self, data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[np.generic]:
        """The input.

        Raises:
            Exception: whatever a decoder makes of strangers' bytes; and ValueError where it is of another shape.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """A batch, coded.

    Attributes:
        codec: a key of `CODECS`.
        parts: the bytes of each input.
    """

    codec: str
    parts: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(map(len, self.parts))


def encode(
    batch: NDArray[np.generic],
    allowed: Sequence[str],
    *,
    until: float | None = None,
    clock: Clock | None = None,
) -> Payload | None:
    """The batch in whichever of these codecs makes it smallest; None where none is smaller than the numbers themselves.

    Args:
        batch: `[N, ...]`, N at least 1.
        allowed: keys of `CODECS`; those that do not take such inputs, or do not work here, are passed over.
        until: monotonic time after which no further codec is tried; None tries all.
        clock: that tells it.

    Raises:
        SettingError: no codec of such a name.
    """
    kind, shape = batch.dtype, batch.shape[1:]
    samples = [np.ascontiguousarray(one, dtype=kind.newbyteorder("<")) for one in batch]
    best: Payload | None = None
    for name in allowed:
        codec = _named(name)
        late = until is not None and clock is not None and clock.monotonic() >= until
        if late or not codec.takes(kind, shape) or not works(name):
            continue
        made = _encoded(name, codec, samples)
        if made is not None and made.size < (batch.nbytes if best is None else best.size):
            best = made
    return best


def _encoded(name: str, codec: Codec, samples: list[NDArray[np.generic]]) -> Payload | None:
    try:
        return Payload(codec=name, parts=tuple(codec.encode(one) for one in samples))
    except Exception:  # encoders share no class of errors; the numbers can always be sent
        log.exception("inputs cannot be coded as %s", name)
        return None


def decode(
    payload: Payload, dtype: np.dtype[Any], shape: tuple[int, ...], *, at_most: int = MAX_BYTES
) -> NDArray[np.generic]:
    """The batch `[N, *shape]` of a payload.

    Args:
        payload: from anywhere.
        dtype: of the inputs.
        shape: of one input.
        at_most: bytes of all inputs, decoded.

    Raises:
        SettingError: no codec of such a name, or one that does not work here.
        MessageError: inputs of this type and shape are not coded so, or are too large; or a part is damaged, or of another shape.
    """
    codec = _named(payload.codec)
    size = dtype.itemsize * math.prod(shape) * len(payload.parts)
    if not codec.takes(dtype, shape) or size > at_most:
        raise MessageError(
            "inputs are not coded so",
            where=payload.codec,
            expected=f"a codec for {dtype.name} {list(shape)}, and at most {at_most} bytes of them",
            got=payload.codec,
        )
    if not works(payload.codec):
        raise SettingError(
            "a codec does not work here",
            where="codec",
            expected="one of which the library is installed",
            got=payload.codec,
            fix='run: pip install "edgestill[codecs]"',
        )
    return np.stack([_decoded(codec, part, dtype, shape) for part in payload.parts])


def allowed_by(policy: Policy) -> tuple[str, ...]:
    """The codecs that a policy lets inputs travel in."""
    return (*LOSSLESS, *LOSSY) if policy.lossy else LOSSLESS


@final
class Coder:
    """What `link.inference.RemoteModel` codes with: the smallest of what is allowed here and offered there.

    Which that is, is found out for the first batch of a kind, and again for one of `LOOK_AGAIN`; in between the same codec is
    taken. Where the time is short, no further codec is tried.

    Args:
        allowed: keys of `CODECS`.
        clock: for the time that is left.
    """

    def __init__(self, allowed: Sequence[str], *, clock: Clock) -> None:
        self._allowed = tuple(allowed)
        self._clock = clock
        self._best: dict[tuple[str, tuple[int, ...], tuple[str, ...]], str | None] = {}
        self._since = 0

    def __call__(
        self, batch: NDArray[np.generic], offered: Sequence[str], until: float
    ) -> tuple[str, tuple[bytes, ...]] | None:
        """Codec and bytes of each input; None where the numbers themselves are sent.

        Args:
            batch: `[N, ...]`.
            offered: codecs that the server takes.
            until: monotonic time by which the answer is wanted; half of what is left may be spent here.
        """
        names = [name for name in self._allowed if name in offered]
        kind = (batch.dtype.str, batch.shape[1:], tuple(names))
        self._since += 1
        if kind in self._best and self._since % LOOK_AGAIN:
            known = self._best[kind]
            made = None if known is None else encode(batch, [known])
        else:
            now = self._clock.monotonic()
            made = encode(batch, names, until=now + (until - now) / 2, clock=self._clock)
            if len(self._best) >= _KINDS:
                self._best.clear()
            self._best[kind] = None if made is None else made.codec
        return None if made is None else (made.codec, made.parts)


def available(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[str, ...]:
    """The codecs that take inputs of this type and shape, and work here: each has coded and decoded something.

    Libraries of other codecs are not loaded.
    """
    return tuple(name for name, codec in CODECS.items() if codec.takes(dtype, shape) and works(name))


@cache
def works(name: str) -> bool:
    """Whether a codec, a key of `CODECS`, is installed and whole."""
    codec = CODECS[name]
    tried = np.zeros((4, 4, 3), np.uint8)
    sample = tried if codec.takes(tried.dtype, tried.shape) else np.zeros(64, np.int16)
    try:
        back = codec.decode(codec.encode(sample), sample.dtype, sample.shape)
    except Exception as error:  # noqa: BLE001  # what is not installed, or not whole, fails in many ways
        log.debug("no %s here: %s", codec, error)
        return False
    return np.array_equal(back, sample) if codec.lossless else back.shape == sample.shape


def _named(name: str) -> Codec:
    codec = CODECS.get(name)
    if codec is None:
        raise SettingError(
            "an unknown codec",
            where="codec",
            expected=", ".join(CODECS),
            got=name[:40],
            fix="name one of these",
        )
    return codec


def _decoded(codec: Codec, part: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[np.generic]:
    try:
        found = codec.decode(part, dtype, shape)
    except Exception as error:  # decoders share no class of errors
        raise MessageError(
            "a damaged payload",
            where="payload",
            expected=f"{dtype.name} {list(shape)}",
            got=f"{type(error).__name__}: {error}"[:200],
        ) from error
    if found.shape != shape or found.dtype != dtype:
        raise MessageError(
            "a payload of another input",
            where="payload",
            expected=f"{dtype.name} {list(shape)}",
            got=f"{found.dtype.name} {list(found.shape)}",
        )
    return found


@final
class _Deflate:
    """Numbers of several bytes are parted into planes: high bytes resemble high bytes."""

    lossless = True

    def takes(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:  # noqa: ARG002  # any shape
        return dtype.kind in "biuf"

    def encode(self, sample: NDArray[np.generic]) -> bytes:
        planes = np.frombuffer(sample.tobytes(), np.uint8).reshape(-1, sample.dtype.itemsize).T
        packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        return packer.compress(planes.tobytes()) + packer.flush()

    def decode(self, data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[np.generic]:
        wanted = dtype.itemsize * math.prod(shape)
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        raw = unpacker.decompress(data, wanted + 1)
        if len(raw) != wanted or not unpacker.eof or unpacker.unused_data:
            raise ValueError(f"not {wanted} bytes")
        if dtype.kind == "b" and raw.strip(b"\0\1"):
            raise ValueError("not booleans")
        planes = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, -1).T
        return np.frombuffer(planes.tobytes(), dtype.newbyteorder("<")).reshape(shape).astype(dtype)


@final
@dataclass(frozen=True, slots=True)
class _Picture:
    format: str
    lossless: bool
    greys: bool
    settings: dict[str, Any]

    def takes(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
        if dtype != np.uint8 or 0 in shape or len(shape) not in {2, 3}:
            return False
        colour = len(shape) == 3 and shape[2] == _COLOURS  # [H, W, 3]
        grey = len(shape) == 2 or (len(shape) == 3 and shape[2] == 1)
        return max(shape[:2]) <= 16_383 and (colour or (grey and self.greys))

    def encode(self, sample: NDArray[np.generic]) -> bytes:
        from PIL import Image

        pixels = sample[:, :, 0] if sample.shape[2:] == (1,) else sample
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, self.format, **self.settings)
        return file.getvalue()

    def decode(self, data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[np.generic]:
        from PIL import Image

        mode = "RGB" if shape[2:] == (_COLOURS,) else "L"
        with Image.open(io.BytesIO(data), formats=(self.format,)) as image:
            if image.size != (shape[1], shape[0]) or image.mode != mode:
                raise ValueError(f"a picture of {image.size[1]} x {image.size[0]}, {image.mode}")
            pixels: NDArray[np.generic] = np.asarray(image, dtype=dtype)
        return pixels.reshape(shape)


@final
class _Flac:
    lossless = True

    def takes(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
        many = len(shape) == 1 or (len(shape) == 2 and shape[1] <= _CHANNELS)
        return dtype == np.int16 and many and 0 not in shape

    def encode(self, sample: NDArray[np.generic]) -> bytes:
        import soundfile

        file = io.BytesIO()
        soundfile.write(file, sample, _RATE, format="FLAC", subtype="PCM_16")
        return file.getvalue()

    def decode(self, data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[np.generic]:
        import soundfile

        if not data.startswith(b"fLaC"):  # it would guess, and try all the formats that it knows
            raise ValueError("no FLAC")
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            channels = 1 if len(shape) == 1 else shape[1]
            if (sound.format, sound.frames, sound.channels) != ("FLAC", shape[0], channels):
                raise ValueError(f"{sound.frames} steps of {sound.channels} channels, {sound.format}")
            found: NDArray[np.generic] = sound.read(dtype=dtype.name)
        return found.reshape(shape)


CODECS: Final[dict[str, Codec]] = {
    "deflate": _Deflate(),
    # the quickest of its settings: smaller than the best of PNG, in a third of the time
    "webp": _Picture(
        "WEBP", lossless=True, greys=False, settings={"lossless": True, "quality": 0, "method": 0}
    ),
    "png": _Picture("PNG", lossless=True, greys=True, settings={}),
    "flac": _Flac(),
    "jpeg": _Picture("JPEG", lossless=False, greys=True, settings={"quality": QUALITY, "optimize": True}),
    "webp-lossy": _Picture("WEBP", lossless=False, greys=False, settings={"quality": QUALITY}),
}
LOSSLESS: Final = tuple(name for name, codec in CODECS.items() if codec.lossless)
LOSSY: Final = tuple(name for name, codec in CODECS.items() if not codec.lossless)
