"""A device's life: it joins a fleet once, and then runs until it is told to stop.

- Joining pins the publisher: the token names the digest of its root, and another root is refused before anything is
  written down. It names the fleet's authority too, so that a hub is believed which has its certificate from there: the authority's
  certificate is fetched from whoever answers, compared with the token, and only then anything secret is sent.
- The device's key is made here and stays here. The hub gets a request for a certificate with it.
- Running puts together what the other modules of this room are, for one home, and leaves nothing behind but that home.
"""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from dataclasses import replace as altered
from typing import TYPE_CHECKING, Final

from edgestill.core.bundle import Bundle, replace
from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError, NotFoundError, SettingError, TrustError
from edgestill.core.hardware import ENGINES, HardwareClass
from edgestill.core.manifest import TRAIN
from edgestill.core.wire import Enrol
from edgestill.device import processes
from edgestill.device.agent import Agent
from edgestill.device.courier import Courier
from edgestill.device.home import (
    DEVICE_KEY,
    IDENTITY,
    Home,
    Identity,
    choose_socket,
    drop_socket,
    refuse_inhabited,
)
from edgestill.device.installer import Installer
from edgestill.device.jobs import PROXY_SETS, Jobs
from edgestill.device.mirrors import Mirrors, Nearby
from edgestill.device.offline import Stick
from edgestill.device.outbox import Outbox
from edgestill.device.papers import Papers, first_papers, papers_of
from edgestill.device.privacy import may_send_evidence
from edgestill.device.quiet import Quiet
from edgestill.device.slots import Slots
from edgestill.device.spending import fetching_within, ledger_of
from edgestill.device.supervisor import Supervisor
from edgestill.device.word import Word
from edgestill.link.control import ControlClient
from edgestill.link.folder import FolderTransport
from edgestill.link.http import HttpTransport
from edgestill.link.metered import Metered
from edgestill.link.tls import hub_context, unverified_context
from edgestill.trust.certificates import Authorities, IdentityKey
from edgestill.trust.client import TrustedClient
from edgestill.trust.kept import KeptMetadata

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgestill.core.protocols import Clock, Transport
    from edgestill.device.coach import Coach
    from edgestill.device.home import Settings
    from edgestill.device.installer import Fetch
    from edgestill.device.machine import Rules
    from edgestill.device.measuring import Measuring
    from edgestill.device.quiet import Patience
    from edgestill.device.state import Target
    from edgestill.device.supervisor import Hub, Pace
    from edgestill.device.voting import Voting
    from edgestill.link.ledger import Ledger

log = logging.getLogger(__name__)

TIMEOUT: Final = 20.0
COACH_SECONDS: Final = 15.0
_RANDOM: Final = r"[A-Za-z0-9_-]{1,120}"
_DIGEST: Final = r"([0-9a-f]{64})"
_TOKEN: Final = re.compile(rf"est1\.{_RANDOM}\.{_DIGEST}|est2\.{_RANDOM}\.{_DIGEST}\.{_DIGEST}")
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def join(
    path: Path,
    *,
    hub: str,
    token: str,
    name: str,
    settings: Settings,
    transport: Transport | None = None,
    engine: str = ENGINES[0],
) -> Home:
    """Enrols a device with its hub and makes its home.

    Args:
        path: the home to make.
        hub: the hub's address.
        token: what the operator gave: a secret, and the digests of the publisher's root and of the fleet's authority.
        name: the device's name in the fleet.
        settings: what its owner chose.
        transport: to the hub; real sockets where None, and TLS as the token says.
        engine: that will run its models; it is part of the device's hardware class.

    Raises:
        SettingError: a token or name that cannot be one.
        ConflictError: a device lives there already.
        TrustError: the hub offers another publisher or another authority than the token names, or a certificate that is not ours.
        UnreachableError, RefusedError and others: the hub did not let it in.
    """
    root, authority = _pinned(token)
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
    key = IdentityKey.generate()
    control = ControlClient(transport or _transport_to(hub, authority), hub, timeout=TIMEOUT)
    enrolled = control.enrol(
        Enrol(
            join_token=token,
            device=name,
            hardware_class=hardware_class,
            labels=settings.labels,
            request=key.request().decode("ascii"),
        )
    )
    if Digest.of(enrolled.root).hex != root:
        raise TrustError(
            "the hub offers another publisher than the join token names",
            where=hub,
            expected=f"sha256:{root}",
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
    papers = first_papers(enrolled, key, authority)
    return Home.create(path, identity=identity, settings=settings, root=enrolled.root, papers=papers)


def rejoin(path: Path, *, hub: str, token: str, transport: Transport | None = None) -> Home:
    """Enrols a device anew that has a home, with a hub that does not know it: its name, key, bundles and what it learned stay.

    The publisher stays, too: the hub's root must follow, root by root, from the one that the device trusts. After a kill it may be called again
    with the same token.

    Args:
        path: the home.
        hub: the hub's address.
        token: as for `join`.
        transport: likewise.

    Raises:
        NotFoundError: no device lives there. ConflictError: its agent runs, or the hub has a device of that name.
        SettingError: a token that cannot be one.
        TrustError: the token names another root than the publisher's newest, or the hub another authority.
        UnreachableError, RefusedError and others: the hub did not let it in.
    """
    root, authority = _pinned(token)
    home, hub, clock = Home.open(path), hub.rstrip("/"), SystemClock()
    with home.locked():
        identity, papers = home.identity, Papers.of(home, clock)
        control = ControlClient(transport or _transport_to(hub, authority), hub, timeout=TIMEOUT)
        trusted = TrustedClient(KeptMetadata(home.tuf), root=home.root, fetch=control.artefact, clock=clock)
        trusted.refresh_root()
        if Digest.of(trusted.newest_root).hex != root:
            raise TrustError(
                "the join token names another root than this device's publisher has signed",
                where="--token",
                expected=Digest.of(trusted.newest_root),
                got=f"sha256:{root}",
                fix="ask the operator for a token of now; another publisher's device needs a home of its own",
            )
        request = papers.request()
        enrolled = control.enrol(
            Enrol(
                join_token=token,
                device=identity.device,
                hardware_class=identity.hardware_class,
                labels=home.settings.labels,
                request=request.decode("ascii"),
            )
        )
        key = IdentityKey.from_pem((path / DEVICE_KEY).read_bytes())
        for name, data in first_papers(enrolled, key, authority).items():
            replace(path / name, data)
        known = altered(identity, credential=enrolled.credential, hub=hub, interval=enrolled.interval)
        replace(path / IDENTITY, known.to_bytes())
        with suppress(NotFoundError):  # a hub of old
            papers.vouch(control.vouched(), trusted.assignment_keys)
    return Home.open(path)


def _pinned(token: str) -> tuple[str, str | None]:
    """The digests of root and authority that a join token names; SettingError where it is none."""
    found = _TOKEN.fullmatch(token)
    if found is None:
        raise SettingError(
            "not a join token",
            where="--token",
            expected="est2.SECRET.ROOT.AUTHORITY",
            fix="copy it whole",
            got="something else",
        )
    return found[1] or found[2], found[3]


def _transport_to(hub: str, authority: str | None) -> Transport:
    """Real sockets to a hub, which believe the authority that was vouched for.

    Raises:
        TrustError: whoever answers there has another one.
        UnreachableError, RefusedError and others: nobody does.
    """
    if authority is None or not hub.startswith("https:"):
        return HttpTransport()
    with HttpTransport(tls=unverified_context()) as public:
        try:
            told = ControlClient(public, hub, timeout=TIMEOUT).authorities()
        except NotFoundError:  # a hub of old, which has its certificate from elsewhere
            return HttpTransport()
    vouched = Authorities.from_pem(told).only(authority)
    return HttpTransport(tls=hub_context(vouched.to_pem().decode("ascii")))


def run(
    home: Home,
    *,
    pace: Pace,
    rules: Rules,
    transport: Transport,
    ready: Path | None = None,
    patience: Patience | None = None,
) -> None:
    """Runs a device until SIGTERM or SIGINT.

    Args:
        home: of the device.
        pace: how often to speak to the hub.
        rules: what a trial must stand.
        transport: to the hub.
        ready: written once the device runs.
        patience: when it is quiet enough to time something.

    Raises:
        ConflictError: its agent runs already.
        PathError, EngineError: the home or the application socket cannot be used.
    """
    clock = SystemClock()
    with home.locked(), _parts(home, transport, clock) as parts:
        nearby = Nearby(_mirrors(home), transport=HttpTransport(plain_http=True), clock=clock)
        ledger = ledger_of(home, clock, keeps_time=True)
        papers = papers_of(transport, home, clock)
        quiet = Quiet(clock, patience)
        agent = parts.agent(rules)
        jobs = Jobs(home.timing, lambda: _measuring(home, courier, quiet, clock))
        turns = Jobs(home.votes, lambda: _voting(parts, agent, courier, quiet), archives=PROXY_SETS)
        word = Word(home, papers, clock, ledger)
        courier = parts.courier(
            nearby=nearby, papers=papers, ledger=ledger, word=word, jobs=jobs, turns=turns
        )
        coach = _coach(home, parts.slots, agent, quiet, clock)
        try:
            _supervise(home, parts.supervisor(agent, courier, courier.fetch, quiet), pace=pace, ready=ready)
        finally:
            if coach is not None:
                coach.stop(COACH_SECONDS)
            jobs.stop()
            turns.stop()
            ledger.settle()


def _coach(home: Home, slots: Slots, agent: Agent, quiet: Quiet, clock: Clock) -> Coach | None:
    """What trains in idle hours, started; None where the owner wants none of it."""
    effort = home.settings.effort
    if effort is None or not home.settings.keeps:
        return None
    from edgestill.device.coach import Coach
    from edgestill.device.sensors import Sensors
    from edgestill.device.trainer import TrainerProcess

    def archive() -> Path | None:
        path = _confirmed(agent, slots)
        return path if path is not None and TRAIN in Bundle.open(path).manifest.blobs else None

    coach = Coach(
        home.training,
        effort=effort,
        quiet=quiet,
        sensors=Sensors(clock),
        clock=clock,
        archive=archive,
        start=lambda path, seconds: TrainerProcess.start(home.path, path, seconds),
    )
    coach.begin()
    return coach


def _confirmed(agent: Agent, slots: Slots) -> Path | None:
    """The archive of what serves and is confirmed; None while there is none."""
    state = agent.state
    serving = state.serving
    if state.phase != "idle" or state.active is None or serving is None:
        return None
    return slots.archive(state.active, serving)


def _voting(parts: _Parts, agent: Agent, courier: Courier, quiet: Quiet) -> Voting:
    """What votes, loaded when there is something to vote on."""
    from edgestill.device.voter import Voter
    from edgestill.device.voting import Voting

    home, a_day = parts.home, parts.home.settings.bytes_per_day
    made = Voting(
        home.votes,
        line=courier,
        outbox=parts.outbox,
        quiet=quiet,
        clock=parts.clock,
        serving=lambda: _confirmed(agent, parts.slots),
        start=lambda archive, proxy, digest: Voter.start(home.path, archive, proxy, digest),
        most_bytes=None if a_day is None else a_day // 2,
    )
    return made.open().begin()


def _measuring(home: Home, courier: Courier, quiet: Quiet, clock: Clock) -> Measuring:
    """What times, loaded when there is something to time."""
    from edgestill.device.measuring import Measuring

    a_day = home.settings.bytes_per_day
    made = Measuring(
        home.timing,
        hardware_class=home.identity.hardware_class,
        line=courier,
        quiet=quiet,
        clock=clock,
        most_bytes=None if a_day is None else a_day // 2,
    )
    return made.open().begin()


def update(home: Home, source: Path, *, pace: Pace, rules: Rules) -> Target | None:
    """Brings a device what a folder assigns to it, and ends when it has come to rest (see `device.offline`).

    Returns:
        What serves by the folder's word; None where it assigns nothing.

    Raises:
        ConflictError: its agent runs, or it was ended before it was done.
        TrustError, ReplayError, ExpiredError and others: the folder holds what must not be trusted.
        UnreachableError, NotFoundError, RefusedError: it lacks something, or went away.
        ProbeError: the device fell back.
    """
    clock, identity = SystemClock(), home.identity
    transport = FolderTransport(source, hub_url=identity.hub, device=identity.device)
    with home.locked(), _parts(home, transport, clock) as parts:
        agent = parts.agent(rules)
        stick = Stick(parts.courier(), state=lambda: agent.state)
        supervisor = parts.supervisor(agent, stick, stick.fetch)
        stick.ends(supervisor.stop)
        _supervise(home, supervisor, pace=pace, ready=None)
        return stick.outcome()


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a supervisor is put together of, opened."""

    home: Home
    slots: Slots
    outbox: Outbox
    transport: Transport
    clock: Clock

    def courier(
        self,
        *,
        nearby: Nearby | None = None,
        papers: Papers | None = None,
        ledger: Ledger | None = None,
        word: Word | None = None,
        jobs: Jobs | None = None,
        turns: Jobs | None = None,
    ) -> Courier:
        identity = self.home.identity
        carried = self.transport if ledger is None else Metered(self.transport, ledger)
        control = ControlClient(carried, identity.hub, credential=identity.credential, timeout=TIMEOUT)
        fetch = control.artefact if ledger is None else fetching_within(ledger, control.artefact)
        trusted = TrustedClient(
            KeptMetadata(self.home.tuf), root=self.home.root, fetch=fetch, clock=self.clock
        )
        return Courier(
            identity,
            control=control,
            trusted=trusted,
            transport=self.transport,
            clock=self.clock,
            nearby=nearby,
            papers=papers,
            ledger=ledger,
            word=word,
            jobs=jobs,
            turns=turns,
        )

    def agent(self, rules: Rules) -> Agent:
        device = self.home.identity.device
        return Agent(device=device, slots=self.slots, outbox=self.outbox, clock=self.clock, rules=rules)

    def supervisor(self, agent: Agent, hub: Hub, fetch: Fetch, quiet: Quiet | None = None) -> Supervisor:
        path = self.home.path
        installer = Installer(
            self.slots,
            fetch=fetch,
            probe=lambda slot, target, archive: processes.probe(path, slot, target, archive),
            hardware_class=self.home.identity.hardware_class,
        )
        return Supervisor(
            path,
            agent=agent,
            slots=self.slots,
            outbox=self.outbox,
            installer=installer,
            hub=hub,
            clock=self.clock,
            quiet=quiet,
        )


@contextmanager
def _parts(home: Home, transport: Transport, clock: Clock) -> Iterator[_Parts]:
    slots, outbox = Slots.open(home.slots), Outbox.open(home.outbox)
    if not may_send_evidence(home.settings.leaves):  # what waits was made when it might still leave
        outbox.drop_evidence()
    try:
        yield _Parts(home, slots, outbox, transport, clock)
    finally:
        outbox.close()


def _supervise(home: Home, supervisor: Supervisor, *, pace: Pace, ready: Path | None) -> None:
    supervisor.stop_on_signals()
    address = choose_socket(home.path)
    try:
        with processes.listening(address) as listener:
            supervisor.run(listener=listener, pace=pace, ready=ready)
    finally:
        drop_socket(home.path, address)


def _mirrors(home: Home) -> Mirrors:
    """A list that cannot be read is no reason not to run."""
    try:
        return Mirrors.of(home.mirrors)
    except EdgestillError as error:
        log.warning("no mirror is asked: %s", error)
        return Mirrors()
