"""What an operator may set, with the bounds that nothing from outside gets past."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from edgestill.core.errors import SettingError
from edgestill.core.listening import is_loopback

SHORTEST_POLL: Final = 0.01
LONGEST_POLL: Final = 43_200.0
LONGEST_CERTIFICATE: Final = 366 * 86_400.0
LONGEST_GRACE: Final = 3_660 * 86_400.0
SHORTEST_CERTIFICATE: Final = 3_600.0
POLLS: Final = 12
"""That fit into a certificate's life at least, so that some are left when it is time for the next."""
_PUBLIC_URL: Final = re.compile(
    r"(https?)://([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~-]{1,100}){0,8}",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the hub behaves. Times are seconds, sizes bytes.

    Attributes:
        poll_interval: between two polls of a device; each poll is told this, give or take a tenth.
        longest_poll: for which a poll may be held open while nothing changes; 0 answers at once.
        tick: between two looks for silent devices and metadata that grows old.
        assignment_lifetime: of a signed assignment; it is renewed at half of it.
        metadata_lifetime: of the timestamp; it is renewed at half of it.
        max_bundle: of an uploaded archive.
        max_infer: of a request to the teacher, uncompressed.
        max_batch: inputs in one request to the teacher.
        batch_rows: inputs of several requests that the teacher answers at once.
        batch_linger: for which a request waits for others to join it; 0 joins only what waits already.
        max_waiting: requests that may wait for the teacher; further ones are told to come back.
        max_waiting_rows: inputs in these.
        infer_rate: requests to the teacher per second and device, on average; further ones are told to come back.
        infer_burst: requests at once that a device may send after a silence.
        teacher_threads: threads that run the teacher, each with one operator thread.
        max_samples: samples kept as evidence for each device; further ones are answered, and not kept.
        max_windows: windows of statistics kept for each device and backbone; the oldest are forgotten.
        max_backbones: whose statistics are kept for each device; the one it named longest ago is forgotten.
        patch_bases: older versions that a patch is made from when a new one is published.
        max_patched: of archives that patches are made for.
        keep_reports: how long a report's id is remembered, so that it counts once.
        certificate_lifetime: of a device's certificate; the device asks for the next when a third of it is left.
        certificate_grace: after the end of its last certificate, for which a device may still ask for one by its credential and its key.
        require_certificates: whether devices must show a certificate; their credential alone then only renews one.
        public_url: address by which devices reach the hub, for the links of hawkBit's interface; empty takes host and scheme of the request.
        behind_proxy: whether a proxy before the hub speaks TLS, so that a link never leads a token past it in the clear.
    """

    poll_interval: float = 30.0
    longest_poll: float = 60.0
    tick: float = 5.0
    assignment_lifetime: float = 86_400.0
    metadata_lifetime: float = 7 * 86_400.0
    max_bundle: int = 2**29
    max_infer: int = 2**25
    max_batch: int = 1024
    batch_rows: int = 64
    batch_linger: float = 0.0
    max_waiting: int = 64
    max_waiting_rows: int = 8192
    infer_rate: float = 100.0
    infer_burst: int = 500
    teacher_threads: int = 1
    max_samples: int = 10_000
    max_windows: int = 64
    max_backbones: int = 8
    patch_bases: int = 3
    max_patched: int = 2**26
    keep_reports: float = 30 * 86_400.0
    certificate_lifetime: float = 7 * 86_400.0
    certificate_grace: float = 90 * 86_400.0
    require_certificates: bool = False
    public_url: str = ""
    behind_proxy: bool = False

    def __post_init__(self) -> None:
        times = (self.poll_interval, self.tick, self.assignment_lifetime, self.metadata_lifetime)
        if min(times) <= 0 or self.longest_poll < 0:
            raise SettingError(
                "a time is out of range",
                expected="more than 0 s",
                got=self,
                where="settings",
                fix="correct it, or leave it out for the default",
            )
        if not SHORTEST_POLL <= self.poll_interval <= LONGEST_POLL:
            raise SettingError(
                "the poll interval is out of range",
                expected=f"{SHORTEST_POLL} to {LONGEST_POLL} s",
                got=self.poll_interval,
                where="poll_interval",
                fix="choose one within",
            )
        if self.assignment_lifetime < 2 * self.poll_interval:
            raise SettingError(
                "assignments would expire between two polls",
                expected=f"a lifetime of {2 * self.poll_interval} s or more",
                got=self.assignment_lifetime,
                where="assignment_lifetime",
                fix="lengthen it, or let devices poll more often",
            )
        shortest = max(SHORTEST_CERTIFICATE, POLLS * self.poll_interval)
        if not shortest <= self.certificate_lifetime <= LONGEST_CERTIFICATE:
            raise SettingError(
                "the lifetime of certificates is out of range",
                expected=f"{shortest:g} s (an hour, and {POLLS} polls) to {LONGEST_CERTIFICATE:g} s",
                got=self.certificate_lifetime,
                where="certificate_lifetime",
                fix="choose one within",
            )
        if not 0 <= self.certificate_grace <= LONGEST_GRACE:
            raise SettingError(
                "the grace of certificates is out of range",
                expected=f"0 to {LONGEST_GRACE:g} s",
                got=self.certificate_grace,
                where="certificate_grace",
                fix="choose one within",
            )
        if self.public_url and not _leads_somewhere_safe(self.public_url):
            raise SettingError(
                "no address that links may lead to",
                expected="https://HOST[:PORT][/PATH], without a slash at its end; http only on the loopback",
                got=repr(self.public_url[:100]),
                where="public_url",
                fix="give the address as devices write it",
            )


def _leads_somewhere_safe(url: str) -> bool:
    found = _PUBLIC_URL.fullmatch(url)
    return found is not None and (found[1] == "https" or is_loopback(found[2].strip("[]")))
