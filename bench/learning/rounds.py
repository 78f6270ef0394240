"""How many bytes a head costs that devices have learned together, until another device has it: the patch to the next version of their bundle.

The bundle is of a published ResNet-20 (64 features, 10 classes), in int8, as `bundle build` makes it. Its devices see JPEG images of CIFAR-10's
test part, which the network has not learned from; in the second world they have half of their light. A third of the 9,000 images calibrates the
bundle (as they are), a third is dealt to ten devices (Dirichlet 0.1), who send one message each as the policy says; of the last third one half
is what the operator checks the head on, and the other half tells. The head is robust, as `learn round` makes it, and the bundle's own
statistics count a tenth: the prior is of the first world.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from edgestill.core.bundle import Bundle, archive_bytes
from edgestill.core.digest import Digest
from edgestill.core.sharing import Sharing
from edgestill.delta.codec import apply, diff
from edgestill.infer.engines import engine_of
from edgestill.infer.policy import Policy
from edgestill.lab.measure import run_model
from edgestill.lab.packing.export import export_onnx
from edgestill.lab.packing.finished import pack_onnx
from edgestill.lab.packing.newhead import with_head
from edgestill.learn import robust
from edgestill.learn.coordinates import Coordinates
from edgestill.learn.statistics import Statistics
from edgestill.learn.together import LEAST_SQUARES, head_of
from learning.frozen import CLASSES, holders_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.lab.data.samples import Samples
    from edgestill.lab.packing.newhead import Reheaded

IMAGES: Final = 9_000
DEVICES: Final = 10
SKEW: Final = 0.1
PRIOR: Final = 0.1
LABELS: Final = tuple(f"class {one}" for one in range(CLASSES))
LIGHT: Final = {"as they are": 1.0, "half of the light": 0.5}
"""What devices see -> by what images are multiplied."""


def measured(data: Path, folder: Path, *, quick: bool = False) -> dict[str, Any]:
    """World -> bytes up and down, accuracies."""
    from searching.teachers import images, resnet20

    found = images(data, "test", 1)
    order = np.random.default_rng(2_026).permutation(len(found))[: 600 if quick else IMAGES]
    calibrating, seen, last = (found.where(np.sort(one)) for one in np.array_split(order, 3))
    path = folder / "resnet20.esb"
    folder.mkdir(parents=True, exist_ok=True)
    network = resnet20(data).eval()
    pack_onnx(
        export_onnx(network, torch.from_numpy(calibrating.inputs[:2])),
        calibrating,
        policy=Policy(labels=LABELS, statistics=Sharing()),
    ).save(path)
    return {world: _round(path, seen, last, light) for world, light in LIGHT.items()}


def figures(found: dict[str, Any]) -> dict[str, float]:
    """The largest of the patches."""
    return {"update_bytes": max(float(one["patch"]) for one in found.values())}


def _round(path: Path, seen: Samples, last: Samples, light: float) -> dict[str, Any]:
    bundle = Bundle.open(path)
    seen, last = (replace(one, inputs=_lit(one.inputs, light)) for one in (seen, last))
    check, tells = last.where(np.arange(len(last)) % 2 == 0), last.where(np.arange(len(last)) % 2 == 1)
    messages = _messages(bundle, seen)
    made = with_head(
        bundle,
        {LEAST_SQUARES: head_of(_total(bundle, messages))},
        check,
        version="1.0.1",
        evidence={"sums": {"samples": len(seen)}},
    )
    return {
        "patch": _patch(bundle, made),
        "message": max(len(one) for one in messages.values()),
        "before": _right(bundle.read("model.onnx"), bundle, tells),
        "after": _right(made.blobs["model.onnx"], bundle, tells),
        "rounded": made.rounded,
        "bundle": bundle.path.stat().st_size,
    }


def _lit(inputs: NDArray[np.generic], light: float) -> NDArray[np.generic]:
    return inputs if light == 1 else np.rint(inputs * light).astype(inputs.dtype)


def _messages(bundle: Bundle, seen: Samples) -> dict[str, bytes]:
    """Device -> what it sends."""
    _, features = run_model(_engine(bundle, bundle.read("model.onnx")), seen.inputs)
    known = Statistics.from_bytes(bundle.read("reference.stats"))
    coordinates = Coordinates.of(known, Policy.from_bytes(bundle.read("policy.json")).statistics.kept)
    holders = holders_of(seen.labels, devices=DEVICES, skew=SKEW, rng=np.random.default_rng(7))
    empty = Statistics.empty(backbone=known.backbone, window=1, classes=CLASSES, features=features.shape[1])
    targets = np.eye(CLASSES)[seen.labels]
    return {
        f"d{device}": coordinates.project(
            empty.add(features[holders == device], targets[holders == device])
        ).to_bytes("int8")
        for device in range(DEVICES)
        if (holders == device).any()
    }


def _total(bundle: Bundle, messages: dict[str, bytes]) -> Statistics:
    """As `learn round` has it, whose hub weighs the sums in coordinates; with the bundle's own."""
    known = Statistics.from_bytes(bundle.read("reference.stats"))
    coordinates = Coordinates.of(known, Policy.from_bytes(bundle.read("policy.json")).statistics.kept)
    sums = {device: Statistics.from_bytes(body) for device, body in messages.items()}
    agreed = robust.agree(sums, coordinates.project(known), robust.Rule(prior=PRIOR))
    return robust.with_prior(coordinates.lift(agreed.total), known, PRIOR)


def _patch(bundle: Bundle, made: Reheaded) -> int:
    """Bytes from one archive to the other; it is applied, and must lead there."""
    before, after = bundle.path.read_bytes(), archive_bytes(made.manifest, made.blobs)
    patch, out = diff(before, after), io.BytesIO()
    apply(io.BytesIO(before), io.BytesIO(patch), out, expected=Digest.of(after), max_size=len(after))
    if out.getvalue() != after:
        raise AssertionError
    return len(patch)


def _right(model: bytes, bundle: Bundle, tells: Samples) -> float:
    """Share of answers that are right, in percent."""
    logits, _ = run_model(_engine(bundle, model), tells.inputs)
    return 100 * float((logits.argmax(axis=1) == tells.labels).mean())


def _engine(bundle: Bundle, model: bytes) -> Any:
    return engine_of(model, bundle.manifest.hardware_class)
