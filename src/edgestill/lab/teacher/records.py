"""A teacher's answers as records of one size, in files that are whole or not there.

- A record is the seed of the view it answers to, the logits, and what a hinted layer gave where a hint is wanted.
  Logits are float16, which moves a probability by less than half of one per cent of itself for logits up to 16; values
  of a regression stay float32.
- With many classes only the largest `top_k` logits are kept, and the log of the summed exponentials of the rest. So
  the mass of the rest is right at temperature 1, and it is spread evenly over the rest ("marginal smoothing", Shen and
  Xing 2022, "A Fast Knowledge Distillation Framework for Visual Recognition"; Wu et al. 2022, "TinyViT").
- A file holds the records of one shard, a run of neighbouring samples in one view, and after them a footer: whose
  records these are, which shard, how many, and a CRC-32 of it all. It is written under another name, synced and then
  renamed. So a file that is short was cut by something else, and is written again; one whose bytes do not fit its
  checksum was altered, and is refused.
"""

from __future__ import annotations

import os
import struct
import uuid
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import torch

from edgestill.core.bundle import sync_folder
from edgestill.core.errors import DataError, NotFiniteError, ShapeError
from edgestill.lab.teacher.guide import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from edgestill.core.digest import Digest
    from edgestill.core.jsonio import Json
    from edgestill.lab.data.source import Ask

Rows = np.ndarray[tuple[int, ...], np.dtype[np.void]]
"""`[N]` records."""

PART: Final = ".part"
_MAGIC: Final = b"esrec\x00\x00\x01"
_FOOTER: Final = struct.Struct("<8s32sIIII")
_CHECKSUM: Final = struct.Struct("<I")


@final
@dataclass(frozen=True, kw_only=True)
class Layout:
    """What one record holds.

    Attributes:
        outputs: how many logits or values the teacher gives.
        values: whether they are values, kept as float32, instead of logits, kept as float16.
        top_k: how many logits are kept, from 1 to `outputs` - 1; None for all.
        features: shape of the hinted layer's output for one sample, kept as float16; None without a hint.
    """

    outputs: int
    values: bool = False
    top_k: int | None = None
    features: tuple[int, ...] | None = None

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """Of a record: little-endian, each field aligned, so that the file means the same anywhere."""
        fields: list[tuple[Any, ...]] = [("seed", "<u4")]
        if self.top_k is None:
            fields += [("logits", "<f4" if self.values else "<f2", (self.outputs,))]
        else:
            place = "<u2" if self.outputs <= 2**16 else "<u4"
            fields += [("rest", "<f4"), ("place", place, (self.top_k,)), ("logits", "<f2", (self.top_k,))]
        if self.features is not None:
            fields += [("features", "<f2", self.features)]
        return np.dtype(fields, align=True)

    def as_json(self) -> Mapping[str, Json]:
        """For the cache's head."""
        return {
            "logits": "float32" if self.values else "float16",
            "top_k": self.top_k,
            "features": None if self.features is None else list(self.features),
            "bytes": self.dtype.itemsize,
        }

    def encode(self, ask: Ask, answer: Answer) -> Rows:
        """Records of the answer to `ask`, whose seeds must be given.

        Raises:
            ShapeError: the answer has another shape than the first one had.
            NotFiniteError: NaN, infinity, or more than float16 can hold; the text names the first such sample.
        """
        assert ask.seeds is not None
        rows = np.zeros(len(ask.index), self.dtype)
        rows["seed"] = ask.seeds
        logits = answer.logits.detach().float()
        self._check_shape("logits", (len(rows), self.outputs), logits)
        if self.top_k is None:
            rows["logits"] = _kept(logits, rows["logits"].dtype, ask, "logits")
        else:
            _check_finite(logits, ask, "logits")
            top, place = logits.topk(self.top_k, dim=1)
            rows["logits"] = _kept(top, rows["logits"].dtype, ask, "logits")
            rows["place"] = place.numpy()
            rows["rest"] = logits.scatter(1, place, -torch.inf).logsumexp(1).numpy()
        if self.features is not None:
            features = torch.empty(0) if answer.features is None else answer.features.detach().float()
            self._check_shape("features", (len(rows), *self.features), features)
            rows["features"] = _kept(features, rows["features"].dtype, ask, "features")
        return rows

    def decode(self, rows: Rows) -> Answer:
        """What the teacher said: float32 logits `[N, C]`, and float32 features."""
        logits = rows["logits"].astype(np.float32)
        if self.top_k is not None:
            each = rows["rest"] - np.float32(np.log(self.outputs - self.top_k))
            dense = np.repeat(each[:, None], self.outputs, axis=1)
            dense[np.arange(len(rows))[:, None], rows["place"]] = logits
            logits = dense
        features = None
        if self.features is not None:
            features = torch.from_numpy(rows["features"].astype(np.float32))
        return Answer(torch.from_numpy(logits), features)

    @staticmethod
    def _check_shape(what: str, expected: tuple[int, ...], got: Tensor) -> None:
        if tuple(got.shape) != expected:
            raise ShapeError(
                "the teacher's answers change their shape",
                where=what,
                expected=expected,
                got=tuple(got.shape),
                fix="let the teacher answer every batch in the same shape",
            )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of records: the samples `start` to `stop` in one view.

    Attributes:
        view: which view.
        number: which shard of it.
        start: its first sample.
        stop: behind its last sample.
    """

    view: int
    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def path(self, folder: Path) -> Path:
        """Where its records are kept."""
        return folder / f"view-{self.view:04}" / f"shard-{self.number:04}.rec"

    def size(self, layout: Layout) -> int:
        """Bytes of its file."""
        return len(self) * layout.dtype.itemsize + _FOOTER.size

    def write(self, folder: Path, rows: Rows, key: Digest) -> None:
        """Keeps the records durably, whole or not at all.

        Raises:
            OSError: they cannot be written; nothing of them is left.
        """
        path = self.path(folder)
        _make_folder(path.parent)
        # not mkstemp: its files are for their owner alone, and a cache may be shared
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PART}")
        data = _bytes(rows)
        try:
            with part.open("xb") as file:
                file.write(data)
                file.write(self._footer(data, key))
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)

    def is_whole(self, folder: Path, layout: Layout, key: Digest) -> bool:
        """Whether its file is there, as long as it must be, and says what it should; does not read the records.

        Raises:
            DataError: it is another shard's, another cache's, or too long.
        """
        path = self.path(folder)
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self.size(layout):
                    return False
                file.seek(size - _FOOTER.size)
                footer = file.read(_FOOTER.size)
        except FileNotFoundError:
            return False
        expected = self._footer(b"", key)[: -_CHECKSUM.size]
        if size > self.size(layout) or footer[: -_CHECKSUM.size] != expected:
            raise DataError(
                "a file of the cache that does not belong to it",
                where=path,
                expected=f"{self.size(layout)} bytes that end as shard {self.number} of view {self.view} of {key}",
                got=f"{size} bytes that end otherwise",
                fix="delete this file; it will be filled again",
            )
        return True

    def map(self, folder: Path, layout: Layout) -> Rows:
        """The records `[len(self)]`, memory-mapped, read-only."""
        mapped = np.memmap(self.path(folder), layout.dtype, mode="r", shape=(len(self),))
        return np.asarray(mapped).view(np.ndarray)

    def check(self, folder: Path, layout: Layout, key: Digest) -> None:
        """Reads every byte of a file that is whole.

        Raises:
            DataError: they do not fit the checksum.
        """
        path = self.path(folder)
        with path.open("rb") as file:
            file.seek(-_CHECKSUM.size, os.SEEK_END)
            (found,) = _CHECKSUM.unpack(file.read(_CHECKSUM.size))
        data = _bytes(self.map(folder, layout))
        (expected,) = _CHECKSUM.unpack(self._footer(data, key)[-_CHECKSUM.size :])
        if found != expected:
            raise DataError(
                "the cache was altered",
                where=path,
                expected=f"CRC-32 {found:08x} (the file's own)",
                got=f"{expected:08x}",
                fix="delete this file, it will be filled again; and check the disk",
            )

    def _footer(self, data: bytes | memoryview, key: Digest) -> bytes:
        fields = (_MAGIC, bytes.fromhex(key.hex), self.view, self.number, len(self))
        head = _FOOTER.pack(*fields, 0)[: -_CHECKSUM.size]
        return head + _CHECKSUM.pack(zlib.crc32(head, zlib.crc32(data)))


def shards_of(samples: int, view: int, size: int) -> list[Shard]:
    """The shards of one view of so many samples, `size` samples each; the last may be shorter."""
    return [
        Shard(view=view, number=start // size, start=start, stop=min(start + size, samples))
        for start in range(0, samples, size)
    ]


def _kept(values: Tensor, dtype: np.dtype[Any], ask: Ask, what: str) -> NDArray[np.floating]:
    if dtype == np.float16:
        values = values.half()
    _check_finite(values, ask, what)
    kept: NDArray[np.floating] = values.cpu().numpy()
    return kept


def _check_finite(values: Tensor, ask: Ask, what: str) -> None:
    if torch.isfinite(values).all():
        return
    row = int((~torch.isfinite(values.flatten(1)).all(1)).nonzero()[0])
    raise NotFiniteError(
        "the teacher's answers cannot be kept",
        where=f"sample {int(ask.index[row])} in view {ask.view}: {what}",
        expected=f"finite numbers up to {np.finfo(np.float16).max:g} (what float16 holds)",
        got="NaN or more",
        fix="look at this sample and at the teacher's answer to it",
    )


def _bytes(rows: Rows) -> memoryview:
    return rows.view(np.uint8).data


def _make_folder(path: Path) -> None:
    if not path.is_dir():
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)
