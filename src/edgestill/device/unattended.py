"""Which unattended updates a device takes: those that only a role `auto/CLASS` lists, whose key lies on a machine that nobody watches.

- None, unless its owner has opted in. Being assigned is not enough: the hub decides what runs where, not what this device accepts.
- Of its own hardware class, and of the name of what serves: an update changes what a thing knows, not what it is.
- A later version than what serves; or the very archive that the other slot still holds, so that a fleet can be brought back from an update that
  was no good. Whoever stole that key can bring back nothing older than that.

What the publisher lists itself, or a role by class that it names, is no matter of this module: that search comes first (`trust.roles`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgestill.core.errors import UnattendedError
from edgestill.trust.roles import ANY_CLASS, AUTO

if TYPE_CHECKING:
    from edgestill.device.state import State, Target


def check(target: Target, role: str, state: State, *, accepted: bool) -> None:
    """Looks whether a device may begin to install a target.

    Args:
        target: that is assigned.
        role: that lists it.
        state: of the device.
        accepted: whether its owner has opted in.

    Raises:
        UnattendedError: it may not.
    """
    if not role.startswith(AUTO):
        return
    check_owner(target, role, accepted=accepted)
    if role != AUTO + target.hardware_class or target.hardware_class == ANY_CLASS:
        raise _refused(target, role, f"a bundle that {AUTO}{target.hardware_class} lists")
    serving = state.serving
    if serving is None or target in {state.a, state.b}:
        return
    if target.parts[0] != serving.parts[0]:
        raise _refused(target, role, f"an update of {serving.parts[0]}")
    if target.parts[1] <= serving.parts[1]:
        raise _refused(target, role, f"a later version than {serving.release}")


def check_owner(target: Target, role: str, *, accepted: bool) -> None:
    """Looks whether a device may go on to install a target that it has begun: its owner may have opted out since then.

    Raises:
        UnattendedError: it may not.
    """
    if role.startswith(AUTO) and not accepted:
        raise _refused(target, role, "a release that the publisher lists, or an owner who has opted in")


def _refused(target: Target, role: str, expected: str) -> UnattendedError:
    return UnattendedError(
        "this unattended update is not for this device", where=role, expected=expected, got=target.name
    )
