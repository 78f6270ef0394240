"""`edgestill distill` as a person or a script meets it: exit status, one line an error, JSON, Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgestill.cli.watching import _lines
from edgestill.lab.progress import Progress
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

NETS = """
import time
import torch
from edgestill.lab.networks import MotionNet

torch.set_num_threads(1)

def net(*, width, seed, backwards=False, pause=0.0):
    torch.manual_seed(seed)
    made = MotionNet(width, width, width, classes=3)
    if backwards:  # sure of itself, and of one class whatever it sees
        torch.nn.init.zeros_(made.head.weight)
        made.head.bias.data = torch.tensor([0.0, 0.0, 40.0])
    if pause:
        made.register_forward_pre_hook(lambda *_: time.sleep(pause))
    return made
"""

JOB = """
[teacher]
model = "nets.py:net"
arguments = { width = 8, seed = 1 }

[student]
model = "nets.py:net"
arguments = { width = 4, seed = 2 }

[data]
file = "data.npz"
labels = ["rest", "lift", "turn"]

[recipe]
epochs = 2
batch = 32
lr = 0.01
soft_weight = 0.5
"""


def edgestill(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The program, run to its end."""
    command = [sys.executable, "-m", "edgestill.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=folder)


def write_job(folder: Path, text: str = JOB) -> Path:
    """A job with its data: three classes, each a level on two of six channels."""
    labels = np.arange(240) % 3
    noise = np.random.default_rng(0).normal(size=(240, 16, 6))
    inputs = (np.repeat(np.eye(3), 2, axis=1)[labels][:, None] * 2 + 0.5 * noise).astype(np.float32)
    np.savez(folder / "data.npz", x_train=inputs, y_train=labels)
    (folder / "nets.py").write_text(NETS)
    (folder / "job.toml").write_text(text)
    return folder / "job.toml"


def assert_refused(done: subprocess.CompletedProcess[str], code: str, *parts: str) -> None:
    """Exit status 1, and the last line names the code."""
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"[{code}] ")
    for part in parts:
        assert part in last
    assert "Traceback" not in done.stderr


def test_a_job_is_told_in_lines_that_a_file_can_keep(tmp_path: Path) -> None:
    """Without a terminal there is no bar: phases are lines on standard error; figures, bundle and folder on standard output."""
    write_job(tmp_path)
    done = edgestill("distill", "job.toml", folder=tmp_path)
    phases, lines = done.stderr.splitlines(), done.stdout.splitlines()
    assert done.returncode == 0
    assert next(one for one in phases if not one.startswith("[")) == "asked the teacher about 192 of 192"
    assert any(one.startswith("trained: epoch 2 of 2, loss 0.") for one in phases)
    assert lines[0].startswith("teacher: ")
    assert "parameters, score 0." in lines[1]
    assert lines[2].startswith("bundle: student.esb, ")
    assert lines[3].endswith("everything is in run-job")
    assert len(lines) == 4
    assert "\x1b" not in done.stdout + done.stderr
    assert (tmp_path / "run-job" / "student.safetensors").is_file()


def test_what_is_left_is_told_from_what_has_passed(capsys: pytest.CaptureFixture[str]) -> None:
    """A line at most every ten seconds, with the time that the rest will take; the last one has none."""
    clock = FakeClock()
    with _lines(clock) as show:
        for done in range(1, 31):
            show(Progress(phase="training", done=done, of=30, loss=0.5))
            clock.advance(1.0)
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "trained: epoch 1 of 30, loss 0.5000",
        "trained: epoch 11 of 30, loss 0.5000, 17.3 s left",
        "trained: epoch 21 of 30, loss 0.5000, 8.57 s left",
        "trained: epoch 30 of 30, loss 0.5000",
    ]


def test_for_machines_the_report_is_all_of_the_output_and_hurting_a_line_of_its_own(tmp_path: Path) -> None:
    """Progress and the warning go to standard error, the warning with its code; the report says the same."""
    text = JOB.replace("seed = 1 }", "seed = 1, backwards = true }").replace(
        "soft_weight = 0.5", "soft_weight = 1.0"
    )
    text = text.replace("epochs = 2", "epochs = 6").replace("seed = 2 }", "seed = 2 }\ninherit = false")
    path = write_job(tmp_path, text + "[compare]\n")
    done = edgestill("distill", path, "--out", tmp_path / "out", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["comparison"]["verdict"] == "hurts"
    said = done.stderr.splitlines()
    assert f"[distilling-hurts] {report['comparison']['sentence']}" in said
    assert any(one.startswith("[nothing-learned] the teacher is right about ") for one in said)
    assert "compared with plain training: pair 3 of 3" in said


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [
        (JOB + "lrr = 1\n", "setting-invalid", "did you mean 'lr'"),
        (
            JOB.replace("soft_weight = 0.5\n", ""),
            "setting-invalid",
            "does not say how much the teacher counts",
        ),
        (JOB + "[bundle]\nhardware_class = 'arm'\n", "message-invalid", "not a hardware class"),
        (JOB.replace("data.npz", "none.npz"), "path-unusable", "none.npz"),
        (JOB.replace("nets.py:net", "nets.py:nett"), "setting-invalid", "did you mean 'net'"),
        (JOB.replace("width = 4", "width = 4, classes = 2"), "setting-invalid", "unexpected keyword"),
        (JOB.replace("width = 4", "width = 9"), "model-unsupported", "wider"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: str, code: str, part: str) -> None:
    """A key, a file, a name, an argument, a student that cannot inherit."""
    assert_refused(edgestill("distill", write_job(tmp_path, text), "--out", tmp_path / "out"), code, part)


def test_a_job_that_is_not_there_is_one_line_and_one_object(tmp_path: Path) -> None:
    """With `--json` the error is the last line on standard output."""
    done = edgestill("distill", tmp_path / "none.toml", "--json")
    assert_refused(done, "path-unusable", "none.toml")
    assert json.loads(done.stdout.splitlines()[-1])["error"]["code"] == "path-unusable"


def test_a_budget_on_the_command_line_goes_before_the_files(tmp_path: Path) -> None:
    """One that cannot be read is found at once; one that is not kept leaves the student."""
    path = write_job(tmp_path)
    assert_refused(edgestill("distill", path, "--budget", "size=12"), "unit-invalid", "needs a unit")
    done = edgestill("distill", path, "--out", tmp_path / "out", "--budget", "size=1kB")
    assert_refused(done, "setting-invalid", "the bundle is larger than its budget")
    assert (tmp_path / "out" / "student.safetensors").is_file()


def test_wrong_usage_ends_with_2() -> None:
    """No job, or an option that is none."""
    assert edgestill("distill").returncode == 2
    assert edgestill("distill", "job.toml", "--sideways").returncode == 2


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_half_written_and_a_later_call_goes_on(tmp_path: Path) -> None:
    """The first ends with 130 and no traceback; the second does not begin with the first epoch."""
    slow = JOB.replace("seed = 2 }", "seed = 2, pause = 0.05 }").replace("epochs = 2", "epochs = 30")
    path, out = write_job(tmp_path, slow), tmp_path / "out"
    command = [sys.executable, "-m", "edgestill.cli", "distill", str(path), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        log, until = out / "log.csv", time.monotonic() + 120
        while not (log.exists() and len(log.read_text().splitlines()) > 3) and time.monotonic() < until:
            assert running.poll() is None, running.communicate()
            time.sleep(0.02)  # a real process: there is no clock to fake
        running.send_signal(signal.SIGINT)
        said = running.communicate(timeout=60)[1].decode()
    assert running.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert sorted(one.name for one in out.iterdir()) == ["cache", "checkpoint", "log.csv"]
    assert [one.name for one in (out / "checkpoint").iterdir()] == ["checkpoint.pt"]
    path.write_text(slow.replace(", pause = 0.05", ""))
    done = edgestill("distill", path, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "epoch 30 of 30" in done.stderr
    assert "epoch 1 of 30" not in done.stderr
    epochs = [line.split(",")[0] for line in log.read_text().splitlines()[1:]]
    assert epochs[-1] == "30"
    assert len(epochs) <= 31
