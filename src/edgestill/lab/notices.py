"""What a run says without stopping: Python warnings, each with a code of its own as errors have."""

from __future__ import annotations

from typing import ClassVar


class LabWarning(UserWarning):
    """Something that a person should know of; the text begins with the code."""

    code: ClassVar[str] = "lab"

    def __init__(self, text: str) -> None:
        super().__init__(f"[{self.code}] {text}")


class DistillingHurtsWarning(LabWarning):
    """The comparison says that plain training does better."""

    code = "distilling-hurts"


class NotDistillingWarning(LabWarning):
    """A teacher was given, and the recipe does not ask it."""

    code = "not-distilling"


class NotMeasuredWarning(LabWarning):
    """A bound of the budget that nothing here can be held against."""

    code = "not-measured"


class NoGainWarning(LabWarning):
    """An adapter that makes answers no better than the student's own, and was left out."""

    code = "no-gain"


class NothingLearnedWarning(LabWarning):
    """A model that is no better than to name the most common class."""

    code = "nothing-learned"
