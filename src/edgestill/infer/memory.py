"""How much memory a model takes: what loading it and answering add to a process that has done nothing yet.

The runtime itself takes some tens of megabytes, whatever the model; what a model adds is told by a process of its own, which
runs a model that does nothing, notes what it has, loads the model, answers, and says by how much its peak has grown. Run as
a program it is that process: the model on standard input, the size on standard output.

Linux keeps the peak of a process (`VmHWM`, proc(5)) and forgets it when told to (`clear_refs`); elsewhere there is no
figure.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgestill.core.errors import EngineError
from edgestill.infer.timing import spread

if TYPE_CHECKING:
    from edgestill.core.footprint import Spread
    from edgestill.core.protocols import Engine

IDLE: Final = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a0808011204"
    "0a02080142040a00100d"
)
"""An ONNX model, `y = x`, that costs what any first model does."""
_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")
_PEAK: Final = "5"
_ANSWERS: Final = 20
_REPEATS: Final = 3
_SECONDS: Final = 120


def is_measurable() -> bool:
    """Whether this system says what a process has had at most."""
    return _CLEAR.exists() and _STATUS.exists()


def memory_of(
    model: bytes, *, threads: int = 1, repeats: int = _REPEATS, engine: str = "onnxruntime"
) -> Spread:
    """Bytes that the model adds to a process's peak: the median of several processes, with their quartiles.

    Args:
        model: an ONNX file of one input, whose free axes are taken as 1.
        threads: as the engine is made with.
        repeats: processes, at least 2.
        engine: that runs it.

    Raises:
        EngineError: the model could not be run there.
    """
    return spread([float(_measured(model, threads, engine)) for _ in range(repeats)])


def _measured(model: bytes, threads: int, engine: str) -> int:
    command = [sys.executable, "-m", "edgestill.infer.memory", str(threads), engine]
    found = subprocess.run(command, input=model, capture_output=True, check=False, timeout=_SECONDS)  # noqa: S603  # ourselves
    if found.returncode != 0:
        raise EngineError(
            "the model could not be run in a process of its own",
            where="model.onnx",
            expected="exit status 0",
            got=found.stderr.decode(errors="replace").strip().rpartition("\n")[2] or found.returncode,
            fix="run it in this process to see why",
        )
    return int(found.stdout)


def _main() -> None:
    from edgestill.infer.engines import engine_of

    model = sys.stdin.buffer.read()
    _answer(engine_of(IDLE, sys.argv[2]))
    _CLEAR.write_text(_PEAK)
    before = _bytes("VmRSS")
    engine = engine_of(model, sys.argv[2], threads=int(sys.argv[1]))
    for _ in range(_ANSWERS):
        _answer(engine)
    sys.stdout.write(f"{max(0, _bytes('VmHWM') - before)}\n")


def _answer(engine: Engine) -> None:
    import numpy as np

    from edgestill.core.oip import NUMPY_NAMES

    engine.run(
        {
            name: np.zeros([1 if dim is None else dim for dim in shape], NUMPY_NAMES[kind])
            for name, (kind, shape) in engine.inputs.items()
        }
    )


def _bytes(name: str) -> int:
    """Of a line such as `VmRSS:  1234 kB`."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    msg = f"{_STATUS} has no {name}"
    raise OSError(msg)


if __name__ == "__main__":
    _main()
