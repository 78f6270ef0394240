"""Feature hints: what is watched, how widths and sizes meet, what the loss says, and what is left behind."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgestill.core.errors import ModelError, SettingError, ShapeError
from edgestill.lab.loss.hint import Features, Hint, hint_loss, projector_for, watching

torch.set_num_threads(1)


class Maps(nn.Module):
    """`[N, 1, 8, 8]` -> 2 logits by way of `width` channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.bend = nn.Conv2d(1, width, 3, padding=1), nn.ReLU()
        self.flat, self.head = nn.Flatten(), nn.Linear(width * 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.flat(self.bend(self.stem(x))))
        return logits


def maps(width: int, *, seed: int = 0) -> Maps:
    """A Maps whose weights depend on the seed only."""
    torch.manual_seed(seed)
    return Maps(width)


class Talker(nn.Module):
    """A layer whose output is whatever it was given."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.output = output
        self.inner.register_forward_hook(lambda *_: self.output)

    def forward(self, x: Tensor) -> Tensor:
        """The input, after the layer was asked."""
        self.inner(x)
        return x


def hooks(model: nn.Module) -> int:
    """How many forward hooks hang on a network."""
    return sum(len(module._forward_hooks) for module in model.modules())


def test_a_watched_layer_gives_its_output_with_its_graph() -> None:
    """The features are those the layer made in this pass, and a loss on them reaches its weights."""
    model, x = maps(3), torch.randn(2, 1, 8, 8)
    with watching(model, "stem") as features:
        model(x)
        assert torch.equal(features.tensor, model.stem(x))
        features.tensor.sum().backward()  # type: ignore[no-untyped-call]
    assert model.stem.weight.grad is not None


def test_the_hook_is_gone_when_the_block_ends() -> None:
    """Nothing is left on the network, and the graph is let go, also when the block fails."""
    model = maps(3)
    with watching(model, "stem") as features:
        assert hooks(model) == 1
        model(torch.zeros(1, 1, 8, 8))
    assert hooks(model) == 0
    with pytest.raises(ModelError, match=r"no forward pass went through this layer; at stem"):
        _ = features.tensor
    with pytest.raises(ZeroDivisionError), watching(model, "bend"):
        _ = 1 / 0
    assert hooks(model) == 0


def test_one_pass_gives_logits_and_features() -> None:
    """The student runs once a step: watching asks for no second pass (a peer runs it twice)."""
    model, passes = maps(3), []
    model.register_forward_hook(lambda *_: passes.append(1))
    with watching(model, "stem") as features:
        logits = model(torch.zeros(1, 1, 8, 8))
        assert features.tensor.shape == (1, 3, 8, 8)
    assert logits.shape == (1, 2)
    assert len(passes) == 1


def test_a_layer_that_was_not_reached_is_named() -> None:
    """Reading before any pass is an error with the layer's name."""
    with (
        watching(maps(3), "bend") as features,
        pytest.raises(ModelError, match=r"\[model-unsupported\].*at bend"),
    ):
        _ = features.tensor


def test_an_unknown_layer_is_refused_with_the_nearest_name() -> None:
    """A misspelt name is an error that names the nearest; a wholly wrong one lists what there is."""
    model = maps(3)
    with (
        pytest.raises(ModelError, match=r"no such layer.*at steem; .*; got Maps; did you mean 'stem'\?"),
        watching(model, "steem"),
    ):
        pass
    with pytest.raises(ModelError, match=r"known layers: stem, bend, flat, head"), watching(model, "xyz"):
        pass
    with pytest.raises(ModelError, match="no such layer"), watching(model, ""):
        pass


@pytest.mark.parametrize("shape", ["tuple", "list", "mapping", "nested"])
def test_the_first_tensor_of_an_output_counts(shape: str) -> None:
    """Recurrent layers give tuples, transformers mappings; what comes first is the features."""
    first, second = torch.ones(2, 3), torch.zeros(2, 3)
    output = {
        "tuple": (first, second),
        "list": [first, second],
        "mapping": {"last_hidden_state": first, "pooled": second},
        "nested": (None, (first, second)),
    }[shape]
    model = Talker(output)
    with watching(model, "inner") as features:
        model(second)
        assert features.tensor is first


def test_a_recurrent_layer_can_be_watched() -> None:
    """An LSTM's features are its output sequence, not its state."""
    model = nn.Sequential(OrderedDict([("lstm", nn.LSTM(3, 5, batch_first=True))]))
    with watching(model, "lstm") as features:
        model(torch.zeros(2, 7, 3))
        assert features.tensor.shape == (2, 7, 5)


def test_an_output_without_a_tensor_is_refused() -> None:
    """A layer that gives no tensor cannot be followed."""
    with pytest.raises(ModelError, match=r"must give a tensor; at inner; expected a tensor; got dict"):
        Features("inner").take({"text": "none"})


@pytest.mark.parametrize(
    ("student", "teacher", "channels", "kind"),
    [
        ((4, 6), (4, 9), "first", nn.Linear),
        ((4, 6), (4, 9), "last", nn.Linear),
        ((4, 6, 10), (4, 9, 10), "first", nn.Conv1d),
        ((4, 10, 6), (4, 10, 9), "last", nn.Linear),
        ((4, 6, 8, 8), (4, 9, 8, 8), "first", nn.Conv2d),
        ((4, 8, 8, 6), (4, 8, 8, 9), "last", nn.Linear),
    ],
)
def test_a_projector_lifts_the_channels(
    student: tuple[int, ...], teacher: tuple[int, ...], channels: Any, kind: type[nn.Module]
) -> None:
    """Its output has the teacher's shape, and the loss takes it."""
    projector = projector_for(student, teacher, channels=channels)
    assert type(projector) is kind
    projected = projector(torch.randn(student))
    assert projected.shape == teacher
    assert hint_loss(projected, torch.randn(teacher), channels=channels).isfinite()


@pytest.mark.parametrize("shapes", [((4, 6), (4, 9, 2)), ((4,), (4,)), ((1, 2, 3, 4, 5), (1, 2, 3, 4, 5))])
def test_layers_of_different_kinds_are_refused(shapes: Any) -> None:
    """A vector cannot follow a map."""
    with pytest.raises(ShapeError, match=r"two layers of the same kind.*the student's.*the teacher's"):
        projector_for(*shapes)


def test_the_loss_by_hand() -> None:
    """Projected (1, 2), teacher (3, 0): squared errors 4 + 4, the teacher's squares 9 + 0: 8 / 9."""
    assert hint_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0]])).item() == pytest.approx(8 / 9)


def test_the_loss_is_0_for_a_copy_and_1_for_silence_at_any_scale() -> None:
    """It is relative to the teacher's mean square, so that one weight fits every network."""
    teacher = torch.randn(3, 4, 5, 5)
    for scale in (1e-2, 1, 1e3):
        assert hint_loss(scale * teacher, scale * teacher).item() == 0
        assert hint_loss(0 * teacher, scale * teacher).item() == pytest.approx(1)


def test_a_dead_layer_of_the_teacher_gives_a_finite_loss() -> None:
    """Features that are all 0 are not divided by 0."""
    assert hint_loss(torch.zeros(2, 3), torch.zeros(2, 3)).item() == 0
    assert hint_loss(torch.full((2, 3), 1e-4), torch.zeros(2, 3)).item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("channels", ["first", "last"])
def test_the_larger_map_is_averaged_down(channels: Any) -> None:
    """Whichever of the two is larger, and also where each is larger in one direction."""
    fine = torch.arange(16.0).reshape(1, 1, 4, 4)
    coarse = torch.tensor([[2.5, 4.5], [10.5, 12.5]]).reshape(1, 1, 2, 2)  # means of 2 x 2 blocks
    if channels == "last":
        fine, coarse = fine.movedim(1, -1), coarse.movedim(1, -1)
    assert hint_loss(fine, coarse, channels=channels).item() == 0
    assert hint_loss(coarse, fine, channels=channels).item() == 0
    wide, tall = torch.ones(1, 1, 2, 6), torch.ones(1, 1, 6, 2)
    assert hint_loss(wide, tall).item() == 0


def test_longer_sequences_are_averaged_down() -> None:
    """Tokens (1, 3, 5, 7) against two: means 2 and 6."""
    long, short = torch.tensor([[[1.0], [3.0], [5.0], [7.0]]]), torch.tensor([[[2.0], [6.0]]])
    assert hint_loss(long, short, channels="last").item() == 0


def test_other_channels_or_samples_are_refused() -> None:
    """Without a projector the widths do not meet, and nothing is broadcast."""
    with pytest.raises(ShapeError, match=r"expected \[2, 9\] .*got \[2, 6\]; put projector_for"):
        hint_loss(torch.zeros(2, 6), torch.zeros(2, 9))
    with pytest.raises(ShapeError, match=r"expected \[3, 6\] .*got \[1, 6\]"):
        hint_loss(torch.zeros(1, 6), torch.zeros(3, 6))


def test_half_precision_features_are_compared_in_float32_and_the_teacher_is_left_alone() -> None:
    """The loss is float32 for bfloat16 features, and no gradient reaches the teacher."""
    ours = torch.randn(2, 3, dtype=torch.bfloat16, requires_grad=True)
    theirs = torch.randn(2, 3, dtype=torch.bfloat16, requires_grad=True)
    loss = hint_loss(ours, theirs)
    assert loss.dtype == torch.float32
    found, none = torch.autograd.grad(loss, (ours, theirs), allow_unused=True)
    assert found.isfinite().all()
    assert none is None


def test_the_gradient_is_that_of_finite_differences() -> None:
    """Checked in float64, with the student's map the larger."""
    ours = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    theirs = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda one: hint_loss(one, theirs), (ours,))


def test_student_and_projector_learn_together_and_the_projector_is_thrown_away() -> None:
    """A hint halves its own loss in some steps, trains the watched layer, and leaves the student's keys as they were."""
    student, teacher = maps(3, seed=1), maps(8, seed=2).eval()
    hint = Hint(student_layer="bend", teacher_layer="bend")
    projector = projector_for((1, 3, 8, 8), (1, 8, 8, 8), channels=hint.channels)
    before, keys = student.stem.weight.detach().clone(), list(student.state_dict())
    trained = [*student.stem.parameters(), *projector.parameters()]
    x, history = torch.randn(16, 1, 8, 8), []
    with watching(student, hint.student_layer) as ours, watching(teacher, hint.teacher_layer) as theirs:
        for _ in range(40):
            student(x)
            with torch.no_grad():
                teacher(x)
            loss = hint_loss(projector(ours.tensor), theirs.tensor, channels=hint.channels)
            for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
                parameter.data -= 0.2 * gradient
            history.append(loss.item())
    assert history[-1] < history[0] / 2
    assert not torch.equal(before, student.stem.weight)
    assert list(student.state_dict()) == keys


def test_a_hint_names_two_layers_and_a_known_place_of_channels() -> None:
    """Empty names and unknown places are refused when the hint is made."""
    with pytest.raises(SettingError, match=r"at teacher_layer; expected a layer's name"):
        Hint(student_layer="stem", teacher_layer="")
    unknown: Any = "middle"
    with pytest.raises(SettingError, match=r"at channels; expected first or last; got middle"):
        Hint(student_layer="stem", teacher_layer="stem", channels=unknown)
