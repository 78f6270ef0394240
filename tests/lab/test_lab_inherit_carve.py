"""A student made out of its teacher: how wide it becomes, what it knows of its own sizes, and what is refused."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from inherit_worlds import (
    PICTURES,
    SERIES,
    TOKENS,
    WORLDS,
    Bert,
    Encoder,
    Mobile,
    Recurrent,
    ResNet,
    ViT,
    Wave,
    answer,
    made,
    tensor,
)
from lab_worlds import same_weights, stir_
from torch import Tensor, nn

from edgestill.core.errors import ModelError, SettingError
from edgestill.lab.inherit import carve


def part(model: nn.Module, name: str) -> Any:
    """A module by its name, whatever it is."""
    return model.get_submodule(name)


def chain(*layers: nn.Module) -> nn.Sequential:
    """Layers `0`, `1`, ... in evaluation mode."""
    return nn.Sequential(*layers).eval()


def shapes(model: nn.Module, *names: str) -> list[tuple[int, ...]]:
    """Of these tensors."""
    return [tuple(model.state_dict()[name].shape) for name in names]


def test_every_width_is_cut_to_the_ratio() -> None:
    """Half of every stage, and what the network takes and answers stays."""
    student, _ = carve(ResNet(8, 6, 12), PICTURES, ratio=0.5)
    assert shapes(student, "conv.weight", "layer1.0.conv1.weight", "layer2.1.conv2.weight", "fc.weight") == [
        (4, 3, 3, 3),
        (3, 4, 3, 3),
        (6, 3, 3, 3),
        (3, 6),
    ]


def test_a_ratio_of_one_gives_the_teacher() -> None:
    """Nothing is dropped."""
    teacher = stir_(ResNet())
    student, index_map = carve(teacher, PICTURES, ratio=1)
    assert same_weights(student, teacher)
    assert all(index is None for axes in index_map.kept.values() for index in axes)


def test_at_least_one_unit_stays() -> None:
    """However small the share, and whatever the coin says."""
    for student in (carve(ResNet(), PICTURES, ratio=1e-6)[0], carve(ResNet(), PICTURES, probability=1e-6)[0]):
        assert student.conv.out_channels == student.fc.in_features == 1


def test_a_probability_keeps_each_unit_by_itself() -> None:
    """Counts vary as tosses of a coin do, round their mean."""
    net = chain(nn.Linear(2, 400), nn.ReLU(), nn.Linear(400, 3))
    counts = [
        carve(net, tensor(1, 2), probability=0.25, seed=seed)[0].get_parameter("2.weight").shape[1]
        for seed in range(6)
    ]
    assert len(set(counts)) > 3
    assert all(60 < count < 140 for count in counts)
    assert (
        carve(net, tensor(1, 2), probability=0.25, seed=2)[0].get_parameter("2.weight").shape[1] == counts[2]
    )


def test_widths_may_be_named() -> None:
    """By module, as a share or a number of units, the others following the ratio; what is kept stays."""
    student, _ = carve(
        ResNet(8, 6, 12), PICTURES, ratio=0.5, keep=("layer2",), widths={"conv": 5, "layer1.0.conv1": 1.0}
    )
    assert student.conv.out_channels == 5
    assert [part(student, f"layer1.{at}.conv1").out_channels for at in range(2)] == [6, 3]
    assert student.fc.in_features == 12


def test_widths_are_rounded_to_a_multiple() -> None:
    """Where the teacher's width has one; else it stays."""
    student, _ = carve(ResNet(16, 6, 24), PICTURES, ratio=0.4, multiple_of=8)
    assert shapes(student, "conv.weight", "layer1.0.conv1.weight", "fc.weight") == [
        (8, 3, 3, 3),
        (6, 8, 3, 3),
        (3, 8),
    ]


def test_heads_are_dropped_whole_and_the_width_follows() -> None:
    """Three heads of four in a width of twelve become two in eight."""
    student, index_map = carve(ViT(12, 3, 4, 10), PICTURES, ratio=0.6)
    attention = part(student, "blocks.0.attn")
    assert (attention.num_heads, attention.head_dim) == (2, 4)
    assert shapes(student, "blocks.0.attn.qkv.weight", "pos_embed", "cls_token", "blocks.0.gamma") == [
        (24, 8),
        (1, 5, 8),
        (1, 1, 8),
        (8,),
    ]
    rows = index_map.kept["blocks.0.attn.qkv.weight"][0]
    assert rows is not None
    assert (rows.reshape(6, 4) % 4 == torch.arange(4)).all()


def test_modules_know_their_new_sizes() -> None:
    """Attributes of PyTorch's layers and of hand-written ones, whatever they are called."""
    bert, _ = carve(Bert(12, 3, 4, 10), WORLDS["bert"].example, ratio=0.7)
    attention = part(bert, "layer.0.attention")
    assert (attention.num_attention_heads, attention.attention_head_size, attention.all_head_size) == (
        2,
        4,
        8,
    )
    assert (bert.words.embedding_dim, part(bert, "norm").normalized_shape) == (8, (8,))
    mobile, _ = carve(Mobile(6, 10, 4, 8), PICTURES)
    depthwise = part(mobile, "one.body.3")
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (5, 5, 5)
    assert part(mobile, "one.body.4").num_features == 5
    wave, _ = carve(Wave(8, 12, 4), tensor(2, 2, 20))
    assert [
        (part(wave, "body.1").num_groups, part(wave, "body.1").num_channels),
        part(wave, "body.2").num_parameters,
    ] == [(2, 4), 4]
    assert (
        part(wave, "body.3").groups,
        part(wave, "body.3").in_channels,
        part(wave, "body.3").out_channels,
    ) == (2, 4, 6)
    lstm, _ = carve(Recurrent(6, 8), TOKENS)
    rnn = part(lstm, "rnn")
    assert (rnn.input_size, rnn.hidden_size, lstm.head.in_features) == (3, 4, 8)
    encoder, _ = carve(Encoder(12, 3, 10), SERIES, ratio=0.7)
    own = part(encoder, "layers.layers.0.self_attn")
    assert (own.embed_dim, own.num_heads, own.head_dim, own.kdim) == (8, 2, 4, 8)


def test_a_teacher_is_left_as_it_was() -> None:
    """Modes, flags, weights, sizes and gradients; the student has the modes and flags, and no gradients."""
    teacher = ResNet().train()
    stir_(teacher).train()
    teacher.bn.eval()
    teacher.requires_grad_(requires_grad=False)
    teacher.fc.weight.requires_grad_()
    teacher.fc.weight.grad = torch.ones_like(teacher.fc.weight)
    before = copy.deepcopy(teacher)
    student, _ = carve(teacher, PICTURES)
    assert same_weights(teacher, before)
    assert repr(teacher) == repr(before)
    for model in (teacher, student):
        assert model.training
        assert not model.bn.training
        assert [name for name, one in model.named_parameters() if one.requires_grad] == ["fc.weight"]
    assert teacher.fc.weight.grad is not None
    assert student.fc.weight.grad is None


def test_a_shared_weight_stays_shared() -> None:
    """An embedding that is also the last layer's matrix is cut once, along the width only."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.inner, self.out = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9)
            self.out.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            """Scores of the next word."""
            return self.out(torch.relu(self.inner(self.words(ids))))  # type: ignore[no-any-return]  # untyped call

    student, index_map = carve(Tied(), torch.arange(4)[None])
    assert student.out.weight is student.words.weight
    assert tuple(student.words.weight.shape) == (9, 3)
    assert index_map.kept["out.weight"][1] is index_map.kept["words.weight"][1] or torch.equal(
        index_map.kept["out.weight"][1],  # type: ignore[arg-type]  # both were cut
        index_map.kept["words.weight"][1],  # type: ignore[arg-type]  # as above
    )


def test_a_student_of_a_student_is_carved() -> None:
    """What came out can go in again."""
    first, _ = carve(ViT(16, 4, 4, 12), PICTURES)
    second, _ = carve(first, PICTURES)
    assert part(second, "blocks.0.attn").num_heads == 1
    assert second.head.in_features == 4


def test_a_carved_student_can_be_exported() -> None:
    """Its shapes are plain: the exported program answers as the module does."""
    student, _ = carve(ViT(12, 3, 4, 10), PICTURES, ratio=0.6)
    program = torch.export.export(student.eval(), (PICTURES,))
    torch.testing.assert_close(program.module()(PICTURES), answer(student, PICTURES))


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The tensor attributes self.rnn"
)  # PyTorch's own, for any recurrent module
@pytest.mark.parametrize("name", sorted(WORLDS))
def test_every_carved_student_can_be_exported_and_trained(name: str) -> None:
    """Each architecture: the exported program answers as the module does, and gradients reach every weight it uses."""
    world = WORLDS[name]
    student, _ = carve(made(world, world.wide), world.example, ratio=0.6)
    positional, named = ((), world.example) if isinstance(world.example, dict) else ((world.example,), {})
    program = torch.export.export(student, positional, named)
    found = program.module()(*positional, **named)
    torch.testing.assert_close(
        found["logits"] if isinstance(found, dict) else found, answer(student, world.example)
    )
    out = student(*positional, **named)
    (out["logits"] if isinstance(out, dict) else out).sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


class Stiff(nn.Module):
    """Writes a size of its own into its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, 8, 8]` -> logits."""
        return self.head(torch.relu(self.conv(x)).reshape(-1, 256))  # type: ignore[no-any-return]  # untyped call


def test_a_forward_pass_with_sizes_of_its_own_is_refused() -> None:
    """The place and a way out are named; keeping that width works."""
    with pytest.raises(
        ModelError,
        match=r"does not work as a part of its teacher; at Stiff\S*; .*; got .*name the layer in keep",
    ):
        carve(Stiff(), PICTURES)
    student, _ = carve(Stiff(), PICTURES, keep=("conv",))
    assert student.conv.out_channels == 4


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"ratio": 0.0}, "share is out of range; at ratio; expected more than 0, at most 1; got 0.0"),
        ({"ratio": float("nan")}, "at ratio"),
        ({"probability": 1.5}, "at probability"),
        (
            {"selection": "best"},
            "unknown selection; at selection; expected random, uniform, first, magnitude; got best",
        ),
        ({"multiple_of": 0}, "multiple_of is out of range"),
        ({"keep": ("convs",)}, "no module of this name runs; at convs; .*; did you mean 'conv'"),
        ({"widths": {"cnv": 0.5}}, "no module of this name runs; at cnv; .*; did you mean 'conv'"),
        ({"widths": {"conv": 0}}, "width is out of range; at conv"),
        ({"widths": {"conv": 2.5}}, "width is out of range; at conv"),
        ({"widths": {"conv": 9}}, "cannot have this width; at conv; expected for instance 8; got 9"),
        ({"widths": {"fc": 0.5}}, "no width that can be cut; at fc"),
    ],
)
def test_a_wish_that_cannot_be_granted_is_refused(how: dict[str, object], message: str) -> None:
    """The setting and its range are named."""
    with pytest.raises(SettingError, match=message):
        carve(ResNet(), PICTURES, **how)  # type: ignore[arg-type]  # wrong on purpose


def test_a_width_that_would_split_a_head_is_refused() -> None:
    """A width that heads make is a multiple of a head's size."""
    with pytest.raises(
        SettingError, match=r"cannot have this width; at blocks.0.attn.qkv; expected for instance 24; got 20"
    ):
        carve(ViT(12, 3, 4, 10), PICTURES, widths={"blocks.0.attn.qkv": 20})


def test_all_attention_in_one_width_has_as_many_heads() -> None:
    """PyTorch's layers share the residual's width, so that a coin tossed for one of them serves all."""
    for seed in range(8):
        student, _ = carve(Encoder(12, 3, 10), SERIES, probability=0.5, seed=seed)
        heads = [part(student, f"layers.layers.{at}.self_attn").num_heads for at in range(2)]
        assert [4 * many for many in heads] == [student.head.in_features] * 2


def test_the_width_round_attention_may_be_named() -> None:
    """The heads follow."""
    student, _ = carve(Encoder(12, 3, 10), SERIES, widths={"embed": 8})
    assert part(student, "layers.layers.0.self_attn").num_heads == 2
    student, _ = carve(Encoder(12, 3, 10), SERIES, ratio=0.9, widths={"layers.layers.1.self_attn": 4})
    assert student.head.in_features == 4
    with pytest.raises(
        SettingError, match="cannot have this width; at embed; expected for instance 8; got 7"
    ):
        carve(Encoder(12, 3, 10), SERIES, widths={"embed": 7})


def test_attention_in_a_width_that_stays_keeps_its_heads() -> None:
    """PyTorch's attention needs its heads to fill the width it takes."""
    student, _ = carve(Encoder(12, 3, 10), SERIES, keep=("embed",))
    assert part(student, "layers.layers.0.self_attn").num_heads == 3
    assert part(student, "layers.layers.0.linear1").out_features == 5


def test_an_unknown_operation_keeps_what_it_touches() -> None:
    """Sorting looks at positions: the width before it stays, the one behind it is cut."""

    class Sorts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(3, 6), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            """Logits."""
            return self.head(torch.relu(self.two(self.one(x).sort(-1).values)))  # type: ignore[no-any-return]  # untyped call

    student, _ = carve(Sorts(), tensor(2, 3))
    assert (student.one.out_features, student.two.out_features) == (6, 4)
    with pytest.raises(SettingError, match="no width that can be cut; at one"):
        carve(Sorts(), tensor(2, 3), widths={"one": 3})


def test_names_of_attributes_do_not_matter_but_their_meaning_does() -> None:
    """Two attributes of one value, of which only one may change: the student's own trace decides."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.classes = 4, 4, 4
            self.up, self.down = nn.Linear(5, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            """`[N, 5]` -> `[N, 4]`; four groups of four, of which groups are dropped."""
            wide = torch.relu(self.up(x)).view(-1, self.a, self.b)
            return self.down(wide.softmax(-1).flatten(1))  # type: ignore[no-any-return]  # untyped call

    student, _ = carve(Odd(), tensor(2, 5))
    assert (student.a, student.b, student.up.out_features) == (2, 4, 8)


def test_layers_by_name_in_a_sequence_keep_their_names() -> None:
    """The student's `state_dict` has the teacher's names."""
    net = nn.Sequential(OrderedDict(first=nn.Linear(2, 6), act=nn.Tanh(), last=nn.Linear(6, 3))).eval()
    student, index_map = carve(net, tensor(1, 2))
    assert list(student.state_dict()) == list(net.state_dict()) == list(index_map.kept)
