"""Two teachers on CIFAR-10 (as JPEG), whose students are searched for: the reference network and a published ResNet-20.

Both take uint8 images. Some training images, every second or tenth of the data set, are what teacher (where it is trained here) and students
learn from; the 10,000 test images are held out, of which a share chooses students and the rest tells.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from PIL import Image

from edgestill.core.digest import Digest
from edgestill.core.jsonio import canonical
from edgestill.demo.imagedata import fit
from edgestill.lab.data.augment import ImageShift
from edgestill.lab.data.samples import Samples
from edgestill.lab.models import load_weights_, save_weights
from edgestill.lab.networks import ImageNet24
from edgestill.lab.recipe import Recipe
from edgestill.lab.training.train import Lesson, train_

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from cifar_resnet import Camera, CifarResNet

if TYPE_CHECKING:
    from torch import nn

    from edgestill.lab.data.augment import Augment

FILE: Final = "cifar10_jpeg_q75.npz"
EVERY: Final = {"reference": 2, "resnet20": 10}
NAMES: Final = ("reference", "resnet20")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """A teacher with its data.

    Attributes:
        title: in tables.
        teacher: trained.
        train: what students learn from.
        heldout: what chooses and tells.
        augment: makes views.
        recipe: of the students.
        tried: key of the recipe -> values that the search tries.
    """

    title: str
    teacher: nn.Module
    train: Samples
    heldout: Samples
    augment: Augment
    recipe: Recipe
    tried: dict[str, list[float]]


def images(folder: Path, part: str, every: int) -> Samples:
    """Every so manieth image of the training or test part."""
    with np.load(folder / FILE) as found:
        data, ends, labels = (found[f"{part}_{kind}"] for kind in ("jpg", "off", "y"))
    places = range(0, len(labels), every)
    pixels = [
        np.asarray(Image.open(io.BytesIO(data[ends[at] : ends[at + 1]].tobytes())).convert("RGB"))
        for at in places
    ]
    return Samples.of(np.stack(pixels), labels[::every].astype(np.int64), classes=10)


def world(name: str, folder: Path, kept: Path | None = None, *, quick: bool) -> World:
    """One of `NAMES`; a teacher that is trained here is kept in a folder that is given."""
    few = 20 if quick else 1
    train, heldout = images(folder, "train", EVERY[name] * few), images(folder, "test", few)
    if name == "reference":
        train, heldout = middle(train), middle(heldout)
        augment = ImageShift(2, mirror=True)
        torch.manual_seed(0)
        teacher: nn.Module = ImageNet24(64, 128, 512)
        teacher.standardise.fit_(train.inputs)  # type: ignore[union-attr,operator]  # it has one
        teaching = Recipe(epochs=1 if quick else 12, batch=64, lr=1e-3)
        of = Digest.of(canonical({"recipe": teaching.as_json(), "data": str(train.digest)}))
        file = None if kept is None else kept / f"teacher-{of.hex[:16]}.safetensors"
        if file is not None and file.exists():
            load_weights_(teacher, file)
        else:
            train_(teacher, Lesson.of(train, augment), teaching)
        if file is not None:
            save_weights(teacher, file)
        recipe = Recipe(epochs=9, batch=64, lr=3e-3, soft_weight=0.7, tau=2.0, views=3, inherit="magnitude")
        title = "LargeModel (24 x 24)"
    else:
        augment = ImageShift(4, mirror=True)
        teacher = resnet20(folder)
        recipe = Recipe(epochs=6, batch=64, lr=4e-3, soft_weight=0.7, tau=4.0, views=3, inherit="magnitude")
        title = "ResNet-20 (published)"
    return World(
        title=title,
        teacher=teacher,
        train=train,
        heldout=heldout,
        augment=augment,
        recipe=recipe,
        tried={"lr": [recipe.lr, 2 * recipe.lr, 4 * recipe.lr], "soft_weight": [recipe.soft_weight, 0.9]},
    )


def middle(samples: Samples) -> Samples:
    """The middle 24 x 24 of each image, which the reference networks take."""
    return Samples.of(fit(samples.inputs), samples.labels, classes=10)


def resnet20(folder: Path) -> nn.Module:
    """The published network, from uint8 `[N, 32, 32, 3]`."""
    from safetensors.torch import load_file

    teacher = Camera(CifarResNet(blocks=3))
    teacher.network.load_state_dict(load_file(folder / "cifar10_resnet20.safetensors"))
    teacher.standardise.mean.copy_(torch.tensor([0.485, 0.456, 0.406]))
    teacher.standardise.deviation.copy_(torch.tensor([0.229, 0.224, 0.225]))
    return teacher.eval()
