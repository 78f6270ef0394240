"""CIFAR-10 on features of networks that never saw the images: one message against as many bytes of FedAvg, and against 20 rounds.

Ten devices whose labels are skewed (Dirichlet 0.1) hold 6,000 of the 10,000 test images (as JPEG); 2,000 are told by, 1,500 choose settings, 500
are the shared set that puts features to mean 0 and deviation 1. Two backbones:

- *reference*: the reference student's network, ImageNet24(32, 64, 32), 32 features, trained here on every second training image.
- *resnet20*: the published ResNet-20, 64 features.

Both heads begin at nothing, as if the labels were new. They are not: each backbone has learned these ten classes from other images,
and its own head is told beside (`own_head`). So what is measured is putting together, and not what there is to learn.

Beside a backbone's own features stand fewer (the first principal components of what its training images give, which a bundle can bring along) and more
(a frozen random layer on top, which a seed tells). FedAvg gets the same features, and as many rounds as use up our bytes, rounded *up*: it never sends fewer.

What the project is held to is told at equal precision, float32 for both. Beside it stands what jobs ship, sums in `int8` (`shipped`), against FedAvg with as many bytes as
that takes: once its heads are float32, and once they are rounded to `int8` as well. Our head comes back as float32 in both, as devices get it.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from searching.teachers import images, middle, resnet20

from edgestill.lab.data.augment import ImageShift
from edgestill.lab.models import load_weights_, save_weights
from edgestill.lab.networks import ImageNet24
from edgestill.lab.recipe import Recipe
from edgestill.lab.training.train import Lesson, train_
from edgestill.learn.votes import LIMIT
from learning.digits import federated_told
from learning.federated import RATES, ROUNDS, Settings, Trials, central, head_bytes, right
from learning.fleets import DEVICES, SEEDS, Part, Sizes, fleets, random_features
from learning.summed import ENCODINGS, SHIPPED
from learning.summed import measured as summed
from learning.voting import voted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from edgestill.lab.data.samples import Samples
    from learning.fleets import Fleet

CLASSES: Final = 10
SKEW: Final = 0.1
SIZES: Final = Sizes(test=2_000, proxy=500, validation=1_500)
PRECISION: Final = "float32"
FEDAVG: Final = tuple(
    Settings(epochs=epochs, rate=rate, batch=32, momentum=momentum)
    for epochs, rate, momentum in product((1, 3, 10), RATES, (0.0, 0.9))
)
PLAIN: Final = tuple(
    Settings(epochs=epochs, rate=rate, batch=32) for epochs, rate in product((1, 3, 10), (*RATES, 3.0, 10.0))
)
FEDPROX: Final = tuple(
    Settings(epochs=epochs, rate=rate, batch=32, mu=mu)
    for epochs, rate, mu in product((3, 10), RATES[1:], (0.001, 0.01, 0.1, 1.0))
)
CENTRAL: Final = tuple(Settings(epochs=30, rate=rate, batch=32) for rate in (0.003, 0.01, 0.03))
FEWER: Final = {"reference": (16,), "resnet20": (16, 32)}
MORE: Final = {"reference": (128, 256), "resnet20": (256,)}
BATCH: Final = 500
TAUGHT: Final = Recipe(epochs=9, batch=64, lr=3e-3)


def measured(data: Path, kept: Path, *, quick: bool) -> dict[str, Any]:
    """Backbone -> features -> what one message, and what FedAvg comes to."""
    kept.mkdir(parents=True, exist_ok=True)
    made = {"reference": _reference, "resnet20": _resnet20}
    return {
        "samples": {"test": SIZES.test, "proxy": SIZES.proxy, "validation": SIZES.validation},
        "devices": DEVICES,
        "skew": SKEW,
        "seeds": 2 if quick else len(SEEDS),
        "backbones": {
            name: _of_backbone(name, *make(data, kept, quick=quick), quick=quick)
            for name, make in made.items()
        },
    }


def _of_backbone(
    name: str, whole: Part, taught: NDArray[np.float32], own_head: float, *, quick: bool
) -> dict[str, Any]:
    """One backbone: all features, and FedAvg of any of these widths within the bytes of our message on its own features."""
    seeds = SEEDS[:2] if quick else SEEDS
    count = 3 if quick else ROUNDS
    parts = _features(name, whole, taught, quick=quick)
    found, trials = {}, {}
    for title, part in parts.items():
        dealt = _dealt(part, seeds, quick=quick)
        trials[title] = Trials.of(dealt, FEDAVG[6:8] if quick else FEDAVG, count=count)
        found[title] = _against(dealt, trials[title], count)
        found[title]["shipped"] = shipped(dealt, FEDAVG[6:8] if quick else FEDAVG)
        if title == "own":
            found[title] |= _others(dealt, count, quick=quick)
            found[title] |= voices(_dealt(part, seeds, quick=quick, scaled=False))
            rounds_equal = found[title]["fedavg_equal"]["rounds"]
            found[title]["fedavg_equal_plain"] = plain(dealt, rounds_equal, quick=quick)
    ours = found["own"]["ours"]
    within = {title: trials[title].told(_rounds_of(ours, found[title]["width"], count)) for title in parts}
    return {"own_head": own_head, "features": found, "fedavg_within_our_bytes": within}


def _against(dealt: Sequence[Fleet], trials: Trials, count: int) -> dict[str, Any]:
    """Our message, and FedAvg at its bytes and after all rounds."""
    width = dealt[0].test.features.shape[1]
    ours = summed(dealt, ENCODINGS[PRECISION])
    each = head_bytes(width, CLASSES, PRECISION)
    bytes_of = {"round_up": each, "round_down": each}
    return {
        "width": width,
        "ours": ours,
        "fedavg_equal": trials.told(_rounds_of(ours, width, count)) | bytes_of,
        "fedavg_whole": trials.told(count) | bytes_of,
        "central_softmax": _central(dealt),
    }


def shipped(dealt: Sequence[Fleet], settings: Sequence[Settings]) -> dict[str, Any]:
    """Our message as jobs ship it, and FedAvg at its bytes: as float32, as `int8`, and what rounding costs it: the last, in as many rounds, without."""
    ours = summed(dealt, ENCODINGS[SHIPPED])
    width, found = dealt[0].test.features.shape[1], {"ours": ours}
    for precision in (PRECISION, "int8"):
        count = _rounds_of(ours, width, ROUNDS, precision)
        found[f"fedavg_{precision}"] = federated_told(dealt, settings, count, precision)
    chosen = Settings(**found["fedavg_int8"]["settings"])
    found["fedavg_int8_unrounded"] = federated_told(dealt, (chosen,), found["fedavg_int8"]["rounds"])
    return found


def _others(dealt: Sequence[Fleet], count: int, *, quick: bool) -> dict[str, Any]:
    """FedProx and a rounded message, on the backbone's own features."""
    return {
        "fedprox_whole": federated_told(dealt, FEDPROX[:1] if quick else FEDPROX, count),
        "float16": summed(dealt, ENCODINGS["float16"]),
    }


def plain(dealt: Sequence[Fleet], count: int, *, quick: bool = False) -> dict[str, Any]:
    """FedAvg by the letter of its paper, without momentum, which few rounds need most; with higher rates to make up for it."""
    return Trials.of(dealt, PLAIN[:2] if quick else PLAIN, count=count).told(count)


def voices(plain: Sequence[Fleet]) -> dict[str, Any]:
    """Votes with and without abstention, on features as they are given."""
    found = voted(plain, (LIMIT, math.inf))
    return {"votes": found[LIMIT], "hard_votes": found[math.inf]}


def _dealt(
    part: Part, seeds: Sequence[int], *, quick: bool = False, scaled: bool = True
) -> tuple[Fleet, ...]:
    return fleets(
        _thinned(part, quick=quick),
        _sizes(quick=quick),
        classes=CLASSES,
        skew=SKEW,
        seeds=seeds,
        scaled=scaled,
    )


def _rounds_of(ours: dict[str, Any], width: int, most: int, precision: str = PRECISION) -> int:
    """Rounds that take at least the bytes of our message and head."""
    return min(most, math.ceil((ours["up"] + ours["down"]) / (2 * head_bytes(width, CLASSES, precision))))


def _central(dealt: Sequence[Fleet]) -> list[float]:
    heads = [[central(fleet, setting) for fleet in dealt] for setting in CENTRAL]
    chosen_by = [
        float(np.mean([right(head, fleet.validation) for head, fleet in zip(each, dealt, strict=True)]))
        for each in heads
    ]
    best = heads[int(np.argmax(chosen_by))]
    return [right(head, fleet.test) for head, fleet in zip(best, dealt, strict=True)]


def _features(name: str, whole: Part, taught: NDArray[np.float32], *, quick: bool) -> dict[str, Part]:
    """A backbone's own features, fewer and more."""
    found = {"own": whole}
    mean = taught.mean(axis=0)
    turns = np.linalg.svd(np.cov((taught - mean).T))[0]
    for width in FEWER[name]:
        found[f"first {width}"] = _with((whole.features - mean) @ turns[:, :width], whole)
    even = whole.scaled_by(taught).features
    for width in () if quick else MORE[name]:
        found[f"random {width}"] = _with(random_features(even, width, seed=1), whole)
    return found


def _with(features: NDArray[np.floating], whole: Part) -> Part:
    return Part(features=features.astype(np.float32), labels=whole.labels)


def _thinned(part: Part, *, quick: bool) -> Part:
    return part.where(np.arange(0, len(part), 10)) if quick else part


def _sizes(*, quick: bool) -> Sizes:
    return (
        Sizes(test=SIZES.test // 10, proxy=SIZES.proxy // 10, validation=SIZES.validation // 10)
        if quick
        else SIZES
    )


def _reference(data: Path, kept: Path, *, quick: bool) -> tuple[Part, NDArray[np.float32], float]:
    """The reference student's network, trained here: features of the test images and of training images, and its own accuracy."""
    train, test = middle(images(data, "train", 200 if quick else 2)), middle(images(data, "test", 1))
    torch.manual_seed(0)
    network = ImageNet24(32, 64, 32)
    network.standardise.fit_(train.inputs)
    file = kept / f"reference-{len(train)}.safetensors"
    if file.exists():
        load_weights_(network, file)
    else:
        train_(network, Lesson.of(train, ImageShift(2, mirror=True)), TAUGHT)
        save_weights(network, file)
    return _told(network, network.head, test, train)


def _resnet20(data: Path, kept: Path, *, quick: bool) -> tuple[Part, NDArray[np.float32], float]:  # noqa: ARG001  # as `_reference`
    """The published ResNet-20."""
    network = resnet20(data)
    train = images(data, "train", 1_000 if quick else 20)
    return _told(network, network.network.linear, images(data, "test", 1), train)


def _told(
    network: nn.Module, last: nn.Module, test: Samples, train: Samples
) -> tuple[Part, NDArray[np.float32], float]:
    features, logits = _run(network, last, test)
    own = float((logits.argmax(axis=1) == test.labels).mean())
    return Part(features=features, labels=test.labels), _run(network, last, train)[0], own


@torch.no_grad()
def _run(
    network: nn.Module, last: nn.Module, samples: Samples
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What goes into the last layer `[N, D]`, and what comes out of it `[N, C]`."""
    went: list[torch.Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, taken: went.append(taken[0]))
    network.eval()
    came = [
        network(torch.from_numpy(samples.inputs[at : at + BATCH])) for at in range(0, len(samples), BATCH)
    ]
    handle.remove()
    return torch.cat(went).numpy(), torch.cat(came).numpy()


def figures(part: dict[str, Any]) -> dict[str, float]:
    """On the reference student's own features, against FedAvg with the rounds that use up our bytes.

    The first two are at equal width and precision. `..._int8_...` are of what jobs ship, against FedAvg's heads as float32 and as `int8`.
    `..._softmax_...` is how far least squares in one place is behind a softmax head in one place: the worst of all features.
    """
    one = part["backbones"]["reference"]["features"]["own"]
    coded = one["shipped"]
    every = [each for backbone in part["backbones"].values() for each in backbone["features"].values()]
    return {
        "cifar_minus_fedavg_points": _points(one["ours"], one["fedavg_equal"]),
        "cifar_bytes_over_fedavg": _bytes_over(one["ours"], one["fedavg_equal"]),
        "cifar_int8_minus_fedavg_points": _points(coded["ours"], coded["fedavg_float32"]),
        "cifar_int8_minus_fedavg_int8_points": _points(coded["ours"], coded["fedavg_int8"]),
        "cifar_softmax_minus_closed_points": round(
            max(
                100 * float(np.mean(each["central_softmax"]) - np.mean(each["ours"]["central"]))
                for each in every
            ),
            2,
        ),
    }


def _points(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    return round(100 * float(np.mean(ours["accuracy"]) - np.mean(theirs["accuracy"])), 2)


def _bytes_over(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    whole = theirs["rounds"] * (theirs["round_up"] + theirs["round_down"])
    return round((ours["up"] + ours["down"]) / whole, 3)
