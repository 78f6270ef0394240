"""What is said to make a training step faster, tried on this machine: bfloat16 autocast and `torch.compile`."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from speed.pair import LEARNING_RATE, MOMENTUM
from speed.rounds import Moment, summary

if TYPE_CHECKING:
    from collections.abc import Callable

    from speed.pair import Pair

STEPS = 3
ROUNDS = 4


class _Stepper:
    """The floor's step: a student without a teacher, channels-last, the fused optimiser."""

    def __init__(self, pair: Pair, *, bf16: bool = False, compiled: bool = False) -> None:
        self.pair, self.bf16 = pair, bf16
        module = pair.student().to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.SGD(module.parameters(), LEARNING_RATE, momentum=MOMENTUM, fused=True)
        self.student: Callable[[torch.Tensor], torch.Tensor] = torch.compile(module) if compiled else module
        self.batches = cycle(pair.order(0))

    def run(self, steps: int) -> Moment:
        start = Moment.now()
        for _ in range(steps):
            chosen = next(self.batches)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                logits = self.student(self.pair.inputs[chosen])
            loss = functional.cross_entropy(logits.float(), self.pair.labels[chosen])
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
        return Moment.now() - start


def tried(pair: Pair) -> dict[str, object]:
    """Times of a student's step over the ordinary float32 one; a first step that must compile is told apart."""
    ordinary, found = _Stepper(pair), {}
    ordinary.run(STEPS)
    for name, other in (
        ("bf16_autocast", _Stepper(pair, bf16=True)),
        ("compile", _Stepper(pair, compiled=True)),
    ):
        try:
            first = other.run(1)
        except Exception as error:  # noqa: BLE001  # without a C++ compiler there are many ways to fail, and none is ours
            found[name] = {"failed": str(error).splitlines()[0]}
            continue
        other.run(STEPS)
        laps = [(ordinary.run(STEPS), other.run(STEPS)) for _ in range(ROUNDS)]
        found[name] = {
            "over_float32": summary([theirs.cpu / ours.cpu for ours, theirs in laps]),
            "first_step_s": round(first.wall, 2),
        }
    return found
