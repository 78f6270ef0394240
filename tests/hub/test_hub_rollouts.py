"""Rollouts through the real application: from an upload to a confirmed fleet, and every way it can go otherwise."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hub_worlds import CLASS, DAY, World, world

from edgestill.core.jsonio import parse_object
from edgestill.core.wire import Health
from edgestill.hub import registry, rollouts
from edgestill.hub.settings import Settings
from edgestill.trust.assignment import AssignmentKeys, verify

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection

R1, R2 = "watch/1.0.0", "watch/1.1.0"


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub with a root and two releases."""
    with world(tmp_path / "hub") as made:
        made.give_root()
        made.publish("1.0.0", "1.1.0")
        yield made


def test_a_release_reaches_the_fleet_in_stages(there: World) -> None:
    """One of five first; the others when it has confirmed; then the rollout is done."""
    devices = there.fleet(5)
    number = there.roll_out(R1, 0.2, 1)
    told = {one.id: one.poll() for one in devices}
    assert sum(one is not None for one in told.values()) == 1
    (first,) = [one for one in devices if told[one.id]]
    for state in ("downloaded", "verified", "staged", "serving"):
        first.tells(R1, state)
    assert there.rollout(number)["state"] == "running"
    assert there.rollout(number)["reason"] == f"waiting for {first.id} to confirm"
    first.tells(R1, "confirmed")
    assert there.rollout(number)["stage"] == 1
    there.confirm_all(devices, R1)
    status = there.rollout(number)
    assert status["state"] == "done"
    assert {one["state"] for one in status["devices"].values()} == {"confirmed"}
    assert {one["release"] for one in status["devices"].values()} == {R1}


def test_an_assignment_is_signed_for_its_device(there: World) -> None:
    """The envelope verifies under the hub's key, for this device alone, and names the bundle of its class."""
    device = there.enrol("d0")
    there.roll_out(R1)
    envelope = parse_object(device.call("GET", "/v1/poll").body, where="poll")["assignment"]
    assert isinstance(envelope, dict)
    found = verify(envelope, keys=AssignmentKeys((there.online,)), device="d0", seen=0, now=there.clock.now())
    assert found.target == f"{R1}/{CLASS}.esb"
    assert found.counter == 1
    assert 0.5 * DAY <= found.expires - there.clock.now() <= DAY


def test_the_counter_grows_with_every_change(there: World) -> None:
    """A new release, and going back, both count upwards."""
    device = there.enrol("d0")
    there.roll_out(R1)
    there.confirm_all([device], R1)
    second = there.roll_out(R2)
    counters = [device.poll()["counter"]]
    there.admin("POST", f"rollouts/{second}/rollback")
    told = device.poll()
    counters.append(told["counter"])
    assert counters == [2, 3]
    assert told["target"] == f"{R1}/{CLASS}.esb"


def test_a_device_that_falls_back_pauses_the_rollout(there: World) -> None:
    """No further device is assigned; the status names the device and its reason."""
    devices = there.fleet(4)
    number = there.roll_out(R1, 0.25, 1)
    (first,) = [one for one in devices if one.poll()]
    first.tells(R1, "fell-back", reason="probe failed: 3 of 8 golden answers differ")
    status = there.rollout(number)
    assert status["state"] == "paused"
    assert status["reason"] == f"{first.id} failed, of 1 that have the release (allowed: 0%)"
    assert status["devices"][first.id]["reason"] == "probe failed: 3 of 8 golden answers differ"
    assert sum(one.poll() is not None for one in devices) == 1
    first.tells(R1, "confirmed")
    assert there.rollout(number)["devices"][first.id]["state"] == "fell-back", "never done"


def test_a_resumed_rollout_leaves_the_failed_device_behind(there: World) -> None:
    """The others get the release; the one that fell back stays named."""
    devices = there.fleet(4)
    number = there.roll_out(R1, 0.25, 1)
    (first,) = [one for one in devices if one.poll()]
    first.tells(R1, "fell-back", reason="too slow")
    assert there.admin("POST", f"rollouts/{number}/resume").json["state"] == "running"
    there.confirm_all([one for one in devices if one is not first], R1)
    status = there.rollout(number)
    assert status["state"] == "done"
    assert status["devices"][first.id]["state"] == "fell-back"


def test_a_silent_device_pauses_the_rollout(there: World) -> None:
    """A device that was assigned and is never heard of again is not waited for without end."""
    devices = there.fleet(3)
    number = there.roll_out(R1, 0.3, 1, gates={"silent_after": 600})
    (silent,) = [one for one in devices if one.poll()]
    (other, *_) = [one for one in devices if one is not silent]
    there.clock.advance(601)
    other.poll()
    status = there.rollout(number)
    assert status["state"] == "paused"
    assert status["devices"][silent.id] == {
        "state": "silent",
        "reason": "assigned, then no report for 600 s",
        "release": None,
    }


def test_disagreement_with_the_teacher_pauses_the_rollout(there: World) -> None:
    """Audits over the stage decide, once there are enough of them."""
    device = there.enrol("d0")
    number = there.roll_out(R1, gates={"min_agreement": 0.8, "min_audits": 10})
    device.tells(R1, "confirmed")
    assert there.rollout(number)["reason"] == "waiting for audits: 0 of 10 that the agreement gate asks"
    device.audited(R1, 12, 8)
    status = there.rollout(number)
    assert status["state"] == "running"
    chance = (
        "agreement with the teacher is 66.7% on 12 audits of 1 device (least: 80.0%), which may be chance"
    )
    assert status["reason"] == f"waiting for more reports: {chance}"
    device.audited(R1, 18, 4)
    status = there.rollout(number)
    assert (status["state"], status["audits"], status["agreed"]) == ("paused", 30, 12)
    assert status["reason"] == "agreement with the teacher is 40.0% on 30 audits of 1 device (least: 80.0%)"


@pytest.mark.parametrize(
    ("gate", "figures", "text"),
    [
        (
            {"max_errors": 0.01},
            {"answers": 500, "errors": 40},
            "the engine fails on 7.34% on 545 inputs of 1 device (most: 1.00%)",
        ),
        (
            {"max_escalated": 0.25},
            {"answers": 500, "escalated": 200},
            "a larger model is asked about 39.6% on 505 answers of 1 device (most: 25.0%)",
        ),
        (
            {"max_latency": 0.02},
            {"answers": 30, "latency_p95": 0.05},
            "d0 failed, of 2 that have the release",
        ),
    ],
)
def test_a_model_that_serves_badly_pauses_the_rollout(
    there: World, gate: dict[str, float], figures: dict[str, Any], text: str
) -> None:
    """It was installed without a fault, and its device says so; its figures of another release count for nothing."""
    device, other = there.fleet(2)
    good = Health(answers=5, latency_p95=0.01)
    for health in (Health(**figures), good):
        device.report(replace(device.figures(R1, 0, 0), health=health))
    number = there.roll_out(R1, gates=gate)
    device.tells(R1, "confirmed")
    device.report(replace(device.figures(R1, 0, 0), health=good))
    assert there.rollout(number)["state"] == "running", "what was told before the rollout is of another time"
    device.report(replace(device.figures(R1, 0, 0), health=Health(**figures)))
    there.clock.advance(there.hub.settings.tick + 1)
    other.poll()
    status = there.rollout(number)
    assert status["state"] == "paused"
    assert status["reason"].startswith(text)


def test_an_operator_lets_a_stage_go_on_that_waits(there: World) -> None:
    """A quiet fleet has no audits to wait for; the order is of this stage, and what is sure pauses all the same."""
    device, other = there.fleet(2)
    number = there.roll_out(R1, 0.5, 1, gates={"min_agreement": 0.8, "min_audits": 10})
    first = device if device.poll() else other
    second = other if first is device else device
    first.tells(R1, "confirmed")
    assert there.rollout(number)["stage"] == 0
    assert there.admin("POST", f"rollouts/{number}/advance", {"stage": 1}).status == 409, "of another stage"
    assert there.admin("POST", f"rollouts/{number}/advance", {"stage": 0}).json["stage"] == 1
    second.poll()
    second.tells(R1, "confirmed")
    assert there.rollout(number)["state"] == "running", "the last stage waits again"
    first.audited(R1, 30, 5)
    status = there.rollout(number)
    assert (status["state"], status["health"]) == ("paused", [status["reason"]])
    assert there.admin("POST", f"rollouts/{number}/advance", {"stage": 1}).status == 409


def test_who_stopped_it_for_another_reason_forgets_nothing(there: World) -> None:
    """Pausing for maintenance is no acceptance of what was seen."""
    device = there.enrol("d0")
    number = there.roll_out(R1, gates={"min_agreement": 0.8, "min_audits": 30})
    device.tells(R1, "confirmed")
    device.audited(R1, 10, 6)
    for order in ("pause", "resume"):
        there.admin("POST", f"rollouts/{number}/{order}")
    assert there.rollout(number)["audits"] == 10


def test_resuming_counts_audits_anew(there: World) -> None:
    """The operator has accepted what was; what follows must be good."""
    device = there.enrol("d0")
    number = there.roll_out(R1, gates={"min_agreement": 0.8, "min_audits": 10})
    device.tells(R1, "confirmed")
    device.audited(R1, 10, 0)
    assert there.rollout(number)["state"] == "paused"
    assert there.admin("POST", f"rollouts/{number}/resume").json["state"] == "running"
    device.audited(R1, 10, 9)
    assert there.rollout(number)["state"] == "done"


def test_an_operator_pauses_and_resumes(there: World) -> None:
    """Nothing is assigned in between; both may be said twice."""
    devices = there.fleet(2)
    number = there.roll_out(R1, 0.5, 1)
    for _ in range(2):
        assert there.admin("POST", f"rollouts/{number}/pause").json["reason"] == "by the operator"
    (first,) = [one for one in devices if one.poll()]
    first.tells(R1, "confirmed")
    assert sum(one.poll() is not None for one in devices) == 1
    for _ in range(2):
        assert there.admin("POST", f"rollouts/{number}/resume").json["state"] == "running"
    assert sum(one.poll() is not None for one in devices) == 2


def test_rolling_back_returns_each_device_to_what_it_confirmed(there: World) -> None:
    """Of two devices one had the older release; the other had nothing, and is told nothing more."""
    old = there.enrol("old")
    there.roll_out(R1)
    there.confirm_all([old], R1)
    new = there.enrol("new")
    new.tells(R1, "fell-back", reason="no room")
    number = there.roll_out(R2)
    there.confirm_all([old, new], R2)
    assert there.admin("POST", f"rollouts/{number}/rollback").json["state"] == "rolled-back"
    assert old.poll()["target"] == f"{R1}/{CLASS}.esb"
    assert new.poll() is None


def test_a_retired_release_is_not_gone_back_to(there: World) -> None:
    """What the publisher no longer lists is never assigned again, not even on the way back."""
    device = there.enrol("d0")
    there.roll_out(R1)
    there.confirm_all([device], R1)
    number = there.roll_out(R2)
    there.confirm_all([device], R2)
    there.publish(retire=(f"{R1}/{CLASS}.esb",))
    there.admin("POST", f"rollouts/{number}/rollback")
    assert device.poll() is None


def test_a_device_that_joins_later_gets_the_finished_release(there: World) -> None:
    """Also while the next rollout is still in its first stage."""
    (first,) = there.fleet(1)
    there.roll_out(R1)
    there.confirm_all([first], R1)
    late = there.enrol("late")
    assert late.poll()["target"] == f"{R1}/{CLASS}.esb"


def test_a_device_of_a_finished_newer_rollout_is_not_drawn_back(there: World) -> None:
    """A newcomer that the newer release reached is not also welcomed by the older one."""
    (first,) = there.fleet(1)
    for release in (R1, R2):
        there.roll_out(release)
        there.confirm_all([first], release)
    late = there.enrol("late")
    assert late.poll()["target"] == f"{R2}/{CLASS}.esb"
    there.clock.advance(60)
    first.poll()
    assert late.poll()["target"] == f"{R2}/{CLASS}.esb"


def test_a_cohort_is_chosen_by_labels(there: World) -> None:
    """Only devices that carry the label take part; another cohort may have its own rollout at the same time."""
    north, south = there.enrol("n", site="north"), there.enrol("s", site="south")
    there.roll_out(R1, labels={"site": "north"})
    there.roll_out(R2, labels={"site": "south"})
    assert north.poll()["target"].startswith(R1)
    assert south.poll()["target"].startswith(R2)
    assert list(there.rollout(1)["devices"]) == ["n"]


@pytest.mark.parametrize("labels", [{}, {"site": "north"}, {"shift": "night"}])
def test_two_rollouts_never_pull_at_one_device(there: World, labels: dict[str, str]) -> None:
    """A second one is refused while the first is open for devices that could be in both."""
    there.roll_out(R1, labels={"site": "north"})
    reply = there.admin("POST", "rollouts", {"release": R2, "labels": labels})
    assert reply.status == 409
    assert reply.json["code"] == "state-conflict"
    assert reply.json["where"] == "rollout 1 (watch/1.0.0, running)"


def test_a_device_of_another_class_is_not_part_of_it(there: World) -> None:
    """There is no bundle for it, so it is neither assigned nor counted."""
    other = there.enrol("other", hardware_class="aarch64-dotprod-onnxruntime")
    mine = there.enrol("mine")
    number = there.roll_out(R1)
    there.confirm_all([other, mine], R1)
    assert other.poll() is None
    assert there.rollout(number)["state"] == "done"
    assert list(there.rollout(number)["devices"]) == ["mine"]


def test_a_bundle_for_any_class_serves_where_there_is_no_own(tmp_path: Path) -> None:
    """The class's own bundle is taken first."""
    with world(tmp_path / "hub") as there:
        there.give_root()
        there.publish("1.0.0")
        there.publish("1.0.0", hardware_class="any")
        own, other = there.enrol("own"), there.enrol("other", hardware_class="aarch64-dotprod-onnxruntime")
        there.roll_out(R1)
        assert own.poll()["target"] == f"{R1}/{CLASS}.esb"
        assert other.poll()["target"] == f"{R1}/any.esb"


def test_a_report_that_comes_twice_counts_once(there: World) -> None:
    """A lost answer makes a device send its batch again: nothing is added up twice."""
    device = there.enrol("d0")
    number = there.roll_out(R1)
    batch = [device.told(R1, "downloaded"), device.told(R1, "verified")]
    assert device.report(*batch) == {"accepted": 2, "duplicates": 0}
    assert device.report(*batch, device.told(R1, "staged")) == {"accepted": 1, "duplicates": 2}
    assert there.rollout(number)["devices"]["d0"]["state"] == "staged"


def test_two_devices_may_use_the_same_report_id(there: World) -> None:
    """Ids are the device's own."""
    one, two = there.fleet(2)
    assert one.tells(R1, "serving", id="same")["accepted"] == 1
    assert two.tells(R1, "serving", id="same")["accepted"] == 1


def test_health_is_summed_and_the_latest_figures_are_kept(there: World) -> None:
    """Counts add up over reports in any order; confidence is that of the newest by the device's clock."""
    device = there.enrol("d0")
    device.audited(R1, 3, 2)
    device.audited(R1, 5, 5)
    (found,) = there.admin("GET", "fleet").json["devices"]
    assert found["release"] == R1
    assert (found["health"]["audits"], found["health"]["agreed"], found["health"]["answers"]) == (8, 7, 80)


def test_what_a_device_fell_back_from_is_not_shown_as_running(there: World) -> None:
    """A fleet that shows the new release while the old one runs would be a lie."""
    device = there.enrol("d0")
    device.tells(R1, "serving")
    device.audited(R1, 1, 1)
    device.tells(R2, "serving")
    device.tells(R2, "fell-back", reason="died 3 times")
    (found,) = there.admin("GET", "fleet").json["devices"]
    assert (found["release"], found["state"], found["reason"]) == (None, "fell-back", "died 3 times")
    device.audited(R1, 1, 1)
    assert there.admin("GET", "fleet").json["devices"][0]["release"] == R1


def test_a_clock_gone_wild_does_not_silence_later_reports(there: World) -> None:
    """A report from the year 5000 is believed to be five minutes ahead at most."""
    device = there.enrol("d0")
    device.tells(R1, "serving", at=9e10)
    there.clock.advance(301)
    device.tells(R2, "serving")
    assert there.admin("GET", "fleet").json["devices"][0]["release"] == R2


def test_reports_out_of_order_lead_to_the_same_fleet(tmp_path: Path) -> None:
    """The same reports shuffled five ways: state, release and sums are the same each time."""
    seen = []
    for seed in range(5):
        with world(tmp_path / str(seed)) as there:
            there.give_root()
            there.publish("1.0.0")
            device = there.enrol("d0")
            number = there.roll_out(R1, gates={"min_agreement": 0.5})
            batch = []
            for state in ("downloaded", "verified", "staged", "serving", "confirmed"):
                there.clock.advance(1)
                batch.append(device.told(R1, state))
            random.Random(seed).shuffle(batch)
            for report in batch:
                device.report(report)
            seen.append((there.rollout(number)["devices"], there.admin("GET", "fleet").json))
    assert all(one == seen[0] for one in seen)
    assert seen[0][0]["d0"] == {"state": "confirmed", "reason": "", "release": R1}


def test_a_restarted_hub_goes_on_where_it_was(tmp_path: Path) -> None:
    """State is in the folder: a new process has the same rollout, and the same assignments."""
    with world(tmp_path / "hub") as there:
        there.give_root()
        there.publish("1.0.0")
        devices = there.fleet(4)
        number = there.roll_out(R1, 0.5, 1)
        told = {one.id: one.poll() for one in devices}
    with world(tmp_path / "hub", clock=there.clock) as again:
        for one in devices:
            one.world = again
        assert {one.id: one.poll() for one in devices} == told
        again.confirm_all(devices, R1)
        assert again.rollout(number)["state"] == "done"


def test_a_step_that_dies_is_done_again_whole(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between telling the devices and counting them as members leaves neither; the next step does both."""
    devices = there.fleet(2)
    real = registry.assign

    async def dying(connection: AsyncConnection, told: Mapping[str, str | None], now: float) -> None:
        await real(connection, told, now)
        raise OSError("power failed")

    monkeypatch.setattr(registry, "assign", dying)
    assert there.admin("POST", "rollouts", {"release": R1}).status == 500
    monkeypatch.undo()
    assert there.rollout(1)["devices"]["d0"]["state"] == "waiting"
    assert there.rollout(1)["devices"]["d1"]["state"] == "waiting"
    there.clock.advance(Settings().tick)
    devices[0].poll()
    assert [one.poll()["counter"] for one in devices] == [1, 1]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"release": R1, "stages": [0.5]}, "the stages do not form a rollout"),
        ({"release": R1, "stages": [1, 0.5]}, "the stages do not form a rollout"),
        ({"release": R1, "stages": ["all"]}, "stages are shares"),
        ({"release": R1, "stages": [True]}, "stages are shares"),
        ({"release": R1, "stages": [0, 1]}, "a stage's share is out of range"),
        ({"release": R1, "gates": {"max_failed": 1.0}}, "a gate is out of range"),
        ({"release": R1, "gates": {"max_fialed": 0.1}}, "unknown field"),
        ({"release": "watch"}, "a field is not what it should be"),
        ({"stages": [1]}, "a field is missing"),
    ],
)
def test_a_rollout_that_makes_no_sense_is_refused(there: World, body: dict[str, object], what: str) -> None:
    """With 400, and what is wrong."""
    reply = there.admin("POST", "rollouts", body)
    assert (reply.status, reply.json["what"]) == (400, what)


def test_an_unknown_release_or_rollout_is_not_found(there: World) -> None:
    """With 404, for each verb."""
    assert there.admin("POST", "rollouts", {"release": "watch/9.9.9"}).status == 404
    for path in ("rollouts/7", "rollouts/x", f"rollouts/{10**30}"):
        assert there.admin("GET", path).status == 404
    for verb in ("pause", "resume", "rollback"):
        reply = there.admin("POST", f"rollouts/7/{verb}")
        assert (reply.status, reply.json["code"]) == (404, "not-found")


def test_a_rollout_that_is_over_is_not_paused_or_resumed(there: World) -> None:
    """With 409, and the state it is in."""
    device = there.enrol("d0")
    number = there.roll_out(R1)
    there.confirm_all([device], R1)
    for verb in ("pause", "resume"):
        reply = there.admin("POST", f"rollouts/{number}/{verb}")
        assert (reply.status, reply.json["got"]) == (409, "done")


def test_rollouts_are_listed_newest_first(there: World) -> None:
    """Each with its state and reason."""
    there.enrol("d0")
    there.roll_out(R1)
    there.admin("POST", "rollouts/1/rollback")
    there.roll_out(R2)
    listed = there.admin("GET", "rollouts").json["rollouts"]
    assert [(one["id"], one["state"]) for one in listed] == [(2, "running"), (1, "rolled-back")]


def test_only_decisive_reports_make_rollouts_look(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps on the way change no decision, so that a fleet that installs costs the hub little."""
    device = there.enrol("d0")
    number = there.roll_out(R1)
    looked: list[float] = []
    real = rollouts.advance

    async def counting(connection: AsyncConnection, now: float) -> rollouts.Moved:
        looked.append(now)
        return await real(connection, now)

    monkeypatch.setattr(rollouts, "advance", counting)
    for state in ("downloaded", "verified", "staged", "serving"):
        device.tells(R1, state)
    assert looked == []
    device.tells(R1, "confirmed")
    assert len(looked) == 1
    assert there.rollout(number)["state"] == "done"
