"""Whether distilling helps, asked of real digits: a good teacher, a broken one, and what asking must leave alone."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from lab_worlds import same_weights
from sklearn.datasets import load_digits
from torch import Tensor, nn

from edgestill.core.errors import DataError, SettingError
from edgestill.lab import compare as module
from edgestill.lab.compare import Comparison, Slice, compare
from edgestill.lab.data.samples import Samples
from edgestill.lab.data.seeds import uniform
from edgestill.lab.data.source import ArraySource
from edgestill.lab.distil import distill
from edgestill.lab.notices import DistillingHurtsWarning
from edgestill.lab.recipe import Recipe
from edgestill.lab.teacher.asking import Asking
from edgestill.lab.training.train import Lesson, train_

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.lab.data.seeds import Seeds

torch.set_num_threads(1)

RECIPE = Recipe(epochs=20, batch=16, lr=1e-2, soft_weight=0.9, tau=3.0)
SLICE = Slice(samples=40, seeds=3)


class Dense(nn.Module):
    """64 pixels, one hidden layer, ten classes."""

    def __init__(self, hidden: int, outputs: int = 10) -> None:
        super().__init__()
        self.first = nn.Linear(64, hidden)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(torch.relu(self.first(x)))
        return logits


def dense(hidden: int, seed: int = 0, outputs: int = 10) -> Dense:
    """Its weights depend on the seed only."""
    torch.manual_seed(seed)
    return Dense(hidden, outputs)


@cache
def digits() -> tuple[Samples, Samples, Samples]:
    """For the teacher, for the student, held out; 1797 real digits of 8 by 8 pixels."""
    found = load_digits()
    inputs, labels = (found.data / 16).astype(np.float32), found.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    whole = Samples.of(inputs[order], labels[order], classes=10)
    place = np.arange(len(whole))
    return (
        whole.where(place < 1000),
        whole.where((place >= 1000) & (place < 1200)),
        whole.where(place >= 1200),
    )


def source(samples: Samples) -> ArraySource:
    """Without views."""
    return ArraySource.of(samples)


@cache
def teacher(*, broken: bool = False) -> Dense:
    """Trained on a thousand digits; the broken one was told the labels of other digits."""
    shown = digits()[0]
    if broken:
        shown = replace(shown, labels=np.random.default_rng(1).permutation(shown.labels))
    network = dense(64, seed=3)
    train_(network, Lesson.of(shown), Recipe(epochs=25, batch=64, lr=1e-2))
    return network


def asking() -> Asking:
    """The teacher, whose answers are kept."""
    return Asking(teacher=teacher())


def asked(
    network: nn.Module, student: nn.Module | None = None, recipe: Recipe = RECIPE, size: Slice = SLICE
) -> Comparison:
    """What comes of comparing on digits."""
    _, few, heldout = digits()
    return compare(
        Asking(teacher=network), student or dense(16), source(few), source(heldout), recipe=recipe, size=size
    )


def test_a_good_teacher_helps_where_labels_are_few() -> None:
    """Ten labels of each digit, six hundred digits held out, and time enough to take in soft labels."""
    recipe = replace(RECIPE, epochs=60, tau=4.0)
    found = asked(teacher(), recipe=recipe, size=Slice(samples=100, seeds=3))
    assert found.gain.verdict == "helps"
    assert found.gain.value > 0.03
    assert found.sentence.startswith("distilling helps on a slice of 100 samples: +0.0")


def test_a_broken_teacher_never_helps() -> None:
    """One that was taught nonsense hurts, and the sentence says what to try."""
    found = asked(teacher(broken=True))
    assert found.gain.verdict == "hurts"
    assert "HURTS" in found.sentence
    assert "try more epochs, a smaller soft_weight or a better teacher" in found.sentence


def test_the_same_question_has_the_same_answer() -> None:
    """Everything is seeded, and the caller's generator is not moved."""
    size, network, student = Slice(samples=20, epochs=1, seeds=2), teacher(), dense(16)
    torch.manual_seed(7)
    first = asked(network, student, size=size)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1))
    assert asked(network, student, size=size) == first


def test_teacher_and_student_are_left_as_they_were() -> None:
    """Weights bit for bit, and their modes."""
    network, student = copy.deepcopy(teacher()).train(), dense(16).train()
    asked(network, student, size=Slice(samples=20, epochs=1, seeds=2))
    assert same_weights(network, teacher())
    assert same_weights(student, dense(16))
    assert network.training
    assert student.training


def test_the_cost_is_equal_by_count() -> None:
    """A teacher's forward pass is 9472 operations, a student's step 3 * 2368: one pass over the data is worth 4/3 epochs."""
    found = asked(teacher(), size=Slice(samples=20, epochs=3, seeds=2))
    assert (found.distilled_epochs, found.plain_epochs) == (3, 4)
    assert found.cost_ratio == pytest.approx(4 / (3 + 4 / 3))


def test_a_teacher_that_is_asked_at_every_step_costs_every_epoch() -> None:
    """Without a cache three epochs of asking are worth four more of plain training."""
    _, few, heldout = digits()
    size = Slice(samples=20, epochs=3, seeds=2)
    asking = Asking(teacher=teacher(), when="live")
    found = compare(asking, dense(16), source(few), source(heldout), recipe=RECIPE, size=size)
    assert (found.plain_epochs, found.cost_ratio) == (7, 1)


def test_where_equal_cost_is_out_of_reach_the_ratio_says_so() -> None:
    """A plain student is trained ten times the epochs at most."""
    few = source(digits()[1])
    epochs, ratio = module._equal_cost(Asking(teacher=dense(2000)), dense(1), few, replace(RECIPE, epochs=1))
    assert epochs == 10
    assert ratio == pytest.approx(10 / (1 + 2 * 74 * 2000 / (3 * 2 * 74)))


def test_a_recipes_epochs_are_the_slices_where_it_names_none() -> None:
    """And a slice larger than the data is all of it."""
    found = asked(teacher(), recipe=replace(RECIPE, epochs=1), size=Slice(samples=10_000, seeds=2))
    assert (found.distilled_epochs, found.samples) == (1, 200)


def test_each_seed_may_bring_its_own_student() -> None:
    """So that the spread is that of first weights too; both of a pair begin alike."""
    made: list[int] = []

    def make(seed: int) -> nn.Module:
        made.append(seed)
        return dense(16, seed)

    _, few, heldout = digits()
    size = Slice(samples=20, epochs=1, seeds=3)
    recipe = replace(RECIPE, seed=5)
    compare(asking(), make, source(few), source(heldout), recipe=recipe, size=size)
    assert sorted(set(made)) == [5, 6, 7]


def test_progress_is_told_after_each_pair() -> None:
    """Of as many as there are seeds."""
    told: list[tuple[int, int]] = []
    _, few, heldout = digits()
    compare(
        asking(),
        dense(16),
        source(few),
        source(heldout),
        recipe=RECIPE,
        size=Slice(samples=20, epochs=1, seeds=2),
        progress=lambda done, of: told.append((done, of)),
    )
    assert told == [(1, 2), (2, 2)]


def test_a_hint_alone_can_be_compared() -> None:
    """A recipe that only follows a layer distils, too."""
    recipe = replace(RECIPE, soft_weight=0.0, hint="first=first", hint_weight=1.0)
    found = asked(teacher(), recipe=recipe, size=Slice(samples=40, epochs=2, seeds=2))
    assert found.plain != found.distilled


@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_other_tasks_are_compared(task: str) -> None:
    """Ten yes-or-no answers, or ten values; a teacher of random weights does not help."""
    few, heldout = (
        ArraySource(torch.from_numpy(one.inputs), torch.eye(10)[torch.from_numpy(one.labels)], task, 10)  # type: ignore[arg-type]  # one of the two
        for one in digits()[1:]
    )
    recipe = replace(RECIPE, epochs=5, soft_weight=1.0)
    found = compare(
        Asking(teacher=dense(64, 9)), dense(16), few, heldout, recipe=recipe, size=Slice(samples=60, seeds=2)
    )
    assert found.gain.value < 0
    assert found.gain.verdict in {"hurts", "no difference shown"}


def test_what_cannot_be_compared_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """No teacher in the recipe, or no labels on either side."""
    monkeypatch.setattr(module, "train_", None)
    _, few, heldout = digits()
    bare = ArraySource(torch.from_numpy(few.inputs), None, "classes", 10)
    with pytest.raises(SettingError, match="nothing to compare; at soft_weight"):
        compare(asking(), dense(16), source(few), source(heldout), recipe=replace(RECIPE, soft_weight=0.0))
    with pytest.raises(SettingError, match="plain training needs labels"):
        compare(asking(), dense(16), bare, source(heldout), recipe=RECIPE)
    with pytest.raises(DataError, match="nothing to compare answers with"):
        compare(asking(), dense(16), source(few), bare, recipe=RECIPE)


@pytest.mark.parametrize("values", [{"seeds": 1}, {"seeds": 101}, {"samples": 1}, {"epochs": -1}])
def test_a_slice_that_shows_nothing_is_refused(values: dict[str, int]) -> None:
    """One seed has no spread, above all."""
    with pytest.raises(SettingError, match="slice to compare on is out of range"):
        Slice(**values)


def test_an_answer_is_kept_and_given_again_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same question only; a damaged file is as good as none."""
    path, size, (_, few, heldout) = (
        tmp_path / "kept" / "one.json",
        Slice(samples=20, epochs=1, seeds=2),
        digits(),
    )

    def ask(recipe: Recipe = RECIPE) -> Comparison:
        return compare(asking(), dense(16), source(few), source(heldout), recipe=recipe, size=size, kept=path)

    first = ask()
    with monkeypatch.context() as patch:
        patch.setattr(module, "train_", None)
        assert ask() == first
        with pytest.raises(TypeError):  # it would train
            ask(replace(RECIPE, tau=4.0))
    path.write_text(path.read_text()[:-9])
    assert ask() == first


def test_a_comparison_is_plain_json() -> None:
    """Also one whose held-out data is of one group, which has no interval."""
    _, few, heldout = digits()
    found = compare(
        asking(),
        dense(16),
        source(few),
        source(heldout),
        recipe=RECIPE,
        size=Slice(samples=20, epochs=1, seeds=2),
        groups=np.zeros(len(heldout), np.int64),
    )
    told = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert told["gain_ci95_samples"] is None
    assert told["verdict"] == "no difference shown"


def test_distilling_that_hurts_is_warned_of() -> None:
    """With a code, as errors have one, and the run goes on."""
    _, few, heldout = digits()
    with pytest.warns(DistillingHurtsWarning, match=r"^\[distilling-hurts\] distilling HURTS on a slice"):
        run = distill(
            teacher(broken=True),
            few,
            validation=heldout,
            student=dense(16),
            recipe=replace(RECIPE, soft_weight=1.0),
            inherit=False,
            against=SLICE,
        )
    assert run.comparison is not None
    assert run.comparison.gain.verdict == "hurts"


def test_distilling_that_helps_is_not_warned_of() -> None:
    """Warnings are errors here; the students of the seeds inherit other parts of the teacher."""
    _, few, heldout = digits()
    run = distill(
        teacher(),
        few,
        validation=heldout,
        student=dense(16),
        recipe=replace(RECIPE, epochs=10),
        against=Slice(samples=40, seeds=2),
    )
    assert run.comparison is not None
    assert run.comparison.gain.verdict != "hurts"
    assert len(set(run.comparison.plain)) == 2


def test_a_comparison_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs that are done are not trained again, and what comes of it is the same."""
    _, few, heldout = digits()
    size, path = Slice(samples=20, epochs=1, seeds=3), tmp_path / "kept.json"

    def ask(kept: Path | None, progress: Callable[[int, int], None] | None = None) -> Comparison:
        return compare(
            asking(),
            dense(16),
            source(few),
            source(heldout),
            recipe=RECIPE,
            size=size,
            kept=kept,
            progress=progress,
        )

    def stop(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(path, stop)
    real, trained = train_, []

    def counted(*args: Any, **named: Any) -> nn.Module:
        trained.append(1)
        return real(*args, **named)

    monkeypatch.setattr(module, "train_", counted)
    assert ask(path) == ask(None)
    assert len(trained) == 2 + 6


@pytest.mark.parametrize(
    ("network", "shape", "wanted"),
    [
        (nn.LSTM(8, 16, batch_first=True), (1, 10, 8), 10 * 2 * 4 * 16 * (8 + 16)),
        (
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
            (1, 5, 16),
            5 * 2 * (4 * 16 * 16 + 2 * 16 * 32),
        ),
    ],
)
def test_fused_layers_cost_what_they_do(network: nn.Module, shape: tuple[int, ...], wanted: int) -> None:
    """Their matrix products are counted; a teacher made of them is not free."""

    class Wrapped(nn.Module):
        """Its first output."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            """`[N, ...]`."""
            found = self.network(x)
            return found[0] if isinstance(found, tuple) else found  # type: ignore[no-any-return]

    data = ArraySource(torch.randn(*shape), torch.zeros(1, dtype=torch.int64), "classes", 2)
    assert wanted <= module._flops(Wrapped(), data) <= 1.5 * wanted


def test_a_kept_teacher_is_met_as_often_as_there_are_views() -> None:
    """Once where nothing is augmented; as often as the recipe says, or at every epoch, where samples are changed."""
    few = digits()[1]
    plain = ArraySource(torch.from_numpy(few.inputs), torch.from_numpy(few.labels), "classes", 10)
    noisy = replace(plain, augment=Scaled())
    for data, views, wanted in ((plain, 0, 1), (noisy, 0, 3), (noisy, 1, 1), (noisy, 2, 2), (noisy, 9, 3)):
        recipe, way = replace(RECIPE, views=views, epochs=3), asking()
        assert way.passes(data, recipe) == wanted
        with way.guide(data, recipe) as guide:
            assert guide is not None
            assert guide.views == wanted


class Scaled:
    """Brighter or darker."""

    version = 1

    def __call__(self, inputs: Tensor, seeds: Seeds) -> Tensor:
        """`[N, D]`."""
        return inputs * torch.from_numpy(uniform(seeds, 1))
