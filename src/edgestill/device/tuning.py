"""Training a bundle's student on what the device itself kept, spell by spell.

    with Replay.open(...) as replay: ...                    # whoever serves fills it
    tuning = Tuning(bundle, folder, samples, clock=clock, random=random)
    found = tuning.work(lambda: may_go_on)                  # trained weights that may serve, or None

- Batches are drawn balanced over classes (`device.replay`). A spell ends when `may_go_on` says so, and goes on later from the last state
  that was kept; the state is a file that is replaced whole, so a power cut costs the steps since then and nothing else.
- After every round of steps the trained weights are fused with the shipped ones by several shares, each is rounded into the model as it
  would serve, and asked about what was held back (`learn.choosing`). Only what wins there is written beside the bundle (`learn.tuned`).
- What serves meanwhile is what the candidates are compared with: the shipped model, or the weights of an earlier round.
- Training that has led nowhere begins anew: after so many rounds in a row that were not let through, from what serves, with half the rate.
- The shipped model, its bundle and the slots are never written.

A process of low priority runs this; it loads an engine and numpy, and no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self, final

import numpy as np

from edgestill.core import bundle as bundles
from edgestill.core.errors import BundleError, EdgestillError, MessageError, TrainingError
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.core.manifest import POLICY, STEPS, TRAIN
from edgestill.device.trained import Trained, read_bounded
from edgestill.infer.calibration import fit_temperature
from edgestill.infer.confidence import softmax
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.engines import engine_of
from edgestill.infer.policy import Policy
from edgestill.infer.student import LOGITS
from edgestill.learn.choosing import BETAS, LEVEL, Held, judged, level_of
from edgestill.learn.trainer import MAX_STATE_BYTES, Trainer, TrainState
from edgestill.learn.tuned import Tuned, fused, placed_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from random import Random

    from numpy.typing import NDArray

    from edgestill.core.bundle import Bundle
    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Clock
    from edgestill.device.replay_samples import Batch, Samples
    from edgestill.learn.choosing import Verdict

_MOST_PROGRESS: Final = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How a device trains.

    Attributes:
        steps: of a round, after which it is judged.
        keep: steps after which the state is written down.
        least: samples to be trained on before it begins.
        held: samples that must have been held back.
        patience: rounds in a row that are not let through, before training begins anew.
        betas: shares of the trained weights that are tried.
        level: probability that weights which are no better are ever let through.
    """

    steps: int = 200
    keep: int = 50
    least: int = 64
    held: int = 32
    patience: int = 5
    betas: tuple[float, ...] = BETAS
    level: float = LEVEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How training stands; kept beside its state.

    Attributes:
        asked: how often held-back samples were asked whether weights may serve.
        failed: rounds in a row that were not let through.
        halvings: how often the rate was halved.
        loss: mean of the last round, or 0.
    """

    asked: int = 0
    failed: int = 0
    halvings: int = 0
    loss: float = 0.0

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads what `as_json` wrote; MessageError where it is something else."""
        return cls(
            asked=fields.integer("asked", most=10**9),
            failed=fields.integer("failed", most=10**6),
            halvings=fields.integer("halvings", most=60),
            loss=fields.number("loss", least=-1e12, most=1e12),
        )

    def as_json(self) -> JsonObject:
        """As JSON."""
        return {"asked": self.asked, "failed": self.failed, "halvings": self.halvings, "loss": self.loss}


@final
class Tuning:
    """Trains beside one bundle.

    Args:
        bundle: with `train.onnx` and `train.json`.
        folder: for what is learned (`Home.learned`); made when first written to.
        samples: what the device kept.
        clock: dates what is let through.
        random: draws batches.
        rounds: how.

    Raises:
        BundleError, ModelError, EngineError, MessageError: the bundle brings no step that runs here.
    """

    def __init__(
        self,
        bundle: Bundle,
        folder: Path,
        samples: Samples,
        *,
        clock: Clock,
        random: Random,
        rounds: Rounds | None = None,
    ) -> None:
        trained = Trained.of(bundle, folder)
        if trained is None:
            raise BundleError(
                "a bundle that brings no training step",
                where=bundle.manifest.name,
                expected=f"{TRAIN} and {STEPS}",
                got="neither, or one of them",
                fix="make the bundle with training",
            )
        self._trained = trained
        self._hardware = bundle.manifest.hardware_class
        self._policy = Policy.from_bytes(bundle.read(POLICY))
        self._folder = folder
        self._samples = samples
        self._clock = clock
        self._random = random
        self._rounds = rounds or Rounds()
        self._steps = trained.steps
        self._trainer = Trainer(OnnxEngine(bundle.read(TRAIN)), self._steps, step=trained.step)
        self._progress, self._kept = self._recall()

    @property
    def progress(self) -> Progress:
        """How it stands."""
        return self._progress

    @property
    def done(self) -> int:
        """Steps taken since training began, or began anew."""
        return 0 if self._kept is None else self._kept.done

    def work(self, may_go_on: Callable[[], bool]) -> Tuned | None:
        """Trains until it may not go on, or until weights are let through; those are written down then.

        Raises:
            TrainingError: NaN or infinity, even at the smallest rate. PathError: the disk refuses.
        """
        if not self._has_enough():
            return None
        state = self._begin()
        losses: list[float] = []
        while may_go_on():
            batch = self._samples.draw(self._steps.batch, self._random)
            if not len(batch):
                return None
            try:
                state, loss = self._trainer.step(
                    state, batch.inputs, batch.targets, batch.weights / batch.weights.mean(), rate=self._rate
                )
            except TrainingError:
                state, losses = self._begin_anew(), []
                continue
            losses.append(loss)
            if state.done % self._rounds.keep == 0:
                self._keep(state)
            if state.done % self._rounds.steps == 0:
                self._progress = replace(self._progress, loss=float(np.mean(losses)))
                found = self._judge(state)
                if found is not None:
                    return found
                state, losses = self._begin(), []
        self._keep(state)
        return None

    # what is trained

    @property
    def _rate(self) -> float:
        return math.ldexp(self._steps.rate, -self._progress.halvings)

    def _has_enough(self) -> bool:
        counts = self._samples.counts()
        return sum(counts.train) >= self._rounds.least and sum(counts.held) >= self._rounds.held

    def _begin(self) -> TrainState:
        """Where it stopped, or what serves now, with an optimiser that has seen nothing."""
        if self._kept is not None:
            return self._kept
        state = self._trainer.start(self._samples.draw(1, self._random).inputs)
        tuned = self.tuned()
        if tuned is not None:
            state = TrainState(self._trained.step, 0, {**state.values, **tuned.weights})
        return state

    def _begin_anew(self) -> TrainState:
        """With half the rate."""
        if self._progress.halvings >= _MOST_HALVINGS:
            raise TrainingError(
                "training on this device leads nowhere",
                where=TRAIN,
                expected="finite numbers at some rate",
                got=f"NaN or infinity at {self._rate:g}",
                fix="look at the samples that were kept, or make the bundle with a smaller train_rate",
            )
        self._progress = replace(self._progress, failed=0, halvings=self._progress.halvings + 1)
        self._kept = None
        self._write(self._name("training"), None)
        self._keep_progress()
        return self._begin()

    # what may serve

    def tuned(self) -> Tuned | None:
        """The weights that were let through for this bundle; None where there are none, or none that can be used."""
        return self._trained.read()

    def _judge(self, state: TrainState) -> Tuned | None:
        """Asks what was held back; what is let through is written down before it is handed out."""
        self._keep(state)
        held = self._held()
        if held is None:
            return None
        asked = self._progress.asked + 1
        tuned = self.tuned()
        temperature = self._policy.temperature if tuned is None else tuned.temperature
        serving = softmax(
            self._asked(self._trained.model(None if tuned is None else tuned.weights), held), temperature
        )
        candidates = self._candidates(state)
        verdict = judged(
            Held(held.targets, self._stretches(held)),
            serving,
            {beta: self._asked(self._trained.model(weights), held) for beta, weights in candidates.items()},
            temperature=fit_temperature,
            level=level_of(asked, self._rounds.level),
        )
        found = self._let_through(verdict, candidates) if verdict.may_serve else None
        failed = 0 if found is not None else self._progress.failed + 1
        self._progress = replace(self._progress, asked=asked, failed=failed)
        self._keep_progress()
        if failed >= self._rounds.patience:
            self._begin_anew()
        return found

    def _candidates(self, state: TrainState) -> dict[float, dict[str, NDArray[np.float32]]]:
        """Share -> weights, fused with what was shipped."""
        shipped = self._trainer.start(self._samples.draw(1, self._random).inputs).values
        own = {name: shipped[name] for name in placed_names(self._steps)}
        return {beta: fused(own, state.values, beta) for beta in self._rounds.betas}

    def _let_through(
        self, verdict: Verdict, candidates: Mapping[float, dict[str, NDArray[np.float32]]]
    ) -> Tuned:
        counts = self._samples.counts()
        found = Tuned(
            bundle=self._trained.bundle,
            step=self._trained.step,
            weights=candidates[verdict.beta],
            beta=verdict.beta,
            temperature=min(max(verdict.temperature, 1e-3), 1e3),
            n=sum(counts.train),
            created=self._clock.now(),
            agreement_before=verdict.right_before,
            agreement_after=verdict.right_after,
        )
        self._trained.write(found)
        return found

    def _held(self) -> Batch | None:
        """All that was held back, in one batch."""
        parts = list(self._samples.held(256))
        return None if not parts else _joined(parts)

    def _stretches(self, held: Batch) -> NDArray[np.int64]:
        length = self._samples.layout.plan.holding.stretch
        stretches: NDArray[np.int64] = np.floor(held.at / length).astype(np.int64)
        return stretches

    def _asked(self, model: bytes, held: Batch) -> NDArray[np.float32]:
        """Logits `[N, C]` of the engine that serves."""
        engine = engine_of(model, self._hardware)
        ((name, _),) = engine.inputs.items()
        parts = [
            engine.run({name: held.inputs[at : at + _BATCH]})[LOGITS] for at in range(0, len(held), _BATCH)
        ]
        return np.concatenate(parts).astype(np.float32)

    # what is kept

    def _name(self, kind: str) -> str:
        return f"{self._trained.bundle.hex[:32]}.{kind}"

    def _recall(self) -> tuple[Progress, TrainState | None]:
        """What was kept for this bundle; what is damaged, or of another step, is passed over."""
        progress, state = Progress(), None
        data = read_bounded(self._folder / self._name("tuning"), _MOST_PROGRESS)
        if data is not None:
            try:
                progress = Progress.from_fields(Fields(parse_object(data, where="tuning"), "tuning"))
            except MessageError:
                progress = Progress()
        data = read_bounded(self._folder / self._name("training"), MAX_STATE_BYTES)
        if data is not None:
            try:
                state = TrainState.from_bytes(data, step=self._trained.step, steps=self._steps)
            except EdgestillError:
                state = None
        return progress, state

    def _keep(self, state: TrainState) -> None:
        if self._kept is not None and self._kept.done == state.done:
            return
        self._write(self._name("training"), state.to_bytes())
        self._kept = state

    def _keep_progress(self) -> None:
        self._write(self._name("tuning"), canonical(self._progress.as_json()))

    def _write(self, name: str, data: bytes | None) -> None:
        """Replaces a file whole; None removes it."""
        if data is None:
            (self._folder / name).unlink(missing_ok=True)
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        bundles.replace(self._folder / name, data)


_BATCH: Final = 64
_MOST_HALVINGS: Final = 20


def _joined(parts: list[Batch]) -> Batch:
    first = parts[0]
    return replace(
        first,
        inputs=np.concatenate([one.inputs for one in parts]),
        targets=np.concatenate([one.targets for one in parts]),
        weights=np.concatenate([one.weights for one in parts]),
        at=np.concatenate([one.at for one in parts]),
        sources=tuple(source for one in parts for source in one.sources),
    )
