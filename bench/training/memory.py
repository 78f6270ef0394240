"""Memory of a process that does nothing but train the reference student: ours, which never loads torch, and one that does.

Both run in the project's own environment, where torch is a build for the CPU; the peers' may have brought another.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import torch

from edgestill.lab.gradient.step import Training, training_step
from edgestill.lab.networks import ImageNet24
from edgestill.lab.packing.export import export_onnx

PYTHON: Final = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "python"
STEPS: Final = 200
HEAD: Final = """
import json, sys
from pathlib import Path
def told(**more):
    # the high-water mark of this program alone: `getrusage` would count what its parent had when it was forked
    (peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"rss_mb": int(peak) * 1024 / 1e6, **more}))
import numpy as np
random = np.random.default_rng(0)
inputs = random.integers(0, 256, (16, 24, 24, 3)).astype(np.uint8)
targets = random.dirichlet(np.ones(10), 16).astype(np.float32)
"""
OURS: Final = """
from edgestill.core.digest import Digest
from edgestill.infer.engine import OnnxEngine
from edgestill.learn.stepfile import StepFile
from edgestill.learn.trainer import Trainer
folder, steps = Path(sys.argv[1]), int(sys.argv[2])
model = (folder / "train.onnx").read_bytes()
trainer = Trainer(OnnxEngine(model), StepFile.from_bytes((folder / "train.json").read_bytes()), step=Digest.of(model))
state = trainer.start(inputs)
for _ in range(steps):
    state, loss = trainer.step(state, inputs, targets, rate=0.01)
assert "torch" not in sys.modules
told(loss=loss)
"""
THEIRS: Final = """
import torch
from torch import nn
torch.set_num_threads(1)
model = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(2304, 32), nn.ReLU(), nn.Linear(32, 10),
)
optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
for _ in range(int(sys.argv[2])):
    optimiser.zero_grad()
    loss = nn.functional.cross_entropy(
        model((torch.from_numpy(inputs).float() / 255).permute(0, 3, 1, 2)), torch.from_numpy(targets)
    )
    loss.backward()
    optimiser.step()
told(loss=loss.item())
"""


def measured(*, quick: bool) -> dict[str, Any]:
    """Peak resident memory of either after 200 steps, in MB of 10^6 bytes."""
    if not PYTHON.exists():
        sys.exit("bench train-step: needs the project's environment for its processes: run `make venv`")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = ImageNet24(32, 64, 32).eval()
        step = training_step(export_onnx(model, torch.zeros(2, 24, 24, 3, dtype=torch.uint8)), Training())
        (folder / "train.onnx").write_bytes(step.model)
        (folder / "train.json").write_bytes(step.file.to_bytes())
        return {
            who: _peak(HEAD + script, folder, 5 if quick else STEPS) | {"train_onnx_bytes": len(step.model)}
            for who, script in (("ours", OURS), ("torch", THEIRS))
        }


def _peak(script: str, folder: Path, steps: int) -> dict[str, Any]:
    command = [str(PYTHON), "-c", script, str(folder), str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603  # our own script
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
