"""A bundle that devices may train: the step (`train.onnx`), and where its tensors stand in the model (`train.json`).

Neither counts for the bundle's size in a budget: only devices that learn need them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgestill.core.errors import within
from edgestill.core.hardware import HardwareClass
from edgestill.core.manifest import MODEL, STEPS, TRAIN
from edgestill.lab.gradient.places import placed
from edgestill.lab.gradient.step import training_step
from edgestill.lab.packing.assemble import with_blobs

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import nn

    from edgestill.lab.gradient.step import Training
    from edgestill.lab.packing.assemble import Packed


def trainable(
    packed: Packed, training: Training, *, named: Collection[str] = (), fixed: Collection[str] = ()
) -> Packed:
    """The bundle with a training step.

    Args:
        packed: the bundle.
        training: what a device may train, and how.
        named: parameters that do not stand where an operator has its weights (`parameters_of_module`).
        fixed: what is no parameter, wherever it stands (`fixed_of_module`).

    Raises:
        ModelError: an operator that gradients cannot go through, or a tensor that has no place in the shipped model; both are named.
        SettingError: `training.trainable` names nothing.
    """
    with within("train.onnx"):
        step = training_step(packed.model_fp32, training, named=named, fixed=fixed)
        file = placed(step.file, packed.blobs[MODEL], HardwareClass(packed.manifest.hardware_class))
    return with_blobs(packed, {TRAIN: step.model, STEPS: file.to_bytes()})


def parameters_of_module(student: nn.Module) -> set[str]:
    """The names that a network's parameters have in its export."""
    return {f"model.{name}" for name, one in student.named_parameters() if one.requires_grad}


def fixed_of_module(student: nn.Module) -> set[str]:
    """The names that a network's buffers have in its export, and those of parameters that are not to learn."""
    frozen = (name for name, one in student.named_parameters() if not one.requires_grad)
    return {f"model.{name}" for name in [*frozen, *(name for name, _ in student.named_buffers())]}
