"""Learning on the other wrist by training: what the device itself does with a minute, and what a training that nobody judges would come to.

- `Judged`: `device.replay` keeps the windows, `device.tuning` trains on them, with their own defaults: stretches of ten minutes, of which one in five
  is held back and judges. To hold anything back, each turn lies in a stretch of its own here, as if exercises came ten minutes apart.
- `unjudged`: as many steps of the same `train.onnx`, on batches that are balanced over the classes, written onto the codes of the model
  that ships, and served without a question. It says what there is to be had.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from edgestill.core.bundle import Bundle
from edgestill.core.manifest import TRAIN
from edgestill.demo.watchdata import LABELS
from edgestill.device.holding import Holding
from edgestill.device.replay import Replay
from edgestill.device.replay_format import Plan
from edgestill.device.trained import Trained
from edgestill.device.tuning import Tuning
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.engines import engine_of
from edgestill.infer.student import LOGITS
from edgestill.learn.trainer import Trainer
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from learning.wrists import Windows

STEPS: Final = 400
_JUDGED_STEPS: Final = 200
"""A round, after which the samples that were held back are asked."""
_SIZE: Final = 4_000_000


class Judged(NamedTuple):
    """What the device came to.

    Attributes:
        named: classes `[N]` of what tells.
        to_train: windows it could train on.
        held: windows held back.
        asked: how often these were asked.
        adopted: whether weights were let through.
    """

    named: NDArray[np.int64]
    to_train: int
    held: int
    asked: int
    adopted: bool


def judged(archive: Path, folder: Path, seen: Windows, later: NDArray[np.float32], *, seed: int) -> Judged:
    """Trains as a device does.

    Args:
        archive: a bundle with a training step.
        folder: of the device, empty.
        seen: what it kept.
        later: windows `[N, 128, 6]` that tell.
        seed: of its coins.
    """
    bundle, holding = Bundle.open(archive), Holding()
    random = Random(seed)  # noqa: S311  # no secret
    plan = Plan(
        dtype="float32", shape=seen.inputs.shape[1:], classes=len(LABELS), size=_SIZE, holding=holding
    )
    clock = FakeClock()
    begin = holding.stretch * (clock.now() // holding.stretch + 0.5)
    with Replay.open(folder / "samples", plan, random=random) as replay:
        for turn in dict.fromkeys(seen.turns.tolist()):
            which = seen.turns == turn
            replay.add(
                seen.inputs[which],
                np.eye(len(LABELS), dtype=np.float32)[seen.labels[which]],
                source="label",
                at=begin + turn * holding.stretch,
            )
        replay.flush()
        tuning = Tuning(bundle, folder, replay.samples, clock=clock, random=random)
        tuned = tuning.work(_Looks(_JUDGED_STEPS))
        counts = replay.counts()
        trained = Trained.of(bundle, folder)
        assert trained is not None
        model = trained.model(None if tuned is None else tuned.weights)
        named = _named(model, later, bundle)
        return Judged(named, sum(counts.train), sum(counts.held), tuning.progress.asked, tuned is not None)


def unjudged(
    archive: Path, folder: Path, seen: Windows, later: NDArray[np.float32], *, seed: int
) -> NDArray[np.int64]:
    """Trains on all of it, and serves what comes out; arguments as of `judged`."""
    bundle, rng = Bundle.open(archive), np.random.default_rng(seed)
    trained = Trained.of(bundle, folder)
    assert trained is not None
    trainer = Trainer(OnnxEngine(bundle.read(TRAIN)), trained.steps, step=trained.step)
    state = trainer.start(seen.inputs[:1])
    known = [np.flatnonzero(seen.labels == label) for label in np.unique(seen.labels)]
    for _ in range(STEPS):
        batch = np.array(
            [rng.choice(known[index]) for index in rng.integers(len(known), size=trained.steps.batch)]
        )
        targets = np.eye(len(LABELS), dtype=np.float32)[seen.labels[batch]]
        state, _ = trainer.step(state, seen.inputs[batch], targets, rate=trained.steps.rate)
    return _named(trained.model(state.values), later, bundle)


def _named(model: bytes, windows: NDArray[np.float32], bundle: Bundle) -> NDArray[np.int64]:
    engine = engine_of(model, bundle.manifest.hardware_class)
    ((name, _),) = engine.inputs.items()
    found: NDArray[np.int64] = engine.run({name: windows})[LOGITS].argmax(axis=1)
    return found


class _Looks:
    """Lets training go on for so many steps."""

    def __init__(self, looks: int) -> None:
        self._left = looks

    def __call__(self) -> bool:
        self._left -= 1
        return self._left >= 0
