"""A process that gives way: what the kernel says of it, not what we believe."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

PROGRAM = """
import os, threading
from edgestill.device.priority import low_priority
first, again = low_priority(), low_priority()
assert first == again
print(first.niceness, first.idle_processor, first.idle_disk)
print(os.getpriority(os.PRIO_PROCESS, 0))
found = []
later = threading.Thread(target=lambda: found.append(os.sched_getscheduler(0)))
later.start()
later.join()
print(os.sched_getscheduler(0) == os.SCHED_IDLE, found == [os.SCHED_IDLE])
"""


def ran(program: str) -> list[str]:
    """What a process of its own says: what it does cannot be undone."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], check=True, capture_output=True, text=True
    )
    return done.stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="SCHED_IDLE is Linux's")
def test_the_process_and_its_later_threads_run_only_where_nobody_else_wants_to() -> None:
    """Niceness 19 and SCHED_IDLE, as the kernel tells them; twice is once."""
    told, niceness, idle = ran(PROGRAM)
    assert told.startswith("19 True ")
    assert niceness == "19"
    assert idle == "True True"


@pytest.mark.skipif(shutil.which("ionice") is None, reason="needs ionice to ask the kernel")
def test_its_reads_and_writes_wait_for_those_of_others() -> None:
    """`ionice` says idle, where we say so."""
    program = (
        "import os, subprocess\nfrom edgestill.device.priority import low_priority\n"
        "print(low_priority().idle_disk)\n"
        "print(subprocess.run(['ionice', '-p', str(os.getpid())], check=True, capture_output=True, text=True).stdout)"
    )
    took, told = ran(program)[:2]
    assert (took == "True") == (told.strip() == "idle")
    assert took == "True" or os.uname().machine != "x86_64"


def test_a_system_that_has_none_of_it_is_no_error() -> None:
    """Calls that are missing or refused: it says what took, and goes on."""
    program = (
        "import os, platform\n"
        "def refuse(*_):\n    raise PermissionError\n"
        "os.setpriority = refuse\n"
        "del os.sched_setscheduler\n"
        "platform.machine = lambda: 'unheard-of'\n"
        "from edgestill.device.priority import low_priority\n"
        "print(low_priority())"
    )
    assert ran(program) == ["Priority(niceness=0, idle_processor=False, idle_disk=False)"] or os.nice(0) != 0
