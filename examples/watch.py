"""A watch's motion sensor, seven exercises, ten people: teacher and data for `watch.toml`, which any verb of the lab takes.

    pip install "edgestill[demo]"
    python examples/watch.py                                        trains the teacher: watch-teacher.safetensors
    edgestill distill examples/watch.toml --budget "size=60kB,latency=1ms"
    edgestill search examples/watch.toml --budget "size=60kB,latency=1ms"

People are groups: four teach, four choose and judge the student, two are nobody's. Windows of one person are never on both sides.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from edgestill.demo.watchdata import LABELS, RIGHT, load_recordings, windows
from edgestill.lab import ArraySource, Lesson, Recipe, Samples, train_
from edgestill.lab.data.augment import MotionJitter
from edgestill.lab.models import save_weights
from edgestill.lab.networks import MotionNet

TEACHING, JUDGING = range(1, 5), range(5, 9)
LENGTH, HOP = 128, 32


def teacher() -> MotionNet:
    """Before its weights are read; 128 steps of 6 channels to 7 exercises."""
    torch.manual_seed(0)
    return MotionNet(48, 96, 128, classes=len(LABELS))


def people(chosen: range) -> Samples:
    """Windows of these people's right wrists."""
    found = [one for one in load_recordings() if one.person in chosen and one.side == RIGHT]
    parts = [windows(one, length=LENGTH, hop=HOP) for one in found]
    counts = [len(part) for part in parts]
    return Samples.of(
        np.concatenate(parts),
        np.repeat([one.exercise for one in found], counts),
        classes=len(LABELS),
        groups=np.repeat([one.person for one in found], counts),
    )


def data() -> tuple[ArraySource, Samples]:
    """What the student learns from, with views, and what chooses and judges it."""
    return ArraySource.of(people(TEACHING), MotionJitter()), people(JUDGING)


def main() -> None:
    """Trains the teacher."""
    network, shown = teacher(), people(TEACHING)
    network.standardise.fit_(shown.inputs)
    recipe = Recipe(epochs=6, batch=64, lr=3e-3, weight_decay=1e-3, label_smoothing=0.05)
    train_(network, Lesson.of(shown, MotionJitter()), recipe)
    save_weights(network, Path(__file__).with_name("watch-teacher.safetensors"))


if __name__ == "__main__":
    main()
