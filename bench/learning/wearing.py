"""One device on a person's wrist: what serves, learns and keeps on a device, with neither sockets nor processes.

`device.model.Serving` answers each window by itself, is told its label where there is one, or asks the teacher, and is asked now and then whether a head has won, as
the agent asks it. Afterwards it starts anew from its folder, and answers alone.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Final, final

import numpy as np

from edgestill.core.bundle import Bundle
from edgestill.core.manifest import POLICY
from edgestill.device.arrays import answer_from_frame, to_tensor
from edgestill.device.frames import Frame
from edgestill.device.memory import Memory
from edgestill.device.model import Serving
from edgestill.device.privacy import Permissions
from edgestill.device.teachers import Teachers
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.policy import Policy
from edgestill.infer.student import Student
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.core.answer import Answer
    from edgestill.core.protocols import Predict

LOOK: Final = 16
"""Windows between two questions whether a head has won."""
_SECONDS: Final = 0.48


@final
class Wearer:
    """A device with one bundle.

    Args:
        folder: of what it learns.
        archive: the bundle.
        teacher: the teacher's ONNX, to be asked where the policy says so; None asks nobody.
        seed: of the coin of audits.
    """

    def __init__(self, folder: Path, archive: Path, *, teacher: bytes | None = None, seed: int = 0) -> None:
        self._clock = FakeClock()
        self._folder = folder
        self._bundle = Bundle.open(archive)
        self._policy = Policy.from_bytes(self._bundle.read(POLICY))
        asked = None if teacher is None else teacher_of(teacher, self._policy, self._clock)
        self._serving = self._started(None if asked is None else Teachers(asked, asked), seed)
        self.heard = 0

    def live(self, windows: NDArray[np.float32], labels: NDArray[np.int64] | None = None) -> None:
        """Answers windows `[N, T, 6]` one by one, each of which an application tells the label of, if there are any."""
        for number, window in enumerate(windows):
            answer = self._ask(window[None])
            self.heard += int(answer.teacher is not None and np.isfinite(answer.teacher).any())
            if labels is not None:
                told = to_tensor("labels", labels[number : number + 1])
                self._serving.answer(Frame({"op": "teach"}, (to_tensor("input", window[None]), told)))
            self._clock.advance(_SECONDS)
            if number % LOOK == LOOK - 1:
                self._serving.learn()
        self._serving.learn()

    @property
    def samples(self) -> int:
        """That the head which serves was made of; 0 where it is the bundle's."""
        learned = self._serving.status()["learned"]
        return learned["samples"] if isinstance(learned, dict) else 0

    def restarted(self) -> None:
        """It ends, and begins anew with what it had written down; from now on it asks nobody."""
        self._serving.close()
        self._serving = self._started(None, 0)

    def names(self, windows: NDArray[np.float32]) -> NDArray[np.int64]:
        """The classes `[N]` that it names."""
        return self._ask(windows).probabilities.argmax(axis=1)

    def _started(self, teachers: Teachers | None, seed: int) -> Serving:
        return Serving(
            self._bundle,
            memory=Memory(self._folder, self._bundle.manifest.digest),
            permissions=Permissions.of("nothing" if teachers is None else "raw", self._policy),
            clock=self._clock,
            random=Random(seed).random,  # noqa: S311  # no secret
            teachers=teachers,
        )

    def _ask(self, windows: NDArray[np.float32]) -> Answer:
        return answer_from_frame(
            self._serving.answer(Frame({"op": "predict"}, (to_tensor("input", windows),)))
        )


def teacher_of(model: bytes, policy: Policy, clock: FakeClock) -> Predict:
    """The teacher, whose probabilities are calibrated as the policy says."""
    calibrated = replace(policy, temperature=policy.teacher_temperature)
    return Student(OnnxEngine(model), calibrated, clock=clock)
