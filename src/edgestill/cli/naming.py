"""Keys of a publisher that are elsewhere: how they are named on the command line, and how their secrets are asked for."""

from __future__ import annotations

import logging
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edgestill.core.errors import SettingError
from edgestill.core.files import read_plain

if TYPE_CHECKING:
    from edgestill.trust.named import NamedKey

log: Final = logging.getLogger(__name__)

VARIABLE: Final = "EDGESTILL_PIN_FILE"
MAX_SECRET_BYTES: Final = 2000

Uris = Annotated[
    list[str] | None,
    typer.Option(
        metavar="URI", help="A key elsewhere, such as hsm:2; may be repeated, each with its public half."
    ),
]
Publics = Annotated[
    list[Path] | None,
    typer.Option(metavar="PUBLIC.pem", help="The public half of that key; may be repeated."),
]


def read(uris: list[str] | None, publics: list[Path] | None) -> list[NamedKey]:
    """The keys that are named, each with its public half.

    Raises:
        SettingError: a URI without a public half, or the other way; or one that nothing can reach.
        MessageError: not a public key of a kind that a role may have.
    """
    from edgestill.trust.keys import MAX_PEM_BYTES, role_key_of
    from edgestill.trust.named import NamedKey

    named, files = uris or [], publics or []
    if len(named) != len(files):
        raise SettingError(
            "keys and their public halves do not go together",
            where="URI",
            expected="as many public halves as URIs",
            got=f"{len(named)} and {len(files)}",
            fix="give the public half of each key, in the same order",
        )
    return [
        NamedKey(uri, role_key_of(read_plain(path, what="the public key", at_most=MAX_PEM_BYTES)), ask)
        for uri, path in zip(named, files, strict=True)
    ]


def ask(secret: str, key: str) -> str:
    """The secret of a key that is elsewhere, off the file that a variable names, or asked for.

    Args:
        secret: its name, such as `pin`.
        key: whose it is, for people.

    Raises:
        SettingError: there is nobody to ask. PathError: the file cannot be read.
    """
    path = os.environ.get(VARIABLE)
    if path:
        data = read_plain(Path(path), what="the key's secret", at_most=MAX_SECRET_BYTES)
        _warn_of_readers(Path(path))
        log.info("the %s of %s is taken from %s", secret[:40], key, VARIABLE)
        return data.decode("utf-8", "replace").rstrip("\r\n")
    if not sys.stdin.isatty():
        raise SettingError(
            "nobody to ask for a key's secret",
            where=f"{VARIABLE}, for {key}",
            expected=f"a file that {VARIABLE} names, or a terminal",
            got="neither",
            fix=f"name the file that holds the {secret[:40]}",
        )
    return str(typer.prompt(f"{secret[:40]} of the key {key}", hide_input=True))


def _warn_of_readers(path: Path) -> None:
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("others than its owner can open %s, which holds a key's secret: chmod 600", path)
