"""Timing jobs at a hub: to whom they go, what is believed of what comes back, and the profile that comes of it."""

from __future__ import annotations

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hub_worlds import CLASS, DAY, Device, Reply, World, esb, teacher_model, world

from edgestill.core.digest import Digest
from edgestill.core.errors import ReplayError
from edgestill.core.family import family_bytes
from edgestill.core.jsonio import canonical
from edgestill.core.release import target_name, timing_name
from edgestill.core.timing import MAX_BYTES, ModelTime, TimingReport
from edgestill.core.wire import Poll
from edgestill.hub import timings
from edgestill.infer.profiling import Subject, pack_shapes
from edgestill.lab.searching.profile import Profile
from edgestill.trust.assignment import AssignmentKeys, verify_measurement
from edgestill.trust.metadata import TargetInfo
from edgestill.trust.repository import target_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODELS = 8
TARGET = timing_name("watch", "1.0.0", CLASS)
WORK: list[Any] = [{"kind": "Gemm", "products": 12, "weights": 12, "outputs": 3}]


def family(count: int = MODELS, **changes: Any) -> bytes:
    """An archive of so many models."""
    subjects = [Subject(precision="floats", work=WORK, model=teacher_model()) for _ in range(count)]
    given: dict[str, Any] = {"name": "watch", "version": "1.0.0", "hardware_class": CLASS} | changes
    return pack_shapes(subjects, np.zeros((2, 4), np.float32), **given)


ARCHIVE = family()


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub that lists a release and a family of models."""
    with world(tmp_path / "hub") as one:
        one.give_root()
        one.publish("1.0.0")
        publish(one, TARGET, ARCHIVE)
        yield one


def publish(there: World, name: str, archive: bytes, *, remove: tuple[str, ...] = ()) -> Reply:
    """Uploads an archive and lists it under a name."""
    info = there.upload(archive)
    targets = there.sign({name: info}, remove)
    reply = there.admin("POST", "targets", targets)
    if reply.status == 200:
        there.targets = targets
    return reply


def start(there: World, *, devices: int = 3, **labels: str) -> Any:
    """Starts a job; what the hub answers."""
    body = {"target": TARGET, "devices": devices, "labels": labels}
    reply = there.admin("POST", "timings", body)
    assert reply.status == 201, reply
    return reply.json


def measure_of(device: Device) -> Any:
    """What a device is told to time, signed; None for nothing."""
    return device.call("GET", "/v1/poll").json.get("measure")


def states(there: World, job: int = 1) -> dict[str, str]:
    """Device -> how it stands."""
    return {name: one["state"] for name, one in there.admin("GET", f"timings/{job}").json["devices"].items()}


def times(scale: float = 1.0, places: range = range(MODELS)) -> tuple[ModelTime, ...]:
    """Of each model, in milliseconds."""
    return tuple(
        ModelTime(
            at=at,
            p50=0.001 * scale * (at + 1),
            p95=0.002 * scale * (at + 1),
            low=0.0019 * scale * (at + 1),
            high=0.0021 * scale * (at + 1),
        )
        for at in places
    )


def report(state: str = "measured", **changes: Any) -> TimingReport:
    """What a device says of its first job."""
    given: dict[str, Any] = {"counter": 1, "archive": Digest.of(ARCHIVE), "state": state}
    given |= {"models": times()} if state == "measured" else {}
    return TimingReport(**(given | changes))


def send(device: Device, told: TimingReport | bytes) -> Reply:
    """Says it."""
    return device.call("POST", "/v1/timing", told if isinstance(told, bytes) else told.to_bytes())


# To whom


def test_a_job_reaches_its_devices_signed_beside_their_assignment(there: World) -> None:
    """By a counter of its own; a device of old reads the poll as before, and sees nothing of it."""
    device = there.enrol("d0")
    there.roll_out("watch/1.0.0")
    before = device.call("GET", "/v1/poll").json["assignment"]
    assert start(there) == {"id": 1, "devices": ["d0"]}
    poll = device.call("GET", "/v1/poll")
    assert poll.json["assignment"] == before
    envelope = Poll.from_bytes(poll.body).measure
    assert envelope is not None
    keys = AssignmentKeys((there.online,))
    found = verify_measurement(envelope, keys=keys, device="d0", seen=0, now=there.clock.now())
    assert (found.target, found.counter) == (TARGET, 1)
    with pytest.raises(ReplayError):
        verify_measurement(envelope, keys=keys, device="d1", seen=0, now=there.clock.now())


def test_the_same_job_has_the_same_tag_until_half_of_its_life_is_over(there: World) -> None:
    """So that polls wait; what changes is told at once."""
    device = there.enrol("d0")
    start(there)
    tag = device.call("GET", "/v1/poll").headers["etag"]
    assert device.call("GET", "/v1/poll", if_none_match=tag).status == 304
    there.admin("POST", "timings/1/cancel")
    assert device.call("GET", "/v1/poll", if_none_match=tag).status == 200


def test_devices_are_chosen_by_class_labels_and_when_they_called(there: World) -> None:
    """Those that called last, so many at most; none of another class, revoked, busy, or that asks by another interface."""
    for name, place in (("d0", "north"), ("d1", "north"), ("d2", "north"), ("d3", "south")):
        device = there.enrol(name, place=place)
        there.clock.advance(100)
        device.call("GET", "/v1/poll")
    there.enrol("d4", hardware_class="aarch64-dotprod-onnxruntime", place="north")
    there.admin("POST", "devices/d2/revoke")
    assert start(there, devices=1, place="north")["devices"] == ["d1"]
    assert start(there, devices=5, place="north")["devices"] == ["d0"]
    assert start(there, devices=5)["devices"] == ["d3"]
    nobody = there.admin("POST", "timings", {"target": TARGET, "devices": 1})
    assert (nobody.status, nobody.json["what"]) == (404, "no device is free to time this")


def test_a_device_that_has_not_called_for_long_gets_no_job(there: World) -> None:
    """It may never call again, and the job would wait for it; once it calls it may be chosen."""
    devices = there.fleet(2)
    there.clock.advance(timings.CALLED_POLLS * there.hub.settings.poll_interval + 1)
    assert there.admin("POST", "timings", {"target": TARGET, "devices": 2}).status == 404
    devices[1].call("GET", "/v1/poll")
    assert start(there)["devices"] == ["d1"]


def test_a_job_does_not_wait_for_ever(there: World) -> None:
    """After two weeks it ends; what was measured stays, and a device that is free again may have another."""
    devices = there.fleet(2)
    start(there)
    send(devices[0], report())
    there.clock.advance(timings.LONGEST)
    devices[1].call("GET", "/v1/poll")
    assert there.admin("GET", "timings/1").json["state"] == "running"
    there.clock.advance(DAY)
    devices[1].call("GET", "/v1/poll")
    found = there.admin("GET", "timings/1").json
    assert (found["state"], found["reason"]) == ("expired", "not all of its devices were heard in time")
    assert states(there) == {"d0": "measured", "d1": "left"}
    assert measure_of(devices[1]) is None
    assert there.admin("GET", "timings/1/profile").status == 200


def test_a_device_of_hawkbits_interface_gets_no_job(there: World) -> None:
    """It could not be told."""
    device = there.enrol("d0")
    status = {"result": {"finished": "success"}, "execution": "closed"}
    told = {"data": {"kernel": "6.1"}, "status": status, "id": ""}
    reply = there.call(
        "PUT",
        "/default/controller/v1/d0/configData",
        json.dumps(told).encode(),
        authorization=f"TargetToken {device.credential}",
    )
    assert reply.status == 200, reply
    assert there.admin("POST", "timings", {"target": TARGET, "devices": 1}).status == 404


def test_a_poll_that_waits_is_woken_by_a_job_and_by_its_end(there: World) -> None:
    """As by an assignment."""
    device = there.enrol("d0")
    orders: list[tuple[str, dict[str, Any]]] = [
        ("timings", {"target": TARGET, "devices": 1}),
        ("timings/1/cancel", {}),
    ]
    for path, body in orders:
        tag = device.call("GET", "/v1/poll").headers["etag"]
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(device.call, "GET", "/v1/poll?wait=20", if_none_match=tag)
            while "d0" not in there.hub.bell._waiting:
                pass
            there.admin("POST", path, body)
            assert waiting.result(timeout=10).status == 200


@pytest.mark.parametrize(
    "body",
    [
        {"target": timing_name("watch", "6.6.6", CLASS), "devices": 1},
        {"target": target_name("watch", "1.0.0", CLASS), "devices": 1},
        {"target": TARGET, "devices": 0},
        {"target": TARGET, "devices": 1001},
        {"target": TARGET},
        {"target": TARGET, "devices": 1, "more": 1},
    ],
)
def test_what_cannot_be_timed_is_refused(there: World, body: dict[str, Any]) -> None:
    """Not listed, a bundle, or no sensible number."""
    there.enrol("d0")
    assert there.admin("POST", "timings", body).status in {400, 404, 422}
    assert there.admin("GET", "timings").json["timings"] == []


def test_a_rollout_and_a_job_do_not_disturb_one_another(there: World) -> None:
    """Neither's counter moves the other's, and the rollout is done while the job still waits."""
    device = there.enrol("d0")
    start(there)
    measure = measure_of(device)
    number = there.roll_out("watch/1.0.0")
    assert device.poll()["counter"] == 1
    device.tells("watch/1.0.0", "confirmed")
    assert there.rollout(number)["state"] == "done"
    assert measure_of(device) == measure
    assert states(there) == {"d0": "assigned"}
    assert there.admin("GET", "releases").json["releases"][0]["bundles"].keys() == {CLASS}


# What comes back


def test_a_job_is_told_step_by_step(there: World) -> None:
    """Each step counts once; with the last of its devices the job is done, and nobody is told to go on."""
    devices = there.fleet(2)
    start(there)
    for device in devices:
        assert send(device, report("downloaded")).json == {"accepted": True}
        assert send(device, report("downloaded")).json == {"accepted": False}
    assert states(there) == {"d0": "downloaded", "d1": "downloaded"}
    assert send(devices[0], report(reason="3.onnx was left out: why")).json == {"accepted": True}
    assert measure_of(devices[0]) is None
    assert there.admin("GET", "timings/1").json["state"] == "running"
    assert send(devices[1], report("refused", reason="no room")).json == {"accepted": True}
    found = there.admin("GET", "timings/1").json
    assert found["state"] == "done"
    assert found["devices"]["d0"] | {"heard_at": 0} == {
        "state": "measured",
        "reason": "3.onnx was left out: why",
        "models": MODELS,
        "heard_at": 0,
    }
    assert found["devices"]["d1"]["reason"] == "no room"
    assert there.admin("GET", "timings").json["timings"][0]["devices"] == {"measured": 1, "refused": 1}
    assert start(there)["devices"] == ["d0", "d1"]
    assert measure_of(devices[0])["signed"]["counter"] == 2


def test_the_last_word_stays(there: World) -> None:
    """Times cannot be replaced later, nor a refusal taken back."""
    device = there.enrol("d0")
    start(there)
    send(device, report())
    for told in (report(models=times(9)), report("refused"), report("downloaded"), report()):
        assert send(device, told).json == {"accepted": False}
    assert json.loads(there.admin("GET", "timings/1/profile").body)["models"][0]["p50"] == 0.001


def test_attack_times_of_another_job_or_device_count_nowhere(there: World) -> None:
    """By counter, by archive, or of a device that has no job: nothing is kept, and nothing is told about whether there is one."""
    device, stranger = there.fleet(2)
    there.admin("POST", "timings", {"target": TARGET, "devices": 1})
    mine, other = (device, stranger) if "d0" in states(there) else (stranger, device)
    assert send(other, report()).json == {"accepted": False}
    assert send(mine, report(counter=2)).json == {"accepted": False}
    assert send(mine, report(archive=Digest.of(b"another"))).json == {"accepted": False}
    assert send(mine, report(archive=Digest.of(esb("1.0.0")))).json == {"accepted": False}
    assert set(states(there).values()) == {"assigned"}
    assert there.admin("GET", "timings/1/profile").status == 404


def test_attack_a_report_of_an_earlier_job_says_nothing_of_the_next(there: World) -> None:
    """A replay: the same archive under the next counter waits for its own times."""
    device = there.enrol("d0")
    start(there)
    there.admin("POST", "timings/1/cancel")
    start(there)
    assert send(device, report()).json == {"accepted": False}
    assert states(there, 2) == {"d0": "assigned"}
    assert send(device, report(counter=2)).json == {"accepted": True}


def altered(**changes: Any) -> bytes:
    """A report in which the first model's figures are others."""
    told = json.loads(report().to_bytes())
    told["models"][0] |= changes
    return json.dumps(told).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        altered(p50=float("nan")),
        altered(p95=float("inf")),
        altered(p50=-1),
        altered(p50=0),
        altered(p50=0.1),
        altered(p95=1e7, high=1e7),
        altered(low=0.1),
        altered(high=0.0001),
        altered(at=1),
        altered(at=512),
        altered(at="0"),
        altered(more=1),
        report(models=times(places=range(1, MODELS + 1))).to_bytes(),
        report(models=()).to_bytes(),
        report("refused", models=times()).to_bytes(),
        report("downloaded", models=times()).to_bytes(),
        canonical({"counter": 1, "archive": str(Digest.of(ARCHIVE)), "state": "done"}),
        canonical({"counter": 0, "archive": str(Digest.of(ARCHIVE)), "state": "refused"}),
        canonical({"counter": 1, "archive": "md5:1", "state": "refused"}),
        b" " * (MAX_BYTES + 1),
    ],
)
def test_attack_a_report_that_cannot_be_true_is_refused(there: World, body: bytes) -> None:
    """Not finite, out of range, contradicting itself, of models that there are not, or too long; and the job still waits."""
    device = there.enrol("d0")
    start(there)
    assert send(device, body).status in {400, 413, 422}
    assert states(there) == {"d0": "assigned"}


def test_a_report_is_taken_in_without_the_archive(there: World) -> None:
    """The number of its models is known since the job began: a file that is gone keeps no device telling, and a profile cannot be made."""
    device = there.enrol("d0")
    start(there)
    there.hub.artefacts._blobs.path(Digest.of(ARCHIVE)).unlink()
    assert send(device, report(models=times(places=range(1, MODELS + 1)))).status == 400
    assert send(device, report("downloaded")).json == {"accepted": True}
    assert send(device, report()).json == {"accepted": True}
    assert there.admin("GET", "timings/1").json["state"] == "done"
    assert there.admin("GET", "timings/1/profile").status >= 400


def test_attack_a_job_of_an_earlier_hub_believes_in_no_more_models_than_there_are(there: World) -> None:
    """Their number is not known when the devices are heard; the profile is of those in the archive."""
    device = there.enrol("d0")
    start(there)
    connection = sqlite3.connect(there.folder / "hub.db")
    connection.execute("UPDATE timings SET models = NULL")
    connection.commit()
    connection.close()
    assert send(device, report(models=times(places=range(2, MODELS + 5)))).json == {"accepted": True}
    found = json.loads(there.admin("GET", "timings/1/profile").body)
    assert len(found["models"]) == MODELS - 2


def test_a_revoked_device_is_not_heard_and_not_waited_for(there: World) -> None:
    """The job goes on without it."""
    devices = there.fleet(2)
    start(there)
    there.admin("POST", "devices/d0/revoke")
    assert send(devices[0], report()).status == 401
    send(devices[1], report())
    there.clock.advance(DAY / 2)
    devices[1].call("GET", "/v1/poll")
    assert states(there) == {"d0": "left", "d1": "measured"}
    assert there.admin("GET", "timings/1").json["state"] == "done"


def test_a_cancelled_job_is_over(there: World) -> None:
    """Its devices are told, what they say afterwards changes nothing, and it cannot be cancelled twice."""
    devices = there.fleet(2)
    start(there)
    send(devices[0], report())
    assert there.admin("POST", "timings/1/cancel").json["state"] == "cancelled"
    assert measure_of(devices[1]) is None
    assert send(devices[1], report()).json == {"accepted": False}
    assert states(there) == {"d0": "measured", "d1": "left"}
    assert there.admin("POST", "timings/1/cancel").status == 409
    assert there.admin("POST", "timings/9/cancel").status == 404
    assert there.admin("GET", "timings/1/profile").status == 200


def test_retiring_a_family_ends_its_jobs(there: World) -> None:
    """As it takes a release away from rollouts; what was measured stays."""
    devices = there.fleet(2)
    start(there)
    send(devices[0], report())
    targets = there.sign({}, (TARGET,))
    assert there.admin("POST", "targets", targets).status == 200
    assert measure_of(devices[1]) is None
    found = there.admin("GET", "timings/1").json
    assert (found["state"], found["reason"]) == ("retired", "the publisher lists it no more")
    assert Profile.from_bytes(there.admin("GET", "timings/1/profile").body).tables
    path = "/" + target_path(TARGET, Digest.of(ARCHIVE))
    assert there.call("GET", path).status == 404


def test_a_job_outlives_the_hub(tmp_path: Path) -> None:
    """It is in the database; the counter goes on after a restart."""
    with world(tmp_path / "hub") as there:
        there.give_root()
        publish(there, TARGET, ARCHIVE)
        device = there.enrol("d0")
        start(there)
        send(device, report("downloaded"))
    with world(tmp_path / "hub") as again:
        device = Device(again, device.id, device.credential)
        assert measure_of(device)["signed"]["counter"] == 1
        assert send(device, report()).json == {"accepted": True}


def test_who_started_and_who_cancelled_is_in_the_audit_log(there: World) -> None:
    """With what, and for whom."""
    there.fleet(2)
    start(there)
    there.admin("POST", "timings/1/cancel")
    entries = there.admin("GET", "audit-log").json["entries"]
    found = {one["what"]: one["about"] for one in entries if one["what"].startswith("timing.")}
    assert found["timing.start"]["target"] == TARGET
    assert found["timing.start"]["given_to"] == "d0, d1"
    assert set(found) == {"timing.start", "timing.cancel"}


# What comes of it


def test_a_profile_is_of_the_archive_and_of_one_device(there: World) -> None:
    """What each model has to do is the publisher's word, and only the times are the device's."""
    device = there.enrol("d0")
    start(there)
    send(device, report(models=times(places=range(1, MODELS))))
    body = there.admin("GET", "timings/1/profile?device=d0").body
    found = json.loads(body)
    assert [one["work"] for one in found["models"]] == [WORK] * (MODELS - 1)
    assert [one["p95"] for one in found["models"]] == [one.p95 for one in times(places=range(1, MODELS))]
    assert found["timing"] == {"target": TARGET, "devices": ["d0"], "left_out": []}
    profile = Profile.from_bytes(body)
    assert (profile.hardware_class, profile.threads, len(profile.models)) == (CLASS, 1, MODELS - 1)
    assert there.admin("GET", "timings/1/profile?device=d1").status == 404


def test_attack_one_device_of_several_that_lies_moves_no_median(there: World) -> None:
    """How far the devices lie apart tells on it; how many timed each model stands beside it."""
    devices = there.fleet(4)
    start(there, devices=4)
    send(devices[0], report(models=times(1)))
    send(devices[1], report(models=times(1.5)))
    send(devices[2], report(models=times(2, range(1, MODELS))))
    send(devices[3], report(models=times(100_000)))
    found = json.loads(there.admin("GET", "timings/1/profile").body)
    assert [one["p50"] for one in found["models"]] == [
        pytest.approx((0.0015 if at == 0 else 0.00175) * (at + 1)) for at in range(MODELS)
    ]
    assert found["timing"]["devices"] == ["d0", "d1", "d2", "d3"]
    assert found["timing"]["left_out"] == []
    assert found["timing"]["timed_by"] == [3] + [4] * (MODELS - 1)
    assert found["timing"]["apart"]["most"] == pytest.approx(100_000)


def test_attack_one_device_of_three_takes_no_model_away(there: World) -> None:
    """By timing a single one: the others have timed all, and that is more than half."""
    devices = there.fleet(3)
    start(there)
    send(devices[0], report(models=times(1)))
    send(devices[1], report(models=times(1)))
    send(devices[2], report(models=times(1, range(MODELS - 1, MODELS))))
    found = json.loads(there.admin("GET", "timings/1/profile").body)
    assert len(found["models"]) == MODELS
    assert found["timing"]["left_out"] == []
    assert found["timing"]["timed_by"] == [2] * (MODELS - 1) + [3]


def test_a_model_that_half_of_the_devices_timed_is_left_out_and_named(there: World) -> None:
    """Half is not more than half, and where nothing is left there is no profile but each device's own."""
    devices = there.fleet(2)
    start(there, devices=2)
    send(devices[0], report(models=times(1, range(4))))
    send(devices[1], report(models=times(1, range(3, MODELS))))
    found = json.loads(there.admin("GET", "timings/1/profile").body)
    assert found["timing"]["left_out"] == [0, 1, 2, 4, 5, 6, 7]
    assert found["timing"]["timed_by"] == [2]
    start(there, devices=2)
    send(devices[0], report(counter=2, models=times(1, range(4))))
    send(devices[1], report(counter=2, models=times(1, range(4, MODELS))))
    nothing = there.admin("GET", "timings/2/profile")
    assert (nothing.status, nothing.json["what"]) == (
        409,
        "no model that more than half of the devices timed",
    )
    assert len(json.loads(there.admin("GET", "timings/2/profile?device=d1").body)["models"]) == 4


# Archives


def test_an_archive_is_served_as_listed(there: World) -> None:
    """Under its digest, whole, to anybody; the log of publishing names it."""
    reply = there.call("GET", "/" + target_path(TARGET, Digest.of(ARCHIVE)))
    assert (reply.status, reply.body) == (200, ARCHIVE)
    released = [one["about"].get("released") for one in there.admin("GET", "audit-log").json["entries"]]
    assert TARGET in released


def renamed(archive: bytes, old: bytes, new: bytes) -> bytes:
    """An archive in which a name stands for another of the same length, with the header's checksum made right."""
    at = archive.index(old.ljust(100, b"\0"))
    block = bytearray(archive[at : at + 512])
    block[: len(new)] = new
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return archive[:at] + bytes(block) + archive[at + 512 :]


def swapped() -> bytes:
    """An archive whose outlines are of other models."""
    parts = {"shapes": b'{"version": 1, "inputs": "sha256:%s", "models": []}' % (b"0" * 64)}
    return family_bytes(
        name="watch", version="1.0.0", hardware_class=CLASS, inputs=b"x", models=[b"y"], **parts
    )


@pytest.mark.parametrize(
    "archive",
    [
        renamed(ARCHIVE, b"0.onnx", b"../../"),
        renamed(ARCHIVE, b"0.onnx", b"/etc/x"),
        renamed(ARCHIVE, b"1.onnx", b"0.onnx"),
        ARCHIVE[:-10_240],
        ARCHIVE + bytes(10_240),
        ARCHIVE.replace(b'"kind":"timing"', b'"kind":"timinG"'),
        ARCHIVE.replace(b"teacher", b"teachex"),
        swapped(),
        b"family.json\0" + bytes(1000),
    ],
)
def test_attack_an_archive_that_is_not_sound_is_not_taken(there: World, archive: bytes) -> None:
    """Names that lead elsewhere, a second of a name, cut, grown, altered, or parts that are not of one another."""
    reply = there.admin("PUT", "blobs", archive)
    assert reply.status == 422, reply


@pytest.mark.parametrize(
    ("name", "archive"),
    [
        (target_name("watch", "2.0.0", CLASS), family(version="2.0.0")),
        (timing_name("watch", "2.0.0", CLASS), esb("2.0.0")),
        (timing_name("watch", "2.0.0", CLASS), family(version="2.0.1")),
        (timing_name("watch", "2.0.0", CLASS), family(version="2.0.0", name="other")),
        (timing_name("watch", "2.0.0", "any"), family(version="2.0.0")),
    ],
)
def test_attack_an_archive_under_another_kind_of_name_is_not_listed(
    there: World, name: str, archive: bytes
) -> None:
    """A family as a release, a bundle as a family, or another family: the list is not taken in."""
    before = there.admin("GET", "metadata/targets").body
    assert publish(there, name, archive).status in {409, 422}
    assert there.admin("GET", "metadata/targets").body == before


def test_a_family_is_no_release(there: World) -> None:
    """No list of releases shows it, no patch is made to it, and no rollout brings it."""
    publish(there, timing_name("watch", "1.1.0", CLASS), family(version="1.1.0"))
    releases = there.admin("GET", "releases").json["releases"]
    assert [one["release"] for one in releases] == ["watch/1.0.0"]
    assert list((there.folder / "patches").rglob("*")) == []
    for release in ("timing/watch", "watch/1.1.0"):
        body = {"release": release, "stages": [1.0]}
        assert there.admin("POST", "rollouts", body).status in {400, 404, 422}


def test_an_entry_that_grew_is_another_content(there: World) -> None:
    """As of a bundle: it takes a new version."""
    info = there.upload(family(MODELS + 1))
    forged = {TARGET: TargetInfo(info.size, info.digest)}
    there.targets = None
    assert there.admin("POST", "targets", there.sign(forged)).status in {409, 422}
