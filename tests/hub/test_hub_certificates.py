"""Certificates of devices at the hub: who gets one, for which key, and who is heard by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hub_worlds import CLASS, Device, World, question, sums, teacher_model, world

from edgestill.core.errors import SettingError
from edgestill.core.wire import Certified, Certify, Enrol, Enrolled, reports_to_bytes
from edgestill.hub.settings import LONGEST_CERTIFICATE, Settings
from edgestill.trust.authority import Authority
from edgestill.trust.certificates import BACKDATED, Authorities, IdentityKey, Requested, device_uri

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hub_worlds import Reply

DAY = 86_400.0
KEY, OTHER = IdentityKey.generate(), IdentityKey.generate()
R1 = "watch/1.0.0"


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub with a release and a teacher."""
    with world(tmp_path / "hub", teacher=teacher_model()) as made:
        made.give_root()
        made.publish("1.0.0")
        yield made


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[World]:
    """A hub that requires certificates."""
    settings = Settings(longest_poll=5, require_certificates=True)
    with world(tmp_path / "hub", teacher=teacher_model(), settings=settings) as made:
        made.give_root()
        yield made


def asked(there: World, token: str, name: str = "d0", request: bytes | None = None) -> Reply:
    """The answer to an enrolment."""
    text = (KEY.request() if request is None else request).decode()
    message = Enrol(join_token=token, device=name, hardware_class=CLASS, request=text)
    return there.call("POST", "/v1/enrol", message.to_bytes())


def enrolled(there: World, name: str = "d0", key: IdentityKey = KEY) -> tuple[Device, str]:
    """A device, and its certificate."""
    reply = asked(there, there.token(), name, key.request())
    assert reply.status == 201, reply
    answer = Enrolled.from_bytes(reply.body)
    return Device(there, name, answer.credential), answer.certificate


def shows(there: World, certificate: str | None, path: str = "/v1/poll", **headers: str) -> Reply:
    """A request over a connection on which a certificate was shown."""
    there.transport.shown = certificate
    try:
        return there.call("GET", path, b"", **headers)
    finally:
        there.transport.shown = None


def renewed(
    there: World, certificate: str | None = None, key: IdentityKey = KEY, *, by: Device | str | None = None
) -> Reply:
    """The answer to a request for the next certificate; `by` whose credential, or which secret, is shown."""
    secret = by.credential if isinstance(by, Device) else by
    headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
    there.transport.shown = certificate
    try:
        return there.call("POST", "/v1/certificate", Certify(key.request().decode()).to_bytes(), **headers)
    finally:
        there.transport.shown = None


def bearer(device: Device) -> dict[str, str]:
    """The device's credential."""
    return {"authorization": f"Bearer {device.credential}"}


def member(there: World, certificate: str) -> Any:
    """Whom a certificate speaks for."""
    return there.hub.home.authority.authorities.member(certificate.encode())


# Who gets one


def test_a_device_enrols_with_a_request_and_gets_a_certificate(there: World) -> None:
    """For its name and key, for a week, with the authority that the token names."""
    token = there.token()
    answer = Enrolled.from_bytes(asked(there, token).body)
    authorities = Authorities.from_pem(answer.authorities.encode())
    assert authorities.digests == (token.split(".")[3],)
    found = authorities.member(answer.certificate.encode())
    assert (found.device, found.key) == ("d0", KEY.id)
    assert (found.begins, found.ends) == (there.clock.now() - BACKDATED, there.clock.now() + 7 * DAY)


def test_a_device_that_sends_no_request_gets_none(there: World) -> None:
    """As devices of an older version do; they go on with their credential."""
    device = there.enrol("d0")
    answer = device.call("GET", "/v1/poll")
    assert answer.status == 200
    (shown,) = there.admin("GET", "fleet").json["devices"]
    assert shown["certified_until"] is None


def test_the_authority_is_public(there: World) -> None:
    """Anybody may have the certificate, which says nothing that the token does not; never the key."""
    reply = there.call("GET", "/v1/authorities")
    assert reply.headers["content-type"].startswith("application/x-pem-file")
    assert Authorities.from_pem(reply.body) == there.hub.home.authority.authorities
    assert b"PRIVATE" not in reply.body


def test_tokens_of_an_older_hub_go_on(there: World) -> None:
    """`est1.SECRET.ROOT`, which vouches for the root only."""
    _, secret, root, _ = there.token().split(".")
    assert asked(there, f"est1.{secret}.{root}").status == 201


@pytest.mark.parametrize(
    ("request_", "status"),
    [(b"nonsense", 400), (b"-" * 5000, 400), (KEY.to_pem(), 400)],
    ids=["nonsense", "too long", "a key"],
)
def test_attack_a_request_that_is_none_takes_no_use_of_the_token(
    there: World, request_: bytes, status: int
) -> None:
    """Attack: an oversize request, or something else; nobody has enrolled by it."""
    token = there.token()
    reply = asked(there, token, request=request_)
    assert (reply.status, reply.json["code"]) == (status, "message-invalid")
    assert there.admin("GET", "fleet").json["devices"] == []
    assert asked(there, token).status == 201


def test_the_fleet_shows_until_when_a_device_is_certified(there: World) -> None:
    """For whoever looks after the fleet."""
    device, _ = enrolled(there)
    (shown,) = there.admin("GET", "fleet").json["devices"]
    assert shown["certified_until"] == there.clock.now() + 7 * DAY
    there.clock.advance(5 * DAY)
    assert renewed(there, by=device).status == 200
    (shown,) = there.admin("GET", "fleet").json["devices"]
    assert shown["certified_until"] == there.clock.now() + 7 * DAY


# Whom one lets in


def exchanges(device: Device) -> list[tuple[str, str, bytes, dict[str, str]]]:
    """Everything a device may ask of its hub."""
    body, headers = question(np.ones((1, 4), np.float32), id="q")
    reports = reports_to_bytes([device.told(R1, "confirmed")])
    return [
        ("GET", "/v1/poll", b"", {}),
        ("POST", "/v1/reports", reports, {}),
        ("POST", "/v1/evidence/statistics", sums().to_bytes(), {"x_edgestill_id": "m1"}),
        ("POST", "/v2/models/teacher/infer", body, headers),
        ("POST", "/v1/certificate", Certify(KEY.request().decode()).to_bytes(), {}),
    ]


def test_a_certificate_opens_what_the_credential_opens(there: World) -> None:
    """Every exchange, with the certificate alone, and with the credential beside it."""
    device, certificate = enrolled(there)
    there.transport.shown = certificate
    for method, path, body, headers in exchanges(device):
        assert there.call(method, path, body, **headers).status == 200, path
        assert device.call(method, path, body, **headers).status == 200, path


def test_attack_a_revoked_device_with_a_valid_certificate(there: World) -> None:
    """Attack: the certificate would hold for days; from the revocation on it opens nothing, nor gets another."""
    device, certificate = enrolled(there)
    there.admin("POST", "devices/d0/revoke")
    there.transport.shown = certificate
    for method, path, body, headers in exchanges(device):
        reply = there.call(method, path, body, **headers)
        assert reply.status == 401, path
        if path.startswith("/v1"):
            assert reply.json["what"] == "the credential was revoked"
    there.transport.shown = None
    member(there, certificate).check_time(there.clock.now())


def test_attack_a_certificate_that_has_expired_on_an_open_connection(there: World) -> None:
    """Attack: the handshake was in time; each request is looked at by the hub's clock."""
    _, certificate = enrolled(there)
    there.clock.advance(7 * DAY)
    assert shows(there, certificate).status == 200
    there.clock.advance(1)
    reply = shows(there, certificate)
    assert (reply.status, reply.json["what"]) == (401, "a certificate does not hold any more")
    there.clock.jump(-14 * DAY)
    assert shows(there, certificate).json["what"] == "a certificate does not hold yet"


def forged_elsewhere(there: World, kind: str) -> str:
    """A certificate that this hub must not believe."""
    own = there.hub.home.authority
    authority = {"stranger": Authority.create("f" * 16), "namesake": Authority.create(own.authorities.fleet)}
    requested = Requested.from_pem(KEY.request())
    now = there.clock.now()
    if kind in authority:
        return authority[kind].device(requested, "d0", now=now, lifetime=DAY).decode()
    if kind == "hub":
        return own.server(KEY, ["localhost"], now=now, lifetime=DAY).decode()
    if kind == "authority":
        return own.authorities.to_pem().decode()
    if kind == "nobody's":
        return own.device(requested, "d9", now=now, lifetime=DAY).decode()
    return kind


@pytest.mark.parametrize(
    "kind", ["stranger", "namesake", "hub", "authority", "nobody's", "nonsense", "x" * 9000, "ä"]
)
def test_attack_a_certificate_that_is_no_devices_here(there: World, kind: str) -> None:
    """Attack: another fleet's, a forged one, the hub's own, one of a device that never enrolled, or none at all: 401."""
    device, _ = enrolled(there)
    shown = forged_elsewhere(there, kind)
    for headers in ({}, bearer(device)):
        reply = shows(there, shown, **headers)
        assert (reply.status, reply.json["code"]) == (401, "access-denied"), reply
    assert renewed(there, shown).status == 401


def test_attack_a_header_that_claims_a_certificate(there: World) -> None:
    """Attack: what proxies say in headers is not believed; anybody could write it."""
    _, certificate = enrolled(there)
    line = certificate.replace("\n", "")
    for name in ("x_client_cert", "client_cert", "x_forwarded_client_cert", "ssl_client_cert"):
        assert there.call("GET", "/v1/poll", b"", **{name: line}).status == 401


def test_attack_the_credential_of_one_device_on_the_connection_of_another(there: World) -> None:
    """Attack: two callers in one request are none."""
    one, certificate = enrolled(there)
    other, _ = enrolled(there, "d1", OTHER)
    assert shows(there, certificate, **bearer(one)).status == 200
    reply = shows(there, certificate, **bearer(other))
    assert (reply.status, reply.json["what"]) == (401, "certificate and credential are of two devices")
    assert shows(there, certificate, authorization="Bearer nonsense").status == 401


def test_attack_a_device_that_would_operate_by_its_certificate(there: World) -> None:
    """Attack: a certificate is a device's; it opens nothing of the operators'."""
    _, certificate = enrolled(there)
    assert shows(there, certificate, "/v1/admin/fleet").status == 401
    assert shows(there, certificate, "/").status == 401


def test_operators_go_on_with_their_tokens(strict: World) -> None:
    """Also where certificates are required, and to the teacher too."""
    assert strict.admin("GET", "fleet").status == 200
    body, headers = question(np.ones((1, 4), np.float32))
    token = f"Bearer {strict.operator}"
    path = "/v2/models/teacher/infer"
    assert strict.call("POST", path, body, authorization=token, **headers).status == 200


# Enrolling again


def test_attack_a_certificate_of_an_answer_that_went_astray(there: World) -> None:
    """Attack: somebody enrols under the name first, with the same token; the device that asks again, and calls, is the one that is heard."""
    token = there.token()
    thief = Enrolled.from_bytes(asked(there, token, request=OTHER.request()).body)
    device = Enrolled.from_bytes(asked(there, token).body)
    reply = shows(there, thief.certificate)
    assert (reply.status, reply.json["what"]) == (401, "a certificate of no device that is here")
    assert shows(there, device.certificate).status == 200
    assert asked(there, token, request=OTHER.request()).status == 409


def test_an_enrolment_whose_answer_got_lost_is_asked_for_again(there: World) -> None:
    """With the same key both certificates hold; a first call over the certificate ends it, as one with the credential does."""
    token = there.token()
    first = Enrolled.from_bytes(asked(there, token).body)
    second = Enrolled.from_bytes(asked(there, token).body)
    assert first.credential != second.credential
    for one in (first, second):
        assert shows(there, one.certificate).status == 200
    assert asked(there, token).status == 409


# Renewing


def test_a_certificate_gets_the_next_one(there: World) -> None:
    """By itself, without the credential; the old one holds until its end."""
    _, certificate = enrolled(there)
    there.clock.advance(5 * DAY)
    reply = renewed(there, certificate)
    assert reply.status == 200
    told = Certified.from_bytes(reply.body)
    assert member(there, told.certificate).ends == there.clock.now() + 7 * DAY
    assert Authorities.from_pem(told.authorities.encode()) == there.hub.home.authority.authorities
    for one in (certificate, told.certificate):
        assert shows(there, one).status == 200


def test_a_renewal_whose_answer_got_lost_is_asked_for_again(there: World) -> None:
    """As often as it takes; nothing of the device's changes by it."""
    device, certificate = enrolled(there)
    answers = [renewed(there, certificate) for _ in range(3)]
    assert [one.status for one in answers] == [200] * 3
    for one in answers:
        assert shows(there, Certified.from_bytes(one.body).certificate).status == 200
    assert device.call("GET", "/v1/poll").status == 200


def test_attack_another_key_gets_no_certificate(there: World) -> None:
    """Attack: a copied credential, or a certificate on a connection that somebody else may use, and a key of the attacker's own."""
    device, certificate = enrolled(there)
    for reply in (renewed(there, key=OTHER, by=device), renewed(there, certificate, OTHER)):
        assert (reply.status, reply.json["what"]) == (409, "another key than the device's")
    assert shows(there, certificate).status == 200


@pytest.mark.parametrize("required", [False, True])
def test_attack_a_copied_credential_of_a_device_without_a_key(tmp_path: Path, *, required: bool) -> None:
    """Attack: the device enrolled without one, as existing fleets' do; a key that the credential brings later is not bound."""
    settings = Settings(longest_poll=5, require_certificates=required)
    with world(tmp_path / "hub", settings=settings) as there:
        there.give_root()
        device = there.enrol("d0")
        for key in (KEY, OTHER, KEY):
            reply = renewed(there, key=key, by=device)
            assert (reply.status, reply.json["what"]) == (409, "a device that enrolled without a key")
        (shown,) = there.admin("GET", "fleet").json["devices"]
        assert shown["certified_until"] is None
        assert device.call("GET", "/v1/poll").status == (401 if required else 200)


def test_an_ended_certificate_is_renewed_by_credential_and_key(there: World) -> None:
    """Within the grace of 90 days; after that the device must enrol anew, whatever it holds."""
    device, certificate = enrolled(there)
    there.clock.advance(7 * DAY + 90 * DAY)
    assert renewed(there, certificate).status == 401, "not by the certificate"
    assert renewed(there, by=device).status == 200
    there.clock.advance(7 * DAY + 90 * DAY + 1)
    reply = renewed(there, by=device)
    assert (reply.status, reply.json["what"]) == (401, "the last certificate ended too long ago")
    assert reply.json["fix"] == "enrol the device anew, under another name"


def test_attack_nobody_gets_a_certificate_for_asking(there: World) -> None:
    """Attack: no identity, a join token, an operator's token."""
    enrolled(there)
    for secret in (None, there.token(), there.operator):
        assert renewed(there, by=secret).status == 401


@pytest.mark.parametrize("body", [b"", b"{}", b'{"request": 7}', b'{"request": "nonsense"}', b"[]"])
def test_what_is_no_request_is_refused(there: World, body: bytes) -> None:
    """Each with a code, and nothing changes."""
    device, certificate = enrolled(there)
    reply = device.call("POST", "/v1/certificate", body)
    assert (reply.status, reply.json["code"]) == (400, "message-invalid")
    assert shows(there, certificate).status == 200


# Where they are required


def test_where_certificates_are_required_the_credential_only_gets_one(strict: World) -> None:
    """Every other exchange refuses it, and says what to do; with the certificate all is open."""
    device, certificate = enrolled(strict)
    *others, renewal = exchanges(device)
    for method, path, body, headers in others:
        reply = device.call(method, path, body, **headers)
        assert reply.status == 401, path
        if path.startswith("/v1"):
            assert reply.json["what"] == "a certificate is missing"
    method, path, body, headers = renewal
    assert device.call(method, path, body, **headers).status == 200
    assert shows(strict, certificate).status == 200


def test_attack_a_copied_credential_where_certificates_are_required(strict: World) -> None:
    """Attack: without the key it opens nothing and gets nothing."""
    device, _ = enrolled(strict)
    assert renewed(strict, key=OTHER, by=device).status == 409
    certificate = Certified.from_bytes(renewed(strict, by=device).body).certificate
    assert member(strict, certificate).key == KEY.id, "what it gets is for the device's own key"


def test_a_hub_that_requires_certificates_tells_whom_it_shuts_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At its start, by number: those that enrolled without a key and were not revoked; a hub that does not require them says nothing."""
    folder = tmp_path / "hub"
    with world(folder) as there:
        there.give_root()
        enrolled(there)
        for name in ("old1", "old2", "old3"):
            there.enrol(name)
        there.admin("POST", "devices/old3/revoke")
    for required in (False, True):
        caplog.clear()
        with world(folder, settings=Settings(longest_poll=5, require_certificates=required)) as there:
            there.call("GET", "/health/live")
        said = "requires certificates: 2 devices that enrolled without one are shut out"
        assert (said in caplog.messages) == required


# Settings


def test_the_lifetime_is_a_setting(tmp_path: Path) -> None:
    """An hour, where somebody wants that."""
    with world(tmp_path / "hub", settings=Settings(certificate_lifetime=3600, poll_interval=60)) as there:
        there.give_root()
        _, certificate = enrolled(there)
        assert member(there, certificate).ends == there.clock.now() + 3600


@pytest.mark.parametrize(
    "given",
    [
        {"certificate_lifetime": 0.0},
        {"certificate_lifetime": 3599.0},
        {"certificate_lifetime": 12 * 600.0 - 1, "poll_interval": 600.0},
        {"certificate_lifetime": LONGEST_CERTIFICATE + 1},
        {"certificate_grace": -1.0},
        {"certificate_grace": 1e12},
    ],
)
def test_a_setting_out_of_range_is_refused(given: dict[str, Any]) -> None:
    """A life so short that no poll falls into its last third, too."""
    with pytest.raises(SettingError, match="of certificates is out of range"):
        Settings(**given)


def test_the_name_in_a_certificate_is_the_hubs_word(there: World) -> None:
    """The name is that of the enrolment, never the request's; see `tests/trust/test_trust_certificates.py` for what else is ignored."""
    _, certificate = enrolled(there, "camera-7")
    assert member(there, certificate).device == "camera-7"
    fleet = there.hub.home.authority.authorities.fleet
    assert device_uri(fleet, "camera-7") == f"urn:edgestill:{fleet}:device:camera-7"
