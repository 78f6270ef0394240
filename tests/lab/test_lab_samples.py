"""Data is checked once, at the door: every refusal with its code and message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import (
    ClassCountError,
    DataError,
    DtypeError,
    EdgestillError,
    NotFiniteError,
    ShapeError,
)
from edgestill.lab.data.samples import Samples

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("inputs", "labels", "error", "text"),
    [
        (np.zeros((0, 3)), [], DataError, r"\[data-unusable\] no samples; at inputs; expected at least one"),
        (X, [1, 1, 1, 1], DataError, r"\[data-unusable\] only one class; at labels; .*got class 1 only"),
        (X, Y[:3], ShapeError, r"\[shape-mismatch\] inputs and labels do not belong together"),
        (X, [Y], ShapeError, r"\[shape-mismatch\] inputs and labels do not belong together"),
        (
            X[:, 0],
            Y,
            ShapeError,
            r"expected inputs \[N, \.\.\.\] and labels \[N\]; got inputs \[4\] and labels \[4\]",
        ),
        (X, [0.0, 1.0, 0.0, 1.0], DataError, r"labels are not whole numbers; at labels; .*got float64"),
        (X, [True, False, True, False], DataError, r"labels are not whole numbers; .*got bool"),
        (X, [0, -1, 0, 1], ClassCountError, r"\[class-count-mismatch\] a label outside .*got -1 to 1"),
    ],
    ids=["empty", "one class", "lengths", "rank", "flat", "float labels", "bool labels", "negative"],
)
def test_what_is_wrong_with_data_is_said(
    inputs: ArrayLike, labels: ArrayLike, error: type[EdgestillError], text: str
) -> None:
    """Data that cannot teach is refused with its code, what was expected and what was there."""
    with pytest.raises(error, match=text):
        Samples.of(inputs, labels)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_sample_that_is_not_finite_is_named(bad: float) -> None:
    """NaN and infinities are refused with the first index and how many samples follow."""
    x = X.copy()
    x[2, 1] = x[3, 0] = bad
    with pytest.raises(NotFiniteError, match=r"\[not-finite\] .* at inputs, sample 2 and 1 more") as caught:
        Samples.of(x, Y)
    assert caught.value.fix == "drop or repair these samples"


UNEVEN = [[1.0, 2.0], [3.0], [4.0], [5.0]]
HUGE = np.array([0, 1, 0, 2**63], np.uint64)


@pytest.mark.parametrize(
    ("inputs", "labels", "groups", "error", "text"),
    [
        (None, Y, None, DataError, r"the inputs are no array; at inputs; .*got NoneType; make an array"),
        (X, None, None, DataError, r"the labels are no array; at labels; .*got NoneType"),
        (
            UNEVEN,
            Y,
            None,
            DataError,
            r"the inputs are no array; at inputs; .*lists of equal lengths; got list: ",
        ),
        (torch.zeros(4, 3, requires_grad=True), Y, None, DataError, r"got Tensor: .*detach\(\)\.cpu\(\)"),
        (X.astype(object), Y, None, DtypeError, r"inputs are not numbers; at inputs; .*got object; convert"),
        (X.astype(str), Y, None, DtypeError, r"inputs are not numbers; at inputs; .*got <U"),
        (X.astype(complex), Y, None, DtypeError, r"inputs are not numbers; at inputs; .*got complex128"),
        (X.astype("datetime64[s]"), Y, None, DtypeError, r"inputs are not numbers; at inputs"),
        (
            X,
            HUGE,
            None,
            DataError,
            r"labels are too large; at labels; expected at most \d+; got 9223372036854775808",
        ),
        (X, Y, HUGE, DataError, r"groups are too large; at groups"),
        (X, ["a", "b", "a", "b"], None, DataError, r"labels are not whole numbers; .*numpy\.unique"),
    ],
    ids=[
        "none",
        "no labels",
        "uneven",
        "tensor",
        "objects",
        "texts",
        "complex",
        "dates",
        "huge",
        "huge groups",
        "names",
    ],
)
def test_what_is_no_array_of_numbers_is_refused(
    inputs: Any, labels: Any, groups: Any, error: type[EdgestillError], text: str
) -> None:
    """Neither kept until training trips over it, nor wrapped round into other numbers."""
    with pytest.raises(error, match=text):
        Samples.of(inputs, labels, groups=groups)


def test_numbers_in_the_other_byte_order_are_kept_in_this_machines() -> None:
    """PyTorch takes no other; the numbers, and the digest of the data, are the same."""
    other = Samples.of(X.astype(X.dtype.newbyteorder()), Y)
    assert other.inputs.dtype.isnative
    assert other.digest == Samples.of(X, Y).digest


def test_a_label_outside_the_named_classes_is_refused() -> None:
    """With two classes, label 2 is one too many."""
    with pytest.raises(ClassCountError, match=r"expected 0 to 1; got 0 to 2"):
        Samples.of(X, [0, 1, 2, 1], classes=2)


def test_classes_are_counted_from_the_largest_label_or_named() -> None:
    """By default the largest label + 1; a class that does not occur can be named."""
    assert Samples.of(X, Y).classes == 2
    assert Samples.of(X, Y, classes=7).classes == 7


def test_groups_are_one_a_sample_and_whole_numbers() -> None:
    """By default every sample is its own group; other lengths, and floats that would be cut, are refused."""
    assert Samples.of(X, Y).groups.tolist() == [0, 1, 2, 3]
    with pytest.raises(ShapeError, match=r"one group a sample; at groups; expected \[4\]; got \[3\]"):
        Samples.of(X, Y, groups=[0, 0, 1])
    with pytest.raises(DataError, match=r"groups are not whole numbers; .*got float64"):
        Samples.of(X, Y, groups=[0.2, 0.7, 1.0, 1.5])


def test_a_part_is_chosen_by_mask_or_group() -> None:
    """A part keeps the number of classes, and may be of one class or empty."""
    samples = Samples.of(X, Y, groups=[5, 6, 5, 7])
    part = samples.of_groups([5])
    assert (part.inputs[:, 0].tolist(), part.labels.tolist(), part.classes) == ([0, 6], [0, 0], 2)
    assert len(samples.where(np.zeros(4, dtype=bool))) == 0


def test_two_sets_add_in_order() -> None:
    """Inputs, labels and groups of the second follow those of the first."""
    one, two = Samples.of(X, Y, groups=[1, 1, 1, 1]), Samples.of(X + 1, Y[::-1], groups=[2, 2, 2, 2])
    both = one + two
    assert len(both) == 8
    assert both.labels.tolist() == [*Y, *Y[::-1]]
    assert both.groups.tolist() == [1] * 4 + [2] * 4
    assert np.array_equal(both.inputs, np.concatenate([X, X + 1]))


def test_sets_of_different_classes_do_not_add() -> None:
    """Two lineages are not one."""
    with pytest.raises(ClassCountError, match="different classes; at classes; expected 2; got 3"):
        Samples.of(X, Y) + Samples.of(X, Y, classes=3)


@given(st.integers(0, 47), st.integers(1, 255))
def test_the_digest_changes_with_any_byte_of_the_inputs(at: int, flip: int) -> None:
    """Each of the 48 bytes counts."""
    raw = np.frombuffer(X.tobytes(), dtype=np.uint8).copy()
    raw[at] ^= flip
    changed = Samples(raw.view(np.float32).reshape(4, 3), np.array(Y), np.arange(4), 2)
    assert changed.digest != Samples.of(X, Y).digest


def test_the_digest_changes_with_labels_classes_shape_and_type() -> None:
    """The same bytes as other data have another digest; a copy, or another memory order, has the same."""
    samples = Samples.of(X, Y)
    others = [
        Samples.of(X, [0, 1, 1, 1]),
        Samples.of(X, Y, classes=3),
        Samples.of(X.reshape(4, 3, 1), Y),
        Samples.of(X.view(np.int32), Y),
    ]
    assert len({samples.digest, *(other.digest for other in others)}) == 5
    assert Samples.of(np.asfortranarray(X), Y).digest == samples.digest


def test_samples_are_shown_in_a_line() -> None:
    """Shape, classes and groups; no page of numbers where a run is printed."""
    samples = Samples.of(np.zeros((6, 2, 3), np.float32), np.arange(6) % 3, groups=np.arange(6) // 3)
    assert repr(samples) == "Samples([6, 2, 3] float32, 3 classes, 2 groups)"
