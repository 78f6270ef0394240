"""An adapter: a model that answers from a student's features, on a server, where the inputs themselves may not leave the device.

A device sends the layer before the student's head, in half precision, and gets logits. Those are what a larger head makes of the
same features: never the teacher's own word, so nothing is learned from them, and nothing is audited with them.

A policy names its adapter by the digest of the file, since temperatures, alpha and threshold were fitted for that one; a
server has it under a name that begins with that digest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.digest import Digest

ADAPTER: Final = "adapter"
"""Stands among the tiers of an answer."""
FEATURES: Final = "features"
"""Its input: FP16 `[N, D]`."""
LOGITS: Final = "logits"
"""Its output: FP32 `[N, C]`."""
_DIGITS: Final = 12
_LARGEST: Final = float(np.finfo(np.float16).max)


def model_name(adapter: Digest) -> str:
    """Under which a server has an adapter: `adapter-<first 12 digits of its digest>`."""
    return f"{ADAPTER}-{adapter.hex[:_DIGITS]}"


def as_sent(features: NDArray[np.floating]) -> NDArray[np.float16]:
    """Features `[N, D]` as they travel: the nearest half, and the largest one for whatever is larger; NaN stays NaN."""
    halves: NDArray[np.float16] = np.clip(features, -_LARGEST, _LARGEST).astype(np.float16)
    return halves
