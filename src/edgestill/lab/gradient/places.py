"""Where the tensors of a training step stand in the file that devices run, and on which codes.

The step is made from the student in floats, the file that is shipped may be in int8: onnxruntime's quantiser keeps a tensor's name and adds
`_quantized` to it where it became codes. What has no place there would be trained for nothing, so it is refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, final

import numpy as np

from edgestill.core.errors import ModelError
from edgestill.delta.tensors import tensors_in
from edgestill.lab.packing.graph import constant, read
from edgestill.lab.packing.grid import LIMITS, saturates
from edgestill.learn.stepfile import WIDTHS, Place

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from edgestill.core.hardware import HardwareClass
    from edgestill.delta.tensors import Span
    from edgestill.learn.stepfile import Kind, StepFile, Tensor

CODES: Final = "_quantized"
_KINDS: Final[dict[str, Kind]] = {kind: kind for kind in WIDTHS}


def placed(steps: StepFile, shipped: bytes, hardware_class: HardwareClass) -> StepFile:
    """The file with a place for every tensor.

    Args:
        steps: of a step that was made from the student in floats.
        shipped: the bundle's `model.onnx`.
        hardware_class: where it will run.

    Raises:
        ModelError: a tensor that the shipped file does not have, or not in one piece.
    """
    looked = Places(shipped, hardware_class)
    return replace(steps, tensors=tuple(replace(one, place=looked.of(one)) for one in steps.tensors))


@final
class Places:
    """Those of a shipped file, which is looked through once.

    Args:
        model: the bundle's `model.onnx`.
        hardware_class: where it will run.
    """

    def __init__(self, model: bytes, hardware_class: HardwareClass) -> None:
        self._limit = LIMITS[saturates(hardware_class)]
        self._spans: Mapping[str, Span] = {name: span for (_, name), span in tensors_in(model).items()}
        graph = read(model).graph
        self._initializers = graph.initializers
        self._decoded = {
            str(node.inputs[0].name): node
            for node in graph
            if node.op_type == "DequantizeLinear" and node.inputs[0] is not None
        }

    def of(self, tensor: Tensor) -> Place:
        """That of one tensor, which is looked for by its name, and its codes' name.

        Raises:
            ModelError: the file does not have it, or not in one piece.
        """
        for name in (tensor.name, tensor.name + CODES):
            value, span = self._initializers.get(name), self._spans.get(name)
            if value is None or span is None:
                continue
            numbers = constant(value)
            assert numbers is not None
            if numbers.shape == tensor.shape and numbers.dtype.name in _KINDS:
                return self._written(name, _KINDS[numbers.dtype.name], span, len(tensor.shape))
        raise ModelError(
            "a trained tensor has no place in the shipped model",
            where=tensor.name,
            expected=f"it, or its codes, of shape {list(tensor.shape)}",
            got="none of them in one piece",
            fix="leave it out of what may change (what is trainable, or the last layer)",
        )

    def _written(self, name: str, kind: Kind, span: Span, rank: int) -> Place:
        if kind == "float32":
            return Place(kind=kind, start=span.start)
        node = self._decoded[name]
        scale, zero = self._numbers(node, 1), self._numbers(node, 2)
        assert scale is not None
        channels, start = scale
        told = node.attributes.get("axis")
        return Place(
            kind=kind,
            start=span.start,
            scale=start,
            channels=channels,
            axis=None if channels == 1 else 1 if told is None else told.as_int() % rank,
            zero=None if zero is None else zero[1],
            limit=self._limit if kind == "int8" else 127,
        )

    def _numbers(self, node: ir.Node, at: int) -> tuple[int, int] | None:
        """How many scales or zero points there are, and where; None for zero points that are all 0."""
        value = node.inputs[at] if at < len(node.inputs) else None
        numbers = constant(value)
        if value is None or numbers is None or (at > 1 and not np.any(numbers)):
            return None
        return int(numbers.size), self._spans[str(value.name)].start
