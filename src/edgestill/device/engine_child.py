"""The process that runs models, as a program: probes one bundle and ends, or serves one until it is told to stop.

- It is started by the supervisor, which hands it a control socket and the socket that applications connect to. When
  the control socket closes, however that came, the child ends.
- Whatever keeps it from serving is said over that socket in one line; what it takes to run a model is looked for first,
  since the supervisor does without.
- What it does is in `device.engine_work`.
"""

from __future__ import annotations

import argparse
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgestill.core import logs
from edgestill.core.errors import EdgestillError
from edgestill.core.extras import require
from edgestill.device.frames import Frame, send
from edgestill.device.home import Home

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the child; the exit status is 0 unless the bundle does not serve."""
    options = _parser().parse_args(arguments)
    logs.begin("WARNING")
    control = socket.socket(fileno=options.control)
    with control:
        try:
            _work(options, control)
        except EdgestillError as error:
            with suppress(EdgestillError):  # the supervisor is gone, and with it whoever would hear why
                send(control, Frame({"op": "failed", "reason": str(error)}))
            return 1
    return 0


def _work(options: argparse.Namespace, control: socket.socket) -> None:
    for module in ("numpy", "onnxruntime"):
        require(module, extra="device", purpose="to run a model")
    from edgestill.device.engine_work import run_probe, serve

    if options.probe:
        run_probe(options.archive)
        send(control, Frame({"op": "probed"}))
    else:
        serve(Home.open(options.home), options.archive, control, socket.socket(fileno=options.listener))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edgestill.device.engine_child", description="started by the agent")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--control", type=int, required=True)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--listener", type=int)
    chosen.add_argument("--probe", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
