"""The papers of a device: made at joining, renewed in time, and never lost, wherever the power fails."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from device_bundles import MemoryTransport, TinyHub

from edgestill.core import bundle
from edgestill.core.errors import AccessError, MessageError, TrustError, UnreachableError
from edgestill.core.wire import Certified
from edgestill.device.courier import RENEWAL_PAUSE, Courier
from edgestill.device.home import AUTHORITIES, CERTIFICATE, DEVICE_KEY, PAPERS, Home, Identity, Settings
from edgestill.device.life import join
from edgestill.device.papers import HubTransport, Papers, papers_of
from edgestill.device.status import read_status
from edgestill.link.control import ControlClient
from edgestill.link.http import HttpTransport
from edgestill.testing.clock import FakeClock
from edgestill.testing.faults import Fault, FaultyTransport
from edgestill.trust.authority import Authority
from edgestill.trust.certificates import IdentityKey, Requested
from edgestill.trust.client import TrustedClient
from edgestill.trust.kept import KeptMetadata

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgestill.core.protocols import Transport

DAY = 86_400.0
URL = "http://127.0.0.1:1"
SETTINGS = Settings(leaves="raw", labels={})
AUTHORITY = Authority.create("0123456789abcdef")


@pytest.fixture
def clock() -> FakeClock:
    """The time of hub and device."""
    return FakeClock()


@pytest.fixture
def hub(clock: FakeClock) -> TinyHub:
    """A hub that gives certificates."""
    made = TinyHub(clock=clock, authority=AUTHORITY)
    made.publish("1.0.0", b"a bundle")
    return made


def joined(path: Path, hub: TinyHub, *, token: str | None = None) -> Home:
    """A device that has joined."""
    return join(
        path,
        hub=URL,
        token=token or hub.token,
        name="d1",
        settings=SETTINGS,
        transport=MemoryTransport(hub),
    )


def courier_of(home: Home, hub: TinyHub, clock: FakeClock, transport: Transport | None = None) -> Courier:
    """The device's courier, as a start of the agent makes it."""
    transport = transport or MemoryTransport(hub)
    control = ControlClient(transport, URL, credential=home.identity.credential, timeout=5)
    trusted = TrustedClient(
        KeptMetadata(home.tuf), root=hub.repository.root, fetch=control.artefact, clock=clock
    )
    return Courier(
        home.identity,
        control=control,
        trusted=trusted,
        transport=transport,
        clock=clock,
        papers=papers_of(transport, home, clock),
    )


def ends(home: Home, clock: FakeClock) -> float | None:
    """When the certificate ends, if there is one that is the device's."""
    found = Papers.of(home, clock).member()
    return None if found is None else found.ends


class Killed(BaseException):
    """The power failed: nothing of ours may catch it."""


@dataclass
class Power:
    """Counts what is written, and fails at one of the writes.

    Attributes:
        at: number of the write; None never fails.
        fault: `before` or `after` it, or `within`: half of the bytes lie beside the file.
        written: names of the files, in order.
    """

    at: int | None = None
    fault: str = "before"
    written: list[str] = field(default_factory=list)

    def write(self, path: Path, data: bytes, **options: Any) -> None:
        """Replaces a file, or fails."""
        number = len(self.written)
        self.written.append(path.name)
        if number == self.at:
            if self.fault == "after":
                _replace(path, data, **options)
            if self.fault == "within":
                path.with_name(f".{path.name}.1-{number}").write_bytes(data[: len(data) // 2])
            raise Killed
        _replace(path, data, **options)


_replace = bundle.replace


@contextmanager
def power(at: int | None = None, fault: str = "before") -> Iterator[Power]:
    """Everything that home and papers write goes through it."""
    made = Power(at, fault)
    with (
        patch("edgestill.core.bundle.replace", made.write),
        patch("edgestill.device.papers.replace", made.write),
    ):
        yield made


FAULTS = ("before", "within", "after")


# Joining


def test_joining_makes_a_key_and_brings_a_certificate(tmp_path: Path, hub: TinyHub, clock: FakeClock) -> None:
    """For the device's name and its own key, from the authority that the token names."""
    home = joined(tmp_path / "home", hub)
    found = Papers.of(home, clock).member()
    assert found is not None
    assert (found.device, found.key) == ("d1", hub.key)
    assert found.key == IdentityKey.from_pem((home.path / DEVICE_KEY).read_bytes()).id
    assert (home.path / AUTHORITIES).read_bytes() == AUTHORITY.authorities.to_pem()


def test_the_key_stays_on_the_device_and_is_its_owners_alone(
    tmp_path: Path, hub: TinyHub, clock: FakeClock
) -> None:
    """No message holds it, at joining or later; no other user can read it."""
    home = joined(tmp_path / "home", hub)
    clock.advance(6 * DAY)
    courier_of(home, hub, clock).poll(seen=0)
    private = (home.path / DEVICE_KEY).read_bytes()
    body = private.splitlines()[1]
    assert all(b"PRIVATE" not in one and body not in one for one in hub.bodies)
    assert hub.served.count("/v1/certificate") == 1
    assert stat.S_IMODE((home.path / DEVICE_KEY).stat().st_mode) == 0o600


def test_two_devices_have_two_keys(tmp_path: Path, hub: TinyHub) -> None:
    """And so has one that joins twice."""
    keys = set()
    for name in ("one", "two"):
        joined(tmp_path / name, hub)
        keys.add(hub.key)
    assert len(keys) == 2


def test_a_hub_of_old_gives_no_papers_and_the_device_goes_on(
    tmp_path: Path, hub: TinyHub, clock: FakeClock
) -> None:
    """It has its credential; a poll asks for a certificate, is told that there are none, and goes on."""
    hub.authority = None
    home = joined(tmp_path / "home", hub)
    assert not any((home.path / name).exists() for name in PAPERS)
    assert Papers.of(home, clock).context() is None
    courier_of(home, hub, clock).poll(seen=0)
    assert "/v1/poll" in hub.served


def test_attack_a_hub_with_another_authority_than_the_tokens(tmp_path: Path, hub: TinyHub) -> None:
    """Attack: whoever answers has an authority of the same name, and another key. Nothing is written."""
    token = hub.token
    hub.authority = Authority.create(AUTHORITY.authorities.fleet)
    with pytest.raises(TrustError, match="another authority than the one that was vouched for"):
        joined(tmp_path / "home", hub, token=token)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("device", "key"), [("d2", None), ("d1", IdentityKey.generate())], ids=["name", "key"]
)
def test_attack_a_hub_that_answers_with_anothers_certificate(
    tmp_path: Path, hub: TinyHub, monkeypatch: pytest.MonkeyPatch, device: str, key: IdentityKey | None
) -> None:
    """Attack: for another device, or for a key that somebody else has."""
    honest = hub._certified

    def hostile(_: object, request: str) -> dict[str, str]:
        return honest(device, request if key is None else key.request().decode())

    monkeypatch.setattr(hub, "_certified", hostile)
    with pytest.raises(TrustError, match="a certificate that is not this device's"):
        joined(tmp_path / "home", hub)
    assert not (tmp_path / "home").exists()


def test_a_token_of_old_believes_the_hub_about_the_authority(
    tmp_path: Path, hub: TinyHub, clock: FakeClock
) -> None:
    """`est1` vouches for the publisher only."""
    secret_and_root = hub.token.split(".")[1:3]
    home = joined(tmp_path / "home", hub, token=".".join(["est1", *secret_and_root]))
    assert ends(home, clock) == clock.now() + 7 * DAY


@pytest.mark.parametrize("fault", FAULTS)
def test_a_kill_anywhere_while_joining_leaves_nothing_or_everything(
    tmp_path: Path, hub: TinyHub, clock: FakeClock, fault: str
) -> None:
    """The identity is written last: without it the device joins again, with it the papers are whole."""
    with power() as counting:
        joined(tmp_path / "counted", hub)
    assert counting.written[-4:] == [DEVICE_KEY, AUTHORITIES, CERTIFICATE, "identity.json"]
    for at in range(len(counting.written)):
        folder = tmp_path / f"{at}"
        with power(at, fault), pytest.raises(Killed):
            joined(folder, hub)
        if not (folder / "identity.json").exists():
            joined(folder, hub)
        home = Home.open(folder)
        found = Papers.of(home, clock).member()
        assert found is not None
        assert found.key == hub.key, (at, fault)
        with home.locked():
            assert not list(folder.glob(".*")), "what a kill left half-written is dropped"


def test_what_a_joining_left_behind_is_not_taken_for_the_next_ones(
    tmp_path: Path, hub: TinyHub, clock: FakeClock
) -> None:
    """Cut off before the identity, then joined at a hub that gives none: no key and no certificate of the first."""
    with power(4, "after"), pytest.raises(Killed):
        joined(tmp_path / "home", hub)
    assert (tmp_path / "home" / DEVICE_KEY).exists()
    hub.authority = None
    home = joined(tmp_path / "home", hub)
    assert not any((home.path / name).exists() for name in PAPERS)


# Renewing


def test_a_certificate_is_renewed_when_a_third_is_left(
    tmp_path: Path, hub: TinyHub, clock: FakeClock
) -> None:
    """Not before, and once; the key stays."""
    home = joined(tmp_path / "home", hub)
    key = hub.key
    courier = courier_of(home, hub, clock)
    first = ends(home, clock)
    assert first is not None
    third = 7 * DAY / 3
    clock.advance(7 * DAY - third - 1)
    courier.poll(seen=0)
    assert hub.served.count("/v1/certificate") == 0
    clock.advance(1)
    for _ in range(3):
        courier.poll(seen=0)
        clock.advance(RENEWAL_PAUSE)
    assert hub.served.count("/v1/certificate") == 1
    assert ends(home, clock) == pytest.approx(first + 7 * DAY - third)
    assert hub.key == key


def test_an_answer_that_got_lost_is_asked_for_again(tmp_path: Path, hub: TinyHub, clock: FakeClock) -> None:
    """After a pause; until then, and whatever happens, the device polls, and the old certificate stays."""
    home = joined(tmp_path / "home", hub)
    first = ends(home, clock)
    clock.advance(6 * DAY)

    def loses(request: Any) -> Fault | None:
        return Fault(lose_answer=True) if request.url.endswith("/certificate") and lost else None

    lost = True
    courier = courier_of(home, hub, clock, FaultyTransport(MemoryTransport(hub), loses, clock=clock))
    for _ in range(3):
        courier.poll(seen=0)
    assert (hub.served.count("/v1/certificate"), hub.served.count("/v1/poll")) == (1, 3)
    assert ends(home, clock) == first
    clock.advance(RENEWAL_PAUSE)
    courier.poll(seen=0)
    assert hub.served.count("/v1/certificate") == 2
    lost = False
    clock.advance(RENEWAL_PAUSE)
    courier.poll(seen=0)
    assert ends(home, clock) == clock.now() + 7 * DAY


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 500, 503])
def test_a_hub_that_refuses_holds_no_poll_up(
    tmp_path: Path, hub: TinyHub, clock: FakeClock, status: int
) -> None:
    """Whatever it says about the certificate, the device polls; the device tries again later."""
    home = joined(tmp_path / "home", hub)
    clock.advance(6 * DAY)
    hub.refuse["/v1/certificate"] = status
    courier = courier_of(home, hub, clock)
    courier.poll(seen=0)
    assert hub.served[-2:] == ["/v1/certificate", "/v1/poll"]
    hub.refuse.clear()
    clock.advance(RENEWAL_PAUSE)
    courier.poll(seen=0)
    assert ends(home, clock) == clock.now() + 7 * DAY


def test_a_device_that_was_away_comes_back_with_its_credential(
    tmp_path: Path, hub: TinyHub, clock: FakeClock
) -> None:
    """A certificate that has ended is not shown, and the next one is asked for."""
    home = joined(tmp_path / "home", hub)
    clock.advance(60 * DAY)
    papers = Papers.of(home, clock)
    assert papers.is_due(clock.now())
    courier_of(home, hub, clock).poll(seen=0)
    assert ends(home, clock) == clock.now() + 7 * DAY


@pytest.mark.parametrize("of_old", [False, True], ids=["with papers", "without"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_kill_anywhere_while_renewing_leaves_an_identity(
    tmp_path: Path, clock: FakeClock, fault: str, *, of_old: bool
) -> None:
    """An old certificate, a new one, or the credential with the key that the hub knows; and the next start has a new one."""

    def begin(folder: Path) -> tuple[TinyHub, Home]:
        hub = TinyHub(clock=clock, authority=None if of_old else AUTHORITY)
        home = joined(folder, hub)
        hub.authority = AUTHORITY
        return hub, home

    hubs = [begin(tmp_path / f"{at}") for at in range(4)]
    clock.advance(6 * DAY)
    with power() as counting:
        hub, home = hubs[-1]
        courier_of(home, hub, clock).poll(seen=0)
    steps = [DEVICE_KEY] * of_old + [AUTHORITIES, CERTIFICATE]
    assert counting.written[: len(steps)] == steps
    for at in range(len(steps)):
        hub, home = hubs[at]
        before = ends(home, clock)
        with power(at, fault), pytest.raises(Killed):
            courier_of(home, hub, clock).poll(seen=0)
        after = Home.open(home.path)
        with after.locked():
            left = ends(after, clock)
        assert left is not None or before is None, (at, fault)
        courier_of(after, hub, clock).poll(seen=0)
        assert ends(after, clock) == clock.now() + 7 * DAY, (at, fault)
        found = Papers.of(after, clock).member()
        assert found is not None
        assert found.key == hub.key


@pytest.mark.parametrize("damage", ["gone", "torn", "nonsense", "another's"])
@pytest.mark.parametrize("name", PAPERS)
def test_papers_that_rotted_lock_no_device_out(
    tmp_path: Path, hub: TinyHub, clock: FakeClock, name: str, damage: str
) -> None:
    """Whichever file is lost, the device polls with its credential; all but the key come anew, and a lost key it cannot replace."""
    home = joined(tmp_path / "home", hub)
    path = home.path / name
    data = path.read_bytes()
    other = Authority.create("f" * 16)
    key = IdentityKey.generate()
    requested = Requested.from_pem(key.request())
    another = {
        DEVICE_KEY: key.to_pem(),
        AUTHORITIES: other.authorities.to_pem(),
        CERTIFICATE: AUTHORITY.device(requested, "d1", now=clock.now(), lifetime=DAY),
    }
    path.unlink()
    if damage != "gone":
        path.write_bytes(
            {"torn": data[: len(data) // 2], "nonsense": b"\0" * 99, "another's": another[name]}[damage]
        )
    papers = Papers.of(home, clock)
    assert papers.member() is None
    context = papers.context()
    assert context is None or not shows_something(papers)
    courier_of(home, hub, clock).poll(seen=0)
    assert "/v1/poll" in hub.served
    assert (ends(home, clock) is None) == (name == DEVICE_KEY)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE])
def test_a_key_that_cannot_be_read_now_is_left_alone(
    tmp_path: Path, hub: TinyHub, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It may be whole: the device polls by its credential, tries again later, and then has the same key."""
    home = joined(tmp_path / "home", hub)
    key = (home.path / DEVICE_KEY).read_bytes()
    clock.advance(6 * DAY)
    courier, real = courier_of(home, hub, clock), os.open

    def failing(path: Any, *given: Any) -> int:
        if str(path).endswith(DEVICE_KEY):
            raise OSError(number, os.strerror(number))
        return real(path, *given)

    with monkeypatch.context() as context:
        context.setattr(os, "open", failing)
        courier.poll(seen=0)
        assert hub.served.count("/v1/certificate") == 0
    assert (home.path / DEVICE_KEY).read_bytes() == key
    clock.advance(RENEWAL_PAUSE)
    courier.poll(seen=0)
    assert ends(home, clock) == clock.now() + 7 * DAY
    assert (home.path / DEVICE_KEY).read_bytes() == key


def test_a_damaged_key_is_kept_beside_the_new_one(tmp_path: Path, hub: TinyHub, clock: FakeClock) -> None:
    """The first one, which the hub knows, and whoever mends the disk may want; never another in its place."""
    home = joined(tmp_path / "home", hub)
    papers = Papers.of(home, clock)
    for damage in (b"the hub's", b"another"):
        (home.path / DEVICE_KEY).write_bytes(damage)
        request = Requested.from_pem(papers.request())
        assert IdentityKey.from_pem((home.path / DEVICE_KEY).read_bytes()).id == request.key
        assert (home.path / f"{DEVICE_KEY}.damaged").read_bytes() == b"the hub's"


def shows_something(papers: Papers) -> bool:
    """Whether the papers were put into the context."""
    papers.context()
    return papers.shows


# What is shown


def test_a_context_stays_until_the_papers_change(tmp_path: Path, hub: TinyHub, clock: FakeClock) -> None:
    """So that connections are kept; a renewal gives another, in every process that has the home."""
    home = joined(tmp_path / "home", hub)
    papers, elsewhere = Papers.of(home, clock), Papers.of(home, clock)
    first = papers.context()
    assert first is not None
    assert shows_something(papers)
    clock.advance(6 * DAY)
    assert papers.context() is first
    courier_of(home, hub, clock).poll(seen=0)
    second = papers.context()
    assert second is not first
    assert papers.context() is second
    assert elsewhere.context() is not None
    assert shows_something(elsewhere)


def test_a_certificate_that_has_ended_is_not_shown(tmp_path: Path, hub: TinyHub, clock: FakeClock) -> None:
    """A hub would end the handshake over it; without it the credential still opens."""
    home = joined(tmp_path / "home", hub)
    papers = Papers.of(home, clock)
    first = papers.context()
    clock.advance(7 * DAY + 1)
    second = papers.context()
    assert second is not first
    assert not shows_something(papers)
    assert second is not None, "the hub is still known by the fleet's authority"
    clock.jump(-11 * DAY)
    assert not shows_something(papers), "nor one that does not hold yet"
    clock.jump(2 * DAY)
    assert shows_something(papers)


def test_a_certificate_that_the_hub_does_not_hear_is_replaced(
    tmp_path: Path, hub: TinyHub, clock: FakeClock
) -> None:
    """It answers 401: the next request goes without it, first of all for the next certificate, which is shown again."""
    home = joined(tmp_path / "home", hub)
    transport = HubTransport(MemoryTransport(hub), Papers.of(home, clock))
    papers = papers_of(transport, home, clock)
    courier = courier_of(home, hub, clock, transport)
    courier.poll(seen=0)
    assert papers.shows
    hub.refuse["/v1/poll"] = 401
    with pytest.raises(AccessError):
        courier.poll(seen=0)
    hub.refuse.clear()
    assert not shows_something(papers)
    clock.advance(1)
    courier.poll(seen=0)
    assert hub.served[-2:] == ["/v1/certificate", "/v1/poll"]
    assert ends(home, clock) == clock.now() + 7 * DAY
    assert papers.shows


def test_a_hub_that_hears_nobody_without_a_certificate_is_shown_it_again(
    tmp_path: Path, hub: TinyHub, clock: FakeClock
) -> None:
    """Both ways by turns, where neither opens; a hub that is not there at all changes nothing."""
    home = joined(tmp_path / "home", hub)
    papers = Papers.of(home, clock)
    transport = HubTransport(MemoryTransport(hub), papers)
    control = ControlClient(transport, URL, credential=home.identity.credential, timeout=5)
    hub.refuse["/v1/poll"] = 401
    shown = []
    for _ in range(4):
        shown.append(shows_something(papers))
        with pytest.raises(AccessError):
            control.poll(etag=None, wait=0)
    assert shown == [True, False, True, False]
    away = HubTransport(HttpTransport(clock=clock, tls=papers.context), papers)
    control = ControlClient(away, "https://127.0.0.1:1", credential="secret", timeout=5)
    assert shows_something(papers)
    for _ in range(2):
        with pytest.raises(UnreachableError):
            control.poll(etag=None, wait=0)
        assert shows_something(papers)


def test_papers_of_anothers_home_are_not_shown(tmp_path: Path, hub: TinyHub, clock: FakeClock) -> None:
    """A certificate that was copied in without its key is no paper of this device."""
    home = joined(tmp_path / "home", hub)
    other = joined(tmp_path / "other", hub)
    (home.path / CERTIFICATE).write_bytes((other.path / CERTIFICATE).read_bytes())
    assert Papers.of(home, clock).member() is None


def test_attack_a_renewal_that_brings_anothers_certificate(
    tmp_path: Path, hub: TinyHub, clock: FakeClock
) -> None:
    """Attack: an answer for another device, another key, or of another fleet than it says; the papers stay as they were."""
    home = joined(tmp_path / "home", hub)
    papers = Papers.of(home, clock)
    before = {name: (home.path / name).read_bytes() for name in PAPERS}
    own = Requested.from_pem(papers.request())
    stranger = Authority.create("f" * 16)
    other = Requested.from_pem(IdentityKey.generate().request())
    told = AUTHORITY.authorities.to_pem().decode()
    for certificate in (
        AUTHORITY.device(own, "d2", now=clock.now(), lifetime=DAY),
        AUTHORITY.device(other, "d1", now=clock.now(), lifetime=DAY),
        stranger.device(own, "d1", now=clock.now(), lifetime=DAY),
    ):
        with pytest.raises(TrustError):
            papers.accept(Certified(certificate=certificate.decode(), authorities=told))
    with pytest.raises(MessageError):
        papers.accept(Certified(certificate="nonsense", authorities=told))
    assert {name: (home.path / name).read_bytes() for name in PAPERS} == before


def test_a_device_without_papers_has_none_to_show_to_others(tmp_path: Path, clock: FakeClock) -> None:
    """Nothing is made up: asking a member of the fleet takes a certificate."""
    identity = Identity(
        device="d1", credential="c", hub=URL, hardware_class="any-base-onnxruntime", interval=1
    )
    home = Home.create(tmp_path / "home", identity=identity, settings=SETTINGS, root=b"{}")
    papers = Papers.of(home, clock)
    assert papers.member() is None
    assert papers.is_due(clock.now())
    with pytest.raises(UnreachableError, match="no certificate to show to its neighbours"):
        papers.to_member("gateway")()


def test_status_tells_when_the_certificate_ends(tmp_path: Path, hub: TinyHub, clock: FakeClock) -> None:
    """In UTC; nothing where there is none."""
    home = joined(tmp_path / "home", hub)
    assert clock.now() == 1_800_000_000
    assert read_status(home.path)["certificate"] == "2027-01-22T08:00:00Z"
    (home.path / CERTIFICATE).unlink()
    assert read_status(home.path)["certificate"] is None


def test_a_hub_that_revoked_the_device_is_heard(tmp_path: Path, hub: TinyHub, clock: FakeClock) -> None:
    """The poll says so, whatever became of the certificate."""
    home = joined(tmp_path / "home", hub)
    clock.advance(6 * DAY)
    hub.refuse["/v1/"] = 401
    with pytest.raises(AccessError):
        courier_of(home, hub, clock).poll(seen=0)
