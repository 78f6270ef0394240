"""Join tokens and credentials: who comes in, how often, and what the hub keeps of a secret."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from hub_worlds import CLASS, Reply, World, world
from sqlalchemy import update

from edgestill.core.digest import Digest
from edgestill.core.errors import AccessError
from edgestill.core.jsonio import canonical
from edgestill.core.wire import Enrol, Enrolled
from edgestill.hub import enrolment
from edgestill.hub.tables import join_tokens
from edgestill.trust.certificates import IdentityKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub with a root."""
    with world(tmp_path / "hub") as made:
        made.give_root()
        yield made


def ask(there: World, token: str, name: str = "d0", hardware_class: str = CLASS) -> tuple[int, str]:
    """Tries to enrol: status and code or credential."""
    message = Enrol(join_token=token, device=name, hardware_class=hardware_class)
    reply = there.call("POST", "/v1/enrol", message.to_bytes())
    return reply.status, reply.json["code" if reply.status >= 400 else "credential"]


def test_a_token_pins_root_and_authority(there: World) -> None:
    """`est2.SECRET.ROOT.AUTHORITY`: digests of the root that enrolment hands out, and of the certificate that issues."""
    token = there.token()
    reply = there.call(
        "POST", "/v1/enrol", Enrol(join_token=token, device="d0", hardware_class=CLASS).to_bytes()
    )
    enrolled = Enrolled.from_bytes(reply.body)
    assert token.split(".")[0] == "est2"
    assert token.split(".")[2] == Digest.of(enrolled.root).hex
    assert token.split(".")[3] == there.hub.home.authority.authorities.digests[0]
    assert enrolled.interval == 30.0


def test_a_single_use_token_lets_one_device_in(there: World) -> None:
    """The second is refused."""
    token = there.token()
    assert ask(there, token, "d0")[0] == 201
    assert ask(there, token, "d1") == (401, "access-denied")


def test_a_multi_use_token_lets_so_many_in(there: World) -> None:
    """Three, and no fourth."""
    token = there.token(uses=3)
    assert [ask(there, token, f"d{i}")[0] for i in range(4)] == [201, 201, 201, 401]


def test_tokens_are_listed_without_their_secrets(there: World) -> None:
    """By an id, with the uses that are left, the devices that came and how they stand; what holds first, then the newest."""
    first = there.token(uses=3)
    ask(there, first, "d0")
    there.clock.advance(1)
    second = there.token()
    told = there.admin("GET", "join-tokens")
    assert [one["uses_left"] for one in told.json["tokens"]] == [1, 2]
    assert [one["devices"] for one in told.json["tokens"]] == [0, 1]
    assert [one["state"] for one in told.json["tokens"]] == ["holds", "holds"]
    assert told.json["more"] is False
    assert told.json["tokens"][0]["expires_at"] == there.clock.now() + 3600
    for token in (first, second):
        assert token.split(".")[1].encode() not in told.body
    assert len({one["id"] for one in told.json["tokens"]}) == 2
    ask(there, second, "d1")
    assert [one["state"] for one in there.admin("GET", "join-tokens").json["tokens"]] == ["holds", "used up"]
    there.clock.advance(3600)
    assert {one["state"] for one in there.admin("GET", "join-tokens").json["tokens"]} == {"ended"}


def test_a_long_list_says_that_there_is_more(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that holds is not hidden behind newer ones that do not; of many devices the first are named."""
    monkeypatch.setattr(enrolment, "MOST_LISTED", 2)
    token = there.token(uses=9)
    for number in range(3):
        assert ask(there, token, f"d{number}")[0] == 201
        there.clock.advance(1)
        spent = there.token()
        assert ask(there, spent, f"other{number}")[0] == 201
    told = there.admin("GET", "join-tokens").json
    assert [one["state"] for one in told["tokens"]] == ["holds", "used up"]
    assert told["more"] is True
    ended = there.admin("POST", "join-tokens/revoke", {"token": token}).json
    assert (ended["devices"], ended["more"]) == (["d0", "d1"], True)


@pytest.mark.parametrize("by_id", [True, False])
def test_attack_a_revoked_token_lets_nobody_in(there: World, *, by_id: bool) -> None:
    """Attack: one that got into other hands is ended by its id or itself, also for who enrolled with it and asks again."""
    token, other = there.token(uses=9), there.token()
    assert ask(there, token, "d0")[0] == 201
    (known,) = [one for one in there.admin("GET", "join-tokens").json["tokens"] if one["uses_left"] == 8]
    named = known["id"] if by_id else token
    ended = there.admin("POST", "join-tokens/revoke", {"token": named})
    assert ended.json == {"id": known["id"], "devices": ["d0"], "more": False}
    for seconds in (0, -3600, 7200):
        there.clock.jump(seconds)
        for name in ("d0", "d1"):
            assert ask(there, token, name) == (401, "access-denied"), "no clock brings it back"
    there.clock.jump(-3600)
    assert ask(there, other, "d1")[0] == 201, "others are not touched"
    there.clock.advance(60)
    again = there.admin("POST", "join-tokens/revoke", {"token": named})
    assert again.json == ended.json, "doing it twice changes nothing"


@pytest.mark.parametrize(
    "named", ["", "0" * 12, "%", "_" * 12, "est1." + "x" * 32 + "." + "0" * 64, "a" * 301, 7, None]
)
def test_attack_a_token_that_there_is_not(there: World, named: object) -> None:
    """Attack: no pattern, no other kind of value ends a token that was not named."""
    token = there.token()
    assert there.admin("POST", "join-tokens/revoke", canonical({"token": named})).status in {400, 404}  # type: ignore[dict-item]  # some are no JSON text
    assert ask(there, token)[0] == 201


@pytest.mark.parametrize("around", ["{}\n", " {}", "{}" + " " * 200])
def test_attack_a_token_that_is_revoked_is_not_written_down(
    there: World, around: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Attack: with white space around it, or too long, the secret is in no answer, no log and no entry of the audit log."""
    token = there.token()
    reply = there.admin("POST", "join-tokens/revoke", {"token": around.format(token)})
    secret = token.split(".")[1]
    log = there.admin("GET", "audit-log")
    assert secret not in caplog.text + reply.body.decode() + log.body.decode()
    assert (ask(there, token)[0] == 401) == (reply.status == 200)


def test_an_expired_token_lets_nobody_in(there: World) -> None:
    """From the second it expires on."""
    token = there.token(expires_in=60)
    there.clock.advance(60)
    assert ask(there, token) == (401, "access-denied")


def test_a_spent_an_expired_and_an_unknown_token_look_the_same(there: World) -> None:
    """A guesser learns nothing about which tokens exist."""
    spent, expired = there.token(), there.token(expires_in=1)
    there.enrol("d0", token=spent)
    there.clock.advance(2)
    unknown = f"est1.{'x' * 32}.{'0' * 64}"
    answers = [
        there.call("POST", "/v1/enrol", Enrol(join_token=one, device="d1", hardware_class=CLASS).to_bytes())
        for one in (spent, expired, unknown, "nonsense", "")
    ]
    assert {one.status for one in answers} == {401}
    assert len({one.body for one in answers}) == 1


def test_a_name_is_taken_once(there: World) -> None:
    """Whoever comes later with another token gets 409, and the first device stays what it was."""
    first = there.enrol("d0")
    assert ask(there, there.token()) == (409, "state-conflict")
    assert first.call("GET", "/v1/poll").status == 200


def test_a_device_whose_answer_got_lost_may_ask_again(there: World) -> None:
    """With the same token, before its first call: it gets a new credential, and the use is not taken twice."""
    token = there.token(uses=2)
    _, lost = ask(there, token)
    status, credential = ask(there, token)
    assert status == 201
    assert there.call("GET", "/v1/poll", authorization=f"Bearer {lost}").status == 401
    assert there.call("GET", "/v1/poll", authorization=f"Bearer {credential}").status == 200
    assert ask(there, token, "d1")[0] == 201


def test_a_name_that_never_called_is_claimed_again_with_another_token(there: World) -> None:
    """An hour later, by the same device, which could not use its answer: it takes a use, and the first credential is of no use any more."""
    lost = there.enrol("d0", token=there.token())
    there.clock.advance(enrolment.UNHEARD - 1)
    token = there.token()
    assert ask(there, token) == (409, "state-conflict"), "not before"
    there.clock.advance(1)
    assert ask(there, token, hardware_class="aarch64-dotprod-onnxruntime") == (409, "state-conflict")
    status, credential = ask(there, token)
    assert status == 201
    assert ask(there, token, "d1") == (401, "access-denied"), "the use is taken"
    assert lost.call("GET", "/v1/poll").status == 401
    assert there.call("GET", "/v1/poll", authorization=f"Bearer {credential}").status == 200
    assert ask(there, there.token()) == (409, "state-conflict"), "it has called"


def test_a_spent_token_claims_no_name_again(there: World) -> None:
    """Attack: who has it, and not the enrolment that it was spent on, gets what a guesser gets."""
    there.enrol("d0")
    there.clock.advance(enrolment.UNHEARD)
    spent = there.token()
    there.enrol("d1", token=spent)
    assert ask(there, spent, "d0") == (401, "access-denied")


@pytest.mark.parametrize("step", ["root", "switch", "finish"])
def test_a_token_of_before_another_root_or_authority_is_not_used_up(there: World, step: str) -> None:
    """The device would refuse the answer: it keeps name and use, and comes in with a token that was made since."""
    token = there.token()
    for each in ("begin", "switch", "finish")[: {"root": 0, "switch": 2, "finish": 3}[step]]:
        there.admin("POST", f"authority/{each}", b"" if each == "begin" else {"force": True})
    named = token if step != "root" else ".".join([*token.split(".")[:2], "0" * 64, token.split(".")[3]])

    def comes(told: str) -> Reply:
        request = IdentityKey.generate().request().decode()
        message = Enrol(join_token=told, device="d0", hardware_class=CLASS, request=request)
        return there.call("POST", "/v1/enrol", message.to_bytes())

    refused = comes(named)
    assert (refused.status, refused.json["what"]) == (
        409,
        "the join token is of before another root or authority",
    )
    assert there.admin("GET", "fleet").json["devices"] == []
    assert there.admin("GET", "join-tokens").json["tokens"][0]["uses_left"] == 1
    assert comes(there.token()).status == 201


def test_a_device_that_has_called_cannot_be_taken_over(there: World) -> None:
    """Attack: somebody with the same multi-use token claims the name of a living device."""
    token = there.token(uses=5)
    victim = there.enrol("d0", token=token)
    victim.poll()
    assert ask(there, token) == (409, "state-conflict")
    assert victim.call("GET", "/v1/poll").status == 200


def test_no_secret_is_kept(there: World) -> None:
    """Neither the token's secret nor the credential is in any file; their digests are."""
    token = there.token()
    device = there.enrol("d0", token=token)
    connection = sqlite3.connect(there.folder / "hub.db")
    (stored,) = connection.execute("SELECT credential FROM devices").fetchone()
    connection.close()
    assert stored == Digest.of(device.credential.encode()).hex
    for path in there.folder.rglob("*"):
        if path.is_file() and path.name != "operator.token":
            content = path.read_bytes()
            assert token.split(".")[1].encode() not in content, path
            assert device.credential.encode() not in content, path
            assert there.operator.encode() not in content, path


def test_without_a_root_nobody_enrols(tmp_path: Path) -> None:
    """There would be nothing to trust: no token is made, and no device comes in."""
    with world(tmp_path / "hub") as there:
        reply = there.admin("POST", "join-tokens", {"uses": 1, "expires_in": 60})
        assert (reply.status, reply.json["what"]) == (409, "there is no root yet")
        assert ask(there, "est1.x.y") == (409, "state-conflict")


@pytest.mark.parametrize(
    "body",
    [
        {"uses": 0, "expires_in": 60},
        {"uses": 10**9, "expires_in": 60},
        {"uses": 1, "expires_in": 0},
        {"uses": 1, "expires_in": 10**9},
        {"uses": True, "expires_in": 60},
        {"uses": 1, "expires": 60},
    ],
)
def test_a_token_out_of_range_is_not_made(there: World, body: dict[str, object]) -> None:
    """With 400."""
    assert there.admin("POST", "join-tokens", body).status == 400


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 65, "<b>"])
def test_a_name_that_is_none_is_refused(there: World, name: str) -> None:
    """Names are letters, digits, `_` and `-`."""
    assert ask(there, there.token(), name) == (400, "message-invalid")


def test_an_unknown_hardware_class_text_is_refused(there: World) -> None:
    """It must have the form ARCH-ISA-ENGINE."""
    assert ask(there, there.token(), "d0", "toaster") == (400, "message-invalid")


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Bearer nobody", "Basic bm9ib2R5", "Bearer " + "x" * 400]
)
def test_an_unknown_device_is_refused(there: World, value: str) -> None:
    """With 401 on every call of the control plane and on inference."""
    headers = {"authorization": value} if value else {}
    for method, path in (
        ("GET", "/v1/poll"),
        ("POST", "/v1/reports"),
        ("POST", "/v1/evidence/statistics"),
        ("POST", "/v2/models/teacher/infer"),
    ):
        reply = there.call(method, path, b"[]", **headers)
        assert reply.status == 401, path
        assert reply.headers["www-authenticate"] == "Bearer"


def test_a_device_is_no_operator_and_an_operator_is_no_device(there: World) -> None:
    """Attack: a stolen device credential opens nothing of the operator's."""
    device = there.enrol("d0")
    for method, path in (("GET", "fleet"), ("POST", "join-tokens"), ("PUT", "blobs"), ("POST", "targets")):
        assert device.call(method, f"/v1/admin/{path}", b"{}").status == 401, path
    assert there.call("GET", "/v1/poll", authorization=f"Bearer {there.operator}").status == 401


def test_attack_two_devices_that_come_at_once_with_the_last_use(there: World) -> None:
    """Both have seen one use left: it is taken with the question whether it is there, so one of them is refused."""
    token = there.token()

    class Late:
        """A connection to which the token looks unused, while somebody else takes its last use."""

        def __init__(self, inner: AsyncConnection) -> None:
            self.inner = inner
            self.asked = 0

        async def execute(self, statement: Any, *rest: Any) -> Any:
            """Carries a statement out; after the first question the other device has come."""
            found: Any = await self.inner.execute(statement, *rest)
            self.asked += 1
            if self.asked == 1:
                found = found.freeze()()
                await self.inner.execute(update(join_tokens).values(uses_left=0))
            return found

    async def come() -> None:
        async with there.hub.database.write() as connection:
            message = Enrol(join_token=token, device="late", hardware_class=CLASS)
            late: Any = Late(connection)
            own = there.hub.home.authority.authorities.digests[0]
            pinned = Digest.parse("sha256:" + token.split(".")[2])
            await enrolment.enrol(
                late, message, credential="c", root=pinned, authority=own, now=there.clock.now()
            )

    assert there.transport._host is not None
    with pytest.raises(AccessError):
        asyncio.run_coroutine_threadsafe(come(), there.transport._host.loop).result(timeout=10)
    assert there.admin("GET", "fleet").json["devices"] == []


def test_devices_are_found_by_the_token_that_they_came_by(there: World) -> None:
    """By an index, however many there are."""
    there.enrol("d0")
    connection = sqlite3.connect(there.hub.home.database)
    plan = connection.execute("EXPLAIN QUERY PLAN SELECT id FROM devices WHERE join_token = 'x'").fetchall()
    connection.close()
    assert "ix_devices_join_token" in str(plan)
