"""A student that begins as a part of its teacher, and the way back."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_worlds import branches, image_net, images, motion_net, same_weights, stir_, straight
from torch import Tensor, nn

from edgestill.core.errors import ClassCountError, ModelError, SettingError
from edgestill.lab.inherit import IndexMap, fuse_parameters_, inherit_
from edgestill.lab.recipe import Selection

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGES = torch.from_numpy(images(3))
MOTIONS = torch.randn((3, 16, 6), generator=torch.Generator().manual_seed(0))
MAPS = torch.randn((3, 2, 6, 6), generator=torch.Generator().manual_seed(0))
SELECTIONS = get_args(Selection)
seeds, selections = st.integers(0, 2**32 - 1), st.sampled_from(SELECTIONS)


def narrowed(wide: nn.Module, index_map: IndexMap) -> nn.Module:
    """The teacher with every dropped output unit silenced: its weights, biases and statistics give a constant 0."""
    silent = copy.deepcopy(wide)
    for name, tensor in silent.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        out = index_map.kept[name][0] if tensor.ndim else None
        if out is None or leaf == "running_var" or isinstance(silent.get_submodule(layer), nn.Embedding):
            continue
        dropped = torch.ones(len(tensor), dtype=torch.bool)
        dropped[out] = False
        tensor[dropped] = 0
    return silent.eval()


def check(
    make: Callable[..., nn.Module], theirs: list[int], ours: list[int], example: Tensor, **how: object
) -> None:
    """Every kept weight is the teacher's, and the silenced teacher answers as the student does."""
    wide, narrow = stir_(make(*theirs)), stir_(make(*ours), seed=9)
    before = copy.deepcopy(wide)
    index_map = inherit_(narrow, wide, example[:1], **how)  # type: ignore[arg-type]  # selection and seed
    assert same_weights(wide, before)
    for name, tensor in narrow.state_dict().items():
        part = wide.state_dict()[name]
        for dim, index in enumerate(index_map.kept[name]):
            if index is not None:
                assert index.tolist() == sorted(set(index.tolist()))
                part = part.index_select(dim, index)
        assert torch.equal(tensor, part), name
    with torch.no_grad():
        torch.testing.assert_close(narrow(example), narrowed(wide, index_map)(example), rtol=1e-4, atol=1e-5)


@settings(max_examples=8)
@given(st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 9)), selections, seeds)
def test_a_plain_network_is_inherited_consistently(
    widths: tuple[int, int, int], selection: Selection, seed: int
) -> None:
    """Convolutions, a flattened map and linear layers: kept weights bit-equal, both ends of a connection agree."""
    check(image_net, [6, 7, 9], list(widths), IMAGES, selection=selection, seed=seed)


@settings(max_examples=8)
@given(st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 8)), selections, seeds)
def test_batchnorm_comes_along(widths: tuple[int, int, int], selection: Selection, seed: int) -> None:
    """Weights, biases, means and variances of BatchNorm belong to the units that were kept."""
    check(motion_net, [6, 7, 8], list(widths), MOTIONS, selection=selection, seed=seed)


@settings(max_examples=8)
@given(
    st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(1, 7)), selections, seeds
)
def test_residuals_concatenations_and_depthwise_layers_stay_coupled(
    widths: tuple[int, int, int, int], selection: Selection, seed: int
) -> None:
    """One choice serves all layers that must agree, and each branch of a concatenation has its own width."""
    check(branches, [6, 4, 5, 7], list(widths), MAPS, selection=selection, seed=seed)


class Joined(nn.Module):
    """Two branches, concatenated without a layer that spans both."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, left), nn.Linear(4, right)
        self.head = nn.Linear(left + right, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1))
        return logits


@pytest.mark.parametrize("ours", [(2, 5), (4, 3), (2, 3)])
def test_two_groups_may_meet_in_one_layer(ours: tuple[int, int]) -> None:
    """The layer behind a concatenation loses the inputs of both branches, or of the one that shrinks."""
    wide, narrow = Joined(4, 5), Joined(*ours)
    found = inherit_(narrow, wide, torch.zeros(1, 4), selection="first")
    kept = found.kept["head.weight"][1]
    assert kept is not None
    assert kept.tolist() == [*range(ours[0]), *range(4, 4 + ours[1])]


def test_the_four_selections_choose_what_they_say() -> None:
    """First, evenly spaced, largest norm, and a draw by seed; all on five units of which two stay."""
    wide = straight()
    with torch.no_grad():
        wide.first.weight.copy_(torch.tensor([1.0, 9, 2, 8, 3])[:, None].expand(5, 4))

    def kept(selection: Selection, seed: int = 0) -> list[int]:
        index = inherit_(straight(hidden=2), wide, torch.zeros(1, 4), selection=selection, seed=seed).kept
        rows, columns = index["first.weight"][0], index["head.weight"][1]
        assert rows is not None
        assert columns is not None
        assert rows.tolist() == columns.tolist()
        found: list[int] = rows.tolist()
        return found

    assert kept("first") == [0, 1]
    assert kept("uniform") == [0, 2]
    assert kept("magnitude") == [1, 3]
    assert kept("random", 4) == kept("random", 4)
    assert len({tuple(kept("random", seed)) for seed in range(20)}) > 4


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_student_of_the_teachers_widths_is_the_teacher(selection: Selection) -> None:
    """Nothing to choose means every weight, in its place."""
    wide, narrow = stir_(motion_net(4, 5, 6)), motion_net(4, 5, 6, seed=9)
    index_map = inherit_(narrow, wide, MOTIONS[:1], selection=selection)
    assert same_weights(narrow, wide)
    assert all(index is None for axes in index_map.kept.values() for index in axes)


def test_a_teacher_that_trains_or_is_frozen_is_left_so() -> None:
    """Finding the couplings changes no mode and no flag, and needs neither gradients nor their permission."""
    wide = motion_net(4, 4, 4).train()
    wide.norm2.eval()
    wide.requires_grad_(requires_grad=False)
    wide.head.weight.requires_grad_()
    before = copy.deepcopy(wide)
    with torch.no_grad():
        inherit_(motion_net(2, 2, 2), wide, MOTIONS[:1])
    assert wide.training
    assert wide.norm1.training
    assert not wide.norm2.training
    assert [name for name, one in wide.named_parameters() if one.requires_grad] == ["head.weight"]
    assert same_weights(wide, before)
    assert all(parameter.grad is None for parameter in wide.parameters())


def test_a_wider_student_is_refused() -> None:
    """The first layer that is too wide is named with both widths."""
    with pytest.raises(ModelError, match=r"\[model-unsupported\] .*wider.* at conv2; expected <= 4; got 5"):
        inherit_(motion_net(4, 5, 4), motion_net(4, 4, 4), MOTIONS[:1])


def test_a_student_that_lacks_a_layer_is_refused() -> None:
    """A missing layer that is no numbered block is named."""
    narrow = motion_net(2, 2, 2)
    narrow.norm3 = nn.Identity()  # type: ignore[assignment]  # another layer on purpose
    with pytest.raises(ModelError, match=r"not of one family; at norm3.bias, norm3.num_batches_tracked"):
        inherit_(narrow, motion_net(4, 4, 4), MOTIONS[:1])


def test_a_student_that_does_not_run_is_refused() -> None:
    """What went wrong in it is told."""
    narrow = motion_net(2, 2, 2)
    del narrow.conv3
    with pytest.raises(
        ModelError, match=r"the student's layers cannot .* at MotionNet; .*; got AttributeError: .*conv3"
    ):
        inherit_(narrow, motion_net(4, 4, 4), MOTIONS[:1])


def test_a_head_of_another_class_count_is_refused() -> None:
    """The number of classes is an error of its own, not one of widths."""
    with pytest.raises(
        ClassCountError,
        match=r"answer in different shapes; at the output; expected \[1, 3\] .*; got \[1, 5\]",
    ):
        inherit_(motion_net(2, 2, 2, classes=5), motion_net(4, 4, 4), MOTIONS[:1])


def test_a_student_whose_layers_do_not_share_a_width_is_refused() -> None:
    """One width of the teacher cannot become two: a residual ties them."""
    narrow = branches(4, 2, 2, 3)
    narrow.branch = nn.Conv2d(4, 1, 3, padding=1)  # broadcasts, and so runs
    with pytest.raises(
        ModelError, match=r"differ in a width .* at branch.weight; expected 4 \(as in stem.weight\); got 1"
    ):
        inherit_(narrow, branches(6, 4, 5, 7), MAPS[:1])


def test_a_student_of_another_family_is_refused() -> None:
    """Names that only one of them has are listed."""
    narrow = straight(hidden=2)
    narrow.register_module("extra", nn.BatchNorm1d(2))
    with pytest.raises(ModelError, match=r"not of one family; at extra.bias, extra.num_batches_tracked"):
        inherit_(narrow, straight(), torch.zeros(1, 4))


def test_a_layer_that_fits_nowhere_is_refused_with_both_shapes() -> None:
    """Another kernel size is not a part of the teacher's."""
    narrow = motion_net(2, 2, 2)
    narrow.conv1 = nn.Conv1d(6, 2, 5)
    with pytest.raises(ModelError, match=r"does not fit .* at conv1.weight; expected \(2, 6, 5\)"):
        inherit_(narrow, motion_net(4, 4, 4), MOTIONS[:1])


def test_a_teacher_that_cannot_be_run_on_the_example_is_refused() -> None:
    """What it raises becomes one error that names the part that was running."""
    with pytest.raises(
        ModelError,
        match=r"teacher's layers cannot be coupled; at MotionNet.standardise; .*; got RuntimeError",
    ):
        inherit_(motion_net(2, 2, 2), motion_net(4, 4, 4), torch.zeros(1, 3))


def test_an_unknown_selection_is_refused() -> None:
    """The four are named."""
    with pytest.raises(SettingError, match="expected random, uniform, first, magnitude; got last"):
        inherit_(straight(hidden=2), straight(), torch.zeros(1, 4), selection="last")  # type: ignore[arg-type]  # wrong on purpose


def test_an_unknown_choice_of_blocks_is_refused() -> None:
    """The two are named."""
    with pytest.raises(SettingError, match="expected first, uniform; got last"):
        inherit_(straight(hidden=2), straight(), torch.zeros(1, 4), blocks="last")  # type: ignore[arg-type]  # wrong on purpose


def test_a_refused_student_is_left_as_it_was() -> None:
    """Nothing is written before everything is known to fit."""
    narrow = motion_net(4, 5, 4)
    before = copy.deepcopy(narrow)
    with pytest.raises(ModelError):
        inherit_(narrow, motion_net(4, 4, 4), MOTIONS[:1])
    assert same_weights(narrow, before)


def inherited() -> tuple[nn.Module, nn.Module, IndexMap]:
    """A teacher, a student that was changed since, and the map between them."""
    wide, narrow = stir_(motion_net(5, 6, 7)), motion_net(2, 3, 4)
    index_map = inherit_(narrow, wide, MOTIONS[:1], selection="random", seed=3)
    return wide, stir_(narrow, seed=8), index_map


def test_fusing_with_alpha_0_leaves_the_teacher() -> None:
    """Nothing of the student comes in."""
    wide, narrow, index_map = inherited()
    before = copy.deepcopy(wide)
    fuse_parameters_(wide, narrow, index_map, alpha=0)
    assert same_weights(wide, before)


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_fusing_mixes_the_mapped_weights_and_no_others(alpha: float) -> None:
    """At the map's places stands `alpha S + (1 - alpha) T`, elsewhere the teacher's own bits."""
    wide, narrow, index_map = inherited()
    before = copy.deepcopy(wide).state_dict()
    fuse_parameters_(wide, narrow, index_map, alpha=alpha)
    for name, tensor in wide.state_dict().items():
        if not tensor.is_floating_point():
            continue
        mapped = torch.zeros_like(tensor, dtype=torch.bool)
        mapped[index_map.grid(name, tensor)] = True
        ours = narrow.state_dict()[name]
        assert int(mapped.sum()) == ours.numel()
        expected = alpha * ours + (1 - alpha) * index_map.select(name, before[name])
        assert torch.equal(index_map.select(name, tensor), expected), name
        assert torch.equal(tensor[~mapped], before[name][~mapped]), name


def test_fusing_leaves_counters_alone() -> None:
    """Integer buffers, such as BatchNorm's count of batches, are not averaged."""
    wide, narrow, index_map = inherited()
    narrow.get_buffer("norm1.num_batches_tracked").fill_(99)
    fuse_parameters_(wide, narrow, index_map, alpha=1)
    assert int(wide.get_buffer("norm1.num_batches_tracked")) == 7


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_fusing_refuses_an_alpha_out_of_range(alpha: float) -> None:
    """Weights outside [0, 1] extrapolate."""
    with pytest.raises(SettingError, match="alpha is out of range; at alpha; expected 0 to 1"):
        fuse_parameters_(*inherited(), alpha=alpha)


class TwoHeads(nn.Module):
    """A tuple of answers."""

    def __init__(self, hidden: int, other: int) -> None:
        super().__init__()
        self.body, self.one, self.two = nn.Linear(4, hidden), nn.Linear(hidden, 3), nn.Linear(hidden, other)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of two tasks."""
        x = torch.relu(self.body(x))
        return self.one(x), self.two(x)


def test_a_second_head_of_another_class_count_is_refused() -> None:
    """Every answer counts, not only the first."""
    with pytest.raises(ClassCountError, match=r"at output 1; expected \[1, 8\] .*; got \[1, 3\]"):
        inherit_(TwoHeads(4, 3), TwoHeads(6, 8), torch.zeros(1, 4))
    inherit_(TwoHeads(4, 8), TwoHeads(6, 8), torch.zeros(1, 4))


class Tables(nn.Module):
    """A table of places that no checkpoint holds, made for the network's own width and length."""

    def __init__(self, width: int, length: int = 7) -> None:
        super().__init__()
        self.words = nn.Embedding(9, width)
        places = torch.arange(length)[:, None] / 100 ** (torch.arange(width) / width)
        self.register_buffer("places", places.sin(), persistent=False)
        self.places: Tensor
        self.head = nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits."""
        x = self.words(ids) + self.places[: ids.shape[1]]
        return self.head(torch.relu(x).sum(1))  # type: ignore[no-any-return]  # untyped call


@pytest.mark.parametrize("length", [7, 6])
def test_buffers_that_no_checkpoint_holds_come_along(length: int) -> None:
    """At the units that were kept; of its places a shorter table has the first."""
    wide, narrow = Tables(8), Tables(4, length)
    index_map = inherit_(narrow, wide, torch.arange(5)[None], selection="random", seed=3)
    kept = index_map.kept["words.weight"][1]
    assert kept is not None
    assert torch.equal(narrow.places, wide.places[:length, kept])
    assert index_map.kept.keys() == narrow.state_dict().keys()


def test_a_buffer_that_only_the_student_has_is_refused() -> None:
    """Nobody could say what it should be."""
    narrow = Tables(4)
    narrow.register_buffer("more", torch.ones(4), persistent=False)
    with pytest.raises(ModelError, match="not of one family; at more"):
        inherit_(narrow, Tables(8), torch.arange(5)[None])


class Interleaved(nn.Module):
    """A grouped convolution, then channels interleaved by hand in two groups."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv1d(2, width, 3), nn.Conv1d(width, width, 1, groups=groups)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.grouped(self.first(x))
        n, c, t = x.shape
        return self.head(x.view(n, 2, c // 2, t).transpose(1, 2).reshape(n, c, t).mean(2))  # type: ignore[no-any-return]  # untyped call


@pytest.mark.parametrize(("wide", "narrow"), [((8, 4), (4, 2)), ((16, 4), (8, 2)), ((16, 2), (8, 2))])
def test_units_that_may_be_grouped_in_several_ways_are_grouped_in_one(
    wide: tuple[int, int], narrow: tuple[int, int]
) -> None:
    """Weights alone would allow others; what the layers make on their way decides for all."""
    check(
        Interleaved,
        list(wide),
        list(narrow),
        torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(0)),
    )


def test_units_that_no_one_grouping_answers_are_refused() -> None:
    """The student's layer has the teacher's two groups, where the view by hand allows only one of them."""
    with pytest.raises(ModelError, match=r"in another way"):
        inherit_(Interleaved(4, 4), Interleaved(8, 2), torch.zeros(1, 2, 6))
