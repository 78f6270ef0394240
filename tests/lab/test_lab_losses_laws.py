"""What holds for the losses on any logits, and their agreement with plain formulas in numpy and float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgestill.lab.loss.losses import (
    decoupled_loss,
    hard_loss,
    multilabel_hard_loss,
    multilabel_soft_loss,
    regression_hard_loss,
    regression_soft_loss,
    relational_loss,
    soft_loss,
)

if TYPE_CHECKING:
    from collections.abc import Callable

torch.set_num_threads(1)

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

SEEDS, TAUS = st.integers(0, 2**32 - 1), st.floats(0.5, 8)


def cases(seed: int, *, scale: float = 3.0, least: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Student's and teacher's logits in float64, and labels; sizes come from the seed too."""
    random = np.random.default_rng(seed)
    n, c = int(random.integers(least, 6)), int(random.integers(2, 7))
    student, teacher = (torch.tensor(scale * random.normal(size=(n, c))) for _ in range(2))
    return student, teacher, torch.tensor(random.integers(0, c, n))


def softmax(logits: Floats) -> Floats:
    """Rows to probabilities."""
    powers = np.exp(logits)
    shares: Floats = powers / powers.sum(1, keepdims=True)
    return shares


def kl(p: Floats, q: Floats) -> Floats:
    """Of each row."""
    rows: Floats = (p * np.log(p / q)).sum(1)
    return rows


@given(SEEDS, TAUS)
def test_kd_is_the_plain_formula(seed: int, tau: float) -> None:
    """`tau^2 mean sum p log(p / q)`."""
    student, teacher, _ = cases(seed)
    expected = tau**2 * kl(softmax(teacher.numpy() / tau), softmax(student.numpy() / tau)).mean()
    assert soft_loss(student, teacher, tau=tau).item() == pytest.approx(expected, rel=1e-8, abs=1e-12)


@given(SEEDS, TAUS, st.floats(0, 4), st.floats(0, 10))
def test_dkd_is_the_plain_formula(seed: int, tau: float, alpha: float, beta: float) -> None:
    """Probabilities of the target and of the others, and those of the others among themselves."""
    student, teacher, labels = cases(seed)
    total = 0.0
    for s, t, y in zip(student.numpy(), teacher.numpy(), labels.tolist(), strict=True):
        p, q = (softmax(one[None] / tau)[0] for one in (t, s))
        pair = [np.array([[one[y], 1 - one[y]]]) for one in (p, q)]
        rest = [np.delete(one, y)[None] / np.delete(one, y).sum() for one in (p, q)]
        total += float(alpha * kl(*pair)[0] + beta * kl(*rest)[0])
    found = decoupled_loss(student, teacher, labels, tau=tau, alpha=alpha, beta=beta)
    assert found.item() == pytest.approx(tau**2 * total / len(labels), rel=1e-6, abs=1e-9)


@given(SEEDS, TAUS)
def test_dkd_with_the_teachers_doubt_as_beta_is_kd(seed: int, tau: float) -> None:
    """Equation 6: KD = TCKD + (1 - p_target) NCKD, for one sample."""
    student, teacher, labels = (one[:1] for one in cases(seed))
    doubt = 1 - softmax(teacher.numpy() / tau)[0, int(labels[0])]
    found = decoupled_loss(student, teacher, labels, tau=tau, alpha=1, beta=float(doubt))
    assert found.item() == pytest.approx(soft_loss(student, teacher, tau=tau).item(), rel=1e-6, abs=1e-9)


@given(SEEDS, TAUS, st.floats(0, 4), st.floats(0, 4))
def test_dist_is_the_plain_formula(seed: int, tau: float, beta: float, gamma: float) -> None:
    """The correlation coefficients that numpy gives, of rows and of columns."""
    student, teacher, _ = cases(seed, scale=1.0, least=2)
    q, p = softmax(student.numpy() / tau), softmax(teacher.numpy() / tau)
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    spread = min(float(np.ptp(one, axis=axis).min()) for one in (p, q) for axis in (0, 1))
    if spread > 1e-3:  # above what counts as constant
        found = relational_loss(student, teacher, tau=tau, beta=beta, gamma=gamma)
        assert found.item() == pytest.approx(tau**2 * (beta * inter + gamma * intra), rel=1e-8, abs=1e-10)


@given(SEEDS, TAUS)
def test_multilabel_is_the_plain_formula(seed: int, tau: float) -> None:
    """Two-valued divergences and cross-entropies of sigmoids, summed over labels."""
    student, teacher, _ = cases(seed)
    q, p = (1 / (1 + np.exp(-one.numpy() / tau)) for one in (student, teacher))
    expected = tau**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(1).mean()
    assert multilabel_soft_loss(student, teacher, tau=tau).item() == pytest.approx(
        expected, rel=1e-7, abs=1e-10
    )
    r, y = 1 / (1 + np.exp(-student.numpy())), (teacher > 0).double()
    cross = -(y.numpy() * np.log(r) + (1 - y.numpy()) * np.log(1 - r)).sum(1).mean()
    assert multilabel_hard_loss(student, y).item() == pytest.approx(cross, rel=1e-8)


@given(SEEDS, st.floats(0, 0.9))
def test_the_hard_loss_is_the_plain_formula_and_torchs_own(seed: int, smoothing: float) -> None:
    """Where every sample is labelled it is torch's cross-entropy."""
    student, _, labels = cases(seed)
    q, share = softmax(student.numpy()), np.full(student.shape, smoothing / student.shape[1])
    share[np.arange(len(labels)), labels.numpy()] += 1 - smoothing
    found = hard_loss(student, labels, label_smoothing=smoothing).item()
    assert found == pytest.approx(-(share * np.log(q)).sum(1).mean(), rel=1e-8)
    torchs = torch.nn.functional.cross_entropy(student, labels, label_smoothing=smoothing)
    assert found == pytest.approx(torchs.item(), rel=1e-12)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "kd": lambda s, t, _, tau: soft_loss(s, t, tau=tau),
    "dkd": lambda s, t, y, tau: decoupled_loss(s, t, y, tau=tau, alpha=1, beta=2),
    "dist": lambda s, t, _, tau: relational_loss(s, t, tau=tau, beta=1, gamma=1),
    "multi-label": lambda s, t, _, tau: multilabel_soft_loss(s, t, tau=tau),
    "regression": lambda s, t, _, __: regression_soft_loss(s, t),
    "huber": lambda s, t, _, __: regression_soft_loss(s, t, huber=0.5),
}
DIVERGENCES = ("kd", "dkd", "multi-label")


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=25)  # for each of them
@given(SEEDS, TAUS)
def test_following_is_never_negative_and_free_for_an_equal(name: str, seed: int, tau: float) -> None:
    """Every soft loss is at least 0, and 0 where the student says what the teacher says."""
    student, teacher, labels = cases(seed)
    assert LOSSES[name](student, teacher, labels, tau).item() >= -1e-9
    assert LOSSES[name](teacher.clone(), teacher, labels, tau).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", DIVERGENCES)
@settings(max_examples=25)
@given(SEEDS, TAUS)
def test_a_divergence_is_free_only_for_an_equal(name: str, seed: int, tau: float) -> None:
    """One logit moved by a tenth costs something."""
    _, teacher, labels = cases(seed, scale=1.0)
    student = teacher.clone()
    student[0, 0] += 0.1
    assert LOSSES[name](student, teacher, labels, tau).item() > 1e-8


@pytest.mark.parametrize("name", ["kd", "dkd", "dist"])
@settings(max_examples=25)
@given(SEEDS, TAUS, st.floats(-50, 50))
def test_a_constant_added_to_logits_changes_nothing(name: str, seed: int, tau: float, shift: float) -> None:
    """A softmax knows differences only."""
    student, teacher, labels = cases(seed, scale=1.0, least=2)
    plain = LOSSES[name](student, teacher, labels, tau).item()
    shifted = LOSSES[name](student + shift, teacher - shift, labels, tau).item()
    assert shifted == pytest.approx(plain, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("name", "share"), [("kd", 1 / 4), ("multi-label", 1 / 4)])
def test_at_high_temperature_the_gradient_no_longer_depends_on_it(name: str, share: float) -> None:
    """It tends to (s - t) / C for centred logits (Hinton et al. 2015, equation 4), and to (s - t) / 4 for a sigmoid."""
    student = torch.tensor([[1.0, -2.0, 3.0, -2.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[4.0, -3.0, 0.0, -1.0]], dtype=torch.float64)
    expected = ((student - teacher) * share).flatten().tolist()
    for tau in (1e3, 1e4):
        loss = LOSSES[name](student, teacher, torch.tensor([0]), tau)
        (gradient,) = torch.autograd.grad(loss, student)
        assert gradient.flatten().tolist() == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=25)  # for each of them
@given(SEEDS, TAUS)
def test_a_step_down_the_gradient_follows_the_teacher(name: str, seed: int, tau: float) -> None:
    """A small step lowers the loss."""
    student, teacher, labels = cases(seed, scale=1.0, least=2)
    student.requires_grad_()
    loss = LOSSES[name](student, teacher, labels, tau)
    (gradient,) = torch.autograd.grad(loss, student)
    after = LOSSES[name](student - 1e-4 * gradient, teacher, labels, tau)
    assert after.item() <= loss.item() + 1e-12


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradient_descent_ends_at_the_teachers_answer(name: str) -> None:
    """A student that is nothing but logits comes to say what the teacher says."""
    student, teacher, labels = cases(5, scale=1.0)
    student.requires_grad_()
    for _ in range(200):
        loss = LOSSES[name](student, teacher, labels, 2.0)
        (gradient,) = torch.autograd.grad(loss, student)
        student.data -= gradient
    answer = torch.sigmoid if name == "multi-label" else (lambda one: torch.softmax(one, 1))
    assert (answer(student) - answer(teacher)).abs().max().item() < 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    """Checked in float64, on three batches."""
    for seed in (1, 2, 3):
        student, teacher, labels = cases(seed, scale=1.0, least=2)
        student.requires_grad_()
        assert torch.autograd.gradcheck(lambda s, t=teacher, y=labels: LOSSES[name](s, t, y, 2.0), (student,))


def test_gradients_of_the_hard_losses_are_those_of_finite_differences() -> None:
    """With and without labels in one batch."""
    student = torch.tensor([[0.3, -1.0], [2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    partly = torch.tensor([[1.0, torch.nan], [0.0, 0.7]], dtype=torch.float64)
    for hard in (
        lambda s: hard_loss(s, torch.tensor([1, -1]), label_smoothing=0.1),
        lambda s: multilabel_hard_loss(s, partly, label_smoothing=0.1),
        lambda s: regression_hard_loss(s, partly),
    ):
        assert torch.autograd.gradcheck(hard, (student,))


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=25)  # for each of them
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=12, max_size=12), st.floats(0.1, 20))
def test_extreme_logits_stay_finite(name: str, values: list[float], tau: float) -> None:
    """Answers as certain as float32 can say them give a finite loss and a finite gradient."""
    student = torch.tensor(values[:6]).reshape(2, 3).requires_grad_()
    loss = LOSSES[name](student, torch.tensor(values[6:]).reshape(2, 3), torch.tensor([0, 2]), tau)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, student)[0].isfinite().all()
