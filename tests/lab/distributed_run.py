"""A whole distillation as a program, for tests that start it in several processes: `python distributed_run.py N OUT`.

With `uneven` after these, most samples have no label, and a hint is followed. With `STAGE RANK`, that process fails: while it asks the teacher (`fill`) or in the middle of the training
(`step`). It lives on until the other has said why it ends, and keeps the error, as a notebook would.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from lab_worlds import HELDOUT, TRAIN, motion_net

from edgestill.core.errors import DataError, EdgestillError
from edgestill.lab.data.augment import MotionJitter
from edgestill.lab.data.source import ArraySource
from edgestill.lab.distil import distill
from edgestill.lab.loss.losses import IGNORE
from edgestill.lab.recipe import Recipe
from edgestill.lab.training.runtime import Runtime


class Steady(torch.nn.Module):
    """A student without BatchNorm, whose statistics would be each process's own."""

    def __init__(self, hidden: int = 9) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first = torch.nn.Linear(16 * 6, hidden)
        self.head = torch.nn.Linear(hidden, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.head(torch.relu(self.first(x.flatten(1))))
        return logits


class Fails(torch.nn.Module):
    """A network that one process loses in the middle of its work."""

    def __init__(self, network: torch.nn.Module, *, fails: bool, training: bool = False) -> None:
        super().__init__()
        self.network, self.fails, self.while_training, self.steps = network, fails, training, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        self.steps += self.training
        if self.fails and (self.steps == 3 if self.while_training else len(x) > 50):
            raise DataError("a sensor is gone")
        logits: torch.Tensor = self.network(x)
        return logits


def main() -> None:
    """Distils, and writes the weights of each process or why it ended."""
    faulthandler.dump_traceback_later(200, exit=True)  # where it hangs, rather than that it does
    devices, out = int(sys.argv[1]), Path(sys.argv[2])
    if len(sys.argv) == 3:
        distil(devices, out, motion_net(6, 6, 8), Steady())
        return
    if sys.argv[3] == "uneven":
        train = ArraySource.of(TRAIN)
        labels = torch.where(torch.arange(len(TRAIN)) % 7 < 2, train.targets, IGNORE)  # type: ignore[arg-type]  # it has targets
        uneven = ArraySource(train.inputs, labels, "classes", 3, MotionJitter())
        more = {"hint": "first=first", "hint_weight": 0.5}
        distil(devices, out, Steady(13), Steady(), uneven, **more)
        return
    stage, failing = sys.argv[3], int(sys.argv[4])
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    teacher = Fails(motion_net(6, 6, 8), fails=rank == failing and stage == "fill")
    student = Fails(Steady(), fails=rank == failing and stage == "step", training=True)
    try:
        distil(devices, out, teacher, student)
    except EdgestillError as error:
        kept, said = error, str(error)  # with all its frames, as a notebook does
    (out / f"{rank}.part").write_text(said)
    (out / f"{rank}.part").rename(out / f"{rank}.txt")
    until = time.monotonic() + 60
    while rank == failing and not (out / f"{1 - rank}.txt").exists() and time.monotonic() < until:
        time.sleep(0.05)  # real processes: there is no clock to fake
    if rank == failing and not (out / f"{1 - rank}.txt").exists():
        (out / f"{rank}.late").write_text(f"the other one still waits, after {kept!r}")


def distil(
    devices: int,
    out: Path,
    teacher: torch.nn.Module,
    student: torch.nn.Module,
    train: ArraySource | None = None,
    **more: object,
) -> None:
    """Distils and writes the weights of each process."""
    told: list[tuple[int, int, float | None]] = []
    recipe = Recipe(epochs=2, batch=32, lr=1e-2, soft_weight=0.5, views=2)
    run = distill(
        teacher,
        train or ArraySource.of(TRAIN, MotionJitter()),
        validation=ArraySource.of(HELDOUT),
        student=student,
        recipe=replace(recipe, **more),  # type: ignore[arg-type]  # mypy cannot see which value is whose
        inherit=False,
        cache=out / f"cache-{devices}",
        runtime=Runtime(
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            checkpoint=out / f"state-{devices}",
            log=out / f"log-{devices}.csv",
        ),
        progress=lambda now: told.append((now.done, now.of, now.loss)) if now.phase == "training" else None,
    )
    rank = torch.distributed.get_rank() if devices > 1 else 0
    torch.save(
        {"weights": run.student.state_dict(), "told": told, "rank": rank},
        out / f"student-{devices}-{rank}.pt",
    )


if __name__ == "__main__":
    main()
