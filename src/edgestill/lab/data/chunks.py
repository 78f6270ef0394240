"""The bytes of tensors, for digests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

_CHUNK: Final = 4 * 2**20


def byte_chunks(values: Tensor) -> Iterator[bytes]:
    """The bytes of a tensor in row-major order, some megabytes at a time, so that large data is never copied whole."""
    if values.ndim == 0 or len(values) == 0:
        values = values.reshape(1, -1)
    rows = max(1, _CHUNK // max(1, values[0].numel() * values.element_size()))
    for part in torch.split(values.detach(), rows):
        flat = part.cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().tobytes()  # not every type of torch has one in numpy
