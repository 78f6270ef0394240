"""Whether the world has changed, seen from one device: three streams, each against the device's own beginning.

- `leverage`: how far the features lie from those the bundle was calibrated on (its logarithm; leverages are skewed).
- `doubt`: one minus the student's confidence.
- `surprise`, where the teacher was heard: 1 where it contradicts the student, minus the chance of that by the student's
  own probability. What is asked is chosen by confidence, so disagreement alone would follow the choice; what remains
  above the student's own doubt does not.

The reference is what this device met first under this bundle: people and places differ from those of the lab, and that
is no change. Inputs hang together (overlapping windows, one activity for a while), so means over blocks are tested, not
single inputs (`learn.drift`). A device that meets a new activity after its beginning may still report a change; so does
one that changes hands. Both are what the word says, and what follows is decided by the bundle's policy (`on_drift`).

The bounds of the tests grow with the logarithm of time, so that a device whose world stays as it is has a small chance
of a false alarm in all its life, not in every month, as far as blocks do not depend on each other. Where one thing goes on for
longer than a block they do, and `bench/bench_drift.py` measures how much more that is; longer blocks are quieter and slower,
and so is an adaptive window (`learn.adwin`) over the same blocks.

Once sure, always sure: until another bundle serves, the verdict stays. What was noticed, when, and what followed from it is
kept as a `Change`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final, Self, final

from edgestill.core.errors import MessageError
from edgestill.core.jsonio import Fields
from edgestill.learn.drift import DriftState, PageHinkley, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgestill.core.jsonio import JsonObject

STREAMS: Final = {
    "leverage": PageHinkley(block=16, warm_up=10, reference=256, threshold=4.0, growth=1.2),
    "doubt": PageHinkley(block=16, warm_up=10, reference=256, threshold=4.0, growth=1.2),
    "surprise": PageHinkley(block=8, warm_up=6, reference=256, threshold=4.0, growth=1.2),
}
_OF_THE_HEAD: Final = ("doubt", "surprise")
_SEVERITY: Final = ("none", "suspected", "confirmed")
_TINY: Final = 1e-12
_MOST_ACTIONS: Final = 8
_END_OF_TIME: Final = 253_402_300_799  # 9999-12-31T23:59:59Z: what cannot be shown as a date is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of the world.

    Attributes:
        stream: that alarmed; where two did at once, the one that tells of the longer past.
        ago: values of that stream between the change and the alarm, as far as can be told.
        seen: values of that stream until the alarm, since it began.
        at: seconds since 1970 of the alarm, by the device's clock; 0 where nobody has told yet.
        triggered: what was done about it.
    """

    stream: str
    ago: int
    seen: int
    at: float = 0.0
    triggered: tuple[str, ...] = ()

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads what `as_json` wrote; MessageError where it is something else."""
        names = fields.items("triggered", at_most=_MOST_ACTIONS)
        each = Fields({str(index): name for index, name in enumerate(names)}, f"{fields.where}: triggered")
        return cls(
            stream=fields.text("stream", pattern="|".join(STREAMS)),
            ago=fields.integer("ago"),
            seen=fields.integer("seen"),
            at=fields.number("at", least=0, most=_END_OF_TIME),
            triggered=tuple(each.text(str(index), at_most=20, plain=True) for index in range(len(names))),
        )

    def as_json(self) -> JsonObject:
        """The change as JSON."""
        return asdict(self) | {"triggered": [*self.triggered]}


@final
class Noticing:
    """The three detectors of one device."""

    def __init__(self) -> None:
        self._states = {name: test.start() for name, test in STREAMS.items()}
        self._sure = False
        self._change: Change | None = None

    @property
    def change(self) -> Change | None:
        """What was noticed; None before, and where an older agent noticed it."""
        return self._change

    def answered(self, *, at: float, triggered: Sequence[str]) -> None:
        """Keeps when the change became clear, and what was done about it."""
        if self._change is not None:
            self._change = replace(
                self._change, at=min(max(0.0, at), _END_OF_TIME), triggered=tuple(triggered)
            )

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
        told: JsonObject = {} if self._change is None else {"change": self._change.as_json()}
        return {"sure": self._sure} | told | {name: one.as_json() for name, one in self._states.items()}

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
        sure = fields.boolean("sure")
        change = Change.from_fields(fields.inner("change")) if fields.has("change") else None
        if change is not None and not sure:
            raise MessageError(
                "a change that nobody was sure of",
                where="change",
                expected="sure, or no change",
                got="neither",
            )
        self._states, self._sure, self._change = states, sure, change

    def _feed(self, name: str, values: Sequence[float]) -> None:
        state = self._states[name]
        for value in values:
            state = STREAMS[name].update(state, value)
        self._states[name] = state

    def _news(self, *names: str) -> int | None:
        alarmed = [name for name in names if self._states[name].alarm]
        if self._sure or not alarmed:
            return None
        stream = max(alarmed, key=lambda name: self._states[name].since)
        state = self._states[stream]
        self._sure, self._change = True, Change(stream=stream, ago=state.since, seen=state.n)
        return state.since
