"""Images for SWUpdate: written once and for ever the same, read with every byte compared."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core import cpio, swu
from edgestill.core.bundle import archive_bytes, build
from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError, MessageError, PathError, SettingError
from edgestill.core.manifest import REQUIRED
from edgestill.core.swu import Description, Image, image_bytes

if TYPE_CHECKING:
    from pathlib import Path

CLASS = "x86_64-vnni-onnxruntime"
ARCHIVE = b"an archive" * 1000 + b"!"
SIGNATURE = b"signature" * 30

REVISIONS = st.from_regex(r"[A-Za-z0-9#:.*+_-]{1,60}", fullmatch=True)
FOLDERS = st.lists(
    st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}", fullmatch=True), min_size=1, max_size=8
).map(lambda parts: "/" + "/".join(parts))
DESCRIPTIONS = st.builds(
    Description,
    name=st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True),
    version=st.tuples(*[st.integers(0, 999_999_999)] * 3).map(lambda parts: ".".join(map(str, parts))),
    hardware=st.lists(REVISIONS, min_size=1, max_size=5).map(tuple),
    inbox=FOLDERS,
    digest=st.binary(max_size=8).map(Digest.of),
)


def description(archive: bytes = ARCHIVE, **changes: object) -> Description:
    """Of this archive."""
    given_ = {"name": "watch", "version": "1.2.3", "hardware": (CLASS,), "inbox": swu.INBOX}
    return Description(**(given_ | {"digest": Digest.of(archive)} | changes))  # type: ignore[arg-type]  # tests change one of them


def written(folder: Path, data: bytes) -> Path:
    """A file of these bytes."""
    path = folder / "image.swu"
    path.write_bytes(data)
    return path


def image(archive: bytes = ARCHIVE) -> bytes:
    """A sound image."""
    return image_bytes(description(archive), SIGNATURE, archive)


@given(DESCRIPTIONS)
def test_a_description_is_read_as_it_was_written(one: Description) -> None:
    """Whatever may be said in one comes back."""
    assert Description.from_bytes(one.to_bytes()) == one


@given(DESCRIPTIONS, st.binary(max_size=300), st.binary(max_size=300))
def test_an_image_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, one: Description, signature: bytes, archive: bytes
) -> None:
    """Description, signature and size come back, and writing it again gives the same bytes."""
    said = replace(one, digest=Digest.of(archive))
    data = image_bytes(said, signature, archive)
    assert image_bytes(said, signature, archive) == data
    assert len(data) % 512 == 0
    assert Image.read(written(tmp_path_factory.mktemp("swu"), data)) == Image(said, signature, len(archive))


def test_the_bytes_of_an_image_do_not_change() -> None:
    """A publisher who makes it anew makes the same: this digest changes only with the format."""
    assert Digest.of(image()).hex[:16] == "a2d9c7c2b8856f50"


def test_cpio_itself_reads_an_image(tmp_path: Path) -> None:
    """The archive is what others take for one, with its checksums."""
    try:
        listed = subprocess.run(
            ["cpio", "-t", "--only-verify-crc"], input=image(), capture_output=True, check=True
        )  # whichever is installed
    except FileNotFoundError:
        pytest.skip("needs cpio: apt-get install cpio")
    assert listed.stdout.decode().split() == ["sw-description", "sw-description.sig", "watch.esb"]


def test_the_description_names_the_class_of_the_bundle() -> None:
    """Where nothing else is said, devices of that class may install it; class `any` stands for all."""
    blobs = dict.fromkeys(REQUIRED, b"x")
    for hardware_class, expected in ((CLASS, CLASS), ("any", swu.ANY_HARDWARE)):
        manifest, ordered = build(name="watch", version="1.0.0", hardware_class=hardware_class, blobs=blobs)
        archive = archive_bytes(manifest, ordered)
        said = Description.of(manifest, Digest.of(archive))
        assert said.hardware == (expected,)
        assert f'hardware-compatibility: [ "{expected}" ];' in said.to_bytes().decode()
    assert Description.of(manifest, Digest.of(b""), hardware=("1.0", "#RE:2.*")).hardware == (
        "1.0",
        "#RE:2.*",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"inbox": "relative"},
        {"inbox": "/a/../b"},
        {"inbox": '/a"; path = "/etc/passwd'},
        {"inbox": "/"},
        {"inbox": "/a/.hidden"},
        {"inbox": "/" + "a" * 62},
        {"hardware": ()},
        {"hardware": ("1.0",) * 33},
        {"hardware": ('"',)},
        {"hardware": ("",)},
        {"hardware": ("a b",)},
    ],
)
def test_attack_a_folder_or_a_revision_that_would_say_more(changes: dict[str, Any]) -> None:
    """Nothing can be put into a description that its reader would take for another line."""
    with pytest.raises(SettingError):
        description(**changes)


@pytest.mark.parametrize(
    ("what", "by"),
    [
        (b"files: (", b"scripts: ("),
        (b'"true";\n\t\t\t};', b'"true";\n\t\t\t}; type = "shellscript";'),
        (b"/watch.esb", b"/../watch.esb"),
        (b'path = "/var/lib', b'path = "/etc/../var'),
        (b'filename = "watch.esb"', b'filename = "other.esb"'),
        (b'version = "1.2.3"', b'version = "1.2"'),
        (b"software =", b"Software ="),
        (b"}\n", b"}\n "),
        (b"watch", b"w\xe4tch"),
        (b"sha256", b"sha512"),
    ],
)
def test_attack_a_description_that_says_more(tmp_path: Path, what: bytes, by: bytes) -> None:
    """Scripts, other handlers, other places: only the one form is taken."""
    said = description().to_bytes()
    assert what in said
    altered = said.replace(what, by, 1)
    with pytest.raises(MessageError):
        Description.from_bytes(altered)
    with pytest.raises(MessageError):
        Image.read(
            written(
                tmp_path, laid_out((swu.DESCRIPTION, altered), (swu.SIGNATURE, b""), ("watch.esb", ARCHIVE))
            )
        )


def laid_out(*files: tuple[str, bytes]) -> bytes:
    """An archive of these files, each as ours writes it."""
    made = b""
    for number, (name, data) in enumerate(files, start=1):
        made += (
            cpio.header(name, len(data), check=cpio.checksum(data), number=number)
            + data
            + cpio.padding(len(data))
        )
    return made + cpio.end(len(made))


FILES = (
    (swu.DESCRIPTION, description().to_bytes()),
    (swu.SIGNATURE, SIGNATURE),
    ("watch.esb", ARCHIVE),
)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (FILES[:2], "another header"),
        (FILES[::-1], "is too long"),
        ((FILES[0], FILES[2], FILES[1]), "another header"),
        ((*FILES, ("more", b"")), "as it would have been written"),
        ((FILES[0], FILES[1], ("watch.esb", ARCHIVE[:-1] + b"?")), "not the one that is described"),
        ((FILES[0], FILES[1], ("other.esb", ARCHIVE)), "as it would have been written"),
        ((FILES[0], (swu.SIGNATURE, bytes(swu.MAX_SIGNATURE_BYTES + 1)), FILES[2]), "is too long"),
        (((swu.DESCRIPTION, bytes(swu.MAX_DESCRIPTION_BYTES + 1)), *FILES[1:]), "is too long"),
    ],
)
def test_attack_other_files_in_an_image(
    tmp_path: Path, files: tuple[tuple[str, bytes], ...], why: str
) -> None:
    """Missing, further, other and longer files, in another order or with other bytes."""
    with pytest.raises(MessageError, match=why):
        Image.read(written(tmp_path, laid_out(*files)))


@given(st.data())
def test_attack_any_byte_of_an_image_that_is_another(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Outside the signature every single byte is compared; within it the archive's checksum is."""
    sound = image(b"x" * 200)
    place = data.draw(st.integers(0, len(sound) - 1))
    altered = bytearray(sound)
    altered[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(EdgestillError):
        Image.read(written(tmp_path_factory.mktemp("swu"), bytes(altered)))


@given(st.integers(0, len(image(b"x" * 200)) - 1))
def test_an_image_that_ends_too_early(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    """Wherever it was cut off."""
    with pytest.raises(MessageError):
        Image.read(written(tmp_path_factory.mktemp("swu"), image(b"x" * 200)[:length]))


@given(st.binary(max_size=400))
def test_attack_bytes_that_are_no_image(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    """Any bytes, and any bytes after a sound beginning."""
    for data in (junk, cpio.MAGIC + junk, image()[:400] + junk):
        with pytest.raises(MessageError):
            Image.read(written(tmp_path_factory.mktemp("swu"), data))


def test_attack_bytes_after_the_end(tmp_path: Path) -> None:
    """Nothing hides behind an image."""
    with pytest.raises(MessageError, match="after the archive's end"):
        Image.read(written(tmp_path, image() + b"\0"))


def test_attack_a_length_that_is_not_there(tmp_path: Path) -> None:
    """A header that promises four gigabytes allocates none of them."""
    whole = image()
    start = whole.index(b"watch.esb\0") - cpio.HEAD
    forged = whole[: start + 54] + b"FFFFFFFF" + whole[start + 62 :]
    with pytest.raises(MessageError, match="ends too early"):
        Image.read(written(tmp_path, forged))


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    """Nothing there, or a folder: one error that says so."""
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(PathError, match="cannot read an image"):
            Image.read(path)
