"""Unattended updates on a device: only where its owner has opted in, and then no further than they may go."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from device_bundles import HERE, MemoryTransport, TinyHub, model, release_name, tiny_bundle
from device_fleet import Fleet, until
from device_worlds import CLASS, target
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError, UnattendedError
from edgestill.core.release import Gates
from edgestill.device import unattended
from edgestill.device.courier import Courier
from edgestill.device.events import Assigned, Booted, Clear, Download, Serve, Tell
from edgestill.device.home import Home, Identity, Settings
from edgestill.device.machine import Rules, step
from edgestill.device.main import main
from edgestill.device.state import State, Target, contradiction
from edgestill.link.control import ControlClient
from edgestill.testing.clock import FakeClock
from edgestill.trust.client import TrustedClient
from edgestill.trust.delegate import Delegate
from edgestill.trust.kept import KeptMetadata
from edgestill.trust.keys import SigningKey
from edgestill.trust.metadata import TargetInfo
from edgestill.trust.repository import sign_targets
from edgestill.trust.roles import Delegation

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.device.events import Effects, Event

AUTO = f"auto/{CLASS}"
OLD, NEW, NEWER = target(1), target(2), target(3)
SERVING = State(active="b", a=OLD, b=NEW, seen=5, counter=5)
OPTED_IN, OPTED_OUT = Rules(accept_auto=True), Rules()


def run(state: State, event: Event, rules: Rules) -> tuple[State, Effects]:
    """What follows; the state never contradicts itself."""
    state, effects = step(state, event, rules)
    assert contradiction(state) == ""
    return state, effects


def is_refused(wanted: Target, role: str = AUTO, *, state: State = SERVING, accepted: bool = True) -> str:
    """Why, or nothing."""
    try:
        unattended.check(wanted, role, state, accepted=accepted)
    except UnattendedError as error:
        return str(error)
    return ""


# The rule


def test_a_later_version_is_taken_by_who_has_opted_in() -> None:
    """And by nobody else: assigned or not."""
    assert is_refused(NEWER) == ""
    assert "an owner who has opted in" in is_refused(NEWER, accepted=False)


@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.parametrize("role", ["targets", CLASS, "any"])
def test_what_somebody_stands_for_is_no_matter_of_opting_in(role: str, *, accepted: bool) -> None:
    """The publisher, or a role by class: also an older version, for rolling back is theirs to allow."""
    for wanted in (OLD, NEWER, replace(NEWER, name=f"lamp/1.0.0/{CLASS}.esb")):
        assert is_refused(wanted, role, accepted=accepted) == ""


@pytest.mark.parametrize(
    ("changes", "role", "why"),
    [
        ({"name": f"watch/1.0.2/{CLASS}.esb"}, AUTO, "a later version than watch/1.0.2"),
        ({"name": f"watch/1.0.1/{CLASS}.esb"}, AUTO, "a later version than watch/1.0.2"),
        ({"name": f"watch/0.9.9/{CLASS}.esb"}, AUTO, "a later version than watch/1.0.2"),
        ({"name": f"lamp/9.0.0/{CLASS}.esb"}, AUTO, "an update of watch"),
        ({"name": "watch/1.0.3/other.esb"}, AUTO, "a bundle that auto/other lists"),
        ({"name": "watch/1.0.3/any.esb"}, AUTO, "a bundle that auto/any lists"),
        ({"name": "watch/1.0.3/any.esb"}, "auto/any", "a bundle that auto/any lists"),
        ({}, "auto/other", f"a bundle that {AUTO} lists"),
        ({}, "auto/", f"a bundle that {AUTO} lists"),
    ],
)
def test_attack_a_stolen_lab_key_reaches_no_further_than_an_update(changes: Any, role: str, why: str) -> None:
    """No version below what is installed, nor another content under its version; no other product, no other hardware."""
    assert f"expected {why}" in is_refused(replace(NEWER, digest=Digest.of(b"evil"), **changes), role)


def test_versions_are_numbers() -> None:
    """1.0.10 comes after 1.0.9."""
    state = State(active="a", a=replace(OLD, name=f"watch/1.0.9/{CLASS}.esb"), seen=1, counter=1)
    assert is_refused(replace(NEWER, name=f"watch/1.0.10/{CLASS}.esb"), state=state) == ""
    assert is_refused(replace(NEWER, name=f"watch/1.0.08/{CLASS}.esb"), state=state)


def test_what_the_other_slot_holds_may_come_back() -> None:
    """A fleet is brought back from an update that was no good; the very archive, and nothing else of its version."""
    assert is_refused(OLD) == ""
    assert is_refused(replace(OLD, digest=Digest.of(b"evil")))
    assert is_refused(OLD, accepted=False)


def test_a_first_bundle_is_taken_by_who_has_opted_in() -> None:
    """A fleet that lives on unattended updates welcomes new devices."""
    assert is_refused(NEWER, state=State()) == ""
    assert is_refused(NEWER, state=State(), accepted=False)


# The machine


def test_a_refusal_is_told_and_changes_nothing_that_serves() -> None:
    """As a failure of that assignment with its code, which a rollout shows; it is not offered again and again."""
    state, effects = run(SERVING, Assigned(6, NEWER, AUTO), OPTED_OUT)
    assert (state.active, state.a, state.b, state.phase, state.wanted) == ("b", OLD, NEW, "idle", None)
    (told,) = effects
    assert isinstance(told, Tell)
    assert (told.counter, told.state, told.target) == (6, "fell-back", NEWER)
    assert told.reason.startswith("[unattended-refused] this unattended update is not for this device")
    assert run(state, Assigned(6, NEWER, AUTO), OPTED_OUT) == (state, ())
    assert State.from_bytes(state.to_bytes()) == state


def test_after_a_restart_the_owner_may_have_opted_in() -> None:
    """Then the same assignment is followed; where not, it is refused again with the same report."""
    refused, first = run(SERVING, Assigned(6, NEWER, AUTO), OPTED_OUT)
    booted, effects = run(State.from_bytes(refused.to_bytes()), Booted(), OPTED_IN)
    assert effects == (Serve("b", 0),)
    assert booted.failure is None
    assert run(booted, Assigned(6, NEWER, AUTO), OPTED_IN)[1] == (Clear("a"), Download("a", NEWER, NEW))
    assert run(booted, Assigned(6, NEWER, AUTO), OPTED_OUT)[1] == first


def test_another_failure_is_remembered_over_a_restart() -> None:
    """Only what the device's own settings refused is looked at anew."""
    from edgestill.device.events import Failed

    begun, _ = run(SERVING, Assigned(6, NEWER, AUTO), OPTED_IN)
    failed, _ = run(begun, Failed(NEWER.digest, "rotten"), OPTED_IN)
    booted, _ = run(State.from_bytes(failed.to_bytes()), Booted(), OPTED_IN)
    assert booted.failure == failed.failure
    assert run(booted, Assigned(6, NEWER, AUTO), OPTED_IN)[1] == ()


def test_a_refusal_ends_what_was_being_installed_before_it() -> None:
    """The hub wants something else by now; half a file is not left in the slot."""
    begun, _ = run(SERVING, Assigned(6, NEWER), OPTED_OUT)
    assert begun.phase == "downloading"
    state, effects = run(begun, Assigned(7, target(4), AUTO), OPTED_OUT)
    assert (state.phase, state.wanted, effects[0]) == ("idle", None, Clear("a"))


def test_what_serves_already_goes_on_after_opting_out() -> None:
    """It was taken when it was welcome; the next one is not."""
    state, effects = run(SERVING, Assigned(6, NEW, AUTO), OPTED_OUT)
    assert (state.failure, state.serving) == (None, NEW)
    assert [one.state for one in effects if isinstance(one, Tell)] == ["confirmed"]


def installing(phase: str, wanted: Target = NEWER) -> State:
    """An unattended update that has come so far, as it is read after a kill."""
    from edgestill.device.events import Downloaded, Staged, Verified

    state, _ = run(SERVING, Assigned(6, wanted, AUTO), OPTED_IN)
    for event in (Downloaded(wanted.digest), Verified(wanted.digest), Staged(wanted.digest)):
        if state.phase != phase:
            state, _ = run(state, event, OPTED_IN)
    assert state.phase == phase
    return State.from_bytes(state.to_bytes())


@pytest.mark.parametrize("phase", ["downloading", "verifying", "staging", "probing"])
def test_opting_out_ends_an_unattended_update_that_has_begun(phase: str) -> None:
    """However far it has come, a restart clears its slot and says why; whoever stays opted in gets it."""
    state, effects = run(installing(phase), Booted(), OPTED_OUT)
    assert (state.phase, state.wanted, state.a, state.serving) == ("idle", None, None, NEW)
    serve, clear, told = effects
    assert (serve, clear) == (Serve("b", 0), Clear("a"))
    assert isinstance(told, Tell)
    assert (told.counter, told.state, told.target) == (6, "fell-back", NEWER)
    assert told.reason.startswith("[unattended-refused]")
    assert run(state, Assigned(6, NEWER, AUTO), OPTED_OUT) == (state, ())
    state, effects = run(installing(phase), Booted(), OPTED_IN)
    assert (state.phase, state.wanted, len(effects)) == (phase, NEWER, 2)


def test_opting_out_does_not_end_what_somebody_stands_for() -> None:
    """Also where an unattended role listed it first, and where the state was written before roles were remembered."""
    state = installing("verifying")
    state, effects = run(state, Assigned(7, NEWER, CLASS), OPTED_IN)
    assert (state.role, effects) == (CLASS, ())
    assert run(state, Booted(), OPTED_OUT)[0].wanted == NEWER
    before = json.loads(installing("verifying").to_bytes())
    del before["role"]
    old = State.from_bytes(json.dumps(before).encode())
    assert old.role == "targets"
    assert run(old, Booted(), OPTED_OUT)[0].wanted == NEWER


def test_bringing_back_survives_a_restart_on_its_way() -> None:
    """The other slot does not count as whole while it is looked at; neither a start nor the same assignment again refuses it for that."""
    state, _ = run(installing("verifying", OLD), Booted(), OPTED_IN)
    assert state.wanted == OLD
    assert run(state, Assigned(6, OLD, AUTO), OPTED_IN) == (state, ())


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.sampled_from(["targets", CLASS, AUTO, "auto/other", "auto/any"])),
        max_size=8,
    ),
    st.booleans(),
)
def test_whatever_is_assigned_nothing_unattended_begins_that_may_not(
    assigned: list[tuple[int, str]],
    accepted: bool,
) -> None:
    """After any sequence: a download of what only `auto/CLASS` lists is of a later version, or of the other slot, on an opted-in device."""
    state, rules = SERVING, Rules(accept_auto=accepted)
    for number, (version, role) in enumerate(assigned, start=6):
        wanted, before = target(version), state
        state, effects = run(state, Assigned(number, wanted, role), rules)
        begun = any(isinstance(one, Download) for one in effects)
        if begun and role.startswith("auto/"):
            assert accepted
            assert role == AUTO
            assert wanted.parts[1] > NEW.parts[1] or wanted in {before.a, before.b}


# The courier, with real metadata

LAB = SigningKey.generate()


def world(folder: Path) -> tuple[TinyHub, Courier]:
    """A hub whose publisher delegates unattended updates of `tiny` to the lab, and a device's courier."""
    clock = FakeClock()
    hub = TinyHub(clock=clock)
    hub.publish("1.0.0", tiny_bundle("1.0.0"))
    role = Delegation(role=f"auto/{HERE}", keys=(LAB.public,), names=("tiny",))
    hub.repository.delegate(role)
    control = ControlClient(MemoryTransport(hub), "http://127.0.0.1:1", credential=hub.secret, timeout=5)
    trusted = TrustedClient(
        KeptMetadata(folder / "tuf"), root=hub.repository.root, fetch=control.artefact, clock=clock
    )
    identity = Identity(
        device="d1", credential=hub.secret, hub="http://127.0.0.1:1", hardware_class=HERE, interval=3.0
    )
    transport = MemoryTransport(hub)
    return hub, Courier(identity, control=control, trusted=trusted, transport=transport, clock=clock)


def test_an_assignment_says_who_lists_its_target(tmp_path: Path) -> None:
    """The courier looks it up; what to make of it is the machine's."""
    hub, courier = world(tmp_path)
    hub.repository.publish_role(f"auto/{HERE}", {release_name("1.1.0"): tiny_bundle("1.1.0")}, LAB)
    for number, (version, role) in enumerate((("1.0.0", "targets"), ("1.1.0", f"auto/{HERE}")), start=1):
        hub.assigned = (version, number)
        found, _ = courier.poll(seen=0)
        assert found is not None
        assert (found.target.name, found.role) == (release_name(version), role)
        to = tmp_path / version
        courier.fetch(found.target, to=to, base=None)
        assert Digest.of(to.read_bytes()) == found.target.digest


@pytest.mark.parametrize(
    ("version", "foreign"), [("1.0.0", True), ("0.9.0", True), ("1.1.0", True), ("1.1.0", False)]
)
def test_attack_a_stolen_lab_key_with_a_stolen_hub(tmp_path: Path, version: str, *, foreign: bool) -> None:
    """They list and assign what they like: only a later version reaches a device, and only one that has opted in.

    Under the publisher's own name for 1.0.0 the device still finds the publisher's content. A thief without the lab's key lists nothing at all.
    """
    hub, courier = world(tmp_path)
    key = LAB if foreign else SigningKey.generate()
    evil = {release_name(one): tiny_bundle(one, seed=9) for one in ("0.9.0", "1.0.0", "1.1.0")}
    hub.repository.publish_role(f"auto/{HERE}", evil, key)
    hub.assigned = (version, 2)
    good = Target(
        name=release_name("1.0.0"),
        digest=Digest.of(tiny_bundle("1.0.0")),
        size=len(tiny_bundle("1.0.0")),
    )
    state = State(active="a", a=good, seen=1, counter=1)
    begun = {}
    for rules in (OPTED_OUT, OPTED_IN):
        if not foreign:
            with pytest.raises(EdgestillError):
                courier.poll(seen=1)
            continue
        found, _ = courier.poll(seen=1)
        courier.forget()
        assert found is not None
        after, _ = run(state, found, rules)
        assert after.serving == good
        begun[rules.accept_auto] = after.phase
    expected = {False: "idle", True: "downloading" if version == "1.1.0" else "idle"}
    assert begun == (expected if foreign else {})


# What the owner chose


def test_it_is_off_until_the_owner_says_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A setting of the home that the agent's own verb shows and changes, and that survives reading and writing."""
    identity = Identity(device="d1", credential="c" * 32, hub="http://h", hardware_class=HERE, interval=1.0)
    chosen = Settings(leaves="nothing", labels={"site": "north"})
    home = Home.create(tmp_path / "home", identity=identity, settings=chosen, root=b"{}")
    assert not Home.open(home.path).settings.accept_auto
    for option, is_on in (("--accept-auto", True), ("--no-accept-auto", False), ("--accept-auto", True)):
        assert main(["settings", "--home", str(home.path), option]) == 0
        assert Home.open(home.path).settings == replace(chosen, accept_auto=is_on)
        assert re.search(rf"accept_auto +{str(is_on).lower()}\n", capsys.readouterr().out)
    assert main(["settings", "--home", str(home.path)]) == 0
    assert Home.open(home.path).settings.accept_auto
    assert main(["status", "--home", str(home.path)]) == 0
    assert re.search(r"accept_auto +true\n", capsys.readouterr().out)


def test_a_damaged_setting_opts_nobody_in() -> None:
    """A word is no yes."""
    with pytest.raises(EdgestillError):
        Settings.from_bytes(b'{"leaves": "raw", "labels": {}, "accept_auto": "false"}')


# A real hub and real agents


def test_an_unattended_release_reaches_only_who_has_opted_in(tmp_path: Path) -> None:
    """The publisher delegates, the lab publishes, a rollout brings it: one device takes it, the other says why not, and the rollout shows it."""
    with Fleet(tmp_path, model(1)) as fleet:
        fleet.join("open")
        fleet.join("closed")
        fleet.kill("open")
        assert main(["settings", "--home", str(fleet.home("open")), "--accept-auto"]) == 0
        fleet.start("open")
        fleet.publisher.publish("1.0.0", tiny_bundle("1.0.0"))
        assert fleet.ends(fleet.roll_out("1.0.0"), seconds=60).startswith("done")
        lab = Delegate.init(tmp_path / "lab", None)
        role = f"auto/{HERE}"
        now = SystemClock().now()
        fleet.operator.upload_targets(
            sign_targets(
                previous=fleet.operator.targets(),
                add={},
                keys=[fleet.publisher.targets_key],
                expires=now + 86_400,
                delegate=[Delegation(role=role, keys=tuple(lab.keys().values()), names=("tiny",))],
            )
        )
        archive = tiny_bundle("1.1.0")
        fleet.operator.upload_bundle(archive)
        info = TargetInfo(len(archive), Digest.of(archive))
        fleet.operator.upload_role(
            role, lab.sign(role, served=None, said=0, add={release_name("1.1.0"): info}, now=now)
        )
        rollout = fleet.roll_out("1.1.0", gates=Gates(max_failed=0.6))
        assert fleet.ends(rollout, seconds=60).startswith("done")
        assert until(lambda: fleet.serving("open") == "tiny/1.1.0")
        assert fleet.serving("closed") == "tiny/1.0.0"
        devices: Any = fleet.operator.rollout(rollout)["devices"]
        assert "[unattended-refused]" in devices["closed"]["reason"]
        assert "an owner who has opted in" in devices["closed"]["reason"]
