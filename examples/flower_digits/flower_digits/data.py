"""Scikit-learn's digits, parted: each client has learned from some classes only, and nobody needs the labels of `shared`."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from edgestill.federated import Samples

LEARN, SHARED, TEST = slice(900, None), slice(500, 900), slice(0, 500)


def part(which: slice) -> Samples:
    """Pixels in [0, 1] `[N, 64]`, and class numbers."""
    inputs, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(inputs))[which]
    return Samples((inputs[order] / 16).astype(np.float32), labels[order].astype(np.int64))


def of_client(client: int, clients: int) -> Samples:
    """Those of this client's classes; no other client has them."""
    everything = part(LEARN)
    mine = everything.targets * clients // 10 == client
    return Samples(everything.inputs[mine], everything.targets[mine])
