"""What a carved student computes is what its part of the teacher does, or the carving is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from inherit_worlds import SERIES, Encoder, answer, silenced, tensor
from lab_worlds import stir_
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name

from edgestill.core.errors import ModelError
from edgestill.lab.inherit import carve

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.lab.inherit.trace import Example

ROWS, MAPS, TOKENS = tensor(4, 12), tensor(2, 4, 9), torch.arange(12).reshape(3, 4)


class Made(nn.Module):
    """Layers and numbers by name, and what is done with them."""

    def __init__(self, call: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.call = call
        for name, value in parts.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        """What the function says."""
        return self.call(self, x)


Net: Any = Made  # its attributes are whatever a test gives it


def check(teacher: nn.Module, example: Example, **how: Any) -> Any:
    """Carves, and holds the student's answer to that of the teacher with every other weight 0."""
    stir_(teacher)
    student, index_map = carve(teacher, example, **{"ratio": 0.5, "seed": 3, **how})
    torch.testing.assert_close(
        answer(student, example), answer(silenced(teacher, index_map), example), rtol=1e-4, atol=1e-5
    )
    return student


def mlp(net: Any, x: Tensor) -> Tensor:
    """Two layers."""
    out: Tensor = net.head(torch.relu(net.first(x)))
    return out


def looped(net: Any, x: Tensor) -> Tensor:
    """As often as it has `steps`."""
    h = net.first(x)
    for _ in range(net.steps):
        h = torch.tanh(net.cell(h))
    out: Tensor = net.head(h)
    return out


def scaled(net: Any, ids: Tensor) -> Tensor:
    """Embeddings times the root of their width, as transformers have it."""
    out: Tensor = net.head((net.words(ids) * math.sqrt(net.d_model)).mean(1))
    return out


def chosen(net: Any, x: Tensor) -> Tensor:
    """One of several layers, by its number."""
    out: Tensor = net.head(torch.relu(net.many[net.mid](x)))
    return out


KEPT: dict[str, tuple[Callable[[], nn.Module], Example, str]] = {
    "a number of steps": (
        lambda: Net(looped, first=nn.Linear(12, 16), cell=nn.Linear(16, 16), head=nn.Linear(16, 5), steps=16),
        ROWS,
        "steps",
    ),
    "a temperature": (
        lambda: Net(
            lambda net, x: mlp(net, x) / net.tau, first=nn.Linear(12, 8), head=nn.Linear(8, 5), tau=8
        ),
        ROWS,
        "tau",
    ),
    "a scale by the root of the width": (
        lambda: Net(scaled, words=nn.Embedding(30, 16), head=nn.Linear(16, 5), d_model=16),
        TOKENS,
        "d_model",
    ),
    "a place in a list": (
        lambda: Net(
            chosen, many=nn.ModuleList(nn.Linear(12, 2) for _ in range(3)), head=nn.Linear(2, 5), mid=2
        ),
        ROWS,
        "mid",
    ),
    "a size that nothing looks at": (
        lambda: Net(mlp, first=nn.Linear(12, 8), head=nn.Linear(8, 5), width=8),
        ROWS,
        "width",
    ),
}


@pytest.mark.parametrize("name", sorted(KEPT))
def test_a_number_that_is_no_size_of_the_student_stays(name: str) -> None:
    """Whatever width it equals, the student computes with the teacher's number."""
    make, example, attribute = KEPT[name]
    teacher = make()
    student = check(teacher, example)
    assert getattr(student, attribute) == getattr(teacher, attribute)


def test_a_number_that_is_a_size_and_a_scale_is_refused() -> None:
    """Neither value is right: the module and the attribute are named."""

    def both(net: Any, x: Tensor) -> Tensor:
        h = torch.relu(net.first(x)).view(-1, net.width) / net.width
        out: Tensor = net.head(h)
        return out

    teacher = Net(both, first=nn.Linear(12, 8), head=nn.Linear(8, 5), width=8)
    with pytest.raises(
        ModelError, match=r"part of its teacher; at Made\S*; .*no value of width that was tried.*in keep"
    ):
        carve(teacher, ROWS)
    assert carve(teacher, ROWS, keep=("first",))[0].width == 8


class Grid(nn.Module):
    """A view of one width as rows and columns, whose numbers are given in several attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns, self.shape, self.power = 4, 4, [4, 4], 4
        self.up, self.down = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of four classes."""
        grid = self.up(x).view(-1, self.rows, self.columns) ** self.power
        return self.down(grid.view(-1, *self.shape).flatten(1))  # type: ignore[no-any-return]  # untyped call


def test_of_many_equal_numbers_only_those_change_that_must() -> None:
    """Rows are dropped, columns stay; so do the exponent and the number of classes."""
    teacher = Grid()
    student = check(teacher, ROWS)
    assert (teacher.rows, teacher.columns, teacher.shape, teacher.power) == (4, 4, [4, 4], 4)
    assert (student.rows, student.columns, student.shape, student.power) == (2, 4, [2, 4], 4)


def test_a_list_that_stays_is_not_shared_with_the_teacher() -> None:
    """What is done to the one later must not be done to the other."""
    teacher = Net(mlp, first=nn.Linear(12, 8), head=nn.Linear(8, 5), sizes=[8, 5])
    student, _ = carve(teacher, ROWS)
    student.sizes.append(1)
    assert teacher.sizes == [8, 5]


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_other_precisions_are_held_to_their_own(kind: torch.dtype) -> None:
    """Rounding is no difference, and a wrong number still is one."""
    teacher = Net(looped, first=nn.Linear(12, 4), cell=nn.Linear(4, 4), head=nn.Linear(4, 5), steps=4).to(
        kind
    )
    assert carve(teacher, ROWS.to(kind))[0].steps == 4


def test_heads_are_told_from_one_token() -> None:
    """Attention over a single token is the same for heads of any size; the sizes on the way tell them."""

    def attend(net: Any, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).view(*x.shape[:2], net.heads, -1).transpose(1, 2) for layer in (net.q, net.k, net.v)
        )
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = net.o(found).sum(1)
        return out

    q, k, v = (nn.Linear(12, 8) for _ in range(3))
    teacher = Net(attend, q=q, k=k, v=v, o=nn.Linear(8, 5), heads=4)
    assert check(teacher, tensor(1, 1, 12)).heads == 2


@pytest.mark.parametrize("weights", [0.0, 1.0])
def test_layers_that_begin_at_one_figure_hide_nothing(weights: float) -> None:
    """Nor does an example of zeros: a wrong number behind them would be seen."""
    teacher = Net(looped, first=nn.Linear(12, 4), cell=nn.Linear(4, 4), head=nn.Linear(4, 5), steps=4)
    for parameter in teacher.parameters():
        nn.init.constant_(parameter, weights)
    assert carve(teacher, torch.zeros(1, 12))[0].steps == 4


def test_randomness_in_the_forward_pass_does_not_disturb() -> None:
    """Dropout that is always on draws other numbers for other widths; both are held to one figure while compared."""
    teacher = Net(
        lambda net, x: net.head(F.dropout(net.first(x), 0.5, training=True) + torch.rand(len(x), 1)),
        first=nn.Linear(12, 8),
        head=nn.Linear(8, 5),
    )
    assert carve(teacher, ROWS)[0].first.out_features == 4


def forked(then: Callable[[Tensor], Tensor]) -> Any:
    """A network that does something more where its units add up to little, as they do in a part but not in the whole."""

    def either(net: Any, x: Tensor) -> Tensor:
        h = torch.relu(net.first(x))
        out: Tensor = net.head(then(h) if h.sum() < net.limit else h)
        return out

    teacher: Any = Net(either, first=nn.Linear(12, 8), head=nn.Linear(8, 5))
    stir_(teacher)
    teacher.limit = 0.7 * float(torch.relu(teacher.first(ROWS)).detach().sum())
    return teacher


def test_a_way_that_depends_on_the_data_is_followed() -> None:
    """Where the part takes another way than the whole, it is that way that the student is held to."""
    student, _ = carve(forked(torch.tanh), ROWS, ratio=0.25)
    assert student.head.in_features == 2


def test_a_way_on_which_units_have_to_stay_is_refused() -> None:
    """The whole teacher does not sort, the part would: no choice of units is right for that."""
    with pytest.raises(
        ModelError, match=r"depends on the data; at Made\S*; .*; got others: sort in .*in keep"
    ):
        carve(forked(lambda h: h.sort(-1).values), ROWS, ratio=0.25)


class Fields(NamedTuple):
    """A tuple with names."""

    logits: Tensor
    other: Tensor


@dataclass
class Answer:
    """An object with fields."""

    logits: Tensor
    other: dict[str, list[Tensor]]


class Slotted:
    """An object without a dictionary."""

    __slots__ = ("logits", "other")

    def __init__(self, logits: Tensor, other: Tensor) -> None:
        self.logits, self.other = logits, other


def wrapped(how: Callable[[Tensor, Tensor], Any]) -> Any:
    """Two heads."""
    first, one, two = nn.Linear(12, 16), nn.Linear(16, 6), nn.Linear(16, 8)
    return Net(
        lambda net, x: how(net.one(torch.relu(net.first(x))), net.two(torch.relu(net.first(x)))),
        first=first,
        one=one,
        two=two,
    )


@pytest.mark.parametrize(
    "how",
    [
        lambda one, two: (one, two),
        lambda one, two: [one, {"other": two}],
        lambda one, two: {"logits": one, "other": two},
        Fields,
        lambda one, two: Answer(one, {"deep": [two]}),
        lambda one, two: SimpleNamespace(logits=one, other=two),
        Slotted,
    ],
    ids=["tuple", "list", "dict", "named tuple", "dataclass", "namespace", "slots"],
)
def test_every_tensor_that_the_network_returns_keeps_its_size(how: Callable[[Tensor, Tensor], Any]) -> None:
    """Whatever it is wrapped in, and however deep."""
    student, _ = carve(wrapped(how), ROWS)
    assert [student.get_submodule(name).out_features for name in ("first", "one", "two")] == [8, 6, 8]


def test_an_answer_that_holds_itself_is_opened_once() -> None:
    """An object may lead back to itself."""

    def circle(one: Tensor, two: Tensor) -> SimpleNamespace:
        found = SimpleNamespace(logits=one, other=[two])
        found.other.append(found)
        return found

    assert carve(wrapped(circle), ROWS)[0].two.out_features == 8


def test_an_answer_in_which_no_tensor_is_found_is_refused() -> None:
    """Nobody could say what has to stay."""
    with pytest.raises(ModelError, match=r"holds no tensor .*; at the output; .*; got function; let forward"):
        carve(wrapped(lambda one, two: lambda: (one, two)), ROWS)


def interleaved(net: Any, x: Tensor) -> Tensor:
    """Channels in two groups, by hand, behind a layer whose groups are four."""
    h = net.grouped(net.first(x))
    n, c, t = h.shape
    out: Tensor = net.head(h.view(n, 2, c // 2, t).transpose(1, 2).reshape(n, c, t).mean(2))
    return out


def test_a_view_that_groups_units_otherwise_in_the_student_is_refused() -> None:
    """Its sizes fit, its units would not be the teacher's."""
    teacher = Net(
        interleaved, first=nn.Conv1d(4, 8, 3), grouped=nn.Conv1d(8, 8, 1, groups=4), head=nn.Linear(8, 5)
    )
    with pytest.raises(ModelError, match=r"does not work as a part of its teacher; at Made\.head"):
        carve(teacher, MAPS)


EXACT: dict[str, tuple[Callable[[], nn.Module], Example, dict[str, tuple[int, ...]]]] = {
    "rolled as one row: whole": (
        lambda: Net(
            lambda net, x: net.head(net.second(torch.roll(net.first(x), 3))),
            first=nn.Linear(12, 6),
            second=nn.Linear(6, 8),
            head=nn.Linear(8, 5),
        ),
        ROWS,
        {"first.weight": (6, 12), "head.weight": (5, 4)},
    ),
    "rolled along places": (
        lambda: Net(
            lambda net, x: net.head(torch.roll(net.first(x), 1, 2).mean(2)),
            first=nn.Conv1d(4, 6, 3),
            head=nn.Linear(6, 5),
        ),
        MAPS,
        {"first.weight": (3, 4, 3)},
    ),
    "softmax over units: whole": (
        lambda: Net(
            lambda net, x: net.head(net.second(net.first(x).softmax(1))),
            first=nn.Linear(12, 6),
            second=nn.Linear(6, 8),
            head=nn.Linear(8, 5),
        ),
        ROWS,
        {"first.weight": (6, 12), "head.weight": (5, 4)},
    ),
    "one head that scales by its width: queries and keys whole": (
        lambda: Net(
            lambda net, x: net.o(F.scaled_dot_product_attention(net.q(x), net.k(x), net.v(x)).sum(1)),
            q=nn.Linear(9, 8),
            k=nn.Linear(9, 8),
            v=nn.Linear(9, 8),
            o=nn.Linear(8, 5),
        ),
        MAPS,
        {"q.weight": (8, 9), "k.weight": (8, 9), "v.weight": (4, 9)},
    ),
    "one head with a scale of its own": (
        lambda: Net(
            lambda net, x: net.o(
                F.scaled_dot_product_attention(net.q(x), net.k(x), net.v(x), scale=0.3).sum(1)
            ),
            q=nn.Linear(9, 8),
            k=nn.Linear(9, 8),
            v=nn.Linear(9, 8),
            o=nn.Linear(8, 5),
        ),
        MAPS,
        {"q.weight": (4, 9), "k.weight": (4, 9), "v.weight": (4, 9)},
    ),
    "groups that do not divide each other: their width stays": (
        lambda: Net(
            lambda net, x: net.head(net.b(torch.relu(net.a(net.first(x)))).mean(2)),
            first=nn.Conv1d(4, 24, 3),
            a=nn.Conv1d(24, 24, 1, groups=4),
            b=nn.Conv1d(24, 12, 1, groups=6),
            head=nn.Linear(12, 5),
        ),
        MAPS,
        {"b.weight": (6, 4, 1), "head.weight": (5, 6)},
    ),
    "a group norm before other groups": (
        lambda: Net(
            lambda net, x: net.head(net.b(net.norm(net.first(x))).mean(2)),
            first=nn.Conv1d(4, 24, 3),
            norm=nn.GroupNorm(6, 24),
            b=nn.Conv1d(24, 24, 1, groups=4),
            head=nn.Linear(24, 5),
        ),
        MAPS,
        {"first.weight": (24, 4, 3), "head.weight": (5, 12)},
    ),
    "weights without a layer, by einsum": (
        lambda: Net(
            lambda net, x: torch.einsum("nh,hk->nk", torch.relu(torch.einsum("nd,dh->nh", x, net.a)), net.b),
            a=nn.Parameter(torch.randn(12, 8)),
            b=nn.Parameter(torch.randn(8, 5)),
        ),
        ROWS,
        {"a": (12, 4), "b": (4, 5)},
    ),
    "experts: all stay, each narrower": (
        lambda: Net(
            lambda net, x: (
                torch.matmul(torch.relu(torch.matmul(x[None], net.a)), net.b)
                * net.gate(x).softmax(-1).t()[:, :, None]
            ).sum(0),
            a=nn.Parameter(torch.randn(4, 12, 8)),
            b=nn.Parameter(torch.randn(4, 8, 5)),
            gate=nn.Linear(12, 4),
        ),
        ROWS,
        {"a": (4, 12, 4), "b": (4, 4, 5), "gate.weight": (4, 12)},
    ),
}


@pytest.mark.parametrize("name", sorted(EXACT))
def test_units_are_cut_only_where_the_answer_stays_that_of_a_part(name: str) -> None:
    """The teacher with every other weight 0 answers as the student does."""
    make, example, shapes = EXACT[name]
    torch.manual_seed(0)
    found = check(make(), example).state_dict()
    assert {one: tuple(found[one].shape) for one in shapes} == shapes


def test_attention_with_one_head_stays_whole() -> None:
    """PyTorch's layer scales by the width of its head."""
    student, _ = carve(Encoder(12, 1, 10), SERIES)
    assert student.head.in_features == 12
    assert student.get_parameter("layers.layers.0.linear1.weight").shape == (5, 12)


def test_a_mean_over_cut_units_is_that_of_those_that_stay() -> None:
    """So it is not the teacher's with the others at 0: what `docs/lab.md` says of norms and means."""
    teacher = stir_(
        Net(
            lambda net, x: net.head(net.first(x) * net.first(x).mean(1, keepdim=True)),
            first=nn.Linear(12, 8),
            head=nn.Linear(8, 5),
        )
    )
    student, index_map = carve(teacher, ROWS)
    silent = silenced(teacher, index_map)
    h = silent.get_submodule("first")(ROWS)
    expected = silent.get_submodule("head")(h * h.sum(1, keepdim=True) / 4)
    torch.testing.assert_close(answer(student, ROWS), expected, rtol=1e-4, atol=1e-5)


def test_a_mean_by_hand_over_cut_units_is_refused() -> None:
    """The width it divides by is a number in the forward pass, which is another one in the student."""
    teacher = Net(
        lambda net, x: net.head(net.first(x) / net.first(x).shape[1]),
        first=nn.Linear(12, 8),
        head=nn.Linear(8, 5),
    )
    with pytest.raises(ModelError, match=r"at Made\.head; .*; got it returns other figures than its part"):
        carve(teacher, ROWS)


@pytest.mark.parametrize(
    ("call", "how", "why"),
    [
        (lambda net, x: net.head(net.first(x).sort(-1).values), {}, "first: sort in the network itself"),
        (lambda net, x: net.head(net.first(x).softmax(1)), {"probability": 0.5}, "first: _softmax in"),
        (mlp, {"multiple_of": 16}, "first: 8 units are no multiple of 16"),
    ],
)
def test_a_carving_that_can_cut_nothing_is_refused(
    call: Callable[..., Tensor], how: dict[str, Any], why: str
) -> None:
    """Each layer's reason is told."""
    teacher = Net(call, first=nn.Linear(12, 8), head=nn.Linear(8, 5))
    with pytest.raises(
        ModelError, match=rf"nothing of the teacher can be cut; at Made; .*; got {why}.*; head: it is the net"
    ):
        carve(teacher, ROWS, **how)


def test_nothing_to_cut_is_no_error_where_all_may_stay() -> None:
    """A ratio of 1 asks for nothing, and what is named in keep was meant to stay."""
    teacher = Net(
        lambda net, x: net.head(net.first(x).sort(-1).values), first=nn.Linear(12, 8), head=nn.Linear(8, 5)
    )
    assert carve(teacher, ROWS, ratio=1)[0].first.out_features == 8
    teacher = Net(mlp, first=nn.Linear(12, 8), head=nn.Linear(8, 5))
    assert carve(teacher, ROWS, keep=("first",))[0].first.out_features == 8
