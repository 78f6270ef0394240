"""`edgestill bundle export`: a bundle in the form that others take it in."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from edgestill.core import swu
from edgestill.core.bundle import PUBLIC, Bundle, archive_bytes, replace, write_folder
from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import PathError, SettingError
from edgestill.core.extras import require
from edgestill.core.files import read_plain
from edgestill.core.units import format_size

MAX_ARCHIVE_BYTES: Final = 2**31
MAX_PEM_BYTES: Final = 20_000
MAX_PASSPHRASE_BYTES: Final = 2000


class Form(StrEnum):
    """What a bundle may become."""

    FOLDER = "dir"
    IMAGE = "swu"


def export(
    bundle: Annotated[Path, typer.Argument(help="A bundle: NAME.esb or a folder.")],
    out: Annotated[Path, typer.Argument(help="The new folder or image.")],
    *,
    to: Annotated[
        Form,
        typer.Option(help="dir: a folder of its blobs. swu: a signed image for SWUpdate."),
    ],
    key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="swu: the private RSA key that signs.")
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            metavar="PEM",
            help="swu: the key's certificate, for an SWUpdate that verifies CMS, as Debian's does; without it the signature is bare RSA.",
        ),
    ] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="swu: holds the key's passphrase; without it the key is not locked.")
    ] = None,
    inbox: Annotated[
        str, typer.Option(metavar="FOLDER", help="swu: where devices put the bundle, as NAME.esb.")
    ] = swu.INBOX,
    hardware: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REVISION",
            help="swu: of devices that may install it (/etc/hwrevision); may be repeated; default: the bundle's hardware class.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Write a bundle as a folder, or as a signed image that SWUpdate installs."""
    opened = Bundle.open(bundle)
    opened.verify()
    if to is Form.FOLDER:
        _to_folder(opened, out)
        said: dict[str, object] = {"folder": str(out), "digest": str(opened.manifest.digest)}
        typer.echo(json.dumps(said) if as_json else f"{out}: {len(opened.manifest.blobs)} blobs")
        return
    if key is None:
        raise SettingError(
            "an image is signed",
            where="--key",
            expected="a private RSA key",
            got="none",
            fix="make one: openssl req -x509 -newkey rsa:4096 -keyout image.key -out image.crt -days 3650",
        )
    archive = _archive(opened)
    description = swu.Description.of(
        opened.manifest, Digest.of(archive), inbox=inbox, hardware=tuple(hardware or ())
    )
    signature = _signature(description, key, certificate, passphrase_file)
    image = swu.image_bytes(description, signature, archive)
    replace(out, image, mode=PUBLIC)
    said = {
        "image": str(out),
        "size": len(image),
        "digest": str(Digest.of(image)),
        "archive": str(description.digest),
        "hardware": list(description.hardware),
        "path": f"{description.inbox}/{description.file}",
    }
    typer.echo(json.dumps(said) if as_json else f"{out}: {format_size(len(image))}, installs {said['path']}")


def _to_folder(opened: Bundle, out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PathError(
            "something is there already",
            where=out,
            expected="a new or an empty folder",
            got="other files" if out.is_dir() else "a file",
            fix="choose another path",
        )
    blobs = opened.manifest.blobs
    write_folder(out, opened.manifest, {name: opened.read(name) for name in blobs})


def _archive(opened: Bundle) -> bytes:
    """The bundle's archive; of a folder the same bytes, by which a publisher lists it."""
    if opened.path.is_dir():
        blobs = opened.manifest.blobs
        return archive_bytes(opened.manifest, {name: opened.read(name) for name in blobs})
    return read_plain(opened.path, what="the bundle", at_most=MAX_ARCHIVE_BYTES)


def _signature(
    description: swu.Description, key: Path, certificate: Path | None, passphrase_file: Path | None
) -> bytes:
    require("tuf", extra="agent", purpose="to sign an image")
    from edgestill.trust.imagekey import ImageKey

    passphrase = None
    if passphrase_file is not None:
        told = read_plain(passphrase_file, what="the passphrase", at_most=MAX_PASSPHRASE_BYTES)
        passphrase = told.rstrip(b"\r\n")
    pem = read_plain(key, what="the image key", at_most=MAX_PEM_BYTES)
    signer, data = ImageKey.from_pem(pem, passphrase), description.to_bytes()
    if certificate is None:
        return signer.sign(data)
    held = read_plain(certificate, what="the image certificate", at_most=MAX_PEM_BYTES)
    return signer.sign_cms(data, held, now=SystemClock().now())
