"""An operator's calls to a hub: publishing, join tokens, rollouts, and what the fleet and its evidence look like.

- What the hub answers for people to see (releases, rollouts, the fleet, counts) is handed on as JSON, bounded; what a
  program goes on with (digests, tokens, samples, sums) is read and checked.
- Nothing is retried: publishing is idempotent and may be repeated, starting a rollout is not.
- A file that is uploaded may take long: `timeout` grows by a second for every `UPLOAD_SPEED` bytes.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, final
from urllib.parse import quote

from edgestill.core.auditing import Entry
from edgestill.core.digest import Digest
from edgestill.core.errors import MessageError
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.core.manifest import BlobRef
from edgestill.core.oip import HEADER, InferResponse
from edgestill.core.protocols import Request
from edgestill.core.release import Gates
from edgestill.link.control import bearer
from edgestill.link.exchange import ABSENT, CONFLICTING, Reply, accepted, exchange

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgestill.core.errors import EdgestillError
    from edgestill.core.jsonio import Json, JsonObject
    from edgestill.core.protocols import Transport

MAX_JSON_BYTES: Final = 16_000_000
MAX_TARGETS_BYTES: Final = 5_000_000
MAX_ROOT_BYTES: Final = 128_000
MAX_SAMPLES_BYTES: Final = 64_000_000
MAX_STATISTICS_BYTES: Final = 64_000_000
AGREEING_SECONDS: Final = 1_800.0
"""For which a hub may weigh the messages of a large fleet."""
UPLOAD_SPEED: Final = 16_384  # bytes per second

_PRINTABLE: Final = r"[\x21-\x7e]+"
_NUMBER: Final = re.compile(r"[0-9]{1,9}")


@final
class OperatorClient:
    """Speaks with one hub.

    Every method raises AccessError for a token that the hub does not know, RefusedError where the hub says no,
    UnreachableError and DeadlineError where it does not answer, and MessageError where its answer is none.

    Args:
        transport: carries the requests.
        hub_url: `https://hub.example` or `http://127.0.0.1:8080`, without a trailing path.
        token: the operator's.
        timeout: seconds for one exchange.

    Raises:
        SettingError: a token that no header can carry.
    """

    def __init__(self, transport: Transport, hub_url: str, *, token: str, timeout: float = 30.0) -> None:
        self._transport = transport
        self._hub = hub_url.rstrip("/")
        self._api = f"{self._hub}/v1/admin/"
        self._headers = bearer(token)
        self._timeout = timeout

    # Publishing

    def online_key(self) -> JsonObject:
        """The hub's public key, for the publisher to name in `root.json`."""
        return self._object("GET", "online-key")

    def upload_root(self, root: bytes) -> None:
        """Hands over the publisher's root metadata, the first or the next."""
        self._call("POST", "root", root)

    def upload_roots(self, roots: Sequence[bytes]) -> None:
        """Hands over every root of the publisher, from the first to the newest, to a hub that has none."""
        self._call("POST", "roots", canonical({"roots": [one.decode() for one in roots]}))

    def root_of(self, version: int) -> bytes | None:
        """The publisher's root of a version, as the hub serves it to devices; None where it has none."""
        request = Request("GET", f"{self._hub}/metadata/{version:d}.root.json")
        reply = exchange(self._transport, request, timeout=self._timeout, max_bytes=MAX_ROOT_BYTES)
        return None if reply.status == HTTPStatus.NOT_FOUND else accepted(reply, request).body

    def upload_bundle(self, archive: bytes) -> BlobRef:
        """Hands over an `.esb` archive; digest and size as the hub keeps it.

        Raises:
            MessageError: the hub keeps something else than was sent.
        """
        fields = Fields(self._object("PUT", "blobs", archive), "blob")
        kept = BlobRef(fields.digest("digest"), fields.integer("size"))
        sent = BlobRef(Digest.of(archive), len(archive))
        if kept != sent:
            raise MessageError("the hub keeps another archive", where="blob", expected=sent, got=kept)
        return kept

    def upload_image(self, image: bytes) -> JsonObject:
        """Hands over an image of an archive that is there: `{"archive", "digest", "size"}`.

        Raises:
            NotFoundError: the archive in it is not there.
            MessageError: the hub keeps something else than was sent.
        """
        said = self._object("PUT", "images", image, documented=ABSENT)
        kept = Fields(said, "image").digest("digest")
        if kept != Digest.of(image):
            raise MessageError(
                "the hub keeps another image", where="image", expected=Digest.of(image), got=kept
            )
        return said

    def targets(self) -> bytes | None:
        """The publisher's list as the hub serves it; None before the first."""
        reply = self._reply("GET", "metadata/targets", max_bytes=MAX_TARGETS_BYTES)
        if reply.status == HTTPStatus.NOT_FOUND:
            return None
        return accepted(reply, self._request("GET", "metadata/targets")).body

    def upload_targets(self, targets: bytes) -> None:
        """Hands over the publisher's next list; every archive that it names must be there."""
        self._call("POST", "targets", targets)

    def roles(self) -> JsonObject:
        """`{"roles": [...]}`: whom the publisher delegates to, and which version of each list the hub has named last."""
        return self._object("GET", "roles")

    def role_list(self, role: str) -> bytes | None:
        """A role's list as the hub serves it; None where it has none that the publisher's newest list vouches for."""
        path = f"roles/{quote(role, safe='')}"
        reply = self._reply("GET", path, max_bytes=MAX_TARGETS_BYTES)
        if reply.status == HTTPStatus.NOT_FOUND:
            return None
        return accepted(reply, self._request("GET", path)).body

    def upload_role(self, role: str, targets: bytes) -> None:
        """Hands over a role's next list; every archive that it names must be there.

        Raises:
            NotFoundError: the publisher delegates nothing to this role, or an archive is missing.
            ConflictError: a name that somebody before it lists.
        """
        self._call("POST", f"roles/{quote(role, safe='')}", targets, documented=CONFLICTING)

    def releases(self) -> JsonObject:
        """`{"releases": [...]}`."""
        return self._object("GET", "releases")

    # The fleet's authority

    def authority(self) -> JsonObject:
        """Where its hand-over stands, and which devices have not followed yet."""
        return self._object("GET", "authority")

    def hand_over(self, step: str, *, force: bool = False) -> JsonObject:
        """Takes a step: `begin`, `switch`, `back`, `finish` or `abandon`; where it stands then.

        Raises:
            ConflictError: it is at another step, or devices have not followed yet.
        """
        body = b"" if step == "begin" else canonical({"force": force})
        return self._object("POST", f"authority/{step}", body, documented=CONFLICTING)

    # Joining

    def join_token(self, *, uses: int = 1, expires_in: float = 7 * 86_400.0) -> str:
        """A token by which `uses` devices may join within `expires_in` seconds.

        Raises:
            ConflictError: the hub has no root yet, which a token would pin.
        """
        body = canonical({"uses": uses, "expires_in": expires_in})
        answer = self._object("POST", "join-tokens", body, documented=CONFLICTING)
        return Fields(answer, "join token").text("token", pattern=_PRINTABLE)

    def join_tokens(self) -> JsonObject:
        """`{"tokens": [...], "more"}`, what still holds first: ids, states, uses left, devices that came, and when they end."""
        return self._object("GET", "join-tokens")

    def revoke_join_token(self, token: str) -> JsonObject:
        """Ends a token, named by its id or itself: `{"id", "devices", "more"}`, which came by it. They stay in the fleet.

        Raises:
            NotFoundError: no such token.
        """
        return self._object("POST", "join-tokens/revoke", canonical({"token": token}), documented=ABSENT)

    def assignment(self, device: str, *, expires_in: float) -> bytes:
        """What a poll of the device would be answered now, good for so many seconds; to be carried to it.

        Raises:
            NotFoundError: no such device. ConflictError: nothing is assigned to it.
        """
        body = canonical({"expires_in": expires_in})
        path = f"devices/{quote(device, safe='')}/assignment"
        return canonical(self._object("POST", path, body, documented=CONFLICTING))

    # Rollouts

    def start_rollout(
        self,
        release: str,
        *,
        stages: Sequence[float] = (1.0,),
        gates: Gates | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> str:
        """Begins to bring a release to the fleet, or to the devices that carry `labels`; the rollout's id.

        Raises:
            NotFoundError: no such release is listed.
            ConflictError: another rollout is open for these devices.
        """
        wanted: JsonObject = {
            "release": release,
            "stages": list(stages),
            "gates": asdict(gates or Gates()),
            "labels": dict(labels or {}),
        }
        answer = self._object("POST", "rollouts", canonical(wanted), documented=CONFLICTING)
        return _id(answer.get("id"))

    def rollouts(self) -> JsonObject:
        """`{"rollouts": [...]}`, the newest first."""
        return self._object("GET", "rollouts")

    def rollout(self, id: str) -> JsonObject:  # noqa: A002  # the wire's own word
        """Where it is, why, and how each of its devices stands.

        Raises:
            NotFoundError: no such rollout.
        """
        return self._object("GET", f"rollouts/{_id(id)}", documented=ABSENT)

    def pause(self, id: str) -> JsonObject:  # noqa: A002  # the wire's own word
        """Stops a rollout where it is; the rollout afterwards.

        Raises:
            NotFoundError: no such rollout. ConflictError: it is over.
        """
        return self._order(id, "pause")

    def resume(self, id: str) -> JsonObject:  # noqa: A002  # the wire's own word
        """Runs a paused rollout on; the rollout afterwards. Errors as `pause`."""
        return self._order(id, "resume")

    def advance(self, id: str, *, stage: int) -> JsonObject:  # noqa: A002  # the wire's own word
        """Lets a running rollout go on at this stage, from 0 on, without waiting for more reports.

        Raises:
            NotFoundError: no such rollout. ConflictError: it does not run, or is at another stage.
        """
        body = canonical({"stage": stage})
        return self._object("POST", f"rollouts/{_id(id)}/advance", body, documented=CONFLICTING)

    def rollback(self, id: str) -> JsonObject:  # noqa: A002  # the wire's own word
        """Sends the rollout's devices back to what they had; the rollout afterwards. Errors as `pause`."""
        return self._order(id, "rollback")

    # Timing jobs

    def start_timing(
        self, target: str, *, devices: int, labels: Mapping[str, str] | None = None
    ) -> JsonObject:
        """Lets devices time a family of models: `{"id", "devices"}`, those that were chosen.

        Raises:
            NotFoundError: it is not listed, or no device is free for it.
        """
        wanted: JsonObject = {"target": target, "devices": devices, "labels": dict(labels or {})}
        return self._object("POST", "timings", canonical(wanted), documented=ABSENT)

    def timings(self) -> JsonObject:
        """`{"timings": [...]}`, the newest first."""
        return self._object("GET", "timings")

    def timing(self, id: str) -> JsonObject:  # noqa: A002  # the wire's own word
        """A timing job with its devices.

        Raises:
            NotFoundError: no such job.
        """
        return self._object("GET", f"timings/{_id(id)}", documented=ABSENT)

    def cancel_timing(self, id: str) -> JsonObject:  # noqa: A002  # the wire's own word
        """Ends a timing job; the job afterwards.

        Raises:
            NotFoundError: no such job. ConflictError: it is over.
        """
        return self._object("POST", f"timings/{_id(id)}/cancel", documented=CONFLICTING)

    def profile(self, id: str, *, device: str | None = None) -> bytes:  # noqa: A002  # the wire's own word
        """What came of a timing job, as `edgestill search --profile` takes it: of all devices that measured, or of one.

        Raises:
            NotFoundError: no such job, or nobody has measured yet.
        """
        path = f"timings/{_id(id)}/profile"
        if device is not None:
            path += f"?device={quote(device, safe='')}"
        return self._call("GET", path, documented=ABSENT).body

    # Voting rounds

    def start_voting(
        self,
        target: str,
        *,
        seconds: float | None = None,
        labels: Mapping[str, str] | None = None,
        hardware_class: str = "",
    ) -> JsonObject:
        """Opens a voting round about a proxy set: `{"id", "devices"}`, how many have a turn now.

        Raises:
            NotFoundError: it is not listed. ConflictError: another round is open for some of these devices.
        """
        wanted: JsonObject = {"target": target, "labels": dict(labels or {})}
        wanted |= {"hardware_class": hardware_class} if hardware_class else {}
        wanted |= {} if seconds is None else {"seconds": seconds}
        return self._object("POST", "votings", canonical(wanted), documented=CONFLICTING)

    def votings(self) -> JsonObject:
        """`{"votings": [...]}`, the newest first."""
        return self._object("GET", "votings")

    def voting(self, id: str) -> JsonObject:  # noqa: A002  # the wire's own word
        """A voting round with its devices.

        Raises:
            NotFoundError: no such round.
        """
        return self._object("GET", f"votings/{_id(id)}", documented=ABSENT)

    def close_voting(self, id: str) -> JsonObject:  # noqa: A002  # the wire's own word
        """Closes a voting round; the round afterwards.

        Raises:
            NotFoundError: no such round. ConflictError: it is over.
        """
        return self._object("POST", f"votings/{_id(id)}/close", documented=CONFLICTING)

    def outcome(self, id: str, *, weights: Mapping[str, float] | None = None) -> InferResponse:  # noqa: A002  # the wire's own word
        """What came together in a voting round so far.

        Args:
            id: of the round.
            weights: of devices, each 0 to 1; 1 where none is given.

        Returns:
            Outputs `soft` FP32 `[N, C]`, `voted` INT64 `[N]` and `weight` FP64 `[N]`; parameters `target`, `proxy`, `voters` and
            `students` (`learn.outcomes`).

        Raises:
            NotFoundError: no such round.
        """
        body = canonical({"weights": dict(weights or {})})
        path = f"votings/{_id(id)}/outcome"
        reply = self._call(
            "POST",
            path,
            body,
            max_bytes=MAX_SAMPLES_BYTES,
            documented=ABSENT,
            patience=AGREEING_SECONDS,
        )
        return _tensors(reply)

    # Operators and what they did

    def add_operator(self, name: str, role: str, *, expires_in: float | None = None) -> str:
        """A token for a new operator: `viewer`, `operator`, `publisher` or `admin`; it is shown this once.

        Raises:
            ConflictError: the name was given before.
        """
        wanted: JsonObject = {"name": name, "role": role}
        body = canonical(wanted if expires_in is None else wanted | {"expires_in": expires_in})
        answer = self._object("POST", "operators", body, documented=CONFLICTING)
        return Fields(answer, "operator").text("token", pattern=_PRINTABLE)

    def operators(self) -> JsonObject:
        """`{"operators": [...]}`."""
        return self._object("GET", "operators")

    def revoke_operator(self, name: str) -> JsonObject:
        """Ends an operator's token for ever: `{"name", "revoked_at"}`.

        Raises:
            NotFoundError: no such operator.
        """
        return self._object("POST", f"operators/{quote(name, safe='')}/revoke", documented=ABSENT)

    def audit_log(self, *, after: int = 0, limit: int = 1_000) -> list[Entry]:
        """The entries after an id; `core.auditing.check_chain` tells whether they are as they were written."""
        answer = self._object("GET", f"audit-log?after={after:d}&limit={limit:d}")
        found = Fields(answer, "audit log").objects("entries", at_most=limit)
        return [Entry.from_fields(one) for one in found]

    # The fleet and its evidence

    def fleet(self) -> JsonObject:
        """`{"devices": [...]}`."""
        return self._object("GET", "fleet")

    def revoke(self, device: str) -> JsonObject:
        """Takes a device's credential back, for ever: `{"device", "revoked_at"}`. Doing it twice changes nothing.

        Raises:
            NotFoundError: no such device.
        """
        return self._object("POST", f"devices/{quote(device, safe='')}/revoke", documented=ABSENT)

    def evidence(self) -> JsonObject:
        """Counts of samples and of statistics."""
        return self._object("GET", "evidence")

    def samples(self, *, after: int = 0, limit: int = 1_000) -> InferResponse:
        """The next samples after an id, of one shape.

        Args:
            after: 0 to begin; later `parameters["last"]` of the answer before.
            limit: samples at most; the hub may give fewer.

        Returns:
            Outputs `input` `[N, ...]`, `teacher` FP32 `[N, C]` (logits), `audit` BOOL `[N]` and `id` INT64 `[N]`;
            parameters `devices` (a name per row) and `last`. N = 0 says that there are no more.
        """
        path = f"evidence/samples?after={after:d}&limit={limit:d}"
        return _tensors(self._call("GET", path, max_bytes=MAX_SAMPLES_BYTES))

    def statistics(self, backbone: Digest, *, kind: tuple[int, int] | None = None) -> bytes:
        """The sum over the fleet as a `learn.statistics` message.

        Args:
            backbone: that the features are of.
            kind: counts of classes and of features; by default those of the newest bundle with this backbone, or, where
                the hub knows no such bundle, those that most devices send.

        Raises:
            NotFoundError: nobody has sent any.
        """
        path = f"evidence/statistics?backbone={quote(str(backbone), safe='')}"
        if kind is not None:
            path += f"&classes={kind[0]:d}&features={kind[1]:d}"
        return self._call("GET", path, max_bytes=MAX_STATISTICS_BYTES, documented=ABSENT).body

    def agreed_statistics(self, reference: bytes, **rule: float) -> JsonObject:
        """The sum over the fleet in which no single device decides (`learn.robust`).

        Args:
            reference: the statistics that are believed, as a message; of the backbone, and in the coordinates, of the sums.
            rule: `size`, `influence`, `prior` and `ridge`, where they shall not be the usual ones.

        Returns:
            statistics: the weighed sum without the reference, as a message in base64; devices and how many were lowered; weights of
            those; largest: influence of a device; settled.

        Raises:
            NotFoundError: nobody has sent any.
        """
        asked = "&".join(f"{name}={value!r}" for name, value in sorted(rule.items()))
        path = f"evidence/statistics/agreed{'?' if asked else ''}{asked}"
        reply = self._call("POST", path, reference, documented=ABSENT, patience=AGREEING_SECONDS)
        return parse_object(reply.body, where="agreed statistics", max_bytes=MAX_JSON_BYTES)

    def _order(self, id: str, order: str) -> JsonObject:  # noqa: A002  # the wire's own word
        return self._object("POST", f"rollouts/{_id(id)}/{order}", documented=CONFLICTING)

    def _object(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        documented: Mapping[int, type[EdgestillError]] | None = None,
    ) -> JsonObject:
        reply = self._call(method, path, body, documented=documented)
        return parse_object(reply.body, where=path, max_bytes=MAX_JSON_BYTES)

    def _call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        max_bytes: int = MAX_JSON_BYTES,
        documented: Mapping[int, type[EdgestillError]] | None = None,
        patience: float = 0.0,
    ) -> Reply:
        reply = self._reply(method, path, body, max_bytes=max_bytes, patience=patience)
        return accepted(reply, self._request(method, path), documented=documented)

    def _reply(
        self, method: str, path: str, body: bytes = b"", *, max_bytes: int, patience: float = 0.0
    ) -> Reply:
        timeout = self._timeout + patience + len(body) / UPLOAD_SPEED
        return exchange(
            self._transport, self._request(method, path, body), timeout=timeout, max_bytes=max_bytes
        )

    def _request(self, method: str, path: str, body: bytes = b"") -> Request:
        kind = "application/octet-stream" if method == "PUT" else "application/json"
        headers = {"content-type": kind, **self._headers} if body else self._headers
        return Request(method, self._api + path, headers, body)


def _tensors(reply: Reply) -> InferResponse:
    length = reply.headers.get(HEADER)
    if length is not None and _NUMBER.fullmatch(length) is None:
        raise MessageError("a header that is no length", where=HEADER, expected="a number", got=length[:40])
    return InferResponse.decode(reply.body, None if length is None else int(length))


def _id(value: Json) -> str:
    text = str(value)
    if _NUMBER.fullmatch(text) is None:
        raise MessageError(
            "not the id of a rollout", expected="a number", got=repr(text[:40]), where="rollout"
        )
    return text
