"""The search for the best student within one budget: trials that are proposed, fitted, trained a little, and more where they lead.

Each trial is a student that fits: whatever direction is proposed (TPE, Bergstra et al. 2011), its scale is what the budget
allows. It is trained for a ninth of the epochs first; the best third of those so far go on to a third of the epochs, and of
these the best third to all of them (asynchronous successive halving, Li et al. 2020). Each rung is a training of its own, from
the teacher's weights and with a whole schedule of the learning rate, so that students are compared as they would be
finished. What counts in the end is the score of the file that would be shipped. The uniform student is the first trial where it fits, and is never given up: it is what the others have to be better
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
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from edgestill.core.bundle import PUBLIC
from edgestill.core.bundle import replace as write_whole
from edgestill.core.errors import ModelError, NotFiniteError, TrainingError
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
_NAMELESS: Final = 60.0
_UNIFORM, _MENDED, _PASSED, _NAME = "uniform", "mended", "passed over", "name"
_WORKER, _SHAPE, _WIDTHS, _WHY = "worker", "shape", "widths", "why"


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
        score: the file's, on the data that students are chosen on.
        uniform: whether it is the uniform student.
        mends: number of the trial that was made anew, where it is that.
        weights: the student's.
    """

    number: int
    values: Values
    shape: Shape
    score: float
    uniform: bool
    mends: int | None
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
            self._take_up()
            if progress is not None:
                progress(done + 1, self._settings.trials)

    def again(self, one: Finished, fitting: Fitting) -> Finished | None:
        """The same student within other bounds, trained to the end; None where it would be no other."""
        from optuna.trial import TrialState, create_trial

        draft = fitting.largest(one.shape.direction, self.precision)
        if draft is None or draft.widths == self._widths(one.shape):
            return None
        student = self._school.taught(draft.shape, self._rungs[-1], self._choices.recipe(one.values))
        name, (model, score) = f"{one.number}-mended", self._school.written(student, self.precision)
        self._save(name, student, model)
        told = {_SHAPE: draft.shape.as_json(), _WIDTHS: draft.widths, _UNIFORM: one.uniform}
        self._study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=score,
                params=one.values,
                distributions=self._choices.distributions(),
                user_attrs=told | {_MENDED: one.number, _NAME: name},
            )
        )
        return next(other for other in self.finished() if other.mends == one.number)

    def finished(self) -> list[Finished]:
        """All that have gone through all rungs, the best first."""
        from optuna.trial import TrialState

        found = [self._told(one) for one in self._study.get_trials(False, (TrialState.COMPLETE,))]
        return sorted(found, key=lambda one: -one.score)

    @property
    def reasons(self) -> list[str]:
        """Why students were given up, each reason once."""
        told = [one.user_attrs.get(_WHY) for one in self._study.get_trials(deepcopy=False)]
        return list(dict.fromkeys(filter(None, told)))

    def _begun(self) -> int:
        """Trials of students, whatever became of them.

        What fits in no width is none, nor is a student that there is already, until there are far too many of them.
        """
        from optuna.trial import TrialState

        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        trials = [
            one
            for one in self._study.get_trials(deepcopy=False, states=states)
            if _MENDED not in one.user_attrs
        ]
        passed = sum(_PASSED in one.user_attrs for one in trials)
        return len(trials) - min(passed, _PATIENCE * self._settings.trials)

    def _one(self) -> None:
        trial = self._asked()
        student, model, score, why = None, b"", 0.0, "others were better"
        try:
            draft = self.fitting.largest(self._choices.direction(trial.params), self.precision)
            if draft is None:
                why = "not even the narrowest fits"
                trial.set_user_attr(_PASSED, why)
            elif (twin := self._twin(trial, draft)) is not None:
                why = f"the student of trial {twin.number}"
                trial.set_user_attr(_PASSED, why)
                for step, value in twin.intermediate_values.items():
                    trial.report(value, step)
            else:
                trial.set_user_attr(_SHAPE, draft.shape.as_json())
                trial.set_user_attr(_WIDTHS, draft.widths)
                student = self._climbed(trial, draft)
                if student is not None:
                    model, score = self._school.written(student, self.precision)
        except (ModelError, NotFiniteError, TrainingError) as error:  # there are other students
            why = str(error)
        if student is None:
            self._given_up(trial, why)
            return
        self._save(str(trial.number), student, model)
        self._study.tell(trial, score)

    def _twin(self, trial: Trial, draft: Draft) -> FrozenTrial | None:
        """An earlier trial of the very same student and recipe, unless its process died on it."""
        from optuna.trial import TrialState

        recipe, left_out = self._choices.recipe(trial.params), dict(draft.shape.direction.left_out)
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        for one in self._study.get_trials(deepcopy=False, states=states):
            told = one.user_attrs
            if (
                one.number != trial.number
                and _MENDED not in told
                and told.get(_WIDTHS) == draft.widths
                and told[_SHAPE]["left_out"] == left_out
                and self._choices.recipe(one.params) == recipe
            ):
                return one
        return None

    def _climbed(self, trial: Trial, draft: Draft) -> nn.Module | None:
        """The student at the top, or None where it was given up on the way."""
        recipe, keep = self._choices.recipe(trial.params), trial.user_attrs.get(_UNIFORM, False)
        for rung, epochs in enumerate(self._rungs):
            student = self._school.taught(draft.shape, epochs, recipe)
            trial.report(self._school.score(student), THIRD**rung)
            if epochs == self._rungs[-1]:
                return student
            if (
                trial.should_prune() and not keep
            ):  # asked in any case: that is how others come to compete with it
                break
        return None

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
            if not _is_left(one):
                continue
            try:
                self._study.tell(one.number, state=TrialState.FAIL)
            except ValueError:  # another process was faster
                continue
            told = {_UNIFORM: bool(one.user_attrs.get(_UNIFORM))}
            self._study.enqueue_trial(one.params, user_attrs=told)

    def _widths(self, shape: Shape) -> dict[str, int]:
        return self._school.space.widths(shape.direction, shape.scale)

    def _save(self, name: str, student: nn.Module, model: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._folder / f"{name}.onnx", model, mode=PUBLIC)
        save_weights(student, self._folder / f"{name}.safetensors")

    def _told(self, trial: FrozenTrial) -> Finished:
        assert trial.value is not None
        return Finished(
            number=trial.number,
            values=dict(trial.params),
            shape=Shape.from_json(trial.user_attrs[_SHAPE]),
            score=trial.value,
            uniform=bool(trial.user_attrs.get(_UNIFORM)),
            mends=trial.user_attrs.get(_MENDED),
            weights=self._folder / f"{trial.user_attrs.get(_NAME, trial.number)}.safetensors",
        )


def _is_left(trial: FrozenTrial) -> bool:
    """Whether the process that ran a trial is gone, as far as this machine can know."""
    if _WORKER not in trial.user_attrs:  # it ended, or is about to say who it is
        begun = trial.datetime_start
        return begun is not None and (datetime.now() - begun).total_seconds() > _NAMELESS  # noqa: DTZ005  # as Optuna's
    host, process, started = trial.user_attrs[_WORKER]
    return bool(host == socket.gethostname() and _started(process) != started)


def _started(process: int) -> Any:
    """When a process of this machine began, in ticks since it started (proc(5)); None where there is none of that number."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    return None
