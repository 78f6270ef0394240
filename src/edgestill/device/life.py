"""A device's life: it joins a fleet once, and then runs until it is told to stop.

- Joining pins the publisher: the token names the digest of its root, and another root is refused before anything is
  written down.
- Running puts together what the other modules of this room are, for one home, and leaves nothing behind but that home.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final

from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError, SettingError, TrustError
from edgestill.core.hardware import ENGINES, HardwareClass
from edgestill.core.wire import Enrol
from edgestill.device import processes
from edgestill.device.agent import Agent
from edgestill.device.courier import Courier
from edgestill.device.home import Home, Identity, choose_socket, drop_socket, refuse_inhabited
from edgestill.device.installer import Installer
from edgestill.device.mirrors import Mirrors, Nearby
from edgestill.device.outbox import Outbox
from edgestill.device.slots import Slots
from edgestill.device.spending import fetching_within, ledger_of
from edgestill.device.supervisor import Supervisor
from edgestill.link.control import ControlClient
from edgestill.link.http import HttpTransport
from edgestill.link.metered import Metered
from edgestill.trust.client import TrustedClient
from edgestill.trust.kept import KeptMetadata

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.core.protocols import Transport
    from edgestill.device.home import Settings
    from edgestill.device.machine import Rules
    from edgestill.device.supervisor import Pace

log = logging.getLogger(__name__)

TIMEOUT: Final = 20.0
_TOKEN: Final = re.compile(r"est1\.[A-Za-z0-9_-]{1,120}\.([0-9a-f]{64})")
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def join(
    path: Path,
    *,
    hub: str,
    token: str,
    name: str,
    settings: Settings,
    transport: Transport,
    engine: str = ENGINES[0],
) -> Home:
    """Enrols a device with its hub and makes its home.

    Args:
        path: the home to make.
        hub: the hub's address.
        token: what the operator gave: a secret, and the digest of the publisher's root.
        name: the device's name in the fleet.
        settings: what its owner chose.
        transport: to the hub.
        engine: that will run its models; it is part of the device's hardware class.

    Raises:
        SettingError: a token or name that cannot be one.
        ConflictError: a device lives there already.
        TrustError: the hub offers another publisher than the token names.
        UnreachableError, RefusedError and others: the hub did not let it in.
    """
    pinned = _TOKEN.fullmatch(token)
    if pinned is None:
        raise SettingError(
            "not a join token",
            where="--token",
            expected="est1.SECRET.DIGEST",
            fix="copy it whole",
            got="something else",
        )
    if _NAME.fullmatch(name) is None:
        raise SettingError(
            "a name that cannot be used",
            where="--name",
            expected=f"{_NAME.pattern}",
            got=name[:80],
            fix="choose another",
        )
    refuse_inhabited(path)
    hub = hub.rstrip("/")
    hardware_class = str(HardwareClass.here(engine))
    control = ControlClient(transport, hub, timeout=TIMEOUT)
    enrolled = control.enrol(
        Enrol(join_token=token, device=name, hardware_class=hardware_class, labels=settings.labels)
    )
    if Digest.of(enrolled.root).hex != pinned[1]:
        raise TrustError(
            "the hub offers another publisher than the join token names",
            where=hub,
            expected=f"sha256:{pinned[1]}",
            got=Digest.of(enrolled.root),
            fix="ask the operator for a new token; do not trust this hub",
        )
    identity = Identity(
        device=enrolled.device,
        credential=enrolled.credential,
        hub=hub,
        hardware_class=hardware_class,
        interval=enrolled.interval,
    )
    return Home.create(path, identity=identity, settings=settings, root=enrolled.root)


def run(home: Home, *, pace: Pace, rules: Rules, transport: Transport, ready: Path | None = None) -> None:
    """Runs a device until SIGTERM or SIGINT.

    Raises:
        ConflictError: its agent runs already.
        PathError, EngineError: the home or the application socket cannot be used.
    """
    clock = SystemClock()
    identity = home.identity
    with home.locked():
        slots, outbox = Slots.open(home.slots), Outbox.open(home.outbox)
        ledger = ledger_of(home, clock)
        control = ControlClient(
            Metered(transport, ledger), identity.hub, credential=identity.credential, timeout=TIMEOUT
        )
        trusted = TrustedClient(
            KeptMetadata(home.tuf),
            root=home.root,
            fetch=fetching_within(ledger, control.artefact),
            clock=clock,
        )
        courier = Courier(
            identity,
            control=control,
            trusted=trusted,
            transport=transport,
            clock=clock,
            nearby=Nearby(_mirrors(home), transport=HttpTransport(plain_http=True), clock=clock),
            ledger=ledger,
        )
        supervisor = Supervisor(
            home.path,
            agent=Agent(device=identity.device, slots=slots, outbox=outbox, clock=clock, rules=rules),
            slots=slots,
            outbox=outbox,
            installer=Installer(
                slots,
                fetch=courier.fetch,
                probe=lambda slot, target, archive: processes.probe(home.path, slot, target, archive),
                hardware_class=identity.hardware_class,
            ),
            hub=courier,
            clock=clock,
        )
        supervisor.stop_on_signals()
        address = choose_socket(home.path)
        try:
            with processes.listening(address) as listener:
                supervisor.run(listener=listener, pace=pace, ready=ready)
        finally:
            drop_socket(home.path, address)
            ledger.settle()
            outbox.close()


def _mirrors(home: Home) -> Mirrors:
    """A list that cannot be read is no reason not to run."""
    try:
        return Mirrors.of(home.mirrors)
    except EdgestillError as error:
        log.warning("no mirror is asked: %s", error)
        return Mirrors()
