"""What a device does once it is sure that its world has changed; a part of the policy (`on_drift`).

- `audit`: for so many inputs, more of them are asked about whatever the confidence, so that it is soon known how good the
  student still is. They are taken from the same budget: the share of inputs asked, and the bytes, stay what they were, and
  fewer are asked because the student is unsure.
- `learn`: what was learned before the change is forgotten, and learning begins anew (`device.learning`).
- `report`: the figures that the hub gets say so; without it they say `none`, whatever the device has noticed.

Each happens once under a bundle. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Self, cast, get_args

from edgestill.core.errors import SettingError
from edgestill.core.jsonio import Fields

if TYPE_CHECKING:
    from edgestill.core.jsonio import JsonObject

Action = Literal["audit", "learn", "report"]

MOST_FACTOR: Final = 1_000.0
MOST_INPUTS: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaction:
    """What follows from a change.

    Attributes:
        do: any of `audit`, `learn`, `report`, each once.
        audit_factor: the audit share grows by it, as far as the budgets allow; in [1, 1000].
        audit_inputs: for so many inputs; 1 to 1,000,000.
        unknown: fields a newer writer added.
    """

    do: tuple[Action, ...] = ("learn", "report")
    audit_factor: float = 5.0
    audit_inputs: int = 2_000
    unknown: JsonObject = field(default_factory=dict)

    def __post_init__(self) -> None:
        actions = get_args(Action)
        if len(set(self.do)) != len(self.do) or not set(self.do) <= set(actions):
            raise _wrong("do", f"any of {', '.join(actions)}, each once", list(self.do))
        if not 1 <= self.audit_factor <= MOST_FACTOR:
            raise _wrong("audit_factor", f"a number from 1 to {MOST_FACTOR:g}", self.audit_factor)
        if not 1 <= self.audit_inputs <= MOST_INPUTS:
            raise _wrong("audit_inputs", f"a whole number from 1 to {MOST_INPUTS}", self.audit_inputs)

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads `on_drift` of `policy.json`; what is left out has its default, what is unknown is kept.

        Raises:
            MessageError: not the format. SettingError: a value out of its range.
        """
        default = cls()
        return cls(
            do=_actions(fields) if fields.has("do") else default.do,
            audit_factor=fields.number("audit_factor")
            if fields.has("audit_factor")
            else default.audit_factor,
            audit_inputs=fields.integer("audit_inputs")
            if fields.has("audit_inputs")
            else default.audit_inputs,
            unknown=fields.unknown(("do", "audit_factor", "audit_inputs")),
        )

    def as_json(self) -> JsonObject:
        """The value of `on_drift`."""
        own: JsonObject = {
            "do": [*self.do],
            "audit_factor": self.audit_factor,
            "audit_inputs": self.audit_inputs,
        }
        return self.unknown | own


def _actions(fields: Fields) -> tuple[Action, ...]:
    names = fields.items("do", at_most=len(get_args(Action)))
    each = Fields({str(index): name for index, name in enumerate(names)}, f"{fields.where}: do")
    return tuple(cast("Action", each.text(str(index), at_most=20)) for index in range(len(names)))


def _wrong(name: str, expected: str, got: object) -> SettingError:
    return SettingError(
        "a policy value is out of range",
        where=f"on_drift: {name}",
        expected=expected,
        got=got,
        fix="leave it out where you are unsure",
    )
