"""A federation on scikit-learn's digits: bundles of different random networks, and clients who each saw a few classes only."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

from edgestill.core import bundle
from edgestill.core.digest import Digest
from edgestill.federated.node import Node, Samples
from edgestill.infer.golden import Golden
from edgestill.infer.policy import Policy
from edgestill.learn.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

PIXELS, WIDTH, CLASSES = 64, 128, 10
SKEWED = ((0, 1, 2, 3), (3, 4, 5, 6), (6, 7, 8, 9), (9, 0, 4, 7))
"""What each client has seen."""


class Digits(NamedTuple):
    """Three disjoint parts: to learn from, to ask about (nobody uses its labels), to test with."""

    train: Samples
    proxy: Samples
    test: Samples


@cache
def digits() -> Digits:
    """897 to learn from, 400 to ask about, 500 to test with; pixels in [0, 1]."""
    inputs, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(inputs))
    inputs, labels = (inputs[order] / 16).astype(np.float32), labels[order].astype(np.int64)
    cuts = ((900, None), (500, 900), (0, 500))
    return Digits(*(Samples(inputs[slice(*cut)], labels[slice(*cut)]) for cut in cuts))


def of_classes(samples: Samples, classes: Sequence[int]) -> Samples:
    """Those samples that are of these classes."""
    chosen = np.isin(samples.targets, classes)
    return Samples(samples.inputs[chosen], samples.targets[chosen])


def weights(seed: int, width: int = WIDTH) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of the first layer, which nobody trains: `[64, width]` and `[width]`."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(PIXELS, width)) / 3
    return first.astype(np.float32), (rng.normal(size=width) * 0.3).astype(np.float32)


def features_of(seed: int, inputs: NDArray[np.generic], width: int = WIDTH) -> NDArray[np.float32]:
    """What the network's features are, by numpy."""
    first, bias = weights(seed, width)
    features: NDArray[np.float32] = np.maximum(inputs.astype(np.float32) @ first + bias, 0)
    return features


def network(seed: int, width: int = WIDTH) -> bytes:
    """`features = relu(input @ first + bias)`, `logits = features @ 0`: whatever is known, a head must have learned."""
    first, bias = weights(seed, width)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", "first"], ["scores"]),
            helper.make_node("Add", ["scores", "bias"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["features"]),
            helper.make_node("MatMul", ["features", "last"], ["logits"]),
        ],
        "digits",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", PIXELS])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", width]),
        ],
        [
            numpy_helper.from_array(first, "first"),
            numpy_helper.from_array(bias, "bias"),
            numpy_helper.from_array(np.zeros((width, CLASSES), dtype=np.float32), "last"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def kind_of(seed: int, width: int = WIDTH) -> Statistics:
    """Sums over nothing, of this network."""
    backbone = Digest.of(network(seed, width))
    return Statistics.empty(backbone=backbone, window=0, classes=CLASSES, features=width)


def write_bundle(path: Path, seed: int, width: int = WIDTH) -> Path:
    """The bundle of a network that knows nothing yet, at this path."""
    inputs = digits().proxy.inputs[:20]
    reference = kind_of(seed, width).add(
        features_of(seed, inputs, width), np.full((len(inputs), CLASSES), 0.1)
    )
    golden = Golden(input=inputs[:2], logits=np.zeros((2, CLASSES), dtype=np.float32), tolerance=1e-3)
    blobs = {
        "model.onnx": network(seed, width),
        "policy.json": Policy(labels=tuple("0123456789")).to_bytes(),
        "golden.npz": golden.to_bytes(),
        "lineage.json": b"{}",
        "card.md": b"# digits\n",
        "reference.stats": reference.to_bytes(),
    }
    manifest, ordered = bundle.build(name="digits", version="1.0.0", hardware_class="any", blobs=blobs)
    path.write_bytes(bundle.archive_bytes(manifest, ordered))
    return path


def client_node(folder: Path, client: int, *, seed: int = 0, width: int = WIDTH) -> Node:
    """One of the four clients: its own few classes to learn from, all classes to be tested with."""
    path = folder / f"{seed}-{width}.esb"
    if not path.exists():
        write_bundle(path, seed, width)
    return Node.open(path, of_classes(digits().train, SKEWED[client]), heldout=digits().test)
