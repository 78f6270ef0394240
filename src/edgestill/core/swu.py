"""Images for SWUpdate: a bundle's archive with a description that says where it goes, and the description's signature.

- An image (`NAME.swu`) is a cpio archive of three files: `sw-description`, `sw-description.sig` and the bundle. The description names the
  bundle's SHA-256, so that one signature over it covers every byte that a device keeps.
- It has no scripts and names no other handler than the one that puts a plain file in its place: written beside it first, then renamed.
- Made from the same bundle and the same signature it has the same bytes, wherever that is done.
- The reader takes images of this form only. The description is compared with the one form that there is, and headers with what
  would have been written: links, further files and trailing bytes have no way in.

Whether the signature is good is not decided here: the device does that, with the certificate that it was given.

Source: SWUpdate's documentation, "SWUpdate: syntax and tags with the default parser" and "Update images from verified source".
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final, Self

from edgestill.core import cpio
from edgestill.core.digest import Digest
from edgestill.core.errors import MessageError, PathError, SettingError
from edgestill.core.files import open_plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgestill.core.manifest import Manifest

DESCRIPTION: Final = "sw-description"
SIGNATURE: Final = "sw-description.sig"
INBOX: Final = "/var/lib/edgestill/inbox"
"""The folder on the device, where nothing else is said."""
ANY_HARDWARE: Final = "#RE:.*"
"""Matches every revision."""
MAX_DESCRIPTION_BYTES: Final = 8_000
MAX_SIGNATURE_BYTES: Final = 16_000
MAX_HARDWARE: Final = 32

_ANY_CLASS: Final = "any"
_CHUNK: Final = 1 << 20
_NAME: Final = r"[a-z0-9][a-z0-9_-]{0,63}"
_VERSION: Final = r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}"
_REVISION: Final = r"[A-Za-z0-9#:.*+_-]{1,60}"
_FOLDER: Final = r"(?:/[A-Za-z0-9_-][A-Za-z0-9._-]{0,60}){1,8}"
_FORM: Final = re.compile(
    rf"""software =
{{
	version = "(?P<version>{_VERSION})";
	description = "(?P<name>{_NAME})";
	hardware-compatibility: \[ (?P<hardware>"{_REVISION}"(?:, "{_REVISION}"){{0,{MAX_HARDWARE - 1}}}) \];
	files: \(
		\{{
			filename = "(?P=name)\.esb";
			path = "(?P<inbox>{_FOLDER})/(?P=name)\.esb";
			sha256 = "(?P<digest>[0-9a-f]{{64}})";
			properties: \{{
				atomic-install = "true";
				create-destination = "true";
			\}};
		\}}
	\);
\}}
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What an image says of itself.

    Attributes:
        name: of the bundle.
        version: of the bundle, `1.2.3`; SWUpdate compares it where the device forbids to go back (`-N`).
        hardware: revisions of devices that may install it; one with `#RE:` before it is a regular expression.
        inbox: absolute folder on the device; the bundle is put there as `NAME.esb`.
        digest: of the bundle's archive.
    """

    name: str
    version: str
    hardware: tuple[str, ...]
    inbox: str
    digest: Digest

    def __post_init__(self) -> None:
        told = {"inbox": (self.inbox, _FOLDER)} | {one: (one, _REVISION) for one in self.hardware}
        for what, (value, pattern) in told.items():
            if re.fullmatch(pattern, value) is None:
                raise SettingError(
                    "an image cannot say that",
                    where="inbox" if what == "inbox" else "hardware",
                    expected=f"text that matches {pattern}",
                    got=repr(value[:80]),
                    fix="give an absolute folder and the revisions of /etc/hwrevision",
                )
        if not 1 <= len(self.hardware) <= MAX_HARDWARE:
            raise SettingError(
                "too many revisions, or none",
                where="hardware",
                expected=f"1 to {MAX_HARDWARE}",
                got=len(self.hardware),
                fix="name a regular expression (#RE:...) instead",
            )

    @classmethod
    def of(
        cls, manifest: Manifest, digest: Digest, *, inbox: str = INBOX, hardware: tuple[str, ...] = ()
    ) -> Self:
        """Of a bundle's archive; without revisions its hardware class is the only one, and class `any` stands for all.

        Raises:
            SettingError: a folder or revision that an image cannot name.
        """
        own = ANY_HARDWARE if manifest.hardware_class == _ANY_CLASS else manifest.hardware_class
        return cls(
            name=manifest.name,
            version=manifest.version,
            hardware=hardware or (own,),
            inbox=inbox,
            digest=digest,
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads a description of the one form that there is.

        Raises:
            MessageError: any other.
        """
        found = _FORM.fullmatch(data.decode("ascii", "replace"))
        if found is None:
            raise MessageError(
                "not a description that edgestill makes",
                where=DESCRIPTION,
                expected="one plain file that goes to its folder, and nothing else",
                got=repr(data[:60]),
                fix="make the image with: edgestill bundle export --to swu",
            )
        return cls(
            name=found["name"],
            version=found["version"],
            hardware=tuple(found["hardware"].strip('"').split('", "')),
            inbox=found["inbox"],
            digest=Digest(found["digest"]),
        )

    def to_bytes(self) -> bytes:
        """The file `sw-description`: what is signed."""
        revisions = ", ".join(f'"{one}"' for one in self.hardware)
        return f"""software =
{{
	version = "{self.version}";
	description = "{self.name}";
	hardware-compatibility: [ {revisions} ];
	files: (
		{{
			filename = "{self.file}";
			path = "{self.inbox}/{self.file}";
			sha256 = "{self.digest.hex}";
			properties: {{
				atomic-install = "true";
				create-destination = "true";
			}};
		}}
	);
}}
""".encode("ascii")

    @property
    def file(self) -> str:
        """The bundle's name within the image and on the device."""
        return f"{self.name}.esb"


@dataclass(frozen=True, slots=True)
class Image:
    """An image that was read, every byte of it.

    Attributes:
        description: what it says.
        signature: over the description's bytes; not looked into.
        size: bytes of the bundle.
    """

    description: Description
    signature: bytes
    size: int

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads an image and checks its bundle against the description, a megabyte in memory at most.

        Raises:
            PathError: it cannot be read.
            MessageError: not an image of ours, one that ends too early, or whose bundle is another.
        """
        try:
            with open_plain(path) as file:
                return cls._read(file, str(path))
        except OSError as error:
            raise PathError(
                "cannot read an image",
                where=path,
                expected="NAME.swu",
                got=error.strerror or error,
                fix="check the path",
            ) from error

    @classmethod
    def _read(cls, file: BinaryIO, where: str) -> Self:
        reader = _Reader(file, where)
        said = b"".join(reader.file(DESCRIPTION, number=1, at_most=MAX_DESCRIPTION_BYTES))
        description = Description.from_bytes(said)
        signature = b"".join(reader.file(SIGNATURE, number=2, at_most=MAX_SIGNATURE_BYTES))
        state, size = hashlib.sha256(), 0
        for piece in reader.file(description.file, number=3, at_most=cpio.MAX_SIZE):
            state.update(piece)
            size += len(piece)
        reader.compare(cpio.end(reader.offset), "the end of the archive")
        if file.read(1):
            raise reader.refused("bytes after the archive's end", "nothing", "more")
        if state.hexdigest() != description.digest.hex:
            raise reader.refused(
                "the bundle is not the one that is described", description.digest, Digest(state.hexdigest())
            )
        return cls(description, signature, size)


def image_bytes(description: Description, signature: bytes, archive: bytes) -> bytes:
    """The image: always the same bytes for the same three.

    Args:
        description: whose bytes the signature was made over, and which names this archive.
        signature: of those bytes.
        archive: the bundle, `NAME.esb`.

    Raises:
        SettingError: an archive of 4 GiB or more.
    """
    assert Digest.of(archive) == description.digest
    if len(archive) > cpio.MAX_SIZE:
        raise SettingError(
            "too long for an image",
            where=description.file,
            expected=f"at most {cpio.MAX_SIZE} bytes",
            got=len(archive),
            fix="make a smaller bundle",
        )
    files = ((DESCRIPTION, description.to_bytes()), (SIGNATURE, signature), (description.file, archive))
    pieces: list[bytes] = []
    for number, (name, data) in enumerate(files, start=1):
        head = cpio.header(name, len(data), check=cpio.checksum(data), number=number)
        pieces += [head, data, cpio.padding(len(data))]
    return b"".join([*pieces, cpio.end(sum(map(len, pieces)))])


class _Reader:
    """Reads the files of an image one after another, each under the name that it must have."""

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file = file
        self._where = where
        self.offset = 0

    def file(self, name: str, *, number: int, at_most: int) -> Iterator[bytes]:
        """The bytes of the next file in pieces; what is wrong shows at its end at the latest."""
        head = self._take(cpio.HEAD, "a header")
        told = cpio.numbers(head)
        if told is None or head[: len(cpio.MAGIC)] != cpio.MAGIC:
            raise self.refused("not an image", f"a cpio archive with {name}", repr(head[:16]))
        size, check = told
        if size > at_most:
            raise self.refused(f"{name} is too long", f"at most {at_most} bytes", size)
        whole = cpio.header(name, size, check=check, number=number)
        if head != whole[: cpio.HEAD]:
            raise self.refused("another header than an image of ours has", f"that of {name}", "other bytes")
        self.compare(whole[cpio.HEAD :], f"the name {name}")
        left, summed = size, 0
        while left:
            piece = self._take(min(_CHUNK, left), name)
            summed = cpio.checksum(piece, summed)
            left -= len(piece)
            yield piece
        self.compare(cpio.padding(size), "zeros")
        if summed != check:
            raise self.refused(f"{name} was altered", f"checksum {check}", summed)

    def compare(self, wanted: bytes, what: str) -> None:
        """Refuses what does not go on with these bytes."""
        if self._take(len(wanted), what) != wanted:
            raise self.refused("the image is not as it would have been written", what, "other bytes")

    def _take(self, size: int, what: str) -> bytes:
        data = self._file.read(size)
        self.offset += len(data)
        if len(data) < size:
            raise self.refused("the image ends too early", f"{size} bytes of {what}", f"{len(data)} bytes")
        return data

    def refused(self, what: str, expected: object, got: object) -> MessageError:
        """The error, with the place."""
        return MessageError(
            what,
            where=f"{self._where}, before byte {self.offset}",
            expected=expected,
            got=got,
            fix="make it anew: edgestill bundle export --to swu",
        )
