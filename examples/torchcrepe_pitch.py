"""A pitch network of 22.2 million parameters teaches one smaller than its own published small version of 0.49 million.

    pip install "edgestill[lab]" torchcrepe
    python examples/torchcrepe_pitch.py [--small]

torchcrepe (Kim et al. 2018) hears 64 ms of audio at 16 kHz and gives 360 pitch bins of 20 cents, each with its own probability:
a multi-label task. What it shows:

- Distilling without labels: `soft_weight=1`, and the audio is invented, since a teacher can label anything.
- A teacher that gives probabilities, where training wants logits: `Hearing` goes its way up to the last sigmoid.
- Inheriting where only the teacher's own classes exist: `carve` cuts the student out of the teacher, narrower in every layer.

Reported is how far the pitch heard by the student is from the one heard by the teacher, beside the published small version's.
The invented tones are the student's home ground, and not the other's: it shows that the route works, not that one is better.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edgestill.lab import distill
from edgestill.lab.data.source import ArraySource
from edgestill.lab.forward import answers
from edgestill.lab.inherit import carve
from edgestill.lab.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

RATE, FRAME, BINS, CENTS = 16_000, 1024, 360, 20
LOWEST, HIGHEST = 60.0, 1000.0  # Hz


class Hearing(nn.Module):
    """One of torchcrepe's networks, from audio as it is to logits."""

    def __init__(self, size: str) -> None:
        super().__init__()
        import torchcrepe

        torchcrepe.load.model("cpu", size)
        self.crepe = torchcrepe.infer.model
        for layer in self.crepe.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.1  # 0 there, since nobody was to train it: its statistics would never move

    def forward(self, frames: Tensor) -> Tensor:
        """Float32 `[N, 1024]` to logits `[N, 360]`; each frame is made to have mean 0 and deviation 1."""
        centred = frames - frames.mean(1, keepdim=True)
        crepe, x = self.crepe, centred / centred.std(1, keepdim=True).clamp_min(1e-6)
        x = crepe.layer(crepe.embed(x), crepe.conv6, crepe.conv6_BN)
        logits: Tensor = crepe.classifier(x.permute(0, 2, 1, 3).reshape(-1, crepe.in_features))
        return logits


def tones(count: int, seed: int) -> Tensor:
    """Frames `[count, 1024]` of harmonic tones of many pitches and colours, in more or less noise."""
    random = np.random.default_rng(seed)
    pitch = np.exp(random.uniform(np.log(LOWEST), np.log(HIGHEST), count))
    time = np.arange(FRAME) / RATE
    frames = random.normal(size=(count, FRAME)) * 10 ** random.uniform(-2, 0, (count, 1))
    fall = random.uniform(0.3, 2.5, count)
    for harmonic in range(1, 13):
        strength = harmonic**-fall * random.uniform(0.3, 1, count) * (harmonic * pitch < RATE / 2)
        phase = 2 * np.pi * random.uniform(size=(count, 1))
        frames += strength[:, None] * np.sin(2 * np.pi * harmonic * pitch[:, None] * time + phase)
    return torch.from_numpy(frames.astype(np.float32))


def cents(logits: Tensor) -> Tensor:
    """The pitch `[N]` above the first bin: the mean of the nine bins round the strongest, weighted by probability."""
    near = logits.argmax(1).clamp(4, BINS - 5)[:, None] + torch.arange(-4, 5)
    weights = logits.sigmoid().gather(1, near)
    return CENTS * (weights * near).sum(1) / weights.sum(1)


def told(name: str, model: nn.Module, frames: Tensor, heard: Tensor) -> None:
    """Prints how well a model agrees with what the teacher heard."""
    apart = (cents(answers(model, frames)) - heard).abs()
    size = sum(one.numel() for one in model.parameters())
    share, median = (apart <= 50).float().mean(), apart.median()
    print(
        f"{name}: {size:,} parameters, {share:.1%} within 50 cents of the teacher, median {median:.1f} cents"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--small",
        action="store_true",
        help="few tones and one epoch, to see that it runs; the figures mean nothing",
    )
    small = parser.parse_args(argv).small
    torch.manual_seed(0)
    teacher = Hearing("full")
    train, heldout = tones(24 if small else 2000, 1), tones(16 if small else 300, 2)
    student, _index_map = carve(teacher, train[:2], ratio=1 / 10, selection="magnitude")
    size = sum(one.numel() for one in student.parameters())
    print(f"carved: {size:,} parameters")
    run = distill(
        teacher,
        ArraySource(train, None, "multi-label", BINS),
        validation=ArraySource(heldout, None, "multi-label", BINS),
        student=student,
        recipe=Recipe(epochs=1 if small else 20, batch=32, lr=2e-3, soft_weight=1.0, tau=1.0),
        inherit=False,  # it is a part of the teacher already
    )
    test = tones(16 if small else 300, 3)
    heard = cents(answers(teacher, test))
    told("published small", Hearing("tiny"), test, heard)
    told("student", run.student, test, heard)


if __name__ == "__main__":
    main()
