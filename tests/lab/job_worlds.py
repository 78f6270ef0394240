"""A folder with a small job in it: a trained teacher's weights, a file of callables, data, and the TOML that names them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
from lab_worlds import HELDOUT, LABELS, TRAIN, motion_net, teacher

if TYPE_CHECKING:
    from pathlib import Path

NETS = '''
import time
import numpy as np
import torch
from torch import nn
from edgestill.lab.networks import MotionNet
from edgestill.lab.data.source import ArraySource

torch.set_num_threads(1)

def teacher():
    return MotionNet(8, 8, 12, classes=3)

def student(*, pause=0.0):
    torch.manual_seed(5)
    made = MotionNet(4, 4, 6, classes=3)
    if pause:
        made.register_forward_pre_hook(lambda *_: time.sleep(pause))
    return made

def unseeded():
    """Whose first weights are whatever the generators draw."""
    made = MotionNet(4, 4, 6, classes=3)
    made.head.bias.data += float(np.random.rand())
    return made

def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 3))

def large():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2))

def small():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))

def labels(n=40):
    """Two independent labels."""
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(3))
    source = ArraySource(x, (x[:, :2] > 0).float(), "multi-label", 2)
    return source, source

def alone():
    return labels()[0]

def fails():
    raise ValueError("no data today")
'''

JOB = """
[teacher]
model = "nets.py:teacher"
weights = "teacher.safetensors"

[student]
model = "nets.py:student"

[data]
file = "data.npz"

[recipe]
epochs = 3
batch = 32
lr = 0.01
soft_weight = 0.7
"""

COMPARE = """
[compare]
samples = 60
epochs = 1
seeds = 2
"""


def data(**changes: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of `data.npz`; a change of None leaves one out."""
    arrays = {
        "x_train": TRAIN.inputs,
        "y_train": TRAIN.labels,
        "x_validation": HELDOUT.inputs,
        "y_validation": HELDOUT.labels,
        "labels": np.array(LABELS),
    } | changes
    return {name: one for name, one in arrays.items() if one is not None}


def write_job(folder: Path, text: str = JOB + COMPARE, **changes: Any) -> Path:
    """The folder's `job.toml`, with all that it names."""
    folder.mkdir(exist_ok=True)
    (folder / "nets.py").write_text(NETS)
    safetensors.torch.save_file(teacher().state_dict(), folder / "teacher.safetensors")
    np.savez(folder / "data.npz", **data(**changes))  # type: ignore[arg-type]  # numpy's stub takes names for its own flag
    (folder / "job.toml").write_text(text)
    return folder / "job.toml"


def loaded(out: Path) -> Any:
    """The student of a run."""
    network = motion_net(4, 4, 6)
    network.load_state_dict(safetensors.torch.load_file(out / "student.safetensors"))
    return network.eval()
