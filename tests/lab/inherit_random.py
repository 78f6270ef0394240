"""Random small networks of every kind of layer in which units meet only through weights, for laws that must hold for all."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name

if TYPE_CHECKING:
    from collections.abc import Callable

PLACES = 6


class Step(nn.Module):
    """One operation `[N, C, T]` -> `[N, C', T]`, on one tensor or two."""

    def __init__(self, call: Callable[..., Tensor], out: int, *layers: nn.Module) -> None:
        super().__init__()
        self.call, self.layers = call, nn.ModuleList(layers)
        self.steps = self._out = out  # a number that happens to be a width, and means something else

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the function makes of tensors and layers; the last factor is 1 only where `steps` is as it was."""
        out: Tensor = self.call(*inputs, *self.layers)
        return out * (self.steps / self._out)


class Heads(nn.Module):
    """Attention with heads of two, given by their number or by their size."""

    def __init__(self, width: int, *, by_size: bool) -> None:
        super().__init__()
        self.heads, self.size, self.by_size = width // 2, 2, by_size
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T, C]`."""
        shape = (*x.shape[:2], -1, self.size) if self.by_size else (*x.shape[:2], self.heads, -1)
        q, k, v = (one.reshape(shape).transpose(1, 2) for one in self.qkv(x).chunk(3, -1))
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(found)  # type: ignore[no-any-return]  # untyped call


class Scan(nn.Module):
    """A recurrent layer in both directions."""

    def __init__(self, width: int, kind: Callable[..., nn.RNNBase], hidden: int) -> None:
        super().__init__()
        self.rnn = kind(width, hidden, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T, C]`."""
        found: Tensor = self.rnn(x)[0]
        return found


def turned(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """A layer on `[N, T, C]` as one on `[N, C, T]`."""
    return lambda x: layer(x.transpose(1, 2)).transpose(1, 2)


class Maker:
    """Draws steps, each with the channels that come out."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def width(self) -> int:
        """Of a layer."""
        return self.draw.choice([4, 6, 8, 12])

    def one(self, c: int) -> Step:
        """On one tensor of `c` channels."""
        kinds = [
            self.conv,
            self.conv2d,
            self.depthwise,
            self.grouped,
            self.transposed,
            self.norm,
            self.linear,
        ]
        kinds += [self.excite, self.scan, self.opposite, self.gate, self.swap, self.attend, self.group_norm]
        return self.draw.choice(kinds)(c)

    def conv(self, c: int) -> Step:
        """Plain."""
        out = self.width()
        return Step(lambda x, m: m(x), out, nn.Conv1d(c, out, 3, padding=1))

    def conv2d(self, c: int) -> Step:
        """On a map of two rows."""
        out = self.width()
        return Step(
            lambda x, m: m(x.unflatten(-1, (2, -1))).flatten(-2), out, nn.Conv2d(c, out, 3, padding=1)
        )

    def depthwise(self, c: int) -> Step:
        """One filter or two a channel."""
        out = c * self.draw.choice([1, 2])
        return Step(lambda x, m: m(x), out, nn.Conv1d(c, out, 3, padding=1, groups=c))

    def grouped(self, c: int) -> Step:
        """Two groups or four."""
        groups = self.draw.choice([one for one in (1, 2, 3, 4) if c % one == 0])
        out = groups * self.draw.choice([2, 4])
        return Step(lambda x, m: torch.relu(m(x)), out, nn.Conv1d(c, out, 1, groups=groups))

    def transposed(self, c: int) -> Step:
        """Transposed, grouped or not."""
        groups = self.draw.choice([one for one in (1, 2, 4) if c % one == 0])
        out = groups * self.draw.choice([2, 4])
        return Step(lambda x, m: m(x), out, nn.ConvTranspose1d(c, out, 3, padding=1, groups=groups))

    def norm(self, c: int) -> Step:
        """By channel."""
        return Step(lambda x, m: torch.relu(m(x)), c, nn.BatchNorm1d(c))

    def group_norm(self, c: int) -> Step:
        """Each channel over its places; wider groups may be cut, and then see fewer units."""
        return Step(lambda x, m: m(x), c, nn.GroupNorm(c, c))

    def linear(self, c: int) -> Step:
        """On each place."""
        out = self.width()
        return Step(lambda x, m: turned(m)(x), out, nn.Linear(c, out))

    def excite(self, c: int) -> Step:
        """Squeeze and excite."""
        return Step(
            lambda x, a, b: x * b(a(x.mean(2)).relu()).sigmoid()[:, :, None],
            c,
            nn.Linear(c, 4),
            nn.Linear(4, c),
        )

    def scan(self, c: int) -> Step:
        """Recurrent."""
        kind, hidden = self.draw.choice([nn.LSTM, nn.GRU, nn.RNN]), self.draw.choice([2, 4])
        return Step(lambda x, m: turned(m)(x), 2 * hidden, Scan(c, kind, hidden))

    def opposite(self, c: int) -> Step:
        """Beside its negative."""
        return Step(lambda x: torch.cat([x, -x], 1), 2 * c)

    def gate(self, c: int) -> Step:
        """One half gates the other."""
        return (
            Step(lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(), c // 2)
            if c % 2 == 0
            else self.norm(c)
        )

    def swap(self, c: int) -> Step:
        """The halves change places."""
        if c % 2:
            return self.norm(c)
        return Step(lambda x: torch.cat([x.chunk(2, 1)[1], x.chunk(2, 1)[0].relu()], 1), c)

    def attend(self, c: int) -> Step:
        """Attention with a residual."""
        if c % 2 or c < 4:
            return self.norm(c)
        return Step(lambda x, m: x + turned(m)(x), c, Heads(c, by_size=self.draw.random() < 0.5))


class Random(nn.Module):
    """Token numbers or vectors, then steps on any tensors before, then a head on the flattened map or on its mean."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        maker = Maker(seed)
        draw = maker.draw
        self.tokens, self.flat = draw.random() < 0.5, draw.random() < 0.5
        self.stem = nn.Embedding(9, 8) if self.tokens else nn.Linear(3, 8)
        self.place = nn.Parameter(torch.zeros(8, PLACES))
        self.plan: list[tuple[str, ...]] = []
        self.steps = nn.ModuleList()
        made = [8]
        for _ in range(draw.randint(2, 6)):
            made.append(self._add(made, maker))
        self.head = nn.Linear(made[-1] * (PLACES if self.flat else 1), 5)

    def _add(self, made: list[int], maker: Maker) -> int:
        at, other = maker.draw.randrange(len(made)), maker.draw.randrange(len(made))
        if maker.draw.random() < 0.3:
            same = [one for one in range(len(made)) if made[one] == made[at] and one != at]
            if same and maker.draw.random() < 0.5:
                self.plan.append(("add", str(at), str(maker.draw.choice(same))))
                return made[at]
            self.plan.append(("join", str(at), str(other)))
            return made[at] + made[other]
        self.steps.append(step := maker.one(made[at]))
        self.plan.append(("step", str(at), str(len(self.steps) - 1)))
        return step.steps

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        made = [self.stem(x).transpose(1, 2) + self.place]
        for kind, at, other in self.plan:
            one = made[int(at)]
            if kind == "step":
                made.append(self.steps[int(other)](one))
            else:
                two = made[int(other)]
                made.append(torch.relu(one + two) if kind == "add" else torch.cat([one, two], 1))
        last = made[-1].flatten(1) if self.flat else made[-1].mean(2)
        return self.head(last)  # type: ignore[no-any-return]  # untyped call

    def example(self) -> Tensor:
        """Two rows that it takes."""
        random_ = torch.Generator().manual_seed(1)
        if self.tokens:
            return torch.randint(0, 9, (2, PLACES), generator=random_)
        return torch.randn((2, PLACES, 3), generator=random_)
