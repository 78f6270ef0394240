"""The archive of a family of models: deterministic, read without unpacking, and nothing in it is believed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.core import family as families
from edgestill.core.digest import Digest
from edgestill.core.errors import (
    BundleAlteredError,
    BundleError,
    BundleTruncatedError,
    EdgestillError,
    PathError,
    SettingError,
)
from edgestill.core.family import HEAD, INPUTS, MAX_MODELS, SHAPES, Family, Head, family_bytes, is_family
from edgestill.core.jsonio import canonical
from edgestill.core.release import timing_name

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.core.jsonio import JsonObject

CLASS = "x86_64-vnni-onnxruntime"


def packed(*models: bytes, **changes: Any) -> bytes:
    """An archive of these."""
    given_: dict[str, Any] = {"name": "watch", "version": "1.0.0", "hardware_class": CLASS}
    given_ |= {"shapes": b"shapes", "inputs": b"inputs", "models": models or (b"one", b"two")}
    return family_bytes(**(given_ | changes))


def opened(folder: Path, data: bytes) -> Family:
    """The archive as a file, opened."""
    path = folder / "x.est"
    path.write_bytes(data)
    return Family.open(path)


@given(
    shapes=st.binary(max_size=700),
    inputs=st.binary(max_size=700),
    models=st.lists(st.binary(max_size=1500), min_size=1, max_size=6),
)
@settings(max_examples=60)
def test_what_is_packed_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, shapes: bytes, inputs: bytes, models: list[bytes]
) -> None:
    """Whatever the parts are; packing twice gives the same bytes."""
    data = packed(shapes=shapes, inputs=inputs, models=models)
    assert data == packed(shapes=shapes, inputs=inputs, models=models)
    found = opened(tmp_path_factory.mktemp("family"), data)
    found.verify()
    assert found.read(SHAPES) == shapes
    assert found.read(INPUTS) == inputs
    assert [found.read(f"{at}.onnx") for at in range(len(models))] == models
    assert found.head.target == timing_name("watch", "1.0.0", CLASS)
    assert is_family(found.path)


@given(at=st.integers(0, 20_479), flip=st.integers(1, 255))
@settings(max_examples=150)
def test_attack_any_byte_that_is_changed_is_found(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int
) -> None:
    """Attack: of heads, names, sizes, padding, contents and the end: nothing is there that nobody looks at; but for the name, which the list is signed over."""
    data = bytearray(packed())
    at %= len(data)
    data[at] ^= flip
    try:
        found = opened(tmp_path_factory.mktemp("flipped"), bytes(data))
        found.verify()
    except EdgestillError:
        return
    # a letter of its name: then it is another family, of the same parts
    head = opened(tmp_path_factory.mktemp("whole"), packed()).head
    assert found.head.target != head.target
    assert list(found.head.files()) == list(head.files())


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


HEADS: dict[str, dict[str, Any]] = {
    "another kind": {"kind": "bundle"},
    "another schema": {"schema": 2},
    "no models": {"models": []},
    "too many models": {"models": [{"digest": str(Digest.of(b"")), "size": 0}] * (MAX_MODELS + 1)},
    "a field more": {"more": 1},
    "a name that leads elsewhere": {"name": "../watch"},
    "a class that leads elsewhere": {"hardware_class": "../../x"},
    "any class": {"hardware_class": "any"},
    "a size below nothing": {"inputs": {"digest": str(Digest.of(b"")), "size": -1}},
    "inputs without end": {"inputs": {"digest": str(Digest.of(b"")), "size": 2**40}},
    "shapes without end": {"shapes": {"digest": str(Digest.of(b"")), "size": 2**40}},
    "a model without end": {"models": [{"digest": str(Digest.of(b"")), "size": 2**40}]},
}


@pytest.mark.parametrize("attack", HEADS)
def test_attack_a_head_that_is_out_of_bounds_is_refused(attack: str) -> None:
    """Attack: before anything is allocated or looked for."""
    ref: JsonObject = {"digest": str(Digest.of(b"x")), "size": 1}
    good: JsonObject = {
        "schema": 1,
        "kind": "timing",
        "name": "watch",
        "version": "1.0.0",
        "hardware_class": CLASS,
        "shapes": ref,
        "inputs": ref,
        "models": [ref],
    }
    assert Head.from_bytes(canonical(good)).to_bytes() == canonical(good)
    with pytest.raises(BundleError):
        Head.from_bytes(canonical(good | HEADS[attack]))


def test_attack_a_head_in_another_spelling_is_refused() -> None:
    """Attack: one family has one digest."""
    at = packed().index(b"{")
    head = packed()[at : packed().index(b"\0", at)]
    with pytest.raises(BundleError, match="another spelling"):
        Head.from_bytes(json.dumps(json.loads(head)).encode())


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    """A file of no family, a part that there is not, an archive that is gone, or a folder."""
    with pytest.raises(BundleError, match="not a family of models"):
        opened(tmp_path, b"PK" * 1000)
    assert not is_family(tmp_path / "x.est")
    found = opened(tmp_path, packed())
    for name in ("2.onnx", HEAD, "../x"):
        with pytest.raises(BundleError, match="no such file of a family"):
            found.read(name)
    found.path.unlink()
    with pytest.raises(PathError):
        found.read(SHAPES)
    for path in (found.path, tmp_path):
        with pytest.raises(PathError):
            Family.open(path)


def test_attack_a_part_that_changes_after_it_was_opened_is_not_read(tmp_path: Path) -> None:
    """Attack: each part is checked when it is read."""
    found = opened(tmp_path, packed(b"model"))
    found.path.write_bytes(packed(b"mode1"))
    with pytest.raises(BundleAlteredError, match=r"0\.onnx was altered"):
        found.read("0.onnx")


def test_what_the_format_does_not_allow_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name, a version, no models, or too many bytes."""
    for changes in ({"name": "Watch"}, {"version": "1"}, {"hardware_class": "any"}, {"models": ()}):
        with pytest.raises(BundleError):
            packed(**changes)
    monkeypatch.setattr(families, "MAX_ARCHIVE_BYTES", 5_000)
    with pytest.raises(BundleError, match="too long"):
        packed(bytes(4_000))


def test_a_name_of_the_list_is_of_a_family() -> None:
    """Or there is none."""
    assert timing_name("watch", "1.0.0", CLASS) == f"timing/watch/1.0.0/{CLASS}.est"
    for parts in (("Watch", "1.0.0", CLASS), ("watch", "1.0", CLASS), ("watch", "1.0.0", "a/b")):
        with pytest.raises(SettingError, match="not a name of a timing job"):
            timing_name(*parts)
