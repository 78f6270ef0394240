"""A process that gives way to all others: for the trainer, called by itself when it begins.

- Niceness 19, everywhere.
- Linux: the scheduling policy SCHED_IDLE, which runs what nobody else wants to run (sched(7)); and the idle class of input and output (ioprio_set(2)), which
  the kernel keeps for disks whose scheduler knows classes (bfq), and ignores for others.
- Nothing of it needs rights, and nothing raises an error where a system has it not: `Priority` says what took.
- Only a later thread inherits from this one, so it comes before any other is started. A process that runs so may stand still for long
  while it holds a lock: it must hold none that an answer waits for.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

NICEST: Final = 19
_WHO_PROCESS: Final = 1
_IDLE_CLASS: Final = 3 << 13
# no library of the system wraps this call; numbers of asm/unistd.h for 64 bits, and for 32 on arm
_IOPRIO_SET: Final = {
    "x86_64": 251,
    "aarch64": 30,
    "riscv64": 30,
    "loongarch64": 30,
    "armv7l": 314,
    "armv6l": 314,
    "ppc64le": 273,
    "s390x": 282,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Priority:
    """What took.

    Attributes:
        niceness: of this process now.
        idle_processor: whether it runs only where no other wants to.
        idle_disk: whether its reads and writes do.
    """

    niceness: int
    idle_processor: bool
    idle_disk: bool


def low_priority() -> Priority:
    """Makes the calling process give way; it does not come back from that."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICEST)
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
    return Priority(niceness=niceness, idle_processor=_idle_processor(), idle_disk=_idle_disk())


def _idle_processor() -> bool:
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):  # not on this system, or forbidden
        return False
    return True


def _idle_disk() -> bool:
    number = _IOPRIO_SET.get(platform.machine())
    if number is None or sys.platform != "linux" or _is_of_other_width():
        return False
    try:
        syscall = ctypes.CDLL(None, use_errno=True).syscall
    except (AttributeError, OSError):
        return False
    return int(syscall(ctypes.c_long(number), _WHO_PROCESS, 0, _IDLE_CLASS)) == 0


def _is_of_other_width() -> bool:
    """Whether this interpreter has 32 bits on a kernel of 64: it calls by other numbers."""
    return (sys.maxsize > 2**32) != (not platform.machine().startswith("armv"))
