"""The samples of a proxy set (`core.proxyset`) as an array, and what is asked about them.

Bytes that are not finite numbers are refused where a set is made, where a hub takes it in, and where it is read: a network's answer to them
says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import numpy as np

from edgestill.core.errors import BundleError
from edgestill.core.oip import DATATYPE_OF, NUMPY_NAMES
from edgestill.core.proxyset import ProxySet, proxy_set_bytes
from edgestill.learn.votes import Question

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.core.digest import Digest
    from edgestill.core.proxyset import Head

_FIX: Final = "leave such samples out, and make the set again"


def question_of(archive: Digest, head: Head) -> Question:
    """What is asked about a set: a class of its labels for each of its samples.

    Args:
        archive: digest of the whole file, which the publisher lists.
        head: of it.
    """
    return Question(proxy=archive, samples=head.count, classes=len(head.labels))


def samples_of(found: ProxySet) -> NDArray[np.generic]:
    """All samples `[N, ...]`, in this machine's byte order.

    Raises:
        BundleAlteredError, PathError: as `ProxySet.read`. BundleError: numbers that are not finite.
    """
    head = found.head
    little = np.dtype(NUMPY_NAMES[head.datatype]).newbyteorder("<")
    flat = np.frombuffer(found.read(), dtype=little).reshape(head.count, *head.shape)
    samples: NDArray[np.generic] = flat.astype(little.newbyteorder("="), copy=False)
    _check(samples, str(found.path))
    return samples


def check_proxy_set(path: Path) -> None:
    """Reads an archive once, whole.

    Raises:
        BundleError, BundleAlteredError, PathError: as `ProxySet.open` and `samples_of`.
    """
    samples_of(ProxySet.open(path))


def pack(samples: NDArray[np.generic], *, name: str, version: str, labels: Sequence[str]) -> bytes:
    """The archive of these samples; packing the same twice gives the same bytes.

    Args:
        samples: `[N, ...]`, as the sensor gives them.
        name: of what is asked.
        version: of it.
        labels: names of the classes, in the order of the students' logits.

    Raises:
        BundleError: what the format does not allow, or numbers that are not finite.
    """
    datatype = DATATYPE_OF.get(samples.dtype.name)
    if datatype is None or samples.ndim == 0:
        raise BundleError(
            "samples of a kind that no sensor gives",
            where=name,
            expected=f"[N, ...] of {', '.join(DATATYPE_OF)}",
            got=f"{samples.dtype}, {samples.ndim} axes",
            fix="give the inputs as the model takes them",
        )
    _check(samples, name)
    little = np.ascontiguousarray(samples, dtype=samples.dtype.newbyteorder("<"))
    return proxy_set_bytes(
        name=name,
        version=version,
        labels=labels,
        datatype=datatype,
        shape=samples.shape[1:],
        samples=little.tobytes(),
    )


def _check(samples: NDArray[np.generic], where: str) -> None:
    if samples.dtype.kind == "f" and not np.isfinite(cast("NDArray[np.floating]", samples)).all():
        raise BundleError(
            "samples that are not finite",
            where=where,
            expected="finite numbers",
            got="NaN or infinity",
            fix=_FIX,
        )
