"""Heads on trial: asked before they learn, judged fairly, kept over restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgestill.core.errors import MessageError
from edgestill.core.jsonio import Fields
from edgestill.device.sums import Sample
from edgestill.device.trial import Trial
from edgestill.learn.statistics import Head

if TYPE_CHECKING:
    from edgestill.core.jsonio import JsonObject

RIGHT = Head(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
WRONG = Head(np.eye(2, dtype=np.float32)[::-1].copy(), np.zeros(2, np.float32))


def sample(label: int, *, named: int, audit: bool = False) -> Sample:
    """Features that say the label."""
    one_hot = np.eye(2, dtype=np.float32)[label]
    return Sample(features=one_hot, target=one_hot, weight=1.0, named=named, audit=audit, seen=1, window=0)


def test_without_heads_nothing_is_asked() -> None:
    """The first samples only teach."""
    trial = Trial(1, recent=8)
    trial.ask(sample(0, named=1))
    assert trial.contest.samples == 0


def test_the_head_that_is_right_wins_and_tells_what_it_said() -> None:
    """Its scores on the samples it was asked, the newest so many, calibrate it later."""
    trial = Trial(2, recent=8)
    trial.renew([WRONG, RIGHT])
    for number in range(12):
        trial.ask(sample(number % 2, named=1 - number % 2))
    assert trial.winner(0.05, least=8) == 1
    scores, targets = trial.answers(1)
    assert scores.shape == targets.shape == (8, 2)
    assert (scores.argmax(axis=1) == targets.argmax(axis=1)).all()


def test_nobody_wins_before_its_temperature_can_be_fitted() -> None:
    """However clear it is."""
    trial = Trial(1, recent=64)
    trial.renew([RIGHT])
    for _ in range(20):
        trial.ask(sample(0, named=1))
    assert trial.winner(0.05, least=21) is None
    assert trial.winner(0.05, least=20) == 0


def test_one_that_is_behind_on_audits_does_not_win() -> None:
    """Ten wins where it was asked, and one loss in the only audit."""
    trial = Trial(1, recent=64)
    trial.renew([RIGHT])
    for _ in range(10):
        trial.ask(sample(0, named=1))
    assert trial.winner(0.05, least=1) == 0
    audit = sample(0, named=1, audit=True)
    lost = Sample(
        features=audit.features[::-1].copy(),
        target=audit.target,
        weight=1.0,
        named=0,
        audit=True,
        seen=1,
        window=0,
    )
    trial.ask(lost)
    assert trial.contest.winner(0.05) == 0
    assert trial.winner(0.05, least=1) is None
    trial.ask(audit)
    assert trial.winner(0.05, least=1) == 0


def test_a_trial_goes_on_after_a_restart() -> None:
    """Its scores are gathered again before it can win."""
    trial, again = Trial(1, recent=64), Trial(1, recent=64)
    trial.renew([RIGHT])
    for _ in range(20):
        trial.ask(sample(0, named=1))
    again.recall(Fields(trial.as_json(), "trial"))
    assert again.as_json() == trial.as_json()
    assert again.winner(0.05, least=1) is None
    again.renew([RIGHT])
    again.ask(sample(0, named=1))
    assert again.winner(0.05, least=1) == 0


def test_attack_a_trial_of_other_heads_is_refused() -> None:
    """And changes nothing."""
    trial = Trial(2, recent=8)
    damages: list[JsonObject] = [Trial(1, recent=8).as_json(), {}, {"contest": [], "audits": {}}]
    for wrong in damages:
        with pytest.raises(MessageError):
            trial.recall(Fields(wrong, "trial"))
    assert trial.as_json() == Trial(2, recent=8).as_json()


def test_alike_samples_in_a_row_are_one_toss() -> None:
    """Those of one class, four at most; what changes between is counted apart."""
    trial = Trial(1, recent=64, alike=4)
    trial.renew([RIGHT])
    for label in (0, 0, 0, 1, 1, 1, 1, 1, 1, 0):
        trial.ask(sample(label, named=1 - label))
    score = trial.contest.scores[0]
    assert (score.tosses, score.wins) == (3, 9)  # three, four, two; the last one may go on
    trial.ask(sample(1, named=0))
    assert trial.contest.scores[0].tosses == 4


def test_it_takes_as_many_runs_as_samples_that_stand_alone() -> None:
    """The head that is right wins after as many tosses, be they of one sample or of four."""
    needed = {}
    for length in (1, 4):
        trial, tosses = Trial(1, recent=64, alike=4), 0
        trial.renew([RIGHT])
        while trial.contest.winner(0.05) is None:
            for _ in range(length):
                trial.ask(sample(tosses % 2, named=1 - tosses % 2))
            tosses += 1
        needed[length] = trial.contest.scores[0].tosses
    assert needed[1] == needed[4] <= 8
