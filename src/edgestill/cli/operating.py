"""What the operator's verbs share: which hub, as whom, and how a table is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edgestill.cli.terminal import plain
from edgestill.core.errors import SettingError
from edgestill.core.extras import require
from edgestill.core.files import read_plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgestill.link.operator import OperatorClient

Hub = Annotated[str, typer.Option("--hub", envvar="EDGESTILL_HUB", metavar="URL", help="The hub's address.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="EDGESTILL_TOKEN_FILE",
        help="Holds the operator's token: operator.token of the hub.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]

MAX_TOKEN_BYTES: Final = 1000


def operator(hub: str, token_file: Path | None) -> OperatorClient:
    """A client of the hub.

    Raises:
        SettingError: not said which hub, or as whom. PathError: the token's file cannot be read.
        MissingExtraError: the command line was installed without what reaches a hub.
    """
    require("urllib3", extra="agent", purpose="to reach a hub")
    from edgestill.link.http import HttpTransport, check_url
    from edgestill.link.operator import OperatorClient

    for value, option, variable in ((hub, "--hub", "HUB"), (token_file, "--token-file", "TOKEN_FILE")):
        if not value:
            raise SettingError(
                "not said which hub, or as whom",
                where=option,
                expected=f"{option}, or EDGESTILL_{variable}",
                got="neither",
                fix="a hub's own folder has its token as operator.token",
            )
    assert token_file is not None
    check_url(hub)
    return OperatorClient(HttpTransport(), hub, token=token_of(token_file))


def token_of(token_file: Path | None) -> str:
    """The operator's token; PathError where its file cannot be read."""
    assert token_file is not None, "`operator` has asked for it"
    data = read_plain(token_file, what="the token", at_most=MAX_TOKEN_BYTES)
    return data.decode("utf-8", "replace").strip()


def told(value: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Prints what a hub said, as JSON or as lines in which nothing can move a cursor."""
    if as_json:
        typer.echo(json.dumps(value))
        return
    for line in lines:
        typer.echo(plain(line))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterable[str]:
    """Aligned columns; `-` for what is not known."""
    cells = [tuple(head), *(tuple("-" if one in {None, ""} else str(one) for one in row) for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(head))]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def label_of(text: str) -> tuple[str, str]:
    """Name and value of `KEY=VALUE`; SettingError where it is none."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise SettingError(
            "not a label", where="--label", expected="KEY=VALUE", got=text[:80], fix="write site=north"
        )
    return key, value
