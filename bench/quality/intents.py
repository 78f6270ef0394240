"""Distilling MiniLM with a linear head into a bag of word-piece embeddings, on CLINC150, with 20 and 100 questions an intent.

- Networks, views and teacher are those of `examples/clinc150.py`. The teacher's head is trained on the whole training
  split (100 questions an intent), the student on a part of it, as in the route: all data for the teacher, limited data
  for the student. At 20 an intent each seed draws its own part; at 100 it is all of them.
- Nothing but the encoder's answers is computed ahead: it is frozen, so its embedding of a view is handed to the teacher's
  head beside the word-piece ids, to ours and to torchdistill's alike. `VIEWS` views of each question are kept, and the
  question as it is; a sample's seed says which one is shown.
- Plain and distilled training begin with the same weights and run for as many epochs at the same schedule. Learning rate,
  epochs, weight decay, views or none, temperature and soft weight of each were chosen on the validation split, on
  another draw of the questions than those measured, by some twenty trials of a hand-written loop. The test split was not
  looked at.
- Tuning closes most of the gap: weight decay of 0.1 and first embeddings ten times smaller than PyTorch's help plain training
  more than they help distilling. The pair without them is measured too (`bare`), since that is what one gets unless one looks.
- torchdistill's `DistillationBox` and `KDLoss` train the same student by the same optimiser, schedule, temperature and
  weight for as many epochs on the same questions. It is the same mathematics: equal within noise is what to expect.
- Beside them a linear model on hashed pieces and pairs of pieces (614,550 parameters), plainly trained.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor, nn

from edgestill.core.digest import Digest
from edgestill.lab.data.samples import Samples
from edgestill.lab.data.seeds import view_seeds
from edgestill.lab.data.source import Ask, Batch
from edgestill.lab.forward import answers, weights_digest
from edgestill.lab.recipe import Recipe
from edgestill.lab.score import scores
from edgestill.lab.teacher.guide import LiveGuide
from edgestill.lab.training.train import Lesson, train_

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from clinc150 import SHARPNESS, BagStudent, Encoder, PieceDropout, read, some

from quality.record import Scores, gain_json
from quality.torchdistill_box import torchdistill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

VIEWS: Final = 4
EACH: Final = (20, 100)
EPOCHS: Final = {20: 60, 100: 15}
_TUNED: Final = Recipe(batch=64, lr=1e-2, weight_decay=0.1)
_SOFT: Final = {"soft_weight": 0.9, "tau": 2.0}


@dataclass(frozen=True, slots=True)
class Way:
    """One way to train.

    Attributes:
        title: in tables.
        recipe: but for seed and epochs.
        std: of the embeddings' first values.
        views: whether the student is shown views.
    """

    title: str
    recipe: Recipe
    std: float = 0.1
    views: bool = False


WAYS: Final = {
    "plain": Way("plain training", _TUNED),
    "distilled": Way("distilled", replace(_TUNED, **_SOFT)),
    "torchdistill": Way("torchdistill KDLoss", replace(_TUNED, **_SOFT)),
    "views": Way("distilled, with views of dropped pieces", replace(_TUNED, **_SOFT), views=True),
    "bare": Way("plain, PyTorch's first weights and no decay", replace(_TUNED, weight_decay=0.0), std=1.0),
    "bare_distilled": Way(
        "distilled, PyTorch's first weights and no decay", replace(_TUNED, weight_decay=0.0, **_SOFT), std=1.0
    ),
    "linear": Way("hashed-bigram linear model, plain", _TUNED),
}
GAINS: Final = (
    ("distilled", "plain"),
    ("distilled", "torchdistill"),
    ("views", "plain"),
    ("bare_distilled", "bare"),
    ("distilled", "linear"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A split as word-piece ids `[V, N, L]` and the encoder's embeddings `[V, N, 384]`, the first as they are."""

    ids: Tensor
    embeddings: Tensor
    labels: Tensor

    def part(self, chosen: NDArray[np.int64]) -> Seen:
        """Some questions."""
        return Seen(self.ids[:, chosen], self.embeddings[:, chosen], self.labels[chosen])

    @property
    def plain(self) -> Seen:
        """Without views."""
        return Seen(self.ids[:1], self.embeddings[:1], self.labels)


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
            at = torch.from_numpy(view.astype(np.int64)), torch.from_numpy(ask.index)
            yield Batch((self.seen.ids[at], self.seen.embeddings[at]), self.seen.labels[at[1]])


class FromIds(nn.Module):
    """A network that takes the ids of such inputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, _embedding: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.network(ids)
        return logits


class FromEmbedding(nn.Module):
    """The teacher's head, which takes the embedding of such inputs."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, _ids: Tensor, embedding: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(embedding.float())
        return logits


class BigramLinear(nn.Module):
    """A linear model on how often each hashed piece and pair of pieces occurs."""

    def __init__(self, intents: int, *, buckets: int = 4096) -> None:
        super().__init__()
        self.buckets = buckets
        self.weights = nn.Embedding(buckets, intents)
        self.bias = nn.Parameter(torch.zeros(intents))
        nn.init.zeros_(self.weights.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Word-piece ids `[N, L]` to logits."""
        pairs = torch.where(ids[:, 1:] != 0, ids[:, :-1] * 30_011 + ids[:, 1:] * 7, 0)
        found = torch.cat([torch.where(ids > 102, ids, 0), pairs], 1)
        there = (found != 0).float()[:, :, None]
        total = (self.weights(found % self.buckets) * there).sum(1)
        return total / there.sum(1).clamp_min(1).sqrt() + self.bias


def prepare(folder: Path, kept: Path, *, quick: bool, say: Callable[[str], None]) -> Path:
    """Asks the encoder about every view of every question, once; the answers are in the file that is returned."""
    splits, _names = read(folder, 5 if quick else 150)
    encoder = Encoder()
    views = 1 if quick else VIEWS
    key = Digest.of(
        f"{weights_digest(encoder)}{splits['train'].digest}{views}{PieceDropout()}{PieceDropout.version}{SHARPNESS}".encode()
    )
    path = kept / f"intents-{str(key)[-16:]}.pt"
    if path.exists():
        return path
    found = {}
    for name, samples in splits.items():
        ids = torch.from_numpy(samples.inputs)
        seeds = [view_seeds(0, view, np.arange(len(ids))) for view in range(1, views + 1)]
        shown = [ids, *(PieceDropout()(ids, one) for one in seeds)] if name == "train" else [ids]
        say(f"intents: encoding {len(shown)} views of {name}")
        said = [answers(encoder, one).half() for one in shown]
        found[name] = {
            "ids": torch.stack(shown),
            "embeddings": torch.stack(said),
            "labels": torch.from_numpy(samples.labels),
        }
    torch.save(found, path)
    return path


def load(path: Path) -> dict[str, Seen]:
    """The splits."""
    return {name: Seen(**one) for name, one in torch.load(path, weights_only=True).items()}


def teacher_for(train: Seen, intents: int) -> FromEmbedding:
    """The head, trained on all questions as they are."""
    torch.manual_seed(0)
    head = nn.Linear(train.embeddings.shape[-1], intents)
    samples = Samples.of(train.embeddings[0].float().numpy(), train.labels.numpy())
    train_(head, Lesson.of(samples), Recipe(epochs=20, batch=256, lr=1e-2))
    return FromEmbedding(head)


def draw(train: Seen, each: int, seed: int) -> Seen:
    """The student's questions."""
    samples = Samples.of(train.ids[0].numpy(), train.labels.numpy())
    return train.part(some(samples, each, seed).groups)


def student_for(intents: int, seed: int, std: float) -> FromIds:
    """A new one."""
    torch.manual_seed(seed)
    return FromIds(BagStudent(intents, std=std))


def learned(name: str, limited: Seen, teacher: FromEmbedding, recipe: Recipe) -> nn.Module:
    """A student trained in one of `WAYS`."""
    way, intents = WAYS[name], teacher.head.out_features
    shown = SeenSource(limited if way.views else limited.plain, intents)
    student = student_for(intents, recipe.seed, way.std)
    if name == "torchdistill":
        return torchdistill(teacher, student, shown, recipe)
    if name == "linear":
        student = FromIds(BigramLinear(intents))
    guide = LiveGuide(teacher) if recipe.soft_weight else None
    return train_(student, Lesson(source=shown, guide=guide), recipe)


def run(path: Path, each: int, seed: int, *, quick: bool) -> dict[str, NDArray[np.float64]]:
    """The scores of every way on the test split, and the teacher's."""
    splits = load(path)
    intents = int(splits["train"].labels.max()) + 1
    teacher = teacher_for(splits["train"], intents)
    test = SeenSource(splits["test"], intents)
    limited = draw(splits["train"], each, seed)
    found = {"teacher": scores(teacher, test)}
    for name, way in WAYS.items():
        recipe = replace(way.recipe, seed=seed, epochs=2 if quick else EPOCHS[each])
        found[name] = scores(learned(name, limited, teacher, recipe), test)
    return found


def summed(found: dict[int, list[dict[str, NDArray[np.float64]]]]) -> dict[str, object]:
    """All seeds of both sizes as JSON."""
    told: dict[str, object] = {
        "teacher": Scores("teacher", [found[20][0]["teacher"]]).as_json(),
        "views": VIEWS,
    }
    for each, seeds in found.items():
        ways = {name: Scores(way.title, [one[name] for one in seeds]) for name, way in WAYS.items()}
        told[f"each_{each}"] = {
            "epochs": EPOCHS[each],
            "ways": {
                name: one.as_json() | {"recipe": WAYS[name].recipe.as_json()} for name, one in ways.items()
            },
            "gains": {f"{ours}_over_{theirs}": gain_json(ways[ours], ways[theirs]) for ours, theirs in GAINS},
        }
    return told
