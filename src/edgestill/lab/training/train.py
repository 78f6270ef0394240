"""One training loop, for teachers and students alike.

- The same recipe and data give the same weights: order, views and dropout are functions of seed and step (`lab.training.plan`).
- A run that was killed goes on from its last checkpoint and ends with the same weights as if it had not been.
- A loss that is not finite stops the run before it reaches the weights, and says in which step; weights that are not are
  neither kept nor returned. Nothing is patched over.
- On many processes the loss is that of the whole batch: each term is weighted by what it is a mean over.
- Networks with 2-D convolutions are kept channels-last where `lab.layout` says so: about twice as fast on the CPUs we measured.
- Where it runs is Lightning Fabric's part (`lab.training.runtime`): the loop is the same on one CPU and on many nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from edgestill.core.clock import SystemClock
from edgestill.core.errors import SettingError, TrainingError
from edgestill.lab.data.source import ArraySource, Batch
from edgestill.lab.forward import model_digest
from edgestill.lab.layout import lay_out_
from edgestill.lab.loss.hint import hint_energy, hint_loss
from edgestill.lab.loss.losses import labelled_count
from edgestill.lab.training.checkpoint import Checkpoints
from edgestill.lab.training.learner import Learner
from edgestill.lab.training.log import EpochLog
from edgestill.lab.training.optimise import TailAverage, optimiser_for, schedule_for
from edgestill.lab.training.plan import Plan
from edgestill.lab.training.runtime import Runtime, over_all, together

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_fabric import Fabric

    from edgestill.lab.data.augment import Augment
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.data.source import Source
    from edgestill.lab.loss.objective import Objective
    from edgestill.lab.recipe import Recipe
    from edgestill.lab.teacher.guide import Answer, Guide
    from edgestill.lab.training.plan import Share


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lesson:
    """What a model is shown.

    Attributes:
        source: the samples.
        guide: who answers for the teacher, where the recipe's `soft_weight` or `hint_weight` is above 0.
    """

    source: Source
    guide: Guide | None = None

    @classmethod
    def of(cls, samples: Samples, augment: Augment | None = None, guide: Guide | None = None) -> Self:
        """Labelled samples of exclusive classes."""
        return cls(source=ArraySource.of(samples, augment), guide=guide)


def train_(
    model: nn.Module,
    lesson: Lesson,
    recipe: Recipe,
    *,
    runtime: Runtime | None = None,
    fabric: Fabric | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> nn.Module:
    """Trains the model in place and returns it in evaluation mode, on the CPU.

    Args:
        model: takes what `lesson.source` gives, returns outputs `[N, C]`.
        lesson: what it is shown.
        recipe: how.
        runtime: where; by default one process on the CPU.
        fabric: of that runtime, where it has been opened already.
        progress: called after each epoch with (epochs done, epochs, mean loss), in the first process only.

    Raises:
        SettingError: a teacher is asked for and missing, an average over weights with BatchNorm, or an objective that
            does not fit the task.
        ClassCountError: the teacher answers with another number of outputs.
        TrainingError: the loss or the weights are not finite, or another process of the run has failed; the last
            checkpoint is kept.
        DataError: the checkpoint is of another run. PathError: log or checkpoint cannot be written.
    """
    objective = recipe.objective(lesson.source.task)
    _check(model, lesson, recipe, objective)
    kind = next((one.dtype for one in model.parameters() if one.is_floating_point()), None)
    with torch.random.fork_rng(devices=[]), together():
        runtime = runtime or Runtime()
        _Run(model, lesson, recipe, objective, runtime=runtime, fabric=fabric or runtime.open()).to_the_end(
            progress
        )
    return model.to("cpu", kind).eval()  # a precision of the runtime's is not the student's


def _check(model: nn.Module, lesson: Lesson, recipe: Recipe, objective: Objective) -> None:
    if lesson.guide is None and recipe.distils:
        raise SettingError(
            "a recipe with soft labels needs a teacher",
            where="soft_weight",
            got=recipe.soft_weight,
            expected="0 without a teacher",
            fix="give the lesson a guide, or set soft_weight to 0",
        )
    objective.check(outputs=lesson.source.outputs, labelled=lesson.source.labelled)
    moving = any(name.endswith("running_mean") for name, _ in model.named_buffers())
    if recipe.average_tail > 0 and moving and not recipe.frozen_statistics:
        raise SettingError(
            "averaged weights would not fit the statistics of BatchNorm",
            where="average_tail",
            expected="0 for this network",
            got=recipe.average_tail,
            fix="leave average_tail out, set frozen_statistics, or use a network without BatchNorm",
        )


def freeze_statistics_(model: nn.Module) -> None:
    """Lets every normalisation that has running statistics normalise by them, and keep them, until the next `train()`."""
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            module.eval()


class _Run:
    def __init__(
        self,
        model: nn.Module,
        lesson: Lesson,
        recipe: Recipe,
        objective: Objective,
        *,
        runtime: Runtime,
        fabric: Fabric,
    ) -> None:
        self.recipe, self.lesson, self.runtime, self.objective = recipe, lesson, runtime, objective
        self.clock, self.fabric = SystemClock(), fabric
        self.guide = lesson.guide if recipe.distils else None
        self.plan = Plan(
            samples=len(lesson.source),
            batch=recipe.batch,
            seed=recipe.seed,
            views=(self.guide.views or 0) if self.guide is not None else 0,
            augmented=lesson.source.augmented,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
        )
        self.step, self.epoch, self.total = 0, 0, 0.0
        self.steps = recipe.epochs * self.plan.steps
        self.checkpoints = None
        if runtime.checkpoint is not None:
            self.checkpoints = Checkpoints(runtime.checkpoint, _parts(model, lesson, recipe, self.guide))
        self.log = None if runtime.log is None or fabric.global_rank > 0 else EpochLog.open(runtime.log)
        self._set_up(model)
        self._resume()

    def _set_up(self, model: nn.Module) -> None:
        recipe = self.recipe
        torch.default_generator.manual_seed(recipe.seed)
        self.learner = self._learner(model)
        if self.runtime.channels_last:
            lay_out_(self.learner)
        self.learner.train()
        if recipe.frozen_statistics:
            freeze_statistics_(self.learner)
        optimiser = optimiser_for(self.learner.parameters(), recipe)
        self.schedule = schedule_for(optimiser, recipe, self.steps)
        self.module, self.optimiser = self.fabric.setup(self.learner, optimiser)
        self.average = TailAverage(model, after=round(self.steps * (1 - recipe.average_tail)))

    def _learner(self, model: nn.Module) -> Learner:
        if self.guide is None or self.recipe.hinted is None:
            return Learner(model)
        ask = self.plan.epoch(0)[0].ask
        batch = next(iter(self.lesson.source.batches([ask])))
        return Learner.for_hint(model, self.recipe.hinted, batch.inputs, self.guide.answer(ask, batch.inputs))

    def to_the_end(self, progress: Callable[[int, int, float], None] | None) -> None:
        """All epochs; the weights are the model's then."""
        while self.epoch < self.recipe.epochs:
            loss = self.run_epoch()
            if progress is not None and self.fabric.global_rank == 0:
                progress(self.epoch, self.recipe.epochs, loss)
        self.finish_()

    def run_epoch(self) -> float:
        """The rest of this epoch; the mean loss of the whole."""
        start, begun = self.clock.monotonic(), self.step
        shares = self.plan.epoch(self.epoch)[self.step - self.epoch * self.plan.steps :]
        batches = self.lesson.source.batches([share.ask for share in shares])
        for share, batch in zip(shares, batches, strict=True):
            answer = None if self.guide is None else self.guide.answer(share.ask, batch.inputs)
            self.total += self._advance(share, batch, answer)
            every = self.runtime.checkpoint_every
            if every and self.step % every == 0:
                self._keep()
        mean = self.total / self.plan.samples
        self.epoch, self.total = self.epoch + 1, 0.0
        if not self.runtime.checkpoint_every or self.epoch == self.recipe.epochs:
            self._keep()
        if self.log is not None:
            seconds = (self.clock.monotonic() - start) / max(1, self.step - begun)
            rate = self.optimiser.param_groups[0]["lr"]
            self.log.add(self.epoch, self.step, loss=mean, rate=rate, seconds=seconds)
        return mean

    def _advance(self, share: Share, batch: Batch, answer: Answer | None) -> float:
        """One step; the whole batch's summed loss."""
        self._reseed()
        loss = self._loss(share, batch, answer)
        value = self._checked(loss)
        self.optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        if self.recipe.clip > 0:
            self.fabric.clip_gradients(
                self.module, self.optimiser, max_norm=self.recipe.clip, error_if_nonfinite=False
            )
        self.optimiser.step()
        if self.schedule is not None:
            self.schedule.step()
        self.step += 1
        self.average.see_(self.step)
        return value * share.samples

    def _reseed(self) -> None:
        seed = self.plan.draw(self.step)
        torch.default_generator.manual_seed(
            seed
        )  # torch.manual_seed asks every kind of device, a hundred times slower
        if self.fabric.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _loss(self, share: Share, batch: Batch, answer: Answer | None) -> Tensor:
        """This process's part of the whole batch's loss: the mean over processes is the whole."""
        batch, answer = self.fabric.to_device((batch, answer)) if self._elsewhere else (batch, answer)
        logits, hint = self.module(batch.inputs)
        said = None if answer is None else answer.logits
        hard = 1.0 if batch.targets is None else self._scale(share, self._labelled(batch.targets))
        loss = self.objective.loss(logits, batch.targets, said, scales=(hard, share.weight))
        if hint is not None and answer is not None and answer.features is not None:
            assert self.recipe.hinted is not None
            channels, theirs = self.recipe.hinted.channels, answer.features
            scale = self._scale(share, lambda: hint_energy(hint, theirs, channels=channels))
            followed = hint_loss(hint, theirs, channels=channels)
            loss = loss + self.recipe.hint_weight * scale * followed
        return loss

    def _labelled(self, targets: Tensor) -> Callable[[], Tensor]:
        return lambda: labelled_count(self.lesson.source.task, targets)

    def _scale(self, share: Share, amount: Callable[[], Tensor]) -> Tensor | float:
        """Of a mean over an amount here, such that the mean over processes is the mean over the amount of all."""
        if self.plan.world == 1:
            return 1.0
        own = amount().to(self.fabric.device, torch.float64) * (share.weight > 0)
        whole = over_all(self.fabric, own, how="sum")
        return (own * self.plan.world / whole.clamp(min=torch.finfo(torch.float64).tiny)).float()

    @property
    def _elsewhere(self) -> bool:
        return self.fabric.device.type != "cpu"

    def _checked(self, loss: Tensor) -> float:
        """The loss over all processes, before it reaches the weights."""
        mean = loss.detach()
        if self.plan.world > 1:
            mean = over_all(self.fabric, mean, how="mean")
        value = float(mean)
        if not torch.isfinite(mean):
            within = self.step - self.epoch * self.plan.steps
            raise TrainingError(
                "the loss is not finite",
                where=f"step {self.step + 1} of {self.steps} (batch {within + 1} of epoch {self.epoch + 1})",
                got=value,
                fix="lower the learning rate, or look for bad samples",
                expected="a finite loss",
            )
        return value

    def _check_weights(self) -> None:
        """A finite loss can have a gradient that is not, and its step is told by the weights alone."""
        spoilt = [name for name, one in self.learner.named_parameters() if not one.isfinite().all()]
        if spoilt:
            raise TrainingError(
                "a weight is not finite",
                where=f"{spoilt[0].removeprefix('model.')}, after step {self.step} of {self.steps}",
                got=f"NaN or infinity in {len(spoilt)} of the tensors",
                fix="look for a square root or a division in the network that meets 0, or lower the learning rate",
                expected="finite weights",
            )

    def _keep(self) -> None:
        if self.checkpoints is None or self.fabric.global_rank > 0:
            return
        self._check_weights()
        self.checkpoints.keep(
            {
                "step": self.step,
                "epoch": self.epoch,
                "total": self.total,
                "learner": self.learner.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "schedule": None if self.schedule is None else self.schedule.state_dict(),
                "average": self.average.state_dict(),
            }
        )

    def _resume(self) -> None:
        state = None if self.checkpoints is None else self.checkpoints.last()
        if state is None:
            return
        self.step, self.epoch, self.total = state["step"], state["epoch"], state["total"]
        for name, part in (
            ("learner", self.learner),
            ("optimiser", self.optimiser),
            ("schedule", self.schedule),
            ("average", self.average),
        ):
            if part is not None:
                part.load_state_dict(state[name])

    def finish_(self) -> None:
        self._check_weights()
        self.average.apply_()


def _parts(model: nn.Module, lesson: Lesson, recipe: Recipe, guide: Guide | None) -> dict[str, str]:
    """Everything that decides the result, by name."""
    asked = "nobody" if guide is None else f"{guide.digest}|{type(guide).__name__}|{guide.views}"
    return {
        "student": str(model_digest(model)),
        "data": str(lesson.source.digest),
        "augmentation": str(lesson.source.views_digest),
        "recipe": str(recipe.digest),
        "teacher or way of asking": asked,
    }
