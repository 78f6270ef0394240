"""Augmented views that teacher and student both see, and the teacher's answers to them, kept on disk.

A view is a function of the data and a seed, so a seed is all that must be remembered of it: the student of epoch 7 sees
exactly the pixels the teacher answered ("patient and consistent", Beyer et al. 2022). A cache knows the digest of its
teacher, its data and its augmentation's output on canary samples, and refuses all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import torch

from edgestill.core.bundle import replace
from edgestill.core.digest import Digest
from edgestill.core.errors import DataError, NotFiniteError
from edgestill.core.jsonio import Fields, canonical, parse_object

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from edgestill.lab.samples import Samples

_CANARIES: Final = 4
_BATCH: Final = 256


class Augment(Protocol):
    """Changes a batch at random without changing its classes."""

    def __call__(self, inputs: Tensor, random: torch.Generator) -> Tensor:
        """A changed copy of `[N, ...]`, the same for the same inputs and generator state."""
        ...


def view(inputs: Tensor, augment: Augment | None, seed: int) -> Tensor:
    """The view of this seed; without an augmentation, the inputs themselves."""
    return inputs if augment is None else augment(inputs, torch.Generator().manual_seed(seed))


def answers(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's logits `[N, C]`, in evaluation mode and without gradients; its mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            return torch.cat([model(inputs[i : i + _BATCH]) for i in range(0, len(inputs), _BATCH)]).clone()
    finally:
        for module, training in modes:
            module.training = training


def weights_digest(model: nn.Module) -> Digest:
    """Of all parameters and buffers, with their names."""

    def chunks(state: Mapping[str, Tensor]) -> list[bytes]:
        return [
            part
            for name in sorted(state)
            for part in (name.encode(), state[name].detach().cpu().numpy().tobytes())
        ]

    return Digest.of_chunks(chunks(model.state_dict()))


@dataclass(frozen=True, slots=True, eq=False)
class SoftLabels:
    """A teacher's logits on several views of the data.

    Attributes:
        logits: float16 `[V, N, C]`, memory-mapped.
        seeds: of the V views.
    """

    logits: np.ndarray[tuple[int, ...], np.dtype[np.float16]]
    seeds: tuple[int, ...]

    def of(self, epoch: int) -> tuple[int, Tensor]:
        """The seed and logits `[N, C]` of the view that this epoch shows."""
        index = epoch % len(self.seeds)
        return self.seeds[index], torch.from_numpy(np.asarray(self.logits[index], dtype=np.float32))

    @classmethod
    def make(
        cls,
        folder: Path,
        *,
        teacher: nn.Module,
        samples: Samples,
        augment: Augment | None,
        views: int,
        seed: int,
    ) -> SoftLabels:
        """Opens the cache in `folder` if it is of this teacher, data and augmentation; otherwise fills it.

        Args:
            folder: made where it does not exist; holds `soft.npy` and `soft.json`.
            teacher: put into evaluation mode for this.
            samples: what to answer.
            augment: None for one plain view.
            views: how many; 1 where `augment` is None.
            seed: of the first view.

        Raises:
            DataError: the folder holds the cache of another teacher, data set or augmentation, or a damaged one.
            NotFiniteError: the teacher answers with what float16 cannot hold.
        """
        inputs = torch.from_numpy(samples.inputs)
        seeds = tuple(range(seed, seed + (views if augment is not None else 1)))
        key = _key(teacher, samples, view(inputs[:_CANARIES], augment, seed), seeds)
        head, body = folder / "soft.json", folder / "soft.npy"
        if head.exists():
            _check_key(head, key)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            logits = np.stack([_halved(answers(teacher, view(inputs, augment, one))) for one in seeds])
            np.save(body, logits, allow_pickle=False)
            replace(head, canonical({"key": str(key)}))
        return cls(_open(body, (len(seeds), len(samples))), seeds)


def _key(teacher: nn.Module, samples: Samples, canaries: Tensor, seeds: tuple[int, ...]) -> Digest:
    parts = (weights_digest(teacher), samples.digest, Digest.of(canaries.numpy().tobytes()), seeds)
    return Digest.of("|".join(map(str, parts)).encode())


def _halved(logits: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    half = logits.half()
    if not torch.isfinite(half).all():
        raise NotFiniteError(
            "the teacher's answers cannot be kept",
            expected=f"finite logits up to {np.finfo(np.float16).max:g}",
            got=f"{float(logits.abs().max()):g}",
        )
    return half.numpy()


def _open(body: Path, shape: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    fix = "delete this folder; it will be filled again"
    try:
        logits = np.load(body, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError("soft labels that cannot be read", where=body, got=error, fix=fix) from error
    if logits.dtype != np.float16 or logits.ndim != 3 or logits.shape[:2] != shape:
        raise DataError(
            "soft labels of another shape",
            where=body,
            expected=f"float16 [{shape[0]}, {shape[1]}, C]",
            got=(logits.dtype, logits.shape),
            fix=fix,
        )
    found: np.ndarray[tuple[int, ...], np.dtype[np.float16]] = logits
    return found


def _check_key(head: Path, key: Digest) -> None:
    found = Fields(parse_object(head.read_bytes(), where=str(head)), str(head)).digest("key")
    if found != key:
        raise DataError(
            "soft labels of another teacher, data set or augmentation",
            where=head,
            expected=key,
            got=found,
            fix="choose another folder, or delete this one",
        )
