"""What devices call themselves and say: no control character of theirs reaches the database, a terminal or a page."""

from __future__ import annotations

import json
import sqlite3
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hub_worlds import CLASS, Device, World, question, teacher_model, world

from edgestill.core.jsonio import canonical

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LETTERS = ["\0", "\x1b", "\n", "\x7f", "\x9b", "\u202e", "\u2028"]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A hub with a release and a teacher."""
    with world(tmp_path_factory.mktemp("hub") / "hub", teacher=teacher_model()) as made:
        made.give_root()
        made.publish("1.0.0")
        yield made


def texts_of(folder: Path) -> list[str]:
    """Every text in every table, past all of our code; JSON columns with their escapes undone."""
    connection = sqlite3.connect(folder / "hub.db")
    try:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        cells = [
            cell
            for (table,) in tables
            for row in connection.execute(f"SELECT * FROM {table}")
            for cell in row
            if isinstance(cell, str)
        ]
    finally:
        connection.close()
    return [*cells, *(json.dumps(json.loads(cell), ensure_ascii=False) for cell in cells if cell[:1] == "{")]


def controls_in(text: str) -> list[str]:
    """Its control characters, by another book than ours."""
    return [one for one in text if unicodedata.category(one) in {"Cc", "Zl", "Zp"} or one in "\u202e\u2066"]


def enrolling(there: World, **changes: Any) -> bytes:
    """An enrolment with some fields changed, written by no code of ours."""
    message = {"join_token": there.token(), "device": "new", "hardware_class": CLASS, "labels": {}}
    return canonical(message | changes)


def reporting(device: Device, **changes: Any) -> bytes:
    """A report with some fields changed, written by no code of ours."""
    return canonical([device.told("watch/1.0.0", "fell-back").as_json() | changes])


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize(
    "changes",
    [
        {"device": "d{}1"},
        {"labels": {"site": "no{}rth"}},
        {"labels": {"si{}te": "north"}},
        {"labels": {"{}": ""}},
        {"hardware_class": CLASS + "{}"},
    ],
)
def test_attack_nobody_enrols_under_a_name_with_control_characters(
    there: World, letter: str, changes: dict[str, Any]
) -> None:
    """With 400, the field and what was wrong with it; and the token is not spent on it."""
    body = enrolling(there, **json.loads(json.dumps(changes).replace("{}", json.dumps(letter)[1:-1])))
    reply = there.call("POST", "/v1/enrol", body)
    assert (reply.status, reply.json["code"]) == (400, "message-invalid")
    assert reply.json["where"].startswith("enrol: ")
    assert not controls_in("".join(map(str, reply.json.values())))
    token = json.loads(body)["join_token"]
    name = f"n{len(there.admin('GET', 'fleet').json['devices'])}"
    assert there.enrol(name, token=token).id == name


@pytest.mark.parametrize("letter", LETTERS)
def test_attack_a_reason_with_control_characters_is_shown_without_them(there: World, letter: str) -> None:
    """The report counts, whatever it says; what operators see cannot steer their terminal."""
    device = there.enrol(f"r{ord(letter)}")
    reply = device.call("POST", "/v1/reports", reporting(device, reason=f"killed{letter}[2J by signal 9"))
    assert (reply.status, reply.json["accepted"]) == (200, 1)
    (shown,) = [one for one in there.admin("GET", "fleet").json["devices"] if one["device"] == device.id]
    assert (shown["state"], shown["reason"]) == ("fell-back", "killed [2J by signal 9")


@pytest.mark.parametrize("letter", LETTERS)
def test_attack_a_release_with_control_characters_is_refused(there: World, letter: str) -> None:
    """There is none of that name, and the fleet's list would show it."""
    device = there.enrol(f"v{ord(letter)}")
    reply = device.call("POST", "/v1/reports", reporting(device, release=f"watch/1.0.0{letter}"))
    assert (reply.status, reply.json["where"]) == (400, "reports: reports[0]: release")


@pytest.mark.parametrize("letter", LETTERS)
def test_attack_a_question_whose_id_holds_control_characters_is_refused(there: World, letter: str) -> None:
    """It would be kept beside the samples."""
    device = there.enrol(f"q{ord(letter)}")
    body, headers = question(np.ones((1, 4), np.float32), id=f"q{letter}", parameters={"retain": True})
    reply = device.call("POST", "/v2/models/teacher/infer", body, **headers)
    assert reply.status == 400
    assert "without control characters" in reply.json["error"]


@pytest.mark.parametrize("letter", LETTERS)
def test_a_rollout_for_labels_that_nobody_can_carry_is_refused(there: World, letter: str) -> None:
    """The operator is told, instead of waiting for devices that cannot enrol."""
    body = {"release": "watch/1.0.0", "stages": [1], "labels": {"site": f"n{letter}"}}
    reply = there.admin("POST", "rollouts", body)
    assert (reply.status, reply.json["where"]) == (400, "rollout: labels: site")


def test_attack_no_text_in_the_database_holds_a_control_character(tmp_path: Path) -> None:
    """Every way in at once, with every letter of them: what was kept is plain, whichever table it came to."""
    with world(tmp_path / "hub", teacher=teacher_model()) as there:
        there.give_root()
        there.publish("1.0.0")
        device = there.enrol("d0", site="north")
        number = there.roll_out("watch/1.0.0")
        assert device.poll() is not None
        every = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x202E)))
        assert device.call("POST", "/v1/reports", reporting(device, reason=every)).status == 200
        for bad in (
            enrolling(there, labels={every: every}),
            enrolling(there, device=every),
            enrolling(there, join_token=every),
        ):
            assert there.call("POST", "/v1/enrol", bad).status in {400, 401}
        assert device.call("POST", "/v1/reports", reporting(device, release=every)).status == 400
        body, headers = question(np.ones((1, 4), np.float32), id=every, parameters={"retain": True})
        assert device.call("POST", "/v2/models/teacher/infer", body, **headers).status == 400
        assert there.rollout(number)["state"] == "paused"
    found = texts_of(tmp_path / "hub")
    assert "d0" in found
    assert [text for text in found if controls_in(text)] == []
