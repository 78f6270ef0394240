"""Small networks of the kinds people distil, each with its widths as arguments, and the teacher with its dropped units silenced."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.lab.inherit import IndexMap
    from edgestill.lab.inherit.trace import Example

torch.set_num_threads(1)

CLASSES = 3


class Affine(nn.Module):
    """Scale and shift of each unit: a LayerNorm without the statistics, so that units do not touch each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]`."""
        return x * self.weight + self.bias


class Block(nn.Module):
    """Two convolutions and a shortcut, which is a convolution where the shape changes."""

    def __init__(self, width: int, inner: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        if stride != 1 or width != out:
            self.down: nn.Module = nn.Sequential(
                nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )
        else:
            self.down = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]`."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.down(x))


class ResNet(nn.Module):
    """Two stages of blocks."""

    def __init__(self, first: int = 8, inner: int = 6, second: int = 12, blocks: int = 2) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first)
        self.layer1 = nn.Sequential(*[Block(first, inner, first, 1) for _ in range(blocks)])
        self.layer2 = nn.Sequential(
            *[Block(first if at == 0 else second, inner, second, 2 if at == 0 else 1) for at in range(blocks)]
        )
        self.fc = nn.Linear(second, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` -> logits."""
        x = self.layer2(self.layer1(F.relu(self.bn(self.conv(x)))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]  # a module's call is untyped


class Excite(nn.Module):
    """Squeeze and excite."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]`."""
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    """Widen, filter each channel, excite, narrow; with a residual where it fits."""

    def __init__(self, width: int, wide: int, inner: int, out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(),
            nn.Conv2d(wide, wide, 3, 1, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            Excite(wide, inner),
            nn.Conv2d(wide, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.skip = width == out

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]`."""
        out: Tensor = self.body(x)
        return x + out if self.skip else out


class Mobile(nn.Module):
    """Inverted residuals."""

    def __init__(self, stem: int = 6, wide: int = 10, inner: int = 4, out: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, 2, 1), nn.BatchNorm2d(stem), nn.SiLU(inplace=True))
        self.one, self.two = Inverted(stem, wide, inner, stem), Inverted(stem, wide, inner, out)
        self.head = nn.Linear(out, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` -> logits."""
        return self.head(self.two(self.one(self.stem(x))).mean((-2, -1)))  # type: ignore[no-any-return]  # untyped call


class Dense(nn.Module):
    """Every layer sees all before it, side by side; then a transition, and a flattened map."""

    def __init__(self, stem: int = 6, growth: int = 4, narrow: int = 7, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, 1, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(stem + growth * at) for at in range(layers))
        self.convs = nn.ModuleList(nn.Conv2d(stem + growth * at, growth, 3, 1, 1) for at in range(layers))
        self.transition = nn.Conv2d(stem + growth * layers, narrow, 1)
        self.fc1, self.head = nn.Linear(narrow * 16, 9), nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, 8, 8]` -> logits."""
        parts = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            parts.append(conv(F.relu(norm(torch.cat(parts, 1)))))
        x = F.max_pool2d(self.transition(torch.cat(parts, 1)), 2)
        return self.head(F.relu(self.fc1(torch.flatten(x, 1))))  # type: ignore[no-any-return]  # untyped call


class Attention(nn.Module):
    """One matrix for queries, keys and values, as image transformers have it."""

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = heads, size, size**-0.5
        self.qkv, self.proj = nn.Linear(width, 3 * heads * size), nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T, width]`."""
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(n, t, self.num_heads * self.head_dim))
        return out


class Layer(nn.Module):
    """Attention and two linear layers, each normalised before and scaled after."""

    def __init__(
        self, width: int, heads: int, size: int, hidden: int, norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = norm(width), Attention(width, heads, size), norm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.gamma = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T, width]`."""
        x = x + self.gamma * self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]  # untyped call


class ViT(nn.Module):
    """Patches, a class token, position embeddings."""

    def __init__(
        self,
        width: int = 12,
        heads: int = 3,
        size: int = 4,
        hidden: int = 10,
        *,
        depth: int = 2,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, width))
        self.blocks = nn.ModuleList(Layer(width, heads, size, hidden, norm) for _ in range(depth))
        self.norm, self.head = norm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, 8, 8]` -> logits."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])  # type: ignore[no-any-return]  # untyped call


class BertAttention(nn.Module):
    """Three matrices, as language models have it; dropout, a mask."""

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = heads, size, heads * size
        self.query, self.key, self.value = (nn.Linear(width, heads * size) for _ in range(3))
        self.dense, self.dropout = nn.Linear(heads * size, width), nn.Dropout(0.1)

    def heads(self, x: Tensor) -> Tensor:
        """`[N, T, heads size]` -> `[N, heads, T, size]`."""
        return x.view(*x.shape[:-1], self.num_attention_heads, self.attention_head_size).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`[N, T, width]`."""
        q, k, v = self.heads(self.query(x)), self.heads(self.key(x)), self.heads(self.value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / self.attention_head_size**0.5 + mask
        out = torch.matmul(self.dropout(scores.softmax(-1)), v).permute(0, 2, 1, 3).contiguous()
        return self.dense(out.view(*out.shape[:2], self.all_head_size))  # type: ignore[no-any-return]  # untyped call


class BertLayer(nn.Module):
    """Normalised after the residual."""

    def __init__(
        self, width: int, heads: int, size: int, hidden: int, norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.attention, self.norm1 = BertAttention(width, heads, size), norm(width)
        self.up, self.down, self.norm2 = nn.Linear(width, hidden), nn.Linear(hidden, width), norm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`[N, T, width]`."""
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.down(F.gelu(self.up(x))))  # type: ignore[no-any-return]  # untyped call


class Bert(nn.Module):
    """Words, positions; takes its inputs by keyword, answers with a mapping."""

    def __init__(
        self,
        width: int = 12,
        heads: int = 3,
        size: int = 4,
        hidden: int = 10,
        *,
        depth: int = 2,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.words, self.positions, self.norm = nn.Embedding(30, width), nn.Embedding(16, width), norm(width)
        self.register_buffer("ids", torch.arange(16)[None], persistent=False)
        self.ids: Tensor
        self.layer = nn.ModuleList(BertLayer(width, heads, size, hidden, norm) for _ in range(depth))
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Token numbers `[N, T]` and which of them count."""
        x = self.norm(self.words(input_ids) + self.positions(self.ids[:, : input_ids.shape[1]]))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -1e4
        for layer in self.layer:
            x = layer(x, mask)
        return {"logits": self.classifier(x[:, 0]), "of each token": self.classifier(x)}


class Recurrent(nn.Module):
    """An embedding, two layers in both directions, and a head over the mean."""

    def __init__(
        self, width: int = 6, hidden: int = 8, *, kind: Callable[..., nn.Module] = nn.LSTM, layers: int = 2
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(20, width)
        self.rnn = kind(width, hidden, layers, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        """`[N, T]` -> logits."""
        out, _ = self.rnn(self.words(ids))
        return self.head(out.mean(1))  # type: ignore[no-any-return]  # untyped call


class Wave(nn.Module):
    """One-dimensional: grouped convolution, group norm, PReLU, pooling."""

    def __init__(self, first: int = 8, second: int = 12, groups: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(2, first, 5, 2, 2),
            nn.GroupNorm(groups, first),
            nn.PReLU(first),
            nn.Conv1d(first, second, 3, 1, 1, groups=groups),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(second, second, 3, groups=second),
            nn.PReLU(),
        )
        self.head = nn.Linear(second, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 2, T]` -> logits."""
        return self.head(self.body(x).mean(-1))  # type: ignore[no-any-return]  # untyped call


class UNet(nn.Module):
    """Down and up again by transposed convolution, joined with what was before; a map comes out."""

    def __init__(self, first: int = 5, second: int = 8) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, first, 3, 1, 1), nn.Conv2d(first, second, 2, 2)
        self.norm, self.up = nn.InstanceNorm2d(second, affine=True), nn.ConvTranspose2d(second, first, 2, 2)
        self.out = nn.Conv2d(2 * first, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` -> `[N, classes, H, W]`."""
        before = F.relu(self.down(x))
        x = self.up(F.relu(self.norm(self.deep(before))))
        return self.out(torch.cat([before, F.interpolate(x, before.shape[-2:])], 1))  # type: ignore[no-any-return]  # untyped call


class Shuffle(nn.Module):
    """Split in halves, one of them filtered, joined and interleaved."""

    def __init__(self, width: int = 8, out: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.branch = nn.Conv2d(width // 2, width // 2, 1)
        self.last, self.head = nn.Conv2d(width, out, 1), nn.Linear(out, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` -> logits."""
        left, right = F.relu(self.stem(x)).chunk(2, 1)
        x = torch.cat([left, F.relu(self.branch(right))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.relu(self.last(x)).mean((2, 3)))  # type: ignore[no-any-return]  # untyped call


class Grouped(nn.Module):
    """Attention whose keys and values are shared by several queries, with a norm of root mean squares and a gate."""

    def __init__(
        self,
        width: int = 8,
        keys: int = 2,
        shared: int = 2,
        size: int = 3,
        hidden: int = 6,
        *,
        norm: Callable[[int], nn.Module] = nn.RMSNorm,
    ) -> None:
        super().__init__()
        self.keys, self.shared, self.size = keys, shared, size
        self.embed, self.norm = nn.Linear(5, width), norm(width)
        self.q = nn.Linear(width, keys * shared * size, bias=False)
        self.k, self.v = (nn.Linear(width, keys * size, bias=False) for _ in range(2))
        self.o = nn.Linear(keys * shared * size, width, bias=False)
        self.gate, self.down = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T, 5]` -> logits."""
        x = self.embed(x)
        y = self.norm(x)
        q = self.q(y).view(*y.shape[:2], -1, self.size).transpose(1, 2)
        k, v = (
            one(y)
            .view(*y.shape[:2], -1, 1, self.size)
            .expand(-1, -1, -1, self.shared, -1)
            .flatten(2, 3)
            .transpose(1, 2)
            for one in (self.k, self.v)
        )
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((x + self.down(F.glu(self.gate(x)))).mean(1))  # type: ignore[no-any-return]  # untyped call


class Encoder(nn.Module):
    """PyTorch's own transformer layers."""

    def __init__(self, width: int = 12, heads: int = 3, hidden: int = 10) -> None:
        super().__init__()
        self.embed = nn.Linear(5, width)
        layer = nn.TransformerEncoderLayer(width, heads, hidden, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T, 5]` -> logits."""
        return self.head(self.layers(self.embed(x))[:, 0])  # type: ignore[no-any-return]  # untyped call


class Padded(nn.Module):
    """A shortcut that skips pixels and pads channels with zeros, as the first CIFAR networks had it."""

    def __init__(self, first: int = 6, second: int = 12) -> None:
        super().__init__()
        self.more = (second - first) // 2
        self.stem = nn.Conv2d(3, first, 3, 1, 1)
        self.one, self.two = nn.Conv2d(first, second, 3, 2, 1), nn.Conv2d(second, second, 3, 1, 1)
        self.head = nn.Linear(second, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` -> logits."""
        x = F.relu(self.stem(x))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more, self.more))
        return self.head(F.relu(self.two(F.relu(self.one(x))) + short).mean((2, 3)))  # type: ignore[no-any-return]  # untyped call


def tensor(*shape: int, seed: int = 3) -> Tensor:
    """Normal noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


PICTURES = tensor(2, 3, 8, 8)
TOKENS = torch.arange(10).reshape(2, 5)
SERIES = tensor(2, 4, 5)
TEXT = {"input_ids": TOKENS, "attention_mask": (TOKENS < 8).long()}


@dataclass(frozen=True, slots=True)
class World:
    """One architecture.

    Attributes:
        make: its widths -> the network.
        wide: the teacher's widths.
        narrow: a student's.
        example: a batch of two.
        exact: whether units touch each other only through weights, so that silencing the dropped ones in the teacher
            gives the student's very answers.
    """

    make: Callable[..., nn.Module]
    wide: tuple[int, ...]
    narrow: tuple[int, ...]
    example: Example
    exact: bool = True


def vit(*widths: int) -> ViT:
    """Without statistics over units."""
    return ViT(*widths, norm=Affine)


def bert(*widths: int) -> Bert:
    """Without statistics over units."""
    return Bert(*widths, norm=Affine)


def grouped(*widths: int) -> Grouped:
    """Without statistics over units."""
    return Grouped(*widths, norm=Affine)


def gru(*widths: int) -> Recurrent:
    """Gated recurrent units."""
    return Recurrent(*widths, kind=nn.GRU)


def plain_rnn(*widths: int) -> Recurrent:
    """No gates."""
    return Recurrent(*widths, kind=nn.RNN)


WORLDS: dict[str, World] = {
    "resnet": World(ResNet, (8, 6, 12), (5, 2, 7), PICTURES),
    "mobile": World(Mobile, (6, 10, 4, 8), (4, 3, 2, 5), PICTURES),
    "dense": World(Dense, (6, 4, 7), (3, 1, 5), PICTURES),
    "vit": World(vit, (12, 3, 4, 10), (5, 2, 4, 3), PICTURES),
    "vit-norm": World(ViT, (12, 3, 4, 10), (5, 2, 4, 3), PICTURES, exact=False),
    "bert": World(bert, (12, 3, 4, 10), (7, 1, 4, 9), TEXT),
    "bert-norm": World(Bert, (12, 3, 4, 10), (7, 2, 4, 9), TEXT, exact=False),
    "lstm": World(Recurrent, (6, 8), (4, 3), TOKENS),
    "gru": World(gru, (6, 8), (4, 3), TOKENS),
    "rnn": World(plain_rnn, (6, 8), (4, 3), TOKENS),
    "wave": World(Wave, (8, 12, 4), (6, 9, 3), tensor(2, 2, 20)),
    "unet": World(UNet, (5, 8), (3, 2), PICTURES),
    "shuffle": World(Shuffle, (8, 6), (4, 3), PICTURES),
    "grouped": World(grouped, (8, 2, 2, 3, 6), (5, 1, 2, 3, 2), SERIES),
    "grouped-norm": World(Grouped, (8, 2, 2, 3, 6), (5, 2, 1, 2, 2), SERIES, exact=False),
    "encoder": World(Encoder, (12, 3, 10), (8, 2, 5), SERIES, exact=False),
    "padded": World(Padded, (6, 12), (3, 9), PICTURES),
}


def made(world: World, widths: tuple[int, ...], seed: int = 0) -> nn.Module:
    """The network in evaluation mode, its weights depending on the seed only."""
    torch.manual_seed(seed)
    return world.make(*widths).eval()


def silenced(teacher: nn.Module, index_map: IndexMap) -> nn.Module:
    """The teacher with every entry that the map does not name set to 0, and of the same shape as before."""
    silent = copy.deepcopy(teacher)
    for name, tensor in silent.state_dict().items():
        if tensor.is_floating_point() and name in index_map.kept:
            stays = torch.zeros_like(tensor, dtype=torch.bool)
            stays[index_map.grid(name, tensor)] = True
            tensor[~stays] = 0
    return silent


def answer(model: nn.Module, example: Example) -> Tensor:
    """Its first output."""
    with torch.no_grad():
        out = model(**example) if isinstance(example, dict) else model(example)
    found: Tensor = out["logits"] if isinstance(out, dict) else out
    return found
