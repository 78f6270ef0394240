"""Bundles: the same bytes each time, read lazily, checked always, and every attack on the archive refused."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core import bundle, ustar
from edgestill.core.bundle import (
    BLOBS,
    MANIFEST,
    Bundle,
    archive_bytes,
    build,
    replace,
    write_archive,
    write_folder,
)
from edgestill.core.digest import Digest
from edgestill.core.errors import (
    BundleAlteredError,
    BundleError,
    BundleTruncatedError,
    EdgestillError,
    PathError,
)
from edgestill.core.manifest import REQUIRED, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable

CONTENT = {name: f"the {name}".encode() for name in REQUIRED} | {"model.onnx": b"\x08\x0a" * 300}


def small() -> tuple[Manifest, bytes]:
    """A small bundle as its manifest and its archive."""
    manifest, blobs = build(name="watch", version="1.0.0", hardware_class="any", blobs=CONTENT)
    return manifest, archive_bytes(manifest, blobs)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A small bundle's archive on disk."""
    path = tmp_path / "watch.esb"
    path.write_bytes(small()[1])
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small bundle as a folder on disk."""
    path = tmp_path / "watch"
    write_folder(path, *build(name="watch", version="1.0.0", hardware_class="any", blobs=CONTENT))
    return path


def members(data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The files of an archive as the standard library sees them."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(entry, (tar.extractfile(entry) or io.BytesIO()).read()) for entry in tar]


def tar_of(files: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A ustar archive of these entries, as the standard library writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for entry, data in files:
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def refused(path: Path, data: bytes) -> EdgestillError:
    """The error that these bytes meet."""
    path.write_bytes(data)
    with pytest.raises(EdgestillError) as caught:
        Bundle.open(path).verify()
    return caught.value


# Both forms


@pytest.mark.parametrize("form", ["archive", "folder"])
def test_every_blob_comes_back(form: str, request: pytest.FixtureRequest) -> None:
    """Archive and folder give the same manifest and the same blobs."""
    bundle = Bundle.open(request.getfixturevalue(form))
    assert bundle.manifest == small()[0]
    assert {name: bundle.read(name) for name in bundle.manifest.blobs} == CONTENT
    bundle.verify()


@pytest.mark.parametrize("form", ["archive", "folder"])
def test_a_blob_that_is_not_named_is_refused(form: str, request: pytest.FixtureRequest) -> None:
    """Only names of the manifest can be read."""
    with pytest.raises(BundleError, match=r"no such blob.*one of.*model\.onnx.*got \.\./watch"):
        Bundle.open(request.getfixturevalue(form)).read("../watch")


def test_opening_reads_no_blob(archive: Path) -> None:
    """A damaged blob is found when it is read, not when the bundle is opened."""
    data = archive.read_bytes()
    archive.write_bytes(data.replace(b"the card.md", b"THE card.md"))
    bundle = Bundle.open(archive)
    assert bundle.read("model.onnx") == CONTENT["model.onnx"]
    with pytest.raises(BundleAlteredError, match=r"card\.md was altered.*fetch or build it again"):
        bundle.read("card.md")


def test_a_missing_file_is_a_path_error(tmp_path: Path) -> None:
    """Nothing at the path is told as such, with the path."""
    with pytest.raises(
        PathError, match=r"cannot read a bundle; at .*nobody\.esb; expected .*; got No such file"
    ):
        Bundle.open(tmp_path / "nobody.esb")


@pytest.mark.parametrize("form", ["archive", "folder"])
def test_a_file_that_vanishes_after_opening_is_a_path_error(
    form: str, request: pytest.FixtureRequest
) -> None:
    """A blob whose file is gone by the time it is read is told as such."""
    path: Path = request.getfixturevalue(form)
    bundle = Bundle.open(path)
    path.rename(path.with_name("gone"))
    with pytest.raises(PathError, match=r"cannot read card\.md"):
        bundle.read("card.md")


# Building


def test_building_twice_gives_the_same_bytes() -> None:
    """The archive depends on nothing but the content, not even on the order it was given in."""
    manifest, blobs = build(
        name="watch", version="1.0.0", hardware_class="any", blobs=dict(reversed(CONTENT.items()))
    )
    assert archive_bytes(manifest, blobs) == small()[1]


def test_the_archive_is_the_one_written_down() -> None:
    """The bytes of one small archive never change: other readers and patches depend on them."""
    assert Digest.of(small()[1]).hex == "b64289ce5596cd6dc74eeba342e65122159ecb65ee8690239500302594e20578"


def test_the_archive_is_an_ordinary_tar() -> None:
    """Any tar reader sees the manifest first and then each blob under its digest."""
    manifest, data = small()
    seen = members(data)
    assert [entry.name for entry, _ in seen] == [
        MANIFEST,
        *(f"{BLOBS}/{ref.digest.hex}" for ref in manifest.blobs.values()),
    ]
    assert seen[0][1] == manifest.to_bytes()
    assert all(Digest.of(blob).hex == entry.name.removeprefix("blobs/") for entry, blob in seen[1:])


def test_two_names_for_the_same_bytes_are_stored_once(tmp_path: Path) -> None:
    """A blob that two names share is in the archive once and reads under both."""
    shared = CONTENT | {"train.onnx": CONTENT["model.onnx"]}
    manifest, blobs = build(name="watch", version="1.0.0", hardware_class="any", blobs=shared)
    path = tmp_path / "watch.esb"
    write_archive(path, manifest, blobs)
    assert len(members(path.read_bytes())) == 1 + len(CONTENT)
    assert Bundle.open(path).read("train.onnx") == Bundle.open(path).read("model.onnx")


@given(
    st.dictionaries(st.sampled_from(REQUIRED), st.binary(max_size=1600), min_size=len(REQUIRED)),
    st.dictionaries(st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True), st.binary(max_size=600), max_size=3),
    st.dictionaries(st.from_regex(r"x-[a-z]{1,9}", fullmatch=True), st.integers(), max_size=2),
)
def test_any_content_survives_both_forms(
    tmp_path_factory: pytest.TempPathFactory,
    required: dict[str, bytes],
    others: dict[str, bytes],
    unknown: dict[str, int],
) -> None:
    """Whatever is built reads back, blobs and unknown fields, from archive and folder."""
    content = others | required
    manifest, blobs = build(
        name="m", version="0.0.1", hardware_class="any", blobs=content, unknown=dict(unknown)
    )
    base = tmp_path_factory.mktemp("any")
    write_archive(base / "m.esb", manifest, blobs)
    write_folder(base / "m", manifest, blobs)
    for path in (base / "m.esb", base / "m"):
        bundle = Bundle.open(path)
        assert {name: bundle.read(name) for name in bundle.manifest.blobs} == content
        assert bundle.manifest.unknown == unknown


def test_what_the_format_does_not_allow_is_not_built() -> None:
    """Building checks what reading checks."""
    with pytest.raises(BundleError, match=r"bundle\.json: version"):
        build(name="watch", version="one", hardware_class="any", blobs=CONTENT)
    with pytest.raises(BundleError, match="a blob is missing"):
        build(name="watch", version="1.0.0", hardware_class="any", blobs={"model.onnx": b""})


# Attacks on the archive


def test_attack_truncation_at_every_byte_is_refused(archive: Path) -> None:
    """However many bytes are missing at the end, the archive is refused as ending too early."""
    with archive.open("r+b") as file:
        for length in reversed(range(len(small()[1]))):
            file.truncate(length)
            with pytest.raises(BundleTruncatedError, match="too early"):
                Bundle.open(archive).verify()


def test_attack_an_altered_byte_at_every_position_is_refused(archive: Path) -> None:
    """Any changed byte is refused; within the manifest it may instead name another bundle, which trust refuses."""
    manifest, good = small()
    manifest_bytes = range(ustar.BLOCK, ustar.BLOCK + len(manifest.to_bytes()))
    with archive.open("r+b", buffering=0) as file:
        for position, byte in enumerate(good):
            os.pwrite(file.fileno(), bytes([byte ^ (1 + position % 255)]), position)
            try:
                bundle = Bundle.open(archive)
                bundle.verify()
            except (BundleError, BundleAlteredError, BundleTruncatedError):
                pass
            else:
                assert position in manifest_bytes, position
                assert bundle.manifest.digest != manifest.digest
            os.pwrite(file.fileno(), bytes([byte]), position)
    Bundle.open(archive).verify()


@pytest.mark.parametrize(
    "junk",
    [b"", b"\0", b"x", b"hello, I am a file", bytes(512), bytes(10_240), b"PK\3\4" * 400, b"\x1f\x8b" * 999],
)
def test_attack_files_of_another_kind_are_refused(archive: Path, junk: bytes) -> None:
    """Text, zeros, zip and gzip are no bundles, and nothing at all ends too early."""
    error = refused(archive, junk)
    assert error.code == ("bundle-truncated" if junk == b"" else "bundle-invalid")


LINKS = [
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    tarfile.GNUTYPE_SPARSE,
]


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("position", [0, 1, -1])
def test_attack_a_member_of_another_kind_is_refused(archive: Path, kind: bytes, position: int) -> None:
    """A link, folder, pipe, device or sparse file in the place of any member is refused."""
    files = members(small()[1])
    files[position][0].type = kind
    files[position][0].linkname = "/etc/passwd"
    assert refused(archive, tar_of(files)).code in {"bundle-invalid", "bundle-truncated"}


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/cron.d/x",
        "/etc/passwd",
        "blobs/../x",
        "blobs/",
        "./bundle.json",
        "bundle.json\n",
        "Bundle.json",
    ],
)
@pytest.mark.parametrize("position", [0, 1, -1])
def test_attack_a_member_of_another_name_is_refused(archive: Path, name: str, position: int) -> None:
    """Absolute paths, parent folders and any other name than the expected one are refused."""
    files = members(small()[1])
    files[position][0].name = name
    assert refused(archive, tar_of(files)).code == "bundle-invalid"


REARRANGED: list[Callable[[list[tuple[tarfile.TarInfo, bytes]]], list[tuple[tarfile.TarInfo, bytes]]]] = [
    lambda files: [*files, files[-1]],
    lambda files: [files[0], *files],
    lambda files: [files[0], files[1], *files[1:]],
    lambda files: [*files[1:], files[0]],
    lambda files: [files[0], *reversed(files[1:])],
    lambda files: [files[0], *files[2:]],
    lambda files: [*files, (tarfile.TarInfo("setup.py"), b"")],
    lambda files: [(tarfile.TarInfo("README"), b""), *files],
]


@pytest.mark.parametrize("rearrange", REARRANGED)
def test_attack_repeated_missing_foreign_or_reordered_members_are_refused(
    archive: Path,
    rearrange: Callable[[list[tuple[tarfile.TarInfo, bytes]]], list[tuple[tarfile.TarInfo, bytes]]],
) -> None:
    """Only the manifest followed by each blob once, in order, is a bundle."""
    error = refused(archive, tar_of(rearrange(members(small()[1]))))
    assert error.code in {"bundle-invalid", "bundle-truncated"}


def test_attack_a_second_archive_behind_the_first_is_refused(archive: Path) -> None:
    """Bytes after the end, whatever they are, are refused."""
    data = small()[1]
    for tail in (b"\0", bytes(10_240), data):
        error = refused(archive, data + tail)
        assert "bytes after the archive's end" in str(error)


@pytest.mark.parametrize(
    "size",
    [
        b"77777777777\0",
        b"00000200001\0",
        b"-0000000001\0",
        b"\x80" + b"\xff" * 11,
        b"0000000 010\0",
        b"9" * 12,
    ],
)
def test_attack_an_odd_size_of_the_manifest_is_refused_before_anything_is_read(
    archive: Path, size: bytes
) -> None:
    """A huge, negative, base-256 or malformed size in the first header is refused, with no memory taken for it."""
    data = bytearray(small()[1])
    data[ustar.SIZE_FIELD] = size
    assert "the manifest is too long" in str(refused(archive, bytes(data)))


def test_attack_an_odd_size_of_a_blob_is_refused(archive: Path) -> None:
    """A blob's header must give exactly the size that the manifest gives."""
    manifest, data = small()
    second = ustar.BLOCK + len(manifest.to_bytes()) + len(ustar.padding(len(manifest.to_bytes())))
    for size in (b"77777777777\0", b"\x80" + b"\xff" * 11, b"00000000000\0"):
        forged = bytearray(data)
        forged[second + 124 : second + 136] = size
        error = refused(archive, bytes(forged))
        assert "not the one its manifest describes" in str(error)
        assert f"bytes {second} to {second + 512}" in str(error)


def test_attack_a_manifest_that_promises_gigabytes_is_refused_at_opening(archive: Path) -> None:
    """Sizes the file cannot hold are found by arithmetic, without reading or allocating them."""
    manifest, _ = small()
    huge = manifest.to_bytes().replace(b'"size":600', b'"size":2147483648')
    data = ustar.header(MANIFEST, len(huge)) + huge + ustar.padding(len(huge))
    assert refused(archive, data).code == "bundle-truncated"


def test_attack_a_blob_under_anothers_digest_is_refused(archive: Path) -> None:
    """Swapping the content of two blobs of equal length is found when they are read."""
    data = small()[1]
    assert len(b"the card.md") == 11
    forged = data.replace(b"the card.md", b"evil card!!")
    error = refused(archive, forged)
    assert error.code == "bundle-altered"
    assert str(Digest.of(b"evil card!!")) in str(error)


# Attacks on the folder


def test_attack_an_altered_blob_in_a_folder_is_refused(folder: Path) -> None:
    """A blob's file must have the content its name says."""
    blob = folder / BLOBS / Digest.of(CONTENT["card.md"]).hex
    blob.write_bytes(b"THE card.md")
    with pytest.raises(BundleAlteredError, match=r"card\.md was altered"):
        Bundle.open(folder).verify()


def test_attack_a_blob_with_a_tail_in_a_folder_is_refused(folder: Path) -> None:
    """Bytes after a blob's end are refused when the folder is opened."""
    blob = folder / BLOBS / Digest.of(CONTENT["card.md"]).hex
    blob.write_bytes(CONTENT["card.md"] + b"\0")
    with pytest.raises(BundleAlteredError, match=r"card\.md is too long"):
        Bundle.open(folder)


def test_a_cut_blob_in_a_folder_is_refused(folder: Path) -> None:
    """A blob's file that ends too early is told as such."""
    blob = folder / BLOBS / Digest.of(CONTENT["model.onnx"]).hex
    blob.write_bytes(CONTENT["model.onnx"][:-1])
    with pytest.raises(
        BundleTruncatedError, match=r"model\.onnx ends too early.*expected 600 bytes; got 599"
    ):
        Bundle.open(folder).verify()


def test_a_missing_blob_in_a_folder_is_refused(folder: Path) -> None:
    """A folder without one of its blobs is not complete."""
    (folder / BLOBS / Digest.of(CONTENT["model.onnx"]).hex).unlink()
    with pytest.raises(BundleTruncatedError, match=r"model\.onnx is missing"):
        Bundle.open(folder)


def test_attack_a_pipe_in_the_place_of_a_file_does_not_hang_the_reader(folder: Path) -> None:
    """A named pipe, which would block whoever opens it, is no blob and no manifest."""
    blob = folder / BLOBS / Digest.of(CONTENT["card.md"]).hex
    blob.unlink()
    os.mkfifo(blob)
    with pytest.raises(BundleTruncatedError, match=r"card\.md is missing"):
        Bundle.open(folder)
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.open(folder)


def test_attack_a_huge_manifest_in_a_folder_is_not_read_whole(folder: Path) -> None:
    """At most one byte more than a manifest may have is read of it."""
    with (folder / MANIFEST).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(BundleError, match="too long"):
        Bundle.open(folder)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    """An empty folder is refused as no bundle."""
    with pytest.raises(BundleError, match=r"a folder with bundle\.json"):
        Bundle.open(tmp_path)


# Writing


def test_writing_leaves_nothing_else_behind(tmp_path: Path) -> None:
    """After writing there is the archive and no temporary file."""
    write_archive(tmp_path / "m.esb", *build(name="m", version="1.0.0", hardware_class="any", blobs=CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == ["m.esb"]


class Killed(BaseException):
    """The power failed."""


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_kill_while_replacing_leaves_the_old_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whenever the process dies before the rename, the name still holds what it held."""
    path = tmp_path / "state"
    replace(path, b"old")

    def die(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[call], die)
    with pytest.raises(Killed):
        replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["state"]


def test_a_kill_while_writing_a_folder_leaves_no_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at any file, the folder has no manifest yet; once it has one, it is complete."""
    manifest, blobs = build(name="m", version="1.0.0", hardware_class="any", blobs=CONTENT)
    rename = Path.replace
    for survivors in range(len(CONTENT) + 1):
        done = 0

        def die_later(self: Path, target: Path, *, limit: int = survivors) -> Path:
            nonlocal done
            if done == limit:
                raise Killed
            done += 1
            return rename(self, target)

        path = tmp_path / str(survivors)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", die_later)
            with pytest.raises(Killed):
                write_folder(path, manifest, blobs)
        with pytest.raises(BundleError, match="not a bundle"):
            Bundle.open(path)
        write_folder(path, manifest, blobs)
        Bundle.open(path).verify()


def test_a_folder_that_cannot_be_written_is_a_path_error(tmp_path: Path) -> None:
    """A missing folder, or a file where a folder should be, is told with what to do."""
    manifest, blobs = build(name="m", version="1.0.0", hardware_class="any", blobs=CONTENT)
    with pytest.raises(PathError, match=r"cannot write.*choose another path"):
        write_archive(tmp_path / "nowhere" / "m.esb", manifest, blobs)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PathError, match="cannot write"):
        write_folder(tmp_path / "file", manifest, blobs)


def test_a_bundle_is_for_others_to_read_and_a_secret_is_not(tmp_path: Path) -> None:
    """Modes follow the umask, as of any file a person makes; without being told otherwise, a file is its owner's alone."""
    before = os.umask(0o027)
    try:
        write_archive(
            tmp_path / "m.esb", *build(name="m", version="1.0.0", hardware_class="any", blobs=CONTENT)
        )
        replace(tmp_path / "secret", b"key")
    finally:
        os.umask(before)
    assert (tmp_path / "m.esb").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_what_a_killed_process_left_does_not_stop_the_next(tmp_path: Path) -> None:
    """Even where it had the same number and was at the same file: another name is taken, its file is not touched."""
    first = next(bundle._NUMBERS)
    for ahead in range(1, 4):
        (tmp_path / f".x.{os.getpid()}-{first + ahead}").write_bytes(b"left")
    replace(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert [one.read_bytes() for one in tmp_path.glob(".x.*")] == [b"left"] * 3
