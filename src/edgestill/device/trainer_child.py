"""The process that trains, as a program: one spell on one bundle.

- It gives way to all others first (`device.priority`), before anything starts a thread.
- It ends when its time is over, or when the control socket closes, however that came; the state is written down then. Between steps it rests
  as long as its share of a core asks for.
- At its end it says what it took, and why it failed if it did. What it learned lies in the home (`device.tuning`).
"""

from __future__ import annotations

import argparse
import select
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Final

from edgestill.core import logs
from edgestill.core.clock import SystemClock
from edgestill.core.errors import EdgestillError, SettingError
from edgestill.core.extras import require
from edgestill.device.effort import Effort, rest_after
from edgestill.device.frames import Frame, send
from edgestill.device.home import Home
from edgestill.device.priority import low_priority

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgestill.core.jsonio import JsonObject

_MOST_TEXT: Final = 1900


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the child; the exit status is 0 unless training failed."""
    options = _parser().parse_args(arguments)
    logs.begin("WARNING")
    low_priority()
    control = socket.socket(fileno=options.control)
    said: JsonObject = {"op": "trained"}
    with control:
        try:
            _work(options, control)
        except (EdgestillError, OSError, MemoryError) as error:
            said["failure"] = (str(error) or type(error).__name__)[:_MOST_TEXT]
        with suppress(EdgestillError):  # whoever would hear it is gone
            send(control, Frame(said | {"cpu_seconds": time.process_time()}))
    return int("failure" in said)


class Allowance:
    """Whether training may go on: looked at between two steps.

    Args:
        control: readable once it closes.
        seconds: of this spell.
        effort: says how long to rest.
    """

    def __init__(self, control: socket.socket, seconds: float, effort: Effort) -> None:
        self._control = control
        self._ends = time.monotonic() + seconds
        self._effort = effort
        self._worked = time.process_time()

    def __call__(self) -> bool:
        """Rests as long as it must, and tells whether there is time left."""
        now = time.process_time()
        rest, self._worked = rest_after(self._effort, now - self._worked), now
        left = self._ends - time.monotonic()
        if left <= 0:
            return False
        return not select.select([self._control], [], [], min(rest, left))[0]


def _work(options: argparse.Namespace, control: socket.socket) -> None:
    for module in ("numpy", "onnxruntime"):
        require(module, extra="device", purpose="to train a model")
    from edgestill.core.bundle import Bundle
    from edgestill.core.manifest import MODEL, POLICY
    from edgestill.device.keeping import plan_of
    from edgestill.device.replay_samples import Samples
    from edgestill.device.samplekey import read_key
    from edgestill.device.tuning import Tuning
    from edgestill.infer.engines import engine_of
    from edgestill.infer.policy import Policy

    home, bundle = Home.open(options.home), Bundle.open(options.archive)
    policy = Policy.from_bytes(bundle.read(POLICY))
    ((_, takes),) = engine_of(bundle.read(MODEL), bundle.manifest.hardware_class).inputs.items()
    plan = plan_of(takes, len(policy.labels), home.settings.keeps)
    if plan is None:
        raise SettingError(
            "inputs that cannot be kept cannot be trained on",
            where=options.archive,
            expected="inputs of one fixed size",
            got=takes,
            fix="train this model in the lab",
        )
    if not home.samples.exists():  # nothing was kept yet
        return
    key = None if home.settings.seal is None else read_key(home.settings.seal)
    samples, clock = Samples.open(home.samples, plan, key=key), SystemClock()
    try:
        tuning = Tuning(bundle, home.learned, samples, clock=clock, random=SystemRandom())
        tuning.work(Allowance(control, options.seconds, home.settings.effort or Effort()))
    finally:
        samples.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgestill.device.trainer_child", description="started by the agent"
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--control", type=int, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
