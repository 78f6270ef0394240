"""A scenario that is trained in a second, hand-made outcomes and stories, and a look at the processes of this machine.

The tiny world: the first channel's mean says which of three classes it is, the last channel's sign which way round the
sensor is worn. Worn the other way round, the first channel is negated: the student, which has never seen that, mistakes
the outer classes for each other, and the teacher, which has, does not.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgestill.demo.rehearse import Outcome
from edgestill.demo.scenario import Scenario, Stream
from edgestill.demo.story import Absorption, Live, Row, Story
from edgestill.infer.policy import Policy
from edgestill.lab.data.samples import Samples
from edgestill.lab.measure import Figure
from edgestill.lab.networks import MotionNet
from edgestill.lab.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

LABELS = ("low", "middle", "high")
LENGTH = 32
SHARING = ("one", "two")
QUIET = "three"


def motion(n: int, seed: int, *, other_way: bool = False) -> Samples:
    """`n` windows of the tiny world, in three groups."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(LABELS)
    inputs = rng.normal(scale=0.3, size=(n, LENGTH, 6)).astype(np.float32)
    sign = -1 if other_way else 1
    inputs[:, :, 0] += sign * (labels[:, None] - 1)
    inputs[:, :, 5] += sign
    return Samples.of(inputs, labels, classes=len(LABELS), groups=np.arange(n) // 2 % 3)


def tiny_scenario(*, seed: int = 0, shares: bool = True) -> Scenario:
    """Two devices that share, one that does not.

    Args:
        seed: of data and training.
        shares: False: nobody shares anything.
    """
    teach = motion(240, seed) + motion(240, seed + 1, other_way=True)
    recipe = Recipe(epochs=12, batch=32, lr=1e-2, seed=seed)
    soft = Recipe(epochs=25, batch=32, lr=1e-2, soft_weight=0.7, views=1, seed=seed)
    streams = [
        Stream(
            device=name,
            shares=shares,
            before=motion(20, seed + 10 + index),
            after=motion(48, seed + 20 + index, other_way=True),
            later=motion(20, seed + 30 + index, other_way=True),
        )
        for index, name in enumerate(SHARING)
    ]
    quiet = Stream(
        device=QUIET,
        shares=False,
        before=motion(30, seed + 40),
        after=motion(30, seed + 41, other_way=True),
    )
    return Scenario(
        name="tiny",
        model="tiny",
        story="three classes from a sensor",
        change="it is worn the other way round",
        unit=("window", "windows"),
        teach=teach,
        limited=motion(120, seed + 2),
        heldout=motion(60, seed + 3),
        streams=(*streams, quiet),
        make_teacher=lambda: _network(teach, 16, seed),
        make_student=lambda: _network(teach, 8, seed),
        teacher_recipe=recipe,
        student_recipe=soft,
        next_recipe=soft,
        augment=None,
        policy=Policy(labels=LABELS, escalation_share=0.5, audit_share=0.2),
    )


def _network(teach: Samples, width: int, seed: int) -> MotionNet:
    torch.manual_seed(seed)
    network = MotionNet(width, width, width, classes=len(LABELS))
    network.standardise.fit_(teach.inputs)
    return network


def hits(right: int, of: int) -> NDArray[np.float64]:
    """`right` ones and then zeros."""
    return (np.arange(of) < right).astype(np.float64)


def outcome(n: int = 20, *, first_group: int = 0, **right: int) -> Outcome:
    """An outcome over `n` samples of two groups; so many right of each."""
    groups = first_group + np.arange(n) % 2
    usual = {
        "teacher": n,
        "teacher_after": n - 1,
        "fp32": 18,
        "student": 16,
        "shifted": 8,
        "recovered": 14,
        "control": 10,
        "kept": 15,
        "personal": 12,
        "personal_without": 7,
    } | right
    counted = {name: hits(count, n) for name, count in usual.items()}
    return Outcome(**counted, before=groups, after=groups, later=groups)


def row(**changes: Any) -> Row:
    """A device's row."""
    usual: dict[str, Any] = {
        "device": "person-1",
        "shares": True,
        "answers": 300,
        "before": 0.9,
        "shipped": 0.5,
        "own": 0.65,
        "updated": 0.8,
        "escalated": 0.25,
        "bytes_up": 120_000,
        "drift": "confirmed",
        "latency_ms": 0.4,
    }
    return Row(**(usual | changes))


def story(**changes: Any) -> Story:
    """A story of two folds, with one device that shares and one that does not."""
    usual: dict[str, Any] = {
        "scenario": "watch",
        "about": {"version": "0.1", "date": "2026-01-02", "seed": 0, "machine": {"cores": 2, "load": 0.1}},
        "unit": ("person", "people"),
        "told": ("seven exercises", "the watch moves"),
        "outcomes": [outcome(), outcome(first_group=2)],
        "live": live(row(), row(device="person-2", shares=False, own=None, drift="none")),
        "absorption": Absorption(weight=0.25, before=0.9, after=0.91),
        "alpha": 0.6,
        "promise": "none, since too few people",
        "size_ratio": 35.678,
        "wall_s": 151.27,
        "steps": {"train the teacher": 12.34},
    }
    return Story(**(usual | changes))


def share(value: float) -> Figure:
    """A figure of three people."""
    return Figure(value=value, n=200, groups=3, low=value - 0.1, high=value + 0.1)


def live(*rows: Row, **changes: Any) -> Live:
    """What a live fleet told."""
    usual: dict[str, Any] = {
        "escalated": Figure(value=0.25, n=400, groups=3, low=0.2, high=0.3),
        "fused_before": share(0.9),
        "alone_before": share(0.85),
        "fused_shifted": share(0.6),
        "alone_shifted": share(0.5),
        "evidence": 100,
        "statistics_bytes": 3000,
        "head_accuracy": share(0.55),
        "shipped_accuracy": share(0.4),
        "bundle_bytes": 40_000,
        "patch_bytes": 6000,
        "model_bytes": 11_000,
        "teacher_bytes": 400_000,
    }
    return Live(rows=rows, **(usual | changes))


def running(mark: str) -> list[str]:
    """The command lines of living processes that have `mark` in their command line or environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            command, environment = ((folder / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:  # ended meanwhile
            continue
        if command and mark.encode() in command + environment:
            found.append(f"{folder.name}: {command.replace(bytes(1), b' ').decode(errors='replace')}")
    return found
