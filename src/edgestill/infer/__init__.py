"""Answering on a device: engines, calibration, the escalation policy and the cascade. Usable without a fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgestill.infer.student import load

__all__ = ["load"]


def __getattr__(name: str) -> object:
    # `infer.policy` is read by processes that must never load numpy, so nothing is imported before it is asked for
    if name == "load":
        from edgestill.core.extras import require

        require("numpy", extra="device", purpose="to run a model")
        from edgestill.infer.student import load

        return load
    raise AttributeError(name)
