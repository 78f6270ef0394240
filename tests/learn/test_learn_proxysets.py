"""Samples of a proxy set as arrays, and the outcome of a round as a file: what goes in comes out, and nothing is believed."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import BundleError, EvidenceError
from edgestill.core.proxyset import ProxySet, proxy_set_bytes
from edgestill.learn.outcomes import NAMES, outcome_file, outcome_of
from edgestill.learn.proxysets import check_proxy_set, pack, question_of, samples_of
from edgestill.learn.votes import ABSTAIN, Ballot, Cast, Outcome, Question, tally

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ("walk", "sit", "run")


def opened(folder: Path, data: bytes) -> ProxySet:
    """An archive as a file, opened."""
    (folder / "x.esp").write_bytes(data)
    return ProxySet.open(folder / "x.esp")


@given(
    kind=st.sampled_from(["uint8", ">i2", "<i4", "float16", ">f4", "float64", "bool"]),
    shape=st.lists(st.integers(1, 5), max_size=3),
    count=st.integers(1, 9),
)
def test_samples_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, kind: str, shape: list[int], count: int
) -> None:
    """Of every kind and byte order, in this machine's."""
    samples = np.arange(count * int(np.prod(shape)), dtype=np.int64).reshape(count, *shape).astype(kind)
    found = samples_of(
        opened(tmp_path_factory.mktemp("set"), pack(samples, name="x", version="1.0.0", labels=LABELS))
    )
    assert found.dtype == np.dtype(kind).newbyteorder("=")
    assert found.dtype.isnative
    assert found.shape == samples.shape
    assert (found == samples).all()


def test_the_question_is_about_the_file(tmp_path: Path) -> None:
    """Two sets that differ in a label, or in a byte, are two questions."""
    samples = np.zeros((4, 2), np.uint8)
    data = [
        pack(samples, name="x", version="1.0.0", labels=LABELS),
        pack(samples, name="x", version="1.0.0", labels=("walk", "run", "sit")),
        pack(samples + 1, name="x", version="1.0.0", labels=LABELS),
    ]
    asked = [question_of(Digest.of(one), opened(tmp_path, one).head) for one in data]
    assert len({one.name for one in asked}) == 3
    assert (asked[0].samples, asked[0].classes) == (4, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_attack_numbers_that_are_none_are_found(tmp_path: Path, bad: float) -> None:
    """Attack: where a set is made, and where one that somebody else made is looked at."""
    samples = np.zeros((4, 2), np.float32)
    samples[2, 1] = bad
    with pytest.raises(BundleError, match="not finite"):
        pack(samples, name="x", version="1.0.0", labels=LABELS)
    raw = samples.astype("<f4").tobytes()
    given_: dict[str, Any] = {"name": "x", "version": "1.0.0", "labels": LABELS, "shape": (2,)}
    (tmp_path / "x.esp").write_bytes(proxy_set_bytes(datatype="FP32", samples=raw, **given_))
    with pytest.raises(BundleError, match="not finite"):
        check_proxy_set(tmp_path / "x.esp")


@pytest.mark.parametrize("samples", [np.array("text"), np.array(3.0), np.array(["a", "b"])])
def test_what_no_sensor_gives_is_not_packed(samples: Any) -> None:
    """Texts, or a single number."""
    with pytest.raises(BundleError, match="of a kind that no sensor gives"):
        pack(samples, name="x", version="1.0.0", labels=LABELS)


# The outcome


def found() -> Outcome:
    """The outcome of two voters."""
    asked = Question(proxy=Digest.of(b"set"), samples=4, classes=3)
    cases = {"d0": [0, 1, ABSTAIN, 2], "d1": [0, 2, ABSTAIN, 2]}
    return tally(
        asked,
        [
            Cast(
                voter=name,
                sequence=1,
                ballot=Ballot.of(asked, student=Digest.of(name.encode()), labels=np.array(labels)),
            )
            for name, labels in cases.items()
        ],
    )


def arrays() -> dict[str, Any]:
    """The arrays of its file."""
    with np.load(io.BytesIO(outcome_file(found())), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def test_an_outcome_comes_back_as_it_was() -> None:
    """But for what float32 rounds."""
    one, read = found(), outcome_of(arrays())
    assert np.allclose(read.soft, one.soft, atol=1e-6)
    assert (read.voted.tolist(), read.weight.tolist()) == (one.voted.tolist(), one.weight.tolist())
    assert (read.question, read.voters, read.students) == (one.question, 2, 2)


BROKEN: dict[str, dict[str, Any]] = {
    "infinitely many voters": {"voters": np.array(np.inf)},
    "fewer than no students": {"students": np.array(-1)},
    "voters one by one": {"voters": np.array([1, 2])},
    "rows that are no distributions": {"soft": np.ones((4, 3), np.float32)},
    "rows below nothing": {"soft": np.array([[2, -1, 0]] * 4, np.float32)},
    "rows that are no numbers": {"soft": np.full((4, 3), np.nan, np.float32)},
    "another number of rows": {"voted": np.zeros(3, np.int64)},
    "voters below nothing": {"voted": np.full(4, -1)},
    "weights that are none": {"weight": np.full(4, np.inf)},
    "weights below nothing": {"weight": np.full(4, -1.0)},
    "whole numbers for shares": {"soft": np.ones((4, 3), np.int64)},
    "a digest that is none": {"proxy": np.array("sha256:0")},
    "several voters": {"voters": np.zeros(2)},
    "one class": {"soft": np.ones((4, 1), np.float32)},
}


@pytest.mark.parametrize("attack", [*BROKEN, *NAMES])
def test_attack_a_file_that_is_no_outcome_is_refused(attack: str) -> None:
    """Attack: an array that is another, or is missing."""
    given_ = arrays()
    if attack in BROKEN:
        given_ |= BROKEN[attack]
    else:
        del given_[attack]
    with pytest.raises(EvidenceError):
        outcome_of(given_)
