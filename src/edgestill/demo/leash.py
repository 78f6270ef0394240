"""Runs a module as `python -m` would, and ends it when whoever started it is gone.

    python -m edgestill.demo.leash LINE MODULE [ARGUMENT]...

- LINE is a handle to read from. Its other end is held by the starter, who never writes: it closes when the starter
  ends, however that came. Nobody can catch SIGKILL, so nothing that the starter does at its end would be enough.
- Then the module gets SIGTERM, some seconds of grace, and SIGKILL, together with what it has started in its session.
- Nothing is imported here that the module would not have anyway: the agent of a device stays as small as it is.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import sys
import threading
import time
from typing import Final

GRACE: Final = 5.0


def main() -> None:
    """Runs the module that the command line names; ends as it does."""
    line, module = int(sys.argv[1]), sys.argv[2]
    threading.Thread(target=end_with, args=(line,), name="leash", daemon=True).start()
    del sys.argv[:2]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def end_with(line: int) -> None:
    """Waits until the other end of this handle is closed, and ends this process then."""
    while os.read(line, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    with contextlib.suppress(ProcessLookupError):  # it leads no session
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
