"""Mirrors: their file and its verb, and that whatever they send, a device ends with what its publisher signed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from device_bundles import HERE, MemoryTransport, TinyHub, release_name, tiny_bundle
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import (
    ConflictError,
    EdgestillError,
    MessageError,
    NotFoundError,
    PathError,
    RefusedError,
    SettingError,
    UnreachableError,
)
from edgestill.delta.codec import diff
from edgestill.device.courier import Courier
from edgestill.device.home import Home, Identity, Settings
from edgestill.device.life import _mirrors
from edgestill.device.main import main
from edgestill.device.mirrors import BUSY, MOST, PAUSE, TIMEOUT, TOGETHER, Mirrors, Nearby
from edgestill.device.state import Target
from edgestill.link.control import ControlClient
from edgestill.testing.clock import FakeClock
from edgestill.testing.faults import Fault, FaultyTransport
from edgestill.trust.client import TrustedClient, target_path
from edgestill.trust.kept import KeptMetadata

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.core.protocols import Request, Response

HUB = "http://127.0.0.1:1"
ONE, TWO = "http://10.0.0.2:8000", "http://10.0.0.3:8000"
OLD, NEW = tiny_bundle("1.0.0"), tiny_bundle("1.1.0", seed=2)


def listed(version: str, archive: bytes) -> Target:
    """The target that the publisher lists."""
    return Target(name=release_name(version), digest=Digest.of(archive), size=len(archive))


BEFORE, AFTER = listed("1.0.0", OLD), listed("1.1.0", NEW)
PATCH = f"patches/{BEFORE.digest.hex}/{AFTER.digest.hex}"
ARCHIVE = target_path(AFTER.name, AFTER.digest)


class Site:
    """What can be reached: a hub, and servers by their address, each with files.

    Attributes:
        asked: `HOST PATH` of every request to a mirror, in order.
    """

    def __init__(self, **files: dict[str, bytes]) -> None:
        self.clock = FakeClock()
        self.hub = TinyHub(clock=self.clock)
        self.hub.publish("1.0.0", OLD)
        self.hub.publish("1.1.0", NEW)
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self._servers = {}
        for name, held in files.items():
            server = TinyHub(clock=self.clock)
            server.patches = held
            self._servers[{"one": ONE, "two": TWO}[name]] = server

    def send(self, request: Request, *, timeout: float) -> Response:
        """Asks the mirror that the address names."""
        host, _, path = request.url.removeprefix("http://").partition("/")
        self.asked.append(f"{host.partition(':')[0]} {path.partition('/')[0]}")
        self.headers.append(dict(request.headers))
        server = self._servers.get(f"http://{host}")
        if server is None:
            raise UnreachableError(
                "no connection, or it broke", where=host, got="nobody", expected="a server"
            )
        return MemoryTransport(server).send(request, timeout=timeout)

    def courier(self, folder: Path, faults: list[Fault | None] | None = None) -> Courier:
        """Of a device that knows both mirrors."""
        control = ControlClient(MemoryTransport(self.hub), HUB, credential=self.hub.secret, timeout=5)
        trusted = TrustedClient(
            KeptMetadata(folder / "tuf"),
            root=self.hub.repository.root,
            fetch=control.artefact,
            clock=self.clock,
        )
        transport = FaultyTransport(self, faults or [], clock=self.clock)
        return Courier(
            Identity(device="d1", credential=self.hub.secret, hub=HUB, hardware_class=HERE, interval=3.0),
            control=control,
            trusted=trusted,
            transport=MemoryTransport(self.hub),
            clock=self.clock,
            nearby=Nearby(Mirrors((ONE, TWO)), transport=transport, clock=self.clock),
        )

    def served(self) -> list[str]:
        """What the hub itself was asked for."""
        return [path.split("/")[1] for path in self.hub.served]


def fetch(site: Site, folder: Path, courier: Courier | None = None, *, base: bool = True) -> list[str]:
    """Brings the new version, which must be what came; what was asked of whom, the hub's part last."""
    folder.mkdir(exist_ok=True)
    (folder / "old.esb").write_bytes(OLD)
    to = folder / "new.esb"
    to.unlink(missing_ok=True)
    site.asked.clear()
    site.hub.served.clear()
    (courier or site.courier(folder)).fetch(AFTER, to=to, base=(BEFORE, folder / "old.esb") if base else None)
    assert to.read_bytes() == NEW
    assert sorted(one.name for one in folder.iterdir() if one.suffix == ".part") == []
    return [*site.asked, *(f"hub {one}" for one in site.served())]


# Fetching


def test_a_patch_comes_from_the_first_that_has_it(tmp_path: Path) -> None:
    """And neither the next nor the hub is asked; no credential is sent along."""
    site = Site(one={}, two={PATCH: diff(OLD, NEW)})
    assert fetch(site, tmp_path) == ["10.0.0.2 patches", "10.0.0.3 patches"]
    assert not any("authorization" in one for one in site.headers)


def test_an_archive_comes_from_the_first_that_has_it(tmp_path: Path) -> None:
    """Where there is no patch, or nothing to patch."""
    site = Site(one={}, two={ARCHIVE: NEW})
    assert fetch(site, tmp_path, base=False) == ["10.0.0.2 targets", "10.0.0.3 targets"]
    nearby = [f"10.0.0.{number} {what}" for what in ("patches", "targets") for number in (2, 3)]
    assert fetch(site, tmp_path / "again") == [*nearby, "hub patches"]


def test_where_nobody_has_it_the_hub_is_asked(tmp_path: Path) -> None:
    """For the archive, and for the patch before that."""
    site = Site(one={}, two={})
    assert fetch(site, tmp_path)[-2:] == ["hub patches", "hub targets"]


def test_mirrors_that_are_gone_are_left_alone_for_a_while(tmp_path: Path) -> None:
    """Each costs one try; then the hub alone is asked until the pause is over."""
    site = Site()
    courier = site.courier(tmp_path)
    assert fetch(site, tmp_path, courier, base=False) == [
        "10.0.0.2 targets",
        "10.0.0.3 targets",
        "hub targets",
    ]
    assert fetch(site, tmp_path, courier, base=False) == ["hub targets"]
    site.clock.advance(PAUSE)
    assert len(fetch(site, tmp_path, courier, base=False)) == 3


def test_what_one_began_the_next_goes_on_with(tmp_path: Path) -> None:
    """The first breaks off in the middle; the second is asked for the rest only."""
    site = Site(one={ARCHIVE: NEW}, two={ARCHIVE: NEW})
    courier = site.courier(tmp_path, [Fault(break_after=len(NEW) // 2)])
    assert fetch(site, tmp_path, courier, base=False) == ["10.0.0.2 targets", "10.0.0.3 targets"]
    assert site.headers[-1]["range"] == f"bytes={len(NEW) // 2}-"


def test_the_next_try_goes_on_with_what_a_mirror_began(tmp_path: Path) -> None:
    """The hub is out of reach and the mirror breaks off: later it is asked for the rest."""
    site = Site(one={ARCHIVE: NEW}, two={})
    site.hub.refuse = {"/targets": 503}
    courier = site.courier(tmp_path, [Fault(break_after=1000)])
    with pytest.raises(RefusedError):
        fetch(site, tmp_path, courier, base=False)
    site.clock.advance(PAUSE)
    assert fetch(site, tmp_path, courier, base=False) == ["10.0.0.2 targets"]
    assert site.headers[-1]["range"] == "bytes=1000-"


@pytest.mark.parametrize(
    "fault",
    [
        Fault(alter_at=0, break_after=1),
        Fault(status=416),
        Fault(status=206, headers=(("content-range", "bytes 7-8/9"),)),
        Fault(headers=(("content-length", "3"),)),
        Fault(break_after=0),
    ],
)
def test_attack_a_mirror_that_would_spoil_what_the_hub_began(fault: Fault, tmp_path: Path) -> None:
    """Attack: whatever a mirror answers, the hub is asked for the rest of what it had sent, and for no more."""
    site = Site(one={ARCHIVE: NEW}, two={})
    (tmp_path / "new.esb.part").write_bytes(NEW[:1000])
    asked = fetch(site, tmp_path, site.courier(tmp_path, [fault, fault]), base=False)
    assert asked[-1] == "hub targets"
    assert site.hub.ranges == ["bytes=1000-"]


def test_attack_silent_mirrors_get_a_minute_together(tmp_path: Path) -> None:
    """Attack: eight that hold back their answers as long as they are let; then the hub is asked."""
    site = Site(one={ARCHIVE: NEW}, two={ARCHIVE: NEW})
    began = site.clock.monotonic()
    courier = site.courier(tmp_path, [Fault(delay=1e6)] * 4)
    assert fetch(site, tmp_path, courier)[-1] == "hub targets"
    assert site.clock.monotonic() - began <= 2 * TOGETHER


def test_one_that_takes_long_to_say_no_is_left_alone(tmp_path: Path) -> None:
    """Else it would hold up every update anew."""
    site = Site(one={}, two={})
    courier = site.courier(tmp_path, [Fault(delay=TIMEOUT + 1)])
    fetch(site, tmp_path, courier, base=False)
    assert fetch(site, tmp_path, courier, base=False) == ["10.0.0.3 targets", "hub targets"]


def test_one_that_is_busy_is_asked_again_soon(tmp_path: Path) -> None:
    """Ten devices that begin at once do not all go to the hub for ten minutes."""
    site = Site(one={ARCHIVE: NEW}, two={})
    courier = site.courier(tmp_path, [Fault(status=503)])
    assert fetch(site, tmp_path, courier, base=False)[-1] == "hub targets"
    site.clock.advance(BUSY)
    assert fetch(site, tmp_path, courier, base=False) == ["10.0.0.2 targets"]


def test_a_disk_that_is_full_is_no_mirrors_fault(tmp_path: Path) -> None:
    """It is told at once: the next place would meet the same disk."""
    site = Site(one={ARCHIVE: NEW, PATCH: diff(OLD, NEW)}, two={ARCHIVE: NEW})
    courier = site.courier(tmp_path)
    (tmp_path / "old.esb").write_bytes(OLD)
    for base in (None, (BEFORE, tmp_path / "old.esb"), (BEFORE, tmp_path / "gone.esb")):
        with pytest.raises(PathError):
            courier.fetch(AFTER, to=tmp_path / "nowhere" / "new.esb", base=base)
    assert fetch(site, tmp_path, courier) == ["10.0.0.2 patches"], "nobody was left alone for it"


@pytest.mark.parametrize(
    "fault",
    [
        Fault(alter_at=500),
        Fault(endless=True),
        Fault(end_after=100),
        Fault(status=401),
        Fault(status=500),
        Fault(status=302, headers=(("location", HUB),)),
        Fault(headers=(("content-encoding", "gzip"),)),
        Fault(chunk=64, chunk_delay=1.0),
        Fault(delay=60),
    ],
)
@pytest.mark.parametrize("what", ["patch", "archive"])
def test_attack_a_mirror_that_sends_what_it_likes(fault: Fault, what: str, tmp_path: Path) -> None:
    """Attack: altered, endless, cut, refused, elsewhere, packed, slow or silent: the next place is asked, and the bundle is right."""
    held = {PATCH: diff(OLD, NEW)} if what == "patch" else {ARCHIVE: NEW}
    site = Site(one=held, two={})
    courier = site.courier(tmp_path, [fault, fault])  # twice: one that has begun may be asked anew
    began = site.clock.monotonic()
    asked = fetch(site, tmp_path, courier, base=what == "patch")
    assert asked[-1].startswith("hub"), "it came from the hub in the end"
    assert site.clock.monotonic() - began < 60, "nobody holds a device up for long"


def test_attack_a_patch_of_a_mirror_that_leads_elsewhere(tmp_path: Path) -> None:
    """Attack: a sound patch to another file, as a hint from nearby, is refused; the hub's is taken."""
    evil = tiny_bundle("1.1.0", seed=66)
    site = Site(one={PATCH: diff(OLD, evil)}, two={})
    site.hub.patches[PATCH] = diff(OLD, NEW)
    assert fetch(site, tmp_path)[-1] == "hub patches"


def test_attack_a_mirror_with_another_bundle_under_the_right_name(tmp_path: Path) -> None:
    """Attack: bytes of the right length with another digest are thrown away, and the next place begins anew."""
    site = Site(one={ARCHIVE: bytes(len(NEW))}, two={ARCHIVE: NEW})
    asked = fetch(site, tmp_path, base=False)
    assert asked[-1] == "10.0.0.3 targets"
    assert "range" not in site.headers[-1]


# The file and the verb


@given(urls=st.lists(st.integers(1, 99).map("http://10.0.0.{}:8000".format), max_size=MOST, unique=True))
def test_a_list_comes_back(urls: list[str]) -> None:
    """In its order."""
    found = Mirrors()
    for url in urls:
        found = found.with_one(url + "/")
    assert found.each == tuple(urls)
    for url in urls:
        found = found.without(url)
    assert found == Mirrors()


@given(data=st.binary(max_size=200))
def test_attack_any_bytes_are_a_list_or_an_error(data: bytes) -> None:
    """Attack: whatever the file holds, it is a list or one of our errors."""
    try:
        Mirrors.from_bytes(data)
    except EdgestillError as error:
        assert error.where  # noqa: PT017  # there is nothing else that may come


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"{}", MessageError),
        (b'{"mirrors": [1]}', MessageError),
        (b'{"mirrors": ["ftp://x"]}', SettingError),
        (b'{"mirrors": ["http://u:p@x"]}', SettingError),
        (b'{"mirrors": ["http://x", "http://x"]}', ConflictError),
        (b'{"mirrors": [], "more": 1}', MessageError),
        (b'{"mirrors": ["http://a\\nb"]}', MessageError),
        (b'{"mirrors": ["http://a?b"]}', SettingError),
    ],
)
def test_what_is_no_list_is_refused(data: bytes, error: type[Exception]) -> None:
    """With what stands there and what should."""
    with pytest.raises(error):
        Mirrors.from_bytes(data)


def test_there_may_be_a_few() -> None:
    """And no more: each may cost its time."""
    found = Mirrors()
    for number in range(MOST):
        found = found.with_one(f"http://10.0.0.{number}")
    with pytest.raises(ConflictError, match="too many"):
        found.with_one("http://10.0.1.1")
    with pytest.raises(NotFoundError, match="there is no such mirror"):
        found.without("http://10.0.1.1")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Of a device."""
    identity = Identity(device="d1", credential="c", hub=HUB, hardware_class=HERE, interval=1.0)
    return Home.create(
        tmp_path / "home", identity=identity, settings=Settings(leaves="nothing", labels={}), root=b"{}"
    )


def test_the_verb_adds_and_removes(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """And shows who is asked, the hub last."""
    assert main(["mirrors", "--home", str(home.path), "--add", ONE]) == 0
    assert main(["mirrors", "--home", str(home.path), "--add", TWO]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [ONE, TWO, HUB]
    assert main(["mirrors", "--home", str(home.path), "--remove", ONE]) == 0
    assert capsys.readouterr().out == f"{TWO}\n{HUB}\n"
    assert Mirrors.of(home.mirrors) == Mirrors((TWO,))
    assert main(["mirrors", "--home", str(home.path), "--add", "nonsense"]) == 1
    assert "not an address" in capsys.readouterr().err
    for wrong in (
        "HTTP://10.0.0.9",
        "http://a b",
        "http://a\n",
        "http://x?q",
        "http://x#f",
        f"http://{'x' * 500}",
    ):
        assert main(["mirrors", "--home", str(home.path), "--add", wrong]) == 1
    assert Mirrors.of(home.mirrors) == Mirrors((TWO,)), "what the verb writes, it can read"


def test_a_damaged_list_stops_no_device(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    """It runs as without mirrors, and says why."""
    assert _mirrors(home) == Mirrors()
    home.mirrors.write_bytes(b"{broken")
    assert _mirrors(home) == Mirrors()
    assert "no mirror is asked" in caplog.text
