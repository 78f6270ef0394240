"""Views of texts: what a teacher can be asked about beside the few sentences one has.

A teacher can label any text, also one that nobody would write. A student of few texts learns much more of it when it is
told what the teacher makes of their parts, mixed and reworded (Tang et al. 2019, "Distilling Task-Specific Knowledge from
BERT into Simple Neural Networks": masking, replaced words, sampled n-grams; Jiao et al. 2020, "TinyBERT": near words of an
embedding). With labels of one's own such views say less, and mixed ones are wrong.

- Texts are token ids `[N, L]`. Ids below `first` are padding (0) and marks; they are never chosen, replaced or left out.
- What is left out becomes 0 where it stands; what is mixed is moved together.
- As all augmentations these are functions of a text and its seed; what else they need they hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, final

import torch
from torch.nn import functional

from edgestill.core.errors import DtypeError, SettingError, ShapeError
from edgestill.lab.data.seeds import integers, uniform

if TYPE_CHECKING:
    from torch import Tensor

    from edgestill.lab.data.seeds import Seeds

_LEAST, _MOST = 0.2, 0.8  # of its own tokens that a text keeps where it is mixed
_OURS, _THEIRS, _BEHIND, _NOWHERE = range(4)  # parts of a mixed text, in the order in which they stand
_ROWS: Final = 1024  # of a table of similarities at a time


@final
@dataclass(frozen=True, slots=True)
class TokenDropout:
    """Leaves out tokens; each text loses a share of its own, evenly drawn between none and `most`.

    Attributes:
        most: in (0, 1].
        first: the smallest id that is a token.
    """

    most: float = 0.5
    first: int = 1
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_settings(self.most, self.first)

    def __call__(self, inputs: Tensor, seeds: Seeds) -> Tensor:
        """Ids `[N, L]` -> the same with zeros.

        Raises:
            ShapeError, DtypeError: not such inputs.
        """
        return inputs.masked_fill(_drawn(inputs, seeds, self.most, self.first), 0)


@final
@dataclass(frozen=True, slots=True, eq=False)
class TokenNeighbours:
    """Puts near ones in place of tokens; each text has a share replaced, evenly drawn between none and `most`.

    Attributes:
        table: int64 `[V, K]`, for each id those that may stand for it; see `neighbours`.
        most: in (0, 1].
        first: the smallest id that is a token.
    """

    table: Tensor
    most: float = 0.8
    first: int = 1
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_settings(self.most, self.first)
        _check_ids(self.table, "table", "[V, K]")
        if self.table.numel() == 0:
            raise ShapeError(
                "no neighbours",
                where="table",
                expected="[V, K]",
                got=tuple(self.table.shape),
                fix="make it by `neighbours`",
            )

    def __call__(self, inputs: Tensor, seeds: Seeds) -> Tensor:
        """Ids `[N, L]`, each below V -> the same shape.

        Raises:
            ShapeError, DtypeError: not such inputs.
        """
        replaced = _drawn(inputs, seeds, self.most, self.first)
        which = torch.from_numpy(integers(seeds, self.table.shape[1], inputs.shape[1], stream=1))
        return torch.where(replaced, self.table[inputs, which].to(inputs.dtype), inputs)


@final
@dataclass(frozen=True, slots=True, eq=False)
class TokenMix:
    """A run of a text's tokens and, behind it, a run of another text's: as much of it as the first one lost.

    Attributes:
        texts: ids `[M, L]` from which the other text is drawn; usually the training texts.
        first: the smallest id that is a token.
    """

    texts: Tensor
    first: int = 1
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_settings(1.0, self.first)
        _check_ids(self.texts, "texts", "[M, L]")
        if self.texts.numel() == 0:
            raise ShapeError(
                "no texts to mix with",
                where="texts",
                expected="[M, L]",
                got=tuple(self.texts.shape),
                fix="give the training texts",
            )

    def __call__(self, inputs: Tensor, seeds: Seeds) -> Tensor:
        """Ids `[N, L]` -> the same shape, without gaps; marks stay before and behind.

        Raises:
            ShapeError, DtypeError: not such inputs, or texts of another length.
        """
        _check_ids(inputs, "inputs", "[N, L]")
        if inputs.shape[1] != self.texts.shape[1]:
            raise ShapeError(
                "texts of another length",
                where="inputs",
                expected=f"[N, {self.texts.shape[1]}]",
                got=tuple(inputs.shape),
                fix="pad both to one length",
            )
        others = self.texts[torch.from_numpy(integers(seeds, len(self.texts), 1))[:, 0]].to(inputs.dtype)
        drawn = torch.from_numpy(uniform(seeds, 3, stream=1))
        share = _LEAST + (_MOST - _LEAST) * drawn[:, 0]
        ours, theirs = inputs >= self.first, others >= self.first
        kept = _run(ours, share, drawn[:, 1])
        added = _run(theirs, 1 - share, drawn[:, 2])
        marks = ~ours & (inputs != 0)
        behind = marks & (ours.long().cumsum(1) == ours.sum(1, keepdim=True)) & ours.any(1, keepdim=True)
        part = torch.where(behind, _BEHIND, torch.where(kept | marks, _OURS, _NOWHERE))
        parts = torch.cat([part, torch.where(added, _THEIRS, _NOWHERE)], 1)
        parts, places = parts.sort(dim=1, stable=True)
        both = torch.cat([inputs, others], 1).gather(1, places).masked_fill(parts == _NOWHERE, 0)
        return both[:, : inputs.shape[1]]


def neighbours(embeddings: Tensor, count: int, *, allowed: Tensor) -> Tensor:
    """For each token the `count` nearest allowed ones, itself left out: int64 `[V, count]`, nearest first.

    Args:
        embeddings: `[V, D]`, of a teacher's vocabulary; nearness is the cosine.
        count: at least 1, less than there are allowed ones.
        allowed: int64 `[A]`, the ids that may stand for others.

    Raises:
        SettingError: a count out of range.
    """
    if not 1 <= count < len(allowed):
        raise SettingError(
            "too many neighbours",
            where="count",
            expected=f"1 to {len(allowed) - 1}",
            got=count,
            fix="ask for fewer, or allow more",
        )
    lengths = functional.normalize(embeddings.detach().float(), dim=1)
    found = []
    for rows in torch.split(torch.arange(len(lengths)), _ROWS):
        near = lengths[rows] @ lengths[allowed].T
        near[rows[:, None] == allowed] = -torch.inf
        found.append(allowed[near.topk(count, 1).indices])
    return torch.cat(found)


def _drawn(inputs: Tensor, seeds: Seeds, most: float, first: int) -> Tensor:
    """Which tokens are changed: a share of each text, evenly drawn between none and `most`."""
    _check_ids(inputs, "inputs", "[N, L]")
    drawn = torch.from_numpy(uniform(seeds, 1 + inputs.shape[1]))
    return (inputs >= first) & (drawn[:, 1:] < most * drawn[:, :1])


def _run(tokens: Tensor, share: Tensor, start: Tensor) -> Tensor:
    """Of each row's tokens a run of neighbours: that share of them, at least one, beginning anywhere."""
    count = tokens.sum(1)
    size = (share * count).long().clamp(min=1)
    begin = (start * (count - size + 1)).long()
    number = tokens.long().cumsum(1) - 1
    return tokens & (number >= begin[:, None]) & (number < (begin + size)[:, None])


def _check_settings(most: float, first: int) -> None:
    if not 0 < most <= 1:
        raise SettingError(
            "a share is out of range",
            where="most",
            expected="more than 0, at most 1",
            got=most,
            fix="try 0.5",
        )
    if first < 1:
        raise SettingError(
            "0 is no token",
            where="first",
            expected="at least 1",
            got=first,
            fix="0 is for padding; number tokens from 1",
        )


def _check_ids(ids: Tensor, where: str, expected: str) -> None:
    if ids.ndim != 2:
        raise ShapeError(
            "not a table of tokens",
            where=where,
            expected=expected,
            got=tuple(ids.shape),
            fix="pad texts to one length",
        )
    if ids.is_floating_point() or ids.is_complex():
        raise DtypeError(
            "tokens are whole numbers",
            where=where,
            expected="an integer type",
            got=ids.dtype,
            fix="give int64 ids",
        )
