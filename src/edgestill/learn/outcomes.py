"""What a voting round came to, as a file: `soft`, `voted`, `weight`, and what was asked.

An `.npz` of plain arrays, nothing in it pickled: `soft` float32 `[N, C]`, `voted` int64 `[N]`, `weight` float64 `[N]`, `proxy` (the text form of
the digest of the proxy set's archive), `voters` and `students` (int64). Whoever reads it believes none of it before it was checked.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError, MessageError
from edgestill.learn.votes import Outcome, Question

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

NAMES: Final = ("soft", "voted", "weight", "proxy", "voters", "students")
_WHERE: Final = "outcome"
_FIX: Final = "fetch it again: edgestill learn vote outcome ROUND"


def outcome_file(outcome: Outcome) -> bytes:
    """The file."""
    buffer = BytesIO()
    np.savez(
        buffer,
        soft=outcome.soft.astype(np.float32),
        voted=outcome.voted,
        weight=outcome.weight,
        proxy=np.array(str(outcome.question.proxy)),
        voters=np.array(outcome.voters, np.int64),
        students=np.array(outcome.students, np.int64),
    )
    return buffer.getvalue()


def outcome_of(arrays: Mapping[str, NDArray[np.generic]]) -> Outcome:
    """The outcome of a file's arrays, or of a hub's answer of the same names.

    Raises:
        EvidenceError: an array is missing, of another kind or shape, or no distribution.
    """
    if missing := [name for name in NAMES if name not in arrays]:
        raise _wrong(f"the arrays {', '.join(NAMES)}", f"none of the name {missing[0]}")
    soft, voted, weight = (arrays[name] for name in ("soft", "voted", "weight"))
    if soft.ndim != 2 or soft.dtype.kind != "f" or voted.dtype.kind not in "iu" or weight.dtype.kind != "f":
        raise _wrong("soft [N, C] and weight of floats, voted of whole numbers", _kinds(soft, voted, weight))
    if voted.shape != soft.shape[:1] or weight.shape != soft.shape[:1]:
        raise _wrong("one row of each for each sample", _kinds(soft, voted, weight))
    try:
        proxy = Digest.parse(str(arrays["proxy"]))
        voters, students = (_count(arrays[name]) for name in ("voters", "students"))
    except MessageError as error:
        raise _wrong("a digest, and two numbers", str(error)[:200]) from error
    found = Outcome(
        question=Question(proxy=proxy, samples=len(soft), classes=soft.shape[1]),
        soft=_rows(soft),
        voted=voted.astype(np.int64),
        weight=weight.astype(np.float64),
        voters=voters,
        students=students,
    )
    if (found.voted < 0).any() or not (found.weight >= 0).all() or not np.isfinite(found.weight).all():
        raise _wrong("voters and weights that are not negative", "others")
    return found


def _count(array: NDArray[np.generic]) -> int:
    if array.shape != () or array.dtype.kind not in "iu" or int(array) < 0:
        raise _wrong("numbers of voters and students", _kinds(array))
    return int(array)


def _rows(soft: NDArray[np.generic]) -> NDArray[np.float64]:
    rows: NDArray[np.float64] = soft.astype(np.float64)
    sums = rows.sum(axis=1, keepdims=True)
    if not (rows >= 0).all() or not np.allclose(sums, 1, atol=1e-3):
        raise _wrong("rows that are not negative, with the sum 1", "others")
    found: NDArray[np.float64] = rows / sums
    return found


def _kinds(*arrays: NDArray[np.generic]) -> str:
    return ", ".join(f"{one.dtype} {list(one.shape)}" for one in arrays)


def _wrong(expected: str, got: str) -> EvidenceError:
    return EvidenceError(
        "not the outcome of a voting round", where=_WHERE, expected=expected, got=got, fix=_FIX
    )
