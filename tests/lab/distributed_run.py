"""A whole distillation as a program, for tests that start it in several processes: `python distributed_run.py N OUT`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lab_worlds import HELDOUT, TRAIN, motion_net

from edgestill.lab.data.augment import MotionJitter
from edgestill.lab.distil import distill
from edgestill.lab.recipe import Recipe
from edgestill.lab.training.runtime import Runtime


class Steady(torch.nn.Module):
    """A student without BatchNorm, whose statistics would be each process's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first = torch.nn.Linear(16 * 6, 9)
        self.head = torch.nn.Linear(9, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.head(torch.relu(self.first(x.flatten(1))))
        return logits


def main() -> None:
    """Distils and writes the weights of each process."""
    devices, out = int(sys.argv[1]), Path(sys.argv[2])
    told: list[tuple[int, int, float]] = []
    run = distill(
        motion_net(6, 6, 8),
        TRAIN,
        validation=HELDOUT,
        student=Steady(),
        recipe=Recipe(epochs=2, batch=32, lr=1e-2, soft_weight=0.5, views=2),
        augment=MotionJitter(),
        inherit=False,
        cache=out / f"cache-{devices}",
        runtime=Runtime(
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            checkpoint=out / f"state-{devices}",
            log=out / f"log-{devices}.csv",
        ),
        progress=lambda *one: told.append(one),
    )
    rank = torch.distributed.get_rank() if devices > 1 else 0
    torch.save(
        {"weights": run.student.state_dict(), "told": told, "rank": rank},
        out / f"student-{devices}-{rank}.pt",
    )


if __name__ == "__main__":
    main()
