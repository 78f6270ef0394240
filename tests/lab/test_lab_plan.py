"""The order of a run is a function of its seed: on any number of processes, after any interruption."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgestill.lab.data.seeds import view_seeds
from edgestill.lab.training.plan import Plan

SIZES = {"samples": st.integers(1, 60), "batch": st.integers(1, 20), "seed": st.integers(0, 2**32 - 1)}


@given(**SIZES, epoch=st.integers(0, 5))
def test_an_epoch_meets_every_sample_once(samples: int, batch: int, seed: int, epoch: int) -> None:
    """Whatever the sizes, an epoch's batches are a permutation of the data, each as large as the batch but the last."""
    plan = Plan(samples=samples, batch=batch, seed=seed)
    shares = plan.epoch(epoch)
    met = np.concatenate([share.ask.index for share in shares])
    assert sorted(met.tolist()) == list(range(samples))
    assert len(shares) == plan.steps
    assert [share.samples for share in shares[:-1]] == [batch] * (plan.steps - 1)
    assert all(share.weight == 1 for share in shares)


@given(**SIZES, world=st.integers(1, 5))
def test_processes_share_a_batch_without_gap_or_overlap(
    samples: int, batch: int, seed: int, world: int
) -> None:
    """Together they meet what one alone would, step by step, and their weighted means are the whole batch's mean."""
    alone = Plan(samples=samples, batch=batch, seed=seed).epoch(3)
    parts = [
        Plan(samples=samples, batch=batch, seed=seed, rank=r, world=world).epoch(3) for r in range(world)
    ]
    values = np.random.default_rng(0).normal(size=samples)
    for at, whole in enumerate(alone):
        own = [one[at] for one in parts]
        counted = np.concatenate([one.ask.index for one in own if one.weight > 0])
        assert sorted(counted.tolist()) == sorted(whole.ask.index.tolist())
        mean = np.mean([one.weight * values[one.ask.index].mean() for one in own])
        np.testing.assert_allclose(mean, values[whole.ask.index].mean(), atol=1e-12)


def test_a_process_without_a_sample_still_takes_the_step() -> None:
    """Where the last batch is smaller than the number of processes, the rest work on a sample that counts nothing."""
    shares = [Plan(samples=5, batch=4, seed=0, rank=rank, world=4).epoch(0)[1] for rank in range(4)]
    assert [share.weight for share in shares] == [4.0, 0.0, 0.0, 0.0]
    assert all(len(share.ask.index) == 1 for share in shares)


def test_views_go_round_or_go_on() -> None:
    """With two views every second epoch shows the same one; with none named, each epoch its own."""
    two = Plan(samples=8, batch=8, seed=1, views=2, augmented=True)
    own = Plan(samples=8, batch=8, seed=1, augmented=True)
    assert [two.epoch(e)[0].ask.view for e in range(4)] == [0, 1, 0, 1]
    assert [own.epoch(e)[0].ask.view for e in range(4)] == [0, 1, 2, 3]


@given(epoch=st.integers(0, 4), world=st.integers(1, 3))
def test_a_samples_seed_depends_on_the_view_and_the_sample_alone(epoch: int, world: int) -> None:
    """The seed is `view_seeds` of the run's seed, the view and the sample, on whichever process it lands."""
    for rank in range(world):
        plan = Plan(samples=20, batch=6, seed=9, views=3, augmented=True, rank=rank, world=world)
        for share in plan.epoch(epoch):
            assert share.ask.seeds is not None
            wanted = view_seeds(9, epoch % 3, share.ask.index)
            np.testing.assert_array_equal(share.ask.seeds, wanted)


def test_without_an_augmentation_samples_are_asked_for_as_they_are() -> None:
    """No seeds, so that nobody is tempted to draw."""
    assert Plan(samples=4, batch=2, seed=0).epoch(0)[0].ask.seeds is None


def test_epochs_and_seeds_differ_in_order() -> None:
    """Another epoch, another order; another seed, another order; the same again, the same."""

    def order(seed: int, epoch: int) -> list[int]:
        index: list[int] = Plan(samples=50, batch=50, seed=seed).epoch(epoch)[0].ask.index.tolist()
        return index

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_each_step_and_process_draws_for_itself() -> None:
    """Dropout's seed is another one in each step and on each process."""
    seeds = {
        Plan(samples=1, batch=1, seed=s, rank=r, world=2).draw(step)
        for s in (0, 1)
        for r in (0, 1)
        for step in range(50)
    }
    assert len(seeds) == 200
