"""`edgestill plumbing`: parts of edgestill by themselves, for those who test them with tools of others."""

from __future__ import annotations

import sys
from typing import Final

import typer

from edgestill.core.extras import require

app = typer.Typer(
    help="Parts by themselves, for tools of others.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
AS_THEY_ARE: Final = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@app.command("tuf-client", context_settings=AS_THEY_ARE)
def tuf_client(context: typer.Context) -> None:
    """A bare client of TUF repositories, with the command line of the TUF conformance suite; --help tells it."""
    require("tuf", extra="agent", purpose="to verify metadata")
    from edgestill.cli.tuf_client import main

    sys.exit(main(context.args))
