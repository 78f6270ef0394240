"""A search as a whole: it keeps its budgets, goes on where it was stopped, and tells the chosen by data that chose nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from inherit_worlds import ResNet, tensor
from lab_worlds import motion_net, motions
from search_worlds import HELDOUT, HERE, RECIPE, TRAIN, drafts, profile, searched, teacher
from torch import nn

from edgestill.core.budget import Budget
from edgestill.core.errors import ClassCountError, DataError, SettingError
from edgestill.core.hardware import HardwareClass
from edgestill.infer.policy import Policy
from edgestill.lab.data.samples import Samples
from edgestill.lab.data.source import ArraySource
from edgestill.lab.distil import distill
from edgestill.lab.fits import as_source
from edgestill.lab.inherit.knobs import Knob
from edgestill.lab.packing.material import labelled
from edgestill.lab.score import scores
from edgestill.lab.searching.draft import LEAST_SCALE, Shape
from edgestill.lab.searching.factory import FactorySpace
from edgestill.lab.searching.halves import halves
from edgestill.lab.searching.hunt import JOURNAL
from edgestill.lab.searching.profile import Profile, Timed
from edgestill.lab.searching.school import right
from edgestill.lab.searching.search import search
from edgestill.lab.searching.settings import Search
from edgestill.lab.searching.shape import UNIFORM
from edgestill.lab.searching.workshop import workshop

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from edgestill.lab.progress import Progress
    from edgestill.lab.searching.found import Found

SMALL_SHAPE = Shape(direction=UNIFORM, scale=0.3, precision="floats")
SMALL, LARGE = Budget(size="15 kB"), Budget(size="17 kB")
ROOM = 512
"""Bytes by which two bundles of one shape may differ: their figures have more or fewer digits."""


@cache
def done() -> tuple[Path, Found]:
    """One search that several tests look at."""
    folder = Path(mkdtemp())
    return folder, searched(folder, SMALL, LARGE)


def test_what_is_found_keeps_its_budget_as_a_bundle() -> None:
    """Packed, with everything that a bundle has; the larger budget's student is the larger one."""
    _, found = done()
    sizes = []
    for budget in (SMALL, LARGE):
        uniform = next(one for one in found.points if one.uniform and one.budget == budget)
        sizes.append(found.run(uniform).pack().manifest.size)
        assert found.run(found.pick(budget), budget).pack().manifest.size <= (budget.size or 0)
        assert sizes[-1] <= (budget.size or 0)
    assert sizes[0] < sizes[1]


def test_the_promised_size_is_nearly_that_of_the_bundle() -> None:
    """A bundle of another name or figures differs by some bytes only: never more than was promised."""
    _, found = done()
    point = found.pick(LARGE)
    size = found.run(point).pack().manifest.size
    assert point.footprint.size - 600 <= size <= point.footprint.size


def test_the_uniform_student_of_each_budget_is_there_to_be_compared_with() -> None:
    """It was trained to the end, and the gain over itself is nothing."""
    _, found = done()
    uniform = [one for one in found.points if one.uniform]
    assert {one.budget for one in uniform} == {SMALL, LARGE}
    assert all(one.over_uniform is not None and one.over_uniform.value == 0 for one in uniform)
    assert all(len(set(one.shape.direction.shares.values())) == 1 for one in uniform)


def test_the_unseen_figure_is_the_files_on_data_that_chose_nothing() -> None:
    """The two parts of the held-out data have no sample in common; the file is the student's, as far as int8 lets it be."""
    _, found = done()
    judge, unseen = (labelled(one, "x") for one in halves(HELDOUT, 0.5, RECIPE.seed))
    assert len(judge) + len(unseen) == len(HELDOUT)
    point = found.points[0]
    model = point.file.read_bytes()
    assert point.unseen is not None
    assert point.unseen.value == pytest.approx(right(model, unseen, found.hardware_class).mean())
    assert point.judged == pytest.approx(right(model, judge, found.hardware_class).mean())
    theirs = scores(found.student(point), ArraySource.of(unseen)).mean()
    assert abs(theirs - point.unseen.value) < 0.1
    assert len(model) < point.footprint.size


def test_the_same_call_finds_the_same_and_trains_nothing() -> None:
    """All is in the folder."""
    folder, found = done()
    before = (folder / JOURNAL).read_bytes()
    again = searched(folder, SMALL, LARGE)
    assert [one.as_json() for one in again.points] == [one.as_json() for one in found.points]
    assert (folder / JOURNAL).read_bytes()[: len(before)] == before


def test_more_trials_go_on_from_those_there_are(tmp_path: Path) -> None:
    """Three and then two more are the same students as five at once."""
    settings = {"settings": Search(trials=5)}
    whole = searched(tmp_path / "whole", LARGE, **settings)
    searched(tmp_path / "parts", LARGE)
    parts = searched(tmp_path / "parts", LARGE, **settings)
    assert [one.judged for one in parts.points] == [one.judged for one in whole.points]
    assert [one.shape for one in parts.points] == [one.shape for one in whole.points]


def test_another_recipe_is_another_search(tmp_path: Path) -> None:
    """Its trials are not mixed with those of the first, in the same folder."""
    first = searched(tmp_path, LARGE, settings=Search(trials=1))
    other = searched(tmp_path, LARGE, settings=Search(trials=1), recipe=RECIPE.__class__(epochs=1))
    assert {one.name.partition("/")[0] for one in first.points}.isdisjoint(
        one.name.partition("/")[0] for one in other.points
    )


def test_progress_counts_students_over_all_budgets() -> None:
    """After the teacher was asked."""
    told: list[Progress] = []
    searched(Path(mkdtemp()), SMALL, LARGE, settings=Search(trials=2), progress=told.append)
    students = [one.done for one in told if one.phase == "searching"]
    assert students == [1, 2, 3, 4]
    assert told[0].phase == "asking"


def test_a_front_is_made_where_no_budget_is_asked_for(tmp_path: Path) -> None:
    """Of latencies and sizes by turns, from small to large; none of it is beaten."""
    found = searched(tmp_path, settings=Search(trials=1, budgets=2))
    budgets = [one.budget for one in found.points]
    assert {(one.latency is None, one.size is None) for one in budgets} == {(True, False), (False, True)}
    assert all(one in found.points for one in found.front)
    assert len(found.front) >= 1


def test_latencies_are_measured_here_and_the_best_is_made_to_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a profile that promises twice the time, the best is a good deal too small: it is made anew, once, as the same direction."""
    slow = [
        Timed(precision=one.precision, work=one.work, p50=one.p50 * 40, p95=one.p95 * 40)
        for one in profile().models
    ]
    monkeypatch.setattr(
        "edgestill.lab.searching.workshop.taken_here", lambda *_, **__: Profile(HERE.name, 1, slow)
    )
    budget = Budget(latency=profile().seconds(drafts().of(SMALL_SHAPE)) * 40)
    told: dict[str, Any] = {"settings": Search(trials=1), "profile": None, "measure": True}
    found = searched(tmp_path, budget, **told)
    assert all(one.footprint.source == "measured" for one in found.points)
    first, anew = sorted(found.points, key=lambda one: "mended" in str(one.weights))
    assert anew.shape.direction == first.shape.direction
    assert anew.shape.scale > first.shape.scale
    assert anew.uniform
    again = searched(tmp_path, budget, **told)
    assert [one.name for one in again.points] == [one.name for one in found.points]


def test_a_profile_that_is_brought_is_what_counts(tmp_path: Path) -> None:
    """A device of this very class may be many times as slow: this machine's clock has no say."""
    budget = Budget(latency=profile().seconds(drafts().of(SMALL_SHAPE)))
    found = searched(tmp_path, budget, settings=Search(trials=1), measure=True)
    assert all(one.footprint.source == "predicted" for one in found.points)
    assert all(one.fits(budget) for one in found.points)


def test_one_width_is_one_student_and_is_trained_once(tmp_path: Path) -> None:
    """There is nothing beside which it could be wide: with every recipe the same student, and no trial twice."""

    def make(*, seed: int, width: int) -> nn.Module:
        return motion_net(width, width, width, seed=seed)

    space = FactorySpace(make, {"width": (4, 24)}, name="one width")
    settings = Search(trials=2, recipe={"lr": [1e-2, 2e-2]})
    found = searched(tmp_path, LARGE, space=space, settings=settings)
    assert len({(tuple(one.widths.items()), one.recipe.lr) for one in found.points}) == len(found.points)


def test_where_nothing_survives_the_reasons_are_told(tmp_path: Path) -> None:
    """A coded error, not a crash, and what became of the students is in it."""
    with pytest.raises(SettingError, match=r"no student was trained to the end.*not finite"):
        searched(
            tmp_path,
            LARGE,
            settings=Search(trials=2),
            recipe=RECIPE.__class__(epochs=2, optimiser="sgd", lr=1e30),
            measure=True,
        )


def test_bundles_are_calibrated_on_the_data_that_chose_them(tmp_path: Path) -> None:
    """So that what is told of the other part is of data that nothing was fitted on."""
    del tmp_path
    _, found = done()
    judge, unseen = halves(HELDOUT, 0.5, RECIPE.seed)
    run = found.run(found.points[0])
    assert as_source(run.validation, "x").digest == as_source(judge, "x").digest
    assert as_source(found.unseen, "x").digest == as_source(unseen, "x").digest


def test_values_of_the_recipe_are_tried(tmp_path: Path) -> None:
    """The usual one first; each point says what it was trained with."""
    settings = Search(trials=4, recipe={"lr": [1e-2, 1e-4]})
    found = searched(tmp_path, LARGE, settings=settings)
    uniform = next(one for one in found.points if one.uniform)
    assert uniform.recipe.lr == 1e-2
    assert {one.recipe.lr for one in found.points} <= {1e-2, 1e-4}


def test_a_callable_of_ones_own_is_searched_by_its_arguments(tmp_path: Path) -> None:
    """Without anything inherited; the arguments are what is found."""

    def make(*, seed: int, width: int, last: int) -> nn.Module:
        return motion_net(width, width, last, seed=seed)

    space = FactorySpace(make, {"width": (4, 24), "last": (4, 24)}, name="net")
    assert space.knobs[0] == Knob(name="width", units=24)
    found = searched(tmp_path, LARGE, space=space, settings=Search(trials=2))
    assert {"width", "last"} == set(found.points[0].widths)
    assert isinstance(found.student(found.points[0]), nn.Module)


def test_a_student_that_diverges_is_given_up_and_the_search_goes_on(tmp_path: Path) -> None:
    """Of one learning rate no student survives; of the other they do."""
    settings = Search(trials=3, recipe={"lr": [1e-2, 1e30]})
    found = searched(tmp_path, LARGE, settings=settings, recipe=RECIPE.__class__(epochs=2, optimiser="sgd"))
    assert found.points
    assert all(np.isfinite(one.judged) for one in found.points)


def test_what_fits_in_no_width_is_passed_over_and_not_counted(tmp_path: Path) -> None:
    """Where all blocks take more room than there is, shallower students are found, within the same number of trials."""
    network, example = ResNet(blocks=3), tensor(90, 3, 8, 8)
    train = Samples.of(example.numpy(), np.arange(90) % 3, classes=3)
    heldout = Samples.of(tensor(90, 3, 8, 8).numpy(), np.arange(90) % 3, classes=3)
    shop = workshop(network, train, heldout, budgets=[LARGE], recipe=RECIPE)
    deep = shop.drafts.of(Shape(direction=UNIFORM, scale=LEAST_SCALE, precision="floats"))
    int8 = shop.drafts.of(Shape(direction=UNIFORM, scale=LEAST_SCALE, precision="int8"))
    budget = Budget(size=min(deep.size, int8.size) - ROOM)
    recipe = RECIPE.__class__(epochs=1, soft_weight=0.5)
    found = search(
        network,
        train,
        validation=heldout,
        folder=tmp_path,
        budgets=[budget],
        recipe=recipe,
        settings=Search(trials=1),
    )
    assert len(found.points) == 1
    point = found.pick(budget)
    assert not point.uniform
    assert point.over_uniform is None
    assert sum(point.shape.direction.left_out.values()) > 0


RUN = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from search_worlds import searched
from edgestill.core.budget import Budget
from edgestill.lab.searching.school import right
from edgestill.lab.searching.search import search
from edgestill.lab.searching.settings import Search
from edgestill.lab.searching.shape import UNIFORM
from edgestill.lab.searching.workshop import workshop
searched(Path({folder!r}), Budget(size="17 kB"), settings=Search(trials=4))
"""


def test_what_a_killed_process_left_half_done_is_tried_again(tmp_path: Path) -> None:
    """Killed within a trial; the same call then ends with as many students, the uniform one among them."""
    told = RUN.format(paths=[str(Path(__file__).parent)], folder=str(tmp_path))
    running = subprocess.Popen([sys.executable, "-c", told], start_new_session=True)
    journal = tmp_path / JOURNAL
    deadline = time.monotonic() + 120
    while not (journal.exists() and b'"shape"' in journal.read_bytes()):
        assert running.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    found = searched(tmp_path, LARGE, settings=Search(trials=4))
    assert sum(one.uniform for one in found.points) == 1
    whole = searched(tmp_path / "whole", LARGE, settings=Search(trials=4))
    uniform = [next(one.judged for one in each.points if one.uniform) for each in (found, whole)]
    assert uniform[0] == uniform[1]


def test_two_processes_search_side_by_side(tmp_path: Path) -> None:
    """On one journal: together they try as many students as are wanted, or one more."""
    told = RUN.format(paths=[str(Path(__file__).parent)], folder=str(tmp_path))
    both = [subprocess.Popen([sys.executable, "-c", told]) for _ in range(2)]
    assert [one.wait(timeout=300) for one in both] == [0, 0]
    found = searched(tmp_path, LARGE, settings=Search(trials=4))
    assert found.points
    numbers = [one.name for one in found.points]
    assert len(numbers) == len(set(numbers))


def test_machines_share_a_database(tmp_path: Path) -> None:
    """The trials are in it and not in the folder; another folder goes on with them, and tells of the students that it has."""
    url = f"sqlite:///{tmp_path}/trials.db"
    first = searched(tmp_path / "one", LARGE, storage=url)
    assert first.points
    assert not (tmp_path / "one" / JOURNAL).exists()
    more = searched(tmp_path / "two", LARGE, storage=url, settings=Search(trials=5))
    assert {one.name for one in more.points}.isdisjoint(one.name for one in first.points)


def test_bad_wishes_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    """A budget that bounds nothing or cannot be kept; hardware nobody timed; too little data; a head of other classes."""
    with pytest.raises(SettingError, match="a budget that no student is too large for"):
        searched(tmp_path, Budget(escalation=0.2))
    with pytest.raises(SettingError, match=r"the bound on size is too tight; at budget: size"):
        searched(tmp_path, Budget(size="5 kB"))
    elsewhere = HardwareClass("aarch64-dotprod-onnxruntime")
    with pytest.raises(SettingError, match="latencies of other hardware than this; at profile"):
        searched(tmp_path, Budget(latency="1 ms"), hardware_class=elsewhere, profile=None)
    with pytest.raises(SettingError, match="latencies of other hardware"):
        searched(tmp_path, Budget(latency="1 ms"), hardware_class=elsewhere)
    with pytest.raises(DataError, match="too little held-out data to choose students"):
        search_with(tmp_path, motions(40))
    with pytest.raises(ClassCountError):
        searched_by(tmp_path, motion_net(4, 4, 4, classes=5))


def search_with(folder: Path, heldout: object) -> None:
    """With other held-out data."""
    search(teacher(), TRAIN, validation=heldout, folder=folder, budgets=[LARGE])  # type: ignore[arg-type]  # samples


def searched_by(folder: Path, other: nn.Module) -> None:
    """With another teacher."""
    search(other, TRAIN, validation=HELDOUT, folder=folder, budgets=[LARGE])


def test_without_a_student_the_largest_uniform_one_is_distilled() -> None:
    """A budget is enough: the part of the teacher that fits it, with its index map, so that the teacher can absorb it."""
    run = distill(teacher(), TRAIN, validation=HELDOUT, budget=LARGE, recipe=RECIPE, inherit=True)
    packed = run.pack(Policy(labels=("a", "b", "c")))
    assert LARGE.size is not None
    assert 0.9 * LARGE.size < packed.manifest.size <= LARGE.size
    assert run.index_map is not None
    assert sum(map(torch.numel, run.student.parameters())) < sum(map(torch.numel, teacher().parameters()))
    with pytest.raises(SettingError, match="neither a student nor a budget for one"):
        distill(teacher(), TRAIN, validation=HELDOUT, recipe=RECIPE)
