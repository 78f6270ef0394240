"""The module that is trained: the student alone, or with the projector that a hint wants."""

from __future__ import annotations

import pytest
import torch
from lab_worlds import straight
from torch import nn

from edgestill.core.errors import ModelError
from edgestill.lab.loss.hint import Hint
from edgestill.lab.teacher.guide import Answer
from edgestill.lab.training.learner import Learner

HINT = Hint(teacher_layer="first", student_layer="first")
INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
ANSWER = Answer(logits=torch.zeros(6, 3), features=torch.ones(6, 7))


def test_without_a_hint_it_is_the_student() -> None:
    """The same logits, no features, no further weights."""
    model = straight()
    logits, features = Learner(model)(INPUTS)
    assert torch.equal(logits, model(INPUTS))
    assert features is None
    assert sum(one.numel() for one in Learner(model).parameters()) == sum(
        one.numel() for one in model.parameters()
    )


def test_with_a_hint_the_features_have_the_teachers_width() -> None:
    """Five of the student's become seven of the teacher's; the student itself is unchanged by asking it."""
    model = straight(hidden=5).train()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    learner = Learner.for_hint(model, HINT, INPUTS, ANSWER)
    logits, features = learner(INPUTS)
    assert features.shape == (6, 7)
    assert torch.equal(logits, model(INPUTS))
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert model.training


def test_the_gradient_of_the_features_reaches_student_and_projector() -> None:
    """Both learn from the hint; the student's head, which comes later, does not."""
    model = straight(hidden=5)
    learner = Learner.for_hint(model, HINT, INPUTS, ANSWER)
    learner(INPUTS)[1].square().sum().backward()
    assert isinstance(learner.projector, nn.Module)
    assert all(one.grad is not None for one in learner.projector.parameters())
    assert model.first.weight.grad is not None
    assert model.head.weight.grad is None


def test_a_teacher_without_features_is_refused() -> None:
    """The text names its layer."""
    with pytest.raises(ModelError, match="the teacher's features are not there; at first"):
        Learner.for_hint(straight(), HINT, INPUTS, Answer(logits=torch.zeros(6, 3)))


def test_a_layer_that_the_student_has_not_is_refused() -> None:
    """Before training."""
    hint = Hint(teacher_layer="first", student_layer="frist")
    with pytest.raises(ModelError, match="frist"):
        Learner.for_hint(straight(), hint, INPUTS, ANSWER)
