"""`edgestill-agent`: join a fleet, run a device, ask where it stands.

    edgestill-agent join --home DIR --hub URL --token T --name N [--label k=v]... [--leaves nothing|features|raw]
    edgestill-agent run --home DIR [--ready FILE] [--health-every 15s] [--health-window 30s]
    edgestill-agent status --home DIR [--json]

Exit status: 0; 1 with one line on standard error that says what is wrong and what to do; 2 for wrong usage. Arguments
are read by argparse: this program must start on a device that has no more than the `agent` extra.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError, PathError, SettingError, TrustError
from edgestill.core.hardware import HardwareClass
from edgestill.core.units import parse_duration
from edgestill.core.wire import Enrol
from edgestill.device import processes
from edgestill.device.agent import Agent
from edgestill.device.courier import Courier
from edgestill.device.home import Home, Identity, Settings, choose_socket, drop_socket, refuse_inhabited
from edgestill.device.installer import Installer
from edgestill.device.machine import Rules
from edgestill.device.outbox import Outbox
from edgestill.device.privacy import LEVELS
from edgestill.device.slots import Slots
from edgestill.device.status import read_status
from edgestill.device.supervisor import Pace, Supervisor
from edgestill.link.control import ControlClient
from edgestill.link.http import HttpTransport
from edgestill.trust.client import TrustedClient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgestill.core.protocols import Transport

TIMEOUT: Final = 20.0
_TOKEN: Final = re.compile(r"est1\.[A-Za-z0-9_-]{1,120}\.([0-9a-f]{64})")
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        {"join": _join, "run": _run, "status": _status}[options.verb](options)
    except EdgestillError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{PathError('the system refused', where=error.filename, got=error.strerror)}\n")
        return 1
    return 0


def join(path: Path, *, hub: str, token: str, name: str, settings: Settings, transport: Transport) -> Home:
    """Enrols a device with its hub and makes its home.

    Args:
        path: the home to make.
        hub: the hub's address.
        token: what the operator gave: a secret, and the digest of the publisher's root.
        name: the device's name in the fleet.
        settings: what its owner chose.
        transport: to the hub.

    Raises:
        SettingError: a token or name that cannot be one.
        ConflictError: a device lives there already.
        TrustError: the hub offers another publisher than the token names.
        UnreachableError, RefusedError and others: the hub did not let it in.
    """
    pinned = _TOKEN.fullmatch(token)
    if pinned is None:
        raise SettingError(
            "not a join token", where="--token", expected="est1.SECRET.DIGEST", fix="copy it whole"
        )
    if _NAME.fullmatch(name) is None:
        raise SettingError(
            "a name that cannot be used", where="--name", expected=f"{_NAME.pattern}", got=name[:80]
        )
    refuse_inhabited(path)
    hub = hub.rstrip("/")
    hardware_class = str(HardwareClass.here())
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
        control = ControlClient(transport, identity.hub, credential=identity.credential, timeout=TIMEOUT)
        trusted = TrustedClient(home.tuf, root=home.root, fetch=control.artefact, clock=clock)
        courier = Courier(identity, control=control, trusted=trusted, transport=transport, clock=clock)
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
            outbox.close()


def _join(options: argparse.Namespace) -> None:
    settings = Settings(leaves=options.leaves, labels=_labels(options.label))
    home = join(
        options.home,
        hub=options.hub,
        token=options.token,
        name=options.name,
        settings=settings,
        transport=HttpTransport(),
    )
    sys.stdout.write(f"{home.identity.device} belongs to {home.identity.hub}\n")


def _run(options: argparse.Namespace) -> None:
    level = os.environ.get("EDGESTILL_LOG", "INFO").upper()
    logging.basicConfig(
        level=level if level in logging.getLevelNamesMapping() else "INFO",
        format="%(asctime)s %(name)s: %(message)s",
    )
    home = Home.open(options.home)
    window = parse_duration(options.health_window)
    every = parse_duration(options.health_every)
    if every <= 0:
        raise SettingError("an interval must be positive", where="--health-every", got=options.health_every)
    pace = Pace(poll=home.identity.interval, health=every, watch=max(window / 4, 0.1))
    run(home, pace=pace, rules=Rules(window=window), transport=HttpTransport(), ready=options.ready)


def _status(options: argparse.Namespace) -> None:
    status = read_status(options.home)
    if options.json:
        sys.stdout.write(json.dumps(status, indent=2, sort_keys=True) + "\n")
        return
    for name, value in status.items():
        shown = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        sys.stdout.write(f"{name:15} {shown}\n")


def _labels(pairs: Sequence[str]) -> dict[str, str]:
    labels = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals or name in labels:
            raise SettingError(
                "cannot read a label", where="--label", expected="NAME=VALUE, each once", got=pair
            )
        labels[name] = value
    return labels


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edgestill-agent", description="The agent of a device.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="join | run | status")
    one = verbs.add_parser("join", help="enrol this device with a hub")
    one.add_argument("--home", type=Path, required=True, help="the device's folder; made here")
    one.add_argument("--hub", required=True, metavar="URL")
    one.add_argument("--token", required=True, help="a join token from the operator")
    one.add_argument("--name", required=True, help="the device's name in the fleet")
    one.add_argument(
        "--label", action="append", default=[], metavar="NAME=VALUE", help="for cohorts; repeatable"
    )
    one.add_argument(
        "--leaves",
        choices=LEVELS,
        default="raw",
        help="the most that may leave it (default: as the bundle says)",
    )
    two = verbs.add_parser("run", help="run the agent until SIGTERM or SIGINT")
    two.add_argument("--home", type=Path, required=True)
    two.add_argument("--ready", type=Path, metavar="FILE", help="written once the agent runs")
    two.add_argument(
        "--health-every", default="15s", metavar="DURATION", help="between figures (default 15s)"
    )
    two.add_argument(
        "--health-window",
        default="30s",
        metavar="DURATION",
        help="that a new bundle must serve (default 30s)",
    )
    three = verbs.add_parser("status", help="where this device stands")
    three.add_argument("--home", type=Path, required=True)
    three.add_argument("--json", action="store_true", help="for machines")
    return parser


if __name__ == "__main__":
    sys.exit(main())
