"""The same training by other libraries, each as its own documentation has it.

- torchdistill: a `DistillationBox` from a configuration, driven by the loop of its example scripts, metric logger included.
  The teacher is put into evaluation mode for it; the library does not.
- timm: `LogitDistillationTask` within the ordinary loop; the library has the task, its training script the loop.
- Keras: `Distiller.fit` on the torch backend, channels last as is its default. Its networks are its own layers, so its
  weights are not compared with the others'.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import Sampler, TensorDataset

from speed.pair import BATCH, LEARNING_RATE, MOMENTUM, SOFT_WEIGHT, TAU
from speed.rounds import Moment, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speed.pair import Pair


class _SameOrder(Sampler[int]):
    """The pair's order, epoch after epoch."""

    def __init__(self, data: TensorDataset, pair: Pair) -> None:
        self.data, self.pair, self.epoch = data, pair, 0

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[int]:
        yield from torch.cat(self.pair.order(self.epoch)).tolist()
        self.epoch += 1


def torchdistill(pair: Pair, epochs: int) -> Outcome:
    """A box and its loop."""
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    student, device = pair.student(), torch.device("cpu")
    data = {"train": TensorDataset(pair.inputs, pair.labels)}
    box = get_distillation_box(
        pair.teacher(), student, data, _torchdistill_settings(pair, epochs), device, None, False, 1
    )
    laps = []
    for epoch in range(epochs):
        start = Moment.now()
        box.pre_epoch_process(epoch=epoch)
        meters = MetricLogger(delimiter="  ")
        meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        meters.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
        for x, y, more in meters.log_every(box.train_data_loader, 100, f"Epoch: [{epoch}]"):
            begun = time.time()
            loss = box.forward_process(x.to(device), y.to(device), more)
            box.post_forward_process(loss=loss)
            meters.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
            meters.meters["img/s"].update(len(x) / (time.time() - begun))
        box.post_epoch_process()
        laps.append(Moment.now() - start)
    box.clean_modules()
    return Outcome(laps, student)


def _torchdistill_settings(pair: Pair, epochs: int) -> dict[str, Any]:
    logits = {"module_path": ".", "module_io": "output"}
    loss = {
        "key": "KDLoss",
        "kwargs": {f"{who}_{what}": value for who in ("student", "teacher") for what, value in logits.items()}
        | {"temperature": TAU, "alpha": 1 - SOFT_WEIGHT, "reduction": "batchmean"},
    }
    return {
        "num_epochs": epochs,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": _SameOrder, "kwargs": {"pair": pair}},
            "kwargs": {"batch_size": BATCH, "num_workers": 0},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": LEARNING_RATE, "momentum": MOMENTUM}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}},
        },
    }


def timm(pair: Pair, epochs: int) -> Outcome:
    """The distillation task within the ordinary loop."""
    from timm.task import LogitDistillationTask
    from timm.task.distillation import DistillationTeacher

    student = pair.student()
    task = LogitDistillationTask(
        student,
        DistillationTeacher(pair.teacher()),
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=1 - SOFT_WEIGHT,
        temperature=TAU,
        verbose=False,
    ).train()
    optimiser = torch.optim.SGD(student.parameters(), LEARNING_RATE, momentum=MOMENTUM)
    laps = []
    for epoch in range(epochs):
        start = Moment.now()
        for chosen in pair.order(epoch):
            loss = task(pair.inputs[chosen], pair.labels[chosen])["loss"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()
        laps.append(Moment.now() - start)
    return Outcome(laps, student)


def keras(pair: Pair, epochs: int) -> Outcome:
    """`Distiller.fit` of the reference pair."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras as k

    def reference(first: int, second: int, hidden: int) -> Any:
        return k.Sequential(
            [
                k.Input((24, 24, 3)),
                k.layers.Conv2D(first, 3, padding="same", activation="relu"),
                k.layers.MaxPooling2D(),
                k.layers.Conv2D(second, 3, padding="same", activation="relu"),
                k.layers.MaxPooling2D(),
                k.layers.Flatten(),
                k.layers.Dense(hidden, activation="relu"),
                k.layers.Dense(10),
            ]
        )

    class Clock(k.callbacks.Callback):
        """Times each epoch."""

        def __init__(self) -> None:
            super().__init__()
            self.laps: list[Moment] = []

        def on_epoch_begin(self, _epoch: int, logs: object = None) -> None:  # noqa: ARG002  # Keras names it
            """Starts."""
            self.start = Moment.now()

        def on_epoch_end(self, _epoch: int, logs: object = None) -> None:  # noqa: ARG002
            """Stops."""
            self.laps.append(Moment.now() - self.start)

    distiller = k.distillation.Distiller(
        reference(64, 128, 512),
        reference(32, 64, 32),
        k.distillation.LogitsDistillation(temperature=TAU, loss=k.losses.KLDivergence()),
        student_loss_weight=1 - SOFT_WEIGHT,
    )
    distiller.compile(
        k.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM),
        loss=k.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    clock = Clock()
    x = pair.inputs.permute(0, 2, 3, 1).contiguous().numpy()
    distiller.fit(x, pair.labels.numpy(), BATCH, epochs=epochs, verbose=0, callbacks=[clock])
    return Outcome(clock.laps, None)
