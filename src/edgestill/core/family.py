"""`NAME.est`: a family of models that devices time, as one deterministic archive. It is published like a bundle, and never installed.

    family.json      name, version, hardware class; digest and size of every other file
    shapes.json      what each model is (`infer.profiling`)
    inputs.npy       what they are shown
    0.onnx, ...      the models

- The archive is read as a bundle's is (`core.archive`): `family.json` says what every other byte must be, names of files are
  counted and never taken from it, and nothing is unpacked.
- Its name on the publisher's list is `timing/NAME/VERSION/CLASS.est`: an assignment to run something cannot name it, and one to time
  something cannot name a bundle (`core.release`).
- A part is read only when asked, bounded by its size there, and checked against its digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from edgestill.core import archive
from edgestill.core.digest import Digest
from edgestill.core.errors import BundleError, MessageError, PathError, within
from edgestill.core.files import open_plain
from edgestill.core.hardware import PATTERN
from edgestill.core.jsonio import Fields, JsonObject, canonical, parse_object
from edgestill.core.manifest import NAME, VERSION, BlobRef
from edgestill.core.release import timing_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

HEAD, SHAPES, INPUTS = "family.json", "shapes.json", "inputs.npy"
SUFFIX: Final = ".est"
SCHEMA: Final = 1
MAX_HEAD_BYTES: Final = 131_072
MAX_SHAPES_BYTES: Final = 8_000_000
MAX_INPUTS_BYTES: Final = 64_000_000
MAX_MODELS: Final = 512
MAX_ARCHIVE_BYTES: Final = 2**29
"""Of a whole archive: 512 MiB."""

_KIND: Final = "timing"
_REFETCH: Final = "fetch or make it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """`family.json`.

    Attributes:
        name: of the model that the search looks for.
        version: `MAJOR.MINOR.PATCH`.
        hardware_class: of the devices that time it.
        shapes: `shapes.json`.
        inputs: `inputs.npy`.
        models: `0.onnx` and on, 1 to 512 of them.
    """

    name: str
    version: str
    hardware_class: str
    shapes: BlobRef
    inputs: BlobRef
    models: tuple[BlobRef, ...]

    @property
    def target(self) -> str:
        """Its name on the publisher's list."""
        return timing_name(self.name, self.version, self.hardware_class)

    def files(self) -> Iterator[tuple[str, BlobRef]]:
        """Names and references of the archive's other files, in their order."""
        yield SHAPES, self.shapes
        yield INPUTS, self.inputs
        yield from ((f"{at}.onnx", one) for at, one in enumerate(self.models))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads `family.json`.

        Raises:
            BundleError: over a bound, a field missing or unknown, or in another spelling than its canonical bytes.
        """
        try:
            found = cls._read(Fields(parse_object(data, where=HEAD, max_bytes=MAX_HEAD_BYTES), HEAD))
        except MessageError as error:
            raise BundleError(
                error.what, where=error.where, expected=error.expected, got=error.got, fix=_REFETCH
            ) from error
        if found.to_bytes() != data:
            raise BundleError(
                "a family's head in another spelling",
                where=HEAD,
                expected="its canonical bytes: sorted keys, no spaces",
                got="other bytes of the same value",
                fix=_REFETCH,
            )
        return found

    @classmethod
    def _read(cls, fields: Fields) -> Self:
        fields.only(("schema", "kind", "name", "version", "hardware_class", "shapes", "inputs", "models"))
        fields.text("kind", pattern=_KIND)
        if (schema := fields.integer("schema")) != SCHEMA:
            raise MessageError(
                "a family of another schema", where=HEAD, expected=f"schema {SCHEMA}", got=schema
            )
        models = fields.objects("models", at_most=MAX_MODELS)
        if not models:
            raise MessageError("a family without models", where=HEAD, expected="at least one", got="none")
        return cls(
            name=fields.text("name", pattern=NAME),
            version=fields.text("version", pattern=VERSION),
            hardware_class=fields.text("hardware_class", pattern=PATTERN),
            shapes=_ref(fields.inner("shapes"), MAX_SHAPES_BYTES),
            inputs=_ref(fields.inner("inputs"), MAX_INPUTS_BYTES),
            models=tuple(_ref(one, MAX_ARCHIVE_BYTES) for one in models),
        )

    def to_bytes(self) -> bytes:
        """The canonical bytes."""
        told: JsonObject = {
            "schema": SCHEMA,
            "kind": _KIND,
            "name": self.name,
            "version": self.version,
            "hardware_class": self.hardware_class,
            "shapes": _told(self.shapes),
            "inputs": _told(self.inputs),
            "models": [_told(one) for one in self.models],
        }
        return canonical(told)


@dataclass(frozen=True, slots=True)
class Family:
    """An archive that was opened.

    Attributes:
        head: what it is made of.
        path: of it.
    """

    head: Head
    path: Path
    _offsets: dict[str, int]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads the head and finds the files; their bytes are read and checked by `read`.

        Raises:
            PathError: nothing there, or not readable.
            BundleError: not such an archive. BundleTruncatedError: it ends too early.
        """
        try:
            with open_plain(path) as file:
                data = archive.head(file, path, name=HEAD, at_most=MAX_HEAD_BYTES, what="a family of models")
                with within(path):
                    head = Head.from_bytes(data)
                members = [(HEAD, len(data)), *((name, one.size) for name, one in head.files())]
                return cls(head, path, archive.offsets(file, path, members))
        except OSError as error:
            raise PathError(
                "cannot read a family of models",
                where=path,
                expected=f"NAME{SUFFIX}",
                got=error.strerror or error,
                fix="check the path",
            ) from error

    def read(self, name: str) -> bytes:
        """The bytes of one file, checked.

        Raises:
            BundleError: no file of that name. BundleAlteredError: the bytes are not what the head says.
            PathError: the archive is gone.
        """
        known = dict(self.head.files()).get(name)
        if known is None:
            raise BundleError(
                "no such file of a family",
                where=self.path,
                expected=f"{SHAPES}, {INPUTS}, or 0.onnx to {len(self.head.models) - 1}.onnx",
                got=name[:80],
                fix=_REFETCH,
            )
        return archive.span(self.path, self._offsets[name], known, name=name)

    def verify(self) -> None:
        """Reads every file once and checks it; errors as `read`."""
        for name, _ in self.head.files():
            self.read(name)


def is_family(path: Path) -> bool:
    """Whether a file begins as such an archive; nothing is said of the rest."""
    with open_plain(path) as file:
        return file.read(len(HEAD) + 1) == f"{HEAD}\0".encode()


def family_bytes(
    *, name: str, version: str, hardware_class: str, shapes: bytes, inputs: bytes, models: Sequence[bytes]
) -> bytes:
    """The archive; packing the same twice gives the same bytes.

    Raises:
        BundleError: a name, version, class or size that the format does not allow.
    """
    head = Head(
        name=name,
        version=version,
        hardware_class=hardware_class,
        shapes=_of(shapes),
        inputs=_of(inputs),
        models=tuple(map(_of, models)),
    )
    told = head.to_bytes()
    Head.from_bytes(told)
    contents = (shapes, inputs, *models)
    made = archive.packed([(HEAD, told), *zip((one for one, _ in head.files()), contents, strict=True)])
    if len(made) > MAX_ARCHIVE_BYTES:
        raise BundleError(
            "a family that is too long",
            where=f"{name}{SUFFIX}",
            expected=f"at most {MAX_ARCHIVE_BYTES} bytes",
            got=len(made),
            fix="time a smaller teacher's students, or fewer of them",
        )
    return made


def _of(data: bytes) -> BlobRef:
    return BlobRef(Digest.of(data), len(data))


def _ref(fields: Fields, at_most: int) -> BlobRef:
    fields.only(("digest", "size"))
    return BlobRef(fields.digest("digest"), fields.integer("size", most=at_most))


def _told(one: BlobRef) -> JsonObject:
    return {"digest": str(one.digest), "size": one.size}
