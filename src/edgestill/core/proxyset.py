"""`NAME.esp`: samples without labels that a fleet votes on, as one deterministic archive. It is published like a bundle, and never installed.

    proxy.json       name, version, labels of the classes, what a sample is, how many; digest and size of the samples
    samples.bin      the samples, one after the other, as the Open Inference Protocol writes a tensor: little-endian, row-major

- The archive is read as a bundle's is (`core.archive`): `proxy.json` says what every other byte must be. Nothing is compressed, and the size of
  the samples must be what their number, shape and datatype make: nobody allocates more than the file has bytes.
- Its name on the publisher's list is `proxy/NAME/VERSION/samples.esp`: it has no hardware class, since devices of every class see the same samples.
- The labels are named, in their order: a vote for class 3 means the same to everybody, and a device whose labels are others does not vote.
- The digest of the archive is what a ballot's question names (`learn.votes.Question.proxy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final, Self

from edgestill.core import archive
from edgestill.core.digest import Digest
from edgestill.core.errors import BundleError, MessageError, PathError, within
from edgestill.core.files import open_plain
from edgestill.core.jsonio import Fields, JsonObject, canonical, parse_object
from edgestill.core.manifest import NAME, VERSION, BlobRef
from edgestill.core.oip import DATATYPES
from edgestill.core.release import proxy_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HEAD, SAMPLES = "proxy.json", "samples.bin"
SUFFIX: Final = ".esp"
SCHEMA: Final = 1
MAX_HEAD_BYTES: Final = 500_000
MAX_SAMPLES_BYTES: Final = 32_000_000
"""Of all samples: a device has them in memory at once."""
MAX_ARCHIVE_BYTES: Final = MAX_SAMPLES_BYTES + 2 * MAX_HEAD_BYTES
MAX_SAMPLES: Final = 10_000
MAX_LABELS: Final = 4_096
MAX_CELLS: Final = 2**23
"""Samples times classes; as `learn.votes`, which holds an outcome as a whole."""
MAX_LABEL: Final = 200
MAX_RANK: Final = 7
"""Axes of one sample."""

_KIND: Final = "proxy"
_REFETCH: Final = "fetch or make it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """`proxy.json`.

    Attributes:
        name: of what is asked.
        version: `MAJOR.MINOR.PATCH`.
        labels: names of the classes in their order, 2 to 4,096.
        datatype: of the samples, as the Open Inference Protocol names it.
        shape: of one sample, as the sensor gives it.
        count: samples, 1 to 10,000.
        samples: `samples.bin`.
    """

    name: str
    version: str
    labels: tuple[str, ...]
    datatype: str
    shape: tuple[int, ...]
    count: int
    samples: BlobRef

    @property
    def target(self) -> str:
        """Its name on the publisher's list."""
        return proxy_name(self.name, self.version)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads `proxy.json`.

        Raises:
            BundleError: over a bound, a field missing or unknown, a size that is not that of the samples, or in another spelling than its
                canonical bytes.
        """
        try:
            found = cls._read(Fields(parse_object(data, where=HEAD, max_bytes=MAX_HEAD_BYTES), HEAD))
        except MessageError as error:
            raise BundleError(
                error.what, where=error.where, expected=error.expected, got=error.got, fix=_REFETCH
            ) from error
        if found.to_bytes() != data:
            raise BundleError(
                "a proxy set's head in another spelling",
                where=HEAD,
                expected="its canonical bytes: sorted keys, no spaces",
                got="other bytes of the same value",
                fix=_REFETCH,
            )
        return found

    @classmethod
    def _read(cls, fields: Fields) -> Self:
        fields.only(("schema", "kind", "name", "version", "labels", "datatype", "shape", "count", "samples"))
        fields.text("kind", pattern=_KIND)
        if (schema := fields.integer("schema")) != SCHEMA:
            raise MessageError(
                "a proxy set of another schema", where=HEAD, expected=f"schema {SCHEMA}", got=schema
            )
        known = fields.inner("samples")
        known.only(("digest", "size"))
        found = cls(
            name=fields.text("name", pattern=NAME),
            version=fields.text("version", pattern=VERSION),
            labels=_labels(fields),
            datatype=fields.text("datatype", pattern="|".join(DATATYPES)),
            shape=_shape(fields),
            count=fields.integer("count", least=1, most=MAX_SAMPLES),
            samples=BlobRef(known.digest("digest"), known.integer("size", most=MAX_SAMPLES_BYTES)),
        )
        found._check()
        return found

    def _check(self) -> None:
        """Raises MessageError where the numbers contradict each other."""
        size = self.count * prod(self.shape) * DATATYPES[self.datatype][1]
        if self.samples.size != size:
            raise MessageError(
                "samples of another size", where=HEAD, expected=f"{size} bytes", got=self.samples.size
            )
        if (cells := self.count * len(self.labels)) > MAX_CELLS:
            raise MessageError(
                "too many samples for so many classes",
                where=HEAD,
                expected=f"at most {MAX_CELLS}, one times the other",
                got=cells,
            )

    def to_bytes(self) -> bytes:
        """The canonical bytes."""
        told: JsonObject = {
            "schema": SCHEMA,
            "kind": _KIND,
            "name": self.name,
            "version": self.version,
            "labels": [*self.labels],
            "datatype": self.datatype,
            "shape": [*self.shape],
            "count": self.count,
            "samples": {"digest": str(self.samples.digest), "size": self.samples.size},
        }
        return canonical(told)


@dataclass(frozen=True, slots=True)
class ProxySet:
    """An archive that was opened.

    Attributes:
        head: what it is made of.
        path: of it.
    """

    head: Head
    path: Path
    _offset: int

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads the head and finds the samples; their bytes are read and checked by `read`.

        Raises:
            PathError: nothing there, or not readable.
            BundleError: not such an archive. BundleTruncatedError: it ends too early.
        """
        try:
            with open_plain(path) as file:
                data = archive.head(file, path, name=HEAD, at_most=MAX_HEAD_BYTES, what="a proxy set")
                with within(path):
                    head = Head.from_bytes(data)
                members = [(HEAD, len(data)), (SAMPLES, head.samples.size)]
                return cls(head, path, archive.offsets(file, path, members)[SAMPLES])
        except OSError as error:
            raise PathError(
                "cannot read a proxy set",
                where=path,
                expected=f"NAME{SUFFIX}",
                got=error.strerror or error,
                fix="check the path",
            ) from error

    def read(self) -> bytes:
        """The bytes of all samples, checked.

        Raises:
            BundleAlteredError: the bytes are not what the head says. PathError: the archive is gone.
        """
        return archive.span(self.path, self._offset, self.head.samples, name=SAMPLES)


def is_proxy_set(path: Path) -> bool:
    """Whether a file begins as such an archive; nothing is said of the rest."""
    with open_plain(path) as file:
        return file.read(len(HEAD) + 1) == f"{HEAD}\0".encode()


def proxy_set_bytes(
    *, name: str, version: str, labels: Sequence[str], datatype: str, shape: Sequence[int], samples: bytes
) -> bytes:
    """The archive; packing the same twice gives the same bytes.

    Args:
        name: of what is asked.
        version: of it.
        labels: names of the classes.
        datatype: of the samples.
        shape: of one sample.
        samples: all of them.

    Raises:
        BundleError: what the format does not allow.
    """
    one = prod(shape) * DATATYPES.get(datatype, ("", 1))[1]
    head = Head(
        name=name,
        version=version,
        labels=tuple(labels),
        datatype=datatype,
        shape=tuple(shape),
        count=len(samples) // one if one > 0 else 0,
        samples=BlobRef(Digest.of(samples), len(samples)),
    )
    told = head.to_bytes()
    Head.from_bytes(told)
    return archive.packed([(HEAD, told), (SAMPLES, samples)])


def _labels(fields: Fields) -> tuple[str, ...]:
    found = fields.items("labels", at_most=MAX_LABELS)
    names = tuple(one for one in found if isinstance(one, str) and len(one) <= MAX_LABEL)
    if len(names) != len(found) or len(set(names)) != len(names) or len(names) < 2:
        raise MessageError(
            "labels that are none",
            where=f"{HEAD}: labels",
            expected=f"2 to {MAX_LABELS} different names of at most {MAX_LABEL} characters",
            got=f"{len(found)}, of which {len(set(names))} are such",
        )
    return names


def _shape(fields: Fields) -> tuple[int, ...]:
    found = fields.items("shape", at_most=MAX_RANK)
    sizes = tuple(one for one in found if type(one) is int and 1 <= one <= MAX_SAMPLES_BYTES)
    if len(sizes) != len(found):
        raise MessageError(
            "a shape that is none",
            where=f"{HEAD}: shape",
            expected=f"at most {MAX_RANK} whole numbers from 1 to {MAX_SAMPLES_BYTES}",
            got=str(found)[:80],
        )
    return sizes
