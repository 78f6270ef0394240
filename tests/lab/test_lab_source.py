"""Samples in memory: the same question has the same answer, and what is wrong with data is said at the door."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from cache_worlds import array_source, ask_of, first_batch, inputs_of
from hypothesis import given
from hypothesis import strategies as st
from lab_worlds import motions
from torch import Tensor

from edgestill.core.digest import Digest
from edgestill.core.errors import ClassCountError, DataError, NotFiniteError, ShapeError
from edgestill.lab.data.augment import MotionJitter, OneOf
from edgestill.lab.data.chunks import setting_chunks
from edgestill.lab.data.samples import Samples
from edgestill.lab.data.seeds import integers, view_seeds
from edgestill.lab.data.source import ArraySource, Ask, check_targets, mapped, tensors
from edgestill.lab.data.tokens import TokenDropout, TokenMix

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.lab.data.augment import Augment
    from edgestill.lab.data.seeds import Seeds
    from edgestill.lab.data.source import Inputs

IDS, MASK = torch.arange(12).view(6, 2), torch.ones(6, 2, dtype=torch.bool)
TARGETS = torch.tensor([0, 1, -1, 2, 1, 0])
SHAPES: list[Inputs] = [IDS.float(), (IDS, MASK), {"ids": IDS, "mask": MASK}]


def source_of(inputs: Inputs = SHAPES[0], targets: Tensor | None = TARGETS, **changes: Any) -> ArraySource:
    """A source of three classes."""
    return ArraySource(inputs, targets, **{"task": "classes", "outputs": 3, **changes})


@pytest.mark.parametrize("inputs", SHAPES)
def test_a_batch_is_shaped_as_the_data(inputs: Inputs) -> None:
    """A tensor, a tuple or a dictionary comes back as such, in the order asked for, repetitions included."""
    index = np.array([4, 0, 4])
    batch = first_batch(source_of(inputs), Ask(index))
    assert type(batch.inputs) is type(inputs)
    for found, whole in zip(tensors(batch.inputs), tensors(inputs), strict=True):
        assert torch.equal(found, whole[index])
    assert torch.equal(batch.targets if batch.targets is not None else IDS, TARGETS[index])
    if isinstance(batch.inputs, dict):
        assert list(batch.inputs) == ["ids", "mask"]


@given(st.lists(st.integers(0, 29), min_size=1, max_size=40), st.integers(0, 3))
def test_a_sample_in_a_view_is_the_same_in_any_batch(index: list[int], view: int) -> None:
    """Alone or among others, in any order, asked once or again."""
    source = array_source()
    whole = first_batch(source, ask_of(np.arange(30), view)).inputs
    found = first_batch(source, ask_of(index, view)).inputs
    assert isinstance(whole, Tensor)
    assert isinstance(found, Tensor)
    assert torch.equal(found, whole[index])


def test_without_seeds_samples_are_shown_as_they_are() -> None:
    """Also where there is an augmentation."""
    found = first_batch(array_source(), Ask(np.arange(30))).inputs
    assert isinstance(found, Tensor)
    assert torch.equal(found, inputs_of())


def test_a_batch_is_a_copy() -> None:
    """Whoever changes it does not change the data."""
    source = source_of()
    first = tensors(first_batch(source, Ask(np.arange(3))).inputs)[0]
    first.zero_()
    assert torch.equal(source.inputs if isinstance(source.inputs, Tensor) else first, IDS.float())


def test_places_outside_the_data_are_no_samples() -> None:
    """A negative place does not count from the end."""
    for place in (-1, 6):
        with pytest.raises(IndexError):
            first_batch(source_of(), Ask(np.array([place])))


def test_unlabelled_data_has_no_targets() -> None:
    """And says so."""
    source = source_of(targets=None)
    assert (source.labelled, source.augmented, len(source)) == (False, False, 6)
    assert first_batch(source, Ask(np.arange(2))).targets is None


def test_samples_become_a_source() -> None:
    """Labelled samples keep inputs, labels and the number of classes."""
    samples = motions(12)
    source = ArraySource.of(samples, MotionJitter())
    assert (source.task, source.outputs, source.labelled, source.augmented) == ("classes", 3, True, True)
    batch = first_batch(source, Ask(np.arange(12)))
    assert torch.equal(tensors(batch.inputs)[0], torch.from_numpy(samples.inputs))


def test_memory_mapped_samples_need_no_copy(tmp_path: Path) -> None:
    """Data that cannot be written is read where it lies, without a warning."""
    np.save(tmp_path / "x.npy", motions(12).inputs)
    samples = Samples.of(np.load(tmp_path / "x.npy", mmap_mode="r"), np.arange(12) % 3)
    source = ArraySource.of(samples)
    assert tensors(source.inputs)[0].data_ptr() == samples.inputs.__array_interface__["data"][0]
    assert source.digest == ArraySource.of(motions(12)).digest


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": IDS.float() + 1},
        {"inputs": IDS.double()},
        {"inputs": IDS.float()[:, :, None]},
        {"inputs": {"0": IDS.float(), "1": MASK}},
        {"targets": TARGETS.flip(0)},
        {"targets": None},
        {"outputs": 4},
    ],
)
def test_another_digest_for_other_data(change: dict[str, Any]) -> None:
    """Any value, type, shape, name, target or number of outputs makes a difference."""
    assert replace(source_of(), **change).digest != source_of().digest


def test_a_digest_does_not_know_the_augmentation_and_the_views_digest_does() -> None:
    """So that a cache can say which of the two differs."""
    plain, jittered, more = (array_source(augmented=False), array_source(), array_source(noise=0.2))
    assert plain.digest == jittered.digest == more.digest
    assert len({one.views_digest for one in (plain, jittered, more)}) == 3
    assert array_source().views_digest == jittered.views_digest


def test_a_new_version_of_an_augmentation_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the canaries look the same."""
    before = array_source().views_digest
    monkeypatch.setattr(MotionJitter, "version", 2)
    assert array_source().views_digest != before


def test_an_empty_source_is_refused() -> None:
    """No samples, no tensors, or a number in place of a batch."""
    empty: list[Inputs] = [torch.zeros(0, 2), (), {}, torch.tensor(1.0)]
    for inputs in empty:
        with pytest.raises(
            DataError, match=r"\[data-unusable\] no samples; at inputs; expected at least one"
        ):
            source_of(inputs, None)


def test_lengths_must_agree() -> None:
    """Among inputs, and between inputs and targets."""
    with pytest.raises(ShapeError, match=r"inputs and targets do not belong together; .* got \[5, 6\]"):
        source_of(targets=TARGETS[:5])
    with pytest.raises(ShapeError, match=r"got \[2, 6\]"):
        source_of((IDS, MASK[:2]))


@pytest.mark.parametrize("inputs", [(IDS, IDS + 10), {"ids": IDS, "pairs": IDS + 10}])
def test_each_of_several_inputs_has_its_own_augmentation(inputs: Inputs) -> None:
    """Those that are named change, each by the sample's one seed; the others, and samples without a view, do not."""
    whole = tensors(inputs)
    name = list(inputs)[1] if isinstance(inputs, dict) else "1"
    source = source_of(inputs, augment={name: TokenDropout()})
    index = np.array([5, 0, 2, 2])
    seeds = view_seeds(0, 1, index)
    first, second = tensors(first_batch(source, Ask(index, seeds)).inputs)
    assert torch.equal(first, whole[0][index])
    assert torch.equal(second, TokenDropout()(whole[1][index], seeds))
    assert not torch.equal(second, whole[1][index])
    assert type(first_batch(source, Ask(index, seeds)).inputs) is type(inputs)
    assert torch.equal(tensors(first_batch(source, Ask(index)).inputs)[1], whole[1][index])


def test_the_views_of_several_inputs_have_a_digest() -> None:
    """It tells which input is changed, and how."""
    one, other = {"0": TokenDropout()}, {"1": TokenDropout()}
    both, more = {**one, **other}, {"0": TokenDropout(0.9)}
    found = [source_of((IDS + 1, IDS + 1), augment=each).views_digest for each in (one, other, both, more)]
    assert len(set(found)) == 4
    assert source_of((IDS + 1, IDS + 1), augment={"0": TokenDropout()}).views_digest == found[0]


def test_an_augmentation_of_several_inputs_names_them() -> None:
    """One augmentation cannot know which input it is of; a name that is not there, or none, is a mistake."""
    with pytest.raises(DataError, match="one augmentation for several inputs") as caught:
        source_of((IDS, MASK), augment=MotionJitter())
    assert caught.value.expected == "a mapping from some of 0, 1 to the augmentation of each"
    with pytest.raises(DataError, match="not there") as caught:
        source_of({"ids": IDS, "mask": MASK}, augment={"id": TokenDropout()})
    assert (caught.value.expected, caught.value.got) == ("some of ids, mask", "id")
    with pytest.raises(DataError, match="not there") as caught:
        source_of((IDS, MASK), augment={})
    assert caught.value.got == "none"
    with pytest.raises(DataError, match="one augmentation for the one input"):
        source_of(IDS, augment={"0": TokenDropout()})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_inputs_that_are_not_finite_are_refused(value: float) -> None:
    """The text names the first such sample and counts the others, also behind the first thousand."""
    inputs = torch.zeros(3000, 2, 2)
    inputs[[2500, 2700, 2999], 1, 0] = value
    with pytest.raises(NotFiniteError, match=r"NaN or infinity in the inputs; at sample 2500 and 2 more"):
        source_of(inputs, None)
    with pytest.raises(NotFiniteError, match=r"at sample 2 and 0 more"):
        source_of(torch.tensor([0.0, 1.0, value]), None)


@pytest.mark.parametrize(
    ("targets", "task", "error"),
    [
        (torch.zeros(6), "classes", ShapeError),
        (torch.zeros(6, 3, dtype=torch.long), "classes", ShapeError),
        (torch.tensor([0, 3]), "classes", ClassCountError),
        (torch.tensor([0, -2]), "classes", ClassCountError),
        (torch.zeros(6, dtype=torch.long), "multi-label", ShapeError),
        (torch.zeros(6, 2), "multi-label", ShapeError),
        (torch.full((2, 3), 1.5), "multi-label", DataError),
        (torch.full((2, 3), -0.1), "multi-label", DataError),
        (torch.full((2, 3), float("inf")), "regression", NotFiniteError),
        (torch.zeros(6, 4), "regression", ShapeError),
    ],
)
def test_targets_that_do_not_fit_the_task_are_refused(
    targets: Tensor, task: Any, error: type[Exception]
) -> None:
    """Wrong types, shapes, classes and ranges are each their own error."""
    with pytest.raises(error):
        check_targets(targets, task, 3)


def test_missing_labels_are_welcome() -> None:
    """-1 among classes, NaN among labels and values."""
    check_targets(torch.tensor([-1, 2, -1]), "classes", 3)
    gaps = torch.tensor([[float("nan"), 0.0, 1.0], [float("nan")] * 3])
    check_targets(gaps, "multi-label", 3)
    check_targets(gaps * 1000, "regression", 3)


def test_mapped_keeps_the_shape_of_inputs() -> None:
    """A tuple stays a tuple, a dictionary keeps its names."""
    for inputs in SHAPES:
        found = mapped(inputs, lambda one: one + 1)
        assert type(found) is type(inputs)
        assert torch.equal(tensors(found)[0], tensors(inputs)[0] + 1)


class Rare:
    """An augmentation of a user's, that touches one sample in twenty."""

    version = 1

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, inputs: Tensor, seeds: Seeds) -> Tensor:
        """`[N, ...]`."""
        touched = torch.from_numpy(integers(seeds, 20, 1)[:, 0] == 0)
        return torch.where(touched.reshape(-1, *[1] * (inputs.ndim - 1)), inputs * self.factor, inputs)


def jitters(noise: float) -> OneOf:
    """Twelve, of which the last adds noise."""
    return OneOf((*(MotionJitter(scale=0.01 * one) for one in range(11)), MotionJitter(noise=noise)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (jitters(0.3), jitters(0.5)),
        (Rare(3.0), Rare(-3.0)),
        (TokenMix(torch.tensor([[1, 2, 3, 4]])), TokenMix(torch.tensor([[1, 2, 3, 5]]))),
    ],
)
def test_a_setting_deep_within_an_augmentation_makes_another(one: Augment, other: Augment) -> None:
    """However seldom it shows: parts of parts, attributes of one's own classes, and tensors are looked at."""
    data = torch.randn(4, 6, 2) if not isinstance(one, TokenMix) else torch.ones(4, 4, dtype=torch.int64)

    def digest(augment: Augment) -> Digest:
        return ArraySource(data, torch.zeros(4, dtype=torch.int64), "classes", 2, augment).views_digest

    assert digest(one) == digest(copy.deepcopy(one))
    assert digest(one) != digest(other)


def test_settings_are_told_apart_by_kind_and_content() -> None:
    """Numbers from text, one order of a list from another, a partial's arguments, and what holds itself ends."""
    endless: list[object] = [1]
    endless.append(endless)
    settings: list[object] = [
        1, 1.0, "1", True, None, b"1", [1, 2], [2, 1], (1, 2), {"a": 1}, {"a": 2}, {"b": 1}, {1, 2}, endless,
        np.array([1, 2]), np.array([1.0, 2.0]), torch.tensor([1, 2]), partial(max, 1), partial(max, 2), partial(min, 1),
        np.array(["a"]), len, torch, Rare,
    ]  # fmt: skip
    told = [Digest.of_chunks(setting_chunks(one)) for one in settings]
    assert len(set(told)) == len(settings)
    assert told == [Digest.of_chunks(setting_chunks(one)) for one in settings]
