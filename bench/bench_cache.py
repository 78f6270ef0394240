"""What a cached teacher costs, one thread: reading, filling, checking, and what the layout channels-last brings a teacher.

    python bench/bench_cache.py

Baselines stand beside each figure: a fill is compared with the teacher's forward passes alone, the layout with the same
network laid out channels-first. Each ratio is the median of interleaved pairs in seconds of processor time, since the
machine may be shared.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edgestill.core.digest import Digest
from edgestill.lab.data.augment import ImageShift
from edgestill.lab.data.seeds import view_seeds
from edgestill.lab.data.source import ArraySource, Ask
from edgestill.lab.forward import evaluating
from edgestill.lab.networks import ImageNet24
from edgestill.lab.teacher.cache import CachedGuide
from edgestill.lab.teacher.guide import LiveGuide
from edgestill.lab.teacher.records import Layout, Shard

if TYPE_CHECKING:
    from collections.abc import Callable

RESULT = Path(__file__).resolve().parent / "results" / "cache.json"
SAMPLES, REPEATS = 2048, 5


def processor_seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def ratio(one: Callable[[], object], other: Callable[[], object]) -> float:
    """Time of `one` over time of `other`: the median of interleaved pairs, after one that warms up."""
    pairs = [processor_seconds(one) / processor_seconds(other) for _ in range(REPEATS + 1)]
    return statistics.median(pairs[1:])


def block(width: int, *, stride: int = 1, depthwise: bool = False, enters: int | None = None) -> nn.Module:
    """A 3x3 convolution with BatchNorm, or its depthwise and pointwise parts."""
    enters = enters or width
    if not depthwise:
        return nn.Sequential(
            nn.Conv2d(enters, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
    return nn.Sequential(
        nn.Conv2d(enters, enters, 3, stride, 1, groups=enters, bias=False),
        nn.BatchNorm2d(enters),
        nn.ReLU6(),
        nn.Conv2d(enters, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU6(),
    )


def network(*, depthwise: bool) -> nn.Module:
    """Like a ResNet's or a MobileNet's body on 32x32 images."""
    layers: list[nn.Module] = [block(32, enters=3)]
    enters = 32
    for width in (64, 128, 256):
        layers += [
            block(width, stride=2, depthwise=depthwise, enters=enters),
            block(width, depthwise=depthwise),
        ]
        enters = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(enters, 10))


def layout_gain(model: nn.Module, inputs: Tensor) -> float:
    """How many times as fast the teacher is with its weights channels-last."""
    ask = Ask(np.arange(len(inputs)))
    first, last = (LiveGuide(copy.deepcopy(model), channels_last=choice) for choice in (False, True))
    return ratio(lambda: first.answer(ask, inputs), lambda: last.answer(ask, inputs))


def fill_over_forward(folder: Path, guide: LiveGuide, source: ArraySource) -> float:
    """Opening an empty cache of one view, over the teacher's forward passes on as many samples."""
    assert isinstance(source.inputs, Tensor)
    parts, number = source.inputs.split(256), iter(range(1000))  # type: ignore[no-untyped-call]  # torch has no type for it

    def forward() -> None:
        with evaluating(guide.teacher):
            for part in parts:
                guide.teacher(part)

    def fill() -> None:
        CachedGuide.open(folder / str(next(number)), teacher=guide, source=source, seed=0, views=1)

    return ratio(fill, forward)


def microseconds(cache: CachedGuide, inputs: Tensor) -> float:
    """To read the answers of a batch of 64; the best of many, which a shared machine disturbs least."""
    index = np.random.default_rng(0).permutation(SAMPLES)[:64]
    ask = Ask(index, view_seeds(0, 0, index))
    found = []
    for _ in range(3000):
        began = time.perf_counter()
        cache.answer(ask, inputs)
        found.append(time.perf_counter() - began)
    return min(found) * 1e6


def check_rate(folder: Path) -> float:
    """Megabytes of records checked in a second."""
    layout, key = Layout(outputs=10), Digest.of(b"")
    shard = Shard(view=0, number=0, start=0, stop=4_000_000)
    rows = np.zeros(len(shard), layout.dtype)
    shard.write(folder, rows, key)
    return (
        rows.nbytes / 1e6 / min(processor_seconds(lambda: shard.check(folder, layout, key)) for _ in range(3))
    )


def measure(folder: Path) -> dict[str, float]:
    """All figures."""
    images = torch.randint(0, 256, (SAMPLES, 24, 24, 3), dtype=torch.uint8)
    source = ArraySource(images, None, "classes", 10, ImageShift(2, mirror=True))
    guide = LiveGuide(ImageNet24(64, 128, 512))
    opened = {
        top_k: CachedGuide.open(
            folder / f"top{top_k}", teacher=guide, source=source, seed=0, views=1, top_k=top_k, shard=256
        )
        for top_k in (None, 3)
    }
    (folder / "check").mkdir()
    floats = torch.randn(64, 3, 32, 32)
    return {
        "answer_64_us": microseconds(opened[None], images[:1]),
        "answer_64_top_3_us": microseconds(opened[3], images[:1]),
        "fill_over_forward": fill_over_forward(folder, guide, source),
        "check_mb_per_s": check_rate(folder / "check"),
        "channels_last_gain_plain": layout_gain(network(depthwise=False), floats),
        "channels_last_gain_depthwise": layout_gain(network(depthwise=True), floats),
        "channels_last_gain_reference": layout_gain(guide.teacher, images[:64]),
    }


def main() -> None:
    """The command line."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = {name: float(f"{value:.3g}") for name, value in measure(Path(folder)).items()}
    machine = {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"figures": figures, "machine": machine}, indent=2, sort_keys=True) + "\n")
    print(json.dumps({"bench": "cache", "figures": figures}))


if __name__ == "__main__":
    main()
