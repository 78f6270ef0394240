"""The training loop: repeatable, and loud when it goes astray."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from lab_worlds import (
    CLASSES,
    Straight,
    image_net,
    images,
    motion_net,
    motions,
    points,
    same_weights,
    straight,
)
from torch import Tensor, nn

from edgestill.core.errors import SettingError, TrainingError
from edgestill.lab.data.augment import MotionJitter
from edgestill.lab.data.samples import Samples
from edgestill.lab.recipe import Recipe
from edgestill.lab.teacher.guide import LiveGuide
from edgestill.lab.training.train import Lesson, freeze_statistics_, train_

SAMPLES = points(24)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
def test_the_same_seed_gives_the_same_weights(optimiser: str, schedule: str) -> None:
    """Order, views and dropout follow the recipe's seed, whatever was drawn before; another seed is another run."""

    def trained(seed: int) -> nn.Module:
        torch.manual_seed(int(np.random.default_rng().integers(2**31)))
        network = nn.Sequential(motion_net(3, 3, 3), nn.Dropout(0.2))
        recipe = Recipe(epochs=2, batch=8, lr=1e-2, seed=seed, optimiser=optimiser, schedule=schedule)  # type: ignore[arg-type]  # parametrised
        return train_(network, Lesson.of(motions(20), MotionJitter()), recipe)

    assert same_weights(trained(1), trained(1))
    assert not same_weights(trained(1), trained(2))


def test_training_learns_what_can_be_learned() -> None:
    """On separable points a small network is right about all of them, and ends in evaluation mode."""
    network = train_(straight(), Lesson.of(SAMPLES), Recipe(epochs=40, batch=8, lr=2e-2))
    assert not network.training
    found = network(torch.from_numpy(SAMPLES.inputs)).argmax(1).numpy()
    assert (found == SAMPLES.labels).all()


def test_soft_labels_alone_teach_the_teachers_classes() -> None:
    """With a soft weight of 1 the labels are not looked at: wrong ones do no harm."""
    teacher = train_(straight(), Lesson.of(SAMPLES), Recipe(epochs=40, batch=8, lr=2e-2))
    wrong = Samples.of(SAMPLES.inputs, (SAMPLES.labels + 1) % CLASSES)
    recipe = Recipe(epochs=60, batch=8, lr=2e-2, soft_weight=1.0)
    student = train_(straight(seed=3, hidden=4), Lesson.of(wrong, guide=LiveGuide(teacher)), recipe)
    found = student(torch.from_numpy(SAMPLES.inputs)).argmax(1).numpy()
    assert (found == SAMPLES.labels).all()


def test_one_step_of_sgd_is_the_textbook_one() -> None:
    """`w - lr * gradient of the cross-entropy`, nothing else."""
    network, by_hand = straight(), straight()
    recipe = Recipe(epochs=1, batch=24, optimiser="sgd", lr=0.1, schedule="constant")
    train_(network, Lesson.of(SAMPLES), recipe)
    loss = nn.functional.cross_entropy(
        by_hand(torch.from_numpy(SAMPLES.inputs)), torch.from_numpy(SAMPLES.labels)
    )
    loss.backward()  # type: ignore[no-untyped-call]
    for one, other in zip(network.parameters(), by_hand.parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(one, other - 0.1 * other.grad)


class Bomb(Straight):
    """Answers NaN from a given forward on."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits = super().forward(x)
        return logits * float("nan") if len(self.seen) >= self.at else logits


def test_a_loss_that_is_not_finite_stops_with_its_step() -> None:
    """The fifth step of nine fails: that is what the error says, and nothing is learned from it."""
    network = Bomb(5)
    with pytest.raises(
        TrainingError, match=r"\[training-diverged\] .* at step 5 of 9 .batch 2 of epoch 2.; .*; got nan"
    ) as caught:
        train_(network, Lesson.of(SAMPLES), Recipe(epochs=3, batch=8))
    assert caught.value.fix == "lower the learning rate, or look for bad samples"
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())
    assert len(network.seen) == 5


class Diary(Straight):
    """Keeps a copy of its first layer's weight at each forward."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.weights: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.weights.append(self.first.weight.detach().clone())
        return super().forward(x)


def test_the_tail_average_is_the_mean_of_the_last_weights() -> None:
    """Of eight steps a tail of half averages the weights after steps five to eight."""
    plain, averaged = Diary(), Diary()
    recipe = Recipe(epochs=2, batch=6, lr=1e-2, schedule="constant")
    train_(plain, Lesson.of(SAMPLES), recipe)
    train_(averaged, Lesson.of(SAMPLES), replace(recipe, average_tail=0.5))
    assert len(plain.weights) == 8
    after = [*plain.weights[5:], plain.first.weight.detach()]
    torch.testing.assert_close(averaged.first.weight, torch.stack(after).mean(0))


def test_a_tail_average_of_a_network_with_batchnorm_is_refused() -> None:
    """Running statistics belong to one set of weights; averaged weights would silently get the last one's."""
    with pytest.raises(SettingError, match=r"averaged weights .* BatchNorm; at average_tail; expected 0"):
        train_(motion_net(3, 3, 3), Lesson.of(motions(6)), Recipe(average_tail=0.1))


def test_frozen_statistics_stay_while_everything_else_learns() -> None:
    """BatchNorm normalises by what it remembers, whatever the batches hold; weights and its own scales move."""
    network = train_(motion_net(3, 3, 3), Lesson.of(motions(20)), Recipe(epochs=2, batch=8, lr=1e-2))
    before = copy.deepcopy(network.state_dict())
    train_(network, Lesson.of(motions(20)), Recipe(epochs=1, batch=8, lr=1e-2, frozen_statistics=True))
    moved = {name for name, one in network.state_dict().items() if not torch.equal(one, before[name])}
    assert not {name for name in moved if "running" in name or "batches" in name}
    assert {name for name, _ in network.named_parameters()} == moved
    train_(network, Lesson.of(motions(20)), Recipe(epochs=1, batch=8, lr=1e-2))
    followed = [
        name
        for name, one in network.state_dict().items()
        if "running" in name and not torch.equal(one, before[name])
    ]
    assert followed == [name for name in before if "running" in name]


def test_every_kind_of_running_statistics_is_frozen() -> None:
    """Also those that normalise each sample by itself while they are trained: an average over weights would not fit them."""
    network = nn.Sequential(nn.Conv1d(6, 4, 3), nn.InstanceNorm1d(4, affine=True, track_running_stats=True))
    network.train()
    freeze_statistics_(network)
    before = copy.deepcopy(network.state_dict())
    network(torch.randn(8, 6, 16))
    assert all(torch.equal(one, before[name]) for name, one in network.state_dict().items())


def test_frozen_statistics_make_a_batch_of_one_learnable() -> None:
    """What a sample is answered does not depend on the others of its batch: the first step's loss is that of the served network."""
    network = train_(motion_net(3, 3, 3), Lesson.of(motions(20)), Recipe(epochs=2, batch=8, lr=1e-2))
    seen = motions(7)
    with torch.no_grad():
        wanted = nn.functional.cross_entropy(
            network(torch.from_numpy(seen.inputs)), torch.from_numpy(seen.labels)
        )
    told: list[float] = []
    recipe = Recipe(epochs=1, batch=len(seen.labels), lr=1e-9, frozen_statistics=True)
    train_(network, Lesson.of(seen), recipe, progress=lambda _done, _of, loss: told.append(loss))
    assert told == [pytest.approx(float(wanted), rel=1e-5)]


def test_a_tail_average_with_frozen_statistics_is_allowed() -> None:
    """They belong to all of the averaged weights alike."""
    network = motion_net(3, 3, 3)
    train_(network, Lesson.of(motions(6)), Recipe(average_tail=0.5, frozen_statistics=True, epochs=2))
    assert not network.training


def test_soft_weight_without_a_teacher_is_refused() -> None:
    """A recipe that asks for soft labels does not fall back to hard ones."""
    with pytest.raises(
        SettingError, match=r"needs a teacher; at soft_weight; expected 0 without a teacher; got 0.5"
    ):
        train_(straight(), Lesson.of(SAMPLES), Recipe(soft_weight=0.5))


def test_the_recipes_momentum_is_kept_under_every_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule varies the learning rate only; SGD's momentum stays what the recipe says."""
    seen: set[float] = set()
    step = torch.optim.SGD.step

    def watched(self: torch.optim.SGD, *details: object) -> object:
        seen.add(self.param_groups[0]["momentum"])
        return step(self)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    train_(straight(), Lesson.of(SAMPLES), Recipe(epochs=2, batch=8, optimiser="sgd", momentum=0.5))
    assert seen == {0.5}


def test_progress_is_told_after_each_epoch_with_the_mean_loss() -> None:
    """Epochs done, epochs, and a loss that falls."""
    told: list[tuple[int, int, float]] = []
    train_(
        straight(),
        Lesson.of(SAMPLES),
        Recipe(epochs=3, batch=8, lr=2e-2),
        progress=lambda *one: told.append(one),
    )
    assert [one[:2] for one in told] == [(1, 3), (2, 3), (3, 3)]
    assert told[0][2] > told[-1][2]


def test_the_last_batch_counts_by_its_size() -> None:
    """Seven samples in batches of three: the mean loss is over samples, not batches."""
    samples = points(7)
    told: list[float] = []
    network = straight()
    train_(
        copy.deepcopy(network),
        Lesson.of(samples),
        Recipe(epochs=1, batch=3, lr=1e-12, optimiser="sgd", schedule="constant"),
        progress=lambda _, __, loss: told.append(loss),
    )
    with torch.no_grad():
        whole = nn.functional.cross_entropy(
            network(torch.from_numpy(samples.inputs)), torch.from_numpy(samples.labels)
        )
    assert told == [pytest.approx(float(whole), rel=1e-5)]


def test_convolutions_become_channels_last() -> None:
    """A network with two-dimensional convolutions is kept in the faster memory order."""
    samples = Samples.of(images(6), [0, 1, 2, 3, 4, 5], classes=10)
    network = train_(image_net(2, 2, 4), Lesson.of(samples), Recipe(epochs=1, batch=3))
    weight = network.get_parameter("conv2.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
