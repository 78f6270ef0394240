"""Many at once, clocks that jump, and what runs beside the requests: counters grow, bells ring, time does its work."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hub_worlds import CLASS, DAY, Device, World, esb, teacher_model, world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgestill.core import bundle
from edgestill.core.errors import PathError
from edgestill.core.release import target_name
from edgestill.hub import artefacts, assignments, registry, rollouts
from edgestill.hub.bell import Bell
from edgestill.hub.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

R1, R2 = "watch/1.0.0", "watch/1.1.0"


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub with two releases."""
    with world(tmp_path / "hub") as made:
        made.give_root()
        made.publish("1.0.0", "1.1.0")
        yield made


def counters(there: World) -> dict[str, int]:
    """What the database says, past all of our code."""
    import sqlite3

    connection = sqlite3.connect(there.folder / "hub.db")
    try:
        return dict(connection.execute("SELECT id, counter FROM devices").fetchall())
    finally:
        connection.close()


def operate(there: World) -> None:
    """An operator who cannot make up their mind."""
    for turn in range(4):
        body = {"release": (R1, R2)[turn % 2], "gates": {"max_failed": 0.9}}
        reply = there.admin("POST", "rollouts", body)
        if reply.status == 201:
            for verb in ("pause", "resume", "rollback"):
                reply_ = there.admin("POST", f"rollouts/{reply.json['id']}/{verb}")
                assert reply_.status in {200, 409}


def obey(device: Device, seen: list[tuple[int, str]], over: threading.Event) -> None:
    """A device that polls as fast as it can and confirms whatever it is told."""
    while not over.is_set():
        told = device.poll()
        if told is not None:
            seen.append((told["counter"], told["target"]))
            device.tells(told["target"].rpartition("/")[0], "confirmed")


def test_counters_only_grow_under_many_writers(there: World) -> None:
    """Operators start, pause, resume and roll back while devices poll and report: nobody is ever told a smaller one.

    And under one counter there is one target: a device that has obeyed it need not look again.
    """
    devices = there.fleet(4)
    over = threading.Event()
    seen: dict[str, list[tuple[int, str]]] = {one.id: [] for one in devices}
    threads = [threading.Thread(target=obey, args=(one, seen[one.id], over)) for one in devices]
    for thread in threads:
        thread.start()
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(operate, there), pool.submit(operate, there)]:
            done.result()
    over.set()
    for thread in threads:
        thread.join(60)
    last = counters(there)
    for name, told in seen.items():
        numbers = [counter for counter, _ in told]
        assert numbers == sorted(numbers), name
        assert len(set(told)) == len(set(numbers)), "one target under one counter"
        assert not told or last[name] >= numbers[-1]


verbs = st.lists(
    st.sampled_from(["start", "pause", "resume", "rollback", "confirm", "fall back", "wait"]), max_size=10
)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deeds=verbs)
def test_whatever_operators_and_devices_do_an_assignment_is_listed_and_counted(
    tmp_path_factory: pytest.TempPathFactory, deeds: list[str]
) -> None:
    """After each deed: counters have not shrunk, a change of target came with a larger one, and every target is listed."""
    with world(tmp_path_factory.mktemp("hub") / "hub") as there:
        there.give_root()
        there.publish("1.0.0", "1.1.0")
        devices, number = there.fleet(3), 0
        before: dict[str, Any] = {}
        for turn, deed in enumerate(deeds):
            if deed == "start":
                reply = there.admin("POST", "rollouts", {"release": (R1, R2)[turn % 2], "stages": [0.4, 1]})
                number = reply.json["id"] if reply.status == 201 else number
            elif deed in {"pause", "resume", "rollback"}:
                assert there.admin("POST", f"rollouts/{number}/{deed}").status in {200, 404, 409}
            elif deed == "wait":
                there.clock.advance(4000)
            else:
                for one in devices:
                    told = one.poll()
                    if told is not None:
                        release = told["target"].rpartition("/")[0]
                        one.tells(release, "confirmed" if deed == "confirm" else "fell-back")
            now = {one.id: one.poll() for one in devices}
            for name, told in now.items():
                if told is None:
                    continue
                assert told["target"] in there.hub.artefacts.publication.listed
                old = before.get(name)
                assert old is None or old["counter"] <= told["counter"]
                assert old is None or old["target"] == told["target"] or old["counter"] < told["counter"]
            before |= {name: told for name, told in now.items() if told is not None}


def test_publishers_who_race_leave_one_list(there: World) -> None:
    """Four lists that all follow the same one: one is taken, the others are told; what is served is whole."""
    lists = []
    for number in range(2, 6):
        archive = esb(f"1.{number}.0")
        lists.append(there.sign({target_name("watch", f"1.{number}.0", CLASS): there.upload(archive)}))
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda one: there.admin("POST", "targets", one), lists))
    statuses = [reply.status for reply in replies]
    assert statuses.count(200) == 1, replies
    assert set(statuses) <= {200, 409, 422}
    assert there.admin("GET", "metadata/targets").body == lists[statuses.index(200)]
    assert_served_whole(there)
    releases = there.admin("GET", "releases").json["releases"]
    assert len([one for one in releases if one["listed"]]) == 3


def assert_served_whole(there: World) -> None:
    """What the timestamp names is there, and so is what that names."""
    timestamp = there.call("GET", "/metadata/timestamp.json").json["signed"]
    version = timestamp["meta"]["snapshot.json"]["version"]
    snapshot = there.call("GET", f"/metadata/{version}.snapshot.json")
    assert snapshot.status == 200
    version = snapshot.json["signed"]["meta"]["targets.json"]["version"]
    targets = there.call("GET", f"/metadata/{version}.targets.json")
    assert targets.status == 200
    for path, entry in targets.json["signed"]["targets"].items():
        folder, _, name = path.rpartition("/")
        found = there.call("HEAD", f"/targets/{folder}/{entry['hashes']['sha256']}.{name}")
        assert (found.status, int(found.headers["content-length"])) == (200, entry["length"])


def test_a_device_that_refreshes_while_the_publisher_publishes_finds_what_is_named(there: World) -> None:
    """At every moment, for three further releases: nothing is named before it can be had."""
    over = threading.Event()

    def refresh() -> int:
        rounds = 0
        while not over.is_set() or not rounds:
            assert_served_whole(there)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(2) as pool:
        devices = [pool.submit(refresh) for _ in range(2)]
        try:
            for number in range(2, 5):
                there.publish(f"1.{number}.0")
        finally:
            over.set()
        assert all(device.result(60) > 0 for device in devices)


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_timestamp_names_can_be_had_at_the_moment_it_is_there(
    there: World, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """A device that reads it at once finds its archive; where it cannot be written, nothing new is listed."""
    asked: list[int] = []
    info = there.upload(esb("1.2.0"))

    def writing(path: Path, data: bytes, **rest: Any) -> None:
        if path.name == "timestamp.json":
            if fails:
                raise PathError("no room", where=path, expected="room", got="none")
            bundle.replace(path, data, **rest)
            asked.append(there.call("HEAD", f"/targets/watch/1.2.0/{info.digest.hex}.{CLASS}.esb").status)
        else:
            bundle.replace(path, data, **rest)

    listed = dict(there.hub.artefacts.publication.listed)
    signed = there.sign({target_name("watch", "1.2.0", CLASS): info})
    monkeypatch.setattr(artefacts, "replace", writing)
    reply = there.admin("POST", "targets", signed)
    assert (reply.status == 200, asked) == (not fails, [] if fails else [200])
    if fails:
        assert there.hub.artefacts.publication.listed == listed


@pytest.mark.parametrize("seconds", [-30 * DAY, -3600.0, 3600.0, 30 * DAY])
def test_a_hub_whose_clock_is_corrected_goes_on(there: World, seconds: float) -> None:
    """Back or forth: devices are told assignments that hold now and not for ages, and publishing goes on."""
    device = there.enrol("d0")
    there.roll_out(R1, gates={"silent_after": 1e9})
    first = device.poll()
    there.clock.jump(seconds)
    told = device.poll()
    assert (told["counter"], told["target"]) == (first["counter"], first["target"])
    left = told["expires"] - there.clock.now()
    lifetime = there.hub.settings.assignment_lifetime
    assert lifetime / 2 <= left <= lifetime + 1
    there.clock.advance(there.hub.settings.tick)
    device.tells(R1, "confirmed")
    assert there.rollout(1)["state"] == "done"
    there.publish("2.0.0")
    there.roll_out("watch/2.0.0")
    assert device.poll()["counter"] == first["counter"] + 1


def test_metadata_signed_in_a_wrong_future_is_signed_again(there: World) -> None:
    """The clock was a year ahead for a moment: back in the present, the timestamp runs out when it should."""
    import json

    there.clock.jump(20 * DAY)
    there.enrol("d0").poll()
    there.clock.jump(-20 * DAY)
    there.clock.advance(there.hub.settings.tick)
    before = json.loads(there.call("GET", "/metadata/timestamp.json").body)["signed"]
    there.enrol("d1").poll()
    after = json.loads(there.call("GET", "/metadata/timestamp.json").body)["signed"]
    assert after["version"] > before["version"] or after == before
    assert not there.hub.artefacts.needs_freshening(there.clock.now())


@given(now=st.floats(0, 4e9), seconds=st.floats(0, 1e5))
def test_the_end_of_an_assignment_never_moves_back(now: float, seconds: float) -> None:
    """As time goes on, the same assignment ends later or at the same time."""
    from edgestill.trust.keys import SigningKey

    key = test_key.setdefault("key", SigningKey.generate())
    device = registry.Device(id="d0", counter=1, target="watch/1.0.0/any.esb", last_seen=None)
    ends = []
    for at in (now, now + seconds):
        told: Any = assignments.envelope(device, epoch=0, key=key, now=at, lifetime=3600.0)
        assert told is not None
        ends.append(told["signed"]["expires"])
    assert ends[0] <= ends[1]
    assert ends[0] > now


test_key: dict[str, Any] = {}


def test_a_ring_wakes_whoever_listens_and_nobody_else() -> None:
    """Every listener of that device, however many; none of another."""

    async def play() -> None:
        bell = Bell()
        with bell.listening("a") as one, bell.listening("a") as two, bell.listening("b") as other:
            bell.ring(["a", "nobody"])
            assert one.is_set()
            assert two.is_set()
            assert not other.is_set()
            bell.ring_all()
            assert other.is_set()

    asyncio.run(play())


def test_a_bell_keeps_nobody_who_has_gone() -> None:
    """Also where the block ended with an error: a hub that is polled for years remembers only who waits now."""

    async def play() -> None:
        bell = Bell()
        with pytest.raises(OSError, match="hung up"), bell.listening("a"), bell.listening("a"):
            raise OSError("hung up")
        with bell.listening("a") as one:
            bell.ring(["a"])
            assert one.is_set()
        assert bell._waiting == {}
        bell.ring(["a"])
        bell.ring_all()

    asyncio.run(play())


def test_a_burst_of_reports_costs_two_looks(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that come while one look is under way share the next; nobody's report is left unlooked at."""
    looks: list[int] = []
    real = rollouts.advance
    reached, go_on = threading.Event(), threading.Event()

    async def slow(connection: Any, now: float) -> rollouts.Moved:
        looks.append(1)
        if len(looks) == 1:
            reached.set()
            await asyncio.get_running_loop().run_in_executor(None, go_on.wait)
        return await real(connection, now)

    monkeypatch.setattr(rollouts, "advance", slow)

    async def burst() -> None:
        first = asyncio.create_task(there.hub.step())
        await asyncio.get_running_loop().run_in_executor(None, reached.wait)
        others = [asyncio.create_task(there.hub.step()) for _ in range(20)]
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(first, *others)

    host = there.transport._host
    assert host is not None
    asyncio.run_coroutine_threadsafe(burst(), host.loop).result(30)
    assert len(looks) == 2


def test_a_tick_that_fails_is_tried_again(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The poll that found it due is told so; the next one, after a tick, does the work."""
    device = there.enrol("d0")
    real = registry.forget_reports

    async def failing(*_: Any) -> None:
        raise OSError("disk I/O error")

    there.clock.advance(Settings().tick)
    monkeypatch.setattr(registry, "forget_reports", failing)
    assert device.call("GET", "/v1/poll").status == 500
    assert device.call("GET", "/v1/poll").status == 200
    monkeypatch.setattr(registry, "forget_reports", real)
    there.clock.advance(Settings().tick)
    assert device.call("GET", "/v1/poll").status == 200


def test_a_report_is_remembered_for_its_time_and_then_forgotten(there: World) -> None:
    """A month of ids, not all of them: what they said stays summed up."""
    device = there.enrol("d0")
    report = device.told(R1, "staged")
    device.report(report)
    device.audited(R1, 4, 3)
    there.clock.advance(there.hub.settings.keep_reports - 1)
    device.poll()
    assert device.report(report) == {"accepted": 0, "duplicates": 1}
    there.clock.advance(1 + there.hub.settings.tick)
    device.poll()
    assert device.report(report) == {"accepted": 1, "duplicates": 0}
    (one,) = there.admin("GET", "fleet").json["devices"]
    assert one["state"] == "staged"


def test_polls_and_questions_go_on_while_the_hub_works(tmp_path: Path) -> None:
    """A heavy job in the hub's own thread holds up neither devices nor the teacher."""
    from hub_worlds import question

    with world(tmp_path / "hub", teacher=teacher_model()) as there:
        import numpy as np

        there.give_root()
        there.publish("1.0.0")
        device = there.enrol("d0")
        go_on = threading.Event()
        host = there.transport._host
        assert host is not None
        busy = asyncio.run_coroutine_threadsafe(there.hub.in_thread(go_on.wait), host.loop)
        body, headers = question(np.ones((1, 4), np.float32))
        assert device.call("GET", "/v1/poll").status == 200
        assert device.call("POST", "/v2/models/teacher/infer", body, **headers).status == 200
        assert not busy.done()
        go_on.set()
        assert busy.result(30)
