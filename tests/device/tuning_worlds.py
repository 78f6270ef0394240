"""A bundle that may be trained, and a device whose world differs from the lab's."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from edgestill.core.bundle import Bundle
from edgestill.device.holding import Holding
from edgestill.device.replay import Replay
from edgestill.device.replay_format import Plan
from edgestill.device.tuning import Rounds, Tuning
from edgestill.infer.policy import Policy
from edgestill.lab.data.samples import Samples
from edgestill.lab.gradient.step import Training
from edgestill.lab.packing.export import export_onnx
from edgestill.lab.packing.finished import pack_onnx
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.lab.packing.assemble import Packed

CLASSES, WIDTH, MINUTE = 3, 6, 60.0
HOLDING = Holding(stretch=MINUTE, every=2, gap=0.0)
ROUNDS = Rounds(steps=100, keep=20, least=30, held=20, patience=3)


def seen(n: int, *, turned: int = 0, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Inputs `[n, 6]` and their classes; `turned` says by how many classes the world differs from the lab's."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, n)
    centres = np.eye(CLASSES).repeat(2, axis=1) * 2
    inputs = centres[(labels + turned) % CLASSES] + 0.5 * random.normal(size=(n, WIDTH))
    return inputs.astype(np.float32), labels


@cache
def trained() -> bytes:
    """A small network that knows the lab's world, as ONNX."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(WIDTH, 24), nn.ReLU(), nn.Linear(24, CLASSES))
    inputs, labels = seen(600)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network(torch.from_numpy(inputs)), torch.from_numpy(labels))
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
        optimiser.step()
    return export_onnx(network.eval(), torch.from_numpy(inputs[:2]))


@cache
def packed() -> Packed:
    """Its bundle, in int8, with a step that trains all of it."""
    return pack_onnx(
        trained(),
        Samples.of(*seen(600), classes=CLASSES),
        policy=Policy(labels=("a", "b", "c")),
        training=Training(rate=0.02),
    )


def bundle_in(folder: Path) -> Bundle:
    """The bundle as a file."""
    path = folder / "world.esb"
    if not path.exists():
        packed().save(path)
    return Bundle.open(path)


def filled(
    folder: Path,
    *,
    turned: int,
    minutes: int = 60,
    each: int = 8,
    wrong: float = 0.0,
    key: bytes | None = None,
) -> Replay:
    """What a device kept of so many minutes, a few labelled samples each; a share of the labels may be wrong."""
    plan = Plan(dtype="float32", shape=(WIDTH,), classes=CLASSES, size=2_000_000, holding=HOLDING)
    replay = Replay.open(folder / "replay", plan, random=Random(1), key=key)
    inputs, labels = seen(minutes * each, turned=turned, seed=5)
    random = np.random.default_rng(9)
    labels = np.where(random.random(len(labels)) < wrong, random.integers(0, CLASSES, len(labels)), labels)
    targets = np.eye(CLASSES, dtype=np.float32)[labels]
    for minute in range(minutes):
        part = slice(minute * each, (minute + 1) * each)
        replay.add(inputs[part], targets[part], source="label", at=1_800_000_000.0 + minute * MINUTE)
    replay.flush()
    return replay


def tuning_of(folder: Path, replay: Replay, *, rounds: Rounds = ROUNDS) -> Tuning:
    """As a process that has just been started makes it."""
    return Tuning(
        bundle_in(folder),
        folder / "learned",
        replay.samples,
        clock=FakeClock(),
        random=Random(3),
        rounds=rounds,
    )


class Spell:
    """Lets training go on for so many looks."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def __call__(self) -> bool:
        """One look."""
        self.left -= 1
        return self.left >= 0
