"""Running one ONNX model with onnxruntime.

- The model is bytes: it was checked against its digest, and it cannot name files or operators outside itself
  (`infer.modelfile`).
- Threads are given, not guessed; operators run one after another; the runtime reports to nobody (`edgestill` says so to it).
- Whatever the runtime raises becomes one `EngineError` of one line.
- onnxruntime is imported when an engine is made, so that importing this module is cheap.

A session may be used from several threads at once; onnxruntime locks what it must.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

from edgestill.core.errors import EngineError
from edgestill.core.extras import require
from edgestill.infer.modelfile import check_self_contained
from edgestill.infer.ports import Ports, check_threads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgestill.infer.ports import Described

_DATATYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
}
_ONLY_FATAL: Final = 4  # errors reach the caller as exceptions; printing them as well would tell them twice


@final
class OnnxEngine(Ports):
    """A `core.protocols.Engine` over onnxruntime on the CPU.

    Args:
        model: the ONNX file.
        threads: that share one operator, at least 1.

    Raises:
        ModelError: not an ONNX file, or more than data (`infer.modelfile.check_self_contained`).
        EngineError: onnxruntime cannot load it, or an input or output is no tensor of numbers.
        SettingError: threads out of range.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, model: bytes, *, threads: int = 1) -> None:
        check_threads(threads)
        check_self_contained(model)
        runtime = require("onnxruntime", extra="device", purpose="to run a model")
        self._session = _session(runtime, model, threads)
        super().__init__(
            _describe(self._session.get_inputs(), "input"), _describe(self._session.get_outputs(), "output")
        )
        self._names = list(self.outputs)

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """All outputs by name.

        Raises:
            EngineError: the runtime refused.
        """
        try:
            values = self._session.run(self._names, inputs)
        except Exception as error:  # onnxruntime's classes share no other base
            raise EngineError(
                "the engine could not run the model",
                where="onnxruntime",
                got=_plain(error),
                fix="is there memory enough? Otherwise export it again for this version of onnxruntime",
                expected="an answer",
            ) from error
        return dict(zip(self._names, values, strict=True))


def _session(runtime: Any, model: bytes, threads: int) -> Any:
    runtime.disable_telemetry_events()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ONLY_FATAL
    # threads that spin between two answers would burn a battery
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # a model must not choose the session's settings, and a failure must not be retried with a print
        return runtime.InferenceSession(
            model,
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,
            read_config_from_model=0,
        )
    except Exception as error:
        raise EngineError(
            "the engine cannot load the model",
            where="onnxruntime",
            got=_plain(error),
            fix="export it again for this version of onnxruntime",
            expected="a model that this version of onnxruntime knows",
        ) from error


def _describe(arguments: Sequence[Any], what: str) -> Described:
    try:
        return dict(_described(one, what) for one in arguments)
    except UnicodeDecodeError as error:  # onnxruntime lets any bytes through as a name
        raise EngineError(
            f"a model's {what} has a name that is no text",
            where="model.onnx",
            expected="UTF-8",
            got="other bytes",
            fix="export it again",
        ) from error


def _described(one: Any, what: str) -> tuple[str, tuple[str, tuple[int | None, ...]]]:
    if one.type not in _DATATYPES:
        raise EngineError(
            f"a model's {what} must be a tensor of numbers",
            where=one.name,
            got=one.type,
            expected="a tensor of numbers",
            fix="export it with tensors of numbers only",
        )
    shape = tuple(dim if isinstance(dim, int) else None for dim in one.shape)
    return one.name, (_DATATYPES[one.type], shape)


def _plain(error: Exception) -> str:
    """The runtime's text without its own error numbers."""
    return str(error).rpartition(" : ")[2] or type(error).__name__
