"""One authority hands over to the next: the files, killed anywhere; the hub's word; and who has not followed yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from hub_worlds import CLASS, Device, World, world

from edgestill.core.bundle import replace
from edgestill.core.errors import ConflictError, MessageError, PathError, ReplayError, TrustError
from edgestill.core.wire import BELIEVES_HEADER, Certify, Enrol, Enrolled, Poll
from edgestill.hub import handover
from edgestill.hub.home import Home
from edgestill.testing.clock import FakeClock
from edgestill.trust import vouched
from edgestill.trust.assignment import AssignmentKeys
from edgestill.trust.authority import LIFETIME, Authority
from edgestill.trust.certificates import Authorities, IdentityKey
from edgestill.trust.keys import SigningKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hub_worlds import Reply

DAY = 86_400.0
KEY = IdentityKey.generate()
STRANGER = SigningKey.generate()
NOW = FakeClock().now()
STEPS: dict[str, Callable[[Path], None]] = {
    "begin": lambda folder: handover.begin(folder, now=NOW),
    **handover.STEPS,
}
WAYS = {
    "settled": (),
    "announced": ("begin",),
    "switched": ("begin", "switch"),
    "back": ("begin", "switch", "back"),
    "handed over": ("begin", "switch", "finish"),
    "abandoned": ("begin", "abandon"),
}


def hub(folder: Path, *steps: str) -> Path:
    """A hub's folder after these steps."""
    Home.init(folder)
    for one in steps:
        STEPS[one](folder)
    return folder


# The files


@pytest.mark.parametrize("way", WAYS)
def test_only_the_steps_of_a_phase_can_be_taken(tmp_path: Path, way: str) -> None:
    """Every other one is refused and changes nothing."""
    can = {
        "settled": {"begin"},
        "announced": {"switch", "abandon"},
        "switched": {"back", "finish"},
        "back": {"switch", "abandon"},
        "handed over": {"begin"},
        "abandoned": {"begin"},
    }[way]
    folder = hub(tmp_path / "hub", *WAYS[way])
    for one in set(STEPS) - can:
        before = {path.name: path.read_bytes() for path in folder.glob("authority*")}
        with pytest.raises(ConflictError, match="at another step"):
            STEPS[one](folder)
        assert {path.name: path.read_bytes() for path in folder.glob("authority*")} == before
    for one in can:
        STEPS[one](hub(tmp_path / one, *WAYS[way]))


def test_the_way_from_one_authority_to_the_next(tmp_path: Path) -> None:
    """Announced, switched, finished: who is believed, who issues, whose key is left; the number of the word grows with each."""
    folder = hub(tmp_path / "hub")
    seen = [handover.standing_of(folder)]
    for one in ("begin", "switch", "finish"):
        STEPS[one](folder)
        seen.append(handover.standing_of(folder))
    old, new = seen[0].authority.authorities.digests[0], seen[3].authority.authorities.digests[0]
    assert [one.authority.authorities.digests for one in seen] == [(old,), (old, new), (new, old), (new,)]
    assert [one.phase for one in seen] == ["settled", "announced", "switched", "settled"]
    assert [one.number for one in seen] == [1, 2, 3, 4]
    assert len({one.authority.authorities.fleet for one in seen}) == 1
    assert not (folder / handover.NEXT_KEY).exists()
    assert (folder / handover.AUTHORITY_KEY).read_bytes() == seen[3].authority.key_pem()


def test_a_next_authority_has_an_end(tmp_path: Path) -> None:
    """Ten years after it was made; what it issues near its end ends with it."""
    folder = hub(tmp_path / "hub", "begin", "switch")
    authority = handover.standing_of(folder).authority
    assert authority.until == pytest.approx(NOW + LIFETIME, abs=1)
    late = authority.until - DAY
    certificate = authority.server(KEY, ["hub.example"], now=late, lifetime=30 * DAY)
    times = authority.server_times(KEY.to_pem() + certificate, ["hub.example"])
    assert times is not None
    assert times[1] == authority.until


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_anywhere_in_a_step_leaves_one_phase_or_the_other(tmp_path: Path, step: str) -> None:
    """Before or after each change of the folder; the hub starts, and the step can be taken again if it was not."""
    way = {"begin": (), "switch": ("begin",), "back": ("begin", "switch")}.get(
        step, ("begin",) if step == "abandon" else ("begin", "switch")
    )
    done, at = False, 0
    while not done:
        for fault in ("before", "after"):
            folder = hub(tmp_path / f"{at}-{fault}", *way)
            before = handover.standing_of(folder)
            done = not _killed(lambda: STEPS[step](folder), at, fault)  # noqa: B023  # run at once
            handover.standing_of(folder)
            after = Home.init(folder)
            now = handover.standing_of(folder)
            assert now.authority.authorities.digests == after.authority.authorities.digests
            assert now.number >= before.number
            if now.authority.authorities.digests == before.authority.authorities.digests:
                assert now.phase == before.phase
                STEPS[step](folder)
            assert (
                handover.standing_of(folder).phase
                == {
                    "begin": "announced",
                    "switch": "switched",
                    "back": "announced",
                    "finish": "settled",
                    "abandon": "settled",
                }[step]
            )
        at += 1
    assert at >= 2


class _Killed(BaseException):
    """The power failed."""


def _killed(work: Callable[[], None], at: int, fault: str) -> bool:
    """Whether the power failed at that change of the folder."""
    count = 0

    def changes(act: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **options: Any) -> Any:
            nonlocal count
            mine, count = count, count + 1
            if mine == at and fault == "before":
                raise _Killed
            found = act(*given, **options)
            if mine == at:
                raise _Killed
            return found

        return run

    with (
        patch("edgestill.hub.handover.replace", changes(replace)),
        patch.object(Path, "unlink", changes(Path.unlink)),
        patch.object(Path, "replace", changes(Path.replace)),
    ):
        try:
            work()
        except _Killed:
            return True
    return False


# The word


def keys_of(there: World, epoch: int = 0) -> AssignmentKeys:
    """Who may say it."""
    return AssignmentKeys((there.hub.home.key.public,), epoch=epoch)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub with a root."""
    with world(tmp_path / "hub") as made:
        made.give_root()
        yield made


def test_the_hub_says_whom_to_believe_once_a_root_lets_it(tmp_path: Path) -> None:
    """To anybody, signed by the key that root names."""
    with world(tmp_path / "hub") as there:
        assert there.call("GET", "/v1/authorities/vouched").status == 404
        there.give_root()
        reply = there.call("GET", "/v1/authorities/vouched")
        found = vouched.verify(reply.body, keys=keys_of(there), seen=0)
        assert found.authorities.digests == there.hub.home.authority.authorities.digests
        assert found.place == 1
        assert vouched.Vouched.read(reply.body).place == 1


def test_attack_a_word_that_must_not_be_gone_by(there: World) -> None:
    """Attack: another key's, an altered one, one of an earlier epoch, one older than was heard, an assignment's signature."""
    word = there.call("GET", "/v1/authorities/vouched").body
    keys = keys_of(there)
    stranger = AssignmentKeys((STRANGER.public,))
    with pytest.raises(TrustError, match="not signed as it must be"):
        vouched.verify(word, keys=stranger, seen=0)
    altered = json.loads(word)
    altered["signed"]["number"] = 2
    with pytest.raises(TrustError, match="not signed as it must be"):
        vouched.verify(json.dumps(altered).encode(), keys=keys, seen=0)
    for at, seen in ((keys_of(there, 1), 0), (keys, 2)):
        with pytest.raises(ReplayError, match="does not count any more"):
            vouched.verify(word, keys=at, seen=seen)
    other = json.loads(word)
    payload = b"edgestill-assignment-v1\n" + json.dumps(other["signed"]).encode()
    other["signatures"][0]["sig"] = there.hub.home.key.sign(payload).hex()
    with pytest.raises(TrustError, match="not signed as it must be"):
        vouched.verify(json.dumps(other).encode(), keys=keys, seen=0)


@pytest.mark.parametrize(
    "bytes_",
    [b"", b"[]", b"{}", b'{"signed": 1, "signatures": []}', b'{"signed": {"x": "\\ud800"}, "signatures": []}', b"[" * 9_000, b" " * 40_000],
    ids=["nothing", "list", "empty", "number", "surrogate", "deep", "long"],
)  # fmt: skip
def test_attack_bytes_that_are_no_word(there: World, bytes_: bytes) -> None:
    """Attack: refused with the error of a message, never another."""
    with pytest.raises(MessageError):
        vouched.verify(bytes_, keys=keys_of(there), seen=0)
    with pytest.raises(MessageError):
        vouched.Vouched.read(bytes_)


# Who has followed


def enrolled(there: World, name: str = "d0", key: IdentityKey = KEY) -> Device:
    """A device with a certificate."""
    message = Enrol(
        join_token=there.token(), device=name, hardware_class=CLASS, request=key.request().decode()
    )
    reply = there.call("POST", "/v1/enrol", message.to_bytes())
    return Device(there, name, Enrolled.from_bytes(reply.body).credential)


def polled(device: Device, believes: str = "", **headers: str) -> Reply:
    """A poll that says what the device goes by."""
    given = {BELIEVES_HEADER.replace("-", "_"): believes} if believes else {}
    return device.call("GET", "/v1/poll", b"", **given, **headers)


def said_by(there: World) -> vouched.Vouched:
    """The word that the hub says."""
    return vouched.Vouched.read(there.call("GET", "/v1/authorities/vouched").body)


def stepped(there: World, step: str, *, force: bool = False) -> Reply:
    """A step of the hand-over."""
    return there.admin("POST", f"authority/{step}", b"" if step == "begin" else {"force": force})


def digests(there: World) -> tuple[str, ...]:
    """Whom the hub believes."""
    return there.hub.home.authority.authorities.digests


def test_a_hand_over_goes_on_when_every_device_has_followed(there: World) -> None:
    """Each step is refused while a device is behind, which the status names; devices without a certificate do not count."""
    device, _ = enrolled(there), there.enrol("without")
    (old,) = digests(there)
    polled(device, f"1 {old}")
    assert stepped(there, "begin").json["phase"] == "announced"
    new = digests(there)[1]
    reply = stepped(there, "switch")
    assert (reply.status, reply.json["got"]) == (409, "1: d0")
    shown = there.admin("GET", "authority").json
    assert (shown["devices"], shown["behind"], shown["names"]) == (1, 1, ["d0"])
    poll = Poll.from_bytes(polled(device, f"1 {old}").body)
    assert poll.authorities == 2, "the poll tells of the new word"
    polled(device, f"2 {old}")
    assert stepped(there, "switch").json["phase"] == "switched"
    assert stepped(there, "finish").status == 409
    polled(device, f"3 {old}")
    assert stepped(there, "finish").json["got"] == "1: d0", "it still shows a certificate of the old one"
    polled(device, f"3 {new}")
    done = stepped(there, "finish").json
    assert (done["phase"], [one["digest"] for one in done["authorities"]]) == ("settled", [f"sha256:{new}"])
    assert digests(there) == (new,)


def test_a_next_authority_issues_only_once_it_was_switched_to(there: World) -> None:
    """Certificates come from the old one before that, and from the new one after; both are heard until the old one goes."""
    device = enrolled(there)

    def certificate() -> str:
        body = Certify(KEY.request().decode()).to_bytes()
        return str(device.call("POST", "/v1/certificate", body).json["certificate"])

    def heard(shown: str) -> int:
        there.transport.shown = shown
        try:
            return there.call("GET", "/v1/poll").status
        finally:
            there.transport.shown = None

    (old,) = digests(there)
    first = certificate()
    stepped(there, "begin")
    believed = there.hub.home.authority.authorities
    assert believed.member(certificate().encode()).issuer == old
    stepped(there, "switch", force=True)
    second = certificate()
    assert believed.member(second.encode()).issuer == digests(there)[0] != old
    assert (heard(first), heard(second)) == (200, 200)
    stepped(there, "finish", force=True)
    assert (heard(first), heard(second)) == (401, 200)


def test_a_next_authority_may_be_abandoned(there: World) -> None:
    """Also after it has issued, once the one before issues again; not while a device shows its certificate."""
    device = enrolled(there)
    (old,) = digests(there)
    stepped(there, "begin")
    assert stepped(there, "abandon").json["phase"] == "settled"
    stepped(there, "begin")
    new = digests(there)[1]
    stepped(there, "switch", force=True)
    polled(device, f"5 {new}")
    assert stepped(there, "abandon", force=True).status == 409
    assert stepped(there, "back").json["phase"] == "announced"
    assert stepped(there, "abandon").json["got"] == "1: d0"
    polled(device, f"6 {old}")
    assert stepped(there, "abandon").json["phase"] == "settled"
    assert digests(there) == (old,)


@pytest.mark.parametrize(("way", "step"), [("switched", "finish"), ("announced", "abandon")])
def test_a_step_whose_tidying_fails_is_taken(there: World, way: str, step: str) -> None:
    """It has taken effect: the hub serves and says what its folder says, and `init` puts the keys in order."""
    for one in WAYS[way]:
        stepped(there, one, force=True)
    failed = PathError("no room", where="authority.next.key", expected="room", got="none", fix="make some")
    with patch("edgestill.hub.handover.settle", side_effect=failed):
        done = stepped(there, step, force=True)
    assert (done.status, done.json["phase"], len(done.json["authorities"])) == (200, "settled", 1)
    assert said_by(there).authorities.digests == digests(there)
    assert (there.folder / handover.NEXT_KEY).exists()
    told = handover.standing_of(there.folder)
    handover.settle(there.folder)
    assert not (there.folder / handover.NEXT_KEY).exists()
    assert handover.standing_of(there.folder).authority.authorities == told.authority.authorities


@pytest.mark.parametrize("step", ["switch", "finish", "abandon"])
def test_a_step_that_fails_after_it_took_effect_is_gone_by(there: World, step: str) -> None:
    """Whatever the answer was: the hub issues and says as its folder says, and who waits hears of it."""
    for one in {"switch": ("begin",), "finish": ("begin", "switch"), "abandon": ("begin",)}[step]:
        stepped(there, one, force=True)
    taken = handover.STEPS[step]

    def breaks(folder: Path) -> None:
        taken(folder)
        raise PathError("a disk", where=folder, expected="a whole one", got="another", fix="change it")

    with patch.dict(handover.STEPS, {step: breaks}):
        assert stepped(there, step, force=True).status == 500
    found = handover.standing_of(there.folder)
    assert digests(there) == found.authority.authorities.digests
    said = said_by(there)
    assert (said.authorities.digests, said.number) == (digests(there), found.number)


def test_a_poll_that_waits_hears_of_a_new_word(there: World) -> None:
    """A tag names the word, too: what is assigned is the same, and the poll is answered all the same."""
    device = enrolled(there)
    tag = polled(device).headers["etag"]
    assert polled(device, if_none_match=tag).status == 304
    stepped(there, "begin")
    reply = polled(device, if_none_match=tag)
    assert (reply.status, Poll.from_bytes(reply.body).authorities) == (200, 2)


@pytest.mark.parametrize(
    "said", ["", "1", "x y", "-1 -", "99999999999999999 -", "1 " + "g" * 64, "1 - ", "9" * 16 + " -"]
)
def test_attack_nonsense_of_what_a_device_believes(there: World, said: str) -> None:
    """Attack: it is not written down, and the poll is answered."""
    device = enrolled(there)
    assert polled(device, said).status == 200
    stepped(there, "begin")
    assert there.admin("GET", "authority").json["behind"] == 1


def test_attack_a_place_that_the_hub_has_not_come_to(there: World) -> None:
    """Attack: a device that says that it goes by a word of later is not taken to have followed the next one."""
    device = enrolled(there)
    (old,) = digests(there)
    assert polled(device, f"2 {old}").status == 200
    assert polled(device, f"{2**40 - 1} {old}").status == 200
    stepped(there, "begin")
    assert there.admin("GET", "authority").json["behind"] == 1
    assert stepped(there, "switch").status == 409
    polled(device, f"2 {old}")
    assert stepped(there, "switch").status == 200


def test_a_hand_over_outlives_a_restart(tmp_path: Path) -> None:
    """The hub goes on where it stood."""
    for step, phase in (("begin", "announced"), ("switch", "switched"), ("finish", "settled")):
        with world(tmp_path / "hub") as there:
            there.admin("GET", "authority")
            assert stepped(there, step, force=True).status == 200
            told = digests(there)
        with world(tmp_path / "hub") as again:
            assert again.admin("GET", "authority").json["phase"] == phase
            assert digests(again) == told


def test_the_hub_warns_well_before_its_authority_ends(tmp_path: Path) -> None:
    """A year before, in its log and its status; not earlier."""
    with world(tmp_path / "hub") as there:
        until = there.hub.home.authority.until
        assert there.admin("GET", "authority").json["warning"] == ""
        there.clock.advance(until - there.clock.now() - 364 * DAY)
        assert "ends in 364 days" in there.admin("GET", "authority").json["warning"]
        stepped(there, "begin")
        stepped(there, "switch", force=True)
        assert there.admin("GET", "authority").json["warning"] == ""


def test_an_older_authority_without_an_end_hands_over_as_well(tmp_path: Path) -> None:
    """Fleets of earlier versions have one."""
    folder = tmp_path / "hub"
    Home.init(folder)
    old = Authority.create("0123456789abcdef")
    replace(folder / handover.AUTHORITY_KEY, old.key_pem())
    replace(folder / handover.AUTHORITIES, old.authorities.to_pem())
    assert old.until > NOW + 100 * LIFETIME
    handover.begin(folder, now=NOW)
    handover.switch(folder)
    assert (
        Authorities.from_pem((folder / handover.AUTHORITIES).read_bytes()).digests[1]
        == old.authorities.digests[0]
    )
