"""What the cascade recovers of the gap between student and teacher, at a share of escalations, and what the budget does under shift."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cascading.payload import coded
from cascading.risk import splits
from cascading.sets import SHARE, described, parts
from cascading.stream import alone, walk
from edgestill.infer.escalation import gained, gains, oracle

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from cascading.sets import Part
    from cascading.stream import Alone

ORDERS: Final = 5
STREAM: Final = 10_000
SHARES: Final = tuple(round(0.05 * step, 2) for step in range(21))


def measured(name: str, data: Path, kept: Path, *, quick: bool) -> dict[str, Any]:
    """One data set."""
    found = list(parts(name, data, kept, quick=quick))
    said = [alone(part) for part in found]
    labels = np.concatenate([part.labels for part in found])
    right = {
        voice: np.concatenate([getattr(one, voice).argmax(1) for one in said]) == labels
        for voice in ("student", "teacher", "fused")
    }
    gap = float(right["teacher"].mean() - right["student"].mean())
    sizes = [np.array([coded(sample) for sample in part.inputs]) for part in found]
    streams = [streamed(found, sizes, seed) for seed in range(1 if quick else ORDERS)]
    accuracy = float(np.mean([one["right"] for one in streams]))
    return {
        "n": len(labels),
        "groups": len(np.unique(np.concatenate([part.groups for part in found]))),
        "accuracy": {voice: float(one.mean()) for voice, one in right.items()},
        "at_share": {
            "accuracy": accuracy,
            "share": float(np.mean([one["asked"] for one in streams])),
            "bytes": float(np.mean([one["bytes"] for one in streams])),
            "recovered": (accuracy - float(right["student"].mean())) / gap,
            "recovered_by_order": [(one["right"] - float(right["student"].mean())) / gap for one in streams],
            "oracle": _of_all(said, found, oracle_of) / gap,
            "offline": _of_all(said, found, lambda sure, gain: gained(sure, gain, SHARE)) / gap,
            "kept_of_teacher": accuracy / float(right["teacher"].mean()),
        },
        "curve": _curve(found, said),
        "budget": [_shifted(part, seed, quick=quick) for seed, part in enumerate(found)],
        "fitted": [described(part) for part in found],
        "splits": _splits(found, said, quick=quick),
    }


def oracle_of(_sure: NDArray[np.float32], gain: NDArray[np.int64]) -> float:
    """At `SHARE`."""
    return oracle(gain, SHARE)


def _splits(found: list[Part], said: list[Alone], *, quick: bool) -> dict[str, float] | None:
    """Promises made on one half of the samples and looked up on the other; None where samples are not independent."""
    if any(len(np.unique(part.groups)) < len(part.groups) for part in found):
        return None
    labels = np.concatenate([part.labels for part in found])
    student, teacher, fused = (
        np.concatenate([getattr(one, voice).argmax(1) for one in said]) == labels
        for voice in ("student", "teacher", "fused")
    )
    confidence = np.concatenate([one.confidence for one in said])
    return splits(confidence, teacher & ~student, teacher & ~fused, quick=quick)


def _gain(one: Alone, part: Part) -> NDArray[np.int64]:
    return gains(one.student.argmax(1) == part.labels, one.fused.argmax(1) == part.labels)


def _of_all(said: list[Alone], found: list[Part], told: Any) -> float:
    """The mean over samples, each part by itself."""
    each = [
        told(one.confidence, _gain(one, part)) * len(part.labels)
        for one, part in zip(said, found, strict=True)
    ]
    return float(sum(each) / sum(len(part.labels) for part in found))


def streamed(found: list[Part], sizes: list[NDArray[np.int64]], seed: int) -> dict[str, float]:
    """All parts through the cascade, in a random order; bytes over those of asking about everything."""
    right, asked, count, sent = 0, 0, 0, 0
    for number, part in enumerate(found):
        order = np.random.default_rng((seed, number)).permutation(len(part.labels))
        walked = walk(part, order, seed=seed, share=SHARE)
        right += int((walked.answers == part.labels[order]).sum())
        asked += int(walked.asked.sum())
        count += len(order)
        sent += int(sizes[number][order][walked.asked].sum())
    return {"right": right / count, "asked": asked / count, "bytes": sent / int(sum(map(np.sum, sizes)))}


def _curve(found: list[Part], said: list[Alone]) -> dict[str, list[float]]:
    """Accuracy against the share that is asked about: by the policy's confidence, by the oracle, at random."""
    base = sum(
        int((one.student.argmax(1) == part.labels).sum()) for one, part in zip(said, found, strict=True)
    )
    start = base / sum(len(part.labels) for part in found)
    ways = {
        "cascade": lambda share: _of_all(said, found, lambda sure, gain: gained(sure, gain, share)),
        "oracle": lambda share: _of_all(said, found, lambda _, gain: oracle(gain, share)),
        "random": lambda share: _of_all(said, found, lambda _, gain: share * float(gain.mean())),
    }
    return {"share": list(SHARES)} | {
        name: [start + told(share) for share in SHARES] for name, told in ways.items()
    }


def _shifted(part: Part, seed: int, *, quick: bool) -> dict[str, float]:
    """The share that is asked about over 10,000 inputs, without and with another world from the middle on."""
    draw, length = np.random.default_rng(seed), STREAM // 20 if quick else STREAM
    own, all_of = len(part.labels), len(part.labels) + len(part.shifted)
    steady = draw.integers(0, own, length)
    turned = np.concatenate([steady[: length // 2], draw.integers(own, all_of, length - length // 2)])
    found = {}
    for name, order in (("steady", steady), ("shifted", turned)):
        asked = walk(part, order, seed=seed, share=SHARE).asked
        found[name] = float(asked.mean())
        found[f"{name}_second_half"] = float(asked[length // 2 :].mean())
    return found
