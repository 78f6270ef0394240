"""Streams of real worlds: images of CIFAR-10 and movements of ten people, seen by light models.

- `cifar`: a published ResNet-20 is the student, a published ResNet-56 the teacher; the 10,000 test images (JPEG) come in a random order, or
  in bouts of about 24 of one class (`cifar-bouts`). A change adds noise of so many grey levels to the images, or takes half of their light.
- `watch`: windows of 2.56 s that overlap by three quarters, recording by recording in a random order, again and again: what one
  person has is 200 to 300 windows, so that a stream of 10,000 repeats them. Student and teacher are heads in closed form over random features
  of the other people's windows: the student's are fewer, and of the right wrist only. The change is the left wrist, or another person.

Leverage is of the student's features, against those of what it was fitted on.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from PIL import Image
from searching.teachers import FILE
from torch import nn

from edgestill.core.digest import Digest
from edgestill.demo.watchdata import LABELS, LEFT, RIGHT, load_recordings, windows
from edgestill.infer.calibration import fit_temperature
from edgestill.infer.confidence import softmax
from edgestill.learn.leverage import Leverage
from edgestill.learn.statistics import Statistics, solve, usual_ridge
from learning.streams import BOUT, Seen

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from cifar_resnet import Camera, CifarResNet

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

BACKBONE: Final = Digest.of(b"a bench")
FITTED: Final = 2_000
"""Images for the temperature and the reference."""
_BATCH: Final = 250
_NORMAL: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_TINY: Final = 1e-12


def statistics_of(features: NDArray[np.floating], targets: NDArray[np.floating]) -> Statistics:
    """Sums over these samples."""
    empty = Statistics.empty(
        backbone=BACKBONE, window=0, classes=targets.shape[1], features=features.shape[1]
    )
    return empty.add(features, targets)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """A student and its teacher.

    Attributes:
        student: inputs `[N, ...]` to features and scores.
        teacher: inputs to the classes it names.
        leverage: of features.
        temperature: of the student's scores.
    """

    student: Callable[[NDArray[Any]], tuple[NDArray[np.float32], NDArray[np.float32]]]
    teacher: Callable[[NDArray[Any]], NDArray[np.int64]]
    leverage: Leverage
    temperature: float

    def seen(self, inputs: NDArray[Any]) -> Seen:
        """What both say of these inputs."""
        features, scores = self.student(inputs)
        probabilities = softmax(scores, self.temperature)
        return Seen(
            leverage=np.log(np.maximum(self.leverage.of(features), _TINY)),
            doubt=1.0 - probabilities.max(axis=1).astype(float),
            contradicted=probabilities.argmax(axis=1) != self.teacher(inputs),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Images:
    """CIFAR-10, each image of it in each world.

    Attributes:
        still: of the N test images as they are.
        changed: change -> of the same images after it.
        labels: `[N]`.
        bouts: whether images of one class come together.
    """

    still: Seen
    changed: dict[str, Seen]
    labels: NDArray[np.int64]
    bouts: bool

    @property
    def changes(self) -> tuple[str, ...]:
        """As `World.changes`."""
        return tuple(self.changed)

    def stream(self, seed: int, still: int, changed: int = 0, change: str = "") -> Seen:
        """As `World.stream`."""
        order = self._order(np.random.default_rng([seed, self.bouts]), still + changed)
        before = self.still.taken(order[:still])
        return before.then(self.changed[change].taken(order[still:])) if change else before

    def _order(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        """Numbers of images, none twice where they come in no bouts."""
        if not self.bouts:
            return rng.permutation(len(self.labels))[:n]
        found: list[int] = []
        by_class = [np.flatnonzero(self.labels == one) for one in range(10)]
        while len(found) < n:
            found += rng.choice(by_class[rng.integers(10)], rng.geometric(1 / BOUT)).tolist()
        return np.array(found[:n])


def images(data: Path, *, quick: bool) -> dict[bool, Images]:
    """The images in no bouts, and in bouts."""
    pixels, labels = _pixels(data, "test", 10 if quick else 1)
    pair = _resnets(data, _pixels(data, "train", 50_000 // FITTED), (pixels[:FITTED], labels[:FITTED]))
    rng = np.random.default_rng(0)
    changed = {f"noise of {size}": _noisy(pixels, size, rng) for size in (4, 8, 16)}
    changed["half of the light"] = pixels // 2
    still, after = pair.seen(pixels), {name: pair.seen(one) for name, one in changed.items()}
    return {bouts: Images(still=still, changed=after, labels=labels, bouts=bouts) for bouts in (False, True)}


def _noisy(pixels: NDArray[np.uint8], size: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    added = pixels + rng.normal(0, size, pixels.shape).astype(np.float32)
    return np.clip(np.rint(added), 0, 255).astype(np.uint8)


def _pixels(data: Path, part: str, every: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    with np.load(data / FILE) as found:
        files, ends, labels = (found[f"{part}_{kind}"] for kind in ("jpg", "off", "y"))
    pixels = [
        np.asarray(Image.open(io.BytesIO(files[ends[at] : ends[at + 1]].tobytes())).convert("RGB"))
        for at in range(0, len(labels), every)
    ]
    return np.stack(pixels), labels[::every].astype(np.int64)


Labelled = tuple["NDArray[np.uint8]", "NDArray[np.int64]"]


def _resnets(data: Path, learned: Labelled, unseen: Labelled) -> Pair:
    """The reference is of images that the student learned from, the temperature of others."""
    small, large = _resnet(data, 20), _resnet(data, 56)
    pooled: list[torch.Tensor] = []
    assert isinstance(small.network, CifarResNet)
    small.network.linear.register_forward_pre_hook(lambda _, given: pooled.append(given[0]))

    def student(inputs: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        pooled.clear()
        scores = _said(small, inputs)
        return torch.cat(pooled).numpy(), scores

    reference = statistics_of(student(learned[0])[0], np.eye(10)[learned[1]])
    return Pair(
        student=student,
        teacher=lambda inputs: _said(large, inputs).argmax(axis=1),
        leverage=Leverage.fit(reference, usual_ridge(reference)),
        temperature=fit_temperature(student(unseen[0])[1], np.eye(10, dtype=np.float32)[unseen[1]]),
    )


def _resnet(data: Path, layers: int) -> Camera:
    from safetensors.torch import load_file

    camera = Camera(CifarResNet(blocks=(layers - 2) // 6))
    camera.network.load_state_dict(load_file(data / f"cifar10_resnet{layers}.safetensors"))
    for mine, known in zip((camera.standardise.mean, camera.standardise.deviation), _NORMAL, strict=True):
        mine.copy_(torch.tensor(known))
    return camera.eval()


def _said(network: nn.Module, inputs: NDArray[Any]) -> NDArray[np.float32]:
    with torch.inference_mode():
        each = [network(torch.from_numpy(inputs[at : at + _BATCH])) for at in range(0, len(inputs), _BATCH)]
    found: NDArray[np.float32] = torch.cat(each).numpy()
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class People:
    """Ten people with a watch, each seen by a student of the other nine.

    Attributes:
        recordings: person -> change, or "" for none -> of each recording, in the order of time.
    """

    recordings: list[dict[str, list[Seen]]]

    @property
    def changes(self) -> tuple[str, ...]:
        """As `World.changes`."""
        return tuple(name for name in self.recordings[0] if name)

    def stream(self, seed: int, still: int, changed: int = 0, change: str = "") -> Seen:
        """As `World.stream`; of the person whose turn it is."""
        rng, own = np.random.default_rng(seed), self.recordings[seed % len(self.recordings)]
        before = _played(own[""], rng, still)
        return before.then(_played(own[change], rng, changed)) if change else before


def _played(recordings: list[Seen], rng: np.random.Generator, n: int) -> Seen:
    order = [recordings[number] for number in rng.permutation(len(recordings))]
    whole = order[0]
    for one in order[1:]:
        whole = whole.then(one)
    while len(whole.doubt) < n:
        whole = whole.then(_played(recordings, rng, 1))
    return whole.taken(np.arange(n))


def people() -> People:
    """All ten."""
    found = load_recordings()
    cut = [windows(one, length=128, hop=32) for one in found]
    told: list[dict[str, list[Seen]]] = []
    for person in range(1, 11):
        others = [index for index, one in enumerate(found) if one.person != person]
        pair = _heads(found, cut, others, seed=person)

        def of(person: int, side: int, pair: Pair = pair) -> list[Seen]:
            chosen = [i for i, one in enumerate(found) if one.person == person and one.side == side]
            return [pair.seen(cut[index]) for index in chosen if len(cut[index])]

        stranger = person % 10 + 1
        told.append(
            {"": of(person, RIGHT), "the left wrist": of(person, LEFT), "another person": of(stranger, RIGHT)}
        )
    return People(recordings=told)


def _heads(found: list[Any], cut: list[NDArray[np.float32]], others: list[int], *, seed: int) -> Pair:
    right = [index for index in others if found[index].side == RIGHT]
    fitting, holding = right[::2] + right[1::4], right[3::4]
    small, large = _random_features(48, seed), _random_features(300, seed + 100)
    classes = np.eye(len(LABELS), dtype=np.float32)

    def told(numbers: list[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        labels = np.repeat([found[i].exercise for i in numbers], [len(cut[i]) for i in numbers])
        return np.concatenate([cut[i] for i in numbers]), classes[labels]

    inputs, targets = told(fitting)
    reference = statistics_of(small(inputs), targets)
    ridge = usual_ridge(reference)
    own = solve(reference, ridge=ridge)
    everything = statistics_of(large(told(others)[0]), told(others)[1])
    theirs = solve(everything, ridge=usual_ridge(everything))

    def student(given: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        features = small(given)
        return features, (features @ own.weight + own.bias).astype(np.float32)

    held, truth = told(holding)
    return Pair(
        student=student,
        teacher=lambda given: (large(given) @ theirs.weight + theirs.bias).argmax(axis=1),
        leverage=Leverage.fit(reference, ridge),
        temperature=fit_temperature(student(held)[1], truth),
    )


def _random_features(n: int, seed: int) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """Rectified random sums of each channel's mean, deviation, and mean size of its steps."""
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(18, n)), rng.normal(size=n)

    def features(given: NDArray[Any]) -> NDArray[np.float32]:
        moments = np.concatenate(
            [given.mean(axis=1), given.std(axis=1), np.abs(np.diff(given, axis=1)).mean(axis=1)], axis=1
        )
        found: NDArray[np.float32] = np.maximum(moments @ weight + bias, 0).astype(np.float32)
        return found

    return features
