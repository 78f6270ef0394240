"""Evidence from devices that mean harm, or are out of order: it stays bounded, counts once, and spoils nobody else's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hub_worlds import CLASS, DAY, Device, Reply, World, question, sums, teacher_model, world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError
from edgestill.hub import refusals
from edgestill.hub import sums as intake
from edgestill.hub.settings import Settings
from edgestill.learn.statistics import MAX_WINDOW, Statistics, solve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BACKBONE = str(Digest.of(b"backbone"))


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub with a teacher."""
    with world(tmp_path / "hub", teacher=teacher_model()) as made:
        made.give_root()
        yield made


def change(there: World, statement: str) -> None:
    """Changes the database by SQL, past all of our code."""
    import sqlite3

    connection = sqlite3.connect(there.folder / "hub.db")
    try:
        with connection:
            connection.execute(statement)
    finally:
        connection.close()


def send(device: Device, message: Statistics, id_: str, dtype: Any = "float64") -> Reply:
    """Sends statistics."""
    return device.call("POST", "/v1/evidence/statistics", message.to_bytes(dtype), x_edgestill_id=id_)


def ask_sum(there: World, backbone: str = BACKBONE) -> Reply:
    """Asks for the hub's sum."""
    return there.admin("GET", f"evidence/statistics?backbone={backbone}")


def ask(device: Device, batch: Any, **parameters: Any) -> Reply:
    """A question to the teacher."""
    id_ = parameters.pop("id", "")
    body, headers = question(batch, id=id_, parameters={"retain": True, **parameters})
    return device.call("POST", "/v2/models/teacher/infer", body, **headers)


def rows(there: World, query: str) -> int:
    """A count by SQL, past all of our code."""
    import sqlite3

    connection = sqlite3.connect(there.folder / "hub.db")
    try:
        return int(connection.execute(query).fetchone()[0])
    finally:
        connection.close()


@pytest.mark.parametrize("value", [1e25, 1e39, 1e308])
def test_attack_sums_so_large_that_nobody_could_read_the_total(there: World, value: float) -> None:
    """Two finite messages can add up to infinity: neither is taken, and the honest total can still be read."""
    honest, attacker = there.enrol("honest"), there.enrol("attacker")
    assert send(honest, sums(), "m1").status == 200
    for window in (1, 2):
        message = sums(window=window)
        message = replace(message, a=np.full_like(message.a, value), b=np.full_like(message.b, value))
        reply = send(attacker, message, f"m{window}")
        assert (reply.status, reply.json["what"]) == (422, "sums too large for one device")
    assert Statistics.from_bytes(ask_sum(there).body).n == 8


def test_attack_a_negative_sum_is_large_too(there: World) -> None:
    """Targets may be negative, so the bound is on the size."""
    message = sums()
    reply = send(there.enrol("d0"), replace(message, b=np.full_like(message.b, -1e30)), "m1")
    assert reply.status == 422


def test_attack_a_count_so_large_that_nobody_could_read_the_total(there: World) -> None:
    """Two counts of 2^53 - 1 make one that no message can carry."""
    honest, attacker = there.enrol("honest"), there.enrol("attacker")
    assert send(honest, sums(), "m1").status == 200
    for window in (1, 2):
        reply = send(attacker, replace(sums(window=window), n=2**53 - 1), f"m{window}")
        assert (reply.status, reply.json["code"]) == (422, "evidence-refused")
    assert Statistics.from_bytes(ask_sum(there).body).n == 8


def test_the_largest_messages_of_a_whole_fleet_still_make_a_sum(there: World) -> None:
    """At the bound itself, from several devices and windows: finite, readable, and to be solved."""
    most = float(intake.MAX_MESSAGE_SUM)
    message = sums()
    message = replace(message.scaled(most * (1 - 1e-12) / np.abs(message.a).max()), n=intake.MAX_MESSAGE_N)
    for name in ("one", "two", "three"):
        device = there.enrol(name)
        for window in range(4):
            assert send(device, replace(message, window=window), f"m{window}").status == 200
    total = Statistics.from_bytes(ask_sum(there).body)
    assert total.n == 12 * intake.MAX_MESSAGE_N
    assert np.isfinite(total.a).all()
    assert total.to_bytes("float32")
    assert np.isfinite(solve(total, ridge=most).weight).all()


def test_a_layer_so_wide_that_only_half_precision_fits_can_be_read(there: World) -> None:
    """Devices send it in float16, so the sum must come in float16, too, instead of being refused for ever."""
    rng = np.random.default_rng(0)
    empty = Statistics.empty(backbone=Digest.of(b"wide"), window=1, classes=2, features=1_600)
    wide = empty.add(rng.normal(size=(8, 1_600)), np.eye(2)[[0, 1] * 4])
    with pytest.raises(EvidenceError, match="too large to send"):
        wide.to_bytes("float32")
    for name in ("one", "two"):
        assert send(there.enrol(name), wide, "m1", "float16").status == 200
    reply = ask_sum(there, str(wide.backbone))
    assert reply.status == 200
    total = Statistics.from_bytes(reply.body)
    assert total.n == 16
    assert np.abs(total.a - 2 * wide.a).max() < 4e-3 * np.abs(wide.a).max()


def test_sums_are_exact_where_they_fit(there: World) -> None:
    """Rounding is for what does not fit otherwise."""
    message = sums()
    send(there.enrol("d0"), message, "m1")
    assert (Statistics.from_bytes(ask_sum(there).body).a == message.a).all()


def test_attack_made_up_backbones_do_not_fill_the_disk(tmp_path: Path) -> None:
    """A device may name any backbone; those it named last are kept, of each device on its own."""
    with world(tmp_path / "hub", settings=Settings(max_backbones=3)) as there:
        there.give_root()
        honest, attacker = there.enrol("honest"), there.enrol("attacker")
        send(honest, sums(), "m1")
        for number in range(10):
            assert send(attacker, sums(backbone=f"made up {number}"), f"m{number}").status == 200
        found = there.admin("GET", "evidence").json["statistics"]
        kept = {str(Digest.of(f"made up {number}".encode())) for number in (7, 8, 9)}
        assert set(found) == {BACKBONE, *kept}
        assert rows(there, "SELECT count(*) FROM statistics WHERE body IS NOT NULL") == 4


def test_attack_made_up_releases_do_not_fill_the_disk(there: World) -> None:
    """Figures about hundreds of releases that nobody published: each report counts as heard, and none takes a row."""
    there.publish("1.0.0")
    device = there.enrol("d0")
    device.audited("watch/1.0.0", 4, 3)
    for batch in range(2):
        told = [device.figures(f"watch/9.{batch}.{number}", 7, 7) for number in range(200)]
        assert device.report(*told) == {"accepted": 200, "duplicates": 0}
        assert device.report(*told) == {"accepted": 0, "duplicates": 200}
    assert rows(there, "SELECT count(*) FROM health") == 1
    (shown,) = there.admin("GET", "fleet").json["devices"]
    assert (shown["release"][:8], shown["health"]) == ("watch/9.", None)


def test_attack_figures_told_before_a_release_is_there_do_not_open_its_gate(there: World) -> None:
    """A device that claims a thousand audits of what is yet to come: the agreement gate still waits for real ones."""
    there.publish("1.0.0")
    liar = there.enrol("liar")
    liar.audited("watch/1.1.0", 1000, 1000)
    there.publish("1.1.0")
    gates = {"min_agreement": 0.9, "min_audits": 10}
    number = there.roll_out("watch/1.1.0", 1, gates=gates)
    liar.poll()
    liar.tells("watch/1.1.0", "confirmed")
    assert there.rollout(number)["state"] == "running"
    assert there.rollout(number)["audits"] == 0


def test_figures_about_a_retired_release_count(there: World) -> None:
    """Devices run it until they have the next one."""
    there.publish("1.0.0")
    there.publish("1.1.0", retire=(f"watch/1.0.0/{CLASS}.esb",))
    device = there.enrol("d0")
    device.audited("watch/1.0.0", 4, 3)
    device.audited("watch/1.0.0", 4, 4)
    (shown,) = there.admin("GET", "fleet").json["devices"]
    assert (shown["health"]["audits"], shown["health"]["agreed"]) == (8, 7)


def test_a_backbone_that_is_named_again_is_kept(tmp_path: Path) -> None:
    """It is the one named longest ago that goes: a device's own model stays, however many others it has tried."""
    with world(tmp_path / "hub", settings=Settings(max_backbones=2)) as there:
        there.give_root()
        device = there.enrol("d0")
        for number in range(6):
            send(device, sums(backbone=f"tried {number}"), f"t{number}")
            send(device, sums(window=number), f"own{number}")
        found = there.admin("GET", "evidence").json["statistics"]
        assert set(found) == {BACKBONE, str(Digest.of(b"tried 5"))}
        assert found[BACKBONE]["messages"] >= 1


def test_ids_of_messages_that_no_longer_count_are_forgotten_in_time(tmp_path: Path) -> None:
    """Replaced a thousand times, a window leaves one row after the time for which ids are remembered."""
    with world(tmp_path / "hub", settings=Settings(keep_reports=7 * DAY)) as there:
        there.give_root()
        device = there.enrol("d0")
        for number in range(20):
            send(device, sums(seed=number), f"m{number}")
        assert rows(there, "SELECT count(*) FROM statistics") == 20
        there.clock.advance(8 * DAY)
        device.poll()
        assert rows(there, "SELECT count(*) FROM statistics") == 1
        assert np.allclose(Statistics.from_bytes(ask_sum(there).body).a, sums(seed=19).a)


def test_attack_windows_of_the_future_do_not_shut_real_ones_out(tmp_path: Path) -> None:
    """Tomorrow is taken, later days are refused; what an older hub kept of them is forgotten with the next message."""
    with world(tmp_path / "hub", settings=Settings(max_windows=2)) as there:
        there.give_root()
        device, today = there.enrol("d0"), int(there.clock.now() // DAY)
        for window in (today + 2, MAX_WINDOW):
            reply = send(device, sums(window=window), f"f{window}")
            assert (reply.status, reply.json["what"]) == (422, "a window of the future")
        for window in (today, today + 1):
            assert send(device, sums(window=window), f"m{window}").json == {"accepted": True}
        change(there, f"UPDATE statistics SET window = {MAX_WINDOW}")
        assert send(device, sums(window=today), "again").json == {"accepted": True}
        total = Statistics.from_bytes(ask_sum(there).body)
        assert (total.window, total.n) == (today, 8)


def test_a_window_older_than_all_that_are_kept_is_refused_with_its_reason(tmp_path: Path) -> None:
    """It is not said to be accepted, and counted among what was refused."""
    with world(tmp_path / "hub", settings=Settings(max_windows=4)) as there:
        there.give_root()
        device = there.enrol("d0")
        for window in range(10, 14):
            assert send(device, sums(window=window), f"m{window}").json == {"accepted": True}
        assert send(device, sums(window=1), "late").json == {"accepted": False, "reason": refusals.STALE}
        found = there.admin("GET", "evidence").json["refused"]
        assert found[refusals.STALE]["most"] == {"d0": 1}
        assert Statistics.from_bytes(ask_sum(there).body).n == 4 * 8


def test_the_largest_window_is_a_number_and_one_above_it_is_none(there: World) -> None:
    """What no message can carry is refused before it is looked at."""
    device = there.enrol("d0")
    assert (
        device.call(
            "POST", "/v1/evidence/statistics", altered(sums(), "window", 2**63), x_edgestill_id="m3"
        ).status
        == 400
    )


def altered(message: Statistics, name: str, value: int) -> bytes:
    """The message with another number in its head."""
    data = message.to_bytes("float64")
    length = int.from_bytes(data[8:12], "little")
    head = data[12 : 12 + length]
    old = f'"{name}":{getattr(message, name)}'.encode()
    assert old in head
    head = head.replace(old, f'"{name}":{value}'.encode())
    return data[:8] + len(head).to_bytes(4, "little") + head + data[12 + length :]


def test_a_device_cannot_replace_what_another_sent(there: World) -> None:
    """Same id, same backbone, same window: they are two messages."""
    one, other = there.enrol("one"), there.enrol("other")
    send(one, sums(seed=1), "m1")
    assert send(other, sums(seed=2), "m1").json == {"accepted": True}
    assert Statistics.from_bytes(ask_sum(there).body).n == 16


def test_attack_an_id_that_was_used_brings_nothing_new_in(there: World) -> None:
    """Whatever it carries the second time, for whichever backbone."""
    device = there.enrol("d0")
    send(device, sums(), "m1")
    assert send(device, sums(backbone="other"), "m1").json["accepted"] is False
    assert send(device, sums(seed=9), "m1").json["accepted"] is False
    assert set(there.admin("GET", "evidence").json["statistics"]) == {BACKBONE}
    assert np.allclose(Statistics.from_bytes(ask_sum(there).body).a, sums().a)


messages = st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 5))


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=st.lists(messages, max_size=12), again=st.randoms(use_true_random=False))
def test_the_sum_is_that_of_the_last_message_of_each_window(
    tmp_path_factory: pytest.TempPathFactory, sent: list[tuple[int, int, int]], again: Any
) -> None:
    """Devices, windows and seeds at will, every message sent again at some later time: the repeats change nothing."""
    with world(tmp_path_factory.mktemp("hub") / "hub") as there:
        there.give_root()
        devices = [there.enrol(f"d{index}") for index in range(3)]
        counts: dict[tuple[int, int], Statistics] = {}
        done: list[tuple[int, Statistics, str]] = []
        for number, (device, window, seed) in enumerate(sent):
            message = sums(window=window, seed=seed)
            assert send(devices[device], message, f"m{number}").json == {"accepted": True}
            counts[device, window] = message
            done.append((device, message, f"m{number}"))
            repeated = again.choice(done)
            assert send(devices[repeated[0]], *repeated[1:]).json["accepted"] is False
        if not counts:
            assert ask_sum(there).status == 404
            return
        first, *others = counts.values()
        total = first
        for one in others:
            total = total + one
        found = Statistics.from_bytes(ask_sum(there).body)
        assert (found.n, found.window) == (total.n, total.window)
        assert np.allclose(found.a, total.a)
        assert np.allclose(found.b, total.b)


def test_attack_answers_are_the_teachers_whatever_the_device_claims(there: World) -> None:
    """A request that brings logits along does not get them kept: evidence holds what the hub's own teacher said."""
    device = there.enrol("d0")
    assert ask(device, np.ones((2, 4), np.float32), logits=[9, 9, 9], teacher="me").status == 200
    page = page_of(there)
    assert page["teacher"].tolist() == [[4.0, 8.0, 12.0]] * 2


def page_of(there: World) -> dict[str, Any]:
    """All samples as arrays."""
    from hub_worlds import answer

    reply = there.admin("GET", "evidence/samples")
    kinds = {"FP32": "<f4", "INT64": "<i8", "BOOL": "?"}
    return {
        one.name: np.frombuffer(one.data, kinds[one.datatype]).reshape(one.shape)
        for one in answer(reply).outputs
    }


@pytest.mark.parametrize("retain", [False, "true", 1, None, [True], {"yes": True}])
def test_only_a_plain_yes_lets_the_hub_keep_anything(there: World, retain: object) -> None:
    """Whatever else stands there, nothing is kept: a doubt is a no."""
    device = there.enrol("d0")
    reply = ask(device, np.ones((1, 4), np.float32), retain=retain)
    assert reply.status == 200
    assert there.admin("GET", "evidence").json["samples"]["total"] == 0


def test_the_bound_on_samples_is_not_passed_by_repeats_or_batches(tmp_path: Path) -> None:
    """One large batch, many small ones, the same one again: at most so many, and a repeat takes no room."""
    with world(tmp_path / "hub", settings=Settings(max_samples=5), teacher=teacher_model()) as there:
        there.give_root()
        device = there.enrol("d0")
        for _ in range(3):
            assert ask(device, np.ones((2, 4), np.float32), id="same").status == 200
        assert there.admin("GET", "evidence").json["samples"]["total"] == 2
        for number in range(4):
            assert ask(device, np.full((2, 4), number, np.float32), id=f"q{number}").status == 200
        assert there.admin("GET", "evidence").json["samples"]["total"] == 5
        assert ask(device, np.ones((50, 4), np.float32)).status == 200
        assert there.admin("GET", "evidence").json["samples"]["total"] == 5
        assert rows(there, "SELECT samples FROM devices WHERE id = 'd0'") == 5


def test_a_batch_that_was_cut_by_the_bound_is_whole_or_a_beginning(tmp_path: Path) -> None:
    """What is kept of it are its first rows, with their own answers."""
    with world(tmp_path / "hub", settings=Settings(max_samples=3), teacher=teacher_model()) as there:
        there.give_root()
        batch = np.arange(20, dtype=np.float32).reshape(5, 4)
        assert ask(there.enrol("d0"), batch).status == 200
        page = page_of(there)
        assert page["input"].tolist() == batch[:3].tolist()
        assert page["teacher"][:, 0].tolist() == batch[:3].sum(1).tolist()


def test_evidence_of_many_devices_at_once_is_all_there(there: World) -> None:
    """Eight threads ask at the same time: every row once, under its device, with its own answer."""
    from concurrent.futures import ThreadPoolExecutor

    devices = [there.enrol(f"d{index}") for index in range(8)]

    def ten(index: int) -> None:
        for number in range(10):
            batch = np.full((1, 4), 10 * index + number, np.float32)
            assert ask(devices[index], batch, id=f"q{number}").status == 200

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ten, range(8)))
    page = page_of(there)
    assert sorted(page["input"][:, 0].tolist()) == [float(value) for value in range(80)]
    assert (page["teacher"][:, 0] == 4 * page["input"][:, 0]).all()
