"""Training a bundle's student on what the device itself kept, spell by spell.

    with Replay.open(...) as replay: ...                    # whoever serves fills it
    tuning = Tuning(bundle, folder, samples, clock=clock, random=random)
    found = tuning.work(lambda: may_go_on)                  # trained weights that may serve, or None

- Batches are drawn balanced over classes (`device.replay`). A spell ends when `may_go_on` says so, and goes on later from the last state
  that was kept; the state is a file that is replaced whole, so a power cut costs the steps since then and nothing else.
- After every round of steps the trained weights are fused with the shipped ones by several shares, each is rounded into the model as it
  would serve, and asked about what was held back (`learn.choosing`). Only what wins there is written beside the bundle (`learn.tuned`).
- What serves meanwhile is what the candidates are compared with: the shipped model, or the weights of an earlier round.
- Training that has led nowhere begins anew from what serves: after so many rounds in a row that were not let through, with a smaller rate
  each of the first few times; and after a step to infinity, with half the rate.
- A question is counted before it is asked, so that no kill asks it again at the same level. A count that was damaged counts as many.
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
from edgestill.learn import framing
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
        restarts: how often training began anew after these.
        halvings: how often a step went to infinity.
        loss: mean of the last round, or 0.
    """

    asked: int = 0
    failed: int = 0
    restarts: int = 0
    halvings: int = 0
    loss: float = 0.0

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads what `as_json` wrote; MessageError where it is something else."""
        return cls(
            asked=fields.integer("asked", most=10**9),
            failed=fields.integer("failed", most=10**6),
            restarts=fields.integer("restarts", most=10**9),
            halvings=fields.integer("halvings", most=60),
            loss=fields.number("loss", least=-1e12, most=1e12),
        )

    def as_json(self) -> JsonObject:
        """As JSON."""
        return {
            "asked": self.asked,
            "failed": self.failed,
            "restarts": self.restarts,
            "halvings": self.halvings,
            "loss": min(max(self.loss, -1e12), 1e12),
        }


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
        self._first: TrainState | None = None
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
                break
            try:
                state, loss = self._trainer.step(
                    state, batch.inputs, batch.targets, batch.weights / batch.weights.mean(), rate=self._rate
                )
            except TrainingError:
                self._diverged()
                state, losses = self._begin(), []
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
        smaller = self._progress.halvings + min(self._progress.restarts, _MOST_SMALLER)
        return math.ldexp(self._steps.rate, -smaller)

    def _has_enough(self) -> bool:
        counts = self._samples.counts()
        return sum(counts.train) >= self._rounds.least and sum(counts.held) >= self._rounds.held

    def _begin(self) -> TrainState:
        """Where it stopped, or what serves now, with an optimiser that has seen nothing."""
        if self._kept is not None:
            return self._kept
        state = self._shipped()
        tuned = self.tuned()
        if tuned is not None:
            state = TrainState(self._trained.step, 0, {**state.values, **tuned.weights})
        return state

    def _diverged(self) -> None:
        """Half the rate from now on, and anew from what serves."""
        if self._progress.halvings >= _MOST_HALVINGS:
            raise TrainingError(
                "training on this device leads nowhere",
                where=TRAIN,
                expected="finite numbers at some rate",
                got=f"NaN or infinity at {self._rate:g}",
                fix="look at the samples that were kept, or make the bundle with a smaller train_rate",
            )
        self._begin_anew(replace(self._progress, failed=0, halvings=self._progress.halvings + 1))

    def _begin_anew(self, progress: Progress) -> None:
        self._keep_progress(progress)
        self._kept = None
        self._write(self._name("training"), None)

    def _shipped(self) -> TrainState:
        """Where the lab ended; worked out once."""
        if self._first is None:
            self._first = self._trainer.start(self._samples.draw(1, self._random).inputs)
        return self._first

    # what may serve

    def tuned(self) -> Tuned | None:
        """The weights that were let through for this bundle; None where there are none, or none that can be used."""
        return self._trained.read()

    def _judge(self, state: TrainState) -> Tuned | None:
        """Asks what was held back; what is let through is written down before it is handed out."""
        self._keep(state)
        held = list(self._samples.held(_BATCH))
        if not held:
            return None
        asked = self._progress.asked + 1
        self._keep_progress(replace(self._progress, asked=asked))
        tuned = self.tuned()
        temperature = self._policy.temperature if tuned is None else tuned.temperature
        serving = softmax(
            self._asked(self._trained.model(None if tuned is None else tuned.weights), held), temperature
        )
        candidates = self._candidates(state)
        verdict = judged(
            self._as_held(held),
            serving,
            {beta: self._asked(self._trained.model(weights), held) for beta, weights in candidates.items()},
            temperature=lambda logits, targets, units: fit_temperature(logits, targets, units=units),
            level=level_of(asked, self._rounds.level),
        )
        if verdict.may_serve:
            found = self._let_through(verdict, candidates)
            self._keep_progress(replace(self._progress, failed=0, restarts=0, halvings=0))
            return found
        failed = self._progress.failed + 1
        if failed >= self._rounds.patience:
            self._begin_anew(replace(self._progress, failed=0, restarts=self._progress.restarts + 1))
        else:
            self._keep_progress(replace(self._progress, failed=failed))
        return None

    def _candidates(self, state: TrainState) -> dict[float, dict[str, NDArray[np.float32]]]:
        """Share -> weights, fused with what was shipped."""
        shipped = self._shipped().values
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

    def _as_held(self, held: list[Batch]) -> Held:
        """What judging needs of the samples, whose inputs stay on the disk: each stands for those of its class that were not kept, too."""
        counts, length = self._samples.counts(), self._samples.layout.plan.holding.stretch
        targets = np.concatenate([one.targets for one in held])
        stands_for = np.array(counts.held_seen, np.float64) / np.maximum(counts.held, 1)
        weights = np.concatenate([one.weights for one in held]) * stands_for[targets.argmax(axis=1)]
        at = np.concatenate([one.at for one in held])
        return Held(targets, np.floor(at / length).astype(np.int64), np.maximum(weights, 1e-6))

    def _asked(self, model: bytes, held: list[Batch]) -> NDArray[np.float32]:
        """Logits `[N, C]` of the engine that serves, batch by batch."""
        engine = engine_of(model, self._hardware)
        ((name, _),) = engine.inputs.items()
        return np.concatenate([engine.run({name: one.inputs})[LOGITS] for one in held]).astype(np.float32)

    # what is kept

    def _name(self, kind: str) -> str:
        return f"{self._trained.bundle.hex[:32]}.{kind}"

    def _recall(self) -> tuple[Progress, TrainState | None]:
        """What was kept for this bundle; what is damaged, or of another step, is passed over."""
        progress, state = Progress(), None
        data = read_bounded(self._folder / self._name("tuning"), _MOST_PROGRESS)
        body = None if data is None else framing.opened(data, max_bytes=_MOST_PROGRESS)
        if data is not None:
            try:
                progress = Progress.from_fields(Fields(parse_object(body or b"", where="tuning"), "tuning"))
            except MessageError:
                progress = Progress(asked=_MANY)
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

    def _keep_progress(self, progress: Progress) -> None:
        self._write(self._name("tuning"), framing.sealed(canonical(progress.as_json())))
        self._progress = progress

    def _write(self, name: str, data: bytes | None) -> None:
        """Replaces a file whole; None removes it."""
        if data is None:
            (self._folder / name).unlink(missing_ok=True)
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        bundles.replace(self._folder / name, data)


_BATCH: Final = 64
_MOST_HALVINGS: Final = 20
_MOST_SMALLER: Final = 3
"""Restarts that make the rate smaller."""
_MANY: Final = 1000
"""Questions that a damaged count stands for."""
