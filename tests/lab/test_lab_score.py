"""What a comparison is made of: one number a sample, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lab_worlds import points, straight
from torch import Tensor, nn

from edgestill.core.errors import DataError, NotFiniteError
from edgestill.lab.data.source import ArraySource
from edgestill.lab.score import plain_batches, scores

NONE = float("nan")


class Told(nn.Module):
    """Answers with its input."""

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        return x


def test_classes_score_one_where_the_largest_is_at_the_label() -> None:
    """Right, wrong, and NaN for the sample that nobody labelled."""
    source = ArraySource(
        torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1, -1]), "classes", 2
    )
    assert scores(Told(), source).tolist() == pytest.approx([1, 0, NONE], nan_ok=True)


def test_labels_score_the_share_on_the_right_side() -> None:
    """Of known labels only: two of three, one of one, none known."""
    source = ArraySource(
        torch.tensor([[3.0, -1.0, 2.0], [-0.1, 5.0, 5.0], [1.0, 1.0, 1.0]]),
        torch.tensor([[1.0, 0.0, 0.2], [0.0, NONE, NONE], [NONE, NONE, NONE]]),
        "multi-label",
        3,
    )
    assert scores(Told(), source).tolist() == pytest.approx([2 / 3, 1, NONE], nan_ok=True)


def test_values_score_minus_the_mean_squared_error() -> None:
    """(4 + 0) / 2 over two values, 9 over the only known one."""
    source = ArraySource(
        torch.tensor([[1.0, 2.0], [3.0, 7.0]]), torch.tensor([[3.0, 2.0], [0.0, NONE]]), "regression", 2
    )
    assert scores(Told(), source).tolist() == [-2, -9]


@pytest.mark.parametrize("targets", [None, torch.tensor([-1, -1])])
def test_data_without_one_label_is_refused(targets: Tensor | None) -> None:
    """There is nothing to compare answers with."""
    with pytest.raises(DataError, match="nothing to compare answers with"):
        scores(Told(), ArraySource(torch.zeros(2, 2), targets, "classes", 2))


def test_an_answer_that_is_no_number_is_an_error_not_a_score() -> None:
    """The sample is named, also behind the first batch; it must not pass for one without a label."""
    model = nn.Linear(1, 2, bias=False)
    nn.init.ones_(model.weight)
    inputs = torch.ones(300, 1)
    inputs[290] = 3e38
    nn.init.constant_(model.weight, 10.0)
    source = ArraySource(inputs, torch.zeros(300, dtype=torch.int64), "classes", 2)
    with pytest.raises(NotFiniteError, match="sample 290"):
        scores(model, source)


def test_every_sample_comes_once_in_order_and_as_it_is() -> None:
    """Over several batches."""
    source = ArraySource.of(points(600))
    batches = [one.inputs for one in plain_batches(source)]
    assert torch.equal(
        torch.cat([one for one in batches if isinstance(one, Tensor)]), torch.from_numpy(points(600).inputs)
    )
    assert len(batches) == 3


def test_a_model_is_asked_in_evaluation_mode_and_put_back() -> None:
    """Its mode is its own again afterwards."""
    model = straight().train()
    scores(model, ArraySource.of(points(6)))
    assert (model.modes, model.training) == ([False], True)
    assert isinstance(scores(model, ArraySource.of(points(6))), np.ndarray)
