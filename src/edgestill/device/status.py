"""Where a device stands, for people and machines; read from its home, and asked of its engine where that runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from edgestill.core.clock import SystemClock
from edgestill.core.errors import EdgestillError
from edgestill.device import asking
from edgestill.device.frames import Frame
from edgestill.device.home import Home, find_socket
from edgestill.device.outbox import waiting_in
from edgestill.device.papers import Papers
from edgestill.device.slots import read_state
from edgestill.device.spending import ledger_of
from edgestill.device.state import State

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.core.jsonio import Json, JsonObject

ENGINE_SECONDS: Final = 2.0


def read_status(path: Path, *, ask_engine: bool = True) -> JsonObject:
    """What is known about a device.

    Args:
        path: its home.
        ask_engine: whether to ask the running engine as well.

    Returns:
        device, hub, hardware_class, leaves, accept_auto; release, slot, phase, counter of what serves (None before the first);
        certificate: when it ends (UTC), None where there is none;
        wanted and failure of installations; reports that wait; budget: bytes per day, what was spent and is left of today, and what waits
        for more, or None where the count cannot be read; engine: what the engine says, or None.

    Raises:
        NotFoundError: no device lives there.
    """
    home = Home.open(path)
    state = read_state(home.slots) or State()
    serving, wanted, failure = state.serving, state.wanted, state.failure
    return {
        "device": home.identity.device,
        "hub": home.identity.hub,
        "hardware_class": home.identity.hardware_class,
        "leaves": home.settings.leaves,
        "labels": dict(home.settings.labels),
        "certificate": _certificate(home),
        "accept_auto": home.settings.accept_auto,
        "release": None if serving is None else serving.release,
        "bundle": None if serving is None else str(serving.digest),
        "slot": state.active,
        "phase": state.phase,
        "counter": state.counter,
        "wanted": None if wanted is None else wanted.release,
        "failure": None
        if failure is None
        else {"counter": failure.counter, "release": failure.target.release, "reason": failure.reason},
        "reports": waiting_in(home.outbox),
        "budget": _budget(home),
        "engine": _engine(path) if ask_engine and serving is not None else None,
    }


def _certificate(home: Home) -> str | None:
    found = Papers.of(home, SystemClock()).member()
    return None if found is None else f"{datetime.fromtimestamp(found.ends, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _budget(home: Home) -> Json:
    try:
        account = ledger_of(home, SystemClock()).account()
    except EdgestillError:
        return None
    allowance = account.allowance
    return {
        "bytes_per_day": allowance.bytes_per_day,
        "spent": allowance.spent,
        "left": allowance.left(SystemClock().now()),
        "waiting": account.waiting or None,
        "needs": account.needs,
    }


def _engine(path: Path) -> Json:
    try:
        stream = asking.connect(find_socket(path), timeout=ENGINE_SECONDS)
    except EdgestillError:
        return None
    try:
        said = asking.ask(stream, Frame({"op": "status"}), timeout=ENGINE_SECONDS)
    except EdgestillError:
        return None
    finally:
        stream.close()
    return None if said is None else said.header
