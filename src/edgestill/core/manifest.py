"""`bundle.json`: what a bundle is made of.

- The manifest names every blob with its digest and size; the digest of the manifest's canonical bytes names the bundle.
- Those bytes are the only ones accepted: another spelling of the same facts (spaces, another order) is refused, so that
  one bundle has one digest.
- Unknown fields, of the manifest and of each blob, are kept, so that an old reader can pass on what a newer writer wrote.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Self

from edgestill.core.digest import Digest
from edgestill.core.errors import BundleError, MessageError
from edgestill.core.jsonio import Fields, JsonObject, canonical, parse_object

SCHEMA: Final = 1
MAX_BLOBS: Final = 32
MAX_BLOB_BYTES: Final = 2**31
MAX_MANIFEST_BYTES: Final = 65_536

MODEL: Final = "model.onnx"
TRAIN: Final = "train.onnx"
STEPS: Final = "train.json"
"""Optional, as `TRAIN` is: what the training step is, and where its tensors stand in the model (`learn.stepfile`)."""
POLICY: Final = "policy.json"
GOLDEN: Final = "golden.npz"
LINEAGE: Final = "lineage.json"
CARD: Final = "card.md"
REFERENCE: Final = "reference.stats"
"""Optional: `learn.statistics` over the data that the student was calibrated on."""
REQUIRED: Final = (MODEL, POLICY, GOLDEN, LINEAGE, CARD)

_BLOB_NAME: Final = r"[a-z0-9][a-z0-9_.-]{0,63}"
NAME: Final = r"[a-z0-9][a-z0-9_-]{0,63}"
"""Of a model."""
VERSION: Final = r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}"
"""`MAJOR.MINOR.PATCH`."""
_CLASS: Final = r"[a-z0-9_-]{1,60}"


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A blob by digest and size (bytes), with the fields a newer writer added."""

    digest: Digest
    size: int
    unknown: JsonObject = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The head of a bundle.

    Attributes:
        name: of the model, such as `watch`.
        version: `MAJOR.MINOR.PATCH`.
        hardware_class: where it may run, or `any`.
        blobs: name -> reference, in the order of their names.
        unknown: fields a newer writer added.
    """

    name: str
    version: str
    hardware_class: str
    blobs: dict[str, BlobRef]
    unknown: JsonObject = field(default_factory=dict)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads `bundle.json`.

        Raises:
            BundleError: over a bound, a field missing, not canonical, or a schema this version cannot read.
        """
        try:
            manifest = cls._read(
                Fields(parse_object(data, where="bundle.json", max_bytes=MAX_MANIFEST_BYTES), "bundle.json")
            )
        except MessageError as error:
            raise BundleError(
                error.what,
                where=error.where,
                expected=error.expected,
                got=error.got,
                fix="fetch or build it again",
            ) from error
        if manifest.to_bytes() != data:
            raise BundleError(
                "a manifest in another spelling",
                where="bundle.json",
                expected="its canonical bytes: sorted keys, no spaces",
                fix="build it again",
                got="other bytes of the same value",
            )
        return manifest

    @classmethod
    def _read(cls, fields: Fields) -> Self:
        schema = fields.integer("schema")
        if schema != SCHEMA:
            raise MessageError(
                "a bundle of another schema",
                where=fields.where,
                expected=f"schema {SCHEMA}",
                got=schema,
                fix="update edgestill",
            )
        named = fields.inner("blobs")
        if len(named.names()) > MAX_BLOBS:
            raise MessageError(
                "too many blobs", where=fields.where, expected=f"at most {MAX_BLOBS}", got=len(named.names())
            )
        blobs = {}
        for name in sorted(named.names()):
            _check(name, _BLOB_NAME, "a blob name")
            one = named.inner(name)
            blobs[name] = BlobRef(
                one.digest("digest"),
                one.integer("size", most=MAX_BLOB_BYTES),
                one.unknown(("digest", "size")),
            )
        missing = [name for name in REQUIRED if name not in blobs]
        if missing:
            raise MessageError(
                "a blob is missing", where=fields.where, expected=", ".join(REQUIRED), got=f"no {missing}"
            )
        return cls(
            name=fields.text("name", pattern=NAME),
            version=fields.text("version", pattern=VERSION),
            hardware_class=fields.text("hardware_class", pattern=_CLASS),
            blobs=blobs,
            unknown=fields.unknown(("schema", "name", "version", "hardware_class", "blobs")),
        )

    def to_bytes(self) -> bytes:
        """The canonical bytes."""
        blobs: JsonObject = {
            name: ref.unknown | {"digest": str(ref.digest), "size": ref.size}
            for name, ref in sorted(self.blobs.items())
        }
        own: JsonObject = {
            "schema": SCHEMA,
            "name": self.name,
            "version": self.version,
            "hardware_class": self.hardware_class,
            "blobs": blobs,
        }
        return canonical(self.unknown | own)

    @property
    def digest(self) -> Digest:
        """The name of the bundle: the digest of its manifest, which names every blob."""
        return Digest.of(self.to_bytes())

    @property
    def size(self) -> int:
        """Bytes of all blobs except those that only training needs, `train.onnx` and `train.json`."""
        return sum(ref.size for name, ref in self.blobs.items() if name not in {TRAIN, STEPS})


def _check(text: str, pattern: str, what: str) -> None:
    Fields({what: text}, "bundle.json").text(what, pattern=pattern)
