"""What a device learned by itself: a head beside the bundle, never a change of the bundle.

An overlay belongs to one bundle, by digest; on any other it is refused. It is a small file with a digest of its own at
the end, so that a part of it is never taken for the whole. Removing the file undoes what was learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from edgestill.core.errors import MessageError, OverlayError
from edgestill.learn import framing
from edgestill.learn.statistics import MAX_CLASSES, MAX_FEATURES, Head

if TYPE_CHECKING:
    from edgestill.core.digest import Digest

MAX_BYTES: Final = 64_000_000
_MAGIC: Final = b"ESTOVER1"
_WHERE: Final = "overlay"
_FIX: Final = "remove the overlay; the bundle's own head serves"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Overlay:
    """A learned head and what speaks for it.

    Attributes:
        bundle: digest of the bundle it belongs to.
        head: weight `[D, C]` and bias `[C]`, finite.
        temperature: divides the head's scores before the softmax, in [0.001, 1000].
        n: samples it was learned from.
        created: seconds since 1970.
        agreement_before: share of the samples it was tried on, on which what served then agreed with the teacher.
        agreement_after: the same with this head, asked of each sample before it learned from it.
    """

    bundle: Digest
    head: Head
    n: int
    created: float
    agreement_before: float
    agreement_after: float
    temperature: float = 1.0

    def __post_init__(self) -> None:
        weight, bias = self.head
        if weight.ndim != 2 or bias.shape != weight.shape[1:]:  # [D, C]
            raise _refused("weight [D, C] and bias [C]", f"{list(weight.shape)} and {list(bias.shape)}")
        if not (0 < weight.shape[0] <= MAX_FEATURES and 0 < weight.shape[1] <= MAX_CLASSES):
            raise _refused(f"at most {MAX_FEATURES} features, {MAX_CLASSES} classes", list(weight.shape))
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise _refused("finite numbers", "NaN or infinity")

    def to_bytes(self) -> bytes:
        """The file."""
        weight, bias = (part.astype(np.float32) for part in self.head)
        body = framing.pack(
            _MAGIC,
            {
                "bundle": str(self.bundle),
                "features": weight.shape[0],
                "classes": weight.shape[1],
                "n": self.n,
                "created": self.created,
                "agreement_before": self.agreement_before,
                "agreement_after": self.agreement_after,
                "temperature": self.temperature,
            },
            (weight, bias),
        )
        return framing.sealed(body)

    @classmethod
    def from_bytes(cls, data: bytes, *, bundle: Digest | None = None) -> Self:
        """Reads an overlay.

        Args:
            data: of the file.
            bundle: the one that serves, where the reader knows.

        Raises:
            OverlayError: damaged, over a bound, or of another bundle.
        """
        body = framing.opened(data, max_bytes=MAX_BYTES)
        if body is None:
            raise _refused("a whole overlay", "another digest, or too many bytes")
        try:
            overlay = cls._read(body)
        except MessageError as error:
            raise _refused(str(error.expected), error.got or error.what) from error
        if bundle is not None and overlay.bundle != bundle:
            raise OverlayError(
                "an overlay of another bundle", where=_WHERE, expected=bundle, got=overlay.bundle, fix=_FIX
            )
        return overlay

    @classmethod
    def _read(cls, body: bytes) -> Self:
        fields, rest = framing.unpack(body, magic=_MAGIC, where=_WHERE, max_bytes=MAX_BYTES)
        features = fields.integer("features", least=1, most=MAX_FEATURES)
        classes = fields.integer("classes", least=1, most=MAX_CLASSES)
        weight, bias = framing.cut(rest, (features * classes, classes), "float32", where=_WHERE)
        return cls(
            bundle=fields.digest("bundle"),
            head=Head(weight.reshape(features, classes).astype(np.float32), bias.astype(np.float32)),
            n=fields.integer("n"),
            created=fields.number("created", least=0, most=1e11),
            agreement_before=fields.number("agreement_before", least=0, most=1),
            agreement_after=fields.number("agreement_after", least=0, most=1),
            temperature=fields.number("temperature", least=1e-3, most=1e3),
        )


def _refused(expected: str, got: object) -> OverlayError:
    return OverlayError("an overlay that cannot be used", where=_WHERE, expected=expected, got=got, fix=_FIX)
