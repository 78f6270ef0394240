"""What a bundle takes of the machine it was made on, held against its budget: measured, not estimated."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from edgestill.core.bundle import archive_bytes
from edgestill.core.clock import SystemClock
from edgestill.core.errors import SettingError
from edgestill.core.footprint import Footprint, slacks
from edgestill.core.manifest import MODEL
from edgestill.delta.codec import diff
from edgestill.infer.engines import engine_name, engine_of, runs_here
from edgestill.infer.memory import is_measurable, memory_of
from edgestill.infer.policy import Policy
from edgestill.infer.timing import time_engines
from edgestill.lab.notices import NotMeasuredWarning

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgestill.core.budget import Budget
    from edgestill.core.bundle import Bundle
    from edgestill.core.manifest import Manifest
    from edgestill.lab.packing.assemble import Packed

_SHOWN: Final = 32
_AGAIN: Final = 1.10
_ONLY: Final = "the student"
_TOO_MUCH: Final = {
    "size": "the bundle is larger than its budget",
    "latency": "the student is slower than its budget",
    "memory": "the student takes more memory than its budget",
    "update": "the patch is larger than its budget",
}
_FIX: Final = {
    "update": "train it on for fewer steps or fewer layers, or let `Gate(forgone=...)` give up more of what was learned",
}


def policy_within(wanted: Policy | None, budget: Budget | None, classes: int) -> Policy:
    """The wanted policy, asking no more than the budget allows; without one, a policy of `class 0`, `class 1`, ..."""
    bound = None if budget is None else budget.escalation
    if wanted is None:
        wanted = Policy(labels=tuple(f"class {index}" for index in range(classes)))
        share = wanted.escalation_share if bound is None else bound
    else:
        share = wanted.escalation_share if bound is None else min(bound, wanted.escalation_share)
    return replace(wanted, escalation_share=share, audit_share=min(wanted.audit_share, share))


def held_to(
    budget: Budget | None, packed: Packed, inputs: NDArray[np.generic], *, follows: Bundle | None = None
) -> Packed:
    """The bundle with what it takes, where there is a budget.

    Args:
        budget: what is bounded.
        packed: the bundle.
        inputs: `[N, ...]`, some that the sensor gives.
        follows: the version before it, from which devices are sent a patch; None for a first one.

    Raises:
        SettingError: it takes more than the budget allows.

    Warns:
        NotMeasuredWarning: a bound that nothing here can be held against.
    """
    if budget is None:
        return packed
    footprint = footprint_of(packed.manifest, packed.blobs, inputs, budget)
    if budget.update is not None:
        footprint = replace(footprint, update=_update_of(packed, follows))
    check_budget(budget, footprint)
    return replace(packed, footprint=footprint)


def _update_of(packed: Packed, follows: Bundle | None) -> int | None:
    """Bytes of the patch between the archives, as a hub makes it."""
    if follows is None:
        warnings.warn(
            NotMeasuredWarning("update was not held against its budget: the bundle follows no other"),
            stacklevel=5,
        )
        return None
    before = archive_bytes(follows.manifest, {name: follows.read(name) for name in follows.manifest.blobs})
    return len(diff(before, archive_bytes(packed.manifest, packed.blobs)))


def footprint_of(
    manifest: Manifest, blobs: dict[str, bytes], inputs: NDArray[np.generic], budget: Budget
) -> Footprint:
    """The size of a bundle; latency and memory where the budget bounds them, and this machine is of its class.

    Args:
        manifest: of the bundle.
        blobs: of it, by name.
        inputs: `[N, ...]`, some that the sensor gives.
        budget: what is bounded.

    Warns:
        NotMeasuredWarning: a bound that nothing here can be held against.
    """
    here = runs_here(manifest.hardware_class)
    latency = memory = None
    if budget.latency is not None and here:
        found = time_engines(
            {_ONLY: engine_of(blobs[MODEL], manifest.hardware_class)}, inputs[:_SHOWN], clock=SystemClock()
        )
        latency = found[_ONLY].p95.value
    if budget.memory is not None and here and is_measurable():
        memory = int(memory_of(blobs[MODEL], engine=engine_name(manifest.hardware_class)).value)
    for name, bound, value in (("latency", budget.latency, latency), ("memory", budget.memory, memory)):
        if bound is not None and value is None:
            reason = (
                f"the bundle is for {manifest.hardware_class}" if not here else "this system does not tell it"
            )
            warnings.warn(
                NotMeasuredWarning(f"{name} was not held against its budget: {reason}"), stacklevel=5
            )
    return Footprint(
        size=manifest.size, latency=latency, memory=memory, hardware_class=manifest.hardware_class
    )


def check_budget(budget: Budget, footprint: Footprint) -> None:
    """Raises SettingError where a bound is not kept; it names the one that is exceeded most.

    A latency may be a tenth over: measured again, the same file takes now more and now less.
    """
    for slack in slacks(budget, footprint)[:1]:
        if slack.value > slack.bound * (_AGAIN if slack.name == "latency" else 1):
            raise SettingError(
                _TOO_MUCH[slack.name],
                where=slack.name,
                expected=f"at most {slack.bound:g} {_UNITS[slack.name]} (budget)",
                got=f"{slack.value:g}",
                fix=_FIX.get(slack.name, "allow a little more, or give a narrower student"),
            )


_UNITS: Final = {
    "size": "bytes",
    "latency": "seconds in 95 of 100 answers, one thread",
    "memory": "bytes",
    "update": "bytes",
}
