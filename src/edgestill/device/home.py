"""The home folder of a device: who it is, and where its things lie.

    identity.json   its id, credential and hub; written last, so that a home which has one is complete
    settings.json   what its owner chose: what may leave it
    neighbours.json who is asked before the hub (device.neighbours); usually missing
    mirrors.json    who bundles are fetched from before the hub (device.mirrors); usually missing
    privacy.json    what was spent on noise (device.sending), as in learned/; missing where nothing was
    budget.json     bytes that were sent and received today (link.ledger)
    root.json       the publisher's TUF root, pinned by the join token
    device.key      its private key, beside authorities.pem and certificate.pem (device.papers); missing where its hub gives none
    authorities.json  the hub's newest word about the fleet's authority (trust.vouched), once the device has heard one
    tuf/            trusted metadata (trust.client)
    slots/          bundles and state (device.slots)
    timing/         the timing job in hand, and what is known of earlier ones (device.measuring); missing before the first
    votes/          the samples to be voted on, and on which rounds it has (device.voting); missing before the first
    outbox.db       reports not yet delivered (device.outbox)
    learned/        what the device learned by itself (device.learning, device.tuning)
    samples         inputs with their labels, to train on (device.keeping); missing unless its owner wants it. A key that seals it lies where its owner chose
    training.json   what training has cost today (device.coach)
    socket          the path of the socket that applications talk to
    lock            held by the running supervisor

The folder is readable by its owner alone. Unix sockets have short names (about 107 bytes): where the home is too
long for one, the socket lies in a private temporary folder, and the file `socket` says where. That folder goes with
an agent that ends in order; one that was killed leaves it, and the next run uses it again.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from edgestill.core import bundle, hardware
from edgestill.core.errors import ConflictError, MessageError, NotFoundError, PathError
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.device.effort import Effort
from edgestill.device.privacy import LEVELS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgestill.core.jsonio import JsonObject

IDENTITY: Final = "identity.json"
SETTINGS: Final = "settings.json"
ROOT: Final = "root.json"
NEIGHBOURS: Final = "neighbours.json"
MIRRORS: Final = "mirrors.json"
DEVICE_KEY: Final = "device.key"
AUTHORITIES: Final = "authorities.pem"
CERTIFICATE: Final = "certificate.pem"
PAPERS: Final = (DEVICE_KEY, AUTHORITIES, CERTIFICATE)
VOUCHED: Final = "authorities.json"
BUDGET: Final = "budget.json"
SAMPLES: Final = "samples"
TRAINING: Final = "training.json"
SOCKET: Final = "socket"
LOCK: Final = "lock"
MAX_SOCKET_BYTES: Final = 100
_MAX_BYTES: Final = 300_000
_MOST_A_DAY: Final = 2**50
_MOST_KEPT: Final = 2**40
_LONGEST_PATH: Final = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a device is.

    Attributes:
        device: its id in the fleet.
        credential: the secret it was given at enrolment.
        hub: the hub's address, such as `https://hub.example:8443`.
        hardware_class: where its bundles must run.
        interval: seconds between polls, until the hub says otherwise.
    """

    device: str
    credential: str
    hub: str
    hardware_class: str
    interval: float

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads `identity.json`; MessageError where it is none."""
        fields = Fields(parse_object(data, where=IDENTITY, max_bytes=_MAX_BYTES), IDENTITY)
        return cls(
            device=fields.text("device", at_most=64),
            credential=fields.text("credential"),
            hub=fields.text("hub"),
            hardware_class=fields.text("hardware_class", pattern=hardware.PATTERN),
            interval=fields.number("interval", least=0.01, most=86_400),
        )

    def to_bytes(self) -> bytes:
        """The bytes of `identity.json`."""
        return canonical(
            {
                "device": self.device,
                "credential": self.credential,
                "hub": self.hub,
                "hardware_class": self.hardware_class,
                "interval": self.interval,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the owner of a device chose.

    Attributes:
        leaves: the most that may leave the device: `nothing`, `features` or `raw`.
        labels: for cohorts, such as `{"site": "north"}`.
        accept_auto: whether updates are taken that only a role for unattended ones lists (`device.unattended`).
        bytes_per_day: that the device may send and receive, updates, questions and evidence together; None for any number.
        keeps: bytes on the disk for inputs with their labels, which it may train on (`device.keeping`); 0 keeps none.
        effort: that training on them may cost; None trains nothing.
        seal: file of the key that they are sealed with (`device.samplekey`); None leaves them plain.
        seal_anew_on: where the file system in memory is mounted that this key is made anew on when it is missing; None makes it never.
    """

    leaves: str
    labels: dict[str, str]
    accept_auto: bool = False
    bytes_per_day: int | None = None
    keeps: int = 0
    effort: Effort | None = None
    seal: Path | None = None
    seal_anew_on: Path | None = None

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads `settings.json`; MessageError where it is none."""
        fields = Fields(parse_object(data, where=SETTINGS, max_bytes=_MAX_BYTES), SETTINGS)
        return cls(
            leaves=fields.text("leaves", pattern="|".join(LEVELS)),
            labels=fields.texts("labels"),
            accept_auto=fields.has("accept_auto") and fields.boolean("accept_auto"),
            bytes_per_day=fields.integer("bytes_per_day", most=_MOST_A_DAY)
            if fields.has("bytes_per_day")
            else None,
            keeps=fields.integer("keeps", most=_MOST_KEPT) if fields.has("keeps") else 0,
            effort=Effort.from_fields(fields.inner("effort")) if fields.has("effort") else None,
            seal=_path(fields, "seal"),
            seal_anew_on=_path(fields, "seal_anew_on"),
        )

    def to_bytes(self) -> bytes:
        """The bytes of `settings.json`."""
        told: JsonObject = {"leaves": self.leaves, "labels": dict(self.labels)}
        told |= {"accept_auto": True} if self.accept_auto else {}
        told |= {"keeps": self.keeps} if self.keeps else {}
        told |= {} if self.effort is None else {"effort": self.effort.as_json()}
        for name, path in (("seal", self.seal), ("seal_anew_on", self.seal_anew_on)):
            told |= {} if path is None else {name: os.fspath(path)}
        return canonical(told | ({} if self.bytes_per_day is None else {"bytes_per_day": self.bytes_per_day}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """A device's folder, opened."""

    path: Path
    identity: Identity
    settings: Settings
    root: bytes

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        identity: Identity,
        settings: Settings,
        root: bytes,
        papers: Mapping[str, bytes] | None = None,
    ) -> Self:
        """Writes a new home; `papers` by the names of their files. What a joining that was cut off left of them is removed.

        Raises:
            ConflictError: a device lives there already.
            PathError: the folder cannot be written.
        """
        refuse_inhabited(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(stat.S_IRWXU)
        except OSError as error:
            raise PathError(
                "cannot make a home",
                where=path,
                got=error.strerror,
                expected="a folder that can be made",
                fix="choose another --home",
            ) from error
        bundle.replace(path / ROOT, root)
        bundle.replace(path / SETTINGS, settings.to_bytes())
        (path / VOUCHED).unlink(missing_ok=True)
        for name in PAPERS:
            if papers is not None and name in papers:
                bundle.replace(path / name, papers[name])
            else:
                (path / name).unlink(missing_ok=True)
        bundle.replace(path / IDENTITY, identity.to_bytes())
        return cls(path=path, identity=identity, settings=settings, root=root)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads a home.

        Raises:
            NotFoundError: no device lives there.
            PathError, MessageError: a file that cannot be read, or is damaged.
        """
        if not (path / IDENTITY).is_file():
            raise NotFoundError(
                "no device lives here",
                where=path,
                fix="run: edgestill-agent join --home DIR --hub URL ...",
                expected="the home of a device",
                got="none",
            )
        return cls(
            path=path,
            identity=Identity.from_bytes(_read(path / IDENTITY)),
            settings=Settings.from_bytes(_read(path / SETTINGS)),
            root=_read(path / ROOT),
        )

    def chosen(self, settings: Settings) -> Self:
        """The home with other settings, which its agent follows from its next run on.

        Raises:
            PathError: they cannot be written.
        """
        bundle.replace(self.path / SETTINGS, settings.to_bytes())
        return replace(self, settings=settings)

    @property
    def slots(self) -> Path:
        """Bundles and state."""
        return self.path / "slots"

    @property
    def outbox(self) -> Path:
        """Reports not yet delivered."""
        return self.path / "outbox.db"

    @property
    def tuf(self) -> Path:
        """Trusted metadata."""
        return self.path / "tuf"

    @property
    def neighbours(self) -> Path:
        """Larger models that are asked before the hub's; there need not be such a file."""
        return self.path / NEIGHBOURS

    @property
    def mirrors(self) -> Path:
        """Places nearby that bundles are fetched from; there need not be such a file."""
        return self.path / MIRRORS

    @property
    def budget(self) -> Path:
        """What was sent and received today."""
        return self.path / BUDGET

    @property
    def timing(self) -> Path:
        """The timing job in hand; there need not be such a folder."""
        return self.path / "timing"

    @property
    def votes(self) -> Path:
        """The voting round in hand; there need not be such a folder."""
        return self.path / "votes"

    @property
    def learned(self) -> Path:
        """What the device learned by itself."""
        return self.path / "learned"

    @property
    def samples(self) -> Path:
        """What may be trained on; there need not be such a file."""
        return self.path / SAMPLES

    @property
    def training(self) -> Path:
        """What training has cost today."""
        return self.path / TRAINING

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second supervisor out for as long as the block runs, and drops what a kill left half-written.

        The kernel lets go when a process ends.

        Raises:
            ConflictError: another supervisor runs.
        """
        handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConflictError(
                    "an agent runs here already",
                    where=self.path,
                    fix="stop it, or use another --home",
                    expected="a free lock",
                    got="one that is held",
                ) from error
            self._sweep()
            yield
        finally:
            os.close(handle)

    def _sweep(self) -> None:
        """Removes temporary files of `core.bundle.replace`; in the home itself, which may hold others', only by name."""
        left = [*self.learned.glob(".*"), *self.tuf.glob(".*")]
        for name in (
            IDENTITY,
            SETTINGS,
            ROOT,
            SOCKET,
            NEIGHBOURS,
            MIRRORS,
            BUDGET,
            TRAINING,
            VOUCHED,
            *PAPERS,
        ):
            left += self.path.glob(f".{name}.*")
        for path in left:
            if not path.is_dir():
                path.unlink(missing_ok=True)


def refuse_inhabited(path: Path) -> None:
    """Raises ConflictError where a device lives in this folder."""
    if (path / IDENTITY).exists():
        raise ConflictError(
            "a device lives here already",
            where=path,
            fix="use another --home",
            expected="a folder without a device",
            got="the identity of one",
        )


def choose_socket(path: Path) -> Path:
    """A path for the socket that is short enough, recorded in the home.

    Raises:
        PathError: the record cannot be written.
    """
    chosen = path.resolve() / "app.sock"
    if len(os.fsencode(chosen)) > MAX_SOCKET_BYTES:
        chosen = _recorded(path) or _private_folder() / "app.sock"
    bundle.replace(path / SOCKET, os.fsencode(chosen))
    return chosen


def drop_socket(path: Path, socket: Path) -> None:
    """Removes a socket that `choose_socket` gave, and its private folder where it has one: the next run chooses anew."""
    socket.unlink(missing_ok=True)
    if socket.parent != path.resolve():
        with suppress(OSError):  # somebody has put something there, or it is gone
            socket.parent.rmdir()


def find_socket(path: Path) -> Path:
    """The socket of the agent that lives in this home.

    Raises:
        NotFoundError: no agent has run here, or the record of its socket is damaged.
    """
    try:
        with (path / SOCKET).open("rb") as file:
            recorded = file.read(MAX_SOCKET_BYTES + 1)
    except OSError:
        recorded = b""
    if not recorded.startswith(b"/") or len(recorded) > MAX_SOCKET_BYTES or b"\0" in recorded:
        raise NotFoundError(
            "no agent has run here",
            where=path,
            fix="run: edgestill-agent run --home DIR",
            expected=SOCKET,
            got="none",
        )
    return Path(os.fsdecode(recorded))


def _private_folder() -> Path:
    """A new folder of ours, under a path that leaves room for a socket's name."""
    folder = Path(tempfile.gettempdir())
    if len(os.fsencode(folder)) > MAX_SOCKET_BYTES - len("/edgestill-xxxxxxxx/app.sock"):
        folder = Path("/tmp")  # noqa: S108  # POSIX has it; mkdtemp makes a folder that is ours alone
    return Path(tempfile.mkdtemp(prefix="edgestill-", dir=folder))


def _recorded(path: Path) -> Path | None:
    """The socket path of the last run, if its private folder is still there and still ours."""
    try:
        socket = find_socket(path)
        about = socket.parent.stat()
    except (NotFoundError, OSError):
        return None
    own = about.st_uid == os.getuid() and stat.S_IMODE(about.st_mode) == stat.S_IRWXU
    return socket if own and len(os.fsencode(socket)) <= MAX_SOCKET_BYTES else None


def _path(fields: Fields, name: str) -> Path | None:
    return Path(fields.text(name, at_most=_LONGEST_PATH)) if fields.has(name) else None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise PathError(
            "cannot read a file of the home",
            where=path,
            got=error.strerror,
            expected="a file of ours",
            fix="check its owner, and the room on the disk",
        ) from error
    if len(data) > _MAX_BYTES:
        raise MessageError(
            "a file of the home is too long", where=path, expected=f"{_MAX_BYTES} bytes", got="more"
        )
    return data
