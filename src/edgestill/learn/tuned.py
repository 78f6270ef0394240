"""Weights that a device trained itself: a file beside the bundle, never a change of the bundle.

It holds the floats from which codes are made when the bundle is loaded (`learn.codes`), so that training can go on from them. Like a learned
head (`learn.overlay`) it belongs to one bundle by digest, is refused on any other, and undoes what was learned when it is removed.

Weights are fused before they are kept: `theta = beta trained + (1 - beta) shipped` (Wortsman et al. 2022, "Robust fine-tuning of zero-shot
models", WiSE-FT), which forgets less of what the device does not see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from edgestill.core.errors import MessageError, OverlayError
from edgestill.learn import framing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgestill.core.digest import Digest
    from edgestill.core.jsonio import JsonObject
    from edgestill.learn.stepfile import StepFile

MAX_BYTES: Final = 2**31
_MAGIC: Final = b"ESTTUNE1"
_WHERE: Final = "trained weights"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tuned:
    """Trained weights and what speaks for them.

    Attributes:
        bundle: digest of the bundle they belong to.
        step: digest of the `train.onnx` that they were trained with.
        weights: float32, for every tensor of `train.json` that has a place in the model.
        beta: share of what was trained; the rest is as shipped.
        temperature: divides the logits before the softmax, in [0.001, 1000].
        n: samples that were there to train on.
        created: seconds since 1970.
        agreement_before: share of the samples kept back that the model before got right.
        agreement_after: the same with these weights.
    """

    bundle: Digest
    step: Digest
    weights: Mapping[str, NDArray[np.float32]]
    beta: float
    temperature: float
    n: int
    created: float
    agreement_before: float
    agreement_after: float

    def to_bytes(self) -> bytes:
        """The file."""
        head: JsonObject = {
            "bundle": str(self.bundle),
            "step": str(self.step),
            "beta": self.beta,
            "temperature": self.temperature,
            "n": self.n,
            "created": self.created,
            "agreement_before": self.agreement_before,
            "agreement_after": self.agreement_after,
        }
        arrays = [np.asarray(self.weights[name], np.float32) for name in sorted(self.weights)]
        return framing.sealed(framing.pack(_MAGIC, head, arrays))

    @classmethod
    def from_bytes(cls, data: bytes, *, bundle: Digest, step: Digest, steps: StepFile) -> Self:
        """Reads the file.

        Args:
            data: of the file.
            bundle: digest of the bundle at hand.
            step: digest of its `train.onnx`.
            steps: its `train.json`.

        Raises:
            OverlayError: damaged, over a bound, or of another bundle or training step.
        """
        body = framing.opened(data, max_bytes=MAX_BYTES)
        if body is None:
            raise _refused("a whole file", "another digest, or too many bytes")
        try:
            fields, rest = framing.unpack(body, magic=_MAGIC, where=_WHERE, max_bytes=MAX_BYTES)
            for name, wanted in (("bundle", bundle), ("step", step)):
                if fields.digest(name) != wanted:
                    raise _refused(wanted, fields.digest(name))
            return cls(
                bundle=bundle,
                step=step,
                weights=_weights(rest, steps),
                beta=fields.number("beta", least=0, most=1),
                temperature=fields.number("temperature", least=1e-3, most=1e3),
                n=fields.integer("n"),
                created=fields.number("created", least=0, most=1e11),
                agreement_before=fields.number("agreement_before", least=0, most=1),
                agreement_after=fields.number("agreement_after", least=0, most=1),
            )
        except MessageError as error:
            raise _refused(str(error.expected), error.got or error.what) from error


def fused(
    shipped: Mapping[str, NDArray[np.float32]], trained: Mapping[str, NDArray[np.float32]], beta: float
) -> dict[str, NDArray[np.float32]]:
    """`beta trained + (1 - beta) shipped`, for every name of the first."""
    part, rest = np.float32(beta), np.float32(1 - beta)
    return {name: part * trained[name] + rest * value for name, value in shipped.items()}


def placed_names(steps: StepFile) -> list[str]:
    """Of the tensors that the model has, sorted."""
    return sorted(one.name for one in steps.tensors if one.place is not None)


def _weights(rest: memoryview, steps: StepFile) -> dict[str, NDArray[np.float32]]:
    shapes = {one.name: one.shape for one in steps.tensors}
    names = placed_names(steps)
    sizes = [int(np.prod(shapes[name], dtype=np.int64)) for name in names]
    arrays = framing.cut(rest, sizes, "float32", where=_WHERE)
    made = {
        name: array.astype(np.float32).reshape(shapes[name])
        for name, array in zip(names, arrays, strict=True)
    }
    if not all(np.isfinite(one).all() for one in made.values()):
        raise _refused("finite numbers", "NaN or infinity")
    return made


def _refused(expected: object, got: object) -> OverlayError:
    return OverlayError("trained weights that cannot be used", where=_WHERE, expected=expected, got=got)
