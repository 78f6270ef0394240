"""A bare client of TUF repositories, with the command line of the TUF conformance suite: `python -m edgestill.cli.tuf_client`.

    --metadata-dir DIR init ROOT
    --metadata-dir DIR --metadata-url URL refresh
    --metadata-dir DIR --metadata-url URL --target-name N [--target-name N ...] --target-base-url URL --target-dir DIR download

It is a device's own verifying client (`trust.client`), with the newest metadata of each role kept under its bare name. `download`
refreshes first; several targets are brought in their order, and one that is there already, with the right hashes, is not brought
again. A target's file has its quoted name. Exit code 0, 1 after a failure told in one line, 2 after wrong usage.

Standard library, trust and link only: it starts without Typer.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from edgestill.core.bundle import PUBLIC
from edgestill.core.bundle import replace as write_whole
from edgestill.core.clock import SystemClock
from edgestill.core.errors import (
    AccessError,
    EdgestillError,
    NotFoundError,
    PathError,
    SettingError,
    TrustError,
)
from edgestill.core.files import read_plain
from edgestill.core.protocols import Request
from edgestill.link.exchange import ABSENT, accepted, exchange
from edgestill.link.http import HttpTransport, check_url
from edgestill.trust.client import TrustedClient
from edgestill.trust.kept import KeptNewest
from edgestill.trust.metadata import bound_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgestill.trust.delegation import Listed

SECONDS: Final = 60.0
"""For one file."""
MAX_TARGET_BYTES: Final = 2**30
"""They are held in memory until their hash is known."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    options = _parser().parse_args(arguments)
    try:
        if options.verb == "init":
            _init(options.metadata_dir, options.root)
        else:
            client = _refreshed(options)
            for name in options.target_name if options.verb == "download" else ():
                _download(client, name, options)
    except EdgestillError as error:
        print(error, file=sys.stderr)  # noqa: T201  # a command line tells its failure
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tuf-client", description="A bare client of TUF repositories.")
    parser.add_argument("--metadata-dir", type=Path, required=True, metavar="DIR", help="what is trusted")
    parser.add_argument("--metadata-url", default="", metavar="URL", help="of the repository's metadata")
    parser.add_argument("--target-name", action="append", default=[], metavar="N", help="may be repeated")
    parser.add_argument("--target-base-url", default="", metavar="URL", help="of the repository's targets")
    parser.add_argument("--target-dir", type=Path, metavar="DIR", help="gets the targets")
    verbs = parser.add_subparsers(dest="verb", required=True)
    init = verbs.add_parser("init", help="trust this root")
    init.add_argument("root", type=Path, metavar="ROOT", help="root metadata that is trusted from now on")
    verbs.add_parser("refresh", help="fetch and verify what is new")
    verbs.add_parser("download", help="refresh, then bring targets")
    return parser


def _init(folder: Path, root: Path) -> None:
    """Keeps the anchor; it is looked at by the first refresh."""
    kept = KeptNewest(folder)
    kept.prepare()
    kept.write("root", read_plain(root, what="the root", at_most=bound_of("root")))


def _refreshed(options: argparse.Namespace) -> TrustedClient:
    base = _base(options.metadata_url, "--metadata-url")
    transport = HttpTransport()

    def fetch(path: str, at_most: int) -> bytes:
        try:
            return _got(transport, base + path.removeprefix("metadata/"), at_most)
        except AccessError as error:
            if not path.endswith(".root.json"):
                raise
            # what is not there is forbidden in many a bucket
            raise NotFoundError(
                error.what, where=error.where, expected=error.expected, got=error.got, fix=error.fix
            ) from error

    kept = KeptNewest(options.metadata_dir)
    client = TrustedClient(kept, root=kept.root, fetch=fetch, clock=SystemClock())
    client.refresh()
    return client


def _download(client: TrustedClient, name: str, options: argparse.Namespace) -> None:
    base = _base(options.target_base_url, "--target-base-url")
    if options.target_dir is None:
        raise _missing("--target-dir")
    found = client.find(name)
    if found is None:
        raise TrustError(
            "no role lists this target",
            where="targets.json",
            expected="a target that is listed",
            got=repr(name[:200]),
        )
    file: Path = options.target_dir / quote(name, "")
    if _is_there(file, found):
        return
    data = _got(HttpTransport(), base + found.path, min(found.length, MAX_TARGET_BYTES))
    found.check(data)
    try:
        options.target_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PathError(
            "cannot keep targets here",
            where=options.target_dir,
            expected="a folder",
            got=error.strerror,
            fix="give another one",
        ) from error
    write_whole(file, data, mode=PUBLIC)


def _is_there(file: Path, found: Listed) -> bool:
    """Whether the very bytes are there already."""
    try:
        found.check(read_plain(file, what="the target", at_most=found.length))
    except (PathError, TrustError):
        return False
    return True


def _got(transport: HttpTransport, url: str, at_most: int) -> bytes:
    request = Request("GET", url)
    reply = exchange(transport, request, timeout=SECONDS, max_bytes=at_most)
    return accepted(reply, request, documented=ABSENT).body


def _base(url: str, option: str) -> str:
    """An address that ends with a slash."""
    if not url:
        raise _missing(option)
    check_url(url, plain_http=False)
    return f"{url.rstrip('/')}/"


def _missing(option: str) -> SettingError:
    return SettingError(
        "an option is missing", where=option, expected="a value", got="none", fix=f"give {option}"
    )


if __name__ == "__main__":
    sys.exit(main())
