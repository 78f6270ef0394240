"""A torch dataset's own transforms make repeatable views, in any process, and leave the caller's generators alone."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from cache_worlds import Rows, ask_of, first_batch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from edgestill.core.errors import ClassCountError, DataError, SettingError, ShapeError
from edgestill.lab.data.dataset import DatasetSource
from edgestill.lab.data.source import Ask, tensors

if TYPE_CHECKING:
    from collections.abc import Iterator


class Items(Dataset[object]):
    """Gives what it was told to."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


class Endless(IterableDataset[object]):
    """Has no length."""

    def __iter__(self) -> Iterator[object]:
        return iter(())


def rows(*, workers: int = 0, samples: int = 12, labelled: bool = True) -> DatasetSource:
    """Items that are drawn from all three generators."""
    return DatasetSource(
        Rows(samples, labelled=labelled), outputs=3, labelled=labelled, name="rows 1", workers=workers
    )


def source_of(items: list[Any], **changes: Any) -> DatasetSource:
    """A source of these items."""
    return DatasetSource(Items(items), **{"outputs": 3, "name": "items 1", **changes})


def states() -> tuple[object, ...]:
    """Of the three generators."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    return random.getstate(), numpy_state[1].tolist(), numpy_state[2], torch.get_rng_state().tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fetch_leaves_the_callers_generators_alone(workers: int) -> None:
    """Python's, numpy's and torch's, in the middle of the batches and after them, with seeds or without."""
    before = states()
    for _ in rows(workers=workers).batches([ask_of([0, 1]), ask_of([2]), Ask(np.arange(3))]):
        assert states() == before
    assert states() == before


def test_any_number_of_workers_gives_the_same_batches() -> None:
    """Bit for bit, in the order asked for."""
    asks = [ask_of([3, 1, 2]), ask_of([3], view=1), ask_of([0, 3]), Ask(np.array([3]))]
    here, there = (list(rows(workers=workers).batches(asks)) for workers in (0, 2))
    assert len(here) == len(there) == 4
    for one, other in zip(here, there, strict=True):
        assert torch.equal(tensors(one.inputs)[0], tensors(other.inputs)[0])
        assert one.targets is not None
        assert other.targets is not None
        assert torch.equal(one.targets, other.targets)


def test_a_view_depends_on_the_samples_seed_alone() -> None:
    """The same sample and seed beside others, another view, and no seed at all."""
    source = rows()
    whole = tensors(first_batch(source, ask_of(np.arange(12))).inputs)[0]
    assert torch.equal(tensors(first_batch(source, ask_of([7, 2])).inputs)[0], whole[[7, 2]])
    other = tensors(first_batch(source, ask_of([7], view=1)).inputs)[0]
    assert (other[:, 1:] != whole[7, 1:]).all()
    plain = [tensors(first_batch(source, Ask(np.array([7]))).inputs)[0] for _ in range(2)]
    assert torch.equal(*plain)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_cannot_be_fetched_is_named(workers: int) -> None:
    """Whatever the dataset raises, here or in a worker, the text says which sample of which data."""
    source = source_of([(torch.zeros(2), 0)] * 3 + [KeyError("gone")], workers=workers)
    with pytest.raises(
        DataError, match=r"a sample cannot be fetched; at items 1: sample 3; .*; got KeyError: 'gone'"
    ):
        list(source.batches([Ask(np.array([0, 1])), Ask(np.array([2, 3]))]))


def test_the_generators_are_put_back_after_an_error() -> None:
    """A broken sample does not leave a seeded generator behind."""
    before = states()
    with pytest.raises(DataError):
        first_batch(source_of([ValueError("broken")]), ask_of([0]))
    assert states() == before


def test_samples_of_different_shapes_are_refused() -> None:
    """They cannot be one batch."""
    source = source_of([(torch.zeros(2), 0), (torch.zeros(3), 0)])
    with pytest.raises(DataError, match=r"samples cannot be joined to a batch; .* got RuntimeError"):
        first_batch(source, Ask(np.arange(2)))


def test_tuples_and_dictionaries_of_inputs_come_through() -> None:
    """As the model takes them."""
    pair = ((torch.zeros(2), torch.ones(3)), 1)
    assert [one.shape for one in tensors(first_batch(source_of([pair] * 2), Ask(np.arange(2))).inputs)] == [
        (2, 2),
        (2, 3),
    ]
    named = ({"ids": torch.zeros(2), "mask": torch.ones(2)}, 1)
    inputs = first_batch(source_of([named] * 2), Ask(np.arange(2))).inputs
    assert isinstance(inputs, dict)
    assert list(inputs) == ["ids", "mask"]


def test_unlabelled_items_are_inputs() -> None:
    """Also where each is a tuple."""
    batch = first_batch(rows(labelled=False), ask_of([1]))
    assert batch.targets is None
    both = first_batch(source_of([(torch.zeros(2), torch.ones(3))], labelled=False), Ask(np.arange(1)))
    assert isinstance(both.inputs, tuple)


def test_targets_get_the_type_of_the_task() -> None:
    """Classes are int64; labels and values float32, one value a sample with or without its axis."""
    classes = first_batch(source_of([(torch.zeros(2), np.int16(2))]), Ask(np.arange(1))).targets
    assert classes is not None
    assert (classes.dtype, classes.tolist()) == (torch.int64, [2])
    for value in (0.5, [0.5], np.float64(0.5)):
        item = (torch.zeros(2), torch.tensor(value))
        found = first_batch(source_of([item], task="regression", outputs=1), Ask(np.arange(1))).targets
        assert found is not None
        assert (found.dtype, found.tolist()) == (torch.float32, [[0.5]])


@pytest.mark.parametrize(
    ("item", "changes", "error"),
    [
        ((torch.zeros(2), 5), {}, ClassCountError),
        ((torch.zeros(2), 0.5), {}, ShapeError),
        ((torch.zeros(2), torch.zeros(2)), {"task": "regression"}, ShapeError),
        (torch.zeros(2), {}, DataError),
        ((torch.zeros(2), 0, 1), {}, DataError),
        ((torch.zeros(2), "label"), {}, DataError),
        (("text", 0), {}, DataError),
        ("text", {"labelled": False}, DataError),
        ({"ids": "text"}, {"labelled": False}, DataError),
    ],
)
def test_items_that_do_not_fit_are_refused(
    item: object, changes: dict[str, Any], error: type[Exception]
) -> None:
    """Targets of the wrong kind, items that are no pairs, inputs that are no tensors."""
    with pytest.raises(error):
        first_batch(source_of([item] * 3, **changes), Ask(np.arange(3)))


def test_a_stream_an_empty_dataset_and_fewer_than_no_workers_are_refused() -> None:
    """A source must know how many samples it has, and be asked for any of them."""
    with pytest.raises(DataError, match=r"cannot be asked for a sample by its place; at stream 1"):
        DatasetSource(Endless(), outputs=3, name="stream 1")
    with pytest.raises(DataError, match=r"no samples; at items 1"):
        source_of([])
    with pytest.raises(SettingError, match=r"at workers; expected at least 0; got -1"):
        source_of([1], workers=-1)


def test_the_digests_tell_data_and_transform_apart() -> None:
    """The name speaks for the data, some samples in one view for the transform; workers make no difference."""
    assert rows().digest == rows(workers=2).digest
    assert rows().views_digest == rows(workers=2).views_digest
    assert rows().digest != rows(samples=13).digest
    assert rows().digest != source_of([(torch.zeros(4), 0)] * 12).digest
    assert rows().views_digest != source_of([(torch.zeros(4), 0)] * 12).views_digest


def test_an_epoch_that_is_left_early_ends_its_workers() -> None:
    """A generator of batches that is closed leaves no process behind."""
    batches: Any = rows(workers=2).batches([ask_of([one]) for one in range(12)])
    first = next(batches)
    assert isinstance(first.inputs, Tensor)
    batches.close()
    assert torch.multiprocessing.active_children() == []


def test_a_dataset_that_draws_nothing_has_one_view() -> None:
    """So that a teacher is not asked again in every epoch; whether it draws is found out, or said."""
    plain = [(torch.ones(3) * one, one % 2) for one in range(9)]

    class Noisy(Dataset[object]):
        """The same, with noise."""

        def __len__(self) -> int:
            return len(plain)

        def __getitem__(self, at: int) -> object:
            return plain[at][0] + torch.rand(3), plain[at][1]

    def source(dataset: object, random: bool | None = None) -> DatasetSource:
        return DatasetSource(dataset, outputs=2, name="noise-1", random=random)  # type: ignore[arg-type]  # a list is a dataset

    assert not source(plain).augmented
    assert source(Noisy()).augmented
    assert source(plain, random=True).augmented
    assert not source(Noisy(), random=False).augmented
