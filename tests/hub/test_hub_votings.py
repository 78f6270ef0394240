"""Voting rounds at a hub: whose turn it is, which ballots count, and what is told of them."""

from __future__ import annotations

import itertools
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hub_worlds import CLASS, DAY, Device, Reply, World, answer, esb, world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import ReplayError
from edgestill.core.jsonio import canonical
from edgestill.core.proxyset import proxy_set_bytes
from edgestill.core.release import proxy_name, target_name, timing_name
from edgestill.core.wire import MAX_SEQUENCE, Poll
from edgestill.hub import votings
from edgestill.learn.outcomes import outcome_of
from edgestill.learn.proxysets import pack, question_of, samples_of
from edgestill.learn.votes import ABSTAIN, MAX_BYTES, Ballot, Cast, tally
from edgestill.trust.assignment import AssignmentKeys, verify_turn
from edgestill.trust.metadata import TargetInfo
from edgestill.trust.repository import target_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike

    from edgestill.learn.votes import Outcome, Question

TARGET = proxy_name("watch", "1.0.0")
SAMPLES = np.arange(24, dtype=np.float32).reshape(6, 4)
ARCHIVE = pack(SAMPLES, name="watch", version="1.0.0", labels=("walk", "sit", "run"))
STUDENT = Digest.of(b"a student")


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub that lists a release and a proxy set."""
    with world(tmp_path / "hub") as one:
        one.give_root()
        one.publish("1.0.0")
        assert publish(one, TARGET, ARCHIVE).status == 200
        yield one


def publish(there: World, name: str, archive: bytes, *, remove: tuple[str, ...] = ()) -> Reply:
    """Uploads an archive and lists it under a name."""
    targets = there.sign({name: there.upload(archive)}, remove)
    reply = there.admin("POST", "targets", targets)
    if reply.status == 200:
        there.targets = targets
    return reply


def question(there: World) -> Question:
    """What the hub asks about the set."""
    digest = Digest.of(ARCHIVE)
    return question_of(digest, there.hub.artefacts.proxy_set(digest.hex).head)


def start(there: World, **more: Any) -> Any:
    """Opens a round; what the hub answers."""
    reply = there.admin("POST", "votings", {"target": TARGET, **more})
    assert reply.status == 201, reply
    return reply.json


def turn_of(device: Device) -> Any:
    """What a device is told to vote on, signed; None for nothing."""
    return device.call("GET", "/v1/poll").json.get("vote")


def ballot(there: World, labels: ArrayLike = (0, 1, 2, 0, 1, 2), student: Digest = STUDENT) -> bytes:
    """These votes."""
    return Ballot.of(question(there), student=student, labels=np.array(labels)).to_bytes()


def send(device: Device, body: bytes, *, number: int = 1, sequence: int | str = 1, id_: str = "") -> Reply:
    """Hands a ballot over."""
    headers = {"x_edgestill_id": id_ or f"id-{sequence}", "x_edgestill_sequence": str(sequence)}
    return device.call("POST", f"/v1/evidence/votes/{number}", body, **headers)


def outcome(there: World, number: int = 1, **body: Any) -> Outcome:
    """What came together, as the hub tells it."""
    reply = there.admin("POST", f"votings/{number}/outcome", body)
    assert reply.status == 200, reply
    return told(reply)


def told(reply: Reply) -> Outcome:
    """The outcome in an answer."""
    found = answer(reply)
    kinds = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8"}
    arrays: dict[str, Any] = {
        one.name: np.frombuffer(one.data, kinds[one.datatype]).reshape(one.shape) for one in found.outputs
    }
    arrays |= {name: np.array(found.parameters[name]) for name in ("proxy", "voters", "students")}
    return outcome_of(arrays)


def states(there: World, number: int = 1) -> dict[str, str]:
    """Device -> how it stands in a round."""
    return {
        name: one["state"] for name, one in there.admin("GET", f"votings/{number}").json["devices"].items()
    }


# Whose turn


def test_a_round_reaches_its_devices_signed_beside_their_assignment(there: World) -> None:
    """By the number of the round; a device of old reads the poll as before, and sees nothing of it."""
    device = there.enrol("d0")
    there.roll_out("watch/1.0.0")
    before = device.call("GET", "/v1/poll").json["assignment"]
    assert start(there) == {"id": 1, "devices": 1}
    poll = device.call("GET", "/v1/poll")
    assert poll.json["assignment"] == before
    envelope = Poll.from_bytes(poll.body).vote
    assert envelope is not None
    keys = AssignmentKeys((there.online,))
    found = verify_turn(envelope, keys=keys, device="d0", seen=0, now=there.clock.now())
    assert (found.target, found.counter) == (TARGET, 1)
    with pytest.raises(ReplayError):
        verify_turn(envelope, keys=keys, device="d1", seen=0, now=there.clock.now())


def test_who_carries_the_labels_and_is_of_the_class_has_a_turn(there: World) -> None:
    """Also who comes while the round is open; no other, and none that was revoked or asks by another interface."""
    north = there.enrol("d0", place="north")
    south = there.enrol("d1", place="south")
    other = there.enrol("d2", place="north", hardware_class="aarch64-dotprod-onnxruntime")
    assert start(there, labels={"place": "north"}, hardware_class=CLASS)["devices"] == 1
    later = there.enrol("d3", place="north")
    assert [turn_of(one) is None for one in (north, south, other, later)] == [False, True, True, False]
    there.admin("POST", "devices/d3/revoke")
    assert states(there) == {"d0": "waited for"}


def test_a_round_of_all_classes_is_for_all(there: World) -> None:
    """Students of other architectures are what votes are for."""
    devices = [there.enrol("d0"), there.enrol("d1", hardware_class="aarch64-dotprod-onnxruntime")]
    start(there)
    for device in devices:
        assert turn_of(device) is not None
        assert send(device, ballot(there, student=Digest.of(device.id.encode()))).json == {"accepted": True}
    assert outcome(there).students == 2


def test_the_same_turn_has_the_same_tag_until_half_of_its_life_is_over(there: World) -> None:
    """So that polls wait; what changes is told at once."""
    device = there.enrol("d0")
    start(there)
    tag = device.call("GET", "/v1/poll").headers["etag"]
    assert device.call("GET", "/v1/poll", if_none_match=tag).status == 304
    there.admin("POST", "votings/1/close")
    assert device.call("GET", "/v1/poll", if_none_match=tag).status == 200


def test_a_poll_that_waits_is_woken_by_a_round_and_by_its_end(there: World) -> None:
    """As by an assignment."""
    device = there.enrol("d0")
    orders: list[tuple[str, dict[str, Any]]] = [("votings", {"target": TARGET}), ("votings/1/close", {})]
    for path, body in orders:
        tag = device.call("GET", "/v1/poll").headers["etag"]
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(device.call, "GET", "/v1/poll?wait=20", if_none_match=tag)
            while "d0" not in there.hub.bell._waiting:
                pass
            there.admin("POST", path, body)
            assert waiting.result(timeout=10).status == 200


def test_a_device_has_one_open_round_at_a_time(there: World) -> None:
    """A second one for some of the same devices is refused until the first is closed; one for others is not."""
    start(there, labels={"place": "north"})
    assert start(there, labels={"place": "south"})["id"] == 2
    for more in ({}, {"labels": {"place": "north"}}, {"labels": {"room": "1"}}, {"hardware_class": CLASS}):
        reply = there.admin("POST", "votings", {"target": TARGET, **more})
        assert (reply.status, reply.json["what"]) == (409, "another voting round is open")
    there.admin("POST", "votings/1/close")
    there.admin("POST", "votings/2/close")
    assert start(there, hardware_class=CLASS)["id"] == 3
    assert start(there, hardware_class="aarch64-dotprod-onnxruntime")["id"] == 4
    assert there.admin("POST", "votings/1/close").status == 409


def test_there_is_a_bound_on_open_rounds(there: World) -> None:
    """Each poll looks at all of them."""
    for number in range(votings.MOST_OPEN):
        start(there, labels={"room": str(number)})
    reply = there.admin("POST", "votings", {"target": TARGET, "labels": {"room": "another"}})
    assert (reply.status, reply.json["what"]) == (409, "too many voting rounds are open")


@pytest.mark.parametrize(
    "body",
    [
        {"target": proxy_name("watch", "6.6.6")},
        {"target": target_name("watch", "1.0.0", CLASS)},
        {"target": timing_name("watch", "1.0.0", CLASS)},
        {"target": TARGET, "seconds": 59},
        {"target": TARGET, "seconds": votings.LONGEST + 1},
        {"target": TARGET, "hardware_class": "a/b"},
        {"target": TARGET, "more": 1},
        {},
    ],
)
def test_what_cannot_be_voted_on_is_refused(there: World, body: dict[str, Any]) -> None:
    """Not listed, a bundle, a family of models, or no sensible time."""
    there.enrol("d0")
    assert there.admin("POST", "votings", body).status in {400, 404, 422}
    assert there.admin("GET", "votings").json["votings"] == []


def test_a_round_ends_when_its_time_is_over(there: World) -> None:
    """Also before the hub has written that down; what was cast stays."""
    device = there.enrol("d0")
    start(there, seconds=DAY)
    send(device, ballot(there))
    there.clock.advance(DAY)
    late = send(device, ballot(there), sequence=2)
    assert (late.status, late.json["what"]) == (422, "votes in a round that is over")
    assert turn_of(device) is None
    found = there.admin("GET", "votings/1").json
    assert (found["state"], found["reason"]) == ("expired", "its time is over")
    assert found["devices"]["d0"]["votes"] == 6
    assert outcome(there).voters == 1


def test_a_round_ends_when_its_set_is_retired(there: World) -> None:
    """The publisher's word ends what it began, and what was cast can still be put together."""
    device = there.enrol("d0")
    start(there)
    send(device, ballot(there))
    targets = there.sign({}, (TARGET,))
    assert there.admin("POST", "targets", targets).status == 200
    assert turn_of(device) is None
    assert there.admin("GET", "votings/1").json["state"] == "retired"
    assert outcome(there).voters == 1


def test_no_device_is_given_more_time_than_its_round_has(there: World) -> None:
    """What it is told ends with the round."""
    device = there.enrol("d0")
    closes = there.clock.now() + 90
    start(there, seconds=90)
    assert turn_of(device)["signed"]["expires"] == int(closes)


# Which ballots count


def test_of_each_device_the_newest_ballot_counts_once(there: World) -> None:
    """Whatever comes twice, or late; and why it did not count is told and counted."""
    device = there.enrol("d0")
    start(there)
    first, second = ballot(there, (0,) * 6), ballot(there, (1,) * 6)
    assert send(device, second, sequence=2).json == {"accepted": True}
    assert send(device, second, sequence=2).json == {"accepted": False, "reason": "known already"}
    assert send(device, first, sequence=1).json == {"accepted": False, "reason": "older than what counts"}
    assert outcome(there).soft.argmax(axis=1).tolist() == [1] * 6
    assert send(device, first, sequence=3).json == {"accepted": True}
    found = outcome(there)
    assert (found.soft.argmax(axis=1).tolist(), found.voters) == ([0] * 6, 1)
    refused = there.admin("GET", "evidence").json["refused"]
    assert {reason: one["messages"] for reason, one in refused.items()} == {
        "known already": 1,
        "older than what counts": 1,
    }


@given(
    order=st.permutations(range(6)),
    repeats=st.lists(st.integers(0, 5), max_size=4),
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_outcome_is_that_of_the_ballots_whatever_their_order(
    tmp_path_factory: pytest.TempPathFactory, order: Sequence[int], repeats: Sequence[int]
) -> None:
    """As if each device had sent its newest one alone."""
    rng = np.random.default_rng(3)
    votes = {(name, place): rng.integers(ABSTAIN, 3, 6) for name in ("d0", "d1") for place in (1, 2, 3)}
    with world(tmp_path_factory.mktemp("order") / "hub") as there:
        there.give_root()
        publish(there, TARGET, ARCHIVE)
        devices = {one.id: one for one in there.fleet(2)}
        start(there)
        sent = list(votes)
        for index in itertools.chain(order, repeats):
            name, place = sent[index]
            reply = send(devices[name], ballot(there, votes[name, place]), sequence=place)
            assert reply.status == 200
        asked = question(there)
        newest = [
            Cast(
                voter=name,
                sequence=3,
                ballot=Ballot.of(asked, student=STUDENT, labels=votes[name, 3]),
            )
            for name in ("d0", "d1")
        ]
        expected, found = tally(asked, newest), outcome(there)
        assert np.allclose(found.soft, expected.soft, atol=1e-6)
        assert found.voted.tolist() == expected.voted.tolist()
        assert found.question == asked


def test_weights_say_who_is_heard_how_loudly(there: World) -> None:
    """One of weight 0 is not heard; weights out of range are refused."""
    one, other = there.fleet(2)
    start(there)
    send(one, ballot(there, (0,) * 6))
    send(other, ballot(there, (1,) * 6))
    assert outcome(there, weights={"d0": 0.25}).soft[0].tolist() == pytest.approx([0.2, 0.8, 0.0])
    assert outcome(there, weights={"d0": 0}).voters == 1
    for body in ({"weights": {"d0": 1.1}}, {"weights": {"d0": -0.1}}, {"weights": 3}, {"teacher": 1}):
        assert there.admin("POST", "votings/1/outcome", body).status == 400


def test_attack_a_name_that_is_mistyped_does_not_leave_a_liar_at_full_weight(there: World) -> None:
    """Attack: a weight for a device that has not voted is refused, and says which."""
    device, _ = there.fleet(2)
    start(there)
    send(device, ballot(there, (0,) * 6))
    reply = there.admin("POST", "votings/1/outcome", {"weights": {"d0": 0, "d00": 0}})
    assert reply.status == 400
    assert "d00" in str(reply.json)
    assert there.admin("POST", "votings/1/outcome", {"weights": {"d1": 0}}).status == 400


def test_attack_a_ballot_on_another_question_is_refused_and_counted(there: World) -> None:
    """Attack: of a set that resembles it, with the same numbers of samples and classes."""
    device = there.enrol("d0")
    start(there)
    other = question_of(Digest.of(b"another"), there.hub.artefacts.proxy_set(Digest.of(ARCHIVE).hex).head)
    body = Ballot.of(other, student=STUDENT, labels=np.zeros(6, np.int64)).to_bytes()
    reply = send(device, body)
    assert (reply.status, reply.json["what"]) == (422, "votes on another question")
    assert there.admin("GET", "evidence").json["refused"]["votes on another question"]["most"] == {"d0": 1}
    assert outcome(there).voters == 0


@pytest.mark.parametrize("body", [b"", b"{}", b"ESV1", b"ESV1" + bytes(40)])
def test_attack_what_is_no_ballot_is_refused(there: World, body: bytes) -> None:
    """Attack: nothing of it is kept."""
    device = there.enrol("d0")
    start(there)
    assert send(device, body).status in {400, 422}
    assert send(device, ballot(there) + b"\1").status == 400
    assert states(there) == {"d0": "waited for"}


def test_attack_a_ballot_without_end_is_not_read(there: World) -> None:
    """Attack: it is bounded before it is looked at, and counted."""
    device = there.enrol("d0")
    start(there)
    assert send(device, bytes(MAX_BYTES + 1)).status == 413
    assert "a message is too long" in there.admin("GET", "evidence").json["refused"]


def test_attack_a_device_does_not_keep_the_hub_busy_with_ballots(there: World) -> None:
    """Attack: each has to be read; further ones are answered at once, and others' are not held up."""
    one, other = there.fleet(2)
    start(there)
    found = [send(one, b"x", sequence=place).status for place in range(20)]
    assert found == [400] * 8 + [429] * 12
    assert send(other, ballot(there)).status == 200
    there.clock.advance(10)
    assert send(one, ballot(there), sequence=30).status == 200


def test_attack_who_has_no_turn_does_not_vote(there: World) -> None:
    """Attack: a device of another cohort, one that was revoked, a stranger, and one in a round that there is not."""
    inside = there.enrol("d0", place="north")
    outside = there.enrol("d1", place="south")
    start(there, labels={"place": "north"})
    assert send(outside, ballot(there)).json["what"] == "votes in a round of other devices"
    assert send(Device(there, "eve", "esd1.nothing"), ballot(there)).status == 401
    for number in (2, 2**63, 10**30):
        assert send(inside, ballot(there), number=number).status == 404
    there.admin("POST", "devices/d0/revoke")
    assert send(inside, ballot(there)).status == 401
    assert outcome(there).voters == 0


def test_attack_what_a_revoked_device_had_cast_does_not_count(there: World) -> None:
    """Attack: a device that is found out takes its votes with it, whenever it cast them."""
    one, other = there.fleet(2)
    start(there)
    send(one, ballot(there, (0,) * 6))
    send(other, ballot(there, (1,) * 6))
    there.admin("POST", "devices/d0/revoke")
    found = outcome(there)
    assert (found.voters, found.soft.argmax(axis=1).tolist()) == (1, [1] * 6)
    assert states(there) == {"d0": "revoked", "d1": "voted"}


def test_attack_a_ballot_of_an_earlier_round_says_nothing_of_the_next(there: World) -> None:
    """Attack: each round has ballots of its own, and a closed one takes none."""
    device = there.enrol("d0")
    start(there)
    send(device, ballot(there))
    there.admin("POST", "votings/1/close")
    start(there)
    assert send(device, ballot(there)).status == 422
    assert outcome(there, 2).voters == 0
    assert outcome(there, 1).voters == 1


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x_edgestill_id": "one"},
        {"x_edgestill_sequence": "1"},
        {"x_edgestill_id": "a b", "x_edgestill_sequence": "1"},
        {"x_edgestill_id": "one", "x_edgestill_sequence": "-1"},
        {"x_edgestill_id": "one", "x_edgestill_sequence": str(MAX_SEQUENCE + 1)},
    ],
)
def test_attack_a_ballot_without_id_or_place_is_refused(there: World, headers: dict[str, str]) -> None:
    """Attack: without them nobody could tell a repeat, or which is newer."""
    device = there.enrol("d0")
    start(there)
    assert device.call("POST", "/v1/evidence/votes/1", ballot(there), **headers).status == 400
    assert outcome(there).voters == 0


def test_many_ballots_are_put_together_some_at_a_time(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are; and no more devices are named than anybody reads."""
    monkeypatch.setattr(votings, "_CHUNK", 2)
    monkeypatch.setattr(votings, "MOST_TOLD", 6)
    devices = there.fleet(7)
    start(there)
    for place, device in enumerate(devices[:5]):
        labels = (place % 3,) * 5 + (ABSTAIN,)
        send(device, ballot(there, labels, Digest.of(b"%d" % (place % 2))))
    found = outcome(there, weights={"d4": 0.5, "d3": 0})
    assert (found.voters, found.students) == (4, 2)
    assert found.soft[0].tolist() == pytest.approx([1 / 3.5, 1.5 / 3.5, 1 / 3.5])
    assert (found.voted.tolist(), found.weight[5]) == ([4] * 5 + [0], 0.0)
    shown = there.admin("GET", "votings/1").json
    assert shown["counts"] == {"voted": 5, "waited for": 2, "revoked": 0}
    assert sorted(one["state"] for one in shown["devices"].values()) == ["voted"] * 5 + ["waited for"]


# What the publisher lists


def test_a_proxy_set_is_served_and_is_no_release(there: World) -> None:
    """By digest, to anybody; nothing can be rolled out of it."""
    path = target_path(TARGET, Digest.of(ARCHIVE))
    assert there.call("GET", f"/{path}").body == ARCHIVE
    assert [one["release"] for one in there.admin("GET", "releases").json["releases"]] == ["watch/1.0.0"]
    found = there.hub.artefacts.proxy_set(Digest.of(ARCHIVE).hex)
    assert samples_of(found).tolist() == SAMPLES.tolist()


def test_attack_a_proxy_set_with_numbers_that_are_none_is_not_taken_in(there: World) -> None:
    """Attack: NaN is found before the list can name it."""
    samples = np.full((6, 4), np.nan, "<f4").tobytes()
    given_: dict[str, Any] = {"name": "watch", "version": "2.0.0", "labels": ("a", "b"), "shape": (4,)}
    reply = there.admin("PUT", "blobs", proxy_set_bytes(datatype="FP32", samples=samples, **given_))
    assert (reply.status, reply.json["what"]) == (422, "samples that are not finite")


def test_attack_a_proxy_set_whose_samples_are_others_is_not_taken_in(there: World) -> None:
    """Attack: every byte is compared with what the head says."""
    altered = bytearray(ARCHIVE)
    altered[1024 + 512] ^= 1
    assert there.admin("PUT", "blobs", bytes(altered)).status in {400, 422}


def test_attack_a_list_that_names_an_archive_as_what_it_is_not_is_not_taken_in(there: World) -> None:
    """Attack: a set as a bundle or under another name, and a bundle as a set."""
    names = (
        proxy_name("watch", "2.0.0"),
        target_name("watch", "2.0.0", CLASS),
        timing_name("x", "1.0.0", CLASS),
    )
    info = there.upload(ARCHIVE)
    for name in names:
        assert there.admin("POST", "targets", there.sign({name: info})).status == 409
    bundle = there.upload(esb("3.0.0"))
    wrong = there.sign({proxy_name("watch", "3.0.0"): TargetInfo(bundle.size, bundle.digest)})
    assert there.admin("POST", "targets", wrong).status == 409


# What is kept


def test_what_is_asked_of_a_round_is_in_the_audit_log(there: World) -> None:
    """Who opened, closed, and read it."""
    there.enrol("d0")
    start(there)
    outcome(there)
    there.admin("POST", "votings/1/close")
    entries = there.admin("GET", "audit-log").json["entries"]
    found = [one["what"] for one in entries if one["what"].startswith("voting.")]
    assert list(dict.fromkeys(found)) == ["voting.start", "voting.outcome", "voting.close"]


def test_what_was_cast_outlives_the_hub(tmp_path: Path) -> None:
    """A ballot that was accepted is in the database, with its place."""
    with world(tmp_path / "hub") as there:
        there.give_root()
        publish(there, TARGET, ARCHIVE)
        device = there.enrol("d0")
        start(there)
        send(device, ballot(there), sequence=5)
        path = there.hub.home.database
    database = sqlite3.connect(path)
    (kept,) = database.execute("SELECT sequence FROM ballots").fetchone()
    database.close()
    assert kept == 5


def test_what_is_told_of_a_round_names_no_votes(there: World) -> None:
    """Only how many each device cast, and of which network."""
    device = there.enrol("d0")
    start(there)
    send(device, ballot(there, (0, ABSTAIN, 2, ABSTAIN, 1, 1)))
    shown = there.admin("GET", "votings/1").json["devices"]["d0"]
    assert shown | {"heard_at": 0} == {
        "state": "voted",
        "votes": 4,
        "student": STUDENT.hex[:16],
        "heard_at": 0,
    }
    assert there.admin("GET", "votings").json["votings"][0]["voted"] == 1
    assert canonical(there.admin("GET", "votings/1").json).count(b"labels") == 1
