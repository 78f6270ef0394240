"""The contest: by hand, fair at any time, quick where one is better."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import MessageError, SettingError
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.learn.contest import STAKES, Contest, Score

if TYPE_CHECKING:
    from edgestill.core.jsonio import JsonObject

tosses = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60)


def play(rounds: list[tuple[bool, bool]], contest: Contest | None = None) -> Contest:
    """A contest of one challenger after (challenger right, serving right) rounds."""
    contest = contest or Contest.among(1)
    for challenger, serving in rounds:
        contest = contest.after((challenger,), serving=serving)
    return contest


def test_wealth_by_hand() -> None:
    """A win makes a part 1 + s times as large, a loss 1 - s times, and then a share is dealt out evenly; draws change nothing."""
    contest = play([(True, False), (True, True), (False, False), (False, True)])
    first = 1 + np.array(STAKES)
    first = first * 3 / 4 + first.mean() / 4
    second = first * (1 - np.array(STAKES))
    second = second * 5 / 6 + second.mean() / 6
    assert contest.scores[0].wealth == pytest.approx(second)
    assert (contest.scores[0].wins, contest.scores[0].losses) == (1, 1)
    assert (contest.samples, contest.served) == (4, 2)
    assert contest.agreement(0) == 0.5


@given(tosses)
def test_a_fair_toss_leaves_wealth_unchanged_on_average(rounds: list[tuple[bool, bool]]) -> None:
    """Whatever came before: the mean over the next win and the next loss is the wealth of now (a martingale)."""
    score = play(rounds).scores[0]
    won = score.after(wins=1, losses=0).mean_wealth
    lost = score.after(wins=0, losses=1).mean_wealth
    assert (won + lost) / 2 == pytest.approx(score.mean_wealth)


@pytest.mark.parametrize(("losses", "wins"), [(10, 14), (100, 19), (1_000, 24)])
def test_who_was_behind_for_long_is_seen_to_be_ahead_soon(losses: int, wins: int) -> None:
    """However much was lost before, a few wins in a row decide: twice as many as without it after ten losses, 24 after a thousand."""
    before = [(False, True)] * losses
    assert [play(before + [(True, False)] * n).winner(0.05) for n in (wins - 1, wins)] == [None, 0]


def test_a_part_of_the_wealth_is_never_bet() -> None:
    """Whoever loses every toss has a twelfth of it left after 20 of them, and a seventieth after a thousand."""
    assert play([(False, True)] * 20).scores[0].mean_wealth == pytest.approx(1 / 12, rel=0.1)
    assert play([(False, True)] * 1_000).scores[0].mean_wealth == pytest.approx(1 / 70, rel=0.1)


@pytest.mark.parametrize("behind", [0, 30])
def test_looking_after_every_sample_errs_no_more_often_than_the_level(behind: int) -> None:
    """Equal opponents, 500 contests of 200 tosses, looked at after each: at most 5 % are ever won, with some slack; nor more after losses."""
    rng, won = np.random.default_rng(0), 0
    for _ in range(500):
        score = play([(False, True)] * behind).scores[0]
        for one in rng.random(200) < 0.5:
            score = score.after(wins=int(one), losses=int(not one))
            if score.mean_wealth >= 1 / 0.05:
                won += 1
                break
    assert won <= 37


def test_a_challenger_that_is_clearly_better_wins_soon() -> None:
    """Right in nine tosses of ten, it has won after 30 in nearly all of 200 contests."""
    rng, won = np.random.default_rng(1), 0
    for _ in range(200):
        rounds = [(bool(one), not one) for one in rng.random(30) < 0.9]
        won += any(play(rounds[: n + 1]).winner(0.05) is not None for n in range(30))
    assert won >= 190


def test_the_fewest_wins_that_can_decide() -> None:
    """Seven in a row are enough at level 0.05 for one challenger, eight for two; one less is not."""
    assert [play([(True, False)] * n).winner(0.05) for n in (6, 7)] == [None, 0]
    two = Contest.among(2)
    for _ in range(7):
        two = two.after((False, True), serving=False)
    assert two.winner(0.05) is None
    assert two.after((False, True), serving=False).winner(0.05) == 1


def test_the_clearest_of_several_wins() -> None:
    """Both passed; the one with fewer losses is taken."""
    contest = Contest.among(2)
    for _ in range(30):
        contest = contest.after((True, True), serving=False)
    contest = contest.after((False, True), serving=True)
    assert contest.winner(0.05) == 1
    assert contest.agreement(1) == 1.0
    assert contest.agreement(0) == pytest.approx(30 / 31)


def test_wealth_stays_a_number() -> None:
    """Ten thousand wins, or losses, neither overflow nor end the game."""
    score = Score()
    for _ in range(10_000):
        score = score.after(wins=1, losses=0)
    assert math.isfinite(score.mean_wealth)
    for _ in range(10_000):
        score = score.after(wins=0, losses=1)
    assert score.mean_wealth > 0


@given(tosses)
def test_a_contest_survives_a_restart(rounds: list[tuple[bool, bool]]) -> None:
    """Written as JSON and read, it goes on as before; what is no contest is refused."""
    contest = play(rounds)
    back = Contest.from_fields(Fields(parse_object(canonical(contest.as_json()), where="t"), "t"))
    assert back == contest
    damages: list[JsonObject] = [{"served": contest.samples + 1}, {"scores": []}, {"samples": -1}]
    for wrong in damages:
        with pytest.raises(MessageError):
            Contest.from_fields(Fields(contest.as_json() | wrong, "contest"))


def test_settings_out_of_range_are_refused() -> None:
    """A level is a probability, and there is someone to challenge."""
    for level in (0.0, 1.0, math.nan):
        with pytest.raises(SettingError, match="a level is out of range"):
            Contest.among(1).winner(level)
    with pytest.raises(SettingError, match="a contest without challengers"):
        Contest.among(0)
    assert Contest.among(1).agreement(0) == 0


def test_a_run_is_one_toss() -> None:
    """Who alone was right more often has won it, once; a run that nobody has won is none. Agreement counts samples."""
    run = [((True,), False), ((True,), False), ((False,), True), ((True,), True)]
    one = Contest.among(1).after_run(run)
    single = Contest.among(1).after((True,), serving=False)
    assert one.scores[0].wealth == single.scores[0].wealth
    assert (one.scores[0].wins, one.scores[0].losses, one.scores[0].tosses) == (2, 1, 1)
    assert one.agreement(0) == 0.75
    drawn = Contest.among(1).after_run(run[1:3])
    assert drawn.scores[0].wealth == Contest.among(1).scores[0].wealth
    assert (drawn.samples, drawn.scores[0].tosses) == (2, 0)
    assert Contest.among(2).after_run([]) == Contest.among(2)


def test_attack_luck_that_comes_in_runs_adopts_no_head_that_is_no_better() -> None:
    """Attack: every outcome comes four times. Told as runs it is as rare as promised; told as samples it is usual."""
    adopted = {"runs": 0, "samples": 0}
    for seed in range(200):
        rng, together, apart = np.random.default_rng(seed), Contest.among(2), Contest.among(2)
        won = set()
        for _ in range(100):
            first, second, serving = (rng.random(3) < 0.8).tolist()
            together = together.after_run([((first, second), serving)] * 4)
            won |= {"runs"} if together.winner(0.05) is not None else set()
            for _ in range(4):
                apart = apart.after((first, second), serving=serving)
                won |= {"samples"} if apart.winner(0.05) is not None else set()
        for name in won:
            adopted[name] += 1
    assert adopted["runs"] <= 16  # 1 in 20, and three deviations
    assert adopted["samples"] > 100
