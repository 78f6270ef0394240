"""Running a model tells nobody: neither this package nor the engine asks for anything beyond this machine."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from infer_models import tiny_model

from edgestill.testing.outward import Outward

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCE = Path(__file__).resolve().parents[2] / "src"
OURS = """
import sys
import numpy as np
from pathlib import Path
from edgestill.infer.engine import OnnxEngine
OnnxEngine(Path(sys.argv[1]).read_bytes()).run({"input": np.zeros((1, 4), dtype=np.float32)})
print("ready", flush=True)
sys.stdin.read()
"""
BARE = "import sys, onnxruntime; print('ready', flush=True); sys.stdin.read()"


def started(outward: Outward, home: Path, program: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that runs the program and stays until its standard input ends."""
    home.mkdir()
    variables = outward.environment("ORT_DISABLE_TELEMETRY") | {"HOME": str(home), "PYTHONPATH": str(SOURCE)}
    variables.pop("XDG_CACHE_HOME", None)
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Lets them come to their end by themselves."""
    for process in processes:
        process.communicate()
        assert process.returncode == 0


def has_asked(outward: Outward, within_s: float) -> bool:
    """Whether it has asked for anything, in that time."""
    until = time.monotonic() + within_s
    while not outward.wanted and time.monotonic() < until:
        time.sleep(0.1)
    return bool(outward.wanted)


@pytest.mark.slow
def test_an_engine_reports_to_nobody_and_marks_no_machine(tmp_path: Path) -> None:
    """Where onnxruntime by itself calls its maker and leaves an identity of the machine in a cache, our engine does neither.

    The bare one says how long to wait: ours is watched for as long, and five seconds more.
    """
    (tmp_path / "model.onnx").write_bytes(tiny_model())
    with Outward() as loud, Outward() as quiet:
        ours = started(quiet, tmp_path / "ours", OURS, str(tmp_path / "model.onnx"))
        bare = started(loud, tmp_path / "bare", BARE)
        try:
            reports = has_asked(loud, 60.0)
            asked = has_asked(quiet, 5.0)
        finally:
            end([ours, bare])
    assert not asked, quiet.wanted
    assert not list((tmp_path / "ours").rglob("*"))
    if not reports:
        pytest.skip("this onnxruntime reports to nobody by itself: nothing to compare with")
    assert list((tmp_path / "bare").rglob("deviceid"))


def test_who_wants_to_report_may() -> None:
    """A variable that the user has set stays as it is; otherwise importing edgestill sets it."""
    show = "import os, edgestill; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, expected in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        done = subprocess.run(
            [sys.executable, "-c", show],
            env={"PYTHONPATH": str(SOURCE)} | given,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected
