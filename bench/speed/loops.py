"""Loops as one writes them by hand: the ordinary one, the same channels-last, and a floor without any teacher.

They take their batches by indexing tensors in memory. A `DataLoader` would be slower; so the baselines are at their best.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from speed.pair import LEARNING_RATE, MOMENTUM, SOFT_WEIGHT, TAU
from speed.rounds import Moment, Outcome

if TYPE_CHECKING:
    from torch import Tensor

    from speed.pair import Pair


def soft_and_hard(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The distillation loss as tutorials write it."""
    soft = functional.kl_div(
        functional.log_softmax(student / TAU, dim=1),
        functional.softmax(teacher / TAU, dim=1),
        reduction="batchmean",
    )
    hard = functional.cross_entropy(student, labels)
    return (1 - SOFT_WEIGHT) * hard + SOFT_WEIGHT * TAU**2 * soft


def plain(pair: Pair, epochs: int) -> Outcome:
    """The ordinary loop: float32, NCHW, the teacher asked in each step."""
    teacher, student = pair.teacher(), pair.student()
    optimiser = torch.optim.SGD(student.parameters(), LEARNING_RATE, momentum=MOMENTUM)
    laps = []
    for epoch in range(epochs):
        start = Moment.now()
        for chosen in pair.order(epoch):
            x, y = pair.inputs[chosen], pair.labels[chosen]
            with torch.no_grad():
                wanted = teacher(x)
            loss = soft_and_hard(student(x), wanted, y)
            _check(loss)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        laps.append(Moment.now() - start)
    return Outcome(laps, student)


def plain_channels_last(pair: Pair, epochs: int) -> Outcome:
    """The same with both networks and each batch channels-last, as PyTorch's documentation advises."""
    teacher = pair.teacher().to(memory_format=torch.channels_last)
    student = pair.student().to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(student.parameters(), LEARNING_RATE, momentum=MOMENTUM)
    laps = []
    for epoch in range(epochs):
        start = Moment.now()
        for chosen in pair.order(epoch):
            x, y = pair.inputs[chosen].to(memory_format=torch.channels_last), pair.labels[chosen]
            with torch.no_grad():
                wanted = teacher(x)
            loss = soft_and_hard(student(x), wanted, y)
            _check(loss)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        laps.append(Moment.now() - start)
    return Outcome(laps, student)


def floor(pair: Pair, epochs: int) -> Outcome:
    """No teacher: channels-last, the fused optimiser, and nothing that is not needed."""
    student = pair.student().to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(student.parameters(), LEARNING_RATE, momentum=MOMENTUM, fused=True)
    inputs, labels = pair.inputs, pair.labels
    laps = []
    for epoch in range(epochs):
        start = Moment.now()
        for chosen in pair.order(epoch):
            loss = functional.cross_entropy(student(inputs[chosen]), labels[chosen])
            _check(loss)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        laps.append(Moment.now() - start)
    return Outcome(laps, student)


def _check(loss: Tensor) -> None:
    """As edgestill does in every step."""
    if not torch.isfinite(loss):
        raise RuntimeError("the loss is not finite")
