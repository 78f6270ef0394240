"""The process that times models of a family, as a program: one model and one round whenever it is told to.

- It makes itself small first: the lowest priority, a bound on its memory, its processor time and the files that it may write, and the
  first to go where the machine has no memory left. Then it loads an engine.
- One model is in memory at a time. It is loaded, warmed and timed anew in each round, so that the most that it takes is what the
  largest of them takes.
- One that the engine refuses is named. One that takes the process down is known to whoever asked for it.
- When the control socket closes, however that came, it ends.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgestill.core.clock import SystemClock
from edgestill.core.errors import ConflictError, EdgestillError, ModelError
from edgestill.core.extras import require
from edgestill.core.family import INPUTS, Family
from edgestill.core.hardware import HardwareClass
from edgestill.core.jsonio import Fields
from edgestill.device.frames import Frame, receive, send

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject

LOWEST: Final = 19
RUNS: Final = 40
"""Answers in a round, after those that warm up."""

_FIRST_TO_GO: Final = "1000"
_MAX_FILE: Final = 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the child; the exit status is 0 unless the archive cannot be timed here."""
    options = _parser().parse_args(arguments)
    control = socket.socket(fileno=options.control)
    with control:
        try:
            humble(options.memory, options.seconds)
            _work(options.archive, control)
        except EdgestillError as error:
            with suppress(EdgestillError):
                send(control, Frame({"op": "failed", "reason": str(error)}))
            return 1
    return 0


def humble(memory: int, seconds: int) -> None:
    """Lets this process harm nobody.

    Args:
        memory: bytes of data that it may have.
        seconds: of processor time.
    """
    os.nice(LOWEST)
    with suppress(OSError):  # not every system has it, or lets everybody write it
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    for what, most in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, _MAX_FILE),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        within = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (within, within))


def _work(archive: Path, control: socket.socket) -> None:
    for module in ("numpy", "onnxruntime"):
        require(module, extra="device", purpose="to time models")
    from edgestill.infer.arrayfile import npy_of
    from edgestill.infer.engines import engine_name

    family = Family.open(archive)
    wanted = family.head.hardware_class
    if (here := HardwareClass.here(engine_name(wanted)).name) != wanted:
        raise ConflictError(
            "models for another hardware class",
            where=archive,
            expected=wanted,
            got=here,
            fix="assign it to devices of its class",
        )
    shown = npy_of(family.read(INPUTS), what="the family's inputs", where=INPUTS)
    rows = [shown[at : at + 1] for at in range(len(shown))]
    send(control, Frame({"op": "ready"}))
    while (frame := receive(control)) is not None:
        at = Fields(frame.header, "timing").integer("at", most=len(family.head.models) - 1)
        send(control, Frame(_timed(family, at, rows)))


def _timed(family: Family, at: int, rows: Sequence[NDArray[np.generic]]) -> JsonObject:
    """A round of one model, or why there is none."""
    from edgestill.infer.engines import engine_of
    from edgestill.infer.timing import answering, time_round

    try:
        engine = engine_of(family.read(f"{at}.onnx"), family.head.hardware_class)
        if len(engine.inputs) != 1:
            raise ModelError(
                "a model that cannot be timed",
                where=f"{at}.onnx",
                expected="one input",
                got=len(engine.inputs),
                fix="make the archive again",
            )
        p50, p95 = time_round(answering(engine, rows), clock=SystemClock(), runs=RUNS)
    except (EdgestillError, MemoryError) as error:
        return {"op": "left-out", "at": at, "reason": str(error) or "it takes too much memory"}
    return {"op": "timed", "at": at, "p50": p50, "p95": p95}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edgestill.device.timing_child", description="started by the agent")
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--seconds", type=int, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
