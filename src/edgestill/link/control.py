"""A device's calls to its hub: the control plane of `core.wire`, and the artefacts that the hub serves as files.

- Nothing is retried here: the caller has an interval, and reports and statistics may be sent again (they carry ids).
- Nothing is believed here: an assignment and metadata are handed on as they came, for `trust` to judge.
- A path of an artefact may come from metadata; it cannot leave the hub's address.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, final

from edgestill.core.errors import MessageError, SettingError
from edgestill.core.jsonio import Fields, parse_object
from edgestill.core.protocols import Request
from edgestill.core.wire import (
    BELIEVES_HEADER,
    ID_HEADER,
    MAX_AUTHORITIES_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_VOUCHED_BYTES,
    SEQUENCE_HEADER,
    Certified,
    Certify,
    Enrolled,
    Poll,
    reports_to_bytes,
)
from edgestill.link.exchange import ABSENT, Reply, accepted, exchange

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgestill.core.errors import EdgestillError
    from edgestill.core.protocols import Transport
    from edgestill.core.timing import TimingReport
    from edgestill.core.wire import Enrol, Report

MAX_ENROLLED_BYTES: Final = (
    2 * MAX_MESSAGE_BYTES
)  # it carries a root, which JSON may spell at twice its length

_SECRET: Final = re.compile(r"[\x21-\x7e]{1,500}")
_ETAG: Final = re.compile(r'(W/)?"[\x21\x23-\x7e]{0,200}"')
_PART: Final = r"(?:[A-Za-z0-9_.-]|%2F){1,255}"
"""Names of TUF roles are quoted: `3.auto%2Fwatch.json`."""
_PATH: Final = re.compile(rf"(?!.*(^|/|%2F)\.\.?(/|%2F|$)){_PART}(/{_PART}){{0,15}}")


@final
class ControlClient:
    """Speaks with one hub.

    Args:
        transport: carries the requests.
        hub_url: `https://hub.example` or `http://127.0.0.1:8080`, without a trailing path.
        credential: from `Enrolled`; None before that.
        timeout: seconds for one exchange; a long poll waits on top of it.

    Raises:
        SettingError: a credential that no header can carry.
    """

    def __init__(
        self, transport: Transport, hub_url: str, *, credential: str | None = None, timeout: float = 20.0
    ) -> None:
        self._transport = transport
        self._hub = hub_url.rstrip("/")
        self._headers = {} if credential is None else bearer(credential)
        self._timeout = timeout

    def enrol(self, enrol: Enrol) -> Enrolled:
        """Asks to belong to the fleet.

        Raises:
            AccessError: a join token that is unknown or used up.
            RefusedError, UnreachableError, DeadlineError: see `link.exchange`.
            MessageError: an answer that is none.
        """
        request = self._request("POST", "/v1/enrol", enrol.to_bytes())
        return Enrolled.from_bytes(self._call(request, max_bytes=MAX_ENROLLED_BYTES).body)

    def certify(self, request: bytes) -> Certified:
        """Asks for the next certificate; asking again is harmless.

        Args:
            request: PEM, by the key that the device enrolled with.

        Raises:
            NotFoundError: a hub that gives none.
            AccessError, RefusedError, UnreachableError, DeadlineError, MessageError: see `enrol`.
        """
        message = Certify(request.decode("ascii", "replace"))
        asked = self._request("POST", "/v1/certificate", message.to_bytes())
        return Certified.from_bytes(self._call(asked, documented=ABSENT).body)

    def authorities(self) -> bytes:
        """The certificates of the fleet's authority as PEM, which anybody may have: not to be believed for where they came from.

        Raises:
            NotFoundError: a hub that has none.
            RefusedError, UnreachableError, DeadlineError: see `enrol`.
        """
        asked = self._request("GET", "/v1/authorities")
        return self._call(asked, max_bytes=MAX_AUTHORITIES_BYTES, documented=ABSENT).body

    def vouched(self) -> bytes:
        """The newest word about the fleet's authority, for `trust.vouched` to judge; anybody may have it.

        Raises:
            NotFoundError: a hub that says none.
            RefusedError, UnreachableError, DeadlineError: see `enrol`.
        """
        asked = Request("GET", f"{self._hub}/v1/authorities/vouched", {})
        return self._call(asked, max_bytes=MAX_VOUCHED_BYTES, documented=ABSENT).body

    def poll(self, *, etag: str | None, wait: float, believes: str = "") -> tuple[Poll | None, str]:
        """Asks what the hub wants: `GET /v1/poll?wait=SECONDS`.

        Args:
            etag: of the last answer; the hub then answers only what differs from it.
            wait: seconds that the hub may hold the request until something differs.
            believes: what the device goes by, see `core.wire.BELIEVES_HEADER`; empty says nothing.

        Returns:
            What the hub wants, None where nothing differs; and the ETag for the next poll, empty where the hub gave none.

        Raises:
            AccessError: a device that the hub does not know (any more).
            RefusedError, UnreachableError, DeadlineError, MessageError: see `enrol`.
        """
        headers = {} if not etag else {"if-none-match": etag}
        if believes:
            headers[BELIEVES_HEADER] = believes
        request = self._request("GET", f"/v1/poll?wait={wait:g}", headers=headers)
        reply = self._call(request, timeout=self._timeout + wait)
        if reply.status == HTTPStatus.NOT_MODIFIED:
            return None, etag or ""
        given = reply.headers.get("etag", "")
        return Poll.from_bytes(reply.body), given if _ETAG.fullmatch(given) else ""

    def report(self, reports: list[Report]) -> None:
        """Says what happened; sending the same reports again is harmless.

        Args:
            reports: at most `core.wire.MAX_REPORTS`.

        Raises:
            RefusedError: the hub takes none of them.
            AccessError, UnreachableError, DeadlineError: see `enrol`.
            MessageError: an answer that does not account for each of them, such as the page of a captive portal.
        """
        reply = self._call(self._request("POST", "/v1/reports", reports_to_bytes(reports)))
        answer = Fields(parse_object(reply.body, where="reports", max_bytes=MAX_MESSAGE_BYTES), "reports")
        told = answer.integer("accepted") + answer.integer("duplicates")
        if told != len(reports):
            raise MessageError(
                "reports that the hub does not account for",
                expected=f"{len(reports)} of them",
                got=told,
                where="reports",
            )

    def statistics(self, id: str, message: bytes, *, sequence: int | None = None) -> bool:  # noqa: A002  # the wire's own word
        """Hands over a `learn.statistics` message; whether it changed anything at the hub.

        Args:
            id: made on the device; the same id counts once.
            message: as `learn` wrote it.
            sequence: grows with every message of this device, so that one which is late replaces none that is newer;
                without one the last to arrive counts.

        Raises:
            RefusedError, AccessError, UnreachableError, DeadlineError, MessageError: see `enrol`.
        """
        headers = {ID_HEADER: id, "content-type": "application/octet-stream"}
        if sequence is not None:
            headers[SEQUENCE_HEADER] = str(sequence)
        reply = self._call(self._request("POST", "/v1/evidence/statistics", message, headers=headers))
        answer = parse_object(reply.body, where="statistics", max_bytes=MAX_MESSAGE_BYTES)
        return Fields(answer, "statistics").boolean("accepted")

    def vote(self, round_: int, id: str, ballot: bytes, *, sequence: int) -> bool:  # noqa: A002  # the wire's own word
        """Hands over a `learn.votes` ballot; whether it counts now. Sending the same again is harmless.

        Args:
            round_: number of the voting round at the hub.
            id: made on the device; the same id counts once.
            ballot: as `learn` wrote it.
            sequence: grows with every message of this device; of one round the largest counts.

        Raises:
            NotFoundError: no such round, or a hub of old.
            RefusedError, AccessError, UnreachableError, DeadlineError, MessageError: see `enrol`.
        """
        headers = {
            ID_HEADER: id,
            SEQUENCE_HEADER: str(sequence),
            "content-type": "application/octet-stream",
        }
        path = f"/v1/evidence/votes/{round_:d}"
        reply = self._call(self._request("POST", path, ballot, headers=headers), documented=ABSENT)
        answer = parse_object(reply.body, where="votes", max_bytes=MAX_MESSAGE_BYTES)
        return Fields(answer, "votes").boolean("accepted")

    def timing(self, report: TimingReport) -> bool:
        """Says how a timing job stands; whether it changed anything at the hub. Sending the same again is harmless.

        Raises:
            RefusedError, AccessError, UnreachableError, DeadlineError, MessageError: see `enrol`.
        """
        reply = self._call(self._request("POST", "/v1/timing", report.to_bytes()))
        answer = parse_object(reply.body, where="timing", max_bytes=MAX_MESSAGE_BYTES)
        return Fields(answer, "timing").boolean("accepted")

    def artefact(self, path: str, max_bytes: int) -> bytes:
        """A file that the hub serves, such as `metadata/1.root.json`; `trust` may fetch with it.

        Args:
            path: relative to the hub's address.
            max_bytes: a longer file is refused.

        Raises:
            NotFoundError: there is none.
            MessageError: a path that leads elsewhere.
            RefusedError, UnreachableError, DeadlineError: see `enrol`.
        """
        if _PATH.fullmatch(path) is None:
            raise MessageError(
                "not a path of an artefact",
                where=repr(path[:200]),
                expected="metadata/1.root.json or alike",
                got="another path",
            )
        request = Request("GET", f"{self._hub}/{path}", {})
        return self._call(request, max_bytes=max_bytes, documented=ABSENT).body

    def _request(
        self, method: str, path: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None
    ) -> Request:
        kind = {"content-type": "application/json"} if body else {}
        return Request(method, self._hub + path, {**kind, **self._headers, **(headers or {})}, body)

    def _call(
        self,
        request: Request,
        *,
        timeout: float | None = None,
        max_bytes: int = MAX_MESSAGE_BYTES,
        documented: Mapping[int, type[EdgestillError]] | None = None,
    ) -> Reply:
        seconds = self._timeout if timeout is None else timeout
        reply = exchange(self._transport, request, timeout=seconds, max_bytes=max_bytes)
        return accepted(reply, request, documented=documented)


def bearer(secret: str) -> dict[str, str]:
    """The header that shows a credential or a token.

    Raises:
        SettingError: one that no header can carry. It is not repeated in the error.
    """
    if _SECRET.fullmatch(secret) is None:
        raise SettingError(
            "a secret that no header can carry",
            expected="1 to 500 printable ASCII characters",
            where="credential",
            got="another text",
            fix="copy it whole",
        )
    return {"authorization": f"Bearer {secret}"}
