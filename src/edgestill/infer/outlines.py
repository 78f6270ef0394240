"""What models of a family are, apart from the models: `shapes.json` of a folder or an archive, and the profile that comes of it.

No engine and no arrays: a hub reads an archive's outlines, and puts the times that devices sent beside them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgestill.core.errors import BundleAlteredError, MessageError
from edgestill.core.family import INPUTS, MAX_MODELS, MAX_SHAPES_BYTES, SHAPES, Family
from edgestill.core.jsonio import Fields, parse_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from edgestill.core.digest import Digest
    from edgestill.core.jsonio import Json

VERSION: Final = 1
MAX_BYTES: Final = MAX_SHAPES_BYTES
MAX_WORK: Final = 20_000
PRECISIONS: Final = "int8|floats"


@dataclass(frozen=True, slots=True)
class Outline:
    """What the search has to know of a model.

    Attributes:
        precision: `int8` or `floats`.
        digest: of its file.
        work: what it has to do, operator by operator.
    """

    precision: str
    digest: Digest
    work: Sequence[Json]


def check_family(path: Path) -> None:
    """Reads an archive once, whole, and checks that its parts are of one another.

    Raises:
        BundleError, BundleAlteredError, MessageError: they are not. PathError: it cannot be read.
    """
    family = Family.open(path)
    family.verify()
    outlines_of(family)


def outlines_of(family: Family) -> list[Outline]:
    """What an archive says of its models.

    Raises:
        BundleAlteredError: its outlines are not of the files in it. MessageError: they cannot be read.
        BundleError, PathError: as `Family.read`.
    """
    inputs, outlines = read_outlines(family.read(SHAPES), f"{family.path}: {SHAPES}")
    head = family.head
    if (inputs, *(one.digest for one in outlines)) != (
        head.inputs.digest,
        *(one.digest for one in head.models),
    ):
        raise BundleAlteredError(
            "the outlines of a family are not of its models",
            where=family.path,
            expected=f"the digests of {INPUTS} and of {len(head.models)} models",
            got=f"others, of {len(outlines)} models",
            fix="make the archive again",
        )
    return outlines


def profile_bytes(
    outlines: Sequence[Outline],
    times: Mapping[int, tuple[float, float]],
    hardware_class: str,
    more: Mapping[str, Json] | None = None,
) -> bytes:
    """A profile, of what devices have said of the models of an archive.

    Args:
        outlines: of all its models.
        times: place of a model -> p50 and p95, seconds; those that are missing are left out.
        hardware_class: of the devices.
        more: fields for people, which a reader of profiles leaves alone.
    """
    models = [
        {"precision": outlines[at].precision, "work": list(outlines[at].work), "p50": p50, "p95": p95}
        for at, (p50, p95) in sorted(times.items())
    ]
    head = {"version": VERSION, "hardware_class": hardware_class, "threads": 1, "models": models}
    return json.dumps(dict(more or {}) | head, indent=1).encode()


def shapes_bytes(outlines: Iterable[Outline], inputs: Digest) -> bytes:
    """`shapes.json`: what the models are, and the digest of what they are shown."""
    told = [
        {"precision": one.precision, "digest": str(one.digest), "work": list(one.work)} for one in outlines
    ]
    head = {"version": VERSION, "inputs": str(inputs), "models": told}
    return json.dumps(head).encode()


def read_outlines(data: bytes, where: str) -> tuple[Digest, list[Outline]]:
    """What `shapes_bytes` wrote: the inputs' digest, and each model's outline; MessageError where it is not that."""
    told = Fields(parse_object(data, where=where, max_bytes=MAX_BYTES), where)
    check_version(told.integer("version"), where)
    return told.digest("inputs"), [
        Outline(
            precision=one.text("precision", pattern=PRECISIONS),
            digest=one.digest("digest"),
            work=[dict(part.unknown(())) for part in one.objects("work", at_most=MAX_WORK)],
        )
        for one in told.objects("models", at_most=MAX_MODELS)
    ]


def check_version(version: int, where: str) -> None:
    """Raises MessageError where shapes or a profile are of another version than this one writes."""
    if version != VERSION:
        raise MessageError(
            "shapes or latencies of another version",
            where=where,
            expected=f"version {VERSION} (this edgestill's)",
            got=version,
            fix="make them again with the same version on both sides",
        )
