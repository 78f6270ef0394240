"""`bundle.json`: canonical, bounded, and kind to newer writers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import BundleError
from edgestill.core.jsonio import canonical
from edgestill.core.manifest import MAX_BLOB_BYTES, MAX_BLOBS, REQUIRED, TRAIN, BlobRef, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.core.jsonio import Json

REFS = st.builds(BlobRef, st.binary().map(Digest.of), st.integers(min_value=0, max_value=MAX_BLOB_BYTES))
BLOB_NAMES = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,63}", fullmatch=True)
WHOLE_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
UNKNOWN = st.dictionaries(
    WHOLE_TEXT.map("x-{}".format),
    st.integers() | WHOLE_TEXT | st.lists(st.booleans(), max_size=3),
    max_size=3,
)
MANIFESTS = st.builds(
    lambda required, others, **rest: Manifest(blobs=dict(sorted((others | required).items())), **rest),
    st.fixed_dictionaries(dict.fromkeys(REQUIRED, REFS)),
    st.dictionaries(BLOB_NAMES, REFS, max_size=4),
    name=st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True),
    version=st.from_regex(r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}", fullmatch=True),
    hardware_class=st.from_regex(r"[a-z0-9_-]{1,60}", fullmatch=True),
    unknown=UNKNOWN,
)


def document() -> dict[str, Any]:
    """A valid manifest as plain JSON."""
    blob = {"digest": str(Digest.of(b"x")), "size": 1}
    return {
        "schema": 1,
        "name": "watch",
        "version": "1.0.0",
        "hardware_class": "any",
        "blobs": {name: dict(blob) for name in REQUIRED},
    }


def read(value: Json) -> Manifest:
    """Reads a document in its canonical spelling."""
    return Manifest.from_bytes(canonical(value))


@given(MANIFESTS)
def test_writing_and_reading_give_the_same_manifest(manifest: Manifest) -> None:
    """Every manifest survives its bytes, unknown fields included."""
    again = Manifest.from_bytes(manifest.to_bytes())
    assert again == manifest
    assert again.unknown == manifest.unknown
    assert again.to_bytes() == manifest.to_bytes()


@given(MANIFESTS)
def test_the_digest_of_a_bundle_is_that_of_its_manifests_bytes(manifest: Manifest) -> None:
    """Anybody with SHA-256 can name a bundle."""
    assert manifest.digest == Digest.of(manifest.to_bytes())


def test_unknown_fields_of_the_manifest_and_of_its_blobs_are_kept() -> None:
    """What a newer writer added comes out again, and the bundle keeps its digest."""
    value = document() | {"licence": "Apache-2.0", "notes": [1, {"deep": None}]}
    value["blobs"]["model.onnx"]["media_type"] = "application/onnx"
    manifest = read(value)
    assert manifest.unknown == {"licence": "Apache-2.0", "notes": [1, {"deep": None}]}
    assert manifest.blobs["model.onnx"].unknown == {"media_type": "application/onnx"}
    assert manifest.to_bytes() == canonical(value)
    assert manifest.digest == Digest.of(canonical(value))


def test_an_unknown_field_cannot_take_the_place_of_a_known_one() -> None:
    """Known fields win over whatever stands among the unknown ones."""
    manifest = read(document())
    forged = Manifest(
        name=manifest.name,
        version=manifest.version,
        hardware_class=manifest.hardware_class,
        blobs=manifest.blobs,
        unknown={"name": "other", "schema": 9},
    )
    assert Manifest.from_bytes(forged.to_bytes()).name == "watch"


@pytest.mark.parametrize(
    "spell",
    [
        lambda value: json.dumps(value).encode(),
        lambda value: json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n",
        lambda value: b" " + canonical(value),
        lambda value: canonical(value).replace(b'"watch"', b'"w\\u0061tch"'),
    ],
)
def test_attack_another_spelling_of_the_same_facts_is_refused(spell: Callable[[Json], bytes]) -> None:
    """A bundle cannot be given a second digest by spaces, escapes or another order."""
    with pytest.raises(BundleError, match="a manifest in another spelling"):
        Manifest.from_bytes(spell(document()))


def test_blobs_stand_in_the_order_of_their_names() -> None:
    """The order of blobs, and with it the archive's, comes from their names."""
    assert list(read(document()).blobs) == sorted(REQUIRED)


def test_the_size_leaves_out_the_training_graph() -> None:
    """`size` is what answering needs: all blobs but `train.onnx`."""
    value = document()
    value["blobs"][TRAIN] = {"digest": str(Digest.of(b"t")), "size": 1_000_000}
    assert read(value).size == len(REQUIRED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "a bundle of another schema; at bundle.json; expected schema 1; got 2"),
        ({"schema": None}, "a field is missing; at bundle.json: schema"),
        ({"schema": True}, "at bundle.json: schema"),
        ({"name": "Watch"}, "at bundle.json: name"),
        ({"name": "../watch"}, "at bundle.json: name"),
        ({"name": "a" * 65}, "at bundle.json: name"),
        ({"version": "1.0"}, "at bundle.json: version"),
        ({"version": "1.0.0-rc1"}, "at bundle.json: version"),
        ({"version": "1.0.0\n"}, "at bundle.json: version"),
        ({"hardware_class": "../../etc"}, "at bundle.json: hardware_class"),
        ({"hardware_class": ""}, "at bundle.json: hardware_class"),
        ({"blobs": []}, "not a JSON object; at bundle.json: blobs"),
        ({"blobs": {}}, r"a blob is missing; .* got no \['model.onnx', 'policy.json'"),
    ],
)
def test_a_wrong_field_is_refused_by_name(change: dict[str, Json], message: str) -> None:
    """Each field has its pattern; the refusal names the field and says what to do."""
    with pytest.raises(BundleError, match=message) as caught:
        read(document() | change)
    assert caught.value.fix is not None


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", ".hidden", "A", "a b", "a/b", "", "a" * 65, "é"])
def test_attack_a_blob_name_cannot_be_a_path(name: str) -> None:
    """Blob names are plain lower-case file names."""
    value = document()
    value["blobs"][name] = {"digest": str(Digest.of(b"x")), "size": 1}
    with pytest.raises(BundleError, match="a blob name"):
        read(value)


@pytest.mark.parametrize("required", REQUIRED)
def test_each_required_blob_is_required(required: str) -> None:
    """A manifest without one of the required blobs is refused and names it."""
    value = document()
    del value["blobs"][required]
    with pytest.raises(BundleError, match=f"a blob is missing.*got no .*{required}"):
        read(value)


@pytest.mark.parametrize(
    "blob",
    [
        {"digest": "sha256:00", "size": 1},
        {"digest": "md5:" + "0" * 64, "size": 1},
        {"digest": str(Digest.of(b"x")), "size": -1},
        {"digest": str(Digest.of(b"x")), "size": MAX_BLOB_BYTES + 1},
        {"digest": str(Digest.of(b"x")), "size": 1.5},
        {"digest": str(Digest.of(b"x"))},
        {"size": 1},
        "sha256:" + "0" * 64,
    ],
)
def test_a_wrong_blob_reference_is_refused(blob: Json) -> None:
    """A blob needs a SHA-256 digest and a size from 0 to 2 GiB."""
    value = document()
    value["blobs"]["model.onnx"] = blob
    with pytest.raises(BundleError, match=r"at bundle.json: blobs: model.onnx"):
        read(value)


def test_attack_too_many_blobs_are_refused() -> None:
    """A manifest names at most 32 blobs."""
    value = document()
    blob = {"digest": str(Digest.of(b"x")), "size": 1}
    value["blobs"] |= {f"extra-{index}": blob for index in range(MAX_BLOBS - len(REQUIRED))}
    assert len(read(value).blobs) == MAX_BLOBS
    value["blobs"]["one-more"] = blob
    with pytest.raises(BundleError, match=r"too many blobs; at bundle\.json; expected at most 32"):
        read(value)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"\xff", b"{" * 100, b'{"schema":1,"schema":1}', b" " * 70_000, b'{"schema":NaN}'],
)
def test_bytes_that_are_no_manifest_are_refused_as_a_bundle_error(data: bytes) -> None:
    """Damaged JSON is a damaged bundle, and the reader says to fetch it again."""
    with pytest.raises(BundleError, match="fetch or build it again"):
        Manifest.from_bytes(data)


def test_references_are_equal_by_what_they_refer_to() -> None:
    """Two references with the same digest and size are one, whatever else a writer noted."""
    digest = Digest.of(b"x")
    assert BlobRef(digest, 1) == BlobRef(digest, 1, {"note": "y"})
    assert len({BlobRef(digest, 1), BlobRef(digest, 1, {"note": "y"})}) == 1
