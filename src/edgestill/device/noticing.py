"""Whether the world has changed, seen from one device: three streams, each against the device's own beginning.

- `leverage`: how far the features lie from those the bundle was calibrated on (its logarithm; leverages are skewed).
- `doubt`: one minus the student's confidence.
- `surprise`, where the teacher was heard: 1 where it contradicts the student, minus the chance of that by the student's
  own probability. What is asked is chosen by confidence, so disagreement alone would follow the choice; what remains
  above the student's own doubt does not.

The reference is what this device met first under this bundle: people and places differ from those of the lab, and that
is no change. Inputs hang together (overlapping windows, one activity for a while), so means over blocks are tested, not
single inputs (`learn.drift`). A device that meets a new activity after its beginning may still report a change; so does
one that changes hands. Both are what the word says, and what follows is decided by the fleet, not by one device.

The bounds of the tests grow with the logarithm of time, so that a device whose world stays as it is has a small chance
of a false alarm in all its life, not in every month.

Once sure, always sure: until another bundle serves, the verdict stays.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, final

from edgestill.core.errors import MessageError
from edgestill.learn.drift import DriftState, PageHinkley, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgestill.core.jsonio import Fields, JsonObject

STREAMS: Final = {
    "leverage": PageHinkley(block=16, warm_up=10, reference=256, threshold=4.0, growth=1.2),
    "doubt": PageHinkley(block=16, warm_up=10, reference=256, threshold=4.0, growth=1.2),
    "surprise": PageHinkley(block=8, warm_up=6, reference=256, threshold=4.0, growth=1.2),
}
_OF_THE_HEAD: Final = ("doubt", "surprise")
_SEVERITY: Final = ("none", "suspected", "confirmed")
_TINY: Final = 1e-12


@final
class Noticing:
    """The three detectors of one device."""

    def __init__(self) -> None:
        self._states = {name: test.start() for name, test in STREAMS.items()}
        self._sure = False

    @property
    def verdict(self) -> Verdict:
        """`none`, `suspected` or `confirmed`."""
        if self._sure:
            return "confirmed"
        verdicts = [STREAMS[name].verdict(state) for name, state in self._states.items()]
        return max(verdicts, key=_SEVERITY.index)

    def see(self, leverage: Sequence[float], confidence: Sequence[float]) -> int | None:
        """Looks at inputs, heard of or not.

        Returns:
            How many inputs ago the world has changed, when that becomes clear now; None otherwise.
        """
        self._feed("leverage", [math.log(max(value, _TINY)) for value in leverage])
        self._feed("doubt", [1.0 - value for value in confidence])
        return self._news("leverage", "doubt")

    def hear(self, *, contradicted: Sequence[bool], probability: Sequence[float]) -> int | None:
        """Looks at inputs the teacher was heard about, and how sure the student was.

        Returns:
            How many such inputs ago the world has changed, when that becomes clear now; None otherwise.
        """
        surprises = [
            float(wrong) - (1.0 - sure) for wrong, sure in zip(contradicted, probability, strict=True)
        ]
        self._feed("surprise", surprises)
        return self._news("surprise")

    def begin_anew_with_another_head(self) -> None:
        """Confidence and agreement of another head are another beginning; the features are the same."""
        for name in _OF_THE_HEAD:
            self._states[name] = STREAMS[name].start()

    def as_json(self) -> JsonObject:
        """The state, to be kept over restarts."""
        return {"sure": self._sure} | {name: state.as_json() for name, state in self._states.items()}

    def recall(self, fields: Fields) -> None:
        """Takes up what `as_json` gave.

        Raises:
            MessageError: it is something else.
        """
        states = {name: DriftState.from_fields(fields.inner(name)) for name in STREAMS}
        for name, state in states.items():
            if state.blocks != state.n // STREAMS[name].block:
                raise MessageError(
                    "the blocks of a stream do not add up",
                    where=name,
                    got=state.blocks,
                    expected="blocks that follow one another",
                )
        self._states, self._sure = states, fields.boolean("sure")

    def _feed(self, name: str, values: Sequence[float]) -> None:
        state = self._states[name]
        for value in values:
            state = STREAMS[name].update(state, value)
        self._states[name] = state

    def _news(self, *names: str) -> int | None:
        since = [self._states[name].since for name in names if self._states[name].alarm]
        if self._sure or not since:
            return None
        self._sure = True
        return max(since)
