"""Running one ONNX model with LiteRT on the CPU (XNNPACK).

The model is the file that every other engine runs. When it is loaded it is written down as TFLite in memory, in milliseconds and without
another tool: a bundle needs no second model, and patches and digests stay as they are. int8 stays on the codes it has. Operators that are
not known (`litert.table`) are refused by name.

A batch is answered row by row. ai_edge_litert is imported when an engine is made; an engine may be used from several threads at
once, which take turns.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, final

import numpy as np

from edgestill.core.errors import EngineError
from edgestill.core.extras import require
from edgestill.core.oip import NUMPY_NAMES
from edgestill.infer.litert.table import lowered
from edgestill.infer.modelfile import check_self_contained
from edgestill.infer.onnxgraph import read_graph
from edgestill.infer.ports import Ports, check_threads, refused, told

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from edgestill.infer.ports import Described

_DATATYPES: Final = {name: datatype for datatype, name in NUMPY_NAMES.items()}
_NOISE: Final = "INFO: "


@final
class LiteRtEngine(Ports):
    """A `core.protocols.Engine` over LiteRT.

    Args:
        model: the ONNX file, of one input.
        threads: that share one operator, at least 1.

    Raises:
        ModelError: not an ONNX file, or more than data (`infer.modelfile.check_self_contained`).
        EngineError: an operator that is not written down as TFLite, or a free axis behind the first.
        SettingError: threads out of range.
        MissingExtraError: ai-edge-litert is not installed.
    """

    def __init__(self, model: bytes, *, threads: int = 1) -> None:
        check_threads(threads)
        check_self_contained(model)
        runtime = require("ai_edge_litert.interpreter", extra="litert", purpose="to run a model with LiteRT")
        graph = read_graph(model)
        taken = _described(graph.inputs)
        with _told("the engine cannot load the model", "a model that this version of LiteRT knows"):
            data, self._fixed = lowered(model)
            with _quiet():
                self._interpreter = runtime.Interpreter(model_content=data, num_threads=threads)
                self._interpreter.allocate_tensors()
        (row,) = self._interpreter.get_input_details()
        given = {one["name"]: one for one in self._interpreter.get_output_details()}
        self._input, self._row = row["index"], tuple(int(size) for size in row["shape"])
        self._given = {name: given[name]["index"] for name in graph.outputs if name in given}
        outputs = {
            name: (
                _DATATYPES[np.dtype(given[name]["dtype"]).name],
                (None, *map(int, given[name]["shape"][1:])),
            )
            if name in given
            else (_DATATYPES[self._fixed[name].dtype.name], self._fixed[name].shape)
            for name in graph.outputs
        }
        super().__init__(taken, outputs)
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """All outputs by name.

        Raises:
            EngineError: an input is missing, unknown, of another type or another shape, or the runtime refused.
        """
        batch = self._checked(inputs)
        with self._lock, _told("the engine could not run the model", "an answer"):
            rows = [self._answered(batch[at : at + 1]) for at in range(len(batch))]
        found = rows[0] if len(rows) == 1 else [np.concatenate(one) for one in zip(*rows, strict=True)]
        outputs = dict(zip(self._given, found, strict=True))
        return outputs | {name: one.copy() for name, one in self._fixed.items()}

    def _answered(self, row: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        interpreter = self._interpreter
        interpreter.set_tensor(self._input, row)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in self._given.values()]

    def _checked(self, inputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.generic]:
        ((name, (datatype, _)),) = self.inputs.items()
        batch = inputs.get(name)
        if batch is None or len(inputs) != 1:
            raise refused("litert", f"the input {name}", sorted(inputs))
        if batch.dtype != NUMPY_NAMES[datatype] or batch.shape[1:] != self._row[1:] or not len(batch):
            raise refused(
                "litert",
                f"{name} as {NUMPY_NAMES[datatype]} [N, *{list(self._row[1:])}]",
                f"{batch.dtype} {list(batch.shape)}",
            )
        return batch


def _described(inputs: dict[str, tuple[str, tuple[int | None, ...]]]) -> Described:
    if len(inputs) != 1 or any(kind not in _DATATYPES for kind, _ in inputs.values()):
        raise EngineError(
            "the engine cannot load the model",
            where="litert",
            expected="one input, a tensor of numbers",
            got=", ".join(inputs) or "none",
            fix="export a network of one input",
        )
    return {name: (_DATATYPES[kind], shape) for name, (kind, shape) in inputs.items()}


def _told(what: str, expected: str) -> told:
    return told("litert", what, expected, fix="run it with onnxruntime or openvino")


_first = threading.Lock()
_heard: list[bool] = []


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what LiteRT's C++ says about itself, once in a process, off standard error; whatever else is written there stays."""
    with _first:
        if _heard:
            yield
            return
        sys.stderr.flush()
        kept = os.dup(2)
        with tempfile.TemporaryFile() as caught:
            os.dup2(caught.fileno(), 2)
            try:
                yield
                _heard.append(True)
            finally:
                os.dup2(kept, 2)
                os.close(kept)
                caught.seek(0)
                for line in caught.read().decode(errors="replace").splitlines(keepends=True):
                    if not line.startswith(_NOISE):
                        sys.stderr.write(line)
