"""Operators with roles, and the audit log of what they did."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from hub_worlds import CLASS, World, question, teacher_model, world

from edgestill.cli.hub import _line
from edgestill.core.auditing import BEGIN, Entry, check_chain
from edgestill.core.errors import MessageError
from edgestill.core.jsonio import Fields
from edgestill.hub import bodies
from edgestill.hub.operators import RIGHTS, ROLES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hub_worlds import Reply

R1 = "watch/1.0.0"
LOOKS = (
    "releases",
    "roles",
    "roles/auto/x",
    "rollouts",
    "fleet",
    "evidence",
    "online-key",
    "metadata/targets",
    "rollouts/1",
    "timings",
    "timings/1",
    "votings",
    "votings/1",
)
ORDERS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "operate": [
        ("POST", "join-tokens", {"uses": 1}),
        ("GET", "join-tokens", {}),
        ("POST", "join-tokens/revoke", {"token": "nothing"}),
        ("POST", "rollouts", {"release": R1}),
        ("POST", "rollouts/1/pause", {}),
        ("POST", "rollouts/1/resume", {}),
        ("POST", "rollouts/1/advance", {"stage": 0}),
        ("POST", "rollouts/1/rollback", {}),
        ("GET", "timings/1/profile", {}),
        ("POST", "timings", {"target": "timing/watch/1.0.0/x86_64-vnni-onnxruntime.est", "devices": 1}),
        ("POST", "timings/1/cancel", {}),
        ("POST", "votings", {"target": "proxy/watch/1.0.0/samples.esp"}),
        ("POST", "votings/1/close", {}),
        ("POST", "votings/1/outcome", {}),
        ("POST", "devices/d0/assignment", {"expires_in": 60}),
        ("POST", "devices/d0/revoke", {}),
        ("GET", "evidence/samples", {}),
        ("GET", "authority", {}),
        ("POST", "evidence/statistics/agreed", {}),
        ("GET", "evidence/statistics?backbone=sha256:" + "0" * 64, {}),
    ],
    "publish": [
        ("POST", "root", {}),
        ("POST", "roots", {}),
        ("PUT", "blobs", {}),
        ("PUT", "images", {}),
        ("POST", "targets", {}),
        ("POST", "roles/auto/x", {}),
    ],
    "administer": [
        ("GET", "operators", {}),
        ("POST", "operators", {"name": "eve", "role": "viewer"}),
        ("POST", "operators/nobody/revoke", {}),
        ("POST", "authority/begin", {}),
        ("POST", "authority/switch", {}),
        ("POST", "authority/back", {}),
        ("POST", "authority/finish", {}),
        ("POST", "authority/abandon", {}),
        ("GET", "audit-log", {}),
    ],
}


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub with a root, a teacher and a release."""
    with world(tmp_path / "hub", teacher=teacher_model()) as made:
        made.give_root()
        made.publish("1.0.0")
        yield made


def add(there: World, name: str, role: str, **more: float) -> str:
    """A token."""
    reply = there.admin("POST", "operators", {"name": name, "role": role, **more})
    assert reply.status == 201, reply
    return str(reply.json["token"])


def call(there: World, token: str, method: str, path: str, body: dict[str, Any] | None = None) -> Reply:
    """One request with a token."""
    data = b"" if body is None else json.dumps(body).encode()
    return there.call(method, f"/v1/admin/{path}", data, authorization=f"Bearer {token}")


def log_of(there: World, after: int = 0) -> list[Entry]:
    """The audit log."""
    found = there.admin("GET", f"audit-log?after={after}").json["entries"]
    return [Entry.from_fields(Fields(one, "entry")) for one in found]


@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_do_what_is_its_own(there: World, role: str) -> None:
    """And nothing else: every path that there is, by every role."""
    there.enrol("d0")
    token = add(there, "ann", role)
    for path in LOOKS:
        assert call(there, token, "GET", path).status != 401
    for right, orders in ORDERS.items():
        for method, path, body in orders:
            reply = call(there, token, method, path, body)
            assert (reply.status == 401) == (role not in RIGHTS[right]), (path, reply)
            if reply.status == 401:
                assert reply.json["what"] == "this role may not do that"
                assert reply.json["where"] == "operator ann"


def test_every_path_of_the_api_is_tried_above() -> None:
    """Whoever adds one says who may call it."""
    from edgestill.hub.app import _admin

    paths = {route.path.removeprefix("/v1/admin/") for route in _admin()}
    tried = {*LOOKS, *(path.partition("?")[0] for orders in ORDERS.values() for _, path, _ in orders)}
    named = {
        path.replace("{id:int}", "1")
        .replace("{device}", "d0")
        .replace("{operator}", "nobody")
        .replace("{role:path}", "auto/x")
        for path in paths
    }
    assert named == tried


@pytest.mark.parametrize("role", ROLES)
def test_only_who_operates_may_ask_the_teacher(there: World, role: str) -> None:
    """Questions cost the hub's time."""
    import numpy as np

    body, headers = question(np.zeros((1, 4), np.float32))
    token = add(there, "ann", role)
    reply = there.call("POST", "/v2/models/teacher/infer", body, authorization=f"Bearer {token}", **headers)
    assert reply.status == (200 if role in RIGHTS["operate"] else 401)


def test_every_role_may_look_at_the_page(there: World) -> None:
    """With the token as a password; a revoked one may not."""
    import base64

    token = add(there, "ann", "viewer")
    basic = base64.b64encode(f"ann:{token}".encode()).decode()
    assert there.call("GET", "/", authorization=f"Basic {basic}").status == 200
    there.admin("POST", "operators/ann/revoke")
    assert there.call("GET", "/", authorization=f"Basic {basic}").status == 401


def test_a_token_ends_when_it_was_said_to_or_when_it_is_revoked(there: World) -> None:
    """The name is not given again: the log means one person by it."""
    short, long = add(there, "short", "viewer", expires_in=60.0), add(there, "long", "viewer")
    for token in (short, long):
        assert call(there, token, "GET", "fleet").status == 200
    there.clock.advance(61)
    assert call(there, short, "GET", "fleet").status == 401
    first = there.admin("POST", "operators/long/revoke").json
    assert call(there, long, "GET", "fleet").status == 401
    there.clock.advance(5)
    assert there.admin("POST", "operators/long/revoke").json == first, "twice is once"
    again = there.admin("POST", "operators", {"name": "long", "role": "admin"})
    assert (again.status, again.json["what"]) == (409, "the name was given before")
    shown = {one["name"]: one for one in there.admin("GET", "operators").json["operators"]}
    assert shown["long"]["revoked_at"] == first["revoked_at"]
    assert "token" not in shown["long"]


@pytest.mark.parametrize(
    "wanted",
    [
        {"name": "owner", "role": "viewer"},
        {"name": "Ann", "role": "viewer"},
        {"name": "", "role": "viewer"},
        {"name": "../x", "role": "viewer"},
        {"name": "a" * 65, "role": "viewer"},
        {"name": "ann", "role": "king"},
        {"name": "ann", "role": "viewer", "expires_in": 0},
        {"name": "ann", "role": "viewer", "expires_in": 1e12},
        {"name": "ann", "role": "viewer", "token": "mine"},
        {"name": "ann"},
    ],
)
def test_what_is_no_operator_is_refused(there: World, wanted: dict[str, Any]) -> None:
    """And none is made."""
    assert there.admin("POST", "operators", wanted).status == 400
    assert there.admin("GET", "operators").json["operators"] == []


def test_attack_the_hub_keeps_no_token(there: World) -> None:
    """Whoever reads the database can call as nobody."""
    token = add(there, "ann", "admin")
    dump = "\n".join(sqlite3.connect(there.folder / "hub.db").iterdump())
    assert token.removeprefix("eso1.") not in dump
    assert "ann" in dump


# The log


def test_an_order_is_written_before_it_is_tried_and_what_came_of_it_after(there: World) -> None:
    """By whom, about what, and how it ended; refused ones as well."""
    token, start = add(there, "ann", "operator"), len(log_of(there))
    there.enrol("d0")
    call(there, token, "POST", "rollouts", {"release": R1, "stages": [1.0], "labels": {"site": "north"}})
    call(there, token, "POST", "rollouts/77/pause")
    found = [one for one in log_of(there, start) if one.who == "ann"]
    asked, done, lost, refused = found
    assert (asked.what, asked.about) == ("rollout.start", {})
    assert done.about["order"] == asked.id
    assert (done.about["outcome"], done.about["release"], done.about["rollout"]) == ("done", R1, 1)
    assert done.about["labels"] == {"site": "north"}
    assert (lost.what, lost.about) == ("rollout.pause", {"id": "77"})
    assert refused.about == {"order": lost.id, "outcome": "not-found"}


def test_what_the_hub_does_by_itself_and_who_joins_is_there(there: World) -> None:
    """Devices by their names, assignments and pauses of rollouts with their reasons."""
    start, device = len(log_of(there)), there.enrol("d0")
    there.roll_out(R1)
    device.poll()
    device.tells(R1, "fell-back", reason="probe-failed")
    told = [(one.who, one.what, one.about) for one in log_of(there, start)]
    assert ("device d0", "device.enrol", {"class": CLASS}) in told
    own = [about["did"] for who, what, about in told if (who, what) == ("the hub", "rollout")]
    assert own[0] == f"rollout 1: {R1} is assigned to d0"
    assert str(own[1]).startswith("rollout 1: is paused: d0 failed")


def test_entries_follow_each_other_and_pages_fit_together(there: World) -> None:
    """Ids without gaps, each sealed over the one before."""
    for number in range(5):
        add(there, f"o{number}", "viewer")
    whole = log_of(there)
    assert [one.id for one in whole] == list(range(1, len(whole) + 1))
    last = check_chain(whole)
    first = [
        Entry.from_fields(Fields(one, "e")) for one in there.admin("GET", "audit-log?limit=4").json["entries"]
    ]
    assert len(first) == 4
    assert check_chain(log_of(there, 4)[: len(whole) - 4], check_chain(first), first=5) == last


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET who = 'eve' WHERE id = 1",
        "DELETE FROM audit_log WHERE id = 1",
        "INSERT OR REPLACE INTO audit_log VALUES (1, 1.0, 'eve', 'nothing', '{}', '')",
        "INSERT INTO audit_log VALUES (99, 1.0, 'eve', 'nothing', '{}', '')",
    ],
)
def test_attack_the_database_refuses_to_change_the_log(there: World, statement: str) -> None:
    """Whatever code of ours might try."""
    connection = sqlite3.connect(there.folder / "hub.db")
    with pytest.raises(sqlite3.IntegrityError, match="the audit log is never changed"):
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("harm", ["who", "gone", "order", "about"])
def test_attack_what_was_changed_all_the_same_is_found(there: World, harm: str) -> None:
    """By whoever has the database in hand and drops the triggers."""
    for name in ("ann", "bob", "cat"):
        add(there, name, "viewer")
    entries = log_of(there)
    assert check_chain(entries) != BEGIN
    if harm == "gone":
        del entries[3]
    elif harm == "order":
        entries[2], entries[3] = entries[3], entries[2]
    else:
        told = entries[3].as_json() | {harm: "eve" if harm == "who" else {"name": "eve"}}
        entries[3] = Entry.from_fields(Fields(told, "entry"))
    with pytest.raises(MessageError, match=r"the audit log was changed; at entry [345]"):
        check_chain(entries)


def test_reading_what_devices_sent_is_an_order(there: World) -> None:
    """Samples are pictures of somebody's home: who read them is known."""
    start = len(log_of(there))
    there.admin("GET", "evidence/samples")
    assert [one.what for one in log_of(there, start)] == ["evidence.read"] * 2


def test_a_flood_of_words_fills_no_disk(there: World) -> None:
    """What is too long is cut, or stands there by its digest."""
    start = len(log_of(there))
    words = {f"k{number}": "\N{LATIN SMALL LETTER E WITH ACUTE}" * 190 for number in range(16)}
    call(there, there.operator, "POST", "rollouts", {"release": R1, "labels": words})
    asked, came = log_of(there, start)[:2]
    assert asked.about == {}
    assert set(came.about) == {"order", "outcome", "digest"}


def test_attack_who_was_revoked_while_a_body_came_orders_nothing(
    there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The role is looked at before the body, and once more when all of it is there."""
    token, real = add(there, "ann", "admin"), bodies._check_length

    def revoked_meanwhile(request: Any, at_most: int) -> None:
        real(request, at_most)
        with sqlite3.connect(there.folder / "hub.db", timeout=10) as connection:
            connection.execute("UPDATE operators SET revoked_at = 1.0 WHERE name = 'ann'")

    monkeypatch.setattr(bodies, "_check_length", revoked_meanwhile)
    reply = call(there, token, "POST", "operators", {"name": "eve", "role": "admin"})
    assert reply.status == 401
    assert [one["name"] for one in there.admin("GET", "operators").json["operators"]] == ["ann"]


def test_attack_an_entry_cannot_break_a_line(there: World) -> None:
    """A name with a line end would forge a second entry on the screen: it is shown as JSON."""
    there.call("POST", "/v1/admin/devices/x%0A57%20owner/revoke", authorization=f"Bearer {there.operator}")
    (asked,) = [one for one in log_of(there) if one.what == "device.revoke" and "device" in one.about]
    assert "\n" in str(asked.about["device"])
    assert "\n" not in _line(asked)


def test_looking_is_not_written(there: World) -> None:
    """A dashboard would fill the disk."""
    start = len(log_of(there))
    for path in LOOKS:
        there.admin("GET", path)
    assert log_of(there, start) == []
