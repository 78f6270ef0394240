"""The archive of a proxy set: deterministic, read without unpacking, and nothing in it is believed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.core import ustar
from edgestill.core.digest import Digest
from edgestill.core.errors import (
    BundleAlteredError,
    BundleError,
    BundleTruncatedError,
    EdgestillError,
    PathError,
    SettingError,
)
from edgestill.core.jsonio import canonical
from edgestill.core.proxyset import (
    HEAD,
    MAX_SAMPLES_BYTES,
    Head,
    ProxySet,
    is_proxy_set,
    proxy_set_bytes,
)
from edgestill.core.release import proxy_name

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.core.jsonio import JsonObject

LABELS = ("walk", "sit", "run")


def packed(samples: bytes = bytes(range(48)), **changes: Any) -> bytes:
    """An archive of so many samples of 2 x 3 numbers of two bytes."""
    given_: dict[str, Any] = {"name": "watch", "version": "1.0.0", "labels": LABELS}
    given_ |= {"datatype": "INT16", "shape": (2, 3), "samples": samples}
    return proxy_set_bytes(**(given_ | changes))


def opened(folder: Path, data: bytes) -> ProxySet:
    """The archive as a file, opened."""
    path = folder / "x.esp"
    path.write_bytes(data)
    return ProxySet.open(path)


@given(
    count=st.integers(1, 30),
    kind=st.sampled_from([("UINT8", 1), ("INT16", 2), ("FP32", 4)]),
    shape=st.lists(st.integers(1, 4), max_size=4),
    seed=st.randoms(use_true_random=False),
)
@settings(max_examples=60)
def test_what_is_packed_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, count: int, kind: tuple[str, int], shape: list[int], seed: Any
) -> None:
    """Whatever a sample is; packing twice gives the same bytes."""
    datatype, width = kind
    size = width
    for one in shape:
        size *= one
    samples = seed.randbytes(count * size)
    data = packed(samples, datatype=datatype, shape=shape)
    assert data == packed(samples, datatype=datatype, shape=shape)
    found = opened(tmp_path_factory.mktemp("proxy"), data)
    assert found.read() == samples
    assert (found.head.count, found.head.shape, found.head.labels) == (count, tuple(shape), LABELS)
    assert found.head.target == proxy_name("watch", "1.0.0")
    assert is_proxy_set(found.path)


@given(at=st.integers(0, 10_239), flip=st.integers(1, 255))
@settings(max_examples=150)
def test_attack_any_byte_that_is_changed_is_found(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int
) -> None:
    """Attack: of head, sizes, padding, samples and the end; but for a letter of its name or of a label, which the list is signed over."""
    data = bytearray(packed())
    at %= len(data)
    data[at] ^= flip
    try:
        found = opened(tmp_path_factory.mktemp("flipped"), bytes(data))
        samples = found.read()
    except EdgestillError:
        return
    head = opened(tmp_path_factory.mktemp("whole"), packed()).head
    told = [(one.name, one.version, one.labels, one.datatype) for one in (head, found.head)]
    assert told[0] != told[1]
    assert (samples, found.head.count, found.head.shape) == (bytes(range(48)), head.count, head.shape)


@given(length=st.integers(0, 10_239))
@settings(max_examples=60)
def test_attack_a_cut_archive_is_refused(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    """Attack: wherever it is cut."""
    with pytest.raises((BundleTruncatedError, BundleError)):
        opened(tmp_path_factory.mktemp("cut"), packed()[:length])


def test_attack_bytes_after_the_end_are_refused(tmp_path: Path) -> None:
    """Attack: an archive that carries more than it says."""
    with pytest.raises(BundleError, match="after the archive's end"):
        opened(tmp_path, packed() + bytes(512))


REF: JsonObject = {"digest": str(Digest.of(b"x")), "size": 48}
GOOD: JsonObject = {
    "schema": 1,
    "kind": "proxy",
    "name": "watch",
    "version": "1.0.0",
    "labels": [*LABELS],
    "datatype": "INT16",
    "shape": [2, 3],
    "count": 4,
    "samples": REF,
}
HEADS: dict[str, dict[str, Any]] = {
    "another kind": {"kind": "timing"},
    "another schema": {"schema": 2},
    "a field more": {"more": 1},
    "a name that leads elsewhere": {"name": "../watch"},
    "a version that is none": {"version": "1"},
    "an unknown datatype": {"datatype": "BYTES"},
    "one label": {"labels": ["walk"]},
    "a label twice": {"labels": ["walk", "walk"]},
    "a label that is no text": {"labels": ["walk", 3]},
    "a label without end": {"labels": ["walk", "x" * 201]},
    "labels without end": {"labels": [str(one) for one in range(4_097)]},
    "no samples": {"count": 0, "samples": {"digest": str(Digest.of(b"")), "size": 0}},
    "samples without end": {"count": 10_001, "shape": [], "samples": REF | {"size": 20_002}},
    "more cells than an outcome holds": {
        "labels": [str(one) for one in range(839)],
        "count": 10_000,
        "shape": [],
        "samples": REF | {"size": 20_000},
    },
    "a size that the shape does not make": {"samples": REF | {"size": 47}},
    "few bytes that claim to be many samples": {"shape": [2**20, 2**20, 2**20]},
    "bytes without end": {"shape": [2**24], "count": 1, "samples": REF | {"size": 2**25}},
    "a shape of nothing": {"shape": [0]},
    "a shape below nothing": {"shape": [-2, -3]},
    "a shape of truths": {"shape": [True, 6]},
    "a shape without end": {"shape": [1] * 8},
}


@pytest.mark.parametrize("attack", HEADS)
def test_attack_a_head_that_is_out_of_bounds_is_refused(attack: str) -> None:
    """Attack: before anything is allocated or looked for; a few bytes cannot claim to become many."""
    assert Head.from_bytes(canonical(GOOD)).to_bytes() == canonical(GOOD)
    with pytest.raises(BundleError):
        Head.from_bytes(canonical(GOOD | HEADS[attack]))


def test_attack_a_head_in_another_spelling_is_refused() -> None:
    """Attack: one set has one digest."""
    with pytest.raises(BundleError, match="another spelling"):
        Head.from_bytes(json.dumps(GOOD).encode())


def test_attack_a_head_without_end_is_not_read(tmp_path: Path) -> None:
    """Attack: its size is bounded before its bytes are asked for."""
    with pytest.raises(BundleError, match="manifest is too long"):
        opened(tmp_path, ustar.header(HEAD, 2**32) + bytes(512))


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    """A file of no proxy set, an archive that is gone, or a folder."""
    with pytest.raises(BundleError, match="not a proxy set"):
        opened(tmp_path, b"PK" * 1000)
    assert not is_proxy_set(tmp_path / "x.esp")
    found = opened(tmp_path, packed())
    found.path.unlink()
    with pytest.raises(PathError):
        found.read()
    for path in (found.path, tmp_path):
        with pytest.raises(PathError):
            ProxySet.open(path)


def test_attack_samples_that_change_after_the_set_was_opened_are_not_read(tmp_path: Path) -> None:
    """Attack: they are checked when they are read."""
    found = opened(tmp_path, packed())
    found.path.write_bytes(packed(bytes(48)))
    with pytest.raises(BundleAlteredError, match=r"samples\.bin was altered"):
        found.read()


def test_what_the_format_does_not_allow_is_not_packed() -> None:
    """A name, a version, too few labels, a rest of a sample, or too many bytes."""
    too_many = bytes(MAX_SAMPLES_BYTES + 6)
    for changes in ({"name": "Watch"}, {"version": "1"}, {"labels": ("walk",)}, {"datatype": "INT7"}):
        with pytest.raises(BundleError):
            packed(**changes)
    for samples in (b"", bytes(13), too_many):
        with pytest.raises(BundleError):
            packed(samples)


def test_a_name_of_the_list_is_of_a_proxy_set() -> None:
    """Or there is none."""
    assert proxy_name("watch", "1.0.0") == "proxy/watch/1.0.0/samples.esp"
    for parts in (("Watch", "1.0.0"), ("watch", "1.0"), ("a/b", "1.0.0")):
        with pytest.raises(SettingError, match="not a name of a proxy set"):
            proxy_name(*parts)
