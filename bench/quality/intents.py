"""Distilling MiniLM with a linear head into a bag of word-piece embeddings, on CLINC150, with 20 and 100 questions an intent.

- Networks are those of `examples/clinc150.py`. The teacher's head is trained on the whole training split (100 questions an
  intent), the student on a part of it, as in the route: all data for the teacher, limited data for the student. At 20 an
  intent each seed has a part of its own; at 100 it is all of them.
- All ways begin with weights of the same seed. Each has its own learning rate, weight decay, first embeddings, batch, loss,
  averaging of weights, epochs (at most `EPOCHS`) and so on, chosen on the validation split: see `bench/tune_quality.py` and its
  results. The test split was not looked at for any choice.
- Views (`quality.intent_views`) are made of a student's own questions, and of the pieces that the teacher's vocabulary has. The
  distilled student is told what the teacher says of each. Plain training may have them too, with the label of the question
  (`plain_views`, without mixed ones, which have no label of their own). The gain is told over both: plain training as it
  is usually done, and plain training that was lent these views.
- torchdistill's `DistillationBox` and `KDLoss` train the same student for as many epochs, on the same views and without any. It
  has neither DKD nor the average of the last weights, so its recipe is the best without these. `views_kd` is our loop with that
  very recipe. It is the same mathematics: equal within noise is what to expect of the two.
- A teacher can label what nobody has: `unlabelled` is shown the other 80 questions of each intent too, without labels. It is not
  compared as if it had the limited questions only.
- `bare` is what one gets without looking at weight decay and first weights: it tells how much of a gain is that.
- Beside them a linear model on hashed pieces and pairs of pieces (614,550 parameters), plainly trained, with settings of its own.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from edgestill.lab.data.samples import Samples
from edgestill.lab.recipe import Recipe
from edgestill.lab.score import scores
from edgestill.lab.teacher.guide import LiveGuide
from edgestill.lab.training.train import Lesson, train_

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from clinc150 import BagStudent

from quality.intent_views import FAMILIES, VIEWS, Seen, SeenSource, load, parts_of, views_of
from quality.record import Scores, gain_json
from quality.torchdistill_box import torchdistill
from quality.tuned import chosen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject

EACH: Final = (20, 100)
EPOCHS: Final = {20: 240, 100: 60}
_BARE: Final = Recipe(lr=1e-2, batch=128)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to train.

    Attributes:
        title: in tables.
        shown: families of views it is shown beside the questions as they are, each as often as the others.
        distils: whether it asks the teacher.
        tuned: whose choices it takes; empty where it is `recipe` and `std` as they stand.
        recipe: what is not tuned, but for epochs and seed.
        std: of the embeddings' first values.
    """

    title: str
    shown: tuple[str, ...] = ()
    distils: bool = False
    tuned: str = ""
    recipe: Recipe = _BARE
    std: float = 1.0


WAYS: Final = {
    "plain": Way("plain training", tuned="plain"),
    "plain_views": Way("plain, with near views", ("near",), tuned="plain_views"),
    "distilled": Way("distilled, without views", distils=True, tuned="distilled"),
    "views": Way("distilled, with near and mixed views", FAMILIES, distils=True, tuned="views"),
    "views_kd": Way("distilled, the same views, by KD alone", FAMILIES, distils=True, tuned="views_kd"),
    "torchdistill": Way("torchdistill KDLoss, the same views", FAMILIES, distils=True, tuned="views_kd"),
    "torchdistill_bare": Way("torchdistill KDLoss, without views", distils=True, tuned="distilled_kd"),
    "unlabelled": Way(
        "distilled, and told of the other 80 an intent", FAMILIES, distils=True, tuned="views_kd"
    ),
    "bare": Way("plain, PyTorch's first weights and no decay"),
    "bare_distilled": Way(
        "distilled, PyTorch's first weights and no decay",
        distils=True,
        recipe=replace(_BARE, soft_weight=0.9, tau=2.0),
    ),
    "linear": Way("hashed-bigram linear model, plain", tuned="linear"),
}
GAINS: Final = (
    ("views", "plain"),
    ("views", "plain_views"),
    ("views", "torchdistill"),
    ("views_kd", "torchdistill"),
    ("distilled", "torchdistill_bare"),
    ("distilled", "plain"),
    ("plain_views", "plain"),
    ("bare_distilled", "bare"),
    ("views", "linear"),
)


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
        logits: Tensor = self.head(embedding)
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


def teacher_for(train: Seen, intents: int) -> FromEmbedding:
    """The head, trained on all questions as they are."""
    torch.manual_seed(0)
    head = nn.Linear(train.embeddings.shape[-1], intents)
    samples = Samples.of(train.embeddings[0].float().numpy(), train.labels.numpy())
    train_(head, Lesson.of(samples), Recipe(epochs=20, batch=256, lr=1e-2))
    return FromEmbedding(head)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a way is trained with.

    Attributes:
        recipe: complete.
        std: of the embeddings' first values.
        originals: how often a question is shown as it is, where each family of views is shown once.
    """

    recipe: Recipe
    std: float
    originals: int = 1

    @classmethod
    def of(cls, name: str, each: int, seed: int, told: Mapping[str, Any] | None = None) -> Choice:
        """Of one of `WAYS`: as it stands, with what was tuned, or with what is `told`."""
        way = WAYS[name]
        if told is None:
            told = chosen("intents")[f"each_{each}"][way.tuned] if way.tuned else {}
        values = {key: told[key] for key in told.keys() - {"std", "originals", "validation"}}
        recipe = replace(way.recipe, **{"epochs": EPOCHS[each] // 2, "seed": seed} | values)
        if name == "unlabelled":  # as many steps, though there is five times as much to see
            recipe = replace(recipe, epochs=max(1, recipe.epochs * each // 100), soft_weight=1.0)
        return cls(recipe, told.get("std", way.std), int(told.get("originals", 1)))


class World:
    """The splits, the teacher, and who is shown what."""

    def __init__(self, path: Path) -> None:
        self.splits = load(path)
        self.train = self.splits["train"]
        self.intents = int(self.train.labels.max()) + 1
        self.views = (len(self.train.ids) - 1) // 2
        self.teacher = teacher_for(self.train, self.intents)
        self.parts = parts_of(self.train.labels.numpy())

    def judge(self, split: str) -> SeenSource:
        """The questions of another split."""
        return SeenSource(self.splits[split], self.intents)

    def lesson(self, name: str, each: int, choice: Choice) -> SeenSource:
        """What a way of that name is shown."""
        own = np.flatnonzero(self.parts == choice.recipe.seed) if each == 20 else np.arange(len(self.parts))
        seen = self.train.unlabelled(own) if name == "unlabelled" else self.train.part(own)
        views = views_of(WAYS[name].shown, self.views, originals=choice.originals)
        return SeenSource(seen.shown(views), self.intents)

    def learned(self, name: str, each: int, choice: Choice) -> nn.Module:
        """A student trained in one of `WAYS`."""
        shown, recipe = self.lesson(name, each, choice), choice.recipe
        torch.manual_seed(recipe.seed)
        student = FromIds(
            BigramLinear(self.intents) if name == "linear" else BagStudent(self.intents, std=choice.std)
        )
        if name.startswith("torchdistill"):
            return torchdistill(self.teacher, student, shown, recipe)
        guide = LiveGuide(self.teacher) if WAYS[name].distils else None
        return train_(student, Lesson(source=shown, guide=guide), recipe)


def ways_for(each: int) -> list[str]:
    """With all questions labelled there are no others."""
    return [name for name in WAYS if each < 100 or name != "unlabelled"]


def run(path: Path, each: int, seed: int, *, quick: bool) -> dict[str, NDArray[np.float64]]:
    """The scores of every way on the test split, and the teacher's."""
    world = World(path)
    test = world.judge("test")
    found = {"teacher": scores(world.teacher, test)}
    for name in ways_for(each):
        choice = Choice.of(name, each, seed)
        if name == "views_kd" and choice == Choice.of("views", each, seed):
            found[name] = found["views"]  # the same run
            continue
        if quick:
            choice = replace(choice, recipe=replace(choice.recipe, epochs=2))
        found[name] = scores(world.learned(name, each, choice), test)
    return found


def summed(found: dict[int, list[dict[str, NDArray[np.float64]]]]) -> dict[str, object]:
    """All seeds of both sizes as JSON."""
    told: dict[str, object] = {
        "teacher": Scores("teacher", [found[20][0]["teacher"]]).as_json(),
        "views_of_a_family": VIEWS,
    }
    for each, seeds in found.items():
        ways = {name: Scores(WAYS[name].title, [one[name] for one in seeds]) for name in ways_for(each)}
        told[f"each_{each}"] = {
            "ways": {name: one.as_json() | _settings(name, each) for name, one in ways.items()},
            "gains": {f"{ours}_over_{theirs}": gain_json(ways[ours], ways[theirs]) for ours, theirs in GAINS},
        }
    return told


def _settings(name: str, each: int) -> JsonObject:
    choice = Choice.of(name, each, 0)
    shown: JsonObject = {"as they are": choice.originals if WAYS[name].shown else 1} | dict.fromkeys(
        WAYS[name].shown, 1
    )
    return {"shown": shown, "std": choice.std, "recipe": choice.recipe.as_json()}
