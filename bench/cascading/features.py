"""What an adapter brings back that is asked with a student's features, where inputs must stay on the device; and how few bytes those are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cascading.payload import coded
from cascading.quality import ORDERS, streamed
from cascading.sets import parts
from cascading.stream import alone
from edgestill.infer.adapter import as_sent
from edgestill.infer.engine import OnnxEngine
from edgestill.lab.measure import run_model
from edgestill.lab.packing.assemble import answers_from

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from cascading.sets import Part


def measured(name: str, data: Path, kept: Path, *, quick: bool) -> dict[str, Any]:
    """One data set."""
    found = list(parts(name, data, kept, quick=quick, leaves="features"))
    sent = [as_sent(run_model(OnnxEngine(part.model), part.inputs)[1]) for part in found]
    asked = [_of_adapter(part, features) for part, features in zip(found, sent, strict=True)]
    labels = np.concatenate([part.labels for part in asked])
    right = {
        voice: float((np.concatenate(each).argmax(1) == labels).mean())
        for voice, each in (
            ("student", [alone(part).student for part in asked]),
            ("teacher", [part.teacher for part in found]),
        )
    }
    sizes = [np.array([coded(row) for row in features]) for features in sent]
    streams = [streamed(asked, sizes, seed) for seed in range(1 if quick else ORDERS)]
    accuracy = float(np.mean([one["right"] for one in streams]))
    return {
        "n": len(labels),
        "accuracy": right,
        "at_share": {
            "accuracy": accuracy,
            "share": float(np.mean([one["asked"] for one in streams])),
            "recovered": (accuracy - right["student"]) / (right["teacher"] - right["student"]),
        },
        "bytes_each": {
            "features": float(np.concatenate(sizes).mean()),
            "inputs": float(np.mean([coded(one) for part in found for one in part.inputs])),
        },
        "width": int(sent[0].shape[1]),
        "adapters": sum(part.adapter is not None for part in found),
        "bundles": len(found),
        "reports": [part.policy.evidence["report"] for part in found],
    }


def _of_adapter(part: Part, features: NDArray[np.float16]) -> Part:
    """The adapter in the teacher's place, and no other world; without one the policy asks nobody."""
    return replace(
        part,
        teacher=part.teacher if part.adapter is None else answers_from(part.adapter, features),
        shifted=part.shifted[:0],
        shifted_teacher=part.shifted_teacher[:0],
    )
