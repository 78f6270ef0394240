"""Digits on a frozen layer of random features: what one message is worth against rounds, votes and soft labels, at four skews of the labels.

The 1,797 digits that scikit-learn carries, 8 x 8. 450 are told by, 300 are the shared set without labels, 250 choose settings; the other 797 are
dealt out to ten devices. Everybody has the same features, `relu(W x + b)` with random W and b that a seed tells, so that the network costs no
bytes for anyone. Where widths differ, the same samples lie on the same devices.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from sklearn.datasets import load_digits

from edgestill.learn.votes import LIMIT as DEFAULT_LIMIT
from learning.federated import FEDAVG, FEDPROX, ROUNDS, Settings, Trials, central, head_bytes, right
from learning.fleets import DEVICES, SEEDS, SKEWS, Part, Sizes, fleet, fleets, random_features
from learning.summed import ENCODINGS, SHIPPED
from learning.summed import measured as summed
from learning.voting import LIMITS, LOCAL, soft, voted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from learning.fleets import Fleet

CLASSES: Final = 10
SIZES: Final = Sizes(test=450, proxy=300, validation=250)
WIDTH: Final = 256
"""D of what the project is held to."""
WIDTHS: Final = (32, 64, 128, 256, 512)
FEDERATED: Final = (64, 128, 256)
PRECISION: Final = "float32"
STUDENTS: Final = (96, 128, 160, 192, 224, 256, 288, 320, 352, 384)
"""Widths of ten different students."""
CENTRAL: Final = tuple(
    Settings(epochs=epochs, rate=rate, batch=32) for epochs in (20, 60) for rate in (0.003, 0.01, 0.03, 0.1)
)
PIXEL_BYTES: Final = 64


def digits(width: int, seed: int = 1) -> Part:
    """All samples, with `width` random features."""
    inputs, labels = load_digits(return_X_y=True)
    return Part(
        features=random_features(((inputs - 8) / 6).astype(np.float32), width, seed=seed),
        labels=labels.astype(np.int64),
    )


def measured(_data: Path, _kept: Path, *, quick: bool) -> dict[str, Any]:
    """Skew -> method -> what it comes to."""
    skews = SKEWS[1:2] if quick else SKEWS
    seeds = SEEDS[:2] if quick else SEEDS
    found = {f"{skew:g}": _at(skew, seeds, quick=quick) for skew in skews}
    limit = _best_limit([one["votes"] for one in found.values()])
    return {
        "samples": {"test": SIZES.test, "proxy": SIZES.proxy, "validation": SIZES.validation},
        "devices": DEVICES,
        "width": WIDTH,
        "seeds": len(seeds),
        "vote_limit": limit,
        "proxy_bytes": SIZES.proxy * PIXEL_BYTES,
        "skews": found,
    }


def _at(skew: float, seeds: Sequence[int], *, quick: bool) -> dict[str, Any]:
    """One skew."""
    few = slice(3, 5) if quick else slice(None)
    count = 2 if quick else ROUNDS
    by_width = {
        width: fleets(digits(width), SIZES, classes=CLASSES, skew=skew, seeds=seeds)
        for width in sorted({*WIDTHS, *FEDERATED, WIDTH})
    }
    mine = by_width[WIDTH]
    plain = fleets(digits(WIDTH), SIZES, classes=CLASSES, skew=skew, seeds=seeds, scaled=False)
    federated = {
        f"{width} {PRECISION}": federated_told(by_width[width], FEDAVG[few], count) for width in FEDERATED
    }
    chosen = Settings(**federated[f"{WIDTH} {PRECISION}"]["settings"])
    federated[f"{WIDTH} float16"] = federated_told(mine, (chosen,), count, "float16")
    return {
        "statistics": {
            f"{width} {name}": summed(by_width[width], encoding)
            for width in WIDTHS
            for name, encoding in ENCODINGS.items()
        },
        "fedavg": federated,
        "fedprox": {f"{WIDTH} {PRECISION}": federated_told(mine, FEDPROX[few], count)},
        **voices(plain, mine, skew, seeds, quick=quick),
        "central_softmax": _central(mine, CENTRAL[:1] if quick else CENTRAL),
    }


def voices(
    plain: Sequence[Fleet], even: Sequence[Fleet], skew: float, seeds: Sequence[int], *, quick: bool
) -> dict[str, Any]:
    """What is said of the shared set: votes at every limit, those of different students, and soft labels."""
    limits, local = (LIMITS[2:4], LOCAL[3:5]) if quick else (LIMITS, LOCAL)
    return {
        "votes": {f"{limit:g}": one for limit, one in voted(plain, limits).items()},
        "votes_of_different_students": _of_different(plain, skew, seeds),
        "soft_labels": soft({"as given": plain, "even": even}, local),
    }


def federated_told(
    fleets_: Sequence[Fleet], settings: Sequence[Settings], count: int, precision: str = PRECISION
) -> dict[str, Any]:
    """The best settings after `count` rounds, with the bytes of a round in each direction."""
    one = fleets_[0]
    each = head_bytes(one.test.features.shape[1], one.classes, precision)
    trials = Trials.of(fleets_, settings, count=count, precision=precision)
    return trials.told(count) | {"round_up": each, "round_down": each}


def _of_different(mine: Sequence[Fleet], skew: float, seeds: Sequence[int]) -> dict[str, Any]:
    """Ten students of ten widths and seeds, whose votes the same hub distils."""
    whole = [digits(width, seed=100 + width) for width in STUDENTS]
    students = [
        [fleet(one, SIZES, classes=CLASSES, skew=skew, seed=seed, scaled=False) for one in whole]
        for seed in seeds
    ]
    found = voted(mine, (DEFAULT_LIMIT,), students)
    return found[DEFAULT_LIMIT]


def _central(mine: Sequence[Fleet], settings: Sequence[Settings]) -> dict[str, Any]:
    """A softmax head trained by SGD on all samples in one place."""
    heads = [[central(fleet, setting) for fleet in mine] for setting in settings]
    chosen_by = [
        float(np.mean([right(head, fleet.validation) for head, fleet in zip(each, mine, strict=True)]))
        for each in heads
    ]
    best = int(np.argmax(chosen_by))
    return {
        "accuracy": [right(head, fleet.test) for head, fleet in zip(heads[best], mine, strict=True)],
        "settings": settings[best].as_json(),
        "trials": len(settings),
    }


def _best_limit(by_skew: Sequence[dict[str, dict[str, Any]]]) -> float:
    """The limit that is best on validation samples over all skews."""
    limits = by_skew[0]
    chosen_by = {
        limit: float(np.mean([np.mean(one[limit]["validation"]) for one in by_skew])) for limit in limits
    }
    best = max(chosen_by, key=lambda limit: chosen_by[limit])
    return math.inf if best == "inf" else float(best)


def figures(part: dict[str, Any]) -> dict[str, float]:
    """At the width and precision that the project is held to; the worst skew.

    `gap_to_central_points` is what putting together costs, both heads in closed form at one ridge; `digits_softmax_minus_closed_points` is what the closed form
    itself costs, both heads from all samples in one place; `digits_int8_gap_to_central_points` is what shipping as jobs do adds to the first, in the mean over seeds.
    """
    key = f"{part['width']} {PRECISION}"
    skews = part["skews"].values()
    ours = [one["statistics"][key] for one in skews]
    theirs = [one["fedavg"][key] for one in skews]
    return {
        "gap_to_central_points": round(max(max(one["gap_points"]) for one in ours), 3),
        "digits_softmax_minus_closed_points": round(
            max(
                100 * float(np.mean(one["central_softmax"]["accuracy"]) - np.mean(each["central"]))
                for one, each in zip(skews, ours, strict=True)
            ),
            2,
        ),
        "digits_int8_gap_to_central_points": round(
            max(
                float(np.mean(one["statistics"][f"{part['width']} {SHIPPED}"]["gap_points"])) for one in skews
            ),
            2,
        ),
        "digits_minus_fedavg_points": round(
            min(
                100 * float(np.mean(one["accuracy"]) - np.mean(other["accuracy"]))
                for one, other in zip(ours, theirs, strict=True)
            ),
            2,
        ),
        "digits_fedavg_bytes_over_ours": round(
            min(
                other["rounds"] * (other["round_up"] + other["round_down"]) / (one["up"] + one["down"])
                for one, other in zip(ours, theirs, strict=True)
            ),
            3,
        ),
    }
