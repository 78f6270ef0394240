"""A TFLite file, put together tensor by tensor (schema.fbs of LiteRT, version 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from edgestill.core.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

VERSION: Final = 3
IDENTIFIER: Final = b"TFL3"
_TYPES: Final = {
    "float32": "FLOAT32",
    "float16": "FLOAT16",
    "float64": "FLOAT64",
    "int8": "INT8",
    "uint8": "UINT8",
    "int16": "INT16",
    "uint16": "UINT16",
    "int32": "INT32",
    "uint32": "UINT32",
    "int64": "INT64",
    "bool": "BOOL",
}
_OPTIONS: Final = {
    "ADD": "AddOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "CAST": "CastOptions",
    "CONCATENATION": "ConcatenationOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DEQUANTIZE": "DequantizeOptions",
    "DIV": "DivOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "HARD_SWISH": "HardSwishOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "MUL": "MulOptions",
    "PAD": "PadOptions",
    "QUANTIZE": "QuantizeOptions",
    "RESHAPE": "ReshapeOptions",
    "SOFTMAX": "SoftmaxOptions",
    "STRIDED_SLICE": "StridedSliceOptions",
    "SUB": "SubOptions",
    "TRANSPOSE": "TransposeOptions",
}
"""Operator -> the table of its settings; the others have none."""
_VERSIONS: Final = {
    "AVERAGE_POOL_2D": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "DEQUANTIZE": 2,
    "FULLY_CONNECTED": 4,
    "MAX_POOL_2D": 2,
}
"""Of the operators on int8, where it is not the first; the runtime looks at what it is given, whatever this says."""
_OLD_CODES: Final = 127


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """How codes stand for numbers: `(code - zero) * scale`.

    Attributes:
        scale: one, or one a channel.
        zero: whole; 0 for weights.
        axis: of the channels, as stored.
    """

    scale: NDArray[np.float32]
    zero: int = 0
    axis: int = 0


@final
class Flat:
    """Tensors and operators of one graph."""

    def __init__(self) -> None:
        purpose = "to run a model with LiteRT"
        self._schema: Any = require("ai_edge_litert.schema_py_generated", extra="litert", purpose=purpose)
        self._builder: Any = require("flatbuffers", extra="litert", purpose=purpose).Builder
        self._model = self._schema.ModelT()
        self._model.version = VERSION
        self._model.buffers, self._model.operatorCodes = [self._schema.BufferT()], []
        self._graph = self._schema.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []
        self._model.subgraphs = [self._graph]
        self._codes: dict[str, int] = {}

    def tensor(
        self,
        shape: Sequence[int],
        kind: str,
        *,
        grid: Grid | None = None,
        data: NDArray[np.generic] | None = None,
        name: str = "",
    ) -> int:
        """A new tensor; its number.

        Args:
            shape: as stored.
            kind: numpy's name of its numbers.
            grid: of codes.
            data: of a constant.
            name: of an input or output.
        """
        made = self._schema.TensorT()
        made.name, made.shape = name or f"t{len(self._graph.tensors)}", list(shape)
        made.type = getattr(self._schema.TensorType, _TYPES[kind])
        if grid is not None:
            self._set_grid(made, grid)
        if data is not None:
            buffer = self._schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), dtype=np.uint8)
            self._model.buffers.append(buffer)
            made.buffer = len(self._model.buffers) - 1
        self._graph.tensors.append(made)
        return len(self._graph.tensors) - 1

    def constant(self, data: NDArray[np.generic], *, grid: Grid | None = None) -> int:
        """A tensor that stands in the file."""
        return self.tensor(data.shape, data.dtype.name, grid=grid, data=data)

    def grid_of(self, tensor: int, grid: Grid) -> bool:
        """Gives a tensor a grid, unless it has another one; whether it has this one now."""
        made = self._graph.tensors[tensor]
        if made.quantization is None:
            self._set_grid(made, grid)
            return True
        scale, zero = made.quantization.scale, made.quantization.zeroPoint
        return bool(np.array_equal(scale, np.atleast_1d(grid.scale)) and zero[0] == grid.zero)

    def add(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], **settings: object) -> None:
        """An operator behind those there are."""
        if kind not in self._codes:
            code = self._schema.OperatorCodeT()
            code.builtinCode = getattr(self._schema.BuiltinOperator, kind)
            code.deprecatedBuiltinCode = min(code.builtinCode, _OLD_CODES)
            code.version = _VERSIONS.get(kind, 1)
            self._codes[kind] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(code)
        made = self._schema.OperatorT()
        made.opcodeIndex = self._codes[kind]
        made.inputs, made.outputs = list(inputs), list(outputs)
        if kind in _OPTIONS:
            name = _OPTIONS[kind]
            made.builtinOptionsType = getattr(self._schema.BuiltinOptions, name)
            made.builtinOptions = getattr(self._schema, f"{name}T")()
            for key, value in settings.items():
                setattr(made.builtinOptions, key, value)
        self._graph.operators.append(made)

    def name(self, tensor: int, name: str) -> None:
        """Calls a tensor by this name."""
        self._graph.tensors[tensor].name = name

    def padding(self, *, same: bool) -> int:
        """The code of a way to pad."""
        return int(self._schema.Padding.SAME if same else self._schema.Padding.VALID)

    def finished(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The file."""
        self._graph.inputs, self._graph.outputs = list(inputs), list(outputs)
        builder = self._builder(1024)
        builder.Finish(self._model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    def _set_grid(self, made: Any, grid: Grid) -> None:
        told = self._schema.QuantizationParametersT()
        told.scale = np.atleast_1d(np.asarray(grid.scale, dtype=np.float32))
        told.zeroPoint = np.full(len(told.scale), grid.zero, dtype=np.int64)
        told.quantizedDimension = grid.axis
        made.quantization = told
