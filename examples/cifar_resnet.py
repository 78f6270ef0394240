"""A ResNet-56 that somebody else trained teaches an 8-layer network of at most 100 thousand parameters.

    pip install "edgestill[lab]" safetensors
    EDGESTILL_DATA=FOLDER python examples/cifar_resnet.py [--small] [--out FILE.esb]

The folder holds `cifar10_resnet56.safetensors` (853,018 parameters; He et al. 2015, section 4.2) and
`cifar10_lossless_4000train_1000test.npz`. What it shows:

- A teacher's weights are all it takes: write its layers down under the names that the file has.
- Both networks take what the camera gives, uint8 `[N, 32, 32, 3]`, and normalise within, each in its own way.
- Asking first whether distilling helps (`against=`). This teacher knows its training images by heart, and says little about
  them beyond their labels: the answer is that plain training does better for the same operations.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgestill.infer.policy import Policy
from edgestill.lab import distill
from edgestill.lab.compare import Slice
from edgestill.lab.data.augment import ImageShift
from edgestill.lab.data.samples import Samples
from edgestill.lab.data.source import ArraySource
from edgestill.lab.networks import Standardise
from edgestill.lab.recipe import Recipe
from edgestill.lab.score import scores

if TYPE_CHECKING:
    from collections.abc import Sequence

CLASSES = "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
SHIFT = ImageShift(4, mirror=True)


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters: every other pixel, and zeros for the new channels."""

    def __init__(self, taken: int, given: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(taken, given, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(given)
        self.conv2 = nn.Conv2d(given, given, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(given)
        self.stride, self.added = stride, given - taken

    def forward(self, x: Tensor) -> Tensor:
        """`[N, taken, H, W]` to `[N, given, H / stride, W / stride]`."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.added:
            half = self.added // 2
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.added - half))
        return functional.relu(x + y)


class CifarResNet(nn.Module):
    """`6 * blocks + 2` layers; the names are those of the file."""

    def __init__(self, blocks: int, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(blocks, width, width, 1)
        self.layer2 = self._stage(blocks, width, 2 * width, 2)
        self.layer3 = self._stage(blocks, 2 * width, 4 * width, 2)
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised `[N, 3, 32, 32]` to logits."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits

    @staticmethod
    def _stage(blocks: int, taken: int, given: int, stride: int) -> nn.Sequential:
        later = (Block(given, given, 1) for _ in range(blocks - 1))
        return nn.Sequential(Block(taken, given, stride), *later)


class Camera(nn.Module):
    """A network behind the normalisation it was trained with: from uint8 `[N, 32, 32, 3]`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.standardise = Standardise(3, scale=1 / 255)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, 10]`."""
        logits: Tensor = self.network(self.standardise(x).permute(0, 3, 1, 2))
        return logits


def folder() -> Path:
    """Where the data are."""
    return Path(
        os.environ.get("EDGESTILL_DATA") or sys.exit("EDGESTILL_DATA is not set: the folder of the data")
    )


def teacher() -> Camera:
    """The published weights, behind the normalisation of ImageNet that they were trained with."""
    from safetensors.torch import load_file

    resnet = Camera(CifarResNet(blocks=9))
    resnet.network.load_state_dict(load_file(folder() / "cifar10_resnet56.safetensors"))
    resnet.standardise.mean.copy_(torch.tensor([0.485, 0.456, 0.406]))
    resnet.standardise.deviation.copy_(torch.tensor([0.229, 0.224, 0.225]))
    return resnet


def images() -> tuple[Samples, Samples]:
    """4,000 training images and 1,000 others."""
    with np.load(folder() / "cifar10_lossless_4000train_1000test.npz") as found:
        train, heldout = (
            Samples.of(found[f"x_{part}"], found[f"y_{part}"].astype(np.int64), classes=10)
            for part in ("train", "test")
        )
    return train, heldout


def data() -> tuple[ArraySource, Samples]:
    """For `cifar_resnet.toml`."""
    train, heldout = images()
    return ArraySource.of(train, SHIFT), heldout


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="to see that it runs; figures then mean nothing")
    parser.add_argument("--out", type=Path, default=Path("cifar-resnet8.esb"))
    asked = parser.parse_args(argv)
    torch.manual_seed(0)
    few, (train, heldout), resnet = asked.small, images(), teacher()
    train = train.where(np.arange(len(train)) < (200 if few else len(train)))
    # one half chooses the threshold and is told to the pre-flight, the other is only measured on
    half = np.arange(len(heldout)) < len(heldout) // 2
    student = Camera(CifarResNet(blocks=1))
    student.standardise.fit_(train.inputs)
    run = distill(
        resnet,
        train,
        validation=heldout.where(half),
        student=student,
        recipe=Recipe(epochs=1 if few else 30, lr=1e-2, soft_weight=0.5, tau=4.0, views=1 if few else 5),
        augment=SHIFT,
        inherit=False,
        against=Slice(samples=100 if few else 1000, epochs=1 if few else 40, seeds=2 if few else 3),
    )
    assert run.comparison is not None
    print(run.comparison.sentence)
    test = ArraySource.of(heldout.where(~half))
    for name, model in (("teacher", resnet), ("student", run.student)):
        size = sum(one.numel() for one in model.parameters())
        print(f"{name}: {size:,} parameters, {scores(model, test).mean():.1%} of {len(test)} test images")
    print(f"bundle: {run.save_bundle(asked.out, Policy(labels=CLASSES)).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
