"""The codes that a file's numbers are on: scales, zero points, and what its weights are there.

A next version that is quantised on its parent's grid differs from it in integer codes only, so that patches between them are
small; weights that have outgrown it are cut, and counted. What moved may be rounded more coarsely than the codes themselves (`coarse`): in
steps of 2 to 8 codes from the parent's; each doubling spares up to a bit of every weight. The gate decides how much of that
an update can bear (`lab.packing.gate`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self, final

import numpy as np
import onnx
import onnx_ir as ir
from onnxruntime import quantization

from edgestill.core.digest import Digest
from edgestill.core.errors import ModelError
from edgestill.lab.packing.graph import constant, read

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgestill.core.hardware import HardwareClass

LIMITS: Final = {False: 127, True: 64}
"""The largest code of a weight, where products cannot saturate and where they can."""


def saturates(hardware_class: HardwareClass) -> bool:
    """Whether u8s8 products can saturate there: x86 without VNNI."""
    architecture, instructions, _ = hardware_class.name.split("-")
    return architecture == "x86_64" and instructions != "vnni"


_TYPES: Final = {"int8": quantization.QuantType.QInt8, "uint8": quantization.QuantType.QUInt8}


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """How one tensor's numbers become codes: `round(x / scale) + zero`.

    Attributes:
        scale: one number, or `[C]`.
        zero: of the same shape.
        axis: of the channels; None where there is one number for all.
    """

    scale: NDArray[np.float32]
    zero: NDArray[np.integer]
    axis: int | None

    def along(self, tensor: NDArray[np.generic]) -> NDArray[np.float32]:
        """The scale, to be broadcast over the tensor."""
        if self.axis is None:
            return self.scale
        shape = [1] * tensor.ndim
        shape[self.axis] = -1
        return self.scale.reshape(shape)

    def beyond(self, tensor: NDArray[np.floating], limit: int) -> NDArray[np.bool_]:
        """Where a tensor's numbers are nearest to no code: of int8, those are from `-limit` to `limit`; of uint8 all there are."""
        code = tensor / self.along(tensor)
        outside: NDArray[np.bool_]
        if self.zero.dtype == np.int8:
            outside = np.abs(code) > limit + 0.5
            return outside
        zero = self.zero.astype(np.float32)
        moved = code + (
            zero
            if self.axis is None
            else zero.reshape([-1 if at == self.axis else 1 for at in range(tensor.ndim)])
        )
        outside = (moved < -0.5) | (moved > np.iinfo(self.zero.dtype).max + 0.5)
        return outside

    @property
    def overrides(self) -> list[dict[str, Any]]:
        """As onnxruntime's quantiser wants to be told."""
        kind = _TYPES[self.zero.dtype.name]
        channels = {} if self.axis is None else {"axis": self.axis}
        return [
            {"quant_type": kind, "scale": np.array(scale), "zero_point": np.array(zero)} | channels
            for scale, zero in zip(np.atleast_1d(self.scale), np.atleast_1d(self.zero), strict=True)
        ]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """What an int8 file's numbers are on.

    Attributes:
        steps: tensor -> its scales and zero points.
        codes: weight -> its codes, int8.
        file: the int8 file itself.
    """

    steps: Mapping[str, Step]
    codes: Mapping[str, NDArray[np.int8]] = field(default_factory=dict)
    file: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, model: bytes) -> Self:
        """Of a file that `quantise` made; empty for one in floats."""
        steps: dict[str, Step] = {}
        codes: dict[str, NDArray[np.int8]] = {}
        for node in read(model).graph:
            if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
                continue
            scale = _numbers(node.inputs[1])
            zero = _numbers(node.inputs[2]) if len(node.inputs) > 2 else _no_zero(node, scale)
            told = node.attributes.get(
                "axis"
            )  # which may be left out where it is 1, or where there is one number only
            axis = told.as_int() if told is not None and scale.ndim else 1 if scale.size > 1 else None
            if zero.dtype != np.int32:  # a bias, whose scale is that of its input by that of its weight
                name = str(node.inputs[1].name).removesuffix("_scale")  # type: ignore[union-attr]  # it was read above
                steps[name] = Step(scale, zero, axis)
                written = constant(node.inputs[0])
                if written is not None and written.dtype == np.int8:
                    codes[name] = written
        return cls(steps, codes, model)

    @property
    def id(self) -> Digest:
        """The digest of all scales and zero points, by name."""
        return Digest.of_chunks(
            part
            for name, step in sorted(self.steps.items())
            for part in (name.encode(), step.scale.tobytes(), step.zero.tobytes())
        )

    def clipped(self, model: bytes, hardware_class: HardwareClass) -> float:
        """The share of a float file's weights that lie beyond this grid and are cut; 0 where it has none of them."""
        limit = LIMITS[saturates(hardware_class)]
        beyond = total = 0
        for one in onnx.load_from_string(model).graph.initializer:
            step = self.steps.get(one.name)
            if step is not None:
                weight = onnx.numpy_helper.to_array(one)
                beyond += int(step.beyond(weight, limit).sum())
                total += weight.size
        return beyond / total if total else 0.0

    def settle_(self, graph: ir.Graph, hardware_class: HardwareClass, *, coarse: int = 1) -> None:
        """Moves a graph's weights to where this grid has codes for them, so that none gets a code that it shall not have.

        Tables that are looked up (Gather) have uint8 codes, of which every one may be had: they stay as they are.

        Of a scale that it is given the quantiser uses every code: where products can saturate, weights that have outgrown the
        grid would get codes of eight bits.

        Args:
            graph: in floats; changed.
            hardware_class: where it will run.
            coarse: codes from the parent's by whose multiples a weight may move; 1 rounds nothing here.
        """
        limit = np.float32(LIMITS[saturates(hardware_class)])
        for name, value in graph.initializers.items():
            step, weight = self.steps.get(name), constant(value)
            if step is None or weight is None or step.zero.dtype != np.int8:
                continue
            scale, before = step.along(weight), self.codes.get(name)
            if coarse > 1 and before is not None and before.shape == weight.shape:
                weight = scale * (before + coarse * np.rint((weight / scale - before) / coarse))
            settled = np.clip(weight, -scale * limit, scale * limit).astype(np.float32)
            value.const_value = ir.tensor(settled, name=name)


def grid_id(model: bytes) -> Digest:
    """Names the quantisation grid. Two versions with the same grid differ in integer codes only."""
    return Grid.of(model).id


def _no_zero(node: ir.Node, scale: NDArray[Any]) -> NDArray[Any]:
    """Zeros, where a file leaves them out: of the codes' type, which is uint8 for what is computed."""
    codes = constant(node.inputs[0])
    return np.zeros(scale.shape, dtype=np.uint8 if codes is None or codes.dtype.kind == "f" else codes.dtype)


def _numbers(value: ir.Value | None) -> NDArray[Any]:
    found = constant(value)
    if found is None:
        raise ModelError(
            "a scale is no constant",
            where="model.onnx",
            expected="static quantisation",
            got="a scale that is computed",
            fix="quantise it with edgestill",
        )
    return found
