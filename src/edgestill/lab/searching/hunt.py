"""The search for the best student within one budget: trials that are proposed, fitted, trained a little, and more where they lead.

Each trial is a student that fits: whatever direction is proposed (TPE, Bergstra et al. 2011), its scale is what the budget
allows. It is trained for a ninth of the epochs first; the best third of those so far go on to a third of the epochs, and of
these the best third to all of them (asynchronous successive halving, Li et al. 2020). Each rung is a training of its own, from
the teacher's weights and with a whole schedule of the learning rate, so that students are compared as they would be
finished. The uniform student is the first trial where it fits, and is never given up: it is what the others have to be better
than. A direction of which not even the narrowest fits (blocks take room however narrow they are) is passed over and not counted.

Trials are kept by Optuna: in a journal in a folder, or in a database that many machines share. Whoever opens the same search
takes part in it. What a killed process of this machine has left half done is tried again; of another machine nobody here knows
whether it still works, so that its trial is counted and not repeated.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from edgestill.core.errors import ModelError, TrainingError
from edgestill.core.extras import require
from edgestill.lab.models import save_weights
from edgestill.lab.searching.draft import Shape
from edgestill.lab.searching.settings import THIRD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from optuna import Study, Trial
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial
    from torch import nn

    from edgestill.lab.searching.bounds import Fitting
    from edgestill.lab.searching.choices import Choices, Values
    from edgestill.lab.searching.draft import Draft, Precision
    from edgestill.lab.searching.school import School
    from edgestill.lab.searching.settings import Search

JOURNAL: Final = "trials.log"
_PATIENCE: Final = 10
_UNIFORM, _MENDED, _UNFIT, _WORKER, _SHAPE, _WIDTHS, _WHY = (
    "uniform",
    "mended",
    "unfit",
    "worker",
    "shape",
    "widths",
    "why",
)


def storage_in(folder: Path, url: str) -> BaseStorage:
    """Where trials are kept: in the folder's journal, or in the database of that address.

    Raises:
        MissingExtraError: Optuna is not installed, or the database's driver.
    """
    require("optuna", extra="lab", purpose="to search")
    import optuna
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url:
        return RDBStorage(url)
    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A trial that has gone through all rungs.

    Attributes:
        number: of the trial in its study.
        values: that were chosen.
        shape: what they came to.
        score: on the data that students are chosen on.
        uniform: whether it is the uniform student.
        weights: the student's.
    """

    number: int
    values: Values
    shape: Shape
    score: float
    uniform: bool
    weights: Path


@final
class Hunt:
    """The trials for one budget.

    Args:
        name: of the study.
        storage: where trials are kept.
        fitting: what fits.
        precision: of all students.
        choices: what can be chosen.
        school: where students are trained.
        settings: how hard is searched.
        folder: for weights.
    """

    def __init__(
        self,
        name: str,
        storage: BaseStorage,
        *,
        fitting: Fitting,
        precision: Precision,
        choices: Choices,
        school: School,
        settings: Search,
        folder: Path,
    ) -> None:
        import optuna

        self.name, self.fitting, self.precision = name, fitting, precision
        self._choices, self._school, self._settings = choices, school, settings
        self._folder = folder / name
        self._rungs = settings.rungs(school.recipe)
        self._study: Study = optuna.create_study(
            study_name=name,
            storage=storage,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=THIRD),
        )

    def run(
        self, hints: Iterable[Values] = (), *, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Tries until there are as many trials as are wanted.

        Args:
            hints: what was best for other budgets, tried after the uniform student.
            progress: called with (trials done, trials).
        """
        self._take_up()
        uniform, *designs = self._choices.designs()
        for values in (uniform, *hints, *designs):
            self._study.enqueue_trial(values, user_attrs={_UNIFORM: values == uniform}, skip_if_exists=True)
        while (done := self._begun()) < self._settings.trials:
            self._one()
            if progress is not None:
                progress(done + 1, self._settings.trials)

    def again(self, values: Values, fitting: Fitting) -> Finished | None:
        """One more trial of these values within other bounds, through all rungs; None where nothing fits."""
        self._study.enqueue_trial(values, user_attrs={_UNIFORM: False, _MENDED: True})
        return self._one(fitting, keep=True)

    @property
    def mended(self) -> bool:
        """Whether `again` was called, in this process or before."""
        return any(_MENDED in one.user_attrs for one in self._study.get_trials(deepcopy=False))

    def finished(self) -> list[Finished]:
        """All that have gone through all rungs, the best first."""
        from optuna.trial import TrialState

        found = [self._told(one) for one in self._study.get_trials(False, (TrialState.COMPLETE,))]
        return sorted(found, key=lambda one: -one.score)

    def _begun(self) -> int:
        """Trials of students, whatever became of them. What fits in no width is none, until there are far too many of that."""
        from optuna.trial import TrialState

        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        trials = self._study.get_trials(deepcopy=False, states=states)
        unfit = sum(_UNFIT in one.user_attrs for one in trials)
        return len(trials) - min(unfit, _PATIENCE * self._settings.trials)

    def _one(self, fitting: Fitting | None = None, *, keep: bool = False) -> Finished | None:
        trial = self._asked()
        student, score, why = None, 0.0, "others were better"
        try:
            direction = self._choices.direction(trial.params)
            draft = (fitting or self.fitting).largest(direction, self.precision)
            if draft is not None:
                trial.set_user_attr(_SHAPE, draft.shape.as_json())
                trial.set_user_attr(_WIDTHS, draft.widths)
                student, score = self._climbed(
                    trial, draft, keep=keep or trial.user_attrs.get(_UNIFORM, False)
                )
            else:
                trial.set_user_attr(_UNFIT, value=True)
                why = "not even the narrowest fits"
        except (ModelError, TrainingError) as error:  # there are other students
            why = str(error)
        if student is None:
            self._given_up(trial, why)
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        save_weights(student, self._weights(trial.number))
        self._study.tell(trial, score)
        return next(one for one in self.finished() if one.number == trial.number)

    def _climbed(self, trial: Trial, draft: Draft, *, keep: bool) -> tuple[nn.Module | None, float]:
        """The student at the top, or None where it was given up on the way, and its last score."""
        recipe, score = self._choices.recipe(trial.params), 0.0
        for rung, epochs in enumerate(self._rungs):
            student = self._school.taught(draft.shape, epochs, recipe)
            score = self._school.score(student)
            trial.report(score, THIRD**rung)
            if epochs == self._rungs[-1]:
                return student, score
            if not keep and trial.should_prune():
                break
        return None, score

    def _asked(self) -> Trial:
        """The next trial. Its sampler is seeded by its number, so that a search that goes on goes on the same way."""
        import optuna

        seed = (self._settings.seed * 1_000_003 + len(self._study.get_trials(deepcopy=False))) % 2**32
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
        trial = self._study.ask(self._choices.distributions())
        trial.set_user_attr(_WORKER, [socket.gethostname(), os.getpid(), _started(os.getpid())])
        return trial

    def _given_up(self, trial: Trial, why: str) -> None:
        from optuna.trial import TrialState

        trial.set_user_attr(_WHY, why)
        self._study.tell(trial, state=TrialState.PRUNED)

    def _take_up(self) -> None:
        """Trials of processes that are gone are failed, and what they tried is tried again."""
        from optuna.trial import TrialState

        for one in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            host, number, started = one.user_attrs.get(_WORKER, (socket.gethostname(), 0, None))
            if host == socket.gethostname() and _started(number) != started:
                self._study.tell(one.number, state=TrialState.FAIL)
                self._study.enqueue_trial(
                    one.params, user_attrs={_UNIFORM: bool(one.user_attrs.get(_UNIFORM))}
                )

    def _weights(self, number: int) -> Path:
        return self._folder / f"{number}.safetensors"

    def _told(self, trial: FrozenTrial) -> Finished:
        assert trial.value is not None
        return Finished(
            number=trial.number,
            values=dict(trial.params),
            shape=Shape.from_json(trial.user_attrs[_SHAPE]),
            score=trial.value,
            uniform=bool(trial.user_attrs.get(_UNIFORM)),
            weights=self._weights(trial.number),
        )


def _started(process: int) -> Any:
    """When a process of this machine began, in ticks since it started (proc(5)); None where there is none of that number."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    return None
