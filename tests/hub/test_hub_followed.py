"""Devices follow their fleet's authority, over real TLS: step by step, after they were away, and when its key was stolen."""

from __future__ import annotations

import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from hub_followers import Follower, Serving, publish, serving
from hub_processes import Process

from edgestill.cli.delivering import let_speak
from edgestill.core.bundle import replace
from edgestill.core.clock import SystemClock
from edgestill.core.errors import (
    ConflictError,
    EdgestillError,
    PathError,
    ReplayError,
    TrustError,
    UnreachableError,
)
from edgestill.core.wire import Certified
from edgestill.device.word import PAUSE
from edgestill.hub import handover
from edgestill.hub.home import Home
from edgestill.link.control import ControlClient
from edgestill.link.tls import unverified_context
from edgestill.trust import vouched
from edgestill.trust.assignment import AssignmentKeys
from edgestill.trust.authority import Authority
from edgestill.trust.certificates import IdentityKey, Requested
from edgestill.trust.publisher import Publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    """Of the fleet."""
    return Publisher.init(tmp_path / "publisher", None)


def port_of(hub: Serving) -> int:
    """Where it listens, for its successor."""
    return int(hub.url.rpartition(":")[2])


@contextmanager
def thieving(folder: Path, port: int, server: bytes) -> Iterator[None]:
    """Another hub on the same address, with a certificate that the stolen key has made."""
    path = folder / "made.pem"
    path.write_bytes(server)
    (folder / "ready").unlink(missing_ok=True)
    options = ("--tls-certificate", str(path), "--tls-key", str(path), "--port", str(port))
    process = Process(folder, *options)
    try:
        process.url()
        yield
    finally:
        process.stop(signal.SIGTERM)


@pytest.mark.slow
def test_a_device_follows_from_one_authority_to_the_next(tmp_path: Path, publisher: Publisher) -> None:
    """Each step waits for it, and at no time is the hub a stranger to it, or it to the hub."""
    with serving(tmp_path) as hub:
        publish(publisher, hub.operator(), "1.0.0")
        device = Follower(tmp_path / "device", hub)
        (old,) = device.believes
        device.poll()
        hub.operator().hand_over("begin")
        with pytest.raises(ConflictError, match="devices have not followed yet"):
            hub.operator().hand_over("switch")
        device.poll()  # hears of it, and believes both
        assert device.believes[0] == old
        new = device.believes[1]
        device.poll()  # says so
        hub.operator().hand_over("switch")
        device.poll()  # hears of it over a connection that was open
        device.start()
        device.poll()  # a new connection, to a hub that shows a certificate of the new one: asks for one, too
        assert (device.believes, device.issuer) == ((new, old), new)
        device.poll()
        assert hub.operator().hand_over("finish")["phase"] == "settled"
        device.poll()
        device.start()
        device.poll()
        assert (device.believes, device.issuer) == ((new,), new)
        assert hub.operator().authority()["behind"] == 0
        device.close()


@pytest.mark.slow
def test_a_device_that_was_away_for_the_whole_hand_over_finds_its_hub_again(
    tmp_path: Path, publisher: Publisher
) -> None:
    """Everything was forced: the hub is a stranger once, then the word explains it, and the credential brings a certificate."""
    with serving(tmp_path) as hub:
        publish(publisher, hub.operator(), "1.0.0")
        device = Follower(tmp_path / "device", hub)
        device.poll()
        device.close()
        for step in ("begin", "switch", "finish"):
            hub.operator().hand_over(step, force=True)
        port = port_of(hub)
    with serving(tmp_path, port) as hub:
        device.start()
        device.later()
        with pytest.raises(UnreachableError):
            device.poll()
        device.poll()
        (new,) = device.believes
        assert new == Home.open(hub.process.home).authority.authorities.digests[0]
        assert device.issuer == new
        device.close()


@pytest.mark.slow
def test_attack_a_stolen_authority_key(tmp_path: Path, publisher: Publisher) -> None:
    """Attack: the thief answers in the hub's place, and leads nobody to an authority of its own; once devices have followed, it is a stranger."""
    with serving(tmp_path) as hub:
        publish(publisher, hub.operator(), "1.0.0")
        device = Follower(tmp_path / "device", hub)
        device.poll()
        stolen = Home.open(hub.process.home).authority
        port = port_of(hub)
        believed = device.believes
        device.close()
    thief = tmp_path / "thief"
    its = Home.init(thief / "hub")
    server = IdentityKey.generate()
    now = SystemClock().now()
    certificate = stolen.server(server, ["127.0.0.1"], now=now, lifetime=86_400)

    with thieving(thief, port, server.to_pem() + certificate):
        device.start()
        device.later()
        for _ in range(3):
            with pytest.raises(EdgestillError):
                device.poll()
            device.later()
        assert device.believes == believed, "it does not go over to the thief's"
        device.close()
    with serving(tmp_path, port) as hub:
        for step in ("begin", "switch", "finish"):
            hub.operator().hand_over(step, force=True)
        device.start()
        device.later()
        with pytest.raises(UnreachableError):
            device.poll()
        device.poll()
        assert device.believes == Home.open(hub.process.home).authority.authorities.digests
        device.close()
    with thieving(thief, port, server.to_pem() + certificate):
        device.start()
        device.later()
        with pytest.raises(UnreachableError):
            device.poll()
        assert its.authority.authorities.digests[0] not in device.believes
        assert stolen.authorities.digests[0] not in device.believes
        device.close()


@pytest.mark.slow
def test_attack_both_keys_of_the_hub_stolen(tmp_path: Path, publisher: Publisher) -> None:
    """Attack: the thief signs the largest number there is, of its own authority. The publisher's next root ends what its key says."""
    with serving(tmp_path) as hub:
        publish(publisher, hub.operator(), "1.0.0")
        device = Follower(tmp_path / "device", hub)
        device.poll()
        stolen = Home.open(hub.process.home)
        port = port_of(hub)
        device.close()
    its = Authority.create(stolen.authority.authorities.fleet)
    keys = AssignmentKeys((stolen.key.public,))
    forged = vouched.sign(vouched.Vouched(its.authorities, 2**40 - 1), stolen.key)
    assert device.papers.vouch(forged, keys), (
        "who has both keys is believed, until the publisher says otherwise"
    )
    (stolen.folder / "online.pem").unlink()
    with serving(tmp_path, port) as hub:
        let_speak(publisher, hub.operator(), may_change=True)
        for step in ("begin", "switch", "finish"):
            hub.operator().hand_over(step, force=True)
        device.start()
        device.later()
        with pytest.raises(UnreachableError):
            device.poll()
        device.poll()
        own = Home.open(hub.process.home).authority.authorities.digests
        assert (device.believes, device.issuer) == (own, own[0])
        with pytest.raises(TrustError):
            device.papers.vouch(forged, device.trusted.assignment_keys)
        device.close()


def test_an_answer_with_a_certificate_changes_nothing_of_whom_a_device_believes(
    tmp_path: Path, publisher: Publisher
) -> None:
    """Once it has heard a word: that alone does, and a certificate of another authority is refused."""
    with serving(tmp_path) as hub:
        publish(publisher, hub.operator(), "1.0.0")
        device = Follower(tmp_path / "device", hub)
        device.poll()
        before = device.believes
        other = Authority.create("f" * 16)
        requested = Requested.from_pem(device.papers.request())
        made = other.device(requested, "d0", now=device.clock.now(), lifetime=86_400)
        answer = Certified(certificate=made.decode(), authorities=other.authorities.to_pem().decode())
        with pytest.raises(TrustError):
            device.papers.accept(answer)
        assert device.believes == before
        device.close()


def test_a_stranger_is_looked_into_once_in_a_while(tmp_path: Path, publisher: Publisher) -> None:
    """A hub of another fleet on the same address costs a look, and not one for each poll; it stays a stranger."""
    with serving(tmp_path) as hub:
        publish(publisher, hub.operator(), "1.0.0")
        device = Follower(tmp_path / "device", hub)
        device.poll()
        before, port = device.believes, port_of(hub)
        device.close()
    device.start()
    device.later()
    (tmp_path / "other").mkdir()
    with (
        serving(tmp_path / "other", port),
        patch("edgestill.device.word.unverified_context", wraps=unverified_context) as looks,
    ):
        for _ in range(3):
            with pytest.raises(UnreachableError):
                device.poll()
        assert looks.call_count == 1
        device.clock.advance(PAUSE)
        with pytest.raises(UnreachableError):
            device.poll()
        assert looks.call_count == 2
    assert device.believes == before
    device.close()


def test_a_kill_while_a_word_is_kept_leaves_one_that_is_heard_again(
    tmp_path: Path, publisher: Publisher
) -> None:
    """The word is kept before whom it names: cut off in between, the same word puts it right, and an older one is refused."""
    with serving(tmp_path) as hub:
        publish(publisher, hub.operator(), "1.0.0")
        device = Follower(tmp_path / "device", hub)
        device.poll()
        folder = hub.process.home
        device.close()
    own = Home.open(folder)
    keys = AssignmentKeys((own.key.public,))
    before = device.believes
    handover.begin(folder, now=device.clock.now())
    word = vouched.sign(vouched.Vouched(Home.open(folder).authority.authorities, 2), own.key)
    older = vouched.sign(vouched.Vouched(own.authority.authorities, 1), own.key)
    for at, name in enumerate(("authorities.json", "authorities.pem")):
        written = 0

        def cut(path: Path, data: bytes) -> None:
            nonlocal written
            if written == at:  # noqa: B023  # run at once
                raise KeyboardInterrupt
            written += 1
            replace(path, data)

        with patch("edgestill.device.papers.replace", cut), pytest.raises(KeyboardInterrupt):
            device.papers.vouch(word, keys)
        assert device.papers.place == (1 if name == "authorities.json" else 0)
        assert device.believes == before
    with pytest.raises(ReplayError):
        device.papers.vouch(older, keys)
    assert device.papers.vouch(word, keys)
    assert len(device.believes) == 2
    assert not device.papers.vouch(word, keys)


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, PathError])
def test_a_word_that_was_kept_by_half_is_fetched_again(
    tmp_path: Path, publisher: Publisher, at: int, kind: type[BaseException]
) -> None:
    """Killed, or without room, at either file: the hub is not told that the device has followed, and the next try puts it right."""
    with serving(tmp_path) as hub:
        publish(publisher, hub.operator(), "1.0.0")
        device = Follower(tmp_path / "device", hub)
        device.poll()
        device.poll()
        before = device.believes
        hub.operator().hand_over("begin")
        with patch("edgestill.device.papers.replace", _breaking(at, kind)), suppress(KeyboardInterrupt):
            device.poll()
        assert device.believes == before
        assert device.papers.place < 2, "it does not say that it has followed"
        device.close()
        device.start()
        for _ in range(2):
            device.poll()
        assert len(device.believes) == 2
        assert device.papers.place == 2
        hub.operator().hand_over("switch")
        device.close()


def _breaking(at: int, kind: type[BaseException]) -> Callable[[Path, bytes], None]:
    """Writes files until the one of number `at`."""
    written = 0

    def write(path: Path, data: bytes) -> None:
        nonlocal written
        if written == at:
            raise (
                PathError("no room", where=path, expected="room", got="none", fix="make some")
                if kind is PathError
                else kind
            )
        written += 1
        replace(path, data)

    return write


def test_a_word_that_is_damaged_on_the_disk_is_fetched_again(tmp_path: Path, publisher: Publisher) -> None:
    """Whom the device believes is in another file, and stays."""
    with serving(tmp_path) as hub:
        publish(publisher, hub.operator(), "1.0.0")
        device = Follower(tmp_path / "device", hub)
        device.poll()
        assert device.papers.place == 1
        (device.home.path / "authorities.json").write_bytes(b"{")
        assert device.papers.place == 0
        device.later()
        device.poll()
        assert device.papers.place == 1
        device.close()


def test_a_device_says_once_what_it_goes_by(tmp_path: Path, publisher: Publisher) -> None:
    """And again when that changes, or an answer was lost: polls of an idle device stay short."""
    with serving(tmp_path) as hub:
        publish(publisher, hub.operator(), "1.0.0")
        device = Follower(tmp_path / "device", hub)
        (old,) = device.believes
        poll = ControlClient.poll
        said: list[str] = []

        def polls(client: ControlClient, *, believes: str = "", **rest: Any) -> Any:
            said.append(believes)
            if len(said) == 1:
                raise UnreachableError("lost", where="hub", expected="an answer", got="none", fix="again")
            return poll(client, believes=believes, **rest)

        with patch.object(ControlClient, "poll", polls):
            with pytest.raises(UnreachableError):
                device.poll()
            for _ in range(4):
                device.poll()
            hub.operator().hand_over("begin")
            for _ in range(3):
                device.poll()
        assert said == [f"0 {old}", f"0 {old}", f"1 {old}", "", "", "", f"2 {old}", ""]
        device.close()
