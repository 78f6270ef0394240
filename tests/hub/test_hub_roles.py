"""Every route and every role: who is let in where, from the application's own table of routes.

A new route fails here until somebody has written down who may call it.
"""

from __future__ import annotations

import base64
import json
from functools import cache
from typing import TYPE_CHECKING

import pytest
from hub_worlds import Device, World, teacher_model, world
from starlette.routing import Route

from edgestill.hub.app import create_app

if TYPE_CHECKING:
    from collections.abc import Iterator

ROLES = (
    "nobody",
    "stranger",
    "device",
    "operator",
    "device as a person",
    "operator as a person",
    "join token",
    "revoked device",
)
EVERYBODY = frozenset(ROLES)
OPERATOR = frozenset({"operator"})
DEVICE = frozenset({"device"})
PERSON = frozenset({"operator", "operator as a person"})

MAY = {
    "GET /": PERSON,
    "GET /health/live": EVERYBODY,
    "GET /health/ready": EVERYBODY,
    "POST /v1/enrol": EVERYBODY,
    "GET /v1/authorities": EVERYBODY,
    "GET /v1/authorities/vouched": EVERYBODY,
    "POST /v1/certificate": DEVICE,
    "GET /v1/poll": DEVICE,
    "POST /v1/reports": DEVICE,
    "POST /v1/evidence/statistics": DEVICE,
    "POST /v1/evidence/votes/{id:int}": DEVICE,
    "POST /v1/timing": DEVICE,
    "GET /metadata/{name:path}": EVERYBODY,
    "GET /targets/{path:path}": EVERYBODY,
    "GET /patches/{base}/{new}": EVERYBODY,
    "GET /{tenant}/controller/v1/{controller}": DEVICE,
    "PUT /{tenant}/controller/v1/{controller}/configData": DEVICE,
    "GET /{tenant}/controller/v1/{controller}/deploymentBase/{action}": DEVICE,
    "POST /{tenant}/controller/v1/{controller}/deploymentBase/{action}/feedback": DEVICE,
    "GET /{tenant}/controller/v1/{controller}/cancelAction/{action}": DEVICE,
    "POST /{tenant}/controller/v1/{controller}/cancelAction/{action}/feedback": DEVICE,
    "GET /{tenant}/controller/v1/{controller}/softwaremodules/{module}/artifacts/{file}": DEVICE,
    "GET /v2": EVERYBODY,
    "GET /v2/health/live": EVERYBODY,
    "GET /v2/health/ready": EVERYBODY,
    "GET /v2/openapi.json": EVERYBODY,
    "POST /v2/repository/index": EVERYBODY,
    "GET /v2/models/{model}": EVERYBODY,
    "GET /v2/models/{model}/config": EVERYBODY,
    "GET /v2/models/{model}/versions/{version}/config": EVERYBODY,
    "GET /v2/models/{model}/ready": EVERYBODY,
    "POST /v2/models/{model}/infer": DEVICE | OPERATOR,
    "GET /v2/models/{model}/versions/{version}": EVERYBODY,
    "GET /v2/models/{model}/versions/{version}/ready": EVERYBODY,
    "POST /v2/models/{model}/versions/{version}/infer": DEVICE | OPERATOR,
    "GET /v1/admin/authority": OPERATOR,
    "POST /v1/admin/authority/begin": OPERATOR,
    "POST /v1/admin/authority/switch": OPERATOR,
    "POST /v1/admin/authority/back": OPERATOR,
    "POST /v1/admin/authority/finish": OPERATOR,
    "POST /v1/admin/authority/abandon": OPERATOR,
    "GET /v1/admin/online-key": OPERATOR,
    "POST /v1/admin/root": OPERATOR,
    "POST /v1/admin/roots": OPERATOR,
    "POST /v1/admin/join-tokens": OPERATOR,
    "GET /v1/admin/join-tokens": OPERATOR,
    "POST /v1/admin/join-tokens/revoke": OPERATOR,
    "PUT /v1/admin/blobs": OPERATOR,
    "GET /v1/admin/metadata/targets": OPERATOR,
    "PUT /v1/admin/images": OPERATOR,
    "POST /v1/admin/targets": OPERATOR,
    "GET /v1/admin/roles": OPERATOR,
    "GET /v1/admin/roles/{role:path}": OPERATOR,
    "POST /v1/admin/roles/{role:path}": OPERATOR,
    "GET /v1/admin/releases": OPERATOR,
    "GET /v1/admin/rollouts": OPERATOR,
    "POST /v1/admin/rollouts": OPERATOR,
    "GET /v1/admin/rollouts/{id:int}": OPERATOR,
    "POST /v1/admin/rollouts/{id:int}/pause": OPERATOR,
    "POST /v1/admin/rollouts/{id:int}/resume": OPERATOR,
    "POST /v1/admin/rollouts/{id:int}/rollback": OPERATOR,
    "POST /v1/admin/rollouts/{id:int}/advance": OPERATOR,
    "GET /v1/admin/timings": OPERATOR,
    "POST /v1/admin/timings": OPERATOR,
    "GET /v1/admin/timings/{id:int}": OPERATOR,
    "POST /v1/admin/timings/{id:int}/cancel": OPERATOR,
    "GET /v1/admin/timings/{id:int}/profile": OPERATOR,
    "GET /v1/admin/votings": OPERATOR,
    "POST /v1/admin/votings": OPERATOR,
    "GET /v1/admin/votings/{id:int}": OPERATOR,
    "POST /v1/admin/votings/{id:int}/close": OPERATOR,
    "POST /v1/admin/votings/{id:int}/outcome": OPERATOR,
    "GET /v1/admin/fleet": OPERATOR,
    "POST /v1/admin/devices/{device}/revoke": OPERATOR,
    "POST /v1/admin/devices/{device}/assignment": OPERATOR,
    "GET /v1/admin/operators": OPERATOR,
    "POST /v1/admin/operators": OPERATOR,
    "POST /v1/admin/operators/{operator}/revoke": OPERATOR,
    "GET /v1/admin/audit-log": OPERATOR,
    "GET /v1/admin/evidence": OPERATOR,
    "GET /v1/admin/evidence/samples": OPERATOR,
    "GET /v1/admin/evidence/statistics": OPERATOR,
    "POST /v1/admin/evidence/statistics/agreed": OPERATOR,
}
FILLED = {
    "{name:path}": "timestamp.json",
    "{role:path}": "auto/x",
    "{path:path}": "watch/1.0.0/x.esb",
    "{base}": "0" * 64,
    "{new}": "1" * 64,
    "{model}": "teacher",
    "{version}": "1",
    "{id:int}": "1",
    "{tenant}": "default",
    "{controller}": "d0",
    "{action}": "1",
    "{module}": "0" * 64,
    "{file}": "watch-1.0.0-x.swu",
    "{device}": "somebody",
    "{operator}": "somebody",
}
REFUSED = {401}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A hub that has something to show behind every route."""
    with world(tmp_path_factory.mktemp("hub") / "hub", teacher=teacher_model()) as made:
        made.give_root()
        made.publish("1.0.0", "1.1.0")
        made.roll_out("watch/1.0.0")
        yield made


@pytest.fixture(scope="module")
def device(there: World) -> Device:
    """A device of the fleet."""
    return there.enrol("d0")


@cache
def credential_of_one_revoked(there: World) -> str:
    """Of a device that was in the fleet."""
    device = there.enrol("revoked")
    device.poll()
    assert there.admin("POST", "devices/revoked/revoke").status == 200
    return device.credential


def headers(there: World, device: Device, role: str) -> dict[str, str]:
    """What this role sends along."""
    match role:
        case "stranger":
            return {"authorization": "Bearer esd1." + "0" * 48}
        case "device":
            return {"authorization": f"Bearer {device.credential}"}
        case "operator":
            return {"authorization": f"Bearer {there.operator}"}
        case "device as a person":
            return {"authorization": basic(device.credential)}
        case "operator as a person":
            return {"authorization": basic(there.operator)}
        case "revoked device":
            return {"authorization": f"Bearer {credential_of_one_revoked(there)}"}
        case "join token":
            return {"authorization": f"Bearer {there.token()}"}
    return {}


def basic(password: str) -> str:
    """As a browser sends it."""
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


def filled(path: str) -> str:
    """The path with something in its gaps."""
    for gap, value in FILLED.items():
        path = path.replace(gap, value)
    assert "{" not in path
    return path


def told(there: World) -> str:
    """All that an operator can see."""
    paths = ("fleet", "rollouts", "rollouts/1", "releases", "evidence")
    return json.dumps([there.admin("GET", path).json for path in paths])


def test_the_table_has_every_route(there: World) -> None:
    """With each of its methods: HEAD belongs to GET, and there is no other."""
    found = set()
    for route in create_app(there.hub).routes:
        assert isinstance(route, Route)
        assert route.methods is not None
        found |= {f"{method} {route.path}" for method in route.methods - {"HEAD"}}
    assert found == set(MAY)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("exchange", list(MAY))
def test_a_route_lets_in_exactly_whom_the_table_names(
    there: World, device: Device, exchange: str, role: str
) -> None:
    """Whoever is not named gets 401, whatever they send, and changes nothing."""
    method, _, path = exchange.partition(" ")
    sent = headers(there, device, role)
    before = told(there)
    reply = there.call(method, filled(path), b"", **sent)
    assert (reply.status in REFUSED) == (role not in MAY[exchange]), reply
    assert reply.status < 500
    if role not in MAY[exchange]:
        assert told(there) == before
        assert reply.headers["www-authenticate"].startswith(("Bearer", "Basic"))
        assert reply.headers.get("cache-control", "no-store") == "no-store"


@pytest.mark.parametrize("exchange", [one for one in MAY if MAY[one] != EVERYBODY])
def test_attack_the_body_of_a_stranger_is_not_even_read(there: World, exchange: str) -> None:
    """A length over every bound, a broken encoding: still 401, as the caller was looked at first."""
    method, _, path = exchange.partition(" ")
    reply = there.call(method, filled(path), b"{", content_length=str(10**14), content_encoding="gzip")
    assert reply.status == 401


@pytest.mark.parametrize("exchange", [one for one in MAY if one.startswith("GET") and MAY[one] != EVERYBODY])
def test_head_is_no_way_around(there: World, exchange: str) -> None:
    """Whoever may not GET may not learn the headers either."""
    assert there.call("HEAD", filled(exchange.removeprefix("GET "))).status == 401


@pytest.mark.parametrize(
    "trick",
    [
        "//v1/admin/fleet",
        "/v1//admin/fleet",
        "/v1/admin/fleet/",
        "/V1/admin/fleet",
        "/v1/admin/../admin/fleet",
        "/v1/admin/fleet%00",
        "/v1/admin/fleet;x=1",
        "/v1/admin%2ffleet",
    ],
)
def test_attack_another_spelling_of_a_path_opens_nothing(there: World, trick: str) -> None:
    """Neither as it is nor by a redirect."""
    assert there.call("GET", trick).status in {401, 404}


@pytest.mark.parametrize(
    "name", ["x-http-method-override", "x-method-override", "x-original-url", "x-forwarded-user"]
)
def test_attack_headers_of_other_servers_mean_nothing_here(there: World, name: str) -> None:
    """Whatever a proxy elsewhere would believe."""
    values = {name: "operator", "x-original-url": "/v1/admin/fleet"}
    assert there.call("GET", "/v1/admin/fleet", b"", **values).status == 401
    assert there.call("GET", "/health/live", b"", **values).body == b"live\n"


def test_a_credential_in_the_query_is_none(there: World, device: Device) -> None:
    """Queries end up in logs."""
    for query in (f"token={there.operator}", f"access_token={device.credential}"):
        assert there.call("GET", f"/v1/poll?{query}").status == 401
        assert there.call("GET", f"/v1/admin/fleet?{query}").status == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_may_be_written_in_any_case(there: World, scheme: str) -> None:
    """RFC 9110, 11.1: the name of a scheme has no case."""
    reply = there.call("GET", "/v1/admin/fleet", b"", authorization=f"{scheme} {there.operator}")
    assert reply.status == 200


@pytest.mark.parametrize(
    "change",
    [
        lambda secret: secret[:-1],
        lambda secret: secret + "x",
        lambda secret: secret.upper(),
        lambda secret: " " + secret,
        lambda secret: secret + "\x00",
        lambda secret: secret + "\xe9",
        lambda secret: "*",
    ],
)
def test_attack_nearly_the_secret_is_not_the_secret(there: World, device: Device, change: object) -> None:
    """A byte too few, a byte too many, another case, a wildcard."""
    assert callable(change)
    for secret, path in ((there.operator, "/v1/admin/fleet"), (device.credential, "/v1/poll")):
        for scheme in (f"Bearer {change(secret)}", basic(secret) + "\xe9"):
            assert there.call("GET", path, b"", authorization=scheme).status == 401


def test_devices_cannot_speak_for_each_other(there: World) -> None:
    """What a device reports is about itself, whatever its report says."""
    one, _ = there.enrol("one"), there.enrol("other")
    report = {"id": "r1", "at": 1.0, "bundle": f"sha256:{'0' * 64}", "release": "watch/1.0.0"}
    report |= {"device": "other", "state": "fell-back", "reason": "sabotage"}
    reply = one.call("POST", "/v1/reports", json.dumps([report]).encode())
    assert reply.json == {"accepted": 1, "duplicates": 0}
    fleet = {entry["device"]: entry for entry in there.admin("GET", "fleet").json["devices"]}
    assert fleet["one"]["state"] == "fell-back"
    assert (fleet["other"]["state"], fleet["other"]["reason"]) == (None, "")
