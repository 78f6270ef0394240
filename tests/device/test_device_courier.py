"""The courier against a hub in memory that serves real metadata, signed with real keys."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from device_bundles import HERE, MemoryTransport, TinyHub, release_name, tiny_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import (
    AccessError,
    EdgestillError,
    ExpiredError,
    NotFoundError,
    RefusedError,
    ReplayError,
    TrustError,
)
from edgestill.core.release import MAX_COUNTER
from edgestill.core.wire import Report
from edgestill.delta.codec import diff
from edgestill.device.courier import Courier
from edgestill.device.events import Assigned
from edgestill.device.home import Identity
from edgestill.device.outbox import Outbox
from edgestill.device.state import Target
from edgestill.link.control import ControlClient
from edgestill.testing.clock import FakeClock
from edgestill.testing.faults import Fault, FaultyTransport
from edgestill.trust.client import TrustedClient
from edgestill.trust.kept import KeptMetadata
from edgestill.trust.keys import SigningKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgestill.core.protocols import Transport

URL = "http://127.0.0.1:1"
OLD, NEW = tiny_bundle("1.0.0"), tiny_bundle("1.1.0")


def listed(version: str, archive: bytes) -> Target:
    """The target that the publisher lists."""
    return Target(name=release_name(version), digest=Digest.of(archive), size=len(archive))


@pytest.fixture
def clock() -> FakeClock:
    """The time of hub and device."""
    return FakeClock()


@pytest.fixture
def hub(clock: FakeClock) -> TinyHub:
    """A hub that lists two versions and assigns the first."""
    one = TinyHub(clock=clock, assigned=("1.0.0", 1))
    one.publish("1.0.0", OLD)
    one.publish("1.1.0", NEW)
    return one


@pytest.fixture
def courier(hub: TinyHub, clock: FakeClock, tmp_path: Path) -> Courier:
    """A device's courier."""
    return courier_of(hub, clock, MemoryTransport(hub), tmp_path)


def courier_of(hub: TinyHub, clock: FakeClock, transport: Transport, folder: Path) -> Courier:
    """A device's courier over this transport."""
    control = ControlClient(transport, URL, credential=hub.secret, timeout=5)
    trusted = TrustedClient(
        KeptMetadata(folder / "tuf"), root=hub.repository.root, fetch=control.artefact, clock=clock
    )
    identity = Identity(device="d1", credential=hub.secret, hub=URL, hardware_class=HERE, interval=3.0)
    return Courier(identity, control=control, trusted=trusted, transport=transport, clock=clock)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    """An empty one."""
    box = Outbox.open(tmp_path / "outbox.db")
    yield box
    box.close()


def test_an_assignment_is_verified_and_looked_up(courier: Courier) -> None:
    """It comes with the digest and the size that the publisher signed."""
    assert courier.poll(seen=0) == (Assigned(1, listed("1.0.0", OLD)), 0.05)


def test_what_has_not_changed_is_not_named_again(hub: TinyHub, courier: Courier) -> None:
    """Until it is forgotten: a device in a trial wants to hear it again."""
    courier.poll(seen=0)
    assert courier.poll(seen=1) == (None, 0.05)
    courier.forget()
    assert courier.poll(seen=1)[0] == Assigned(1, listed("1.0.0", OLD))
    hub.assigned = ("1.1.0", 2)
    assert courier.poll(seen=1)[0] == Assigned(2, listed("1.1.0", NEW))


def test_attack_a_stolen_hub_that_counted_to_the_end_is_outlived(hub: TinyHub, courier: Courier) -> None:
    """Attack: after the largest counter a device refuses everything, until its publisher has replaced the hub's key."""
    hub.assigned = ("1.0.0", MAX_COUNTER)
    poisoned, _ = courier.poll(seen=0)
    assert poisoned == Assigned(MAX_COUNTER, listed("1.0.0", OLD))
    hub.assigned = ("1.1.0", 2)
    with pytest.raises(ReplayError):
        courier.poll(seen=MAX_COUNTER)
    hub.repository.rotate(online=True)
    hub.repository.freshen()
    healed, _ = courier.poll(seen=MAX_COUNTER)
    assert healed == Assigned(MAX_COUNTER + 1 + 2, listed("1.1.0", NEW))


def test_nothing_assigned_is_no_error(hub: TinyHub, courier: Courier) -> None:
    """A new device waits."""
    hub.assigned = None
    assert courier.poll(seen=0) == (None, 0.05)


def test_attack_a_replayed_assignment_is_refused(hub: TinyHub, courier: Courier) -> None:
    """However good its signature is; and it is looked at again at the next poll."""
    with pytest.raises(ReplayError, match="older than one already seen"):
        courier.poll(seen=5)
    hub.assigned = ("1.1.0", 5)
    assert courier.poll(seen=5)[0] == Assigned(5, listed("1.1.0", NEW))


def test_attack_a_stolen_hub_assigns_what_the_publisher_does_not_list(hub: TinyHub, courier: Courier) -> None:
    """The online key alone installs nothing."""
    hub.assigned = ("9.9.9", 2)
    with pytest.raises(TrustError, match="does not list this target"):
        courier.poll(seen=0)


def test_attack_an_assignment_signed_by_another_key_is_refused(hub: TinyHub, courier: Courier) -> None:
    """Only the key that the root names may assign."""
    courier.poll(seen=0)
    courier.forget()
    hub.repository.online = SigningKey.generate()
    with pytest.raises(TrustError, match="not signed as it must be"):
        courier.poll(seen=0)


def test_attack_metadata_held_back_until_it_expired_is_refused(
    hub: TinyHub, courier: Courier, clock: FakeClock
) -> None:
    """A frozen repository lists nothing."""
    clock.advance(10 * 86_400)
    with pytest.raises(ExpiredError):
        courier.poll(seen=0)
    hub.repository.freshen()
    assert courier.poll(seen=0)[0] is not None


def test_an_unknown_credential_is_an_access_error(hub: TinyHub, courier: Courier) -> None:
    """The hub has forgotten this device."""
    hub.secret = "other"
    with pytest.raises(AccessError):
        courier.poll(seen=0)


def test_a_bundle_is_downloaded_whole(courier: Courier, tmp_path: Path) -> None:
    """Without a base there is no patch to ask for."""
    to = tmp_path / "x.esb"
    courier.fetch(listed("1.0.0", OLD), to=to, base=None)
    assert to.read_bytes() == OLD


def patched(hub: TinyHub, courier: Courier, folder: Path, patch: bytes | None) -> list[str]:
    """Fetches NEW on a device that has OLD; the paths it asked for."""
    base = folder / "old.esb"
    base.write_bytes(OLD)
    old, new = listed("1.0.0", OLD), listed("1.1.0", NEW)
    if patch is not None:
        hub.patches[f"patches/{old.digest.hex}/{new.digest.hex}"] = patch
    hub.served.clear()
    to = folder / "new.esb"
    courier.fetch(new, to=to, base=(old, base))
    assert to.read_bytes() == NEW
    assert not list(folder.glob(".*"))
    return [path.split("/")[1] for path in hub.served]


def test_a_patch_saves_the_download(hub: TinyHub, courier: Courier, tmp_path: Path) -> None:
    """It is tried first, and its result has the listed digest."""
    assert patched(hub, courier, tmp_path, diff(OLD, NEW)) == ["patches"]


@pytest.mark.parametrize(
    "patch",
    [None, b"", b"nonsense" * 10, diff(NEW, OLD), diff(OLD, OLD), diff(OLD, NEW)[:-4], b"x" * 100_000],
)
def test_attack_a_useless_or_hostile_patch_leads_to_the_whole_file(
    hub: TinyHub, courier: Courier, tmp_path: Path, patch: bytes | None
) -> None:
    """Missing, torn, for other files, or endless: the digest decides, and the file is fetched."""
    assert patched(hub, courier, tmp_path, patch) == ["patches", "targets"]


def test_attack_a_file_with_other_bytes_is_refused(hub: TinyHub, courier: Courier, tmp_path: Path) -> None:
    """Nothing lies under the name then."""
    new = listed("1.1.0", NEW)
    (path,) = [path for path in hub.repository.files if new.digest.hex in path]
    hub.repository.files[path] = NEW[:-1] + b"x"
    to = tmp_path / "new.esb"
    with pytest.raises(EdgestillError):
        courier.fetch(new, to=to, base=None)
    assert not to.exists()


def test_a_file_that_is_missing_is_not_found(courier: Courier, tmp_path: Path) -> None:
    """The hub may be behind its own list for a moment."""
    lost = replace(listed("1.1.0", NEW), digest=Digest.of(b"lost"))
    with pytest.raises((NotFoundError, RefusedError)):
        courier.fetch(lost, to=tmp_path / "x.esb", base=None)


def report(id_: str) -> Report:
    """A report of a step."""
    return Report(id=id_, at=1.0, bundle=str(Digest.of(OLD)), release="tiny/1.0.0", state="staged")


def deliver_all(courier: Courier, outbox: Outbox) -> None:
    """Delivers until nothing waits."""
    for _ in range(10):
        if courier.deliver(outbox):
            return
    raise AssertionError


def test_reports_and_statistics_are_delivered_once(hub: TinyHub, courier: Courier, outbox: Outbox) -> None:
    """And forgotten by the device then."""
    outbox.add([report("a"), report("b")])
    sent = outbox.put_statistics("w", b"sums", at=1.0)
    deliver_all(courier, outbox)
    assert list(hub.reports) == ["a", "b"]
    assert hub.statistics == {sent.id: b"sums"}
    assert (outbox.count(), outbox.statistics()) == (0, None)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_hub_loses_nothing(hub: TinyHub, courier: Courier, outbox: Outbox, status: int) -> None:
    """What it could not take is kept and sent again."""
    outbox.add([report("a")])
    sent = outbox.put_statistics("w", b"sums", at=1.0)
    hub.refuse = {"/v1/reports": status, "/v1/evidence": status}
    with pytest.raises(RefusedError):
        courier.deliver(outbox)
    assert outbox.count() == 1
    hub.refuse.pop("/v1/reports")
    courier.deliver(outbox)
    with pytest.raises(RefusedError):
        courier.deliver(outbox)
    assert outbox.statistics() is not None
    hub.refuse.clear()
    deliver_all(courier, outbox)
    assert (list(hub.reports), list(hub.statistics)) == (["a"], [sent.id])


@pytest.mark.parametrize("status", [302, 307, 402, 403, 404, 405, 407, 408, 409, 421, 451, 502, 504, 511])
def test_whatever_stands_between_device_and_hub_loses_nothing(
    hub: TinyHub, courier: Courier, outbox: Outbox, status: int
) -> None:
    """A captive portal, a proxy whose hub is away, a wrong path: only the hub itself may refuse a report for ever."""
    outbox.add([report("a"), report("b")])
    sent = outbox.put_statistics("w", b"sums", at=1.0)
    hub.refuse = {"/v1/": status}
    for _ in range(3):
        with pytest.raises(EdgestillError):
            courier.deliver(outbox)
    assert outbox.count() == 2
    hub.refuse = {"/v1/evidence": status}
    assert not courier.deliver(outbox)
    with pytest.raises(EdgestillError):
        courier.deliver(outbox)
    assert outbox.statistics() is not None
    hub.refuse.clear()
    deliver_all(courier, outbox)
    assert (list(hub.reports), list(hub.statistics)) == (["a", "b"], [sent.id])


faults = st.lists(
    st.one_of(
        st.none(),
        st.builds(Fault, drop=st.booleans(), lose_answer=st.booleans()),
        st.builds(Fault, status=st.sampled_from([302, 404, 429, 500, 503])),
        st.builds(Fault, break_after=st.integers(0, 30)),
        st.builds(Fault, end_after=st.integers(0, 30)),
        st.builds(Fault, alter_at=st.integers(0, 30)),
        st.builds(Fault, delay=st.sampled_from([0.0, 100.0])),
    ),
    max_size=12,
)


@settings(max_examples=40)
@given(faults=faults)
def test_every_report_arrives_once_through_any_faults(
    tmp_path_factory: pytest.TempPathFactory, faults: list[Fault | None]
) -> None:
    """Dropped, lost, torn, altered, late, refused on the way: in the end the hub has all, each once, in their order."""
    clock = FakeClock()
    hub = TinyHub(clock=clock)
    transport = FaultyTransport(MemoryTransport(hub), faults, clock=clock)
    folder = tmp_path_factory.mktemp("device")
    made = courier_of(hub, clock, transport, folder)
    outbox = Outbox.open(folder / "outbox.db")
    names = [f"r{number}" for number in range(5)]
    outbox.add([report(name) for name in names[:3]])
    sent = outbox.put_statistics("w", b"sums", at=1.0)
    for turn in range(len(faults) + 4):
        with suppress(EdgestillError):
            made.deliver(outbox)
        if turn == 2:
            outbox.add([report(name) for name in names[3:]])
    deliver_all(made, outbox)
    assert list(hub.reports) == names
    assert hub.statistics == {sent.id: b"sums"}
    assert (outbox.count(), outbox.statistics()) == (0, None)
    outbox.close()


def test_what_the_hub_will_never_take_blocks_nothing(hub: TinyHub, courier: Courier, outbox: Outbox) -> None:
    """A batch it refuses is sent one by one, and dropped; so are statistics."""
    outbox.add([report("a"), report("b")])
    outbox.put_statistics("w", b"sums", at=1.0)
    hub.refuse = {"/v1/reports": 400, "/v1/evidence": 422}
    deliver_all(courier, outbox)
    assert (outbox.count(), outbox.statistics(), hub.reports) == (0, None, {})
    assert hub.served.count("/v1/reports") == 3


@pytest.mark.parametrize(
    "fault", [Fault(drop=True), Fault(delay=1e6), Fault(break_after=3), Fault(end_after=3)]
)
def test_attack_a_patch_that_hangs_does_not_hold_up_the_bundle(tmp_path: Path, fault: Fault) -> None:
    """The way to patches is broken and that to archives is not: the whole file is fetched, as without a patch."""
    clock = FakeClock()
    hub = TinyHub(clock=clock)
    hub.publish("1.0.0", OLD)
    hub.publish("1.1.0", NEW)
    old, new = listed("1.0.0", OLD), listed("1.1.0", NEW)
    hub.patches[f"patches/{old.digest.hex}/{new.digest.hex}"] = diff(OLD, NEW)
    made = courier_of(hub, clock, FaultyTransport(MemoryTransport(hub), [fault], clock=clock), tmp_path)
    base, to = tmp_path / "old.esb", tmp_path / "new.esb"
    base.write_bytes(OLD)
    made.fetch(new, to=to, base=(old, base))
    assert to.read_bytes() == NEW


def test_a_patch_on_a_base_that_rotted_leads_to_the_whole_file(
    hub: TinyHub, courier: Courier, tmp_path: Path
) -> None:
    """The digest of the result decides, and nothing half-made is left."""
    old, new = listed("1.0.0", OLD), listed("1.1.0", NEW)
    hub.patches[f"patches/{old.digest.hex}/{new.digest.hex}"] = diff(OLD, NEW)
    base, to = tmp_path / "old.esb", tmp_path / "new.esb"
    for rotten in (OLD[:-1] + b"?", OLD[:100], b""):
        base.write_bytes(rotten)
        courier.fetch(new, to=to, base=(old, base))
        assert to.read_bytes() == NEW
        assert not list(tmp_path.glob(".*"))
        to.unlink()


def test_statistics_keep_their_place_when_they_are_sent_again(
    hub: TinyHub, courier: Courier, outbox: Outbox
) -> None:
    """The same id and the same number, however often: the hub can tell a repetition from a newer sum."""
    sent = outbox.put_statistics("w", b"sums", at=1.0)
    hub.refuse = {"/v1/evidence": 503}
    for _ in range(3):
        with pytest.raises(RefusedError):
            courier.deliver(outbox)
    hub.refuse = {}
    deliver_all(courier, outbox)
    assert hub.sequences == {sent.id: str(sent.sequence)}
