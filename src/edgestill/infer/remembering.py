"""The same input is asked about once: a camera that sees an empty room sends it to the cloud a single time.

Inputs are known by a digest of their bytes, together with type and shape. Of a batch each different one is asked about
once; what was answered lately is not asked about again, unless another student answered in the teacher's place. Answers
are forgotten after some time, since the model behind may have changed, and the oldest when there are too many. Audits should
not be remembered: they ask what the world is like now.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import numpy as np

from edgestill.core.answer import Answer
from edgestill.core.errors import SettingError
from edgestill.infer.confidence import require_probabilities, require_voices

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.protocols import Clock, Predict

MEMORY: Final = "memory"
"""Stands among the tiers of an answer that nobody was asked for this time."""


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """One answer.

    Attributes:
        probabilities: `[C]`.
        teacher: `[C]`, of the teacher itself; NaN where another student answered in its place.
        decided_by: as in the answer.
        until: monotonic time at which it is forgotten.
    """

    probabilities: NDArray[np.float32]
    teacher: NDArray[np.float32]
    decided_by: str
    until: float


@final
class Remembering:
    """A `Predict` that asks about each input once.

    Args:
        model: is asked.
        clock: for forgetting.
        most: answers that are remembered, 1 or more.
        seconds: for which each is, above 0.
        deputies: whether what another than the teacher answered is remembered as well: of an adapter, behind which no
            teacher will be back.

    Raises:
        SettingError: a bound out of range.
    """

    def __init__(
        self,
        model: Predict,
        *,
        clock: Clock,
        most: int = 256,
        seconds: float = 3600.0,
        deputies: bool = False,
    ) -> None:
        if most < 1 or not 0 < seconds < float("inf"):
            raise SettingError(
                "a memory is out of range",
                where="memory",
                expected="1 or more answers, for more than 0 s",
                got=f"{most}, {seconds} s",
                fix="leave it out for the default",
            )
        self._model = model
        self._clock = clock
        self._most = most
        self._seconds = seconds
        self._deputies = deputies
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Answer:
        """The model's answer, each different input sent at most once.

        Raises:
            EdgestillError: as the model does; what is remembered stays.
            MessageError: its answer is none, and is not remembered.
        """
        keys = [_digest(sample) for sample in batch]
        rows = self._recalled(keys)
        missing = {key: place for place, key in reversed(list(enumerate(keys))) if key not in rows}
        tiers: tuple[str, ...] = (MEMORY,)
        if missing:
            places = sorted(missing.values())
            answer = self._model.predict(batch[places], deadline=deadline)
            require_probabilities(answer.probabilities, len(places))
            require_voices(answer)
            rows, tiers = rows | self._remember([keys[place] for place in places], answer), answer.tiers
        probabilities = np.stack([rows[key].probabilities for key in keys])
        return Answer(
            probabilities=probabilities,
            confidence=probabilities.max(axis=1),
            decided_by=tuple(rows[key].decided_by for key in keys),
            alpha=np.ones(len(keys), dtype=np.float32),
            teacher=np.stack([rows[key].teacher for key in keys]),
            tiers=tiers,
        )

    def _recalled(self, keys: list[bytes]) -> dict[bytes, _Known]:
        now = self._clock.monotonic()
        with self._lock:
            found = {key: self._known[key] for key in keys if key in self._known}
            for key, known in found.items():
                if known.until <= now:
                    del self._known[key]
                else:
                    self._known.move_to_end(key)
        return {key: known for key, known in found.items() if known.until > now}

    def _remember(self, keys: list[bytes], answer: Answer) -> dict[bytes, _Known]:
        """What an answer says; what the teacher itself said of it stays known."""
        own = answer.probabilities if answer.teacher is None else answer.teacher
        until = self._clock.monotonic() + self._seconds
        each = zip(keys, answer.probabilities, own, answer.decided_by, strict=True)
        fresh = {key: _Known(row.copy(), word.copy(), voice, until) for key, row, word, voice in each}
        with self._lock:
            for key, known in fresh.items():
                if np.isnan(known.teacher[0]) and not self._deputies:  # the teacher may be back any moment
                    continue
                self._known[key] = known
                self._known.move_to_end(key)
            while len(self._known) > self._most:
                self._known.popitem(last=False)
        return fresh


def _digest(sample: NDArray[np.generic]) -> bytes:
    """Names an input: no two of them share it, of whatever type and shape."""
    hashed = hashlib.blake2b(f"{sample.dtype.str} {sample.shape}".encode(), digest_size=16)
    hashed.update(np.ascontiguousarray(sample).tobytes())
    return hashed.digest()
