"""What a device keeps of what it saw, to train on: inputs with the teacher's answers, or with labels that an application told.

- Nothing is kept unless the device's owner gave it room (`Settings.keeps`). Inputs stay on the device; they are as readable there as the
  home is, or sealed with a key of the owner's (`device.samplekey`).
- Kept is what the *teacher* answered, or what was told; never the student's or fused answers, which would teach themselves. An audit of an
  input that would not have been escalated stands for as many inputs as its chance says, as for the sums (`device.learning`).
- A bundle whose inputs are of another shape or type, or that has other classes, begins the buffer anew: what is in it could not be asked. So does
  another key, or one where there was none: what is in it could not be read. `told` says so.
- A disk that refuses costs samples, never an answer.

Whoever answers calls it from several threads; a lock lets them write one after the other.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final, Self, final

import numpy as np

from edgestill.core.errors import AccessError, ConflictError, DataError, EdgestillError, SettingError
from edgestill.core.oip import NUMPY_NAMES
from edgestill.device.replay import Replay
from edgestill.device.replay_format import Plan
from edgestill.device.sealing import Sealed

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Clock
    from edgestill.infer.cascade import Escalation

log = logging.getLogger(__name__)

MAX_WEIGHT: Final = 20.0
"""Inputs that one audit may stand for."""


def plan_of(takes: tuple[str, tuple[int | None, ...]], classes: int, size: int) -> Plan | None:
    """The buffer for inputs of this Open Inference Protocol datatype and shape; None where their size may change, or a type is none that is kept."""
    datatype, shape = takes
    fixed = [dim for dim in shape[1:] if dim is not None]
    if len(fixed) != len(shape) - 1:
        return None
    try:
        return Plan(dtype=NUMPY_NAMES[datatype], shape=tuple(fixed), classes=classes, size=size)
    except SettingError as error:
        log.warning("nothing is kept to train on: %s", error)
        return None


@final
class Keeping:
    """Fills the buffer.

    Args:
        replay: opened.
        clock: dates what is kept.
        audit_share: the policy's.
        begun_anew: why what was kept before is gone; empty where nothing is.
    """

    def __init__(self, replay: Replay, *, clock: Clock, audit_share: float, begun_anew: str = "") -> None:
        self._replay = replay
        self._begun_anew = begun_anew
        self._clock = clock
        self._audit_weight = 1 / max(audit_share, 1 / MAX_WEIGHT)
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        path: Path,
        plan: Plan | None,
        *,
        clock: Clock,
        random: Random,
        audit_share: float,
        key: bytes | None = None,
        begun_anew: str = "",
    ) -> Self | None:
        """Opens the buffer, or begins it anew where it is of another plan or key; None where that cannot be.

        Args:
            path: of the file.
            plan: what it is for; None where nothing can be kept.
            clock: dates what is kept.
            random: says which samples stay.
            audit_share: the policy's.
            key: seals it; None leaves it plain.
            begun_anew: why what was kept before is gone already; empty where nothing is.
        """
        if plan is None:
            return None
        try:
            try:
                replay = Replay.open(path, plan, random=random, key=key)
            except (AccessError, DataError) as error:
                log.warning("what was kept to train on is begun anew: %s", error)
                replay = Replay.create(path, plan, random=random, key=key)
                begun_anew = f"{error.what}: {error.got}"
        except ConflictError as error:  # the engine that this one takes over from, which ends soon
            log.debug("%s", error)
            return None
        except (EdgestillError, OSError) as error:
            log.warning("nothing is kept to train on: %s", error)
            return None
        return cls(replay, clock=clock, audit_share=audit_share, begun_anew=begun_anew)

    def observe(self, told: Escalation, *, threshold: float) -> None:
        """Keeps what the teacher answered of a batch."""
        teacher, heard = told.answer.teacher, told.heard
        if teacher is None or not heard.any():
            return
        weights = np.where(told.audited & (told.confidence >= threshold), self._audit_weight, 1.0)
        for source, which in (("audit", heard & told.audited), ("teacher", heard & ~told.audited)):
            if which.any():
                self._add(told.batch[which], teacher[which], weights[which], source=source)

    def teach(self, batch: NDArray[np.generic], labels: NDArray[np.integer], classes: int) -> None:
        """Keeps inputs `[N, ...]` with their classes `[N]`."""
        if len(labels) and labels.min() >= 0 and labels.max() < classes:
            targets = np.eye(classes, dtype=np.float32)[labels]
            self._add(batch, targets, np.ones(len(labels), np.float32), source="label")

    def flush(self) -> None:
        """Makes durable what was kept."""
        try:
            with self._lock:
                self._replay.flush()
        except EdgestillError as error:
            log.warning("%s", error)

    def close(self) -> None:
        """Makes it durable and lets go of the file."""
        try:
            with self._lock:
                self._replay.close()
        except EdgestillError as error:
            log.warning("%s", error)

    def told(self) -> JsonObject:
        """How much there is, whether it is sealed, and why what was kept before this engine began is gone."""
        with self._lock:
            counts, is_sealed = self._replay.counts(), isinstance(self._replay.samples.seal, Sealed)
        return {
            "to_train": sum(counts.train),
            "held_back": sum(counts.held),
            "room": counts.train_room,
            "sealed": is_sealed,
            "begun_anew": self._begun_anew or None,
        }

    def _add(
        self,
        inputs: NDArray[np.generic],
        targets: NDArray[np.floating],
        weights: NDArray[np.floating],
        *,
        source: str,
    ) -> None:
        try:
            shares = targets / targets.sum(axis=1, keepdims=True)
            with self._lock:
                self._replay.add(inputs, shares, source=source, at=self._clock.now(), weights=weights)  # type: ignore[arg-type]  # one of the words
        except EdgestillError as error:
            log.warning("samples are not kept: %s", error)
