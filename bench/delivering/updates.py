"""How large an update is, as our patch and as generic ones: two students, four updates of each, all on the grid of the version before.

- The students: the reference student, and a ResNet of 8 layers whose teacher is a published ResNet-20; distilled and packed as users do it.
- The updates learn from the images that were left out, from the student's weights on, each once: 50 steps of AdamW at a constant 1e-4 (`small`),
  200 at 1e-3 (`more`), 200 of the last layer alone (`head`); BatchNorm keeps its statistics. `retrained` begins anew from other first weights, and
  on a grid of its own: no patch can be small. How many of the model's bytes an update changed is told beside it, and in which steps the gate let its
  weights move; `exact` is the same update where nothing may be given up for a small patch. One that changes no byte is an error.
- Sizes are those of the int8 file and of the whole bundle, with policy, golden answers and all, beside `zstd -19` of the new one, `zstd
  --patch-from`, bsdiff4 and detools; every patch is applied, and must lead to the new bytes.
"""

from __future__ import annotations

import copy
import io
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import bsdiff4
import detools
import numpy as np
import torch
from searching.teachers import Camera, CifarResNet, images, middle, world
from torch import nn

from edgestill.core.bundle import archive_bytes
from edgestill.core.digest import Digest
from edgestill.core.manifest import MODEL
from edgestill.delta.codec import apply, diff
from edgestill.delta.frames import compressed
from edgestill.lab.distil import distill
from edgestill.lab.networks import ImageNet24
from edgestill.lab.packing.gate import Gate
from edgestill.lab.packing.grid import Grid

if TYPE_CHECKING:
    from pathlib import Path

    from searching.teachers import World

    from edgestill.lab.data.samples import Samples
    from edgestill.lab.packing.assemble import Packed
    from edgestill.lab.run import Run

BATCH: Final = 64
STEPS: Final = {"small": (50, 1e-4), "more": (200, 1e-3), "head": (200, 1e-3)}
"""Update -> (steps, learning rate)."""
EPOCHS: Final = 12
"""Of the ResNet."""
STUDENTS: Final = {"reference": "reference student", "resnet20": "ResNet-8"}
"""Name of the world -> what its student is called."""


def measured(data: Path, kept: Path, *, quick: bool) -> dict[str, Any]:
    """Student -> update -> sizes in bytes."""
    return {title: _updates(name, data, kept, quick=quick) for name, title in STUDENTS.items()}


def _updates(name: str, data: Path, kept: Path, *, quick: bool) -> dict[str, Any]:
    folder = kept / name
    folder.mkdir(parents=True, exist_ok=True)
    one = world(name, data, folder, quick=quick)
    if quick:
        one = replace(one, recipe=replace(one.recipe, epochs=1, views=1))
    elif name != "reference":  # whose searches train many students on fewer images
        one = replace(one, train=images(data, "train", 2), recipe=replace(one.recipe, epochs=EPOCHS))
    left_out = images(data, "train", 1).where(np.arange(50_000) % 2 == 1)
    fresh = middle(left_out) if name == "reference" else left_out
    run = _distilled(one, _student(name, one, seed=0), one.train)
    base = run.pack()
    grid = Grid.of(base.blobs[MODEL])
    found = {
        "parameters": sum(each.numel() for each in run.student.parameters()),
        "accuracy": base.int8.value,
    }
    for update, (steps, rate) in STEPS.items():
        student = copy.deepcopy(run.student)
        if update == "head":
            _freeze(student)
        recipe = replace(
            one.recipe,
            epochs=1,
            batch=BATCH,
            lr=rate,
            schedule="constant",
            views=0,
            frozen_statistics=True,
        )
        seen = fresh.where(np.arange(len(fresh)) < steps * BATCH)
        learned = _distilled(one, student, seen, recipe)
        later = replace(run, student=learned.student)
        found[update] = _sizes(base, later.pack(grid=grid)) | {"steps": -(-len(seen) // BATCH)}
        found[update]["exact"] = _sizes(base, later.pack(grid=grid, gate=Gate(forgone=0)))["file"]["ours"]
    other = _distilled(
        replace(one, recipe=replace(one.recipe, seed=1)), _student(name, one, seed=1), one.train
    )
    found["retrained"] = _sizes(base, replace(run, student=other.student).pack())
    return found


def _student(name: str, one: World, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    student = ImageNet24(32, 64, 32) if name == "reference" else Camera(CifarResNet(blocks=1))
    student.standardise.load_state_dict(one.teacher.standardise.state_dict())  # type: ignore[union-attr]  # both have one
    return student


def _distilled(one: World, student: nn.Module, train: Samples, recipe: Any = None) -> Run:
    return distill(
        one.teacher,
        train,
        validation=one.heldout,
        student=student,
        recipe=recipe or one.recipe,
        augment=one.augment,
        inherit=False,
    )


def _freeze(student: nn.Module) -> None:
    """All but the last linear layer."""
    layers = [each for each in student.modules() if isinstance(each, nn.Linear)]
    student.requires_grad_(requires_grad=False)
    layers[-1].requires_grad_(requires_grad=True)


def _sizes(base: Packed, new: Packed) -> dict[str, Any]:
    """Of the model's file and of the bundle."""
    files = {
        "file": (base.blobs[MODEL], new.blobs[MODEL]),
        "bundle": tuple(archive_bytes(each.manifest, each.blobs) for each in (base, new)),
    }
    old, changed = (np.frombuffer(one, dtype=np.uint8) for one in files["file"])
    moved = float((old != changed).mean()) if len(old) == len(changed) else 1.0
    if not moved:
        raise AssertionError
    return {what: _patched(*pair) for what, pair in files.items()} | {
        "accuracy": new.int8.value,
        "changed": moved,
        "way": new.tried[-1].way,
    }


def _patched(old: bytes, new: bytes) -> dict[str, Any]:
    started = time.process_time()
    patch = diff(old, new)
    made = time.process_time()
    out = io.BytesIO()
    apply(io.BytesIO(old), io.BytesIO(patch), out, expected=Digest.of(new), max_size=len(new))
    applied = time.process_time()
    if out.getvalue() != new:
        raise AssertionError
    generic = bsdiff4.diff(old, new)
    if bsdiff4.patch(old, generic) != new:
        raise AssertionError
    other = io.BytesIO()
    detools.create_patch(io.BytesIO(old), io.BytesIO(new), other, compression="lzma")
    return {
        "size": len(new),
        "zstd": len(compressed(new)),
        "ours": len(patch),
        "codec": patch[80],
        "patch_from": len(compressed(new, old)),
        "bsdiff4": len(generic),
        "detools": len(other.getvalue()),
        "make_s": made - started,
        "apply_s": applied - made,
    }
