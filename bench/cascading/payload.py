"""How many bytes an escalation sends: the same images as JSON integers, as they are, and coded, each as the body of a request."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from edgestill.core.oip import InferRequest, Tensor
from edgestill.device.arrays import to_tensor
from edgestill.infer.payload import LOSSLESS, encode

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def measured(data: Path) -> dict[str, Any]:
    """Mean bytes of a body, over the lossless test images of CIFAR-10, one image a request."""
    with np.load(data / "cifar10_lossless_4000train_1000test.npz") as found:
        images = found["x_test"]
    bodies = {
        "json": [_json(image) for image in images],
        "raw": [_body(to_tensor("input", image[None])) for image in images],
        "lossless": [coded(image, LOSSLESS) for image in images],
        "jpeg": [coded(image, ("jpeg",)) for image in images],
        "webp-lossy": [coded(image, ("webp-lossy",)) for image in images],
    }
    means = {name: float(np.mean(sizes)) for name, sizes in bodies.items()}
    return {"bytes": means, "over_json": {name: size / means["json"] for name, size in means.items()}}


def _json(image: NDArray[np.generic]) -> int:
    """As a server gets it that takes JSON only, without a blank."""
    tensor = {
        "name": "input",
        "datatype": "UINT8",
        "shape": [1, *image.shape],
        "data": image.ravel().tolist(),
    }
    return len(json.dumps({"inputs": [tensor]}, separators=(",", ":")))


def _body(tensor: Tensor) -> int:
    return len(InferRequest(inputs=(tensor,), outputs=("logits",)).encode()[0])


def coded(sample: NDArray[np.generic], allowed: tuple[str, ...] = LOSSLESS) -> int:
    """Bytes of the body that asks about one input."""
    made = encode(sample[None], allowed)
    if made is None:
        return _body(to_tensor("input", sample[None]))
    return _body(Tensor.of_strings("input", made.parts, {"codec": made.codec}))
