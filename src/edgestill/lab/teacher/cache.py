"""The teacher's answers, kept on disk: asked once, read in every later epoch, by every later student.

- Views are functions of a sample and a seed (`lab.data.seeds`), so a cached answer is the answer to exactly the view that
  the student sees ("patient and consistent", Beyer et al. 2022).
- `cache.json` says whose answers these are: teacher, data, augmentation, seed, task and layout. Anything else is refused,
  and the text names what differs. What digests cannot see (a layer's code, the images behind a name) is asked for: some
  samples are answered anew at each opening and compared with what is kept.
- One file a shard (`lab.teacher.records`). A fill that was killed at any moment, or met a full disk, goes on where it was; what
  is there is not computed again. More views may be asked for later, and fewer.
- Ranks share the shards among them, and processes that know nothing of each other may fill the same folder: whoever
  comes last has done work for nothing, and no harm.

    FOLDER/cache.json
    FOLDER/view-0000/shard-0000.rec ...
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final

import numpy as np
import torch

from edgestill.core.errors import ClassCountError, DataError, SettingError
from edgestill.lab.data.seeds import view_seeds
from edgestill.lab.data.source import Ask, tensors
from edgestill.lab.teacher.fill import Fill, told, writing
from edgestill.lab.teacher.head import Head
from edgestill.lab.teacher.records import Layout, shards_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.core.digest import Digest
    from edgestill.core.jsonio import JsonObject
    from edgestill.lab.data.source import Inputs, Source
    from edgestill.lab.teacher.guide import Answer, Guide
    from edgestill.lab.teacher.records import Rows, Shard

_SHARD: Final = 4096
_SHARD_BYTES: Final = 32 * 2**20
_JOINED_BYTES: Final = 64 * 2**20
_CANARIES: Final = 8
_TOLERANCE: Final = 0.05


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a cache cost.

    Attributes:
        size: bytes on disk, of all views that were asked for.
        seconds: that this process spent on asking the teacher and writing; 0 where nothing was missing.
        filled: records that this process made now.
        found: records that were there.
    """

    size: int
    seconds: float
    filled: int
    found: int

    def as_json(self) -> JsonObject:
        """For a report."""
        return {"size": self.size, "seconds": self.seconds, "filled": self.filled, "found": self.found}


@final
class CachedGuide:
    """A `lab.teacher.guide.Guide` that remembers. See `CachedGuide.open`."""

    def __init__(self, kept: _Kept, *, views: int, augmented: bool, digest: Digest, cost: Cost) -> None:
        self.views, self.digest = views, digest
        self._kept, self._augmented, self._cost = kept, augmented, cost

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        teacher: Guide,
        source: Source,
        seed: int,
        views: int,
        top_k: int | None = None,
        batch: int = 256,
        shard: int | None = None,
        rank: int = 0,
        world: int = 1,
        barrier: Callable[[], None] = lambda: None,
        progress: Callable[[int, int], None] | None = None,
        free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Self:
        """Opens the cache in `folder`, and asks the teacher for what is missing.

        Args:
            folder: made where there is none.
            teacher: whose answers are kept; asked about a few samples even where nothing is missing.
            source: the samples.
            seed: of the run; with view and place it makes each view's seed (`view_seeds`).
            views: how many; one where the source has no augmentation, since all would be the same.
            top_k: logits kept of each answer; None keeps all. For exclusive classes only.
            batch: samples the teacher is asked about at once.
            shard: samples a file; by default 4096, or fewer where these take more than 32 MiB.
            rank: of this process, from 0; it fills the shards rank, rank + world, ...
            world: how many processes share the filling.
            barrier: returns when all ranks have called it; called once.
            progress: called after each batch with (samples done, samples to do) of this rank.
            free: how many bytes a folder has room for.
            clock: seconds.

        Raises:
            DataError: the folder keeps the answers to something else, or was altered; a shard is missing after all; the
                source shows a sample otherwise when it is asked again.
            PathError: the folder cannot be written or has no room. SettingError: a value out of range.
            ClassCountError: the teacher gives another number of outputs than the source wants.
            NotFiniteError: an answer that cannot be kept; the text names sample and view.
        """
        _check(views=views, batch=batch, rank=rank, world=world, shard=shard)
        views = views if source.augmented else 1
        first = _spread(min(len(source), shard or _SHARD))
        ask = Ask(first, view_seeds(seed, 0, first))
        answer = teacher.answer(ask, _shown_twice(source, ask))
        head = _head(teacher, source, seed=seed, layout=_layout(answer, source, top_k), shard=shard)
        fill = Fill(folder=folder, head=head, teacher=teacher, source=source, batch=batch)
        shards = [one for view in range(views) for one in shards_of(len(source), view, head.shard)]
        ours = shards[rank::world]
        with writing(folder):
            with told(folder):
                head.claim(folder)
                lost = set(fill.missing(shards))
                if shards[0] not in lost:
                    _check_canaries(fill, shards[0], ask, head.layout.encode(ask, answer))
                fill.check_room(lost, free)
            began = clock()
            filled = fill.run([one for one in ours if one in lost], progress or _silent)
            seconds = clock() - began if filled else 0.0
        with told(folder):
            for one in ours:
                one.check(folder, head.layout, head.key)
        barrier()
        with told(folder):
            _check_complete(folder, fill.missing(shards))
        cost = Cost(
            size=sum(one.size(head.layout) for one in shards),
            seconds=seconds,
            filled=filled,
            found=len(source) * views - sum(map(len, lost)),
        )
        kept = _Kept(folder, head)
        return cls(kept, views=views, augmented=source.augmented, digest=teacher.digest, cost=cost)

    def answer(self, ask: Ask, inputs: Inputs) -> Answer:
        """What the teacher said to `ask`, on the device of `inputs`, whose values are not looked at.

        Raises:
            DataError: the seeds are of another view than the one that is kept.
        """
        if not 0 <= ask.view < self.views:
            raise DataError(
                "a view that is not kept",
                where=f"view {ask.view}",
                expected=f"0 to {self.views - 1}",
                got=ask.view,
                fix="open the cache with as many views as the recipe asks for",
            )
        rows = self._kept.rows(ask.view, ask.index)
        right = not self._augmented if ask.seeds is None else np.array_equal(rows["seed"], ask.seeds)
        if not right:
            raise DataError(
                "the samples are shown in another view than the teacher answered to",
                where=f"view {ask.view}",
                expected="seeds of view_seeds(seed, view, index) with the cache's own seed",
                got="none" if ask.seeds is None else "others",
                fix="use the seed and the views that the cache was opened with",
            )
        answer, device = self._kept.head.layout.decode(rows), tensors(inputs)[0].device
        return answer if device.type == "cpu" else answer.to(device)

    def cost(self) -> Cost:
        """What it took to open."""
        return self._cost


class _Kept:
    """The records of one view at a time, read where they lie; a small view that has several files is joined in memory."""

    def __init__(self, folder: Path, head: Head) -> None:
        self.folder, self.head = folder, head
        self._view = -1
        self._maps: list[Rows] = []

    def rows(self, view: int, index: NDArray[np.int64]) -> Rows:
        """The records of these samples in this view."""
        if view != self._view:
            self._turn_to(view)
        if len(self._maps) == 1:
            return self._maps[0][index]
        rows = np.empty(len(index), self.head.layout.dtype)
        shard, place = np.divmod(index, self.head.shard)
        for one in np.unique(shard).tolist():
            there = shard == one
            rows[there] = self._maps[one][place[there]]
        return rows

    def _turn_to(self, view: int) -> None:
        shards = shards_of(self.head.samples, view, self.head.shard)
        self._maps = [one.map(self.folder, self.head.layout) for one in shards]
        if len(shards) > 1 and sum(one.nbytes for one in self._maps) <= _JOINED_BYTES:
            self._maps = [np.concatenate(self._maps)]
        self._view = view


def _check(*, views: int, batch: int, rank: int, world: int, shard: int | None) -> None:
    for name, value in (("views", views), ("batch", batch), ("world", world), ("shard", shard)):
        if value is not None and value < 1:
            raise SettingError(
                "a cache's setting is out of range",
                where=name,
                expected="at least 1",
                got=value,
                fix="leave it out where you are unsure",
            )
    if not 0 <= rank < world:
        raise SettingError(
            "a cache's setting is out of range",
            where="rank",
            expected=f"0 to {world - 1}",
            got=rank,
            fix="leave it out where you are unsure",
        )


def _shown_twice(source: Source, ask: Ask) -> Inputs:
    """The view of a few samples, fetched twice: what is not repeatable cannot be cached."""
    once, again = (next(iter(source.batches([ask]))).inputs for _ in range(2))
    if not all(torch.equal(one, other) for one, other in zip(tensors(once), tensors(again), strict=True)):
        raise DataError(
            "the source shows a sample otherwise when it is asked again",
            where=f"samples {int(ask.index[0])} to {int(ask.index[-1])} in view {ask.view}",
            expected="the same inputs for the same seed",
            fix="let transforms draw from the generators of Python, numpy or torch, not from one of their own",
            got="other inputs",
        )
    return once


def _layout(answer: Answer, source: Source, top_k: int | None) -> Layout:
    outputs = answer.logits.shape[-1]
    if answer.logits.ndim != 2 or outputs != source.outputs:
        raise ClassCountError(
            "the teacher gives another number of outputs",
            expected=f"{source.outputs} (the data's)",
            got=f"{list(answer.logits.shape[1:])} (the teacher's)",
            where="teacher",
            fix="give the teacher a head for this data, or other data",
        )
    if top_k is not None and (source.task != "classes" or not 1 <= top_k < outputs):
        raise SettingError(
            "the largest logits say the rest only for exclusive classes",
            where="top_k",
            expected=f"1 to {outputs - 1}" if source.task == "classes" else f"None for {source.task}",
            got=top_k,
            fix="leave top_k out",
        )
    return Layout(
        outputs=outputs,
        values=source.task == "regression",
        top_k=top_k,
        features=None if answer.features is None else tuple(answer.features.shape[1:]),
    )


def _head(teacher: Guide, source: Source, *, seed: int, layout: Layout, shard: int | None) -> Head:
    return Head(
        teacher=teacher.digest,
        data=source.digest,
        augmentation=source.views_digest,
        seed=seed,
        samples=len(source),
        task=source.task,
        layout=layout,
        shard=shard or max(_CANARIES, min(_SHARD, _SHARD_BYTES // layout.dtype.itemsize)),
    )


def _spread(samples: int) -> NDArray[np.int64]:
    """Some places of the first file, from its beginning to its end."""
    return np.unique(np.linspace(0, samples - 1, min(_CANARIES, samples)).astype(np.int64))


def _check_canaries(fill: Fill, shard: Shard, ask: Ask, now: Rows) -> None:
    """Compares what the teacher says with what it said; machines and threads may differ by far less than is allowed."""
    layout = fill.head.layout
    shard.check(fill.folder, layout, fill.head.key)
    records = shard.map(fill.folder, layout)
    here = ask.index[ask.index < len(records)]
    then, again = (layout.decode(rows).logits for rows in (records[here], now[: len(here)]))
    error, spread = float((again - then).abs().mean()), float((then - then.mean()).abs().mean())
    if error > _TOLERANCE * spread + 1e-3:
        raise DataError(
            "the teacher does not say what the cache remembers",
            where=f"{fill.folder}, {len(here)} samples up to number {here[-1]}",
            expected=f"a mean difference of at most {_TOLERANCE:.0%} of the spread {spread:.3g}",
            got=f"{error:.3g}",
            fix="if a layer's code or the data behind its name changed: choose another folder, or delete this one",
        )


def _check_complete(folder: Path, missing: list[Shard]) -> None:
    if missing:
        raise DataError(
            "a shard is missing",
            where=missing[0].path(folder),
            got=f"{len(missing)} missing",
            fix="see what became of the ranks that had to fill them, and open the cache again",
            expected="all shards that the head names",
        )


def _silent(_done: int, _total: int) -> None:
    pass
