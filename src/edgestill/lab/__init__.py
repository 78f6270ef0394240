"""The laboratory: from a teacher to a student in a bundle. The only room that loads torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgestill.core.budget import Budget
    from edgestill.lab.distil import distill

__all__ = ["Budget", "distill"]


def __getattr__(name: str) -> object:
    """Loads torch only when somebody asks for what needs it."""
    if name == "Budget":
        from edgestill.core.budget import Budget

        return Budget
    if name == "distill":
        from edgestill.core.extras import require

        require("torch", extra="lab", purpose="to train and distil models")
        from edgestill.lab.distil import distill

        return distill
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
