"""Running one ONNX model with OpenVINO on the CPU.

- The model is the same file that onnxruntime runs, int8 included; it is checked alike (`infer.modelfile`).
- One row is what a device asks most. It has a compiled model of its own, whose shape is fixed: there a free batch costs a good part of
  a small model's time. Other batches have one with a free shape, compiled when the first of them comes.
- OpenVINO would take an input of another type and convert it, and run on what it was given before where an input is missing. Both are
  refused here.
- Numbers are computed in float32 where the model says so, also where the machine could do with less.

openvino is imported when an engine is made, so that importing this module is cheap. An engine may be used from several threads at once;
they take turns.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from edgestill.core.errors import EngineError
from edgestill.core.extras import require
from edgestill.core.oip import NUMPY_NAMES
from edgestill.infer.modelfile import check_self_contained
from edgestill.infer.ports import Ports, check_threads, refused, told

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edgestill.infer.ports import Described

_DATATYPES: Final = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "f32": "FP32",
    "f64": "FP64",
}


@final
class OpenVinoEngine(Ports):
    """A `core.protocols.Engine` over OpenVINO's CPU plug-in.

    Args:
        model: the ONNX file.
        threads: that share one operator, at least 1.

    Raises:
        ModelError: not an ONNX file, or more than data (`infer.modelfile.check_self_contained`).
        EngineError: OpenVINO cannot load it, or an input or output is no tensor of numbers.
        SettingError: threads out of range.
        MissingExtraError: openvino is not installed.
    """

    def __init__(self, model: bytes, *, threads: int = 1) -> None:
        check_threads(threads)
        check_self_contained(model)
        runtime = require("openvino", extra="openvino", purpose="to run a model with OpenVINO")
        self._compiler = _Compiler(runtime, threads)
        with _told("the engine cannot load the model", "a model that this version of OpenVINO knows"):
            self._model = self._compiler.read(model)
            super().__init__(_describe(self._model.inputs, "input"), _describe(self._model.outputs, "output"))
            self._one = self._compiler.for_one_row(self._model, self.inputs)
        self._any: Any = None
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """All outputs by name.

        Raises:
            EngineError: an input is missing, unknown or of another type, or the runtime refused.
        """
        if inputs.keys() != self.inputs.keys():
            raise refused("openvino", f"inputs {sorted(self.inputs)}", sorted(inputs))
        for name, one in inputs.items():
            wanted = NUMPY_NAMES[self.inputs[name][0]]
            if one.dtype != wanted:
                raise refused("openvino", f"{name} as {wanted}", one.dtype.name)
        with self._lock, _told("the engine could not run the model", "an answer"):
            request = self._request(inputs)
            request.infer(
                {name: np.ascontiguousarray(one) for name, one in inputs.items()}, share_inputs=True
            )
            return {name: request.get_tensor(name).data.copy() for name in self.outputs}

    def _request(self, inputs: Mapping[str, NDArray[np.generic]]) -> Any:
        if self._one is not None and all(one.shape[:1] == (1,) for one in inputs.values()):
            return self._one
        if self._any is None:
            self._any = self._compiler.compiled(self._model)
        return self._any


class _Compiler:
    """Compiles a model, and gives what it is asked with."""

    def __init__(self, runtime: Any, threads: int) -> None:
        self._runtime, self._core = runtime, _core()
        self._settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
        }

    def read(self, model: bytes) -> Any:
        """The file."""
        return self._core.read_model(model=model)

    def compiled(self, model: Any) -> Any:
        """For any batch."""
        return self._core.compile_model(model, "CPU", self._settings).create_infer_request()

    def for_one_row(self, model: Any, inputs: Described) -> Any:
        """For one row; None where other axes are free as well, or the model has no such form."""
        shapes = {name: [1, *shape[1:]] for name, (_, shape) in inputs.items()}
        if any(None in shape or not inputs[name][1] for name, shape in shapes.items()):
            return None
        if any(shape[0] not in {None, 1} for _, shape in inputs.values()):
            return None
        copy = model.clone()
        copy.reshape(shapes)
        return self.compiled(copy)


@lru_cache(maxsize=1)
def _core() -> Any:
    """One for the process: it knows the plug-ins, which takes a while to find out."""
    return require("openvino", extra="openvino", purpose="to run a model with OpenVINO").Core()


def _told(what: str, expected: str) -> told:
    """OpenVINO's last line says what it is about."""
    fix = "export it again for this version of OpenVINO, or run it with onnxruntime"
    return told("openvino", what, expected, fix=fix, text=_last_line)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _describe(ports: Sequence[Any], what: str) -> Described:
    return dict(_described(one, what) for one in ports)


def _described(port: Any, what: str) -> tuple[str, tuple[str, tuple[int | None, ...]]]:
    name, kind = str(port.get_any_name()), str(port.get_element_type().get_type_name())
    if kind not in _DATATYPES or port.partial_shape.rank.is_dynamic:
        raise EngineError(
            f"a model's {what} must be a tensor of numbers",
            where=name,
            got=kind if kind not in _DATATYPES else "any number of axes",
            expected="a tensor of numbers",
            fix="export it with tensors of numbers only",
        )
    shape = tuple(dim.get_length() if dim.is_static else None for dim in port.partial_shape)
    return name, (_DATATYPES[kind], shape)
